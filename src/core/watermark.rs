//! Event-time progress: what has passed, which window is closed, which row is late (E-5).
//!
//! One definition for all of streamshield, the one of Flink's window table-valued functions: a watermark `w` says that
//! no timely row with event time ≤ `w` follows, and a window `[start, end)` is closed when `w ≥ end − 1 ms`.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Milliseconds since 1970 of event time that have passed on an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Watermark(pub i64);

impl Watermark {
    /// Nothing is known yet.
    pub const MIN: Watermark = Watermark(i64::MIN);
    /// The input has ended: every window closes.
    pub const MAX: Watermark = Watermark(i64::MAX);

    /// Whether a window with this exclusive end is closed.
    pub fn closes(self, window_end_ms: i64) -> bool {
        self.0 >= window_end_ms.saturating_sub(1)
    }

    /// Advances and never goes back (E-5); true when it moved.
    pub fn advance(&mut self, to: Watermark) -> bool {
        let moved = to > *self;
        if moved {
            *self = to;
        }
        moved
    }
}

impl Default for Watermark {
    fn default() -> Self {
        Watermark::MIN
    }
}

impl fmt::Display for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Watermark::MIN => f.write_str("-inf"),
            Watermark::MAX => f.write_str("+inf"),
            Watermark(ms) => write!(f, "{ms}"),
        }
    }
}

/// What one upstream says of its event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamWatermark {
    pub watermark: Watermark,
    /// An idle upstream holds nothing back: it is left out of the minimum.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub idle: bool,
}

impl UpstreamWatermark {
    pub const START: UpstreamWatermark = UpstreamWatermark { watermark: Watermark::MIN, idle: false };

    /// Nothing comes of it any more.
    pub fn has_ended(&self) -> bool {
        self.watermark == Watermark::MAX
    }
}

/// The combined watermark: the minimum over the upstreams that neither are idle nor have ended.
///
/// When there are none it is the maximum of what the idle ones said last, so that a quiet job still closes what all agree on
/// (Flink does the same). Only when all have ended it is [`Watermark::MAX`]: an idle one may go on, and what comes of it then has to be read. (In Flink
/// the end of one closes everything while the others are idle.)
pub fn combine(upstreams: impl IntoIterator<Item = UpstreamWatermark>) -> Watermark {
    let (mut minimum, mut maximum): (Option<Watermark>, Option<Watermark>) = (None, None);
    let mut ended = false;
    for upstream in upstreams {
        let said = upstream.watermark;
        if upstream.has_ended() {
            ended = true;
            continue;
        }
        maximum = maximum.max(Some(said));
        if !upstream.idle {
            minimum = Some(minimum.map_or(said, |minimum| minimum.min(said)));
        }
    }
    minimum.or(maximum).unwrap_or(if ended { Watermark::MAX } else { Watermark::MIN })
}

/// Takes in what one upstream says, and moves the combined watermark on.
///
/// The combined watermark never goes back, and always follows from the upstreams alone: whoever has them from a record has it, too. So an upstream that is
/// behind it counts as being there when it begins to matter: one that was idle and wakes up, and the idle ones that are left when another one ends.
pub fn hear(upstreams: &mut [UpstreamWatermark], index: usize, says: UpstreamWatermark, combined: &mut Watermark) {
    let upstream = &mut upstreams[index];
    upstream.watermark.advance(says.watermark);
    upstream.idle = says.idle;
    if !upstream.idle {
        upstream.watermark.advance(*combined);
    }
    if upstream.has_ended() {
        for other in upstreams.iter_mut().filter(|other| other.idle) {
            other.watermark.advance(*combined);
        }
    }
    combined.advance(combine(upstreams.iter().copied()));
}

/// Whether nothing comes for the moment: there are upstreams that have not ended, and all of them are idle.
pub fn are_idle(upstreams: &[UpstreamWatermark]) -> bool {
    upstreams.iter().any(|upstream| upstream.idle) && upstreams.iter().all(|upstream| upstream.idle || upstream.has_ended())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDED: UpstreamWatermark = UpstreamWatermark { watermark: Watermark::MAX, idle: false };

    const fn busy(ms: i64) -> UpstreamWatermark {
        UpstreamWatermark { watermark: Watermark(ms), idle: false }
    }

    const fn idle(ms: i64) -> UpstreamWatermark {
        UpstreamWatermark { watermark: Watermark(ms), idle: true }
    }

    #[test]
    fn a_window_closes_one_millisecond_before_its_end() {
        assert!(!Watermark(9_998).closes(10_000));
        assert!(Watermark(9_999).closes(10_000));
        assert!(!Watermark::MIN.closes(i64::MIN + 2));
        assert!(Watermark::MAX.closes(i64::MAX));
    }

    #[test]
    fn an_idle_upstream_holds_nothing_back() {
        assert_eq!(combine([busy(5), busy(3)]), Watermark(3));
        assert_eq!(combine([busy(5), idle(3)]), Watermark(5));
        assert_eq!(combine([idle(5), idle(3)]), Watermark(5));
        assert_eq!(combine([busy(5), UpstreamWatermark::START]), Watermark::MIN);
    }

    #[test]
    fn an_upstream_that_has_ended_closes_nothing_over_those_that_have_not() {
        assert_eq!(combine([ENDED, busy(3), idle(5)]), Watermark(3));
        assert_eq!(combine([ENDED, idle(3), idle(5)]), Watermark(5));
        assert_eq!(combine([ENDED, idle(i64::MIN)]), Watermark::MIN);
        assert_eq!(combine([ENDED, ENDED]), Watermark::MAX);
        assert!(are_idle(&[ENDED, idle(3)]) && are_idle(&[idle(5), idle(3)]));
        assert!(!are_idle(&[ENDED, ENDED]) && !are_idle(&[idle(5), busy(3)]) && !are_idle(&[]));
    }

    #[test]
    fn the_combined_watermark_follows_from_the_upstreams_and_never_goes_back() {
        hear_all([UpstreamWatermark::START; 3], Watermark::MIN, 5);
    }

    /// Every order in which three upstreams may say something, so many times more.
    fn hear_all(upstreams: [UpstreamWatermark; 3], combined: Watermark, times: usize) {
        assert_eq!(combine(upstreams), combined, "{upstreams:?}");
        assert_eq!(combined == Watermark::MAX, upstreams.iter().all(UpstreamWatermark::has_ended), "{upstreams:?}");
        if times == 0 {
            return;
        }
        for index in (0..upstreams.len()).filter(|index| !upstreams[*index].has_ended()) {
            for says in [busy(1), idle(1), busy(2), idle(2), ENDED] {
                let (mut next, mut moved) = (upstreams, combined);
                hear(&mut next, index, says, &mut moved);
                assert!(moved >= combined, "{upstreams:?} {index} {says:?}");
                hear_all(next, moved, times - 1);
            }
        }
    }

    #[test]
    fn a_watermark_never_goes_back() {
        let mut watermark = Watermark(10);
        assert!(!watermark.advance(Watermark(9)));
        assert!(watermark.advance(Watermark(11)));
        assert_eq!(watermark, Watermark(11));
    }
}

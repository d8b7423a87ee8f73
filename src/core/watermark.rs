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
}

/// The combined watermark: the minimum over the upstreams that are not idle.
///
/// When all are idle it is the maximum of what they said last, so that a quiet job still closes what all agree on
/// (Flink does the same).
pub fn combine(upstreams: impl IntoIterator<Item = UpstreamWatermark>) -> Watermark {
    let (mut minimum, mut maximum, mut active) = (Watermark::MAX, Watermark::MIN, false);
    for upstream in upstreams {
        maximum = maximum.max(upstream.watermark);
        if !upstream.idle {
            active = true;
            minimum = minimum.min(upstream.watermark);
        }
    }
    if active { minimum } else { maximum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_closes_one_millisecond_before_its_end() {
        assert!(!Watermark(9_998).closes(10_000));
        assert!(Watermark(9_999).closes(10_000));
        assert!(!Watermark::MIN.closes(i64::MIN + 2));
        assert!(Watermark::MAX.closes(i64::MAX));
    }

    #[test]
    fn an_idle_upstream_holds_nothing_back() {
        let busy = |ms| UpstreamWatermark { watermark: Watermark(ms), idle: false };
        let idle = |ms| UpstreamWatermark { watermark: Watermark(ms), idle: true };
        assert_eq!(combine([busy(5), busy(3)]), Watermark(3));
        assert_eq!(combine([busy(5), idle(3)]), Watermark(5));
        assert_eq!(combine([idle(5), idle(3)]), Watermark(5));
        assert_eq!(combine([busy(5), UpstreamWatermark::START]), Watermark::MIN);
    }

    #[test]
    fn a_watermark_never_goes_back() {
        let mut watermark = Watermark(10);
        assert!(!watermark.advance(Watermark(9)));
        assert!(watermark.advance(Watermark(11)));
        assert_eq!(watermark, Watermark(11));
    }
}

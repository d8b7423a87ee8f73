//! Time by the log: no worker judges another by its own clock.
//!
//! A paused worker's clock runs on, and the broker may be away for minutes: a time-out by any wall clock would expire workers that did nothing
//! wrong. So time is what the broker wrote beside the records (LogAppendTime), and it advances by at most one heartbeat interval per record: an hour
//! without a broker is an hour in which nobody could write, and counts as one interval.
//!
//! ```text
//!   append time   1000   1100   1200 │ broker away │ 61200   61230   61260
//!   log clock       +0   +100   +100                  +100     +30     +30      expiry suspended until all were heard, 3 s at most
//! ```
//!
//! Still, after such a gap the first worker to come back must not judge those who are a moment slower: a gap above the time-out suspends expiry until all who
//! were live before it have been heard, or until [`SUSPENSION_MS_MAX`] of log clock are over.

use crate::ids::Incarnation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// How long, by the log clock, a gap may keep everybody from being expired.
pub(super) const SUSPENSION_MS_MAX: u64 = 3_000;

/// Expiry waits for those who were live when the log fell silent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Suspension {
    pub until_ms: u64,
    pub awaited: BTreeSet<Incarnation>,
}

/// The log clock. Starts at 0 with the first record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct LogClock {
    pub now_ms: u64,
    /// Append time of the latest record that has one, by the broker's clock.
    pub last_append_ms: Option<i64>,
    pub suspension: Option<Suspension>,
}

impl LogClock {
    /// Takes one record's append time. Returns how much time lies between it and the previous one as the broker saw it.
    pub fn advance(&mut self, append_time_ms: Option<i64>, step_ms_max: u64) -> u64 {
        let Some(append_ms) = append_time_ms else { return 0 };
        let gap_ms = self.last_append_ms.map_or(0, |last| append_ms.saturating_sub(last).max(0).unsigned_abs());
        self.last_append_ms = Some(append_ms);
        self.now_ms = self.now_ms.saturating_add(gap_ms.min(step_ms_max));
        gap_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_between_nothing_and_one_heartbeat_interval() {
        let mut clock = LogClock::default();
        let mut advance = |append_ms| {
            clock.advance(append_ms, 100);
            clock.now_ms
        };
        assert_eq!(advance(Some(1_000)), 0, "the first record only says where the broker's clock stands");
        assert_eq!(advance(Some(1_040)), 40);
        assert_eq!(advance(Some(1_040)), 40);
        assert_eq!(advance(None), 40, "no LogAppendTime adds nothing");
        assert_eq!(advance(Some(900)), 40, "a new leader's clock may be behind");
        assert_eq!(advance(Some(950)), 90, "and counts on from there");
        assert_eq!(advance(Some(61_000)), 190);
        assert_eq!(advance(Some(i64::MAX)), 290);
        assert_eq!(advance(Some(i64::MIN)), 290);
        assert_eq!(advance(Some(i64::MAX)), 390, "no overflow from one end to the other");
    }

    #[test]
    fn the_gap_is_as_the_broker_saw_it() {
        let mut clock = LogClock::default();
        assert_eq!(clock.advance(Some(1_000), 100), 0);
        assert_eq!(clock.advance(Some(9_000), 100), 8_000);
        assert_eq!(clock.advance(None, 100), 0);
        assert_eq!(clock.advance(Some(8_000), 100), 0);
    }
}

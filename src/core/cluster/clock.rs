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
//! were live before it have been heard, or until [`SUSPENSION_MS_MAX`] of log clock are over. After a further gap, who was not heard since is not waited for
//! anew: a broker that stalls again and again would keep the dead alive.
//!
//! What machines' clocks are held against is the *broker clock*: the broker's time, and where that is set back (a new leader's clock) it goes on beside the
//! log clock until the broker has come there again.

use super::state::is_zero_ms;
use crate::ids::Incarnation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How long, by the log clock, one who was not heard since a gap may keep everybody from being expired.
pub(super) const SUSPENSION_MS_MAX: u64 = 3_000;

/// Expiry waits for those who were live when the log fell silent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Suspension {
    /// With the log clock until which each is waited for.
    pub awaited: BTreeMap<Incarnation, u64>,
}

/// The log clock. Starts at 0 with the first record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct LogClock {
    pub now_ms: u64,
    /// Append time of the latest record that has one, by the broker's clock.
    pub last_append_ms: Option<i64>,
    /// By how much the broker's clock is behind the latest time that it has shown, and what has passed since.
    #[serde(default, skip_serializing_if = "is_zero_ms")]
    pub behind_ms: u64,
    pub suspension: Option<Suspension>,
}

impl LogClock {
    /// Takes one record's append time. Returns how much time lies between it and the previous one as the broker saw it.
    pub fn advance(&mut self, append_time_ms: Option<i64>, step_ms_max: u64) -> u64 {
        let Some(append_ms) = append_time_ms else { return 0 };
        let gap_ms = self.last_append_ms.map_or(0, |last| append_ms.saturating_sub(last).max(0).unsigned_abs());
        let step_ms = gap_ms.min(step_ms_max);
        let broker_ms = self.broker_ms().map_or(append_ms, |before_ms| before_ms.saturating_add_unsigned(step_ms).max(append_ms));
        self.behind_ms = broker_ms.abs_diff(append_ms);
        self.last_append_ms = Some(append_ms);
        self.now_ms = self.now_ms.saturating_add(step_ms);
        gap_ms
    }

    /// Since 1970; never goes back.
    pub fn broker_ms(&self) -> Option<i64> {
        self.last_append_ms.map(|append_ms| append_ms.saturating_add_unsigned(self.behind_ms))
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
    fn the_broker_clock_goes_on_when_the_brokers_own_is_set_back() {
        let mut clock = LogClock::default();
        assert_eq!(clock.broker_ms(), None);
        let mut advance = |append_ms| {
            clock.advance(Some(append_ms), 100);
            clock.broker_ms()
        };
        assert_eq!(advance(60_000), Some(60_000));
        assert_eq!(advance(60_050), Some(60_050));
        assert_eq!(advance(20_050), Some(60_050), "set back by 40 s");
        assert_eq!(advance(20_150), Some(60_150), "and goes on");
        assert_eq!(advance(50_150), Some(60_250), "a gap counts as one interval here, too");
        assert_eq!(advance(70_000), Some(70_000), "it shows the time of a broker that is ahead of it");
        for _ in 0..10 {
            advance(30_000);
            advance(70_000);
        }
        assert_eq!(advance(70_000), Some(71_000), "leaders that take turns push it by one interval each time at most");
        assert_eq!(advance(i64::MIN), Some(71_000));
        assert_eq!(advance(i64::MAX), Some(i64::MAX));
        assert_eq!(advance(i64::MIN), Some(i64::MAX));
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

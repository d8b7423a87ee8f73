//! Time, asked for and hardly ever waited for: an actor says when it wants its next turn.
//!
//! The engine has two times. The *wall clock* goes into epochs as their `now` (and never back, see `Region::open`). The *steady time* measures
//! intervals. A simulation gives both by the same trait, so the engine's own code decides on a time that a seed controls.

use crate::membership::Membership;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub trait Clock: Send + Sync {
    /// Milliseconds since 1970.
    fn wall_ms(&self) -> i64;
    /// Since some fixed moment; never goes back.
    fn steady(&self) -> Duration;
    /// Lets time pass between two tries of a start, which nobody gives turns to yet. Nothing else waits in this way.
    fn pause(&self, time: Duration);
}

/// What an epoch's `now` comes from: no machine's clock is believed further than a little beyond the time that the control log has, so that one which is wrong
/// can't make processing time jump.
pub struct LogBoundClock {
    pub clock: Arc<dyn Clock>,
    pub membership: Arc<Membership>,
}

/// By how much a clock may be ahead of the newest record of the control log, which is a heartbeat's age old.
const AHEAD_MS_MAX: i64 = 1_000;

impl Clock for LogBoundClock {
    fn wall_ms(&self) -> i64 {
        let own_ms = self.clock.wall_ms();
        bounded(own_ms, self.membership.broker_clock_ms())
    }

    fn steady(&self) -> Duration {
        self.clock.steady()
    }

    fn pause(&self, time: Duration) {
        self.clock.pause(time);
    }
}

fn bounded(own_ms: i64, broker_ms: Option<i64>) -> i64 {
    broker_ms.map_or(own_ms, |broker_ms| own_ms.min(broker_ms.saturating_add(AHEAD_MS_MAX)))
}

/// This machine's clocks.
pub struct SystemClock {
    began: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock { began: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn wall_ms(&self) -> i64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64)
    }

    fn steady(&self) -> Duration {
        self.began.elapsed()
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_believed_until_a_little_beyond_the_control_log() {
        let log_ms = 1_700_000_000_000;
        assert_eq!(bounded(log_ms + 3_600_000, Some(log_ms)), log_ms + AHEAD_MS_MAX);
        assert_eq!(bounded(log_ms + 200, Some(log_ms)), log_ms + 200);
        assert_eq!(bounded(log_ms - 3_600_000, Some(log_ms)), log_ms - 3_600_000);
        assert_eq!(bounded(log_ms, None), log_ms);
    }
}

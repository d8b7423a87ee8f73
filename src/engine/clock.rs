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
        match self.membership.view(|cluster| cluster.log_clock_ms()) {
            0 => own_ms,
            log_ms => own_ms.min(log_ms as i64 + AHEAD_MS_MAX),
        }
    }

    fn steady(&self) -> Duration {
        self.clock.steady()
    }

    fn pause(&self, time: Duration) {
        self.clock.pause(time);
    }
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

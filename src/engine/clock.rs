//! Time, asked for and hardly ever waited for: an actor says when it wants its next turn.
//!
//! The engine has two times. The *wall clock* goes into epochs as their `now` (and never back, see `Region::open`). The *steady time* measures
//! intervals. A simulation gives both by the same trait, so the engine's own code decides on a time that a seed controls.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub trait Clock: Send + Sync {
    /// Milliseconds since 1970.
    fn wall_ms(&self) -> i64;
    /// Since some fixed moment; never goes back.
    fn steady(&self) -> Duration;
    /// Lets time pass between two tries of a start, which nobody gives turns to yet. Nothing else waits in this way.
    fn pause(&self, time: Duration);
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

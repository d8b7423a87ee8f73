//! A circuit breaker: while the store is away, checkpoints do not wait for it.
//!
//! ```text
//!            failures_max failures, or a request without answer in all its time
//!   Closed ───────────────────────────────────────────────► Open(until)
//!      ▲                                                       │ the time has come: one caller may try
//!      │ a write succeeded                                     ▼
//!      └──────────────────────────────────────────────────── Trial ── a failure ──► Open(until), twice as long
//! ```
//!
//! Reads and writes are counted apart, and only a write closes it: a store that lists but refuses writes is of no use to a checkpoint, and would
//! otherwise look healthy between two failures. The decisions are pure: time is handed in.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// Somebody tries. When nothing is heard of it until then, the next one may.
    Trial {
        until: Instant,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Breaker {
    failures_max: u32,
    backoff_min: Duration,
    backoff: Duration,
    /// How long a trial may take before the next caller may try as well.
    trial_max: Duration,
    read_failures: u32,
    write_failures: u32,
    state: State,
}

impl Breaker {
    const BACKOFF_FACTOR_MAX: u32 = 16;

    pub(crate) fn new(failures_max: u32, backoff: Duration, trial_max: Duration) -> Breaker {
        Breaker { failures_max, backoff_min: backoff, backoff, trial_max, read_failures: 0, write_failures: 0, state: State::Closed }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Whether to go to the store now. While it is open: one caller per backoff.
    pub(crate) fn permits(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until } | State::Trial { until } if now >= until => {
                self.state = State::Trial { until: now + self.trial_max };
                true
            }
            State::Open { .. } | State::Trial { .. } => false,
        }
    }

    pub(crate) fn succeeded(&mut self, access: Access) {
        self.read_failures = 0;
        if access == Access::Write {
            self.write_failures = 0;
            self.state = State::Closed;
            self.backoff = self.backoff_min;
        }
    }

    /// A request that failed with all its attempts. `timed_out`: it got no answer at all, so the next ones would hang as well.
    pub(crate) fn failed(&mut self, access: Access, timed_out: bool, now: Instant) {
        let failures = match access {
            Access::Read => &mut self.read_failures,
            Access::Write => &mut self.write_failures,
        };
        *failures = failures.saturating_add(1);
        match self.state {
            State::Closed if timed_out || *failures >= self.failures_max => self.open(now),
            State::Trial { .. } => {
                self.backoff = (self.backoff * 2).min(self.backoff_min * Breaker::BACKOFF_FACTOR_MAX);
                self.open(now);
            }
            State::Closed | State::Open { .. } => {}
        }
    }

    fn open(&mut self, now: Instant) {
        self.state = State::Open { until: now + self.backoff };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> Breaker {
        Breaker::new(3, SECOND, 10 * SECOND)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_a_written_object_closes_it() {
        let (mut breaker, start) = (breaker(), Instant::now());
        for _ in 0..2 {
            breaker.failed(Access::Write, false, start);
        }
        breaker.succeeded(Access::Write);
        for _ in 0..2 {
            breaker.failed(Access::Write, false, start);
            assert!(breaker.permits(start));
        }
        breaker.failed(Access::Write, false, start);
        assert!(!breaker.is_closed() && !breaker.permits(start));

        assert!(breaker.permits(start + SECOND), "one may try after the backoff");
        assert!(!breaker.permits(start + SECOND), "and only one");
        breaker.succeeded(Access::Write);
        assert!(breaker.is_closed() && breaker.permits(start + SECOND));
    }

    #[test]
    fn a_store_that_lists_but_does_not_write_stays_open() {
        let (mut breaker, start) = (breaker(), Instant::now());
        for _ in 0..3 {
            breaker.succeeded(Access::Read);
            breaker.failed(Access::Write, false, start);
        }
        assert!(!breaker.is_closed());
        assert!(breaker.permits(start + SECOND));
        breaker.succeeded(Access::Read);
        assert!(!breaker.is_closed());
    }

    #[test]
    fn one_request_without_any_answer_opens_it() {
        let (mut breaker, start) = (breaker(), Instant::now());
        breaker.failed(Access::Read, true, start);
        assert!(!breaker.is_closed());
    }

    #[test]
    fn the_backoff_doubles_up_to_a_limit_and_a_lost_trial_does_not_block_for_ever() {
        let (mut breaker, mut now) = (breaker(), Instant::now());
        breaker.failed(Access::Read, true, now);
        for factor in [1_u32, 2, 4, 8, 16, 16, 16] {
            let until = now + SECOND * factor;
            assert!(!breaker.permits(until - Duration::from_millis(1)), "{factor}");
            assert!(breaker.permits(until), "{factor}");
            breaker.failed(Access::Write, false, until);
            now = until;
        }
        assert!(breaker.permits(now + 16 * SECOND));
        assert!(!breaker.permits(now + 20 * SECOND));
        assert!(breaker.permits(now + 26 * SECOND), "nothing was heard of the trial");
    }
}

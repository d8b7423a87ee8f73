//! What to do about a worker that has ended: pure.
//!
//! ```text
//! exit 0            it is done                       exit 2   the job file is wrong: it would be tomorrow
//! killed, aborted   start it again, soon             exit 3   somebody else has its name: they would expire each other in turns
//! exit 1            start it again, a few times
//! ```
//! A worker that dies now and then is what the job is made for. One that fails at each start fails for a reason that a restart does not remove, and must not
//! hide behind restarts.

use crate::cli::ExitStatus;
use crate::cli::backoff::Backoff;
use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A worker that ran this long was up: what ended it is not what keeps it from starting.
const HEALTHY_LIFE: Duration = Duration::from_secs(5);
/// In a row. Failures tell a reason, which is the same one each time.
const FAILURES_MAX: u32 = 5;
/// Of any kind, each soon after the start: so ends a job whose one region takes its processes down, is quarantined, and is tried again by whoever starts next.
/// Deaths without a word, which may be bad luck, have no other limit: time for several regions of one worker to be quarantined.
const QUICK_ENDS_MAX: u32 = 50;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Done,
    RestartAfter(Duration),
    /// The whole job ends, with this status.
    GiveUp {
        status: ExitStatus,
        reason: String,
        hint: &'static str,
    },
}

/// One worker's record.
#[derive(Clone, Debug)]
pub struct RestartPolicy {
    backoff: Backoff,
    last: Option<Exit>,
    in_a_row: u32,
    quick_ends: u32,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy { backoff: Backoff::new(PAUSE_MIN, PAUSE_MAX, HEALTHY_LIFE), last: None, in_a_row: 0, quick_ends: 0 }
    }
}

impl RestartPolicy {
    pub fn next(&mut self, exit: Exit, ran_for: Duration) -> Next {
        let same = self.last.replace(exit) == Some(exit) && ran_for < HEALTHY_LIFE;
        self.in_a_row = if same { self.in_a_row + 1 } else { 1 };
        self.quick_ends = if ran_for < HEALTHY_LIFE { self.quick_ends + 1 } else { 0 };
        match exit {
            Exit::Code(0) => Next::Done,
            Exit::Code(2) => Next::GiveUp {
                status: ExitStatus::Usage,
                reason: "can't run this job (exit code 2)".into(),
                hint: "what is wrong with it stands above",
            },
            Exit::Code(3) => Next::GiveUp {
                status: ExitStatus::TakenOver,
                reason: "has lost its name to another process (exit code 3)".into(),
                hint: "does the job run elsewhere, too? Give its workers other names, or stop one of the two",
            },
            _ => {
                let hint = match exit {
                    Exit::Code(_) => "its reason stands above; nothing is lost: the next start goes on from the last commit",
                    Exit::Signal(_) => {
                        "is memory short, or is it killed, by somebody or by a row? The kernel's log (dmesg) or `status` may tell"
                    }
                };
                if matches!(exit, Exit::Code(_)) && self.in_a_row >= FAILURES_MAX {
                    let reason = format!("ended {FAILURES_MAX} times in a row with {exit}");
                    return Next::GiveUp { status: ExitStatus::Failed, reason, hint };
                }
                if self.quick_ends >= QUICK_ENDS_MAX {
                    let reason = format!("ended {QUICK_ENDS_MAX} times in a row soon after its start, now with {exit}");
                    return Next::GiveUp { status: ExitStatus::Failed, reason, hint };
                }
                Next::RestartAfter(self.backoff.after(ran_for))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_killed_worker_is_started_again_however_often_as_long_as_it_runs_in_between() {
        let mut policy = RestartPolicy::default();
        for _ in 0..1_000 {
            assert_eq!(policy.next(Exit::Signal(9), LONG), Next::RestartAfter(PAUSE_MIN));
        }
    }

    #[test]
    fn the_same_failure_again_and_again_ends_the_job_after_growing_pauses() {
        let mut policy = RestartPolicy::default();
        let mut pauses = Vec::new();
        let status = loop {
            match policy.next(Exit::Code(1), SHORT) {
                Next::RestartAfter(pause) => pauses.push(pause.as_millis()),
                Next::GiveUp { status, reason, .. } => {
                    assert_eq!(reason, "ended 5 times in a row with exit code 1");
                    break status;
                }
                Next::Done => panic!("it is not done"),
            }
        };
        assert_eq!((status, pauses.as_slice()), (ExitStatus::Failed, &[100, 200, 400, 800][..]));
    }

    #[test]
    fn different_ends_are_no_row() {
        let mut policy = RestartPolicy::default();
        for _ in 0..20 {
            assert!(matches!(policy.next(Exit::Code(1), SHORT), Next::RestartAfter(_)));
            assert!(matches!(policy.next(Exit::Signal(9), SHORT), Next::RestartAfter(_)));
        }
    }

    #[test]
    fn a_worker_that_never_lives_long_is_given_up_whatever_ends_it() {
        let mut policy = RestartPolicy::default();
        let ends = [Exit::Signal(6), Exit::Signal(6), Exit::Code(1)];
        let lives = ends.into_iter().cycle().take_while(|exit| matches!(policy.next(*exit, SHORT), Next::RestartAfter(_))).count();
        assert_eq!(lives as u32 + 1, QUICK_ENDS_MAX);
        assert!(matches!(policy.next(Exit::Signal(6), LONG), Next::RestartAfter(_)));
    }

    #[test]
    fn a_worker_that_dies_of_one_region_after_the_other_is_not_given_up_before_some_are_quarantined() {
        let mut policy = RestartPolicy::default();
        for _ in 1..QUICK_ENDS_MAX {
            assert!(matches!(policy.next(Exit::Signal(6), SHORT), Next::RestartAfter(_)));
        }
        assert!(matches!(policy.next(Exit::Signal(6), SHORT), Next::GiveUp { status: ExitStatus::Failed, .. }));
    }

    #[test]
    fn what_a_restart_would_not_change_is_not_tried_again() {
        let next = |code| RestartPolicy::default().next(Exit::Code(code), SHORT);
        assert_eq!(next(0), Next::Done);
        assert!(matches!(next(2), Next::GiveUp { status: ExitStatus::Usage, .. }));
        assert!(matches!(next(3), Next::GiveUp { status: ExitStatus::TakenOver, .. }));
    }
}

//! The heartbeat, on a thread of its own: what the others know a worker by.
//!
//! It carries the offset up to which this worker has read the control log and its digest of the state there: a worker that contradicts the
//! majority ends itself (C-1). It stops when a slot, its committer or its nursery makes no more progress: a worker that is alive but stuck would
//! hold its regions for ever. A worker that is asked to leave says here that it drains. A beat without an answer tells that the log is away,
//! also in a job that has nothing to commit.

use crate::clock::Clock;
use crate::membership::Membership;
use crate::progress::{Progress, Waiting};
use crate::runtime::{EngineError, JobOutcome, Shared, gone};
use crate::turn::{Actor, Turn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use streamshield_core::cluster::ControlRecord;

/// A slot that took no turn for this long is stuck: its longest call to the log is bounded far below.
const STUCK_TIME_MAX: Duration = Duration::from_secs(60);
/// The same for its committer and its nursery, whose calls may be long: a commit waits for up to `transaction.timeout.ms`, which brokers let be 15 minutes, and
/// to open a large store, or one that was fetched, takes minutes on a slow disk. Who is away for longer hangs, as in a file system that is gone.
const HELPER_STUCK_TIME_MAX: Duration = Duration::from_secs(20 * 60);

pub struct Heart {
    pub membership: Arc<Membership>,
    pub clock: Arc<dyn Clock>,
    pub shared: Arc<Shared>,
    pub progress: Arc<Progress>,
    pub interval: Duration,
    pub next: Duration,
    /// Said that it is about to leave.
    pub farewell: bool,
}

impl Actor for Heart {
    fn turn(&mut self) -> Turn {
        if self.shared.over.load(Ordering::SeqCst) {
            return Turn::Ended(JobOutcome::Stopped);
        }
        let now = self.clock.steady();
        if self.shared.is_leaving() && !self.farewell {
            self.farewell = true;
            self.say_that_it_drains();
        }
        if now < self.next {
            return Turn::Idle(self.next - now);
        }
        // From the planned time on, so that a late beat does not delay all later ones; after a long pause from now on.
        self.next = (self.next + self.interval).max(now + self.interval / 2);
        let incarnation = self.membership.incarnation;
        let (standing, contradicts, applied, digest) = self
            .membership
            .view(|cluster| (cluster.standing(incarnation), cluster.contradicts(incarnation), cluster.applied(), cluster.digest()));
        if let Some(outcome) = gone(&standing) {
            return Turn::Ended(outcome);
        }
        if contradicts {
            return fatal(
                "C-1: this worker reads the control log differently than the majority of the workers",
                "is it of another release? Its state is safe",
            );
        }
        if let Some(slot) = self.shared.stuck_slot(now, STUCK_TIME_MAX) {
            return fatal(
                &format!("slot {slot} made no progress for {STUCK_TIME_MAX:?}"),
                "the worker gives its regions to others; its stack traces would tell why",
            );
        }
        if let Some((helper, slot)) = self.shared.stuck_helper(now, HELPER_STUCK_TIME_MAX) {
            return fatal(
                &format!("the {helper:?} of slot {slot} made no progress for {HELPER_STUCK_TIME_MAX:?}"),
                "do its disks and mounts answer? The worker gives its regions to others",
            );
        }
        if let Some(at) = applied {
            match self.membership.append(&ControlRecord::Heartbeat { incarnation, at, digest }) {
                Ok(_) => self.progress.resume(Waiting::Heartbeat),
                Err(error) => {
                    tracing::debug!(%error, "a heartbeat was not written");
                    self.progress.pause(Waiting::Heartbeat, &error.message, self.clock.steady().saturating_sub(now));
                }
            }
        }
        Turn::Again
    }
}

impl Heart {
    /// Once: whether it reaches the log or not, the worker leaves soon. It speaks of this incarnation alone: another process may have its name by now.
    fn say_that_it_drains(&self) {
        let incarnation = self.membership.incarnation;
        let name = self.membership.view(|cluster| {
            let name = cluster.worker_name(incarnation).filter(|_| cluster.has_to_hand_over(incarnation));
            name.map(str::to_owned)
        });
        if let Some(worker) = name
            && let Err(error) = self.membership.append(&ControlRecord::Drain { worker, undo: false, incarnation: Some(incarnation) })
        {
            tracing::debug!(%error, "could not ask the others to take over before leaving");
        }
    }
}

fn fatal(message: &str, hint: &str) -> Turn {
    Turn::Ended(JobOutcome::Failed(EngineError { message: message.into(), hint: Some(hint.into()) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Helper;

    #[test]
    fn who_took_no_turn_for_too_long_is_stuck_and_helpers_may_take_longer() {
        let shared = Shared::new(2);
        let began = Duration::from_secs(5);
        let long_after = began + 10 * HELPER_STUCK_TIME_MAX;
        let stuck = |now| (shared.stuck_slot(now, STUCK_TIME_MAX), shared.stuck_helper(now, HELPER_STUCK_TIME_MAX));
        assert_eq!(stuck(long_after), (None, None), "nobody has begun");
        for slot in 0..2 {
            shared.slot_lives(slot, began);
            shared.helper_lives(Helper::Committer, slot, began);
            shared.helper_lives(Helper::Nursery, slot, began);
        }
        assert_eq!(stuck(began + STUCK_TIME_MAX), (None, None));
        assert_eq!(stuck(began + 2 * STUCK_TIME_MAX), (Some(0), None));
        shared.slot_lives(0, long_after);
        shared.helper_lives(Helper::Committer, 0, long_after);
        shared.helper_lives(Helper::Committer, 1, long_after);
        shared.helper_lives(Helper::Nursery, 0, long_after);
        assert_eq!(stuck(long_after), (Some(1), Some((Helper::Nursery, 1))));
    }
}

//! What becomes of a region that can't be brought up or followed: another try, a rebuild, a rest, or back to the control log with the reason.

use super::{Nursery, Phase, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN, Role, TRIES_MAX, Task, Tended};
use crate::follower::FollowError;
use crate::region::Failure;
use crate::runtime::{EngineError, JobOutcome};
use std::time::Duration;
use streamshield_core::cluster::ControlRecord;
use streamshield_core::ids::{Epoch, Offset, RegionId};
use streamshield_core::ports::log::TopicPartition;

/// How long a follower rests that can't go on, unless the region is to be owned here.
const RESTS: Duration = Duration::from_secs(60);
/// Waits for what may be away for this worker alone, before another one tries. They take more than eleven minutes, which is longer than failures may lie apart
/// to add up: an outage never ends in a quarantine.
pub(crate) const WAITS_MAX: u32 = 140;

impl Nursery {
    /// Sorts a failure out: again, anew, or over to somebody else.
    pub(super) fn failed(&mut self, id: RegionId, mut task: Task, error: FollowError) -> Result<Tended, JobOutcome> {
        self.stop_reading(id);
        // Its state is closed before anybody may open it.
        task.phase = Phase::Opening;
        let is_ready = task.ready_told.is_some() || matches!(task.role, Role::Follower { is_ready: true });
        let message = match error {
            FollowError::Waits(message) => return Ok(self.waits(id, task, &message)),
            FollowError::Refused { message, hint } => return Err(JobOutcome::Failed(EngineError { message, hint: Some(hint) })),
            FollowError::Stopped(failure) => return Ok(self.stopped(id, task, failure)),
            FollowError::Retry(message) => message,
            FollowError::Diverged { epoch, message } => {
                metrics::counter!("streamshield_followers_diverged_total").increment(1);
                tracing::error!(region = %id, epoch = epoch.0, message, "E-4: the state differs from its owner's; it is rebuilt and not used");
                self.progress.diverged(id, epoch.0);
                task.without_store = true;
                task.without_checkpoint = false;
                self.say_not_ready(id, epoch);
                message
            }
            FollowError::Unusable(message) => {
                if is_ready && !task.is_owned() {
                    // To rebuild it may take minutes: nobody is to release the region to here meanwhile.
                    self.say_not_ready(id, Epoch(0));
                    task.ready_told = None;
                }
                task.without_checkpoint = false;
                // Without the checkpoint that it could not have: a job that was made from another one's begins with those.
                if std::mem::take(&mut task.store_is_away) {
                    return Ok(self.waits(id, task, &format!("{message}; the store of the checkpoints does not answer")));
                }
                tracing::warn!(region = %id, message, "the state can't be used; it is rebuilt");
                task.without_store = task.tries > 0;
                message
            }
        };
        task.tries += 1;
        task.ready_told = None;
        task.resume_at = self.now() + pause_after(task.tries);
        if task.tries > TRIES_MAX {
            self.let_others_try(id, &mut task, &message);
        }
        self.charges.tasks.insert(id, task);
        Ok(Tended::Quiet)
    }

    /// Something outside is away. That is no failure, and no try is counted.
    fn waits(&mut self, id: RegionId, mut task: Task, message: &str) -> Tended {
        task.waits += 1;
        let pause = pause_after(task.waits);
        if pause < RETRY_PAUSE_MAX {
            tracing::debug!(region = %id, message, "the region waits for what it needs");
        } else {
            tracing::warn!(region = %id, message, "the region waits for what it needs");
        }
        task.resume_at = self.now() + pause;
        if task.waits > WAITS_MAX {
            self.let_others_try(id, &mut task, message);
        }
        self.charges.tasks.insert(id, task);
        Tended::Quiet
    }

    fn let_others_try(&self, id: RegionId, task: &mut Task, message: &str) {
        let Role::Owner { assignment, .. } = task.role else { return };
        let failure = Failure::new(message, true);
        self.give_back(id, assignment, &failure);
        task.given_back = Some((assignment, failure));
        task.tries = 0;
        task.waits = 0;
    }

    /// More tries here would end in the same way. A region that is only followed works all the same: its owner does not read what is wrong.
    fn stopped(&mut self, id: RegionId, mut task: Task, failure: Failure) -> Tended {
        task.ready_told = None;
        if let Role::Owner { assignment, .. } = task.role {
            let (reason, retry) = (&failure.reason, failure.retry);
            tracing::error!(region = %id, reason, retry, "the region can't be brought up; it is given back");
            metrics::counter!("streamshield_regions_stopped_total").increment(1);
            if !retry {
                // Or nothing would be left of it here by the time that its quarantine is read.
                self.progress.region(id, |entry| entry.stopped = Some(reason.clone()));
            }
            self.give_back(id, assignment, &failure);
            task.resume_at = self.now() + RETRY_PAUSE_MAX;
            task.given_back = Some((assignment, failure));
        } else {
            tracing::error!(region = %id, reason = failure.reason, "the region can't be followed here");
            self.say_not_ready(id, Epoch(0));
            task.resume_at = self.now() + RESTS;
        }
        self.charges.tasks.insert(id, task);
        Tended::Quiet
    }

    fn say_not_ready(&self, region: RegionId, epoch: Epoch) {
        let _ = self.membership.append(&ControlRecord::NotReady { incarnation: self.slot.incarnation, region, epoch });
    }

    /// Gives an owned region back to the control log. A repeated record is a no-op.
    pub(super) fn give_back(&self, region: RegionId, assignment: Offset, failure: &Failure) {
        let (incarnation, epoch) = (self.slot.incarnation, Epoch(0));
        let Failure { reason, retry } = failure.clone();
        let record = ControlRecord::Failed { incarnation, region, assignment, epoch, reason, retry };
        if let Err(error) = self.membership.append(&record) {
            tracing::debug!(%region, %error, "could not give the region back yet");
        }
    }

    /// A follower that was dropped in an error left its partitions assigned.
    fn stop_reading(&mut self, id: RegionId) {
        let stage = &self.job.plan.stages[id.stage.0 as usize];
        let partition = TopicPartition::new(crate::topics::changelog(&self.job.config.name, stage), id.partition as i32);
        let _ = self.changelog.unassign(&partition);
        if let crate::plan::StageInput::Exchange(exchange) = &stage.input {
            let plan = &self.job.plan.exchanges[exchange.0 as usize];
            let partition = TopicPartition::new(crate::topics::exchange(&self.job.config.name, plan), id.partition as i32);
            let _ = self.exchange.unassign(&partition);
        }
    }
}

/// Longer with each time.
pub(crate) fn pause_after(times: u32) -> Duration {
    (RETRY_PAUSE_MIN * (1 << times.min(7))).min(RETRY_PAUSE_MAX)
}

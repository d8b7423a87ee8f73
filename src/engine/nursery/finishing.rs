//! The second half of bringing an owned region up: from a follower that nobody is left to be fenced for, to the slot.
//!
//! The end of the changelog is asked for once everybody who could still write has been fenced, those that the control log does not know included.

use super::{Arrival, Nursery, Phase, Role, Task, Tended};
use crate::changelog::{STABLE_TIME_MAX, check_stable};
use crate::follower::{FollowError, Follower};
use crate::region::Failure;
use crate::runtime::JobOutcome;
use std::time::Duration;
use streamshield_core::cluster::{Cluster, ControlRecord, SlotId, Standing};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Offset, RegionId};
use streamshield_core::mutants;
use streamshield_core::ports::log::{Isolation, LogError, LogErrorKind, TopicPartition};

impl Nursery {
    /// Where the changelogs of all regions end that are only waiting for that: one question for all of them, after their fences.
    pub(super) fn ask_for_ends(&mut self) -> Result<bool, JobOutcome> {
        let waiting = |(id, task): (&RegionId, &Task)| match &task.phase {
            Phase::Finishing { follower, end: None, .. } => Some((*id, follower.region.changelog.clone(), follower.read_up_to())),
            _ => None,
        };
        let asked: Vec<(RegionId, TopicPartition, Offset)> = self.charges.tasks.iter().filter_map(waiting).collect();
        if asked.is_empty() {
            return Ok(false);
        }
        let partitions: Vec<_> = asked.iter().map(|(_, partition, _)| partition.clone()).collect();
        let ends = match mutants::is_on("end-as-read") {
            true => Ok(asked.iter().map(|(_, _, read)| *read).collect()),
            false => self.log.ends(&partitions, Isolation::ReadUncommitted),
        };
        let is_passing = |error: &LogError| matches!(error.kind, LogErrorKind::Retry | LogErrorKind::Missing);
        match ends {
            Ok(ends) => {
                for ((id, ..), high) in asked.iter().zip(ends) {
                    if let Some(Task { phase: Phase::Finishing { end, .. }, .. }) = self.charges.tasks.get_mut(id) {
                        *end = Some(high);
                    }
                }
            }
            // What has been followed so far is kept.
            Err(error) if is_passing(&error) => {
                tracing::debug!(%error, "where changelogs end is not known yet");
            }
            // Of one of them, perhaps: the others ask again without it.
            Err(_) => {
                for (id, partition, _) in asked {
                    if let Err(error) = self.log.ends(&[partition], Isolation::ReadUncommitted)
                        && !is_passing(&error)
                        && let Some(task) = self.charges.tasks.remove(&id)
                    {
                        self.failed(id, task, error.into())?;
                    }
                }
            }
        }
        Ok(true)
    }

    /// Everybody who could still write is fenced: to the end, and over to the slot. The end is stable once it was read up to: a reader of what is
    /// committed does not get past an open transaction.
    pub(super) fn finish(
        &mut self,
        id: RegionId,
        task: &mut Task,
        mut follower: Box<Follower>,
        end: Option<Offset>,
        mut since: Duration,
    ) -> Result<Option<(Phase, Tended)>, FollowError> {
        let now = self.now();
        let Role::Owner { assignment, fences_open: false, .. } = task.role else {
            return Ok(Some((Phase::Following(follower), Tended::Moved)));
        };
        let moved = follower.turn(self.changelog.as_mut(), self.exchange.as_mut(), &mut self.notes, now)?;
        self.progress.followed(id, follower.region.epoch.0, follower.epochs_behind());
        let is_at_end = follower.is_caught_up() || end.is_some_and(|end| follower.has_applied(end));
        if let Some(writer) = self.unknown_writer(&follower).filter(|writer| is_at_end && task.fenced != Some(*writer)) {
            // It may have written more, or hold a transaction open: where the changelog ends is asked after the fence.
            let (end, since) = if self.fence_unknown(task, writer)? { (None, now) } else { (end, since) };
            return Ok(Some((Phase::Finishing { follower, end, since }, Tended::Waits)));
        }
        let Some(end_offset) = end.filter(|end| follower.has_applied(*end) || mutants::is_on("emit-before-catch-up")) else {
            if let Some(end) = end.filter(|_| now.saturating_sub(since) > STABLE_TIME_MAX) {
                check_stable(self.log.as_ref(), &follower.region.changelog, end).map_err(held_open)?;
                since = now;
            }
            let tended = if moved { Tended::Moved } else { Tended::Waits };
            return Ok(Some((Phase::Finishing { follower, end, since }, tended)));
        };
        if !follower.region.has_tables && follower.region.epoch.0 == 0 && end_offset > 0 && task.tries < 12 {
            // Nothing but delta chunks or markers lay in the part that was read.
            let low = self.log.bounds(&follower.region.changelog, Isolation::ReadUncommitted)?.low;
            if end_offset > low {
                task.tries += 1;
                self.close(*follower);
                return Ok(Some((Phase::Opening, Tended::Moved)));
            }
        }
        let partition = follower.region.changelog.clone();
        let last = follower.last.as_ref().map(|record| (record.epoch, record.incarnation));
        let mut region = follower.finish(self.exchange.as_mut())?;
        let _ = self.changelog.unassign(&partition);
        if let Some(sink) = self.job.sinks.get(&id.stage) {
            let begun = if end_offset == 0 { sink.begin() } else { Ok(()) };
            if let Err(error) = begun.and_then(|()| sink.recover(id, last)) {
                // Nothing is wrong with the state.
                return Err(if error.retry { FollowError::Waits(error.message) } else { FollowError::Retry(error.message) });
            }
        }
        region.assignment = assignment;
        region.changelog_from = end_offset;
        // What it has is in the changelog: the first epoch, which others wait for, need not be flushed.
        region.flushed = now;
        self.takeovers.caught_up(id, now);
        self.charges.held.insert(id, assignment);
        let _ = self.arrivals.send(Arrival { region: Box::new(region) });
        self.slot_wakeup.raise();
        Ok(None)
    }

    /// Of the last epoch in the changelog; None, as in ordinary life: the control log knows its worker, so it also knows whether it has to be fenced.
    fn unknown_writer(&self, follower: &Follower) -> Option<SlotId> {
        // An epoch from a checkpoint lies in another changelog than this empty one.
        let last = follower.last.as_ref().filter(|_| follower.read_up_to() > 0)?;
        self.membership.view(|cluster| unknown_writer(cluster, &self.membership.job, last))
    }

    /// Fences a writer that the control log does not know: not before that was looked up behind its epoch, since this worker may be late, and the
    /// writer one that has joined and taken the region over. True: it is fenced.
    fn fence_unknown(&mut self, task: &mut Task, writer: SlotId) -> Result<bool, FollowError> {
        if !self.charges.fenced.contains(&writer) {
            let Some((_, offset)) = task.looked_up.filter(|(of, _)| *of == writer) else {
                let SlotId { incarnation, slot } = self.slot;
                task.looked_up = self.membership.append(&ControlRecord::Confirm { incarnation, slot }).ok().map(|offset| (writer, offset));
                return Ok(false);
            };
            let is_unknown = || self.membership.view(|cluster| cluster.standing(writer.incarnation)) == Standing::Unknown;
            if !self.membership.has_read(offset) || !is_unknown() {
                return Ok(false);
            }
            tracing::warn!(slot = %writer, "the control log does not know who wrote the last epoch: was it lost? Its producer is fenced");
            self.log.fence(&writer.transactional_id(&self.membership.job))?;
            self.charges.fenced.insert(writer);
        }
        task.fenced = Some(writer);
        Ok(true)
    }
}

/// A transaction of somebody whom nobody fenced is open. It may end: the next owner waits for it anew, as often as a region may fail.
fn held_open(error: LogError) -> FollowError {
    match error.kind {
        LogErrorKind::Fatal => FollowError::Stopped(Failure::new(&error.message, true)),
        _ => error.into(),
    }
}

/// Who wrote this epoch, if the worker has never joined by this control log: then `must_fence` does not know it either. Whoever has joined needs no
/// fence here: it is fenced, or has released the region and works on others with the same producer.
pub(super) fn unknown_writer(cluster: &Cluster, job: &str, last: &EpochRecord) -> Option<SlotId> {
    // Of a job of another name, which this one began from, nobody is fenced.
    let slot = last.transactional_id.strip_prefix(&format!("{job}-{}-", last.incarnation.0))?.parse().ok()?;
    let is_unknown = cluster.standing(last.incarnation) == Standing::Unknown;
    is_unknown.then_some(SlotId { incarnation: last.incarnation, slot })
}

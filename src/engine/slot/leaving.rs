//! How regions leave a slot (released, failed, finished), and how the slot itself does.
//!
//! On failure: what the control log did not take is said again later; what the log has not acknowledged at the deadline, the next owner resolves.

use super::Slot;
use crate::commit::SEALED_AHEAD_MAX;
use crate::region::{Failure, Region};
use crate::runtime::JobOutcome;
use crate::turn::Turn;
use std::time::Duration;
use streamshield_core::cluster::ControlRecord;
use streamshield_core::ids::RegionId;
use streamshield_core::ports::log::{Isolation, LogError, TopicPartition};

/// How long a drain may wait for the log before the slot leaves with epochs unacknowledged (the next owner resolves them).
const DRAIN_DEADLINE: Duration = Duration::from_millis(1_500);

/// How often it is said that the control log takes nothing.
const TOLD_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Draining {
    deadline: Duration,
    outcome: JobOutcome,
    sealed: bool,
}

impl Slot {
    /// Tells the control log of regions that are released, have failed or have finished, once the outcome of all their epochs is known. Of all of them
    /// at once: each way to the log and back is time in which they stand still.
    pub(super) fn let_go(&mut self) -> bool {
        if self.clock.steady() < self.work.append_after {
            return false;
        }
        let quiet = |region: &&Region| region.in_flight == 0 && region.open.is_none();
        let due = |region: &&Region| {
            region.leaving || region.failed.is_some() || (region.finished && !self.work.finish_told.contains(&region.id))
        };
        let mut going: Vec<RegionId> = self.work.regions.values().filter(quiet).filter(due).map(|region| region.id).collect();
        if let Err(error) = self.note_release_ends(&going) {
            tracing::debug!(%error, "where changelogs end is not known yet");
            going.retain(|id| !needs_end(&self.work.regions[id]));
            self.append_later();
        }
        if going.is_empty() {
            return false;
        }
        let records: Vec<ControlRecord> = going.iter().map(|id| self.last_word(*id)).collect();
        // From here on they take no step in this slot, whether the records arrive or not: they are leaving or have failed.
        let offsets = match self.membership.append_all(&records) {
            Ok(offsets) => offsets,
            Err(error) => {
                let now = self.clock.steady();
                if self.work.append_told.is_none_or(|told| now.saturating_sub(told) > TOLD_EVERY) {
                    self.work.append_told = Some(now);
                    tracing::warn!(regions = going.len(), %error, "the control log does not take what becomes of regions; tried again and again");
                }
                return self.append_later();
            }
        };
        for ((id, record), offset) in going.into_iter().zip(records).zip(offsets) {
            match record {
                ControlRecord::Finished { .. } => drop(self.work.finish_told.insert(id)),
                ControlRecord::Released { .. } => self.remove(id, Some(offset), self.work.regions[&id].released_at),
                _ => self.remove(id, Some(offset), None),
            }
        }
        true
    }

    /// Where the changelogs of released regions end with their last epochs. Asked once: when the first try to release one was answered with an error, a
    /// successor may have written more by the second.
    fn note_release_ends(&mut self, going: &[RegionId]) -> Result<(), LogError> {
        let asked: Vec<RegionId> = going.iter().copied().filter(|id| needs_end(&self.work.regions[id])).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let partitions: Vec<TopicPartition> = asked.iter().map(|id| self.work.regions[id].changelog.clone()).collect();
        for (id, end) in asked.into_iter().zip(self.log.ends(&partitions, Isolation::ReadUncommitted)?) {
            self.work.regions.get_mut(&id).expect("asked for").released_at = Some(end);
        }
        Ok(())
    }

    /// What the control log is to know of a region that does nothing more here.
    fn last_word(&mut self, id: RegionId) -> ControlRecord {
        let incarnation = self.id.incarnation;
        let region = self.work.regions.get_mut(&id).expect("it is going");
        let (assignment, epoch) = (region.assignment, region.epoch);
        match region.failed.clone() {
            // What was sealed is committed, or refused for good; what was not is no epoch.
            Some(Failure { reason, retry }) => {
                // Closed before anybody may open it.
                region.drop_state();
                self.work.failed_here.insert(id);
                ControlRecord::Failed { incarnation, region: id, assignment, epoch, reason, retry }
            }
            None if region.leaving => ControlRecord::Released { incarnation, region: id, assignment, epoch },
            None => ControlRecord::Finished { incarnation, region: id, assignment, epoch },
        }
    }

    pub(super) fn begin_drain(&mut self, outcome: JobOutcome) -> Turn {
        let longest = self.clock.steady() + DRAIN_DEADLINE;
        let deadline = self.shared.leaves_by().map_or(longest, |by| by.min(longest));
        self.work.draining = Some(Draining { deadline, outcome, sealed: false });
        Turn::Again
    }

    /// Seals what is open, waits for the log, and leaves.
    pub(super) fn drain(&mut self) -> Turn {
        let sealed = self.work.draining.as_ref().is_some_and(|draining| draining.sealed);
        if !sealed && self.work.in_flight < SEALED_AHEAD_MAX {
            self.seal_open(true);
            self.work.draining.as_mut().expect("draining").sealed = true;
            return Turn::Again;
        }
        let now = self.clock.steady();
        let draining = self.work.draining.as_ref().expect("draining");
        if sealed && self.work.in_flight == 0 {
            let outcome = draining.outcome.clone();
            self.tell_begun(true);
            self.shared.slot_left_clean();
            self.send_group_offsets(true);
            return Turn::Ended(outcome);
        }
        if now >= draining.deadline {
            tracing::warn!("leaving before the log acknowledged the last epochs; the next owner finds out what became of them");
            return Turn::Ended(draining.outcome.clone());
        }
        Turn::Idle(draining.deadline - now)
    }
}

/// Before it is released it must be known where its changelog ends.
fn needs_end(region: &Region) -> bool {
    region.leaving && region.failed.is_none() && region.released_at.is_none()
}

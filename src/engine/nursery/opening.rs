//! The first half of bringing a region up: from what lies here, in the store of the checkpoints, or in the log alone, to a follower.
//!
//! ```text
//!  open the local store ─ usable ────────────────────────────────► follower, from where the store stands
//!     ▲  └─ none, too old for what the log still holds ─► fetch a checkpoint ─┐
//!     └────────────────────────── adopted, or there is none ◄─────────────────┘
//! ```
//! A checkpoint is fetched on a thread of its own. What is refused (another plan, another job's topics) is so before anything is deleted.

use super::{Fetched, Nursery, Phase, Role, ScratchFolder, TRIES_MAX, Task, Tended, is_of_job};
use crate::assemble::Unready;
use crate::follower::{FollowError, Follower, check_plan, decode_stored};
use crate::region::{Input, Region};
use crate::runtime::EngineError;
use crate::starting::{is_restorable, made_anew};
use crossbeam_channel::{Receiver, TryRecvError, bounded};
use std::time::Duration;
use streamshield_core::cluster::SlotId;
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Offset, RegionId};
use streamshield_core::ports::checkpoint::CheckpointErrorKind;
use streamshield_core::ports::log::Isolation;

/// The last record of a region without state is looked for this far from the end, then further and further.
const TAIL_MESSAGES: Offset = 64;

impl Nursery {
    /// Opens what lies here of the region.
    pub(super) fn open(&mut self, id: RegionId, task: &mut Task) -> Result<Option<(Phase, Tended)>, FollowError> {
        let now = self.now();
        let (mut region, tables) = self.job.region(id, &self.genesis, self.settings.clone()).map_err(unready)?;
        region.letters.bound(self.settings.letter_bytes_max);
        // Looked up before the end is asked for: an epoch that is told of lies in the log by then.
        let has_begun = self.membership.view(|cluster| cluster.region(id).is_some_and(|region| region.begun));
        let bounds = self.log.bounds(&region.changelog, Isolation::ReadUncommitted)?;
        if has_begun && bounds.high == 0 {
            let is_restorable = is_restorable(&self.job, &self.job.plan.stages[id.stage.0 as usize]);
            let EngineError { message, hint } = made_anew(&region.changelog, id, is_restorable);
            return Err(FollowError::Refused { message, hint: hint.unwrap_or_default() });
        }
        if !region.has_tables && bounds.high == 0 {
            // The very first start, unless the job's topics are gone and its checkpoints are not. One that was made from another job has its record here.
            if self.checkpoints.is_some() && !task.without_checkpoint {
                return Ok(Some(self.fetch(id, task)));
            }
            let restored = task.restored.clone().filter(|(_, record)| record.region == id);
            if let Some((from, record)) = &restored {
                check_plan(&region, record)?;
                // What a checkpoint is made of was written to the changelog before. A log in memory is empty again at the next start, but only a
                // worker that has it in its own process knows that it is one.
                if matches!(region.input, Input::Exchange(_)) || !self.job.config.log_dies_with_process {
                    return Err(of_another_log(&region, *from, 0));
                }
            }
            let restored = restored.map(|(_, record)| record);
            self.changelog.assign(&region.changelog, 0)?;
            return Ok(Some((Phase::Following(Box::new(Follower::first(region, restored, now))), Tended::Moved)));
        }
        if !region.has_tables {
            let from = bounds.low.max(bounds.high - TAIL_MESSAGES * (1 << (2 * task.tries.min(8))));
            return self.begin(region, None, from, now).map(Some);
        }
        let was_given_up = task.without_store;
        if was_given_up {
            self.state.delete(id)?;
            task.without_store = false;
        }
        let opened = self.state.open(id, &tables)?;
        if let Some(reason) = &opened.rebuilt {
            tracing::warn!(region = %id, reason, "the local state can't be used; it is rebuilt");
        }
        let restored = task.restored.take();
        let is_fetched = restored.is_some();
        let base = match (opened.record.as_deref().map(decode_stored), restored) {
            (None, _) => None,
            // Files that were made for another job say where that one stood in its own topics; the manifest says it for this job's.
            (Some(Some((_, stored))), Some((from, record)))
                if stored.region == id && (record.region, record.epoch) == (id, stored.epoch) =>
            {
                Some((from, record))
            }
            (Some(Some((from, record))), _) if record.region == id && is_of_job(&record, &self.membership.job) => Some((from, record)),
            (Some(stored), _) => {
                // Of the job that this one was made from: such files came with a checkpoint, and nothing was written to them since. It is fetched again.
                let is_anothers = stored.is_some_and(|(_, record)| record.region == id);
                if is_anothers && !is_fetched {
                    task.without_checkpoint = false;
                } else {
                    tracing::warn!(region = %id, "the local state is none of this region's; it is rebuilt");
                }
                drop(opened);
                task.without_store = true;
                return Ok(Some((Phase::Opening, Tended::Moved)));
            }
        };
        // A follower begins with nothing. What was given up or damaged, and all that comes after a checkpoint was asked for, has been said already.
        let is_first_look = matches!(task.role, Role::Owner { .. }) && task.tries == 0 && !task.without_checkpoint && !was_given_up;
        if base.is_none() && opened.rebuilt.is_none() && bounds.high > 0 && is_first_look {
            tracing::warn!(region = %id, "no state of the region lies here; it is rebuilt from a checkpoint or the log");
        }
        if let Some((_, record)) = &base {
            // Refused before anything is deleted: the old plan can still go on with it.
            check_plan(&region, record)?;
        }
        if let Some((from, _)) = base.as_ref().filter(|(from, _)| *from > bounds.high) {
            return Err(of_another_log(&region, *from, bounds.high));
        }
        let too_old = match &base {
            None => bounds.low > 0,
            Some((from, record)) => *from < bounds.low || self.input_is_trimmed(&region, record)?,
        };
        if (base.is_none() || too_old) && self.checkpoints.is_some() && !task.without_checkpoint {
            drop(opened);
            return Ok(Some(self.fetch(id, task)));
        }
        if too_old && std::mem::take(&mut task.store_is_away) {
            task.without_checkpoint = false;
            return Err(FollowError::Waits(format!("{} is trimmed, and no checkpoint could be had from the store yet", region.changelog)));
        }
        if too_old {
            return Err(FollowError::Unusable(format!("{} is trimmed, and there is no checkpoint to begin from", region.changelog)));
        }
        region.state = opened.state;
        let from = base.as_ref().map_or(0, |(from, _)| *from);
        self.begin(region, base.map(|(_, record)| record), from, now).map(Some)
    }

    /// Whether the exchange no longer holds what a replay from this record would read.
    fn input_is_trimmed(&self, region: &Region, record: &EpochRecord) -> Result<bool, FollowError> {
        let Input::Exchange(exchange) = &region.input else { return Ok(false) };
        let low = self.log.bounds(&exchange.partition, Isolation::ReadCommitted)?.low;
        Ok(record.positions.first().is_some_and(|position| *position < low))
    }

    fn begin(&mut self, region: Region, base: Option<EpochRecord>, from: Offset, now: Duration) -> Result<(Phase, Tended), FollowError> {
        self.changelog.assign(&region.changelog, from)?;
        Ok((Phase::Following(Box::new(Follower::new(region, base, from, now))), Tended::Moved))
    }

    /// Asks for the newest checkpoint, on a thread of its own. When it has no turn it is opened again later: who owns it may have changed by then.
    fn fetch(&mut self, id: RegionId, task: &mut Task) -> (Phase, Tended) {
        let Some(turn) = self.shared.restore_turn(task.is_owned()) else {
            task.awaits_restore = true;
            return (Phase::Opening, Tended::Quiet);
        };
        self.charges.restores += 1;
        let (sender, answer) = bounded(1);
        let store = self.checkpoints.clone().expect("asked only where there is one");
        // A restore of this process's life before may still run.
        let SlotId { incarnation, slot } = self.slot;
        let name = format!("restore-{}-{}-{}-{slot}-{}", id.stage, id.partition, incarnation.0, self.charges.restores);
        let folder = ScratchFolder(self.state.scratch().join(name));
        let (plan, wakeup) = (self.settings.plan, self.wakeup.clone());
        let restore = move || {
            let restored = store.restore(id, plan, &folder.0);
            drop(turn);
            let _ = sender.send(Fetched { restored, folder });
            wakeup.raise();
        };
        (self.spawn)("restore", Box::new(restore));
        (Phase::Fetching(answer), Tended::Moved)
    }

    pub(super) fn fetched(
        &mut self,
        id: RegionId,
        task: &mut Task,
        answer: Receiver<Fetched>,
    ) -> Result<Option<(Phase, Tended)>, FollowError> {
        let Fetched { restored, folder } = match answer.try_recv() {
            Ok(fetched) => fetched,
            Err(TryRecvError::Empty) => return Ok(Some((Phase::Fetching(answer), Tended::Quiet))),
            Err(TryRecvError::Disconnected) => return Err(FollowError::Retry("a restore has ended without an answer".into())),
        };
        (task.without_checkpoint, task.store_is_away) = (true, false);
        match restored {
            Ok(Some(restored)) => {
                for reason in &restored.refused {
                    tracing::warn!(region = %id, reason, "a checkpoint is damaged; an older one is used");
                }
                let info = &restored.info;
                tracing::info!(region = %id, epoch = info.epoch.0, bytes = restored.bytes_fetched, seconds = restored.seconds, "restored a checkpoint");
                let has_state = self.genesis.stages.get(&id.stage.0).is_some_and(|stage| stage.stateful);
                if has_state {
                    let adopted = self.state.adopt(id, &folder.0).map_err(FollowError::from);
                    // What was fetched goes with its folder: the next try begins with a checkpoint, too.
                    task.without_checkpoint = !matches!(adopted, Err(FollowError::Retry(_)));
                    adopted?;
                }
                task.restored = EpochRecord::decode(&restored.record).ok().map(|record| (info.changelog_from, record));
            }
            Ok(None) => tracing::debug!(region = %id, "there is no checkpoint"),
            Err(error) if error.kind != CheckpointErrorKind::Fatal && task.tries < TRIES_MAX => {
                task.without_checkpoint = false;
                return Err(FollowError::Retry(error.message));
            }
            Err(error) => {
                task.store_is_away = error.kind == CheckpointErrorKind::Away;
                tracing::warn!(region = %id, %error, "checkpoints can't be read; going on with what the log holds");
            }
        }
        Ok(Some((Phase::Opening, Tended::Moved)))
    }
}

/// State or a checkpoint that refers to offsets which this job's topics never had.
fn of_another_log(region: &Region, from: Offset, end: Offset) -> FollowError {
    let (id, changelog) = (region.id, &region.changelog);
    FollowError::Refused {
        message: format!(
            "{id}: its state goes on at offset {from} of a changelog, and {changelog} ends at {end}: it is of another job's topics, or of topics that are gone"
        ),
        hint:
            "a job whose topics were deleted begins anew: under another name, or without its folder in the checkpoint store, and without \
               its state_dir and what `checkpoint.fallback_dir` holds of it on every machine"
                .into(),
    }
}

fn unready(Unready { retry, error }: Unready) -> FollowError {
    match retry {
        true => FollowError::Waits(error.message),
        false => FollowError::Refused { message: error.message, hint: error.hint.unwrap_or_default() },
    }
}

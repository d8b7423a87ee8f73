//! A slot: one engine thread with many regions; beside it a commit actor and a nursery.
//!
//! ```text
//!  nursery ── arrivals: regions at the end of their changelog ──►┐            ┌── sealed epochs ──► committer ──► log
//!     ▲                                                          │   slot     │                        │
//!     └── departures: released, failed, taken away ──────────────┤            │◄── news: committed ────┘
//!  control log's view: owned, to be released ───────────────────►└────────────┘── copies ──► checkpointer
//!
//! turn: news of commits → what the view changed → arrivals → one step per region → seal what is due → releases
//! ```
//! All waiting has a bound with a name: sealed batches ([`crate::commit::SEALED_AHEAD_MAX`]), open epochs
//! ([`crate::region::OPEN_EPOCH_BYTES_MAX`]), state (the budget), fetch buffers (the reader's options).
//!
//! On failure: a region that errs or panics is left out, what it sealed before commits, then its failure goes to the control log, which
//! gives it to somebody (single-task recovery). One whose sealed epoch is refused for good is quarantined. The slot and its other regions
//! go on.

mod inputs;
mod leaving;
mod telling;

use crate::checkpointer::{CheckpointNews, Checkpoints};
use crate::clock::Clock;
use crate::commit::{CommitNews, CommittedEpoch, RefusedEpoch, SEALED_AHEAD_MAX};
use crate::content::SealedEpoch;
use crate::flight::Notes;
use crate::follower::encode_stored;
use crate::membership::Membership;
use crate::nursery::{Arrival, Departure};
use crate::progress::Progress;
use crate::region::{Failure, Input, Region, RegionError};
use crate::runtime::{EngineError, Job, JobOutcome, Shared, gone};
use crate::step::{met_end, step};
use crate::takeover::Takeovers;
use crate::turn::{Actor, Turn};
use crossbeam_channel::{Receiver, Sender};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::cluster::SlotId;
use streamshield_core::ids::{Epoch, Offset, RegionId, StageId};
use streamshield_core::mutants;
use streamshield_core::ports::log::{Log, LogReader, TopicPartition, Wakeup};
use streamshield_core::ports::source::SourceReader;

/// Longest sleep of an idle slot; ticks (idleness, processing time) are judged at least as often.
const IDLE_WAIT_MAX: Duration = Duration::from_millis(50);
/// After a "try again" of an input, and between two tries to write to the control log.
const RETRY_WAIT: Duration = Duration::from_millis(100);
/// How long a take-over may keep the regions that are here from sealing ahead.
const TAKEOVER_PRIORITY_MAX: Duration = Duration::from_millis(500);
/// How soon it is noticed that a checkpoint is due.
const CHECKPOINTS_OFFERED_EVERY: Duration = Duration::from_millis(500);

/// What a slot works with.
pub struct Slot {
    pub id: SlotId,
    pub job: Arc<Job>,
    pub membership: Arc<Membership>,
    pub clock: Arc<dyn Clock>,
    pub log: Arc<dyn Log>,
    pub exchange: Box<dyn LogReader>,
    pub wakeup: Arc<Wakeup>,
    pub committer_wakeup: Arc<Wakeup>,
    pub nursery_wakeup: Arc<Wakeup>,
    pub sealed: Sender<Vec<SealedEpoch>>,
    pub news: Receiver<CommitNews>,
    pub arrivals: Receiver<Arrival>,
    pub departures: Sender<Departure>,
    pub checkpoints: Checkpoints,
    pub checkpoint_news: Receiver<CheckpointNews>,
    pub progress: Arc<Progress>,
    pub takeovers: Arc<Takeovers>,
    pub shared: Arc<Shared>,
    pub notes: Notes,
    pub work: Work,
}

/// What a slot has at the moment.
#[derive(Default)]
pub struct Work {
    pub regions: BTreeMap<RegionId, Region>,
    pub sources: BTreeMap<StageId, Box<dyn SourceReader>>,
    /// Batches of sealed epochs whose outcome is not known yet.
    pub in_flight: usize,
    prepared: bool,
    seen_version: Option<u64>,
    finish_told: BTreeSet<RegionId>,
    /// The control log does not know yet that their changelogs are not empty.
    unbegun: BTreeSet<RegionId>,
    /// Or that their exchange partitions are not.
    unread: BTreeSet<RegionId>,
    begun_told: Duration,
    /// A quarantine of theirs is shown here, though they are gone.
    failed_here: BTreeSet<RegionId>,
    draining: Option<leaving::Draining>,
    group_offsets: BTreeMap<String, BTreeMap<TopicPartition, Offset>>,
    group_offsets_sent: Duration,
    checkpoints_offered: Duration,
    inputs_served: Duration,
    /// Regions here whose inputs are away.
    unopened: BTreeMap<RegionId, inputs::Unopened>,
    /// Nothing is written to the control log before this, after a failed try.
    append_after: Duration,
    /// When it was last said that it does not take what leaves.
    append_told: Option<Duration>,
}

impl Actor for Slot {
    fn turn(&mut self) -> Turn {
        if !std::mem::replace(&mut self.work.prepared, true) {
            self.prepare();
        }
        self.shared.slot_lives(self.id.slot, self.clock.steady());
        if let Some(outcome) = self.hear_news() {
            return Turn::Ended(outcome);
        }
        if self.work.draining.is_some() {
            return self.drain();
        }
        if self.shared.must_stop(&self.membership, self.clock.steady()) {
            return self.begin_drain(JobOutcome::Stopped);
        }
        match self.obey_view() {
            Ok(()) => {}
            Err(end) => return end,
        }
        let mut moved = self.take_in();
        moved |= self.admit_waiting();
        moved |= self.step_all();
        moved |= self.seal_due();
        moved |= self.let_go();
        self.tell_begun(false);
        self.send_group_offsets(false);
        self.offer_checkpoints();
        self.serve_idle_inputs();
        if moved { Turn::Again } else { Turn::Idle(self.idle_time()) }
    }
}

impl Slot {
    /// What the control log's view asks for since the last look.
    fn obey_view(&mut self) -> Result<(), Turn> {
        let version = self.membership.version();
        if self.work.seen_version == Some(version) {
            return Ok(());
        }
        self.work.seen_version = Some(version);
        let me = self.id;
        let (standing, owned, all_finished, hopeless, quarantined) = self.membership.view(|cluster| {
            let quarantined = cluster.quarantined();
            (cluster.standing(me.incarnation), cluster.owned(me), cluster.all_finished(), cluster.is_hopeless(), quarantined)
        });
        if let Some(outcome) = gone(&standing) {
            return Err(Turn::Ended(outcome));
        }
        for (region, reason) in &quarantined {
            self.progress.stops(*region, reason, self.work.failed_here.contains(region));
        }
        self.progress.forget_stops(&quarantined, || self.regions_here());
        if all_finished {
            self.send_group_offsets(true);
            return Err(Turn::Ended(JobOutcome::Finished));
        }
        if hopeless {
            return Err(self.begin_drain(JobOutcome::Failed(hopeless_error(&quarantined))));
        }
        let owned: BTreeMap<_, _> = owned.into_iter().map(|owned| (owned.region, owned)).collect();
        let taken: Vec<RegionId> = self.work.regions.iter().filter(|(id, region)| !owns(&owned, id, region)).map(|(id, _)| *id).collect();
        for id in taken {
            // Its successor has fenced this slot, or this is the read-back of our own word: either way nothing is lost with it.
            self.remove(id, None, None);
        }
        for (id, region) in &mut self.work.regions {
            // Once its release may be in the log there is no way back, whatever else was said meanwhile.
            region.leaving = owned[id].release || region.released_at.is_some();
        }
        Ok(())
    }

    /// What all slots of this worker own and follow.
    fn regions_here(&self) -> BTreeSet<RegionId> {
        let slots = (0..self.job.config.slots).map(|slot| SlotId { slot: slot as u32, ..self.id });
        self.membership.view(|cluster| {
            slots.flat_map(|slot| cluster.owned(slot).into_iter().map(|owned| owned.region).chain(cluster.followed(slot))).collect()
        })
    }

    /// Regions that the nursery has brought to the end of their changelogs. Their first epochs are one batch, so none comes in while there is no
    /// room for it: more would fill the committer's queue, and the slot would stand in it.
    fn take_in(&mut self) -> bool {
        if self.work.in_flight >= SEALED_AHEAD_MAX {
            return false;
        }
        let (mut moved, mut first_epochs) = (false, Vec::new());
        while let Ok(Arrival { mut region }) = self.arrivals.try_recv() {
            moved = true;
            let (id, me) = (region.id, self.id);
            let (owned, (begun, reads)) = self.membership.view(|cluster| {
                let known = cluster.region(id).map_or((false, false), |region| (region.begun, region.reads));
                (cluster.owned(me).into_iter().find(|owned| owned.region == id), known)
            });
            if owned.as_ref().is_none_or(|owned| owned.assignment != region.assignment) {
                self.depart(Departure { region: id, read_back: None, warm: None });
                continue;
            }
            region.leaving = owned.is_some_and(|owned| owned.release);
            region.hurry = true;
            region.committed_position = region.position;
            if let Input::Source(source) = &mut region.input {
                // While it followed, nobody looked for rows: its idle time begins now.
                source.last_rows_ms = region.now_ms.max(region.settings.clock.wall_ms());
            }
            if !begun {
                self.work.unbegun.insert(id);
            }
            if !reads && matches!(region.input, Input::Exchange(_)) {
                self.work.unread.insert(id);
            }
            self.admit(&mut region);
            self.takeovers.working(id, self.clock.steady());
            tracing::debug!(region = %id, epoch = region.epoch.0, position = region.position, "in its slot");
            let entry_of = (region.epoch.0, region.output_watermark);
            self.progress.takes_over(id, entry_of.0, entry_of.1, region.finished);
            self.progress.reads(id, region.input.group(&self.job.config.name).map(|(partition, _)| partition.clone()), region.position);
            first_epochs.extend((region.epoch.0 == 0 && region.failed.is_none()).then(|| region.genesis()));
            self.work.regions.insert(id, *region);
        }
        if !first_epochs.is_empty() {
            self.send(first_epochs);
        }
        moved
    }

    /// `read_back`: the control record by which this slot gave the region up; `changelog_end`: where it ended then, for a region that is well.
    fn remove(&mut self, id: RegionId, read_back: Option<Offset>, changelog_end: Option<Offset>) {
        let Some(region) = self.work.regions.remove(&id) else { return };
        self.close_input(&region);
        self.progress.lets_go(id);
        self.work.finish_told.remove(&id);
        self.work.unbegun.remove(&id);
        self.work.unread.remove(&id);
        self.work.unopened.remove(&id);
        let warm = changelog_end.map(|end| (Box::new(region), end));
        self.depart(Departure { region: id, read_back, warm });
    }

    fn depart(&mut self, departure: Departure) {
        let _ = self.departures.send(departure);
        self.nursery_wakeup.raise();
    }

    fn hear_news(&mut self) -> Option<JobOutcome> {
        while let Ok(news) = self.news.try_recv() {
            match news {
                CommitNews::Ended(outcome) => return Some(outcome),
                CommitNews::Settled { committed, refused } => {
                    self.work.in_flight -= 1;
                    committed.into_iter().for_each(|epoch| self.committed(epoch));
                    refused.into_iter().for_each(|epoch| self.refused(epoch));
                }
            }
        }
        while let Ok(news) = self.checkpoint_news.try_recv() {
            self.checkpoints.done(news, self.clock.steady());
        }
        None
    }

    fn committed(&mut self, epoch: CommittedEpoch) {
        let CommittedEpoch { record, flush, changelog_from } = epoch;
        let (id, now) = (record.region, self.clock.steady());
        self.takeovers.committed(id, now);
        let Some(region) = self.work.regions.get_mut(&id) else { return };
        region.in_flight -= 1;
        let position = record.positions.first().copied().unwrap_or(0);
        region.committed_position = position;
        if let Some((partition, group)) = region.input.group(&self.job.config.name) {
            self.work.group_offsets.entry(group.to_string()).or_default().insert(partition.clone(), position);
        }
        self.progress.reads(id, None, position);
        // The committer may have noted the end when this slot had the region before; meanwhile it was trimmed there.
        let changelog_from = changelog_from.max(region.changelog_from);
        let stored = flush.is_some().then(|| encode_stored(changelog_from, &record.encode()));
        (region.last_committed, region.changelog_from) = (Some(record), changelog_from);
        let (Some(flush), Some(stored)) = (flush, stored) else { return };
        region.flush_in_flight = false;
        if region.failed.is_some() {
            return;
        }
        let applied = region.state.apply_flush(flush, &stored).and_then(|()| {
            let bytes = region.state.bytes();
            if bytes.total > region.settings.state_bytes_max { region.state.evict(region.settings.state_bytes_max / 2) } else { Ok(()) }
        });
        match applied {
            Err(error) => self.fail(id, RegionError::from(error)),
            Ok(()) => {
                region.flushed_epoch = region.last_committed.as_ref().map(|record| record.epoch);
                if (self.job.config.log_dies_with_process || mutants::is_on("purge-early"))
                    && let Input::Exchange(exchange) = &region.input
                    && let Err(error) = self.log.trim(&[(exchange.partition.clone(), position)])
                {
                    tracing::warn!(partition = %exchange.partition, %error, "could not trim");
                }
            }
        }
    }

    /// The log or a sink refuses what the region has sealed. That may lie with this worker (its clock, its disk), so another one tries too: the control log counts.
    /// What the region has sealed behind it comes here as well, unwritten.
    fn refused(&mut self, epoch: RefusedEpoch) {
        let RefusedEpoch { region: id, assignment, epoch, reason } = epoch;
        let Some(region) = self.work.regions.get_mut(&id).filter(|region| region.assignment == assignment) else { return };
        region.in_flight -= 1;
        region.epoch = region.epoch.min(Epoch(epoch.0 - 1));
        if region.failed.is_none() {
            self.fail(id, RegionError::Failed(reason));
        }
    }

    fn step_all(&mut self) -> bool {
        let mut moved = false;
        let mut failed = Vec::new();
        for (id, region) in &mut self.work.regions {
            if !region.may_step() || self.work.unopened.contains_key(id) {
                continue;
            }
            let (sources, exchange) = (&mut self.work.sources, self.exchange.as_mut());
            // A panic in one region's code must not take its neighbours down; its open epoch is never sealed.
            match catch_unwind(AssertUnwindSafe(|| step(region, sources, exchange, &mut self.notes))) {
                Ok(Ok(true)) => moved = true,
                Ok(Ok(false)) => {
                    if let Some(end) = met_end(region, &self.work.sources) {
                        self.progress.meets_end(*id, region.position, end);
                    }
                }
                Ok(Err(RegionError::Retry(reason))) => tracing::debug!(region = %id, reason, "the input does not answer yet"),
                Ok(Err(error)) => failed.push((*id, error)),
                Err(panic) => failed.push((*id, RegionError::Failed(panic_text(panic.as_ref())))),
            }
        }
        self.notes.nothing();
        for (id, error) in failed {
            self.fail(id, error);
        }
        moved
    }

    /// The region does nothing more here; the control log hears of it once the outcome of all it sealed is known.
    fn fail(&mut self, id: RegionId, error: RegionError) {
        let Some(region) = self.work.regions.get_mut(&id) else { return };
        let (reason, retry) = match error {
            RegionError::Stop(reason) => (reason, false),
            RegionError::Failed(reason) | RegionError::Retry(reason) => (reason, true),
        };
        let failure = Failure::new(&reason, retry);
        tracing::error!(region = %id, position = region.position, reason = failure.reason, retry, "the region has failed; its committed offsets are kept");
        region.open = None;
        region.failed = Some(failure);
        metrics::counter!("streamshield_regions_stopped_total").increment(1);
    }

    /// Seals everything that is open when something is due, so that a slot needs few transactions.
    fn seal_due(&mut self) -> bool {
        let now = self.clock.steady();
        if !self.may_seal(now) || !self.work.regions.values().any(|region| region.is_due(now)) {
            return false;
        }
        self.seal_open(false)
    }

    /// Regions on their way here stand still, and the next transaction is to have the first epochs of all of them: none is sealed ahead of it.
    fn may_seal(&self, now: Duration) -> bool {
        match self.work.in_flight {
            0 => true,
            SEALED_AHEAD_MAX.. => false,
            _ => !self.takeovers.are_under_way(now, TAKEOVER_PRIORITY_MAX),
        }
    }

    fn seal_open(&mut self, leaving: bool) -> bool {
        let (mut batch, mut failed) = (Vec::new(), Vec::new());
        for (id, region) in &mut self.work.regions {
            if region.failed.is_some() {
                continue;
            }
            let bytes = region.has_tables.then(|| region.state.bytes());
            let is_first = region.hurry;
            if region.open.is_some() {
                self.notes.at(region.place());
            }
            match catch_unwind(AssertUnwindSafe(|| region.seal(leaving))) {
                Ok(Ok(Some(mut sealed))) => {
                    if mutants::is_on("apply-before-commit") {
                        region.apply_uncommitted(&mut sealed);
                    }
                    if is_first {
                        tracing::debug!(region = %id, epoch = sealed.epoch().0, rows = sealed.counts.rows_out, in_flight = self.work.in_flight, "first epoch");
                    }
                    batch.push(sealed);
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => failed.push((*id, error)),
                Err(panic) => failed.push((*id, RegionError::Failed(panic_text(panic.as_ref())))),
            }
            if let Some(bytes) = bytes {
                let groups = region.state_groups();
                self.progress.region(*id, |entry| {
                    entry.state_bytes = bytes.total as u64;
                    entry.state_groups = groups;
                });
            }
        }
        self.notes.nothing();
        for (id, error) in failed {
            self.fail(id, error);
        }
        if batch.is_empty() {
            return false;
        }
        self.send(batch);
        true
    }

    fn send(&mut self, batch: Vec<SealedEpoch>) {
        self.work.in_flight += 1;
        for epoch in &batch {
            if let Some(region) = self.work.regions.get_mut(&epoch.record.region) {
                region.in_flight += 1;
            }
        }
        // The committer only ends after it sent news that end this slot, too.
        let _ = self.sealed.send(batch);
        self.committer_wakeup.raise();
    }

    fn append_later(&mut self) -> bool {
        self.work.append_after = self.clock.steady() + RETRY_WAIT;
        false
    }

    /// Also of regions that stand still: what they have must be kept, and the log before it trimmed.
    fn offer_checkpoints(&mut self) {
        let now = self.clock.steady();
        if now.saturating_sub(self.work.checkpoints_offered) < CHECKPOINTS_OFFERED_EVERY {
            return;
        }
        self.work.checkpoints_offered = now;
        for region in self.work.regions.values().filter(|region| region.failed.is_none() && !region.leaving) {
            self.checkpoints.offer(region, now);
        }
    }

    fn idle_time(&self) -> Duration {
        let now = self.clock.steady();
        let mut wait = IDLE_WAIT_MAX;
        if self.may_seal(now) {
            for due in self.work.regions.values().filter_map(Region::due_at) {
                wait = wait.min(due.saturating_sub(now));
            }
        }
        for ready in self.work.sources.values().filter_map(|source| source.ready_in()) {
            wait = wait.min(ready.max(Duration::from_millis(1)));
        }
        wait.min(RETRY_WAIT)
    }
}

fn owns(owned: &BTreeMap<RegionId, streamshield_core::cluster::Owned>, id: &RegionId, region: &Region) -> bool {
    owned.get(id).is_some_and(|owned| owned.assignment == region.assignment)
}

/// Regions are quarantined and nothing else is to come.
fn hopeless_error(quarantined: &[(RegionId, String)]) -> EngineError {
    let reasons: Vec<String> = quarantined.iter().map(|(region, reason)| format!("{region}: {reason}")).collect();
    let hint = "mend what they name, or set `on_bad_record: dead_letter`; the job goes on from the kept offsets".to_string();
    EngineError { message: format!("regions were stopped: {}", reasons.join("; ")), hint: Some(hint) }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
    format!("panic: {}", text.unwrap_or_default())
}

impl Region {
    /// The mutant `apply-before-commit`.
    fn apply_uncommitted(&mut self, sealed: &mut SealedEpoch) {
        let Some(flush) = sealed.flush.take() else { return };
        let stored = encode_stored(self.changelog_from, &sealed.record.encode());
        let applied = self.state.apply_flush(flush, &stored);
        tracing::debug!(ok = applied.is_ok(), "applied before the commit");
        (self.flush_in_flight, self.flushed_epoch) = (false, Some(sealed.record.epoch));
    }
}

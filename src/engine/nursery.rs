//! The nursery of a slot: brings regions up, keeps followers warm, hands over what the slot owns.
//!
//! ```text
//!                       ┌────────────── rebuild: store forgotten ◄──────────────┐ diverged, unusable
//!                       ▼                                                       │
//!  wanted by the view → open the local store ─ none, too old ─► fetch a checkpoint ─► follow the changelog ─► (follower) ready
//!                                                                                        │ owned, nobody left to fence
//!                                                                                        ▼
//!                                     high watermark ─► stable ─► applied up to there ─► to the slot
//! ```
//! It wants what the control log's view says: the regions that its slot owns and does not hold yet, and those that it follows. The
//! order is that of architecture §6: nothing is read as "the end" before everybody who could still write has been fenced, which is what
//! `fences_open` says; and who wrote the last epoch and is unknown to the control log, which was lost then, is fenced here.
//!
//! On failure: a region that can't be brought up is tried again after a pause; an owned one that fails again and again is given back to the control log with the
//! reason, which gives it to another worker or quarantines it. A follower that diverged is rebuilt and not ready until then (E-4). Where another try
//! would end in the same way (a damaged changelog), an owned region is given back at once, and a followed one is left alone; what is wrong with all
//! regions (another plan, other topics) ends the worker.

mod opening;

use crate::changelog::{STABLE_TIME_MAX, check_stable};
use crate::flight::Notes;
use crate::follower::{FollowError, Follower};
use crate::membership::Membership;
use crate::progress::Progress;
use crate::region::{Failure, Region, RegionSettings};
use crate::runtime::{EngineError, Job, JobOutcome, Shared, gone};
use crate::takeover::Takeovers;
use crate::turn::{Actor, Turn};
use crossbeam_channel::{Receiver, Sender};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use streamshield_core::cluster::{Cluster, ControlRecord, Genesis, SlotId, Standing, Tier, Why};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, Incarnation, Offset, RegionId};
use streamshield_core::mutants;
use streamshield_core::ports::checkpoint::{CheckpointError, CheckpointStore, Restored};
use streamshield_core::ports::log::{Isolation, Log, LogError, LogErrorKind, LogReader, TopicPartition, Wakeup};
use streamshield_core::ports::state::StateBackend;

/// Followers that have nothing to do are looked at this often; new records in their changelogs wake the nursery.
const IDLE: Duration = Duration::from_millis(50);
/// While a transaction is to end, or a fence to fall.
const WAITING: Duration = Duration::from_millis(3);
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a follower rests that can't go on, unless the region is to be owned here.
const RESTS: Duration = Duration::from_secs(60);
/// How long a take-over may keep new followers from being begun: one whose region has no input never commits.
const FOLLOWERS_DEFERRED_MAX: Duration = Duration::from_secs(2);
/// Tries of bringing an owned region up before it is given back.
const TRIES_MAX: u32 = 4;
const REPLICA_OFFSETS_EVERY: Duration = Duration::from_secs(1);

/// A region on its way to its slot.
pub struct Arrival {
    pub region: Box<Region>,
}

/// A region that a slot no longer holds.
pub struct Departure {
    pub region: RegionId,
    /// The control record by which the slot gave it up. Until it was read back the view still says that this slot owns the region, which must not be
    /// believed (O-1): it would come back and commit after its successor has read the end.
    pub read_back: Option<Offset>,
    /// Its state is that of its last committed epoch, and there the changelog ended when it was released; None: closed.
    pub warm: Option<(Box<Region>, Offset)>,
}

/// What a nursery works with.
pub struct Nursery {
    pub slot: SlotId,
    pub job: Arc<Job>,
    pub genesis: Arc<Genesis>,
    pub membership: Arc<Membership>,
    pub settings: RegionSettings,
    pub log: Arc<dyn Log>,
    pub state: Arc<dyn StateBackend>,
    pub checkpoints: Option<Arc<dyn CheckpointStore>>,
    pub spawn: crate::config::Spawn,
    pub changelog: Box<dyn LogReader>,
    pub exchange: Box<dyn LogReader>,
    pub arrivals: Sender<Arrival>,
    pub departures: Receiver<Departure>,
    pub slot_wakeup: Arc<Wakeup>,
    pub wakeup: Arc<Wakeup>,
    pub progress: Arc<Progress>,
    pub takeovers: Arc<Takeovers>,
    pub shared: Arc<Shared>,
    pub tier: Tier,
    pub notes: Notes,
    pub charges: Charges,
}

/// What a nursery has at the moment.
#[derive(Default)]
pub struct Charges {
    tasks: BTreeMap<RegionId, Task>,
    /// With the slot: the assignment under which it has them.
    held: BTreeMap<RegionId, Offset>,
    /// Given up by the slot, and the record of that not read back yet.
    parting: Vec<Departure>,
    seen_version: Option<u64>,
    /// Regions have been given to those who are there: until then to have none does not mean to be ready.
    is_spread: bool,
    /// Restores so far: each has a folder of its own.
    restores: u64,
    /// Writers that the control log did not know; at most one per region (M-1).
    fenced: BTreeSet<SlotId>,
    replica_offsets_sent: Duration,
}

struct Task {
    role: Role,
    phase: Phase,
    tries: u32,
    /// Not before this (a pause after a failure).
    resume_at: Duration,
    /// The control record that says ready; it is not written twice before it was read back.
    ready_told: Option<Offset>,
    /// The local store was given up: a checkpoint or the log itself.
    without_store: bool,
    without_checkpoint: bool,
    /// No checkpoint was had because nobody answered.
    store_is_away: bool,
    /// Where the checkpoint stands that was fetched, and from where on the changelog holds that: as its manifest says it.
    restored: Option<(Offset, EpochRecord)>,
    /// The assignment that was given back, and why. The record may be in the log from the first try on, whatever was answered, and then the
    /// region is another's without any fence: under this assignment it never goes to the slot (O-1).
    given_back: Option<(Offset, Failure)>,
    /// A writer that the control log did not know, and the record whose reading back shows whether it knows it by now.
    looked_up: Option<(SlotId, Offset)>,
    /// That writer, fenced before the end was asked for.
    fenced: Option<SlotId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// To be handed to the slot, once nobody is left to be fenced.
    Owner {
        assignment: Offset,
        fences_open: bool,
    },
    Follower {
        is_ready: bool,
    },
}

enum Phase {
    Opening,
    Fetching(Receiver<Fetched>),
    Following(Box<Follower>),
    /// `end`: the high watermark, once it was asked for; `since`: how long it has been waited for.
    Finishing {
        follower: Box<Follower>,
        end: Option<Offset>,
        since: Duration,
    },
}

impl Actor for Nursery {
    fn turn(&mut self) -> Turn {
        if self.shared.stopping.load(Ordering::SeqCst) {
            self.charges.tasks.clear();
            return Turn::Ended(JobOutcome::Stopped);
        }
        self.take_back();
        if let Some(outcome) = self.obey_view() {
            return Turn::Ended(outcome);
        }
        let (mut moved, mut waits) = (false, false);
        for id in self.in_order_of_need() {
            let tended = self.tend(id);
            self.notes.nothing();
            match tended {
                Ok(Tended::Moved) => moved = true,
                Ok(Tended::Waits) => waits = true,
                Ok(Tended::Quiet) => {}
                Err(outcome) => return Turn::Ended(outcome),
            }
            // Who has become an owner does not wait until all followers had their turn.
            if self.charges.seen_version != Some(self.membership.version()) {
                if let Some(outcome) = self.obey_view() {
                    return Turn::Ended(outcome);
                }
                if self.charges.tasks.values().any(|task| matches!(task.role, Role::Owner { .. })) {
                    moved = true;
                    break;
                }
            }
        }
        match self.ask_for_ends() {
            Ok(asked) => moved |= asked,
            Err(outcome) => return Turn::Ended(outcome),
        }
        let is_settled = self.charges.is_spread && self.charges.tasks.values().all(|task| matches!(task.role, Role::Follower { .. }));
        if is_settled && self.shared.slot_settled(self.slot.slot) {
            self.progress.set_state("running");
        }
        self.send_replica_offsets();
        Turn::again_if(moved, if waits { WAITING } else { IDLE })
    }
}

/// The answer of a checkpoint store, and where it has put the files.
struct Fetched {
    restored: Result<Option<Restored>, CheckpointError>,
    folder: ScratchFolder,
}

/// Deleted by whoever has it last: when a download ends, the region may be another's.
struct ScratchFolder(PathBuf);

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(folder = %self.0.display(), %error, "could not delete what a restore has left");
            }
            _ => {}
        }
    }
}

enum Tended {
    Moved,
    /// For something that nobody will wake us for.
    Waits,
    Quiet,
}

impl Nursery {
    /// Owned regions first. To open a store takes this thread tens of milliseconds: a new follower is not begun while owned ones are on their way or have not
    /// committed yet.
    fn in_order_of_need(&self) -> Vec<RegionId> {
        let tasks = &self.charges.tasks;
        let (owned, followed): (Vec<_>, Vec<_>) = tasks.iter().partition(|(_, task)| matches!(task.role, Role::Owner { .. }));
        let is_busy = self.takeovers.are_under_way(self.now(), FOLLOWERS_DEFERRED_MAX);
        let followed = followed.into_iter().filter(|(_, task)| !(is_busy && matches!(task.phase, Phase::Opening)));
        owned.into_iter().chain(followed).map(|(id, _)| *id).collect()
    }

    fn now(&self) -> Duration {
        self.settings.clock.steady()
    }

    /// Regions that the slot no longer holds.
    fn take_back(&mut self) {
        while let Ok(departure) = self.departures.try_recv() {
            self.charges.parting.push(departure);
        }
        let now = self.now();
        for departure in std::mem::take(&mut self.charges.parting) {
            let Departure { region: id, read_back, warm } = departure;
            if read_back.is_some_and(|offset| !self.membership.has_read(offset)) {
                self.charges.parting.push(Departure { region: id, read_back, warm });
                continue;
            }
            self.charges.held.remove(&id);
            self.takeovers.cancelled(id);
            if let Some((region, changelog_end)) = warm
                && self.changelog.assign(&region.changelog, changelog_end).is_ok()
            {
                let mut task = Task::new(Role::Follower { is_ready: false });
                task.phase = Phase::Following(Box::new(Follower::resume(*region, changelog_end, now)));
                self.charges.tasks.insert(id, task);
            }
            // What the view wants of it is looked up anew.
            self.charges.seen_version = None;
        }
    }

    /// Begins and ends tasks as the view says.
    fn obey_view(&mut self) -> Option<JobOutcome> {
        let version = self.membership.version();
        if self.charges.seen_version == Some(version) {
            return None;
        }
        self.charges.seen_version = Some(version);
        let (standing, wanted, is_spread) = self
            .membership
            .view(|cluster| (cluster.standing(self.slot.incarnation), wanted(cluster, self.slot), cluster.starts_at_ms().is_none()));
        self.charges.is_spread = is_spread;
        if let Some(outcome) = gone(&standing) {
            return Some(outcome);
        }
        let held = &self.charges.held;
        let is_wanted = |id: &RegionId| match wanted.get(id) {
            None => false,
            Some(Role::Owner { assignment, .. }) => held.get(id) != Some(assignment),
            Some(Role::Follower { .. }) => !held.contains_key(id),
        };
        let unwanted: Vec<RegionId> = self.charges.tasks.keys().copied().filter(|id| !is_wanted(id)).collect();
        for id in unwanted {
            self.give_up(id);
        }
        let now = self.now();
        for (id, role) in &wanted {
            if self.charges.held.contains_key(id) {
                continue;
            }
            let task = self.charges.tasks.entry(*id).or_insert_with(|| Task::new(*role));
            let followed = matches!(std::mem::replace(&mut task.role, *role), Role::Follower { .. });
            if let Role::Owner { fences_open, assignment } = role {
                if followed {
                    task.resume_at = task.resume_at.min(now);
                }
                let (cause, previous) = self.membership.view(|cluster| cause_of(cluster, *id));
                let silent_ms = previous.map_or(0, |previous| self.membership.silence_before(previous));
                self.takeovers.began(*id, *assignment, cause, silent_ms, now);
                if !fences_open {
                    self.takeovers.fenced(*id, now);
                }
            }
            self.progress.follows(*id, matches!(role, Role::Follower { .. }));
        }
        None
    }

    fn give_up(&mut self, id: RegionId) {
        let Some(task) = self.charges.tasks.remove(&id) else { return };
        if let Phase::Following(follower) | Phase::Finishing { follower, .. } = task.phase {
            self.close(*follower);
        }
        if !self.charges.held.contains_key(&id) {
            self.progress.lets_go(id);
            self.takeovers.cancelled(id);
        }
    }

    fn close(&mut self, mut follower: Follower) {
        follower.close(self.exchange.as_mut());
        if let Err(error) = self.changelog.unassign(&follower.region.changelog) {
            tracing::debug!(region = %follower.region.id, %error, "could not stop reading");
        }
    }

    /// One task's next move.
    fn tend(&mut self, id: RegionId) -> Result<Tended, JobOutcome> {
        let now = self.now();
        let Some(mut task) = self.charges.tasks.remove(&id) else { return Ok(Tended::Quiet) };
        if now < task.resume_at {
            self.charges.tasks.insert(id, task);
            return Ok(Tended::Quiet);
        }
        if let (Role::Owner { assignment, .. }, Some((given_back, failure))) = (task.role, &task.given_back)
            && assignment == *given_back
        {
            // Until it is read that the region has another owner, or this one anew.
            self.give_back(id, assignment, failure);
            task.resume_at = now + RETRY_PAUSE_MAX;
            self.charges.tasks.insert(id, task);
            return Ok(Tended::Quiet);
        }
        let phase = std::mem::replace(&mut task.phase, Phase::Opening);
        let result = match phase {
            Phase::Opening => self.open(id, &mut task),
            Phase::Fetching(answer) => self.fetched(id, &mut task, answer),
            Phase::Following(follower) => self.follow(id, &mut task, follower),
            Phase::Finishing { follower, end, since } => self.finish(id, &mut task, follower, end, since),
        };
        match result {
            Ok(Some((phase, tended))) => {
                task.phase = phase;
                self.charges.tasks.insert(id, task);
                Ok(tended)
            }
            // With the slot now.
            Ok(None) => Ok(Tended::Moved),
            Err(error) => self.failed(id, task, error),
        }
    }

    fn follow(&mut self, id: RegionId, task: &mut Task, mut follower: Box<Follower>) -> Result<Option<(Phase, Tended)>, FollowError> {
        let now = self.now();
        let mut unnoted = Notes::default();
        // That its followers die says nothing of a region that its owner gets on with.
        let notes = if matches!(task.role, Role::Owner { .. }) { &mut self.notes } else { &mut unnoted };
        let moved = follower.turn(self.changelog.as_mut(), self.exchange.as_mut(), notes, now)?;
        self.progress.followed(id, follower.region.epoch.0, follower.epochs_behind());
        let tended = if moved { Tended::Moved } else { Tended::Quiet };
        match task.role {
            Role::Owner { fences_open: true, .. } => {}
            Role::Owner { .. } => {
                return Ok(Some((Phase::Finishing { follower, end: None, since: now }, Tended::Waits)));
            }
            Role::Follower { is_ready: false } if follower.is_caught_up() && !self.is_opening(now) => {
                self.say_ready(id, task, follower.region.epoch);
            }
            Role::Follower { .. } => {}
        }
        Ok(Some((Phase::Following(follower), tended)))
    }

    /// To open a store takes this thread tens of milliseconds, in a new process hundreds. It says of no region that it is ready meanwhile: the owner would release
    /// it, and it would stand still for that long.
    fn is_opening(&self, now: Duration) -> bool {
        self.charges.tasks.values().any(|task| matches!(task.phase, Phase::Opening) && task.tries == 0 && task.resume_at <= now)
    }

    fn say_ready(&self, region: RegionId, task: &mut Task, epoch: Epoch) {
        if task.ready_told.is_some_and(|offset| !self.membership.has_read(offset)) {
            return;
        }
        let ready = ControlRecord::Ready { incarnation: self.slot.incarnation, region, epoch };
        if let Ok(offset) = self.membership.append(&ready) {
            task.ready_told = Some(offset);
            task.tries = 0;
            self.progress.ready(region);
        }
    }

    /// Where the changelogs of all regions end that are only waiting for that: one question for all of them, after their fences.
    fn ask_for_ends(&mut self) -> Result<bool, JobOutcome> {
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
    fn finish(
        &mut self,
        id: RegionId,
        task: &mut Task,
        mut follower: Box<Follower>,
        end: Option<Offset>,
        mut since: Duration,
    ) -> Result<Option<(Phase, Tended)>, FollowError> {
        let now = self.now();
        let Role::Owner { assignment, .. } = task.role else { return Ok(Some((Phase::Following(follower), Tended::Moved))) };
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
        if let Some(sink) = self.job.sinks.get(&id.stage)
            && let Err(error) = sink.recover(id, last)
        {
            // Nothing is wrong with the state.
            return Err(FollowError::Retry(error.message));
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

    /// Sorts a failure out: again, anew, or over to somebody else.
    fn failed(&mut self, id: RegionId, mut task: Task, error: FollowError) -> Result<Tended, JobOutcome> {
        let now = self.now();
        self.stop_reading(id);
        // Its state is closed before anybody may open it.
        task.phase = Phase::Opening;
        let message = match error {
            FollowError::Waits(message) => {
                tracing::warn!(region = %id, message, "the region waits for what it needs to begin");
                task.resume_at = now + RETRY_PAUSE_MAX;
                self.charges.tasks.insert(id, task);
                return Ok(Tended::Quiet);
            }
            FollowError::Refused { message, hint } => return Err(JobOutcome::Failed(EngineError { message, hint: Some(hint) })),
            FollowError::Stopped(failure) => return Ok(self.stopped(id, task, failure)),
            FollowError::Retry(message) => message,
            FollowError::Diverged { epoch, message } => {
                metrics::counter!("streamshield_followers_diverged_total").increment(1);
                tracing::error!(region = %id, epoch = epoch.0, message, "E-4: the state differs from its owner's; it is rebuilt and not used");
                self.progress.diverged(id, epoch.0);
                task.without_store = true;
                task.without_checkpoint = false;
                let record = ControlRecord::NotReady { incarnation: self.slot.incarnation, region: id, epoch };
                let _ = self.membership.append(&record);
                message
            }
            // Without the checkpoint that it could not have: a job that was made from another one's begins with those.
            FollowError::Unusable(message) if std::mem::take(&mut task.store_is_away) => {
                tracing::warn!(region = %id, message, "the region waits: the store of the checkpoints does not answer");
                task.without_checkpoint = false;
                task.resume_at = now + RETRY_PAUSE_MAX;
                self.charges.tasks.insert(id, task);
                return Ok(Tended::Quiet);
            }
            FollowError::Unusable(message) => {
                tracing::warn!(region = %id, message, "the state can't be used; it is rebuilt");
                task.without_store = task.tries > 0;
                task.without_checkpoint = false;
                message
            }
        };
        task.tries += 1;
        task.ready_told = None;
        task.resume_at = now + (RETRY_PAUSE_MIN * (1 << task.tries.min(7))).min(RETRY_PAUSE_MAX);
        if let Role::Owner { assignment, .. } = task.role
            && task.tries > TRIES_MAX
        {
            let failure = Failure { reason: message, retry: true };
            self.give_back(id, assignment, &failure);
            task.given_back = Some((assignment, failure));
            task.tries = 0;
        }
        self.charges.tasks.insert(id, task);
        Ok(Tended::Quiet)
    }

    /// More tries here would end in the same way. A region that is only followed works all the same: its owner does not read what is wrong.
    fn stopped(&mut self, id: RegionId, mut task: Task, failure: Failure) -> Tended {
        let incarnation = self.slot.incarnation;
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
            let _ = self.membership.append(&ControlRecord::NotReady { incarnation, region: id, epoch: Epoch(0) });
            task.resume_at = self.now() + RESTS;
        }
        self.charges.tasks.insert(id, task);
        Tended::Quiet
    }

    /// Gives an owned region back to the control log. A repeated record is a no-op.
    fn give_back(&self, region: RegionId, assignment: Offset, failure: &Failure) {
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

    /// Replicas are a consumer group of their own, `<group>.replica`, that people see in Kafka's own tools.
    fn send_replica_offsets(&mut self) {
        let now = self.now();
        if self.tier != Tier::ActiveActive || now.saturating_sub(self.charges.replica_offsets_sent) < REPLICA_OFFSETS_EVERY {
            return;
        }
        self.charges.replica_offsets_sent = now;
        let mut groups: BTreeMap<String, Vec<(TopicPartition, Offset)>> = BTreeMap::new();
        for task in self.charges.tasks.values() {
            let (Role::Follower { .. }, Phase::Following(follower)) = (task.role, &task.phase) else { continue };
            let region = &follower.region;
            let Some((partition, group)) = region.input.group(&self.job.config.name) else { continue };
            groups.entry(format!("{group}.replica")).or_default().push((partition.clone(), region.position));
        }
        for (group, positions) in groups {
            self.log.commit_group_offsets(&group, &positions);
        }
    }
}

impl Task {
    fn new(role: Role) -> Task {
        Task {
            role,
            phase: Phase::Opening,
            tries: 0,
            resume_at: Duration::ZERO,
            ready_told: None,
            without_store: false,
            without_checkpoint: false,
            store_is_away: false,
            restored: None,
            given_back: None,
            looked_up: None,
            fenced: None,
        }
    }
}

/// A transaction of somebody whom nobody fenced is open. It may end: the next owner waits for it anew, as often as a region may fail.
fn held_open(error: LogError) -> FollowError {
    match error.kind {
        LogErrorKind::Fatal => FollowError::Stopped(Failure { reason: error.message, retry: true }),
        _ => error.into(),
    }
}

/// Who wrote this epoch, if the worker has never joined by this control log: then `must_fence` does not know it either. Whoever has joined needs no
/// fence here: it is fenced, or has released the region and works on others with the same producer.
fn unknown_writer(cluster: &Cluster, job: &str, last: &EpochRecord) -> Option<SlotId> {
    // Of a job of another name, which this one began from, nobody is fenced.
    let slot = last.transactional_id.strip_prefix(&format!("{job}-{}-", last.incarnation.0))?.parse().ok()?;
    let is_unknown = cluster.standing(last.incarnation) == Standing::Unknown;
    is_unknown.then_some(SlotId { incarnation: last.incarnation, slot })
}

/// Whether an epoch is one of this job's, and not of one that it was made from.
fn is_of_job(record: &EpochRecord, job: &str) -> bool {
    let slot = record.transactional_id.strip_prefix(&format!("{job}-{}-", record.incarnation.0));
    slot.is_some_and(|slot| slot.parse::<u32>().is_ok())
}

/// What the view wants of a slot's nursery.
fn wanted(cluster: &Cluster, slot: SlotId) -> BTreeMap<RegionId, Role> {
    let is_ready = |id: RegionId| {
        cluster.region(id).is_some_and(|region| {
            let follows = region.followers.iter().any(|follower| follower.slot == slot && follower.ready);
            let moves = region.moving.as_ref().is_some_and(|moving| moving.to == slot && moving.ready);
            let is_target = region.moving.as_ref().is_some_and(|moving| moving.to == slot);
            if is_target { moves } else { follows }
        })
    };
    let followed = cluster.followed(slot).into_iter().map(|id| (id, Role::Follower { is_ready: is_ready(id) }));
    let owned = cluster
        .owned(slot)
        .into_iter()
        .map(|owned| (owned.region, Role::Owner { assignment: owned.assignment, fences_open: owned.fences_open }));
    followed.chain(owned).collect()
}

/// Why the region has a new owner, and who had it before.
fn cause_of(cluster: &Cluster, id: RegionId) -> (&'static str, Option<Incarnation>) {
    let Some(takeover) = cluster.takeovers().filter(|takeover| takeover.region == id).last() else { return ("assigned", None) };
    let cause = match takeover.why {
        Why::Expired => "expired",
        Why::Left => "left",
        Why::Replaced => "replaced",
        Why::Moved => "moved",
        Why::Failed => "failed",
    };
    (cause, Some(takeover.from.incarnation))
}

#[cfg(test)]
mod nursery_test;

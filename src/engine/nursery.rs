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
//! An owned region that is asked for before it is up is released as it is: who waits for it is ready.
//!
//! On failure: a region that can't be brought up is tried again after a pause; an owned one that fails again and again is given back to the control log with the
//! reason, which gives it to another worker or quarantines it. While the log, a store or a sink is away, it is waited for, and for eleven minutes nothing is given
//! back. A follower that diverged (E-4) or whose state is of no use is rebuilt and not ready until then. Where another try would end in the same way (a damaged
//! changelog), an owned region is given back at once, and a followed one is left alone; what is wrong with all regions (another plan, other topics) ends the worker.

mod failing;
mod finishing;
mod opening;

pub(crate) use failing::{WAITS_MAX, pause_after};

use crate::flight::Notes;
use crate::follower::{FollowError, Follower};
use crate::membership::Membership;
use crate::progress::Progress;
use crate::region::{Failure, Region, RegionSettings};
use crate::runtime::{Helper, Job, JobOutcome, Shared, gone};
use crate::takeover::Takeovers;
use crate::turn::{Actor, Turn};
use crossbeam_channel::{Receiver, Sender};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use streamshield_core::cluster::{Cluster, ControlRecord, Genesis, Owned, SlotId, Tier, Why};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, Incarnation, Offset, RegionId};
use streamshield_core::ports::checkpoint::{CheckpointError, CheckpointStore, Restored};
use streamshield_core::ports::log::{Log, LogReader, TopicPartition, Wakeup};
use streamshield_core::ports::state::StateBackend;

/// Followers that have nothing to do are looked at this often; new records in their changelogs wake the nursery.
const IDLE: Duration = Duration::from_millis(50);
/// While a transaction is to end, or a fence to fall.
const WAITING: Duration = Duration::from_millis(3);
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
pub(crate) const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
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
    /// How often it found something outside away.
    waits: u32,
    /// Not before this (a pause after a failure).
    resume_at: Duration,
    /// The control record that says ready; it is not written twice before it was read back.
    ready_told: Option<Offset>,
    /// The local store was given up: a checkpoint or the log itself.
    without_store: bool,
    without_checkpoint: bool,
    /// Others fetch theirs.
    awaits_restore: bool,
    /// No checkpoint was had because nobody answered.
    store_is_away: bool,
    /// Where the checkpoint stands that was fetched, and from where on the changelog holds that: as its manifest says it.
    restored: Option<(Offset, EpochRecord)>,
    /// The assignment that was given back, and why. The record may be in the log from the first try on, whatever was answered, and then the
    /// region is another's without any fence: under this assignment it never goes to the slot (O-1).
    given_back: Option<(Offset, Failure)>,
    /// The assignment that was released before the region was up, and the record, once it was written; the same holds for it.
    released: Option<(Offset, Option<Offset>)>,
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
        /// It is asked for, and the one that is to have it is ready.
        release: bool,
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
        self.shared.helper_lives(Helper::Nursery, self.slot.slot, self.now());
        for id in self.in_order_of_need() {
            let tended = self.tend(id);
            self.notes.nothing();
            self.shared.helper_lives(Helper::Nursery, self.slot.slot, self.now());
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
            // It was released before it was up, and goes on from where it stands: as a follower, or owned anew.
            let owned_since = match role {
                Role::Owner { assignment, .. } => Some(*assignment),
                Role::Follower { .. } => None,
            };
            let is_released = task.released.is_some_and(|(released, _)| owned_since != Some(released));
            if is_released {
                task.released = None;
                // Where it ends was asked under the old assignment: others may have written since, and are fenced first (O-1).
                task.phase = match std::mem::replace(&mut task.phase, Phase::Opening) {
                    Phase::Finishing { follower, .. } => Phase::Following(follower),
                    phase => phase,
                };
                self.takeovers.cancelled(*id);
            }
            if followed && task.is_owned() {
                task.waits = 0;
            }
            let is_asked_for = matches!(role, Role::Owner { release: true, .. }) && task.released.is_none();
            if is_released || is_asked_for || followed && matches!(role, Role::Owner { .. }) {
                task.resume_at = task.resume_at.min(now);
            }
            if let Role::Owner { fences_open, assignment, .. } = role {
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
        if let Role::Owner { assignment, release, .. } = task.role
            && (release || task.released.is_some_and(|(released, _)| released == assignment))
        {
            // Until it is read that the region is another's, or this slot's anew. What is being fetched goes on: it may be followed then.
            let told = task.released.and_then(|(_, told)| told);
            if told.is_none_or(|told| self.membership.has_read(told)) {
                task.released = Some((assignment, self.release(id, assignment)));
                task.resume_at = now + RETRY_PAUSE_MIN;
            }
            self.charges.tasks.insert(id, task);
            return Ok(Tended::Quiet);
        }
        if task.awaits_restore && self.shared.restore_turn(task.is_owned()).is_none() {
            self.charges.tasks.insert(id, task);
            return Ok(Tended::Quiet);
        }
        task.awaits_restore = false;
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

    /// Hands over a region that is not with the slot yet: nothing was written for it under this assignment, and so nothing of it is under way (O-1). To bring it
    /// up first may take longer than an owner has for its release. Epoch 0: none was begun here; the next owner reads the end as after any other release.
    fn release(&self, region: RegionId, assignment: Offset) -> Option<Offset> {
        let released = ControlRecord::Released { incarnation: self.slot.incarnation, region, assignment, epoch: Epoch(0) };
        let told = self.membership.append(&released);
        if let Err(error) = &told {
            tracing::debug!(%region, %error, "could not release the region yet");
        }
        told.ok()
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
            Role::Follower { .. } if follower.is_caught_up() => task.waits = 0,
            Role::Follower { .. } => {}
        }
        Ok(Some((Phase::Following(follower), tended)))
    }

    /// To open a store takes this thread tens of milliseconds, in a new process hundreds. It says of no region that it is ready meanwhile: the owner would release
    /// it, and it would stand still for that long.
    fn is_opening(&self, now: Duration) -> bool {
        let opens = |task: &Task| {
            matches!(task.phase, Phase::Opening) && task.tries + task.waits == 0 && !task.awaits_restore && task.resume_at <= now
        };
        self.charges.tasks.values().any(opens)
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
    fn is_owned(&self) -> bool {
        matches!(self.role, Role::Owner { .. })
    }

    fn new(role: Role) -> Task {
        Task {
            role,
            phase: Phase::Opening,
            tries: 0,
            waits: 0,
            resume_at: Duration::ZERO,
            ready_told: None,
            without_store: false,
            without_checkpoint: false,
            awaits_restore: false,
            store_is_away: false,
            restored: None,
            given_back: None,
            released: None,
            looked_up: None,
            fenced: None,
        }
    }
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
        .map(|Owned { region, assignment, fences_open, release }| (region, Role::Owner { assignment, fences_open, release }));
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

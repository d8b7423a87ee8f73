//! Fences the dead, keeps the control log short, and raises the feature level when all workers know a higher one.
//!
//! ```text
//! view: to fence ─► fencers, made in advance for whom this worker may have to replace ─► `fenced` in the control log
//! ```
//! Fencing runs the moment a worker is expired, before any state is fetched: open transactions of the dead hold back every reader behind
//! them. The view names one living worker per dead slot, so that nobody fences in another's way; if that one dies, it names another.
//!
//! On failure: a fence that is not proven is tried again with a new fencer; `fenced` is written only after a proof.

use crate::clock::Clock;
use crate::membership::Membership;
use crate::runtime::{JobOutcome, Shared};
use crate::turn::{Actor, Turn};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use streamshield_core::cluster::{ControlRecord, SlotId};
use streamshield_core::ids::Offset;
use streamshield_core::mutants;
use streamshield_core::ports::log::{Fencer, Log, LogError};

const IDLE: Duration = Duration::from_millis(250);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long a snapshot may take to be read back and agreed on before another one is tried.
const SNAPSHOT_TIME_MAX: Duration = Duration::from_secs(10);
/// Fencers that are kept connected, and fences that fall at the same time (M-1); each has client threads of its own.
pub(crate) const FENCERS_MAX: usize = 16;

pub struct Steward {
    pub log: Arc<dyn Log>,
    pub membership: Arc<Membership>,
    pub clock: Arc<dyn Clock>,
    pub shared: Arc<Shared>,
    /// Fences fall at the same time, on threads; a simulation lets them fall one after the other.
    pub parallel: bool,
    pub duties: Duties,
}

#[derive(Default)]
pub struct Duties {
    fencers: BTreeMap<SlotId, Box<dyn Fencer>>,
    seen_version: Option<u64>,
    /// Said in the control log and not read back yet.
    told: BTreeMap<SlotId, Offset>,
    /// Steady time of the last snapshot that this worker wrote.
    snapshot: Option<Duration>,
    trimmed_to: Offset,
}

impl Actor for Steward {
    fn turn(&mut self) -> Turn {
        if self.shared.over.load(Ordering::SeqCst) {
            return Turn::Ended(JobOutcome::Stopped);
        }
        let me = self.membership.incarnation;
        let (version, to_fence) = self.membership.view(|cluster| (cluster.version(), cluster.to_fence(me)));
        self.duties.told.retain(|_, offset| !self.membership.has_read(*offset));
        let to_fence: Vec<SlotId> = to_fence.into_iter().filter(|slot| !self.duties.told.contains_key(slot)).collect();
        if !to_fence.is_empty() {
            return if self.fence(&to_fence) { Turn::Again } else { Turn::Idle(RETRY_PAUSE) };
        }
        if self.duties.seen_version != Some(version) {
            self.duties.seen_version = Some(version);
            self.prepare_fencers();
            self.raise_level();
        }
        self.shorten_log();
        Turn::Idle(IDLE)
    }
}

impl Steward {
    fn fence(&mut self, slots: &[SlotId]) -> bool {
        let mut prepared: Vec<_> = slots.iter().map(|slot| (*slot, self.duties.fencers.remove(slot))).collect();
        // Those that are connected take no time.
        prepared.sort_by_key(|(_, fencer)| fencer.is_none());
        let threads = if self.parallel { prepared.len().min(FENCERS_MAX) } else { 1 };
        let waiting = Mutex::new(prepared.into_iter());
        let (log, membership) = (self.log.as_ref(), self.membership.as_ref());
        let fall = || -> Vec<(SlotId, Result<Offset, LogError>)> {
            let next = || waiting.lock().next();
            std::iter::from_fn(next).map(|(slot, fencer)| (slot, fence_one(log, membership, slot, fencer))).collect()
        };
        let results: Vec<(SlotId, Result<Offset, LogError>)> = if threads > 1 {
            std::thread::scope(|scope| {
                let falling: Vec<_> = (0..threads).map(|_| scope.spawn(fall)).collect();
                falling.into_iter().flat_map(|thread| thread.join().expect("a fence does not panic")).collect()
            })
        } else {
            fall()
        };
        let mut all = true;
        for (slot, result) in results {
            match result {
                Ok(offset) => drop(self.duties.told.insert(slot, offset)),
                Err(error) => {
                    all = false;
                    tracing::warn!(slot = %slot, %error, "could not fence yet");
                }
            }
        }
        all
    }

    /// Connects to fence whom this worker may have to replace.
    fn prepare_fencers(&mut self) {
        let mut wanted = self.membership.view(|cluster| cluster.may_have_to_fence(self.membership.incarnation));
        wanted.truncate(FENCERS_MAX);
        self.duties.fencers.retain(|slot, _| wanted.contains(slot));
        for slot in wanted {
            if self.duties.fencers.contains_key(&slot) {
                continue;
            }
            match self.log.fencer(&slot.transactional_id(&self.membership.job)) {
                Ok(fencer) => drop(self.duties.fencers.insert(slot, fencer)),
                Err(error) => {
                    tracing::debug!(slot = %slot, %error, "could not prepare a fence");
                    self.duties.seen_version = None;
                }
            }
        }
    }

    /// Proposes the level that all live workers know, if it is this worker's turn. What was proposed twice, or too late, changes nothing.
    fn raise_level(&mut self) {
        let level = self.membership.view(|cluster| cluster.may_raise_level(self.membership.incarnation));
        let Some(level) = level else { return };
        match self.membership.append(&ControlRecord::RaiseLevel { level }) {
            Ok(_) => tracing::info!(level, "all workers know a higher feature level: the job is raised to it"),
            Err(error) => {
                tracing::debug!(%error, "a higher feature level was not proposed");
                self.duties.seen_version = None;
            }
        }
    }

    /// Writes a snapshot when it is this worker's turn, and trims behind one that a majority agrees with.
    fn shorten_log(&mut self) {
        let me = self.membership.incarnation;
        let now = self.clock.steady();
        // It is wanted until all of it was read back; a second one before that would be in its way.
        let may_write = self.duties.snapshot.is_none_or(|written| now.saturating_sub(written) > SNAPSHOT_TIME_MAX);
        let (parts, trim) = self.membership.view(|cluster| {
            let parts = if may_write && cluster.wants_snapshot(me) { cluster.snapshot(me) } else { Vec::new() };
            let first = cluster.members().next().map(|member| member.incarnation);
            (parts, cluster.may_trim_to().filter(|_| first == Some(me)))
        });
        if !parts.is_empty() {
            self.duties.snapshot = Some(now);
        }
        for part in &parts {
            if let Err(error) = self.membership.append(part) {
                tracing::debug!(%error, "a snapshot was not written");
                return;
            }
        }
        if let Some(to) = trim.filter(|to| *to > self.duties.trimmed_to) {
            match self.membership.trim(to) {
                Ok(()) => self.duties.trimmed_to = to,
                Err(error) => tracing::debug!(%error, "the control log was not trimmed"),
            }
        }
    }
}

/// Said as soon as it is proven: who waits for this slot waits for no other's fence.
fn fence_one(log: &dyn Log, membership: &Membership, slot: SlotId, fencer: Option<Box<dyn Fencer>>) -> Result<Offset, LogError> {
    if !mutants::is_on("skip-fence") {
        let fencer = match fencer {
            Some(fencer) => fencer,
            None => log.fencer(&slot.transactional_id(&membership.job))?,
        };
        fencer.fence()?;
    }
    let offset = membership.append(&ControlRecord::Fenced { incarnation: membership.incarnation, slot })?;
    tracing::info!(slot = %slot, "fenced the producer of a slot that is gone");
    Ok(offset)
}

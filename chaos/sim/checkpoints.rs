//! The checkpoint port on a map that stands for the object store: with outages, slowness and damage.
//!
//! A [`SimStore`] is shared by all workers of a run; a [`SimCheckpoints`] is one worker's way to it, with the local fallback folder on
//! that worker's [`SimDisk`]. While the store is away, checkpoints go to the folder and are uploaded by `maintain` later.
//!
//! One thing is checked on the way, since only here it can be seen (K-1): the copy that is saved holds the record that its manifest names.

use crate::state::{Image, SimDisk};
use crate::world::{ClientId, RATE_SCALE, Sim};
use parking_lot::Mutex;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use streamshield_core::ids::{PlanFingerprint, RegionId};
use streamshield_core::ports::checkpoint::{
    CheckpointError, CheckpointErrorKind, CheckpointInfo, CheckpointRequest, CheckpointStore, Durability, Restored, Saved,
};

/// What the store does wrong, in parts of 10,000 calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFaults {
    /// A checkpoint is damaged without anybody being told; a restore finds it. Never the only one, and never two in a row.
    pub damaged: u32,
    /// A call fails, to be tried again.
    pub refused: u32,
    /// A call takes up to this many ms.
    pub call_ms_max: i64,
    /// Remote checkpoints that retention keeps per region.
    pub retained: usize,
    /// How long what was marked is still kept.
    pub grace_ms: i64,
}

impl Default for StoreFaults {
    fn default() -> Self {
        StoreFaults { damaged: 0, refused: 0, call_ms_max: 0, retained: 3, grace_ms: 10_000 }
    }
}

/// A checkpoint as it lies somewhere.
#[derive(Clone)]
pub(crate) struct Kept {
    info: CheckpointInfo,
    record: Vec<u8>,
    image: Option<Image>,
    is_damaged: bool,
    marked_ms: Option<i64>,
}

struct Store {
    rng: ChaCha8Rng,
    faults: StoreFaults,
    away_until_ms: i64,
    /// Per region, the oldest first.
    kept: BTreeMap<RegionId, Vec<Kept>>,
    /// Counts what came and went.
    changes: u64,
}

/// The object store of a run; see the module text.
#[derive(Clone)]
pub struct SimStore {
    sim: Sim,
    store: Arc<Mutex<Store>>,
}

impl SimStore {
    pub fn new(sim: &Sim, faults: StoreFaults) -> SimStore {
        let store = Store { rng: sim.generator(), faults, away_until_ms: i64::MIN, kept: BTreeMap::new(), changes: 0 };
        SimStore { sim: sim.clone(), store: Arc::new(Mutex::new(store)) }
    }

    /// The store does not answer for a while.
    pub fn away(&self, for_ms: i64) {
        self.store.lock().away_until_ms = self.sim.now_ms() + for_ms;
        self.sim.note("store", &format!("away for {for_ms} ms"));
    }

    /// The store answers again.
    pub fn reconnect(&self) {
        self.store.lock().away_until_ms = i64::MIN;
    }

    /// What it does wrong from now on.
    pub fn set_faults(&self, faults: StoreFaults) {
        self.store.lock().faults = faults;
    }

    /// Moves when a checkpoint has come.
    pub fn changes(&self) -> u64 {
        self.store.lock().changes
    }

    /// The remote checkpoints of all regions that retention has not marked, per region the oldest first: what a restore may begin from (K-2).
    pub fn retained(&self) -> Vec<CheckpointInfo> {
        let store = self.store.lock();
        store.kept.values().flatten().filter(|kept| kept.marked_ms.is_none()).map(|kept| kept.info.clone()).collect()
    }

    /// Whether a call fails; also lets it take its time.
    fn call(&self, what: &str) -> Result<(), CheckpointError> {
        let mut store = self.store.lock();
        let most = store.faults.call_ms_max.max(0);
        self.sim.spend_ms(store.rng.random_range(0..=most));
        let is_away = self.sim.now_ms() < store.away_until_ms;
        let refused = store.faults.refused;
        let is_refused = !is_away && store.rng.random_range(0..RATE_SCALE) < refused;
        if is_refused {
            self.sim.fire("store call refused");
        }
        if is_away || is_refused {
            return Err(away(format!("{what}: the store is away")));
        }
        Ok(())
    }

    fn put(&self, mut kept: Kept) {
        let mut store = self.store.lock();
        store.changes += 1;
        let damaged = store.faults.damaged;
        kept.is_damaged = store.rng.random_range(0..RATE_SCALE) < damaged;
        let (region, name) = (kept.info.region, kept.info.manifest.clone());
        let checkpoints = store.kept.entry(region).or_default();
        checkpoints.retain(|other| other.info.manifest != name);
        let at = checkpoints.partition_point(|other| order(other) < order(&kept));
        // Beside a damaged one there is always a good one: a region that has lost all of its checkpoints is lost, and no engine could help.
        let neighbours: Vec<_> = [at.checked_sub(1), Some(at)].into_iter().flatten().filter_map(|at| checkpoints.get(at)).collect();
        kept.is_damaged &= !neighbours.is_empty() && !neighbours.iter().any(|neighbour| neighbour.is_damaged);
        if kept.is_damaged {
            self.sim.fire("checkpoint damaged");
        }
        checkpoints.insert(at, kept);
    }
}

fn order(kept: &Kept) -> (u64, u64) {
    (kept.info.epoch.0, kept.info.incarnation.0)
}

fn away(message: String) -> CheckpointError {
    CheckpointError { kind: CheckpointErrorKind::Away, message }
}

/// One worker's [`CheckpointStore`]; see the module text.
pub struct SimCheckpoints {
    store: SimStore,
    disk: SimDisk,
    client: ClientId,
}

impl SimCheckpoints {
    pub fn new(store: &SimStore, disk: &SimDisk, client: ClientId) -> SimCheckpoints {
        SimCheckpoints { store: store.clone(), disk: disk.clone(), client }
    }

    fn alive(&self) -> Result<(), CheckpointError> {
        if self.store.sim.is_alive(self.client) { Ok(()) } else { Err(away("this process is dead".into())) }
    }

    fn image_of(&self, request: &CheckpointRequest) -> Result<Option<Image>, CheckpointError> {
        let Some(directory) = &request.directory else { return Ok(None) };
        let disk = self.disk.lock();
        let Some(image) = disk.folder(directory) else {
            let message = format!("{} does not exist", directory.display());
            return Err(CheckpointError { kind: CheckpointErrorKind::Fatal, message });
        };
        let image = image.clone();
        drop(disk);
        // The engine keeps a position before the record.
        if !image.record.as_ref().is_some_and(|record| record.ends_with(&request.record)) {
            let (region, epoch) = (request.region, request.epoch);
            self.store.sim.violation(format!("K-1: the checkpoint of {region} at epoch {epoch} names a record that its files do not hold"));
        }
        Ok(Some(image))
    }

    /// All checkpoints that can be seen from here, the oldest first.
    fn all(&self, region: RegionId) -> Vec<Kept> {
        let mut all = self.store.store.lock().kept.get(&region).cloned().unwrap_or_default();
        all.extend(self.disk.lock().local.get(&region).cloned().unwrap_or_default());
        all.sort_by_key(order);
        all
    }

    /// Uploads the newest that lies in the local folder, unless the store has a newer one; the others are dropped, as in the real store.
    fn upload(&self, region: RegionId) {
        let local = self.disk.lock().local.remove(&region).unwrap_or_default();
        let Some(mut newest) = local.into_iter().max_by_key(order) else { return };
        let newest_remote = self.store.store.lock().kept.get(&region).and_then(|kept| kept.iter().map(|kept| kept.info.epoch).max());
        if newest_remote < Some(newest.info.epoch) {
            newest.info.durability = Durability::Remote;
            self.store.put(newest);
        }
    }

    /// Marks what retention does not keep any more.
    fn mark(&self, region: RegionId) {
        let now_ms = self.store.sim.now_ms();
        let mut store = self.store.store.lock();
        let retained = store.faults.retained.max(1);
        let Some(checkpoints) = store.kept.get_mut(&region) else { return };
        let restorable: Vec<_> = checkpoints.iter().filter(|kept| kept.marked_ms.is_none()).map(order).collect();
        let Some(oldest) = restorable.len().checked_sub(retained).map(|at| restorable[at]) else { return };
        for kept in checkpoints.iter_mut().filter(|kept| order(kept) < oldest && !kept.info.pinned) {
            kept.marked_ms.get_or_insert(now_ms);
        }
    }

    fn purge(&self, region: RegionId) {
        let now_ms = self.store.sim.now_ms();
        let mut store = self.store.store.lock();
        let grace_ms = store.faults.grace_ms;
        let Some(checkpoints) = store.kept.get_mut(&region) else { return };
        checkpoints.retain(|kept| kept.marked_ms.is_none_or(|marked_ms| marked_ms + grace_ms > now_ms));
    }

    fn is_due(&self, region: RegionId) -> bool {
        let now_ms = self.store.sim.now_ms();
        let store = self.store.store.lock();
        let is_due = |kept: &Kept| kept.marked_ms.is_some_and(|marked_ms| marked_ms + store.faults.grace_ms <= now_ms);
        store.kept.get(&region).is_some_and(|checkpoints| checkpoints.iter().any(is_due))
    }
}

impl CheckpointStore for SimCheckpoints {
    fn save(&self, request: &CheckpointRequest) -> Result<Saved, CheckpointError> {
        self.alive()?;
        let what = format!("save {} at epoch {}", request.region, request.epoch);
        let image = self.image_of(request)?;
        let bytes = image.as_ref().map_or(0, |image| image.groups.len() as u64 * 100);
        let durability = if self.store.call(&what).is_ok() { Durability::Remote } else { Durability::Local };
        let manifest = format!("{}/{:020}-{}", request.region, request.epoch, request.incarnation.0);
        let info = CheckpointInfo {
            region: request.region,
            epoch: request.epoch,
            incarnation: request.incarnation,
            plan: request.plan,
            positions: request.positions.clone(),
            watermark: request.watermark,
            changelog_from: request.changelog_from,
            durability,
            pinned: false,
            created_ms: self.store.sim.now_ms(),
            manifest: manifest.clone(),
            files: usize::from(image.is_some()),
            bytes,
        };
        let kept = Kept { info, record: request.record.clone(), image, is_damaged: false, marked_ms: None };
        let files = kept.info.files;
        match durability {
            Durability::Remote => self.store.put(kept),
            Durability::Local => self.disk.lock().local.entry(request.region).or_default().push(kept),
        }
        self.store.sim.note("store", &format!("{what}: {durability:?}"));
        Ok(Saved {
            durability,
            manifest,
            files,
            bytes,
            bytes_uploaded: if durability == Durability::Remote { bytes } else { 0 },
            seconds: 0.0,
        })
    }

    fn restore(&self, region: RegionId, plan: PlanFingerprint, directory: &Path) -> Result<Option<Restored>, CheckpointError> {
        self.alive()?;
        let what = format!("restore {region}");
        self.store.call(&what)?;
        let mut refused = Vec::new();
        for kept in self.all(region).into_iter().rev().filter(|kept| kept.info.plan == plan) {
            if kept.is_damaged {
                refused.push(format!("{}: the checksum is wrong", kept.info.manifest));
                continue;
            }
            if let Some(image) = kept.image {
                let added = self.disk.lock().add_folder(directory, image);
                added
                    .map_err(|error| CheckpointError { kind: CheckpointErrorKind::Fatal, message: format!("{what}: {}", error.message) })?;
            }
            self.store.sim.note("store", &format!("{what}: {}", kept.info.manifest));
            let bytes_fetched = kept.info.bytes;
            return Ok(Some(Restored { info: kept.info, record: kept.record, refused, bytes_fetched, seconds: 0.0 }));
        }
        self.store.sim.note("store", &format!("{what}: none, {} refused", refused.len()));
        Ok(None)
    }

    fn list(&self, region: RegionId) -> Result<Vec<CheckpointInfo>, CheckpointError> {
        self.alive()?;
        self.store.call(&format!("list {region}"))?;
        Ok(self.all(region).into_iter().map(|kept| kept.info).collect())
    }

    fn maintain(&self, region: RegionId, still_owner: &mut dyn FnMut() -> bool) -> Result<(), CheckpointError> {
        self.alive()?;
        self.store.call(&format!("maintain {region}"))?;
        self.upload(region);
        self.mark(region);
        if self.is_due(region) && still_owner() {
            self.purge(region);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "checkpoints_test.rs"]
mod checkpoints_test;

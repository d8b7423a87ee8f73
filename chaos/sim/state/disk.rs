//! The disk of one machine: stores that survive a crash as a prefix of what was applied, folders, local checkpoints.
//!
//! RocksDB without a write-ahead log loses the youngest write batches when the process dies, never one from the middle. So each store keeps
//! its synced image and the batches since; after a crash a random number of them is there and the rest is not. A clean close syncs.
//!
//! Nobody has to tell the disk of a crash: handles of a dead worker ([`ClientId`]) do nothing any more, and a store that its owner did
//! not close is cut when the next life of the machine begins (`SimDisk::start`).

use super::batch::{Batch, Groups};
use crate::checkpoints::Kept;
use crate::world::{ClientId, RATE_SCALE, Sim};
use parking_lot::{Mutex, MutexGuard};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::RegionId;
use streamshield_core::ports::state::{StateError, StateErrorKind};
use xxhash_rust::xxh3::Xxh3;

/// What a disk does wrong, in parts of 10,000.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFaults {
    /// After a flush was applied, everything up to it is synced.
    pub synced: u32,
    /// A flush or delta can't be written: the region's state is to be dropped.
    pub write_fails: u32,
    /// A store that is opened turns out to be damaged, and is deleted.
    pub damaged: u32,
}

impl Default for DiskFaults {
    fn default() -> Self {
        DiskFaults { synced: 3_000, write_fails: 0, damaged: 0 }
    }
}

/// All that lies in a store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub groups: Groups,
    pub record: Option<Vec<u8>>,
    /// The tables that it was written with.
    pub layout: Option<String>,
}

impl Image {
    fn digest(&self) -> u64 {
        let mut hash = Xxh3::new();
        for (group, states) in &self.groups {
            hash.update(&group.operator.to_le_bytes());
            hash.update(&group.window.start_ms.to_le_bytes());
            hash.update(&group.window.end_ms.to_le_bytes());
            for part in std::iter::once(&group.key).chain(states) {
                hash.update(&(part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        hash.digest()
    }

    fn apply(&mut self, write: &Write) {
        write.batch.apply_to(&mut self.groups);
        self.record = Some(write.record.clone());
    }
}

pub(crate) struct Write {
    batch: Batch,
    record: Vec<u8>,
}

#[derive(Default)]
struct Store {
    /// With all that was applied.
    live: Image,
    synced: Image,
    unsynced: VecDeque<Write>,
    opened_by: Option<ClientId>,
}

impl Store {
    fn sync(&mut self) {
        self.unsynced.clear();
        self.synced = self.live.clone();
    }
}

pub(crate) struct Disk {
    sim: Sim,
    name: String,
    rng: ChaCha8Rng,
    faults: DiskFaults,
    stores: BTreeMap<RegionId, Store>,
    folders: BTreeMap<PathBuf, Image>,
    /// Checkpoints in the local fallback folder.
    pub(crate) local: BTreeMap<RegionId, Vec<Kept>>,
}

/// The disk of one machine; see the module text.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<Disk>>);

impl SimDisk {
    pub fn new(sim: &Sim, name: &str, faults: DiskFaults) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(Disk {
            rng: sim.generator(),
            sim: sim.clone(),
            name: name.to_owned(),
            faults,
            stores: BTreeMap::new(),
            folders: BTreeMap::new(),
            local: BTreeMap::new(),
        })))
    }

    /// A new life of the machine's worker: what the last one left open is cut to what a crash leaves.
    pub(super) fn start(&self) {
        let mut disk = self.0.lock();
        disk.cut();
        let scratch = disk.scratch();
        disk.folders.retain(|path, _| !path.starts_with(&scratch));
    }

    /// The machine is gone with all that was on it.
    pub fn lose(&self) {
        let mut disk = self.0.lock();
        disk.stores.clear();
        disk.folders.clear();
        disk.local.clear();
        disk.note(format_args!("lost"));
    }

    /// What the disk does wrong from now on.
    pub fn set_faults(&self, faults: DiskFaults) {
        self.0.lock().faults = faults;
    }

    /// Deletes a folder of a copy or a download: the engine does so on the machine's own file system, where there is none of ours.
    pub fn remove_folder(&self, directory: &Path) {
        self.0.lock().folders.remove(directory);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock()
    }
}

fn error(kind: StateErrorKind, message: String) -> StateError {
    StateError { kind, message }
}

impl Disk {
    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.sim.note(&self.name, &format!("disk: {what}"));
    }

    fn strikes(&mut self, rate: u32) -> bool {
        self.rng.random_range(0..RATE_SCALE) < rate
    }

    fn cut(&mut self) {
        let Disk { stores, rng, .. } = self;
        let mut cut = Vec::new();
        for (region, store) in stores.iter_mut().filter(|(_, store)| store.opened_by.is_some()) {
            let written = store.unsynced.len();
            let survive = rng.random_range(0..=written);
            for write in store.unsynced.drain(..).take(survive) {
                store.synced.apply(&write);
            }
            store.live = store.synced.clone();
            store.opened_by = None;
            cut.push(format!("{region} keeps {survive} of {written}"));
        }
        if !cut.is_empty() {
            self.note(format_args!("after a crash: {}", cut.join(", ")));
        }
    }

    pub fn is_alive(&self, client: ClientId) -> bool {
        self.sim.is_alive(client)
    }

    pub fn scratch(&self) -> PathBuf {
        PathBuf::from("/sim").join(&self.name).join("scratch")
    }

    /// Opens a store; the text says why something that was there had to go.
    pub fn open(&mut self, region: RegionId, client: ClientId, layout: &str) -> Result<(Image, Option<String>), StateError> {
        let is_damaged = self.stores.contains_key(&region) && self.strikes(self.faults.damaged);
        let store = self.stores.entry(region).or_default();
        if store.opened_by.is_some() {
            return Err(error(StateErrorKind::Internal, format!("the state of {region} is open already")));
        }
        if is_damaged {
            self.sim.fire("store damaged");
        }
        let is_other = store.live.layout.as_ref().is_some_and(|found| found != layout);
        let why = match (is_damaged, is_other) {
            (true, _) => Some("the store is damaged".to_owned()),
            (false, true) => Some("the store was written with other tables".to_owned()),
            (false, false) => None,
        };
        if why.is_some() {
            *store = Store::default();
        }
        store.opened_by = Some(client);
        store.live.layout = Some(layout.to_owned());
        store.synced.layout = Some(layout.to_owned());
        let image = store.live.clone();
        self.note(format_args!("opens {region} with {} groups, record {:?}", image.groups.len(), image.record.as_ref().map(Vec::len)));
        Ok((image, why))
    }

    /// Everything that was applied survives from now on, if a living process says so.
    pub fn sync(&mut self, region: RegionId, client: ClientId) {
        let is_alive = self.is_alive(client);
        if let Some(store) = self.stores.get_mut(&region).filter(|store| is_alive && store.opened_by == Some(client)) {
            store.sync();
        }
    }

    pub fn close(&mut self, region: RegionId, client: ClientId) {
        let is_alive = self.is_alive(client);
        if let Some(store) = self.stores.get_mut(&region).filter(|store| is_alive && store.opened_by == Some(client)) {
            store.opened_by = None;
        }
    }

    /// Writes a batch and the record with it.
    pub fn apply(&mut self, region: RegionId, client: ClientId, batch: Batch, record: &[u8]) -> Result<(), StateError> {
        if !self.is_alive(client) {
            return Err(error(StateErrorKind::Io, format!("{region}: this process is dead")));
        }
        if self.strikes(self.faults.write_fails) {
            self.sim.fire("disk full");
            return Err(error(StateErrorKind::Io, format!("{region}: the disk is full")));
        }
        let is_synced = self.strikes(self.faults.synced);
        let Some(store) = self.stores.get_mut(&region).filter(|store| store.opened_by == Some(client)) else {
            return Err(error(StateErrorKind::Io, format!("{region}: the store is gone")));
        };
        let write = Write { batch, record: record.to_vec() };
        store.live.apply(&write);
        store.unsynced.push_back(write);
        if is_synced {
            store.sync();
        }
        self.compare(region);
        Ok(())
    }

    /// E-4: what lies here is what lies elsewhere at this epoch.
    fn compare(&self, region: RegionId) {
        let Some(image) = self.image(region) else { return };
        // The engine keeps an epoch record behind eight bytes of its own.
        let record = image.record.as_ref().and_then(|record| EpochRecord::decode(record.get(8..)?).ok());
        if let Some(record) = record {
            self.sim.image(&self.name, region, record.epoch, image.digest());
        }
    }

    pub fn image(&self, region: RegionId) -> Option<&Image> {
        self.stores.get(&region).map(|store| &store.live)
    }

    pub fn copy_to(&mut self, region: RegionId, directory: &Path) -> Result<Option<Vec<u8>>, StateError> {
        let Some(image) = self.image(region).cloned() else {
            return Err(error(StateErrorKind::Io, format!("{region}: the store is gone")));
        };
        let record = image.record.clone();
        self.add_folder(directory, image)?;
        Ok(record)
    }

    pub fn add_folder(&mut self, directory: &Path, image: Image) -> Result<(), StateError> {
        if self.folders.contains_key(directory) {
            return Err(error(StateErrorKind::Io, format!("{} exists", directory.display())));
        }
        self.folders.insert(directory.to_owned(), image);
        Ok(())
    }

    pub fn folder(&self, directory: &Path) -> Option<&Image> {
        self.folders.get(directory)
    }

    pub fn delete(&mut self, region: RegionId) -> Result<(), StateError> {
        if self.stores.get(&region).is_some_and(|store| store.opened_by.is_some()) {
            return Err(error(StateErrorKind::Internal, format!("the state of {region} is open")));
        }
        self.stores.remove(&region);
        Ok(())
    }

    pub fn adopt(&mut self, region: RegionId, directory: &Path) -> Result<(), StateError> {
        self.delete(region)?;
        let Some(image) = self.folders.remove(directory) else {
            return Err(error(StateErrorKind::Io, format!("{} does not exist", directory.display())));
        };
        self.stores.insert(region, Store { live: image.clone(), synced: image, unsynced: VecDeque::new(), opened_by: None });
        self.compare(region);
        self.note(format_args!("{region} adopts {}", directory.display()));
        Ok(())
    }
}

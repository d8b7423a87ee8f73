//! The state port on plain maps and a disk that forgets what was not synced.
//!
//! It keeps the contract of `streamshield-state`, by simple means: flushes are applied in the order of sealing, deltas know nothing of
//! flushes, a drained portion depends on the groups alone, the digest on what changed and not on the order (E-4). What a crash leaves
//! is [`SimDisk`]'s matter. Digests of this backend and of the real one differ; those of one backend agree.

mod batch;
mod columns;
mod disk;
mod table;

#[cfg(test)]
mod state_test;

pub(crate) use disk::Image;
pub use disk::{DiskFaults, SimDisk};

use crate::world::ClientId;
use batch::Batch;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use streamshield_core::ids::{Digest, RegionId};
use streamshield_core::ports::state::*;
use streamshield_core::watermark::Watermark;
use table::Table;

/// A [`StateBackend`] on a simulated disk; see the module text.
pub struct SimState {
    disk: SimDisk,
    client: ClientId,
}

impl SimState {
    /// For one life of the machine's worker; what an earlier one left behind is what its crash left.
    pub fn new(disk: &SimDisk, client: ClientId) -> SimState {
        disk.start();
        SimState { disk: disk.clone(), client }
    }
}

fn internal(message: String) -> StateError {
    StateError { kind: StateErrorKind::Internal, message }
}

/// What the layout of a store depends on.
fn layout(tables: &[WindowTableSpec]) -> String {
    let of = |table: &WindowTableSpec| {
        let keys: Vec<_> = table.keys.iter().map(|field| field.data_type().to_string()).collect();
        let kind = |merge: &Merge| match merge {
            Merge::Sum => "sum",
            Merge::Min => "min",
            Merge::Max => "max",
            Merge::Other(_) => "other",
        };
        let state = |aggregate: &AggregateState| {
            let types: Vec<_> = aggregate.fields.iter().map(|field| field.data_type().to_string()).collect();
            format!("{}{types:?}", kind(&aggregate.merge))
        };
        let states: Vec<_> = table.aggregates.iter().map(state).collect();
        format!("operator {} keys {keys:?} states {states:?}\n", table.operator)
    };
    tables.iter().map(of).collect()
}

impl StateBackend for SimState {
    fn open(&self, region: RegionId, tables: &[WindowTableSpec]) -> Result<OpenedState, StateError> {
        let mut made = tables.iter().map(Table::new).collect::<Result<Vec<_>, _>>()?;
        let mut disk = self.disk.lock();
        let (image, rebuilt) = disk.open(region, self.client, &layout(tables))?;
        made.iter_mut().for_each(|table| table.load(&image.groups));
        drop(disk);
        let unknown = UnknownTable { region };
        let claim = Arc::new(Claim { disk: self.disk.clone(), region, client: self.client });
        let state = SimRegion { claim, region, tables: made, unknown, sealed: 0, applied: 0, failed: None };
        Ok(OpenedState { state: Box::new(state), record: image.record, rebuilt })
    }

    fn delete(&self, region: RegionId) -> Result<(), StateError> {
        self.disk.lock().delete(region)
    }

    fn adopt(&self, region: RegionId, directory: &Path) -> Result<(), StateError> {
        self.disk.lock().adopt(region, directory)
    }

    fn scratch(&self) -> PathBuf {
        self.disk.lock().scratch()
    }
}

/// The region counts as open as long as somebody holds this.
struct Claim {
    disk: SimDisk,
    region: RegionId,
    client: ClientId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.disk.lock().close(self.region, self.client);
    }
}

struct SealedFlush {
    sequence: u64,
    batch: Batch,
}

/// All state of one region.
struct SimRegion {
    claim: Arc<Claim>,
    region: RegionId,
    tables: Vec<Table>,
    unknown: UnknownTable,
    sealed: u64,
    applied: u64,
    failed: Option<StateError>,
}

impl SimRegion {
    fn write(&mut self, batch: Batch, record: &[u8]) -> Result<(), StateError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let written = self.claim.disk.lock().apply(self.region, self.claim.client, batch, record);
        self.failed = written.clone().err();
        written
    }
}

impl RegionState for SimRegion {
    fn table(&mut self, operator: u16) -> &mut dyn WindowTable {
        match self.tables.iter_mut().find(|table| table.operator() == operator) {
            Some(table) => table,
            None => &mut self.unknown,
        }
    }

    fn bytes(&self) -> StateBytes {
        let add = |sum: StateBytes, bytes: StateBytes| StateBytes { total: sum.total + bytes.total, dirty: sum.dirty + bytes.dirty };
        self.tables.iter().map(Table::bytes).fold(StateBytes::default(), add)
    }

    fn seal_flush(&mut self) -> Result<Flush, StateError> {
        self.sealed += 1;
        let mut batch = Batch::default();
        self.tables.iter_mut().for_each(|table| table.seal(self.sealed, &mut batch));
        let (digest, bytes) = (batch.digest(), batch.bytes());
        Ok(Flush { digest, bytes, content: Box::new(SealedFlush { sequence: self.sealed, batch }) })
    }

    fn apply_flush(&mut self, flush: Flush, record: &[u8]) -> Result<(), StateError> {
        let Ok(flush) = flush.content.downcast::<SealedFlush>() else {
            return Err(internal("a flush of another backend".into()));
        };
        if flush.sequence != self.applied + 1 {
            return Err(internal(format!("{}: flush {} is applied after flush {}", self.region, flush.sequence, self.applied)));
        }
        self.write(flush.batch, record)?;
        self.applied = flush.sequence;
        self.tables.iter_mut().for_each(|table| table.applied(flush.sequence));
        Ok(())
    }

    fn seal_delta(&mut self) -> Result<Delta, StateError> {
        let mut batch = Batch::default();
        self.tables.iter_mut().for_each(|table| table.seal_delta(self.applied, &mut batch));
        Ok(Delta { digest: batch.digest(), bytes: batch.encode() })
    }

    fn is_clean(&self) -> bool {
        self.sealed == self.applied && self.tables.iter().all(|table| table.is_clean(self.applied))
    }

    fn apply_delta(&mut self, delta: &[u8], record: &[u8]) -> Result<Digest, StateError> {
        let batch = Batch::decode(delta)?;
        if !self.is_clean() {
            return Err(internal(format!("{}: a delta is applied past changes that were not flushed", self.region)));
        }
        let digest = batch.digest();
        self.write(batch, record)?;
        let disk = self.claim.disk.lock();
        if let Some(image) = disk.image(self.region) {
            for table in &mut self.tables {
                table.load(&image.groups);
                table.forget_changes();
            }
        }
        Ok(digest)
    }

    fn copier(&self) -> Option<Box<dyn StoreCopier>> {
        Some(Box::new(SimCopier { claim: Arc::clone(&self.claim) }))
    }

    fn evict(&mut self, target_bytes: usize) -> Result<(), StateError> {
        let mut wanted = self.bytes().total.saturating_sub(target_bytes);
        for table in &mut self.tables {
            wanted = wanted.saturating_sub(table.evict(wanted, self.applied));
        }
        Ok(())
    }
}

impl Drop for SimRegion {
    /// A clean close loses nothing that was applied.
    fn drop(&mut self) {
        self.claim.disk.lock().sync(self.region, self.claim.client);
    }
}

struct SimCopier {
    claim: Arc<Claim>,
}

impl StoreCopier for SimCopier {
    fn copy_to(&self, directory: &Path) -> Result<Option<Vec<u8>>, StateError> {
        let Claim { disk, region, client } = &*self.claim;
        let mut disk = disk.lock();
        if !disk.is_alive(*client) {
            return Err(StateError { kind: StateErrorKind::Io, message: format!("{region}: this process is dead") });
        }
        disk.copy_to(*region, directory)
    }
}

/// Stands in for a table that the region was not opened with.
struct UnknownTable {
    region: RegionId,
}

impl UnknownTable {
    fn error<T>(&self) -> Result<T, StateError> {
        Err(internal(format!("region {} was opened without a table for this operator", self.region)))
    }
}

impl WindowTable for UnknownTable {
    fn merge(&mut self, _: Window, _: &[arrow_array::ArrayRef], _: &[arrow_array::ArrayRef]) -> Result<(), StateError> {
        self.error()
    }
    fn first_closed(&self, _: Watermark) -> Option<Window> {
        None
    }
    fn drain(&mut self, _: Window, _: usize) -> Result<Drained, StateError> {
        self.error()
    }
    fn groups(&self) -> usize {
        0
    }
}

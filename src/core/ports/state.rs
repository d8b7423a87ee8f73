//! The state port: the groups of window aggregations of one region.
//!
//! The hot path is in memory: typed state columns, merged in place. Disk is touched at flush epochs only: the engine
//! seals a flush (dirty groups are encoded and digested), holds it with the sealed epoch, and applies it once that epoch is
//! committed. So what is on disk is always a prefix of the committed epochs, named by the record stored beside it.

use crate::ids::{Digest, RegionId};
use crate::watermark::Watermark;
use arrow_array::ArrayRef;
use arrow_schema::FieldRef;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `[start, end)` in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window {
    pub end_ms: i64,
    pub start_ms: i64,
}

/// How new state is merged into stored state, for one aggregate.
#[derive(Clone)]
pub enum Merge {
    /// Each state column is a wrapping sum of integers, decimals or floats; null means no value yet.
    Sum,
    Min,
    Max,
    /// By the aggregate's own accumulator.
    Other(Arc<dyn StateMerger>),
}

/// Merges state columns that have no kernel of their own. Pure.
pub trait StateMerger: Send + Sync {
    /// `stored` has one row per group; row `i` of `incoming` belongs to group `groups[i]`. Returns one row per group.
    fn merge(&self, stored: &[ArrayRef], incoming: &[ArrayRef], groups: &[usize]) -> Result<Vec<ArrayRef>, StateError>;
}

/// State columns of one aggregate.
#[derive(Clone)]
pub struct AggregateState {
    pub fields: Vec<FieldRef>,
    pub merge: Merge,
}

/// State of one window aggregation.
#[derive(Clone)]
pub struct WindowTableSpec {
    /// Stable number of the operator within its stage: part of the key on disk.
    pub operator: u16,
    /// May be empty: one group per window.
    pub keys: Vec<FieldRef>,
    pub aggregates: Vec<AggregateState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateErrorKind {
    /// What is on disk does not add up: delete it and rebuild.
    Damaged,
    /// Disk full, read-only…: the region stops.
    Io,
    /// A bug or an unsupported type.
    Internal,
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct StateError {
    pub kind: StateErrorKind,
    pub message: String,
}

/// A portion of a closed window.
pub struct Drained {
    /// One array per key field and one per state field (aggregates in order, their fields in order), all of one length.
    pub keys: Vec<ArrayRef>,
    pub states: Vec<ArrayRef>,
    /// The window has no more groups and is gone.
    pub finished: bool,
}

/// The groups of one window aggregation: window → key → state columns.
pub trait WindowTable: Send {
    /// Merges rows into one window. A key may occur in several rows. `states` as in [`Drained`].
    fn merge(&mut self, window: Window, keys: &[ArrayRef], states: &[ArrayRef]) -> Result<(), StateError>;
    /// The earliest window that this watermark closes.
    fn first_closed(&self, watermark: Watermark) -> Option<Window>;
    /// Removes up to `max_rows` groups of a window and returns them. Which groups a portion holds, and their order,
    /// depends only on the groups and on `max_rows`, never on what is in memory or on disk (E-4).
    fn drain(&mut self, window: Window, max_rows: usize) -> Result<Drained, StateError>;
    /// Groups in all windows, in memory (an evicted group does not count).
    fn groups(&self) -> usize;
}

/// Encoded dirty groups of one region, held until their epoch is committed.
pub struct Flush {
    pub digest: Digest,
    pub bytes: usize,
    /// Only the backend that made it can read it.
    pub content: Box<dyn std::any::Any + Send>,
}

/// What one epoch changed, for the changelog (Tier 2). Only the backend that made it knows its bytes.
pub struct Delta {
    pub digest: Digest,
    pub bytes: Vec<u8>,
}

/// Makes a copy of a region's store beside the engine. It holds the store, not the region: the region goes on.
pub trait StoreCopier: Send {
    /// Makes a consistent copy of all that was applied (hard links; the folder must not exist) and returns the `record` that lies in
    /// it: the one of the last applied flush or delta, None when nothing was ever applied.
    fn copy_to(&self, directory: &Path) -> Result<Option<Vec<u8>>, StateError>;
}

/// All state of one region.
pub trait RegionState: Send {
    fn table(&mut self, operator: u16) -> &mut dyn WindowTable;
    /// Bytes in memory, and how many of them are dirty (changed since the last sealed flush). May walk over all windows.
    fn bytes(&self) -> StateBytes;
    /// The total of [`bytes`](Self::bytes), asked at each step: a backend with many windows answers without a walk.
    fn total_bytes(&self) -> usize {
        self.bytes().total
    }
    /// Digests and encodes what changed since the last call. The digest depends on the groups and windows that were written, removed
    /// or emptied since then, not on their order. Several flushes may be sealed before the first is applied.
    fn seal_flush(&mut self) -> Result<Flush, StateError>;
    /// Writes a flush and `record` (the epoch record of its epoch, opaque) in one atomic batch. In the order of sealing.
    fn apply_flush(&mut self, flush: Flush, record: &[u8]) -> Result<(), StateError>;
    /// Encodes what changed since the last delta, independent of flushes: neither sees the other. The first call has all that no applied flush has
    /// (since opening, at most); from it on the tables keep count, and a group stays in memory until a delta has it.
    fn seal_delta(&mut self) -> Result<Delta, StateError>;
    /// Everything that changed, removals included, is in an applied flush, and in a delta where those are counted: another task's delta may be applied. May
    /// walk over all windows.
    fn is_clean(&self) -> bool;
    /// Writes another task's delta and `record` in one atomic batch to the store, past the tables. These must be [clean](Self::is_clean); they are emptied
    /// and read back when needed. Returns the digest of the delta's content; bytes that are no delta are `Damaged`.
    fn apply_delta(&mut self, delta: &[u8], record: &[u8]) -> Result<Digest, StateError>;
    /// For a checkpoint; None when this backend has no store. The region counts as open until the copier is dropped, too.
    fn copier(&self) -> Option<Box<dyn StoreCopier>>;
    /// Drops groups that are unchanged since an applied flush from memory until at most `target_bytes` are used, as far as possible. They are read back when needed.
    fn evict(&mut self, target_bytes: usize) -> Result<(), StateError>;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateBytes {
    pub total: usize,
    pub dirty: usize,
}

/// What was found on opening a region's state.
pub struct OpenedState {
    pub state: Box<dyn RegionState>,
    /// The `record` of the last applied flush or delta; None: the state is empty.
    pub record: Option<Vec<u8>>,
    /// Set when something was there but could not be used and was deleted: why.
    pub rebuilt: Option<String>,
}

/// Opens the state of regions.
pub trait StateBackend: Send + Sync {
    fn open(&self, region: RegionId, tables: &[WindowTableSpec]) -> Result<OpenedState, StateError>;
    /// Forgets everything of a region.
    fn delete(&self, region: RegionId) -> Result<(), StateError>;
    /// Makes the files in `directory` (a copy that a [`StoreCopier`] made, perhaps elsewhere) the region's store, in place of what is there. The folder is moved or
    /// copied; the region must not be open.
    fn adopt(&self, region: RegionId, directory: &Path) -> Result<(), StateError>;
    /// An empty folder beside the regions' stores, on the same file system, for copies and downloads. It is emptied when the backend is made.
    fn scratch(&self) -> PathBuf;
}

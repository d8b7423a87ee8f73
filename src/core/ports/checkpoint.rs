//! The checkpoint port: region checkpoints in an object store, or, while that is away, in a local folder.
//!
//! A region checkpoint is the copy of a region's store at one epoch (a folder of immutable files) and a manifest that is written last (K-1).
//! Each region alone, at an epoch of its own: there is no barrier. A region without state has checkpoints, too: a manifest without files,
//! which says where it stood.
//!
//! All calls block; they are made from checkpoint and restore threads, never from an engine thread.

use crate::ids::{Digest, Epoch, Incarnation, Offset, PlanFingerprint, RegionId};
use crate::watermark::Watermark;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What is to be kept of a region.
#[derive(Clone, Debug)]
pub struct CheckpointRequest {
    pub region: RegionId,
    pub epoch: Epoch,
    /// Who writes: part of all names, so that a paused owner can neither overwrite nor delete a successor's files.
    pub incarnation: Incarnation,
    pub plan: PlanFingerprint,
    /// Position after the epoch, per input.
    pub positions: Vec<Offset>,
    pub watermark: Watermark,
    /// From where the changelog holds the epochs after this one.
    pub changelog_from: Offset,
    pub digest: Option<Digest>,
    /// The epoch record, as it lies in the changelog.
    pub record: Vec<u8>,
    /// Immutable files; None: the region has no state. The caller deletes the folder afterwards.
    pub directory: Option<PathBuf>,
}

/// Where a checkpoint has come to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// In the local fallback folder only, to be uploaded when the store is back. Survives the process, not the machine.
    Local,
    Remote,
}

/// What a saved checkpoint cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    pub durability: Durability,
    pub manifest: String,
    pub files: usize,
    pub bytes: u64,
    /// Without what an earlier checkpoint had uploaded already.
    pub bytes_uploaded: u64,
    pub seconds: f64,
}

/// A checkpoint that can be restored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    pub region: RegionId,
    pub epoch: Epoch,
    pub incarnation: Incarnation,
    pub plan: PlanFingerprint,
    pub positions: Vec<Offset>,
    pub watermark: Watermark,
    pub changelog_from: Offset,
    pub durability: Durability,
    pub pinned: bool,
    /// When it was made, in ms since 1970 by its writer's clock: for people and for retention by age.
    pub created_ms: i64,
    pub manifest: String,
    pub files: usize,
    pub bytes: u64,
}

/// A checkpoint that has been fetched and whose checksums are right.
#[derive(Clone, Debug)]
pub struct Restored {
    pub info: CheckpointInfo,
    /// The epoch record.
    pub record: Vec<u8>,
    /// Newer ones that were refused, each with the reason and the name of the file.
    pub refused: Vec<String>,
    pub bytes_fetched: u64,
    pub seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointErrorKind {
    /// The store does not answer, nobody here can know what it holds: try again later.
    Away,
    /// Something on this machine, or a file that does not fit: try again, here or on another one.
    Retry,
    /// Access refused, a wrong URL: tell the user.
    Fatal,
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct CheckpointError {
    pub kind: CheckpointErrorKind,
    pub message: String,
}

/// Checkpoints of one job.
pub trait CheckpointStore: Send + Sync {
    /// Whose uploads they are from now on: a worker says so once it is a member, and at each later start.
    fn set_incarnation(&self, incarnation: Incarnation) {
        let _ = incarnation;
    }
    /// Uploads what no restorable checkpoint of this writer names yet, then writes the manifest. While the store is away it goes to the local
    /// folder; Ok then says `Local`.
    fn save(&self, request: &CheckpointRequest) -> Result<Saved, CheckpointError>;
    /// Fetches the newest checkpoint of this plan into `directory` (which does not exist yet), or the next older one when it is damaged. Local ones
    /// of this machine count. None: there is none.
    fn restore(&self, region: RegionId, plan: PlanFingerprint, directory: &Path) -> Result<Option<Restored>, CheckpointError>;
    /// All restorable checkpoints of a region, the oldest first. What lies before the oldest *remote* one may be trimmed from the log (K-2).
    fn list(&self, region: RegionId) -> Result<Vec<CheckpointInfo>, CheckpointError>;
    /// One round of upkeep for a region by its owner: uploads local checkpoints when the store is back, marks what retention no longer keeps,
    /// deletes what was marked longer ago than the grace. `still_owner` is asked right before anything is deleted. Its answer is as old as what the
    /// worker has read of the control log, and only stops needless work: what a successor needs is protected by the incarnations in all names, by the
    /// grace, and by the manifests that are there.
    fn maintain(&self, region: RegionId, still_owner: &mut dyn FnMut() -> bool) -> Result<(), CheckpointError>;
}

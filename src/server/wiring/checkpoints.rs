//! From the job's settings to its store of checkpoints: for the engine, for `check`, and for people.

use crate::job::{CheckpointSettings, Job};
use crate::problem::Problem;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use streamshield_checkpoint::{ObjectCheckpoints, StoreConfig, StoreProblem, Verification};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, RegionId};
use streamshield_core::ports::checkpoint::{CheckpointError, CheckpointInfo, CheckpointStore};

/// The store that a job's workers write to; None: the job names none.
pub fn store(job: &Job) -> Result<Option<Arc<dyn CheckpointStore>>, Problem> {
    let Some(settings) = &job.checkpoint else { return Ok(None) };
    let opened = open(job, settings, Some(job.fallback_folder()))?;
    Ok(Some(Arc::new(opened)))
}

/// The store as people ask it.
pub fn admin(job: &Job, settings: &CheckpointSettings) -> Result<Box<dyn CheckpointAdmin>, Problem> {
    // Checkpoints that wait on this machine are shown, too; where there are none, no folder is made for them.
    let fallback = Some(job.fallback_folder()).filter(|folder| folder.exists());
    Ok(Box::new(open(job, settings, fallback)?))
}

/// What can be known of the settings without asking the store.
pub fn check(job: &Job) -> Result<(), Problem> {
    match &job.checkpoint {
        Some(settings) => open(job, settings, None).map(drop),
        None => Ok(()),
    }
}

/// Asks the store whether it takes what checkpoints need.
pub fn probe(job: &Job) -> Result<(), Problem> {
    let Some(settings) = &job.checkpoint else { return Ok(()) };
    let opened = open(job, settings, None)?;
    opened.probe().map(drop).map_err(|problem| refused(settings, problem))
}

fn open(job: &Job, settings: &CheckpointSettings, local_fallback: Option<PathBuf>) -> Result<ObjectCheckpoints, Problem> {
    let options = settings.options.iter().map(|(name, value)| (name.clone(), value.reveal().to_string())).collect();
    let config = StoreConfig {
        options,
        upload_concurrency: settings.upload_concurrency,
        upload_bytes_per_second: settings.upload_bandwidth_bytes,
        retain_count: settings.retain as usize,
        retain_for: settings.retain_for,
        local_fallback,
        ..StoreConfig::new(settings.store.to_string())
    };
    ObjectCheckpoints::open(config, &job.name).map_err(|problem| refused(settings, problem))
}

fn refused(settings: &CheckpointSettings, problem: StoreProblem) -> Problem {
    Problem::error(format!("{}: {}", problem.what, problem.detail)).hint(problem.hint).at_place(Some(settings.place.clone()))
}

/// What people may ask of a store, besides what the engine does with it.
pub trait CheckpointAdmin {
    /// That have checkpoints.
    fn regions(&self) -> Result<Vec<RegionId>, CheckpointError>;
    /// The oldest first.
    fn list(&self, region: RegionId) -> Result<Vec<CheckpointInfo>, CheckpointError>;
    /// Reads all files of all checkpoints of a region.
    fn verify(&self, region: RegionId) -> Result<Vec<Verified>, CheckpointError>;
    /// A pinned checkpoint is kept whatever retention says.
    fn pin(&self, region: RegionId, epoch: Epoch) -> Result<(), CheckpointError>;
    fn unpin(&self, region: RegionId, epoch: Epoch) -> Result<(), CheckpointError>;
    /// One round of what the owner does from time to time; the number of deleted objects.
    fn collect_garbage(&self, region: RegionId, grace: Option<Duration>) -> Result<u64, CheckpointError>;
    /// The epoch record of a checkpoint.
    fn record(&self, region: RegionId, epoch: Epoch) -> Result<Vec<u8>, CheckpointError>;
    /// Makes the checkpoints of these records' epochs the first ones of a job of another name. The records say where the regions stand in that
    /// job's topics.
    fn clone_to(&self, new_job: &str, records: &BTreeMap<RegionId, EpochRecord>) -> Result<Vec<CheckpointInfo>, CheckpointError>;
    /// Whether nothing is in the way of that; asked before it.
    fn check_clone(&self, new_job: &str, epochs: &BTreeMap<RegionId, Epoch>) -> Result<(), CheckpointError>;
}

/// What was found in one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub manifest: String,
    /// None: its manifest can't be read.
    pub epoch: Option<Epoch>,
    pub files: usize,
    pub bytes: u64,
    /// Empty: it can be restored. Else each with the name of its file.
    pub problems: Vec<String>,
}

impl From<Verification> for Verified {
    fn from(verification: Verification) -> Verified {
        let of_files =
            verification.files.iter().filter_map(|file| file.problem.as_ref().map(|problem| format!("{}: {problem}", file.object)));
        Verified {
            epoch: verification.info.as_ref().map(|info| info.epoch),
            files: verification.files.len(),
            bytes: verification.files.iter().map(|file| file.bytes).sum(),
            problems: verification.problem.iter().cloned().chain(of_files).collect(),
            manifest: verification.manifest,
        }
    }
}

impl CheckpointAdmin for ObjectCheckpoints {
    fn regions(&self) -> Result<Vec<RegionId>, CheckpointError> {
        ObjectCheckpoints::regions(self)
    }
    fn list(&self, region: RegionId) -> Result<Vec<CheckpointInfo>, CheckpointError> {
        CheckpointStore::list(self, region)
    }
    fn verify(&self, region: RegionId) -> Result<Vec<Verified>, CheckpointError> {
        Ok(ObjectCheckpoints::verify(self, region)?.into_iter().map(Verified::from).collect())
    }
    fn pin(&self, region: RegionId, epoch: Epoch) -> Result<(), CheckpointError> {
        ObjectCheckpoints::pin(self, region, epoch).map(drop)
    }
    fn unpin(&self, region: RegionId, epoch: Epoch) -> Result<(), CheckpointError> {
        ObjectCheckpoints::unpin(self, region, epoch)
    }
    fn collect_garbage(&self, region: RegionId, grace: Option<Duration>) -> Result<u64, CheckpointError> {
        ObjectCheckpoints::collect_garbage(self, region, grace, &mut || true)
    }
    fn record(&self, region: RegionId, epoch: Epoch) -> Result<Vec<u8>, CheckpointError> {
        ObjectCheckpoints::record(self, region, epoch)
    }
    fn clone_to(&self, new_job: &str, records: &BTreeMap<RegionId, EpochRecord>) -> Result<Vec<CheckpointInfo>, CheckpointError> {
        ObjectCheckpoints::clone_to(self, new_job, records)
    }
    fn check_clone(&self, new_job: &str, epochs: &BTreeMap<RegionId, Epoch>) -> Result<(), CheckpointError> {
        ObjectCheckpoints::check_clone(self, new_job, epochs)
    }
}

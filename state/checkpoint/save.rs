//! Saving a checkpoint: upload what no restorable checkpoint names yet, then the manifest; or the local folder.
//!
//! ```text
//!   files of the folder, hashed
//!      │  list of the region: which files are there, which manifest is the newest usable one
//!      ├─► content that it names, or that this process uploaded less than the grace ago for a checkpoint that was interrupted, and that is there
//!      │   with its size: used again
//!      └─► the rest: uploaded, several at once
//!   manifest: written if nothing bears its name (K-1: only now)
//! ```
//!
//! The list is asked for each time: what is believed to be in the store and is not would make a manifest that cannot be restored.

use crate::breaker::Access;
use crate::error::{Failure, StoreError};
use crate::files::FoundFile;
use crate::listing::Listing;
use crate::manifest::{Manifest, ManifestFile};
use crate::metrics;
use crate::names::{Folder, file_object};
use crate::remote::Created;
use crate::store::{ObjectCheckpoints, Shared, now_ms};
use crate::transfer::upload;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use streamshield_core::ids::RegionId;
use streamshield_core::ports::checkpoint::{CheckpointError, CheckpointErrorKind, CheckpointRequest, Durability, Saved};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Files to be uploaded, with the names of their objects.
type Missing = Vec<(String, FoundFile)>;

/// A checkpoint that lies in the store now.
pub(crate) struct Uploaded {
    pub manifest: Arc<Manifest>,
    pub bytes_uploaded: u64,
}

impl ObjectCheckpoints {
    pub(crate) fn save_checkpoint(&self, request: &CheckpointRequest) -> Result<Saved, CheckpointError> {
        let begin = Instant::now();
        let shared = &self.shared;
        shared.writes_as(request.incarnation);
        let state = shared.region(request.region);
        let _upkeep = state.upkeep.lock();
        let files = match &request.directory {
            Some(folder) => shared.hashes.examine(folder)?,
            None => Vec::new(),
        };
        let named = files.iter().map(|file| ManifestFile {
            name: file.name.clone(),
            size: file.size,
            checksum: file.hash,
            object: file_object(request.incarnation, file.hash, &file.name),
        });
        let manifest = Manifest::new(shared.layout.job(), request, now_ms(), named.collect());
        let saved = |manifest: &Manifest, durability, bytes_uploaded| {
            let saved = Saved {
                durability,
                manifest: manifest.name().to_string(),
                files: manifest.files.len(),
                bytes: manifest.bytes(),
                bytes_uploaded,
                seconds: begin.elapsed().as_secs_f64(),
            };
            metrics::saved(request.region, &saved, manifest.created_ms);
            saved
        };
        let problem = if shared.remote.permits() {
            match self.block_on(shared.upload(manifest.clone(), &files)) {
                Ok(uploaded) => return Ok(saved(&uploaded.manifest, Durability::Remote, uploaded.bytes_uploaded)),
                // Files that cannot be read cannot be linked either.
                Err(error) if error.failure == Failure::Disk => return Err(error.into()),
                Err(error) => {
                    metrics::upload_failed();
                    error
                }
            }
        } else {
            StoreError::new(Failure::Away, "the checkpoint store is away")
        };
        match &shared.local {
            Some(local) => match local.save(&manifest, &files) {
                Ok(()) => {
                    tracing::info!(region = %request.region, epoch = request.epoch.0, %problem, "checkpoint saved in the local folder");
                    metrics::local_waiting(request.region, local.count(request.region)?);
                    Ok(saved(&manifest, Durability::Local, 0))
                }
                Err(error) => {
                    let message = format!("{problem}; and the local folder: {error}");
                    Err(CheckpointError { kind: CheckpointErrorKind::Retry, message })
                }
            },
            None => Err(problem.into()),
        }
    }
}

impl Shared {
    /// Uploads a checkpoint, bounded as a whole: to wait for the bandwidth is no sign of a store that is away.
    pub(crate) async fn upload(&self, manifest: Manifest, files: &[FoundFile]) -> Result<Uploaded, StoreError> {
        let (region, epoch, begin) = (manifest.region, manifest.epoch, Instant::now());
        let mut limit = self.config.save_timeout;
        let ended = match timeout(limit, self.name_files(manifest, files)).await {
            Ok(named) => {
                let (manifest, missing) = named?;
                let bytes = missing.iter().map(|(_, file)| file.size).sum();
                limit = self.config.upload_time_max(bytes);
                timeout(limit.saturating_sub(begin.elapsed()), self.upload_files_and_manifest(manifest, missing, bytes)).await
            }
            Err(elapsed) => Err(elapsed),
        };
        ended.unwrap_or_else(|_| {
            self.remote.gave_up(Access::Write);
            let message = format!("the upload of epoch {epoch} of region {region} took longer than {limit:?}");
            Err(StoreError::new(Failure::TimedOut, message))
        })
    }

    /// The manifest with the names under which its files lie in the store, and those that do not yet.
    async fn name_files(&self, mut manifest: Manifest, files: &[FoundFile]) -> Result<(Manifest, Missing), StoreError> {
        let known = if files.is_empty() { BTreeMap::new() } else { self.files_in_store(manifest.region).await? };
        let mut missing = Vec::new();
        for (named, file) in manifest.files.iter_mut().zip(files) {
            match known.get(&(file.hash, file.size)) {
                Some(object) => named.object.clone_from(object),
                None => missing.push((named.object.clone(), file.clone())),
            }
        }
        Ok((manifest, missing))
    }

    async fn upload_files_and_manifest(&self, manifest: Manifest, missing: Missing, bytes_uploaded: u64) -> Result<Uploaded, StoreError> {
        let region = manifest.region;
        self.upload_files(region, missing).await?;
        let manifest = self.write_manifest(manifest).await?;
        // From here on the manifest says what is there.
        self.region(region).uploaded.lock().clear();
        Ok(Uploaded { manifest, bytes_uploaded })
    }

    /// By content: files that may be named again, because they are there now and stay there.
    async fn files_in_store(&self, region: RegionId) -> Result<BTreeMap<(u128, u64), String>, StoreError> {
        let listing = Listing::of_region(&self.remote, &self.layout, region).await?;
        self.forget_old_uploads(region, &listing).await?;
        let mut known = self.region(region).uploaded.lock().clone();
        for name in listing.manifests.keys().rev() {
            let Ok(manifest) = self.manifest(region, *name).await? else { continue };
            known.extend(manifest.files.iter().map(|file| ((file.checksum, file.size), file.object.clone())));
            break;
        }
        known.retain(|(_, size), object| listing.files.get(object).is_some_and(|stored| stored.size == *size));
        Ok(known)
    }

    /// A collector elsewhere takes files without a manifest for garbage once they are older than the grace: those are uploaded again.
    async fn forget_old_uploads(&self, region: RegionId, listing: &Listing) -> Result<(), StoreError> {
        let (state, grace) = (self.region(region), self.config.gc_grace);
        if grace.is_zero() || state.uploaded.lock().is_empty() {
            return Ok(());
        }
        let now_ms = self.store_now(listing, grace).await?;
        let grace_ms = i64::try_from(grace.as_millis()).unwrap_or(i64::MAX);
        state.uploaded.lock().retain(|_, object| {
            listing.files.get(object.as_str()).is_some_and(|stored| now_ms.saturating_sub(stored.modified_ms) < grace_ms)
        });
        Ok(())
    }

    async fn upload_files(&self, region: RegionId, missing: Missing) -> Result<(), StoreError> {
        let state = self.region(region);
        let mut under_way = JoinSet::new();
        for (object, file) in missing {
            while under_way.len() >= self.config.upload_concurrency {
                note_uploaded(&state, under_way.join_next().await)?;
            }
            let (remote, path) = (self.remote.clone(), self.layout.object(region, Folder::Files, &object));
            under_way.spawn(async move { upload(&remote, &path, &file).await.map(|()| (object, file)) });
        }
        while !under_way.is_empty() {
            note_uploaded(&state, under_way.join_next().await)?;
        }
        Ok(())
    }

    /// Writes the manifest; one of the same epoch by the same writer, whose answer was lost, is as good.
    async fn write_manifest(&self, manifest: Manifest) -> Result<Arc<Manifest>, StoreError> {
        let (region, name) = (manifest.region, manifest.name());
        let bytes = Bytes::from(manifest.encode());
        let manifest = match self.remote.create(&self.layout.manifest(region, name), bytes).await? {
            Created::Ours => manifest,
            Created::Other(found) => {
                let found = Manifest::decode(&found, self.layout.job(), region, name)?;
                if found.plan() != manifest.plan() || found.positions != manifest.positions {
                    return Err(StoreError::damaged(format!("{name}: another checkpoint lies under this name")));
                }
                found
            }
        };
        let manifest = Arc::new(manifest);
        self.remember(region, manifest.clone());
        Ok(manifest)
    }
}

type UploadEnd = Option<Result<Result<(String, FoundFile), StoreError>, tokio::task::JoinError>>;

fn note_uploaded(state: &crate::store::RegionState, end: UploadEnd) -> Result<(), StoreError> {
    if let Some(end) = end {
        let (object, file) = end.expect("an upload does not panic")?;
        state.uploaded.lock().insert((file.hash, file.size), object);
    }
    Ok(())
}

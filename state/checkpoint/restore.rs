//! Fetching a checkpoint: the newest that is whole.
//!
//! What is fetched lands beside the target and is renamed when all checksums are right, so a folder that is there is complete. No fsync: after a
//! power failure it is fetched again. Checkpoints in the local folder of this machine count like those in the store; for the same epoch the
//! local one is taken, it is faster.
//!
//! On failure: damaged, truncated or missing → refused by name, the next older one. The store away in the middle → only local ones are left to try; if
//! there is none the caller tries again later. Whoever restores compares `changelog_from` with where the log begins, in any case.

use crate::error::{Failure, StoreError};
use crate::listing::Listing;
use crate::local::create_private;
use crate::manifest::Manifest;
use crate::metrics;
use crate::names::{Folder, ManifestName};
use crate::store::Shared;
use crate::transfer::download;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use streamshield_core::ids::{PlanFingerprint, RegionId};
use streamshield_core::ports::checkpoint::{Durability, Restored};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

/// Files under way at once; ranges under way are bounded by permits.
const FILES_AT_ONCE_MAX: usize = 16;

struct Candidate {
    name: ManifestName,
    durability: Durability,
    pinned: bool,
}

impl Shared {
    pub(crate) async fn restore(
        self: &Arc<Self>,
        region: RegionId,
        plan: PlanFingerprint,
        directory: &Path,
    ) -> Result<Option<Restored>, StoreError> {
        if directory.exists() {
            let error = std::io::Error::other("it is there already");
            return Err(StoreError::disk("restore into", directory, &error));
        }
        let part = part_of(directory);
        let limit = self.config.restore_timeout;
        let result = match timeout(limit, self.restore_newest(region, plan, directory, &part)).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::new(Failure::TimedOut, format!("the restore of region {region} took longer than {limit:?}"))),
        };
        // Whatever the end, the next attempt begins anew.
        let _ = std::fs::remove_dir_all(&part);
        if let Ok(Some(restored)) = &result {
            metrics::restored(restored);
            tracing::info!(
                %region,
                epoch = restored.info.epoch.0,
                bytes = restored.bytes_fetched,
                seconds = restored.seconds,
                megabytes_per_second = restored.bytes_fetched as f64 / 1e6 / restored.seconds.max(1e-6),
                refused = restored.refused.len(),
                "checkpoint restored"
            );
        }
        result
    }

    async fn restore_newest(
        self: &Arc<Self>,
        region: RegionId,
        plan: PlanFingerprint,
        directory: &Path,
        part: &Path,
    ) -> Result<Option<Restored>, StoreError> {
        let begin = Instant::now();
        let mut away = None;
        let mut refused = Vec::new();
        let listing = Listing::of_checkpoints(&self.remote, &self.layout, region).await.unwrap_or_else(|error| {
            away = Some(error);
            Listing::default()
        });
        for candidate in self.candidates(region, &listing)? {
            if candidate.durability == Durability::Remote && away.is_some() {
                continue;
            }
            match self.fetch(region, plan, &candidate, part).await {
                Ok(None) => {}
                Ok(Some((manifest, bytes_fetched))) => {
                    if !manifest.files.is_empty() {
                        std::fs::rename(part, directory).map_err(|error| StoreError::disk("rename", part, &error))?;
                    }
                    refused.extend(away.map(|error| format!("the checkpoint store is away: {error}")));
                    return Ok(Some(Restored {
                        info: manifest.info(candidate.durability, candidate.pinned),
                        record: manifest.record(),
                        refused,
                        bytes_fetched,
                        seconds: begin.elapsed().as_secs_f64(),
                    }));
                }
                Err(error) if error.failure == Failure::Damaged || candidate.durability == Durability::Local => {
                    tracing::warn!(%region, checkpoint = %candidate.name, %error, "a checkpoint is refused");
                    metrics::refused();
                    refused.push(format!("{}: {error}", candidate.name));
                }
                Err(error) if error.failure == Failure::Disk => return Err(error),
                Err(error) => away = Some(error),
            }
        }
        match away {
            Some(error) => Err(error),
            None => {
                for reason in &refused {
                    tracing::error!(%region, reason, "no checkpoint of the region can be restored");
                }
                Ok(None)
            }
        }
    }

    /// The newest first.
    fn candidates(&self, region: RegionId, listing: &Listing) -> Result<Vec<Candidate>, StoreError> {
        let remote = listing.manifests.keys().map(|name| Candidate {
            name: *name,
            durability: Durability::Remote,
            pinned: listing.pins.contains(name),
        });
        let mut candidates: Vec<Candidate> = remote.collect();
        if let Some(local) = &self.local {
            let local = local.list(region)?.into_iter().map(|manifest| manifest.name());
            candidates.extend(local.map(|name| Candidate { name, durability: Durability::Local, pinned: false }));
        }
        candidates.sort_by_key(|candidate| (candidate.name.epoch, candidate.durability == Durability::Local, candidate.name.incarnation));
        candidates.reverse();
        Ok(candidates)
    }

    /// None: it is of another plan, or a local one that is gone meanwhile. A remote one that is gone is an error like one that is damaged.
    async fn fetch(
        self: &Arc<Self>,
        region: RegionId,
        plan: PlanFingerprint,
        candidate: &Candidate,
        part: &Path,
    ) -> Result<Option<(Manifest, u64)>, StoreError> {
        if part.exists() {
            std::fs::remove_dir_all(part).map_err(|error| StoreError::disk("remove", part, &error))?;
        }
        if candidate.durability == Durability::Local {
            let (shared, name, part) = (self.clone(), candidate.name, part.to_owned());
            let copy = move || shared.copy_local(region, plan, name, &part);
            return spawn_blocking(copy).await.expect("copying does not panic");
        }
        // Not from memory: what counts is what lies there.
        let manifest = self.read_manifest(region, candidate.name).await??;
        if manifest.plan() != plan {
            return Ok(None);
        }
        create_private(part)?;
        let bytes = self.fetch_files(region, &manifest, Some(part)).await?;
        Ok(Some((Manifest::clone(&manifest), bytes)))
    }

    fn copy_local(
        &self,
        region: RegionId,
        plan: PlanFingerprint,
        name: ManifestName,
        part: &Path,
    ) -> Result<Option<(Manifest, u64)>, StoreError> {
        let Some(local) = &self.local else { return Ok(None) };
        let Some(held) = local.hold(region, name)? else { return Ok(None) };
        if held.manifest.plan() != plan {
            return Ok(None);
        }
        create_private(part)?;
        let bytes = held.copy_to(part)?;
        Ok(Some((held.manifest.clone(), bytes)))
    }

    /// All files of a manifest, checked; into a folder if there is one.
    async fn fetch_files(&self, region: RegionId, manifest: &Manifest, part: Option<&Path>) -> Result<u64, StoreError> {
        let mut under_way = JoinSet::new();
        let fetched = self.fetch_into(region, manifest, part, &mut under_way).await;
        // After an error nobody makes another file in the folder, which is removed before the next older checkpoint is fetched.
        under_way.shutdown().await;
        fetched
    }

    async fn fetch_into(
        &self,
        region: RegionId,
        manifest: &Manifest,
        part: Option<&Path>,
        under_way: &mut JoinSet<Result<u64, StoreError>>,
    ) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for file in &manifest.files {
            if under_way.len() >= FILES_AT_ONCE_MAX
                && let Some(done) = under_way.join_next().await
            {
                bytes += done.expect("a download does not panic")?;
            }
            let (remote, path) = (self.remote.clone(), self.layout.object(region, Folder::Files, &file.object));
            let (file, target) = (file.clone(), part.map(|part| part.join(&file.name)));
            under_way.spawn(async move { download(&remote, &path, &file, target).await });
        }
        while let Some(done) = under_way.join_next().await {
            bytes += done.expect("a download does not panic")?;
        }
        Ok(bytes)
    }
}

/// Beside the target, so that the rename stays on one disk.
fn part_of(directory: &Path) -> PathBuf {
    let mut name = directory.file_name().unwrap_or_default().to_owned();
    name.push(".fetching");
    directory.with_file_name(name)
}

//! What people do with checkpoints: list regions, verify, pin, collect, start a new job from them.
//!
//! These calls are made by the command line, beside a job that may be running. What they delete is marked and waits like everything else; what they
//! pin is checked against marks whose grace may be over.

use crate::error::{Failure, StoreError};
use crate::gc::Mark;
use crate::listing::Listing;
use crate::maintain::Collect;
use crate::manifest::{Manifest, ManifestFile};
use crate::names::{Folder, Layout, ManifestName, is_plain, parse_region_folder};
use crate::remote::Created;
use crate::store::{ObjectCheckpoints, Shared};
use crate::transfer::download;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, Incarnation, RegionId};
use streamshield_core::ports::checkpoint::{CheckpointError, CheckpointErrorKind, CheckpointInfo, Durability};

/// Files verified at once; each fetches ranges as permits allow.
const VERIFIED_AT_ONCE: usize = 8;

/// One file of a checkpoint, read and hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileCheck {
    pub name: String,
    /// Its name in the `files` folder of the region.
    pub object: String,
    pub bytes: u64,
    /// None: it is what the manifest says.
    pub problem: Option<String>,
}

/// One checkpoint, verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Verification {
    pub manifest: String,
    /// None: the manifest itself cannot be used, see `problem`.
    pub info: Option<CheckpointInfo>,
    pub problem: Option<String>,
    pub files: Vec<FileCheck>,
}

impl Verification {
    /// Whether it can be restored.
    pub fn is_whole(&self) -> bool {
        self.problem.is_none() && self.files.iter().all(|file| file.problem.is_none())
    }
}

fn refused(message: String) -> CheckpointError {
    CheckpointError { kind: CheckpointErrorKind::Fatal, message }
}

impl ObjectCheckpoints {
    /// All regions of the job that have anything in the store.
    pub fn regions(&self) -> Result<Vec<RegionId>, CheckpointError> {
        let folders = self.block_on(self.shared.remote.folders(self.shared.layout.job_root()))?;
        let mut regions: Vec<RegionId> = folders.iter().filter_map(|name| parse_region_folder(name)).collect();
        regions.sort();
        Ok(regions)
    }

    /// Reads every file of every checkpoint of a region and compares it with what its manifest says. What garbage collection deletes meanwhile is left out.
    pub fn verify(&self, region: RegionId) -> Result<Vec<Verification>, CheckpointError> {
        let shared = &self.shared;
        Ok(self.block_on(async {
            let listing = Listing::of_checkpoints(&shared.remote, &shared.layout, region).await?;
            // A file that several checkpoints name is read once.
            let mut known = BTreeMap::new();
            let mut verified = Vec::new();
            for name in listing.manifests.keys() {
                let pinned = listing.pins.contains(name);
                let verification = shared.verify_one(region, *name, pinned, &mut known).await?;
                // A manifest is deleted before its files.
                let is_gone = !verification.is_whole()
                    && !Listing::of_checkpoints(&shared.remote, &shared.layout, region).await?.manifests.contains_key(name);
                if !is_gone {
                    verified.push(verification);
                }
            }
            Ok::<_, StoreError>(verified)
        })?)
    }

    /// Keeps a checkpoint until it is unpinned, whatever retention says. Its manifest's name is returned.
    pub fn pin(&self, region: RegionId, epoch: Epoch) -> Result<String, CheckpointError> {
        let shared = &self.shared;
        let name = self.block_on(shared.of_epoch(region, epoch))?.ok_or_else(|| no_such(region, epoch))?.name();
        let pin = shared.layout.object(region, Folder::Pins, &name.to_string());
        self.block_on(async {
            // A pin that is there keeps it, whatever is marked.
            let listing = Listing::of_checkpoints(&shared.remote, &shared.layout, region).await?;
            if listing.pins.contains(&name) && listing.manifests.contains_key(&name) {
                return Ok(Ok(name.to_string()));
            }
            shared.remote.put(&pin, Bytes::from_static(b"")).await?;
            let in_time = shared.is_pinned_in_time(region, name).await;
            if !matches!(in_time, Ok(true)) {
                let taken_back = shared.remote.delete(&pin).await;
                in_time.and(taken_back)?;
                return Ok(Err(refused(format!(
                    "epoch {epoch} of region {region} is about to be deleted by garbage collection: pin a newer one"
                ))));
            }
            Ok::<_, StoreError>(Ok(name.to_string()))
        })?
    }

    /// Retention decides again.
    pub fn unpin(&self, region: RegionId, epoch: Epoch) -> Result<(), CheckpointError> {
        let shared = &self.shared;
        let listing = self.block_on(Listing::of_checkpoints(&shared.remote, &shared.layout, region))?;
        let pins: Vec<_> = listing.pins.iter().filter(|name| name.epoch == epoch).collect();
        if pins.is_empty() {
            return Err(refused(format!("epoch {epoch} of region {region} is not pinned")));
        }
        for name in pins {
            self.block_on(shared.remote.delete(&shared.layout.object(region, Folder::Pins, &name.to_string())))?;
        }
        Ok(())
    }

    /// One round of garbage collection, now and whoever owns the region: marks what is needless and deletes what was marked longer ago than the
    /// grace (that of the configuration, if none is given). A grace of zero is for jobs that do not run. Returns the number of deleted objects.
    pub fn collect_garbage(
        &self,
        region: RegionId,
        grace: Option<Duration>,
        still_wanted: &mut dyn FnMut() -> bool,
    ) -> Result<u64, CheckpointError> {
        let state = self.shared.region(region);
        let _upkeep = state.upkeep.lock();
        let grace = grace.unwrap_or(self.shared.config.gc_grace);
        self.collect(region, Collect { own: Incarnation(u64::MAX), grace }, still_wanted)
    }

    /// The epoch record of a checkpoint, as it lies in the changelog.
    pub fn record(&self, region: RegionId, epoch: Epoch) -> Result<Vec<u8>, CheckpointError> {
        let manifest = self.block_on(self.shared.of_epoch(region, epoch))?.ok_or_else(|| no_such(region, epoch))?;
        Ok(manifest.record())
    }

    /// Copies one checkpoint per region to another job of the same store, which then starts from them: the one of its record's epoch. The records
    /// say where the regions stand in that job's topics. That job must not have other checkpoints of these regions: its epochs would go back. Who
    /// calls this has called [`check_clone`](Self::check_clone) before; what an earlier try has copied is left as it is.
    pub fn clone_to(&self, new_job: &str, records: &BTreeMap<RegionId, EpochRecord>) -> Result<Vec<CheckpointInfo>, CheckpointError> {
        let epochs: BTreeMap<RegionId, Epoch> = records.iter().map(|(region, record)| (*region, record.epoch)).collect();
        let manifests = self.to_be_cloned(new_job, &epochs)?;
        let (shared, target) = (&self.shared, self.shared.layout.of_job(new_job));
        let mut cloned = Vec::new();
        for manifest in manifests {
            let record = &records[&manifest.region];
            let manifest = self.block_on(shared.clone_one(&manifest, record, &target))?;
            cloned.push(manifest.info(Durability::Remote, false));
        }
        Ok(cloned)
    }

    /// Whether [`clone_to`](Self::clone_to) would find all that it needs, and nothing in its way but what an earlier try has left.
    pub fn check_clone(&self, new_job: &str, epochs: &BTreeMap<RegionId, Epoch>) -> Result<(), CheckpointError> {
        let shared = &self.shared;
        // What is marked, and as good as swept, may be gone before it is copied.
        for manifest in self.to_be_cloned(new_job, epochs)? {
            let (region, name) = (manifest.region, manifest.name());
            let listing = self.block_on(Listing::of_region(&shared.remote, &shared.layout, region))?;
            if !listing.pins.contains(&name) && self.block_on(shared.is_nearly_collected(region, name, &listing))? {
                return Err(refused(format!(
                    "epoch {} of region {region} is about to be deleted by garbage collection: restore to a newer one",
                    name.epoch
                )));
            }
        }
        Ok(())
    }

    /// The same checkpoints may lie there already, but not all of them.
    fn to_be_cloned(&self, new_job: &str, epochs: &BTreeMap<RegionId, Epoch>) -> Result<Vec<Arc<Manifest>>, CheckpointError> {
        let shared = &self.shared;
        if !is_plain(new_job) || new_job == shared.layout.job() {
            return Err(refused(format!("{new_job:?} is not the name of another job")));
        }
        let target = shared.layout.of_job(new_job);
        // All is checked before anything is copied.
        let (mut manifests, mut in_the_way) = (Vec::new(), Vec::new());
        for (region, epoch) in epochs {
            let manifest = self.block_on(shared.of_epoch(*region, *epoch))?.ok_or_else(|| no_such(*region, *epoch))?;
            let there = self.block_on(Listing::of_checkpoints(&shared.remote, &target, *region))?;
            if let Some(name) = there.manifests.keys().next_back() {
                let message =
                    format!("job {new_job:?} already has a checkpoint of region {region} (epoch {}): choose a new name", name.epoch);
                if *name != manifest.name() {
                    return Err(refused(message));
                }
                in_the_way.push(message);
            }
            manifests.push(manifest);
        }
        if in_the_way.len() == manifests.len()
            && let Some(message) = in_the_way.pop()
        {
            return Err(refused(message));
        }
        Ok(manifests)
    }
}

fn no_such(region: RegionId, epoch: Epoch) -> CheckpointError {
    refused(format!("region {region} has no usable remote checkpoint of epoch {epoch}: `checkpoints list` shows those it has"))
}

impl Shared {
    /// The usable checkpoint of an epoch, by its newest writer.
    async fn of_epoch(&self, region: RegionId, epoch: Epoch) -> Result<Option<Arc<Manifest>>, StoreError> {
        let listing = Listing::of_checkpoints(&self.remote, &self.layout, region).await?;
        for name in listing.manifests.keys().rev().filter(|name| name.epoch == epoch) {
            if let Ok(manifest) = self.read_manifest(region, *name).await? {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    /// Looks after a pin was written: somebody who read the pins before it was there may be deleting, possible only when a grace is (nearly) over.
    async fn is_pinned_in_time(&self, region: RegionId, name: ManifestName) -> Result<bool, StoreError> {
        let listing = Listing::of_region(&self.remote, &self.layout, region).await?;
        Ok(listing.manifests.contains_key(&name) && !self.is_nearly_collected(region, name, &listing).await?)
    }

    async fn is_nearly_collected(&self, region: RegionId, name: ManifestName, listing: &Listing) -> Result<bool, StoreError> {
        let half_grace_ms = i64::try_from(self.config.gc_grace.as_millis() / 2).unwrap_or(i64::MAX);
        let now_ms = self.store_now(listing, self.config.gc_grace).await?;
        for (mark, stored) in &listing.marks {
            let bytes = match self.remote.get(&self.layout.object(region, Folder::Marks, mark)).await {
                Ok(bytes) => bytes,
                Err(error) if error.failure == Failure::Missing => continue,
                Err(error) => return Err(error),
            };
            let names_it = Mark::decode(&bytes).is_some_and(|mark| mark.manifests.contains(&name.to_string()));
            if names_it && now_ms.saturating_sub(stored.modified_ms) >= half_grace_ms {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn verify_one(
        &self,
        region: RegionId,
        name: ManifestName,
        pinned: bool,
        known: &mut BTreeMap<ManifestFile, Option<String>>,
    ) -> Result<Verification, StoreError> {
        let manifest = match self.read_manifest(region, name).await? {
            Ok(manifest) => manifest,
            Err(unusable) => {
                let problem = Some(StoreError::from(unusable).message);
                return Ok(Verification { manifest: name.to_string(), info: None, problem, files: Vec::new() });
            }
        };
        let unknown = manifest.files.iter().filter(|file| !known.contains_key(*file)).cloned().collect::<Vec<_>>();
        let checks = futures::stream::iter(unknown).map(|file| async {
            let path = self.layout.object(region, Folder::Files, &file.object);
            match download(&self.remote, &path, &file, None).await {
                Ok(_) => Ok((file, None)),
                Err(error) if error.failure == Failure::Damaged => Ok((file, Some(error.message))),
                Err(error) => Err(error),
            }
        });
        known.extend(checks.buffer_unordered(VERIFIED_AT_ONCE).try_collect::<Vec<_>>().await?);
        let check = |file: &ManifestFile| FileCheck {
            name: file.name.clone(),
            object: file.object.clone(),
            bytes: file.size,
            problem: known.get(file).cloned().flatten(),
        };
        let files = manifest.files.iter().map(check).collect();
        Ok(Verification { manifest: name.to_string(), info: Some(manifest.info(Durability::Remote, pinned)), problem: None, files })
    }

    /// Files first, manifest last (K-1), as in a save.
    async fn clone_one(&self, manifest: &Manifest, record: &EpochRecord, target: &Layout) -> Result<Manifest, StoreError> {
        let region = manifest.region;
        let cloned = manifest.of_job(target.job(), record);
        let (path, bytes) = (target.manifest(region, cloned.name()), Bytes::from(cloned.encode()));
        // An earlier try has come this far.
        if self.remote.get(&path).await.is_ok_and(|found| found == bytes) {
            return Ok(cloned);
        }
        let copies = futures::stream::iter(manifest.files.clone()).map(|file| async move {
            let from = self.layout.object(region, Folder::Files, &file.object);
            let to = target.object(region, Folder::Files, &file.object);
            self.remote.copy(&from, &to, self.config.restore_timeout).await?;
            let size = self.remote.head(&to).await?.size;
            if size != file.size {
                return Err(StoreError::damaged(format!("file {} has {size} bytes after copying instead of {}", file.object, file.size)));
            }
            Ok(())
        });
        copies.buffer_unordered(self.config.upload_concurrency).try_collect::<Vec<()>>().await?;
        match self.remote.create(&path, bytes).await? {
            Created::Ours => Ok(cloned),
            Created::Other(_) => Err(StoreError::damaged(format!("{}: another checkpoint lies under this name", cloned.name()))),
        }
    }
}

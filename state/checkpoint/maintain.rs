//! One round of upkeep for a region: local checkpoints to the store, marks, deletions.
//!
//! Called by the region's owner every now and then; costs one list when there is nothing to do: manifests and marks never change, so each is read
//! once by a process, and the store's clock every ten minutes. While the store is away it does nothing, but for one attempt per backoff, which closes
//! the circuit breaker when the store is back.

use crate::error::{Failure, StoreError};
use crate::gc::{Mark, Sweep, View, split_key};
use crate::listing::Listing;
use crate::metrics;
use crate::names::{Folder, ManifestName, mark_object, writer_of, writer_of_manifest};
use crate::remote::Created;
use crate::retention::Retention;
use crate::store::{Manifests, ObjectCheckpoints, Shared, now_ms};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::ids::{Incarnation, RegionId};
use streamshield_core::mutants;
use streamshield_core::ports::checkpoint::CheckpointError;

/// The store's clock is measured again after this.
const CLOCK_AGE_MAX: Duration = Duration::from_secs(600);
/// The owner is asked again after so many deletions.
const DELETIONS_PER_QUESTION: usize = 64;

/// What a round of collection may do.
#[derive(Clone, Copy)]
pub(crate) struct Collect {
    pub own: Incarnation,
    pub grace: Duration,
}

impl ObjectCheckpoints {
    pub(crate) fn maintain_region(&self, region: RegionId, still_owner: &mut dyn FnMut() -> bool) -> Result<(), CheckpointError> {
        let shared = &self.shared;
        let state = shared.region(region);
        let _upkeep = state.upkeep.lock();
        if !shared.remote.permits() {
            return Ok(());
        }
        if !shared.remote.is_available() {
            // The one attempt of this backoff: only a write says that checkpoints can be saved again.
            self.block_on(shared.remote.put(&shared.layout.clock(), Bytes::from_static(b"")))?;
        }
        self.upload_newest_local(region)?;
        let own = shared.incarnation();
        if own.0 > 0 {
            self.collect(region, Collect { own, grace: shared.config.gc_grace }, still_owner)?;
        }
        Ok(())
    }

    /// Local checkpoints that the store has overtaken are dropped; the newest one goes there.
    fn upload_newest_local(&self, region: RegionId) -> Result<(), CheckpointError> {
        let shared = &self.shared;
        let Some(local) = &shared.local else { return Ok(()) };
        local.sweep(region, shared.config.save_timeout)?;
        let Some(newest) = local.list(region)?.pop() else {
            metrics::local_waiting(region, local.count(region)?);
            return Ok(());
        };
        let newest_remote = self.block_on(shared.newest_remote(region))?;
        let overtaken = match newest_remote {
            Some(remote) if remote.epoch >= newest.epoch => remote,
            _ => {
                let Some(held) = local.hold(region, newest.name())? else { return Ok(()) };
                match self.block_on(shared.upload(held.manifest.clone(), &held.files())) {
                    Ok(uploaded) => {
                        metrics::last_remote(region, uploaded.manifest.created_ms);
                        tracing::info!(%region, epoch = newest.epoch.0, "a local checkpoint was uploaded");
                    }
                    Err(error) => {
                        if error.is_store() {
                            metrics::upload_failed();
                        }
                        return Err(error.into());
                    }
                }
                newest.name()
            }
        };
        local.drop_up_to(region, overtaken)?;
        metrics::local_waiting(region, local.count(region)?);
        Ok(())
    }

    /// Marks, and sweeps the marks whose grace is over. Says how many objects were deleted. The caller holds the region.
    pub(crate) fn collect(
        &self,
        region: RegionId,
        collect: Collect,
        still_owner: &mut dyn FnMut() -> bool,
    ) -> Result<u64, CheckpointError> {
        let shared = &self.shared;
        let still_owner: &mut dyn FnMut() -> bool = &mut || still_owner() || mutants::is_on("gc-without-epoch-check");
        let look = self.block_on(shared.look(region))?;
        let now_ms = self.block_on(shared.store_now(&look.listing, collect.grace))?;
        let marks = self.block_on(shared.marks(region, &look.listing, collect.own))?;
        let marked: BTreeSet<String> = marks.values().flat_map(|mark| mark.manifests.iter().chain(&mark.objects)).cloned().collect();
        let view = look.view(shared, collect, now_ms);
        let mark = view.mark(&marked);
        let is_over = |name: &String| look.listing.marks.get(name).is_some_and(|stored| view.is_older_than_grace(stored.modified_ms));
        let over: Vec<(String, Arc<Mark>)> =
            marks.iter().filter(|(name, _)| is_over(name)).map(|(name, mark)| (name.clone(), mark.clone())).collect();
        if !mark.is_empty() && still_owner() {
            self.block_on(shared.write_mark(region, mark))?;
        }
        let mut deleted = 0;
        for (name, mark) in over {
            // Read again for each: the grace is over, and only what is needless *now* goes.
            let look = self.block_on(shared.look(region))?;
            let sweep = look.view(shared, collect, now_ms).sweep(&mark);
            if !self.delete(region, &sweep, still_owner, &mut deleted)? || !still_owner() {
                break;
            }
            self.block_on(shared.remote.delete(&shared.layout.object(region, Folder::Marks, &name)))?;
        }
        self.remove_staging_leftovers(region, collect, still_owner)?;
        metrics::deleted(deleted);
        Ok(deleted)
    }

    /// Manifests first: a torn deletion must not leave a manifest without its files. False: no longer the owner.
    fn delete(
        &self,
        region: RegionId,
        sweep: &Sweep,
        still_owner: &mut dyn FnMut() -> bool,
        deleted: &mut u64,
    ) -> Result<bool, CheckpointError> {
        let layout = &self.shared.layout;
        let manifests: Vec<_> = sweep.manifests.iter().map(|name| layout.manifest(region, *name)).collect();
        let mut objects = Vec::new();
        for key in &sweep.objects {
            let (folder, name) = split_key(key)?;
            objects.push(layout.object(region, folder, name));
        }
        for group in [manifests, objects] {
            for batch in group.chunks(DELETIONS_PER_QUESTION) {
                if !still_owner() {
                    tracing::info!(%region, "garbage collection stops: the region has another owner");
                    return Ok(false);
                }
                for path in batch {
                    self.block_on(self.shared.remote.delete(path))?;
                    tracing::debug!(%path, "deleted");
                    *deleted += 1;
                }
            }
        }
        Ok(true)
    }

    /// `file://` stages an object as `name#1` and leaves that behind when the process dies; its own lists hide them.
    fn remove_staging_leftovers(
        &self,
        region: RegionId,
        collect: Collect,
        still_owner: &mut dyn FnMut() -> bool,
    ) -> Result<(), CheckpointError> {
        let Some(root) = &self.shared.store_folder else { return Ok(()) };
        // Twice: marked and swept in one, because nothing ever refers to them.
        let age_min = collect.grace * 2;
        let mut old: Vec<PathBuf> = Vec::new();
        for folder in [Folder::Files, Folder::Manifests, Folder::Pins, Folder::Marks] {
            let Ok(entries) = std::fs::read_dir(root.join(self.shared.layout.folder(region, folder).as_ref())) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let Some((name, _)) = name.to_str().and_then(|name| name.rsplit_once('#')) else { continue };
                let writer = if matches!(folder, Folder::Files | Folder::Marks) { writer_of(name) } else { writer_of_manifest(name) };
                let modified = entry.metadata().and_then(|metadata| metadata.modified());
                let is_old = modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > age_min));
                if is_old && writer.is_some_and(|writer| writer <= collect.own) {
                    old.push(entry.path());
                }
            }
        }
        if !old.is_empty() && still_owner() {
            for path in old {
                std::fs::remove_file(&path).map_err(|error| StoreError::disk("remove", &path, &error))?;
            }
        }
        Ok(())
    }
}

/// A region as it was seen.
struct Look {
    listing: Listing,
    manifests: Manifests,
    protected: BTreeSet<String>,
}

impl Look {
    fn view<'a>(&'a self, shared: &Shared, collect: Collect, now_ms: i64) -> View<'a> {
        View {
            listing: &self.listing,
            manifests: &self.manifests,
            own: collect.own,
            retention: Retention { count: shared.config.retain_count, younger_than: shared.config.retain_for },
            grace: collect.grace,
            now_ms,
            protected: &self.protected,
        }
    }
}

impl Shared {
    async fn newest_remote(&self, region: RegionId) -> Result<Option<ManifestName>, StoreError> {
        let listing = Listing::of_checkpoints(&self.remote, &self.layout, region).await?;
        for name in listing.manifests.keys().rev() {
            if self.manifest(region, *name).await?.is_ok() {
                return Ok(Some(*name));
            }
        }
        Ok(None)
    }

    async fn look(&self, region: RegionId) -> Result<Look, StoreError> {
        let listing = Listing::of_region(&self.remote, &self.layout, region).await?;
        let manifests = self.manifests(region, &listing).await?;
        let protected = self.region(region).uploaded.lock().values().cloned().collect();
        Ok(Look { listing, manifests, protected })
    }

    /// Marks of a listing, from memory where they were read before. Forgets those that are gone.
    async fn marks(&self, region: RegionId, listing: &Listing, own: Incarnation) -> Result<BTreeMap<String, Arc<Mark>>, StoreError> {
        let state = self.region(region);
        state.marks.lock().retain(|name, _| listing.marks.contains_key(name));
        let mut marks = BTreeMap::new();
        for name in listing.marks.keys().filter(|name| writer_of(name).is_some_and(|writer| writer <= own)) {
            let known = state.marks.lock().get(name).cloned();
            if let Some(mark) = known {
                marks.insert(name.clone(), mark);
                continue;
            }
            match self.remote.get(&self.layout.object(region, Folder::Marks, name)).await {
                Ok(bytes) => {
                    if let Some(mark) = Mark::decode(&bytes).map(Arc::new) {
                        state.marks.lock().insert(name.clone(), mark.clone());
                        marks.insert(name.clone(), mark);
                    }
                }
                Err(error) if error.failure == Failure::Missing => {}
                Err(error) => return Err(error),
            }
        }
        Ok(marks)
    }

    async fn write_mark(&self, region: RegionId, mut mark: Mark) -> Result<(), StoreError> {
        mark.created_ms = now_ms();
        tracing::info!(%region, checkpoints = mark.manifests.len(), orphans = mark.objects.len(), "marked for garbage collection");
        let name = mark_object(mark.incarnation, mark.created_ms, rand::random());
        let created = self.remote.create(&self.layout.object(region, Folder::Marks, &name), Bytes::from(mark.encode())).await?;
        if created == Created::Ours {
            self.region(region).marks.lock().insert(name, Arc::new(mark));
        }
        Ok(())
    }

    /// The store's time, or earlier. Ages are differences of the store's own times, so that no worker's wrong clock can shorten a grace. It is
    /// measured by writing an object, once per ten minutes and process, and counted on from there. The newest time in the list says nothing of it:
    /// one object from the future would end every grace (K-2).
    pub(crate) async fn store_now(&self, listing: &Listing, grace: Duration) -> Result<i64, StoreError> {
        if grace.is_zero() || listing.manifests.is_empty() && listing.files.is_empty() && listing.marks.is_empty() {
            return Ok(listing.newest_ms());
        }
        let mut clock = self.clock.lock().await;
        let (measured, store_ms) = match *clock {
            Some((measured, store_ms)) if measured.elapsed() < CLOCK_AGE_MAX => (measured, store_ms),
            _ => {
                let path = self.layout.clock();
                self.remote.put(&path, Bytes::from_static(b"")).await?;
                let store_ms = self.remote.head(&path).await?.last_modified.timestamp_millis();
                let measured = Instant::now();
                *clock = Some((measured, store_ms));
                (measured, store_ms)
            }
        };
        let elapsed_ms = i64::try_from(measured.elapsed().as_millis()).unwrap_or(i64::MAX);
        Ok(store_ms.saturating_add(elapsed_ms))
    }
}

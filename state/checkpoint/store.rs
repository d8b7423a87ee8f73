//! [`ObjectCheckpoints`]: the port's blocking calls on top of a small runtime of its own.
//!
//! Calls come from plain threads, one at a time per region for what changes the region's folder (`save`, `maintain`); `list` and `restore`
//! wait for nobody.

use crate::config::StoreConfig;
use crate::error::{StoreError, StoreProblem};
use crate::files::HashMemory;
use crate::gc::Mark;
use crate::listing::Listing;
use crate::local::LocalFolder;
use crate::manifest::{Manifest, Unusable};
use crate::names::{Layout, ManifestName, is_plain};
use crate::open::{Opened, open};
use crate::remote::Remote;
use object_store::ObjectStore;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use streamshield_core::ids::{Incarnation, PlanFingerprint, RegionId};
use streamshield_core::ports::checkpoint::{
    CheckpointError, CheckpointInfo, CheckpointRequest, CheckpointStore, Durability, Restored, Saved,
};
use tokio::runtime::{Handle, Runtime};

/// Threads that serve requests of all regions; hashing and disk work is done on others.
const RUNTIME_THREADS: usize = 2;
/// Threads for hashing and disk work.
const RUNTIME_BLOCKING_THREADS_MAX: usize = 16;

/// Region checkpoints of one job in one store.
pub struct ObjectCheckpoints {
    pub(crate) shared: Arc<Shared>,
    /// Some until the drop.
    runtime: Option<Runtime>,
}

/// What tasks on the runtime use, too.
pub(crate) struct Shared {
    pub config: StoreConfig,
    pub layout: Layout,
    pub remote: Arc<Remote>,
    pub local: Option<LocalFolder>,
    /// The folder of a `file://` store.
    pub store_folder: Option<PathBuf>,
    pub hashes: HashMemory,
    /// The largest incarnation that this process wrote as; 0: none, so it deletes nothing.
    incarnation: AtomicU64,
    regions: Mutex<BTreeMap<RegionId, Arc<RegionState>>>,
    /// The store's time as measured once, with the moment of the measurement.
    pub clock: tokio::sync::Mutex<Option<(Instant, i64)>>,
}

/// What this process remembers of a region.
#[derive(Default)]
pub(crate) struct RegionState {
    /// Held while the region's folder is changed.
    pub upkeep: Mutex<()>,
    /// Manifests that were read; they never change.
    manifests: Mutex<BTreeMap<ManifestName, Arc<Manifest>>>,
    /// Marks of garbage collection that were read or written; they never change either.
    pub marks: Mutex<BTreeMap<String, Arc<Mark>>>,
    /// By content: files that this process uploaded for a checkpoint that is not finished. A torn upload goes on where it ended.
    pub uploaded: Mutex<BTreeMap<(u128, u64), String>>,
}

impl std::fmt::Debug for ObjectCheckpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectCheckpoints").field("job", &self.shared.layout.job()).field("config", &self.shared.config).finish()
    }
}

pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl ObjectCheckpoints {
    /// Opens the store that the configuration names. Asks it nothing yet: a job starts while its store is away. See [`ObjectCheckpoints::probe`].
    pub fn open(config: StoreConfig, job: &str) -> Result<ObjectCheckpoints, StoreProblem> {
        config.check()?;
        let runtime = start_runtime()?;
        let opened = open(&config, runtime.handle())?;
        ObjectCheckpoints::assemble(config, job, opened, runtime)
    }

    /// On a store that the caller made: for tests that wrap one.
    pub fn with_store(
        config: StoreConfig,
        job: &str,
        store: Arc<dyn ObjectStore>,
        prefix: &str,
    ) -> Result<ObjectCheckpoints, StoreProblem> {
        config.check()?;
        let prefix = object_store::path::Path::from(prefix);
        ObjectCheckpoints::assemble(config, job, Opened { store, prefix, folder: None }, start_runtime()?)
    }

    fn assemble(config: StoreConfig, job: &str, opened: Opened, runtime: Runtime) -> Result<ObjectCheckpoints, StoreProblem> {
        if !is_plain(job) {
            return Err(StoreProblem::new(
                format!("the job name {job:?} cannot be part of a path in the checkpoint store"),
                "letters, digits, '-', '_' and '.' can, up to 180 of them, not beginning with '.'",
                "give the job another name",
            ));
        }
        let local = match &config.local_fallback {
            Some(root) => Some(LocalFolder::open(root, job, config.local_count_max, config.local_bytes_max).map_err(|error| {
                StoreProblem::new(
                    "the local folder for checkpoints cannot be used",
                    error.message,
                    "name a folder that this process may write",
                )
            })?),
            None => None,
        };
        let shared = Shared {
            layout: Layout::new(&opened.prefix, job),
            remote: Arc::new(Remote::new(opened.store, &config)),
            local,
            store_folder: opened.folder,
            hashes: HashMemory::default(),
            incarnation: AtomicU64::new(0),
            regions: Mutex::default(),
            clock: tokio::sync::Mutex::default(),
            config,
        };
        Ok(ObjectCheckpoints { shared: Arc::new(shared), runtime: Some(runtime) })
    }

    /// Whether checkpoints go to the store at the moment (the circuit breaker is closed).
    pub fn is_available(&self) -> bool {
        self.shared.remote.is_available()
    }

    /// Runs on the own runtime, whoever calls.
    pub(crate) fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future + Send,
        F::Output: Send,
    {
        let runtime = self.runtime.as_ref().expect("taken by the drop only");
        if Handle::try_current().is_err() {
            return runtime.block_on(future);
        }
        // Called from a thread of somebody's runtime, which must not be blocked on directly.
        std::thread::scope(|scope| scope.spawn(|| runtime.block_on(future)).join().expect("a panic in there is one of ours"))
    }
}

impl Drop for ObjectCheckpoints {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Does not wait: nothing is under way that anybody still wants.
            runtime.shutdown_background();
        }
    }
}

fn start_runtime() -> Result<Runtime, StoreProblem> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .max_blocking_threads(RUNTIME_BLOCKING_THREADS_MAX)
        .thread_name("checkpoints")
        .enable_all()
        .build()
        .map_err(|error| {
            StoreProblem::new("cannot start the threads of the checkpoint store", error.to_string(), "raise the limit of threads")
        })
}

impl Shared {
    pub(crate) fn region(&self, region: RegionId) -> Arc<RegionState> {
        self.regions.lock().entry(region).or_default().clone()
    }

    /// As whom this process writes. `maintain` deletes nothing of a larger one, and nothing at all before it knows this.
    pub(crate) fn writes_as(&self, incarnation: Incarnation) {
        self.incarnation.fetch_max(incarnation.0, Ordering::Relaxed);
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Ordering::Relaxed))
    }

    /// A manifest, from memory if it was read before.
    pub(crate) async fn manifest(&self, region: RegionId, name: ManifestName) -> Result<Result<Arc<Manifest>, Unusable>, StoreError> {
        let state = self.region(region);
        if let Some(manifest) = state.manifests.lock().get(&name) {
            return Ok(Ok(manifest.clone()));
        }
        let read = self.read_manifest(region, name).await?;
        if let Ok(manifest) = &read {
            self.remember(region, manifest.clone());
        }
        Ok(read)
    }

    /// A manifest as it lies in the store now.
    pub(crate) async fn read_manifest(&self, region: RegionId, name: ManifestName) -> Result<Result<Arc<Manifest>, Unusable>, StoreError> {
        use crate::error::Failure;
        match self.remote.get(&self.layout.manifest(region, name)).await {
            Ok(bytes) => Ok(Manifest::decode(&bytes, self.layout.job(), region, name).map(Arc::new)),
            Err(error) if matches!(error.failure, Failure::Missing | Failure::Damaged) => {
                Ok(Err(Unusable::Damaged(format!("{name}: {error}"))))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn remember(&self, region: RegionId, manifest: Arc<Manifest>) {
        self.region(region).manifests.lock().insert(manifest.name(), manifest);
    }

    /// All manifests of a listing. Forgets those that are gone.
    pub(crate) async fn manifests(&self, region: RegionId, listing: &Listing) -> Result<Manifests, StoreError> {
        self.region(region).manifests.lock().retain(|name, _| listing.manifests.contains_key(name));
        let mut manifests = Manifests::new();
        for name in listing.manifests.keys() {
            manifests.insert(*name, self.manifest(region, *name).await?);
        }
        Ok(manifests)
    }
}

/// Manifests by age, with those that cannot be used.
pub(crate) type Manifests = BTreeMap<ManifestName, Result<Arc<Manifest>, Unusable>>;

impl CheckpointStore for ObjectCheckpoints {
    fn set_incarnation(&self, incarnation: Incarnation) {
        self.shared.writes_as(incarnation);
    }

    fn save(&self, request: &CheckpointRequest) -> Result<Saved, CheckpointError> {
        self.save_checkpoint(request)
    }

    fn restore(&self, region: RegionId, plan: PlanFingerprint, directory: &Path) -> Result<Option<Restored>, CheckpointError> {
        Ok(self.block_on(self.shared.restore(region, plan, directory))?)
    }

    fn list(&self, region: RegionId) -> Result<Vec<CheckpointInfo>, CheckpointError> {
        let shared = &self.shared;
        let (listing, manifests) = self.block_on(async {
            let listing = Listing::of_checkpoints(&shared.remote, &shared.layout, region).await?;
            let manifests = shared.manifests(region, &listing).await?;
            Ok::<_, StoreError>((listing, manifests))
        })?;
        let mut found = Vec::new();
        for (name, manifest) in &manifests {
            match manifest {
                Ok(manifest) => found.push(manifest.info(Durability::Remote, listing.pins.contains(name))),
                Err(unusable) => tracing::warn!(%region, ?unusable, "a checkpoint is left out of the list"),
            }
        }
        for manifest in shared.local.iter().map(|local| local.list(region)).collect::<Result<Vec<_>, _>>()?.concat() {
            // What lies in both places is remote.
            if !manifests.get(&manifest.name()).is_some_and(Result::is_ok) {
                found.push(manifest.info(Durability::Local, false));
            }
        }
        found.sort_by_key(|info| (info.epoch, info.incarnation));
        Ok(found)
    }

    fn maintain(&self, region: RegionId, still_owner: &mut dyn FnMut() -> bool) -> Result<(), CheckpointError> {
        self.maintain_region(region, still_owner)
    }
}

//! RocksDB behind the tables: one store per region, one memory budget for all of them.
//!
//! Layout: `<state_dir>/<stage>-<partition>/`, private to the user, and `<state_dir>/scratch/` for copies and downloads. A store is reused after a
//! crash if everything about it adds up, and otherwise deleted: it only ever holds what the log can rebuild.
//!
//! A region counts as open as long as its store is, be it that only a [`Copier`] still holds it.

mod copier;
mod digest;
mod directory;
mod store;
mod table_file;

pub(crate) use copier::Copier;
pub use digest::{StoreDigest, TableDigest, digests};
pub(crate) use store::{Store, StoreRange};
pub(crate) use table_file::TableFile;

use crate::error::{damaged, internal};
use crate::region::RocksRegion;
use crate::tables::{Table, TableSpec};
use directory::Found;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::Shared;
use streamshield_core::ids::RegionId;
use streamshield_core::ports::state::{OpenedState, StateBackend, StateError, StateErrorKind, WindowTableSpec};

/// Changes whenever keys or states are written differently.
const FORMAT_VERSION: u32 = 1;

/// Where the state lives and how much it may take, besides the tables themselves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Belongs to one job on one worker; nothing else lies in it.
    pub state_dir: PathBuf,
    /// Blocks, indexes and filters of all regions.
    pub block_cache_bytes: usize,
    /// Unflushed writes of all regions.
    pub write_buffer_bytes: usize,
    /// A flush with more bytes goes to disk as files of its own, when it is sealed, and not through the write buffers.
    pub batch_bytes_max: usize,
    /// File descriptors of one region's store.
    pub open_files_per_region: i32,
    /// Threads for compaction, of all regions; one more flushes.
    pub background_threads: i32,
    /// A store up to this size is read and checked as a whole when it is opened; a larger one as it is used.
    pub verified_bytes_on_open_max: u64,
}

impl Config {
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Config {
            state_dir: state_dir.into(),
            block_cache_bytes: 64 << 20,
            write_buffer_bytes: 64 << 20,
            batch_bytes_max: 8 << 20,
            open_files_per_region: 128,
            background_threads: 2,
            verified_bytes_on_open_max: 64 << 20,
        }
    }
}

/// The state of all regions of a worker.
pub struct RocksBackend {
    config: Config,
    shared: Shared,
    open_regions: Arc<Mutex<BTreeSet<RegionId>>>,
}

/// Says that a region is open, until it is dropped.
pub(crate) struct OpenRegion {
    region: RegionId,
    open_regions: Arc<Mutex<BTreeSet<RegionId>>>,
}

impl Drop for OpenRegion {
    fn drop(&mut self) {
        self.open_regions.lock().remove(&self.region);
    }
}

impl RocksBackend {
    pub fn new(config: Config) -> Result<Arc<RocksBackend>, StateError> {
        directory::create(&config.state_dir)?;
        let scratch = directory::scratch_path(&config.state_dir);
        directory::delete(&scratch)?;
        directory::create(&scratch)?;
        let shared = Shared::new(&config)?;
        Ok(Arc::new(RocksBackend { config, shared, open_regions: Arc::default() }))
    }

    fn claim(&self, region: RegionId) -> Result<OpenRegion, StateError> {
        if !self.open_regions.lock().insert(region) {
            return Err(internal(format!("the state of region {region} is open already")));
        }
        Ok(OpenRegion { region, open_regions: Arc::clone(&self.open_regions) })
    }

    /// Opens what is there; damage is an error of that kind.
    fn try_open(&self, claim: &Arc<OpenRegion>, path: &Path, tables: &[WindowTableSpec]) -> Result<Contents, StateError> {
        if directory::inspect(path)? == Found::Remains {
            return Err(damaged(format!("{} has data but no CURRENT file", path.display())));
        }
        let specs = tables.iter().map(TableSpec::new).collect::<Result<Vec<_>, _>>()?;
        directory::create(path)?;
        directory::make_private(path)?;
        let layout = layout_of(&specs);
        let format = format!("streamshield state {FORMAT_VERSION}, tables {layout:016x}");
        let store = Arc::new(Store::open(path, &self.shared, &self.config, &format, Arc::clone(claim))?);
        let record = store.record()?;
        let mut tables = Vec::with_capacity(specs.len());
        for spec in specs {
            let windows = store.windows(spec.operator)?;
            if record.is_none() && !windows.is_empty() {
                return Err(damaged("the state store has groups but no epoch record"));
            }
            tables.push(Table::open(spec, Arc::clone(&store), windows)?);
        }
        Ok(Contents { store, layout, tables, record })
    }
}

struct Contents {
    store: Arc<Store>,
    layout: u64,
    tables: Vec<Table>,
    record: Option<Vec<u8>>,
}

/// Names the layout of all tables, of whatever job.
fn layout_of(specs: &[TableSpec]) -> u64 {
    let mut specs: Vec<&TableSpec> = specs.iter().collect();
    specs.sort_by_key(|spec| spec.operator);
    let mut layout = String::new();
    specs.iter().for_each(|spec| spec.fingerprint(&mut layout));
    xxhash_rust::xxh3::xxh3_64(layout.as_bytes())
}

impl StateBackend for RocksBackend {
    fn open(&self, region: RegionId, tables: &[WindowTableSpec]) -> Result<OpenedState, StateError> {
        let mut operators = BTreeSet::new();
        if let Some(twice) = tables.iter().find(|spec| !operators.insert(spec.operator)) {
            return Err(internal(format!("region {region} has two tables of operator {}", twice.operator)));
        }
        let claim = Arc::new(self.claim(region)?);
        let path = directory::region_path(&self.config.state_dir, region);
        let (contents, rebuilt) = match self.try_open(&claim, &path, tables) {
            Err(error) if error.kind == StateErrorKind::Damaged => {
                tracing::warn!(%region, reason = %error.message, "state store is damaged: deleted, to be rebuilt from the log");
                metrics::counter!("streamshield_state_stores_rebuilt_total").increment(1);
                directory::delete(&path)?;
                (self.try_open(&claim, &path, tables)?, Some(error.message))
            }
            opened => (opened?, None),
        };
        let Contents { store, layout, tables, record } = contents;
        let state = Box::new(RocksRegion::new(region, tables, layout, store));
        Ok(OpenedState { state, record, rebuilt })
    }

    fn delete(&self, region: RegionId) -> Result<(), StateError> {
        let _claim = self.claim(region)?;
        directory::delete(&directory::region_path(&self.config.state_dir, region))
    }

    fn adopt(&self, region: RegionId, copy: &Path) -> Result<(), StateError> {
        let _claim = self.claim(region)?;
        if directory::inspect(copy)? != Found::Store {
            return Err(damaged(format!("{} holds no state store: there is no CURRENT file", copy.display())));
        }
        let path = directory::region_path(&self.config.state_dir, region);
        let scratch = directory::scratch_path(&self.config.state_dir);
        directory::replace(&path, copy, &scratch)?;
        directory::make_private(&path)
    }

    fn scratch(&self) -> PathBuf {
        directory::scratch_path(&self.config.state_dir)
    }
}

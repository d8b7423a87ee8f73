//! Tables, batches and stores for the tests.

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array};
use arrow_schema::{DataType, Field, FieldRef};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use streamshield_core::ids::{RegionId, StageId};
use streamshield_core::ports::state::{
    AggregateState, Merge, OpenedState, RegionState, StateBackend, Window, WindowTable, WindowTableSpec,
};
use streamshield_state::{Config, RocksBackend};
use tempfile::TempDir;

pub const REGION: RegionId = RegionId { stage: StageId(3), partition: 5 };
pub const OPERATOR: u16 = 1;

pub fn window(number: i64) -> Window {
    Window { end_ms: (number + 1) * 1000, start_ms: number * 1000 }
}

pub fn field(name: &str, data_type: DataType, nullable: bool) -> FieldRef {
    Arc::new(Field::new(name, data_type, nullable))
}

pub fn aggregate(merge: Merge, types: &[DataType]) -> AggregateState {
    let fields = types.iter().map(|data_type| field("state", data_type.clone(), true)).collect();
    AggregateState { fields, merge }
}

/// A count by one integer.
pub fn count_by_integer() -> WindowTableSpec {
    WindowTableSpec {
        operator: OPERATOR,
        keys: vec![field("key", DataType::Int64, false)],
        aggregates: vec![aggregate(Merge::Sum, &[DataType::Int64])],
    }
}

/// Where a test of thousands of openings does not wait for a disk, if there is such a place.
pub fn quick_directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder for temporary files")
}

pub fn config(directory: &Path) -> Config {
    Config { block_cache_bytes: 8 << 20, write_buffer_bytes: 4 << 20, ..Config::new(directory) }
}

pub fn open(directory: &Path, spec: &WindowTableSpec) -> OpenedState {
    let backend = RocksBackend::new(config(directory)).expect("the directory is writable");
    backend.open(REGION, std::slice::from_ref(spec)).expect("the store opens")
}

/// Another region that begins with a copy of this one's store, and the record in it.
pub fn standby_of(state: &dyn RegionState, directory: &Path, spec: &WindowTableSpec) -> (Box<dyn RegionState>, Option<Vec<u8>>) {
    let backend = RocksBackend::new(config(directory)).expect("the directory is writable");
    let copy = backend.scratch().join("copy");
    let record = state.copier().expect("has a store").copy_to(&copy).expect("is copied");
    backend.adopt(REGION, &copy).expect("is adopted");
    let opened = backend.open(REGION, std::slice::from_ref(spec)).expect("the store opens");
    assert_eq!((&opened.record, opened.rebuilt), (&record, None));
    (opened.state, record)
}

pub fn integers(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

/// Counts one for each key.
pub fn count(state: &mut dyn RegionState, window: Window, keys: impl IntoIterator<Item = i64>) {
    let keys = integers(keys);
    let ones = integers(vec![1; keys.len()]);
    state.table(OPERATOR).merge(window, &[keys], &[ones]).expect("the batch merges");
}

pub fn seal_and_apply(state: &mut dyn RegionState, record: &[u8]) {
    let flush = state.seal_flush().expect("seals");
    state.apply_flush(flush, record).expect("applies");
}

/// Drains one portion of counts, and whether it was the last.
pub fn drain_counts(table: &mut dyn WindowTable, window: Window, max_rows: usize) -> (Vec<(i64, i64)>, bool) {
    let drained = table.drain(window, max_rows).expect("drains");
    let keys = drained.keys[0].as_primitive::<Int64Type>().values().iter().copied();
    let counts = drained.states[0].as_primitive::<Int64Type>().values().iter().copied();
    (keys.zip(counts).collect(), drained.finished)
}

/// What a crash at this moment would leave: the files as they are, without what is in memory.
///
/// A moment it must be: when a compaction changes what belongs to the store meanwhile, the copy is made again.
pub fn crash_image(from: &Path, to: &Path) {
    loop {
        let before = listing(from);
        std::fs::create_dir_all(to).and_then(|()| std::fs::remove_dir_all(to)).expect("the target is writable");
        copy(from, to);
        if listing(from) == before {
            return;
        }
    }
}

/// The paths and sizes of all files.
pub fn listing(directory: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory).expect("the directory is readable").flatten() {
        match entry.metadata() {
            Ok(found) if found.is_dir() => files.extend(listing(&entry.path())),
            Ok(found) => drop(files.insert(entry.path(), found.len())),
            Err(_) => {}
        }
    }
    files
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the target is writable");
    for entry in std::fs::read_dir(from).expect("the source is readable") {
        let entry = entry.expect("the entry is readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("the entry has a type").is_dir() {
            copy(&entry.path(), &target);
        } else if entry.file_name() != "LOCK" {
            // A file that RocksDB deletes meanwhile changes the listing.
            let _ = std::fs::copy(entry.path(), target);
        }
    }
}

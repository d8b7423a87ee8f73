//! `bytes()` against the allocator. In a binary of its own, with one test: it counts every allocation of the process.

use arrow_array::{ArrayRef, Int64Array, StringArray};
use arrow_schema::{DataType, Field};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use streamshield_core::ids::{RegionId, StageId};
use streamshield_core::ports::state::{AggregateState, Merge, RegionState, StateBackend, Window, WindowTableSpec};
use streamshield_state::{Config, RocksBackend};

struct Counting;

static ALLOCATED: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn spec(key: DataType, state: DataType, merge: Merge) -> WindowTableSpec {
    let field = |name, data_type| Arc::new(Field::new(name, data_type, true));
    let aggregate = AggregateState { fields: vec![field("state", state)], merge };
    WindowTableSpec { operator: 1, keys: vec![field("key", key)], aggregates: vec![aggregate] }
}

fn integers(rows: std::ops::Range<i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(rows))
}

fn texts(rows: std::ops::Range<i64>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(rows.map(|row| format!("some text of row {row}"))))
}

fn assert_true(state: &dyn RegionState, before: isize, what: &str) {
    let actual = (ALLOCATED.load(Ordering::Relaxed) - before) as f64;
    assert_eq!(state.total_bytes(), state.bytes().total, "{what}");
    let claimed = state.bytes().total as f64;
    println!("{what}: claimed {claimed}, allocated {actual}");
    assert!((claimed - actual).abs() <= actual * 0.1 + 4096.0, "{what}: claimed {claimed}, allocated {actual}");
}

type Rows = fn(std::ops::Range<i64>) -> ArrayRef;

fn measure(name: &str, with_deltas: bool, spec: WindowTableSpec, keys: Rows, states: Rows) {
    let directory = tempfile::tempdir().expect("temp");
    let backend = RocksBackend::new(Config::new(directory.path())).expect("opens");
    let mut state = backend.open(RegionId { stage: StageId(0), partition: 0 }, &[spec]).expect("opens").state;
    let before = ALLOCATED.load(Ordering::Relaxed);
    if with_deltas {
        state.seal_delta().expect("begins to count");
    }
    let merge = |state: &mut dyn RegionState, number: i64, rows: std::ops::Range<i64>| {
        let window = Window { end_ms: number + 1000, start_ms: number };
        state.table(1).merge(window, &[keys(rows.clone())], &[states(rows)]).expect("merges");
    };
    for number in 0..300 {
        merge(state.as_mut(), number, 0..3);
    }
    assert_true(state.as_ref(), before, &format!("{name}, 300 windows of 3 groups"));
    for batch in 0..20 {
        merge(state.as_mut(), 0, batch * 15_000..(batch + 1) * 15_000);
    }
    assert_true(state.as_ref(), before, &format!("{name}, 300,000 groups"));
    let flush = state.seal_flush().expect("seals");
    state.apply_flush(flush, b"1").expect("applies");
    merge(state.as_mut(), 0, 0..100_000);
    if with_deltas {
        let delta = state.seal_delta().expect("seals");
        assert!(delta.bytes.len() > 300_000 * 18);
        drop(delta);
        merge(state.as_mut(), 0, 0..100_000);
    }
    state.evict(0).expect("evicts");
    assert_true(state.as_ref(), before, &format!("{name}, 100,000 groups after eviction"));
    let window = Window { end_ms: 1000, start_ms: 0 };
    drop(state.table(1).drain(window, 1000).expect("drains"));
    assert_true(state.as_ref(), before, &format!("{name}, in the middle of a drain"));
}

/// Two million groups in deltas: the tables stay empty, the store within its budgets.
fn measure_standby() {
    const GROUPS: i64 = 2_000_000;
    const STEP: i64 = 20_000;
    // Not a disk: its speed is not what is measured.
    let quick = || tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("temp");
    let (directory, active_directory) = (quick(), quick());
    let open = |directory: &std::path::Path| {
        let config = Config { block_cache_bytes: 8 << 20, write_buffer_bytes: 8 << 20, ..Config::new(directory) };
        let spec = [spec(DataType::Int64, DataType::Int64, Merge::Sum)];
        let region = RegionId { stage: StageId(0), partition: 0 };
        RocksBackend::new(config).and_then(|backend| backend.open(region, &spec)).expect("opens").state
    };
    let mut active = open(active_directory.path());
    let mut standby = open(directory.path());
    let mut before = None;
    let mut resident_before = 0;
    for first in (0..GROUPS).step_by(STEP as usize) {
        let rows = first..first + STEP;
        let window = Window { end_ms: first / 500_000 + 1000, start_ms: first / 500_000 };
        active.table(1).merge(window, &[integers(rows.clone())], &[integers(rows)]).expect("merges");
        let delta = active.seal_delta().expect("seals");
        // All that it keeps of the active's groups is in the store.
        let flush = active.seal_flush().expect("seals");
        active.apply_flush(flush, b"1").expect("applies");
        active.evict(0).expect("evicts");
        let (allocated, held) = (ALLOCATED.load(Ordering::Relaxed), standby.bytes().total as isize);
        assert_eq!(standby.apply_delta(&delta.bytes, b"1").expect("applies"), delta.digest);
        let kept = ALLOCATED.load(Ordering::Relaxed) - allocated;
        let claimed = standby.bytes().total as isize - held;
        assert!(kept - claimed < 8 << 10, "a delta left {kept} bytes allocated, claimed {claimed}");
        if first == GROUPS / 4 {
            (before, resident_before) = (Some(standby.bytes().total), resident_bytes());
        }
    }
    let (held, before) = (standby.bytes().total, before.expect("was measured"));
    let resident = resident_bytes();
    println!("standby: {before}, then {held} bytes in tables; resident {} MiB, then {} MiB", resident_before >> 20, resident >> 20);
    assert!(held < 16 << 10, "{held} bytes in the tables of a standby");
    assert!(resident < resident_before + (48 << 20), "grew from {resident_before} to {resident}");
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number") * 4096
}

#[test]
fn the_bytes_a_region_claims_are_those_it_has_allocated() {
    for with_deltas in [false, true] {
        let numbers = spec(DataType::Int64, DataType::Int64, Merge::Sum);
        measure("integers", with_deltas, numbers, integers, integers);
        measure("texts", with_deltas, spec(DataType::Utf8, DataType::Utf8, Merge::Min), texts, texts);
    }
    measure_standby();
}

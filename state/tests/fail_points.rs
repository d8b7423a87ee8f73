//! Where a flush or a delta may be interrupted. In a binary of its own: fail points are global.

use arrow_array::{ArrayRef, Int64Array};
use arrow_schema::{DataType, Field};
use std::path::Path;
use std::sync::Arc;
use streamshield_core::ids::{RegionId, StageId};
use streamshield_core::ports::state::{
    AggregateState, Delta, Merge, OpenedState, RegionState, StateBackend, StateErrorKind, Window, WindowTableSpec,
};
use streamshield_state::{Config, RocksBackend};

const WINDOW: Window = Window { end_ms: 1000, start_ms: 0 };

fn open(directory: &Path) -> OpenedState {
    let field = |name| Arc::new(Field::new(name, DataType::Int64, false));
    let aggregate = AggregateState { fields: vec![field("count")], merge: Merge::Sum };
    let spec = WindowTableSpec { operator: 1, keys: vec![field("key")], aggregates: vec![aggregate] };
    let backend = RocksBackend::new(Config::new(directory)).expect("the directory is writable");
    backend.open(RegionId { stage: StageId(0), partition: 0 }, &[spec]).expect("opens")
}

fn count_one(state: &mut dyn RegionState) {
    let ones: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    state.table(1).merge(WINDOW, &[Arc::clone(&ones)], &[ones]).expect("merges");
}

/// Flushes once with the fail point armed; what the next start finds.
fn record_after_failure_at(point: &str) -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().expect("temp");
    let mut state = open(directory.path()).state;
    count_one(state.as_mut());
    let flush = state.seal_flush().expect("seals");
    fail::cfg(point, "1*return").expect("arms");
    let error = state.apply_flush(flush, b"1").expect_err("the fail point fires");
    assert_eq!(error.kind, StateErrorKind::Io);
    // None after it is applied either: a gap would be silent loss.
    let next = state.seal_flush().expect("seals");
    assert!(state.apply_flush(next, b"2").is_err());
    drop(state);
    open(directory.path()).record
}

/// Applies a delta with the fail point armed; what the next start finds.
fn record_after_failed_delta_at(point: &str) -> Option<Vec<u8>> {
    let (directory, active_directory) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let mut active = open(active_directory.path()).state;
    count_one(active.as_mut());
    let deltas: Vec<Delta> = (0..2).map(|_| active.seal_delta().expect("seals")).collect();
    let mut standby = open(directory.path()).state;
    fail::cfg(point, "1*return").expect("arms");
    let error = standby.apply_delta(&deltas[0].bytes, b"1").expect_err("the fail point fires");
    assert_eq!(error.kind, StateErrorKind::Io);
    assert!(standby.apply_delta(&deltas[1].bytes, b"2").is_err());
    drop(standby);
    open(directory.path()).record
}

#[test]
fn a_failure_before_the_write_leaves_nothing_and_one_after_it_leaves_all() {
    let _scenario = fail::FailScenario::setup();
    assert_eq!(record_after_failure_at("state::apply_flush"), None);
    assert_eq!(record_after_failure_at("state::after_flush"), Some(b"1".to_vec()));
    assert_eq!(record_after_failed_delta_at("state::apply_delta"), None);
    assert_eq!(record_after_failed_delta_at("state::after_delta"), Some(b"1".to_vec()));
}

//! Restarts in the middle, flushes in order, what a directory may be.

use crate::fixtures::{OPERATOR, REGION, config, count, count_by_integer, crash_image, drain_counts, open, seal_and_apply, window};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use streamshield_core::ids::{RegionId, StageId};
use streamshield_core::ports::state::{StateBackend, StateErrorKind};
use streamshield_core::watermark::Watermark;
use streamshield_state::RocksBackend;

#[test]
fn a_restart_in_the_middle_of_a_drain_goes_on_behind_what_was_drained() {
    let directory = tempfile::tempdir().expect("temp");
    let spec = count_by_integer();
    let mut state = open(directory.path(), &spec).state;
    count(state.as_mut(), window(0), -500..500);
    count(state.as_mut(), window(1), 0..10);
    seal_and_apply(state.as_mut(), b"epoch 1");
    let (portion, finished) = drain_counts(state.table(OPERATOR), window(0), 300);
    assert_eq!((portion[0], portion.len(), finished), ((-500, 1), 300, false));
    seal_and_apply(state.as_mut(), b"epoch 2");
    // Drained, but its epoch is not committed: it comes again.
    drain_counts(state.table(OPERATOR), window(0), 200);
    drop(state.seal_flush().expect("seals"));
    drop(state);

    let opened = open(directory.path(), &spec);
    assert_eq!(opened.record.as_deref(), Some(&b"epoch 2"[..]));
    let mut state = opened.state;
    assert_eq!(state.table(OPERATOR).first_closed(Watermark(999)), Some(window(0)));
    let (portion, finished) = drain_counts(state.table(OPERATOR), window(0), 700);
    assert_eq!(portion, (-200..500).map(|key| (key, 1)).collect::<Vec<_>>());
    assert!(finished);
    assert_eq!(state.table(OPERATOR).first_closed(Watermark(1998)), None);
    assert_eq!(state.table(OPERATOR).first_closed(Watermark(1999)), Some(window(1)));
}

#[test]
fn a_crash_leaves_the_state_of_the_last_durable_flush() {
    let directory = tempfile::tempdir().expect("temp");
    let spec = count_by_integer();
    let mut state = open(directory.path(), &spec).state;
    count(state.as_mut(), window(0), 0..100);
    seal_and_apply(state.as_mut(), b"1");
    drop(state);
    let mut state = open(directory.path(), &spec).state;
    count(state.as_mut(), window(0), 50..150);
    seal_and_apply(state.as_mut(), b"2");
    let image = tempfile::tempdir().expect("temp");
    crash_image(directory.path(), image.path());

    let opened = open(image.path(), &spec);
    assert_eq!((opened.record.as_deref(), opened.rebuilt), (Some(&b"1"[..]), None));
    let mut after_crash = opened.state;
    let (portion, _) = drain_counts(after_crash.table(OPERATOR), window(0), 1000);
    assert_eq!(portion, (0..100).map(|key| (key, 1)).collect::<Vec<_>>());
}

#[test]
fn flushes_apply_in_the_order_of_sealing_only() {
    let directory = tempfile::tempdir().expect("temp");
    let mut state = open(directory.path(), &count_by_integer()).state;
    count(state.as_mut(), window(0), 0..10);
    let first = state.seal_flush().expect("seals");
    count(state.as_mut(), window(0), 5..15);
    let second = state.seal_flush().expect("seals");
    let error = state.apply_flush(second, b"2").expect_err("out of order");
    assert_eq!(error.kind, StateErrorKind::Internal);
    state.apply_flush(first, b"1").expect("in order");
}

#[test]
fn groups_of_a_sealed_flush_stay_in_memory_until_it_is_applied() {
    let directory = tempfile::tempdir().expect("temp");
    let mut state = open(directory.path(), &count_by_integer()).state;
    count(state.as_mut(), window(0), 0..1000);
    let flush = state.seal_flush().expect("seals");
    assert_eq!(state.bytes().dirty, 0);
    state.evict(0).expect("evicts");
    assert_eq!(state.table(OPERATOR).groups(), 1000);
    state.apply_flush(flush, b"1").expect("applies");
    count(state.as_mut(), window(0), 0..10);
    state.evict(0).expect("evicts");
    assert_eq!(state.table(OPERATOR).groups(), 10);
    count(state.as_mut(), window(0), 5..20);
    assert_eq!(state.table(OPERATOR).groups(), 20);
    let (portion, finished) = drain_counts(state.table(OPERATOR), window(0), 1000);
    let expected = |key| {
        if (5..10).contains(&key) {
            3
        } else if key < 20 {
            2
        } else {
            1
        }
    };
    assert_eq!(portion, (0..1000).map(|key| (key, expected(key))).collect::<Vec<_>>());
    assert!(finished);
}

#[test]
fn an_operator_without_a_table_is_an_error_and_no_panic() {
    let directory = tempfile::tempdir().expect("temp");
    let mut state = open(directory.path(), &count_by_integer()).state;
    let error = state.table(9).drain(window(0), 1).err().expect("no such table");
    assert_eq!(error.kind, StateErrorKind::Internal);
}

#[test]
fn a_region_is_open_once_and_deleted_when_closed() {
    let directory = tempfile::tempdir().expect("temp");
    let backend = RocksBackend::new(config(directory.path())).expect("opens");
    let spec = [count_by_integer()];
    let mut first = backend.open(REGION, &spec).expect("opens");
    assert_eq!(backend.open(REGION, &spec).err().map(|error| error.kind), Some(StateErrorKind::Internal));
    assert_eq!(backend.delete(REGION).err().map(|error| error.kind), Some(StateErrorKind::Internal));
    let other = RegionId { stage: StageId(3), partition: 6 };
    let second = backend.open(other, &spec).expect("another region opens beside it");
    count(first.state.as_mut(), window(0), 0..10);
    seal_and_apply(first.state.as_mut(), b"1");
    // Another process: the lock on the files holds, and nothing is deleted.
    let elsewhere = RocksBackend::new(config(directory.path())).expect("opens");
    assert_eq!(elsewhere.open(REGION, &spec).err().map(|error| error.kind), Some(StateErrorKind::Io));
    drop((first, second));
    assert!(backend.open(REGION, &spec).expect("opens").record.is_some());
    backend.delete(REGION).expect("is closed");
    assert!(!directory.path().join("3-5").exists());
    assert_eq!(backend.open(REGION, &spec).expect("opens").record, None);
}

#[test]
fn a_store_is_private_and_never_behind_a_link() {
    let directory = tempfile::tempdir().expect("temp");
    let state_dir = directory.path().join("state");
    drop(open(&state_dir, &count_by_integer()));
    for path in [state_dir.clone(), state_dir.join("3-5")] {
        let mode = std::fs::metadata(&path).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", path.display());
    }
    std::fs::rename(state_dir.join("3-5"), directory.path().join("elsewhere")).expect("moves");
    symlink(directory.path().join("elsewhere"), state_dir.join("3-5")).expect("links");
    let backend = RocksBackend::new(config(&state_dir)).expect("opens");
    assert_eq!(backend.open(REGION, &[count_by_integer()]).err().map(|error| error.kind), Some(StateErrorKind::Io));
    assert_eq!(backend.delete(REGION).err().map(|error| error.kind), Some(StateErrorKind::Io));
    assert!(directory.path().join("elsewhere").join("CURRENT").exists());
    symlink(&state_dir, directory.path().join("link")).expect("links");
    assert!(RocksBackend::new(config(&directory.path().join("link"))).is_err());
}

#[test]
fn a_large_flush_is_durable_with_all_that_came_before_and_removes_what_was_drained() {
    const LARGE: i64 = 200_000;
    let directory = tempfile::tempdir().expect("temp");
    let spec = count_by_integer();
    let mut state = open(directory.path(), &spec).state;
    count(state.as_mut(), window(0), 0..1000);
    count(state.as_mut(), window(1), 0..10);
    seal_and_apply(state.as_mut(), b"small");
    drain_counts(state.table(OPERATOR), window(0), 500);
    count(state.as_mut(), window(0), 0..100);
    count(state.as_mut(), window(0), 1000..LARGE);
    seal_and_apply(state.as_mut(), b"large");
    // No clean end: files that are ingested need none.
    let image = tempfile::tempdir().expect("temp");
    crash_image(directory.path(), image.path());
    let opened = open(image.path(), &spec);
    assert_eq!((opened.record.as_deref(), opened.rebuilt), (Some(&b"large"[..]), None));
    let mut after_crash = opened.state;
    let expected: Vec<(i64, i64)> = (0..100).chain(500..LARGE).map(|key| (key, 1)).collect();
    assert_eq!(drain_counts(after_crash.table(OPERATOR), window(0), usize::MAX), (expected.clone(), true));
    assert_eq!(drain_counts(after_crash.table(OPERATOR), window(1), usize::MAX).0.len(), 10);
    state.evict(0).expect("evicts");
    count(state.as_mut(), window(0), [0, 400, 600]);
    let (groups, _) = drain_counts(state.table(OPERATOR), window(0), usize::MAX);
    let again = |key| if [0, 600].contains(&key) { 2 } else { 1 };
    assert_eq!(groups, (0..100).chain([400]).chain(500..LARGE).map(|key| (key, again(key))).collect::<Vec<_>>());
    seal_and_apply(state.as_mut(), b"empty again");
    drop(state);
    let mut state = open(directory.path(), &spec).state;
    assert_eq!(state.table(OPERATOR).first_closed(Watermark::MAX), Some(window(1)));
    assert_eq!(table_files_beside(directory.path()), 0);
}

fn table_files_beside(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory.join("3-5")).expect("readable");
    entries.filter(|entry| entry.as_ref().expect("readable").file_name().to_string_lossy().ends_with(".ingest")).count()
}

#[test]
fn a_large_flush_waits_as_a_file_and_leaves_nothing_when_it_is_given_up() {
    let directory = tempfile::tempdir().expect("temp");
    let spec = count_by_integer();
    let mut state = open(directory.path(), &spec).state;
    count(state.as_mut(), window(0), 0..200_000);
    let first = state.seal_flush().expect("seals");
    count(state.as_mut(), window(0), 0..200_000);
    let second = state.seal_flush().expect("seals");
    assert_eq!((first.bytes, second.bytes, table_files_beside(directory.path())), (0, 0, 2));
    let image = tempfile::tempdir().expect("temp");
    crash_image(directory.path(), image.path());
    state.apply_flush(first, b"1").expect("applies");
    assert_eq!(table_files_beside(directory.path()), 1);
    drop(second);
    assert_eq!(table_files_beside(directory.path()), 0);

    assert_eq!(table_files_beside(image.path()), 2);
    assert_eq!(open(image.path(), &spec).record, None);
    assert_eq!(table_files_beside(image.path()), 0);
}

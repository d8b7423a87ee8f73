//! Copies of a store beside a region at work, and stores that begin with one.

use crate::fixtures::{OPERATOR, REGION, config, count, count_by_integer, drain_counts, open, seal_and_apply, standby_of, window};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use streamshield_core::ports::state::{RegionState, StateBackend, StateErrorKind};
use streamshield_core::watermark::Watermark;
use streamshield_state::RocksBackend;

fn number_of(record: Option<Vec<u8>>) -> u64 {
    record.map_or(0, |record| u64::from_le_bytes(record.try_into().expect("8 bytes")))
}

/// Epoch n adds one to each of a hundred keys, and a key of its own; every 50th is large.
fn run_epoch(state: &mut dyn RegionState, epoch: u64) {
    count(state, window(0), (0..100).chain([1000 + epoch as i64]));
    if epoch.is_multiple_of(50) {
        count(state, window(1), (0..20_000).map(|key| key + epoch as i64 * 20_000));
    }
    seal_and_apply(state, &epoch.to_le_bytes());
}

fn assert_is_epoch(mut state: Box<dyn RegionState>, epoch: u64) {
    let expected: Vec<(i64, i64)> =
        (0..100).map(|key| (key, epoch as i64)).filter(|_| epoch > 0).chain((1..=epoch as i64).map(|of| (1000 + of, 1))).collect();
    assert_eq!(drain_counts(state.table(OPERATOR), window(0), usize::MAX), (expected, true), "epoch {epoch}");
    let large = drain_counts(state.table(OPERATOR), window(1), usize::MAX).0;
    assert_eq!(large.len() as u64, epoch / 50 * 20_000, "epoch {epoch}");
}

#[test]
fn a_copy_taken_while_flushes_are_applied_holds_exactly_the_epoch_that_it_names() {
    const EPOCHS: u64 = 600;
    let (directory, copies) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let mut state = open(directory.path(), &count_by_integer()).state;
    let copier = state.copier().expect("has a store");
    let ended = AtomicBool::new(false);
    let records = std::thread::scope(|scope| {
        let (ended, copies) = (&ended, copies.path());
        let copying = scope.spawn(move || {
            let mut records = vec![];
            while !ended.load(Ordering::Acquire) {
                let record = copier.copy_to(&copies.join(records.len().to_string())).expect("is copied");
                records.push(number_of(record));
            }
            records
        });
        (1..=EPOCHS).for_each(|epoch| run_epoch(state.as_mut(), epoch));
        ended.store(true, Ordering::Release);
        copying.join().expect("no panic")
    });
    assert!(records.is_sorted() && records.len() > 3, "{records:?}");
    assert!(records.iter().any(|&record| record > 0 && record < EPOCHS), "no copy fell between: {records:?}");
    for (number, &record) in records.iter().enumerate() {
        let third = tempfile::tempdir().expect("temp");
        let backend = RocksBackend::new(config(third.path())).expect("opens");
        backend.adopt(REGION, &copies.path().join(number.to_string())).expect("is adopted");
        let opened = backend.open(REGION, &[count_by_integer()]).expect("opens");
        assert_eq!((number_of(opened.record), opened.rebuilt), (record, None));
        assert_is_epoch(opened.state, record);
    }
}

fn files(directory: &Path) -> BTreeMap<String, (u64, u64, i64)> {
    let entries = std::fs::read_dir(directory).expect("readable").map(|entry| entry.expect("readable"));
    let name = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let facts = |entry: &std::fs::DirEntry| entry.metadata().map(|found| (found.ino(), found.len(), found.mtime_nsec())).expect("exists");
    entries.map(|entry| (name(&entry), facts(&entry))).collect()
}

#[test]
fn a_copy_is_links_to_tables_and_a_few_small_files_and_never_changes() {
    let (directory, copies) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let mut state = open(directory.path(), &count_by_integer()).state;
    count(state.as_mut(), window(0), 0..100_000);
    seal_and_apply(state.as_mut(), &1u64.to_le_bytes());
    count(state.as_mut(), window(0), 0..10);
    seal_and_apply(state.as_mut(), &2u64.to_le_bytes());
    let copy = copies.path().join("copy");
    assert_eq!(number_of(state.copier().expect("has a store").copy_to(&copy).expect("is copied")), 2);
    let (copied, live) = (files(&copy), files(&directory.path().join("3-5")));
    for (name, facts) in &copied {
        if name.ends_with(".sst") {
            assert_eq!(live.get(name), Some(facts), "{name} is a link");
        } else {
            let is_known = name == "CURRENT" || name.starts_with("MANIFEST-") || name.starts_with("OPTIONS-") || name.ends_with(".log");
            assert!(is_known && facts.1 < 1 << 20, "{name} of {} bytes", facts.1);
        }
    }
    for epoch in 3..100u64 {
        count(state.as_mut(), window(0), 0..5_000);
        seal_and_apply(state.as_mut(), &epoch.to_le_bytes());
    }
    drain_counts(state.table(OPERATOR), window(0), usize::MAX);
    seal_and_apply(state.as_mut(), b"the end.");
    drop(state);
    assert_eq!(files(&copy), copied);
}

#[test]
fn a_copy_goes_to_no_folder_that_exists() {
    let (directory, copies) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let state = open(directory.path(), &count_by_integer()).state;
    let copier = state.copier().expect("has a store");
    std::fs::write(copies.path().join("file"), b"mine").expect("writes");
    assert_eq!(copier.copy_to(copies.path()).expect_err("exists").kind, StateErrorKind::Io);
    assert_eq!(copier.copy_to(&copies.path().join("no/parent")).expect_err("has no parent").kind, StateErrorKind::Io);
    assert_eq!(files(copies.path()).keys().collect::<Vec<_>>(), ["file"]);
}

#[test]
fn a_copier_keeps_the_store_open_when_the_region_is_gone() {
    let (directory, copies) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let backend = RocksBackend::new(config(directory.path())).expect("opens");
    let mut state = backend.open(REGION, &[count_by_integer()]).expect("opens").state;
    run_epoch(state.as_mut(), 1);
    let copier = state.copier().expect("has a store");
    drop(state);
    assert_eq!(backend.open(REGION, &[count_by_integer()]).err().map(|error| error.kind), Some(StateErrorKind::Internal));
    let copy = copies.path().join("copy");
    assert_eq!(backend.adopt(REGION, &copy).err().map(|error| error.kind), Some(StateErrorKind::Internal));
    assert_eq!(number_of(copier.copy_to(&copy).expect("is copied")), 1);
    drop(copier);
    assert_eq!(number_of(backend.open(REGION, &[count_by_integer()]).expect("opens").record), 1);
}

#[test]
fn a_store_is_adopted_in_place_of_what_is_there() {
    let (directory, other) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let mut state = open(directory.path(), &count_by_integer()).state;
    run_epoch(state.as_mut(), 1);
    let mut old = open(other.path(), &count_by_integer()).state;
    count(old.as_mut(), window(9), 0..10);
    seal_and_apply(old.as_mut(), b"old");
    drop(old);
    let (adopted, record) = standby_of(state.as_ref(), other.path(), &count_by_integer());
    assert_eq!(number_of(record), 1);
    assert_is_epoch(adopted, 1);
    let mode = std::fs::metadata(other.path().join("3-5")).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(files(&other.path().join("scratch")).len(), 0, "nothing is left behind");
    // The region that it was copied from does not notice.
    run_epoch(state.as_mut(), 2);
    assert_is_epoch(state, 2);
}

#[test]
fn what_is_no_store_is_not_adopted_and_the_old_one_stays() {
    let (directory, elsewhere) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let backend = RocksBackend::new(config(directory.path())).expect("opens");
    let mut state = backend.open(REGION, &[count_by_integer()]).expect("opens").state;
    run_epoch(state.as_mut(), 1);
    let copy = elsewhere.path().join("copy");
    state.copier().expect("has a store").copy_to(&copy).expect("is copied");
    assert_eq!(backend.adopt(REGION, &copy).err().map(|error| error.kind), Some(StateErrorKind::Internal), "the region is open");
    drop(state);
    let adopt = |path: &Path| backend.adopt(REGION, path).err().map(|error| error.kind);
    assert_eq!(adopt(&elsewhere.path().join("nothing")), Some(StateErrorKind::Damaged));
    symlink(&copy, elsewhere.path().join("link")).expect("links");
    assert_eq!(adopt(&elsewhere.path().join("link")), Some(StateErrorKind::Io));
    symlink("/etc/hostname", copy.join("000001.sst")).expect("links");
    assert_eq!(adopt(&copy), Some(StateErrorKind::Io), "a link in it");
    std::fs::remove_file(copy.join("000001.sst")).expect("removes");
    std::fs::remove_file(copy.join("CURRENT")).expect("removes");
    assert_eq!(adopt(&copy), Some(StateErrorKind::Damaged));
    let opened = backend.open(REGION, &[count_by_integer()]).expect("opens");
    assert_eq!(number_of(opened.record), 1);
    assert_is_epoch(opened.state, 1);
}

#[test]
fn a_copy_with_a_damaged_file_is_found_on_opening() {
    let (directory, other) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let mut state = open(directory.path(), &count_by_integer()).state;
    run_epoch(state.as_mut(), 50);
    let backend = RocksBackend::new(config(other.path())).expect("opens");
    let copy = backend.scratch().join("copy");
    state.copier().expect("has a store").copy_to(&copy).expect("is copied");
    let table = files(&copy).into_keys().find(|name| name.ends_with(".sst")).expect("there is one");
    let bytes = std::fs::read(copy.join(&table)).expect("reads");
    // Not through the link, which the other region reads, too.
    std::fs::remove_file(copy.join(&table)).expect("removes");
    std::fs::write(copy.join(&table), &bytes[..bytes.len() / 2]).expect("writes");
    backend.adopt(REGION, &copy).expect("is moved");
    let opened = backend.open(REGION, &[count_by_integer()]).expect("opens");
    assert!(opened.rebuilt.is_some() && opened.record.is_none());
}

#[test]
fn the_scratch_folder_is_private_and_emptied_when_a_backend_is_made() {
    let directory = tempfile::tempdir().expect("temp");
    let backend: Arc<RocksBackend> = RocksBackend::new(config(directory.path())).expect("opens");
    let scratch = backend.scratch();
    assert!(scratch.starts_with(directory.path()));
    assert_eq!(std::fs::metadata(&scratch).expect("exists").permissions().mode() & 0o777, 0o700);
    std::fs::create_dir(scratch.join("half")).and_then(|()| std::fs::write(scratch.join("half/file"), b"a download")).expect("writes");
    drop(backend);
    let backend = RocksBackend::new(config(directory.path())).expect("opens");
    assert_eq!(files(&backend.scratch()).len(), 0);
    std::fs::remove_dir(&scratch).and_then(|()| symlink("/tmp", &scratch)).expect("links");
    assert_eq!(RocksBackend::new(config(directory.path())).err().map(|error| error.kind), Some(StateErrorKind::Io));
    assert!(Path::new("/tmp").exists());
}

#[test]
fn nothing_applied_is_a_copy_without_a_record() {
    let (directory, other) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let state = open(directory.path(), &count_by_integer()).state;
    let (mut adopted, record) = standby_of(state.as_ref(), other.path(), &count_by_integer());
    assert_eq!(record, None);
    assert_eq!(adopted.table(OPERATOR).first_closed(Watermark::MAX), None);
}

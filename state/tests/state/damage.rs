//! A store that does not add up is deleted and says so; it never gives wrong groups.

use crate::fixtures::{
    OPERATOR, REGION, aggregate, config, count, count_by_integer, crash_image, drain_counts, open, seal_and_apply, window,
};
use arrow_schema::DataType;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use streamshield_core::ports::state::{Merge, OpenedState, StateBackend, StateErrorKind};
use streamshield_state::{Config, RocksBackend};
use tempfile::TempDir;

const GROUPS: i64 = 20_000;

/// A store that was closed after epoch 1 with every group once, and after epoch 2 with every group twice.
fn written() -> TempDir {
    let directory = tempfile::tempdir().expect("temp");
    for record in [b"1", b"2"] {
        let mut state = open(directory.path(), &count_by_integer()).state;
        count(state.as_mut(), window(0), 0..GROUPS);
        seal_and_apply(state.as_mut(), record);
    }
    directory
}

fn files(directory: &Path, name: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory.join("3-5")).expect("the store is there");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.retain(|path| path.file_name().and_then(|file| file.to_str()).is_some_and(&name));
    assert!(!files.is_empty(), "no file to damage");
    files
}

fn flip_bytes(path: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let offset = file.metadata().expect("has a length").len() / 2;
    let mut bytes = [0; 64];
    file.read_exact_at(&mut bytes, offset).expect("reads");
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    file.write_all_at(&bytes, offset).expect("writes");
}

fn truncate(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(len)).expect("truncates");
}

/// It is empty, says why, and works.
fn assert_rebuilt(mut opened: OpenedState) {
    let reason = opened.rebuilt.expect("the damage is reported");
    assert!(!reason.is_empty());
    assert_eq!(opened.record, None);
    count(opened.state.as_mut(), window(0), 0..3);
    seal_and_apply(opened.state.as_mut(), b"new");
    assert_eq!(drain_counts(opened.state.table(OPERATOR), window(0), 10), (vec![(0, 1), (1, 1), (2, 1)], true));
}

#[test]
fn flipped_bytes_in_a_table_file_are_found_on_opening() {
    let directory = written();
    files(directory.path(), |name| name.ends_with(".sst")).iter().for_each(|path| flip_bytes(path));
    assert_rebuilt(open(directory.path(), &count_by_integer()));
}

#[test]
fn flipped_bytes_in_a_large_store_are_found_when_they_are_read() {
    let directory = written();
    files(directory.path(), |name| name.ends_with(".sst")).iter().for_each(|path| flip_bytes(path));
    let lazy = Config { verified_bytes_on_open_max: 0, ..config(directory.path()) };
    let mut opened = RocksBackend::new(lazy).and_then(|backend| backend.open(REGION, &[count_by_integer()])).expect("opens");
    assert_eq!(opened.rebuilt, None);
    let error = opened.state.table(OPERATOR).drain(window(0), usize::MAX).err().expect("the damage is found");
    assert_eq!(error.kind, StateErrorKind::Damaged, "{error}");
    drop(opened);
    assert_rebuilt(open(directory.path(), &count_by_integer()));
}

#[test]
fn a_missing_table_file_is_found() {
    let directory = written();
    fs::remove_file(&files(directory.path(), |name| name.ends_with(".sst"))[0]).expect("removes");
    assert_rebuilt(open(directory.path(), &count_by_integer()));
}

#[test]
fn an_empty_manifest_and_an_empty_or_missing_current_are_found() {
    for name in ["MANIFEST", "CURRENT"] {
        let directory = written();
        files(directory.path(), |file| file.starts_with(name)).iter().for_each(|path| truncate(path, 0));
        assert_rebuilt(open(directory.path(), &count_by_integer()));
    }
    let directory = written();
    fs::remove_file(directory.path().join("3-5/CURRENT")).expect("removes");
    assert_rebuilt(open(directory.path(), &count_by_integer()));
}

#[test]
fn a_manifest_cut_anywhere_gives_an_older_epoch_or_a_rebuild_and_nothing_else() {
    let directory = written();
    let manifest = files(directory.path(), |name| name.starts_with("MANIFEST")).pop().expect("there is one");
    let manifest = manifest.file_name().expect("a name").to_owned();
    let len = fs::metadata(directory.path().join("3-5").join(&manifest)).expect("exists").len();
    for cut in (0..len).step_by(len as usize / 24 + 1) {
        let image = tempfile::tempdir().expect("temp");
        crash_image(directory.path(), image.path());
        truncate(&image.path().join("3-5").join(&manifest), cut);
        let mut opened = open(image.path(), &count_by_integer());
        let expected = match opened.record.as_deref() {
            None => 0,
            Some(b"1") => 1,
            Some(b"2") => 2,
            other => panic!("a record that was never written: {other:?}"),
        };
        let (groups, _) = drain_counts(opened.state.table(OPERATOR), window(0), usize::MAX);
        let groups_expected = if expected == 0 { 0 } else { GROUPS };
        assert_eq!(groups, (0..groups_expected).map(|key| (key, expected)).collect::<Vec<_>>(), "cut at {cut}");
    }
}

#[test]
fn a_store_of_other_tables_is_rebuilt() {
    let directory = written();
    let mut spec = count_by_integer();
    spec.aggregates.push(aggregate(Merge::Max, &[DataType::Int64]));
    let opened = open(directory.path(), &spec);
    assert!(opened.rebuilt.is_some_and(|reason| reason.contains("format")));
    assert_eq!(opened.record, None);
}

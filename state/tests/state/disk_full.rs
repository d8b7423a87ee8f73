//! A full disk stops the region with an error, and what is on it stays a valid prefix.

use crate::fixtures::{OPERATOR, count, count_by_integer, drain_counts, open, window};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ffi::CString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use streamshield_core::ports::state::{StateError, StateErrorKind};

const CHILD_DIRECTORY: &str = "STREAMSHIELD_TEST_LIMITED_DIRECTORY";
const LIMIT_BYTES: u64 = 3 << 20;
const FLUSHES_MAX: u64 = 400;
const CHILD_GROUPS: &str = "STREAMSHIELD_TEST_GROUPS_PER_FLUSH";
/// Flushes in memory, and such that are written as files when they are sealed.
const GROUPS_PER_FLUSH: [usize; 2] = [20_000, 100_000];

fn keys(flush: u64, groups: usize) -> Vec<i64> {
    let mut random = ChaCha8Rng::seed_from_u64(flush);
    (0..groups).map(|_| random.random()).collect()
}

/// Flushes new groups until an error comes.
fn fill(directory: &Path, groups: usize) -> StateError {
    let mut state = open(directory, &count_by_integer()).state;
    for flush in 0..FLUSHES_MAX {
        count(state.as_mut(), window(0), keys(flush, groups));
        let sealed = state.seal_flush();
        if let Err(error) = sealed.and_then(|sealed| state.apply_flush(sealed, &flush.to_le_bytes())) {
            return error;
        }
        state.evict(0).expect("evicts");
    }
    panic!("{FLUSHES_MAX} flushes did not fill the disk");
}

fn assert_is_prefix(directory: &Path, groups_per_flush: usize) {
    let mut opened = open(directory, &count_by_integer());
    assert_eq!(opened.rebuilt, None);
    let flushes = opened.record.map_or(0, |record| u64::from_le_bytes(record.try_into().expect("8 bytes")) + 1);
    let mut expected: Vec<i64> = (0..flushes).flat_map(|flush| keys(flush, groups_per_flush)).collect();
    expected.sort_unstable();
    expected.dedup();
    let (groups, _) = drain_counts(opened.state.table(OPERATOR), window(0), usize::MAX);
    assert_eq!(groups.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), expected);
}

fn mount(directory: &Path, flags: libc::c_ulong, size: &str) -> bool {
    let text = |text: &str| CString::new(text).expect("no zero byte");
    let (kind, target, options) = (text("tmpfs"), text(&directory.to_string_lossy()), text(size));
    // SAFETY: all pointers are to strings that outlive the call.
    unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) == 0 }
}

#[test]
fn a_full_disk_is_an_io_error_and_leaves_a_valid_prefix() {
    GROUPS_PER_FLUSH.into_iter().for_each(fill_a_disk);
}

fn fill_a_disk(groups: usize) {
    let directory = tempfile::tempdir().expect("temp");
    if mount(directory.path(), 0, "size=6m") {
        let error = fill(directory.path(), groups);
        assert_eq!(error.kind, StateErrorKind::Io, "{error}");
        assert!(mount(directory.path(), libc::MS_REMOUNT, "size=200m"), "the disk grows");
        assert_is_prefix(directory.path(), groups);
        let target = CString::new(directory.path().to_string_lossy().as_bytes()).expect("no zero byte");
        // SAFETY: the pointer is to a string that outlives the call.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        return;
    }
    // Without the right to mount: a process that may write no file beyond a limit.
    let mut child = Command::new(std::env::current_exe().expect("this binary"));
    child
        .args(["disk_full::limited_child", "--exact", "--ignored"])
        .env(CHILD_DIRECTORY, directory.path())
        .env(CHILD_GROUPS, groups.to_string());
    // SAFETY: both calls are async-signal-safe.
    unsafe {
        child.pre_exec(|| {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit { rlim_cur: LIMIT_BYTES, rlim_max: LIMIT_BYTES };
            if libc::setrlimit(libc::RLIMIT_FSIZE, &limit) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let output = child.output().expect("the child starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_is_prefix(directory.path(), groups);
}

#[test]
#[ignore = "is started by a_full_disk_is_an_io_error_and_leaves_a_valid_prefix with a limit"]
fn limited_child() {
    let directory = std::env::var_os(CHILD_DIRECTORY).expect("is started by the other test");
    let groups = std::env::var(CHILD_GROUPS).ok().and_then(|groups| groups.parse().ok()).expect("is started by the other test");
    let error = fill(Path::new(&directory), groups);
    assert_eq!(error.kind, StateErrorKind::Io, "{error}");
}

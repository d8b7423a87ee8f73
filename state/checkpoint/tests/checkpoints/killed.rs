//! Processes that die in the middle of a checkpoint (K-1). They are this test program, started again for one test with a folder in the environment.

use crate::faulty::{Fault, Faulty, Op};
use crate::place::{JOB, Place};
use crate::state::{FOLDER, PLAN, REGION, files_of, small};
use object_store::local::LocalFileSystem;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use streamshield_checkpoint::{ObjectCheckpoints, StoreConfig};
use streamshield_core::ids::Epoch;
use streamshield_core::ports::checkpoint::{CheckpointStore, Durability};

const FOLDER_VARIABLE: &str = "STREAMSHIELD_TEST_FOLDER";
const MOMENT_VARIABLE: &str = "STREAMSHIELD_TEST_MOMENT";

/// Runs an ignored test of this program in a process of its own.
pub fn run_child(test: &str, environment: &[(&str, &str)]) -> std::process::Output {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--ignored", "--nocapture"]).envs(environment.iter().copied());
    child.output().unwrap()
}

fn die(test: &str, folder: &Path, moment: &str) {
    let output = run_child(test, &[(FOLDER_VARIABLE, folder.to_str().unwrap()), (MOMENT_VARIABLE, moment)]);
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(output.status.signal(), Some(6), "it should have died: {}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[ignore = "the child of a_process_that_dies_between_files_and_manifest_leaves_no_checkpoint"]
fn child_that_dies_while_it_uploads() {
    let folder = PathBuf::from(std::env::var(FOLDER_VARIABLE).unwrap());
    let moment = std::env::var(MOMENT_VARIABLE).unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(folder.join("store")).unwrap().with_fsync(true));
    let mut puts = 0;
    let faulty = Faulty::new(store, move |op, _| {
        puts += u32::from(op == Op::Put);
        match (moment.as_str(), op) {
            ("manifest", Op::Create) => Fault::Die,
            ("files", Op::Put) if puts == 2 => Fault::Die,
            _ => Fault::None,
        }
    });
    let mut config = StoreConfig::new("file:///unused");
    // One after the other: the first file is there when it dies at the second.
    config.upload_concurrency = 1;
    let store = ObjectCheckpoints::with_store(config, JOB, faulty, "").unwrap();
    store.save(&small(&folder, 2, 6)).unwrap();
}

#[test]
fn a_process_that_dies_between_files_and_manifest_leaves_no_checkpoint() {
    for moment in ["files", "manifest"] {
        let place = Place::folder();
        let disk = place.disk.path();
        place.open().save(&small(disk, 1, 5)).unwrap();
        let before = place.names(&format!("{FOLDER}/files"));
        die("killed::child_that_dies_while_it_uploads", disk, moment);
        let torn = place.names(&format!("{FOLDER}/files"));
        assert!(
            torn.len() > before.len() && torn.iter().any(|name| name.starts_with("6-")),
            "{moment}: it had uploaded something: {torn:?}"
        );

        // A successor finds the older checkpoint, goes on, and tidies up after the dead one.
        let successor = place.open();
        let target = disk.join("restored");
        let restored = successor.restore(REGION, PLAN, &target).unwrap().unwrap();
        assert_eq!((restored.info.epoch, restored.refused.len()), (Epoch(1), 0), "{moment}");
        assert_eq!(files_of(&target), files_of(&disk.join("1-5")));
        successor.save(&small(disk, 3, 7)).unwrap();
        for _ in 0..2 {
            successor.maintain(REGION, &mut || true).unwrap();
        }
        let after = place.names(&format!("{FOLDER}/files"));
        assert!(!after.iter().any(|name| name.starts_with("6-")), "{moment}: {after:?}");
        assert!(successor.verify(REGION).unwrap().iter().all(|checkpoint| checkpoint.is_whole()));
    }
}

#[test]
#[ignore = "the child of a_process_that_dies_with_the_store_away_leaves_a_whole_local_checkpoint"]
fn child_that_dies_with_a_local_checkpoint() {
    let folder = PathBuf::from(std::env::var(FOLDER_VARIABLE).unwrap());
    let store = Arc::new(LocalFileSystem::new_with_prefix(folder.join("store")).unwrap());
    let faulty = Faulty::new(store, |_, _| Fault::Fail);
    let mut config = StoreConfig::new("file:///unused");
    config.local_fallback = Some(folder.join("local"));
    config.retry_timeout = Duration::from_secs(1);
    config.request_timeout = Duration::from_secs(1);
    let store = ObjectCheckpoints::with_store(config, JOB, faulty, "").unwrap();
    assert_eq!(store.save(&small(&folder, 2, 6)).unwrap().durability, Durability::Local);
    std::process::abort();
}

#[test]
fn a_process_that_dies_with_the_store_away_leaves_a_whole_local_checkpoint() {
    let place = Place::folder();
    let disk = place.disk.path();
    place.open().save(&small(disk, 1, 5)).unwrap();
    die("killed::child_that_dies_with_a_local_checkpoint", disk, "");
    let mut config = place.config();
    config.local_fallback = Some(disk.join("local"));
    let successor = ObjectCheckpoints::open(config, JOB).unwrap();
    successor.set_incarnation(streamshield_core::ids::Incarnation(7));
    let restored = successor.restore(REGION, PLAN, &disk.join("restored")).unwrap().unwrap();
    assert_eq!((restored.info.epoch, restored.info.durability), (Epoch(2), Durability::Local));
    // Its successor on this machine uploads it, in the name of the one that made it.
    successor.maintain(REGION, &mut || true).unwrap();
    assert!(place.names(&format!("{FOLDER}/manifests")).contains(&format!("{:020}-6.json", 2)));
    let restored = place.open().restore(REGION, PLAN, &disk.join("elsewhere")).unwrap().unwrap();
    assert_eq!((restored.info.epoch, restored.info.durability), (Epoch(2), Durability::Remote));
}

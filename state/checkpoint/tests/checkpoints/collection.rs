//! Garbage collection in real time: what it must not touch, and who must not do it.

use crate::faulty::{Fault, Faulty, Op};
use crate::place::{JOB, Place};
use crate::state::{FOLDER, PLAN, REGION, files_of, record, small};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};
use streamshield_checkpoint::ObjectCheckpoints;
use streamshield_core::ids::{Epoch, Incarnation};
use streamshield_core::ports::checkpoint::{CheckpointStore, Restored};

/// A store whose files can't be read until the last one is true; says so when somebody tries.
fn held_at_the_files(place: &Place) -> (Arc<Faulty>, mpsc::Receiver<()>, Arc<AtomicBool>) {
    let (at_the_files, arrived) = mpsc::channel();
    let go_on = Arc::new(AtomicBool::new(false));
    let may_go_on = go_on.clone();
    let faulty = Faulty::new(place.store.clone(), move |op, path| {
        if op == Op::Get && path.contains("/files/") && !may_go_on.load(Ordering::SeqCst) {
            at_the_files.send(()).ok();
            return Fault::Until(may_go_on.clone());
        }
        Fault::None
    });
    (faulty, arrived, go_on)
}

/// A restore that stops after it has read its manifest, until the collector has done all it wants; then goes on.
/// Returns what came of it.
fn restore_beside_a_collection(place: &Place, grace: Duration) -> (Option<Restored>, Vec<u64>) {
    let disk = place.disk.path();
    let mut config = place.config();
    config.gc_grace = grace;
    config.save_timeout = Duration::from_millis(4_500);
    config.restore_timeout = Duration::from_millis(4_500);
    config.retain_count = 1;
    if grace.is_zero() {
        config.restore_timeout = Duration::from_secs(20);
    }
    let owner = ObjectCheckpoints::open(config.clone(), JOB).unwrap();
    owner.save(&small(disk, 1, 5)).unwrap();

    let (faulty, arrived, go_on) = held_at_the_files(place);
    let mut slow = config;
    slow.retry_timeout = Duration::from_secs(15);
    slow.request_timeout = Duration::from_secs(15);
    let reader = ObjectCheckpoints::with_store(slow, JOB, faulty, "").unwrap();
    let target = disk.join("restored");
    let restored = std::thread::scope(|scope| {
        let restore = scope.spawn(|| reader.restore(REGION, PLAN, &target));
        arrived.recv().unwrap();
        // It has read the manifest of epoch 1 and is about to fetch its files. Meanwhile the owner makes it needless and collects.
        for epoch in 2..=3 {
            owner.save(&small(disk, epoch, 5)).unwrap();
        }
        for _ in 0..3 {
            owner.maintain(REGION, &mut || true).unwrap();
        }
        go_on.store(true, Ordering::SeqCst);
        restore.join().unwrap().unwrap()
    });
    let left = owner.list(REGION).unwrap().iter().map(|info| info.epoch.0).collect();
    (restored, left)
}

#[test]
fn a_restore_under_way_keeps_its_files_for_the_time_of_the_grace() {
    let place = Place::folder();
    let (restored, left) = restore_beside_a_collection(&place, Duration::from_secs(5));
    let restored = restored.unwrap();
    assert_eq!((restored.info.epoch, restored.refused.len()), (Epoch(1), 0));
    assert_eq!(files_of(&place.disk.path().join("restored")), files_of(&place.disk.path().join("1-5")));
    assert_eq!(left, vec![1, 2, 3], "marked, and not deleted yet");

    // When it is over, they go.
    std::thread::sleep(Duration::from_millis(6_300));
    let mut config = place.config();
    config.gc_grace = Duration::from_secs(5);
    config.save_timeout = Duration::from_secs(2);
    config.restore_timeout = Duration::from_secs(2);
    config.retain_count = 1;
    let owner = ObjectCheckpoints::open(config, JOB).unwrap();
    owner.maintain(REGION, &mut || true).unwrap();
    assert_eq!(owner.list(REGION).unwrap().len(), 3, "nothing was said yet about who this is");
    owner.set_incarnation(streamshield_core::ids::Incarnation(5));
    owner.maintain(REGION, &mut || true).unwrap();
    let left: Vec<u64> = owner.list(REGION).unwrap().iter().map(|info| info.epoch.0).collect();
    assert_eq!(left, vec![3]);
    assert!(owner.verify(REGION).unwrap().iter().all(|checkpoint| checkpoint.is_whole()));
}

/// The counter-proof: without a grace the same restore loses its files, so the test above can fail.
#[test]
fn without_a_grace_the_same_restore_would_lose_its_files() {
    let place = Place::folder();
    let (restored, left) = restore_beside_a_collection(&place, Duration::ZERO);
    assert_eq!(left, vec![3]);
    assert!(restored.is_none(), "its files are gone, and it knew of no other checkpoint: {restored:?}");
}

#[test]
fn a_checkpoint_that_is_about_to_be_deleted_is_not_copied() {
    let place = Place::folder();
    let mut config = place.config();
    config.retain_count = 1;
    let store = ObjectCheckpoints::open(config, JOB).unwrap();
    for epoch in 1..=2 {
        store.save(&small(place.disk.path(), epoch, 5)).unwrap();
    }
    let of_epoch = |epoch| BTreeMap::from([(REGION, Epoch(epoch))]);
    store.check_clone("what-if", &of_epoch(1)).unwrap();
    // Marks the first one; the next round deletes it, without a grace.
    store.maintain(REGION, &mut || true).unwrap();
    assert_eq!(store.list(REGION).unwrap().len(), 2);
    let refused = store.check_clone("what-if", &of_epoch(1)).unwrap_err().to_string();
    assert!(refused.contains("about to be deleted"), "{refused}");
    store.check_clone("what-if", &of_epoch(2)).unwrap();
    store.clone_to("what-if", &BTreeMap::from([(REGION, record(REGION, 2))])).unwrap();
}

#[test]
fn what_is_pinned_stays_pinned_though_it_is_marked_and_pinned_again() {
    let place = Place::folder();
    let mut config = place.config();
    config.retain_count = 1;
    let store = ObjectCheckpoints::open(config.clone(), JOB).unwrap();
    config.gc_grace = Duration::from_secs(60 * 60);
    let patient = ObjectCheckpoints::open(config, JOB).unwrap();
    for epoch in 1..=2 {
        store.save(&small(place.disk.path(), epoch, 5)).unwrap();
    }
    // Marks the first one; the next round deletes it, without a grace.
    store.maintain(REGION, &mut || true).unwrap();
    let refused = store.pin(REGION, Epoch(1)).unwrap_err().to_string();
    assert!(refused.contains("about to be deleted") && place.names(&format!("{FOLDER}/pins")).is_empty(), "{refused}");
    // With one there is still time; and then it is pinned.
    let pinned = patient.pin(REGION, Epoch(1)).unwrap();
    assert_eq!(store.pin(REGION, Epoch(1)).unwrap(), pinned);
    for _ in 0..2 {
        store.maintain(REGION, &mut || true).unwrap();
    }
    let left = store.list(REGION).unwrap();
    assert!(left.len() == 2 && left[0].pinned, "{left:?}");
}

#[test]
fn a_pin_is_taken_back_if_nobody_can_say_whether_it_came_in_time() {
    let place = Place::folder();
    let mut is_written = false;
    let faulty = Faulty::new(place.store.clone(), move |op, path| {
        is_written |= op == Op::Put && path.contains("/pins/");
        if is_written && op == Op::List { Fault::Fail } else { Fault::None }
    });
    let store = ObjectCheckpoints::with_store(place.config(), JOB, faulty, "").unwrap();
    store.save(&small(place.disk.path(), 1, 5)).unwrap();
    store.pin(REGION, Epoch(1)).unwrap_err();
    assert!(place.names(&format!("{FOLDER}/pins")).is_empty());
}

#[test]
fn what_is_collected_while_it_is_verified_is_left_out_and_what_is_damaged_is_not() {
    let place = Place::folder();
    let mut config = place.config();
    config.retain_count = 2;
    let owner = ObjectCheckpoints::open(config.clone(), JOB).unwrap();
    for epoch in 1..=4 {
        owner.save(&small(place.disk.path(), epoch, 5)).unwrap();
    }
    let of_the_third = place.names(&format!("{FOLDER}/files")).into_iter().find(|name| name.ends_with("000013.sst")).unwrap();
    place.delete(&format!("{FOLDER}/files/{of_the_third}"));

    let (faulty, arrived, go_on) = held_at_the_files(&place);
    let reader = ObjectCheckpoints::with_store(config, JOB, faulty, "").unwrap();
    let verified = std::thread::scope(|scope| {
        let verify = scope.spawn(|| reader.verify(REGION));
        arrived.recv().unwrap();
        // It reads the files of the first one. Meanwhile that and the second one are collected.
        for _ in 0..2 {
            owner.maintain(REGION, &mut || true).unwrap();
        }
        go_on.store(true, Ordering::SeqCst);
        verify.join().unwrap().unwrap()
    });
    let found: Vec<_> = verified.iter().map(|checkpoint| (checkpoint.info.as_ref().unwrap().epoch.0, checkpoint.is_whole())).collect();
    assert_eq!(found, vec![(3, false), (4, true)]);
}

#[test]
fn a_mark_is_read_once_however_many_rounds_it_waits_for_its_grace() {
    let place = Place::folder();
    let reads = Arc::new(AtomicUsize::new(0));
    let seen = reads.clone();
    let faulty = Faulty::new(place.store.clone(), move |op, path| {
        seen.fetch_add(usize::from(op == Op::Get && path.contains("/gc/")), Ordering::SeqCst);
        Fault::None
    });
    let mut config = place.config();
    config.gc_grace = Duration::from_secs(60 * 60);
    config.retain_count = 1;
    let owner = ObjectCheckpoints::with_store(config.clone(), JOB, faulty.clone(), "").unwrap();
    for epoch in 1..=4 {
        owner.save(&small(place.disk.path(), epoch, 5)).unwrap();
        owner.maintain(REGION, &mut || true).unwrap();
    }
    assert_eq!(place.names(&format!("{FOLDER}/gc")).len(), 3);
    assert_eq!(reads.load(Ordering::SeqCst), 0, "it wrote them itself");
    let successor = ObjectCheckpoints::with_store(config, JOB, faulty, "").unwrap();
    successor.set_incarnation(Incarnation(6));
    for _ in 0..3 {
        successor.maintain(REGION, &mut || true).unwrap();
    }
    assert_eq!(reads.load(Ordering::SeqCst), 3);
    assert_eq!(successor.list(REGION).unwrap().len(), 4, "marked, and not deleted yet");
}

#[test]
fn one_object_from_the_future_ends_no_grace() {
    let place = Place::folder();
    let mut config = place.config();
    config.gc_grace = Duration::from_secs(60 * 60);
    config.retain_count = 1;
    let owner = ObjectCheckpoints::open(config, JOB).unwrap();
    for epoch in 1..=2 {
        owner.save(&small(place.disk.path(), epoch, 5)).unwrap();
    }
    // The store's clock was ahead when this was written.
    let strange = format!("{FOLDER}/files/5-{:032x}-000099.sst", 1);
    place.write(&strange, vec![1; 10]);
    let file = std::fs::File::options().write(true).open(place.disk.path().join("store").join(&strange)).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(5 * 60 * 60)).unwrap();
    for _ in 0..3 {
        owner.maintain(REGION, &mut || true).unwrap();
    }
    assert_eq!(place.names(&format!("{FOLDER}/gc")).len(), 1);
    assert_eq!(owner.list(REGION).unwrap().len(), 2, "marked, and not deleted yet");
}

#[test]
fn the_owner_is_asked_right_before_anything_is_deleted_and_its_no_counts() {
    let place = Place::folder();
    let deletions = Arc::new(AtomicBool::new(false));
    let seen = deletions.clone();
    let faulty = Faulty::new(place.store.clone(), move |op, _| {
        if op == Op::Delete {
            seen.store(true, Ordering::SeqCst);
        }
        Fault::None
    });
    let mut config = place.config();
    config.retain_count = 1;
    let store = ObjectCheckpoints::with_store(config, JOB, faulty, "").unwrap();
    for epoch in 1..=3 {
        store.save(&small(place.disk.path(), epoch, 5)).unwrap();
    }
    let mut asked = 0;
    for _ in 0..3 {
        // Owner when it marks; no longer when it is asked before deleting.
        store
            .maintain(REGION, &mut || {
                asked += 1;
                asked == 1
            })
            .unwrap();
    }
    assert!(asked >= 3 && !deletions.load(Ordering::SeqCst), "asked {asked} times");
    assert_eq!(store.list(REGION).unwrap().len(), 3);
    let mut before_deletions = 0;
    let deleted = deletions.clone();
    store
        .maintain(REGION, &mut || {
            before_deletions += u32::from(!deleted.load(Ordering::SeqCst));
            true
        })
        .unwrap();
    assert!(before_deletions >= 1 && deletions.load(Ordering::SeqCst));
    assert_eq!(store.list(REGION).unwrap().len(), 1);
}

#[test]
fn a_deletion_that_is_torn_leaves_files_without_a_manifest_and_never_the_reverse() {
    let place = Place::folder();
    let mut deletions = 0;
    let faulty = Faulty::new(place.store.clone(), move |op, _| {
        deletions += u32::from(op == Op::Delete);
        // Each round gets one deletion further.
        if op == Op::Delete && deletions % 2 == 0 { Fault::Refuse } else { Fault::None }
    });
    let mut config = place.config();
    config.retain_count = 1;
    config.failures_max = 1_000;
    let store = ObjectCheckpoints::with_store(config, JOB, faulty, "").unwrap();
    for epoch in 1..=5 {
        store.save(&small(place.disk.path(), epoch, 5)).unwrap();
    }
    for _ in 0..40 {
        store.maintain(REGION, &mut || true).ok();
        assert!(store.verify(REGION).unwrap().iter().all(|checkpoint| checkpoint.is_whole()));
    }
    assert_eq!(store.list(REGION).unwrap().len(), 1);
    assert_eq!(place.names(&format!("{FOLDER}/files")).len(), 4, "and in the end all is gone that should");
}

#[test]
fn what_a_dead_process_staged_in_a_folder_is_removed() {
    let place = Place::folder();
    let store = place.open();
    store.save(&small(place.disk.path(), 1, 5)).unwrap();
    let files = place.disk.path().join("store").join(FOLDER).join("files");
    let (ours, later) = (files.join(format!("5-{:032x}-1.sst#1", 1)), files.join(format!("6-{:032x}-1.sst#1", 1)));
    std::fs::write(&ours, "torn").unwrap();
    std::fs::write(&later, "torn").unwrap();
    store.maintain(REGION, &mut || true).unwrap();
    assert!(!ours.exists() && later.exists());
}

#[test]
fn young_checkpoints_are_kept_beyond_the_count() {
    let place = Place::folder();
    let mut config = place.config();
    config.retain_count = 1;
    config.retain_for = Some(Duration::from_secs(3));
    let store = ObjectCheckpoints::open(config, JOB).unwrap();
    for epoch in 1..=3 {
        store.save(&small(place.disk.path(), epoch, 5)).unwrap();
    }
    for _ in 0..2 {
        store.maintain(REGION, &mut || true).unwrap();
    }
    assert_eq!(store.list(REGION).unwrap().len(), 3);
    std::thread::sleep(Duration::from_millis(3_100));
    store.save(&small(place.disk.path(), 4, 5)).unwrap();
    for _ in 0..2 {
        store.maintain(REGION, &mut || true).unwrap();
    }
    assert_eq!(store.list(REGION).unwrap().len(), 1);
}

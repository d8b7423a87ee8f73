//! The same behaviours over a folder, S3 and HDFS.

use crate::place::{JOB, Place};
use crate::state::{FOLDER, PLAN, REGION, content, files_of, folder, record, request, small};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use streamshield_checkpoint::ObjectCheckpoints;
use streamshield_core::ids::{Epoch, Incarnation, PlanFingerprint, RegionId};
use streamshield_core::ports::checkpoint::{CheckpointErrorKind, CheckpointRequest, CheckpointStore, Durability};

macro_rules! on_every_store {
    ($($test:ident)*) => {
        mod on_a_folder {
            $( #[test] fn $test() { super::$test(&crate::place::Place::folder()); } )*
        }
        mod on_s3 {
            $( #[test] fn $test() { if let Some(place) = crate::place::Place::s3(stringify!($test)) { super::$test(&place); } } )*
        }
        mod on_hdfs {
            $( #[test] fn $test() { if let Some(place) = crate::place::Place::hdfs(stringify!($test)) { super::$test(&place); } } )*
        }
    };
}

on_every_store! {
    what_was_saved_is_restored_bit_for_bit
    a_file_is_uploaded_once_whoever_wrote_it
    a_damaged_truncated_or_missing_file_is_refused_by_name_and_the_next_older_is_used
    a_damaged_or_truncated_manifest_is_refused_and_the_next_older_is_used
    two_incarnations_neither_overwrite_nor_delete_each_other
    retention_keeps_the_newest_and_the_pinned_ones
    nothing_is_deleted_before_the_grace_is_over_by_the_clock_of_the_store
    orphans_of_a_torn_upload_are_collected
    a_clone_starts_another_job_and_the_old_one_stays
    a_clone_goes_on_with_what_an_earlier_try_has_left
    verify_reads_everything_and_names_what_is_wrong
    the_probe_leaves_nothing_behind
    a_checkpoint_of_another_plan_is_not_restored
    a_region_without_state_has_checkpoints_too
}

fn what_was_saved_is_restored_bit_for_bit(place: &Place) {
    let store = place.open();
    let files = [
        // Three parts, the last one short; exactly one part; one byte more than a part; empty; small.
        ("000001.sst", content(1, (16 << 20) + 12_345)),
        ("000002.sst", content(2, 8 << 20)),
        ("000003.sst", content(3, (8 << 20) + 1)),
        ("000004.log", Vec::new()),
        ("CURRENT", b"MANIFEST-000005\n".to_vec()),
    ];
    let request = request(4711, 9, Some(folder(place.disk.path(), "a", &files)));
    let saved = store.save(&request).unwrap();
    assert_eq!((saved.durability, saved.files), (Durability::Remote, 5));
    assert_eq!((saved.bytes, saved.bytes_uploaded), (files.iter().map(|(_, file)| file.len() as u64).sum(), saved.bytes));

    let target = place.disk.path().join("restored");
    // Another process: nothing is known from before.
    let restored = place.open().restore(REGION, PLAN, &target).unwrap().unwrap();
    assert_eq!(files_of(&target), files.into_iter().map(|(name, file)| (name.to_owned(), file)).collect());
    assert_eq!(restored.record, request.record);
    assert_eq!(restored.refused, Vec::<String>::new());
    assert_eq!(restored.bytes_fetched, saved.bytes);
    let info = &restored.info;
    assert_eq!((info.epoch, info.incarnation, info.plan), (request.epoch, request.incarnation, request.plan));
    assert_eq!((&info.positions, info.watermark, info.changelog_from), (&request.positions, request.watermark, request.changelog_from));
    assert_eq!((info.durability, info.pinned, &info.manifest), (Durability::Remote, false, &saved.manifest));
    assert_eq!(store.list(REGION).unwrap(), vec![restored.info]);
    assert!(!place.disk.path().join("restored.fetching").exists());

    let again = store.restore(REGION, PLAN, &target).unwrap_err();
    assert!(again.to_string().contains("there already"), "a store that is in use is not written over: {again}");
}

fn a_file_is_uploaded_once_whoever_wrote_it(place: &Place) {
    let disk = place.disk.path();
    let (old, kept) = (content(1, 200_000), content(2, 300_000));
    let first = folder(disk, "1", &[("000001.sst", old.clone()), ("000002.sst", kept.clone()), ("CURRENT", b"x".to_vec())]);
    assert_eq!(place.open().save(&request(1, 5, Some(first))).unwrap().bytes_uploaded, 500_001);

    // A successor: one file is kept, one number is used again with other content of the same size, one is new.
    let store = place.open();
    let (reused, new) = (content(3, 200_000), content(4, 1_000));
    let files = [("000001.sst", reused), ("000002.sst", kept.clone()), ("000003.sst", new), ("CURRENT", b"x".to_vec())];
    let second = folder(disk, "2", &files);
    let saved = store.save(&request(2, 6, Some(second))).unwrap();
    assert_eq!((saved.bytes, saved.bytes_uploaded), (501_001, 201_000));

    // Content is what counts, under whatever name.
    let third = folder(disk, "3", &[("000077.sst", kept), ("000078.sst", old)]);
    let saved = store.save(&request(3, 6, Some(third))).unwrap();
    assert_eq!((saved.bytes, saved.bytes_uploaded), (500_000, 200_000), "the newest manifest no longer names the old file");

    let target = disk.join("restored");
    place.open().restore(REGION, PLAN, &target).unwrap().unwrap();
    assert_eq!(files_of(&target), files_of(&disk.join("3")));
}

/// The object that holds a file of a checkpoint.
fn object_of(store: &ObjectCheckpoints, epoch: u64, name: &str) -> String {
    let verified = store.verify(REGION).unwrap();
    let checkpoint = verified.iter().find(|found| found.info.as_ref().is_some_and(|info| info.epoch.0 == epoch)).unwrap();
    let file = checkpoint.files.iter().find(|file| file.name == name).unwrap();
    format!("{FOLDER}/files/{}", file.object)
}

fn a_damaged_truncated_or_missing_file_is_refused_by_name_and_the_next_older_is_used(place: &Place) {
    let store = place.open();
    let disk = place.disk.path();
    for epoch in 1..=4 {
        store.save(&small(disk, epoch, 5)).unwrap();
    }
    let objects: Vec<String> = (2..=4).map(|epoch| object_of(&store, epoch, &format!("{:06}.sst", 10 + epoch))).collect();
    let mut flipped = place.read(&objects[2]);
    flipped[12_345] ^= 1;
    place.write(&objects[2], flipped);
    let mut truncated = place.read(&objects[1]);
    truncated.truncate(20_000);
    place.write(&objects[1], truncated);
    place.delete(&objects[0]);

    let target = disk.join("restored");
    let restored = place.open().restore(REGION, PLAN, &target).unwrap().unwrap();
    assert_eq!(restored.info.epoch, Epoch(1));
    assert_eq!(files_of(&target), files_of(&disk.join("1-5")));
    let reasons = ["its checksum is wrong", "20000 bytes instead of 30000", "is missing"];
    assert_eq!(restored.refused.len(), 3, "{:?}", restored.refused);
    for ((refused, reason), object) in restored.refused.iter().zip(reasons).zip(objects.iter().rev()) {
        let name = object.rsplit('/').next().unwrap();
        assert!(refused.contains(reason) && refused.contains(name), "{refused}");
    }
}

fn a_damaged_or_truncated_manifest_is_refused_and_the_next_older_is_used(place: &Place) {
    let store = place.open();
    let disk = place.disk.path();
    let manifests: Vec<String> =
        (1..=3).map(|epoch| format!("{FOLDER}/manifests/{}", store.save(&small(disk, epoch, 5)).unwrap().manifest)).collect();
    let mut changed = place.read(&manifests[2]);
    let position = changed.len() / 2;
    changed[position] ^= 4;
    place.write(&manifests[2], changed);
    let half = place.read(&manifests[1]);
    place.write(&manifests[1], half[..half.len() / 2].to_vec());

    let restored = place.open().restore(REGION, PLAN, &disk.join("restored")).unwrap().unwrap();
    assert_eq!(restored.info.epoch, Epoch(1));
    assert_eq!(restored.refused.len(), 2);
    assert!(restored.refused[0].contains("00000000000000000003-5.json"), "{:?}", restored.refused);
    let listed: Vec<Epoch> = place.open().list(REGION).unwrap().iter().map(|info| info.epoch).collect();
    assert_eq!(listed, vec![Epoch(1)], "nothing is trimmed on account of what cannot be restored");
}

fn two_incarnations_neither_overwrite_nor_delete_each_other(place: &Place) {
    let disk = place.disk.path();
    let (paused, successor) = (place.open(), place.open());
    for epoch in 1..=2 {
        paused.save(&small(disk, epoch, 5)).unwrap();
    }
    for epoch in 3..=8 {
        successor.save(&small(disk, epoch, 6)).unwrap();
    }
    let before = place.names(&format!("{FOLDER}/files"));
    // The paused owner wakes up. It saves once more, the same epoch as its successor, and tidies up with everything forbidden to it being due.
    paused.save(&small(disk, 8, 5)).unwrap();
    for _ in 0..3 {
        paused.maintain(REGION, &mut || true).unwrap();
    }
    let manifests = place.names(&format!("{FOLDER}/manifests"));
    for epoch in 3..=8 {
        assert!(manifests.contains(&format!("{epoch:020}-6.json")), "{manifests:?}");
    }
    assert!(manifests.contains(&format!("{:020}-5.json", 8)), "{manifests:?}");
    let after = place.names(&format!("{FOLDER}/files"));
    let lost: Vec<_> = before.iter().filter(|name| name.starts_with("6-") && !after.contains(name)).collect();
    assert!(lost.is_empty(), "{lost:?}");
    let restored = successor.restore(REGION, PLAN, &disk.join("restored")).unwrap().unwrap();
    assert_eq!((restored.info.epoch, restored.info.incarnation), (Epoch(8), Incarnation(6)));
    assert!(successor.verify(REGION).unwrap().iter().all(|checkpoint| checkpoint.is_whole()));
}

fn epochs(store: &ObjectCheckpoints) -> Vec<u64> {
    store.list(REGION).unwrap().iter().map(|info| info.epoch.0).collect()
}

fn retention_keeps_the_newest_and_the_pinned_ones(place: &Place) {
    let store = place.open();
    let disk = place.disk.path();
    for epoch in 1..=3 {
        store.save(&small(disk, epoch, 5)).unwrap();
    }
    assert_eq!(store.pin(REGION, Epoch(2)).unwrap(), format!("{:020}-5.json", 2));
    assert_eq!(store.pin(REGION, Epoch(77)).unwrap_err().kind, CheckpointErrorKind::Fatal);
    for epoch in 4..=7 {
        store.save(&small(disk, epoch, 5)).unwrap();
    }
    store.maintain(REGION, &mut || true).unwrap();
    assert_eq!(epochs(&store), vec![1, 2, 3, 4, 5, 6, 7], "the first round only marks");
    assert_eq!(place.names(&format!("{FOLDER}/gc")).len(), 1);
    store.maintain(REGION, &mut || false).unwrap();
    assert_eq!(epochs(&store), vec![1, 2, 3, 4, 5, 6, 7], "who is not the owner any more deletes nothing");
    store.maintain(REGION, &mut || true).unwrap();
    assert_eq!(epochs(&store), vec![2, 5, 6, 7]);
    assert!(store.list(REGION).unwrap()[0].pinned);
    assert!(place.names(&format!("{FOLDER}/gc")).is_empty());

    store.unpin(REGION, Epoch(2)).unwrap();
    store.unpin(REGION, Epoch(2)).unwrap_err();
    for _ in 0..2 {
        store.maintain(REGION, &mut || true).unwrap();
    }
    assert_eq!(epochs(&store), vec![5, 6, 7]);
    // The shared table file, CURRENT, and two files of their own for each.
    let files = place.names(&format!("{FOLDER}/files"));
    assert_eq!(files.len(), 2 + 3 * 2, "{files:?}");
    assert!(store.verify(REGION).unwrap().iter().all(|checkpoint| checkpoint.is_whole()));
}

fn nothing_is_deleted_before_the_grace_is_over_by_the_clock_of_the_store(place: &Place) {
    let mut config = place.config();
    config.gc_grace = Duration::from_secs(6);
    config.save_timeout = Duration::from_millis(5_500);
    config.restore_timeout = Duration::from_millis(5_500);
    config.retain_count = 1;
    let store = ObjectCheckpoints::open(config, JOB).unwrap();
    let disk = place.disk.path();
    for epoch in 1..=2 {
        store.save(&small(disk, epoch, 5)).unwrap();
    }
    place.write(&format!("{FOLDER}/files/5-{:032x}-000099.sst", 1), vec![1; 10]);
    let begin = Instant::now();
    store.maintain(REGION, &mut || true).unwrap();
    let marked = Instant::now();
    while epochs(&store) == vec![1, 2] {
        assert!(begin.elapsed() < Duration::from_secs(40), "nothing is ever deleted");
        std::thread::sleep(Duration::from_millis(100));
        store.maintain(REGION, &mut || true).unwrap();
    }
    assert!(begin.elapsed() >= Duration::from_secs(6), "deleted after {:?}", begin.elapsed());
    assert_eq!(epochs(&store), vec![2]);
    // The orphan is marked once it is older than the grace, and then waits as long again.
    while place.names(&format!("{FOLDER}/files")).iter().any(|name| name.ends_with("000099.sst")) {
        assert!(begin.elapsed() < Duration::from_secs(60), "the orphan stays");
        std::thread::sleep(Duration::from_millis(100));
        store.maintain(REGION, &mut || true).unwrap();
    }
    assert!(marked.elapsed() >= Duration::from_secs(11), "deleted after {:?}", marked.elapsed());
    assert!(store.verify(REGION).unwrap()[0].is_whole());
}

fn orphans_of_a_torn_upload_are_collected(place: &Place) {
    let store = place.open();
    store.save(&small(place.disk.path(), 1, 5)).unwrap();
    let orphan = format!("{FOLDER}/files/5-{:032x}-000099.sst", 1);
    let of_the_successor = format!("{FOLDER}/files/6-{:032x}-000099.sst", 2);
    let foreign = format!("{FOLDER}/files/notes.txt");
    for object in [&orphan, &of_the_successor, &foreign] {
        place.write(object, vec![1; 10]);
    }
    for _ in 0..2 {
        store.maintain(REGION, &mut || true).unwrap();
    }
    let files = place.names(&format!("{FOLDER}/files"));
    let has = |object: &str| files.iter().any(|name| object.ends_with(name.as_str()));
    assert!(!has(&orphan) && has(&of_the_successor) && has(&foreign), "{files:?}");
    assert!(store.verify(REGION).unwrap()[0].is_whole());
}

fn a_clone_starts_another_job_and_the_old_one_stays(place: &Place) {
    let store = place.open();
    let disk = place.disk.path();
    for epoch in 1..=3 {
        store.save(&small(disk, epoch, 5)).unwrap();
    }
    let of_epoch = |epoch| BTreeMap::from([(REGION, record(REGION, epoch))]);
    let (epochs, records) = (BTreeMap::from([(REGION, Epoch(2))]), of_epoch(2));
    store.check_clone("what-if", &epochs).unwrap();
    let cloned = store.clone_to("what-if", &records).unwrap();
    assert_eq!((cloned.len(), cloned[0].epoch), (1, Epoch(2)));
    assert_eq!((cloned[0].changelog_from, &cloned[0].positions), (0, &records[&REGION].positions), "its topics are new ones");
    let other = ObjectCheckpoints::open(place.config(), "what-if").unwrap();
    assert_eq!(other.regions().unwrap(), vec![REGION]);
    let target = disk.join("restored");
    let restored = other.restore(REGION, PLAN, &target).unwrap().unwrap();
    assert_eq!((restored.info.epoch, files_of(&target)), (Epoch(2), files_of(&disk.join("2-5"))));
    assert_eq!(restored.record, records[&REGION].encode());
    assert_eq!(store.record(REGION, Epoch(2)).unwrap(), request(2, 5, None).record);
    // The new job is on its own: what the old one deletes does not matter to it.
    other.save(&small(disk, 3, 9)).unwrap();
    for _ in 0..2 {
        store.collect_garbage(REGION, Some(Duration::ZERO), &mut || true).unwrap();
    }
    assert!(other.verify(REGION).unwrap().iter().all(|checkpoint| checkpoint.is_whole()));

    let twice = store.clone_to("what-if", &records).unwrap_err();
    assert!(twice.kind == CheckpointErrorKind::Fatal && twice.to_string().contains("choose a new name"), "{twice}");
    assert!(store.check_clone("what-if", &epochs).is_err());
    assert!(store.clone_to(JOB, &records).is_err() && store.clone_to("../x", &records).is_err());
    assert!(store.clone_to("another", &of_epoch(99)).unwrap_err().to_string().contains("epoch 99"));
}

fn a_clone_goes_on_with_what_an_earlier_try_has_left(place: &Place) {
    let (store, disk) = (place.open(), place.disk.path());
    let second = RegionId { partition: 4, ..REGION };
    for region in [REGION, second] {
        store.save(&CheckpointRequest { region, ..small(disk, 2, 5) }).unwrap();
    }
    let both = BTreeMap::from([(REGION, Epoch(2)), (second, Epoch(2))]);
    let records = BTreeMap::from([REGION, second].map(|region| (region, record(region, 2))));
    store.clone_to("what-if", &BTreeMap::from([(REGION, record(REGION, 2))])).unwrap();
    let mut elsewhere = records.clone();
    elsewhere.get_mut(&REGION).unwrap().positions = vec![1];
    let other = store.clone_to("what-if", &elsewhere).unwrap_err();
    assert!(other.to_string().contains("another checkpoint lies under this name"), "{other}");
    store.check_clone("what-if", &both).unwrap();
    assert_eq!(store.clone_to("what-if", &records).unwrap().len(), 2);
    let other = ObjectCheckpoints::open(place.config(), "what-if").unwrap();
    for region in [REGION, second] {
        let target = disk.join(format!("restored-{}", region.partition));
        let restored = other.restore(region, PLAN, &target).unwrap().unwrap();
        assert_eq!((restored.record, files_of(&target)), (records[&region].encode(), files_of(&disk.join("2-5"))));
    }
    for twice in [store.check_clone("what-if", &both), store.clone_to("what-if", &records).map(drop)] {
        let twice = twice.unwrap_err();
        assert!(twice.to_string().contains("choose a new name"), "{twice}");
    }
}

fn verify_reads_everything_and_names_what_is_wrong(place: &Place) {
    let store = place.open();
    for epoch in 1..=2 {
        store.save(&small(place.disk.path(), epoch, 5)).unwrap();
    }
    assert!(store.verify(REGION).unwrap().iter().all(|checkpoint| checkpoint.is_whole() && checkpoint.files.len() == 4));
    let object = object_of(&store, 2, "MANIFEST-000005");
    place.write(&object, vec![0; 300]);
    let verified = store.verify(REGION).unwrap();
    assert!(verified[0].is_whole() && !verified[1].is_whole());
    let bad: Vec<&str> = verified[1].files.iter().filter(|file| file.problem.is_some()).map(|file| file.name.as_str()).collect();
    assert_eq!(bad, vec!["MANIFEST-000005"]);
}

fn the_probe_leaves_nothing_behind(place: &Place) {
    let probe = place.open().probe().unwrap();
    assert!(probe.conditional_writes);
    assert_eq!(place.names(JOB), Vec::<String>::new());
    assert_eq!(place.open().regions().unwrap(), vec![]);
    assert_eq!(place.open().list(REGION).unwrap(), vec![]);
    assert!(place.open().restore(REGION, PLAN, &place.disk.path().join("restored")).unwrap().is_none());
}

fn a_checkpoint_of_another_plan_is_not_restored(place: &Place) {
    let store = place.open();
    let disk = place.disk.path();
    store.save(&small(disk, 1, 5)).unwrap();
    let mut newer = small(disk, 2, 5);
    newer.plan = PlanFingerprint(1);
    store.save(&newer).unwrap();
    let restored = store.restore(REGION, PLAN, &disk.join("a")).unwrap().unwrap();
    assert_eq!((restored.info.epoch, restored.refused.len()), (Epoch(1), 0));
    assert_eq!(store.restore(REGION, PlanFingerprint(1), &disk.join("b")).unwrap().unwrap().info.epoch, Epoch(2));
    assert!(store.restore(REGION, PlanFingerprint(2), &disk.join("c")).unwrap().is_none());
}

fn a_region_without_state_has_checkpoints_too(place: &Place) {
    let store = place.open();
    let saved = store.save(&request(3, 5, None)).unwrap();
    assert_eq!((saved.files, saved.bytes), (0, 0));
    let target = place.disk.path().join("restored");
    let restored = place.open().restore(REGION, PLAN, &target).unwrap().unwrap();
    assert_eq!((restored.info.epoch, restored.record), (Epoch(3), request(3, 5, None).record));
    assert!(!target.exists(), "without files there is no folder");
}

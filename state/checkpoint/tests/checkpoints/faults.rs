//! Single faults of a store, and what a save or a restore makes of them.

use crate::faulty::{Fault, Faulty, Op};
use crate::place::{JOB, Place};
use crate::state::{FOLDER, PLAN, REGION, content, files_of, folder, request, small};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};
use streamshield_checkpoint::{ObjectCheckpoints, StoreConfig};
use streamshield_core::ids::{Epoch, PlanFingerprint};
use streamshield_core::ports::checkpoint::{CheckpointRequest, CheckpointStore, Durability};

/// A folder behind a faulty layer, with time-outs of tests.
fn quick(place: &Place) -> StoreConfig {
    let mut config = place.config();
    config.request_timeout = Duration::from_millis(400);
    config.retry_timeout = Duration::from_secs(4);
    config
}

fn on(faulty: &Arc<Faulty>, config: StoreConfig) -> ObjectCheckpoints {
    ObjectCheckpoints::with_store(config, JOB, faulty.clone(), "").unwrap()
}

#[test]
fn a_manifest_whose_answer_was_lost_is_recognised_as_our_own() {
    let place = Place::folder();
    let mut lost = 0;
    let faulty = Faulty::new(place.store.clone(), move |op, path| {
        if op == Op::Create && path.contains("manifests") && lost < 2 {
            lost += 1;
            return Fault::FailAfter;
        }
        Fault::None
    });
    let store = on(&faulty, quick(&place));
    let saved = store.save(&small(place.disk.path(), 1, 5)).unwrap();
    assert_eq!(saved.durability, Durability::Remote);
    assert_eq!(place.names(&format!("{FOLDER}/manifests")).len(), 1);
}

#[test]
fn a_manifest_of_the_same_epoch_by_the_same_writer_is_as_good_but_one_of_another_plan_is_not() {
    let place = Place::folder();
    let store = place.open();
    let disk = place.disk.path();
    store.save(&small(disk, 1, 5)).unwrap();
    // The engine did not hear of it and saves the epoch again: the file set may differ, the state is the same.
    let again = request(1, 5, Some(folder(disk, "again", &[("000001.sst", content(1, 100_000))])));
    let saved = store.save(&again).unwrap();
    assert_eq!((saved.durability, saved.files), (Durability::Remote, 4), "what lies there counts");
    let mut other = again;
    other.plan = PlanFingerprint(1);
    let error = store.save(&other).unwrap_err();
    assert!(error.to_string().contains("another checkpoint lies under this name"), "{error}");
}

#[test]
fn a_failed_upload_goes_on_where_it_ended() {
    let place = Place::folder();
    let faulty = Faulty::new(place.store.clone(), |op, path| match op {
        Op::Put if path.contains("000003.sst") => Fault::Fail,
        _ => Fault::None,
    });
    let mut config = quick(&place);
    config.upload_concurrency = 1;
    let store = on(&faulty, config);
    let files = [("000001.sst", content(1, 200_000)), ("000002.sst", content(2, 100_000)), ("000003.sst", content(3, 50_000))];
    let directory = folder(place.disk.path(), "a", &files);
    store.save(&request(1, 5, Some(directory.clone()))).unwrap_err();
    assert!(place.names(&format!("{FOLDER}/manifests")).is_empty(), "K-1");
    faulty.set(|_, _| Fault::None);
    let saved = store.save(&request(2, 5, Some(directory))).unwrap();
    assert_eq!((saved.bytes, saved.bytes_uploaded), (350_000, 50_000));

    // A file that was uploaded and is gone is uploaded again: the store is looked at, not the memory of it.
    faulty.set(|op, path| if op == Op::Put && path.contains("000005.sst") { Fault::Fail } else { Fault::None });
    let files = [("000004.sst", content(4, 70_000)), ("000005.sst", content(5, 80_000))];
    let directory = folder(place.disk.path(), "b", &files);
    store.save(&request(3, 5, Some(directory.clone()))).unwrap_err();
    let uploaded = place.names(&format!("{FOLDER}/files")).into_iter().find(|name| name.ends_with("000004.sst")).unwrap();
    place.delete(&format!("{FOLDER}/files/{uploaded}"));
    faulty.set(|_, _| Fault::None);
    assert_eq!(store.save(&request(4, 5, Some(directory))).unwrap().bytes_uploaded, 150_000);
    assert!(store.verify(REGION).unwrap().iter().all(|checkpoint| checkpoint.is_whole()));
}

#[test]
fn what_a_torn_upload_left_longer_ago_than_the_grace_is_uploaded_again() {
    for (age, bytes_uploaded) in [(Duration::ZERO, 50_000), (Duration::from_secs(2 * 60 * 60), 250_000)] {
        let place = Place::folder();
        let faulty = Faulty::new(place.store.clone(), |op, path| match op {
            Op::Put if path.contains("000002.sst") => Fault::Fail,
            _ => Fault::None,
        });
        let mut config = quick(&place);
        config.gc_grace = Duration::from_secs(60 * 60);
        config.upload_concurrency = 1;
        let store = on(&faulty, config);
        let directory = folder(place.disk.path(), "a", &[("000001.sst", content(1, 200_000)), ("000002.sst", content(2, 50_000))]);
        store.save(&request(1, 5, Some(directory.clone()))).unwrap_err();
        let files = place.disk.path().join("store").join(FOLDER).join("files");
        let names = place.names(&format!("{FOLDER}/files"));
        assert_eq!(names.len(), 1, "{names:?}");
        let left = std::fs::File::options().write(true).open(files.join(&names[0])).unwrap();
        left.set_modified(SystemTime::now() - age).unwrap();
        faulty.set(|_, _| Fault::None);
        assert_eq!(store.save(&request(2, 5, Some(directory))).unwrap().bytes_uploaded, bytes_uploaded, "{age:?}");
    }
}

#[test]
fn a_file_that_changes_while_it_is_uploaded_makes_no_checkpoint() {
    let place = Place::folder();
    let directory = folder(place.disk.path(), "a", &[("000001.sst", content(1, 200_000))]);
    let file = directory.join("000001.sst");
    let faulty = Faulty::new(place.store.clone(), move |op, _| {
        if op == Op::List {
            // It has been hashed by now.
            std::fs::write(&file, content(2, 200_000)).unwrap();
        }
        Fault::None
    });
    let error = on(&faulty, quick(&place)).save(&request(1, 5, Some(directory))).unwrap_err();
    assert!(error.to_string().contains("changed while it was read"), "{error}");
    assert!(place.names(&format!("{FOLDER}/manifests")).is_empty());
}

#[test]
fn a_save_is_bounded_although_nothing_answers() {
    let place = Place::folder();
    for hanging in [Op::List, Op::Put, Op::Create, Op::Multipart] {
        let faulty = Faulty::new(place.store.clone(), move |op, _| if op == hanging { Fault::Hang } else { Fault::None });
        let mut config = quick(&place);
        config.retry_timeout = Duration::from_secs(1);
        config.local_fallback = Some(place.disk.path().join(format!("local-{hanging:?}")));
        let store = on(&faulty, config);
        let large = [("000001.sst", content(1, (8 << 20) + 1)), ("000002.sst", content(2, 10))];
        let directory = folder(place.disk.path(), "large", &large);
        let begin = Instant::now();
        let saved = store.save(&request(1, 5, Some(directory))).unwrap();
        assert_eq!(saved.durability, Durability::Local, "{hanging:?}");
        assert!(begin.elapsed() < Duration::from_secs(6), "{hanging:?}: {:?}", begin.elapsed());
        assert!(!store.is_available(), "{hanging:?}");
    }
}

#[test]
fn a_slow_store_is_given_up_after_the_time_of_a_save_and_the_checkpoint_is_kept_locally() {
    let place = Place::folder();
    // Each request is within its limit; the whole is not.
    let faulty =
        Faulty::new(place.store.clone(), |op, _| if op == Op::Put { Fault::Delay(Duration::from_millis(300)) } else { Fault::None });
    let mut config = quick(&place);
    config.save_timeout = Duration::from_secs(1);
    config.upload_concurrency = 1;
    config.local_fallback = Some(place.disk.path().join("local"));
    let store = on(&faulty, config);
    let names: Vec<String> = (0..10).map(|index| format!("{index:06}.sst")).collect();
    let files: Vec<(&str, Vec<u8>)> = names.iter().enumerate().map(|(index, name)| (name.as_str(), content(index as u64, 1_000))).collect();
    let directory = folder(place.disk.path(), "a", &files);
    assert_eq!(store.save(&request(1, 5, Some(directory))).unwrap().durability, Durability::Local);
    assert!(!store.is_available());
    assert!(place.names(&format!("{FOLDER}/manifests")).is_empty());
}

fn twenty_files(place: &Place) -> CheckpointRequest {
    let names: Vec<String> = (0..20).map(|index| format!("{index:06}.sst")).collect();
    let files: Vec<(&str, Vec<u8>)> = names.iter().zip(0..).map(|(name, seed)| (name.as_str(), content(seed, 100_000))).collect();
    request(1, 5, Some(folder(place.disk.path(), "twenty", &files)))
}

#[test]
fn uploads_keep_to_their_concurrency() {
    let place = Place::folder();
    let faulty =
        Faulty::new(place.store.clone(), |op, _| if op.is_write() { Fault::Delay(Duration::from_millis(30)) } else { Fault::None });
    let mut config = place.config();
    config.upload_concurrency = 3;
    on(&faulty, config).save(&twenty_files(&place)).unwrap();
    assert_eq!(faulty.writes_at_once.load(Ordering::SeqCst), 3);
}

#[test]
fn uploads_keep_to_their_bandwidth() {
    let place = Place::folder();
    let mut config = place.config();
    config.upload_bytes_per_second = Some(1_000_000);
    let store = ObjectCheckpoints::open(config, JOB).unwrap();
    let begin = Instant::now();
    store.save(&twenty_files(&place)).unwrap();
    // Two million bytes; the last hundred thousand are sent when those before them are paid for.
    assert!(begin.elapsed() >= Duration::from_millis(1_900), "{:?}", begin.elapsed());
}

#[test]
fn waiting_for_the_bandwidth_does_not_count_against_the_time_of_a_save() {
    let place = Place::folder();
    let mut config = place.config();
    config.upload_bytes_per_second = Some(1_000_000);
    config.save_timeout = Duration::from_millis(1_500);
    let store = ObjectCheckpoints::open(config, JOB).unwrap();
    let saved = store.save(&twenty_files(&place)).unwrap();
    // Two million bytes, as above.
    assert!(saved.durability == Durability::Remote && saved.seconds > 1.8, "{saved:?}");
    assert!(store.is_available());
}

#[test]
fn waiting_for_the_bandwidth_leaves_a_large_file_its_second_try() {
    let place = Place::folder();
    let mut failed = false;
    let faulty = Faulty::new(place.store.clone(), move |op, _| {
        if op == Op::Part && !failed {
            failed = true;
            return Fault::Fail;
        }
        Fault::None
    });
    let mut config = place.config();
    config.request_timeout = Duration::from_secs(2);
    config.retry_timeout = Duration::from_secs(2);
    // The second part waits for longer than that.
    config.upload_bytes_per_second = Some(3 << 20);
    let store = on(&faulty, config);
    let directory = folder(place.disk.path(), "large", &[("000001.sst", content(1, 12 << 20))]);
    let saved = store.save(&request(1, 5, Some(directory.clone()))).unwrap();
    // At least 8 and then 12 MiB; the last 4 are sent when those before them are paid for.
    assert!(saved.durability == Durability::Remote && saved.seconds > 5.0, "{saved:?}");
    assert!(store.is_available());
    let files = place.disk.path().join("store").join(FOLDER).join("files");
    assert_eq!(std::fs::read_dir(files).unwrap().count(), 1, "the torn upload was given up");
    let target = place.disk.path().join("restored");
    store.restore(REGION, PLAN, &target).unwrap().unwrap();
    assert_eq!(files_of(&target), files_of(&directory));
}

#[test]
fn a_restore_survives_single_failures_and_delays() {
    let place = Place::folder();
    let store = place.open();
    let files = [("000001.sst", content(1, (16 << 20) + 5)), ("000002.sst", content(2, 5_000)), ("CURRENT", b"x".to_vec())];
    let directory = folder(place.disk.path(), "a", &files);
    store.save(&request(1, 5, Some(directory.clone()))).unwrap();
    let mut number = 0;
    let faulty = Faulty::new(place.store.clone(), move |op, _| {
        number += 1;
        match (op, number % 3) {
            (Op::Get | Op::List, 0) => Fault::Fail,
            (Op::Get, 1) => Fault::Delay(Duration::from_millis(30)),
            _ => Fault::None,
        }
    });
    let mut config = place.config();
    config.restore_concurrency = 2;
    let target = place.disk.path().join("restored");
    let restored = on(&faulty, config).restore(REGION, PLAN, &target).unwrap().unwrap();
    assert_eq!((restored.info.epoch, files_of(&target)), (Epoch(1), files_of(&directory)));
    assert!(restored.refused.is_empty(), "{:?}", restored.refused);
}

#[test]
fn a_store_that_goes_away_during_a_restore_is_not_taken_for_damage() {
    let place = Place::folder();
    let store = place.open();
    for epoch in 1..=2 {
        store.save(&small(place.disk.path(), epoch, 5)).unwrap();
    }
    let faulty =
        Faulty::new(place.store.clone(), |op, path| if op == Op::Get && path.contains("/files/") { Fault::Fail } else { Fault::None });
    let target = place.disk.path().join("restored");
    let error = on(&faulty, quick(&place)).restore(REGION, PLAN, &target).unwrap_err();
    assert_eq!(error.kind, streamshield_core::ports::checkpoint::CheckpointErrorKind::Away, "{error}");
    assert!(!target.exists() && !place.disk.path().join("restored.fetching").exists());
}

#[test]
fn calls_from_a_thread_of_a_runtime_work_too() {
    let place = Place::folder();
    let store = place.open();
    let request = small(place.disk.path(), 1, 5);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        store.save(&request).unwrap();
        assert_eq!(store.list(REGION).unwrap().len(), 1);
        drop(store);
    });
}

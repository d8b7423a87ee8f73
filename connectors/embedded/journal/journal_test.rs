//! What is written is read back, and what is damaged is noticed.

use std::collections::BTreeMap;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::log_core::Limits;
use crate::log_core::test_kit::{NOBODY, NOW_MS, TOPIC, batch_of};

const NEVER: u64 = u64::MAX;

fn empty() -> LogCore {
    LogCore::new(Limits::default(), 1)
}

fn open(folder: &Path, roll_bytes_min: u64) -> (LogCore, Journal) {
    let mut core = empty();
    let journal = Journal::open(folder, Fsync::Never, roll_bytes_min, &mut core).expect("the journal opens");
    (core, journal)
}

fn put(core: &mut LogCore, journal: &mut Journal, key: &str) {
    core.produce(NOW_MS, None, TOPIC, 0, &batch_of(NOBODY, NOW_MS, &[(key, Some("some value"))])).expect("appended");
    journal.write(&core.take_events()).expect("written");
}

/// A history that touches every kind of event; the state after each call.
fn history(core: &mut LogCore, journal: &mut Journal) -> Vec<Vec<Event>> {
    type Call = fn(&mut LogCore);
    let anonymous = crate::log_core::groups::Caller { member_id: "", instance_id: None, generation: -1 };
    let calls: &[Call] = &[
        |core| {
            let _ = core.create_topic(TOPIC, 1, BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned())]));
        },
        |core| {
            let _ = core.create_topic("other", 2, BTreeMap::new());
        },
        |core| {
            let _ = core.produce(NOW_MS, None, TOPIC, 0, &batch_of(NOBODY, NOW_MS, &[("a", Some("1")), ("b", None)]));
        },
        |core| {
            let _ = core.init_producer_id(NOW_MS, Some("x"), 1000, None);
        },
        |core| {
            let _ = core.add_partitions_to_transaction(NOW_MS, "x", (1000, 0), &[(TOPIC.to_owned(), 0), ("other".to_owned(), 1)]);
        },
        |core| {
            let _ = core.add_offsets_to_transaction(NOW_MS, "x", (1000, 0), "g");
        },
        |core| {
            let _ = core.end_transaction(NOW_MS, "x", (1000, 0), false);
        },
        |core| {
            let _ = core.add_partitions("other", 3);
        },
        |core| {
            let _ = core.configure_topic("other", BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]));
        },
        |core| {
            let _ = core.trim(TOPIC, 0, 1);
        },
        |core| {
            let _ = core.delete_topic("other");
        },
        |core| core.tick(NOW_MS + 8 * 86_400_000),
    ];
    let mut states = vec![core.snapshot()];
    for call in calls {
        call(core);
        journal.write(&core.take_events()).expect("written");
        states.push(core.snapshot());
    }
    let at = crate::log_core::CommittedOffset { offset: 1, leader_epoch: -1, metadata: "m".into() };
    core.commit_offsets(NOW_MS, "h", &anonymous, vec![((TOPIC.to_owned(), 0), at)]);
    journal.write(&core.take_events()).expect("written");
    states.push(core.snapshot());
    states
}

fn folder_bytes(folder: &Path) -> u64 {
    recovery::list(folder).expect("a folder").iter().map(|(path, _)| path.metadata().expect("a file").len()).sum()
}

#[test]
fn a_history_is_read_back_whatever_is_synced() {
    for fsync in [Fsync::Never, Fsync::Interval { interval_ms: 10 }, Fsync::Always] {
        let folder = TempDir::new().expect("a folder");
        let mut core = empty();
        let mut journal = Journal::open(folder.path(), fsync, NEVER, &mut core).expect("the journal opens");
        history(&mut core, &mut journal);
        journal.tick(NOW_MS, &core).expect("ticked");
        assert_eq!(journal.has_unsynced, fsync == Fsync::Never);
        drop(journal);
        let (read_back, _journal) = open(folder.path(), NEVER);
        assert_eq!(read_back.snapshot(), core.snapshot());
    }
}

#[test]
fn a_journal_cut_at_any_byte_is_read_back_up_to_its_last_whole_call() {
    let folder = TempDir::new().expect("a folder");
    let (mut core, mut journal) = open(folder.path(), NEVER);
    let mut states = history(&mut core, &mut journal);
    states.dedup();
    drop(journal);
    let path = journal_path(folder.path(), 1);
    let whole = std::fs::read(&path).expect("the journal");
    let mut reached = 0;
    for length in 0..=whole.len() {
        std::fs::write(&path, &whole[..length]).expect("written");
        let (read_back, mut journal) = open(folder.path(), NEVER);
        let state = read_back.snapshot();
        while states[reached] != state {
            reached += 1;
            assert!(reached < states.len(), "cut at {length}: a state that never was");
        }
        journal.write(&[Event::GroupDeleted { group: "after".into() }]).expect("it goes on");
        drop(journal);
        open(folder.path(), NEVER);
    }
    assert_eq!(reached, states.len() - 1, "the whole journal gives the last state");
}

#[test]
fn damage_before_the_end_stops_the_start() {
    let folder = TempDir::new().expect("a folder");
    let (mut core, mut journal) = open(folder.path(), NEVER);
    history(&mut core, &mut journal);
    drop(journal);
    let path = journal_path(folder.path(), 1);
    let mut content = std::fs::read(&path).expect("the journal");
    content[20] ^= 1;
    std::fs::write(&path, content).expect("written");
    let opened = Journal::open(folder.path(), Fsync::Never, NEVER, &mut empty());
    assert!(matches!(opened, Err(EmbeddedError::JournalDamaged { position: 0, .. })), "{opened:?}");
}

#[test]
fn a_length_that_no_frame_has_stops_the_start_and_cuts_nothing_off() {
    let folder = TempDir::new().expect("a folder");
    let (mut core, mut journal) = open(folder.path(), NEVER);
    history(&mut core, &mut journal);
    drop(journal);
    let path = journal_path(folder.path(), 1);
    let mut content = std::fs::read(&path).expect("the journal");
    content[0] ^= 0x80;
    std::fs::write(&path, &content).expect("written");
    let opened = Journal::open(folder.path(), Fsync::Never, NEVER, &mut empty());
    assert!(matches!(opened, Err(EmbeddedError::JournalDamaged { position: 0, .. })), "{opened:?}");
    assert_eq!(std::fs::read(&path).expect("the journal"), content);
}

#[test]
fn a_tail_of_zeros_counts_as_torn() {
    let folder = TempDir::new().expect("a folder");
    let (mut core, mut journal) = open(folder.path(), NEVER);
    history(&mut core, &mut journal);
    drop(journal);
    let path = journal_path(folder.path(), 1);
    let mut content = std::fs::read(&path).expect("the journal");
    content.extend([0; 5000]);
    std::fs::write(&path, content).expect("written");
    let (read_back, _journal) = open(folder.path(), NEVER);
    assert_eq!(read_back.snapshot(), core.snapshot());
}

#[test]
fn the_folder_stays_bounded_while_records_come_and_are_trimmed() {
    const ROLL_BYTES: u64 = 20_000;
    let folder = TempDir::new().expect("a folder");
    let (mut core, mut journal) = open(folder.path(), ROLL_BYTES);
    core.create_topic(TOPIC, 1, BTreeMap::new()).expect("a new topic");
    let mut largest = 0;
    for number in 0..5_000i64 {
        put(&mut core, &mut journal, &format!("k{number}"));
        if number % 10 == 0 {
            core.trim(TOPIC, 0, (number - 20).max(0)).expect("trimmed");
            journal.tick(NOW_MS, &core).expect("ticked");
            if let Some(writer) = &journal.snapshot_writer {
                while !writer.is_finished() {
                    std::thread::yield_now();
                }
            }
            largest = largest.max(folder_bytes(folder.path()));
        }
    }
    assert!(journal.number > 10, "it was rolled {} times", journal.number - 1);
    assert!(largest < 4 * ROLL_BYTES, "{largest} bytes");
    journal.close().expect("closed");
    drop(journal);
    let (read_back, _journal) = open(folder.path(), ROLL_BYTES);
    assert_eq!(read_back.snapshot(), core.snapshot());
}

#[test]
fn a_roll_that_was_interrupted_loses_nothing() {
    let folder = TempDir::new().expect("a folder");
    let (mut core, mut journal) = open(folder.path(), NEVER);
    history(&mut core, &mut journal);
    drop(journal);
    // the next journal was begun, its snapshot was not finished
    std::fs::write(snapshot_path(folder.path(), 2).with_extension("tmp"), b"half").expect("written");
    std::fs::write(journal_path(folder.path(), 2), b"").expect("written");
    let (mut read_back, mut journal) = open(folder.path(), NEVER);
    assert_eq!(read_back.snapshot(), core.snapshot());
    assert_eq!(journal.number, 2);
    put(&mut read_back, &mut journal, "after");
    drop(journal);
    let (again, _journal) = open(folder.path(), NEVER);
    assert_eq!(again.snapshot(), read_back.snapshot());
}

#[test]
fn a_journal_that_is_missing_stops_the_start() {
    let folder = TempDir::new().expect("a folder");
    std::fs::write(journal_path(folder.path(), 3), b"").expect("written");
    let opened = Journal::open(folder.path(), Fsync::Never, NEVER, &mut empty());
    assert!(matches!(opened, Err(EmbeddedError::JournalMissing { number: 1, .. })), "{opened:?}");
}

#[test]
fn a_folder_serves_one_broker_at_a_time() {
    let folder = TempDir::new().expect("a folder");
    let (_core, journal) = open(folder.path(), NEVER);
    let second = Journal::open(folder.path(), Fsync::Never, NEVER, &mut empty());
    assert!(matches!(second, Err(EmbeddedError::FolderInUse { .. })), "{second:?}");
    drop(journal);
    open(folder.path(), NEVER);
}

use crate::log_or_return;
use crate::support::*;
use std::sync::Arc;
use streamshield_core::ports::log::*;

#[test]
fn a_replay_gives_exactly_the_messages_of_the_step() {
    let log = log_or_return!();
    let topic = topic(&log, "replay", 1);
    let mut writer = log.writer(&unique("replay")).expect("writer");
    for start in [0, 40, 80] {
        commit(&mut *writer, &values(&topic, numbered("v", start..start + 40)));
    }
    // Offsets 0-39, marker 40, 41-80, marker 81, 82-121, marker 122.
    let (all, end) = Reading::new(&log, &topic, 0, 0).take_to_settled_end(&log);
    assert_eq!((all.len(), end), (120, 123));
    for (from, to) in [(0, 17), (17, 18), (30, 60), (41, 81), (75, 122)] {
        let mut reading = Reading::new(&log, &topic, 0, from);
        let expected: Vec<_> = all.iter().filter(|seen| (from..to).contains(&seen.offset)).cloned().collect();
        let (mut got, mut next) = (Vec::new(), from);
        while next < to {
            let (seen, taken) = reading.take(&TakeLimit { messages: 7, bytes: 1 << 20, end: Some(to) }).expect("take");
            got.extend(seen);
            next = taken.next;
            reading.wait();
        }
        assert_eq!(got, expected, "[{from}, {to})");
        assert_eq!(next, to, "a step ends behind a message");
        let (rest, _) = reading.take_to_settled_end(&log);
        assert_eq!(rest.first().map(|seen| seen.offset), all.iter().map(|seen| seen.offset).find(|offset| *offset >= to), "leftovers stay");
    }
}

#[test]
fn limits_are_kept_and_a_larger_message_is_taken_alone() {
    let log = log_or_return!();
    let topic = topic(&log, "limits", 1);
    let mut writer = log.writer(&unique("limits")).expect("writer");
    commit(&mut *writer, &values(&topic, ["a".repeat(10), "b".repeat(500), "c".repeat(10), "d".repeat(10), "e".repeat(10)]));
    let mut reading = Reading::new(&log, &topic, 0, 0);
    let limit = TakeLimit { messages: 2, bytes: 100, end: None };
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 5 {
        let (seen, taken) = reading.take(&limit).expect("take");
        assert!(taken.bytes <= 100 || seen.len() == 1);
        sizes.extend((!seen.is_empty()).then_some(seen.len()));
        reading.wait();
    }
    assert_eq!(sizes, [1, 1, 2, 1]);
    let (none, taken) = reading.take(&limit).expect("take");
    assert_eq!((none.len(), taken.next), (0, 5), "the position stays");
}

#[test]
fn only_committed_messages_are_visible_and_markers_count_in_the_end() {
    let log = log_or_return!();
    let topic = topic(&log, "committed", 1);
    let mut reading = Reading::new(&log, &topic, 0, 0);
    assert_eq!(reading.take_to_end(), (vec![], 0));
    let mut writer = log.writer(&unique("committed")).expect("writer");
    writer.begin().expect("begin");
    writer.send_set(&values(&topic, numbered("open", 0..5))).expect("send");
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    // Other messages behind the open transaction must stay hidden too.
    let plain = OutMessage {
        topic: Arc::clone(&topic),
        partition: Some(0),
        key: None,
        payload: Some(b"plain".to_vec()),
        headers: vec![],
        timestamp_ms: None,
    };
    wait_until(|| log.bounds(&partition, Isolation::ReadUncommitted).expect("bounds").high == 5);
    assert_eq!(log.append(&plain).expect("append"), 5);
    assert_eq!(log.bounds(&partition, Isolation::ReadUncommitted).expect("bounds"), Bounds { low: 0, high: 6 });
    assert_eq!(log.bounds(&partition, Isolation::ReadCommitted).expect("bounds"), Bounds { low: 0, high: 0 }, "last stable offset");
    let (seen, taken) = reading.take(&ALL).expect("take");
    assert_eq!((seen.len(), taken.at_end), (0, Some(0)));
    assert_eq!(writer.commit(), CommitOutcome::Committed);
    let seen = reading.messages(6);
    assert_eq!(texts(&seen), ["open0", "open1", "open2", "open3", "open4", "plain"]);
    let (_, end) = reading.take_to_settled_end(&log);
    assert_eq!(end, 7, "the commit marker stands at offset 6");
}

#[test]
fn aborted_messages_are_never_seen_and_move_the_end() {
    let log = log_or_return!();
    let topic = topic(&log, "aborted", 1);
    let mut reading = Reading::new(&log, &topic, 0, 0);
    for round in 0..3 {
        let mut writer = log.writer(&unique("aborted")).expect("writer");
        writer.begin().expect("begin");
        writer.send_set(&values(&topic, numbered("never", 0..10))).expect("send");
        let partition = TopicPartition::new(Arc::clone(&topic), 0);
        wait_until(|| log.bounds(&partition, Isolation::ReadUncommitted).expect("bounds").high >= round * 11 + 10);
        writer.abort();
        assert!(writer.begin().is_err(), "an aborted writer is replaced");
        let (seen, end) = loop {
            let (seen, end) = reading.take_to_end();
            if end == (round + 1) * 11 {
                break (seen, end);
            }
            reading.wait();
        };
        assert_eq!((seen, end), (vec![], (round + 1) * 11));
    }
    let mut writer = log.writer(&unique("aborted")).expect("writer");
    commit(&mut *writer, &values(&topic, numbered("v", 0..2)));
    assert_eq!(texts(&reading.messages(2)), ["v0", "v1"]);
    assert_eq!(reading.take_to_settled_end(&log).1, 36);
}

#[test]
fn a_position_that_is_gone_is_an_error_until_it_is_assigned_again() {
    let log = log_or_return!();
    let topic = topic(&log, "range", 1);
    let mut writer = log.writer(&unique("range")).expect("writer");
    commit(&mut *writer, &values(&topic, numbered("v", 0..100)));
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    log.trim(&[(partition.clone(), 30)]).expect("trim");
    assert_eq!(log.bounds(&partition, Isolation::ReadCommitted).expect("bounds").low, 30);
    for position in [10, 5000] {
        let mut reading = Reading::new(&log, &topic, 0, position);
        assert_eq!(reading.error().kind, LogErrorKind::OutOfRange, "{position}");
        assert_eq!(reading.take(&ALL).expect_err("still").kind, LogErrorKind::OutOfRange);
        reading.reader.assign(&partition, 95).expect("assign");
        assert_eq!(texts(&reading.messages(5)), ["v95", "v96", "v97", "v98", "v99"]);
    }
}

#[test]
fn a_partition_that_was_read_to_its_end_is_read_on_when_its_markers_are_gone() {
    let log = log_or_return!();
    let topic = topic(&log, "markers", 2);
    let mut writer = log.writer(&unique("markers")).expect("writer");
    commit(&mut *writer, &values(&topic, numbered("v", 0..5)));
    let mut reading = Reading::new(&log, &topic, 0, 0);
    let (seen, end) = reading.take_to_settled_end(&log);
    assert_eq!((seen.len(), end), (5, 6), "the marker stands at offset 5");
    log.trim(&[(reading.partition.clone(), end)]).expect("trim");
    assert_eq!(Reading::new(&log, &topic, 0, 5).error().kind, LogErrorKind::OutOfRange, "the position behind the last message");
    // The client has no room for a second partition: a new one goes on with both.
    reading.reader.assign(&TopicPartition::new(Arc::clone(&topic), 1), 0).expect("assign");
    assert_eq!(reading.take_to_end(), (vec![], end));
    let mut other = Reading::new(&log, &topic, 0, end);
    assert_eq!(other.take_to_end(), (vec![], end));
    commit(&mut *writer, &values(&topic, numbered("w", 0..1)));
    assert_eq!(texts(&reading.messages(1)), ["w0"]);
    assert_eq!(texts(&other.messages(1)), ["w0"]);
}

#[test]
fn partitions_come_and_go_without_loss_or_repeat() {
    let log = log_or_return!();
    let topic = topic(&log, "many", 9);
    let mut writer = log.writer(&unique("many")).expect("writer");
    let mut set = MessageSet::new(Arc::clone(&topic));
    for number in 0..900 {
        push(&mut set, Some(number % 9), None, Some(format!("{number}").as_bytes()), None);
    }
    commit(&mut *writer, &set);
    let mut reading = Reading::new(&log, &topic, 0, 0);
    let mut seen = vec![Vec::new(); 9];
    let limit = TakeLimit { messages: 3, ..ALL };
    // A partition joins every few takes, which changes the client at 1, 2, 4 and 8 partitions.
    for round in 0..4000 {
        let joined = (1 + round / 20).min(9);
        for partition in 0..joined {
            reading.partition = TopicPartition::new(Arc::clone(&topic), partition);
            if round % 20 == 0 && partition == joined - 1 && seen[partition as usize].is_empty() && partition > 0 {
                reading.reader.assign(&reading.partition, 0).expect("assign");
            }
            seen[partition as usize].extend(reading.take(&limit).expect("take").0);
        }
        if seen.iter().all(|messages| messages.len() >= 100) {
            break;
        }
        if round % 5 == 0 {
            reading.wait();
        }
    }
    for (partition, messages) in seen.iter().enumerate() {
        assert_eq!(messages.iter().map(|seen| seen.offset).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>(), "partition {partition}");
    }
    reading.reader.unassign(&reading.partition).expect("unassign");
    assert_eq!(reading.take(&ALL).expect_err("not assigned").kind, LogErrorKind::Fatal);
}

#[test]
fn headers_keys_tombstones_and_timestamps_come_through() {
    let log = log_or_return!();
    let topic = topic(&log, "parts", 1);
    let message = |payload: Option<&str>, key: Option<&str>, timestamp_ms| OutMessage {
        topic: Arc::clone(&topic),
        partition: Some(0),
        key: key.map(|text| text.as_bytes().to_vec()),
        payload: payload.map(|text| text.as_bytes().to_vec()),
        headers: vec![("a".into(), b"1".to_vec()), ("a".into(), b"2".to_vec()), ("empty".into(), vec![])],
        timestamp_ms: Some(timestamp_ms),
    };
    let mut writer = log.writer(&unique("parts")).expect("writer");
    writer.begin().expect("begin");
    writer.send(&message(Some("v"), Some("k"), 1_600_000_000_123)).expect("send");
    writer.send(&message(None, Some("gone"), 1_600_000_000_456)).expect("send");
    let mut set = MessageSet::new(Arc::clone(&topic));
    push(&mut set, Some(0), Some(b""), Some(b""), Some(1_600_000_000_789));
    push(&mut set, Some(0), None, None, None);
    writer.send_set(&set).expect("send");
    assert_eq!(writer.commit(), CommitOutcome::Committed);
    let wakeup = Arc::new(Wakeup::default());
    let mut reader = log.reader(ReaderOptions { headers: true, ..ReaderOptions::default() }, Arc::clone(&wakeup)).expect("reader");
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    reader.assign(&partition, 0).expect("assign");
    let mut seen = Vec::new();
    let own = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    while seen.len() < 4 {
        reader
            .take(&partition, &ALL, &mut |messages| {
                seen.extend(messages.iter().map(|m| {
                    (
                        own(m.key),
                        own(m.payload),
                        m.timestamp_ms,
                        m.timestamp_type,
                        m.headers.iter().map(|(k, v)| (k.to_string(), v.to_vec())).collect::<Vec<_>>(),
                    )
                }));
            })
            .expect("take");
        wakeup.wait(std::time::Duration::from_millis(50));
    }
    let headers = vec![("a".to_string(), b"1".to_vec()), ("a".into(), b"2".to_vec()), ("empty".into(), vec![])];
    let bytes = |text: &str| Some(text.as_bytes().to_vec());
    assert_eq!(seen[0], (bytes("k"), bytes("v"), 1_600_000_000_123, TimestampType::CreateTime, headers.clone()));
    assert_eq!(seen[1], (bytes("gone"), None, 1_600_000_000_456, TimestampType::CreateTime, headers));
    assert_eq!((&seen[2].0, &seen[2].1, seen[2].2), (&bytes(""), &bytes(""), 1_600_000_000_789));
    assert_eq!((&seen[3].0, &seen[3].1, seen[3].4.len()), (&None, &None, 0));
    assert!(seen[3].2 > 1_700_000_000_000, "the client sets the time");
}

pub fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "it did not happen");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

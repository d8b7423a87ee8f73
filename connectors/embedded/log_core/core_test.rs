//! The core's decisions, one by one.

use std::collections::BTreeMap;

use super::groups::{Caller, GroupReply};
use super::test_kit::*;
use super::*;

fn core_with_topic(config: &[(&str, &str)]) -> LogCore {
    core_with_topic_and(Limits::default(), config)
}

fn core_with_topic_and(limits: Limits, config: &[(&str, &str)]) -> LogCore {
    let mut core = core_with(limits);
    let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    core.create_topic(TOPIC, 2, config).expect("a new topic");
    core
}

fn put(core: &mut LogCore, now_ms: i64, keys: &[&str]) -> Result<Produced, LogError> {
    let records: Vec<_> = keys.iter().map(|key| (*key, Some("v"))).collect();
    core.produce(now_ms, None, TOPIC, 0, &batch_of(NOBODY, now_ms, &records))
}

fn put_transactional(core: &mut LogCore, id: &str, producer: (i64, i16), sequence: i32, key: &str) -> Result<Produced, LogError> {
    let sender = Sender { id: producer.0, epoch: producer.1, sequence, is_transactional: true };
    core.produce(NOW_MS, Some(id), TOPIC, 0, &batch_of(sender, NOW_MS, &[(key, Some("v"))]))
}

fn open_transaction(core: &mut LogCore, id: &str) -> (i64, i16) {
    let producer = core.init_producer_id(NOW_MS, Some(id), 1000, None).expect("granted");
    core.add_partitions_to_transaction(NOW_MS, id, producer, &[(TOPIC.to_owned(), 0)]).expect("added");
    producer
}

#[test]
fn a_refused_call_changes_nothing() {
    let mut core = core_with_topic(&[]);
    put(&mut core, NOW_MS, &["a"]).expect("appended");
    core.take_events();
    let damaged = {
        let mut bytes = batch_of(NOBODY, NOW_MS, &[("b", None)]).to_vec();
        bytes[65] ^= 1;
        bytes.into()
    };
    assert_eq!(core.produce(NOW_MS, None, TOPIC, 0, &damaged), Err(LogError::CorruptBatch));
    assert_eq!(core.produce(NOW_MS, None, TOPIC, 9, &damaged), Err(LogError::UnknownTopicOrPartition));
    assert_eq!(put_transactional(&mut core, "x", (5, 0), 0, "b"), Err(LogError::InvalidProducerIdMapping));
    assert_eq!(core.end_transaction(NOW_MS, "x", (5, 0), true), Err(LogError::InvalidProducerIdMapping));
    assert_eq!(core.trim(TOPIC, 0, 2), Err(LogError::OffsetOutOfRange));
    assert_eq!(core.take_events(), vec![]);
}

#[test]
fn fencing_aborts_what_is_open_and_refuses_the_old_producer() {
    let mut core = core_with_topic(&[]);
    let old = open_transaction(&mut core, "x");
    put_transactional(&mut core, "x", old, 0, "zombie").expect("appended");
    assert_eq!(core.partition(TOPIC, 0).expect("it exists").last_stable_offset(), 0);
    let new = core.init_producer_id(NOW_MS, Some("x"), 1000, None).expect("granted");
    assert_eq!(new, (old.0, old.1 + 1));
    let log = core.partition(TOPIC, 0).expect("it exists");
    assert_eq!((log.last_stable_offset(), log.high_watermark()), (2, 2), "the abort marker is in the log when the id is granted");
    assert_eq!(put_transactional(&mut core, "x", old, 1, "late"), Err(LogError::InvalidProducerEpoch));
    assert_eq!(core.end_transaction(NOW_MS, "x", old, true), Err(LogError::ProducerFenced));
    assert_eq!(keys(&core, 0, Isolation::ReadCommitted), Vec::<String>::new());
}

#[test]
fn a_transaction_that_is_open_too_long_is_aborted_and_its_producer_fenced() {
    let mut core = core_with_topic(&[]);
    let producer = open_transaction(&mut core, "x");
    put_transactional(&mut core, "x", producer, 0, "slow").expect("appended");
    core.tick(NOW_MS + 1000);
    assert_eq!(core.partition(TOPIC, 0).expect("it exists").last_stable_offset(), 0, "the time-out itself is still in time");
    core.tick(NOW_MS + 1001);
    assert_eq!(core.partition(TOPIC, 0).expect("it exists").last_stable_offset(), 2);
    assert_eq!(core.end_transaction(NOW_MS + 1002, "x", producer, true), Err(LogError::ProducerFenced));
}

#[test]
fn an_exhausted_epoch_takes_a_new_producer_id() {
    let mut core = core_with_topic(&[]);
    let first = core.init_producer_id(NOW_MS, Some("x"), 1000, None).expect("granted");
    let mut last = first;
    for _ in 0..i16::MAX {
        last = core.init_producer_id(NOW_MS, Some("x"), 1000, None).expect("granted");
    }
    assert_ne!(last.0, first.0);
    assert!(last.1 >= 0);
    let mut producer = last;
    while producer.1 != i16::MAX - 1 {
        producer = core.init_producer_id(NOW_MS, Some("x"), 1000, None).expect("granted");
    }
    core.add_partitions_to_transaction(NOW_MS, "x", producer, &[(TOPIC.to_owned(), 0)]).expect("added");
    put_transactional(&mut core, "x", producer, 0, "open").expect("appended");
    let next = core.init_producer_id(NOW_MS, Some("x"), 1000, None).expect("granted");
    assert!(next.0 != producer.0 && next.1 == 0);
    assert_eq!(put_transactional(&mut core, "x", producer, 1, "late"), Err(LogError::InvalidProducerIdMapping));
    assert_eq!(core.partition(TOPIC, 0).expect("it exists").last_stable_offset(), 2);
}

#[test]
fn at_the_memory_limit_producers_wait_and_nothing_is_lost() {
    let limits = Limits { memory_limit_bytes: 2000, ..Limits::default() };
    let mut core = core_with_topic_and(limits, &[]);
    let mut count = 0;
    while put(&mut core, NOW_MS, &["a"]).is_ok() {
        count += 1;
    }
    assert_eq!(put(&mut core, NOW_MS, &["a"]), Err(LogError::MemoryLimit));
    assert_eq!(keys(&core, 0, Isolation::ReadUncommitted).len(), count);
    assert!(core.held_bytes() <= 2000);
    core.trim(TOPIC, 0, -1).expect("trimmed");
    assert_eq!(core.held_bytes(), 0);
    assert_eq!(put(&mut core, NOW_MS, &["b"]).map(|produced| produced.base_offset), Ok(count as i64));
}

#[test]
fn at_the_memory_limit_what_retention_lets_go_makes_room() {
    let limits = Limits { memory_limit_bytes: 2000, ..Limits::default() };
    let mut core = core_with_topic_and(limits, &[("retention.ms", "100")]);
    while put(&mut core, NOW_MS, &["a"]).is_ok() {}
    put(&mut core, NOW_MS + 101, &["b"]).expect("the old ones may go");
    assert_eq!(keys(&core, 0, Isolation::ReadUncommitted), ["b"]);
}

#[test]
fn the_end_of_a_transaction_is_written_also_at_the_memory_limit() {
    let limits = Limits { memory_limit_bytes: 2000, ..Limits::default() };
    let mut core = core_with_topic_and(limits, &[]);
    let producer = open_transaction(&mut core, "x");
    put_transactional(&mut core, "x", producer, 0, "mine").expect("appended");
    while put(&mut core, NOW_MS, &["a"]).is_ok() {}
    core.end_transaction(NOW_MS, "x", producer, true).expect("committed");
    assert_eq!(keys(&core, 0, Isolation::ReadCommitted)[0], "mine");
}

#[test]
fn retention_by_time_goes_by_the_append_when_the_timestamp_is_older() {
    let mut core = core_with_topic(&[("retention.ms", "1000")]);
    core.produce(NOW_MS, None, TOPIC, 0, &batch_of(NOBODY, 5, &[("old event time", None)])).expect("appended");
    core.tick(NOW_MS + 1000);
    assert_eq!(keys(&core, 0, Isolation::ReadUncommitted).len(), 1);
    core.tick(NOW_MS + 2000);
    let log = core.partition(TOPIC, 0).expect("it exists");
    assert_eq!((log.start_offset(), log.high_watermark()), (1, 1));
}

#[test]
fn retention_by_size_keeps_at_least_that_much_and_stops_at_an_open_transaction() {
    let mut core = core_with_topic(&[("retention.bytes", "1000")]);
    for _ in 0..20 {
        put(&mut core, NOW_MS, &["a"]).expect("appended");
    }
    core.tick(NOW_MS);
    assert!((1000..1400).contains(&core.held_bytes()), "{}", core.held_bytes());
    let start = core.partition(TOPIC, 0).expect("it exists").start_offset();
    let producer = open_transaction(&mut core, "x");
    put_transactional(&mut core, "x", producer, 0, "open").expect("appended");
    for _ in 0..20 {
        put(&mut core, NOW_MS, &["b"]).expect("appended");
    }
    core.tick(NOW_MS + 500);
    let log = core.partition(TOPIC, 0).expect("it exists");
    assert!(log.start_offset() > start && log.start_offset() <= log.last_stable_offset());
}

#[test]
fn compaction_keeps_the_latest_of_each_key_at_its_offset() {
    let config = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0")];
    let mut core = core_with_topic(&config);
    for keys in [&["a", "b"][..], &["a", "c"], &["b"], &["last"]] {
        put(&mut core, NOW_MS, keys).expect("appended");
    }
    core.tick(NOW_MS + 1);
    let wanted = [(2, "a"), (3, "c"), (4, "b"), (5, "last")].map(|(offset, key)| (offset, key.to_owned()));
    assert_eq!(visible(&core, 0, Isolation::ReadCommitted, usize::MAX), wanted);
    assert_eq!(core.partition(TOPIC, 0).expect("it exists").high_watermark(), 6);
}

#[test]
fn compaction_drops_aborted_records_and_keeps_committed_ones() {
    let config = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0")];
    let mut core = core_with_topic(&config);
    put(&mut core, NOW_MS, &["a"]).expect("appended");
    let aborted = open_transaction(&mut core, "x");
    put_transactional(&mut core, "x", aborted, 0, "a").expect("appended");
    core.end_transaction(NOW_MS, "x", aborted, false).expect("aborted");
    let committed = open_transaction(&mut core, "y");
    put_transactional(&mut core, "y", committed, 0, "b").expect("appended");
    core.end_transaction(NOW_MS, "y", committed, true).expect("committed");
    put(&mut core, NOW_MS, &["last"]).expect("appended");
    core.tick(NOW_MS + 1);
    for isolation in [Isolation::ReadCommitted, Isolation::ReadUncommitted] {
        assert_eq!(keys(&core, 0, isolation), ["a", "b", "last"], "the aborted value of a does not hide the plain one");
    }
}

#[test]
fn a_tombstone_goes_after_its_retention() {
    let config = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0"), ("delete.retention.ms", "1000")];
    let mut core = core_with_topic(&config);
    put(&mut core, NOW_MS, &["a"]).expect("appended");
    core.produce(NOW_MS, None, TOPIC, 0, &batch_of(NOBODY, NOW_MS, &[("a", None)])).expect("appended");
    put(&mut core, NOW_MS, &["last"]).expect("appended");
    core.tick(NOW_MS + 600);
    assert_eq!(keys(&core, 0, Isolation::ReadCommitted), ["a", "last"]);
    put(&mut core, NOW_MS + 2000, &["later"]).expect("appended");
    core.tick(NOW_MS + 2000);
    assert_eq!(keys(&core, 0, Isolation::ReadCommitted), ["last", "later"]);
}

#[test]
fn idle_transactional_ids_are_forgotten_and_open_ones_are_not() {
    let limits = Limits { transactional_id_expiration_ms: 5_000, ..Limits::default() };
    let mut core = core_with_topic_and(limits, &[]);
    let idle = core.init_producer_id(NOW_MS, Some("idle"), 1000, None).expect("granted");
    let open = core.init_producer_id(NOW_MS, Some("open"), 900_000, None).expect("granted");
    core.add_partitions_to_transaction(NOW_MS, "open", open, &[(TOPIC.to_owned(), 0)]).expect("added");
    core.tick(NOW_MS + 6_000);
    assert_eq!(core.end_transaction(NOW_MS, "idle", idle, true), Err(LogError::InvalidProducerIdMapping));
    assert_eq!(core.end_transaction(NOW_MS, "open", open, true), Ok(()));
}

#[test]
fn a_silent_member_loses_its_place_and_the_others_are_told() {
    let mut core = core();
    let join = |core: &mut LogCore, now_ms, token| {
        let request = JoinRequest {
            group: "g".into(),
            client_id: "c".into(),
            member_id: String::new(),
            instance_id: None,
            protocol_type: "consumer".into(),
            protocols: vec![("range".into(), bytes::Bytes::new())],
            session_timeout_ms: 1000,
            rebalance_timeout_ms: 5000,
            requires_known_member_id: false,
        };
        core.groups().join(now_ms, Token(token), request);
    };
    join(&mut core, 0, 1);
    join(&mut core, 0, 2);
    assert_eq!(core.groups().take_replies(), vec![], "the group waits for more members");
    core.tick(100);
    let replies = core.groups().take_replies();
    let joined: Vec<_> = replies
        .iter()
        .map(|(_, reply)| match reply {
            GroupReply::Join(Ok(joined)) => joined.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(joined.len(), 2);
    let leader = joined.iter().find(|joined| joined.member_id == joined.leader_id).expect("one leads");
    let follower = joined.iter().find(|joined| joined.member_id != joined.leader_id).expect("one follows");
    let caller = |member| Caller { member_id: member, instance_id: None, generation: 1 };
    core.groups().sync(100, Token(3), "g", &caller(&follower.member_id), vec![]);
    core.groups().sync(100, Token(4), "g", &caller(&leader.member_id), vec![(follower.member_id.clone(), "share".into())]);
    let replies: BTreeMap<_, _> = core.groups().take_replies().into_iter().collect();
    assert_eq!(replies[&Token(3)], GroupReply::Sync(Ok("share".into())));
    core.groups().heartbeat(1000, "g", &caller(&leader.member_id)).expect("a member");
    core.tick(1101); // the follower was last heard at 100
    let told = core.groups().heartbeat(1102, "g", &caller(&leader.member_id));
    assert_eq!(told, Err(LogError::RebalanceInProgress));
    assert_eq!(core.groups().heartbeat(1102, "g", &caller(&follower.member_id)), Err(LogError::UnknownMember));
}

#[test]
fn offsets_of_a_transaction_show_at_its_commit_only() {
    let mut core = core_with_topic(&[]);
    let at = (TOPIC.to_owned(), 0);
    let anonymous = Caller { member_id: "", instance_id: None, generation: -1 };
    let position = |offset| vec![(at.clone(), CommittedOffset { offset, leader_epoch: -1, metadata: String::new() })];
    for (is_commit, offset, wanted) in [(false, 5, None), (true, 7, Some(7)), (false, 9, Some(7))] {
        let producer = core.init_producer_id(NOW_MS, Some("x"), 1000, None).expect("granted");
        core.add_offsets_to_transaction(NOW_MS, "x", producer, "g").expect("added");
        core.commit_offsets_in_transaction(NOW_MS, "x", producer, "g", &anonymous, position(offset)).expect("staged");
        assert_eq!(core.committed_offset("g", &at, true), Err(LogError::UnstableOffset));
        core.end_transaction(NOW_MS, "x", producer, is_commit).expect("ended");
        let committed = core.committed_offset("g", &at, true).expect("stable");
        assert_eq!(committed.map(|committed| committed.offset), wanted);
    }
}

#[test]
fn events_applied_to_an_empty_core_give_the_same_state() {
    let mut core = core_with_topic(&[("retention.bytes", "3000")]);
    let producer = open_transaction(&mut core, "x");
    put_transactional(&mut core, "x", producer, 0, "one").expect("appended");
    core.end_transaction(NOW_MS, "x", producer, true).expect("committed");
    open_transaction(&mut core, "y");
    for _ in 0..30 {
        put(&mut core, NOW_MS, &["a"]).expect("appended");
    }
    core.tick(NOW_MS + 1);
    let anonymous = Caller { member_id: "", instance_id: None, generation: -1 };
    let at = CommittedOffset { offset: 3, leader_epoch: -1, metadata: "m".into() };
    core.commit_offsets(NOW_MS, "g", &anonymous, vec![((TOPIC.to_owned(), 0), at)]);
    let mut replayed = LogCore::new(Limits::default(), 8);
    core.take_events().iter().for_each(|event| replayed.apply(event));
    assert_eq!(replayed.snapshot(), core.snapshot());
    let mut restored = LogCore::new(Limits::default(), 9);
    core.snapshot().iter().for_each(|event| restored.apply(event));
    assert_eq!(restored.snapshot(), core.snapshot());
    assert_eq!(restored.held_bytes(), core.held_bytes());
}

#[test]
fn headers_are_read_back_in_order_and_twice_where_they_were_given_twice() {
    let mut area = bytes::BytesMut::new();
    let headers: [batch::Header<'_>; 3] = [("a", b"1"), ("b", b""), ("a", b"2")];
    batch::encode_record(&mut area, 0, 0, None, Some(b"v"), &headers);
    batch::encode_record(&mut area, 1, 0, Some(b"k"), None, &[]);
    let read: Vec<_> = batch::records(&area).map(|record| record.expect("whole").header_pairs().expect("whole")).collect();
    assert_eq!(read, [headers.to_vec(), vec![]]);
    let damaged = batch::RecordView { encoded: &[], timestamp_delta_ms: 0, offset_delta: 0, key: None, value: None, headers: &[4, 2] };
    assert_eq!(damaged.header_pairs(), None);
}

use crate::log_or_return;
use crate::support::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use streamshield_core::ports::log::*;
use streamshield_kafka::KafkaLog;

#[test]
fn topics_are_created_once_and_described_with_effective_configs() {
    let log = log_or_return!();
    let name = unique("create");
    let spec = TopicSpec {
        name: name.clone(),
        partitions: 3,
        replication_factor: None,
        configs: [("cleanup.policy".to_string(), "compact".to_string())].into(),
    };
    assert_eq!(log.describe_topic(&name).expect("describe"), None);
    assert_eq!(log.create_topics(std::slice::from_ref(&spec)).expect("create"), std::slice::from_ref(&name));
    assert_eq!(log.create_topics(&[spec]).expect("again"), Vec::<String>::new());
    let found = log.describe_topic(&name).expect("describe").expect("exists");
    assert_eq!((found.partitions, found.configs["cleanup.policy"].as_str()), (3, "compact"));
    assert!(found.configs.contains_key("max.message.bytes"), "defaults are there too");
    let default = TopicSpec { name: unique("default"), partitions: -1, replication_factor: None, configs: BTreeMap::new() };
    log.create_topics(std::slice::from_ref(&default)).expect("the broker decides");
    assert!(log.describe_topic(&default.name).expect("describe").expect("exists").partitions >= 1);
    let bad = TopicSpec { name: "no/such name".into(), partitions: 1, replication_factor: None, configs: BTreeMap::new() };
    assert_eq!(log.create_topics(&[bad]).expect_err("name").kind, LogErrorKind::Fatal);
}

#[test]
fn start_positions_are_resolved_to_offsets() {
    let log = log_or_return!();
    let topic = topic(&log, "resolve", 1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    assert_eq!(log.resolve(&partition, StartAt::Timestamp(0)).expect("empty"), 0);
    let mut set = MessageSet::new(Arc::clone(&topic));
    for number in 0..10 {
        push(&mut set, Some(0), None, Some(b"x"), Some(1_700_000_000_000 + number * 1000));
    }
    let mut writer = log.writer(&unique("resolve")).expect("writer");
    commit(&mut *writer, &set);
    settled(&log, &partition);
    let at = |start| log.resolve(&partition, start).expect("resolve");
    assert_eq!(at(StartAt::Beginning), 0);
    assert_eq!(at(StartAt::End), 11, "behind the marker");
    assert_eq!(at(StartAt::Offset(4)), 4);
    assert_eq!(at(StartAt::Timestamp(1_600_000_000_000)), 0);
    assert_eq!(at(StartAt::Timestamp(1_700_000_003_500)), 4);
    assert_eq!(at(StartAt::Timestamp(1_900_000_000_000)), 11, "later than all messages");
    let missing = TopicPartition::new(unique("missing"), 0);
    assert_eq!(log.bounds(&missing, Isolation::ReadCommitted).expect_err("missing").kind, LogErrorKind::Missing);
}

#[test]
fn group_offsets_are_written_for_the_usual_tools() {
    let log = log_or_return!();
    let (topic, group) = (topic(&log, "group", 2), unique("group"));
    let partition = |number| TopicPartition::new(Arc::clone(&topic), number);
    assert_eq!(log.group_offset(&group, &partition(0)).expect("none yet"), None);
    log.commit_group_offsets(&group, &[(partition(0), 7), (partition(1), 9)]);
    crate::reading::wait_until(|| log.group_offset(&group, &partition(0)).expect("offset") == Some(7));
    log.commit_group_offsets(&group, &[(partition(0), 8)]);
    crate::reading::wait_until(|| log.group_offset(&group, &partition(0)).expect("offset") == Some(8));
    assert_eq!(log.group_offset(&group, &partition(1)).expect("offset"), Some(9));
}

#[test]
fn replicas_have_a_group_of_their_own() {
    let log = log_or_return!();
    let (topic, job) = (topic(&log, "replica", 1), unique("job"));
    let (partition, replica) = (TopicPartition::new(Arc::clone(&topic), 0), format!("{job}.replica"));
    let mut writer = log.writer(&unique("replica")).expect("writer");
    commit(&mut *writer, &values(&topic, numbered("v", 0..10)));
    log.commit_group_offsets(&job, &[(partition.clone(), 10)]);
    log.commit_group_offsets(&replica, &[(partition.clone(), 4)]);
    // Another process looks, as `kafka-consumer-groups` does.
    let Some(servers) = servers() else { return };
    let other = connect(&servers, &[]);
    for (group, offset) in [(&job, 10), (&replica, 4)] {
        crate::reading::wait_until(|| other.group_offset(group, &partition).expect("offset") == Some(offset));
    }
    log.commit_group_offsets(&replica, &[(partition.clone(), 9)]);
    crate::reading::wait_until(|| other.group_offset(&replica, &partition).expect("offset") == Some(9));
    assert_eq!(other.group_offset(&job, &partition).expect("offset"), Some(10), "the groups know nothing of each other");
    println!("group {replica} reads {topic}");
}

#[test]
fn appended_messages_come_back_with_their_offset() {
    let log = log_or_return!();
    let topic = topic(&log, "append", 1);
    let message = |text: &str| OutMessage {
        topic: Arc::clone(&topic),
        partition: Some(0),
        key: None,
        payload: Some(text.into()),
        headers: vec![],
        timestamp_ms: None,
    };
    let mut times = Vec::new();
    for number in 0..200 {
        let started = Instant::now();
        assert_eq!(log.append(&message(&format!("v{number}"))).expect("append"), number);
        times.push(started.elapsed());
    }
    times.sort();
    println!("append with acknowledgement: p50 {:.1} ms, p95 {:.1} ms", times[100].as_secs_f64() * 1e3, times[190].as_secs_f64() * 1e3);
    assert_eq!(Reading::new(&log, &topic, 0, 0).take_to_end().0.len(), 200);
    let large = log.append(&message(&"x".repeat(3_000_000))).expect_err("too large");
    assert_eq!(large.kind, LogErrorKind::Invalid, "{large}");
}

#[test]
fn trimming_moves_the_start_and_never_beyond_the_end() {
    let log = log_or_return!();
    let topic = topic(&log, "trim", 1);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    let mut writer = log.writer(&unique("trim")).expect("writer");
    commit(&mut *writer, &values(&topic, numbered("v", 0..10)));
    settled(&log, &partition);
    log.trim(&[(partition.clone(), 6)]).expect("trim");
    assert_eq!(log.bounds(&partition, Isolation::ReadCommitted).expect("bounds"), Bounds { low: 6, high: 11 });
    log.trim(&[(partition.clone(), 3)]).expect("behind the start is no error");
    assert_eq!(log.trim(&[(partition.clone(), 99)]).expect_err("beyond").kind, LogErrorKind::OutOfRange);
    log.trim(&[]).expect("nothing");
}

#[test]
fn a_refused_property_is_named_and_a_secret_is_not_shown() {
    let connect = |pairs: &[(&str, &str)]| {
        let properties = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        KafkaLog::connect(properties).expect_err("refused")
    };
    for key in ["group.id", "isolation.level", "enable.auto.commit", "auto.offset.reset", "transactional.id", "debug"] {
        let error = connect(&[("bootstrap.servers", "127.0.0.1:1"), (key, "x")]);
        assert!(error.kind == LogErrorKind::Fatal && error.message.contains(&format!("'{key}'")), "{error}");
    }
    let error = connect(&[("bootstrap.servers", "127.0.0.1:1"), ("sasl.mechanisms", "PLAIN"), ("sasl.passwort", "hunter2")]);
    assert!(error.message.contains("sasl.passwort") && !error.message.contains("hunter2"), "{error}");
}

#[test]
fn a_cluster_that_does_not_answer_is_worth_another_try() {
    let error =
        KafkaLog::connect(BTreeMap::from([("bootstrap.servers".to_string(), "127.0.0.1:1".to_string())])).expect_err("nobody there");
    assert_eq!(error.kind, LogErrorKind::Retry);
    assert!(error.message.contains("127.0.0.1:1"), "{error}");
}

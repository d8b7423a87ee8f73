//! What the simulated log promises, one thing at a time.

use super::*;
use crate::world::FaultPlan;

const TOPIC: &str = "t";

fn place() -> TopicPartition {
    TopicPartition::new(TOPIC, 0)
}

/// A world with the topic, without faults so far.
fn world() -> (Sim, SimLog) {
    let sim = Sim::new(1, FaultPlan::default());
    let log = worker(&sim, "first");
    let configs = [("message.timestamp.type".to_string(), "LogAppendTime".to_string())].into();
    let spec = |name: &str, configs| TopicSpec { name: name.into(), partitions: 2, replication_factor: None, configs };
    let created = log.create_topics(&[spec(TOPIC, Default::default()), spec("control", configs)]).expect("create");
    assert_eq!(created, [TOPIC, "control"]);
    (sim, log)
}

fn worker(sim: &Sim, name: &str) -> SimLog {
    SimLog::new(sim, sim.client(name))
}

fn always(set: impl FnOnce(&mut FaultPlan)) -> FaultPlan {
    let mut plan = FaultPlan { late_ms_max: 100, ..FaultPlan::default() };
    set(&mut plan);
    plan
}

fn message(topic: &str, text: &str) -> OutMessage {
    let payload = Some(text.as_bytes().to_vec());
    OutMessage { topic: topic.into(), partition: Some(0), key: None, payload, headers: vec![], timestamp_ms: None }
}

/// A transaction with one message, up to the commit.
fn open(writer: &mut dyn TransactionalWriter, text: &str) {
    writer.begin().expect("begin");
    writer.send(&message(TOPIC, text)).expect("send");
}

/// What a new reader sees, as texts, and the end it has seen.
fn seen(log: &SimLog) -> (Vec<String>, Offset) {
    let mut reader = log.reader(ReaderOptions::default(), Arc::default()).expect("reader");
    reader.assign(&place(), 0).expect("assign");
    let (texts, taken) = take(reader.as_mut());
    (texts, taken.at_end.expect("nothing is left"))
}

fn take(reader: &mut dyn LogReader) -> (Vec<String>, Taken) {
    let mut texts = Vec::new();
    let limit = TakeLimit { messages: 1000, bytes: 1 << 20, end: None };
    let text = |view: &MessageView<'_>| String::from_utf8_lossy(view.payload.unwrap_or_default()).into_owned();
    let taken = reader.take(&place(), &limit, &mut |views| texts.extend(views.iter().map(text))).expect("take");
    (texts, taken)
}

fn high(log: &SimLog, isolation: Isolation) -> Offset {
    log.bounds(&place(), isolation).expect("bounds").high
}

#[test]
fn a_committed_transaction_is_seen_and_an_aborted_one_is_not() {
    let (_, log) = world();
    let mut writer = log.writer("w").expect("writer");
    open(&mut *writer, "a");
    assert_eq!(writer.commit(), CommitOutcome::Committed);
    open(&mut *writer, "b");
    writer.abort();
    assert_eq!(writer.begin().expect_err("spent").kind, LogErrorKind::Fenced);
    let mut writer = log.writer("w").expect("writer");
    open(&mut *writer, "c");
    assert_eq!(writer.commit(), CommitOutcome::Committed);
    assert_eq!(seen(&log).0, ["a", "c"]);
    writer.begin().expect("begin");
    assert_eq!(writer.commit(), CommitOutcome::Committed, "an empty transaction");
}

#[test]
fn key_headers_and_time_come_back() {
    let (sim, log) = world();
    let mut sent = message(TOPIC, "v");
    sent.key = Some(b"k".to_vec());
    sent.headers = vec![("a".into(), b"1".to_vec()), ("a".into(), b"2".to_vec())];
    sent.timestamp_ms = Some(77);
    let mut writer = log.writer("w").expect("writer");
    writer.begin().expect("begin");
    writer.send(&sent).expect("send");
    let mut set = MessageSet::new(TOPIC);
    set.buffer = b"xy".to_vec();
    set.entries.push(MessageEntry { partition: Some(0), key: Some(0..1), value: Some(1..2), timestamp_ms: Some(78) });
    set.entries.push(MessageEntry { partition: Some(0), key: Some(0..1), value: None, timestamp_ms: None });
    writer.send_set(&set).expect("send");
    assert_eq!(writer.commit(), CommitOutcome::Committed);
    let mut reader = log.reader(ReaderOptions { headers: true, ..Default::default() }, Arc::default()).expect("reader");
    reader.assign(&place(), 0).expect("assign");
    let mut got = Vec::new();
    let limit = TakeLimit { messages: 10, bytes: 1 << 20, end: Some(2) };
    let taken = reader.take(&place(), &limit, &mut |views| {
        for view in views {
            let headers: Vec<_> = view.headers.iter().map(|(name, value)| format!("{name}{}", value[0])).collect();
            got.push((view.key.map(<[u8]>::to_vec), view.payload.map(<[u8]>::to_vec), view.timestamp_ms, headers.join(",")));
        }
    });
    assert_eq!(taken.expect("take").at_end, None, "the limit ended it");
    let bytes = |text: &str| Some(text.as_bytes().to_vec());
    assert_eq!(got, [(bytes("k"), bytes("v"), 77, "a49,a50".into()), (bytes("x"), bytes("y"), 78, String::new())]);
    sim.advance(5);
    log.append(&message("control", "c")).expect("append");
    let control = TopicPartition::new("control", 0);
    reader.assign(&control, 0).expect("assign");
    let mut at_ms = None;
    let limit = TakeLimit { messages: 10, bytes: 1 << 20, end: None };
    reader.take(&control, &limit, &mut |views| at_ms = Some((views[0].timestamp_ms, views[0].timestamp_type))).expect("take");
    assert_eq!(at_ms, Some((sim.now_ms(), TimestampType::LogAppendTime)));
}

#[test]
fn a_dead_worker_leaves_its_transaction_open_until_somebody_fences_it() {
    let (sim, log) = world();
    sim.set_faults(always(|plan| plan.sent_early = 10_000));
    let mut writer = log.writer("w").expect("writer");
    open(&mut *writer, "lost");
    let fencer = worker(&sim, "second").fencer("w").expect("fencer");
    sim.crash(log.client());
    let second = worker(&sim, "third");
    assert_eq!((high(&second, Isolation::ReadCommitted), high(&second, Isolation::ReadUncommitted)), (0, 1));
    assert!(matches!(writer.commit(), CommitOutcome::InDoubt(_)));
    assert_eq!(log.append(&message(TOPIC, "x")).expect_err("dead").kind, LogErrorKind::Retry);
    assert_eq!(high(&second, Isolation::ReadUncommitted), 1, "the dead have no effect");
    fencer.fence().expect("fence");
    assert_eq!((high(&second, Isolation::ReadCommitted), high(&second, Isolation::ReadUncommitted)), (2, 2));
    assert_eq!(seen(&second), (vec![], 2));
}

#[test]
fn a_transaction_that_is_open_too_long_is_aborted_and_its_writer_finds_itself_fenced() {
    let (sim, log) = world();
    sim.set_faults(always(|plan| plan.sent_early = 10_000));
    let mut writer = log.writer("w").expect("writer");
    open(&mut *writer, "slow");
    sim.advance(TRANSACTION_TIMEOUT_MS);
    assert_eq!(high(&log, Isolation::ReadCommitted), 0, "the time-out itself is still in time");
    sim.advance(1);
    assert_eq!(high(&log, Isolation::ReadCommitted), 2);
    assert!(matches!(writer.commit(), CommitOutcome::Fenced(_)));
}

#[test]
fn late_markers_show_when_their_time_has_come_or_somebody_asks_the_coordinator() {
    let (sim, log) = world();
    sim.set_faults(always(|plan| plan.markers_late = 10_000));
    let mut writer = log.writer("w").expect("writer");
    open(&mut *writer, "a");
    assert_eq!(writer.commit(), CommitOutcome::Committed);
    assert_eq!(high(&log, Isolation::ReadCommitted), 0, "acknowledged, not there yet");
    sim.advance(100);
    assert_eq!(seen(&log).0, ["a"]);
    open(&mut *writer, "b");
    assert_eq!(writer.commit(), CommitOutcome::Committed);
    log.fence("w").expect("fence");
    assert_eq!(seen(&log).0, ["a", "b"], "a fence waits for what was committed");
}

#[test]
fn a_late_end_can_not_hurt_a_writer_that_was_renewed() {
    let (sim, log) = world();
    let mut plan = always(|plan| plan.commit_late = 10_000);
    plan.sent_early = 10_000;
    sim.set_faults(plan);
    let mut writer = log.writer("w").expect("writer");
    open(&mut *writer, "first");
    assert!(matches!(writer.commit(), CommitOutcome::InDoubt(_)));
    assert_eq!(writer.begin().expect_err("spent").kind, LogErrorKind::Fenced);
    let mut writer = log.writer("w").expect("writer");
    open(&mut *writer, "half of the second");
    sim.advance(1_000);
    assert_eq!(seen(&log).0, Vec::<String>::new(), "the first was aborted by the renewal, the second is open");
    sim.set_faults(FaultPlan::default());
    writer.send(&message(TOPIC, "the other half")).expect("send");
    assert_eq!(writer.commit(), CommitOutcome::Committed);
    assert_eq!(seen(&log).0, ["half of the second", "the other half"]);
}

#[test]
fn a_late_end_tears_the_next_transaction_of_a_client_without_our_check() {
    let (sim, log) = world();
    let mut plan = always(|plan| plan.commit_repeated = 10_000);
    (plan.sent_early, plan.forgives_doubt) = (10_000, true);
    sim.set_faults(plan);
    let mut writer = log.writer("w").expect("writer");
    open(&mut *writer, "first");
    assert_eq!(writer.commit(), CommitOutcome::Committed, "it believes so");
    open(&mut *writer, "half of the second");
    sim.advance(1_000);
    assert_eq!(seen(&log).0, ["first", "half of the second"], "KIP-890: ended by the first one's repeated commit");
}

#[test]
fn a_reader_that_hears_late_sees_a_prefix_and_then_the_rest() {
    let (sim, log) = world();
    let wakeup = Arc::new(Wakeup::default());
    let mut reader = log.reader(ReaderOptions::default(), wakeup).expect("reader");
    reader.assign(&place(), 0).expect("assign");
    log.append(&message(TOPIC, "a")).expect("append");
    sim.set_faults(always(|plan| plan.records_late = 10_000));
    log.append(&message(TOPIC, "b")).expect("append");
    let (texts, taken) = take(reader.as_mut());
    assert_eq!((texts, taken.at_end), (vec!["a".to_string()], Some(1)));
    assert_eq!(high(&log, Isolation::ReadCommitted), 2, "the broker says so to who asks");
    sim.advance(100);
    let (texts, taken) = take(reader.as_mut());
    assert_eq!((texts, taken.at_end), (vec!["b".to_string()], Some(2)));
    assert!(sim.fired()["records late"] > 0);
}

#[test]
fn a_position_that_is_gone_stays_gone_until_another_is_assigned() {
    let (_, log) = world();
    for number in 0..5 {
        log.append(&message(TOPIC, &number.to_string())).expect("append");
    }
    log.trim(&[(place(), 3)]).expect("trim");
    let mut reader = log.reader(ReaderOptions::default(), Arc::default()).expect("reader");
    reader.assign(&place(), 2).expect("assign");
    let limit = TakeLimit { messages: 1000, bytes: 1 << 20, end: None };
    for _ in 0..2 {
        assert_eq!(reader.take(&place(), &limit, &mut |_| {}).expect_err("gone").kind, LogErrorKind::OutOfRange);
    }
    reader.assign(&place(), 3).expect("assign");
    assert_eq!(take(reader.as_mut()).0, ["3", "4"]);
    assert_eq!(log.trim(&[(place(), 99)]).expect_err("beyond").kind, LogErrorKind::OutOfRange);
    let missing = TopicPartition::new("missing", 0);
    reader.assign(&missing, 0).expect("assign");
    assert_eq!(reader.take(&missing, &limit, &mut |_| {}).expect_err("missing").kind, LogErrorKind::Missing);
}

#[test]
fn an_append_may_be_there_twice_and_one_without_answer_may_be_there() {
    let (sim, log) = world();
    sim.set_faults(always(|plan| plan.append_twice = 10_000));
    log.append(&message(TOPIC, "twice")).expect("append");
    sim.set_faults(always(|plan| plan.answer_lost = 10_000));
    assert_eq!(log.append(&message(TOPIC, "unheard")).expect_err("no answer").kind, LogErrorKind::Retry);
    sim.set_faults(always(|plan| plan.refused = 10_000));
    assert_eq!(log.append(&message(TOPIC, "refused")).expect_err("refused").kind, LogErrorKind::Retry);
    sim.set_faults(FaultPlan::default());
    assert_eq!(seen(&log).0, ["twice", "twice", "unheard"]);
}

#[test]
fn while_the_broker_is_away_nothing_works_and_a_commit_is_aborted_for_sure() {
    let (sim, log) = world();
    let mut writer = log.writer("w").expect("writer");
    open(&mut *writer, "a");
    sim.broker_away(1_000);
    assert!(matches!(writer.commit(), CommitOutcome::Aborted(_)));
    assert_eq!(log.bounds(&place(), Isolation::ReadCommitted).expect_err("away").kind, LogErrorKind::Retry);
    assert_eq!(log.fence("w").expect_err("away").kind, LogErrorKind::Retry);
    sim.advance(1_000);
    log.fence("w").expect("back");
    assert_eq!(seen(&log).0, Vec::<String>::new());
}

#[test]
fn what_can_never_be_written_is_told_apart_from_what_can_wait() {
    let (sim, log) = world();
    let large = "x".repeat(MESSAGE_BYTES_MAX + 1);
    assert_eq!(log.append(&message(TOPIC, &large)).expect_err("too large").kind, LogErrorKind::Invalid);
    assert_eq!(log.append(&message("missing", "x")).expect_err("missing").kind, LogErrorKind::Missing);
    let mut writer = log.writer("w").expect("writer");
    writer.begin().expect("begin");
    assert_eq!(writer.send(&message(TOPIC, &large)).expect_err("too large").kind, LogErrorKind::Invalid);
    writer.send(&message("missing", "x")).expect("learnt at the commit");
    assert!(matches!(writer.commit(), CommitOutcome::Aborted(_)));
    let mut writer = log.writer("w").expect("writer");
    writer.begin().expect("begin");
    let ahead = OutMessage { timestamp_ms: Some(sim.now_ms() + 2 * 3_600_000), ..message(TOPIC, "x") };
    writer.send(&ahead).expect("learnt at the commit");
    assert!(matches!(writer.commit(), CommitOutcome::Refused(_)));
    assert_eq!(writer.begin().expect_err("spent").kind, LogErrorKind::Fenced);
    assert_eq!(seen(&log).0, Vec::<String>::new());
    let bad = TopicSpec { name: "no/name".into(), partitions: 1, replication_factor: None, configs: Default::default() };
    assert_eq!(log.create_topics(&[bad]).expect_err("name").kind, LogErrorKind::Fatal);
}

#[test]
fn groups_and_start_positions_are_answered() {
    let (sim, log) = world();
    for _ in 0..3 {
        sim.advance(10);
        log.append(&message(TOPIC, "x")).expect("append");
    }
    let at = |start| log.resolve(&place(), start).expect("resolve");
    assert_eq!((at(StartAt::Beginning), at(StartAt::End), at(StartAt::Offset(2))), (0, 3, 2));
    assert_eq!((at(StartAt::Timestamp(sim.now_ms() - 5)), at(StartAt::Timestamp(sim.now_ms() + 1))), (2, 3));
    assert_eq!(log.group_offset("g", &place()).expect("none yet"), None);
    log.commit_group_offsets("g", &[(place(), 2)]);
    assert_eq!(log.group_offset("g", &place()).expect("offset"), Some(2));
    let described = log.describe_topic("control").expect("describe").expect("exists");
    assert_eq!((described.partitions, described.configs["message.timestamp.type"].as_str()), (2, "LogAppendTime"));
    assert_eq!(log.describe_topic("missing").expect("describe"), None);
}

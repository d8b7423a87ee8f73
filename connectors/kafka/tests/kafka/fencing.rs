//! Fencing a producer that does not answer any more, as a successor does it.

use crate::log_or_return;
use crate::reading::wait_until;
use crate::support::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::ports::log::*;
use streamshield_kafka::KafkaLog;

/// A writer whose transaction is open, with its messages in the log.
fn hanging(log: &KafkaLog, topic: &Arc<str>, id: &str) -> Box<dyn TransactionalWriter> {
    let partition = TopicPartition::new(Arc::clone(topic), 0);
    let before = log.bounds(&partition, Isolation::ReadUncommitted).expect("bounds").high;
    let mut writer = log.writer(id).expect("writer");
    writer.begin().expect("begin");
    writer.send_set(&values(topic, numbered("lost", 0..3))).expect("send");
    wait_until(|| log.bounds(&partition, Isolation::ReadUncommitted).expect("bounds").high == before + 3);
    assert_eq!(log.bounds(&partition, Isolation::ReadCommitted).expect("bounds").high, before, "its transaction is open");
    writer
}

/// What a fence promises, right after it: nothing is open, and the victim can't commit.
fn is_fenced(log: &KafkaLog, topic: &Arc<str>, mut victim: Box<dyn TransactionalWriter>) {
    let partition = TopicPartition::new(Arc::clone(topic), 0);
    let high = |isolation| log.bounds(&partition, isolation).expect("bounds").high;
    assert_eq!(high(Isolation::ReadCommitted), high(Isolation::ReadUncommitted), "the end is stable at once");
    let outcome = victim.commit();
    assert!(matches!(outcome, CommitOutcome::Fenced(_) | CommitOutcome::Aborted(_)), "{outcome:?}");
    assert_eq!(Reading::new(log, topic, 0, 0).take_to_settled_end(log).0, []);
}

#[test]
fn a_prepared_fencer_ends_the_open_transaction_of_its_victim() {
    let log = log_or_return!();
    let (topic, id) = (topic(&log, "prepared", 1), unique("prepared"));
    let victim = hanging(&log, &topic, &id);
    let fencer = log.fencer(&id).expect("fencer");
    fencer.fence().expect("fence");
    is_fenced(&log, &topic, victim);
}

#[test]
fn a_fencer_that_was_prepared_before_its_victim_started_fences_it_too() {
    let log = log_or_return!();
    let (topic, id) = (topic(&log, "early", 1), unique("early"));
    let fencer = log.fencer(&id).expect("fencer");
    let victim = hanging(&log, &topic, &id);
    fencer.fence().expect("fence");
    is_fenced(&log, &topic, victim);
}

#[test]
fn without_preparation_a_fence_does_the_same() {
    let log = log_or_return!();
    let (topic, id) = (topic(&log, "unprepared", 1), unique("unprepared"));
    let victim = hanging(&log, &topic, &id);
    log.fence(&id).expect("fence");
    is_fenced(&log, &topic, victim);
}

#[test]
fn preparing_and_letting_go_fences_nobody() {
    let log = log_or_return!();
    let (topic, id) = (topic(&log, "letgo", 1), unique("letgo"));
    let mut writer = log.writer(&id).expect("writer");
    commit(&mut *writer, &values(&topic, ["a".to_string()]));
    let fencer = log.fencer(&id).expect("fencer");
    commit(&mut *writer, &values(&topic, ["b".to_string()]));
    drop(fencer);
    commit(&mut *writer, &values(&topic, ["c".to_string()]));
    assert_eq!(texts(&Reading::new(&log, &topic, 0, 0).take_to_settled_end(&log).0), ["a", "b", "c"]);
}

#[test]
fn an_id_that_nobody_ever_used_can_be_fenced() {
    let log = log_or_return!();
    log.fencer(&unique("nobody")).expect("fencer").fence().expect("fence");
}

#[test]
fn two_who_fence_the_same_victim_both_succeed() {
    let log = log_or_return!();
    let (topic, id) = (topic(&log, "both", 1), unique("both"));
    let victim = hanging(&log, &topic, &id);
    let fencers = [log.fencer(&id).expect("fencer"), log.fencer(&id).expect("fencer")];
    let threads = fencers.map(|fencer| std::thread::spawn(|| fencer.fence()));
    for thread in threads {
        thread.join().expect("no panic").expect("fence");
    }
    is_fenced(&log, &topic, victim);
}

#[test]
fn what_a_fence_started_ends_by_itself() {
    let log = log_or_return!();
    let (topic, id) = (topic(&log, "threads", 1), unique("threads"));
    let victim = hanging(&log, &topic, &id);
    log.fencer(&id).expect("fencer").fence().expect("fence");
    is_fenced(&log, &topic, victim);
    let fencing = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim() == "kafka-fence").count()
    };
    wait_until(|| fencing() == 0);
}

#[test]
fn without_a_broker_nothing_is_certain() {
    let nobody = BTreeMap::from([("bootstrap.servers".to_string(), "127.0.0.1:1".to_string())]);
    let log = KafkaLog::elsewhere(nobody).expect("made");
    let prepared = log.fencer("x").err().expect("nobody answers");
    assert_eq!(prepared.kind, LogErrorKind::Retry, "{prepared}");
    let started = Instant::now();
    let error = log.fence("x").expect_err("nobody answers");
    assert_eq!(error.kind, LogErrorKind::Retry, "{error}");
    assert!(started.elapsed() < PATIENCE, "bounded in time");
}

/// Figures: how long readers behind a dead worker have to wait at least.
#[test]
#[ignore = "a benchmark"]
fn figures_of_fencing_an_open_transaction() {
    let log = log_or_return!();
    const ROUNDS: usize = 60;
    let topic = topic(&log, "figures", 1);
    let mut figures: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let id = unique("figures");
        let _victim = hanging(&log, &topic, &id);
        let fencer = log.fencer(&id).expect("fencer");
        let started = Instant::now();
        fencer.fence().expect("fence");
        figures.entry("prepared").or_default().push(started.elapsed());

        let id = unique("figures");
        let _victim = hanging(&log, &topic, &id);
        let started = Instant::now();
        log.fence(&id).expect("fence");
        figures.entry("unprepared").or_default().push(started.elapsed());

        let started = Instant::now();
        let fencer = log.fencer(&unique("figures")).expect("fencer");
        figures.entry("preparing").or_default().push(started.elapsed());
        let started = Instant::now();
        drop(fencer);
        figures.entry("letting go").or_default().push(started.elapsed());
    }
    for (what, times) in &mut figures {
        times.sort();
        let ms = |share: usize| times[(ROUNDS * share / 100).min(ROUNDS - 1)].as_secs_f64() * 1e3;
        println!("{what}: p50 {:.1} ms, p95 {:.1} ms, max {:.1} ms", ms(50), ms(95), ms(100));
    }
}

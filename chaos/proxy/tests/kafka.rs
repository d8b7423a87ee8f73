//! Kafka by request name: a real client, a broker, and the proxy between them.
//!
//! The broker is the embedded one, or the one that `STREAMSHIELD_KAFKA` names (host:port, a single broker).

use crate::support::*;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use streamshield_core::mutants;
use streamshield_core::ports::log::*;
use streamshield_embedded::{Config, EmbeddedBroker};
use streamshield_kafka::KafkaLog;
use streamshield_proxy::{Action, ApiKey, Direction, KafkaProxy, Options, Rule, Toxics};

fn broker() -> SocketAddr {
    static BROKER: OnceLock<streamshield_embedded::Handle> = OnceLock::new();
    match std::env::var("STREAMSHIELD_KAFKA") {
        Ok(address) => address.parse().expect("STREAMSHIELD_KAFKA is an address with a port"),
        Err(_) => BROKER.get_or_init(|| EmbeddedBroker::start(Config::default()).expect("embedded broker")).address(),
    }
}

/// A proxy that the broker's answers lead back to.
fn proxy(name: &str) -> KafkaProxy {
    let proxy = KafkaProxy::start(Options::new(name, broker()).seed(3)).expect("start");
    proxy.advertise(broker(), proxy.address());
    proxy
}

fn connect_log(address: SocketAddr, more: &[(&str, &str)]) -> Arc<KafkaLog> {
    let mut properties = BTreeMap::from([("bootstrap.servers".to_string(), address.to_string())]);
    properties.extend(more.iter().map(|(key, value)| (key.to_string(), value.to_string())));
    KafkaLog::connect(properties).expect("connect")
}

fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros();
    format!("{prefix}-{now}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A topic with one partition, made past the proxy.
fn topic(prefix: &str) -> (Arc<KafkaLog>, TopicPartition) {
    let (direct, name) = (connect_log(broker(), &[]), unique(prefix));
    let spec = TopicSpec { name: name.clone(), partitions: 1, replication_factor: None, configs: Default::default() };
    direct.create_topics(&[spec]).expect("create");
    (direct, TopicPartition::new(name, 0))
}

fn producer(proxy: &KafkaProxy, more: &[(&str, &str)]) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", proxy.address().to_string()).set("linger.ms", "0").set("enable.idempotence", "true");
    for (key, value) in more {
        config.set(*key, *value);
    }
    config.create().expect("producer")
}

fn send(producer: &BaseProducer, partition: &TopicPartition, text: &str) {
    producer.send(BaseRecord::<(), str>::to(&partition.topic).partition(0).payload(text)).map_err(|(error, _)| error).expect("queued");
    producer.flush(PATIENCE).expect("delivered");
}

fn committed_end(log: &KafkaLog, partition: &TopicPartition) -> i64 {
    log.bounds(partition, Isolation::ReadCommitted).expect("bounds").high
}

fn end(log: &KafkaLog, partition: &TopicPartition) -> i64 {
    log.bounds(partition, Isolation::ReadUncommitted).expect("bounds").high
}

#[test]
fn a_client_goes_through_the_proxy_and_its_requests_are_known_by_name() {
    let (direct, partition) = topic("names");
    let proxy = proxy("names");
    let (produced, metadata) =
        (proxy.add(Rule::new(ApiKey::Produce, Action::Observe)), proxy.add(Rule::new(ApiKey::Metadata, Action::Observe)));
    let topic_name = partition.topic.to_string();
    let of_topic = proxy.add(Rule::new(ApiKey::Produce, Action::Observe).when(move |request| request.topics == [topic_name.clone()]));
    let producer = producer(&proxy, &[("client.id", "named")]);
    send(&producer, &partition, "one");
    assert_eq!(end(&direct, &partition), 1);
    assert!(produced.counters().fired >= 1 && metadata.counters().fired >= 1, "{produced:?} {metadata:?}");
    assert_eq!(of_topic.counters().fired, produced.counters().fired, "it writes to one topic, which its requests name");
    let counters = proxy.counters();
    assert!(counters.rewritten >= 1 && counters.not_rewritten == 0, "{counters:?}");
    assert!(counters.requests.frames >= 3 && counters.requests.frames == counters.responses.frames, "{counters:?}");
}

#[test]
fn a_delayed_request_is_late_and_others_are_not() {
    let (direct, partition) = topic("late");
    let proxy = proxy("late");
    let producer = producer(&proxy, &[]);
    send(&producer, &partition, "warm");
    let rule = proxy.add(Rule::new(ApiKey::Produce, Action::Delay(Duration::from_millis(300))).times(1));
    let begin = Instant::now();
    send(&producer, &partition, "late");
    assert!(begin.elapsed() >= Duration::from_millis(300) && rule.counters().fired == 1);
    let late_answer = proxy.add(Rule::new(ApiKey::Produce, Action::DelayResponse(Duration::from_millis(300))).times(1));
    let begin = Instant::now();
    send(&producer, &partition, "answered late");
    assert!(begin.elapsed() >= Duration::from_millis(300) && late_answer.counters().fired == 1);
    assert_eq!(end(&direct, &partition), 3);
}

#[test]
fn a_lost_answer_makes_the_client_ask_again_and_idempotence_keeps_one() {
    let (direct, partition) = topic("lost");
    let proxy = proxy("lost");
    let producer = producer(&proxy, &[("socket.timeout.ms", "1000")]);
    send(&producer, &partition, "warm");
    let lost = proxy.add(Rule::new(ApiKey::Produce, Action::DropResponse).times(1));
    let all = proxy.add(Rule::new(ApiKey::Produce, Action::Observe));
    send(&producer, &partition, "once");
    assert_eq!((lost.counters().fired, end(&direct, &partition)), (1, 2));
    assert!(all.counters().fired >= 1, "it was sent again: {all:?}");
    assert!(proxy.counters().responses.swallowed_bytes > 0);
}

#[test]
fn cut_and_dropped_requests_are_sent_again() {
    let (direct, partition) = topic("cut");
    let proxy = proxy("cut");
    let producer = producer(&proxy, &[("socket.timeout.ms", "1000"), ("retry.backoff.ms", "10")]);
    send(&producer, &partition, "warm");
    for (number, action) in [Action::CutRequest, Action::CutResponse, Action::DropRequest].into_iter().enumerate() {
        let rule = proxy.add(Rule::new(ApiKey::Produce, action).times(1));
        send(&producer, &partition, "again");
        assert_eq!((rule.counters().fired, end(&direct, &partition)), (1, 2 + number as i64), "{action:?}");
    }
    assert_eq!(proxy.counters().reset, 2);
}

#[test]
fn a_duplicated_request_reaches_the_broker_twice_and_the_client_hears_once() {
    let (direct, partition) = topic("twice");
    let proxy = proxy("twice");
    // Without idempotence the broker can't tell the copy from a second message.
    let producer = producer(&proxy, &[("enable.idempotence", "false")]);
    let rule = proxy.add(Rule::new(ApiKey::Produce, Action::Duplicate).times(1));
    send(&producer, &partition, "twice");
    eventually("the copy is written", || end(&direct, &partition) == 2);
    send(&producer, &partition, "once");
    assert_eq!((rule.counters().fired, end(&direct, &partition)), (1, 3));
}

#[test]
fn a_held_fetch_is_answered_when_it_is_released_and_a_dropped_handle_releases() {
    let (direct, partition) = topic("held");
    let proxy = proxy("held");
    let producer = producer(&proxy, &[]);
    send(&producer, &partition, "warm");
    for by_drop in [false, true] {
        let held = proxy.hold(ApiKey::Produce, |_| true);
        producer
            .send(BaseRecord::<(), str>::to(&partition.topic).partition(0).payload("held"))
            .map_err(|(error, _)| error)
            .expect("queued");
        while !held.wait_held(1, Duration::ZERO) {
            producer.poll(Duration::from_millis(5));
        }
        let before = end(&direct, &partition);
        assert!(producer.in_flight_count() == 1);
        if by_drop {
            drop(held);
        } else {
            assert_eq!(held.release(), 1);
            assert!(held.wait_for(PATIENCE, |counters| (counters.held, counters.released, counters.delivered) == (0, 1, 1)));
            drop(held);
        }
        producer.flush(PATIENCE).expect("delivered");
        assert_eq!(end(&direct, &partition), before + 1);
    }
}

#[test]
fn a_share_and_a_number_of_times_bound_a_rule() {
    let (_, partition) = topic("share");
    let proxy = proxy("share");
    let producer = producer(&proxy, &[]);
    let half = proxy.add(Rule::new(ApiKey::Produce, Action::Delay(Duration::ZERO)).share(0.5).times(5));
    for _ in 0..60 {
        send(&producer, &partition, "x");
    }
    let counters = half.counters();
    assert_eq!((counters.matched, counters.fired), (60, 5));
    drop(half);
    let some = proxy.add(Rule::new(ApiKey::Produce, Action::Delay(Duration::ZERO)).share(0.5));
    for _ in 0..60 {
        send(&producer, &partition, "x");
    }
    assert!((10..50).contains(&some.counters().fired), "{some:?}");
}

#[test]
fn a_frame_is_cut_in_the_middle() {
    let (direct, partition) = topic("middle");
    let proxy = proxy("middle");
    let producer = producer(&proxy, &[("retry.backoff.ms", "10")]);
    send(&producer, &partition, "warm");
    proxy.set(Direction::Requests, Toxics { cut_after_bytes: Some(2_000), ..Toxics::default() });
    let large = "x".repeat(50_000);
    producer.send(BaseRecord::<(), str>::to(&partition.topic).partition(0).payload(&large)).map_err(|(error, _)| error).expect("queued");
    eventually("a frame is cut", || {
        producer.poll(Duration::from_millis(5));
        proxy.counters().requests.cut > 0
    });
    assert_eq!(end(&direct, &partition), 1, "half a frame is none");
    proxy.heal();
    producer.flush(PATIENCE).expect("delivered");
    assert_eq!(end(&direct, &partition), 2);
}

#[test]
fn what_is_not_kafka_is_reset() {
    let proxy = proxy("foreign");
    let mut client = connect(proxy.address());
    std::io::Write::write_all(&mut client, b"\x80GET / HTTP/1.1\r\n\r\n").expect("send");
    assert_eq!(look(&mut client, PATIENCE), Sees::Reset);
}

/// KIP-890 as it happens in a network: the commit waits in a router's queue. The client gives its connection up and asks again on another
/// one, is answered, and begins its next transaction. Then the first request arrives.
///
/// librdkafka 2.12 speaks the first transaction protocol (the epoch stays the same over transactions), so no broker can tell the stray
/// commit from a wanted one: it commits half of a transaction that its application has not finished, and will abort.
#[test]
fn a_stray_commit_commits_the_next_transaction_of_a_plain_client() {
    let (direct, partition) = topic("stray");
    let proxy = proxy("stray");
    let id = unique("stray");
    let producer = producer(&proxy, &[("transactional.id", &id), ("socket.timeout.ms", "1000"), ("transaction.timeout.ms", "20000")]);
    producer.init_transactions(PATIENCE).expect("init");
    let is_commit = |request: &streamshield_proxy::Request| request.commits == Some(true);
    let stray = proxy.add(Rule::new(ApiKey::EndTxn, Action::Hold).when(is_commit).times(1));
    // Behind the hold: what is held is not counted.
    let retries = proxy.add(Rule::new(ApiKey::EndTxn, Action::Observe).when(is_commit));
    let replacements = proxy.add(Rule::new(ApiKey::InitProducerId, Action::Observe));

    producer.begin_transaction().expect("begin");
    send(&producer, &partition, "first");
    producer.commit_transaction(PATIENCE).expect("librdkafka asks again by itself and reports success");
    // A record and its marker, which is written behind the answer.
    let after_first = 2;
    eventually("the first transaction has its end", || committed_end(&direct, &partition) == after_first);

    producer.begin_transaction().expect("begin");
    send(&producer, &partition, "half of the second");
    let open = end(&direct, &partition);
    assert_eq!(committed_end(&direct, &partition), after_first, "the second transaction is open");
    assert_eq!((stray.counters().held, retries.counters().fired, replacements.counters().fired), (1, 1, 0));
    stray.release();
    assert!(stray.wait_for(PATIENCE, |counters| counters.delivered == 1));
    eventually("half of the second transaction is visible, although nobody has committed it", || committed_end(&direct, &partition) > open);
    // The application's word comes too late.
    println!("abort: {:?}", producer.abort_transaction(Duration::from_secs(5)));
}

/// The same storm, met by our own writer: a commit without one clean answer is in doubt, its producer is replaced, and the new one's epoch
/// shuts the stray out. With the mutant `keep-producer` on it must break as the plain client does.
#[test]
fn a_stray_commit_tears_nothing_of_a_writer_that_replaces_its_producer() {
    let (direct, partition) = topic("guarded");
    let proxy = proxy("guarded");
    let log = connect_log(proxy.address(), &[("transaction.timeout.ms", "20000"), ("socket.timeout.ms", "3000")]);
    let (id, topic) = (unique("guarded"), Arc::clone(&partition.topic));
    let message = |text: &str| OutMessage {
        topic: Arc::clone(&topic),
        partition: Some(0),
        key: None,
        payload: Some(text.as_bytes().to_vec()),
        headers: Vec::new(),
        timestamp_ms: None,
    };
    let is_commit = |request: &streamshield_proxy::Request| request.commits == Some(true);
    let is_guarded = !mutants::is_on("keep-producer");
    let mut writer = log.writer(&id).expect("writer");
    let stray = proxy.add(Rule::new(ApiKey::EndTxn, Action::Hold).when(is_commit).times(1));
    writer.begin().expect("begin");
    writer.send(&message("first")).expect("send");
    let outcome = writer.commit();
    assert_eq!(stray.counters().held, 1);
    if is_guarded {
        assert!(matches!(outcome, CommitOutcome::InDoubt(_)), "{outcome:?}");
        drop(writer);
        writer = log.writer(&id).expect("the next writer");
    } else {
        assert_eq!(outcome, CommitOutcome::Committed);
    }
    let after_first = 2;
    eventually("the first transaction has its end", || committed_end(&direct, &partition) == after_first);

    // The second transaction: everything is in the log, and its own commit waits.
    let second = proxy.hold(ApiKey::EndTxn, is_commit);
    writer.begin().expect("begin");
    writer.send(&message("half")).expect("send");
    let committing = std::thread::spawn(move || writer.commit());
    assert!(second.wait_held(1, PATIENCE));
    let open = end(&direct, &partition);
    assert_eq!((committed_end(&direct, &partition), open), (after_first, after_first + 1), "the second transaction is open");
    stray.release();
    assert!(stray.wait_for(PATIENCE, |counters| counters.delivered == 1));
    if is_guarded {
        // Answered, so the broker has judged it.
        let answered = Instant::now();
        while answered.elapsed() < Duration::from_millis(500) {
            assert_eq!(committed_end(&direct, &partition), after_first, "torn: a commit that nobody wanted took effect");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(second);
        assert_eq!(committing.join().expect("no panic"), CommitOutcome::Committed);
        eventually("the second transaction is committed, with its own word", || committed_end(&direct, &partition) == open + 1);
    } else {
        eventually("torn, as the mutant must be", || committed_end(&direct, &partition) > open);
        drop(second);
        println!("with keep-producer the second commit ends with {:?}", committing.join().expect("no panic"));
    }
}

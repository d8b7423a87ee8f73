//! Fencing: after a new producer took a transactional id over, the old one adds nothing.

use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::Producer as _;

use super::Check;
use super::kit::*;
use super::raw::{self, RawClient};

const INVALID_PRODUCER_EPOCH: i16 = 47;
const INVALID_TRANSACTION_STATE: i16 = 48;
const INVALID_PRODUCER_ID_MAPPING: i16 = 49;
const PRODUCER_FENCED: i16 = 90;

pub const CHECKS: &[Check] = &[
    Check::new("fencing.init", 40, init),
    Check::new("fencing.open_transaction_is_aborted", 90, open_is_aborted),
    Check::new("fencing.idle_producer", 90, idle_producer),
    Check::new("fencing.offsets_of_a_zombie", 90, zombie_offsets),
    Check::new("fencing.producer_that_vanished", 60, vanished),
    Check::new("fencing.stable_end_follows_init", 60, stable_end),
    Check::new("fencing.several_at_once", 60, several_at_once),
    Check::new("fencing.timeout_aborts_and_fences", 90, timeout),
    Check::new("fencing.stale_generation", 90, stale_generation),
    Check::new("fencing.raw_requests_of_a_zombie", 60, raw_zombie),
    Check::new("fencing.end_is_repeatable", 60, repeated_end),
    Check::new("fencing.partition_must_be_added", 60, partition_not_added),
];

fn init(env: &Env) -> Result<String> {
    let producer = env.transactional(&env.name("tid"), &[])?;
    let started = Instant::now();
    ok("init", producer.init_transactions(STEP))?;
    Ok(format!("{} ms", started.elapsed().as_millis()))
}

/// Two producers of one id; the first has a transaction open when the second comes.
fn open_is_aborted(env: &Env) -> Result<String> {
    let (topic, id) = (env.topic("zombie", 1)?, env.name("tid"));
    let old = env.transactional(&id, &[])?;
    ok("init the old one", old.init_transactions(STEP))?;
    begin(&old)?;
    send_all(&old, &topic, 0, numbered("zombie", 0..10))?;
    let new = env.transactional(&id, &[])?;
    ok("init the new one", new.init_transactions(STEP))?;
    expect("after the take-over", env.values(&topic, 0, COMMITTED)?, vec![])?;
    let _ = send(&old, &topic, 0, None, b"late"); // the client may know already
    settle(&old)?;
    if old.commit_transaction(STEP).is_ok() {
        bail!("the old producer could commit");
    }
    begin(&new)?;
    send_all(&new, &topic, 0, numbered("new", 0..10))?;
    commit(&new)?;
    expect("after the new one's commit", env.decided(&topic, 0)?, numbered("new", 0..10))?;
    let fatal = old.client().fatal_error().map(|(code, _)| code);
    match fatal {
        Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch) => Ok(format!("{fatal:?}")),
        other => bail!("the old producer was not told that it is fenced: {other:?}"),
    }
}

fn idle_producer(env: &Env) -> Result<String> {
    let (topic, id) = (env.topic("idle", 1)?, env.name("tid"));
    let old = env.transactional(&id, &[])?;
    ok("init the old one", old.init_transactions(STEP))?;
    begin(&old)?;
    send_all(&old, &topic, 0, numbered("first", 0..10))?;
    commit(&old)?;
    let new = env.transactional(&id, &[])?;
    ok("init the new one", new.init_transactions(STEP))?;
    if old.begin_transaction().is_ok() {
        let _ = send(&old, &topic, 0, None, b"late");
        settle(&old)?;
        expect("the old one's next commit", old.commit_transaction(STEP).is_ok(), false)?;
    }
    expect("committed", env.decided(&topic, 0)?, numbered("first", 0..10))?;
    fine()
}

fn zombie_offsets(env: &Env) -> Result<String> {
    let (input, group, id) = (env.topic("in", 1)?, env.name("group"), env.name("tid"));
    let old = env.transactional(&id, &[])?;
    ok("init the old one", old.init_transactions(STEP))?;
    let new = env.transactional(&id, &[])?;
    ok("init the new one", new.init_transactions(STEP))?;
    let consumer = env.consumer(&[("group.id", &group)])?;
    let metadata = consumer.group_metadata().ok_or_else(|| anyhow!("no group metadata"))?;
    begin(&old)?;
    let sent = old.send_offsets_to_transaction(&offsets(&input, &[(0, 99)])?, &metadata, STEP);
    let ended = old.commit_transaction(STEP);
    expect("committed", env.committed(&group, &input, 0)?, None)?;
    expect("both went well", sent.is_ok() && ended.is_ok(), false)?;
    fine()
}

fn vanished(env: &Env) -> Result<String> {
    let (topic, id) = (env.topic("vanish", 1)?, env.name("tid"));
    let lost = env.transactional(&id, &[])?;
    ok("init", lost.init_transactions(STEP))?;
    begin(&lost)?;
    send_all(&lost, &topic, 0, numbered("lost", 0..10))?;
    drop(lost);
    let next = env.transactional(&id, &[])?;
    ok("init the next one", next.init_transactions(STEP))?;
    begin(&next)?;
    send_all(&next, &topic, 0, numbered("kept", 0..10))?;
    commit(&next)?;
    expect("committed", env.decided(&topic, 0)?, numbered("kept", 0..10))?;
    fine()
}

/// What taking over rests on: once the new producer is initialised, the stable end is the end.
fn stable_end(env: &Env) -> Result<String> {
    let (topic, id) = (env.topic("end", 1)?, env.name("tid"));
    let old = env.transactional(&id, &[])?;
    ok("init the old one", old.init_transactions(STEP))?;
    let committed = env.consumer(&[("isolation.level", COMMITTED)])?;
    let uncommitted = env.consumer(&[("isolation.level", UNCOMMITTED)])?;
    begin(&old)?;
    send_all(&old, &topic, 0, numbered("open", 0..10))?;
    let new = env.transactional(&id, &[])?;
    ok("init the new one", new.init_transactions(STEP))?;
    let stable = committed.fetch_watermarks(&topic, 0, STEP)?.1;
    let end = uncommitted.fetch_watermarks(&topic, 0, STEP)?.1;
    expect("stable end and end", (stable, end), (11, 11))?;
    fine()
}

/// What a quick take-over rests on: producers of one id that were connected before and ask one after the other. The first
/// that gets its id proves that the old transaction is over, whatever the others are told.
fn several_at_once(env: &Env) -> Result<String> {
    let (topic, id) = (env.topic("several", 1)?, env.name("tid"));
    let successors = [0u64, 30, 80].map(|after_ms| env.transactional(&id, &[]).map(|producer| (producer, after_ms)));
    let successors = successors.into_iter().collect::<Result<Vec<_>>>()?;
    for (producer, _) in &successors {
        producer.client().fetch_metadata(Some(&topic), STEP)?;
    }
    let old = env.transactional(&id, &[])?;
    ok("init the old one", old.init_transactions(STEP))?;
    begin(&old)?;
    send_all(&old, &topic, 0, numbered("open", 0..10))?;
    let started = Instant::now();
    let (sender, answers) = std::sync::mpsc::channel();
    for (producer, after_ms) in successors {
        let sender = sender.clone();
        std::thread::spawn(move || {
            std::thread::sleep(millis(after_ms));
            let answer = ok("init", producer.init_transactions(STEP));
            let _ = sender.send(answer); // the first one is enough for the check
        });
    }
    drop(sender);
    let mut refusals = Vec::new();
    let first = answers.iter().find_map(|answer| answer.map_err(|error| refusals.push(error)).ok());
    let elapsed_ms = started.elapsed().as_millis();
    if first.is_none() {
        bail!("none of them got an id: {refusals:?}");
    }
    let stable = env.consumer(&[("isolation.level", COMMITTED)])?.fetch_watermarks(&topic, 0, STEP)?.1;
    let end = env.consumer(&[("isolation.level", UNCOMMITTED)])?.fetch_watermarks(&topic, 0, STEP)?.1;
    expect("stable end and end", (stable, end), (11, 11))?;
    expect("the old one's commit went well", old.commit_transaction(STEP).is_ok(), false)?;
    expect("committed", env.decided(&topic, 0)?, vec![])?;
    Ok(format!("{elapsed_ms} ms"))
}

fn timeout(env: &Env) -> Result<String> {
    let topic = env.topic("timeout", 1)?;
    let settings = [("transaction.timeout.ms", "2000"), ("message.timeout.ms", "1900"), ("socket.timeout.ms", "1900")];
    let producer = env.transactional(&env.name("tid"), &settings)?;
    ok("init", producer.init_transactions(STEP))?;
    begin(&producer)?;
    send_all(&producer, &topic, 0, numbered("hanging", 0..5))?;
    let started = Instant::now();
    // read committed: it can come only after the transaction has ended
    send_all(&env.producer(&[])?, &topic, 0, vec!["plain".to_owned()])?;
    let consumer = env.consumer(&[("isolation.level", COMMITTED), ("enable.partition.eof", "false")])?;
    assign(&consumer, &topic, &[(0, rdkafka::Offset::Beginning)])?;
    while started.elapsed() < seconds(45) {
        let Some(polled) = consumer.poll(millis(200)) else { continue };
        expect("the first committed record", Record::of(&polled?).value, "plain".to_owned())?;
        let waited = started.elapsed();
        expect("its commit went well", producer.commit_transaction(STEP).is_ok(), false)?;
        return Ok(format!("aborted by the broker after {:.1} s", waited.as_secs_f64()));
    }
    bail!("still open after 45 s with a time-out of 2 s")
}

/// KIP-447: offsets with the metadata of a generation that has passed are refused.
fn stale_generation(env: &Env) -> Result<String> {
    let (input, group) = (env.topic("in", 2)?, env.name("group"));
    let first = super::groups::member(env, &group, &[])?;
    first.subscribe(&[&input])?;
    super::groups::wait_assigned(&first, 2)?;
    let stale = first.group_metadata().ok_or_else(|| anyhow!("no group metadata"))?;
    let second = super::groups::member(env, &group, &[])?;
    second.subscribe(&[&input])?;
    super::groups::wait_split(&[&first, &second], 2)?;
    let producer = env.transactional_ready()?;
    begin(&producer)?;
    let sent = producer.send_offsets_to_transaction(&offsets(&input, &[(0, 77)])?, &stale, STEP);
    let ended = producer.commit_transaction(STEP);
    let _ = producer.abort_transaction(STEP);
    expect("committed", env.committed(&group, &input, 0)?, None)?;
    match sent.err().or(ended.err()) {
        Some(KafkaError::Transaction(error))
            if matches!(
                error.code(),
                Code::IllegalGeneration | Code::UnknownMemberId | Code::FencedInstanceId | Code::RebalanceInProgress
            ) =>
        {
            Ok(format!("{:?}", error.code()))
        }
        other => bail!("not refused for its generation: {other:?}"),
    }
}

/// Every request of an old epoch is refused, also when no client library holds it back.
fn raw_zombie(env: &Env) -> Result<String> {
    let (topic, id) = (env.topic("rawzombie", 1)?, env.name("tid"));
    let mut client = RawClient::connect(env)?;
    let old = client.init_producer_id(Some(&id))?;
    expect("add", client.add_partition(&id, old, &topic)?, 0)?;
    let batch = raw::batch(old, 0, true, &numbered("old", 0..2))?;
    expect("produce", client.produce(Some(&id), &topic, &batch)?.0, 0)?;
    let new = client.init_producer_id(Some(&id))?;
    expect("a later epoch", new.0 == old.0 && new.1 > old.1, true)?;
    let late = raw::batch(old, 2, true, &numbered("late", 0..1))?;
    let refused = [
        ("produce", client.produce(Some(&id), &topic, &late)?.0),
        ("add", client.add_partition(&id, old, &topic)?),
        ("commit", client.end(&id, old, true)?),
        ("abort", client.end(&id, old, false)?),
    ];
    for (what, code) in refused {
        if ![INVALID_PRODUCER_EPOCH, PRODUCER_FENCED].contains(&code) {
            bail!("{what} of a zombie: error {code}");
        }
    }
    expect("an id of nobody", client.end(&id, (new.0 + 100_000, 0), true)?, INVALID_PRODUCER_ID_MAPPING)?;
    expect("committed", env.decided(&topic, 0)?, vec![])?;
    fine()
}

/// A client that lost the answer asks again.
fn repeated_end(env: &Env) -> Result<String> {
    let (topic, id) = (env.topic("twice", 1)?, env.name("tid"));
    let mut client = RawClient::connect(env)?;
    let producer = client.init_producer_id(Some(&id))?;
    expect("end of what never began", client.end(&id, producer, true)?, INVALID_TRANSACTION_STATE)?;
    for (round, is_commit) in [true, false].into_iter().enumerate() {
        expect("add", client.add_partition(&id, producer, &topic)?, 0)?;
        let batch = raw::batch(producer, round as i32, true, &[format!("{is_commit}")])?;
        expect("produce", client.produce(Some(&id), &topic, &batch)?.0, 0)?;
        expect("end", client.end(&id, producer, is_commit)?, 0)?;
        expect("the same end again", client.end(&id, producer, is_commit)?, 0)?;
        expect("the other end", client.end(&id, producer, !is_commit)?, INVALID_TRANSACTION_STATE)?;
    }
    expect("committed", env.decided(&topic, 0)?, vec!["true".to_owned()])?;
    fine()
}

fn partition_not_added(env: &Env) -> Result<String> {
    let (topic, id) = (env.topic("notadded", 1)?, env.name("tid"));
    let mut client = RawClient::connect(env)?;
    let producer = client.init_producer_id(Some(&id))?;
    let batch = raw::batch(producer, 0, true, &numbered("a", 0..1))?;
    let (code, _) = client.produce(Some(&id), &topic, &batch)?;
    expect("accepted", code == 0, false)?;
    expect("records", env.values(&topic, 0, UNCOMMITTED)?.len(), 0)?;
    Ok(format!("error {code}"))
}

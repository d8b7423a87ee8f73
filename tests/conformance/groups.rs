//! Consumer groups: who reads what, and what happens when members come, go and die.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::{BufMut as _, BytesMut};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::{ConsumerProtocolSubscription, GroupId, JoinGroupRequest, JoinGroupResponse, SyncGroupRequest};
use kafka_protocol::protocol::{Encodable as _, StrBytes};
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError;

use super::Check;
use super::kit::*;
use super::raw::RawClient;

const MEMBER_ID_REQUIRED: i16 = 79;
const SESSION_TIMEOUT_MS: i32 = 6000;

pub const CHECKS: &[Check] = &[
    Check::new("groups.subscribe_and_commit", 60, subscribe),
    Check::new("groups.resume_at_the_commit", 60, resume),
    Check::new("groups.rebalance_range", 90, |env| rebalance(env, "range")),
    Check::new("groups.rebalance_cooperative", 90, |env| rebalance(env, "cooperative-sticky")),
    Check::new("groups.silent_member_is_dropped", 120, silent_member),
    Check::new("groups.commit_without_membership", 40, assigned_commit),
    Check::new("groups.static_member_returns", 60, static_member),
    Check::new("groups.four_members", 90, four_members),
];

/// A member that notices changes soon.
pub fn member(env: &Env, group: &str, settings: &[(&str, &str)]) -> Result<Consumer> {
    let own = [("group.id", group), ("auto.offset.reset", "earliest"), ("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "300")];
    env.consumer(&[&own, settings].concat())
}

/// Polls until the member holds this many partitions; returns what it read meanwhile.
pub fn wait_assigned(consumer: &Consumer, partitions: usize) -> Result<Vec<Record>> {
    let (started, mut records) = (Instant::now(), Vec::new());
    while consumer.assignment()?.count() != partitions {
        match consumer.poll(millis(50)) {
            Some(Ok(message)) => records.push(Record::of(&message)),
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(error)) => bail!("while waiting for an assignment: {error}"),
        }
        if started.elapsed() > seconds(45) {
            bail!("{} of {partitions} partitions assigned after 45 s", consumer.assignment()?.count());
        }
    }
    Ok(records)
}

/// Polls until the members hold all partitions, each member at least one, none held twice.
pub fn wait_split(consumers: &[&Consumer], partitions: usize) -> Result<Duration> {
    let started = Instant::now();
    loop {
        let mut held = Vec::new();
        for consumer in consumers {
            match consumer.poll(millis(20)) {
                Some(Err(error)) if !matches!(error, KafkaError::PartitionEOF(_)) => bail!("while rebalancing: {error}"),
                _ => {}
            }
            held.push(consumer.assignment()?.elements().iter().map(|element| element.partition()).collect::<Vec<_>>());
        }
        let distinct: BTreeSet<_> = held.iter().flatten().collect();
        let total: usize = held.iter().map(Vec::len).sum();
        if total == partitions && distinct.len() == partitions && held.iter().all(|held| !held.is_empty()) {
            return Ok(started.elapsed());
        }
        if started.elapsed() > seconds(45) {
            bail!("no split after 45 s: {held:?}");
        }
    }
}

fn subscribe(env: &Env) -> Result<String> {
    let (topic, group) = (env.topic("subscribe", 3)?, env.name("group"));
    let producer = env.producer(&[])?;
    for number in 0..90 {
        send(&producer, &topic, number % 3, None, format!("{number}").as_bytes())?;
    }
    flush(&producer)?;
    let consumer = member(env, &group, &[])?;
    consumer.subscribe(&[&topic])?;
    let started = Instant::now();
    let mut records = wait_assigned(&consumer, 3)?;
    let joined = started.elapsed();
    records.extend(take(&consumer, 90 - records.len())?);
    expect("records", records.len(), 90)?;
    consumer.commit_consumer_state(CommitMode::Sync)?;
    for partition in 0..3 {
        expect("committed", env.committed(&group, &topic, partition)?, Some(30))?;
    }
    Ok(format!("assigned after {:.1} s", joined.as_secs_f64()))
}

fn resume(env: &Env) -> Result<String> {
    let (topic, group) = (env.topic("resume", 1)?, env.name("group"));
    send_all(&env.producer(&[])?, &topic, 0, numbered("v", 0..30))?;
    {
        let consumer = member(env, &group, &[])?;
        consumer.subscribe(&[&topic])?;
        wait_assigned(&consumer, 1)?;
        consumer.commit(&offsets(&topic, &[(0, 12)])?, CommitMode::Sync)?;
    }
    let consumer = member(env, &group, &[])?;
    consumer.subscribe(&[&topic])?;
    let mut records = wait_assigned(&consumer, 1)?;
    records.extend(take(&consumer, 18 - records.len())?);
    expect("first", records.first().map(|record| record.offset), Some(12))?;
    fine()
}

fn rebalance(env: &Env, strategy: &str) -> Result<String> {
    let (topic, group) = (env.topic("rebalance", 4)?, env.name("group"));
    let settings = [("partition.assignment.strategy", strategy)];
    let first = member(env, &group, &settings)?;
    first.subscribe(&[&topic])?;
    wait_assigned(&first, 4)?;
    let second = member(env, &group, &settings)?;
    second.subscribe(&[&topic])?;
    let joined = wait_split(&[&first, &second], 4)?;
    let leaving = std::thread::spawn(move || drop(second)); // leaving needs the other one to go on polling
    let started = Instant::now();
    wait_assigned(&first, 4)?;
    let left = started.elapsed();
    leaving.join().map_err(|_| anyhow::anyhow!("leaving panicked"))?;
    Ok(format!("joined in {:.1} s, left in {:.1} s", joined.as_secs_f64(), left.as_secs_f64()))
}

/// Joins with raw frames, takes its share, and is never heard again.
fn silent_member(env: &Env) -> Result<String> {
    let (topic, group) = (env.topic("silent", 4)?, env.name("group"));
    let consumer = member(env, &group, &[("partition.assignment.strategy", "range")])?;
    consumer.subscribe(&[&topic])?;
    wait_assigned(&consumer, 4)?;
    let mut silent = RawClient::connect(env)?;
    let (joining_topic, joining_group) = (topic.clone(), group.clone());
    // its join ends only when the other member has joined again
    let joining = std::thread::spawn(move || join_and_sync(&mut silent, &joining_group, &joining_topic).map(|()| silent));
    wait_assigned(&consumer, 2)?;
    let silent = joining.join().map_err(|_| anyhow::anyhow!("the raw member panicked"))??;
    let started = Instant::now();
    drop(silent);
    wait_assigned(&consumer, 4)?;
    Ok(format!("taken over after {:.1} s", started.elapsed().as_secs_f64()))
}

fn join_and_sync(client: &mut RawClient, group: &str, topic: &str) -> Result<()> {
    let mut joined = join(client, group, topic, "")?;
    if joined.error_code == MEMBER_ID_REQUIRED {
        let member_id = joined.member_id.to_string();
        joined = join(client, group, topic, &member_id)?;
    }
    expect("join", joined.error_code, 0)?;
    let sync = SyncGroupRequest::default()
        .with_group_id(GroupId(StrBytes::from_string(group.to_owned())))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id);
    let synced = client.call(&sync, 3)?;
    expect("sync", synced.error_code, 0)?;
    expect("an assignment came", synced.assignment.is_empty(), false)
}

fn join(client: &mut RawClient, group: &str, topic: &str, member_id: &str) -> Result<JoinGroupResponse> {
    let mut metadata = BytesMut::new();
    metadata.put_i16(0);
    ConsumerProtocolSubscription::default().with_topics(vec![StrBytes::from_string(topic.to_owned())]).encode(&mut metadata, 0)?;
    let range = JoinGroupRequestProtocol::default().with_name(StrBytes::from_static_str("range")).with_metadata(metadata.freeze());
    let request = JoinGroupRequest::default()
        .with_group_id(GroupId(StrBytes::from_string(group.to_owned())))
        .with_session_timeout_ms(SESSION_TIMEOUT_MS)
        .with_rebalance_timeout_ms(30_000)
        .with_member_id(StrBytes::from_string(member_id.to_owned()))
        .with_protocol_type(StrBytes::from_static_str("consumer"))
        .with_protocols(vec![range]);
    client.call(&request, 5)
}

fn assigned_commit(env: &Env) -> Result<String> {
    let (topic, group) = (env.topic("alone", 2)?, env.name("group"));
    let consumer = env.consumer(&[("group.id", &group)])?;
    consumer.commit(&offsets(&topic, &[(0, 5), (1, 6)])?, CommitMode::Sync)?;
    expect("committed", (env.committed(&group, &topic, 0)?, env.committed(&group, &topic, 1)?), (Some(5), Some(6)))?;
    expect("another group", env.committed(&env.name("group"), &topic, 0)?, None)?;
    fine()
}

fn static_member(env: &Env) -> Result<String> {
    let (topic, group) = (env.topic("static", 2)?, env.name("group"));
    let settings = [("group.instance.id", "one")];
    let consumer = member(env, &group, &settings)?;
    consumer.subscribe(&[&topic])?;
    wait_assigned(&consumer, 2)?;
    drop(consumer);
    let started = Instant::now();
    let consumer = member(env, &group, &settings)?;
    consumer.subscribe(&[&topic])?;
    wait_assigned(&consumer, 2)?;
    let returned = started.elapsed();
    expect("it did not wait for its session to end", returned < millis(SESSION_TIMEOUT_MS as u64), true)?;
    Ok(format!("back in {:.1} s", returned.as_secs_f64()))
}

fn four_members(env: &Env) -> Result<String> {
    let (topic, group) = (env.topic("four", 4)?, env.name("group"));
    let consumers: Vec<_> = (0..4).map(|_| member(env, &group, &[])).collect::<Result<_>>()?;
    for consumer in &consumers {
        consumer.subscribe(&[&topic])?;
    }
    let settled = wait_split(&consumers.iter().collect::<Vec<_>>(), 4)?;
    Ok(format!("settled in {:.1} s", settled.as_secs_f64()))
}

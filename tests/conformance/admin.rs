//! Topics, configurations, groups as an administrator sees them.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use rdkafka::admin::{AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::producer::Producer as _;

use super::Check;
use super::kit::*;
use super::raw::RawClient;

pub const CHECKS: &[Check] = &[
    Check::new("admin.metadata", 20, metadata),
    Check::new("admin.create_topics", 30, create_topics),
    Check::new("admin.create_existing_is_refused", 30, create_existing),
    Check::new("admin.bad_names_and_configs_are_refused", 30, bad_topics),
    Check::new("admin.topic_configs", 30, topic_configs),
    Check::new("admin.default_topic_configs", 30, default_configs),
    Check::new("admin.broker_configs", 30, broker_configs),
    Check::new("admin.alter_configs", 30, alter_configs),
    Check::new("admin.create_partitions", 30, create_partitions),
    Check::new("admin.delete_topic", 60, delete_topic),
    Check::new("admin.topic_ids", 60, topic_ids),
    Check::new("admin.list_groups", 60, list_groups),
    Check::new("admin.delete_group", 60, delete_group),
];

fn metadata(env: &Env) -> Result<String> {
    let producer = env.producer(&[])?;
    let metadata = producer.client().fetch_metadata(None, STEP)?;
    if metadata.brokers().is_empty() {
        bail!("no brokers");
    }
    let cluster_id = producer.client().fetch_cluster_id(STEP).ok_or_else(|| anyhow!("no cluster id"))?;
    Ok(format!("{} broker(s), cluster {cluster_id}", metadata.brokers().len()))
}

fn create_topics(env: &Env) -> Result<String> {
    let topic = env.topic("create", 3)?;
    expect("partitions", partition_count(&env.admin()?, &topic)?, 3)?;
    fine()
}

fn create_existing(env: &Env) -> Result<String> {
    let topic = env.topic("twice", 1)?;
    match env.create(&topic, 1, &[]) {
        Err(error) if error.to_string().contains("already exists") => fine(),
        other => bail!("the second create: {other:?}"),
    }
}

fn bad_topics(env: &Env) -> Result<String> {
    let name = env.name("bad");
    type Try<'a> = (&'a str, i32, &'a [(&'a str, &'a str)]);
    let tries: &[Try<'_>] = &[
        ("not a name", 1, &[]),
        (&name, 0, &[]),
        (&name, 1, &[("cleanup.policy", "shred")]),
        (&name, 1, &[("no.such.config", "1")]),
        (&name, 1, &[("retention.ms", "soon")]),
    ];
    for (topic, partitions, config) in tries {
        if env.create(topic, *partitions, config).is_ok() {
            bail!("{topic:?} with {partitions} partitions and {config:?} was created");
        }
    }
    fine()
}

pub fn config_of(env: &Env, topic: &str) -> Result<BTreeMap<String, String>> {
    let described = wait(env.admin()?.describe_configs([&ResourceSpecifier::Topic(topic)], &admin_options()))?;
    let described = described.into_iter().next().ok_or_else(|| anyhow!("nothing described"))?.map_err(|error| anyhow!("{error}"))?;
    Ok(described.entries.into_iter().map(|entry| (entry.name, entry.value.unwrap_or_default())).collect())
}

fn topic_configs(env: &Env) -> Result<String> {
    let set = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.01"), ("message.timestamp.type", "LogAppendTime")];
    let topic = env.topic_with("configs", 2, &set)?;
    let described = config_of(env, &topic)?;
    for (name, value) in set {
        expect(name, described.get(name).map(String::as_str), Some(value))?;
    }
    fine()
}

fn default_configs(env: &Env) -> Result<String> {
    let described = config_of(env, &env.topic("defaults", 1)?)?;
    let wanted = [
        ("cleanup.policy", "delete"),
        ("compression.type", "producer"),
        ("max.message.bytes", "1048588"),
        ("message.timestamp.type", "CreateTime"),
        ("min.insync.replicas", "1"),
        ("retention.bytes", "-1"),
        ("retention.ms", "604800000"),
        ("delete.retention.ms", "86400000"),
    ];
    for (name, value) in wanted {
        expect(name, described.get(name).map(String::as_str), Some(value))?;
    }
    Ok(format!("{} entries", described.len()))
}

fn broker_configs(env: &Env) -> Result<String> {
    let admin = env.admin()?;
    let broker_id = admin.inner().fetch_metadata(None, STEP)?.brokers()[0].id();
    let described = wait(admin.describe_configs([&ResourceSpecifier::Broker(broker_id)], &admin_options()))?;
    let described = described.into_iter().next().ok_or_else(|| anyhow!("nothing described"))?.map_err(|error| anyhow!("{error}"))?;
    for name in ["auto.create.topics.enable", "num.partitions", "transactional.id.expiration.ms"] {
        expect(name, described.entries.iter().any(|entry| entry.name == name), true)?;
    }
    Ok(format!("{} entries", described.entries.len()))
}

fn alter_configs(env: &Env) -> Result<String> {
    let topic = env.topic_with("alter", 1, &[("retention.bytes", "1000000")])?;
    let alter = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("retention.ms", "123456");
    for result in wait(env.admin()?.alter_configs([&alter], &admin_options()))? {
        result.map_err(|error| anyhow!("{error:?}"))?;
    }
    let value = |name: &str| Ok::<_, anyhow::Error>(config_of(env, &topic)?.get(name).cloned().unwrap_or_default());
    wait_until("retention.ms is 123456", || Ok(value("retention.ms")? == "123456"))?;
    expect("what the request does not name is reset", value("retention.bytes")?, "-1".to_owned())?;
    fine()
}

fn create_partitions(env: &Env) -> Result<String> {
    let topic = env.topic("grow", 1)?;
    let admin = env.admin()?;
    for result in wait(admin.create_partitions([&NewPartitions::new(&topic, 4)], &admin_options()))? {
        result.map_err(|error| anyhow!("{error:?}"))?;
    }
    wait_until("four partitions", || Ok(partition_count(&admin, &topic).is_ok_and(|count| count == 4)))?;
    let fewer = wait(admin.create_partitions([&NewPartitions::new(&topic, 2)], &admin_options()))?;
    expect("shrinking is refused", fewer.iter().all(Result::is_err), true)?;
    fine()
}

pub fn delete(env: &Env, topic: &str) -> Result<()> {
    let admin = env.admin()?;
    for result in wait(admin.delete_topics(&[topic], &admin_options()))? {
        result.map_err(|error| anyhow!("{error:?}"))?;
    }
    let is_listed = || Ok::<_, anyhow::Error>(admin.inner().fetch_metadata(None, STEP)?.topics().iter().any(|known| known.name() == topic));
    wait_until("the topic is gone", || Ok(!is_listed()?))
}

fn delete_topic(env: &Env) -> Result<String> {
    let topic = env.topic("delete", 2)?;
    send_all(&env.producer(&[])?, &topic, 0, numbered("x", 0..10))?;
    delete(env, &topic)?;
    env.create(&topic, 1, &[])?;
    let admin = env.admin()?;
    wait_until("the topic is back", || Ok(partition_count(&admin, &topic).is_ok_and(|count| count == 1)))?;
    expect("records of the new topic", env.values(&topic, 0, UNCOMMITTED)?.len(), 0)?;
    fine()
}

fn topic_ids(env: &Env) -> Result<String> {
    let topic = env.topic("ids", 1)?;
    let mut raw = RawClient::connect(env)?;
    let first = raw.topic_id(&topic)?;
    expect("the id stays", raw.topic_id(&topic)?, first)?;
    expect("the id says something", first.is_nil(), false)?;
    delete(env, &topic)?;
    env.create(&topic, 1, &[])?;
    wait_until("the topic is back", || Ok(raw.topic_id(&topic).is_ok()))?;
    if raw.topic_id(&topic)? == first {
        bail!("a topic that was deleted and created again has the same id");
    }
    fine()
}

fn list_groups(env: &Env) -> Result<String> {
    let (topic, group) = (env.topic("listed", 1)?, env.name("group"));
    let consumer = super::groups::member(env, &group, &[])?;
    consumer.subscribe(&[&topic])?;
    super::groups::wait_assigned(&consumer, 1)?;
    let listed = consumer.fetch_group_list(None, STEP)?;
    let found = listed.groups().iter().find(|found| found.name() == group).ok_or_else(|| anyhow!("the group is not listed"))?;
    expect("members", found.members().len(), 1)?;
    expect("state", found.state(), "Stable")?;
    Ok(format!("{} with {}", found.state(), found.protocol()))
}

fn delete_group(env: &Env) -> Result<String> {
    let (topic, group) = (env.topic("left", 1)?, env.name("group"));
    let consumer = super::groups::member(env, &group, &[])?;
    consumer.subscribe(&[&topic])?;
    super::groups::wait_assigned(&consumer, 1)?;
    consumer.commit(&offsets(&topic, &[(0, 0)])?, CommitMode::Sync)?;
    let admin = env.admin()?;
    let try_delete = || Ok::<_, anyhow::Error>(wait(admin.delete_groups(&[&group], &admin_options()))?.iter().all(Result::is_ok));
    expect("a group with members is not deleted", try_delete()?, false)?;
    drop(consumer);
    wait_until("the group is deleted", try_delete)?;
    expect("committed after that", env.committed(&group, &topic, 0)?, None)?;
    fine()
}

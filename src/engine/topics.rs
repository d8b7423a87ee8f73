//! Names and settings of the topics that a job makes for itself.
//!
//! | topic | partitions | holds |
//! |---|---|---|
//! | `<job>-control` | 1 | genesis and membership, `LogAppendTime` |
//! | `<job>-<stage>-changelog` | one per region | epoch records |
//! | `<job>-<exchange>-repartition` | the exchange's | Arrow batches between stages |
//! | `<job>-dead-letter`, `<job>-late` | 1 | refused records, late rows; only when the job asks for them |
//!
//! The suffixes are those of Kafka Streams. Nothing is ever deleted by time: retention is −1, what is no longer needed is trimmed.

use crate::config::{BadRecordPolicy, JobConfig, LateRowPolicy};
use crate::plan::{ExchangePlan, StagePlan};
use std::collections::BTreeMap;
use streamshield_core::ports::log::TopicSpec;

/// Largest message that the job itself writes to an exchange; the topics allow twice as much.
pub const EXCHANGE_MESSAGE_BYTES: usize = 512 << 10;
const TOPIC_MESSAGE_BYTES: usize = 1 << 20;
/// A row of this size still fits into a message of its own, with the names of its columns.
pub const EXCHANGE_ROW_BYTES_MAX: usize = 800_000;

pub fn control(job: &str) -> String {
    format!("{job}-control")
}
pub fn changelog(job: &str, stage: &StagePlan) -> String {
    format!("{job}-{}-changelog", stage.name)
}
pub fn exchange(job: &str, exchange: &ExchangePlan) -> String {
    format!("{job}-{}-repartition", exchange.name)
}
pub fn dead_letter(job: &str) -> String {
    format!("{job}-dead-letter")
}
pub fn late(job: &str) -> String {
    format!("{job}-late")
}

/// A topic whose contents are the job's truth: never deleted by time or size.
fn durable(config: &JobConfig, name: String, partitions: i32, extra: &[(&str, &str)]) -> TopicSpec {
    let mut configs: BTreeMap<String, String> =
        [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")].map(|(k, v)| (k.into(), v.into())).into();
    configs.insert("max.message.bytes".into(), TOPIC_MESSAGE_BYTES.to_string());
    configs.extend(extra.iter().map(|(k, v)| (k.to_string(), v.to_string())));
    TopicSpec { name, partitions, replication_factor: config.replication_factor, configs }
}

pub fn control_spec(config: &JobConfig) -> TopicSpec {
    durable(config, control(&config.name), 1, &[("message.timestamp.type", "LogAppendTime")])
}
pub fn changelog_spec(config: &JobConfig, stage: &StagePlan, regions: u32) -> TopicSpec {
    durable(config, changelog(&config.name, stage), regions as i32, &[])
}
pub fn exchange_spec(config: &JobConfig, plan: &ExchangePlan, partitions: u32) -> TopicSpec {
    durable(config, exchange(&config.name, plan), partitions as i32, &[])
}

/// Topics for people, with the broker's retention.
pub fn side_specs(config: &JobConfig) -> Vec<TopicSpec> {
    let spec = |name| TopicSpec { name, partitions: 1, replication_factor: config.replication_factor, configs: BTreeMap::new() };
    let mut specs = Vec::new();
    if config.on_bad_record == BadRecordPolicy::DeadLetter {
        specs.push(spec(dead_letter(&config.name)));
    }
    if config.late_rows == LateRowPolicy::SideTopic {
        specs.push(spec(late(&config.name)));
    }
    specs
}

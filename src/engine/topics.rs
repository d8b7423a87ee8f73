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

use crate::assemble::has_state;
use crate::config::{BadRecordPolicy, JobConfig, LateRowPolicy};
use crate::plan::{ExchangePlan, JobPlan, StagePlan};
use crate::runtime::EngineError;
use std::collections::BTreeMap;
use streamshield_core::ports::log::{Log, TopicSpec};

/// Largest message that the job itself writes to an exchange; the topics allow twice as much.
pub const EXCHANGE_MESSAGE_BYTES: usize = 512 << 10;
const TOPIC_MESSAGE_BYTES: usize = 1 << 20;
/// A row of this size still fits into a message of its own, with the names of its columns.
pub const EXCHANGE_ROW_BYTES_MAX: usize = 800_000;
/// What a client has to take where there are exchanges or state: such a row with all that is around it. It is librdkafka's default.
const CLIENT_MESSAGE_BYTES_MIN: usize = 1_000_000;

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

/// Whether the client of the job's writers suits the topics of the job's own, whose limits are fixed. What it makes too large the broker refuses, and what
/// is too large for it never gets there: both would stop regions in the middle of their work.
pub fn check_client(plan: &JobPlan, log: &dyn Log) -> Result<(), EngineError> {
    let has_large_messages = !plan.exchanges.is_empty() || plan.stages.iter().any(has_state);
    check_limits(log.batch_bytes_max(), log.message_bytes_max(), has_large_messages)
}

fn check_limits(batch_bytes_max: usize, message_bytes_max: usize, has_large_messages: bool) -> Result<(), EngineError> {
    if batch_bytes_max > TOPIC_MESSAGE_BYTES {
        return Err(batches_too_large("each topic of the job's own", TOPIC_MESSAGE_BYTES));
    }
    if has_large_messages && message_bytes_max < CLIENT_MESSAGE_BYTES_MIN {
        return Err(EngineError {
            message: format!(
                "the job's client takes messages of at most {message_bytes_max} bytes (message.max.bytes), and its exchanges and changelogs need \
                 {CLIENT_MESSAGE_BYTES_MIN}"
            ),
            hint: Some("leave `message.max.bytes` out; what a sink's topic takes is set by its own `max.message.bytes`".into()),
        });
    }
    Ok(())
}

/// The limit of a topic with these configs; an error where the client's batches do not fit.
pub(crate) fn limit_of(topic: &str, configs: &BTreeMap<String, String>, batch_bytes_max: usize) -> Result<usize, EngineError> {
    let limit = configs.get("max.message.bytes").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    if limit < batch_bytes_max { Err(batches_too_large(&format!("topic {topic}"), limit)) } else { Ok(limit) }
}

fn batches_too_large(what: &str, limit: usize) -> EngineError {
    EngineError {
        message: format!("{what} takes batches of at most {limit} bytes (max.message.bytes), and the job's client makes larger ones"),
        hint: Some(format!("set `kafka: {{batch.size: {limit}}}`, which is for all topics of the job; single messages may be larger")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_the_job_s_own_topics_would_stop_is_refused() {
        let is_refused = |batch, message, has_large| check_limits(batch, message, has_large).is_err();
        assert_eq!([true, false].map(|large| is_refused(1_000_000, 1_000_000, large)), [false, false], "librdkafka's defaults");
        assert_eq!([1_048_576, 1_048_577].map(|batch| is_refused(batch, 8_000_000, true)), [false, true]);
        assert_eq!([true, false].map(|large| is_refused(300_000, 300_000, large)), [true, false]);
    }

    #[test]
    fn a_topic_that_takes_no_batch_of_the_client_is_refused_with_what_to_set() {
        let configs = BTreeMap::from([("max.message.bytes".to_string(), "262144".to_string())]);
        assert_eq!(limit_of("t", &configs, 262_144).ok(), Some(262_144));
        assert_eq!(limit_of("t", &BTreeMap::new(), 1_000_000).ok(), Some(usize::MAX));
        let refused = limit_of("t", &configs, 262_145).expect_err("larger batches");
        assert!(refused.hint.is_some_and(|hint| hint.contains("batch.size: 262144")), "{}", refused.message);
    }
}

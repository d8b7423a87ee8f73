//! Topics of a job: what it needs, what is there, and the difference.

use super::PlannedJob;
use crate::job::identity::Identity;
use crate::problem::{Place, Problem, Problems};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::ports::log::{Log, TopicSpec};
use streamshield_engine::plan::{StageInput, StagePlan};
use streamshield_engine::runtime::required_topics;
use streamshield_engine::topics::check_client;
use streamshield_kafka::KafkaLog;

/// A source that keeps records for less leaves nobody the time to repair a job that stands still.
const SHORT_RETENTION: Duration = Duration::from_secs(3600);

/// A topic of the job's own, and whether it is there.
pub struct Topic {
    pub spec: TopicSpec,
    pub exists: bool,
}

impl Topic {
    /// `orders (8 partitions)`
    pub fn describe(&self) -> String {
        match self.spec.partitions {
            1 => format!("{} (1 partition)", self.spec.name),
            partitions if partitions > 1 => format!("{} ({partitions} partitions)", self.spec.name),
            _ => format!("{} (the broker's number of partitions)", self.spec.name),
        }
    }
}

/// Compares the cluster with what the job needs. Returns the job's own topics; None if its sources are not there.
pub fn compare(planned: &PlannedJob, log: &Arc<KafkaLog>, problems: &mut Problems) -> Option<Vec<Topic>> {
    let sources_there = check_sources(planned, log.as_ref(), problems);
    if !sources_there {
        return None;
    }
    if let Err(error) = check_client(&planned.planned.plan, log.as_ref()) {
        problems.add(Problem::error(error.message).maybe_hint(error.hint));
    }
    let connectors = super::connectors(log.clone());
    let specs = match required_topics(&planned.planned.plan, &planned.job.config(&Identity::alone(), None), &connectors) {
        Ok(specs) => specs,
        Err(error) => {
            problems.add(Problem::error(error.message).maybe_hint(error.hint));
            return None;
        }
    };
    let mut topics = Vec::new();
    for spec in specs {
        match log.describe_topic(&spec.name) {
            Ok(found) => {
                if let Some(found) = &found {
                    differences(&spec, found.partitions, &found.configs, problems);
                    // That of the job's own topics is fixed, and known to `check_client`.
                    if !spec.configs.contains_key("max.message.bytes")
                        && let Some(limit) = log.exceeded_batch_limit(&found.configs)
                    {
                        problems.add(batches_too_large(&spec.name, limit).at_place(place_of(planned, &spec.name)));
                    }
                }
                topics.push(Topic { spec, exists: found.is_some() });
            }
            Err(error) => problems.add(Problem::error(format!("can't look at topic `{}`: {error}", spec.name))),
        }
    }
    Some(topics)
}

/// As the sink says it when it starts.
fn batches_too_large(topic: &str, limit: usize) -> Problem {
    Problem::error(format!(
        "topic `{topic}` takes batches of at most {limit} bytes (max.message.bytes), and the job's client makes larger ones"
    ))
    .hint(format!("set `kafka: {{batch.size: {limit}}}`, which is for all topics of the job"))
}

/// Every topic that is read must be there; nobody but its owner knows how it should be made.
fn check_sources(planned: &PlannedJob, log: &dyn Log, problems: &mut Problems) -> bool {
    let (mut all_there, mut asked) = (true, BTreeSet::new());
    for (table, topic) in source_topics(&planned.planned.plan.stages) {
        if !asked.insert(topic.to_string()) {
            continue;
        }
        let problem = match log.describe_topic(topic) {
            Ok(Some(found)) => {
                for warning in source_warnings(table, topic, &found.configs) {
                    problems.add(warning.at_place(place_of(planned, topic)));
                }
                continue;
            }
            Ok(None) => Problem::error(format!("topic `{topic}` of table `{table}` does not exist"))
                .hint("create it, or correct the 'topic' option: a job never creates the topics that it reads"),
            Err(error) => Problem::error(format!("can't look at topic `{topic}` of table `{table}`: {error}")),
        };
        all_there = false;
        problems.add(problem.at_place(place_of(planned, topic)));
    }
    all_there
}

/// Settings of a topic that is read by which a record may be gone before its turn comes.
fn source_warnings(table: &str, topic: &str, configs: &BTreeMap<String, String>) -> Vec<Problem> {
    let mut warnings = Vec::new();
    let policy = configs.get("cleanup.policy").map_or("", String::as_str);
    if policy.contains("compact") {
        let what = format!("topic `{topic}` of table `{table}` is compacted: of the records of a key only the newest is sure to be read");
        warnings.push(Problem::warning(what).hint("where every record counts, read a topic with cleanup.policy=delete"));
    }
    let retention_ms = configs.get("retention.ms").and_then(|retention| retention.parse::<u64>().ok());
    let short = retention_ms.map(Duration::from_millis).filter(|retention| *retention < SHORT_RETENTION && policy.contains("delete"));
    if let Some(retention) = short {
        let what = format!("topic `{topic}` of table `{table}` keeps records for {retention:?} only (retention.ms)");
        warnings.push(Problem::warning(what).hint("a job that stands still for longer stops: it never jumps over records that are gone"));
    }
    warnings
}

/// Tables with their topics, as far as they lie in the job's own cluster.
fn source_topics(stages: &[StagePlan]) -> impl Iterator<Item = (&str, &str)> {
    let scans = stages.iter().filter_map(|stage| match &stage.input {
        StageInput::Source(scan) => Some(&scan.table),
        StageInput::Exchange(_) => None,
    });
    let own = scans.filter(|table| table.connector() == "kafka" && table.option("properties.bootstrap.servers").is_none());
    own.flat_map(|table| table.option("topic").unwrap_or_default().split(';').map(|topic| (table.name.as_str(), topic.trim())))
}

/// Where the SQL names a topic.
fn place_of(planned: &PlannedJob, topic: &str) -> Option<Place> {
    let literal = format!("'{topic}'");
    let at = planned.job.sql.text.find(&literal)?;
    Some(planned.job.sql.place(at..at + literal.len()))
}

/// What is wrong with a topic that exists. Wrong settings lose data (retention) or break the job's promises (timestamps).
fn differences(spec: &TopicSpec, partitions: i32, configs: &BTreeMap<String, String>, problems: &mut Problems) {
    if spec.partitions >= 0 && partitions != spec.partitions {
        problems.add(
            Problem::error(format!("topic `{}` has {partitions} partitions, the job needs {}", spec.name, spec.partitions))
                .hint("set `parallelism` to what the job began with, or give the job another name"),
        );
    }
    for (key, wanted) in &spec.configs {
        let Some(found) = configs.get(key).filter(|found| *found != wanted) else { continue };
        problems.add(
            Problem::error(format!("topic `{}` has {key}={found}, the job needs {wanted}", spec.name))
                .hint(format!("kafka-configs.sh --alter --entity-type topics --entity-name {} --add-config {key}={wanted}", spec.name)),
        );
    }
}

//! Topics of a job: what it needs, what is there, and the difference.

use super::PlannedJob;
use crate::job::identity::Identity;
use crate::problem::{Place, Problem, Problems};
use std::collections::BTreeSet;
use std::sync::Arc;
use streamshield_core::ports::log::{Log, TopicSpec};
use streamshield_engine::plan::{StageInput, StagePlan};
use streamshield_engine::runtime::required_topics;
use streamshield_kafka::KafkaLog;

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
                }
                topics.push(Topic { spec, exists: found.is_some() });
            }
            Err(error) => problems.add(Problem::error(format!("can't look at topic `{}`: {error}", spec.name))),
        }
    }
    Some(topics)
}

/// Every topic that is read must be there; nobody but its owner knows how it should be made.
fn check_sources(planned: &PlannedJob, log: &dyn Log, problems: &mut Problems) -> bool {
    let (mut all_there, mut asked) = (true, BTreeSet::new());
    for (table, topic) in source_topics(&planned.planned.plan.stages) {
        if !asked.insert(topic.to_string()) {
            continue;
        }
        let problem = match log.describe_topic(topic) {
            Ok(Some(_)) => continue,
            Ok(None) => Problem::error(format!("topic `{topic}` of table `{table}` does not exist"))
                .hint("create it, or correct the 'topic' option: a job never creates the topics that it reads"),
            Err(error) => Problem::error(format!("can't look at topic `{topic}` of table `{table}`: {error}")),
        };
        all_there = false;
        problems.add(problem.at_place(place_of(planned, topic)));
    }
    all_there
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
fn differences(spec: &TopicSpec, partitions: i32, configs: &std::collections::BTreeMap<String, String>, problems: &mut Problems) {
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

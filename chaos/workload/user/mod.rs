//! A user's own job under load: rows for its tables, and what can be said of any job.
//!
//! Nothing is known about what the job computes, so the oracle says less than for the load's own job, and says so:
//!
//! | | for the load's own job | for a user's |
//! |---|---|---|
//! | the job's own topics: E-1, E-2, E-3, E-5, O-1, C-1, K-2, open transactions | yes | yes |
//! | nothing of the input is left | by its rows | by the positions in the epoch records |
//! | rows in = rows out + dead letters | yes | where a stage gives a row for each row (no filter, no window, no list) |
//! | dead letters | exactly those of the faulty records | exactly those of the faulty records; any other one is an anomaly |
//! | late rows | exactly those that were injected | none: all rows are in the order of their event time. Not judged where a source has an idle timeout: an outage makes rows late |
//! | sums, windows, order, torn transactions in sinks | yes | no |
//!
//! The tables are not parsed here: `streamshield explain JOB --format json` tells them. Every source table with the connector `kafka` and JSON values gets rows by the
//! types of its columns, from the seed; columns that event time is made of, and all other timestamps, have the moment when the row was due. Other tables are left alone.
//!
//! Faulty data: what is no row (`undecodable`, `oversized`, `null_value`), and only where the job sends bad records to the dead-letter topic. Other kinds are not sent.

pub mod rows;
mod verify;

use crate::checks::ControlFold;
use crate::client::{INPUT_MESSAGE_BYTES, NewTopicSpec, create_topics, topics};
use crate::error::WorkloadError;
use crate::feeder::{Running, Sent};
use crate::findings::Findings;
use crate::schedule::Settings;
use rows::TableRows;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What `explain --format json` says.
#[derive(Clone, Debug, Deserialize)]
struct Explained {
    stages: Vec<Stage>,
}

#[derive(Clone, Debug, Deserialize)]
struct Stage {
    name: String,
    source: Option<Table>,
    sink: Option<Table>,
    row_for_row: bool,
}

/// A table of the job.
#[derive(Clone, Debug, Deserialize)]
pub struct Table {
    pub table: String,
    pub connector: String,
    pub columns: Vec<Column>,
    pub options: BTreeMap<String, String>,
    #[serde(default)]
    pub event_time: BTreeSet<String>,
    /// Of a source; the job's, where the table has none.
    #[serde(default)]
    pub idle_timeout_ms: Option<u64>,
}

/// A column of the records.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Column {
    pub name: String,
    #[serde(rename = "type")]
    pub sql_type: String,
    pub nullable: bool,
}

impl Table {
    /// Of a Kafka table.
    pub fn topic(&self) -> Option<&str> {
        if self.connector == "kafka" { self.options.get("topic").map(|topic| topic.trim()) } else { None }
    }
}

/// A user's job file, and what it reads and writes.
#[derive(Clone, Debug)]
pub struct UserJob {
    pub name: String,
    pub seed: u64,
    pub settings: Settings,
    file: serde_json::Map<String, Value>,
    /// By `StageId`.
    stages: Vec<Stage>,
}

impl UserJob {
    /// `file`: the job file's text; `folder`: where it lies; `explained`: what `streamshield explain --format json` says of it.
    pub fn read(file: &str, folder: &Path, explained: &str, seed: u64, settings: Settings) -> Result<UserJob, WorkloadError> {
        let wrong = |what: String| WorkloadError::Settings(format!("the job file: {what}"));
        if let Some(problem) = settings.problem() {
            return Err(WorkloadError::Settings(problem));
        }
        let mut file: serde_json::Map<String, Value> = serde_saphyr::from_str(file).map_err(|error| wrong(error.to_string()))?;
        let name = file.get("name").and_then(Value::as_str).ok_or_else(|| wrong("it has no name".into()))?.to_string();
        if let Some(Value::String(sql_file)) = file.get_mut("sql_file") {
            *sql_file = folder.join(&*sql_file).display().to_string();
        }
        if file.get("sql").and_then(Value::as_str).is_some_and(|sql| sql.contains("'pipeline.name'")) {
            return Err(wrong("its SQL sets 'pipeline.name': give the name in the file".into()));
        }
        let explained: Explained =
            serde_json::from_str(explained).map_err(|error| wrong(format!("explain says something else: {error}")))?;
        let job = UserJob { name, seed, settings, file, stages: explained.stages };
        job.tables()?;
        Ok(job)
    }

    /// The source tables that get rows.
    fn tables(&self) -> Result<Vec<TableRows>, WorkloadError> {
        let mut by_topic: BTreeMap<&str, TableRows> = BTreeMap::new();
        for table in self.stages.iter().filter_map(|stage| stage.source.as_ref()) {
            let Some(topic) = table.topic() else { continue };
            let mut rows = TableRows::new(table, topic)?;
            match by_topic.get_mut(topic) {
                // Two tables over one topic: each record has the columns of both.
                Some(known) => known.join(&mut rows)?,
                None => drop(by_topic.insert(topic, rows)),
            }
        }
        if by_topic.is_empty() {
            return Err(WorkloadError::Settings(
                "the job reads no table with the connector 'kafka': there is nothing to load it with".into(),
            ));
        }
        Ok(by_topic.into_values().collect())
    }

    fn topics_of(&self, table: fn(&Stage) -> Option<&Table>) -> BTreeSet<&str> {
        self.stages.iter().filter_map(table).filter_map(Table::topic).collect()
    }

    pub fn sources(&self) -> BTreeSet<&str> {
        self.topics_of(|stage| stage.source.as_ref())
    }

    pub fn sinks(&self) -> BTreeSet<&str> {
        self.topics_of(|stage| stage.sink.as_ref())
    }

    /// Bad records become dead letters.
    pub fn has_dead_letters(&self) -> bool {
        self.file.get("on_bad_record").and_then(Value::as_str) == Some("dead_letter")
    }

    /// After an outage of a part of the brokers rows may be late, as in any engine.
    pub fn has_idle_timeout(&self) -> bool {
        self.stages.iter().filter_map(|stage| stage.source.as_ref()).any(|table| table.idle_timeout_ms.is_some())
    }

    /// Creates the topics of sources and sinks. They must not exist: rows of somebody else would be judged, too.
    pub fn create_topics(&self, servers: &str) -> Result<(), WorkloadError> {
        let Settings { partitions, replication_factor, .. } = self.settings;
        let wanted: BTreeSet<&str> = self.sources().into_iter().chain(self.sinks()).collect();
        let known = topics(servers)?;
        if let Some(topic) = wanted.iter().find(|topic| known.iter().any(|known| known == *topic)) {
            return Err(WorkloadError::Settings(format!("topic {topic} exists: a proof needs topics of its own")));
        }
        let configs = || vec![("retention.ms", "-1".to_string()), ("max.message.bytes", INPUT_MESSAGE_BYTES.to_string())];
        let spec = |name: &&str| NewTopicSpec { name: name.to_string(), partitions, replication_factor, configs: configs() };
        create_topics(servers, &wanted.iter().map(spec).collect::<Vec<_>>())
    }

    /// The job file for these brokers, as JSON (which is YAML). `settings`: as in [`Workload::job_yaml`](crate::Workload::job_yaml), values in YAML.
    pub fn job_yaml(&self, servers: &str, settings: &[(&str, String)]) -> Result<String, WorkloadError> {
        let mut file = self.file.clone();
        let mut kafka: serde_json::Map<String, Value> = file.get("kafka").and_then(Value::as_object).cloned().unwrap_or_default();
        ["embedded", "data_dir", "listen"].into_iter().for_each(|key| drop(kafka.remove(key)));
        kafka.insert("bootstrap.servers".into(), servers.into());
        for (key, value) in settings {
            let value: Value =
                serde_saphyr::from_str(value).map_err(|error| WorkloadError::Settings(format!("{key}: {value} is no YAML: {error}")))?;
            match key.strip_prefix("kafka.") {
                Some(property) => kafka.insert(property.into(), value),
                None => file.insert(key.to_string(), value),
            };
        }
        file.insert("kafka".into(), kafka.into());
        serde_json::to_string_pretty(&file).map_err(|error| WorkloadError::Harness(error.to_string()))
    }

    /// Starts the open loop over all source topics, in turn.
    pub fn start(&self, servers: &str) -> Result<Running, WorkloadError> {
        let generator = rows::Feed::new(self.tables()?, self.has_dead_letters());
        Running::start(generator, (self.seed, self.settings.clone()), servers)
    }

    /// Whether an output has a row for each row of the input: only then rows that are lost or doubled are seen.
    pub fn is_row_for_row(&self) -> bool {
        verify::has_row_for_row(self)
    }

    /// Judges what is there; the job must have taken all input ([`wait_drained`](Self::wait_drained)). `control`: as for [`check_job`](crate::checks::check_job).
    pub fn verify(&self, servers: &str, sent: &Sent, control: ControlFold) -> Result<Findings, WorkloadError> {
        verify::verify(self, servers, sent, control)
    }

    /// Waits until the positions in the epoch records are the ends of the sources; false when nothing has moved for `quiet_max`.
    pub fn wait_drained(&self, servers: &str, quiet_max: std::time::Duration) -> Result<bool, WorkloadError> {
        verify::wait_drained(self, servers, quiet_max)
    }
}

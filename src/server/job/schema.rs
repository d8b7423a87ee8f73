//! The job file as a user sees it: every key, what it takes, what it means.
//!
//! These types are never filled: [`super::read`] reads the file with its places. They are the one description of the keys, from which
//! come the published JSON Schema (`streamshield schema`, `docs/job-file.schema.json`), the check for unknown keys and the suggestions.

#![allow(dead_code, reason = "the fields are described to schemars, which reads them at compile time")]

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use streamshield_files::schema::forbid_null;

/// A streaming SQL job. Values may contain `${env:NAME}` and `${file:/path}`; `$${` stands for `${`.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, title = "streamshield job file")]
pub struct JobFile {
    /// Name of the job: the prefix of its topics and transactional ids. Two jobs on one cluster must not share it. Lower-case letters, digits, `.`, `_` and `-`. `SET 'pipeline.name'` in the SQL overrides it.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$"))]
    pub name: Option<String>,
    /// What the job promises.
    pub slo: Option<Slo>,
    /// The Kafka cluster: librdkafka properties (`bootstrap.servers`, `security.protocol`, `sasl.password`…), or `embedded: true` for a broker inside of this process.
    pub kafka: Option<Kafka>,
    /// Engine threads of this process. Default: the number of processors.
    #[schemars(range(min = 1, max = 256))]
    pub slots: Option<u32>,
    /// Partitions of the exchanges between stages; fixed at the job's first start. Default: 4. `SET 'parallelism.default'` overrides it.
    #[schemars(range(min = 1, max = 4096))]
    pub parallelism: Option<u32>,
    /// Upper bound of the time between two commits. Default: `100 ms`.
    pub commit_interval: Option<TimeSpan>,
    /// Time between two writes of the state to disk; what came later is replayed after a restart. Default: `5 s`.
    pub flush_interval: Option<TimeSpan>,
    /// Memory for state in this process; what does not fit lies in `state_dir`. Default: `512 MiB`.
    pub memory_budget: Option<ByteSize>,
    /// How a lost worker's part of the job comes back: 1 active-active, 2 active-standby, 3 checkpoints. Default: the cheapest that keeps `slo.max_recovery`.
    #[schemars(range(min = 1, max = 3))]
    pub tier: Option<u32>,
    /// Followers of each region, on other workers. Default: 1 in tiers 1 and 2, none in tier 3. Only tier 1 may have 2.
    #[schemars(range(min = 1, max = 2))]
    pub replicas: Option<u32>,
    /// Checkpoints to an object store: they seed new followers, bring back what a lost machine held, and let the job's own topics be trimmed.
    pub checkpoint: Option<Checkpoint>,
    /// Folder of the local state; safe to delete while the job does not run. Several workers have a folder each inside of it. Default: `.streamshield/NAME/state` in the working directory.
    pub state_dir: Option<String>,
    /// The statements. Either this or `sql_file`.
    pub sql: Option<String>,
    /// File with the statements; a relative path starts at the job file's folder.
    pub sql_file: Option<String>,
    /// What happens to a record that is no row of its table. Default: `fail`.
    pub on_bad_record: Option<OnBadRecord>,
    /// What happens to a row whose windows are closed. Default: `drop`.
    pub late_rows: Option<LateRows>,
    /// Replication of the topics that the job creates. Default: the broker's.
    #[schemars(range(min = 1, max = 32767))]
    pub replication_factor: Option<i32>,
}

/// What the job promises. `check` compares `max_latency` and `max_recovery` with the settings; figures against it are in the metrics.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Slo {
    /// Share of the rows that must be in the result: late rows count against it. `99.9 %` or `0.999`. It is exported as a metric, to compare with; no setting follows from it.
    pub completeness: Option<Share>,
    /// From the record's timestamp to its committed result.
    pub max_latency: Option<TimeSpan>,
    /// From the loss of a worker to the next committed result. It chooses the tier: below `3 s` tier 1, below `10 s` tier 2, else tier 3. No tier keeps less than `1 s`.
    pub max_recovery: Option<TimeSpan>,
}

/// Any librdkafka property, or `embedded: true` with its own few keys.
#[derive(JsonSchema)]
pub struct Kafka {
    /// Runs a broker inside of this process, for trying out and for one machine. Then no librdkafka properties are given.
    pub embedded: Option<bool>,
    /// Folder of the embedded broker's log. Default: none, everything is forgotten at the end.
    pub data_dir: Option<String>,
    /// Address of the embedded broker, for kcat and the like. Default: `127.0.0.1:0`, a free port.
    pub listen: Option<String>,
    /// `host:port,…` of the cluster.
    #[serde(rename = "bootstrap.servers")]
    pub bootstrap_servers: Option<String>,
    #[serde(flatten)]
    pub properties: BTreeMap<String, Property>,
}

/// Region checkpoints. Each region writes its own, now and then, beside the work: there are no barriers.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Checkpoint {
    /// Where they go: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, `hdfs://host:port/path`, `file:///path` (a folder that all machines share). Without one there are no checkpoints.
    pub store: Option<String>,
    /// Time between two checkpoints of a region, jittered. Default: `10 s` in tier 3, `60 s` in tiers 1 and 2.
    pub interval: Option<TimeSpan>,
    /// How many of a region are kept. Default: 3.
    #[schemars(range(min = 1, max = 1000))]
    pub retain: Option<u32>,
    /// Older ones are kept as long as this, too. Default: not at all.
    pub retain_for: Option<TimeSpan>,
    /// Settings of the store, as its client names them: `endpoint`, `region`, `access_key_id`, `secret_access_key`, `dfs.replication`… Secrets as `${env:NAME}` or `${file:/path}`.
    pub options: Option<BTreeMap<String, StoreOption>>,
    /// Folder for checkpoints while the store is away; they are uploaded when it is back. Default: `checkpoints` in `state_dir`, or `.streamshield/NAME/checkpoints`.
    pub fallback_dir: Option<String>,
    /// Uploads of one worker at a time. Default: 4.
    #[schemars(range(min = 1, max = 64))]
    pub upload_concurrency: Option<u32>,
    /// What uploads of one worker may take of the network, for example `50 MB/s`. Default: no limit.
    pub upload_bandwidth: Option<Bandwidth>,
}

/// What happens to a record that is no row.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRecord {
    /// The region stops, with its offsets kept.
    Fail,
    /// The original bytes go to the topic `NAME-dead-letter`, in the same transaction.
    DeadLetter,
    /// Counted and dropped.
    Skip,
}

/// What happens to a row whose windows are closed.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LateRows {
    /// Counted and dropped.
    Drop,
    /// As JSON to the topic `NAME-late`, in the same transaction.
    SideTopic,
}

/// A string type of the schema with a pattern.
macro_rules! text_type {
    ($type:ident, $name:literal, $schema:tt) => {
        pub struct $type;
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

text_type!(TimeSpan, "Duration", {
    "description": "A number with a unit: `100 ms`, `5 s`, `1 min`, `2 h`, `1 d`.",
    "type": "string",
    "examples": ["100 ms", "5 s", "1 min"]
});
text_type!(ByteSize, "Size", {
    "description": "Bytes, with or without a unit: `512 MiB`, `1 GB`.",
    "type": ["string", "integer"],
    "examples": ["512 MiB", "1 GB"]
});
text_type!(Share, "Share", {
    "description": "`99.9 %` or `0.999`.",
    "type": ["string", "number"],
    "examples": ["99.9 %", 0.999]
});
text_type!(Bandwidth, "Bandwidth", {
    "description": "Bytes per second: `50 MB/s`.",
    "type": ["string", "integer"],
    "examples": ["50 MB/s"]
});
text_type!(StoreOption, "StoreOption", {
    "description": "A setting of the object store's client.",
    "type": ["string", "number", "boolean"]
});
text_type!(Property, "Property", {
    "description": "A property of librdkafka.",
    "type": ["string", "number", "boolean"]
});

/// The JSON Schema of the job file.
pub fn json_schema() -> Value {
    let mut schema = schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<JobFile>().to_value();
    forbid_null(&mut schema);
    schema
}

/// As `streamshield schema` prints it.
pub fn json_schema_text() -> String {
    serde_json::to_string_pretty(&json_schema()).expect("a JSON value always serializes") + "\n"
}

/// The keys of one object of the schema; "" is the file itself.
pub fn keys_of(definition: &str) -> Vec<String> {
    let schema = json_schema();
    let pointer = if definition.is_empty() { "/properties".to_string() } else { format!("/$defs/{definition}/properties") };
    schema
        .pointer(&pointer)
        .and_then(|properties| properties.as_object())
        .map(|properties| properties.keys().cloned().collect())
        .unwrap_or_default()
}

/// The values of a choice such as [`OnBadRecord`].
pub fn values_of(definition: &str) -> Vec<String> {
    let schema = json_schema();
    let Some(schema) = schema.pointer(&format!("/$defs/{definition}")) else { return Vec::new() };
    let from_enum = schema.get("enum").and_then(|values| values.as_array()).into_iter().flatten().cloned();
    let from_choices =
        schema.get("oneOf").and_then(|values| values.as_array()).into_iter().flatten().filter_map(|choice| choice.get("const").cloned());
    from_enum.chain(from_choices).filter_map(|value| value.as_str().map(str::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_choices_come_out_of_the_schema() {
        assert!(keys_of("").contains(&"commit_interval".to_string()));
        assert_eq!(keys_of("Slo").len(), 3);
        assert!(keys_of("Kafka").contains(&"bootstrap.servers".to_string()));
        assert_eq!(values_of("OnBadRecord"), ["fail", "dead_letter", "skip"]);
        assert_eq!(values_of("LateRows"), ["drop", "side_topic"]);
        assert!(!json_schema_text().contains("null"));
    }
}

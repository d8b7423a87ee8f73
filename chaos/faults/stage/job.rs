//! From a job file to one for each worker of a stage: the same job, reached another way.
//!
//! The copies are written as JSON, which YAML takes. What is replaced: the cluster, the state's folder and the store of the checkpoints. Nothing of a
//! user's own cluster or store may be touched by a run that breaks things, so all three are replaced whatever the file says.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// A job as a user has it.
#[derive(Clone, Debug)]
pub struct JobFile {
    pub yaml: String,
    /// Where relative paths in it start.
    pub folder: Option<PathBuf>,
}

impl JobFile {
    pub fn new(yaml: impl Into<String>) -> JobFile {
        JobFile { yaml: yaml.into(), folder: None }
    }

    pub fn read(file: &Path) -> Result<JobFile> {
        let yaml = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        Ok(JobFile { yaml, folder: file.canonicalize()?.parent().map(Path::to_path_buf) })
    }

    fn parse(&self) -> Result<Map<String, Value>> {
        let value: Value = serde_saphyr::from_str(&self.yaml).map_err(|error| anyhow::anyhow!("the job file is no YAML: {error}"))?;
        match value {
            Value::Object(keys) => Ok(keys),
            other => anyhow::bail!("a job file has keys, this one is {other}"),
        }
    }

    /// Its name; a `SET` in the SQL is not looked at.
    pub fn name(&self) -> Result<String> {
        let keys = self.parse()?;
        Ok(keys.get("name").and_then(Value::as_str).context("the job file has no `name`")?.to_string())
    }
}

/// What a worker is told of the stage.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub bootstrap_servers: String,
    /// The workers' folders are made inside of it.
    pub state_dir: PathBuf,
    /// URL and options; None: the job gets no checkpoints.
    pub store: Option<(String, Map<String, Value>)>,
    pub fallback_dir: PathBuf,
}

/// The text of one worker's job file.
pub(crate) fn for_worker(job: &JobFile, surroundings: &Surroundings) -> Result<String> {
    let mut keys = job.parse()?;
    // Only what names a cluster is replaced: properties of the client are the job's own.
    let mut kafka = match keys.remove("kafka") {
        Some(Value::Object(kafka)) => kafka,
        _ => Map::new(),
    };
    kafka.retain(|key, _| key != "embedded" && !key.starts_with("security.") && !key.starts_with("sasl.") && !key.starts_with("ssl."));
    kafka.insert("bootstrap.servers".into(), json!(surroundings.bootstrap_servers));
    keys.insert("kafka".into(), Value::Object(kafka));
    keys.insert("state_dir".into(), json!(surroundings.state_dir));
    let checkpoint = keys.remove("checkpoint");
    if let Some((url, options)) = &surroundings.store {
        let mut checkpoint = match checkpoint {
            Some(Value::Object(checkpoint)) => checkpoint,
            _ => Map::new(),
        };
        checkpoint.insert("store".into(), json!(url));
        checkpoint.insert("options".into(), Value::Object(options.clone()));
        checkpoint.insert("fallback_dir".into(), json!(surroundings.fallback_dir));
        keys.insert("checkpoint".into(), Value::Object(checkpoint));
    }
    if let (Some(Value::String(file)), Some(folder)) = (keys.get("sql_file").cloned(), &job.folder) {
        keys.insert("sql_file".into(), json!(folder.join(file)));
    }
    Ok(serde_json::to_string_pretty(&keys)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_led_away_from_what_the_user_owns() {
        let job = JobFile::new(
            "name: orders\nkafka:\n  bootstrap.servers: production:9092\n  security.protocol: SSL\n  linger.ms: 3\n\
             checkpoint: {store: 's3://production', interval: 3 s, options: {region: eu}}\nsql: |\n  SELECT 1;\n  -- 'quoted'\n",
        );
        assert_eq!(job.name().expect("it has one"), "orders");
        let mut surroundings = Surroundings {
            bootstrap_servers: "127.0.0.1:1".into(),
            state_dir: "/somewhere/state".into(),
            store: None,
            fallback_dir: "/somewhere/fallback".into(),
        };
        let parse = |text: String| serde_json::from_str::<Value>(&text).expect("JSON");
        let without = parse(for_worker(&job, &surroundings).expect("a job file"));
        assert_eq!(without["kafka"], json!({"linger.ms": 3, "bootstrap.servers": "127.0.0.1:1"}));
        assert_eq!(without["checkpoint"], Value::Null);
        assert_eq!(without["sql"], "SELECT 1;\n-- 'quoted'\n");
        surroundings.store = Some(("file:///store".into(), Map::new()));
        let with = parse(for_worker(&job, &surroundings).expect("a job file"));
        assert_eq!(with["checkpoint"]["interval"], "3 s");
        assert_eq!((&with["checkpoint"]["store"], &with["checkpoint"]["options"]), (&json!("file:///store"), &json!({})));
    }
}

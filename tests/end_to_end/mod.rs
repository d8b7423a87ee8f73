//! The program as a user meets it: jobs that start, end, drain, restart, recover, and say what is wrong.

mod bad_input;
mod command_line;
mod lifecycle;
mod restart;
mod secure;

use anyhow::Result;
use serde_json::{Value, json};
use std::time::Duration;
use streamshield_tests::support::bids::START_MS;
use streamshield_tests::support::broker::Broker;
use streamshield_tests::support::client::{Input, create_topic};
use streamshield_tests::support::job::{Job, kafka_table};
use streamshield_tests::support::streamshield::Runner;
use streamshield_workload::time::time_text;

const TIMEOUT: Duration = Duration::from_secs(60);
const PARTITIONS: i32 = 2;
const COUNTS: &str = "INSERT INTO output SELECT k, window_start, COUNT(*), SUM(v) \
                      FROM TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '10' SECOND)) GROUP BY k, window_start, window_end;";

/// A broker, two topics and a folder of one test.
struct Stage {
    broker: Broker,
    runner: Runner,
    input: String,
    output: String,
    name: String,
    _folder: tempfile::TempDir,
}

impl Stage {
    fn new(name: &str) -> Result<Stage> {
        Stage::on(Broker::embedded()?, name, tempfile::tempdir()?)
    }

    fn on(broker: Broker, name: &str, folder: tempfile::TempDir) -> Result<Stage> {
        // A real Kafka sees many runs.
        let name = format!("{name}-{}", std::process::id());
        let (input, output) = (format!("{name}-input"), format!("{name}-output"));
        create_topic(&broker.bootstrap_servers(), &input, PARTITIONS)?;
        create_topic(&broker.bootstrap_servers(), &output, 1)?;
        Ok(Stage { runner: Runner::new(folder.path()), broker, input, output, name, _folder: folder })
    }

    fn servers(&self) -> String {
        self.broker.bootstrap_servers()
    }

    /// The tables, then `query`.
    fn job(&self, options: &[(&str, &str)], query: &str) -> Job {
        let columns = "k STRING, v BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' SECOND";
        let sql = kafka_table("input", columns, &self.input, options)
            + &kafka_table("output", "k STRING, ws TIMESTAMP(3), n BIGINT, s BIGINT", &self.output, &[])
            + query;
        Job::new(&self.name, self.servers(), sql).set("parallelism", 2)
    }

    fn send(&self, partition: i32, rows: &[Value]) -> Result<()> {
        Input::new(&self.servers())?.send_all(&self.input, partition, rows)
    }

    /// The output as `key window-second count sum`, sorted.
    fn output(&self) -> Result<Vec<String>> {
        sorted(streamshield_tests::support::client::read_json(&self.servers(), &self.output)?)
    }

    fn wait_for_output(&self, rows: usize) -> Result<Vec<String>> {
        sorted(streamshield_tests::support::client::wait_for_json(&self.servers(), &self.output, rows, TIMEOUT)?)
    }
}

fn sorted(rows: Vec<Value>) -> Result<Vec<String>> {
    let text = |row: &Value| {
        let start = row["ws"].as_str().unwrap_or_default().replace('T', " ");
        let second = start.split(['.', 'Z']).next().unwrap_or_default().rsplit(' ').next().unwrap_or_default().to_string();
        format!("{} {second} {} {}", row["k"].as_str().unwrap_or("null"), row["n"], row["s"])
    };
    let mut rows: Vec<String> = rows.iter().map(text).collect();
    rows.sort();
    Ok(rows)
}

/// A row at so many milliseconds after the start of event time.
fn row(key: &str, value: i64, at_ms: i64) -> Value {
    json!({"k": key, "v": value, "ts": time_text(START_MS + at_ms)})
}

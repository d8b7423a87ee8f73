//! Ten million distinct keys in one window with a small memory budget: the process stays small, and the result is right.

use crate::engines::Engine;
use crate::input;
use anyhow::{Result, ensure};
use rdkafka::message::Message;
use serde_json::{Value, json};
use std::io::Write;
use std::time::Duration;
use streamshield_tests::support::client::{Output, create_topic, delete_topic};
use streamshield_tests::support::figures;
use streamshield_tests::support::job::{BOUNDED, Job, kafka_table};
use streamshield_tests::support::streamshield::Runner;
use streamshield_workload::schedule::mix;

const RSS_BYTES_MAX: u64 = 1 << 30;
const TIMEOUT: Duration = Duration::from_secs(3_600);

#[derive(clap::Args)]
pub struct Options {
    /// Distinct keys; each tenth one comes twice.
    #[arg(long = "events", default_value_t = 10_000_000)]
    keys: u64,
    #[arg(long, default_value = "512 MiB")]
    memory_budget: String,
}

pub fn run(servers: &str, options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let unique = std::process::id();
    let (topic, sink) = (format!("keys-{unique}"), format!("counts-{unique}"));
    let records = options.keys + options.keys / 10;
    input::fill(servers, &topic, records, |record, buffer| {
        // Distinct and in no order: an odd factor permutes the keys modulo 2^63.
        let key = (record % options.keys).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1;
        let second = mix(input::SEED, record) % 3_600;
        buffer.clear();
        write!(buffer, r#"{{"k":{key},"v":{},"ts":"2024-01-01 00:{:02}:{:02}.000"}}"#, record % 1_000, second / 60, second % 60)
            .expect("a Vec takes everything");
    })?;
    create_topic(servers, &sink, input::PARTITIONS)?;
    let sql = kafka_table("input", "k BIGINT, v BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' HOUR", &topic, &[BOUNDED])
        + &kafka_table("output", "k BIGINT, n BIGINT, s BIGINT", &sink, &[])
        + "INSERT INTO output SELECT k, COUNT(*), SUM(v) FROM TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '1' DAY)) \
           GROUP BY k, window_start, window_end;";
    let job = Job::new(format!("memory-{unique}"), servers, sql).set("memory_budget", &options.memory_budget);
    let (_, ended) = Runner::new(folder.path()).finish(&job, TIMEOUT)?;
    let (mut rows, mut counted, mut summed) = (0_u64, 0_u64, 0_u64);
    Output::follow(servers, &sink)?.visit_to_end(&mut |message| {
        let row: Value = serde_json::from_slice(message.payload().unwrap_or_default()).unwrap_or_default();
        rows += 1;
        counted += row["n"].as_u64().unwrap_or_default();
        summed += row["s"].as_u64().unwrap_or_default();
    })?;
    let sum_expected: u64 = (0..records).map(|record| record % 1_000).sum();
    let right = rows == options.keys && counted == records && summed == sum_expected;
    let value = json!({
        "engine": Engine::Streamshield.name(), "keys": options.keys, "records": records, "rows": rows, "right": right,
        "memory_budget": options.memory_budget, "peak_rss_bytes": ended.peak_rss_bytes, "cpu_seconds": ended.cpu_seconds, "wall_seconds": ended.wall_seconds,
    });
    println!("{value:#}");
    figures::write("memory.json", &value)?;
    delete_topic(servers, &topic)?;
    delete_topic(servers, &sink)?;
    ensure!(right, "{rows} rows with counts of {counted} and sums of {summed}; expected {} rows, {records}, {sum_expected}", options.keys);
    ensure!(ended.peak_rss_bytes < RSS_BYTES_MAX, "peak RSS {} MiB", ended.peak_rss_bytes >> 20);
    Ok(())
}

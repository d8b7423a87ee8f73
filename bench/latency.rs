//! How long after its last input a result can be read as committed: two stages, open loop.
//!
//! Records are sent by a schedule that does not wait for anybody; their event time is the scheduled time. A window of the
//! job closes when every partition has shown a record at or after its end, which the schedule tells: latency is
//! the time at which a read-committed consumer gets the window's row, minus that. So it holds the way into Kafka, two stages with their commits, and the
//! way out.

use crate::input;
use anyhow::{Result, ensure};
use rdkafka::message::Message;
use serde_json::{Value, json};
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use streamshield_tests::support::background::{Background, Stop};
use streamshield_tests::support::client::{Input, Output, create_topic};
use streamshield_tests::support::figures;
use streamshield_tests::support::job::{Job, kafka_table};
use streamshield_tests::support::streamshield::Runner;
use streamshield_workload::schedule::mix;
use streamshield_workload::time::{parse_time, time_text};

const KEYS: u64 = 100;
/// Results of the first seconds are left out: connections, page cache, allocator, and the broker's JVM, which compiles what it runs.
const WARM_UP: Duration = Duration::from_secs(30);
const READY_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub struct Options {
    #[arg(long, default_value_t = 20_000)]
    events_per_second: u64,
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    #[arg(long, default_value = "100 ms")]
    commit_interval: String,
}

pub fn run(servers: &str, options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let unique = std::process::id();
    let (topic, sink) = (format!("timed-{unique}"), format!("timed-{unique}-out"));
    create_topic(servers, &topic, input::PARTITIONS)?;
    create_topic(servers, &sink, 1)?;
    let sql = kafka_table("input", "k BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts", &topic, &[])
        + &kafka_table("output", "k BIGINT, we TIMESTAMP(3), n BIGINT", &sink, &[])
        + "INSERT INTO output SELECT k, window_end, COUNT(*) FROM TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '0.1' SECOND)) \
           GROUP BY k, window_start, window_end;";
    let job = Job::new(format!("latency-{unique}"), servers, sql).set("commit_interval", &options.commit_interval);
    let mut run = Runner::new(folder.path()).start(&job)?;
    run.wait_ready(READY_TIMEOUT)?;
    let mut sender = {
        let (servers, topic, per_second) = (servers.to_string(), topic.clone(), options.events_per_second);
        Background::start("sender", move |stop| send_by_schedule(&servers, &topic, per_second, &stop))?
    };
    let started = Instant::now();
    let total = WARM_UP + Duration::from_secs(options.seconds);
    let mut latencies_ms = Vec::new();
    Output::follow(servers, &sink)?.visit_until(Duration::from_secs(30), &mut |message, _| {
        if let Some(message) = message
            && started.elapsed() > WARM_UP
        {
            let row: Value = serde_json::from_slice(message.payload().unwrap_or_default()).unwrap_or_default();
            if let Some(end_ms) = row["we"].as_str().and_then(parse_time) {
                latencies_ms.push(now_ms() - closing_time_ms(end_ms, options.events_per_second));
            }
        }
        started.elapsed() > total
    })?;
    let sent = sender.finish()?;
    let (ended, drain) = run.process.terminate(Duration::from_secs(30))?;
    ensure!(ended.status.success(), "SIGTERM: {}\n{}", ended.status, run.process.last_words());
    report(options, latencies_ms, sent, ended.cpu_seconds, drain)
}

fn report(options: &Options, mut latencies_ms: Vec<f64>, sent: u64, cpu_seconds: f64, drain: Duration) -> Result<()> {
    latencies_ms.sort_by(f64::total_cmp);
    let quantile = |q: f64| latencies_ms.get(((latencies_ms.len() - 1) as f64 * q).round() as usize).copied();
    ensure!(latencies_ms.len() > 1_000, "only {} rows came", latencies_ms.len());
    let value = json!({
        "events_per_second": options.events_per_second, "seconds": options.seconds, "commit_interval": options.commit_interval,
        "p50_ms": quantile(0.5), "p95_ms": quantile(0.95), "p99_ms": quantile(0.99), "max_ms": quantile(1.0), "rows": latencies_ms.len(),
        "sent": sent, "cpu_seconds": cpu_seconds, "drain_ms": drain.as_millis() as u64,
    });
    println!("{value:#}");
    figures::write("latency.json", &value)?;
    Ok(())
}

/// Record `n` is due at `n / events_per_second` after the start of a second, in partition `n` mod 8.
fn send_by_schedule(servers: &str, topic: &str, per_second: u64, stop: &Stop) -> Result<u64> {
    let input = Input::with_linger(servers, Duration::from_millis(1))?;
    let start_ms = (now_ms() / 1_000.0).ceil() * 1_000.0;
    let (mut next, mut buffer) = (0_u64, Vec::new());
    while !stop.is_wanted() {
        let due = ((now_ms() - start_ms).max(0.0) / 1_000.0 * per_second as f64) as u64;
        while next < due {
            let time_ms = start_ms as i64 + (next * 1_000 / per_second) as i64;
            buffer.clear();
            write!(buffer, r#"{{"k":{},"ts":"{}"}}"#, mix(input::SEED, next) % KEYS, time_text(time_ms)).expect("a Vec takes everything");
            input.send(topic, Some((next % input::PARTITIONS as u64) as i32), None, Some(&buffer))?;
            next += 1;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    input.flush()?;
    Ok(next)
}

/// When the last partition was due to show a record that closes a window: its event time is the end minus 1 ms or later.
fn closing_time_ms(window_end_ms: i64, per_second: u64) -> f64 {
    let between_records_ms = 1_000.0 / per_second as f64;
    (window_end_ms - 1) as f64 + between_records_ms * f64::from(input::PARTITIONS)
}

fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64() * 1_000.0)
}

//! Input of the kill test: JSON records with unique ids, in event time that is a little out of order, and the job over it.

use super::{Options, PARTITIONS};
use crate::support::background::Background;
use crate::support::bids::START_MS;
use crate::support::client::Input;
use crate::support::job::{Job, kafka_table};
use anyhow::Result;
use std::io::Write;
use std::time::{Duration, Instant};
use streamshield_workload::schedule::mix;
use streamshield_workload::time::time_text;

const KEYS: u64 = 1_000;
const RECORDS_PER_EVENT_MS: u64 = 20;
/// Less than the watermark's delay of 1 s: no record is late.
const DISORDER_MS: u64 = 800;
/// The last record of each partition lies so far ahead that all windows before it close. It is not counted.
const END_AHEAD_MS: i64 = 60_000;
pub const END_ID: i64 = -1;

/// Topics and job of one run; the broker may have seen other runs.
pub struct Names {
    pub job: String,
    pub input: String,
    pub output: String,
}

impl Names {
    pub fn new(seed: u64) -> Names {
        let unique = format!("{seed}-{}", std::process::id());
        Names { job: format!("kill-{unique}"), input: format!("kill-{unique}-input"), output: format!("kill-{unique}-output") }
    }
}

/// Two stages: partial aggregation per partition of the input, then the merge per key.
pub fn job(names: &Names, bootstrap_servers: &str) -> Job {
    let sql = kafka_table(
        "input",
        "id BIGINT, k STRING, v BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' SECOND",
        &names.input,
        &[],
    ) + &kafka_table("output", "k STRING, ws TIMESTAMP(3), we TIMESTAMP(3), n BIGINT, s BIGINT", &names.output, &[])
        + "INSERT INTO output SELECT k, window_start, window_end, COUNT(*), SUM(v)\n\
           FROM TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY k, window_start, window_end;";
    // Flushes often, so that kills meet them.
    Job::new(&names.job, bootstrap_servers, sql).set("parallelism", PARTITIONS).set("slots", 2).set("flush_interval", "300 ms")
}

/// Writes the JSON of one record.
fn write_record(seed: u64, id: u64, buffer: &mut Vec<u8>) -> i32 {
    let draw = mix(seed, id);
    let time_ms = START_MS + (id / RECORDS_PER_EVENT_MS) as i64 + (draw % DISORDER_MS) as i64;
    let (key, value) = ((draw >> 10) % KEYS, (draw >> 32) % 10_000);
    buffer.clear();
    write!(buffer, r#"{{"id":{id},"k":"key-{key}","v":{value},"ts":"{}"}}"#, time_text(time_ms)).expect("a Vec takes everything");
    ((draw >> 24) % PARTITIONS as u64) as i32
}

/// The sending side, moved into the feeder's thread.
struct Sender {
    input: Input,
    topic: String,
    seed: u64,
    next: u64,
    buffer: Vec<u8>,
}

impl Sender {
    fn send_up_to(&mut self, end: u64) -> Result<()> {
        while self.next < end {
            let partition = write_record(self.seed, self.next, &mut self.buffer);
            self.input.send(&self.topic, Some(partition), None, Some(&self.buffer))?;
            self.next += 1;
        }
        Ok(())
    }

    fn end(self) -> Result<u64> {
        self.input.flush()?;
        let time_ms = START_MS + (self.next / RECORDS_PER_EVENT_MS) as i64 + END_AHEAD_MS;
        let last = format!(r#"{{"id":{END_ID},"k":"end","v":0,"ts":"{}"}}"#, time_text(time_ms));
        for partition in 0..PARTITIONS {
            self.input.send(&self.topic, Some(partition), None, Some(last.as_bytes()))?;
        }
        self.input.flush()?;
        Ok(self.next)
    }
}

/// Produces on a thread of its own until it is told to finish; then the input ends with closing records. What comes of it is the number of records before them.
/// The first records are there when this returns.
pub fn feed(bootstrap_servers: &str, topic: &str, options: &Options) -> Result<Background<u64>> {
    let input = Input::new(bootstrap_servers)?;
    let mut sender = Sender { input, topic: topic.to_string(), seed: options.seed, next: 0, buffer: Vec::new() };
    sender.send_up_to(options.records)?;
    sender.input.flush()?;
    let (first, per_second) = (options.records, options.records_per_second);
    Background::start("feeder", move |stop| {
        let started = Instant::now();
        while !stop.is_wanted() {
            sender.send_up_to(first + (started.elapsed().as_secs_f64() * per_second as f64) as u64)?;
            std::thread::sleep(Duration::from_millis(10));
        }
        sender.end()
    })
}

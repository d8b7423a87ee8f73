//! An open-loop load whose right output is known: what take-overs are measured and judged with.
//!
//! A generator that waits for the system under test hides exactly the moments that are to be measured (coordinated omission). So record `n` is due at
//! `start + n / rate`, whatever happens, and its event time is that moment: the schedule is in the payload. Everything else of a record follows from
//! `n` and a seed, so what the output must be is computed from the schedule and the number of records, not from what was read.
//!
//! ```text
//! Feeder ─ record n, due at start + n/rate ─► input ─► job: COUNT(*), SUM per key and 100 ms window ─► output, partition p by region p alone
//!    │                                                                                                     │
//!    └── start, number of records ──► Expected ───────────────── must be equal ◄───────────────────────────┘
//! ```
//! **Windows of 100 ms** close ten times a second, as often as the job commits, so output flows all the time and a gap in it is a gap of the job: what the
//! windows add to a gap is less than the length of one.
//!
//! **Bulk keys** make the state large without changing the output: they lie in a window far in the future, which the watermark (a column of its own) never
//! reaches while the load lasts. So the very regions whose output is timed hold that state, and a twentieth of the load keeps changing it.
//!
//! - [`feeder`]: sends. [`verify`]: what must come out, and what came.

pub mod feeder;
pub mod verify;

use crate::support::job::{Job, kafka_table};
use anyhow::Result;
use std::io::Write;
use streamshield_workload::client::{NewTopicSpec, create_topics};
use streamshield_workload::schedule::{BULK_KEY_BYTES, BULK_SHARE, BULK_TIME_MS, mix};
use streamshield_workload::time::time_text;

pub const WINDOW_MS: i64 = 100;

/// One load and its topics.
#[derive(Clone, Debug)]
pub struct Load {
    /// Job, and prefix of the topics.
    pub name: String,
    pub seed: u64,
    pub partitions: i32,
    pub events_per_second: u64,
    /// Of the windows that close.
    pub keys: u64,
    /// Of the window that stays open.
    pub bulk_keys: u64,
    pub bulk_key_bytes: usize,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: Key,
    pub value: i64,
    pub partition: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    Hot(u64),
    Bulk(u64),
    /// Of the records that open a partition, and that close everything.
    End,
}

impl Load {
    pub fn new(name: impl Into<String>, seed: u64) -> Load {
        Load { name: name.into(), seed, partitions: 6, events_per_second: 20_000, keys: 100, bulk_keys: 0, bulk_key_bytes: 0 }
    }

    /// About so many bytes of keys in the window that stays open.
    pub fn with_state(mut self, bytes: u64) -> Load {
        self.bulk_key_bytes = BULK_KEY_BYTES;
        self.bulk_keys = bytes / self.bulk_key_bytes as u64;
        self
    }

    pub fn input(&self) -> String {
        format!("{}-input", self.name)
    }

    pub fn output(&self) -> String {
        format!("{}-output", self.name)
    }

    /// Topics with one record in each partition of the input. A partition without any holds no watermark back, so what comes into it
    /// first, while its region is on its way to another worker, could be late behind the others, and right to be.
    pub fn create_topics(&self, servers: &str) -> Result<()> {
        self.create_empty_topics(servers, 1)?;
        feeder::open(servers, self)
    }

    pub fn create_empty_topics(&self, servers: &str, replication_factor: i32) -> Result<()> {
        let configs = vec![("retention.ms", "-1".to_string())];
        let topic = |name| NewTopicSpec { name, partitions: self.partitions, replication_factor, configs: configs.clone() };
        Ok(create_topics(servers, &[topic(self.input()), topic(self.output())])?)
    }

    /// Two stages. Region `p` of the second one writes partition `p` of the output, and nobody else does.
    pub fn job(&self, servers: &str) -> Job {
        let sql = kafka_table("input", "k STRING, v BIGINT, ts TIMESTAMP(3), wm TIMESTAMP(3), WATERMARK FOR ts AS wm", &self.input(), &[])
            + &kafka_table("output", "k STRING, we TIMESTAMP(3), n BIGINT, s BIGINT", &self.output(), &[("sink.partitioner", "fixed")])
            + "INSERT INTO output SELECT k, window_end, COUNT(*), SUM(v)\n\
               FROM TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '0.1' SECOND)) GROUP BY k, window_start, window_end;";
        Job::new(&self.name, servers, sql).set("parallelism", self.partitions).set("slots", 1).set("commit_interval", "100 ms")
    }

    /// Record `n` of the open loop.
    pub fn event(&self, n: u64) -> Event {
        let draw = mix(self.seed, n);
        let key = match self.bulk_keys {
            0 => Key::Hot((draw >> 20) % self.keys),
            bulk_keys if n.is_multiple_of(BULK_SHARE) => Key::Bulk((draw >> 20) % bulk_keys),
            _ => Key::Hot((draw >> 20) % self.keys),
        };
        Event { key, value: (draw % 1_000) as i64, partition: ((draw >> 12) % self.partitions as u64) as i32 }
    }

    /// The `n`-th bulk key's first record, sent before the open loop begins.
    pub fn bulk_event(&self, n: u64) -> Event {
        Event { key: Key::Bulk(n), value: (mix(!self.seed, n) % 1_000) as i64, partition: (n % self.partitions as u64) as i32 }
    }

    /// When record `n` is due.
    pub fn due_ms(&self, start_ms: i64, n: u64) -> i64 {
        start_ms + (n as u128 * 1_000 / u128::from(self.events_per_second)) as i64
    }

    /// Replaces `buffer` by the JSON of a record that is due at `due_ms`.
    pub fn write(&self, event: &Event, due_ms: i64, buffer: &mut Vec<u8>) {
        let time_ms = if matches!(event.key, Key::Hot(_)) { due_ms } else { BULK_TIME_MS };
        // A watermark says that nothing at or before it comes any more, and several records share a millisecond.
        self.write_at(event, time_ms, due_ms - 1, buffer);
    }

    /// The same with an event time and a watermark of its own.
    fn write_at(&self, event: &Event, time_ms: i64, watermark_ms: i64, buffer: &mut Vec<u8>) {
        buffer.clear();
        buffer.extend_from_slice(b"{\"k\":\"");
        self.write_key(event.key, buffer);
        let (time, watermark) = (time_text(time_ms), time_text(watermark_ms));
        write!(buffer, r#"","v":{},"ts":"{time}","wm":"{watermark}"}}"#, event.value).expect("a Vec takes everything");
    }

    fn write_key(&self, key: Key, buffer: &mut Vec<u8>) {
        let start = buffer.len();
        match key {
            Key::Hot(key) => write!(buffer, "h{key}"),
            Key::Bulk(key) => write!(buffer, "b{key}."),
            Key::End => write!(buffer, "end"),
        }
        .expect("a Vec takes everything");
        if let Key::Bulk(key) = key {
            let mut noise = mix(self.seed, key);
            while buffer.len() < start + self.bulk_key_bytes {
                buffer.push(b'a' + (noise % 26) as u8);
                noise = noise.rotate_right(7) ^ 0x15;
            }
        }
    }
}

impl Key {
    /// Of the text in a row. None: not a key of ours.
    pub fn parse(text: &str) -> Option<Key> {
        match text.split_at_checked(1)? {
            ("h", number) => number.parse().ok().map(Key::Hot),
            ("b", rest) => rest.split('.').next()?.parse().ok().map(Key::Bulk),
            _ => (text == "end").then_some(Key::End),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_its_event_says() {
        let load = Load::new("t", 7).with_state(1_000_000);
        let mut buffer = Vec::new();
        let mut bulk = 0;
        for n in 0..2_000 {
            let event = load.event(n);
            load.write(&event, load.due_ms(1_000, n), &mut buffer);
            let value: serde_json::Value = serde_json::from_slice(&buffer).expect("JSON");
            assert_eq!(value["k"].as_str().and_then(Key::parse), Some(event.key));
            assert_eq!(value["v"].as_i64(), Some(event.value));
            assert_eq!(value["wm"], time_text(load.due_ms(1_000, n) - 1));
            if matches!(event.key, Key::Bulk(_)) {
                bulk += 1;
                assert_eq!(value["k"].as_str().map(str::len), Some(load.bulk_key_bytes));
                assert_eq!(value["ts"], time_text(BULK_TIME_MS));
            }
        }
        assert_eq!(bulk, 100);
    }
}

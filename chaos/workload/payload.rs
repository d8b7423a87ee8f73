//! The bytes of a record: its key, its value, and the timestamp of its message.
//!
//! A message's own timestamp is when the record was due. The job refuses what claims a watermark far ahead of that (see [`job`](crate::job)).
//!
//! ```
//! use streamshield_workload::{payload::*, schedule::*};
//! let schedule = Schedule::new(1, Settings { disorder_ms: 0, ..Settings::default() }, 1_000);
//! let mut message = Message::default();
//! message.write_record(&schedule, &schedule.record(3), 0);
//! assert!(message.key.unwrap().starts_with(b"k"));
//! let value: serde_json::Value = serde_json::from_slice(&message.value.unwrap()).unwrap();
//! assert_eq!((&value["n"], &value["wm_ms"]), (&3.into(), &999.into()));
//! assert_eq!(value["legs"].as_array().unwrap().len(), 2);
//! ```

use crate::schedule::{BULK_KEY_BYTES, BULK_TIME_MS, DataFault, FAR_FUTURE_MS, LATE_MS, Record, Schedule, mix};
use std::io::Write;

/// A message that the dead-letter topic can't hold whole.
pub const OVERSIZED_BYTES: usize = 1_200_000;
/// The key of the records that close all windows.
pub const END_KEY: &str = "end";
/// From the bulk keys' window to the watermark that closes it.
const END_AHEAD_MS: i64 = 86_400_000;

/// One message to be sent; its buffers are used again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub partition: i32,
    pub timestamp_ms: i64,
}

/// Whose a row is, by its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Of a numbered record.
    Numbered(u64),
    Bulk(u64),
    /// Of an injected record, by its number.
    Injected(DataFault, u64),
    End,
}

impl Key {
    /// None: no key of this load.
    pub fn parse(text: &str) -> Option<Key> {
        let (kind, rest) = text.split_at_checked(1)?;
        let number = || rest.parse().ok();
        match kind {
            "k" => number().map(Key::Numbered),
            "b" => rest.split('.').next()?.parse().ok().map(Key::Bulk),
            "u" => number().map(|number| Key::Injected(DataFault::Undecodable, number)),
            "o" => number().map(|number| Key::Injected(DataFault::Oversized, number)),
            "t" => number().map(|number| Key::Injected(DataFault::NullValue, number)),
            "f" => number().map(|number| Key::Injected(DataFault::FarFuture, number)),
            "l" => number().map(|number| Key::Injected(DataFault::Late, number)),
            _ => (text == END_KEY).then_some(Key::End),
        }
    }

    /// Replaces `buffer` by the key's bytes. An injected record without key has none.
    pub fn write(&self, seed: u64, buffer: &mut Vec<u8>) {
        buffer.clear();
        match self {
            Key::Numbered(key) => write!(buffer, "k{key}"),
            Key::Bulk(key) => write!(buffer, "b{key}."),
            Key::Injected(fault, number) => write!(buffer, "{}{number}", prefix(*fault)),
            Key::End => write!(buffer, "{END_KEY}"),
        }
        .expect("a Vec takes everything");
        if let Key::Bulk(key) = self {
            let mut noise = mix(seed, *key);
            while buffer.len() < BULK_KEY_BYTES {
                buffer.push(b'a' + (noise % 26) as u8);
                noise = noise.rotate_right(7) ^ 0x15;
            }
        }
    }
}

fn prefix(fault: DataFault) -> &'static str {
    match fault {
        DataFault::Undecodable => "u",
        DataFault::Oversized => "o",
        DataFault::NullValue => "t",
        DataFault::FarFuture => "f",
        DataFault::Late => "l",
        DataFault::NullKey => "",
    }
}

impl Message {
    /// A numbered record that is the `seq`-th of its key.
    pub fn write_record(&mut self, schedule: &Schedule, record: &Record, seq: u64) {
        self.set_key(schedule.seed, Key::Numbered(record.key));
        self.partition = schedule.partition_of_key(record.key);
        self.timestamp_ms = record.due_ms;
        let (from, to) = schedule.accounts_of(record.n);
        let watermark_ms = schedule.watermark_ms(record.due_ms);
        let (n, value) = (record.n, record.value);
        let buffer = self.value_buffer();
        write!(
            buffer,
            r#"{{"n":{n},"seq":{seq},"v":{value},"due_ms":{},"event_ms":{},"wm_ms":{watermark_ms},"legs":[{{"account":"a{from}","amount":-{value}}},{{"account":"a{to}","amount":{value}}}]"#,
            record.due_ms, record.event_ms
        )
        .expect("a Vec takes everything");
        if schedule.is_marker(n) {
            buffer.extend_from_slice(b",\"marker\":[");
            for partition in 0..schedule.settings.partitions {
                write!(buffer, "{}{partition}", if partition == 0 { "" } else { "," }).expect("a Vec takes everything");
            }
            buffer.push(b']');
        }
        buffer.push(b'}');
    }

    /// A record of the window that stays open. `due_ms`: its watermark says so much.
    pub fn write_bulk(&mut self, schedule: &Schedule, key: u64, value: i64, due_ms: i64) {
        self.set_key(schedule.seed, Key::Bulk(key));
        self.partition = schedule.partition_of_key(key);
        self.timestamp_ms = due_ms;
        let watermark_ms = schedule.watermark_ms(due_ms);
        write!(self.value_buffer(), r#"{{"v":{value},"due_ms":{due_ms},"event_ms":{BULK_TIME_MS},"wm_ms":{watermark_ms}}}"#)
            .expect("a Vec takes everything");
    }

    /// The last record of a partition: its watermark closes everything, the bulk keys' window too; its own window stays open.
    pub fn write_end(&mut self, schedule: &Schedule, partition: i32, due_ms: i64) {
        self.set_key(schedule.seed, Key::End);
        self.partition = partition;
        self.timestamp_ms = due_ms;
        let (event_ms, watermark_ms) = (BULK_TIME_MS + 2 * END_AHEAD_MS, BULK_TIME_MS + END_AHEAD_MS);
        write!(self.value_buffer(), r#"{{"v":0,"due_ms":{due_ms},"event_ms":{event_ms},"wm_ms":{watermark_ms}}}"#)
            .expect("a Vec takes everything");
    }

    /// Faulty data.
    pub fn write_fault(&mut self, schedule: &Schedule, fault: DataFault, number: u64, due_ms: i64) {
        self.partition = (mix(schedule.seed ^ 0xfa17, number) % schedule.settings.partitions as u64) as i32;
        self.timestamp_ms = due_ms;
        match fault {
            DataFault::NullKey => self.key = None,
            _ => self.set_key(schedule.seed, Key::Injected(fault, number)),
        }
        let watermark_ms = schedule.watermark_ms(due_ms);
        match fault {
            DataFault::NullValue => self.value = None,
            DataFault::Undecodable => self.write_undecodable(mix(schedule.seed, number)),
            DataFault::Oversized => {
                let buffer = self.value_buffer();
                buffer.resize(OVERSIZED_BYTES, b'#');
            }
            DataFault::NullKey => self.write_row(number, due_ms, due_ms, watermark_ms),
            DataFault::Late => self.write_row(number, due_ms, due_ms - LATE_MS, watermark_ms),
            DataFault::FarFuture => self.write_row(number, due_ms, due_ms + FAR_FUTURE_MS, due_ms + FAR_FUTURE_MS - 1),
        }
    }

    /// An injected record that is a row: its `n` is below 0.
    fn write_row(&mut self, number: u64, due_ms: i64, event_ms: i64, watermark_ms: i64) {
        write!(
            self.value_buffer(),
            r#"{{"n":-{},"seq":0,"v":1,"due_ms":{due_ms},"event_ms":{event_ms},"wm_ms":{watermark_ms}}}"#,
            number + 1
        )
        .expect("a Vec takes everything");
    }

    fn write_undecodable(&mut self, draw: u64) {
        let bad: &[u8] = match draw % 4 {
            0 => b"no json",
            1 => br#"{"n":1,"seq":1,"v":1,"due_ms":"#,
            2 => br#"{"n":1,"seq":1,"v":1,"due_ms":0}{"n":1,"seq":1,"v":1,"due_ms":0}"#,
            _ => b"\xff\xfe\x00",
        };
        self.value_buffer().extend_from_slice(bad);
    }

    fn set_key(&mut self, seed: u64, key: Key) {
        key.write(seed, self.key.get_or_insert_default());
    }

    fn value_buffer(&mut self) -> &mut Vec<u8> {
        let buffer = self.value.get_or_insert_default();
        buffer.clear();
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Settings;

    #[test]
    fn a_key_that_is_written_is_read() {
        let mut buffer = Vec::new();
        let faults = DataFault::ALL.into_iter().filter(|fault| *fault != DataFault::NullKey).map(|fault| Key::Injected(fault, 12));
        for key in [Key::Numbered(0), Key::Numbered(77), Key::Bulk(5), Key::End].into_iter().chain(faults) {
            key.write(3, &mut buffer);
            assert_eq!(Key::parse(std::str::from_utf8(&buffer).expect("ASCII")), Some(key));
        }
        assert_eq!([Key::parse(""), Key::parse("x1"), Key::parse("k")], [None, None, None]);
    }

    #[test]
    fn only_what_is_a_row_is_json() {
        let schedule = Schedule::new(5, Settings::default(), 1_000_000);
        let mut message = Message::default();
        for fault in DataFault::ALL {
            for number in 0..20 {
                message.write_fault(&schedule, fault, number, 2_000_000);
                let is_json = message.value.as_ref().is_some_and(|value| serde_json::from_slice::<serde_json::Value>(value).is_ok());
                assert_eq!(is_json, fault.is_row(), "{fault} {number}");
                assert_eq!(message.key.is_none(), fault == DataFault::NullKey);
            }
        }
        message.write_record(&schedule, &schedule.record(0), 1);
        let value: serde_json::Value = serde_json::from_slice(message.value.as_deref().unwrap_or_default()).expect("JSON");
        assert_eq!(value["marker"], serde_json::json!([0, 1, 2, 3, 4, 5]));
        assert_eq!(value["legs"][0]["amount"].as_i64(), value["legs"][1]["amount"].as_i64().map(|amount| -amount));
    }
}

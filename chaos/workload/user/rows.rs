//! JSON rows by the types of columns, from a seed.

use super::{Column, Table};
use crate::error::WorkloadError;
use crate::feeder::{Generator, SendTo};
use crate::payload::Message;
use crate::schedule::{DataFault, Schedule, mix};
use crate::time::time_text;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// What a column gets.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Boolean,
    /// Up to this number.
    Integer(u64),
    Float,
    /// Digits before and after the point.
    Decimal(u32, u32),
    Text,
    Bytes,
    Date,
    Time,
    Timestamp {
        zoned: bool,
    },
    List(Box<Kind>),
    Map(Box<Kind>),
    Row(Vec<(String, Kind)>),
}

impl Kind {
    fn parse(text: &str) -> Option<Kind> {
        let text = text.trim();
        let inner = |name: &str| text.strip_prefix(name)?.strip_prefix('<')?.strip_suffix('>');
        if let Some(item) = inner("ARRAY") {
            return Some(Kind::List(Box::new(Kind::parse(item)?)));
        }
        if let Some(entry) = inner("MAP") {
            let [key, value] = split(entry).try_into().ok()?;
            return (key.trim() == "STRING").then_some(()).and_then(|()| Some(Kind::Map(Box::new(Kind::parse(value)?))));
        }
        if let Some(fields) = inner("ROW") {
            let field = |text: &str| {
                let (name, kind) = text.trim().split_once(' ')?;
                Some((name.to_string(), Kind::parse(kind)?))
            };
            return Some(Kind::Row(split(fields).into_iter().map(field).collect::<Option<_>>()?));
        }
        let (name, arguments) = text.split_once('(').map_or((text, ""), |(name, rest)| (name, rest.trim_end_matches(')')));
        Some(match name {
            "BOOLEAN" => Kind::Boolean,
            "TINYINT" => Kind::Integer(100),
            "SMALLINT" => Kind::Integer(30_000),
            "INT" => Kind::Integer(1_000_000),
            "BIGINT" => Kind::Integer(1_000_000_000),
            "FLOAT" | "DOUBLE" => Kind::Float,
            "STRING" => Kind::Text,
            "BYTES" => Kind::Bytes,
            "DATE" => Kind::Date,
            "TIME" => Kind::Time,
            "TIMESTAMP" => Kind::Timestamp { zoned: false },
            "TIMESTAMP_LTZ" => Kind::Timestamp { zoned: true },
            "DECIMAL" => {
                let (precision, scale) = arguments.split_once(',')?;
                let (precision, scale): (u32, u32) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
                Kind::Decimal(precision.checked_sub(scale)?, scale)
            }
            _ => return None,
        })
    }

    fn write(&self, draw: u64, due_ms: i64, out: &mut String) {
        let written = match self {
            Kind::Boolean => write!(out, "{}", draw.is_multiple_of(2)),
            Kind::Integer(below) => write!(out, "{}", draw % below),
            Kind::Float => write!(out, "{}.25", draw % 100_000),
            Kind::Decimal(whole, scale) => {
                let digits = |count: u32| 10_u64.pow(count.min(6));
                let fraction = if *scale == 0 { String::new() } else { format!(".{}", (draw >> 32) % digits((*scale).min(1))) };
                write!(out, "{}{fraction}", if *whole == 0 { 0 } else { draw % digits(*whole) })
            }
            Kind::Text => write!(out, "\"t{}\"", draw % 1_000),
            Kind::Bytes => write!(out, "\"AAEC\""),
            Kind::Date => write!(out, "\"{}\"", &time_text(due_ms)[..10]),
            Kind::Time => write!(out, "\"{}\"", &time_text(due_ms)[11..19]),
            Kind::Timestamp { zoned } => write!(out, "\"{}{}\"", time_text(due_ms), if *zoned { "Z" } else { "" }),
            Kind::List(item) => {
                out.push('[');
                item.write(draw, due_ms, out);
                out.push(',');
                item.write(draw.rotate_left(17), due_ms, out);
                write!(out, "]")
            }
            Kind::Map(value) => {
                out.push_str("{\"a\":");
                value.write(draw, due_ms, out);
                write!(out, "}}")
            }
            Kind::Row(fields) => {
                for (index, (name, kind)) in fields.iter().enumerate() {
                    let before = if index == 0 { '{' } else { ',' };
                    write!(out, "{before}{}:", serde_json::Value::from(name.as_str())).expect("a String takes everything");
                    kind.write(draw.rotate_left(index as u32), due_ms, out);
                }
                write!(out, "}}")
            }
        };
        written.expect("a String takes everything");
    }
}

/// `a, b<c, d>` → `a` and `b<c, d>`.
fn split(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (index, character) in list.char_indices() {
        match character {
            '<' | '(' => depth += 1,
            '>' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&list[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts
}

/// Rows of one topic.
#[derive(Clone, Debug)]
pub struct TableRows {
    pub topic: String,
    /// Columns of the value.
    columns: Vec<(String, Kind, bool)>,
    /// Columns of the key, and whether it is JSON or plain text. None: messages have no key.
    key: Option<(Vec<(String, Kind, bool)>, bool)>,
}

impl TableRows {
    pub fn new(table: &Table, topic: &str) -> Result<TableRows, WorkloadError> {
        let wrong = |what: String| WorkloadError::Settings(format!("table {}: {what}, and no rows can be made for it", table.table));
        let option = |key: &str| table.options.get(key).map(|value| value.trim().to_ascii_lowercase());
        match option("value.format").or_else(|| option("format")).as_deref() {
            Some("json") => {}
            other => return Err(wrong(format!("its format is {}", other.unwrap_or("not named")))),
        }
        let fields: BTreeSet<&str> =
            table.options.get("key.fields").into_iter().flat_map(|fields| fields.split(';')).map(str::trim).collect();
        let only_in_key = option("value.fields-include").as_deref() == Some("except_key");
        let prefix = table.options.get("key.fields-prefix").map_or("", String::as_str);
        let kind = |column: &Column| {
            let is_time = table.event_time.contains(&column.name);
            let kind =
                Kind::parse(&column.sql_type).ok_or_else(|| wrong(format!("column {} has the type {}", column.name, column.sql_type)))?;
            Ok::<_, WorkloadError>((column.name.clone(), kind, is_time))
        };
        let (mut columns, mut keys) = (Vec::new(), Vec::new());
        for column in &table.columns {
            let is_key = fields.contains(column.name.as_str());
            if is_key {
                let (name, kind, is_time) = kind(column)?;
                keys.push((name.strip_prefix(prefix).unwrap_or(&name).to_string(), kind, is_time));
            }
            if !(is_key && only_in_key) {
                columns.push(kind(column)?);
            }
        }
        let key = match option("key.format").as_deref() {
            None => None,
            Some("json") => Some((keys, true)),
            Some("raw") if matches!(keys.as_slice(), [(_, Kind::Text, _)]) => Some((keys, false)),
            Some(other) => return Err(wrong(format!("its key has the format {other}"))),
        };
        Ok(TableRows { topic: topic.to_string(), columns, key })
    }

    /// Takes in the columns of another table over the same topic.
    pub(super) fn join(&mut self, other: &mut TableRows) -> Result<(), WorkloadError> {
        for column in other.columns.drain(..) {
            match self.columns.iter().find(|known| known.0 == column.0) {
                Some(known) if known.1 == column.1 => {}
                Some(_) => {
                    let what = format!("topic {}: two tables have other types for column {}", self.topic, column.0);
                    return Err(WorkloadError::Settings(what));
                }
                None => self.columns.push(column),
            }
        }
        if self.key.is_none() {
            self.key = other.key.take();
        }
        Ok(())
    }

    fn write(&self, schedule: &Schedule, n: u64, message: &mut Message) {
        let due_ms = schedule.due_ms(n);
        message.timestamp_ms = due_ms;
        message.key = self.key.as_ref().map(|(columns, is_json)| {
            let text = object(columns, schedule, n, due_ms);
            if *is_json { text.into_bytes() } else { text.as_bytes()[text.find(':').map_or(0, |at| at + 2)..text.len() - 2].to_vec() }
        });
        message.value = Some(object(&self.columns, schedule, n, due_ms).into_bytes());
    }
}

/// The same column has the same value in key and value.
fn object(columns: &[(String, Kind, bool)], schedule: &Schedule, n: u64, due_ms: i64) -> String {
    let mut out = String::from("{");
    for (index, (name, kind, is_time)) in columns.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write!(out, "{}:", serde_json::Value::from(name.as_str())).expect("a String takes everything");
        // Texts and numbers repeat as the keys of the schedule do, so that groups have more than one row and a key can turn hot.
        let of_name = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
        match kind {
            Kind::Integer(_) if *is_time => write!(out, "{due_ms}").expect("a String takes everything"),
            _ => kind.write(mix(schedule.seed ^ of_name, schedule.key_of(n)), due_ms, &mut out),
        }
    }
    out.push('}');
    out
}

/// Rows for all tables in turn.
pub(super) struct Feed {
    tables: Vec<TableRows>,
    /// Per table, the partition of its next row.
    next: Vec<u64>,
    with_faults: bool,
    message: Message,
}

impl Feed {
    pub fn new(tables: Vec<TableRows>, with_faults: bool) -> Feed {
        Feed { next: vec![0; tables.len()], tables, with_faults, message: Message::default() }
    }
}

/// Which of the topics a record goes to.
pub(super) fn table_of(number: u64, tables: usize) -> usize {
    (number % tables as u64) as usize
}

impl Generator for Feed {
    fn record(&mut self, schedule: &Schedule, n: u64, send: &mut SendTo<'_>) -> Result<(), WorkloadError> {
        let table = table_of(n, self.tables.len());
        self.tables[table].write(schedule, n, &mut self.message);
        self.message.partition = (self.next[table] % schedule.settings.partitions as u64) as i32;
        self.next[table] += 1;
        send(&self.tables[table].topic, &self.message)
    }

    /// What is a row of no table, where the job keeps such records.
    fn makes(&self, fault: DataFault) -> bool {
        self.with_faults && !fault.is_row()
    }

    fn fault(
        &mut self,
        schedule: &Schedule,
        fault: DataFault,
        number: u64,
        due_ms: i64,
        send: &mut SendTo<'_>,
    ) -> Result<(), WorkloadError> {
        self.message.write_fault(schedule, fault, number, due_ms);
        send(&self.tables[table_of(number, self.tables.len())].topic, &self.message)
    }

    fn end(&mut self, _schedule: &Schedule, _ended_ms: i64, _send: &mut SendTo<'_>) -> Result<(), WorkloadError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Settings;

    #[test]
    fn every_type_gets_json_that_reads_as_it() {
        let types = [
            ("BOOLEAN", "true|false"),
            ("DECIMAL(10, 2)", "number"),
            ("DECIMAL(2, 2)", "number"),
            ("TIMESTAMP(3)", "string"),
            ("ARRAY<ROW<sku STRING, n INT>>", "array"),
            ("MAP<STRING, ARRAY<DOUBLE>>", "object"),
            ("ROW<a DECIMAL(5, 0), b ROW<c DATE, d TIME>>", "object"),
            ("BYTES", "string"),
        ];
        for (text, wanted) in types {
            let kind = Kind::parse(text).unwrap_or_else(|| panic!("{text} is a type"));
            let mut json = String::new();
            kind.write(mix(7, 9), 1_709_210_096_789, &mut json);
            let value: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{text}: {json}: {error}"));
            let is = match value {
                serde_json::Value::Bool(_) => "true|false",
                serde_json::Value::Number(_) => "number",
                serde_json::Value::String(_) => "string",
                serde_json::Value::Array(_) => "array",
                serde_json::Value::Object(_) => "object",
                serde_json::Value::Null => "null",
            };
            assert_eq!(is, wanted, "{text}: {json}");
        }
        assert_eq!((Kind::parse("INTERVAL"), Kind::parse("MAP<INT, INT>")), (None, None));
    }

    #[test]
    fn event_time_is_when_the_row_is_due_and_key_and_value_agree() {
        let column = |name: &str, sql_type: &str| Column { name: name.into(), sql_type: sql_type.into(), nullable: true };
        let table = Table {
            table: "t".into(),
            connector: "kafka".into(),
            columns: vec![column("k", "STRING"), column("ms", "BIGINT"), column("v", "BIGINT")],
            options: [("topic", "t"), ("value.format", "json"), ("key.format", "raw"), ("key.fields", "k")]
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .into(),
            event_time: ["ms".to_string()].into(),
            idle_timeout_ms: None,
        };
        let rows = TableRows::new(&table, "t").expect("a table of ours");
        let schedule = Schedule::new(3, Settings::default(), 1_000_000);
        let mut message = Message::default();
        rows.write(&schedule, 50, &mut message);
        let value: serde_json::Value = serde_json::from_slice(message.value.as_deref().unwrap_or_default()).expect("JSON");
        assert_eq!(value["ms"], schedule.due_ms(50));
        assert_eq!(value["k"].as_str().map(str::as_bytes), message.key.as_deref());
        let csv = Table { options: [("format".to_string(), "csv".to_string())].into(), ..table };
        assert!(TableRows::new(&csv, "t").is_err_and(|error| error.to_string().contains("csv")));
    }
}

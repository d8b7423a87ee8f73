//! What a datagen table may say: `rows-per-second`, `number-of-rows`, and `fields.<column>.<option>`.

use super::columns::{FieldRule, Kind};
use crate::formats::sql_type;
use crate::generator::random::Zipf;
use crate::generator::{EventClock, Shape, StartTime, start_time};
use crate::options::{OptionReader, nearest, refuse};
use arrow_schema::DataType;
use std::collections::BTreeMap;
use streamshield_core::table::{Column, ColumnKind, OptionError, TableDefinition};

/// As in Flink.
const DEFAULT_ROWS_PER_SECOND: f64 = 10_000.0;
const DEFAULT_TEXT_LENGTH: usize = 100;
const DEFAULT_BYTES_LENGTH: usize = 20;
const LENGTH_MAX: usize = 1 << 20;
/// Event time between rows when there is no `rows-per-second` to keep pace with.
const DEFAULT_INTERVAL_NS: i64 = 1_000_000;

#[derive(Clone, Debug)]
pub(super) struct DatagenOptions {
    pub shape: Shape,
    pub clock: EventClock,
    pub fields: BTreeMap<String, FieldRule>,
}

impl DatagenOptions {
    pub(super) fn read(table: &TableDefinition) -> Result<Self, Vec<OptionError>> {
        let mut options = OptionReader::new(table);
        let mut shape = Shape::read(&mut options, Some(DEFAULT_ROWS_PER_SECOND));
        let mut fields = BTreeMap::new();
        for column in &table.columns {
            match &column.kind {
                ColumnKind::Computed => {}
                ColumnKind::Metadata { key, .. } => {
                    options.error("", format!("datagen has no metadata '{key}' (column '{}')", column.field.name()), None)
                }
                ColumnKind::Physical => {
                    if let Some(rule) = read_field(&mut options, column, &shape) {
                        fields.insert(column.field.name().clone(), rule);
                    }
                }
            }
        }
        let clock = common_clock(&mut options, &fields);
        let shortest = fields.values().filter_map(FieldRule::length).min();
        shape.number_of_rows = shape.number_of_rows.into_iter().chain(shortest).min();
        let mut errors = options.finish(|_| false);
        errors.iter_mut().for_each(|error| name_unknown_column(error, table));
        if errors.is_empty() { Ok(DatagenOptions { shape, clock, fields }) } else { Err(errors) }
    }
}

/// `fields.<unknown>.x`: the column is what is wrong.
fn name_unknown_column(error: &mut OptionError, table: &TableDefinition) {
    let Some(name) = error.key.strip_prefix("fields.").and_then(|rest| rest.rsplit_once('.')).map(|(name, _)| name) else { return };
    let names: Vec<&str> =
        table.columns.iter().filter(|column| column.kind == ColumnKind::Physical).map(|column| column.field.name().as_str()).collect();
    if !names.contains(&name) {
        let hint = nearest(name, names).map(|near| format!("did you mean '{near}'?"));
        *error = refuse(&error.key, format!("the table has no column '{name}' to generate"), hint);
    }
}

/// Fields that follow the wall clock decide together when a row may be taken.
fn common_clock(options: &mut OptionReader<'_>, fields: &BTreeMap<String, FieldRule>) -> EventClock {
    let mut following =
        fields.iter().filter_map(|(name, rule)| rule.clock().filter(|clock| clock.follows_wall_clock).map(|clock| (name, clock)));
    let Some((name, clock)) = following.next() else { return EventClock::new(0, DEFAULT_INTERVAL_NS) };
    if let Some((other, _)) = following.find(|(_, other)| *other != clock) {
        options.error(
            &format!("fields.{other}.interval"),
            format!("'{other}' and '{name}' both start at 'now' and need the same interval"),
            None,
        );
    }
    if let Some((sequence, _)) = fields.iter().find(|(_, rule)| rule.length().is_some()) {
        let message =
            format!("'{sequence}' is a sequence, which counts from the first row; with 'now' the first row is that of the moment");
        options.error(&format!("fields.{name}.start"), message, None);
    }
    clock
}

/// Reads the options of one field.
struct FieldReader<'o, 't> {
    options: &'o mut OptionReader<'t>,
    prefix: String,
}

impl FieldReader<'_, '_> {
    fn key(&self, option: &str) -> String {
        format!("{}{option}", self.prefix)
    }
    fn integer(&mut self, option: &str) -> Option<i64> {
        let key = self.key(option);
        self.options.number(&key, "a whole number")
    }
    fn float(&mut self, option: &str) -> Option<f64> {
        let key = self.key(option);
        self.options.number(&key, "a number")
    }
    fn millis(&mut self, option: &str) -> u64 {
        let key = self.key(option);
        self.options.duration(&key).map_or(0, |duration| duration.as_millis() as u64)
    }
    fn refuse<T>(&mut self, option: &str, message: String) -> Option<T> {
        let key = self.key(option);
        self.options.error(&key, message, None);
        None
    }
}

fn read_field(options: &mut OptionReader<'_>, column: &Column, shape: &Shape) -> Option<FieldRule> {
    let name = column.field.name();
    let data_type = column.field.data_type();
    let mut reader = FieldReader { options, prefix: format!("fields.{name}.") };
    let key = reader.key("kind");
    let kind = reader.options.choice(&key, &["random", "sequence", "event-time"]).unwrap_or("random");
    let null_rate = reader.float("null-rate").unwrap_or(0.0);
    if !(0.0..=1.0).contains(&null_rate) {
        return reader.refuse("null-rate", format!("'fields.{name}.null-rate' must be from 0 to 1"));
    }
    if null_rate > 0.0 && !column.field.is_nullable() {
        return reader.refuse("null-rate", format!("column '{name}' is NOT NULL"));
    }
    let kind = match kind {
        "sequence" => sequence(&mut reader, name, data_type),
        "event-time" => event_time(&mut reader, name, data_type, shape, "skew"),
        _ => random(&mut reader, name, data_type, shape),
    }?;
    Some(FieldRule { kind, null_rate })
}

fn sequence(reader: &mut FieldReader<'_, '_>, name: &str, data_type: &DataType) -> Option<Kind> {
    let (start, end) = (reader.integer("start"), reader.integer("end"));
    let (Some(start), Some(end)) = (start, end) else {
        return reader.refuse("kind", format!("a sequence needs 'fields.{name}.start' and 'fields.{name}.end'"));
    };
    if end < start {
        return reader.refuse("end", format!("'fields.{name}.end' lies before its start"));
    }
    let (low, high) = match data_type {
        DataType::Utf8 | DataType::Int64 | DataType::Float64 | DataType::Float32 => (i64::MIN, i64::MAX),
        DataType::Decimal128(precision, scale) => {
            let digits = i32::from(*precision) - i32::from(*scale);
            10i64.checked_pow(digits.max(0) as u32).map_or((i64::MIN, i64::MAX), |limit| (1 - limit, limit - 1))
        }
        narrow => match integer_range(narrow) {
            Some(range) => range,
            None => return reader.refuse("kind", format!("column '{name}' of type {} can't be a sequence", sql_type(data_type))),
        },
    };
    if start < low || end > high {
        return reader.refuse("end", format!("the sequence of '{name}' leaves the range of {}", sql_type(data_type)));
    }
    Some(Kind::Sequence { start, end })
}

/// Event time, or for a random timestamp the same with another name for how far it lies back.
fn event_time(reader: &mut FieldReader<'_, '_>, name: &str, data_type: &DataType, shape: &Shape, back: &str) -> Option<Kind> {
    if !matches!(data_type, DataType::Timestamp(..) | DataType::Date32 | DataType::Time32(_)) {
        return reader.refuse("kind", format!("column '{name}' of type {} can't be event time", sql_type(data_type)));
    }
    let key = reader.key("interval");
    let interval = reader.options.duration(&key).map(|interval| i64::try_from(interval.as_nanos()).unwrap_or(i64::MAX));
    if interval == Some(0) {
        return reader.refuse("interval", format!("'{key}' must be more than 0"));
    }
    let paced = shape.rows_per_second.map(|rate| (1e9 / rate) as i64);
    let interval_ns = interval.or(paced).unwrap_or(DEFAULT_INTERVAL_NS);
    let key = reader.key("start");
    let clock = match start_time(reader.options, &key) {
        StartTime::At(start_ms) => EventClock::new(start_ms, interval_ns),
        StartTime::Now => EventClock::from_now(interval_ns),
    };
    Some(Kind::Time { clock, back_ms_max: reader.millis(back) })
}

fn random(reader: &mut FieldReader<'_, '_>, name: &str, data_type: &DataType, shape: &Shape) -> Option<Kind> {
    match data_type {
        DataType::Boolean => Some(Kind::Boolean),
        DataType::Utf8 | DataType::Binary => text(reader, name, data_type),
        DataType::Float32 | DataType::Float64 => {
            let (min, max) = (reader.float("min").unwrap_or(0.0), reader.float("max").unwrap_or(1.0));
            if !(min.is_finite() && max.is_finite() && min <= max) {
                return reader.refuse("min", format!("'fields.{name}.min' is larger than its max"));
            }
            Some(Kind::Float { min, max })
        }
        DataType::Decimal128(precision, scale) => {
            let limit = 10f64.powi(i32::from(*precision) - i32::from(*scale));
            let (min, max) = (reader.float("min").unwrap_or(0.0), reader.float("max").unwrap_or(limit.min(1e15)));
            if !(-limit <= min && min <= max && max <= limit) {
                return reader.refuse("max", format!("the range of '{name}' is empty or leaves {}", sql_type(data_type)));
            }
            Some(Kind::Decimal { min, max, precision: *precision, scale: *scale })
        }
        DataType::Timestamp(..) | DataType::Date32 | DataType::Time32(_) => event_time(reader, name, data_type, shape, "max-past"),
        other => match integer_range(other) {
            Some(range) => integer(reader, name, range),
            None => reader.refuse("kind", format!("datagen can't make column '{name}' of type {}", sql_type(data_type))),
        },
    }
}

fn text(reader: &mut FieldReader<'_, '_>, name: &str, data_type: &DataType) -> Option<Kind> {
    let default = if *data_type == DataType::Utf8 { DEFAULT_TEXT_LENGTH } else { DEFAULT_BYTES_LENGTH };
    let length =
        reader.integer("length").map_or(Some(default), |length| usize::try_from(length).ok().filter(|length| *length <= LENGTH_MAX));
    let Some(length) = length else {
        return reader.refuse("length", format!("'fields.{name}.length' must be from 0 to {LENGTH_MAX}"));
    };
    let key = reader.key("var-len");
    let varies = reader.options.boolean(&key).unwrap_or(false);
    Some(Kind::Text { length, varies })
}

fn integer(reader: &mut FieldReader<'_, '_>, name: &str, (low, high): (i64, i64)) -> Option<Kind> {
    let (min, max) = (reader.integer("min"), reader.integer("max"));
    let exponent = reader.float("zipf");
    if exponent.is_some() && (min.is_none() || max.is_none()) {
        return reader.refuse("zipf", format!("'fields.{name}.zipf' needs 'fields.{name}.min' and 'fields.{name}.max'"));
    }
    if exponent.is_some_and(|exponent| !(0.0..=10.0).contains(&exponent)) {
        return reader.refuse("zipf", format!("'fields.{name}.zipf' must be from 0 (uniform) to 10"));
    }
    let (min, max) = (min.unwrap_or(low), max.unwrap_or(high));
    if min > max || min < low || max > high {
        return reader.refuse("max", format!("the range of '{name}', {min} to {max}, is empty or too wide for its type"));
    }
    let items = (max as u64).wrapping_sub(min as u64).saturating_add(1);
    Some(Kind::Integer { min, max, zipf: exponent.map(|exponent| Zipf::new(items, exponent)) })
}

fn integer_range(data_type: &DataType) -> Option<(i64, i64)> {
    Some(match data_type {
        DataType::Int8 => (i8::MIN.into(), i8::MAX.into()),
        DataType::Int16 => (i16::MIN.into(), i16::MAX.into()),
        DataType::Int32 => (i32::MIN.into(), i32::MAX.into()),
        DataType::Int64 => (i64::MIN, i64::MAX),
        _ => return None,
    })
}

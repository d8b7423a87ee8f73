//! Flink's functions over dates and times. A text that is no time gives NULL, as in Flink.

use super::pattern::Pattern;
use super::scalar::{Returns, of_any, scalar};
use crate::error::{Checked, Fault};
use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::timezone::Tz;
use arrow_array::types::{Float64Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType};
use arrow_array::{
    Array, ArrayRef, Date32Array, Int32Array, Int64Array, ListArray, MapArray, StringArray, StructArray, TimestampMillisecondArray,
};
use arrow_cast::cast;
use arrow_schema::{DataType, Fields, TimeUnit};
use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone};
use datafusion_common::{DataFusionError, Result, exec_err};
use datafusion_expr::ScalarUDF;
use std::sync::Arc;

const DEFAULT_PATTERN: &str = "yyyy-MM-dd HH:mm:ss";

fn local(unit: TimeUnit) -> DataType {
    DataType::Timestamp(unit, None)
}

fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    let always = |data_type: DataType| Returns::Always(data_type);
    let functions = [
        of_any("date_format", 2..=2, always(DataType::Utf8), date_format),
        of_any("to_timestamp", 1..=2, always(local(TimeUnit::Millisecond)), to_timestamp),
        of_any("to_timestamp_ltz", 1..=2, always(instant()), to_timestamp_ltz),
        of_any("to_date", 1..=2, always(DataType::Date32), to_date),
        of_any("unix_timestamp", 1..=2, always(DataType::Int64), unix_timestamp),
        of_any("from_unixtime", 1..=2, always(DataType::Utf8), from_unixtime),
        of_any("__timestamp_diff", 3..=3, always(DataType::Int32), timestamp_diff),
        of_any("__timestamp_add", 3..=3, Returns::LikeArgument(2), timestamp_add),
        of_any("__floor_to", 2..=2, Returns::LikeArgument(1), |columns| round_to(columns, false)),
        of_any("__ceil_to", 2..=2, Returns::LikeArgument(1), |columns| round_to(columns, true)),
        of_any("__whole_as", 2..=2, Returns::LikeArgument(0), |columns| whole_as(&columns[0], columns[1].data_type())),
        of_any("__timestamp_text", 1..=1, always(DataType::Utf8), timestamp_text),
        scalar("convert_tz", vec![DataType::Utf8; 3], DataType::Utf8, convert_tz),
    ];
    functions.into_iter().map(Arc::new).collect()
}

/// Any time or text as milliseconds, rounded down.
fn milliseconds(column: &ArrayRef) -> Result<ArrayRef> {
    Ok(cast(&whole(column, TimeUnit::Millisecond)?, &local(TimeUnit::Millisecond))?)
}

/// A time in its own unit without what is finer than another one, rounded down: a cast goes towards zero, which is up before 1970.
fn whole(column: &ArrayRef, unit: TimeUnit) -> Result<ArrayRef> {
    let ticks_per_unit = match (column.data_type(), unit) {
        (DataType::Timestamp(TimeUnit::Nanosecond, _), TimeUnit::Millisecond) => 1_000_000,
        (DataType::Timestamp(TimeUnit::Microsecond, _), TimeUnit::Millisecond) => 1_000,
        (DataType::Timestamp(TimeUnit::Nanosecond, _), TimeUnit::Microsecond) => 1_000,
        _ => return Ok(Arc::clone(column)),
    };
    let ticks = cast(column, &DataType::Int64)?;
    let floor = |tick: i64| tick.wrapping_sub(tick.rem_euclid(ticks_per_unit));
    Ok(cast(&ticks.as_primitive::<Int64Type>().unary::<_, Int64Type>(floor), column.data_type())?)
}

/// [`whole`] for all times in a value that is then cast to the other type. The fields of a row go by name, as in the cast.
fn whole_as(column: &ArrayRef, wanted: &DataType) -> Result<ArrayRef> {
    let rounded: ArrayRef = match (column.data_type(), wanted) {
        (DataType::Timestamp(..), DataType::Timestamp(unit, _)) => whole(column, *unit)?,
        (DataType::List(item), DataType::List(wanted)) => {
            let list = column.as_list::<i32>();
            let items = whole_as(list.values(), wanted.data_type())?;
            Arc::new(ListArray::try_new(Arc::clone(item), list.offsets().clone(), items, list.nulls().cloned())?)
        }
        (DataType::Struct(_), DataType::Struct(wanted)) => Arc::new(whole_row(column.as_struct(), wanted)?),
        (DataType::Map(entry, sorted), DataType::Map(wanted, _)) => {
            let DataType::Struct(wanted) = wanted.data_type() else { return Ok(Arc::clone(column)) };
            let map = column.as_map();
            let entries = whole_row(map.entries(), wanted)?;
            Arc::new(MapArray::try_new(Arc::clone(entry), map.offsets().clone(), entries, map.nulls().cloned(), *sorted)?)
        }
        _ => Arc::clone(column),
    };
    Ok(rounded)
}

fn whole_row(row: &StructArray, wanted: &Fields) -> Result<StructArray> {
    let columns = row.fields().iter().zip(row.columns()).map(|(field, column)| match wanted.find(field.name()) {
        Some((_, wanted)) => whole_as(column, wanted.data_type()),
        None => Ok(Arc::clone(column)),
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    Ok(StructArray::try_new_with_length(row.fields().clone(), columns, row.nulls().cloned(), row.len())?)
}

fn time_of(ms: i64) -> Option<NaiveDateTime> {
    DateTime::from_timestamp_millis(ms).map(|time| time.naive_utc())
}

fn ms_of(time: &NaiveDateTime) -> i64 {
    time.and_utc().timestamp_millis()
}

/// Row by row, with the pattern taken apart again only where it changes.
struct Patterns<'a> {
    texts: Option<&'a StringArray>,
    last: Option<(String, Pattern)>,
}

impl<'a> Patterns<'a> {
    fn new(columns: &'a [ArrayRef], index: usize) -> Self {
        Patterns { texts: columns.get(index).map(|column| column.as_string::<i32>()), last: None }
    }

    fn at(&mut self, row: usize) -> Result<Option<&Pattern>> {
        let text = match self.texts {
            None => DEFAULT_PATTERN,
            Some(texts) if texts.is_null(row) => return Ok(None),
            Some(texts) => texts.value(row),
        };
        if self.last.as_ref().is_none_or(|(last, _)| last != text) {
            let pattern = Pattern::parse(text).map_err(DataFusionError::Execution)?;
            self.last = Some((text.to_owned(), pattern));
        }
        Ok(self.last.as_ref().map(|(_, pattern)| pattern))
    }
}

/// A pattern that is written out is checked before any row comes.
pub(super) fn check_pattern(text: &str) -> Checked<()> {
    let hint = "the letters are y, M, d, H, m, s, S and a few more; other text stands in single quotes, as in 'yyyy-MM-dd''T''HH:mm:ss'";
    Pattern::parse(text).map(drop).map_err(|message| Fault::new(message).hint(hint))
}

/// `DATE_FORMAT(time or text, pattern)`
fn date_format(columns: &[ArrayRef]) -> Result<ArrayRef> {
    // No finer than it must be: nanoseconds only reach from 1677 to 2262.
    let unit = match columns[0].data_type() {
        DataType::Timestamp(unit @ (TimeUnit::Microsecond | TimeUnit::Nanosecond), _) => *unit,
        DataType::Utf8 => TimeUnit::Microsecond,
        _ => TimeUnit::Millisecond,
    };
    let times = cast(&columns[0], &local(unit))?;
    let time_at = |row: usize| match unit {
        TimeUnit::Nanosecond => times.as_primitive::<TimestampNanosecondType>().value_as_datetime(row),
        TimeUnit::Microsecond => times.as_primitive::<TimestampMicrosecondType>().value_as_datetime(row),
        _ => times.as_primitive::<TimestampMillisecondType>().value_as_datetime(row),
    };
    let mut patterns = Patterns::new(columns, 1);
    let mut out = StringBuilder::with_capacity(times.len(), times.len() * 20);
    let mut text = String::new();
    for row in 0..times.len() {
        match (patterns.at(row)?, times.is_valid(row).then(|| time_at(row)).flatten()) {
            (Some(pattern), Some(time)) => {
                text.clear();
                pattern.format(&time, &mut text);
                out.append_value(&text);
            }
            _ => out.append_null(),
        }
    }
    Ok(Arc::new(out.finish()))
}

/// The milliseconds that texts say, by pattern or as SQL and ISO 8601 write them.
fn read_texts(columns: &[ArrayRef]) -> Result<Vec<Option<i64>>> {
    let texts = cast(&columns[0], &DataType::Utf8)?;
    let texts = texts.as_string::<i32>();
    if columns.len() == 1 {
        let read = |text: &str| arrow_cast::parse::string_to_datetime(&chrono::Utc, text.trim()).ok().map(|time| time.timestamp_millis());
        return Ok(texts.iter().map(|text| text.and_then(read)).collect());
    }
    let mut patterns = Patterns::new(columns, 1);
    let mut read = Vec::with_capacity(texts.len());
    for row in 0..texts.len() {
        let pattern = patterns.at(row)?.filter(|_| texts.is_valid(row));
        read.push(pattern.and_then(|pattern| pattern.read(texts.value(row))).map(|time| ms_of(&time)));
    }
    Ok(read)
}

fn to_timestamp(columns: &[ArrayRef]) -> Result<ArrayRef> {
    if matches!(columns[0].data_type(), DataType::Timestamp(..)) {
        return milliseconds(&columns[0]);
    }
    Ok(Arc::new(TimestampMillisecondArray::from(read_texts(columns)?)))
}

/// With what a number of this precision is multiplied to be milliseconds.
fn scale_of(precision: i64) -> Result<i32, String> {
    match precision {
        0 => Ok(1000),
        3 => Ok(1),
        other => Err(format!("TO_TIMESTAMP_LTZ has the precision 0 (seconds) or 3 (milliseconds), not {other}")),
    }
}

pub(super) fn check_precision(precision: i64) -> Checked<()> {
    scale_of(precision).map(drop).map_err(|message| Fault::new(message).hint("divide what is finer: TO_TIMESTAMP_LTZ(micros / 1000, 3)"))
}

/// `TO_TIMESTAMP_LTZ(number, 0 | 3)`: seconds or milliseconds since 1970; or a text with a pattern.
fn to_timestamp_ltz(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let values: TimestampMillisecondArray = if *columns[0].data_type() == DataType::Utf8 {
        read_texts(columns)?.into()
    } else {
        let precisions = columns.get(1).map(|column| cast(column, &DataType::Int64)).transpose()?;
        let precision = |row: usize| precisions.as_ref().map_or(3, |column| column.as_primitive::<Int64Type>().value(row));
        let is_fraction = matches!(columns[0].data_type(), DataType::Float32 | DataType::Float64 | DataType::Decimal128(..));
        let numbers = cast(&columns[0], if is_fraction { &DataType::Float64 } else { &DataType::Int64 })?;
        let mut out = Vec::with_capacity(numbers.len());
        for row in 0..numbers.len() {
            let scale = scale_of(precision(row)).map_err(DataFusionError::Execution)?;
            out.push(numbers.is_valid(row).then(|| match is_fraction {
                true => (numbers.as_primitive::<Float64Type>().value(row) * f64::from(scale)) as i64,
                false => numbers.as_primitive::<Int64Type>().value(row).wrapping_mul(i64::from(scale)),
            }));
        }
        out.into()
    };
    Ok(Arc::new(values.with_timezone("UTC")))
}

fn to_date(columns: &[ArrayRef]) -> Result<ArrayRef> {
    if *columns[0].data_type() != DataType::Utf8 {
        return Ok(cast(&columns[0], &DataType::Date32)?);
    }
    let days = read_texts(columns)?.into_iter().map(|ms| ms.map(|ms| ms.div_euclid(86_400_000) as i32));
    Ok(Arc::new(Date32Array::from_iter(days)))
}

fn unix_timestamp(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let seconds = match columns[0].data_type() {
        DataType::Utf8 if columns.len() == 1 => {
            let pattern: ArrayRef = Arc::new(StringArray::from_iter_values(std::iter::repeat_n(DEFAULT_PATTERN, columns[0].len())));
            read_texts(&[Arc::clone(&columns[0]), pattern])?
        }
        DataType::Utf8 => read_texts(columns)?,
        _ => milliseconds(&columns[0])?.as_primitive::<TimestampMillisecondType>().iter().collect(),
    };
    Ok(Arc::new(Int64Array::from_iter(seconds.into_iter().map(|ms| ms.map(|ms| ms.div_euclid(1000))))))
}

fn from_unixtime(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let seconds = cast(&columns[0], &DataType::Int64)?;
    let ms = seconds.as_primitive::<Int64Type>().unary::<_, TimestampMillisecondType>(|seconds| seconds.wrapping_mul(1000));
    let pattern = match columns.get(1) {
        Some(pattern) => Arc::clone(pattern),
        None => Arc::new(StringArray::from_iter_values(std::iter::repeat_n(DEFAULT_PATTERN, seconds.len()))),
    };
    date_format(&[Arc::new(ms), pattern])
}

/// Length of a unit of fixed length.
fn unit_ms(unit: &str) -> Option<i64> {
    Some(match unit.trim_end_matches('S') {
        "MILLISECOND" => 1,
        "SECOND" => 1000,
        "MINUTE" => 60_000,
        "HOUR" => 3_600_000,
        "DAY" => 86_400_000,
        "WEEK" => 7 * 86_400_000,
        _ => return None,
    })
}

/// Months of a unit of calendar length.
fn unit_months(unit: &str) -> Option<i64> {
    Some(match unit.trim_end_matches('S') {
        "MONTH" => 1,
        "QUARTER" => 3,
        "YEAR" => 12,
        _ => return None,
    })
}

/// The unit of `TIMESTAMPDIFF`, `TIMESTAMPADD`, `FLOOR` and `CEIL`.
pub(super) fn check_unit(unit: &str) -> Checked<()> {
    let upper = unit.to_uppercase();
    if unit_ms(&upper).is_some() || unit_months(&upper).is_some() {
        return Ok(());
    }
    let fault = Fault::new(format!("there is no unit of time {upper}"));
    Err(fault.hint("there are: MILLISECOND, SECOND, MINUTE, HOUR, DAY, WEEK, MONTH, QUARTER, YEAR"))
}

fn unit(columns: &[ArrayRef]) -> Result<String> {
    let units = columns[0].as_string::<i32>();
    Ok(if units.is_empty() { "SECOND".into() } else { units.value(0).to_uppercase() })
}

/// `TIMESTAMPDIFF(unit, from, to)`
fn timestamp_diff(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let unit = unit(columns)?;
    let (from, to) = (milliseconds(&columns[1])?, milliseconds(&columns[2])?);
    let pairs = from.as_primitive::<TimestampMillisecondType>().iter().zip(to.as_primitive::<TimestampMillisecondType>().iter());
    let difference = |from: i64, to: i64| match (unit_ms(&unit), unit_months(&unit)) {
        (Some(ms), _) => Ok(Some(((to - from) / ms) as i32)),
        (_, Some(months)) => Ok(whole_months(from, to).map(|whole| (whole / months) as i32)),
        _ => exec_err!("TIMESTAMPDIFF does not know the unit {unit}"),
    };
    let values = pairs.map(|(from, to)| from.zip(to).map_or(Ok(None), |(from, to)| difference(from, to)));
    Ok(Arc::new(values.collect::<Result<Int32Array>>()?))
}

fn whole_months(from: i64, to: i64) -> Option<i64> {
    let (first, last) = (time_of(from.min(to))?, time_of(from.max(to))?);
    let mut months = i64::from(last.year() - first.year()) * 12 + i64::from(last.month()) - i64::from(first.month());
    if (last.day(), last.time()) < (first.day(), first.time()) {
        months -= 1;
    }
    Some(if to < from { -months } else { months })
}

/// `TIMESTAMPADD(unit, count, time)`, in the time's own unit.
fn timestamp_add(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let unit = unit(columns)?;
    let counts = cast(&columns[1], &DataType::Int64)?;
    let (own, ticks_per_ms) = match columns[2].data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, _) => (TimeUnit::Nanosecond, 1_000_000),
        DataType::Timestamp(TimeUnit::Microsecond, _) => (TimeUnit::Microsecond, 1_000),
        _ => (TimeUnit::Millisecond, 1),
    };
    let ticks = cast(&cast(&columns[2], &local(own))?, &DataType::Int64)?;
    let pairs = counts.as_primitive::<Int64Type>().iter().zip(ticks.as_primitive::<Int64Type>().iter());
    let add = |count: i64, tick: i64| match (unit_ms(&unit), unit_months(&unit)) {
        (Some(ms), _) => Ok(Some(tick.wrapping_add(count.wrapping_mul(ms).wrapping_mul(ticks_per_ms)))),
        (_, Some(months)) => {
            let moved = add_months(tick.div_euclid(ticks_per_ms), count.saturating_mul(months));
            Ok(moved.and_then(|ms| ms.checked_mul(ticks_per_ms)?.checked_add(tick.rem_euclid(ticks_per_ms))))
        }
        _ => exec_err!("TIMESTAMPADD does not know the unit {unit}"),
    };
    let values = pairs.map(|(count, tick)| count.zip(tick).map_or(Ok(None), |(count, tick)| add(count, tick)));
    let values = values.collect::<Result<Int64Array>>()?;
    Ok(cast(&cast(&values, &local(own))?, columns[2].data_type())?)
}

fn add_months(ms: i64, months: i64) -> Option<i64> {
    let time = time_of(ms)?;
    let distance = Months::new(u32::try_from(months.unsigned_abs()).ok()?);
    let moved = if months < 0 { time.checked_sub_months(distance)? } else { time.checked_add_months(distance)? };
    Some(ms_of(&moved))
}

/// `FLOOR(time TO unit)` and `CEIL(time TO unit)`
fn round_to(columns: &[ArrayRef], up: bool) -> Result<ArrayRef> {
    let unit = unit(columns)?;
    let times = milliseconds(&columns[1])?;
    let mut out = Vec::with_capacity(times.len());
    for ms in times.as_primitive::<TimestampMillisecondType>() {
        let Some(ms) = ms else {
            out.push(None);
            continue;
        };
        let Some(floor) = floor_ms(ms, &unit) else { return exec_err!("FLOOR and CEIL do not know the unit {unit}") };
        out.push(match (up && floor != ms, unit_ms(&unit), unit_months(&unit)) {
            (false, ..) => Some(floor),
            (true, Some(length), _) => Some(floor + length),
            (true, _, Some(months)) => add_months(floor, months),
            (true, ..) => None,
        });
    }
    Ok(cast(&TimestampMillisecondArray::from(out), columns[1].data_type())?)
}

fn floor_ms(ms: i64, unit: &str) -> Option<i64> {
    let time = time_of(ms)?;
    let midnight = |date: NaiveDate| ms_of(&date.and_time(NaiveTime::MIN));
    match unit.trim_end_matches('S') {
        // Weeks start on Sunday in Flink's FLOOR.
        "WEEK" => Some(midnight(time.date().checked_sub_days(Days::new(u64::from(time.weekday().num_days_from_sunday())))?)),
        "MONTH" => Some(midnight(time.date().with_day(1)?)),
        "QUARTER" => Some(midnight(time.date().with_day(1)?.with_month(time.month0() / 3 * 3 + 1)?)),
        "YEAR" => Some(midnight(time.date().with_ordinal(1)?)),
        other => unit_ms(other).map(|length| ms - ms.rem_euclid(length)),
    }
}

fn zone(name: &str) -> Result<Tz, String> {
    let behind_gmt = name.strip_prefix("GMT").or_else(|| name.strip_prefix("UTC")).filter(|rest| rest.starts_with(['+', '-']));
    behind_gmt.unwrap_or(name).parse().map_err(|_| format!("there is no time zone '{name}'"))
}

/// A zone that is written out is checked before any row comes. (Java takes one that it does not know for GMT.)
pub(super) fn check_zone(name: &str) -> Checked<()> {
    let hint = "write a full name such as 'America/Los_Angeles', or an offset such as 'GMT-08:00'";
    zone(name).map(drop).map_err(|message| Fault::new(message).hint(hint))
}

/// `CONVERT_TZ('2024-01-02 03:04:05', from zone, to zone)`
fn convert_tz(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let [texts, from, to] = [0, 1, 2].map(|index| columns[index].as_string::<i32>());
    let pattern = Pattern::parse(DEFAULT_PATTERN).map_err(DataFusionError::Execution)?;
    let mut out = StringBuilder::with_capacity(texts.len(), texts.len() * 20);
    let mut text = String::new();
    for row in 0..texts.len() {
        if texts.is_null(row) || from.is_null(row) || to.is_null(row) {
            out.append_null();
            continue;
        }
        let from = zone(from.value(row)).map_err(DataFusionError::Execution)?;
        let to = zone(to.value(row)).map_err(DataFusionError::Execution)?;
        match pattern.read(texts.value(row)).and_then(|wall| on_another_clock(wall, from, to)) {
            Some(time) => {
                text.clear();
                pattern.format(&time, &mut text);
                out.append_value(&text);
            }
            None => out.append_null(),
        }
    }
    Ok(Arc::new(out.finish()))
}

/// As Java's calendar: an hour that a clock skips is read by the offset before it, and of an hour that it repeats it is the later one.
fn on_another_clock(wall: NaiveDateTime, from: Tz, to: Tz) -> Option<NaiveDateTime> {
    let utc = match from.from_local_datetime(&wall).latest() {
        Some(time) => time.naive_utc(),
        None => wall.checked_sub_offset(from.offset_from_utc_datetime(&wall.checked_sub_days(Days::new(1))?).fix())?,
    };
    utc.checked_add_offset(to.offset_from_utc_datetime(&utc).fix())
}

/// `CAST(time AS STRING)` as Flink writes it: a space, and as many digits as the type has.
fn timestamp_text(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let pattern = match columns[0].data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, _) => "yyyy-MM-dd HH:mm:ss.SSSSSSSSS",
        DataType::Timestamp(TimeUnit::Microsecond, _) => "yyyy-MM-dd HH:mm:ss.SSSSSS",
        _ => "yyyy-MM-dd HH:mm:ss.SSS",
    };
    let pattern: ArrayRef = Arc::new(StringArray::from_iter_values(std::iter::repeat_n(pattern, columns[0].len())));
    date_format(&[Arc::clone(&columns[0]), pattern])
}

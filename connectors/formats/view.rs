//! A batch's columns as slices, looked at once per batch so that writing a value is one match and one index.

use super::json::write_base64;
use super::numbers::{write_decimal, write_float};
use super::sql_type;
use super::time::{TimestampStandard, write_date, write_time_ms, write_timestamp};
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Time32MillisecondType,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use arrow_buffer::{BooleanBuffer, NullBuffer};
use arrow_schema::{DataType, Fields, TimeUnit};
use streamshield_core::ports::sink::SinkError;

/// A column's values, found out once per batch.
pub(crate) struct ColumnView<'a> {
    nulls: Option<&'a NullBuffer>,
    pub values: View<'a>,
}

pub(crate) enum View<'a> {
    Boolean(&'a BooleanBuffer),
    Int8(&'a [i8]),
    Int16(&'a [i16]),
    Int32(&'a [i32]),
    Int64(&'a [i64]),
    Float32(&'a [f32]),
    Float64(&'a [f64]),
    Decimal(&'a [i128], i8),
    Utf8 { ends: &'a [i32], data: &'a [u8] },
    Binary { ends: &'a [i32], data: &'a [u8] },
    Date(&'a [i32]),
    Time(&'a [i32]),
    Timestamp { values: &'a [i64], unit: TimeUnit, zoned: bool },
    List { ends: &'a [i32], items: Box<ColumnView<'a>> },
    Struct { fields: &'a Fields, children: Vec<ColumnView<'a>> },
    Map { ends: &'a [i32], keys: Box<ColumnView<'a>>, values: Box<ColumnView<'a>> },
}

impl<'a> ColumnView<'a> {
    pub(crate) fn new(array: &'a dyn Array) -> Result<Self, SinkError> {
        let values = match array.data_type() {
            DataType::Boolean => View::Boolean(array.as_boolean().values()),
            DataType::Int8 => View::Int8(array.as_primitive::<Int8Type>().values()),
            DataType::Int16 => View::Int16(array.as_primitive::<Int16Type>().values()),
            DataType::Int32 => View::Int32(array.as_primitive::<Int32Type>().values()),
            DataType::Int64 => View::Int64(array.as_primitive::<Int64Type>().values()),
            DataType::Float32 => View::Float32(array.as_primitive::<Float32Type>().values()),
            DataType::Float64 => View::Float64(array.as_primitive::<Float64Type>().values()),
            DataType::Decimal128(_, scale) => View::Decimal(array.as_primitive::<Decimal128Type>().values(), *scale),
            DataType::Utf8 => {
                let strings = array.as_string::<i32>();
                View::Utf8 { ends: strings.value_offsets(), data: strings.value_data() }
            }
            DataType::Binary => {
                let binaries = array.as_binary::<i32>();
                View::Binary { ends: binaries.value_offsets(), data: binaries.value_data() }
            }
            DataType::Date32 => View::Date(array.as_primitive::<Date32Type>().values()),
            DataType::Time32(TimeUnit::Millisecond) => View::Time(array.as_primitive::<Time32MillisecondType>().values()),
            DataType::Timestamp(unit, zone) => {
                View::Timestamp { values: timestamp_values(array, *unit), unit: *unit, zoned: zone.is_some() }
            }
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                View::List { ends: list.value_offsets(), items: Box::new(ColumnView::new(list.values())?) }
            }
            DataType::Struct(fields) => {
                let children = array.as_struct().columns().iter().map(|child| ColumnView::new(child.as_ref())).collect::<Result<_, _>>()?;
                View::Struct { fields, children }
            }
            DataType::Map(..) => {
                let map = array.as_map();
                View::Map {
                    ends: map.value_offsets(),
                    keys: Box::new(ColumnView::new(map.keys())?),
                    values: Box::new(ColumnView::new(map.values())?),
                }
            }
            other => return Err(SinkError { retry: false, message: format!("no format can write the type {}", sql_type(other)) }),
        };
        Ok(ColumnView { nulls: array.nulls().filter(|nulls| nulls.null_count() > 0), values })
    }

    #[inline(always)]
    pub(crate) fn is_null(&self, row: usize) -> bool {
        self.nulls.is_some_and(|nulls| nulls.is_null(row))
    }
}

fn timestamp_values(array: &dyn Array, unit: TimeUnit) -> &[i64] {
    match unit {
        TimeUnit::Second => array.as_primitive::<TimestampSecondType>().values(),
        TimeUnit::Millisecond => array.as_primitive::<TimestampMillisecondType>().values(),
        TimeUnit::Microsecond => array.as_primitive::<TimestampMicrosecondType>().values(),
        TimeUnit::Nanosecond => array.as_primitive::<TimestampNanosecondType>().values(),
    }
}

/// Writes a value of a type that is not nested, as text without quotes.
pub(crate) fn write_scalar(out: &mut Vec<u8>, values: &View<'_>, row: usize, standard: TimestampStandard) {
    let slice = |ends: &[i32]| ends[row] as usize..ends[row + 1] as usize;
    let integer = |value: i64, out: &mut Vec<u8>| out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    match values {
        View::Boolean(values) => out.extend_from_slice(if values.value(row) { b"true" } else { b"false" }),
        View::Int8(values) => integer(values[row].into(), out),
        View::Int16(values) => integer(values[row].into(), out),
        View::Int32(values) => integer(values[row].into(), out),
        View::Int64(values) => integer(values[row], out),
        View::Float32(values) => write_float_text(out, values[row], values[row].into()),
        View::Float64(values) => write_float_text(out, values[row], values[row]),
        View::Decimal(values, scale) => write_decimal(out, values[row], *scale),
        View::Utf8 { ends, data } => out.extend_from_slice(&data[slice(ends)]),
        View::Binary { ends, data } => write_base64(out, &data[slice(ends)]),
        View::Date(values) => write_date(out, values[row].into()),
        View::Time(values) => write_time_ms(out, values[row]),
        View::Timestamp { values, unit, zoned } => write_timestamp(out, values[row], *unit, *zoned, standard),
        View::List { .. } | View::Struct { .. } | View::Map { .. } => unreachable!("the caller takes nested types apart"),
    }
}

fn write_float_text<F: ryu::Float>(out: &mut Vec<u8>, value: F, judged: f64) {
    if judged.is_finite() {
        write_float(out, value);
    } else {
        out.extend_from_slice(if judged.is_nan() {
            b"NaN".as_slice()
        } else if judged > 0.0 {
            b"Infinity"
        } else {
            b"-Infinity"
        });
    }
}

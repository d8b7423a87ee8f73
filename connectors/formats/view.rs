//! A batch's columns as slices, looked at once per batch so that writing a value is one match and one index.

use super::sql_type;
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Time32MillisecondType, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use arrow_buffer::{BooleanBuffer, NullBuffer};
use arrow_schema::{DataType, Fields, TimeUnit};
use streamshield_core::ports::sink::SinkError;

/// A column's values, found out once per batch.
pub(super) struct ColumnView<'a> {
    nulls: Option<&'a NullBuffer>,
    pub values: View<'a>,
}

pub(super) enum View<'a> {
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
    pub(super) fn new(array: &'a dyn Array) -> Result<Self, SinkError> {
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
            DataType::Timestamp(unit, zone) => View::Timestamp { values: timestamp_values(array, *unit), unit: *unit, zoned: zone.is_some() },
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
                View::Map { ends: map.value_offsets(), keys: Box::new(ColumnView::new(map.keys())?), values: Box::new(ColumnView::new(map.values())?) }
            }
            other => return Err(SinkError { retry: false, message: format!("no format can write the type {}", sql_type(other)) }),
        };
        Ok(ColumnView { nulls: array.nulls().filter(|nulls| nulls.null_count() > 0), values })
    }

    #[inline(always)]
    pub(super) fn is_null(&self, row: usize) -> bool {
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

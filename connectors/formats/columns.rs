//! Columns under construction, which can take back what was appended.
//!
//! Arrow's builders only grow. A record that turns out bad in its fifth column must leave nothing behind in the first four,
//! so these columns are plain vectors with [`ColumnBuilder::truncate`]: the decoder appends as it reads and, on an error,
//! cuts every column back to the rows before. That is what isolates records from each other at no cost for good ones.

use arrow_array::types::Decimal128Type;
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int8Array, Int16Array, Int32Array, Int64Array, ListArray,
    MapArray, PrimitiveArray, RecordBatch, RecordBatchOptions, StringArray, StructArray, Time32MillisecondArray, TimestampMicrosecondArray,
    TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray,
};
use arrow_buffer::{BooleanBufferBuilder, Buffer, NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, FieldRef, SchemaRef, TimeUnit};
use std::sync::Arc;

/// Values of one column.
pub(super) enum Values {
    Boolean(BooleanBufferBuilder),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Decimal { values: Vec<i128>, precision: u8, scale: i8 },
    Utf8(Bytes),
    Binary(Bytes),
    Date(Vec<i32>),
    Time(Vec<i32>),
    Timestamp { values: Vec<i64>, unit: TimeUnit, zoned: bool },
    List { ends: Vec<i32>, items: Box<ColumnBuilder> },
    Struct { length: usize, children: Vec<ColumnBuilder> },
    Map { ends: Vec<i32>, keys: Box<ColumnBuilder>, values: Box<ColumnBuilder> },
}

/// Values of varying length, one after the other.
pub(super) struct Bytes {
    pub data: Vec<u8>,
    /// `ends[0]` = 0; value i is `data[ends[i]..ends[i + 1]]`.
    ends: Vec<i32>,
}

impl Bytes {
    fn new() -> Self {
        Bytes { data: Vec::new(), ends: vec![0] }
    }

    /// Ends the value whose bytes have been appended to `data`. False when the column's 2 GiB are full.
    #[must_use]
    pub(super) fn end_value(&mut self) -> bool {
        let Ok(end) = i32::try_from(self.data.len()) else { return false };
        self.ends.push(end);
        true
    }

    pub(super) fn value(&self, index: usize) -> &[u8] {
        &self.data[self.ends[index] as usize..self.ends[index + 1] as usize]
    }

    fn truncate(&mut self, rows: usize) {
        self.ends.truncate(rows + 1);
        self.data.truncate(self.ends[rows] as usize);
    }

    fn retain(&mut self, from: usize, kept: &[bool]) {
        let (mut begin, mut rows) = (self.ends[from] as usize, from);
        let mut length = begin;
        for (index, kept) in kept.iter().enumerate() {
            let end = self.ends[from + index + 1] as usize;
            if *kept {
                self.data.copy_within(begin..end, length);
                length += end - begin;
                rows += 1;
                self.ends[rows] = length as i32;
            }
            begin = end;
        }
        self.truncate(rows);
    }

    fn take(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        // The next batch will need about as much.
        let next = Bytes { data: Vec::with_capacity(self.data.len()), ends: start_ends(self.ends.len()) };
        let full = std::mem::replace(self, next);
        (OffsetBuffer::new(ScalarBuffer::from(full.ends)), Buffer::from_vec(full.data))
    }
}

fn start_ends(capacity: usize) -> Vec<i32> {
    let mut ends = Vec::with_capacity(capacity);
    ends.push(0);
    ends
}

/// One column under construction.
pub(super) struct ColumnBuilder {
    pub field: FieldRef,
    pub values: Values,
    nulls: NullBufferBuilder,
    length: usize,
}

impl ColumnBuilder {
    /// A builder for a type that [`streamshield_core::table::is_supported_type`] accepts.
    pub(super) fn new(field: &FieldRef) -> Self {
        let values = match field.data_type() {
            DataType::Boolean => Values::Boolean(BooleanBufferBuilder::new(0)),
            DataType::Int8 => Values::Int8(Vec::new()),
            DataType::Int16 => Values::Int16(Vec::new()),
            DataType::Int32 => Values::Int32(Vec::new()),
            DataType::Int64 => Values::Int64(Vec::new()),
            DataType::Float32 => Values::Float32(Vec::new()),
            DataType::Float64 => Values::Float64(Vec::new()),
            DataType::Decimal128(precision, scale) => Values::Decimal { values: Vec::new(), precision: *precision, scale: *scale },
            DataType::Binary => Values::Binary(Bytes::new()),
            DataType::Date32 => Values::Date(Vec::new()),
            DataType::Time32(_) => Values::Time(Vec::new()),
            DataType::Timestamp(unit, zone) => Values::Timestamp { values: Vec::new(), unit: *unit, zoned: zone.is_some() },
            DataType::List(item) => Values::List { ends: start_ends(1), items: Box::new(ColumnBuilder::new(item)) },
            DataType::Struct(fields) => Values::Struct { length: 0, children: fields.iter().map(ColumnBuilder::new).collect() },
            DataType::Map(entries, _) => match entries.data_type() {
                DataType::Struct(fields) if fields.len() == 2 => Values::Map {
                    ends: start_ends(1),
                    keys: Box::new(ColumnBuilder::new(&fields[0])),
                    values: Box::new(ColumnBuilder::new(&fields[1])),
                },
                _ => Values::Utf8(Bytes::new()),
            },
            // Utf8; other types are refused by `check`, and building the batch fails on them.
            _ => Values::Utf8(Bytes::new()),
        };
        ColumnBuilder { field: field.clone(), values, nulls: NullBufferBuilder::new(0), length: 0 }
    }

    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Says that the value just appended to `values` is one.
    #[inline(always)]
    pub(super) fn appended(&mut self) {
        self.length += 1;
        self.nulls.append_non_null();
    }

    /// Appends a null, whether the field allows it or not (under a null parent it must).
    pub(super) fn append_null(&mut self) {
        match &mut self.values {
            Values::Boolean(values) => values.append(false),
            Values::Int8(values) => values.push(0),
            Values::Int16(values) => values.push(0),
            Values::Int32(values) | Values::Date(values) | Values::Time(values) => values.push(0),
            Values::Int64(values) | Values::Timestamp { values, .. } => values.push(0),
            Values::Float32(values) => values.push(0.0),
            Values::Float64(values) => values.push(0.0),
            Values::Decimal { values, .. } => values.push(0),
            Values::Utf8(bytes) | Values::Binary(bytes) => bytes.ends.push(bytes.ends[bytes.ends.len() - 1]),
            Values::List { ends, .. } | Values::Map { ends, .. } => ends.push(ends[ends.len() - 1]),
            Values::Struct { length, children } => {
                *length += 1;
                children.iter_mut().for_each(ColumnBuilder::append_null);
            }
        }
        self.nulls.append_null();
        self.length += 1;
    }

    /// Takes back everything after the first `rows` values, also a value that was begun and not finished.
    pub(super) fn truncate(&mut self, rows: usize) {
        match &mut self.values {
            Values::Boolean(values) => values.truncate(rows),
            Values::Int8(values) => values.truncate(rows),
            Values::Int16(values) => values.truncate(rows),
            Values::Int32(values) | Values::Date(values) | Values::Time(values) => values.truncate(rows),
            Values::Int64(values) | Values::Timestamp { values, .. } => values.truncate(rows),
            Values::Float32(values) => values.truncate(rows),
            Values::Float64(values) => values.truncate(rows),
            Values::Decimal { values, .. } => values.truncate(rows),
            Values::Utf8(bytes) | Values::Binary(bytes) => bytes.truncate(rows),
            Values::List { ends, items } => {
                ends.truncate(rows + 1);
                items.truncate(ends[rows] as usize);
            }
            Values::Struct { length, children } => {
                *length = rows;
                children.iter_mut().for_each(|child| child.truncate(rows));
            }
            Values::Map { ends, keys, values } => {
                ends.truncate(rows + 1);
                keys.truncate(ends[rows] as usize);
                values.truncate(ends[rows] as usize);
            }
        }
        self.nulls.truncate(rows);
        self.length = rows;
    }

    /// Takes back those of the values after the first `from` that are not `kept`, which says it of each of them.
    pub(super) fn retain(&mut self, from: usize, kept: &[bool]) {
        let places = || (from..).zip(kept).filter(|(_, kept)| **kept).map(|(place, _)| place);
        match &mut self.values {
            Values::Boolean(values) => {
                let bits: Vec<bool> = places().map(|place| values.get_bit(place)).collect();
                values.truncate(from);
                values.append_slice(&bits);
            }
            Values::Int8(values) => retain(values, from, places()),
            Values::Int16(values) => retain(values, from, places()),
            Values::Int32(values) | Values::Date(values) | Values::Time(values) => retain(values, from, places()),
            Values::Int64(values) | Values::Timestamp { values, .. } => retain(values, from, places()),
            Values::Float32(values) => retain(values, from, places()),
            Values::Float64(values) => retain(values, from, places()),
            Values::Decimal { values, .. } => retain(values, from, places()),
            Values::Utf8(bytes) | Values::Binary(bytes) => bytes.retain(from, kept),
            Values::List { ends, items } => {
                let start = ends[from] as usize;
                items.retain(start, &retain_ranges(ends, from, kept));
            }
            Values::Struct { length, children } => {
                *length = from + places().count();
                children.iter_mut().for_each(|child| child.retain(from, kept));
            }
            Values::Map { ends, keys, values } => {
                let start = ends[from] as usize;
                let entries = retain_ranges(ends, from, kept);
                keys.retain(start, &entries);
                values.retain(start, &entries);
            }
        }
        let valid: Vec<bool> = places().map(|place| self.nulls.is_valid(place)).collect();
        self.nulls.truncate(from);
        self.nulls.append_slice(&valid);
        self.length = from + valid.len();
    }

    /// The column as an array; the builder is empty afterwards.
    pub(super) fn finish(&mut self) -> ArrayRef {
        let nulls = self.nulls.finish();
        self.length = 0;
        match &mut self.values {
            Values::Boolean(values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Int8(values) => Arc::new(Int8Array::new(take(values), nulls)),
            Values::Int16(values) => Arc::new(Int16Array::new(take(values), nulls)),
            Values::Int32(values) => Arc::new(Int32Array::new(take(values), nulls)),
            Values::Int64(values) => Arc::new(Int64Array::new(take(values), nulls)),
            Values::Float32(values) => Arc::new(Float32Array::new(take(values), nulls)),
            Values::Float64(values) => Arc::new(Float64Array::new(take(values), nulls)),
            Values::Decimal { values, .. } => {
                Arc::new(PrimitiveArray::<Decimal128Type>::new(take(values), nulls).with_data_type(self.field.data_type().clone()))
            }
            Values::Date(values) => Arc::new(Date32Array::new(take(values), nulls)),
            Values::Time(values) => Arc::new(Time32MillisecondArray::new(take(values), nulls)),
            Values::Utf8(bytes) => {
                let (offsets, data) = bytes.take();
                Arc::new(StringArray::new(offsets, data, nulls))
            }
            Values::Binary(bytes) => {
                let (offsets, data) = bytes.take();
                Arc::new(BinaryArray::new(offsets, data, nulls))
            }
            Values::Timestamp { values, unit, .. } => {
                let zone = match self.field.data_type() {
                    DataType::Timestamp(_, zone) => zone.clone(),
                    _ => None,
                };
                match unit {
                    TimeUnit::Second => Arc::new(TimestampSecondArray::new(take(values), nulls).with_timezone_opt(zone)),
                    TimeUnit::Millisecond => Arc::new(TimestampMillisecondArray::new(take(values), nulls).with_timezone_opt(zone)),
                    TimeUnit::Microsecond => Arc::new(TimestampMicrosecondArray::new(take(values), nulls).with_timezone_opt(zone)),
                    TimeUnit::Nanosecond => Arc::new(TimestampNanosecondArray::new(take(values), nulls).with_timezone_opt(zone)),
                }
            }
            Values::List { ends, items } => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(ends, start_ends(1))));
                Arc::new(ListArray::new(items.field.clone(), offsets, items.finish(), nulls))
            }
            Values::Struct { length, children } => {
                let length = std::mem::take(length);
                let fields = children.iter().map(|child| child.field.clone()).collect();
                let arrays = children.iter_mut().map(ColumnBuilder::finish).collect();
                let built = StructArray::try_new_with_length(fields, arrays, nulls, length);
                Arc::new(built.expect("children have the struct's length, and nulls in NOT NULL children were refused"))
            }
            Values::Map { ends, keys, values } => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(ends, start_ends(1))));
                let fields = vec![keys.field.clone(), values.field.clone()].into();
                let entries = StructArray::new(fields, vec![keys.finish(), values.finish()], None);
                let (entries_field, sorted) = match self.field.data_type() {
                    DataType::Map(field, sorted) => (field.clone(), *sorted),
                    _ => unreachable!("a map column is built for a map field only"),
                };
                Arc::new(MapArray::new(entries_field, offsets, entries, nulls, sorted))
            }
        }
    }
}

/// Moves the values at these places, in order, behind the first `from`.
fn retain<T: Copy>(values: &mut Vec<T>, from: usize, places: impl Iterator<Item = usize>) {
    let mut length = from;
    for place in places {
        values[length] = values[place];
        length += 1;
    }
    values.truncate(length);
}

/// Takes ranges of items out; returns which of the items behind `ends[from]` stay.
fn retain_ranges(ends: &mut Vec<i32>, from: usize, kept: &[bool]) -> Vec<bool> {
    let (mut begin, mut rows) = (ends[from], from);
    let mut end = begin;
    let mut items = Vec::new();
    for (index, kept) in kept.iter().enumerate() {
        let next = ends[from + index + 1];
        items.resize(items.len() + (next - begin) as usize, *kept);
        if *kept {
            end += next - begin;
            rows += 1;
            ends[rows] = end;
        }
        begin = next;
    }
    ends.truncate(rows + 1);
    items
}

fn take<T: arrow_buffer::ArrowNativeType>(values: &mut Vec<T>) -> ScalarBuffer<T> {
    let next = Vec::with_capacity(values.len());
    ScalarBuffer::from(std::mem::replace(values, next))
}

/// Takes the columns' values as a batch of `rows` rows.
pub(super) fn finish_batch(schema: &SchemaRef, columns: &mut [ColumnBuilder], rows: usize) -> RecordBatch {
    let arrays = columns.iter_mut().map(ColumnBuilder::finish).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), arrays, &options)
        .expect("every column was built for its field and has one value per row")
}

/// The columns of a schema, empty.
pub(super) fn columns_of(schema: &SchemaRef) -> Vec<ColumnBuilder> {
    schema.fields().iter().map(ColumnBuilder::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::cast::AsArray;
    use arrow_schema::{Field, Schema};

    #[test]
    fn a_truncated_column_keeps_nothing_of_the_rows_cut_off() {
        let inner = vec![Field::new("a", DataType::Int64, true), Field::new("l", DataType::new_list(DataType::Utf8, true), true)];
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("s", DataType::Struct(inner.into()), true)]));
        let mut columns = columns_of(&schema);
        columns[0].append_null();
        if let Values::Struct { children, .. } = &mut columns[0].values {
            // A row that was begun only.
            if let Values::Int64(values) = &mut children[0].values {
                values.push(7);
            }
            children[0].appended();
            if let Values::List { items, .. } = &mut children[1].values {
                items.append_null();
            }
        }
        columns[0].truncate(1);
        let batch = finish_batch(&schema, &mut columns, 1);
        assert_eq!(batch.column(0).as_struct().column(0).len(), 1);
        assert_eq!(columns[0].len(), 0);
    }
}

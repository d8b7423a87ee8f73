//! Metadata columns: what a message carries beside its key and value.

use arrow_array::builder::{ArrayBuilder, BinaryBuilder, Int32Builder, Int64Builder, StringBuilder};
use arrow_array::{Array, ArrayRef, BinaryArray, MapArray, StringArray, StructArray, TimestampMillisecondArray};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{ArrowError, DataType, Field, Fields, TimeUnit};
use std::collections::HashSet;
use std::sync::Arc;
use streamshield_core::ports::log::{MessageView, TimestampType};

const ZONE: &str = "UTC";
/// Of more headers, the keys are looked up in a set: comparing each with all later ones would take minutes for a message that is full of them.
const COMPARED_HEADERS_MAX: usize = 32;

fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some(ZONE.into()))
}

fn header_fields() -> Fields {
    Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Binary, true)])
}

/// Types of the columns that a source can give; `leader-epoch` is not among them.
pub(crate) fn readable_type(key: &str) -> Option<DataType> {
    Some(match key {
        "topic" | "timestamp-type" => DataType::Utf8,
        "partition" => DataType::Int32,
        "offset" => DataType::Int64,
        "timestamp" => timestamp(),
        "headers" => DataType::Map(Arc::new(Field::new("entries", DataType::Struct(header_fields()), false)), false),
        _ => return None,
    })
}

/// Types of the columns that a sink can write. Messages of an epoch carry no headers of rows.
pub(crate) fn writable_type(key: &str) -> Option<DataType> {
    (key == "timestamp").then(timestamp)
}

/// Builds one metadata column, message by message.
pub(crate) enum MetadataBuilder {
    Topic(StringBuilder, Arc<str>),
    Partition(Int32Builder, i32),
    Offset(Int64Builder),
    Timestamp(Vec<i64>),
    TimestampType(StringBuilder),
    Headers { names: StringBuilder, values: BinaryBuilder, ends: Vec<usize> },
}

impl MetadataBuilder {
    /// None for a key that [`readable_type`] does not know.
    pub fn new(key: &str, topic: &Arc<str>, partition: i32) -> Option<Self> {
        Some(match key {
            "topic" => MetadataBuilder::Topic(StringBuilder::new(), Arc::clone(topic)),
            "partition" => MetadataBuilder::Partition(Int32Builder::new(), partition),
            "offset" => MetadataBuilder::Offset(Int64Builder::new()),
            "timestamp" => MetadataBuilder::Timestamp(Vec::new()),
            "timestamp-type" => MetadataBuilder::TimestampType(StringBuilder::new()),
            "headers" => MetadataBuilder::Headers { names: StringBuilder::new(), values: BinaryBuilder::new(), ends: Vec::new() },
            _ => return None,
        })
    }

    pub fn append(&mut self, message: &MessageView<'_>) {
        match self {
            MetadataBuilder::Topic(builder, topic) => builder.append_value(&**topic),
            MetadataBuilder::Partition(builder, partition) => builder.append_value(*partition),
            MetadataBuilder::Offset(builder) => builder.append_value(message.offset),
            MetadataBuilder::Timestamp(values) => values.push(message.timestamp_ms),
            MetadataBuilder::TimestampType(builder) => builder.append_value(match message.timestamp_type {
                TimestampType::NotAvailable => "NoTimestampType",
                TimestampType::CreateTime => "CreateTime",
                TimestampType::LogAppendTime => "LogAppendTime",
            }),
            MetadataBuilder::Headers { names, values, ends } => {
                let mut append = |(name, value): &(&str, &[u8])| {
                    names.append_value(name);
                    values.append_value(value);
                };
                // A map has each key once; the last one counts, as in Flink.
                if message.headers.len() <= COMPARED_HEADERS_MAX {
                    for (index, header) in message.headers.iter().enumerate() {
                        if message.headers[index + 1..].iter().all(|(later, _)| *later != header.0) {
                            append(header);
                        }
                    }
                } else {
                    let mut later = HashSet::with_capacity(message.headers.len());
                    let mut last: Vec<_> = message.headers.iter().rev().filter(|(name, _)| later.insert(*name)).collect();
                    last.reverse();
                    last.into_iter().for_each(append);
                }
                ends.push(ArrayBuilder::len(names));
            }
        }
    }

    /// The column in the type that the table declares.
    pub fn finish(self, wanted: &DataType) -> Result<ArrayRef, ArrowError> {
        let array: ArrayRef = match self {
            MetadataBuilder::Topic(mut builder, _) | MetadataBuilder::TimestampType(mut builder) => Arc::new(builder.finish()),
            MetadataBuilder::Partition(mut builder, _) => Arc::new(builder.finish()),
            MetadataBuilder::Offset(mut builder) => Arc::new(builder.finish()),
            MetadataBuilder::Timestamp(values) => Arc::new(TimestampMillisecondArray::from(values).with_timezone(ZONE)),
            MetadataBuilder::Headers { mut names, mut values, ends } => return headers(names.finish(), values.finish(), &ends, wanted),
        };
        if array.data_type() == wanted { Ok(array) } else { arrow_cast::cast(&array, wanted) }
    }
}

/// A map with the field names of the declared type, whatever they are.
fn headers(names: StringArray, values: BinaryArray, ends: &[usize], wanted: &DataType) -> Result<ArrayRef, ArrowError> {
    let DataType::Map(entries, sorted) = wanted else {
        return Err(ArrowError::CastError(format!("headers are a map, not {wanted}")));
    };
    let DataType::Struct(fields) = entries.data_type() else {
        return Err(ArrowError::CastError("a map's entries are pairs".into()));
    };
    let columns: Vec<ArrayRef> = vec![Arc::new(names), Arc::new(values)];
    let columns =
        columns.iter().zip(fields).map(|(column, field)| arrow_cast::cast(column, field.data_type())).collect::<Result<Vec<_>, _>>()?;
    let pairs = StructArray::try_new(fields.clone(), columns, None)?;
    let mut start = 0;
    let offsets = OffsetBuffer::from_lengths(ends.iter().map(|end| {
        let length = end - start;
        start = *end;
        length
    }));
    Ok(Arc::new(MapArray::try_new(Arc::clone(entries), offsets, pairs, None, *sorted)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::cast::AsArray;

    #[test]
    fn the_last_of_a_header_s_values_counts_however_many_headers_there_are() {
        let wanted = readable_type("headers").expect("known");
        for count in [3, 200_000] {
            let keys: Vec<String> = (0..count).map(|index| format!("k{}", index % (count - 1))).collect();
            let values: Vec<String> = (0..count).map(|index| index.to_string()).collect();
            let headers: Vec<(&str, &[u8])> = keys.iter().zip(&values).map(|(key, value)| (key.as_str(), value.as_bytes())).collect();
            let message = MessageView {
                offset: 0,
                timestamp_ms: 0,
                timestamp_type: TimestampType::CreateTime,
                key: None,
                payload: None,
                headers: &headers,
            };
            let mut builder = MetadataBuilder::new("headers", &"t".into(), 0).expect("known");
            builder.append(&message);
            let column = builder.finish(&wanted).expect("a map");
            let map = column.as_map();
            assert_eq!(map.value_length(0), count - 1);
            let (keys, values) = (map.keys().as_string::<i32>(), map.values().as_binary::<i32>());
            // In the order of the values that count.
            assert_eq!((keys.value(0), values.value(0)), ("k1", &b"1"[..]));
            let last = keys.len() - 1;
            assert_eq!((keys.value(last), values.value(last)), ("k0", (count - 1).to_string().as_bytes()));
        }
    }
}

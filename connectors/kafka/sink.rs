//! Writes rows of a table into the epoch's transaction: one message per row, all in one buffer.
//!
//! A row whose message would be larger than the topic or the client takes is refused here, before the seal: a message
//! that can never be written would hold up its slot for ever.

use crate::log::KafkaLog;
use crate::options::{SinkPartitioner, TableOptions, effective};
use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMillisecondType;
use arrow_array::{Array, RecordBatch, TimestampMillisecondArray};
use arrow_schema::{DataType, Schema, TimeUnit};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use streamshield_connectors::formats::{self, FormatScope, RowEncoder, columns_of_scope};
use streamshield_core::ids::{Epoch, RegionId};
use streamshield_core::ports::log::{Log, LogError, LogErrorKind, MessageEntry, MessageSet, TopicSpec};
use streamshield_core::ports::sink::{RefusedRow, Sink, SinkContent, SinkError, SinkWriter};
use streamshield_core::table::{ColumnKind, OptionError, SinkRequest, TableDefinition};

/// Kafka's own default of `max.message.bytes`, until the topic exists.
const MESSAGE_BYTES_DEFAULT: usize = 1_048_588;
/// What a batch of one message weighs beyond its key and value: batch header, record header, lengths.
const MESSAGE_OVERHEAD_BYTES: usize = 128;

/// One table.
pub(crate) struct KafkaSink {
    log: Arc<KafkaLog>,
    options: TableOptions,
    table: TableDefinition,
    columns: Columns,
}

/// Where the parts of a message are among the columns that come.
#[derive(Clone)]
struct Columns {
    value: Vec<usize>,
    key: Vec<usize>,
    timestamp: Option<usize>,
    schema: arrow_schema::SchemaRef,
}

impl KafkaSink {
    pub fn new(log: Arc<KafkaLog>, options: TableOptions, request: SinkRequest) -> Result<Self, SinkError> {
        let table = effective(&request.table);
        let places = |scope| -> Vec<usize> {
            let names: BTreeSet<String> = columns_of_scope(&table, scope).iter().map(|column| column.field.name().clone()).collect();
            let wanted = |index: &usize| {
                request.columns[*index].kind == ColumnKind::Physical && names.contains(request.columns[*index].field.name())
            };
            (0..request.columns.len()).filter(wanted).collect()
        };
        let timestamp =
            request.columns.iter().position(|column| matches!(&column.kind, ColumnKind::Metadata { key, .. } if key == "timestamp"));
        let key = if options.has_key { places(FormatScope::Key) } else { Vec::new() };
        let columns = Columns { value: places(FormatScope::Value), key, timestamp, schema: Arc::clone(&request.schema) };
        Ok(KafkaSink { log, options, table, columns })
    }

    fn error(&self, error: LogError) -> SinkError {
        SinkError { retry: error.kind == LogErrorKind::Retry, message: format!("table '{}': {}", self.table.name, error.message) }
    }

    fn encoder(&self, scope: FormatScope, columns: &[usize]) -> Result<Box<dyn RowEncoder>, SinkError> {
        let wrong = |error: OptionError| SinkError { retry: false, message: format!("table '{}': {}", self.table.name, error.message) };
        let schema = Schema::new(columns.iter().map(|index| Arc::clone(&self.columns.schema.fields()[*index])).collect::<Vec<_>>());
        formats::encoder(&self.table, scope, &Arc::new(schema)).map_err(wrong)
    }
}

impl Sink for KafkaSink {
    fn writer(&self, region: RegionId) -> Result<Box<dyn SinkWriter>, SinkError> {
        let topic = self.log.describe_topic(&self.options.topic).map_err(|error| self.error(error))?;
        let configured = topic.as_ref().and_then(|topic| topic.configs.get("max.message.bytes")?.parse().ok());
        let partitions = topic.as_ref().map_or(1, |topic| topic.partitions.max(1));
        let message_bytes_max =
            configured.unwrap_or(MESSAGE_BYTES_DEFAULT).min(self.log.message_bytes_max()).saturating_sub(MESSAGE_OVERHEAD_BYTES);
        let partition = match self.options.partitioner {
            SinkPartitioner::Default => Partition::ByKey,
            SinkPartitioner::Fixed => Partition::One((region.partition % partitions as u32) as i32),
            SinkPartitioner::RoundRobin => Partition::Next { next: (region.partition % partitions as u32) as i32, count: partitions },
        };
        let key = match self.columns.key.is_empty() {
            true => None,
            false => Some(self.encoder(FormatScope::Key, &self.columns.key)?),
        };
        Ok(Box::new(KafkaSinkWriter {
            value: self.encoder(FormatScope::Value, &self.columns.value)?,
            key,
            columns: self.columns.clone(),
            partition,
            message_bytes_max,
            set: MessageSet::new(self.options.topic.as_str()),
        }))
    }

    fn topic(&self) -> Option<TopicSpec> {
        // −1: the broker's `num.partitions` decides.
        Some(TopicSpec { name: self.options.topic.clone(), partitions: -1, replication_factor: None, configs: BTreeMap::new() })
    }
}

/// Partition of the next message.
enum Partition {
    ByKey,
    One(i32),
    Next { next: i32, count: i32 },
}

impl Partition {
    fn take(&mut self) -> Option<i32> {
        match self {
            Partition::ByKey => None,
            Partition::One(partition) => Some(*partition),
            Partition::Next { next, count } => {
                let partition = *next;
                *next = (partition + 1) % *count;
                Some(partition)
            }
        }
    }
}

/// Encodes the rows of one region.
struct KafkaSinkWriter {
    value: Box<dyn RowEncoder>,
    key: Option<Box<dyn RowEncoder>>,
    columns: Columns,
    partition: Partition,
    message_bytes_max: usize,
    set: MessageSet,
}

/// Ranges of some encoded rows in the buffer.
struct Encoded {
    start: usize,
    ends: Vec<usize>,
}

impl Encoded {
    fn range(&self, row: usize) -> Range<usize> {
        let start = if row == 0 { self.start } else { self.ends[row - 1] };
        start..self.ends[row]
    }
}

fn encode(
    encoder: &mut dyn RowEncoder,
    rows: &RecordBatch,
    columns: &[usize],
    buffer: &mut Vec<u8>,
    refused: &mut BTreeMap<usize, String>,
) -> Result<Encoded, SinkError> {
    let rows = rows.project(columns).map_err(|error| SinkError { retry: false, message: error.to_string() })?;
    let (start, mut ends) = (buffer.len(), Vec::with_capacity(rows.num_rows()));
    for RefusedRow { row, reason } in encoder.encode(&rows, buffer, &mut ends)? {
        refused.entry(row).or_insert(reason);
    }
    Ok(Encoded { start, ends })
}

impl SinkWriter for KafkaSinkWriter {
    fn write(&mut self, rows: &RecordBatch) -> Result<Vec<RefusedRow>, SinkError> {
        let start = self.set.buffer.len();
        let mut refused = BTreeMap::new();
        let value = encode(&mut *self.value, rows, &self.columns.value, &mut self.set.buffer, &mut refused);
        let key = self.key.as_mut().map(|key| encode(&mut **key, rows, &self.columns.key, &mut self.set.buffer, &mut refused)).transpose();
        let timestamps = self.columns.timestamp.map(|index| timestamps(rows, index)).transpose();
        let (value, key, timestamps) = match (value, key, timestamps) {
            (Ok(value), Ok(key), Ok(timestamps)) => (value, key, timestamps),
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
                // Nothing of the batch stays.
                self.set.buffer.truncate(start);
                return Err(error);
            }
        };
        for row in 0..rows.num_rows() {
            if refused.contains_key(&row) {
                continue;
            }
            let (value, key) = (value.range(row), key.as_ref().map(|key| key.range(row)));
            let bytes = value.len() + key.as_ref().map_or(0, Range::len);
            let timestamp_ms = timestamps.as_ref().filter(|values| values.is_valid(row)).map(|values| values.value(row));
            if bytes > self.message_bytes_max {
                refused.insert(
                    row,
                    format!("the message would have {bytes} bytes, topic '{}' takes {}", self.set.topic, self.message_bytes_max),
                );
            } else if timestamp_ms.is_some_and(|timestamp_ms| timestamp_ms < 0) {
                refused.insert(row, "a message's timestamp can't be before 1970".into());
            } else {
                self.set.entries.push(MessageEntry { partition: self.partition.take(), key, value: Some(value), timestamp_ms });
            }
        }
        Ok(refused.into_iter().map(|(row, reason)| RefusedRow { row, reason }).collect())
    }

    fn bytes(&self) -> usize {
        self.set.buffer.len()
    }

    fn seal(&mut self, _epoch: Epoch) -> Option<SinkContent> {
        let next = MessageSet::new(Arc::clone(&self.set.topic));
        let set = std::mem::replace(&mut self.set, next);
        (!set.entries.is_empty()).then_some(SinkContent::Messages(set))
    }
}

fn timestamps(rows: &RecordBatch, index: usize) -> Result<TimestampMillisecondArray, SinkError> {
    let wanted = DataType::Timestamp(TimeUnit::Millisecond, None);
    let cast = arrow_cast::cast(rows.column(index), &wanted).map_err(|error| SinkError { retry: false, message: error.to_string() })?;
    Ok(cast.as_primitive::<TimestampMillisecondType>().clone())
}

//! Writes rows of a table into the epoch's transaction: one message per row, all in one buffer.
//!
//! A row whose message would be larger than the topic or the client takes, or whose timestamp the topic would not take, is
//! refused here, before the seal: in a sealed epoch, a message that can never be written ends the job.

use crate::log::KafkaLog;
use crate::options::{SinkPartitioner, TableOptions, effective};
use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMillisecondType;
use arrow_array::{Array, RecordBatch, TimestampMillisecondArray};
use arrow_schema::{DataType, Schema, TimeUnit};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use streamshield_connectors::formats::{self, FormatScope, RowEncoder, columns_of_scope};
use streamshield_core::ids::{Epoch, RegionId};
use streamshield_core::ports::log::{Log, LogError, LogErrorKind, MessageEntry, MessageSet, TopicSpec};
use streamshield_core::ports::sink::{RefusedRow, Sink, SinkContent, SinkError, SinkWriter};
use streamshield_core::table::{ColumnKind, OptionError, SinkRequest, TableDefinition};

/// Kafka's own default of `max.message.bytes`, until the topic exists.
const MESSAGE_BYTES_DEFAULT: usize = 1_048_588;
/// What a batch of one message weighs beyond its key and value: batch header, record header, lengths.
const MESSAGE_OVERHEAD_BYTES: usize = 128;
/// Kafka's own default of `message.timestamp.after.max.ms`, until the topic exists; into the past there is no limit by default.
const TIMESTAMP_AFTER_MS_DEFAULT: i64 = 3_600_000;
/// How much older a row may be when its epoch is committed, and how far the broker's clock may be from this one.
const TIMESTAMP_MARGIN_MS: i64 = 60_000;

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
        let configured: Option<usize> = topic.as_ref().and_then(|topic| topic.configs.get("max.message.bytes")?.parse().ok());
        if let Some(limit) = topic.as_ref().and_then(|topic| self.log.exceeded_batch_limit(&topic.configs)) {
            let (table, topic) = (&self.table.name, &self.options.topic);
            let message = format!(
                "table '{table}': topic '{topic}' takes batches of at most {limit} bytes (max.message.bytes), and the job's client makes \
                 larger ones: set `kafka: {{batch.size: {limit}}}`"
            );
            return Err(SinkError { retry: false, message });
        }
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
            timestamp_limits: topic.as_ref().map_or(Some(TimestampLimits::DEFAULT), |topic| TimestampLimits::of(&topic.configs)),
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

/// How far a message's timestamp may lie from the broker's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TimestampLimits {
    before_ms_max: i64,
    after_ms_max: i64,
}

impl TimestampLimits {
    const DEFAULT: TimestampLimits = TimestampLimits { before_ms_max: i64::MAX, after_ms_max: TIMESTAMP_AFTER_MS_DEFAULT };

    /// None: the broker sets the time itself and looks at none.
    fn of(configs: &BTreeMap<String, String>) -> Option<TimestampLimits> {
        let ms = |key: &str| configs.get(key).and_then(|value| value.parse::<i64>().ok());
        // Brokers before 3.6 have one limit for both sides, and those before 4.0 obey it where the side's own is not set.
        let both = ms("message.timestamp.difference.max.ms").unwrap_or(i64::MAX);
        let limit = |key: &str| ms(key).filter(|limit| *limit != i64::MAX).unwrap_or(both);
        let limits = TimestampLimits {
            before_ms_max: limit("message.timestamp.before.max.ms"),
            after_ms_max: limit("message.timestamp.after.max.ms"),
        };
        configs.get("message.timestamp.type").is_none_or(|kind| kind != "LogAppendTime").then_some(limits)
    }

    /// Why the broker, whose clock is another one, would refuse this timestamp now or by the time that its epoch is committed.
    fn refusal(&self, timestamp_ms: i64, now_ms: i64) -> Option<String> {
        // Where the limit is short, a whole margin would leave nothing of it.
        let less_margin = |limit: i64| if limit == i64::MAX { limit } else { limit - TIMESTAMP_MARGIN_MS.min(limit / 2) };
        let (after_ms, limit) = (timestamp_ms.saturating_sub(now_ms), less_margin(self.after_ms_max));
        if after_ms > limit {
            return Some(format!(
                "its timestamp is {after_ms} ms ahead, {limit} are allowed (message.timestamp.after.max.ms, less a margin)"
            ));
        }
        let (before_ms, limit) = (now_ms.saturating_sub(timestamp_ms), less_margin(self.before_ms_max));
        (before_ms > limit)
            .then(|| format!("its timestamp is {before_ms} ms old, {limit} are allowed (message.timestamp.before.max.ms, less a margin)"))
    }
}

/// Encodes the rows of one region.
struct KafkaSinkWriter {
    value: Box<dyn RowEncoder>,
    key: Option<Box<dyn RowEncoder>>,
    columns: Columns,
    partition: Partition,
    message_bytes_max: usize,
    /// None: the topic has its own time.
    timestamp_limits: Option<TimestampLimits>,
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
        let limits = self.timestamp_limits.filter(|_| timestamps.is_some()).map(|limits| (limits, wall_ms()));
        for row in 0..rows.num_rows() {
            if refused.contains_key(&row) {
                continue;
            }
            let (value, key) = (value.range(row), key.as_ref().map(|key| key.range(row)));
            let bytes = value.len() + key.as_ref().map_or(0, Range::len);
            let timestamp_ms = timestamps.as_ref().filter(|values| values.is_valid(row)).map(|values| values.value(row));
            let out_of_time = timestamp_ms.and_then(|timestamp_ms| {
                let by_topic = || limits.and_then(|(limits, now_ms)| limits.refusal(timestamp_ms, now_ms));
                no_time_of_a_message(timestamp_ms).map(str::to_string).or_else(by_topic)
            });
            if bytes > self.message_bytes_max {
                refused.insert(
                    row,
                    format!("the message would have {bytes} bytes, topic '{}' takes {}", self.set.topic, self.message_bytes_max),
                );
            } else if let Some(reason) = out_of_time {
                refused.insert(row, reason);
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

/// Why no message can have this time, whatever its topic takes.
fn no_time_of_a_message(timestamp_ms: i64) -> Option<&'static str> {
    match timestamp_ms {
        ..0 => Some("a message's timestamp can't be before 1970"),
        // The client takes it for none, and would write the current time.
        0 => Some("a message's timestamp can't be 1970-01-01 00:00:00 itself; NULL lets the client set it"),
        _ => None,
    }
}

fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

fn timestamps(rows: &RecordBatch, index: usize) -> Result<TimestampMillisecondArray, SinkError> {
    let wanted = DataType::Timestamp(TimeUnit::Millisecond, None);
    let cast = arrow_cast::cast(rows.column(index), &wanted).map_err(|error| SinkError { retry: false, message: error.to_string() })?;
    Ok(cast.as_primitive::<TimestampMillisecondType>().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_700_000_000_000;

    fn limits(configs: &[(&str, &str)]) -> Option<TimestampLimits> {
        TimestampLimits::of(&configs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
    }

    #[test]
    fn a_timestamp_is_refused_where_the_broker_would_refuse_it_before_its_epoch_is_committed() {
        let refused = |limits: TimestampLimits, from_now_ms: i64| limits.refusal(NOW_MS + from_now_ms, NOW_MS).is_some();
        let (default, margin) = (TimestampLimits::DEFAULT, 3_600_000 - TIMESTAMP_MARGIN_MS);
        assert_eq!([-NOW_MS, 0, margin, margin + 1].map(|ms| refused(default, ms)), [false, false, false, true], "Kafka's defaults");
        let day = limits(&[("message.timestamp.before.max.ms", "86400000"), ("message.timestamp.after.max.ms", "1000")]).expect("limited");
        let margin = -86_400_000 + TIMESTAMP_MARGIN_MS;
        assert_eq!([margin - 1, margin, 500, 501].map(|ms| refused(day, ms)), [true, false, false, true]);
        let second = limits(&[("message.timestamp.before.max.ms", "1000")]).expect("limited");
        assert_eq!([-501, -500, 0].map(|ms| refused(second, ms)), [true, false, false], "half of a short limit is left");
        for unlimited in [limits(&[]), limits(&[("message.timestamp.after.max.ms", "9223372036854775807")])] {
            let unlimited = unlimited.expect("a time of the rows");
            assert_eq!([0, i64::MAX].map(|ms| unlimited.refusal(ms, NOW_MS)), [None, None]);
        }
        let (both, unset) = (("message.timestamp.difference.max.ms", "1000"), ("message.timestamp.after.max.ms", "9223372036854775807"));
        for configs in [&[both][..], &[both, unset]] {
            let old_broker = limits(configs).expect("limited");
            assert_eq!([-501, -500, 500, 501].map(|ms| refused(old_broker, ms)), [true, false, false, true], "{configs:?}");
        }
        assert_eq!(limits(&[("message.timestamp.type", "LogAppendTime"), ("message.timestamp.after.max.ms", "0")]), None);
        assert!(limits(&[("message.timestamp.type", "CreateTime")]).is_some());
    }

    #[test]
    fn times_up_to_the_first_millisecond_of_1970_are_no_times_of_messages() {
        assert_eq!([i64::MIN, -1, 0, 1, NOW_MS].map(|ms| no_time_of_a_message(ms).is_some()), [true, true, true, false, false]);
    }
}

//! Tables over the log port: what `connectors/kafka` does, with rows of whole numbers.
//!
//! A message of the input is three numbers: key, value, event time. A message of an output begins with who wrote it (region and epoch), so that the checks
//! see whether it came with its epoch (E-3); then one number per column.

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, SchemaRef};
use std::collections::BTreeMap;
use std::sync::Arc;
use streamshield_core::ids::{Epoch, Offset, RegionId, StageId};
use streamshield_core::ports::Connectors;
use streamshield_core::ports::log::{
    Isolation, Log, LogError, LogErrorKind, LogReader, MessageEntry, MessageSet, ReaderOptions, TakeLimit, TopicPartition, TopicSpec,
    Wakeup,
};
use streamshield_core::ports::sink::{RefusedRow, Sink, SinkConnector, SinkContent, SinkError, SinkWriter};
use streamshield_core::ports::source::{
    BadRecord, Origin, RowOrigins, Source, SourceBatch, SourceConnector, SourceError, SourceErrorKind, SourceReader, Split, SplitId,
    SplitState,
};
use streamshield_core::table::{ColumnKind, OptionError, SinkRequest, SourceRequest, TableDefinition};

/// Region and epoch at the head of an output message.
const HEAD_BYTES: usize = 16;
const BUFFER_BYTES: usize = 1 << 20;
/// Partitions of outputs.
pub const OUTPUT_PARTITIONS: i32 = 3;

/// One row of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub key: i64,
    pub value: i64,
    pub at_ms: i64,
}

impl Row {
    pub fn encode(&self) -> Vec<u8> {
        [self.key, self.value, self.at_ms].iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// None: the bytes are no row.
    pub fn decode(bytes: &[u8]) -> Option<Row> {
        let numbers = numbers(bytes)?;
        let [key, value, at_ms] = numbers.as_slice() else { return None };
        Some(Row { key: *key, value: *value, at_ms: *at_ms })
    }
}

fn numbers(bytes: &[u8]) -> Option<Vec<i64>> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    rest.is_empty().then(|| chunks.iter().map(|chunk| i64::from_le_bytes(*chunk)).collect())
}

/// What names a row in all outputs.
pub fn row_id(partition: i32, offset: Offset) -> i64 {
    (i64::from(partition) << 32) | offset
}

/// The input's partition that a row of this name is in.
pub fn partition_of(id: i64) -> i64 {
    id >> 32
}

/// One message of an output.
pub struct OutputRow {
    pub region: RegionId,
    pub epoch: Epoch,
    pub values: Vec<i64>,
}

impl OutputRow {
    pub fn decode(bytes: &[u8]) -> Option<OutputRow> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let region = RegionId { stage: StageId(u32_at(0)), partition: u32_at(4) };
        let epoch = Epoch(u64::from(u32_at(8)) | (u64::from(u32_at(12)) << 32));
        Some(OutputRow { region, epoch, values: numbers(rest)? })
    }
}

/// The connector `sim`.
#[derive(Clone)]
pub struct SimTables {
    log: Option<Arc<dyn Log>>,
}

impl SimTables {
    pub fn over(log: Arc<dyn Log>) -> SimTables {
        SimTables { log: Some(log) }
    }

    /// For planning.
    pub fn unconnected() -> SimTables {
        SimTables { log: None }
    }

    pub fn add_to(self, connectors: &mut Connectors) {
        connectors.add_source(Arc::new(self.clone()));
        connectors.add_sink(Arc::new(self));
    }

    fn log(&self) -> Result<Arc<dyn Log>, String> {
        self.log.clone().ok_or_else(|| "planning opens nothing".to_owned())
    }
}

fn topic(table: &TableDefinition) -> String {
    table.option("topic").unwrap_or_default().to_owned()
}

impl SourceConnector for SimTables {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn check(&self, _: &TableDefinition) -> Vec<OptionError> {
        Vec::new()
    }

    fn metadata_type(&self, key: &str) -> Option<DataType> {
        (key == "id").then_some(DataType::Int64)
    }

    fn open(&self, request: SourceRequest) -> Result<Arc<dyn Source>, SourceError> {
        let log = self.log().map_err(|message| SourceError { kind: SourceErrorKind::Stop, message })?;
        Ok(Arc::new(SimSource { log, topic: topic(&request.table).into(), request: Arc::new(request) }))
    }

    fn group(&self, table: &TableDefinition) -> Option<(String, String)> {
        Some((topic(table), String::new()))
    }
}

struct SimSource {
    log: Arc<dyn Log>,
    topic: Arc<str>,
    request: Arc<SourceRequest>,
}

fn source_error(error: LogError) -> SourceError {
    let kind = match error.kind {
        LogErrorKind::Retry | LogErrorKind::Missing => SourceErrorKind::Retry,
        LogErrorKind::Invalid => SourceErrorKind::Failed,
        _ => SourceErrorKind::Stop,
    };
    SourceError { kind, message: error.message }
}

impl Source for SimSource {
    fn discover(&self) -> Result<Vec<Split>, SourceError> {
        let stop = |message: String| SourceError { kind: SourceErrorKind::Stop, message };
        let found = self.log.describe_topic(&self.topic).map_err(source_error)?;
        let found = found.ok_or_else(|| stop(format!("there is no topic {}", self.topic)))?;
        let split = |partition: i32| {
            let place = TopicPartition::new(Arc::clone(&self.topic), partition);
            let start = self.log.bounds(&place, Isolation::ReadCommitted).map_err(source_error)?.low;
            Ok(Split { id: partition as SplitId, start, end: None })
        };
        (0..found.partitions).map(split).collect()
    }

    fn reader(&self, wakeup: Arc<Wakeup>) -> Result<Box<dyn SourceReader>, SourceError> {
        let options = ReaderOptions { buffer_bytes: BUFFER_BYTES, ..Default::default() };
        let reader = self.log.reader(options, wakeup).map_err(source_error)?;
        let (topic, request) = (Arc::clone(&self.topic), Arc::clone(&self.request));
        Ok(Box::new(SimSourceReader { reader, topic, request, met_ends: BTreeMap::new() }))
    }
}

struct SimSourceReader {
    reader: Box<dyn LogReader>,
    topic: Arc<str>,
    request: Arc<SourceRequest>,
    met_ends: BTreeMap<SplitId, Offset>,
}

impl SimSourceReader {
    fn place(&self, split: SplitId) -> TopicPartition {
        TopicPartition::new(Arc::clone(&self.topic), split as i32)
    }
}

impl SourceReader for SimSourceReader {
    fn add_split(&mut self, split: &Split, from: Offset) -> Result<(), SourceError> {
        self.met_ends.remove(&split.id);
        self.reader.assign(&self.place(split.id), from).map_err(source_error)
    }

    fn remove_split(&mut self, split: SplitId) {
        // Nothing is read from it any more, whatever the log says.
        let _ = self.reader.unassign(&self.place(split));
        self.met_ends.remove(&split);
    }

    fn met_end(&self, split: SplitId) -> Option<Offset> {
        self.met_ends.get(&split).copied()
    }

    fn take(&mut self, split: SplitId, limit: &TakeLimit) -> Result<SourceBatch, SourceError> {
        let place = self.place(split);
        let (mut rows, mut bad, mut newest_timestamp_ms) = (Vec::new(), Vec::new(), None);
        let taken = self
            .reader
            .take(&place, limit, &mut |messages| {
                for message in messages {
                    newest_timestamp_ms = newest_timestamp_ms.max(Some(message.timestamp_ms));
                    let payload = message.payload.unwrap_or_default();
                    let origin = || Origin {
                        container: place.topic.to_string(),
                        split,
                        offset: message.offset,
                        timestamp_ms: Some(message.timestamp_ms),
                        key: None,
                        payload: Some(payload.to_vec()),
                        headers: Vec::new(),
                    };
                    match Row::decode(payload) {
                        Some(row) => rows.push((row, message.offset)),
                        None => bad.push(BadRecord { origin: origin(), reason: "it is no row".into() }),
                    }
                }
            })
            .map_err(source_error)?;
        self.met_ends.remove(&split);
        self.met_ends.extend(taken.at_end.map(|end| (split, end)));
        let state = if taken.messages > 0 { SplitState::More } else { SplitState::Idle };
        let offsets: Vec<Offset> = rows.iter().map(|(_, offset)| *offset).collect();
        let origins: Option<Box<dyn RowOrigins>> = match self.request.keep_origins && !rows.is_empty() {
            true => Some(Box::new(Origins { place: place.clone(), offsets })),
            false => None,
        };
        Ok(SourceBatch {
            rows: batch(&self.request, place.partition, &rows).map_err(|message| SourceError { kind: SourceErrorKind::Stop, message })?,
            to: taken.next,
            records: taken.messages,
            bytes: taken.bytes,
            bad,
            newest_timestamp_ms,
            origins,
            state,
        })
    }
}

struct Origins {
    place: TopicPartition,
    offsets: Vec<Offset>,
}

impl RowOrigins for Origins {
    fn origin(&self, row: usize) -> Origin {
        Origin {
            container: self.place.topic.to_string(),
            split: self.place.partition as SplitId,
            offset: self.offsets[row],
            timestamp_ms: None,
            key: None,
            payload: None,
            headers: Vec::new(),
        }
    }
}

/// The columns that are asked for.
fn batch(request: &SourceRequest, partition: i32, rows: &[(Row, Offset)]) -> Result<RecordBatch, String> {
    let column = |number: usize| -> Result<ArrayRef, String> {
        let column = &request.columns[number];
        let value: fn(i32, &(Row, Offset)) -> i64 = match (&column.kind, column.field.name().as_str()) {
            (ColumnKind::Metadata { .. }, _) => |partition, (_, offset)| row_id(partition, *offset),
            (_, "k") => |_, (row, _)| row.key,
            (_, "v") => |_, (row, _)| row.value,
            (_, "ts") => |_, (row, _)| row.at_ms,
            (_, other) => return Err(format!("there is no column {other}")),
        };
        let values: ArrayRef = Arc::new(rows.iter().map(|row| Some(value(partition, row))).collect::<Int64Array>());
        arrow_cast::cast(&values, request.schema.field(number).data_type()).map_err(|error| error.to_string())
    };
    let columns = (0..request.columns.len()).map(column).collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(SchemaRef::clone(&request.schema), columns, &options).map_err(|error| error.to_string())
}

impl SinkConnector for SimTables {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn check(&self, _: &TableDefinition) -> Vec<OptionError> {
        Vec::new()
    }

    fn metadata_type(&self, _: &str) -> Option<DataType> {
        None
    }

    fn open(&self, request: SinkRequest) -> Result<Arc<dyn Sink>, SinkError> {
        self.log().map_err(|message| SinkError { retry: false, message })?;
        Ok(Arc::new(SimSink { topic: topic(&request.table).into() }))
    }
}

struct SimSink {
    topic: Arc<str>,
}

impl Sink for SimSink {
    fn writer(&self, region: RegionId) -> Result<Box<dyn SinkWriter>, SinkError> {
        Ok(Box::new(SimSinkWriter { region, set: MessageSet::new(Arc::clone(&self.topic)) }))
    }

    fn topic(&self) -> Option<TopicSpec> {
        let configs = Default::default();
        Some(TopicSpec { name: self.topic.to_string(), partitions: OUTPUT_PARTITIONS, replication_factor: None, configs })
    }
}

struct SimSinkWriter {
    region: RegionId,
    set: MessageSet,
}

impl SinkWriter for SimSinkWriter {
    fn write(&mut self, rows: &RecordBatch) -> Result<Vec<RefusedRow>, SinkError> {
        let failed = |error: arrow_schema::ArrowError| SinkError { retry: false, message: error.to_string() };
        let columns = rows.columns().iter().map(|column| arrow_cast::cast(column, &DataType::Int64)).collect::<Result<Vec<_>, _>>();
        let columns = columns.map_err(failed)?;
        for row in 0..rows.num_rows() {
            let start = self.set.buffer.len();
            self.set.buffer.extend_from_slice(&self.region.stage.0.to_le_bytes());
            self.set.buffer.extend_from_slice(&self.region.partition.to_le_bytes());
            // The epoch is known at the seal.
            self.set.buffer.extend_from_slice(&0u64.to_le_bytes());
            for column in &columns {
                let values = column.as_primitive::<Int64Type>();
                let value = if values.is_null(row) { i64::MIN } else { values.value(row) };
                self.set.buffer.extend_from_slice(&value.to_le_bytes());
            }
            let partition = Some(self.region.partition as i32 % OUTPUT_PARTITIONS);
            let value = Some(start..self.set.buffer.len());
            self.set.entries.push(MessageEntry { partition, key: None, value, timestamp_ms: None });
        }
        Ok(Vec::new())
    }

    fn bytes(&self) -> usize {
        self.set.buffer.len()
    }

    fn seal(&mut self, epoch: Epoch) -> Option<SinkContent> {
        let next = MessageSet::new(Arc::clone(&self.set.topic));
        let mut set = std::mem::replace(&mut self.set, next);
        for entry in &set.entries {
            let start = entry.value.as_ref().map_or(0, |value| value.start);
            set.buffer[start + 8..start + HEAD_BYTES].copy_from_slice(&epoch.0.to_le_bytes());
        }
        (!set.entries.is_empty()).then_some(SinkContent::Messages(set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_from_its_bytes_and_anything_else_is_none() {
        let row = Row { key: 3, value: -7, at_ms: 1_000 };
        assert_eq!(Row::decode(&row.encode()), Some(row));
        assert_eq!(Row::decode(b"no row"), None);
        assert_eq!(Row::decode(&[0; 16]), None);
    }
}

//! Reads a table from a topic: one split per partition, positions are offsets.
//!
//! Start and end are resolved to offsets once, at the job's first start. With `earliest-offset`, a partition whose region has never done anything begins at
//! what is oldest by then, should its start have expired meanwhile. The end of a bounded scan may lie behind control
//! markers and aborted messages, which are never seen: a split has ended when its reader *stands* at or behind the end, or
//! has met a message that lies behind it, not when a message with the last offset came.
//!
//! Messages are decoded from the fetch buffer. Bad records are copied out; the originals of good rows are kept with
//! their buffer, and only on demand.

use crate::admin;
use crate::connector::source_error;
use crate::fetch::FetchedBatch;
use crate::log::KafkaLog;
use crate::log::QUERY_TIMEOUT;
use crate::options::{Bounded, GroupReset, Startup, TableOptions};
use crate::reader::{BatchTaken, KafkaReader, PREPARE_TIMEOUT};
use crate::rows::{RowDecoder, Rows};
use arrow_array::RecordBatch;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::*;
use streamshield_core::ports::source::*;
use streamshield_core::table::{OptionError, SourceRequest};

/// Bound of what one reader of a table buffers, over its partitions, in bytes (M-1).
const BUFFER_BYTES: usize = 24 << 20;
/// How long a slot waits for the answer to where a partition ends, and for how long it then asks no more: an idle split can wait, its slot can't.
const END_TIMEOUT: Duration = Duration::from_millis(200);
const END_PAUSE: Duration = Duration::from_secs(2);

/// One table.
pub(crate) struct KafkaSource {
    log: Arc<KafkaLog>,
    options: TableOptions,
    request: SourceRequest,
}

impl KafkaSource {
    pub fn new(log: Arc<KafkaLog>, options: TableOptions, request: SourceRequest) -> Result<Self, OptionError> {
        // Fails early when a column can't be decoded.
        RowDecoder::new(&request, &options, 0)?;
        Ok(KafkaSource { log, options, request })
    }

    fn error(&self, error: LogError) -> SourceError {
        source_error(&self.request.table.name, error)
    }

    fn stop(&self, message: impl std::fmt::Display) -> SourceError {
        SourceError { kind: SourceErrorKind::Stop, message: format!("table '{}': {message}", self.request.table.name) }
    }

    fn resolve(&self, partition: &TopicPartition, at: StartAt) -> Result<Offset, SourceError> {
        self.log.resolve(partition, at).map_err(|error| self.error(error))
    }

    fn group_offset(&self, partition: &TopicPartition) -> Result<Option<Offset>, SourceError> {
        let group = self.options.group.as_deref().unwrap_or_default();
        self.log.group_offset(group, partition).map_err(|error| self.error(error))
    }

    fn start(&self, partition: &TopicPartition) -> Result<Offset, SourceError> {
        match &self.options.startup {
            Startup::Earliest => self.resolve(partition, StartAt::Beginning),
            Startup::Latest => self.resolve(partition, StartAt::End),
            Startup::TimestampMs(timestamp_ms) => self.resolve(partition, StartAt::Timestamp(*timestamp_ms)),
            Startup::Specific(offsets) => {
                let missing = || self.stop(format!("'scan.startup.specific-offsets' has no offset for partition {}", partition.partition));
                offsets.get(&partition.partition).copied().ok_or_else(missing)
            }
            Startup::Group(reset) => match (self.group_offset(partition)?, reset) {
                (Some(offset), _) => Ok(offset),
                (None, GroupReset::Earliest) => self.resolve(partition, StartAt::Beginning),
                (None, GroupReset::Latest) => self.resolve(partition, StartAt::End),
                (None, GroupReset::Stop) => {
                    let group = self.options.group.as_deref().unwrap_or_default();
                    Err(self.stop(format!(
                        "group '{group}' has no offset in {partition}: set 'properties.auto.offset.reset' to 'earliest' or 'latest'"
                    )))
                }
            },
        }
    }

    fn end(&self, partition: &TopicPartition) -> Result<Option<Offset>, SourceError> {
        match &self.options.bounded {
            Bounded::Unbounded => Ok(None),
            Bounded::Latest => self.resolve(partition, StartAt::End).map(Some),
            Bounded::TimestampMs(timestamp_ms) => self.resolve(partition, StartAt::Timestamp(*timestamp_ms)).map(Some),
            Bounded::Group => match self.group_offset(partition)? {
                Some(offset) => Ok(Some(offset)),
                None => Err(self.stop(format!("the group has no offset in {partition} to end at"))),
            },
            Bounded::Specific(offsets) => match offsets.get(&partition.partition) {
                Some(offset) => Ok(Some(*offset)),
                None => Err(self.stop(format!("'scan.bounded.specific-offsets' has no offset for partition {}", partition.partition))),
            },
        }
    }
}

impl Source for KafkaSource {
    fn discover(&self) -> Result<Vec<Split>, SourceError> {
        let query = self.log.query(Isolation::ReadCommitted).map_err(|error| self.error(error))?;
        let partitions = admin::partitions(&query, &self.options.topic, QUERY_TIMEOUT).map_err(|error| self.error(error))?;
        let Some(partitions) = partitions else {
            return Err(self.stop(format!("topic '{}' does not exist at {}", self.options.topic, self.log.servers())));
        };
        let topic: Arc<str> = self.options.topic.as_str().into();
        let split = |number: i32| {
            let partition = TopicPartition::new(Arc::clone(&topic), number);
            Ok(Split { id: number as SplitId, start: self.start(&partition)?, end: self.end(&partition)? })
        };
        (0..partitions).map(split).collect()
    }

    fn reader(&self, wakeup: Arc<Wakeup>) -> Result<Box<dyn SourceReader>, SourceError> {
        Ok(Box::new(self.table_reader(self.partitions(QUERY_TIMEOUT).unwrap_or(0), wakeup)?))
    }

    fn connected_reader(&self, wakeup: Arc<Wakeup>) -> Option<Box<dyn SourceReader>> {
        // Not known is not kept: a reader has to know for how many it is made.
        let mut reader = self.table_reader(self.partitions(PREPARE_TIMEOUT)?, wakeup).ok()?;
        reader.reader.prepare(&[Arc::clone(&reader.topic)]);
        Some(Box::new(reader))
    }
}

impl KafkaSource {
    /// None: the broker does not say at the moment.
    fn partitions(&self, timeout: Duration) -> Option<usize> {
        let query = self.log.query(Isolation::ReadCommitted).ok()?;
        let partitions = admin::partitions(&query, &self.options.topic, timeout).ok()??;
        usize::try_from(partitions).ok()
    }

    fn table_reader(&self, partitions_max: usize, wakeup: Arc<Wakeup>) -> Result<KafkaTableReader, SourceError> {
        let options = ReaderOptions { buffer_bytes: BUFFER_BYTES, partitions_max, ..Default::default() };
        Ok(KafkaTableReader {
            reader: self.log.kafka_reader(options, wakeup).map_err(|error| self.error(error))?,
            log: Arc::clone(&self.log),
            topic: self.options.topic.as_str().into(),
            options: self.options.clone(),
            request: self.request.clone(),
            splits: BTreeMap::new(),
            asked_in_vain: Cell::new(None),
        })
    }
}

/// A split of a reader.
struct OpenSplit {
    partition: TopicPartition,
    end: Option<Offset>,
    next: Offset,
    decoder: RowDecoder,
    /// Nothing of it was ever taken: should its start have expired, it begins with what is oldest.
    may_begin_later: bool,
}

/// Reads some partitions of a table.
struct KafkaTableReader {
    reader: KafkaReader,
    log: Arc<KafkaLog>,
    topic: Arc<str>,
    options: TableOptions,
    request: SourceRequest,
    splits: BTreeMap<SplitId, OpenSplit>,
    /// When the last question for the end of a partition was not answered.
    asked_in_vain: Cell<Option<Instant>>,
}

impl SourceReader for KafkaTableReader {
    fn add_split(&mut self, split: &Split, from: Offset) -> Result<(), SourceError> {
        let name = &self.request.table.name;
        let stop = |error: OptionError| SourceError { kind: SourceErrorKind::Stop, message: format!("table '{name}': {}", error.message) };
        let partition = TopicPartition::new(Arc::clone(&self.topic), split.id as i32);
        let decoder = RowDecoder::new(&self.request, &self.options, partition.partition).map_err(stop)?;
        if split.end.is_none_or(|end| from < end) {
            self.reader.assign(&partition, from).map_err(|error| source_error(name, error))?;
        }
        self.splits.insert(split.id, OpenSplit { partition, end: split.end, next: from, decoder, may_begin_later: false });
        Ok(())
    }

    fn may_begin_later(&mut self, id: SplitId) {
        if let Some(split) = self.splits.get_mut(&id) {
            split.may_begin_later = matches!(self.options.startup, Startup::Earliest);
        }
    }

    fn remove_split(&mut self, id: SplitId) {
        if let Some(split) = self.splits.remove(&id)
            && let Err(error) = self.reader.unassign(&split.partition)
        {
            tracing::debug!(target: "kafka", partition = %split.partition, "{error}");
        }
    }

    fn serve_idle(&mut self) {
        self.reader.serve_idle();
    }

    fn stands_at_end(&self, id: SplitId, position: Offset) -> bool {
        if self.asked_in_vain.get().is_some_and(|at| at.elapsed() < END_PAUSE) {
            return false;
        }
        let partition = TopicPartition::new(Arc::clone(&self.topic), id as i32);
        // Behind the last record lie the markers of its and of later transactions, and the position behind some of them.
        let met = self.met_end(id).filter(|_| self.splits.get(&id).is_some_and(|split| split.next <= position));
        match self.log.bounds_within(&partition, Isolation::ReadCommitted, END_TIMEOUT) {
            Ok(bounds) => bounds.high <= position.max(bounds.low).max(met.unwrap_or(position)),
            Err(error) => {
                tracing::debug!(target: "kafka", %partition, "{error}");
                self.asked_in_vain.set(Some(Instant::now()));
                false
            }
        }
    }

    fn met_end(&self, id: SplitId) -> Option<Offset> {
        self.splits.get(&id).and_then(|split| self.reader.met_end(&split.partition))
    }

    fn take(&mut self, id: SplitId, limit: &TakeLimit) -> Result<SourceBatch, SourceError> {
        let name = &self.request.table.name;
        let unknown = || SourceError { kind: SourceErrorKind::Stop, message: format!("table '{name}' has no split {id}") };
        let split = self.splits.get_mut(&id).ok_or_else(unknown)?;
        if split.end.is_some_and(|end| split.next >= end) {
            return Ok(nothing(&self.request, split.next, SplitState::Finished));
        }
        let ends_at_split = split.end.is_some_and(|end| limit.end.is_none_or(|wanted| end <= wanted));
        let end = if ends_at_split { split.end } else { limit.end };
        let BatchTaken { batch, taken, past_end } = match self.reader.take_batch(&split.partition, &TakeLimit { end, ..*limit }) {
            Ok(taken) => taken,
            Err(error) if error.kind == LogErrorKind::OutOfRange && split.may_begin_later => {
                let bounds = self.log.bounds_within(&split.partition, Isolation::ReadCommitted, END_TIMEOUT);
                let low = bounds.map_err(|error| source_error(name, error))?.low;
                if low <= split.next {
                    // Nothing has expired: it is another, shorter topic.
                    return Err(source_error(name, error));
                }
                tracing::warn!(partition = %split.partition, start = split.next, low, "the start has expired: begins with what is oldest now");
                self.reader.assign(&split.partition, low).map_err(|error| source_error(name, error))?;
                return Ok(nothing(&self.request, split.next, SplitState::Idle));
            }
            Err(error) => return Err(source_error(name, error)),
        };
        // From here on, what expires unseen is lost.
        split.may_begin_later &= taken.messages == 0 && taken.at_end.is_none();
        if taken.messages > 0 {
            split.next = taken.next;
        }
        let is_finished = split.end.is_some_and(|end| taken.next >= end || taken.at_end.is_some_and(|at_end| at_end >= end))
            || (past_end && ends_at_split);
        let state = match (is_finished, taken.messages) {
            (true, _) => SplitState::Finished,
            (false, 0) => SplitState::Idle,
            (false, _) => SplitState::More,
        };
        if taken.messages == 0 {
            return Ok(nothing(&self.request, split.next, state));
        }
        let Rows { rows, bad, kept, newest_timestamp_ms } = split
            .decoder
            .decode(&batch.messages)
            .map_err(|error| SourceError { kind: SourceErrorKind::Stop, message: format!("table '{name}': {error}") })?;
        let topic = Arc::clone(&self.topic);
        let origins = (self.request.keep_origins && rows.num_rows() > 0)
            .then(|| Box::new(KafkaOrigins { batch, kept, topic, split: id }) as Box<dyn RowOrigins>);
        Ok(SourceBatch { rows, to: taken.next, records: taken.messages, bytes: taken.bytes, bad, newest_timestamp_ms, origins, state })
    }
}

fn nothing(request: &SourceRequest, to: Offset, state: SplitState) -> SourceBatch {
    let rows = RecordBatch::new_empty(Arc::clone(&request.schema));
    SourceBatch { rows, to, records: 0, bytes: 0, bad: Vec::new(), newest_timestamp_ms: None, origins: None, state }
}

/// The messages of a batch, as long as its step is not done.
struct KafkaOrigins {
    batch: FetchedBatch,
    /// Message of each row; None when every message is a row.
    kept: Option<Vec<u32>>,
    topic: Arc<str>,
    split: SplitId,
}

impl RowOrigins for KafkaOrigins {
    fn origin(&self, row: usize) -> Origin {
        let index = self.kept.as_ref().map_or(row, |kept| kept[row] as usize);
        let message = &self.batch.messages[index];
        let mut headers = Vec::new();
        message.headers_into(&mut headers);
        origin_of(&self.topic, self.split, &message.view(&headers))
    }
}

/// A copy of a message, for the dead-letter topic.
pub(crate) fn origin_of(topic: &str, split: SplitId, message: &MessageView<'_>) -> Origin {
    Origin {
        container: topic.to_string(),
        split,
        offset: message.offset,
        timestamp_ms: (message.timestamp_ms >= 0).then_some(message.timestamp_ms),
        key: message.key.map(<[u8]>::to_vec),
        payload: message.payload.map(<[u8]>::to_vec),
        headers: message.headers.iter().map(|(name, value)| (name.to_string(), value.to_vec())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_schema::Schema;
    use streamshield_core::table::TableDefinition;

    #[test]
    fn while_no_broker_answers_the_end_is_asked_for_once_and_briefly() {
        let log = KafkaLog::elsewhere([("bootstrap.servers".to_string(), "127.0.0.1:1".to_string())].into()).expect("unconnected");
        let options = [("connector", "kafka"), ("topic", "t"), ("format", "json"), ("scan.startup.mode", "earliest-offset")];
        let table = TableDefinition {
            name: "t".into(),
            columns: vec![],
            options: options.map(|(key, value)| (key.to_string(), value.to_string())).into(),
            primary_key: vec![],
        };
        let reader = KafkaTableReader {
            reader: log.kafka_reader(ReaderOptions::default(), Arc::default()).expect("unconnected"),
            log,
            topic: "t".into(),
            options: TableOptions::read(&table).expect("valid"),
            request: SourceRequest { table, columns: vec![], schema: Arc::new(Schema::empty()), keep_origins: false },
            splits: BTreeMap::new(),
            asked_in_vain: Cell::new(None),
        };
        let asked = Instant::now();
        assert!(!reader.stands_at_end(0, 0));
        assert!(asked.elapsed() < END_PAUSE, "{:?}", asked.elapsed());
        let in_vain = reader.asked_in_vain.get().expect("noted");
        reader.asked_in_vain.set(Some(in_vain + END_PAUSE));
        assert!(!reader.stands_at_end(0, 0));
        assert_eq!(reader.asked_in_vain.get(), Some(in_vain + END_PAUSE), "not asked again");
    }
}

//! Records in and out: produce, fetch, list offsets.

use std::sync::Arc;

use bytes::Bytes;

use super::batch::{self, BatchHeader};
use super::compression::record_area;
use super::event::Event;
use super::partition::{BATCH_OVERHEAD_BYTES, Fetched, Isolation, SequenceCheck};
use super::{LogCore, LogError, Topic};

/// The answer to an accepted batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    pub base_offset: i64,
    /// Set where the topic has `LogAppendTime`.
    pub log_append_time_ms: Option<i64>,
    pub log_start_offset: i64,
}

/// Which offset of a partition is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    Earliest,
    /// The end: of the stable part when reading committed.
    Latest(Isolation),
    /// The first record at or after a time.
    AtTime {
        timestamp_ms: i64,
    },
    /// The record with the newest timestamp.
    NewestTime,
}

impl LogCore {
    /// Appends one batch as a producer sent it. A repeated batch of an idempotent producer is answered like the first time.
    pub fn produce(
        &mut self,
        now_ms: i64,
        transactional_id: Option<&str>,
        topic: &str,
        partition: i32,
        records: &Bytes,
    ) -> Result<Produced, LogError> {
        let target = self.topic(topic)?;
        let log = target.partition(partition)?;
        let header = check_batch(now_ms, target, records)?;
        if header.producer_id >= 0 {
            self.check_transaction_of(&header, transactional_id, topic, partition)?;
            if let SequenceCheck::Duplicate { base_offset } = log.check_sequence(&header)? {
                return Ok(Produced { base_offset, log_append_time_ms: None, log_start_offset: log.start_offset() });
            }
        }
        let base_offset = log.high_watermark();
        let log_append_time_ms = target.config.has_log_append_time.then_some(now_ms);
        self.make_room(now_ms, records.len() as u64 + BATCH_OVERHEAD_BYTES)?;
        let batch = batch::place(records, base_offset, log_append_time_ms);
        self.commit(Event::BatchAppended { topic: Arc::from(topic), partition, appended_ms: now_ms, batch });
        let log_start_offset = self.partition(topic, partition)?.start_offset();
        Ok(Produced { base_offset, log_append_time_ms, log_start_offset })
    }

    /// A transactional batch needs an open transaction of its producer that holds the partition (KIP-890's check on the
    /// broker); a plain one must not slip into an open transaction.
    fn check_transaction_of(
        &self,
        header: &BatchHeader,
        transactional_id: Option<&str>,
        topic: &str,
        partition: i32,
    ) -> Result<(), LogError> {
        if !header.is_transactional() {
            let is_mixed = self.partition(topic, partition)?.has_open_transaction(header.producer_id);
            return if is_mixed { Err(LogError::InvalidTransactionState) } else { Ok(()) };
        }
        let transactional_id = transactional_id.ok_or(LogError::InvalidTransactionState)?;
        let state = self.transaction_of(transactional_id, header.producer_id, header.producer_epoch).map_err(|error| match error {
            LogError::ProducerFenced => LogError::InvalidProducerEpoch,
            other => other,
        })?;
        let is_member = state.open_since_ms.is_some() && state.partitions.contains(&(topic.to_owned(), partition));
        if is_member { Ok(()) } else { Err(LogError::InvalidTransactionState) }
    }

    /// Never silent loss: at the limit only what retention lets go is trimmed, else the producer has to wait.
    fn make_room(&mut self, now_ms: i64, needed_bytes: u64) -> Result<(), LogError> {
        if self.held_bytes + needed_bytes > self.limits.memory_limit_bytes {
            self.enforce_retention(now_ms);
        }
        if self.held_bytes + needed_bytes > self.limits.memory_limit_bytes { Err(LogError::MemoryLimit) } else { Ok(()) }
    }

    /// Whole batches from an offset on; see [`super::partition::Partition::read`].
    pub fn fetch(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        isolation: Isolation,
        bytes_max: usize,
        at_least_one: bool,
    ) -> Result<Fetched, LogError> {
        self.partition(topic, partition)?.read(offset, isolation, bytes_max, at_least_one)
    }

    /// Offset and timestamp of what was asked for; `None` when no record is that new.
    pub fn list_offset(&self, topic: &str, partition: i32, spec: OffsetSpec) -> Result<Option<(i64, Option<i64>)>, LogError> {
        let log = self.partition(topic, partition)?;
        let with_time = |(offset, timestamp_ms)| (offset, Some(timestamp_ms));
        Ok(match spec {
            OffsetSpec::Earliest => Some((log.start_offset(), None)),
            OffsetSpec::Latest(Isolation::ReadCommitted) => Some((log.last_stable_offset(), None)),
            OffsetSpec::Latest(Isolation::ReadUncommitted) => Some((log.high_watermark(), None)),
            OffsetSpec::AtTime { timestamp_ms } => log.offset_for_time(timestamp_ms).map(with_time),
            OffsetSpec::NewestTime => log.latest_timestamp().map(with_time),
        })
    }
}

fn check_batch(now_ms: i64, topic: &Topic, records: &Bytes) -> Result<BatchHeader, LogError> {
    let config = &topic.config;
    let header = batch::check_produced(records)?;
    if records.len() > config.message_bytes_max {
        return Err(LogError::BatchTooLarge);
    }
    let is_late = header.base_timestamp_ms < now_ms.saturating_sub(config.timestamp_before_ms_max);
    let is_early = header.max_timestamp_ms > now_ms.saturating_add(config.timestamp_after_ms_max);
    if !config.has_log_append_time && (is_late || is_early) {
        return Err(LogError::InvalidTimestamp);
    }
    if config.is_compacted
        && let Some(area) = record_area(&header, records)
    {
        let has_null_key = |record: Option<batch::RecordView<'_>>| record.is_none_or(|record| record.key.is_none());
        if batch::records(&area).any(has_null_key) {
            return Err(LogError::InvalidRecord);
        }
    }
    Ok(header)
}

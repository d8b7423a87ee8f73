//! One partition: its batches, the idempotent producers that write to it, and which transactions are open or aborted.
//!
//! Decisions ([`Partition::check_sequence`]) and changes ([`Partition::apply_batch`]) are apart: recovery applies the
//! same batches without asking again. Readers under read-committed isolation see batches below the *last stable
//! offset*, the first offset of the oldest open transaction, and get the list of aborted transactions to skip.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::batch::{self, Batch};
use super::error::LogError;
use super::event::{PartitionMarks, ProducerMark};

/// Latest batches per producer that a retry is recognised by, as in Kafka.
const SEQUENCES_REMEMBERED: usize = 5;
/// What a batch costs in memory beyond its bytes.
pub(super) const BATCH_OVERHEAD_BYTES: u64 = 192;

/// Which records a reader may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    ReadUncommitted,
    ReadCommitted,
}

/// What a read returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    pub batches: Vec<Bytes>,
    pub high_watermark: i64,
    pub last_stable_offset: i64,
    pub log_start_offset: i64,
    /// Producer id and first offset of each aborted transaction in the range; empty when reading uncommitted.
    pub aborted: Vec<(i64, i64)>,
}

/// What the log says to a batch with a sequence number.
#[derive(Debug, PartialEq, Eq)]
pub enum SequenceCheck {
    Append,
    /// The same batch was appended before, at this offset.
    Duplicate {
        base_offset: i64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Aborted {
    producer_id: i64,
    first_offset: i64,
    marker_offset: i64,
}

#[derive(Clone, Debug)]
struct Producer {
    epoch: i16,
    recent: VecDeque<(i32, i32, i64)>,
    seen_ms: i64,
}

/// See the module text.
#[derive(Clone, Debug, Default)]
pub struct Partition {
    start_offset: i64,
    next_offset: i64,
    pub(super) batches: VecDeque<Batch>,
    producers: BTreeMap<i64, Producer>,
    open: BTreeMap<i64, i64>,
    aborted: Vec<Aborted>,
    held_bytes: u64,
    /// Batches up to here were compacted before.
    pub(super) clean_until: i64,
}

impl Partition {
    pub fn start_offset(&self) -> i64 {
        self.start_offset
    }
    /// The offset that the next record gets.
    pub fn high_watermark(&self) -> i64 {
        self.next_offset
    }
    /// The first offset of the oldest open transaction, or the end; never before the log's start.
    pub fn last_stable_offset(&self) -> i64 {
        self.stable_end().max(self.start_offset)
    }
    /// As the last stable offset, but a transaction whose first records were trimmed still begins where it began: a batch
    /// that reaches over the start must not be taken for a decided one.
    pub(super) fn stable_end(&self) -> i64 {
        self.open.values().copied().min().unwrap_or(self.next_offset)
    }
    /// Memory that the batches take.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
    pub fn has_open_transaction(&self, producer_id: i64) -> bool {
        self.open.contains_key(&producer_id)
    }

    /// Checks epoch and sequence of an idempotent producer's batch.
    pub fn check_sequence(&self, header: &batch::BatchHeader) -> Result<SequenceCheck, LogError> {
        let Some(producer) = self.producers.get(&header.producer_id) else {
            return Ok(SequenceCheck::Append); // unknown, or forgotten: any start is taken, as in Kafka
        };
        if header.producer_epoch < producer.epoch {
            return Err(LogError::InvalidProducerEpoch);
        }
        let last_sequence = header.last_sequence();
        let expected = if header.producer_epoch > producer.epoch {
            0
        } else {
            let same = |seen: &&(i32, i32, i64)| seen.0 == header.base_sequence && seen.1 == last_sequence;
            if let Some((_, _, base_offset)) = producer.recent.iter().find(same) {
                return Ok(SequenceCheck::Duplicate { base_offset: *base_offset });
            }
            producer.recent.back().map_or(0, |seen| seen.1.wrapping_add(1) & i32::MAX)
        };
        if header.base_sequence == expected { Ok(SequenceCheck::Append) } else { Err(LogError::OutOfOrderSequence) }
    }

    /// Takes a placed batch, of a client or an end marker, into the log.
    pub fn apply_batch(&mut self, batch: Batch) {
        let header = &batch.header;
        if header.producer_id >= 0 {
            self.note_producer(&batch);
            if header.is_control() {
                let commit = batch::marker_outcome(&batch.bytes).unwrap_or(false);
                if let Some(first_offset) = self.open.remove(&header.producer_id).filter(|_| !commit) {
                    let marker_offset = batch.base_offset;
                    self.aborted.push(Aborted { producer_id: header.producer_id, first_offset, marker_offset });
                }
            } else if header.is_transactional() {
                self.open.entry(header.producer_id).or_insert(batch.base_offset);
            }
        }
        self.next_offset = self.next_offset.max(batch.last_offset + 1);
        self.held_bytes += batch_cost(&batch);
        self.batches.push_back(batch);
    }

    fn note_producer(&mut self, batch: &Batch) {
        let header = &batch.header;
        let fresh = Producer { epoch: header.producer_epoch, recent: VecDeque::new(), seen_ms: batch.appended_ms };
        let producer = self.producers.entry(header.producer_id).or_insert_with(|| fresh.clone());
        if header.producer_epoch > producer.epoch {
            *producer = fresh;
        }
        producer.seen_ms = producer.seen_ms.max(batch.appended_ms);
        if !header.is_control() {
            producer.recent.push_back((header.base_sequence, header.last_sequence(), batch.base_offset));
            if producer.recent.len() > SEQUENCES_REMEMBERED {
                producer.recent.pop_front();
            }
        }
    }

    /// Whole batches from `offset` on, up to `bytes_max`; `at_least_one` lets the first one exceed it, so that a reader
    /// with a small limit still moves on.
    pub fn read(&self, offset: i64, isolation: Isolation, bytes_max: usize, at_least_one: bool) -> Result<Fetched, LogError> {
        if offset < self.start_offset || offset > self.next_offset {
            return Err(LogError::OffsetOutOfRange);
        }
        let end = match isolation {
            Isolation::ReadCommitted => self.stable_end(),
            Isolation::ReadUncommitted => self.next_offset,
        };
        let first = self.batches.partition_point(|batch| batch.last_offset < offset);
        let mut fetched = Fetched {
            high_watermark: self.next_offset,
            last_stable_offset: self.last_stable_offset(),
            log_start_offset: self.start_offset,
            ..Fetched::default()
        };
        let (mut taken_bytes, mut last_offset) = (0, None);
        for batch in self.batches.range(first..) {
            let fits = taken_bytes + batch.bytes.len() <= bytes_max || (at_least_one && taken_bytes == 0);
            if batch.base_offset >= end || !fits {
                break;
            }
            taken_bytes += batch.bytes.len();
            last_offset = Some(batch.last_offset);
            fetched.batches.push(batch.bytes.clone());
        }
        if let (Isolation::ReadCommitted, Some(last_offset)) = (isolation, last_offset) {
            fetched.aborted = self.aborted_between(offset, last_offset).collect();
        }
        Ok(fetched)
    }

    fn aborted_between(&self, from: i64, last_offset: i64) -> impl Iterator<Item = (i64, i64)> {
        // sorted by marker: everything before the first marker at or behind `from` is over
        let first = self.aborted.partition_point(|aborted| aborted.marker_offset < from);
        let touches = move |aborted: &&Aborted| aborted.first_offset <= last_offset;
        self.aborted[first..].iter().filter(touches).map(|aborted| (aborted.producer_id, aborted.first_offset))
    }

    /// Was this batch part of a transaction that was aborted?
    pub(super) fn is_aborted(&self, batch: &Batch) -> bool {
        let first = self.aborted.partition_point(|aborted| aborted.marker_offset < batch.base_offset);
        batch.header.is_transactional()
            && self.aborted[first..]
                .iter()
                .any(|aborted| aborted.producer_id == batch.header.producer_id && aborted.first_offset <= batch.base_offset)
    }

    /// The first record at or after a time: its offset and timestamp.
    pub fn offset_for_time(&self, timestamp_ms: i64) -> Option<(i64, i64)> {
        let candidate = |batch: &&Batch| {
            batch.header.max_timestamp_ms >= timestamp_ms && batch.last_offset >= self.start_offset && !batch.header.is_control()
        };
        let batch = self.batches.iter().find(candidate)?;
        let header = &batch.header;
        let area = (!header.has_log_append_time()).then(|| super::compression::record_area(&batch.header, &batch.bytes)).flatten();
        for record in batch::records(area.as_deref().unwrap_or_default()).map_while(|record| record) {
            let offset = batch.base_offset + record.offset_delta;
            let record_ms = header.base_timestamp_ms + record.timestamp_delta_ms;
            if record_ms >= timestamp_ms && offset >= self.start_offset {
                return Some((offset, record_ms));
            }
        }
        Some((batch.base_offset.max(self.start_offset), header.max_timestamp_ms))
    }

    /// The newest timestamp in the log and the last offset of its batch.
    pub fn latest_timestamp(&self) -> Option<(i64, i64)> {
        let newest = self.batches.iter().filter(|batch| !batch.header.is_control()).max_by_key(|batch| batch.header.max_timestamp_ms)?;
        Some((newest.last_offset, newest.header.max_timestamp_ms))
    }

    /// Forgets what lies before `start_offset`; a batch that reaches over it stays whole.
    pub fn move_start(&mut self, start_offset: i64) {
        self.start_offset = self.start_offset.max(start_offset.min(self.next_offset));
        while let Some(batch) = self.batches.front().filter(|batch| batch.last_offset < self.start_offset) {
            self.held_bytes -= batch_cost(batch);
            self.batches.pop_front();
        }
        self.aborted.retain(|aborted| aborted.marker_offset >= self.start_offset);
    }

    /// Where the start should be by `retention.ms` and `retention.bytes`, if it should move. Nothing at or above the
    /// last stable offset goes. A batch is old when both its newest record and its append are: test data with event
    /// times of last year is not lost minutes after it was written.
    pub fn retention_start(&self, now_ms: i64, retention_ms: i64, retention_bytes: i64) -> Option<i64> {
        let stable = self.stable_end();
        let mut excess = if retention_bytes < 0 { 0 } else { self.held_bytes.saturating_sub(retention_bytes as u64) };
        let mut start = None;
        for batch in &self.batches {
            let newest_ms = batch.header.max_timestamp_ms.max(batch.appended_ms);
            let is_old = retention_ms >= 0 && newest_ms < now_ms.saturating_sub(retention_ms);
            let cost = batch_cost(batch);
            if batch.last_offset >= stable || !(is_old || (retention_bytes >= 0 && excess >= cost)) {
                break;
            }
            excess = excess.saturating_sub(cost);
            start = Some(batch.last_offset + 1);
        }
        start
    }

    /// Has a producer been silent since then, with nothing open?
    pub fn has_silent_producer(&self, silent_since_ms: i64) -> bool {
        self.producers.iter().any(|(id, producer)| producer.seen_ms < silent_since_ms && !self.open.contains_key(id))
    }

    /// Forgets such producers.
    pub fn expire_producers(&mut self, silent_since_ms: i64) {
        let open = &self.open;
        self.producers.retain(|id, producer| producer.seen_ms >= silent_since_ms || open.contains_key(id));
    }

    /// Replaces the batches below `clean_until` by what compaction left of them; `aborted_kept` tells which aborted
    /// transactions still have records.
    pub(super) fn replace_batches(&mut self, batches: VecDeque<Batch>, clean_until: i64) {
        self.held_bytes = batches.iter().map(batch_cost).sum();
        self.batches = batches;
        self.clean_until = clean_until;
        let oldest_unclean = clean_until;
        self.aborted.retain(|aborted| aborted.marker_offset >= oldest_unclean);
    }

    pub fn marks(&self) -> PartitionMarks {
        let producer = |(id, producer): (&i64, &Producer)| ProducerMark {
            producer_id: *id,
            epoch: producer.epoch,
            seen_ms: producer.seen_ms,
            recent: producer.recent.iter().copied().collect(),
        };
        PartitionMarks {
            start_offset: self.start_offset,
            next_offset: self.next_offset,
            open: self.open.clone(),
            aborted: self.aborted.iter().map(|a| (a.producer_id, a.first_offset, a.marker_offset)).collect(),
            producers: self.producers.iter().map(producer).collect(),
        }
    }

    /// Sets what the batches alone don't tell; called after they have been applied.
    pub fn restore_marks(&mut self, marks: PartitionMarks) {
        self.next_offset = marks.next_offset;
        self.open = marks.open;
        let aborted = |(producer_id, first_offset, marker_offset)| Aborted { producer_id, first_offset, marker_offset };
        self.aborted = marks.aborted.into_iter().map(aborted).collect();
        let producer =
            |mark: ProducerMark| (mark.producer_id, Producer { epoch: mark.epoch, recent: mark.recent.into(), seen_ms: mark.seen_ms });
        self.producers = marks.producers.into_iter().map(producer).collect();
        self.move_start(marks.start_offset);
    }
}

fn batch_cost(batch: &Batch) -> u64 {
    batch.bytes.len() as u64 + BATCH_OVERHEAD_BYTES
}

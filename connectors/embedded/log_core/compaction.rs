//! Log compaction: of each key the latest record stays.
//!
//! It works on the *cleanable* range: below the last stable offset, older than `min.compaction.lag.ms`, and never the last
//! batch, so that a reader always finds the log's end. Records keep their offsets; a batch that loses some is
//! rebuilt with the rest. Batches of aborted transactions and the end markers of the range go: nothing refers to them
//! any more. A tombstone stays for `delete.retention.ms`, and as long as a batch that can't be read (see
//! [`super::compression`]) might still hold an older value of its key.

use std::collections::{BTreeMap, VecDeque};

use super::batch::{self, Batch, BatchHeader};
use super::compression::record_area;
use super::config::TopicConfig;
use super::partition::Partition;

/// Compacts when the share of dirty bytes, or the age of the oldest dirty batch, asks for it.
pub fn compact_if_due(partition: &mut Partition, config: &TopicConfig, now_ms: i64) {
    let cleanable_until = cleanable_end(partition, config, now_ms);
    let clean_until = partition.clean_until;
    let dirty = |batch: &&Batch| batch.base_offset >= clean_until && batch.base_offset < cleanable_until;
    let first_dirty = partition.batches.partition_point(|batch| batch.base_offset < clean_until);
    let mut dirty_bytes = 0u64;
    let mut oldest_ms = None;
    for batch in partition.batches.range(first_dirty..).take_while(dirty) {
        dirty_bytes += batch.bytes.len() as u64;
        oldest_ms.get_or_insert(batch.appended_ms);
    }
    let Some(oldest_ms) = oldest_ms else { return };
    let is_overdue = now_ms.saturating_sub(oldest_ms) > config.max_compaction_lag_ms;
    let share = dirty_bytes as f64 / partition.held_bytes().max(1) as f64;
    if is_overdue || share >= config.min_cleanable_dirty_ratio {
        compact(partition, cleanable_until, now_ms.saturating_sub(config.delete_retention_ms));
    }
}

fn cleanable_end(partition: &Partition, config: &TopicConfig, now_ms: i64) -> i64 {
    let last = partition.batches.back().map_or(0, |batch| batch.base_offset);
    let young_since_ms = now_ms.saturating_sub(config.min_compaction_lag_ms);
    let first_young = partition.batches.partition_point(|batch| batch.appended_ms <= young_since_ms);
    let end = partition.stable_end().min(last);
    partition.batches.get(first_young).map_or(end, |batch| end.min(batch.base_offset))
}

/// Compacts the batches below `end`; tombstones appended before `tombstones_until_ms` go as well.
pub fn compact(partition: &mut Partition, end: i64, tombstones_until_ms: i64) {
    let (latest, has_opaque) = latest_offsets(partition, end);
    let mut kept = VecDeque::with_capacity(partition.batches.len());
    for batch in &partition.batches {
        if batch.base_offset >= end {
            kept.push_back(batch.clone());
        } else if !batch.header.is_control() && !partition.is_aborted(batch) {
            let drops_tombstones = !has_opaque && batch.appended_ms < tombstones_until_ms;
            kept.extend(compact_batch(batch, &latest, drops_tombstones));
        }
    }
    partition.replace_batches(kept, end);
}

/// The last offset of each key in the range, and whether the range has batches that can't be read.
fn latest_offsets(partition: &Partition, end: i64) -> (BTreeMap<Vec<u8>, i64>, bool) {
    let mut latest = BTreeMap::new();
    let mut has_opaque = false;
    for batch in partition.batches.iter().take_while(|batch| batch.base_offset < end) {
        if batch.header.is_control() || partition.is_aborted(batch) {
            continue;
        }
        let Some(area) = record_area(&batch.header, &batch.bytes) else {
            has_opaque = true;
            continue;
        };
        for record in batch::records(&area).map_while(|record| record) {
            if let Some(key) = record.key {
                latest.insert(key.to_vec(), batch.base_offset + record.offset_delta);
            }
        }
    }
    (latest, has_opaque)
}

fn compact_batch(batch: &Batch, latest: &BTreeMap<Vec<u8>, i64>, drops_tombstones: bool) -> Option<Batch> {
    let Some(area) = record_area(&batch.header, &batch.bytes) else { return Some(batch.clone()) };
    let (mut body, mut kept_count, mut count) = (Vec::new(), 0, 0);
    for record in batch::records(&area).map_while(|record| record) {
        count += 1;
        let is_latest = record.key.is_none_or(|key| latest.get(key) == Some(&(batch.base_offset + record.offset_delta)));
        if is_latest && (record.value.is_some() || !drops_tombstones) {
            body.extend_from_slice(record.encoded);
            kept_count += 1;
        }
    }
    match kept_count {
        0 => None,
        _ if kept_count == count => Some(batch.clone()),
        _ => {
            let uncompressed = batch.header.attributes & !0x07;
            let header = BatchHeader { record_count: kept_count, attributes: uncompressed, ..batch.header.clone() };
            let bytes = batch::assemble(batch.base_offset, &header, &body);
            Some(Batch { header, bytes, ..batch.clone() })
        }
    }
}

//! Events as bytes. Fields are written one after the other, integers big-endian, strings and bytes with a length before.
//!
//! ```text
//! event = tag u8, fields          string = length u32, UTF-8
//! ```
//! A tag is never given a second meaning; a change of fields takes a new tag.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::log_core::event::{CommittedOffset, Event, PartitionMarks, ProducerMark, TopicId, TopicPartition, TransactionState};

/// Appends one event.
pub fn encode(event: &Event, out: &mut BytesMut) {
    match event {
        Event::TopicCreated { topic, id, partition_count, config } => {
            out.put_u8(1);
            put_str(out, topic);
            out.put_u128(id.0);
            out.put_i32(*partition_count);
            put_config(out, config);
        }
        Event::TopicDeleted { topic } => {
            out.put_u8(2);
            put_str(out, topic);
        }
        Event::TopicConfigured { topic, config } => {
            out.put_u8(3);
            put_str(out, topic);
            put_config(out, config);
        }
        Event::PartitionsAdded { topic, partition_count } => {
            out.put_u8(4);
            put_str(out, topic);
            out.put_i32(*partition_count);
        }
        Event::BatchAppended { topic, partition, appended_ms, batch } => {
            out.put_u8(5);
            put_str(out, topic);
            out.put_i32(*partition);
            out.put_i64(*appended_ms);
            put_bytes(out, batch);
        }
        Event::StartMoved { topic, partition, start_offset } => {
            out.put_u8(6);
            put_str(out, topic);
            out.put_i32(*partition);
            out.put_i64(*start_offset);
        }
        Event::PartitionRestored { topic, partition, marks } => {
            out.put_u8(7);
            put_str(out, topic);
            out.put_i32(*partition);
            put_marks(out, marks);
        }
        Event::ProducerIdsTaken { next_producer_id } => {
            out.put_u8(8);
            out.put_i64(*next_producer_id);
        }
        Event::TopicIdsTaken { next_topic_number } => {
            out.put_u8(9);
            out.put_u64(*next_topic_number);
        }
        Event::TransactionChanged { transactional_id, state } => {
            out.put_u8(10);
            put_str(out, transactional_id);
            put_transaction(out, state);
        }
        Event::TransactionForgotten { transactional_id } => {
            out.put_u8(11);
            put_str(out, transactional_id);
        }
        Event::OffsetsCommitted { group, offsets } => {
            out.put_u8(12);
            put_str(out, group);
            put_offsets(out, offsets);
        }
        Event::OffsetsStaged { group, producer_id, offsets } => {
            out.put_u8(13);
            put_str(out, group);
            out.put_i64(*producer_id);
            put_offsets(out, offsets);
        }
        Event::StagedOffsetsEnded { group, producer_id, commit } => {
            out.put_u8(14);
            put_str(out, group);
            out.put_i64(*producer_id);
            out.put_u8(u8::from(*commit));
        }
        Event::GroupDeleted { group } => {
            out.put_u8(15);
            put_str(out, group);
        }
        Event::ProducersExpired { silent_since_ms } => {
            out.put_u8(16);
            out.put_i64(*silent_since_ms);
        }
    }
}

/// Reads one event; `None` when the bytes are not one.
pub fn decode(from: &mut Bytes) -> Option<Event> {
    Some(match from.try_get_u8().ok()? {
        1 => Event::TopicCreated {
            topic: get_str(from)?,
            id: TopicId(from.try_get_u128().ok()?),
            partition_count: from.try_get_i32().ok()?,
            config: get_config(from)?,
        },
        2 => Event::TopicDeleted { topic: get_str(from)? },
        3 => Event::TopicConfigured { topic: get_str(from)?, config: get_config(from)? },
        4 => Event::PartitionsAdded { topic: get_str(from)?, partition_count: from.try_get_i32().ok()? },
        5 => Event::BatchAppended {
            topic: Arc::from(get_str(from)?),
            partition: from.try_get_i32().ok()?,
            appended_ms: from.try_get_i64().ok()?,
            batch: Bytes::copy_from_slice(&get_bytes(from)?), // its own allocation: a slice would hold the whole file
        },
        6 => Event::StartMoved { topic: get_str(from)?, partition: from.try_get_i32().ok()?, start_offset: from.try_get_i64().ok()? },
        7 => Event::PartitionRestored { topic: get_str(from)?, partition: from.try_get_i32().ok()?, marks: get_marks(from)? },
        8 => Event::ProducerIdsTaken { next_producer_id: from.try_get_i64().ok()? },
        9 => Event::TopicIdsTaken { next_topic_number: from.try_get_u64().ok()? },
        10 => Event::TransactionChanged { transactional_id: get_str(from)?, state: get_transaction(from)? },
        11 => Event::TransactionForgotten { transactional_id: get_str(from)? },
        12 => Event::OffsetsCommitted { group: get_str(from)?, offsets: get_offsets(from)? },
        13 => Event::OffsetsStaged { group: get_str(from)?, producer_id: from.try_get_i64().ok()?, offsets: get_offsets(from)? },
        14 => {
            Event::StagedOffsetsEnded { group: get_str(from)?, producer_id: from.try_get_i64().ok()?, commit: from.try_get_u8().ok()? != 0 }
        }
        15 => Event::GroupDeleted { group: get_str(from)? },
        16 => Event::ProducersExpired { silent_since_ms: from.try_get_i64().ok()? },
        _ => return None,
    })
}

fn put_str(out: &mut BytesMut, text: &str) {
    put_bytes(out, text.as_bytes());
}
fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}
fn get_bytes(from: &mut Bytes) -> Option<Bytes> {
    let length = from.try_get_u32().ok()? as usize;
    (length <= from.len()).then(|| from.split_to(length))
}
fn get_str(from: &mut Bytes) -> Option<String> {
    String::from_utf8(get_bytes(from)?.to_vec()).ok()
}

fn put_list<T>(out: &mut BytesMut, items: impl ExactSizeIterator<Item = T>, mut put: impl FnMut(&mut BytesMut, T)) {
    out.put_u32(items.len() as u32);
    for item in items {
        put(out, item);
    }
}
fn get_list<T, C: FromIterator<T>>(from: &mut Bytes, mut get: impl FnMut(&mut Bytes) -> Option<T>) -> Option<C> {
    let count = from.try_get_u32().ok()?;
    (0..count).map(|_| get(from)).collect()
}

fn put_config(out: &mut BytesMut, config: &BTreeMap<String, String>) {
    put_list(out, config.iter(), |out, (name, value)| {
        put_str(out, name);
        put_str(out, value);
    });
}
fn get_config(from: &mut Bytes) -> Option<BTreeMap<String, String>> {
    get_list(from, |from| Some((get_str(from)?, get_str(from)?)))
}

fn put_topic_partition(out: &mut BytesMut, (topic, partition): &TopicPartition) {
    put_str(out, topic);
    out.put_i32(*partition);
}
fn get_topic_partition(from: &mut Bytes) -> Option<TopicPartition> {
    Some((get_str(from)?, from.try_get_i32().ok()?))
}

fn put_offsets(out: &mut BytesMut, offsets: &[(TopicPartition, CommittedOffset)]) {
    put_list(out, offsets.iter(), |out, (at, committed)| {
        put_topic_partition(out, at);
        out.put_i64(committed.offset);
        out.put_i32(committed.leader_epoch);
        put_str(out, &committed.metadata);
    });
}
fn get_offsets(from: &mut Bytes) -> Option<Vec<(TopicPartition, CommittedOffset)>> {
    get_list(from, |from| {
        let at = get_topic_partition(from)?;
        let (offset, leader_epoch) = (from.try_get_i64().ok()?, from.try_get_i32().ok()?);
        Some((at, CommittedOffset { offset, leader_epoch, metadata: get_str(from)? }))
    })
}

fn put_transaction(out: &mut BytesMut, state: &TransactionState) {
    out.put_i64(state.producer_id);
    out.put_i16(state.producer_epoch);
    out.put_i64(state.timeout_ms);
    out.put_i64(state.open_since_ms.unwrap_or(i64::MIN));
    put_list(out, state.partitions.iter(), put_topic_partition);
    put_list(out, state.groups.iter(), |out, group| put_str(out, group));
    out.put_u8(state.last_outcome.map_or(2, u8::from));
    out.put_i64(state.changed_ms);
}
fn get_transaction(from: &mut Bytes) -> Option<TransactionState> {
    Some(TransactionState {
        producer_id: from.try_get_i64().ok()?,
        producer_epoch: from.try_get_i16().ok()?,
        timeout_ms: from.try_get_i64().ok()?,
        open_since_ms: Some(from.try_get_i64().ok()?).filter(|since| *since != i64::MIN),
        partitions: get_list::<_, BTreeSet<_>>(from, get_topic_partition)?,
        groups: get_list::<_, BTreeSet<_>>(from, get_str)?,
        last_outcome: match from.try_get_u8().ok()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        },
        changed_ms: from.try_get_i64().ok()?,
    })
}

fn put_marks(out: &mut BytesMut, marks: &PartitionMarks) {
    out.put_i64(marks.start_offset);
    out.put_i64(marks.next_offset);
    put_list(out, marks.open.iter(), |out, (producer_id, first_offset)| {
        out.put_i64(*producer_id);
        out.put_i64(*first_offset);
    });
    put_list(out, marks.aborted.iter(), |out, (producer_id, first_offset, marker_offset)| {
        out.put_i64(*producer_id);
        out.put_i64(*first_offset);
        out.put_i64(*marker_offset);
    });
    put_list(out, marks.producers.iter(), |out, producer| {
        out.put_i64(producer.producer_id);
        out.put_i16(producer.epoch);
        out.put_i64(producer.seen_ms);
        put_list(out, producer.recent.iter(), |out, (first, last, base_offset)| {
            out.put_i32(*first);
            out.put_i32(*last);
            out.put_i64(*base_offset);
        });
    });
}
fn get_marks(from: &mut Bytes) -> Option<PartitionMarks> {
    let get_i64 = |from: &mut Bytes| from.try_get_i64().ok();
    let get_i32 = |from: &mut Bytes| from.try_get_i32().ok();
    Some(PartitionMarks {
        start_offset: get_i64(from)?,
        next_offset: get_i64(from)?,
        open: get_list(from, |from| Some((get_i64(from)?, get_i64(from)?)))?,
        aborted: get_list(from, |from| Some((get_i64(from)?, get_i64(from)?, get_i64(from)?)))?,
        producers: get_list(from, |from| {
            Some(ProducerMark {
                producer_id: get_i64(from)?,
                epoch: from.try_get_i16().ok()?,
                seen_ms: get_i64(from)?,
                recent: get_list(from, |from| Some((get_i32(from)?, get_i32(from)?, get_i64(from)?)))?,
            })
        })?,
    })
}

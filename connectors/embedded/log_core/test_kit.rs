//! Batches and calls for the tests of the core.

use bytes::{Bytes, BytesMut};

use super::batch::{self, BatchHeader};
use super::{Isolation, Limits, LogCore};

pub const TOPIC: &str = "t";
/// An incarnation and a time like any other.
pub const NOW_MS: i64 = 1_790_000_000_000;

pub fn core() -> LogCore {
    core_with(Limits::default())
}

pub fn core_with(limits: Limits) -> LogCore {
    LogCore::new(limits, 7)
}

/// What a producer says of itself in a batch.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    pub id: i64,
    pub epoch: i16,
    pub sequence: i32,
    pub is_transactional: bool,
}

pub const NOBODY: Sender = Sender { id: -1, epoch: -1, sequence: -1, is_transactional: false };

/// A batch of key-value records; a value of `None` is a tombstone.
pub fn batch_of(sender: Sender, timestamp_ms: i64, records: &[(&str, Option<&str>)]) -> Bytes {
    let mut body = BytesMut::new();
    for (delta, (key, value)) in (0..).zip(records) {
        batch::encode_record(&mut body, delta, 0, Some(key.as_bytes()), value.map(str::as_bytes), &[]);
    }
    let header = BatchHeader {
        attributes: if sender.is_transactional { 0x10 } else { 0 },
        last_offset_delta: records.len() as i32 - 1,
        base_timestamp_ms: timestamp_ms,
        max_timestamp_ms: timestamp_ms,
        producer_id: sender.id,
        producer_epoch: sender.epoch,
        base_sequence: sender.sequence,
        record_count: records.len() as i32,
    };
    batch::assemble(0, &header, &body)
}

/// What a consumer makes of a partition: offset and key of each record it would hand out. It skips aborted transactions as
/// clients do: from the list in the answer, until the abort marker.
pub fn visible(core: &LogCore, partition: i32, isolation: Isolation, bytes_max: usize) -> Vec<(i64, String)> {
    let log = core.partition(TOPIC, partition).expect("the topic exists");
    let mut position = log.start_offset();
    let mut seen = Vec::new();
    loop {
        let fetched = core.fetch(TOPIC, partition, position, isolation, bytes_max, true).expect("the position is in range");
        if fetched.batches.is_empty() {
            return seen;
        }
        let mut pending = fetched.aborted.clone();
        pending.sort_by_key(|(_, first_offset)| *first_offset);
        let mut aborting = std::collections::BTreeSet::new();
        for bytes in &fetched.batches {
            let batch = batch::Batch::stored(bytes.clone(), 0).expect("a stored batch is whole");
            while let Some((producer_id, _)) = pending.first().filter(|(_, first_offset)| *first_offset <= batch.last_offset) {
                aborting.insert(*producer_id);
                pending.remove(0);
            }
            let header = &batch.header;
            if header.is_control() {
                if batch::marker_outcome(bytes) == Some(false) {
                    aborting.remove(&header.producer_id);
                }
            } else if !(header.is_transactional() && aborting.contains(&header.producer_id)) {
                for record in batch::records(&bytes[batch::BATCH_HEADER_BYTES..]) {
                    let record = record.expect("a stored record is whole");
                    let offset = batch.base_offset + record.offset_delta;
                    if offset >= position {
                        seen.push((offset, String::from_utf8_lossy(record.key.unwrap_or_default()).into_owned()));
                    }
                }
            }
            position = position.max(batch.last_offset + 1);
        }
    }
}

pub fn keys(core: &LogCore, partition: i32, isolation: Isolation) -> Vec<String> {
    visible(core, partition, isolation, usize::MAX).into_iter().map(|(_, key)| key).collect()
}

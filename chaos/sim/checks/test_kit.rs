//! Records, messages and transactions for the tests of the checks.

use crate::world::{Entry, Message, Transaction};
use bytes::Bytes;
use streamshield_core::epoch::{EpochRecord, Step};
use streamshield_core::ids::{Epoch, Incarnation, Offset, PlanFingerprint, RegionId, StageId};
use streamshield_core::ports::log::TopicPartition;
use streamshield_core::watermark::Watermark;

pub const REGION: RegionId = RegionId { stage: StageId(1), partition: 0 };
pub const WRITER: &str = "job-1-0";
pub const CHANGELOG: &str = "job-count-changelog";

/// An epoch that reads up to `position`.
pub fn record(writer: &str, epoch: u64, from: Offset, position: Offset) -> EpochRecord {
    EpochRecord {
        version: 1,
        region: REGION,
        epoch: Epoch(epoch),
        incarnation: Incarnation(1),
        transactional_id: writer.into(),
        plan: PlanFingerprint(1),
        now_ms: epoch as i64,
        steps: if from == position { vec![] } else { vec![Step::Read { input: 0, from, to: position }] },
        positions: vec![position],
        upstreams: vec![],
        watermark: Watermark(position),
        digest: None,
        delta: None,
        finished: false,
    }
}

pub fn message(topic: &str, payload: impl Into<Bytes>) -> Message {
    Message {
        partition: TopicPartition::new(topic, 0),
        offset: 0,
        timestamp_ms: 0,
        has_log_append_time: false,
        key: None,
        payload: Some(payload.into()),
        headers: vec![],
    }
}

pub fn in_changelog(record: &EpochRecord) -> Message {
    message(CHANGELOG, record.encode())
}

pub fn committed(writer: &str, messages: Vec<Message>) -> Entry {
    let transactional_id = writer.to_owned();
    Entry::Ended(Transaction { transactional_id, producer_id: 1000, number: 1, is_committed: true, messages })
}

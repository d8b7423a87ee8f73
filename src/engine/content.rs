//! A sealed epoch: content that never changes until its commit is known.
//!
//! ```text
//! SealedEpoch ── sink rows ────────────┐
//!            ├── exchange rows ────────┤ cut into messages at each attempt,
//!            ├── dead letters, late ───┤ all in one transaction (E-3)
//!            ├── delta, in chunks ─────┤
//!            └── epoch record, last ───┘
//! ```
//! Exchange rows of all regions of a slot that go to the same partition share messages: a message is a sequence of frames, one per
//! region (or several, when a region's rows are many), each with its upstream's watermark.

use crate::exchange::frame::FrameEncoder;
use crate::flight::Notes;
use crate::progress::EpochCounts;
use crate::topics::EXCHANGE_MESSAGE_BYTES;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use std::collections::BTreeMap;
use std::sync::Arc;
use streamshield_core::cluster::DiedIn;
use streamshield_core::epoch::{EpochRecord, Step};
use streamshield_core::ids::{Epoch, Offset};
use streamshield_core::mutants;
use streamshield_core::ports::log::{LogError, LogErrorKind, OutMessage, TopicPartition, TransactionalWriter};
use streamshield_core::ports::sink::SinkContent;
use streamshield_core::ports::state::Flush;
use streamshield_core::watermark::UpstreamWatermark;

/// A delta is cut into messages of this size; the topics allow twice as much.
pub const CHANGELOG_CHUNK_BYTES: usize = 512 << 10;
/// Keys of the messages in a changelog: for people who look at it, and to tell a chunk from a record.
pub const DELTA_KEY: &[u8] = b"delta";
pub const RECORD_KEY: &[u8] = b"epoch";
/// How far a message's time may lie ahead of its epoch's beginning: an epoch stays open for less, and brokers take an hour.
const TIMESTAMP_AHEAD_MS_MAX: i64 = 60_000;

/// Rows of one epoch for an exchange.
pub struct ExchangeContent {
    pub topic: Arc<str>,
    pub schema: SchemaRef,
    /// Per target partition. Without rows a partition still gets the watermark when `announce` is set.
    pub rows: Vec<Vec<RecordBatch>>,
    pub watermark: UpstreamWatermark,
    /// The watermark moved: every partition hears of it.
    pub announce: bool,
}

/// Everything that one region commits in one epoch.
pub struct SealedEpoch {
    pub record: EpochRecord,
    /// Under which its region is with the slot.
    pub assignment: Offset,
    pub changelog: TopicPartition,
    /// Its record will lie in the changelog at or behind this.
    pub changelog_from: Offset,
    /// What the epoch changed, for the changelog (Tier 2).
    pub delta: Option<Vec<u8>>,
    pub exchange: Option<ExchangeContent>,
    pub sink: Option<SinkContent>,
    /// Dead letters and late rows.
    pub messages: Vec<OutMessage>,
    /// Goes back to the engine once the epoch is committed.
    pub flush: Option<Flush>,
    pub counts: EpochCounts,
}

impl SealedEpoch {
    pub fn epoch(&self) -> Epoch {
        self.record.epoch
    }
}

/// Sends the content of several regions into an open transaction; the epoch records come last. `notes` are the caller's to end.
pub fn send_all(writer: &mut dyn TransactionalWriter, epochs: &[SealedEpoch], notes: &mut Notes) -> Result<(), LogError> {
    for epoch in epochs {
        if let Some(SinkContent::Messages(messages)) = &epoch.sink {
            writer.send_set(messages)?;
        }
        for message in epoch.messages.iter().filter(|_| !mutants::is_on("drop-dead-letter")) {
            writer.send(message)?;
        }
    }
    send_exchanges(writer, epochs, notes)?;
    for epoch in epochs {
        if let Some(delta) = &epoch.delta {
            let mut chunks = delta.chunks(CHANGELOG_CHUNK_BYTES);
            // A delta of no bytes still has its one message: the record says how many precede it.
            let first = chunks.next().unwrap_or_default();
            for chunk in std::iter::once(first).chain(chunks) {
                writer.send(&to_changelog(epoch, DELTA_KEY, chunk.to_vec()))?;
            }
        }
        writer.send(&to_changelog(epoch, RECORD_KEY, epoch.record.encode()))?;
    }
    Ok(())
}

fn to_changelog(epoch: &SealedEpoch, key: &[u8], payload: Vec<u8>) -> OutMessage {
    OutMessage {
        topic: epoch.changelog.topic.clone(),
        partition: Some(epoch.changelog.partition),
        key: Some(key.to_vec()),
        payload: Some(payload),
        headers: Vec::new(),
        timestamp_ms: None,
    }
}

/// A message to an exchange partition that is being filled with frames.
#[derive(Default)]
struct Filling {
    payload: Vec<u8>,
    newest_timestamp_ms: Option<i64>,
}

fn send_exchanges(writer: &mut dyn TransactionalWriter, epochs: &[SealedEpoch], notes: &mut Notes) -> Result<(), LogError> {
    let mut filling: BTreeMap<(Arc<str>, usize), Filling> = BTreeMap::new();
    for epoch in epochs {
        let Some(content) = &epoch.exchange else { continue };
        // Where it begins to read, as the slot would name it. An epoch alone may be another one each time (`DiedIn`).
        let position = epoch.record.steps.iter().find_map(|step| match step {
            Step::Read { from, .. } => Some(*from),
            _ => None,
        });
        notes.at(DiedIn { region: epoch.record.region, epoch: epoch.epoch(), position });
        let mut encoder = FrameEncoder::new(content.schema.clone());
        for (partition, rows) in content.rows.iter().enumerate() {
            if rows.is_empty() && !content.announce {
                continue;
            }
            let frames = encode_frames(&mut encoder, epoch, content, rows)?;
            let slot = (content.topic.clone(), partition);
            for frame in frames {
                let message = filling.entry(slot.clone()).or_default();
                if message.payload.len() + frame.len() > EXCHANGE_MESSAGE_BYTES && !message.payload.is_empty() {
                    send_exchange(writer, &slot, std::mem::take(message))?;
                }
                message.payload.extend_from_slice(&frame);
                // A record's own clock may be wrong: brokers refuse what lies far in the future.
                let latest_ms = epoch.record.now_ms + TIMESTAMP_AHEAD_MS_MAX;
                let newest_ms = epoch.counts.newest_timestamp_ms.map(|newest_ms| newest_ms.min(latest_ms));
                message.newest_timestamp_ms = message.newest_timestamp_ms.max(newest_ms);
            }
        }
    }
    for (slot, message) in filling {
        send_exchange(writer, &slot, message)?;
    }
    Ok(())
}

fn send_exchange(writer: &mut dyn TransactionalWriter, (topic, partition): &(Arc<str>, usize), message: Filling) -> Result<(), LogError> {
    writer.send(&OutMessage {
        topic: topic.clone(),
        partition: Some(*partition as i32),
        key: None,
        payload: Some(message.payload),
        headers: Vec::new(),
        // Carries the newest source timestamp through the stages, for the latency metric.
        timestamp_ms: message.newest_timestamp_ms,
    })
}

/// Frames of one region for one partition, each below the message limit. Only the last one states the epoch's watermark; the others
/// keep what the reader already knows, so that no row of the epoch finds itself behind its own epoch's watermark.
fn encode_frames(
    encoder: &mut FrameEncoder,
    epoch: &SealedEpoch,
    content: &ExchangeContent,
    rows: &[RecordBatch],
) -> Result<Vec<Vec<u8>>, LogError> {
    let invalid = |error: String| LogError::new(LogErrorKind::Invalid, error);
    let rows = match rows {
        [] => None,
        [one] => Some(one.clone()),
        several => Some(arrow_select::concat::concat_batches(&content.schema, several).map_err(|error| invalid(error.to_string()))?),
    };
    let Some(rows) = rows else {
        let mut frame = Vec::new();
        encoder
            .encode(epoch.record.region, epoch.epoch(), content.watermark, None, &mut frame)
            .map_err(|error| invalid(error.to_string()))?;
        return Ok(vec![frame]);
    };
    let mut frames = Vec::new();
    let mut pending = vec![rows];
    while let Some(rows) = pending.pop() {
        let mut frame = Vec::new();
        let watermark = if pending.is_empty() { Some(content.watermark) } else { None };
        encoder
            .encode(epoch.record.region, epoch.epoch(), watermark.unwrap_or(UNCHANGED), Some(&rows), &mut frame)
            .map_err(|error| invalid(error.to_string()))?;
        if frame.len() > EXCHANGE_MESSAGE_BYTES && rows.num_rows() > 1 {
            let half = rows.num_rows() / 2;
            pending.push(rows.slice(half, rows.num_rows() - half));
            pending.push(rows.slice(0, half));
            continue;
        }
        frames.push(frame);
    }
    Ok(frames)
}

/// States nothing new: a watermark never goes back (E-5), so the minimum is ignored by the reader.
const UNCHANGED: UpstreamWatermark = UpstreamWatermark::START;

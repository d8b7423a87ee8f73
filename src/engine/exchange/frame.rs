//! What one upstream region gives to one partition in one epoch, as bytes.
//!
//! A message of an exchange topic is one frame after the other, from several regions of a slot. A frame stands alone: messages may be cut
//! between any two.
//!
//! ```text
//! byte  0  "SX"      magic
//!       2  1         version
//!       3  flags     1: upstream is idle, 2: has rows
//!       4  u32       stage      ┐ upstream region
//!       8  u32       partition  ┘
//!      12  u32       rows
//!      16  u64       epoch
//!      24  i64       watermark in ms
//!      32  u32       length of the head ┐ 0 in a frame without rows
//!      36  u32       length of the body ┘
//!      40            head: Arrow IPC message (record batch, version 5); body: its buffers, 8-aligned, LZ4 when it pays
//! ```
//! Numbers are little-endian. The schema is not in the frame: it is the exchange's, of the plan that the message's headers name.
//!
//! What is read was written by somebody: every length is checked before it is used, and memory is never reserved for more than the bytes
//! at hand can decompress to.

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_ipc::{CompressionType, MessageHeader, MetadataVersion, reader::read_record_batch, root_as_message};
use arrow_schema::{ArrowError, DataType, SchemaRef};
use std::collections::HashMap;
use std::ops::Range;
use streamshield_core::ids::{Epoch, RegionId, StageId};
use streamshield_core::watermark::{UpstreamWatermark, Watermark};

const MAGIC: [u8; 2] = *b"SX";
const VERSION: u8 = 1;
const IDLE: u8 = 1;
const HAS_ROWS: u8 = 2;
/// Bytes of a frame before the head.
pub const FRAME_HEAD_BYTES: usize = 40;
/// Below, LZ4 costs more bytes than it saves.
const COMPRESS_FROM_ROWS: usize = 32;
/// No byte of LZ4 stands for more.
const LZ4_RATIO_MAX: u64 = 255;
/// Nor do so many bytes of a frame's arrays ever exist.
const DECOMPRESSED_BYTES_MAX: u64 = 1 << 30;

/// What one upstream region gives to one partition in one epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub upstream: RegionId,
    pub epoch: Epoch,
    pub watermark: UpstreamWatermark,
    /// None: only the watermark has moved.
    pub rows: Option<RecordBatch>,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("exchange frame at byte {at}: {message}")]
    Malformed { at: usize, message: String },
    #[error("exchange frame at byte {at}: {source}")]
    Arrow { at: usize, source: ArrowError },
    #[error("exchange frame version {found}, this binary reads {VERSION}")]
    Version { found: u8 },
    #[error("rows can't be written to the exchange: {0}")]
    Encode(String),
}

/// Writes frames of one exchange.
pub struct FrameEncoder {
    schema: SchemaRef,
    generator: IpcDataGenerator,
    context: IpcWriteContext,
}

impl FrameEncoder {
    pub fn new(schema: SchemaRef) -> Self {
        FrameEncoder { schema, generator: IpcDataGenerator::default(), context: IpcWriteContext::default() }
    }

    /// Appends one frame. On an error `out` is as before.
    pub fn encode(
        &mut self,
        upstream: RegionId,
        epoch: Epoch,
        watermark: UpstreamWatermark,
        rows: Option<&RecordBatch>,
        out: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        let rows = rows.filter(|rows| rows.num_rows() > 0);
        let encoded = rows.map(|rows| self.encode_rows(rows)).transpose()?;
        let length = |bytes: Option<&Vec<u8>>| {
            u32::try_from(bytes.map_or(0, Vec::len)).map_err(|_| FrameError::Encode("more than 4 GiB in one frame".into()))
        };
        let head_bytes = length(encoded.as_ref().map(|encoded| &encoded.ipc_message))?;
        let body_bytes = length(encoded.as_ref().map(|encoded| &encoded.arrow_data))?;
        let idle = if watermark.idle { IDLE } else { 0 };
        let has_rows = if encoded.is_some() { HAS_ROWS } else { 0 };
        out.reserve(FRAME_HEAD_BYTES + head_bytes as usize + body_bytes as usize);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, idle | has_rows]);
        out.extend_from_slice(&upstream.stage.0.to_le_bytes());
        out.extend_from_slice(&upstream.partition.to_le_bytes());
        out.extend_from_slice(&(rows.map_or(0, RecordBatch::num_rows) as u32).to_le_bytes());
        out.extend_from_slice(&epoch.0.to_le_bytes());
        out.extend_from_slice(&watermark.watermark.0.to_le_bytes());
        out.extend_from_slice(&head_bytes.to_le_bytes());
        out.extend_from_slice(&body_bytes.to_le_bytes());
        if let Some(encoded) = encoded {
            out.extend_from_slice(&encoded.ipc_message);
            out.extend_from_slice(&encoded.arrow_data);
        }
        Ok(())
    }

    fn encode_rows(&mut self, rows: &RecordBatch) -> Result<arrow_ipc::writer::EncodedData, FrameError> {
        let of_exchange = self.schema.fields().iter().map(|field| field.data_type());
        if !rows.columns().iter().map(|column| column.data_type()).eq(of_exchange) {
            return Err(FrameError::Encode(format!("columns {:?} in an exchange of {:?}", rows.schema().fields(), self.schema.fields())));
        }
        let failed = |error: ArrowError| FrameError::Encode(error.to_string());
        if let Some(field) = self.schema.fields().iter().find(|field| Shape::of(field.data_type()).is_none()) {
            return Err(FrameError::Encode(format!("column \"{}\" is of type {}", field.name(), field.data_type())));
        }
        let compression = (rows.num_rows() >= COMPRESS_FROM_ROWS).then_some(CompressionType::LZ4_FRAME);
        let options = IpcWriteOptions::try_new(8, false, MetadataVersion::V5)
            .and_then(|options| options.try_with_compression(compression))
            .map_err(failed)?;
        let (dictionaries, encoded) =
            self.generator.encode(rows, &mut DictionaryTracker::new(false), &options, &mut self.context).map_err(failed)?;
        debug_assert!(dictionaries.is_empty());
        Ok(encoded)
    }
}

/// Reads all frames of a message.
pub fn decode(payload: &[u8], schema: &SchemaRef) -> Result<Vec<Frame>, FrameError> {
    let mut frames = Vec::new();
    let mut at = 0;
    while at < payload.len() {
        let (frame, length) = decode_frame(&payload[at..], at, schema)?;
        frames.push(frame);
        at += length;
    }
    Ok(frames)
}

/// A frame as it lies in a message, without a look at its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameSpan {
    pub upstream: RegionId,
    pub epoch: Epoch,
    /// Of the message's payload.
    pub bytes: Range<usize>,
}

/// Whose frames a message holds, and where; no schema is needed for that.
pub fn spans(payload: &[u8]) -> Result<Vec<FrameSpan>, FrameError> {
    let mut spans = Vec::new();
    let mut at = 0;
    while at < payload.len() {
        let head = Head::read(&payload[at..], at)?;
        let end = at + head.frame_bytes();
        spans.push(FrameSpan { upstream: head.upstream, epoch: head.epoch, bytes: at..end });
        at = end;
    }
    Ok(spans)
}

/// The frames of a message that are wanted, as they are and in their order, as a message of their own. None: it holds none of them.
pub fn cut(payload: &[u8], mut is_wanted: impl FnMut(&FrameSpan) -> bool) -> Result<Option<Vec<u8>>, FrameError> {
    let wanted: Vec<FrameSpan> = spans(payload)?.into_iter().filter(|span| is_wanted(span)).collect();
    let kept: Vec<&[u8]> = wanted.iter().map(|span| &payload[span.bytes.clone()]).collect();
    Ok((!kept.is_empty()).then(|| kept.concat()))
}

/// The first 40 bytes of a frame.
struct Head {
    flags: u8,
    upstream: RegionId,
    rows: u32,
    epoch: Epoch,
    watermark: Watermark,
    head_bytes: usize,
    body_bytes: usize,
}

impl Head {
    /// Of the frame that the bytes begin with; all of it is there. `at`: its place in the message, for errors.
    fn read(bytes: &[u8], at: usize) -> Result<Head, FrameError> {
        let malformed = |message: &str| FrameError::Malformed { at, message: message.into() };
        let head: &[u8; FRAME_HEAD_BYTES] = bytes.first_chunk().ok_or_else(|| malformed("it ends within its head"))?;
        if head[..2] != MAGIC {
            return Err(malformed("it does not begin as one"));
        }
        if head[2] != VERSION {
            return Err(FrameError::Version { found: head[2] });
        }
        let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let (head_bytes, body_bytes) = (u32_at(32) as usize, u32_at(36) as usize);
        if bytes.len() - FRAME_HEAD_BYTES < head_bytes + body_bytes {
            return Err(malformed("it is cut off"));
        }
        Ok(Head {
            flags: head[3],
            upstream: RegionId { stage: StageId(u32_at(4)), partition: u32_at(8) },
            rows: u32_at(12),
            epoch: Epoch(u64_at(16)),
            watermark: Watermark(u64_at(24) as i64),
            head_bytes,
            body_bytes,
        })
    }

    fn frame_bytes(&self) -> usize {
        FRAME_HEAD_BYTES + self.head_bytes + self.body_bytes
    }
}

fn decode_frame(bytes: &[u8], at: usize, schema: &SchemaRef) -> Result<(Frame, usize), FrameError> {
    let malformed = |message: &str| FrameError::Malformed { at, message: message.into() };
    let head = Head::read(bytes, at)?;
    let (ipc, body) = bytes[FRAME_HEAD_BYTES..head.frame_bytes()].split_at(head.head_bytes);
    let rows = match head.flags {
        flags if flags & !(IDLE | HAS_ROWS) != 0 => return Err(malformed("it has unknown flags")),
        flags if flags & HAS_ROWS != 0 => Some(decode_rows(ipc, body, head.rows, at, schema)?),
        _ if !ipc.is_empty() || !body.is_empty() || head.rows > 0 => return Err(malformed("it says that it has no rows, and has some")),
        _ => None,
    };
    let watermark = UpstreamWatermark { watermark: head.watermark, idle: head.flags & IDLE != 0 };
    let length = head.frame_bytes();
    Ok((Frame { upstream: head.upstream, epoch: head.epoch, watermark, rows }, length))
}

fn decode_rows(head: &[u8], body: &[u8], rows: u32, at: usize, schema: &SchemaRef) -> Result<RecordBatch, FrameError> {
    let malformed = |message: String| FrameError::Malformed { at, message };
    let message = root_as_message(head).map_err(|error| malformed(format!("its head is no Arrow message: {error}")))?;
    if message.version() != MetadataVersion::V5 || message.header_type() != MessageHeader::RecordBatch {
        return Err(malformed(format!("it holds {:?} of version {:?}", message.header_type(), message.version())));
    }
    let batch = message.header_as_record_batch().ok_or_else(|| malformed("it holds no record batch".into()))?;
    check_batch(&batch, body, rows, schema).map_err(malformed)?;
    // The last guard: the reader asserts where it could return an error, and another release may assert more.
    let read = std::panic::AssertUnwindSafe(|| {
        read_record_batch(&Buffer::from(body), batch, schema.clone(), &HashMap::new(), None, &MetadataVersion::V5)
    });
    match std::panic::catch_unwind(read) {
        Ok(read) => read.map_err(|source| FrameError::Arrow { at, source }),
        Err(_) => Err(malformed("its buffers don't fit its rows".into())),
    }
}

/// Checks every number that the reader relies on.
fn check_batch(batch: &arrow_ipc::RecordBatch<'_>, body: &[u8], rows: u32, schema: &SchemaRef) -> Result<(), String> {
    if batch.length() != i64::from(rows) {
        return Err(format!("{rows} rows in the frame, {} in the batch", batch.length()));
    }
    let compressed = match batch.compression() {
        None => false,
        Some(compression) if compression.codec() == CompressionType::LZ4_FRAME => true,
        Some(compression) => return Err(format!("compressed by {:?}", compression.codec())),
    };
    let shape = schema.fields().iter().try_fold(Shape::default(), |shape, field| Some(shape.and(Shape::of(field.data_type())?)));
    let shape = shape.ok_or("its schema can't be in an exchange")?;
    let (nodes, buffers) = (batch.nodes().ok_or("no nodes")?, batch.buffers().ok_or("no buffers")?);
    if nodes.len() != shape.nodes || buffers.len() != shape.buffers || batch.variadicBufferCounts().is_some_and(|counts| !counts.is_empty())
    {
        return Err(format!("{} nodes and {} buffers instead of {} and {}", nodes.len(), buffers.len(), shape.nodes, shape.buffers));
    }
    for node in nodes.iter() {
        if !(0..=i64::from(i32::MAX)).contains(&node.length()) || !(0..=node.length()).contains(&node.null_count()) {
            return Err(format!("{} nulls in {} values", node.null_count(), node.length()));
        }
    }
    let mut lengths = Vec::with_capacity(buffers.len());
    for buffer in buffers.iter() {
        let range = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        let bytes =
            range.and_then(|(offset, length)| body.get(offset..offset.checked_add(length)?)).ok_or("a buffer is outside of the frame")?;
        lengths.push(if compressed { decompressed_bytes(bytes)? } else { bytes.len() as u64 });
    }
    let total: u64 = lengths.iter().sum();
    if total > DECOMPRESSED_BYTES_MAX {
        return Err(format!("{total} bytes of arrays"));
    }
    let (mut nodes, mut lengths) = (nodes.iter(), lengths.iter());
    schema.fields().iter().try_for_each(|field| check_lengths(field.data_type(), &mut nodes, &mut lengths))
}

/// The lengths that the reader asserts: of validity bits and of offsets.
fn check_lengths<'a>(
    data_type: &DataType,
    nodes: &mut impl Iterator<Item = &'a arrow_ipc::FieldNode>,
    lengths: &mut std::slice::Iter<'_, u64>,
) -> Result<(), String> {
    use DataType::*;
    let node = nodes.next().ok_or("a node is missing")?;
    if *data_type == Null {
        return Ok(());
    }
    let mut next = || lengths.next().copied().ok_or("a buffer is missing");
    let validity_bytes = next()?;
    if node.null_count() > 0 && validity_bytes * 8 < node.length() as u64 {
        return Err(format!("too few validity bits for {} values", node.length()));
    }
    let offset_bytes = match data_type {
        Utf8 | Binary | List(_) | Map(..) => 4,
        LargeUtf8 | LargeBinary | LargeList(_) => 8,
        _ => 0,
    };
    if offset_bytes > 0 {
        let bytes = next()?;
        if bytes % offset_bytes != 0 || (bytes > 0 || node.length() > 0) && bytes / offset_bytes <= node.length() as u64 {
            return Err(format!("{bytes} bytes of offsets for {} values", node.length()));
        }
    }
    match data_type {
        List(element) | LargeList(element) | Map(element, _) | FixedSizeList(element, _) => {
            check_lengths(element.data_type(), nodes, lengths)
        }
        Struct(fields) => fields.iter().try_for_each(|field| check_lengths(field.data_type(), nodes, lengths)),
        _ => next().map(|_| ()).map_err(String::from),
    }
}

/// Bytes that the reader reserves for a compressed buffer, if that is possible at all.
fn decompressed_bytes(buffer: &[u8]) -> Result<u64, String> {
    if buffer.is_empty() {
        return Ok(0);
    }
    let (length, content) = buffer.split_first_chunk::<8>().ok_or("a compressed buffer without its length")?;
    match i64::from_le_bytes(*length) {
        -1 => Ok(content.len() as u64),
        length if length >= 0 && length as u64 <= content.len() as u64 * LZ4_RATIO_MAX => Ok(length as u64),
        length => Err(format!("{} bytes that decompress to {length}", content.len())),
    }
}

/// How many nodes and buffers a type has in an Arrow message.
#[derive(Clone, Copy, Default)]
struct Shape {
    nodes: usize,
    buffers: usize,
}

impl Shape {
    fn and(self, other: Shape) -> Shape {
        Shape { nodes: self.nodes + other.nodes, buffers: self.buffers + other.buffers }
    }

    /// None: views, dictionaries, unions and runs are never in an exchange.
    fn of(data_type: &DataType) -> Option<Shape> {
        use DataType::*;
        let own = |buffers| Shape { nodes: 1, buffers };
        Some(match data_type {
            Null => own(0),
            Utf8 | LargeUtf8 | Binary | LargeBinary => own(3),
            List(element) | LargeList(element) | Map(element, _) => own(2).and(Shape::of(element.data_type())?),
            FixedSizeList(element, _) => own(1).and(Shape::of(element.data_type())?),
            Struct(fields) => fields.iter().try_fold(own(1), |shape, field| Some(shape.and(Shape::of(field.data_type())?)))?,
            Boolean | FixedSizeBinary(_) => own(2),
            other if other.is_primitive() => own(2),
            _ => return None,
        })
    }
}

#[cfg(test)]
#[path = "frame_test.rs"]
mod tests;

//! Record batches of format 2, kept as the bytes that the client sent.
//!
//! A batch is stored and served as it came: its records are neither decoded nor rebuilt, so duplicate header keys, the
//! compression and the checksum survive. Only the fields outside of the checksum (base offset, leader epoch) are
//! written at append, and, for `LogAppendTime`, the timestamp fields together with a new checksum.
//!
//! ```text
//! 0 base offset i64 · 8 length i32 · 12 leader epoch i32 · 16 magic i8 · 17 crc32c u32 (of what follows)
//! 21 attributes i16 · 23 last offset delta i32 · 27 base timestamp i64 · 35 max timestamp i64
//! 43 producer id i64 · 51 producer epoch i16 · 53 base sequence i32 · 57 record count i32 · 61 records
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::error::LogError;

/// Bytes before the first record.
pub const BATCH_HEADER_BYTES: usize = 61;
const CHECKSUM_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const MAX_TIMESTAMP_AT: usize = 35;

const ATTRIBUTE_COMPRESSION: i16 = 0x07;
const ATTRIBUTE_LOG_APPEND_TIME: i16 = 0x08;
/// Set in the attributes of every batch of a transaction.
pub const ATTRIBUTE_TRANSACTIONAL: i16 = 0x10;
const ATTRIBUTE_CONTROL: i16 = 0x20;

/// The fields of a batch header that the log decides by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub attributes: i16,
    pub last_offset_delta: i32,
    pub base_timestamp_ms: i64,
    pub max_timestamp_ms: i64,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub record_count: i32,
}

impl BatchHeader {
    pub fn is_transactional(&self) -> bool {
        self.attributes & ATTRIBUTE_TRANSACTIONAL != 0
    }
    pub fn is_control(&self) -> bool {
        self.attributes & ATTRIBUTE_CONTROL != 0
    }
    pub fn compression(&self) -> u8 {
        (self.attributes & ATTRIBUTE_COMPRESSION) as u8
    }
    pub fn has_log_append_time(&self) -> bool {
        self.attributes & ATTRIBUTE_LOG_APPEND_TIME != 0
    }
    /// Sequence of the last record; sequences wrap at `i32::MAX` to 0.
    pub fn last_sequence(&self) -> i32 {
        self.base_sequence.wrapping_add(self.last_offset_delta) & i32::MAX
    }

    fn read(batch: &[u8]) -> Option<BatchHeader> {
        let mut fields = batch.get(ATTRIBUTES_AT..BATCH_HEADER_BYTES)?;
        Some(BatchHeader {
            attributes: fields.get_i16(),
            last_offset_delta: fields.get_i32(),
            base_timestamp_ms: fields.get_i64(),
            max_timestamp_ms: fields.get_i64(),
            producer_id: fields.get_i64(),
            producer_epoch: fields.get_i16(),
            base_sequence: fields.get_i32(),
            record_count: fields.get_i32(),
        })
    }
}

/// A batch with its place in the log.
#[derive(Clone, Debug)]
pub struct Batch {
    pub base_offset: i64,
    pub last_offset: i64,
    pub header: BatchHeader,
    /// When the log took it, in ms since the epoch: retention never goes by a record's own timestamp alone.
    pub appended_ms: i64,
    pub bytes: Bytes,
}

impl Batch {
    /// A stored batch (base offset already written).
    pub fn stored(bytes: Bytes, appended_ms: i64) -> Result<Batch, LogError> {
        let header = BatchHeader::read(&bytes).ok_or(LogError::CorruptBatch)?;
        let base_offset = (&bytes[..]).get_i64();
        let last_offset = base_offset + i64::from(header.last_offset_delta);
        Ok(Batch { base_offset, last_offset, header, appended_ms, bytes })
    }
}

/// Checks what a producer sent: exactly one whole batch of format 2 with the right checksum and plausible counts.
pub fn check_produced(records: &Bytes) -> Result<BatchHeader, LogError> {
    if records.len() < BATCH_HEADER_BYTES {
        return Err(LogError::CorruptBatch);
    }
    let length = i32::from_be_bytes([records[8], records[9], records[10], records[11]]);
    let end = usize::try_from(length).map_err(|_| LogError::CorruptBatch)? + 12;
    if records[16] != 2 {
        return Err(LogError::UnsupportedBatchFormat);
    }
    if end > records.len() {
        return Err(LogError::CorruptBatch);
    }
    if end < records.len() {
        return Err(LogError::InvalidRecord); // more than one batch for a partition
    }
    if checksum(records) != stored_checksum(records) {
        return Err(LogError::CorruptBatch);
    }
    let header = BatchHeader::read(records).ok_or(LogError::CorruptBatch)?;
    if header.is_control() || header.record_count < 1 || header.last_offset_delta != header.record_count - 1 {
        return Err(LogError::InvalidRecord);
    }
    if header.producer_id >= 0 && (header.base_sequence < 0 || header.producer_epoch < 0) {
        return Err(LogError::InvalidRecord);
    }
    if header.compression() == 0 {
        check_records(records, header.record_count)?;
    }
    Ok(header)
}

fn check_records(batch: &[u8], record_count: i32) -> Result<(), LogError> {
    let mut expected_delta = 0;
    for record in records(&batch[BATCH_HEADER_BYTES..]) {
        let record = record.ok_or(LogError::InvalidRecord)?;
        if record.offset_delta != expected_delta {
            return Err(LogError::InvalidRecord);
        }
        expected_delta += 1;
    }
    if expected_delta == i64::from(record_count) { Ok(()) } else { Err(LogError::InvalidRecord) }
}

/// The bytes to store: base offset and leader epoch set, and the log's own time where the topic says so.
pub fn place(batch: &[u8], base_offset: i64, log_append_time_ms: Option<i64>) -> Bytes {
    let mut stored = BytesMut::from(batch);
    stored[0..8].copy_from_slice(&base_offset.to_be_bytes());
    stored[12..16].copy_from_slice(&0i32.to_be_bytes());
    if let Some(now_ms) = log_append_time_ms {
        let attributes = i16::from_be_bytes([stored[ATTRIBUTES_AT], stored[ATTRIBUTES_AT + 1]]) | ATTRIBUTE_LOG_APPEND_TIME;
        stored[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.to_be_bytes());
        stored[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&now_ms.to_be_bytes());
        write_checksum(&mut stored);
    }
    stored.freeze()
}

/// The control batch that ends a transaction in one partition.
pub fn end_marker(base_offset: i64, producer_id: i64, producer_epoch: i16, commit: bool, now_ms: i64) -> Bytes {
    let version = 0i16.to_be_bytes();
    let key = [version, i16::from(commit).to_be_bytes()].concat();
    let coordinator_epoch = 0i32.to_be_bytes();
    let value = [&version[..], &coordinator_epoch].concat();
    let mut body = BytesMut::new();
    encode_record(&mut body, 0, 0, Some(&key), Some(&value), &[]);
    let header = BatchHeader {
        attributes: ATTRIBUTE_TRANSACTIONAL | ATTRIBUTE_CONTROL,
        last_offset_delta: 0,
        base_timestamp_ms: now_ms,
        max_timestamp_ms: now_ms,
        producer_id,
        producer_epoch,
        base_sequence: -1,
        record_count: 1,
    };
    assemble(base_offset, &header, &body)
}

/// Whether a control batch commits (`Some(true)`), aborts (`Some(false)`) or is no end marker.
pub fn marker_outcome(batch: &[u8]) -> Option<bool> {
    let record = records(batch.get(BATCH_HEADER_BYTES..)?).next()??;
    match record.key? {
        [_, _, 0, 0] => Some(false),
        [_, _, 0, 1] => Some(true),
        _ => None,
    }
}

/// A batch of these records (their encoded bytes one after the other), uncompressed.
pub fn assemble(base_offset: i64, header: &BatchHeader, body: &[u8]) -> Bytes {
    let mut batch = BytesMut::with_capacity(BATCH_HEADER_BYTES + body.len());
    batch.put_i64(base_offset);
    batch.put_i32((BATCH_HEADER_BYTES - 12 + body.len()) as i32);
    batch.put_i32(0);
    batch.put_u8(2);
    batch.put_u32(0);
    batch.put_i16(header.attributes);
    batch.put_i32(header.last_offset_delta);
    batch.put_i64(header.base_timestamp_ms);
    batch.put_i64(header.max_timestamp_ms);
    batch.put_i64(header.producer_id);
    batch.put_i16(header.producer_epoch);
    batch.put_i32(header.base_sequence);
    batch.put_i32(header.record_count);
    batch.put_slice(body);
    write_checksum(&mut batch);
    batch.freeze()
}

fn checksum(batch: &[u8]) -> u32 {
    crc32c::crc32c(&batch[ATTRIBUTES_AT..])
}
fn stored_checksum(batch: &[u8]) -> u32 {
    (&batch[CHECKSUM_AT..]).get_u32()
}
fn write_checksum(batch: &mut [u8]) {
    let sum = checksum(batch);
    batch[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
}

/// One record of an uncompressed record area.
#[derive(Debug, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// The record as encoded, its length prefix included.
    pub encoded: &'a [u8],
    pub timestamp_delta_ms: i64,
    pub offset_delta: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// Count and pairs of key and value, as encoded.
    pub headers: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// The headers in their order; a value of null reads as empty. `None`: the bytes are damaged.
    pub fn header_pairs(&self) -> Option<Vec<Header<'a>>> {
        let mut at = 0;
        let count = read_varint(self.headers, &mut at)?;
        let mut pairs = Vec::new();
        for _ in 0..count {
            let name = read_nullable(self.headers, &mut at)??;
            let value = read_nullable(self.headers, &mut at)?;
            pairs.push((std::str::from_utf8(name).ok()?, value.unwrap_or_default()));
        }
        Some(pairs)
    }
}

/// Walks the records; an item of `None` means that the bytes are damaged there, and ends the walk.
pub fn records(area: &[u8]) -> impl Iterator<Item = Option<RecordView<'_>>> {
    let mut at = 0;
    let mut damaged = false;
    std::iter::from_fn(move || {
        if damaged || at >= area.len() {
            return None;
        }
        let record = read_record(area, &mut at);
        damaged = record.is_none();
        Some(record)
    })
}

fn read_record<'a>(area: &'a [u8], at: &mut usize) -> Option<RecordView<'a>> {
    let start = *at;
    let length = usize::try_from(read_varint(area, at)?).ok()?;
    let end = at.checked_add(length)?;
    let record = area.get(..end)?;
    *at += 1; // attributes, unused
    let timestamp_delta_ms = read_varint(record, at)?;
    let offset_delta = read_varint(record, at)?;
    let key = read_nullable(record, at)?;
    let value = read_nullable(record, at)?;
    let headers = record.get(*at..)?;
    *at = end;
    Some(RecordView { encoded: &area[start..end], timestamp_delta_ms, offset_delta, key, value, headers })
}

/// Bytes with their length before; a negative length is null.
fn read_nullable<'a>(record: &'a [u8], at: &mut usize) -> Option<Option<&'a [u8]>> {
    let Ok(length) = usize::try_from(read_varint(record, at)?) else { return Some(None) };
    let bytes = record.get(*at..at.checked_add(length)?)?;
    *at += length;
    Some(Some(bytes))
}

/// A header of a record: name and value.
pub type Header<'a> = (&'a str, &'a [u8]);

/// Appends one record to a record area.
pub fn encode_record(
    area: &mut BytesMut,
    offset_delta: i64,
    timestamp_delta_ms: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[Header<'_>],
) {
    let mut record = BytesMut::new();
    record.put_u8(0); // attributes, unused
    put_varint(&mut record, timestamp_delta_ms);
    put_varint(&mut record, offset_delta);
    for bytes in [key, value] {
        put_nullable(&mut record, bytes);
    }
    put_varint(&mut record, headers.len() as i64);
    for (name, value) in headers {
        put_nullable(&mut record, Some(name.as_bytes()));
        put_nullable(&mut record, Some(value));
    }
    put_varint(area, record.len() as i64);
    area.put_slice(&record);
}

fn put_nullable(out: &mut BytesMut, bytes: Option<&[u8]>) {
    put_varint(out, bytes.map_or(-1, |bytes| bytes.len() as i64));
    out.put_slice(bytes.unwrap_or_default());
}

fn put_varint(out: &mut BytesMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.put_u8((rest as u8 & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// A zigzag varint, as in Protocol Buffers.
fn read_varint(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let (mut value, mut shift) = (0u64, 0);
    loop {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
        shift += 7;
        if shift > 63 {
            return None;
        }
    }
}

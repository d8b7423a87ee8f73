//! The records of a batch, for the few places that must look inside: compaction, look-up by time, and the check of keys
//! on compacted topics.
//!
//! Served batches are never decompressed. LZ4, which is what the engine's own producers use, is read here; a batch in
//! another codec counts as *opaque*: compaction keeps it whole, and a look-up by time finds its first record.

mod lz4;

use std::borrow::Cow;

use super::batch::{BATCH_HEADER_BYTES, BatchHeader};

const CODEC_NONE: u8 = 0;
const CODEC_LZ4: u8 = 3;

/// The record area of a batch, or `None` for an opaque one.
pub fn record_area<'a>(header: &BatchHeader, batch: &'a [u8]) -> Option<Cow<'a, [u8]>> {
    let area = batch.get(BATCH_HEADER_BYTES..)?;
    match header.compression() {
        CODEC_NONE => Some(Cow::Borrowed(area)),
        CODEC_LZ4 => lz4::decompress_frame(area).map(Cow::Owned),
        _ => None,
    }
}

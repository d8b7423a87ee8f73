//! The records of a batch, for the few places that must look inside: compaction and look-up by time.
//!
//! Served batches are never decompressed. A batch in a codec that is not read here counts as *opaque*: compaction
//! keeps it whole, and a look-up by time finds its first record.

use std::borrow::Cow;

use super::batch::{BATCH_HEADER_BYTES, Batch};

/// The record area of a batch, or `None` for an opaque one.
pub fn record_area(batch: &Batch) -> Option<Cow<'_, [u8]>> {
    let area = batch.bytes.get(BATCH_HEADER_BYTES..)?;
    match batch.header.compression() {
        0 => Some(Cow::Borrowed(area)),
        _ => None,
    }
}

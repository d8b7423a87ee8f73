//! Messages into record batches, as a client does it.

use bytes::{Bytes, BytesMut};
use streamshield_core::ports::log::OutMessage;
use streamshield_embedded::log_core::batch::{self, ATTRIBUTE_TRANSACTIONAL, BatchHeader};

/// What a client puts into one batch at most, unless one message alone is larger.
pub const BATCH_BYTES_MAX: usize = 64 << 10;
/// A record's own overhead, at most.
const RECORD_OVERHEAD_BYTES: usize = 64;

/// A message that waits to be sent.
#[derive(Clone, Debug)]
pub struct Record {
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub timestamp_ms: i64,
}

impl Record {
    pub fn of(message: &OutMessage, now_ms: i64) -> Record {
        Record {
            key: message.key.clone().map(Bytes::from),
            value: message.payload.clone().map(Bytes::from),
            headers: message.headers.clone(),
            timestamp_ms: message.timestamp_ms.unwrap_or(now_ms),
        }
    }

    pub fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 10).sum();
        self.key.as_ref().map_or(0, Bytes::len) + self.value.as_ref().map_or(0, Bytes::len) + headers + RECORD_OVERHEAD_BYTES
    }
}

/// Who sends a batch.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    pub producer: (i64, i16),
    pub sequence: i32,
    pub is_transactional: bool,
}

/// A message outside of transactions, without idempotence.
pub const NOBODY: Sender = Sender { producer: (-1, -1), sequence: -1, is_transactional: false };

/// One batch of records, in their order.
pub fn batch_of(sender: Sender, records: &[Record]) -> Bytes {
    let base_ms = records.first().map_or(0, |record| record.timestamp_ms);
    let mut body = BytesMut::new();
    for (delta, record) in (0..).zip(records) {
        let headers: Vec<_> = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        batch::encode_record(&mut body, delta, record.timestamp_ms - base_ms, record.key.as_deref(), record.value.as_deref(), &headers);
    }
    let header = BatchHeader {
        attributes: if sender.is_transactional { ATTRIBUTE_TRANSACTIONAL } else { 0 },
        last_offset_delta: records.len() as i32 - 1,
        base_timestamp_ms: base_ms,
        max_timestamp_ms: records.iter().map(|record| record.timestamp_ms).max().unwrap_or(base_ms),
        producer_id: sender.producer.0,
        producer_epoch: sender.producer.1,
        base_sequence: sender.sequence,
        record_count: records.len() as i32,
    };
    batch::assemble(0, &header, &body)
}

/// Cuts records into batches.
pub fn cut(records: &[Record]) -> impl Iterator<Item = &[Record]> {
    let mut rest = records;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|record| {
            bytes += record.bytes();
            bytes <= BATCH_BYTES_MAX
        });
        let count = fits.count().max(1).min(rest.len());
        let (taken, left) = rest.split_at(count);
        rest = left;
        (!taken.is_empty()).then_some(taken)
    })
}

/// Where Java's default partitioner puts a key: murmur2 without its sign, modulo the partitions.
pub fn partition_of(key: &[u8], partitions: i32) -> i32 {
    (murmur2(key) & 0x7fff_ffff) as i32 % partitions.max(1)
}

/// Austin Appleby's MurmurHash2 with Kafka's seed.
fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    let mut hash = SEED ^ bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0u32, |tail, byte| (tail << 8) | u32::from(*byte));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_land_where_java_clients_put_them() {
        // Vectors of Kafka's UtilsTest.
        let java: [(&str, i32); 7] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
            ("", 275_646_681),
        ];
        for (key, hash) in java {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn a_batch_holds_what_fits_and_a_large_record_alone() {
        let record = |bytes: usize| Record { key: None, value: Some(vec![0; bytes].into()), headers: vec![], timestamp_ms: 0 };
        let records = [record(10), record(BATCH_BYTES_MAX * 2), record(30_000), record(30_000), record(30_000)];
        let sizes: Vec<_> = cut(&records).map(<[Record]>::len).collect();
        assert_eq!(sizes, [1, 1, 2, 1]);
        assert_eq!(cut(&[]).count(), 0);
    }
}

//! Messages for people: dead letters and late rows, written inside the epoch's transaction.
//!
//! A dead letter is the original record (key, payload) with headers that say where it came from and why it was refused:
//! `streamshield.job`, `.region`, `.error`, and where known `.topic`, `.partition`, `.offset`, `.timestamp`; the
//! record's own headers follow. What would not fit loses those, its key and payload are cut, and it says so (`.truncated` = its full size).

use crate::topics;
use arrow_array::RecordBatch;
use std::sync::Arc;
use streamshield_core::cluster::shortened;
use streamshield_core::ids::RegionId;
use streamshield_core::ports::log::OutMessage;
use streamshield_core::ports::source::Origin;

/// Below what a topic takes by default (`max.message.bytes`: 1 MiB).
const LETTER_BYTES_MAX: usize = 900_000;
/// What a client, or a broker, adds to a header's name and value: their lengths.
const HEADER_OVERHEAD_BYTES: usize = 10;

#[derive(Clone)]
pub struct Letters {
    job: String,
    /// Key, payload and headers together.
    bytes_max: usize,
    dead_letter_topic: Arc<str>,
    late_topic: Arc<str>,
}

impl Letters {
    pub fn new(job: &str) -> Letters {
        Letters {
            job: job.to_string(),
            bytes_max: LETTER_BYTES_MAX,
            dead_letter_topic: topics::dead_letter(job).into(),
            late_topic: topics::late(job).into(),
        }
    }

    /// Keeps letters below what their topics and the writer's client take, with room for what is added.
    pub fn bound(&mut self, message_bytes_max: usize) {
        self.bytes_max = LETTER_BYTES_MAX.min(message_bytes_max / 10 * 9);
    }

    pub fn dead(&self, region: RegionId, origin: Option<Origin>, json: Option<Vec<u8>>, reason: &str) -> OutMessage {
        let mut headers: Vec<(String, Vec<u8>)> = vec![
            ("streamshield.job".into(), self.job.clone().into_bytes()),
            ("streamshield.region".into(), region.to_string().into_bytes()),
            ("streamshield.error".into(), shortened(reason).as_bytes().to_vec()),
        ];
        let (mut key, mut payload) = (None, json);
        let mut own = headers.len();
        if let Some(origin) = origin {
            headers.push(("streamshield.topic".into(), origin.container.into_bytes()));
            headers.push(("streamshield.partition".into(), origin.split.to_string().into_bytes()));
            headers.push(("streamshield.offset".into(), origin.offset.to_string().into_bytes()));
            if let Some(timestamp_ms) = origin.timestamp_ms {
                headers.push(("streamshield.timestamp".into(), timestamp_ms.to_string().into_bytes()));
            }
            own = headers.len();
            headers.extend(origin.headers);
            key = origin.key;
            payload = origin.payload;
        }
        let size = key.as_ref().map_or(0, Vec::len) + payload.as_ref().map_or(0, Vec::len) + header_bytes(&headers);
        if size > self.bytes_max {
            headers.truncate(own);
            headers.push(("streamshield.truncated".into(), size.to_string().into_bytes()));
            let room = self.bytes_max.saturating_sub(header_bytes(&headers));
            key.as_mut().map(|key| key.truncate(room / 4)).unwrap_or_default();
            payload.as_mut().map(|payload| payload.truncate(room / 2)).unwrap_or_default();
        }
        OutMessage { topic: self.dead_letter_topic.clone(), partition: Some(0), key, payload, headers, timestamp_ms: None }
    }

    pub fn late(&self, mut json: Vec<u8>) -> OutMessage {
        let mut headers = vec![("streamshield.job".into(), self.job.clone().into_bytes())];
        if json.len() + header_bytes(&headers) > self.bytes_max {
            headers.push(("streamshield.truncated".into(), json.len().to_string().into_bytes()));
            json.truncate(self.bytes_max.saturating_sub(header_bytes(&headers)));
        }
        OutMessage { topic: self.late_topic.clone(), partition: Some(0), key: None, payload: Some(json), headers, timestamp_ms: None }
    }
}

/// What headers weigh in a message, at most.
pub(crate) fn header_bytes(headers: &[(String, Vec<u8>)]) -> usize {
    headers.iter().map(|(name, value)| name.len() + value.len() + HEADER_OVERHEAD_BYTES).sum()
}

/// One row of a batch as a JSON object.
pub fn row_as_json(batch: &RecordBatch, row: usize) -> Option<Vec<u8>> {
    let mut writer = arrow_json::LineDelimitedWriter::new(Vec::new());
    writer.write(&batch.slice(row, 1)).ok()?;
    writer.finish().ok()?;
    let mut json = writer.into_inner();
    json.truncate(json.trim_ascii_end().len());
    Some(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use streamshield_core::ids::StageId;

    const REGION: RegionId = RegionId { stage: StageId(1), partition: 0 };

    fn origin(payload_bytes: usize, headers: usize) -> Origin {
        Origin {
            container: "t".into(),
            split: 0,
            offset: 7,
            timestamp_ms: None,
            key: Some(vec![b'k'; 10]),
            payload: Some(vec![b'p'; payload_bytes]),
            headers: vec![("h".into(), vec![b'v']); headers],
        }
    }

    fn bytes(letter: &OutMessage) -> usize {
        letter.key.as_ref().map_or(0, Vec::len) + letter.payload.as_ref().map_or(0, Vec::len) + header_bytes(&letter.headers)
    }

    fn is_truncated(letter: &OutMessage) -> bool {
        letter.headers.iter().any(|(name, _)| name == "streamshield.truncated")
    }

    #[test]
    fn a_record_full_of_headers_makes_a_letter_that_fits_and_says_that_it_is_cut() {
        let letter = Letters::new("job").dead(REGION, Some(origin(700_000, 80_000)), None, "bad");
        assert!(bytes(&letter) <= LETTER_BYTES_MAX && is_truncated(&letter));
        assert!(letter.headers.iter().all(|(name, _)| name != "h"), "none of the record's own stays alone");
        let whole = Letters::new("job").dead(REGION, Some(origin(700_000, 3)), None, "bad");
        assert_eq!((whole.payload.map(|payload| payload.len()), whole.headers.len()), (Some(700_000), 9));
    }

    #[test]
    fn letters_stay_below_what_a_client_takes() {
        let mut letters = Letters::new("job");
        letters.bound(100_000);
        let dead = letters.dead(REGION, Some(origin(95_000, 0)), None, "bad");
        let late = letters.late(vec![b'x'; 95_000]);
        for letter in [dead, late] {
            assert!(bytes(&letter) <= 90_000 && is_truncated(&letter), "{} bytes", bytes(&letter));
        }
        letters.bound(5_000_000);
        assert!(is_truncated(&letters.late(vec![b'x'; 950_000])), "the topic takes less than this client");
    }
}

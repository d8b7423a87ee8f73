//! Messages for people: dead letters and late rows, written inside the epoch's transaction.
//!
//! A dead letter is the original record (key, payload) with headers that say where it came from and why it was refused:
//! `streamshield.job`, `.region`, `.error`, and where known `.topic`, `.partition`, `.offset`, `.timestamp`; the
//! record's own headers follow. A payload that would not fit is cut and says so (`.truncated` = its full size).

use crate::topics;
use arrow_array::RecordBatch;
use std::sync::Arc;
use streamshield_core::ids::RegionId;
use streamshield_core::ports::log::OutMessage;
use streamshield_core::ports::source::Origin;

/// Below the default `max.message.bytes` of a broker (1 MiB), with room for the headers.
const PAYLOAD_BYTES_MAX: usize = 900_000;

#[derive(Clone)]
pub struct Letters {
    job: String,
    dead_letter_topic: Arc<str>,
    late_topic: Arc<str>,
}

impl Letters {
    pub fn new(job: &str) -> Letters {
        Letters { job: job.to_string(), dead_letter_topic: topics::dead_letter(job).into(), late_topic: topics::late(job).into() }
    }

    pub fn dead(&self, region: RegionId, origin: Option<Origin>, json: Option<Vec<u8>>, reason: &str) -> OutMessage {
        let mut headers: Vec<(String, Vec<u8>)> = vec![
            ("streamshield.job".into(), self.job.clone().into_bytes()),
            ("streamshield.region".into(), region.to_string().into_bytes()),
            ("streamshield.error".into(), reason.as_bytes().to_vec()),
        ];
        let (mut key, mut payload) = (None, json);
        if let Some(origin) = origin {
            headers.push(("streamshield.topic".into(), origin.container.into_bytes()));
            headers.push(("streamshield.partition".into(), origin.split.to_string().into_bytes()));
            headers.push(("streamshield.offset".into(), origin.offset.to_string().into_bytes()));
            if let Some(timestamp_ms) = origin.timestamp_ms {
                headers.push(("streamshield.timestamp".into(), timestamp_ms.to_string().into_bytes()));
            }
            headers.extend(origin.headers);
            key = origin.key;
            payload = origin.payload;
        }
        let size = key.as_ref().map_or(0, Vec::len)
            + payload.as_ref().map_or(0, Vec::len)
            + headers.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
        if size > PAYLOAD_BYTES_MAX {
            headers.truncate(7);
            headers.push(("streamshield.truncated".into(), size.to_string().into_bytes()));
            key.as_mut().map(|key| key.truncate(PAYLOAD_BYTES_MAX / 4)).unwrap_or_default();
            payload.as_mut().map(|payload| payload.truncate(PAYLOAD_BYTES_MAX / 2)).unwrap_or_default();
        }
        OutMessage { topic: self.dead_letter_topic.clone(), partition: Some(0), key, payload, headers, timestamp_ms: None }
    }

    pub fn late(&self, mut json: Vec<u8>) -> OutMessage {
        let mut headers = vec![("streamshield.job".into(), self.job.clone().into_bytes())];
        if json.len() > PAYLOAD_BYTES_MAX {
            headers.push(("streamshield.truncated".into(), json.len().to_string().into_bytes()));
            json.truncate(PAYLOAD_BYTES_MAX);
        }
        OutMessage { topic: self.late_topic.clone(), partition: Some(0), key: None, payload: Some(json), headers, timestamp_ms: None }
    }
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

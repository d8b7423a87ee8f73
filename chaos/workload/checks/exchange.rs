//! Exchanges: every frame belongs to a committed epoch of its region, and epochs follow each other.

use crate::findings::{Anomaly, AnomalyKind, Findings, Invariant};
use std::collections::{BTreeMap, HashMap};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, RegionId, StageId};

/// The newest epoch of a region in a partition, and where it lies.
struct Newest {
    epoch: Epoch,
    topic: String,
    place: (i32, i64),
}

/// See the module text.
#[derive(Default)]
pub struct ExchangeCheck {
    topic: String,
    newest: HashMap<(String, i32, RegionId), Newest>,
    findings: Findings,
}

impl ExchangeCheck {
    /// The next messages are of this topic.
    pub fn begin(&mut self, topic: &str) {
        self.topic = topic.to_string();
    }

    pub fn take(&mut self, partition: i32, offset: i64, payload: &[u8]) {
        let Some(heads) = frame_heads(payload) else {
            let anomaly = Anomaly::new(AnomalyKind::ForeignValue, Invariant::E3, "no message of an exchange");
            return self.findings.add(anomaly.at(&self.topic, partition, offset));
        };
        for (region, epoch) in heads {
            self.findings.looked_at(Invariant::E3, 1);
            let newest = Newest { epoch, topic: self.topic.clone(), place: (partition, offset) };
            let Some(before) = self.newest.insert((self.topic.clone(), partition, region), newest) else { continue };
            if epoch < before.epoch {
                let detail = format!("rows of epoch {epoch} after those of epoch {}", before.epoch);
                let anomaly = Anomaly::new(AnomalyKind::Nonmonotonic, Invariant::E1, detail).of(region);
                self.findings.add(anomaly.at(&self.topic, partition, offset));
                self.newest.insert((self.topic.clone(), partition, region), before);
            }
        }
    }

    /// `last`: the newest record of each region, by changelogs that were read after the exchanges.
    pub fn finish(mut self, last: &BTreeMap<RegionId, EpochRecord>) -> Findings {
        for ((_, _, region), newest) in self.newest {
            if last.get(&region).is_none_or(|record| record.epoch < newest.epoch) {
                let detail = format!("rows of epoch {}, which has no record", newest.epoch);
                let anomaly = Anomaly::new(AnomalyKind::TornTransaction, Invariant::E3, detail).of(region);
                self.findings.add(anomaly.at(&newest.topic, newest.place.0, newest.place.1));
            }
        }
        self.findings
    }
}

/// Region and epoch of each frame of an exchange message (the layout is in `src/engine/exchange/frame.rs`); None when it is none.
pub fn frame_heads(mut payload: &[u8]) -> Option<Vec<(RegionId, Epoch)>> {
    const HEAD_BYTES: usize = 40;
    let mut heads = Vec::new();
    while !payload.is_empty() {
        let head = payload.get(..HEAD_BYTES)?;
        let number = |at: usize| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
        if &head[..2] != b"SX" {
            return None;
        }
        let region = RegionId { stage: StageId(number(4)?), partition: number(8)? };
        heads.push((region, Epoch(u64::from(number(16)?) | u64::from(number(20)?) << 32)));
        payload = payload.get(HEAD_BYTES + number(32)? as usize + number(36)? as usize..)?;
    }
    Some(heads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use streamshield_core::ids::{Incarnation, PlanFingerprint};
    use streamshield_core::watermark::Watermark;

    const REGION: RegionId = RegionId { stage: StageId(0), partition: 2 };

    fn frame(epoch: u64) -> Vec<u8> {
        let mut bytes = b"SX\x01\x00".to_vec();
        bytes.extend([0, 2, 7].map(u32::to_le_bytes).concat());
        bytes.extend(epoch.to_le_bytes());
        bytes.extend(0_i64.to_le_bytes());
        bytes.extend([3_u32, 2].map(u32::to_le_bytes).concat());
        bytes.extend(*b"headb");
        bytes
    }

    fn found(epochs: &[u64], last: u64) -> Vec<AnomalyKind> {
        let record = EpochRecord {
            version: 1,
            region: REGION,
            epoch: Epoch(last),
            incarnation: Incarnation(1),
            transactional_id: "a".into(),
            plan: PlanFingerprint(1),
            now_ms: 0,
            steps: vec![],
            positions: vec![],
            upstreams: vec![],
            watermark: Watermark::MIN,
            digest: None,
            delta: None,
            finished: false,
        };
        let last = BTreeMap::from([(REGION, record)]);
        let mut check = ExchangeCheck::default();
        check.begin("job-x-repartition");
        check.take(0, 0, &epochs.iter().flat_map(|epoch| frame(*epoch)).collect::<Vec<_>>());
        check.finish(&last).anomalies.into_iter().map(|anomaly| anomaly.kind).collect()
    }

    #[test]
    fn rows_of_epochs_without_record_and_epochs_that_go_back_are_found() {
        assert_eq!(found(&[2, 3, 3, 7], 7), []);
        assert_eq!(found(&[2, 8], 7), [AnomalyKind::TornTransaction]);
        assert_eq!(found(&[3, 2], 7), [AnomalyKind::Nonmonotonic]);
    }

    #[test]
    fn what_is_cut_is_no_message() {
        let bytes = frame(3);
        assert_eq!(frame_heads(&bytes), Some(vec![(REGION, Epoch(3))]));
        assert!((1..bytes.len()).all(|length| frame_heads(&bytes[..length]).is_none()));
    }
}

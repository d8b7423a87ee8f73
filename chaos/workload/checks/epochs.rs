//! Changelogs: what the committed epoch records of each region say, one after the other, and who has written them.

use crate::findings::{Anomaly, AnomalyKind, Findings, Invariant};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use streamshield_core::cluster::OwnerHistory;
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::RegionId;

/// The key of epoch records; what lies before one without it is its delta.
const EPOCH_KEY: &[u8] = b"epoch";

/// See the module text.
#[derive(Default)]
pub struct EpochsCheck {
    topic: String,
    /// Partitions that do not begin with the first epoch any more.
    trimmed: BTreeSet<i32>,
    /// Who has written for each region, one after the other, and where the first epoch of each turn lies.
    writers: BTreeMap<RegionId, Vec<Turn>>,
    /// Parts of a delta that no record has followed yet, and their bytes.
    waiting: HashMap<i32, (u32, u64)>,
    found: EpochsFound,
}

/// Epochs of one writer in a row.
struct Turn {
    writer: String,
    epochs: u64,
    topic: String,
    place: (i32, i64),
}

/// What was read.
#[derive(Default)]
pub struct EpochsFound {
    pub findings: Findings,
    /// The first and the last record that is there, by region.
    pub first: BTreeMap<RegionId, (String, EpochRecord)>,
    pub last: BTreeMap<RegionId, EpochRecord>,
    pub incarnations: BTreeSet<u64>,
    /// Epochs before the first records that are there: trimmed before anybody here has looked at them.
    pub unseen: u64,
}

impl EpochsCheck {
    /// The next messages are of this topic.
    pub fn begin(&mut self, topic: &str, trimmed: BTreeSet<i32>) {
        self.end_topic();
        (self.topic, self.trimmed) = (topic.to_string(), trimmed);
    }

    pub fn take(&mut self, partition: i32, offset: i64, key: Option<&[u8]>, payload: &[u8]) {
        if key != Some(EPOCH_KEY) {
            let (chunks, bytes) = self.waiting.entry(partition).or_default();
            (*chunks, *bytes) = (*chunks + 1, *bytes + payload.len() as u64);
            return;
        }
        let waiting = self.waiting.remove(&partition).unwrap_or_default();
        let record = match EpochRecord::decode(payload) {
            Ok(record) => record,
            Err(error) => return self.add(AnomalyKind::BrokenEpochs, format!("E-1: {error}"), None, (partition, offset)),
        };
        let region = record.region;
        let previous = self.found.last.get(&region);
        let is_first = previous.is_none();
        let followed = match previous {
            Some(previous) => previous.check_next(&record),
            None if self.trimmed.contains(&partition) => Ok(()),
            None => record.check_first(),
        };
        let mut problems: Vec<(AnomalyKind, String)> = followed.err().map(|error| (AnomalyKind::BrokenEpochs, error)).into_iter().collect();
        if i64::from(region.partition) != i64::from(partition) {
            problems.push((AnomalyKind::BrokenEpochs, format!("E-1: {region} has written an epoch into partition {partition}")));
        }
        let wanted = record.delta.map_or((0, 0), |delta| (delta.chunks, delta.bytes));
        // The trim may have left the end of a delta before the first record.
        if wanted != waiting && !(is_first && self.trimmed.contains(&partition)) {
            let detail =
                format!("E-3: {region} epoch {} has {wanted:?} (parts, bytes) of a delta before it, there are {waiting:?}", record.epoch);
            problems.push((AnomalyKind::TornTransaction, detail));
        }
        let turns = self.writers.entry(region).or_default();
        match turns.last_mut().filter(|turn| turn.writer == record.transactional_id) {
            Some(turn) => turn.epochs += 1,
            None => {
                let (writer, topic) = (record.transactional_id.clone(), self.topic.clone());
                turns.push(Turn { writer, epochs: 1, topic, place: (partition, offset) });
            }
        }
        for (kind, detail) in problems {
            self.add(kind, detail, Some(region), (partition, offset));
        }
        self.found.incarnations.insert(record.incarnation.0);
        if is_first && self.trimmed.contains(&partition) {
            self.found.unseen += record.epoch.0.saturating_sub(1);
        }
        if is_first {
            self.found.first.insert(region, (self.topic.clone(), record.clone()));
        }
        self.found.last.insert(region, record);
        for invariant in [Invariant::E1, Invariant::E2, Invariant::E5] {
            self.found.findings.looked_at(invariant, 1);
        }
    }

    fn add(&mut self, kind: AnomalyKind, detail: String, region: Option<RegionId>, (partition, offset): (i32, i64)) {
        let invariant = Invariant::of_message(&detail).unwrap_or(Invariant::E1);
        let mut anomaly = Anomaly::new(kind, invariant, detail).at(&self.topic, partition, offset);
        anomaly.key = region.map(|region| region.to_string());
        self.found.findings.add(anomaly);
    }

    fn end_topic(&mut self) {
        for (partition, (chunks, bytes)) in std::mem::take(&mut self.waiting) {
            let detail = format!("E-3: {chunks} parts of a delta ({bytes} bytes) without an epoch record behind them");
            self.add(AnomalyKind::TornTransaction, detail, None, (partition, -1));
        }
    }

    /// `history` must have been read after the changelogs: a job that is alive may have changed owners meanwhile.
    pub fn finish(mut self, mut history: OwnerHistory) -> EpochsFound {
        self.end_topic();
        for (region, turns) in std::mem::take(&mut self.writers) {
            for turn in turns {
                match history.commits(region, &turn.writer) {
                    // Of a log that was trimmed not every epoch is judged, and only those count as looked at.
                    Ok(is_judged) => self.found.findings.looked_at(Invariant::O1, if is_judged { turn.epochs } else { 0 }),
                    Err(error) => {
                        self.found.findings.looked_at(Invariant::O1, turn.epochs);
                        self.topic = turn.topic;
                        self.add(AnomalyKind::ForeignWriter, error, Some(region), turn.place);
                    }
                }
            }
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use streamshield_core::epoch::{DeltaHead, Step};
    use streamshield_core::ids::{Digest, Epoch, Incarnation, PlanFingerprint, StageId};
    use streamshield_core::watermark::Watermark;

    const REGION: RegionId = RegionId { stage: StageId(1), partition: 0 };

    fn record(writer: &str, epoch: u64, from: i64, to: i64) -> EpochRecord {
        EpochRecord {
            version: 1,
            region: REGION,
            epoch: Epoch(epoch),
            incarnation: Incarnation(1),
            transactional_id: writer.into(),
            plan: PlanFingerprint(1),
            now_ms: epoch as i64,
            steps: if from == to { vec![] } else { vec![Step::Read { input: 0, from, to }] },
            positions: vec![to],
            upstreams: vec![],
            watermark: Watermark(to),
            digest: None,
            delta: None,
            finished: false,
        }
    }

    /// What is found in a changelog of these records; `a` and `b` own the region, one after the other.
    fn found(records: &[EpochRecord]) -> Vec<(AnomalyKind, Invariant)> {
        let mut history = OwnerHistory::default();
        history.own(REGION, Some("a".into()));
        history.own(REGION, Some("b".into()));
        let mut check = EpochsCheck::default();
        check.begin("job-count-changelog", BTreeSet::new());
        for (offset, record) in records.iter().enumerate() {
            check.take(0, offset as i64, Some(EPOCH_KEY), &record.encode());
        }
        check.finish(history).findings.anomalies.into_iter().map(|anomaly| (anomaly.kind, anomaly.invariant)).collect()
    }

    #[test]
    fn a_whole_changelog_is_clean() {
        assert_eq!(found(&[record("a", 1, 5, 5), record("a", 2, 5, 9), record("b", 3, 9, 12)]), []);
    }

    #[test]
    fn a_missing_or_doubled_epoch_is_found() {
        let broken = [(AnomalyKind::BrokenEpochs, Invariant::E1)];
        assert_eq!(found(&[record("a", 1, 5, 5), record("a", 3, 5, 9)]), broken);
        assert_eq!(found(&[record("a", 1, 5, 5), record("a", 2, 5, 9), record("a", 2, 5, 9)]), broken);
        assert_eq!(found(&[record("a", 2, 5, 9)]), broken);
    }

    #[test]
    fn a_trimmed_changelog_says_how_many_epochs_nobody_has_looked_at() {
        let unseen = |trimmed: &[i32]| {
            let mut check = EpochsCheck::default();
            check.begin("job-count-changelog", trimmed.iter().copied().collect());
            check.take(0, 40, Some(EPOCH_KEY), &record("a", 8, 5, 9).encode());
            check.take(0, 41, Some(EPOCH_KEY), &record("a", 9, 9, 9).encode());
            let found = check.finish(OwnerHistory::from_middle(BTreeSet::new()));
            (found.unseen, found.findings.count(AnomalyKind::BrokenEpochs))
        };
        assert_eq!((unseen(&[0]), unseen(&[])), ((7, 0), (0, 1)));
    }

    #[test]
    fn steps_that_skip_or_repeat_input_are_found() {
        assert_eq!(found(&[record("a", 1, 5, 5), record("a", 2, 6, 9)]), [(AnomalyKind::BrokenEpochs, Invariant::E2)]);
        assert_eq!(found(&[record("a", 1, 5, 5), record("a", 2, 4, 9)]), [(AnomalyKind::BrokenEpochs, Invariant::E2)]);
    }

    #[test]
    fn a_watermark_that_goes_back_is_found() {
        let back = EpochRecord { watermark: Watermark(3), ..record("a", 2, 5, 9) };
        assert_eq!(found(&[record("a", 1, 5, 5), back]), [(AnomalyKind::BrokenEpochs, Invariant::E5)]);
    }

    #[test]
    fn an_epoch_of_an_earlier_owner_or_of_a_stranger_is_found() {
        let foreign = [(AnomalyKind::ForeignWriter, Invariant::O1)];
        assert_eq!(found(&[record("b", 1, 5, 5), record("a", 2, 5, 9)]), foreign);
        assert_eq!(found(&[record("c", 1, 5, 5)]), foreign);
    }

    #[test]
    fn a_delta_that_is_not_whole_is_found() {
        let with_delta = EpochRecord { delta: Some(DeltaHead { chunks: 2, bytes: 8, digest: Digest(0) }), ..record("a", 1, 5, 5) };
        let take = |parts: usize, with_record: bool| {
            let mut history = OwnerHistory::default();
            history.own(REGION, Some("a".into()));
            let mut check = EpochsCheck::default();
            check.begin("t", BTreeSet::new());
            (0..parts).for_each(|part| check.take(0, part as i64, Some(b"delta"), b"1234"));
            if with_record {
                check.take(0, 9, Some(EPOCH_KEY), &with_delta.encode());
            }
            check.finish(history).findings.count(AnomalyKind::TornTransaction)
        };
        assert_eq!((take(2, true), take(1, true), take(2, false)), (0, 1, 1));
    }
}

//! `markers`: one transaction writes a row into every partition. If one is missing while another is there, the transaction is torn.

use super::lanes::{MarkersOf, RecordLane, Step};
use super::rows::MarkerRow;
use super::{Row, foreign, placed};
use crate::feeder::Sent;
use crate::findings::{Anomaly, AnomalyKind, Findings, Invariant};
use std::collections::BTreeMap;

/// See the module text.
pub struct MarkersCheck<'a> {
    sent: &'a Sent,
    topic: String,
    /// By output partition, then by the input partition of the record: what one region writes is in order, what several write is not.
    lanes: Vec<Vec<RecordLane<MarkersOf>>>,
    /// Partition and offset of the last row of each marker: where to look for a torn one.
    places: Vec<Option<(i32, i64)>>,
    findings: Findings,
    rows: u64,
}

impl<'a> MarkersCheck<'a> {
    pub fn new(sent: &'a Sent, topic: &str) -> MarkersCheck<'a> {
        let partitions = sent.schedule.settings.partitions;
        let lanes = || (0..partitions).map(|partition| RecordLane::new(MarkersOf(partition))).collect();
        MarkersCheck {
            sent,
            topic: topic.to_string(),
            lanes: (0..partitions).map(|_| lanes()).collect(),
            places: vec![None; sent.records.div_ceil(sent.schedule.settings.marker_every) as usize],
            findings: Findings::default(),
            rows: 0,
        }
    }

    pub fn take(&mut self, row: &Row<'_>) {
        self.rows += 1;
        let (schedule, records) = (&self.sent.schedule, self.sent.records);
        let parsed = serde_json::from_slice::<MarkerRow>(row.payload).ok();
        let parsed = parsed.filter(|parsed| (0..schedule.settings.partitions).contains(&parsed.part));
        let n = parsed.and_then(|parsed| u64::try_from(parsed.n).ok()).filter(|n| *n < records);
        let (Some(n), Some(lanes)) = (n, self.lanes.get_mut(row.partition as usize)) else {
            return self.findings.add(foreign(&self.topic, row));
        };
        let lane = &mut lanes[schedule.partition_of_key(schedule.key_of(n)) as usize];
        let step = lane.take(schedule, records, n);
        if step != Step::Foreign {
            self.places[(n / schedule.settings.marker_every) as usize] = Some((row.partition, row.offset));
        }
        let (kind, what) = match step {
            Step::Expected => return,
            Step::Belated => (AnomalyKind::Nonmonotonic, "comes after a later one"),
            Step::Duplicate => (AnomalyKind::Duplicate, "comes again"),
            Step::Foreign => (AnomalyKind::ForeignValue, "is no marker"),
        };
        let invariant = if kind == AnomalyKind::Nonmonotonic { Invariant::E2 } else { Invariant::E3 };
        self.findings.add(Anomaly::new(kind, invariant, format!("record {n} {what}")).of(n).at(&self.topic, row.partition, row.offset));
    }

    pub fn finish(mut self) -> Findings {
        let (schedule, records) = (&self.sent.schedule, self.sent.records);
        let partitions = self.lanes.len();
        // Marker → partitions without it.
        let mut missing: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (partition, lanes) in self.lanes.into_iter().enumerate() {
            for lane in lanes {
                let of_lane = lane.finish(schedule, records);
                let beyond = of_lane.count() - of_lane.values().count() as u64;
                let detail = format!("and {beyond} more markers");
                self.findings.add_many(Anomaly::new(AnomalyKind::LostWrite, Invariant::E3, detail).in_topic(&self.topic), beyond);
                of_lane.values().for_each(|n| missing.entry(n).or_default().push(partition));
            }
        }
        for (n, without) in missing {
            let anomaly = if without.len() < partitions {
                let detail = format!("marker {n} is in {} partitions, and not in {without:?}", partitions - without.len());
                Anomaly::new(AnomalyKind::TornTransaction, Invariant::E3, detail)
            } else {
                Anomaly::new(AnomalyKind::LostWrite, Invariant::E3, format!("marker {n} is in no partition"))
            };
            let place = self.places[(n / schedule.settings.marker_every) as usize];
            self.findings.add(placed(anomaly.of(n), &self.topic, place));
        }
        self.findings.looked_at(Invariant::E3, self.rows);
        self.findings.rows_read.insert(self.topic, self.rows);
        self.findings
    }
}

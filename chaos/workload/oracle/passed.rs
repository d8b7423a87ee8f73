//! `passed`: every row that can be decoded comes out once, and those of a key in their order.

use super::lanes::{KeyLane, Step};
use super::rows::PassedRow;
use super::{Row, foreign};
use crate::feeder::Sent;
use crate::findings::{Anomaly, AnomalyKind, Findings, Invariant};
use crate::payload::Key;
use crate::schedule::{DataFault, mix};

/// One key: its values, and a sum by which a row with another row's content shows.
#[derive(Clone, Debug, Default)]
struct KeyRows {
    lane: KeyLane,
    rows: u64,
    sum: u64,
}

/// See the module text.
pub struct PassedCheck<'a> {
    sent: &'a Sent,
    topic: String,
    keys: Vec<KeyRows>,
    /// How often each injected record has come.
    injected: Vec<u8>,
    findings: Findings,
    rows: u64,
}

/// What ties the place of a row in its key to what it says.
fn hash(n: u64, seq: u64) -> u64 {
    mix(n, seq)
}

impl<'a> PassedCheck<'a> {
    pub fn new(sent: &'a Sent, topic: &str) -> PassedCheck<'a> {
        PassedCheck {
            sent,
            topic: topic.to_string(),
            keys: vec![KeyRows::default(); sent.schedule.settings.keys as usize],
            injected: vec![0; sent.schedule.injected_total() as usize],
            findings: Findings::default(),
            rows: 0,
        }
    }

    pub fn take(&mut self, row: &Row<'_>) {
        self.rows += 1;
        let Ok(parsed) = serde_json::from_slice::<PassedRow<'_>>(row.payload) else {
            return self.findings.add(foreign(&self.topic, row));
        };
        if parsed.n < 0 {
            return self.take_injected(row, &parsed);
        }
        let (n, seq, schedule) = (parsed.n as u64, parsed.seq as u64, &self.sent.schedule);
        let key = match parsed.k.as_deref().and_then(Key::parse) {
            // A number beyond all records would be skipped to one by one.
            Some(Key::Numbered(key)) if n < self.sent.records && seq <= self.sent.records && schedule.key_of(n) == key => key,
            _ => return self.findings.add(foreign(&self.topic, row)),
        };
        if parsed.v != schedule.value_of(n) || parsed.due_ms != schedule.due_ms(n) {
            return self.findings.add(foreign(&self.topic, row));
        }
        let rows = &mut self.keys[key as usize];
        let (kind, detail) = match rows.lane.take(seq) {
            Step::Expected => {
                rows.rows += 1;
                rows.sum = rows.sum.wrapping_add(hash(n, seq));
                return;
            }
            Step::Belated => {
                rows.rows += 1;
                rows.sum = rows.sum.wrapping_add(hash(n, seq));
                (AnomalyKind::Nonmonotonic, format!("number {seq} of the key (record {n}) comes after a later one"))
            }
            Step::Duplicate => (AnomalyKind::Duplicate, format!("number {seq} of the key (record {n}) comes again")),
            Step::Foreign => (AnomalyKind::ForeignValue, format!("record {n} has number {seq}")),
        };
        let invariant = if kind == AnomalyKind::Nonmonotonic { Invariant::E2 } else { Invariant::E3 };
        self.findings.add(Anomaly::new(kind, invariant, detail).of(format!("k{key}")).at(&self.topic, row.partition, row.offset));
    }

    fn take_injected(&mut self, row: &Row<'_>, parsed: &PassedRow<'_>) {
        let number = -(parsed.n + 1) as u64;
        let fault = self.sent.schedule.injected_at(number).map(|injected| injected.fault).filter(|fault| fault.is_row());
        let fits = match (fault, parsed.k.as_deref()) {
            (Some(DataFault::NullKey), key) => key.is_none(),
            (Some(fault), Some(key)) => Key::parse(key) == Some(Key::Injected(fault, number)),
            _ => false,
        };
        if !fits {
            return self.findings.add(foreign(&self.topic, row));
        }
        let times = &mut self.injected[number as usize];
        *times = times.saturating_add(1);
        if *times > 1 {
            let anomaly = Anomaly::new(AnomalyKind::Duplicate, Invariant::E3, format!("injected record {number} comes again"));
            self.findings.add(anomaly.at(&self.topic, row.partition, row.offset));
        }
    }

    pub fn finish(mut self) -> Findings {
        let schedule = &self.sent.schedule;
        let mut expected = vec![(0_u64, 0_u64); self.keys.len()];
        for n in 0..self.sent.records {
            let (count, sum) = &mut expected[schedule.key_of(n) as usize];
            *count += 1;
            *sum = sum.wrapping_add(hash(n, *count));
        }
        for (key, (rows, (count, sum))) in self.keys.into_iter().zip(expected).enumerate() {
            let (had, found) = (rows.rows, rows.sum);
            let missing = rows.lane.finish(count);
            let lost = Anomaly::new(AnomalyKind::LostWrite, Invariant::E3, format!("of 1 to {count} there is no {}", missing.describe()));
            self.findings.add_many(lost.of(format!("k{key}")).in_topic(&self.topic), missing.count());
            if missing.count() == 0 && (had, found) != (count, sum) {
                let detail = format!("{had} rows for {count} records, or rows of other records in their places");
                self.findings
                    .add(Anomaly::new(AnomalyKind::ForeignValue, Invariant::E3, detail).of(format!("k{key}")).in_topic(&self.topic));
            }
        }
        for injected in schedule.injected.iter().filter(|injected| injected.fault.is_row()) {
            let numbers = injected.first..injected.first + injected.count;
            let lost = numbers.clone().filter(|number| self.injected[*number as usize] == 0).count() as u64;
            let detail = format!("{lost} of the injected records {numbers:?} ({})", injected.fault);
            self.findings.add_many(Anomaly::new(AnomalyKind::LostWrite, Invariant::E3, detail).in_topic(&self.topic), lost);
        }
        self.findings.looked_at(Invariant::E3, self.rows);
        self.findings.looked_at(Invariant::E2, self.rows);
        self.findings.rows_read.insert(self.topic, self.rows);
        self.findings
    }
}

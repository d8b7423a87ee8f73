//! `transfers`: two rows of one step, `−v` and `+v`, beside each other in one partition; the total is 0 and each account has what it must have.

use super::lanes::{OfPartition, RecordLane, Step};
use super::rows::TransferRow;
use super::{Row, foreign};
use crate::feeder::Sent;
use crate::findings::{Anomaly, AnomalyKind, Findings, Invariant};

struct Lane {
    records: RecordLane<OfPartition>,
    /// The transfer of which the first row has come, and where.
    half: Option<(u64, i64)>,
}

/// See the module text.
pub struct TransfersCheck<'a> {
    sent: &'a Sent,
    topic: String,
    lanes: Vec<Lane>,
    balances: Vec<i64>,
    findings: Findings,
    rows: u64,
}

impl<'a> TransfersCheck<'a> {
    pub fn new(sent: &'a Sent, topic: &str) -> TransfersCheck<'a> {
        let settings = &sent.schedule.settings;
        TransfersCheck {
            sent,
            topic: topic.to_string(),
            lanes: (0..settings.partitions)
                .map(|partition| Lane { records: RecordLane::new(OfPartition(partition)), half: None })
                .collect(),
            balances: vec![0; settings.accounts as usize],
            findings: Findings::default(),
            rows: 0,
        }
    }

    pub fn take(&mut self, row: &Row<'_>) {
        self.rows += 1;
        let Some((n, account, amount)) = self.parse(row) else { return self.findings.add(foreign(&self.topic, row)) };
        let schedule = &self.sent.schedule;
        self.balances[account as usize] += amount;
        let Some(lane) = self.lanes.get_mut(row.partition as usize) else { return self.findings.add(foreign(&self.topic, row)) };
        let is_first = amount < 0;
        let torn = |n: u64, what: &str| {
            Anomaly::new(AnomalyKind::TornTransaction, Invariant::E3, format!("of transfer {n} there is only {what}")).of(n)
        };
        match lane.half.take() {
            Some((half, _)) if half == n && !is_first => {}
            other => {
                if let Some((half, offset)) = other {
                    self.findings.add(torn(half, "the debit").at(&self.topic, row.partition, offset));
                }
                if is_first {
                    lane.half = Some((n, row.offset));
                    return;
                }
                return self.findings.add(torn(n, "the credit").at(&self.topic, row.partition, row.offset));
            }
        }
        let (kind, what) = match lane.records.take(schedule, self.sent.records, n) {
            Step::Expected => return,
            Step::Belated => (AnomalyKind::Nonmonotonic, "comes after a later one"),
            Step::Duplicate => (AnomalyKind::Duplicate, "comes again"),
            Step::Foreign => (AnomalyKind::ForeignValue, "is none of this partition"),
        };
        let invariant = if kind == AnomalyKind::Nonmonotonic { Invariant::E2 } else { Invariant::E3 };
        self.findings.add(Anomaly::new(kind, invariant, format!("transfer {n} {what}")).of(n).at(&self.topic, row.partition, row.offset));
    }

    /// Number, account and amount of a row that a transfer of the schedule explains.
    fn parse(&self, row: &Row<'_>) -> Option<(u64, u64, i64)> {
        let parsed: TransferRow<'_> = serde_json::from_slice(row.payload).ok()?;
        let (n, account) = (u64::try_from(parsed.n).ok()?, parsed.account.strip_prefix('a')?.parse().ok()?);
        if n >= self.sent.records {
            return None;
        }
        let (value, (from, to)) = (self.sent.schedule.value_of(n), self.sent.schedule.accounts_of(n));
        let is_its_own = (account, parsed.amount) == (from, -value) || (account, parsed.amount) == (to, value);
        is_its_own.then_some((n, account, parsed.amount))
    }

    pub fn finish(mut self) -> Findings {
        let schedule = &self.sent.schedule;
        for (partition, lane) in self.lanes.into_iter().enumerate() {
            if let Some((half, offset)) = lane.half {
                let detail = format!("of transfer {half} there is only the debit");
                let anomaly = Anomaly::new(AnomalyKind::TornTransaction, Invariant::E3, detail).of(half);
                self.findings.add(anomaly.at(&self.topic, partition as i32, offset));
            }
            let missing = lane.records.finish(schedule, self.sent.records);
            let mut lost = Anomaly::new(AnomalyKind::LostWrite, Invariant::E3, format!("there is no transfer {}", missing.describe()));
            (lost.topic, lost.partition) = (Some(self.topic.clone()), Some(partition as i32));
            self.findings.add_many(lost, missing.count());
        }
        let mut expected = vec![0_i64; self.balances.len()];
        for n in 0..self.sent.records {
            let (value, (from, to)) = (schedule.value_of(n), schedule.accounts_of(n));
            expected[from as usize] -= value;
            expected[to as usize] += value;
        }
        let total: i64 = self.balances.iter().sum();
        if total != 0 {
            // However much is missing: what is there is there by whole transfers.
            let detail = format!("all accounts together have {total} instead of 0");
            self.findings.add(Anomaly::new(AnomalyKind::TornTransaction, Invariant::E3, detail).in_topic(&self.topic));
        }
        for (account, (found, wanted)) in self.balances.iter().zip(&expected).enumerate().filter(|(_, (found, wanted))| found != wanted) {
            let anomaly = Anomaly::new(AnomalyKind::WrongTotal, Invariant::E3, format!("the account has {found} instead of {wanted}"));
            self.findings.add(anomaly.of(format!("a{account}")).in_topic(&self.topic));
        }
        self.findings.looked_at(Invariant::E3, self.rows);
        self.findings.looked_at(Invariant::E2, self.rows);
        self.findings.rows_read.insert(self.topic, self.rows);
        self.findings
    }
}

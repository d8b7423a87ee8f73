//! What the oracle has found: anomalies with the names that Jepsen gives them, and how much was verified.
//!
//! The list is bounded, the counts are not: a broken release may lose a million rows, and the first hundred of each kind tell which.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Anomalies that are kept in full, per kind.
pub const KEPT_PER_KIND: usize = 100;

/// What is wrong. The names are those of Jepsen's Kafka tests where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnomalyKind {
    /// What was sent has left no trace where it must.
    LostWrite,
    /// The same value at two places.
    Duplicate,
    /// Seen by a reader of committed messages, and not there any more: it read what was aborted.
    AbortedRead,
    /// Committed, and never seen by a reader that had read to the end.
    Unseen,
    /// One offset has held two values.
    InconsistentOffsets,
    /// A part of a transaction is there and another is not.
    TornTransaction,
    /// Values of one sender in another order than they were sent.
    Nonmonotonic,
    /// A sum, count or balance that the records do not give.
    WrongTotal,
    /// Emitted + late + dead letters is not what came in.
    NonConserved,
    /// A value that nobody has sent.
    ForeignValue,
    /// An epoch record that does not continue the one before it.
    BrokenEpochs,
    /// An epoch by somebody who did not own its region.
    ForeignWriter,
    /// Workers at one offset of the control log do not agree.
    Divergence,
    /// An open transaction that nobody will end.
    HangingTransaction,
    /// What a restore may need is not there.
    MissingLog,
    /// A topic with the job's name that is none of the job's.
    OrphanTopic,
}

impl AnomalyKind {
    pub const ALL: [AnomalyKind; 16] = [
        AnomalyKind::LostWrite,
        AnomalyKind::Duplicate,
        AnomalyKind::AbortedRead,
        AnomalyKind::Unseen,
        AnomalyKind::InconsistentOffsets,
        AnomalyKind::TornTransaction,
        AnomalyKind::Nonmonotonic,
        AnomalyKind::WrongTotal,
        AnomalyKind::NonConserved,
        AnomalyKind::ForeignValue,
        AnomalyKind::BrokenEpochs,
        AnomalyKind::ForeignWriter,
        AnomalyKind::Divergence,
        AnomalyKind::HangingTransaction,
        AnomalyKind::MissingLog,
        AnomalyKind::OrphanTopic,
    ];

    /// As in reports: `lost-write`.
    pub fn name(self) -> &'static str {
        match self {
            AnomalyKind::LostWrite => "lost-write",
            AnomalyKind::Duplicate => "duplicate",
            AnomalyKind::AbortedRead => "aborted-read",
            AnomalyKind::Unseen => "unseen",
            AnomalyKind::InconsistentOffsets => "inconsistent-offsets",
            AnomalyKind::TornTransaction => "torn-transaction",
            AnomalyKind::Nonmonotonic => "nonmonotonic",
            AnomalyKind::WrongTotal => "wrong-total",
            AnomalyKind::NonConserved => "non-conserved",
            AnomalyKind::ForeignValue => "foreign-value",
            AnomalyKind::BrokenEpochs => "broken-epochs",
            AnomalyKind::ForeignWriter => "foreign-writer",
            AnomalyKind::Divergence => "divergence",
            AnomalyKind::HangingTransaction => "hanging-transaction",
            AnomalyKind::MissingLog => "missing-log",
            AnomalyKind::OrphanTopic => "orphan-topic",
        }
    }
}

impl fmt::Display for AnomalyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The invariants of ARCHITECTURE.md that can be seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Invariant {
    #[serde(rename = "E-1")]
    E1,
    #[serde(rename = "E-2")]
    E2,
    #[serde(rename = "E-3")]
    E3,
    #[serde(rename = "E-4")]
    E4,
    #[serde(rename = "E-5")]
    E5,
    #[serde(rename = "O-1")]
    O1,
    #[serde(rename = "C-1")]
    C1,
    #[serde(rename = "K-2")]
    K2,
}

impl Invariant {
    pub const ALL: [Invariant; 8] =
        [Invariant::E1, Invariant::E2, Invariant::E3, Invariant::E4, Invariant::E5, Invariant::O1, Invariant::C1, Invariant::K2];

    pub fn id(self) -> &'static str {
        match self {
            Invariant::E1 => "E-1",
            Invariant::E2 => "E-2",
            Invariant::E3 => "E-3",
            Invariant::E4 => "E-4",
            Invariant::E5 => "E-5",
            Invariant::O1 => "O-1",
            Invariant::C1 => "C-1",
            Invariant::K2 => "K-2",
        }
    }

    /// The one that a message begins with: `E-2: s0/1 epoch 7 …`.
    pub fn of_message(message: &str) -> Option<Invariant> {
        Invariant::ALL.into_iter().find(|invariant| message.starts_with(invariant.id()))
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// One thing that is wrong, and where to look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anomaly {
    pub kind: AnomalyKind,
    pub invariant: Invariant,
    /// The key of the rows, the account, the region: what the anomaly is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<i64>,
    pub detail: String,
}

impl Anomaly {
    pub fn new(kind: AnomalyKind, invariant: Invariant, detail: impl Into<String>) -> Anomaly {
        Anomaly { kind, invariant, key: None, topic: None, partition: None, offset: None, detail: detail.into() }
    }

    pub fn of(mut self, key: impl fmt::Display) -> Anomaly {
        self.key = Some(key.to_string());
        self
    }

    pub fn in_topic(mut self, topic: &str) -> Anomaly {
        self.topic = Some(topic.to_string());
        self
    }

    pub fn at(mut self, topic: &str, partition: i32, offset: i64) -> Anomaly {
        (self.topic, self.partition, self.offset) = (Some(topic.to_string()), Some(partition), Some(offset));
        self
    }
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.kind, self.invariant)?;
        if let Some(topic) = &self.topic {
            write!(f, " {topic}")?;
        }
        if let Some(partition) = self.partition {
            write!(f, " partition {partition}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " offset {offset}")?;
        }
        if let Some(key) = &self.key {
            write!(f, " key {key}")?;
        }
        write!(f, ": {}", self.detail)
    }
}

/// What came in = what was counted + late rows + dead letters, for the part of the job that looks at event time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conservation {
    pub input: u64,
    pub counted: u64,
    pub late: u64,
    pub dead_letters: u64,
}

impl Conservation {
    pub fn holds(&self) -> bool {
        self.input == self.counted + self.late + self.dead_letters
    }
}

/// The outcome of a verification.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// Input records whose traces were all looked for.
    pub records_verified: u64,
    /// Output rows that were read for it, by topic: dead letters and late rows too.
    pub rows_read: BTreeMap<String, u64>,
    /// How often each invariant was looked at: rows, epochs, groups. A check that has seen nothing has proved nothing.
    pub checked: BTreeMap<Invariant, u64>,
    /// The first ones of each kind.
    pub anomalies: Vec<Anomaly>,
    /// All of them.
    pub count_by_kind: BTreeMap<AnomalyKind, u64>,
    pub count_by_invariant: BTreeMap<Invariant, u64>,
    /// What came in, and what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conservation: Option<Conservation>,
    /// Epochs that were trimmed from the changelogs before they could be looked at.
    #[serde(default)]
    pub epochs_unseen: u64,
    pub wall_seconds: f64,
    /// How many of each kind are in the list.
    #[serde(skip)]
    kept: BTreeMap<AnomalyKind, usize>,
}

impl Findings {
    pub fn is_clean(&self) -> bool {
        self.count_by_kind.is_empty()
    }

    pub fn total(&self) -> u64 {
        self.count_by_kind.values().sum()
    }

    pub fn count(&self, kind: AnomalyKind) -> u64 {
        self.count_by_kind.get(&kind).copied().unwrap_or(0)
    }

    pub fn add(&mut self, anomaly: Anomaly) {
        self.add_many(anomaly, 1);
    }

    /// `count` of the kind, of which only this one is described.
    pub fn add_many(&mut self, anomaly: Anomaly, count: u64) {
        if count > 0 {
            *self.count_by_kind.entry(anomaly.kind).or_default() += count;
            *self.count_by_invariant.entry(anomaly.invariant).or_default() += count;
            self.keep(anomaly);
        }
    }

    fn keep(&mut self, anomaly: Anomaly) {
        let kept = self.kept.entry(anomaly.kind).or_default();
        if *kept < KEPT_PER_KIND {
            *kept += 1;
            self.anomalies.push(anomaly);
        }
    }

    pub fn looked_at(&mut self, invariant: Invariant, times: u64) {
        *self.checked.entry(invariant).or_default() += times;
    }

    /// Takes in what another check has found.
    pub fn merge(&mut self, other: Findings) {
        for (topic, rows) in other.rows_read {
            *self.rows_read.entry(topic).or_default() += rows;
        }
        for (invariant, times) in other.checked {
            self.looked_at(invariant, times);
        }
        for (kind, count) in other.count_by_kind {
            *self.count_by_kind.entry(kind).or_default() += count;
        }
        for (invariant, count) in other.count_by_invariant {
            *self.count_by_invariant.entry(invariant).or_default() += count;
        }
        other.anomalies.into_iter().for_each(|anomaly| self.keep(anomaly));
        self.records_verified += other.records_verified;
        self.epochs_unseen += other.epochs_unseen;
        self.conservation = self.conservation.or(other.conservation);
    }

    /// One line: `clean, 1000000 records verified`, or what was found.
    pub fn summary(&self) -> String {
        if self.is_clean() {
            return format!("clean, {} records verified", self.records_verified);
        }
        let kinds: Vec<String> = self.count_by_kind.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        format!("{} in {} records", kinds.join(", "), self.records_verified)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_bounded_and_the_counts_are_not() {
        let mut findings = Findings::default();
        for n in 0..1_000 {
            findings.add(Anomaly::new(AnomalyKind::LostWrite, Invariant::E3, format!("{n}")));
        }
        findings.add_many(Anomaly::new(AnomalyKind::Duplicate, Invariant::E1, "many"), 5_000);
        assert_eq!((findings.anomalies.len(), findings.total()), (KEPT_PER_KIND + 1, 6_000));
        assert_eq!(findings.count(AnomalyKind::Duplicate), 5_000);
        let mut merged = Findings::default();
        merged.merge(findings.clone());
        merged.merge(findings);
        assert_eq!(merged.anomalies.iter().filter(|anomaly| anomaly.kind == AnomalyKind::LostWrite).count(), KEPT_PER_KIND);
        assert_eq!((merged.anomalies.len(), merged.total()), (KEPT_PER_KIND + 2, 12_000));
    }

    #[test]
    fn names_in_reports_are_those_in_the_json() {
        for kind in AnomalyKind::ALL {
            assert_eq!(serde_json::to_value(kind).expect("plain data"), kind.name());
        }
        for invariant in Invariant::ALL {
            assert_eq!(serde_json::to_value(invariant).expect("plain data"), invariant.id());
            assert_eq!(Invariant::of_message(&format!("{invariant}: s0/1 …")), Some(invariant));
        }
    }
}

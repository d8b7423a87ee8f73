//! Dead letters and late rows: each faulty record has exactly the letters that it must have, with its original bytes.
//!
//! | fault | `passed` | `windows` | dead letters |
//! |---|---|---|---|
//! | undecodable, null value | – | – | one per source stage |
//! | oversized | – | – | one per source stage, cut, and saying how large it was |
//! | null key | one row | counted under NULL | – |
//! | far future | one row | – | one, of the stage that looks at event time |
//! | late | one row | counted, or one late row | – |

use super::Row;
use crate::feeder::Sent;
use crate::findings::{Anomaly, AnomalyKind, Findings, Invariant};
use crate::payload::{Key, Message, OVERSIZED_BYTES};
use crate::schedule::DataFault;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What the headers of a dead letter say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterHead {
    /// The stage that has refused it.
    pub stage: Option<u32>,
    /// The size of a record that was cut.
    pub truncated: Option<u64>,
    pub error: String,
}

impl LetterHead {
    /// From the headers' names and values.
    pub fn read<'h>(headers: impl Iterator<Item = (&'h str, &'h [u8])>) -> LetterHead {
        let mut head = LetterHead::default();
        for (name, value) in headers {
            let text = String::from_utf8_lossy(value);
            match name {
                "streamshield.region" => head.stage = text.strip_prefix('s').and_then(|rest| rest.split('/').next()?.parse().ok()),
                "streamshield.truncated" => head.truncated = text.parse().ok(),
                "streamshield.error" => head.error = text.into_owned(),
                _ => {}
            }
        }
        head
    }
}

/// Dead letters.
pub struct LettersCheck<'a> {
    sent: &'a Sent,
    topic: String,
    /// Source stages of the job.
    stages: BTreeSet<u32>,
    /// Injected record and stage → letters.
    letters: HashMap<(u64, u32), u32>,
    message: Message,
    findings: Findings,
    rows: u64,
}

impl<'a> LettersCheck<'a> {
    pub fn new(sent: &'a Sent, topic: &str, stages: BTreeSet<u32>) -> LettersCheck<'a> {
        LettersCheck {
            sent,
            topic: topic.to_string(),
            stages,
            letters: HashMap::new(),
            message: Message::default(),
            findings: Findings::default(),
            rows: 0,
        }
    }

    pub fn take(&mut self, row: &Row<'_>, head: &LetterHead) {
        self.rows += 1;
        let number = match row.key.and_then(|key| std::str::from_utf8(key).ok()).and_then(Key::parse) {
            Some(Key::Injected(fault, number)) if fault != DataFault::Late => Some((fault, number)),
            _ => None,
        };
        let injected =
            number.and_then(|(fault, number)| Some((*self.sent.schedule.injected_at(number).filter(|i| i.fault == fault)?, number)));
        let (Some((injected, number)), Some(stage)) = (injected, head.stage) else {
            let detail = format!("a dead letter that no faulty record explains: {}", head.error);
            let key = row.key.map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default();
            let anomaly = Anomaly::new(AnomalyKind::NonConserved, Invariant::E3, detail).of(key);
            return self.findings.add(anomaly.at(&self.topic, row.partition, row.offset));
        };
        *self.letters.entry((number, stage)).or_default() += 1;
        self.message.write_fault(&self.sent.schedule, injected.fault, number, injected.due_ms);
        let original = self.message.value.as_deref().unwrap_or_default();
        let is_whole = match injected.fault {
            DataFault::Oversized => {
                let says_so = head.truncated.is_some_and(|size| size >= OVERSIZED_BYTES as u64);
                says_so && !row.payload.is_empty() && original.starts_with(row.payload)
            }
            _ => head.truncated.is_none() && original == row.payload,
        };
        if !is_whole {
            let detail = format!("the dead letter of a record ({}) has {} bytes that are not its own", injected.fault, row.payload.len());
            let anomaly = Anomaly::new(AnomalyKind::ForeignValue, Invariant::E3, detail).of(number);
            self.findings.add(anomaly.at(&self.topic, row.partition, row.offset));
        }
    }

    /// Also how many letters the stage that looks at event time has written.
    pub fn finish(mut self) -> (Findings, u64) {
        let mut of_event_time = 0;
        for injected in self.sent.schedule.injected.iter().filter(|i| !i.fault.is_row() || i.fault == DataFault::FarFuture) {
            for number in injected.first..injected.first + injected.count {
                let by_stage: BTreeMap<u32, u32> =
                    self.stages.iter().map(|stage| (*stage, self.letters.get(&(number, *stage)).copied().unwrap_or(0))).collect();
                let total: u32 = by_stage.values().sum();
                let (lost, doubled) = if injected.fault == DataFault::FarFuture {
                    (u32::from(total == 0), total.saturating_sub(1))
                } else {
                    let lost = by_stage.values().filter(|letters| **letters == 0).count() as u32;
                    (lost, by_stage.values().map(|letters| letters.saturating_sub(1)).sum())
                };
                // Each letter of a far-future record is its; of the others it has one.
                of_event_time += u64::from(total > 0);
                let detail = format!("dead letters of a record ({}) by stage: {by_stage:?}", injected.fault);
                let of = |kind| Anomaly::new(kind, Invariant::E3, detail.clone()).of(number).in_topic(&self.topic);
                self.findings.add_many(of(AnomalyKind::LostWrite), u64::from(lost));
                self.findings.add_many(of(AnomalyKind::Duplicate), u64::from(doubled));
            }
        }
        self.findings.rows_read.insert(self.topic, self.rows);
        (self.findings, of_event_time)
    }
}

#[derive(Deserialize)]
struct LateRow<'a> {
    #[serde(borrow)]
    k: Option<Cow<'a, str>>,
}

/// Late rows. What was counted in a window is added at the end.
pub struct LateCheck<'a> {
    sent: &'a Sent,
    topic: String,
    late: Vec<u64>,
    findings: Findings,
    rows: u64,
}

impl<'a> LateCheck<'a> {
    pub fn new(sent: &'a Sent, topic: &str) -> LateCheck<'a> {
        let late = vec![0; sent.schedule.injected_total() as usize];
        LateCheck { sent, topic: topic.to_string(), late, findings: Findings::default(), rows: 0 }
    }

    pub fn take(&mut self, row: &Row<'_>) {
        self.rows += 1;
        let key = serde_json::from_slice::<LateRow<'_>>(row.payload).ok().and_then(|late| late.k);
        match key.as_deref().and_then(Key::parse) {
            Some(Key::Injected(DataFault::Late, number)) if (number as usize) < self.late.len() => self.late[number as usize] += 1,
            _ => {
                let detail = "late, although its window is not closed by any watermark before it".to_string();
                let anomaly = Anomaly::new(AnomalyKind::NonConserved, Invariant::E5, detail).of(key.as_deref().unwrap_or("null"));
                self.findings.add(anomaly.at(&self.topic, row.partition, row.offset));
            }
        }
    }

    /// Findings, and how many late rows there are.
    pub fn finish(mut self, counted: &[u64]) -> (Findings, u64) {
        let late_records = self.sent.schedule.injected.iter().filter(|injected| injected.fault == DataFault::Late);
        for number in late_records.flat_map(|injected| injected.first..injected.first + injected.count) {
            self.findings.looked_at(Invariant::E5, 1);
            let (late, counted) = (self.late[number as usize], counted[number as usize]);
            if late + counted != 1 {
                let detail = format!("an injected late record is late {late} times and counted {counted} times");
                let anomaly = Anomaly::new(AnomalyKind::NonConserved, Invariant::E5, detail).of(format!("l{number}"));
                self.findings.add(anomaly.in_topic(&self.topic));
            }
        }
        self.findings.rows_read.insert(self.topic, self.rows);
        (self.findings, self.rows)
    }
}

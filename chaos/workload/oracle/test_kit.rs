//! A job that does what it must, in memory: rows of all outputs, for tests that spoil some of them.

use super::letters::{LateCheck, LetterHead, LettersCheck};
use super::markers::MarkersCheck;
use super::passed::PassedCheck;
use super::seen::SeenCheck;
use super::transfers::TransfersCheck;
use super::windows::{NULL_KEY, WindowsCheck, WindowsDetail, groups};
use super::{Row, conserve};
use crate::feeder::Sent;
use crate::findings::Findings;
use crate::job::Topics;
use crate::observer::{Flow, Observation};
use crate::payload::{Key, Message};
use crate::schedule::{BULK_SHARE, BULK_TIME_MS, DataFault, Injected, LATE_MS, Schedule, Settings};
use crate::time::time_text;
use std::collections::BTreeMap;

pub const STAGES: [u32; 4] = [0, 1, 3, 4];
const WINDOW_STAGE: u32 = 1;

/// One message of an output. Offsets are places in the vector, per partition.
#[derive(Clone, Debug)]
pub struct Out {
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub payload: Vec<u8>,
    pub head: LetterHead,
}

fn out(partition: i32, payload: String) -> Out {
    Out { partition, key: None, payload: payload.into_bytes(), head: LetterHead::default() }
}

/// All outputs of a run.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    pub passed: Vec<Out>,
    pub windows: Vec<Out>,
    pub transfers: Vec<Out>,
    pub markers: Vec<Out>,
    pub letters: Vec<Out>,
    pub late: Vec<Out>,
}

/// A run with changes of rate, a hot key, bulk state and faulty data of each kind.
pub fn sent() -> Sent {
    let settings = Settings {
        partitions: 4,
        rate: 1_000,
        keys: 40,
        accounts: 20,
        marker_every: 10,
        window_ms: 10,
        bulk_bytes: 384 * 50,
        ..Settings::default()
    };
    let mut schedule = Schedule::new(11, settings, 1_700_000_000_000);
    schedule.set_rate(1_000, 5.0);
    schedule.set_rate(2_000, 1.0);
    schedule.set_hot_key(500, 0.5);
    for (index, fault) in DataFault::ALL.into_iter().enumerate() {
        let due_ms = schedule.due_ms(400 + 100 * index as u64);
        schedule.injected.push(Injected { fault, first: 3 * index as u64, count: 3, due_ms });
    }
    Sent { schedule, records: 3_000, ended_ms: 1_700_000_010_000, behind_ms_max: 0, undelivered: 0, stretches: Vec::new() }
}

impl Outputs {
    /// What a right job makes of it.
    pub fn of(sent: &Sent) -> Outputs {
        let mut outputs = Outputs::default();
        outputs.add_numbered(sent);
        outputs.add_windows(sent);
        outputs.add_injected(sent);
        outputs
    }

    fn add_numbered(&mut self, sent: &Sent) {
        let (schedule, partitions) = (&sent.schedule, sent.schedule.settings.partitions);
        let mut sequences = vec![0; schedule.settings.keys as usize];
        for n in 0..sent.records {
            let record = schedule.record(n);
            let (key, v, due_ms) = (record.key, record.value, record.due_ms);
            sequences[key as usize] += 1;
            let seq = sequences[key as usize];
            let partition = schedule.partition_of_key(key);
            self.passed.push(out(partition, format!(r#"{{"k":"k{key}","n":{n},"seq":{seq},"v":{v},"due_ms":{due_ms}}}"#)));
            let (from, to) = schedule.accounts_of(n);
            self.transfers.push(out(partition, format!(r#"{{"n":{n},"account":"a{from}","amount":-{v}}}"#)));
            self.transfers.push(out(partition, format!(r#"{{"n":{n},"account":"a{to}","amount":{v}}}"#)));
            if schedule.is_marker(n) {
                let rows = (0..partitions).map(|part| out((part + partition) % partitions, format!(r#"{{"n":{n},"part":{part}}}"#)));
                self.markers.extend(rows);
            }
        }
    }

    fn add_windows(&mut self, sent: &Sent) {
        let schedule = &sent.schedule;
        let row = |key: &str, end_ms: i64, n: u64, s: i64, due_ms: i64| {
            let key = if key == "null" { key.to_string() } else { format!("\"{key}\"") };
            out(0, format!(r#"{{"k":{key},"window_end":"{}","n":{n},"s":{s},"due_ms":{due_ms}}}"#, time_text(end_ms) + "Z"))
        };
        groups(sent, &mut |end_ms, key, group| {
            let key = if key == NULL_KEY { "null".to_string() } else { format!("k{key}") };
            self.windows.push(row(&key, end_ms, group.count, group.sum, group.due_ms));
        });
        let mut bulk: BTreeMap<u64, (u64, i64)> =
            (0..schedule.settings.bulk_keys()).map(|key| (key, (1, schedule.first_bulk_value(key)))).collect();
        for n in (0..sent.records).step_by(BULK_SHARE as usize) {
            let key = schedule.bulk_key_of(n).expect("the run has bulk state");
            let (count, sum) = bulk.entry(key).or_default();
            (*count, *sum) = (*count + 1, *sum + schedule.value_of(n));
        }
        for (key, (count, sum)) in bulk {
            self.windows.push(row(&format!("b{key}.x"), schedule.window_end_ms(BULK_TIME_MS), count, sum, 7));
        }
        // The first late record is counted, since nobody had closed its window; the others are late.
        let late = schedule.injected.iter().find(|injected| injected.fault == DataFault::Late).expect("the run has late records");
        let end_ms = schedule.window_end_ms(late.due_ms - LATE_MS);
        self.windows.push(row(&format!("l{}", late.first), end_ms, 1, 1, late.due_ms));
        for number in late.first + 1..late.first + late.count {
            self.late.push(out(0, format!(r#"{{"k":"l{number}","v":1}}"#)));
        }
    }

    fn add_injected(&mut self, sent: &Sent) {
        let (schedule, mut message) = (&sent.schedule, Message::default());
        for injected in &schedule.injected {
            let Injected { fault, due_ms, .. } = *injected;
            for number in injected.first..injected.first + injected.count {
                message.write_fault(schedule, fault, number, due_ms);
                if fault.is_row() {
                    let mut key = Vec::new();
                    Key::Injected(fault, number).write(0, &mut key);
                    let key = String::from_utf8(key).expect("ASCII");
                    let key = if fault == DataFault::NullKey { "null".to_string() } else { format!("\"{key}\"") };
                    let n = number + 1;
                    self.passed.push(out(message.partition, format!(r#"{{"k":{key},"n":-{n},"seq":0,"v":1,"due_ms":{due_ms}}}"#)));
                }
                let stages: &[u32] = match fault {
                    DataFault::FarFuture => &[WINDOW_STAGE],
                    DataFault::NullKey | DataFault::Late => &[],
                    _ => &STAGES,
                };
                for stage in stages {
                    let mut payload = message.value.clone().unwrap_or_default();
                    let truncated = (fault == DataFault::Oversized).then_some(payload.len() as u64 + 50);
                    payload.truncate(450_000);
                    let head = LetterHead { stage: Some(*stage), truncated, error: "bad".into() };
                    self.letters.push(Out { partition: 0, key: message.key.clone(), payload, head });
                }
            }
        }
    }

    /// What the oracle says of it.
    pub fn verify(&self, sent: &Sent) -> Findings {
        let topics = Topics::new("w");
        let mut findings = Findings::default();
        let mut passed = PassedCheck::new(sent, &topics.passed);
        each(&self.passed, &mut |row, _| passed.take(row));
        findings.merge(passed.finish());
        let mut transfers = TransfersCheck::new(sent, &topics.transfers);
        each(&self.transfers, &mut |row, _| transfers.take(row));
        findings.merge(transfers.finish());
        let mut markers = MarkersCheck::new(sent, &topics.markers);
        each(&self.markers, &mut |row, _| markers.take(row));
        findings.merge(markers.finish());
        let mut letters = LettersCheck::new(sent, &topics.dead_letters, STAGES.into());
        each(&self.letters, &mut |row, head| letters.take(row, head));
        let mut late = LateCheck::new(sent, &topics.late);
        each(&self.late, &mut |row, _| late.take(row));
        let mut windows = WindowsCheck::new(sent, &topics.windows);
        each(&self.windows, &mut |row, _| windows.take(row));
        let found = windows.finish();
        let mut detail = WindowsDetail::new(sent, &topics.windows, found.differ.clone());
        each(&self.windows, &mut |row, _| detail.take(row));
        findings.merge(detail.finish());
        let ((letters, dead), (late, late_rows)) = (letters.finish(), late.finish(&found.late_counted));
        findings.merge(conserve(sent, found.counted, late_rows, dead));
        for part in [found.findings, letters, late] {
            findings.merge(part);
        }
        findings
    }
}

fn each(rows: &[Out], take: &mut dyn FnMut(&Row<'_>, &LetterHead)) {
    let mut offsets: BTreeMap<i32, i64> = BTreeMap::new();
    for out in rows {
        let offset = offsets.entry(out.partition).or_insert(-1);
        *offset += 1;
        take(&Row { partition: out.partition, offset: *offset, key: out.key.as_deref(), payload: &out.payload }, &out.head);
    }
}

/// What an observer of `passed` that has seen these rows finds when those are there.
pub fn compare_seen(seen: &Observation, there: &[Out]) -> Findings {
    let mut check = SeenCheck::new(Flow::Passed, "w.passed", seen);
    each(there, &mut |row, _| check.take(row));
    check.finish()
}

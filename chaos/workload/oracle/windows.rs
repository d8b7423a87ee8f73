//! `windows`: each group once, with the figures that the schedule gives; and late rows counted or late, never both and never neither (E-5).
//!
//! A run has more groups than fit in memory beside each other, so they are not kept: per window, the rows and a sum of their hashes are compared with those of the
//! groups that must come. Only for windows that differ the groups are computed and read once more ([`WindowsDetail`]), to say which they are.

use super::rows::WindowRow;
use super::{Row, foreign, placed};
use crate::feeder::Sent;
use crate::findings::{Anomaly, AnomalyKind, Findings, Invariant};
use crate::payload::Key;
use crate::schedule::{BULK_SHARE, BULK_TIME_MS, DataFault, LATE_MS, mix};
use crate::time::parse_time;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Windows that are looked at once more; others that differ are counted (M-1).
const DETAILED_WINDOWS_MAX: usize = 100;
/// The key of records without key.
pub(super) const NULL_KEY: u64 = u64::MAX;

/// What a group has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub count: u64,
    pub sum: i64,
    pub due_ms: i64,
}

impl Group {
    fn add(&mut self, value: i64, due_ms: i64) {
        self.count += 1;
        self.sum += value;
        self.due_ms = self.due_ms.max(due_ms);
    }

    fn hash(&self, key: u64, end_ms: i64) -> u64 {
        mix(mix(mix(mix(key, end_ms as u64), self.count), self.sum as u64), self.due_ms as u64)
    }
}

/// What has come of a group.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    group: Group,
    rows: u32,
    /// Partition and offset of its last row.
    last: Option<(i32, i64)>,
}

impl Found {
    fn add(&mut self, group: Group, row: &Row<'_>) {
        let sum = &mut self.group;
        (sum.count, sum.sum, sum.due_ms) = (sum.count + group.count, sum.sum + group.sum, sum.due_ms.max(group.due_ms));
        self.rows += 1;
        self.last = Some((row.partition, row.offset));
    }
}

/// All groups of windows that close, with window end and key: numbered records and those without key.
pub fn groups(sent: &Sent, emit: &mut dyn FnMut(i64, u64, Group)) {
    let schedule = &sent.schedule;
    let mut without_key: BTreeMap<i64, Group> = BTreeMap::new();
    for injected in schedule.injected.iter().filter(|injected| injected.fault == DataFault::NullKey) {
        let group = without_key.entry(schedule.window_end_ms(injected.due_ms)).or_default();
        (0..injected.count).for_each(|_| group.add(1, injected.due_ms));
    }
    without_key.into_iter().for_each(|(end_ms, group)| emit(end_ms, NULL_KEY, group));
    let mut open: BTreeMap<i64, HashMap<u64, Group>> = BTreeMap::new();
    let mut close_up_to = |open: &mut BTreeMap<i64, HashMap<u64, Group>>, time_ms: i64| {
        while let Some(first) = open.first_entry().filter(|first| *first.key() <= time_ms) {
            let (end_ms, groups) = first.remove_entry();
            groups.into_iter().for_each(|(key, group)| emit(end_ms, key, group));
        }
    };
    for n in 0..sent.records {
        let record = schedule.record(n);
        // Nothing earlier than this follows.
        close_up_to(&mut open, record.due_ms - schedule.settings.disorder_ms);
        let groups = open.entry(schedule.window_end_ms(record.event_ms)).or_default();
        groups.entry(record.key).or_default().add(record.value, record.due_ms);
    }
    close_up_to(&mut open, i64::MAX);
}

/// Rows of one window, whatever their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    rows: u64,
    sum: u64,
    records: u64,
}

impl Tally {
    fn add(&mut self, key: u64, end_ms: i64, group: Group) {
        self.rows += 1;
        self.sum = self.sum.wrapping_add(group.hash(key, end_ms));
        self.records += group.count;
    }
}

/// See the module text.
pub struct WindowsCheck<'a> {
    sent: &'a Sent,
    topic: String,
    windows: HashMap<i64, Tally>,
    bulk: Vec<Found>,
    /// Per injected record: how often it was counted in a window of its own.
    late_counted: Vec<u64>,
    counted: u64,
    findings: Findings,
    rows: u64,
}

/// What the first reading has found.
pub struct WindowsFound {
    pub findings: Findings,
    /// Windows to be looked at by [`WindowsDetail`].
    pub differ: BTreeSet<i64>,
    pub late_counted: Vec<u64>,
    /// Records in all groups.
    pub counted: u64,
}

impl<'a> WindowsCheck<'a> {
    pub fn new(sent: &'a Sent, topic: &str) -> WindowsCheck<'a> {
        WindowsCheck {
            sent,
            topic: topic.to_string(),
            windows: HashMap::new(),
            bulk: vec![Found::default(); sent.schedule.settings.bulk_keys() as usize],
            late_counted: vec![0; sent.schedule.injected_total() as usize],
            counted: 0,
            findings: Findings::default(),
            rows: 0,
        }
    }

    pub fn take(&mut self, row: &Row<'_>) {
        self.rows += 1;
        let Some((key, end_ms, group)) = parse(row.payload) else { return self.findings.add(foreign(&self.topic, row)) };
        self.counted += group.count;
        let schedule = &self.sent.schedule;
        match key {
            None => self.windows.entry(end_ms).or_default().add(NULL_KEY, end_ms, group),
            Some(Key::Numbered(key)) if key < schedule.settings.keys => self.windows.entry(end_ms).or_default().add(key, end_ms, group),
            Some(Key::Bulk(key)) if end_ms == schedule.window_end_ms(BULK_TIME_MS) && key < self.bulk.len() as u64 => {
                // When its records were due is not part of what is expected.
                self.bulk[key as usize].add(Group { due_ms: 0, ..group }, row);
            }
            Some(Key::Injected(DataFault::Late, number)) => {
                let injected = schedule.injected_at(number).filter(|injected| injected.fault == DataFault::Late);
                match injected.filter(|injected| schedule.window_end_ms(injected.due_ms - LATE_MS) == end_ms) {
                    Some(_) => self.late_counted[number as usize] += group.count,
                    None => self.findings.add(foreign(&self.topic, row)),
                }
            }
            _ => self.findings.add(foreign(&self.topic, row)),
        }
    }

    pub fn finish(mut self) -> WindowsFound {
        let mut expected: HashMap<i64, Tally> = HashMap::new();
        groups(self.sent, &mut |end_ms, key, group| expected.entry(end_ms).or_default().add(key, end_ms, group));
        let ends: BTreeSet<i64> = expected.keys().chain(self.windows.keys()).copied().collect();
        let tally = |of: &HashMap<i64, Tally>, end_ms: i64| of.get(&end_ms).copied().unwrap_or_default();
        let mut differ: BTreeSet<i64> = BTreeSet::new();
        for end_ms in ends {
            let (found, wanted) = (tally(&self.windows, end_ms), tally(&expected, end_ms));
            if found == wanted {
                continue;
            }
            if differ.len() < DETAILED_WINDOWS_MAX {
                differ.insert(end_ms);
                continue;
            }
            let detail = format!(
                "the window up to {end_ms} has {} groups with {} records instead of {} with {}",
                found.rows, found.records, wanted.rows, wanted.records
            );
            self.findings.add(Anomaly::new(AnomalyKind::WrongTotal, Invariant::E4, detail).in_topic(&self.topic));
        }
        self.check_bulk();
        self.findings.looked_at(Invariant::E4, self.rows);
        self.findings.rows_read.insert(self.topic, self.rows);
        WindowsFound { findings: self.findings, differ, late_counted: self.late_counted, counted: self.counted }
    }

    fn check_bulk(&mut self) {
        let schedule = &self.sent.schedule;
        let mut expected: Vec<Group> =
            (0..self.bulk.len() as u64).map(|key| Group { count: 1, sum: schedule.first_bulk_value(key), due_ms: 0 }).collect();
        for n in (0..self.sent.records).step_by(BULK_SHARE as usize) {
            if let Some(key) = schedule.bulk_key_of(n) {
                let group = &mut expected[key as usize];
                (group.count, group.sum) = (group.count + 1, group.sum + schedule.value_of(n));
            }
        }
        let end_ms = schedule.window_end_ms(BULK_TIME_MS);
        for (key, (wanted, found)) in expected.into_iter().zip(&self.bulk).enumerate() {
            add_difference(&mut self.findings, &self.topic, &format!("b{key}"), end_ms, wanted, *found);
        }
    }
}

fn parse(payload: &[u8]) -> Option<(Option<Key>, i64, Group)> {
    let row: WindowRow<'_> = serde_json::from_slice(payload).ok()?;
    let key = match row.k.as_deref() {
        None => None,
        Some(text) => Some(Key::parse(text)?),
    };
    Some((key, parse_time(&row.window_end)?, Group { count: row.n, sum: row.s, due_ms: row.due_ms }))
}

/// Says how what was found of a group is not what was wanted.
fn add_difference(findings: &mut Findings, topic: &str, key: &str, end_ms: i64, wanted: Group, found: Found) {
    let Found { group: found, rows, last } = found;
    let mut add = |kind, invariant, detail: String, count| {
        findings.add_many(placed(Anomaly::new(kind, invariant, detail).of(key), topic, last), count);
    };
    let place = format!("the group of the window up to {end_ms} has {} records in {rows} rows instead of {}", found.count, wanted.count);
    if found.count < wanted.count {
        add(AnomalyKind::LostWrite, Invariant::E3, place, wanted.count - found.count);
    } else if found.count > wanted.count {
        let kind = if wanted.count == 0 { AnomalyKind::ForeignValue } else { AnomalyKind::Duplicate };
        add(kind, Invariant::E3, place, found.count - wanted.count);
    } else if rows > 1 {
        add(AnomalyKind::Duplicate, Invariant::E3, place, u64::from(rows) - 1);
    } else if found != wanted {
        let detail = format!("the group of the window up to {end_ms} has the sum {} instead of {}", found.sum, wanted.sum);
        add(AnomalyKind::WrongTotal, Invariant::E4, detail, 1);
    }
}

/// The second look: which groups of some windows are not what they must be.
pub struct WindowsDetail<'a> {
    topic: &'a str,
    differ: BTreeSet<i64>,
    expected: BTreeMap<(i64, u64), Group>,
    found: BTreeMap<(i64, u64), Found>,
}

impl<'a> WindowsDetail<'a> {
    pub fn new(sent: &Sent, topic: &'a str, differ: BTreeSet<i64>) -> WindowsDetail<'a> {
        let mut expected = BTreeMap::new();
        groups(sent, &mut |end_ms, key, group| {
            if differ.contains(&end_ms) {
                expected.insert((end_ms, key), group);
            }
        });
        WindowsDetail { topic, differ, expected, found: BTreeMap::new() }
    }

    pub fn take(&mut self, row: &Row<'_>) {
        let Some((key, end_ms, group)) = parse(row.payload).filter(|(_, end_ms, _)| self.differ.contains(end_ms)) else { return };
        let key = match key {
            None => NULL_KEY,
            Some(Key::Numbered(key)) => key,
            Some(_) => return,
        };
        self.found.entry((end_ms, key)).or_default().add(group, row);
    }

    pub fn finish(self) -> Findings {
        let mut findings = Findings::default();
        let places: BTreeSet<(i64, u64)> = self.expected.keys().chain(self.found.keys()).copied().collect();
        for place in places {
            let wanted = self.expected.get(&place).copied().unwrap_or_default();
            let found = self.found.get(&place).copied().unwrap_or_default();
            let key = if place.1 == NULL_KEY { "null".to_string() } else { format!("k{}", place.1) };
            add_difference(&mut findings, self.topic, &key, place.0, wanted, found);
        }
        findings
    }
}

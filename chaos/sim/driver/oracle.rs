//! What must come out: every row of the input once, and windows that add up (nothing lost, nothing doubled, E-5).
//!
//! The oracle reads the log itself: the input as it was committed, the outputs as they were committed. It needs no order between them, since
//! every row has a name (partition and offset) that the outputs carry:
//! - `passed` has each row's name once, with its key and value;
//! - `counts` has each window of a key once; together with the late rows it has each row once: count, sum of values, sum of names;
//! - a late row that is named is one that its own split had passed: some row before it in the input's partition closes its window, however the
//!   split was read;
//! - the dead letters name each record that is no row, once per stage that reads the input.

use crate::job::{COUNTS, DELAY_MS, INPUT, JOB, PASSED, WINDOW_MS};
use crate::table::{OutputRow, Row, partition_of, row_id};
use arrow_cast::parse::string_to_timestamp_nanos;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use streamshield_core::watermark::Watermark;
use streamshield_engine::topics;
use streamshield_sim::checks::Check;
use streamshield_sim::world::{Entry, Message};

/// Event time of the rows that close all windows; they are in a window of their own, which stays open.
pub const END_MS: i64 = 4_000_000_000_000;

/// Stages that read the input.
const READERS: usize = 2;

/// What is said of one window of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    rows: i64,
    total: i64,
    ids: i64,
    most: i64,
}

impl Sums {
    fn add(&mut self, id: i64, row: &Row) {
        self.most = if self.rows == 0 { row.value } else { self.most.max(row.value) };
        self.rows += 1;
        self.total += row.value;
        self.ids += id;
    }
}

/// See the module text.
#[derive(Default)]
pub struct Oracle {
    input: BTreeMap<i64, Row>,
    bad: BTreeSet<i64>,
    passed: BTreeSet<i64>,
    counts: BTreeMap<(i64, i64), Sums>,
    late: BTreeSet<i64>,
    late_together: BTreeMap<(i64, i64), i64>,
    /// By reading region and row.
    dead: BTreeSet<(String, i64)>,
    counted: i64,
    ends: usize,
}

pub type SharedOracle = Arc<Mutex<Oracle>>;

impl Oracle {
    fn take_input(&mut self, message: &Message) {
        let id = row_id(message.partition.partition, message.offset);
        match Row::decode(message.payload.as_deref().unwrap_or_default()) {
            Some(row) => {
                self.ends += usize::from(row.at_ms >= END_MS);
                self.input.insert(id, row);
            }
            None => drop(self.bad.insert(id)),
        }
    }

    fn take_output(&mut self, message: &Message) -> Result<(), String> {
        let (topic, payload) = (&*message.partition.topic, message.payload.as_deref().unwrap_or_default());
        let place = || format!("{} offset {}", message.partition, message.offset);
        if topic == PASSED {
            let row = OutputRow::decode(payload).ok_or_else(|| format!("{} is no row", place()))?;
            return self.passes(&row.values).map_err(|what| format!("{what} ({})", place()));
        }
        if topic == COUNTS {
            let row = OutputRow::decode(payload).ok_or_else(|| format!("{} is no row", place()))?;
            return self.counts(&row.values).map_err(|what| format!("{what} ({})", place()));
        }
        if topic == topics::late(JOB) {
            let json: serde_json::Value = serde_json::from_slice(payload).map_err(|error| format!("{}: {error}", place()))?;
            let Some(id) = json["id"].as_i64() else {
                return self.is_late_together(&json).ok_or_else(|| format!("{} names neither a row nor a window: {json}", place()));
            };
            if !self.input.contains_key(&id) {
                return Err(format!("a late row {id:#x} is no row of the input ({})", place()));
            }
            return if self.late.insert(id) { Ok(()) } else { Err(format!("E-5: row {id:#x} is late twice ({})", place())) };
        }
        if topic == topics::dead_letter(JOB) {
            let header = |name: &str| {
                message.headers.iter().find(|(key, _)| key == name).map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            };
            let number = |name: &str| header(name).and_then(|text| text.parse::<i64>().ok());
            let (region, partition, offset) =
                (header("streamshield.region"), number("streamshield.partition"), number("streamshield.offset"));
            let (Some(region), Some(partition), Some(offset)) = (region, partition, offset) else {
                return Err(format!("a dead letter does not say where it comes from ({})", place()));
            };
            let id = row_id(partition as i32, offset);
            if !self.bad.contains(&id) {
                return Err(format!("a dead letter of {region} names {id:#x}, which is a good row ({})", place()));
            }
            return match self.dead.insert((region.clone(), id)) {
                true => Ok(()),
                false => Err(format!("doubled: {region} has two dead letters of {id:#x} ({})", place())),
            };
        }
        Ok(())
    }

    /// Rows of one window that came as one: they were in time for their split, and late for the window behind the exchange.
    fn is_late_together(&mut self, json: &serde_json::Value) -> Option<()> {
        let (key, rows) = (json["k"].as_i64()?, json["__rows"].as_i64()?);
        let since_ms = string_to_timestamp_nanos(json["window_start"].as_str()?).ok()? / 1_000_000;
        *self.late_together.entry((key, since_ms)).or_default() += rows;
        Some(())
    }

    fn passes(&mut self, values: &[i64]) -> Result<(), String> {
        let [id, key, value] = *values else { return Err(format!("a row of `{PASSED}` with {} columns", values.len())) };
        let Some(row) = self.input.get(&id) else { return Err(format!("`{PASSED}` has row {id:#x}, which the input has not")) };
        if (row.key, row.value + 1) != (key, value) {
            return Err(format!("`{PASSED}` says ({key}, {value}) of row {id:#x}: {row:?}"));
        }
        if self.passed.insert(id) { Ok(()) } else { Err(format!("doubled: row {id:#x} is in `{PASSED}` twice")) }
    }

    fn counts(&mut self, values: &[i64]) -> Result<(), String> {
        let [key, since_ms, rows, total, ids, most] = *values else {
            return Err(format!("a row of `{COUNTS}` with {} columns", values.len()));
        };
        let sums = Sums { rows, total, ids, most };
        self.counted += rows;
        match self.counts.insert((key, since_ms), sums) {
            None => Ok(()),
            Some(before) => Err(format!("doubled: the window {since_ms} of key {key} is in `{COUNTS}` twice: {before:?}, {sums:?}")),
        }
    }

    /// Rows of the input that are to be passed.
    pub fn rows(&self) -> usize {
        self.input.len()
    }

    /// What is still to come, for people; empty when all is there.
    pub fn missing(&self) -> String {
        let mut missing = Vec::new();
        let mut note = |what: &str, there: usize, wanted: usize| {
            if there < wanted {
                missing.push(format!("{} {what} of {wanted}", wanted - there));
            }
        };
        note("rows that pass", self.passed.len(), self.input.len());
        let counted = self.counted.max(0) as usize + self.late_rows();
        note("rows in windows", counted, self.input.len() - self.ends);
        note("dead letters", self.dead.len(), self.bad.len() * READERS);
        missing.join(", ")
    }

    /// After the end: compares with the batch result. Everything that is wrong, the first few of each kind.
    pub fn judge(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let missing: Vec<_> = self.input.keys().filter(|id| !self.passed.contains(id)).map(|id| format!("{id:#x}")).collect();
        if !missing.is_empty() {
            wrong.push(format!("lost: {} rows are not in `{PASSED}`: {}", missing.len(), missing[..missing.len().min(5)].join(" ")));
        }
        let mut expected: BTreeMap<(i64, i64), Sums> = BTreeMap::new();
        for (id, row) in self.input.iter().filter(|(id, row)| row.at_ms < END_MS && !self.late.contains(id)) {
            let since_ms = row.at_ms.div_euclid(WINDOW_MS) * WINDOW_MS;
            expected.entry((row.key, since_ms)).or_default().add(*id, row);
        }
        for ((key, since_ms), sums) in &expected {
            let found = self.counts.get(&(*key, *since_ms));
            if let Some(late) = self.late_together.get(&(*key, *since_ms)) {
                // Which rows were late is not said, only how many.
                let rows = found.map_or(0, |found| found.rows) + late;
                if rows != sums.rows {
                    wrong.push(format!(
                        "the window {since_ms} of key {key} has {rows} rows, {late} of them late, by the input {}",
                        sums.rows
                    ));
                }
                continue;
            }
            match found {
                None => wrong.push(format!("lost: the window {since_ms} of key {key} is not in `{COUNTS}`: {sums:?}")),
                Some(found) if found != sums => {
                    wrong.push(format!("the window {since_ms} of key {key} is {found:?}, by the input and without late rows {sums:?}"));
                }
                Some(_) => {}
            }
        }
        for (key, since_ms) in self.counts.keys().filter(|window| !expected.contains_key(window)) {
            wrong.push(format!("the window {since_ms} of key {key} is in `{COUNTS}`, and no row of the input is in it"));
        }
        wrong.extend(self.timely_called_late());
        wrong.truncate(10);
        wrong
    }

    /// E-5: rows that were told one by one as late though their own split had not passed their window. The input is in the order in which splits are read.
    fn timely_called_late(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut passed: BTreeMap<i64, Watermark> = BTreeMap::new();
        for (id, row) in &self.input {
            let passed = passed.entry(partition_of(*id)).or_default();
            let end_ms = (row.at_ms.div_euclid(WINDOW_MS) + 1) * WINDOW_MS;
            if self.late.contains(id) && !passed.closes(end_ms) {
                wrong.push(format!("E-5: row {id:#x} is late, and no row before it in its split closes its window"));
            }
            passed.advance(Watermark(row.at_ms - DELAY_MS));
        }
        wrong
    }

    pub fn late_rows(&self) -> usize {
        self.late.len() + self.late_together.values().sum::<i64>().max(0) as usize
    }

    pub fn windows(&self) -> usize {
        self.counts.len()
    }
}

/// Feeds the oracle with what is committed.
pub struct OracleCheck(pub SharedOracle);

impl Check for OracleCheck {
    fn take(&mut self, entry: &Entry) -> Result<(), String> {
        let messages = match entry {
            Entry::Plain(message) => std::slice::from_ref(message),
            Entry::Ended(transaction) if transaction.is_committed => transaction.messages.as_slice(),
            Entry::Ended(_) => return Ok(()),
        };
        let mut oracle = self.0.lock();
        for message in messages {
            if &*message.partition.topic == INPUT {
                oracle.take_input(message);
            } else {
                oracle.take_output(message)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_late_only_behind_one_of_its_own_split_that_closes_its_window() {
        let mut oracle = Oracle::default();
        let at = |at_ms: i64| Row { key: 1, value: 1, at_ms };
        // In the first split the window [0, 1000) is closed by the second row; in the other one nothing closes it before its last row has come.
        let rows = [(0, 0, 100), (0, 1, 1_499), (0, 2, 200), (1, 0, 1_498), (1, 1, 200), (1, 2, 5_000)];
        oracle.input.extend(rows.map(|(partition, offset, at_ms)| (row_id(partition, offset), at(at_ms))));
        oracle.late.insert(row_id(0, 2));
        assert!(oracle.timely_called_late().is_empty());
        oracle.late.extend([row_id(0, 0), row_id(1, 1)]);
        let wrong = oracle.timely_called_late();
        assert!(wrong.len() == 2 && wrong.iter().all(|what| what.starts_with("E-5")), "{wrong:?}");
        assert!(oracle.judge().iter().any(|what| wrong.contains(what)));
    }
}

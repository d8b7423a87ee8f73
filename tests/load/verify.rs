//! What must come out of a load, and what came: to the row.

use super::feeder::Fed;
use super::{Key, Load, WINDOW_MS};
use crate::support::client::{Output, topics};
use anyhow::{Result, ensure};
use rdkafka::message::Message;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};
use streamshield_core::epoch::EpochRecord;
use streamshield_workload::schedule::BULK_TIME_MS;
use streamshield_workload::time::{parse_time, wall_ms};
use streamshield_workload::{AnomalyKind, checks};

/// Key and window end → count and sum.
pub type Counts = HashMap<(Key, i64), (u64, i64)>;

/// A row of the output.
#[derive(Deserialize)]
pub struct Row<'a> {
    #[serde(borrow)]
    pub k: Cow<'a, str>,
    #[serde(borrow)]
    we: Cow<'a, str>,
    pub n: u64,
    pub s: i64,
}

impl Row<'_> {
    pub fn parse(payload: &[u8]) -> Result<Row<'_>> {
        Ok(serde_json::from_slice(payload)?)
    }

    pub fn window_end_ms(&self) -> Option<i64> {
        parse_time(&self.we)
    }

    fn group(&self) -> Option<(Key, i64)> {
        Some((Key::parse(&self.k)?, self.window_end_ms()?))
    }
}

/// What came out. All of `lost`, `doubled`, `wrong` and `foreign` must be 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    pub records: u64,
    pub rows: u64,
    /// Records that are missing in, or doubled by, the counts of the output.
    pub lost: u64,
    pub doubled: u64,
    /// Groups whose counts are right and whose sum or number of rows is not.
    pub wrong: u64,
    /// Rows that no record explains.
    pub foreign: u64,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.lost + self.doubled + self.wrong + self.foreign == 0
    }
}

/// The right output of all windows that are closed.
pub fn expected(load: &Load, fed: &Fed) -> Counts {
    let mut counts = Counts::new();
    let mut count = |key: Key, window_end: i64, value: i64| {
        let entry = counts.entry((key, window_end)).or_default();
        entry.0 += 1;
        entry.1 += value;
    };
    let end_of = |time_ms: i64| (time_ms.div_euclid(WINDOW_MS) + 1) * WINDOW_MS;
    for n in 0..load.bulk_keys {
        let event = load.bulk_event(n);
        count(event.key, end_of(BULK_TIME_MS), event.value);
    }
    for n in 0..fed.sent {
        let event = load.event(n);
        let time_ms = if matches!(event.key, Key::Hot(_)) { load.due_ms(fed.start_ms, n) } else { BULK_TIME_MS };
        count(event.key, end_of(time_ms), event.value);
    }
    counts
}

/// Waits until every partition has output of a window that ends after this call.
pub fn wait_output_of_now(servers: &str, load: &Load, timeout: Duration) -> Result<()> {
    let (from_ms, started) = (wall_ms(), Instant::now());
    let mut waiting: BTreeSet<i32> = (0..load.partitions).collect();
    Output::follow(servers, &load.output())?.visit_until(timeout, &mut |message, _| {
        if let Some(message) = message
            && Row::parse(message.payload().unwrap_or_default()).is_ok_and(|row| row.window_end_ms() > Some(from_ms))
        {
            waiting.remove(&message.partition());
        }
        waiting.is_empty() || started.elapsed() > timeout
    })?;
    ensure!(waiting.is_empty(), "partitions {waiting:?} have no output of windows that ended within the last {timeout:?}");
    Ok(())
}

/// Waits until as many rows are committed as must come. An error says how many there are.
pub fn wait_for_rows(servers: &str, load: &Load, rows: u64, quiet_max: Duration) -> Result<()> {
    let mut seen = 0;
    let outcome = Output::follow(servers, &load.output())?.visit_until(quiet_max, &mut |message, _| {
        seen += u64::from(message.is_some());
        seen >= rows
    });
    outcome.map_err(|error| error.context(format!("{seen} of {rows} rows are committed")))
}

/// Reads the whole committed output and compares.
pub fn compare(servers: &str, load: &Load, fed: &Fed, expected: &Counts) -> Result<Verdict> {
    let mut verdict = Verdict { records: fed.sent + load.bulk_keys, ..Verdict::default() };
    let mut found: HashMap<(Key, i64), (u64, i64, u32)> = HashMap::with_capacity(expected.len());
    let mut broken = None;
    Output::follow(servers, &load.output())?.visit_to_end(&mut |message| {
        verdict.rows += 1;
        match Row::parse(message.payload().unwrap_or_default()).map(|row| (row.group(), row.n, row.s)) {
            Ok((Some(group), count, sum)) if expected.contains_key(&group) => {
                let entry = found.entry(group).or_default();
                *entry = (entry.0 + count, entry.1 + sum, entry.2 + 1);
            }
            Ok((group, count, _)) => {
                println!("a row that no record explains: {group:?}, count {count}");
                verdict.foreign += 1;
            }
            Err(error) => broken = Some(error),
        }
    })?;
    ensure!(broken.is_none(), "the output is no JSON: {broken:?}");
    let mut shown = 0;
    for (group, &(count, sum)) in expected {
        let (counted, summed, rows) = found.get(group).copied().unwrap_or_default();
        verdict.lost += count.saturating_sub(counted);
        verdict.doubled += counted.saturating_sub(count);
        if counted == count && (summed != sum || rows != 1) {
            verdict.wrong += 1;
        }
        if (counted, summed, rows) != (count, sum, 1) && shown < 10 {
            shown += 1;
            println!("{group:?}: {rows} rows with count {counted} and sum {summed}, expected one with {count} and {sum}");
        }
    }
    Ok(verdict)
}

/// What the job's own topics show that they must not, whatever it computes.
pub fn broken_epochs(servers: &str, job: &str) -> Result<Vec<String>> {
    let others = [format!("{job}-input"), format!("{job}-output")];
    let checked = checks::check_job(servers, job, &others.each_ref().map(String::as_str), Duration::ZERO, checks::ControlFold::new(job))?;
    ensure!(checked.epochs > 0, "{job} has no epoch");
    // A transaction may be open at this moment; `hanging_transactions` has the patience to tell.
    let anomalies = checked.findings.anomalies.iter().filter(|anomaly| anomaly.kind != AnomalyKind::HangingTransaction);
    Ok(anomalies.map(ToString::to_string).collect())
}

/// How many epochs an incarnation has committed.
pub fn epochs_of(servers: &str, job: &str, incarnation: u64) -> Result<u64> {
    let mut epochs = 0;
    for topic in topics(servers)?.into_iter().filter(|topic| topic.starts_with(job) && topic.ends_with("-changelog")) {
        Output::follow(servers, &topic)?.visit_to_end(&mut |message| {
            let record = message.payload().and_then(|payload| EpochRecord::decode(payload).ok());
            epochs += u64::from(record.is_some_and(|record| record.incarnation.0 == incarnation));
        })?;
    }
    Ok(epochs)
}

/// A committed offset that stays below the end: an open transaction that nobody will end, behind which every reader of committed rows waits.
pub fn hanging_transactions(servers: &str, prefix: &str, patience: Duration) -> Result<Vec<String>> {
    let hanging = checks::ends::wait_for_ends(servers, &|topic| topic.starts_with(prefix), patience)?;
    Ok(hanging.anomalies.iter().map(ToString::to_string).collect())
}

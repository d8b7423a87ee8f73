//! What the output must be, computed from the input topic alone, and what the job's own topics must hold.

use super::workload::{END_ID, Names};
use super::{PARTITIONS, Report};
use crate::support::client::Output;
use anyhow::{Result, ensure};
use rdkafka::message::Message;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use streamshield_workload::{Invariant, checks};

/// The broker ends what a killed process has left open.
const HANGING_PATIENCE: Duration = Duration::from_secs(75);

/// Key and window start → count and sum.
pub type Counts = BTreeMap<(String, String), (u64, i64)>;

/// `2024-01-01 00:00:07.123` → the start of its second, as a key without fraction.
fn second_of(time: &str) -> &str {
    time.split('.').next().unwrap_or(time)
}

/// Reads the whole input and counts, in the plainest way.
pub fn expected(bootstrap_servers: &str, topic: &str) -> Result<Counts> {
    let (mut counts, mut ids, mut ends) = (Counts::new(), 0_u64, 0);
    let mut broken = None;
    Output::follow(bootstrap_servers, topic)?.visit_to_end(&mut |message| {
        let parsed: Result<Value, _> = serde_json::from_slice(message.payload().unwrap_or_default());
        let record = match parsed {
            Ok(record) => record,
            Err(error) => return broken = Some(error),
        };
        if record["id"] == END_ID {
            ends += 1;
            return;
        }
        ids += 1;
        let key = (record["k"].as_str().unwrap_or_default().to_string(), second_of(record["ts"].as_str().unwrap_or_default()).to_string());
        let entry = counts.entry(key).or_default();
        entry.0 += 1;
        entry.1 += record["v"].as_i64().unwrap_or_default();
    })?;
    ensure!(broken.is_none(), "the input is no JSON: {broken:?}");
    ensure!(ends == PARTITIONS, "{ends} closing records");
    ensure!(ids > 0, "the input is empty");
    Ok(counts)
}

/// Compares the committed output with what it must be, and checks the job's topics.
pub fn compare(bootstrap_servers: &str, names: &Names, expected: &Counts, report: &mut Report) -> Result<()> {
    let mut found: BTreeMap<(String, String), Vec<(u64, i64)>> = BTreeMap::new();
    let mut broken = None;
    Output::follow(bootstrap_servers, &names.output)?.visit_to_end(&mut |message| match serde_json::from_slice::<Value>(
        message.payload().unwrap_or_default(),
    ) {
        Ok(row) => {
            let start = row["ws"].as_str().unwrap_or_default().replace('T', " ");
            let key = (row["k"].as_str().unwrap_or_default().to_string(), second_of(start.trim_end_matches('Z')).to_string());
            found.entry(key).or_default().push((row["n"].as_u64().unwrap_or_default(), row["s"].as_i64().unwrap_or_default()));
            report.rows += 1;
        }
        Err(error) => broken = Some(error),
    })?;
    ensure!(broken.is_none(), "the output is no JSON: {broken:?}");
    for (key, &(count, sum)) in expected {
        let rows = found.get(key).map_or(&[][..], Vec::as_slice);
        let counted: u64 = rows.iter().map(|row| row.0).sum();
        report.lost += count.saturating_sub(counted);
        report.doubled += counted.saturating_sub(count);
        if counted == count && rows != [(count, sum)] {
            report.wrong += 1;
        }
    }
    for (key, rows) in &found {
        if !expected.contains_key(key) {
            report.doubled += rows.iter().map(|row| row.0).sum::<u64>();
        }
    }
    check_topics(bootstrap_servers, names, report)
}

/// What the job's own topics must show, whatever it computes.
fn check_topics(bootstrap_servers: &str, names: &Names, report: &mut Report) -> Result<()> {
    let checked = checks::check_job(
        bootstrap_servers,
        &names.job,
        &[&names.input, &names.output],
        HANGING_PATIENCE,
        checks::ControlFold::new(&names.job),
    )?;
    ensure!(checked.last.len() == 2 * PARTITIONS as usize, "{} regions have epochs, not {}", checked.last.len(), 2 * PARTITIONS);
    ensure!(checked.findings.checked.contains_key(&Invariant::E3), "the exchange is empty");
    for anomaly in checked.findings.anomalies.iter().take(10) {
        println!("{anomaly}");
    }
    report.epochs += checked.epochs;
    report.torn += checked.findings.total();
    Ok(())
}

/// For the words of a failure.
pub fn describe(report: &Report) -> String {
    format!("{} lost, {} doubled, {} wrong sums, {} torn", report.lost, report.doubled, report.wrong, report.torn)
}

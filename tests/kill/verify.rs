//! What the output must be, computed from the input topic alone, and what the job's own topics must hold.

use super::workload::{END_ID, Names};
use super::{PARTITIONS, Report};
use crate::support::client::{Output, topics};
use anyhow::{Result, ensure};
use rdkafka::message::Message;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, RegionId, StageId};

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

/// E-1, E-2, E-5 in every changelog; E-3 in every exchange.
fn check_topics(bootstrap_servers: &str, names: &Names, report: &mut Report) -> Result<()> {
    let of_job: Vec<String> = topics(bootstrap_servers)?.into_iter().filter(|topic| topic.starts_with(&names.job)).collect();
    let ending = |suffix: &str| of_job.iter().filter(|topic| topic.ends_with(suffix)).cloned().collect::<Vec<_>>();
    let (changelogs, exchanges) = (ending("-changelog"), ending("-repartition"));
    ensure!(changelogs.len() == 2 && exchanges.len() == 1, "a job of two stages has two changelogs and one exchange: {of_job:?}");
    let mut last: HashMap<RegionId, EpochRecord> = HashMap::new();
    for topic in &changelogs {
        check_changelog(bootstrap_servers, topic, &mut last, report)?;
    }
    ensure!(last.len() == 2 * PARTITIONS as usize, "{} regions have epochs, not {}", last.len(), 2 * PARTITIONS);
    for topic in &exchanges {
        check_exchange(bootstrap_servers, topic, &last, report)?;
    }
    Ok(())
}

fn check_changelog(bootstrap_servers: &str, topic: &str, last: &mut HashMap<RegionId, EpochRecord>, report: &mut Report) -> Result<()> {
    let mut problems = Vec::new();
    Output::follow(bootstrap_servers, topic)?.visit_to_end(&mut |message| {
        let record = match EpochRecord::decode(message.payload().unwrap_or_default()) {
            Ok(record) => record,
            Err(error) => return problems.push(error.to_string()),
        };
        report.epochs += 1;
        if record.region.partition as i32 != message.partition() {
            problems.push(format!("{} lies in partition {}", record.region, message.partition()));
        }
        match last.get(&record.region) {
            Some(previous) => problems.extend(previous.check_successor(&record).err()),
            None if record.epoch == Epoch::GENESIS => {}
            None => problems.push(format!("E-1: {} begins with epoch {}", record.region, record.epoch)),
        }
        last.insert(record.region, record);
    })?;
    for problem in problems.iter().take(10) {
        println!("{topic}: {problem}");
    }
    report.torn += problems.len() as u64;
    Ok(())
}

/// Every frame belongs to a committed epoch of its region, and epochs follow each other.
fn check_exchange(bootstrap_servers: &str, topic: &str, last: &HashMap<RegionId, EpochRecord>, report: &mut Report) -> Result<()> {
    let mut problems = BTreeSet::new();
    let mut newest: HashMap<(i32, RegionId), Epoch> = HashMap::new();
    let mut frames = 0_u64;
    Output::follow(bootstrap_servers, topic)?.visit_to_end(&mut |message| {
        let heads = frame_heads(message.payload().unwrap_or_default());
        let Some(heads) = heads else {
            problems.insert(format!("partition {} offset {} is no exchange message", message.partition(), message.offset()));
            return;
        };
        for (region, epoch) in heads {
            frames += 1;
            if last.get(&region).is_none_or(|record| record.epoch < epoch) {
                problems.insert(format!("E-3: rows of {region} epoch {epoch}, which has no record"));
            }
            let newest = newest.entry((message.partition(), region)).or_insert(epoch);
            if epoch < *newest {
                problems.insert(format!("E-1: {region} epoch {epoch} after epoch {newest} in partition {}", message.partition()));
            }
            *newest = epoch;
        }
    })?;
    ensure!(frames > 0, "{topic} is empty");
    for problem in problems.iter().take(10) {
        println!("{topic}: {problem}");
    }
    report.torn += problems.len() as u64;
    Ok(())
}

/// Region and epoch of each frame of an exchange message (the layout is in `src/engine/exchange/frame.rs`); None when it is none.
fn frame_heads(mut payload: &[u8]) -> Option<Vec<(RegionId, Epoch)>> {
    const HEAD_BYTES: usize = 40;
    let mut heads = Vec::new();
    while !payload.is_empty() {
        let head = payload.get(..HEAD_BYTES)?;
        let number = |at: usize| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
        if &head[..2] != b"SX" {
            return None;
        }
        let region = RegionId { stage: StageId(number(4)?), partition: number(8)? };
        heads.push((region, Epoch(u64::from(number(16)?) | u64::from(number(20)?) << 32)));
        payload = payload.get(HEAD_BYTES + number(32)? as usize + number(36)? as usize..)?;
    }
    Some(heads)
}

/// For the words of a failure.
pub fn describe(report: &Report) -> String {
    format!("{} lost, {} doubled, {} wrong sums, {} torn", report.lost, report.doubled, report.wrong, report.torn)
}

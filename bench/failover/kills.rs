//! One kill of a worker, and what it did to the output.

use super::observer::Observer;
use super::{SETTLE_TIMEOUT, WORKERS};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use streamshield_core::status::{ClusterStatus, PhasesMs};
use streamshield_tests::support::cluster::{Killed, Workers, describe, owners};
use streamshield_workload::time::wall_ms;

/// The output of the new owner must come in this time, or the bench fails.
const GAP_MAX: Duration = Duration::from_secs(120);
/// Reports come once a second.
const PHASES_PATIENCE: Duration = Duration::from_secs(4);
const UP_TO_DATE: Duration = Duration::from_millis(1_500);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What one kill did.
#[derive(Clone, Debug)]
pub struct Kill {
    pub number: u32,
    pub victim: String,
    /// Of each affected window region: to the first record of the new owner.
    pub gaps_ms: BTreeMap<String, f64>,
    /// To the first output of a window that ended after the kill, the worst of all affected partitions.
    pub fresh_ms: f64,
    /// The longest silence of the other window regions meanwhile: they go on, but wait for the watermark of the dead worker's source regions.
    pub others_ms: Option<f64>,
    /// Of the window region with the longest gap.
    pub phases: Option<PhasesMs>,
}

impl Kill {
    pub fn gap_ms(&self) -> f64 {
        self.gaps_ms.values().copied().fold(0.0, f64::max)
    }
}

/// Kills the owner of a window region, measures, brings it back and waits until all is as before.
pub fn one(workers: &mut Workers, observer: &Observer, tier: u32, pause: Duration, number: u32) -> Result<Kill> {
    workers.wait_settled(WORKERS.len(), SETTLE_TIMEOUT)?;
    observer.wait_up_to_date(UP_TO_DATE, SETTLE_TIMEOUT).with_context(|| workers.last_words())?;
    if tier == 3 {
        // What is to be restored is in the store.
        workers.wait_for("a checkpoint of each region", SETTLE_TIMEOUT, |status| {
            status.regions.iter().filter(|region| region.stateful).all(|region| region.checkpoint.is_some())
        })?;
    }
    std::thread::sleep(pause);
    // Once more: nothing may have changed hands in the pause.
    let before = workers.wait_settled(WORKERS.len(), SETTLE_TIMEOUT)?;
    let owners = owners(&before);
    let window_regions: Vec<&String> = owners.keys().filter(|region| region.starts_with("s1/")).collect();
    ensure!(!window_regions.is_empty(), "no window regions:\n{}", describe(&before));
    let victim = owners[window_regions[number as usize % window_regions.len()]].clone();
    let affected: Vec<u32> = window_regions.iter().filter(|region| owners[**region] == victim).map(|region| partition(region)).collect();
    let killed_wall_ms = wall_ms();
    let killed = workers.kill(&victim)?;
    let gaps = wait_for_gaps(workers, observer, &killed, &affected)?;
    let fresh_ms = wait_for_fresh(workers, observer, &killed, killed_wall_ms)?;
    let until = killed.at + Duration::from_secs_f64(fresh_ms / 1e3);
    let others = (0..observer.partitions()).filter(|partition| !affected.contains(partition));
    let others_ms = others.map(|partition| observer.longest_silence_ms(partition, killed.at, until)).reduce(f64::max);
    let gaps_ms: BTreeMap<String, f64> = gaps.into_iter().map(|(partition, gap)| (format!("s1/{partition}"), gap)).collect();
    let worst = gaps_ms.iter().max_by(|a, b| a.1.total_cmp(b.1)).map(|(region, _)| region.clone()).unwrap_or_default();
    let phases = wait_for_phases(workers, &before, &worst);
    workers.start(&victim)?;
    Ok(Kill { number, victim, gaps_ms, fresh_ms, others_ms, phases })
}

fn partition(region: &str) -> u32 {
    region.split_once('/').and_then(|(_, partition)| partition.parse().ok()).unwrap_or_default()
}

fn ms_since(killed: &Killed, at: Instant) -> f64 {
    at.saturating_duration_since(killed.at).as_secs_f64() * 1e3
}

/// Per affected partition the time until a record of the new owner could be read.
fn wait_for_gaps(workers: &mut Workers, observer: &Observer, killed: &Killed, affected: &[u32]) -> Result<BTreeMap<u32, f64>> {
    let mut gaps = BTreeMap::new();
    while gaps.len() < affected.len() {
        for &partition in affected {
            if let Some(arrival) = observer.first(partition, |arrival| arrival.made_ms > killed.gone_wall_ms) {
                gaps.entry(partition).or_insert_with(|| ms_since(killed, arrival.at));
            }
        }
        check_patience(workers, killed, &format!("{} of {} affected partitions have output again", gaps.len(), affected.len()))?;
    }
    Ok(gaps)
}

/// Until all partitions have output of windows that ended after the kill.
fn wait_for_fresh(workers: &mut Workers, observer: &Observer, killed: &Killed, killed_wall_ms: i64) -> Result<f64> {
    loop {
        let arrivals: Vec<_> = (0..observer.partitions())
            .filter_map(|partition| observer.first(partition, |arrival| arrival.window_end_ms > killed_wall_ms))
            .collect();
        if arrivals.len() as u32 == observer.partitions() {
            return Ok(arrivals.iter().map(|arrival| ms_since(killed, arrival.at)).fold(0.0, f64::max));
        }
        check_patience(workers, killed, "not all partitions have output of windows that ended after the kill")?;
    }
}

fn check_patience(workers: &mut Workers, killed: &Killed, what: &str) -> Result<()> {
    std::thread::sleep(LOOK_INTERVAL);
    workers.expect_all_alive()?;
    if killed.at.elapsed() > GAP_MAX {
        let view = workers.status().map_or_else(|error| error.to_string(), |status| describe(&status));
        anyhow::bail!("after {GAP_MAX:?}: {what}\n{view}\n{}", workers.last_words());
    }
    Ok(())
}

/// The phases of the worst region's take-over since `before`, once its new owner has reported them all.
fn wait_for_phases(workers: &Workers, before: &ClusterStatus, worst: &str) -> Option<PhasesMs> {
    let deadline = Instant::now() + PHASES_PATIENCE;
    let seen = before.offset.unwrap_or(-1);
    let mut phases = None;
    while Instant::now() < deadline {
        if let Ok(status) = workers.status() {
            let takeover = status.takeovers.into_iter().find(|takeover| takeover.offset > seen && takeover.region == worst);
            phases = takeover.map(|takeover| takeover.phases_ms);
            if phases.is_some_and(|phases| phases.total().is_some()) {
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    phases
}

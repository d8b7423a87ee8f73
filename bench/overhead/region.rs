//! What a region that fails again and again costs the others.
//!
//! Two of three workers let every step of one region panic (`engine::step_of`); it runs on the third one. Then that one is drained, so the region goes to
//! the others, fails there, and is tried again until it is quarantined. Meanwhile the other regions must keep their throughput: rows per second of the
//! partitions of the output, each of which is written by one region of the second stage. With few keys and windows of 100 ms the same number of rows is due in
//! each second. At last all workers start anew without the fault, and the whole output must be right.

use super::{Options, TIMEOUT, WARM_UP, finish, load};
use crate::failover::observer::{Observer, Rows};
use crate::failover::{self, SETTLE_TIMEOUT, WORKERS};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use streamshield_tests::load::feeder::Feeder;
use streamshield_tests::support::cluster::{Workers, describe, owners};
use streamshield_tests::support::streamshield::call;

/// Of a partition's throughput before.
const THROUGHPUT_MIN: f64 = 0.95;
const UP_TO_DATE: Duration = Duration::from_millis(1_500);

pub fn region(servers: &str, options: &Options, seed: u64, folder: &Path) -> Result<(Value, Vec<String>)> {
    let load = load("region", options, seed);
    let (mut workers, status) = failover::start_workers(servers, &load, 1, folder)?;
    let feeder = Feeder::start(servers, &load)?;
    let observer = Observer::start(servers, &load, Rows::Ours)?;
    // The last one: to even loads the first ones of a worker move.
    let failing = load.partitions as usize - 1;
    let region = format!("s1/{failing}");
    let owner = owners(&status).get(&region).cloned().with_context(|| format!("nobody owns {region}"))?;
    workers.environment = vec![("STREAMSHIELD_FAIL_AT".into(), format!("engine::step_of:{region}"))];
    for worker in WORKERS.into_iter().filter(|worker| *worker != owner) {
        workers.stop(worker, TIMEOUT)?;
        workers.start(worker)?;
        workers.wait_settled(WORKERS.len(), SETTLE_TIMEOUT)?;
    }
    workers.environment.clear();
    wait_steady(&workers, &observer)?;
    let status = workers.status()?;
    ensure!(owners(&status).get(&region) == Some(&owner), "{region} has left {owner} before it was to fail:\n{}", describe(&status));

    let time = Duration::from_secs(options.seconds);
    let (before, failed_before) = (rows_per_second(&observer, time), failures(&workers, &region)?);
    let drained = call(&workers.folder, &["workers", "drain", &workers.job_file().display().to_string(), &owner])?;
    ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    let during = rows_per_second(&observer, time);
    let failures = failures(&workers, &region)?.saturating_sub(failed_before);
    ensure!(failures > 0, "{region} did not fail:\n{}", describe(&workers.status()?));
    workers.expect_all_alive()?;
    workers.stop_all(TIMEOUT)?;
    workers.start_all(&WORKERS)?;
    workers.wait_settled(WORKERS.len(), SETTLE_TIMEOUT)?;
    wait_steady(&workers, &observer)?;
    let after = rows_per_second(&observer, time);
    drop(observer);
    finish(servers, &load, workers, feeder)?;

    ensure!(before.iter().all(|rate| *rate > 0.0), "before the failure there was no output in a partition: {before:?}");
    let others = |partition: &usize| *partition != failing;
    let kept = lowest_ratio(&during, &before, (0..before.len()).filter(others));
    let kept_after = lowest_ratio(&after, &before, 0..before.len());
    let missed = [(kept, "while it fails"), (kept_after, "afterwards")].into_iter().filter(|(ratio, _)| *ratio < THROUGHPUT_MIN);
    let missed = missed.map(|(ratio, when)| format!("a region that fails: {when} others keep {:.1} % of their throughput", ratio * 100.0));
    let value = json!({
        "events_per_second": options.events_per_second, "seconds": options.seconds, "region": region, "failures": failures,
        "rows_per_second": { "before": before, "during": during, "after": after },
        "others_lowest_ratio": kept, "lowest_ratio_after": kept_after,
    });
    Ok((value, missed.collect()))
}

/// What has piled up while workers were started is through.
fn wait_steady(workers: &Workers, observer: &Observer) -> Result<()> {
    observer.wait_up_to_date(UP_TO_DATE, SETTLE_TIMEOUT).with_context(|| workers.last_words())?;
    std::thread::sleep(WARM_UP);
    Ok(())
}

/// Of each partition of the output, from now on for this time.
fn rows_per_second(observer: &Observer, time: Duration) -> Vec<f64> {
    let from = Instant::now();
    std::thread::sleep(time);
    let until = Instant::now();
    (0..observer.partitions()).map(|partition| observer.rows(partition, from, until) as f64 / (until - from).as_secs_f64()).collect()
}

fn failures(workers: &Workers, region: &str) -> Result<u32> {
    let status = workers.status()?;
    let view = status.regions.iter().find(|view| view.region == region);
    Ok(view.with_context(|| format!("there is no region {region}"))?.failures)
}

fn lowest_ratio(rates: &[f64], before: &[f64], partitions: impl Iterator<Item = usize>) -> f64 {
    partitions.map(|partition| rates[partition] / before[partition]).fold(f64::INFINITY, f64::min)
}

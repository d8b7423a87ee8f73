//! What the tiers cost, what checkpoints cost, what a planned change of hands costs, and what a region that fails costs the others.
//!
//! - **Tiers**: the same load on three workers in each tier, one after the other in one run; CPU seconds of all workers between two moments in the middle.
//!   Tier 3 is the base: a follower that computes (Tier 1) or applies deltas (Tier 2) comes on top.
//! - **Checkpoints**: one worker reads a full topic as fast as it can, with checkpoints and without, in turns; the loss in records per second, and the CPU seconds
//!   of the worker alone, which the broker's moods touch less. All intervals are the defaults, so the topic is long.
//! - **Restore**: the workers' folders are deleted between a stop and a start, so all state comes from the store: how much longer it takes
//!   than with the folders in place until there is output of new input, for the bytes that were fetched.
//! - **Hand-over**: a worker joins, leaves and is drained under load; the pause of each region that changes hands is read from its changelog, and only
//!   those regions move that have to. No transaction of the others is aborted by it.
//! - **Region** (`region.rs`): one that fails again and again leaves the others their throughput.
//!
//! Parts that are measured again replace their entry in `target/bench/overhead.json`, so that they can be measured one by one.

mod region;

use crate::commits::{Change, Commits};
use crate::failover::{self, WORKERS};
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use streamshield_core::cluster::Tier;
use streamshield_core::tiers::checkpoint_interval;
use streamshield_tests::load::feeder::Feeder;
use streamshield_tests::load::{Load, verify};
use streamshield_tests::support::client::create_topic;
use streamshield_tests::support::cluster::{Workers, is_settled, owners};
use streamshield_tests::support::figures::{self, quantile, quantiles};
use streamshield_tests::support::http;
use streamshield_tests::support::job::{BOUNDED, Job, kafka_table};
use streamshield_tests::support::process::usage;
use streamshield_tests::support::seed::seed;
use streamshield_tests::support::streamshield::{Runner, call};

/// Until then the broker's JVM compiles what it runs.
const WARM_UP: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(120);
const TIER_1_MAX: f64 = 2.1;
const TIER_2_MAX: f64 = 1.2;
const CHECKPOINT_COST_MAX: f64 = 0.03;
const HAND_OVER_P99_MS_MAX: f64 = 250.0;
const FILE: &str = "overhead.json";

#[derive(clap::Args)]
pub struct Options {
    /// Only these: tiers, checkpoints, restore, handover, region.
    #[arg(long, value_delimiter = ',', default_value = "tiers,checkpoints,restore,handover,region")]
    only: Vec<String>,
    #[arg(long, default_value_t = 20_000)]
    events_per_second: u64,
    /// Measured time per tier, and before, while and after a region fails.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// State of the tiers' workers, bytes.
    #[arg(long, default_value_t = 10_000_000)]
    state_bytes: u64,
    /// Records of a run with or without checkpoints.
    #[arg(long, default_value_t = 30_000_000)]
    records: u64,
    /// Joins, leaves and drains.
    #[arg(long, default_value_t = 8)]
    rounds: u32,
    /// State that is restored, bytes.
    #[arg(long, default_value_t = 500_000_000)]
    restored_bytes: u64,
}

pub fn run(servers: &str, options: &Options) -> Result<()> {
    let seed = seed();
    let (mut measured, mut missed) = (Vec::new(), Vec::new());
    let parts: [(&str, fn(&str, &Options, u64, &Path) -> Result<(Value, Vec<String>)>); 5] =
        [("tiers", tiers), ("checkpoints", checkpoints), ("restore", restore), ("handover", hand_over), ("region", region::region)];
    for (name, measure) in parts.into_iter().filter(|(name, _)| options.only.iter().any(|only| only == name)) {
        let folder = tempfile::Builder::new().prefix("overhead-").tempdir()?;
        match measure(servers, options, seed, folder.path()) {
            Ok((mut figures, misses)) => {
                println!("{name}: {figures:#}");
                (figures["seed"], figures["missed"]) = (json!(seed), json!(misses));
                measured.push((name, figures));
                missed.extend(misses);
            }
            Err(error) => {
                println!("{name}: {error:#}\nlogs: {}", folder.keep().display());
                let failed = format!("{name} failed");
                measured.push((name, json!({ "seed": seed, "missed": [failed] })));
                missed.push(failed);
            }
        }
    }
    let path = figures::root().join("target").join("bench").join(FILE);
    let before: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap_or_default()).unwrap_or_default();
    figures::write(FILE, &merged(&before, &parts.map(|(name, _)| name), measured))?;
    ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    Ok(())
}

/// The file with what was measured now; of the other parts stays what was measured before. `missed` is of all parts.
fn merged(before: &Value, parts: &[&str], measured: Vec<(&str, Value)>) -> Value {
    let mut file: Map<String, Value> = parts.iter().filter_map(|name| Some((name.to_string(), before.get(*name)?.clone()))).collect();
    file.extend(measured.into_iter().map(|(name, figures)| (name.to_string(), figures)));
    let missed: Vec<Value> = file.values().filter_map(|part| part["missed"].as_array()).flatten().cloned().collect();
    file.insert("missed".into(), json!(missed));
    Value::Object(file)
}

fn load(name: &str, options: &Options, seed: u64) -> Load {
    let mut load = Load::new(format!("overhead-{name}-{}", std::process::id()), seed);
    load.events_per_second = options.events_per_second;
    load
}

/// Ends a load; the output must be right in a benchmark as well.
fn finish(servers: &str, load: &Load, mut workers: Workers, feeder: Feeder) -> Result<()> {
    let fed = feeder.finish()?;
    let expected = verify::expected(load, &fed);
    verify::wait_for_rows(servers, load, expected.len() as u64, TIMEOUT).with_context(|| workers.last_words())?;
    workers.stop_all(Duration::from_secs(30))?;
    let verdict = verify::compare(servers, load, &fed, &expected)?;
    ensure!(verdict.is_clean(), "the output is wrong: {verdict:?}");
    failover::remove_topics(servers, load)
}

fn tiers(servers: &str, options: &Options, seed: u64, folder: &Path) -> Result<(Value, Vec<String>)> {
    let mut per_tier = Vec::new();
    for tier in [3, 2, 1] {
        let mut load = load(&format!("tier{tier}"), options, seed);
        if options.state_bytes > 0 {
            load = load.with_state(options.state_bytes);
        }
        let folder = folder.join(tier.to_string());
        std::fs::create_dir(&folder)?;
        let (mut workers, _) = failover::start_workers(servers, &load, tier, &folder)?;
        let feeder = Feeder::start(servers, &load)?;
        std::thread::sleep(WARM_UP);
        let cpu = |workers: &mut Workers| -> Result<f64> {
            WORKERS.iter().map(|name| Ok(usage(workers.worker(name)?.process.pid).context("a worker has ended")?.cpu_seconds)).sum()
        };
        let (before, started) = (cpu(&mut workers)?, Instant::now());
        std::thread::sleep(Duration::from_secs(options.seconds));
        let (cpu_seconds, wall) = (cpu(&mut workers)? - before, started.elapsed().as_secs_f64());
        println!("tier {tier}: {cpu_seconds:.2} CPU-seconds in {wall:.1} s");
        finish(servers, &load, workers, feeder)?;
        per_tier.push((tier, cpu_seconds));
    }
    let of = |tier: u32| per_tier.iter().find(|(of, _)| *of == tier).map_or(f64::NAN, |(_, seconds)| *seconds);
    let (tier_1, tier_2) = (of(1) / of(3), of(2) / of(3));
    let missed = [(tier_1, TIER_1_MAX, "tier 1"), (tier_2, TIER_2_MAX, "tier 2")].into_iter();
    // A ratio that is no number has missed.
    let missed = missed
        .filter(|(ratio, max, _)| ratio.is_nan() || ratio > max)
        .map(|(ratio, max, what)| format!("{what} costs {ratio:.2} × tier 3, not {max}"));
    let value = json!({
        "events_per_second": options.events_per_second, "seconds": options.seconds, "state_bytes": options.state_bytes,
        "cpu_seconds": { "tier_1": of(1), "tier_2": of(2), "tier_3": of(3) }, "tier_1_ratio": tier_1, "tier_2_ratio": tier_2,
    });
    Ok((value, missed.collect()))
}

/// One run of the worker with or without checkpoints.
struct Reading {
    per_second: f64,
    cpu_seconds: f64,
    checkpoints: usize,
}

/// Many keys, so that there is something to save: a window of a day that ends with the input.
fn checkpoints(servers: &str, options: &Options, _seed: u64, folder: &Path) -> Result<(Value, Vec<String>)> {
    const TURNS: usize = 5;
    /// Regions with state: of the second stage.
    const PARALLELISM: usize = 4;
    let unique = std::process::id();
    let input = format!("overhead-checkpoints-{unique}");
    crate::input::fill_bids(servers, &input, options.records)?;
    let run = |turn: usize, with_store: bool| -> Result<Reading> {
        let name = format!("overhead-checkpoints-{unique}-{turn}-{}", if with_store { "with" } else { "without" });
        let sink = format!("{name}-out");
        create_topic(servers, &sink, 8)?;
        let columns = "auction BIGINT, bidder BIGINT, price BIGINT, `dateTime` TIMESTAMP(3), \
                       WATERMARK FOR `dateTime` AS `dateTime` - INTERVAL '4' SECOND";
        let sql = kafka_table("bid", columns, &input, &[BOUNDED])
            + &kafka_table("output", "bidder BIGINT, auction BIGINT, n BIGINT, s BIGINT", &sink, &[])
            + "INSERT INTO output SELECT bidder, auction, COUNT(*), SUM(price) \
               FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '1' DAY)) GROUP BY bidder, auction, window_start, window_end;";
        let folder = folder.join(&name);
        std::fs::create_dir_all(folder.join("store"))?;
        let mut job = Job::new(&name, servers, sql).set("tier", 3).set("parallelism", PARALLELISM);
        if with_store {
            job = job.set("checkpoint", format!("{{store: 'file://{}'}}", folder.join("store").display()));
        }
        let (_, ended) = Runner::new(&folder).finish(&job, Duration::from_secs(600))?;
        streamshield_tests::support::client::delete_topic(servers, &sink)?;
        let per_second = options.records as f64 / ended.wall_seconds;
        let store = folder.join("store").join(&name);
        let made: Vec<usize> = (0..PARALLELISM).map(|partition| manifests(&store.join(format!("1-{partition}")))).collect();
        println!("{name}: {per_second:.0} records/s, {:.1} CPU-seconds, {} checkpoints", ended.cpu_seconds, made.iter().sum::<usize>());
        // The last one may have been made beside the end of the run, at no cost.
        let is_measured = !with_store || made.iter().all(|made| *made >= 2);
        ensure!(is_measured, "{name}: {made:?} checkpoints of the regions with state are too few to cost anything: give more --records");
        Ok(Reading { per_second, cpu_seconds: ended.cpu_seconds, checkpoints: made.iter().sum() })
    };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // The broker's JVM compiles what it runs.
    run(TURNS, false)?;
    for turn in 0..TURNS {
        // Whoever is second finds the broker's pages warm.
        for checkpoints in [turn % 2 == 1, turn % 2 == 0] {
            let into = if checkpoints { &mut with } else { &mut without };
            into.push(run(turn, checkpoints)?);
        }
    }
    streamshield_tests::support::client::delete_topic(servers, &input)?;
    // Of two runs right after each other: from one minute to the next the machine changes by more than what is looked for.
    let pairs = || with.iter().zip(&without);
    let costs: Vec<f64> = pairs().map(|(with, without)| 1.0 - with.per_second / without.per_second).collect();
    let cpu_costs: Vec<f64> = pairs().map(|(with, without)| with.cpu_seconds / without.cpu_seconds - 1.0).collect();
    let (cost, cpu_cost) = (quantile(&costs, 0.5).context("no runs")?, quantile(&cpu_costs, 0.5).context("no runs")?);
    let of = |readings: &[Reading], figure: fn(&Reading) -> f64| readings.iter().map(figure).collect::<Vec<_>>();
    let missed = (cost > CHECKPOINT_COST_MAX).then(|| format!("checkpoints cost {:.1} %", cost * 100.0));
    let value = json!({
        "interval_seconds": checkpoint_interval(Tier::Checkpoints).as_secs(), "records": options.records,
        "records_per_second_with": of(&with, |run| run.per_second), "records_per_second_without": of(&without, |run| run.per_second),
        "cpu_seconds_with": of(&with, |run| run.cpu_seconds), "cpu_seconds_without": of(&without, |run| run.cpu_seconds),
        "checkpoints": with.iter().map(|run| run.checkpoints).collect::<Vec<_>>(), "costs": costs, "cost": cost, "cpu_costs": cpu_costs, "cpu_cost": cpu_cost,
    });
    Ok((value, missed.into_iter().collect()))
}

/// How many checkpoints of a region are in the store.
fn manifests(region: &Path) -> usize {
    let entries = std::fs::read_dir(region.join("manifests")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json")).count()
}

fn restore(servers: &str, options: &Options, seed: u64, folder: &Path) -> Result<(Value, Vec<String>)> {
    let load = load("restore", options, seed).with_state(options.restored_bytes);
    let (mut workers, _) = failover::start_workers(servers, &load, 3, folder)?;
    let feeder = Feeder::start(servers, &load)?;
    workers.wait_for("a checkpoint of each region with state", TIMEOUT, |status| {
        status.regions.iter().filter(|region| region.stateful).all(|region| region.checkpoint.is_some())
    })?;
    workers.stop_all(Duration::from_secs(60))?;
    let warm_seconds = seconds_to_output(servers, &load, &mut workers)?;
    workers.stop_all(Duration::from_secs(60))?;
    WORKERS.iter().try_for_each(|worker| std::fs::remove_dir_all(workers.state_dir(worker)))?;
    let bytes = folder_bytes(&folder.join("checkpoints"))?;
    let cold_seconds = seconds_to_output(servers, &load, &mut workers)?;
    let restored = restored_bytes(&mut workers)?;
    finish(servers, &load, workers, feeder)?;
    ensure!(restored > 0, "nothing came from the store");
    let seconds = cold_seconds - warm_seconds;
    ensure!(seconds > 0.0, "the start took {cold_seconds:.2} s without state and {warm_seconds:.2} s with it: restoring can't be seen");
    let value = json!({
        "state_bytes": options.restored_bytes, "store_bytes": bytes, "start_with_state_seconds": warm_seconds, "start_without_state_seconds": cold_seconds,
        "restored_bytes": restored, "restored_mb_per_second": restored as f64 / 1e6 / seconds,
    });
    Ok((value, Vec::new()))
}

/// From the start of all workers to output of all partitions that needs input of after the start.
fn seconds_to_output(servers: &str, load: &Load, workers: &mut Workers) -> Result<f64> {
    let started = Instant::now();
    workers.start_all(&WORKERS)?;
    verify::wait_output_of_now(servers, load, failover::SETTLE_TIMEOUT).with_context(|| workers.last_words())?;
    let seconds = started.elapsed().as_secs_f64();
    // Not measured: workers tell how they are once a second only.
    workers.wait_settled(WORKERS.len(), failover::SETTLE_TIMEOUT)?;
    Ok(seconds)
}

/// What all workers have fetched from the store since they were started.
fn restored_bytes(workers: &mut Workers) -> Result<u64> {
    WORKERS.iter().map(|worker| Ok(counter(workers, worker, "streamshield_checkpoint_restore_bytes_total")?.unwrap_or(0))).sum()
}

/// Transactions that were aborted since the worker was started.
fn aborted(workers: &mut Workers, worker: &str) -> Result<u64> {
    let name = "streamshield_transactions_aborted_total";
    counter(workers, worker, name)?.with_context(|| format!("{worker} has no {name}"))
}

/// None: the worker has not counted yet.
fn counter(workers: &mut Workers, worker: &str, name: &str) -> Result<Option<u64>> {
    let (code, metrics) = http::get(workers.worker(worker)?.http, "/metrics")?;
    ensure!(code == 200, "/metrics of {worker} answers {code}");
    let count = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    count.map(|count| count.trim().parse::<u64>().context("a counter is a number")).transpose()
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.path().is_dir() { folder_bytes(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

/// What one planned change did.
struct Planned {
    what: &'static str,
    moved: usize,
    stateful_pauses_ms: Vec<f64>,
    pauses_ms: Vec<f64>,
}

fn hand_over(servers: &str, options: &Options, seed: u64, folder: &Path) -> Result<(Value, Vec<String>)> {
    let load = load("handover", options, seed).with_state(options.state_bytes.max(1_000_000));
    let (mut workers, _) = failover::start_workers(servers, &load, 1, folder)?;
    let feeder = Feeder::start(servers, &load)?;
    let commits = Commits::follow(servers, &load.name)?;
    std::thread::sleep(WARM_UP);
    let file = workers.job_file().display().to_string();
    let mut all: Vec<Planned> = Vec::new();
    let aborted_before = WORKERS.iter().map(|worker| aborted(&mut workers, worker)).sum::<Result<u64>>()?;
    // By a process that has ended since.
    let mut aborted_ended = 0;
    for _ in 0..options.rounds {
        aborted_ended += aborted(&mut workers, "w3")?;
        all.push(planned(&mut workers, &commits, "leave", |workers| {
            workers.stop("w3", TIMEOUT)?;
            workers.wait_settled(2, TIMEOUT).map(drop)
        })?);
        all.push(planned(&mut workers, &commits, "join", |workers| {
            workers.start("w3")?;
            workers.wait_for("w3 has its share", TIMEOUT, |status| {
                is_settled(status, 3) && owners(status).values().any(|owner| owner == "w3")
            })?;
            Ok(())
        })?);
        all.push(planned(&mut workers, &commits, "drain", |workers| {
            let drained = call(&workers.folder, &["workers", "drain", &file, "w2", "--wait=60 s"])?;
            ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
            Ok(())
        })?);
        all.push(planned(&mut workers, &commits, "undrain", |workers| {
            let undone = call(&workers.folder, &["workers", "drain", &file, "w2", "--undo"])?;
            ensure!(undone.status.success(), "{}", String::from_utf8_lossy(&undone.stderr));
            workers.wait_for("w2 has its share", TIMEOUT, |status| {
                is_settled(status, 3) && owners(status).values().any(|owner| owner == "w2")
            })?;
            Ok(())
        })?);
    }
    let aborted_after = WORKERS.iter().map(|worker| aborted(&mut workers, worker)).sum::<Result<u64>>()?;
    let aborted_transactions = aborted_ended + aborted_after - aborted_before;
    let regular = commits.take_regular_ms();
    drop(commits);
    finish(servers, &load, workers, feeder)?;
    let pauses: Vec<f64> = all.iter().flat_map(|planned| planned.pauses_ms.iter().copied()).collect();
    let stateful: Vec<f64> = all.iter().flat_map(|planned| planned.stateful_pauses_ms.iter().copied()).collect();
    let mut by_kind = serde_json::Map::new();
    for kind in ["leave", "join", "drain", "undrain"] {
        let of: Vec<&Planned> = all.iter().filter(|planned| planned.what == kind).collect();
        let pauses: Vec<f64> = of.iter().flat_map(|planned| planned.pauses_ms.iter().copied()).collect();
        let moved = of.iter().map(|planned| planned.moved).sum::<usize>() as f64 / of.len().max(1) as f64;
        by_kind.insert(kind.into(), json!({ "n": pauses.len(), "moved_regions": moved, "pause": quantiles(&pauses) }));
    }
    let p99 = quantile(&pauses, 0.99);
    let missed = match p99 {
        Some(p99) if p99 <= HAND_OVER_P99_MS_MAX => None,
        Some(p99) => Some(format!("planned hand-over p99 {p99:.0} ms")),
        None => Some("no region changed hands".into()),
    };
    let disturbed = (aborted_transactions > 0).then(|| format!("{aborted_transactions} transactions were aborted by planned changes"));
    let value = json!({
        "n": pauses.len(), "p50_ms": quantile(&pauses, 0.5), "p99_ms": p99, "max_ms": quantile(&pauses, 1.0), "window_regions": quantiles(&stateful),
        "without_change": quantiles(&regular), "by_kind": by_kind, "regions": 2 * load.partitions,
        "aborted_transactions": aborted_transactions,
    });
    Ok((value, missed.into_iter().chain(disturbed).collect()))
}

fn planned(
    workers: &mut Workers,
    commits: &Commits,
    what: &'static str,
    change: impl FnOnce(&mut Workers) -> Result<()>,
) -> Result<Planned> {
    commits.take_changes();
    let before = owners(&workers.status()?);
    change(workers).context(what)?;
    // What moves on right afterwards is part of it.
    std::thread::sleep(Duration::from_secs(1));
    let after = owners(&workers.status()?);
    let moved = before.iter().filter(|(region, owner)| after.get(*region) != Some(owner));
    let mut waiting: BTreeSet<&String> = moved.map(|(region, _)| region).collect();
    let (moved, started) = (waiting.len(), Instant::now());
    let mut changes: Vec<Change> = Vec::new();
    // Their first epochs under the new owner.
    loop {
        changes.extend(commits.take_changes());
        waiting.retain(|region| changes.iter().all(|change| change.region.to_string() != **region));
        if waiting.is_empty() {
            break;
        }
        ensure!(started.elapsed() < TIMEOUT, "{what}: {waiting:?} have moved, and no epoch of their new owners came in {TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let pauses_ms: Vec<f64> = changes.iter().map(|change| change.pause_ms).collect();
    let stateful = changes.iter().filter(|change| change.region.stage.0 > 0).map(|change| change.pause_ms).collect();
    println!("{what}: {moved} of {} regions moved, pauses {:.0?} ms", before.len(), pauses_ms);
    Ok(Planned { what, moved, stateful_pauses_ms: stateful, pauses_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_not_measured_now_keep_their_figures() {
        let before = json!({
            "seed": 1, "tiers": { "n": 1, "missed": ["tier 1"] }, "handover": { "n": 2, "missed": ["slow"] }, "missed": ["tier 1", "slow"],
        });
        let now = vec![("handover", json!({ "n": 3, "missed": [] })), ("restore", json!({ "missed": ["restore failed"] }))];
        let wanted = json!({
            "tiers": { "n": 1, "missed": ["tier 1"] }, "handover": { "n": 3, "missed": [] }, "restore": { "missed": ["restore failed"] },
            "missed": ["tier 1", "restore failed"],
        });
        assert_eq!(merged(&before, &["tiers", "restore", "handover"], now), wanted);
        assert_eq!(merged(&Value::Null, &["tiers"], Vec::new()), json!({ "missed": [] }));
    }
}

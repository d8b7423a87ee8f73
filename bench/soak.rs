//! Twenty minutes of kills: nothing grows, nothing is left behind, and the output is right.
//!
//! Three workers under load, with checkpoints in every tier; every ten seconds one of two is killed and started again. The third one is never killed:
//! what a worker piles up while others die around it (fencers, followers, readers, moves) would show in it. Flat means that the median of the last
//! third of its samples is not above that of the first third by more than [`GROWTH_MAX`]. At the end: no open transaction, no topic that the job does
//! not need, no leftovers in the workers' folders, no object in the store that no manifest names.

use crate::failover::{self, WORKERS};
use anyhow::{Context, Result, ensure};
use rand::Rng;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use streamshield_tests::load::feeder::Feeder;
use streamshield_tests::load::{Load, verify};
use streamshield_tests::support::client::topics;
use streamshield_tests::support::cluster::{Workers, is_settled};
use streamshield_tests::support::figures::{self, quantile};
use streamshield_tests::support::process::{Usage, usage};
use streamshield_tests::support::seed::{generator, seed};
use streamshield_tests::support::streamshield::call;

const KILL_INTERVAL: Duration = Duration::from_secs(10);
const DOWN: Duration = Duration::from_secs(2);
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Connections, caches and the allocator fill at first.
const WARM_UP: Duration = Duration::from_secs(60);
const GROWTH_MAX: f64 = 1.10;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub struct Options {
    #[arg(long, env = "SOAK_MINUTES", default_value_t = 20.0)]
    minutes: f64,
    #[arg(long, default_value_t = 1)]
    tier: u32,
    #[arg(long, default_value_t = 10_000)]
    events_per_second: u64,
}

/// One look at the worker that lives through all of it.
struct Sample {
    second: f64,
    usage: Usage,
}

pub fn run(servers: &str, options: &Options) -> Result<()> {
    let seed = seed();
    let folder = tempfile::Builder::new().prefix("soak-").tempdir()?;
    match soak(servers, options, seed, folder.path()) {
        Ok(value) => {
            figures::write("soak.json", &value)?;
            println!("{value:#}");
            ensure!(value["ok"] == true, "not flat, not clean, or not right: see above");
            Ok(())
        }
        Err(error) => Err(error.context(format!("logs: {}", folder.keep().display()))),
    }
}

fn soak(servers: &str, options: &Options, seed: u64, folder: &Path) -> Result<Value> {
    let mut load = Load::new(format!("soak-{}", std::process::id()), seed);
    load.events_per_second = options.events_per_second;
    let (mut workers, _) = failover::start_workers_with(servers, &load, options.tier, true, folder)?;
    let feeder = Feeder::start(servers, &load)?;
    let mut random = generator(seed);
    let survivor = WORKERS[2];
    let pid = workers.worker(survivor)?.process.pid;
    let (started, mut samples, mut kills, mut unsettled) = (Instant::now(), Vec::new(), 0_u32, 0_u32);
    let duration = Duration::from_secs_f64(options.minutes * 60.0);
    while started.elapsed() < duration {
        let victim = WORKERS[random.random_range(0..2)];
        watch(&mut workers, pid, started, KILL_INTERVAL - DOWN, &mut samples)?;
        unsettled += u32::from(!workers.status().is_ok_and(|status| is_settled(&status, WORKERS.len())));
        workers.kill(victim)?;
        kills += 1;
        watch(&mut workers, pid, started, DOWN, &mut samples)?;
        workers.start(victim)?;
        if kills.is_multiple_of(6) {
            let usage = usage(pid).unwrap_or_default();
            let minutes = started.elapsed().as_secs_f64() / 60.0;
            println!("{minutes:.1} min: {kills} kills, {} MiB, {} files", usage.rss_bytes >> 20, usage.open_files);
        }
    }
    workers.wait_settled(WORKERS.len(), failover::SETTLE_TIMEOUT)?;
    let fed = feeder.finish()?;
    let expected = verify::expected(&load, &fed);
    verify::wait_for_rows(servers, &load, expected.len() as u64, DRAIN_TIMEOUT).with_context(|| workers.last_words())?;
    workers.stop_all(Duration::from_secs(30))?;
    let verdict = verify::compare(servers, &load, &fed, &expected)?;
    let broken = verify::broken_epochs(servers, &load.name)?;
    let orphans = orphans(servers, &load, &workers)?;
    let (memory, files) = (growth(&samples, |usage| usage.rss_bytes as f64), growth(&samples, |usage| usage.open_files as f64));
    let threads = growth(&samples, |usage| usage.threads as f64);
    let is_flat = [&memory, &files, &threads].iter().all(|growth| growth["ratio"].as_f64().is_some_and(|ratio| ratio <= GROWTH_MAX));
    let ok = is_flat && verdict.is_clean() && broken.is_empty() && orphans["count"] == 0;
    let curve: Vec<Value> = samples
        .iter()
        .step_by((samples.len() / 60).max(1))
        .map(|sample| json!([sample.second.round(), sample.usage.rss_bytes >> 20, sample.usage.open_files, sample.usage.threads]))
        .collect();
    failover::remove_topics(servers, &load)?;
    Ok(json!({
        "ok": ok, "minutes": options.minutes, "tier": options.tier, "events_per_second": options.events_per_second, "kills": kills,
        "not_settled_before_kill": unsettled, "rss_bytes": memory, "open_files": files, "threads": threads, "orphans": orphans,
        "lost": verdict.lost, "doubled": verdict.doubled + verdict.foreign, "wrong": verdict.wrong, "records": verdict.records,
        "broken_epochs": broken, "seed": seed, "second_mib_files_threads": curve,
    }))
}

/// Lets time pass, with a sample each second.
fn watch(workers: &mut Workers, pid: u32, started: Instant, time: Duration, samples: &mut Vec<Sample>) -> Result<()> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        workers.expect_all_alive()?;
        if started.elapsed() > WARM_UP
            && let Some(usage) = usage(pid)
        {
            samples.push(Sample { second: started.elapsed().as_secs_f64(), usage });
        }
        std::thread::sleep(SAMPLE_INTERVAL.min(until.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

/// The medians of the first and the last third.
fn growth(samples: &[Sample], figure: impl Fn(&Usage) -> f64) -> Value {
    let third = samples.len() / 3;
    let median = |part: &[Sample]| quantile(&part.iter().map(|sample| figure(&sample.usage)).collect::<Vec<_>>(), 0.5);
    let (first, last) = (median(&samples[..third]), median(&samples[samples.len() - third..]));
    json!({ "first_third": first, "last_third": last, "ratio": first.zip(last).map(|(first, last)| (last / first * 1_000.0).round() / 1_000.0) })
}

/// What nobody needs any more: transactions, topics, files, objects.
fn orphans(servers: &str, load: &Load, workers: &Workers) -> Result<Value> {
    let transactions = verify::hanging_transactions(servers, &load.name, Duration::from_secs(15))?;
    let known = known_topics(load, workers)?;
    let of_job: Vec<String> = topics(servers)?.into_iter().filter(|topic| topic.starts_with(&load.name)).collect();
    let foreign_topics: Vec<&String> = of_job.iter().filter(|topic| !known.contains(*topic)).collect();
    let mut files = Vec::new();
    for worker in WORKERS {
        leftovers(&workers.state_dir(worker), &mut files)?;
    }
    let objects = unnamed_objects(workers)?;
    let count = transactions.len() + foreign_topics.len() + files.len() + objects.len();
    Ok(json!({ "count": count, "transactions": transactions, "topics": foreign_topics, "files": files, "objects": objects }))
}

/// What the job reads, and what it says that it needs.
fn known_topics(load: &Load, workers: &Workers) -> Result<BTreeSet<String>> {
    let listed = call(&workers.folder, &["topics", "create", &workers.job_file().display().to_string(), "--dry-run"])?;
    ensure!(listed.status.success(), "topics create: {}", String::from_utf8_lossy(&listed.stderr));
    let text = String::from_utf8_lossy(&listed.stdout);
    let existing = text.lines().filter_map(|line| line.strip_prefix("exists")?.split_whitespace().next());
    let known: BTreeSet<String> = existing.map(ToString::to_string).chain([load.input()]).collect();
    ensure!(known.contains(&load.output()), "topics create says something else: {text}");
    Ok(known)
}

/// Scratch folders of restores and copies that are not removed.
fn leftovers(folder: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_scratch = entry.path().is_dir() && name == "scratch";
        if is_scratch {
            found.extend(std::fs::read_dir(entry.path())?.flatten().map(|left| left.path().display().to_string()));
        }
        let is_region = name.split('-').all(|part| part.trim_start_matches('s').parse::<u32>().is_ok());
        if !is_scratch && !is_region && !["streamshield.json", "checkpoints"].contains(&name.as_str()) {
            found.push(entry.path().display().to_string());
        }
    }
    Ok(())
}

/// Files in the store that no manifest of their region names, once a collection without grace has been done: nobody runs, so nobody restores.
fn unnamed_objects(workers: &Workers) -> Result<Vec<String>> {
    let file = workers.job_file().display().to_string();
    // The first marks, the second deletes.
    for _ in 0..2 {
        let gc = call(&workers.folder, &["checkpoints", "gc", &file, "--grace", "0 s"])?;
        ensure!(gc.status.success(), "checkpoints gc: {}", String::from_utf8_lossy(&gc.stderr));
    }
    let (mut unnamed, mut has_checkpoints) = (Vec::new(), false);
    for region in std::fs::read_dir(workers.folder.join("checkpoints").join(&workers.job.name))?.flatten() {
        let names = |folder: &str| -> Vec<std::path::PathBuf> {
            std::fs::read_dir(region.path().join(folder)).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        let manifests: String = names("manifests").iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect();
        has_checkpoints |= !manifests.is_empty();
        let files = names("files").into_iter();
        unnamed.extend(files.filter(|path| !path.file_name().is_some_and(|name| manifests.contains(&*name.to_string_lossy()))));
    }
    ensure!(has_checkpoints, "there is no checkpoint in the store: nothing was looked at");
    Ok(unnamed.into_iter().map(|path| path.display().to_string()).collect())
}

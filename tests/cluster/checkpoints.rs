//! Tier 3 with a store: what was trimmed comes back from checkpoints.

use super::{Stage, TIMEOUT, WORKERS, owner_of};
use anyhow::{Context, Result, ensure};
use rdkafka::message::Message;
use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::Epoch;
use streamshield_tests::support::broker::Broker;
use streamshield_tests::support::client::{Input, Output, create_topic, ends, read_json, topics, wait_for_json};
use streamshield_tests::support::cluster::Workers;
use streamshield_tests::support::http;
use streamshield_tests::support::job::{Job, kafka_table};
use streamshield_tests::support::streamshield::call;

/// Positions in the exchange by epoch, of each region of the second stage.
fn positions(servers: &str, job: &str) -> Result<BTreeMap<u32, BTreeMap<Epoch, i64>>> {
    let changelog = topics(servers)?.into_iter().filter(|topic| topic.starts_with(job) && topic.ends_with("-changelog"));
    let mut positions: BTreeMap<u32, BTreeMap<Epoch, i64>> = BTreeMap::new();
    for topic in changelog {
        Output::follow(servers, &topic)?.visit_to_end(&mut |message| {
            let record = message.payload().and_then(|payload| EpochRecord::decode(payload).ok());
            if let Some(record) = record.filter(|record| record.region.stage.0 == 1) {
                positions.entry(record.region.partition).or_default().insert(record.epoch, record.positions[0]);
            }
        })?;
    }
    Ok(positions)
}

/// The names of the labels of each metric's series, of Prometheus' text.
fn label_sets(metrics: &str) -> Result<BTreeMap<&str, BTreeSet<BTreeSet<&str>>>> {
    let label = Regex::new("[{,]([a-z_]+)=\"")?;
    let mut sets: BTreeMap<&str, BTreeSet<BTreeSet<&str>>> = BTreeMap::new();
    for line in metrics.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let labels = label.captures_iter(line).filter_map(|found| Some(found.get(1)?.as_str())).collect();
        sets.entry(name).or_default().insert(labels);
    }
    Ok(sets)
}

#[test]
fn a_lost_region_comes_back_from_its_checkpoint_and_the_exchange_is_trimmed_only_behind_it() -> Result<()> {
    let with_store = |folder: &std::path::Path, job: streamshield_tests::support::job::Job| {
        job.set("checkpoint", format!("{{store: 'file://{}', interval: 1 s}}", folder.join("store").display()))
    };
    let mut stage = Stage::start_with(Broker::embedded()?, "checkpoints", 3, &WORKERS, with_store)?;
    let servers = stage.broker.bootstrap_servers();
    let exchange = format!("{}-", stage.load.name);
    let trimmed = || -> Result<Vec<_>> {
        let all = ends(&servers, &exchange)?.into_iter().filter(|end| end.topic.ends_with("-repartition"));
        Ok(all.filter(|end| end.low > 0).collect())
    };
    let deadline = Instant::now() + TIMEOUT;
    while trimmed()?.len() < stage.load.partitions as usize {
        ensure!(Instant::now() < deadline, "the exchange is not trimmed\n{}", stage.words());
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    // First what was trimmed, then what the checkpoints are: they only move on.
    let lows = trimmed()?;
    let status = stage.workers.status()?;
    let positions = positions(&servers, &stage.load.name)?;
    for end in &lows {
        let name = format!("s1/{}", end.partition);
        let view = status.regions.iter().find(|view| view.region == name).context("it is a region")?;
        let checkpoint = view.checkpoint.with_context(|| format!("{name} is trimmed up to {} without a checkpoint", end.low))?;
        let of_region = &positions[&(end.partition as u32)];
        // The epoch's own record may be trimmed as well; then the next one begins where it ended.
        let position = of_region.range(checkpoint.epoch..).next().map(|(_, position)| *position);
        ensure!(position.is_some_and(|position| end.low <= position), "{name}: trimmed up to {}, checkpoint at {position:?}", end.low);
    }
    let victim = owner_of(&status, "s1/0")?;
    let (_, metrics) = http::get(stage.workers.worker(&victim)?.http, "/metrics")?;
    let labels = label_sets(&metrics)?;
    let mixed: Vec<_> = labels.iter().filter(|(_, sets)| sets.len() > 1).collect();
    ensure!(mixed.is_empty(), "metrics whose series can't be added up, because their labels differ: {mixed:?}");
    let of_checkpoints = labels.get("streamshield_checkpoints_total").context("an owner whose region was trimmed has made a checkpoint")?;
    ensure!(of_checkpoints.contains(&BTreeSet::from(["durability"])), "{of_checkpoints:?}");
    stage.workers.kill(&victim)?;
    stage.wait_output_of_now()?;
    stage.workers.start(&victim)?;
    stage.settle(3)?;
    stage.finish()
}

/// Restores again after a try that broke off behind its commit: it completes, and nothing is sent twice.
fn restore_once_more(servers: &str, new_job: &str, restore: &dyn Fn() -> Result<std::process::Output>) -> Result<()> {
    let held = || -> Result<BTreeMap<(String, i32), i64>> {
        let of_job = ends(servers, &format!("{new_job}-"))?;
        Ok(of_job.into_iter().map(|end| ((end.topic, end.partition), end.high)).collect())
    };
    let before = held()?;
    let restored = restore()?;
    ensure!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let after = held()?;
    ensure!(!before.is_empty() && after == before, "{before:?}, and after another try {after:?}");
    Ok(())
}

/// Values of all committed rows of a topic.
fn values(servers: &str, topic: &str) -> Result<Vec<i64>> {
    let mut values: Vec<i64> = read_json(servers, topic)?.iter().filter_map(|row| row["v"].as_i64()).collect();
    values.sort_unstable();
    Ok(values)
}

#[test]
fn a_job_made_from_the_checkpoints_of_another_one_goes_on_where_that_one_stood() -> Result<()> {
    let broker = Broker::embedded()?;
    let (servers, folder) = (broker.bootstrap_servers(), tempfile::tempdir()?);
    create_topic(&servers, "numbers", 2)?;
    create_topic(&servers, "even", 2)?;
    let sql = kafka_table("numbers", "v BIGINT", "numbers", &[])
        + &kafka_table("even", "v BIGINT", "even", &[])
        + "INSERT INTO even SELECT v FROM numbers WHERE v % 2 = 0;";
    let store = format!("{{store: 'file://{}', interval: 1 s}}", folder.path().join("store").display());
    let job = Job::new("numbers-1", &servers, sql).set("tier", 3).set("slots", 1).set("checkpoint", &store);
    let send = |from: i64, to: i64| -> Result<()> {
        let of = |partition: i64| (from..to).filter(|v| v / 2 % 2 == partition).map(|v| serde_json::json!({ "v": v })).collect::<Vec<_>>();
        let input = Input::new(&servers)?;
        (0..2).try_for_each(|partition| input.send_all("numbers", partition as i32, &of(partition)))?;
        input.flush()
    };
    send(0, 1_000)?;
    let mut first = Workers::new(folder.path(), &job)?;
    first.start_all(&["w1"])?;
    // What was taken before the checkpoint is everything: nothing is sent after it.
    let status = first.wait_for("all is taken", TIMEOUT, |status| status.totals.records_in == 1_000 && status.totals.lag_records == 0)?;
    let taken: BTreeMap<String, Option<u64>> = status.regions.iter().map(|region| (region.region.clone(), region.epoch)).collect();
    first.wait_for("a checkpoint of the last epoch of each region", TIMEOUT, |status| {
        status.regions.iter().all(|region| region.checkpoint.map(|checkpoint| checkpoint.epoch.0) >= taken[&region.region])
    })?;
    first.stop_all(TIMEOUT)?;
    let file = first.job_file().display().to_string();
    let restore = || call(folder.path(), &["checkpoints", "restore", &file, "--to", "latest", "--as", "numbers-2"]);
    let restored = restore()?;
    ensure!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    // As if that had died before it could tell: its records are committed, and a job without windows has no manifests.
    restore_once_more(&servers, "numbers-2", &restore)?;
    send(1_000, 1_500)?;
    let elsewhere = folder.path().join("second");
    std::fs::create_dir_all(&elsewhere)?;
    let mut second = Workers::new(&elsewhere, &Job { name: "numbers-2".into(), ..job })?;
    second.start_all(&["w1"])?;
    second.wait_for("the rest is taken", TIMEOUT, |status| status.totals.records_in >= 500 && status.totals.lag_records == 0)?;
    second.stop_all(TIMEOUT)?;
    let expected: Vec<i64> = (0..1_500).filter(|v| v % 2 == 0).collect();
    ensure!(values(&servers, "even")? == expected, "each row once, whichever job made it");
    Ok(())
}

/// Ten keys in turn, all in one window that stays open, spread over two partitions.
fn clicks(rows: std::ops::Range<i64>, partition: i64) -> Vec<serde_json::Value> {
    let of_partition = rows.filter(|row| row / 10 % 2 == partition);
    of_partition.map(|row| serde_json::json!({ "k": row % 10, "ts": format!("2024-01-01 00:00:{:02}", row % 60) })).collect()
}

#[test]
fn a_job_with_an_exchange_that_is_restored_under_another_name_counts_each_row_of_its_open_windows_once() -> Result<()> {
    let broker = Broker::embedded()?;
    let (servers, folder) = (broker.bootstrap_servers(), tempfile::tempdir()?);
    create_topic(&servers, "clicks", 2)?;
    create_topic(&servers, "counts", 2)?;
    let sql = kafka_table("clicks", "k BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts", "clicks", &[])
        + &kafka_table("counts", "we TIMESTAMP(3), k BIGINT, n BIGINT", "counts", &[])
        + "INSERT INTO counts SELECT window_end, k, COUNT(*)\n\
           FROM TABLE(TUMBLE(TABLE clicks, DESCRIPTOR(ts), INTERVAL '1' MINUTE)) GROUP BY k, window_start, window_end;";
    let store = format!("{{store: 'file://{}', interval: 1 s}}", folder.path().join("store").display());
    let job = Job::new("clicks-1", &servers, sql).set("tier", 3).set("slots", 1).set("parallelism", 2);
    let job = job.set("flush_interval", "300 ms").set("checkpoint", &store);
    let input = Input::new(&servers)?;
    let send = |rows: std::ops::Range<i64>| -> Result<()> {
        (0..2).try_for_each(|partition| input.send_all("clicks", partition as i32, &clicks(rows.clone(), partition)))
    };

    let mut first = Workers::new(folder.path(), &job)?;
    first.start_all(&["w1"])?;
    // Over some time: what keeps windows is written down at an epoch, and a checkpoint holds what was.
    for part in 0..25 {
        send(part * 40..(part + 1) * 40)?;
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    first.wait_for("a checkpoint of each region that counts", TIMEOUT, |status| {
        let counting: Vec<_> = status.regions.iter().filter(|region| region.region.starts_with("s1/")).collect();
        counting.len() == 2 && counting.iter().all(|region| region.checkpoint.is_some())
    })?;
    // The newest checkpoints hold less than what was taken.
    send(1_000..1_600)?;
    let taken = first.wait_for("all is taken", TIMEOUT, |status| status.totals.records_in == 1_600 && status.totals.lag_records == 0)?;
    first.stop_all(TIMEOUT)?;
    ensure!(read_json(&servers, "counts")?.is_empty(), "the window is open");

    let file = first.job_file().display().to_string();
    let restore_to = |to: &str, name: &str| call(folder.path(), &["checkpoints", "restore", &file, "--to", to, "--as", name]);
    let too_old = restore_to("0", "clicks-0")?;
    let words = String::from_utf8_lossy(&too_old.stderr).into_owned();
    ensure!(too_old.status.code() == Some(1) && words.contains("has no checkpoint that old"), "{words}");
    // Each region that counts has a checkpoint up to this epoch; the sources go back no further than what was taken of them.
    let checkpoints = taken.regions.iter().filter_map(|region| region.checkpoint.as_ref());
    let newest = checkpoints.map(|checkpoint| checkpoint.epoch.0).max().context("there are checkpoints")?;
    let back = restore_to(&newest.to_string(), "clicks-1-then")?;
    ensure!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    let restore = || restore_to("latest", "clicks-2");
    let restored = restore()?;
    ensure!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let again = restore()?;
    ensure!(again.status.code() == Some(1), "nothing is restored onto what was: {}", String::from_utf8_lossy(&again.stdout));
    // As if it had died before the last manifest.
    let manifests = folder.path().join("store/clicks-2/1-1/manifests");
    let last = std::fs::read_dir(&manifests)?.next().context("the second region that counts has a manifest")??.path();
    let manifest = std::fs::read(&last)?;
    std::fs::remove_file(&last)?;
    restore_once_more(&servers, "clicks-2", &restore)?;
    ensure!(std::fs::read(&last)? == manifest, "it is written as it was");

    let elsewhere = folder.path().join("second");
    std::fs::create_dir_all(&elsewhere)?;
    let mut second = Workers::new(&elsewhere, &Job { name: "clicks-2".into(), ..job })?;
    second.start_all(&["w1"])?;
    second.wait_settled(1, TIMEOUT)?;
    // Most likely before it has written anything to the files that came with the other job's checkpoint.
    second.kill("w1")?;
    second.start("w1")?;
    second.wait_settled(1, TIMEOUT)?;
    send(1_600..2_000)?;
    // Closes the window, in both partitions.
    for partition in 0..2 {
        input.send_all("clicks", partition, &[serde_json::json!({ "k": -1, "ts": "2024-01-01 00:10:00" })])?;
    }
    let counted = wait_for_json(&servers, "counts", 10, TIMEOUT);
    counted.with_context(|| second.last_words())?;
    second.stop_all(TIMEOUT)?;
    let mut counted: Vec<(i64, i64)> =
        read_json(&servers, "counts")?.iter().filter_map(|row| Some((row["k"].as_i64()?, row["n"].as_i64()?))).collect();
    counted.sort_unstable();
    let expected: Vec<(i64, i64)> = (0..10).map(|k| (k, 200)).collect();
    ensure!(counted == expected, "{counted:?}\n{}", second.logs());
    Ok(())
}

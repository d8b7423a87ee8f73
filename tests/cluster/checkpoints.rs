//! Tier 3 with a store: what was trimmed comes back from checkpoints.

use super::{Stage, TIMEOUT, WORKERS, owner_of};
use anyhow::{Context, Result, ensure};
use rdkafka::message::Message;
use std::collections::BTreeMap;
use std::time::Instant;
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::Epoch;
use streamshield_tests::support::broker::Broker;
use streamshield_tests::support::client::{Output, ends, topics};

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
    stage.workers.kill(&victim)?;
    stage.wait_output_of_now()?;
    stage.workers.start(&victim)?;
    stage.settle(3)?;
    stage.finish()
}

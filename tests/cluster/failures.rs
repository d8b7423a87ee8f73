//! A part of a worker that fails: one region, one follower. The rest goes on.

use super::{Stage, TIMEOUT, WORKERS, incarnation_of, owner_of};
use anyhow::{Context, Result, ensure};
use streamshield_core::status::TakeoverCause;
use streamshield_tests::support::broker::Broker;
use streamshield_tests::support::http;

const FAIL_AT: &str = "STREAMSHIELD_FAIL_AT";

#[test]
fn a_region_that_panics_is_restarted_alone() -> Result<()> {
    let mut stage = Stage::prepare(Broker::embedded()?, "panics", 3, |_, job| job)?;
    // Steps of all its regions are counted, idle ones too.
    stage.workers.environment = vec![(FAIL_AT.into(), "engine::step:2000".into())];
    stage.workers.start("w1")?;
    stage.workers.environment.clear();
    stage.workers.start_all(&["w2", "w3"])?;
    stage.settle(3)?;
    stage.begin()?;
    let deadline = std::time::Instant::now() + TIMEOUT;
    while !stage.workers.logs().contains("the region has failed") {
        ensure!(std::time::Instant::now() < deadline, "no region has failed\n{}", stage.words());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let status = stage.settle(3)?;
    // Where the worker was still alone the region came back to it, which is no change of owner.
    let restarted: Vec<_> = status.takeovers.iter().filter(|takeover| takeover.cause != TakeoverCause::Moved).collect();
    let only_it = restarted.iter().all(|takeover| takeover.cause == TakeoverCause::Failed) && restarted.len() <= 1;
    ensure!(only_it, "one region failed, and more were restarted: {restarted:?}");
    let incarnation = incarnation_of(&status, "w1");
    stage.wait_output_of_now()?;
    let after = stage.settle(3)?;
    ensure!(incarnation_of(&after, "w1") == incarnation, "the whole worker was restarted");
    stage.finish()
}

#[test]
fn a_replica_that_diverges_is_reported_and_rebuilt() -> Result<()> {
    let mut stage = Stage::prepare(Broker::embedded()?, "diverges", 1, |_, job| job)?;
    for worker in WORKERS {
        // Whoever follows first.
        stage.workers.environment = vec![(FAIL_AT.into(), "engine::diverge:3".into())];
        stage.workers.start(worker)?;
    }
    stage.settle(3)?;
    stage.begin()?;
    let divergences = |stage: &mut Stage| -> Result<u64> {
        let mut sum = 0;
        for worker in WORKERS {
            let (_, metrics) = http::get(stage.workers.worker(worker)?.http, "/metrics")?;
            let count = metrics.lines().find_map(|line| line.strip_prefix("streamshield_followers_diverged_total "));
            sum += count.map_or(Ok(0), |count| count.trim().parse()).context("a counter is a number")?;
        }
        Ok(sum)
    };
    let deadline = std::time::Instant::now() + TIMEOUT;
    while divergences(&mut stage)? == 0 {
        ensure!(std::time::Instant::now() < deadline, "no divergence was detected\n{}", stage.words());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    ensure!(stage.workers.logs().contains("E-4"), "the log names the invariant");
    // Rebuilt, it may take over.
    stage.wait_output_of_now()?;
    let status = stage.settle(3)?;
    let victim = owner_of(&status, "s1/0")?;
    stage.workers.kill(&victim)?;
    stage.wait_output_of_now()?;
    stage.finish()
}

//! Workers that die, sleep and come back, on the embedded broker.

use super::support::{Rig, is_gone, pids, small, wait_until};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use streamshield_faults::stage::get;
use streamshield_faults::{ArmedPoint, FaultError, Role, Stage, StageEventKind, Target};
use streamshield_tests::support::seed;

/// How many epochs a worker has committed.
fn epochs_committed(stage: &Stage, worker: &str) -> Result<u64> {
    let view = stage.workers()?.views().into_iter().find(|view| view.name == worker).context("it is one of the stage's")?;
    let status: serde_json::Value = serde_json::from_slice(&get(view.http, "/api/v1/status", Duration::from_millis(500))?.body)?;
    status["epochs"].as_u64().with_context(|| status.to_string())
}

#[test]
fn a_killed_worker_is_gone_and_comes_back_and_a_paused_one_goes_on() -> Result<()> {
    let mut rig = Rig::start("faults-processes", &small(), &[("tier", "1")])?;
    let before = pids(&rig.stage)["w1"].context("w1 runs")?;
    let (_, fired) = rig.inject("process.kill", &[], Some((Role::Worker, Some("w1"))))?;
    ensure!((fired.count, fired.hit.as_slice()) == (1, &["w1".to_string()]) && fired.evidence.contains(&before.to_string()), "{fired:?}");
    ensure!(is_gone(before), "process {before} still is there");
    rig.wait_healthy()?;
    let after = pids(&rig.stage)["w1"].context("w1 runs again")?;
    ensure!(after != before);
    let died = |event: &StageEventKind| matches!(event, StageEventKind::WorkerDied { worker, status, .. } if worker == "w1" && status.contains("SIGKILL"));
    ensure!(rig.stage.events().iter().any(|event| died(&event.kind)), "{:?}", rig.stage.events());

    let (mut fault, fired) = rig.inject("process.pause", &[], Some((Role::Worker, Some("w2"))))?;
    ensure!(fired.count == 1, "{fired:?}");
    let sleeper = pids(&rig.stage)["w2"].context("w2 is paused, not dead")?;
    ensure!(streamshield_faults::stage::process_state(sleeper) == Some('T'));
    // The others take its regions over while it sleeps.
    rig.stage.wait_status("w1 owns all", super::support::TIMEOUT, |status| {
        status.regions.iter().all(|region| region.owner.as_deref() == Some("w1"))
    })?;
    ensure!(rig.undo(&mut fault)?.count == 1);
    ensure!(rig.undo(&mut fault)?.count == 0, "undoing twice does nothing");
    rig.wait_healthy()?;
    rig.finish()
}

#[test]
fn a_held_worker_stays_away_and_the_named_point_is_where_it_dies() -> Result<()> {
    let mut rig = Rig::start("faults-held", &small(), &[("tier", "1")])?;
    let (_, fired) =
        rig.inject("process.crash_at", &[("point", "engine::before_commit"), ("passing", "2")], Some((Role::Worker, Some("w2"))))?;
    ensure!(fired.count == 1 && fired.evidence.contains("aborted at engine::before_commit:2"), "{fired:?}");
    rig.wait_healthy()?;
    let hold = rig.stage.workers()?.hold("w1")?;
    let (_, fired) = rig.inject("process.kill", &[], Some((Role::Worker, Some("w1"))))?;
    ensure!(fired.count == 1);
    // The survivor has done all the work for a while.
    rig.wait_output_of_now()?;
    ensure!(pids(&rig.stage)["w1"].is_none(), "a held worker was started");
    let nobody = rig.build("process.kill", &[], Some((Role::Worker, Some("w1"))))?.inject(&rig.stage);
    ensure!(matches!(nobody, Err(FaultError::NoTarget(_))), "{nobody:?}");
    drop(hold);
    wait_until("w1 is back", || pids(&rig.stage)["w1"].is_some())?;
    rig.wait_healthy()?;
    rig.finish()
}

#[test]
fn a_worker_that_comes_to_a_point_stays_there_until_the_fault_is_injected() -> Result<()> {
    let mut rig = Rig::start_at_points("faults-points", &small(), &[("tier", "1")])?;
    let target = Target { role: Role::Active, name: None };
    let mut point = ArmedPoint::of(&rig.stage, "engine::before_commit", Some(&target), &mut seed::generator(seed::seed()))?;
    let mut reached = None;
    wait_until("an owner comes to its commit", || {
        reached = point.reached(&rig.stage).expect("the stage is there");
        reached.is_some()
    })?;
    let worker = reached.context("somebody came")?;
    let before = pids(&rig.stage)[&worker].context("it is held, not dead")?;
    // What it says itself: the reports in the control log are up to a second old. It commits every 100 ms, and nobody is held for more than 2 s.
    let committed = epochs_committed(&rig.stage, &worker)?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(epochs_committed(&rig.stage, &worker)? == committed, "{worker} goes on committing");
    let (_, fired) = rig.inject("process.kill", &[], Some((Role::Worker, Some(worker.as_str()))))?;
    ensure!(fired.count == 1 && is_gone(before), "{fired:?}");
    ensure!(point.is_held(), "{worker} had gone on before it died");
    drop(point);
    ensure!(rig.stage.folder().join("points").read_dir()?.next().is_none(), "files are left");
    rig.wait_healthy()?;
    rig.finish()
}

#[test]
fn what_needs_real_brokers_says_so_on_the_embedded_one() -> Result<()> {
    let mut rig = Rig::start("faults-embedded", &small(), &[("tier", "1")])?;
    for name in [
        "broker.kill",
        "broker.pause",
        "broker.all_away",
        "broker.below_min_isr",
        "broker.coordinator_kill",
        "store.away",
        "store.corrupt",
        "hdfs.name_node_restart",
        "data.late",
    ] {
        let outcome = rig.build(name, &[], None)?.inject(&rig.stage);
        ensure!(matches!(outcome, Err(FaultError::NotPossibleHere(_))), "{name}: {outcome:?}");
    }
    rig.finish()
}

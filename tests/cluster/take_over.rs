//! A worker that is lost, or seems to be: somebody else goes on where it was.

use super::{Stage, TIMEOUT, incarnation_of, owner_of};
use anyhow::{Context, Result, ensure};
use streamshield_core::status::TakeoverCause;
use streamshield_tests::load::verify::epochs_of;

fn survives_a_kill(name: &str, tier: u32) -> Result<()> {
    let mut stage = Stage::start(name, tier)?;
    let before = stage.workers.status()?;
    let victim = owner_of(&before, "s1/0")?;
    stage.workers.kill(&victim)?;
    stage.wait_output_of_now()?;
    let after = stage.workers.status()?;
    let taken: Vec<_> = after.takeovers.iter().filter(|takeover| takeover.cause == TakeoverCause::Expired).collect();
    ensure!(taken.iter().any(|takeover| takeover.region == "s1/0"), "nobody took s1/0 from {victim}: {taken:?}");
    ensure!(owner_of(&after, "s1/0")? != victim);
    stage.workers.start(&victim)?;
    stage.settle(3)?;
    stage.finish()
}

#[test]
fn the_output_is_right_after_a_kill_in_tier_1() -> Result<()> {
    survives_a_kill("kill-tier-1", 1)
}

#[test]
fn the_output_is_right_after_a_kill_in_tier_2() -> Result<()> {
    survives_a_kill("kill-tier-2", 2)
}

#[test]
fn the_output_is_right_after_a_kill_in_tier_3() -> Result<()> {
    survives_a_kill("kill-tier-3", 3)
}

#[test]
fn a_worker_that_takes_over_and_dies_in_turn_loses_nothing() -> Result<()> {
    let mut stage = Stage::start("kill-twice", 1)?;
    let first = owner_of(&stage.workers.status()?, "s1/0")?;
    stage.workers.kill(&first)?;
    let status =
        stage.workers.wait_for("a new owner of s1/0", TIMEOUT, |status| owner_of(status, "s1/0").is_ok_and(|owner| owner != first))?;
    let second = owner_of(&status, "s1/0")?;
    // Perhaps before it has fenced, perhaps after: nobody knows who was first to write.
    stage.workers.kill(&second)?;
    stage.wait_output_of_now()?;
    stage.workers.start_all(&[&first, &second])?;
    stage.settle(3)?;
    stage.finish()
}

#[test]
fn a_worker_whose_state_was_deleted_is_seeded_anew() -> Result<()> {
    let mut stage = Stage::start("state-gone", 2)?;
    stage.workers.kill("w2")?;
    std::fs::remove_dir_all(stage.workers.state_dir("w2")).context("there was state to delete")?;
    stage.workers.start("w2")?;
    stage.settle(3)?;
    // The seeded one is needed now.
    let victim = owner_of(&stage.workers.status()?, "s1/0")?;
    stage.workers.kill(&victim)?;
    stage.wait_output_of_now()?;
    stage.finish()
}

#[test]
fn a_worker_that_was_paused_commits_nothing_and_joins_as_a_new_incarnation() -> Result<()> {
    let mut stage = Stage::start("paused", 1)?;
    let before = stage.workers.status()?;
    let paused = owner_of(&before, "s1/0")?;
    let old = incarnation_of(&before, &paused).context("it is a member")?;
    stage.workers.worker(&paused)?.process.signal(libc::SIGSTOP);
    let others = |status: &streamshield_core::status::ClusterStatus| incarnation_of(status, &paused).is_none();
    stage.workers.wait_for_but(&[&paused], "the paused worker is expired", TIMEOUT, others)?;
    stage.wait_output_of_now()?;
    let servers = stage.broker.bootstrap_servers();
    let committed = epochs_of(&servers, &stage.load.name, old)?;
    ensure!(committed > 0, "it had committed before");
    stage.workers.worker(&paused)?.process.signal(libc::SIGCONT);
    let joined = |status: &streamshield_core::status::ClusterStatus| incarnation_of(status, &paused).is_some_and(|new| new > old);
    stage.workers.wait_for("a new incarnation of the paused worker", TIMEOUT, joined)?;
    stage.settle(3)?;
    stage.wait_output_of_now()?;
    // O-1: what it had sealed when it was stopped is its successors' to do again.
    assert_eq!(epochs_of(&servers, &stage.load.name, old)?, committed, "the old incarnation has committed after its pause");
    stage.finish()
}

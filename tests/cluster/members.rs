//! Workers that come and go on purpose, and a broker that goes away. In Tier 3 where it is counted what moves: a loaded machine
//! must not look like a lost worker.

use super::{Stage, TIMEOUT, WORKERS, incarnation_of};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::time::Duration;
use streamshield_core::status::TakeoverCause;
use streamshield_tests::support::broker::Broker;
use streamshield_tests::support::cluster::{Workers, owners};
use streamshield_tests::support::streamshield::call;

/// Regions whose owner changed: from whom, to whom.
fn moved(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<(String, String, String)> {
    let changed = before.iter().filter(|(region, owner)| after[*region] != **owner);
    changed.map(|(region, owner)| (region.clone(), owner.clone(), after[region].clone())).collect()
}

#[test]
fn a_worker_that_joins_gets_its_share_and_one_that_leaves_gives_only_its_own() -> Result<()> {
    let mut stage = Stage::start_with(Broker::embedded()?, "join-leave", 3, &["w1", "w2"], |_, job| job)?;
    let two = owners(&stage.settle(2)?);
    stage.workers.start("w3")?;
    let share = two.len() / 3;
    let joined = stage.workers.wait_for("w3 has its share", TIMEOUT, |status| {
        streamshield_tests::support::cluster::is_settled(status, 3)
            && owners(status).values().filter(|owner| *owner == "w3").count() >= share
    })?;
    let three = owners(&joined);
    let to_newcomer = moved(&two, &three);
    ensure!(!to_newcomer.is_empty() && to_newcomer.len() <= share + 1, "{to_newcomer:?} for a share of {share}");
    ensure!(to_newcomer.iter().all(|(_, _, to)| to == "w3"), "regions moved between the others: {to_newcomer:?}");
    ensure!(joined.takeovers.iter().all(|takeover| takeover.cause == TakeoverCause::Moved), "{:?}", joined.takeovers);
    stage.wait_output_of_now()?;
    stage.workers.stop("w3", TIMEOUT)?;
    let left = owners(&stage.settle(2)?);
    let from_leaver = moved(&three, &left);
    ensure!(from_leaver.iter().all(|(_, from, _)| from == "w3"), "regions moved between the others: {from_leaver:?}");
    stage.wait_output_of_now()?;
    stage.finish()
}

#[test]
fn a_worker_that_leaves_hands_its_regions_to_followers_that_are_ready() -> Result<()> {
    let mut stage = Stage::start("hand-over", 1)?;
    let before = stage.settle(3)?;
    let owned = owners(&before).values().filter(|owner| *owner == "w3").count();
    ensure!(owned > 0, "w3 owns nothing:\n{}", stage.words());
    stage.workers.stop("w3", TIMEOUT)?;
    let after = stage.settle(2)?;
    let causes: Vec<_> = after.takeovers.iter().filter(|takeover| takeover.from == "w3").map(|takeover| takeover.cause).collect();
    // What was not handed over in a second is taken over as `left`.
    ensure!(causes.contains(&TakeoverCause::Moved), "of {owned} regions: {causes:?}\n{}", stage.words());
    stage.wait_output_of_now()?;
    stage.finish()
}

#[test]
fn a_drained_worker_owns_nothing_and_can_be_stopped() -> Result<()> {
    let mut stage = Stage::start("drain", 3)?;
    let before = owners(&stage.settle(3)?);
    let file = stage.workers.job_file().display().to_string();
    let drained = call(stage.folder.path(), &["workers", "drain", &file, "w1", "--wait=30 s"])?;
    let words = String::from_utf8_lossy(&drained.stdout).into_owned() + &String::from_utf8_lossy(&drained.stderr);
    ensure!(drained.status.success(), "{words}\n{}", stage.words());
    let status = stage.workers.status()?;
    let after = owners(&status);
    ensure!(after.values().all(|owner| owner != "w1"), "{after:?}");
    ensure!(moved(&before, &after).iter().all(|(_, from, _)| from == "w1"), "before {before:?}, after {after:?}");
    ensure!(status.takeovers.iter().all(|takeover| takeover.cause == TakeoverCause::Moved), "{:?}", status.takeovers);
    stage.workers.stop("w1", TIMEOUT)?;
    stage.wait_output_of_now()?;
    stage.finish()
}

#[test]
fn the_first_of_two_workers_of_one_name_leaves_with_code_3() -> Result<()> {
    let mut stage = Stage::start("same-name", 1)?;
    // A folder of its own: the same one would be refused before anybody is disturbed.
    let elsewhere = stage.folder.path().join("elsewhere");
    std::fs::create_dir_all(&elsewhere)?;
    let mut second = Workers::new(&elsewhere, &stage.workers.job)?;
    let first = stage.workers.take("w1")?;
    second.start("w1")?;
    let ended = first.process.expect_end(TIMEOUT)?;
    ensure!(ended.status.code() == Some(3), "{}\n{}", ended.status, first.process.last_words());
    ensure!(first.process.stderr().contains("another process is worker `w1`"), "{}", first.process.last_words());
    stage.settle(3)?;
    stage.wait_output_of_now()?;
    // In this order: the load's last windows are closed by whoever is there.
    second.stop("w1", TIMEOUT)?;
    stage.finish()
}

#[test]
fn a_broker_that_was_away_costs_nobody_their_membership() -> Result<()> {
    let log = tempfile::tempdir()?;
    let mut stage = Stage::start_with(Broker::embedded_in(log.path())?, "broker-away", 1, &WORKERS, |_, job| job)?;
    let before = stage.settle(3)?;
    stage.broker.stop()?;
    // Many times the expiry of 250 ms.
    std::thread::sleep(Duration::from_secs(3));
    stage.broker.start_again()?;
    stage.wait_output_of_now()?;
    let after = stage.settle(3)?;
    for worker in WORKERS {
        ensure!(incarnation_of(&before, worker) == incarnation_of(&after, worker), "{worker} was expired\n{}", stage.words());
    }
    stage.finish()
}

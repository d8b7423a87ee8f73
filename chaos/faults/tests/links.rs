//! Links between workers and brokers that are cut, one way or both, through the proxies.

use super::support::{Rig, TIMEOUT, has_kafka, small};
use anyhow::{Result, ensure};
use streamshield_faults::{Role, Topology};
use streamshield_tests::support::broker::left_out;

fn a_partition_takes_the_regions_away_and_heals(name: &str, topology: &Topology) -> Result<()> {
    let mut rig = Rig::start(name, topology, &[("tier", "1")])?;
    let (mut fault, _) = rig.inject("net.partition", &[], Some((Role::Worker, Some("w2"))))?;
    rig.stage.wait_status("w1 owns all", TIMEOUT, |status| status.regions.iter().all(|region| region.owner.as_deref() == Some("w1")))?;
    rig.wait_output_of_now()?;
    ensure!(super::support::pids(&rig.stage)["w2"].is_some(), "it was the link that was cut, not the worker");
    let fired = rig.undo(&mut fault)?;
    ensure!(fired.count > 0 && fired.hit.iter().all(|link| link.starts_with("w2-b")), "{fired:?}");
    rig.wait_healthy()?;
    rig.finish()
}

#[test]
fn a_partition_of_one_worker_from_the_embedded_broker_heals() -> Result<()> {
    a_partition_takes_the_regions_away_and_heals("faults-partition", &small())
}

#[test]
fn a_partition_of_one_worker_from_a_real_kafka_heals() -> Result<()> {
    if !has_kafka() {
        left_out("faults::links::a_partition_of_one_worker_from_a_real_kafka_heals");
        return Ok(());
    }
    a_partition_takes_the_regions_away_and_heals("faults-kafka", &Topology { brokers: 1, workers: 2, ..Topology::default() })
}

#[test]
fn slow_lossy_and_resetting_links_leave_the_output_right() -> Result<()> {
    let mut rig = Rig::start("faults-links", &small(), &[("tier", "1")])?;
    for (name, parameters) in [
        ("net.latency", vec![("latency", "30 ms"), ("jitter", "10 ms")]),
        ("net.slow_drip", vec![("bytes", "512"), ("pause", "1 ms")]),
        ("net.reset", vec![("share", "100 %")]),
        ("net.half_open", vec![]),
    ] {
        let (mut fault, _) = rig.inject(name, &parameters, Some((Role::Worker, Some("w1"))))?;
        std::thread::sleep(std::time::Duration::from_secs(3));
        let fired = rig.undo(&mut fault)?;
        ensure!(fired.count > 0, "{name} was never felt: {fired:?}");
        rig.wait_healthy()?;
    }
    rig.finish()
}

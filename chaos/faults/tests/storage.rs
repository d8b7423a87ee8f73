//! Disks that are full, read-only or damaged, and objects that are.

use super::support::{Rig, small};
use anyhow::{Result, ensure};
use std::time::Duration;
use streamshield_faults::{FaultError, Role, StageFault, StoreKind, Topology};

/// None: this host can't.
fn inject_where_possible(rig: &mut Rig, name: &str, target: (Role, Option<&str>)) -> Result<Option<StageFault>> {
    let mut fault = rig.build(name, &[], Some(target))?;
    match fault.inject(&rig.stage) {
        Ok(fired) => {
            println!("{name}: {fired:?}");
            ensure!(fired.count == 1, "{name}: {fired:?}");
            Ok(Some(fault))
        }
        Err(FaultError::NotPossibleHere(why)) => {
            println!("{name}: not possible here: {why}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

#[test]
fn a_worker_outlives_a_full_and_a_read_only_disk() -> Result<()> {
    let mut rig = Rig::start("faults-disks", &small(), &[("tier", "1")])?;
    for name in ["storage.disk_full", "storage.read_only"] {
        if let Some(mut fault) = inject_where_possible(&mut rig, name, (Role::Worker, Some("w1")))? {
            std::thread::sleep(Duration::from_secs(3));
            rig.undo(&mut fault)?;
        }
        rig.wait_healthy()?;
    }
    rig.finish()
}

#[test]
fn damaged_state_is_found_and_rebuilt() -> Result<()> {
    let mut rig = Rig::start("faults-damage", &small(), &[("tier", "1")])?;
    for (name, parameters) in [
        ("storage.bit_flip", [("file", "sst")].as_slice()),
        ("storage.bit_flip", &[("file", "manifest"), ("flips", "1")]),
        ("storage.truncate", &[("file", "manifest")]),
        ("storage.truncate", &[("file", "sst"), ("files", "2")]),
        ("storage.delete_state", &[]),
    ] {
        let (_, fired) = rig.inject(name, parameters, Some((Role::Worker, Some("w1"))))?;
        ensure!(fired.count > 0, "{name}: {fired:?}");
        rig.wait_healthy()?;
    }
    rig.finish()
}

#[test]
fn a_damaged_checkpoint_is_refused_and_an_older_one_brings_the_state_back() -> Result<()> {
    let topology = Topology { store: StoreKind::Folder, ..small() };
    let mut rig = Rig::start("faults-objects", &topology, &[("tier", "3"), ("checkpoint", "{interval: 2 s}")])?;
    let manifests = |rig: &Rig| {
        let objects = rig.stage.store().objects().unwrap_or_default();
        objects.iter().filter(|name| name.contains("/manifests/") && name.contains("/1-")).count()
    };
    super::support::wait_until("the regions with state have several checkpoints", || manifests(&rig) >= 3 * 2)?;
    let (_, fired) = rig.inject("store.corrupt", &[("objects", "100")], None)?;
    ensure!(fired.count > 0, "{fired:?}");
    let (_, fired) = rig.inject("storage.delete_state", &[], Some((Role::AllWorkers, None)))?;
    ensure!(fired.count == 2, "{fired:?}");
    rig.wait_healthy()?;
    rig.finish()
}

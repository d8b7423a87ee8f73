//! The object store away, slow, damaged, and short of space.

use super::*;
use crate::state::{DiskFaults, SimState};
use crate::world::FaultPlan;
use std::path::PathBuf;
use streamshield_core::ids::{Epoch, Incarnation, StageId};
use streamshield_core::ports::state::{StateBackend, WindowTableSpec};
use streamshield_core::watermark::Watermark;

const REGION: RegionId = RegionId { stage: StageId(1), partition: 0 };
const PLAN: PlanFingerprint = PlanFingerprint(5);

struct Bench {
    sim: Sim,
    store: SimStore,
    disk: SimDisk,
    client: ClientId,
    checkpoints: SimCheckpoints,
}

fn bench(faults: StoreFaults) -> Bench {
    let sim = Sim::new(1, FaultPlan::default());
    let client = sim.client("worker");
    let (store, disk) = (SimStore::new(&sim, faults), SimDisk::new(&sim, "machine", DiskFaults::default()));
    let checkpoints = SimCheckpoints::new(&store, &disk, client);
    Bench { sim, store, disk, client, checkpoints }
}

fn request(epoch: u64) -> CheckpointRequest {
    CheckpointRequest {
        region: REGION,
        epoch: Epoch(epoch),
        incarnation: Incarnation(1),
        plan: PLAN,
        positions: vec![epoch as i64],
        watermark: Watermark(0),
        changelog_from: epoch as i64,
        digest: None,
        record: epoch.to_le_bytes().to_vec(),
        directory: None,
    }
}

impl Bench {
    fn save(&self, epoch: u64) -> Durability {
        self.checkpoints.save(&request(epoch)).expect("saves").durability
    }

    fn restore(&self) -> Option<(u64, usize)> {
        let restored = self.checkpoints.restore(REGION, PLAN, &PathBuf::from("/sim/restored")).expect("answers");
        restored.map(|restored| (restored.info.epoch.0, restored.refused.len()))
    }

    fn epochs(&self) -> Vec<(u64, Durability)> {
        self.checkpoints.list(REGION).expect("lists").into_iter().map(|info| (info.epoch.0, info.durability)).collect()
    }
}

#[test]
fn the_newest_checkpoint_of_the_plan_is_restored() {
    let bench = bench(StoreFaults::default());
    assert_eq!(bench.restore(), None);
    for epoch in [3, 9, 6] {
        assert_eq!(bench.save(epoch), Durability::Remote);
    }
    let other = CheckpointRequest { plan: PlanFingerprint(6), ..request(20) };
    bench.checkpoints.save(&other).expect("saves");
    assert_eq!(bench.restore(), Some((9, 0)));
}

#[test]
fn while_the_store_is_away_checkpoints_are_local_and_go_up_later() {
    let bench = bench(StoreFaults::default());
    bench.save(1);
    bench.store.away(1_000);
    assert_eq!(bench.save(2), Durability::Local);
    let error = bench.checkpoints.restore(REGION, PLAN, &PathBuf::from("/sim/restored")).expect_err("away");
    assert_eq!(error.kind, CheckpointErrorKind::Away);
    assert!(bench.checkpoints.maintain(REGION, &mut || true).is_err());
    bench.sim.advance(1_000);
    assert_eq!(bench.epochs(), [(1, Durability::Remote), (2, Durability::Local)]);
    bench.checkpoints.maintain(REGION, &mut || true).expect("maintains");
    assert_eq!(bench.epochs(), [(1, Durability::Remote), (2, Durability::Remote)]);
}

#[test]
fn a_damaged_checkpoint_is_refused_and_an_older_one_taken() {
    let bench = bench(StoreFaults { damaged: 10_000, ..Default::default() });
    bench.save(1);
    bench.save(2);
    assert_eq!(bench.restore(), Some((1, 1)));
    assert_eq!(bench.sim.fired()["checkpoint damaged"], 1);
}

#[test]
fn a_store_that_refuses_is_counted_and_one_that_is_away_is_not() {
    let bench = bench(StoreFaults { refused: 10_000, ..Default::default() });
    assert_eq!(bench.save(1), Durability::Local);
    assert_eq!(bench.checkpoints.list(REGION).expect_err("refused").kind, CheckpointErrorKind::Away);
    bench.store.away(1_000);
    assert_eq!(bench.save(2), Durability::Local);
    assert_eq!(bench.sim.fired()["store call refused"], 2);
}

#[test]
fn retention_deletes_after_the_grace_and_only_for_the_owner() {
    let bench = bench(StoreFaults { retained: 2, grace_ms: 1_000, ..Default::default() });
    for epoch in 1..=4 {
        assert_eq!(bench.save(epoch), Durability::Remote);
    }
    let maintain = |is_owner: bool| bench.checkpoints.maintain(REGION, &mut || is_owner).expect("maintains");
    maintain(true);
    assert_eq!(bench.epochs().len(), 4, "marked, not deleted");
    bench.sim.advance(1_000);
    maintain(false);
    assert_eq!(bench.epochs().len(), 4, "somebody else owns the region");
    maintain(true);
    assert_eq!(bench.epochs(), [(3, Durability::Remote), (4, Durability::Remote)]);
    assert_eq!(bench.sim.violations(), []);
}

#[test]
fn files_that_do_not_hold_the_record_of_their_manifest_are_found_out() {
    let bench = bench(StoreFaults::default());
    let backend = SimState::new(&bench.disk, bench.client);
    let tables: [WindowTableSpec; 0] = [];
    let mut state = backend.open(REGION, &tables).expect("opens").state;
    let flush = state.seal_flush().expect("seals");
    state.apply_flush(flush, &7u64.to_le_bytes()).expect("applies");
    let folder = backend.scratch().join("copy");
    state.copier().expect("has a store").copy_to(&folder).expect("copies");
    let right = CheckpointRequest { directory: Some(folder.clone()), ..request(7) };
    bench.checkpoints.save(&right).expect("saves");
    assert_eq!(bench.sim.violations(), []);
    bench.checkpoints.save(&CheckpointRequest { directory: Some(folder), ..request(8) }).expect("saves");
    assert!(bench.sim.violations()[0].what.starts_with("K-1"));
    drop(state);
    let restored = backend.scratch().join("restored");
    let found = bench.checkpoints.restore(REGION, PLAN, &restored).expect("answers").expect("there is one");
    backend.adopt(REGION, &restored).expect("adopts");
    let opened = backend.open(REGION, &tables).expect("opens");
    assert_eq!((found.info.epoch, opened.record), (Epoch(8), Some(7u64.to_le_bytes().to_vec())));
}

#[test]
fn the_dead_save_nothing_and_a_slow_store_takes_its_time() {
    let bench = bench(StoreFaults { call_ms_max: 500, ..Default::default() });
    let mut spent_ms = 0;
    for epoch in 1..20 {
        bench.save(epoch);
        spent_ms += bench.sim.take_spent_ms();
    }
    assert!(spent_ms > 500, "{spent_ms}");
    bench.sim.crash(bench.client);
    assert_eq!(bench.checkpoints.save(&request(30)).expect_err("dead").kind, CheckpointErrorKind::Away);
}

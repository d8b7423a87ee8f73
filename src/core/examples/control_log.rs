//! The control log alone at 10,000 workers and 70,000 regions: what a decision costs, how much is written, how much moves. Figures in `target/bench/control-log.json`.
//!
//! `cargo test --release -p streamshield-core -p unify --no-run` builds it; then `$CARGO_TARGET_DIR/release/examples/control_log [WORKERS REGIONS]`.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Instant;
use streamshield_core::cluster::invariants::problems;
use streamshield_core::cluster::*;
use streamshield_core::ids::*;

const HEARTBEAT_MS: u64 = 1_000;
const REPORT_INTERVAL_S: f64 = 10.0;

struct Simulation {
    cluster: Cluster,
    offset: Offset,
    time_ms: i64,
    bytes: u64,
}

impl Simulation {
    /// Appends a record; returns the effects and how long the fold took, in microseconds.
    fn append(&mut self, late_ms: i64, record: &ControlRecord) -> (Vec<Effect>, f64) {
        let payload = record.encode();
        (self.offset, self.time_ms) = (self.offset + 1, self.time_ms + late_ms);
        self.bytes += payload.len() as u64;
        let started = Instant::now();
        let effects = self.cluster.apply(Entry { offset: self.offset, append_time_ms: Some(self.time_ms), payload: &payload });
        (effects, started.elapsed().as_secs_f64() * 1e6)
    }

    fn heartbeat(&self, incarnation: Incarnation) -> ControlRecord {
        ControlRecord::Heartbeat { incarnation, at: self.offset, digest: self.cluster.digest() }
    }

    /// Targets get warm and owners release, until nothing moves; returns how many regions did.
    fn finish_moves(&mut self) -> usize {
        let mut moved = 0;
        loop {
            let moving: Vec<(RegionId, Owner, Move)> =
                self.cluster.regions().filter_map(|(id, region)| Some((id, region.owner?, region.moving?))).collect();
            if moving.is_empty() {
                return moved;
            }
            for (region, owner, moving) in moving {
                let epoch = Epoch(1);
                if !moving.ready {
                    self.append(0, &ControlRecord::Ready { incarnation: moving.to.incarnation, region, epoch });
                }
                let (incarnation, assignment) = (owner.slot.incarnation, owner.assignment);
                self.append(0, &ControlRecord::Released { incarnation, region, assignment, epoch });
                moved += 1;
            }
        }
    }
}

fn joined(incarnation: u64, followers: u32) -> ControlRecord {
    ControlRecord::Joined(Joined {
        incarnation: Incarnation(1_764_000_000_000 + incarnation),
        nonce: incarnation,
        worker: format!("worker-{incarnation}"),
        slots: 4,
        rack: Some(format!("rack-{}", incarnation % 20)),
        level: FEATURE_LEVEL,
        plan: PlanFingerprint(1),
        settings: Settings {
            tier: Tier::ActiveStandby,
            followers,
            heartbeat_interval_ms: HEARTBEAT_MS,
            expiry_ms: 5_000,
            release_timeout_ms: 10_000,
            workers_expected: 1,
            start_wait_ms: 0,
            balance_delay_ms: 0,
            warm_up_timeout_ms: 0,
        },
        http: Some(format!("10.0.{}.{}:8080", incarnation / 256, incarnation % 256)),
    })
}

fn percentiles(mut times_us: Vec<f64>) -> serde_json::Value {
    times_us.sort_by(f64::total_cmp);
    let at = |share: f64| times_us[((times_us.len() - 1) as f64 * share) as usize];
    serde_json::json!({ "n": times_us.len(), "p50_us": at(0.5), "p99_us": at(0.99), "max_us": at(1.0) })
}

fn run(workers: u64, regions: u32, followers: u32) -> serde_json::Value {
    let mut simulation = Simulation { cluster: Cluster::default(), offset: -1, time_ms: 1_000, bytes: 0 };
    let joins: Vec<f64> = (0..workers).map(|number| simulation.append(0, &joined(number, followers)).1).collect();
    let stage = |regions, is_source: bool| StageShape { regions, stateful: !is_source, is_source };
    let stages = [(0, stage(regions / 2, true)), (1, stage(regions - regions / 2, false))].into();
    let genesis = ControlRecord::Genesis(Genesis {
        plan: Some(PlanFingerprint(1)),
        splits: BTreeMap::new(),
        exchange_partitions: BTreeMap::new(),
        stages,
    });
    let (_, assign_all_us) = simulation.append(0, &genesis);

    simulation.bytes = 0;
    let members: Vec<Incarnation> = simulation.cluster.members().map(|member| member.incarnation).collect();
    let mut heartbeats = Vec::new();
    for (number, member) in members.iter().cycle().take(3 * members.len()).enumerate() {
        let record = simulation.heartbeat(*member);
        heartbeats.push(simulation.append(i64::from(number % 10 == 0), &record).1);
    }
    let heartbeat_bytes_per_s = simulation.bytes as f64 / 3.0 * 1_000.0 / HEARTBEAT_MS as f64;
    let report = ControlRecord::Report { incarnation: members[0], report: "x".repeat(100 * (regions as usize).div_ceil(members.len())) };
    let report_bytes_per_s = report.encode().len() as f64 * members.len() as f64 / REPORT_INTERVAL_S;

    let (mut newcomers, mut moves, mut hand_over_s) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..20 {
        newcomers.push(simulation.append(0, &joined(workers + number, followers)).1);
        let started = Instant::now();
        moves.push(simulation.finish_moves());
        hand_over_s.push(started.elapsed().as_secs_f64());
    }
    // Twenty fall silent, one after the other: everybody else is heard again and again, and the clock runs.
    let mut expiries = Vec::new();
    let mut taken_over = 0;
    let (silent, loud) = members.split_at(20);
    let loud: Vec<Incarnation> =
        loud.iter().copied().chain(simulation.cluster.members().map(|member| member.incarnation).skip(members.len())).collect();
    'silence: for _ in 0..10 {
        for (number, member) in loud.iter().enumerate() {
            let late_ms = if number == 0 { HEARTBEAT_MS as i64 } else { 0 };
            let record = simulation.heartbeat(*member);
            let (effects, took_us) = simulation.append(late_ms, &record);
            let expired = effects.iter().filter(|effect| matches!(effect, Effect::Expired { .. })).count();
            taken_over += effects.iter().filter(|effect| matches!(effect, Effect::TakenOver { .. })).count();
            if expired > 0 {
                expiries.push(took_us / expired as f64);
            }
            if simulation.cluster.member(silent[silent.len() - 1]).is_none() {
                break 'silence;
            }
        }
    }
    let started = Instant::now();
    let foretold = simulation.cluster.may_have_to_fence(loud[0]).len();
    let foretell_ms = started.elapsed().as_secs_f64() * 1e3;
    let started = Instant::now();
    let snapshot = simulation.cluster.snapshot(loud[0]);
    let snapshot_ms = started.elapsed().as_secs_f64() * 1e3;
    let snapshot_bytes: usize = snapshot.iter().map(|record| record.encode().len()).sum();
    let started = Instant::now();
    snapshot.iter().for_each(|record| drop(simulation.append(0, record)));
    let verify_ms = started.elapsed().as_secs_f64() * 1e3;
    assert_eq!(problems(&simulation.cluster), []);
    moves.sort_unstable();
    serde_json::json!({
        "workers": workers, "regions": regions, "followers": followers,
        "join_while_starting": percentiles(joins),
        "assign_all_ms": assign_all_us / 1e3,
        "heartbeat": percentiles(heartbeats),
        "heartbeat_bytes_per_s": heartbeat_bytes_per_s, "report_bytes_per_s": report_bytes_per_s,
        "join": percentiles(newcomers), "moves_per_join": { "min": moves[0], "max": moves[moves.len() - 1] },
        "all_moves_of_a_join_ms_max": hand_over_s.iter().copied().fold(0.0, f64::max) * 1e3,
        "expiry_per_worker": percentiles(expiries), "taken_over": taken_over,
        "may_have_to_fence_ms": foretell_ms, "may_have_to_fence": foretold,
        "snapshot_ms": snapshot_ms, "snapshot_bytes": snapshot_bytes, "snapshot_parts": snapshot.len(), "snapshot_verify_ms": verify_ms,
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u32>());
    let workers = arguments.next().transpose()?.unwrap_or(10_000);
    let regions = arguments.next().transpose()?.unwrap_or(70_000);
    let runs: Vec<serde_json::Value> = [0, 1].into_iter().map(|followers| run(u64::from(workers), regions, followers)).collect();
    let text = serde_json::to_string_pretty(
        &serde_json::json!({ "heartbeat_interval_ms": HEARTBEAT_MS, "report_interval_s": REPORT_INTERVAL_S, "runs": runs }),
    )?;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench");
    std::fs::create_dir_all(folder)?;
    std::fs::write(format!("{folder}/control-log.json"), &text)?;
    println!("{text}");
    Ok(())
}

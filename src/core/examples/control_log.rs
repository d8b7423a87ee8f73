//! The control log alone at 10,000 workers and 70,000 regions: what a decision costs, how much is written, how much moves. Tier 3 without followers, and Tier 2
//! with one each. `make bench-control-log` runs it (`ARGS="WORKERS REGIONS"` for others); figures in `target/bench/control-log.json`.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Instant;
use streamshield_core::cluster::invariants::problems;
use streamshield_core::cluster::*;
use streamshield_core::ids::*;
use streamshield_core::status::{FollowerReport, PhasesMs, RegionReport, TakeoverReport, WorkerReport};
use streamshield_core::tiers;

/// As the engine's reporter has it.
const REPORT_INTERVAL_S: f64 = 1.0;
/// Workers that are lost, one after the other.
const SILENT: usize = 20;

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

fn joined(incarnation: u64, settings: &Settings) -> ControlRecord {
    ControlRecord::Joined(Joined {
        incarnation: Incarnation(1_764_000_000_000 + incarnation),
        nonce: incarnation,
        worker: format!("worker-{incarnation}"),
        slots: 4,
        rack: Some(format!("rack-{}", incarnation % 20)),
        level: FEATURE_LEVEL,
        plan: PlanFingerprint(1),
        settings: settings.clone(),
        http: Some(format!("10.0.{}.{}:8080", incarnation / 256, incarnation % 256)),
        died_in: Vec::new(),
    })
}

/// What a worker says of itself after a week of commits every 100 ms, having taken over each of its regions once.
fn report_of(cluster: &Cluster, member: &Member) -> ControlRecord {
    const EPOCH: u64 = 6_000_000;
    let incarnation = member.incarnation;
    let slots = || (0..member.slots).map(move |slot| SlotId { incarnation, slot });
    let followed = slots().flat_map(|slot| cluster.followed(slot));
    let mut report = WorkerReport {
        state: "running".into(),
        records_in: 5_000_000_000,
        rows_out: 1_000_000_000,
        latency_p50_ms: Some(150),
        latency_p99_ms: Some(300),
        cpu_percent: Some(150),
        resident_bytes: Some(2_000_000_000),
        followers: followed.map(|region| FollowerReport { region: region.to_string(), epoch: EPOCH, diverged: None }).collect(),
        ..Default::default()
    };
    let ms = Some(100);
    let phases_ms = PhasesMs { detect: ms, fence: ms, catch_up: ms, confirm: ms, first_commit: ms };
    for owned in slots().flat_map(|slot| cluster.owned(slot)) {
        let region = owned.region.to_string();
        report.note_takeover(TakeoverReport { region: region.clone(), assignment: owned.assignment, phases_ms });
        report.regions.push(RegionReport {
            region,
            stage: "orders".into(),
            epoch: EPOCH,
            lag_records: Some(0),
            lag_ms: Some(0),
            watermark_ms: Some(1_764_000_000_000),
            state_bytes: 100_000_000,
            checkpoint_age_ms: Some(5_000),
            stopped: None,
        });
    }
    ControlRecord::Report { incarnation, report: report.encode() }
}

fn percentiles(mut times_us: Vec<f64>) -> serde_json::Value {
    times_us.sort_by(f64::total_cmp);
    let at = |share: f64| times_us[((times_us.len() - 1) as f64 * share) as usize];
    serde_json::json!({ "n": times_us.len(), "p50_us": at(0.5), "p99_us": at(0.99), "max_us": at(1.0) })
}

fn run(workers: u64, regions: u32, followers: u32) -> serde_json::Value {
    let tier = if followers > 0 { Tier::ActiveStandby } else { Tier::Checkpoints };
    // Loads are evened out at once, so that the moves of each join can be counted.
    let settings = Settings { balance_delay_ms: 0, ..tiers::settings(tier, followers) };
    let heartbeat_ms = settings.heartbeat_interval_ms;
    let mut simulation = Simulation { cluster: Cluster::default(), offset: -1, time_ms: 1_000, bytes: 0 };
    let joins: Vec<f64> = (0..workers).map(|number| simulation.append(0, &joined(number, &settings)).1).collect();
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
    // One round of all takes an interval.
    let at_ms = |number: usize| number as i64 * heartbeat_ms as i64 / members.len() as i64;
    for (number, member) in members.iter().cycle().take(3 * members.len()).enumerate() {
        let record = simulation.heartbeat(*member);
        heartbeats.push(simulation.append(at_ms(number + 1) - at_ms(number), &record).1);
    }
    let heartbeat_bytes_per_s = simulation.bytes as f64 / 3.0 * 1_000.0 / heartbeat_ms as f64;
    simulation.bytes = 0;
    let reports: Vec<ControlRecord> = simulation.cluster.members().map(|member| report_of(&simulation.cluster, member)).collect();
    let reports: Vec<f64> = reports.iter().map(|report| simulation.append(0, report).1).collect();
    let report_bytes_per_s = simulation.bytes as f64 / REPORT_INTERVAL_S;

    let (mut newcomers, mut moves, mut hand_over_s) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..20 {
        newcomers.push(simulation.append(0, &joined(workers + number, &settings)).1);
        let started = Instant::now();
        moves.push(simulation.finish_moves());
        hand_over_s.push(started.elapsed().as_secs_f64());
    }
    // Some fall silent, one in each round: everybody else is heard again and again, and the clock runs.
    let mut expiries = Vec::new();
    let mut taken_over = 0;
    let (silent, loud) = members.split_at(SILENT);
    let loud: Vec<Incarnation> =
        loud.iter().copied().chain(simulation.cluster.members().map(|member| member.incarnation).skip(members.len())).collect();
    'silence: for fallen in 1..10 * SILENT {
        for (number, member) in silent.iter().skip(fallen).chain(&loud).enumerate() {
            let late_ms = if number == 0 { heartbeat_ms as i64 } else { 0 };
            let record = simulation.heartbeat(*member);
            let (effects, took_us) = simulation.append(late_ms, &record);
            let expired = effects.iter().filter(|effect| matches!(effect, Effect::Expired { .. })).count();
            taken_over += effects.iter().filter(|effect| matches!(effect, Effect::TakenOver { .. })).count();
            if expired > 0 {
                expiries.push(took_us / expired as f64);
            }
            if simulation.cluster.member(silent[SILENT - 1]).is_none() {
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
    assert!(silent.iter().all(|member| simulation.cluster.member(*member).is_none()), "not all losses were noticed");
    moves.sort_unstable();
    serde_json::json!({
        "workers": workers, "regions": regions, "tier": tiers::number(tier), "followers": followers, "heartbeat_interval_ms": heartbeat_ms,
        "join_while_starting": percentiles(joins),
        "assign_all_ms": assign_all_us / 1e3,
        "heartbeat": percentiles(heartbeats),
        "report": percentiles(reports),
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
    let text = serde_json::to_string_pretty(&serde_json::json!({ "report_interval_s": REPORT_INTERVAL_S, "runs": runs }))?;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench");
    std::fs::create_dir_all(folder)?;
    std::fs::write(format!("{folder}/control-log.json"), &text)?;
    println!("{text}");
    Ok(())
}

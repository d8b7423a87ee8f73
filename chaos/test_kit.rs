//! A run for tests of everything that is made from a journal.

use crate::journal::*;
use crate::plan::{Invariant, Mode, Phase, Plan};
use std::collections::BTreeMap;
use std::path::Path;

pub(crate) const PLAN: &str = r#"{
  "version": 1, "title": "two kills and a cut link & more", "workload": {"rate": 1000},
  "method": [{"fault": "process.kill", "repeat": 2, "every": "10 s"}, {"fault": "net.partition", "for": "10 s"}],
  "thresholds": {"latency_ms": ["p99 < 500 during healthy", "p99 < 3000 during fault"], "failover_ms": ["max < 2000"]},
  "proof_of_fault": {"min_fired": {"process.kill": 2}, "min_records_during_fault": 1000}
}"#;

pub(crate) fn plan() -> Plan {
    serde_json::from_str(PLAN).expect("a plan")
}

pub(crate) fn injection(id: u32, fault: &str, from_ms: u64, to_ms: u64) -> Injection {
    Injection {
        id,
        // As the plan has them.
        step: usize::from(fault.starts_with("net")),
        fault: fault.into(),
        family: if fault.starts_with("net") { "network".into() } else { fault.split('.').next().unwrap_or_default().into() },
        target: "worker".into(),
        parameters: BTreeMap::new(),
        from_ms,
        to_ms: Some(to_ms),
        outcome: InjectionOutcome::Injected,
        hit: vec!["w1".into()],
        evidence: "pid 4711 is gone".into(),
        count: 1,
        tried_until_ms: None,
    }
}

/// Everything that a run would say when all is well.
pub(crate) fn entries() -> Vec<Entry> {
    let stage = |at_ms, stage| Entry::Stage { at_ms, stage };
    let mut entries = vec![
        stage(0, RunStage::Starting),
        Entry::Started { after_ms: 4_000 },
        stage(10_000, RunStage::SteadyState),
        Entry::Reading { reading: Reading { at_ms: 12_000, mode: Mode::Before, name: "lag".into(), value: Some(3.0), met: true } },
        stage(15_000, RunStage::Method),
        Entry::Injecting { injection: injection(1, "process.kill", 20_000, 20_100) },
        Entry::OwnerChange {
            change: OwnerChange {
                at_ms: 20_400,
                region: "s0/1".into(),
                from: "w1".into(),
                to: "w2".into(),
                cause: "expired".into(),
                total_ms: Some(812),
                is_idle: false,
            },
        },
        Entry::Process { event: killed(20_050) },
        Entry::Injecting { injection: injection(2, "process.kill", 40_000, 40_100) },
        Entry::Process { event: killed(40_050) },
        Entry::Injecting {
            injection: Injection { to_ms: None, count: 0, evidence: String::new(), ..injection(3, "net.partition", 60_000, 0) },
        },
        Entry::Undone { id: 3, at_ms: 70_000, hit: vec!["w2".into()], evidence: "12 connections held".into(), count: 12 },
        stage(90_000, RunStage::Healing),
        stage(90_500, RunStage::CatchingUp),
        Entry::CaughtUp { after_ms: 1_500 },
        stage(95_000, RunStage::Draining),
        stage(97_000, RunStage::Verifying),
        Entry::Latency { phase: Phase::Healthy, latency: Latency { rows: 40_000, p50_ms: 120, p90_ms: 150, p99_ms: 260, max_ms: 400 } },
        Entry::Latency { phase: Phase::Fault, latency: Latency { rows: 30_000, p50_ms: 130, p90_ms: 900, p99_ms: 1_900, max_ms: 2_100 } },
        Entry::Failover { failover: Failover { at_ms: 20_000, worker: "w1".into(), gap_ms: 900, is_over: true } },
        Entry::Failover { failover: Failover { at_ms: 40_000, worker: "w1".into(), gap_ms: 1_100, is_over: true } },
        Entry::Records {
            records: Records { due: 85_000, sent: 85_000, verified: 85_000, during_fault: 20_000, faulty: 0, stretches: Vec::new() },
        },
        Entry::Host { noise: HostNoise { watched_ms: 97_000, late_ms: 400, latest_ms: 180 } },
        Entry::Cost { cost: Cost { cpu_seconds: 42.5, peak_rss_bytes: 120 << 20 } },
    ];
    entries.extend((0..85).map(|second| Entry::Sample { sample: sample(15_000 + second * 1_000) }));
    entries.extend(Invariant::ALL.iter().map(|invariant| Entry::Looked { invariant: *invariant, looked: Looked::At(85_000) }));
    entries
}

fn killed(at_ms: u64) -> ProcessEvent {
    ProcessEvent { at_ms, process: "w1".into(), what: ProcessChange::Killed("signal: 9 (SIGKILL)".into()) }
}

fn sample(at_ms: u64) -> Sample {
    let faulty = (20_000..22_000).contains(&at_ms) || (60_000..72_000).contains(&at_ms);
    Sample {
        at_ms,
        sent: 1_000,
        rows: if faulty { 300 } else { 1_900 },
        lag_records: (!faulty).then_some(40),
        latency_p50_ms: Some(if faulty { 600 } else { 120 }),
        latency_p99_ms: (at_ms != 21_000).then_some(if faulty { 1_900 } else { 260 }),
        workers_alive: 3,
        rss_bytes: 300 << 20,
        cpu_percent: 55.5,
    }
}

/// The journal of such entries.
pub(crate) fn journal_of(entries: Vec<Entry>) -> Journal {
    let folder = tempfile::tempdir().expect("a folder");
    let mut recorder = begin(folder.path());
    entries.into_iter().for_each(|entry| recorder.add(entry));
    recorder.end(99_000).expect("written")
}

pub(crate) fn begin(folder: &Path) -> Recorder {
    let version =
        Versions { streamshield: "0.1.0".into(), binary: "streamshield".into(), os: "Linux".into(), cpus: 2, memory_bytes: 8 << 30 };
    Recorder::begin(folder, &plan(), "test", 42, "streamshield chaos run test --seed 42", version, "2026-01-01T00:00:00Z")
        .expect("a journal")
}

pub(crate) fn journal() -> Journal {
    journal_of(entries())
}

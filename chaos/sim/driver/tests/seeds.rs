//! Seeds that must not break anything.

use std::collections::BTreeSet;
use streamshield_simulation::campaign::report;
use streamshield_simulation::{Campaign, Scenario, run};

/// About a minute on two busy cores.
const SEEDS: u64 = 600;
const REGRESSIONS: &str = include_str!("../regressions.txt");

/// Faults that a few hundred seeds must have met: one that never fired proves nothing.
const FAULTS: [&str; 33] = [
    "abort lost",
    "answer lost",
    "append twice",
    "broker away",
    "call waits",
    "checkpoint damaged",
    "commit aborted",
    "commit answer lost",
    "commit late",
    "commit repeated",
    "commit request lost",
    "crash at a crash point",
    "crash in call",
    "delivery fails",
    "disk full",
    "disk lost",
    "fencer hit",
    "markers late",
    "operator drains",
    "queue full",
    "records late",
    "refused",
    "sent early",
    "short take",
    "store away",
    "store call refused",
    "store damaged",
    "twin starts",
    "worker crashed",
    "worker cut off",
    "worker expired",
    "worker leaves",
    "worker paused",
];

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

fn regressions() -> Vec<u64> {
    let seed = |line: &str| line.split_whitespace().next().filter(|word| !word.starts_with('#')).map(|word| word.parse().expect("a seed"));
    REGRESSIONS.lines().filter_map(seed).collect()
}

#[test]
fn no_seed_breaks_an_invariant() {
    let seeds = match variable("STREAMSHIELD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("STREAMSHIELD_SIMULATION_SEEDS").unwrap_or(SEEDS),
    };
    let is_whole = seeds.start == 0 && seeds.end >= SEEDS;
    let campaign = Campaign { seeds, threads: 2, broken: None, time_max: None, stop_at_first: false };
    let figures = campaign.run(|_| ());
    println!(
        "{} seeds, {:.2} simulated hours in {:.1} s, {} take-overs, trace {}",
        figures.seeds, figures.simulated_hours, figures.wall_seconds, figures.takeovers, figures.trace_hash
    );
    assert_eq!(figures.violations, 0, "{}failing seeds: {:?}", figures.report(), figures.failing_seeds);
    if is_whole {
        let met: BTreeSet<_> = figures.faults.keys().copied().collect();
        let missed: Vec<_> = FAULTS.iter().filter(|fault| !met.contains(*fault)).collect();
        assert!(missed.is_empty(), "these never took place: {missed:?}");
        assert!(figures.states_compared > 1_000 && figures.heartbeats_compared > 1_000, "{figures:?}");
    }
}

#[test]
fn seeds_that_once_failed_stay_mended() {
    for seed in regressions() {
        let outcome = run(&Scenario::of(seed), None, false);
        assert!(outcome.violations.is_empty(), "{}", report(&outcome));
    }
}

#[test]
fn the_same_seed_twice_gives_the_same_run_to_the_last_call() {
    for seed in [1, 2, 3, 5, 8, 13, 21, 34] {
        let of_a_run = move || {
            let outcome = run(&Scenario::of(seed), None, false);
            (outcome.trace_hash, outcome.calls, outcome.steps, outcome.simulated_ms, outcome.fired)
        };
        let first = of_a_run();
        let second = std::thread::spawn(of_a_run).join().expect("a run");
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn another_seed_is_another_run() {
    let hashes: BTreeSet<u64> = (0..8).map(|seed| run(&Scenario::of(seed), None, false).trace_hash).collect();
    assert_eq!(hashes.len(), 8);
}

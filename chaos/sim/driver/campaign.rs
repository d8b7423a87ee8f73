//! Many seeds: on a few threads, each seed on one of them; figures of all, and a report of what went wrong.
//!
//! The order in which threads take seeds decides nothing: the hash of a campaign is made of the seeds' hashes in the order of the seeds.

use crate::broken::Rule;
use crate::run::{Outcome, run};
use crate::scenario::Scenario;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::Xxh3;

/// Failing seeds whose reports are kept.
const FAILURES_KEPT: usize = 20;

/// Which seeds, and how.
#[derive(Clone, Debug)]
pub struct Campaign {
    pub seeds: Range<u64>,
    pub threads: usize,
    pub broken: Option<Rule>,
    /// No seed is begun after this.
    pub time_max: Option<Duration>,
    pub stop_at_first: bool,
}

/// Of all runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    pub seeds: u64,
    pub simulated_hours: f64,
    pub violations: u64,
    /// Of all seeds, in hexadecimal.
    pub trace_hash: String,
    pub wall_seconds: f64,
    pub threads: usize,
    /// Of a thread's time.
    pub ms_per_seed: f64,
    pub steps: u64,
    pub calls: u64,
    pub rows: u64,
    pub late_rows: u64,
    pub windows: u64,
    pub takeovers: u64,
    pub heartbeats_compared: u64,
    pub states_compared: u64,
    pub calm_ms_max: i64,
    /// How often each fault took place.
    pub faults: BTreeMap<&'static str, u64>,
    pub failing_seeds: Vec<u64>,
    #[serde(skip)]
    pub failures: Vec<Outcome>,
}

impl Campaign {
    /// Runs the seeds; `told` hears of each.
    pub fn run(&self, told: impl Fn(&Outcome) + Sync) -> Figures {
        let began = Instant::now();
        let next = AtomicU64::new(self.seeds.start);
        let outcomes: Mutex<BTreeMap<u64, Outcome>> = Mutex::default();
        let has_failed = AtomicU64::new(0);
        let work = || {
            loop {
                let is_late = self.time_max.is_some_and(|time_max| began.elapsed() >= time_max);
                let is_enough = self.stop_at_first && has_failed.load(Ordering::SeqCst) > 0;
                let seed = next.fetch_add(1, Ordering::SeqCst);
                if seed >= self.seeds.end || is_late || is_enough {
                    return;
                }
                let mut outcome = run(&Scenario::of(seed), self.broken, false);
                told(&outcome);
                if outcome.violations.is_empty() {
                    outcome.tail.clear();
                } else {
                    has_failed.fetch_add(1, Ordering::SeqCst);
                }
                outcomes.lock().insert(seed, outcome);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(work);
            }
        });
        Figures::of(outcomes.into_inner(), began.elapsed(), self.threads.max(1))
    }
}

impl Figures {
    fn of(outcomes: BTreeMap<u64, Outcome>, wall: Duration, threads: usize) -> Figures {
        let mut figures = Figures { threads, wall_seconds: wall.as_secs_f64(), ..Default::default() };
        let mut hash = Xxh3::new();
        let mut simulated_ms = 0;
        for (seed, outcome) in outcomes {
            hash.update(&seed.to_le_bytes());
            hash.update(&outcome.trace_hash.to_le_bytes());
            figures.seeds += 1;
            simulated_ms += outcome.simulated_ms;
            figures.violations += outcome.violations.len() as u64;
            figures.steps += outcome.steps;
            figures.calls += outcome.calls;
            figures.rows += outcome.rows as u64;
            figures.late_rows += outcome.late_rows as u64;
            figures.windows += outcome.windows as u64;
            figures.takeovers += outcome.takeovers;
            figures.heartbeats_compared += outcome.heartbeats_compared;
            figures.states_compared += outcome.images_compared;
            figures.calm_ms_max = figures.calm_ms_max.max(outcome.calm_ms);
            for (name, count) in &outcome.fired {
                *figures.faults.entry(name).or_default() += count;
            }
            if !outcome.violations.is_empty() {
                figures.failing_seeds.push(seed);
                if figures.failures.len() < FAILURES_KEPT {
                    figures.failures.push(outcome);
                }
            }
        }
        figures.simulated_hours = simulated_ms as f64 / 3_600_000.0;
        figures.ms_per_seed = wall.as_secs_f64() * 1e3 * threads as f64 / figures.seeds.max(1) as f64;
        figures.trace_hash = format!("{:016x}", hash.digest());
        figures
    }

    /// What went wrong, with the way to see it again.
    pub fn report(&self) -> String {
        self.failures.iter().map(report).collect()
    }
}

/// One run that went wrong.
pub fn report(outcome: &Outcome) -> String {
    let mut text = String::new();
    let seed = outcome.seed;
    let mut line = |line: &str| writeln!(text, "{line}").expect("a string takes everything");
    line(&format!("seed {seed}, after {} ms of virtual time:", outcome.simulated_ms));
    outcome.violations.iter().for_each(|violation| line(&format!("  {violation}")));
    line("  the last of its trace:");
    outcome.tail.iter().for_each(|last| line(&format!("    {last}")));
    line(&format!("  replay: make simulate SEED={seed}   (all of the trace: make simulate SEED={seed} ARGS=--trace)"));
    text
}

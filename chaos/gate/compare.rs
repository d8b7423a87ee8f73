//! Two journals, figure by figure.

use crate::journal::{Journal, RunStage};
use crate::plan::Phase;
use crate::verdict::{Outcome, Verdict, failover_ms, harness_errors, unsound};
use serde::{Deserialize, Serialize};

/// One figure of a run.
pub struct Measure {
    pub name: &'static str,
    pub unit: &'static str,
    /// More of it is worse by no more than this: two runs of the same differ by so much on a quiet machine.
    pub noise: f64,
    pub of: fn(&Journal) -> Option<f64>,
}

/// What a processor and a GiB of memory cost for an hour, in whatever currency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prices {
    pub cpu_hour: f64,
    pub gib_hour: f64,
}

/// An assumption, of the size of what clouds ask for a container: nobody's bill.
impl Default for Prices {
    fn default() -> Prices {
        Prices { cpu_hour: 0.04, gib_hour: 0.0045 }
    }
}

impl Prices {
    /// Hundredths of the currency, for what was used and not for what was reserved.
    fn cents(&self, cpu_s: f64, gib_s: f64) -> f64 {
        (cpu_s * self.cpu_hour + gib_s * self.gib_hour) * 100.0 / 3_600.0
    }
}

/// What two runs of the same differ by, per million records.
const CPU_NOISE_S: f64 = 5.0;
const MEMORY_NOISE_GIB_S: f64 = 20.0;

/// The whole life of a job: start, steady state, peak, failure, recovery, drain, and what it takes. Less is better in all of them, and in the cost,
/// which [`compare`] adds by the prices.
pub const MEASURES: [Measure; 14] = [
    Measure { name: "start", unit: "s", noise: 3.0, of: |journal| seconds(journal.start_ms) },
    Measure { name: "latency p50, healthy", unit: "ms", noise: 30.0, of: |journal| latency(journal, Phase::Healthy, |one| one.p50_ms) },
    Measure { name: "latency p99, healthy", unit: "ms", noise: 100.0, of: |journal| latency(journal, Phase::Healthy, |one| one.p99_ms) },
    Measure { name: "latency p50, peak", unit: "ms", noise: 50.0, of: |journal| latency(journal, Phase::Peak, |one| one.p50_ms) },
    Measure { name: "latency p99, peak", unit: "ms", noise: 200.0, of: |journal| latency(journal, Phase::Peak, |one| one.p99_ms) },
    Measure { name: "latency p99, fault", unit: "ms", noise: 1_000.0, of: |journal| latency(journal, Phase::Fault, |one| one.p99_ms) },
    Measure { name: "records not taken at the peak", unit: "%", noise: 1.0, of: not_taken_at_peak },
    Measure { name: "failover p50", unit: "ms", noise: 150.0, of: |journal| failover(journal, 0.5) },
    Measure { name: "failover longest", unit: "ms", noise: 1_000.0, of: |journal| failover(journal, 1.0) },
    Measure { name: "catch up", unit: "s", noise: 3.0, of: |journal| seconds(journal.catch_up_ms) },
    Measure { name: "drain", unit: "s", noise: 3.0, of: |journal| stage_s(journal, RunStage::Draining) },
    Measure { name: "CPU per million records", unit: "s", noise: CPU_NOISE_S, of: cpu },
    Measure { name: "memory of a worker, peak", unit: "MiB", noise: 32.0, of: |journal| mib(journal.cost.peak_rss_bytes) },
    Measure { name: "memory × time per million records", unit: "GiB s", noise: MEMORY_NOISE_GIB_S, of: memory_time },
];

/// Fewer take-overs differ from run to run by more than any tolerance.
const FAILOVERS_MIN: usize = 3;

/// One figure of both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub measure: String,
    pub unit: String,
    pub baseline: Option<f64>,
    pub candidate: Option<f64>,
    /// Of the baseline; above 0 is worse.
    pub change: Option<f64>,
    pub worse: bool,
}

/// Whether the candidate is promoted, and why not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Promotion {
    pub promoted: bool,
    /// As of `chaos run`: 0 promoted · 1 SLO missed or something got worse · 2 invariant violated · 3 inconclusive · 4 harness error.
    pub exit_code: u8,
    pub reasons: Vec<String>,
    pub plan: String,
    pub seed: u64,
    /// By which share a figure may be worse.
    pub tolerance: f64,
    /// That the cost is made of.
    pub prices: Prices,
    pub changes: Vec<Change>,
    pub baseline: Verdict,
    pub candidate: Verdict,
    pub not_possible_here: Vec<String>,
}

pub fn compare(baseline: &Journal, candidate: &Journal, tolerance: f64, prices: Prices) -> Promotion {
    let of_measure = |measure: &Measure| {
        let both = ((measure.of)(baseline), (measure.of)(candidate));
        change(measure.name, measure.unit, measure.noise, both, tolerance)
    };
    let mut changes: Vec<Change> = MEASURES.iter().map(of_measure).collect();
    let cost = |journal: &Journal| Some(prices.cents(cpu(journal)?, memory_time(journal)?));
    let noise = prices.cents(CPU_NOISE_S, MEMORY_NOISE_GIB_S);
    changes.push(change("cost per million records", "cents", noise, (cost(baseline), cost(candidate)), tolerance));
    let (outcome, reasons) = decide(baseline, &candidate.verdict, &changes, tolerance);
    Promotion {
        promoted: outcome == Outcome::Pass,
        exit_code: outcome.exit_code(),
        reasons,
        plan: candidate.plan_name.clone(),
        seed: candidate.seed,
        tolerance,
        prices,
        changes,
        baseline: baseline.verdict.clone(),
        candidate: candidate.verdict.clone(),
        not_possible_here: candidate.verdict.not_possible_here.clone(),
    }
}

fn decide(baseline: &Journal, candidate: &Verdict, changes: &[Change], tolerance: f64) -> (Outcome, Vec<String>) {
    if candidate.outcome != Outcome::Pass {
        return (candidate.outcome, candidate.reasons.iter().map(|reason| format!("candidate: {reason}")).collect());
    }
    // What the baseline broke is no standard, but its figures are; a run that proves nothing has none. What it broke comes first in its verdict,
    // and may hide that its figures mean nothing.
    let lacks_faults = baseline.faults.iter().any(|fault| !fault.is_proven());
    let is_meaningless = !harness_errors(baseline).is_empty() || !unsound(baseline).is_empty() || lacks_faults;
    let Verdict { outcome, reasons, .. } = &baseline.verdict;
    if is_meaningless || matches!(outcome, Outcome::Inconclusive | Outcome::HarnessError) {
        return (Outcome::Inconclusive, reasons.iter().map(|reason| format!("baseline: {reason}")).collect());
    }
    let shown = |value: Option<f64>| value.map_or("nothing".into(), crate::verdict::rounded);
    let worse: Vec<String> = changes
        .iter()
        .filter(|change| change.worse)
        .map(|change| {
            let by = change.change.map_or(String::new(), |by| format!(", {:+.0} %, {:.0} % are allowed", by * 100.0, tolerance * 100.0));
            format!("{} got worse: {} → {} {}{by}", change.measure, shown(change.baseline), shown(change.candidate), change.unit)
        })
        .collect();
    (if worse.is_empty() { Outcome::Pass } else { Outcome::SloMissed }, worse)
}

fn change(name: &str, unit: &str, noise: f64, (before, after): (Option<f64>, Option<f64>), tolerance: f64) -> Change {
    let both = before.zip(after);
    let worse = match (before, after) {
        (Some(before), Some(after)) => after > before * (1.0 + tolerance) && after - before > noise,
        // What could be measured before can't be now.
        (Some(_), None) => true,
        (None, _) => false,
    };
    let change = both.filter(|(before, _)| *before > 0.0).map(|(before, after)| after / before - 1.0);
    Change { measure: name.into(), unit: unit.into(), baseline: before, candidate: after, change, worse }
}

fn seconds(ms: Option<u64>) -> Option<f64> {
    ms.map(|ms| ms as f64 / 1_000.0)
}

fn stage_s(journal: &Journal, stage: RunStage) -> Option<f64> {
    let span = journal.stages.iter().find(|span| span.stage == stage)?;
    Some((span.to_ms? - span.from_ms) as f64 / 1_000.0)
}

fn latency(journal: &Journal, phase: Phase, of: fn(&crate::journal::Latency) -> u64) -> Option<f64> {
    journal.latency.get(&phase).filter(|latency| latency.rows > 0).map(|latency| of(latency) as f64)
}

fn not_taken_at_peak(journal: &Journal) -> Option<f64> {
    Some(((1.0 - journal.throughput.get(&Phase::Peak)?.ratio()?) * 100.0).max(0.0))
}

fn failover(journal: &Journal, quantile: f64) -> Option<f64> {
    // Where none has finished there is nothing to compare.
    let (gap_ms, samples) = failover_ms(journal, quantile, f64::INFINITY);
    gap_ms.filter(|_| samples >= FAILOVERS_MIN).map(|gap| gap as f64)
}

fn per_million(journal: &Journal, amount: f64) -> Option<f64> {
    (journal.records.sent > 0 && amount > 0.0).then(|| amount * 1e6 / journal.records.sent as f64)
}

fn cpu(journal: &Journal) -> Option<f64> {
    per_million(journal, journal.cost.cpu_seconds)
}

fn mib(bytes: u64) -> Option<f64> {
    (bytes > 0).then_some(bytes as f64 / f64::from(1 << 20))
}

/// Of all workers: a sample stands for the time since the one before.
fn memory_time(journal: &Journal) -> Option<f64> {
    let pairs = journal.timeline.windows(2);
    let byte_seconds: f64 = pairs.map(|pair| pair[1].rss_bytes as f64 * (pair[1].at_ms - pair[0].at_ms) as f64 / 1_000.0).sum();
    per_million(journal, byte_seconds / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Cost, Entry, Failover, Finding, HostNoise, Latency};
    use crate::plan::Invariant;
    use crate::test_kit::{entries, journal, journal_of};

    fn with(more: Vec<Entry>) -> Journal {
        journal_of(entries().into_iter().chain(more).collect())
    }

    fn compare(baseline: &Journal, candidate: &Journal, tolerance: f64) -> Promotion {
        super::compare(baseline, candidate, tolerance, Prices::default())
    }

    fn healthy(p99_ms: u64) -> Entry {
        Entry::Latency { phase: Phase::Healthy, latency: Latency { rows: 40_000, p50_ms: 120, p90_ms: 150, p99_ms, max_ms: 499 } }
    }

    #[test]
    fn the_same_again_is_promoted() {
        let promotion = compare(&journal(), &journal(), 0.2);
        assert!(promotion.promoted && promotion.reasons.is_empty() && promotion.exit_code == 0, "{promotion:?}");
        assert!(promotion.changes.iter().filter(|change| change.baseline.is_some()).count() >= 9);
    }

    #[test]
    fn what_got_worse_beyond_tolerance_and_noise_is_not_promoted() {
        let promotion = compare(&journal(), &with(vec![healthy(480)]), 0.2);
        assert_eq!((promotion.promoted, promotion.exit_code), (false, 1));
        assert_eq!(promotion.reasons, ["latency p99, healthy got worse: 260 → 480 ms, +85 %, 20 % are allowed"]);
        assert!(compare(&journal(), &with(vec![healthy(340)]), 0.2).promoted, "80 ms are noise");
        assert!(compare(&journal(), &with(vec![healthy(480)]), 1.0).promoted, "85 % are within 100 %");
        assert!(compare(&with(vec![healthy(480)]), &journal(), 0.2).promoted, "better is fine");
    }

    #[test]
    fn a_candidate_that_misses_its_slo_is_not_promoted_whatever_the_baseline_did() {
        let slow = with(vec![healthy(700)]);
        let promotion = compare(&slow, &slow, 0.2);
        assert_eq!(promotion.exit_code, 1);
        assert!(promotion.reasons[0].starts_with("candidate: latency_ms p99 < 500"), "{:?}", promotion.reasons);
        assert!(compare(&slow, &journal(), 0.2).promoted, "a baseline that missed is no obstacle");
    }

    #[test]
    fn a_take_over_that_was_cut_off_counts_where_it_is_longer_than_the_finished_ones() {
        let of = |third: (u64, bool), fourth: (u64, bool), quantile: f64| {
            let entry = |(gap_ms, is_over): (u64, bool)| Entry::Failover {
                failover: Failover { at_ms: 60_000, worker: "w1".into(), gap_ms, is_over },
            };
            failover(&with(vec![entry(third), entry(fourth)]), quantile)
        };
        assert_eq!(of((1_000, true), (400, false), 0.5), Some(1_000.0));
        assert_eq!(of((1_000, true), (60_000, false), 1.0), Some(60_000.0));
        assert_eq!(of((400, false), (500, false), 0.5), None, "two have finished");
    }

    #[test]
    fn a_baseline_that_proves_nothing_is_inconclusive() {
        let unsteady = with(vec![Entry::BrokenOff { why: crate::journal::BrokenOff::Interrupted }]);
        assert_eq!(compare(&unsteady, &journal(), 0.2).exit_code, 3);
    }

    #[test]
    fn a_baseline_that_broke_something_is_a_standard_only_if_its_figures_mean_something() {
        let lost = || Entry::Finding {
            finding: Finding { invariant: Invariant::NoLoss, kind: "lost-write".into(), place: "k7".into(), detail: "3 of 17".into() },
        };
        let violated = with(vec![lost()]);
        assert_eq!(violated.verdict.outcome, Outcome::Violated);
        assert!(compare(&violated, &journal(), 0.2).promoted, "what it broke is mended");
        let busy = Entry::Host { noise: HostNoise { watched_ms: 100_000, late_ms: 20_000, latest_ms: 900 } };
        let gone = Entry::BrokenOff { why: crate::journal::BrokenOff::Harness("gone".into()) };
        for (more, why) in [(busy, "baseline: the host was too busy"), (gone, "baseline: the harness failed: gone")] {
            let violated = with(vec![lost(), more]);
            assert_eq!(violated.verdict.outcome, Outcome::Violated);
            let promotion = compare(&violated, &journal(), 0.2);
            assert_eq!((promotion.promoted, promotion.exit_code), (false, 3));
            assert!(promotion.reasons.iter().any(|reason| reason.starts_with(why)), "{:?}", promotion.reasons);
        }
        let without_partition = |entry| match entry {
            Entry::Undone { id, at_ms, .. } => Entry::Undone { id, at_ms, hit: Vec::new(), evidence: String::new(), count: 0 },
            entry => entry,
        };
        let violated = journal_of(entries().into_iter().map(without_partition).chain([lost()]).collect());
        assert_eq!(violated.verdict.outcome, Outcome::Violated);
        let promotion = compare(&violated, &journal(), 0.2);
        assert_eq!((promotion.promoted, promotion.exit_code), (false, 3));
        let why = "baseline: net.partition fired 0 times, 1 are asked for";
        assert!(promotion.reasons.iter().any(|reason| reason == why), "{:?}", promotion.reasons);
    }

    #[test]
    fn the_cost_is_what_processors_and_memory_cost_by_their_prices() {
        let cost_of = |prices: Prices, candidate: &Journal| {
            let promotion = super::compare(&journal(), candidate, 0.2, prices);
            promotion.changes.into_iter().find(|change| change.measure == "cost per million records").expect("it is compared")
        };
        // 42.5 CPU seconds for 85,000 records are 500 for a million; 300 MiB for 84 s are 289.5 GiB s.
        let by_cpu = cost_of(Prices { cpu_hour: 3.6, gib_hour: 0.0 }, &journal());
        assert!(by_cpu.baseline.is_some_and(|cents| (cents - 50.0).abs() < 1e-9) && !by_cpu.worse, "{by_cpu:?}");
        let by_memory = cost_of(Prices { cpu_hour: 0.0, gib_hour: 3.6 }, &journal());
        assert!(by_memory.baseline.is_some_and(|cents| (cents - 28.95).abs() < 0.01), "{by_memory:?}");
        let dear = |cpu_seconds| with(vec![Entry::Cost { cost: Cost { cpu_seconds, peak_rss_bytes: 120 << 20 } }]);
        assert!(cost_of(Prices::default(), &dear(55.0)).worse, "a quarter more");
        assert!(!cost_of(Prices::default(), &dear(45.0)).worse, "6 % are within 20 %");
        let promotion = compare(&journal(), &dear(55.0), 0.2);
        assert_eq!((promotion.exit_code, promotion.prices), (1, Prices::default()));
    }

    #[test]
    fn the_start_is_the_jobs_and_not_that_of_what_it_runs_on() {
        let start = compare(&journal(), &journal(), 0.2).changes.into_iter().find(|change| change.measure == "start");
        assert_eq!(start.and_then(|start| start.baseline), Some(4.0));
    }
}

//! What a run says about the promise, from its journal alone.
//!
//! ```text
//! broken off by the harness ─► 4     unless an anomaly was found before: then 2
//! an invariant violated     ─► 2     whatever else
//! nothing proven            ─► 3     not steady before, a fault that never fired, load not reached, host too busy, an invariant nobody could look at
//! a threshold missed        ─► 1
//! else                      ─► 0
//! ```
//! A missed threshold on a host that was too busy, or with a load that never came, says nothing about the job: 3. A fault that never fired does not
//! excuse one: 1. What the host can't inject is listed, and never counted as passed; if nothing at all could be injected, nothing is proven, nor where the
//! plan names a fault and how often it must fire.

use crate::journal::{
    ANOMALIES_MAX, BrokenOff, Finding, Injection, InjectionOutcome, Journal, Kills, Looked, ProcessChange, ProcessEvent, RunStage, Span,
    Throughput, aftermath, is_explained, spans,
};
use crate::plan::{Aggregate, Invariant, Metric, Mode, Phase, Threshold};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Pass,
    SloMissed,
    Violated,
    Inconclusive,
    #[default]
    HarnessError,
}

impl Outcome {
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Pass => 0,
            Outcome::SloMissed => 1,
            Outcome::Violated => 2,
            Outcome::Inconclusive => 3,
            Outcome::HarnessError => 4,
        }
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Outcome::Pass => "passed",
            Outcome::SloMissed => "SLO missed",
            Outcome::Violated => "invariant violated",
            Outcome::Inconclusive => "inconclusive",
            Outcome::HarnessError => "harness error",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub outcome: Outcome,
    pub exit_code: u8,
    /// Why it is no pass, the decisive ones first.
    pub reasons: Vec<String>,
    /// Faults that this host can't inject, and why: they prove nothing.
    pub not_possible_here: Vec<String>,
}

/// All injections of one fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultSummary {
    pub fault: String,
    pub family: String,
    pub injected: u32,
    /// Injections with evidence that something happened.
    pub fired: u32,
    /// Deaths, cut connections, refused requests, …
    pub count: u64,
    /// Sent from its begin to the end of its aftermath.
    pub records_during: u64,
    /// What the job took meanwhile.
    #[serde(default)]
    pub taken_during: u64,
    /// Tries that found nothing to aim at.
    pub no_target: u32,
    pub failed: Vec<String>,
    pub not_possible_here: Option<String>,
    /// Injections of which that is so.
    pub impossible: u32,
    /// That the plan asks for; where it does not say, the steps of the method that have this fault.
    pub min_fired: u32,
    /// Whether the plan says it: then an injection that is not possible here is one that is missing.
    #[serde(default)]
    pub is_asked_for: bool,
    /// Those of them of which nothing was seen, where the plan does not say.
    #[serde(default)]
    pub silent_steps: u32,
}

impl FaultSummary {
    /// Why the host can't inject it, where it could not even once.
    pub fn never_possible_here(&self) -> Option<&str> {
        self.not_possible_here.as_deref().filter(|_| self.injected == 0)
    }

    pub fn is_proven(&self) -> bool {
        self.lacks().is_none()
    }

    /// Why it is not proven. What the host can't inject is asked for only where the plan does so; the rest is, and what was only drawn must have fired once.
    pub fn lacks(&self) -> Option<String> {
        let FaultSummary { injected, fired, min_fired, silent_steps, .. } = self;
        let excused = if self.is_asked_for { 0 } else { self.impossible };
        if fired + excused < *min_fired {
            return Some(format!("fired {fired} times, {min_fired} are asked for"));
        }
        if *silent_steps > 0 {
            return Some(format!("fired {fired} times, but never in {silent_steps} of its {min_fired} steps"));
        }
        (*injected > 0 && *fired == 0).then(|| format!("fired 0 times, though it was injected {injected} times"))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InvariantResult {
    pub invariant: Invariant,
    pub looked: Looked,
    pub anomalies: u64,
    /// The first ones.
    pub examples: Vec<Finding>,
}

impl InvariantResult {
    pub fn new(invariant: Invariant, looked: Looked) -> InvariantResult {
        InvariantResult { invariant, looked, anomalies: 0, examples: Vec::new() }
    }

    pub fn status(&self) -> &'static str {
        match self.looked {
            _ if self.anomalies > 0 => "violated",
            Looked::At(_) => "held",
            Looked::NotApplicable(_) => "not applicable",
            Looked::Not(_) => "not checked",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThresholdResult {
    pub metric: Metric,
    pub condition: Threshold,
    /// None: it was not measured.
    pub measured: Option<f64>,
    /// That the figure is made of.
    pub samples: u64,
    pub holds: bool,
}

impl ThresholdResult {
    pub fn text(&self) -> String {
        format!("{} {}", self.metric.name(), self.condition)
    }

    pub fn status(&self) -> &'static str {
        match self.measured {
            Some(_) if self.holds => "held",
            Some(_) => "missed",
            None => "not measured",
        }
    }
}

/// Fills in everything that follows from the rest of a journal. Judging twice changes nothing.
pub fn judge(journal: &mut Journal) {
    journal.faults = fault_summaries(journal);
    journal.kills = kills(journal);
    journal.throughput = Phase::EACH.into_iter().filter_map(|phase| Some((phase, throughput(journal, &spans(journal, phase))?))).collect();
    journal.records.during_fault = journal.throughput.get(&Phase::Fault).map_or(0, |throughput| throughput.sent);
    sort_findings(journal);
    journal.thresholds = thresholds(journal);
    let (outcome, reasons) = outcome(journal);
    let not_possible_here =
        journal.faults.iter().filter_map(|fault| fault.not_possible_here.as_ref().map(|why| format!("{}: {why}", fault.fault))).collect();
    journal.verdict = Verdict { outcome, exit_code: outcome.exit_code(), reasons, not_possible_here };
}

fn fault_summaries(journal: &Journal) -> Vec<FaultSummary> {
    let mut summaries: Vec<FaultSummary> = Vec::new();
    // What the harness does after the method, to see whether state is rebuilt, proves nothing about the plan.
    let of_method = |one: &&Injection| one.family != "load" && one.step < journal.plan.method.len();
    for injection in journal.injections.iter().filter(of_method) {
        let index = summaries.iter().position(|summary| summary.fault == injection.fault).unwrap_or_else(|| {
            summaries.push(empty_summary(journal, &injection.fault, &injection.family));
            summaries.len() - 1
        });
        let summary = &mut summaries[index];
        match &injection.outcome {
            InjectionOutcome::Begun => {}
            InjectionOutcome::Injected => {
                summary.injected += 1;
                summary.fired += u32::from(injection.count > 0);
                summary.count += injection.count;
            }
            InjectionOutcome::NotPossible(why) => {
                summary.impossible += 1;
                summary.not_possible_here.get_or_insert_with(|| why.clone());
            }
            InjectionOutcome::NoTarget(_) => summary.no_target += 1,
            InjectionOutcome::Failed(why) => summary.failed.push(why.clone()),
        }
    }
    // A fault of the method that was never tried is one that never fired. What a draw left out is chance, unless the plan asks for it.
    let planned = journal
        .plan
        .method
        .iter()
        .filter_map(|step| step.fault.as_deref())
        .chain(journal.plan.proof_of_fault.min_fired.keys().map(String::as_str));
    for fault in planned {
        if summaries.iter().all(|summary| summary.fault != fault) {
            summaries.push(empty_summary(journal, fault, &family_of(fault)));
        }
    }
    for summary in &mut summaries {
        let is_of_it = |one: &&Injection| one.fault == summary.fault && one.outcome == InjectionOutcome::Injected;
        let of_it = journal.injections.iter().filter(of_method).filter(is_of_it);
        let disturbed: Vec<Span> = of_it.map(|one| aftermath(journal, one)).collect();
        let samples = journal.timeline.iter().filter(|sample| disturbed.iter().any(|span| span.holds(sample.at_ms)));
        summary.records_during = samples.clone().map(|sample| sample.sent).sum();
        summary.taken_during = samples.map(|sample| sample.rows).sum();
    }
    summaries.sort_by(|left, right| left.fault.cmp(&right.fault));
    summaries
}

fn family_of(fault: &str) -> String {
    streamshield_faults::catalogue().iter().find(|spec| spec.name == fault).map_or(String::new(), |spec| spec.family.to_string())
}

/// None: the run had no such phase.
fn throughput(journal: &Journal, spans: &[Span]) -> Option<Throughput> {
    let samples = || journal.timeline.iter().filter(|sample| spans.iter().any(|span| span.holds(sample.at_ms)));
    let seconds = spans.iter().map(|span| span.to_ms - span.from_ms).sum::<u64>() as f64 / 1_000.0;
    (samples().next().is_some()).then(|| Throughput {
        seconds,
        sent: samples().map(|one| one.sent).sum(),
        taken: samples().map(|one| one.rows).sum(),
    })
}

fn empty_summary(journal: &Journal, fault: &str, family: &str) -> FaultSummary {
    let asked = journal.plan.proof_of_fault.min_fired.get(fault).copied();
    // Each step of the method must show something: one that is repeated does not stand for another, nor does a draw.
    let shows = |one: &Injection| match one.outcome {
        InjectionOutcome::Injected => one.count > 0,
        InjectionOutcome::NotPossible(_) => true,
        _ => false,
    };
    let is_silent = |step: usize| !journal.injections.iter().any(|one| one.step == step && one.fault == fault && shows(one));
    let steps = journal.plan.method.iter().enumerate().filter(|(_, step)| step.fault.as_deref() == Some(fault));
    let planned: Vec<usize> = steps.map(|(index, _)| index).collect();
    let silent = planned.iter().filter(|step| is_silent(**step)).count();
    FaultSummary {
        fault: fault.into(),
        family: family.into(),
        injected: 0,
        fired: 0,
        count: 0,
        records_during: 0,
        taken_during: 0,
        no_target: 0,
        failed: Vec::new(),
        not_possible_here: None,
        impossible: 0,
        min_fired: asked.unwrap_or(planned.len() as u32),
        is_asked_for: asked.is_some(),
        silent_steps: if asked.is_some() { 0 } else { silent as u32 },
    }
}

fn kills(journal: &Journal) -> Kills {
    let rebuilding_ms = journal.stages.iter().find(|span| span.stage == RunStage::Rebuilding).map_or(u64::MAX, |span| span.from_ms);
    // Whom a fault has hit is known by now: another one's death is not its doing.
    let by_method = |event: &&ProcessEvent| match &event.what {
        ProcessChange::Killed(status) => event.at_ms < rebuilding_ms && is_explained(journal, event.at_ms, &event.process, status),
        _ => false,
    };
    let killed = journal.processes.iter().filter(by_method);
    let (brokers, workers): (Vec<&ProcessEvent>, Vec<&ProcessEvent>) = killed.partition(|event| event.process.starts_with("broker"));
    Kills { workers: workers.len() as u64, brokers: brokers.len() as u64 }
}

fn sort_findings(journal: &mut Journal) {
    let findings = &journal.findings;
    for wanted in &journal.plan.invariants {
        if journal.invariants.iter().all(|result| result.invariant != *wanted) {
            journal.invariants.push(InvariantResult::new(*wanted, Looked::Not("the run did not come to it".into())));
        }
    }
    let wanted = &journal.plan.invariants;
    journal.invariants.retain(|result| wanted.contains(&result.invariant));
    journal.invariants.sort_by_key(|result| result.invariant);
    for result in &mut journal.invariants {
        let of_it: Vec<&Finding> = findings.iter().filter(|finding| finding.invariant == result.invariant).collect();
        result.anomalies = of_it.len() as u64;
        result.examples = of_it.into_iter().take(ANOMALIES_MAX).cloned().collect();
    }
}

fn thresholds(journal: &Journal) -> Vec<ThresholdResult> {
    let conditions =
        journal.plan.thresholds.iter().flat_map(|(metric, conditions)| conditions.iter().map(|condition| (*metric, *condition)));
    conditions
        .map(|(metric, condition)| {
            let (measured, samples) = measure(journal, metric, condition);
            let measured = measured.filter(|value| value.is_finite());
            ThresholdResult { metric, condition, measured, samples, holds: measured.is_some_and(|value| condition.holds(value)) }
        })
        .collect()
}

/// A figure and the number of samples that it is made of.
fn measure(journal: &Journal, metric: Metric, condition: Threshold) -> (Option<f64>, u64) {
    let Threshold { aggregate, limit, phase, .. } = condition;
    match metric {
        Metric::LatencyMs => match journal.latency.get(&phase).filter(|latency| latency.rows > 0) {
            Some(latency) => {
                let value = match aggregate {
                    Aggregate::P50 => latency.p50_ms,
                    Aggregate::P90 => latency.p90_ms,
                    Aggregate::P99 => latency.p99_ms,
                    Aggregate::Max | Aggregate::Value => latency.max_ms,
                };
                (Some(value as f64), latency.rows)
            }
            None => (None, 0),
        },
        Metric::ThroughputRatio => {
            let throughput = journal.throughput.get(&phase);
            (throughput.and_then(|one| one.ratio()), throughput.map_or(0, |one| one.sent))
        }
        Metric::FailoverMs => {
            let (gap_ms, samples) = aggregate.quantile().map_or((None, 0), |quantile| failover_ms(journal, quantile, limit));
            (gap_ms.map(|gap| gap as f64), samples as u64)
        }
        Metric::CheckpointSuccess => {
            let checkpoints = journal.checkpoints;
            ((checkpoints.begun > 0).then(|| checkpoints.succeeded as f64 / checkpoints.begun as f64), checkpoints.begun)
        }
        Metric::CatchUpS => (journal.catch_up_ms.map(|ms| ms as f64 / 1_000.0), u64::from(journal.catch_up_ms.is_some())),
        Metric::RssMib => {
            let peak = journal.cost.peak_rss_bytes;
            ((peak > 0).then_some(peak as f64 / f64::from(1 << 20)), journal.timeline.len() as u64)
        }
        Metric::EventsPerCpuS => {
            ((journal.cost.cpu_seconds > 0.0).then(|| journal.records.sent as f64 / journal.cost.cpu_seconds), journal.records.sent)
        }
    }
}

/// The quantile of the take-overs, and of how many. One that was cut off has lasted at least so long: it counts where that is longer than what
/// the finished ones say, or than the limit, if none has finished. A shorter one says nothing.
pub(crate) fn failover_ms(journal: &Journal, quantile: f64, limit_ms: f64) -> (Option<u64>, usize) {
    let of = |is_over: bool| journal.failovers.iter().filter(move |one| one.is_over == is_over).map(|one| one.gap_ms);
    let mut gaps: Vec<u64> = of(true).collect();
    gaps.sort_unstable();
    let least_ms = nearest_rank(&gaps, quantile).map_or(limit_ms, |gap| gap as f64);
    gaps.extend(of(false).filter(|gap| *gap as f64 > least_ms));
    gaps.sort_unstable();
    (nearest_rank(&gaps, quantile), gaps.len())
}

/// The quantile of sorted values, without interpolation: a value that was really measured.
pub(crate) fn nearest_rank(sorted: &[u64], quantile: f64) -> Option<u64> {
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

fn outcome(journal: &Journal) -> (Outcome, Vec<String>) {
    let violated: Vec<String> = journal
        .invariants
        .iter()
        .filter(|result| result.anomalies > 0)
        .map(|result| {
            let first = result
                .examples
                .first()
                .map(|finding| format!(": {} at {}, {}", finding.kind, finding.place, finding.detail))
                .unwrap_or_default();
            format!("{} violated {} times{first}", result.invariant.name(), result.anomalies)
        })
        .collect();
    let harness = harness_errors(journal);
    let unsound = unsound(journal);
    // Of a run that broke off everything is unproven: that it did says it all.
    let unproven = if journal.broken_off.is_some() || !journal.ended { Vec::new() } else { unproven(journal) };
    let missed = missed(journal);
    let outcome = match () {
        () if !violated.is_empty() => Outcome::Violated,
        () if !harness.is_empty() => Outcome::HarnessError,
        () if !unsound.is_empty() => Outcome::Inconclusive,
        () if !missed.is_empty() => Outcome::SloMissed,
        () if !unproven.is_empty() => Outcome::Inconclusive,
        () => Outcome::Pass,
    };
    (outcome, [violated, harness, unsound, missed, unproven].concat())
}

/// What the harness could not do.
pub(crate) fn harness_errors(journal: &Journal) -> Vec<String> {
    let mut reasons = Vec::new();
    match &journal.broken_off {
        Some(BrokenOff::Harness(why)) => reasons.push(format!("the harness failed: {why}")),
        None if !journal.ended => reasons.push("the run did not come to its end".into()),
        _ => {}
    }
    // Of all steps: what the harness does after the method has to be done, too.
    let mut failed: BTreeMap<&str, &str> = BTreeMap::new();
    for injection in &journal.injections {
        if let InjectionOutcome::Failed(why) = &injection.outcome {
            failed.entry(&injection.fault).or_insert(why);
        }
    }
    reasons.extend(failed.into_iter().map(|(fault, why)| format!("{fault} could not be injected: {why}")));
    reasons
}

/// Why no figure of this run means anything.
pub(crate) fn unsound(journal: &Journal) -> Vec<String> {
    let mut reasons = Vec::new();
    match &journal.broken_off {
        Some(BrokenOff::NotSteady(why)) => reasons.push(format!("the steady state was not met before the first fault: {why}")),
        Some(BrokenOff::Interrupted) => reasons.push("interrupted".into()),
        _ => {}
    }
    let limits = &journal.plan.host;
    if journal.host.share() > limits.share.0 {
        reasons.push(format!(
            "the host was too busy: a timer was more than {} late for {:.1} % of the time, at most {} are allowed",
            limits.late,
            journal.host.share() * 100.0,
            limits.share
        ));
    }
    let (sent, due) = (journal.records.sent, journal.records.due);
    let wanted = journal.plan.proof_of_fault.min_load.0;
    if journal.broken_off.is_none() && (sent as f64) < due as f64 * wanted {
        reasons.push(format!("the load was not reached: {sent} of {due} records were sent"));
    }
    // What was not sent at the peak is sent after it, and missing from no sum.
    let late_ms = limits.late.0.as_millis() as u64;
    for stretch in journal.records.stretches.iter().filter(|_| journal.broken_off.is_none()) {
        let (sent, due, rate) = (stretch.sent, stretch.due(late_ms), stretch.records_per_second);
        if (sent as f64) < due as f64 * wanted {
            let seconds = stretch.lasted_ms as f64 / 1_000.0;
            reasons.push(format!("the load was not reached: {sent} of {due} records were sent in {seconds:.1} s at {rate} per second"));
        }
    }
    reasons
}

/// What the run was to prove and did not.
fn unproven(journal: &Journal) -> Vec<String> {
    let proof = &journal.plan.proof_of_fault;
    let mut reasons: Vec<String> = Vec::new();
    reasons.extend(journal.faults.iter().filter_map(|fault| fault.lacks().map(|why| format!("{} {why}", fault.fault))));
    if !journal.faults.is_empty() && journal.faults.iter().all(|fault| fault.never_possible_here().is_some()) {
        reasons.push("none of the faults is possible here".into());
    }
    let types = journal.faults.iter().filter(|fault| fault.fired > 0).count();
    // The load is an open loop: what was sent says nothing about the job.
    let taken = journal.throughput.get(&Phase::Fault).map_or(0, |throughput| throughput.taken);
    let asked = [
        ("types of faults fired", types as u64, u64::from(proof.min_types)),
        ("processes were killed", journal.kills.all(), u64::from(proof.min_kills)),
        ("records were taken during faults", taken, proof.min_records_during_fault),
        ("records were verified", journal.records.verified, proof.min_records),
    ];
    reasons.extend(asked.iter().filter(|(_, is, least)| is < least).map(|(what, is, least)| format!("{is} {what}, {least} are asked for")));
    for result in &journal.invariants {
        if let Looked::Not(why) = &result.looked {
            reasons.push(format!("{} was not checked: {why}", result.invariant.name()));
        }
    }
    for threshold in journal.thresholds.iter().filter(|threshold| threshold.measured.is_none()) {
        reasons.push(format!("{} was not measured", threshold.text()));
    }
    reasons
}

fn missed(journal: &Journal) -> Vec<String> {
    let mut reasons: Vec<String> = journal
        .thresholds
        .iter()
        .filter(|threshold| !threshold.holds)
        .filter_map(|threshold| threshold.measured.map(|measured| format!("{} missed: {}", threshold.text(), rounded(measured))))
        .collect();
    let unmet = |mode: Mode| journal.steady_state.iter().filter(move |reading| reading.mode == mode && !reading.met);
    for reading in unmet(Mode::After) {
        reasons.push(format!("{} was not met after the method: {}", reading.name, shown(reading.value)));
    }
    let during = unmet(Mode::During).count();
    if let Some(first) = unmet(Mode::During).next() {
        reasons.push(format!("{} was not met {during} times while no fault was active, first: {}", first.name, shown(first.value)));
    }
    if journal.broken_off.is_none() && journal.ended && journal.catch_up_ms.is_none() && !journal.plan.method.is_empty() {
        reasons.push(format!("the job did not catch up within {} after everything was undone", journal.plan.host.catch_up_within));
    }
    reasons
}

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "nobody answered".into(), rounded)
}

/// Three digits after the point at most.
pub(crate) fn rounded(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
#[path = "verdict_test.rs"]
mod verdict_test;

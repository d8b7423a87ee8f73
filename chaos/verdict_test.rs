use super::*;
use crate::journal::{Entry, HostNoise, Injection, Reading, Records, RunStage, Span, spans};
use crate::test_kit::{self, entries, injection, journal, journal_of};

fn verdict_of(more: Vec<Entry>) -> Verdict {
    let mut all = entries();
    all.extend(more);
    journal_of(all).verdict
}

fn finding() -> Entry {
    Entry::Finding {
        finding: Finding { invariant: Invariant::NoLoss, kind: "lost-write".into(), place: "k7".into(), detail: "3 of 17".into() },
    }
}

fn busy_host() -> Entry {
    Entry::Host { noise: HostNoise { watched_ms: 100_000, late_ms: 20_000, latest_ms: 900 } }
}

fn slow() -> Entry {
    Entry::Latency { phase: Phase::Healthy, latency: crate::journal::Latency { rows: 10, p50_ms: 1, p90_ms: 1, p99_ms: 700, max_ms: 700 } }
}

#[test]
fn a_run_that_kept_everything_passes() {
    let journal = journal();
    assert_eq!((journal.verdict.outcome, journal.verdict.exit_code, &journal.verdict.reasons), (Outcome::Pass, 0, &Vec::new()));
    assert_eq!((journal.kills.workers, journal.kills.brokers), (2, 0));
    assert_eq!(
        journal.faults.iter().map(|fault| (fault.fault.as_str(), fault.fired)).collect::<Vec<_>>(),
        [("net.partition", 1), ("process.kill", 2)]
    );
}

#[test]
fn a_missed_threshold_is_exit_code_1_and_says_what_was_measured() {
    let verdict = verdict_of(vec![slow()]);
    assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::SloMissed, 1));
    assert_eq!(verdict.reasons, ["latency_ms p99 < 500 during healthy missed: 700"]);
}

#[test]
fn a_violated_invariant_is_exit_code_2_whatever_else_is_wrong() {
    for more in [
        vec![finding()],
        vec![finding(), busy_host(), slow()],
        vec![finding(), Entry::BrokenOff { why: BrokenOff::Harness("gone".into()) }],
    ] {
        assert_eq!(verdict_of(more).exit_code, 2);
    }
}

#[test]
fn a_busy_host_makes_a_missed_threshold_inconclusive() {
    let verdict = verdict_of(vec![slow(), busy_host()]);
    assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::Inconclusive, 3));
    assert!(verdict.reasons[0].contains("host was too busy") && verdict.reasons[0].contains("20.0 %"), "{:?}", verdict.reasons);
}

#[test]
fn a_load_that_was_not_reached_is_inconclusive() {
    let records = Records { due: 85_000, sent: 50_000, verified: 50_000, during_fault: 20_000, faulty: 0 };
    assert!(verdict_of(vec![Entry::Records { records }]).reasons[0].contains("50000 of 85000"));
}

#[test]
fn a_fault_that_never_fired_is_inconclusive_and_does_not_excuse_a_missed_threshold() {
    let silent: Vec<Entry> = entries()
        .into_iter()
        .map(|entry| match entry {
            Entry::Undone { id, at_ms, .. } => Entry::Undone { id, at_ms, hit: vec![], evidence: String::new(), count: 0 },
            entry => entry,
        })
        .collect();
    let verdict = journal_of(silent.clone()).verdict;
    assert_eq!((verdict.exit_code, verdict.reasons), (3, vec!["net.partition fired 0 times, 1 are asked for".to_string()]));
    let both = silent.into_iter().chain([slow()]).collect();
    assert_eq!(journal_of(both).verdict.exit_code, 1);
}

#[test]
fn what_the_host_can_not_inject_is_listed_and_never_counted_as_passed() {
    let impossible = |entry| match entry {
        Entry::Injecting { injection } if injection.fault == "net.partition" => {
            Entry::Injecting { injection: Injection { outcome: InjectionOutcome::NotPossible("no nft".into()), ..injection } }
        }
        entry => entry,
    };
    let journal = journal_of(entries().into_iter().map(impossible).collect());
    assert_eq!(journal.verdict.not_possible_here, ["net.partition: no nft"]);
    assert_eq!((journal.verdict.exit_code, journal.faults[0].fired), (0, 0), "the rest is proven");
    let none = |entry| match entry {
        Entry::Injecting { injection } => {
            Entry::Injecting { injection: Injection { outcome: InjectionOutcome::NotPossible("no".into()), ..injection } }
        }
        entry => entry,
    };
    assert_eq!(journal_of(entries().into_iter().map(none).collect()).verdict.exit_code, 3);
}

#[test]
fn what_the_harness_does_after_the_method_proves_nothing() {
    let rebuilt = Injection { step: 2, ..injection(9, "storage.delete_state", 91_000, 91_500) };
    let killed = ProcessEvent { at_ms: 91_200, process: "w1".into(), what: ProcessChange::Killed("signal: 9 (SIGKILL)".into()) };
    let mut all = entries();
    all.extend([Entry::Stage { at_ms: 91_000, stage: RunStage::Rebuilding }, Entry::Injecting { injection: rebuilt }]);
    all.push(Entry::Process { event: killed });
    let journal = journal_of(all);
    assert_eq!(journal.kills.workers, 2);
    assert!(journal.faults.iter().all(|fault| fault.fault != "storage.delete_state"), "{:?}", journal.faults);
}

#[test]
fn each_step_of_the_method_has_to_show_something() {
    let mut journal = journal();
    journal.plan.method.push(journal.plan.method[1].clone());
    judge(&mut journal);
    assert_eq!(journal.verdict.reasons, ["net.partition fired 1 times, 2 are asked for"]);
    journal.injections.push(Injection { outcome: InjectionOutcome::NotPossible("no nft".into()), ..injection(8, "net.partition", 82_000, 82_000) });
    judge(&mut journal);
    assert_eq!((journal.verdict.exit_code, journal.faults[0].impossible), (0, 1), "what the host can't do is not asked for");
}

#[test]
fn what_is_reported_again_at_the_undo_counts_once() {
    let hit = || vec!["w2".to_string()];
    let cut = Injection { to_ms: None, ..injection(11, "net.partition", 80_000, 0) };
    let injected = Entry::Injected { id: 11, outcome: InjectionOutcome::Injected, hit: hit(), evidence: "5".into(), count: 5, to_ms: None };
    let undone = Entry::Undone { id: 11, at_ms: 82_000, hit: hit(), evidence: "7".into(), count: 7 };
    let mut all = entries();
    all.extend([Entry::Injecting { injection: cut }, injected, undone]);
    assert_eq!(journal_of(all).faults[0].count, 12 + 7, "the one of the run before, and this one");
}

#[test]
fn an_invariant_that_nobody_looked_at_is_inconclusive() {
    let without = |entry: &Entry| !matches!(entry, Entry::Looked { invariant: Invariant::StateEqual, .. });
    let verdict = journal_of(entries().into_iter().filter(without).collect()).verdict;
    assert_eq!((verdict.exit_code, verdict.reasons.len()), (3, 1));
    assert!(verdict.reasons[0].starts_with("state_equal was not checked"));
}

#[test]
fn a_state_that_was_not_steady_before_is_inconclusive_and_not_steady_after_is_a_missed_slo() {
    let before = verdict_of(vec![Entry::BrokenOff { why: BrokenOff::NotSteady("lag: 9000".into()) }]);
    assert_eq!(before.exit_code, 3);
    let reading = Reading { at_ms: 94_000, mode: Mode::After, name: "lag".into(), value: None, met: false };
    let after = verdict_of(vec![Entry::Reading { reading }]);
    assert_eq!((after.exit_code, after.reasons[0].as_str()), (1, "lag was not met after the method: nobody answered"));
}

#[test]
fn a_fault_that_the_harness_could_not_inject_is_a_harness_error() {
    let failed =
        Injection { outcome: InjectionOutcome::Failed("no such file".into()), ..injection(7, "storage.disk_full", 50_000, 50_000) };
    assert_eq!(verdict_of(vec![Entry::Injecting { injection: failed }]).exit_code, 4);
}

#[test]
fn a_run_that_died_is_judged_from_its_lines_as_a_harness_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut recorder = test_kit::begin(folder.path());
    entries().into_iter().for_each(|entry| recorder.add(entry));
    drop(recorder);
    let path = folder.path().join("journal.jsonl");
    let mut text = std::fs::read_to_string(&path).expect("lines");
    text.push_str("{\"kind\":\"sam");
    std::fs::write(&path, text).expect("written");
    let journal = Journal::read(&path).expect("a journal");
    assert_eq!((journal.verdict.exit_code, journal.timeline.len()), (4, 85));
    assert_eq!(journal.verdict.reasons, ["the run did not come to its end"]);
}

#[test]
fn a_journal_that_is_read_again_gives_the_same_verdict() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut recorder = test_kit::begin(folder.path());
    entries().into_iter().for_each(|entry| recorder.add(entry));
    let journal = recorder.end(99_000).expect("written");
    let lines = Journal::read(&folder.path().join("journal.jsonl")).expect("lines");
    let whole = Journal::read(&folder.path().join("journal.json")).expect("whole");
    assert_eq!(journal.text(), lines.text());
    assert_eq!(journal.text(), whole.text());
}

#[test]
fn phases_do_not_overlap_and_a_fault_has_its_aftermath() {
    let journal = journal();
    let of = |phase| spans(&journal, phase).iter().map(|span: &Span| (span.from_ms, span.to_ms)).collect::<Vec<_>>();
    assert_eq!(of(Phase::Fault), [(20_000, 30_100), (40_000, 50_100), (60_000, 80_000)]);
    assert_eq!(of(Phase::Healthy), [(15_000, 20_000), (30_100, 40_000), (50_100, 60_000), (80_000, 90_000)]);
    assert_eq!(of(Phase::All), [(15_000, 90_000)]);
    assert_eq!(of(Phase::After), [(92_000, 95_000)]);
    assert_eq!((journal.records.during_fault, journal.throughput[&Phase::All].sent), (42_000, 75_000));
    assert_eq!(of(Phase::Peak), []);
    assert!(journal.stages.iter().all(|span| span.stage != RunStage::Done && span.to_ms.is_some()));
}

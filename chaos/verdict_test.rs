use super::*;
use crate::journal::{Entry, Failover, HostNoise, Injection, Reading, Records, RunStage, Span, spans};
use crate::test_kit::{self, entries, injection, journal, journal_of};
use streamshield_workload::Stretch;

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
    let records = Records { due: 85_000, sent: 50_000, verified: 50_000, during_fault: 20_000, faulty: 0, stretches: Vec::new() };
    assert!(verdict_of(vec![Entry::Records { records }]).reasons[0].contains("50000 of 85000"));
}

#[test]
fn a_peak_that_was_not_reached_is_inconclusive_though_nothing_was_left_in_the_end() {
    let verdict = |at_peak: u64| {
        let usual = Stretch { records_per_second: 1_000, lasted_ms: 25_000, sent: 25_000 };
        let peak = Stretch { records_per_second: 5_000, lasted_ms: 10_000, sent: at_peak };
        let pause = Stretch { records_per_second: 0, lasted_ms: 9_000, sent: 0 };
        let stretches = vec![usual, peak, pause, Stretch { lasted_ms: 50, sent: 0, ..usual }];
        let records = Records { due: 85_000, sent: 85_000, verified: 85_000, during_fault: 20_000, faulty: 0, stretches };
        verdict_of(vec![Entry::Records { records }])
    };
    let missed = verdict(20_000);
    assert_eq!((missed.outcome, missed.exit_code), (Outcome::Inconclusive, 3));
    assert_eq!(missed.reasons, ["the load was not reached: 20000 of 49500 records were sent in 10.0 s at 5000 per second"]);
    assert_eq!((verdict(47_024).exit_code, verdict(47_025).exit_code), (3, 0), "95 % of what is due when a timer may be 100 ms late");
}

#[test]
fn an_older_journal_does_not_say_what_was_sent_at_each_rate() {
    let text = r#"{"due": 9, "sent": 9, "verified": 9, "during_fault": 1, "faulty": 0}"#;
    let records: Records = serde_json::from_str(text).expect("as it was written");
    assert!(records.stretches.is_empty());
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
fn what_the_plan_asks_for_by_name_must_have_fired_though_the_host_can_not_do_it() {
    let mut journal = journal();
    journal.injections[1].outcome = InjectionOutcome::NotPossible("no cgroup".into());
    judge(&mut journal);
    assert_eq!((journal.verdict.exit_code, journal.faults[1].impossible), (3, 1));
    assert_eq!(journal.verdict.reasons, ["process.kill fired 1 times, 2 are asked for"]);
    journal.plan.proof_of_fault.min_fired.clear();
    judge(&mut journal);
    assert_eq!(journal.verdict.exit_code, 0, "its step has shown something");
}

#[test]
fn types_of_faults_count_only_where_they_have_fired() {
    let mut journal = journal();
    journal.plan.proof_of_fault.min_types = 2;
    judge(&mut journal);
    assert_eq!(journal.verdict.exit_code, 0);
    journal.injections[2].outcome = InjectionOutcome::NotPossible("no proxies".into());
    judge(&mut journal);
    assert_eq!((journal.verdict.exit_code, journal.faults.len()), (3, 2));
    assert_eq!(journal.verdict.reasons, ["1 types of faults fired, 2 are asked for"]);
}

#[test]
fn records_that_nobody_has_taken_during_faults_prove_nothing() {
    let mut journal = journal();
    assert_eq!((journal.faults[1].records_during, journal.faults[1].taken_during), (22_000, 38_600));
    journal.timeline.iter_mut().for_each(|sample| sample.rows = 0);
    judge(&mut journal);
    assert_eq!((journal.records.during_fault, journal.faults[1].taken_during), (42_000, 0), "the load goes on by itself");
    assert_eq!(journal.verdict.reasons, ["0 records were taken during faults, 1000 are asked for"]);
    assert_eq!(journal.verdict.exit_code, 3);
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
fn a_death_that_no_fault_explains_is_no_kill() {
    let mut journal = journal();
    journal.plan.proof_of_fault.min_kills = 3;
    // The kill of that moment has hit another worker.
    let what = ProcessChange::Killed("signal: 6 (SIGABRT)".into());
    journal.processes.push(ProcessEvent { at_ms: 20_060, process: "w2".into(), what });
    judge(&mut journal);
    assert_eq!(journal.verdict.reasons, ["2 processes were killed, 3 are asked for"]);
}

#[test]
fn each_step_of_the_method_has_to_show_something() {
    let mut journal = journal();
    journal.plan.method.push(journal.plan.method[1].clone());
    judge(&mut journal);
    assert_eq!(journal.verdict.reasons, ["net.partition fired 1 times, 2 are asked for"]);
    let outcome = InjectionOutcome::NotPossible("no nft".into());
    journal.injections.push(Injection { step: 2, outcome, ..injection(8, "net.partition", 82_000, 82_000) });
    judge(&mut journal);
    assert_eq!((journal.verdict.exit_code, journal.faults[0].impossible), (0, 1), "what the host can't do is not asked for");
}

#[test]
fn a_step_that_is_repeated_does_not_stand_for_another() {
    let mut journal = journal();
    journal.plan.proof_of_fault.min_fired.clear();
    journal.plan.method.push(journal.plan.method[0].clone());
    judge(&mut journal);
    assert_eq!(journal.verdict.exit_code, 3);
    assert_eq!(journal.verdict.reasons, ["process.kill fired 2 times, but never in 1 of its 2 steps"]);
    journal.injections.push(Injection { step: 2, ..injection(8, "process.kill", 82_000, 82_100) });
    judge(&mut journal);
    assert_eq!((journal.verdict.exit_code, journal.faults[1].silent_steps), (0, 0));
    journal.injections.pop();
    journal.plan.proof_of_fault.min_fired.insert("process.kill".into(), 2);
    judge(&mut journal);
    assert_eq!(journal.verdict.exit_code, 0, "the plan asks for two, whichever they are");
}

#[test]
fn a_fault_that_was_only_drawn_must_have_fired_once() {
    let mut journal = journal();
    let draw = r#"{"random": {"of": [{"fault": "net.loss"}]}, "for": "40 s"}"#;
    journal.plan.method.push(serde_json::from_str(draw).expect("a step"));
    judge(&mut journal);
    assert_eq!(journal.verdict.exit_code, 0, "what was never drawn is chance");
    for id in [8, 9] {
        journal.injections.push(Injection { step: 2, count: 0, ..injection(id, "net.loss", 82_000, 82_500) });
    }
    judge(&mut journal);
    assert_eq!(journal.verdict.exit_code, 3);
    assert_eq!(journal.verdict.reasons, ["net.loss fired 0 times, though it was injected 2 times"]);
    journal.injections.push(Injection { step: 2, ..injection(10, "net.loss", 83_000, 83_500) });
    judge(&mut journal);
    assert_eq!(journal.verdict.exit_code, 0, "one of several is enough");
}

#[test]
fn a_take_over_that_was_cut_off_counts_only_where_it_is_too_long() {
    let of = |finished: bool, cut_ms: u64| {
        let kept = entries().into_iter().filter(|entry| finished || !matches!(entry, Entry::Failover { .. }));
        let cut = Failover { at_ms: 60_000, worker: "w1".into(), gap_ms: cut_ms, is_over: false };
        let journal = journal_of(kept.chain([Entry::Failover { failover: cut }]).collect());
        let result = journal.thresholds.iter().find(|one| one.metric == Metric::FailoverMs).expect("the plan asks for it");
        (result.measured, result.samples, journal.verdict.exit_code)
    };
    assert_eq!(of(true, 500), (Some(1_100.0), 2, 0), "it says nothing");
    assert_eq!(of(true, 60_000), (Some(60_000.0), 3, 1));
    assert_eq!(of(false, 500), (None, 0, 3), "nobody knows how long it took");
    assert_eq!(of(false, 2_500), (Some(2_500.0), 1, 1), "it was too long already");
}

#[test]
fn a_take_over_of_an_older_journal_was_over() {
    let failover: Failover = serde_json::from_str(r#"{"at_ms": 20000, "worker": "w1", "gap_ms": 900}"#).expect("as it was written");
    assert!(failover.is_over);
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
fn a_rebuild_that_failed_is_a_harness_error_though_it_is_no_step_of_the_method() {
    let outcome = InjectionOutcome::Failed("permission denied".into());
    let rebuilt = Injection { step: 2, outcome, ..injection(9, "storage.delete_state", 91_000, 91_500) };
    let verdict = verdict_of(vec![Entry::Injecting { injection: rebuilt }]);
    assert_eq!(verdict.exit_code, 4);
    assert_eq!(verdict.reasons, ["storage.delete_state could not be injected: permission denied"]);
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

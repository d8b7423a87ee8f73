//! Which parts of a run were healthy, under fault, at the peak: the intervals that figures are taken from.
//!
//! ```text
//! method   ├────────────────────────────────────────────┤
//! faults        ▓▓▓▓▓▓▓            ▓▓▓
//! fault         ├───────────┤      ├──────┤               until the settling time after the last one is over: its backlog is the fault's, too
//! healthy  ├────┤           ├──────┤      ├─────────────┤
//! ```

use super::{Injection, InjectionOutcome, Journal, RunStage};
use crate::plan::Phase;

/// After a fault is over: taking over, and working off what piled up.
const SETTLE_MS: u64 = 10_000;
/// With a tier whose take-overs take that long.
const SETTLE_TIER_3_MS: u64 = 30_000;
/// The death of a process is seen so long after what caused it, at most.
const DEATH_DELAY_MS: u64 = 2_000;
/// Faults that may end workers, by the beginning of their names: a store or a link that is away must not.
const ENDS_WORKERS: [&str; 3] = ["process.", "storage.", "time."];
const ENDS_BROKERS: [&str; 1] = ["broker."];
const ENDS_STORES: [&str; 2] = ["store.", "hdfs."];
/// How the system says that a process has ended well, was killed, has aborted.
const BY_ITSELF: &str = "exit status: 0";
const BY_KILL: &str = "signal: 9";
const BY_ABORT: &str = "signal: 6";

/// A part of a run, milliseconds since its begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub from_ms: u64,
    pub to_ms: u64,
}

impl Span {
    pub fn holds(&self, at_ms: u64) -> bool {
        (self.from_ms..self.to_ms).contains(&at_ms)
    }
}

/// The parts of a run that belong to a phase, in order, without overlap.
pub fn spans(journal: &Journal, phase: Phase) -> Vec<Span> {
    let Some(method) = stage(journal, RunStage::Method) else { return Vec::new() };
    let settle_ms = settle_ms(journal);
    let disturbed = |load: bool| {
        let of_kind = journal.injections.iter().filter(move |one| is_load(one) == load && has_acted(one));
        let lasting =
            of_kind.map(|one| Span { from_ms: one.from_ms, to_ms: one.to_ms.unwrap_or(method.to_ms) + if load { 0 } else { settle_ms } });
        merged(lasting.collect(), method)
    };
    match phase {
        Phase::All => vec![method],
        Phase::Fault => disturbed(false),
        Phase::Peak => disturbed(true),
        Phase::Healthy => {
            let mut all = disturbed(false);
            // A peak leaves its own backlog, which is no healthy state either.
            all.extend(disturbed(true).into_iter().map(|span| Span { to_ms: span.to_ms + settle_ms, ..span }));
            gaps(&merged(all, method), method)
        }
        Phase::After => {
            let from_ms = stage(journal, RunStage::CatchingUp).map(|span| span.from_ms);
            let to_ms = stage(journal, RunStage::CatchingUp).map(|span| span.to_ms);
            match (from_ms, to_ms) {
                (Some(from_ms), Some(to_ms)) => vec![Span { from_ms: from_ms + journal.catch_up_ms.unwrap_or(0), to_ms }]
                    .into_iter()
                    .filter(|span| span.from_ms < span.to_ms)
                    .collect(),
                _ => Vec::new(),
            }
        }
    }
}

/// Another rate of the load is no fault, though it is drawn and undone like one.
pub(crate) fn is_load(injection: &Injection) -> bool {
    injection.family == "load"
}

/// How long the aftermath of a fault is, by the tier: a user's job has written its own over the plan's.
pub(crate) fn settle_ms(journal: &Journal) -> u64 {
    if journal.plan.topology.tier == 3 { SETTLE_TIER_3_MS } else { SETTLE_MS }
}

/// One that came to nothing half-way has hit somebody all the same.
pub(crate) fn has_acted(injection: &Injection) -> bool {
    matches!(injection.outcome, InjectionOutcome::Begun | InjectionOutcome::Injected) || !injection.hit.is_empty()
}

/// Faults that are active at a moment, or were less than so many milliseconds before.
pub fn active(journal: &Journal, at_ms: u64, after_ms: u64) -> impl Iterator<Item = &Injection> {
    journal.injections.iter().filter(move |one| has_acted(one) && !is_load(one) && is_at(one, at_ms, after_ms))
}

fn is_at(injection: &Injection, at_ms: u64, after_ms: u64) -> bool {
    injection.from_ms <= at_ms && injection.to_ms.is_none_or(|to_ms| at_ms <= to_ms + after_ms)
}

/// Whether a fault explains that a process has ended then and so, as far as it is known whom faults have hit.
pub(crate) fn is_explained(journal: &Journal, at_ms: u64, process: &str, status: &str) -> bool {
    active(journal, at_ms, DEATH_DELAY_MS).any(|one| may_end(one, process) && may_hit(one, process) && fits(journal, one, at_ms, status))
}

/// The same at the end of a run, when more is not to be known: a fault that came to nothing may have ended somebody on its way, and so may a try
/// before the one that counts.
pub(crate) fn is_excused(journal: &Journal, at_ms: u64, process: &str, status: &str) -> bool {
    let by_a_try = |one: &Injection| one.tried_until_ms.is_some_and(|until_ms| at_ms <= until_ms + DEATH_DELAY_MS);
    let at_work = |one: &Injection| is_at(one, at_ms, DEATH_DELAY_MS) && may_end(one, process) && fits(journal, one, at_ms, status);
    journal.injections.iter().any(|one| at_work(one) && (may_hit(one, process) || by_a_try(one)))
}

fn may_end(injection: &Injection, process: &str) -> bool {
    let by: &[&str] = match process {
        "store" => &ENDS_STORES,
        _ if process.starts_with("broker ") => &ENDS_BROKERS,
        _ => &ENDS_WORKERS,
    };
    by.iter().any(|beginning| injection.fault.starts_with(beginning))
}

/// A kill explains no end but that by the kill: after it the next life may have ended by itself. Who is asked to end does so, or is killed when its time is
/// over; but while something else is broken it may have failed at that. Other faults leave a worker no room to live in, and it may end in any way.
fn fits(journal: &Journal, injection: &Injection, at_ms: u64, status: &str) -> bool {
    let is_one_of = |ways: &[&str]| ways.iter().any(|way| status.starts_with(way));
    // Of what the harness does after the method: everything has been undone by then.
    let is_alone = || {
        let after_method = injection.step >= journal.plan.method.len();
        after_method || active(journal, at_ms, settle_ms(journal)).all(|other| other.id == injection.id)
    };
    match injection.fault.as_str() {
        "process.kill" | "process.kill_all" | "process.kill_taker" | "storage.delete_state" => is_one_of(&[BY_KILL]),
        "process.stop" => is_one_of(&[BY_ITSELF, BY_KILL]) || !is_alone(),
        "process.crash_at" => is_one_of(&[BY_ITSELF, BY_KILL, BY_ABORT]) || !is_alone(),
        _ => true,
    }
}

/// Whom a fault hits is known when it was injected, and not all of them hit a process by its name (a crash loop hits a region).
fn may_hit(injection: &Injection, process: &str) -> bool {
    let names_process = |hit: &String| hit.starts_with("broker ") || hit.strip_prefix('w').is_some_and(|id| id.parse::<u32>().is_ok());
    !injection.hit.iter().any(names_process) || injection.hit.iter().any(|hit| hit == process)
}

/// From an injection to the end of what it leaves behind.
pub fn aftermath(journal: &Journal, injection: &Injection) -> Span {
    Span { from_ms: injection.from_ms, to_ms: injection.to_ms.unwrap_or(journal.duration_ms) + settle_ms(journal) }
}

fn stage(journal: &Journal, stage: RunStage) -> Option<Span> {
    let found = journal.stages.iter().find(|span| span.stage == stage)?;
    Some(Span { from_ms: found.from_ms, to_ms: found.to_ms.unwrap_or(journal.duration_ms.max(found.from_ms)) })
}

/// Sorted, joined where they touch, and cut to what is inside.
fn merged(mut spans: Vec<Span>, inside: Span) -> Vec<Span> {
    spans.sort_by_key(|span| span.from_ms);
    let mut result: Vec<Span> = Vec::new();
    for span in spans {
        let span = Span { from_ms: span.from_ms.max(inside.from_ms), to_ms: span.to_ms.min(inside.to_ms) };
        match result.last_mut() {
            Some(last) if span.from_ms <= last.to_ms => last.to_ms = last.to_ms.max(span.to_ms),
            _ if span.from_ms < span.to_ms => result.push(span),
            _ => {}
        }
    }
    result
}

fn gaps(spans: &[Span], inside: Span) -> Vec<Span> {
    let mut at_ms = inside.from_ms;
    let mut result = Vec::new();
    for span in spans {
        result.push(Span { from_ms: at_ms, to_ms: span.from_ms });
        at_ms = span.to_ms;
    }
    result.push(Span { from_ms: at_ms, to_ms: inside.to_ms });
    result.retain(|span| span.from_ms < span.to_ms);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Entry;
    use crate::plan::{Metric, Threshold};
    use crate::test_kit::{entries, injection, journal, journal_of};
    use std::collections::BTreeMap;

    #[test]
    fn a_try_that_came_to_nothing_explains_whom_it_has_ended() {
        let mut journal = journal();
        let outcome = InjectionOutcome::NoTarget("the state of w1 has no sst file".into());
        journal.injections.push(Injection { outcome, ..injection(9, "storage.bit_flip", 89_000, 89_400) });
        let explained = |journal: &Journal, worker: &str| is_explained(journal, 89_300, worker, BY_ITSELF);
        assert!(explained(&journal, "w1") && !explained(&journal, "w2"));
        journal.injections.iter_mut().for_each(|one| one.hit.clear());
        assert!(!explained(&journal, "w1"), "it has touched nobody");
        assert!(is_excused(&journal, 89_300, "w1", BY_ITSELF), "or does not say whom");
        assert!(!is_excused(&journal, 92_000, "w1", BY_ITSELF), "it was over by then");
    }

    #[test]
    fn a_fault_explains_the_deaths_of_those_it_hits() {
        let of = |one: Injection, process: &str| {
            let journal = Journal { injections: vec![one], ..journal() };
            assert_eq!(is_explained(&journal, 1, process, BY_KILL), is_excused(&journal, 1, process, BY_KILL));
            is_explained(&journal, 1, process, BY_KILL)
        };
        assert!(of(injection(1, "process.pause", 0, 1), "w1"));
        assert!(!of(injection(1, "process.pause", 0, 1), "w2"), "it ended by itself");
        assert!(!of(injection(1, "process.pause", 0, 1), "broker 1"));
        assert!(!of(injection(1, "net.partition", 0, 1), "w1"), "a link that is away ends nobody");
        // While it is under way, and where it hits a region, it is not known whom.
        for hit in [vec![], vec!["s0/1".to_string()]] {
            assert!(of(Injection { hit, ..injection(2, "process.crash_loop", 0, 1) }, "w2"));
        }
    }

    #[test]
    fn whom_earlier_tries_of_a_fault_have_ended_is_not_known() {
        let crash = Injection { tried_until_ms: Some(50_000), ..injection(9, "process.crash_at", 45_000, 80_000) };
        let journal = Journal { injections: vec![crash], ..journal() };
        assert!(!is_explained(&journal, 50_100, "w2", BY_ABORT) && is_excused(&journal, 50_100, "w2", BY_ABORT));
        assert!(!is_excused(&journal, 60_000, "w2", BY_ABORT), "the last try has hit w1 alone");
    }

    #[test]
    fn a_kill_does_not_excuse_how_the_next_life_ends() {
        let own_exit = "exit status: 70, it said: the local store is of an epoch that nobody holds";
        let of = |fault: &str, step: usize, status: &str, others: &[Injection]| {
            let one = Injection { step, ..injection(1, fault, 20_000, 20_000) };
            let journal = Journal { injections: [std::slice::from_ref(&one), others].concat(), ..journal() };
            let explained = is_explained(&journal, 21_500, "w1", status);
            assert_eq!(explained, is_excused(&journal, 21_500, "w1", status));
            explained
        };
        for kill in ["process.kill", "process.kill_all", "process.kill_taker", "storage.delete_state"] {
            assert!(of(kill, 0, "signal: 9 (SIGKILL)", &[]) && !of(kill, 0, own_exit, &[]) && !of(kill, 0, BY_ITSELF, &[]), "{kill}");
        }
        for asks in ["process.stop", "process.crash_at"] {
            assert!(of(asks, 0, BY_ITSELF, &[]) && of(asks, 0, "signal: 9 (SIGKILL)", &[]) && !of(asks, 0, own_exit, &[]), "{asks}");
        }
        assert!(of("process.crash_at", 0, "signal: 6 (SIGABRT) (core dumped)", &[]) && !of("process.stop", 0, "signal: 6 (SIGABRT)", &[]));
        let cut_off = [injection(2, "net.partition", 15_000, 16_000)];
        assert!(of("process.stop", 0, own_exit, &cut_off), "it may have failed to end well");
        assert!(!of("process.stop", 2, own_exit, &cut_off), "after the method nothing is broken");
        assert!(!of("process.kill", 0, own_exit, &cut_off));
        assert!(of("storage.bit_flip", 0, own_exit, &[]), "its disk is broken");
    }

    #[test]
    fn what_came_to_nothing_after_it_had_hit_somebody_is_no_healthy_time() {
        let mut journal = journal();
        let none = |hit: &[&str]| Injection {
            outcome: InjectionOutcome::NoTarget("nobody has taken s0/1 over".into()),
            hit: hit.iter().map(|name| name.to_string()).collect(),
            ..injection(9, "process.kill_taker", 82_000, 85_000)
        };
        journal.injections.push(none(&[]));
        assert_eq!(spans(&journal, Phase::Healthy).last(), Some(&Span { from_ms: 80_000, to_ms: 90_000 }));
        journal.injections.push(none(&["w1"]));
        assert_eq!(spans(&journal, Phase::Healthy).last(), Some(&Span { from_ms: 80_000, to_ms: 82_000 }));
    }

    #[test]
    fn a_users_job_says_by_its_tier_how_long_an_aftermath_is() {
        let own: Vec<Threshold> = vec!["p99 <= 2000 during healthy".parse().expect("a condition")];
        let promise = Entry::Promise { tier: Some(3), thresholds: BTreeMap::from([(Metric::LatencyMs, own.clone())]) };
        let line = serde_json::to_string(&promise).expect("JSON");
        let read: Entry = serde_json::from_str(&line).expect("an entry");
        let judged = journal_of([read].into_iter().chain(entries()).collect());
        assert_eq!((settle_ms(&journal()), settle_ms(&judged)), (SETTLE_MS, SETTLE_TIER_3_MS));
        assert_eq!(judged.plan.thresholds[&Metric::LatencyMs], own);
        assert!(judged.plan.thresholds.contains_key(&Metric::FailoverMs), "of which it says nothing, the plan's stays");
    }
}

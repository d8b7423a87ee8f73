//! One injection: written down, done, waited for, undone, and what it showed.

use super::shared::Shared;
use crate::journal::{Entry, Injection, InjectionOutcome};
use crate::plan::Candidate;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use streamshield_faults::{FaultError, FaultSpec, Fired, Parameters, Role, StageFault, Target, Value, build, find};

/// A target that is not there now may be in a moment: nobody follows a region right after a take-over.
const TARGET_PATIENCE: Duration = Duration::from_secs(10);
const TARGET_RETRY: Duration = Duration::from_millis(500);
/// A fault that was not undone would spoil the rest of the run.
const UNDO_TRIES: u32 = 3;

/// What is to be injected now.
pub(super) struct Due<'a> {
    pub step: usize,
    pub candidate: &'a Candidate,
    pub random: ChaCha8Rng,
    /// Until it is undone, if it lasts.
    pub lasts: Duration,
}

/// From its begin to its undo; what comes of it is in the journal.
pub(super) fn inject(shared: &Shared<'_>, due: Due<'_>) {
    let Some(spec) = find(&due.candidate.fault) else { return };
    let id = begin(shared, spec, &due);
    let mut random = due.random;
    let fault = build(spec.name, &parameters(due.candidate), due.candidate.target.as_ref(), &mut random);
    let mut fault = match fault {
        Ok(fault) => fault,
        Err(error) => return end(shared, id, InjectionOutcome::Failed(error.to_string()), Fired::default()),
    };
    let deadline = Instant::now() + TARGET_PATIENCE;
    let fired = loop {
        match fault.inject(shared.stage) {
            Err(FaultError::NoTarget(_)) if Instant::now() < deadline && shared.sleep(TARGET_RETRY) => {}
            result => break result,
        }
    };
    match fired {
        Ok(fired) if spec.lasts => {
            shared.say(&format!("{}: {}", spec.name, shown(&fired)));
            injected(shared, id, fired, None);
            shared.sleep(due.lasts);
            undo(shared, spec, id, &mut fault);
        }
        Ok(fired) => {
            shared.say(&format!("{}: {}", spec.name, shown(&fired)));
            injected(shared, id, fired, Some(shared.now_ms()));
        }
        Err(error) => {
            // Half of it may have been done.
            let left = fault.undo(shared.stage).unwrap_or_default();
            let outcome = match error {
                FaultError::NotPossibleHere(why) => InjectionOutcome::NotPossible(why),
                FaultError::NoTarget(why) => InjectionOutcome::NoTarget(why),
                FaultError::Harness(why) => InjectionOutcome::Failed(format!("{why:#}")),
            };
            shared.say(&format!("{}: {}", spec.name, outcome_text(&outcome)));
            end(shared, id, outcome, left);
        }
    }
}

fn begin(shared: &Shared<'_>, spec: &FaultSpec, due: &Due<'_>) -> u32 {
    let id = shared.next_id();
    let injection = Injection {
        id,
        step: due.step,
        fault: spec.name.into(),
        family: spec.family.to_string(),
        target: due.candidate.target.as_ref().map_or("usual".into(), Target::to_string),
        parameters: due.candidate.with.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect(),
        from_ms: shared.now_ms(),
        to_ms: None,
        outcome: InjectionOutcome::Begun,
        hit: Vec::new(),
        evidence: String::new(),
        count: 0,
    };
    shared.add(Entry::Injecting { injection });
    id
}

fn injected(shared: &Shared<'_>, id: u32, fired: Fired, to_ms: Option<u64>) {
    shared.add(Entry::Injected {
        id,
        outcome: InjectionOutcome::Injected,
        hit: fired.hit,
        evidence: fired.evidence,
        count: fired.count,
        to_ms,
    });
}

fn end(shared: &Shared<'_>, id: u32, outcome: InjectionOutcome, fired: Fired) {
    let to_ms = Some(shared.now_ms());
    shared.add(Entry::Injected { id, outcome, hit: fired.hit, evidence: fired.evidence, count: fired.count, to_ms });
}

fn undo(shared: &Shared<'_>, spec: &FaultSpec, id: u32, fault: &mut StageFault) {
    for attempt in 1..=UNDO_TRIES {
        match fault.undo(shared.stage) {
            Ok(fired) => {
                shared.say(&format!("{} undone: {}", spec.name, shown(&fired)));
                return shared.add(Entry::Undone {
                    id,
                    at_ms: shared.now_ms(),
                    hit: fired.hit,
                    evidence: fired.evidence,
                    count: fired.count,
                });
            }
            Err(error) if attempt == UNDO_TRIES => {
                let outcome = InjectionOutcome::Failed(format!("it could not be undone: {error}"));
                shared.say(&format!("{}: {}", spec.name, outcome_text(&outcome)));
                return end(shared, id, outcome, Fired::default());
            }
            Err(_) => std::thread::sleep(TARGET_RETRY),
        }
    }
}

/// The last act of a run: every worker comes back without its state.
pub(super) fn rebuild_all_state(shared: &Shared<'_>) {
    let candidate = Candidate {
        fault: "storage.delete_state".into(),
        target: Some(Target { role: Role::AllWorkers, name: None }),
        with: BTreeMap::new(),
    };
    let step = shared.plan.method.len();
    inject(shared, Due { step, candidate: &candidate, random: super::conduct::random(shared.seed, step, 0, 0), lasts: Duration::ZERO });
}

fn parameters(candidate: &Candidate) -> Parameters {
    candidate.with.iter().map(|(name, value)| (name.clone(), Value::Text(value.0.clone()))).collect()
}

fn shown(fired: &Fired) -> String {
    let text =
        format!("{}{}{}", fired.hit.join(", "), if fired.hit.is_empty() || fired.evidence.is_empty() { "" } else { ": " }, fired.evidence);
    if text.is_empty() { format!("fired {} times", fired.count) } else { text }
}

fn outcome_text(outcome: &InjectionOutcome) -> String {
    match outcome {
        InjectionOutcome::NotPossible(why) => format!("not possible here: {why}"),
        InjectionOutcome::NoTarget(why) => format!("no target: {why}"),
        InjectionOutcome::Failed(why) => format!("failed: {why}"),
        InjectionOutcome::Begun | InjectionOutcome::Injected => "injected".into(),
    }
}

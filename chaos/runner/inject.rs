//! One injection: waited for where it is due at a fail point, written down, done, waited for, undone, and what it showed.

use super::shared::Shared;
use crate::journal::{Entry, Injection, InjectionOutcome};
use crate::plan::{Candidate, FailPoint};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use streamshield_faults::{ArmedPoint, FaultError, FaultSpec, Fired, Parameters, Role, StageFault, Target, Value, build, find};

/// A target that is not there now may be in a moment: nobody follows a region right after a take-over.
const TARGET_PATIENCE: Duration = Duration::from_secs(10);
const TARGET_RETRY: Duration = Duration::from_millis(500);
/// A worker waits two seconds at a point, and the fault has to be injected in that time.
const POINT_LOOK: Duration = Duration::from_millis(5);
/// A fault that was not undone would spoil the rest of the run.
const UNDO_TRIES: u32 = 3;

/// What is to be injected now.
pub(super) struct Due<'a> {
    pub step: usize,
    pub candidate: &'a Candidate,
    /// Only when a worker has come there.
    pub when: Option<&'a FailPoint>,
    pub random: ChaCha8Rng,
    /// Until it is undone, if it lasts.
    pub lasts: Duration,
}

/// From its begin to its undo; what comes of it is in the journal.
pub(super) fn inject(shared: &Shared<'_>, due: Due<'_>) {
    let Some(spec) = find(&due.candidate.fault) else { return };
    let mut random = due.random.clone();
    let reached = due.when.map(|when| reach(shared, when, &mut random)).transpose();
    let at_point = reached.as_ref().ok().and_then(Option::as_ref).map(|(_, worker)| worker.as_str());
    let target = aim(spec, due.candidate.target.as_ref(), at_point);
    let id = begin(shared, spec, &due, target.as_ref());
    let reached = match reached {
        Ok(reached) => reached,
        Err(outcome) => {
            shared.say(&format!("{}: {}", spec.name, outcome_text(&outcome)));
            return end(shared, id, outcome, Fired::default());
        }
    };
    let fault = build(spec.name, &parameters(due.candidate), target.as_ref(), &mut random);
    let mut fault = match fault {
        Ok(fault) => fault,
        Err(error) => return end(shared, id, InjectionOutcome::Failed(error.to_string()), Fired::default()),
    };
    let deadline = Instant::now() + TARGET_PATIENCE;
    let fired = loop {
        match fault.inject(shared.stage) {
            Err(FaultError::NoTarget(_)) if Instant::now() < deadline && shared.sleep(TARGET_RETRY) => {
                shared.add(Entry::TriedInVain { id, at_ms: shared.now_ms() });
            }
            result => break result,
        }
    };
    // Until here the worker was held at the point, if it has not gone on by itself.
    let missed = reached.as_ref().is_some_and(|(point, _)| !point.is_held());
    let gone = if missed { ", and had gone on before this was done" } else { "" };
    let at = reached.zip(due.when).map(|((_point, worker), when)| format!("{worker} was at {}{gone}: ", when.fail_point));
    let at = at.unwrap_or_default();
    let fired = fired.map(|fired| counted(Fired { evidence: format!("{at}{}", fired.evidence), ..fired }, missed));
    match fired {
        Ok(fired) if spec.lasts => {
            shared.say(&format!("{}: {}", spec.name, shown(&fired)));
            injected(shared, id, fired, None);
            shared.sleep(due.lasts);
            undo(shared, spec, id, &mut fault, missed);
        }
        Ok(fired) => {
            shared.say(&format!("{}: {}", spec.name, shown(&fired)));
            injected(shared, id, fired, Some(shared.now_ms()));
        }
        Err(error) => {
            // Half of it may have been done.
            let (outcome, left) = match take_back(shared, &mut fault) {
                Ok(left) => (outcome_of(error), left),
                Err(outcome) => (InjectionOutcome::Failed(format!("{error}; {}", outcome_text(&outcome))), Fired::default()),
            };
            shared.say(&format!("{}: {}", spec.name, outcome_text(&outcome)));
            end(shared, id, outcome, left);
        }
    }
}

/// What came at another moment than the step is about does not count for it.
fn counted(fired: Fired, missed: bool) -> Fired {
    Fired { count: if missed { 0 } else { fired.count }, ..fired }
}

/// Waits until a worker has come to the point. It is held there while what is returned lives.
fn reach(shared: &Shared<'_>, when: &FailPoint, random: &mut ChaCha8Rng) -> Result<(ArmedPoint, String), InjectionOutcome> {
    let deadline = Instant::now() + when.within.0;
    let mut point = loop {
        match ArmedPoint::of(shared.stage, &when.fail_point, when.target.as_ref(), random) {
            Ok(point) => break point,
            Err(FaultError::NoTarget(_)) if Instant::now() < deadline && shared.sleep(TARGET_RETRY) => {}
            Err(error) => return Err(outcome_of(error)),
        }
    };
    loop {
        match point.reached(shared.stage) {
            Ok(Some(worker)) => return Ok((point, worker)),
            Ok(None) if Instant::now() < deadline && shared.sleep(POINT_LOOK) => {}
            Ok(None) => return Err(InjectionOutcome::NoTarget(format!("no worker came to {} within {}", when.fail_point, when.within))),
            Err(error) => return Err(outcome_of(error)),
        }
    }
}

/// At the worker that was waited for, where the plan does not say otherwise and the fault can be aimed at one; a coordinator is that worker's.
fn aim(spec: &FaultSpec, target: Option<&Target>, at_point: Option<&str>) -> Option<Target> {
    let Some(worker) = at_point else { return target.cloned() };
    let of_worker = |role| Some(Target { role, name: Some(worker.into()) });
    match target {
        Some(Target { role: Role::Coordinator, name: None }) => of_worker(Role::Coordinator),
        None if spec.targets.contains(&Role::Worker) => of_worker(Role::Worker),
        None if spec.targets[0] == Role::Coordinator => of_worker(Role::Coordinator),
        _ => target.cloned(),
    }
}

fn begin(shared: &Shared<'_>, spec: &FaultSpec, due: &Due<'_>, target: Option<&Target>) -> u32 {
    let id = shared.next_id();
    let with = due.candidate.with.iter().map(|(name, value)| (name.clone(), value.0.clone()));
    let when = due.when.map(|when| ("when".to_string(), when.fail_point.clone()));
    let injection = Injection {
        id,
        step: due.step,
        fault: spec.name.into(),
        family: spec.family.to_string(),
        target: target.map_or("usual".into(), Target::to_string),
        parameters: with.chain(when).collect(),
        from_ms: shared.now_ms(),
        to_ms: None,
        outcome: InjectionOutcome::Begun,
        hit: Vec::new(),
        evidence: String::new(),
        count: 0,
        tried_until_ms: None,
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

fn undo(shared: &Shared<'_>, spec: &FaultSpec, id: u32, fault: &mut StageFault, missed: bool) {
    match take_back(shared, fault) {
        Ok(fired) => {
            let fired = counted(fired, missed);
            shared.say(&format!("{} undone: {}", spec.name, shown(&fired)));
            shared.add(Entry::Undone { id, at_ms: shared.now_ms(), hit: fired.hit, evidence: fired.evidence, count: fired.count });
        }
        Err(outcome) => {
            shared.say(&format!("{}: {}", spec.name, outcome_text(&outcome)));
            end(shared, id, outcome, Fired::default());
        }
    }
}

/// What was seen of it; or that it is still there, whatever was tried.
fn take_back(shared: &Shared<'_>, fault: &mut StageFault) -> Result<Fired, InjectionOutcome> {
    let mut tries = 1;
    loop {
        match fault.undo(shared.stage) {
            Ok(fired) => return Ok(fired),
            Err(error) if tries >= UNDO_TRIES => return Err(InjectionOutcome::Failed(format!("it could not be undone: {error}"))),
            Err(_) => {
                tries += 1;
                std::thread::sleep(TARGET_RETRY);
            }
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
    let random = super::conduct::random(shared.seed, step, 0, 0);
    inject(shared, Due { step, candidate: &candidate, when: None, random, lasts: Duration::ZERO });
}

fn parameters(candidate: &Candidate) -> Parameters {
    candidate.with.iter().map(|(name, value)| (name.clone(), Value::Text(value.0.clone()))).collect()
}

fn shown(fired: &Fired) -> String {
    let text =
        format!("{}{}{}", fired.hit.join(", "), if fired.hit.is_empty() || fired.evidence.is_empty() { "" } else { ": " }, fired.evidence);
    if text.is_empty() { format!("fired {} times", fired.count) } else { text }
}

fn outcome_of(error: FaultError) -> InjectionOutcome {
    match error {
        FaultError::NotPossibleHere(why) => InjectionOutcome::NotPossible(why),
        FaultError::NoTarget(why) => InjectionOutcome::NoTarget(why),
        FaultError::Harness(why) => InjectionOutcome::Failed(format!("{why:#}")),
    }
}

fn outcome_text(outcome: &InjectionOutcome) -> String {
    match outcome {
        InjectionOutcome::NotPossible(why) => format!("not possible here: {why}"),
        InjectionOutcome::NoTarget(why) => format!("no target: {why}"),
        InjectionOutcome::Failed(why) => format!("failed: {why}"),
        InjectionOutcome::Begun | InjectionOutcome::Injected => "injected".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_waits_at_a_point_is_aimed_at_who_has_come_unless_the_plan_or_the_fault_says_otherwise() {
        let aimed = |fault: &str, target: Option<Target>| {
            let spec = find(fault).expect("it is in the catalogue");
            aim(spec, target.as_ref(), Some("w2")).map(|target| target.to_string())
        };
        assert_eq!(aimed("net.partition", None).as_deref(), Some("worker w2"));
        assert_eq!(aimed("net.partition", Some(Target { role: Role::Broker, name: None })).as_deref(), Some("broker"));
        assert_eq!(aimed("broker.pause", None), None);
        let coordinator = Some(Target { role: Role::Coordinator, name: None });
        assert_eq!(aimed("broker.pause", coordinator).as_deref(), Some("coordinator w2"));
        assert_eq!(aimed("broker.coordinator_kill", None).as_deref(), Some("coordinator w2"));
    }

    #[test]
    fn what_was_done_after_the_worker_had_gone_on_does_not_count() {
        let fired = || Fired { hit: vec!["w2".into()], evidence: "pid 4711 is gone".into(), count: 3 };
        assert_eq!((counted(fired(), false), counted(fired(), true)), (fired(), Fired { count: 0, ..fired() }));
    }
}

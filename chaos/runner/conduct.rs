//! The method: which step is due when, and what is drawn.
//!
//! All choices come from the run's seed and the place of the step (step, round, candidate), not from the order in which threads come to draw, so a run's
//! choices are those of its seed even if its timing is another.

use super::inject::{self, Due};
use super::shared::Shared;
use crate::journal::{Entry, Injection, InjectionOutcome};
use crate::plan::{Candidate, Draw, Start, Step, Time};
use rand::seq::index::sample;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use streamshield_faults::DEFAULT_LIMIT;

const DEFAULT_EVERY: Duration = Duration::from_secs(10);

/// Runs all steps, and returns when all of them are over and undone.
pub(super) fn conduct(shared: &Shared<'_>) {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (index, step) in shared.plan.method.iter().enumerate() {
            let due = match step.at {
                None => !shared.is_ending(),
                Some(Start::Time(time)) => shared.sleep_until(began + time),
                Some(Start::Records(records)) => shared.wait_until(|| shared.load.records_sent() >= records),
            };
            if !due {
                return;
            }
            if step.background {
                scope.spawn(move || run_step(shared, index, step));
            } else {
                run_step(shared, index, step);
            }
        }
    });
}

/// Everything random about one place of the method.
pub(super) fn random(seed: u64, step: usize, round: u32, candidate: usize) -> ChaCha8Rng {
    let mut bytes = [0; 32];
    let parts = [seed, step as u64, u64::from(round), candidate as u64];
    for (place, part) in bytes.chunks_exact_mut(8).zip(parts) {
        place.copy_from_slice(&part.to_le_bytes());
    }
    ChaCha8Rng::from_seed(bytes)
}

fn run_step(shared: &Shared<'_>, index: usize, step: &Step) {
    if let Some(fault) = &step.fault {
        let candidate = Candidate { fault: fault.clone(), target: step.target.clone(), with: step.with.clone() };
        repeat(shared, index, step, &candidate);
    } else if let Some(draw) = &step.random {
        draws(shared, index, draw, step.lasts.unwrap_or(Time(DEFAULT_LIMIT)).0);
    } else if let Some(factor) = step.load {
        load(shared, index, factor, step.lasts.unwrap_or(Time(DEFAULT_LIMIT)).0);
    } else if let Some(pause) = step.pause {
        shared.sleep(pause.0);
    }
}

fn repeat(shared: &Shared<'_>, index: usize, step: &Step, candidate: &Candidate) {
    let times = step.repeat.unwrap_or(1);
    let every = step.every.map_or(DEFAULT_EVERY, |time| time.0);
    let lasts = step.lasts.map_or(DEFAULT_LIMIT, |time| time.0);
    for round in 0..times {
        let began = Instant::now();
        let due = Due { step: index, candidate, when: step.when.as_ref(), random: random(shared.seed, index, round, 0), lasts };
        inject::inject(shared, due);
        // The last one has its time, too: what follows would disturb what it shows.
        if shared.is_ending() || (times > 1 && !shared.sleep_until(began + every)) {
            return;
        }
    }
}

/// Rounds of a few faults at once, each with a calm end.
fn draws(shared: &Shared<'_>, index: usize, draw: &Draw, lasts: Duration) {
    let began = Instant::now();
    let active = draw.every.0.saturating_sub(draw.calm.0);
    let mut round = 0;
    while began.elapsed() + draw.every.0 <= lasts {
        let round_began = Instant::now();
        let drawn = drawn(shared.seed, index, round, draw);
        std::thread::scope(|scope| {
            for which in drawn {
                let candidate = &draw.of[which];
                let mut random = random(shared.seed, index, round, which + 1);
                // Not all at the same moment, and each for a part of the time at least.
                let wait = active.mul_f64(random.random_range(0.0..0.4));
                scope.spawn(move || {
                    if shared.sleep_until(round_began + wait) {
                        let lasts = (round_began + active).saturating_duration_since(Instant::now());
                        inject::inject(shared, Due { step: index, candidate, when: None, random, lasts });
                    }
                });
            }
        });
        round += 1;
        if !shared.sleep_until(round_began + draw.every.0) {
            return;
        }
    }
}

/// Which candidates a round has.
fn drawn(seed: u64, step: usize, round: u32, draw: &Draw) -> Vec<usize> {
    let mut random = random(seed, step, round, 0);
    let many = random.random_range(draw.pick.least..=draw.pick.most) as usize;
    sample(&mut random, draw.of.len(), many.min(draw.of.len())).into_vec()
}

/// Another rate is written down like a fault, so that the timeline shows it; it is none.
fn load(shared: &Shared<'_>, index: usize, factor: f64, lasts: Duration) {
    let id = shared.next_id();
    let injection = Injection {
        id,
        step: index,
        fault: "load".into(),
        family: "load".into(),
        target: "input".into(),
        parameters: BTreeMap::from([("factor".to_string(), factor.to_string())]),
        from_ms: shared.now_ms(),
        to_ms: None,
        outcome: InjectionOutcome::Injected,
        hit: vec!["input".into()],
        evidence: format!("{factor} times the rate"),
        count: 1,
        tried_until_ms: None,
    };
    shared.add(Entry::Injecting { injection });
    shared.say(&format!("load × {factor} for {} s", lasts.as_secs()));
    shared.load.set_rate(factor);
    shared.sleep(lasts);
    shared.load.set_rate(1.0);
    shared.add(Entry::Undone { id, at_ms: shared.now_ms(), hit: Vec::new(), evidence: String::new(), count: 0 });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Pick;

    fn draw() -> Draw {
        let candidate = |fault: &str| Candidate { fault: fault.into(), target: None, with: BTreeMap::new() };
        let of = ["a", "b", "c", "d", "e"].map(candidate).to_vec();
        Draw { of, pick: Pick { least: 2, most: 4 }, every: Time::seconds(20), calm: Time::seconds(10) }
    }

    #[test]
    fn the_same_seed_draws_the_same_and_another_one_does_not() {
        let rounds = |seed| (0..50).map(|round| drawn(seed, 3, round, &draw())).collect::<Vec<_>>();
        assert_eq!(rounds(42), rounds(42));
        assert_ne!(rounds(42), rounds(43));
    }

    #[test]
    fn a_round_has_as_many_as_may_be_picked_and_none_twice() {
        for round in 0..200 {
            let mut drawn = drawn(7, 0, round, &draw());
            assert!((2..=4).contains(&drawn.len()), "{drawn:?}");
            drawn.sort_unstable();
            drawn.dedup();
            assert!((2..=4).contains(&drawn.len()), "{drawn:?}");
        }
    }
}

//! Turns, pauses and crashes in an order that the seed decides.

use super::*;
use crate::world::FaultPlan;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

type Turns = Rc<RefCell<Vec<(u8, i64)>>>;

/// Notes its turns, and says the same after each.
struct Clerk {
    name: u8,
    next: Next,
    turns: Turns,
    sim: Sim,
    woken: Rc<Cell<bool>>,
}

impl Actor for Clerk {
    fn turn(&mut self) -> Next {
        self.turns.borrow_mut().push((self.name, self.sim.now_ms()));
        self.next
    }
    fn is_woken(&mut self) -> bool {
        self.woken.take()
    }
}

struct Office {
    sim: Sim,
    schedule: Schedule,
    turns: Turns,
}

impl Office {
    fn new(seed: u64, mischief: Mischief) -> Office {
        let sim = Sim::new(seed, FaultPlan::default());
        Office { schedule: Schedule::new(&sim, mischief), sim, turns: Turns::default() }
    }

    fn hire(&mut self, name: u8, next: Next) -> (ClientId, Rc<Cell<bool>>) {
        let client = self.sim.client("clerk");
        let woken = Rc::new(Cell::new(false));
        let clerk = Clerk { name, next, turns: Rc::clone(&self.turns), sim: self.sim.clone(), woken: Rc::clone(&woken) };
        self.schedule.add(client, Box::new(clerk));
        (client, woken)
    }

    fn steps(&mut self, count: usize) -> Vec<Step> {
        (0..count).map(|_| self.schedule.step()).collect()
    }

    fn names(&self) -> Vec<u8> {
        self.turns.borrow().iter().map(|(name, _)| *name).collect()
    }
}

#[test]
fn the_order_of_turns_is_the_seeds() {
    let run = |seed| {
        let mut office = Office::new(seed, Mischief::default());
        (0..4).for_each(|name| drop(office.hire(name, Next::Again)));
        office.steps(200);
        office.names()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    assert!((0..4).all(|name| run(3).iter().filter(|turn| **turn == name).count() > 10), "nobody starves");
}

#[test]
fn time_moves_on_even_if_somebody_never_rests() {
    let mut office = Office::new(1, Mischief::default());
    office.hire(0, Next::Again);
    office.hire(1, Next::Idle(50));
    let begun_ms = office.sim.now_ms();
    office.steps(1_000);
    assert!(office.sim.now_ms() > begun_ms + 100);
    assert!(office.names().iter().filter(|name| **name == 1).count() > 2);
}

#[test]
fn who_is_woken_has_a_turn_before_its_time() {
    let mut office = Office::new(1, Mischief::default());
    let (_, woken) = office.hire(0, Next::Idle(10_000));
    office.schedule.step();
    woken.set(true);
    let begun_ms = office.sim.now_ms();
    // As soon as its last turn is over.
    assert_eq!(office.steps(2)[0], Step::Waited(TURN_MS_MIN));
    assert_eq!(office.turns.borrow().len(), 2);
    assert_eq!(office.sim.now_ms(), begun_ms + TURN_MS_MIN);
    assert_eq!(office.schedule.step(), Step::Waited(10_001));
}

#[test]
fn a_paused_worker_is_not_called_and_a_crashed_one_never_again() {
    let mischief = Mischief { pause_interval_ms: 50, pause_ms_max: 500, crash_interval_ms: 2_000, ..Default::default() };
    let mut office = Office::new(7, mischief);
    (0..3).for_each(|name| drop(office.hire(name, Next::Idle(5))));
    let steps = office.steps(3_000);
    assert!(steps.iter().any(|step| matches!(step, Step::Paused(..))));
    let crashed: Vec<_> = steps.iter().filter(|step| matches!(step, Step::Crashed(_))).collect();
    assert_eq!(crashed.len(), 3);
    assert_eq!(steps.last(), Some(&Step::Over));
    assert!(office.schedule.clients().is_empty());
    let turns = office.turns.borrow();
    for name in 0..3 {
        let times: Vec<_> = turns.iter().filter(|(turn, _)| *turn == name).map(|(_, at_ms)| *at_ms).collect();
        assert!(times.windows(2).any(|pair| pair[1] - pair[0] > 50), "{name} stood still at least once");
    }
}

#[test]
fn who_has_ended_is_gone_and_nobody_left_is_the_end() {
    let mut office = Office::new(1, Mischief::default());
    let (client, _) = office.hire(0, Next::Ended);
    assert!(matches!(office.schedule.step(), Step::Ended(_, ended) if ended == client));
    assert_eq!(office.schedule.step(), Step::Over);
}

//! Breadth first through all states, with the way to each.

use super::model::*;
use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

/// A scope beyond this is too large to be searched in a test.
const STATES_MAX: usize = 30_000_000;

/// The log and everybody who reads and writes.
#[derive(Clone, Copy, Default)]
struct State {
    head: u32,
    actors: [Actor; ACTORS_MAX],
    started: u8,
    crashed: u8,
    failed: u8,
    drained: u8,
    left: u8,
}

/// A state in few bytes: there are many.
type Packed = [u8; 4 + ACTORS_MAX * (1 + REGIONS_MAX) + 3];

/// For millions of short keys that nobody chose to collide.
#[derive(Default)]
struct WordHasher(u64);

impl Hasher for WordHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let word = chunk.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
            let product = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd1b5_4a32_d192_ed03;
            self.0 = (product as u64) ^ ((product >> 64) as u64);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Default)]
pub struct Found {
    pub states: usize,
    pub heads: usize,
    pub transitions: u64,
    /// How often somebody is able to commit.
    pub commits: u64,
    pub reassignments: u64,
    pub violation: Option<String>,
}

struct Search {
    scope: Scope,
    mutant: Option<Mutant>,
    heads: Heads,
    /// With the number of the state before and what led here.
    states: Vec<(Packed, u32, Step)>,
    known: HashSet<Packed, BuildHasherDefault<WordHasher>>,
    found: Found,
}

#[derive(Clone, Copy)]
enum Step {
    Start,
    CatchUp(u8),
    Init(u8),
    ReadEnd(u8, u8),
    Crash(u8),
    Record(Event),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Start => write!(f, "the start"),
            Step::CatchUp(actor) => write!(f, "{actor} reads the log to its end"),
            Step::Init(actor) => write!(f, "{actor} calls InitProducerId on its own id and writes its confirm"),
            Step::ReadEnd(actor, region) => write!(f, "{actor} reads the changelog of region {region} to its end"),
            Step::Crash(actor) => write!(f, "{actor} crashes"),
            Step::Record(event) => write!(f, "{event:?}"),
        }
    }
}

impl State {
    /// Leaves out what can't matter any more, so that histories that end alike are one state.
    fn normalize(&mut self, mutant: Option<Mutant>) {
        for actor in &mut self.actors {
            let is_powerless = !actor.is_producer_valid && mutant != Some(Mutant::SkipConfirm);
            for belief in actor.beliefs.iter_mut().filter(|belief| belief.assignment > 0) {
                if mutant != Some(Mutant::CountStaleReleased) {
                    belief.release = false;
                    if is_powerless || (belief.fences_open && !belief.taken) {
                        *belief = Belief::default();
                    }
                }
            }
        }
        for region in 0..REGIONS_MAX {
            let seen = self.actors.iter().fold(0u32, |seen, actor| seen | 1 << actor.beliefs[region].assignment);
            for actor in &mut self.actors {
                let assignment = &mut actor.beliefs[region].assignment;
                *assignment = (1..=*assignment).filter(|older| seen >> older & 1 == 1).count() as u8;
            }
        }
    }

    fn pack(&self) -> Packed {
        let mut packed = Packed::default();
        packed[..4].copy_from_slice(&self.head.to_le_bytes());
        for (actor, bytes) in self.actors.iter().zip(packed[4..].chunks_exact_mut(1 + REGIONS_MAX)) {
            bytes[0] = u8::from(actor.running) | u8::from(actor.is_producer_valid) << 1;
            for (belief, byte) in actor.beliefs.iter().zip(&mut bytes[1..]) {
                let flags = [belief.owned, belief.fences_open, belief.release, belief.taken, belief.superseded];
                *byte = flags.iter().rev().fold(belief.assignment, |byte, flag| byte << 1 | u8::from(*flag));
            }
        }
        let rest = packed.len() - 3;
        packed[rest] = self.started | self.crashed << 4;
        packed[rest + 1] = self.failed | self.drained << 4;
        packed[rest + 2] = self.left;
        packed
    }

    fn unpack(packed: &Packed) -> State {
        let mut state = State { head: u32::from_le_bytes([packed[0], packed[1], packed[2], packed[3]]), ..State::default() };
        for (actor, bytes) in state.actors.iter_mut().zip(packed[4..].chunks_exact(1 + REGIONS_MAX)) {
            (actor.running, actor.is_producer_valid) = (bytes[0] & 1 == 1, bytes[0] & 2 == 2);
            for (belief, byte) in actor.beliefs.iter_mut().zip(&bytes[1..]) {
                let flag = |at: u8| byte >> at & 1 == 1;
                *belief = Belief {
                    owned: flag(0),
                    fences_open: flag(1),
                    release: flag(2),
                    taken: flag(3),
                    superseded: flag(4),
                    assignment: byte >> 5,
                };
            }
        }
        let rest = packed.len() - 3;
        (state.started, state.crashed) = (packed[rest] & 15, packed[rest] >> 4);
        (state.failed, state.drained) = (packed[rest + 1] & 15, packed[rest + 1] >> 4);
        state.left = packed[rest + 2];
        state
    }
}

pub fn search(scope: Scope, mutant: Option<Mutant>) -> Found {
    let (heads, head) = Heads::new(scope, mutant);
    let mut search = Search { scope, mutant, heads, states: Vec::new(), known: HashSet::default(), found: Found::default() };
    let result = search.run(head);
    search.found.violation = result.err();
    search.found.states = search.states.len();
    search.found.heads = search.heads.all.len();
    search.found.reassignments = search.heads.reassignments;
    search.found
}

impl Search {
    fn run(&mut self, head: u32) -> Result<(), String> {
        let mut first = State { head, ..State::default() };
        for _ in 0..self.scope.joins_up_front {
            self.join(&mut first, None)?;
        }
        for actor in 0..first.started {
            self.catch_up(&mut first, actor);
        }
        self.visit(first, 0, Step::Start)?;
        let mut next = 0;
        while next < self.states.len() {
            let state = State::unpack(&self.states[next].0);
            for actor in (0..state.started).filter(|actor| state.actors[*actor as usize].running) {
                self.worker(state, next as u32, actor)?;
            }
            self.environment(state, next as u32)?;
            next += 1;
        }
        Ok(())
    }

    fn visit(&mut self, mut state: State, from: u32, step: Step) -> Result<(), String> {
        self.found.transitions += 1;
        state.normalize(self.mutant);
        let packed = state.pack();
        if !self.known.insert(packed) {
            return Ok(());
        }
        self.states.push((packed, from, step));
        assert!(self.states.len() < STATES_MAX, "{:?} is too large", self.scope);
        self.check(&state).map_err(|what| format!("{what}\n{}", self.way_to(self.states.len() - 1)))
    }

    fn check(&mut self, state: &State) -> Result<(), String> {
        for region in 0..self.scope.regions as usize {
            let is_able = |actor: &u8| state.actors[*actor as usize].is_able_to_commit(region);
            let able = (0..state.started).filter(is_able).fold(0u8, |mask, actor| mask | 1 << actor);
            self.found.commits += u64::from(able != 0);
            let superseded =
                (0..state.started).find(|actor| able >> actor & 1 == 1 && state.actors[*actor as usize].beliefs[region].superseded);
            if let Some(actor) = superseded {
                return Err(format!("O-1: a later owner has read the end of region {region}, and {actor} is able to commit"));
            }
            if able.count_ones() > 1 {
                return Err(format!("E-1: the actors {able:#b} are able to commit the same epoch of region {region}"));
            }
        }
        Ok(())
    }

    fn way_to(&self, mut number: usize) -> String {
        let mut steps = Vec::new();
        while number > 0 {
            let (_, from, step) = self.states[number];
            steps.push(format!("  {step}"));
            number = from as usize;
        }
        steps.reverse();
        steps.join("\n")
    }

    /// Whatever a running worker may do on what it has read.
    fn worker(&mut self, state: State, number: u32, actor: u8) -> Result<(), String> {
        let own = state.actors[actor as usize];
        let head = &self.heads.all[state.head as usize];
        let (live, unfenced, waits_for_ready) = (head.live, head.unfenced, head.waits_for_ready);
        let mut later = state;
        if self.catch_up(&mut later, actor) {
            self.visit(later, number, Step::CatchUp(actor))?;
        }
        // Not before there is something to commit: earlier makes no difference.
        if !own.is_producer_valid && own.beliefs.iter().any(|belief| belief.taken) {
            let mut later = state;
            later.actors[actor as usize].is_producer_valid = true;
            if self.mutant != Some(Mutant::SkipConfirm) {
                self.catch_up(&mut later, actor);
            }
            self.visit(later, number, Step::Init(actor))?;
        }
        if live >> actor & 1 == 1 {
            for other in (0..state.started).filter(|other| unfenced >> other & 1 == 1) {
                let mut later = state;
                later.actors[other as usize].is_producer_valid &= self.mutant == Some(Mutant::FencedWithoutFencing);
                self.append(later, number, Event::Fenced { by: actor, actor: other })?;
            }
        }
        if live >> actor & 1 == 1 && state.left < self.scope.leaves {
            let mut later = state;
            later.left += 1;
            if self.mutant != Some(Mutant::GoesOnAfterLeaving) {
                later.actors[actor as usize] = Actor::default();
            }
            self.append(later, number, Event::Left { actor, clean: true })?;
        }
        for region in 0..self.scope.regions as u8 {
            if waits_for_ready[region as usize] >> actor & 1 == 1 {
                self.append(state, number, Event::Ready { by: actor, region })?;
            }
            if own.beliefs[region as usize].owned {
                self.owned_region(state, number, actor, region)?;
            }
        }
        Ok(())
    }

    fn owned_region(&mut self, state: State, number: u32, actor: u8, region: u8) -> Result<(), String> {
        let belief = state.actors[actor as usize].beliefs[region as usize];
        if !belief.taken && (!belief.fences_open || self.mutant == Some(Mutant::SkipFenceWait)) {
            let mut later = state;
            for other in &mut later.actors {
                let earlier = &mut other.beliefs[region as usize];
                earlier.superseded |= earlier.taken && earlier.assignment > belief.assignment;
            }
            later.actors[actor as usize].beliefs[region as usize].taken = true;
            self.visit(later, number, Step::ReadEnd(actor, region))?;
        }
        let current = belief.assignment == 0;
        if belief.release {
            let later = self.let_go(state, actor, region);
            self.append(later, number, Event::Released { by: actor, region, current })?;
        }
        if current && state.failed < self.scope.failures {
            let mut later = self.let_go(state, actor, region);
            later.failed += 1;
            self.append(later, number, Event::Failed { by: actor, region, current })?;
        }
        Ok(())
    }

    fn let_go(&self, mut state: State, actor: u8, region: u8) -> State {
        let belief = &mut state.actors[actor as usize].beliefs[region as usize];
        match self.mutant {
            Some(Mutant::GoesOnAfterRelease) => belief.release = false,
            _ => *belief = Belief::default(),
        }
        state
    }

    fn environment(&mut self, state: State, number: u32) -> Result<(), String> {
        let head = &self.heads.all[state.head as usize];
        let (live, draining) = (head.live, head.draining);
        let is_crashed = |actor: u8| !state.actors[actor as usize].running;
        if state.started < self.scope.starts {
            let crashed_members = (0..state.started).filter(|actor| live >> actor & 1 == 1 && is_crashed(*actor)).map(Some);
            let newcomer = (live.count_ones() < self.scope.workers).then_some(None);
            for replaces in crashed_members.chain(newcomer) {
                let mut later = state;
                self.join(&mut later, replaces)?;
                self.visit(later, number, Step::Record(Event::Join { actor: state.started, replaces }))?;
            }
        }
        // Any one of them, or two at the same record.
        for actors in (1..1u8 << state.started).filter(|actors| actors & !live == 0 && actors.count_ones() <= 2) {
            self.append(state, number, Event::Expire { actors })?;
        }
        if state.crashed < self.scope.crashes {
            for actor in (0..state.started).filter(|actor| !is_crashed(*actor)) {
                let mut later = state;
                later.crashed += 1;
                later.actors[actor as usize] = Actor::default();
                self.visit(later, number, Step::Crash(actor))?;
                if live >> actor & 1 == 1 {
                    self.append(later, number, Event::Left { actor, clean: false })?;
                }
            }
        }
        if state.drained < self.scope.drains {
            for actor in (0..state.started).filter(|actor| live >> actor & 1 == 1) {
                let mut later = state;
                later.drained += 1;
                self.append(later, number, Event::Drain { actor, undo: draining >> actor & 1 == 1 })?;
            }
        }
        Ok(())
    }

    fn append(&mut self, mut later: State, number: u32, event: Event) -> Result<(), String> {
        self.record(&mut later, event).map_err(|what| format!("{what}\n{}\n  {event:?}", self.way_to(number as usize)))?;
        self.visit(later, number, Step::Record(event))
    }

    fn record(&mut self, state: &mut State, event: Event) -> Result<(), String> {
        let (head, reassigned) = self.heads.after(state.head, event)?;
        state.head = head;
        for actor in &mut state.actors {
            for (region, belief) in actor.beliefs.iter_mut().enumerate() {
                belief.assignment += u8::from(belief.owned && reassigned >> region & 1 == 1);
            }
        }
        Ok(())
    }

    /// It knows nothing before it has read its own record.
    fn join(&mut self, state: &mut State, replaces: Option<u8>) -> Result<(), String> {
        let actor = state.started;
        self.record(state, Event::Join { actor, replaces })?;
        state.started += 1;
        state.actors[actor as usize].running = true;
        Ok(())
    }

    /// Reads everything there is; says whether that changed anything.
    fn catch_up(&self, state: &mut State, actor: u8) -> bool {
        let head = &self.heads.all[state.head as usize];
        let own = &mut state.actors[actor as usize];
        let before = *own;
        for (belief, seen) in own.beliefs.iter_mut().zip(head.views[actor as usize]) {
            // What was done under an assignment holds as long as it is the latest one.
            let keeps = belief.owned && belief.assignment == 0 && seen.owned;
            let (taken, superseded) = (belief.taken && keeps, belief.superseded && keeps);
            *belief = Belief { taken, superseded, ..seen };
        }
        if head.live >> actor & 1 == 0 {
            // It stands down; a worker of that name may start anew.
            *own = Actor::default();
        }
        *own != before
    }
}

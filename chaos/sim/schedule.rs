//! Whose turn it is: a seeded order of turns, and what befalls the workers meanwhile.
//!
//! An [`Actor`] does what it can and returns; nothing waits inside of it. The schedule picks one of those that are due, at random,
//! so every order of turns that threads could bring about has a seed. When nobody is due, time moves on to the next thing that happens.
//!
//! ```text
//! step:  mischief due? ─▶ a crash, a pause, an outage          ─▶ the driver reacts (starts a successor…)
//!        else somebody due? ─▶ one of them takes a turn         ─▶ it is due again when its calls have taken their time
//!        else ─▶ time moves on, what was late arrives
//! ```
//!
//! A paused worker is not called, and does not know it: its clock goes on, as after a stopped virtual machine. A crashed one is dropped
//! with all its actors; starting another one in its place is the driver's part, since only it knows what a worker is made of.

use crate::world::{ClientId, Sim};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// A turn takes at least this long, so that an actor that never rests does not stop the time.
const TURN_MS_MIN: i64 = 1;

/// What an actor says after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Something moved: another turn at once.
    Again,
    /// Nothing to do for this many ms, unless woken.
    Idle(i64),
    /// It will never have anything to do again.
    Ended,
}

/// What runs in a worker.
pub trait Actor {
    fn turn(&mut self) -> Next;
    /// Whether its wakeup was raised since the last question.
    fn is_woken(&mut self) -> bool;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ActorId(u64);

/// How often what befalls the workers: mean intervals in ms, 0 for never.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mischief {
    pub crash_interval_ms: u64,
    pub pause_interval_ms: u64,
    pub pause_ms_max: u64,
    pub outage_interval_ms: u64,
    pub outage_ms_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Crash,
    Pause,
    Outage,
}

/// What a step was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Turn(ActorId),
    /// An actor of a worker has ended by itself.
    Ended(ActorId, ClientId),
    /// A worker is dead and its actors are gone.
    Crashed(ClientId),
    Paused(ClientId, i64),
    BrokerAway(i64),
    /// Nobody was due.
    Waited(i64),
    /// There is nobody left, and nothing is on its way.
    Over,
}

struct Entry {
    actor: Box<dyn Actor>,
    client: ClientId,
    due_ms: i64,
    /// Its last turn takes until then: nothing wakes it before.
    busy_until_ms: i64,
}

/// See the module text.
pub struct Schedule {
    sim: Sim,
    rng: ChaCha8Rng,
    actors: BTreeMap<ActorId, Entry>,
    numbers: u64,
    paused: BTreeMap<ClientId, i64>,
    mischief: Mischief,
    /// When which kind strikes next.
    coming: BTreeMap<Kind, i64>,
    /// Time is not moved beyond this: then the driver has something to do.
    horizon_ms: i64,
}

impl Schedule {
    pub fn new(sim: &Sim, mischief: Mischief) -> Schedule {
        let mut schedule = Schedule {
            sim: sim.clone(),
            rng: sim.generator(),
            actors: BTreeMap::new(),
            numbers: 0,
            paused: BTreeMap::new(),
            mischief: Mischief::default(),
            coming: BTreeMap::new(),
            horizon_ms: i64::MAX,
        };
        schedule.set_mischief(mischief);
        schedule
    }

    /// Mischief from now on: the end of a run wants none, so that it can come to rest.
    pub fn set_mischief(&mut self, mischief: Mischief) {
        self.mischief = mischief;
        self.coming.clear();
        [Kind::Crash, Kind::Pause, Kind::Outage].into_iter().for_each(|kind| self.plan(kind));
    }

    /// A wait ends here at the latest.
    pub fn set_horizon(&mut self, at_ms: i64) {
        self.horizon_ms = at_ms;
    }

    /// A worker stands still for a while, and does not know it.
    pub fn pause(&mut self, client: ClientId, for_ms: i64) {
        self.paused.insert(client, self.sim.now_ms() + for_ms);
        self.sim.freeze(client);
        self.sim.note("schedule", &format!("{client:?} stands still for {for_ms} ms"));
    }

    pub fn is_paused(&self, client: ClientId) -> bool {
        self.paused.get(&client).is_some_and(|until_ms| *until_ms > self.sim.now_ms())
    }

    /// All that stand still go on.
    pub fn resume_all(&mut self) {
        self.resume(i64::MAX);
    }

    /// Those go on whose time is over.
    fn resume(&mut self, now_ms: i64) {
        let over: Vec<_> = self.paused.iter().filter(|(_, until_ms)| **until_ms <= now_ms).map(|(client, _)| *client).collect();
        for client in over {
            self.paused.remove(&client);
            self.sim.thaw(client);
        }
    }

    fn plan(&mut self, kind: Kind) {
        let interval_ms = match kind {
            Kind::Crash => self.mischief.crash_interval_ms,
            Kind::Pause => self.mischief.pause_interval_ms,
            Kind::Outage => self.mischief.outage_interval_ms,
        };
        if interval_ms > 0 {
            let after_ms = self.rng.random_range(1..=2 * interval_ms) as i64;
            self.coming.insert(kind, self.sim.now_ms() + after_ms);
        }
    }

    pub fn add(&mut self, client: ClientId, actor: Box<dyn Actor>) -> ActorId {
        self.numbers += 1;
        let id = ActorId(self.numbers);
        self.actors.insert(id, Entry { actor, client, due_ms: self.sim.now_ms(), busy_until_ms: i64::MIN });
        id
    }

    /// Kills a worker and drops its actors.
    pub fn crash(&mut self, client: ClientId) {
        self.sim.crash(client);
        self.actors.retain(|_, entry| entry.client != client);
        self.paused.remove(&client);
    }

    /// Workers that have actors, in the order of their starts.
    pub fn clients(&self) -> Vec<ClientId> {
        let mut clients: Vec<_> = self.actors.values().map(|entry| entry.client).collect();
        clients.sort_unstable();
        clients.dedup();
        clients
    }

    /// Does one thing.
    pub fn step(&mut self) -> Step {
        let now_ms = self.sim.now_ms();
        if let Some(step) = self.strike(now_ms) {
            return step;
        }
        self.resume(now_ms);
        let mut due = Vec::new();
        for (id, entry) in self.actors.iter_mut().filter(|(_, entry)| !self.paused.contains_key(&entry.client)) {
            // A woken one keeps being due until its turn has come.
            if entry.due_ms > now_ms && entry.actor.is_woken() {
                entry.due_ms = entry.due_ms.min(entry.busy_until_ms.max(now_ms));
            }
            if entry.due_ms <= now_ms {
                due.push(*id);
            }
        }
        if due.is_empty() {
            return self.wait(now_ms);
        }
        let id = due[self.rng.random_range(0..due.len())];
        self.turn(id)
    }

    fn turn(&mut self, id: ActorId) -> Step {
        let Some(entry) = self.actors.get_mut(&id) else { return Step::Over };
        let client = entry.client;
        let next = entry.actor.turn();
        let busy_ms = self.sim.take_spent_ms().max(TURN_MS_MIN);
        let after_ms = match next {
            Next::Again => busy_ms,
            Next::Idle(idle_ms) => busy_ms.saturating_add(idle_ms.max(0)),
            Next::Ended => {
                self.actors.remove(&id);
                return Step::Ended(id, client);
            }
        };
        entry.due_ms = self.sim.now_ms().saturating_add(after_ms);
        entry.busy_until_ms = self.sim.now_ms().saturating_add(busy_ms);
        if !self.sim.is_alive(client) {
            self.crash(client);
            return Step::Crashed(client);
        }
        Step::Turn(id)
    }

    fn strike(&mut self, now_ms: i64) -> Option<Step> {
        let (kind, _) = self.coming.iter().find(|(_, due_ms)| **due_ms <= now_ms)?;
        let kind = *kind;
        self.coming.remove(&kind);
        self.plan(kind);
        if kind == Kind::Outage {
            let ms = self.rng.random_range(1..=self.mischief.outage_ms_max.max(1)) as i64;
            self.sim.broker_away(ms);
            return Some(Step::BrokerAway(ms));
        }
        let clients = self.clients();
        if clients.is_empty() {
            return None;
        }
        let client = clients[self.rng.random_range(0..clients.len())];
        if kind == Kind::Crash {
            self.crash(client);
            return Some(Step::Crashed(client));
        }
        let ms = self.rng.random_range(1..=self.mischief.pause_ms_max.max(1)) as i64;
        self.pause(client, ms);
        Some(Step::Paused(client, ms))
    }

    fn wait(&mut self, now_ms: i64) -> Step {
        let is_paused = |client: &ClientId| self.paused.contains_key(client);
        let actors = self.actors.values().filter(|entry| !is_paused(&entry.client)).map(|entry| entry.due_ms);
        let others = self.paused.values().chain(self.coming.values()).copied();
        let next_ms = actors.chain(others).chain(self.sim.next_event_ms()).min();
        let is_anybody_there = !self.actors.is_empty() || self.horizon_ms < i64::MAX;
        let next_ms = next_ms.into_iter().chain((self.horizon_ms < i64::MAX).then_some(self.horizon_ms)).min();
        let Some(next_ms) = next_ms.filter(|_| is_anybody_there) else { return Step::Over };
        let wait_ms = (next_ms - now_ms).max(1);
        self.sim.advance(wait_ms);
        Step::Waited(wait_ms)
    }
}

#[cfg(test)]
#[path = "schedule_test.rs"]
mod schedule_test;

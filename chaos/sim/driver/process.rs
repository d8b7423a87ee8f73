//! One life of one worker: the real start, the real actors, and what a process does around them.
//!
//! ```text
//! Starting ─ turns until it is a member ─► control · heart · steward · checkpoints · per slot: slot, committer, nursery
//!                                              │ each an actor of the schedule; background work is an actor of one turn
//!                                              ▼
//!                                          [`Inbox`]: new actors, ends, panics ─► the run
//! ```
//! What threads do in a real process ([`streamshield_engine::runtime::start`]: the end of one slot ends the others, then the worker leaves, then the
//! helpers end) is done here between turns.

use parking_lot::Mutex;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use streamshield_core::ports::log::Wakeup;
use streamshield_engine::clock::Clock;
use streamshield_engine::config::Spawn;
use streamshield_engine::runtime::{EngineError, JobOutcome, Part, Starting, Worker};
use streamshield_engine::turn::Turn;
use streamshield_sim::schedule::{Actor, Next};
use streamshield_sim::world::{RATE_SCALE, START_MS};
use streamshield_sim::{ClientId, Sim};

/// Between two turns of a start, as in a real process.
const START_PAUSE_MS: i64 = 5;

/// A closure that a real process would run on a thread of its own.
pub type Background = Box<dyn FnOnce() + Send>;

/// What the run has to do something about.
pub enum Event {
    Joined(Box<Worker>),
    /// The worker did not come up.
    NotStarted(EngineError),
    Ended {
        is_slot: bool,
        outcome: JobOutcome,
    },
    Panicked(String),
}

/// What happened in the turns since the last look.
#[derive(Default)]
pub struct Inbox {
    pub events: VecDeque<(ClientId, Event)>,
}

pub type SharedInbox = Rc<RefCell<Inbox>>;

/// A worker's clocks: the world's time, with an error of the wall clock.
pub struct SimClock {
    sim: Sim,
    client: ClientId,
    wall_error_ms: i64,
    /// A process that is dead and has not noticed yet must not hold the world's time up.
    lead: Mutex<Duration>,
}

impl SimClock {
    pub fn new(sim: &Sim, client: ClientId, wall_error_ms: i64) -> SimClock {
        SimClock { sim: sim.clone(), client, wall_error_ms, lead: Mutex::default() }
    }
}

impl Clock for SimClock {
    fn wall_ms(&self) -> i64 {
        self.sim.now_ms() + self.wall_error_ms + self.lead.lock().as_millis() as i64
    }

    fn steady(&self) -> Duration {
        Duration::from_millis((self.sim.now_ms() - START_MS).max(0) as u64) + *self.lead.lock()
    }

    fn pause(&self, time: Duration) {
        if self.sim.is_alive(self.client) {
            self.sim.advance((time.as_millis() as i64).max(1));
        } else {
            *self.lead.lock() += time;
        }
    }
}

/// Work that is waiting for a turn of its own.
#[derive(Clone, Default)]
pub struct Backlog(Arc<Mutex<Vec<Background>>>);

impl Backlog {
    pub fn spawn(&self) -> Spawn {
        let backlog = self.0.clone();
        Arc::new(move |_, run| backlog.lock().push(run))
    }

    pub fn take(&self) -> Vec<Background> {
        std::mem::take(&mut *self.0.lock())
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
    text.unwrap_or_else(|| "a panic without words".into())
}

/// The engine's crash points are passed on the thread of the run, in the turn of an actor: who may die there, and how often.
pub mod crash_points {
    use super::*;
    use std::sync::Once;
    use streamshield_engine::crash_points::POINTS;

    thread_local! {
        static PASSING: RefCell<Option<(Sim, ClientId, u32)>> = const { RefCell::new(None) };
    }

    /// Arms all points of this process; what they do is decided per thread.
    pub fn arm() {
        static ARMED: Once = Once::new();
        ARMED.call_once(|| {
            for point in POINTS {
                fail::cfg_callback(point, pass).expect("a point with a callback is always accepted");
            }
        });
    }

    pub(super) fn enter(sim: &Sim, client: ClientId, rate: u32) {
        PASSING.with(|passing| *passing.borrow_mut() = (rate > 0).then(|| (sim.clone(), client, rate)));
    }

    pub(super) fn leave() {
        PASSING.with(|passing| *passing.borrow_mut() = None);
    }

    fn pass() {
        PASSING.with(|passing| {
            if let Some((sim, client, rate)) = &*passing.borrow()
                && sim.is_alive(*client)
                && sim.draw(0..u64::from(RATE_SCALE)) < u64::from(*rate)
            {
                sim.fire("crash at a crash point");
                sim.crash(*client);
            }
        });
    }
}

/// What all actors of a process share.
#[derive(Clone)]
pub struct Context {
    pub sim: Sim,
    pub client: ClientId,
    pub inbox: SharedInbox,
    /// Of 10,000 passings of a crash point, the same for all lives: there are none any more once it is set to 0.
    pub crash_rate: Rc<Cell<u32>>,
}

impl Context {
    fn tell(&self, event: Event) {
        self.inbox.borrow_mut().events.push_back((self.client, event));
    }

    /// A turn of the engine's code. None: it panicked.
    fn guarded<T>(&self, name: &str, turn: impl FnOnce() -> T) -> Option<T> {
        crash_points::enter(&self.sim, self.client, self.crash_rate.get());
        let result = catch_unwind(AssertUnwindSafe(turn));
        crash_points::leave();
        result.map_err(|panic| self.tell(Event::Panicked(format!("{name} panicked: {}", panic_text(panic.as_ref()))))).ok()
    }
}

/// A worker on its way into the cluster.
pub struct Start {
    pub context: Context,
    pub starting: Starting,
}

impl Actor for Start {
    fn turn(&mut self) -> Next {
        let context = self.context.clone();
        match context.guarded("the start", || self.starting.turn()) {
            Some(Ok(None)) => Next::Idle(START_PAUSE_MS),
            Some(Ok(Some(worker))) => {
                context.tell(Event::Joined(Box::new(worker)));
                Next::Ended
            }
            Some(Err(error)) => {
                context.tell(Event::NotStarted(error));
                Next::Ended
            }
            None => Next::Ended,
        }
    }

    fn is_woken(&mut self) -> bool {
        false
    }
}

/// One actor of the engine.
pub struct Running {
    pub context: Context,
    pub part: Part,
    pub is_slot: bool,
}

impl Actor for Running {
    fn turn(&mut self) -> Next {
        let (context, part) = (&self.context, &mut self.part);
        match context.guarded(&part.name, || part.actor.turn()) {
            Some(Turn::Again) => Next::Again,
            Some(Turn::Idle(longest)) => Next::Idle(longest.as_millis() as i64),
            Some(Turn::Ended(outcome)) => {
                context.tell(Event::Ended { is_slot: self.is_slot, outcome });
                Next::Ended
            }
            None => Next::Ended,
        }
    }

    fn is_woken(&mut self) -> bool {
        self.part.wakeup.take()
    }
}

/// Background work.
pub struct Once {
    pub context: Context,
    pub run: Option<Background>,
}

impl Actor for Once {
    fn turn(&mut self) -> Next {
        if let Some(run) = self.run.take() {
            self.context.guarded("background work", run);
        }
        Next::Ended
    }

    fn is_woken(&mut self) -> bool {
        false
    }
}

/// What remains known of a worker that has joined, once its parts are actors.
pub struct Joined {
    worker: Worker,
    slots: usize,
    slots_left: usize,
    helpers_left: usize,
    wakeups: Vec<Arc<Wakeup>>,
    worst: JobOutcome,
    is_over: bool,
}

impl Joined {
    /// Takes the parts out of a worker.
    pub fn new(mut worker: Worker) -> (Joined, Vec<(bool, Part)>) {
        let slots = worker.slots.len();
        let helpers = std::mem::take(&mut worker.helpers);
        let parts: Vec<_> = std::mem::take(&mut worker.slots)
            .into_iter()
            .map(|part| (true, part))
            .chain(helpers.into_iter().map(|part| (false, part)))
            .collect();
        let wakeups = parts.iter().map(|(_, part)| part.wakeup.clone()).collect();
        let helpers_left = parts.len() - slots;
        (Joined { worker, slots, slots_left: slots, helpers_left, wakeups, worst: JobOutcome::Finished, is_over: false }, parts)
    }

    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Hands over, seals, commits and leaves.
    pub fn leave(&self, now: Duration) {
        self.worker.shared.leave(now);
        self.wake();
    }

    /// Seals and commits.
    fn stop(&self) {
        self.worker.shared.stopping.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        self.wakeups.iter().for_each(|wakeup| wakeup.raise());
    }

    /// An actor has ended. Some: so has the process, as a real one would.
    pub fn ended(&mut self, is_slot: bool, outcome: JobOutcome) -> Option<JobOutcome> {
        if is_slot {
            self.slots_left -= 1;
        } else {
            self.helpers_left -= 1;
        }
        let is_end = !matches!(outcome, JobOutcome::Finished);
        let is_news = is_slot || !matches!(outcome, JobOutcome::Stopped | JobOutcome::Finished);
        if is_news {
            if severity(&outcome) > severity(&self.worst) {
                self.worst = outcome;
            }
            if is_end {
                self.stop();
            }
            if !is_slot {
                // A slot may be the one that is stuck: nobody waits for it.
                return Some(self.worst.clone());
            }
        }
        if self.slots_left == 0 && !self.is_over {
            self.is_over = true;
            Worker::leave(&self.worker.membership, &self.worker.shared, self.slots, &self.worst);
            self.worker.shared.over.store(true, Ordering::SeqCst);
            self.stop();
        }
        (self.is_over && self.helpers_left == 0).then(|| self.worst.clone())
    }
}

/// Which outcome of several parts is the worker's.
fn severity(outcome: &JobOutcome) -> u8 {
    match outcome {
        JobOutcome::Finished => 0,
        JobOutcome::Stopped => 1,
        JobOutcome::Failed(_) => 2,
        JobOutcome::Expired(_) => 3,
        JobOutcome::TakenOver(_) => 4,
    }
}

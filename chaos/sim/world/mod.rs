//! The world that all workers of a run share.
//!
//! One value holds everything that a run depends on: the random numbers (ChaCha8 from one `u64`), the virtual time, the log core of the
//! embedded broker, the faults, the list of who is alive. The ports lock it for the length of a call; there is one thread, so
//! the lock is never waited for.
//!
//! ```text
//! call of a worker ─▶ dead? ─▶ broker away? ─▶ refused? ─▶ dies before? ─▶ effect in the log core ─▶ settle ─▶ dies after? ─▶ answer lost?
//! Sim::advance     ─▶ what was late arrives ─▶ transactions time out ─▶ readers learn of new messages
//! settle           =  events of the core ─▶ ledger ─▶ checks;  ends of partitions ─▶ readers, now or later
//! ```
//!
//! - Calls return at once. "Later" is an entry in `late` or in a reader's feed, which only [`Sim::advance`] brings about.
//! - Kafka answers EndTxn before the markers are in the partitions. `committing` holds such transactions; any further word on the same id
//!   waits for it at a real coordinator and finishes it here.
//! - No hash map is iterated, no clock is read: every order is that of a `BTreeMap` or a draw.

mod faults;
mod feeds;
mod images;
mod ledger;
mod trace;

pub use faults::{FaultPlan, RATE_SCALE};
pub use ledger::{Entry, Ledger, Message, Transaction};
pub use trace::Trace;

pub(crate) use faults::CommitFate;
pub(crate) use feeds::ReaderId;
use images::Images;
pub(crate) use ledger::messages;

use crate::checks::{Checks, Violation};
use feeds::Feeds;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use streamshield_core::ids::{Epoch, Offset, RegionId};
use streamshield_core::ports::log::{LogError, LogErrorKind, TopicPartition};
use streamshield_embedded::log_core::{self, LogCore};

/// When a run begins, in ms since 1970 (9 September 2001): early enough that no test takes it for the present.
pub const START_MS: i64 = 1_000_000_000_000;
/// Transactions older than this are aborted; the default of our Kafka client.
pub const TRANSACTION_TIMEOUT_MS: i64 = 30_000;

/// How long a reader that stood still waits for its first answer, where nothing is late.
const THAW_MS_MAX: i64 = 50;

/// One life of one worker: it dies with its handles, and its successor is another client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(u32);

struct Client {
    name: String,
    is_alive: bool,
    /// Its way to the broker is cut until then.
    cut_until_ms: i64,
}

/// An EndTxn on its way.
#[derive(Clone, Debug)]
struct LateEnd {
    transactional_id: String,
    producer: (i64, i16),
}

/// See the module text.
pub struct World {
    seed: u64,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) now_ms: i64,
    pub(crate) core: LogCore,
    pub(crate) faults: FaultPlan,
    clients: Vec<Client>,
    away_until_ms: i64,
    /// By time and number.
    late: BTreeMap<(i64, u64), LateEnd>,
    late_numbers: u64,
    /// By transactional id: acknowledged commits whose markers are still to come, with the time of that.
    committing: BTreeMap<String, (i64, (i64, i16))>,
    feeds: Feeds,
    ledger: Ledger,
    checks: Checks,
    trace: Trace,
    fired: BTreeMap<&'static str, u64>,
    spent_ms: i64,
    images: Images,
}

/// What kind of call it is: only a call with an effect can lose its answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Asks,
    Changes,
}

impl World {
    /// Draws whether a fault of this rate takes place, and counts it.
    pub(crate) fn strikes(&mut self, name: &'static str, rate: u32) -> bool {
        // Drawn also where it can't strike: one plan's runs stay comparable when a rate is set to 0.
        let strikes = self.rng.random_range(0..RATE_SCALE) < rate;
        if strikes {
            self.fire(name);
        }
        strikes
    }

    pub(crate) fn fire(&mut self, name: &'static str) {
        *self.fired.entry(name).or_default() += 1;
    }

    pub(crate) fn draw_late_ms(&mut self) -> i64 {
        let most = self.faults.late_ms_max.max(1);
        self.rng.random_range(1..=most)
    }

    pub(crate) fn is_alive(&self, client: ClientId) -> bool {
        self.clients.get(client.0 as usize).is_some_and(|client| client.is_alive)
    }

    /// The broker does not answer this client: it is away, or the way to it is cut.
    pub(crate) fn is_away(&self, client: ClientId) -> bool {
        let cut_until_ms = self.clients.get(client.0 as usize).map_or(i64::MIN, |client| client.cut_until_ms);
        self.now_ms < self.away_until_ms.max(cut_until_ms)
    }

    /// Writes one line of the trace.
    pub(crate) fn note(&mut self, client: ClientId, what: fmt::Arguments<'_>) {
        let name = self.clients.get(client.0 as usize).map_or("?", |client| client.name.as_str());
        self.trace.add(self.now_ms, name, what);
    }

    /// A client dies: nothing of it has an effect any more, and what it left open stays open.
    pub(crate) fn kill(&mut self, client: ClientId) {
        if let Some(entry) = self.clients.get_mut(client.0 as usize).filter(|entry| entry.is_alive) {
            entry.is_alive = false;
            self.feeds.forget_client(client);
            self.note(client, format_args!("dies"));
        }
    }

    /// Draws whether the client dies here.
    pub(crate) fn dies_now(&mut self, client: ClientId) -> bool {
        let dies = self.strikes("crash in call", self.faults.crash_in_call);
        if dies {
            self.kill(client);
        }
        dies
    }

    /// A call takes some time: its actor's own, or, now and then, everybody's, so that something may arrive in the middle of it.
    pub(crate) fn spend_time(&mut self) {
        let most = self.faults.call_ms_max.max(0);
        let ms = self.rng.random_range(0..=most);
        if self.strikes("call waits", self.faults.call_waits) {
            self.advance(self.now_ms + ms);
        } else {
            self.spent_ms += ms;
        }
    }

    /// Everything that may happen to a call beside its effect; see the module text.
    pub(crate) fn call<T: fmt::Debug>(
        &mut self,
        client: ClientId,
        kind: Call,
        what: &str,
        effect: impl FnOnce(&mut World) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        if !self.is_alive(client) {
            return Err(dead());
        }
        self.spend_time();
        let outcome = self.call_alive(client, kind, effect);
        match &outcome {
            Ok(value) => self.note(client, format_args!("{what} -> {value:?}")),
            Err(error) => self.note(client, format_args!("{what} -> {:?}: {}", error.kind, error.message)),
        }
        outcome
    }

    fn call_alive<T>(
        &mut self,
        client: ClientId,
        kind: Call,
        effect: impl FnOnce(&mut World) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        if self.is_away(client) {
            return Err(retry("the broker is away"));
        }
        if self.strikes("refused", self.faults.refused) {
            return Err(retry("refused"));
        }
        if kind == Call::Asks {
            return effect(self);
        }
        if self.dies_now(client) {
            return Err(dead());
        }
        let outcome = effect(self);
        self.settle();
        if self.dies_now(client) {
            return Err(dead());
        }
        if outcome.is_ok() && self.strikes("answer lost", self.faults.answer_lost) {
            return Err(retry("the answer was lost"));
        }
        outcome
    }

    /// Finishes a commit that was acknowledged before its markers were written: the coordinator lets nothing else on the id before.
    pub(crate) fn finish_commit(&mut self, transactional_id: &str) {
        if let Some((_, producer)) = self.committing.remove(transactional_id) {
            let ended = self.core.end_transaction(self.now_ms, transactional_id, producer, true);
            self.settle();
            if let Err(refusal) = ended {
                // It was accepted while the producer was current, and nothing else was let through since.
                let what = format!("E-3: the commit of {transactional_id} was acknowledged and then refused: {refusal}");
                self.checks.add_violation(self.now_ms, what);
            }
        }
    }

    /// Acknowledges a commit now and writes its markers later, at `until_ms` at the latest.
    pub(crate) fn commit_later(&mut self, transactional_id: &str, producer: (i64, i16), until_ms: i64) {
        let due_ms = (self.now_ms + self.draw_late_ms()).min(until_ms);
        self.committing.insert(transactional_id.to_owned(), (due_ms, producer));
    }

    /// Sends an EndTxn (for a commit) that arrives later.
    pub(crate) fn end_late(&mut self, transactional_id: &str, producer: (i64, i16)) {
        let due_ms = self.now_ms + self.draw_late_ms();
        self.late_numbers += 1;
        let end = LateEnd { transactional_id: transactional_id.to_owned(), producer };
        self.late.insert((due_ms, self.late_numbers), end);
    }

    /// Takes over what a call of the log core has changed.
    pub(crate) fn settle(&mut self) {
        let events = self.core.take_events();
        if events.is_empty() {
            return;
        }
        for entry in self.ledger.take(&events) {
            if let Entry::Ended(transaction) = &entry {
                let Transaction { transactional_id, number, is_committed, messages, .. } = transaction;
                let (id, count) = (transactional_id, messages.len());
                self.trace.add(self.now_ms, "log", format_args!("{id}#{number} ends, committed {is_committed}, {count} messages"));
            }
            self.checks.take(&entry, self.now_ms);
        }
        let late = if self.faults.late_ms_max > 0 { self.faults.records_late } else { 0 };
        let World { feeds, core, rng, now_ms, faults, .. } = self;
        let delayed = feeds.settle(core, &events, || {
            let is_late = rng.random_range(0..RATE_SCALE) < late;
            is_late.then(|| *now_ms + rng.random_range(1..=faults.late_ms_max))
        });
        if delayed > 0 {
            *self.fired.entry("records late").or_default() += delayed;
        }
    }

    pub(crate) fn feeds(&mut self) -> (&mut Feeds, &LogCore) {
        (&mut self.feeds, &self.core)
    }

    fn advance(&mut self, to_ms: i64) {
        while let Some(due_ms) = self.next_event_ms().filter(|due_ms| *due_ms <= to_ms) {
            self.now_ms = self.now_ms.max(due_ms);
            self.arrive();
        }
        self.now_ms = to_ms;
        self.core.tick(to_ms);
        self.settle();
    }

    /// Lets everything that is due now take place.
    fn arrive(&mut self) {
        let due: Vec<_> = self.committing.iter().filter(|(_, (due_ms, _))| *due_ms <= self.now_ms).map(|(id, _)| id.clone()).collect();
        due.iter().for_each(|transactional_id| self.finish_commit(transactional_id));
        // Before the transaction that it might belong to is timed out.
        self.core.tick(self.now_ms);
        self.settle();
        while let Some(entry) = self.late.first_entry().filter(|entry| entry.key().0 <= self.now_ms) {
            let LateEnd { transactional_id, producer } = entry.remove();
            self.finish_commit(&transactional_id);
            let ended = self.core.end_transaction(self.now_ms, &transactional_id, producer, true);
            self.trace.add(self.now_ms, "log", format_args!("late end of {transactional_id} {producer:?} -> {ended:?}"));
            self.settle();
        }
        self.feeds.refresh(&self.core, self.now_ms);
    }

    /// When something happens by itself next.
    fn next_event_ms(&self) -> Option<i64> {
        let late = self.late.keys().next().map(|(due_ms, _)| *due_ms);
        let committing = self.committing.values().map(|(due_ms, _)| *due_ms).min();
        [late, committing, self.feeds.next_refresh_ms()].into_iter().flatten().min()
    }
}

/// A world, shared by all its handles.
#[derive(Clone)]
pub struct Sim(Arc<Mutex<World>>);

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = self.0.lock();
        f.debug_struct("Sim").field("seed", &world.seed).field("now_ms", &world.now_ms).finish_non_exhaustive()
    }
}

impl Sim {
    pub fn new(seed: u64, faults: FaultPlan) -> Sim {
        let mut world = World {
            seed,
            rng: ChaCha8Rng::seed_from_u64(seed),
            now_ms: START_MS,
            core: LogCore::new(log_core::Limits::default(), seed),
            faults,
            clients: Vec::new(),
            away_until_ms: i64::MIN,
            late: BTreeMap::new(),
            late_numbers: 0,
            committing: BTreeMap::new(),
            feeds: Feeds::default(),
            ledger: Ledger::default(),
            checks: Checks::default(),
            trace: Trace::default(),
            fired: BTreeMap::new(),
            spent_ms: 0,
            images: Images::default(),
        };
        let plan = format!("{:?}", world.faults);
        world.trace.add(START_MS, "world", format_args!("seed {seed} {plan}"));
        Sim(Arc::new(Mutex::new(world)))
    }

    pub(crate) fn world(&self) -> parking_lot::MutexGuard<'_, World> {
        self.0.lock()
    }

    /// Virtual time in ms since 1970.
    pub fn now_ms(&self) -> i64 {
        self.world().now_ms
    }

    /// Moves the time on; everything that becomes due takes place in its order.
    pub fn advance(&self, by_ms: i64) {
        let mut world = self.world();
        let to_ms = world.now_ms + by_ms.max(0);
        world.advance(to_ms);
    }

    /// When something happens by itself next, if anything is on its way.
    pub fn next_event_ms(&self) -> Option<i64> {
        self.world().next_event_ms()
    }

    /// Ends of transactions are on their way that nobody waits for: EndTxn that arrives late, markers of commits that are acknowledged.
    pub fn has_late_ends(&self) -> bool {
        let world = self.world();
        !world.late.is_empty() || !world.committing.is_empty()
    }

    /// The actor's time that calls have taken since the last question, in ms.
    pub fn take_spent_ms(&self) -> i64 {
        std::mem::take(&mut self.world().spent_ms)
    }

    /// A call of another port takes some of its actor's time.
    pub fn spend_ms(&self, ms: i64) {
        self.world().spent_ms += ms.max(0);
    }

    /// Somebody has found a broken invariant.
    pub fn violation(&self, what: String) {
        let mut world = self.world();
        let now_ms = world.now_ms;
        world.trace.add(now_ms, "check", format_args!("{what}"));
        world.checks.add_violation(now_ms, what);
    }

    /// A new life of a worker.
    pub fn client(&self, name: &str) -> ClientId {
        let mut world = self.world();
        let client = ClientId(world.clients.len() as u32);
        world.clients.push(Client { name: name.to_owned(), is_alive: true, cut_until_ms: i64::MIN });
        world.note(client, format_args!("starts"));
        client
    }

    pub fn is_alive(&self, client: ClientId) -> bool {
        self.world().is_alive(client)
    }

    /// The process is gone. Its handles are dead, its open transaction stays open until somebody fences it or its time is over.
    pub fn crash(&self, client: ClientId) {
        self.world().kill(client);
    }

    /// The broker does not answer for a while.
    pub fn broker_away(&self, for_ms: i64) {
        let mut world = self.world();
        world.away_until_ms = world.now_ms + for_ms;
        world.fire("broker away");
        let now_ms = world.now_ms;
        world.trace.add(now_ms, "log", format_args!("away for {for_ms} ms"));
    }

    /// A client stands still: its clock goes on, and it hears of nothing.
    pub(crate) fn freeze(&self, client: ClientId) {
        self.world().feeds.freeze(client);
    }

    /// It goes on, and hears later of what came meanwhile: its first fetch takes a moment.
    pub(crate) fn thaw(&self, client: ClientId) {
        let mut world = self.world();
        let World { feeds, core, rng, now_ms, faults, .. } = &mut *world;
        let most = faults.late_ms_max.max(THAW_MS_MAX);
        feeds.thaw(core, client, || *now_ms + rng.random_range(1..=most));
    }

    /// One worker's way to the broker is cut for a while; the others have theirs.
    pub fn cut(&self, client: ClientId, for_ms: i64) {
        let mut world = self.world();
        let until_ms = world.now_ms + for_ms;
        if let Some(entry) = world.clients.get_mut(client.0 as usize) {
            entry.cut_until_ms = until_ms;
        }
        world.fire("worker cut off");
        world.note(client, format_args!("is cut off for {for_ms} ms"));
    }

    /// Ends all outages and cuts.
    pub fn reconnect(&self) {
        let mut world = self.world();
        world.away_until_ms = i64::MIN;
        world.clients.iter_mut().for_each(|client| client.cut_until_ms = i64::MIN);
    }

    /// Counts what the driver has done by itself, beside the faults that calls meet.
    pub fn fire(&self, name: &'static str) {
        self.world().fire(name);
    }

    /// Faults from now on.
    pub fn set_faults(&self, faults: FaultPlan) {
        let mut world = self.world();
        let now_ms = world.now_ms;
        world.trace.add(now_ms, "world", format_args!("{faults:?}"));
        world.faults = faults;
    }

    pub fn faults(&self) -> FaultPlan {
        self.world().faults.clone()
    }

    /// A random number for the driver, from the same seed.
    pub fn draw(&self, range: std::ops::Range<u64>) -> u64 {
        self.world().rng.random_range(range)
    }

    /// A generator of its own for a part of the driver, from the same seed.
    pub fn generator(&self) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(self.world().rng.random())
    }

    /// The faults that took place, by name.
    pub fn fired(&self) -> BTreeMap<&'static str, u64> {
        self.world().fired.clone()
    }

    /// Hash over all calls and outcomes so far.
    pub fn trace_hash(&self) -> u64 {
        self.world().trace.hash()
    }

    /// How many calls and events there were, and the last lines of them.
    pub fn trace_tail(&self, lines: usize) -> (u64, Vec<String>) {
        let world = self.world();
        (world.trace.calls(), world.trace.tail(lines).map(str::to_owned).collect())
    }

    /// Prints every line of the trace from now on.
    pub fn echo_trace(&self) {
        self.world().trace.echo();
    }

    /// A line in the trace from the driver.
    pub fn note(&self, who: &str, what: &str) {
        let mut world = self.world();
        let now_ms = world.now_ms;
        world.trace.add(now_ms, who, format_args!("{what}"));
    }

    /// Sets what is checked while the log grows.
    pub fn set_checks(&self, checks: Checks) {
        self.world().checks = checks;
    }

    pub fn has_violation(&self) -> bool {
        !self.world().checks.violations().is_empty()
    }

    /// Up to where this client has heard of a partition: its slowest reader, if it has one there.
    pub fn heard(&self, client: ClientId, partition: &TopicPartition) -> Option<Offset> {
        self.world().feeds.heard_by(client, partition)
    }

    /// What was found so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.world().checks.violations().to_vec()
    }

    /// A store holds this state of a region at this epoch. E-4: whoever holds the same epoch holds the same.
    pub(crate) fn image(&self, holder: &str, region: RegionId, epoch: Epoch, digest: u64) {
        let mut world = self.world();
        if let Some(what) = world.images.compare(holder, region, epoch, digest) {
            let now_ms = world.now_ms;
            world.checks.add_violation(now_ms, what);
        }
    }

    /// States that were compared with another one of the same region and epoch.
    pub fn images_compared(&self) -> u64 {
        self.world().images.compared()
    }

    /// Looks at the log core itself, past all faults.
    pub fn with_core<T>(&self, look: impl FnOnce(&LogCore) -> T) -> T {
        look(&self.world().core)
    }
}

pub(crate) fn retry(message: &str) -> LogError {
    LogError::new(LogErrorKind::Retry, message)
}

fn dead() -> LogError {
    retry("this process is dead")
}

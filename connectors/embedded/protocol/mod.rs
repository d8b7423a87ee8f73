//! The protocol front: Kafka requests over loopback TCP, answered from the log core.
//!
//! One thread runs a current-thread runtime; the core sits in a `RefCell`, so a request borrows it, never waits while it
//! holds it, and there is no lock. A connection handles its requests one after the other, as Kafka does. What
//! waits: a fetch with too little to return, until one of its partitions changes or its time is over; joins and syncs, until
//! the core answers under their token.
//!
//! A change goes: core → journal → wake readers → answer. When the journal can't be written, the broker stops: connections
//! close without an answer, so clients know that they know nothing.

pub mod admin;
pub mod codes;
mod configs;
mod connection;
mod dispatch;
mod groups;
mod records;
mod transactions;
mod versions;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kafka_protocol::messages::TopicName;
use kafka_protocol::protocol::StrBytes;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};

use crate::error::EmbeddedError;
use crate::journal::Journal;
use crate::log_core::{Event, GroupReply, LogCore, LogError, Token};

/// The id of the only broker.
pub const BROKER_ID: i32 = 1;
/// A request larger than this closes its connection.
pub const REQUEST_BYTES_MAX: usize = 100 << 20;
/// Connections beyond this are closed at once.
pub const CONNECTIONS_MAX: usize = 4096;
/// How often time passes for the core.
const TICK: Duration = Duration::from_millis(20);

/// What the front is told.
#[derive(Clone, Debug)]
pub struct FrontConfig {
    pub cluster_id: String,
    pub advertised_host: String,
    pub advertised_port: u16,
    /// Partitions of topics that clients create by asking for them; 0 switches that off.
    pub auto_create_partitions: i32,
    pub default_partitions: i32,
}

/// The broker has stopped and answers nothing more.
#[derive(Debug, thiserror::Error)]
#[error("the broker has stopped")]
pub struct Stopped;

/// The clock of the front: wall time at the start, then monotonic, so that time-outs are not moved by a clock that is set.
#[derive(Debug)]
pub struct Clock {
    started_ms: i64,
    started: Instant,
}

impl Clock {
    pub fn start() -> Clock {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { started_ms: since_epoch.as_millis() as i64, started: Instant::now() }
    }
    pub fn now_ms(&self) -> i64 {
        self.started_ms + self.started.elapsed().as_millis() as i64
    }
}

struct State {
    core: LogCore,
    journal: Option<Journal>,
    /// Fetches that wait for a partition to change.
    waiting_fetches: BTreeMap<(Rc<str>, i32), Vec<Rc<Notify>>>,
    waiting_members: BTreeMap<Token, oneshot::Sender<GroupReply>>,
    next_token: u64,
    failure: Option<EmbeddedError>,
}

/// The served broker; one per thread.
pub struct Front {
    pub(crate) config: FrontConfig,
    clock: Clock,
    state: RefCell<State>,
    connections: Cell<usize>,
    stopping: Notify,
}

impl Front {
    pub fn new(config: FrontConfig, clock: Clock, core: LogCore, journal: Option<Journal>) -> Front {
        let state =
            State { core, journal, waiting_fetches: BTreeMap::new(), waiting_members: BTreeMap::new(), next_token: 1, failure: None };
        Front { config, clock, state: RefCell::new(state), connections: Cell::new(0), stopping: Notify::new() }
    }

    /// Serves until `stop` completes or the journal fails.
    pub async fn serve(self: Rc<Front>, listener: TcpListener, stop: oneshot::Receiver<()>) -> Result<(), EmbeddedError> {
        let ticking = tokio::task::spawn_local(self.clone().tick_forever());
        let accepting = tokio::task::spawn_local(self.clone().accept(listener));
        tokio::select! {
            _ = stop => {}
            () = self.stopping.notified() => {}
        }
        ticking.abort();
        accepting.abort();
        let mut state = self.state.borrow_mut();
        match (state.failure.take(), state.journal.take()) {
            (Some(failure), _) => Err(failure),
            (None, Some(mut journal)) => journal.close(),
            (None, None) => Ok(()),
        }
    }

    async fn accept(self: Rc<Front>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) if self.connections.get() < CONNECTIONS_MAX => {
                    self.connections.set(self.connections.get() + 1);
                    tokio::task::spawn_local(connection::serve(self.clone(), stream));
                }
                Ok(_) => tracing::warn!(CONNECTIONS_MAX, "a connection was closed: the embedded broker serves no more"),
                Err(error) => {
                    // out of file handles, most likely: give others time to close
                    tracing::warn!(%error, "the embedded broker could not accept a connection");
                    tokio::time::sleep(TICK).await;
                }
            }
        }
    }

    async fn tick_forever(self: Rc<Front>) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let ticked = self.change(|core, now_ms| core.tick(now_ms));
            if ticked.is_err() || self.tick_journal().is_err() {
                return;
            }
        }
    }

    fn tick_journal(&self) -> Result<(), Stopped> {
        let mut state = self.state.borrow_mut();
        let State { core, journal: Some(journal), .. } = &mut *state else { return Ok(()) };
        let result = journal.tick(self.clock.now_ms(), core);
        result.map_err(|failure| self.fail(&mut state, failure))
    }

    fn fail(&self, state: &mut State, failure: EmbeddedError) -> Stopped {
        tracing::error!(%failure, "the embedded broker stops: what it can't write it must not acknowledge");
        state.failure.get_or_insert(failure);
        self.stopping.notify_one();
        Stopped
    }

    /// Reads from the core.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&LogCore) -> T) -> T {
        read(&self.state.borrow().core)
    }

    /// Changes the core; what changed is in the journal, and readers are awake, when this returns.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut LogCore, i64) -> T) -> Result<T, Stopped> {
        let mut state = self.state.borrow_mut();
        if state.failure.is_some() {
            return Err(Stopped);
        }
        let answer = change(&mut state.core, self.clock.now_ms());
        let events = state.core.take_events();
        if let Some(journal) = state.journal.as_mut()
            && let Err(failure) = journal.write(&events)
        {
            return Err(self.fail(&mut state, failure));
        }
        wake_fetches(&mut state, &events);
        for (token, reply) in state.core.groups().take_replies() {
            if let Some(waiting) = state.waiting_members.remove(&token) {
                let _ = waiting.send(reply); // its connection may be gone
            }
        }
        Ok(answer)
    }

    /// A change that is answered under a token.
    pub(crate) async fn wait_for_group(&self, ask: impl FnOnce(&mut LogCore, i64, Token)) -> Result<GroupReply, Stopped> {
        let (sender, receiver) = oneshot::channel();
        let token = {
            let mut state = self.state.borrow_mut();
            let token = Token(state.next_token);
            state.next_token += 1;
            state.waiting_members.insert(token, sender);
            token
        };
        self.change(|core, now_ms| ask(core, now_ms, token))?;
        receiver.await.map_err(|_| Stopped)
    }

    /// Asks to be woken when one of these partitions changes.
    pub(crate) fn watch(&self, partitions: impl Iterator<Item = (Rc<str>, i32)>, notify: &Rc<Notify>) {
        let mut state = self.state.borrow_mut();
        for partition in partitions {
            state.waiting_fetches.entry(partition).or_default().push(notify.clone());
        }
    }

    /// Takes back what [`Front::watch`] asked for.
    pub(crate) fn unwatch(&self, partitions: impl Iterator<Item = (Rc<str>, i32)>, notify: &Rc<Notify>) {
        let mut state = self.state.borrow_mut();
        for partition in partitions {
            if let Some(waiting) = state.waiting_fetches.get_mut(&partition) {
                waiting.retain(|other| !Rc::ptr_eq(other, notify));
                if waiting.is_empty() {
                    state.waiting_fetches.remove(&partition);
                }
            }
        }
    }
}

fn wake_fetches(state: &mut State, events: &[Event]) {
    if state.waiting_fetches.is_empty() {
        return;
    }
    let wake = |waiting: Vec<Rc<Notify>>| waiting.iter().for_each(|notify| notify.notify_one());
    for event in events {
        let (topic, partition) = match event {
            Event::BatchAppended { topic, partition, .. } => (&**topic, *partition),
            Event::StartMoved { topic, partition, .. } => (topic.as_str(), *partition),
            Event::TopicDeleted { topic } => {
                let gone: Vec<_> = state.waiting_fetches.keys().filter(|(name, _)| **name == **topic).cloned().collect();
                gone.iter().filter_map(|partition| state.waiting_fetches.remove(partition)).for_each(wake);
                continue;
            }
            _ => continue,
        };
        if let Some(waiting) = state.waiting_fetches.remove(&(Rc::from(topic), partition)) {
            wake(waiting);
        }
    }
}

pub(crate) fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}
pub(crate) fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}
pub(crate) fn text_of(error: LogError) -> Option<StrBytes> {
    Some(StrBytes::from_string(error.to_string()))
}

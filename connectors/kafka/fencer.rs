//! [`KafkaFencer`]: fences a dead producer within tens of milliseconds, with connections that were made before.
//!
//! Fencing is InitProducerId on the dead producer's transactional id. If that producer had a transaction open, the first
//! answer is CONCURRENT_TRANSACTIONS (the abort has begun), and librdkafka asks again after 500 ms, hard-coded. A transaction
//! that is open holds back every reader behind it, so this wait would be most of a take-over. Therefore a fencer holds several
//! producers of the id and fires them one after the other; whichever asks first after the abort is done gets its answer at once:
//!
//! ```text
//! prepare   #1 ─ connect     #2 ─ connect     #3 ─ connect          nobody is fenced
//! fence     #1 ─ init ─► CONCURRENT (the broker aborts) ··· 500 ms ··· (not waited for)
//!            +30 ms       #2 ─ init ─► ok ─► fence returns
//!            +80 ms                        #3: sees that it is over, ends
//! ```
//!
//! - **The first success is the proof**: Kafka grants an id only when the earlier transaction's markers are in every partition.
//! - **Each of them raises the producer epoch**, so they fence each other as well. An error of one counts only if all have failed.
//!   For the same reason a fencer is for ids whose producer must not go on, never for the caller's own.
//! - **Connecting is all that can be done before.** librdkafka asks for the transaction coordinator within InitProducerId only, but a
//!   connected client does that in one round trip. Brokers close connections that are idle for minutes, so the log's serving thread asks
//!   for the cluster's metadata now and then ([`keep_connected`]), and the later producers do so while they wait for their turn.
//! - The losers end in the background, within [`INIT_TRY`] and the closing of a client. A client that is being closed can take
//!   half a second; that never happens on the caller's thread.
//!
//! Invariant O-1 rests on it: what the fenced producer has not committed when `fence` returns, it never commits. M-1: a fencer holds
//! [`FIRE_AFTER`]`.len()` clients with queues of one message.
//!
//! On failure: `Retry` says that nothing is certain, neither that the id is fenced nor that it is not.

use crate::context::WriterEvents;
use crate::errors::log_error;
use crate::log::QUERY_TIMEOUT;
use crate::produce::WriterClient;
use crate::properties::Properties;
use parking_lot::{Condvar, Mutex};
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use streamshield_core::ports::log::{Fencer, LogError, LogErrorKind};

/// When each producer of a fencer asks, counted from the call. An abort takes 5 to 60 ms on a busy broker.
const FIRE_AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_millis(30), Duration::from_millis(80)];
/// How long fencing may take.
const FENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// One wait for an answer; in between a producer looks whether another one was faster.
const INIT_TRY: Duration = Duration::from_millis(250);
/// How long a connection may take during a fence, and for one that is only kept alive.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A topic that need not exist: the question is for the brokers.
const NO_TOPIC: &str = "__none__";

/// A [`Fencer`] over librdkafka.
pub struct KafkaFencer {
    what: String,
    clients: Vec<Arc<WriterClient>>,
    is_connected: bool,
}

impl KafkaFencer {
    /// Makes the producers without connecting them.
    pub(crate) fn new(properties: &Properties, transactional_id: &str) -> Result<Self, LogError> {
        let what = format!("fence '{transactional_id}'");
        let mut fencer = KafkaFencer { what, clients: Vec::with_capacity(FIRE_AFTER.len()), is_connected: false };
        for _ in FIRE_AFTER {
            let client = properties.fence(transactional_id).create_with_context(WriterEvents::default());
            fencer.clients.push(Arc::new(client.map_err(|error| log_error(&fencer.what, &error))?));
        }
        Ok(fencer)
    }

    /// Connects all of them.
    pub(crate) fn connect(&mut self) -> Result<(), LogError> {
        for client in &self.clients {
            connect(client, QUERY_TIMEOUT).map_err(|error| log_error(&format!("prepare to {}", self.what), &error))?;
        }
        self.is_connected = true;
        Ok(())
    }

    /// Its clients, to be served while it waits.
    pub(crate) fn clients(&self) -> &[Arc<WriterClient>] {
        &self.clients
    }
}

impl Fencer for KafkaFencer {
    fn fence(mut self: Box<Self>) -> Result<(), LogError> {
        let race = Arc::new(Race { started: Instant::now(), is_over: Mutex::new(false), over: Condvar::new() });
        let (sender, answers) = sync_channel(FIRE_AFTER.len());
        let mut refusals = Vec::new();
        for (number, (client, after)) in std::mem::take(&mut self.clients).into_iter().zip(FIRE_AFTER).enumerate() {
            let runner = Runner { client, after, connects: number > 0 || !self.is_connected, race: Arc::clone(&race) };
            if let Err(error) = runner.start(self.what.clone(), sender.clone()) {
                refusals.push(LogError::new(LogErrorKind::Retry, format!("{}: start a thread: {error}", self.what)));
            }
        }
        drop(sender);
        let outcome = loop {
            let left = FENCE_TIMEOUT.saturating_sub(race.started.elapsed());
            match answers.recv_timeout(left) {
                Ok(Ok(())) => break Ok(()),
                Ok(Err(refusal)) => refusals.push(refusal),
                Err(RecvTimeoutError::Timeout) => {
                    let text = format!("{}: no answer within {} s", self.what, FENCE_TIMEOUT.as_secs());
                    break Err(LogError::new(LogErrorKind::Retry, text));
                }
                Err(RecvTimeoutError::Disconnected) => break Err(verdict(&self.what, refusals)),
            }
        };
        race.end();
        outcome
    }
}

impl Drop for KafkaFencer {
    /// Closing a client takes a moment: not on the caller's thread.
    fn drop(&mut self) {
        let clients = std::mem::take(&mut self.clients);
        if !clients.is_empty() {
            // Without a thread they are closed here after all, when the closure is dropped.
            let _ = std::thread::Builder::new().name("kafka-close".into()).spawn(move || drop(clients));
        }
    }
}

/// What the runners of one fence share.
struct Race {
    started: Instant,
    is_over: Mutex<bool>,
    over: Condvar,
}

impl Race {
    fn end(&self) {
        *self.is_over.lock() = true;
        self.over.notify_all();
    }

    fn is_over(&self) -> bool {
        *self.is_over.lock() || self.started.elapsed() >= FENCE_TIMEOUT
    }

    /// Waits for a runner's turn; false when the race is over by then.
    fn wait_for(&self, turn: Duration) -> bool {
        let mut is_over = self.is_over.lock();
        while !*is_over && !self.over.wait_until(&mut is_over, self.started + turn).timed_out() {}
        !*is_over
    }
}

/// One producer with its turn.
struct Runner {
    client: Arc<WriterClient>,
    after: Duration,
    connects: bool,
    race: Arc<Race>,
}

impl Runner {
    fn start(self, what: String, answers: SyncSender<Result<(), LogError>>) -> std::io::Result<()> {
        let thread = std::thread::Builder::new().name("kafka-fence".into());
        thread.spawn(move || {
            if let Some(answer) = self.run(&what) {
                // Nobody listens any more once another one was faster.
                let _ = answers.send(answer);
            }
        })?;
        Ok(())
    }

    /// The answer, or none when the race was over before.
    fn run(&self, what: &str) -> Option<Result<(), LogError>> {
        if self.connects
            && let Err(error) = connect(&self.client, RECONNECT_TIMEOUT)
        {
            tracing::debug!(target: "kafka", "{what}: {error}; it may still succeed");
        }
        if !self.race.wait_for(self.after) {
            return None;
        }
        loop {
            // Tokens are handed over by the event queue.
            self.client.poll(Duration::ZERO);
            let error = match self.client.init_transactions(INIT_TRY) {
                Ok(()) => return Some(Ok(())),
                Err(error) => error,
            };
            let is_retriable = matches!(&error, KafkaError::Transaction(native) if native.is_retriable());
            if !is_retriable {
                return Some(Err(log_error(what, &error)));
            }
            if self.race.is_over() {
                return None;
            }
        }
    }
}

/// What it means that all have failed. A refusal as "fenced" comes from a sibling that was faster and then failed itself.
fn verdict(what: &str, refusals: Vec<LogError>) -> LogError {
    let is_fatal = |refusal: &&LogError| refusal.kind == LogErrorKind::Fatal;
    let told = refusals.iter().find(is_fatal).or(refusals.first());
    let kind = if refusals.iter().any(|refusal| is_fatal(&refusal)) { LogErrorKind::Fatal } else { LogErrorKind::Retry };
    LogError::new(kind, told.map_or_else(|| format!("{what}: no answer"), |refusal| refusal.message.clone()))
}

fn connect(client: &WriterClient, timeout: Duration) -> Result<(), KafkaError> {
    client.poll(Duration::ZERO);
    client.client().fetch_metadata(Some(NO_TOPIC), timeout).map(drop)
}

/// Keeps the connection of a prepared client alive; false when no broker answers.
pub(crate) fn keep_connected(client: &WriterClient) -> bool {
    connect(client, RECONNECT_TIMEOUT).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(kind: LogErrorKind) -> LogError {
        LogError::new(kind, format!("{kind:?}"))
    }

    #[test]
    fn producers_that_fenced_each_other_leave_the_outcome_open() {
        let error = verdict("fence 'x'", vec![refusal(LogErrorKind::Fenced), refusal(LogErrorKind::Retry)]);
        assert_eq!(error.kind, LogErrorKind::Retry);
        assert_eq!(verdict("fence 'x'", vec![]).kind, LogErrorKind::Retry);
    }

    #[test]
    fn an_access_that_is_refused_is_not_tried_again() {
        let error = verdict("fence 'x'", vec![refusal(LogErrorKind::Retry), refusal(LogErrorKind::Fatal)]);
        assert_eq!((error.kind, error.message.as_str()), (LogErrorKind::Fatal, "Fatal"));
    }

    #[test]
    fn a_turn_that_comes_after_the_end_is_not_taken() {
        let race = Arc::new(Race { started: Instant::now(), is_over: Mutex::new(false), over: Condvar::new() });
        assert!(race.wait_for(Duration::from_millis(1)));
        let waiting = Arc::clone(&race);
        let thread = std::thread::spawn(move || waiting.wait_for(Duration::from_secs(600)));
        race.end();
        assert!(!thread.join().expect("no panic"), "it was woken long before its turn");
    }
}

//! The transactional producer of a slot, and what its commits are worth.
//!
//! ```text
//! begin ─► send… ─► commit:  drain (own deadline) ─► EndTxn ─► count ENDTXN lines ─► outcome
//!                              │ a message failed        │ error          │ not one clean answer
//!                              ▼                         ▼                ▼
//!                           Aborted                InDoubt / Fenced     InDoubt
//! ```
//!
//! - **Drain first.** rdkafka's own flush sleeps in slices of 100 ms, which would be the price of every commit; ours
//!   waits on librdkafka's own condition and makes it send what lingers.
//! - **In doubt unless proven clean.** librdkafka retries EndTxn silently, on another connection if need be, and a late
//!   retry may end a later transaction of the same producer epoch (KIP-890). Its client has no protection against that,
//!   so a commit counts only if its one answer was clean ([`crate::context::EndTxnLines`]). After anything else the
//!   writer is dropped, and the next one's InitProducerId raises the epoch, which shuts the stray request out.
//! - **Fenced proves nothing**: brokers also report a coordinator time-out so. The engine looks at the log.
//! - A fatal error is looked for before `begin`, because librdkafka can block for ever in a call after one.
//!
//! Every call has a deadline derived from `transaction.timeout.ms`.

use crate::context::WriterEvents;
use crate::errors::{code_error, kind_of, log_error};
use crate::produce::{TopicHandle, WriterClient, flush};
use crate::properties::Properties;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, PurgeConfig};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::ports::log::{CommitOutcome, LogError, LogErrorKind, MessageSet, OutMessage, TransactionalWriter};

/// How long a producer may take to get its id and fence its predecessor.
const INIT_TIMEOUT: Duration = Duration::from_secs(30);
/// One try of it; in between the client's events are served.
const INIT_TRY: Duration = Duration::from_secs(5);
/// How long `send` waits for room in a full queue.
const QUEUE_FULL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an abort may take; the successor's InitProducerId aborts as well.
const ABORT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long to wait for room in a full queue at a time.
const TICK: Duration = Duration::from_millis(1);
/// How often reports of failed messages are served while a commit waits for its messages.
const FLUSH_MS: i32 = 20;

/// A [`TransactionalWriter`] over librdkafka.
pub struct KafkaWriter {
    // Handles before their client.
    topics: BTreeMap<Arc<str>, TopicHandle>,
    client: Arc<WriterClient>,
    transactional_id: String,
    timeout: Duration,
    /// Messages of the open transaction.
    sent: usize,
    /// Why this writer may not be used any more.
    spent: Option<String>,
}

impl KafkaWriter {
    /// Makes a producer; earlier ones with this id are fenced when it returns.
    pub(crate) fn new(properties: &Properties, transactional_id: &str) -> Result<Self, LogError> {
        let what = format!("make the writer '{transactional_id}'");
        let client: WriterClient =
            properties.writer(transactional_id).create_with_context(WriterEvents::default()).map_err(|error| log_error(&what, &error))?;
        init_transactions(&client, &what)?;
        let timeout = properties.transaction_timeout();
        Ok(KafkaWriter {
            topics: BTreeMap::new(),
            client: Arc::new(client),
            transactional_id: transactional_id.to_string(),
            timeout,
            sent: 0,
            spent: None,
        })
    }

    fn topic(&mut self, name: &Arc<str>) -> Result<&TopicHandle, LogError> {
        if !self.topics.contains_key(name) {
            let handle = TopicHandle::new(&self.client, name)
                .ok_or_else(|| LogError::new(LogErrorKind::Fatal, format!("'{name}' is no topic's name")))?;
            self.topics.insert(Arc::clone(name), handle);
        }
        Ok(&self.topics[name])
    }

    /// Serves what is there without waiting: delivery reports and log lines.
    fn serve(&self) {
        // Events count as in flight until they are served; messages on the wire stay.
        let mut before = i32::MAX;
        loop {
            let left = self.client.in_flight_count();
            if left == 0 || left >= before {
                return;
            }
            before = left;
            self.client.poll(Duration::ZERO);
        }
    }

    /// Waits until every message has its outcome; false when the deadline came first.
    fn drain(&self, deadline: Instant) -> bool {
        loop {
            let is_delivered = flush(&self.client, FLUSH_MS);
            self.serve();
            if is_delivered || Instant::now() >= deadline {
                return is_delivered;
            }
        }
    }

    /// Marks the writer as spent and makes the error of it.
    fn spend(&mut self, why: String) -> LogError {
        let message = format!("the writer '{}' must be replaced: {why}", self.transactional_id);
        self.spent = Some(why);
        LogError::new(LogErrorKind::Fenced, message)
    }

    fn queue_error(&mut self, topic: &str, code: Code) -> LogError {
        let what = format!("send to '{topic}'");
        match (kind_of(code), self.client.client().fatal_error()) {
            (_, Some((fatal, reason))) => self.spend(format!("{what}: {fatal}: {reason}")),
            (LogErrorKind::Fenced, None) => self.spend(format!("{what}: {code}")),
            _ => code_error(&what, code),
        }
    }

    /// Queues with patience: `attempt` is called again as long as the queue is full.
    fn with_room(&mut self, topic: &str, mut attempt: impl FnMut(&mut Self) -> Result<(), Code>) -> Result<(), LogError> {
        let deadline = Instant::now() + QUEUE_FULL_TIMEOUT.min(self.timeout);
        loop {
            match attempt(self) {
                Ok(()) => return Ok(()),
                Err(Code::QueueFull) if Instant::now() < deadline => self.client.poll(TICK),
                Err(code) => return Err(self.queue_error(topic, code)),
            }
        }
    }

    /// Aborted for sure, because no EndTxn for a commit was sent.
    fn abandon(&mut self, why: String) -> CommitOutcome {
        self.abort();
        CommitOutcome::Aborted(why)
    }

    fn outcome_of(&mut self, error: KafkaError) -> CommitOutcome {
        let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
        let why = format!("commit of '{}': {error}", self.transactional_id);
        self.spent = Some(why.clone());
        match kind_of(code) {
            LogErrorKind::Fenced => CommitOutcome::Fenced(why),
            _ => CommitOutcome::InDoubt(why),
        }
    }
}

impl TransactionalWriter for KafkaWriter {
    fn begin(&mut self) -> Result<(), LogError> {
        self.serve();
        if let Some(why) = self.spent.clone() {
            return Err(self.spend(why));
        }
        if let Some((code, reason)) = self.client.client().fatal_error() {
            return Err(self.spend(format!("{code}: {reason}")));
        }
        // An answer that comes after the commit's own belongs to a retry that nobody told us of.
        if let Some(doubt) = self.client.context().end_txn.doubt(usize::from(self.sent > 0)) {
            return Err(self.spend(doubt));
        }
        self.client.context().end_txn.clear();
        self.sent = 0;
        self.client.begin_transaction().map_err(|error| {
            let described = log_error("begin a transaction", &error);
            if described.kind == LogErrorKind::Fenced { self.spend(described.message) } else { described }
        })
    }

    fn send(&mut self, message: &OutMessage) -> Result<(), LogError> {
        let topic = Arc::clone(&message.topic);
        self.with_room(&topic, |writer| {
            let mut record = BaseRecord::<[u8], [u8]>::to(&message.topic);
            record.partition = message.partition;
            record.key = message.key.as_deref();
            record.payload = message.payload.as_deref();
            record.timestamp = message.timestamp_ms;
            record.headers = headers(&message.headers);
            writer.client.send(record).map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(Code::Fail))
        })?;
        self.sent += 1;
        Ok(())
    }

    fn send_set(&mut self, messages: &MessageSet) -> Result<(), LogError> {
        let mut rest = messages.entries.as_slice();
        self.topic(&messages.topic)?;
        self.with_room(&messages.topic, |writer| {
            let before = rest.len();
            let result = writer.topics[&messages.topic].send(&messages.buffer, rest);
            rest = match &result {
                Ok(()) => &[],
                Err(stopped) => &rest[stopped.queued..],
            };
            writer.sent += before - rest.len();
            result.map_err(|stopped| stopped.code)
        })
    }

    fn commit(&mut self) -> CommitOutcome {
        if let Some(why) = self.spent.clone() {
            return CommitOutcome::InDoubt(why);
        }
        let deadline = Instant::now() + self.timeout;
        let drained = self.drain(deadline);
        if let Some((code, reason)) = self.client.client().fatal_error() {
            let why = format!("{code}: {reason}");
            self.spent = Some(why.clone());
            return if kind_of(code) == LogErrorKind::Fenced { CommitOutcome::Fenced(why) } else { self.abandon(why) };
        }
        if let Some((code, why)) = self.client.context().take_failure() {
            self.spent = Some(why.clone());
            return if kind_of(code) == LogErrorKind::Fenced { CommitOutcome::Fenced(why) } else { self.abandon(why) };
        }
        if !drained {
            return self.abandon(format!("messages were not delivered within {} s", self.timeout.as_secs()));
        }
        // A time-out of zero would mean an endless wait inside of rdkafka's flush.
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let result = self.client.commit_transaction(left);
        self.serve();
        if let Err(error) = result {
            return self.outcome_of(error);
        }
        // Without messages there is no transaction at the coordinator and no EndTxn.
        match self.client.context().end_txn.doubt(usize::from(self.sent > 0)) {
            None => CommitOutcome::Committed,
            Some(doubt) => {
                self.spent = Some(doubt.clone());
                CommitOutcome::InDoubt(doubt)
            }
        }
    }

    fn abort(&mut self) {
        self.spent.get_or_insert_with(|| "its transaction was aborted".into());
        if self.client.client().fatal_error().is_some() {
            return;
        }
        // An abort with messages in flight waits for reports that nobody serves: drop them first.
        self.client.purge(PurgeConfig::default().queue().inflight());
        if self.drain(Instant::now() + ABORT_TIMEOUT)
            && let Err(error) = self.client.abort_transaction(ABORT_TIMEOUT)
        {
            tracing::debug!(target: "kafka", id = self.transactional_id, "abort: {error}; the next writer's start aborts it");
        }
    }
}

/// Gets a producer id, which fences all earlier producers of the same transactional id.
fn init_transactions(client: &WriterClient, what: &str) -> Result<(), LogError> {
    let deadline = Instant::now() + INIT_TIMEOUT;
    loop {
        // Tokens are handed over by the event queue.
        client.poll(Duration::ZERO);
        let error = match client.init_transactions(INIT_TRY) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let retriable = matches!(&error, KafkaError::Transaction(native) if native.is_retriable());
        if !retriable || Instant::now() >= deadline {
            return Err(log_error(what, &error));
        }
        tracing::debug!(target: "kafka", "{what}: {error}; trying again");
    }
}

fn headers(list: &[(String, Vec<u8>)]) -> Option<OwnedHeaders> {
    if list.is_empty() {
        return None;
    }
    let empty = OwnedHeaders::new_with_capacity(list.len());
    Some(list.iter().fold(empty, |headers, (key, value)| headers.insert(Header { key, value: Some(value) })))
}

/// The same for messages outside of transactions.
pub(crate) fn record_headers(message: &OutMessage) -> Option<OwnedHeaders> {
    headers(&message.headers)
}

//! The transactional producer of a slot, and what its commits are worth.
//!
//! ```text
//! begin ─► send… ─► commit:  drain (own deadline) ─► EndTxn ─► count ENDTXN lines ─► outcome
//!                              │ a message failed        │ error          │ not one clean answer
//!                              ▼                         ▼                ▼
//!                     Aborted / Refused            InDoubt / Fenced     InDoubt
//! ```
//!
//! - **Drain first.** rdkafka's own flush sleeps in slices of 100 ms, which would be the price of every commit; ours
//!   waits on librdkafka's own condition and makes it send what lingers.
//! - **In doubt unless proven clean.** librdkafka retries EndTxn silently, on another connection if need be, and a late
//!   retry may end a later transaction of the same producer epoch (KIP-890). Its client has no protection against that,
//!   so a commit counts only if its one answer was clean ([`crate::context::EndTxnLines`]). After anything else the
//!   writer is dropped, and the next one's InitProducerId raises the epoch, which shuts the stray request out.
//! - **Fenced proves nothing**: brokers also report a coordinator time-out so. The engine looks at the log.
//! - **Refused** is said by the error's code, and only where the same message would be refused again ([`is_refusal`]).
//! - A fatal error is looked for before `begin`, because librdkafka can block for ever in a call after one.
//!
//! Every call has a deadline derived from `transaction.timeout.ms`.

use crate::context::WriterEvents;
use crate::errors::{code_error, is_refusal, kind_of, log_error};
use crate::fencer::close_aside;
use crate::produce::{TopicHandle, WriterClient, flush};
use crate::properties::Properties;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, PurgeConfig};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::mutants;
use streamshield_core::ports::log::{CommitOutcome, LogError, LogErrorKind, MessageSet, OutMessage, TransactionalWriter};

/// How long a producer may take to get its id and fence its predecessor.
const INIT_TIMEOUT: Duration = Duration::from_secs(30);
/// One try of it, the first and the longest. An abort takes 5 to 60 ms on a busy broker, and longer on one that is in trouble.
const INIT_TRY_MIN: Duration = Duration::from_millis(5);
const INIT_TRY_MAX: Duration = Duration::from_millis(250);
/// From one try to the next: about 25 tries in the first half second.
const INIT_TRY_GROWTH: f64 = 1.1;
/// How long an answer to EndTxn is waited for. The coordinator only writes a line of its own for it; without the answer, the next writer's InitProducerId
/// and a look at the log tell sooner what became of the transaction than librdkafka's retry after `socket.timeout.ms` would, and that retry is doubtful anyway.
const END_TXN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long `send` waits for room in a full queue.
const QUEUE_FULL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an abort may take; the successor's InitProducerId aborts as well.
const ABORT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long to wait for room in a full queue at a time.
const TICK: Duration = Duration::from_millis(1);
/// How long the line of an answer that the client has heard may be on its way to us.
const LINE_TIMEOUT: Duration = Duration::from_millis(20);
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
        request_producer_id(&client, INIT_TIMEOUT).map_err(|error| log_error(&what, &error))?;
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

    /// The client writes further lines while it is served, so that [`Self::serve`] may stop before the answer's own line.
    fn serve_answers(&self, expected: usize) {
        let deadline = Instant::now() + LINE_TIMEOUT;
        while self.client.context().end_txn.count() < expected && Instant::now() < deadline {
            self.client.poll(TICK);
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

impl Drop for KafkaWriter {
    /// Closing a client waits for what it may still have to say, up to half a second. After a doubtful commit the successor is waited for, and what it does first
    /// (InitProducerId) shuts this one out wherever it stands: so that one is closed aside.
    fn drop(&mut self) {
        if self.spent.is_some() {
            close_aside((std::mem::take(&mut self.topics), Arc::clone(&self.client)));
        }
    }
}

impl TransactionalWriter for KafkaWriter {
    fn prepare(&mut self, topics: &[Arc<str>]) {
        for topic in topics {
            // A new handle makes the client ask; what is no name is told when something is sent.
            let _ = self.topic(topic);
        }
    }

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
            return match kind_of(code) {
                LogErrorKind::Fenced => CommitOutcome::Fenced(why),
                _ if is_refusal(code) => {
                    self.abort();
                    CommitOutcome::Refused(why)
                }
                _ => self.abandon(why),
            };
        }
        if !drained {
            return self.abandon(format!("messages were not delivered within {} s", self.timeout.as_secs()));
        }
        let left = END_TXN_TIMEOUT.min(self.timeout);
        let mut result = self.client.commit_transaction(left);
        // What librdkafka's manual says: ask again, with the same producer.
        while mutants::is_on("keep-producer") && result.as_ref().is_err_and(is_retriable) {
            result = self.client.commit_transaction(left);
        }
        self.serve();
        if let Err(error) = result {
            return self.outcome_of(error);
        }
        // Without messages there is no transaction at the coordinator and no EndTxn.
        let expected = usize::from(self.sent > 0);
        self.serve_answers(expected);
        match self.client.context().end_txn.doubt(expected) {
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

/// Gets a producer id, which fences all earlier producers of the same transactional id and ends their transactions.
///
/// While the broker ends one, it answers CONCURRENT_TRANSACTIONS, and librdkafka waits for 500 ms then. A call that is repeated after its time-out
/// asks at once, unless an answer is outstanding; so the time-outs are short.
pub(crate) fn request_producer_id(client: &WriterClient, timeout: Duration) -> Result<(), KafkaError> {
    let deadline = Instant::now() + timeout;
    let mut patience = INIT_TRY_MIN;
    loop {
        // Tokens are handed over by the event queue.
        client.poll(Duration::ZERO);
        let error = match client.init_transactions(patience) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !is_retriable(&error) || Instant::now() >= deadline {
            return Err(error);
        }
        patience = patience.mul_f64(INIT_TRY_GROWTH).min(INIT_TRY_MAX);
    }
}

fn is_retriable(error: &KafkaError) -> bool {
    matches!(error, KafkaError::Transaction(native) if native.is_retriable())
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

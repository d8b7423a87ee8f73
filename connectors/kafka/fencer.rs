//! [`KafkaFencer`]: fences a dead producer within tens of milliseconds, with a connection that was made before.
//!
//! Fencing is InitProducerId on the dead producer's transactional id. If that producer had a transaction open, the first
//! answer is CONCURRENT_TRANSACTIONS (the abort has begun), and librdkafka asks again after 500 ms, hard-coded. A transaction
//! that is open holds back every reader behind it, so this wait would be most of a take-over. But a call of `init_transactions` that is
//! repeated after its time-out lets librdkafka ask at once, if no answer is outstanding. So the fencer calls with a short time-out, again and again:
//!
//! ```text
//! prepare   connect                                                         nobody is fenced
//! fence     init ─► CONCURRENT (the broker aborts) · 5 ms · init ─► CONCURRENT · 5 ms · init ─► ok ─► fence returns
//! ```
//!
//! - **The success is the proof**: Kafka grants an id only when the earlier transaction's markers are in every partition.
//! - **It raises the producer epoch**, so two fencers of an id fence each other as well; the slower one is told "fenced" and can't know by whom.
//!   For the same reason a fencer is for ids whose producer must not go on, never for the caller's own.
//! - **Connecting is all that can be done before.** librdkafka asks for the transaction coordinator within InitProducerId only, but a
//!   connected client does that in one round trip. Brokers close connections that are idle for minutes, so the log's serving thread asks
//!   for the cluster's metadata now and then ([`keep_connected`]).
//! - A client that is being closed can take half a second; that never happens on the caller's thread.
//!
//! Invariant O-1 rests on it: what the fenced producer has not committed when `fence` returns, it never commits. M-1: a fencer holds
//! one client with a queue of one message.
//!
//! On failure: `Retry` says that nothing is certain, neither that the id is fenced nor that it is not.

use crate::context::WriterEvents;
use crate::errors::log_error;
use crate::log::QUERY_TIMEOUT;
use crate::produce::WriterClient;
use crate::properties::Properties;
use crate::writer::request_producer_id;
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer;
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::ports::log::{Fencer, LogError, LogErrorKind};

/// How long fencing may take.
const FENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may take during a fence, and for one that is only kept alive.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A topic that need not exist: the question is for the brokers.
const NO_TOPIC: &str = "__none__";

/// A [`Fencer`] over librdkafka.
pub struct KafkaFencer {
    what: String,
    /// None once it has fallen.
    client: Option<Arc<WriterClient>>,
    is_connected: bool,
}

impl KafkaFencer {
    /// Makes the producer without connecting it.
    pub(crate) fn new(properties: &Properties, transactional_id: &str) -> Result<Self, LogError> {
        let what = format!("fence '{transactional_id}'");
        let client = properties.fence(transactional_id).create_with_context(WriterEvents::default());
        let client = client.map_err(|error| log_error(&what, &error))?;
        Ok(KafkaFencer { what, client: Some(Arc::new(client)), is_connected: false })
    }

    pub(crate) fn connect(&mut self) -> Result<(), LogError> {
        if let Some(client) = &self.client {
            connect(client, QUERY_TIMEOUT).map_err(|error| log_error(&format!("prepare to {}", self.what), &error))?;
        }
        self.is_connected = true;
        Ok(())
    }

    /// Its client, to be served while it waits.
    pub(crate) fn client(&self) -> Option<&Arc<WriterClient>> {
        self.client.as_ref()
    }
}

impl Fencer for KafkaFencer {
    fn fence(self: Box<Self>) -> Result<(), LogError> {
        let Some(client) = &self.client else { return Err(LogError::new(LogErrorKind::Retry, format!("{}: has fallen", self.what))) };
        if !self.is_connected
            && let Err(error) = connect(client, RECONNECT_TIMEOUT)
        {
            tracing::debug!(target: "kafka", "{}: {error}; it may still succeed", self.what);
        }
        request_producer_id(client, FENCE_TIMEOUT).map_err(|error| open_outcome(log_error(&self.what, &error)))
    }
}

/// Somebody who fenced the same victim was faster and is not known to have succeeded: nothing is certain.
fn open_outcome(error: LogError) -> LogError {
    match error.kind {
        LogErrorKind::Fenced => LogError::new(LogErrorKind::Retry, error.message),
        _ => error,
    }
}

impl Drop for KafkaFencer {
    /// Closing a client takes a moment: not on the caller's thread.
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            close_aside(((), client));
        }
    }
}

/// How long the caller's own reference to a client may last after it has asked for the closing.
const LETTING_GO: Duration = Duration::from_millis(20);

/// Closes a client on a thread of its own, with what has to go before it.
pub(crate) fn close_aside<T: Send + 'static>((before, client): (T, Arc<WriterClient>)) {
    let close = move || {
        drop(before);
        std::thread::sleep(LETTING_GO);
        drop(client);
    };
    // Without a thread it is closed here after all, when the closure is dropped.
    let _ = std::thread::Builder::new().name("kafka-close".into()).spawn(close);
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

    #[test]
    fn a_fencer_that_was_fenced_itself_leaves_the_outcome_open() {
        let kind_of = |kind| open_outcome(LogError::new(kind, "fence 'x'")).kind;
        assert_eq!(kind_of(LogErrorKind::Fenced), LogErrorKind::Retry);
        assert_eq!(kind_of(LogErrorKind::Retry), LogErrorKind::Retry);
        assert_eq!(kind_of(LogErrorKind::Fatal), LogErrorKind::Fatal, "an access that is refused is not tried again");
    }
}

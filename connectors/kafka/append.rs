//! Single messages outside of transactions: the control log's records.
//!
//! Idempotent producers with a thread of rdkafka that serves their reports at once; a caller waits for its own report. A
//! message whose outcome is unknown at the deadline may still be in the log: readers of the control log take a repeated
//! record for a no-op.
//!
//! Nothing lingers, and there are two lanes, each with a connection of its own: a heartbeat must not wait until a snapshot of
//! half a megabyte is through.

use crate::errors::{code_error, log_error};
use crate::properties::Properties;
use crate::writer::record_headers;
use parking_lot::{Condvar, Mutex};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, NoCustomPartitioner, Producer, ProducerContext, ThreadedProducer};
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::{LogError, LogErrorKind, OutMessage};

/// How long a message may wait for its acknowledgement.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// The report follows at once.
const REPORT_TIMEOUT: Duration = Duration::from_secs(12);

/// Where a report goes to.
#[derive(Default)]
struct Report {
    outcome: Mutex<Option<Result<Offset, Code>>>,
    arrived: Condvar,
}

struct AppendEvents;

impl ClientContext for AppendEvents {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, line: &str) {
        tracing::debug!(target: "kafka", facility, "{line}");
    }
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "kafka", "{error}: {reason}");
    }
    fn stats_raw(&self, _statistics: &[u8]) {}
}

impl ProducerContext<NoCustomPartitioner> for AppendEvents {
    type DeliveryOpaque = Arc<Report>;

    fn delivery(&self, result: &DeliveryResult<'_>, report: Arc<Report>) {
        let outcome = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.rdkafka_error_code().unwrap_or(Code::Fail)),
        };
        *report.outcome.lock() = Some(outcome);
        report.arrived.notify_one();
    }
}

type AppendClient = ThreadedProducer<AppendEvents, NoCustomPartitioner>;

/// Messages above this many bytes take the other lane.
const LARGE_BYTES: usize = 8 << 10;

/// One producer, made at the first message, and anew after a fatal error.
#[derive(Default)]
struct Lane {
    client: Mutex<Option<Arc<AppendClient>>>,
}

impl Lane {
    fn client(&self, properties: &Properties) -> Result<Arc<AppendClient>, LogError> {
        let mut slot = self.client.lock();
        if let Some(client) = slot.as_ref().filter(|client| client.client().fatal_error().is_none()) {
            return Ok(Arc::clone(client));
        }
        let client =
            properties.append(DELIVERY_TIMEOUT).create_with_context(AppendEvents).map_err(|error| log_error("make a producer", &error))?;
        Ok(Arc::clone(slot.insert(Arc::new(client))))
    }
}

/// Appends single messages of one log.
#[derive(Default)]
pub(crate) struct Appender {
    small: Lane,
    large: Lane,
}

impl Appender {
    /// Hands all messages over, then waits for their reports. Those of one lane come in this order.
    pub fn append_all(&self, properties: &Properties, messages: &[OutMessage]) -> Result<Vec<Offset>, LogError> {
        let sent = messages.iter().map(|message| self.send(properties, message)).collect::<Result<Vec<_>, _>>()?;
        let deadline = Instant::now() + REPORT_TIMEOUT;
        sent.iter().zip(messages).map(|(report, message)| report.wait(message, deadline)).collect()
    }

    pub fn append(&self, properties: &Properties, message: &OutMessage) -> Result<Offset, LogError> {
        self.send(properties, message)?.wait(message, Instant::now() + REPORT_TIMEOUT)
    }

    fn send(&self, properties: &Properties, message: &OutMessage) -> Result<Arc<Report>, LogError> {
        let lane = if message.payload.as_ref().is_some_and(|payload| payload.len() > LARGE_BYTES) { &self.large } else { &self.small };
        let client = lane.client(properties)?;
        let report = Arc::new(Report::default());
        let mut record = BaseRecord::<[u8], [u8], Arc<Report>>::with_opaque_to(&message.topic, Arc::clone(&report));
        record.partition = message.partition;
        record.key = message.key.as_deref();
        record.payload = message.payload.as_deref();
        record.timestamp = message.timestamp_ms;
        record.headers = record_headers(message);
        client.send(record).map_err(|(error, _)| log_error(&doing(message), &error))?;
        Ok(report)
    }
}

impl Report {
    fn wait(&self, message: &OutMessage, deadline: Instant) -> Result<Offset, LogError> {
        let mut outcome = self.outcome.lock();
        while outcome.is_none() && !self.arrived.wait_until(&mut outcome, deadline).timed_out() {}
        match outcome.take() {
            Some(Ok(offset)) => Ok(offset),
            Some(Err(code)) => Err(code_error(&doing(message), code)),
            None => {
                let what = format!("{}: no acknowledgement within {} s", doing(message), REPORT_TIMEOUT.as_secs());
                Err(LogError::new(LogErrorKind::Retry, what))
            }
        }
    }
}

fn doing(message: &OutMessage) -> String {
    format!("append to '{}'", message.topic)
}

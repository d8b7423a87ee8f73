//! Callbacks of librdkafka's clients: log lines, global errors, delivery reports.
//!
//! Lines go to `tracing` (target `kafka`), with two exceptions: debug lines are never printed (a transactional
//! producer runs with `debug=eos` only so that [`EndTxnLines`] can count), and complaints about properties that belong
//! to the other kind of client (`CONFWARN`) say nothing, because one set of properties serves all clients.

use crate::errors::is_refusal;
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{NoCustomPartitioner, ProducerContext};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use streamshield_core::mutants;
use streamshield_core::ports::log::Wakeup;

fn print(level: RDKafkaLogLevel, facility: &str, line: &str) {
    use RDKafkaLogLevel::*;
    if facility == "CONFWARN" {
        return;
    }
    match level {
        Emerg | Alert | Critical | Error => tracing::warn!(target: "kafka", facility, "{line}"),
        Warning | Notice => tracing::info!(target: "kafka", facility, "{line}"),
        Info => tracing::debug!(target: "kafka", facility, "{line}"),
        Debug => {}
    }
}

/// Context of consumers: remembers that all brokers were lost, and that one does not let it in.
#[derive(Default)]
pub(crate) struct ClientEvents {
    /// Raised on a global error, so that a waiting slot looks at it.
    wakeup: Option<Arc<Wakeup>>,
    all_brokers_down: AtomicBool,
    refusal: Mutex<Option<String>>,
}

impl ClientEvents {
    pub fn waking(wakeup: Arc<Wakeup>) -> Self {
        ClientEvents { wakeup: Some(wakeup), ..ClientEvents::default() }
    }

    /// Why a broker does not let this client in. A question that goes unanswered for it only says that nobody answered.
    pub fn refusal(&self) -> Option<String> {
        self.refusal.lock().clone()
    }

    /// Whether all brokers were lost since the last call.
    pub fn take_all_brokers_down(&self) -> bool {
        self.all_brokers_down.swap(false, Ordering::Relaxed)
    }
}

impl ClientContext for ClientEvents {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        print(level, facility, line);
    }
    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code().is_some_and(|code| is_not_let_in(code, reason)) {
            *self.refusal.lock() = Some(reason.to_string());
        }
        if error.rdkafka_error_code() == Some(Code::AllBrokersDown) {
            self.all_brokers_down.store(true, Ordering::Relaxed);
            if let Some(wakeup) = &self.wakeup {
                wakeup.raise();
            }
        }
        tracing::debug!(target: "kafka", "{error}: {reason}");
    }
    fn stats_raw(&self, _statistics: &[u8]) {}
}

impl ConsumerContext for ClientEvents {}

/// Wrong credentials, or a broker that they must not be shown to. A handshake that merely breaks off is that of a broker that goes away.
fn is_not_let_in(code: Code, reason: &str) -> bool {
    code == Code::Authentication || (code == Code::SSL && reason.contains("certificate verify failed"))
}

/// The answers to EndTxn that a producer has seen since the last [`EndTxnLines::clear`].
///
/// librdkafka retries EndTxn by itself and tells nobody, but a retried commit may end another transaction than the one
/// that it was meant for (KIP-890). Its debug lines of facility `ENDTXN` are the only timely sign (librdkafka 2.12).
#[derive(Default)]
pub(crate) struct EndTxnLines {
    answers: Mutex<Vec<String>>,
}

impl EndTxnLines {
    /// Far more than a commit can cause before its time-out.
    const KEPT: usize = 64;

    fn push(&self, line: &str) {
        let answer = match line.split_once("EndTxn returned ") {
            Some((_, rest)) => rest.split_whitespace().next().unwrap_or("nothing"),
            None => line,
        };
        let mut answers = self.answers.lock();
        if answers.len() < Self::KEPT {
            answers.push(answer.to_string());
        }
    }

    pub fn count(&self) -> usize {
        self.answers.lock().len()
    }

    pub fn clear(&self) {
        self.answers.lock().clear();
    }

    /// None when the commit got its answer at the first try; else what is doubtful about it.
    pub fn doubt(&self, expected: usize) -> Option<String> {
        if mutants::is_on("keep-producer") {
            return None;
        }
        let answers = self.answers.lock();
        if answers.len() == expected && answers.iter().all(|answer| answer == "NO_ERROR") {
            return None;
        }
        Some(format!("expected {expected} clean answer to EndTxn, saw [{}]", answers.join(", ")))
    }
}

/// Context of a transactional producer.
#[derive(Default)]
pub(crate) struct WriterEvents {
    pub end_txn: EndTxnLines,
    failure: Mutex<Option<(Code, String)>>,
}

impl WriterEvents {
    /// The first message that could not be delivered since the last call; one that only shared its batch with an invalid one gives way to that.
    pub fn take_failure(&self) -> Option<(Code, String)> {
        self.failure.lock().take()
    }
}

impl ClientContext for WriterEvents {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        if facility == "ENDTXN" {
            self.end_txn.push(line);
        }
        print(level, facility, line);
    }
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "kafka", "{error}: {reason}");
    }
    fn stats_raw(&self, _statistics: &[u8]) {}
}

impl ProducerContext<NoCustomPartitioner> for WriterEvents {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        use rdkafka::Message;
        if let Err((error, message)) = result {
            let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
            let mut failure = self.failure.lock();
            let says_more = match &*failure {
                None => true,
                Some((Code::InvalidDifferentRecord, _)) => is_refusal(code) && code != Code::InvalidDifferentRecord,
                Some(_) => false,
            };
            if says_more {
                *failure = Some((code, format!("a message to {}-{} was not delivered: {error}", message.topic(), message.partition())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "[thrd:main]: EndTxn returned NO_ERROR in state CommittingTransaction (may_retry=true)";
    const TIMED_OUT: &str = "[thrd:main]: EndTxn returned _TIMED_OUT in state CommittingTransaction (may_retry=true)";

    #[test]
    fn only_a_refusal_is_remembered_as_one() {
        let after = |code, reason: &str| {
            let events = ClientEvents::default();
            events.error(KafkaError::Global(code), reason);
            events.refusal()
        };
        let untrusted = "b1: SSL handshake failed: error:0A000086: certificate verify failed";
        assert_eq!(after(Code::SSL, untrusted).as_deref(), Some(untrusted));
        assert_eq!(after(Code::Authentication, "b1: no").as_deref(), Some("b1: no"));
        assert_eq!(after(Code::SSL, "b1: SSL handshake failed: Disconnected"), None, "it may come back");
        assert_eq!(after(Code::AllBrokersDown, "1/1 brokers are down"), None);
    }

    #[test]
    fn only_one_clean_answer_leaves_no_doubt() {
        let lines = EndTxnLines::default();
        assert!(lines.doubt(1).is_some(), "no answer at all");
        lines.push(CLEAN);
        assert_eq!(lines.doubt(1), None);
        lines.push(CLEAN);
        assert!(lines.doubt(1).is_some(), "a second answer");
        lines.clear();
        lines.push(TIMED_OUT);
        lines.push(CLEAN);
        assert!(lines.doubt(1).expect("a retry").contains("_TIMED_OUT"));
        lines.clear();
        lines.push("some new text of another librdkafka");
        assert!(lines.doubt(1).is_some(), "unknown text is never taken for a clean answer");
    }
}

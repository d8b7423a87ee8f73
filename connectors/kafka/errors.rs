//! What the caller should do about an error of librdkafka, as a [`LogError`].
//!
//! One table for all clients, so that a code means the same in a reader, a writer and an administration call.
//! Everything that is not known to be final is `Retry`: the engine keeps its sealed epochs and calls again, which is
//! right for every trouble of brokers and networks and only slow for a mistake.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use streamshield_core::ports::log::{LogError, LogErrorKind};

/// The kind of one error code.
pub(crate) fn kind_of(code: Code) -> LogErrorKind {
    use LogErrorKind::*;
    match code {
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch | Code::InvalidProducerIdMapping | Code::UnknownProducerId => {
            Fenced
        }
        Code::InvalidTransactionalState | Code::OutOfOrderSequenceNumber | Code::State => Fenced,
        Code::OffsetOutOfRange | Code::AutoOffsetReset | Code::LogTruncation => OutOfRange,
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicId => Missing,
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidRecord | Code::InvalidMessageSize => Invalid,
        Code::BadMessage | Code::InvalidMessage | Code::BadCompression | Code::InvalidTimestamp | Code::InvalidDifferentRecord => Invalid,
        Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed | Code::ClusterAuthorizationFailed => Fatal,
        Code::TransactionalIdAuthorizationFailed | Code::SaslAuthenticationFailed | Code::Authentication => Fatal,
        Code::UnsupportedSASLMechanism | Code::IllegalSASLState | Code::SecurityDisabled => Fatal,
        Code::InvalidTopic | Code::InvalidConfig | Code::InvalidPartitions | Code::InvalidReplicationFactor => Fatal,
        Code::InvalidArgument | Code::InvalidTransactionTimeout | Code::PolicyViolation | Code::UnsupportedFeature => Fatal,
        Code::UnsupportedVersion | Code::NotImplemented | Code::InvalidGroupId | Code::UnsupportedCompressionType => Fatal,
        _ => Retry,
    }
}

/// Whether a message that failed with this code fails with it again and again. Others that say [`LogErrorKind::Invalid`] may pass: a message that was
/// damaged on its way (`InvalidMessage`), or a code that no produce request is answered with.
pub(crate) fn is_refusal(code: Code) -> bool {
    use Code::{InvalidDifferentRecord, InvalidRecord, InvalidTimestamp, MessageBatchTooLarge, MessageSizeTooLarge};
    // The last one is in one batch with an invalid record, as often as both are sent.
    matches!(code, MessageSizeTooLarge | MessageBatchTooLarge | InvalidTimestamp | InvalidRecord | InvalidDifferentRecord)
}

/// Maps an error; `what` is what was tried, as the subject of the sentence ("create topic 'bids'").
pub(crate) fn log_error(what: &str, error: &KafkaError) -> LogError {
    match error {
        // Its text may quote the value of a property, which may be a secret.
        KafkaError::ClientConfig(..) | KafkaError::Nul(_) => {
            LogError::new(LogErrorKind::Fatal, format!("{what}: the client refused a property"))
        }
        KafkaError::ClientCreation(reason) => LogError::new(LogErrorKind::Fatal, format!("{what}: {reason}")),
        KafkaError::Transaction(native) if native.is_fatal() && kind_of(native.code()) == LogErrorKind::Retry => {
            LogError::new(LogErrorKind::Fenced, format!("{what}: {native}"))
        }
        other => {
            let kind = other.rdkafka_error_code().map_or(LogErrorKind::Retry, kind_of);
            LogError::new(kind, format!("{what}: {other}"))
        }
    }
}

/// The same for a bare code.
pub(crate) fn code_error(what: &str, code: Code) -> LogError {
    LogError::new(kind_of(code), format!("{what}: {code}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_not_pass_by_itself_is_a_refusal() {
        use Code::{BadMessage, InvalidMessage, InvalidMessageSize, MessageTimedOut, NotEnoughReplicas, PurgeQueue};
        use Code::{InvalidDifferentRecord, InvalidRecord, InvalidTimestamp, MessageBatchTooLarge, MessageSizeTooLarge};
        for code in [MessageSizeTooLarge, MessageBatchTooLarge, InvalidTimestamp, InvalidRecord, InvalidDifferentRecord] {
            assert!(is_refusal(code) && kind_of(code) == LogErrorKind::Invalid, "{code}");
        }
        for code in [InvalidMessage, BadMessage, InvalidMessageSize, NotEnoughReplicas, MessageTimedOut, PurgeQueue] {
            assert!(!is_refusal(code), "{code}");
        }
    }
}

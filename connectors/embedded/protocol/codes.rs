//! Kafka's error codes for the log core's refusals.

use crate::log_core::LogError;

pub const NONE: i16 = 0;
pub const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
pub const UNSUPPORTED_VERSION: i16 = 35;
pub const INVALID_REQUEST: i16 = 42;
pub const INVALID_PRODUCER_EPOCH: i16 = 47;
pub const PRODUCER_FENCED: i16 = 90;
pub const UNKNOWN_TOPIC_ID: i16 = 100;

pub fn code(error: LogError) -> i16 {
    match error {
        LogError::OffsetOutOfRange => 1,
        LogError::CorruptBatch => 2,
        LogError::UnknownTopicOrPartition => UNKNOWN_TOPIC_OR_PARTITION,
        LogError::BatchTooLarge => 10,
        LogError::OffsetMetadataTooLarge => 12,
        LogError::InvalidTopicName => 17,
        LogError::IllegalGeneration => 22,
        LogError::InconsistentGroupProtocol => 23,
        LogError::UnknownMember => 25,
        LogError::InvalidSessionTimeout => 26,
        LogError::RebalanceInProgress => 27,
        LogError::InvalidTimestamp => 32,
        LogError::TopicExists => 36,
        LogError::InvalidPartitionCount => 37,
        LogError::InvalidConfig => 40,
        LogError::UnsupportedBatchFormat => 43,
        LogError::PolicyViolation => 44,
        LogError::OutOfOrderSequence => 45,
        LogError::InvalidProducerEpoch => INVALID_PRODUCER_EPOCH,
        LogError::InvalidTransactionState => 48,
        LogError::InvalidProducerIdMapping => 49,
        LogError::InvalidTransactionTimeout => 50,
        // KAFKA_STORAGE_ERROR: clients retry it, knowing that nothing was written
        LogError::MemoryLimit => 56,
        LogError::GroupNotEmpty => 68,
        LogError::UnknownGroup => 69,
        LogError::MemberIdRequired => 79,
        LogError::GroupMaxSize => 81,
        LogError::FencedInstance => 82,
        LogError::InvalidRecord => 87,
        LogError::UnstableOffset => 88,
        LogError::ProducerFenced => PRODUCER_FENCED,
    }
}

pub fn code_of<T>(result: &Result<T, LogError>) -> i16 {
    match result {
        Ok(_) => NONE,
        Err(error) => code(*error),
    }
}

/// As [`code`], for requests of clients that know "fenced" only as "invalid producer epoch".
pub fn transaction_code(result: &Result<(), LogError>, knows_fenced: bool) -> i16 {
    match code_of(result) {
        PRODUCER_FENCED if !knows_fenced => INVALID_PRODUCER_EPOCH,
        code => code,
    }
}

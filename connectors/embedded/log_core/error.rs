//! Why the log core refuses a call. Each variant maps to one Kafka error code in `protocol::codes`.

use thiserror::Error;

/// A refusal. Nothing has changed when a call returns one.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LogError {
    #[error("no such topic or partition")]
    UnknownTopicOrPartition,
    #[error("the topic exists already")]
    TopicExists,
    #[error("not a topic name: 1 to 249 of letters, digits, '.', '_' and '-'")]
    InvalidTopicName,
    #[error("not a possible number of partitions")]
    InvalidPartitionCount,
    #[error("not a known value for a topic configuration")]
    InvalidConfig,
    #[error("the offset is outside of the log")]
    OffsetOutOfRange,
    #[error("the topic is compacted only, so its records can't be deleted by offset")]
    PolicyViolation,
    #[error("the record batch is damaged")]
    CorruptBatch,
    #[error("the record batch is of an old format")]
    UnsupportedBatchFormat,
    #[error("the batch is larger than max.message.bytes")]
    BatchTooLarge,
    #[error("a record is not allowed here (null key on a compacted topic, a control record, or not one batch)")]
    InvalidRecord,
    #[error("a timestamp is too far from the broker's time (message.timestamp.before.max.ms, message.timestamp.after.max.ms)")]
    InvalidTimestamp,
    #[error("the memory limit is reached and retention allows no trim")]
    MemoryLimit,
    #[error("the sequence number does not follow the last one")]
    OutOfOrderSequence,
    #[error("the producer epoch is older than the current one")]
    InvalidProducerEpoch,
    #[error("a newer producer holds the transactional id")]
    ProducerFenced,
    #[error("the producer id does not belong to the transactional id")]
    InvalidProducerIdMapping,
    #[error("the transaction is not in a state that allows this")]
    InvalidTransactionState,
    #[error("the transaction time-out is not in the allowed range")]
    InvalidTransactionTimeout,
    #[error("no such group member")]
    UnknownMember,
    #[error("another generation of the group is current")]
    IllegalGeneration,
    #[error("the group is rebalancing")]
    RebalanceInProgress,
    #[error("another member has taken over the group instance id")]
    FencedInstance,
    #[error("the member has no protocol in common with the group")]
    InconsistentGroupProtocol,
    #[error("join again with the member id given")]
    MemberIdRequired,
    #[error("the session time-out is not in the allowed range")]
    InvalidSessionTimeout,
    #[error("the group holds as many members as it may")]
    GroupMaxSize,
    #[error("no such group")]
    UnknownGroup,
    #[error("the group has members")]
    GroupNotEmpty,
    #[error("the offset is part of a transaction that is still open")]
    UnstableOffset,
    #[error("the offset's metadata is too long")]
    OffsetMetadataTooLarge,
}

//! What changes the log core, as data.
//!
//! Every durable change is one [`Event`], applied by the same code live and at recovery (`LogCore::apply`). So the state
//! read back from a journal is the state that was served, by construction. Group membership is not among them: sessions
//! end with the process, and members join again.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

/// A stable identity of a topic: a topic that is deleted and created again has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub u128);

/// A topic and one of its partitions.
pub type TopicPartition = (String, i32);

/// A position committed by a consumer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    pub offset: i64,
    pub leader_epoch: i32,
    pub metadata: String,
}

/// The coordinator's knowledge of one transactional id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionState {
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub timeout_ms: i64,
    /// When the open transaction began; `None` between transactions.
    pub open_since_ms: Option<i64>,
    pub partitions: std::collections::BTreeSet<TopicPartition>,
    pub groups: std::collections::BTreeSet<String>,
    /// How the last transaction ended: a repeated request for the same end is answered with success.
    pub last_outcome: Option<bool>,
    pub changed_ms: i64,
}

/// What a partition knows beyond its batches; written in snapshots only, as appends rebuild it otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionMarks {
    pub start_offset: i64,
    pub next_offset: i64,
    /// Producer id → first offset of its open transaction.
    pub open: BTreeMap<i64, i64>,
    /// Producer id, first offset, offset of the abort marker.
    pub aborted: Vec<(i64, i64, i64)>,
    pub producers: Vec<ProducerMark>,
}

/// The idempotence state of one producer in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerMark {
    pub producer_id: i64,
    pub epoch: i16,
    pub seen_ms: i64,
    /// First sequence, last sequence, base offset of the latest batches.
    pub recent: Vec<(i32, i32, i64)>,
}

/// One durable change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    TopicCreated {
        topic: String,
        id: TopicId,
        partition_count: i32,
        config: BTreeMap<String, String>,
    },
    TopicDeleted {
        topic: String,
    },
    TopicConfigured {
        topic: String,
        config: BTreeMap<String, String>,
    },
    PartitionsAdded {
        topic: String,
        partition_count: i32,
    },
    /// A batch with its base offset in place; end markers of transactions are batches too.
    BatchAppended {
        topic: Arc<str>,
        partition: i32,
        appended_ms: i64,
        batch: Bytes,
    },
    StartMoved {
        topic: String,
        partition: i32,
        start_offset: i64,
    },
    PartitionRestored {
        topic: String,
        partition: i32,
        marks: PartitionMarks,
    },
    /// Producers that are silent since then, with nothing open, are forgotten in all partitions.
    ProducersExpired {
        silent_since_ms: i64,
    },
    ProducerIdsTaken {
        next_producer_id: i64,
    },
    TopicIdsTaken {
        next_topic_number: u64,
    },
    TransactionChanged {
        transactional_id: String,
        state: TransactionState,
    },
    TransactionForgotten {
        transactional_id: String,
    },
    OffsetsCommitted {
        group: String,
        offsets: Vec<(TopicPartition, CommittedOffset)>,
    },
    /// Offsets sent within a transaction, not visible before it commits.
    OffsetsStaged {
        group: String,
        producer_id: i64,
        offsets: Vec<(TopicPartition, CommittedOffset)>,
    },
    StagedOffsetsEnded {
        group: String,
        producer_id: i64,
        commit: bool,
    },
    GroupDeleted {
        group: String,
    },
}

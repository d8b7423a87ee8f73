//! The log core: what a Kafka broker decides, as one pure, single-threaded state machine.
//!
//! It has no sockets, no clock (every call takes `now_ms`), no randomness and no hash map, so that the same calls in the
//! same order give the same answers: the embedded broker drives it behind a socket, a simulation drives it
//! directly. Answers are plain values; what must survive a restart comes out as [`Event`]s ([`LogCore::take_events`]),
//! and applying the same events to an empty core gives the same state.
//!
//! ```text
//! call ──▶ decide (checks only, &self) ──▶ commit(event) ──▶ apply(event): the only place that changes durable state
//!                                               └──────────▶ take_events(): for the journal, and to wake readers
//! ```
//!
//! | module | decides |
//! |---|---|
//! | `batch` | the bytes of a record batch |
//! | `partition` | offsets, sequences, last stable offset, aborted transactions |
//! | `topics` | create, delete, configure, trim |
//! | `records` | produce, fetch, list offsets |
//! | `transactions` | producer ids and epochs, fencing, the two ends of a transaction, time-outs |
//! | `offsets` | positions of consumer groups, plain and within transactions |
//! | `groups` | membership (not durable) |
//! | `upkeep` | retention, compaction, expiry |
//!
//! Invariants
//! - L-1 offsets of a partition are handed out once, in order, without a gap at append;
//! - L-2 under read-committed a record is visible only after its transaction's commit marker is in the log;
//! - L-3 after `init_producer_id` on a transactional id no earlier producer of that id adds anything;
//! - L-4 a refused call changes nothing;
//! - L-5 the events of a history, applied in order, give the state of that history (group membership aside).
//!
//! Not here: the wire protocol (`protocol`), the disk (`journal`), waiting (a reader that finds nothing asks again).

pub mod batch;
mod compaction;
mod compression;
pub mod config;
pub mod error;
pub mod event;
pub mod groups;
mod offsets;
pub mod partition;
mod records;
mod snapshot;
mod topics;
mod transactions;
mod upkeep;

#[cfg(test)]
mod core_test;
#[cfg(test)]
mod model_test;
#[cfg(test)]
pub(crate) mod test_kit;

use std::collections::BTreeMap;

pub use error::LogError;
pub use event::{CommittedOffset, Event, TopicId, TopicPartition, TransactionState};
pub use groups::{GroupReply, GroupView, JoinRequest, Token};
pub use partition::{Fetched, Isolation};
pub use records::{OffsetSpec, Produced};

use batch::Batch;
use config::TopicConfig;
use groups::Groups;
use offsets::GroupOffsets;
use partition::Partition;

/// Bounds of the core; each has a name and none grows with traffic.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Record bytes held over all partitions. When it is reached, producers get a retriable error.
    pub memory_limit_bytes: u64,
    pub partitions_per_topic_max: i32,
    pub topics_max: usize,
    pub group_members_max: usize,
    pub transaction_timeout_ms_max: i64,
    /// A transactional id that is idle for this long is forgotten (`transactional.id.expiration.ms`).
    pub transactional_id_expiration_ms: i64,
    /// An idempotent producer that is silent for this long is forgotten (`producer.id.expiration.ms`).
    pub producer_id_expiration_ms: i64,
    pub offset_metadata_bytes_max: usize,
    /// How often retention, compaction and expiry run.
    pub upkeep_interval_ms: i64,
    /// How long a group waits for further members before its first generation (`group.initial.rebalance.delay.ms`).
    pub group_initial_delay_ms: i64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            memory_limit_bytes: 1 << 30,
            partitions_per_topic_max: 10_000,
            topics_max: 100_000,
            group_members_max: 1_000,
            transaction_timeout_ms_max: 900_000,
            transactional_id_expiration_ms: 7 * 86_400_000,
            producer_id_expiration_ms: 86_400_000,
            offset_metadata_bytes_max: 4096,
            upkeep_interval_ms: 500,
            group_initial_delay_ms: 100,
        }
    }
}

/// A topic: identity, configuration, partitions.
#[derive(Clone, Debug)]
pub struct Topic {
    pub id: TopicId,
    pub config: TopicConfig,
    pub(crate) partitions: Vec<Partition>,
}

impl Topic {
    pub fn partition_count(&self) -> i32 {
        self.partitions.len() as i32
    }
    pub fn partition(&self, partition: i32) -> Result<&Partition, LogError> {
        let found = usize::try_from(partition).ok().and_then(|index| self.partitions.get(index));
        found.ok_or(LogError::UnknownTopicOrPartition)
    }
}

/// See the module text.
#[derive(Debug)]
pub struct LogCore {
    limits: Limits,
    /// Tells the lives of a process apart in ids that must not repeat (members, topics).
    incarnation: u64,
    topics: BTreeMap<String, Topic>,
    topic_names: BTreeMap<TopicId, String>,
    transactions: BTreeMap<String, TransactionState>,
    offsets: BTreeMap<String, GroupOffsets>,
    groups: Groups,
    next_producer_id: i64,
    next_topic_number: u64,
    held_bytes: u64,
    next_upkeep_ms: i64,
    events: Vec<Event>,
}

impl LogCore {
    /// An empty core. `incarnation` must differ from that of every earlier life over the same journal.
    pub fn new(limits: Limits, incarnation: u64) -> LogCore {
        let groups = Groups::new(incarnation, limits.group_members_max, limits.group_initial_delay_ms);
        LogCore {
            limits,
            incarnation,
            topics: BTreeMap::new(),
            topic_names: BTreeMap::new(),
            transactions: BTreeMap::new(),
            offsets: BTreeMap::new(),
            groups,
            next_producer_id: 1000,
            next_topic_number: 1,
            held_bytes: 0,
            next_upkeep_ms: 0,
            events: Vec::new(),
        }
    }

    /// What has changed since the last call, in order. What belongs together (the end of a transaction over all its
    /// partitions) is in one batch of events: a journal must keep all of it or nothing.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Membership and consumer sessions.
    pub fn groups(&mut self) -> &mut Groups {
        &mut self.groups
    }

    /// What tools show of a group that has members.
    pub fn group_view(&self, group: &str) -> Option<GroupView> {
        self.groups.view(group)
    }

    /// All groups that have, or lately had, members.
    pub fn group_views(&self) -> impl Iterator<Item = (&str, GroupView)> {
        self.groups.names().filter_map(|name| Some((name, self.groups.view(name)?)))
    }

    /// Memory that records take.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Applies an event that was decided here, and keeps it for [`LogCore::take_events`].
    fn commit(&mut self, event: Event) {
        self.apply(&event);
        self.events.push(event);
    }

    /// Changes the state by one event; also how a journal is read back.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::TopicCreated { topic, id, partition_count, config } => self.apply_topic(topic, *id, *partition_count, config),
            Event::TopicDeleted { topic } => self.apply_topic_deleted(topic),
            Event::TopicConfigured { topic, config } => {
                if let (Some(topic), Ok(config)) = (self.topics.get_mut(topic), TopicConfig::parse(config.clone())) {
                    topic.config = config;
                }
            }
            Event::PartitionsAdded { topic, partition_count } => {
                if let Some(topic) = self.topics.get_mut(topic) {
                    topic.partitions.resize_with(*partition_count as usize, Partition::default);
                }
            }
            Event::BatchAppended { topic, partition, appended_ms, batch } => {
                if let Ok(batch) = Batch::stored(batch.clone(), *appended_ms) {
                    self.change_partition(topic, *partition, |log| log.apply_batch(batch));
                }
            }
            Event::StartMoved { topic, partition, start_offset } => {
                self.change_partition(topic, *partition, |log| log.move_start(*start_offset));
            }
            Event::PartitionRestored { topic, partition, marks } => {
                self.change_partition(topic, *partition, |log| log.restore_marks(marks.clone()));
            }
            Event::ProducersExpired { silent_since_ms } => {
                for log in self.topics.values_mut().flat_map(|topic| &mut topic.partitions) {
                    log.expire_producers(*silent_since_ms);
                }
            }
            Event::ProducerIdsTaken { next_producer_id } => self.next_producer_id = *next_producer_id,
            Event::TopicIdsTaken { next_topic_number } => self.next_topic_number = *next_topic_number,
            Event::TransactionChanged { transactional_id, state } => {
                self.transactions.insert(transactional_id.clone(), state.clone());
            }
            Event::TransactionForgotten { transactional_id } => {
                self.transactions.remove(transactional_id);
            }
            Event::OffsetsCommitted { .. }
            | Event::OffsetsStaged { .. }
            | Event::StagedOffsetsEnded { .. }
            | Event::GroupDeleted { .. } => {
                self.apply_offsets(event);
            }
        }
    }

    /// Changes one partition and keeps the account of held memory.
    fn change_partition(&mut self, topic: &str, partition: i32, change: impl FnOnce(&mut Partition)) {
        let Some(log) = self.topics.get_mut(topic).and_then(|topic| topic.partitions.get_mut(partition as usize)) else { return };
        let before = log.held_bytes();
        change(log);
        self.held_bytes = self.held_bytes - before + log.held_bytes();
    }
}

//! The log port as one worker sees it: the same answers as `connectors/kafka` gives, from the log core of the world.
//!
//! | type | stands for |
//! |---|---|
//! | [`SimLog`] | `KafkaLog`: topics, offsets, single messages |
//! | [`SimReader`] | `KafkaReader`: committed messages by position, as far as it has heard of them |
//! | [`SimWriter`] | `KafkaWriter`: transactions and the doubt about them |
//! | [`SimFencer`] | `KafkaFencer` |
//!
//! All handles belong to one life of a worker ([`ClientId`]). When that is over, every call fails without any effect.

mod encode;
mod reader;
mod writer;

#[cfg(test)]
mod log_test;
#[cfg(test)]
mod model_test;

pub use reader::SimReader;
pub use writer::SimWriter;

use crate::world::{Call, ClientId, Sim, TRANSACTION_TIMEOUT_MS, World};
use encode::{NOBODY, Record, batch_of, partition_of};
use rand::Rng;
use std::sync::Arc;
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::*;
use streamshield_embedded::log_core::groups::Caller;
use streamshield_embedded::log_core::{self, CommittedOffset, LogError as Refusal, OffsetSpec};

/// Partitions of a topic that is created without a number.
const DEFAULT_PARTITIONS: i32 = 4;
/// The largest message that a client accepts; librdkafka's default.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1_000_000;

/// See the module text.
#[derive(Clone, Debug)]
pub struct SimLog {
    sim: Sim,
    client: ClientId,
}

impl SimLog {
    pub fn new(sim: &Sim, client: ClientId) -> SimLog {
        SimLog { sim: sim.clone(), client }
    }

    pub fn client(&self) -> ClientId {
        self.client
    }

    fn ask<T: std::fmt::Debug>(&self, what: &str, answer: impl FnOnce(&mut World) -> Result<T, LogError>) -> Result<T, LogError> {
        self.sim.world().call(self.client, Call::Asks, what, answer)
    }

    fn change<T: std::fmt::Debug>(&self, what: &str, effect: impl FnOnce(&mut World) -> Result<T, LogError>) -> Result<T, LogError> {
        self.sim.world().call(self.client, Call::Changes, what, effect)
    }
}

/// What the caller does about a refusal of the log core, as in the Kafka client.
pub(crate) fn refused(what: &str, refusal: Refusal) -> LogError {
    use LogErrorKind::*;
    let kind = match refusal {
        Refusal::UnknownTopicOrPartition => Missing,
        Refusal::OffsetOutOfRange => OutOfRange,
        Refusal::CorruptBatch | Refusal::UnsupportedBatchFormat | Refusal::BatchTooLarge => Invalid,
        Refusal::InvalidRecord | Refusal::InvalidTimestamp => Invalid,
        Refusal::InvalidProducerEpoch | Refusal::ProducerFenced | Refusal::InvalidProducerIdMapping => Fenced,
        Refusal::OutOfOrderSequence | Refusal::InvalidTransactionState => Fenced,
        Refusal::InvalidTopicName | Refusal::InvalidPartitionCount | Refusal::InvalidConfig | Refusal::PolicyViolation => Fatal,
        Refusal::InvalidTransactionTimeout => Fatal,
        _ => Retry,
    };
    LogError::new(kind, format!("{what}: {refusal}"))
}

/// InitProducerId: afterwards earlier producers of the id are fenced, and their transaction has ended.
pub(crate) fn init_producer(world: &mut World, what: &str, transactional_id: &str) -> Result<(i64, i16), LogError> {
    world.finish_commit(transactional_id);
    let granted = world.core.init_producer_id(world.now_ms, Some(transactional_id), TRANSACTION_TIMEOUT_MS, None);
    granted.map_err(|refusal| refused(what, refusal))
}

/// The partition that a message goes to.
pub(crate) fn choose_partition(world: &mut World, topic: &str, wanted: Option<i32>, key: Option<&[u8]>) -> Result<i32, log_core::LogError> {
    let count = world.core.topic(topic)?.partition_count();
    match (wanted, key) {
        (Some(partition), _) => world.core.partition(topic, partition).map(|_| partition),
        (None, Some(key)) => Ok(partition_of(key, count)),
        (None, None) => Ok(world.rng.random_range(0..count)),
    }
}

impl Log for SimLog {
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        let names: Vec<_> = topics.iter().map(|topic| topic.name.as_str()).collect();
        self.change(&format!("create {names:?}"), |world| {
            let mut created = Vec::new();
            for topic in topics {
                let partitions = if topic.partitions < 0 { DEFAULT_PARTITIONS } else { topic.partitions };
                match world.core.create_topic(&topic.name, partitions, topic.configs.clone()) {
                    Ok(_) => created.push(topic.name.clone()),
                    Err(Refusal::TopicExists) => {}
                    Err(refusal) => return Err(refused(&format!("create topic '{}'", topic.name), refusal)),
                }
            }
            Ok(created)
        })
    }

    fn describe_topic(&self, topic: &str) -> Result<Option<TopicDescription>, LogError> {
        self.ask(&format!("describe {topic}"), |world| match world.core.topic(topic) {
            Ok(found) => {
                let configs = found.config.describe().map(|(name, value, _)| (name.to_owned(), value.to_owned())).collect();
                Ok(Some(TopicDescription { partitions: found.partition_count(), configs }))
            }
            Err(_) => Ok(None),
        })
    }

    fn bounds(&self, partition: &TopicPartition, isolation: Isolation) -> Result<Bounds, LogError> {
        let what = format!("bounds of {partition}");
        self.ask(&what, |world| {
            let found = world.core.partition(&partition.topic, partition.partition).map_err(|refusal| refused(&what, refusal))?;
            let high = match isolation {
                Isolation::ReadUncommitted => found.high_watermark(),
                Isolation::ReadCommitted => found.last_stable_offset(),
            };
            Ok(Bounds { low: found.start_offset(), high })
        })
    }

    fn resolve(&self, partition: &TopicPartition, start: StartAt) -> Result<Offset, LogError> {
        match start {
            StartAt::Offset(offset) => Ok(offset),
            StartAt::Beginning => Ok(self.bounds(partition, Isolation::ReadCommitted)?.low),
            StartAt::End => Ok(self.bounds(partition, Isolation::ReadCommitted)?.high),
            StartAt::Timestamp(timestamp_ms) => {
                let what = format!("offset of {partition} at {timestamp_ms} ms");
                let found = self.ask(&what, |world| {
                    let spec = OffsetSpec::AtTime { timestamp_ms };
                    world.core.list_offset(&partition.topic, partition.partition, spec).map_err(|refusal| refused(&what, refusal))
                })?;
                match found {
                    Some((offset, _)) => Ok(offset),
                    None => self.resolve(partition, StartAt::End),
                }
            }
        }
    }

    fn group_offset(&self, group: &str, partition: &TopicPartition) -> Result<Option<Offset>, LogError> {
        let what = format!("offset of group '{group}' in {partition}");
        self.ask(&what, |world| {
            let place = (partition.topic.to_string(), partition.partition);
            let found = world.core.committed_offset(group, &place, true).map_err(|refusal| refused(&what, refusal))?;
            Ok(found.map(|committed| committed.offset))
        })
    }

    fn commit_group_offsets(&self, group: &str, positions: &[(TopicPartition, Offset)]) {
        // Best effort: whatever goes wrong, the caller does not learn it.
        let _ = self.change(&format!("commit {} offsets of group '{group}'", positions.len()), |world| {
            let committed = |offset| CommittedOffset { offset, leader_epoch: -1, metadata: String::new() };
            let place = |partition: &TopicPartition| (partition.topic.to_string(), partition.partition);
            let offsets = positions.iter().map(|(partition, offset)| (place(partition), committed(*offset))).collect();
            let anonymous = Caller { member_id: "", instance_id: None, generation: -1 };
            Ok(world.core.commit_offsets(world.now_ms, group, &anonymous, offsets))
        });
    }

    fn reader(&self, options: ReaderOptions, wakeup: Arc<Wakeup>) -> Result<Box<dyn LogReader>, LogError> {
        Ok(Box::new(SimReader::new(&self.sim, self.client, options, wakeup)))
    }

    fn writer(&self, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, LogError> {
        let what = format!("make the writer '{transactional_id}'");
        let producer = self.change(&what, |world| init_producer(world, &what, transactional_id))?;
        Ok(Box::new(SimWriter::new(&self.sim, self.client, transactional_id, producer)))
    }

    fn fencer(&self, transactional_id: &str) -> Result<Box<dyn Fencer>, LogError> {
        self.ask(&format!("prepare to fence '{transactional_id}'"), |_| Ok(()))?;
        Ok(Box::new(SimFencer { log: self.clone(), transactional_id: transactional_id.to_owned() }))
    }

    fn append(&self, message: &OutMessage) -> Result<Offset, LogError> {
        let what = format!("append to '{}'", message.topic);
        let size = message.payload.as_ref().map_or(0, Vec::len) + message.key.as_ref().map_or(0, Vec::len);
        if size > MESSAGE_BYTES_MAX {
            return Err(LogError::new(
                LogErrorKind::Invalid,
                format!("{what}: a message of {size} bytes is larger than {MESSAGE_BYTES_MAX}"),
            ));
        }
        self.change(&what, |world| {
            let refused = |refusal| refused(&what, refusal);
            let partition = choose_partition(world, &message.topic, message.partition, message.key.as_deref()).map_err(refused)?;
            let batch = batch_of(NOBODY, &[Record::of(message, world.now_ms)]);
            let append = |world: &mut World| world.core.produce(world.now_ms, None, &message.topic, partition, &batch).map_err(refused);
            let mut offset = append(world)?.base_offset;
            if world.strikes("append twice", world.faults.append_twice) {
                // The client is told of either.
                let second = append(world)?.base_offset;
                offset = if world.rng.random_bool(0.5) { offset } else { second };
            }
            Ok(offset)
        })
    }

    fn trim(&self, before: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        self.change(&format!("trim {} partitions", before.len()), |world| {
            for (partition, offset) in before {
                let trimmed = world.core.trim(&partition.topic, partition.partition, *offset);
                trimmed.map_err(|refusal| refused(&format!("trim {partition} to {offset}"), refusal))?;
            }
            Ok(())
        })
    }
}

/// A fence that is ready to fall.
pub struct SimFencer {
    log: SimLog,
    transactional_id: String,
}

impl Fencer for SimFencer {
    fn fence(self: Box<Self>) -> Result<(), LogError> {
        let what = format!("fence '{}'", self.transactional_id);
        self.log.change(&what, |world| init_producer(world, &what, &self.transactional_id).map(drop))
    }
}

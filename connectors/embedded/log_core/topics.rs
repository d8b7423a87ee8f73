//! Topics: create, delete, configure, add partitions, trim.

use std::collections::BTreeMap;

use super::config::TopicConfig;
use super::event::{Event, TopicId};
use super::partition::Partition;
use super::{LogCore, LogError, Topic};

const TOPIC_NAME_BYTES_MAX: usize = 249;

impl LogCore {
    /// All topics by name.
    pub fn topics(&self) -> impl Iterator<Item = (&str, &Topic)> {
        self.topics.iter().map(|(name, topic)| (name.as_str(), topic))
    }

    pub fn topic(&self, topic: &str) -> Result<&Topic, LogError> {
        self.topics.get(topic).ok_or(LogError::UnknownTopicOrPartition)
    }

    pub fn topic_name(&self, id: TopicId) -> Option<&str> {
        self.topic_names.get(&id).map(String::as_str)
    }

    pub fn partition(&self, topic: &str, partition: i32) -> Result<&Partition, LogError> {
        self.topic(topic)?.partition(partition)
    }

    /// Checks what `create_topic` would refuse.
    pub fn check_new_topic(&self, topic: &str, partition_count: i32, config: &BTreeMap<String, String>) -> Result<(), LogError> {
        let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let is_name = (1..=TOPIC_NAME_BYTES_MAX).contains(&topic.len()) && topic.bytes().all(is_name_byte);
        if !is_name || topic == "." || topic == ".." {
            return Err(LogError::InvalidTopicName);
        }
        if self.topics.contains_key(topic) {
            return Err(LogError::TopicExists);
        }
        let has_room = self.topics.len() < self.limits.topics_max;
        if !has_room || !(1..=self.limits.partitions_per_topic_max).contains(&partition_count) {
            return Err(LogError::InvalidPartitionCount);
        }
        TopicConfig::parse(config.clone()).map(drop)
    }

    pub fn create_topic(&mut self, topic: &str, partition_count: i32, config: BTreeMap<String, String>) -> Result<TopicId, LogError> {
        self.check_new_topic(topic, partition_count, &config)?;
        let number = self.next_topic_number;
        let id = topic_id(self.incarnation, number);
        self.commit(Event::TopicIdsTaken { next_topic_number: number + 1 });
        self.commit(Event::TopicCreated { topic: topic.to_owned(), id, partition_count, config });
        Ok(id)
    }

    pub fn delete_topic(&mut self, topic: &str) -> Result<(), LogError> {
        self.topic(topic)?;
        self.commit(Event::TopicDeleted { topic: topic.to_owned() });
        Ok(())
    }

    pub fn add_partitions(&mut self, topic: &str, partition_count: i32) -> Result<(), LogError> {
        let current = self.topic(topic)?.partition_count();
        if partition_count <= current || partition_count > self.limits.partitions_per_topic_max {
            return Err(LogError::InvalidPartitionCount);
        }
        self.commit(Event::PartitionsAdded { topic: topic.to_owned(), partition_count });
        Ok(())
    }

    /// Replaces all of a topic's own configuration.
    pub fn configure_topic(&mut self, topic: &str, config: BTreeMap<String, String>) -> Result<(), LogError> {
        self.topic(topic)?;
        TopicConfig::parse(config.clone())?;
        self.commit(Event::TopicConfigured { topic: topic.to_owned(), config });
        Ok(())
    }

    /// DeleteRecords: forgets what lies before `offset` (all records for -1) and returns the new log start.
    pub fn trim(&mut self, topic: &str, partition: i32, offset: i64) -> Result<i64, LogError> {
        let config = &self.topic(topic)?.config;
        if config.is_compacted && !config.is_deleted {
            return Err(LogError::PolicyViolation);
        }
        let log = self.partition(topic, partition)?;
        let start_offset = if offset == -1 { log.high_watermark() } else { offset };
        if start_offset < 0 || start_offset > log.high_watermark() {
            return Err(LogError::OffsetOutOfRange);
        }
        self.move_start(topic.to_owned(), partition, start_offset);
        Ok(self.partition(topic, partition)?.start_offset())
    }

    pub(super) fn move_start(&mut self, topic: String, partition: i32, start_offset: i64) {
        self.commit(Event::StartMoved { topic, partition, start_offset });
    }

    pub(super) fn apply_topic(&mut self, topic: &str, id: TopicId, partition_count: i32, config: &BTreeMap<String, String>) {
        let Ok(config) = TopicConfig::parse(config.clone()) else { return };
        let partitions = vec![Partition::default(); partition_count as usize];
        self.topic_names.insert(id, topic.to_owned());
        self.topics.insert(topic.to_owned(), Topic { id, config, partitions });
    }

    pub(super) fn apply_topic_deleted(&mut self, topic: &str) {
        let Some(deleted) = self.topics.remove(topic) else { return };
        self.topic_names.remove(&deleted.id);
        self.held_bytes -= deleted.partitions.iter().map(Partition::held_bytes).sum::<u64>();
        for offsets in self.offsets.values_mut() {
            offsets.forget_topic(topic);
        }
    }
}

/// Two rounds of a 64-bit mixer (splitmix64) over incarnation and number: distinct for distinct input, and it looks like
/// the version 4 UUID that tools expect.
fn topic_id(incarnation: u64, number: u64) -> TopicId {
    let mix = |value: u64| {
        let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    };
    let high = mix(incarnation.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let low = mix(high ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let bits = (u128::from(high) << 64) | u128::from(low);
    let versioned = (bits & !(0xf << 76)) | (0x4 << 76);
    TopicId((versioned & !(0x3 << 62)) | (0x2 << 62))
}

//! The whole durable state as events: what a journal starts anew from.

use std::sync::Arc;

use super::LogCore;
use super::event::{Event, PartitionMarks};

impl LogCore {
    /// Events that rebuild the present state in an empty core. Batches are shared, not copied, so this is quick.
    pub fn snapshot(&self) -> Vec<Event> {
        let mut events = vec![
            Event::ProducerIdsTaken { next_producer_id: self.next_producer_id },
            Event::TopicIdsTaken { next_topic_number: self.next_topic_number },
        ];
        for (name, topic) in &self.topics {
            events.push(Event::TopicCreated {
                topic: name.clone(),
                id: topic.id,
                partition_count: topic.partition_count(),
                config: topic.config.overrides.clone(),
            });
            let shared_name: Arc<str> = Arc::from(name.as_str());
            for (partition, log) in (0i32..).zip(&topic.partitions) {
                for batch in &log.batches {
                    let (appended_ms, batch) = (batch.appended_ms, batch.bytes.clone());
                    events.push(Event::BatchAppended { topic: shared_name.clone(), partition, appended_ms, batch });
                }
                let marks = log.marks();
                if marks != PartitionMarks::default() {
                    events.push(Event::PartitionRestored { topic: name.clone(), partition, marks });
                }
            }
        }
        for (transactional_id, state) in &self.transactions {
            events.push(Event::TransactionChanged { transactional_id: transactional_id.clone(), state: state.clone() });
        }
        for (group, offsets) in &self.offsets {
            let committed = offsets.committed.iter().map(|(at, offset)| (at.clone(), offset.clone())).collect();
            events.push(Event::OffsetsCommitted { group: group.clone(), offsets: committed });
            for (producer_id, staged) in &offsets.staged {
                let offsets = staged.iter().map(|(at, offset)| (at.clone(), offset.clone())).collect();
                events.push(Event::OffsetsStaged { group: group.clone(), producer_id: *producer_id, offsets });
            }
        }
        events
    }
}

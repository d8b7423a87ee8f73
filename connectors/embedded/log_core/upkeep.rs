//! What happens by the passing of time: transaction time-outs, sessions, retention, compaction, expiry.

use super::event::Event;
use super::{LogCore, compaction};

impl LogCore {
    /// Lets time pass. Cheap when nothing is due; call it every few tens of milliseconds.
    pub fn tick(&mut self, now_ms: i64) {
        self.abort_expired_transactions(now_ms);
        self.groups.tick(now_ms);
        if now_ms >= self.next_upkeep_ms {
            self.next_upkeep_ms = now_ms + self.limits.upkeep_interval_ms;
            self.enforce_retention(now_ms);
            self.compact(now_ms);
            self.expire_ids(now_ms);
        }
    }

    pub(super) fn enforce_retention(&mut self, now_ms: i64) {
        let mut moves = Vec::new();
        for (name, topic) in self.topics.iter().filter(|(_, topic)| topic.config.is_deleted) {
            let config = &topic.config;
            for (partition, log) in (0i32..).zip(&topic.partitions) {
                if let Some(start_offset) = log.retention_start(now_ms, config.retention_ms, config.retention_bytes) {
                    moves.push((name.clone(), partition, start_offset));
                }
            }
        }
        for (topic, partition, start_offset) in moves {
            self.move_start(topic, partition, start_offset);
        }
    }

    /// Not an event: a log that is read back uncompacted says the same, and is compacted again.
    fn compact(&mut self, now_ms: i64) {
        for topic in self.topics.values_mut().filter(|topic| topic.config.is_compacted) {
            for log in &mut topic.partitions {
                let before = log.held_bytes();
                compaction::compact_if_due(log, &topic.config, now_ms);
                self.held_bytes = self.held_bytes - before + log.held_bytes();
            }
        }
    }

    fn expire_ids(&mut self, now_ms: i64) {
        let silent_since_ms = now_ms.saturating_sub(self.limits.producer_id_expiration_ms);
        let mut logs = self.topics.values().flat_map(|topic| &topic.partitions);
        if logs.any(|log| log.has_silent_producer(silent_since_ms)) {
            self.commit(Event::ProducersExpired { silent_since_ms });
        }
        let idle_since_ms = now_ms.saturating_sub(self.limits.transactional_id_expiration_ms);
        let idle = self.transactions.iter().filter(|(_, state)| state.open_since_ms.is_none() && state.changed_ms < idle_since_ms);
        for transactional_id in idle.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.commit(Event::TransactionForgotten { transactional_id });
        }
    }
}

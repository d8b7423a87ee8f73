//! Positions of consumer groups: committed ones, and ones that wait for their transaction's end.

use std::collections::BTreeMap;

use super::event::{CommittedOffset, Event, TopicPartition};
use super::groups::Caller;
use super::{LogCore, LogError};

/// The offsets of one group. They are kept until the group or the topic is deleted.
#[derive(Clone, Debug, Default)]
pub struct GroupOffsets {
    pub(super) committed: BTreeMap<TopicPartition, CommittedOffset>,
    /// Per producer id, in the order of arrival.
    pub(super) staged: BTreeMap<i64, BTreeMap<TopicPartition, CommittedOffset>>,
}

impl GroupOffsets {
    pub(super) fn forget_topic(&mut self, topic: &str) {
        self.committed.retain(|(name, _), _| name != topic);
        for staged in self.staged.values_mut() {
            staged.retain(|(name, _), _| name != topic);
        }
    }
}

impl LogCore {
    /// Commits positions of a group. The result has one entry per offset, in order.
    pub fn commit_offsets(
        &mut self,
        now_ms: i64,
        group: &str,
        caller: &Caller<'_>,
        offsets: Vec<(TopicPartition, CommittedOffset)>,
    ) -> Vec<Result<(), LogError>> {
        if let Err(error) = self.groups.check_commit(now_ms, group, caller) {
            return vec![Err(error); offsets.len()];
        }
        let results: Vec<_> = offsets.iter().map(|offset| self.check_offset(offset)).collect();
        let accepted: Vec<_> = offsets.into_iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(offset, _)| offset).collect();
        if !accepted.is_empty() {
            self.commit(Event::OffsetsCommitted { group: group.to_owned(), offsets: accepted });
        }
        results
    }

    /// Stages positions within a transaction, all or none: visible when it commits.
    pub fn commit_offsets_in_transaction(
        &mut self,
        now_ms: i64,
        transactional_id: &str,
        producer: (i64, i16),
        group: &str,
        caller: &Caller<'_>,
        offsets: Vec<(TopicPartition, CommittedOffset)>,
    ) -> Result<(), LogError> {
        let state = self.transaction_of(transactional_id, producer.0, producer.1)?;
        if state.open_since_ms.is_none() || !state.groups.contains(group) {
            return Err(LogError::InvalidTransactionState);
        }
        if !caller.is_anonymous() {
            self.groups.check_member(now_ms, group, caller)?;
        }
        offsets.iter().try_for_each(|offset| self.check_offset(offset))?;
        self.commit(Event::OffsetsStaged { group: group.to_owned(), producer_id: producer.0, offsets });
        Ok(())
    }

    fn check_offset(&self, ((topic, partition), committed): &(TopicPartition, CommittedOffset)) -> Result<(), LogError> {
        if committed.metadata.len() > self.limits.offset_metadata_bytes_max {
            return Err(LogError::OffsetMetadataTooLarge);
        }
        self.partition(topic, *partition).map(drop)
    }

    /// A group's position; `require_stable` refuses while a transaction that is open may still change it (KIP-447).
    pub fn committed_offset(
        &self,
        group: &str,
        partition: &TopicPartition,
        require_stable: bool,
    ) -> Result<Option<&CommittedOffset>, LogError> {
        let Some(offsets) = self.offsets.get(group) else { return Ok(None) };
        if require_stable && offsets.staged.values().any(|staged| staged.contains_key(partition)) {
            return Err(LogError::UnstableOffset);
        }
        Ok(offsets.committed.get(partition))
    }

    /// The partitions that a group has positions for.
    pub fn partitions_with_offsets(&self, group: &str) -> impl Iterator<Item = &TopicPartition> {
        self.offsets.get(group).into_iter().flat_map(|offsets| offsets.committed.keys())
    }

    /// The groups that have positions, whether or not they have members.
    pub fn groups_with_offsets(&self) -> impl Iterator<Item = &str> {
        self.offsets.keys().map(String::as_str)
    }

    /// Deletes a group without members, with its offsets.
    pub fn delete_group(&mut self, group: &str) -> Result<(), LogError> {
        let had_members = self.groups.remove_empty(group)?;
        if !had_members && !self.offsets.contains_key(group) {
            return Err(LogError::UnknownGroup);
        }
        self.commit(Event::GroupDeleted { group: group.to_owned() });
        Ok(())
    }

    pub(super) fn apply_offsets(&mut self, event: &Event) {
        match event {
            Event::OffsetsCommitted { group, offsets } => {
                self.offsets.entry(group.clone()).or_default().committed.extend(offsets.iter().cloned());
            }
            Event::OffsetsStaged { group, producer_id, offsets } => {
                let group = self.offsets.entry(group.clone()).or_default();
                group.staged.entry(*producer_id).or_default().extend(offsets.iter().cloned());
            }
            Event::StagedOffsetsEnded { group, producer_id, commit } => {
                let Some(offsets) = self.offsets.get_mut(group) else { return };
                let staged = offsets.staged.remove(producer_id).unwrap_or_default();
                if *commit {
                    offsets.committed.extend(staged);
                }
                if offsets.committed.is_empty() && offsets.staged.is_empty() {
                    self.offsets.remove(group);
                }
            }
            Event::GroupDeleted { group } => {
                self.offsets.remove(group);
            }
            _ => {}
        }
    }
}

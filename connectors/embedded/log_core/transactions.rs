//! The transaction coordinator: producer ids and epochs, fencing, and both ends of a transaction.
//!
//! One transactional id has one current producer, told apart by its epoch. `init_producer_id` raises the epoch and, when a
//! transaction is open, aborts it in the same call (so there is no "concurrent transactions" to wait for, which a
//! replicated broker has). A transaction that stays open beyond its time-out is aborted and its epoch raised: its producer
//! finds itself fenced. All markers and offsets of an end are one batch of events, see [`LogCore::take_events`].

use std::sync::Arc;

use super::batch;
use super::event::{Event, TopicPartition, TransactionState};
use super::{LogCore, LogError};

/// Epochs stop here and the id gets a new producer id, so that raising an epoch never wraps.
const PRODUCER_EPOCH_MAX: i16 = i16::MAX - 1;

impl LogCore {
    /// A producer id and epoch. With a transactional id this fences its earlier producer and aborts what that left open;
    /// `current` is what the caller believes to hold (KIP-360), if anything.
    pub fn init_producer_id(
        &mut self,
        now_ms: i64,
        transactional_id: Option<&str>,
        timeout_ms: i64,
        current: Option<(i64, i16)>,
    ) -> Result<(i64, i16), LogError> {
        let Some(transactional_id) = transactional_id else { return Ok((self.take_producer_id(), 0)) };
        if !(1..=self.limits.transaction_timeout_ms_max).contains(&timeout_ms) {
            return Err(LogError::InvalidTransactionTimeout);
        }
        let known = self.transactions.get(transactional_id);
        if let (Some(state), Some(current)) = (known, current)
            && current != (state.producer_id, state.producer_epoch)
        {
            return Err(LogError::ProducerFenced);
        }
        let fresh = TransactionState {
            producer_id: -1,
            producer_epoch: PRODUCER_EPOCH_MAX,
            timeout_ms,
            open_since_ms: None,
            partitions: Default::default(),
            groups: Default::default(),
            last_outcome: None,
            changed_ms: now_ms,
        };
        let mut state = known.cloned().unwrap_or(fresh);
        if state.producer_epoch >= PRODUCER_EPOCH_MAX {
            // markers of the old producer id still carry an epoch above its last one
            if state.open_since_ms.is_some() {
                self.fence_and_abort(now_ms, &mut state);
            }
            state.producer_id = self.take_producer_id();
            state.producer_epoch = 0;
        } else if state.open_since_ms.is_some() {
            self.fence_and_abort(now_ms, &mut state);
        } else {
            state.producer_epoch += 1;
        }
        state.timeout_ms = timeout_ms;
        state.last_outcome = None;
        state.changed_ms = now_ms;
        let granted = (state.producer_id, state.producer_epoch);
        self.commit(Event::TransactionChanged { transactional_id: transactional_id.to_owned(), state });
        Ok(granted)
    }

    fn take_producer_id(&mut self) -> i64 {
        let id = self.next_producer_id;
        self.commit(Event::ProducerIdsTaken { next_producer_id: id + 1 });
        id
    }

    /// The state of an id, if this producer is its current one.
    pub(super) fn transaction_of(
        &self,
        transactional_id: &str,
        producer_id: i64,
        producer_epoch: i16,
    ) -> Result<&TransactionState, LogError> {
        match self.transactions.get(transactional_id) {
            Some(state) if state.producer_id != producer_id => Err(LogError::InvalidProducerIdMapping),
            Some(state) if state.producer_epoch != producer_epoch => Err(LogError::ProducerFenced),
            Some(state) => Ok(state),
            None => Err(LogError::InvalidProducerIdMapping),
        }
    }

    /// Whether this producer holds the id, with a transaction open: EndTxn of anybody else is refused.
    pub fn is_current_producer(&self, transactional_id: &str, producer: (i64, i16)) -> bool {
        self.transaction_of(transactional_id, producer.0, producer.1).is_ok_and(|state| state.open_since_ms.is_some())
    }

    /// Adds partitions to the open transaction, or opens one with them. All of them or none.
    pub fn add_partitions_to_transaction(
        &mut self,
        now_ms: i64,
        transactional_id: &str,
        producer: (i64, i16),
        partitions: &[TopicPartition],
    ) -> Result<(), LogError> {
        let mut state = self.transaction_of(transactional_id, producer.0, producer.1)?.clone();
        for (topic, partition) in partitions {
            self.partition(topic, *partition)?;
        }
        state.partitions.extend(partitions.iter().cloned());
        self.reopen(now_ms, transactional_id, state);
        Ok(())
    }

    /// Announces that offsets of a group will be part of the transaction.
    pub fn add_offsets_to_transaction(
        &mut self,
        now_ms: i64,
        transactional_id: &str,
        producer: (i64, i16),
        group: &str,
    ) -> Result<(), LogError> {
        let mut state = self.transaction_of(transactional_id, producer.0, producer.1)?.clone();
        state.groups.insert(group.to_owned());
        self.reopen(now_ms, transactional_id, state);
        Ok(())
    }

    fn reopen(&mut self, now_ms: i64, transactional_id: &str, mut state: TransactionState) {
        state.open_since_ms.get_or_insert(now_ms);
        state.changed_ms = now_ms;
        self.commit(Event::TransactionChanged { transactional_id: transactional_id.to_owned(), state });
    }

    /// Commits or aborts. Asking again for the end that a transaction already had is answered with success.
    pub fn end_transaction(&mut self, now_ms: i64, transactional_id: &str, producer: (i64, i16), commit: bool) -> Result<(), LogError> {
        let state = self.transaction_of(transactional_id, producer.0, producer.1)?;
        if state.open_since_ms.is_none() {
            return if state.last_outcome == Some(commit) { Ok(()) } else { Err(LogError::InvalidTransactionState) };
        }
        let mut state = state.clone();
        self.write_end(now_ms, &mut state, commit);
        self.commit(Event::TransactionChanged { transactional_id: transactional_id.to_owned(), state });
        Ok(())
    }

    /// Aborts transactions that are open for longer than their time-out and fences their producers.
    pub(super) fn abort_expired_transactions(&mut self, now_ms: i64) {
        let is_late = |state: &TransactionState| state.open_since_ms.is_some_and(|since| now_ms - since > state.timeout_ms);
        let late: Vec<_> =
            self.transactions.iter().filter(|(_, state)| is_late(state)).map(|(id, state)| (id.clone(), state.clone())).collect();
        for (transactional_id, mut state) in late {
            self.fence_and_abort(now_ms, &mut state);
            self.commit(Event::TransactionChanged { transactional_id, state });
        }
    }

    /// Raises the epoch, then aborts under it: the markers carry the new epoch, so the partitions fence as well.
    fn fence_and_abort(&mut self, now_ms: i64, state: &mut TransactionState) {
        state.producer_epoch = state.producer_epoch.saturating_add(1);
        self.write_end(now_ms, state, false);
    }

    /// Markers to every partition, then the offsets of every group.
    fn write_end(&mut self, now_ms: i64, state: &mut TransactionState, commit: bool) {
        for (topic, partition) in std::mem::take(&mut state.partitions) {
            let Ok(log) = self.partition(&topic, partition) else { continue }; // deleted meanwhile
            let marker = batch::end_marker(log.high_watermark(), state.producer_id, state.producer_epoch, commit, now_ms);
            self.commit(Event::BatchAppended { topic: Arc::from(topic), partition, appended_ms: now_ms, batch: marker });
        }
        for group in std::mem::take(&mut state.groups) {
            self.commit(Event::StagedOffsetsEnded { group, producer_id: state.producer_id, commit });
        }
        state.open_since_ms = None;
        state.last_outcome = Some(commit);
        state.changed_ms = now_ms;
    }
}

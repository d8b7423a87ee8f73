//! The ledger: which messages belonged to which transaction, and how each ended.
//!
//! A reader of the log can't tell this: a partition shows messages of one producer between two markers, never what was committed together
//! across partitions. The ledger reads the log core's events, which hold the truth, and hands out whole transactions as they end. So the
//! checks see "together or not at all" (E-3) without trusting anybody who wrote or read.
//!
//! What is held: the messages of open transactions, and nothing of ended ones.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::TopicPartition;
use streamshield_embedded::log_core::Event;
use streamshield_embedded::log_core::batch::{self, Batch};

/// A message as it lies in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub partition: TopicPartition,
    pub offset: Offset,
    pub timestamp_ms: i64,
    /// Whether the log set the timestamp.
    pub has_log_append_time: bool,
    pub key: Option<Bytes>,
    pub payload: Option<Bytes>,
    pub headers: Vec<(String, Bytes)>,
}

/// A transaction that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    pub transactional_id: String,
    pub producer_id: i64,
    /// The producer's transactions are counted from 1.
    pub number: u64,
    pub is_committed: bool,
    /// In the order in which they came.
    pub messages: Vec<Message>,
}

/// What the log has taken, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A message outside of any transaction.
    Plain(Message),
    Ended(Transaction),
}

#[derive(Default)]
struct Producer {
    transactional_id: String,
    ended: u64,
    open: Vec<Message>,
}

/// See the module text.
#[derive(Default)]
pub struct Ledger {
    producers: BTreeMap<i64, Producer>,
}

impl Ledger {
    /// Takes the events of one call of the log core, which hold the end of a transaction whole, and returns what they bring to
    /// an end.
    pub fn take(&mut self, events: &[Event]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut markers: BTreeMap<i64, (bool, Vec<TopicPartition>)> = BTreeMap::new();
        for event in events {
            match event {
                Event::BatchAppended { topic, partition, appended_ms, batch } => {
                    let Ok(stored) = Batch::stored(batch.clone(), *appended_ms) else { continue };
                    let place = TopicPartition::new(Arc::clone(topic), *partition);
                    let producer_id = stored.header.producer_id;
                    if stored.header.is_control() {
                        let ended = markers.entry(producer_id).or_default();
                        ended.0 = batch::marker_outcome(batch).unwrap_or(false);
                        ended.1.push(place);
                    } else if stored.header.is_transactional() {
                        self.producers.entry(producer_id).or_default().open.extend(messages(&place, &stored));
                    } else {
                        entries.extend(messages(&place, &stored).into_iter().map(Entry::Plain));
                    }
                }
                Event::TransactionChanged { transactional_id, state } => {
                    let producer = self.producers.entry(state.producer_id).or_default();
                    if producer.transactional_id != *transactional_id {
                        producer.transactional_id.clone_from(transactional_id);
                    }
                }
                _ => {}
            }
        }
        for (producer_id, (is_committed, partitions)) in markers {
            let producer = self.producers.entry(producer_id).or_default();
            producer.ended += 1;
            // All of them, unless the log core itself tore the transaction: then the rest shows in the next one.
            let (messages, open) =
                std::mem::take(&mut producer.open).into_iter().partition(|message| partitions.contains(&message.partition));
            producer.open = open;
            entries.push(Entry::Ended(Transaction {
                transactional_id: producer.transactional_id.clone(),
                producer_id,
                number: producer.ended,
                is_committed,
                messages,
            }));
        }
        entries
    }
}

/// The messages of a batch that a client of the simulation has written (never compressed).
pub(crate) fn messages(partition: &TopicPartition, stored: &Batch) -> Vec<Message> {
    let area = stored.bytes.slice(batch::BATCH_HEADER_BYTES..);
    let own = |bytes: Option<&[u8]>| bytes.map(|bytes| area.slice_ref(bytes));
    let has_log_append_time = stored.header.has_log_append_time();
    let records = batch::records(&area).map_while(|record| record);
    let message = |record: batch::RecordView<'_>| Message {
        partition: partition.clone(),
        offset: stored.base_offset + record.offset_delta,
        timestamp_ms: match has_log_append_time {
            true => stored.header.max_timestamp_ms,
            false => stored.header.base_timestamp_ms + record.timestamp_delta_ms,
        },
        has_log_append_time,
        key: own(record.key),
        payload: own(record.value),
        headers: record
            .header_pairs()
            .unwrap_or_default()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), area.slice_ref(value)))
            .collect(),
    };
    records.map(message).collect()
}

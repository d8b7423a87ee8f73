//! Reads committed messages by explicit position, many at a time, without waiting.
//!
//! One reader has one client. Its partitions are assigned one by one, each with its own queue ([`crate::fetch`]):
//!
//! ```text
//! broker ─► librdkafka's fetch queue ─► waiting (taken, beyond the last limit) ─► visit
//!            bounded in bytes             at most one batch per partition
//! ```
//!
//! - The client is made by the first `take`, when the number of partitions is known: librdkafka bounds its buffers per
//!   partition and only at creation. When partitions are added later and the share gets too large, a new client is
//!   made and every partition continues at its position.
//! - Positions are offsets. Control markers and aborted messages occupy offsets that are never visited, so the end is
//!   learnt from librdkafka's end-of-partition events, which carry the last stable offset (`at_end`). Markers expire like messages, so a partition is
//!   read on from its met end.
//! - A position that does not exist stays an error until the partition is assigned again: never guess another one.
//! - When all brokers are lost, the next `take` that has nothing says `Retry`, once; librdkafka reconnects by itself.

use crate::context::ClientEvents;
use crate::errors::{kind_of, log_error};
use crate::fetch::{FetchedBatch, FetchedMessage, PartitionQueue, ReaderClient};
use crate::properties::Properties;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::Message;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::{
    LogError, LogErrorKind, LogReader, MessageView, ReaderOptions, TakeLimit, Taken, TopicPartition, Wakeup,
};

/// Messages taken from librdkafka in one call.
const BATCH_MESSAGES: usize = 1024;
/// Messages visited in one call.
const VISIT_MESSAGES: usize = 256;
/// How long a connection that is made ahead may take.
pub(crate) const PREPARE_TIMEOUT: Duration = Duration::from_secs(1);
/// For how many partitions it is made.
const PREPARED_PARTITIONS: usize = 16;
/// Bound of a reader whose options name none, in bytes (M-1).
const BUFFER_BYTES: usize = 32 << 20;

/// One partition of a reader.
struct PartitionState {
    queue: PartitionQueue,
    /// Taken from the queue and not yet visited.
    waiting: VecDeque<FetchedMessage>,
}

/// What a partition stands at; survives a change of the client.
struct Position {
    next: Offset,
    at_end: Option<Offset>,
    /// An error that holds until the partition is assigned again.
    failed: Option<LogError>,
}

/// What a [`KafkaReader::take_batch`] did.
pub(crate) struct BatchTaken {
    pub batch: FetchedBatch,
    pub taken: Taken,
    /// A message at or after the limit's end is known to exist: nothing more follows before the end.
    pub past_end: bool,
}

/// A [`LogReader`] over librdkafka.
pub struct KafkaReader {
    properties: Properties,
    options: ReaderOptions,
    wakeup: Arc<Wakeup>,
    positions: BTreeMap<TopicPartition, Position>,
    // Messages and queues before their client.
    open: BTreeMap<TopicPartition, PartitionState>,
    client: Option<Arc<ReaderClient>>,
    /// Partitions that the client's buffers are sized for.
    capacity: usize,
}

impl KafkaReader {
    pub(crate) fn new(properties: &Properties, options: ReaderOptions, wakeup: Arc<Wakeup>) -> Result<Self, LogError> {
        let properties = properties.clone();
        properties.reader(BUFFER_BYTES, options.wait_max).create_native_config().map_err(|error| log_error("make a reader", &error))?;
        Ok(KafkaReader { properties, options, wakeup, positions: BTreeMap::new(), open: BTreeMap::new(), client: None, capacity: 0 })
    }

    /// The end of the partition's committed part, if all before it was taken and nothing was found there since. Commit markers lie before it.
    pub(crate) fn met_end(&self, partition: &TopicPartition) -> Option<Offset> {
        self.positions.get(partition).and_then(|position| position.at_end)
    }

    /// Makes the client if there is none for this many partitions, and assigns all of them. A new one has room for as many as `expected` at least.
    fn connect(&mut self, expected: usize) -> Result<Arc<ReaderClient>, LogError> {
        if let Some(client) = self.client.as_ref().filter(|_| self.positions.len() <= self.capacity) {
            return Ok(Arc::clone(client));
        }
        self.open.clear();
        self.client = None;
        self.capacity = capacity(self.positions.len().max(expected), self.options.partitions_max);
        let buffer_bytes = if self.options.buffer_bytes == 0 { BUFFER_BYTES } else { self.options.buffer_bytes };
        let events = ClientEvents::waking(Arc::clone(&self.wakeup));
        let config = self.properties.reader(buffer_bytes / self.capacity, self.options.wait_max);
        let client: ReaderClient = config.create_with_context(events).map_err(|error| log_error("make a reader", &error))?;
        let client = Arc::new(client);
        self.client = Some(Arc::clone(&client));
        let all: Vec<_> = self.positions.keys().cloned().collect();
        for partition in all {
            self.start(&client, &partition)?;
        }
        Ok(client)
    }

    /// Detaches and assigns one partition at its position.
    fn start(&mut self, client: &Arc<ReaderClient>, partition: &TopicPartition) -> Result<(), LogError> {
        let Some(position) = self.positions.get(partition).filter(|position| position.failed.is_none()) else { return Ok(()) };
        let queue = PartitionQueue::detach(client, &partition.topic, partition.partition, Arc::clone(&self.wakeup))
            .ok_or_else(|| LogError::new(LogErrorKind::Fatal, format!("'{partition}' is no partition's name")))?;
        let list = one(partition, Some(position.at_end.unwrap_or(position.next)))?;
        client.incremental_assign(&list).map_err(|error| log_error(&format!("read {partition}"), &error))?;
        self.open.insert(partition.clone(), PartitionState { queue, waiting: VecDeque::new() });
        Ok(())
    }

    fn stop(&mut self, partition: &TopicPartition) -> Result<(), LogError> {
        if self.open.remove(partition).is_some()
            && let Some(client) = &self.client
        {
            client.incremental_unassign(&one(partition, None)?).map_err(|error| log_error(&format!("stop reading {partition}"), &error))?;
        }
        Ok(())
    }

    /// Serves errors, log lines and tokens of the client.
    fn serve(&mut self, client: &Arc<ReaderClient>) -> Result<(), LogError> {
        let stray = match client.poll(Duration::ZERO) {
            // Reached only if a message has come before its partition was detached: read it again, in its queue. An end that was met there since is none.
            Some(Ok(message)) => {
                let stray = TopicPartition::new(message.topic(), message.partition());
                if let Some(position) = self.positions.get_mut(&stray) {
                    position.at_end = position.at_end.filter(|end| *end <= message.offset());
                }
                stray
            }
            Some(Err(error)) => {
                tracing::debug!(target: "kafka", "{error}");
                return match error.rdkafka_error_code() {
                    Some(code) if kind_of(code) == LogErrorKind::Fatal && code != Code::GroupAuthorizationFailed => {
                        Err(log_error("read", &error))
                    }
                    _ => Ok(()),
                };
            }
            None => return Ok(()),
        };
        self.stop(&stray)?;
        self.start(client, &stray)
    }

    /// Takes the messages of one step with their owner; the trait's `take` and the source are made of it.
    pub(crate) fn take_batch(&mut self, partition: &TopicPartition, limit: &TakeLimit) -> Result<BatchTaken, LogError> {
        let client = self.connect(0)?;
        self.serve(&client)?;
        if !self.open.contains_key(partition) {
            // The client refused it when it was made, or when the partition was put back: its own error says why.
            self.start(&client, partition)?;
        }
        let position = self.positions.get_mut(partition).ok_or_else(|| unassigned(partition))?;
        if let Some(failed) = &position.failed {
            return Err(failed.clone());
        }
        let state = self.open.get_mut(partition).ok_or_else(|| unassigned(partition))?;
        let mut cut = Cut { limit, messages: Vec::new(), bytes: 0, past_end: false };
        let error = cut.fill(state, position);
        if cut.messages.is_empty() {
            if let Some(error) = error {
                return Err(describe(partition, position, error));
            }
            if client.context().take_all_brokers_down() {
                return Err(LogError::new(
                    LogErrorKind::Retry,
                    format!("read {partition}: no broker of {} answers", self.properties.servers()),
                ));
            }
        } else if let Some(error) = error {
            // The messages before the error are good; it comes up again with the next call.
            state.waiting.push_front(error);
        }
        let taken = Taken { next: position.next, messages: cut.messages.len(), bytes: cut.bytes, at_end: position.at_end };
        Ok(BatchTaken { past_end: cut.past_end, batch: FetchedBatch::new(cut.messages, client), taken })
    }
}

/// A client has room for so many, if there can be that many: smaller shares would save nothing.
const CAPACITY_MIN: usize = 16;

/// Partitions that a new client is made for. One that becomes too small is replaced, which costs a connection and all that was fetched: so it has
/// room for twice as many, as after the loss of another reader, if there can be that many.
fn capacity(assigned: usize, partitions_max: usize) -> usize {
    match partitions_max {
        0 => assigned.next_power_of_two(),
        most => (2 * assigned).next_power_of_two().max(CAPACITY_MIN).min(most).max(assigned),
    }
}

/// Messages on their way into one step.
struct Cut<'a> {
    limit: &'a TakeLimit,
    messages: Vec<FetchedMessage>,
    bytes: usize,
    past_end: bool,
}

impl Cut<'_> {
    /// Moves messages into the cut until a limit, the end of what is there, or an error, which is returned.
    fn fill(&mut self, state: &mut PartitionState, position: &mut Position) -> Option<FetchedMessage> {
        let mut fetched = Vec::new();
        loop {
            while let Some(message) = state.waiting.pop_front() {
                match message.error() {
                    Some(Code::PartitionEOF) => {
                        position.at_end = Some(message.offset().max(position.next));
                        continue;
                    }
                    Some(_) => return Some(message),
                    None => {}
                }
                if !self.admits(&message) {
                    state.waiting.push_front(message);
                    return None;
                }
                position.next = message.offset() + 1;
                position.at_end = None;
                self.bytes += message.size_bytes();
                self.messages.push(message);
            }
            let wanted = (self.limit.messages - self.messages.len()).min(BATCH_MESSAGES);
            if wanted == 0
                || (self.bytes >= self.limit.bytes && !self.messages.is_empty())
                || state.queue.take_into(&mut fetched, wanted) == 0
            {
                return None;
            }
            state.waiting.extend(fetched.drain(..));
        }
    }

    fn admits(&mut self, message: &FetchedMessage) -> bool {
        if self.limit.end.is_some_and(|end| message.offset() >= end) {
            self.past_end = true;
            return false;
        }
        // The first message is taken whatever its size, else it would block its partition for ever.
        let fits = self.messages.is_empty() || self.bytes + message.size_bytes() <= self.limit.bytes;
        self.messages.len() < self.limit.messages && fits
    }
}

impl LogReader for KafkaReader {
    fn prepare(&mut self, topics: &[Arc<str>]) {
        let expected = self.options.partitions_max.min(PREPARED_PARTITIONS);
        let Ok(client) = self.connect(expected) else { return };
        for topic in topics {
            if let Err(error) = client.fetch_metadata(Some(&**topic), PREPARE_TIMEOUT) {
                tracing::debug!(target: "kafka", topic = &**topic, "{error}");
                return;
            }
        }
    }

    fn assign(&mut self, partition: &TopicPartition, from: Offset) -> Result<(), LogError> {
        if from < 0 {
            return Err(LogError::new(LogErrorKind::OutOfRange, format!("read {partition}: {from} is no offset")));
        }
        self.stop(partition)?;
        self.positions.insert(partition.clone(), Position { next: from, at_end: None, failed: None });
        if let Some(client) = self.client.clone()
            && self.positions.len() <= self.capacity
        {
            self.start(&client, partition)?;
        }
        // Someone must call `take` for the client to be made.
        self.wakeup.raise();
        Ok(())
    }

    fn serve_idle(&mut self) {
        if let (true, Some(client)) = (self.positions.is_empty(), self.client.clone())
            && let Err(error) = self.serve(&client)
        {
            tracing::debug!(target: "kafka", "{error}");
        }
    }

    fn unassign(&mut self, partition: &TopicPartition) -> Result<(), LogError> {
        self.positions.remove(partition);
        self.stop(partition)
    }

    fn take(
        &mut self,
        partition: &TopicPartition,
        limit: &TakeLimit,
        visit: &mut dyn FnMut(&[MessageView<'_>]),
    ) -> Result<Taken, LogError> {
        let taken = self.take_batch(partition, limit)?;
        for messages in taken.batch.messages.chunks(VISIT_MESSAGES) {
            with_views(messages, self.options.headers, visit);
        }
        Ok(taken.taken)
    }
}

/// Shows some messages to `visit`.
pub(crate) fn with_views(messages: &[FetchedMessage], with_headers: bool, visit: &mut dyn FnMut(&[MessageView<'_>])) {
    let mut headers = Vec::new();
    let mut ends = Vec::new();
    if with_headers {
        for message in messages {
            message.headers_into(&mut headers);
            ends.push(headers.len());
        }
    }
    let mut start = 0;
    let views: Vec<_> = messages
        .iter()
        .enumerate()
        .map(|(index, message)| {
            let end = ends.get(index).copied().unwrap_or(0);
            let view = message.view(&headers[start..end]);
            start = end;
            view
        })
        .collect();
    visit(&views);
}

fn unassigned(partition: &TopicPartition) -> LogError {
    LogError::new(LogErrorKind::Fatal, format!("{partition} is not assigned to this reader"))
}

/// Says what an error in a partition's queue means, and keeps it where it is final.
fn describe(partition: &TopicPartition, position: &mut Position, error: FetchedMessage) -> LogError {
    let kind = error.error().map_or(LogErrorKind::Retry, kind_of);
    let text = match kind {
        LogErrorKind::OutOfRange => format!("{partition} has no offset {} any more (or not yet): {}", position.next, error.error_text()),
        _ => format!("read {partition} at {}: {}", position.next, error.error_text()),
    };
    let described = LogError::new(kind, text);
    if matches!(kind, LogErrorKind::OutOfRange | LogErrorKind::Invalid) {
        position.failed = Some(described.clone());
    }
    described
}

fn one(partition: &TopicPartition, offset: Option<Offset>) -> Result<TopicPartitionList, LogError> {
    let mut list = TopicPartitionList::with_capacity(1);
    match offset {
        None => drop(list.add_partition(&partition.topic, partition.partition)),
        Some(offset) => list
            .add_partition_offset(&partition.topic, partition.partition, rdkafka::Offset::Offset(offset))
            .map_err(|error| log_error(&format!("read {partition}"), &error))?,
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::capacity;

    #[test]
    fn a_reader_has_room_for_what_another_one_leaves() {
        assert_eq!(capacity(10, 100), 32);
        assert_eq!(capacity(2, 100), 16);
        assert_eq!(capacity(2, 6), 6, "there are no more");
        assert_eq!(capacity(6, 6), 6);
        assert_eq!(capacity(3, 0), 4, "not known how many there can be");
        assert_eq!(capacity(7, 6), 7, "the topic has grown");
    }
}

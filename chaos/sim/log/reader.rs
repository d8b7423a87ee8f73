//! Reads committed messages by position, as far as the reader has heard of them.
//!
//! It skips aborted messages as a client does, by the list in the broker's answer, and gives what is there in random portions when the
//! plan says so. A position that does not exist stays an error until the partition is assigned again.

use super::{TopicPartition, refused};
use crate::world::{ClientId, Message, ReaderId, Sim, World, messages, retry};
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::{
    LogError, LogErrorKind, LogReader, MessageView, ReaderOptions, TakeLimit, Taken, TimestampType, Wakeup,
};
use streamshield_embedded::log_core::batch::{self, Batch};
use streamshield_embedded::log_core::{Fetched, Isolation};

/// One answer of the broker.
const FETCH_BYTES_MAX: usize = 1 << 20;

struct Position {
    next: Offset,
    failed: Option<LogError>,
}

/// See the module text.
pub struct SimReader {
    sim: Sim,
    client: ClientId,
    options: ReaderOptions,
    // Held: the world knows it only as long as somebody does.
    wakeup: Arc<Wakeup>,
    reader: ReaderId,
    positions: BTreeMap<TopicPartition, Position>,
}

impl SimReader {
    pub(super) fn new(sim: &Sim, client: ClientId, options: ReaderOptions, wakeup: Arc<Wakeup>) -> SimReader {
        let reader = sim.world().feeds().0.add(client, &wakeup);
        SimReader { sim: sim.clone(), client, options, wakeup, reader, positions: BTreeMap::new() }
    }
}

impl Drop for SimReader {
    fn drop(&mut self) {
        self.sim.world().feeds().0.remove(self.reader);
    }
}

impl LogReader for SimReader {
    fn assign(&mut self, partition: &TopicPartition, from: Offset) -> Result<(), LogError> {
        if from < 0 {
            return Err(LogError::new(LogErrorKind::OutOfRange, format!("read {partition}: {from} is no offset")));
        }
        let mut world = self.sim.world();
        if !world.is_alive(self.client) {
            return Err(retry("this process is dead"));
        }
        let (feeds, core) = world.feeds();
        feeds.assign(core, self.reader, partition);
        world.note(self.client, format_args!("assign {partition} from {from}"));
        self.positions.insert(partition.clone(), Position { next: from, failed: None });
        self.wakeup.raise();
        Ok(())
    }

    fn unassign(&mut self, partition: &TopicPartition) -> Result<(), LogError> {
        self.sim.world().feeds().0.unassign(self.reader, partition);
        self.positions.remove(partition);
        Ok(())
    }

    fn take(
        &mut self,
        partition: &TopicPartition,
        limit: &TakeLimit,
        visit: &mut dyn FnMut(&[MessageView<'_>]),
    ) -> Result<Taken, LogError> {
        let position = self
            .positions
            .get_mut(partition)
            .ok_or_else(|| LogError::new(LogErrorKind::Fatal, format!("{partition} is not assigned to this reader")))?;
        if let Some(failed) = &position.failed {
            return Err(failed.clone());
        }
        let mut world = self.sim.world();
        if !world.is_alive(self.client) {
            return Err(retry("this process is dead"));
        }
        let looked = if world.is_away(self.client) {
            Err(retry("the broker is away"))
        } else {
            look(&mut world, self.reader, partition, position.next)
        };
        let found = match looked {
            Ok(found) => found,
            Err(error) => {
                if matches!(error.kind, LogErrorKind::OutOfRange | LogErrorKind::Invalid) {
                    position.failed = Some(error.clone());
                }
                world.note(self.client, format_args!("take {partition} at {} -> {:?}", position.next, error.kind));
                return Err(error);
            }
        };
        let cut = Cut::of(&mut world, &found, limit);
        let from = position.next;
        if let Some(last) = cut.messages.last() {
            position.next = last.offset + 1;
        }
        let at_end = cut.is_all.then_some(found.end.max(position.next));
        let taken = Taken { next: position.next, messages: cut.messages.len(), bytes: cut.bytes, at_end };
        if taken.messages > 0 {
            world.note(self.client, format_args!("take {partition} at {from} -> {taken:?}"));
        }
        // The visitor may call the log.
        drop(world);
        show(cut.messages, self.options.headers, visit);
        Ok(taken)
    }
}

/// What a reader could take.
struct Found {
    messages: Vec<Message>,
    /// Up to where it has looked: nothing else lies before.
    end: Offset,
}

/// Reads from a position to the end of what the reader has heard of.
fn look(world: &mut World, reader: ReaderId, partition: &TopicPartition, from: Offset) -> Result<Found, LogError> {
    let what = format!("read {partition} at {from}");
    let (feeds, core) = world.feeds();
    let log = core.partition(&partition.topic, partition.partition).map_err(|refusal| refused(&what, refusal))?;
    if from < log.start_offset() || from > log.high_watermark() {
        let text = format!("{partition} has no offset {from}: it holds [{}, {})", log.start_offset(), log.high_watermark());
        return Err(LogError::new(LogErrorKind::OutOfRange, text));
    }
    let end = feeds.heard(reader, partition).unwrap_or(0).min(log.last_stable_offset());
    let mut found = Found { messages: Vec::new(), end: end.max(from) };
    let mut position = from;
    while position < end {
        let fetched = core.fetch(&partition.topic, partition.partition, position, Isolation::ReadCommitted, FETCH_BYTES_MAX, true);
        let fetched = fetched.map_err(|refusal| refused(&what, refusal))?;
        if fetched.batches.is_empty() {
            break;
        }
        position = committed(partition, &fetched, from, end, &mut found.messages)?;
    }
    Ok(found)
}

/// Appends the committed messages of one answer in `[from, end)`; returns the position behind its last batch.
fn committed(
    partition: &TopicPartition,
    fetched: &Fetched,
    from: Offset,
    end: Offset,
    into: &mut Vec<Message>,
) -> Result<Offset, LogError> {
    let mut beginning: BTreeSet<(Offset, i64)> = fetched.aborted.iter().map(|(producer_id, first)| (*first, *producer_id)).collect();
    let mut aborting = BTreeSet::new();
    let mut position = from;
    for bytes in &fetched.batches {
        let stored = Batch::stored(bytes.clone(), 0).map_err(|refusal| refused(&format!("read {partition}"), refusal))?;
        while let Some((_, producer_id)) = beginning.first().copied().filter(|(first, _)| *first <= stored.last_offset) {
            aborting.insert(producer_id);
            beginning.pop_first();
        }
        position = stored.last_offset + 1;
        let header = &stored.header;
        if header.is_control() {
            if batch::marker_outcome(bytes) == Some(false) {
                aborting.remove(&header.producer_id);
            }
        } else if !(header.is_transactional() && aborting.contains(&header.producer_id)) {
            into.extend(messages(partition, &stored).into_iter().filter(|message| (from..end).contains(&message.offset)));
        }
    }
    Ok(position)
}

/// The messages of one take.
struct Cut<'a> {
    messages: &'a [Message],
    bytes: usize,
    /// Nothing that the reader has heard of is left.
    is_all: bool,
}

impl<'a> Cut<'a> {
    fn of(world: &mut World, found: &'a Found, limit: &TakeLimit) -> Cut<'a> {
        let mut most = limit.messages;
        if found.messages.len() > 1 && world.strikes("short take", world.faults.short_take) {
            most = most.min(world.rng.random_range(1..found.messages.len()));
        }
        let (mut count, mut bytes) = (0, 0);
        for message in &found.messages {
            let size = message.key.as_ref().map_or(0, |key| key.len()) + message.payload.as_ref().map_or(0, |payload| payload.len());
            // The first message is taken whatever its size, else it would block its partition for ever.
            let fits = count == 0 || bytes + size <= limit.bytes;
            if count == most || !fits || limit.end.is_some_and(|end| message.offset >= end) {
                break;
            }
            count += 1;
            bytes += size;
        }
        Cut { messages: &found.messages[..count], bytes, is_all: count == found.messages.len() }
    }
}

fn show(messages: &[Message], with_headers: bool, visit: &mut dyn FnMut(&[MessageView<'_>])) {
    if messages.is_empty() {
        return;
    }
    let headers_of = |message: &'_ Message| -> Vec<(String, bytes::Bytes)> { if with_headers { message.headers.clone() } else { vec![] } };
    let owned: Vec<_> = messages.iter().map(headers_of).collect();
    let headers: Vec<Vec<(&str, &[u8])>> =
        owned.iter().map(|headers| headers.iter().map(|(name, value)| (name.as_str(), value.as_ref())).collect()).collect();
    let views: Vec<_> = messages
        .iter()
        .zip(&headers)
        .map(|(message, headers)| MessageView {
            offset: message.offset,
            timestamp_ms: message.timestamp_ms,
            timestamp_type: if message.has_log_append_time { TimestampType::LogAppendTime } else { TimestampType::CreateTime },
            key: message.key.as_deref(),
            payload: message.payload.as_deref(),
            headers,
        })
        .collect();
    visit(&views);
}

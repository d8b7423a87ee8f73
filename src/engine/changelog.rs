//! A region's changelog: the proof of what was committed, and, in Tier 2, what it changed.
//!
//! ```text
//! … delta delta epoch(record: 2 chunks) │ epoch(record) │ delta epoch(record: 1 chunk) … high watermark
//! ```
//! The end is the high watermark, taken after all fences; the last stable offset must reach it: somebody who follows has read up to there, anybody
//! else asks ([`StableEnd`]). The end of a partition under read committed is only the last stable offset: an open transaction hides behind it.

use crate::content::DELTA_KEY;
pub use crate::content::RECORD_KEY;
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::{
    Isolation, Log, LogError, LogErrorKind, LogReader, MessageView, ReaderOptions, TakeLimit, TopicPartition, Wakeup,
};

/// How long an open transaction of somebody fenced may hold the last stable offset back before it is an alarm.
pub const STABLE_TIME_MAX: Duration = Duration::from_secs(30);
const TAKE: TakeLimit = TakeLimit { messages: 10_000, bytes: 8 << 20, end: None };
const TAIL_BUFFER_BYTES: usize = 4 << 20;

/// One message of a changelog.
pub enum Item<'a> {
    DeltaChunk(&'a [u8]),
    Record(Box<EpochRecord>),
}

/// What a message is; the error names its place.
pub fn item<'a>(partition: &TopicPartition, message: &MessageView<'a>) -> Result<Item<'a>, LogError> {
    let payload = message.payload.unwrap_or_default();
    if message.key == Some(DELTA_KEY) {
        return Ok(Item::DeltaChunk(payload));
    }
    match EpochRecord::decode(payload) {
        Ok(record) => Ok(Item::Record(Box::new(record))),
        Err(error) => Err(LogError::new(LogErrorKind::Invalid, format!("{partition} offset {}: {error}", message.offset))),
    }
}

/// Waits for the committed end of a partition: nothing before the high watermark is open.
pub struct StableEnd {
    partition: TopicPartition,
    high: Option<Offset>,
    since: Duration,
}

impl StableEnd {
    /// To be made after all fences; `now` is steady time.
    pub fn new(partition: TopicPartition, now: Duration) -> StableEnd {
        StableEnd { partition, high: None, since: now }
    }

    /// The end, once it is stable.
    pub fn turn(&mut self, log: &dyn Log, now: Duration) -> Result<Option<Offset>, LogError> {
        let high = match self.high {
            Some(high) => high,
            None => *self.high.insert(log.bounds(&self.partition, Isolation::ReadUncommitted)?.high),
        };
        if log.bounds(&self.partition, Isolation::ReadCommitted)?.high >= high {
            return Ok(Some(high));
        }
        if now.saturating_sub(self.since) > STABLE_TIME_MAX {
            return Err(held_open(&self.partition, high));
        }
        Ok(None)
    }
}

/// Whether a reader that has not come to the end after all fences is held up by an open transaction: then somebody was not fenced.
pub fn check_stable(log: &dyn Log, partition: &TopicPartition, end: Offset) -> Result<(), LogError> {
    if log.bounds(partition, Isolation::ReadCommitted)?.high >= end {
        return Ok(());
    }
    Err(held_open(partition, end))
}

fn held_open(partition: &TopicPartition, end: Offset) -> LogError {
    let message = format!("O-1: {partition} has an open transaction of a producer that nobody fenced (before offset {end})");
    LogError::new(LogErrorKind::Fatal, message)
}

/// Reads what some changelogs hold from given positions to their stable ends, and keeps the last record of each.
pub struct Tail {
    parts: Vec<TailPart>,
    reader: Option<Box<dyn LogReader>>,
    wakeup: Arc<Wakeup>,
}

struct TailPart {
    partition: TopicPartition,
    position: Offset,
    end: StableEnd,
    stable: Option<Offset>,
    last: Option<EpochRecord>,
}

impl Tail {
    pub fn new(from: impl IntoIterator<Item = (TopicPartition, Offset)>, wakeup: Arc<Wakeup>, now: Duration) -> Tail {
        let part = |(partition, position): (TopicPartition, Offset)| TailPart {
            end: StableEnd::new(partition.clone(), now),
            partition,
            position,
            stable: None,
            last: None,
        };
        Tail { parts: from.into_iter().map(part).collect(), reader: None, wakeup }
    }

    /// Per partition the last record at or after its position and the end, once all are known.
    pub fn turn(&mut self, log: &dyn Log, now: Duration) -> Result<Option<Vec<(Option<EpochRecord>, Offset)>>, LogError> {
        for part in self.parts.iter_mut().filter(|part| part.stable.is_none()) {
            part.stable = part.end.turn(log, now)?;
        }
        if self.parts.iter().any(|part| part.stable.is_none()) {
            return Ok(None);
        }
        if self.reader.is_none() {
            let options = ReaderOptions { buffer_bytes: TAIL_BUFFER_BYTES, ..Default::default() };
            let mut reader = log.reader(options, self.wakeup.clone())?;
            for part in self.parts.iter().filter(|part| !part.is_read()) {
                reader.assign(&part.partition, part.position)?;
            }
            self.reader = Some(reader);
        }
        let reader = self.reader.as_mut().expect("made above");
        for part in self.parts.iter_mut().filter(|part| !part.is_read()) {
            match part.read(reader.as_mut()) {
                // Trimmed meanwhile, behind a checkpoint (K-2): so what was there is of epochs that are known to be committed.
                Err(error) if error.kind == LogErrorKind::OutOfRange => {
                    part.position = part.position.max(log.bounds(&part.partition, Isolation::ReadUncommitted)?.low);
                    reader.assign(&part.partition, part.position)?;
                }
                read => read?,
            }
        }
        if self.parts.iter().all(TailPart::is_read) {
            return Ok(Some(self.parts.iter_mut().map(|part| (part.last.take(), part.stable.unwrap_or(part.position))).collect()));
        }
        Ok(None)
    }
}

impl TailPart {
    fn is_read(&self) -> bool {
        self.stable.is_some_and(|end| self.position >= end)
    }

    fn read(&mut self, reader: &mut dyn LogReader) -> Result<(), LogError> {
        let (partition, last, mut foreign) = (&self.partition, &mut self.last, None);
        let taken = reader.take(partition, &TAKE, &mut |messages| {
            for message in messages {
                match item(partition, message) {
                    Ok(Item::Record(record)) => *last = Some(*record),
                    Ok(Item::DeltaChunk(_)) => {}
                    Err(error) => foreign = Some(error),
                }
            }
        })?;
        self.position = taken.next.max(taken.at_end.unwrap_or(taken.next)).max(self.position);
        foreign.map_or(Ok(()), Err)
    }
}

//! Reads a region's changelog: the proof of what was committed.
//!
//! The end is the high watermark, taken after all fences; the last stable offset must reach it. (The end of a partition under read
//! committed is only the last stable offset: an open transaction hides behind it.)

use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::{Isolation, Log, LogError, LogErrorKind, LogReader, ReaderOptions, TakeLimit, TopicPartition, Wakeup};

/// How long an open transaction of somebody fenced may hold the last stable offset back before it is an alarm.
const STABLE_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
const TAKE: TakeLimit = TakeLimit { messages: 10_000, bytes: 8 << 20, end: None };

/// The committed end of a changelog partition: waits until nothing before the high watermark is open.
pub fn stable_end(log: &dyn Log, partition: &TopicPartition) -> Result<Offset, LogError> {
    let high = log.bounds(partition, Isolation::ReadUncommitted)?.high;
    let deadline = Instant::now() + STABLE_DEADLINE;
    while log.bounds(partition, Isolation::ReadCommitted)?.high < high {
        if Instant::now() > deadline {
            let message = format!("O-1: {partition} has an open transaction of a producer that nobody fenced (before offset {high})");
            return Err(LogError::new(LogErrorKind::Fatal, message));
        }
        std::thread::sleep(POLL);
    }
    Ok(high)
}

/// A part of a changelog to be read: `[from, end)`.
#[derive(Clone, Debug)]
pub struct Range {
    pub partition: TopicPartition,
    pub from: Offset,
    pub end: Offset,
}

/// Visits the epoch records of several ranges through one reader, in order per range: `visit(range, record)`. A record that is not ours
/// stops with an error.
pub fn read(log: &dyn Log, ranges: &[Range], visit: &mut dyn FnMut(usize, EpochRecord)) -> Result<(), LogError> {
    let mut open: Vec<(usize, Offset)> = Vec::new();
    let wakeup = Arc::new(Wakeup::default());
    if ranges.iter().all(|range| range.from >= range.end) {
        return Ok(());
    }
    let mut reader = log.reader(ReaderOptions { buffer_bytes: 16 << 20, ..Default::default() }, wakeup.clone())?;
    for (index, range) in ranges.iter().enumerate().filter(|(_, range)| range.from < range.end) {
        reader.assign(&range.partition, range.from)?;
        open.push((index, range.from));
    }
    let mut heard = Instant::now();
    while !open.is_empty() {
        let mut moved = false;
        for (index, position) in &mut open {
            let next = take(reader.as_mut(), &ranges[*index], *position, &mut |record| visit(*index, record))?;
            moved |= next > *position;
            *position = next;
        }
        open.retain(|(index, position)| *position < ranges[*index].end);
        if moved {
            heard = Instant::now();
        } else {
            wakeup.wait(POLL);
        }
        if heard.elapsed() > STABLE_DEADLINE {
            let range = &ranges[open[0].0];
            return Err(LogError::new(
                LogErrorKind::Retry,
                format!("{} does not give its records up to offset {}", range.partition, range.end),
            ));
        }
    }
    Ok(())
}

fn take(reader: &mut dyn LogReader, range: &Range, position: Offset, visit: &mut dyn FnMut(EpochRecord)) -> Result<Offset, LogError> {
    let mut malformed = None;
    let taken = reader.take(&range.partition, &TAKE, &mut |messages| {
        for message in messages.iter().filter(|message| message.offset < range.end) {
            match EpochRecord::decode(message.payload.unwrap_or_default()) {
                Ok(record) => visit(record),
                Err(error) => malformed = Some(format!("{} offset {}: {error}", range.partition, message.offset)),
            }
        }
    });
    match (malformed, taken) {
        (Some(message), _) => Err(LogError::new(LogErrorKind::Invalid, message)),
        (None, Ok(taken)) => Ok(taken.next.max(taken.at_end.unwrap_or(taken.next))),
        (None, Err(error)) if error.kind == LogErrorKind::Retry => Ok(position),
        (None, Err(error)) => Err(error),
    }
}

/// The last record at or after `from`, and the partition's stable end.
pub fn read_last(log: &dyn Log, partition: &TopicPartition, from: Offset) -> Result<(Option<EpochRecord>, Offset), LogError> {
    let end = stable_end(log, partition)?;
    let mut last = None;
    read(log, &[Range { partition: partition.clone(), from, end }], &mut |_, record| last = Some(record))?;
    Ok((last, end))
}

//! Reads a region's changelog: the proof of what was committed.
//!
//! The end is the high watermark, taken after all fences; the last stable offset must reach it. (The end of a partition under read
//! committed is only the last stable offset: an open transaction hides behind it.)

use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::{Isolation, Log, LogError, LogErrorKind, ReaderOptions, TakeLimit, TopicPartition, Wakeup};

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

/// Visits the epoch records in `[from, end)`; a record that is not ours stops with an error.
pub fn read(log: &dyn Log, partition: &TopicPartition, from: Offset, end: Offset, visit: &mut dyn FnMut(EpochRecord)) -> Result<(), LogError> {
    if from >= end {
        return Ok(());
    }
    let wakeup = Arc::new(Wakeup::default());
    let mut reader = log.reader(ReaderOptions { buffer_bytes: 16 << 20, ..Default::default() }, wakeup.clone())?;
    reader.assign(partition, from)?;
    let deadline = Instant::now() + STABLE_DEADLINE;
    let mut position = from;
    let mut malformed = None;
    while position < end {
        let taken = reader.take(partition, &TAKE, &mut |messages| {
            for message in messages.iter().filter(|message| message.offset < end) {
                match EpochRecord::decode(message.payload.unwrap_or_default()) {
                    Ok(record) => visit(record),
                    Err(error) => malformed = Some(format!("{partition} offset {}: {error}", message.offset)),
                }
            }
        });
        if let Some(message) = malformed.take() {
            return Err(LogError::new(LogErrorKind::Invalid, message));
        }
        match taken {
            Ok(taken) => {
                position = taken.next.max(taken.at_end.unwrap_or(taken.next));
                if taken.messages == 0 && position < end {
                    wakeup.wait(POLL);
                }
            }
            Err(error) if error.kind == LogErrorKind::Retry && Instant::now() < deadline => wakeup.wait(POLL),
            Err(error) => return Err(error),
        }
        if Instant::now() > deadline + STABLE_DEADLINE {
            return Err(LogError::new(LogErrorKind::Retry, format!("{partition} does not give its records up to offset {end}")));
        }
    }
    Ok(())
}

/// The last record at or after `from`, and the partition's stable end.
pub fn read_last(log: &dyn Log, partition: &TopicPartition, from: Offset) -> Result<(Option<EpochRecord>, Offset), LogError> {
    let end = stable_end(log, partition)?;
    let mut last = None;
    read(log, partition, from, end, &mut |record| last = Some(record))?;
    Ok((last, end))
}

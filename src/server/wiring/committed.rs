//! What is committed of a job's own topics, read from outside: records of changelogs, and heads of frames in exchanges.
//!
//! The job may be running. So an end is asked for first, and then waited for until no open transaction hides anything before it: whatever
//! was committed before the question has been seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, Offset, RegionId};
use streamshield_core::ports::log::{
    Bounds, Isolation, Log, LogError, LogErrorKind, LogReader, MessageView, ReaderOptions, TakeLimit, TopicPartition, Wakeup,
};
use streamshield_engine::changelog::{Item, item};
use streamshield_engine::exchange::frame;

const TAKE: TakeLimit = TakeLimit { messages: 10_000, bytes: 8 << 20, end: None };
const BUFFER_BYTES: usize = 16 << 20;
pub const POLL: Duration = Duration::from_millis(20);
/// A cluster that gives nothing for this long is away.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A transaction whose worker has died is ended by the broker after its time-out, 30 s unless the job file says otherwise.
const STABLE_TIME_MAX: Duration = Duration::from_secs(90);
/// The last record of a changelog is looked for so many messages before its end.
const TAIL_MESSAGES: Offset = 1_024;

/// What lies in a partition of an exchange.
#[derive(Default)]
pub struct Heads {
    pub low: Offset,
    pub high: Offset,
    /// Per upstream region each epoch, and the first message that has a frame of it. Both ascend.
    epochs: BTreeMap<RegionId, Vec<(Offset, Epoch)>>,
}

impl Heads {
    pub fn add(&mut self, offset: Offset, upstream: RegionId, epoch: Epoch) {
        let known = self.epochs.entry(upstream).or_default();
        if known.last().is_none_or(|(_, newest)| *newest < epoch) {
            known.push((offset, epoch));
        }
    }

    /// Whether a region that goes on there finds all that it has not taken: nothing of that is trimmed, and the topic was not made anew.
    pub fn holds(&self, position: Offset) -> bool {
        (self.low..=self.high).contains(&position)
    }

    /// The largest epoch of an upstream that lies before this position, or a bound of it. None: what lay there is trimmed, and nothing
    /// that is left bounds it.
    pub fn taken(&self, upstream: RegionId, position: Offset) -> Option<Epoch> {
        let known = self.epochs.get(&upstream).map(Vec::as_slice).unwrap_or_default();
        let before = known.partition_point(|(offset, _)| *offset < position);
        match before.checked_sub(1) {
            Some(last) => Some(known[last].1),
            None if self.low == 0 => Some(Epoch(0)),
            // A large epoch lies in several messages: its first ones may be among those that are trimmed.
            None => known.first().map(|(_, epoch)| *epoch),
        }
    }
}

/// Reads what is committed of one partition after the other.
pub struct Reading {
    log: Arc<dyn Log>,
    reader: Box<dyn LogReader>,
    wakeup: Arc<Wakeup>,
}

impl Reading {
    pub fn new(log: Arc<dyn Log>) -> Result<Reading, LogError> {
        let wakeup = Arc::new(Wakeup::default());
        let reader = log.reader(ReaderOptions { buffer_bytes: BUFFER_BYTES, ..Default::default() }, wakeup.clone())?;
        Ok(Reading { log, reader, wakeup })
    }

    /// Where a partition begins and ends now, with all transactions before the end over.
    pub fn stable(&self, partition: &TopicPartition) -> Result<Bounds, LogError> {
        let bounds = patiently(|| self.log.bounds(partition, Isolation::ReadUncommitted))?;
        let deadline = Instant::now() + STABLE_TIME_MAX;
        while patiently(|| self.log.bounds(partition, Isolation::ReadCommitted))?.high < bounds.high {
            if Instant::now() > deadline {
                let message = format!("{partition} has had an open transaction before offset {} for {STABLE_TIME_MAX:?}", bounds.high);
                return Err(LogError::new(LogErrorKind::Retry, message));
            }
            std::thread::sleep(POLL);
        }
        Ok(bounds)
    }

    /// Visits what is committed in `[from, end)`.
    pub fn read(
        &mut self,
        partition: &TopicPartition,
        from: Offset,
        end: Offset,
        visit: &mut dyn FnMut(&MessageView<'_>),
    ) -> Result<(), LogError> {
        if from >= end {
            return Ok(());
        }
        self.reader.assign(partition, from)?;
        let (mut position, mut heard) = (from, Instant::now());
        while position < end {
            let taken = self.reader.take(partition, &TAKE, &mut |messages| {
                messages.iter().filter(|message| message.offset < end).for_each(&mut *visit);
            });
            let next = match taken {
                Ok(taken) => taken.next.max(taken.at_end.unwrap_or(taken.next)),
                Err(error) if error.kind == LogErrorKind::Retry => position,
                Err(error) => return Err(error),
            };
            if next > position {
                (position, heard) = (next, Instant::now());
            } else if heard.elapsed() > SILENCE_MAX {
                return Err(LogError::new(LogErrorKind::Retry, format!("{partition} gives nothing from offset {position} on")));
            } else {
                self.wakeup.wait(POLL);
            }
        }
        self.reader.unassign(partition)
    }

    /// Records of a changelog without their steps, which tell of another job's topics; or only the last one.
    pub fn records(&mut self, changelog: &TopicPartition, only_last: bool) -> Result<Vec<EpochRecord>, LogError> {
        let Bounds { low, high } = self.stable(changelog)?;
        let from = if only_last { low.max(high - TAIL_MESSAGES) } else { low };
        let (mut records, mut foreign) = (Vec::new(), None);
        self.read(changelog, from, high, &mut |message| match item(changelog, message) {
            Ok(Item::Record(record)) => {
                if only_last {
                    records.clear();
                }
                records.push(without_steps(*record));
            }
            Ok(Item::DeltaChunk(_)) => {}
            Err(error) => foreign = Some(error),
        })?;
        foreign.map_or(Ok(records), Err)
    }

    pub fn heads(&mut self, input: &TopicPartition) -> Result<Heads, LogError> {
        let Bounds { low, high } = self.stable(input)?;
        let (mut heads, mut foreign) = (Heads { low, high, ..Default::default() }, None);
        self.read(input, low, high, &mut |message| match frame::spans(message.payload.unwrap_or_default()) {
            Ok(spans) => spans.iter().for_each(|span| heads.add(message.offset, span.upstream, span.epoch)),
            Err(error) => foreign = Some(not_ours(input, message.offset, &error)),
        })?;
        foreign.map_or(Ok(heads), Err)
    }

    pub fn is_empty(&mut self, partition: &TopicPartition, bounds: Bounds) -> Result<bool, LogError> {
        let mut is_empty = true;
        // What aborted transactions have left has offsets, too.
        self.read(partition, bounds.low, bounds.high, &mut |_| is_empty = false)?;
        Ok(is_empty)
    }
}

/// As the first record of another changelog: no delta precedes it there, and its steps were of other topics.
pub fn without_steps(record: EpochRecord) -> EpochRecord {
    EpochRecord { steps: Vec::new(), delta: None, ..record }
}

/// Asks again while the cluster is busy, or does not know yet of a topic that was just made.
pub fn patiently<T>(mut ask: impl FnMut() -> Result<T, LogError>) -> Result<T, LogError> {
    let deadline = Instant::now() + SILENCE_MAX;
    loop {
        match ask() {
            Err(error) if matches!(error.kind, LogErrorKind::Retry | LogErrorKind::Missing) && Instant::now() < deadline => {
                std::thread::sleep(POLL);
            }
            answer => return answer,
        }
    }
}

pub fn not_ours(partition: &TopicPartition, offset: Offset, error: &frame::FrameError) -> LogError {
    LogError::new(LogErrorKind::Invalid, format!("{partition} offset {offset} holds a message that is none of ours: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use streamshield_core::ids::StageId;

    fn region(partition: u32) -> RegionId {
        RegionId { stage: StageId(0), partition }
    }

    #[test]
    fn what_a_region_has_taken_is_told_by_the_frames_before_it() {
        let mut heads = Heads::default();
        for (offset, partition, epoch) in [(0, 0, 4), (2, 0, 5), (2, 1, 9), (4, 0, 5), (6, 0, 8)] {
            heads.add(offset, region(partition), Epoch(epoch));
        }
        let taken = |partition, position| heads.taken(region(partition), position).map(|epoch| epoch.0);
        assert_eq!([0, 1, 2, 3, 6, 7].map(|position| taken(0, position)), [0, 4, 4, 5, 5, 8].map(Some));
        assert_eq!((taken(1, 2), taken(1, 3), taken(2, 7)), (Some(0), Some(9), Some(0)));
    }

    #[test]
    fn of_what_is_trimmed_the_frames_behind_it_are_a_bound() {
        let mut heads = Heads { low: 10, ..Default::default() };
        heads.add(12, region(0), Epoch(7));
        let taken = |partition, position| heads.taken(region(partition), position).map(|epoch| epoch.0);
        assert_eq!((taken(0, 10), taken(0, 13), taken(1, 10)), (Some(7), Some(7), None));
    }

    #[test]
    fn a_region_can_stand_neither_before_what_is_trimmed_nor_behind_the_end_of_a_topic_that_was_made_anew() {
        let holds = |low, high, position| Heads { low, high, ..Default::default() }.holds(position);
        assert_eq!([9, 10, 13, 14, 15].map(|position| holds(10, 14, position)), [false, true, true, true, false]);
        assert_eq!([0, 1, 500].map(|position| holds(0, 0, position)), [true, false, false]);
    }
}

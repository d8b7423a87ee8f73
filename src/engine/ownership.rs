//! The control log seen from a running process: join, fence, confirm.
//!
//! Order, always: join → fence whoever joined before → read → confirm → begin (architecture §6). A process learns from
//! this log alone whether it still owns the job (O-1): a FENCED error proves nothing, since brokers report a
//! coordinator's time-out in the same words.

use crate::runtime::EngineError;
use crate::topics;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::control::{ControlRecord, ControlState, Genesis};
use streamshield_core::ids::{Incarnation, Offset};
use streamshield_core::ports::log::{
    Isolation, Log, LogError, LogErrorKind, LogReader, OutMessage, ReaderOptions, TakeLimit, TopicPartition, Wakeup,
};

/// Records are small; this bounds one take.
const TAKE: TakeLimit = TakeLimit { messages: 10_000, bytes: 8 << 20, end: None };
const POLL: Duration = Duration::from_millis(20);
/// How long the log may be silent before a start is given up.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Whether this process may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Owner,
    /// A later process joined.
    TakenOver(Incarnation),
}

/// Position in the control log, and what it said up to there.
pub struct Ownership {
    log: Arc<dyn Log>,
    partition: TopicPartition,
    reading: Mutex<Reading>,
    pub incarnation: Incarnation,
    pub transactional_ids: Vec<String>,
}

struct Reading {
    reader: Box<dyn LogReader>,
    wakeup: Arc<Wakeup>,
    position: Offset,
    state: ControlState,
}

impl Ownership {
    /// Joins: from here on this process is the owner, until a later one joins.
    pub fn join(log: Arc<dyn Log>, job: &str, slots: usize, clock_ms: i64) -> Result<Ownership, EngineError> {
        let partition = TopicPartition::new(topics::control(job), 0);
        let mut reading = Reading::open(log.as_ref(), &partition)?;
        reading.read_to_end(log.as_ref(), &partition)?;
        let earlier = reading.state.owner().map_or(0, |owner| owner.0);
        let incarnation = Incarnation((clock_ms.max(0) as u64).max(earlier + 1));
        let transactional_ids: Vec<String> = (0..slots).map(|slot| format!("{job}-{}-{slot}", incarnation.0)).collect();
        let ownership = Ownership { log, partition, reading: Mutex::new(reading), incarnation, transactional_ids };
        ownership.append(&ControlRecord::Joined { incarnation, transactional_ids: ownership.transactional_ids.clone() })?;
        Ok(ownership)
    }

    /// Fences all producers of earlier processes, so that the end of every changelog means something.
    pub fn fence_earlier(&self) -> Result<usize, EngineError> {
        let state = self.read()?;
        let ids = state.must_fence(self.incarnation);
        for id in &ids {
            retrying("fence an earlier producer", || self.log.fence(id))?;
        }
        for incarnation in state.unfenced(self.incarnation) {
            self.append(&ControlRecord::Fenced { incarnation })?;
        }
        Ok(ids.len())
    }

    /// The job's genesis; `make` is asked when there is none, and what the log says wins.
    pub fn genesis(&self, make: impl FnOnce() -> Result<Genesis, EngineError>) -> Result<Genesis, EngineError> {
        if let Some(genesis) = self.read()?.genesis() {
            return Ok(genesis.clone());
        }
        self.append(&ControlRecord::Genesis(make()?))?;
        let state = self.read()?;
        state
            .genesis()
            .cloned()
            .ok_or_else(|| EngineError { message: "the control log lost a genesis that it acknowledged".into(), hint: None })
    }

    /// Appends a record, reads it back, and tells who owns the job at its offset.
    pub fn confirm(&self) -> Result<Standing, LogError> {
        let message = self.message(&ControlRecord::Confirm { incarnation: self.incarnation });
        let offset = self.log.append(&message)?;
        let mut reading = self.reading.lock();
        reading.read_to(&self.partition, offset + 1)?;
        Ok(match reading.state.owner() {
            Some(owner) if owner != self.incarnation => Standing::TakenOver(owner),
            _ => Standing::Owner,
        })
    }

    fn read(&self) -> Result<ControlState, EngineError> {
        let mut reading = self.reading.lock();
        reading.read_to_end(self.log.as_ref(), &self.partition)?;
        Ok(reading.state.clone())
    }

    fn append(&self, record: &ControlRecord) -> Result<Offset, EngineError> {
        retrying("write to the control topic", || self.log.append(&self.message(record)))
    }

    fn message(&self, record: &ControlRecord) -> OutMessage {
        OutMessage {
            topic: self.partition.topic.clone(),
            partition: Some(0),
            key: None,
            payload: Some(record.encode()),
            headers: Vec::new(),
            timestamp_ms: None,
        }
    }
}

impl Reading {
    fn open(log: &dyn Log, partition: &TopicPartition) -> Result<Reading, EngineError> {
        let wakeup = Arc::new(Wakeup::default());
        let options = ReaderOptions { buffer_bytes: 4 << 20, ..Default::default() };
        let mut reader = retrying("read the control topic", || log.reader(options.clone(), wakeup.clone()))?;
        let low = retrying("read the control topic", || log.bounds(partition, Isolation::ReadUncommitted))?.low;
        reader.assign(partition, low)?;
        Ok(Reading { reader, wakeup, position: low, state: ControlState::default() })
    }

    fn read_to_end(&mut self, log: &dyn Log, partition: &TopicPartition) -> Result<(), EngineError> {
        let high = retrying("read the control topic", || log.bounds(partition, Isolation::ReadUncommitted))?.high;
        Ok(self.read_to(partition, high)?)
    }

    fn read_to(&mut self, partition: &TopicPartition, end: Offset) -> Result<(), LogError> {
        let deadline = Instant::now() + START_DEADLINE;
        while self.position < end {
            let state = &mut self.state;
            let taken = self.reader.take(partition, &TAKE, &mut |messages| {
                for message in messages {
                    state.apply(message.payload.unwrap_or_default());
                }
            });
            match taken {
                Ok(taken) => {
                    self.position = taken.next.max(taken.at_end.unwrap_or(taken.next));
                    if taken.messages == 0 && self.position < end {
                        self.wakeup.wait(POLL);
                    }
                }
                Err(error) if error.kind == LogErrorKind::Retry => self.wakeup.wait(POLL),
                Err(error) => return Err(error),
            }
            if Instant::now() > deadline {
                return Err(LogError::new(LogErrorKind::Retry, format!("the control topic did not give its records up to offset {end}")));
            }
        }
        Ok(())
    }
}

/// Repeats a call while the log says "try again", up to the start deadline.
pub fn retrying<T>(what: &str, mut call: impl FnMut() -> Result<T, LogError>) -> Result<T, EngineError> {
    let deadline = Instant::now() + START_DEADLINE;
    let mut pause = Duration::from_millis(20);
    loop {
        match call() {
            Err(error) if error.kind == LogErrorKind::Retry && Instant::now() < deadline => {
                tracing::debug!(%error, "could not {what}, trying again");
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_secs(1));
            }
            Err(error) => {
                let hint = "is the broker reachable, and may this user do that there?".to_string();
                return Err(EngineError { message: format!("could not {what}: {error}"), hint: Some(hint) });
            }
            Ok(value) => return Ok(value),
        }
    }
}

impl From<LogError> for EngineError {
    fn from(error: LogError) -> Self {
        EngineError { message: error.message, hint: None }
    }
}

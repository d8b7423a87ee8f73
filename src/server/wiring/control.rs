//! The control log of a job, read from outside: for questions and for the few things that a person may say in it.
//!
//! Nobody joins by reading. The records are folded as every worker folds them, so what is shown is what the workers act on.

use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::cluster::{Cluster, ControlRecord, Entry};
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::{
    Isolation, Log, LogError, LogErrorKind, LogReader, OutMessage, ReaderOptions, TakeLimit, TimestampType, TopicPartition, Wakeup,
};
use streamshield_engine::topics;

const TAKE: TakeLimit = TakeLimit { messages: 10_000, bytes: 8 << 20, end: None };
const BUFFER_BYTES: usize = 4 << 20;
const POLL: Duration = Duration::from_millis(20);
/// A cluster that gives no more of its records for this long is away.
const READ_TIME_MAX: Duration = Duration::from_secs(15);
/// The log may be trimmed while it is read, again and again.
const OPEN_ATTEMPTS: usize = 5;

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The topic does not exist, or is empty.
    #[error("the job has never run: there is nothing in its control topic `{topic}`")]
    NeverRan { topic: String },
    #[error("the control topic can't be read: {0}")]
    Log(#[from] LogError),
    /// What was said is in the log; what came of it could not be read.
    #[error("the request is written, but what came of it can't be read: {0}")]
    NotReadBack(LogError),
    /// What lies there can't be understood from its low end on.
    #[error("the control topic can't be read from its beginning: {0}")]
    Replay(String),
}

/// A position in a control log, and what it said up to there.
pub struct ControlLog {
    log: Arc<dyn Log>,
    partition: TopicPartition,
    reader: Box<dyn LogReader>,
    wakeup: Arc<Wakeup>,
    position: Offset,
    pub cluster: Cluster,
}

/// A record as it was read.
struct Kept {
    offset: Offset,
    append_time_ms: Option<i64>,
    payload: Vec<u8>,
}

impl ControlLog {
    /// Reads a job's control log from its low end to its present end.
    pub fn open(log: Arc<dyn Log>, job: &str) -> Result<ControlLog, ControlError> {
        let topic = topics::control(job);
        if log.describe_topic(&topic)?.is_none() {
            return Err(ControlError::NeverRan { topic });
        }
        let partition = TopicPartition::new(topic, 0);
        let mut attempt = 1;
        loop {
            match ControlLog::open_once(&log, &partition) {
                // Between the question for the low end and the read a worker has trimmed the log.
                Err(ControlError::Log(error)) if error.kind == LogErrorKind::OutOfRange && attempt < OPEN_ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
    }

    fn open_once(log: &Arc<dyn Log>, partition: &TopicPartition) -> Result<ControlLog, ControlError> {
        let bounds = log.bounds(partition, Isolation::ReadUncommitted)?;
        if bounds.high == 0 {
            return Err(ControlError::NeverRan { topic: partition.topic.to_string() });
        }
        let wakeup = Arc::new(Wakeup::default());
        let mut reader = log.reader(ReaderOptions { buffer_bytes: BUFFER_BYTES, ..Default::default() }, wakeup.clone())?;
        reader.assign(partition, bounds.low)?;
        let mut reading = ControlLog {
            log: log.clone(),
            partition: partition.clone(),
            reader,
            wakeup,
            position: bounds.low,
            cluster: Cluster::default(),
        };
        let mut kept = Vec::new();
        reading.read_to(bounds.high, &mut |entry| {
            kept.push(Kept { offset: entry.offset, append_time_ms: entry.append_time_ms, payload: entry.payload.to_vec() });
        })?;
        let entries = kept.iter().map(|kept| Entry { offset: kept.offset, append_time_ms: kept.append_time_ms, payload: &kept.payload });
        reading.cluster = Cluster::replay(bounds.low, entries).map_err(|error| ControlError::Replay(error.to_string()))?;
        Ok(reading)
    }

    /// Folds what has come since.
    pub fn refresh(&mut self) -> Result<(), ControlError> {
        let high = self.log.bounds(&self.partition, Isolation::ReadUncommitted)?.high;
        Ok(self.fold_to(high)?)
    }

    /// Says something as an operator and reads it back, so that `cluster` knows what came of it.
    pub fn append(&mut self, record: &ControlRecord) -> Result<(), ControlError> {
        let message = OutMessage {
            topic: self.partition.topic.clone(),
            partition: Some(0),
            key: None,
            payload: Some(record.encode()),
            headers: Vec::new(),
            timestamp_ms: None,
        };
        let offset = self.log.append(&message)?;
        self.fold_to(offset + 1).map_err(ControlError::NotReadBack)
    }

    fn fold_to(&mut self, end: Offset) -> Result<(), LogError> {
        let mut cluster = std::mem::take(&mut self.cluster);
        let read = self.read_to(end, &mut |entry| {
            cluster.apply(entry);
        });
        self.cluster = cluster;
        read
    }

    fn read_to(&mut self, end: Offset, each: &mut dyn FnMut(Entry<'_>)) -> Result<(), LogError> {
        let mut deadline = Instant::now() + READ_TIME_MAX;
        while self.position < end {
            let before = self.position;
            let taken = self.reader.take(&self.partition, &TAKE, &mut |messages| {
                for message in messages {
                    let append_time_ms = (message.timestamp_type == TimestampType::LogAppendTime).then_some(message.timestamp_ms);
                    each(Entry { offset: message.offset, append_time_ms, payload: message.payload.unwrap_or_default() });
                }
            });
            match taken {
                Ok(taken) => {
                    self.position = taken.next.max(taken.at_end.unwrap_or(taken.next)).max(self.position);
                    if taken.messages == 0 && self.position < end {
                        self.wakeup.wait(POLL);
                    }
                }
                Err(error) if error.kind == LogErrorKind::Retry => self.wakeup.wait(POLL),
                Err(error) => return Err(error),
            }
            let now = Instant::now();
            if self.position > before {
                deadline = now + READ_TIME_MAX;
            } else if now > deadline {
                return Err(LogError::new(LogErrorKind::Retry, format!("it did not give its records up to offset {end} in time")));
            }
        }
        Ok(())
    }
}

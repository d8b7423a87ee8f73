//! The control log seen from one worker: what it says, and the worker's own words in it.
//!
//! ```text
//! control topic ─ reader ─► Cluster::apply, record by record ─► view (members, assignment, fences)
//!       ▲                                                             │ version moved: wake everybody
//!       └── append: joined · heartbeat · ready · released · fenced · confirm …
//! ```
//! Everything that an actor does about membership it does because the view says so, never because a call failed: a FENCED error
//! proves nothing, since brokers report a coordinator's time-out in the same words. The view only moves forward, and what it takes away
//! from an incarnation (its membership) never comes back, so an actor that looks at a later state than it had to is only more careful (O-1).

use crate::clock::Clock;
use crate::runtime::EngineError;
use crate::topics;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use streamshield_core::cluster::{Cluster, ControlRecord, Effect, Entry, ExpiryCause, Standing};
use streamshield_core::ids::{Incarnation, Offset};
use streamshield_core::ports::log::{
    Isolation, Log, LogError, LogErrorKind, LogReader, OutMessage, ReaderOptions, TakeLimit, TimestampType, TopicPartition, Wakeup,
};

/// Records are small; this bounds one take.
const TAKE: TakeLimit = TakeLimit { messages: 10_000, bytes: 8 << 20, end: None };
const BUFFER_BYTES: usize = 4 << 20;
/// How long the log may be silent before a start is given up.
pub const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long a broker may not have heard of a topic that was created.
const MISSING_DEADLINE: Duration = Duration::from_secs(10);

/// Position in the control log, and what it said up to there.
pub struct Membership {
    log: Arc<dyn Log>,
    pub job: String,
    partition: TopicPartition,
    pub incarnation: Incarnation,
    reader: Mutex<Box<dyn LogReader>>,
    cluster: RwLock<Cluster>,
    version: AtomicU64,
    /// The next offset to be read: everything before it is in `cluster`.
    position: AtomicI64,
    /// The broker clock of `cluster`, for readers that are in a hurry; 0: there is none.
    broker_clock_ms: AtomicI64,
    /// Records that somebody waits for.
    awaited: Mutex<BTreeSet<Offset>>,
    listeners: Mutex<Vec<Arc<Wakeup>>>,
    /// The worker that was expired last, and how long it had been silent.
    silence: Mutex<Option<(Incarnation, u64)>>,
}

impl Membership {
    /// A worker's view, taken over from its start, where `cluster` is the fold of everything before `position`.
    pub fn new(
        log: Arc<dyn Log>,
        job: &str,
        incarnation: Incarnation,
        reader: Box<dyn LogReader>,
        cluster: Cluster,
        position: Offset,
    ) -> Self {
        let version = AtomicU64::new(cluster.version());
        let broker_clock_ms = AtomicI64::new(cluster.broker_clock_ms().unwrap_or(0));
        Membership {
            log,
            job: job.to_string(),
            partition: control_partition(job),
            incarnation,
            reader: Mutex::new(reader),
            cluster: RwLock::new(cluster),
            version,
            position: AtomicI64::new(position),
            broker_clock_ms,
            awaited: Mutex::default(),
            listeners: Mutex::default(),
            silence: Mutex::default(),
        }
    }

    /// Is woken when the view has changed, or a record that somebody waits for was read.
    pub fn add_listener(&self, wakeup: Arc<Wakeup>) {
        self.listeners.lock().push(wakeup);
    }

    /// Reads and folds what is there. True: something was.
    pub fn read(&self) -> Result<bool, LogError> {
        let mut reader = self.reader.lock();
        let mut cluster = self.cluster.write();
        let mut effects = Vec::new();
        let taken = reader.take(&self.partition, &TAKE, &mut |messages| {
            for message in messages {
                let append_time_ms = (message.timestamp_type == TimestampType::LogAppendTime).then_some(message.timestamp_ms);
                let payload = message.payload.unwrap_or_default();
                effects.extend(cluster.apply(Entry { offset: message.offset, append_time_ms, payload }));
            }
        })?;
        let version = cluster.version();
        self.broker_clock_ms.store(cluster.broker_clock_ms().unwrap_or(0), Ordering::Relaxed);
        drop(cluster);
        effects.iter().for_each(|effect| self.tell(effect));
        let before = self.position.load(Ordering::SeqCst);
        let position = taken.next.max(taken.at_end.unwrap_or(taken.next)).max(before);
        self.position.store(position, Ordering::SeqCst);
        let arrived = {
            let mut awaited = self.awaited.lock();
            let later = awaited.split_off(&position);
            !std::mem::replace(&mut *awaited, later).is_empty()
        };
        if self.version.swap(version, Ordering::SeqCst) != version || arrived {
            self.listeners.lock().iter().for_each(|listener| listener.raise());
        }
        Ok(taken.messages > 0)
    }

    /// Moves when there is something to act on.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// Looks at the view. The caller must not append meanwhile.
    pub fn view<R>(&self, look: impl FnOnce(&Cluster) -> R) -> R {
        look(&self.cluster.read())
    }

    pub fn standing(&self) -> Standing {
        self.view(|cluster| cluster.standing(self.incarnation))
    }

    /// Appends a record and returns its offset. After an error it may still be in the log: a repeated record is a no-op.
    pub fn append(&self, record: &ControlRecord) -> Result<Offset, LogError> {
        self.log.append(&message(&self.partition, record))
    }

    /// The same for several records: one way to the log and back.
    pub fn append_all(&self, records: &[ControlRecord]) -> Result<Vec<Offset>, LogError> {
        let messages: Vec<OutMessage> = records.iter().map(|record| message(&self.partition, record)).collect();
        self.log.append_all(&messages)
    }

    /// Whether the record at this offset has been read back. If not, its reading will wake the listeners.
    pub fn has_read(&self, offset: Offset) -> bool {
        let mut awaited = self.awaited.lock();
        let has_read = self.position.load(Ordering::SeqCst) > offset;
        if !has_read {
            awaited.insert(offset);
        }
        has_read
    }

    /// What the control log says the time is, since 1970: the same for all workers that have read as far.
    pub fn broker_clock_ms(&self) -> Option<i64> {
        Some(self.broker_clock_ms.load(Ordering::Relaxed)).filter(|clock_ms| *clock_ms > 0)
    }

    pub fn position(&self) -> Offset {
        self.position.load(Ordering::SeqCst)
    }

    /// Whether the log begins behind what was read: the same log, trimmed, and not a new one that is shorter.
    pub fn is_trimmed_away(&self) -> Result<bool, LogError> {
        Ok(self.log.bounds(&self.partition, Isolation::ReadUncommitted)?.low > self.position())
    }

    /// Deletes the control log before this offset: a snapshot stands for it.
    pub fn trim(&self, before: Offset) -> Result<(), LogError> {
        self.log.trim(&[(self.partition.clone(), before)])
    }

    /// How long the region's previous owner had been silent when it was expired, in ms of log clock; 0 where it was not expired.
    pub fn silence_before(&self, previous: Incarnation) -> u64 {
        self.silence.lock().filter(|(incarnation, _)| *incarnation == previous).map_or(0, |(_, silent_ms)| silent_ms)
    }

    fn tell(&self, effect: &Effect) {
        match effect {
            Effect::Malformed { offset } => {
                metrics::counter!("streamshield_control_records_malformed_total").increment(1);
                tracing::warn!(offset, "the control topic holds a record that is none of ours; it is ignored");
            }
            Effect::Expired { incarnation, cause } => {
                metrics::counter!("streamshield_workers_expired_total").increment(1);
                tracing::warn!(incarnation = incarnation.0, ?cause, "a worker is gone");
                if let ExpiryCause::Silent { silent_ms } = cause {
                    *self.silence.lock() = Some((*incarnation, *silent_ms));
                }
            }
            Effect::Quarantined { region, reason } => {
                tracing::warn!(%region, reason, "a region is quarantined: nobody works on it, and the rest of the job goes on");
            }
            other => tracing::debug!(effect = ?other, "cluster"),
        }
    }
}

pub fn control_partition(job: &str) -> TopicPartition {
    TopicPartition::new(topics::control(job), 0)
}

pub fn message(partition: &TopicPartition, record: &ControlRecord) -> OutMessage {
    OutMessage {
        topic: partition.topic.clone(),
        partition: Some(0),
        key: None,
        payload: Some(record.encode()),
        headers: Vec::new(),
        timestamp_ms: None,
    }
}

/// A start's first look at the control log: reads from its low end to where it ended when the reading began.
pub struct ControlReading {
    partition: TopicPartition,
    pub reader: Box<dyn LogReader>,
    low: Offset,
    end: Offset,
    pub position: Offset,
    /// `(offset, append time, payload)`
    entries: Vec<(Offset, Option<i64>, Vec<u8>)>,
}

impl ControlReading {
    pub fn open(log: &dyn Log, job: &str, wakeup: Arc<Wakeup>) -> Result<ControlReading, LogError> {
        let partition = control_partition(job);
        let bounds = log.bounds(&partition, Isolation::ReadUncommitted)?;
        let mut reader = log.reader(ReaderOptions { buffer_bytes: BUFFER_BYTES, ..Default::default() }, wakeup)?;
        reader.assign(&partition, bounds.low)?;
        Ok(ControlReading { partition, reader, low: bounds.low, end: bounds.high, position: bounds.low, entries: Vec::new() })
    }

    /// True: everything up to the end has been read.
    pub fn turn(&mut self) -> Result<bool, LogError> {
        if self.position < self.end {
            let entries = &mut self.entries;
            let taken = self.reader.take(&self.partition, &TAKE, &mut |messages| {
                for message in messages {
                    let append_time_ms = (message.timestamp_type == TimestampType::LogAppendTime).then_some(message.timestamp_ms);
                    entries.push((message.offset, append_time_ms, message.payload.unwrap_or_default().to_vec()));
                }
            })?;
            self.position = taken.next.max(taken.at_end.unwrap_or(taken.next)).max(self.position);
        }
        Ok(self.position >= self.end)
    }

    /// The fold of what was read.
    pub fn fold(&mut self) -> Result<Cluster, EngineError> {
        let entries = std::mem::take(&mut self.entries);
        let entries =
            entries.iter().map(|(offset, append_time_ms, payload)| Entry { offset: *offset, append_time_ms: *append_time_ms, payload });
        Cluster::replay(self.low, entries).map_err(|error| EngineError {
            message: format!("the control topic {} can't be understood: {error}", self.partition.topic),
            hint: Some("was it changed by somebody else, or trimmed by hand? A new job name begins with a new one".into()),
        })
    }
}

/// Repeats a call while the log says "try again", up to the start deadline. For starts only: nobody takes turns yet.
///
/// What is asked for has just been created, by this worker or by another one: of several brokers some hear of it later, and say until then that it is missing.
pub fn retrying<T>(clock: &dyn Clock, what: &str, mut call: impl FnMut() -> Result<T, LogError>) -> Result<T, EngineError> {
    let began = clock.steady();
    let is_passing = |kind: LogErrorKind| match kind {
        LogErrorKind::Retry => clock.steady() < began + START_DEADLINE,
        LogErrorKind::Missing => clock.steady() < began + MISSING_DEADLINE,
        _ => false,
    };
    let mut pause = Duration::from_millis(20);
    loop {
        match call() {
            Err(error) if is_passing(error.kind) => {
                tracing::debug!(%error, "could not {what}, trying again");
                clock.pause(pause);
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

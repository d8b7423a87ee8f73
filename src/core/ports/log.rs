//! The log port: everything the engine needs of Kafka.
//!
//! Reading is read-committed and by explicit position. Writing is transactional, one writer per slot. Whoever
//! creates a writer (or calls [`Log::fence`]) with a transactional id has fenced all earlier ones with that id: their open
//! transaction is aborted before the call returns.

use crate::ids::Offset;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl TopicPartition {
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        TopicPartition { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// What the caller should do about a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogErrorKind {
    /// The log is away or busy: keep everything and call again.
    Retry,
    /// A newer writer may have taken over: look at the log before anything else. Does not prove that somebody did.
    Fenced,
    /// The position does not exist (retention, a re-created topic that is shorter): never guess another one.
    OutOfRange,
    /// Topic or partition does not exist.
    Missing,
    /// This message can never be written (too large), or what was read is damaged, perhaps only on its way.
    Invalid,
    /// Access refused, bad configuration, a bug: stop and tell.
    Fatal,
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct LogError {
    pub kind: LogErrorKind,
    pub message: String,
}

impl LogError {
    pub fn new(kind: LogErrorKind, message: impl Into<String>) -> Self {
        LogError { kind, message: message.into() }
    }
}

/// A message as it lies in the client's fetch buffer; valid during the visit only.
#[derive(Clone, Copy, Debug)]
pub struct MessageView<'a> {
    pub offset: Offset,
    /// Milliseconds since 1970, −1 when the message has none.
    pub timestamp_ms: i64,
    pub timestamp_type: TimestampType,
    pub key: Option<&'a [u8]>,
    pub payload: Option<&'a [u8]>,
    /// Empty unless the reader was made with `headers: true`.
    pub headers: &'a [(&'a str, &'a [u8])],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    NotAvailable,
    CreateTime,
    LogAppendTime,
}

/// Bounds of one `take`; whichever is met first ends it.
#[derive(Clone, Copy, Debug)]
pub struct TakeLimit {
    pub messages: usize,
    pub bytes: usize,
    /// Take nothing at or after this position (a replay wants exact cuts).
    pub end: Option<Offset>,
}

/// What a `take` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Position after the last visited message (its offset + 1); unchanged when nothing was visited.
    pub next: Offset,
    pub messages: usize,
    pub bytes: usize,
    /// The committed end of the partition, when the reader stands at it: nothing visible lies in `[next, end)`.
    pub at_end: Option<Offset>,
}

/// Lets readers on other threads wake a slot that has nothing to do.
#[derive(Debug, Default)]
pub struct Wakeup {
    raised: Mutex<bool>,
    condition: Condvar,
}

impl Wakeup {
    pub fn raise(&self) {
        *self.raised.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = true;
        self.condition.notify_one();
    }

    /// Lowers it and says whether it was raised: for whoever gives turns to many and waits for none.
    pub fn take(&self) -> bool {
        std::mem::take(&mut *self.raised.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Waits until raised or until the time is over, and lowers it.
    pub fn wait(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut raised = self.raised.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        while !*raised {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            raised = self.condition.wait_timeout(raised, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        *raised = false;
    }
}

/// Where a reader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    Offset(Offset),
    Beginning,
    /// The committed end at the time of the call.
    End,
    /// The first message with a timestamp at or after this many milliseconds since 1970.
    Timestamp(i64),
}

/// Options of a reader.
#[derive(Clone, Debug, Default)]
pub struct ReaderOptions {
    pub headers: bool,
    /// Bound of what the client buffers for this reader, over all its partitions, in bytes (M-1).
    pub buffer_bytes: usize,
    /// How many partitions there can be for it, where that is known; 0: not known. Buffers are sized for twice as many as are assigned, at most for
    /// this many, so that taking over those of another reader does not mean to start over.
    pub partitions_max: usize,
    /// How long the broker may sit on a question that it has nothing for; None: the client's default. Short where the *end* of a partition is waited
    /// for, which is told by an answer without messages.
    pub wait_max: Option<Duration>,
}

/// Reads committed messages of several partitions by explicit position.
pub trait LogReader: Send {
    /// Connects, and finds out where these topics lie, before there is anything to read: the first partition need not wait for it. What fails here is
    /// done when it is needed. Bounded in time.
    fn prepare(&mut self, topics: &[Arc<str>]) {
        let _ = topics;
    }
    /// Called now and then, for what its connections have to say while it has no partition.
    fn serve_idle(&mut self) {}
    /// Starts to read a partition at a position. A position that does not exist shows as `OutOfRange` in `take`.
    fn assign(&mut self, partition: &TopicPartition, from: Offset) -> Result<(), LogError>;
    fn unassign(&mut self, partition: &TopicPartition) -> Result<(), LogError>;
    /// Visits what is there now, at most `limit`, without waiting: one or more non-empty slices in offset order. Messages beyond the limit stay for
    /// the next call.
    fn take(&mut self, partition: &TopicPartition, limit: &TakeLimit, visit: &mut dyn FnMut(&[MessageView<'_>]))
    -> Result<Taken, LogError>;
}

/// Messages for one topic, in one buffer: no allocation per message.
#[derive(Clone, Debug)]
pub struct MessageSet {
    pub topic: Arc<str>,
    pub buffer: Vec<u8>,
    pub entries: Vec<MessageEntry>,
}

#[derive(Clone, Debug)]
pub struct MessageEntry {
    /// None: by the key's hash (Java's murmur2 partitioner), or sticky-random without a key.
    pub partition: Option<i32>,
    /// Ranges of `MessageSet::buffer`. A value of None is a tombstone.
    pub key: Option<Range<usize>>,
    pub value: Option<Range<usize>>,
    /// Milliseconds since 1970; None lets the client set it.
    pub timestamp_ms: Option<i64>,
}

impl MessageSet {
    pub fn new(topic: impl Into<Arc<str>>) -> Self {
        MessageSet { topic: topic.into(), buffer: Vec::new(), entries: Vec::new() }
    }
}

/// One message with headers (exchange batches, epoch records, dead letters).
#[derive(Clone, Debug)]
pub struct OutMessage {
    pub topic: Arc<str>,
    pub partition: Option<i32>,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub timestamp_ms: Option<i64>,
}

/// How a commit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// Committed at the first try, without any sign of trouble on the coordinator's connection.
    Committed,
    /// Unknown: drop this writer, make a new one, and read the outcome from the log. Says why.
    InDoubt(String),
    /// Certainly not committed; the transaction was aborted. Says why.
    Aborted(String),
    /// Certainly not committed: the broker refuses a message for what it is. Says why.
    Refused(String),
    /// A newer writer with this id may exist.
    Fenced(String),
}

/// The single transactional writer of a slot. All calls are bounded in time.
pub trait TransactionalWriter: Send {
    /// Finds out where these topics lie, beside what it does: the first message need not wait for it.
    fn prepare(&mut self, topics: &[Arc<str>]) {
        let _ = topics;
    }
    fn begin(&mut self) -> Result<(), LogError>;
    /// Queues one message; `Retry` means the client's queue stayed full for the whole time-out.
    fn send(&mut self, message: &OutMessage) -> Result<(), LogError>;
    fn send_set(&mut self, messages: &MessageSet) -> Result<(), LogError>;
    fn commit(&mut self) -> CommitOutcome;
    /// Aborts as well as it can. Afterwards the writer is dropped and a new one made.
    fn abort(&mut self);
}

/// A fence that is ready to fall: its connections are made, nobody is fenced yet.
pub trait Fencer: Send {
    /// Fences whoever writes with the id, ends their open transaction, and returns when that is certain. Bounded in time;
    /// `Retry`: nothing is certain, make a new fencer and try again.
    fn fence(self: Box<Self>) -> Result<(), LogError>;
}

/// What a topic should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    pub name: String,
    pub partitions: i32,
    /// None: the broker's default.
    pub replication_factor: Option<i32>,
    pub configs: BTreeMap<String, String>,
}

/// What a topic is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    pub partitions: i32,
    /// All configs with their effective values.
    pub configs: BTreeMap<String, String>,
}

/// First and next offset of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub low: Offset,
    /// High watermark, or the last stable offset when asked for read committed.
    pub high: Offset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    ReadUncommitted,
    ReadCommitted,
}

/// A connection to one log (a Kafka cluster).
pub trait Log: Send + Sync {
    /// Creates what is missing; an existing topic is no error. Returns the names of the topics that it created.
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError>;
    /// None when the topic does not exist.
    fn describe_topic(&self, topic: &str) -> Result<Option<TopicDescription>, LogError>;
    fn bounds(&self, partition: &TopicPartition, isolation: Isolation) -> Result<Bounds, LogError>;
    /// Where these partitions end; all of them are asked for at the same time.
    fn ends(&self, partitions: &[TopicPartition], isolation: Isolation) -> Result<Vec<Offset>, LogError> {
        partitions.iter().map(|partition| Ok(self.bounds(partition, isolation)?.high)).collect()
    }
    /// Resolves a start position to an offset.
    fn resolve(&self, partition: &TopicPartition, start: StartAt) -> Result<Offset, LogError>;
    /// Committed offset of a consumer group, if it has one (`scan.startup.mode = group-offsets`).
    fn group_offset(&self, group: &str, partition: &TopicPartition) -> Result<Option<Offset>, LogError>;
    /// Best effort, asynchronous: for the usual lag tools only.
    fn commit_group_offsets(&self, group: &str, positions: &[(TopicPartition, Offset)]);
    /// `wakeup` is raised when an assigned partition may have something to take.
    fn reader(&self, options: ReaderOptions, wakeup: Arc<Wakeup>) -> Result<Box<dyn LogReader>, LogError>;
    /// Makes a writer; when it returns, earlier writers with this id are fenced and their transactions ended.
    fn writer(&self, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, LogError>;
    /// Prepares to fence whoever writes with this id: connects, and fences nobody before [`Fencer::fence`].
    fn fencer(&self, transactional_id: &str) -> Result<Box<dyn Fencer>, LogError>;
    /// Fences whoever writes with this id, without preparation.
    fn fence(&self, transactional_id: &str) -> Result<(), LogError> {
        self.fencer(transactional_id)?.fence()
    }
    /// Appends one message outside of any transaction (control log) and returns its offset.
    fn append(&self, message: &OutMessage) -> Result<Offset, LogError>;
    /// Appends several of them and waits for all at once. Small messages come in this order; a large one may be overtaken. After an error any of them
    /// may be in the log.
    fn append_all(&self, messages: &[OutMessage]) -> Result<Vec<Offset>, LogError> {
        messages.iter().map(|message| self.append(message)).collect()
    }
    /// The largest message that a writer's client takes, with key and headers; the default is librdkafka's.
    fn message_bytes_max(&self) -> usize {
        1_000_000
    }
    /// The largest batch that a writer's client makes of several messages; the default is librdkafka's.
    fn batch_bytes_max(&self) -> usize {
        1_000_000
    }
    /// Deletes what lies before these positions (DeleteRecords).
    fn trim(&self, before: &[(TopicPartition, Offset)]) -> Result<(), LogError>;
}

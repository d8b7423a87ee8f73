//! A broker, fresh topics and a reader that waits.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use streamshield_core::ports::log::*;
use streamshield_embedded::{Config, EmbeddedBroker};
use streamshield_kafka::KafkaLog;

/// How long a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The broker of this run. None (and a note for the end of the run) where the user chose to do without one.
pub fn servers() -> Option<String> {
    if let Ok(servers) = std::env::var("STREAMSHIELD_KAFKA") {
        return Some(if servers == "embedded" { embedded() } else { servers });
    }
    let skip = std::env::var("STREAMSHIELD_SKIP_KAFKA").is_ok_and(|value| value == "1");
    assert!(skip, "no broker: set STREAMSHIELD_KAFKA=host:port, or STREAMSHIELD_SKIP_KAFKA=1 to leave the Kafka tests out");
    // The harness names a test's thread after it.
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    println!("LEFT OUT: no broker (STREAMSHIELD_SKIP_KAFKA=1): {test}");
    if let Some(list) = std::env::var_os("STREAMSHIELD_SKIPPED_LIST")
        && let Ok(mut list) = std::fs::OpenOptions::new().append(true).create(true).open(list)
    {
        let _ = writeln!(list, "kafka::{test}");
    }
    None
}

/// One embedded broker for all tests of the process.
fn embedded() -> String {
    static BROKER: OnceLock<streamshield_embedded::Handle> = OnceLock::new();
    let start = || EmbeddedBroker::start(Config::default()).expect("embedded broker");
    BROKER.get_or_init(start).bootstrap_servers()
}

/// Connects, or ends the test where Kafka tests are left out.
#[macro_export]
macro_rules! log_or_return {
    () => {
        match $crate::support::servers() {
            Some(servers) => $crate::support::connect(&servers, &[]),
            None => return,
        }
    };
}

pub fn connect(servers: &str, more: &[(&str, &str)]) -> Arc<KafkaLog> {
    let mut properties = BTreeMap::from([("bootstrap.servers".to_string(), servers.to_string())]);
    properties.extend(more.iter().map(|(key, value)| (key.to_string(), value.to_string())));
    KafkaLog::connect(properties).expect("connect")
}

/// A name that no other test or run uses.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros();
    format!("{prefix}-{now}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn topic(log: &KafkaLog, prefix: &str, partitions: i32) -> Arc<str> {
    topic_with(log, prefix, partitions, &[])
}

pub fn topic_with(log: &KafkaLog, prefix: &str, partitions: i32, configs: &[(&str, &str)]) -> Arc<str> {
    let name = unique(prefix);
    let configs = configs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let created = log.create_topics(&[TopicSpec { name: name.clone(), partitions, replication_factor: None, configs }]).expect("create");
    assert_eq!(created, std::slice::from_ref(&name));
    name.into()
}

/// A set of values in partition 0.
pub fn values(topic: &Arc<str>, texts: impl IntoIterator<Item = String>) -> MessageSet {
    let mut set = MessageSet::new(Arc::clone(topic));
    for text in texts {
        push(&mut set, Some(0), None, Some(text.as_bytes()), None);
    }
    set
}

pub fn push(set: &mut MessageSet, partition: Option<i32>, key: Option<&[u8]>, value: Option<&[u8]>, timestamp_ms: Option<i64>) {
    let mut put = |bytes: &[u8]| {
        let start = set.buffer.len();
        set.buffer.extend_from_slice(bytes);
        start..set.buffer.len()
    };
    let (key, value) = (key.map(&mut put), value.map(&mut put));
    set.entries.push(MessageEntry { partition, key, value, timestamp_ms });
}

/// Commits these values in one transaction.
pub fn commit(writer: &mut dyn TransactionalWriter, set: &MessageSet) {
    writer.begin().expect("begin");
    writer.send_set(set).expect("send");
    assert_eq!(writer.commit(), CommitOutcome::Committed);
}

/// A message as a test wants to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub offset: i64,
    pub value: Option<String>,
}

/// A reader of one partition that waits.
pub struct Reading {
    pub reader: Box<dyn LogReader>,
    pub partition: TopicPartition,
    wakeup: Arc<Wakeup>,
}

pub const ALL: TakeLimit = TakeLimit { messages: 100_000, bytes: 1 << 30, end: None };

impl Reading {
    pub fn new(log: &KafkaLog, topic: &Arc<str>, partition: i32, from: i64) -> Reading {
        let wakeup = Arc::new(Wakeup::default());
        let mut reader =
            log.reader(ReaderOptions { buffer_bytes: 8 << 20, ..ReaderOptions::default() }, Arc::clone(&wakeup)).expect("reader");
        let partition = TopicPartition::new(Arc::clone(topic), partition);
        reader.assign(&partition, from).expect("assign");
        Reading { reader, partition, wakeup }
    }

    pub fn take(&mut self, limit: &TakeLimit) -> Result<(Vec<Seen>, Taken), LogError> {
        let mut seen = Vec::new();
        let taken = self.reader.take(&self.partition, limit, &mut |messages| {
            assert!(!messages.is_empty());
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            seen.extend(messages.iter().map(|message| Seen { offset: message.offset, value: message.payload.map(text) }));
        })?;
        assert_eq!(seen.len(), taken.messages);
        Ok((seen, taken))
    }

    /// Takes until the reader stands at the end, once nothing is open: a commit's markers follow its answer.
    pub fn take_to_settled_end(&mut self, log: &KafkaLog) -> (Vec<Seen>, i64) {
        let high = settled(log, &self.partition);
        let (mut all, mut end) = self.take_to_end();
        while end < high {
            let (seen, later) = self.take_to_end();
            all.extend(seen);
            end = later;
            self.wait();
        }
        (all, end)
    }

    /// Takes until the reader stands at the end.
    pub fn take_to_end(&mut self) -> (Vec<Seen>, i64) {
        let (mut all, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        loop {
            let (seen, taken) = self.take(&ALL).expect("take");
            all.extend(seen);
            if let Some(end) = taken.at_end {
                return (all, end);
            }
            assert!(Instant::now() < deadline, "no end after {} messages", all.len());
            self.wait();
        }
    }

    /// Takes until there are `count` messages.
    pub fn messages(&mut self, count: usize) -> Vec<Seen> {
        let (mut all, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while all.len() < count {
            all.extend(self.take(&TakeLimit { messages: count - all.len(), ..ALL }).expect("take").0);
            assert!(Instant::now() < deadline, "{} of {count} messages", all.len());
            self.wait();
        }
        all
    }

    /// The first error.
    pub fn error(&mut self) -> LogError {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.take(&ALL) {
                Err(error) => return error,
                Ok((seen, _)) => assert!(seen.is_empty() && Instant::now() < deadline, "no error, but {seen:?}"),
            }
            self.wait();
        }
    }

    pub fn wait(&self) {
        self.wakeup.wait(Duration::from_millis(20));
    }
}

pub fn texts(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|message| message.value.as_deref().unwrap_or("null")).collect()
}

pub fn numbered(prefix: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("{prefix}{number}")).collect()
}

/// Waits until no transaction is open and returns the end.
pub fn settled(log: &KafkaLog, partition: &TopicPartition) -> i64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let bounds = |isolation| log.bounds(partition, isolation).expect("bounds").high;
        let (high, stable) = (bounds(Isolation::ReadUncommitted), bounds(Isolation::ReadCommitted));
        if high == stable {
            return high;
        }
        assert!(Instant::now() < deadline, "{partition} stays at {stable} of {high}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

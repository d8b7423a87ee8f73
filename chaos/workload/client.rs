//! Kafka as anybody's client sees it: topics, sending, and reading what is committed, with a bound on everything that waits.
//!
//! The harness lives through the faults that it watches, so a broker that is away is waited for, and only patience that has run out is an error.

use crate::error::WorkloadError;
use crate::payload::Message as Outgoing;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// For one request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// For the next message of a topic that is read to its end, the broker being away included.
pub const QUIET_MAX: Duration = Duration::from_secs(60);
/// The input takes a message that no dead letter holds whole.
pub const INPUT_MESSAGE_BYTES: usize = 4 << 20;
/// What waits in a sender while the broker is away (M-1).
const QUEUE_MESSAGES: usize = 500_000;
const QUEUE_KBYTES: usize = 512 << 10;
/// What waits in a reader, in KiB (M-1).
const READ_AHEAD_KBYTES: usize = 64 << 10;
const POLL: Duration = Duration::from_millis(50);
const FETCH_WAIT: Duration = Duration::from_millis(50);
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long a full queue is waited for: longer than any outage that a run plans.
const QUEUE_PATIENCE: Duration = Duration::from_secs(900);

pub fn config(servers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("allow.auto.create.topics", "false").set("log_level", "2");
    config
}

/// What a topic is to be.
#[derive(Clone, Debug)]
pub struct NewTopicSpec {
    pub name: String,
    pub partitions: i32,
    pub replication_factor: i32,
    pub configs: Vec<(&'static str, String)>,
}

/// Creates topics and waits until clients see them. One that exists is an error: it holds another run's rows.
pub fn create_topics(servers: &str, specs: &[NewTopicSpec]) -> Result<(), WorkloadError> {
    let admin: AdminClient<DefaultClientContext> = config(servers).create().map_err(WorkloadError::kafka("connect to create topics"))?;
    let topics: Vec<NewTopic<'_>> = specs
        .iter()
        .map(|spec| {
            let topic = NewTopic::new(&spec.name, spec.partitions, TopicReplication::Fixed(spec.replication_factor));
            spec.configs.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| WorkloadError::Harness(format!("no runtime to create topics with: {error}")))?;
    let options = AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT));
    let results = runtime.block_on(admin.create_topics(&topics, &options)).map_err(WorkloadError::kafka("create topics"))?;
    for result in results {
        result.map_err(|(topic, code)| WorkloadError::Broker { doing: format!("create topic {topic}"), detail: code.to_string() })?;
    }
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    for spec in specs {
        while partitions_of(servers, &spec.name).ok() != Some(spec.partitions) {
            if Instant::now() > deadline {
                return Err(WorkloadError::Timeout { doing: format!("see topic {}", spec.name), patience: REQUEST_TIMEOUT });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Names of all topics.
pub fn topics(servers: &str) -> Result<Vec<String>, WorkloadError> {
    let consumer: BaseConsumer = config(servers).create().map_err(WorkloadError::kafka("connect to list topics"))?;
    let metadata = consumer.fetch_metadata(None, REQUEST_TIMEOUT).map_err(WorkloadError::kafka("list topics"))?;
    Ok(metadata.topics().iter().map(|topic| topic.name().to_string()).collect())
}

pub fn partitions_of(servers: &str, topic: &str) -> Result<i32, WorkloadError> {
    let consumer: BaseConsumer = config(servers).create().map_err(WorkloadError::kafka("connect"))?;
    partitions(&consumer, topic)
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<i32, WorkloadError> {
    let doing = || format!("look at topic {topic}");
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT).map_err(WorkloadError::kafka(doing()))?;
    let found = metadata.topics().first().ok_or_else(|| WorkloadError::Broker { doing: doing(), detail: "no answer".into() })?;
    match found.error() {
        Some(error) => Err(WorkloadError::Broker { doing: doing(), detail: format!("{:?}", Code::from(error)) }),
        None => Ok(found.partitions().len() as i32),
    }
}

/// Where a partition ends, for everybody and for readers of committed messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionEnd {
    pub topic: String,
    pub partition: i32,
    pub low: i64,
    /// The last stable offset: below the end while a transaction is open.
    pub stable: i64,
    pub high: i64,
}

/// Ends of all partitions of the topics that `wanted` says.
pub fn ends(servers: &str, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<PartitionEnd>, WorkloadError> {
    let reader = |isolation: &str| -> Result<BaseConsumer, WorkloadError> {
        config(servers).set("isolation.level", isolation).create().map_err(WorkloadError::kafka("connect to look for ends"))
    };
    let (all, committed) = (reader("read_uncommitted")?, reader("read_committed")?);
    let metadata = all.fetch_metadata(None, REQUEST_TIMEOUT).map_err(WorkloadError::kafka("list topics"))?;
    let mut ends = Vec::new();
    for topic in metadata.topics().iter().filter(|topic| wanted(topic.name())) {
        for partition in topic.partitions() {
            let (name, id) = (topic.name(), partition.id());
            let doing = || format!("look for the end of {name}-{id}");
            // The stable end first: a message in between must not look like an open transaction for ever, only for one look.
            let (_, stable) = committed.fetch_watermarks(name, id, REQUEST_TIMEOUT).map_err(WorkloadError::kafka(doing()))?;
            let (low, high) = all.fetch_watermarks(name, id, REQUEST_TIMEOUT).map_err(WorkloadError::kafka(doing()))?;
            ends.push(PartitionEnd { topic: name.to_string(), partition: id, low, stable, high });
        }
    }
    Ok(ends)
}

/// Counts messages that a producer could not deliver.
#[derive(Clone, Default)]
pub struct CountFailures(Arc<AtomicU64>);

impl CountFailures {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl ClientContext for CountFailures {}

impl ProducerContext for CountFailures {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An idempotent producer that never gives up, and knows what the broker has not taken.
pub struct Sender {
    producer: ThreadedProducer<CountFailures>,
    failures: CountFailures,
}

impl Sender {
    pub fn new(servers: &str, linger: Duration) -> Result<Sender, WorkloadError> {
        let failures = CountFailures::default();
        let producer = config(servers)
            .set("enable.idempotence", "true")
            .set("linger.ms", linger.as_millis().to_string())
            .set("batch.size", "524288")
            .set("message.max.bytes", INPUT_MESSAGE_BYTES.to_string())
            .set("queue.buffering.max.messages", QUEUE_MESSAGES.to_string())
            .set("queue.buffering.max.kbytes", QUEUE_KBYTES.to_string())
            .set("message.timeout.ms", "0")
            .set("delivery.report.only.error", "true")
            .create_with_context(failures.clone())
            .map_err(WorkloadError::kafka("connect to send"))?;
        Ok(Sender { producer, failures })
    }

    /// Queues one message, waiting while the queue is full.
    pub fn send(&self, topic: &str, message: &Outgoing) -> Result<(), WorkloadError> {
        let mut full_since: Option<Instant> = None;
        loop {
            let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(message.partition).timestamp(message.timestamp_ms);
            record.key = message.key.as_deref();
            record.payload = message.value.as_deref();
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(Code::QueueFull), _)) => {
                    if full_since.get_or_insert_with(Instant::now).elapsed() > QUEUE_PATIENCE {
                        return Err(WorkloadError::Timeout { doing: format!("send to {topic}"), patience: QUEUE_PATIENCE });
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(WorkloadError::kafka(format!("send to {topic}"))(error)),
            }
        }
    }

    /// Waits until the broker has everything; returns how much it has not taken.
    pub fn flush(&self, patience: Duration) -> Result<u64, WorkloadError> {
        match self.producer.flush(patience) {
            Ok(()) | Err(KafkaError::Flush(Code::OperationTimedOut)) => {}
            Err(error) => return Err(WorkloadError::kafka("send the rest")(error)),
        }
        Ok(self.producer.in_flight_count().max(0) as u64 + self.failures.count())
    }
}

/// Which messages a reader sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    Committed,
    Uncommitted,
}

/// What a reader of topics meets next.
pub enum Met<'a> {
    Message(BorrowedMessage<'a>),
    /// It has read this partition to its end: for a reader of committed messages, the last stable offset.
    End {
        topic: Arc<str>,
        partition: i32,
    },
    /// Nothing for a while.
    Nothing,
}

/// Follows all partitions of some topics from their beginning.
pub struct Reader {
    consumers: Vec<(Arc<str>, BaseConsumer)>,
    partitions: Vec<i32>,
    at_end: Vec<BTreeSet<i32>>,
    turn: usize,
}

impl Reader {
    pub fn open(servers: &str, topics: &[&str], isolation: Isolation) -> Result<Reader, WorkloadError> {
        Reader::open_patient(servers, topics, isolation, FETCH_WAIT)
    }

    /// `fetch_wait`: how long a broker may hold back the answer that there is nothing new. The end of a partition is met so much later, and brokers have so
    /// much less to do.
    pub fn open_patient(servers: &str, topics: &[&str], isolation: Isolation, fetch_wait: Duration) -> Result<Reader, WorkloadError> {
        let mut reader = Reader { consumers: Vec::new(), partitions: Vec::new(), at_end: Vec::new(), turn: 0 };
        for topic in topics {
            let (consumer, partitions) = follow(servers, topic, isolation, READ_AHEAD_KBYTES / topics.len(), fetch_wait)?;
            reader.consumers.push((Arc::from(*topic), consumer));
            reader.partitions.push(partitions);
            reader.at_end.push(BTreeSet::new());
        }
        Ok(reader)
    }

    /// All partitions are at their ends, as far as is known.
    pub fn is_at_end(&self) -> bool {
        self.at_end.iter().zip(&self.partitions).all(|(at_end, partitions)| at_end.len() as i32 == *partitions)
    }

    /// The next message of any of the topics, waiting for a short time.
    pub fn next(&mut self, wait: Duration) -> Result<Met<'_>, WorkloadError> {
        let count = self.consumers.len();
        for look in 0..count {
            let index = (self.turn + look) % count;
            // Only the last look waits, and only for its share.
            let patience = if look + 1 == count { wait } else { Duration::ZERO };
            let (topic, consumer) = &self.consumers[index];
            match consumer.poll(patience) {
                Some(Ok(message)) => {
                    if !self.at_end[index].is_empty() {
                        self.at_end[index].remove(&message.partition());
                    }
                    self.turn = index;
                    return Ok(Met::Message(message));
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.at_end[index].insert(partition);
                    self.turn = (index + 1) % count;
                    return Ok(Met::End { topic: topic.clone(), partition });
                }
                Some(Err(error)) if is_passing(&error) => {}
                Some(Err(error)) => return Err(WorkloadError::kafka(format!("read {topic}"))(error)),
                None => {}
            }
        }
        self.turn = (self.turn + 1) % count;
        Ok(Met::Nothing)
    }
}

/// Of a broker that is away for a while.
fn is_passing(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::Resolve
                | Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::ReplicaNotAvailable
                | Code::UnknownTopicOrPartition
                | Code::UnknownPartition
                | Code::UnknownTopic
                | Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
                | Code::OffsetNotAvailable
                | Code::KafkaStorageError
        )
    )
}

fn follow(
    servers: &str,
    topic: &str,
    isolation: Isolation,
    read_ahead_kbytes: usize,
    fetch_wait: Duration,
) -> Result<(BaseConsumer, i32), WorkloadError> {
    let level = if isolation == Isolation::Committed { "read_committed" } else { "read_uncommitted" };
    let consumer: BaseConsumer = config(servers)
        .set("group.id", "streamshield-workload")
        .set("isolation.level", level)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("fetch.wait.max.ms", fetch_wait.as_millis().to_string())
        .set("max.partition.fetch.bytes", INPUT_MESSAGE_BYTES.to_string())
        .set("fetch.error.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "500")
        .set("check.crcs", "true")
        .set("queued.max.messages.kbytes", read_ahead_kbytes.max(1_024).to_string())
        .create()
        .map_err(WorkloadError::kafka(format!("connect to read {topic}")))?;
    let deadline = Instant::now() + QUIET_MAX;
    let partitions = loop {
        match partitions(&consumer, topic) {
            Ok(partitions) => break partitions,
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(RETRY_PAUSE),
        }
    };
    let mut assignment = TopicPartitionList::new();
    let doing = || format!("read {topic} from its beginning");
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).map_err(WorkloadError::kafka(doing()))?;
    }
    consumer.assign(&assignment).map_err(WorkloadError::kafka(doing()))?;
    Ok((consumer, partitions))
}

/// Visits what a topic holds now, up to the end of each partition; returns how many messages.
pub fn visit(
    servers: &str,
    topic: &str,
    isolation: Isolation,
    visitor: &mut dyn FnMut(&BorrowedMessage<'_>),
) -> Result<u64, WorkloadError> {
    let (mut reader, mut messages, mut last_news) = (Reader::open(servers, &[topic], isolation)?, 0, Instant::now());
    while !reader.is_at_end() {
        match reader.next(POLL)? {
            Met::Message(message) => {
                visitor(&message);
                messages += 1;
                // Looking at the clock for each of some million messages is not free.
                if messages % 1_024 == 0 {
                    last_news = Instant::now();
                }
            }
            Met::End { .. } => last_news = Instant::now(),
            Met::Nothing if last_news.elapsed() > QUIET_MAX => {
                return Err(WorkloadError::Timeout { doing: format!("read {topic} to its end"), patience: QUIET_MAX });
            }
            Met::Nothing => {}
        }
    }
    Ok(messages)
}

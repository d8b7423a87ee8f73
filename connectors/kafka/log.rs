//! [`KafkaLog`]: one Kafka cluster as the engine's log.
//!
//! Clients are made when they are first needed and kept: two for questions (one per isolation level), one for
//! administration, one per consumer group, two producers for single messages. Readers and writers belong to their slots.
//! A small thread serves the kept clients, so that their log lines and reports don't pile up, and those of prepared fencers, so that
//! their connections are there when they are needed.

use crate::admin;
use crate::append::Appender;
use crate::context::ClientEvents;
use crate::errors::{code_error, log_error};
use crate::fencer::{KafkaFencer, keep_connected};
use crate::produce::WriterClient;
use crate::properties::Properties;
use crate::reader::KafkaReader;
use crate::writer::KafkaWriter;
use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::RDKafkaErrorCode as Code;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::*;

/// How long a question to the cluster may take.
pub(crate) const QUERY_TIMEOUT: Duration = Duration::from_secs(8);
/// How often the kept clients are served.
const SERVE_INTERVAL: Duration = Duration::from_millis(500);
/// How often prepared fencers say something to their broker, which closes idle connections (after 10 min by default).
const KEEP_CONNECTED_INTERVAL: Duration = Duration::from_secs(60);

type QueryClient = BaseConsumer<ClientEvents>;

/// The clients that are kept.
#[derive(Default)]
struct Clients {
    committed: Option<Arc<QueryClient>>,
    uncommitted: Option<Arc<QueryClient>>,
    admin: Option<Arc<AdminClient<DefaultClientContext>>>,
    groups: BTreeMap<String, Arc<QueryClient>>,
    /// Of fencers that wait; theirs to keep.
    prepared: Vec<Weak<WriterClient>>,
}

/// A [`Log`] over librdkafka.
pub struct KafkaLog {
    properties: Properties,
    clients: Arc<Mutex<Clients>>,
    appender: Appender,
    /// Its end stops the serving thread.
    _alive: Sender<()>,
}

impl fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaLog").field("properties", &self.properties).finish()
    }
}

impl KafkaLog {
    /// Connects to a cluster with librdkafka's property names; fails if no broker answers: `Retry` if it may be away, `Fatal` if it doesn't let
    /// this client in.
    ///
    /// `bootstrap.servers` is required. Properties that carry the guarantees (`isolation.level`, `transactional.id`,
    /// `auto.offset.reset`…) are refused with the reason, `transaction.timeout.ms` (30 s) may be set.
    pub fn connect(mut properties: BTreeMap<String, String>) -> Result<Arc<KafkaLog>, LogError> {
        if properties.contains_key("group.id") {
            return Err(LogError::new(
                LogErrorKind::Fatal,
                "the property 'group.id' can't be set for a job: set 'properties.group.id' of a table",
            ));
        }
        properties.retain(|_, value| !value.is_empty());
        let log = Self::elsewhere(properties)?;
        let what = format!("connect to {}", log.servers());
        // Any question will do; that topic need not exist.
        let client = log.query(Isolation::ReadCommitted)?;
        client.fetch_metadata(Some("__none__"), QUERY_TIMEOUT).map_err(|error| match client.context().refusal() {
            Some(reason) => LogError::new(LogErrorKind::Fatal, format!("{what}: {reason}")),
            None => log_error(&what, &error),
        })?;
        Ok(log)
    }

    fn unconnected(properties: Properties) -> Result<Arc<KafkaLog>, LogError> {
        let (alive, ended) = channel::<()>();
        let clients = Arc::new(Mutex::new(Clients::default()));
        let served = Arc::downgrade(&clients);
        std::thread::Builder::new()
            .name("kafka-serve".into())
            .spawn(move || {
                let mut kept_connected = Instant::now();
                while ended.recv_timeout(SERVE_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    let is_due = kept_connected.elapsed() >= KEEP_CONNECTED_INTERVAL;
                    if is_due {
                        kept_connected = Instant::now();
                    }
                    serve(&served);
                    serve_prepared(&served, is_due);
                }
            })
            .map_err(|error| LogError::new(LogErrorKind::Fatal, format!("start a thread: {error}")))?;
        Ok(Arc::new(KafkaLog { properties, clients, appender: Appender::default(), _alive: alive }))
    }

    /// A log of another cluster or with other credentials, for one table. Does not connect.
    pub(crate) fn with_properties(&self, more: &BTreeMap<String, String>) -> Result<Arc<KafkaLog>, LogError> {
        Self::unconnected(self.properties.with(more)?)
    }

    /// A log with these properties only. Does not connect.
    pub fn elsewhere(properties: BTreeMap<String, String>) -> Result<Arc<KafkaLog>, LogError> {
        Self::unconnected(Properties::new(properties)?)
    }

    /// The brokers it was told of.
    pub fn servers(&self) -> &str {
        self.properties.servers()
    }

    pub(crate) fn has_property(&self, key: &str, value: &str) -> bool {
        self.properties.has(key, value)
    }

    /// What a topic with these configs takes (`max.message.bytes`), where the client of a writer makes larger batches of several messages.
    pub fn exceeded_batch_limit(&self, configs: &BTreeMap<String, String>) -> Option<usize> {
        let limit: usize = configs.get("max.message.bytes")?.parse().ok()?;
        (limit < self.properties.batch_bytes_max()).then_some(limit)
    }

    /// As [`Log::bounds`], with a time-out of the caller's.
    pub(crate) fn bounds_within(&self, partition: &TopicPartition, isolation: Isolation, timeout: Duration) -> Result<Bounds, LogError> {
        let (low, high) = self
            .query(isolation)?
            .fetch_watermarks(&partition.topic, partition.partition, timeout)
            .map_err(|error| log_error(&format!("bounds of {partition}"), &error))?;
        Ok(Bounds { low, high })
    }

    pub(crate) fn kafka_reader(&self, options: ReaderOptions, wakeup: Arc<Wakeup>) -> Result<KafkaReader, LogError> {
        KafkaReader::new(&self.properties, options, wakeup)
    }

    pub(crate) fn query(&self, isolation: Isolation) -> Result<Arc<QueryClient>, LogError> {
        let mut clients = self.clients.lock();
        let (slot, level) = match isolation {
            Isolation::ReadCommitted => (&mut clients.committed, "read_committed"),
            Isolation::ReadUncommitted => (&mut clients.uncommitted, "read_uncommitted"),
        };
        kept(slot, || self.properties.query(level).create_with_context(ClientEvents::default()))
    }

    fn admin(&self) -> Result<Arc<AdminClient<DefaultClientContext>>, LogError> {
        kept(&mut self.clients.lock().admin, || self.properties.admin().create())
    }

    fn group(&self, group: &str) -> Result<Arc<QueryClient>, LogError> {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.groups.get(group) {
            return Ok(Arc::clone(client));
        }
        let client = self
            .properties
            .group(group)
            .create_with_context(ClientEvents::default())
            .map_err(|error| log_error("make a client", &error))?;
        let client = Arc::new(client);
        clients.groups.insert(group.to_string(), Arc::clone(&client));
        Ok(client)
    }
}

fn kept<C>(slot: &mut Option<Arc<C>>, make: impl FnOnce() -> rdkafka::error::KafkaResult<C>) -> Result<Arc<C>, LogError> {
    if let Some(client) = slot {
        return Ok(Arc::clone(client));
    }
    let client = Arc::new(make().map_err(|error| log_error("make a client", &error))?);
    Ok(Arc::clone(slot.insert(client)))
}

/// Drains the event queues of the kept clients.
fn serve(clients: &Weak<Mutex<Clients>>) {
    let Some(clients) = clients.upgrade() else { return };
    let kept: Vec<_> = {
        let clients = clients.lock();
        clients.groups.values().chain(&clients.committed).chain(&clients.uncommitted).cloned().collect()
    };
    for client in kept {
        // A poll serves one event; nobody assigns these clients, so no message can come.
        for _ in 0..32 {
            drop(client.poll(Duration::ZERO));
        }
    }
}

/// Drains the event queues of clients that wait for their fence (tokens come by them), and keeps their connections where that is due.
fn serve_prepared(clients: &Weak<Mutex<Clients>>, keeps_connected: bool) {
    let Some(clients) = clients.upgrade() else { return };
    let prepared: Vec<_> = {
        let mut clients = clients.lock();
        clients.prepared.retain(|client| client.strong_count() > 0);
        clients.prepared.clone()
    };
    let mut asks = keeps_connected;
    // Held one at a time: whoever lets go of a client last has to close it, and a fencer may fall meanwhile.
    for client in prepared {
        let Some(client) = client.upgrade() else { continue };
        client.poll(Duration::ZERO);
        // When no broker answers one, none is asked by the others.
        asks = asks && keep_connected(&client);
    }
}

impl Log for KafkaLog {
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        let created = admin::create_topics(&*self.admin()?, topics)?;
        admin::await_topics(&*self.query(Isolation::ReadCommitted)?, &created)?;
        Ok(created)
    }

    fn describe_topic(&self, topic: &str) -> Result<Option<TopicDescription>, LogError> {
        let Some(partitions) = admin::partitions(&*self.query(Isolation::ReadCommitted)?, topic, QUERY_TIMEOUT)? else { return Ok(None) };
        let configs = admin::configs(&*self.admin()?, topic)?;
        Ok(Some(TopicDescription { partitions, configs }))
    }

    fn message_bytes_max(&self) -> usize {
        self.properties.message_bytes_max()
    }

    fn batch_bytes_max(&self) -> usize {
        self.properties.batch_bytes_max()
    }

    fn bounds(&self, partition: &TopicPartition, isolation: Isolation) -> Result<Bounds, LogError> {
        self.bounds_within(partition, isolation, QUERY_TIMEOUT)
    }

    fn ends(&self, partitions: &[TopicPartition], isolation: Isolation) -> Result<Vec<Offset>, LogError> {
        admin::ends(&*self.query(isolation)?, partitions)
    }

    fn resolve(&self, partition: &TopicPartition, start: StartAt) -> Result<Offset, LogError> {
        match start {
            StartAt::Offset(offset) => Ok(offset),
            StartAt::Beginning => Ok(self.bounds(partition, Isolation::ReadCommitted)?.low),
            StartAt::End => Ok(self.bounds(partition, Isolation::ReadCommitted)?.high),
            StartAt::Timestamp(timestamp_ms) => {
                match admin::offset_for_time(&*self.query(Isolation::ReadCommitted)?, partition, timestamp_ms)? {
                    Some(offset) => Ok(offset),
                    None => self.resolve(partition, StartAt::End),
                }
            }
        }
    }

    fn group_offset(&self, group: &str, partition: &TopicPartition) -> Result<Option<Offset>, LogError> {
        let what = format!("offset of group '{group}' in {partition}");
        let mut list = TopicPartitionList::new();
        list.add_partition(&partition.topic, partition.partition);
        let committed = self.group(group)?.committed_offsets(list, QUERY_TIMEOUT).map_err(|error| log_error(&what, &error))?;
        let element = committed.elements().into_iter().next();
        let element = element.ok_or_else(|| code_error(&what, Code::Fail))?;
        element.error().map_err(|error| log_error(&what, &error))?;
        match element.offset() {
            rdkafka::Offset::Offset(offset) => Ok(Some(offset)),
            _ => Ok(None),
        }
    }

    fn commit_group_offsets(&self, group: &str, positions: &[(TopicPartition, Offset)]) {
        let commit = || -> Result<(), LogError> {
            let mut list = TopicPartitionList::with_capacity(positions.len());
            for (partition, offset) in positions {
                list.add_partition_offset(&partition.topic, partition.partition, rdkafka::Offset::Offset(*offset))
                    .map_err(|error| log_error("commit group offsets", &error))?;
            }
            self.group(group)?.commit(&list, CommitMode::Async).map_err(|error| log_error("commit group offsets", &error))
        };
        if let Err(error) = commit() {
            tracing::debug!(target: "kafka", group, "{error}");
        }
    }

    fn reader(&self, options: ReaderOptions, wakeup: Arc<Wakeup>) -> Result<Box<dyn LogReader>, LogError> {
        Ok(Box::new(self.kafka_reader(options, wakeup)?))
    }

    fn writer(&self, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, LogError> {
        Ok(Box::new(KafkaWriter::new(&self.properties, transactional_id)?))
    }

    fn fencer(&self, transactional_id: &str) -> Result<Box<dyn Fencer>, LogError> {
        let mut fencer = KafkaFencer::new(&self.properties, transactional_id)?;
        fencer.connect()?;
        self.clients.lock().prepared.extend(fencer.client().map(Arc::downgrade));
        Ok(Box::new(fencer))
    }

    fn fence(&self, transactional_id: &str) -> Result<(), LogError> {
        Box::new(KafkaFencer::new(&self.properties, transactional_id)?).fence()
    }

    fn append(&self, message: &OutMessage) -> Result<Offset, LogError> {
        self.appender.append(&self.properties, message)
    }

    fn append_all(&self, messages: &[OutMessage]) -> Result<Vec<Offset>, LogError> {
        self.appender.append_all(&self.properties, messages)
    }

    fn trim(&self, before: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        admin::delete_records(&*self.admin()?, before)
    }
}

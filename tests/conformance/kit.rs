//! Clients, topics and small verbs that the checks share.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use rdkafka::statistics::Statistics;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

/// How long a single step may take.
pub const STEP: Duration = Duration::from_secs(30);
pub const COMMITTED: &str = "read_committed";
pub const UNCOMMITTED: &str = "read_uncommitted";
/// How often a condition of a broker is looked at, where it offers no event to wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

pub type Producer = BaseProducer<Deliveries>;
pub type Consumer = BaseConsumer<Quiet>;

pub fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
pub fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}
/// `prefix` with each number of the range.
pub fn numbered(prefix: &str, numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("{prefix}{number}")).collect()
}

/// Keeps every delivery report of a producer.
#[derive(Default)]
pub struct Deliveries {
    pub delivered: Mutex<Vec<(i32, i64)>>,
    pub failed: Mutex<Vec<RDKafkaErrorCode>>,
    pub counts_only: bool,
}

impl ClientContext for Deliveries {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}
impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) if self.counts_only => {}
            Ok(message) => self.delivered.lock().expect("no panic here").push((message.partition(), message.offset())),
            Err((error, _)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                self.failed.lock().expect("no panic here").push(code);
            }
        }
    }
}

impl Deliveries {
    pub fn first_failure(&self) -> Option<RDKafkaErrorCode> {
        self.failed.lock().expect("no panic here").first().copied()
    }
}

/// Logs nothing; counts the fetch requests that the statistics tell of.
#[derive(Default)]
pub struct Quiet {
    pub fetches: AtomicI64,
}
impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
    fn stats(&self, statistics: Statistics) {
        let fetches = statistics.brokers.values().filter_map(|broker| broker.req.get("Fetch")).sum();
        self.fetches.store(fetches, Ordering::Relaxed);
    }
}
impl ConsumerContext for Quiet {}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<String>,
    pub value: String,
    pub timestamp_ms: Option<i64>,
}

impl Record {
    pub fn of(message: &impl Message) -> Record {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Record {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(text),
            value: message.payload().map(text).unwrap_or_default(),
            timestamp_ms: message.timestamp().to_millis(),
        }
    }
}

/// A broker under check, and names that nobody else uses.
pub struct Env {
    pub bootstrap: String,
    run_id: String,
    names: AtomicU64,
}

impl Env {
    pub fn new(bootstrap: &str, run_id: &str) -> Env {
        Env { bootstrap: bootstrap.to_owned(), run_id: run_id.to_owned(), names: AtomicU64::new(0) }
    }

    pub fn name(&self, kind: &str) -> String {
        format!("{kind}-{}-{}", self.run_id, self.names.fetch_add(1, Ordering::Relaxed))
    }

    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("socket.timeout.ms", "15000").set("broker.address.family", "v4");
        config
    }

    pub fn producer(&self, settings: &[(&str, &str)]) -> Result<Producer> {
        self.producer_with(settings, Deliveries::default())
    }

    pub fn producer_with(&self, settings: &[(&str, &str)], deliveries: Deliveries) -> Result<Producer> {
        let mut config = self.client_config();
        config.set("message.timeout.ms", "15000").set("acks", "all").set("linger.ms", "2");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        config.create_with_context(deliveries).context("producer")
    }

    /// A transactional producer that is not initialised yet.
    pub fn transactional(&self, id: &str, settings: &[(&str, &str)]) -> Result<Producer> {
        let own = [("transactional.id", id), ("transaction.timeout.ms", "15000"), ("message.timeout.ms", "14000")];
        self.producer(&[&own, settings].concat())
    }

    /// A transactional producer with an id of its own, ready to begin.
    pub fn transactional_ready(&self) -> Result<Producer> {
        let producer = self.transactional(&self.name("tid"), &[])?;
        ok("init_transactions", producer.init_transactions(STEP))?;
        Ok(producer)
    }

    pub fn consumer(&self, settings: &[(&str, &str)]) -> Result<Consumer> {
        let mut config = self.client_config();
        let own = [
            ("group.id", "conformance"),
            ("enable.auto.commit", "false"),
            ("enable.partition.eof", "true"),
            ("fetch.wait.max.ms", "100"),
            ("auto.offset.reset", "error"),
        ];
        for (name, value) in own.iter().chain(settings) {
            config.set(*name, *value);
        }
        config.create_with_context(Quiet::default()).context("consumer")
    }

    pub fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        self.client_config().set("log_level", "0").create().context("admin client")
    }

    pub fn create(&self, topic: &str, partitions: i32, config: &[(&str, &str)]) -> Result<()> {
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (name, value) in config {
            new = new.set(name, value);
        }
        let created = wait(self.admin()?.create_topics([&new], &admin_options()))?;
        created.into_iter().try_for_each(|result| result.map(drop).map_err(|(topic, error)| anyhow!("create {topic}: {error}")))
    }

    /// A new topic that is ready for use.
    pub fn topic(&self, kind: &str, partitions: i32) -> Result<String> {
        self.topic_with(kind, partitions, &[])
    }

    pub fn topic_with(&self, kind: &str, partitions: i32, config: &[(&str, &str)]) -> Result<String> {
        let topic = self.name(kind);
        self.create(&topic, partitions, config)?;
        let admin = self.admin()?;
        wait_until("the topic has leaders", || Ok(partition_count(&admin, &topic).is_ok_and(|count| count == partitions as usize)))?;
        Ok(topic)
    }

    /// All that a new consumer of this isolation sees of a partition, up to the end.
    pub fn read(&self, topic: &str, partition: i32, isolation: &str) -> Result<Vec<Record>> {
        self.read_from(topic, partition, Offset::Beginning, &[("isolation.level", isolation)])
    }

    pub fn read_from(&self, topic: &str, partition: i32, from: Offset, settings: &[(&str, &str)]) -> Result<Vec<Record>> {
        let consumer = self.consumer(settings)?;
        assign(&consumer, topic, &[(partition, from)])?;
        drain(&consumer, 1)
    }

    /// What is committed, once no transaction is open. A broker answers an end before its markers are in every log.
    pub fn decided(&self, topic: &str, partition: i32) -> Result<Vec<String>> {
        self.wait_decided(topic, partition)?;
        self.values(topic, partition, COMMITTED)
    }

    pub fn wait_decided(&self, topic: &str, partition: i32) -> Result<()> {
        let committed = self.consumer(&[("isolation.level", COMMITTED)])?;
        let uncommitted = self.consumer(&[("isolation.level", UNCOMMITTED)])?;
        let end = |consumer: &Consumer| Ok::<_, anyhow::Error>(consumer.fetch_watermarks(topic, partition, STEP)?.1);
        wait_until("all transactions of the partition have ended", || Ok(end(&uncommitted)? == end(&committed)?))
    }

    pub fn values(&self, topic: &str, partition: i32, isolation: &str) -> Result<Vec<String>> {
        Ok(self.read(topic, partition, isolation)?.into_iter().map(|record| record.value).collect())
    }

    pub fn committed(&self, group: &str, topic: &str, partition: i32) -> Result<Option<i64>> {
        let consumer = self.consumer(&[("group.id", group)])?;
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(topic, partition);
        let found = consumer.committed_offsets(wanted, STEP)?;
        let element = &found.elements()[0];
        element.error()?;
        Ok(match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        })
    }
}

pub fn partition_count(admin: &AdminClient<DefaultClientContext>, topic: &str) -> Result<usize> {
    let metadata = admin.inner().fetch_metadata(Some(topic), STEP)?;
    let topic = metadata.topics().first().ok_or_else(|| anyhow!("no topic in the metadata"))?;
    if let Some(error) = topic.error() {
        bail!("metadata: {error:?}");
    }
    if topic.partitions().iter().any(|partition| partition.leader() < 0) {
        bail!("a partition has no leader");
    }
    Ok(topic.partitions().len())
}

pub fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(STEP)).operation_timeout(Some(STEP))
}

/// The admin client answers through a thread of librdkafka, so any executor will do.
pub fn wait<T>(answer: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers needs nothing");
    runtime.block_on(answer)
}

/// Looks until the condition holds, or fails after [`STEP`].
pub fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !holds().with_context(|| what.to_owned())? {
        if started.elapsed() > STEP {
            bail!("not within {STEP:?}: {what}");
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// Tells a transaction's error with its properties.
pub fn ok<T>(what: &str, result: KafkaResult<T>) -> Result<T> {
    result.map_err(|error| match &error {
        KafkaError::Transaction(inner) => {
            anyhow!("{what}: {:?} {inner} (fatal {}, abort {})", inner.code(), inner.is_fatal(), inner.txn_requires_abort())
        }
        other => anyhow!("{what}: {other}"),
    })
}

pub fn begin(producer: &Producer) -> Result<()> {
    ok("begin", producer.begin_transaction())
}
pub fn commit(producer: &Producer) -> Result<()> {
    ok("commit", producer.commit_transaction(STEP))
}
pub fn abort(producer: &Producer) -> Result<()> {
    ok("abort", producer.abort_transaction(STEP))
}

/// Sends one record, waiting out a full queue.
pub fn send(producer: &Producer, topic: &str, partition: i32, key: Option<&str>, value: &[u8]) -> Result<()> {
    loop {
        let mut record = BaseRecord::<str, [u8]>::to(topic).payload(value).partition(partition);
        record.key = key;
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                producer.poll(millis(5));
            }
            Err((error, _)) => bail!("send: {error}"),
        }
    }
}

/// Waits for every delivery report. (The client's own flush polls in steps of 100 ms.)
pub fn settle(producer: &Producer) -> Result<()> {
    let started = Instant::now();
    while producer.in_flight_count() > 0 {
        producer.poll(millis(1));
        if started.elapsed() > seconds(60) {
            bail!("{} records without a report after 60 s", producer.in_flight_count());
        }
    }
    Ok(())
}

/// Waits, fails on any failed delivery, and returns partition and offset of each record.
pub fn flush(producer: &Producer) -> Result<Vec<(i32, i64)>> {
    settle(producer)?;
    let failed = std::mem::take(&mut *producer.context().failed.lock().expect("no panic here"));
    if let Some(first) = failed.first() {
        bail!("{} deliveries failed, the first with {first:?}", failed.len());
    }
    Ok(std::mem::take(&mut *producer.context().delivered.lock().expect("no panic here")))
}

pub fn send_all(producer: &Producer, topic: &str, partition: i32, values: Vec<String>) -> Result<Vec<(i32, i64)>> {
    for value in values {
        send(producer, topic, partition, None, value.as_bytes())?;
    }
    flush(producer)
}

pub fn assign(consumer: &Consumer, topic: &str, partitions: &[(i32, Offset)]) -> Result<()> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        list.add_partition_offset(topic, *partition, *offset)?;
    }
    Ok(consumer.assign(&list)?)
}

/// Reads until every one of the assigned partitions has reported its end.
pub fn drain(consumer: &Consumer, partitions: usize) -> Result<Vec<Record>> {
    let (mut records, mut ended) = (Vec::new(), BTreeSet::new());
    let mut heard = Instant::now();
    while ended.len() < partitions {
        match consumer.poll(millis(100)) {
            Some(Ok(message)) => {
                heard = Instant::now();
                ended.remove(&message.partition());
                records.push(Record::of(&message));
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            Some(Err(error)) => bail!("consume: {error}"),
            None if heard.elapsed() > STEP => bail!("no end of partition after {} records", records.len()),
            None => {}
        }
    }
    Ok(records)
}

/// Polls until `count` records have come.
pub fn take(consumer: &Consumer, count: usize) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    let started = Instant::now();
    while records.len() < count {
        match consumer.poll(millis(20)) {
            Some(Ok(message)) => records.push(Record::of(&message)),
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(error)) => bail!("consume: {error}"),
        }
        if started.elapsed() > STEP {
            bail!("{} of {count} records after {STEP:?}", records.len());
        }
    }
    Ok(records)
}

pub fn offsets(topic: &str, offsets: &[(i32, i64)]) -> Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    Ok(list)
}

pub fn expect<T: PartialEq + Debug>(what: &str, got: T, wanted: T) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    let short = |value: &T| format!("{value:?}").chars().take(200).collect::<String>();
    bail!("{what}: got {}, wanted {}", short(&got), short(&wanted))
}

/// A check that found nothing worth a figure.
pub fn fine() -> Result<String> {
    Ok(String::new())
}

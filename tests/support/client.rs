//! Kafka as anybody's client sees it: topics, producing, and reading what is committed.

use anyhow::{Context, Result, bail, ensure};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;
use std::time::{Duration, Instant};
use streamshield_workload::client::{CountFailures, Isolation, Met, NewTopicSpec, PartitionEnd, Reader, create_topics};

const TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

fn config(bootstrap_servers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap_servers).set("allow.auto.create.topics", "false").set("log_level", "3");
    config
}

/// Creates a topic and waits until clients see it.
pub fn create_topic(bootstrap_servers: &str, name: &str, partitions: i32) -> Result<()> {
    create_topic_with(bootstrap_servers, name, partitions, &[])
}

pub fn create_topic_with(bootstrap_servers: &str, name: &str, partitions: i32, configs: &[(&'static str, &str)]) -> Result<()> {
    let configs = configs.iter().map(|(key, value)| (*key, value.to_string())).collect();
    Ok(create_topics(bootstrap_servers, &[NewTopicSpec { name: name.into(), partitions, replication_factor: 1, configs }])?)
}

/// Deletes a topic; its disk space is freed soon after.
pub fn delete_topic(bootstrap_servers: &str, name: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap_servers).create()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    for result in runtime.block_on(admin.delete_topics(&[name], &options))? {
        result.map_err(|(topic, code)| anyhow::anyhow!("topic {topic}: {code}"))?;
    }
    Ok(())
}

/// Names of all topics.
pub fn topics(bootstrap_servers: &str) -> Result<Vec<String>> {
    Ok(streamshield_workload::client::topics(bootstrap_servers)?)
}

/// Ends of all partitions of the topics whose names begin so.
pub fn ends(bootstrap_servers: &str, prefix: &str) -> Result<Vec<PartitionEnd>> {
    Ok(streamshield_workload::client::ends(bootstrap_servers, &|topic| topic.starts_with(prefix))?)
}

/// An ordinary, idempotent producer.
pub struct Input {
    producer: ThreadedProducer<CountFailures>,
    failures: CountFailures,
}

impl Input {
    pub fn new(bootstrap_servers: &str) -> Result<Input> {
        Input::with_linger(bootstrap_servers, Duration::from_millis(5))
    }

    pub fn with_linger(bootstrap_servers: &str, linger: Duration) -> Result<Input> {
        let failures = CountFailures::default();
        let producer = config(bootstrap_servers)
            .set("enable.idempotence", "true")
            .set("linger.ms", linger.as_millis().to_string())
            .set("batch.size", "524288")
            .set("queue.buffering.max.messages", "500000")
            .set("delivery.report.only.error", "true")
            .create_with_context(failures.clone())?;
        Ok(Input { producer, failures })
    }

    /// Queues one message, waiting while the queue is full.
    pub fn send(&self, topic: &str, partition: Option<i32>, key: Option<&[u8]>, payload: Option<&[u8]>) -> Result<()> {
        loop {
            let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic);
            record.partition = partition;
            record.key = key;
            record.payload = payload;
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => std::thread::sleep(Duration::from_millis(1)),
                Err((error, _)) => return Err(error.into()),
            }
        }
    }

    /// Sends JSON values to one partition each, in turn.
    pub fn send_all(&self, topic: &str, partition: i32, values: &[Value]) -> Result<()> {
        for value in values {
            self.send(topic, Some(partition), None, Some(value.to_string().as_bytes()))?;
        }
        self.flush()
    }

    /// Waits until the broker has everything that was ever sent.
    pub fn flush(&self) -> Result<()> {
        self.producer.flush(TIMEOUT)?;
        let failures = self.failures.count();
        ensure!(failures == 0, "{failures} messages were not delivered");
        Ok(())
    }
}

/// Sends JSON values in one transaction; each names its partition.
pub fn send_together(bootstrap_servers: &str, topic: &str, values: &[(i32, Value)]) -> Result<()> {
    let producer: BaseProducer = config(bootstrap_servers).set("transactional.id", format!("{topic}-feeder")).create()?;
    producer.init_transactions(TIMEOUT)?;
    producer.begin_transaction()?;
    for (partition, value) in values {
        let text = value.to_string();
        let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(*partition).payload(text.as_bytes());
        producer.send(record).map_err(|(error, _)| error)?;
    }
    producer.flush(TIMEOUT)?;
    Ok(producer.commit_transaction(TIMEOUT)?)
}

/// Deletes what is committed in a topic.
pub fn empty_topic(bootstrap_servers: &str, topic: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap_servers).create()?;
    let mut before = TopicPartitionList::new();
    for end in ends(bootstrap_servers, topic)?.into_iter().filter(|end| end.topic == topic) {
        before.add_partition_offset(topic, end.partition, Offset::Offset(end.stable))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let deleted = runtime.block_on(admin.delete_records(&before, &options))?;
    for result in deleted.elements() {
        result.error()?;
    }
    Ok(())
}

/// Follows all partitions of a topic from the beginning, committed messages only.
pub struct Output {
    reader: Reader,
    topic: String,
}

impl Output {
    /// A topic that is not there yet is waited for.
    pub fn follow(bootstrap_servers: &str, topic: &str) -> Result<Output> {
        let reader = Reader::open(bootstrap_servers, &[topic], Isolation::Committed)?;
        Ok(Output { reader, topic: topic.to_string() })
    }

    /// Visits what is committed now, up to the committed end of each partition.
    pub fn visit_to_end(&mut self, visit: &mut dyn FnMut(&BorrowedMessage<'_>)) -> Result<()> {
        self.visit_until(TIMEOUT, &mut |message, at_end| {
            if let Some(message) = message {
                visit(message);
            }
            at_end
        })
    }

    /// Visits messages until `done` says so (it is asked after each message, and with None when nothing came). `at_end` is true
    /// when all partitions are at their committed end.
    pub fn visit_until(&mut self, quiet_max: Duration, done: &mut dyn FnMut(Option<&BorrowedMessage<'_>>, bool) -> bool) -> Result<()> {
        let mut last_news = Instant::now();
        loop {
            let is_done = match self.reader.next(POLL)? {
                Met::Message(message) => {
                    last_news = Instant::now();
                    Some(done(Some(&message), false))
                }
                Met::End { .. } | Met::Nothing => None,
            };
            if is_done.unwrap_or_else(|| done(None, self.reader.is_at_end())) {
                return Ok(());
            }
            ensure!(last_news.elapsed() < quiet_max, "{}: nothing new for {quiet_max:?}", self.topic);
        }
    }
}

/// All committed messages of a topic as JSON, partition by partition in no given order.
pub fn read_json(bootstrap_servers: &str, topic: &str) -> Result<Vec<Value>> {
    let (mut values, mut broken) = (Vec::new(), None);
    Output::follow(bootstrap_servers, topic)?.visit_to_end(&mut |message| match serde_json::from_slice(
        message.payload().unwrap_or_default(),
    ) {
        Ok(value) => values.push(value),
        Err(error) => broken = Some(format!("{topic} {}:{}: {error}", message.partition(), message.offset())),
    })?;
    match broken {
        None => Ok(values),
        Some(what) => bail!(what),
    }
}

/// Number of committed messages.
pub fn count(bootstrap_servers: &str, topic: &str) -> Result<u64> {
    let mut count = 0;
    Output::follow(bootstrap_servers, topic)?.visit_to_end(&mut |_| count += 1)?;
    Ok(count)
}

/// Waits until at least `rows` messages are committed and returns all of them.
pub fn wait_for_json(bootstrap_servers: &str, topic: &str, rows: usize, quiet_max: Duration) -> Result<Vec<Value>> {
    let (mut values, mut broken) = (Vec::new(), None);
    let mut output = Output::follow(bootstrap_servers, topic)?;
    let result = output.visit_until(quiet_max, &mut |message, _| {
        if let Some(message) = message {
            match serde_json::from_slice(message.payload().unwrap_or_default()) {
                Ok(value) => values.push(value),
                Err(error) => broken = Some(error.to_string()),
            }
        }
        values.len() >= rows || broken.is_some()
    });
    result.with_context(|| format!("{} of {rows} rows came", values.len()))?;
    match broken {
        None => Ok(values),
        Some(what) => bail!("{topic}: {what}"),
    }
}

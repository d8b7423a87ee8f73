//! What only an administrator of the brokers can ask: who leads what, and that records go.

use crate::api::FaultError;
use anyhow::{Context, Result};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{Offset, TopicPartitionList};
use std::net::TcpStream;
use std::ops::Range;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(15);
/// A partition is read from its beginning to its end within this.
const READ_TIME_MAX: Duration = Duration::from_secs(20);

fn config(servers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("allow.auto.create.topics", "false").set("log_level", "3");
    config
}

/// All topics, with the number of their partitions.
pub fn topics(servers: &str) -> Result<Vec<(String, i32)>> {
    let consumer: BaseConsumer = config(servers).create()?;
    let metadata = consumer.fetch_metadata(None, TIMEOUT)?;
    Ok(metadata.topics().iter().map(|topic| (topic.name().to_string(), topic.partitions().len() as i32)).collect())
}

/// The broker that leads a partition.
pub fn leader_of(servers: &str, topic: &str, partition: i32) -> Result<u32, FaultError> {
    let consumer: BaseConsumer = config(servers).create().context("a client")?;
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).context("the topics of the brokers")?;
    let found = metadata.topics().first().and_then(|topic| topic.partitions().iter().find(|found| found.id() == partition));
    let leader = found.map(|partition| partition.leader()).and_then(|leader| u32::try_from(leader).ok());
    leader.ok_or_else(|| FaultError::NoTarget(format!("{topic}-{partition} has no leader")))
}

/// The broker that coordinates the transactions of an id.
///
/// librdkafka keeps this to itself, so the question (FindCoordinator, version 1) is put by hand: it is 30 bytes long.
pub fn transaction_coordinator(servers: &str, transactional_id: &str) -> Result<u32, FaultError> {
    let mut last = anyhow::anyhow!("no broker was asked");
    for server in servers.split(',') {
        match ask_coordinator(server, transactional_id) {
            Ok(broker) => return Ok(broker),
            Err(error) => last = error,
        }
    }
    Err(FaultError::NoTarget(format!("nobody knows the coordinator of {transactional_id}: {last:#}")))
}

fn ask_coordinator(server: &str, transactional_id: &str) -> Result<u32> {
    const FIND_COORDINATOR: i16 = 10;
    const VERSION: i16 = 1;
    const OF_TRANSACTION: u8 = 1;
    let mut request = Vec::new();
    request.extend(FIND_COORDINATOR.to_be_bytes());
    request.extend(VERSION.to_be_bytes());
    request.extend(1i32.to_be_bytes()); // correlation
    request.extend((-1i16).to_be_bytes()); // no client id
    request.extend(i16::try_from(transactional_id.len())?.to_be_bytes());
    request.extend(transactional_id.as_bytes());
    request.push(OF_TRANSACTION);
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut frame = i32::try_from(request.len())?.to_be_bytes().to_vec();
    frame.extend(request);
    std::io::Write::write_all(&mut stream, &frame)?;
    let mut length = [0; 4];
    std::io::Read::read_exact(&mut stream, &mut length)?;
    let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length))?.min(1 << 16)];
    std::io::Read::read_exact(&mut stream, &mut answer)?;
    coordinator_in(&answer)
}

/// Correlation, throttle time, error code, error message, node: what comes after it is of no interest.
fn coordinator_in(answer: &[u8]) -> Result<u32> {
    let number = |at: usize| -> Result<i16> { Ok(i16::from_be_bytes(answer.get(at..at + 2).context("a short answer")?.try_into()?)) };
    let code = number(8)?;
    anyhow::ensure!(code == 0, "error {code}");
    let node_at = 12 + usize::try_from(number(10)?.max(0))?;
    let node = i32::from_be_bytes(answer.get(node_at..node_at + 4).context("a short answer")?.try_into()?);
    u32::try_from(node).with_context(|| format!("broker {node}"))
}

/// Gets a producer id for a transactional id: whoever had it is fenced, and its open transaction aborted.
pub fn fence(servers: &str, transactional_id: &str) -> Result<()> {
    let producer: BaseProducer = config(servers).set("transactional.id", transactional_id).create()?;
    producer.init_transactions(TIMEOUT).with_context(|| transactional_id.to_string())
}

/// One partition up to an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trim {
    pub topic: String,
    pub partition: i32,
    /// The first one that stays.
    pub before: i64,
}

/// The first offset of a partition, and the one behind what can be read of it: what is committed.
pub fn bounds(servers: &str, topic: &str, partition: i32) -> Result<Range<i64>> {
    let consumer: BaseConsumer = config(servers).create()?;
    let (low, high) = consumer.fetch_watermarks(topic, partition, TIMEOUT).with_context(|| format!("{topic}-{partition}"))?;
    Ok(low..high)
}

/// Deletes records.
pub fn delete_records(servers: &str, trims: &[Trim]) -> Result<()> {
    let mut offsets = TopicPartitionList::new();
    for trim in trims {
        offsets.add_partition_offset(&trim.topic, trim.partition, Offset::Offset(trim.before))?;
    }
    let admin: AdminClient<DefaultClientContext> = config(servers).create()?;
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let results = futures::executor::block_on(admin.delete_records(&offsets, &options))?;
    for result in results.elements() {
        result.error().with_context(|| format!("{}-{}", result.topic(), result.partition()))?;
    }
    Ok(())
}

/// Visits what is committed in a partition, from its beginning to its end of now.
pub fn read_partition(servers: &str, topic: &str, partition: i32, visit: &mut dyn FnMut(i64, &[u8])) -> Result<()> {
    let consumer: BaseConsumer = config(servers)
        .set("group.id", "streamshield-chaos")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "50")
        .create()?;
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
    consumer.assign(&assignment)?;
    let deadline = Instant::now() + READ_TIME_MAX;
    loop {
        anyhow::ensure!(Instant::now() < deadline, "{topic}-{partition} was not read in {READ_TIME_MAX:?}");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => visit(message.offset(), message.payload().unwrap_or_default()),
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => return Ok(()),
            Some(Err(error)) => return Err(error).with_context(|| format!("reading {topic}-{partition}")),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coordinator_is_read_from_an_answer() {
        let mut answer = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        answer.extend([0, 4]);
        answer.extend(b"NONE");
        answer.extend([0, 0, 0, 3, 0, 9]);
        assert_eq!(coordinator_in(&answer).expect("a broker"), 3);
        answer[9] = 15;
        assert!(coordinator_in(&answer).expect_err("not available").to_string().contains("15"));
        assert!(coordinator_in(&answer[..9]).is_err());
    }
}

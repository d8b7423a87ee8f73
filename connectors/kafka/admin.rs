//! Questions to a cluster and changes of its topics.
//!
//! rdkafka's administration calls are futures served by a thread of theirs; [`block_on`] waits for one without an
//! async runtime, because the log port is called from plain threads.

use crate::context::ClientEvents;
use crate::errors::{code_error, kind_of, log_error};
use crate::log::QUERY_TIMEOUT;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Offset as RdOffset, TopicPartitionList};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::{LogError, LogErrorKind, TopicPartition, TopicSpec};

type Admin = AdminClient<DefaultClientContext>;
type Query = BaseConsumer<ClientEvents>;

/// A broker that is asked to create topics answers when they exist or after this.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the metadata is asked for topics that were just created: the cluster gives no event for it.
const METADATA_INTERVAL: Duration = Duration::from_millis(20);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future whose progress is made by another thread.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).operation_timeout(Some(OPERATION_TIMEOUT))
}

/// An error of a whole administration call; rdkafka hides its code from `rdkafka_error_code`.
fn admin_error(what: &str, error: &KafkaError) -> LogError {
    match error {
        KafkaError::AdminOp(code) => code_error(what, *code),
        KafkaError::AdminOpCreation(reason) => LogError::new(LogErrorKind::Fatal, format!("{what}: {reason}")),
        other => log_error(what, other),
    }
}

pub(crate) fn create_topics(admin: &Admin, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
    if topics.is_empty() {
        return Ok(Vec::new());
    }
    let new: Vec<_> = topics
        .iter()
        .map(|topic| {
            let replication = TopicReplication::Fixed(topic.replication_factor.unwrap_or(-1));
            topic.configs.iter().fold(NewTopic::new(&topic.name, topic.partitions, replication), |new, (key, value)| new.set(key, value))
        })
        .collect();
    let results = block_on(admin.create_topics(&new, &options())).map_err(|error| admin_error("create topics", &error))?;
    let mut created = Vec::new();
    for result in results {
        match result {
            Ok(name) => created.push(name),
            Err((_, Code::TopicAlreadyExists)) => {}
            Err((name, code)) => return Err(code_error(&format!("create topic '{name}'"), code)),
        }
    }
    Ok(created)
}

/// Waits until every partition of new topics has a leader.
pub(crate) fn await_topics(query: &Query, topics: &[String]) -> Result<(), LogError> {
    let deadline = Instant::now() + QUERY_TIMEOUT;
    for topic in topics {
        loop {
            let not_yet = match partitions(query, topic, QUERY_TIMEOUT) {
                Ok(Some(_)) => break,
                Ok(None) => LogError::new(LogErrorKind::Retry, format!("topic '{topic}' was created but has no leaders yet")),
                // Some of its partitions have one.
                Err(error) if error.kind == LogErrorKind::Retry => error,
                Err(error) => return Err(error),
            };
            if Instant::now() >= deadline {
                return Err(not_yet);
            }
            thread::sleep(METADATA_INTERVAL);
        }
    }
    Ok(())
}

/// Number of partitions; None when the topic does not exist or is not ready.
pub(crate) fn partitions(query: &Query, topic: &str, timeout: Duration) -> Result<Option<i32>, LogError> {
    let what = format!("describe topic '{topic}'");
    let metadata = query.fetch_metadata(Some(topic), timeout).map_err(|error| log_error(&what, &error))?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    if let Some(error) = found.error() {
        let code = Code::from(error);
        return if kind_of(code) == LogErrorKind::Missing { Ok(None) } else { Err(code_error(&what, code)) };
    }
    let ready = !found.partitions().is_empty() && found.partitions().iter().all(|partition| partition.leader() >= 0);
    match (ready, found.partitions().len()) {
        (true, count) => Ok(Some(count as i32)),
        (false, 0) => Ok(None),
        (false, _) => Err(LogError::new(LogErrorKind::Retry, format!("topic '{topic}' has a partition without leader"))),
    }
}

/// Effective configs of a topic. Values that the broker hides are left out.
pub(crate) fn configs(admin: &Admin, topic: &str) -> Result<BTreeMap<String, String>, LogError> {
    let what = format!("configs of topic '{topic}'");
    let results =
        block_on(admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options())).map_err(|error| admin_error(&what, &error))?;
    let resource = results.into_iter().next().ok_or_else(|| code_error(&what, Code::Fail))?.map_err(|code| code_error(&what, code))?;
    Ok(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
}

/// The first offset whose timestamp is at or after a time; None when there is none.
pub(crate) fn offset_for_time(query: &Query, partition: &TopicPartition, timestamp_ms: i64) -> Result<Option<Offset>, LogError> {
    let what = format!("offset of {partition} at {timestamp_ms} ms");
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition_offset(&partition.topic, partition.partition, RdOffset::Offset(timestamp_ms.max(0)))
        .map_err(|error| log_error(&what, &error))?;
    let found = query.offsets_for_times(list, QUERY_TIMEOUT).map_err(|error| log_error(&what, &error))?;
    let element = found.elements().into_iter().next().ok_or_else(|| code_error(&what, Code::Fail))?;
    element.error().map_err(|error| log_error(&what, &error))?;
    match element.offset() {
        RdOffset::Offset(offset) => Ok(Some(offset)),
        _ => Ok(None),
    }
}

/// Where partitions end, by the isolation of the client: one question to each of their leaders.
pub(crate) fn ends(query: &Query, partitions: &[TopicPartition]) -> Result<Vec<Offset>, LogError> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        // In a question for the offset at a time, -1 is "the latest" in Kafka's protocol, and librdkafka passes it on.
        list.add_partition_offset(&partition.topic, partition.partition, RdOffset::End)
            .map_err(|error| log_error(&format!("end of {partition}"), &error))?;
    }
    let found = query.offsets_for_times(list, QUERY_TIMEOUT).map_err(|error| log_error("ends of partitions", &error))?;
    partitions
        .iter()
        .map(|partition| {
            let what = format!("end of {partition}");
            let element = found.find_partition(&partition.topic, partition.partition).ok_or_else(|| code_error(&what, Code::Fail))?;
            element.error().map_err(|error| log_error(&what, &error))?;
            match element.offset() {
                RdOffset::Offset(offset) => Ok(offset),
                _ => Err(code_error(&what, Code::Fail)),
            }
        })
        .collect()
}

/// Deletes what lies before the given offsets.
pub(crate) fn delete_records(admin: &Admin, before: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
    if before.is_empty() {
        return Ok(());
    }
    let mut list = TopicPartitionList::with_capacity(before.len());
    for (partition, offset) in before {
        list.add_partition_offset(&partition.topic, partition.partition, RdOffset::Offset(*offset))
            .map_err(|error| log_error(&format!("trim {partition}"), &error))?;
    }
    let result = block_on(admin.delete_records(&list, &options())).map_err(|error| admin_error("trim", &error))?;
    for element in result.elements() {
        element.error().map_err(|error| log_error(&format!("trim {}-{}", element.topic(), element.partition()), &error))?;
    }
    Ok(())
}

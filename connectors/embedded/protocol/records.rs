//! Produce, fetch, list offsets.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    BrokerId, FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse, ProduceRequest, ProduceResponse, ProducerId,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Front, Stopped, codes, text_of};
use crate::log_core::{Fetched, Isolation, LogCore, LogError, OffsetSpec, TopicId};

/// Fetch requests name topics by id from this version on.
const FETCH_BY_TOPIC_ID: i16 = 13;

impl Front {
    pub fn produce(&self, request: ProduceRequest) -> Result<ProduceResponse, Stopped> {
        let transactional_id = request.transactional_id.as_deref().map(|id| &**id);
        let mut response = ProduceResponse::default();
        for topic in request.topic_data {
            let mut topic_response = TopicProduceResponse::default().with_name(topic.name.clone());
            for partition in topic.partition_data {
                let records = partition.records.unwrap_or_default();
                let produced =
                    self.change(|core, now_ms| core.produce(now_ms, transactional_id, &topic.name, partition.index, &records))?;
                let answer = PartitionProduceResponse::default().with_index(partition.index).with_log_append_time_ms(-1);
                topic_response.partition_responses.push(match produced {
                    Ok(produced) => answer
                        .with_base_offset(produced.base_offset)
                        .with_log_append_time_ms(produced.log_append_time_ms.unwrap_or(-1))
                        .with_log_start_offset(produced.log_start_offset),
                    Err(error) => answer.with_base_offset(-1).with_error_code(codes::code(error)).with_error_message(text_of(error)),
                });
            }
            response.responses.push(topic_response);
        }
        Ok(response)
    }

    /// Answers when there is enough to return, an error to report, or the client's waiting time is over.
    pub async fn fetch(&self, request: FetchRequest, version: i16) -> FetchResponse {
        let deadline = Instant::now() + Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
        let targets = self.read(|core| fetch_targets(core, &request, version));
        let enough_bytes = usize::try_from(request.min_bytes).unwrap_or(0);
        let notify = Rc::new(Notify::new());
        loop {
            let attempt = self.read(|core| FetchAttempt::run(core, &request, &targets));
            if attempt.has_error || attempt.taken_bytes >= enough_bytes || targets.is_empty() || Instant::now() >= deadline {
                return attempt.into_response(&request);
            }
            let watched = || targets.iter().flatten().filter_map(|target| Some((target.topic.clone()?, target.partition.partition)));
            self.watch(watched(), &notify);
            let is_over = tokio::select! {
                () = notify.notified() => false,
                () = tokio::time::sleep_until(deadline) => true,
            };
            self.unwatch(watched(), &notify);
            if is_over {
                return self.read(|core| FetchAttempt::run(core, &request, &targets)).into_response(&request);
            }
        }
    }

    pub fn list_offsets(&self, request: ListOffsetsRequest) -> ListOffsetsResponse {
        let isolation = isolation_of(request.isolation_level);
        let topic = |topic: kafka_protocol::messages::list_offsets_request::ListOffsetsTopic| {
            let answer = |partition: &ListOffsetsPartition| self.read(|core| list_offset(core, &topic.name, partition, isolation));
            let partitions = topic.partitions.iter().map(answer).collect();
            ListOffsetsTopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions)
        };
        ListOffsetsResponse::default().with_topics(request.topics.into_iter().map(topic).collect())
    }
}

fn isolation_of(level: i8) -> Isolation {
    if level == 1 { Isolation::ReadCommitted } else { Isolation::ReadUncommitted }
}

fn list_offset(core: &LogCore, topic: &str, partition: &ListOffsetsPartition, isolation: Isolation) -> ListOffsetsPartitionResponse {
    let answer = ListOffsetsPartitionResponse::default()
        .with_partition_index(partition.partition_index)
        .with_timestamp(-1)
        .with_offset(-1)
        .with_leader_epoch(-1);
    let spec = match partition.timestamp {
        -1 => OffsetSpec::Latest(isolation),
        -2 => OffsetSpec::Earliest,
        -3 => OffsetSpec::NewestTime,
        timestamp_ms => OffsetSpec::AtTime { timestamp_ms },
    };
    match core.list_offset(topic, partition.partition_index, spec) {
        Ok(Some((offset, timestamp_ms))) => answer.with_offset(offset).with_timestamp(timestamp_ms.unwrap_or(-1)),
        Ok(None) => answer,
        Err(error) => answer.with_error_code(codes::code(error)),
    }
}

/// A partition to fetch, its topic found by name or id.
struct FetchTarget {
    topic: Option<Rc<str>>,
    partition: FetchPartition,
}

/// Per requested topic, its partitions.
fn fetch_targets(core: &LogCore, request: &FetchRequest, version: i16) -> Vec<Vec<FetchTarget>> {
    let targets_of = |topic: &kafka_protocol::messages::fetch_request::FetchTopic| {
        let name = if version >= FETCH_BY_TOPIC_ID {
            core.topic_name(TopicId(topic.topic_id.as_u128())).map(Rc::from)
        } else {
            Some(Rc::from(topic.topic.as_str()))
        };
        let target = |partition: &FetchPartition| FetchTarget { topic: name.clone(), partition: partition.clone() };
        topic.partitions.iter().map(target).collect()
    };
    request.topics.iter().map(targets_of).collect()
}

/// One look at all requested partitions.
struct FetchAttempt {
    results: Vec<Vec<(i32, Result<Fetched, i16>)>>,
    taken_bytes: usize,
    has_error: bool,
}

impl FetchAttempt {
    fn run(core: &LogCore, request: &FetchRequest, targets: &[Vec<FetchTarget>]) -> FetchAttempt {
        let isolation = isolation_of(request.isolation_level);
        let bytes_max = usize::try_from(request.max_bytes).unwrap_or(0);
        let mut attempt = FetchAttempt { results: Vec::with_capacity(targets.len()), taken_bytes: 0, has_error: false };
        for topic in targets {
            let mut results = Vec::with_capacity(topic.len());
            for target in topic {
                let wanted = usize::try_from(target.partition.partition_max_bytes).unwrap_or(0);
                let room = wanted.min(bytes_max.saturating_sub(attempt.taken_bytes));
                let result = target.fetch(core, isolation, room, attempt.taken_bytes == 0);
                attempt.has_error |= result.is_err();
                if let Ok(fetched) = &result {
                    attempt.taken_bytes += fetched.batches.iter().map(Bytes::len).sum::<usize>();
                }
                results.push((target.partition.partition, result));
            }
            attempt.results.push(results);
        }
        attempt
    }

    fn into_response(self, request: &FetchRequest) -> FetchResponse {
        let is_committed = isolation_of(request.isolation_level) == Isolation::ReadCommitted;
        let topic = |(topic, results): (&kafka_protocol::messages::fetch_request::FetchTopic, Vec<_>)| {
            let partition = |(index, result)| partition_data(index, result, is_committed);
            FetchableTopicResponse::default()
                .with_topic(topic.topic.clone())
                .with_topic_id(topic.topic_id)
                .with_partitions(results.into_iter().map(partition).collect())
        };
        FetchResponse::default().with_responses(request.topics.iter().zip(self.results).map(topic).collect())
    }
}

impl FetchTarget {
    fn fetch(&self, core: &LogCore, isolation: Isolation, bytes_max: usize, at_least_one: bool) -> Result<Fetched, i16> {
        let topic = self.topic.as_deref().ok_or(codes::UNKNOWN_TOPIC_ID)?;
        let partition = &self.partition;
        let fetched = core.fetch(topic, partition.partition, partition.fetch_offset, isolation, bytes_max, at_least_one);
        fetched.map_err(|error: LogError| codes::code(error))
    }
}

fn partition_data(index: i32, result: Result<Fetched, i16>, is_committed: bool) -> PartitionData {
    let answer = PartitionData::default()
        .with_partition_index(index)
        .with_high_watermark(-1)
        .with_last_stable_offset(-1)
        .with_log_start_offset(-1)
        .with_preferred_read_replica(BrokerId(-1))
        .with_records(Some(Bytes::new()));
    let fetched = match result {
        Ok(fetched) => fetched,
        Err(code) => return answer.with_error_code(code),
    };
    let aborted = |(producer_id, first_offset)| {
        AbortedTransaction::default().with_producer_id(ProducerId(producer_id)).with_first_offset(first_offset)
    };
    answer
        .with_high_watermark(fetched.high_watermark)
        .with_last_stable_offset(fetched.last_stable_offset)
        .with_log_start_offset(fetched.log_start_offset)
        .with_aborted_transactions(is_committed.then(|| fetched.aborted.into_iter().map(aborted).collect()))
        .with_records(Some(concatenate(fetched.batches)))
}

fn concatenate(mut batches: Vec<Bytes>) -> Bytes {
    if batches.len() == 1 {
        return batches.pop().unwrap_or_default();
    }
    let mut records = BytesMut::with_capacity(batches.iter().map(Bytes::len).sum());
    for batch in batches {
        records.extend_from_slice(&batch);
    }
    records.freeze()
}

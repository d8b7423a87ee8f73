//! A client that sends exactly the requests it is told to: for what librdkafka would never send.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, EndTxnRequest, InitProducerIdRequest, MetadataRequest, ProduceRequest, ProducerId, RequestHeader,
    ResponseHeader, TopicName, TransactionalId,
};
use kafka_protocol::protocol::{Decodable as _, Encodable as _, HeaderVersion as _, Request, StrBytes};
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
use uuid::Uuid;

use super::kit::{Env, STEP, millis};

/// The coordinator loads, moves, or still ends the last transaction: try again.
const RETRIABLE: [i16; 4] = [14, 15, 16, 51];
const NOT_LEADER: i16 = 6;

pub struct RawClient {
    stream: TcpStream,
    correlation_id: i32,
}

/// A producer id and epoch.
pub type Producer = (i64, i16);

impl RawClient {
    pub fn connect(env: &Env) -> Result<RawClient> {
        let stream = TcpStream::connect(&env.bootstrap).context("connect")?;
        stream.set_read_timeout(Some(STEP))?;
        stream.set_nodelay(true)?;
        Ok(RawClient { stream, correlation_id: 0 })
    }

    pub fn call<R: Request>(&mut self, request: &R, version: i16) -> Result<R::Response> {
        self.correlation_id += 1;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation_id)
            .with_client_id(Some(StrBytes::from_static_str("conformance")));
        let mut frame = BytesMut::from(&[0; 4][..]);
        header.encode(&mut frame, R::header_version(version))?;
        request.encode(&mut frame, version)?;
        let length = (frame.len() - 4) as u32;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        self.stream.write_all(&frame)?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).context("the broker closed the connection")?;
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut answer)?;
        let mut answer = Bytes::from(answer);
        let header = ResponseHeader::decode(&mut answer, R::Response::header_version(version))?;
        if header.correlation_id != self.correlation_id {
            bail!("an answer to another request");
        }
        R::Response::decode(&mut answer, version)
    }

    pub fn topic_id(&mut self, topic: &str) -> Result<Uuid> {
        let wanted = MetadataRequestTopic::default().with_name(Some(name(topic)));
        let request = MetadataRequest::default().with_topics(Some(vec![wanted])).with_allow_auto_topic_creation(false);
        let answer = self.call(&request, 12)?;
        let topic = answer.topics.first().ok_or_else(|| anyhow!("no topic"))?;
        if topic.error_code != 0 {
            bail!("metadata: error {}", topic.error_code);
        }
        Ok(topic.topic_id)
    }

    /// Error code and base offset. A broker that has just lost the partition to nobody, since its controller did not hear of it in time, is asked again.
    pub fn produce(&mut self, transactional_id: Option<&str>, topic: &str, records: &Bytes) -> Result<(i16, i64)> {
        let partition = PartitionProduceData::default().with_index(0).with_records(Some(records.clone()));
        let topic = TopicProduceData::default().with_name(name(topic)).with_partition_data(vec![partition]);
        let request = ProduceRequest::default()
            .with_transactional_id(transactional_id.map(|id| TransactionalId(StrBytes::from_string(id.to_owned()))))
            .with_acks(-1)
            .with_timeout_ms(10_000)
            .with_topic_data(vec![topic]);
        let started = std::time::Instant::now();
        loop {
            let answer = self.call(&request, 9)?;
            let partition =
                answer.responses.first().and_then(|topic| topic.partition_responses.first()).ok_or_else(|| anyhow!("no answer"))?;
            if partition.error_code != NOT_LEADER || started.elapsed() > STEP {
                return Ok((partition.error_code, partition.base_offset));
            }
            std::thread::sleep(millis(20));
        }
    }

    pub fn init_producer_id(&mut self, transactional_id: Option<&str>) -> Result<Producer> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(transactional_id.map(|id| TransactionalId(StrBytes::from_string(id.to_owned()))))
            .with_transaction_timeout_ms(15_000)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let mut granted = (0, 0);
        let code = retried(|| {
            let answer = self.call(&request, 4)?;
            granted = (answer.producer_id.0, answer.producer_epoch);
            Ok(answer.error_code)
        })?;
        if code == 0 { Ok(granted) } else { bail!("InitProducerId: error {code}") }
    }

    pub fn add_partition(&mut self, transactional_id: &str, producer: Producer, topic: &str) -> Result<i16> {
        let topic = AddPartitionsToTxnTopic::default().with_name(name(topic)).with_partitions(vec![0]);
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(TransactionalId(StrBytes::from_string(transactional_id.to_owned())))
            .with_v3_and_below_producer_id(ProducerId(producer.0))
            .with_v3_and_below_producer_epoch(producer.1)
            .with_v3_and_below_topics(vec![topic]);
        retried(|| {
            let answer = self.call(&request, 2)?;
            let topic = answer.results_by_topic_v3_and_below.first().ok_or_else(|| anyhow!("no answer"))?;
            topic.results_by_partition.first().map(|partition| partition.partition_error_code).ok_or_else(|| anyhow!("no answer"))
        })
    }

    pub fn end(&mut self, transactional_id: &str, producer: Producer, commit: bool) -> Result<i16> {
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(StrBytes::from_string(transactional_id.to_owned())))
            .with_producer_id(ProducerId(producer.0))
            .with_producer_epoch(producer.1)
            .with_committed(commit);
        retried(|| Ok(self.call(&request, 2)?.error_code))
    }
}

fn retried(mut call: impl FnMut() -> Result<i16>) -> Result<i16> {
    let started = std::time::Instant::now();
    loop {
        let code = call()?;
        if !RETRIABLE.contains(&code) || started.elapsed() > STEP {
            return Ok(code);
        }
        std::thread::sleep(millis(20));
    }
}

pub fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

/// One batch of these values.
pub fn batch(producer: Producer, base_sequence: i32, is_transactional: bool, values: &[String]) -> Result<Bytes> {
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis() as i64;
    let record = |(at, value): (usize, &String)| Record {
        transactional: is_transactional,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id: producer.0,
        producer_epoch: producer.1,
        timestamp_type: TimestampType::Creation,
        offset: at as i64,
        sequence: base_sequence.wrapping_add(at as i32),
        timestamp: now_ms,
        key: Some(Bytes::copy_from_slice(value.as_bytes())),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: Default::default(),
    };
    let records: Vec<_> = values.iter().enumerate().map(record).collect();
    let mut encoded = BytesMut::new();
    RecordBatchEncoder::encode(&mut encoded, &records, &RecordEncodeOptions { version: 2, compression: Compression::None })?;
    Ok(encoded.freeze())
}

/// Sets bytes of a batch and writes the checksum that belongs to them.
pub fn with_bytes(batch: &Bytes, at: usize, bytes: &[u8]) -> Bytes {
    let mut changed = BytesMut::from(&batch[..]);
    changed[at..at + bytes.len()].copy_from_slice(bytes);
    let sum = crc32c::crc32c(&changed[21..]);
    changed[17..21].copy_from_slice(&sum.to_be_bytes());
    changed.freeze()
}

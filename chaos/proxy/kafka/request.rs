//! A Kafka request as a rule sees it: whose it is, and what it asks for.

use bytes::{Buf, Bytes};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, ApiKey, EndTxnRequest, InitProducerIdRequest, ProduceRequest, RequestHeader,
    TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::Decodable;

/// Bytes in front of a frame that say how long it is.
pub(crate) const LENGTH_BYTES: usize = 4;

/// One request. What a request of its kind does not have is `None` or empty; so is everything in one that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub api: ApiKey,
    pub version: i16,
    pub correlation: i32,
    /// Counted from one by the order in which the proxy accepted them.
    pub connection: u64,
    pub client_id: Option<String>,
    pub transactional_id: Option<String>,
    pub producer_id: Option<i64>,
    pub producer_epoch: Option<i16>,
    /// Of EndTxn: commit or abort.
    pub commits: Option<bool>,
    /// Of Produce and AddPartitionsToTxn.
    pub topics: Vec<String>,
}

/// The first bytes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub api_key: i16,
    pub version: i16,
    pub correlation: i32,
}

impl Head {
    pub const BYTES: usize = 8;

    pub fn read(mut bytes: &[u8]) -> Head {
        Head { api_key: bytes.get_i16(), version: bytes.get_i16(), correlation: bytes.get_i32() }
    }
}

impl Request {
    /// Reads a whole frame, with its length in front.
    pub(crate) fn read(frame: &Bytes, head: Head, api: ApiKey, connection: u64) -> Request {
        let mut request = Request {
            api,
            version: head.version,
            correlation: head.correlation,
            connection,
            client_id: None,
            transactional_id: None,
            producer_id: None,
            producer_epoch: None,
            commits: None,
            topics: Vec::new(),
        };
        if let Err(error) = request.read_content(frame.slice(LENGTH_BYTES..)) {
            tracing::debug!(?api, version = head.version, %error, "a request can't be read; rules see its name only");
        }
        request
    }

    fn read_content(&mut self, mut bytes: Bytes) -> anyhow::Result<()> {
        let version = self.version;
        let header = RequestHeader::decode(&mut bytes, self.api.request_header_version(version))?;
        self.client_id = header.client_id.map(|id| id.to_string());
        match self.api {
            ApiKey::EndTxn => {
                let request = EndTxnRequest::decode(&mut bytes, version)?;
                self.of_producer(&request.transactional_id.0, request.producer_id.0, request.producer_epoch);
                self.commits = Some(request.committed);
            }
            ApiKey::AddPartitionsToTxn => {
                let request = AddPartitionsToTxnRequest::decode(&mut bytes, version)?;
                if version < 4 {
                    self.of_producer(
                        &request.v3_and_below_transactional_id.0,
                        request.v3_and_below_producer_id.0,
                        request.v3_and_below_producer_epoch,
                    );
                    self.topics = request.v3_and_below_topics.iter().map(|topic| topic.name.to_string()).collect();
                } else if let Some(first) = request.transactions.first() {
                    self.of_producer(&first.transactional_id.0, first.producer_id.0, first.producer_epoch);
                    self.topics = first.topics.iter().map(|topic| topic.name.to_string()).collect();
                }
            }
            ApiKey::AddOffsetsToTxn => {
                let request = AddOffsetsToTxnRequest::decode(&mut bytes, version)?;
                self.of_producer(&request.transactional_id.0, request.producer_id.0, request.producer_epoch);
            }
            ApiKey::TxnOffsetCommit => {
                let request = TxnOffsetCommitRequest::decode(&mut bytes, version)?;
                self.of_producer(&request.transactional_id.0, request.producer_id.0, request.producer_epoch);
            }
            ApiKey::InitProducerId => {
                let request = InitProducerIdRequest::decode(&mut bytes, version)?;
                self.transactional_id = request.transactional_id.map(|id| id.to_string());
            }
            ApiKey::Produce => {
                let request = ProduceRequest::decode(&mut bytes, version)?;
                self.transactional_id = request.transactional_id.map(|id| id.to_string());
                self.topics = request.topic_data.iter().map(|topic| topic.name.to_string()).collect();
            }
            _ => {}
        }
        Ok(())
    }

    fn of_producer(&mut self, transactional_id: &str, id: i64, epoch: i16) {
        self.transactional_id = Some(transactional_id.to_string());
        (self.producer_id, self.producer_epoch) = (Some(id), Some(epoch));
    }
}

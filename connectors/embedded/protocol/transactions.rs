//! Producer ids and transactions.

use kafka_protocol::messages::add_partitions_to_txn_response::{AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult};
use kafka_protocol::messages::txn_offset_commit_response::{TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, EndTxnRequest, EndTxnResponse,
    InitProducerIdRequest, InitProducerIdResponse, ProducerId, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};

use super::groups::{caller, committed};
use super::{Front, Stopped, codes};

/// The versions from which a request's clients know PRODUCER_FENCED (KIP-588).
const INIT_KNOWS_FENCED: i16 = 4;
const TRANSACTION_KNOWS_FENCED: i16 = 2;

impl Front {
    pub fn init_producer_id(&self, request: InitProducerIdRequest, version: i16) -> Result<InitProducerIdResponse, Stopped> {
        let transactional_id = request.transactional_id.as_deref().map(|id| &**id);
        let current = (request.producer_id.0 >= 0).then_some((request.producer_id.0, request.producer_epoch));
        let timeout_ms = i64::from(request.transaction_timeout_ms);
        let granted = self.change(|core, now_ms| core.init_producer_id(now_ms, transactional_id, timeout_ms, current))?;
        let answer = InitProducerIdResponse::default();
        Ok(match granted {
            Ok((producer_id, epoch)) => answer.with_producer_id(ProducerId(producer_id)).with_producer_epoch(epoch),
            Err(error) => answer
                .with_error_code(codes::transaction_code(&Err(error), version >= INIT_KNOWS_FENCED))
                .with_producer_id(ProducerId(-1))
                .with_producer_epoch(-1),
        })
    }

    pub fn add_partitions_to_txn(&self, request: AddPartitionsToTxnRequest, version: i16) -> Result<AddPartitionsToTxnResponse, Stopped> {
        let producer = (request.v3_and_below_producer_id.0, request.v3_and_below_producer_epoch);
        let topics = request.v3_and_below_topics;
        let in_topic = |topic: &kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic| {
            topic.partitions.iter().map(|partition| (topic.name.to_string(), *partition)).collect::<Vec<_>>()
        };
        let partitions: Vec<_> = topics.iter().flat_map(in_topic).collect();
        let id = &request.v3_and_below_transactional_id;
        let added = self.change(|core, now_ms| core.add_partitions_to_transaction(now_ms, id, producer, &partitions))?;
        let error_code = codes::transaction_code(&added, version >= TRANSACTION_KNOWS_FENCED);
        let topics = topics.into_iter().map(|topic| {
            let partition = |index: &i32| {
                AddPartitionsToTxnPartitionResult::default().with_partition_index(*index).with_partition_error_code(error_code)
            };
            let results = topic.partitions.iter().map(partition).collect();
            AddPartitionsToTxnTopicResult::default().with_name(topic.name).with_results_by_partition(results)
        });
        Ok(AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(topics.collect()))
    }

    pub fn add_offsets_to_txn(&self, request: AddOffsetsToTxnRequest, version: i16) -> Result<AddOffsetsToTxnResponse, Stopped> {
        let producer = (request.producer_id.0, request.producer_epoch);
        let added =
            self.change(|core, now_ms| core.add_offsets_to_transaction(now_ms, &request.transactional_id, producer, &request.group_id))?;
        Ok(AddOffsetsToTxnResponse::default().with_error_code(codes::transaction_code(&added, version >= TRANSACTION_KNOWS_FENCED)))
    }

    pub fn end_txn(&self, request: EndTxnRequest, version: i16) -> Result<EndTxnResponse, Stopped> {
        let producer = (request.producer_id.0, request.producer_epoch);
        let ended = self.change(|core, now_ms| core.end_transaction(now_ms, &request.transactional_id, producer, request.committed))?;
        Ok(EndTxnResponse::default().with_error_code(codes::transaction_code(&ended, version >= TRANSACTION_KNOWS_FENCED)))
    }

    pub fn txn_offset_commit(&self, request: TxnOffsetCommitRequest) -> Result<TxnOffsetCommitResponse, Stopped> {
        let producer = (request.producer_id.0, request.producer_epoch);
        let caller = caller(&request.member_id, &request.group_instance_id, request.generation_id);
        let mut offsets = Vec::new();
        for topic in &request.topics {
            for partition in &topic.partitions {
                let metadata = partition.committed_metadata.as_deref().unwrap_or_default();
                offsets.push(committed(
                    &topic.name,
                    partition.partition_index,
                    partition.committed_offset,
                    partition.committed_leader_epoch,
                    metadata,
                ));
            }
        }
        let (id, group) = (&request.transactional_id, &request.group_id);
        let staged = self.change(|core, now_ms| core.commit_offsets_in_transaction(now_ms, id, producer, group, &caller, offsets))?;
        let error_code = codes::transaction_code(&staged, false);
        let topics = request.topics.into_iter().map(|topic| {
            let partition = |partition: kafka_protocol::messages::txn_offset_commit_request::TxnOffsetCommitRequestPartition| {
                TxnOffsetCommitResponsePartition::default().with_partition_index(partition.partition_index).with_error_code(error_code)
            };
            TxnOffsetCommitResponseTopic::default()
                .with_name(topic.name)
                .with_partitions(topic.partitions.into_iter().map(partition).collect())
        });
        Ok(TxnOffsetCommitResponse::default().with_topics(topics.collect()))
    }
}

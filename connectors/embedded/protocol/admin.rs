//! Cluster and topics: metadata, create, delete, partitions, trim.

use std::collections::BTreeMap;

use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic};
use kafka_protocol::messages::{
    BrokerId, CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse, DeleteRecordsRequest,
    DeleteRecordsResponse, DeleteTopicsRequest, DeleteTopicsResponse, DescribeClusterResponse, FindCoordinatorRequest,
    FindCoordinatorResponse, MetadataRequest, MetadataResponse, TopicName,
};
use uuid::Uuid;

use super::{BROKER_ID, Front, Stopped, codes, text, text_of, topic_name};
use crate::log_core::{LogCore, LogError, Topic, TopicId};

/// From this version on "all topics" is asked for by no list; before, by an empty one.
const METADATA_ALL_BY_NULL: i16 = 1;
/// Before this version the request can't say whether it wants topics created, and Kafka creates them.
const METADATA_SAYS_AUTO_CREATE: i16 = 4;
/// Topics are deleted by name or id from this version on.
const DELETE_BY_TOPIC_ID: i16 = 6;

impl Front {
    pub fn metadata(&self, request: MetadataRequest, version: i16) -> Result<MetadataResponse, Stopped> {
        let may_create = version < METADATA_SAYS_AUTO_CREATE || request.allow_auto_topic_creation;
        let wants_all = request.topics.as_ref().is_none_or(|topics| version < METADATA_ALL_BY_NULL && topics.is_empty());
        let topics = if wants_all {
            self.read(|core| core.topics().map(|(name, topic)| describe_topic(name, topic)).collect())
        } else {
            let wanted = request.topics.unwrap_or_default();
            wanted.into_iter().map(|topic| self.metadata_of(topic, may_create)).collect::<Result<_, _>>()?
        };
        let broker = MetadataResponseBroker::default()
            .with_node_id(BrokerId(BROKER_ID))
            .with_host(text(&self.config.advertised_host))
            .with_port(i32::from(self.config.advertised_port));
        Ok(MetadataResponse::default()
            .with_brokers(vec![broker])
            .with_cluster_id(Some(text(&self.config.cluster_id)))
            .with_controller_id(BrokerId(BROKER_ID))
            .with_topics(topics))
    }

    fn metadata_of(&self, wanted: MetadataRequestTopic, may_create: bool) -> Result<MetadataResponseTopic, Stopped> {
        let answer = MetadataResponseTopic::default().with_topic_id(wanted.topic_id);
        let Some(name) = wanted.name else {
            let described = self.read(|core| {
                let name = core.topic_name(TopicId(wanted.topic_id.as_u128()))?;
                core.topic(name).ok().map(|topic| describe_topic(name, topic))
            });
            return Ok(described.unwrap_or(answer.with_error_code(codes::UNKNOWN_TOPIC_ID)));
        };
        let is_known = self.read(|core| core.topic(&name).is_ok());
        if !is_known && may_create && self.config.auto_create_partitions > 0 {
            let created = self.change(|core, _| core.create_topic(&name, self.config.auto_create_partitions, BTreeMap::new()))?;
            if let Err(error) = created {
                return Ok(answer.with_name(Some(name)).with_error_code(codes::code(error)));
            }
        }
        let described = self.read(|core| core.topic(&name).map(|topic| describe_topic(&name, topic)));
        Ok(described.unwrap_or_else(|error| answer.with_error_code(codes::code(error)).with_name(Some(name))))
    }

    pub fn describe_cluster(&self) -> DescribeClusterResponse {
        let broker = DescribeClusterBroker::default()
            .with_broker_id(BrokerId(BROKER_ID))
            .with_host(text(&self.config.advertised_host))
            .with_port(i32::from(self.config.advertised_port));
        DescribeClusterResponse::default()
            .with_cluster_id(text(&self.config.cluster_id))
            .with_controller_id(BrokerId(BROKER_ID))
            .with_brokers(vec![broker])
    }

    /// Every group and transactional id is coordinated here.
    pub fn find_coordinator(&self, request: FindCoordinatorRequest) -> FindCoordinatorResponse {
        let (host, port) = (text(&self.config.advertised_host), i32::from(self.config.advertised_port));
        let coordinator =
            |key| Coordinator::default().with_key(key).with_node_id(BrokerId(BROKER_ID)).with_host(host.clone()).with_port(port);
        let coordinators: Vec<_> = request.coordinator_keys.into_iter().map(coordinator).collect();
        if coordinators.is_empty() {
            return FindCoordinatorResponse::default().with_node_id(BrokerId(BROKER_ID)).with_host(host.clone()).with_port(port);
        }
        FindCoordinatorResponse::default().with_coordinators(coordinators)
    }

    pub fn create_topics(&self, request: CreateTopicsRequest) -> Result<CreateTopicsResponse, Stopped> {
        let topics = request.topics.into_iter().map(|topic| self.create_one_topic(topic, request.validate_only));
        Ok(CreateTopicsResponse::default().with_topics(topics.collect::<Result<_, _>>()?))
    }

    fn create_one_topic(&self, topic: CreatableTopic, validate_only: bool) -> Result<CreatableTopicResult, Stopped> {
        let answer = CreatableTopicResult::default().with_name(topic.name.clone());
        let partition_count = match (topic.assignments.len(), topic.num_partitions) {
            (0, -1) => self.config.default_partitions,
            (0, count) => count,
            (assigned, _) => assigned as i32,
        };
        let config = topic.configs.into_iter().filter_map(|entry| Some((entry.name.to_string(), entry.value?.to_string()))).collect();
        let created: Result<TopicId, LogError> = if validate_only {
            self.read(|core| core.check_new_topic(&topic.name, partition_count, &config).map(|()| TopicId(0)))
        } else {
            self.change(|core, _| core.create_topic(&topic.name, partition_count, config))?
        };
        Ok(match created {
            Ok(id) => answer.with_topic_id(Uuid::from_u128(id.0)).with_num_partitions(partition_count).with_replication_factor(1),
            Err(error) => answer.with_error_code(codes::code(error)).with_error_message(text_of(error)),
        })
    }

    pub fn delete_topics(&self, request: DeleteTopicsRequest, version: i16) -> Result<DeleteTopicsResponse, Stopped> {
        let targets = if version >= DELETE_BY_TOPIC_ID {
            request.topics
        } else {
            request.topic_names.into_iter().map(|name| DeleteTopicState::default().with_name(Some(name))).collect()
        };
        let delete = |target: DeleteTopicState| {
            let by_id = || self.read(|core| core.topic_name(TopicId(target.topic_id.as_u128())).map(topic_name));
            let answer = DeletableTopicResult::default().with_topic_id(target.topic_id);
            let Some(name) = target.name.clone().or_else(by_id) else {
                return Ok(answer.with_error_code(codes::UNKNOWN_TOPIC_ID));
            };
            let deleted = self.change(|core, _| core.delete_topic(&name))?;
            Ok(answer.with_name(Some(name)).with_error_code(codes::code_of(&deleted)))
        };
        let responses = targets.into_iter().map(delete).collect::<Result<_, _>>()?;
        Ok(DeleteTopicsResponse::default().with_responses(responses))
    }

    pub fn create_partitions(&self, request: CreatePartitionsRequest) -> Result<CreatePartitionsResponse, Stopped> {
        let add = |topic: kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic| {
            let added = if request.validate_only {
                self.read(|core| core.topic(&topic.name).map(drop))
            } else {
                self.change(|core, _| core.add_partitions(&topic.name, topic.count))?
            };
            Ok(CreatePartitionsTopicResult::default().with_name(topic.name.clone()).with_error_code(codes::code_of(&added)))
        };
        let results = request.topics.into_iter().map(add).collect::<Result<_, _>>()?;
        Ok(CreatePartitionsResponse::default().with_results(results))
    }

    pub fn delete_records(&self, request: DeleteRecordsRequest) -> Result<DeleteRecordsResponse, Stopped> {
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in request.topics {
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for partition in topic.partitions {
                let index = partition.partition_index;
                let trimmed = self.change(|core, _| core.trim(&topic.name, index, partition.offset))?;
                let answer = DeleteRecordsPartitionResult::default().with_partition_index(index);
                partitions.push(answer.with_low_watermark(trimmed.unwrap_or(-1)).with_error_code(codes::code_of(&trimmed)));
            }
            topics.push(DeleteRecordsTopicResult::default().with_name(topic.name).with_partitions(partitions));
        }
        Ok(DeleteRecordsResponse::default().with_topics(topics))
    }
}

fn describe_topic(name: &str, topic: &Topic) -> MetadataResponseTopic {
    let partition = |index| {
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(BrokerId(BROKER_ID))
            .with_leader_epoch(0)
            .with_replica_nodes(vec![BrokerId(BROKER_ID)])
            .with_isr_nodes(vec![BrokerId(BROKER_ID)])
    };
    MetadataResponseTopic::default()
        .with_name(Some(topic_name(name)))
        .with_topic_id(Uuid::from_u128(topic.id.0))
        .with_partitions((0..topic.partition_count()).map(partition).collect())
}

/// A topic's configuration by a changed copy of what was set on it.
pub(super) fn changed_config(
    core: &mut LogCore,
    topic: &TopicName,
    change: impl FnOnce(&mut BTreeMap<String, String>),
) -> Result<(), LogError> {
    let mut overrides = core.topic(topic)?.config.overrides.clone();
    change(&mut overrides);
    core.configure_topic(topic, overrides)
}

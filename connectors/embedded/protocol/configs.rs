//! Describing and changing configurations.

use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse as AlterResponse;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as IncrementalResponse;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse, TopicName,
};

use super::admin::changed_config;
use super::{BROKER_ID, Front, Stopped, codes, text, text_of};
use crate::log_core::LogError;

const RESOURCE_TOPIC: i8 = 2;
const RESOURCE_BROKER: i8 = 4;
const SOURCE_TOPIC: i8 = 1;
const SOURCE_STATIC_BROKER: i8 = 4;
const SOURCE_DEFAULT: i8 = 5;
const OPERATION_SET: i8 = 0;
const OPERATION_DELETE: i8 = 1;

impl Front {
    pub fn describe_configs(&self, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
        let results = request.resources.into_iter().map(|resource| self.describe_resource(&resource)).collect();
        DescribeConfigsResponse::default().with_results(results)
    }

    fn describe_resource(&self, resource: &DescribeConfigsResource) -> DescribeConfigsResult {
        let answer =
            DescribeConfigsResult::default().with_resource_type(resource.resource_type).with_resource_name(resource.resource_name.clone());
        let is_wanted = |name: &str| match &resource.configuration_keys {
            Some(keys) if !keys.is_empty() => keys.iter().any(|key| &**key == name),
            _ => true,
        };
        let entry = |name: &str, value: &str, source| {
            DescribeConfigsResourceResult::default().with_name(text(name)).with_value(Some(text(value))).with_config_source(source)
        };
        match resource.resource_type {
            RESOURCE_TOPIC => self.read(|core| match core.topic(&resource.resource_name) {
                Err(error) => answer.with_error_code(codes::code(error)).with_error_message(text_of(error)),
                Ok(topic) => {
                    let wanted = topic.config.describe().filter(|(name, _, _)| is_wanted(name));
                    let source = |is_set| if is_set { SOURCE_TOPIC } else { SOURCE_DEFAULT };
                    answer.with_configs(wanted.map(|(name, value, is_set)| entry(name, value, source(is_set))).collect())
                }
            }),
            RESOURCE_BROKER => {
                let limits = self.read(|core| core.limits().clone());
                let known = [
                    ("auto.create.topics.enable", (self.config.auto_create_partitions > 0).to_string()),
                    ("broker.id", BROKER_ID.to_string()),
                    ("num.partitions", self.config.default_partitions.to_string()),
                    ("producer.id.expiration.ms", limits.producer_id_expiration_ms.to_string()),
                    ("transaction.max.timeout.ms", limits.transaction_timeout_ms_max.to_string()),
                    ("transactional.id.expiration.ms", limits.transactional_id_expiration_ms.to_string()),
                ];
                let wanted = known.iter().filter(|(name, _)| is_wanted(name));
                let described = wanted.map(|(name, value)| entry(name, value, SOURCE_STATIC_BROKER).with_read_only(true));
                answer.with_configs(described.collect())
            }
            _ => answer.with_error_code(codes::INVALID_REQUEST),
        }
    }

    pub fn alter_configs(&self, request: AlterConfigsRequest) -> Result<AlterConfigsResponse, Stopped> {
        let mut responses = Vec::with_capacity(request.resources.len());
        for resource in request.resources {
            let entries = resource.configs.into_iter().filter_map(|entry| Some((entry.name.to_string(), entry.value?.to_string())));
            let config = entries.collect();
            let topic = TopicName(resource.resource_name.clone());
            let altered = self.alter(resource.resource_type, &topic, request.validate_only, |overrides| *overrides = config)?;
            responses.push(
                AlterResponse::default()
                    .with_error_code(codes::code_of(&altered))
                    .with_error_message(altered.err().and_then(text_of))
                    .with_resource_type(resource.resource_type)
                    .with_resource_name(resource.resource_name),
            );
        }
        Ok(AlterConfigsResponse::default().with_responses(responses))
    }

    pub fn incremental_alter_configs(&self, request: IncrementalAlterConfigsRequest) -> Result<IncrementalAlterConfigsResponse, Stopped> {
        let mut responses = Vec::with_capacity(request.resources.len());
        for resource in request.resources {
            let is_list_change = resource.configs.iter().any(|entry| !matches!(entry.config_operation, OPERATION_SET | OPERATION_DELETE));
            let topic = TopicName(resource.resource_name.clone());
            let altered = if is_list_change {
                Err(LogError::InvalidConfig) // appending to lists: no configuration here needs it
            } else {
                self.alter(resource.resource_type, &topic, request.validate_only, |overrides| {
                    for entry in resource.configs {
                        match (entry.config_operation, entry.value) {
                            (OPERATION_SET, Some(value)) => overrides.insert(entry.name.to_string(), value.to_string()),
                            _ => overrides.remove(&*entry.name),
                        };
                    }
                })?
            };
            responses.push(
                IncrementalResponse::default()
                    .with_error_code(codes::code_of(&altered))
                    .with_error_message(altered.err().and_then(text_of))
                    .with_resource_type(resource.resource_type)
                    .with_resource_name(resource.resource_name),
            );
        }
        Ok(IncrementalAlterConfigsResponse::default().with_responses(responses))
    }

    /// Only topics can be changed; the broker's own settings are given at its start.
    fn alter(
        &self,
        resource_type: i8,
        topic: &TopicName,
        validate_only: bool,
        change: impl FnOnce(&mut std::collections::BTreeMap<String, String>),
    ) -> Result<Result<(), LogError>, Stopped> {
        if resource_type != RESOURCE_TOPIC {
            return Ok(Err(LogError::InvalidConfig));
        }
        if validate_only {
            return Ok(self.read(|core| core.topic(topic).map(drop)));
        }
        self.change(|core, _| changed_config(core, topic, change))
    }
}

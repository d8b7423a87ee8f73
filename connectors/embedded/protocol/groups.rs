//! Consumer groups and their offsets.

use std::collections::BTreeMap;

use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::offset_fetch_response::{OffsetFetchResponsePartition, OffsetFetchResponseTopic};
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse, GroupId, HeartbeatRequest, HeartbeatResponse,
    JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, ListGroupsResponse, OffsetCommitRequest,
    OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, SyncGroupRequest, SyncGroupResponse,
    delete_groups_response::DeletableGroupResult,
};

use super::{Front, Stopped, codes, text, topic_name};
use crate::log_core::event::{CommittedOffset, TopicPartition};
use crate::log_core::groups::{Caller, GroupPhase};
use crate::log_core::{GroupReply, JoinRequest};

/// KIP-394 from this version on.
const JOIN_REQUIRES_MEMBER_ID: i16 = 4;
/// Several members leave in one request from this version on.
const LEAVE_MANY: i16 = 3;
/// Kafka's "not asked for".
const AUTHORIZED_OPERATIONS_OMITTED: i32 = i32::MIN;
const CLIENT_HOST: &str = "/127.0.0.1";

impl Front {
    pub async fn join_group(&self, request: JoinGroupRequest, version: i16, client_id: &str) -> Result<JoinGroupResponse, Stopped> {
        let session_timeout_ms = i64::from(request.session_timeout_ms);
        let join = JoinRequest {
            group: request.group_id.to_string(),
            client_id: client_id.to_owned(),
            member_id: request.member_id.to_string(),
            instance_id: request.group_instance_id.map(|id| id.to_string()),
            protocol_type: request.protocol_type.to_string(),
            protocols: request.protocols.into_iter().map(|protocol| (protocol.name.to_string(), protocol.metadata)).collect(),
            session_timeout_ms,
            rebalance_timeout_ms: if request.rebalance_timeout_ms > 0 {
                i64::from(request.rebalance_timeout_ms)
            } else {
                session_timeout_ms
            },
            requires_known_member_id: version >= JOIN_REQUIRES_MEMBER_ID,
        };
        let reply = self.wait_for_group(|core, now_ms, token| core.groups().join(now_ms, token, join)).await?;
        let answer = JoinGroupResponse::default();
        let GroupReply::Join(joined) = reply else { return Err(Stopped) };
        Ok(match joined {
            Err((error, member_id)) => answer
                .with_error_code(codes::code(error))
                .with_generation_id(-1)
                .with_protocol_name(Some(text("")))
                .with_member_id(text(&member_id)),
            Ok(joined) => {
                let member = |(id, instance_id, metadata): (String, Option<String>, _)| {
                    JoinGroupResponseMember::default()
                        .with_member_id(text(&id))
                        .with_group_instance_id(instance_id.as_deref().map(text))
                        .with_metadata(metadata)
                };
                answer
                    .with_generation_id(joined.generation)
                    .with_protocol_type(Some(text(&joined.protocol_type)))
                    .with_protocol_name(Some(text(&joined.protocol)))
                    .with_leader(text(&joined.leader_id))
                    .with_member_id(text(&joined.member_id))
                    .with_members(joined.members.into_iter().map(member).collect())
            }
        })
    }

    pub async fn sync_group(&self, request: SyncGroupRequest) -> Result<SyncGroupResponse, Stopped> {
        let caller = caller(&request.member_id, &request.group_instance_id, request.generation_id);
        let assignments = request.assignments.into_iter().map(|given| (given.member_id.to_string(), given.assignment)).collect();
        let group = request.group_id.as_str();
        let reply = self.wait_for_group(|core, now_ms, token| core.groups().sync(now_ms, token, group, &caller, assignments)).await?;
        let GroupReply::Sync(synced) = reply else { return Err(Stopped) };
        let view = self.read(|core| core.group_view(group));
        let (protocol_type, protocol) = view.map(|view| (view.protocol_type, view.protocol)).unwrap_or_default();
        Ok(SyncGroupResponse::default()
            .with_error_code(codes::code_of(&synced))
            .with_assignment(synced.unwrap_or_default())
            .with_protocol_type(Some(text(&protocol_type)))
            .with_protocol_name(Some(text(&protocol))))
    }

    pub fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Stopped> {
        let caller = caller(&request.member_id, &request.group_instance_id, request.generation_id);
        let result = self.change(|core, now_ms| core.groups().heartbeat(now_ms, &request.group_id, &caller))?;
        Ok(HeartbeatResponse::default().with_error_code(codes::code_of(&result)))
    }

    pub fn leave_group(&self, request: LeaveGroupRequest, version: i16) -> Result<LeaveGroupResponse, Stopped> {
        let group = request.group_id.as_str();
        if version < LEAVE_MANY {
            let left = self.change(|core, now_ms| core.groups().leave(now_ms, group, &request.member_id, None))?;
            return Ok(LeaveGroupResponse::default().with_error_code(codes::code_of(&left)));
        }
        let mut members = Vec::with_capacity(request.members.len());
        for member in request.members {
            let instance_id = member.group_instance_id.as_deref();
            let left = self.change(|core, now_ms| core.groups().leave(now_ms, group, &member.member_id, instance_id))?;
            let answer = MemberResponse::default().with_error_code(codes::code_of(&left));
            members.push(answer.with_member_id(member.member_id).with_group_instance_id(member.group_instance_id));
        }
        Ok(LeaveGroupResponse::default().with_members(members))
    }

    pub fn describe_groups(&self, request: DescribeGroupsRequest) -> DescribeGroupsResponse {
        let groups = request.groups.into_iter().map(|id| self.describe_group(id)).collect();
        DescribeGroupsResponse::default().with_groups(groups)
    }

    fn describe_group(&self, id: GroupId) -> DescribedGroup {
        let answer = DescribedGroup::default().with_group_id(id.clone()).with_authorized_operations(AUTHORIZED_OPERATIONS_OMITTED);
        let (view, has_offsets) = self.read(|core| (core.group_view(&id), core.partitions_with_offsets(&id).next().is_some()));
        let Some(view) = view else {
            return answer.with_group_state(text(if has_offsets { GroupPhase::Empty.name() } else { "Dead" }));
        };
        let member = |member: crate::log_core::groups::MemberView| {
            DescribedGroupMember::default()
                .with_member_id(text(&member.member_id))
                .with_group_instance_id(member.instance_id.as_deref().map(text))
                .with_client_id(text(&member.client_id))
                .with_client_host(text(CLIENT_HOST))
                .with_member_metadata(member.metadata)
                .with_member_assignment(member.assignment)
        };
        answer
            .with_group_state(text(view.phase.name()))
            .with_protocol_type(text(&view.protocol_type))
            .with_protocol_data(text(&view.protocol))
            .with_members(view.members.into_iter().map(member).collect())
    }

    pub fn list_groups(&self) -> ListGroupsResponse {
        let listed = |id: &str, protocol_type: &str, phase: GroupPhase| {
            ListedGroup::default()
                .with_group_id(GroupId(text(id)))
                .with_protocol_type(text(protocol_type))
                .with_group_state(text(phase.name()))
        };
        let groups = self.read(|core| {
            let without_members = core.groups_with_offsets().map(|id| (id, listed(id, "", GroupPhase::Empty)));
            let mut groups: BTreeMap<_, _> = without_members.collect();
            groups.extend(core.group_views().map(|(id, view)| (id, listed(id, &view.protocol_type, view.phase))));
            groups.into_values().collect()
        });
        ListGroupsResponse::default().with_groups(groups)
    }

    pub fn delete_groups(&self, request: DeleteGroupsRequest) -> Result<DeleteGroupsResponse, Stopped> {
        let mut results = Vec::with_capacity(request.groups_names.len());
        for group in request.groups_names {
            let deleted = self.change(|core, _| core.delete_group(&group))?;
            results.push(DeletableGroupResult::default().with_group_id(group).with_error_code(codes::code_of(&deleted)));
        }
        Ok(DeleteGroupsResponse::default().with_results(results))
    }

    pub fn offset_commit(&self, request: OffsetCommitRequest) -> Result<OffsetCommitResponse, Stopped> {
        let caller = caller(&request.member_id, &request.group_instance_id, request.generation_id_or_member_epoch);
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
        let results = self.change(|core, now_ms| core.commit_offsets(now_ms, &request.group_id, &caller, offsets))?;
        let mut results = results.iter();
        let topics = request.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().zip(results.by_ref());
            let partition = |(partition, result): (&kafka_protocol::messages::offset_commit_request::OffsetCommitRequestPartition, _)| {
                OffsetCommitResponsePartition::default()
                    .with_partition_index(partition.partition_index)
                    .with_error_code(codes::code_of(result))
            };
            OffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions.map(partition).collect())
        });
        Ok(OffsetCommitResponse::default().with_topics(topics.collect()))
    }

    pub fn offset_fetch(&self, request: OffsetFetchRequest) -> OffsetFetchResponse {
        let group = request.group_id.as_str();
        let wanted: BTreeMap<String, Vec<i32>> = match request.topics {
            Some(topics) => topics.into_iter().map(|topic| (topic.name.to_string(), topic.partition_indexes)).collect(),
            None => self.read(|core| {
                let mut all = BTreeMap::<String, Vec<i32>>::new();
                for (topic, partition) in core.partitions_with_offsets(group) {
                    all.entry(topic.clone()).or_default().push(*partition);
                }
                all
            }),
        };
        let topics = wanted.into_iter().map(|(topic, partitions)| {
            let partitions =
                partitions.into_iter().map(|partition| self.fetch_offset(group, (topic.clone(), partition), request.require_stable));
            OffsetFetchResponseTopic::default().with_name(topic_name(&topic)).with_partitions(partitions.collect())
        });
        OffsetFetchResponse::default().with_topics(topics.collect())
    }

    fn fetch_offset(&self, group: &str, partition: TopicPartition, require_stable: bool) -> OffsetFetchResponsePartition {
        let answer = OffsetFetchResponsePartition::default()
            .with_partition_index(partition.1)
            .with_committed_offset(-1)
            .with_committed_leader_epoch(-1)
            .with_metadata(Some(text("")));
        self.read(|core| match core.committed_offset(group, &partition, require_stable) {
            Ok(None) => answer,
            Ok(Some(committed)) => answer
                .with_committed_offset(committed.offset)
                .with_committed_leader_epoch(committed.leader_epoch)
                .with_metadata(Some(text(&committed.metadata))),
            Err(error) => answer.with_error_code(codes::code(error)),
        })
    }
}

pub(super) fn caller<'a>(member_id: &'a str, instance_id: &'a Option<kafka_protocol::protocol::StrBytes>, generation: i32) -> Caller<'a> {
    Caller { member_id, instance_id: instance_id.as_deref(), generation }
}

pub(super) fn committed(topic: &str, partition: i32, offset: i64, leader_epoch: i32, metadata: &str) -> (TopicPartition, CommittedOffset) {
    ((topic.to_owned(), partition), CommittedOffset { offset, leader_epoch, metadata: metadata.to_owned() })
}

//! From the bytes of a request to the bytes of its answer.

use anyhow::{Context, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, AlterConfigsRequest, ApiKey, CreatePartitionsRequest, CreateTopicsRequest,
    DeleteGroupsRequest, DeleteRecordsRequest, DeleteTopicsRequest, DescribeConfigsRequest, DescribeGroupsRequest, EndTxnRequest,
    FetchRequest, FindCoordinatorRequest, HeartbeatRequest, IncrementalAlterConfigsRequest, InitProducerIdRequest, JoinGroupRequest,
    LeaveGroupRequest, ListOffsetsRequest, MetadataRequest, OffsetCommitRequest, OffsetFetchRequest, ProduceRequest, RequestHeader,
    ResponseHeader, SyncGroupRequest, TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable};

use super::{Front, codes, versions};

/// Writes the answer with its length before; false when none is wanted. An error closes the connection.
pub async fn answer(front: &Front, mut request: Bytes, out: &mut BytesMut) -> anyhow::Result<bool> {
    let mut head = &request[..8];
    let (key, version, correlation_id) = (head.get_i16(), head.get_i16(), head.get_i32());
    out.put_i32(0);
    let is_wanted = if versions::is_served(key, version) {
        let api_key = ApiKey::try_from(key).map_err(|()| anyhow::anyhow!("request key {key}"))?;
        let header = RequestHeader::decode(&mut request, api_key.request_header_version(version))?;
        ResponseHeader::default().with_correlation_id(correlation_id).encode(out, api_key.response_header_version(version))?;
        let client_id = header.client_id.as_deref().unwrap_or_default();
        answer_body(front, api_key, version, client_id, request, out).await.with_context(|| format!("{api_key:?} v{version}"))?
    } else if key == versions::API_VERSIONS {
        // a newer client learns from the oldest form which versions it may use
        out.put_i32(correlation_id);
        versions::api_versions(codes::UNSUPPORTED_VERSION).encode(out, 0)?;
        true
    } else {
        bail!("request key {key} version {version} is not served");
    };
    let length = (out.len() - 4) as i32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    Ok(is_wanted)
}

async fn answer_body(
    front: &Front,
    key: ApiKey,
    version: i16,
    client_id: &str,
    mut body: Bytes,
    mut out: &mut BytesMut,
) -> anyhow::Result<bool> {
    let body = &mut body;
    match key {
        ApiKey::Produce => {
            let request = ProduceRequest::decode(body, version)?;
            let is_wanted = request.acks != 0;
            front.produce(request)?.encode(&mut out, version)?;
            return Ok(is_wanted);
        }
        ApiKey::Fetch => front.fetch(FetchRequest::decode(body, version)?, version).await.encode(&mut out, version)?,
        ApiKey::ListOffsets => front.list_offsets(ListOffsetsRequest::decode(body, version)?).encode(&mut out, version)?,
        ApiKey::Metadata => front.metadata(MetadataRequest::decode(body, version)?, version)?.encode(&mut out, version)?,
        ApiKey::OffsetCommit => front.offset_commit(OffsetCommitRequest::decode(body, version)?)?.encode(&mut out, version)?,
        ApiKey::OffsetFetch => front.offset_fetch(OffsetFetchRequest::decode(body, version)?).encode(&mut out, version)?,
        ApiKey::FindCoordinator => front.find_coordinator(FindCoordinatorRequest::decode(body, version)?).encode(&mut out, version)?,
        ApiKey::JoinGroup => {
            front.join_group(JoinGroupRequest::decode(body, version)?, version, client_id).await?.encode(&mut out, version)?
        }
        ApiKey::Heartbeat => front.heartbeat(HeartbeatRequest::decode(body, version)?)?.encode(&mut out, version)?,
        ApiKey::LeaveGroup => front.leave_group(LeaveGroupRequest::decode(body, version)?, version)?.encode(&mut out, version)?,
        ApiKey::SyncGroup => front.sync_group(SyncGroupRequest::decode(body, version)?).await?.encode(&mut out, version)?,
        ApiKey::DescribeGroups => front.describe_groups(DescribeGroupsRequest::decode(body, version)?).encode(&mut out, version)?,
        ApiKey::ListGroups => front.list_groups().encode(&mut out, version)?,
        ApiKey::ApiVersions => versions::api_versions(codes::NONE).encode(&mut out, version)?,
        ApiKey::CreateTopics => front.create_topics(CreateTopicsRequest::decode(body, version)?)?.encode(&mut out, version)?,
        ApiKey::DeleteTopics => front.delete_topics(DeleteTopicsRequest::decode(body, version)?, version)?.encode(&mut out, version)?,
        ApiKey::DeleteRecords => front.delete_records(DeleteRecordsRequest::decode(body, version)?)?.encode(&mut out, version)?,
        ApiKey::InitProducerId => {
            front.init_producer_id(InitProducerIdRequest::decode(body, version)?, version)?.encode(&mut out, version)?
        }
        ApiKey::AddPartitionsToTxn => {
            front.add_partitions_to_txn(AddPartitionsToTxnRequest::decode(body, version)?, version)?.encode(&mut out, version)?;
        }
        ApiKey::AddOffsetsToTxn => {
            front.add_offsets_to_txn(AddOffsetsToTxnRequest::decode(body, version)?, version)?.encode(&mut out, version)?
        }
        ApiKey::EndTxn => front.end_txn(EndTxnRequest::decode(body, version)?, version)?.encode(&mut out, version)?,
        ApiKey::TxnOffsetCommit => front.txn_offset_commit(TxnOffsetCommitRequest::decode(body, version)?)?.encode(&mut out, version)?,
        ApiKey::DescribeConfigs => front.describe_configs(DescribeConfigsRequest::decode(body, version)?).encode(&mut out, version)?,
        ApiKey::AlterConfigs => front.alter_configs(AlterConfigsRequest::decode(body, version)?)?.encode(&mut out, version)?,
        ApiKey::CreatePartitions => front.create_partitions(CreatePartitionsRequest::decode(body, version)?)?.encode(&mut out, version)?,
        ApiKey::DeleteGroups => front.delete_groups(DeleteGroupsRequest::decode(body, version)?)?.encode(&mut out, version)?,
        ApiKey::IncrementalAlterConfigs => {
            front.incremental_alter_configs(IncrementalAlterConfigsRequest::decode(body, version)?)?.encode(&mut out, version)?;
        }
        ApiKey::DescribeCluster => front.describe_cluster().encode(&mut out, version)?,
        other => bail!("{other:?} is not served"),
    }
    Ok(true)
}

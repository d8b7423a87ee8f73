//! Which requests are served, and in which versions.

use kafka_protocol::messages::ApiVersionsResponse;
use kafka_protocol::messages::api_versions_response::ApiVersion;

/// Request key, lowest and highest version. Produce stops at 10 and the transaction requests before KIP-890's second part,
/// which no client on librdkafka speaks.
const SERVED: &[(i16, i16, i16)] = &[
    (0, 3, 10), // Produce
    (1, 4, 16), // Fetch
    (2, 1, 7),  // ListOffsets
    (3, 0, 12), // Metadata
    (8, 2, 8),  // OffsetCommit
    (9, 1, 7),  // OffsetFetch
    (10, 0, 4), // FindCoordinator
    (11, 0, 7), // JoinGroup
    (12, 0, 4), // Heartbeat
    (13, 0, 4), // LeaveGroup
    (14, 0, 5), // SyncGroup
    (15, 0, 5), // DescribeGroups
    (16, 0, 4), // ListGroups
    (18, 0, 3), // ApiVersions
    (19, 2, 7), // CreateTopics
    (20, 1, 6), // DeleteTopics
    (21, 0, 2), // DeleteRecords
    (22, 0, 4), // InitProducerId
    (24, 0, 3), // AddPartitionsToTxn
    (25, 0, 3), // AddOffsetsToTxn
    (26, 0, 3), // EndTxn
    (28, 0, 3), // TxnOffsetCommit
    (32, 1, 4), // DescribeConfigs
    (33, 0, 2), // AlterConfigs
    (37, 0, 3), // CreatePartitions
    (42, 0, 2), // DeleteGroups
    (44, 0, 1), // IncrementalAlterConfigs
    (60, 0, 0), // DescribeCluster
];

pub const API_VERSIONS: i16 = 18;

pub fn is_served(key: i16, version: i16) -> bool {
    SERVED.iter().any(|(served, low, high)| *served == key && (*low..=*high).contains(&version))
}

pub fn api_versions(error_code: i16) -> ApiVersionsResponse {
    let version =
        |(key, low, high): &(i16, i16, i16)| ApiVersion::default().with_api_key(*key).with_min_version(*low).with_max_version(*high);
    ApiVersionsResponse::default().with_error_code(error_code).with_api_keys(SERVED.iter().map(version).collect())
}

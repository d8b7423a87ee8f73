//! What a job run needs to know besides its plan.

use std::sync::Arc;
use std::time::Duration;
use streamshield_core::ports::Connectors;
use streamshield_core::ports::log::Log;
use streamshield_core::ports::state::StateBackend;

/// What happens to a record that is no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRecordPolicy {
    /// The region stops with its offsets kept.
    Fail,
    /// Original bytes to `<job>-dead-letter`, in the epoch's transaction.
    DeadLetter,
    /// Counted and dropped.
    Skip,
}

/// What happens to a row whose windows are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateRowPolicy {
    /// Counted and dropped.
    Drop,
    /// As JSON to `<job>-late`, in the epoch's transaction.
    SideTopic,
}

/// Settings of one job.
#[derive(Clone, Debug)]
pub struct JobConfig {
    /// Prefix of all topics and transactional ids: `[a-z0-9][a-z0-9._-]*`.
    pub name: String,
    /// Engine threads.
    pub slots: usize,
    /// Partitions of exchanges.
    pub parallelism: u32,
    /// Upper bound between two seals of a region.
    pub commit_interval: Duration,
    /// Between two flushes of a region's state to disk.
    pub flush_interval: Duration,
    /// Budget of all state tables of this process (M-1).
    pub memory_budget_bytes: usize,
    pub on_bad_record: BadRecordPolicy,
    pub late_rows: LateRowPolicy,
    /// Replication of the topics that the job makes; None: the broker's default.
    pub replication_factor: Option<i32>,
    /// The log is the memory of this process (an embedded broker without a folder): what the local store covers is trimmed from the
    /// exchanges. Any other log is trimmed only behind remote checkpoints, so without those never (K-2).
    pub log_dies_with_process: bool,
}

/// What a job runs on.
#[derive(Clone)]
pub struct Environment {
    pub log: Arc<dyn Log>,
    pub connectors: Connectors,
    pub state: Arc<dyn StateBackend>,
}

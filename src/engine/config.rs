//! What a job run needs to know besides its plan.

use crate::clock::Clock;
use crate::flight::FlightRecorder;
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::cluster::Settings;
use streamshield_core::ports::Connectors;
use streamshield_core::ports::checkpoint::CheckpointStore;
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
    /// Engine threads of this worker.
    pub slots: usize,
    /// Stable across restarts, and this worker's alone: a second one of the same name replaces the first.
    pub worker: String,
    pub rack: Option<String>,
    /// Where this worker's HTTP endpoints listen, for people.
    pub http: Option<String>,
    /// Tier, followers, heartbeats: what all workers have to agree on.
    pub cluster: Settings,
    /// Between two checkpoints of a region; None: none are made.
    pub checkpoint_interval: Option<Duration>,
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

/// Runs a closure that may block for long, on a thread of the given name.
pub type Spawn = Arc<dyn Fn(&str, Box<dyn FnOnce() + Send>) + Send + Sync>;

/// What a job runs on.
#[derive(Clone)]
pub struct Environment {
    pub log: Arc<dyn Log>,
    pub connectors: Connectors,
    pub state: Arc<dyn StateBackend>,
    pub checkpoints: Option<Arc<dyn CheckpointStore>>,
    pub clock: Arc<dyn Clock>,
    /// Tells two workers apart that start at the same moment: random.
    pub nonce: u64,
    pub spawn: Spawn,
    /// Threads may be made: false in a simulation.
    pub parallel: bool,
    /// None: a death of this process is nobody's to explain.
    pub flight: Option<Arc<FlightRecorder>>,
}

/// [`Environment::spawn`] of a real process.
pub fn spawn_thread() -> Spawn {
    Arc::new(|name, run| {
        if let Err(error) = std::thread::Builder::new().name(name.to_string()).spawn(run) {
            tracing::error!(%error, name, "no thread for background work");
        }
    })
}

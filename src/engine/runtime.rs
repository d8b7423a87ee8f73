//! Starts, watches and stops a job in this process.

use crate::config::{Environment, JobConfig};
use crate::plan::JobPlan;
use serde::Serialize;
use std::time::Duration;
use streamshield_core::ports::log::TopicSpec;

/// Why a job could not start or had to stop. The text says what happened, the hint what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    pub message: String,
    pub hint: Option<String>,
}

/// How a job ended.
#[derive(Clone, Debug)]
pub enum JobOutcome {
    /// All sources were bounded and have ended.
    Finished,
    /// `stop` was called: sealed, committed, left.
    Stopped,
    /// Another process owns the job now.
    TakenOver(String),
    Failed(EngineError),
}

/// Live figures of a job; cheap to take.
#[derive(Clone, Debug, Default, Serialize)]
pub struct JobStatus {
    /// `starting`, `recovering`, `running`, `paused` (the log is away), `draining`, `ended`.
    pub state: String,
    pub regions: Vec<RegionStatus>,
    /// Source records taken and committed since this process started, bad ones included.
    pub records_in: u64,
    /// Rows committed to sinks since this process started.
    pub rows_out: u64,
    pub late_rows: u64,
    pub bad_records: u64,
    pub dead_letters: u64,
    pub epochs: u64,
    /// From the newest source timestamp of an epoch to the end of its commit, in ms: quantiles over about the last minute.
    pub latency_p50_ms: Option<f64>,
    pub latency_p99_ms: Option<f64>,
    /// Since when the log is away, milliseconds since 1970.
    pub paused_since_ms: Option<i64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct RegionStatus {
    /// `s1/0`
    pub region: String,
    pub stage: String,
    pub epoch: u64,
    /// Milliseconds since 1970; None before the first and after the last watermark.
    pub watermark_ms: Option<i64>,
    pub records_in: u64,
    pub rows_out: u64,
    pub state_bytes: u64,
    pub state_groups: u64,
    /// Set when the region was stopped: why.
    pub stopped: Option<String>,
    pub finished: bool,
}

/// The topics that a job needs besides its tables': control, changelogs, exchanges, dead letters, late rows, sink topics. For `topics create` and `check`.
pub fn required_topics(_plan: &JobPlan, _config: &JobConfig, _environment: &Environment) -> Result<Vec<TopicSpec>, EngineError> {
    todo!("written next")
}

/// A running job. Dropping it without `stop` kills the job as a crash would.
pub struct JobHandle {}

/// Creates missing topics, fences earlier runs, recovers, and starts the slots. Returns when recovery is under way; never waits for the end.
pub fn start(_plan: JobPlan, _config: JobConfig, _environment: Environment) -> Result<JobHandle, EngineError> {
    todo!("written next")
}

impl JobHandle {
    pub fn status(&self) -> JobStatus {
        todo!("written next")
    }
    /// Seals, commits and leaves; `wait` then returns `Stopped`.
    pub fn stop(&self) {
        todo!("written next")
    }
    /// Waits for the end of the job, or for the time-out (None).
    pub fn wait(&self, _timeout: Option<Duration>) -> Option<JobOutcome> {
        todo!("written next")
    }
}

//! The view of a whole job for people: its workers, its regions, who follows them, and how the last take-overs went.
//!
//! No worker is asked. Everybody who reads the control log can draw the same picture: what was decided comes from the fold, and figures come from the reports
//! that each worker appends once a second. So `streamshield status` needs no address of a worker, and any worker answers for all of them.
//!
//! ```text
//! worker ── WorkerReport (JSON text in a `report` record, once a second) ──► control log ──► Cluster ──┐
//!                                                                                                      ├─ assemble ─► ClusterStatus
//!                                                            members, owners, followers, take-overs ───┘
//! ```
//! Nothing here decides anything. Figures are as old as the report that carried them, and an owner and its follower report at different moments: a distance
//! between them is right to about a second.

mod assemble;
mod report;

pub use report::{FollowerReport, REPORT_BYTES_MAX, RegionReport, TakeoverReport, WorkerReport};

use crate::cluster::Tier;
use crate::ids::{Epoch, Offset};
use crate::ports::checkpoint::Durability;
use serde::{Deserialize, Serialize};

/// All there is to show of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    pub job: String,
    /// None before the first worker has joined.
    pub tier: Option<Tier>,
    /// Followers that each region should have.
    pub followers_wanted: u32,
    /// Feature level that the job runs at.
    pub level: u32,
    /// Of the last record that was taken into account.
    pub offset: Option<Offset>,
    pub log_clock_ms: u64,
    /// Every region is with its owner, nothing moves, and no move is wanted or put off.
    #[serde(default)]
    pub at_rest: bool,
    /// Regions are given away in this time, or when all workers that are expected are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_in_ms: Option<u64>,
    /// Loads are evened out in this time: it was put off because something was lost or has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balances_in_ms: Option<u64>,
    pub totals: Totals,
    /// Live ones, by name.
    pub workers: Vec<WorkerStatus>,
    pub regions: Vec<RegionView>,
    /// The newest first.
    pub takeovers: Vec<Takeover>,
    /// Records of the control log that made no sense.
    pub malformed_records: u64,
}

/// Sums over the live workers, each since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub records_in: u64,
    pub rows_out: u64,
    pub late_rows: u64,
    pub bad_records: u64,
    pub dead_letters: u64,
    pub state_bytes: u64,
    /// Over all regions that know it.
    pub lag_records: u64,
    /// The least of the regions that have one and are not finished.
    pub watermark_ms: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub worker: String,
    pub incarnation: u64,
    pub slots: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    pub draining: bool,
    /// By the log clock.
    pub heard_ms_ago: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    pub regions_owned: u32,
    pub regions_followed: u32,
    /// `starting`, `recovering`, `running`, `paused`, `draining`; None until the first report.
    pub state: Option<String>,
    pub records_in: u64,
    pub rows_out: u64,
    pub latency_p50_ms: Option<u64>,
    pub latency_p99_ms: Option<u64>,
    /// Of one processor, since the report before.
    pub cpu_percent: Option<u32>,
    pub resident_bytes: Option<u64>,
}

/// What a region is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionState {
    /// It has an owner that may commit.
    Active,
    /// It has an owner, which waits until earlier owners are fenced.
    Fencing,
    /// It is active and on its way to another worker.
    Moving { to: String },
    /// Nobody owns it: there is no worker.
    Unowned,
    /// It failed too often, or too many processes died of it; it rests until the next worker joins that does not come from such a death.
    Quarantined { reason: String },
    /// Its inputs have ended, and all is committed.
    Finished,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegionView {
    /// `s1/0`
    pub region: String,
    pub stage: String,
    pub stateful: bool,
    pub owner: Option<String>,
    pub state: RegionState,
    /// The last committed one.
    pub epoch: Option<u64>,
    /// What its input holds beyond its position.
    pub lag_records: Option<u64>,
    /// Age of the oldest record that it has not taken.
    pub lag_ms: Option<u64>,
    pub watermark_ms: Option<i64>,
    pub state_bytes: u64,
    pub followers: Vec<FollowerView>,
    pub checkpoint: Option<CheckpointView>,
    /// Why it does not go on, although it is owned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// How often it has failed, ever.
    pub failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FollowerRole {
    /// Runs the steps (Tier 1).
    Replica,
    /// Applies deltas (Tier 2).
    Standby,
    /// Takes the region over without haste: the target of a move.
    Successor,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowerView {
    pub worker: String,
    pub role: FollowerRole,
    pub epoch: Option<u64>,
    pub epochs_behind: Option<u64>,
    /// Has caught up at least once, so that it may take over.
    pub ready: bool,
    /// The epoch at which its digest differed; it is being rebuilt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diverged: Option<u64>,
}

/// The newest checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointView {
    pub epoch: Epoch,
    pub durability: Durability,
    pub age_ms: Option<u64>,
}

/// Why a region changed hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TakeoverCause {
    /// The owner was not heard any more.
    Expired,
    /// The owner said good-bye.
    Left,
    /// The owner's worker has started anew.
    Replaced,
    /// Handed over, to even the load or to drain a worker.
    Moved,
    /// The region failed there.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeover {
    pub region: String,
    pub from: String,
    pub to: String,
    pub cause: TakeoverCause,
    /// Of the record that decided it.
    pub offset: Offset,
    /// Log clock of that record.
    pub at_ms: u64,
    pub phases_ms: PhasesMs,
}

/// Where the time of a take-over went. What has not come yet, or is not known, is None.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhasesMs {
    /// From the last sign of life to the decision.
    pub detect: Option<u64>,
    /// Until all earlier owners were fenced.
    pub fence: Option<u64>,
    /// Until the state stood at the end of the changelog.
    pub catch_up: Option<u64>,
    /// Until the ownership was confirmed.
    pub confirm: Option<u64>,
    /// Until the first commit.
    pub first_commit: Option<u64>,
}

impl PhasesMs {
    /// Names as in metrics and tables, in order.
    pub fn named(&self) -> [(&'static str, Option<u64>); 5] {
        [
            ("detect", self.detect),
            ("fence", self.fence),
            ("catch_up", self.catch_up),
            ("confirm", self.confirm),
            ("first_commit", self.first_commit),
        ]
    }

    /// The whole gap, once the first commit is known.
    pub fn total(&self) -> Option<u64> {
        self.first_commit?;
        Some(self.named().iter().filter_map(|(_, ms)| *ms).sum())
    }
}

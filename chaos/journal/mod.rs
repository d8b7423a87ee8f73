//! What happened in a run: everything a report needs, and nothing that must be asked again.
//!
//! ```text
//! run ──Entry──► Recorder ──► journal.jsonl, one line each, at once         (what is left when the run itself dies)
//!                   │
//!                   └─ apply ─► Journal ── judge ──► journal.json ──► reports
//! ```
//! Moments are milliseconds since the run began, by the monotonic clock. The same entries give the same journal, so a report can be made of either file.
//!
//! **On failure**: a journal without an end is a harness error, whatever it holds.

mod phases;
mod record;

pub use phases::{Span, active, aftermath, spans};
pub(crate) use phases::{has_acted, is_excused, is_explained, settle_ms};
pub use record::{Entry, Recorder};

use crate::plan::{Invariant, Mode, Phase, Plan};
use crate::verdict::{FaultSummary, InvariantResult, ThresholdResult, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use streamshield_workload::Stretch;

/// Version of this format.
pub const FORMAT: u32 = 1;
/// Anomalies of one invariant that are written out; the rest is counted.
pub const ANOMALIES_MAX: usize = 100;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Journal {
    pub format: u32,
    /// What the run says: the first thing that a reader looks for.
    pub verdict: Verdict,
    /// As the user named it.
    pub plan_name: String,
    pub title: String,
    pub seed: u64,
    /// Does the same again.
    pub replay: String,
    pub version: Versions,
    /// RFC 3339.
    pub started_at: String,
    pub duration_ms: u64,
    /// Processes that faults have killed.
    pub kills: Kills,
    pub records: Records,
    pub faults: Vec<FaultSummary>,
    pub invariants: Vec<InvariantResult>,
    pub thresholds: Vec<ThresholdResult>,
    pub steady_state: Vec<Reading>,
    pub latency: BTreeMap<Phase, Latency>,
    pub throughput: BTreeMap<Phase, Throughput>,
    pub failovers: Vec<Failover>,
    /// Of the job alone: what it runs on had been started before.
    #[serde(default)]
    pub start_ms: Option<u64>,
    pub catch_up_ms: Option<u64>,
    pub checkpoints: Checkpoints,
    pub host: HostNoise,
    pub cost: Cost,
    pub stages: Vec<StageSpan>,
    pub injections: Vec<Injection>,
    pub processes: Vec<ProcessEvent>,
    pub owner_changes: Vec<OwnerChange>,
    pub timeline: Vec<Sample>,
    pub notes: Vec<Note>,
    /// What ended the run early, or left a part of it undone.
    pub broken_off: Option<BrokenOff>,
    /// With a user's job: its tier and its thresholds are the job's.
    pub plan: Plan,
    /// What was found, before it was sorted into invariants.
    pub findings: Vec<Finding>,
    /// Whether the run came to its end.
    pub ended: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    pub streamshield: String,
    /// What was tested, if it is not the program that ran the plan.
    pub binary: String,
    pub os: String,
    pub cpus: u32,
    pub memory_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kills {
    pub workers: u64,
    pub brokers: u64,
}

impl Kills {
    pub fn all(&self) -> u64 {
        self.workers + self.brokers
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// By the schedule.
    pub due: u64,
    pub sent: u64,
    /// Whose results were checked.
    pub verified: u64,
    /// Sent while a fault was active, or its aftermath.
    pub during_fault: u64,
    /// Faulty ones besides, sent on purpose.
    pub faulty: u64,
    /// What was sent at each rate, in order. Older journals do not say.
    #[serde(default)]
    pub stretches: Vec<Stretch>,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStage {
    Starting,
    SteadyState,
    Method,
    Healing,
    CatchingUp,
    /// All state is deleted and built anew, under load.
    Rebuilding,
    Draining,
    Verifying,
    Done,
}

impl RunStage {
    pub fn name(self) -> &'static str {
        match self {
            RunStage::Starting => "starting",
            RunStage::SteadyState => "steady state",
            RunStage::Method => "method",
            RunStage::Healing => "healing",
            RunStage::CatchingUp => "catching up",
            RunStage::Rebuilding => "rebuilding",
            RunStage::Draining => "draining",
            RunStage::Verifying => "verifying",
            RunStage::Done => "done",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageSpan {
    pub stage: RunStage,
    pub from_ms: u64,
    /// None: the run broke off in it.
    pub to_ms: Option<u64>,
}

/// A look at one probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    pub at_ms: u64,
    pub mode: Mode,
    pub name: String,
    /// None: nobody answered.
    pub value: Option<f64>,
    pub met: bool,
}

/// One fault, from its injection to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Injection {
    pub id: u32,
    /// Of the method, from 0.
    pub step: usize,
    pub fault: String,
    pub family: String,
    /// As the plan aims it.
    pub target: String,
    pub parameters: BTreeMap<String, String>,
    pub from_ms: u64,
    /// None: not undone.
    pub to_ms: Option<u64>,
    pub outcome: InjectionOutcome,
    pub hit: Vec<String>,
    pub evidence: String,
    /// How often it fired.
    pub count: u64,
    /// When the last try ended that found nothing to aim at, before the one that counts: it may have ended somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_until_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InjectionOutcome {
    /// Under way; in the end, of a run that died meanwhile.
    Begun,
    Injected,
    /// The host can't do it.
    NotPossible(String),
    /// There was nothing to aim at.
    NoTarget(String),
    Failed(String),
}

/// A process was started or ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEvent {
    pub at_ms: u64,
    /// `w1`, `broker 2`
    pub process: String,
    pub what: ProcessChange,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessChange {
    Started,
    /// By SIGKILL or an abort, while a fault was at work that does so.
    Killed(String),
    /// In another way that a fault explains: SIGTERM, a full disk, …
    Ended(String),
    /// Nothing explains it.
    Died(String),
}

impl ProcessChange {
    pub fn text(&self) -> String {
        match self {
            ProcessChange::Started => "started".into(),
            ProcessChange::Killed(status) => format!("killed ({status})"),
            ProcessChange::Ended(status) => format!("ended ({status})"),
            ProcessChange::Died(status) => format!("died unexpectedly ({status})"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerChange {
    pub at_ms: u64,
    pub region: String,
    pub from: String,
    pub to: String,
    pub cause: String,
    /// From the last sign of life of the old owner to the first commit of the new one, as the new one measured it. None: nobody has seen that commit.
    pub total_ms: Option<u64>,
    /// There was none, because there was nothing to commit: the new owner worked, and nothing was before the region.
    #[serde(default)]
    pub is_idle: bool,
}

/// How long the output stood still after a worker was killed while nothing else was broken: of all its partitions the longest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    pub at_ms: u64,
    pub worker: String,
    pub gap_ms: u64,
    /// False: the output still stood still when the next fault or the end of the method cut it off, so this is the least that it can have been.
    #[serde(default = "is_over_unless_said")]
    pub is_over: bool,
}

/// Journals that are older than this took each for one that was over.
fn is_over_unless_said() -> bool {
    true
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub rows: u64,
    pub p50_ms: u64,
    pub p90_ms: u64,
    pub p99_ms: u64,
    pub max_ms: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    pub seconds: f64,
    pub sent: u64,
    pub taken: u64,
}

impl Throughput {
    pub fn ratio(&self) -> Option<f64> {
        (self.sent > 0).then(|| self.taken as f64 / self.sent as f64)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoints {
    pub begun: u64,
    pub succeeded: u64,
}

/// The supervisor's own timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostNoise {
    pub watched_ms: u64,
    /// Lost to wake-ups that were too late.
    pub late_ms: u64,
    pub latest_ms: u64,
}

impl HostNoise {
    pub fn share(&self) -> f64 {
        if self.watched_ms == 0 { 0.0 } else { self.late_ms as f64 / self.watched_ms as f64 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Of all workers.
    pub cpu_seconds: f64,
    /// Of one worker, the most that was seen.
    pub peak_rss_bytes: u64,
}

/// One second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub at_ms: u64,
    /// In this second.
    pub sent: u64,
    /// Rows of the output that became visible in this second.
    pub rows: u64,
    /// None: nobody answered.
    pub lag_records: Option<u64>,
    /// Of what became visible in this second. None: nothing did.
    pub latency_p50_ms: Option<u64>,
    pub latency_p99_ms: Option<u64>,
    pub workers_alive: u32,
    pub rss_bytes: u64,
    /// Of one processor, all workers together.
    pub cpu_percent: f64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub at_ms: u64,
    pub text: String,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub invariant: Invariant,
    /// Jepsen's name where it has one: `lost-write`, `duplicate`, …
    pub kind: String,
    /// What to look at: topic, partition, offset, key, as far as known.
    pub place: String,
    pub detail: String,
}

/// Whether an invariant was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Looked {
    /// At so many things.
    At(u64),
    /// There is nothing of the kind in this plan.
    NotApplicable(String),
    /// It could not be.
    Not(String),
}

/// Why a run did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BrokenOff {
    /// The steady state was not met before the first fault.
    NotSteady(String),
    /// The user.
    Interrupted,
    /// The harness.
    Harness(String),
}

impl Journal {
    /// Reads `journal.json`, or `journal.jsonl` of a run that died.
    pub fn read(path: &Path) -> Result<Journal, JournalError> {
        let text = std::fs::read_to_string(path).map_err(|error| JournalError::Io(path.display().to_string(), error))?;
        let broken = |error: serde_json::Error| JournalError::Format(path.display().to_string(), error.to_string());
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            return record::replay(&text).map_err(|reason| JournalError::Format(path.display().to_string(), reason));
        }
        let journal: Journal = serde_json::from_str(&text).map_err(broken)?;
        if journal.format > FORMAT {
            let reason = format!("it has format {}, this program knows {FORMAT}", journal.format);
            return Err(JournalError::Format(path.display().to_string(), reason));
        }
        Ok(journal)
    }

    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data always serializes") + "\n"
    }
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("can't read `{0}`: {1}")]
    Io(String, #[source] std::io::Error),
    #[error("`{0}` is not a journal: {1}")]
    Format(String, String),
}

//! A plan of faults: what is started, what loads it, what must hold before, what is broken when, and what the promise is.
//!
//! The shape is Chaos Toolkit's (steady state, method, undo) with thresholds as k6 has them, so that people who know either can read it. A plan is data: every
//! random choice of its run derives from `seed`, so a run is repeated by its seed.
//!
//! ```text
//! PLAN.yaml ─schema──► Plan ─check (against the catalogue of faults)──► problems with line, column and hint   │   a plan that may be run
//! ```
//! These types are what the published JSON Schema comes from (`streamshield chaos schema`, docs/chaos-plan.schema.json); their comments are its descriptions.
//!
//! Not here: when a step is due (`runner`), and what a result means ([`crate::verdict`]).

mod amounts;
mod check;
mod read;
mod ready;
mod threshold;

pub(crate) use check::is_kill;

pub use amounts::{Fraction, Pick, Size, Start, Time};
pub use read::{SourcePlan, read, schema_text};
pub use ready::{names as ready_names, ready};
pub use threshold::{Aggregate, Comparison, Metric, Phase, Threshold};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use streamshield_faults::Target;

/// A plan of faults and the promise that must hold while they happen.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "streamshield chaos plan")]
pub struct Plan {
    /// Version of this format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// One line that says what is proven.
    pub title: String,
    /// What all random choices derive from. Default: drawn anew, and printed. `--seed` overrides it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub seed: Option<u64>,
    /// What is started.
    #[serde(default)]
    pub topology: Topology,
    /// What loads it.
    pub workload: Workload,
    /// What is looked at before the first fault, while nothing is broken, and at the end. Not met before: the run ends as inconclusive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steady_state: Vec<Probe>,
    /// What happens, in order. Empty: a run without faults, to see that nothing is found where nothing is wrong.
    #[serde(default)]
    pub method: Vec<Step>,
    /// What is checked of the output and of the job's own topics. Default: all.
    #[serde(default = "Invariant::all")]
    pub invariants: Vec<Invariant>,
    /// The promise: by metric, conditions such as `p99 < 500 during healthy`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "threshold::ByMetric")]
    pub thresholds: BTreeMap<Metric, Vec<Threshold>>,
    /// What must have happened for the run to prove anything.
    #[serde(default)]
    pub proof_of_fault: Proof,
    /// When the host is too busy to conclude anything.
    #[serde(default)]
    pub host: HostLimits,
}

/// What is started.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Topology {
    /// Apache Kafka processes; 0 is the broker inside of streamshield, which can't be broken. Default: 3.
    #[schemars(range(min = 0, max = 9))]
    pub brokers: u32,
    /// Worker processes. Default: 3.
    #[schemars(range(min = 1, max = 9))]
    pub workers: u32,
    /// How a lost worker's part comes back: 1 active-active, 2 active-standby, 3 checkpoints. Default: 1.
    #[schemars(range(min = 1, max = 3))]
    pub tier: u32,
    /// Followers of each region. Default: as the tier has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2))]
    pub replicas: Option<u32>,
    /// Partitions of the inputs and of the exchanges. Default: 4.
    #[schemars(range(min = 1, max = 64))]
    pub parallelism: u32,
    /// Where checkpoints go. Default: a local folder.
    pub store: Store,
    /// Time between two checkpoints of a region. Default: 5 s.
    pub checkpoint_interval: Time,
    /// Time between two commits. Default: 100 ms.
    pub commit_interval: Time,
    /// Further keys of the job file, such as `flush_interval`; those that begin with `kafka.` are properties of the client. A job of one's own keeps its own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub job: BTreeMap<String, Parameter>,
}

impl Default for Topology {
    fn default() -> Topology {
        Topology {
            brokers: 3,
            workers: 3,
            tier: 1,
            replicas: None,
            parallelism: 4,
            store: Store::Local,
            checkpoint_interval: Time::seconds(5),
            commit_interval: Time::millis(100),
            job: BTreeMap::new(),
        }
    }
}

impl Topology {
    /// Workers are `w1`, `w2`, …
    pub fn worker_names(&self) -> Vec<String> {
        (1..=self.workers).map(|number| format!("w{number}")).collect()
    }
}

/// Where checkpoints go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// No checkpoints.
    None,
    /// A folder.
    #[default]
    Local,
    /// An S3 server on loopback.
    S3,
    /// An HDFS on loopback.
    Hdfs,
}

/// What loads the job: an open loop, whose records are due by the clock whatever the job does. It lasts as long as the method, and longer if it is asked to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Records per second.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub rate: u64,
    /// Does not end before so many records were sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub records: Option<u64>,
    /// Does not end before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Time>,
    /// Distinct keys. Default: 1000.
    #[serde(default = "default_keys")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub keys: u64,
    /// State that all regions together have to carry from the begin to the end. Default: 0.
    #[serde(default)]
    pub state: Size,
}

fn default_keys() -> u64 {
    1_000
}

/// Something that is measured and must lie in a range.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// What it is called in reports.
    pub name: String,
    /// What is measured.
    pub probe: ProbeKind,
    /// The least that is fine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// The most that is fine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// When it is looked at. Default: before and after.
    #[serde(default = "default_modes")]
    #[schemars(length(min = 1))]
    pub when: Vec<Mode>,
    /// How long it may take until it is met, before and after. Default: 60 s.
    #[serde(default = "default_patience")]
    pub within: Time,
}

fn default_modes() -> Vec<Mode> {
    vec![Mode::Before, Mode::After]
}

fn default_patience() -> Time {
    Time::seconds(60)
}

impl Probe {
    pub fn is_met(&self, value: f64) -> bool {
        self.at_least.is_none_or(|least| value >= least) && self.at_most.is_none_or(|most| value <= most)
    }
}

/// What a probe measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    /// Records that the job has not taken yet, over all regions.
    LagRecords,
    /// Age of the oldest record that the job has not taken.
    LagMs,
    /// 99th percentile of the last five seconds, from the scheduled send time to the committed row.
    LatencyP99Ms,
    /// Worker processes that run.
    WorkersAlive,
    /// Regions that are active, of all of them, from 0 to 1.
    RegionsActive,
    /// Followers that are ready to take over, of those that are wanted, from 0 to 1.
    FollowersReady,
}

/// When a probe is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Before the first fault. Not met: nothing is broken, the run is inconclusive.
    Before,
    /// Each second while the method runs and no fault is active.
    During,
    /// After everything has been undone and the job has caught up.
    After,
}

/// One step of the method: a fault, a random draw of faults, another rate of the load, or a pause. Steps follow each other, unless `at` or `background` says otherwise.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// When: a time since the method began (`10 s`), or a number of records sent (`records>=20000`). Default: when the step before has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Start>,
    /// Each time the fault waits until a worker passes a named point, which stays there while the fault is injected. It is aimed at that worker, if the step has no `target` and it can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<FailPoint>,
    /// A fault of the catalogue (`streamshield chaos list`), for example `process.kill`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// What it is aimed at. Default: the usual target of the fault, drawn from the seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Parameters of the fault.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub with: BTreeMap<String, Parameter>,
    /// How long it lasts, until it is undone: a fault that lasts, a rate, a pause, or a random draw as a whole. Default: 30 s for faults that last.
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Time>,
    /// How often. Default: once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub repeat: Option<u32>,
    /// Time from one start to the next, and from the last one to the next step. Default: 10 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<Time>,
    /// The next step does not wait for this one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub background: bool,
    /// Faults drawn at random, again and again, with calm times in between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random: Option<Draw>,
    /// Multiplies the rate of the load, for example 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub load: Option<f64>,
    /// Nothing is broken for this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause: Option<Time>,
}

/// A named point of the program, and who is to pass it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FailPoint {
    /// The point's name, for example `engine::before_commit`: those at which `process.crash_at` lets a worker die.
    pub fail_point: String,
    /// Whose passing counts. Default: the owner of a region, drawn from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// How long it is waited for. Default: 60 s.
    #[serde(default = "default_patience")]
    pub within: Time,
}

/// A parameter as it was written; its kind depends on the fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Parameter(pub String);

/// Faults drawn at random.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Draw {
    /// What is drawn from.
    #[schemars(length(min = 1))]
    pub of: Vec<Candidate>,
    /// How many at a time: `2` or `2..4`. Default: 1.
    #[serde(default)]
    pub pick: Pick,
    /// Time from one draw to the next, calm included. Default: 20 s.
    #[serde(default = "default_every")]
    pub every: Time,
    /// The end of each such time, in which nothing is broken. Default: 10 s.
    #[serde(default = "default_calm")]
    pub calm: Time,
}

fn default_every() -> Time {
    Time::seconds(20)
}

fn default_calm() -> Time {
    Time::seconds(10)
}

/// A fault that may be drawn.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// A fault of the catalogue.
    pub fault: String,
    /// What it is aimed at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Parameters of the fault.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub with: BTreeMap<String, Parameter>,
}

/// What is checked of the output and of the job's own topics, when all is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Invariant {
    /// Every record that was sent is in the output, in a dead letter, or among the late ones.
    NoLoss,
    /// No record counts twice.
    NoDuplicate,
    /// Per key, counts rise by one.
    KeyOrder,
    /// What was written in one transaction is visible together or not at all (E-3).
    Atomic,
    /// Epochs have no gap, continue each other's inputs, and watermarks do not go back (E-1, E-2, E-5).
    Epochs,
    /// Once a new owner has read the end, no earlier owner's epoch commits (O-1).
    SingleWriter,
    /// Emitted, late and dead letters are together what came in.
    Conservation,
    /// Replicas have the digests of their owners, and a job that starts without its state goes on right (E-4).
    StateEqual,
    /// Every checkpoint that is kept can be read and matches its checksums (K-1, K-2).
    CheckpointsRestore,
    /// Nothing is left behind: no open transaction, no process, no scratch folder.
    NoOrphans,
    /// No panic in a log, and no worker that died without being killed.
    CleanLogs,
}

impl Invariant {
    pub const ALL: [Invariant; 11] = [
        Invariant::NoLoss,
        Invariant::NoDuplicate,
        Invariant::KeyOrder,
        Invariant::Atomic,
        Invariant::Epochs,
        Invariant::SingleWriter,
        Invariant::Conservation,
        Invariant::StateEqual,
        Invariant::CheckpointsRestore,
        Invariant::NoOrphans,
        Invariant::CleanLogs,
    ];

    pub fn all() -> Vec<Invariant> {
        Invariant::ALL.to_vec()
    }

    pub fn name(self) -> &'static str {
        match self {
            Invariant::NoLoss => "no_loss",
            Invariant::NoDuplicate => "no_duplicate",
            Invariant::KeyOrder => "key_order",
            Invariant::Atomic => "atomic",
            Invariant::Epochs => "epochs",
            Invariant::SingleWriter => "single_writer",
            Invariant::Conservation => "conservation",
            Invariant::StateEqual => "state_equal",
            Invariant::CheckpointsRestore => "checkpoints_restore",
            Invariant::NoOrphans => "no_orphans",
            Invariant::CleanLogs => "clean_logs",
        }
    }
}

/// What must have happened for the run to prove anything; else it is inconclusive.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Proof {
    /// How often each fault must have fired, by name, whatever this host can inject. Of the others each step of the method must have fired; of those that are only drawn, one draw.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub min_fired: BTreeMap<String, u32>,
    /// Types of faults that must have fired: one that this host can't inject has not.
    pub min_types: u32,
    /// Workers and brokers that the method must have killed.
    pub min_kills: u32,
    /// Records that the job must have taken while a fault was active, or its aftermath.
    pub min_records_during_fault: u64,
    /// Records whose results were verified.
    pub min_records: u64,
    /// Share of the records that were due and were sent. Default: 95 %.
    pub min_load: Fraction,
}

impl Default for Proof {
    fn default() -> Proof {
        Proof {
            min_fired: BTreeMap::new(),
            min_types: 0,
            min_kills: 0,
            min_records_during_fault: 0,
            min_records: 0,
            min_load: Fraction(0.95),
        }
    }
}

/// When the host is too busy: a timer of 10 ms in the supervisor that wakes up too late, too often.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HostLimits {
    /// So late is too late. Default: 100 ms.
    pub late: Time,
    /// The share of the run's time that may be lost to such delays. Default: 5 %.
    pub share: Fraction,
    /// How long the job may take to catch up after everything was undone. Default: 120 s.
    pub catch_up_within: Time,
}

impl Default for HostLimits {
    fn default() -> HostLimits {
        HostLimits { late: Time::millis(100), share: Fraction(0.05), catch_up_within: Time::seconds(120) }
    }
}

impl Plan {
    /// Names of all faults in the method.
    pub fn faults(&self) -> impl Iterator<Item = &str> {
        self.method.iter().flat_map(|step| {
            let drawn = step.random.iter().flat_map(|draw| draw.of.iter().map(|candidate| candidate.fault.as_str()));
            step.fault.as_deref().into_iter().chain(drawn)
        })
    }
}

#[cfg(test)]
mod plan_test;

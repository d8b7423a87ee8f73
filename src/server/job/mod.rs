//! The job file: from YAML to settings, with every mistake at its place.
//!
//! ```text
//! file ─yaml→ tree with places ─read→ Job          problems: unknown keys, wrong values
//!                   │ interpolate: ${env:X}, ${file:/path}
//!                   └ sql / sql_file ─→ SqlText ─→ planner, whose errors find their way back
//! ```

pub mod checkpoint;
pub mod identity;
pub mod interpolate;
pub mod read;
pub mod schema;
pub mod secret;
pub mod settings;

use crate::problem::{Place, SourceFile};
pub use checkpoint::CheckpointSettings;
use checkpoint::FALLBACK_FOLDER;
use identity::Identity;
use secret::{Redactor, Secret};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::cluster::{Settings, Tier};
use streamshield_core::tiers;
use streamshield_engine::config::{BadRecordPolicy, JobConfig, LateRowPolicy};
pub use streamshield_files::{units, yaml};

/// Partitions of exchanges, whatever the machine: a job must not change when it moves.
const DEFAULT_PARALLELISM: u32 = 4;
const DEFAULT_COMMIT_INTERVAL: Duration = Duration::from_millis(100);
const DEFAULT_FLUSH_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_MEMORY_BUDGET_BYTES: u64 = 512 << 20;

/// A job file that has been read.
#[derive(Clone)]
pub struct Job {
    pub file: Arc<SourceFile>,
    pub name: String,
    /// Where `name` stands in the file, if it does.
    pub name_place: Option<Place>,
    pub slo: Slo,
    pub replication: Replication,
    /// None: no store, so no checkpoints.
    pub checkpoint: Option<CheckpointSettings>,
    pub cluster: Cluster,
    pub slots: usize,
    /// `slots` is the number of processors, since nobody said otherwise.
    pub slots_by_default: bool,
    pub parallelism: u32,
    pub commit_interval: Duration,
    /// Where `commit_interval` stands in the file, else `slo.max_latency`, which it has to keep.
    pub latency_place: Option<Place>,
    pub flush_interval: Duration,
    pub memory_budget_bytes: u64,
    pub state_dir: Option<PathBuf>,
    pub sql: SqlText,
    pub on_bad_record: BadRecordPolicy,
    pub late_rows: LateRowPolicy,
    pub replication_factor: Option<i32>,
    pub redactor: Redactor,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slo {
    /// From 0 to 1.
    pub completeness: Option<f64>,
    pub max_latency: Option<Duration>,
    pub max_recovery: Option<Duration>,
}

/// How the job outlives its workers.
#[derive(Clone)]
pub struct Replication {
    pub tier: Tier,
    /// Of each region, on other workers.
    pub followers: u32,
    /// What it follows from in the file: `tier`, else `slo.max_recovery`.
    pub place: Option<Place>,
}

impl Replication {
    /// What all workers of the job agree on.
    pub fn settings(&self) -> Settings {
        tiers::settings(self.tier, self.followers)
    }
}

/// What the job runs on.
#[derive(Clone, Debug)]
pub enum Cluster {
    Kafka(BTreeMap<String, Secret>),
    Embedded { data_dir: Option<PathBuf>, listen: Option<SocketAddr> },
}

/// The SQL of a job after interpolation, and where each byte of it came from.
#[derive(Clone)]
pub struct SqlText {
    pub text: String,
    pub file: Arc<SourceFile>,
    /// File position of each byte of `text`, and of its end.
    pub places: Vec<usize>,
}

impl SqlText {
    /// The place of a part of the text in the user's file.
    pub fn place(&self, span: Range<usize>) -> Place {
        let at = |position: usize| self.places.get(position).or(self.places.last()).copied().unwrap_or_default();
        // The end is taken from the last byte inside, since the next one may be on another line.
        let end = if span.end > span.start { at(span.end - 1) + 1 } else { at(span.start) };
        Place { file: self.file.clone(), span: at(span.start)..end.max(at(span.start)) }
    }
}

impl Job {
    /// Settings for the engine, for one worker.
    pub fn config(&self, worker: &Identity, http: Option<SocketAddr>) -> JobConfig {
        JobConfig {
            name: self.name.clone(),
            slots: self.slots,
            worker: worker.name.clone(),
            rack: worker.rack.clone(),
            http: http.map(|address| address.to_string()),
            cluster: tiers::expecting(worker.workers_expected, self.replication.settings()),
            checkpoint_interval: self.checkpoint.as_ref().map(|checkpoint| checkpoint.interval),
            parallelism: self.parallelism,
            commit_interval: self.commit_interval,
            flush_interval: self.flush_interval,
            memory_budget_bytes: usize::try_from(self.memory_budget_bytes).unwrap_or(usize::MAX),
            on_bad_record: self.on_bad_record,
            late_rows: self.late_rows,
            replication_factor: self.replication_factor,
            // With several workers the broker lives in another process than they do.
            log_dies_with_process: matches!(self.cluster, Cluster::Embedded { data_dir: None, .. }) && worker.is_alone,
        }
    }

    /// As the plan's fingerprint and the job file name it.
    pub fn bad_record_policy(&self) -> &'static str {
        match self.on_bad_record {
            BadRecordPolicy::Fail => "fail",
            BadRecordPolicy::DeadLetter => "dead_letter",
            BadRecordPolicy::Skip => "skip",
        }
    }

    /// Where the local state of this job lies on this machine; None: in a folder that is deleted at the end, as the embedded broker's log is too.
    pub fn state_folder(&self) -> Option<PathBuf> {
        let forgets = matches!(&self.cluster, Cluster::Embedded { data_dir: None, .. });
        self.state_dir.clone().or_else(|| (!forgets).then(|| self.own_folder().join("state")))
    }

    /// Where checkpoints wait while the store is away: one folder for all workers of this machine, so that one of them can restore what another one left.
    pub fn fallback_folder(&self) -> PathBuf {
        let chosen = self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.fallback_dir.clone());
        let beside_state = || self.state_dir.clone().unwrap_or_else(|| self.own_folder()).join(FALLBACK_FOLDER);
        chosen.unwrap_or_else(beside_state)
    }

    fn own_folder(&self) -> PathBuf {
        PathBuf::from(".streamshield").join(&self.name)
    }
}

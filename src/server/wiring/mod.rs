//! Where the crates meet: connectors, planner, cluster, state, engine.

pub mod checkpoints;
pub mod cluster;
pub mod committed;
pub mod control;
pub mod restore;
pub mod state_folder;
pub mod topics;

use crate::job::identity::Identity;
use crate::job::{Cluster, Job, settings};
use crate::problem::{Problem, Problems};
use state_folder::{Refused, StateFolder};
use std::sync::Arc;
use streamshield_core::cluster::Tier;
use streamshield_core::ports::Connectors;
use streamshield_core::ports::state::StateBackend;
use streamshield_engine::clock::SystemClock;
use streamshield_engine::config::{Environment, LateRowPolicy, spawn_thread};
use streamshield_engine::flight::FlightRecorder;
use streamshield_kafka::{KafkaConnector, KafkaLog};
use streamshield_sql::{PlanOptions, Planned};
use streamshield_state::RocksBackend;

/// `SET` keys that the planner obeys by itself.
const PLANNER_SETTINGS: &[&str] = &["table.exec.source.idle-timeout"];

/// A part of the memory budget goes to RocksDB's caches, which are not the tables', and no more than this.
const ROCKS_CACHE_BYTES_MAX: usize = 64 << 20;

/// A job whose SQL has been understood.
pub struct PlannedJob {
    pub job: Job,
    pub planned: Planned,
}

/// All connectors of this binary. Kafka tables use the job's log.
pub fn connectors(log: Arc<KafkaLog>) -> Connectors {
    let mut connectors = Connectors::default();
    streamshield_connectors::register(&mut connectors);
    let kafka = Arc::new(KafkaConnector::new(log));
    connectors.add_source(kafka.clone());
    connectors.add_sink(kafka);
    connectors
}

/// Plans a job's SQL and obeys its settings. None if there are errors.
pub fn plan(mut job: Job, problems: &mut Problems) -> Option<PlannedJob> {
    let log = cluster::unconnected(&job).map_err(|problem| problems.add(problem)).ok()?;
    let connectors = connectors(log);
    let mut planned = plan_once(&job, &connectors, problems)?;
    let name = job.name.clone();
    settings::apply(&planned.settings, PLANNER_SETTINGS, &mut job, problems);
    if job.name.is_empty() {
        problems.add(
            Problem::error("the job has no name").hint("add `name: …`: it becomes the prefix of the job's topics").at(&job.file, 0..0),
        );
    }
    if !problems.has_errors()
        && let Err(problem) = checkpoints::check(&job)
    {
        problems.add(problem);
    }
    if problems.has_errors() {
        return None;
    }
    if job.name != name {
        planned = plan_once(&job, &connectors, problems)?;
    }
    for warning in &planned.plan.warnings {
        problems.add(Problem::warning(warning));
    }
    Some(PlannedJob { job, planned })
}

fn plan_once(job: &Job, connectors: &Connectors, problems: &mut Problems) -> Option<Planned> {
    let options = PlanOptions {
        job_name: &job.name,
        connectors,
        late_rows_to_topic: job.late_rows == LateRowPolicy::SideTopic,
        bad_record_policy: job.bad_record_policy(),
    };
    match streamshield_sql::plan(&job.sql.text, &options) {
        Ok(planned) => Some(planned),
        Err(errors) => {
            for error in errors {
                let place = error.span.map(|span| job.sql.place(span));
                problems.add(Problem::error(error.message).maybe_hint(error.hint).at_place(place));
            }
            None
        }
    }
}

/// What a job promises and can't keep with so many workers (None: nobody knows how many there will be).
pub fn warn_about_workers(job: &Job, workers: Option<u32>, problems: &mut Problems) {
    let (tier, place) = (job.replication.tier, job.replication.place.clone());
    let several = workers.is_some_and(|workers| workers > 1);
    let on_one_machine = matches!(job.cluster, Cluster::Embedded { .. });
    if tier == Tier::Checkpoints && job.checkpoint.is_none() && (several || (job.slo.max_recovery.is_some() && !on_one_machine)) {
        problems.add(
            Problem::warning(
                "without `checkpoint.store`, what a lost machine held is rebuilt from the job's own topics, which are never trimmed",
            )
            .hint("name a store, as `checkpoint: {store: s3://bucket/prefix}`, and recovery takes the same time however old the job is")
            .at_place(place.clone()),
        );
    }
    if let (Tier::ActiveActive | Tier::ActiveStandby, Some(workers)) = (tier, workers)
        && workers <= job.replication.followers
    {
        let needed = job.replication.followers + 1;
        problems.add(
            Problem::warning(format!("tier {} needs {needed} workers, here there are {workers}", streamshield_core::tiers::describe(tier)))
                .hint("a follower is never on its region's own worker: `run --workers N`, or more `streamshield worker` processes")
                .at_place(place),
        );
    }
}

/// Claims the worker's state folder; one process at a time has it.
pub fn claim_state(job: &Job, worker: &Identity) -> Result<StateFolder, Refused> {
    let folder = job.state_folder().map(|folder| if worker.is_alone { folder } else { folder.join(&worker.name) });
    StateFolder::claim(folder, &job.name)
}

/// What the engine needs for one life of a worker.
pub fn environment(job: &Job, log: Arc<KafkaLog>, folder: &StateFolder) -> Result<Environment, Problem> {
    let state = open_state(job, folder)?;
    Ok(Environment {
        connectors: connectors(log.clone()),
        log,
        state,
        checkpoints: checkpoints::store(job)?,
        clock: Arc::new(SystemClock::default()),
        nonce: uuid::Uuid::new_v4().as_u64_pair().0,
        spawn: spawn_thread(),
        parallel: true,
        flight: Some(Arc::new(FlightRecorder::open(folder.path()))),
    })
}

fn open_state(job: &Job, folder: &StateFolder) -> Result<Arc<dyn StateBackend>, Problem> {
    let mut config = streamshield_state::Config::new(folder.path());
    let cache_bytes = (usize::try_from(job.memory_budget_bytes).unwrap_or(usize::MAX) / 8).min(ROCKS_CACHE_BYTES_MAX);
    (config.block_cache_bytes, config.write_buffer_bytes) = (cache_bytes, cache_bytes);
    match RocksBackend::new(config) {
        Ok(backend) => Ok(backend),
        Err(error) => Err(folder.unusable(&error.to_string())),
    }
}

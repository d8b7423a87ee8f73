//! Where the crates meet: connectors, planner, cluster, state, engine.

pub mod cluster;
mod state_folder;
pub mod topics;

use crate::job::{Job, settings};
use crate::problem::{Problem, Problems};
use state_folder::StateFolder;
use std::sync::Arc;
use streamshield_core::ports::Connectors;
use streamshield_core::ports::state::StateBackend;
use streamshield_engine::config::{Environment, LateRowPolicy};
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
    if problems.has_errors() {
        return None;
    }
    if job.name != name {
        planned = plan_once(&job, &connectors, problems)?;
    }
    for warning in &planned.plan.warnings {
        problems.add(Problem::warning(warning));
    }
    warn_about_slo(&job, problems);
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

/// What a job promises and this release can't keep by its design.
fn warn_about_slo(job: &Job, problems: &mut Problems) {
    const LOCAL_RECOVERY_SECONDS: u64 = 10;
    if let Some(recovery) = job.slo.max_recovery
        && recovery.as_secs() < LOCAL_RECOVERY_SECONDS
    {
        problems.add(
            Problem::warning(format!("slo.max_recovery of {recovery:?} needs a replica or a standby, which this release does not have"))
                .hint(format!("a crashed job restarts from its local state, in about {LOCAL_RECOVERY_SECONDS} s and more")),
        );
    }
}

/// What the engine needs, and what must be kept while it runs.
pub struct Runtime {
    pub environment: Environment,
    // Dropped after the environment.
    _state: StateFolder,
}

/// Opens the state and puts the environment together.
pub fn runtime(job: &Job, log: Arc<KafkaLog>) -> Result<Runtime, Problem> {
    let folder = StateFolder::claim(job.state_folder())?;
    let state = open_state(job, &folder)?;
    let environment = Environment { connectors: connectors(log.clone()), log, state };
    Ok(Runtime { environment, _state: folder })
}

fn open_state(job: &Job, folder: &StateFolder) -> Result<Arc<dyn StateBackend>, Problem> {
    let mut config = streamshield_state::Config::new(folder.path());
    let cache_bytes = (job.config().memory_budget_bytes / 8).min(ROCKS_CACHE_BYTES_MAX);
    (config.block_cache_bytes, config.write_buffer_bytes) = (cache_bytes, cache_bytes);
    match RocksBackend::new(config) {
        Ok(backend) => Ok(backend),
        Err(error) => Err(folder.unusable(&error.to_string())),
    }
}

//! `streamshield run` and `streamshield worker`: from the command line to a worker, or to a supervisor of several.

use super::check::report;
use super::supervisor::channel::ReportSender;
use super::worker::{WorkerOptions, is_live};
use super::{ExitStatus, RunArguments, SummaryFormat, Supervised, WorkerArguments, read_and_plan, supervisor, worker};
use crate::job::identity::Identity;
use crate::job::secret::{Redactor, Secret};
use crate::job::{Cluster, Job};
use crate::logging::{self, LogFormat};
use crate::problem::{Problem, Problems};
use crate::wiring::{self, PlannedJob};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use streamshield_core::tiers::{self, TierError};

/// Runs a job in this process, or on several workers under it.
pub fn run(arguments: &RunArguments, metrics_addr: Option<SocketAddr>, log_format: LogFormat, redactor: &Redactor) -> ExitStatus {
    let (planned, mut problems) = read_with_replicas(&arguments.job, arguments.replicas, redactor);
    let live = planned.as_ref().is_some_and(|planned| is_live(arguments.live, &planned.planned.plan));
    logging::init(log_format, live && std::io::stdout().is_terminal(), redactor);
    if let Some(planned) = &planned {
        wiring::warn_about_workers(&planned.job, Some(arguments.workers.unwrap_or(1)), &mut problems);
    }
    let status = report(&problems, redactor);
    let Some(planned) = planned else { return status };
    if let Some(workers) = arguments.workers {
        return supervisor::run(arguments, workers, metrics_addr, log_format, planned, redactor);
    }
    let options = WorkerOptions {
        identity: Identity::alone(),
        duration: arguments.duration,
        summary: arguments.summary,
        live,
        metrics_addr,
        reports: None,
    };
    worker::run(options, planned, redactor)
}

/// Runs one worker of a job, by itself or under the supervisor.
pub fn run_worker(arguments: &WorkerArguments, metrics_addr: Option<SocketAddr>, log_format: LogFormat, redactor: &Redactor) -> ExitStatus {
    logging::init(log_format, false, redactor);
    match WorkerStart::prepare(arguments, redactor) {
        Err(problems) => {
            report(&problems, redactor);
            ExitStatus::Usage
        }
        Ok(WorkerStart { identity, planned, reports }) => {
            let summary = if reports.is_some() { SummaryFormat::None } else { arguments.summary };
            let options = WorkerOptions { identity, duration: None, summary, live: false, metrics_addr, reports };
            worker::run(options, planned, redactor)
        }
    }
}

struct WorkerStart {
    identity: Identity,
    planned: PlannedJob,
    reports: Option<ReportSender>,
}

impl WorkerStart {
    fn prepare(arguments: &WorkerArguments, redactor: &Redactor) -> Result<WorkerStart, Problems> {
        let one = |problem| Problems(vec![problem]);
        let reports = match arguments.supervised.supervisor {
            Some(pid) => Some(follow(pid).map_err(one)?),
            None => None,
        };
        let identity = Identity::of_worker(arguments.worker.as_deref(), arguments.rack.as_deref(), arguments.expect_workers)
            .map_err(|reason| one(Problem::error(reason).hint("name the worker: --worker NAME, or STREAMSHIELD_WORKER=NAME")))?;
        let (planned, mut problems) = read_with_replicas(&arguments.job, arguments.replicas, redactor);
        let Some(mut planned) = planned else { return Err(problems) };
        attach(&mut planned.job, &arguments.supervised);
        if let Cluster::Embedded { .. } = planned.job.cluster {
            problems.add(
                Problem::error("a worker of its own can't reach a broker that is embedded in another process")
                    .hint("start all workers at once: `streamshield run JOB.yaml --workers N`; or name a cluster under `kafka`"),
            );
            return Err(problems);
        }
        if reports.is_none() {
            wiring::warn_about_workers(&planned.job, None, &mut problems);
            report(&problems, redactor);
        }
        Ok(WorkerStart { identity, planned, reports })
    }
}

/// The command line goes before the job file, and the tier before both.
fn read_with_replicas(path: &Path, replicas: Option<u32>, redactor: &Redactor) -> (Option<PlannedJob>, Problems) {
    let (mut planned, mut problems) = read_and_plan(path, redactor);
    if let (Some(PlannedJob { job, .. }), Some(replicas)) = (&mut planned, replicas) {
        match tiers::followers(job.replication.tier, Some(replicas)) {
            Ok(followers) => job.replication.followers = followers,
            Err(error) => {
                let hint = match error {
                    TierError::ReplicasInTier3 => "leave `--replicas` out, or set `tier: 1` or a shorter slo.max_recovery",
                    _ => "leave `--replicas` out, or set `tier: 1`, where there may be two",
                };
                problems
                    .add(Problem::error(format!("`--replicas {replicas}`: {error}")).hint(hint).at_place(job.replication.place.clone()));
            }
        }
    }
    (planned.filter(|_| !problems.has_errors()), problems)
}

/// What the supervisor knows better than the job file.
fn attach(job: &mut Job, supervised: &Supervised) {
    if let Some(broker) = &supervised.broker {
        job.cluster = Cluster::Kafka(BTreeMap::from([("bootstrap.servers".to_string(), Secret::new(broker.as_str()))]));
    }
    if let Some(folder) = &supervised.state_dir {
        job.state_dir = Some(folder.clone());
    }
    if let Some(slots) = supervised.slots {
        job.slots = slots as usize;
    }
}

/// Ties this process to its supervisor: the kernel ends it when the supervisor is gone, however that ended.
fn follow(supervisor: u32) -> Result<ReportSender, Problem> {
    let failed = |what: &str| Problem::error(format!("this worker can't follow its supervisor: {what}"));
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| failed(&error.to_string()))?;
    // The supervisor may have died before the kernel was told.
    if getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs()) != Some(supervisor) {
        return Err(failed("it has ended already"));
    }
    ReportSender::from_stdin().map_err(|error| failed(&error.to_string()))
}

//! `streamshield run`.
//!
//! The main thread supervises: it waits for the job, looks at the stop request and the end of `--duration`, and draws. Signals and
//! HTTP live on a small runtime of their own, so that a busy or stuck engine still answers `/health`.

use super::check::report;
use super::signals::{self, StopRequest};
use super::summary::Summary;
use super::{ExitStatus, Live, RunArguments, SummaryFormat, read_and_plan};
use crate::job::secret::Redactor;
use crate::live::LiveView;
use crate::logging::{self, LogFormat};
use crate::problem::{Problem, Problems};
use crate::wiring::cluster::Connected;
use crate::wiring::{self, PlannedJob, cluster};
use crate::{http, metrics};
use parking_lot::RwLock;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_engine::plan::{JobPlan, StageOutput};
use streamshield_engine::runtime::{self, JobHandle, JobOutcome, JobStatus};

/// How soon a signal is obeyed and how often the table is looked at.
const SUPERVISION_INTERVAL: Duration = Duration::from_millis(50);
/// A drain that takes longer is given up: the cluster is away, and what is not committed is done again at the next start.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

pub fn run(arguments: &RunArguments, metrics_addr: Option<SocketAddr>, log_format: LogFormat, redactor: &Redactor) -> ExitStatus {
    let (planned, problems) = read_and_plan(&arguments.job, redactor);
    let live = planned.as_ref().is_some_and(|planned| is_live(arguments.live, &planned.planned.plan));
    logging::init(log_format, live && std::io::stdout().is_terminal(), redactor);
    let status = report(&problems, redactor);
    let Some(planned) = planned else { return status };
    match Supervisor::start(arguments, metrics_addr, redactor, &planned).and_then(|supervisor| supervisor.job(planned, live)) {
        Ok(status) => status,
        Err(problem) => {
            report(&Problems(vec![problem]), redactor);
            ExitStatus::Failed
        }
    }
}

/// A print table and a table that is redrawn in place don't go together.
fn is_live(live: Live, plan: &JobPlan) -> bool {
    let prints = plan.stages.iter().any(|stage| matches!(&stage.output, StageOutput::Sink(sink) if sink.table.connector() == "print"));
    match live {
        Live::Always => true,
        Live::Never => false,
        Live::Auto => std::io::stdout().is_terminal() && !prints,
    }
}

/// The job as the HTTP endpoints see it: absent until it has been started.
type SharedJob = Arc<RwLock<Option<Arc<JobHandle>>>>;

struct Supervisor<'a> {
    arguments: &'a RunArguments,
    redactor: &'a Redactor,
    stop: StopRequest,
    job: SharedJob,
    // Ends last.
    _runtime: tokio::runtime::Runtime,
}

impl<'a> Supervisor<'a> {
    /// Signals and HTTP, before anything that may take long.
    fn start(
        arguments: &'a RunArguments,
        metrics_addr: Option<SocketAddr>,
        redactor: &'a Redactor,
        planned: &PlannedJob,
    ) -> Result<Self, Problem> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("control").enable_all().build();
        let runtime = runtime.map_err(|error| Problem::error(format!("no threads for signals and HTTP: {error}")))?;
        let stop = signals::listen(&runtime).map_err(|error| Problem::error(format!("can't listen for signals: {error}")))?;
        let job = SharedJob::default();
        if let Some(address) = metrics_addr {
            let recorder = metrics::install().map_err(|error| Problem::error(format!("can't record metrics: {error}")))?;
            metrics::export_slo(&planned.job.slo);
            let shown = job.clone();
            let status = move || shown.read().as_ref().map_or_else(starting, |job| job.status());
            let bound = runtime.block_on(http::serve(address, Arc::new(status), recorder, redactor.clone()));
            let bound = bound
                .map_err(|error| Problem::error(format!("can't listen on {address}: {error}")).hint("choose another --metrics-addr"))?;
            tracing::info!(address = %bound, "serving /metrics, /health, /ready and /api/v1/status");
        }
        Ok(Supervisor { arguments, redactor, stop, job, _runtime: runtime })
    }

    /// Runs the job to its end.
    fn job(&self, planned: PlannedJob, live: bool) -> Result<ExitStatus, Problem> {
        let PlannedJob { job, planned } = planned;
        let stop = self.stop.clone();
        let Some(connected) = cluster::connect(&job, &|| stop.is_raised())? else { return Ok(ExitStatus::Ok) };
        let view = live.then(|| LiveView::new(&job.name, &planned.plan, connected.log.clone()));
        let resources = wiring::runtime(&job, connected.log.clone())?;
        tracing::info!(job = %job.name, plan = %planned.plan.fingerprint, slots = job.slots, parallelism = job.parallelism, "starting");
        let handle = runtime::start(planned.plan, job.config(), resources.environment.clone())
            .map_err(|error| Problem::error(error.message).maybe_hint(error.hint))?;
        let handle = Arc::new(handle);
        *self.job.write() = Some(handle.clone());
        let started = Instant::now();
        let outcome = self.supervise(&handle, started, view);
        let status = handle.status();
        self.end(handle, resources, connected);
        let status_code = self.say_outcome(outcome);
        self.summarize(&Summary::new(&status, started.elapsed()));
        Ok(status_code)
    }

    /// Waits for the job's end. None: the drain was given up.
    fn supervise(&self, handle: &JobHandle, started: Instant, mut view: Option<LiveView>) -> Option<JobOutcome> {
        let mut draining: Option<Instant> = None;
        let outcome = loop {
            if let Some(outcome) = handle.wait(Some(SUPERVISION_INTERVAL)) {
                break Some(outcome);
            }
            let time_is_over = self.arguments.duration.is_some_and(|duration| started.elapsed() >= duration);
            match draining {
                None if self.stop.is_raised() || time_is_over => {
                    handle.stop();
                    draining = Some(Instant::now());
                }
                Some(since) if since.elapsed() > DRAIN_TIME_MAX => break None,
                _ => {}
            }
            if let Some(view) = &mut view {
                view.show(&handle.status());
            }
        };
        if let Some(view) = &mut view {
            view.finish(&handle.status());
        }
        outcome
    }

    fn end(&self, handle: Arc<JobHandle>, resources: wiring::Runtime, connected: Connected) {
        *self.job.write() = None;
        drop(handle);
        drop(resources);
        connected.close();
    }

    fn say_outcome(&self, outcome: Option<JobOutcome>) -> ExitStatus {
        let (status, problem) = match outcome {
            Some(JobOutcome::Finished | JobOutcome::Stopped) => (ExitStatus::Ok, None),
            Some(JobOutcome::TakenOver(by)) => (
                ExitStatus::TakenOver,
                Some(
                    Problem::warning(format!("another process runs the job now: {by}"))
                        .hint("nothing is lost; don't start a job twice, and give two jobs two names"),
                ),
            ),
            Some(JobOutcome::Failed(error)) => (ExitStatus::Failed, Some(Problem::error(error.message).maybe_hint(error.hint))),
            None => (
                ExitStatus::Failed,
                Some(
                    Problem::error(format!("the job could not commit its last rows within {DRAIN_TIME_MAX:?}"))
                        .hint("nothing is lost: the next start goes on from the last commit"),
                ),
            ),
        };
        if let Some(problem) = problem {
            report(&Problems(vec![problem]), self.redactor);
        }
        status
    }

    fn summarize(&self, summary: &Summary) {
        match self.arguments.summary {
            SummaryFormat::Text => println!("{}", summary.text()),
            SummaryFormat::Json => println!("{}", serde_json::to_string(summary).expect("plain data always serializes")),
            SummaryFormat::None => {}
        }
    }
}

fn starting() -> JobStatus {
    JobStatus { state: "starting".into(), ..Default::default() }
}

//! One worker in this process: alone under `streamshield run`, one of several under `streamshield worker`.
//!
//! ```text
//! claim the state folder → connect → ┌ start the engine → watch: signals, --duration, live view ┐ → sum up
//!                                    └──────── expired: pause, then a new incarnation ──────────┘
//! ```
//! A worker that was paused or cut off for too long is not broken: the others have taken its regions, so it stands down and joins again as somebody new. Only
//! a worker whose *name* somebody else has taken must leave: two of them would expire each other in turns.
//!
//! The main thread watches. Signals and HTTP live on a small runtime of their own, so that a busy or stuck engine still answers `/health`.

use super::backoff::Backoff;
use super::shown::Shown;
use super::signals::{self, StopRequest};
use super::summary::Summary;
use super::supervisor::channel::ReportSender;
use super::{ExitStatus, Live, SummaryFormat, complain, say_in_time};
use crate::figures::Figures;
use crate::http;
use crate::job::Job;
use crate::job::identity::Identity;
use crate::job::secret::Redactor;
use crate::live::LiveView;
use crate::metrics;
use crate::problem::Problem;
use crate::wiring::cluster::Connected;
use crate::wiring::state_folder::{Refused, StateFolder};
use crate::wiring::{self, PlannedJob, cluster};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use streamshield_engine::clock::Clock;
use streamshield_engine::plan::{JobPlan, StageOutput};
use streamshield_engine::runtime::{self, EngineError, JobHandle, JobOutcome};

/// How soon a signal is obeyed and how often the table is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);
/// A drain that takes longer is given up: the cluster is away, and what is not committed is done again at the next start.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
/// Before an expired worker joins again: short, since its regions have found others; longer when it happens again and again.
const REJOIN_PAUSE_MIN: Duration = Duration::from_millis(100);
const REJOIN_PAUSE_MAX: Duration = Duration::from_secs(5);
/// The threads of an engine that has ended are gone within this.
const THREADS_TIME_MAX: Duration = Duration::from_secs(10);
/// A life this long was a healthy one.
const HEALTHY_LIFE: Duration = Duration::from_secs(60);

/// What the command line says about a worker.
pub struct WorkerOptions {
    pub identity: Identity,
    pub duration: Option<Duration>,
    pub summary: SummaryFormat,
    pub live: bool,
    pub metrics_addr: Option<SocketAddr>,
    /// Where the supervisor wants to hear of it.
    pub reports: Option<ReportSender>,
}

/// A print table and a table that is redrawn in place don't go together.
pub fn is_live(live: Live, plan: &JobPlan) -> bool {
    let prints = plan.stages.iter().any(|stage| matches!(&stage.output, StageOutput::Sink(sink) if sink.table.connector() == "print"));
    match live {
        Live::Always => true,
        Live::Never => false,
        Live::Auto => std::io::stdout().is_terminal() && !prints,
    }
}

/// Runs a worker to its end.
pub fn run(options: WorkerOptions, planned: PlannedJob, redactor: &Redactor) -> ExitStatus {
    let ended = Worker::start(options, &planned, redactor).and_then(|mut worker| {
        let ended = worker.run(planned);
        // An answer to somebody's question may still hang on the cluster: its end is not waited for.
        worker.runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(status) => status,
        Err(Failure { problem, status }) => {
            complain(problem, redactor);
            status
        }
    }
}

/// Why a worker could not start.
struct Failure {
    problem: Problem,
    status: ExitStatus,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Failure {
        Failure { problem, status: ExitStatus::Failed }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        match refused {
            Refused::Now(problem) => problem.into(),
            Refused::ForGood(problem) => Failure { problem, status: ExitStatus::Usage },
        }
    }
}

/// How one life of a worker ended.
#[derive(Debug)]
enum Ending {
    Done,
    TakenOver(String),
    Expired(String),
    Failed(EngineError),
    /// The drain was given up.
    Undrained,
}

impl From<Option<JobOutcome>> for Ending {
    fn from(outcome: Option<JobOutcome>) -> Ending {
        match outcome {
            Some(JobOutcome::Finished | JobOutcome::Stopped) => Ending::Done,
            Some(JobOutcome::TakenOver(by)) => Ending::TakenOver(by),
            Some(JobOutcome::Expired(why)) => Ending::Expired(why),
            Some(JobOutcome::Failed(error)) => Ending::Failed(error),
            None => Ending::Undrained,
        }
    }
}

struct Worker<'a> {
    options: WorkerOptions,
    redactor: &'a Redactor,
    stop: StopRequest,
    shown: Shown,
    http: Option<SocketAddr>,
    started: Instant,
    /// Of lives that are over.
    past: Figures,
    runtime: tokio::runtime::Runtime,
}

impl<'a> Worker<'a> {
    /// Signals and HTTP, before anything that may take long.
    fn start(options: WorkerOptions, planned: &PlannedJob, redactor: &'a Redactor) -> Result<Worker<'a>, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("control").enable_all().build();
        let runtime = runtime.map_err(|error| Problem::error(format!("no threads for signals and HTTP: {error}")))?;
        let stop = signals::listen(&runtime).map_err(|error| Problem::error(format!("can't listen for signals: {error}")))?;
        let shown = Shown::new(&planned.job.name);
        let mut http = None;
        if let Some(address) = options.metrics_addr {
            let recorder = metrics::install().map_err(|error| Problem::error(format!("can't record metrics: {error}")))?;
            metrics::export_slo(&planned.job.slo);
            let bound = runtime.block_on(http::serve(address, Arc::new(shown.clone()), recorder, redactor.clone()));
            let bound = bound
                .map_err(|error| Problem::error(format!("can't listen on {address}: {error}")).hint("choose another --metrics-addr"))?;
            tracing::info!(address = %bound, "serving /metrics, /health, /ready, /api/v1/status and /api/v1/cluster");
            http = Some(bound);
        }
        Ok(Worker { options, redactor, stop, shown, http, started: Instant::now(), past: Figures::default(), runtime })
    }

    fn run(&mut self, planned: PlannedJob) -> Result<ExitStatus, Failure> {
        let PlannedJob { job, planned } = planned;
        let stop = self.stop.clone();
        let folder = wiring::claim_state(&job, &self.options.identity)?;
        let Some(connected) = cluster::connect(&job, &|| stop.is_raised())? else { return Ok(ExitStatus::Ok) };
        self.shown.set_log(Some(connected.log.clone()));
        let mut view = self.options.live.then(|| LiveView::new(&job.name, &planned.plan, connected.log.clone()));
        tracing::info!(
            job = %job.name, worker = %self.options.identity.name, plan = %planned.plan.fingerprint, slots = job.slots,
            parallelism = job.parallelism, tier = streamshield_core::tiers::number(job.replication.tier), "starting"
        );
        let mut backoff = Backoff::new(REJOIN_PAUSE_MIN, REJOIN_PAUSE_MAX, HEALTHY_LIFE);
        let ending = loop {
            let born = Instant::now();
            let ending = self.live(&job, &planned.plan, &connected, &folder, &mut view)?;
            let Ending::Expired(why) = &ending else { break ending };
            let pause = backoff.after(born.elapsed());
            let (why, pause_ms) = (why.clone(), pause.as_millis() as u64);
            say_in_time(move || tracing::warn!(%why, pause_ms, "this worker was expired; it joins again as a new incarnation"));
            if !self.wait(pause) {
                break Ending::Done;
            }
        };
        if let Some(view) = &mut view {
            view.finish(&self.past);
        }
        if let Some(reports) = &mut self.options.reports {
            reports.send(&self.past);
        }
        self.shown.set_log(None);
        drop(folder);
        connected.close();
        let status = self.say(ending, &job);
        self.summarize();
        Ok(status)
    }

    /// One incarnation: from the start of the engine to its end.
    fn live(
        &mut self,
        job: &Job,
        plan: &JobPlan,
        connected: &Connected,
        folder: &StateFolder,
        view: &mut Option<LiveView>,
    ) -> Result<Ending, Failure> {
        let environment = wiring::environment(job, connected.log.clone(), folder)?;
        let clock = Arc::downgrade(&environment.clock);
        let flight = environment.flight.clone();
        let config = job.config(&self.options.identity, self.http);
        let handle = match runtime::start(plan.clone(), config, environment, &|| self.is_to_end()) {
            Ok(handle) => Arc::new(handle),
            Err(JobOutcome::Failed(error)) => return Err(Problem::error(error.message).maybe_hint(error.hint).into()),
            Err(outcome) => return Ok(Some(outcome).into()),
        };
        self.shown.set_engine(Some(handle.clone()));
        let outcome = self.watch(&handle, view);
        if let Some(flight) = flight {
            flight.close();
        }
        let before = std::mem::replace(&mut self.past, Figures::from(&handle.status()));
        self.past.add_counts(&before);
        self.shown.set_engine(None);
        drop(handle);
        let ending = outcome.into();
        if let Ending::Expired(_) = &ending {
            self.wait_for_threads(&clock);
        }
        Ok(ending)
    }

    /// An engine that was expired says so before its last slot has ended; until then the stores are locked, and the next life would take them for unusable.
    /// Each of its threads holds its clock.
    fn wait_for_threads(&self, clock: &Weak<dyn Clock>) {
        let since = Instant::now();
        while clock.strong_count() > 0 && !self.stop.is_raised() {
            if since.elapsed() > THREADS_TIME_MAX {
                tracing::warn!("the engine of the last incarnation still holds the state; what is not free is rebuilt");
                return;
            }
            std::thread::sleep(WATCH_INTERVAL);
        }
    }

    /// Waits for the engine's end. None: the drain was given up.
    fn watch(&mut self, handle: &JobHandle, view: &mut Option<LiveView>) -> Option<JobOutcome> {
        let mut draining: Option<Instant> = None;
        loop {
            if let Some(outcome) = handle.wait(Some(WATCH_INTERVAL)) {
                return Some(outcome);
            }
            match draining {
                None if self.is_to_end() => {
                    handle.stop();
                    draining = Some(Instant::now());
                }
                Some(since) if since.elapsed() > DRAIN_TIME_MAX => return None,
                _ => {}
            }
            if view.is_some() || self.options.reports.is_some() {
                let mut figures = Figures::from(&handle.status());
                figures.add_counts(&self.past);
                if let Some(view) = view {
                    view.show(&figures);
                }
                if let Some(reports) = &mut self.options.reports {
                    reports.send_sometimes(&figures);
                }
            }
        }
    }

    /// By a signal, its time, or the end of its supervisor.
    fn is_to_end(&self) -> bool {
        let time_is_over = self.options.duration.is_some_and(|duration| self.started.elapsed() >= duration);
        let supervisor_is_gone = self.options.reports.as_ref().is_some_and(ReportSender::is_broken);
        self.stop.is_raised() || time_is_over || supervisor_is_gone
    }

    /// False: the worker was told to stop meanwhile.
    fn wait(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.stop.is_raised() {
            std::thread::sleep(WATCH_INTERVAL.min(pause));
        }
        !self.stop.is_raised()
    }

    fn say(&self, ending: Ending, job: &Job) -> ExitStatus {
        let Some((status, problem)) = verdict(ending, &self.options.identity, &job.name) else { return ExitStatus::Ok };
        complain(problem, self.redactor);
        status
    }

    fn summarize(&self) {
        Summary::new(&self.past, self.started.elapsed()).print(self.options.summary);
    }
}

/// The exit status of an ending that is not a good one, and what to say.
fn verdict(ending: Ending, identity: &Identity, job: &str) -> Option<(ExitStatus, Problem)> {
    Some(match ending {
        Ending::Done => return None,
        Ending::TakenOver(by) if identity.is_alone => (
            ExitStatus::TakenOver,
            Problem::warning(format!("another process runs the job now: {by}"))
                .hint("nothing is lost; don't start a job twice, and give two jobs two names"),
        ),
        Ending::TakenOver(by) => (
            ExitStatus::TakenOver,
            Problem::warning(format!("another process is worker `{}` of job `{job}` now: {by}", identity.name))
                .hint("nothing is lost; give each worker a name of its own: --worker, STREAMSHIELD_WORKER or the pod's name"),
        ),
        Ending::Failed(error) => (ExitStatus::Failed, Problem::error(error.message).maybe_hint(error.hint)),
        // Only after the worker was told to stop.
        Ending::Expired(_) => return None,
        Ending::Undrained => (
            ExitStatus::Failed,
            Problem::error(format!("the job could not commit its last rows within {DRAIN_TIME_MAX:?}"))
                .hint("nothing is lost: the next start goes on from the last commit"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_whose_name_was_taken_says_which_one_and_leaves_with_3() {
        let identity = Identity { name: "orders-1".into(), rack: None, is_alone: false, workers_expected: 3 };
        let (status, problem) = verdict(Ending::TakenOver("incarnation 7".into()), &identity, "orders").expect("a verdict");
        assert_eq!(status, ExitStatus::TakenOver);
        assert_eq!(problem.message, "another process is worker `orders-1` of job `orders` now: incarnation 7");
    }

    #[test]
    fn a_good_end_is_silent() {
        for outcome in [JobOutcome::Finished, JobOutcome::Stopped] {
            assert!(verdict(Some(outcome).into(), &Identity::alone(), "orders").is_none());
        }
        assert_eq!(verdict(None.into(), &Identity::alone(), "orders").map(|(status, _)| status), Some(ExitStatus::Failed));
    }
}

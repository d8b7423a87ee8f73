//! `streamshield run --workers N`: N worker processes on one machine, started and kept running.
//!
//! The workers are the same processes that Kubernetes would start. The supervisor decides nothing about the job: whoever it starts joins by the control log.
//!
//! ```text
//! supervisor ─┬─ embedded broker, if the job has one: the workers get its address
//!             ├─ worker 0 ── socket: figures up        stdout: rows, as they are        stderr: log, under its name
//!             ├─ worker 1
//!             └─ …             SIGTERM down; ended by the kernel when the supervisor dies
//! ```
//! - `policy`: what follows the end of a worker. `child`: one worker. `channel`, `lines`: what it says.
//!
//! On failure: a worker that dies is started again under its name, after a pause that grows. One that fails again and again ends the job with its exit code, the
//! others are drained.

pub mod channel;
mod child;
mod lines;
mod policy;

use super::signals::{self, StopRequest};
use super::summary::Summary;
use super::worker::{DRAIN_TIME_MAX, is_live};
use super::{ExitStatus, RunArguments, complain, say_in_time};
use crate::figures::Figures;
use crate::job::Cluster;
use crate::job::secret::Redactor;
use crate::live::LiveView;
use crate::logging::LogFormat;
use crate::problem::Problem;
use crate::wiring::cluster::Connected;
use crate::wiring::state_folder::temporary_folder;
use crate::wiring::{PlannedJob, cluster};
use child::{Child, Recipe};
use policy::{Exit, Next};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How soon an end is noticed and a signal passed on.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// A worker gives its drain up by itself; this is for one that can't.
const DRAIN_MARGIN: Duration = Duration::from_secs(2);
/// How long the rows and log lines of ended workers may take to be read by others, once the job has failed or was asked to stop.
const OUTPUT_TIME_MAX: Duration = Duration::from_secs(10);

/// Runs a job on several workers to its end.
pub fn run(
    arguments: &RunArguments,
    workers: u32,
    metrics_addr: Option<SocketAddr>,
    log_format: LogFormat,
    planned: PlannedJob,
    redactor: &Redactor,
) -> ExitStatus {
    match Supervisor::start(arguments, workers, metrics_addr, log_format, &planned, redactor) {
        Ok(Some(mut supervisor)) => supervisor.run(),
        // Told to stop before there was anything to stop.
        Ok(None) => ExitStatus::Ok,
        Err(problem) => {
            complain(problem, redactor);
            ExitStatus::Failed
        }
    }
}

struct Supervisor<'a> {
    arguments: &'a RunArguments,
    redactor: &'a Redactor,
    stop: StopRequest,
    started: Instant,
    children: Vec<Child>,
    view: Option<LiveView>,
    // In this order: the broker after the children, signals last.
    connected: Option<Connected>,
    _state: Option<TempDir>,
    _runtime: tokio::runtime::Runtime,
}

/// Why the children are draining, and what the end of the run will be.
struct Draining {
    since: Instant,
    status: ExitStatus,
}

impl<'a> Supervisor<'a> {
    fn start(
        arguments: &'a RunArguments,
        workers: u32,
        metrics_addr: Option<SocketAddr>,
        log_format: LogFormat,
        planned: &PlannedJob,
        redactor: &'a Redactor,
    ) -> Result<Option<Supervisor<'a>>, Problem> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("control").enable_all().build();
        let runtime = runtime.map_err(|error| Problem::error(format!("no thread for signals: {error}")))?;
        let stop = signals::listen(&runtime).map_err(|error| Problem::error(format!("can't listen for signals: {error}")))?;
        let job = &planned.job;
        let live = is_live(arguments.live, &planned.planned.plan);
        let embedded = matches!(job.cluster, Cluster::Embedded { .. });
        let connected = if embedded || live {
            let Some(connected) = cluster::connect(job, &|| stop.is_raised())? else { return Ok(None) };
            Some(connected)
        } else {
            None
        };
        let state = if job.state_folder().is_none() { Some(temporary_folder()?) } else { None };
        let view = connected.as_ref().filter(|_| live).map(|it| LiveView::new(&job.name, &planned.planned.plan, it.log.clone()));
        let program = std::env::current_exe().map_err(|error| Problem::error(format!("this program can't find itself: {error}")))?;
        let recipes = Recipes {
            arguments,
            workers,
            program,
            log_format,
            metrics_addr,
            broker: connected.as_ref().and_then(Connected::broker_address),
            state_dir: state.as_ref().map(|folder| folder.path().as_os_str().to_os_string()),
            slots: job.slots_by_default.then(|| job.slots.div_ceil(workers as usize)),
        };
        let mut children = Vec::new();
        for index in 0..workers {
            let recipe = recipes.recipe(index)?;
            children.push(Child::start(recipe).map_err(|error| Problem::error(format!("can't start worker `{index}`: {error}")))?);
        }
        tracing::info!(job = %job.name, workers, "started the workers");
        Ok(Some(Supervisor {
            arguments,
            redactor,
            stop,
            started: Instant::now(),
            children,
            view,
            connected,
            _state: state,
            _runtime: runtime,
        }))
    }

    fn run(&mut self) -> ExitStatus {
        let mut status = self.watch();
        let all_passed_on = self.finish_output(status);
        if !all_passed_on {
            self.complain(
                Problem::error(format!("not all rows and log lines of the workers were read within {OUTPUT_TIME_MAX:?}: the rest is lost"))
                    .hint("printed rows are for somebody who reads them; where each one counts, write to a topic or a folder"),
            );
            status = worse(status, ExitStatus::Failed);
        }
        let mut sum = self.sum();
        sum.state = "ended".into();
        if all_passed_on && let Some(view) = &mut self.view {
            view.finish(&sum);
        }
        if let Some(connected) = self.connected.take() {
            connected.close();
        }
        let restarts: u32 = self.children.iter().map(|child| child.restarts).sum();
        if restarts > 0 {
            say_in_time(move || {
                tracing::info!(restarts, "workers were started again; what they did in their last half second is not in the sum");
            });
        }
        // The last line: not while others still write, or are stuck in it with the stream locked.
        if all_passed_on {
            Summary::new(&sum, self.started.elapsed()).print(self.arguments.summary);
        }
        status
    }

    /// Waits until all that the workers have said is passed on. False: something is left. After a good end a reader may be as slow as he likes
    /// until somebody asks to stop: rows in a pipe are nowhere else.
    fn finish_output(&mut self, status: ExitStatus) -> bool {
        let mut deadline: Option<Instant> = None;
        loop {
            if status != ExitStatus::Ok || self.stop.is_raised() {
                deadline.get_or_insert_with(|| Instant::now() + OUTPUT_TIME_MAX);
            }
            let until = Instant::now() + WATCH_INTERVAL;
            if self.children.iter_mut().all(|child| child.finish_output(until)) {
                return true;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return false;
            }
        }
    }

    /// Until all workers have ended.
    fn watch(&mut self) -> ExitStatus {
        let mut draining: Option<Draining> = None;
        loop {
            for index in 0..self.children.len() {
                let (name, ended) = (self.children[index].name().to_string(), self.children[index].look_after());
                match (ended, &mut draining) {
                    (Ok(None), _) => {}
                    (Ok(Some((exit, next))), None) => draining = self.ended(&name, exit, next),
                    (Ok(Some((exit, _))), Some(draining)) => {
                        self.children[index].drain();
                        draining.status = worse(draining.status, self.ended_draining(&name, exit));
                    }
                    (Err(error), draining) => {
                        self.complain(Problem::error(format!("can't look after worker `{name}`: {error}")));
                        draining.get_or_insert_with(|| self.drain(ExitStatus::Failed)).status = ExitStatus::Failed;
                    }
                }
            }
            if self.children.iter().all(Child::has_ended) {
                return draining.map_or(ExitStatus::Ok, |draining| draining.status);
            }
            let time_is_over = self.arguments.duration.is_some_and(|duration| self.started.elapsed() >= duration);
            match &mut draining {
                None if self.stop.is_raised() || time_is_over => draining = Some(self.drain(ExitStatus::Ok)),
                Some(draining) if draining.since.elapsed() > DRAIN_TIME_MAX + DRAIN_MARGIN => {
                    self.children.iter_mut().for_each(Child::kill);
                    self.complain(
                        Problem::error("not all workers could drain in time and were ended")
                            .hint("nothing is lost: the next start goes on from the last commit"),
                    );
                    draining.status = worse(draining.status, ExitStatus::Failed);
                }
                _ => {}
            }
            if let Some(mut view) = self.view.take() {
                view.show(&self.sum());
                self.view = Some(view);
            }
            std::thread::sleep(WATCH_INTERVAL);
        }
    }

    /// A worker has ended by itself. Some: so does the job.
    fn ended(&mut self, name: &str, exit: Exit, next: Next) -> Option<Draining> {
        let worker = name.to_string();
        match next {
            Next::Done => {
                say_in_time(move || tracing::info!(worker, "the worker has ended"));
                None
            }
            Next::RestartAfter(pause) => {
                let pause_ms = pause.as_millis() as u64;
                say_in_time(move || tracing::warn!(worker, ended_with = %exit, pause_ms, "the worker has died and is started again"));
                None
            }
            Next::GiveUp { status, reason, hint } => {
                self.complain(Problem::error(format!("worker `{name}` {reason}")).hint(hint));
                Some(self.drain(status))
            }
        }
    }

    fn ended_draining(&self, name: &str, exit: Exit) -> ExitStatus {
        if has_drained(exit) {
            return ExitStatus::Ok;
        }
        self.complain(Problem::error(format!("worker `{name}` did not drain: it ended with {exit}")));
        ExitStatus::Failed
    }

    fn drain(&mut self, status: ExitStatus) -> Draining {
        // First the workers: the line may have to wait for its reader.
        self.children.iter_mut().for_each(Child::drain);
        let draining = Draining { since: Instant::now(), status };
        say_in_time(|| tracing::info!("draining all workers"));
        draining
    }

    fn sum(&self) -> Figures {
        let mut sum = Figures { state: "ended".into(), ..Default::default() };
        self.children.iter().for_each(|child| sum.add(&child.figures()));
        sum
    }

    fn complain(&self, problem: Problem) {
        complain(problem, self.redactor);
    }
}

/// Whether a worker that was asked to drain has done so. One that dies of the question did not listen for it yet, and had begun nothing.
fn has_drained(exit: Exit) -> bool {
    matches!(exit, Exit::Code(0) | Exit::Signal(libc::SIGTERM))
}

/// What says more of a run that ended in two ways.
fn worse(a: ExitStatus, b: ExitStatus) -> ExitStatus {
    if a == ExitStatus::Ok { b } else { a }
}

/// The command lines of all workers.
struct Recipes<'a> {
    arguments: &'a RunArguments,
    workers: u32,
    program: std::path::PathBuf,
    log_format: LogFormat,
    metrics_addr: Option<SocketAddr>,
    broker: Option<String>,
    state_dir: Option<OsString>,
    slots: Option<usize>,
}

impl Recipes<'_> {
    fn recipe(&self, index: u32) -> Result<Recipe, Problem> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        add("--log-format", self.log_format.name().into());
        if let Some(base) = self.metrics_addr {
            let address = metrics_address(base, index)?;
            tracing::info!(worker = index, %address, "the worker serves its metrics there");
            add("--metrics-addr", address.to_string().into());
        }
        add("worker", self.arguments.job.as_os_str().to_os_string());
        add("--worker", index.to_string().into());
        add("--expect-workers", self.workers.to_string().into());
        if let Some(replicas) = self.arguments.replicas {
            add("--replicas", replicas.to_string().into());
        }
        add("--supervisor", std::process::id().to_string().into());
        if let Some(broker) = &self.broker {
            add("--broker", broker.into());
        }
        if let Some(folder) = &self.state_dir {
            add("--state-dir", folder.clone());
        }
        if let Some(slots) = self.slots {
            add("--slots", slots.to_string().into());
        }
        Ok(Recipe { name: index.to_string(), program: self.program.clone(), arguments, log_format: self.log_format })
    }
}

/// A port for each worker: one after the other, from the one that was asked for; any free one if that was 0.
fn metrics_address(base: SocketAddr, index: u32) -> Result<SocketAddr, Problem> {
    let port = if base.port() == 0 { Some(0) } else { u16::try_from(index).ok().and_then(|index| base.port().checked_add(index)) };
    let port = port.ok_or_else(|| {
        Problem::error(format!("there is no port {} + {index} for the metrics of worker `{index}`", base.port()))
            .hint("each worker takes the next port: choose a smaller --metrics-addr")
    })?;
    Ok(SocketAddr::new(base.ip(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_dies_of_the_question_to_drain_has_drained() {
        let ends = [Exit::Code(0), Exit::Signal(libc::SIGTERM), Exit::Code(1), Exit::Signal(libc::SIGKILL)];
        assert_eq!(ends.map(has_drained), [true, true, false, false]);
    }

    #[test]
    fn each_worker_gets_the_next_port_or_any_free_one() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert_eq!(metrics_address(address("127.0.0.1:9464"), 2).ok(), Some(address("127.0.0.1:9466")));
        assert_eq!(metrics_address(address("127.0.0.1:0"), 2).ok(), Some(address("127.0.0.1:0")));
        assert!(metrics_address(address("127.0.0.1:65535"), 1).err().is_some_and(|problem| problem.message.contains("65535 + 1")));
    }
}

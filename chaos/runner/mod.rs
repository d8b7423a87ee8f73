//! A run: from a plan to a journal.
//!
//! ```text
//! starting      brokers, store, proxies · topics · workers · the observer · the load
//! steady state  probes `before`: not met in time → nothing is broken, inconclusive
//! method        the steps; each injection is written down before it is done                     safety: only wrong output counts
//! healing       every fault has been undone by whoever injected it; now nothing is left broken
//! catching up   everything that was sent must come out, all must be settled, in time             liveness
//! rebuilding    all states of a region at one epoch are equal; then all state is deleted under load, and what comes out must still be right
//! draining      the load ends with records that close all windows; all rows are waited for
//! verifying     the oracle, the job's own topics, logs, checkpoints, leftovers
//! ```
//! Beside it, once a second: figures of workers and output, owner changes, deaths, probes `during`; and a timer of 10 ms that tells how busy the host is.
//!
//! **On failure** of the harness, and on a signal, the method is cut short: each fault that is under way is undone at once, what follows is left out, and with
//! the stage everything ends that it has started, so that faults never outlive a run. The stage's watchdog sees to that when this process dies.

mod conduct;
mod feed;
mod finish;
mod inject;
mod probes;
mod scrape;
mod shared;
mod states;
mod subject;
mod watch;

use crate::journal::{BrokenOff, Entry, Injection, InjectionOutcome, Journal, Note, Reading, Recorder, RunStage, Versions};
use crate::plan::{Mode, Plan, Store};
use feed::Load;
use shared::Shared;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use streamshield_faults::stage::binary;
use streamshield_faults::{ArmedPoint, FaultError, JobFile, Stage, StageEventKind, StoreKind, Topology};
use streamshield_workload::{Settings, WorkloadError};
use subject::Subject;

/// All workers must run by then, on a host that is busy.
const START_TIME_MAX: Duration = Duration::from_secs(180);
/// After the method, the load goes on healthy for so long: what `after` is measured in.
const AFTER_TIME: Duration = Duration::from_secs(10);
/// Between two acts of rebuilding: longer than between two flushes of a tier 1 job.
const FLOW_TIME: Duration = Duration::from_secs(3);
const START_TRIES: u32 = 3;
/// Of the words of a failure; the logs have the rest.
const WORDS_MAX: usize = 400;
/// What was rebuilt is worked with for so long.
const REBUILT_TIME: Duration = Duration::from_secs(5);
/// Of a method without steps, unless the workload says more.
const EMPTY_METHOD_TIME: Duration = Duration::from_secs(20);
/// Nothing new has come out for so long, or for as long as the plan gives the job to catch up: it never will.
const DRAIN_QUIET_MAX: Duration = Duration::from_secs(60);

/// What is to be run.
pub struct Request {
    pub plan: Plan,
    pub plan_name: String,
    pub seed: u64,
    /// Where the journal and the logs go.
    pub folder: PathBuf,
    /// How the same is done again.
    pub replay: String,
    /// The program whose workers are tested; None: this one.
    pub binary: Option<PathBuf>,
    /// A user's job instead of the self-verifying one.
    pub job: Option<PathBuf>,
}

/// Who watches.
pub trait Watcher: Sync {
    /// Something happened.
    fn say(&self, at: Duration, text: &str);
    /// How it goes, once a second.
    fn tick(&self, at: Duration, text: &str);
    /// Whether the run is to end now.
    fn wants_end(&self) -> bool;
}

/// Why a run could not even be written down.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the journal can't be written: {0}")]
    Journal(#[from] std::io::Error),
}

/// What ends a run before its time.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("{0}")]
    Broken(String),
    #[error("interrupted")]
    Interrupted,
    #[error("not steady: {0}")]
    NotSteady(String),
}

impl From<FaultError> for Stop {
    fn from(error: FaultError) -> Stop {
        Stop::Broken(error.to_string())
    }
}

impl From<WorkloadError> for Stop {
    fn from(error: WorkloadError) -> Stop {
        Stop::Broken(error.to_string())
    }
}

/// Runs a plan. All that goes wrong is in the journal; an error is a journal that can't be written.
pub fn run(request: &Request, watcher: &dyn Watcher) -> Result<Journal, RunError> {
    let began = Instant::now();
    let started_at = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let version = versions(request);
    let recorder =
        Recorder::begin(&request.folder, &request.plan, &request.plan_name, request.seed, &request.replay, version, &started_at)?;
    let recorder = Mutex::new(recorder);
    let run = Run { request, watcher, recorder: &recorder, began };
    if let Err(stop) = run.go() {
        let why = match stop {
            Stop::Broken(why) => BrokenOff::Harness(short(&why)),
            Stop::Interrupted => BrokenOff::Interrupted,
            Stop::NotSteady(why) => BrokenOff::NotSteady(why),
        };
        run.add(Entry::BrokenOff { why });
    }
    let at_ms = run.now_ms();
    Ok(recorder.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).end(at_ms)?)
}

/// What the stage has noted by itself, such as a worker that can't be started: once each, since that is tried again and again.
fn noted(stage: &Stage) -> String {
    let notes = stage.events().into_iter().filter_map(|event| match event.kind {
        StageEventKind::Note { text } => Some(text + "; "),
        _ => None,
    });
    notes.collect::<BTreeSet<_>>().into_iter().collect()
}

fn short(words: &str) -> String {
    let line: String = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= WORDS_MAX { line } else { line.chars().take(WORDS_MAX).chain(['…']).collect() }
}

fn versions(request: &Request) -> Versions {
    let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()
    });
    let binary = request.binary.as_ref().map_or_else(|| "this one".to_string(), |path| path.display().to_string());
    let os = std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| std::env::consts::OS.to_string(), |release| format!("Linux {}", release.trim()));
    Versions {
        streamshield: request.binary.as_deref().map_or_else(|| env!("CARGO_PKG_VERSION").into(), version_of),
        binary,
        os,
        cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
        memory_bytes: memory.unwrap_or(0) << 10,
    }
}

/// Of a program that is tested: it may be another than this one.
fn version_of(program: &Path) -> String {
    let output = Command::new(program).arg("version").stdin(Stdio::null()).output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    said.trim().strip_prefix("streamshield ").unwrap_or("unknown").into()
}

struct Run<'a> {
    request: &'a Request,
    watcher: &'a dyn Watcher,
    recorder: &'a Mutex<Recorder>,
    began: Instant,
}

impl Run<'_> {
    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn add(&self, entry: Entry) {
        shared::lock(self.recorder).add(entry);
    }

    fn enter(&self, stage: RunStage) {
        self.add(Entry::Stage { at_ms: self.now_ms(), stage });
        self.watcher.say(self.began.elapsed(), stage.name());
    }

    fn note(&self, text: impl Into<String>) {
        let text = text.into();
        self.watcher.say(self.began.elapsed(), &text);
        self.add(Entry::Note { note: Note { at_ms: self.now_ms(), text } });
    }

    fn go(&self) -> Result<(), Stop> {
        self.enter(RunStage::Starting);
        let plan = &self.request.plan;
        let subject = self.subject()?;
        let stage = self.start_stage()?;
        let servers = stage.bootstrap_servers();
        subject.create_topics(&servers)?;
        let job_file = self.job_file(&subject, &servers)?;
        let started = Instant::now();
        let waits = plan.method.iter().any(|step| step.when.is_some());
        let environment = if waits { ArmedPoint::environment(&stage) } else { BTreeMap::new() };
        stage.start_workers_with(&job_file, &environment)?;
        self.wait_settled(&stage, "all workers to run")?;
        self.add(Entry::Started { after_ms: started.elapsed().as_millis() as u64 });
        let follower = subject.follow(&servers)?;
        let observer = subject.observe(&servers)?;
        let load = Arc::new(Load::new(subject.start(&servers)?, plan.workload.rate));
        stage.set_data_feed(load.clone());
        let shared = Shared::new(self, &stage, &load, observer.as_ref());
        let method = std::thread::scope(|scope| {
            let watching = scope.spawn(|| watch::watch(&shared));
            let timer = scope.spawn(|| watch::timer(&shared));
            let method = self.under_load(&shared);
            shared.end_watching();
            // What a watcher panics about is the harness's, and must not hide what the run has found.
            let panicked = watching.join().is_err() | timer.join().is_err();
            if panicked { method.and(Err(Stop::Broken("a watching thread panicked".into()))) } else { method }
        });
        finish::latencies(self, &shared);
        finish::failovers(self, &shared);
        let events_seen = shared.events_seen();
        method?;
        self.enter(RunStage::Draining);
        let sent = load.stop()?;
        let quiet_max = DRAIN_QUIET_MAX.min(plan.host.catch_up_within.0);
        let drained = subject.wait_drained(&servers, &sent, observer.as_ref(), quiet_max)?;
        let stuck = if drained.is_err() { finish::standstill(&shared) } else { None };
        if let Err(left) = drained {
            self.note(left);
        }
        finish::costs(self, &stage);
        finish::checkpoints(self, &stage);
        let seen = observer.map(|observer| observer.stop()).transpose()?;
        finish::end_workers(self, &stage, events_seen);
        self.enter(RunStage::Verifying);
        // What can't be followed must not hide what else the run has found.
        let control = follower.stop().unwrap_or_else(|error| {
            self.note(format!("the control log could not be followed, what is left of it is read instead: {error}"));
            subject.control()
        });
        finish::verify(self, &stage, finish::Ran { subject: &subject, sent: &sent, seen: seen.as_ref(), control, stuck })
    }

    /// On a busy host a node of Kafka may miss its own deadlines at the start, and end: then all of them are started anew.
    fn start_stage(&self) -> Result<Stage, Stop> {
        let folder = self.request.folder.join("stage");
        for attempt in 1.. {
            let failed = match Stage::start(&self.topology(), &folder) {
                Ok(stage) => return Ok(stage),
                Err(FaultError::NotPossibleHere(why)) => return Err(Stop::Broken(format!("not possible here: {why}"))),
                Err(error) => error,
            };
            if attempt == START_TRIES || self.watcher.wants_end() {
                return Err(Stop::Broken(failed.to_string()));
            }
            self.note(format!("the cluster did not start, once more: {}", short(&failed.to_string())));
            let kept = self.request.folder.join(format!("stage-failed-{attempt}"));
            std::fs::rename(&folder, kept).map_err(|error| Stop::Broken(error.to_string()))?;
        }
        Err(Stop::Broken("the cluster was never started".into()))
    }

    /// Everything that happens while the load flows and the watchers look.
    fn under_load(&self, shared: &Shared<'_>) -> Result<(), Stop> {
        self.enter(RunStage::SteadyState);
        self.steady(shared)?;
        self.enter(RunStage::Method);
        conduct::conduct(shared);
        if self.request.plan.method.is_empty() {
            shared.sleep(EMPTY_METHOD_TIME);
        }
        let (records, duration) = (self.request.plan.workload.records, self.request.plan.workload.duration);
        let method_began = shared.method_began();
        shared.wait_until(|| {
            records.is_none_or(|records| shared.load.records_sent() >= records)
                && duration.is_none_or(|time| method_began.elapsed() >= time.0)
        });
        self.enter(RunStage::Healing);
        shared.expect_going()?;
        self.enter(RunStage::CatchingUp);
        self.catch_up(shared)?;
        self.rebuild(shared)
    }

    fn steady(&self, shared: &Shared<'_>) -> Result<(), Stop> {
        let flowing = shared.wait_for(START_TIME_MAX, || shared.taken() > 0);
        shared.expect_going()?;
        if !flowing {
            return Err(Stop::NotSteady("no row has come out".into()));
        }
        let unmet = probes::look(shared, Mode::Before);
        shared.expect_going()?;
        if unmet.is_empty() { Ok(()) } else { Err(Stop::NotSteady(unmet.join("; "))) }
    }

    /// Liveness: what was sent until now must come out, and everybody must be there again.
    fn catch_up(&self, shared: &Shared<'_>) -> Result<(), Stop> {
        let (began, began_wall_ms, sent) = (Instant::now(), streamshield_workload::time::wall_ms(), shared.load.records_sent());
        let within = self.request.plan.host.catch_up_within.0;
        let caught_up = shared.wait_for(within, || shared.has_taken(sent, began_wall_ms) && shared.is_settled_since(began));
        shared.expect_going()?;
        if caught_up {
            self.add(Entry::CaughtUp { after_ms: began.elapsed().as_millis() as u64 });
            shared.sleep(AFTER_TIME);
            shared.expect_going()?;
        } else {
            self.note(format!("the job has not caught up within {} s: {}", within.as_secs(), shared.describe()));
        }
        probes::look(shared, Mode::After);
        shared.expect_going()
    }

    /// Local state is a cache: without it the job must come to the same, from checkpoints and logs.
    fn rebuild(&self, shared: &Shared<'_>) -> Result<(), Stop> {
        if self.request.plan.method.is_empty() || !self.request.plan.invariants.contains(&crate::plan::Invariant::StateEqual) {
            return Ok(());
        }
        self.enter(RunStage::Rebuilding);
        states::compare(shared)?;
        // Under load again: records are under way, and epochs beyond the last flush.
        let taken = shared.taken();
        shared.wait_for(self.request.plan.host.catch_up_within.0, || shared.taken() > taken);
        shared.sleep(FLOW_TIME);
        shared.expect_going()?;
        inject::rebuild_all_state(shared);
        shared.expect_going()?;
        let deleted = Instant::now();
        let (emptied, had_caught_up) = shared.journal(|journal| {
            let did = |last: &&Injection| last.step == self.request.plan.method.len() && last.outcome == InjectionOutcome::Injected;
            (journal.injections.last().filter(did).map_or(0, |last| last.count), journal.catch_up_ms.is_some())
        });
        // Of a job that had caught up all workers were there; one that had not has missed its promise already. It goes on: the oracle has not spoken.
        let workers = self.request.plan.topology.workers;
        if had_caught_up && emptied != u64::from(workers) {
            let why = format!("{emptied} of {workers} workers have lost their state, so not all of it was rebuilt");
            self.add(Entry::BrokenOff { why: BrokenOff::Harness(why) });
        }
        let settled = shared.wait_for(self.request.plan.host.catch_up_within.0, || shared.is_settled_since(deleted));
        if settled {
            shared.note_rebuilt(emptied);
        }
        shared.expect_going()?;
        let name = "settled after all state was deleted".to_string();
        self.add(Entry::Reading { reading: Reading { at_ms: self.now_ms(), mode: Mode::After, name, value: None, met: settled } });
        if !settled {
            self.note(format!("the job did not settle after its state was deleted: {}", shared.describe()));
        }
        shared.sleep(REBUILT_TIME);
        shared.expect_going()
    }

    fn wait_settled(&self, stage: &Stage, what: &str) -> Result<(), Stop> {
        let deadline = Instant::now() + START_TIME_MAX;
        while !self.watcher.wants_end() {
            match stage.wait_settled(Duration::from_secs(2)) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(Stop::Broken(format!("waited in vain for {what}: {}{error}", noted(stage))));
                }
                Err(_) => self.watcher.tick(self.began.elapsed(), &format!("waiting for {what}")),
            }
        }
        Err(Stop::Interrupted)
    }

    fn topology(&self) -> Topology {
        let topology = &self.request.plan.topology;
        let store = match topology.store {
            Store::None => StoreKind::None,
            Store::Local => StoreKind::Folder,
            Store::S3 => StoreKind::S3,
            Store::Hdfs => StoreKind::Hdfs,
        };
        Topology { brokers: topology.brokers, workers: topology.workers, store, seed: self.request.seed, ..Topology::default() }
    }

    fn subject(&self) -> Result<Subject, Stop> {
        let plan = &self.request.plan;
        let settings = Settings {
            partitions: plan.topology.parallelism as i32,
            rate: plan.workload.rate,
            keys: plan.workload.keys,
            bulk_bytes: plan.workload.state.0,
            replication_factor: plan.topology.brokers.clamp(1, 3) as i32,
            ..Settings::default()
        };
        let seed = self.request.seed;
        match &self.request.job {
            None => Subject::own(format!("chaos-{seed}"), seed, settings),
            Some(job) => {
                let (subject, promise) = Subject::user(job, &self.program()?, seed, settings)?;
                if promise.is_left_open(plan) {
                    self.note("slo.max_recovery is not judged: this plan has no threshold failover_ms");
                }
                self.add(Entry::Promise { tier: promise.tier, thresholds: promise.thresholds(plan) });
                Ok(subject)
            }
        }
    }

    /// The program under test.
    fn program(&self) -> Result<PathBuf, Stop> {
        match &self.request.binary {
            Some(path) => Ok(path.clone()),
            None => binary().map_err(|error| Stop::Broken(format!("{error:#}"))),
        }
    }

    fn job_file(&self, subject: &Subject, servers: &str) -> Result<JobFile, Stop> {
        let mut job = JobFile::new(subject.job_yaml(servers, &self.job_settings())?);
        // Relative paths in a user's file start where it lies.
        job.folder = self.request.job.as_ref().and_then(|path| path.canonicalize().ok()?.parent().map(PathBuf::from));
        Ok(job)
    }

    fn job_settings(&self) -> Vec<(&str, String)> {
        let topology = &self.request.plan.topology;
        if self.request.job.is_some() {
            // What a user's job promises is its own; only what it runs on is the plan's.
            return vec![("replication_factor", topology.brokers.clamp(1, 3).to_string())];
        }
        let mut settings = vec![("tier", topology.tier.to_string()), ("commit_interval", topology.commit_interval.to_string())];
        if let Some(replicas) = topology.replicas {
            settings.push(("replicas", replicas.to_string()));
        }
        if topology.store != Store::None {
            settings.push(("checkpoint", format!("{{interval: {}}}", topology.checkpoint_interval)));
        }
        settings.extend(topology.job.iter().map(|(key, value)| (key.as_str(), value.0.clone())));
        settings
    }
}

//! Starts, watches and stops a worker of a job in this process.
//!
//! ```text
//! control topic ─ read ─► genesis (the first one wins) ─► topics ─► joined, read back ─► actors take turns
//!
//! control reader · heart · steward (fences) · reporter · checkpointer · per slot: slot, committer, nursery
//! ```
//! Nobody waits for anybody here: what a worker does next it reads in the control log's view ([`crate::membership`]). The order of architecture §6 is
//! kept by who may do what when: the nursery takes the end of a changelog only when nobody is left to be fenced, the committer begins only after a
//! confirmation that followed its own InitProducerId.

pub use crate::assemble::Job;
use crate::assemble::ensure_topics;
use crate::checkpointer::{CHECKPOINT_JOBS_MAX, Checkpointer, Checkpoints};
use crate::clock::Clock;
use crate::commit::{Committer, CommitterParts, NEWS_MAX, SEALED_AHEAD_MAX};
use crate::config::{Environment, JobConfig};
use crate::heart::Heart;
use crate::membership::{ControlReading, Membership, START_DEADLINE, retrying};
use crate::nursery::Nursery;
use crate::plan::JobPlan;
use crate::progress::Progress;
use crate::region::RegionSettings;
use crate::reporter::Reporter;
use crate::slot::Slot;
use crate::steward::Steward;
use crate::takeover::Takeovers;
use crate::topics;
use crate::turn::{Actor, Turn, drive};
use crossbeam_channel::bounded;
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use streamshield_core::cluster::{Cluster, ControlRecord, FEATURE_LEVEL, Genesis, Joined, Settings, SlotId, Standing, Tier};
use streamshield_core::ids::{Incarnation, Offset};
use streamshield_core::ports::Connectors;
use streamshield_core::ports::checkpoint::Durability;
use streamshield_core::ports::log::{LogErrorKind, ReaderOptions, TopicSpec, Wakeup};

/// Why a job could not start or had to stop. The text says what happened, the hint what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    pub message: String,
    pub hint: Option<String>,
}

/// How a job ended.
#[derive(Clone, Debug)]
pub enum JobOutcome {
    /// All sources were bounded and have ended.
    Finished,
    /// `stop` was called: sealed, committed, left.
    Stopped,
    /// Another process has taken this worker's name.
    TakenOver(String),
    /// The others went on without this worker: it was paused or cut off. It may join again, as a new incarnation.
    Expired(String),
    Failed(EngineError),
}

/// Live figures of a job; cheap to take.
#[derive(Clone, Debug, Default, Serialize)]
pub struct JobStatus {
    /// `starting`, `recovering`, `running`, `paused` (the log is away), `draining`, `ended`.
    pub state: String,
    pub regions: Vec<RegionStatus>,
    /// Source records taken and committed since this process started, bad ones included.
    pub records_in: u64,
    /// Rows committed to sinks since this process started.
    pub rows_out: u64,
    pub late_rows: u64,
    pub bad_records: u64,
    pub dead_letters: u64,
    pub epochs: u64,
    /// From the newest source timestamp of an epoch to the end of its commit, in ms: quantiles over about the last minute.
    pub latency_p50_ms: Option<f64>,
    pub latency_p99_ms: Option<f64>,
    /// Since when the log is away, milliseconds since 1970.
    pub paused_since_ms: Option<i64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct RegionStatus {
    /// `s1/0`
    pub region: String,
    pub stage: String,
    pub epoch: u64,
    /// Milliseconds since 1970; None before the first and after the last watermark.
    pub watermark_ms: Option<i64>,
    pub records_in: u64,
    pub rows_out: u64,
    pub state_bytes: u64,
    pub state_groups: u64,
    /// Set when the region was stopped: why.
    pub stopped: Option<String>,
    pub finished: bool,
    /// `active`, `replica`, `standby`, or `recovering` (on its way to `active`).
    pub role: String,
    /// Of a replica or standby: committed epochs that it has not applied yet.
    pub epochs_behind: u64,
    /// E-4: the epoch at which this worker's state differed from the owner's; it was rebuilt.
    pub diverged_at: Option<u64>,
    /// What the input holds beyond the committed position, and the age of the newest record that is taken while there is more.
    pub lag_records: Option<u64>,
    pub lag_ms: Option<u64>,
    pub newest_timestamp_ms: Option<i64>,
    /// The last checkpoint that this worker made.
    pub checkpoint: Option<CheckpointStatus>,
}

#[derive(Clone, Debug, Serialize)]
pub struct CheckpointStatus {
    pub epoch: u64,
    pub durability: Durability,
    /// Milliseconds since 1970.
    pub at_ms: i64,
}

/// The topics that a job needs besides its sources': control, changelogs, exchanges, dead letters, late rows, sink topics. Reads the
/// sources' partitions; for `topics create` and `check`.
pub fn required_topics(plan: &JobPlan, config: &JobConfig, connectors: &Connectors) -> Result<Vec<TopicSpec>, EngineError> {
    let job = Job::open(plan.clone(), config.clone(), connectors)?;
    Ok(job.topics(&job.discover().map_err(EngineError::from)?))
}

/// Fetch buffers of one slot's exchange reader, and of its followers' (M-1).
const EXCHANGE_BUFFER_BYTES: usize = 16 << 20;
const FOLLOWER_BUFFER_BYTES: usize = 8 << 20;
/// In Tier 1 the end of a changelog, which no message tells of, must be known within a fraction of the second that a take-over may take.
const TAKEOVER_WAIT_MAX: Duration = Duration::from_millis(20);
/// Replicas compare digests at flush epochs: at least this often (E-4).
const DIGEST_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Between two turns of a start.
const START_PAUSE: Duration = Duration::from_millis(5);
const CONTROL_IDLE: Duration = Duration::from_millis(20);

/// What a worker's standing means for it; None: it may go on.
pub fn gone(standing: &Standing) -> Option<JobOutcome> {
    match standing {
        Standing::Live => None,
        Standing::Replaced(by) => Some(JobOutcome::TakenOver(format!("a later process (incarnation {}) has this worker's name", by.0))),
        Standing::Expired => Some(JobOutcome::Expired("the other workers did not hear of this one for too long".into())),
        Standing::Left | Standing::Unknown => Some(JobOutcome::Expired("this worker is no member any more".into())),
        Standing::Refused(reason) => Some(JobOutcome::Failed(EngineError { message: reason.clone(), hint: None })),
    }
}

/// How long a worker that was asked to leave goes on working until the others have what it owns.
const HAND_OVER_TIME_MAX: Duration = Duration::from_millis(1_000);

/// What the actors of a worker share.
pub struct Shared {
    /// Seal, commit, leave.
    pub stopping: Arc<AtomicBool>,
    /// Steady time, in ms, at which the worker was asked to leave: it gives away what it owns, and then stops.
    leaving_since_ms: AtomicU64,
    /// All slots have ended.
    pub over: AtomicBool,
    slots_clean: AtomicUsize,
    slots_settled: Vec<AtomicBool>,
    /// Per slot the steady time of its last turn, in ms.
    slots_alive: Vec<AtomicU64>,
}

impl Shared {
    fn new(slots: usize) -> Shared {
        Shared {
            stopping: Arc::default(),
            leaving_since_ms: AtomicU64::new(u64::MAX),
            over: AtomicBool::new(false),
            slots_clean: AtomicUsize::new(0),
            slots_settled: (0..slots).map(|_| AtomicBool::new(false)).collect(),
            slots_alive: (0..slots).map(|_| AtomicU64::new(u64::MAX)).collect(),
        }
    }

    /// Asks the worker to leave: to hand over what it owns, one region after the other and each with a successor that is ready, as when it is drained by an
    /// operator; then to stop. What could not be handed over in time is dropped at the end of an epoch.
    pub fn leave(&self, now: Duration) {
        let _ = self.leaving_since_ms.compare_exchange(u64::MAX, now.as_millis() as u64, Ordering::SeqCst, Ordering::SeqCst);
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving_since_ms.load(Ordering::SeqCst) != u64::MAX
    }

    /// Whether the slots have to stop now. It needs no answer from the log.
    pub fn must_stop(&self, membership: &Membership, now: Duration) -> bool {
        let is_over = |since_ms: u64| now.as_millis() as u64 >= since_ms.saturating_add(HAND_OVER_TIME_MAX.as_millis() as u64);
        let since_ms = self.leaving_since_ms.load(Ordering::SeqCst);
        let is_done = || is_over(since_ms) || !membership.view(|cluster| cluster.has_to_hand_over(membership.incarnation));
        self.stopping.load(Ordering::SeqCst) || (since_ms != u64::MAX && is_done())
    }

    pub fn slot_lives(&self, slot: u32, now: Duration) {
        self.slots_alive[slot as usize].store(now.as_millis() as u64, Ordering::Relaxed);
    }

    /// Every sealed epoch of the slot is committed, and it takes no further steps.
    pub fn slot_left_clean(&self) {
        self.slots_clean.fetch_add(1, Ordering::SeqCst);
    }

    /// The slot has what it owns. True: now all slots have.
    pub fn slot_settled(&self, slot: u32) -> bool {
        !self.slots_settled[slot as usize].swap(true, Ordering::SeqCst)
            && self.slots_settled.iter().all(|settled| settled.load(Ordering::SeqCst))
    }

    /// A slot whose last turn is longer ago than this.
    pub fn stuck_slot(&self, now: Duration, longest: Duration) -> Option<usize> {
        self.slots_alive.iter().position(|alive| {
            let alive = alive.load(Ordering::Relaxed);
            alive != u64::MAX && (now.as_millis() as u64).saturating_sub(alive) > longest.as_millis() as u64
        })
    }
}

/// A worker on its way into the cluster. A simulation gives it turns; [`start`] waits between them.
pub struct Starting {
    job: Arc<Job>,
    environment: Environment,
    wakeup: Arc<Wakeup>,
    /// Steady time: what does not answer by then is not waited for.
    deadline: Duration,
    phase: StartPhase,
}

enum StartPhase {
    Reading(Box<ControlReading>),
    Genesis { membership: Arc<Membership>, told: Option<Offset> },
    Joining { membership: Arc<Membership>, genesis: Arc<Genesis>, offset: Offset },
    Over,
}

impl Starting {
    /// Opens the job's tables, makes the control topic if there is none, and begins to read it.
    pub fn new(plan: JobPlan, config: JobConfig, environment: Environment) -> Result<Starting, EngineError> {
        let job = Arc::new(Job::open(plan, config, &environment.connectors)?);
        ensure_topics(&environment, &[topics::control_spec(&job.config)])?;
        let wakeup = Arc::new(Wakeup::default());
        let open = || ControlReading::open(environment.log.as_ref(), &job.config.name, wakeup.clone());
        let reading = retrying(environment.clock.as_ref(), "read the control topic", open)?;
        let deadline = environment.clock.steady() + START_DEADLINE;
        Ok(Starting { job, environment, wakeup, deadline, phase: StartPhase::Reading(Box::new(reading)) })
    }

    /// Some: the worker is a member, its actors want turns.
    pub fn turn(&mut self) -> Result<Option<Worker>, EngineError> {
        match std::mem::replace(&mut self.phase, StartPhase::Over) {
            StartPhase::Reading(reading) => self.read(reading).map(|()| None),
            StartPhase::Genesis { membership, told } => self.genesis(membership, told).map(|()| None),
            StartPhase::Joining { membership, genesis, offset } => self.join(membership, genesis, offset),
            StartPhase::Over => Err(EngineError { message: "the start is over".into(), hint: None }),
        }
    }

    fn read(&mut self, mut reading: Box<ControlReading>) -> Result<(), EngineError> {
        match reading.turn() {
            Ok(true) => {}
            Ok(false) => {
                self.phase = StartPhase::Reading(reading);
                return Ok(());
            }
            Err(error) if error.kind == LogErrorKind::Retry => {
                self.phase = StartPhase::Reading(reading);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let cluster = reading.fold()?;
        let clock_ms = self.environment.clock.wall_ms().max(0) as u64;
        let incarnation = Incarnation(cluster.highest_incarnation().map_or(clock_ms, |highest| clock_ms.max(highest.0 + 1)));
        let (log, position) = (self.environment.log.clone(), reading.position);
        let membership = Arc::new(Membership::new(log, &self.job.config.name, incarnation, reading.reader, cluster, position));
        self.phase = StartPhase::Genesis { membership, told: None };
        Ok(())
    }

    fn genesis(&mut self, membership: Arc<Membership>, mut told: Option<Offset>) -> Result<(), EngineError> {
        read_on(&membership)?;
        let Some(genesis) = membership.view(|cluster| cluster.genesis().cloned()) else {
            if told.is_none() {
                let genesis = match self.job.discover() {
                    Err(undiscovered) if undiscovered.retry && self.environment.clock.steady() < self.deadline => {
                        tracing::debug!(error = %undiscovered.error, "trying again");
                        self.phase = StartPhase::Genesis { membership, told };
                        return Ok(());
                    }
                    discovered => ControlRecord::Genesis(discovered?),
                };
                told = Some(retrying(self.environment.clock.as_ref(), "write to the control topic", || membership.append(&genesis))?);
            }
            self.phase = StartPhase::Genesis { membership, told };
            return Ok(());
        };
        check_genesis(&self.job, &genesis)?;
        ensure_topics(&self.environment, &self.job.topics(&genesis))?;
        let config = &self.job.config;
        let joined = ControlRecord::Joined(Joined {
            incarnation: membership.incarnation,
            nonce: self.environment.nonce,
            worker: config.worker.clone(),
            slots: config.slots as u32,
            rack: config.rack.clone(),
            level: FEATURE_LEVEL,
            plan: self.job.plan.fingerprint,
            settings: config.cluster.clone(),
            http: config.http.clone(),
        });
        let offset = retrying(self.environment.clock.as_ref(), "write to the control topic", || membership.append(&joined))?;
        self.phase = StartPhase::Joining { membership, genesis: Arc::new(genesis), offset };
        Ok(())
    }

    fn join(&mut self, membership: Arc<Membership>, genesis: Arc<Genesis>, offset: Offset) -> Result<Option<Worker>, EngineError> {
        read_on(&membership)?;
        if !membership.has_read(offset) {
            self.phase = StartPhase::Joining { membership, genesis, offset };
            return Ok(None);
        }
        // An incarnation is a start's millisecond: two workers may take the same one, and only the nonce tells whose it is (O-1).
        let me = membership.incarnation;
        let (standing, is_anothers) = membership.view(|cluster| {
            let standing = cluster.standing_of(me, self.environment.nonce);
            // The other one may be gone again by now.
            let is_anothers = standing != cluster.standing(me) || cluster.highest_incarnation() == Some(me);
            (standing, is_anothers)
        });
        match standing {
            Standing::Live => {}
            // Another worker took the incarnation at the same moment: begin again behind it.
            Standing::Refused(_) if is_anothers => {
                let open = || ControlReading::open(self.environment.log.as_ref(), &self.job.config.name, self.wakeup.clone());
                self.phase = StartPhase::Reading(Box::new(retrying(self.environment.clock.as_ref(), "read the control topic", open)?));
                return Ok(None);
            }
            Standing::Refused(reason) => return Err(EngineError { message: reason, hint: None }),
            other => return Err(EngineError { message: format!("this worker was gone before it began: {other:?}"), hint: None }),
        }
        let settings = membership.view(|cluster| cluster.settings().cloned()).unwrap_or_else(|| self.job.config.cluster.clone());
        let mine = &self.job.config.cluster;
        // How many are expected matters only to those who start together.
        let (workers_expected, start_wait_ms) = (mine.workers_expected, mine.start_wait_ms);
        if (Settings { workers_expected, start_wait_ms, ..settings.clone() }) != *mine {
            tracing::warn!(in_force = ?settings, "the running workers have other settings; theirs hold until all were restarted");
        }
        Worker::new(&self.job, &self.environment, membership, genesis, settings, self.wakeup.clone()).map(Some)
    }
}

fn read_on(membership: &Membership) -> Result<(), EngineError> {
    match membership.read() {
        Err(error) if error.kind != LogErrorKind::Retry => Err(error.into()),
        _ => Ok(()),
    }
}

/// Partitions that were fixed at the job's first start can't be changed by its settings.
fn check_genesis(job: &Job, genesis: &Genesis) -> Result<(), EngineError> {
    for exchange in &job.plan.exchanges {
        let wanted = exchange.partitions.unwrap_or(job.config.parallelism);
        match genesis.exchange_partitions.get(&exchange.id.0) {
            Some(partitions) if *partitions == wanted => {}
            Some(partitions) => {
                return Err(EngineError {
                    message: format!("the job began with parallelism {partitions}, now it is {wanted}"),
                    hint: Some(format!("set `parallelism: {partitions}`, or give the job another name")),
                });
            }
            None => return Err(changed_plan()),
        }
    }
    if job.sources.keys().any(|stage| !genesis.splits.contains_key(&stage.0)) || job.plan.stages.len() != genesis.stages.len() {
        return Err(changed_plan());
    }
    Ok(())
}

fn changed_plan() -> EngineError {
    EngineError {
        message: "the job's plan has changed: its first start had other stages".into(),
        hint: Some("give the changed job another name, or go back to the SQL that it began with".into()),
    }
}

/// A member of the cluster: its actors, for whoever gives them turns.
pub struct Worker {
    pub membership: Arc<Membership>,
    pub shared: Arc<Shared>,
    pub progress: Arc<Progress>,
    pub takeovers: Arc<Takeovers>,
    /// End with the job; the first outcome that is not `Finished` ends the others.
    pub slots: Vec<Part>,
    /// Serve the slots.
    pub helpers: Vec<Part>,
}

/// One actor of a worker.
pub struct Part {
    pub name: String,
    pub actor: Box<dyn Actor>,
    pub wakeup: Arc<Wakeup>,
}

impl Worker {
    fn new(
        job: &Arc<Job>,
        environment: &Environment,
        membership: Arc<Membership>,
        genesis: Arc<Genesis>,
        settings: Settings,
        control_wakeup: Arc<Wakeup>,
    ) -> Result<Worker, EngineError> {
        let config = &job.config;
        let progress = Arc::new(Progress::new(
            job.plan.stages.iter().map(|stage| stage.name.clone()).collect(),
            settings.tier,
            environment.clock.clone(),
        ));
        progress.set_state("recovering");
        let shared = Arc::new(Shared::new(config.slots));
        let takeovers = Arc::new(Takeovers::default());
        let (clock, log) = (environment.clock.clone(), environment.log.clone());
        let mut worker = Worker {
            membership: membership.clone(),
            shared: shared.clone(),
            progress: progress.clone(),
            takeovers: takeovers.clone(),
            slots: Vec::new(),
            helpers: Vec::new(),
        };
        let reader = ControlReader { membership: membership.clone(), shared: shared.clone() };
        worker.help("control", reader, control_wakeup);
        let interval = Duration::from_millis(settings.heartbeat_interval_ms);
        let (heart_membership, heart_clock, next) = (membership.clone(), clock.clone(), clock.steady());
        let heart = Heart { membership: heart_membership, clock: heart_clock, shared: shared.clone(), interval, next, farewell: false };
        worker.help("heart", heart, Arc::default());
        let steward = Steward {
            log: log.clone(),
            membership: membership.clone(),
            clock: clock.clone(),
            shared: shared.clone(),
            parallel: environment.parallel,
            duties: Default::default(),
        };
        let steward_wakeup = Arc::new(Wakeup::default());
        membership.add_listener(steward_wakeup.clone());
        worker.help("steward", steward, steward_wakeup);
        let reporter = Reporter {
            log: log.clone(),
            membership: membership.clone(),
            clock: clock.clone(),
            shared: shared.clone(),
            progress: progress.clone(),
            takeovers: takeovers.clone(),
            usage: environment.parallel.then(Default::default),
            next: clock.steady(),
        };
        worker.help("reporter", reporter, Arc::default());
        let (checkpoint_jobs, jobs) = bounded(CHECKPOINT_JOBS_MAX);
        let checkpoint_wakeup = Arc::new(Wakeup::default());
        let mut checkpoint_interval = None;
        if let Some(store) = &environment.checkpoints {
            store.set_incarnation(membership.incarnation);
            checkpoint_interval = config.checkpoint_interval;
            membership.add_listener(checkpoint_wakeup.clone());
            let checkpointer = Checkpointer {
                log: log.clone(),
                membership: membership.clone(),
                store: store.clone(),
                scratch: environment.state.scratch(),
                clock: clock.clone(),
                jobs,
                progress: progress.clone(),
                shared: shared.clone(),
                upkeep: None,
                copies: 0,
            };
            worker.help("checkpoints", checkpointer, checkpoint_wakeup.clone());
        }
        for number in 0..config.slots as u32 {
            let id = SlotId { incarnation: membership.incarnation, slot: number };
            let (news_sender, checkpoint_news) = bounded(CHECKPOINT_JOBS_MAX);
            let wakeup = Arc::new(Wakeup::default());
            let (jobs, made) = (checkpoint_jobs.clone(), checkpoint_wakeup.clone());
            let checkpoints = Checkpoints::new(checkpoint_interval, id, jobs, news_sender, wakeup.clone(), made);
            worker.add_slot(job, environment, &genesis, &settings, id, wakeup, checkpoints, checkpoint_news)?;
        }
        Ok(worker)
    }

    fn help(&mut self, name: &str, actor: impl Actor + 'static, wakeup: Arc<Wakeup>) {
        self.helpers.push(Part { name: name.to_string(), actor: Box::new(actor), wakeup });
    }

    #[allow(clippy::too_many_arguments)]
    fn add_slot(
        &mut self,
        job: &Arc<Job>,
        environment: &Environment,
        genesis: &Arc<Genesis>,
        settings: &Settings,
        id: SlotId,
        wakeup: Arc<Wakeup>,
        checkpoints: Checkpoints,
        checkpoint_news: crossbeam_channel::Receiver<crate::checkpointer::CheckpointNews>,
    ) -> Result<(), EngineError> {
        let (log, clock, membership) = (environment.log.clone(), environment.clock.clone(), self.membership.clone());
        let (committer_wakeup, nursery_wakeup) = (Arc::new(Wakeup::default()), Arc::new(Wakeup::default()));
        for listener in [&wakeup, &committer_wakeup, &nursery_wakeup] {
            membership.add_listener(listener.clone());
        }
        let partitions_max = genesis.stages.values().map(|stage| stage.regions as usize).sum();
        let wait_max = (settings.tier == Tier::ActiveActive).then_some(TAKEOVER_WAIT_MAX);
        let reader = |buffer_bytes, wakeup: &Arc<Wakeup>| {
            let options = ReaderOptions { buffer_bytes, partitions_max, wait_max, ..Default::default() };
            retrying(environment.clock.as_ref(), "make a reader", || log.reader(options.clone(), wakeup.clone()))
        };
        let (sealed_sender, sealed) = bounded(SEALED_AHEAD_MAX + 1);
        let (news_sender, news) = bounded(NEWS_MAX);
        // A region is on its way at most once, in one of the two directions: neither ever fills up.
        let regions = genesis.stages.values().map(|stage| stage.regions as usize).sum::<usize>().max(1);
        let (arrivals_sender, arrivals) = bounded(regions);
        let (departures_sender, departures) = bounded(regions);
        let committer = Committer::new(CommitterParts {
            log: log.clone(),
            membership: membership.clone(),
            slot: id,
            progress: self.progress.clone(),
            clock: clock.clone(),
            shared: self.shared.clone(),
            sealed,
            news: news_sender,
            wakeup: committer_wakeup.clone(),
            slot_wakeup: wakeup.clone(),
        });
        let nursery = Nursery {
            slot: id,
            job: job.clone(),
            genesis: genesis.clone(),
            membership: membership.clone(),
            settings: region_settings(job, genesis, settings, id, clock.clone()),
            log: log.clone(),
            state: environment.state.clone(),
            checkpoints: environment.checkpoints.clone(),
            spawn: environment.spawn.clone(),
            changelog: reader(FOLLOWER_BUFFER_BYTES, &nursery_wakeup)?,
            exchange: reader(FOLLOWER_BUFFER_BYTES, &nursery_wakeup)?,
            arrivals: arrivals_sender,
            departures,
            slot_wakeup: wakeup.clone(),
            wakeup: nursery_wakeup.clone(),
            progress: self.progress.clone(),
            takeovers: self.takeovers.clone(),
            shared: self.shared.clone(),
            tier: settings.tier,
            charges: Default::default(),
        };
        let slot = Slot {
            id,
            job: job.clone(),
            membership,
            clock,
            exchange: reader(EXCHANGE_BUFFER_BYTES, &wakeup)?,
            log,
            wakeup: wakeup.clone(),
            committer_wakeup: committer_wakeup.clone(),
            nursery_wakeup: nursery_wakeup.clone(),
            sealed: sealed_sender,
            news,
            arrivals,
            departures: departures_sender,
            checkpoints,
            checkpoint_news,
            progress: self.progress.clone(),
            takeovers: self.takeovers.clone(),
            shared: self.shared.clone(),
            work: Default::default(),
        };
        self.help(&format!("commit-{}", id.slot), committer, committer_wakeup);
        self.help(&format!("nursery-{}", id.slot), nursery, nursery_wakeup);
        self.slots.push(Part { name: format!("slot-{}", id.slot), actor: Box::new(slot), wakeup });
        Ok(())
    }

    /// The slots have ended: says so in the control log, if this worker is still a member.
    pub fn leave(membership: &Membership, shared: &Shared, slots: usize, outcome: &JobOutcome) {
        if !matches!(outcome, JobOutcome::Finished | JobOutcome::Stopped | JobOutcome::Failed(_)) {
            return;
        }
        let clean = matches!(outcome, JobOutcome::Finished) || shared.slots_clean.load(Ordering::SeqCst) == slots;
        if let Err(error) = membership.append(&ControlRecord::Left { incarnation: membership.incarnation, clean }) {
            tracing::debug!(%error, "could not say goodbye; the others will notice");
        }
    }
}

fn region_settings(job: &Job, genesis: &Genesis, settings: &Settings, id: SlotId, clock: Arc<dyn Clock>) -> RegionSettings {
    let config = &job.config;
    let flush_interval = match settings.tier {
        Tier::ActiveActive => config.flush_interval.min(DIGEST_INTERVAL_MAX),
        Tier::ActiveStandby | Tier::Checkpoints => config.flush_interval,
    };
    RegionSettings {
        clock,
        plan: job.plan.fingerprint,
        incarnation: id.incarnation,
        transactional_id: id.transactional_id(&config.name),
        on_bad_record: config.on_bad_record,
        commit_interval: config.commit_interval,
        flush_interval,
        state_bytes_max: job.state_bytes_max(genesis),
        open_bytes_max: job.open_bytes_max(genesis),
        ships_deltas: settings.tier == Tier::ActiveStandby,
    }
}

/// Reads the control log.
struct ControlReader {
    membership: Arc<Membership>,
    shared: Arc<Shared>,
}

impl Actor for ControlReader {
    fn turn(&mut self) -> Turn {
        if self.shared.over.load(Ordering::SeqCst) {
            return Turn::Ended(JobOutcome::Stopped);
        }
        match self.membership.read() {
            Ok(moved) => Turn::again_if(moved, CONTROL_IDLE),
            Err(error) if error.kind == LogErrorKind::Retry => Turn::Idle(CONTROL_IDLE),
            Err(error) => Turn::Ended(JobOutcome::Failed(EngineError {
                message: format!("the control topic can't be read: {error}"),
                hint: Some("was it trimmed, deleted or made again by hand?".into()),
            })),
        }
    }
}

/// A running job. It goes on when the handle is dropped.
pub struct JobHandle {
    clock: Arc<dyn Clock>,
    membership: Arc<Membership>,
    progress: Arc<Progress>,
    shared: Arc<Shared>,
    wakeups: Vec<Arc<Wakeup>>,
    ended: Arc<Ended>,
}

#[derive(Default)]
struct Ended {
    outcome: Mutex<Option<JobOutcome>>,
    told: Condvar,
}

/// Joins the job as a worker and starts its threads. Returns when it is a member and recovery is under way; never waits for the end.
pub fn start(plan: JobPlan, config: JobConfig, environment: Environment) -> Result<JobHandle, EngineError> {
    let clock = environment.clock.clone();
    let mut starting = Starting::new(plan, config, environment)?;
    let worker = loop {
        match starting.turn()? {
            Some(worker) => break worker,
            None => starting.wakeup.wait(START_PAUSE),
        }
    };
    let Worker { membership, shared, progress, slots, helpers, .. } = worker;
    let ended = Arc::new(Ended::default());
    let wakeups: Vec<_> = slots.iter().chain(&helpers).map(|part| part.wakeup.clone()).collect();
    let count = slots.len();
    // Each actor says once how it ended.
    let (outcomes_sender, outcomes) = bounded(count + helpers.len());
    let parts = slots.into_iter().map(|part| (true, part)).chain(helpers.into_iter().map(|part| (false, part)));
    for (is_slot, part) in parts {
        let sender = outcomes_sender.clone();
        let name = part.name.clone();
        let spawned = std::thread::Builder::new().name(part.name).spawn(move || {
            let (mut actor, wakeup) = (part.actor, part.wakeup);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drive(actor.as_mut(), &wakeup)));
            // Stores and clients are closed before anybody hears of the end: the process may exit then.
            drop(actor);
            let panicked = || JobOutcome::Failed(EngineError { message: format!("{name} panicked"), hint: None });
            let _ = sender.send((is_slot, outcome.unwrap_or_else(|_| panicked())));
        });
        spawned.map_err(|error| EngineError { message: format!("no thread for an actor: {error}"), hint: None })?;
    }
    let watch = Watch { membership: membership.clone(), shared: shared.clone(), wakeups: wakeups.clone(), slots: count };
    let (watched, shown) = (ended.clone(), progress.clone());
    std::thread::spawn(move || {
        let outcome = watch.until_the_end(&outcomes);
        shown.set_state("ended");
        *watched.outcome.lock() = Some(outcome);
        watched.told.notify_all();
    });
    Ok(JobHandle { clock, membership, progress, shared, wakeups, ended })
}

/// Waits for the actors of a worker; the end of one slot, or a failed helper, ends the others.
struct Watch {
    membership: Arc<Membership>,
    shared: Arc<Shared>,
    wakeups: Vec<Arc<Wakeup>>,
    slots: usize,
}

impl Watch {
    fn until_the_end(&self, outcomes: &crossbeam_channel::Receiver<(bool, JobOutcome)>) -> JobOutcome {
        let (mut worst, mut slots_left) = (JobOutcome::Finished, self.slots);
        while slots_left > 0 {
            let Ok((is_slot, outcome)) = outcomes.recv() else { break };
            if is_slot {
                slots_left -= 1;
            } else if matches!(outcome, JobOutcome::Stopped | JobOutcome::Finished) {
                continue;
            }
            let is_end = !matches!(outcome, JobOutcome::Finished);
            if severity(&outcome) > severity(&worst) {
                worst = outcome;
            }
            if is_end {
                self.shared.stopping.store(true, Ordering::SeqCst);
                self.wake();
            }
            if !is_slot {
                // A slot may be the one that is stuck: nobody waits for it.
                break;
            }
        }
        if slots_left == 0 {
            Worker::leave(&self.membership, &self.shared, self.slots, &worst);
        }
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.wake();
        self.await_helpers(outcomes, slots_left);
        worst
    }

    /// Helpers end by themselves now; state and connections are closed when they have.
    fn await_helpers(&self, outcomes: &crossbeam_channel::Receiver<(bool, JobOutcome)>, slots_left: usize) {
        const LONGEST: Duration = Duration::from_secs(2);
        let deadline = Instant::now() + LONGEST;
        if slots_left > 0 {
            return;
        }
        while outcomes.recv_deadline(deadline).is_ok() {}
    }

    fn wake(&self) {
        self.wakeups.iter().for_each(|wakeup| wakeup.raise());
    }
}

fn severity(outcome: &JobOutcome) -> u8 {
    match outcome {
        JobOutcome::Finished => 0,
        JobOutcome::Stopped => 1,
        JobOutcome::Failed(_) => 2,
        JobOutcome::Expired(_) => 3,
        JobOutcome::TakenOver(_) => 4,
    }
}

impl JobHandle {
    pub fn status(&self) -> JobStatus {
        self.progress.status()
    }

    /// Looks at what the control log says of the whole job.
    pub fn cluster<R>(&self, look: impl FnOnce(&Cluster) -> R) -> R {
        self.membership.view(look)
    }

    /// Hands over, seals, commits and leaves; `wait` then returns `Stopped`.
    pub fn stop(&self) {
        self.progress.set_state("draining");
        self.shared.leave(self.clock.steady());
        self.wakeups.iter().for_each(|wakeup| wakeup.raise());
    }

    /// Waits for the end of the job, or for the time-out (None).
    pub fn wait(&self, timeout: Option<Duration>) -> Option<JobOutcome> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut ended = self.ended.outcome.lock();
        while ended.is_none() {
            match deadline {
                Some(deadline) if self.ended.told.wait_until(&mut ended, deadline).timed_out() => return ended.clone(),
                Some(_) => {}
                None => self.ended.told.wait(&mut ended),
            }
        }
        ended.clone()
    }
}

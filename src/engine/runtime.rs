//! Starts, watches and stops a job in this process.
//!
//! ```text
//! join the control log → genesis → topics → fence earlier producers → per slot: recover → new producer → confirm → run
//! ```
//! That order is architecture §6: nothing is read as "the end" before everybody who could still write has been fenced, and nothing
//! is begun before ownership was confirmed after the producer's own InitProducerId.

use crate::assemble::{Job, ensure_topics};
use crate::commit::{Committer, SEALED_AHEAD_MAX};
use crate::config::{Environment, JobConfig};
use crate::ownership::{Ownership, Standing, retrying};
use crate::plan::JobPlan;
use crate::progress::{Progress, wall_clock_ms};
use crate::recovery;
use crate::region::{Input, Region, RegionSettings};
use crate::slot::{Shared, Slot};
use crate::topics;
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use streamshield_core::control::Genesis;
use streamshield_core::ids::RegionId;
use streamshield_core::ports::log::{LogReader, ReaderOptions, TopicSpec, Wakeup};
use streamshield_core::ports::source::Split;
use streamshield_core::watermark::Watermark;

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
    /// Another process owns the job now.
    TakenOver(String),
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
}

/// The topics that a job needs besides its sources': control, changelogs, exchanges, dead letters, late rows, sink topics. Reads the
/// sources' partitions; for `topics create` and `check`.
pub fn required_topics(plan: &JobPlan, config: &JobConfig, environment: &Environment) -> Result<Vec<TopicSpec>, EngineError> {
    let job = Job::open(plan.clone(), config.clone(), environment)?;
    Ok(job.topics(&job.discover()?))
}

/// Fetch buffers of one slot's exchange reader (M-1).
const EXCHANGE_BUFFER_BYTES: usize = 16 << 20;

/// A running job. It goes on when the handle is dropped.
pub struct JobHandle {
    progress: Arc<Progress>,
    shared: Arc<Shared>,
    wakeups: Vec<Arc<Wakeup>>,
    ended: Arc<(Mutex<Option<JobOutcome>>, Condvar)>,
}

/// Creates missing topics, fences earlier runs and starts the slots, which recover by themselves. Returns when recovery is under
/// way; never waits for the end.
pub fn start(plan: JobPlan, config: JobConfig, environment: Environment) -> Result<JobHandle, EngineError> {
    let job = Arc::new(Job::open(plan, config, &environment)?);
    let config = &job.config;
    ensure_topics(&environment, &[topics::control_spec(config)])?;
    let ownership = Arc::new(Ownership::join(environment.log.clone(), &config.name, config.slots, wall_clock_ms())?);
    let genesis = Arc::new(ownership.genesis(|| job.discover())?);
    check_genesis(&job, &genesis)?;
    ensure_topics(&environment, &job.topics(&genesis))?;
    let fenced = ownership.fence_earlier()?;
    if fenced > 0 {
        tracing::info!(producers = fenced, "fenced the producers of earlier runs");
    }
    let progress = Arc::new(Progress::default());
    progress.set_state("recovering");
    let assignment = job.assignment(&genesis);
    let shared = Arc::new(Shared::default());
    for (region, _) in &assignment {
        let stage = &job.plan.stages[region.stage.0 as usize];
        progress.add_region(*region, &stage.name);
        if job.sources.contains_key(&region.stage) {
            shared.sources_running.fetch_add(1, Ordering::SeqCst);
        }
    }
    let recovering = Arc::new(AtomicUsize::new(config.slots));
    let (mut wakeups, mut threads) = (Vec::new(), Vec::new());
    for number in 0..config.slots {
        let wakeup = Arc::new(Wakeup::default());
        wakeups.push(wakeup.clone());
        let starter = SlotStarter {
            number,
            regions: assignment.iter().filter(|(_, slot)| *slot == number).map(|(region, _)| *region).collect(),
            job: job.clone(),
            genesis: genesis.clone(),
            environment: environment.clone(),
            ownership: ownership.clone(),
            progress: progress.clone(),
            shared: shared.clone(),
            wakeup,
            recovering: recovering.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("slot-{number}")).spawn(move || starter.run());
        threads.push(thread.map_err(|error| EngineError { message: format!("no thread for a slot: {error}"), hint: None })?);
    }
    let ended = Arc::new((Mutex::new(None), Condvar::new()));
    watch(threads, progress.clone(), shared.clone(), wakeups.clone(), ended.clone());
    Ok(JobHandle { progress, shared, wakeups, ended })
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
    if job.sources.keys().any(|stage| !genesis.splits.contains_key(&stage.0)) {
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

/// Waits for the slots on a thread of its own and states the outcome; the end of one slot ends the others.
fn watch(
    threads: Vec<JoinHandle<JobOutcome>>,
    progress: Arc<Progress>,
    shared: Arc<Shared>,
    wakeups: Vec<Arc<Wakeup>>,
    ended: Arc<(Mutex<Option<JobOutcome>>, Condvar)>,
) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    let count = threads.len();
    for thread in threads {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let outcome =
                thread.join().unwrap_or_else(|_| JobOutcome::Failed(EngineError { message: "a slot panicked".into(), hint: None }));
            let _ = sender.send(outcome);
        });
    }
    std::thread::spawn(move || {
        let mut worst = JobOutcome::Finished;
        for outcome in receiver.iter().take(count) {
            if !matches!(outcome, JobOutcome::Finished) {
                shared.stopping.store(true, Ordering::SeqCst);
                wakeups.iter().for_each(|wakeup| wakeup.raise());
            }
            if severity(&outcome) > severity(&worst) {
                worst = outcome;
            }
        }
        progress.set_state("ended");
        *ended.0.lock() = Some(worst);
        ended.1.notify_all();
    });
}

fn severity(outcome: &JobOutcome) -> u8 {
    match outcome {
        JobOutcome::Finished => 0,
        JobOutcome::Stopped => 1,
        JobOutcome::Failed(_) => 2,
        JobOutcome::TakenOver(_) => 3,
    }
}

impl JobHandle {
    pub fn status(&self) -> JobStatus {
        self.progress.status()
    }

    /// Seals, commits and leaves; `wait` then returns `Stopped`.
    pub fn stop(&self) {
        self.progress.set_state("draining");
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.wakeups.iter().for_each(|wakeup| wakeup.raise());
    }

    /// Waits for the end of the job, or for the time-out (None).
    pub fn wait(&self, timeout: Option<Duration>) -> Option<JobOutcome> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut ended = self.ended.0.lock();
        while ended.is_none() {
            match deadline {
                Some(deadline) if self.ended.1.wait_until(&mut ended, deadline).timed_out() => return ended.clone(),
                Some(_) => {}
                None => self.ended.1.wait(&mut ended),
            }
        }
        ended.clone()
    }
}

/// What a slot's thread begins with.
struct SlotStarter {
    number: usize,
    regions: Vec<RegionId>,
    job: Arc<Job>,
    genesis: Arc<Genesis>,
    environment: Environment,
    ownership: Arc<Ownership>,
    progress: Arc<Progress>,
    shared: Arc<Shared>,
    wakeup: Arc<Wakeup>,
    recovering: Arc<AtomicUsize>,
}

impl SlotStarter {
    fn run(self) -> JobOutcome {
        match self.prepare() {
            Ok(Prepared::Slot(slot)) => slot.run(),
            Ok(Prepared::TakenOver(why)) => JobOutcome::TakenOver(why),
            Err(error) => JobOutcome::Failed(error),
        }
    }

    fn prepare(self) -> Result<Prepared, EngineError> {
        let started = Instant::now();
        let log = self.environment.log.clone();
        let options = ReaderOptions { buffer_bytes: EXCHANGE_BUFFER_BYTES, ..Default::default() };
        let mut exchange = retrying("make a reader", || log.reader(options.clone(), self.wakeup.clone()))?;
        let (mut regions, mut tables) = (Vec::new(), Vec::new());
        for (index, id) in self.regions.iter().enumerate() {
            let (region, of_region) = self.job.region(*id, index, &self.genesis, self.settings())?;
            regions.push(region);
            tables.push(of_region);
        }
        let recovered =
            recovery::recover(&mut regions, &tables, log.as_ref(), self.environment.state.as_ref(), exchange.as_mut(), &self.wakeup)?;
        let mut changelog_ends = BTreeMap::new();
        for (region, end) in regions.iter_mut().zip(recovered.changelog_ends) {
            changelog_ends.insert(region.id, end);
            let (epoch, watermark) = (region.epoch.0, region.output_watermark);
            self.progress.region(region.id, |entry| {
                entry.epoch = epoch;
                entry.watermark_ms = (watermark != Watermark::MIN && watermark != Watermark::MAX).then_some(watermark.0);
                entry.finished = region.finished;
            });
            if let Some(sink) = self.job.sinks.get(&region.id.stage) {
                sink.recover(region.id, region.epoch).map_err(|error| EngineError { message: error.message, hint: None })?;
            }
        }
        if regions.iter().any(|region| region.epoch.0 > 0) {
            let elapsed = started.elapsed().as_secs_f64();
            tracing::info!(
                slot = self.number,
                regions = regions.len(),
                epochs_replayed = recovered.epochs_replayed,
                seconds = elapsed,
                "recovered"
            );
        }
        // The producer comes last: its InitProducerId is followed by the confirmation, and that by the first transaction.
        let transactional_id = self.ownership.transactional_ids[self.number].clone();
        let writer = retrying("make a transactional producer", || log.writer(&transactional_id))?;
        if let Standing::TakenOver(by) = retrying("confirm the ownership", || self.ownership.confirm())? {
            return Ok(Prepared::TakenOver(format!("a later process (incarnation {}) owns the job", by.0)));
        }
        let slot = self.slot(regions, exchange, transactional_id, writer, changelog_ends)?;
        if self.recovering.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.progress.set_state("running");
        }
        Ok(Prepared::Slot(Box::new(slot)))
    }

    fn settings(&self) -> RegionSettings {
        let config = &self.job.config;
        RegionSettings {
            plan: self.job.plan.fingerprint,
            incarnation: self.ownership.incarnation,
            transactional_id: self.ownership.transactional_ids[self.number].clone(),
            on_bad_record: config.on_bad_record,
            commit_interval: config.commit_interval,
            flush_interval: config.flush_interval,
            state_bytes_max: self.job.state_bytes_max(&self.genesis),
            open_bytes_max: self.job.open_bytes_max(&self.genesis),
        }
    }

    fn slot(
        &self,
        mut regions: Vec<Region>,
        mut exchange: Box<dyn LogReader>,
        transactional_id: String,
        writer: Box<dyn streamshield_core::ports::log::TransactionalWriter>,
        changelog_ends: BTreeMap<RegionId, i64>,
    ) -> Result<Slot, EngineError> {
        let (sealed_sender, sealed) = crossbeam_channel::bounded(SEALED_AHEAD_MAX + 1);
        let (news_sender, news) = crossbeam_channel::unbounded();
        let committer = Committer {
            log: self.environment.log.clone(),
            ownership: self.ownership.clone(),
            transactional_id,
            progress: self.progress.clone(),
            changelog_ends,
            stopping: self.shared.stopping.clone(),
            wakeup: self.wakeup.clone(),
        };
        let spawned = std::thread::Builder::new()
            .name(format!("commit-{}", self.number))
            .spawn(move || committer.run(Some(writer), sealed, news_sender));
        spawned.map_err(|error| EngineError { message: format!("no thread for commits: {error}"), hint: None })?;
        let mut sources = BTreeMap::new();
        for region in &mut regions {
            match &region.input {
                Input::Source(source) => {
                    if source.finished {
                        self.shared.sources_running.fetch_sub(1, Ordering::SeqCst);
                        continue;
                    }
                    let stage = region.id.stage;
                    if let std::collections::btree_map::Entry::Vacant(entry) = sources.entry(stage) {
                        entry.insert(self.job.sources[&stage].reader(self.wakeup.clone()).map_err(source_failed)?);
                    }
                    let reader = sources.get_mut(&stage).expect("inserted above");
                    let split = Split { id: source.split.id, start: source.split.start, end: source.split.end };
                    reader.add_split(&split, region.position).map_err(source_failed)?;
                }
                Input::Exchange(input) => exchange.assign(&input.partition, region.position)?,
            }
        }
        let genesis: Vec<_> = regions.iter_mut().filter(|region| region.epoch.0 == 0).map(Region::genesis).collect();
        let mut slot = Slot {
            regions,
            sources,
            exchange,
            wakeup: self.wakeup.clone(),
            log: self.environment.log.clone(),
            sealed: sealed_sender,
            news,
            progress: self.progress.clone(),
            shared: self.shared.clone(),
            in_flight: 0,
            trims: self.job.config.log_dies_with_process,
            group_offsets: BTreeMap::new(),
            group_offsets_sent: Instant::now(),
        };
        if !genesis.is_empty() {
            slot.send(genesis);
        }
        Ok(slot)
    }
}

enum Prepared {
    Slot(Box<Slot>),
    TakenOver(String),
}

fn source_failed(error: streamshield_core::ports::source::SourceError) -> EngineError {
    EngineError { message: format!("a source can't be read: {error}"), hint: None }
}

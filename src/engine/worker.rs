//! A worker of a job: its actors, and what connects them.
//!
//! ```text
//! control reader · heart · steward (fences) · reporter · checkpointer · per slot: slot, committer, nursery
//! ```
//! Nobody waits for anybody here: what a worker does next it reads in the control log's view ([`crate::membership`]). The order of architecture §6 is
//! kept by who may do what when: the nursery takes the end of a changelog only when nobody is left to be fenced, the committer begins only after a
//! confirmation that followed its own InitProducerId.

use crate::assemble::Job;
use crate::checkpointer::{CHECKPOINT_JOBS_MAX, CheckpointNews, Checkpointer, Checkpoints};
use crate::clock::{Clock, LogBoundClock};
use crate::commit::{Committer, CommitterParts, NEWS_MAX, SEALED_AHEAD_MAX};
use crate::config::Environment;
use crate::flight::Notes;
use crate::heart::Heart;
use crate::membership::{Membership, retrying};
use crate::nursery::Nursery;
use crate::progress::Progress;
use crate::region::RegionSettings;
use crate::reporter::Reporter;
use crate::runtime::{EngineError, JobOutcome, Shared};
use crate::slot::Slot;
use crate::steward::Steward;
use crate::takeover::Takeovers;
use crate::topics;
use crate::turn::{Actor, Turn};
use crossbeam_channel::{Receiver, bounded};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use streamshield_core::cluster::{ControlRecord, Genesis, Settings, SlotId, Tier};
use streamshield_core::ports::log::{LogError, LogErrorKind, ReaderOptions, Wakeup};

/// Fetch buffers of one slot's exchange reader, and of its followers' (M-1).
const EXCHANGE_BUFFER_BYTES: usize = 16 << 20;
const FOLLOWER_BUFFER_BYTES: usize = 8 << 20;
/// In Tier 1 the end of a changelog, which no message tells of, must be known within a fraction of the second that a take-over may take.
const TAKEOVER_WAIT_MAX: Duration = Duration::from_millis(20);
/// Replicas compare digests at flush epochs: at least this often (E-4).
const DIGEST_INTERVAL_MAX: Duration = Duration::from_secs(1);
const CONTROL_IDLE: Duration = Duration::from_millis(20);

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
    pub(crate) fn new(
        job: &Arc<Job>,
        environment: &Environment,
        membership: Arc<Membership>,
        genesis: Arc<Genesis>,
        settings: Settings,
        letter_bytes_max: usize,
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
        let heart = Heart {
            membership: heart_membership,
            clock: heart_clock,
            shared: shared.clone(),
            progress: progress.clone(),
            interval,
            next,
            farewell: false,
        };
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
            worker.add_slot(job, environment, &genesis, &settings, letter_bytes_max, id, wakeup, checkpoints, checkpoint_news)?;
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
        letter_bytes_max: usize,
        id: SlotId,
        wakeup: Arc<Wakeup>,
        checkpoints: Checkpoints,
        checkpoint_news: Receiver<CheckpointNews>,
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
        let notes = |thread: &str| match &environment.flight {
            Some(flight) => flight.notes(&format!("{thread}-{}", id.slot)),
            None => Notes::default(),
        };
        let (sealed_sender, sealed) = bounded(SEALED_AHEAD_MAX + 1);
        let (news_sender, news) = bounded(NEWS_MAX);
        // A region is on its way at most once, in one of the two directions: neither ever fills up.
        let regions = genesis.stages.values().map(|stage| stage.regions as usize).sum::<usize>().max(1);
        let (arrivals_sender, arrivals) = bounded(regions);
        let (departures_sender, departures) = bounded(regions);
        let control = topics::control(&job.config.name);
        let written = job.topics(genesis).into_iter().map(|spec| spec.name).filter(|name| *name != control).map(Arc::from).collect();
        let committer = Committer::new(CommitterParts {
            log: log.clone(),
            topics: written,
            membership: membership.clone(),
            slot: id,
            progress: self.progress.clone(),
            clock: clock.clone(),
            shared: self.shared.clone(),
            sealed,
            news: news_sender,
            wakeup: committer_wakeup.clone(),
            slot_wakeup: wakeup.clone(),
            notes: notes("commit"),
        });
        let region_clock = LogBoundClock { clock: clock.clone(), membership: membership.clone() };
        let nursery = Nursery {
            slot: id,
            job: job.clone(),
            genesis: genesis.clone(),
            membership: membership.clone(),
            settings: region_settings(job, genesis, settings, letter_bytes_max, id, Arc::new(region_clock)),
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
            notes: notes("nursery"),
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
            notes: notes("slot"),
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
        let clean = matches!(outcome, JobOutcome::Finished) || shared.are_clean(slots);
        if let Err(error) = membership.append(&ControlRecord::Left { incarnation: membership.incarnation, clean }) {
            tracing::debug!(%error, "could not say goodbye; the others will notice");
        }
    }
}

fn region_settings(
    job: &Job,
    genesis: &Genesis,
    settings: &Settings,
    letter_bytes_max: usize,
    id: SlotId,
    clock: Arc<dyn Clock>,
) -> RegionSettings {
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
        letter_bytes_max,
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
            Err(error) if error.kind == LogErrorKind::OutOfRange => match self.membership.is_trimmed_away() {
                // It was cut off for so long that the others have trimmed what it has not read: they have given its regions away, and it begins at their
                // snapshot.
                Ok(true) => Turn::Ended(JobOutcome::Expired(error.message)),
                Ok(false) => unreadable(&error),
                Err(asked) if matches!(asked.kind, LogErrorKind::Retry | LogErrorKind::Missing) => Turn::Idle(CONTROL_IDLE),
                Err(asked) => unreadable(&asked),
            },
            Err(error) => unreadable(&error),
        }
    }
}

fn unreadable(error: &LogError) -> Turn {
    Turn::Ended(JobOutcome::Failed(EngineError {
        message: format!("the control topic can't be read: {error}"),
        hint: Some("was it trimmed, deleted or made again by hand?".into()),
    }))
}

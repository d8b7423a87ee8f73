//! Starts, watches and stops a worker of a job in this process.
//!
//! ```text
//! start ─ starting: turns until it is a member ─► worker: its actors ─ a thread each ─► handle: status, stop, wait
//! ```
//! The end of one slot, or a failed helper, ends the others; then the worker leaves the cluster.

pub use crate::assemble::Job;
use crate::clock::Clock;
use crate::config::{Environment, JobConfig};
use crate::membership::Membership;
use crate::plan::JobPlan;
use crate::progress::Progress;
pub use crate::starting::Starting;
use crate::turn::drive;
pub use crate::worker::{Part, Worker};
use crossbeam_channel::{RecvTimeoutError, bounded};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use streamshield_core::cluster::{Cluster, Standing};
use streamshield_core::ports::Connectors;
use streamshield_core::ports::checkpoint::Durability;
use streamshield_core::ports::log::{TopicSpec, Wakeup};

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
    /// E-4: the epoch at which this worker's state differed from the owner's, until it was rebuilt.
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

/// Between two turns of a start.
const START_PAUSE: Duration = Duration::from_millis(5);
/// Checkpoints that a worker fetches at once.
const RESTORES_MAX: usize = 8;
/// How soon it is noticed that a start is to be given up.
const GIVE_UP_INTERVAL: Duration = Duration::from_millis(20);

/// What a worker's standing means for it; None: it may go on.
pub fn gone(standing: &Standing) -> Option<JobOutcome> {
    match standing {
        Standing::Live => None,
        Standing::Replaced(by) => Some(JobOutcome::TakenOver(format!("a later process (incarnation {}) has this worker's name", by.0))),
        Standing::Expired => Some(JobOutcome::Expired("the other workers did not hear of this one for too long".into())),
        // Who asks has been a member, and was not refused then: it is so long gone that the log has forgotten it.
        Standing::Left | Standing::Unknown | Standing::Refused(_) => Some(JobOutcome::Expired("this worker is no member any more".into())),
    }
}

/// How long a worker that was asked to leave goes on working until the others have what it owns.
const HAND_OVER_TIME_MAX: Duration = Duration::from_millis(1_000);
/// When slots that leave, or a start that is given up, wait for the log no longer; what closing takes comes on top.
const LEAVE_TIME_MAX: Duration = Duration::from_millis(1_800);
/// How long helpers have to close what they hold once the slots have ended.
const CLOSING_TIME: std::ops::Range<Duration> = Duration::from_millis(200)..Duration::from_secs(2);

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
    /// The same of its helpers.
    helpers_alive: Vec<[AtomicU64; 2]>,
    /// Has one holder more for each checkpoint that is being fetched.
    restores: Arc<()>,
}

/// Without whom a slot gets on with nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    Committer,
    Nursery,
}

impl Shared {
    pub(crate) fn new(slots: usize) -> Shared {
        Shared {
            stopping: Arc::default(),
            leaving_since_ms: AtomicU64::new(u64::MAX),
            over: AtomicBool::new(false),
            slots_clean: AtomicUsize::new(0),
            slots_settled: (0..slots).map(|_| AtomicBool::new(false)).collect(),
            slots_alive: (0..slots).map(|_| AtomicU64::new(u64::MAX)).collect(),
            helpers_alive: (0..slots).map(|_| [AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX)]).collect(),
            restores: Arc::default(),
        }
    }

    /// A turn to fetch a checkpoint, until it is dropped; None: as many as may be are under way. All at once they would share the bandwidth until the
    /// time of each is over, and begin again together. Followers leave half of the turns to regions that nobody works on.
    pub(crate) fn restore_turn(&self, is_owned: bool) -> Option<Arc<()>> {
        let max = if is_owned { RESTORES_MAX } else { RESTORES_MAX / 2 };
        (Arc::strong_count(&self.restores) <= max).then(|| self.restores.clone())
    }

    /// Asks the worker to leave: to hand over what it owns, one region after the other and each with a successor that is ready, as when it is drained by an
    /// operator; then to stop. What could not be handed over in time is dropped at the end of an epoch.
    pub fn leave(&self, now: Duration) {
        let _ = self.leaving_since_ms.compare_exchange(u64::MAX, now.as_millis() as u64, Ordering::SeqCst, Ordering::SeqCst);
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving_since_ms.load(Ordering::SeqCst) != u64::MAX
    }

    /// The steady time at which the slots of a worker that was asked to leave end, whatever is still open.
    pub fn leaves_by(&self) -> Option<Duration> {
        let since_ms = self.leaving_since_ms.load(Ordering::SeqCst);
        (since_ms != u64::MAX).then(|| Duration::from_millis(since_ms) + LEAVE_TIME_MAX)
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

    pub fn helper_lives(&self, helper: Helper, slot: u32, now: Duration) {
        self.helpers_alive[slot as usize][helper as usize].store(now.as_millis() as u64, Ordering::Relaxed);
    }

    /// For somebody outside, until its next turn: nobody takes it for stuck.
    pub fn helper_waits(&self, helper: Helper, slot: u32) {
        self.helpers_alive[slot as usize][helper as usize].store(u64::MAX, Ordering::Relaxed);
    }

    /// Every sealed epoch of the slot is committed, and it takes no further steps.
    pub fn slot_left_clean(&self) {
        self.slots_clean.fetch_add(1, Ordering::SeqCst);
    }

    /// All of so many slots have left clean.
    pub(crate) fn are_clean(&self, slots: usize) -> bool {
        self.slots_clean.load(Ordering::SeqCst) == slots
    }

    /// The slot has what it owns. True: now all slots have.
    pub fn slot_settled(&self, slot: u32) -> bool {
        !self.slots_settled[slot as usize].swap(true, Ordering::SeqCst)
            && self.slots_settled.iter().all(|settled| settled.load(Ordering::SeqCst))
    }

    /// A slot whose last turn is longer ago than this.
    pub fn stuck_slot(&self, now: Duration, longest: Duration) -> Option<usize> {
        self.slots_alive.iter().position(|alive| is_stuck(alive, now, longest))
    }

    /// The same of the helpers of slots.
    pub fn stuck_helper(&self, now: Duration, longest: Duration) -> Option<(Helper, usize)> {
        let of_slot = |helper: Helper| self.helpers_alive.iter().position(|alive| is_stuck(&alive[helper as usize], now, longest));
        [Helper::Committer, Helper::Nursery].into_iter().find_map(|helper| Some((helper, of_slot(helper)?)))
    }
}

fn is_stuck(alive: &AtomicU64, now: Duration, longest: Duration) -> bool {
    let alive = alive.load(Ordering::Relaxed);
    alive != u64::MAX && (now.as_millis() as u64).saturating_sub(alive) > longest.as_millis() as u64
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

/// Joins the job as a worker and starts its threads. Returns when it is a member and recovery is under way; never waits for the end. Err: how it
/// ended before that; `Stopped` where `give_up` said so.
pub fn start(plan: JobPlan, config: JobConfig, environment: Environment, give_up: &dyn Fn() -> bool) -> Result<JobHandle, JobOutcome> {
    let clock = environment.clock.clone();
    let worker = unless_given_up(move |given_up| join(plan, config, environment, given_up), give_up)?;
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
        spawned.map_err(|error| failed(format!("no thread for an actor: {error}")))?;
    }
    let watch =
        Watch { clock: clock.clone(), membership: membership.clone(), shared: shared.clone(), wakeups: wakeups.clone(), slots: count };
    let (watched, shown) = (ended.clone(), progress.clone());
    std::thread::spawn(move || {
        let outcome = watch.until_the_end(&outcomes);
        shown.set_state("ended");
        *watched.outcome.lock() = Some(outcome);
        watched.told.notify_all();
    });
    Ok(JobHandle { clock, membership, progress, shared, wakeups, ended })
}

/// A worker's way into the cluster, on a thread of its own: calls to a log that is away may block for longer than one waits who wants the worker
/// to end. What hangs then is left behind.
fn unless_given_up<T: Send + 'static>(
    join: impl FnOnce(&AtomicBool) -> Result<T, JobOutcome> + Send + 'static,
    give_up: &dyn Fn() -> bool,
) -> Result<T, JobOutcome> {
    let given_up = Arc::new(AtomicBool::new(false));
    let (sender, joined) = bounded(1);
    let asked = given_up.clone();
    let spawned = std::thread::Builder::new().name("start".into()).spawn(move || {
        let _ = sender.send(join(&asked));
    });
    spawned.map_err(|error| failed(format!("no thread for the start: {error}")))?;
    let mut since: Option<Instant> = None;
    loop {
        match joined.recv_timeout(GIVE_UP_INTERVAL) {
            Ok(ended) => return ended,
            Err(RecvTimeoutError::Disconnected) => return Err(failed("the start panicked")),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if since.is_none() && give_up() {
            given_up.store(true, Ordering::SeqCst);
            since = Some(Instant::now());
        }
        if since.is_some_and(|since| since.elapsed() >= LEAVE_TIME_MAX) {
            return Err(JobOutcome::Stopped);
        }
    }
}

fn join(plan: JobPlan, config: JobConfig, environment: Environment, given_up: &AtomicBool) -> Result<Worker, JobOutcome> {
    let mut starting = Starting::new(plan, config, environment).map_err(JobOutcome::Failed)?;
    loop {
        // Who has said that it joins is a member in a moment, and leaves as one: the others need not miss it.
        if given_up.load(Ordering::SeqCst) && !starting.has_announced_itself() {
            return Err(JobOutcome::Stopped);
        }
        match starting.turn().map_err(JobOutcome::Failed)? {
            Some(worker) => return Ok(worker),
            None => starting.wakeup.wait(START_PAUSE),
        }
    }
}

fn failed(message: impl Into<String>) -> JobOutcome {
    JobOutcome::Failed(EngineError { message: message.into(), hint: None })
}

/// Waits for the actors of a worker; the end of one slot, or a failed helper, ends the others.
struct Watch {
    clock: Arc<dyn Clock>,
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
        if slots_left > 0 {
            return;
        }
        let left = self.shared.leaves_by().map_or(CLOSING_TIME.end, |by| by.saturating_sub(self.clock.steady()));
        let deadline = Instant::now() + left.clamp(CLOSING_TIME.start, CLOSING_TIME.end);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_hangs_is_given_up_in_time_and_one_that_hears_of_it_at_once() {
        let hangs = |_: &AtomicBool| -> Result<(), JobOutcome> {
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        };
        let began = Instant::now();
        assert!(matches!(unless_given_up(hangs, &|| true), Err(JobOutcome::Stopped)));
        assert!(began.elapsed() >= LEAVE_TIME_MAX && began.elapsed() < Duration::from_secs(30), "after {:?}", began.elapsed());
        let hears = |given_up: &AtomicBool| -> Result<(), JobOutcome> {
            while !given_up.load(Ordering::SeqCst) {
                std::thread::sleep(START_PAUSE);
            }
            Err(failed("it has heard"))
        };
        let ended = unless_given_up(hears, &|| true);
        assert!(matches!(&ended, Err(JobOutcome::Failed(error)) if error.message == "it has heard"), "{ended:?}");
    }

    #[test]
    fn who_wakes_up_so_late_that_the_log_has_forgotten_it_may_join_again() {
        assert!(gone(&Standing::Live).is_none());
        for standing in [Standing::Expired, Standing::Refused("the incarnation is older than what the log remembers".into())] {
            let outcome = gone(&standing);
            assert!(matches!(outcome, Some(JobOutcome::Expired(_))), "{standing:?}: {outcome:?}");
        }
    }

    #[test]
    fn a_start_that_nobody_gives_up_ends_as_it_ends() {
        assert!(matches!(unless_given_up(|_: &AtomicBool| Ok(7), &|| false), Ok(7)));
        let panics = |_: &AtomicBool| -> Result<(), JobOutcome> { panic!("on purpose") };
        let ended = unless_given_up(panics, &|| false);
        assert!(matches!(&ended, Err(JobOutcome::Failed(error)) if error.message == "the start panicked"), "{ended:?}");
    }
}

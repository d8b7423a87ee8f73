//! What all threads of a run have in common: the clock, the handles, and the wish to end.

use super::feed::Load;
use super::{Run, Stop};
use crate::journal::{Entry, Journal, Recorder, RunStage};
use crate::plan::Plan;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use streamshield_core::status::{ClusterStatus, RegionState};
use streamshield_faults::Stage;
use streamshield_faults::stage::{describe, is_settled};
use streamshield_workload::{Flow, Observer};

/// How soon a wish to end is noticed.
const TURN: Duration = Duration::from_millis(20);

/// Nothing that is done under these locks can leave their value half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Shared<'a> {
    pub run: &'a Run<'a>,
    pub plan: &'a Plan,
    pub seed: u64,
    pub stage: &'a Stage,
    pub load: &'a Arc<Load>,
    /// None: a user's job, whose output tells nothing about when a row was due.
    pub observer: Option<&'a Observer>,
    /// Since 1970, when the run began: the observer's clock is the wall's.
    pub began_wall_ms: i64,
    ids: AtomicU32,
    watching_ends: AtomicBool,
    latest: Mutex<Option<(Instant, ClusterStatus)>>,
    /// Regions of which somebody has told at least once how much is before them: of one that reads no topic nobody ever does.
    measured: Mutex<BTreeSet<String>>,
    /// Workers that have built their state anew, and settled.
    rebuilt: AtomicU64,
    /// Of the stage's events, those that the watcher has judged.
    events_seen: AtomicUsize,
}

impl<'a> Shared<'a> {
    pub fn new(run: &'a Run<'a>, stage: &'a Stage, load: &'a Arc<Load>, observer: Option<&'a Observer>) -> Shared<'a> {
        let began_wall_ms = streamshield_workload::time::wall_ms() - run.now_ms() as i64;
        Shared {
            run,
            plan: &run.request.plan,
            seed: run.request.seed,
            stage,
            load,
            observer,
            began_wall_ms,
            ids: AtomicU32::new(1),
            watching_ends: AtomicBool::new(false),
            latest: Mutex::new(None),
            measured: Mutex::default(),
            rebuilt: AtomicU64::new(0),
            events_seen: AtomicUsize::new(0),
        }
    }

    pub fn recorder(&self) -> MutexGuard<'_, Recorder> {
        lock(self.run.recorder)
    }

    /// A look at what was written so far.
    pub fn journal<R>(&self, question: impl FnOnce(&Journal) -> R) -> R {
        question(self.recorder().journal())
    }

    pub fn add(&self, entry: Entry) {
        self.run.add(entry);
    }

    pub fn say(&self, text: &str) {
        self.run.watcher.say(self.run.began.elapsed(), text);
    }

    pub fn now_ms(&self) -> u64 {
        self.run.now_ms()
    }

    pub fn wall_ms(&self, at_ms: u64) -> i64 {
        self.began_wall_ms + at_ms as i64
    }

    pub fn next_id(&self) -> u32 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Somebody wants the run to end, or the load can't go on.
    pub fn is_ending(&self) -> bool {
        self.run.watcher.wants_end() || !self.load.is_alive() || !self.is_observed()
    }

    pub fn expect_going(&self) -> Result<(), Stop> {
        if self.run.watcher.wants_end() {
            return Err(Stop::Interrupted);
        }
        if !self.load.is_alive() {
            return Err(Stop::Broken("the load has ended by itself".into()));
        }
        if !self.is_observed() {
            return Err(Stop::Broken("the observer has ended by itself".into()));
        }
        Ok(())
    }

    fn is_observed(&self) -> bool {
        self.observer.is_none_or(Observer::is_alive)
    }

    /// Records that the job has taken, as far as that is seen from outside.
    pub fn taken(&self) -> u64 {
        match self.observer {
            Some(observer) => observer.look(|seen| seen.rows(Flow::Passed)),
            None => {
                let taken = |status: &ClusterStatus| {
                    self.unmeasured(status).is_none().then(|| self.load.records_sent().saturating_sub(status.totals.lag_records))
                };
                self.latest(taken).flatten().unwrap_or(0)
            }
        }
    }

    /// Whether what was sent until a moment (since 1970) has come out, of each partition of the input: what the others take of later records is no matter.
    /// Of a user's job only their sum is known.
    pub fn has_taken(&self, sent: u64, until_wall_ms: i64) -> bool {
        let has_come =
            |observer: &Observer| observer.look(|seen| seen.passed_until_ms()).is_some_and(|passed_ms| passed_ms >= until_wall_ms);
        self.taken() >= sent && self.observer.is_none_or(has_come)
    }

    /// Whether all that was sent has come out, while nothing is sent.
    pub fn has_taken_all(&self) -> bool {
        let faulty_rows = if self.observer.is_some() { self.load.faulty_rows() } else { 0 };
        self.taken() >= self.load.records_sent() + faulty_rows
    }

    /// A region of which nobody tells any more how much is before it: whoever owns it may still restore it.
    pub fn unmeasured(&self, status: &ClusterStatus) -> Option<String> {
        unmeasured(&lock(&self.measured), status)
    }

    pub fn end_watching(&self) {
        self.watching_ends.store(true, Ordering::Relaxed);
    }

    pub fn is_watching(&self) -> bool {
        !self.watching_ends.load(Ordering::Relaxed)
    }

    /// False: the run ends.
    pub fn sleep(&self, time: Duration) -> bool {
        self.sleep_until(Instant::now() + time)
    }

    pub fn sleep_until(&self, until: Instant) -> bool {
        while !self.is_ending() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(TURN));
        }
        false
    }

    /// Waits without a limit but the end of the run.
    pub fn wait_until(&self, mut condition: impl FnMut() -> bool) -> bool {
        while !self.is_ending() {
            if condition() {
                return true;
            }
            std::thread::sleep(TURN);
        }
        false
    }

    pub fn wait_for(&self, within: Duration, condition: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + within;
        let mut met = false;
        self.wait_until(|| {
            met = condition();
            met || Instant::now() > deadline
        });
        met
    }

    pub fn method_began(&self) -> Instant {
        let at_ms = self.journal(|journal| journal.stages.iter().find(|span| span.stage == RunStage::Method).map(|span| span.from_ms));
        self.run.began + Duration::from_millis(at_ms.unwrap_or(0))
    }

    /// `asked`: before the question went out.
    pub fn set_latest(&self, asked: Instant, status: Option<ClusterStatus>) {
        if let Some(status) = &status {
            let told = status.regions.iter().filter(|region| region.lag_records.is_some());
            lock(&self.measured).extend(told.map(|region| region.region.clone()));
        }
        *lock(&self.latest) = status.map(|status| (asked, status));
    }

    /// What the job said of itself within the last seconds.
    pub fn latest<R>(&self, question: impl FnOnce(&ClusterStatus) -> R) -> Option<R> {
        let latest = lock(&self.latest);
        latest.as_ref().filter(|(at, _)| at.elapsed() < Duration::from_secs(4)).map(|(_, status)| question(status))
    }

    pub fn note_rebuilt(&self, workers: u64) {
        self.rebuilt.fetch_add(workers, Ordering::Relaxed);
    }

    pub fn set_events_seen(&self, events: usize) {
        self.events_seen.store(events, Ordering::Relaxed);
    }

    pub fn events_seen(&self) -> usize {
        self.events_seen.load(Ordering::Relaxed)
    }

    pub fn rebuilt(&self) -> u64 {
        self.rebuilt.load(Ordering::Relaxed)
    }

    /// By what was asked after a moment: the answer before a kill says nothing about after it.
    pub fn is_settled_since(&self, since: Instant) -> bool {
        let latest = lock(&self.latest);
        let settled = |status: &ClusterStatus| is_settled(status, self.plan.topology.workers as usize) && self.unmeasured(status).is_none();
        latest.as_ref().is_some_and(|(at, status)| *at > since && settled(status))
    }

    pub fn describe(&self) -> String {
        self.latest(describe).unwrap_or_else(|| "nobody answers".into())
    }
}

fn unmeasured(measured: &BTreeSet<String>, status: &ClusterStatus) -> Option<String> {
    let is_unknown = |lag_records: Option<u64>, region: &str| lag_records.is_none() && measured.contains(region);
    let mut regions = status.regions.iter().filter(|region| region.state != RegionState::Finished);
    regions.find(|region| is_unknown(region.lag_records, &region.region)).map(|region| region.region.clone())
}

/// A region of which nothing else is known.
#[cfg(test)]
pub(super) fn region_view(
    region: &str,
    owner: &str,
    state: RegionState,
    lag_records: Option<u64>,
) -> streamshield_core::status::RegionView {
    streamshield_core::status::RegionView {
        region: region.into(),
        stage: "orders".into(),
        stateful: true,
        owner: Some(owner.into()),
        state,
        epoch: None,
        lag_records,
        lag_ms: None,
        watermark_ms: None,
        state_bytes: 0,
        followers: Vec::new(),
        checkpoint: None,
        stopped: None,
        failures: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use streamshield_core::status::RegionView;

    #[test]
    fn a_lag_that_nobody_tells_any_more_is_not_known_and_one_that_nobody_ever_told_is_none() {
        let region = |name, state, lag_records| region_view(name, "w1", state, lag_records);
        let found = |regions: Vec<RegionView>| {
            let measured = BTreeSet::from(["s0/0".to_string(), "s0/1".to_string()]);
            unmeasured(&measured, &ClusterStatus { regions, ..ClusterStatus::default() })
        };
        let (known, file) = (region("s0/0", RegionState::Active, Some(0)), region("s1/0", RegionState::Active, None));
        assert_eq!(found(vec![known.clone(), file.clone()]), None);
        let restored = region("s0/1", RegionState::Active, None);
        assert_eq!(found(vec![known.clone(), restored, file]), Some("s0/1".into()));
        assert_eq!(found(vec![known, region("s0/1", RegionState::Finished, None)]), None);
    }
}

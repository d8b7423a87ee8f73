//! Once a second: what the job, its processes and its output do. And how busy the host is.

use super::finish::FAILOVER_MS_MAX;
use super::probes;
use super::scrape::Scraped;
use super::shared::Shared;
use super::states;
use crate::journal::{
    Checkpoints, Entry, HostNoise, Injection, Journal, Looked, OwnerChange, ProcessChange, ProcessEvent, RunStage, Sample, active,
    is_explained, settle_ms,
};
use crate::plan::Invariant;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use streamshield_core::status::{ClusterStatus, RegionState, RegionView, Takeover, TakeoverCause, WorkerStatus};
use streamshield_faults::{StageEvent, StageEventKind};
use streamshield_workload::Flow;

const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Counters of the workers are asked for so often.
const SCRAPE_EVERY: u64 = 5;
/// How long the phases of a take-over are waited for: as long as one may take.
const TAKEOVER_PATIENCE: Duration = Duration::from_millis(FAILOVER_MS_MAX);
const TIMER_INTERVAL: Duration = Duration::from_millis(10);
/// The fault after which a follower must be found to differ.
const SPOILS_STATE: &str = "process.lose_rows";

struct Watch<'s, 'a> {
    shared: &'s Shared<'a>,
    sent: u64,
    rows: u64,
    cpu_seconds: f64,
    sampled_wall_ms: i64,
    events_seen: usize,
    /// By region and offset of the decision.
    takeovers: BTreeSet<(String, i64)>,
    pending: BTreeMap<(String, i64), Pending>,
    scraped: Scraped,
    number: u64,
}

/// A take-over whose phases are not all known.
struct Pending {
    at_ms: u64,
    seen: Instant,
    takeover: Takeover,
    /// Whether this owner had nothing to do when it was last seen to have the region: soon it may be somebody else's.
    is_idle: bool,
}

impl Pending {
    fn look(&mut self, status: &ClusterStatus) {
        if let Some(is_idle) = has_nothing_to_do(status, &self.takeover) {
            self.is_idle = is_idle;
        }
    }
}

/// Until the run says that it is over.
pub(super) fn watch(shared: &Shared<'_>) {
    let mut watch = Watch {
        shared,
        sent: 0,
        rows: 0,
        cpu_seconds: 0.0,
        sampled_wall_ms: shared.wall_ms(shared.now_ms()),
        events_seen: 0,
        takeovers: BTreeSet::new(),
        pending: BTreeMap::new(),
        scraped: Scraped::default(),
        number: 0,
    };
    let mut next = Instant::now() + SAMPLE_INTERVAL;
    while shared.is_watching() {
        let left = next.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            std::thread::sleep(left.min(Duration::from_millis(50)));
            continue;
        }
        // Seconds that were missed are not made up for.
        next = Instant::now() + SAMPLE_INTERVAL;
        watch.second();
    }
    watch.events();
    watch.settle_takeovers(Duration::ZERO);
    watch.end();
    shared.set_events_seen(watch.events_seen);
}

impl Watch<'_, '_> {
    fn second(&mut self) {
        self.number += 1;
        let shared = self.shared;
        let asked = Instant::now();
        let status = shared.stage.cluster_status().ok();
        shared.set_latest(asked, status.clone());
        if let Some(status) = &status {
            self.take_overs(status);
        }
        self.events();
        self.settle_takeovers(TAKEOVER_PATIENCE);
        self.sample(status.as_ref());
        if self.number.is_multiple_of(SCRAPE_EVERY) {
            self.scrape();
        }
        let is_calm = || {
            shared.journal(|journal| {
                let in_method = journal.stages.last().is_some_and(|span| span.stage == RunStage::Method);
                in_method && active(journal, shared.now_ms(), settle_ms(journal)).next().is_none()
            })
        };
        if is_calm() {
            probes::look_once(shared, is_calm);
        }
    }

    fn sample(&mut self, status: Option<&ClusterStatus>) {
        let shared = self.shared;
        let (at_ms, sent) = (shared.now_ms(), shared.load.records_sent().max(self.sent));
        let wall_ms = shared.wall_ms(at_ms);
        let seconds = ((wall_ms - self.sampled_wall_ms).max(1)) as f64 / 1_000.0;
        let rows = shared.taken().max(self.rows);
        let (p50, p99) = match (shared.observer, status) {
            (Some(observer), _) => observer.look(|seen| {
                let slower = |share| {
                    [Flow::Passed, Flow::Windows]
                        .into_iter()
                        .filter_map(|flow| seen.latency_ms(flow, share, self.sampled_wall_ms, wall_ms))
                        .max()
                };
                (slower(0.5), slower(0.99))
            }),
            (None, Some(status)) => {
                let slowest = |of: fn(&WorkerStatus) -> Option<u64>| status.workers.iter().filter_map(of).max();
                (slowest(|worker| worker.latency_p50_ms), slowest(|worker| worker.latency_p99_ms))
            }
            (None, None) => (None, None),
        };
        let views = shared.stage.workers().map_or_else(|_| Vec::new(), |workers| workers.views());
        let cpu_seconds: f64 = views.iter().map(|view| view.cpu_seconds).sum();
        let resident = views.iter().filter_map(|view| streamshield_faults::stage::usage(view.pid?)).map(|usage| usage.rss_bytes).sum();
        let sample = Sample {
            at_ms,
            sent: sent - self.sent,
            rows: rows - self.rows,
            lag_records: status.map(|status| status.totals.lag_records),
            latency_p50_ms: p50,
            latency_p99_ms: p99,
            workers_alive: views.iter().filter(|view| view.pid.is_some()).count() as u32,
            rss_bytes: resident,
            cpu_percent: ((cpu_seconds - self.cpu_seconds).max(0.0) / seconds * 1_000.0).round() / 10.0,
        };
        (self.sent, self.rows, self.cpu_seconds, self.sampled_wall_ms) = (sent, rows, cpu_seconds, wall_ms);
        let show = |ms: Option<u64>| ms.map_or("–".into(), |ms| ms.to_string());
        let text = format!(
            "{} sent/s, {} rows/s, p50 {} p99 {} ms, lag {}, {} workers",
            sample.sent,
            sample.rows,
            show(sample.latency_p50_ms),
            show(sample.latency_p99_ms),
            show(sample.lag_records),
            sample.workers_alive
        );
        shared.add(Entry::Sample { sample });
        shared.run.watcher.tick(shared.run.began.elapsed(), &text);
    }

    /// Those that were not there before. What the job did while it started is none.
    fn take_overs(&mut self, status: &ClusterStatus) {
        // The oldest first, as they came.
        for takeover in status.takeovers.iter().rev() {
            let key = (takeover.region.clone(), takeover.offset);
            let known = !self.takeovers.insert(key.clone());
            match self.pending.get_mut(&key) {
                // Names are forgotten after a while: they stay as they were.
                Some(pending) => pending.takeover.phases_ms = takeover.phases_ms,
                None if !known && self.number > 1 => {
                    let (at_ms, seen, takeover) = (self.shared.now_ms(), Instant::now(), takeover.clone());
                    drop(self.pending.insert(key, Pending { at_ms, seen, takeover, is_idle: false }));
                }
                None => {}
            }
        }
        self.pending.values_mut().for_each(|pending| pending.look(status));
    }

    /// Writes those whose phases are known, and those for which nobody waits any longer.
    fn settle_takeovers(&mut self, patience: Duration) {
        let done = |pending: &Pending| pending.takeover.phases_ms.total().is_some() || pending.seen.elapsed() >= patience;
        let keys: Vec<_> = self.pending.iter().filter(|(_, pending)| done(pending)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(Pending { at_ms, takeover, is_idle, .. }) = self.pending.remove(&key) else { continue };
            let total_ms = takeover.phases_ms.total();
            let change = OwnerChange {
                at_ms,
                region: takeover.region,
                from: takeover.from,
                to: takeover.to,
                cause: cause(takeover.cause).into(),
                total_ms,
                is_idle: total_ms.is_none() && is_idle,
            };
            self.shared.add(Entry::OwnerChange { change });
        }
    }

    fn events(&mut self) {
        let events = self.shared.stage.events();
        let stage_began_ms = self.shared.stage.start_instant().saturating_duration_since(self.shared.run.began).as_millis() as u64;
        for event in events.iter().skip(self.events_seen) {
            let at_ms = event.at_ms + stage_began_ms;
            if let Some(event) = self.process_event(at_ms, event) {
                if matches!(event.what, ProcessChange::Died(_)) {
                    self.shared.say(&format!("{} {}", event.process, event.what.text()));
                }
                self.shared.add(Entry::Process { event });
            }
        }
        self.events_seen = events.len().max(self.events_seen);
    }

    fn process_event(&self, at_ms: u64, event: &StageEvent) -> Option<ProcessEvent> {
        let (process, what) = match &event.kind {
            StageEventKind::WorkerStarted { worker, .. } => (worker.clone(), ProcessChange::Started),
            StageEventKind::BrokerStarted { broker, .. } => (format!("broker {broker}"), ProcessChange::Started),
            StageEventKind::WorkerDied { worker, status, error, .. } => {
                let said = error.as_ref().map(|error| format!(", it said: {error}")).unwrap_or_default();
                (worker.clone(), self.death(at_ms, worker, &format!("{status}{said}")))
            }
            StageEventKind::BrokerDied { broker, status, .. } => {
                let broker = format!("broker {broker}");
                let what = self.death(at_ms, &broker, status);
                (broker, what)
            }
            StageEventKind::StoreStarted => ("store".into(), ProcessChange::Started),
            StageEventKind::StoreDied => ("store".into(), self.death(at_ms, "store", "ended")),
            StageEventKind::Note { text } => {
                self.shared.add(Entry::Note { note: crate::journal::Note { at_ms, text: text.clone() } });
                return None;
            }
        };
        Some(ProcessEvent { at_ms, process, what })
    }

    fn death(&self, at_ms: u64, process: &str, status: &str) -> ProcessChange {
        let explained = self.shared.journal(|journal| is_explained(journal, at_ms, process, status));
        let by_signal = ["signal: 9", "signal: 6"].iter().any(|signal| status.contains(signal));
        match explained {
            false => ProcessChange::Died(status.into()),
            true if by_signal => ProcessChange::Killed(status.into()),
            true => ProcessChange::Ended(status.into()),
        }
    }

    fn scrape(&mut self) {
        let Ok(workers) = self.shared.stage.workers() else { return };
        for view in workers.views() {
            if let Some(pid) = view.pid {
                self.scraped.ask(&view.name, pid, view.http);
            }
        }
    }

    fn end(&mut self) {
        self.scrape();
        let (begun, succeeded) = self.scraped.checkpoints();
        self.shared.add(Entry::Checkpoints { checkpoints: Checkpoints { begun, succeeded } });
        let diverged = self.scraped.diverged();
        let (shared, invariant) = (self.shared, Invariant::StateEqual);
        // A user's job has a tier of its own, and may have no state.
        let topology = &shared.plan.topology;
        let has_followers = shared.run.request.job.is_none() && topology.tier < 3 && topology.workers > 1;
        let stores =
            shared.journal(|journal| journal.steady_state.iter().rfind(|reading| reading.name == states::READING).map(|one| one.value));
        let looked = match (stores, self.scraped.compared()) {
            (Some(None), 0) => Looked::NotApplicable("the job keeps no state".into()),
            (stores, compared) => {
                let stores = stores.flatten().unwrap_or(0.0) as u64;
                state_looked_at(has_followers, shared.plan.method.is_empty(), compared, stores)
            }
        };
        // That the rows are right which come out of a state that was built anew is the oracle's to say, and shows no state.
        let looked = match looked {
            Looked::Not(why) if shared.rebuilt() > 0 => Looked::Not(format!("{why}; {} workers were only rebuilt", shared.rebuilt())),
            looked => looked,
        };
        // Everybody else who had caught up has shown all stores.
        let must_show = !shared.plan.method.is_empty() && shared.journal(|journal| journal.catch_up_ms.is_some());
        let looked = match looked {
            Looked::At(_) if must_show && stores.is_none() => Looked::Not(shared.journal(why_not_compared)),
            Looked::Not(why) if must_show && stores.is_none() => Looked::Not(format!("{why}; {}", shared.journal(why_not_compared))),
            looked => looked,
        };
        shared.add(Entry::Looked { invariant, looked });
        // A step that has hit somebody and does not count may have done it all the same, at another moment.
        let spoilt = |is_meant: fn(&Injection) -> bool| {
            self.shared.journal(|journal| journal.injections.iter().any(|one| one.fault == SPOILS_STATE && is_meant(one)))
        };
        // One that was cut short may have ended before anybody could compare.
        let is_whole = shared.journal(|journal| journal.stages.iter().any(|span| span.stage == RunStage::CatchingUp));
        let detail = match (diverged, spoilt(|one| one.count > 0), spoilt(|one| !one.hit.is_empty())) {
            (0, false, _) | (1.., _, true) => return,
            (0, true, _) if !is_whole => return,
            (0, true, _) => "E-4: rows were kept from followers, and none was found to differ from its owner".to_string(),
            (1.., _, false) => format!("E-4: the digest of a follower differed from its owner's {diverged} times"),
        };
        let finding = crate::journal::Finding { invariant, kind: "divergence".into(), place: "followers".into(), detail };
        self.shared.add(Entry::Finding { finding });
    }
}

/// By the first note that says so.
fn why_not_compared(journal: &Journal) -> String {
    let note = journal.notes.iter().find(|note| note.text.starts_with(states::NOT_COMPARED));
    note.map_or_else(|| "whole states could not be compared".into(), |note| note.text.clone())
}

/// Whether states were compared: digests of changes by followers, and whole stores that stood at the same epoch. The latter are no witness for the
/// followers at work.
fn state_looked_at(has_followers: bool, nothing_planned: bool, compared: u64, stores: u64) -> Looked {
    match compared + stores {
        _ if has_followers && compared == 0 => Looked::Not("no follower has compared its state with its owner's".into()),
        0 if nothing_planned => Looked::NotApplicable("there are no followers, and nothing was rebuilt".into()),
        0 => Looked::Not("no follower has compared its state, and no two stores of a region stood at the same epoch".into()),
        times => Looked::At(times),
    }
}

/// Whether the new owner works the region, and nothing is before it: then no commit is missing. None: the region is not its own.
fn has_nothing_to_do(status: &ClusterStatus, takeover: &Takeover) -> Option<bool> {
    let is_it = |region: &&RegionView| region.region == takeover.region && region.owner.as_deref() == Some(takeover.to.as_str());
    status.regions.iter().find(is_it).map(|region| match region.state {
        RegionState::Finished => true,
        RegionState::Active => region.stopped.is_none() && region.lag_records == Some(0),
        _ => false,
    })
}

fn cause(cause: TakeoverCause) -> &'static str {
    match cause {
        TakeoverCause::Expired => "expired",
        TakeoverCause::Left => "left",
        TakeoverCause::Replaced => "replaced",
        TakeoverCause::Moved => "moved",
        TakeoverCause::Failed => "failed",
    }
}

/// Sleeps 10 ms again and again, and adds up by how much it woke too late, where that is beyond the plan's limit.
pub(super) fn timer(shared: &Shared<'_>) {
    let (began, limit) = (Instant::now(), shared.plan.host.late.0);
    let mut noise = HostNoise::default();
    while shared.is_watching() {
        let asleep = Instant::now();
        std::thread::sleep(TIMER_INTERVAL);
        let late = asleep.elapsed().saturating_sub(TIMER_INTERVAL);
        noise.latest_ms = noise.latest_ms.max(late.as_millis() as u64);
        if late > limit {
            noise.late_ms += late.as_millis() as u64;
        }
    }
    noise.watched_ms = began.elapsed().as_millis() as u64;
    shared.add(Entry::Host { noise });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_that_are_equal_do_not_vouch_for_followers_at_work() {
        assert!(matches!(state_looked_at(true, false, 0, 3), Looked::Not(_)));
        assert_eq!(state_looked_at(true, false, 40, 3), Looked::At(43));
        assert_eq!(state_looked_at(false, false, 0, 3), Looked::At(3));
        assert!(matches!(state_looked_at(false, false, 0, 0), Looked::Not(_)));
        assert!(matches!(state_looked_at(false, true, 0, 0), Looked::NotApplicable(_)));
    }

    #[test]
    fn states_that_were_not_compared_say_why() {
        let mut journal = crate::test_kit::journal();
        assert_eq!(why_not_compared(&journal), "whole states could not be compared");
        let texts = ["w1 was slow", "states were not compared, or not all: w2 is away", "states were not compared, or not all: no"];
        journal.notes = texts.map(|text| crate::journal::Note { at_ms: 1, text: text.into() }).into();
        assert_eq!(why_not_compared(&journal), texts[1]);
    }

    #[test]
    fn a_region_without_records_before_it_owes_no_commit_and_others_do() {
        let takeover = Takeover {
            region: "s0/1".into(),
            from: "w1".into(),
            to: "w2".into(),
            cause: TakeoverCause::Expired,
            offset: 7,
            at_ms: 0,
            phases_ms: Default::default(),
        };
        let status = |owner: &str, state: RegionState, lag_records: Option<u64>| {
            let region = crate::runner::shared::region_view("s0/1", owner, state, lag_records);
            ClusterStatus { regions: vec![region], ..ClusterStatus::default() }
        };
        let owes = |owner: &str, state: RegionState, lag_records: Option<u64>| {
            has_nothing_to_do(&status(owner, state, lag_records), &takeover).map(|has_nothing| !has_nothing)
        };
        assert_eq!((owes("w2", RegionState::Active, Some(0)), owes("w2", RegionState::Finished, None)), (Some(false), Some(false)));
        assert_eq!(owes("w2", RegionState::Active, Some(3)), Some(true), "it stands still");
        assert_eq!(owes("w2", RegionState::Active, None), Some(true), "nobody knows");
        assert_eq!((owes("w2", RegionState::Fencing, Some(0)), owes("w3", RegionState::Active, Some(0))), (Some(true), None));

        let mut pending = Pending { at_ms: 0, seen: Instant::now(), takeover: takeover.clone(), is_idle: false };
        for (owner, lag_records, is_idle) in [("w3", 0, false), ("w2", 0, true), ("w3", 9, true), ("w2", 9, false), ("w3", 0, false)] {
            pending.look(&status(owner, RegionState::Active, Some(lag_records)));
            assert_eq!(pending.is_idle, is_idle, "{owner} with {lag_records} records before it: only w2 says something");
        }
    }
}

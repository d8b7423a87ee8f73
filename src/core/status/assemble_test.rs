use super::super::{PhasesMs, TakeoverReport};
use super::*;
use crate::cluster::{ControlRecord, Entry, FEATURE_LEVEL, Genesis, Joined, StageShape};
use crate::ids::{Epoch, PlanFingerprint};
use crate::ports::checkpoint::Durability;
use crate::tiers;

/// A control log that is written record by record.
struct Log {
    cluster: Cluster,
    offset: i64,
    now_ms: i64,
}

impl Log {
    /// Two workers, a stage of two regions, Tier 1.
    fn of_two_workers() -> Log {
        let mut log = Log { cluster: Cluster::default(), offset: 0, now_ms: 1_000_000 };
        log.append(&joined(1, "a"));
        log.append(&joined(2, "b"));
        let stages = [(0, StageShape { regions: 2, stateful: true, is_source: true })].into();
        log.append(&ControlRecord::Genesis(Genesis {
            plan: Some(PlanFingerprint(1)),
            splits: Default::default(),
            exchange_partitions: Default::default(),
            stages,
        }));
        log
    }

    fn append(&mut self, record: &ControlRecord) {
        self.now_ms += 20;
        self.cluster.apply(Entry { offset: self.offset, append_time_ms: Some(self.now_ms), payload: &record.encode() });
        self.offset += 1;
    }

    fn report(&mut self, incarnation: u64, report: &WorkerReport) {
        self.append(&ControlRecord::Report { incarnation: Incarnation(incarnation), report: report.encode() });
    }

    fn status(&self) -> ClusterStatus {
        ClusterStatus::assemble("orders", &self.cluster)
    }

    /// The region that an incarnation owns, and the offset that made it the owner.
    fn owned(&self, incarnation: u64) -> (String, i64) {
        let owned = self.cluster.owned(SlotId { incarnation: Incarnation(incarnation), slot: 0 });
        (owned[0].region.to_string(), owned[0].assignment)
    }
}

fn joined(incarnation: u64, worker: &str) -> ControlRecord {
    ControlRecord::Joined(Joined {
        incarnation: Incarnation(incarnation),
        nonce: incarnation,
        worker: worker.into(),
        slots: 1,
        rack: None,
        level: FEATURE_LEVEL,
        plan: PlanFingerprint(1),
        settings: tiers::settings(Tier::ActiveActive, 1),
        http: Some(format!("{worker}:9464")),
        died_in: Vec::new(),
    })
}

fn region_report(region: &str, epoch: u64) -> RegionReport {
    RegionReport {
        region: region.into(),
        stage: "count".into(),
        epoch,
        lag_records: Some(3),
        watermark_ms: Some(epoch as i64),
        ..Default::default()
    }
}

#[test]
fn an_empty_log_shows_an_empty_job() {
    let status = ClusterStatus::assemble("orders", &Cluster::default());
    assert!(status.is_empty() && status.workers.is_empty() && status.tier.is_none());
}

#[test]
fn owners_and_followers_are_put_together_with_what_they_report() {
    let mut log = Log::of_two_workers();
    let (of_a, _) = log.owned(1);
    let (of_b, _) = log.owned(2);
    let follower = FollowerReport { region: of_a.clone(), epoch: 48, diverged: None };
    log.report(1, &WorkerReport { state: "running".into(), records_in: 10, regions: vec![region_report(&of_a, 50)], ..Default::default() });
    let regions = vec![region_report(&of_b, 7)];
    log.report(2, &WorkerReport { records_in: 5, regions, followers: vec![follower], ..Default::default() });
    let status = log.status();

    assert_eq!((status.job.as_str(), status.tier, status.followers_wanted), ("orders", Some(Tier::ActiveActive), 1));
    assert_eq!(status.workers.iter().map(|worker| worker.worker.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let a = &status.workers[0];
    assert_eq!((a.regions_owned, a.regions_followed, a.records_in, a.state.as_deref()), (1, 1, 10, Some("running")));
    assert_eq!(a.http.as_deref(), Some("a:9464"));
    let region = status.regions.iter().find(|region| region.region == of_a).expect("the region");
    assert_eq!((region.owner.as_deref(), region.stage.as_str(), region.epoch), (Some("a"), "count", Some(50)));
    assert_eq!(region.state, RegionState::Active);
    let follower = &region.followers[0];
    assert_eq!((follower.worker.as_str(), follower.role, follower.epochs_behind), ("b", FollowerRole::Replica, Some(2)));
    assert_eq!((status.totals.records_in, status.totals.lag_records, status.totals.watermark_ms), (15, 6, Some(7)));
}

#[test]
fn what_a_former_owner_said_of_a_region_is_not_shown() {
    let mut log = Log::of_two_workers();
    let (of_a, _) = log.owned(1);
    log.report(1, &WorkerReport { regions: vec![region_report(&of_a, 50)], ..Default::default() });
    log.append(&ControlRecord::Left { incarnation: Incarnation(1), clean: false });
    let status = log.status();
    let region = status.regions.iter().find(|region| region.region == of_a).expect("the region");
    assert_eq!((region.owner.as_deref(), region.epoch, &region.state), (Some("b"), None, &RegionState::Fencing));
    assert_eq!(status.workers.len(), 1);
}

#[test]
fn a_take_over_has_the_phases_that_its_new_owner_measured() {
    let mut log = Log::of_two_workers();
    let (of_a, _) = log.owned(1);
    log.append(&ControlRecord::Left { incarnation: Incarnation(1), clean: false });
    let assignment = log.cluster.takeovers().next().expect("a take-over").offset;
    let phases_ms = PhasesMs { detect: Some(300), fence: Some(40), catch_up: Some(5), confirm: Some(6), first_commit: Some(100) };
    let stale = TakeoverReport { region: of_a.clone(), assignment: assignment - 1, phases_ms: PhasesMs::default() };
    let measured = TakeoverReport { region: of_a.clone(), assignment, phases_ms };
    log.report(2, &WorkerReport { takeovers: vec![stale, measured], ..Default::default() });
    let takeover = log.status().takeovers.into_iter().find(|takeover| takeover.region == of_a).expect("the take-over");
    assert_eq!((takeover.to.as_str(), takeover.cause, takeover.offset), ("b", TakeoverCause::Left, assignment));
    assert_eq!(takeover.phases_ms.total(), Some(451));
}

#[test]
fn checkpoints_and_quarantine_come_from_the_log() {
    let mut log = Log::of_two_workers();
    let (of_a, assignment) = log.owned(1);
    let id = log.cluster.owned(SlotId { incarnation: Incarnation(1), slot: 0 })[0].region;
    let incarnation = Incarnation(1);
    log.append(&ControlRecord::CheckpointDone { incarnation, region: id, epoch: Epoch(40), durability: Durability::Local });
    let shown = |log: &Log| log.status().regions.into_iter().find(|region| region.region == of_a).expect("the region");
    assert_eq!(shown(&log).checkpoint, Some(CheckpointView { epoch: Epoch(40), durability: Durability::Local, age_ms: None }));
    log.append(&ControlRecord::Failed { incarnation, region: id, assignment, epoch: Epoch(41), reason: "bad".into(), retry: false });
    assert_eq!(shown(&log).state, RegionState::Quarantined { reason: "bad".into() });
}

#[test]
fn what_a_drain_waits_for_are_the_regions_that_are_not_finished() {
    let mut log = Log::of_two_workers();
    let (_, assignment) = log.owned(1);
    let region = log.cluster.owned(SlotId { incarnation: Incarnation(1), slot: 0 })[0].region;
    assert_eq!((log.status().unfinished_regions_of("a"), log.status().unfinished_regions_of("b")), (1, 1));
    log.append(&ControlRecord::Finished { incarnation: Incarnation(1), region, assignment, epoch: Epoch(9) });
    log.append(&ControlRecord::Drain { worker: "a".into(), undo: false, incarnation: None });
    let status = log.status();
    assert_eq!((status.workers[0].regions_owned, status.unfinished_regions_of("a"), status.unfinished_regions_of("b")), (1, 0, 1));
}

#[test]
fn a_report_that_is_none_changes_nothing_but_its_worker_stays() {
    let mut log = Log::of_two_workers();
    log.append(&ControlRecord::Report { incarnation: Incarnation(1), report: "{".into() });
    let status = log.status();
    assert_eq!((status.workers.len(), status.workers[0].state.clone()), (2, None));
}

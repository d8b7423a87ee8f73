//! From the fold of the control log and the workers' reports to one picture: pure.

use super::{
    CheckpointView, ClusterStatus, FollowerReport, FollowerRole, FollowerView, RegionReport, RegionState, RegionView, Takeover,
    TakeoverCause, Totals, WorkerReport, WorkerStatus,
};
use crate::cluster::{Cluster, Member, Region, SlotId, Tier, Why};
use crate::ids::{Incarnation, RegionId};
use std::collections::BTreeMap;

impl ClusterStatus {
    /// What `cluster` and the reports in it tell of a job.
    pub fn assemble(job: &str, cluster: &Cluster) -> ClusterStatus {
        let assembly = Assembly::new(cluster);
        let regions: Vec<RegionView> = cluster.regions().map(|(id, region)| assembly.region(id, region)).collect();
        let mut workers: Vec<WorkerStatus> = cluster.members().map(|member| assembly.worker(member)).collect();
        workers.sort_by(|a, b| (&a.worker, a.incarnation).cmp(&(&b.worker, b.incarnation)));
        let in_ms = |at_ms: u64| at_ms.saturating_sub(cluster.log_clock_ms());
        let mut takeovers: Vec<Takeover> = cluster.takeovers().map(|takeover| assembly.takeover(takeover)).collect();
        takeovers.sort_by_key(|takeover| std::cmp::Reverse((takeover.offset, takeover.region.clone())));
        ClusterStatus {
            job: job.to_string(),
            tier: cluster.settings().map(|settings| settings.tier),
            followers_wanted: cluster.settings().map_or(0, |settings| settings.followers),
            level: cluster.level(),
            offset: cluster.applied(),
            log_clock_ms: cluster.log_clock_ms(),
            at_rest: cluster.is_at_rest(),
            starts_in_ms: cluster.starts_at_ms().map(in_ms),
            balances_in_ms: cluster.balances_at_ms().map(in_ms),
            totals: assembly.totals(&regions),
            workers,
            regions,
            takeovers,
            malformed_records: cluster.malformed(),
        }
    }

    /// Regions that a worker owns and that are not finished: what a drain takes away from it. A finished one stays where it is.
    pub fn unfinished_regions_of(&self, worker: &str) -> usize {
        let owned = self.regions.iter().filter(|region| region.owner.as_deref() == Some(worker));
        owned.filter(|region| region.state != RegionState::Finished).count()
    }

    /// Nobody has ever run the job.
    pub fn is_empty(&self) -> bool {
        self.offset.is_none() || (self.workers.is_empty() && self.regions.is_empty())
    }
}

/// Reports by where they are looked for.
struct Assembly<'a> {
    cluster: &'a Cluster,
    reports: BTreeMap<Incarnation, WorkerReport>,
    /// Only what the owner says of a region counts: a report may be older than the last change of owner.
    regions: BTreeMap<(Incarnation, String), RegionReport>,
    followers: BTreeMap<(Incarnation, String), FollowerReport>,
    /// A stage has one name, whoever says it.
    stages: BTreeMap<u32, String>,
    /// Regions owned and followed.
    counts: BTreeMap<Incarnation, (u32, u32)>,
}

impl<'a> Assembly<'a> {
    fn new(cluster: &'a Cluster) -> Assembly<'a> {
        let mut assembly = Assembly {
            cluster,
            reports: BTreeMap::new(),
            regions: BTreeMap::new(),
            followers: BTreeMap::new(),
            stages: BTreeMap::new(),
            counts: BTreeMap::new(),
        };
        for (_, region) in cluster.regions() {
            if let Some(owner) = region.owner {
                assembly.counts.entry(owner.slot.incarnation).or_default().0 += 1;
            }
            for follower in &region.followers {
                assembly.counts.entry(follower.slot.incarnation).or_default().1 += 1;
            }
        }
        for (incarnation, text) in cluster.reports() {
            let Some(mut report) = WorkerReport::decode(text) else { continue };
            for region in std::mem::take(&mut report.regions) {
                if let (Some(stage), false) = (stage_number(&region.region), region.stage.is_empty()) {
                    assembly.stages.entry(stage).or_insert_with(|| region.stage.clone());
                }
                assembly.regions.insert((incarnation, region.region.clone()), region);
            }
            for follower in std::mem::take(&mut report.followers) {
                assembly.followers.insert((incarnation, follower.region.clone()), follower);
            }
            assembly.reports.insert(incarnation, report);
        }
        assembly
    }

    /// The worker's name; of one that is forgotten, its slot.
    fn worker_of(&self, slot: SlotId) -> String {
        self.cluster.worker_name(slot.incarnation).map_or_else(|| slot.to_string(), str::to_string)
    }

    fn worker(&self, member: &Member) -> WorkerStatus {
        let report = self.reports.get(&member.incarnation);
        let (regions_owned, regions_followed) = self.counts.get(&member.incarnation).copied().unwrap_or_default();
        WorkerStatus {
            worker: member.worker.clone(),
            incarnation: member.incarnation.0,
            slots: member.slots,
            rack: member.rack.clone(),
            draining: member.draining,
            heard_ms_ago: self.cluster.log_clock_ms().saturating_sub(member.heard_ms),
            http: member.http.clone(),
            regions_owned,
            regions_followed,
            state: report.map(|report| report.state.clone()).filter(|state| !state.is_empty()),
            records_in: report.map_or(0, |report| report.records_in),
            rows_out: report.map_or(0, |report| report.rows_out),
            latency_p50_ms: report.and_then(|report| report.latency_p50_ms),
            latency_p99_ms: report.and_then(|report| report.latency_p99_ms),
            cpu_percent: report.and_then(|report| report.cpu_percent),
            resident_bytes: report.and_then(|report| report.resident_bytes),
        }
    }

    fn region(&self, id: RegionId, region: &Region) -> RegionView {
        let name = id.to_string();
        let said = region.owner.and_then(|owner| self.regions.get(&(owner.slot.incarnation, name.clone())));
        let checkpoint = region.checkpoint.map(|(epoch, durability)| CheckpointView {
            epoch,
            durability,
            age_ms: said.and_then(|report| report.checkpoint_age_ms),
        });
        RegionView {
            stage: self.stages.get(&id.stage.0).cloned().unwrap_or_else(|| id.stage.to_string()),
            stateful: region.stateful,
            owner: region.owner.map(|owner| self.worker_of(owner.slot)),
            state: self.state(region),
            epoch: said.map(|report| report.epoch),
            lag_records: said.and_then(|report| report.lag_records),
            lag_ms: said.and_then(|report| report.lag_ms),
            watermark_ms: said.and_then(|report| report.watermark_ms),
            state_bytes: said.map_or(0, |report| report.state_bytes),
            followers: self.followers(&name, region, said.map(|report| report.epoch)),
            checkpoint,
            stopped: said.and_then(|report| report.stopped.clone()),
            failures: region.failures_ever,
            region: name,
        }
    }

    fn state(&self, region: &Region) -> RegionState {
        if let Some(reason) = &region.quarantined {
            return RegionState::Quarantined { reason: reason.clone() };
        }
        match (region.owner, region.moving) {
            _ if region.finished => RegionState::Finished,
            (None, _) => RegionState::Unowned,
            (Some(_), _) if !region.must_fence.is_empty() => RegionState::Fencing,
            (Some(_), Some(moving)) => RegionState::Moving { to: self.worker_of(moving.to) },
            (Some(_), None) => RegionState::Active,
        }
    }

    fn followers(&self, name: &str, region: &Region, owner_epoch: Option<u64>) -> Vec<FollowerView> {
        let role = match self.cluster.settings().map(|settings| settings.tier) {
            Some(Tier::ActiveActive) => FollowerRole::Replica,
            _ => FollowerRole::Standby,
        };
        let view = |slot: SlotId, role: FollowerRole, ready: bool| {
            let said = self.followers.get(&(slot.incarnation, name.to_string()));
            let epoch = said.map(|report| report.epoch);
            FollowerView {
                worker: self.worker_of(slot),
                role,
                epoch,
                epochs_behind: owner_epoch.zip(epoch).map(|(owner, follower)| owner.saturating_sub(follower)),
                ready,
                diverged: said.and_then(|report| report.diverged),
            }
        };
        let followers = region.followers.iter().map(|follower| view(follower.slot, role, follower.ready));
        // A follower that is to become the owner is shown once, as what it is.
        let successor = region.moving.filter(|moving| region.followers.iter().all(|follower| follower.slot != moving.to));
        followers.chain(successor.map(|moving| view(moving.to, FollowerRole::Successor, moving.ready))).collect()
    }

    fn takeover(&self, takeover: &crate::cluster::Takeover) -> Takeover {
        let region = takeover.region.to_string();
        let measured = self.reports.get(&takeover.to.incarnation).and_then(|report| {
            report.takeovers.iter().find(|measured| measured.region == region && measured.assignment == takeover.offset)
        });
        Takeover {
            region,
            from: self.worker_of(takeover.from),
            to: self.worker_of(takeover.to),
            cause: takeover.why.into(),
            offset: takeover.offset,
            at_ms: takeover.log_clock_ms,
            phases_ms: measured.map(|measured| measured.phases_ms).unwrap_or_default(),
        }
    }

    fn totals(&self, regions: &[RegionView]) -> Totals {
        let sum = |figure: fn(&WorkerReport) -> u64| self.reports.values().map(figure).sum();
        let running = regions.iter().filter(|region| region.state != RegionState::Finished);
        Totals {
            records_in: sum(|report| report.records_in),
            rows_out: sum(|report| report.rows_out),
            late_rows: sum(|report| report.late_rows),
            bad_records: sum(|report| report.bad_records),
            dead_letters: sum(|report| report.dead_letters),
            state_bytes: regions.iter().map(|region| region.state_bytes).sum(),
            lag_records: regions.iter().filter_map(|region| region.lag_records).sum(),
            watermark_ms: running.filter_map(|region| region.watermark_ms).min(),
        }
    }
}

/// Of `s1/0`: 1.
fn stage_number(region: &str) -> Option<u32> {
    region.strip_prefix('s')?.split('/').next()?.parse().ok()
}

impl From<Why> for TakeoverCause {
    fn from(why: Why) -> TakeoverCause {
        match why {
            Why::Expired => TakeoverCause::Expired,
            Why::Left => TakeoverCause::Left,
            Why::Replaced => TakeoverCause::Replaced,
            Why::Moved => TakeoverCause::Moved,
            Why::Failed => TakeoverCause::Failed,
        }
    }
}

#[cfg(test)]
#[path = "assemble_test.rs"]
mod tests;

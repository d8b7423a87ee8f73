//! From chaos to calm, from calm to rest: what must come back once nothing goes wrong any more, and the reckoning.

use super::*;
use streamshield_core::cluster::Member;

impl Run<'_> {
    pub(super) fn look(&mut self) {
        self.plan(LOOK_MS, Deed::Look);
        self.retention.check(&self.sim, &self.store);
        let now_ms = self.sim.now_ms();
        let since_ms = now_ms - self.phase_since_ms;
        match self.phase {
            Phase::Chaos if since_ms >= self.scenario.chaos_ms => self.heal(),
            Phase::Calm => {
                let missing = self.oracle.lock().missing();
                if missing.is_empty() {
                    self.calm_ms = since_ms;
                    self.enter(Phase::Rest);
                } else if since_ms > CALM_MS_MAX {
                    let doing = self.doing();
                    self.sim.violation(format!("liveness: {since_ms} ms after the last fault there are missing {missing}; {doing}"));
                } else {
                    self.lift_quarantine(since_ms);
                }
            }
            Phase::Rest if self.is_at_rest() => self.reckon(),
            Phase::Rest if since_ms > REST_MS_MAX => {
                let doing = self.doing();
                self.sim.violation(format!("liveness: {since_ms} ms after all was out the workers are not at rest; {doing}"));
            }
            _ => {}
        }
    }

    /// Ends all faults, starts everybody, and ends the input.
    pub(super) fn heal(&mut self) {
        self.enter(Phase::Calm);
        let mut calm = FaultPlan::default();
        if let Some(rule) = self.broken {
            rule.change(&mut calm);
        }
        self.sim.set_faults(calm);
        self.crash_rate.set(0);
        self.sim.reconnect();
        self.store.reconnect();
        self.store.set_faults(StoreFaults { damaged: 0, refused: 0, call_ms_max: 0, ..self.scenario.store.clone() });
        self.schedule.set_mischief(Mischief::default());
        self.schedule.resume_all();
        self.agenda.retain(|_, deed| *deed == Deed::Look);
        for worker in 0..self.machines.len() {
            self.machines[worker].disk.set_faults(DiskFaults { write_fails: 0, damaged: 0, ..self.scenario.disk.clone() });
            self.plan(0, Deed::Start(worker));
        }
        // Only what the operator has asked for: a worker that says that it drains must leave nothing of that to its successor.
        for worker in std::mem::take(&mut self.drained) {
            let undone = ControlRecord::Drain { worker: self.machines[worker].name.clone(), undo: true, incarnation: None };
            self.say(undone).expect("nothing goes wrong any more");
        }
        self.feeder.end(self.scenario).expect("nothing goes wrong any more");
    }

    /// Regions that failed too often wait for a worker that joins: so somebody has to come.
    pub(super) fn lift_quarantine(&mut self, since_ms: i64) {
        let is_time = since_ms % 5_000 < LOOK_MS;
        if is_time
            && !self.control.lock().cluster.quarantined().is_empty()
            && let Some(client) = self.any_client()
        {
            self.sim.fire("restart for a quarantined region");
            self.died(client);
        }
    }

    /// Nothing is on its way any more, nobody drains, and every region has an owner with nothing to fence and as many followers as it is to have, all ready.
    pub(super) fn is_at_rest(&self) -> bool {
        let followers = (self.scenario.settings.followers as usize).min(self.machines.len() - 1);
        let control = self.control.lock();
        let all_live =
            self.lives.values().all(|life| life.joined.is_some()) && self.machines.iter().all(|machine| machine.client.is_some());
        let is_settled = |region: &streamshield_core::cluster::Region| {
            region.owner.is_some()
                && region.must_fence.is_empty()
                && region.moving.is_none()
                && region.followers.len() == followers
                && region.followers.iter().all(|follower| follower.ready && follower.replaces.is_none())
        };
        all_live
            && !self.sim.has_late_ends()
            && control.cluster.members().len() == self.machines.len()
            && control.cluster.members().all(|member| !member.draining)
            && control.cluster.regions().all(|(_, region)| is_settled(region))
    }

    /// What the cluster looks like, for a report.
    pub(super) fn doing(&self) -> String {
        let control = self.control.lock();
        let drains = |draining: bool| if draining { " drains" } else { "" };
        let member = |member: &Member| format!("{}={}{}", member.worker, member.incarnation.0, drains(member.draining));
        let members: Vec<_> = control.cluster.members().map(member).collect();
        let region = |id: RegionId, region: &streamshield_core::cluster::Region| {
            let owner = region.owner.map_or("nobody".into(), |owner| owner.slot.to_string());
            let followers: Vec<_> =
                region.followers.iter().map(|follower| format!("{}{}", follower.slot, if follower.ready { "" } else { "?" })).collect();
            let more = [
                region.moving.map(|moving| format!("moves to {}", moving.to)),
                (!region.must_fence.is_empty()).then(|| format!("fences {:?}", region.must_fence)),
                region.quarantined.clone().map(|why| format!("quarantined: {why}")),
            ];
            let more: Vec<_> = more.into_iter().flatten().collect();
            format!("{id}: {owner} [{}] {}", followers.join(" "), more.join(", "))
        };
        let regions: Vec<_> = control.cluster.regions().map(|(id, of)| region(id, of)).collect();
        let states: Vec<_> =
            self.lives.values().filter_map(|life| life.joined.as_ref()).map(|joined| joined.worker().progress.status().state).collect();
        format!("members {members:?} are {states:?}; regions {regions:?}")
    }

    /// The end: the output is the batch result, and all views are the log's.
    pub(super) fn reckon(&mut self) {
        for what in self.oracle.lock().judge() {
            self.sim.violation(what);
        }
        for life in self.lives.values() {
            let Some(joined) = &life.joined else { continue };
            let (applied, digest) = joined.worker().membership.view(|cluster| (cluster.applied(), cluster.digest()));
            let known = applied.and_then(|applied| self.control.lock().digest_at(applied));
            if known != Some(digest) {
                let name = &self.machines[life.worker].name;
                self.sim.violation(format!("C-1: {name} is at digest {digest} at control offset {applied:?}, the log says {known:?}"));
            }
        }
        self.enter(Phase::Over);
    }
}

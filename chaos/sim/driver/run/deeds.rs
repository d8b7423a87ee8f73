//! What befalls the workers, beside the faults in their calls: by the scenario's intervals, and drawn from the seed.

use super::*;

impl Run<'_> {
    pub(super) fn change_faults(&mut self) {
        if self.phase != Phase::Chaos {
            return;
        }
        // The empty plan takes its turn, too: constant chaos hides what comes out in calm.
        let mut plan = self.scenario.faults.get(self.fault_plan).cloned().unwrap_or_default();
        self.fault_plan = (self.fault_plan + 1) % (self.scenario.faults.len() + 1);
        if let Some(rule) = self.broken {
            rule.change(&mut plan);
        }
        self.sim.set_faults(plan);
        let interval_ms = self.scenario.fault_interval_ms;
        let after_ms = self.rng.random_range(1..=2 * interval_ms) as i64;
        self.plan(after_ms, Deed::Faults);
    }

    /// A worker that has a life, each as likely.
    pub(super) fn any_worker(&mut self) -> Option<usize> {
        let alive: Vec<_> = (0..self.machines.len()).filter(|worker| self.machines[*worker].client.is_some()).collect();
        (!alive.is_empty()).then(|| alive[self.rng.random_range(0..alive.len())])
    }

    pub(super) fn any_client(&mut self) -> Option<ClientId> {
        self.any_worker().and_then(|worker| self.machines[worker].client)
    }

    pub(super) fn leave(&mut self) {
        if let Some(client) = self.any_client()
            && let Some(joined) = self.lives.get(&client).and_then(|life| life.joined.as_ref())
        {
            self.sim.fire("worker leaves");
            joined.leave(std::time::Duration::from_millis((self.sim.now_ms() - START_MS).max(0) as u64));
        }
    }

    /// By an operator, who is a client of his own.
    pub(super) fn drain(&mut self) {
        let worker = self.rng.random_range(0..self.machines.len());
        let undo = self.rng.random_bool(0.5);
        self.sim.fire("operator drains");
        self.drained.insert(worker);
        let _ = self.say(ControlRecord::Drain { worker: self.machines[worker].name.clone(), undo, incarnation: None });
    }

    pub(super) fn say(&mut self, record: ControlRecord) -> Result<(), streamshield_core::ports::log::LogError> {
        let operator = self.sim.client("operator");
        let message = OutMessage {
            topic: topics::control(JOB).into(),
            partition: Some(0),
            key: None,
            payload: Some(record.encode()),
            headers: Vec::new(),
            timestamp_ms: None,
        };
        SimLog::new(&self.sim, operator).append(&message).map(drop)
    }

    pub(super) fn lose(&mut self) {
        let Some(worker) = self.any_worker() else { return };
        self.sim.fire("disk lost");
        if let Some(client) = self.machines[worker].client {
            self.died(client);
        }
        self.machines[worker].disk.lose();
    }

    /// Somebody starts the worker again elsewhere, though it only stands still.
    pub(super) fn twin(&mut self) {
        let still =
            (0..self.machines.len()).find(|worker| self.machines[*worker].client.is_some_and(|client| self.schedule.is_paused(client)));
        let Some(worker) = still else { return };
        self.sim.fire("twin starts");
        let machine = &mut self.machines[worker];
        machine.replaced += 1;
        let name = format!("{}.{}", machine.name, machine.replaced);
        machine.disk = SimDisk::new(&self.sim, &name, self.scenario.disk.clone());
        machine.client = None;
        self.start(worker);
    }

    /// Right after somebody is gone, the one who is to fence him may be hit as well: then there are two to be fenced.
    pub(super) fn chase(&mut self) {
        let percent = self.scenario.deeds.chase_percent;
        if percent == 0 || self.phase != Phase::Chaos {
            return;
        }
        let fencer = {
            let control = self.control.lock();
            let version = control.cluster.version();
            if std::mem::replace(&mut self.chased_version, version) == version {
                return;
            }
            control.cluster.unfenced().find_map(|(_, fencer)| fencer)
        };
        let Some(fencer) = fencer.filter(|_| self.rng.random_range(0..100) < percent) else { return };
        let is_it = |life: &Life| life.joined.as_ref().is_some_and(|joined| joined.worker().membership.incarnation == fencer);
        let Some(client) = self.lives.iter().find(|(_, life)| is_it(life)).map(|(client, _)| *client) else { return };
        self.sim.fire("fencer hit");
        match self.rng.random_range(0..3) {
            0 => self.died(client),
            1 => self.sim.cut(client, 2 * self.scenario.settings.expiry_ms as i64),
            _ => self.schedule.pause(client, 2 * self.scenario.settings.expiry_ms as i64),
        }
    }
}

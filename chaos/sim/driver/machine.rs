//! A machine with its disk, and what a worker that starts on it gets: the real engine's environment over simulated ports.

use crate::broken::{BrokenCheckpoints, BrokenLog, Rule};
use crate::control::SharedControl;
use crate::job::JOB;
use crate::process::{Backlog, SimClock};
use crate::scenario::Scenario;
use crate::table::SimTables;
use std::path::Path;
use std::sync::Arc;
use streamshield_core::ids::{PlanFingerprint, RegionId};
use streamshield_core::ports::Connectors;
use streamshield_core::ports::checkpoint::{CheckpointError, CheckpointInfo, CheckpointRequest, CheckpointStore, Restored, Saved};
use streamshield_core::ports::log::Log;
use streamshield_engine::config::{BadRecordPolicy, Environment, JobConfig, LateRowPolicy};
use streamshield_sim::{ClientId, Sim, SimCheckpoints, SimDisk, SimLog, SimState, SimStore};

/// A worker's name, the machine that it runs on at the moment, and its latest life.
pub struct Machine {
    pub name: String,
    pub disk: SimDisk,
    pub client: Option<ClientId>,
    pub wall_error_ms: i64,
    /// How many machines have had this name.
    pub replaced: u32,
}

/// What the job's settings are on this worker.
pub fn config(scenario: &Scenario, worker: &str) -> JobConfig {
    JobConfig {
        name: JOB.into(),
        slots: scenario.slots,
        worker: worker.into(),
        rack: None,
        http: None,
        cluster: scenario.settings.clone(),
        checkpoint_interval: scenario.checkpoint_interval,
        parallelism: scenario.parallelism,
        commit_interval: scenario.commit_interval,
        flush_interval: scenario.flush_interval,
        memory_budget_bytes: scenario.memory_budget_bytes,
        on_bad_record: BadRecordPolicy::DeadLetter,
        late_rows: LateRowPolicy::SideTopic,
        replication_factor: None,
        log_dies_with_process: false,
    }
}

/// The ports of one life of a worker.
pub struct Ports<'a> {
    pub sim: &'a Sim,
    pub store: &'a SimStore,
    pub control: &'a SharedControl,
    pub broken: Option<Rule>,
}

impl Ports<'_> {
    pub fn environment(&self, machine: &Machine, client: ClientId, backlog: &Backlog) -> Environment {
        let log: Arc<dyn Log> = Arc::new(SimLog::new(self.sim, client));
        let log: Arc<dyn Log> = match self.broken {
            Some(rule) => Arc::new(BrokenLog { rule, log, sim: self.sim.clone(), client, control: self.control.clone() }),
            None => log,
        };
        let mut connectors = Connectors::default();
        SimTables::over(log.clone()).add_to(&mut connectors);
        let checkpoints = SimCheckpoints::new(self.store, &machine.disk, client);
        let checkpoints: Arc<dyn CheckpointStore> = Arc::new(TidyCheckpoints { store: checkpoints, disk: machine.disk.clone() });
        let checkpoints: Arc<dyn CheckpointStore> = match self.broken {
            Some(rule) => Arc::new(BrokenCheckpoints { rule, store: checkpoints }),
            None => checkpoints,
        };
        Environment {
            log,
            connectors,
            state: Arc::new(SimState::new(&machine.disk, client)),
            checkpoints: Some(checkpoints),
            clock: Arc::new(SimClock::new(self.sim, client, machine.wall_error_ms)),
            nonce: self.sim.draw(0..u64::MAX),
            spawn: backlog.spawn(),
            parallel: false,
            flight: None,
        }
    }
}

/// The engine deletes folders of copies and downloads by the file system; here they lie on a simulated disk.
struct TidyCheckpoints {
    store: SimCheckpoints,
    disk: SimDisk,
}

impl CheckpointStore for TidyCheckpoints {
    fn save(&self, request: &CheckpointRequest) -> Result<Saved, CheckpointError> {
        let saved = self.store.save(request);
        if let Some(directory) = &request.directory {
            self.disk.remove_folder(directory);
        }
        saved
    }

    fn restore(&self, region: RegionId, plan: PlanFingerprint, directory: &Path) -> Result<Option<Restored>, CheckpointError> {
        self.disk.remove_folder(directory);
        self.store.restore(region, plan, directory)
    }

    fn list(&self, region: RegionId) -> Result<Vec<CheckpointInfo>, CheckpointError> {
        self.store.list(region)
    }

    fn maintain(&self, region: RegionId, still_owner: &mut dyn FnMut() -> bool) -> Result<(), CheckpointError> {
        self.store.maintain(region, still_owner)
    }
}

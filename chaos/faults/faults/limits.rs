//! Faults of resources: too little memory, too little of a processor, too few files.

use super::process::restart;
use super::target::Setup;
use super::{Evidence, nothing};
use crate::api::{Fault, FaultError, Fired};
use crate::stage::Stage;
use crate::stage::limits::{ControlGroup, Resource, set_open_files_max};
use std::time::Duration;

/// What a process says that got EMFILE.
const TOO_MANY_FILES: &str = "Too many open files";
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Looks again and again until it has been seen or the time is over; what was seen last.
fn wait_for_bites(within: Duration, mut look: impl FnMut() -> u64) -> u64 {
    let deadline = std::time::Instant::now() + within;
    loop {
        let seen = look();
        if seen > 0 || std::time::Instant::now() > deadline {
            return seen;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// `process.memory_limit`
pub(crate) struct Memory {
    setup: Setup,
    limited: Option<(String, ControlGroup)>,
}

impl Memory {
    pub(crate) fn new(setup: Setup) -> Memory {
        Memory { setup, limited: None }
    }
}

impl Fault<Stage> for Memory {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let (bytes, within) = (self.setup.given.bytes("memory"), self.setup.given.duration("within"));
        let worker = self.setup.worker(stage)?;
        let group = ControlGroup::create(Resource::Memory, stage.watchdog())?;
        group.limit_memory(bytes)?;
        stage.workers()?.add_cgroup(&worker, &group.path)?;
        // What a process has is counted where it got it: only a new one lives within the limit.
        let restarted = restart(stage, &worker);
        let killed = wait_for_bites(within, || group.bites());
        self.limited = Some((worker.clone(), group));
        restarted?;
        let mut evidence = Evidence::default();
        evidence.add(worker, format!("the kernel killed {killed} processes beyond {bytes} bytes"), killed);
        Ok(evidence.fired())
    }

    fn undo(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let Some((worker, group)) = &mut self.limited else { return nothing() };
        stage.workers()?.remove_cgroup(worker, &group.path)?;
        let (killed, mut evidence) = (group.bites(), Evidence::default());
        group.remove()?;
        evidence.add(worker.as_str(), format!("the kernel killed {killed} processes"), killed);
        self.limited = None;
        Ok(evidence.fired())
    }
}

/// `process.cpu_limit`
pub(crate) struct Cpu {
    setup: Setup,
    limited: Vec<(String, ControlGroup)>,
}

impl Cpu {
    pub(crate) fn new(setup: Setup) -> Cpu {
        Cpu { setup, limited: Vec::new() }
    }

    fn bites(&self) -> Fired {
        let mut evidence = Evidence::default();
        for (worker, group) in &self.limited {
            let bites = group.bites();
            evidence.add(worker.clone(), format!("{worker} was throttled in {bites} periods of 100 ms"), bites);
        }
        evidence.fired()
    }
}

impl Fault<Stage> for Cpu {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let share = self.setup.given.share("share");
        for worker in self.setup.workers(stage)? {
            let group = ControlGroup::create(Resource::Cpu, stage.watchdog())?;
            group.limit_cpu(share)?;
            group.add(stage.workers()?.process(&worker)?.pid)?;
            stage.workers()?.add_cgroup(&worker, &group.path)?;
            self.limited.push((worker, group));
        }
        Ok(self.bites())
    }

    fn undo(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let fired = self.bites();
        while let Some((worker, group)) = self.limited.last_mut() {
            stage.workers()?.remove_cgroup(worker, &group.path)?;
            group.remove()?;
            self.limited.pop();
        }
        Ok(fired)
    }
}

/// `process.file_limit`
pub(crate) struct Files {
    setup: Setup,
    /// The worker, and how often it had said before that there are too many files.
    limited: Option<(String, u64)>,
}

impl Files {
    pub(crate) fn new(setup: Setup) -> Files {
        Files { setup, limited: None }
    }
}

/// How often a worker has said that there are too many files.
fn complaints(stage: &Stage, worker: &str) -> u64 {
    stage.log(worker).matches(TOO_MANY_FILES).count() as u64
}

impl Fault<Stage> for Files {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let (limit, within) = (self.setup.given.count("files"), self.setup.given.duration("within"));
        let worker = self.setup.worker(stage)?;
        let before = complaints(stage, &worker);
        self.limited = Some((worker.clone(), before));
        stage.workers()?.set_open_files_max(&worker, Some(limit))?;
        restart(stage, &worker)?;
        let seen = wait_for_bites(within, || complaints(stage, &worker).saturating_sub(before));
        let mut evidence = Evidence::default();
        evidence.add(worker, format!("with {limit} files it said {seen} times: {TOO_MANY_FILES}"), seen);
        Ok(evidence.fired())
    }

    fn undo(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let Some((worker, before)) = &self.limited else { return nothing() };
        let seen = complaints(stage, worker).saturating_sub(*before);
        stage.workers()?.set_open_files_max(worker, None)?;
        // The hard limit was left alone, so the living one gets its files back without a restart.
        if let Ok(process) = stage.workers()?.process(worker) {
            set_open_files_max(process.pid, libc::RLIM_INFINITY)?;
        }
        let mut evidence = Evidence::default();
        evidence.add(worker, format!("it said {seen} times: {TOO_MANY_FILES}"), seen);
        self.limited = None;
        Ok(evidence.fired())
    }
}

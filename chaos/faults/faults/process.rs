//! Faults of processes: they die, they are stopped, they sleep, a part of them fails again and again.

use super::target::Setup;
use super::{Evidence, nothing};
use crate::api::{Fault, FaultError, Fired};
use crate::stage::{Process, Stage, process_state};
use anyhow::Context;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::status::ClusterStatus;

const CRASH_VARIABLE: &str = "STREAMSHIELD_CRASH_AT";
const FAIL_VARIABLE: &str = "STREAMSHIELD_FAIL_AT";
/// A kill or a start is done within this, however busy the machine is.
const PROCESS_TIME_MAX: Duration = Duration::from_secs(30);
/// How often the job is asked who takes over: a take-over lasts a second.
const TAKER_INTERVAL: Duration = Duration::from_millis(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What a worker logs when a replica on it leaves rows out.
const ROWS_LOST: &str = "fail point engine::lose_rows";
/// What a worker logs when one of its regions fails.
const REGION_FAILED: &str = "the region has failed";

/// Signals all of them before it waits for any: they die at the same moment.
fn kill_at_once(stage: &Stage, workers: &[String], evidence: &mut Evidence) -> Result<(), FaultError> {
    let mut victims: Vec<(String, Arc<Process>)> = Vec::new();
    for worker in workers {
        // Who died by itself meanwhile is not counted.
        match stage.workers()?.process(worker) {
            Ok(process) => victims.push((worker.clone(), process)),
            Err(FaultError::NoTarget(_)) => {}
            Err(error) => return Err(error),
        }
    }
    for (_, process) in &victims {
        process.signal(libc::SIGKILL);
    }
    for (worker, process) in victims {
        let ended = process.wait(PROCESS_TIME_MAX).with_context(|| format!("{worker} was killed and does not end"))?;
        let by_it = ended.status.signal() == Some(libc::SIGKILL);
        evidence.add(worker, format!("pid {} is gone ({})", process.pid, ended.status), u64::from(by_it));
    }
    Ok(())
}

/// `process.kill`, `process.kill_all`
pub(crate) struct Kill(pub Setup);

impl Fault<Stage> for Kill {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let workers = self.0.workers(stage)?;
        let away = self.0.given.duration("restart_after");
        if !away.is_zero() {
            workers.iter().try_for_each(|worker| stage.workers()?.hold_for(worker, away))?;
        }
        let mut evidence = Evidence::default();
        kill_at_once(stage, &workers, &mut evidence)?;
        Ok(evidence.fired())
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        nothing()
    }
}

/// `process.kill_taker`
pub(crate) struct KillTaker {
    setup: Setup,
    /// Who was killed, also by tries that nobody has taken the region over in.
    killed: Vec<String>,
}

impl KillTaker {
    pub(crate) fn new(setup: Setup) -> KillTaker {
        KillTaker { setup, killed: Vec::new() }
    }
}

impl Fault<Stage> for KillTaker {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let region = self.setup.region(&stage.cluster_status()?, |region| region.owner.is_some())?;
        let (name, owner) = (region.region.clone(), region.owner.unwrap_or_default());
        let mut evidence = Evidence::default();
        // Else it would come back and be the taker itself.
        let _away = stage.workers()?.hold(&owner)?;
        kill_at_once(stage, std::slice::from_ref(&owner), &mut evidence)?;
        self.killed.extend(evidence.0.hit.iter().cloned());
        let deadline = Instant::now() + self.setup.given.duration("within");
        let taker = loop {
            // While nobody answers the taker may be on its way.
            if let Ok(status) = stage.cluster_status()
                && let Some(taker) = owner_of(&status, &name).filter(|taker| *taker != owner)
            {
                break taker;
            }
            if Instant::now() > deadline {
                return Err(FaultError::NoTarget(format!("nobody has taken {name} over from {owner}, which was killed")));
            }
            std::thread::sleep(TAKER_INTERVAL);
        };
        let owner_died = evidence.0.count;
        kill_at_once(stage, std::slice::from_ref(&taker), &mut evidence)?;
        let mut fired = evidence.fired();
        if fired.count == owner_died {
            return Err(FaultError::NoTarget(format!("{taker}, which took {name} over from {owner}, had died by itself")));
        }
        fired.hit.append(&mut self.killed);
        fired.hit.sort();
        fired.hit.dedup();
        fired.hit.push(name);
        Ok(fired)
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        Ok(Fired { hit: std::mem::take(&mut self.killed), ..Fired::default() })
    }
}

fn owner_of(status: &ClusterStatus, region: &str) -> Option<String> {
    status.regions.iter().find(|view| view.region == region)?.owner.clone()
}

/// `process.crash_at`
pub(crate) struct CrashAt(pub Setup);

impl Fault<Stage> for CrashAt {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let (workers, given) = (stage.workers()?, &self.0.given);
        let point = format!("{}:{}", given.choice("point"), given.count("passing"));
        let within = given.duration("within");
        let worker = self.0.worker(stage)?;
        let before = workers.view(&worker)?;
        workers.set_once(&worker, CRASH_VARIABLE, &point)?;
        workers.process(&worker)?.terminate(PROCESS_TIME_MAX)?;
        workers.wait_started_after(&worker, before.starts, PROCESS_TIME_MAX)?;
        let armed = match workers.process(&worker) {
            Ok(process) => process,
            Err(_) => return Err(FaultError::NoTarget(format!("{worker} ended before it was looked at"))),
        };
        let mut evidence = Evidence::default();
        match armed.wait(within) {
            Some(ended) if ended.status.signal() == Some(libc::SIGABRT) => {
                evidence.add(worker, format!("pid {} aborted at {point} ({})", armed.pid, ended.status), 1);
            }
            Some(ended) => evidence.add(worker, format!("pid {} ended before {point}: {}", armed.pid, ended.status), 0),
            None => {
                // Armed it would die at some other time, as nobody's fault.
                armed.terminate(PROCESS_TIME_MAX)?;
                evidence.add(worker, format!("pid {} did not pass {point} within {within:?}", armed.pid), 0);
            }
        }
        Ok(evidence.fired())
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        nothing()
    }
}

/// `process.lose_rows`
pub(crate) struct LoseRows(pub Setup);

impl Fault<Stage> for LoseRows {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let (workers, within) = (stage.workers()?, self.0.given.duration("within"));
        let worker = self.0.worker(stage)?;
        let lost = |worker: &str| stage.log(worker).matches(ROWS_LOST).count() as u64;
        let before = lost(&worker);
        workers.set_once(&worker, FAIL_VARIABLE, &format!("engine::lose_rows:{}", self.0.given.count("passing")))?;
        restart(stage, &worker)?;
        let armed = workers.process(&worker)?;
        let deadline = Instant::now() + within;
        while lost(&worker) == before && Instant::now() < deadline {
            std::thread::sleep(LOOK_INTERVAL);
        }
        let count = lost(&worker) - before;
        let evidence = if count > 0 {
            format!("replicas on {worker} began to leave rows out")
        } else {
            // Armed it would begin at some other time, as nobody's fault.
            armed.terminate(PROCESS_TIME_MAX)?;
            format!("no replica on {worker} left rows out within {within:?}")
        };
        Ok(Fired { evidence, hit: vec![worker], count })
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        nothing()
    }
}

/// `process.stop`
pub(crate) struct Stop(pub Setup);

impl Fault<Stage> for Stop {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let (within, away) = (self.0.given.duration("within"), self.0.given.duration("restart_after"));
        let mut evidence = Evidence::default();
        for worker in self.0.workers(stage)? {
            let process = stage.workers()?.process(&worker)?;
            if !away.is_zero() {
                stage.workers()?.hold_for(&worker, away)?;
            }
            let asked = Instant::now();
            let ended = process.terminate(within)?;
            let well = ended.status.success();
            evidence.add(
                worker,
                format!("pid {} ended {} ms after SIGTERM ({})", process.pid, asked.elapsed().as_millis(), ended.status),
                u64::from(well),
            );
        }
        Ok(evidence.fired())
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        nothing()
    }
}

/// `process.pause`
pub(crate) struct Pause {
    setup: Setup,
    paused: Vec<(String, Arc<Process>)>,
}

impl Pause {
    pub(crate) fn new(setup: Setup) -> Pause {
        Pause { setup, paused: Vec::new() }
    }
}

impl Fault<Stage> for Pause {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let mut evidence = Evidence::default();
        for worker in self.setup.workers(stage)? {
            let process = stage.workers()?.process(&worker)?;
            let stopped = pause(&process)?;
            evidence.add(worker.clone(), format!("pid {} is in state {stopped}", process.pid), u64::from(stopped == 'T'));
            self.paused.push((worker, process));
        }
        Ok(evidence.fired())
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        let mut evidence = Evidence::default();
        for (worker, process) in self.paused.drain(..) {
            let slept = process_state(process.pid) == Some('T');
            process.signal(libc::SIGCONT);
            evidence.add(worker, format!("pid {} goes on", process.pid), u64::from(slept));
        }
        Ok(evidence.fired())
    }
}

/// SIGSTOP, and the state that the kernel shows then. The watchdog ends stopped processes like others: nothing stays asleep.
pub(crate) fn pause(process: &Process) -> Result<char, FaultError> {
    process.signal(libc::SIGSTOP);
    let deadline = Instant::now() + PROCESS_TIME_MAX;
    loop {
        match process_state(process.pid) {
            Some('T') => return Ok('T'),
            Some(state) if Instant::now() > deadline => return Ok(state),
            Some(_) => std::thread::sleep(Duration::from_millis(1)),
            None => return Err(FaultError::NoTarget(format!("pid {} has ended", process.pid))),
        }
    }
}

/// `process.crash_loop`
pub(crate) struct CrashLoop {
    setup: Setup,
    region: Option<String>,
    /// Failures that the logs had before.
    before: BTreeMap<String, u64>,
}

impl CrashLoop {
    pub(crate) fn new(setup: Setup) -> CrashLoop {
        CrashLoop { setup, region: None, before: BTreeMap::new() }
    }

    /// Failures that were logged since the beginning, by worker.
    fn failures(&self, stage: &Stage) -> Result<BTreeMap<String, u64>, FaultError> {
        let count = |worker: String| {
            let all = stage.log(&worker).matches(REGION_FAILED).count() as u64;
            let before = self.before.get(&worker).copied().unwrap_or(0);
            (worker, all.saturating_sub(before))
        };
        Ok(stage.workers()?.names().into_iter().map(count).collect())
    }
}

impl Fault<Stage> for CrashLoop {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let workers = stage.workers()?;
        let region = self.setup.region(&stage.cluster_status()?, |region| region.owner.is_some())?.region;
        self.before = self.failures(stage)?;
        for worker in workers.names() {
            workers.set_variable(&worker, FAIL_VARIABLE, Some(&format!("engine::step_of:{region}")))?;
        }
        self.region = Some(region.clone());
        let mut evidence = Evidence::default();
        kill_at_once(stage, &workers.names(), &mut evidence)?;
        // The kills only arm it: what counts is that the region fails.
        let deadline = Instant::now() + self.setup.given.duration("within");
        let failures = loop {
            let failures = self.failures(stage)?.values().sum();
            if failures > 0 || Instant::now() > deadline {
                break failures;
            }
            std::thread::sleep(LOOK_INTERVAL);
        };
        let mut fired = evidence.fired();
        fired.evidence = format!("it has failed {failures} times; before that {}", fired.evidence);
        (fired.hit, fired.count) = (vec![region], failures);
        Ok(fired)
    }

    fn undo(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let Some(region) = &self.region else { return nothing() };
        let (workers, mut evidence) = (stage.workers()?, Evidence::default());
        for (worker, failures) in self.failures(stage)? {
            if failures > 0 {
                evidence.add(format!("{region} on {worker}"), format!("it has failed {failures} times on {worker}"), failures);
            }
        }
        for worker in workers.names() {
            workers.set_variable(&worker, FAIL_VARIABLE, None)?;
        }
        kill_at_once(stage, &workers.names(), &mut Evidence::default())?;
        self.region = None;
        Ok(evidence.fired())
    }
}

/// Ends a worker well, and waits until its next life has begun.
pub(crate) fn restart(stage: &Stage, worker: &str) -> Result<(), FaultError> {
    let workers = stage.workers()?;
    let before = workers.view(worker)?;
    if let Ok(process) = workers.process(worker) {
        process.terminate(PROCESS_TIME_MAX)?;
    }
    workers.wait_started_after(worker, before.starts, PROCESS_TIME_MAX)?;
    Ok(())
}

//! The workers of a stage, each a process that is started again after its death, as Kubernetes would do it.
//!
//! ```text
//!            ┌──────────────────────── one thread per worker ────────────────────────┐
//!            ▼                                                                       │
//! wait until nobody holds it ─► start ─► wait for its end ─► pause, longer each time ┘
//! ```
//! A fault that needs a worker to stay away holds it ([`Workers::hold`]); one that changes what the next life gets sets its environment, its limits or its
//! control groups, and ends the present life. Whatever it was, a worker that nobody holds comes back.
//!
//! Each worker has a job file of its own, which differs from the others in how it reaches the brokers and the store: by its own proxies.

use super::events::{Events, StageEventKind};
use super::process::{Ended, Process, lock, usage};
use super::watchdog::Watchdog;
use crate::api::FaultError;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The pause after a death; twice as long after each further one, until a life was long enough.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(200);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);
const HEALTHY_LIFE: Duration = Duration::from_secs(30);

/// A worker as others see it.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerView {
    pub name: String,
    /// None: it does not run at the moment.
    pub pid: Option<u32>,
    pub http: SocketAddr,
    pub starts: u64,
    pub deaths: u64,
    /// Of all its lives.
    pub cpu_seconds: f64,
    pub peak_rss_bytes: u64,
}

/// What every life of a worker gets.
#[derive(Clone, Default, PartialEq)]
struct Terms {
    environment: BTreeMap<String, String>,
    open_files_max: Option<u64>,
    cgroups: Vec<PathBuf>,
}

/// One worker.
struct Slot {
    job_file: PathBuf,
    http: SocketAddr,
    process: Option<Arc<Process>>,
    starts: u64,
    deaths: u64,
    /// Faults that want it to stay away.
    holds: u32,
    /// One of them works on what belongs to it.
    is_taken: bool,
    not_before: Option<Instant>,
    /// Variables of the next start only.
    once: BTreeMap<String, String>,
    terms: Terms,
    past_cpu_seconds: f64,
    peak_rss_bytes: u64,
    last_words: String,
}

struct Shared {
    folder: PathBuf,
    binary: PathBuf,
    slots: Mutex<State>,
    changed: Condvar,
    events: Arc<Events>,
    watchdog: Arc<Watchdog>,
}

struct State {
    slots: BTreeMap<String, Slot>,
    ends: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.slots)
    }

    fn change<T>(&self, name: &str, change: impl FnOnce(&mut Slot) -> T) -> Result<T, FaultError> {
        let mut state = self.lock();
        let slot = state.slots.get_mut(name).ok_or_else(|| FaultError::NoTarget(format!("there is no worker {name}")))?;
        let changed = change(slot);
        self.changed.notify_all();
        Ok(changed)
    }
}

/// All workers of a stage.
pub struct Workers {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// While it lives the worker is not started again.
#[must_use = "the worker is let go when this is dropped"]
pub struct Hold {
    shared: Arc<Shared>,
    worker: String,
    is_alone: bool,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // A worker that was there does not go away.
        let _ = self.shared.change(&self.worker, |slot| {
            slot.holds -= 1;
            slot.is_taken &= !self.is_alone;
        });
    }
}

impl Workers {
    /// Starts one worker per job file. They run when they say so.
    pub(crate) fn start(
        folder: &Path,
        binary: PathBuf,
        workers: BTreeMap<String, (PathBuf, SocketAddr)>,
        environment: &BTreeMap<String, String>,
        events: Arc<Events>,
        watchdog: Arc<Watchdog>,
    ) -> Result<Workers> {
        let slot = |(job_file, http): (PathBuf, SocketAddr)| Slot {
            job_file,
            http,
            process: None,
            starts: 0,
            deaths: 0,
            holds: 0,
            is_taken: false,
            not_before: None,
            once: BTreeMap::new(),
            terms: Terms { environment: environment.clone(), ..Terms::default() },
            past_cpu_seconds: 0.0,
            peak_rss_bytes: 0,
            last_words: String::new(),
        };
        let slots: BTreeMap<String, Slot> = workers.into_iter().map(|(name, files)| (name, slot(files))).collect();
        let names: Vec<String> = slots.keys().cloned().collect();
        let slots = Mutex::new(State { slots, ends: false });
        let shared = Arc::new(Shared { folder: folder.to_path_buf(), binary, slots, changed: Condvar::new(), events, watchdog });
        let mut threads = Vec::new();
        for name in names {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("supervise-{name}"));
            threads.push(thread.spawn(move || supervise(&shared, &name)).context("no thread for a worker")?);
        }
        Ok(Workers { shared, threads: Mutex::new(threads) })
    }

    pub fn names(&self) -> Vec<String> {
        self.shared.lock().slots.keys().cloned().collect()
    }

    pub fn views(&self) -> Vec<WorkerView> {
        let state = self.shared.lock();
        state.slots.iter().map(|(name, slot)| view(name, slot)).collect()
    }

    pub fn view(&self, name: &str) -> Result<WorkerView, FaultError> {
        let state = self.shared.lock();
        let slot = state.slots.get(name).ok_or_else(|| FaultError::NoTarget(format!("there is no worker {name}")))?;
        Ok(view(name, slot))
    }

    /// The living process of a worker.
    pub fn process(&self, name: &str) -> Result<Arc<Process>, FaultError> {
        let process = self.shared.change(name, |slot| slot.process.clone())?;
        process.filter(|process| process.is_alive()).ok_or_else(|| FaultError::NoTarget(format!("worker {name} does not run")))
    }

    /// Keeps a worker from being started again; a living one goes on.
    pub fn hold(&self, name: &str) -> Result<Hold, FaultError> {
        self.shared.change(name, |slot| slot.holds += 1)?;
        Ok(Hold { shared: self.shared.clone(), worker: name.into(), is_alone: false })
    }

    /// A living worker, held for a fault that is going to end it and to work on its folder: no two do so at once.
    pub(crate) fn take(&self, name: &str) -> Result<(Hold, Arc<Process>), FaultError> {
        let is_free = self.shared.change(name, |slot| {
            let is_free = !slot.is_taken;
            slot.is_taken = true;
            slot.holds += u32::from(is_free);
            is_free
        })?;
        if !is_free {
            return Err(FaultError::NoTarget(format!("another fault is at the folder of {name}")));
        }
        let hold = Hold { shared: self.shared.clone(), worker: name.into(), is_alone: true };
        Ok((hold, self.process(name)?))
    }

    /// Its next start comes no sooner than this.
    pub fn hold_for(&self, name: &str, time: Duration) -> Result<(), FaultError> {
        self.shared.change(name, |slot| slot.not_before = Some(Instant::now() + time))
    }

    /// A variable of the next start only.
    pub fn set_once(&self, name: &str, key: &str, value: &str) -> Result<(), FaultError> {
        self.shared.change(name, |slot| slot.once.insert(key.into(), value.into())).map(drop)
    }

    /// A variable of all starts from now on; None takes it away.
    pub fn set_variable(&self, name: &str, key: &str, value: Option<&str>) -> Result<(), FaultError> {
        self.shared.change(name, |slot| match value {
            Some(value) => slot.terms.environment.insert(key.into(), value.into()),
            None => slot.terms.environment.remove(key),
        })?;
        Ok(())
    }

    pub fn variable(&self, name: &str, key: &str) -> Result<Option<String>, FaultError> {
        self.shared.change(name, |slot| slot.terms.environment.get(key).cloned())
    }

    /// Open files of this and all further lives; None: what the system gives.
    pub(crate) fn set_open_files_max(&self, name: &str, limit: Option<u64>) -> Result<(), FaultError> {
        self.shared.change(name, |slot| slot.terms.open_files_max = limit)
    }

    /// A control group that further lives are put into.
    pub(crate) fn add_cgroup(&self, name: &str, group: &Path) -> Result<(), FaultError> {
        self.shared.change(name, |slot| slot.terms.cgroups.push(group.to_path_buf()))
    }

    pub(crate) fn remove_cgroup(&self, name: &str, group: &Path) -> Result<(), FaultError> {
        self.shared.change(name, |slot| slot.terms.cgroups.retain(|known| known != group))
    }

    /// Waits for a start after the one with this number.
    pub fn wait_started_after(&self, name: &str, starts: u64, timeout: Duration) -> Result<WorkerView, FaultError> {
        let found = self.wait_for(timeout, |state| {
            state.slots.get(name).filter(|slot| slot.starts > starts && slot.process.is_some()).map(|slot| view(name, slot))
        });
        found.ok_or_else(|| FaultError::Harness(anyhow::anyhow!("worker {name} was not started again within {timeout:?}")))
    }

    fn wait_for<T>(&self, timeout: Duration, mut wanted: impl FnMut(&State) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = wanted(&state) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What a worker said last, in this life or, between two, in the one before.
    pub fn last_words(&self, name: &str) -> String {
        let (process, before) = match self.shared.change(name, |slot| (slot.process.clone(), slot.last_words.clone())) {
            Ok(found) => found,
            Err(_) => return String::new(),
        };
        process.map_or(before, |process| process.last_words())
    }

    /// SIGTERM to all, SIGKILL to those that stay, and nobody is started any more. How each ended.
    pub fn stop(&self, timeout: Duration) -> Vec<(String, Ended)> {
        let living: Vec<(String, Arc<Process>)> = {
            let mut state = self.shared.lock();
            state.ends = true;
            self.shared.changed.notify_all();
            state.slots.iter().filter_map(|(name, slot)| Some((name.clone(), slot.process.clone()?))).collect()
        };
        for (_, process) in &living {
            process.signal(libc::SIGCONT);
            process.signal(libc::SIGTERM);
        }
        let deadline = Instant::now() + timeout;
        let end = |(name, process): &(String, Arc<Process>)| {
            let ended = process.wait(deadline.saturating_duration_since(Instant::now())).or_else(|| process.kill().ok())?;
            Some((name.clone(), ended))
        };
        let ends = living.iter().filter_map(end).collect();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            // It has nothing to say but that it is over.
            let _ = thread.join();
        }
        ends
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

fn view(name: &str, slot: &Slot) -> WorkerView {
    let pid = slot.process.as_ref().filter(|process| process.is_alive()).map(|process| process.pid);
    let now = pid.and_then(usage).unwrap_or_default();
    WorkerView {
        name: name.into(),
        pid,
        http: slot.http,
        starts: slot.starts,
        deaths: slot.deaths,
        cpu_seconds: slot.past_cpu_seconds + now.cpu_seconds,
        peak_rss_bytes: slot.peak_rss_bytes.max(now.rss_bytes),
    }
}

/// The thread of one worker: life after life, until the stage ends.
fn supervise(shared: &Shared, name: &str) {
    let mut pause = RESTART_PAUSE_MIN;
    while let Some(turn) = wait_for_turn(shared, name) {
        let started = Instant::now();
        match start(shared, name, turn) {
            Ok(process) => {
                let ended = wait_for_end(&process);
                note_end(shared, name, &process, &ended);
            }
            Err(error) => shared.events.push(StageEventKind::Note { text: format!("{name} could not be started: {error:#}") }),
        }
        if started.elapsed() >= HEALTHY_LIFE {
            pause = RESTART_PAUSE_MIN;
        }
        let mut state = shared.lock();
        let deadline = Instant::now() + pause;
        while !state.ends && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            state = shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        pause = (pause * 2).min(RESTART_PAUSE_MAX);
    }
}

/// A life that is to begin.
struct Turn {
    command: Command,
    starts: u64,
    terms: Terms,
}

/// None: the stage ends.
fn wait_for_turn(shared: &Shared, name: &str) -> Option<Turn> {
    let mut state = shared.lock();
    loop {
        if state.ends {
            return None;
        }
        let slot = state.slots.get_mut(name)?;
        let left = slot.not_before.map_or(Duration::ZERO, |time| time.saturating_duration_since(Instant::now()));
        if slot.holds == 0 && left.is_zero() {
            slot.not_before = None;
            slot.starts += 1;
            let mut command = Command::new(&shared.binary);
            command.arg("worker").arg(&slot.job_file).args(["--worker", name, "--metrics-addr"]).arg(slot.http.to_string());
            command.current_dir(&shared.folder).env("NO_COLOR", "1").env("RUST_BACKTRACE", "1");
            command.envs(&slot.terms.environment).envs(std::mem::take(&mut slot.once));
            return Some(Turn { command, starts: slot.starts, terms: slot.terms.clone() });
        }
        state = match slot.holds {
            0 => shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            _ => shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
    }
}

fn start(shared: &Shared, name: &str, turn: Turn) -> Result<Arc<Process>> {
    let Turn { command, starts, terms } = turn;
    let process = Arc::new(Process::start(command, &shared.folder.join("logs"), &format!("{name}-{starts}"))?);
    // Right after its start it has used nothing that would count yet.
    for group in &terms.cgroups {
        std::fs::write(group.join("cgroup.procs"), process.pid.to_string()).with_context(|| group.display().to_string())?;
    }
    if let Some(limit) = terms.open_files_max {
        super::limits::set_open_files_max(process.pid, limit)?;
    }
    shared.watchdog.note_child(process.pid, process.started_ticks)?;
    shared.events.push(StageEventKind::WorkerStarted { worker: name.into(), pid: process.pid });
    let mut state = shared.lock();
    let ends = state.ends;
    let slot = state.slots.get_mut(name).context("a worker stays")?;
    // Who has changed its terms meanwhile has found nobody to end, and if the stage has ended, nobody else will end this one.
    if ends || slot.terms != terms {
        process.signal(libc::SIGKILL);
    } else {
        slot.process = Some(process.clone());
    }
    shared.changed.notify_all();
    Ok(process)
}

fn wait_for_end(process: &Process) -> Ended {
    loop {
        if let Some(ended) = process.wait(Duration::from_secs(3600)) {
            return ended;
        }
    }
}

/// The last line that is about an error: of the program's report, or of its log.
fn last_error(words: &str) -> Option<String> {
    let is_error = |line: &&str| line.contains("ERROR") || line.trim_start().starts_with('×');
    words.lines().rfind(is_error).map(|line| line.trim().to_string())
}

fn note_end(shared: &Shared, name: &str, process: &Process, ended: &Ended) {
    shared.watchdog.forget_child(process.pid);
    let last_words = process.last_words();
    let error = last_error(&last_words);
    shared.events.push(StageEventKind::WorkerDied { worker: name.into(), pid: process.pid, status: ended.status.to_string(), error });
    // A worker that was there does not go away.
    let _ = shared.change(name, |slot| {
        slot.process = None;
        slot.deaths += 1;
        slot.past_cpu_seconds += ended.cpu_seconds;
        slot.peak_rss_bytes = slot.peak_rss_bytes.max(ended.peak_rss_bytes);
        slot.last_words = last_words;
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// One worker that does nothing but sleep.
    fn sleeper(folder: &Path) -> Workers {
        std::fs::create_dir_all(folder.join("logs")).expect("a folder");
        // `sh worker …` runs it.
        std::fs::write(folder.join("worker"), "exec sleep 600\n").expect("a script");
        let files = BTreeMap::from([("w1".to_string(), (PathBuf::from("w1.yaml"), SocketAddr::from(([127, 0, 0, 1], 1))))]);
        let watchdog = Arc::new(Watchdog::start(folder).expect("a watchdog"));
        let workers = Workers::start(folder, "sh".into(), files, &BTreeMap::new(), Arc::new(Events::new()), watchdog).expect("a thread");
        workers.wait_started_after("w1", 0, PATIENCE).expect("it starts");
        workers
    }

    #[test]
    fn two_faults_do_not_work_on_the_folder_of_one_worker_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let workers = sleeper(folder.path());
        let (hold, process) = workers.take("w1").expect("nobody has it");
        assert!(matches!(workers.take("w1"), Err(FaultError::NoTarget(_))), "it is taken");
        process.kill().expect("it dies");
        assert!(matches!(workers.take("w1"), Err(FaultError::NoTarget(_))), "it still is");
        drop(hold);
        workers.wait_started_after("w1", 1, PATIENCE).expect("it is let go");
        assert!(workers.take("w1").is_ok());
    }

    #[test]
    fn a_life_that_began_under_old_terms_is_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let workers = sleeper(folder.path());
        let mut command = Command::new("sleep");
        command.arg("600");
        let terms = Terms { open_files_max: Some(32), ..Terms::default() };
        let begun = start(&workers.shared, "w1", Turn { command, starts: 2, terms }).expect("it starts");
        assert_eq!(begun.wait(PATIENCE).and_then(|ended| ended.status.signal()), Some(libc::SIGKILL));
        assert!(workers.process("w1").is_ok_and(|process| process.pid != begun.pid), "nobody gets to see it");
    }

    #[test]
    fn the_last_error_is_that_of_the_report_or_of_the_log() {
        let log = "2026-01-01T00:00:00Z ERROR engine: first\nINFO engine: ERR\n";
        assert_eq!(last_error(log).as_deref(), Some("2026-01-01T00:00:00Z ERROR engine: first"));
        assert_eq!(last_error(&format!("{log}\n  × the store is gone\n  help: look\n")).as_deref(), Some("× the store is gone"));
        assert_eq!(last_error("INFO engine: all is well"), None);
    }
}

//! A child process that is watched from its start to its end: what it cost, how it ended, and signals that can't hit somebody else.
//!
//! A process id is only its own until it has been waited for. So the watching thread first waits without reaping, takes the lock under which signals are sent,
//! and reaps then: no signal of a fault can reach a process that got the same number later.

use anyhow::{Context, Result};
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);
/// A killed process is gone within this, however large it was.
const KILL_TIME_MAX: Duration = Duration::from_secs(30);
const LAST_WORDS_LINES: usize = 25;

/// Nothing that is done under these locks can leave their value half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a process ended, and what it took.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// User and system time of the process and of the children that it waited for.
    pub cpu_seconds: f64,
    pub wall_seconds: f64,
    pub peak_rss_bytes: u64,
}

/// A running or ended child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    /// Ticks since the boot at which it was started: with the id it names a process for ever.
    pub started_ticks: u64,
    shared: Arc<Shared>,
    output: PathBuf,
}

#[derive(Debug, Default)]
struct Shared {
    /// Held while a signal is sent.
    ended: Mutex<Option<Ended>>,
    changed: Condvar,
}

impl Process {
    /// Starts a command; standard output goes to `NAME.out` and standard error to `NAME.err` in `folder`.
    pub fn start(mut command: Command, folder: &Path, name: &str) -> Result<Process> {
        let output = folder.join(name);
        let file = |extension: &str| {
            let path = output.with_extension(extension);
            File::create(&path).with_context(|| path.display().to_string())
        };
        command.stdin(Stdio::null()).stdout(file("out")?).stderr(file("err")?);
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("{:?} can't be started", command.get_program()))?;
        let pid = child.id();
        let started_ticks = started_ticks(pid).unwrap_or_default();
        let shared = Arc::new(Shared::default());
        let watched = shared.clone();
        std::thread::Builder::new().name(format!("watch-{name}")).spawn(move || watch(pid, started, &watched))?;
        Ok(Process { pid, started_ticks, shared, output })
    }

    pub fn is_alive(&self) -> bool {
        lock(&self.shared.ended).is_none()
    }

    /// Its end, if it comes in time.
    pub fn wait(&self, timeout: Duration) -> Option<Ended> {
        let deadline = Instant::now() + timeout;
        let mut ended = lock(&self.shared.ended);
        while ended.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            ended = self.shared.changed.wait_timeout(ended, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *ended
    }

    /// False: it has ended, and nothing was sent.
    pub fn signal(&self, signal: i32) -> bool {
        let ended = lock(&self.shared.ended);
        if ended.is_some() {
            return false;
        }
        // SAFETY: kill takes plain numbers; the process has not been waited for, so its id is still its own.
        unsafe { libc::kill(self.pid as i32, signal) == 0 }
    }

    /// SIGKILL, and waits. A paused process dies of it, too.
    pub fn kill(&self) -> Result<Ended> {
        self.signal(libc::SIGKILL);
        self.wait(KILL_TIME_MAX).with_context(|| format!("process {} was killed and does not end", self.pid))
    }

    /// SIGTERM, and SIGKILL to what has not ended in time. Whether it went by itself is in the status.
    pub fn terminate(&self, timeout: Duration) -> Result<Ended> {
        self.signal(libc::SIGTERM);
        match self.wait(timeout) {
            Some(ended) => Ok(ended),
            None => self.kill(),
        }
    }

    pub fn stderr_file(&self) -> PathBuf {
        self.output.with_extension("err")
    }

    pub fn stdout_file(&self) -> PathBuf {
        self.output.with_extension("out")
    }

    /// The end of what it wrote, for error messages.
    pub fn last_words(&self) -> String {
        let tail = |file: PathBuf| {
            let text = String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(LAST_WORDS_LINES)..].join("\n")
        };
        format!("{}\n{}", tail(self.stdout_file()), tail(self.stderr_file()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Waits for the process with `wait4`, which tells its CPU time. The resident size is read from `/proc` meanwhile: the kernel's
/// `ru_maxrss` would count what this process had in memory when it forked.
fn watch(pid: u32, started: Instant, shared: &Shared) {
    let (done, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let sampler = {
        let (done, peak) = (done.clone(), peak.clone());
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if let Some(kib) = status_number(pid, "VmHWM:") {
                    peak.store(kib * 1024, Ordering::Relaxed);
                }
                std::thread::sleep(SAMPLE_INTERVAL);
            }
        })
    };
    // First without reaping, so that the id stays valid until signals are off.
    // SAFETY: all-zero bytes are a valid siginfo_t, which waitid only writes.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` outlives the call.
    while unsafe { libc::waitid(libc::P_PID, pid, &mut info, libc::WEXITED | libc::WNOWAIT) } == -1
        && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
    {}
    let wall_seconds = started.elapsed().as_secs_f64();
    let mut ended = lock(&shared.ended);
    let mut status = 0;
    // SAFETY: all-zero bytes are a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both out-parameters outlive the call; the child is ours and has not been waited for.
    unsafe { libc::wait4(pid as i32, &mut status, 0, &mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    *ended = Some(Ended {
        status: ExitStatus::from_raw(status),
        cpu_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        wall_seconds,
        peak_rss_bytes: peak.load(Ordering::Relaxed),
    });
    drop(ended);
    shared.changed.notify_all();
    done.store(true, Ordering::Relaxed);
    let _ = sampler.join();
}

/// What a live process has at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub rss_bytes: u64,
    pub open_files: u64,
    pub threads: u64,
    pub cpu_seconds: f64,
}

/// None: it has ended.
pub fn usage(pid: u32) -> Option<Usage> {
    let fields = stat_fields(pid)?;
    let ticks = fields.get(11)? + fields.get(12)?;
    // SAFETY: sysconf takes a plain number and touches no memory of ours.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Some(Usage {
        rss_bytes: status_number(pid, "VmRSS:")? * 1024,
        open_files: std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64,
        threads: status_number(pid, "Threads:")?,
        cpu_seconds: ticks as f64 / per_second.max(1) as f64,
    })
}

/// `R`, `S`, `T` (stopped), `Z`… None: there is no such process.
pub fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// When a process was started, in ticks since the boot.
pub(crate) fn started_ticks(pid: u32) -> Option<u64> {
    stat_fields(pid)?.get(19).copied()
}

/// The fields of `/proc/PID/stat` after the name; what is no number is 0.
fn stat_fields(pid: u32) -> Option<Vec<u64>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

fn status_number(pid: u32, key: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, folder: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(command, folder, "shell").expect("a shell")
    }

    #[test]
    fn the_end_of_a_process_is_seen_once_and_for_all_who_ask() {
        let folder = tempfile::tempdir().expect("a folder");
        let process = shell("echo said; exit 3", folder.path());
        let ended = process.wait(KILL_TIME_MAX).expect("it ends");
        assert_eq!(ended.status.code(), Some(3));
        assert!(!process.is_alive() && process.wait(Duration::ZERO).is_some());
        assert!(!process.signal(libc::SIGTERM), "nobody is there to be signalled");
        assert!(process.last_words().contains("said"));
    }

    #[test]
    fn a_paused_process_is_stopped_and_still_dies_of_a_kill() {
        let folder = tempfile::tempdir().expect("a folder");
        let process = shell("sleep 600", folder.path());
        assert!(process.signal(libc::SIGSTOP));
        let deadline = Instant::now() + KILL_TIME_MAX;
        while state(process.pid) != Some('T') {
            assert!(Instant::now() < deadline, "it is not stopped");
            std::thread::yield_now();
        }
        let ended = process.kill().expect("it dies");
        assert_eq!(ended.status.signal(), Some(libc::SIGKILL));
    }
}

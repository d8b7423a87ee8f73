//! A child process that is watched: its end, its CPU time, its largest resident size.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// How a process ended, and what it took.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// User and system time of the process and of the children that it waited for.
    pub cpu_seconds: f64,
    pub wall_seconds: f64,
    pub peak_rss_bytes: u64,
}

/// A running child. Dropping it kills it.
pub struct Process {
    pub pid: u32,
    /// Held while a signal is sent, so that the id can't have been given to another process.
    alive: Arc<Mutex<bool>>,
    ended: Receiver<Ended>,
    outcome: Option<Ended>,
    output: PathBuf,
}

impl Process {
    /// Starts a command; standard output goes to `NAME.out` and standard error to `NAME.err` in `folder`.
    pub fn start(mut command: Command, folder: &Path, name: &str) -> Result<Process> {
        let output = folder.join(name);
        let file =
            |extension: &str| File::create(output.with_extension(extension)).with_context(|| format!("{}.{extension}", output.display()));
        command.stdin(Stdio::null()).stdout(file("out")?).stderr(file("err")?);
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("{:?} can't be started", command.get_program()))?;
        let pid = child.id();
        let (sender, ended) = channel();
        let alive = Arc::new(Mutex::new(true));
        let watched = alive.clone();
        std::thread::spawn(move || {
            let _ = sender.send(watch(pid, started, &watched));
        });
        Ok(Process { pid, alive, ended, outcome: None, output })
    }

    /// Its end, if it comes in time.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Ended>> {
        if self.outcome.is_none() {
            match self.ended.recv_timeout(timeout) {
                Ok(ended) => self.outcome = Some(ended),
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => bail!("nobody watches process {}", self.pid),
            }
        }
        Ok(self.outcome)
    }

    /// Its end; when it does not come in time the process is killed and the error shows what it said last.
    pub fn expect_end(&mut self, timeout: Duration) -> Result<Ended> {
        match self.wait(timeout)? {
            Some(ended) => Ok(ended),
            None => {
                self.kill()?;
                bail!("still running after {timeout:?}; it said last:\n{}", self.last_words());
            }
        }
    }

    pub fn signal(&self, signal: i32) {
        let alive = self.alive.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if *alive {
            // SAFETY: kill takes plain numbers; the process has not been waited for, so its id is still its own.
            unsafe { libc::kill(self.pid as i32, signal) };
        }
    }

    /// SIGKILL, and waits.
    pub fn kill(&mut self) -> Result<Ended> {
        self.signal(libc::SIGKILL);
        self.wait(Duration::from_secs(30))?.context("a killed process does not end")
    }

    /// SIGTERM, and waits; gives the time that it took as well.
    pub fn terminate(&mut self, timeout: Duration) -> Result<(Ended, Duration)> {
        let start = Instant::now();
        self.signal(libc::SIGTERM);
        let ended = self.expect_end(timeout)?;
        Ok((ended, start.elapsed()))
    }

    pub fn stdout(&self) -> String {
        std::fs::read_to_string(self.output.with_extension("out")).unwrap_or_default()
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.output.with_extension("err")).unwrap_or_default()
    }

    /// The end of what it wrote, for error messages.
    pub fn last_words(&self) -> String {
        let tail = |text: String| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(25)..].join("\n")
        };
        format!("{}\n{}", tail(self.stdout()), tail(self.stderr()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.outcome.is_none() {
            let _ = self.kill();
        }
    }
}

/// Waits for the process with `wait4`, which tells its CPU time. The resident size is read from `/proc` meanwhile: the kernel's
/// `ru_maxrss` would count what this process had in memory when it forked.
fn watch(pid: u32, started: Instant, alive: &Mutex<bool>) -> Ended {
    let (done, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let sampler = {
        let (done, peak) = (done.clone(), peak.clone());
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if let Some(bytes) = peak_rss_bytes(pid) {
                    peak.store(bytes, Ordering::Relaxed);
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
    let mut alive = alive.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    *alive = false;
    let mut status = 0;
    // SAFETY: all-zero bytes are a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both out-parameters outlive the call; the child is ours and has not been waited for.
    unsafe { libc::wait4(pid as i32, &mut status, 0, &mut usage) };
    done.store(true, Ordering::Relaxed);
    let _ = sampler.join();
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ended {
        status: ExitStatus::from_raw(status),
        cpu_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        wall_seconds,
        peak_rss_bytes: peak.load(Ordering::Relaxed),
    }
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
    Some(Usage {
        rss_bytes: status_number(pid, "VmRSS:")? * 1024,
        open_files: std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64,
        threads: status_number(pid, "Threads:")?,
        cpu_seconds: cpu_seconds(pid)?,
    })
}

/// User and system time of a live process.
fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    // SAFETY: sysconf takes a plain number and touches no memory of ours.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    (per_second > 0).then(|| ticks as f64 / per_second as f64)
}

/// `VmHWM` of a live process.
fn peak_rss_bytes(pid: u32) -> Option<u64> {
    Some(status_number(pid, "VmHWM:")? * 1024)
}

fn status_number(pid: u32, key: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

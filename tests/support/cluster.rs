//! Several workers of one job, each a process of its own as Kubernetes would start it, and what they say of each other.
//!
//! The view is asked of the workers by HTTP (`/api/v1/cluster`): any of them answers for all. There are no events to wait for outside of a process, so
//! conditions are asked for every few milliseconds, with a bound that fails with what all workers said last.

use super::http;
use super::job::Job;
use super::process::{Ended, Process};
use super::streamshield::binary;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use streamshield_core::status::ClusterStatus;
use streamshield_faults::stage;
pub use streamshield_faults::stage::{describe, owners};
use streamshield_workload::time::wall_ms;

/// A question takes a few milliseconds; this leaves the machine to what is tested.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// One worker.
pub struct Worker {
    pub process: Process,
    pub http: SocketAddr,
}

/// A death by SIGKILL.
#[derive(Clone, Copy, Debug)]
pub struct Killed {
    /// Right before the signal was sent.
    pub at: Instant,
    /// When the process had gone, milliseconds since 1970: nothing that was made later is its work.
    pub gone_wall_ms: i64,
    pub ended: Ended,
}

/// The workers of a job in one folder: the job file, the workers' state and their logs lie there.
pub struct Workers {
    pub job: Job,
    pub folder: PathBuf,
    file: PathBuf,
    workers: BTreeMap<String, Worker>,
    starts: usize,
    /// How many workers those know of that are started next; 0: of no others.
    expected: usize,
    /// Variables of the next starts.
    pub environment: Vec<(String, String)>,
}

impl Workers {
    /// Writes the job file.
    pub fn new(folder: impl Into<PathBuf>, job: &Job) -> Result<Workers> {
        let folder = folder.into();
        let job = job.clone().set("state_dir", folder.join("state").display());
        let file = folder.join(format!("{}.yaml", job.name));
        std::fs::write(&file, job.yaml())?;
        Ok(Workers { job, folder, file, workers: BTreeMap::new(), starts: 0, expected: 0, environment: Vec::new() })
    }

    /// Starts one worker, and returns at once.
    pub fn start(&mut self, name: &str) -> Result<()> {
        self.starts += 1;
        let http = http::free_address()?;
        let mut command = Command::new(binary()?);
        command.arg("worker").arg(&self.file).args(["--worker", name, "--metrics-addr"]).arg(http.to_string());
        command.args(["--expect-workers", &self.expected.to_string()]);
        command.current_dir(&self.folder).env("NO_COLOR", "1").env("RUST_BACKTRACE", "1").envs(self.environment.iter().cloned());
        let process = Process::start(command, &self.folder, &format!("{name}-{}", self.starts))?;
        self.workers.insert(name.to_string(), Worker { process, http });
        Ok(())
    }

    pub fn start_all(&mut self, names: &[&str]) -> Result<()> {
        self.expected = names.len();
        let started = names.iter().try_for_each(|name| self.start(name));
        self.expected = 0;
        started
    }

    pub fn worker(&mut self, name: &str) -> Result<&mut Worker> {
        self.workers.get_mut(name).with_context(|| format!("there is no worker {name}"))
    }

    /// Where the state of a worker lies.
    pub fn state_dir(&self, name: &str) -> PathBuf {
        self.folder.join("state").join(name)
    }

    pub fn job_file(&self) -> &Path {
        &self.file
    }

    /// Gives a worker up: it is somebody else's to end.
    pub fn take(&mut self, name: &str) -> Result<Worker> {
        self.workers.remove(name).with_context(|| format!("there is no worker {name}"))
    }

    pub fn kill(&mut self, name: &str) -> Result<Killed> {
        let worker = self.take(name)?;
        let early = worker.process.wait(Duration::ZERO);
        ensure!(early.is_none(), "worker {name} had ended by itself:\n{}", worker.process.last_words());
        let at = Instant::now();
        let ended = worker.process.kill()?;
        Ok(Killed { at, gone_wall_ms: wall_ms(), ended })
    }

    /// SIGTERM to one worker, which must drain and end well.
    pub fn stop(&mut self, name: &str, timeout: Duration) -> Result<Ended> {
        let worker = self.take(name)?;
        let (ended, _) = worker.process.terminate(timeout)?;
        ensure!(ended.status.success(), "worker {name}: {}\n{}", ended.status, worker.process.last_words());
        Ok(ended)
    }

    /// SIGTERM to all at the same time; all must end well.
    pub fn stop_all(&mut self, timeout: Duration) -> Result<Vec<Ended>> {
        for worker in self.workers.values() {
            worker.process.signal(libc::SIGTERM);
        }
        let mut ends = Vec::new();
        for (name, worker) in std::mem::take(&mut self.workers) {
            let ended = worker.process.expect_end(timeout)?;
            ensure!(ended.status.success(), "worker {name}: {}\n{}", ended.status, worker.process.last_words());
            ends.push(ended);
        }
        Ok(ends)
    }

    /// The whole job, as a living worker sees it.
    pub fn status(&self) -> Result<ClusterStatus> {
        self.status_but(&[])
    }

    /// Without asking workers that would not answer.
    pub fn status_but(&self, silent: &[&str]) -> Result<ClusterStatus> {
        let mut why = anyhow::anyhow!("no worker was asked");
        for (_, worker) in self.workers.iter().filter(|(name, _)| !silent.contains(&name.as_str())) {
            match ask(worker.http) {
                Ok(status) => return Ok(status),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// Waits for a view that the condition likes, and returns it. Fails when a worker ends meanwhile.
    pub fn wait_for(&mut self, what: &str, timeout: Duration, condition: impl FnMut(&ClusterStatus) -> bool) -> Result<ClusterStatus> {
        self.wait_for_but(&[], what, timeout, condition)
    }

    pub fn wait_for_but(
        &mut self,
        silent: &[&str],
        what: &str,
        timeout: Duration,
        mut condition: impl FnMut(&ClusterStatus) -> bool,
    ) -> Result<ClusterStatus> {
        let deadline = Instant::now() + timeout;
        let mut last = None;
        loop {
            if let Ok(status) = self.status_but(silent) {
                if condition(&status) {
                    return Ok(status);
                }
                last = Some(status);
            }
            self.expect_all_alive().with_context(|| format!("while waiting: {what}"))?;
            if Instant::now() > deadline {
                let view = last.map_or("nobody answered".into(), |status| describe(&status));
                bail!("not within {timeout:?}: {what}\n{view}\n{}", self.last_words());
            }
            std::thread::sleep(ASK_INTERVAL);
        }
    }

    /// Waits until so many workers run, every region is active, and every follower that is wanted is ready.
    pub fn wait_settled(&mut self, workers: usize, timeout: Duration) -> Result<ClusterStatus> {
        self.wait_for(&format!("{workers} workers settled"), timeout, |status| is_settled(status, workers))
    }

    pub fn expect_all_alive(&mut self) -> Result<()> {
        for (name, worker) in &mut self.workers {
            if let Some(ended) = worker.process.wait(Duration::ZERO) {
                bail!("worker {name} ended by itself: {}\n{}", ended.status, worker.process.last_words());
            }
        }
        Ok(())
    }

    /// The end of what each worker wrote.
    pub fn last_words(&self) -> String {
        self.workers.iter().map(|(name, worker)| format!("--- {name}\n{}\n", worker.process.last_words())).collect()
    }

    /// All that was written to standard error by all workers that ever were.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "err") {
                text += &std::fs::read_to_string(entry.path()).unwrap_or_default();
            }
        }
        text
    }
}

/// Asks one worker.
pub fn ask(address: SocketAddr) -> Result<ClusterStatus> {
    let (code, body) = http::get(address, "/api/v1/cluster")?;
    ensure!(code == 200, "/api/v1/cluster answers {code}: {body}");
    Ok(serde_json::from_str(&body)?)
}

/// Nothing is on its way and nothing is to come: all run, all is active, all followers are ready.
pub fn is_settled(status: &ClusterStatus, workers: usize) -> bool {
    status.at_rest && stage::is_settled(status, workers)
}

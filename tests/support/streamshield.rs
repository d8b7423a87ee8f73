//! The binary, started as a user starts it.

use super::http;
use super::job::Job;
use super::process::{Ended, Process};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
pub use streamshield_faults::stage::binary;

/// Runs a command of the binary that ends by itself, in `folder`.
pub fn call(folder: &Path, arguments: &[&str]) -> Result<std::process::Output> {
    Ok(Command::new(binary()?).args(arguments).current_dir(folder).output()?)
}

/// A job in a process of its own.
pub struct Run {
    pub process: Process,
    pub http: SocketAddr,
}

/// Starts jobs in one folder: the job file, the state and the logs lie there.
pub struct Runner {
    pub folder: PathBuf,
    starts: usize,
    /// Variables of the next starts.
    pub environment: Vec<(String, String)>,
    /// A program with its arguments that the next starts run under.
    pub under: Vec<OsString>,
}

impl Runner {
    pub fn new(folder: impl Into<PathBuf>) -> Runner {
        Runner { folder: folder.into(), starts: 0, environment: Vec::new(), under: Vec::new() }
    }

    /// Writes the job file (with a `state_dir` in this folder unless the job has one) and starts it.
    pub fn start(&mut self, job: &Job) -> Result<Run> {
        self.start_with(job, &[])
    }

    pub fn start_with(&mut self, job: &Job, arguments: &[&str]) -> Result<Run> {
        let mut job = job.clone();
        if !job.settings.iter().any(|(key, _)| key == "state_dir") {
            let state = self.state_dir().join(&job.name);
            job = job.set("state_dir", state.display());
        }
        self.starts += 1;
        let file = self.folder.join(format!("{}.yaml", job.name));
        std::fs::write(&file, job.yaml())?;
        let http = http::free_address()?;
        let mut words = self.under.iter().cloned().chain([binary()?.into_os_string()]);
        let mut command = Command::new(words.next().expect("one at least"));
        command.args(words).arg("run").arg(&file).args(["--summary", "json", "--metrics-addr"]).arg(http.to_string()).args(arguments);
        command.current_dir(&self.folder).env("NO_COLOR", "1").env("RUST_BACKTRACE", "1").envs(self.environment.iter().cloned());
        let process = Process::start(command, &self.folder, &format!("{}-{}", job.name, self.starts))?;
        Ok(Run { process, http })
    }

    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Runs a bounded job to its end, which must be a good one.
    pub fn finish(&mut self, job: &Job, timeout: Duration) -> Result<(Run, Ended)> {
        let run = self.start(job)?;
        let ended = run.process.expect_end(timeout)?;
        anyhow::ensure!(ended.status.success(), "{}: {}\n{}", job.name, ended.status, run.process.last_words());
        Ok((run, ended))
    }
}

impl Run {
    pub fn status(&self) -> Result<Value> {
        let (code, body) = http::get(self.http, "/api/v1/status")?;
        anyhow::ensure!(code == 200, "status answers {code}: {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// Waits for `/ready`; fails when the process ends before.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<()> {
        self.wait_until("ready", timeout, |run| Ok(http::get(run.http, "/ready").is_ok_and(|(code, _)| code == 200)))
    }

    /// Waits until a condition holds, asking it every few milliseconds: the outside of a process has no events to wait for.
    pub fn wait_until(&mut self, what: &str, timeout: Duration, mut condition: impl FnMut(&Run) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            if condition(self)? {
                return Ok(());
            }
            if let Some(ended) = self.process.wait(Duration::from_millis(10)) {
                bail!("the job ended ({}) before it was {what}:\n{}", ended.status, self.process.last_words());
            }
            anyhow::ensure!(Instant::now() < deadline, "the job was not {what} in {timeout:?}:\n{}", self.process.last_words());
        }
    }

    /// Waits until a number in the status reaches a value.
    pub fn wait_status_at_least(&mut self, field: &str, value: u64, timeout: Duration) -> Result<()> {
        let what = format!("at {field} ≥ {value}");
        self.wait_until(&what, timeout, |run| {
            Ok(run.status().is_ok_and(|status| status[field].as_u64().is_some_and(|found| found >= value)))
        })
    }

    /// The summary: the last line of its standard output, as JSON.
    pub fn summary(&self) -> Result<Value> {
        let text = self.process.stdout();
        let line = text.lines().rev().find(|line| !line.trim().is_empty()).context("no summary was printed")?;
        serde_json::from_str(line).with_context(|| format!("the last line is no JSON: {line}"))
    }
}

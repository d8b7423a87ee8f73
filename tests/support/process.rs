//! A child process that is watched, as the stage of chaos runs watches its own, with what a test expects of it.

use anyhow::{Result, bail};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use streamshield_faults::stage;
pub use streamshield_faults::stage::{Ended, Usage, usage};

/// A running or ended child. Dropping it kills it.
pub struct Process(stage::Process);

impl Process {
    /// Starts a command; standard output goes to `NAME.out` and standard error to `NAME.err` in `folder`.
    pub fn start(command: Command, folder: &Path, name: &str) -> Result<Process> {
        stage::Process::start(command, folder, name).map(Process)
    }

    /// Its end; when it does not come in time the process is killed and the error shows what it said last.
    pub fn expect_end(&self, timeout: Duration) -> Result<Ended> {
        match self.wait(timeout) {
            Some(ended) => Ok(ended),
            None => {
                self.kill()?;
                bail!("still running after {timeout:?}; it said last:\n{}", self.last_words());
            }
        }
    }

    /// SIGTERM, and an end that must come in time; gives the time that it took as well.
    pub fn terminate(&self, timeout: Duration) -> Result<(Ended, Duration)> {
        let start = Instant::now();
        self.signal(libc::SIGTERM);
        let ended = self.expect_end(timeout)?;
        Ok((ended, start.elapsed()))
    }

    pub fn stdout(&self) -> String {
        text(self.stdout_file())
    }

    pub fn stderr(&self) -> String {
        text(self.stderr_file())
    }
}

impl Deref for Process {
    type Target = stage::Process;

    fn deref(&self) -> &stage::Process {
        &self.0
    }
}

fn text(file: PathBuf) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

//! `time.jump`: the wall clock of one worker goes wrong.
//!
//! A small library (`clock.c`, compiled when it is needed) is loaded into the worker before the C library and answers for its clock; how far it is off stands
//! in a file that is mapped, so a jump takes effect at once. Only the wall clock is changed: the monotonic one drives time-outs, and no machine's goes
//! backwards. A worker that does not run under the library is restarted under it first, with a clock that is right, so that what is seen later is the jump
//! alone. (libfaketime does not do: it does not see C11's `cnd_timedwait`, on which librdkafka then waits for as long as the jump.)
//!
//! On failure: without Linux or a C compiler (`$CC`, else `cc`) the fault is not possible here.

use super::nothing;
use super::process::restart;
use super::target::Setup;
use crate::api::{Fault, FaultError, Fired};
use crate::stage::{Stage, ports};
use anyhow::Context;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PRELOAD: &str = "LD_PRELOAD";
const READY_TIME_MAX: Duration = Duration::from_secs(30);
/// An answer has the date of its moment; it may take its time on a busy host.
const JUMP_TIME_MAX: Duration = Duration::from_secs(10);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// An HTTP date has whole seconds, and is older than the answer's arrival.
const TOLERANCE_SECONDS: i64 = 3;

const SOURCE: &str = include_str!("clock.c");
const OFFSET: &str = "STREAMSHIELD_CLOCK_OFFSET";

pub(crate) struct Jump {
    setup: Setup,
    jumped: Option<(String, PathBuf)>,
}

impl Jump {
    pub(crate) fn new(setup: Setup) -> Jump {
        Jump { setup, jumped: None }
    }
}

/// The library, compiled once per run.
fn library(folder: &Path) -> Result<PathBuf, FaultError> {
    let library = folder.join("clock.so");
    if !cfg!(target_os = "linux") {
        return Err(FaultError::NotPossibleHere("a library that answers for the clock can only be loaded on Linux".into()));
    }
    if library.exists() {
        return Ok(library);
    }
    let (source, part) = (folder.join("clock.c"), folder.join("clock.so.part"));
    std::fs::write(&source, SOURCE).with_context(|| source.display().to_string())?;
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let compiled = Command::new(&compiler).args(["-shared", "-fPIC", "-O2", "-o"]).args([&part, &source]).output();
    match compiled {
        Err(error) => Err(FaultError::NotPossibleHere(format!("there is no C compiler: {compiler}: {error}"))),
        Ok(output) if !output.status.success() => {
            Err(FaultError::NotPossibleHere(format!("{compiler} {}: {}", output.status, String::from_utf8_lossy(&output.stderr))))
        }
        Ok(_) => {
            std::fs::rename(&part, &library).with_context(|| library.display().to_string())?;
            Ok(library)
        }
    }
}

/// Has a worker run under the library, with a right clock.
fn take_clock(stage: &Stage, worker: &str, library: &Path, file: &Path) -> Result<(), FaultError> {
    let workers = stage.workers()?;
    set_offset(file, 0)?;
    let library = library.display().to_string();
    if workers.variable(worker, PRELOAD)?.as_ref() == Some(&library) {
        return Ok(());
    }
    workers.set_variable(worker, PRELOAD, Some(&library))?;
    workers.set_variable(worker, OFFSET, Some(&file.display().to_string()))?;
    restart(stage, worker)
}

/// Has a worker that does not get on with the library run without it again. It may hang, so it is killed.
fn give_clock_back(stage: &Stage, worker: &str) -> Result<(), FaultError> {
    let workers = stage.workers()?;
    for key in [PRELOAD, OFFSET] {
        workers.set_variable(worker, key, None)?;
    }
    match workers.process(worker) {
        Ok(process) => Ok(process.kill().map(drop)?),
        Err(FaultError::NoTarget(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// In place, because the worker has mapped the file.
fn set_offset(file: &Path, seconds: i64) -> Result<(), FaultError> {
    let nanos = seconds.checked_mul(1_000_000_000).context("a jump of so many seconds")?;
    let written =
        File::options().write(true).create(true).truncate(false).open(file).and_then(|file| file.write_all_at(&nanos.to_ne_bytes(), 0));
    Ok(written.with_context(|| file.display().to_string())?)
}

/// How many seconds a worker's clock is ahead, by the date that it writes into each of its answers.
fn seconds_ahead(http: SocketAddr) -> anyhow::Result<i64> {
    let answer = ports::get(http, "/health", ASK_TIMEOUT)?;
    let date = answer.header("date").context("its answers have no date")?;
    let theirs = chrono::DateTime::parse_from_rfc2822(date).with_context(|| date.to_string())?.timestamp();
    let ours = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() as i64;
    Ok(theirs - ours)
}

/// Waits until the worker's clock is so far ahead; where it is then.
fn wait_for_clock(http: SocketAddr, wanted_seconds: i64, timeout: Duration) -> Result<i64, FaultError> {
    let deadline = Instant::now() + timeout;
    loop {
        let found = seconds_ahead(http);
        match found {
            Ok(found) if (found - wanted_seconds).abs() <= TOLERANCE_SECONDS => return Ok(found),
            _ if Instant::now() < deadline => std::thread::sleep(LOOK_INTERVAL),
            Ok(found) => {
                return Err(FaultError::NotPossibleHere(format!(
                    "the worker's clock is {found} s ahead where {wanted_seconds} s were set"
                )));
            }
            Err(error) => return Err(FaultError::Harness(error.context("the worker does not say what time it has"))),
        }
    }
}

impl Fault<Stage> for Jump {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let given = &self.setup.given;
        let seconds = i64::try_from(given.duration("by").as_secs()).context("a jump of so many seconds")?;
        let seconds = if given.choice("direction") == "back" { -seconds } else { seconds };
        let library = library(stage.folder())?;
        let worker = self.setup.worker(stage)?;
        let file = stage.folder().join(format!("clock-{worker}"));
        take_clock(stage, &worker, &library, &file)?;
        let http = stage.workers()?.view(&worker)?.http;
        if let Err(error) = wait_for_clock(http, 0, READY_TIME_MAX) {
            give_clock_back(stage, &worker)?;
            // What does not come up without the library either has another reason not to.
            if wait_for_clock(http, 0, READY_TIME_MAX).is_err() {
                let neither = "answers neither with a clock that can be set nor without";
                return Err(FaultError::Harness(anyhow::anyhow!("{worker} {neither}: {error}")));
            }
            return Err(FaultError::NotPossibleHere(format!("the worker does not run with a clock that can be set: {error}")));
        }
        set_offset(&file, seconds)?;
        self.jumped = Some((worker.clone(), file));
        let ahead = wait_for_clock(http, seconds, JUMP_TIME_MAX)?;
        Ok(Fired { hit: vec![worker.clone()], evidence: format!("the date in the answers of {worker} is {ahead} s ahead"), count: 1 })
    }

    fn undo(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let Some((worker, file)) = &self.jumped else { return nothing() };
        set_offset(file, 0)?;
        let http = stage.workers()?.view(worker)?.http;
        // It may be down for another reason; then its next life has the right time.
        let (evidence, count) = match wait_for_clock(http, 0, JUMP_TIME_MAX) {
            Ok(ahead) => (format!("the clock of {worker} is right again ({ahead} s)"), 1),
            Err(error) => (format!("{worker} was not asked for its time: {error}"), 0),
        };
        let fired = Fired { hit: vec![worker.clone()], evidence, count };
        self.jumped = None;
        Ok(fired)
    }
}

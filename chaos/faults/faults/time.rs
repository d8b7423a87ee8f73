//! `time.jump`: the wall clock of one worker goes wrong, by libfaketime.
//!
//! The library is loaded into the worker before the system's own and answers for its clock; how far it is off stands in a file, which is read again once a
//! second. Only the wall clock is changed: the monotonic one drives time-outs, and no machine's goes backwards. A worker that does not run under the
//! library is restarted under it first, with a clock that is right, so that what is seen later is the jump alone.
//!
//! On failure: without the library the fault is not possible here. `apt-get install libfaketime`.

use super::nothing;
use super::process::restart;
use super::target::Setup;
use crate::api::{Fault, FaultError, Fired};
use crate::stage::{Stage, ports};
use anyhow::Context;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PRELOAD: &str = "LD_PRELOAD";
const READY_TIME_MAX: Duration = Duration::from_secs(30);
/// The file is read again after a second.
const JUMP_TIME_MAX: Duration = Duration::from_secs(10);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// An HTTP date has whole seconds and is cached for one.
const TOLERANCE_SECONDS: i64 = 3;

/// Of the distributions; the one for programs with threads.
const LIBRARIES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
];

pub(crate) struct Jump {
    setup: Setup,
    jumped: Option<(String, PathBuf)>,
}

impl Jump {
    pub(crate) fn new(setup: Setup) -> Jump {
        Jump { setup, jumped: None }
    }
}

/// Has a worker run under the library, with a right clock.
fn take_clock(stage: &Stage, worker: &str, library: &str, file: &Path) -> Result<(), FaultError> {
    let workers = stage.workers()?;
    set_offset(file, 0)?;
    if workers.variable(worker, PRELOAD)?.as_deref() == Some(library) {
        return Ok(());
    }
    let file = file.display().to_string();
    for (key, value) in [
        (PRELOAD, library),
        ("FAKETIME_TIMESTAMP_FILE", file.as_str()),
        ("FAKETIME_CACHE_DURATION", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ] {
        workers.set_variable(worker, key, Some(value))?;
    }
    restart(stage, worker)
}

/// Has a worker that does not get on with the library run without it again. It may hang, so it is killed.
fn give_clock_back(stage: &Stage, worker: &str) -> Result<(), FaultError> {
    let workers = stage.workers()?;
    for key in [PRELOAD, "FAKETIME_TIMESTAMP_FILE", "FAKETIME_CACHE_DURATION", "FAKETIME_DONT_FAKE_MONOTONIC"] {
        workers.set_variable(worker, key, None)?;
    }
    match workers.process(worker) {
        Ok(process) => Ok(process.kill().map(drop)?),
        Err(FaultError::NoTarget(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn set_offset(file: &Path, seconds: i64) -> Result<(), FaultError> {
    let part = file.with_extension("part");
    std::fs::write(&part, format!("{seconds:+}s\n")).with_context(|| part.display().to_string())?;
    Ok(std::fs::rename(&part, file).with_context(|| file.display().to_string())?)
}

/// How many seconds a worker's clock is ahead, by the date in its answers.
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
        let configured = std::env::var("STREAMSHIELD_LIBFAKETIME").ok();
        let library = configured.or_else(|| LIBRARIES.iter().find(|path| Path::new(path).exists()).map(|path| path.to_string()));
        let library = library
            .ok_or_else(|| FaultError::NotPossibleHere("libfaketime is not installed: scripts/bootstrap.sh chaos does it".into()))?;
        let worker = self.setup.worker(stage)?;
        let file = stage.folder().join(format!("clock-{worker}"));
        take_clock(stage, &worker, &library, &file)?;
        let http = stage.workers()?.view(&worker)?.http;
        if let Err(error) = wait_for_clock(http, 0, READY_TIME_MAX) {
            give_clock_back(stage, &worker)?;
            return Err(FaultError::NotPossibleHere(format!("the worker does not run under libfaketime: {error}")));
        }
        set_offset(&file, seconds)?;
        self.jumped = Some((worker.clone(), file));
        let ahead = wait_for_clock(http, seconds, JUMP_TIME_MAX)?;
        Ok(Fired { hit: vec![worker.clone()], evidence: format!("the date in the answers of {worker} is {ahead} s ahead"), count: 1 })
    }

    fn undo(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let Some((worker, file)) = self.jumped.take() else { return nothing() };
        set_offset(&file, 0)?;
        let http = stage.workers()?.view(&worker)?.http;
        // It may be down for another reason; then its next life has the right time.
        let told = match wait_for_clock(http, 0, JUMP_TIME_MAX) {
            Ok(ahead) => format!("the clock of {worker} is right again ({ahead} s)"),
            Err(error) => format!("{worker} was not asked for its time: {error}"),
        };
        Ok(Fired { hit: vec![worker], evidence: told, count: 1 })
    }
}

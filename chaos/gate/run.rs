//! Runs the plan twice, each time in a process of its own, and compares.

use super::{Prices, Promotion, compare, markdown};
use crate::journal::{Journal, JournalError};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

/// One of the two.
#[derive(Clone, Debug)]
pub struct Side {
    /// `baseline` or `candidate`: its folder.
    pub name: &'static str,
    pub job: Option<PathBuf>,
    /// The program whose workers run.
    pub binary: PathBuf,
}

/// What is to be compared.
pub struct GateRequest {
    /// A file or the name of a ready plan.
    pub plan: String,
    pub seed: u64,
    pub baseline: Side,
    pub candidate: Side,
    pub tolerance: f64,
    pub prices: Prices,
    pub folder: PathBuf,
    /// The program that runs the plans: this one.
    pub runner: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("{0} can't be run: {1}")]
    Start(String, #[source] std::io::Error),
    #[error("the run of the {side} ended with {status} and left no journal that can be read: {source}")]
    NoJournal { side: &'static str, status: ExitStatus, source: JournalError },
    #[error("the run of the {side} ended with {status}, which is not what its journal says: it is another run's")]
    OtherJournal { side: &'static str, status: ExitStatus },
    #[error("interrupted")]
    Interrupted,
    #[error("can't write to `{0}`: {1}")]
    Write(String, #[source] std::io::Error),
}

/// How soon the end of a run, and the wish to end it, are noticed.
const TURN: Duration = Duration::from_millis(100);

/// The baseline first: if it can't be run, nothing is said about the candidate.
pub fn run(request: &GateRequest, wants_end: &dyn Fn() -> bool) -> Result<Promotion, GateError> {
    let baseline = run_side(request, &request.baseline, wants_end)?;
    if wants_end() {
        return Err(GateError::Interrupted);
    }
    let candidate = run_side(request, &request.candidate, wants_end)?;
    let promotion = compare(&baseline, &candidate, request.tolerance, request.prices);
    write(&request.folder, &promotion)?;
    Ok(promotion)
}

fn run_side(request: &GateRequest, side: &Side, wants_end: &dyn Fn() -> bool) -> Result<Journal, GateError> {
    let folder = request.folder.join(side.name);
    let mut command = Command::new(&request.runner);
    command.args(["chaos", "run", &request.plan, "--seed", &request.seed.to_string(), "--out"]).arg(&folder);
    if let Some(job) = &side.job {
        command.arg("--job").arg(job);
    }
    command.env("STREAMSHIELD_BIN", &side.binary);
    let failed = |error| GateError::Start(request.runner.display().to_string(), error);
    let status = wait(command.spawn().map_err(failed)?, wants_end).map_err(failed)?;
    let side = side.name;
    let journal = Journal::read(&folder.join("journal.json")).map_err(|source| GateError::NoJournal { side, status, source })?;
    match status.code() == Some(journal.verdict.exit_code.into()) {
        true => Ok(journal),
        false => Err(GateError::OtherJournal { side, status }),
    }
}

/// The wish to end is passed on once: the run heals, and ends by itself.
fn wait(mut child: Child, wants_end: &dyn Fn() -> bool) -> std::io::Result<ExitStatus> {
    let mut is_told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if !is_told && wants_end() {
            is_told = true;
            // A second one would end it without healing, so one that has it from the terminal already gets no other.
            if !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
                rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)?;
            }
        }
        std::thread::sleep(TURN);
    }
}

fn write(folder: &Path, promotion: &Promotion) -> Result<(), GateError> {
    let failed = |error| GateError::Write(folder.display().to_string(), error);
    let text = serde_json::to_string_pretty(promotion).expect("plain data always serializes") + "\n";
    std::fs::write(folder.join("promotion.json"), text).map_err(failed)?;
    std::fs::write(folder.join("promotion.md"), markdown(promotion)).map_err(failed)
}

//! `streamshield status`: the whole job, from its control log.

use super::ExitStatus;
use super::check::report;
use super::tables;
use crate::job::secret::Redactor;
use crate::job::{Job, read};
use crate::problem::{Problem, Problems};
use crate::wiring::cluster;
use crate::wiring::control::{ControlError, ControlLog};
use crossterm::terminal::{Clear, ClearType};
use crossterm::{cursor, queue};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;
use streamshield_core::status::ClusterStatus;

const REDRAW_INTERVAL: Duration = Duration::from_secs(1);

/// How it is shown.
#[derive(Clone, Copy)]
pub struct Showing {
    pub watch: bool,
    pub json: bool,
}

pub fn status(path: &Path, showing: Showing, redactor: &Redactor) -> ExitStatus {
    let shown = open(path, redactor).and_then(|(job, mut control)| show(&job, &mut control, showing, redactor).map_err(Stop::failed));
    finish(shown, redactor)
}

/// Why a question has no answer.
pub struct Stop {
    problems: Problems,
    status: ExitStatus,
}

impl Stop {
    /// The job file is wrong.
    pub fn usage(problems: Problems) -> Stop {
        Stop { problems, status: ExitStatus::Usage }
    }

    pub fn failed(error: ControlError) -> Stop {
        let hint = match &error {
            ControlError::NeverRan { .. } => "start it with `streamshield run`; is this the right cluster, and the right `name`?",
            ControlError::Log(_) => "is the cluster reachable, and may this user read there?",
            ControlError::NotReadBack(_) => "`streamshield status` shows what comes of it",
            ControlError::Replay(_) => "a newer release may have written it: use the program that runs the job",
        };
        Stop::with(ExitStatus::Failed, Problem::error(error.to_string()).hint(hint))
    }

    pub fn with(status: ExitStatus, problem: Problem) -> Stop {
        Stop { problems: Problems(vec![problem]), status }
    }
}

/// Reports what stopped a command.
pub fn finish(result: Result<(), Stop>, redactor: &Redactor) -> ExitStatus {
    match result {
        Ok(()) => ExitStatus::Ok,
        Err(Stop { problems, status }) => {
            report(&problems, redactor);
            status
        }
    }
}

/// Reads a job file for a question about the job: its SQL is not looked at, so a question has an answer even where the SQL has changed since the start.
pub fn read_job(path: &Path, redactor: &Redactor) -> Result<Job, Stop> {
    let (job, problems) = read::read(path, redactor);
    let job = job.map(|mut job| {
        if let Some(name) = crate::job::settings::name_in(&job.sql.text) {
            job.name = name;
        }
        job
    });
    match job {
        Some(job) if !job.name.is_empty() => Ok(job),
        Some(_) => Err(Stop::with(ExitStatus::Usage, Problem::error("the job has no name").hint("add `name: …`"))),
        None => Err(Stop { problems, status: ExitStatus::Usage }),
    }
}

/// A job and its control log.
pub fn open(path: &Path, redactor: &Redactor) -> Result<(Job, ControlLog), Stop> {
    let job = read_job(path, redactor)?;
    let log = cluster::reach(&job).map_err(|problem| Stop::with(ExitStatus::Failed, problem))?;
    let control = ControlLog::open(log, &job.name).map_err(Stop::failed)?;
    Ok((job, control))
}

fn show(job: &Job, control: &mut ControlLog, showing: Showing, redactor: &Redactor) -> Result<(), ControlError> {
    let mut drawn_lines = 0;
    loop {
        let status = ClusterStatus::assemble(&job.name, &control.cluster);
        let text = if showing.json { json(&status, showing.watch) } else { tables::cluster(&status) };
        let text = redactor.redact(&text);
        let in_place = showing.watch && !showing.json && io::stdout().is_terminal();
        // Who reads no more has seen enough.
        let written = if in_place { redraw(&text, &mut drawn_lines) } else { writeln!(io::stdout(), "{}", text.trim_end()) };
        if written.is_err() || !showing.watch {
            return Ok(());
        }
        std::thread::sleep(REDRAW_INTERVAL);
        control.refresh()?;
    }
}

/// One object; while watching one a line.
fn json(status: &ClusterStatus, watch: bool) -> String {
    let text = if watch { serde_json::to_string(status) } else { serde_json::to_string_pretty(status) };
    text.expect("plain data always serializes")
}

fn redraw(text: &str, drawn_lines: &mut u16) -> io::Result<()> {
    let (columns, lines) = crossterm::terminal::size().unwrap_or((100, 40));
    let mut output = io::stdout().lock();
    if *drawn_lines > 0 {
        queue!(output, cursor::MoveToPreviousLine(*drawn_lines))?;
    }
    *drawn_lines = 0;
    // What does not fit can't be redrawn in place.
    for line in text.lines().take(usize::from(lines.saturating_sub(1))) {
        queue!(output, Clear(ClearType::CurrentLine))?;
        writeln!(output, "{}", line.chars().take(usize::from(columns)).collect::<String>())?;
        *drawn_lines += 1;
    }
    queue!(output, Clear(ClearType::FromCursorDown))?;
    output.flush()
}

//! `streamshield workers`: who runs a job, and to empty one of them before it is stopped.

use super::status::{Stop, finish, open};
use super::{ExitStatus, say, tables};
use crate::job::secret::Redactor;
use crate::problem::{Problem, did_you_mean};
use crate::wiring::control::ControlLog;
use std::path::Path;
use std::time::{Duration, Instant};
use streamshield_core::cluster::{ControlRecord, Standing};
use streamshield_core::ids::Incarnation;
use streamshield_core::status::{ClusterStatus, WorkerStatus};

const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What is asked of a worker.
pub struct DrainRequest<'a> {
    pub worker: &'a str,
    pub undo: bool,
    /// How long to wait until it owns nothing but finished regions; None: not at all.
    pub wait: Option<Duration>,
}

pub fn list(path: &Path, json: bool, redactor: &Redactor) -> ExitStatus {
    let shown = open(path, redactor).map(|(job, control)| {
        let status = ClusterStatus::assemble(&job.name, &control.cluster);
        let text = match json {
            true => serde_json::to_string_pretty(&status.workers).expect("plain data always serializes"),
            false if status.workers.is_empty() => "no worker is alive".into(),
            false => tables::workers(&status.workers),
        };
        say(redactor.redact(text.trim_end()));
    });
    finish(shown, redactor)
}

/// Asks for a drain and waits until it is done.
pub fn drain(path: &Path, request: &DrainRequest<'_>, redactor: &Redactor) -> ExitStatus {
    let drained = open(path, redactor).and_then(|(job, mut control)| {
        let asked = find(&job.name, &control, request.worker)?;
        let incarnation = Some(Incarnation(asked.incarnation));
        let record = ControlRecord::Drain { worker: request.worker.to_string(), undo: request.undo, incarnation };
        control.append(&record).map_err(Stop::failed)?;
        match (request.undo, request.wait) {
            (true, _) => say(format_args!("worker `{}` takes regions again", request.worker)),
            (false, None) => {
                if let Some(problem) = called_off(&asked, &find(&job.name, &control, request.worker)?) {
                    return Err(Stop::with(ExitStatus::Failed, problem));
                }
                say(format_args!("worker `{}` is draining; `streamshield workers list` shows what it still owns", request.worker));
            }
            (false, Some(time_max)) => wait_until_empty(&job.name, &mut control, &asked, time_max)?,
        }
        Ok(())
    });
    finish(drained, redactor)
}

fn find(job: &str, control: &ControlLog, name: &str) -> Result<WorkerStatus, Stop> {
    let workers = ClusterStatus::assemble(job, &control.cluster).workers;
    if let Some(worker) = workers.iter().find(|worker| worker.worker == name) {
        return Ok(worker.clone());
    }
    let names: Vec<&str> = workers.iter().map(|worker| worker.worker.as_str()).collect();
    let hint = match did_you_mean(name, names.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None if names.is_empty() => "no worker is alive".into(),
        None => format!("there are {}", names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    };
    Err(Stop::with(ExitStatus::Usage, Problem::error(format!("job `{job}` has no live worker `{name}`")).hint(hint)))
}

/// What a request to drain has become; None: it holds.
fn called_off(asked: &WorkerStatus, now: &WorkerStatus) -> Option<Problem> {
    let name = &now.worker;
    // The request is one to an incarnation: who joins again knows nothing of it.
    match (now.draining, now.incarnation == asked.incarnation) {
        (true, _) => None,
        (false, false) => Some(
            Problem::error(format!("worker `{name}` has joined again, as incarnation {}, and takes regions", now.incarnation))
                .hint("the request ended with the incarnation that it was made to: ask once more"),
        ),
        (false, true) => Some(Problem::error(format!("worker `{name}` takes regions again: the request was taken back with --undo"))),
    }
}

fn wait_until_empty(job: &str, control: &mut ControlLog, asked: &WorkerStatus, time_max: Duration) -> Result<(), Stop> {
    let (name, deadline) = (asked.worker.as_str(), Instant::now() + time_max);
    let mut last = Incarnation(asked.incarnation);
    loop {
        control.refresh().map_err(Stop::failed)?;
        let status = ClusterStatus::assemble(job, &control.cluster);
        let Some(worker) = status.workers.iter().find(|worker| worker.worker == name) else {
            if control.cluster.standing(last) == Standing::Left {
                say(format_args!("worker `{name}` has left"));
                return Ok(());
            }
            // Expired, or on its way to a new incarnation, which would know nothing of the request.
            if Instant::now() > deadline {
                return Err(Stop::with(
                    ExitStatus::Failed,
                    Problem::error(format!("worker `{name}` has been lost and may come back")).hint("if it does, ask once more"),
                ));
            }
            std::thread::sleep(LOOK_INTERVAL);
            continue;
        };
        last = Incarnation(worker.incarnation);
        if let Some(problem) = called_off(asked, worker) {
            return Err(Stop::with(ExitStatus::Failed, problem));
        }
        let left = status.unfinished_regions_of(name);
        if left == 0 {
            let finished = if worker.regions_owned > 0 { " but finished regions" } else { "" };
            say(format_args!("worker `{name}` owns nothing any more{finished}: it can be stopped"));
            return Ok(());
        }
        if status.workers.iter().all(|worker| worker.draining) {
            return Err(Stop::with(
                ExitStatus::Failed,
                Problem::error(format!("worker `{name}` keeps {left} regions: there is no other worker to take them"))
                    .hint("start another worker first, or take it back with --undo"),
            ));
        }
        if Instant::now() > deadline {
            return Err(Stop::with(
                ExitStatus::Failed,
                Problem::error(format!("worker `{name}` still owns {left} regions after {time_max:?}"))
                    .hint("it goes on draining; `streamshield status` shows which regions wait for what"),
            ));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_drain_holds_for_the_incarnation_that_was_asked() {
        let worker = |incarnation: u64, draining: bool| WorkerStatus { worker: "a".into(), incarnation, draining, ..Default::default() };
        let said = |now: WorkerStatus| called_off(&worker(7, false), &now).map(|problem| problem.message);
        assert_eq!(said(worker(7, true)), None);
        assert_eq!(said(worker(8, true)), None, "it was asked once more");
        assert_eq!(said(worker(8, false)).as_deref(), Some("worker `a` has joined again, as incarnation 8, and takes regions"));
        assert_eq!(said(worker(7, false)).as_deref(), Some("worker `a` takes regions again: the request was taken back with --undo"));
    }
}

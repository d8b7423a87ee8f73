//! `streamshield check`, `explain` and `topics create`: everything that does not run the job.

use super::{ExitStatus, ExplainFormat, read_and_plan, say};
use crate::job::secret::Redactor;
use crate::job::{Job, Replication, Slo};
use crate::problem::{Problem, Problems};
use crate::wiring::topics::{self, Topic};
use crate::wiring::{self, PlannedJob, checkpoints, cluster};
use std::path::Path;
use std::time::Duration;
use streamshield_core::ports::log::Log;
use streamshield_core::tiers;

/// Whether the cluster is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Cluster,
    Offline,
}

pub fn check(path: &Path, reach: Reach, workers: Option<u32>, redactor: &Redactor) -> ExitStatus {
    let (planned, mut problems) = read_and_plan(path, redactor);
    let Some(planned) = planned else { return report(&problems, redactor) };
    wiring::warn_about_workers(&planned.job, workers, &mut problems);
    let (topics, note) = match reach {
        Reach::Offline => (None, None),
        Reach::Cluster => {
            checkpoints::probe(&planned.job).unwrap_or_else(|problem| problems.add(problem));
            compare(&planned, &mut problems)
        }
    };
    let status = report(&problems, redactor);
    if status == ExitStatus::Ok {
        print_ok(&planned, topics.as_deref(), note.as_deref(), redactor);
    }
    status
}

pub fn explain(path: &Path, format: ExplainFormat, redactor: &Redactor) -> ExitStatus {
    let (planned, problems) = read_and_plan(path, redactor);
    let status = report(&problems, redactor);
    if let Some(PlannedJob { job, planned }) = planned {
        let text = match format {
            ExplainFormat::Text => streamshield_sql::explain::text(&planned, job.parallelism),
            ExplainFormat::Json => {
                let mut json = streamshield_sql::explain::json(&planned, job.parallelism);
                json["tier"] = tiers::number(job.replication.tier).into();
                json["slo"] = slo_json(&job.slo);
                format!("{json:#}")
            }
            ExplainFormat::Dot => streamshield_sql::explain::graphviz(&planned, job.parallelism),
        };
        say(redactor.redact(text.trim_end()));
    }
    status
}

/// What the job promises; null where it says nothing.
fn slo_json(slo: &Slo) -> serde_json::Value {
    let ms = |time: Option<Duration>| time.map(|time| time.as_millis() as u64);
    serde_json::json!({ "completeness": slo.completeness, "max_latency_ms": ms(slo.max_latency), "max_recovery_ms": ms(slo.max_recovery) })
}

pub fn create_topics(path: &Path, dry_run: bool, redactor: &Redactor) -> ExitStatus {
    let (planned, mut problems) = read_and_plan(path, redactor);
    let Some(planned) = planned else { return report(&problems, redactor) };
    let log = match cluster::ask(&planned.job) {
        Ok(Ok(log)) => log,
        Ok(Err(reason)) => {
            problems.add(Problem::error(format!("no topics were created: {reason}")));
            report(&problems, redactor);
            return ExitStatus::Failed;
        }
        Err(problem) => {
            problems.add(problem);
            return report(&problems, redactor);
        }
    };
    let topics = topics::compare(&planned, &log, &mut problems);
    if report(&problems, redactor) != ExitStatus::Ok {
        return ExitStatus::Usage;
    }
    let topics = topics.unwrap_or_default();
    let missing: Vec<_> = topics.iter().filter(|topic| !topic.exists).map(|topic| topic.spec.clone()).collect();
    if !dry_run && let Err(error) = log.create_topics(&missing) {
        report(&Problems(vec![Problem::error(error.message)]), redactor);
        return ExitStatus::Failed;
    }
    for topic in &topics {
        let what = match (topic.exists, dry_run) {
            (true, _) => "exists      ",
            (false, true) => "would create",
            (false, false) => "created     ",
        };
        say(format_args!("{what} {}", topic.describe()));
    }
    ExitStatus::Ok
}

/// The job's topics, or a note why they are not known.
fn compare(planned: &PlannedJob, problems: &mut Problems) -> (Option<Vec<Topic>>, Option<String>) {
    match cluster::ask(&planned.job) {
        Ok(Ok(log)) => (topics::compare(planned, &log, problems), None),
        Ok(Err(reason)) => (None, Some(format!("topics were not checked: {reason}"))),
        Err(problem) => {
            problems.add(problem);
            (None, None)
        }
    }
}

fn print_ok(planned: &PlannedJob, topics: Option<&[Topic]>, note: Option<&str>, redactor: &Redactor) {
    let plan = &planned.planned.plan;
    let (stages, exchanges) = (plan.stages.len(), plan.exchanges.len());
    say(format_args!("ok: job `{}`, {stages} stages, {exchanges} exchanges, plan {}", planned.job.name, plan.fingerprint));
    say(replication(&planned.job));
    if let Some(topics) = topics {
        let existing = topics.iter().filter(|topic| topic.exists).count();
        say(format_args!("topics: {existing} of {} exist, the others are created at the start", topics.len()));
    }
    if let Some(note) = note {
        say(format_args!("note: {}", redactor.redact(note)));
    }
}

/// One line: the tier, what follows from it, and where checkpoints go.
fn replication(job: &Job) -> String {
    let Replication { tier, followers, .. } = job.replication;
    let bound = tiers::recovery_bound(tier);
    let followed = match followers {
        0 => String::new(),
        1 => ", 1 follower of each region".into(),
        count => format!(", {count} followers of each region"),
    };
    let checkpoints = match &job.checkpoint {
        Some(checkpoint) => format!("checkpoints every {:?} to {}", checkpoint.interval, checkpoint.store),
        None => "no checkpoints".into(),
    };
    format!("tier {}: a lost worker is replaced within {bound:?}{followed}; {checkpoints}", tiers::describe(tier))
}

/// Prints what was found.
pub fn report(problems: &Problems, redactor: &Redactor) -> ExitStatus {
    problems.print(&|text| redactor.redact(text));
    if problems.has_errors() { ExitStatus::Usage } else { ExitStatus::Ok }
}

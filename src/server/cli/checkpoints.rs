//! `streamshield checkpoints`: what lies in a job's store, whether it can be restored, and what is kept.
//!
//! The job does not notice: reading changes nothing, a pin is a mark of its own, and deleting follows the same two-phase rule as the owners' upkeep. A checkpoint
//! is named by its region and epoch, as `list` shows them.

use super::status::{Stop, finish, read_job};
use super::{ExitStatus, read_and_plan, say, tables};
use crate::job::Job;
use crate::job::secret::Redactor;
use crate::problem::Problem;
use crate::wiring::checkpoints::{self, CheckpointAdmin};
use crate::wiring::{self, PlannedJob, cluster};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use streamshield_core::ids::{Epoch, RegionId, StageId};
use streamshield_core::ports::checkpoint::{CheckpointError, CheckpointErrorKind, CheckpointInfo, Durability};
use streamshield_engine::plan::{Operator, StagePlan};

/// Which checkpoints are meant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection {
    /// None: of all regions.
    pub region: Option<RegionId>,
    /// None: the newest one of each region.
    pub epoch: Option<Epoch>,
}

/// What a restore goes back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreTo {
    Latest,
    /// Of each region the newest checkpoint at or before it.
    Epoch(Epoch),
}

impl std::str::FromStr for RestoreTo {
    type Err = String;

    fn from_str(text: &str) -> Result<RestoreTo, String> {
        match text {
            "latest" => Ok(RestoreTo::Latest),
            _ => text.parse().map(|epoch| RestoreTo::Epoch(Epoch(epoch))).map_err(|_| format!("`{text}` is neither an epoch nor `latest`")),
        }
    }
}

/// `s1/0`, as it is shown everywhere.
pub fn parse_region(text: &str) -> Result<RegionId, String> {
    let parsed = text
        .strip_prefix('s')
        .and_then(|rest| rest.split_once('/'))
        .and_then(|(stage, partition)| Some(RegionId { stage: StageId(stage.parse().ok()?), partition: partition.parse().ok()? }));
    parsed.ok_or_else(|| format!("`{text}` is not a region: write `s1/0`"))
}

pub fn list(path: &Path, region: Option<RegionId>, json: bool, redactor: &Redactor) -> ExitStatus {
    finish(with_store(path, redactor, |job, admin| print_list(job, admin, region, json, redactor)), redactor)
}

pub fn verify(path: &Path, selection: Selection, redactor: &Redactor) -> ExitStatus {
    finish(with_store(path, redactor, |_, admin| verify_selected(admin, selection, redactor)), redactor)
}

pub fn pin(path: &Path, selection: Selection, pinned: bool, redactor: &Redactor) -> ExitStatus {
    finish(with_store(path, redactor, |_, admin| pin_selected(admin, selection, pinned)), redactor)
}

/// `grace`: None is the store's own.
pub fn collect(path: &Path, grace: Option<Duration>, redactor: &Redactor) -> ExitStatus {
    finish(with_store(path, redactor, |_, admin| collect_all(admin, grace)), redactor)
}

pub fn restore(path: &Path, to: RestoreTo, new_job: &str, redactor: &Redactor) -> ExitStatus {
    let restored = with_store(path, redactor, |job, admin| {
        check_new_name(job, new_job)?;
        let (planned, problems) = read_and_plan(path, redactor);
        let planned = planned.ok_or(Stop::usage(problems))?;
        restore_as(&planned, admin, to, new_job)
    });
    finish(restored, redactor)
}

fn with_store(path: &Path, redactor: &Redactor, act: impl FnOnce(&Job, &dyn CheckpointAdmin) -> Result<(), Stop>) -> Result<(), Stop> {
    let job = read_job(path, redactor)?;
    let Some(settings) = &job.checkpoint else {
        let problem = Problem::error(format!("job `{}` has no checkpoints", job.name))
            .hint("name a store, as `checkpoint: {store: s3://bucket/prefix}`");
        return Err(Stop::with(ExitStatus::Usage, problem));
    };
    let admin = checkpoints::admin(&job, settings).map_err(|problem| Stop::with(ExitStatus::Usage, problem))?;
    act(&job, admin.as_ref())
}

fn failed(error: CheckpointError) -> Stop {
    let hint = match error.kind {
        CheckpointErrorKind::Away => "the store does not answer; try again later",
        CheckpointErrorKind::Retry => "try again",
        CheckpointErrorKind::Fatal => "check `checkpoint.store` and its options",
    };
    Stop::with(ExitStatus::Failed, Problem::error(error.message).hint(hint))
}

/// By region, the oldest first.
fn all(admin: &dyn CheckpointAdmin, region: Option<RegionId>) -> Result<BTreeMap<RegionId, Vec<CheckpointInfo>>, Stop> {
    let regions = match region {
        Some(region) => vec![region],
        None => admin.regions().map_err(failed)?,
    };
    regions.into_iter().map(|region| Ok((region, admin.list(region).map_err(failed)?))).collect()
}

fn print_list(job: &Job, admin: &dyn CheckpointAdmin, region: Option<RegionId>, json: bool, redactor: &Redactor) -> Result<(), Stop> {
    let found: Vec<CheckpointInfo> = all(admin, region)?.into_values().flatten().collect();
    let text = match json {
        true => serde_json::to_string_pretty(&found).expect("plain data always serializes"),
        false if found.is_empty() => format!("job `{}` has no checkpoints yet", job.name),
        false => draw(&found, now_ms()),
    };
    say(redactor.redact(text.trim_end()));
    Ok(())
}

fn draw(found: &[CheckpointInfo], now_ms: i64) -> String {
    let mut table = tables::table(&["region", "epoch", "made", "age", "files", "size", "where", "pinned", "writer"], &[1, 3, 4, 5, 8]);
    for checkpoint in found {
        let place = match checkpoint.durability {
            Durability::Remote => "store",
            Durability::Local => "this machine only",
        };
        table.add_row([
            checkpoint.region.to_string(),
            checkpoint.epoch.to_string(),
            tables::time(Some(checkpoint.created_ms)),
            tables::milliseconds(u64::try_from(now_ms - checkpoint.created_ms).ok()),
            checkpoint.files.to_string(),
            tables::bytes(checkpoint.bytes),
            place.into(),
            if checkpoint.pinned { "pinned".into() } else { String::new() },
            checkpoint.incarnation.0.to_string(),
        ]);
    }
    format!("{table}\n")
}

/// What a selection means: of each region one checkpoint.
fn select(found: &BTreeMap<RegionId, Vec<CheckpointInfo>>, selection: Selection) -> Result<Vec<CheckpointInfo>, Stop> {
    let mut selected = Vec::new();
    for checkpoints in found.values() {
        let chosen = match selection.epoch {
            Some(epoch) => checkpoints.iter().rev().find(|checkpoint| checkpoint.epoch == epoch),
            None => checkpoints.last(),
        };
        selected.extend(chosen.cloned());
    }
    if selected.is_empty() { Err(none_found(selection)) } else { Ok(selected) }
}

fn none_found(selection: Selection) -> Stop {
    let what = match (selection.region, selection.epoch) {
        (Some(region), Some(epoch)) => format!("region {region} has no checkpoint of epoch {epoch}"),
        (Some(region), None) => format!("region {region} has no checkpoint"),
        (None, Some(epoch)) => format!("no region has a checkpoint of epoch {epoch}"),
        (None, None) => "there are no checkpoints".into(),
    };
    Stop::with(ExitStatus::Failed, Problem::error(what).hint("`streamshield checkpoints list` shows what there is"))
}

fn verify_selected(admin: &dyn CheckpointAdmin, selection: Selection, redactor: &Redactor) -> Result<(), Stop> {
    let regions = match selection.region {
        Some(region) => vec![region],
        None => admin.regions().map_err(failed)?,
    };
    let (mut whole, mut damaged) = (0, 0);
    for region in regions {
        // Without an epoch everything is looked at: a damaged old one is found before it is needed.
        let checked = admin.verify(region).map_err(failed)?;
        for checked in checked.iter().filter(|checked| selection.epoch.is_none_or(|epoch| checked.epoch == Some(epoch))) {
            let verdict = if checked.problems.is_empty() { "ok" } else { "damaged" };
            say(format_args!("{verdict:8} {region} {} ({} files, {})", checked.manifest, checked.files, tables::bytes(checked.bytes)));
            checked.problems.iter().for_each(|problem| say(format_args!("         {}", redactor.redact(problem))));
            if checked.problems.is_empty() { whole += 1 } else { damaged += 1 }
        }
    }
    if damaged > 0 {
        let problem = Problem::error(format!("{damaged} of {} checkpoints can't be restored", whole + damaged))
            .hint("a restore refuses them by itself and takes the next older one");
        return Err(Stop::with(ExitStatus::Failed, problem));
    }
    if whole == 0 {
        return Err(none_found(selection));
    }
    say(format_args!("{whole} checkpoints are whole"));
    Ok(())
}

fn pin_selected(admin: &dyn CheckpointAdmin, selection: Selection, pinned: bool) -> Result<(), Stop> {
    let found = all(admin, selection.region)?;
    let chosen = match (pinned, selection.epoch) {
        // What was pinned then need not be the newest now.
        (false, None) => found.into_values().flatten().filter(|checkpoint| checkpoint.pinned).collect(),
        _ => select(&found, selection)?,
    };
    for checkpoint in &chosen {
        let (region, epoch) = (checkpoint.region, checkpoint.epoch);
        if pinned { admin.pin(region, epoch) } else { admin.unpin(region, epoch) }.map_err(failed)?;
        say(format_args!("{} {} epoch {}", if pinned { "pinned  " } else { "unpinned" }, checkpoint.region, checkpoint.epoch));
    }
    if chosen.is_empty() {
        say("nothing was pinned");
    }
    Ok(())
}

fn collect_all(admin: &dyn CheckpointAdmin, grace: Option<Duration>) -> Result<(), Stop> {
    let mut deleted = 0;
    for region in admin.regions().map_err(failed)? {
        deleted += admin.collect_garbage(region, grace).map_err(failed)?;
    }
    say(format_args!("{deleted} objects deleted; what is needless since now goes when the grace is over"));
    Ok(())
}

/// Of each region the checkpoint to go back to. Err: a region has none, so the whole job can't go there.
fn restore_points(found: &BTreeMap<RegionId, Vec<CheckpointInfo>>, to: RestoreTo) -> Result<Vec<CheckpointInfo>, RegionId> {
    let chosen = |checkpoints: &[CheckpointInfo]| match to {
        RestoreTo::Latest => checkpoints.last().cloned(),
        RestoreTo::Epoch(epoch) => checkpoints.iter().rev().find(|checkpoint| checkpoint.epoch <= epoch).cloned(),
    };
    found.iter().map(|(region, checkpoints)| chosen(checkpoints).ok_or(*region)).collect()
}

fn check_new_name(job: &Job, new_job: &str) -> Result<(), Stop> {
    let usage = |message: String, hint: &str| Stop::with(ExitStatus::Usage, Problem::error(message).hint(hint));
    crate::job::read::check_name(new_job).map_err(|reason| {
        usage(format!("`{new_job}` can't be the name of a job: {reason}"), "lower-case letters, digits, `.`, `_` and `-`")
    })?;
    if new_job == job.name {
        return Err(usage(
            "a job can't be restored onto itself: the epochs of its regions never go back".into(),
            "give the restored job another name, as `--as orders-2`, and that name to its job file",
        ));
    }
    Ok(())
}

fn check_points(job: &Job, found: &BTreeMap<RegionId, Vec<CheckpointInfo>>, to: RestoreTo) -> Result<(), Stop> {
    let points = restore_points(found, to).map_err(|region| {
        let problem = Problem::error(format!("region {region} has no checkpoint that old"));
        Stop::with(ExitStatus::Failed, problem.hint("`streamshield checkpoints list` shows what there is; pin what you may want back"))
    })?;
    if points.is_empty() {
        return Err(Stop::with(ExitStatus::Failed, Problem::error(format!("job `{}` has no checkpoints", job.name))));
    }
    Ok(())
}

fn restore_as(planned: &PlannedJob, admin: &dyn CheckpointAdmin, to: RestoreTo, new_job: &str) -> Result<(), Stop> {
    let (job, stages) = (&planned.job, &planned.planned.plan.stages);
    if stages.iter().any(has_groups) {
        // What the store alone tells is told where the cluster does not answer, too.
        let mut found = all(admin, None)?;
        found.retain(|region, _| stages.get(region.stage.0 as usize).is_some_and(has_groups));
        check_points(job, &found, to)?;
    }
    let stop = |problem| Stop::with(ExitStatus::Failed, problem);
    let log = cluster::reach(job).map_err(stop)?;
    let to = match to {
        RestoreTo::Latest => None,
        RestoreTo::Epoch(epoch) => Some(epoch),
    };
    let starts = wiring::restore::restore(planned, admin, &log, to, new_job).map_err(stop)?;
    for start in &starts {
        match start.made_ms {
            Some(made_ms) => say(format_args!("{} from epoch {}, made {}", start.region, start.epoch, tables::time(Some(made_ms)))),
            None => say(format_args!("{} from epoch {}", start.region, start.epoch)),
        }
    }
    let bytes = tables::bytes(starts.iter().map(|start| start.bytes).sum());
    say(format_args!("job `{new_job}` starts from these ({bytes}): set `name: {new_job}` in its job file and run it"));
    Ok(())
}

/// Keeps windows: only checkpoints hold what it has.
fn has_groups(stage: &StagePlan) -> bool {
    stage.operators.iter().any(|operator| matches!(operator, Operator::WindowAggregate(_)))
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64)
}

#[cfg(test)]
#[path = "checkpoints_test.rs"]
mod tests;

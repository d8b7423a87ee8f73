//! What `status`, `workers` and `checkpoints` show, as tables for people.

use chrono::{DateTime, Utc};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ColumnConstraint, Table};
use streamshield_core::ports::checkpoint::Durability;
use streamshield_core::status::{
    ClusterStatus, FollowerRole, FollowerView, RegionState, RegionView, Takeover, TakeoverCause, WorkerStatus,
};
use streamshield_core::tiers;

/// More regions than a screen has lines are better asked for as JSON.
const REGIONS_SHOWN_MAX: usize = 200;
const TAKEOVERS_SHOWN_MAX: usize = 10;
const NOTHING: &str = "–";

/// The whole job.
pub fn cluster(status: &ClusterStatus) -> String {
    let tier = status.tier.map_or(NOTHING.to_string(), |tier| tiers::describe(tier).to_string());
    let totals = &status.totals;
    let mut text = format!(
        "{} · tier {tier} · {} workers · {} regions · in {} · out {} · lag {} · watermark {} · state {}\n\n",
        status.job,
        status.workers.len(),
        status.regions.len(),
        totals.records_in,
        totals.rows_out,
        totals.lag_records,
        time(totals.watermark_ms),
        bytes(totals.state_bytes),
    );
    text += &rest(status);
    text += &workers(&status.workers);
    text += "\n";
    text += &regions(&status.regions);
    if !status.takeovers.is_empty() {
        text += "\n";
        text += &takeovers(&status.takeovers, status.log_clock_ms);
    }
    if status.workers.is_empty() {
        text += "\nno worker is alive: the job goes on where it stopped when one starts\n";
    }
    text
}

/// Why it is not at rest, where that is by intention.
fn rest(status: &ClusterStatus) -> String {
    match (status.starts_in_ms, status.balances_in_ms) {
        (Some(ms), _) => format!("waiting for more workers, {} at most\n\n", milliseconds(Some(ms))),
        (None, Some(ms)) => format!("loads are evened out in {}\n\n", milliseconds(Some(ms))),
        (None, None) if status.at_rest || status.workers.is_empty() => String::new(),
        (None, None) => "regions are on their way\n\n".into(),
    }
}

pub fn workers(workers: &[WorkerStatus]) -> String {
    let mut table = table(
        &["worker", "state", "owns", "follows", "heard", "in", "out", "p99", "cpu", "memory", "rack", "http"],
        &[2, 3, 4, 5, 6, 7, 8, 9],
    );
    for worker in workers {
        let mut state = worker.state.clone().unwrap_or_else(|| "joined".into());
        if worker.draining && state != "draining" {
            state += ", draining";
        }
        table.add_row([
            worker.worker.clone(),
            state,
            worker.regions_owned.to_string(),
            worker.regions_followed.to_string(),
            format!("{} ago", milliseconds(Some(worker.heard_ms_ago))),
            worker.records_in.to_string(),
            worker.rows_out.to_string(),
            milliseconds(worker.latency_p99_ms),
            worker.cpu_percent.map_or(NOTHING.into(), |percent| format!("{percent} %")),
            worker.resident_bytes.map_or(NOTHING.into(), bytes),
            worker.rack.clone().unwrap_or_else(|| NOTHING.into()),
            worker.http.clone().unwrap_or_else(|| NOTHING.into()),
        ]);
    }
    let nobody = |has: &dyn Fn(&WorkerStatus) -> bool| !workers.iter().any(has);
    let unknown = [
        (8, nobody(&|worker| worker.cpu_percent.is_some())),
        (9, nobody(&|worker| worker.resident_bytes.is_some())),
        (10, nobody(&|worker| worker.rack.is_some())),
        (11, nobody(&|worker| worker.http.is_some())),
    ];
    for (column, _) in unknown.iter().filter(|(_, unknown)| *unknown) {
        if let Some(column) = table.column_mut(*column) {
            column.set_constraint(ColumnConstraint::Hidden);
        }
    }
    format!("{table}\n")
}

fn regions(regions: &[RegionView]) -> String {
    let mut table = table(
        &["region", "stage", "owner", "state", "epoch", "lag", "behind", "watermark", "held", "followers", "checkpoint"],
        &[4, 5, 6, 8],
    );
    for region in regions.iter().take(REGIONS_SHOWN_MAX) {
        table.add_row([
            region.region.clone(),
            region.stage.clone(),
            region.owner.clone().unwrap_or_else(|| NOTHING.into()),
            region_state(region),
            number(region.epoch),
            number(region.lag_records),
            milliseconds(region.lag_ms),
            time(region.watermark_ms),
            bytes(region.state_bytes),
            list(region.followers.iter().map(follower)),
            checkpoint(region),
        ]);
    }
    match regions.len().saturating_sub(REGIONS_SHOWN_MAX) {
        0 => format!("{table}\n"),
        more => format!("{table}\n… and {more} more: --json has them all\n"),
    }
}

fn region_state(region: &RegionView) -> String {
    match (&region.state, &region.stopped) {
        (RegionState::Active, Some(reason)) => format!("stopped: {}", short(reason)),
        (RegionState::Active, None) => "active".into(),
        (RegionState::Fencing, _) => "fencing".into(),
        (RegionState::Moving { to }, _) => format!("moving to {to}"),
        (RegionState::Unowned, _) => "waiting".into(),
        (RegionState::Quarantined { reason }, _) => format!("quarantined: {}", short(reason)),
        (RegionState::Finished, _) => "finished".into(),
    }
}

fn follower(follower: &FollowerView) -> String {
    let role = match follower.role {
        FollowerRole::Replica => "replica",
        FollowerRole::Standby => "standby",
        FollowerRole::Successor => "successor",
    };
    let how = match (follower.diverged, follower.ready, follower.epochs_behind) {
        (Some(epoch), ..) => format!("diverged at epoch {epoch}"),
        (None, false, _) => "catching up".into(),
        (None, true, Some(0)) => "in step".into(),
        (None, true, Some(1)) => "1 epoch behind".into(),
        (None, true, Some(epochs)) => format!("{epochs} epochs behind"),
        (None, true, None) => "ready".into(),
    };
    format!("{} {role}, {how}", follower.worker)
}

fn checkpoint(region: &RegionView) -> String {
    let Some(checkpoint) = &region.checkpoint else { return NOTHING.into() };
    let place = match checkpoint.durability {
        Durability::Local => "local only",
        Durability::Remote => "remote",
    };
    let age = checkpoint.age_ms.map_or(String::new(), |age| format!(", {} ago", milliseconds(Some(age))));
    format!("{}, {place}{age}", checkpoint.epoch)
}

fn takeovers(takeovers: &[Takeover], log_clock_ms: u64) -> String {
    let mut table = table(
        &["take-over", "from", "to", "because", "when", "detect", "fence", "catch up", "confirm", "first commit", "gap"],
        &[5, 6, 7, 8, 9, 10],
    );
    for takeover in takeovers.iter().take(TAKEOVERS_SHOWN_MAX) {
        let cause = match takeover.cause {
            TakeoverCause::Expired => "not heard any more",
            TakeoverCause::Left => "left",
            TakeoverCause::Replaced => "started anew",
            TakeoverCause::Moved => "moved",
            TakeoverCause::Failed => "failed",
        };
        let mut row = vec![
            takeover.region.clone(),
            takeover.from.clone(),
            takeover.to.clone(),
            cause.into(),
            format!("{} ago", milliseconds(Some(log_clock_ms.saturating_sub(takeover.at_ms)))),
        ];
        row.extend(takeover.phases_ms.named().map(|(_, phase)| milliseconds(phase)));
        row.push(milliseconds(takeover.phases_ms.total()));
        table.add_row(row);
    }
    format!("{table}\n")
}

/// A table whose columns of these numbers are figures.
pub fn table(header: &[&str], figures: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header(header);
    for index in figures {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn list(items: impl Iterator<Item = String>) -> String {
    let text = items.collect::<Vec<_>>().join("\n");
    if text.is_empty() { NOTHING.into() } else { text }
}

/// The first words of a reason; the log has all of it.
fn short(reason: &str) -> String {
    const SHOWN_MAX: usize = 60;
    if reason.chars().count() <= SHOWN_MAX { reason.to_string() } else { reason.chars().take(SHOWN_MAX).chain(['…']).collect() }
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| NOTHING.into(), |value| value.to_string())
}

/// `350 ms`, `12.3 s`, `5 min`, `3 h`.
pub fn milliseconds(value: Option<u64>) -> String {
    match value {
        None => NOTHING.into(),
        Some(ms @ 0..10_000) => format!("{ms} ms"),
        Some(ms @ 10_000..120_000) => format!("{:.1} s", ms as f64 / 1e3),
        Some(ms @ 120_000..7_200_000) => format!("{} min", ms / 60_000),
        Some(ms @ 7_200_000..172_800_000) => format!("{} h", ms / 3_600_000),
        Some(ms) => format!("{} d", ms / 86_400_000),
    }
}

pub fn time(milliseconds: Option<i64>) -> String {
    let time = milliseconds.and_then(DateTime::<Utc>::from_timestamp_millis);
    time.map_or_else(|| NOTHING.into(), |time| time.format("%Y-%m-%d %H:%M:%S").to_string())
}

pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
#[path = "tables_test.rs"]
mod tests;

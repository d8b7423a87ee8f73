//! `SET 'key' = 'value'` in the SQL: Flink's names for what the job file says in its own words.
//!
//! A script that was written for Flink should run. So its settings are obeyed where there is a counterpart, pointed out where they
//! mean nothing here, and refused where ignoring them would change results.

use super::read::check_name;
use super::{Job, units};
use crate::problem::{Place, Problem, Problems, did_you_mean};
use std::collections::BTreeMap;

const COMMIT_INTERVAL: &str = "streamshield.commit-interval";

/// Settings with an effect.
const OBEYED: &[&str] = &[
    "pipeline.name",
    "parallelism.default",
    "execution.runtime-mode",
    "execution.checkpointing.mode",
    COMMIT_INTERVAL,
    "streamshield.flush-interval",
];

/// Flink settings that mean nothing here: results do not depend on them.
const WITHOUT_MEANING: &[(&str, &str)] = &[
    (
        "execution.checkpointing.interval",
        "results are committed every `commit_interval` and state is written every `flush_interval`, whatever the checkpoints",
    ),
    ("execution.checkpointing.timeout", "there are no checkpoint barriers to wait for"),
    ("execution.checkpointing.min-pause", "there are no checkpoint barriers to wait for"),
    ("execution.checkpointing.storage", "state lies in `state_dir`"),
    ("execution.checkpointing.dir", "state lies in `state_dir`"),
    ("state.backend", "there is one state backend: memory over RocksDB"),
    ("state.backend.type", "there is one state backend: memory over RocksDB"),
    ("table.exec.mini-batch.enabled", "aggregation always works in batches"),
    ("table.exec.mini-batch.allow-latency", "aggregation always works in batches"),
    ("table.exec.mini-batch.size", "aggregation always works in batches"),
    ("table.optimizer.agg-phase-strategy", "aggregates are always split in two phases"),
    ("sql-client.execution.result-mode", "there is no SQL client"),
];

/// Applies the settings to the job. `by_planner` says which ones the planner has obeyed already.
pub fn apply(settings: &BTreeMap<String, String>, by_planner: &[&str], job: &mut Job, problems: &mut Problems) {
    for (key, value) in settings {
        let problem = match obey(key, value, job) {
            Some(Ok(())) => continue,
            Some(Err(reason)) => Problem::error(format!("`{key}`: {reason}")),
            None if by_planner.contains(&key.as_str()) => continue,
            None => match WITHOUT_MEANING.iter().find(|(known, _)| known == key) {
                Some((_, why)) => Problem::warning(format!("`{key}` has no effect")).hint(*why),
                None => {
                    let known = OBEYED.iter().chain(by_planner).copied();
                    let hint = match did_you_mean(key, known.clone()) {
                        Some(key) => format!("did you mean `{key}`?"),
                        None => format!("there are {}", known.map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")),
                    };
                    Problem::error(format!("unknown setting `{key}`")).hint(hint)
                }
            },
        };
        problems.add(problem.at_place(place_of(key, job)));
    }
    // Here, since only now it is known which interval counts: the default, the file's or the SQL's.
    if let Some(latency) = job.slo.max_latency
        && job.commit_interval > latency
    {
        let in_sql = if settings.contains_key(COMMIT_INTERVAL) { place_of(COMMIT_INTERVAL, job) } else { None };
        problems.add(
            Problem::error(format!("commit_interval of {:?} can't keep slo.max_latency of {latency:?}", job.commit_interval))
                .hint("results become visible at the commit: choose an interval well below the latency")
                .at_place(in_sql.or(job.latency_place.clone())),
        );
    }
}

/// Where the SQL names a setting.
fn place_of(key: &str, job: &Job) -> Option<Place> {
    let literal = format!("'{key}'");
    job.sql.text.find(&literal).map(|at| job.sql.place(at..at + literal.len()))
}

/// The name that a `SET` gives the job, found without planning the SQL: for questions about a job, which have an answer even where its SQL is broken by now.
pub fn name_in(sql: &str) -> Option<String> {
    let statements = sql.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join("\n");
    let (_, rest) = statements.rsplit_once("'pipeline.name'")?;
    let value = rest.trim_start().strip_prefix('=')?.trim_start().strip_prefix('\'')?;
    let name = value.split('\'').next()?;
    check_name(name).is_ok().then(|| name.to_string())
}

/// None: not one of ours.
fn obey(key: &str, value: &str, job: &mut Job) -> Option<Result<(), String>> {
    Some(match key {
        "pipeline.name" => check_name(value).map(|()| job.name = value.to_string()),
        "parallelism.default" => match value.parse::<u32>() {
            Ok(parallelism @ 1..=4096) => {
                job.parallelism = parallelism;
                Ok(())
            }
            _ => Err(format!("`{value}` is not a number from 1 to 4096")),
        },
        "execution.runtime-mode" => match value.to_ascii_lowercase().as_str() {
            "streaming" | "automatic" => Ok(()),
            _ => Err(format!("`{value}` is not supported: bounded sources end a streaming job by themselves")),
        },
        "execution.checkpointing.mode" => match value.to_ascii_uppercase().replace('-', "_").as_str() {
            "EXACTLY_ONCE" => Ok(()),
            _ => Err(format!("`{value}` is not supported: results are exactly once, always")),
        },
        COMMIT_INTERVAL => units::positive_duration(value).map(|interval| job.commit_interval = interval),
        "streamshield.flush-interval" => units::positive_duration(value).map(|interval| job.flush_interval = interval),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_job_is_found_without_planning() {
        assert_eq!(name_in("SET 'pipeline.name' = 'orders';\nSELECT 1").as_deref(), Some("orders"));
        assert_eq!(name_in("-- SET 'pipeline.name' = 'old';\nSELECT 1"), None);
        assert_eq!(name_in("SET 'pipeline.name' = 'a'; SET 'pipeline.name'='b';").as_deref(), Some("b"));
        assert_eq!(name_in("SELECT 'pipeline.name'"), None);
    }
}

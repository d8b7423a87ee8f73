//! What is run: the job that proves its own output, or a user's, of which less is known.
//!
//! | | own job | user's job |
//! |---|---|---|
//! | latency | each row, from its scheduled send time, as a reader sees it | as the workers report it, once a second |
//! | failover | silence of the output | phases of the take-over, as the new owner measures them |
//! | caught up | all that was sent has come out | nothing is left to take |
//! | rows a second | rows of the output | records sent, less the growth of the lag |
//! | oracle | all of it | the job's own topics, dead letters, rows where a stage gives one for each |
//! | promise | the plan's thresholds and tier | its own, in place of the plan's ([`Promise`]) |

use super::Stop;
use crate::plan::{Aggregate, Comparison, Invariant, Metric, Phase, Plan, Threshold};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use streamshield_workload::checks::{ControlFold, ControlFollower};
use streamshield_workload::user::UserJob;
use streamshield_workload::{Findings, Observation, Observer, Running, Sent, Settings, Workload, WorkloadError};

/// What a user's job promises, as `streamshield explain --format json` says it. An older program says nothing of it: then the plan's counts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Promise {
    pub tier: Option<u32>,
    slo: Slo,
}

/// `completeness` is none of it: late rows count against it, and this load sends none, so the invariants ask for every row.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Slo {
    max_latency_ms: Option<u64>,
    max_recovery_ms: Option<u64>,
}

impl Promise {
    /// In place of the plan's thresholds of that name. Take-overs are judged only where the plan does so, too: others have no kill that tells.
    pub fn thresholds(&self, plan: &Plan) -> BTreeMap<Metric, Vec<Threshold>> {
        let most = |limit_ms: u64, phase| {
            let limit = limit_ms as f64;
            vec![Threshold { aggregate: Aggregate::P99, comparison: Comparison::LessOrEqual, limit, phase }]
        };
        let latency = self.slo.max_latency_ms.map(|ms| (Metric::LatencyMs, most(ms, Phase::Healthy)));
        let recovery_ms = self.slo.max_recovery_ms.filter(|_| plan.thresholds.contains_key(&Metric::FailoverMs));
        latency.into_iter().chain(recovery_ms.map(|ms| (Metric::FailoverMs, most(ms, Phase::All)))).collect()
    }

    /// Whether it promises what this plan can't judge.
    pub fn is_left_open(&self, plan: &Plan) -> bool {
        self.slo.max_recovery_ms.is_some() && !plan.thresholds.contains_key(&Metric::FailoverMs)
    }
}

pub(super) enum Subject {
    Own(Box<Workload>),
    User(Box<UserJob>),
}

impl Subject {
    pub fn own(name: String, seed: u64, settings: Settings) -> Result<Subject, Stop> {
        Ok(Subject::Own(Box::new(Workload::new(name, seed, settings)?)))
    }

    /// `program` explains the job: its tables are not parsed here.
    pub fn user(job: &Path, program: &Path, seed: u64, settings: Settings) -> Result<(Subject, Promise), Stop> {
        let broken = |what: &str| Stop::Broken(format!("{}: {what}", job.display()));
        let text = std::fs::read_to_string(job).map_err(|error| broken(&error.to_string()))?;
        let mut command = Command::new(program);
        command.arg("explain").arg(job).args(["--format", "json"]).env("NO_COLOR", "1").stdin(Stdio::null());
        let explained = command.output().map_err(|error| broken(&error.to_string()))?;
        if !explained.status.success() {
            return Err(broken(&String::from_utf8_lossy(&explained.stderr)));
        }
        let folder = job.parent().unwrap_or(Path::new(""));
        let explained = String::from_utf8_lossy(&explained.stdout);
        let promise = serde_json::from_str(&explained).map_err(|error| broken(&format!("explain says something else: {error}")))?;
        Ok((Subject::User(Box::new(UserJob::read(&text, folder, &explained, seed, settings)?)), promise))
    }

    pub fn create_topics(&self, servers: &str) -> Result<(), WorkloadError> {
        match self {
            Subject::Own(workload) => workload.create_topics(servers),
            Subject::User(job) => job.create_topics(servers),
        }
    }

    pub fn job_yaml(&self, servers: &str, settings: &[(&str, String)]) -> Result<String, WorkloadError> {
        match self {
            Subject::Own(workload) => Ok(workload.job_yaml(servers, settings)),
            Subject::User(job) => job.job_yaml(servers, settings),
        }
    }

    /// A user's output tells nothing about when a row was due.
    pub fn observe(&self, servers: &str) -> Result<Option<Observer>, WorkloadError> {
        match self {
            Subject::Own(workload) => workload.observe(servers).map(Some),
            Subject::User(_) => Ok(None),
        }
    }

    pub fn start(&self, servers: &str) -> Result<Running, WorkloadError> {
        match self {
            Subject::Own(workload) => {
                if workload.settings.bulk_bytes > 0 {
                    workload.fill(servers)?;
                }
                workload.start(servers)
            }
            Subject::User(job) => job.start(servers),
        }
    }

    /// Err(words): not all came out, and nothing new has come for so long.
    pub fn wait_drained(
        &self,
        servers: &str,
        sent: &Sent,
        observer: Option<&Observer>,
        quiet_max: Duration,
    ) -> Result<Result<(), String>, WorkloadError> {
        let waited = quiet_max.as_secs();
        Ok(match (self, observer) {
            (Subject::User(job), _) => match job.wait_drained(servers, quiet_max)? {
                true => Ok(()),
                false => Err(format!("some of the input was not taken; nothing moved for {waited} s")),
            },
            (Subject::Own(_), Some(observer)) => {
                let drained = observer.wait_drained(sent, quiet_max);
                match drained.is_complete {
                    true => Ok(()),
                    false => Err(format!("{} of {} rows came out; nothing new for {waited} s", drained.rows, drained.rows_expected)),
                }
            }
            (Subject::Own(_), None) => Ok(()),
        })
    }

    /// Follows the job's control log, which must exist.
    pub fn follow(&self, servers: &str) -> Result<ControlFollower, WorkloadError> {
        ControlFollower::start(servers, self.name())
    }

    /// For a control log of which nothing was read yet.
    pub fn control(&self) -> ControlFold {
        ControlFold::new(self.name())
    }

    fn name(&self) -> &str {
        match self {
            Subject::Own(workload) => &workload.name,
            Subject::User(job) => &job.name,
        }
    }

    /// Why an invariant says nothing about this job, whatever its topics show.
    pub fn not_applicable(&self, invariant: Invariant) -> Option<&'static str> {
        let Subject::User(job) = self else { return None };
        match invariant {
            Invariant::KeyOrder => Some("what the job does with its keys is not known"),
            Invariant::Conservation if job.has_idle_timeout() => Some("its sources have an idle timeout: rows may be late after an outage"),
            Invariant::NoDuplicate | Invariant::Conservation if !job.is_row_for_row() => {
                Some("no output has a row for each row of the input")
            }
            _ => None,
        }
    }

    pub fn verify(&self, servers: &str, sent: &Sent, seen: Option<&Observation>, control: ControlFold) -> Result<Findings, WorkloadError> {
        match self {
            Subject::Own(workload) => workload.verify(servers, sent, seen, control),
            Subject::User(job) => job.verify(servers, sent, control),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_brings_its_own_promise_where_the_plan_can_judge_it() {
        let promised = |explained: &str, plan: &Plan| -> Vec<String> {
            let promise: Promise = serde_json::from_str(explained).expect("a promise");
            let text = |(metric, conditions): (Metric, Vec<Threshold>)| format!("{} {}", metric.name(), conditions[0]);
            promise.thresholds(plan).into_iter().map(text).collect()
        };
        let mut plan = crate::test_kit::plan();
        let both = r#"{"stages": [], "tier": 3, "slo": {"completeness": 0.999, "max_latency_ms": 2000, "max_recovery_ms": 10000}}"#;
        assert_eq!(promised(both, &plan), ["latency_ms p99 <= 2000 during healthy", "failover_ms p99 <= 10000"]);
        let one = r#"{"tier": 1, "slo": {"completeness": null, "max_latency_ms": null, "max_recovery_ms": 1000}}"#;
        assert_eq!(promised(one, &plan), ["failover_ms p99 <= 1000"]);
        assert!(promised(r#"{"stages": []}"#, &plan).is_empty(), "an older program says nothing");
        plan.thresholds.remove(&Metric::FailoverMs);
        assert_eq!(promised(both, &plan), ["latency_ms p99 <= 2000 during healthy"]);
        assert!(serde_json::from_str::<Promise>(both).expect("a promise").is_left_open(&plan));
    }
}

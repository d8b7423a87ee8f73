//! What is run: the job that proves its own output, or a user's, of which less is known.
//!
//! | | own job | user's job |
//! |---|---|---|
//! | latency | each row, from its scheduled send time, as a reader sees it | as the workers report it, once a second |
//! | failover | silence of the output | phases of the take-over, as the new owner measures them |
//! | caught up | all that was sent has come out | nothing is left to take |
//! | rows a second | rows of the output | records sent, less the growth of the lag |
//! | oracle | all of it | the job's own topics, dead letters, rows where a stage gives one for each |

use super::Stop;
use crate::plan::Invariant;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use streamshield_workload::checks::{ControlFold, ControlFollower};
use streamshield_workload::user::UserJob;
use streamshield_workload::{Findings, Observation, Observer, Running, Sent, Settings, Workload, WorkloadError};

pub(super) enum Subject {
    Own(Box<Workload>),
    User(Box<UserJob>),
}

impl Subject {
    pub fn own(name: String, seed: u64, settings: Settings) -> Result<Subject, Stop> {
        Ok(Subject::Own(Box::new(Workload::new(name, seed, settings)?)))
    }

    /// `program` explains the job: its tables are not parsed here.
    pub fn user(job: &Path, program: &Path, seed: u64, settings: Settings) -> Result<Subject, Stop> {
        let broken = |what: &str| Stop::Broken(format!("{}: {what}", job.display()));
        let text = std::fs::read_to_string(job).map_err(|error| broken(&error.to_string()))?;
        let mut command = Command::new(program);
        command.arg("explain").arg(job).args(["--format", "json"]).env("NO_COLOR", "1").stdin(Stdio::null());
        let explained = command.output().map_err(|error| broken(&error.to_string()))?;
        if !explained.status.success() {
            return Err(broken(&String::from_utf8_lossy(&explained.stderr)));
        }
        let folder = job.parent().unwrap_or(Path::new(""));
        Ok(Subject::User(Box::new(UserJob::read(&text, folder, &String::from_utf8_lossy(&explained.stdout), seed, settings)?)))
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

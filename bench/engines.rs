//! The two engines as processes: the same SQL, the same topics, measured in the same way.

use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use streamshield_tests::support::figures;
use streamshield_tests::support::job::Job;
use streamshield_tests::support::process::{Ended, Process};
use streamshield_tests::support::streamshield::Runner;

const TIMEOUT: Duration = Duration::from_secs(1_800);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Streamshield,
    Flink,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Engine::Streamshield => "streamshield",
            Engine::Flink => "flink",
        }
    }

    /// Options of a Kafka table that only this engine wants; for ours the job file names the cluster.
    pub fn table_options(self, servers: &str, sink_prefix: Option<&str>) -> Vec<(String, String)> {
        let mut options = Vec::new();
        if self == Engine::Flink {
            options.push(("properties.bootstrap.servers".into(), servers.to_string()));
            options.push(("properties.group.id".into(), "bench".into()));
            if let Some(prefix) = sink_prefix {
                options.push(("sink.delivery-guarantee".into(), "exactly-once".into()));
                options.push(("sink.transactional-id-prefix".into(), prefix.into()));
                options.push(("properties.transaction.timeout.ms".into(), "600000".into()));
            }
        }
        options
    }

    /// Runs a bounded job to its end.
    pub fn run(self, servers: &str, name: &str, sql: &str, folder: &Path) -> Result<Ended> {
        self.run_under(&[], servers, name, sql, folder)
    }

    /// The same, with our program run by another one.
    pub fn run_under(self, under: &[OsString], servers: &str, name: &str, sql: &str, folder: &Path) -> Result<Ended> {
        match self {
            Engine::Streamshield => {
                let mut job = Job::new(name, servers, sql);
                // For trying out settings: BENCH_JOB_SETTINGS="slots=1,parallelism=2".
                for setting in std::env::var("BENCH_JOB_SETTINGS").unwrap_or_default().split(',').filter(|text| !text.is_empty()) {
                    let (key, value) = setting.split_once('=').context("BENCH_JOB_SETTINGS is key=value,…")?;
                    job = job.set(key, value);
                }
                let mut runner = Runner::new(folder);
                runner.under = under.to_vec();
                let run = runner.start(&job)?;
                expect_good_end(&run.process, name)
            }
            Engine::Flink => flink(name, sql, folder),
        }
    }
}

/// Fetches and compiles what the peer needs; not measured.
pub fn prepare_flink() -> Result<()> {
    let script = figures::root().join("scripts").join("flink.sh");
    let status = Command::new(script).arg("prepare").status()?;
    ensure!(status.success(), "scripts/flink.sh prepare: {status}");
    Ok(())
}

fn flink(name: &str, sql: &str, folder: &Path) -> Result<Ended> {
    let file = folder.join(format!("{name}.sql"));
    std::fs::write(&file, sql)?;
    let mut command = Command::new(figures::root().join("scripts").join("flink.sh"));
    command.arg("run").arg(&file).arg(folder.join(format!("{name}-flink")));
    let process = Process::start(command, folder, &format!("{name}-flink-log"))?;
    expect_good_end(&process, name)
}

fn expect_good_end(process: &Process, name: &str) -> Result<Ended> {
    let ended = process.expect_end(TIMEOUT)?;
    ensure!(ended.status.success(), "{name}: {}\n{}", ended.status, process.last_words());
    Ok(ended)
}

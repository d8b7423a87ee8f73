//! The kill test: a job dies by SIGKILL again and again, and its output is right to the row.
//!
//! A crash may lose, double or tear rows only at moments that nobody thinks of. So the process is killed at random moments
//! (while it starts, while it works) and at named points around the commit, while input keeps coming.
//!
//! ```text
//! feeder ──▶ input, 8 partitions ──▶ job: window count and sum per key, 2 stages ──▶ output
//!                 │                    ▲ killed, started again, N times                │
//!                 └─▶ plain computation ───────────── must be equal ──────────────────┘
//!                                 changelogs: epochs 1, 2, 3… whose steps join (E-1, E-2, E-5)
//!                                 exchanges: no rows of an epoch that has no record (E-3)
//! ```
//! A kill that did not come is no kill: a crash point that is never reached fails the test, and so does a job that dies by itself.

pub mod verify;
pub mod workload;

use crate::support::client::{Output, create_topic};
use crate::support::job::Job;
use crate::support::seed::generator;
use crate::support::streamshield::Runner;
use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};
use streamshield_faults::faults::{CRASH_POINTS, STANDBY_POINTS};

pub const PARTITIONS: i32 = 8;
/// With a broker that was just started, and with everything to replay.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const POINT_TIMEOUT: Duration = Duration::from_secs(60);
const OUTPUT_QUIET_MAX: Duration = Duration::from_secs(60);

/// The crash points that a worker passes which is alone, and up to which passing a run may live: there are fewer flushes than commits.
pub fn points() -> Vec<(&'static str, u64)> {
    let passed = CRASH_POINTS.into_iter().filter(|point| !STANDBY_POINTS.contains(point));
    passed.map(|point| (point, if point.starts_with("state::") { 6 } else { 20 })).collect()
}

#[derive(Clone, Debug)]
pub struct Options {
    pub bootstrap_servers: String,
    pub kills: u32,
    /// Fed before the first start; more follow while the job runs, as fast as `records_per_second`.
    pub records: u64,
    pub records_per_second: u64,
    pub seed: u64,
}

/// What came out. All of `lost`, `doubled`, `wrong` and `torn` must be 0.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub kills: u32,
    pub kills_by: BTreeMap<String, u32>,
    pub state_deleted: u32,
    /// Input records, and rows of the output.
    pub records: u64,
    pub rows: u64,
    /// Records that are missing in, or doubled by, the counts of the output.
    pub lost: u64,
    pub doubled: u64,
    /// Rows whose count is right and whose sum is not.
    pub wrong: u64,
    /// Breaks of E-1, E-2, E-3, E-5 in changelogs and exchanges.
    pub torn: u64,
    pub epochs: u64,
    pub drain_seconds: f64,
    pub wall_seconds: f64,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.lost + self.doubled + self.wrong + self.torn == 0
    }

    pub fn json(&self, seed: u64) -> serde_json::Value {
        serde_json::json!({
            "kills": self.kills, "records": self.records, "lost": self.lost, "doubled": self.doubled, "torn": self.torn, "wrong": self.wrong,
            "rows": self.rows, "epochs": self.epochs, "kills_by": self.kills_by, "state_deleted": self.state_deleted,
            "drain_seconds": self.drain_seconds, "wall_seconds": self.wall_seconds, "seed": seed,
        })
    }
}

/// How one run of the job ends.
enum Death {
    /// So long after the process was started, ready or not.
    Starting(Duration),
    /// So long after it was ready.
    Working(Duration),
    /// At this passing of a crash point.
    At(&'static str, u64),
}

fn choose(random: &mut ChaCha8Rng, kill: u32) -> Death {
    // Every point has its turn; the rest is chance.
    let turn = kill as usize;
    if turn % 2 == 1 {
        let points = points();
        let (point, passings) = points[turn / 2 % points.len()];
        return Death::At(point, random.random_range(1..=passings));
    }
    match random.random_range(0..4) {
        0 => Death::Starting(Duration::from_millis(random.random_range(0..600))),
        _ => Death::Working(Duration::from_millis(random.random_range(0..1_000))),
    }
}

/// Runs the test in `folder`.
pub fn run(options: &Options, folder: &Path) -> Result<Report> {
    let started = Instant::now();
    let mut random = generator(options.seed);
    let names = workload::Names::new(options.seed);
    let servers = options.bootstrap_servers.as_str();
    create_topic(servers, &names.input, PARTITIONS)?;
    create_topic(servers, &names.output, 1)?;
    let mut feeder = workload::feed(servers, &names.input, options)?;
    let job = workload::job(&names, servers);
    let mut runner = Runner::new(folder);
    let mut report = Report::default();
    for kill in 0..options.kills {
        let death = choose(&mut random, kill);
        let name = run_until(&mut runner, &job, death).with_context(|| format!("kill {} of {}", kill + 1, options.kills))?;
        *report.kills_by.entry(name.to_string()).or_default() += 1;
        report.kills += 1;
        if random.random_range(0..25) == 0 {
            let _ = std::fs::remove_dir_all(runner.state_dir());
            report.state_deleted += 1;
        }
    }
    report.records = feeder.finish()?;
    let expected = verify::expected(servers, &names.input)?;
    let rows = expected.len() as u64;
    let mut run = runner.start(&job)?;
    run.wait_ready(START_TIMEOUT)?;
    let mut seen = 0;
    let outcome = Output::follow(servers, &names.output)?.visit_until(OUTPUT_QUIET_MAX, &mut |message, _| {
        seen += u64::from(message.is_some());
        seen >= rows
    });
    outcome.with_context(|| format!("{seen} of {rows} rows are committed; the job said last:\n{}", run.process.last_words()))?;
    let (ended, drain) = run.process.terminate(Duration::from_secs(30))?;
    ensure!(ended.status.success(), "SIGTERM: {}\n{}", ended.status, run.process.last_words());
    report.drain_seconds = drain.as_secs_f64();
    verify::compare(servers, &names, &expected, &mut report)?;
    report.wall_seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Starts the job and sees to its death; returns what killed it.
fn run_until(runner: &mut Runner, job: &Job, death: Death) -> Result<&'static str> {
    runner.environment = match death {
        Death::At(point, passing) => vec![("STREAMSHIELD_CRASH_AT".to_string(), format!("{point}:{passing}"))],
        _ => Vec::new(),
    };
    let mut run = runner.start(job)?;
    let (name, ended) = match death {
        Death::Starting(delay) => {
            let early = run.process.wait(delay);
            ensure!(early.is_none(), "the job ended by itself:\n{}", run.process.last_words());
            ("starting", run.process.kill()?)
        }
        Death::Working(delay) => {
            run.wait_ready(START_TIMEOUT)?;
            let early = run.process.wait(delay);
            ensure!(early.is_none(), "the job ended by itself:\n{}", run.process.last_words());
            ("working", run.process.kill()?)
        }
        Death::At(point, _) => (point, run.process.expect_end(POINT_TIMEOUT).with_context(|| format!("{point} was not reached"))?),
    };
    let expected_signal = if matches!(death, Death::At(..)) { libc::SIGABRT } else { libc::SIGKILL };
    ensure!(ended.status.signal() == Some(expected_signal), "the job ended otherwise, {}:\n{}", ended.status, run.process.last_words());
    runner.environment.clear();
    Ok(name)
}

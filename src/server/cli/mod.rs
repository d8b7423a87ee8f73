//! The command line.

mod backoff;
mod chaos;
mod check;
mod checkpoints;
mod run;
mod shown;
mod signals;
mod state;
mod status;
mod summary;
mod supervisor;
mod tables;
mod worker;
mod workers;

use crate::job::identity::{EXPECTED_VARIABLE, RACK_VARIABLE};
use crate::job::secret::Redactor;
use crate::job::{read, schema};
use crate::logging::{self, LogFormat};
use crate::problem::{Problem, Problems};
use crate::wiring::{self, PlannedJob};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use streamshield_chaos::verdict::Outcome;
use streamshield_core::ids::{Epoch, RegionId};

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Finished, drained, or nothing wrong.
    Ok = 0,
    /// The job failed, or the cluster refused.
    Failed = 1,
    /// The command line or the job file is wrong.
    Usage = 2,
    /// Another process runs the job, or is this worker, now.
    TakenOver = 3,
    /// A second signal ended a drain.
    Killed = 130,
}

/// How long the end waits for streams that somebody may be stuck in.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(1);

/// Ends the process without the destructors of the C++ libraries. Threads that belong to RocksDB may still run here, and would
/// lock what those have destroyed: the process would abort instead of ending with its code. Nothing is lost by it: all that has to last is in
/// the log or synced by now.
pub fn leave(code: u8) -> ! {
    // Who is stuck in a write to a full pipe has the stream locked. Whole lines have gone out before.
    say_in_time(|| {
        // Nobody is left to be told of a pipe that has gone.
        let _ = std::io::stdout().flush();
        let _ = std::io::stderr().flush();
    });
    // SAFETY: ends the process, whatever its threads do.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Writes to standard output. Who reads no more does not turn a good end into a bad one.
fn show(text: impl std::fmt::Display) {
    let _ = write!(std::io::stdout(), "{text}");
}

fn say(line: impl std::fmt::Display) {
    show(format_args!("{line}\n"));
}

/// Says something to a stream that somebody may be stuck in, and waits for it no longer than [`FLUSH_TIME_MAX`].
fn say_in_time(say: impl FnOnce() + Send + 'static) {
    let (done, said) = std::sync::mpsc::channel();
    let say = move || {
        say();
        let _ = done.send(());
    };
    if std::thread::Builder::new().name("say".into()).spawn(say).is_ok() {
        let _ = said.recv_timeout(FLUSH_TIME_MAX);
    }
}

/// Reports a problem of a run that has to go on, or to end, even if nobody reads.
fn complain(problem: Problem, redactor: &Redactor) {
    let redactor = redactor.clone();
    say_in_time(move || {
        check::report(&Problems(vec![problem]), &redactor);
    });
}

const EXIT_CODES: &str = "Exit codes:
  0    finished, drained after a signal, or nothing wrong
  1    the job failed, or the cluster can't be used
  2    the command line or the job file is wrong
  3    another process runs the job now, or has this worker's name
  130  ended by a second signal while draining
`chaos run` and `gate` have codes of their own, which their help explains.";

/// Streaming SQL over Kafka, exactly once.
#[derive(Parser)]
#[command(name = "streamshield", version, after_help = EXIT_CODES, max_term_width = 120)]
struct Cli {
    /// How log lines look; `RUST_LOG` chooses which ones.
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: LogFormat,
    /// Serve /metrics, /health, /ready, /api/v1/status and /api/v1/cluster here while a job runs, for example 127.0.0.1:9464. With `run --workers`, each worker takes the next port.
    #[arg(long, global = true, env = "STREAMSHIELD_METRICS_ADDR", value_name = "ADDRESS")]
    metrics_addr: Option<SocketAddr>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a job until it ends or is told to stop (SIGTERM, SIGINT: seal, commit, leave).
    Run(RunArguments),
    /// Run one worker of a job that others may run, too (as Kubernetes starts it). Workers find each other by the job's control topic.
    Worker(WorkerArguments),
    /// Check all that can be known without running: file, SQL, types, options, and topics if the cluster answers.
    Check {
        /// The job file.
        job: PathBuf,
        /// Don't try to reach the cluster.
        #[arg(long)]
        offline: bool,
        /// For so many workers; without it nothing is said about their number.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
        workers: Option<u32>,
    },
    /// Show stages, exchanges and state of a job.
    Explain {
        /// The job file.
        job: PathBuf,
        #[arg(long, value_enum, default_value_t)]
        format: ExplainFormat,
    },
    /// Show a job's workers, regions, followers and take-overs, from its control topic.
    Status {
        /// The job file.
        job: PathBuf,
        /// Show it again every second.
        #[arg(long)]
        watch: bool,
        /// As JSON; with --watch one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Workers of a job.
    Workers {
        #[command(subcommand)]
        command: WorkersCommand,
    },
    /// Checkpoints of a job in its store.
    Checkpoints {
        #[command(subcommand)]
        command: CheckpointsCommand,
    },
    /// Local state of a worker that is stopped.
    State {
        #[command(subcommand)]
        command: StateCommand,
    },
    /// Topics of a job.
    Topics {
        #[command(subcommand)]
        command: TopicsCommand,
    },
    /// Break a cluster on purpose, under a load that proves its own output, and say what was kept.
    Chaos {
        #[command(subcommand)]
        command: chaos::ChaosCommand,
    },
    /// Put a release or a job through a plan of faults, beside what runs today: it is promoted if it keeps its promise and nothing got worse.
    Gate(chaos::GateArguments),
    /// Print the JSON Schema of the job file.
    Schema,
    /// Print the version.
    Version,
}

#[derive(Args)]
pub struct RunArguments {
    /// The job file.
    pub job: PathBuf,
    /// Start and supervise so many worker processes on this machine, instead of running the job in this one.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub workers: Option<u32>,
    /// Followers of each region, whatever the job file says: 1, or 2 in tier 1; tier 3 has none. The first worker of a job decides.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(streamshield_core::tiers::REPLICAS_MAX)))]
    pub replicas: Option<u32>,
    /// Drain and end after this time, for example `10 s`.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub duration: Option<Duration>,
    /// How the last line of standard output sums the run up.
    #[arg(long, value_enum, default_value_t)]
    pub summary: SummaryFormat,
    /// Show figures and results while running: a table in a terminal, else a line per second. `auto`: in a terminal, unless the job prints.
    #[arg(long, value_enum, default_value_t, num_args = 0..=1, require_equals = true, default_missing_value = "always", value_name = "WHEN")]
    pub live: Live,
}

#[derive(Args)]
pub struct WorkerArguments {
    /// The job file.
    pub job: PathBuf,
    /// Name of this worker: the same at each start, and nobody else's. Default: $STREAMSHIELD_WORKER, $POD_NAME, $HOSTNAME.
    #[arg(long, value_name = "NAME")]
    pub worker: Option<String>,
    /// Rack or zone of this machine: followers are put into other ones.
    #[arg(long, env = RACK_VARIABLE, value_name = "RACK")]
    pub rack: Option<String>,
    /// How many workers the job is started with: when nobody runs it yet, its regions are spread once so many are there, or after 3 s. 0: not known; then
    /// it is after half a second.
    #[arg(long, env = EXPECTED_VARIABLE, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub expect_workers: u32,
    /// Followers of each region, whatever the job file says: 1, or 2 in tier 1; tier 3 has none. The first worker of a job decides.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(streamshield_core::tiers::REPLICAS_MAX)))]
    pub replicas: Option<u32>,
    /// How the last line of standard output sums the run up.
    #[arg(long, value_enum, default_value_t)]
    pub summary: SummaryFormat,
    #[command(flatten)]
    pub supervised: Supervised,
}

/// What the supervisor tells its workers.
#[derive(Args)]
pub struct Supervised {
    /// Its process.
    #[arg(long, hide = true)]
    pub supervisor: Option<u32>,
    /// Where its embedded broker listens.
    #[arg(long, hide = true)]
    pub broker: Option<String>,
    #[arg(long, hide = true)]
    pub state_dir: Option<PathBuf>,
    #[arg(long, hide = true)]
    pub slots: Option<u32>,
}

#[derive(Subcommand)]
enum WorkersCommand {
    /// Show the live workers.
    List {
        /// The job file.
        job: PathBuf,
        #[arg(long)]
        json: bool,
    },
    /// Move all regions away from a worker, one epoch boundary each, before it is stopped.
    Drain {
        /// The job file.
        job: PathBuf,
        /// Its name, as `workers list` shows it.
        worker: String,
        /// Take the request back.
        #[arg(long)]
        undo: bool,
        /// Wait until it owns nothing, at most this long (default: 5 min).
        #[arg(long, value_parser = parse_duration, num_args = 0..=1, require_equals = true, default_missing_value = "5 min", value_name = "TIME")]
        wait: Option<Duration>,
    },
}

#[derive(Args)]
struct CheckpointSelection {
    /// Only this region, for example `s1/0`.
    #[arg(long, value_parser = checkpoints::parse_region, value_name = "REGION")]
    region: Option<RegionId>,
    /// Only this epoch.
    #[arg(long, value_name = "EPOCH")]
    epoch: Option<u64>,
}

impl CheckpointSelection {
    fn selection(&self) -> checkpoints::Selection {
        checkpoints::Selection { region: self.region, epoch: self.epoch.map(Epoch) }
    }
}

#[derive(Subcommand)]
enum CheckpointsCommand {
    /// Show what lies in the store.
    List {
        /// The job file.
        job: PathBuf,
        /// Only this region, for example `s1/0`.
        #[arg(long, value_parser = checkpoints::parse_region, value_name = "REGION")]
        region: Option<RegionId>,
        #[arg(long)]
        json: bool,
    },
    /// Read all files and compare their checksums.
    Verify {
        /// The job file.
        job: PathBuf,
        #[command(flatten)]
        selection: CheckpointSelection,
    },
    /// Keep checkpoints whatever retention says; the newest of each region unless an epoch is given.
    Pin {
        /// The job file.
        job: PathBuf,
        #[command(flatten)]
        selection: CheckpointSelection,
    },
    /// Let retention decide again.
    Unpin {
        /// The job file.
        job: PathBuf,
        #[command(flatten)]
        selection: CheckpointSelection,
    },
    /// Delete now what retention no longer keeps. The workers do it by themselves; this is for a job that does not run any more.
    Gc {
        /// The job file.
        job: PathBuf,
        /// Delete what was marked longer ago than this. A restore under way needs the default (1 h); 0 s is for jobs that do not run.
        #[arg(long, value_parser = parse_duration, value_name = "TIME")]
        grace: Option<Duration>,
    },
    /// Make a new job that starts from checkpoints of this one.
    Restore {
        /// The job file.
        job: PathBuf,
        /// Of each region the newest checkpoint at or before this epoch, or `latest`. A region without windows goes on from its newest epoch; with an EPOCH it
        /// goes back to that, or as far as nothing is made twice for the regions behind it.
        #[arg(long, value_name = "EPOCH")]
        to: checkpoints::RestoreTo,
        /// Name of the new job.
        #[arg(long = "as", value_name = "NEW_JOB")]
        new_job: String,
    },
}

#[derive(Subcommand)]
enum StateCommand {
    /// Show the epoch of each region's store and a digest of all its groups: two stores of a region at one epoch have the same. Changes nothing.
    Digest {
        /// The worker's folder: the job's `state_dir`, or in it the one with the worker's name.
        state_dir: PathBuf,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum TopicsCommand {
    /// Create the topics that the job needs and that do not exist.
    Create {
        /// The job file.
        job: PathBuf,
        /// Only say what would be created.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ExplainFormat {
    #[default]
    Text,
    Json,
    Dot,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SummaryFormat {
    #[default]
    Text,
    Json,
    None,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Live {
    #[default]
    Auto,
    Always,
    Never,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    crate::job::units::duration(text)
}

/// How the program ends when the command line or a variable is wrong. The 2 of `chaos run` and `gate` says that an invariant was violated: theirs is
/// the code of a run that says nothing.
pub fn usage_code() -> u8 {
    if gives_verdict(std::env::args_os().skip(1)) { Outcome::HarnessError.exit_code() } else { ExitStatus::Usage as u8 }
}

/// Whether this is `chaos run` or `gate`, as far as that can be told of arguments that may be wrong.
fn gives_verdict(arguments: impl Iterator<Item = OsString>) -> bool {
    let mut arguments = arguments.map(|argument| argument.to_string_lossy().into_owned());
    let mut words = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // Global options, whose values follow as words.
            "--log-format" | "--metrics-addr" => drop(arguments.next()),
            option if option.starts_with('-') => {}
            _ => words.push(argument),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    matches!(words[..], ["gate", ..] | ["chaos", "run", ..])
}

/// Parses the command line, obeys it, and returns the exit code.
pub fn main() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to be told of a pipe that has gone.
            let _ = error.print();
            return if error.use_stderr() { usage_code() } else { ExitStatus::Ok as u8 };
        }
    };
    let redactor = Redactor::default();
    let Cli { log_format, metrics_addr, command } = cli;
    match command {
        Command::Run(_) | Command::Worker(_) => {}
        Command::Chaos { .. } | Command::Gate(_) => logging::init_with(log_format, logging::CHAOS_FILTER, &redactor),
        _ => logging::init(log_format, true, &redactor),
    }
    let status = match command {
        Command::Run(arguments) => run::run(&arguments, metrics_addr, log_format, &redactor),
        Command::Worker(arguments) => run::run_worker(&arguments, metrics_addr, log_format, &redactor),
        Command::Check { job, offline, workers } => {
            check::check(&job, if offline { check::Reach::Offline } else { check::Reach::Cluster }, workers, &redactor)
        }
        Command::Explain { job, format } => check::explain(&job, format, &redactor),
        Command::Status { job, watch, json } => status::status(&job, status::Showing { watch, json }, &redactor),
        Command::Workers { command: WorkersCommand::List { job, json } } => workers::list(&job, json, &redactor),
        Command::Workers { command: WorkersCommand::Drain { job, worker, undo, wait } } => {
            workers::drain(&job, &workers::DrainRequest { worker: &worker, undo, wait }, &redactor)
        }
        Command::Checkpoints { command } => run_checkpoints(command, &redactor),
        Command::State { command: StateCommand::Digest { state_dir, json } } => state::digest(&state_dir, json, &redactor),
        // Their exit codes say what a run has shown.
        Command::Chaos { command } => return chaos::chaos(command),
        Command::Gate(arguments) => return chaos::gate(&arguments),
        Command::Topics { command: TopicsCommand::Create { job, dry_run } } => check::create_topics(&job, dry_run, &redactor),
        Command::Schema => {
            show(schema::json_schema_text());
            ExitStatus::Ok
        }
        Command::Version => {
            say(concat!("streamshield ", env!("CARGO_PKG_VERSION")));
            ExitStatus::Ok
        }
    };
    status as u8
}

fn run_checkpoints(command: CheckpointsCommand, redactor: &Redactor) -> ExitStatus {
    match command {
        CheckpointsCommand::List { job, region, json } => checkpoints::list(&job, region, json, redactor),
        CheckpointsCommand::Verify { job, selection } => checkpoints::verify(&job, selection.selection(), redactor),
        CheckpointsCommand::Pin { job, selection } => checkpoints::pin(&job, selection.selection(), true, redactor),
        CheckpointsCommand::Unpin { job, selection } => checkpoints::pin(&job, selection.selection(), false, redactor),
        CheckpointsCommand::Gc { job, grace } => checkpoints::collect(&job, grace, redactor),
        CheckpointsCommand::Restore { job, to, new_job } => checkpoints::restore(&job, to, &new_job, redactor),
    }
}

/// Reads and plans a job; no job if there are errors.
fn read_and_plan(path: &Path, redactor: &Redactor) -> (Option<PlannedJob>, Problems) {
    let (job, mut problems) = read::read(path, redactor);
    let planned = job.and_then(|job| wiring::plan(job, &mut problems));
    (planned.filter(|_| !problems.has_errors()), problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_reader_who_is_stuck_holds_nobody_up_for_long() {
        let began = Instant::now();
        say_in_time(|| std::thread::sleep(Duration::from_secs(60)));
        assert!((FLUSH_TIME_MAX..Duration::from_secs(30)).contains(&began.elapsed()), "after {:?}", began.elapsed());
    }
}

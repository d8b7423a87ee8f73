//! The command line.

mod check;
mod run;
mod signals;
mod summary;

use crate::job::secret::Redactor;
use crate::job::{read, schema};
use crate::logging::{self, LogFormat};
use crate::problem::Problems;
use crate::wiring::{self, PlannedJob};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Finished, drained, or nothing wrong.
    Ok = 0,
    /// The job failed, or the cluster refused.
    Failed = 1,
    /// The command line or the job file is wrong.
    Usage = 2,
    /// Another process runs the job now.
    TakenOver = 3,
    /// A second signal ended a drain.
    Killed = 130,
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> ExitCode {
        ExitCode::from(status as u8)
    }
}

const EXIT_CODES: &str = "Exit codes:
  0    finished, drained after a signal, or nothing wrong
  1    the job failed, or the cluster can't be used
  2    the command line or the job file is wrong
  3    another process runs the job now
  130  ended by a second signal while draining";

/// Streaming SQL over Kafka, exactly once.
#[derive(Parser)]
#[command(name = "streamshield", version, after_help = EXIT_CODES, max_term_width = 120)]
struct Cli {
    /// How log lines look; `RUST_LOG` chooses which ones.
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: LogFormat,
    /// Serve /metrics, /health, /ready and /api/v1/status here while a job runs, for example 127.0.0.1:9464.
    #[arg(long, global = true, env = "STREAMSHIELD_METRICS_ADDR", value_name = "ADDRESS")]
    metrics_addr: Option<SocketAddr>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a job until it ends or is told to stop (SIGTERM, SIGINT: seal, commit, leave).
    Run(RunArguments),
    /// Check all that can be known without running: file, SQL, types, options, and topics if the cluster answers.
    Check {
        /// The job file.
        job: PathBuf,
        /// Don't try to reach the cluster.
        #[arg(long)]
        offline: bool,
    },
    /// Show stages, exchanges and state of a job.
    Explain {
        /// The job file.
        job: PathBuf,
        #[arg(long, value_enum, default_value_t)]
        format: ExplainFormat,
    },
    /// Topics of a job.
    Topics {
        #[command(subcommand)]
        command: TopicsCommand,
    },
    /// Print the JSON Schema of the job file.
    Schema,
    /// Print the version.
    Version,
}

#[derive(Args)]
pub struct RunArguments {
    /// The job file.
    pub job: PathBuf,
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

/// Parses the command line and obeys it.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let redactor = Redactor::default();
    let Cli { log_format, metrics_addr, command } = cli;
    if !matches!(command, Command::Run(_)) {
        logging::init(log_format, true, &redactor);
    }
    let status = match command {
        Command::Run(arguments) => run::run(&arguments, metrics_addr, log_format, &redactor),
        Command::Check { job, offline } => {
            check::check(&job, if offline { check::Reach::Offline } else { check::Reach::Cluster }, &redactor)
        }
        Command::Explain { job, format } => check::explain(&job, format, &redactor),
        Command::Topics { command: TopicsCommand::Create { job, dry_run } } => check::create_topics(&job, dry_run, &redactor),
        Command::Schema => {
            print!("{}", schema::json_schema_text());
            ExitStatus::Ok
        }
        Command::Version => {
            println!("streamshield {}", env!("CARGO_PKG_VERSION"));
            ExitStatus::Ok
        }
    };
    status.into()
}

/// Reads and plans a job; no job if there are errors.
fn read_and_plan(path: &Path, redactor: &Redactor) -> (Option<PlannedJob>, Problems) {
    let (job, mut problems) = read::read(path, redactor);
    let planned = job.and_then(|job| wiring::plan(job, &mut problems));
    (planned.filter(|_| !problems.has_errors()), problems)
}

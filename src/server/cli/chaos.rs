//! `streamshield chaos` and `streamshield gate`: plans of faults from the command line.
//!
//! Their exit codes are not those of the other commands: they say what a run has shown.

use super::{ExitStatus, say, show, signals};
use crate::problem::{Problem, Problems};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use streamshield_chaos::gate::{GateRequest, Prices, Side};
use streamshield_chaos::journal::Journal;
use streamshield_chaos::plan::{self, SourcePlan};
use streamshield_chaos::runner::{Request, Watcher};
use streamshield_chaos::verdict::Outcome;
use streamshield_chaos::{gate, report, runner};
use streamshield_faults::stage::program_path;
use streamshield_faults::{FaultSpec, ParameterKind, catalogue, role_names};
use streamshield_files::units;

/// Without a terminal, so often a line of figures is enough.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_FOLDER: &str = "target/chaos";

const EXIT_CODES: &str = "Exit codes of `chaos run` and `gate`:
  0  everything was kept (gate: promoted)
  1  the SLO was missed (gate: or something got worse)
  2  an invariant was violated
  3  inconclusive: a fault never fired, the load was not reached, the host was too busy, interrupted
  4  the harness failed, or the plan or the command line is wrong";

#[derive(Subcommand)]
pub enum ChaosCommand {
    /// Run a plan: start a cluster, load it, break it, and say whether the promise was kept.
    #[command(after_help = EXIT_CODES)]
    Run(RunPlan),
    /// Check a plan without running it; errors with line, column and a hint.
    Check {
        /// A file, or the name of a ready plan.
        plan: String,
    },
    /// Show the faults with their parameters and targets, and the ready plans.
    List {
        #[arg(long)]
        json: bool,
    },
    /// Make a report of a journal (journal.json, or journal.jsonl of a run that died).
    Report {
        journal: PathBuf,
        #[arg(long, value_enum, default_value_t)]
        format: ReportFormat,
    },
    /// Print a ready plan, to start one's own from.
    Show {
        /// Its name.
        plan: String,
    },
    /// Print the JSON Schema of plans.
    Schema,
    /// Run the plans that must catch this test build's mutants, without and with each of them.
    #[cfg(feature = "mutants")]
    Mutants {
        /// Some of the mutants, or of the plans. Default: all.
        names: Vec<String>,
        /// Of all runs. Default: each plan's own.
        #[arg(long)]
        seed: Option<u64>,
        /// Folder of the table and of all journals. Default: target/chaos/mutants.
        #[arg(long, value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
}

#[derive(Args)]
pub struct RunPlan {
    /// A file, or the name of a ready plan: smoke, gate, release, …
    plan: String,
    /// What all random choices derive from. Default: the plan's, else drawn.
    #[arg(long)]
    seed: Option<u64>,
    /// A job of your own instead of the self-verifying one: its sources get generated rows, and less can be said of its output.
    #[arg(long, value_name = "JOB.yaml")]
    job: Option<PathBuf>,
    /// Folder of the journal, the reports and all logs; made anew. Default: target/chaos/PLAN.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct GateArguments {
    /// The plan that both are put through: a file, or the name of a ready one.
    #[arg(long, default_value = "gate")]
    plan: String,
    /// The job as it is to be; with --baseline. Default of both: the self-verifying one.
    #[arg(long, value_name = "NEW.yaml", requires = "baseline")]
    job: Option<PathBuf>,
    /// The job as it is; with --job.
    #[arg(long, value_name = "OLD.yaml", requires = "job")]
    baseline: Option<PathBuf>,
    /// The program as it is to be. Default: this one.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// The program as it is. Default: this one.
    #[arg(long, value_name = "PATH")]
    baseline_binary: Option<PathBuf>,
    /// By how much a figure may be worse than the baseline's.
    #[arg(long, value_parser = units::share, default_value = "20 %", value_name = "SHARE")]
    tolerance: f64,
    /// What a processor costs, in any currency: a part of the cost per million records. The default is an assumption.
    #[arg(long, value_parser = price, default_value_t = Prices::default().cpu_hour, value_name = "PER_HOUR")]
    cpu_price: f64,
    /// What memory costs, in the same currency. The default is an assumption, too.
    #[arg(long, value_parser = price, default_value_t = Prices::default().gib_hour, value_name = "PER_GIB_HOUR")]
    memory_price: f64,
    /// The same for both runs. Default: the plan's, else drawn.
    #[arg(long)]
    seed: Option<u64>,
    /// Folder of both journals and of promotion.json. Default: target/chaos/promotion.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    #[default]
    Markdown,
    Html,
    Junit,
    Json,
}

pub fn chaos(command: ChaosCommand) -> u8 {
    match command {
        ChaosCommand::Run(arguments) => run(&arguments),
        ChaosCommand::Check { plan } => check(&plan),
        ChaosCommand::List { json } => list(json),
        ChaosCommand::Report { journal, format } => print_report(&journal, format),
        ChaosCommand::Show { plan: name } => match plan::ready(&name) {
            Some(text) => {
                show(text);
                ExitStatus::Ok as u8
            }
            None => usage(Problem::error(format!("there is no ready plan `{name}`")).hint(plan::ready_names().join(", "))),
        },
        ChaosCommand::Schema => {
            show(plan::schema_text());
            ExitStatus::Ok as u8
        }
        #[cfg(feature = "mutants")]
        ChaosCommand::Mutants { names, seed, out } => mutants(names, seed, out),
    }
}

/// Zero: every mutant was caught, and every control has passed.
#[cfg(feature = "mutants")]
fn mutants(names: Vec<String>, seed: Option<u64>, out: Option<PathBuf>) -> u8 {
    use streamshield_chaos::mutants;
    let runner = match std::env::current_exe() {
        Ok(this) => this,
        Err(error) => return harness_error(Problem::error(format!("this program does not know where it is: {error}"))),
    };
    let console = match Console::new() {
        Ok(console) => console,
        Err(error) => return harness_error(Problem::error(format!("can't listen for signals: {error}"))),
    };
    let folder = out.unwrap_or_else(|| Path::new(DEFAULT_FOLDER).join("mutants"));
    let request = mutants::Request { names, seed, folder: folder.clone(), runner };
    match mutants::run(&request, &|line| eprintln!("{line}"), &|| console.wants_end()) {
        Ok(table) => {
            say(format_args!("{}{}", mutants::text(&table), folder.join("mutants.json").display()));
            u8::from(!table.is_good())
        }
        Err(error) => harness_error(Problem::error(error.to_string())),
    }
}

fn print(problems: &Problems) {
    problems.print(&str::to_string);
}

fn usage(problem: Problem) -> u8 {
    print(&Problems(vec![problem]));
    ExitStatus::Usage as u8
}

/// Of `chaos run` and `gate`: nothing was run, so nothing is said.
fn harness_error(problem: Problem) -> u8 {
    print(&Problems(vec![problem]));
    Outcome::HarnessError.exit_code()
}

fn check(name: &str) -> u8 {
    let (found, problems) = plan::read(name, catalogue());
    print(&problems);
    let Some(SourcePlan { plan, .. }) = found else { return ExitStatus::Usage as u8 };
    let steps = plan.method.len();
    let types = plan.faults().collect::<std::collections::BTreeSet<_>>().len();
    let thresholds: usize = plan.thresholds.values().map(Vec::len).sum();
    let invariants = plan.invariants.len();
    say(format_args!("{name}: good. {steps} steps with {types} types of faults, {invariants} invariants, {thresholds} thresholds"));
    ExitStatus::Ok as u8
}

fn run(arguments: &RunPlan) -> u8 {
    let (found, problems) = plan::read(&arguments.plan, catalogue());
    print(&problems);
    let Some(source) = found else { return Outcome::HarnessError.exit_code() };
    let seed = arguments.seed.or(source.plan.seed).unwrap_or_else(drawn_seed);
    let folder = arguments.out.clone().unwrap_or_else(|| Path::new(DEFAULT_FOLDER).join(stem(&arguments.plan)));
    if let Err(problem) = fresh(&folder) {
        return harness_error(problem);
    }
    let console = match Console::new() {
        Ok(console) => console,
        Err(error) => return harness_error(Problem::error(format!("can't listen for signals: {error}"))),
    };
    let binary = std::env::var_os("STREAMSHIELD_BIN").map(|path| program_path(path.into()));
    let subject = binary.as_ref().map(|binary| format!("STREAMSHIELD_BIN={} ", binary.display())).unwrap_or_default();
    let job = arguments.job.as_ref().map(|job| format!(" --job {}", job.display())).unwrap_or_default();
    let request = Request {
        plan: source.plan,
        plan_name: arguments.plan.clone(),
        seed,
        folder: folder.clone(),
        replay: format!("{subject}streamshield chaos run {} --seed {seed}{job}", arguments.plan),
        job: arguments.job.clone(),
        binary,
    };
    console.say(Duration::ZERO, &format!("{}, seed {seed}, in {}", request.plan.title, folder.display()));
    let journal = match runner::run(&request, &console) {
        Ok(journal) => journal,
        Err(error) => return harness_error(Problem::error(error.to_string())),
    };
    console.bar.finish_and_clear();
    if let Err(error) = report::write_all(&journal, &folder) {
        return harness_error(Problem::error(format!("can't write the reports to `{}`: {error}", folder.display())));
    }
    conclude(&journal, &folder);
    journal.verdict.exit_code
}

fn conclude(journal: &Journal, folder: &Path) {
    say(report::markdown(journal));
    say(format_args!("{}: {}", journal.verdict.outcome.words(), folder.join("report.html").display()));
    if journal.verdict.outcome != Outcome::Pass {
        say(format_args!("the same again: {}", journal.replay));
    }
}

/// `chaos/plans/smoke.yaml` → `smoke`
fn stem(plan: &str) -> String {
    Path::new(plan).file_stem().map_or_else(|| plan.to_string(), |stem| stem.to_string_lossy().into_owned())
}

fn drawn_seed() -> u64 {
    // Short enough to be typed.
    u64::from(uuid::Uuid::new_v4().as_fields().0)
}

/// An empty folder. One that holds something else than a run is not wiped.
fn fresh(folder: &Path) -> Result<(), Problem> {
    let is_empty = std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty && !folder.join("journal.jsonl").exists() {
        return Err(
            Problem::error(format!("`{}` holds something else than a run", folder.display())).hint("give another folder with --out")
        );
    }
    let made = if is_empty { Ok(()) } else { std::fs::remove_dir_all(folder) };
    made.and_then(|()| std::fs::create_dir_all(folder))
        .map_err(|error| Problem::error(format!("can't make `{}`: {error}", folder.display())))
}

/// Progress for people, and their signals.
struct Console {
    bar: ProgressBar,
    is_terminal: bool,
    last_line: Mutex<Option<Instant>>,
    stop: signals::StopRequest,
    _runtime: tokio::runtime::Runtime,
}

impl Console {
    fn new() -> std::io::Result<Console> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let stop = signals::listen(&runtime)?;
        let is_terminal = std::io::stderr().is_terminal();
        let bar = if is_terminal { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_style(ProgressStyle::default_spinner());
        Ok(Console { bar, is_terminal, last_line: Mutex::new(None), stop, _runtime: runtime })
    }
}

fn clock(at: Duration) -> String {
    format!("{:>2}:{:02}", at.as_secs() / 60, at.as_secs() % 60)
}

impl Watcher for Console {
    fn say(&self, at: Duration, text: &str) {
        let line = format!("{} {}", clock(at), text.trim_end());
        if self.is_terminal {
            self.bar.println(line);
        } else {
            eprintln!("{line}");
        }
    }

    fn tick(&self, at: Duration, text: &str) {
        if self.is_terminal {
            self.bar.set_message(format!("{} {text}", clock(at)));
            return self.bar.tick();
        }
        let mut last_line = self.last_line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last_line.is_none_or(|last| last.elapsed() >= LINE_INTERVAL) {
            *last_line = Some(Instant::now());
            eprintln!("{} {text}", clock(at));
        }
    }

    fn wants_end(&self) -> bool {
        self.stop.is_raised()
    }
}

fn print_report(path: &Path, format: ReportFormat) -> u8 {
    let journal = match Journal::read(path) {
        Ok(journal) => journal,
        Err(error) => return usage(Problem::error(error.to_string()).hint("give the journal.json that `streamshield chaos run` wrote")),
    };
    let text = match format {
        ReportFormat::Markdown => report::markdown(&journal),
        ReportFormat::Html => report::html(&journal),
        ReportFormat::Junit => report::junit(&journal),
        ReportFormat::Json => journal.text(),
    };
    show(text);
    ExitStatus::Ok as u8
}

fn list(json: bool) -> u8 {
    if json {
        let faults: Vec<serde_json::Value> = catalogue().iter().map(fault_json).collect();
        say(format_args!("{:#}", serde_json::json!({ "faults": faults, "plans": plan::ready_names() })));
        return ExitStatus::Ok as u8;
    }
    for spec in catalogue() {
        say(format_args!("{:<26} {}{}", spec.name, spec.about, if spec.lasts { "" } else { " (over at once)" }));
        say(format_args!("{:<26}   at: {}", "", role_names(spec.targets)));
        for parameter in spec.parameters {
            let default = parameter.default.map_or("must be given".to_string(), |default| format!("default {default}"));
            say(format_args!("{:<26}   {}: {}, {default}; {}", "", parameter.name, kind(parameter.kind), parameter.about));
        }
    }
    say(format_args!("\nReady plans: {}", plan::ready_names().join(", ")));
    ExitStatus::Ok as u8
}

fn fault_json(spec: &FaultSpec) -> serde_json::Value {
    let parameters: Vec<serde_json::Value> = spec
        .parameters
        .iter()
        .map(|one| serde_json::json!({ "name": one.name, "kind": kind(one.kind), "default": one.default, "about": one.about }))
        .collect();
    serde_json::json!({
        "name": spec.name, "family": spec.family, "about": spec.about, "lasts": spec.lasts, "targets": spec.targets, "parameters": parameters,
    })
}

fn kind(kind: ParameterKind) -> String {
    match kind {
        ParameterKind::Duration => "duration".into(),
        ParameterKind::DurationOf { min, max } => format!("duration, {min} to {max}"),
        ParameterKind::Bytes => "size".into(),
        ParameterKind::Share => "share".into(),
        ParameterKind::Count { min, max } => format!("{min} to {max}"),
        ParameterKind::Choice(words) => words.join(" | "),
    }
}

fn price(text: &str) -> Result<f64, String> {
    let price: Option<f64> = text.parse().ok();
    price.filter(|price| price.is_finite() && *price >= 0.0).ok_or_else(|| format!("`{text}` is no price: write a number such as 0.04"))
}

pub fn gate(arguments: &GateArguments) -> u8 {
    if arguments.job.is_none() && arguments.binary.is_none() && arguments.baseline_binary.is_none() {
        let problem = Problem::error("this program would be compared with itself");
        return harness_error(problem.hint("give --binary or --baseline-binary, or --job and --baseline"));
    }
    let (found, problems) = plan::read(&arguments.plan, catalogue());
    print(&problems);
    let Some(source) = found else { return Outcome::HarnessError.exit_code() };
    let this = match std::env::current_exe() {
        Ok(this) => this,
        Err(error) => return harness_error(Problem::error(format!("this program does not know where it is: {error}"))),
    };
    let folder = arguments.out.clone().unwrap_or_else(|| Path::new(DEFAULT_FOLDER).join("promotion"));
    if let Err(error) = std::fs::create_dir_all(&folder) {
        return harness_error(Problem::error(format!("can't make `{}`: {error}", folder.display())));
    }
    let console = match Console::new() {
        Ok(console) => console,
        Err(error) => return harness_error(Problem::error(format!("can't listen for signals: {error}"))),
    };
    let side = |name, job: &Option<PathBuf>, binary: &Option<PathBuf>| Side {
        name,
        job: job.clone(),
        binary: binary.clone().map_or_else(|| this.clone(), program_path),
    };
    let request = GateRequest {
        plan: arguments.plan.clone(),
        seed: arguments.seed.or(source.plan.seed).unwrap_or_else(drawn_seed),
        baseline: side("baseline", &arguments.baseline, &arguments.baseline_binary),
        candidate: side("candidate", &arguments.job, &arguments.binary),
        tolerance: arguments.tolerance,
        prices: Prices { cpu_hour: arguments.cpu_price, gib_hour: arguments.memory_price },
        folder: folder.clone(),
        runner: this.clone(),
    };
    match gate::run(&request, &|| console.wants_end()) {
        Ok(promotion) => {
            say(gate::markdown(&promotion));
            let outcome = if promotion.promoted { "promoted" } else { "not promoted" };
            say(format_args!("{outcome}: {}", folder.join("promotion.json").display()));
            promotion.exit_code
        }
        Err(error) => harness_error(Problem::error(error.to_string())),
    }
}

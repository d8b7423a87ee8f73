//! `simulate`: many seeds to figures in `target/bench/simulation.json`, or one seed to look at.
//!
//! ```sh
//! simulate --seeds 2000            # as CI does it
//! simulate --seed 17 --trace       # every call and event of one seed
//! ```
//! Exit status: 0 all is well, 1 an invariant is broken.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use streamshield_simulation::broken::Rule;
use streamshield_simulation::campaign::report;
use streamshield_simulation::{Campaign, Figures, Scenario, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Without a terminal a line comes after so many seeds.
const LINE_EVERY: u64 = 250;

#[derive(Parser)]
#[command(about = "Runs the real engine of several workers on a seeded single thread, with faults, and checks the invariants")]
struct Options {
    /// How many seeds
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// The first one
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Threads; each seed has one of its own
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Only this one
    #[arg(long)]
    seed: Option<u64>,
    /// Print every call and event (with --seed)
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Break this rule of the engine: the checks must notice
    #[arg(long)]
    broken: Option<Rule>,
    /// Where the figures go
    #[arg(long, default_value = "target/bench/simulation.json")]
    json: PathBuf,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    match options.seed {
        Some(seed) => Ok(one(seed, &options)),
        None => many(&options),
    }
}

fn one(seed: u64, options: &Options) -> ExitCode {
    let scenario = Scenario::of(seed);
    println!("{scenario:#?}");
    let outcome = run(&scenario, options.broken, options.trace);
    println!("{:#?}", outcome.fired);
    println!(
        "seed {seed}: {} ms of virtual time, {} rows, {} windows, {} late rows, {} take-overs, all out {} ms after the last fault, trace {:016x}",
        outcome.simulated_ms, outcome.rows, outcome.windows, outcome.late_rows, outcome.takeovers, outcome.calm_ms, outcome.trace_hash
    );
    if outcome.violations.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprint!("{}", report(&outcome));
    ExitCode::FAILURE
}

fn many(options: &Options) -> Result<ExitCode> {
    ensure!(options.seeds > 0, "no seeds, no proof");
    let is_terminal = std::io::stderr().is_terminal();
    let bar = if is_terminal { ProgressBar::new(options.seeds) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {msg} broken, {eta} left").context("the bar's template")?;
    bar.set_style(style);
    bar.set_message("0");
    let broken = std::sync::atomic::AtomicU64::new(0);
    let campaign = Campaign {
        seeds: options.first..options.first + options.seeds,
        threads: options.threads,
        broken: options.broken,
        time_max: None,
        stop_at_first: false,
    };
    let figures = campaign.run(|outcome| {
        bar.inc(1);
        if !outcome.violations.is_empty() {
            let count = broken.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
            bar.set_message(count.to_string());
            bar.suspend(|| eprintln!("seed {}: {}", outcome.seed, outcome.violations[0]));
        }
        if !is_terminal && bar.position().is_multiple_of(LINE_EVERY) {
            eprintln!("{} of {} seeds", bar.position(), options.seeds);
        }
    });
    bar.finish_and_clear();
    write(&figures, &options.json)?;
    println!(
        "{} seeds, {:.1} simulated hours in {:.0} s, {} take-overs, {} violations, trace {}",
        figures.seeds, figures.simulated_hours, figures.wall_seconds, figures.takeovers, figures.violations, figures.trace_hash
    );
    if figures.violations == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    eprint!("{}", figures.report());
    eprintln!("failing seeds: {:?}", figures.failing_seeds);
    Ok(ExitCode::FAILURE)
}

fn write(figures: &Figures, path: &std::path::Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    }
    let text = serde_json::to_string_pretty(figures)?;
    std::fs::write(path, text + "\n").with_context(|| format!("can't write {}", path.display()))
}

//! The gap in the output when a worker dies: ours in three tiers, and Kafka Streams.
//!
//! ```text
//! feeder ─ 20,000 events/s, open loop ─► input ─► three processes ─► output, partition p by the owner of window region p
//!                                                 ▲ SIGKILL, restart, again                 │ read committed
//!                                                 │                                         ▼
//!                                              killer ◄──── arrivals by partition ────── observer
//! ```
//! **What a gap is.** From right before SIGKILL to the moment at which a read-committed consumer gets the first record of an affected partition that was *made
//! by the new owner*, all on one host's CLOCK_MONOTONIC. A partition of the output is affected when the dead process owned its window region.
//! That a record is the new owner's is proven by its time stamp: the producer sets it when the record is made, on the same host, and nothing
//! made after the dead process was reaped is its work. (Kafka Streams' records name the instance that made them.) A kill counts with its *worst* affected partition.
//!
//! **`fresh`** is the stricter question: until there is output of windows that ended after the kill, so that input from after the kill is in it. It
//! holds the way through both stages, too.
//!
//! **Windows of 100 ms** close ten times a second, so without a kill the next record would have come within one window and one commit; at most
//! that much of a gap is not the take-over's. Kills come at random moments between commits. The killed worker comes back only when the gap has been measured (a
//! worker that returns under its name is noticed at once, which would flatter the figure), and the next kill waits until all followers are ready and the output
//! is up to date.
//!
//! After all kills the load ends and the whole output is compared with what the schedule says: nothing lost, nothing doubled.

mod kills;
pub mod observer;
mod report;
mod streams;

use anyhow::{Context, Result, ensure};
use kills::Kill;
use observer::{Observer, Rows};
use rand::Rng;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use streamshield_core::status::ClusterStatus;
use streamshield_tests::load::feeder::{Feeder, fill};
use streamshield_tests::load::{Load, verify};
use streamshield_tests::support::client::{delete_topic, topics};
use streamshield_tests::support::cluster::Workers;
use streamshield_tests::support::seed::{generator, seed};

pub const WORKERS: [&str; 3] = ["w1", "w2", "w3"];
pub const START_TIMEOUT: Duration = Duration::from_secs(120);
/// A gigabyte of state has to come back.
pub const SETTLE_TIMEOUT: Duration = Duration::from_secs(300);
const FILL_TIMEOUT: Duration = Duration::from_secs(900);
/// Until then the broker's JVM compiles what it runs, and takes the time from everybody else.
const WARM_UP: Duration = Duration::from_secs(30);
const OUTPUT_QUIET_MAX: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub struct Options {
    /// 1, 2, 3 or all.
    #[arg(long, value_delimiter = ',', default_value = "all")]
    tier: Vec<String>,
    /// Per series; default: 50 in tier 1, 20 in the others.
    #[arg(long)]
    kills: Option<u32>,
    /// State of the window regions; default: none in tier 1, 10MB,100MB,1GB in tier 2, 1GB in tier 3.
    #[arg(long, value_delimiter = ',', value_parser = parse_bytes)]
    state: Vec<u64>,
    #[arg(long, default_value_t = 20_000)]
    events_per_second: u64,
    /// Kafka Streams beside it, or alone: streamshield, streams.
    #[arg(long, value_delimiter = ',', default_value = "streamshield,streams")]
    engines: Vec<String>,
    /// Kafka Streams' session.timeout.ms, several for several series. Below 6,000 the broker must allow it: group.min.session.timeout.ms.
    #[arg(long, value_delimiter = ',', default_value = "1000")]
    session_timeout: Vec<u32>,
    /// Kafka Streams' transaction.timeout.ms. Shorter ends the transaction of a dead instance sooner; too short ends those of the living on a busy machine.
    #[arg(long, default_value_t = 3_000)]
    transaction_timeout: u32,
}

/// `100MB`, `1GB`, `0`.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(format!("`{text}` is no size: 100MB, 1GB")),
    };
    digits.parse::<u64>().map(|number| number * factor).map_err(|error| error.to_string())
}

/// One tier at one size of state, or the peer.
#[derive(Clone, Debug)]
pub struct Series {
    pub engine: &'static str,
    pub tier: Option<u32>,
    pub state_bytes: u64,
    pub kills: u32,
    pub session_timeout_ms: Option<u32>,
    pub transaction_timeout_ms: u32,
}

pub fn run(servers: &str, options: &Options) -> Result<()> {
    let seed = seed();
    let mut failed = Vec::new();
    for series in series(options)? {
        println!("\n{}: {} kills under {} events/s", report::title(&series), series.kills, options.events_per_second);
        let folder = tempfile::Builder::new().prefix("failover-").tempdir()?;
        let outcome = match series.engine {
            "streams" => streams::measure(servers, &series, options.events_per_second, seed, folder.path()),
            _ => measure(servers, &series, options.events_per_second, seed, folder.path()),
        };
        match outcome {
            Ok(value) => {
                report::add(&value)?;
                if value["lost"] != 0 || value["doubled"] != 0 {
                    failed.push(report::title(&series));
                }
            }
            Err(error) => {
                println!("{}: {error:#}\nlogs: {}", report::title(&series), folder.keep().display());
                failed.push(report::title(&series));
            }
        }
    }
    report::print()?;
    ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
    Ok(())
}

fn series(options: &Options) -> Result<Vec<Series>> {
    let mut all = Vec::new();
    let transaction_timeout_ms = options.transaction_timeout;
    let tiers: Vec<u32> = match options.tier.iter().any(|tier| tier == "all") {
        true => vec![1, 2, 3],
        false => options.tier.iter().map(|tier| tier.parse().context("--tier: 1, 2, 3 or all")).collect::<Result<_>>()?,
    };
    for tier in tiers.into_iter().filter(|_| options.engines.iter().any(|engine| engine == "streamshield")) {
        let (kills, states): (u32, &[u64]) = match tier {
            1 => (50, &[0]),
            2 => (20, &[10_000_000, 100_000_000, 1_000_000_000]),
            3 => (20, &[1_000_000_000]),
            _ => anyhow::bail!("--tier: 1, 2, 3 or all"),
        };
        let states = if options.state.is_empty() { states } else { &options.state };
        for &state_bytes in states {
            let kills = options.kills.unwrap_or(kills);
            all.push(Series {
                engine: "streamshield",
                tier: Some(tier),
                state_bytes,
                kills,
                session_timeout_ms: None,
                transaction_timeout_ms,
            });
        }
    }
    for &timeout in options.session_timeout.iter().filter(|_| options.engines.iter().any(|engine| engine == "streams")) {
        let kills = options.kills.unwrap_or(20);
        all.push(Series {
            engine: "streams",
            tier: None,
            state_bytes: 0,
            kills,
            session_timeout_ms: Some(timeout),
            transaction_timeout_ms,
        });
    }
    ensure!(!all.is_empty(), "--engines: streamshield, streams");
    Ok(all)
}

/// A load that no other series on this broker has.
pub fn load_of(series: &Series, events_per_second: u64, seed: u64) -> Load {
    let kind = series.tier.map_or(series.engine.to_string(), |tier| format!("tier{tier}"));
    let mut load = Load::new(format!("failover-{kind}-{}-{}", series.state_bytes / 1_000_000, std::process::id()), seed);
    load.events_per_second = events_per_second;
    if series.state_bytes > 0 { load.with_state(series.state_bytes) } else { load }
}

/// Starts three workers with the state in place. Tier 3 keeps its checkpoints in a folder.
pub fn start_workers(servers: &str, load: &Load, tier: u32, folder: &Path) -> Result<(Workers, ClusterStatus)> {
    start_workers_with(servers, load, tier, tier == 3, folder)
}

/// The same, with or without checkpoints in a folder.
pub fn start_workers_with(servers: &str, load: &Load, tier: u32, has_store: bool, folder: &Path) -> Result<(Workers, ClusterStatus)> {
    let mut job = load.job(servers).set("tier", tier);
    if load.bulk_keys > 100_000 {
        job = job.set("memory_budget", "1 GiB");
    }
    if has_store {
        let store = folder.join("checkpoints");
        std::fs::create_dir_all(&store)?;
        job = job.set("checkpoint", format!("{{store: 'file://{}', interval: 10 s}}", store.display()));
    }
    load.create_topics(servers)?;
    fill(servers, load)?;
    let mut workers = Workers::new(folder, &job)?;
    workers.start_all(&WORKERS)?;
    workers.wait_settled(WORKERS.len(), START_TIMEOUT.max(SETTLE_TIMEOUT))?;
    let status = workers.wait_for("all bulk records taken", FILL_TIMEOUT, |status| {
        status.totals.records_in >= load.bulk_keys && status.totals.lag_records == 0
    })?;
    Ok((workers, status))
}

fn measure(servers: &str, series: &Series, events_per_second: u64, seed: u64, folder: &Path) -> Result<serde_json::Value> {
    let tier = series.tier.context("a tier")?;
    let load = load_of(series, events_per_second, seed);
    let started = Instant::now();
    let (mut workers, status) = start_workers(servers, &load, tier, folder)?;
    let state_reported = status.totals.state_bytes;
    println!("state in place after {:.1} s, {state_reported} bytes in memory", started.elapsed().as_secs_f64());
    let feeder = Feeder::start(servers, &load)?;
    let observer = Observer::start(servers, &load, Rows::Ours)?;
    std::thread::sleep(WARM_UP);
    let mut random = generator(seed);
    let mut kills: Vec<Kill> = Vec::new();
    for number in 0..series.kills {
        let pause = Duration::from_millis(random.random_range(1_000..1_500));
        let kill = kills::one(&mut workers, &observer, tier, pause, number).with_context(|| format!("kill {}", number + 1))?;
        println!("{}", report::line(&kill));
        kills.push(kill);
    }
    drop(observer);
    let fed = feeder.finish()?;
    let expected = verify::expected(&load, &fed);
    verify::wait_for_rows(servers, &load, expected.len() as u64, OUTPUT_QUIET_MAX).with_context(|| workers.last_words())?;
    // Dropped as late would be lost: the load has no late records.
    let late_rows = workers.status()?.totals.late_rows;
    workers.stop_all(Duration::from_secs(30))?;
    let verdict = verify::compare(servers, &load, &fed, &expected)?;
    let hanging = verify::hanging_transactions(servers, &load.name, Duration::from_secs(15))?;
    let mut value = report::summary(series, &kills, &verdict);
    value["state_bytes_reported"] = json!(state_reported);
    value["generator_late_ms_max"] = json!(fed.late_ms_max);
    value["late_rows"] = json!(late_rows);
    value["hanging_transactions"] = json!(hanging);
    value["events_per_second"] = json!(events_per_second);
    value["seed"] = json!(seed);
    remove_topics(servers, &load)?;
    ensure!(verdict.is_clean() && hanging.is_empty(), "the output is wrong: {verdict:?}, {late_rows} late rows, hanging {hanging:?}");
    Ok(value)
}

/// A gigabyte of state leaves several in topics.
pub fn remove_topics(servers: &str, load: &Load) -> Result<()> {
    topics(servers)?.iter().filter(|topic| topic.starts_with(&load.name)).try_for_each(|topic| delete_topic(servers, topic))
}

//! Benchmarks: `make bench`, `make bench-latency`, `make bench-memory`; of several workers `make bench-failover`, `make bench-overhead`, `make soak`; and
//! `make demo-failover`.
//!
//! All of them run the released binary as a user would, on a real Kafka on this machine, one thing at a time. What is measured is the
//! process: CPU time by `wait4`, the largest resident size by `/proc`. Each prints a table and writes `target/bench/*.json`.

mod commits;
mod demo;
mod engines;
mod failover;
mod input;
mod latency;
mod memory;
mod nexmark;
mod overhead;
mod profile;
mod soak;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// q0, q1, q2 and q12 beside Apache Flink: events per CPU-second.
    Nexmark(nexmark::Options),
    /// From the scheduled send to the committed output, over two stages.
    Latency(latency::Options),
    /// Many keys in one window with a small budget.
    Memory(memory::Options),
    /// Kills the owners of regions under load: the gap in the output, by tier and size of state, beside Kafka Streams.
    Failover(failover::Options),
    /// What tiers, checkpoints, restores, planned changes and a failing region cost.
    Overhead(overhead::Options),
    /// A kill every ten seconds for a long time: nothing grows, nothing is left behind.
    Soak(soak::Options),
    /// Three workers on an embedded broker, one killed every ten seconds, for people to watch.
    Demo(demo::Options),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let What::Demo(options) = &arguments.what {
        return demo::run(options);
    }
    let servers = std::env::var("STREAMSHIELD_KAFKA").context("STREAMSHIELD_KAFKA is not set: run this by `make bench`")?;
    match arguments.what {
        What::Nexmark(options) => nexmark::run(&servers, &options),
        What::Latency(options) => latency::run(&servers, &options),
        What::Memory(options) => memory::run(&servers, &options),
        What::Failover(options) => failover::run(&servers, &options),
        What::Overhead(options) => overhead::run(&servers, &options),
        What::Soak(options) => soak::run(&servers, &options),
        What::Demo(options) => demo::run(&options),
    }
}

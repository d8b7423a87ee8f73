//! Benchmarks: `make bench`, `make bench-latency`, `make bench-memory`.
//!
//! All of them run the released binary as a user would, on a real Kafka on this machine, one thing at a time. What is measured is the
//! process: CPU time by `wait4`, the largest resident size by `/proc`. Each prints a table and writes `target/bench/*.json`.

mod engines;
mod input;
mod latency;
mod memory;
mod nexmark;

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
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let servers = std::env::var("STREAMSHIELD_KAFKA").context("STREAMSHIELD_KAFKA is not set: run this by `make bench`")?;
    match arguments.what {
        What::Nexmark(options) => nexmark::run(&servers, &options),
        What::Latency(options) => latency::run(&servers, &options),
        What::Memory(options) => memory::run(&servers, &options),
    }
}

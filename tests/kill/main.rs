//! `make kill-test KILLS=100`: the long kill test, on a real Kafka. Writes `target/bench/kill-test.json`.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use streamshield_tests::kill::{self, Options};
use streamshield_tests::support::{figures, seed};

/// Kills a job again and again and checks its output to the row.
#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// Input records before the first start.
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
    /// Input records per second while the job runs and dies.
    #[arg(long, default_value_t = 30_000)]
    records_per_second: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let bootstrap_servers = std::env::var("STREAMSHIELD_KAFKA").context("STREAMSHIELD_KAFKA is not set: run `make kill-test`")?;
    let seed = seed::seed();
    let options = Options {
        bootstrap_servers,
        kills: arguments.kills,
        records: arguments.records,
        records_per_second: arguments.records_per_second,
        seed,
    };
    let folder = tempfile::tempdir()?;
    let report = match kill::run(&options, folder.path()) {
        Ok(report) => report,
        Err(error) => {
            let kept = folder.keep();
            return Err(error.context(format!("the job's logs are in {}", kept.display())));
        }
    };
    let json = report.json(seed);
    figures::write("kill-test.json", &json)?;
    println!("{json:#}");
    ensure!(report.is_clean(), "{}", kill::verify::describe(&report));
    Ok(())
}

//! Several workers of one job, as processes: what a user may do to them, and what a machine room does.
//!
//! Each test runs three workers on an embedded broker of its own under an open-loop load, does one thing to them, and ends with the same proof: the output is
//! right to the row, the changelogs keep E-1, E-2 and E-5, and no transaction hangs.

mod checkpoints;
mod failures;
mod members;
mod take_over;

use anyhow::{Context, Result, ensure};
use std::time::Duration;
use streamshield_core::status::ClusterStatus;
use streamshield_tests::load::Load;
use streamshield_tests::load::feeder::Feeder;
use streamshield_tests::load::verify;
use streamshield_tests::support::broker::Broker;
use streamshield_tests::support::cluster::Workers;
use streamshield_tests::support::job::Job;
use streamshield_tests::support::seed;

const TIMEOUT: Duration = Duration::from_secs(60);
const WORKERS: [&str; 3] = ["w1", "w2", "w3"];

/// A job under load.
struct Stage {
    broker: Broker,
    load: Load,
    workers: Workers,
    feeder: Option<Feeder>,
    // Outlives the workers.
    folder: tempfile::TempDir,
}

impl Stage {
    /// Three workers of a job in this tier, settled, and the load has begun.
    fn start(name: &str, tier: u32) -> Result<Stage> {
        Stage::start_with(Broker::embedded()?, name, tier, &WORKERS, |_, job| job)
    }

    fn start_with(
        broker: Broker,
        name: &str,
        tier: u32,
        workers: &[&str],
        settings: impl FnOnce(&std::path::Path, Job) -> Job,
    ) -> Result<Stage> {
        let mut stage = Stage::prepare(broker, name, tier, settings)?;
        stage.workers.start_all(workers)?;
        stage.settle(workers.len())?;
        stage.begin()?;
        Ok(stage)
    }

    /// Topics and the job file.
    fn prepare(broker: Broker, name: &str, tier: u32, settings: impl FnOnce(&std::path::Path, Job) -> Job) -> Result<Stage> {
        let folder = tempfile::tempdir()?;
        let mut load = Load::new(name, seed::seed());
        (load.partitions, load.events_per_second, load.keys) = (3, 2_000, 30);
        let servers = broker.bootstrap_servers();
        load.create_topics(&servers)?;
        let job = settings(folder.path(), load.job(&servers).set("tier", tier).set("flush_interval", "300 ms"));
        let workers = Workers::new(folder.path(), &job)?;
        Ok(Stage { broker, load, workers, feeder: None, folder })
    }

    /// The load begins, and there is output.
    fn begin(&mut self) -> Result<()> {
        self.feeder = Some(Feeder::start(&self.broker.bootstrap_servers(), &self.load)?);
        self.wait_output_of_now()
    }

    fn settle(&mut self, workers: usize) -> Result<ClusterStatus> {
        self.workers.wait_settled(workers, TIMEOUT)
    }

    /// Waits until every partition has output of a window that ends after this call.
    fn wait_output_of_now(&mut self) -> Result<()> {
        let output = verify::wait_output_of_now(&self.broker.bootstrap_servers(), &self.load, TIMEOUT);
        output.with_context(|| self.words())
    }

    /// What there is to see when something went wrong.
    fn words(&self) -> String {
        let view =
            self.workers.status().map_or_else(|error| error.to_string(), |status| streamshield_tests::support::cluster::describe(&status));
        format!("{view}\n{}", self.workers.last_words())
    }

    /// Ends the load and the workers; everything must be right.
    fn finish(mut self) -> Result<()> {
        let servers = self.broker.bootstrap_servers();
        let fed = self.feeder.take().context("the load has begun")?.finish()?;
        let expected = verify::expected(&self.load, &fed);
        verify::wait_for_rows(&servers, &self.load, expected.len() as u64, TIMEOUT).with_context(|| self.words())?;
        self.workers.stop_all(TIMEOUT)?;
        let verdict = verify::compare(&servers, &self.load, &fed, &expected)?;
        ensure!(verdict.is_clean(), "{verdict:?}\n{}", self.workers.logs());
        ensure!(verdict.records > 0 && verdict.rows as usize == expected.len(), "{verdict:?}");
        let broken = verify::broken_epochs(&servers, &self.load.name)?;
        ensure!(broken.is_empty(), "{}", broken.join("\n"));
        let hanging = verify::hanging_transactions(&servers, &self.load.name, Duration::from_secs(10))?;
        ensure!(hanging.is_empty(), "open transactions: {}", hanging.join("\n"));
        Ok(())
    }
}

/// The worker that owns a region.
fn owner_of(status: &ClusterStatus, region: &str) -> Result<String> {
    let found = status.regions.iter().find(|view| view.region == region).and_then(|view| view.owner.clone());
    found.with_context(|| format!("nobody owns {region}"))
}

fn incarnation_of(status: &ClusterStatus, worker: &str) -> Option<u64> {
    status.workers.iter().find(|view| view.worker == worker).map(|view| view.incarnation)
}

//! A stage with a job under a load whose right output is known.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use streamshield_faults::{ArmedPoint, FaultError, Fired, JobFile, Parameters, Role, Stage, StageFault, Target, Topology, Value, build};
use streamshield_tests::load::Load;
use streamshield_tests::load::feeder::{self, Feeder};
use streamshield_tests::load::verify;
use streamshield_tests::support::seed;

pub const TIMEOUT: Duration = Duration::from_secs(120);

/// A running job.
pub struct Rig {
    pub stage: Stage,
    pub load: Load,
    feeder: Option<Feeder>,
    random: rand_chacha::ChaCha8Rng,
    // Outlives the stage.
    _folder: tempfile::TempDir,
}

/// Real brokers, if the user has not chosen to do without.
pub fn has_kafka() -> bool {
    !std::env::var("STREAMSHIELD_SKIP_KAFKA").is_ok_and(|value| value == "1")
}

impl Rig {
    /// Settled, and with output.
    pub fn start(name: &str, topology: &Topology, settings: &[(&str, &str)]) -> Result<Rig> {
        Rig::start_with(name, topology, settings, |_| BTreeMap::new())
    }

    /// With workers that can be waited for at fail points.
    pub fn start_at_points(name: &str, topology: &Topology, settings: &[(&str, &str)]) -> Result<Rig> {
        Rig::start_with(name, topology, settings, ArmedPoint::environment)
    }

    fn start_with(
        name: &str,
        topology: &Topology,
        settings: &[(&str, &str)],
        environment: impl Fn(&Stage) -> BTreeMap<String, String>,
    ) -> Result<Rig> {
        let folder = tempfile::tempdir()?;
        let stage = Stage::start(topology, folder.path())?;
        let seed = seed::seed();
        let mut load = Load::new(name, seed);
        (load.partitions, load.events_per_second, load.keys) = (3, 1_000, 30);
        load.create_empty_topics(&stage.bootstrap_servers(), if topology.brokers == 3 { 3 } else { 1 })?;
        // Else the first record of a partition whose owner is held could be late, and right to be.
        feeder::open(&stage.bootstrap_servers(), &load)?;
        let mut job = load.job(&stage.bootstrap_servers()).set("flush_interval", "300 ms");
        for (key, value) in settings {
            job = job.set(key, value);
        }
        stage.start_workers_with(&JobFile::new(job.yaml()), &environment(&stage))?;
        stage.wait_settled(TIMEOUT)?;
        let feeder = Some(Feeder::start(&stage.bootstrap_servers(), &load)?);
        let rig = Rig { stage, load, feeder, random: seed::generator(seed), _folder: folder };
        rig.wait_output_of_now()?;
        Ok(rig)
    }

    pub fn build(&mut self, name: &str, parameters: &[(&str, &str)], target: Option<(Role, Option<&str>)>) -> Result<StageFault> {
        let parameters: Parameters = parameters.iter().map(|(key, value)| (key.to_string(), Value::Text(value.to_string()))).collect();
        let target = target.map(|(role, name)| Target { role, name: name.map(String::from) });
        Ok(build(name, &parameters, target.as_ref(), &mut self.random)?)
    }

    /// Injects a fault, which must leave evidence.
    pub fn inject(&mut self, name: &str, parameters: &[(&str, &str)], target: Option<(Role, Option<&str>)>) -> Result<(StageFault, Fired)> {
        let mut fault = self.build(name, parameters, target)?;
        let fired = fault.inject(&self.stage)?;
        println!("{name}: {fired:?}");
        ensure!(!fired.evidence.is_empty() && !fired.hit.is_empty(), "{name} left no evidence: {fired:?}");
        Ok((fault, fired))
    }

    pub fn undo(&self, fault: &mut StageFault) -> Result<Fired, FaultError> {
        let fired = fault.undo(&self.stage);
        println!("undone: {fired:?}");
        fired
    }

    /// Waits until every partition has output of a window that ends after this call.
    pub fn wait_output_of_now(&self) -> Result<()> {
        let output = verify::wait_output_of_now(&self.stage.bootstrap_servers(), &self.load, TIMEOUT);
        output.with_context(|| self.stage.last_words())
    }

    /// Settled again, and with output.
    pub fn wait_healthy(&self) -> Result<Duration> {
        let started = Instant::now();
        self.stage.wait_settled(TIMEOUT)?;
        self.wait_output_of_now()?;
        Ok(started.elapsed())
    }

    /// Ends load and workers; the output must be right to the row, and the epochs without a gap.
    pub fn finish(mut self) -> Result<()> {
        let servers = self.stage.bootstrap_servers();
        let fed = self.feeder.take().context("the load has begun")?.finish()?;
        let expected = verify::expected(&self.load, &fed);
        verify::wait_for_rows(&servers, &self.load, expected.len() as u64, TIMEOUT).with_context(|| self.stage.last_words())?;
        for (worker, ended) in self.stage.stop_workers(Duration::from_secs(30)) {
            ensure!(ended.status.success(), "{worker} ended badly: {}\n{}", ended.status, self.stage.log(&worker));
        }
        let verdict = verify::compare(&servers, &self.load, &fed, &expected)?;
        ensure!(verdict.is_clean() && verdict.rows as usize == expected.len(), "{verdict:?}");
        let broken = verify::broken_epochs(&servers, &self.load.name)?;
        ensure!(broken.is_empty(), "{}", broken.join("\n"));
        println!("{} records and {} rows are right", verdict.records, verdict.rows);
        Ok(())
    }
}

/// The embedded broker, and two workers of which each follows the other.
pub fn small() -> Topology {
    Topology { brokers: 0, workers: 2, ..Topology::default() }
}

pub fn pids(stage: &Stage) -> BTreeMap<String, Option<u32>> {
    stage.workers().map(|workers| workers.views()).unwrap_or_default().into_iter().map(|view| (view.name, view.pid)).collect()
}

/// Whether a process is gone; a zombie is.
pub fn is_gone(pid: u32) -> bool {
    matches!(streamshield_faults::stage::process_state(pid), None | Some('Z'))
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        ensure!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

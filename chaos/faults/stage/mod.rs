//! A cluster of real processes on this machine, and the handles by which it can be broken.
//!
//! ```text
//!  load, observers ──────────────────────────────► Kafka 1 · 2 · 3  (or 1, or the embedded one)
//!                                                    ▲   a listener per worker
//!  w1 ── proxies w1-b1 w1-b2 w1-b3 ──────────────────┤
//!  w2 ── proxies w2-b1 …                             │
//!  │  └─ proxy of the store ──► S3 · HDFS            │
//!  └ supervised: comes back after a death            │
//!  watchdog: ends all of it when this process dies ──┘
//! ```
//! Everything lies in one folder: `logs/` of all processes, `job/` with a job file per worker, `state/` of the workers, `points/` that they reach,
//! `broker-N/`, `store/`, and `children/` and `undo/` for the watchdog.
//!
//! **Order of the end**: workers, brokers, store, disks, watchdog. Dropping the stage does it; [`Stage::stop_workers`] before it gives the workers the time
//! to drain.

pub(crate) mod admin;
mod brokers;
pub(crate) mod disks;
mod events;
mod job;
mod kafka;
pub(crate) mod limits;
mod links;
pub(crate) mod ports;
pub(crate) mod process;
mod scripts;
mod status;
mod stores;
mod topology;
pub(crate) mod watchdog;
mod workers;

pub(crate) use brokers::BROKER_START_TIME_MAX;
pub use brokers::{BrokerView, Brokers};
pub use events::{StageEvent, StageEventKind};
pub use job::JobFile;
pub(crate) use links::EMBEDDED_BROKER;
pub use links::Links;
pub use ports::{Answer, free_address, get};
pub use process::{Ended, Process, Usage, state as process_state, usage};
pub(crate) use scripts::run_program;
pub use scripts::{binary, program_path};
pub use status::{ask, describe, is_settled, owners};
pub use stores::Store;
pub use topology::{StoreKind, Topology};
pub use workers::{Hold, WorkerView, Workers};

use crate::api::{FaultError, Fired, Parameters};
use anyhow::{Context, Result};
use disks::Disk;
use events::Events;
use kafka::{Java, NodePorts};
use process::lock;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use streamshield_core::status::ClusterStatus;
use watchdog::Watchdog;

const STATUS_INTERVAL: Duration = Duration::from_millis(50);

/// Where the faults of the family `data` go: whoever makes the input makes its faults.
pub trait DataFeed: Send + Sync {
    /// Begins to put a fault (`data.undecodable`…) into the input. What was sent so far is in what it returns.
    fn begin(&self, fault: &str, parameters: &Parameters) -> Result<Fired, FaultError>;
    /// Ends it; how many records it was.
    fn end(&self, fault: &str) -> Result<Fired, FaultError>;
}

/// A running cluster.
pub struct Stage {
    folder: PathBuf,
    topology: Topology,
    // Dropped in this order, the watchdog last.
    workers: OnceLock<Workers>,
    job: OnceLock<String>,
    feed: Mutex<Option<Arc<dyn DataFeed>>>,
    disks: Mutex<BTreeMap<String, Disk>>,
    links: Links,
    store: Store,
    brokers: Brokers,
    events: Arc<Events>,
    watchdog: Arc<Watchdog>,
}

impl Stage {
    /// Starts brokers, the store and the proxies, and returns when they serve. The folder is made if it is not there; what an earlier stage left in it would
    /// be taken for this one's, so it should be empty.
    pub fn start(topology: &Topology, folder: &Path) -> Result<Stage, FaultError> {
        topology.check().map_err(|reason| FaultError::Harness(anyhow::anyhow!(reason)))?;
        for name in ["logs", "job", "state", "points"] {
            std::fs::create_dir_all(folder.join(name)).with_context(|| folder.join(name).display().to_string())?;
        }
        let folder = folder.canonicalize().context("the run's folder")?;
        let (events, watchdog) = (Arc::new(Events::new()), Arc::new(Watchdog::start(&folder)?));
        let made = Stage::on(topology, folder, events, watchdog.clone());
        // Where there is no stage that could be dropped, brokers and their threads would go on.
        if made.is_err()
            && let Err(error) = watchdog.end()
        {
            eprintln!("the stage did not end cleanly: {error:#}");
        }
        made
    }

    fn on(topology: &Topology, folder: PathBuf, events: Arc<Events>, watchdog: Arc<Watchdog>) -> Result<Stage, FaultError> {
        let (brokers, links) = match topology.brokers {
            0 => embedded(topology, &folder, &events, &watchdog)?,
            _ => real(topology, &folder, &events, &watchdog)?,
        };
        let store = Store::start(topology.store, folder.join("store"), topology.seed, events.clone(), watchdog.clone())?;
        Ok(Stage {
            folder,
            topology: topology.clone(),
            workers: OnceLock::new(),
            job: OnceLock::new(),
            feed: Mutex::new(None),
            disks: Mutex::default(),
            links,
            store,
            brokers,
            events,
            watchdog,
        })
    }

    /// Starts the workers of a job, once per stage, and returns at once; the topics of its sources must be there. See [`Stage::wait_settled`].
    pub fn start_workers(&self, job: &JobFile) -> Result<(), FaultError> {
        self.start_workers_with(job, &BTreeMap::new())
    }

    /// With further variables of their environment.
    pub fn start_workers_with(&self, job: &JobFile, environment: &BTreeMap<String, String>) -> Result<(), FaultError> {
        let mut files = BTreeMap::new();
        for name in self.topology.worker_names() {
            let surroundings = job::Surroundings {
                bootstrap_servers: self.links.bootstrap_servers(&name).unwrap_or_else(|| self.bootstrap_servers()),
                state_dir: self.folder.join("state"),
                store: self.store.for_job(),
                fallback_dir: self.folder.join("fallback").join(&name),
            };
            let file = self.folder.join("job").join(format!("{name}.yaml"));
            std::fs::write(&file, job::for_worker(job, &surroundings)?).with_context(|| file.display().to_string())?;
            files.insert(name, (file, ports::loopback(ports::free_port()?)));
        }
        self.job.set(job.name()?).map_err(|_| anyhow::anyhow!("the workers of this stage were started before"))?;
        let (events, watchdog) = (self.events.clone(), self.watchdog.clone());
        let workers = Workers::start(&self.folder, scripts::binary()?, files, environment, events, watchdog)?;
        self.workers.set(workers).map_err(|_| anyhow::anyhow!("the workers of this stage were started before"))?;
        Ok(())
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Of the brokers themselves, past all proxies: for load, observers and checks.
    pub fn bootstrap_servers(&self) -> String {
        self.brokers.bootstrap_servers()
    }

    pub fn job_name(&self) -> Result<&str, FaultError> {
        Ok(self.job.get().context("the workers were not started")?)
    }

    /// The job file of a worker, for commands such as `streamshield checkpoints`.
    pub fn job_file(&self, worker: &str) -> PathBuf {
        self.folder.join("job").join(format!("{worker}.yaml"))
    }

    pub fn state_dir(&self, worker: &str) -> PathBuf {
        self.folder.join("state").join(worker)
    }

    /// Where workers tell that they have reached a fail point.
    pub(crate) fn points_dir(&self) -> PathBuf {
        self.folder.join("points")
    }

    pub fn workers(&self) -> Result<&Workers, FaultError> {
        Ok(self.workers.get().context("the workers were not started")?)
    }

    pub fn brokers(&self) -> &Brokers {
        &self.brokers
    }

    pub fn links(&self) -> &Links {
        &self.links
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The whole job as its workers see it; of several answers the newest.
    pub fn cluster_status(&self) -> Result<ClusterStatus, FaultError> {
        status::newest(&self.workers()?.views()).map_err(|error| FaultError::NoTarget(format!("{error:#}")))
    }

    /// Waits for a view that the condition likes, and returns it; else the error shows the last one.
    pub fn wait_status(
        &self,
        what: &str,
        timeout: Duration,
        mut condition: impl FnMut(&ClusterStatus) -> bool,
    ) -> Result<ClusterStatus, FaultError> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.cluster_status();
            if let Ok(status) = &status
                && condition(status)
            {
                return Ok(status.clone());
            }
            if Instant::now() > deadline {
                let view = status.map_or_else(|error| error.to_string(), |status| describe(&status));
                return Err(FaultError::Harness(anyhow::anyhow!("not within {timeout:?}: {what}\n{view}\n{}", self.last_words())));
            }
            std::thread::sleep(STATUS_INTERVAL);
        }
    }

    /// Waits until all workers run, every region is active, and every follower that is wanted is ready.
    pub fn wait_settled(&self, timeout: Duration) -> Result<ClusterStatus, FaultError> {
        let workers = self.topology.workers as usize;
        self.wait_status(&format!("{workers} workers settled"), timeout, |status| is_settled(status, workers))
    }

    /// The end of what each worker wrote.
    pub fn last_words(&self) -> String {
        let Ok(workers) = self.workers() else { return String::new() };
        workers.names().iter().map(|name| format!("--- {name}\n{}\n", workers.last_words(name))).collect()
    }

    /// What a worker wrote to standard error in all its lives.
    pub fn log(&self, worker: &str) -> String {
        let mut files: Vec<PathBuf> = disks::files_below(&self.folder.join("logs"));
        files.retain(|file| file.extension().is_some_and(|extension| extension == "err"));
        let life = |file: &Path| file.file_stem()?.to_str()?.strip_prefix(worker)?.strip_prefix('-')?.parse::<u64>().ok();
        files.sort_by_key(|file| life(file));
        let texts = files.iter().filter(|file| life(file).is_some()).map(|file| std::fs::read(file).unwrap_or_default());
        texts.map(|text| String::from_utf8_lossy(&text).into_owned()).collect()
    }

    /// All that happened to processes, with the time since the stage's start.
    pub fn events(&self) -> Vec<StageEvent> {
        self.events.all()
    }

    pub fn note(&self, text: impl Into<String>) {
        self.events.push(StageEventKind::Note { text: text.into() });
    }

    /// Milliseconds since the stage's start, by the clock of its events.
    pub fn now_ms(&self) -> u64 {
        self.events.now_ms()
    }

    /// When the stage was started.
    pub fn start_instant(&self) -> Instant {
        self.events.start()
    }

    /// Who makes the input, for the faults of the family `data`.
    pub fn set_data_feed(&self, feed: Arc<dyn DataFeed>) {
        *lock(&self.feed) = Some(feed);
    }

    pub(crate) fn data_feed(&self) -> Result<Arc<dyn DataFeed>, FaultError> {
        lock(&self.feed)
            .clone()
            .ok_or_else(|| FaultError::NotPossibleHere("nobody makes input that could be spoilt: it takes our workload".into()))
    }

    pub(crate) fn watchdog(&self) -> &Watchdog {
        &self.watchdog
    }

    pub fn watchdog_pid(&self) -> Option<u32> {
        self.watchdog.pid()
    }

    /// Ends the workers, drained: how each ended. They are not started again.
    pub fn stop_workers(&self, timeout: Duration) -> Vec<(String, Ended)> {
        self.workers.get().map_or_else(Vec::new, |workers| workers.stop(timeout))
    }

    /// Does something with a worker's own disk, which it gets at the first time. The worker must be away.
    pub(crate) fn with_disk<T>(&self, worker: &str, act: impl FnOnce(&Disk) -> Result<T, FaultError>) -> Result<T, FaultError> {
        let mut disks = lock(&self.disks);
        if !disks.contains_key(worker) {
            disks.insert(worker.into(), Disk::under(&self.state_dir(worker), &self.watchdog)?);
        }
        act(disks.get(worker).context("the disk is there")?)
    }

    pub(crate) fn has_disk(&self, worker: &str) -> bool {
        lock(&self.disks).contains_key(worker)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop_workers(Duration::ZERO);
        self.brokers.stop();
        self.store.stop();
        lock(&self.disks).clear();
        if let Err(error) = self.watchdog.end() {
            // The run is over; whoever reads its output has to know what is left.
            eprintln!("the stage did not end cleanly: {error:#}");
        }
    }
}

fn embedded(topology: &Topology, folder: &Path, events: &Arc<Events>, watchdog: &Arc<Watchdog>) -> Result<(Brokers, Links), FaultError> {
    let brokers = Brokers::embedded(&folder.join("logs"), events.clone(), watchdog.clone())?;
    let address = brokers.embedded_address();
    let links = Links::start(topology, |_, _| address.filter(|_| topology.proxies))?;
    if let Some(address) = address {
        links.rewrite(address);
    }
    Ok((brokers, links))
}

fn real(topology: &Topology, folder: &Path, events: &Arc<Events>, watchdog: &Arc<Watchdog>) -> Result<(Brokers, Links), FaultError> {
    let java = Java::new(scripts::kafka_jars()?, topology.broker_heap_mb);
    let mut ports: BTreeMap<u32, NodePorts> = BTreeMap::new();
    for id in topology.broker_ids() {
        // Without proxies workers use the direct listener.
        let workers: Vec<String> = topology.worker_names().filter(|_| topology.proxies).collect();
        ports.insert(id, NodePorts::choose(workers.into_iter())?);
    }
    let listener = |worker: &str, id: u32| -> Option<SocketAddr> { Some(ports::loopback(ports.get(&id)?.workers.get(worker)?.port)) };
    let links = Links::start(topology, listener)?;
    for (worker, id, proxy) in links.all() {
        let listener = ports.get_mut(&id).and_then(|node| node.workers.get_mut(worker)).context("a link leads to a listener")?;
        listener.advertised = proxy.address().port();
    }
    let brokers = Brokers::start(folder, java, &ports, events.clone(), watchdog.clone())?;
    Ok((brokers, links))
}

//! The brokers of a stage: real ones that can be killed, paused and brought back, or the embedded one, which can't.

use super::events::{Events, StageEventKind};
use super::kafka::{self, Java, NodePorts};
use super::process::{Process, lock};
use super::watchdog::Watchdog;
use crate::api::FaultError;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use streamshield_embedded::{Config, EmbeddedBroker, Handle};

/// A cold start on a busy machine with three of them takes a quarter of a minute.
pub const BROKER_START_TIME_MAX: Duration = Duration::from_secs(90);
/// How often a broker is started before the run is given up.
const START_TRIES: u32 = 4;
/// After it SIGKILL ends what the run does not need any more.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);

/// A broker as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerView {
    pub id: u32,
    /// None: it does not run.
    pub pid: Option<u32>,
    /// Its direct address.
    pub address: SocketAddr,
    pub starts: u64,
}

struct Node {
    folder: PathBuf,
    address: SocketAddr,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    process: Option<Arc<Process>>,
    starts: u64,
}

/// All brokers of a stage.
pub struct Brokers {
    logs: PathBuf,
    java: Option<Java>,
    nodes: BTreeMap<u32, Node>,
    embedded: Option<Handle>,
    events: Arc<Events>,
    watchdog: Arc<Watchdog>,
}

impl Brokers {
    /// The embedded one, in this process, its log in memory.
    pub(crate) fn embedded(logs: &Path, events: Arc<Events>, watchdog: Arc<Watchdog>) -> Result<Brokers> {
        let handle = EmbeddedBroker::start(Config::default()).context("the embedded broker does not start")?;
        Ok(Brokers { logs: logs.to_path_buf(), java: None, nodes: BTreeMap::new(), embedded: Some(handle), events, watchdog })
    }

    /// Starts real ones, and returns when all serve.
    pub(crate) fn start(
        folder: &Path,
        java: Java,
        ports: &BTreeMap<u32, NodePorts>,
        events: Arc<Events>,
        watchdog: Arc<Watchdog>,
    ) -> Result<Brokers> {
        let mut nodes = BTreeMap::new();
        for (id, node) in ports {
            let folder = folder.join(format!("broker-{id}"));
            kafka::write_properties(&folder, *id, ports)?;
            let running = Mutex::default();
            nodes.insert(*id, Node { folder, address: super::ports::loopback(node.direct), running });
        }
        let folders: Vec<(u32, PathBuf)> = nodes.iter().map(|(id, node)| (*id, node.folder.clone())).collect();
        kafka::format(&java, &folders)?;
        let brokers = Brokers { logs: folder.join("logs"), java: Some(java), nodes, embedded: None, events, watchdog };
        for id in ports.keys() {
            brokers.start_one(*id)?;
        }
        for id in ports.keys() {
            brokers.wait_ready(*id, BROKER_START_TIME_MAX)?;
        }
        Ok(brokers)
    }

    pub fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// The direct addresses of all, past the proxies.
    pub fn bootstrap_servers(&self) -> String {
        match &self.embedded {
            Some(handle) => handle.bootstrap_servers(),
            None => self.nodes.values().map(|node| node.address.to_string()).collect::<Vec<_>>().join(","),
        }
    }

    pub(crate) fn embedded_address(&self) -> Option<SocketAddr> {
        self.embedded.as_ref().map(Handle::address)
    }

    pub fn ids(&self) -> Vec<u32> {
        self.nodes.keys().copied().collect()
    }

    pub fn views(&self) -> Vec<BrokerView> {
        let view = |(id, node): (&u32, &Node)| {
            let running = lock(&node.running);
            let process = running.process.as_ref().filter(|process| process.is_alive());
            BrokerView { id: *id, pid: process.map(|process| process.pid), address: node.address, starts: running.starts }
        };
        self.nodes.iter().map(view).collect()
    }

    fn node(&self, id: u32) -> Result<&Node, FaultError> {
        if self.is_embedded() {
            return Err(FaultError::NotPossibleHere(
                "the embedded broker is a part of this process: it takes a topology with real brokers".into(),
            ));
        }
        self.nodes.get(&id).ok_or_else(|| FaultError::NoTarget(format!("there is no broker {id}")))
    }

    /// The living process of a broker.
    pub fn process(&self, id: u32) -> Result<Arc<Process>, FaultError> {
        let process = lock(&self.node(id)?.running).process.clone();
        process.filter(|process| process.is_alive()).ok_or_else(|| FaultError::NoTarget(format!("broker {id} does not run")))
    }

    /// Starts a broker that does not run, and returns at once; on its old folder, so that it finds its log.
    pub fn start_one(&self, id: u32) -> Result<(), FaultError> {
        let node = self.node(id)?;
        let java = self.java.as_ref().context("real brokers have a Java")?;
        let mut running = lock(&node.running);
        if running.process.as_ref().is_some_and(|process| process.is_alive()) {
            return Ok(());
        }
        running.starts += 1;
        let process = Arc::new(kafka::start(java, &node.folder, &self.logs, &format!("broker-{id}-{}", running.starts))?);
        self.watchdog.note_child(process.pid, process.started_ticks)?;
        self.events.push(StageEventKind::BrokerStarted { broker: id, pid: process.pid });
        running.process = Some(process.clone());
        let (events, watchdog) = (self.events.clone(), self.watchdog.clone());
        let watch = move || {
            let ended = loop {
                if let Some(ended) = process.wait(Duration::from_secs(3600)) {
                    break ended;
                }
            };
            watchdog.forget_child(process.pid);
            events.push(StageEventKind::BrokerDied { broker: id, pid: process.pid, status: ended.status.to_string() });
        };
        std::thread::Builder::new().name(format!("broker-{id}")).spawn(watch).context("no thread for a broker")?;
        Ok(())
    }

    /// Waits until a broker serves. One that loses its controller while it starts gives up for good, which is no fault of the run: it is started again.
    pub fn wait_ready(&self, id: u32, timeout: Duration) -> Result<(), FaultError> {
        let deadline = Instant::now() + timeout;
        for _ in 1..START_TRIES {
            let process = lock(&self.node(id)?.running).process.clone();
            let left = deadline.saturating_duration_since(Instant::now());
            match process.map_or_else(|| Err(anyhow::anyhow!("broker {id} was not started")), |process| kafka::wait_ready(&process, left)) {
                Ok(()) => return Ok(()),
                Err(_) if Instant::now() < deadline => self.start_one(id)?,
                Err(error) => return Err(error.into()),
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        Ok(kafka::wait_ready(&*self.process(id)?, left)?)
    }

    /// TERM to all at once, and KILL to what stays: nothing of their logs is needed any more.
    pub(crate) fn stop(&self) {
        let processes: Vec<Arc<Process>> = self.nodes.values().filter_map(|node| lock(&node.running).process.clone()).collect();
        for process in &processes {
            process.signal(libc::SIGCONT);
            process.signal(libc::SIGTERM);
        }
        // The controllers' quorum goes with the first two: the last one would wait for it.
        let _ = processes.first().and_then(|process| process.wait(STOP_TIME_MAX));
        for process in &processes {
            let _ = process.kill();
            self.watchdog.forget_child(process.pid);
        }
    }
}

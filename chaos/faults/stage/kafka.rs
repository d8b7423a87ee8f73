//! One node of a real Apache Kafka (KRaft, broker and controller in one): its files and its process.
//!
//! Clients connect to the address that a broker *advertises*, whatever address they used first. So a broker has one listener for each worker, and advertises
//! under it the address of that worker's proxy: the worker can't get past it. The direct listener is for the brokers themselves, and for load and observers.
//!
//! ```text
//! w1 ──► proxy w1-b1 ──► W1  :port ┐
//! w2 ──► proxy w2-b1 ──► W2  :port ├ broker 1 ── CONTROLLER :port ── other nodes
//! load, observers ─────► PLAINTEXT ┘
//! ```
//! The settings are those of `scripts/kafka.sh`: small, because the machine is shared with what is tested, and quick, because runs wait for it. Brokers and the
//! quorum of the controllers are more patient: three that start at once on two cores would take each other for dead.

use super::ports::free_port;
use super::process::Process;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// All nodes must have been formatted with the same; it names nothing outside of the stage.
const CLUSTER_ID: &str = "MkU3OEVBNTcwNTJENDM2Qg";
const COMMON_PROPERTIES: &str = include_str!("../../../scripts/kafka/broker.properties");
const POLL_INTERVAL: Duration = Duration::from_millis(30);
/// The name of the first checkpoint of the metadata log, which is all that formatting makes besides `meta.properties`.
const BOOTSTRAP: &str = "__cluster_metadata-0/00000000000000000000-0000000000.checkpoint";

/// Ports of one node.
#[derive(Clone, Debug)]
pub(crate) struct NodePorts {
    pub direct: u16,
    pub controller: u16,
    /// The listener of each worker, and what it advertises.
    pub workers: BTreeMap<String, WorkerListener>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerListener {
    pub port: u16,
    pub advertised: u16,
}

impl NodePorts {
    /// Nothing is advertised yet: the proxies are not there.
    pub(crate) fn choose(workers: impl Iterator<Item = String>) -> Result<NodePorts> {
        let listener = |name| free_port().map(|port| (name, WorkerListener { port, advertised: port }));
        Ok(NodePorts { direct: free_port()?, controller: free_port()?, workers: workers.map(listener).collect::<Result<_>>()? })
    }
}

/// Where Java, its options and the jars are; the same for all nodes.
#[derive(Clone, Debug)]
pub(crate) struct Java {
    jars: PathBuf,
    heap_mb: u32,
    /// Class data that `scripts/kafka.sh` left for this Java: a start takes half as long with it.
    archive: Option<PathBuf>,
}

impl Java {
    pub(crate) fn new(jars: PathBuf, heap_mb: u32) -> Java {
        let name = Command::new("sh").args(["-c", "java -version 2>&1 | cksum | cut -d' ' -f1"]).output();
        let archive = name.ok().map(|output| jars.join(format!("classes-{}.jsa", String::from_utf8_lossy(&output.stdout).trim())));
        Java { jars, heap_mb, archive: archive.filter(|file| file.exists()) }
    }

    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new("java");
        command.args([&format!("-Xmx{}m", self.heap_mb), "-Xms48m", "-Xss512k", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        command.args(["-XX:-UsePerfData", "-Djava.awt.headless=true", "-Djava.net.preferIPv4Stack=true"]);
        command.arg(format!("-Djava.io.tmpdir={}", folder.display()));
        command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info"]);
        command.args(["-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"]);
        if let Some(archive) = &self.archive {
            command.arg(format!("-XX:SharedArchiveFile={}", archive.display())).arg("-Xshare:auto");
        }
        command.arg("-cp").arg(self.class_path());
        command
    }

    /// As the archive was made with: the jars in order of their names.
    fn class_path(&self) -> String {
        let mut jars: Vec<String> = std::fs::read_dir(&self.jars)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().display().to_string())
            .filter(|path| path.ends_with(".jar"))
            .collect();
        jars.sort();
        jars.iter().fold(String::new(), |path, jar| path + jar + ":")
    }
}

/// Formats the log folders of all nodes: one by Kafka's own tool, the others as copies of it, which saves seconds.
pub(crate) fn format(java: &Java, folders: &[(u32, PathBuf)]) -> Result<()> {
    let Some((_, first)) = folders.first() else { return Ok(()) };
    if !first.join("data/meta.properties").exists() {
        let mut command = java.command(first);
        command.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"]).arg(first.join("server.properties"));
        let output = command.output().context("java can't be started")?;
        let text = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "a log folder of Kafka could not be formatted: {}\n{text}", output.status);
    }
    for (id, folder) in folders.iter().skip(1) {
        let data = folder.join("data");
        if data.join("meta.properties").exists() {
            continue;
        }
        let checkpoint = data.join(BOOTSTRAP);
        std::fs::create_dir_all(checkpoint.parent().context("the checkpoint has a folder")?)?;
        std::fs::copy(first.join("data").join(BOOTSTRAP), &checkpoint)?;
        // 16 bytes in URL-safe Base64, another for each log folder. Of the last character only two bits count, so the number stands before it.
        let meta = format!("version=1\ncluster.id={CLUSTER_ID}\nnode.id={id}\ndirectory.id=c3RyZWFtc2hpZWxk{id}LTAwA\n");
        std::fs::write(data.join("meta.properties"), meta)?;
    }
    Ok(())
}

/// Writes the settings of a node.
pub(crate) fn write_properties(folder: &Path, id: u32, nodes: &BTreeMap<u32, NodePorts>) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let ports = nodes.get(&id).context("a node is one of the nodes")?;
    let (replicas, in_sync) = if nodes.len() >= 3 { (3, 2) } else { (1, 1) };
    let mut listeners = format!("PLAINTEXT://127.0.0.1:{},CONTROLLER://127.0.0.1:{}", ports.direct, ports.controller);
    let mut advertised = format!("PLAINTEXT://127.0.0.1:{}", ports.direct);
    let mut protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_string();
    for (worker, listener) in &ports.workers {
        let name = worker.to_uppercase();
        write!(listeners, ",{name}://127.0.0.1:{}", listener.port)?;
        write!(advertised, ",{name}://127.0.0.1:{}", listener.advertised)?;
        write!(protocols, ",{name}:PLAINTEXT")?;
    }
    let voters: Vec<String> = nodes.iter().map(|(id, node)| format!("{id}@127.0.0.1:{}", node.controller)).collect();
    let common = COMMON_PROPERTIES.replace("@replicas@", &replicas.to_string()).replace("@in_sync@", &in_sync.to_string());
    let text = format!(
        "{common}node.id={id}
listeners={listeners}
advertised.listeners={advertised}
controller.quorum.voters={voters}
listener.security.protocol.map={protocols}
log.dirs={data}
broker.session.timeout.ms=3000
controller.quorum.fetch.timeout.ms=4000
controller.quorum.request.timeout.ms=4000
controlled.shutdown.enable={controlled}
",
        voters = voters.join(","),
        data = folder.join("data").display(),
        controlled = nodes.len() > 1,
    );
    std::fs::write(folder.join("server.properties"), text)?;
    Ok(())
}

/// Starts a node; it serves when [`wait_ready`] says so.
pub(crate) fn start(java: &Java, folder: &Path, logs: &Path, name: &str) -> Result<Process> {
    let mut command = java.command(folder);
    command.arg("kafka.Kafka").arg(folder.join("server.properties")).current_dir(folder);
    Process::start(command, logs, name)
}

/// Waits until a node says that it serves.
pub(crate) fn wait_ready(process: &Process, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !std::fs::read_to_string(process.stderr_file()).unwrap_or_default().contains("Kafka Server started") {
        if let Some(ended) = process.wait(Duration::ZERO) {
            bail!("a node of Kafka ended at its start: {}\n{}", ended.status, process.last_words());
        }
        anyhow::ensure!(Instant::now() < deadline, "a node of Kafka did not serve in {timeout:?}:\n{}", process.last_words());
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

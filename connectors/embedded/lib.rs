//! The embedded broker: a small broker inside our process that speaks the Kafka protocol on loopback.
//!
//! The demo, the tests without Java and a developer's first job need a log with real transactions and no installation. So
//! this crate serves one through the same protocol and the same librdkafka client as a real Kafka: everything takes the real
//! path, and `kcat` or any other tool can look at the topics meanwhile.
//!
//! ```text
//! librdkafka, kcat … ──loopback──▶ protocol ──▶ log_core (pure: decides) ──events──▶ journal (with a folder)
//! ```
//!
//! It serves one machine, without replication: a lost disk is a lost log. The log is held in memory up to
//! [`Config::memory_limit_bytes`]; with a folder it is on disk as well and survives the process (see [`journal`] for what
//! survives the machine). It listens on loopback only, since it has neither TLS nor authentication.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use streamshield_embedded::{Config, EmbeddedBroker};
//! let broker = EmbeddedBroker::start(Config::default())?;
//! println!("bootstrap.servers={}", broker.bootstrap_servers());
//! broker.shutdown()?;
//! # Ok(())
//! # }
//! ```

pub mod error;
pub mod journal;
pub mod log_core;
mod protocol;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

pub use error::EmbeddedError;
pub use journal::Fsync;
pub use log_core::Limits;

use journal::Journal;
use log_core::LogCore;
use protocol::{Clock, Front, FrontConfig};

/// How a broker is started. The default: a free port, in memory, 1 GiB.
#[derive(Clone, Debug)]
pub struct Config {
    /// A loopback address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the log is kept; `None` keeps it in memory only.
    pub data_dir: Option<PathBuf>,
    /// Record bytes held, over all topics. Beyond it producers get a retriable error, unless retention lets older records go.
    pub memory_limit_bytes: u64,
    pub fsync: Fsync,
    /// A journal is rolled when it has outgrown the live data, but not below this.
    pub journal_roll_bytes_min: u64,
    /// Whether a topic is created when a client that allows it asks for it.
    pub auto_create_topics: bool,
    /// Partitions of topics that are created without a number.
    pub default_partitions: i32,
    /// The other bounds of the log; its memory limit is replaced by [`Config::memory_limit_bytes`].
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Config {
        let limits = Limits::default();
        Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            data_dir: None,
            memory_limit_bytes: limits.memory_limit_bytes,
            fsync: Fsync::default(),
            journal_roll_bytes_min: journal::ROLL_BYTES_MIN,
            auto_create_topics: true,
            default_partitions: 4,
            limits,
        }
    }
}

/// Starts brokers.
#[derive(Debug)]
pub struct EmbeddedBroker;

impl EmbeddedBroker {
    /// Reads the journal back, listens, and serves on a thread of its own until [`Handle::shutdown`] or drop.
    pub fn start(config: Config) -> Result<Handle, EmbeddedError> {
        if !config.listen.ip().is_loopback() {
            return Err(EmbeddedError::NotLoopback { address: config.listen });
        }
        let (started_sender, started) = std::sync::mpsc::sync_channel(1);
        let (stop, stop_receiver) = oneshot::channel();
        let serve = move || run(config, stop_receiver, &started_sender);
        let spawned = std::thread::Builder::new().name("embedded-broker".into()).spawn(serve);
        let thread = spawned.map_err(|source| EmbeddedError::Thread { source })?;
        match started.recv() {
            Ok(address) => Ok(Handle { address, stop: Some(stop), thread: Some(thread) }),
            Err(_) => match thread.join() {
                Ok(Err(error)) => Err(error),
                _ => Err(EmbeddedError::Panicked { what: "the thread" }),
            },
        }
    }
}

/// A running broker. Dropping it stops the broker as well.
#[derive(Debug)]
pub struct Handle {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), EmbeddedError>>>,
}

impl Handle {
    /// What goes into `bootstrap.servers`.
    pub fn bootstrap_servers(&self) -> String {
        self.address.to_string()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// False when the broker has stopped by itself: what it can't write it must not acknowledge.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Closes all connections, syncs the journal and waits; returns what stopped the broker earlier, if something did.
    pub fn shutdown(mut self) -> Result<(), EmbeddedError> {
        self.stop_and_join()
    }

    fn stop_and_join(&mut self) -> Result<(), EmbeddedError> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(()); // it may have stopped by itself
        }
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(EmbeddedError::Panicked { what: "the thread" }),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.stop_and_join() {
            tracing::error!(%error, "the embedded broker ended badly");
        }
    }
}

fn run(config: Config, stop: oneshot::Receiver<()>, started: &std::sync::mpsc::SyncSender<SocketAddr>) -> Result<(), EmbeddedError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| EmbeddedError::Thread { source })?;
    let clock = Clock::start();
    let limits = Limits { memory_limit_bytes: config.memory_limit_bytes, ..config.limits };
    // two lives of a broker never start in the same millisecond over the same folder, which is locked
    let mut core = LogCore::new(limits, clock.now_ms() as u64);
    let journal = match &config.data_dir {
        None => None,
        Some(folder) => Some(Journal::open(folder, config.fsync, config.journal_roll_bytes_min, &mut core)?),
    };
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async move {
        let listen_error = |source| EmbeddedError::Listen { address: config.listen, source };
        let listener = tokio::net::TcpListener::bind(config.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let folder = config.data_dir.as_ref().map_or_else(|| "memory only".to_owned(), |folder| folder.display().to_string());
        tracing::info!(%address, log = folder, "embedded broker: serves this machine only, without replication");
        let front_config = FrontConfig {
            cluster_id: "streamshield-embedded".to_owned(),
            advertised_host: address.ip().to_string(),
            advertised_port: address.port(),
            auto_create_partitions: if config.auto_create_topics { config.default_partitions } else { 0 },
            default_partitions: config.default_partitions,
        };
        let front = Rc::new(Front::new(front_config, clock, core, journal));
        let _ = started.send(address); // the starter waits for this
        front.serve(listener, stop).await
    })
}

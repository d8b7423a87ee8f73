//! The broker of a test: the embedded one, in the test's own process so that it survives the job's death, or a real Kafka.

use anyhow::{Context, Result};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use streamshield_embedded::{Config, EmbeddedBroker, Handle};

/// A broker on loopback.
pub enum Broker {
    Embedded(Embedded),
    /// Started by `scripts/with-kafka.sh`; shared by all tests of a run, so topics carry the test's name.
    Kafka {
        bootstrap_servers: String,
    },
}

/// An embedded broker that can go away and come back at the same address with its log.
pub struct Embedded {
    address: SocketAddr,
    folder: Option<PathBuf>,
    handle: Option<Handle>,
}

impl Broker {
    /// In memory, on a free port.
    pub fn embedded() -> Result<Broker> {
        Broker::start(None)
    }

    /// With its log in a folder: it may be stopped and started again.
    pub fn embedded_in(folder: &Path) -> Result<Broker> {
        Broker::start(Some(folder.to_path_buf()))
    }

    fn start(folder: Option<PathBuf>) -> Result<Broker> {
        let handle = EmbeddedBroker::start(Config { data_dir: folder.clone(), ..Config::default() })?;
        Ok(Broker::Embedded(Embedded { address: handle.address(), folder, handle: Some(handle) }))
    }

    /// The real Kafka of this run. None (and a note for the end of the run) where the user chose to do without one.
    ///
    /// # Panics
    /// When there is none and nobody said that this is intended: a test that silently did nothing would prove nothing.
    pub fn kafka(test: &str) -> Option<Broker> {
        if let Ok(bootstrap_servers) = std::env::var("STREAMSHIELD_KAFKA") {
            return Some(Broker::Kafka { bootstrap_servers });
        }
        let skip = std::env::var("STREAMSHIELD_SKIP_KAFKA").is_ok_and(|value| value == "1");
        assert!(
            skip,
            "{test} needs a real Kafka: run it by `make test`, set STREAMSHIELD_KAFKA=host:port, or leave it out with STREAMSHIELD_SKIP_KAFKA=1"
        );
        left_out(test);
        None
    }

    pub fn bootstrap_servers(&self) -> String {
        match self {
            Broker::Embedded(embedded) => embedded.address.to_string(),
            Broker::Kafka { bootstrap_servers } => bootstrap_servers.clone(),
        }
    }

    /// Takes the embedded broker away.
    pub fn stop(&mut self) -> Result<()> {
        let Broker::Embedded(embedded) = self else { anyhow::bail!("only the embedded broker is a test's own to stop") };
        anyhow::ensure!(embedded.folder.is_some(), "a broker in memory would come back empty");
        embedded.handle.take().context("it is stopped already")?.shutdown()?;
        Ok(())
    }

    /// Brings it back, at the same address and with its log.
    pub fn start_again(&mut self) -> Result<()> {
        let Broker::Embedded(embedded) = self else { anyhow::bail!("only the embedded broker is a test's own to start") };
        let config = Config { data_dir: embedded.folder.clone(), listen: embedded.address, ..Config::default() };
        embedded.handle = Some(EmbeddedBroker::start(config)?);
        Ok(())
    }
}

/// Notes for the end of the run that a test which needs Kafka was left out.
pub fn left_out(test: &str) {
    println!("left out, needs Kafka: {test}");
    if let Some(list) = std::env::var_os("STREAMSHIELD_SKIPPED_LIST")
        && let Ok(mut list) = std::fs::OpenOptions::new().append(true).create(true).open(list)
    {
        let _ = writeln!(list, "{test}");
    }
}

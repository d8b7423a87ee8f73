//! The links between workers and brokers: one proxy for each pair, so that each can be broken alone.

use super::topology::Topology;
use anyhow::Result;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use streamshield_proxy::{KafkaProxy, Options};

/// The number under which the embedded broker has its links.
pub const EMBEDDED_BROKER: u32 = 1;

/// All proxies between workers and brokers, by worker and broker.
#[derive(Debug, Default)]
pub struct Links {
    proxies: BTreeMap<(String, u32), KafkaProxy>,
}

impl Links {
    /// `upstream` is where a broker listens for a worker.
    pub(crate) fn start(topology: &Topology, upstream: impl Fn(&str, u32) -> Option<SocketAddr>) -> Result<Links> {
        let mut proxies = BTreeMap::new();
        let brokers: Vec<u32> = if topology.brokers == 0 { vec![EMBEDDED_BROKER] } else { topology.broker_ids().collect() };
        for worker in topology.worker_names() {
            for broker in &brokers {
                let Some(address) = upstream(&worker, *broker) else { continue };
                let seed = topology.seed.wrapping_add(proxies.len() as u64);
                let proxy = KafkaProxy::start(Options::new(format!("{worker}-b{broker}"), address).seed(seed))?;
                proxies.insert((worker.clone(), *broker), proxy);
            }
        }
        Ok(Links { proxies })
    }

    /// The embedded broker advertises its own address, so its answers are rewritten.
    pub(crate) fn rewrite(&self, from: SocketAddr) {
        for proxy in self.proxies.values() {
            proxy.advertise(from, proxy.address());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.proxies.is_empty()
    }

    pub fn get(&self, worker: &str, broker: u32) -> Option<&KafkaProxy> {
        self.proxies.get(&(worker.to_string(), broker))
    }

    pub fn all(&self) -> impl Iterator<Item = (&str, u32, &KafkaProxy)> {
        self.proxies.iter().map(|((worker, broker), proxy)| (worker.as_str(), *broker, proxy))
    }

    pub fn of_worker<'a>(&'a self, worker: &'a str) -> impl Iterator<Item = (u32, &'a KafkaProxy)> {
        self.all().filter(move |(name, ..)| *name == worker).map(|(_, broker, proxy)| (broker, proxy))
    }

    /// What a worker's job file names as its cluster; None: there are no proxies.
    pub(crate) fn bootstrap_servers(&self, worker: &str) -> Option<String> {
        let addresses: Vec<String> = self.of_worker(worker).map(|(_, proxy)| proxy.address().to_string()).collect();
        (!addresses.is_empty()).then(|| addresses.join(","))
    }
}

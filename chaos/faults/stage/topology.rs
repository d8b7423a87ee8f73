//! What a stage is made of.

use serde::{Deserialize, Serialize};

pub const WORKERS_MAX: u32 = 9;
/// Enough for a few thousand records a second; three of them and the workers fit into a small machine.
const HEAP_MB_DEFAULT: u32 = 288;

/// Where the job's checkpoints go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// The job has no checkpoints.
    #[default]
    None,
    /// A folder: nothing stands between it and the workers, so it can be damaged but not be away.
    Folder,
    /// An S3 server behind a proxy.
    S3,
    /// An HDFS behind a proxy.
    Hdfs,
}

/// Brokers, workers, and what is between them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Topology {
    /// Real Apache Kafka, 1 or 3; 0 is the embedded broker in this process, which can't be broken.
    pub brokers: u32,
    pub workers: u32,
    pub store: StoreKind,
    /// Whether workers reach brokers through proxies. Without them there are no faults of the network.
    pub proxies: bool,
    /// Heap of a broker.
    pub broker_heap_mb: u32,
    /// Of all random choices of the stage itself: ports are not among them.
    pub seed: u64,
}

impl Default for Topology {
    fn default() -> Topology {
        Topology { brokers: 3, workers: 3, store: StoreKind::None, proxies: true, broker_heap_mb: HEAP_MB_DEFAULT, seed: 1 }
    }
}

impl Topology {
    /// What is wrong with it, for those who check plans.
    pub fn check(&self) -> Result<(), String> {
        if ![0, 1, 3].contains(&self.brokers) {
            return Err(format!("{} brokers: 3 or 1 of Apache Kafka, or 0 for the embedded one", self.brokers));
        }
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            return Err(format!("{} workers: from 1 to {WORKERS_MAX}", self.workers));
        }
        if self.broker_heap_mb < 128 {
            return Err(format!("a broker does not live in {} MB of heap: 128 at least", self.broker_heap_mb));
        }
        Ok(())
    }

    pub fn worker_names(&self) -> impl Iterator<Item = String> {
        (1..=self.workers).map(|number| format!("w{number}"))
    }

    pub fn broker_ids(&self) -> impl Iterator<Item = u32> {
        1..=self.brokers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topology_that_can_not_be_is_refused() {
        assert_eq!(Topology::default().check(), Ok(()));
        for wrong in [
            Topology { brokers: 2, ..Topology::default() },
            Topology { workers: 0, ..Topology::default() },
            Topology { workers: 10, ..Topology::default() },
            Topology { broker_heap_mb: 64, ..Topology::default() },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}

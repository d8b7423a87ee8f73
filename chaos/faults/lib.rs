//! A cluster of real processes and what can be broken about it, each fault with its undo and the evidence that it fired.
//!
//! ```no_run
//! use rand::SeedableRng;
//! use std::time::Duration;
//! use streamshield_faults::{JobFile, Parameters, Stage, Topology, build};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stage = Stage::start(&Topology::default(), std::path::Path::new("target/chaos/run"))?; // brokers, proxies, store
//! // … create the topics of the job's sources at stage.bootstrap_servers() …
//! stage.start_workers(&JobFile::read(std::path::Path::new("job.yaml"))?)?;
//! stage.wait_settled(Duration::from_secs(60))?;
//! let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(42);
//! let mut fault = build("process.pause", &Parameters::new(), None, &mut random)?;
//! println!("{:?}", fault.inject(&stage)?);
//! std::thread::sleep(Duration::from_secs(10));
//! println!("{:?}", fault.undo(&stage)?);
//! # Ok(())
//! # }
//! ```
//! - [`Stage`]: brokers, workers, proxies, a store, and the watchdog that ends all of it when this process dies.
//! - [`catalogue`]: every fault, its parameters and its targets; [`build`] makes one from a plan's step.
//! - [`Fault`], [`Fired`], [`FaultError`]: what a fault does, what shows that it did, and why it could not.

mod api;
pub mod faults;
pub mod stage;
mod values;

pub use api::{
    DEFAULT_LIMIT, Family, Fault, FaultError, FaultSpec, Fired, Parameter, ParameterKind, Parameters, Role, Target, Value, role_names,
};
pub use faults::{ArmedPoint, StageFault, build, catalogue, find};
pub use stage::{BrokerView, DataFeed, JobFile, Stage, StageEvent, StageEventKind, StoreKind, Topology, WorkerView};
pub use values::{BuildError, check_value};

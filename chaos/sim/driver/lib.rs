//! The simulation of whole clusters: the real engine of several workers on one seeded thread, over a log, disks and an object store that fail.
//!
//! ```text
//! seed ─► scenario: tier, workers, faults, what befalls whom and when
//!            │
//!            ▼            turns                         calls
//!          run ─ schedule ─────► actors of the engine ─────────► simulated ports (streamshield-sim)
//!            │ feeder: input        of each worker                  │ every commit
//!            │                                                      ▼
//!            └─ chaos → calm → rest ◄───────────── checks: E-1…E-5, O-1, C-1, K-1, K-2, the oracle
//! ```
//! | module | what |
//! |---|---|
//! | [`scenario`] | what a seed stands for |
//! | [`run`] | one run of it |
//! | [`job`], [`table`] | the job that is run, and tables over the log port |
//! | [`process`], [`machine`] | what surrounds the engine in a real process, between turns |
//! | [`feeder`], [`oracle`] | the input, and what must come out |
//! | [`control`], [`retention`] | the control log and the trims, judged |
//! | [`broken`] | rules broken on purpose: the checks must notice |
//! | [`campaign`] | many seeds, figures, reports |
//!
//! What a run proves is limited to what is run: the engine, the cluster's fold, exchanges, state by the simulated backend. RocksDB, librdkafka and the
//! object stores have tests of their own, against the same ports.

pub mod broken;
pub mod campaign;
pub mod control;
pub mod feeder;
pub mod job;
pub mod machine;
pub mod oracle;
pub mod process;
pub mod retention;
pub mod run;
pub mod scenario;
pub mod table;

pub use campaign::{Campaign, Figures};
pub use run::{Outcome, run};
pub use scenario::Scenario;

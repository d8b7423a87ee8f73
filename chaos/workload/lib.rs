//! A load that proves its own output.
//!
//! Under faults one can't tell from a dashboard whether a row was lost, doubled or torn. So the load is made such that the right output is known without
//! reading the input: record `n` is due at a moment that follows from `n` and the changes of rate, and everything else in it follows from `n` and a seed.
//! What has to be remembered of a run is a few numbers ([`Sent`]); the oracle computes the rest again.
//!
//! ```text
//! Workload ──sql──► job ─┬─ passed      every row, by key: 1..n per key without a gap
//!    │                   ├─ windows     exchange → window: count, sum per key and window
//!    │                   ├─ transfers   two rows of one step: money moves, the total stays
//!    │                   ├─ markers     one row to every partition in one transaction
//!    │                   └─ dead letters, late rows
//!    ├──start──► Running ─ stop ─► Sent ──┐
//!    ├──observe► Observer ─ stop ► Observation ─┤   latency, gaps, what a reader has seen live
//!    └──verify◄───────────────────────────┘
//!         └────► Findings: anomalies by Jepsen's names and our invariants' ids; how much was verified
//! ```
//! The load is an **open loop**: a generator that waits for the system under test hides exactly the moments that matter (coordinated omission). Latency
//! counts from when a record was due.
//!
//! What each part proves is in [`job`]; how, in [`oracle`]. [`checks`] are the invariants that the job's own topics must show, whatever the job computes:
//! they serve users' jobs too ([`user`]).
//!
//! - [`schedule`]: what record `n` is, and when. Pure. [`payload`]: its bytes.
//! - [`feeder`]: sends it, and faulty data among it.
//! - [`observer`]: reads the output live. [`slots`]: figures by time.
//! - [`client`]: Kafka as anybody's client sees it. [`time`]: times as text.

pub mod checks;
pub mod client;
mod error;
pub mod feeder;
pub mod findings;
pub mod job;
pub mod observer;
pub mod oracle;
pub mod payload;
pub mod schedule;
pub mod slots;
pub mod time;
pub mod user;

pub use error::{ErrorKind, WorkloadError};
pub use feeder::{Running, Sent, Stretch};
pub use findings::{Anomaly, AnomalyKind, Conservation, Findings, Invariant};
pub use job::{Topics, Workload};
pub use observer::{Drained, Flow, Gap, Observation, Observer};
pub use schedule::{DataFault, Settings};
pub use user::UserJob;

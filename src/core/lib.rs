//! What streamshield decides, free of clocks, I/O and threads.
//!
//! Every other crate depends on this one and none of them on each other (only `server` sees all): they meet in the
//! traits of [`ports`]. The vocabulary is that of `docs/glossary.md`; the invariants (E-1 … M-1) are those of
//! `ARCHITECTURE.md`.
//!
//! - [`ids`]: newtypes for regions, epochs, fences.
//! - [`watermark`]: event-time progress and the one definition of "closed" and "late" (E-5).
//! - [`cluster`]: who is alive, who owns which region and whom to fence (O-1, C-1).
//! - [`cut`]: where the regions of a job can be put back to together.
//! - [`epoch`]: the epoch record, the proof of what was committed (E-1 … E-4).
//! - [`tiers`]: from the promised recovery to a tier, and what its workers agree on.
//! - [`status`]: the view of all workers and regions, for people.
//! - [`mutants`]: guards that a test build can switch off.
//! - [`table`]: a SQL table as connectors see it.
//! - [`ports`]: the traits between engine, connectors and state.

pub mod cluster;
pub mod cut;
pub mod epoch;
pub mod ids;
pub mod mutants;
pub mod ports;
pub mod status;
pub mod table;
pub mod tiers;
pub mod watermark;

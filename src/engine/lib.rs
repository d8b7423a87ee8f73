//! What streamshield does: runs a [`plan::JobPlan`] in epochs over a log.
//!
//! ```text
//! runtime ─ joins, recovers, starts ─► slot (engine thread) ─ sealed epochs ─► commit (thread) ─► log
//!                                        │ step, seal                             │ news: committed
//!                                        └◄───────────────────────────────────────┘
//! ```
//! - [`plan`]: the job graph that `sql` makes.
//! - [`operators`], [`exchange`]: columnar operators of a stage, and the way of rows between stages.
//! - `region`, `step`: one stage × one partition; its steps and its seal (E-1, E-2, E-5).
//! - `content`, `commit`: sealed epochs and their one transaction (E-3).
//! - `changelog`, `recovery`: the proof of what was committed, and the replay (E-4).
//! - `ownership`: the control log (O-1).
//! - [`runtime`]: start, status, stop.
//!
//! Not here: what a connector does (`connectors/`), how groups are stored (`state/`), what a record means (`core`).

mod assemble;
mod changelog;
mod commit;
pub mod config;
mod content;
pub mod crash_points;
pub mod exchange;
mod letters;
pub mod operators;
mod ownership;
pub mod plan;
mod progress;
mod recovery;
mod region;
pub mod runtime;
mod slot;
mod stateless;
mod step;
pub mod topics;

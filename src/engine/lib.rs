//! What streamshield does: runs a [`plan::JobPlan`] in epochs over a log, on one of several workers.
//!
//! ```text
//! nursery ─ regions at the end of their changelog ─► slot ─ sealed epochs ─► committer ─► log
//!    ▲                                                │ step, seal               │ news: committed
//!    │                                                └◄─────────────────────────┘
//!    └──────── membership: the control log's view says who owns, follows, fences what
//! ```
//! - [`plan`]: the job graph that `sql` makes.
//! - `operators`, [`exchange`]: columnar operators of a stage, and the way of rows between stages.
//! - `region`, `step`: one stage × one partition; its steps and its seal (E-1, E-2, E-5).
//! - `content`, `commit`: sealed epochs and their one transaction (E-3).
//! - [`changelog`], `follower`: the proof of what was committed, and the state that follows it (E-4).
//! - `membership`, `heart`, `steward`, `reporter`, `nursery`, `takeover`: the control log, and what a worker does because of it (O-1, C-1).
//! - [`flight`]: what a worker was at when it died without a word.
//! - `checkpointer`: region checkpoints and the trim behind them (K-1, K-2).
//! - [`turn`], [`clock`]: everything that runs takes turns and asks for the time, so that a simulation can run it.
//! - [`runtime`]: start, status, stop. `starting`, `worker`: the way into the cluster, and the actors of a member.
//!
//! Not here: what a connector does (`connectors/`), how groups are stored (`state/`), what a record means (`core`).

mod assemble;
pub mod changelog;
mod checkpointer;
pub mod clock;
mod commit;
#[cfg(test)]
mod commit_test;
pub mod config;
mod content;
pub mod crash_points;
pub mod exchange;
pub mod flight;
mod follower;
mod heart;
mod letters;
mod membership;
mod nursery;
mod operators;
pub mod plan;
mod progress;
mod region;
mod reporter;
pub mod runtime;
mod slot;
mod starting;
mod stateless;
mod step;
mod steward;
#[cfg(test)]
mod steward_test;
mod takeover;
pub mod topics;
pub mod turn;
mod usage;
mod worker;

//! The binary `streamshield`: command line, job file, HTTP endpoints, live view. The only place where all crates meet.
//!
//! ```text
//! main → cli ─┬─ check, explain, topics, schema      job/ reads the file, wiring/ plans and connects
//!             ├─ run, worker ── wiring ── engine
//!             │                  ├── http     metrics, health, status
//!             │                  └── live     the table in the terminal
//!             ├─ run --workers N ── supervisor ── N processes `streamshield worker`
//!             └─ status, workers, checkpoints       read the control log and the store; the job does not notice
//! ```
//! Mistakes of the user are [`problem::Problem`]s with a place in their file; exit codes are in [`cli::ExitStatus`].

pub mod cli;
pub mod figures;
pub mod http;
pub mod job;
pub mod live;
pub mod logging;
pub mod metrics;
pub mod wiring;

pub use streamshield_files::problem;

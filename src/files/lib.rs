//! Files that people write, job files and plans of chaos runs: read so that every mistake is reported at its place.
//!
//! ```text
//! file ─yaml→ tree with places ─schema→ problems: unknown keys, wrong kinds, missing ones      (all at once)
//!                   │                        │
//!                   └─ who reads it adds his own problems at a place ─► problem: the report, with line, column and a hint
//! ```
//! Not here: what a file means.

pub mod problem;
pub mod schema;
pub mod units;
pub mod yaml;

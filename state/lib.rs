//! The state of window aggregations: typed tables in memory, RocksDB behind them.
//!
//! Why two layers: merging a partial aggregate into a table in memory costs tens of nanoseconds, a read-modify-write in
//! RocksDB some microseconds. So the engine's hot path never leaves memory, and the disk sees a group only when a
//! *flush epoch* writes it, when memory runs short, and when it comes back.
//!
//! ```text
//!  merge ──▶ tables/   one slab of typed columns per window ──▶ drain, in key order
//!              │ seal_flush: changed groups → bytes + digest         ▲
//!              ▼             seal_delta, the same ──▶ changelog      │
//!            changes/  a flush, held by the engine until      │      │ evicted groups
//!              │       its epoch commits                      │      │
//!              │ apply_flush: one atomic write batch with     │      │
//!              ▼ the epoch record         ◀── apply_delta ◀───┘      │
//!            rocks/    one store per region ─────────────────────────┘
//!              │ copier, beside the engine
//!              ▼
//!            a folder of immutable files ──▶ adopt, here or elsewhere
//! ```
//!
//! A standby is the same region without the upper half: deltas go past its tables into its store. To take over it has only to begin merging.
//!
//! What is on disk is always a prefix of the committed epochs, named by the record in the same write batch: the write-ahead
//! log is off, and a crash loses the youngest flushes as a whole.
//!
//! Invariants: E-4 (digest, contents and order of a drained portion depend on the merged rows alone, never on what happened to
//! be in memory), M-1 ([`Config`] names every bound; the engine bounds the tables by `bytes()` and `evict`).
//!
//! On failure: a [`StateErrorKind::Damaged`](streamshield_core::ports::state::StateErrorKind) store is to be deleted and
//! rebuilt from the log; after any other error the region's tables are in an unknown condition and must be dropped.

mod changes;
mod error;
mod region;
mod rocks;
mod tables;

pub use rocks::{Config, RocksBackend, StoreDigest, TableDigest, digests};

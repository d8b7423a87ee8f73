//! Region checkpoints in an object store: [`ObjectCheckpoints`] implements the checkpoint port of `streamshield_core`.
//!
//! A region checkpoint is the copy of a region's store at one epoch. Each region is saved alone, at an epoch of its own choice, from a plain
//! thread beside the engine; no other region waits for it, and no engine thread.
//!
//! ```text
//! save      hash the files ─► what does the newest manifest name already? ─► upload the rest ─► manifest, conditionally, last
//!              └─ the store is away, or out of time ─► local folder, `durability: local`
//! restore   manifests, newest first ─► files in parallel, size and checksum checked on the way ─► folder renamed into place
//!              └─ anything does not match ─► refused by name ─► next older
//! maintain  upload the newest local one ─► mark what retention no longer keeps ─► … grace … ─► read again, ask, delete
//! ```
//!
//! ## Layout
//!
//! A store `s3://bucket/streams` of the job `hot-items`, after two checkpoints of region 1/3 and one of its successor:
//!
//! ```text
//! streams/hot-items/1-3/files/1764091234567-06b05ab6733a618578af5f94892f3950-000012.sst
//! streams/hot-items/1-3/files/1764091234567-3d1f0c2b9a7e4f558bd1a90cc0ffee11-MANIFEST-000005
//! streams/hot-items/1-3/files/1764098765432-9f86d081884c7d659a2feaa0c55ad015-000017.sst
//! streams/hot-items/1-3/manifests/00000000000000004711-1764091234567.json
//! streams/hot-items/1-3/manifests/00000000000000005120-1764091234567.json
//! streams/hot-items/1-3/manifests/00000000000000005388-1764098765432.json   may name files of its predecessor
//! streams/hot-items/1-3/pins/00000000000000004711-1764091234567.json        never collected
//! streams/hot-items/1-3/gc/1764098765432-1764099000000-81f2.json            marked: nothing is deleted before the grace is over
//! ```
//!
//! A file is named by its writer's incarnation and its content. So a paused owner that wakes up can neither overwrite nor, because only
//! what carries an incarnation up to the own one is ever deleted, remove a successor's files; and a file is uploaded once, however often
//! checkpoints name it, whoever wrote it. What a manifest looks like is shown in its module.
//!
//! ## Invariants
//!
//! - K-1: a manifest is written only after all it names lies in the store; one that does not match its checksums is refused.
//! - K-2: what an existing manifest names is not deleted; what is deleted was marked longer ago than the longest restore takes, and belongs to
//!   no manifest when the manifests are read again; the owner is asked right before.
//! - M-1: memory is bounded by permits times the size of a part, both ways, over all regions of a process.
//!
//! ## On failure
//!
//! Every request is bounded. Three failures in a row, or one request that got no answer in all its time, open a circuit breaker: checkpoints go
//! to the local folder at once, and `maintain` uploads the newest one when the store is back. A torn upload leaves files that no manifest
//! names; the next checkpoint of the same process uses them, else they are collected by age. Parts of a torn multipart upload on S3 are
//! invisible to clients: give the bucket a life-cycle rule that ends incomplete multipart uploads after a day.
//!
//! Not here: when a checkpoint is due, and the jitter over the interval (the engine's); trimming of logs behind the oldest remote checkpoint (the
//! engine's, by [`CheckpointStore::list`](streamshield_core::ports::checkpoint::CheckpointStore::list)); making the folder of files (the state's).

mod admin;
mod breaker;
mod config;
mod error;
mod files;
mod gc;
mod listing;
mod local;
mod maintain;
mod manifest;
mod metrics;
mod names;
mod open;
mod probe;
mod remote;
mod restore;
mod retention;
mod save;
mod store;
mod throttle;
mod transfer;

pub use admin::{FileCheck, Verification};
pub use config::StoreConfig;
pub use error::StoreProblem;
pub use metrics::describe_metrics;
pub use probe::Probe;
pub use store::ObjectCheckpoints;

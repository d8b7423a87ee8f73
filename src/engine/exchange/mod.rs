//! Rows between stages: split by key, and written as bytes.
//!
//! ```text
//! batches of a chain ─ Partitioner ─► per target partition ─ FrameEncoder ─► message in the exchange topic ─ decode ─► next stage
//! ```
//! - [`partition`]: which partition a key belongs to. Part of the format on disk: state is stored where its key hashes to.
//! - [`frame`]: what one upstream region says in one epoch to one partition: rows, or only how far its event time has come.
//!
//! Topics, transactions and the order of frames are not here but with the region and the slot.

pub mod frame;
pub mod partition;

pub use frame::{Frame, FrameEncoder, FrameError, decode};
pub use partition::Partitioner;

//! The traits between the crates: the engine asks, connectors and state answer.
//!
//! - [`log`]: a Kafka-like log with transactions (architecture §3a); implemented over librdkafka, which also reaches
//!   the embedded broker. A simulation implements the same traits.
//! - [`source`] and [`sink`]: tables outside of streamshield.
//! - [`state`]: the groups of a window aggregation, in memory and on disk.
//!
//! All calls work per batch. They are blocking and made from an engine or commit thread, never from an async runtime.

pub mod log;
pub mod sink;
pub mod source;
pub mod state;

//! Kafka: the log port over librdkafka, and the tables with `'connector' = 'kafka'`.
//!
//! The engine knows only the traits of `streamshield_core::ports`; this crate is the one place that talks to librdkafka,
//! against any Kafka cluster and against the embedded broker alike.
//!
//! | module | what |
//! |---|---|
//! | [`KafkaConnector`] (`connector`, `options`) | the factory of sources and sinks; the options are listed in `README.md` |
//! | `source`, `rows`, `metadata` | a topic as a table: splits, positions, messages to rows |
//! | `sink` | rows to messages of the epoch's transaction |
//! | [`KafkaLog`] (`log`, `admin`, `append`) | topics, offsets, groups, single messages |
//! | [`KafkaReader`] (`reader`, `fetch`) | read committed by position, in batches; `fetch` is the audited `unsafe` |
//! | [`KafkaWriter`] (`writer`, `produce`, `context`) | transactions and the doubt about them; `produce` is the other `unsafe` |
//! | [`KafkaFencer`] (`fencer`) | fences dead producers, with connections made before |
//! | `properties`, `errors` | client properties and secrets; what a caller does about an error |
//!
//! Invariants: E-3 rests on [`KafkaWriter`], O-1 on [`KafkaFencer`], M-1 on the bounds in `properties` and `reader`.

mod admin;
mod append;
mod connector;
mod context;
mod errors;
mod fencer;
mod fetch;
mod log;
mod metadata;
mod options;
mod produce;
mod properties;
mod reader;
mod rows;
mod sink;
mod source;
mod writer;

pub use connector::KafkaConnector;
pub use fencer::KafkaFencer;
pub use log::KafkaLog;
pub use properties::is_secret;
pub use reader::KafkaReader;
pub use writer::KafkaWriter;

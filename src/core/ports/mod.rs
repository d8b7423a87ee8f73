//! The traits between the crates: the engine asks, connectors and state answer.
//!
//! - [`log`]: a Kafka-like log with transactions (architecture §3a); implemented over librdkafka, which also reaches
//!   the embedded broker. A simulation implements the same traits.
//! - [`source`] and [`sink`]: tables outside of streamshield.
//! - [`state`]: the groups of a window aggregation, in memory and on disk.
//! - [`checkpoint`]: copies of that in an object store.
//!
//! All calls work per batch. They are blocking and made from an engine or commit thread, never from an async runtime.

pub mod checkpoint;
pub mod log;
pub mod sink;
pub mod source;
pub mod state;

use std::collections::BTreeMap;
use std::sync::Arc;

/// The connectors that a binary knows, by the value of the `connector` option.
#[derive(Clone, Default)]
pub struct Connectors {
    pub sources: BTreeMap<&'static str, Arc<dyn source::SourceConnector>>,
    pub sinks: BTreeMap<&'static str, Arc<dyn sink::SinkConnector>>,
}

impl Connectors {
    pub fn add_source(&mut self, connector: Arc<dyn source::SourceConnector>) {
        self.sources.insert(connector.name(), connector);
    }
    pub fn add_sink(&mut self, connector: Arc<dyn sink::SinkConnector>) {
        self.sinks.insert(connector.name(), connector);
    }
}

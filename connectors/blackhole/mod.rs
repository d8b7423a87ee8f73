//! `blackhole`: a sink that takes every row and keeps none, to measure what comes before it.

use arrow_schema::DataType;
use std::sync::Arc;
use streamshield_core::ports::sink::{Sink, SinkConnector, SinkError};
use streamshield_core::table::{OptionError, SinkRequest, TableDefinition};

mod options;
mod sink;

/// Makes blackhole sinks.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlackholeConnector;

impl SinkConnector for BlackholeConnector {
    fn name(&self) -> &'static str {
        "blackhole"
    }

    fn check(&self, table: &TableDefinition) -> Vec<OptionError> {
        options::check(table)
    }

    fn metadata_type(&self, _key: &str) -> Option<DataType> {
        None
    }

    fn open(&self, _request: SinkRequest) -> Result<Arc<dyn Sink>, SinkError> {
        Ok(Arc::new(sink::Blackhole))
    }
}

#[cfg(test)]
mod sink_test;

//! `blackhole`: a sink that takes every row and keeps none, to measure what comes before it.

use arrow_array::RecordBatch;
use arrow_schema::DataType;
use std::sync::Arc;
use streamshield_core::ids::{Epoch, RegionId};
use streamshield_core::ports::sink::{RefusedRow, Sink, SinkConnector, SinkContent, SinkError, SinkWriter};
use streamshield_core::table::{OptionError, SinkRequest, TableDefinition};

mod options;

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
        Ok(Arc::new(Blackhole))
    }
}

struct Blackhole;

impl Sink for Blackhole {
    fn writer(&self, _region: RegionId) -> Result<Box<dyn SinkWriter>, SinkError> {
        Ok(Box::new(Blackhole))
    }
}

impl SinkWriter for Blackhole {
    fn write(&mut self, _rows: &RecordBatch) -> Result<Vec<RefusedRow>, SinkError> {
        Ok(Vec::new())
    }

    fn bytes(&self) -> usize {
        0
    }

    fn seal(&mut self, _epoch: Epoch) -> Option<SinkContent> {
        None
    }
}

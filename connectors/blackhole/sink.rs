//! Takes rows and forgets them: nothing is encoded, sealed or sent.

use arrow_array::RecordBatch;
use streamshield_core::ids::{Epoch, RegionId};
use streamshield_core::ports::sink::{RefusedRow, Sink, SinkContent, SinkError, SinkWriter};

pub(super) struct Blackhole;

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

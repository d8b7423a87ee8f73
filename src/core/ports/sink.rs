//! The sink port: tables that are written.
//!
//! A sink in the log goes into the epoch's transaction as a [`MessageSet`]. A sink elsewhere is written in two
//! phases around the commit: `prepare` before it (durable, invisible), `publish` after it; after a crash
//! [`Sink::recover`] publishes what the log proves as committed and deletes the rest (E-3).

use crate::ids::{Epoch, Incarnation, RegionId};
use crate::ports::log::{MessageSet, TopicSpec};
use crate::table::{OptionError, SinkRequest, TableDefinition};
use arrow_array::RecordBatch;
use arrow_schema::DataType;
use std::sync::Arc;

#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SinkError {
    /// Try again later, or stop.
    pub retry: bool,
    pub message: String,
}

/// A row that can't be written as the table says (a null in NOT NULL, a message too large).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedRow {
    pub row: usize,
    pub reason: String,
}

/// The rows of one sealed epoch.
pub enum SinkContent {
    Messages(MessageSet),
    External(Box<dyn ExternalContent>),
}

/// Content for a sink outside of the log. Every call may be repeated after an error.
pub trait ExternalContent: Send {
    /// Makes the content durable but not visible. `owner` is the incarnation that the epoch's record names.
    fn prepare(&mut self, owner: Incarnation) -> Result<(), SinkError>;
    /// Makes it visible. Idempotent.
    fn publish(&mut self) -> Result<(), SinkError>;
    /// Whether `publish` waits for somebody who reads, as long as he likes: that is no sign of a hanging machine.
    fn waits_for_a_reader(&self) -> bool {
        false
    }
}

/// Encodes rows of one region.
pub trait SinkWriter: Send {
    /// Appends a batch to the open epoch. Refused rows are left out and reported.
    fn write(&mut self, rows: &RecordBatch) -> Result<Vec<RefusedRow>, SinkError>;
    /// Bytes of the open epoch so far.
    fn bytes(&self) -> usize;
    /// Ends the open epoch and hands out its content; None when it has no rows.
    fn seal(&mut self, epoch: Epoch) -> Option<SinkContent>;
}

/// One table of one connector.
pub trait Sink: Send + Sync {
    fn writer(&self, region: RegionId) -> Result<Box<dyn SinkWriter>, SinkError>;
    /// Before [`Sink::recover`], as long as nothing was ever written to the region's changelog: makes what its rows will need (a folder). Idempotent.
    fn begin(&self) -> Result<(), SinkError> {
        Ok(())
    }
    /// Before a new owner's first epoch: publishes the prepared content of the region's last record, epoch and owner, and deletes all other. Earlier
    /// epochs are published: whoever committed the next one has done this before. None: there is no record, or none since this was last called.
    /// While it can't look there, it must fail: what it does not publish, and a later epoch is committed behind, the next call deletes.
    fn recover(&self, _region: RegionId, _last: Option<(Epoch, Incarnation)>) -> Result<(), SinkError> {
        Ok(())
    }
    /// Topic to be there before the first epoch, for sinks in the log.
    fn topic(&self) -> Option<TopicSpec> {
        None
    }
}

/// Makes the sinks of one `connector`.
pub trait SinkConnector: Send + Sync {
    fn name(&self) -> &'static str;
    fn check(&self, table: &TableDefinition) -> Vec<OptionError>;
    /// Type of a writable metadata column.
    fn metadata_type(&self, key: &str) -> Option<DataType>;
    fn open(&self, request: SinkRequest) -> Result<Arc<dyn Sink>, SinkError>;
}

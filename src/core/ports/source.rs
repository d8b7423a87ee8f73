//! The source port: tables that are read, by partition ("split") and position.
//!
//! A source is replayable: the same split and the same positions `[from, to)` always give the same rows. A generator
//! counts rows, a file counts bytes, Kafka counts offsets.

use crate::ids::Offset;
use crate::ports::log::{TakeLimit, Wakeup};
use crate::table::{OptionError, SourceRequest, TableDefinition};
use arrow_array::RecordBatch;
use arrow_schema::DataType;
use std::sync::Arc;
use std::time::Duration;

/// Number of a split of a table: a Kafka partition, a file, a generator's share. Region `p` of the stage reads split `p`.
pub type SplitId = u32;

/// One split as it is found at the job's first start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    pub id: SplitId,
    pub start: Offset,
    /// A bounded scan ends here.
    pub end: Option<Offset>,
}

/// A record that is no row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    pub origin: Origin,
    /// One sentence for people: what is wrong, with the column where it is known.
    pub reason: String,
}

/// Where a row came from, with its original bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Topic, file or generator.
    pub container: String,
    pub split: SplitId,
    pub offset: Offset,
    pub timestamp_ms: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// The original records of a batch, kept until its step is done.
pub trait RowOrigins: Send {
    /// `row` counts the rows of the batch (bad records are not among them).
    fn origin(&self, row: usize) -> Origin;
}

/// What a split has to say at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitState {
    /// Call again at once: there may be more.
    More,
    /// Nothing to take right now.
    Idle,
    /// The bounded split has ended.
    Finished,
}

/// Rows of one split in `[from, to)`: one step.
pub struct SourceBatch {
    /// Schema as requested. May have fewer rows than records were taken: see `bad`.
    pub rows: RecordBatch,
    /// Position after the batch; equal to the position before when nothing was taken.
    pub to: Offset,
    /// Records taken, good and bad.
    pub records: usize,
    pub bytes: usize,
    pub bad: Vec<BadRecord>,
    /// Per row the timestamp of the record in ms, when the source knows it; for latency metrics: the largest one.
    pub newest_timestamp_ms: Option<i64>,
    /// Present when the request asked to keep origins and there are rows.
    pub origins: Option<Box<dyn RowOrigins>>,
    pub state: SplitState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceErrorKind {
    /// The service is away: the region pauses and calls again.
    Retry,
    /// What came is damaged, perhaps only on its way: the region is brought up again, here or elsewhere, and reads it anew.
    Failed,
    /// The position is gone or the table is unreadable: the region stops, with its offsets kept.
    Stop,
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    pub kind: SourceErrorKind,
    pub message: String,
}

/// Reads some splits of one table for one slot.
pub trait SourceReader: Send {
    fn add_split(&mut self, split: &Split, from: Offset) -> Result<(), SourceError>;
    /// The split's region has never done anything: if what is at its start is gone, it may begin with what is oldest, where the table says no more than that.
    fn may_begin_later(&mut self, _split: SplitId) {}
    /// Stops reading a split: its region has gone elsewhere. It may be added again, at another position.
    fn remove_split(&mut self, split: SplitId);
    /// Takes what is there now, without waiting. A record larger than the limit is still taken alone.
    fn take(&mut self, split: SplitId, limit: &TakeLimit) -> Result<SourceBatch, SourceError>;
    /// Whether nothing that is committed waits at or behind this position. Asked before a split counts as idle: being slow ourselves is not idleness.
    /// A source that makes its rows itself has nothing waiting.
    fn stands_at_end(&self, _split: SplitId, _position: Offset) -> bool {
        true
    }
    /// Where what is committed ends, if all before it was taken and nothing more was there at the last look. It may lie behind the position: that no
    /// rows lie between is proven, so the region may move there.
    fn met_end(&self, _split: SplitId) -> Option<Offset> {
        None
    }
    /// Called now and then, for what its connections have to say while it has no split.
    fn serve_idle(&mut self) {}
    /// When a split that is `Idle` by its own choice (a rate limit) will have something; None: the wakeup tells.
    fn ready_in(&self) -> Option<Duration> {
        None
    }
}

/// One table of one connector.
pub trait Source: Send + Sync {
    /// Finds the splits and where they start and end. Called once in a job's life per split, at genesis.
    fn discover(&self) -> Result<Vec<Split>, SourceError>;
    fn reader(&self, wakeup: Arc<Wakeup>) -> Result<Box<dyn SourceReader>, SourceError>;
    /// A reader that has made its connections before it has a split. None: there are none to make, or nobody answers at the moment. Bounded in time.
    fn connected_reader(&self, _wakeup: Arc<Wakeup>) -> Option<Box<dyn SourceReader>> {
        None
    }
}

/// Makes the sources of one `connector`.
pub trait SourceConnector: Send + Sync {
    /// The value of the `connector` option.
    fn name(&self) -> &'static str;
    /// Everything wrong with the options, columns and format that can be known without connecting.
    fn check(&self, table: &TableDefinition) -> Vec<OptionError>;
    /// Type of a metadata column, None if there is none with this key.
    fn metadata_type(&self, key: &str) -> Option<DataType>;
    /// Columns that the connector fills by itself when a table declares none (Nexmark): name, type, nullable.
    fn open(&self, request: SourceRequest) -> Result<Arc<dyn Source>, SourceError>;
    /// Kafka only: consumer group and topic for lag tools, `(topic, group)`. An empty group is the job's.
    fn group(&self, _table: &TableDefinition) -> Option<(String, String)> {
        None
    }
}

//! The operators of a stage at run time: a [`Chain`] behind a [`scan::Scan`] or an exchange.
//!
//! Everything here is columnar, single-threaded and a pure function of its arguments: no clock, no I/O, no randomness of its own. So
//! the same steps on the same state give the same rows and the same state bit for bit (E-4).
//!
//! ```text
//! rows of a step ─► Filter · Project · Unnest · Expand · AssignWindows ─► PartialAggregate ─(seal)─► exchange
//! partials ───────► WindowAggregate ─► region state ─(watermark)─► further operators ─► exchange or sink
//! ```
//!
//! - [`expression`]: evaluation with hidden columns; a row that an expression refuses is found by bisection and left out.
//! - [`rows`], [`unnest`], [`assign_windows`]: operators without memory.
//! - [`partial_aggregate`]: an epoch's rows folded into fresh accumulators; empty at each seal.
//! - [`window_aggregate`]: partials merged into the region's state (`core::ports::state`), windows emitted when they close.
//! - [`accumulator`]: what DataFusion's aggregate functions are asked for, and how their states merge.
//!
//! A chain holds no more than an epoch's open partials. What must survive an epoch is in the region's state.

pub mod accumulator;
pub mod assign_windows;
pub mod chain;
pub mod expression;
pub mod late;
pub mod partial_aggregate;
pub mod rows;
pub mod scan;
pub mod time;
pub mod unnest;
pub mod window_aggregate;

#[cfg(test)]
mod bench_test;
#[cfg(test)]
mod chain_test;
#[cfg(test)]
mod operators_test;
#[cfg(test)]
mod test_kit;

pub use chain::{Chain, Trail};

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{ArrowError, SchemaRef};
use datafusion_common::DataFusionError;
use streamshield_core::ports::state::StateError;
use streamshield_core::watermark::Watermark;

/// [`RejectedRow::row`] of a row that no source row stands for, since it was made by a window aggregation.
pub const NO_SOURCE_ROW: usize = usize::MAX;

/// What an operator may know of the epoch in which it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochContext {
    /// What `CURRENT_TIMESTAMP` and `PROCTIME()` read, in ms since 1970.
    pub now_ms: i64,
    /// Base of `__seed`, of this region and epoch alone.
    pub seed: u64,
    /// Counts the batches that have asked for seeds in this epoch; the operators count it up.
    pub seed_next: u64,
}

/// How far the inputs of a region have come when a step's rows are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputWatermarks {
    /// Combined watermark of the other upstreams than the one these rows came from; MAX when there is none.
    pub others: Watermark,
    /// The region's combined watermark before the step.
    pub combined: Watermark,
}

impl InputWatermarks {
    /// Nothing is late.
    pub const START: InputWatermarks = InputWatermarks { others: Watermark::MIN, combined: Watermark::MIN };
}

/// Rows that were dropped as late.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LateRows {
    /// Source rows, each once per window that it came too late for.
    pub rows: u64,
    /// One JSON object per late row, when the plan keeps them. A partial that came too late gives one object with `__rows`.
    pub json: Vec<Vec<u8>>,
}

/// A row that an expression refused (a cast that overflows, a division by zero, a null in a NOT NULL column).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedRow {
    /// Index in the batch given to [`Chain::process`] or [`scan::Scan::process`], or [`NO_SOURCE_ROW`].
    pub row: usize,
    /// One sentence for people.
    pub reason: String,
}

/// What a chain gives out.
#[derive(Debug, Default)]
pub struct ChainOutput {
    /// Each with what tells the source row of a row, should somebody behind the chain refuse it.
    pub batches: Vec<(RecordBatch, Trail)>,
    pub late: LateRows,
    /// At most one entry per source row; rows made by a window aggregation have no number.
    pub rejected: Vec<RejectedRow>,
}

/// A chain can't go on: the region stops. What a single row can be blamed for is a [`RejectedRow`] instead.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The state's own words, with its kind.
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{operator}: {source}")]
    DataFusion { operator: &'static str, source: Box<DataFusionError> },
    #[error("{operator}: {source}")]
    Arrow { operator: &'static str, source: ArrowError },
    /// The plan and the operators don't fit together: a bug.
    #[error("{operator}: {message}")]
    Plan { operator: &'static str, message: String },
}

impl OperatorError {
    pub(crate) fn plan(operator: &'static str, message: impl Into<String>) -> Self {
        OperatorError::Plan { operator, message: message.into() }
    }
    pub(crate) fn datafusion(operator: &'static str) -> impl Fn(DataFusionError) -> Self {
        move |source| OperatorError::DataFusion { operator, source: Box::new(source) }
    }
    pub(crate) fn arrow(operator: &'static str) -> impl Fn(ArrowError) -> Self {
        move |source| OperatorError::Arrow { operator, source }
    }
}

/// A batch that may have no columns.
pub(crate) fn batch_of(schema: SchemaRef, columns: Vec<arrow_array::ArrayRef>, rows: usize) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new_with_options(schema, columns, &RecordBatchOptions::new().with_row_count(Some(rows)))
}

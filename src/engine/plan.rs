//! The job graph: what `sql` hands to the engine.
//!
//! ```text
//! source stage:   scan → operators → exchange or sink      one region per split of the source
//! other stages:   exchange → operators → exchange or sink  one region per partition of the exchange
//! ```
//! A stage has one input and one output; `UNION ALL` is several stages with the same target, two `INSERT INTO` from one
//! view are two pipelines. Operators form a chain. Expressions are DataFusion physical expressions over the schema of the
//! batch that the operator gets.
//!
//! Hidden columns, made by the engine and never by a user (user columns may not start with `__`):
//!
//! | column | type | where | meaning |
//! |---|---|---|---|
//! | `__watermark` | Int64 | after a scan with [`SourceScan::watermark`] | the split's own running watermark in ms *before* this row; `i64::MIN` at first |
//! | `__late` | Boolean | after `AssignWindows`, in partials | this row's window was already closed by the split's own watermark |
//! | `__late_row` | Utf8, nullable | in partials, when late rows go to a topic | the row as JSON, only where `__late` |
//! | `__rows` | Int64 | in partials, and in copies of a row | source rows folded into this partial; 0 in all copies but one |
//! | `__now` | Timestamp(ms, "UTC") | appended to the input of an operator that asks for it | the epoch's clock |
//! | `__seed` | UInt64 | appended to the input of an operator that asks for it | differs per row, the same in every replay: feeds RAND() and UUID() |
//!
//! `__now` and `__seed` are appended in this order behind the last column of the operator's input while it evaluates its expressions, when
//! [`Expressions::needs_now`] / [`Expressions::needs_seed`] say so, and are not in its output.

use arrow_schema::{DataType, Field, FieldRef, SchemaRef, TimeUnit};
use datafusion_physical_expr::PhysicalExpr;
use datafusion_physical_expr::aggregate::AggregateFunctionExpr;
use std::fmt;
use std::sync::Arc;
use streamshield_core::ids::{ExchangeId, PlanFingerprint, StageId};
use streamshield_core::table::{Column, TableDefinition};

pub const WATERMARK_COLUMN: &str = "__watermark";
pub const LATE_COLUMN: &str = "__late";
pub const LATE_ROW_COLUMN: &str = "__late_row";
pub const ROWS_COLUMN: &str = "__rows";
pub const NOW_COLUMN: &str = "__now";
pub const SEED_COLUMN: &str = "__seed";

/// A planned job.
#[derive(Clone, Debug)]
pub struct JobPlan {
    /// Upstream before downstream; `StageId` is the index.
    pub stages: Vec<StagePlan>,
    /// `ExchangeId` is the index.
    pub exchanges: Vec<ExchangePlan>,
    /// Over operators, expressions, types, table definitions, late and bad-record policy and the engine's semantics version; made
    /// from the plan before optimization, so that a new optimizer does not change it.
    pub fingerprint: PlanFingerprint,
    /// What works but deserves a word (`check` prints it).
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct StagePlan {
    pub id: StageId,
    /// Stable and readable, unique in the job: part of topic names (`[a-z0-9-]+`), for example `bid-1`, `window-2`.
    pub name: String,
    pub input: StageInput,
    pub operators: Vec<Operator>,
    pub output: StageOutput,
}

#[derive(Clone, Debug)]
pub enum StageInput {
    Source(Box<SourceScan>),
    Exchange(ExchangeId),
}

#[derive(Clone, Debug)]
pub enum StageOutput {
    Exchange(ExchangeId),
    Sink(Box<SinkTable>),
}

/// A repartition topic: the columns of `schema`, partitioned by a hash of the key columns.
#[derive(Clone, Debug)]
pub struct ExchangePlan {
    pub id: ExchangeId,
    /// Part of the topic name.
    pub name: String,
    pub schema: SchemaRef,
    /// Indices in `schema`; empty: all rows to partition 0 (a global aggregate).
    pub keys: Vec<usize>,
    pub upstream: Vec<StageId>,
    pub downstream: StageId,
    /// None: the job's parallelism. Some(1) for a global aggregate.
    pub partitions: Option<u32>,
}

/// Reads a table: connector columns → declared columns → watermark.
#[derive(Clone, Debug)]
pub struct SourceScan {
    pub table: TableDefinition,
    /// What the connector is asked for (never computed columns), and the schema of its batches.
    pub columns: Vec<Column>,
    pub input_schema: SchemaRef,
    /// The columns that the query uses, over `input_schema`: physical and metadata columns pass, computed ones are evaluated.
    pub project: Projection,
    pub watermark: Option<WatermarkPlan>,
}

/// How the scan gets its watermark, row by row.
#[derive(Clone, Debug)]
pub enum WatermarkPlan {
    /// `WATERMARK FOR column AS expression`: the expression over `project.schema`, a timestamp in any unit. Null event time: a bad record.
    EventTime { time_column: usize, expression: Expressions, idle_timeout_ms: Option<u64> },
    /// Windows over a `PROCTIME()` column: the watermark is the epoch's clock. Rows are never late. A tick at least each
    /// `granularity_ms` of clock moves it (the windows' slide or step).
    ProcessingTime { granularity_ms: u64 },
}

/// One or more expressions over an operator's input (see the module about hidden columns).
#[derive(Clone)]
pub struct Expressions {
    pub list: Vec<Arc<dyn PhysicalExpr>>,
    pub needs_now: bool,
    pub needs_seed: bool,
}

#[derive(Clone, Debug)]
pub struct Projection {
    pub expressions: Expressions,
    pub schema: SchemaRef,
}

/// An operator of a chain. `sql` guarantees that the schemas fit.
#[derive(Clone, Debug)]
pub enum Operator {
    /// Keeps rows where the one expression is true.
    Filter(Expressions),
    Project(Projection),
    /// `CROSS JOIN UNNEST(list)`: one row per list element; null and empty lists give no row.
    Unnest(UnnestPlan),
    /// Several projections of the same schema: each input row gives one row per projection, row by row.
    Expand(ExpandPlan),
    AssignWindows(AssignWindows),
    /// Folds an epoch's rows into partial states; gives them at the seal. Output schema: `Aggregate::partial_schema`.
    PartialAggregate(Arc<Aggregate>),
    /// Merges partials into the region's state and emits windows when the watermark closes them. Input schema:
    /// `Aggregate::partial_schema`; output `Aggregate::output_schema`.
    WindowAggregate(Arc<Aggregate>),
}

/// Output schema: input columns without the list, in order, with the element columns appended.
#[derive(Clone, Debug)]
pub struct UnnestPlan {
    pub list_column: usize,
    /// Struct elements give one column per field; others one column.
    pub struct_fields: bool,
    /// `WITH ORDINALITY`: an Int64 column from 1 behind the element columns.
    pub ordinality: bool,
    pub schema: SchemaRef,
}

#[derive(Clone, Debug)]
pub struct ExpandPlan {
    pub projections: Vec<Expressions>,
    pub schema: SchemaRef,
}

/// Gives each row its windows: input columns without `__watermark`, then `window_start`, `window_end`, `window_time` (unless the plan
/// leaves them out) and `__late`. A row in n windows becomes n rows.
#[derive(Clone, Debug)]
pub struct AssignWindows {
    pub kind: WindowKind,
    /// A timestamp column in any unit.
    pub time_column: usize,
    /// Index of `__watermark` in the input, absent after a window aggregation (its rows are never late).
    pub watermark_column: Option<usize>,
    /// Appended columns: (name, what), types as the time column's, milliseconds precision.
    pub appended: Vec<(FieldRef, WindowColumn)>,
    pub schema: SchemaRef,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowColumn {
    Start,
    End,
    /// End − 1 ms: the rowtime of the result.
    Time,
    /// `__late`.
    Late,
}

/// All in milliseconds. Windows start at `offset + n × slide`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKind {
    Tumble { size_ms: i64, offset_ms: i64 },
    Hop { slide_ms: i64, size_ms: i64, offset_ms: i64 },
    Cumulate { step_ms: i64, max_size_ms: i64, offset_ms: i64 },
}

/// A windowed aggregation, before and after the exchange.
///
/// `partial_schema`: key columns · window start · window end (Timestamp(ms)) · `__late` if `late_column` · `__late_row` if `late_row` · `__rows` ·
/// state columns of each aggregate in order.
/// `output_schema`: key columns · window start · window end · one column per aggregate ([`Emit::Final`]) or `__rows` and the state columns ([`Emit::State`]).
#[derive(Clone, Debug)]
pub struct Aggregate {
    /// Number of the operator within the job's plan, unique per stage: part of the state's key.
    pub operator: u16,
    pub input_schema: SchemaRef,
    /// Key expressions over `input_schema`, without the window.
    pub keys: Expressions,
    pub key_fields: Vec<FieldRef>,
    /// Columns of `input_schema` that hold the window.
    pub window_start_column: usize,
    pub window_end_column: usize,
    pub late_column: Option<usize>,
    /// Late rows are kept apart, as JSON of the input row, for the late topic.
    pub late_row: bool,
    pub calls: Vec<AggregateCall>,
    pub emit: Emit,
    pub partial_schema: SchemaRef,
    pub output_schema: SchemaRef,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emit {
    Final,
    /// The state columns, for a second level of aggregation.
    State,
}

/// One aggregate function call.
#[derive(Clone, Debug)]
pub struct AggregateCall {
    /// Arguments and ordering are expressions over `Aggregate::input_schema`.
    pub function: Arc<AggregateFunctionExpr>,
    /// `FILTER (WHERE …)`.
    pub filter: Option<Expressions>,
    /// Some(first state column in `input_schema`): the input already holds states of this function; they are merged.
    pub merges_state_at: Option<usize>,
    /// What `function` says, kept to spare the error path.
    pub state_fields: Vec<FieldRef>,
    /// The user's words, for `explain`.
    pub display: String,
}

/// Writes a table.
#[derive(Clone, Debug)]
pub struct SinkTable {
    pub table: TableDefinition,
    /// The columns that are written (physical and writable metadata); the chain's output has exactly this schema.
    pub columns: Vec<Column>,
    pub schema: SchemaRef,
}

impl Expressions {
    pub fn new(list: Vec<Arc<dyn PhysicalExpr>>) -> Self {
        Expressions { list, needs_now: false, needs_seed: false }
    }
}

impl fmt::Debug for Expressions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list.iter().map(|expression| expression.to_string())).finish()
    }
}

/// The `__now` column.
pub fn now_field() -> FieldRef {
    Arc::new(Field::new(NOW_COLUMN, DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false))
}

/// The `__seed` column.
pub fn seed_field() -> FieldRef {
    Arc::new(Field::new(SEED_COLUMN, DataType::UInt64, false))
}

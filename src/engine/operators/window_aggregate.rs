//! Merges partials into the region's state and emits windows when the watermark closes them.
//!
//! Which partial is late is decided here, by what the watermarks were *before* the step (E-5), so that it does not depend on how rows
//! were cut into batches:
//!
//! | `__late` | late when its window is closed by | since |
//! |---|---|---|
//! | true | the combined watermark of the *other* upstreams | its own split has passed it already |
//! | false | the region's combined watermark | its split was in time, so only an idle or new upstream can be too late |
//!
//! A late partial is dropped and counted by its `__rows`; the rest is merged, window by window.

use crate::operators::accumulator::{Finalizer, aggregate_state};
use crate::operators::late::json_rows;
use crate::operators::time::{milliseconds, timestamps};
use crate::operators::{InputWatermarks, LateRows, OperatorError, batch_of};
use crate::plan::{Aggregate, Emit, ROWS_COLUMN};
use ahash::AHashMap;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, UInt32Array};
use arrow_cast::display::array_value_to_string;
use arrow_schema::{DataType, Field, FieldRef, Schema, TimeUnit};
use arrow_select::concat::concat_batches;
use arrow_select::take::take;
use std::sync::Arc;
use streamshield_core::ports::state::{AggregateState, Drained, Merge, RegionState, Window, WindowTableSpec};

pub struct WindowAggregate {
    plan: Arc<Aggregate>,
    layout: PartialLayout,
    finalizers: Vec<Finalizer>,
}

/// Where the columns of `Aggregate::partial_schema` are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartialLayout {
    pub keys: usize,
    pub late: Option<usize>,
    pub late_row: Option<usize>,
    pub rows: usize,
    pub states: usize,
}

impl PartialLayout {
    pub fn of(plan: &Aggregate) -> Self {
        let keys = plan.key_fields.len();
        let mut next = keys + 2;
        let mut column = |present: bool| {
            next += usize::from(present);
            present.then(|| next - 1)
        };
        let (late, late_row) = (column(plan.late_column.is_some()), column(plan.late_row));
        PartialLayout { keys, late, late_row, rows: next, states: next + 1 }
    }
    pub fn start(&self) -> usize {
        self.keys
    }
    pub fn end(&self) -> usize {
        self.keys + 1
    }
}

impl WindowAggregate {
    const NAME: &str = "WindowAggregate";

    pub fn new(plan: &Arc<Aggregate>) -> Result<Self, OperatorError> {
        let layout = PartialLayout::of(plan);
        let states: usize = plan.calls.iter().map(|call| call.state_fields.len()).sum();
        if plan.partial_schema.fields().len() != layout.states + states {
            let message =
                format!("the partial schema has {} columns instead of {}", plan.partial_schema.fields().len(), layout.states + states);
            return Err(OperatorError::plan(Self::NAME, message));
        }
        Ok(WindowAggregate { plan: plan.clone(), layout, finalizers: plan.calls.iter().map(Finalizer::new).collect() })
    }

    /// What the state must hold. Second-level aggregates need the number of source rows too: it is the first state column then.
    pub fn table(&self) -> WindowTableSpec {
        let rows: FieldRef = Arc::new(Field::new(ROWS_COLUMN, DataType::Int64, false));
        let rows = (self.plan.emit == Emit::State).then(|| AggregateState { fields: vec![rows], merge: Merge::Sum });
        let aggregates = rows.into_iter().chain(self.plan.calls.iter().map(aggregate_state)).collect();
        WindowTableSpec { operator: self.plan.operator, keys: self.plan.key_fields.clone(), aggregates }
    }

    pub fn operator(&self) -> u16 {
        self.plan.operator
    }

    pub fn process(
        &self,
        rows: &RecordBatch,
        input: InputWatermarks,
        state: &mut dyn RegionState,
        late: &mut LateRows,
    ) -> Result<(), OperatorError> {
        let windows = Windows::of(rows, &self.layout)?;
        let flags = self.layout.late.map(|column| rows.column(column).as_boolean());
        let table = state.table(self.plan.operator);
        if let [window] = windows.list.as_slice()
            && !input.combined.closes(window.end_ms)
            && flags.is_none_or(|flags| !flags.has_true())
        {
            return Ok(table.merge(*window, &rows.columns()[..self.layout.keys], &self.state_columns(rows.columns()))?);
        }
        let mut dropped = Vec::new();
        let mut taken: Vec<Vec<u32>> = vec![Vec::new(); windows.list.len()];
        for (row, &number) in windows.numbers.iter().enumerate() {
            let end_ms = windows.list[number as usize].end_ms;
            let flagged = flags.is_some_and(|flags| flags.is_valid(row) && flags.value(row));
            let closed_by = if flagged { input.others } else { input.combined };
            if closed_by.closes(end_ms) { dropped.push(row as u32) } else { taken[number as usize].push(row as u32) }
        }
        self.drop_late(rows, &dropped, late)?;
        let order = UInt32Array::from_iter_values(taken.iter().flatten().copied());
        let columns = take_columns(rows.columns(), &order)?;
        let mut offset = 0;
        for (window, rows) in windows.list.iter().zip(&taken).filter(|(_, rows)| !rows.is_empty()) {
            let columns: Vec<ArrayRef> = columns.iter().map(|column| column.slice(offset, rows.len())).collect();
            table.merge(*window, &columns[..self.layout.keys], &self.state_columns(&columns))?;
            offset += rows.len();
        }
        Ok(())
    }

    fn state_columns(&self, columns: &[ArrayRef]) -> Vec<ArrayRef> {
        let rows = (self.plan.emit == Emit::State).then(|| columns[self.layout.rows].clone());
        rows.into_iter().chain(columns[self.layout.states..].iter().cloned()).collect()
    }

    fn drop_late(&self, rows: &RecordBatch, dropped: &[u32], late: &mut LateRows) -> Result<(), OperatorError> {
        if dropped.is_empty() {
            return Ok(());
        }
        let counts = rows.column(self.layout.rows).as_primitive::<Int64Type>();
        late.rows += dropped.iter().map(|row| counts.value(*row as usize).max(0) as u64).sum::<u64>();
        let Some(column) = self.layout.late_row else { return Ok(()) };
        let texts = rows.column(column).as_string::<i32>();
        // Without a source row: copies of rows that are told of elsewhere.
        let told = dropped.iter().filter(|row| counts.value(**row as usize) > 0);
        let (kept, folded): (Vec<u32>, Vec<u32>) = told.partition(|row| texts.is_valid(**row as usize));
        for row in kept {
            let copies = counts.value(row as usize).max(0) as usize;
            late.json.extend(std::iter::repeat_n(texts.value(row as usize).as_bytes().to_vec(), copies));
        }
        if !folded.is_empty() {
            late.json.extend(json_rows(&self.folded_rows(rows, &folded)?)?);
        }
        Ok(())
    }

    /// Key, window and number of rows of partials whose rows are no longer known one by one.
    fn folded_rows(&self, rows: &RecordBatch, folded: &[u32]) -> Result<RecordBatch, OperatorError> {
        let indices = UInt32Array::from(folded.to_vec());
        let layout = &self.layout;
        let mut columns = rows.columns()[..layout.keys + 2].to_vec();
        columns.push(rows.column(layout.rows).clone());
        let columns = take_columns(&columns, &indices)?;
        let mut fields = self.plan.key_fields.clone();
        for (number, name) in [(layout.start(), "window_start"), (layout.end(), "window_end"), (layout.end() + 1, ROWS_COLUMN)] {
            fields.push(Arc::new(Field::new(name, columns[number].data_type().clone(), true)));
        }
        batch_of(Arc::new(Schema::new(fields)), columns, folded.len()).map_err(OperatorError::arrow(Self::NAME))
    }

    /// The rows of a portion of a closed window, and why a group has no row (an average that overflows its type).
    pub fn emit(&self, window: Window, drained: Drained) -> Result<(RecordBatch, Vec<String>), OperatorError> {
        let Drained { keys, states, .. } = drained;
        match self.emit_groups(window, &keys, &states) {
            Err(OperatorError::DataFusion { .. }) => self.emit_one_by_one(window, &keys, &states),
            emitted => Ok((emitted?, Vec::new())),
        }
    }

    fn emit_one_by_one(&self, window: Window, keys: &[ArrayRef], states: &[ArrayRef]) -> Result<(RecordBatch, Vec<String>), OperatorError> {
        let (mut rows, mut refused) = (Vec::new(), Vec::new());
        for group in 0..states.first().map_or(0, |column| column.len()) {
            let of_group = |columns: &[ArrayRef]| columns.iter().map(|column| column.slice(group, 1)).collect::<Vec<_>>();
            match self.emit_groups(window, &of_group(keys), &of_group(states)) {
                Ok(row) => rows.push(row),
                Err(OperatorError::DataFusion { source, .. }) => {
                    let key = keys
                        .iter()
                        .zip(&self.plan.key_fields)
                        .map(|(column, field)| format!("{} = {}", field.name(), array_value_to_string(column, group).unwrap_or_default()));
                    refused.push(format!(
                        "{} for {} in the window that ends at {} ms",
                        source.strip_backtrace(),
                        key.collect::<Vec<_>>().join(", "),
                        window.end_ms
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        let rows = concat_batches(&self.plan.output_schema, &rows).map_err(OperatorError::arrow(Self::NAME))?;
        Ok((rows, refused))
    }

    fn emit_groups(&self, window: Window, keys: &[ArrayRef], states: &[ArrayRef]) -> Result<RecordBatch, OperatorError> {
        let Some(count) = states.first().or(keys.first()).map(|column| column.len()) else {
            return Err(OperatorError::plan(Self::NAME, "neither keys nor aggregates"));
        };
        let mut columns = keys.to_vec();
        for time_ms in [window.start_ms, window.end_ms] {
            let data_type = self.plan.output_schema.fields().get(columns.len()).map(|field| field.data_type().clone());
            let data_type = data_type.unwrap_or(DataType::Timestamp(TimeUnit::Millisecond, None));
            let column = timestamps(vec![time_ms; count].into(), &data_type);
            columns
                .push(column.ok_or_else(|| OperatorError::plan(Self::NAME, format!("a window column is {data_type}, not a timestamp")))?);
        }
        match self.plan.emit {
            Emit::State => columns.extend_from_slice(states),
            Emit::Final => {
                let mut states = states;
                for (call, finalizer) in self.plan.calls.iter().zip(&self.finalizers) {
                    let (of_call, others) = states.split_at(call.state_fields.len());
                    columns.push(finalizer.results(of_call)?);
                    states = others;
                }
            }
        }
        batch_of(self.plan.output_schema.clone(), columns, count).map_err(OperatorError::arrow(Self::NAME))
    }
}

/// The different windows of a batch, in order of appearance, and each row's number among them.
pub(crate) struct Windows {
    pub list: Vec<Window>,
    pub numbers: Vec<u32>,
}

impl Windows {
    fn of(rows: &RecordBatch, layout: &PartialLayout) -> Result<Self, OperatorError> {
        Self::of_columns(rows.column(layout.start()), rows.column(layout.end()), WindowAggregate::NAME)
    }

    pub fn of_columns(start: &ArrayRef, end: &ArrayRef, operator: &'static str) -> Result<Self, OperatorError> {
        let (Some(starts), Some(ends)) = (milliseconds(start), milliseconds(end)) else {
            return Err(OperatorError::plan(operator, format!("the window columns are {} and {}", start.data_type(), end.data_type())));
        };
        if start.null_count() + end.null_count() > 0 {
            return Err(OperatorError::plan(operator, "a window is null"));
        }
        let mut list = Vec::new();
        let mut found: AHashMap<Window, u32> = AHashMap::new();
        let mut numbers = Vec::with_capacity(starts.values.len());
        let mut last: Option<(Window, u32)> = None;
        for (&start_ms, &end_ms) in starts.values.iter().zip(ends.values.iter()) {
            let window = Window { start_ms, end_ms };
            let number = match last {
                Some((previous, number)) if previous == window => number,
                _ => *found.entry(window).or_insert_with(|| {
                    list.push(window);
                    list.len() as u32 - 1
                }),
            };
            last = Some((window, number));
            numbers.push(number);
        }
        Ok(Windows { list, numbers })
    }
}

pub(crate) fn take_columns(columns: &[ArrayRef], indices: &UInt32Array) -> Result<Vec<ArrayRef>, OperatorError> {
    let columns: Result<Vec<ArrayRef>, _> = columns.iter().map(|column| take(column, indices, None)).collect();
    columns.map_err(OperatorError::arrow("take"))
}

/// `count` ones.
pub(crate) fn ones(count: usize) -> ArrayRef {
    Arc::new(Int64Array::from_value(1, count))
}

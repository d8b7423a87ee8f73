//! Folds an epoch's rows into partial states, so that the exchange carries one row per group instead of one per record.
//!
//! ```text
//! row ─► slot (window, __late) ─► group within the slot (keys, and __late_row) ─► group of the epoch ─► accumulators
//! ```
//! A batch mostly has one window, so the hash table holds only the keys: one column where the key is one column. At the seal the
//! accumulators' state columns are given out and everything is empty again; nothing here survives an epoch.
//!
//! Folding does not pay when almost each row is a group of its own. So after [`PROBE_ROWS`] rows that made more than [`POOR_RATIO`] groups
//! per row, the next [`PASS_ROWS`] rows are turned into states one by one and given out at once. The count begins anew in each epoch:
//! what an epoch gives out depends on its own rows only (E-4).
//!
//! Flagged and timely rows never fold into one partial (E-5).

use crate::operators::accumulator::{arguments, groups_accumulator};
use crate::operators::expression::{Evaluated, Evaluator};
use crate::operators::late::{json_rows, visible_columns};
use crate::operators::time::{milliseconds, timestamps};
use crate::operators::window_aggregate::{PartialLayout, Windows, ones, take_columns};
use crate::operators::{EpochContext, OperatorError, batch_of};
use crate::plan::{Aggregate, AggregateCall, Expressions, LATE_ROW_COLUMN, ROWS_COLUMN};
use ahash::AHashMap;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, UInt32Array, new_null_array};
use arrow_buffer::ScalarBuffer;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::concat::concat;
use datafusion_common::DataFusionError;
use datafusion_expr::{EmitTo, GroupsAccumulator};
use datafusion_physical_expr::PhysicalExpr;
use datafusion_physical_expr::expressions::Literal;
use datafusion_physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion_physical_plan::aggregates::order::GroupOrdering;
use std::sync::Arc;
use streamshield_core::ports::state::Window;

/// Rows after which folding is judged.
pub const PROBE_ROWS: usize = 16_384;
/// Groups per row from which on folding does not pay.
pub const POOR_RATIO: f64 = 0.8;
/// Rows that are passed through before folding is tried again.
pub const PASS_ROWS: usize = 8 * PROBE_ROWS;
/// Rows of a batch that a seal gives out.
const OUTPUT_ROWS: usize = 16_384;

pub struct PartialAggregate {
    plan: Arc<Aggregate>,
    layout: PartialLayout,
    evaluator: Evaluator,
    calls: Vec<Call>,
    /// `__rows` in the input: it holds partials already, or copies of rows of which one counts.
    rows_column: Option<usize>,
    json_columns: Vec<usize>,
    timely_keys: SchemaRef,
    late_keys: SchemaRef,
    slots: Vec<Slot>,
    slot_numbers: AHashMap<(Window, bool), usize>,
    /// Emptied tables for the next epoch: of timely slots, and of late ones.
    free: [Vec<Box<dyn GroupValues>>; 2],
    /// Source rows per group.
    rows: Vec<i64>,
    pace: Pace,
    /// Group of each row of the batch at hand.
    groups: Vec<usize>,
    local: Vec<usize>,
}

/// One aggregate function call.
struct Call {
    accumulator: Box<dyn GroupsAccumulator>,
    input: CallInput,
    /// Number of the filter's set in the evaluator.
    filter: Option<usize>,
}

enum CallInput {
    /// Range of the evaluated arguments.
    Arguments(std::ops::Range<usize>),
    /// Range of the input's columns: states of this function.
    States(std::ops::Range<usize>),
    /// `COUNT(*)`: the state is the number of rows.
    Rows,
}

/// Groups of one window that are late or not.
struct Slot {
    window: Window,
    late: bool,
    /// None: no keys, one group.
    keys: Option<Box<dyn GroupValues>>,
    /// Number in the epoch of each group; not kept while there is one slot, whose numbers are the same.
    groups: Vec<usize>,
}

/// Whether to fold or to pass through.
#[derive(Default)]
struct Pace {
    probed_rows: usize,
    groups_before: usize,
    pass_rows: usize,
}

/// A batch with all that is evaluated over it.
struct Prepared {
    rows: RecordBatch,
    values: Vec<Vec<ArrayRef>>,
    windows: Windows,
    late: Option<BooleanArray>,
}

/// What becomes of a batch at once.
pub struct Folded {
    /// States of rows that were not folded, with the input row of each.
    pub passed: Option<(RecordBatch, Option<Vec<u32>>)>,
    pub refused: Vec<(usize, String)>,
}

const KEYS: usize = 0;
const ARGUMENTS: usize = 1;

impl PartialAggregate {
    const NAME: &str = "PartialAggregate";

    pub fn new(plan: &Arc<Aggregate>, input: &SchemaRef) -> Result<Self, OperatorError> {
        if plan.late_row && plan.late_column.is_none() {
            return Err(OperatorError::plan(Self::NAME, "late rows are to be kept, but there is no __late column"));
        }
        let mut evaluator = Evaluator::new(Self::NAME, input.clone());
        evaluator.add(&plan.keys);
        let (calls, all_arguments, filters) = Self::calls(plan)?;
        evaluator.add(&Expressions::new(all_arguments));
        filters.iter().for_each(|filter| evaluator.add(filter));
        let timely_keys = Arc::new(Schema::new(plan.key_fields.clone()));
        let mut late_fields = plan.key_fields.clone();
        late_fields.extend(plan.late_row.then(|| Arc::new(Field::new(LATE_ROW_COLUMN, DataType::Utf8, true))));
        Ok(PartialAggregate {
            layout: PartialLayout::of(plan),
            evaluator,
            calls,
            rows_column: input.index_of(ROWS_COLUMN).ok(),
            json_columns: visible_columns(input),
            timely_keys,
            late_keys: Arc::new(Schema::new(late_fields)),
            slots: Vec::new(),
            slot_numbers: AHashMap::new(),
            free: [Vec::new(), Vec::new()],
            rows: Vec::new(),
            pace: Pace::default(),
            groups: Vec::new(),
            local: Vec::new(),
            plan: plan.clone(),
        })
    }

    #[allow(clippy::type_complexity)]
    fn calls(plan: &Aggregate) -> Result<(Vec<Call>, Vec<Arc<dyn PhysicalExpr>>, Vec<Expressions>), OperatorError> {
        let (mut calls, mut all_arguments, mut filters) = (Vec::new(), Vec::new(), Vec::new());
        for call in &plan.calls {
            let input = match call.merges_state_at {
                Some(first) => CallInput::States(first..first + call.state_fields.len()),
                None if counts_rows(call) => CallInput::Rows,
                None => {
                    let first = all_arguments.len();
                    all_arguments.extend(arguments(&call.function));
                    CallInput::Arguments(first..all_arguments.len())
                }
            };
            let filter = call.filter.as_ref().map(|filter| {
                filters.push(filter.clone());
                ARGUMENTS + filters.len()
            });
            let accumulator = groups_accumulator(&call.function).map_err(OperatorError::datafusion(Self::NAME))?;
            calls.push(Call { accumulator, input, filter });
        }
        Ok((calls, all_arguments, filters))
    }

    pub fn open_bytes(&self) -> usize {
        let keys: usize = self
            .slots
            .iter()
            .map(|slot| slot.keys.as_ref().map_or(0, |keys| keys.size()) + slot.groups.capacity() * size_of::<usize>())
            .sum();
        let states: usize = self.calls.iter().map(|call| call.accumulator.size()).sum();
        keys + states + self.rows.capacity() * size_of::<i64>()
    }

    pub fn process(&mut self, rows: &RecordBatch, epoch: &mut EpochContext) -> Result<Folded, OperatorError> {
        let Evaluated { rows, values, kept, refused } = self.evaluator.evaluate(rows, epoch)?;
        if rows.num_rows() == 0 {
            return Ok(Folded { passed: None, refused });
        }
        let windows =
            Windows::of_columns(rows.column(self.plan.window_start_column), rows.column(self.plan.window_end_column), Self::NAME)?;
        let late = self.plan.late_column.map(|column| rows.column(column).as_boolean().clone()).filter(|late| late.has_true());
        let prepared = Prepared { rows, values, windows, late };
        if self.pace.pass_rows > 0
            && let Some(passed) = self.pass(&prepared)?
        {
            self.pace.pass_rows = self.pace.pass_rows.saturating_sub(prepared.rows.num_rows());
            return Ok(Folded { passed: Some((passed, kept)), refused });
        }
        self.fold(&prepared)?;
        self.pace.judge(prepared.rows.num_rows(), self.rows.len());
        Ok(Folded { passed: None, refused })
    }

    fn fold(&mut self, batch: &Prepared) -> Result<(), OperatorError> {
        self.find_groups(batch)?;
        let total = self.group_count();
        self.rows.resize(total, 0);
        match self.rows_column {
            None => self.groups.iter().for_each(|group| self.rows[*group] += 1),
            Some(column) => {
                let counts = batch.rows.column(column).as_primitive::<Int64Type>().values();
                self.groups.iter().zip(counts).for_each(|(group, count)| self.rows[*group] += count);
            }
        }
        for call in &mut self.calls {
            let folded = match &call.input {
                CallInput::Rows => continue,
                CallInput::Arguments(range) => {
                    let filter = call.filter.map(|set| batch.values[set][0].as_boolean());
                    call.accumulator.update_batch(&batch.values[ARGUMENTS][range.clone()], &self.groups, filter, total)
                }
                CallInput::States(range) => call.accumulator.merge_batch(&batch.rows.columns()[range.clone()], &self.groups, total),
            };
            folded.map_err(OperatorError::datafusion(Self::NAME))?;
        }
        Ok(())
    }

    fn group_count(&self) -> usize {
        match self.slots.as_slice() {
            [only] => only.keys.as_ref().map_or(1, |keys| keys.len()),
            slots => slots.iter().map(|slot| slot.groups.len()).sum(),
        }
    }

    /// Fills `groups`.
    fn find_groups(&mut self, batch: &Prepared) -> Result<(), OperatorError> {
        let keys = &batch.values[KEYS];
        let count = batch.rows.num_rows();
        if let ([window], None) = (batch.windows.list.as_slice(), &batch.late) {
            let slot = self.slot(*window, false)?;
            if self.slots.len() == 1 {
                return match &mut self.slots[slot].keys {
                    Some(table) => table.intern(keys, &mut self.groups).map_err(OperatorError::datafusion(Self::NAME)),
                    None => {
                        self.groups.clear();
                        self.groups.resize(count, 0);
                        Ok(())
                    }
                };
            }
            self.find_local(slot, keys, count)?;
            self.groups.clear();
            self.groups.extend(self.local.iter().map(|local| self.slots[slot].groups[*local]));
            return Ok(());
        }
        self.groups.clear();
        self.groups.resize(count, 0);
        for (window, late, rows) in batch.parts() {
            let slot = self.slot(window, late)?;
            let indices = UInt32Array::from(rows);
            let mut keys = take_columns(keys, &indices)?;
            if late && self.plan.late_row {
                keys.push(self.late_texts(&batch.rows, &indices)?);
            }
            self.number_only_slot();
            self.find_local(slot, &keys, indices.len())?;
            for (row, local) in indices.values().iter().zip(&self.local) {
                self.groups[*row as usize] = self.slots[slot].groups[*local];
            }
        }
        Ok(())
    }

    /// Fills `local` with the groups within a slot and numbers those that are new. Only with numbered slots.
    fn find_local(&mut self, slot: usize, keys: &[ArrayRef], count: usize) -> Result<(), OperatorError> {
        let mut next = self.slots.iter().map(|slot| slot.groups.len()).sum::<usize>();
        let slot = &mut self.slots[slot];
        let groups = match &mut slot.keys {
            Some(table) => {
                table.intern(keys, &mut self.local).map_err(OperatorError::datafusion(Self::NAME))?;
                table.len()
            }
            None => {
                self.local.clear();
                self.local.resize(count, 0);
                1
            }
        };
        while slot.groups.len() < groups {
            slot.groups.push(next);
            next += 1;
        }
        Ok(())
    }

    fn slot(&mut self, window: Window, late: bool) -> Result<usize, OperatorError> {
        if let Some(number) = self.slot_numbers.get(&(window, late)) {
            return Ok(*number);
        }
        self.number_only_slot();
        let schema = if late { &self.late_keys } else { &self.timely_keys };
        let keys = match self.free[usize::from(late)].pop() {
            Some(keys) => Some(keys),
            None if schema.fields().is_empty() => None,
            None => Some(new_group_values(schema.clone(), &GroupOrdering::None).map_err(OperatorError::datafusion(Self::NAME))?),
        };
        self.slots.push(Slot { window, late, keys, groups: Vec::new() });
        self.slot_numbers.insert((window, late), self.slots.len() - 1);
        Ok(self.slots.len() - 1)
    }

    /// The only slot so far gets the numbers that its groups have had all along.
    fn number_only_slot(&mut self) {
        if let [only] = self.slots.as_mut_slice() {
            only.groups = (0..only.keys.as_ref().map_or(1, |keys| keys.len())).collect();
        }
    }

    fn late_texts(&self, rows: &RecordBatch, indices: &UInt32Array) -> Result<ArrayRef, OperatorError> {
        let visible = rows.project(&self.json_columns).map_err(OperatorError::arrow(Self::NAME))?;
        let columns = take_columns(visible.columns(), indices)?;
        let visible = batch_of(visible.schema(), columns, indices.len()).map_err(OperatorError::arrow(Self::NAME))?;
        let texts: Vec<String> = json_rows(&visible)?.into_iter().map(|text| String::from_utf8_lossy(&text).into_owned()).collect();
        Ok(Arc::new(StringArray::from(texts)))
    }

    /// The rows' states one by one; None when a function can't.
    fn pass(&mut self, batch: &Prepared) -> Result<Option<RecordBatch>, OperatorError> {
        let count = batch.rows.num_rows();
        let mut columns = batch.values[KEYS].clone();
        for column in [self.plan.window_start_column, self.plan.window_end_column] {
            columns.push(self.window_column(columns.len(), milliseconds(batch.rows.column(column)).map(|times| times.values))?);
        }
        if let Some(column) = self.plan.late_column {
            columns.push(batch.rows.column(column).clone());
        }
        if self.plan.late_row {
            columns.push(match &batch.late {
                None => new_null_array(&DataType::Utf8, count),
                Some(late) => {
                    let indices = UInt32Array::from_iter_values(late.values().set_indices_u32());
                    let texts = self.late_texts(&batch.rows, &indices)?;
                    let mut next = 0..;
                    let places: UInt32Array = (0..count).map(|row| late.value(row).then(|| next.next()).flatten()).collect();
                    take_columns(&[texts], &places)?.remove(0)
                }
            });
        }
        columns.push(match self.rows_column {
            None => ones(count),
            Some(column) => batch.rows.column(column).clone(),
        });
        let rows = columns[columns.len() - 1].clone();
        for call in &self.calls {
            match &call.input {
                CallInput::Rows => columns.push(rows.clone()),
                CallInput::States(range) => columns.extend_from_slice(&batch.rows.columns()[range.clone()]),
                CallInput::Arguments(range) => {
                    let filter = call.filter.map(|set| batch.values[set][0].as_boolean());
                    match call.accumulator.convert_to_state(&batch.values[ARGUMENTS][range.clone()], filter) {
                        Ok(states) => columns.extend(states),
                        Err(DataFusionError::NotImplemented(_)) => return Ok(None),
                        Err(error) => return Err(OperatorError::datafusion(Self::NAME)(error)),
                    }
                }
            }
        }
        batch_of(self.plan.partial_schema.clone(), columns, count).map(Some).map_err(OperatorError::arrow(Self::NAME))
    }

    fn window_column(&self, column: usize, times: Option<ScalarBuffer<i64>>) -> Result<ArrayRef, OperatorError> {
        let data_type = self.plan.partial_schema.field(column).data_type();
        times.and_then(|times| timestamps(times, data_type)).ok_or_else(|| {
            OperatorError::plan(Self::NAME, format!("window column {column} of the partials is {data_type}, not a timestamp"))
        })
    }

    /// Gives out what is open and is empty again.
    pub fn seal(&mut self) -> Result<Vec<RecordBatch>, OperatorError> {
        self.pace = Pace::default();
        let total = self.group_count();
        if self.slots.is_empty() || total == 0 {
            return Ok(Vec::new());
        }
        let order = (self.slots.len() > 1)
            .then(|| UInt32Array::from_iter_values(self.slots.iter().flat_map(|slot| slot.groups.iter().map(|group| *group as u32))));
        let mut columns = self.seal_groups(total)?;
        let mut states: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(std::mem::take(&mut self.rows)))];
        for call in &mut self.calls {
            match call.input {
                CallInput::Rows => states.push(states[0].clone()),
                _ => states.extend(call.accumulator.state(EmitTo::All).map_err(OperatorError::datafusion(Self::NAME))?),
            }
        }
        columns.extend(match order {
            None => states,
            Some(order) => take_columns(&states, &order)?,
        });
        let batch = batch_of(self.plan.partial_schema.clone(), columns, total).map_err(OperatorError::arrow(Self::NAME))?;
        Ok((0..total).step_by(OUTPUT_ROWS).map(|offset| batch.slice(offset, OUTPUT_ROWS.min(total - offset))).collect())
    }

    /// Keys, window, `__late` and `__late_row` of all groups, slot by slot; the slots are gone.
    fn seal_groups(&mut self, total: usize) -> Result<Vec<ArrayRef>, OperatorError> {
        let keys = self.layout.keys;
        let mut pieces: Vec<Vec<ArrayRef>> = vec![Vec::new(); self.late_keys.fields().len()];
        let (mut starts, mut ends, mut late) = (Vec::with_capacity(total), Vec::with_capacity(total), Vec::with_capacity(total));
        let only = self.slots.len() == 1;
        for slot in std::mem::take(&mut self.slots) {
            let count = match slot.keys {
                None => 1,
                Some(mut table) => {
                    let count = table.len();
                    let emitted = table.emit(EmitTo::All).map_err(OperatorError::datafusion(Self::NAME))?;
                    emitted.into_iter().enumerate().for_each(|(column, piece)| pieces[column].push(piece));
                    table.clear_shrink(count);
                    self.free[usize::from(slot.late)].push(table);
                    count
                }
            };
            debug_assert!(only || count == slot.groups.len());
            if self.plan.late_row && !slot.late {
                pieces[keys].push(new_null_array(&DataType::Utf8, count));
            }
            starts.resize(starts.len() + count, slot.window.start_ms);
            ends.resize(ends.len() + count, slot.window.end_ms);
            late.resize(late.len() + count, slot.late);
        }
        self.slot_numbers.clear();
        let joined: Result<Vec<ArrayRef>, _> = pieces.iter().map(|pieces| join(pieces)).collect();
        let mut columns = joined.map_err(OperatorError::arrow(Self::NAME))?;
        let late_texts = columns.split_off(keys);
        columns.push(self.window_column(columns.len(), Some(starts.into()))?);
        columns.push(self.window_column(columns.len(), Some(ends.into()))?);
        if self.plan.late_column.is_some() {
            columns.push(Arc::new(BooleanArray::from(late)));
        }
        columns.extend(late_texts);
        Ok(columns)
    }
}

impl Prepared {
    /// The rows of each window that are timely, and those that are late.
    fn parts(&self) -> Vec<(Window, bool, Vec<u32>)> {
        let mut parts: Vec<(Window, bool, Vec<u32>)> = Vec::with_capacity(2 * self.windows.list.len());
        for window in &self.windows.list {
            parts.push((*window, false, Vec::new()));
            parts.push((*window, true, Vec::new()));
        }
        for (row, number) in self.windows.numbers.iter().enumerate() {
            let late = self.late.as_ref().is_some_and(|late| late.is_valid(row) && late.value(row));
            parts[2 * *number as usize + usize::from(late)].2.push(row as u32);
        }
        parts.retain(|(_, _, rows)| !rows.is_empty());
        parts
    }
}

impl Pace {
    fn judge(&mut self, rows: usize, groups: usize) {
        self.probed_rows += rows;
        if self.probed_rows < PROBE_ROWS {
            return;
        }
        // Only groups that these rows were the first of: with few enough keys, the longer one folds the better it pays.
        let new_groups = groups - self.groups_before;
        if new_groups as f64 > POOR_RATIO * self.probed_rows as f64 {
            self.pass_rows = PASS_ROWS;
        }
        (self.probed_rows, self.groups_before) = (0, groups);
    }
}

/// Whether a call is `COUNT(*)`: it counts a literal that isn't null, without a filter.
fn counts_rows(call: &AggregateCall) -> bool {
    let function = &call.function;
    if function.fun().name() != "count" || function.is_distinct() || call.filter.is_some() {
        return false;
    }
    let arguments = function.expressions();
    let [argument] = arguments.as_slice() else { return false };
    argument.downcast_ref::<Literal>().is_some_and(|literal| !literal.value().is_null())
}

fn join(pieces: &[ArrayRef]) -> Result<ArrayRef, arrow_schema::ArrowError> {
    match pieces {
        [only] => Ok(only.clone()),
        pieces => concat(&pieces.iter().map(|piece| piece.as_ref()).collect::<Vec<_>>()),
    }
}

//! Evaluates expressions over a batch, and finds the rows that they refuse.
//!
//! An expression that fails says nothing of the row it failed for. So a batch that fails is cut in halves until the bad rows
//! stand alone: `k` bad rows of `n` cost O(k log n) evaluations, and from one in [`ROW_BY_ROW_SHARE`] on the rest is
//! evaluated row by row. It also rescues good rows: `b <> 0 AND a / b > 1` fails on a batch that holds a zero, but never on a
//! single row, where `AND` stops early.

use crate::operators::{EpochContext, OperatorError, batch_of};
use crate::plan::{Expressions, now_field, seed_field};
use arrow_array::{Array, ArrayRef, RecordBatch, TimestampMillisecondArray, UInt64Array, new_empty_array};
use arrow_schema::{Fields, Schema, SchemaRef};
use arrow_select::concat::{concat, concat_batches};
use datafusion_common::DataFusionError;
use datafusion_physical_expr::PhysicalExpr;
use std::sync::Arc;

/// With more than one bad row among so many, bisection no longer pays.
const ROW_BY_ROW_SHARE: usize = 8;

/// Expressions that see the same hidden columns.
struct ExpressionSet {
    list: Vec<Arc<dyn PhysicalExpr>>,
    needs_now: bool,
    needs_seed: bool,
    /// The operator's input with the hidden columns.
    schema: SchemaRef,
    /// What the values must be, when they become columns of a batch.
    target: Option<Fields>,
}

/// The expressions of one operator. They take or refuse a row together.
pub struct Evaluator {
    operator: &'static str,
    input: SchemaRef,
    sets: Vec<ExpressionSet>,
}

/// Values of the rows that no expression refused.
pub struct Evaluated {
    /// The operator's input without the refused rows.
    pub rows: RecordBatch,
    /// Per set of expressions, one column per expression.
    pub values: Vec<Vec<ArrayRef>>,
    /// Index in the operator's input of each row in `rows`; None: nothing was refused.
    pub kept: Option<Vec<u32>>,
    pub refused: Vec<(usize, String)>,
}

/// Why an evaluation failed.
enum Failure {
    /// A row may be to blame.
    Row(String),
    /// The same for every row: a bug or something that isn't implemented.
    Fatal(OperatorError),
}

impl Evaluator {
    pub fn new(operator: &'static str, input: SchemaRef) -> Self {
        Evaluator { operator, input, sets: Vec::new() }
    }

    /// Adds expressions whose values are used as they are.
    pub fn add(&mut self, expressions: &Expressions) {
        self.push(expressions, None);
    }

    /// Adds expressions whose values become the columns of a batch: a null for a NOT NULL column refuses the row.
    pub fn add_projection(&mut self, expressions: &Expressions, target: &SchemaRef) -> Result<(), OperatorError> {
        if expressions.list.len() != target.fields().len() {
            let message = format!("{} expressions for {} columns", expressions.list.len(), target.fields().len());
            return Err(OperatorError::plan(self.operator, message));
        }
        self.push(expressions, Some(target.fields().clone()));
        Ok(())
    }

    fn push(&mut self, expressions: &Expressions, target: Option<Fields>) {
        let mut fields = self.input.fields().to_vec();
        fields.extend(expressions.needs_now.then(now_field));
        fields.extend(expressions.needs_seed.then(seed_field));
        let schema = if fields.len() == self.input.fields().len() { self.input.clone() } else { Arc::new(Schema::new(fields)) };
        let Expressions { list, needs_now, needs_seed } = expressions.clone();
        self.sets.push(ExpressionSet { list, needs_now, needs_seed, schema, target });
    }

    /// Evaluates all expressions over all rows that they take.
    pub fn evaluate(&self, rows: &RecordBatch, epoch: &mut EpochContext) -> Result<Evaluated, OperatorError> {
        let inputs = self.inputs(rows, epoch)?;
        match self.evaluate_range(&inputs, None) {
            Ok(values) => Ok(Evaluated { rows: rows.clone(), values, kept: None, refused: Vec::new() }),
            Err(Failure::Fatal(error)) => Err(error),
            Err(Failure::Row(reason)) => self.isolate(rows, &inputs, reason),
        }
    }

    /// Per set of expressions the batch that they see.
    fn inputs(&self, rows: &RecordBatch, epoch: &mut EpochContext) -> Result<Vec<RecordBatch>, OperatorError> {
        let count = rows.num_rows();
        let now: Option<ArrayRef> = self.sets.iter().any(|set| set.needs_now).then(|| now_column(epoch.now_ms, count));
        let seed: Option<ArrayRef> = self.sets.iter().any(|set| set.needs_seed).then(|| seed_column(epoch, count));
        let extended = |set: &ExpressionSet| {
            if !set.needs_now && !set.needs_seed {
                return Ok(rows.clone());
            }
            let mut columns = rows.columns().to_vec();
            columns.extend(now.clone().filter(|_| set.needs_now));
            columns.extend(seed.clone().filter(|_| set.needs_seed));
            batch_of(set.schema.clone(), columns, count).map_err(OperatorError::arrow(self.operator))
        };
        self.sets.iter().map(extended).collect()
    }

    /// All rows, or those of `range` (offset, length).
    fn evaluate_range(&self, inputs: &[RecordBatch], range: Option<(usize, usize)>) -> Result<Vec<Vec<ArrayRef>>, Failure> {
        let evaluate_set = |(set, input): (&ExpressionSet, &RecordBatch)| match range {
            None => self.evaluate_set(set, input),
            Some((offset, length)) => self.evaluate_set(set, &input.slice(offset, length)),
        };
        self.sets.iter().zip(inputs).map(evaluate_set).collect()
    }

    fn evaluate_set(&self, set: &ExpressionSet, input: &RecordBatch) -> Result<Vec<ArrayRef>, Failure> {
        let mut values = Vec::with_capacity(set.list.len());
        for (number, expression) in set.list.iter().enumerate() {
            let value = expression
                .evaluate(input)
                .and_then(|value| value.into_array_of_size(input.num_rows()))
                .map_err(|error| self.failure(error))?;
            if let Some(field) = set.target.as_ref().map(|target| &target[number]) {
                if value.data_type() != field.data_type() {
                    let message = format!(
                        "column \"{}\" should be {}, the expression {expression} gives {}",
                        field.name(),
                        field.data_type(),
                        value.data_type()
                    );
                    return Err(Failure::Fatal(OperatorError::plan(self.operator, message)));
                }
                if !field.is_nullable() && value.null_count() > 0 {
                    return Err(Failure::Row(format!("column \"{}\" is NOT NULL and the value is null", field.name())));
                }
            }
            values.push(value);
        }
        Ok(values)
    }

    fn failure(&self, error: DataFusionError) -> Failure {
        use DataFusionError::{Internal, NotImplemented, Plan, SchemaError};
        match error.find_root() {
            Internal(_) | NotImplemented(_) | Plan(_) | SchemaError(..) => Failure::Fatal(OperatorError::datafusion(self.operator)(error)),
            root => Failure::Row(root.strip_backtrace()),
        }
    }

    /// The batch as a whole has failed for `reason`.
    fn isolate(&self, rows: &RecordBatch, inputs: &[RecordBatch], reason: String) -> Result<Evaluated, OperatorError> {
        let count = rows.num_rows();
        let mut good: Vec<(usize, usize, Vec<Vec<ArrayRef>>)> = Vec::new();
        let mut refused = Vec::new();
        // Ranges that are still to be evaluated, the first on top; the flag says that the range is known to fail.
        let mut ranges: Vec<(usize, usize, Option<String>)> = vec![(0, count, Some(reason))];
        while let Some((offset, length, failed)) = ranges.pop() {
            let reason = match failed {
                Some(reason) => reason,
                None => match self.evaluate_range(inputs, Some((offset, length))) {
                    Ok(values) => {
                        good.push((offset, length, values));
                        continue;
                    }
                    Err(Failure::Row(reason)) => reason,
                    Err(Failure::Fatal(error)) => return Err(error),
                },
            };
            if length <= 1 {
                refused.extend((length == 1).then_some((offset, reason)));
            } else if refused.len() > 1 + (offset + 1) / ROW_BY_ROW_SHARE {
                ranges.extend((offset..offset + length).rev().map(|row| (row, 1, None)));
            } else {
                let half = length / 2;
                ranges.push((offset + half, length - half, None));
                ranges.push((offset, half, None));
            }
        }
        self.join(rows, &good, refused)
    }

    fn join(
        &self,
        rows: &RecordBatch,
        good: &[(usize, usize, Vec<Vec<ArrayRef>>)],
        refused: Vec<(usize, String)>,
    ) -> Result<Evaluated, OperatorError> {
        let arrow = OperatorError::arrow(self.operator);
        let mut values = Vec::with_capacity(self.sets.len());
        for (number, set) in self.sets.iter().enumerate() {
            let mut columns = Vec::with_capacity(set.list.len());
            for (column, expression) in set.list.iter().enumerate() {
                let pieces: Vec<&dyn Array> = good.iter().map(|(_, _, values)| values[number][column].as_ref()).collect();
                columns.push(if pieces.is_empty() {
                    new_empty_array(&expression.data_type(&set.schema).map_err(OperatorError::datafusion(self.operator))?)
                } else {
                    concat(&pieces).map_err(&arrow)?
                });
            }
            values.push(columns);
        }
        let kept: Vec<u32> = good.iter().flat_map(|(offset, length, _)| *offset as u32..(offset + length) as u32).collect();
        let slices: Vec<RecordBatch> = good.iter().map(|(offset, length, _)| rows.slice(*offset, *length)).collect();
        let rows =
            if rows.num_columns() == 0 { batch_of(rows.schema(), Vec::new(), kept.len()) } else { concat_batches(&rows.schema(), &slices) };
        Ok(Evaluated { rows: rows.map_err(arrow)?, values, kept: Some(kept), refused })
    }
}

fn now_column(now_ms: i64, rows: usize) -> ArrayRef {
    Arc::new(TimestampMillisecondArray::from_value(now_ms, rows).with_timezone("UTC"))
}

/// Differs per row; the same whenever the same steps run in the same epoch.
fn seed_column(epoch: &mut EpochContext, rows: usize) -> ArrayRef {
    let base = mix(epoch.seed ^ mix(epoch.seed_next));
    epoch.seed_next += 1;
    Arc::new(UInt64Array::from_iter_values((0..rows as u64).map(|row| mix(base.wrapping_add(row)))))
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014), a bijection.
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

//! What is asked of DataFusion's aggregate functions: accumulators for many groups, and how their states merge.
//!
//! A function's *state columns* are its partial result: they go through the exchange, are stored in the region's state, and are merged
//! there. Sums, counts and averages, minima and maxima merge by a kernel of the state table; all else by the function's own accumulator.

use crate::operators::OperatorError;
use crate::plan::AggregateCall;
use arrow_array::{Array, ArrayRef, UInt32Array};
use arrow_schema::DataType;
use arrow_select::take::take;
use datafusion_common::Result as DataFusionResult;
use datafusion_expr::{EmitTo, GroupsAccumulator};
use datafusion_physical_expr::aggregate::AggregateFunctionExpr;
use datafusion_physical_expr::{GroupsAccumulatorAdapter, PhysicalExpr};
use std::sync::Arc;
use streamshield_core::ports::state::{AggregateState, Merge, StateError, StateErrorKind, StateMerger};

/// A fresh accumulator: the function's own for groups, or one boxed accumulator per group.
pub fn groups_accumulator(function: &Arc<AggregateFunctionExpr>) -> DataFusionResult<Box<dyn GroupsAccumulator>> {
    if function.groups_accumulator_supported() {
        return function.create_groups_accumulator();
    }
    let function = function.clone();
    Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
}

/// Arguments of `update_batch`: those of the call, then those of its ORDER BY.
pub fn arguments(function: &AggregateFunctionExpr) -> Vec<Arc<dyn PhysicalExpr>> {
    let mut arguments = function.expressions();
    arguments.extend(function.order_bys().iter().map(|sort| sort.expr.clone()));
    arguments
}

/// How the state of a call is stored and merged.
pub fn aggregate_state(call: &AggregateCall) -> AggregateState {
    AggregateState { fields: call.state_fields.clone(), merge: merge(call) }
}

fn merge(call: &AggregateCall) -> Merge {
    let function = &call.function;
    let state_types: Vec<&DataType> = call.state_fields.iter().map(|field| field.data_type()).collect();
    if !function.is_distinct() {
        match (function.fun().name(), state_types.as_slice()) {
            ("count", [count]) if is_summable(count) => return Merge::Sum,
            ("sum", [sum]) if is_summable(sum) => return Merge::Sum,
            ("avg", [count, sum]) if is_summable(count) && is_summable(sum) => return Merge::Sum,
            ("min", [value]) if is_comparable(value) => return Merge::Min,
            ("max", [value]) if is_comparable(value) => return Merge::Max,
            _ => {}
        }
    }
    Merge::Other(Arc::new(AccumulatorMerger { function: function.clone() }))
}

fn is_summable(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Int64 | DataType::UInt64 | DataType::Float64 | DataType::Decimal128(..))
}

/// Types that the state compares. Its order of floats is total (NaN above all), so that a result does not depend on the order of
/// merging; the function's accumulator takes whichever came last of NaN and a number.
fn is_comparable(data_type: &DataType) -> bool {
    use DataType::*;
    matches!(
        data_type,
        Boolean
            | Float32
            | Float64
            | Int8
            | Int16
            | Int32
            | Int64
            | UInt8
            | UInt16
            | UInt32
            | UInt64
            | Decimal128(..)
            | Date32
            | Time32(_)
            | Timestamp(..)
            | Utf8
    )
}

/// Merges states by the function's accumulator.
struct AccumulatorMerger {
    function: Arc<AggregateFunctionExpr>,
}

impl StateMerger for AccumulatorMerger {
    fn merge(&self, stored: &[ArrayRef], incoming: &[ArrayRef], groups: &[usize]) -> Result<Vec<ArrayRef>, StateError> {
        let merge = || -> DataFusionResult<Vec<ArrayRef>> {
            let (stored, numbers, total) = number_groups(stored, groups)?;
            let mut accumulator = groups_accumulator(&self.function)?;
            let stored_groups = stored.first().map_or(0, |column| column.len());
            accumulator.merge_batch(&stored, &(0..stored_groups).collect::<Vec<_>>(), stored_groups)?;
            let groups: Vec<usize> = groups.iter().map(|group| numbers[*group].unwrap_or(0) as usize).collect();
            accumulator.merge_batch(incoming, &groups, total)?;
            let merged = accumulator.state(EmitTo::All)?;
            let order = UInt32Array::from(numbers);
            merged.iter().map(|column| Ok(take(column, &order, None)?)).collect()
        };
        merge().map_err(|error| StateError {
            kind: StateErrorKind::Internal,
            message: format!("merging states of {}: {error}", self.function.name()),
        })
    }
}

/// Numbers the groups so that those with a stored state come first, and those that are new to the table (a row of nulls) behind them.
///
/// An accumulator that is given values without a null takes *all* groups so far as having a value; so no group may exist before its first row.
fn number_groups(stored: &[ArrayRef], incoming: &[usize]) -> DataFusionResult<(Vec<ArrayRef>, Vec<Option<u32>>, usize)> {
    let count = stored.first().map_or(0, |column| column.len());
    if stored.iter().any(|column| column.null_count() == 0) {
        return Ok((stored.to_vec(), (0..count as u32).map(Some).collect(), count));
    }
    let with_state: Vec<u32> = (0..count as u32).filter(|row| stored.iter().any(|column| column.is_valid(*row as usize))).collect();
    let mut numbers = vec![None; count];
    let mut next = 0;
    for group in with_state.iter().map(|group| *group as usize).chain(incoming.iter().copied()) {
        if numbers[group].is_none() {
            numbers[group] = Some(next);
            next += 1;
        }
    }
    let with_state = UInt32Array::from(with_state);
    let stored: Result<Vec<ArrayRef>, _> = stored.iter().map(|column| take(column, &with_state, None)).collect();
    Ok((stored?, numbers, next as usize))
}

/// Turns state columns into results.
pub struct Finalizer {
    function: Arc<AggregateFunctionExpr>,
    /// The state is the result.
    is_state: bool,
    output_type: DataType,
}

impl Finalizer {
    pub fn new(call: &AggregateCall) -> Self {
        let output_type = call.function.field().data_type().clone();
        let plain = !call.function.is_distinct() && matches!(call.function.fun().name(), "count" | "sum" | "min" | "max");
        let is_state = plain && call.state_fields.len() == 1 && call.state_fields[0].data_type() == &output_type;
        Finalizer { function: call.function.clone(), is_state, output_type }
    }

    /// One result per row of the state columns.
    pub fn results(&self, states: &[ArrayRef]) -> Result<ArrayRef, OperatorError> {
        if self.is_state {
            return Ok(states[0].clone());
        }
        let evaluate = || -> DataFusionResult<ArrayRef> {
            let count = states.first().map_or(0, |column| column.len());
            let mut accumulator = groups_accumulator(&self.function)?;
            accumulator.merge_batch(states, &(0..count).collect::<Vec<_>>(), count)?;
            accumulator.evaluate(EmitTo::All)
        };
        let results = evaluate().map_err(OperatorError::datafusion("aggregate"))?;
        if results.data_type() != &self.output_type {
            let message = format!("{} gives {} instead of {}", self.function.name(), results.data_type(), self.output_type);
            return Err(OperatorError::plan("aggregate", message));
        }
        Ok(results)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow_array::cast::AsArray;
    use arrow_array::types::Float64Type;
    use arrow_array::{Float64Array, Int64Array};
    use arrow_schema::{Field, Schema};
    use datafusion_functions_aggregate::min_max::max_udaf;
    use datafusion_physical_expr::aggregate::AggregateExprBuilder;
    use datafusion_physical_expr::expressions::col;

    fn maximum(data_type: DataType) -> AggregateCall {
        let schema = Arc::new(Schema::new(vec![Field::new("a", data_type, true)]));
        let function = AggregateExprBuilder::new(max_udaf(), vec![col("a", &schema).unwrap()]).schema(schema).alias("m").build().unwrap();
        AggregateCall {
            state_fields: function.state_fields().unwrap(),
            function: Arc::new(function),
            filter: None,
            merges_state_at: None,
            display: "max(a)".into(),
        }
    }

    #[test]
    fn a_group_without_a_value_stays_without_one_whoever_else_has_one() {
        let merger = AccumulatorMerger { function: maximum(DataType::Float64).function };
        let merged = |stored: Vec<Option<f64>>, incoming: Vec<Option<f64>>, groups: &[usize]| {
            let columns: [Vec<ArrayRef>; 2] = [stored, incoming].map(|column| vec![Arc::new(Float64Array::from(column)) as ArrayRef]);
            merger.merge(&columns[0], &columns[1], groups).unwrap()[0].as_primitive::<Float64Type>().iter().collect::<Vec<_>>()
        };
        assert_eq!(
            merged(vec![None, Some(2.0), None, None], vec![Some(1.0), Some(3.0), Some(5.0)], &[3, 1, 3]),
            [None, Some(3.0), None, Some(5.0)]
        );
        assert_eq!(merged(vec![None, None], vec![None, Some(1.0)], &[0, 1]), [None, Some(1.0)]);
        assert_eq!(merged(vec![Some(4.0), None], vec![None], &[1]), [Some(4.0), None]);
    }

    #[test]
    fn a_state_that_is_the_result_is_not_copied() {
        let call = maximum(DataType::Int64);
        let state: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        assert!(Arc::ptr_eq(&Finalizer::new(&call).results(std::slice::from_ref(&state)).unwrap(), &state));
        assert!(matches!(merge(&call), Merge::Max));
    }
}

//! Operators that look at one row at a time: Filter, Project and Expand. They have no memory.

use crate::operators::expression::{Evaluated, Evaluator};
use crate::operators::{EpochContext, OperatorError, batch_of};
use crate::plan::{ExpandPlan, Expressions, Projection};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_buffer::BooleanBuffer;
use arrow_schema::{DataType, SchemaRef};
use arrow_select::filter::FilterBuilder;
use arrow_select::interleave::interleave;

/// From which row of an operator's input an output row was made. Only asked when a row is rejected further down, or behind the chain.
#[derive(Debug)]
pub enum RowMap {
    Same,
    /// The output rows are those with a one.
    Mask(BooleanBuffer),
    /// Per output row its input row.
    Rows(Vec<u32>),
    /// Each input row gives so many output rows.
    Times(usize),
}

impl RowMap {
    pub fn input_row(&self, row: usize) -> usize {
        match self {
            RowMap::Same => row,
            RowMap::Mask(mask) => mask.set_indices().nth(row).unwrap_or(row),
            RowMap::Rows(rows) => rows[row] as usize,
            RowMap::Times(times) => row / times,
        }
    }

    /// `self` was applied to the rows that an evaluation has kept.
    fn after(self, kept: Option<Vec<u32>>, rows: usize) -> RowMap {
        match kept {
            None => self,
            Some(kept) => RowMap::Rows((0..rows).map(|row| kept[self.input_row(row)]).collect()),
        }
    }
}

/// What an operator makes of a batch.
pub struct Applied {
    pub rows: RecordBatch,
    pub map: RowMap,
    /// Index in the operator's input, and why.
    pub refused: Vec<(usize, String)>,
}

/// Keeps the rows for which the predicate is true; null is not true.
pub struct Filter {
    evaluator: Evaluator,
}

impl Filter {
    const NAME: &str = "Filter";

    pub fn new(predicate: &Expressions, input: &SchemaRef) -> Result<Self, OperatorError> {
        let [expression] = predicate.list.as_slice() else {
            return Err(OperatorError::plan(Self::NAME, format!("{} expressions instead of one", predicate.list.len())));
        };
        let mut evaluator = Evaluator::new(Self::NAME, input.clone());
        evaluator.add(predicate);
        // Hidden columns may decide the type of other expressions, never of a predicate.
        match expression.data_type(input) {
            Ok(DataType::Boolean) | Err(_) => Ok(Filter { evaluator }),
            Ok(other) => Err(OperatorError::plan(Self::NAME, format!("the predicate {expression} is {other}, not Boolean"))),
        }
    }

    pub fn apply(&self, rows: &RecordBatch, epoch: &mut EpochContext) -> Result<Applied, OperatorError> {
        let Evaluated { rows, values, kept, refused } = self.evaluator.evaluate(rows, epoch)?;
        let predicate = values[0][0].as_boolean_opt().ok_or_else(|| OperatorError::plan(Self::NAME, "the predicate is not Boolean"))?;
        let mask = match predicate.nulls() {
            None => predicate.values().clone(),
            Some(nulls) => predicate.values() & nulls.inner(),
        };
        let count = mask.count_set_bits();
        if count == rows.num_rows() {
            return Ok(Applied { map: RowMap::Same.after(kept, count), rows, refused });
        }
        if count == 0 {
            return Ok(Applied { rows: rows.slice(0, 0), map: RowMap::Same, refused });
        }
        let filter = FilterBuilder::new(&mask.clone().into());
        let filter = if rows.num_columns() > 1 { filter.optimize() } else { filter };
        let rows = filter.build().filter_record_batch(&rows).map_err(OperatorError::arrow(Self::NAME))?;
        Ok(Applied { rows, map: RowMap::Mask(mask).after(kept, count), refused })
    }
}

/// One output row per row.
pub struct Project {
    evaluator: Evaluator,
    schema: SchemaRef,
}

impl Project {
    const NAME: &str = "Project";

    pub fn new(projection: &Projection, input: &SchemaRef) -> Result<Self, OperatorError> {
        let mut evaluator = Evaluator::new(Self::NAME, input.clone());
        evaluator.add_projection(&projection.expressions, &projection.schema)?;
        Ok(Project { evaluator, schema: projection.schema.clone() })
    }

    pub fn apply(&self, rows: &RecordBatch, epoch: &mut EpochContext) -> Result<Applied, OperatorError> {
        let Evaluated { rows, mut values, kept, refused } = self.evaluator.evaluate(rows, epoch)?;
        let count = rows.num_rows();
        let rows = batch_of(self.schema.clone(), values.swap_remove(0), count).map_err(OperatorError::arrow(Self::NAME))?;
        Ok(Applied { rows, map: RowMap::Same.after(kept, count), refused })
    }
}

/// One output row per row and projection, row by row. A row that one projection refuses is left out of all.
pub struct Expand {
    evaluator: Evaluator,
    projections: usize,
    schema: SchemaRef,
}

impl Expand {
    const NAME: &str = "Expand";

    pub fn new(plan: &ExpandPlan, input: &SchemaRef) -> Result<Self, OperatorError> {
        let mut evaluator = Evaluator::new(Self::NAME, input.clone());
        for projection in &plan.projections {
            evaluator.add_projection(projection, &plan.schema)?;
        }
        if plan.projections.is_empty() {
            return Err(OperatorError::plan(Self::NAME, "no projections"));
        }
        Ok(Expand { evaluator, projections: plan.projections.len(), schema: plan.schema.clone() })
    }

    pub fn apply(&self, rows: &RecordBatch, epoch: &mut EpochContext) -> Result<Applied, OperatorError> {
        let Evaluated { rows, values, kept, refused } = self.evaluator.evaluate(rows, epoch)?;
        let count = rows.num_rows() * self.projections;
        let places: Vec<(usize, usize)> =
            (0..rows.num_rows()).flat_map(|row| (0..self.projections).map(move |projection| (projection, row))).collect();
        let columns: Result<Vec<ArrayRef>, _> = (0..self.schema.fields().len())
            .map(|column| {
                let versions: Vec<&dyn Array> = values.iter().map(|projection| projection[column].as_ref()).collect();
                interleave(&versions, &places)
            })
            .collect();
        let arrow = OperatorError::arrow(Self::NAME);
        let rows = batch_of(self.schema.clone(), columns.map_err(&arrow)?, count).map_err(arrow)?;
        Ok(Applied { rows, map: RowMap::Times(self.projections).after(kept, count), refused })
    }
}

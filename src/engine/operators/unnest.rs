//! `CROSS JOIN UNNEST(list)`: one row per list element; null and empty lists give no row.

use crate::operators::rows::{Applied, RowMap};
use crate::operators::{OperatorError, batch_of};
use crate::plan::UnnestPlan;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow_schema::{DataType, SchemaRef};
use arrow_select::nullif::nullif;
use arrow_select::take::take;
use std::sync::Arc;

pub struct Unnest {
    plan: UnnestPlan,
}

impl Unnest {
    const NAME: &str = "Unnest";

    pub fn new(plan: &UnnestPlan, input: &SchemaRef) -> Result<Self, OperatorError> {
        let field =
            input.fields().get(plan.list_column).ok_or_else(|| OperatorError::plan(Self::NAME, "the list column does not exist"))?;
        match field.data_type() {
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) | DataType::Map(..) => {
                Ok(Unnest { plan: plan.clone() })
            }
            other => Err(OperatorError::plan(Self::NAME, format!("column \"{}\" is {other}, not a list", field.name()))),
        }
    }

    pub fn apply(&self, rows: &RecordBatch) -> Result<Applied, OperatorError> {
        let arrow = OperatorError::arrow(Self::NAME);
        let list = rows.column(self.plan.list_column);
        let places = Places::of(list);
        let count = places.input_rows.len();
        let input_rows = UInt32Array::from(places.input_rows);
        let elements = take(&places.values, &UInt32Array::from(places.elements), None).map_err(&arrow)?;
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.plan.schema.fields().len());
        for (number, column) in rows.columns().iter().enumerate() {
            if number != self.plan.list_column {
                columns.push(take(column, &input_rows, None).map_err(&arrow)?);
            }
        }
        if self.plan.struct_fields {
            columns.extend(struct_columns(&elements).map_err(&arrow)?);
        } else {
            columns.push(elements);
        }
        if self.plan.ordinality {
            columns.push(Arc::new(Int64Array::from(places.ordinals)));
        }
        let rows = batch_of(self.plan.schema.clone(), columns, count).map_err(arrow)?;
        Ok(Applied { rows, map: RowMap::Rows(input_rows.values().to_vec()), refused: Vec::new() })
    }
}

/// Per list element: its row, its place in the child column and its number from 1.
struct Places {
    values: ArrayRef,
    input_rows: Vec<u32>,
    elements: Vec<u32>,
    ordinals: Vec<i64>,
}

impl Places {
    fn of(list: &ArrayRef) -> Places {
        match list.data_type() {
            DataType::List(_) => {
                let list = list.as_list::<i32>();
                Self::ranges(list, list.values(), |row| list.value_offsets()[row] as usize..list.value_offsets()[row + 1] as usize)
            }
            DataType::LargeList(_) => {
                let list = list.as_list::<i64>();
                Self::ranges(list, list.values(), |row| list.value_offsets()[row] as usize..list.value_offsets()[row + 1] as usize)
            }
            DataType::Map(..) => {
                let map = list.as_map();
                let entries: ArrayRef = Arc::new(map.entries().clone());
                Self::ranges(map, &entries, |row| map.value_offsets()[row] as usize..map.value_offsets()[row + 1] as usize)
            }
            _ => {
                let list = list.as_fixed_size_list();
                let length = list.value_length() as usize;
                Self::ranges(list, list.values(), |row| row * length..(row + 1) * length)
            }
        }
    }

    fn ranges(list: &dyn Array, values: &ArrayRef, range: impl Fn(usize) -> std::ops::Range<usize>) -> Places {
        let capacity = values.len();
        let mut places = Places {
            values: values.clone(),
            input_rows: Vec::with_capacity(capacity),
            elements: Vec::with_capacity(capacity),
            ordinals: Vec::with_capacity(capacity),
        };
        for row in (0..list.len()).filter(|row| list.is_valid(*row)) {
            for (number, element) in range(row).enumerate() {
                places.input_rows.push(row as u32);
                places.elements.push(element as u32);
                places.ordinals.push(number as i64 + 1);
            }
        }
        places
    }
}

/// A null struct gives null fields.
fn struct_columns(elements: &ArrayRef) -> Result<Vec<ArrayRef>, arrow_schema::ArrowError> {
    let elements = elements.as_struct();
    match elements.nulls().filter(|nulls| nulls.null_count() > 0) {
        None => Ok(elements.columns().to_vec()),
        Some(nulls) => {
            let is_null = BooleanArray::new(!nulls.inner(), None);
            elements.columns().iter().map(|column| nullif(column, &is_null)).collect()
        }
    }
}

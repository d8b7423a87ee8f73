//! A table's specification, checked and laid out.

use super::cell::Kernel;
use super::column::new_column;
use super::keys::KeyCodec;
use crate::error::internal;
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, FieldRef};
use std::ops::Range;
use std::sync::Arc;
use streamshield_core::ports::state::{Merge, StateError, StateMerger, WindowTableSpec};

/// The number of no operator: its keys would be those of the store's own entries.
pub(crate) const RESERVED_OPERATOR: u16 = u16::MAX;

pub(crate) struct TableSpec {
    pub operator: u16,
    pub keys: KeyCodec,
    key_types: Vec<DataType>,
    pub aggregates: Vec<AggregateSpec>,
    /// State columns of all aggregates, in order.
    pub columns: Vec<(DataType, Kernel)>,
    /// Bytes on disk of each key and of each group's states, if all have the same.
    pub widths: Option<(usize, usize)>,
}

pub(crate) struct AggregateSpec {
    /// Its state columns among those of the table.
    pub columns: Range<usize>,
    /// For an aggregate without a kernel.
    pub merger: Option<Arc<dyn StateMerger>>,
}

impl TableSpec {
    pub fn new(spec: &WindowTableSpec) -> Result<Self, StateError> {
        if spec.operator == RESERVED_OPERATOR {
            return Err(internal(format!("operator number {RESERVED_OPERATOR} is reserved")));
        }
        let (mut aggregates, mut columns) = (vec![], vec![]);
        for aggregate in &spec.aggregates {
            let (kernel, merger) = match &aggregate.merge {
                Merge::Sum => (Kernel::Sum, None),
                Merge::Min => (Kernel::Min, None),
                Merge::Max => (Kernel::Max, None),
                Merge::Other(merger) => (Kernel::Replace, Some(Arc::clone(merger))),
            };
            let first = columns.len();
            columns.extend(aggregate.fields.iter().map(|field| (field.data_type().clone(), kernel)));
            aggregates.push(AggregateSpec { columns: first..columns.len(), merger });
        }
        let mut state_widths = Vec::with_capacity(columns.len());
        for (data_type, kernel) in &columns {
            state_widths.push(new_column(data_type, *kernel)?.written_bytes());
        }
        let key_types = spec.keys.iter().map(|field: &FieldRef| field.data_type().clone()).collect();
        let keys = KeyCodec::new(&spec.keys)?;
        let widths = keys.fixed_bytes().zip(state_widths.into_iter().sum::<Option<usize>>());
        Ok(TableSpec { operator: spec.operator, keys, key_types, aggregates, columns, widths })
    }

    /// The number of rows, or what does not fit.
    pub fn check(&self, keys: &[ArrayRef], states: &[ArrayRef]) -> Result<usize, StateError> {
        if keys.len() != self.key_types.len() || states.len() != self.columns.len() {
            return Err(internal(format!(
                "{} key and {} state columns where operator {} has {} and {}",
                keys.len(),
                states.len(),
                self.operator,
                self.key_types.len(),
                self.columns.len()
            )));
        }
        let rows = keys.iter().chain(states).next().map_or(0, |array| array.len());
        let types = self.key_types.iter().chain(self.columns.iter().map(|(data_type, _)| data_type));
        for (array, data_type) in keys.iter().chain(states).zip(types) {
            if array.data_type() != data_type {
                return Err(internal(format!("a column of {} where {data_type} belongs", array.data_type())));
            }
            if array.len() != rows {
                return Err(internal(format!("columns of {} and {rows} rows in one batch", array.len())));
            }
        }
        Ok(rows)
    }

    /// What the layout on disk depends on. Says nothing of names or nullability.
    pub fn fingerprint(&self, out: &mut String) {
        out.push_str(&format!("operator {} keys {:?} states {:?}\n", self.operator, self.key_types, self.columns));
    }
}

//! Arrow columns as rows of bytes and back, and what merging means for them.

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, PrimitiveArray, downcast_primitive, new_empty_array, new_null_array,
};
use arrow_row::{RowConverter, SortField};
use arrow_schema::{ArrowError, DataType, FieldRef};
use std::sync::Arc;
use streamshield_core::ports::state::{StateError, StateErrorKind};

fn arrow(error: ArrowError) -> StateError {
    StateError { kind: StateErrorKind::Internal, message: error.to_string() }
}

fn converter(types: &[DataType]) -> Result<RowConverter, StateError> {
    RowConverter::new(types.iter().map(|data_type| SortField::new(data_type.clone())).collect()).map_err(arrow)
}

fn to_rows(converter: &RowConverter, arrays: &[ArrayRef]) -> Result<Vec<Vec<u8>>, StateError> {
    let rows = converter.convert_columns(arrays).map_err(arrow)?;
    Ok(rows.iter().map(|row| row.as_ref().to_vec()).collect())
}

fn to_arrays(converter: &RowConverter, rows: &[&[u8]]) -> Result<Vec<ArrayRef>, StateError> {
    let parser = converter.parser();
    converter.convert_rows(rows.iter().map(|row| parser.parse(row))).map_err(arrow)
}

/// The columns of a key, as one row.
pub(crate) struct KeyColumns {
    types: Vec<DataType>,
    converter: Option<RowConverter>,
}

impl KeyColumns {
    pub fn new(fields: &[FieldRef]) -> Result<KeyColumns, StateError> {
        let types: Vec<_> = fields.iter().map(|field| field.data_type().clone()).collect();
        let converter = if types.is_empty() { None } else { Some(converter(&types)?) };
        Ok(KeyColumns { types, converter })
    }

    pub fn len(&self) -> usize {
        self.types.len()
    }

    pub fn rows(&self, arrays: &[ArrayRef], rows: usize) -> Result<Vec<Vec<u8>>, StateError> {
        match &self.converter {
            Some(converter) => to_rows(converter, arrays),
            None => Ok(vec![Vec::new(); rows]),
        }
    }

    pub fn arrays(&self, rows: &[&[u8]]) -> Result<Vec<ArrayRef>, StateError> {
        match &self.converter {
            Some(converter) if !rows.is_empty() => to_arrays(converter, rows),
            _ => Ok(self.types.iter().map(new_empty_array).collect()),
        }
    }
}

/// One state column.
pub(crate) struct Column {
    data_type: DataType,
    converter: RowConverter,
    /// The row of a group that has no value.
    null: Vec<u8>,
}

impl Column {
    pub fn new(data_type: &DataType) -> Result<Column, StateError> {
        let converter = converter(std::slice::from_ref(data_type))?;
        let null = to_rows(&converter, &[new_null_array(data_type, 1)])?.pop().unwrap_or_default();
        Ok(Column { data_type: data_type.clone(), converter, null })
    }

    pub fn data_type(&self) -> &DataType {
        &self.data_type
    }

    pub fn rows(&self, array: &ArrayRef) -> Result<Vec<Vec<u8>>, StateError> {
        to_rows(&self.converter, std::slice::from_ref(array))
    }

    pub fn array(&self, rows: &[&[u8]]) -> Result<ArrayRef, StateError> {
        if rows.is_empty() {
            return Ok(new_empty_array(&self.data_type));
        }
        let mut arrays = to_arrays(&self.converter, rows)?;
        arrays.pop().ok_or_else(|| arrow(ArrowError::ComputeError("a row without its column".into())))
    }

    /// The smaller or larger value by `is_better`; null is no value.
    pub fn extreme(
        &self,
        stored: &[Option<&[u8]>],
        incoming: &ArrayRef,
        groups: &[usize],
        is_better: impl Fn(&[u8], &[u8]) -> bool,
    ) -> Result<Vec<Vec<u8>>, StateError> {
        let mut merged: Vec<Vec<u8>> = stored.iter().map(|row| row.unwrap_or(&self.null).to_vec()).collect();
        for (row, group) in self.rows(incoming)?.into_iter().zip(groups) {
            let before = &mut merged[*group];
            if row != self.null && (*before == self.null || is_better(&row, before)) {
                *before = row;
            }
        }
        Ok(merged)
    }

    /// The wrapping sum; null is no value.
    pub fn sum(&self, stored: &[Option<&[u8]>], incoming: &ArrayRef, groups: &[usize]) -> Result<Vec<Vec<u8>>, StateError> {
        let rows: Vec<&[u8]> = stored.iter().map(|row| row.unwrap_or(&self.null)).collect();
        let before = self.array(&rows)?;
        macro_rules! add {
            ($t:ty) => {
                sum_of::<$t>(&before, incoming, groups)
            };
        }
        let data_type = &self.data_type;
        let merged: ArrayRef = downcast_primitive! {
            data_type => (add),
            other => {
                return Err(arrow(ArrowError::ComputeError(format!("state of type {other} cannot be summed"))));
            }
        };
        self.rows(&merged)
    }
}

fn sum_of<T: ArrowPrimitiveType>(stored: &ArrayRef, incoming: &ArrayRef, groups: &[usize]) -> ArrayRef {
    let incoming = incoming.as_primitive::<T>();
    let mut sums: Vec<Option<T::Native>> = stored.as_primitive::<T>().iter().collect();
    for (value, group) in incoming.iter().zip(groups) {
        if let Some(value) = value {
            let sum = &mut sums[*group];
            *sum = Some(sum.map_or(value, |sum| sum.add_wrapping(value)));
        }
    }
    Arc::new(PrimitiveArray::<T>::from_iter(sums).with_data_type(stored.data_type().clone()))
}

//! Lists, structs and whatever else has no typed column: arrow's row format in a string column.

use super::cell::Kernel;
use super::column::Column;
use super::segments::Bitmap;
use super::string_column::StringColumn;
use crate::error::{arrow, internal};
use arrow_array::builder::BinaryBuilder;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};
use arrow_row::{RowConverter, SortField};
use arrow_schema::DataType;
use std::sync::Arc;
use streamshield_core::ports::state::StateError;

pub(crate) struct RowColumn {
    converter: RowConverter,
    data_type: DataType,
    rows: StringColumn,
}

impl RowColumn {
    pub fn new(data_type: &DataType) -> Result<Self, StateError> {
        let sort = SortField::new(data_type.clone());
        if matches!(data_type, DataType::Dictionary(_, _) | DataType::RunEndEncoded(_, _))
            || !RowConverter::supports_fields(std::slice::from_ref(&sort))
        {
            return Err(internal(format!("a state column of type {data_type} is not supported")));
        }
        Ok(RowColumn {
            converter: RowConverter::new(vec![sort]).map_err(arrow)?,
            data_type: data_type.clone(),
            rows: StringColumn::new(&DataType::Binary, Kernel::Replace),
        })
    }
}

impl Column for RowColumn {
    fn grow(&mut self, count: usize) {
        self.rows.grow(count);
    }

    fn merge(&mut self, groups: &[u32], incoming: &ArrayRef, first_new: usize) -> Result<(), StateError> {
        let rows = self.converter.convert_columns(std::slice::from_ref(incoming)).map_err(arrow)?;
        let mut encoded = BinaryBuilder::with_capacity(rows.num_rows(), rows.size());
        rows.iter().for_each(|row| encoded.append_value(row.data()));
        self.rows.merge(groups, &(Arc::new(encoded.finish()) as ArrayRef), first_new)
    }

    fn gather(&self, groups: &[u32]) -> Result<ArrayRef, StateError> {
        let encoded = self.rows.gather(groups)?;
        let encoded = encoded.as_binary::<i32>();
        if encoded.null_count() > 0 {
            return Err(internal("a group has no state where every merge gives it one"));
        }
        let parser = self.converter.parser();
        let rows = encoded.iter().flatten().map(|row| parser.parse(row));
        let mut arrays = self.converter.convert_rows(rows).map_err(arrow)?;
        let array = arrays.pop().ok_or_else(|| internal("no column came back from the row format"))?;
        if array.data_type() != &self.data_type {
            return Err(internal(format!("{} came back from the row format as {}", self.data_type, array.data_type())));
        }
        Ok(array)
    }

    fn write(&self, group: u32, out: &mut Vec<u8>) {
        self.rows.write(group, out);
    }

    fn push_written(&mut self, bytes: &mut &[u8]) -> Result<(), StateError> {
        self.rows.push_written(bytes)
    }

    fn written_bytes(&self) -> Option<usize> {
        None
    }

    fn retain(&mut self, keep: &Bitmap) {
        self.rows.retain(keep);
    }

    fn bytes(&self) -> usize {
        self.rows.bytes()
    }
}

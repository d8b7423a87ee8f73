//! Raw: a record's bytes are the value of the table's only column.
//!
//! STRING is UTF-8 and BYTES are the bytes themselves; BOOLEAN and numbers have the fixed widths of their types, in the byte
//! order of `raw.endianness`. NULL can't be written: the bytes of an empty value mean something else.

use super::columns::{ColumnBuilder, Values, columns_of, finish_batch};
use super::{Decoded, FormatScope, RecordDecoder, RowEncoder, sql_type};
use crate::options::{OptionReader, refuse};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, SchemaRef};
use streamshield_core::ports::sink::{RefusedRow, SinkError};
use streamshield_core::table::{Column, OptionError};

/// Options of the format, with Flink's names and defaults.
#[derive(Clone, Debug, Default)]
pub struct RawOptions {
    little_endian: bool,
}

impl RawOptions {
    pub(super) const KEYS: [&'static str; 2] = ["charset", "endianness"];

    pub(super) fn read(options: &mut OptionReader<'_>, prefix: &str) -> Self {
        let charset = format!("{prefix}charset");
        if let Some(name) = options.text(&charset).filter(|name| !name.eq_ignore_ascii_case("UTF-8")) {
            options.error(
                &charset,
                format!("the charset '{name}' is not supported"),
                Some("only 'UTF-8' is; read other charsets as BYTES".into()),
            );
        }
        RawOptions {
            little_endian: options.choice(&format!("{prefix}endianness"), &["big-endian", "little-endian"]) == Some("little-endian"),
        }
    }
}

/// Whether raw bytes can stand for this type.
pub(super) fn supports(data_type: &DataType) -> bool {
    use DataType::*;
    matches!(data_type, Utf8 | Binary | Boolean | Int8 | Int16 | Int32 | Int64 | Float32 | Float64)
}

pub(super) fn check_columns(columns: &[Column]) -> Option<OptionError> {
    let message = format!("the format 'raw' carries exactly one column, not {}", columns.len());
    (columns.len() != 1).then(|| refuse("", message, Some("use 'json' or 'csv' for more than one column".into())))
}

/// Decodes bytes into one column, or into none when the query reads none.
pub struct RawDecoder {
    schema: SchemaRef,
    scope: FormatScope,
    options: RawOptions,
    columns: Vec<ColumnBuilder>,
}

impl RawDecoder {
    pub fn new(schema: &SchemaRef, scope: FormatScope, options: &RawOptions) -> Self {
        RawDecoder { schema: schema.clone(), scope, options: options.clone(), columns: columns_of(schema) }
    }

    fn append(&mut self, payload: Option<&[u8]>) -> Result<(), String> {
        if payload.is_none() && self.scope == FormatScope::Value {
            return Err("the record has no value".into());
        }
        for column in &mut self.columns {
            match payload {
                Some(bytes) => append(column, bytes, self.options.little_endian)?,
                None if column.field.is_nullable() => column.append_null(),
                None => return Err(format!("column '{}': the record has no key", column.field.name())),
            }
        }
        Ok(())
    }
}

impl RecordDecoder for RawDecoder {
    fn decode(&mut self, payloads: &[Option<&[u8]>]) -> Decoded {
        let mut bad = Vec::new();
        let mut rows = 0;
        for (index, payload) in payloads.iter().enumerate() {
            match self.append(*payload) {
                Ok(()) => rows += 1,
                Err(reason) => {
                    self.columns.iter_mut().for_each(|column| column.truncate(rows));
                    bad.push((index, reason));
                }
            }
        }
        Decoded { rows: finish_batch(&self.schema, &mut self.columns, rows), bad }
    }
}

/// Appends a number of fixed width in either byte order.
macro_rules! push_number {
    ($values:expr, $native:ty, $bytes:expr, $little:expr, $wrong:expr) => {{
        let bytes = $bytes.try_into().map_err(|_| $wrong())?;
        $values.push(if $little { <$native>::from_le_bytes(bytes) } else { <$native>::from_be_bytes(bytes) });
    }};
}

fn append(column: &mut ColumnBuilder, bytes: &[u8], little: bool) -> Result<(), String> {
    let field = &column.field;
    let wrong = || format!("column '{}': {} bytes are no {}", field.name(), bytes.len(), sql_type(field.data_type()));
    match &mut column.values {
        Values::Utf8(values) => {
            std::str::from_utf8(bytes).map_err(|_| format!("column '{}': the bytes are not UTF-8", field.name()))?;
            values.data.extend_from_slice(bytes);
            if !values.end_value() {
                return Err(format!("column '{}': too much for one batch", field.name()));
            }
        }
        Values::Binary(values) => {
            values.data.extend_from_slice(bytes);
            if !values.end_value() {
                return Err(format!("column '{}': too much for one batch", field.name()));
            }
        }
        Values::Boolean(values) => match bytes {
            [byte] => values.append(*byte != 0),
            _ => return Err(wrong()),
        },
        Values::Int8(values) => push_number!(values, i8, bytes, little, wrong),
        Values::Int16(values) => push_number!(values, i16, bytes, little, wrong),
        Values::Int32(values) => push_number!(values, i32, bytes, little, wrong),
        Values::Int64(values) => push_number!(values, i64, bytes, little, wrong),
        Values::Float32(values) => push_number!(values, f32, bytes, little, wrong),
        Values::Float64(values) => push_number!(values, f64, bytes, little, wrong),
        _ => return Err(wrong()),
    }
    column.appended();
    Ok(())
}

/// Encodes the only column.
pub struct RawEncoder {
    schema: SchemaRef,
    options: RawOptions,
}

impl RawEncoder {
    pub fn new(schema: &SchemaRef, options: RawOptions) -> Self {
        RawEncoder { schema: schema.clone(), options }
    }
}

/// Writes one number of a primitive column.
macro_rules! write_number {
    ($array:expr, $arrow:ty, $row:expr, $little:expr, $out:expr) => {{
        let value = $array.as_primitive::<$arrow>().value($row);
        $out.extend_from_slice(&if $little { value.to_le_bytes() } else { value.to_be_bytes() });
    }};
}

impl RowEncoder for RawEncoder {
    fn encode(&mut self, rows: &RecordBatch, out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<Vec<RefusedRow>, SinkError> {
        let [column] = rows.columns() else {
            return Err(SinkError {
                retry: false,
                message: format!("the format 'raw' carries exactly one column, not {}", rows.num_columns()),
            });
        };
        if !supports(column.data_type()) {
            return Err(SinkError {
                retry: false,
                message: format!("the format 'raw' can't carry the type {}", sql_type(column.data_type())),
            });
        }
        let little = self.options.little_endian;
        let mut refused = Vec::new();
        for row in 0..rows.num_rows() {
            if column.is_null(row) {
                refused.push(RefusedRow {
                    row,
                    reason: format!("column '{}': the format 'raw' can't write NULL", self.schema.field(0).name()),
                });
            } else {
                match column.data_type() {
                    DataType::Utf8 => out.extend_from_slice(column.as_string::<i32>().value(row).as_bytes()),
                    DataType::Binary => out.extend_from_slice(column.as_binary::<i32>().value(row)),
                    DataType::Boolean => out.push(u8::from(column.as_boolean().value(row))),
                    DataType::Int8 => write_number!(column, Int8Type, row, little, out),
                    DataType::Int16 => write_number!(column, Int16Type, row, little, out),
                    DataType::Int32 => write_number!(column, Int32Type, row, little, out),
                    DataType::Int64 => write_number!(column, Int64Type, row, little, out),
                    DataType::Float32 => write_number!(column, Float32Type, row, little, out),
                    _ => write_number!(column, Float64Type, row, little, out),
                }
            }
            ends.push(out.len());
        }
        Ok(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{check, decoder, encoder};
    use super::*;
    use arrow_array::{ArrayRef, Float64Array, Int32Array, StringArray};
    use arrow_schema::{Field, Schema};
    use std::sync::Arc;
    use streamshield_core::table::{ColumnKind, TableDefinition};

    fn table(data_type: DataType, options: &[(&str, &str)]) -> (TableDefinition, SchemaRef) {
        let field = Arc::new(Field::new("v", data_type, true));
        let mut all: std::collections::BTreeMap<_, _> = options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        all.insert("format".into(), "raw".into());
        let columns = vec![Column { field: field.clone(), kind: ColumnKind::Physical }];
        (TableDefinition { name: "t".into(), columns, options: all, primary_key: vec![] }, Arc::new(Schema::new(vec![field])))
    }

    fn round_trip(array: ArrayRef, options: &[(&str, &str)]) -> Vec<u8> {
        let (table, schema) = table(array.data_type().clone(), options);
        let rows = RecordBatch::try_new(schema.clone(), vec![array]).unwrap();
        let (mut out, mut ends) = (vec![], vec![]);
        assert_eq!(encoder(&table, FormatScope::Value, &schema).unwrap().encode(&rows, &mut out, &mut ends).unwrap(), []);
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let payloads: Vec<_> = starts.zip(&ends).map(|(start, end)| Some(&out[start..*end])).collect();
        assert_eq!(decoder(&table, FormatScope::Value, &schema).unwrap().decode(&payloads).rows, rows);
        out
    }

    #[test]
    fn values_are_their_bytes() {
        assert_eq!(round_trip(Arc::new(StringArray::from(vec!["a", "", "é"])), &[]), "aé".as_bytes());
        assert_eq!(round_trip(Arc::new(Int32Array::from(vec![1, -1])), &[]), [0, 0, 0, 1, 255, 255, 255, 255]);
        assert_eq!(round_trip(Arc::new(Int32Array::from(vec![1])), &[("raw.endianness", "little-endian")]), [1, 0, 0, 0]);
        round_trip(Arc::new(Float64Array::from(vec![0.1, f64::INFINITY])), &[]);
    }

    #[test]
    fn bytes_of_a_wrong_width_or_charset_are_bad() {
        let (numbers, schema) = table(DataType::Int32, &[]);
        let decoded = decoder(&numbers, FormatScope::Value, &schema).unwrap().decode(&[Some(b"abcde"), Some(b"abcd"), None]);
        assert_eq!(decoded.rows.num_rows(), 1);
        assert_eq!(decoded.bad, [(0, "column 'v': 5 bytes are no INT".to_string()), (2, "the record has no value".to_string())]);
        let (texts, schema) = table(DataType::Utf8, &[]);
        assert_eq!(decoder(&texts, FormatScope::Value, &schema).unwrap().decode(&[Some(b"\xff")]).bad.len(), 1);
    }

    #[test]
    fn null_other_charsets_and_more_columns_are_refused() {
        let (table_of_text, schema) = table(DataType::Utf8, &[]);
        let rows = RecordBatch::try_new(schema.clone(), vec![Arc::new(StringArray::from(vec![None, Some("x")]))]).unwrap();
        let (mut out, mut ends) = (vec![], vec![]);
        let refused = encoder(&table_of_text, FormatScope::Value, &schema).unwrap().encode(&rows, &mut out, &mut ends).unwrap();
        assert_eq!((refused.len(), ends, out.as_slice()), (1, vec![0, 1], &b"x"[..]));
        let two = [table_of_text.columns.clone(), table_of_text.columns.clone()].concat();
        assert_eq!(check(&table_of_text, &two, FormatScope::Value).len(), 1);
        let (latin, _) = table(DataType::Utf8, &[("raw.charset", "ISO-8859-1")]);
        assert_eq!(check(&latin, &latin.columns, FormatScope::Value)[0].key, "raw.charset");
    }
}

//! Formats: the bytes of one record to one row, and one row to the bytes of one record.
//!
//! | format | reads and writes |
//! |---|---|
//! | [`json`] | one JSON object per record |
//! | [`csv`] | one line of separated values per record |
//! | [`raw`] | one column: the bytes themselves |
//!
//! Option names and defaults are Flink's (`format`, `value.format`, `key.format`, `json.…`, `value.json.…`); where the
//! reading or writing differs, `README.md` says so.
//!
//! Invariants of every decoder:
//! - **Isolation**: no bytes of one payload take part in the row of another; one payload gives one row or one entry in
//!   [`Decoded::bad`], in the order of the payloads.
//! - **Bounded cost**: a bad payload costs at most a small multiple of its own length; it is never parsed twice with others.
//! - **Determinism**: rows depend on the payloads, the options and the columns asked for, on nothing else.

mod columns;
pub mod csv;
pub mod json;
mod numbers;
pub mod raw;
mod settings;
mod time;
pub(crate) mod view;

use crate::options::refuse;
use arrow_array::RecordBatch;
use arrow_schema::{DataType, SchemaRef, TimeUnit};
pub use settings::columns_of_scope;
use settings::{FormatKind, Settings};
use streamshield_core::ports::sink::{RefusedRow, SinkError};
use streamshield_core::table::{Column, OptionError, TableDefinition};
pub use time::TimestampStandard;

/// Which part of a record the format reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatScope {
    /// The value: `format` or `value.format`.
    Value,
    /// The key: `key.format`, the columns of `key.fields`.
    Key,
}

/// Rows of the good payloads, and why the others are bad.
pub struct Decoded {
    pub rows: RecordBatch,
    /// Index of the payload and one sentence, in the order of the payloads.
    pub bad: Vec<(usize, String)>,
}

/// Decodes records into rows of one schema.
pub trait RecordDecoder: Send {
    /// One row per good payload, in their order. A payload of `None` is a key that is not there (a row of nulls) or a
    /// value that is not there (a tombstone: bad, unless the connector has taken it out before).
    fn decode(&mut self, payloads: &[Option<&[u8]>]) -> Decoded;
}

/// Encodes rows of one schema into records.
pub trait RowEncoder: Send {
    /// Row i's bytes end at the i-th end pushed, and begin where the row before ends; the first begins at the length that
    /// `out` had. A refused row pushes an end as well, with an empty range.
    fn encode(&mut self, rows: &RecordBatch, out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<Vec<RefusedRow>, SinkError>;
}

/// A decoder for the columns of `schema`, which are columns of the table's scope, in any order.
pub fn decoder(table: &TableDefinition, scope: FormatScope, schema: &SchemaRef) -> Result<Box<dyn RecordDecoder>, OptionError> {
    let settings = Settings::read(table, scope).map_err(first)?;
    let names = settings.record_names(table, schema);
    Ok(match &settings.format {
        FormatKind::Json(options) => Box::new(json::JsonDecoder::new(schema, &names, scope, options)),
        FormatKind::Csv(options) => {
            let (fields, places) = settings.places(table, schema)?;
            Box::new(csv::CsvDecoder::new(schema, fields, &places, scope, options))
        }
        FormatKind::Raw(options) => Box::new(raw::RawDecoder::new(schema, scope, options)),
    })
}

/// An encoder for rows of exactly this schema.
pub fn encoder(table: &TableDefinition, scope: FormatScope, schema: &SchemaRef) -> Result<Box<dyn RowEncoder>, OptionError> {
    let settings = Settings::read(table, scope).map_err(first)?;
    let names = settings.record_names(table, schema);
    Ok(match settings.format {
        FormatKind::Json(options) => Box::new(json::JsonEncoder::new(schema, &names, &options)),
        FormatKind::Csv(options) => Box::new(csv::CsvEncoder::new(schema, options)),
        FormatKind::Raw(options) => Box::new(raw::RawEncoder::new(schema, options)),
    })
}

/// Everything wrong with the format's options and the types of its columns.
pub fn check(table: &TableDefinition, columns_of_scope: &[Column], scope: FormatScope) -> Vec<OptionError> {
    let settings = match Settings::read(table, scope) {
        Ok(settings) => settings,
        Err(errors) => return errors,
    };
    let mut errors = settings::unknown_options(table, scope);
    if let FormatKind::Raw(_) = settings.format {
        errors.extend(raw::check_columns(columns_of_scope));
    }
    for column in columns_of_scope {
        let supported = match &settings.format {
            FormatKind::Json(_) => json::supports(column.field.data_type()),
            FormatKind::Csv(_) => is_scalar(column.field.data_type()),
            FormatKind::Raw(_) => raw::supports(column.field.data_type()),
        };
        if !supported {
            let message = format!(
                "the format '{}' can't carry column '{}' of type {}",
                settings.format.name(),
                column.field.name(),
                sql_type(column.field.data_type())
            );
            errors.push(refuse(settings.format_key, message, None));
        }
    }
    errors
}

/// Whether the table's formats read this option, so that the connector need not know it.
pub fn is_format_option(table: &TableDefinition, key: &str) -> bool {
    matches!(key, "format" | "value.format" | "key.format")
        || [FormatScope::Value, FormatScope::Key]
            .into_iter()
            .any(|scope| settings::option_prefix(table, scope).is_some_and(|prefix| key.starts_with(&prefix)))
}

/// The SQL name of a type, for messages.
pub(crate) fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Float32 => "FLOAT".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Utf8 => "STRING".into(),
        DataType::Binary => "BYTES".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Time32(_) => "TIME".into(),
        DataType::Timestamp(unit, zone) => {
            let precision = match unit {
                TimeUnit::Second => 0,
                TimeUnit::Millisecond => 3,
                TimeUnit::Microsecond => 6,
                TimeUnit::Nanosecond => 9,
            };
            format!("{}({precision})", if zone.is_some() { "TIMESTAMP_LTZ" } else { "TIMESTAMP" })
        }
        DataType::List(item) => format!("ARRAY<{}>", sql_type(item.data_type())),
        DataType::Struct(_) => "ROW".into(),
        DataType::Map(..) => "MAP".into(),
        other => other.to_string(),
    }
}

/// `yyyy-MM-dd HH:mm:ss[.SSS]` in UTC to milliseconds since 1970, for options.
pub(crate) fn timestamp_ms(text: &str) -> Option<i64> {
    time::parse_timestamp(text.trim().trim_end_matches('Z').as_bytes(), false)?.to_unit(TimeUnit::Millisecond)
}

/// Types that are one piece of text.
fn is_scalar(data_type: &DataType) -> bool {
    streamshield_core::table::is_supported_type(data_type) && !data_type.is_nested()
}

fn first(mut errors: Vec<OptionError>) -> OptionError {
    if errors.is_empty() { refuse("", "the format's options are wrong", None) } else { errors.swap_remove(0) }
}

//! A SQL table as the connectors see it: columns, options and keys, after parsing and before planning.

use arrow_schema::{DataType, FieldRef, SchemaRef};
use std::collections::BTreeMap;

/// Where a column's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// Decoded from the record by the format.
    Physical,
    /// `METADATA [FROM 'key'] [VIRTUAL]`: given by the connector (`timestamp`, `offset`, `partition`, `topic`, `headers`…).
    Metadata { key: String, is_virtual: bool },
    /// `name AS expression`: computed by the engine's scan; never reaches a connector.
    Computed,
}

/// One column of a `CREATE TABLE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub field: FieldRef,
    pub kind: ColumnKind,
}

/// One `CREATE TABLE … WITH (…)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDefinition {
    pub name: String,
    pub columns: Vec<Column>,
    /// The `WITH` options, keys as written (`topic`, `scan.startup.mode`, `properties.bootstrap.servers`…).
    pub options: BTreeMap<String, String>,
    /// Column names of `PRIMARY KEY (…) NOT ENFORCED`.
    pub primary_key: Vec<String>,
}

impl TableDefinition {
    /// The `connector` option; `check` has made sure that it is there.
    pub fn connector(&self) -> &str {
        self.options.get("connector").map_or("", String::as_str)
    }
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }
}

/// What a scan wants of a connector: only the columns that the query reads, in this order.
#[derive(Clone, Debug)]
pub struct SourceRequest {
    pub table: TableDefinition,
    /// Never `Computed`. `schema` has the same columns in the same order.
    pub columns: Vec<Column>,
    pub schema: SchemaRef,
    /// Keep each row's original bytes until its step is done, for the dead-letter topic or to name the record that stops the job.
    pub keep_origins: bool,
}

/// What a pipeline gives to a sink: all physical and writable metadata columns of the table, in table order.
#[derive(Clone, Debug)]
pub struct SinkRequest {
    pub table: TableDefinition,
    pub columns: Vec<Column>,
    pub schema: SchemaRef,
}

/// An option that a connector refuses, for `check`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OptionError {
    /// The offending key in `WITH (…)`, so that the error can point at it; empty when an option is missing.
    pub key: String,
    pub message: String,
    pub hint: Option<String>,
}

/// Arrow types of the SQL types that a format must be able to decode and encode.
///
/// `BOOLEAN TINYINT SMALLINT INT BIGINT FLOAT DOUBLE DECIMAL(p,s) STRING BYTES DATE TIME TIMESTAMP(p) TIMESTAMP_LTZ(p)
/// ARRAY<T> ROW<…> MAP<STRING, T>` are `Boolean Int8 Int16 Int32 Int64 Float32 Float64 Decimal128 Utf8 Binary Date32
/// Time32(ms) Timestamp(ms | µs | ns, None) Timestamp(…, "UTC") List Struct Map`. Timestamps of precision 0 to 3 are milliseconds,
/// to 6 microseconds, to 9 nanoseconds. Views and dictionaries never occur.
pub fn is_supported_type(data_type: &DataType) -> bool {
    use DataType::*;
    match data_type {
        Boolean | Int8 | Int16 | Int32 | Int64 | Float32 | Float64 | Decimal128(..) | Utf8 | Binary | Date32 | Time32(_)
        | Timestamp(..) => true,
        List(item) => is_supported_type(item.data_type()),
        Struct(fields) => fields.iter().all(|field| is_supported_type(field.data_type())),
        Map(entries, _) => is_supported_type(entries.data_type()),
        _ => false,
    }
}

//! `filesystem`: a folder of files with one record per line, as a bounded source and as an exactly-once sink.
//!
//! - [`options`]: what a table may say.
//! - [`source`]: each file is a split, a position is a byte offset.
//! - [`sink`]: an epoch is a file, hidden until the epoch is committed.
//!
//! The folder must be the same for all workers: a local folder for one machine, a shared one for several.

mod options;
mod sink;
mod source;

use arrow_schema::DataType;
use options::FilesystemOptions;
use std::sync::Arc;
use streamshield_core::ports::sink::{Sink, SinkConnector, SinkError};
use streamshield_core::ports::source::{Source, SourceConnector, SourceError, SourceErrorKind};
use streamshield_core::table::{OptionError, SinkRequest, SourceRequest, TableDefinition};

/// Makes filesystem sources and sinks.
#[derive(Clone, Copy, Debug, Default)]
pub struct FilesystemConnector;

impl SourceConnector for FilesystemConnector {
    fn name(&self) -> &'static str {
        "filesystem"
    }

    fn check(&self, table: &TableDefinition) -> Vec<OptionError> {
        options::check(table)
    }

    /// As in Flink: where a row's file is, and its name.
    fn metadata_type(&self, key: &str) -> Option<DataType> {
        matches!(key, "file.path" | "file.name").then_some(DataType::Utf8)
    }

    fn open(&self, request: SourceRequest) -> Result<Arc<dyn Source>, SourceError> {
        let options = FilesystemOptions::read(&request.table)
            .map_err(|errors| SourceError { kind: SourceErrorKind::Stop, message: joined(errors) })?;
        Ok(Arc::new(source::FilesystemSource { options, request }))
    }
}

impl SinkConnector for FilesystemConnector {
    fn name(&self) -> &'static str {
        "filesystem"
    }

    fn check(&self, table: &TableDefinition) -> Vec<OptionError> {
        options::check(table)
    }

    fn metadata_type(&self, _key: &str) -> Option<DataType> {
        None
    }

    fn open(&self, request: SinkRequest) -> Result<Arc<dyn Sink>, SinkError> {
        let options = FilesystemOptions::read(&request.table).map_err(|errors| SinkError { retry: false, message: joined(errors) })?;
        Ok(Arc::new(sink::FilesystemSink { options, request }))
    }
}

fn joined(errors: Vec<OptionError>) -> String {
    errors.into_iter().map(|error| error.message).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod sink_test;
#[cfg(test)]
mod source_test;

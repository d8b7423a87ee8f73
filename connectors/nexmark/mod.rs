//! `nexmark`: the auction site of the Nexmark benchmark, as a source.
//!
//! A table reads one of three kinds of events: `'nexmark.table' = 'bid' | 'auction' | 'person'`. Its columns are those of
//! Flink's Nexmark, by name and type; a table may leave columns out, and only those a query reads are generated.
//!
//! - [`options`]: what a table may say.
//! - [`source`]: rows from their ordinals.
//! - [`model`]: which event stands where, and whom it refers to.
//! - [`columns`]: the values of each column.

mod columns;
mod model;
mod options;
mod source;

use arrow_schema::DataType;
use options::NexmarkOptions;
use std::sync::Arc;
use streamshield_core::ports::source::{Source, SourceConnector, SourceError, SourceErrorKind};
use streamshield_core::table::{OptionError, SourceRequest, TableDefinition};

/// Makes Nexmark sources.
#[derive(Clone, Copy, Debug, Default)]
pub struct NexmarkConnector;

impl SourceConnector for NexmarkConnector {
    fn name(&self) -> &'static str {
        "nexmark"
    }

    fn check(&self, table: &TableDefinition) -> Vec<OptionError> {
        NexmarkOptions::read(table).err().unwrap_or_default()
    }

    fn metadata_type(&self, _key: &str) -> Option<DataType> {
        None
    }

    fn open(&self, request: SourceRequest) -> Result<Arc<dyn Source>, SourceError> {
        let options = NexmarkOptions::read(&request.table).map_err(|errors| {
            let messages: Vec<String> = errors.into_iter().map(|error| error.message).collect();
            SourceError { kind: SourceErrorKind::Stop, message: messages.join("; ") }
        })?;
        Ok(source::open(options, request))
    }
}

#[cfg(test)]
mod source_test;

//! `datagen`: rows of any schema, made up, with Flink's options.
//!
//! Each column is random, a sequence, or event time. A row is a function of its ordinal (see [`crate::generator`]), so the
//! source is replayable, unlike Flink's, which draws anew after a restart.
//!
//! - [`options`]: what a table may say, per table and per field.
//! - [`source`]: rows from their ordinals.
//! - [`columns`]: the values.

mod columns;
mod options;
mod source;

use arrow_schema::DataType;
use options::DatagenOptions;
use std::sync::Arc;
use streamshield_core::ports::source::{Source, SourceConnector, SourceError, SourceErrorKind};
use streamshield_core::table::{OptionError, SourceRequest, TableDefinition};

/// Makes datagen sources.
#[derive(Clone, Copy, Debug, Default)]
pub struct DatagenConnector;

impl SourceConnector for DatagenConnector {
    fn name(&self) -> &'static str {
        "datagen"
    }

    fn check(&self, table: &TableDefinition) -> Vec<OptionError> {
        DatagenOptions::read(table).err().unwrap_or_default()
    }

    fn metadata_type(&self, _key: &str) -> Option<DataType> {
        None
    }

    fn open(&self, request: SourceRequest) -> Result<Arc<dyn Source>, SourceError> {
        let options = DatagenOptions::read(&request.table).map_err(|errors| {
            let messages: Vec<String> = errors.into_iter().map(|error| error.message).collect();
            SourceError { kind: SourceErrorKind::Stop, message: messages.join("; ") }
        })?;
        source::open(options, request)
    }
}

#[cfg(test)]
mod source_test;

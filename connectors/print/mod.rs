//! `print`: a sink that writes rows to the process's standard output, as Flink prints them.
//!
//! Rows are printed when their epoch has been committed, so that a row that is rolled back is never seen. Nothing is durable:
//! rows that were committed but not printed when the process ended are not printed later.
//!
//! - [`options`]: what a table may say.
//! - [`sink`]: rows to text to the terminal.

mod options;
mod sink;

use arrow_schema::DataType;
use options::PrintOptions;
use std::sync::Arc;
use streamshield_core::ports::sink::{Sink, SinkConnector, SinkError};
use streamshield_core::table::{OptionError, SinkRequest, TableDefinition};

/// Makes print sinks.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrintConnector;

impl SinkConnector for PrintConnector {
    fn name(&self) -> &'static str {
        "print"
    }

    fn check(&self, table: &TableDefinition) -> Vec<OptionError> {
        PrintOptions::read(table).err().unwrap_or_default()
    }

    fn metadata_type(&self, _key: &str) -> Option<DataType> {
        None
    }

    fn open(&self, request: SinkRequest) -> Result<Arc<dyn Sink>, SinkError> {
        let options = PrintOptions::read(&request.table).map_err(|errors| {
            let messages: Vec<String> = errors.into_iter().map(|error| error.message).collect();
            SinkError { retry: false, message: messages.join("; ") }
        })?;
        Ok(Arc::new(sink::PrintSink { options }))
    }
}

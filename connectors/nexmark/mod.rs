//! `nexmark`: the auction site of the Nexmark benchmark, as a source.
//!
//! A table reads one of three kinds of events: `'nexmark.table' = 'bid' | 'auction' | 'person'`. Its columns are those of
//! Flink's Nexmark, by name and type; a table may leave columns out, and only those a query reads are generated.
//!
//! - [`options`]: what a table may say.
//! - [`model`]: which event stands where, and whom it refers to.
//! - [`columns`]: the values of each column.

mod columns;
mod model;
mod options;

use crate::generator::{Generator, GeneratorSource};
use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, SchemaRef};
use model::Model;
use options::NexmarkOptions;
use std::sync::Arc;
use streamshield_core::ids::Offset;
use streamshield_core::ports::source::{Source, SourceConnector, SourceError, SourceErrorKind, SplitId};
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
        let model = Model::new(&options);
        Ok(Arc::new(GeneratorSource {
            container: format!("nexmark.{}", options.event.name()),
            generator: Arc::new(NexmarkGenerator { model, schema: request.schema }),
            shape: options.shape,
            clock: options.clock,
            keep_origins: request.keep_origins,
        }))
    }
}

struct NexmarkGenerator {
    model: Model,
    schema: SchemaRef,
}

impl Generator for NexmarkGenerator {
    fn rows(&self, split: SplitId, from: Offset, count: usize) -> RecordBatch {
        let rows = from..from + count as Offset;
        let column = |field: &arrow_schema::FieldRef| columns::generate(&self.model, field, split, rows.clone());
        let arrays = self.schema.fields().iter().map(column).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)
            .expect("each column is made for its field, a value per row")
    }

    fn row_at_event(&self, split: SplitId, event: i64) -> Offset {
        self.model.row_at_event(split, event)
    }

    fn event_of_row(&self, split: SplitId, row: Offset) -> i64 {
        self.model.event_of_row(split, row)
    }

    fn row_bytes(&self) -> usize {
        self.schema.fields().iter().map(|field| if *field.data_type() == DataType::Utf8 { 40 } else { 8 }).sum::<usize>().max(1)
    }
}

#[cfg(test)]
mod tests;

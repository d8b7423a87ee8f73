//! Rows of one kind of event, a column at a time. Splits, pacing and positions are those of [`crate::generator`].

use super::columns;
use super::model::Model;
use super::options::NexmarkOptions;
use crate::generator::{Generator, GeneratorSource};
use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, SchemaRef};
use std::sync::Arc;
use streamshield_core::ids::Offset;
use streamshield_core::ports::source::{Source, SplitId};
use streamshield_core::table::SourceRequest;

/// A source of the columns that are asked for.
pub(super) fn open(options: NexmarkOptions, request: SourceRequest) -> Arc<dyn Source> {
    let model = Model::new(&options);
    Arc::new(GeneratorSource {
        container: format!("nexmark.{}", options.event.name()),
        generator: Arc::new(NexmarkGenerator { model, schema: request.schema }),
        shape: options.shape,
        clock: options.clock,
        keep_origins: request.keep_origins,
    })
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

//! Rows from their ordinals, a column at a time. Splits, pacing and positions are those of [`crate::generator`].

use super::columns::FieldRule;
use super::options::DatagenOptions;
use crate::generator::{Generator, GeneratorSource};
use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;
use std::sync::Arc;
use streamshield_core::ids::Offset;
use streamshield_core::ports::source::{Source, SourceError, SourceErrorKind, SplitId};
use streamshield_core::table::SourceRequest;

/// A source of the columns that are asked for.
pub(super) fn open(options: DatagenOptions, request: SourceRequest) -> Result<Arc<dyn Source>, SourceError> {
    let place = |name: &String| request.table.columns.iter().position(|column| column.field.name() == name);
    let columns = request
        .schema
        .fields()
        .iter()
        .map(|field| place(field.name()).and_then(|place| Some((place as u64, options.fields.get(field.name())?.clone()))));
    let columns: Option<Vec<_>> = columns.collect();
    let Some(columns) = columns else {
        return Err(SourceError {
            kind: SourceErrorKind::Stop,
            message: format!("table '{}' lacks a column that is asked for", request.table.name),
        });
    };
    Ok(Arc::new(GeneratorSource {
        container: "datagen".into(),
        generator: Arc::new(DatagenGenerator {
            splits: i64::from(options.shape.splits),
            seed: options.shape.seed,
            columns,
            schema: request.schema,
        }),
        shape: options.shape,
        clock: options.clock,
        keep_origins: request.keep_origins,
    }))
}

struct DatagenGenerator {
    splits: i64,
    seed: u64,
    /// The column's place in the table, which is its stream of random numbers, and its rule.
    columns: Vec<(u64, FieldRule)>,
    schema: SchemaRef,
}

impl Generator for DatagenGenerator {
    fn rows(&self, split: SplitId, from: Offset, count: usize) -> RecordBatch {
        let ordinals: Vec<i64> = (from..from + count as Offset).map(|row| self.event_of_row(split, row)).collect();
        let arrays = self
            .columns
            .iter()
            .zip(self.schema.fields())
            .map(|((place, rule), field)| rule.generate(field, self.seed, *place, &ordinals))
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)
            .expect("each column is made for its field, a value per row")
    }

    /// Rows are dealt out to the splits in turn.
    fn row_at_event(&self, split: SplitId, event: i64) -> Offset {
        let behind = event - i64::from(split);
        (behind.div_euclid(self.splits) + i64::from(behind.rem_euclid(self.splits) != 0)).max(0)
    }

    fn event_of_row(&self, split: SplitId, row: Offset) -> i64 {
        row * self.splits + i64::from(split)
    }

    fn row_bytes(&self) -> usize {
        self.columns.iter().map(|(_, rule)| rule.bytes()).sum::<usize>().max(1)
    }
}

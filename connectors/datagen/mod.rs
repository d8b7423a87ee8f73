//! `datagen`: rows of any schema, made up, with Flink's options.
//!
//! Each column is random, a sequence, or event time. A row is a function of its ordinal (see [`crate::generator`]), so the
//! source is replayable, unlike Flink's, which draws anew after a restart.
//!
//! - [`options`]: what a table may say, per table and per field.
//! - [`columns`]: the values.

mod columns;
mod options;

use crate::generator::{Generator, GeneratorSource};
use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, SchemaRef};
use columns::FieldRule;
use options::DatagenOptions;
use std::sync::Arc;
use streamshield_core::ids::Offset;
use streamshield_core::ports::source::{Source, SourceConnector, SourceError, SourceErrorKind, SplitId};
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

#[cfg(test)]
mod tests;

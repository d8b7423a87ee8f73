//! The head of a source stage: connector columns → declared columns → watermark.
//!
//! The watermark is computed here, row by row and before any filter, since a filter must not change which rows are late. A row whose
//! expressions fail or whose event time is null is a bad record; it moves no watermark.

use crate::operators::assign_windows::take_rows;
use crate::operators::expression::{Evaluated, Evaluator};
use crate::operators::time::milliseconds;
use crate::operators::{EpochContext, OperatorError, RejectedRow, batch_of};
use crate::plan::{Projection, SourceScan, WATERMARK_COLUMN, WatermarkPlan};
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use std::sync::Arc;
use streamshield_core::watermark::Watermark;

/// A [`SourceScan`] at run time.
pub struct Scan {
    project: Evaluator,
    projected: SchemaRef,
    event_time: Option<EventTime>,
    processing_time: bool,
    output: SchemaRef,
}

struct EventTime {
    time_column: usize,
    watermark: Evaluator,
}

/// What a scan makes of a batch.
#[derive(Debug)]
pub struct Scanned {
    /// Of [`Scan::schema`].
    pub rows: RecordBatch,
    /// Index in the connector's batch of each row in `rows`; None: all rows are there.
    pub kept: Option<Vec<u32>>,
    pub rejected: Vec<RejectedRow>,
    /// The running watermark after the batch.
    pub watermark: Watermark,
}

impl Scan {
    const NAME: &str = "Scan";

    pub fn new(plan: &SourceScan) -> Result<Scan, OperatorError> {
        let Projection { expressions, schema } = &plan.project;
        let mut project = Evaluator::new(Self::NAME, plan.input_schema.clone());
        project.add_projection(expressions, schema)?;
        let mut scan = Scan { project, projected: schema.clone(), event_time: None, processing_time: false, output: schema.clone() };
        match &plan.watermark {
            None => {}
            Some(WatermarkPlan::ProcessingTime { .. }) => scan.processing_time = true,
            Some(WatermarkPlan::EventTime { time_column, expression, .. }) => {
                let time = schema.fields().get(*time_column).map(|field| field.data_type());
                if !matches!(time, Some(DataType::Timestamp(..))) || expression.list.len() != 1 {
                    return Err(OperatorError::plan(
                        Self::NAME,
                        format!("a watermark of {} expressions for a time column of type {time:?}", expression.list.len()),
                    ));
                }
                let mut watermark = Evaluator::new(Self::NAME, schema.clone());
                watermark.add(expression);
                scan.event_time = Some(EventTime { time_column: *time_column, watermark });
                let mut fields = schema.fields().to_vec();
                fields.push(Arc::new(Field::new(WATERMARK_COLUMN, DataType::Int64, false)));
                scan.output = Arc::new(Schema::new(fields));
            }
        }
        Ok(scan)
    }

    /// Schema of the rows: the projection's, with `__watermark` behind it when the plan has an event-time watermark.
    pub fn schema(&self) -> SchemaRef {
        self.output.clone()
    }

    /// The watermark of processing time: rows with the time `now` may still come in this epoch.
    pub fn processing_time(now_ms: i64) -> Watermark {
        Watermark(now_ms.saturating_sub(1))
    }

    /// Rejected rows are given by their index in `batch`.
    pub fn process(&mut self, batch: &RecordBatch, running: Watermark, epoch: &mut EpochContext) -> Result<Scanned, OperatorError> {
        let Evaluated { rows, mut values, kept, refused } = self.project.evaluate(batch, epoch)?;
        let count = rows.num_rows();
        let rows = batch_of(self.projected.clone(), values.swap_remove(0), count).map_err(OperatorError::arrow(Self::NAME))?;
        let mut scanned = Scanned { rows, kept, rejected: Vec::new(), watermark: running };
        scanned.rejected.extend(refused.into_iter().map(|(row, reason)| RejectedRow { row, reason }));
        if self.processing_time {
            scanned.watermark.advance(Self::processing_time(epoch.now_ms));
        }
        if let Some(event_time) = &self.event_time {
            event_time.apply(&mut scanned, epoch, &self.output)?;
        }
        scanned.rejected.sort_by_key(|rejected| rejected.row);
        Ok(scanned)
    }
}

impl EventTime {
    /// Takes out rows without a time and appends the running watermark before each row.
    fn apply(&self, scanned: &mut Scanned, epoch: &mut EpochContext, output: &SchemaRef) -> Result<(), OperatorError> {
        let time = scanned.rows.column(self.time_column);
        if time.null_count() > 0 {
            let (kept, missing): (Vec<u32>, Vec<u32>) = (0..scanned.rows.num_rows() as u32).partition(|row| time.is_valid(*row as usize));
            let reason = format!("the event time \"{}\" is null", scanned.rows.schema().field(self.time_column).name());
            let rows = take_rows(&scanned.rows, &kept)?;
            scanned.leave_out(rows, kept, missing.into_iter().map(|row| (row as usize, reason.clone())));
        }
        let Evaluated { rows, values, kept, refused } = self.watermark.evaluate(&scanned.rows, epoch)?;
        if let Some(kept) = kept {
            scanned.leave_out(rows, kept, refused);
        }
        let advances =
            milliseconds(&values[0][0]).ok_or_else(|| OperatorError::plan(Scan::NAME, "the watermark expression gives no timestamp"))?;
        let mut before = Vec::with_capacity(scanned.rows.num_rows());
        let mut running = scanned.watermark.0;
        match advances.nulls.filter(|nulls| nulls.null_count() > 0) {
            None => {
                for &advance in advances.values.iter() {
                    before.push(running);
                    running = running.max(advance);
                }
            }
            // A null watermark says nothing.
            Some(nulls) => {
                for (&advance, valid) in advances.values.iter().zip(nulls.iter()) {
                    before.push(running);
                    running = if valid { running.max(advance) } else { running };
                }
            }
        }
        // MAX is said of an input that has ended, and closes the same windows.
        scanned.watermark = Watermark(running.min(Watermark::MAX.0 - 1));
        let mut columns: Vec<ArrayRef> = scanned.rows.columns().to_vec();
        let count = before.len();
        columns.push(Arc::new(Int64Array::from(before)));
        scanned.rows = batch_of(output.clone(), columns, count).map_err(OperatorError::arrow(Scan::NAME))?;
        Ok(())
    }
}

impl Scanned {
    /// `kept` and `refused` count the present rows.
    fn leave_out(&mut self, rows: RecordBatch, kept: Vec<u32>, refused: impl IntoIterator<Item = (usize, String)>) {
        let present = self.kept.take();
        let connector_row = |row: u32| present.as_ref().map_or(row, |present| present[row as usize]);
        self.rejected.extend(refused.into_iter().map(|(row, reason)| RejectedRow { row: connector_row(row as u32) as usize, reason }));
        self.kept = Some(kept.into_iter().map(connector_row).collect());
        self.rows = rows;
    }
}

//! Gives each row its windows and says whether the row is late by its own split's watermark (E-5).
//!
//! The columns of a row are never copied where they need not be: a row is in one TUMBLE window, so its batch keeps its columns; a batch of
//! a HOP gives one batch per place of the row in its windows (the latest window of each row, the second latest…) that shares
//! the columns. Only small batches and CUMULATE windows, of which rows have different numbers, copy rows.
//!
//! Windows start at `offset + n × slide`, also before 1970. A row is late in a window when the watermark *before the row* closes it.

use crate::operators::rows::RowMap;
use crate::operators::time::{milliseconds, timestamps};
use crate::operators::{OperatorError, batch_of};
use crate::plan::{AssignWindows as AssignWindowsPlan, WindowColumn, WindowKind};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow_buffer::{BooleanBuffer, ScalarBuffer};
use arrow_schema::{DataType, SchemaRef};
use arrow_select::take::take;
use std::sync::Arc;
use streamshield_core::mutants;
use streamshield_core::ports::state::Window;
use streamshield_core::watermark::Watermark;

/// From this many rows on, HOP gives batches that share columns.
const SHARED_COLUMNS_ROWS: usize = 256;

/// The windows that a time is in, the latest first.
pub fn windows_of(kind: WindowKind, time_ms: i64) -> impl Iterator<Item = Window> {
    // In 128 bits, so that times at the ends of the range are in windows too, cut off there.
    let wide = i128::from;
    let floor = |step: i64, offset: i64| wide(time_ms) - (wide(time_ms) - wide(offset)).rem_euclid(wide(step));
    // All kinds are: `count` windows that start at `start`, `start − start_step`… and end at `end`, `end − end_step`…
    let (start, start_step, end, end_step, count) = match kind {
        WindowKind::Tumble { size_ms, offset_ms } => {
            let start = floor(size_ms, offset_ms);
            (start, 0, start + wide(size_ms), 0, 1)
        }
        WindowKind::Hop { slide_ms, size_ms, offset_ms } => {
            let start = floor(slide_ms, offset_ms);
            (start, wide(slide_ms), start + wide(size_ms), wide(slide_ms), hops(wide(time_ms) - start, slide_ms, size_ms))
        }
        WindowKind::Cumulate { step_ms, max_size_ms, offset_ms } => {
            let start = floor(max_size_ms, offset_ms);
            let closed = (wide(time_ms) - start) / wide(step_ms);
            (start, 0, start + wide(max_size_ms), wide(step_ms), wide(max_size_ms / step_ms) - closed)
        }
    };
    let clamp = move |ms: i128| ms.clamp(wide(i64::MIN), wide(i64::MAX)) as i64;
    (0..count).map(move |n| Window { start_ms: clamp(start - n * start_step), end_ms: clamp(end - n * end_step) })
}

/// How many hopping windows hold a time that is so far behind the start of its latest window.
fn hops(distance: i128, slide_ms: i64, size_ms: i64) -> i128 {
    // The n-th has distance + n × slide < size.
    ((i128::from(size_ms) - 1 - distance).div_euclid(i128::from(slide_ms)) + 1).max(0)
}

/// The largest `offset + n × step` that is not after the time.
fn floor(time_ms: i64, step_ms: i64, offset_ms: i64) -> i64 {
    match time_ms.checked_sub(offset_ms) {
        Some(distance) => time_ms.saturating_sub(distance.rem_euclid(step_ms)),
        None => {
            let rest = (i128::from(time_ms) - i128::from(offset_ms)).rem_euclid(i128::from(step_ms));
            (i128::from(time_ms) - rest).max(i128::from(i64::MIN)) as i64
        }
    }
}

/// A piece of the output: rows with one window each.
struct Piece {
    map: RowMap,
    starts: Vec<i64>,
    ends: Vec<i64>,
}

pub struct AssignWindows {
    plan: AssignWindowsPlan,
}

/// Batches with their rows' origin, and rows without a time.
pub type Assigned = (Vec<(RecordBatch, RowMap)>, Vec<(usize, String)>);

impl AssignWindows {
    const NAME: &str = "AssignWindows";

    pub fn new(plan: &AssignWindowsPlan, input: &SchemaRef) -> Result<Self, OperatorError> {
        let time = input.fields().get(plan.time_column).map(|field| field.data_type());
        if !matches!(time, Some(DataType::Timestamp(..))) {
            return Err(OperatorError::plan(Self::NAME, format!("the time column is {time:?}, not a timestamp")));
        }
        if let Some(column) = plan.watermark_column
            && input.fields().get(column).map(|field| field.data_type()) != Some(&DataType::Int64)
        {
            return Err(OperatorError::plan(Self::NAME, "the watermark column is not Int64"));
        }
        let fits = match plan.kind {
            WindowKind::Tumble { size_ms, .. } => size_ms > 0,
            WindowKind::Hop { slide_ms, size_ms, .. } => slide_ms > 0 && size_ms > 0,
            WindowKind::Cumulate { step_ms, max_size_ms, .. } => step_ms > 0 && max_size_ms > 0 && max_size_ms % step_ms == 0,
        };
        if !fits {
            return Err(OperatorError::plan(Self::NAME, format!("impossible window sizes: {:?}", plan.kind)));
        }
        Ok(AssignWindows { plan: plan.clone() })
    }

    pub fn apply(&self, rows: RecordBatch) -> Result<Assigned, OperatorError> {
        let (rows, kept, refused) = self.rows_with_time(rows)?;
        if rows.num_rows() == 0 {
            return Ok((Vec::new(), refused));
        }
        let times =
            milliseconds(rows.column(self.plan.time_column)).ok_or_else(|| OperatorError::plan(Self::NAME, "no time column"))?.values;
        let mut batches = Vec::new();
        for piece in self.pieces(&times) {
            let batch = self.batch(&rows, &piece)?;
            let map = match &kept {
                None => piece.map,
                Some(kept) => RowMap::Rows((0..batch.num_rows()).map(|row| kept[piece.map.input_row(row)]).collect()),
            };
            batches.push((batch, map));
        }
        Ok((batches, refused))
    }

    /// A row without a time is in no window. A scan refuses it before; here it can only come from a computed time.
    #[allow(clippy::type_complexity)]
    fn rows_with_time(&self, rows: RecordBatch) -> Result<(RecordBatch, Option<Vec<u32>>, Vec<(usize, String)>), OperatorError> {
        let time = rows.column(self.plan.time_column);
        if time.null_count() == 0 {
            return Ok((rows, None, Vec::new()));
        }
        let (kept, missing): (Vec<u32>, Vec<u32>) = (0..rows.num_rows() as u32).partition(|row| time.is_valid(*row as usize));
        let reason = format!("column \"{}\" is null, so the row is in no window", rows.schema().field(self.plan.time_column).name());
        let rows = take_rows(&rows, &kept)?;
        Ok((rows, Some(kept), missing.into_iter().map(|row| (row as usize, reason.clone())).collect()))
    }

    fn pieces(&self, times: &[i64]) -> Vec<Piece> {
        match self.plan.kind {
            WindowKind::Tumble { size_ms, offset_ms } => vec![tumble(times, size_ms, offset_ms)],
            WindowKind::Hop { slide_ms, size_ms, offset_ms } if times.len() >= SHARED_COLUMNS_ROWS => {
                hop(times, slide_ms, size_ms, offset_ms)
            }
            kind => vec![any(times, kind)],
        }
    }

    fn batch(&self, rows: &RecordBatch, piece: &Piece) -> Result<RecordBatch, OperatorError> {
        let taken = match &piece.map {
            RowMap::Rows(indices) => Some(UInt32Array::from(indices.clone())),
            _ => None,
        };
        let moved = |column: &ArrayRef| match &taken {
            None => Ok(column.clone()),
            Some(indices) => take(column, indices, None).map_err(OperatorError::arrow(Self::NAME)),
        };
        let watermark = self.plan.watermark_column.map(|column| moved(rows.column(column))).transpose()?;
        let mut columns = Vec::with_capacity(self.plan.schema.fields().len());
        for (number, column) in rows.columns().iter().enumerate() {
            if Some(number) != self.plan.watermark_column {
                columns.push(moved(column)?);
            }
        }
        for (field, column) in &self.plan.appended {
            columns.push(match column {
                WindowColumn::Start => Self::times(piece.starts.clone().into(), field.data_type())?,
                WindowColumn::End => Self::times(piece.ends.clone().into(), field.data_type())?,
                WindowColumn::Time => Self::times(piece.ends.iter().map(|end| end.saturating_sub(1)).collect(), field.data_type())?,
                WindowColumn::Late => Arc::new(late(&piece.ends, watermark.as_ref())),
            });
        }
        batch_of(self.plan.schema.clone(), columns, piece.starts.len()).map_err(OperatorError::arrow(Self::NAME))
    }

    fn times(values: ScalarBuffer<i64>, data_type: &DataType) -> Result<ArrayRef, OperatorError> {
        timestamps(values, data_type)
            .ok_or_else(|| OperatorError::plan(Self::NAME, format!("a window column is {data_type}, not a timestamp")))
    }
}

fn late(ends: &[i64], watermark: Option<&ArrayRef>) -> BooleanArray {
    let Some(watermark) = watermark else { return BooleanArray::new(BooleanBuffer::new_unset(ends.len()), None) };
    let watermark = watermark.as_primitive::<Int64Type>().values();
    if mutants::is_on("lateness-by-batch") {
        let last = Watermark(watermark.last().copied().unwrap_or(i64::MIN));
        return BooleanArray::new(BooleanBuffer::collect_bool(ends.len(), |row| last.closes(ends[row])), None);
    }
    BooleanArray::new(BooleanBuffer::collect_bool(ends.len(), |row| Watermark(watermark[row]).closes(ends[row])), None)
}

/// Neighbours are mostly in the same window: two comparisons instead of a division.
fn tumble(times: &[i64], size_ms: i64, offset_ms: i64) -> Piece {
    let (mut starts, mut ends) = (Vec::with_capacity(times.len()), Vec::with_capacity(times.len()));
    let (mut start, mut end) = (i64::MAX, i64::MIN);
    for &time in times {
        if time < start || time >= end {
            start = floor(time, size_ms, offset_ms);
            end = start.saturating_add(size_ms);
        }
        starts.push(start);
        ends.push(end);
    }
    Piece { map: RowMap::Same, starts, ends }
}

/// One piece per place in the row's windows. All rows have `size / slide` windows, some have one more.
fn hop(times: &[i64], slide_ms: i64, size_ms: i64, offset_ms: i64) -> Vec<Piece> {
    let latest = tumble(times, slide_ms, offset_ms).starts;
    let windows = |n: i64, starts: Vec<i64>, map| {
        let starts: Vec<i64> = starts.into_iter().map(|start| start.saturating_sub(n * slide_ms)).collect();
        Piece { ends: starts.iter().map(|start| start.saturating_add(size_ms)).collect(), starts, map }
    };
    let mut pieces: Vec<Piece> = (0..size_ms / slide_ms).map(|n| windows(n, latest.clone(), RowMap::Same)).collect();
    if size_ms % slide_ms != 0 {
        let n = size_ms / slide_ms;
        let more =
            |row: &u32| hops(i128::from(times[*row as usize]) - i128::from(latest[*row as usize]), slide_ms, size_ms) > i128::from(n);
        let rows: Vec<u32> = (0..times.len() as u32).filter(more).collect();
        if !rows.is_empty() {
            pieces.push(windows(n, rows.iter().map(|row| latest[*row as usize]).collect(), RowMap::Rows(rows)));
        }
    }
    pieces
}

fn any(times: &[i64], kind: WindowKind) -> Piece {
    let (mut rows, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for (row, &time) in times.iter().enumerate() {
        for window in windows_of(kind, time) {
            rows.push(row as u32);
            starts.push(window.start_ms);
            ends.push(window.end_ms);
        }
    }
    Piece { map: RowMap::Rows(rows), starts, ends }
}

/// Some rows of a batch.
pub(crate) fn take_rows(rows: &RecordBatch, indices: &[u32]) -> Result<RecordBatch, OperatorError> {
    let arrow = OperatorError::arrow("take");
    let indices = UInt32Array::from(indices.to_vec());
    let columns: Result<Vec<ArrayRef>, _> = rows.columns().iter().map(|column| take(column, &indices, None)).collect();
    batch_of(rows.schema(), columns.map_err(&arrow)?, indices.len()).map_err(arrow)
}

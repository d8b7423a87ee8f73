//! Rows to text, kept until the epoch is committed, then printed in one write.

use super::options::PrintOptions;
use crate::formats::TimestampStandard;
use crate::formats::view::{ColumnView, View, write_scalar};
use arrow_array::RecordBatch;
use std::io::{self, Write};
use streamshield_core::ids::{Epoch, Incarnation, RegionId};
use streamshield_core::ports::sink::{ExternalContent, RefusedRow, Sink, SinkContent, SinkError, SinkWriter};

pub(super) struct PrintSink {
    pub options: PrintOptions,
}

impl Sink for PrintSink {
    fn writer(&self, _region: RegionId) -> Result<Box<dyn SinkWriter>, SinkError> {
        Ok(Box::new(PrintWriter { options: self.options.clone(), text: Vec::new() }))
    }
}

struct PrintWriter {
    options: PrintOptions,
    text: Vec<u8>,
}

impl SinkWriter for PrintWriter {
    fn write(&mut self, rows: &RecordBatch) -> Result<Vec<RefusedRow>, SinkError> {
        let columns = rows.columns().iter().map(|array| ColumnView::new(array.as_ref())).collect::<Result<Vec<_>, _>>()?;
        for row in 0..rows.num_rows() {
            if let Some(identifier) = &self.options.identifier {
                self.text.extend_from_slice(identifier.as_bytes());
                self.text.extend_from_slice(b"> ");
            }
            self.text.extend_from_slice(b"+I");
            write_row(&mut self.text, &columns, row);
            self.text.push(b'\n');
        }
        Ok(Vec::new())
    }

    fn bytes(&self) -> usize {
        self.text.len()
    }

    fn seal(&mut self, _epoch: Epoch) -> Option<SinkContent> {
        let text = std::mem::take(&mut self.text);
        (!text.is_empty())
            .then(|| SinkContent::External(Box::new(PrintContent { text, printed: 0, standard_error: self.options.standard_error })))
    }
}

/// The printed rows of one epoch.
struct PrintContent {
    text: Vec<u8>,
    /// Bytes that are out: a repeated publish goes on after them.
    printed: usize,
    standard_error: bool,
}

impl PrintContent {
    fn print_to(&mut self, out: &mut dyn Write) -> io::Result<()> {
        while self.printed < self.text.len() {
            match out.write(&self.text[self.printed..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.printed += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        out.flush()
    }
}

impl ExternalContent for PrintContent {
    fn prepare(&mut self, _owner: Incarnation) -> Result<(), SinkError> {
        Ok(())
    }

    fn publish(&mut self) -> Result<(), SinkError> {
        let printed = if self.standard_error { self.print_to(&mut io::stderr().lock()) } else { self.print_to(&mut io::stdout().lock()) };
        // A reader that has gone away (`| head`) wants no more rows, which is no reason to stop the job.
        match printed {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(SinkError { retry: true, message: format!("can't print: {error}") }),
            Ok(()) => Ok(()),
        }
    }

    fn waits_for_a_reader(&self) -> bool {
        true
    }
}

fn write_row(out: &mut Vec<u8>, columns: &[ColumnView<'_>], row: usize) {
    out.push(b'[');
    for (index, column) in columns.iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(b", ");
        }
        write_value(out, column, row);
    }
    out.push(b']');
}

fn write_value(out: &mut Vec<u8>, column: &ColumnView<'_>, row: usize) {
    if column.is_null(row) {
        out.extend_from_slice(b"null");
        return;
    }
    match &column.values {
        View::Struct { children, .. } => {
            out.extend_from_slice(b"+I");
            write_row(out, children, row);
        }
        View::List { ends, items } => {
            out.push(b'[');
            separated(out, ends[row]..ends[row + 1], |out, item| write_value(out, items, item));
            out.push(b']');
        }
        View::Map { ends, keys, values } => {
            out.push(b'{');
            separated(out, ends[row]..ends[row + 1], |out, entry| {
                write_value(out, keys, entry);
                out.push(b'=');
                write_value(out, values, entry);
            });
            out.push(b'}');
        }
        // Java shows bytes as the signed numbers they are there.
        View::Binary { ends, data } => {
            out.push(b'[');
            separated(out, ends[row]..ends[row + 1], |out, at| out.extend_from_slice((data[at] as i8).to_string().as_bytes()));
            out.push(b']');
        }
        scalar => write_scalar(out, scalar, row, TimestampStandard::Iso8601),
    }
}

fn separated(out: &mut Vec<u8>, items: std::ops::Range<i32>, mut write: impl FnMut(&mut Vec<u8>, usize)) {
    let first = items.start;
    for item in items {
        if item > first {
            out.extend_from_slice(b", ");
        }
        write(out, item as usize);
    }
}

#[cfg(test)]
#[path = "sink_test.rs"]
mod tests;

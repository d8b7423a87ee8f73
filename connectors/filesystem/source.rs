//! Files as splits: sorted by name, a line per record, a byte offset as the position.
//!
//! The scan is bounded: it reads what is there at the job's first start. Splits are known by their number in the sorted list of
//! names, so the folder must not change during the job's life; a file whose size is no longer what it was then stops its region
//! rather than giving other rows for the same positions. Where the whole folder is missing or empty by then, a mount is taken to be
//! away, and is waited for. Names that begin with `.` or `_` are not read (such are the sink's unfinished files).

use super::options::FilesystemOptions;
use crate::formats::{self, FormatScope, RecordDecoder};
use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use arrow_schema::{Schema, SchemaRef};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::{TakeLimit, Wakeup};
use streamshield_core::ports::source::{
    BadRecord, Origin, RowOrigins, Source, SourceBatch, SourceError, SourceErrorKind, SourceReader, Split, SplitId, SplitState,
};
use streamshield_core::table::{ColumnKind, SourceRequest};

/// Read at once, unless a line is longer or the caller wants less.
const CHUNK_BYTES: usize = 1 << 20;
const CHUNK_BYTES_MIN: usize = 4 << 10;
/// A longer line stops the region (M-1).
const LINE_BYTES_MAX: usize = 64 << 20;

pub(super) struct FilesystemSource {
    pub options: FilesystemOptions,
    pub request: SourceRequest,
}

impl FilesystemSource {
    /// The files, sorted by name.
    fn files(&self) -> Result<Vec<PathBuf>, SourceError> {
        let path = &self.options.path;
        let listed = || -> io::Result<Vec<PathBuf>> {
            if path.is_file() {
                return Ok(vec![path.clone()]);
            }
            let mut files = Vec::new();
            for entry in std::fs::read_dir(path)? {
                let entry = entry?;
                let hidden = entry.file_name().to_string_lossy().starts_with(['.', '_']);
                if !hidden && entry.path().is_file() {
                    files.push(entry.path());
                }
            }
            files.sort();
            Ok(files)
        };
        let files = listed().map_err(|error| unreadable(path, &error))?;
        if files.is_empty() {
            return Err(stop(format!("no file to read in '{}'", path.display())));
        }
        Ok(files)
    }
}

impl Source for FilesystemSource {
    fn discover(&self) -> Result<Vec<Split>, SourceError> {
        let split = |(id, file): (usize, &PathBuf)| {
            let bytes = file.metadata().map_err(|error| unreadable(file, &error))?.len();
            Ok(Split { id: id as SplitId, start: 0, end: Some(bytes as Offset) })
        };
        self.files()?.iter().enumerate().map(split).collect()
    }

    fn reader(&self, _wakeup: Arc<Wakeup>) -> Result<Box<dyn SourceReader>, SourceError> {
        let physical = self.request.columns.iter().filter(|column| column.kind == ColumnKind::Physical).map(|column| column.field.clone());
        let decoded_schema: SchemaRef = Arc::new(Schema::new(physical.collect::<Vec<_>>()));
        let decoder = formats::decoder(&self.request.table, FormatScope::Value, &decoded_schema).map_err(|error| stop(error.message))?;
        let table = &self.request.table;
        let folder = self.options.path.clone();
        Ok(Box::new(FilesystemReader {
            files: self.files().map_err(|error| unless_away(&folder, error))?,
            folder,
            skips_blank: table.option("value.format").or(table.option("format")) == Some("json"),
            request: self.request.clone(),
            decoder,
            cursors: BTreeMap::new(),
            chunk: Arc::default(),
        }))
    }
}

struct FilesystemReader {
    /// Or the one file.
    folder: PathBuf,
    files: Vec<PathBuf>,
    request: SourceRequest,
    decoder: Box<dyn RecordDecoder>,
    /// Where white space says nothing, a line of it is no record. Elsewhere it may be a value, or values that are NULL.
    skips_blank: bool,
    cursors: BTreeMap<SplitId, FileCursor>,
    /// Shared with the lines of a step, which is over before the next one is read: it is not copied.
    chunk: Arc<Vec<u8>>,
}

struct FileCursor {
    file: File,
    path: PathBuf,
    position: Offset,
    end: Offset,
}

impl SourceReader for FilesystemReader {
    fn add_split(&mut self, split: &Split, from: Offset) -> Result<(), SourceError> {
        let path = self
            .files
            .get(split.id as usize)
            .ok_or_else(|| stop(format!("file number {} is gone: the folder must not change while it is read", split.id)))?;
        let file = File::open(path).map_err(|error| unless_away(&self.folder, unreadable(path, &error)))?;
        let bytes = file.metadata().map_err(|error| unreadable(path, &error))?.len() as Offset;
        let end = split.end.unwrap_or(bytes);
        if bytes != end {
            return Err(stop(format!(
                "'{}' has {bytes} bytes and had {end} when the job started: the folder must not change while it is read",
                path.display()
            )));
        }
        self.cursors.insert(split.id, FileCursor { file, path: path.clone(), position: from, end });
        Ok(())
    }

    fn remove_split(&mut self, split: SplitId) {
        self.cursors.remove(&split);
    }

    fn take(&mut self, split: SplitId, limit: &TakeLimit) -> Result<SourceBatch, SourceError> {
        let Some(cursor) = self.cursors.get_mut(&split) else { return Err(stop(format!("split {split} was not added"))) };
        let lines = read_lines(cursor, Arc::make_mut(&mut self.chunk), limit, self.skips_blank)?;
        let from = cursor.position;
        cursor.position = lines.to;
        let records: Vec<_> = lines.ranges.iter().map(|range| Some(&self.chunk[range.clone()])).collect();
        let decoded = self.decoder.decode(&records);
        let bad = |(line, reason): &(usize, String)| {
            let origin = origin_of(&cursor.path, split, from, &self.chunk, &lines.ranges[*line]);
            BadRecord { origin, reason: reason.clone() }
        };
        let bad: Vec<BadRecord> = decoded.bad.iter().map(bad).collect();
        let origins: Option<Box<dyn RowOrigins>> = (self.request.keep_origins && decoded.rows.num_rows() > 0).then(|| {
            let bad = decoded.bad.iter().map(|(line, _)| *line).collect();
            Box::new(Lines { path: cursor.path.clone(), split, from, chunk: Arc::clone(&self.chunk), ranges: lines.ranges, bad }) as _
        });
        let state = if cursor.position >= cursor.end { SplitState::Finished } else { SplitState::More };
        Ok(SourceBatch {
            rows: with_metadata(&self.request, &decoded.rows, &cursor.path)?,
            to: lines.to,
            records: records.len(),
            bytes: (lines.to - from) as usize,
            bad,
            newest_timestamp_ms: None,
            origins,
            state,
        })
    }
}

/// Lines of a chunk without their line breaks, and the position after them.
struct ChunkLines {
    ranges: Vec<Range<usize>>,
    to: Offset,
}

/// Reads the next lines within the limit into the chunk; at least one, also where it is longer than the limit.
fn read_lines(cursor: &FileCursor, chunk: &mut Vec<u8>, limit: &TakeLimit, skips_blank: bool) -> Result<ChunkLines, SourceError> {
    let left = usize::try_from(cursor.end - cursor.position).unwrap_or(0);
    let exact_end = limit.end.map_or(usize::MAX, |end| usize::try_from(end - cursor.position).unwrap_or(0));
    let mut wanted = limit.bytes.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES);
    loop {
        let size = wanted.min(left);
        chunk.resize(size, 0);
        cursor.file.read_exact_at(chunk, cursor.position as u64).map_err(|error| unreadable(&cursor.path, &error))?;
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < size && at < exact_end && ranges.len() < limit.messages && (ranges.is_empty() || at < limit.bytes) {
            let (line_end, next) = match memchr::memchr(b'\n', &chunk[at..]) {
                Some(length) => (at + length, at + length + 1),
                None if size == left => (size, size),
                None => break,
            };
            let line = &chunk[at..line_end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            // An empty line is no record.
            let is_none = line.is_empty() || (skips_blank && line.trim_ascii().is_empty());
            if !is_none {
                ranges.push(at..at + line.len());
            }
            at = next;
        }
        if at > 0 || size == left {
            return Ok(ChunkLines { ranges, to: cursor.position + at as Offset });
        }
        if size >= LINE_BYTES_MAX {
            return Err(stop(format!("'{}' has a line of more than {LINE_BYTES_MAX} bytes at {}", cursor.path.display(), cursor.position)));
        }
        wanted *= 2;
    }
}

/// Puts the decoded columns and the file's name and path in the order asked for.
fn with_metadata(request: &SourceRequest, decoded: &RecordBatch, path: &Path) -> Result<RecordBatch, SourceError> {
    let rows = decoded.num_rows();
    let repeated = |text: String| Arc::new(StringArray::new_repeated(text, rows)) as ArrayRef;
    let mut physical = decoded.columns().iter();
    let column = |column: &streamshield_core::table::Column| match &column.kind {
        ColumnKind::Metadata { key, .. } if key == "file.name" => {
            Ok(repeated(path.file_name().unwrap_or_default().to_string_lossy().into_owned()))
        }
        ColumnKind::Metadata { .. } => Ok(repeated(path.display().to_string())),
        _ => physical.next().cloned().ok_or_else(|| stop("the format gave too few columns".into())),
    };
    let columns = request.columns.iter().map(column).collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(request.schema.clone(), columns, &options).map_err(|error| stop(error.to_string()))
}

/// The lines of a batch, as long as its step is not done.
struct Lines {
    path: PathBuf,
    split: SplitId,
    /// Where the chunk begins in its file.
    from: Offset,
    chunk: Arc<Vec<u8>>,
    /// Of all lines, in the chunk.
    ranges: Vec<Range<usize>>,
    /// The lines that are no rows, in order.
    bad: Vec<usize>,
}

impl RowOrigins for Lines {
    fn origin(&self, row: usize) -> Origin {
        let line = self.bad.iter().fold(row, |line, bad| line + usize::from(*bad <= line));
        origin_of(&self.path, self.split, self.from, &self.chunk, &self.ranges[line])
    }
}

/// A copy of a line, for the dead-letter topic.
fn origin_of(path: &Path, split: SplitId, from: Offset, chunk: &[u8], line: &Range<usize>) -> Origin {
    Origin {
        container: path.display().to_string(),
        split,
        offset: from + line.start as Offset,
        timestamp_ms: None,
        key: None,
        payload: Some(chunk[line.clone()].to_vec()),
        headers: Vec::new(),
    }
}

fn stop(message: String) -> SourceError {
    SourceError { kind: SourceErrorKind::Stop, message }
}

/// The job began with files in this folder: where nothing at all is left, it is tried again.
fn unless_away(folder: &Path, error: SourceError) -> SourceError {
    let is_away = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(missing) => missing.kind() == io::ErrorKind::NotFound,
    };
    if !is_away {
        return error;
    }
    SourceError { kind: SourceErrorKind::Retry, message: format!("{}; is a mount away?", error.message) }
}

/// A file that is not there or not ours to read stays so; anything else (a disk that does not answer) is tried again.
fn unreadable(path: &Path, error: &io::Error) -> SourceError {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::UnexpectedEof => SourceErrorKind::Stop,
        _ => SourceErrorKind::Retry,
    };
    SourceError { kind, message: format!("can't read '{}': {error}", path.display()) }
}

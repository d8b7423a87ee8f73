//! An epoch of a region is one file: written and synced under a hidden name before the commit, renamed after it.
//!
//! ```text
//! prepare   .part-s1-0-00000000000000000007-<owner>.inprogress      written, fsync of file and folder
//! commit    (the epoch record in the log is the proof)
//! publish   part-s1-0-00000000000000000007.jsonl                    renamed, fsync of the folder
//! ```
//!
//! After a crash [`Sink::recover`] knows from the log which epoch the region has committed last, and who did: it renames that
//! file and deletes all other hidden ones (E-3). Every step may be repeated.
//!
//! A paused worker that was replaced may still prepare an epoch, under its own incarnation, and never commit it. Its rows are
//! its successor's, perhaps in other epochs: so no such file is published, even where the epoch's number has none.
//!
//! The folder is made before a region's first epoch and never again. Where it is missing later, a mount may be away, and with it a file
//! that is committed and not published: who went on without it would delete that file at the next recovery. So it is waited for.
//!
//! An epoch that is yet to be committed has no visible file. Where one is found, another job writes to the folder, or this worker was
//! replaced and does not know it yet: nothing is replaced, the epoch is refused. The control log takes no notice of a replaced worker's failure.

use super::options::FilesystemOptions;
use crate::formats::{self, FormatScope, RowEncoder};
use arrow_array::RecordBatch;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use streamshield_core::ids::{Epoch, Incarnation, RegionId};
use streamshield_core::ports::sink::{ExternalContent, RefusedRow, Sink, SinkContent, SinkError, SinkWriter};
use streamshield_core::table::SinkRequest;

const UNFINISHED: &str = ".inprogress";

pub(super) struct FilesystemSink {
    pub options: FilesystemOptions,
    pub request: SinkRequest,
}

impl FilesystemSink {
    fn names(&self, region: RegionId) -> Names {
        let extension = match self.request.table.option("value.format").or(self.request.table.option("format")) {
            Some("json") => "jsonl",
            Some("csv") => "csv",
            _ => "txt",
        };
        Names { folder: self.options.path.clone(), stem: format!("part-{}-{}-", region.stage, region.partition), extension }
    }
}

impl Sink for FilesystemSink {
    fn writer(&self, region: RegionId) -> Result<Box<dyn SinkWriter>, SinkError> {
        let encoder = formats::encoder(&self.request.table, FormatScope::Value, &self.request.schema)
            .map_err(|error| SinkError { retry: false, message: error.message })?;
        Ok(Box::new(FilesystemWriter { names: self.names(region), encoder, lines: Vec::new(), encoded: Vec::new(), ends: Vec::new() }))
    }

    fn begin(&self) -> Result<(), SinkError> {
        let folder = &self.options.path;
        make_folder(folder).map_err(|error| failed(folder, folder, &error))
    }

    fn recover(&self, region: RegionId, last: Option<(Epoch, Incarnation)>) -> Result<(), SinkError> {
        let names = self.names(region);
        recover(&names, last).map_err(|error| failed(&names.folder, &names.folder, &error))
    }
}

/// How a region's files are called.
#[derive(Clone)]
struct Names {
    folder: PathBuf,
    /// `part-s1-0-`
    stem: String,
    extension: &'static str,
}

impl Names {
    fn hidden(&self, epoch: Epoch, owner: Incarnation) -> PathBuf {
        self.folder.join(format!(".{}{:020}-{}{UNFINISHED}", self.stem, epoch.0, owner.0))
    }

    fn visible(&self, epoch: Epoch) -> PathBuf {
        self.folder.join(format!("{}{:020}.{}", self.stem, epoch.0, self.extension))
    }

    /// Whether this is a hidden file of this region, whoever wrote it.
    fn is_hidden(&self, name: &str) -> bool {
        name.strip_prefix('.').and_then(|name| name.strip_prefix(&self.stem)).is_some_and(|rest| rest.ends_with(UNFINISHED))
    }
}

fn recover(names: &Names, last: Option<(Epoch, Incarnation)>) -> io::Result<()> {
    let committed = last.map(|(epoch, owner)| (names.hidden(epoch, owner), names.visible(epoch)));
    for entry in fs::read_dir(&names.folder)? {
        let entry = entry?;
        if !names.is_hidden(&entry.file_name().to_string_lossy()) {
            continue;
        }
        match &committed {
            Some((hidden, visible)) if entry.path() == *hidden && !visible.exists() => fs::rename(hidden, visible)?,
            _ => fs::remove_file(entry.path())?,
        }
    }
    sync_folder(&names.folder)
}

struct FilesystemWriter {
    names: Names,
    encoder: Box<dyn RowEncoder>,
    /// The open epoch.
    lines: Vec<u8>,
    encoded: Vec<u8>,
    ends: Vec<usize>,
}

impl SinkWriter for FilesystemWriter {
    fn write(&mut self, rows: &RecordBatch) -> Result<Vec<RefusedRow>, SinkError> {
        self.encoded.clear();
        self.ends.clear();
        let mut refused = self.encoder.encode(rows, &mut self.encoded, &mut self.ends)?;
        let refused_by_format = refused.len();
        let mut start = 0;
        for (row, end) in self.ends.iter().enumerate() {
            let record = &self.encoded[start..*end];
            start = *end;
            if refused[..refused_by_format].iter().any(|refused| refused.row == row) {
                continue;
            }
            if record.is_empty() {
                refused.push(RefusedRow { row, reason: "the record would be an empty line, and an empty line is no record".into() });
                continue;
            }
            if memchr::memchr2(b'\n', b'\r', record).is_some() {
                refused.push(RefusedRow { row, reason: "the record has a line break, and a file has one record per line".into() });
                continue;
            }
            self.lines.extend_from_slice(record);
            self.lines.push(b'\n');
        }
        refused.sort_by_key(|refused| refused.row);
        Ok(refused)
    }

    fn bytes(&self) -> usize {
        self.lines.len()
    }

    fn seal(&mut self, epoch: Epoch) -> Option<SinkContent> {
        if self.lines.is_empty() {
            return None;
        }
        let lines = std::mem::take(&mut self.lines);
        Some(SinkContent::External(Box::new(EpochFile { names: self.names.clone(), epoch, lines, hidden: PathBuf::new() })))
    }
}

/// The file of one epoch.
struct EpochFile {
    names: Names,
    epoch: Epoch,
    lines: Vec<u8>,
    /// Where it lies from its preparation on, until it is published.
    hidden: PathBuf,
}

impl ExternalContent for EpochFile {
    fn prepare(&mut self, owner: Incarnation) -> Result<(), SinkError> {
        let visible = self.names.visible(self.epoch);
        if visible.exists() {
            let message = format!(
                "'{}' is there already: it is of another job, or of this one before it began anew (as it does at each start if its topics are in \
                 memory); move such files away, or give each job a folder of its own",
                visible.display()
            );
            return Err(SinkError { retry: false, message });
        }
        self.hidden = self.names.hidden(self.epoch, owner);
        let write = || -> io::Result<()> {
            let mut file = File::create(&self.hidden)?;
            file.write_all(&self.lines)?;
            file.sync_all()?;
            sync_folder(&self.names.folder)
        };
        write().map_err(|error| failed(&self.names.folder, &self.hidden, &error))
    }

    fn publish(&mut self) -> Result<(), SinkError> {
        let visible = self.names.visible(self.epoch);
        let rename = || -> io::Result<()> {
            match fs::rename(&self.hidden, &visible) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && visible.exists() => {}
                renamed => renamed?,
            }
            sync_folder(&self.names.folder)
        };
        rename().map_err(|error| failed(&self.names.folder, &visible, &error))?;
        self.lines = Vec::new();
        Ok(())
    }
}

/// Makes names durable: a rename is on disk only once its folder is.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes the folder and its name durable: where it is missing later, it is away.
fn make_folder(folder: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|part| !part.as_os_str().is_empty() && !part.exists()).collect();
    if !missing.is_empty() {
        fs::create_dir_all(folder)?;
    }
    for parent in missing.into_iter().filter_map(Path::parent) {
        sync_folder(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
    }
    Ok(())
}

/// What a person has to set right is not tried again. A folder that is missing as a whole may come back.
fn failed(folder: &Path, path: &Path, error: &io::Error) -> SinkError {
    let is_away = error.kind() == io::ErrorKind::NotFound && !folder.exists();
    let retry = is_away
        || !matches!(
            error.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotADirectory | io::ErrorKind::NotFound
        );
    let hint = if is_away {
        "; is a mount away? A folder that was deleted, or that a restored job does not find, has to be made by hand"
    } else {
        ""
    };
    SinkError { retry, message: format!("can't write '{}': {error}{hint}", path.display()) }
}

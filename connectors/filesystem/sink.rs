//! An epoch of a region is one file: written and synced under a hidden name before the commit, renamed after it.
//!
//! ```text
//! prepare   .part-s1-0-00000000000000000007-<writer>.inprogress     written, fsync of file and folder
//! commit    (the epoch record in the log is the proof)
//! publish   part-s1-0-00000000000000000007.jsonl                    renamed, fsync of the folder
//! ```
//!
//! After a crash [`Sink::recover`] knows from the log how far the region has committed: it renames what was prepared up to
//! there and deletes what was prepared beyond (E-3). Every step may be repeated.
//!
//! A paused worker that was replaced may still prepare an epoch under its own writer id, never publish it. Should two
//! writers' files of one committed epoch be found, nothing tells which was committed, and recovery stops instead of
//! guessing.

use super::options::FilesystemOptions;
use crate::formats::{self, FormatScope, RowEncoder};
use arrow_array::RecordBatch;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use streamshield_core::ids::{Epoch, RegionId};
use streamshield_core::ports::sink::{ExternalContent, RefusedRow, Sink, SinkContent, SinkError, SinkWriter};
use streamshield_core::table::SinkRequest;
use uuid::Uuid;

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
        Names {
            folder: self.options.path.clone(),
            stem: format!("part-{}-{}-", region.stage, region.partition),
            extension,
            writer: Uuid::new_v4().simple().to_string(),
        }
    }
}

impl Sink for FilesystemSink {
    fn writer(&self, region: RegionId) -> Result<Box<dyn SinkWriter>, SinkError> {
        let encoder = formats::encoder(&self.request.table, FormatScope::Value, &self.request.schema)
            .map_err(|error| SinkError { retry: false, message: error.message })?;
        Ok(Box::new(FilesystemWriter { names: self.names(region), encoder, lines: Vec::new(), encoded: Vec::new(), ends: Vec::new() }))
    }

    fn recover(&self, region: RegionId, committed: Epoch) -> Result<(), SinkError> {
        let names = self.names(region);
        recover(&names, committed).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => SinkError { retry: false, message: error.to_string() },
            _ => failed(&names.folder, &error),
        })
    }
}

/// How a region's files are called.
#[derive(Clone)]
struct Names {
    folder: PathBuf,
    /// `part-s1-0-`
    stem: String,
    extension: &'static str,
    writer: String,
}

impl Names {
    fn hidden(&self, epoch: Epoch) -> PathBuf {
        self.folder.join(format!(".{}{:020}-{}{UNFINISHED}", self.stem, epoch.0, self.writer))
    }

    fn visible(&self, epoch: Epoch) -> PathBuf {
        self.folder.join(format!("{}{:020}.{}", self.stem, epoch.0, self.extension))
    }

    /// The epoch of a hidden file of this region, whoever wrote it.
    fn epoch_of_hidden(&self, name: &str) -> Option<Epoch> {
        let (epoch, _writer) = name.strip_prefix('.')?.strip_prefix(&self.stem)?.strip_suffix(UNFINISHED)?.split_once('-')?;
        epoch.parse().ok().map(Epoch)
    }
}

fn recover(names: &Names, committed: Epoch) -> io::Result<()> {
    let entries = match fs::read_dir(&names.folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut prepared: BTreeMap<Epoch, Vec<PathBuf>> = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        if let Some(epoch) = names.epoch_of_hidden(&entry.file_name().to_string_lossy()) {
            prepared.entry(epoch).or_default().push(entry.path());
        }
    }
    for (epoch, files) in prepared {
        let visible = names.visible(epoch);
        if epoch > committed || visible.exists() {
            files.iter().try_for_each(fs::remove_file)?;
        } else if let [file] = files.as_slice() {
            fs::rename(file, &visible)?;
        } else {
            let message = format!(
                "{} unpublished files of epoch {epoch} begin with '{}' and nothing tells which one was committed: compare and keep one",
                files.len(),
                names.stem
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
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
        Some(SinkContent::External(Box::new(EpochFile { hidden: self.names.hidden(epoch), visible: self.names.visible(epoch), lines })))
    }
}

/// The file of one epoch.
struct EpochFile {
    hidden: PathBuf,
    visible: PathBuf,
    lines: Vec<u8>,
}

impl ExternalContent for EpochFile {
    fn prepare(&mut self) -> Result<(), SinkError> {
        let write = || -> io::Result<()> {
            fs::create_dir_all(folder_of(&self.hidden))?;
            let mut file = File::create(&self.hidden)?;
            file.write_all(&self.lines)?;
            file.sync_all()?;
            sync_folder(folder_of(&self.hidden))
        };
        write().map_err(|error| failed(&self.hidden, &error))
    }

    fn publish(&mut self) -> Result<(), SinkError> {
        let rename = || -> io::Result<()> {
            match fs::rename(&self.hidden, &self.visible) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.visible.exists() => {}
                renamed => renamed?,
            }
            sync_folder(folder_of(&self.visible))
        };
        rename().map_err(|error| failed(&self.visible, &error))?;
        self.lines = Vec::new();
        Ok(())
    }
}

fn folder_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("."))
}

/// Makes names durable: a rename is on disk only once its folder is.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// What a person has to set right is not tried again.
fn failed(path: &Path, error: &io::Error) -> SinkError {
    let retry = !matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotADirectory | io::ErrorKind::NotFound
    );
    SinkError { retry, message: format!("can't write '{}': {error}", path.display()) }
}

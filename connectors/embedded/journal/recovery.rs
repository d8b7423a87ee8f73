//! Reads a journal folder back into a core.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};

use super::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, codec};
use crate::error::EmbeddedError;
use crate::log_core::LogCore;

const READ_BYTES: usize = 1 << 20;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The journal to go on with.
    pub number: u64,
    /// Size of the journals since the snapshot.
    pub journal_bytes: u64,
}

/// A file of the folder by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    Snapshot {
        number: u64,
    },
    Journal {
        number: u64,
    },
    /// A snapshot that was not finished.
    Unfinished {
        number: u64,
    },
}

impl FileKind {
    pub fn number(self) -> u64 {
        match self {
            FileKind::Snapshot { number } | FileKind::Journal { number } | FileKind::Unfinished { number } => number,
        }
    }
    fn of(name: &str) -> Option<FileKind> {
        let (stem, extension) = name.rsplit_once('.')?;
        let (kind, number) = stem.split_once('-')?;
        let number = number.parse().ok()?;
        match (kind, extension) {
            ("snapshot", "log") => Some(FileKind::Snapshot { number }),
            ("journal", "log") => Some(FileKind::Journal { number }),
            ("snapshot", "tmp") => Some(FileKind::Unfinished { number }),
            _ => None,
        }
    }
}

/// The journal's files in the folder, sorted; other files are left alone.
pub fn list(folder: &Path) -> Result<Vec<(PathBuf, FileKind)>, EmbeddedError> {
    let fail = |source| EmbeddedError::io("list", folder, source);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if let Some(kind) = path.file_name().and_then(|name| name.to_str()).and_then(FileKind::of) {
            files.push((path, kind));
        }
    }
    files.sort_by_key(|(_, kind)| *kind);
    Ok(files)
}

/// Newest snapshot first, then the journals from its number on; leftovers of an interrupted roll are deleted.
pub fn recover(folder: &Path, core: &mut LogCore) -> Result<Recovered, EmbeddedError> {
    let files = list(folder)?;
    let snapshot_number = files.iter().rev().find_map(|(_, kind)| match kind {
        FileKind::Snapshot { number } => Some(*number),
        _ => None,
    });
    let start = snapshot_number.unwrap_or(0);
    let mut journals = Vec::new();
    for (path, kind) in files {
        match kind {
            FileKind::Journal { number } if number >= start => journals.push((path, number)),
            FileKind::Snapshot { number } if number == start => replay(&path, false, core).map(drop)?,
            _ => std::fs::remove_file(&path).map_err(|source| EmbeddedError::io("delete", &path, source))?,
        }
    }
    let mut expected = snapshot_number.or_else(|| journals.first().map(|(_, number)| *number)).unwrap_or(1);
    let first_needed = if snapshot_number.is_some() { start } else { 1 };
    if journals.first().is_some_and(|(_, number)| *number != first_needed) {
        return Err(EmbeddedError::JournalMissing { folder: folder.to_owned(), number: first_needed });
    }
    let mut journal_bytes = 0;
    let count = journals.len();
    for (at, (path, number)) in journals.into_iter().enumerate() {
        if number != expected + at as u64 {
            return Err(EmbeddedError::JournalMissing { folder: folder.to_owned(), number: expected + at as u64 });
        }
        journal_bytes += replay(&path, at + 1 == count, core)?;
    }
    expected += (count as u64).saturating_sub(1);
    core.take_events();
    Ok(Recovered { number: expected, journal_bytes })
}

/// Applies a file's frames and returns its size; only the last journal may end in a torn frame, which is cut off.
fn replay(path: &Path, may_be_torn: bool, core: &mut LogCore) -> Result<u64, EmbeddedError> {
    let fail = |what| move |source| EmbeddedError::io(what, path, source);
    let file = File::open(path).map_err(fail("open"))?;
    let length = file.metadata().map_err(fail("open"))?.len();
    let mut frames = Frames { input: BufReader::with_capacity(READ_BYTES, file), position: 0, length };
    loop {
        let position = frames.position;
        let damaged = || EmbeddedError::JournalDamaged { path: path.to_owned(), position };
        match frames.next().map_err(fail("read"))? {
            Frame::End => return Ok(length),
            Frame::Whole(mut events) => {
                while events.has_remaining() {
                    let event = codec::decode(&mut events).ok_or_else(damaged)?;
                    core.apply(&event);
                }
            }
            Frame::Torn if may_be_torn => {
                let cut_bytes = length - position;
                tracing::warn!(file = %path.display(), position, cut_bytes, "the journal ends in a torn frame, which is cut off");
                let file = OpenOptions::new().write(true).open(path);
                file.and_then(|file| file.set_len(position)).map_err(fail("cut"))?;
                return Ok(position);
            }
            Frame::Torn | Frame::Damaged => return Err(damaged()),
        }
    }
}

enum Frame {
    Whole(Bytes),
    End,
    /// The file ends within it.
    Torn,
    /// Bytes follow that belong to later frames, or it has a length that no frame has.
    Damaged,
}

/// Reads frame by frame, so that only one of them is in memory.
struct Frames {
    input: BufReader<File>,
    position: u64,
    length: u64,
}

impl Frames {
    fn next(&mut self) -> std::io::Result<Frame> {
        let left = self.length - self.position;
        if left < FRAME_HEADER_BYTES as u64 {
            return Ok(if left == 0 { Frame::End } else { Frame::Torn });
        }
        let mut header = [0; FRAME_HEADER_BYTES];
        self.input.read_exact(&mut header)?;
        let mut fields = &header[..];
        let (body_bytes, sum) = (fields.get_u32() as usize, fields.get_u32());
        if body_bytes > FRAME_BYTES_MAX {
            return Ok(Frame::Damaged);
        }
        let frame_bytes = (FRAME_HEADER_BYTES + body_bytes) as u64;
        if frame_bytes > left {
            return Ok(Frame::Torn);
        }
        let mut body = vec![0; body_bytes];
        self.input.read_exact(&mut body)?;
        if body_bytes > 0 && crc32c::crc32c(&body) == sum {
            self.position += frame_bytes;
            return Ok(Frame::Whole(body.into()));
        }
        // a file system may have grown the file without its content
        let is_last = frame_bytes == left || (is_zero(&header) && is_zero(&body) && self.is_rest_zero()?);
        Ok(if is_last { Frame::Torn } else { Frame::Damaged })
    }

    fn is_rest_zero(&mut self) -> std::io::Result<bool> {
        loop {
            let rest = self.input.fill_buf()?;
            let (count, is_all_zero) = (rest.len(), is_zero(rest));
            if count == 0 || !is_all_zero {
                return Ok(is_all_zero);
            }
            self.input.consume(count);
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

//! The journal: the log core's events on disk, so that a stopped or killed broker starts where it was.
//!
//! Every call that changed the core is one *frame* holding its events, written before the answer goes out. A frame is read
//! back whole or not at all, so the end of a transaction is never half there.
//!
//! ```text
//! frame   = length u32 (of what follows the checksum) · crc32c u32 · events
//! folder  = LOCK · journal-N.log, journal-N+1.log … · snapshot-N.log
//! ```
//!
//! The newest snapshot `N` stands for everything before `journal-N`. When the journals since the last snapshot outgrow the
//! live data ([`ROLL_BYTES_MIN`] at least), writing goes on in `journal-N+1` at once, and a thread writes `snapshot-N+1` from
//! shared bytes, syncs and renames it, and only then deletes what is older. So the folder holds at most about twice the
//! live data plus that minimum, each byte is written about twice, and nobody waits for a snapshot.
//!
//! On failure
//! - a torn frame at the very end (the process or machine died while writing) is cut off, and said so: it was never acknowledged
//!   (with [`Fsync::Never`] and a machine that lost power, the page cache's last writes may be among it);
//! - damage anywhere else stops the start with the file and position. One thing can't be told from a torn frame: in the last journal, a damaged
//!   length that a frame may have ([`FRAME_BYTES_MAX`]) and that points beyond the end. What follows it is cut off, and said so;
//! - a write that fails stops the broker: an answer never promises what is not written.

mod codec;
mod recovery;

#[cfg(test)]
mod journal_test;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use bytes::{BufMut, BytesMut};

use crate::error::EmbeddedError;
use crate::log_core::{Event, LogCore};

/// A journal is not rolled below this, so that small brokers don't write snapshots all the time.
pub const ROLL_BYTES_MIN: u64 = 64 << 20;
/// Frames of a snapshot are cut at about this size.
const SNAPSHOT_FRAME_BYTES: usize = 4 << 20;
const FRAME_HEADER_BYTES: usize = 8;
/// The events of a frame are no longer than this (M-1). A call's are bounded by its request, at most 100 MiB; the rest is room for what the end of a
/// transaction or the passing of time does to many partitions at once. A longer frame is not written, so one that is read is damaged.
pub const FRAME_BYTES_MAX: usize = 256 << 20;

/// When written frames are forced to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fsync {
    /// Left to the operating system, as Kafka does: survives the process, not a power cut.
    #[default]
    Never,
    /// At most this many milliseconds after a write.
    Interval { interval_ms: u64 },
    /// Before every answer.
    Always,
}

/// See the module text.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    file: File,
    number: u64,
    fsync: Fsync,
    synced_ms: i64,
    has_unsynced: bool,
    written_bytes: u64,
    roll_bytes_min: u64,
    snapshot_writer: Option<JoinHandle<Result<(), EmbeddedError>>>,
    frame: BytesMut,
    _lock: File,
}

impl Journal {
    /// Opens the folder, reads everything back into `core`, and goes on writing.
    pub fn open(folder: &Path, fsync: Fsync, roll_bytes_min: u64, core: &mut LogCore) -> Result<Journal, EmbeddedError> {
        std::fs::create_dir_all(folder).map_err(|source| EmbeddedError::io("create", folder, source))?;
        let lock = take_lock(folder)?;
        let recovered = recovery::recover(folder, core)?;
        let path = journal_path(folder, recovered.number);
        let file = open_append(&path)?;
        sync_folder(folder)?;
        Ok(Journal {
            folder: folder.to_owned(),
            file,
            number: recovered.number,
            fsync,
            synced_ms: 0,
            has_unsynced: false,
            written_bytes: recovered.journal_bytes,
            roll_bytes_min,
            snapshot_writer: None,
            frame: BytesMut::new(),
            _lock: lock,
        })
    }

    /// Writes what one call changed. An error means that the broker must stop.
    pub fn write(&mut self, events: &[Event]) -> Result<(), EmbeddedError> {
        if events.is_empty() {
            return Ok(());
        }
        let path = || journal_path(&self.folder, self.number);
        self.frame.clear();
        self.frame.put_bytes(0, FRAME_HEADER_BYTES);
        events.iter().for_each(|event| codec::encode(event, &mut self.frame));
        close_frame(&mut self.frame).map_err(|source| EmbeddedError::io("write", &path(), source))?;
        self.file.write_all(&self.frame).map_err(|source| EmbeddedError::io("write", &path(), source))?;
        self.written_bytes += self.frame.len() as u64;
        if self.fsync == Fsync::Always {
            self.file.sync_data().map_err(|source| EmbeddedError::io("sync", &path(), source))?;
        } else {
            self.has_unsynced = true;
        }
        Ok(())
    }

    /// Syncs when the interval says so, and rolls when the journal has outgrown the live data.
    pub fn tick(&mut self, now_ms: i64, core: &LogCore) -> Result<(), EmbeddedError> {
        if let Fsync::Interval { interval_ms } = self.fsync
            && self.has_unsynced
            && now_ms - self.synced_ms >= interval_ms as i64
        {
            let path = journal_path(&self.folder, self.number);
            self.file.sync_data().map_err(|source| EmbeddedError::io("sync", &path, source))?;
            self.synced_ms = now_ms;
            self.has_unsynced = false;
        }
        if self.snapshot_writer.as_ref().is_some_and(JoinHandle::is_finished) {
            self.finish_snapshot()?;
        }
        let is_large = self.written_bytes > self.roll_bytes_min.max(core.held_bytes());
        if is_large && self.snapshot_writer.is_none() { self.roll(core) } else { Ok(()) }
    }

    fn roll(&mut self, core: &LogCore) -> Result<(), EmbeddedError> {
        let number = self.number + 1;
        let next = open_append(&journal_path(&self.folder, number))?;
        // Synced frames are of no use in a file without a name. Without syncs nobody is to wait for the disk.
        if self.fsync != Fsync::Never {
            sync_folder(&self.folder)?;
        }
        let previous = std::mem::replace(&mut self.file, next);
        self.number = number;
        self.written_bytes = 0;
        let (folder, events) = (self.folder.clone(), core.snapshot());
        let write = move || {
            // a journal that is not the last one must be whole, whatever happens to the machine
            previous.sync_data().map_err(|source| EmbeddedError::io("sync", &folder, source))?;
            write_snapshot(&folder, number, &events)?;
            delete_older(&folder, number)
        };
        let spawned = std::thread::Builder::new().name("embedded-snapshot".into()).spawn(write);
        self.snapshot_writer = Some(spawned.map_err(|source| EmbeddedError::io("start the snapshot writer for", &self.folder, source))?);
        Ok(())
    }

    fn finish_snapshot(&mut self) -> Result<(), EmbeddedError> {
        match self.snapshot_writer.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(_)) => Err(EmbeddedError::Panicked { what: "the snapshot writer" }),
        }
    }

    /// Waits for a snapshot under way and syncs.
    pub fn close(&mut self) -> Result<(), EmbeddedError> {
        self.finish_snapshot()?;
        self.file.sync_data().map_err(|source| EmbeddedError::io("sync", &self.folder, source))
    }
}

/// Fills the header of a frame that holds its events.
fn close_frame(frame: &mut [u8]) -> std::io::Result<()> {
    let (header, body) = frame.split_at_mut(FRAME_HEADER_BYTES);
    if body.len() > FRAME_BYTES_MAX {
        return Err(std::io::Error::other(format!("a frame of {} bytes, and {FRAME_BYTES_MAX} is the most", body.len())));
    }
    header[..4].copy_from_slice(&(body.len() as u32).to_be_bytes());
    header[4..].copy_from_slice(&crc32c::crc32c(body).to_be_bytes());
    Ok(())
}

fn write_snapshot(folder: &Path, number: u64, events: &[Event]) -> Result<(), EmbeddedError> {
    let path = snapshot_path(folder, number);
    let unfinished = path.with_extension("tmp");
    let fail = |what: &'static str| {
        let path = unfinished.clone();
        move |source| EmbeddedError::io(what, &path, source)
    };
    let mut file = File::create(&unfinished).map_err(fail("create"))?;
    let mut frame = BytesMut::zeroed(FRAME_HEADER_BYTES);
    for (at, event) in events.iter().enumerate() {
        codec::encode(event, &mut frame);
        if frame.len() >= SNAPSHOT_FRAME_BYTES || at + 1 == events.len() {
            close_frame(&mut frame).map_err(fail("write"))?;
            file.write_all(&frame).map_err(fail("write"))?;
            frame.truncate(FRAME_HEADER_BYTES);
        }
    }
    file.sync_all().map_err(fail("sync"))?;
    std::fs::rename(&unfinished, &path).map_err(fail("rename"))?;
    sync_folder(folder)
}

fn delete_older(folder: &Path, number: u64) -> Result<(), EmbeddedError> {
    for (path, _) in recovery::list(folder)?.into_iter().filter(|(_, kind)| kind.number() < number) {
        std::fs::remove_file(&path).map_err(|source| EmbeddedError::io("delete", &path, source))?;
    }
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> Result<(), EmbeddedError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| EmbeddedError::io("sync", folder, source))
}

fn open_append(path: &Path) -> Result<File, EmbeddedError> {
    OpenOptions::new().create(true).append(true).open(path).map_err(|source| EmbeddedError::io("open", path, source))
}

fn take_lock(folder: &Path) -> Result<File, EmbeddedError> {
    let path = folder.join("LOCK");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| EmbeddedError::io("open", &path, source))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(_) => Err(EmbeddedError::FolderInUse { folder: folder.to_owned() }),
    }
}

fn journal_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("journal-{number:010}.log"))
}
fn snapshot_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("snapshot-{number:010}.log"))
}

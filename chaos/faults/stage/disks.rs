//! A disk of its own for a worker's state, so that it can be full or read-only without anybody else's being so.
//!
//! A file system in memory is mounted over the worker's folder, with what was in it. That takes root; and the worker has to be away meanwhile. It stays until
//! the stage ends, and is narrow only while it is full: at other times it takes whatever the worker's state grows to.

use super::watchdog::{UndoRecord, Watchdog, quoted};
use crate::api::FaultError;
use anyhow::{Context, Result, ensure};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// More than any state takes: the memory is the limit. A file system that had none could not be given one later.
const WIDE_BYTES: u64 = 1 << 40;
/// Beside what the disk holds when it is to be full. Little, so that it is full soon.
const ROOM_BYTES: u64 = 32 << 20;

/// A mounted file system.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
    undo: Option<UndoRecord>,
}

impl Disk {
    /// Moves a folder onto a disk. Nobody may use the folder meanwhile.
    pub(crate) fn under(folder: &Path, watchdog: &Watchdog) -> Result<Disk, FaultError> {
        // SAFETY: geteuid has no arguments and can't fail.
        if unsafe { libc::geteuid() } != 0 {
            return Err(FaultError::NotPossibleHere("a disk of its own for a worker takes root, to mount it".into()));
        }
        std::fs::create_dir_all(folder).context("the worker's folder")?;
        let before = folder.with_extension("before");
        let script = format!("! mountpoint -q {0} || umount -l {0}", quoted(&folder.display().to_string()));
        let undo = watchdog.note_undo("a disk of its own", &script)?;
        std::fs::rename(folder, &before).context("the worker's folder can't be moved")?;
        std::fs::create_dir(folder).context("the worker's folder")?;
        if let Err(error) = mount(folder, "tmpfs", libc::MS_NODEV | libc::MS_NOSUID, &format!("size={WIDE_BYTES},mode=0700")) {
            std::fs::remove_dir(folder).context("the worker's folder")?;
            std::fs::rename(&before, folder).context("the worker's folder")?;
            undo.forget();
            return Err(FaultError::NotPossibleHere(format!("no file system can be mounted: {error:#}")));
        }
        let status = Command::new("cp").arg("-a").arg(before.join(".")).arg(folder).status().context("cp can't be started")?;
        if !status.success() {
            return Err(FaultError::Harness(anyhow::anyhow!("the worker's state could not be copied to its disk: {status}")));
        }
        std::fs::remove_dir_all(&before).context("the worker's folder")?;
        Ok(Disk { folder: folder.to_path_buf(), undo: Some(undo) })
    }

    /// Takes all room that is left. How many bytes that were.
    pub(crate) fn fill(&self) -> Result<u64> {
        let ballast = self.ballast();
        let mut file = std::fs::File::create(&ballast).with_context(|| ballast.display().to_string())?;
        self.resize(used_bytes(&self.folder)? + ROOM_BYTES)?;
        let zeros = vec![0u8; 1 << 16];
        let mut bytes = 0;
        loop {
            match std::io::Write::write(&mut file, &zeros) {
                Ok(written) => bytes += written as u64,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => return Ok(bytes),
                Err(error) => return Err(error).context("the disk can't be filled"),
            }
        }
    }

    pub(crate) fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }

    /// Frees what was taken, and is wide again.
    pub(crate) fn empty(&self) -> Result<()> {
        match std::fs::remove_file(self.ballast()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("the ballast"),
            _ => self.resize(WIDE_BYTES),
        }
    }

    fn resize(&self, bytes: u64) -> Result<()> {
        mount(&self.folder, "tmpfs", libc::MS_REMOUNT | libc::MS_NODEV | libc::MS_NOSUID, &format!("size={bytes}"))
    }

    /// Nobody may have a file open for writing.
    pub(crate) fn set_read_only(&self, read_only: bool) -> Result<()> {
        let flag = if read_only { libc::MS_RDONLY } else { 0 };
        mount(&self.folder, "tmpfs", libc::MS_REMOUNT | libc::MS_NODEV | libc::MS_NOSUID | flag, "")
    }

    /// The error that a write meets; None: it went well.
    pub(crate) fn try_write(&self) -> Option<std::io::Error> {
        let probe = self.folder.join("probe");
        let written = std::fs::write(&probe, [0u8; 4096]).err();
        let _ = std::fs::remove_file(probe);
        written
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(undo) = self.undo.take() {
            // The watchdog has another try at it.
            let _ = undo.run();
        }
    }
}

fn mount(folder: &Path, kind: &str, flags: libc::c_ulong, options: &str) -> Result<()> {
    let target = CString::new(folder.as_os_str().as_bytes())?;
    let (kind, options) = (CString::new(kind)?, CString::new(options)?);
    // SAFETY: all four are C strings that outlive the call, which only reads them.
    let code = unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) };
    ensure!(code == 0, "{}: {}", folder.display(), std::io::Error::last_os_error());
    Ok(())
}

/// What a file system holds: also files that have no name any more and are still open.
fn used_bytes(folder: &Path) -> Result<u64> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: all-zero bytes are a valid statvfs.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string; both outlive the call, which only writes `found`.
    let code = unsafe { libc::statvfs(path.as_ptr(), &mut found) };
    ensure!(code == 0, "{}: {}", folder.display(), std::io::Error::last_os_error());
    Ok((found.f_blocks - found.f_bfree) * found.f_frsize)
}

/// All plain files below a folder, in order.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

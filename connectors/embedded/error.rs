//! Why the embedded broker does not start, or has stopped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Each says what happened and, where there is something to do, what.
#[derive(Debug, Error)]
pub enum EmbeddedError {
    #[error("the embedded broker can't listen on {address}: {source} (another process may hold the port; port 0 takes a free one)")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the embedded broker listens on loopback only, not on {address}: it has neither TLS nor authentication")]
    NotLoopback { address: SocketAddr },
    #[error("the embedded broker could not {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("another embedded broker holds the folder {folder}: stop it, or give this one a folder of its own")]
    FolderInUse { folder: PathBuf },
    #[error("the journal {path} is damaged at byte {position}: restore the file, or move the folder away to start empty")]
    JournalDamaged { path: PathBuf, position: u64 },
    #[error("journal {number} is missing in {folder}: restore the file, or move the folder away to start empty")]
    JournalMissing { folder: PathBuf, number: u64 },
    #[error("the embedded broker could not start its thread or runtime: {source}")]
    Thread { source: std::io::Error },
    #[error("{what} of the embedded broker panicked")]
    Panicked { what: &'static str },
}

impl EmbeddedError {
    pub(crate) fn io(what: &'static str, path: &Path, source: std::io::Error) -> EmbeddedError {
        EmbeddedError::Io { what, path: path.to_owned(), source }
    }
}

//! Changes written as a table file of RocksDB, which the store takes in by a link.
//!
//! A flush waits for its epoch to be committed. In memory, the flushes of all regions, which fill alike, would take half as much again as the tables
//! themselves. So a large flush is written to its file when it is sealed and waits there:
//!
//! ```text
//!  seal ──▶ <n>.ingest ──▶ commit of the epoch ──▶ taken in with a second file that has the record, both or none
//!               └──▶ the flush is dropped, or the store opened again: deleted
//! ```

use super::store::write_error;
use crate::changes::{CHUNK_GROUPS, ChangeSink, Entries, Prefix, Removal, hash_of_entry, removed_range, window_seed};
use rocksdb::{Options, SstFileWriter};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use streamshield_core::ids::Digest;
use streamshield_core::ports::state::StateError;

pub(super) const SUFFIX: &str = ".ingest";

/// Names are never used twice in a process: a file that is dropped late must not take another one with it.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A finished file outside of the store; deleted when dropped.
pub(crate) struct TableFile {
    path: PathBuf,
}

impl TableFile {
    fn new(directory: &Path) -> Self {
        TableFile { path: directory.join(format!("{}{SUFFIX}", NEXT.fetch_add(1, Ordering::Relaxed))) }
    }

    pub fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |found| found.len())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TableFile {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "a table file that is of no use stays until the store is opened again");
            }
            _ => {}
        }
    }
}

/// A table file being written. Removals come first: a range that is deleted in a file hides no entry of the same file.
pub(crate) struct TableWriter<'options> {
    writer: SstFileWriter<'options>,
    file: TableFile,
    digest: Digest,
    key: Vec<u8>,
}

impl<'options> TableWriter<'options> {
    pub fn create(options: &'options Options, directory: &Path) -> Result<Self, StateError> {
        let file = TableFile::new(directory);
        let writer = SstFileWriter::create(options);
        writer.open(&file.path).map_err(write_error)?;
        Ok(TableWriter { writer, file, digest: Digest::default(), key: vec![] })
    }

    pub fn delete_range(&mut self, from: &Prefix, to: &[u8]) -> Result<(), StateError> {
        self.writer.delete_range(&from[..], to).map_err(write_error)
    }

    /// Keys come in order.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.writer.put(key, value).map_err(write_error)
    }

    fn put_entry(&mut self, prefix: &Prefix, entry: &[u8], key_len: usize, seed: u64) -> Result<(), StateError> {
        self.digest.fold(hash_of_entry(entry, seed));
        self.key.clear();
        self.key.extend_from_slice(prefix);
        self.key.extend_from_slice(&entry[..key_len]);
        self.writer.put(&self.key, &entry[key_len..]).map_err(write_error)
    }

    /// At least one entry or removal is in it.
    pub fn finish(mut self) -> Result<(TableFile, Digest), StateError> {
        self.writer.finish().map_err(write_error)?;
        Ok((self.file, self.digest))
    }
}

impl ChangeSink for TableWriter<'_> {
    fn remove(&mut self, removal: &Removal) -> Result<(), StateError> {
        self.digest.fold(removal.hash());
        if removal.is_stored {
            let (from, to) = removed_range(&removal.prefix, removal.through.as_deref());
            self.delete_range(&from, &to)?;
        }
        Ok(())
    }

    fn put_window(
        &mut self,
        prefix: Prefix,
        widths: Option<(usize, usize)>,
        groups: &[u32],
        entries: &impl Entries,
    ) -> Result<(), StateError> {
        let seed = window_seed(&prefix);
        let mut buffer = vec![];
        for chunk in groups.chunks(CHUNK_GROUPS) {
            if let Some((key_len, states_len)) = widths
                && key_len + states_len > 0
            {
                buffer.resize(chunk.len() * (key_len + states_len), 0);
                entries.write_fixed(chunk, key_len + states_len, &mut buffer);
                buffer.chunks_exact(key_len + states_len).try_for_each(|entry| self.put_entry(&prefix, entry, key_len, seed))?;
                continue;
            }
            for &group in chunk {
                buffer.clear();
                entries.write_key(group, &mut buffer);
                let key_len = buffer.len();
                entries.write_states(group, &mut buffer);
                self.put_entry(&prefix, &buffer, key_len, seed)?;
            }
        }
        Ok(())
    }
}

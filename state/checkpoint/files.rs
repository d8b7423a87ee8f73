//! The files of a checkpoint folder: what is in them, without reading again what was read for an earlier checkpoint.
//!
//! Identity is the content's XXH3-128, never the name: RocksDB's file numbers are used again after a region was adopted from elsewhere.
//! But a table file never changes and its hard link in the next checkpoint folder is the same inode, so its hash is remembered by
//! (device, inode, size, time of modification, name). What is uploaded is hashed once more on its way, and must agree.

use crate::error::StoreError;
use crate::names::is_plain;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Read at once from a file.
const BUFFER_BYTES: usize = 256 << 10;
/// Smaller files are read each time: that is cheap, and RocksDB rewrites the small ones.
const REMEMBERED_BYTES_MIN: u64 = 64 << 10;
/// Hashes remembered at most, 100 bytes each.
const REMEMBERED_MAX: usize = 65_536;

/// One file of a checkpoint folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundFile {
    pub name: String,
    pub path: PathBuf,
    pub size: u64,
    pub hash: u128,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    name: String,
}

impl Identity {
    fn new(name: &str, metadata: &Metadata) -> Identity {
        Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            name: name.to_owned(),
        }
    }
}

/// Hashes of files that do not change.
#[derive(Default)]
pub(crate) struct HashMemory {
    known: Mutex<HashMap<Identity, u128>>,
}

impl HashMemory {
    /// The files of a folder by name. Blocks.
    pub(crate) fn examine(&self, folder: &Path) -> Result<Vec<FoundFile>, StoreError> {
        let disk = |error: std::io::Error| StoreError::disk("read", folder, &error);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(disk)? {
            let entry = entry.map_err(disk)?;
            let path = entry.path();
            let metadata = std::fs::symlink_metadata(&path).map_err(|error| StoreError::disk("read", &path, &error))?;
            let name = entry.file_name().into_string().ok().filter(|name| is_plain(name));
            let Some(name) = name.filter(|_| metadata.is_file()) else {
                let error = std::io::Error::other("a checkpoint folder holds plain files only");
                return Err(StoreError::disk("use", &path, &error));
            };
            let hash = self.hash(&name, &path, &metadata)?;
            files.push(FoundFile { name, path, size: metadata.len(), hash });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    fn hash(&self, name: &str, path: &Path, metadata: &Metadata) -> Result<u128, StoreError> {
        if metadata.len() < REMEMBERED_BYTES_MIN {
            return hash_file(path);
        }
        let identity = Identity::new(name, metadata);
        if let Some(hash) = self.known.lock().get(&identity) {
            return Ok(*hash);
        }
        let hash = hash_file(path)?;
        let mut known = self.known.lock();
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert(identity, hash);
        Ok(hash)
    }
}

fn hash_file(path: &Path) -> Result<u128, StoreError> {
    let disk = |error: std::io::Error| StoreError::disk("read", path, &error);
    let mut file = File::open(path).map_err(disk)?;
    let mut hasher = Xxh3::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = file.read(&mut buffer).map_err(disk)?;
        if read == 0 {
            return Ok(hasher.digest128());
        }
        hasher.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_128;

    #[test]
    fn a_file_number_used_again_with_other_content_is_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let memory = HashMemory::default();
        let path = folder.path().join("000012.sst");
        let (old, new) = (vec![1_u8; 100_000], vec![2_u8; 100_000]);
        std::fs::write(&path, &old).unwrap();
        assert_eq!(memory.examine(folder.path()).unwrap()[0].hash, xxh3_128(&old));
        // As after an adopt: removed, and written anew under the same name with the same size.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(folder.path().join("000013.sst"), &old).unwrap();
        std::fs::write(&path, &new).unwrap();
        let found = memory.examine(folder.path()).unwrap();
        assert_eq!([found[0].hash, found[1].hash], [xxh3_128(&new), xxh3_128(&old)]);
    }

    #[test]
    fn a_hard_link_in_the_next_folder_is_not_read_again() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (root.path().join("1"), root.path().join("2"));
        std::fs::create_dir(&first).unwrap();
        std::fs::create_dir(&second).unwrap();
        let content = vec![7_u8; 100_000];
        std::fs::write(first.join("000012.sst"), &content).unwrap();
        let memory = HashMemory::default();
        memory.examine(&first).unwrap();
        std::fs::hard_link(first.join("000012.sst"), second.join("000012.sst")).unwrap();
        let remembered = memory.known.lock().len();
        assert_eq!(memory.examine(&second).unwrap()[0].hash, xxh3_128(&content));
        assert_eq!((remembered, memory.known.lock().len()), (1, 1), "the link is known by its inode");
    }

    #[test]
    fn a_folder_or_a_link_among_the_files_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("x")).unwrap();
        assert!(HashMemory::default().examine(folder.path()).is_err());
        std::fs::remove_file(folder.path().join("x")).unwrap();
        std::fs::create_dir(folder.path().join("d")).unwrap();
        assert!(HashMemory::default().examine(folder.path()).is_err());
    }
}

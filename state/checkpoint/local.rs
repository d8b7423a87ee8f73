//! Checkpoints in a folder of this machine, while the store is away.
//!
//! ```text
//! <local_fallback>/<job>/1-3/00000000000000004711-1764091234567/manifest.json
//!                                                              /files/000012.sst   hard links where the disk is the same
//!                           /.part-00000000000000004712-…      being written; renamed when all of it is on disk
//! ```
//!
//! They survive the process, not the machine, so nothing is trimmed from a log on their account. Everything is synced before the rename: what
//! bears its final name is whole after a power failure, too. They are bounded by count and bytes per region; the oldest is dropped.
//! One that is being restored or uploaded, by this process or another one, is locked (`flock` on its manifest) and stays.

use crate::error::{Failure, StoreError};
use crate::files::FoundFile;
use crate::manifest::{Manifest, ManifestFile};
use crate::names::{ManifestName, region_folder};
use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use streamshield_core::ids::RegionId;
use streamshield_core::mutants;
use xxhash_rust::xxh3::Xxh3;

const MANIFEST: &str = "manifest.json";
const FILES: &str = "files";
const PART: &str = ".part-";
const GONE: &str = ".gone-";
const BUFFER_BYTES: usize = 256 << 10;

/// The local folder of a job.
#[derive(Debug)]
pub(crate) struct LocalFolder {
    root: PathBuf,
    job: String,
    count_max: usize,
    bytes_max: u64,
}

/// A checkpoint in it that stays as long as this lives.
#[derive(Debug)]
pub(crate) struct Held {
    pub manifest: Manifest,
    folder: PathBuf,
    /// Holds the shared lock.
    _lock: File,
}

fn disk<'a>(what: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> StoreError + 'a {
    move |error| StoreError::disk(what, path, &error)
}

fn sync_folder(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(disk("sync", path))
}

pub(crate) fn create_private(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(disk("create the folder", path))
}

impl LocalFolder {
    pub(crate) fn open(root: &Path, job: &str, count_max: usize, bytes_max: u64) -> Result<LocalFolder, StoreError> {
        let root = root.join(job);
        create_private(&root)?;
        Ok(LocalFolder { root, job: job.to_owned(), count_max, bytes_max })
    }

    fn region(&self, region: RegionId) -> PathBuf {
        self.root.join(region_folder(region))
    }

    fn folder(&self, region: RegionId, name: ManifestName) -> PathBuf {
        self.region(region).join(name.to_string().trim_end_matches(".json"))
    }

    /// Keeps a checkpoint; then drops the oldest ones beyond the bounds.
    pub(crate) fn save(&self, manifest: &Manifest, files: &[FoundFile]) -> Result<(), StoreError> {
        if manifest.bytes() > self.bytes_max {
            let message = format!("the local folder takes {} bytes per region, this checkpoint has {}", self.bytes_max, manifest.bytes());
            return Err(StoreError::new(Failure::Disk, message));
        }
        let (region, name) = (manifest.region, manifest.name());
        let folder = self.folder(region, name);
        if folder.join(MANIFEST).exists() {
            return Ok(()); // An epoch is one state: it lies here already.
        }
        let parent = self.region(region);
        create_private(&parent)?;
        let part = parent.join(format!("{PART}{}", name.to_string().trim_end_matches(".json")));
        remove_folder(&part)?;
        let written = write_folder(&part, manifest, files);
        let renamed = written.and_then(|()| std::fs::rename(&part, &folder).map_err(disk("rename", &part)));
        if let Err(error) = renamed {
            let _ = std::fs::remove_dir_all(&part);
            return Err(error);
        }
        sync_folder(&parent)?;
        self.prune(region)
    }

    fn prune(&self, region: RegionId) -> Result<(), StoreError> {
        let mut kept: Vec<(ManifestName, u64)> =
            self.names(region)?.into_iter().map(|name| (name, self.read(region, name).map_or(0, |manifest| manifest.bytes()))).collect();
        let mut index = 0;
        while index + 1 < kept.len() {
            let bytes: u64 = kept.iter().map(|(_, bytes)| bytes).sum();
            if kept.len() <= self.count_max && bytes <= self.bytes_max {
                break;
            }
            if self.drop_one(region, kept[index].0)? {
                kept.remove(index);
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    /// Names of the complete ones, the oldest first.
    fn names(&self, region: RegionId) -> Result<Vec<ManifestName>, StoreError> {
        let parent = self.region(region);
        let entries = match std::fs::read_dir(&parent) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::disk("read", &parent, &error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(disk("read", &parent))?.file_name();
            names.extend(name.to_str().and_then(|name| ManifestName::parse(&format!("{name}.json"))));
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, region: RegionId, name: ManifestName) -> Result<Manifest, StoreError> {
        let path = self.folder(region, name).join(MANIFEST);
        let bytes = std::fs::read(&path).map_err(disk("read", &path))?;
        Ok(Manifest::decode(&bytes, &self.job, region, name)?)
    }

    /// Those that can be read, the oldest first.
    pub(crate) fn list(&self, region: RegionId) -> Result<Vec<Manifest>, StoreError> {
        let mut found = Vec::new();
        for name in self.names(region)? {
            match self.read(region, name) {
                Ok(manifest) => found.push(manifest),
                Err(error) => tracing::warn!(%region, %error, "a local checkpoint is left out"),
            }
        }
        Ok(found)
    }

    /// None: it was dropped meanwhile.
    pub(crate) fn hold(&self, region: RegionId, name: ManifestName) -> Result<Option<Held>, StoreError> {
        let folder = self.folder(region, name);
        let path = folder.join(MANIFEST);
        let lock = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::disk("read", &path, &error)),
        };
        lock.lock_shared().map_err(disk("lock", &path))?;
        // Whoever drops one renames it first, with the lock held.
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(Held { manifest: self.read(region, name)?, folder, _lock: lock }))
    }

    /// Drops those up to this epoch: the store has it, or a later one.
    pub(crate) fn drop_up_to(&self, region: RegionId, newest: ManifestName) -> Result<(), StoreError> {
        for name in self.names(region)? {
            if name.epoch <= newest.epoch {
                self.drop_one(region, name)?;
            }
        }
        Ok(())
    }

    /// False: somebody uses it.
    fn drop_one(&self, region: RegionId, name: ManifestName) -> Result<bool, StoreError> {
        let folder = self.folder(region, name);
        let path = folder.join(MANIFEST);
        // Without a manifest (damaged) there is nobody who could use it.
        let lock = File::open(&path).ok();
        if let Some(lock) = &lock
            && lock.try_lock().is_err()
        {
            return Ok(false);
        }
        let gone = self.region(region).join(format!("{GONE}{}", name.to_string().trim_end_matches(".json")));
        remove_folder(&gone)?;
        match std::fs::rename(&folder, &gone) {
            Ok(()) => remove_folder(&gone)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::disk("drop", &folder, &error)),
        }
        Ok(true)
    }

    pub(crate) fn count(&self, region: RegionId) -> Result<usize, StoreError> {
        Ok(self.names(region)?.len())
    }

    /// What a process that died left behind while it wrote or dropped one.
    pub(crate) fn sweep(&self, region: RegionId, older_than: std::time::Duration) -> Result<(), StoreError> {
        let parent = self.region(region);
        let Ok(entries) = std::fs::read_dir(&parent) else { return Ok(()) };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let is_ours = name.to_str().is_some_and(|name| name.starts_with(PART) || name.starts_with(GONE));
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let is_old = modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > older_than));
            if is_ours && is_old {
                remove_folder(&entry.path())?;
            }
        }
        Ok(())
    }
}

impl Held {
    /// The files, to be uploaded.
    pub(crate) fn files(&self) -> Vec<FoundFile> {
        let file = |file: &ManifestFile| FoundFile {
            name: file.name.clone(),
            path: self.folder.join(FILES).join(&file.name),
            size: file.size,
            hash: file.checksum,
        };
        self.manifest.files.iter().map(file).collect()
    }

    /// Copies the files into a folder that exists, checking them.
    pub(crate) fn copy_to(&self, target: &Path) -> Result<u64, StoreError> {
        for file in &self.manifest.files {
            let from = self.folder.join(FILES).join(&file.name);
            let to = target.join(&file.name);
            // Table files never change: one inode for both, and the checksum is of what is linked.
            let linked = file.name.ends_with(".sst") && std::fs::hard_link(&from, &to).is_ok();
            let (size, checksum) = if linked { hash_and_copy(&to, None)? } else { hash_and_copy(&from, Some(&to))? };
            let is_right = checksum == file.checksum || mutants::is_on("restore-without-checksum");
            if size != file.size || !is_right {
                return Err(StoreError::damaged(format!("file {} has {size} bytes of {} or a wrong checksum", from.display(), file.size)));
            }
        }
        Ok(self.manifest.bytes())
    }
}

fn write_folder(part: &Path, manifest: &Manifest, files: &[FoundFile]) -> Result<(), StoreError> {
    let into = part.join(FILES);
    create_private(&into)?;
    for file in files {
        let target = into.join(&file.name);
        if std::fs::hard_link(&file.path, &target).is_err() {
            std::fs::copy(&file.path, &target).map_err(disk("copy", &file.path))?;
        }
        File::open(&target).and_then(|file| file.sync_all()).map_err(disk("sync", &target))?;
    }
    let path = part.join(MANIFEST);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(disk("write", &path))?;
    file.write_all(&manifest.encode()).and_then(|()| file.sync_all()).map_err(disk("write", &path))?;
    sync_folder(&into)?;
    sync_folder(part)
}

fn remove_folder(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::disk("remove", path, &error)),
        _ => Ok(()),
    }
}

fn hash_and_copy(from: &Path, to: Option<&Path>) -> Result<(u64, u128), StoreError> {
    let mut source = match File::open(from) {
        Ok(source) => source,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(StoreError::damaged(format!("file {} is missing", from.display())));
        }
        Err(error) => return Err(StoreError::disk("read", from, &error)),
    };
    let mut sink = match to {
        Some(to) => Some(File::options().write(true).create_new(true).mode(0o600).open(to).map_err(disk("write", to))?),
        None => None,
    };
    let (mut hasher, mut size, mut buffer) = (Xxh3::new(), 0, vec![0; BUFFER_BYTES]);
    loop {
        let read = source.read(&mut buffer).map_err(disk("read", from))?;
        if read == 0 {
            return Ok((size, hasher.digest128()));
        }
        hasher.update(&buffer[..read]);
        if let Some(sink) = &mut sink {
            sink.write_all(&buffer[..read]).map_err(disk("write", to.unwrap_or(from)))?;
        }
        size += read as u64;
    }
}

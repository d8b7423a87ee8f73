//! Files to the store and back, in parts: bounded memory, bounded time per request, hashed on the way.
//!
//! ```text
//!   up    file ─► up to one part: one request        (overwriting: the name says the content, so a repeat is the same object)
//!              └► larger: parts under way at once, as many as there are permits ─► complete
//!   down  ranges fetched ahead, in order ─► hash ─► disk
//! ```

use crate::breaker::Access;
use crate::error::{Failure, StoreError};
use crate::files::FoundFile;
use crate::manifest::ManifestFile;
use crate::remote::Remote;
use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use parking_lot::Mutex;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::mutants;
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use xxhash_rust::xxh3::Xxh3;

/// Size of a part: the memory of a permit.
pub(crate) const PART_BYTES: u64 = 8 << 20;
/// S3 takes 10,000 parts.
const PARTS_MAX: u64 = 9_000;
/// Ranges of one file fetched ahead of the disk.
const RANGES_AHEAD: usize = 4;
/// For telling the store to forget a torn upload.
const ABORT_TIME_MAX: Duration = Duration::from_secs(10);

fn part_bytes(size: u64) -> u64 {
    PART_BYTES.max(size.div_ceil(PARTS_MAX))
}

fn changed(file: &FoundFile) -> StoreError {
    StoreError::disk("upload", &file.path, &std::io::Error::other("it changed while it was read"))
}

/// Uploads a file under this name.
pub(crate) async fn upload(remote: &Arc<Remote>, path: &Path, file: &FoundFile) -> Result<(), StoreError> {
    if file.size <= PART_BYTES {
        // Before the permit: who waits for the bandwidth keeps nobody from a request.
        remote.throttle.acquire(file.size).await;
        let permit = remote.uploads.clone().acquire_owned().await.expect("never closed");
        let (bytes, hasher) = read_part(open(file)?, file, 0, file.size, Box::new(Xxh3::new())).await?;
        if hasher.digest128() != file.hash {
            return Err(changed(file));
        }
        let result = remote.put(path, bytes).await;
        drop(permit);
        return result;
    }
    // All of it again, not the part: a failed part leaves a gap in the upload that nothing can fill.
    let waited = Mutex::new(Duration::ZERO);
    remote.retried_beside(&waited, Access::Write, || upload_parts(remote, path, file, &waited)).await
}

fn open(file: &FoundFile) -> Result<Arc<File>, StoreError> {
    File::open(&file.path).map(Arc::new).map_err(|error| StoreError::disk("read", &file.path, &error))
}

async fn read_part(
    source: Arc<File>,
    file: &FoundFile,
    offset: u64,
    length: u64,
    mut hasher: Box<Xxh3>,
) -> Result<(Bytes, Box<Xxh3>), StoreError> {
    let read = spawn_blocking(move || {
        let mut buffer = vec![0; usize::try_from(length).expect("a part fits into memory")];
        source.read_exact_at(&mut buffer, offset)?;
        hasher.update(&buffer);
        Ok((Bytes::from(buffer), hasher))
    });
    read.await.expect("reading does not panic").map_err(|error: std::io::Error| StoreError::disk("read", &file.path, &error))
}

/// One attempt. How long it waited for the bandwidth is added to `waited`.
async fn upload_parts(remote: &Arc<Remote>, path: &Path, file: &FoundFile, waited: &Mutex<Duration>) -> Result<(), StoreError> {
    let what = format!("cannot write {path}");
    let mut upload = Torn::new(remote.bounded(&what, remote.store.put_multipart(path)).await?);
    let source = open(file)?;
    let mut under_way = JoinSet::new();
    let mut hasher = Box::new(Xxh3::new());
    let (mut offset, step) = (0, part_bytes(file.size));
    while offset < file.size {
        let length = step.min(file.size - offset);
        let throttled = remote.throttle.acquire(length).await;
        *waited.lock() += throttled;
        let permit = remote.uploads.clone().acquire_owned().await.expect("never closed");
        let bytes;
        (bytes, hasher) = read_part(source.clone(), file, offset, length, hasher).await?;
        // The order of these calls is the order of the parts.
        let part = upload.as_mut().put_part(PutPayload::from_bytes(bytes));
        let (remote, what) = (remote.clone(), what.clone());
        // A task of its own, so that it moves on while the next part is read.
        under_way.spawn(async move {
            let result = remote.bounded(&what, part).await;
            drop(permit);
            result
        });
        while let Some(done) = under_way.try_join_next() {
            done.expect("a part does not panic")?;
        }
        offset += length;
    }
    while let Some(done) = under_way.join_next().await {
        done.expect("a part does not panic")?;
    }
    if hasher.digest128() != file.hash {
        return Err(changed(file));
    }
    remote.bounded(&what, upload.as_mut().complete()).await?;
    upload.disarm();
    Ok(())
}

/// An upload in parts that is given up when this is dropped: parts of a torn upload are invisible and cost money.
/// (A process that is killed leaves them; a life-cycle rule of the bucket takes care of those.)
struct Torn(Option<Box<dyn MultipartUpload>>);

impl Torn {
    fn new(upload: Box<dyn MultipartUpload>) -> Torn {
        Torn(Some(upload))
    }

    fn as_mut(&mut self) -> &mut dyn MultipartUpload {
        self.0.as_deref_mut().expect("taken at its end only")
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Torn {
    fn drop(&mut self) {
        if let (Some(mut upload), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                // Best effort: the store collects what is left over.
                let _ = tokio::time::timeout(ABORT_TIME_MAX, upload.abort()).await;
            });
        }
    }
}

/// Aborts the task when its result is no longer wanted.
struct Fetching<T>(JoinHandle<T>);

impl<T> Drop for Fetching<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads an object, checks it against what its manifest says, and writes it to `target` if there is one.
pub(crate) async fn download(
    remote: &Arc<Remote>,
    path: &Path,
    expected: &ManifestFile,
    target: Option<PathBuf>,
) -> Result<u64, StoreError> {
    let of_file = |error: StoreError| match error.failure {
        Failure::Missing => StoreError::damaged(format!("file {} is missing in the store", expected.object)),
        Failure::Damaged => StoreError::damaged(format!("file {}: {}", expected.object, error.message)),
        _ => error,
    };
    let mut sink = match &target {
        Some(target) => Some(create(target)?),
        None => None,
    };
    let mut hasher = Box::new(Xxh3::new());
    if expected.size == 0 {
        let size = remote.head(path).await.map_err(of_file)?.size;
        if size != 0 {
            return Err(of_file(StoreError::damaged(format!("it has {size} bytes instead of 0"))));
        }
    }
    let starts = (0..expected.size).step_by(usize::try_from(PART_BYTES).expect("a part fits into memory"));
    let fetches = starts.map(|start| {
        let (remote, path, size) = (remote.clone(), path.clone(), expected.size);
        async move {
            let permit = remote.fetches.clone().acquire_owned().await.expect("never closed");
            let range = start..size.min(start + PART_BYTES);
            let task = tokio::spawn(async move { remote.get_range(&path, range, size).await });
            let bytes = (&mut Fetching(task).0).await.expect("a fetch does not panic")?;
            Ok::<_, StoreError>((permit, bytes))
        }
    });
    let mut fetched = futures::stream::iter(fetches).buffered(RANGES_AHEAD);
    while let Some(range) = fetched.next().await {
        let (permit, bytes) = range.map_err(of_file)?;
        (sink, hasher) = absorb(sink, hasher, bytes, &target).await?;
        drop(permit);
    }
    if hasher.digest128() != expected.checksum && !mutants::is_on("restore-without-checksum") {
        return Err(StoreError::damaged(format!("file {}: its checksum is wrong", expected.object)));
    }
    Ok(expected.size)
}

fn create(target: &PathBuf) -> Result<File, StoreError> {
    let created = File::options().write(true).create_new(true).mode(0o600).open(target);
    created.map_err(|error| StoreError::disk("write", target, &error))
}

/// Hashes and writes away from the threads that serve requests.
async fn absorb(
    mut sink: Option<File>,
    mut hasher: Box<Xxh3>,
    bytes: Bytes,
    target: &Option<PathBuf>,
) -> Result<(Option<File>, Box<Xxh3>), StoreError> {
    let work = spawn_blocking(move || {
        hasher.update(&bytes);
        if let Some(file) = &mut sink {
            file.write_all(&bytes)?;
        }
        Ok((sink, hasher))
    });
    work.await
        .expect("writing does not panic")
        .map_err(|error: std::io::Error| StoreError::disk("write", target.as_deref().unwrap_or(std::path::Path::new("(nowhere)")), &error))
}

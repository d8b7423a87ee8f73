//! Requests to the store: each bounded, tried again where that helps, and told to the circuit breaker.
//!
//! One layer for all stores, because what the libraries do by themselves differs: the HTTP ones retry for minutes, HDFS and the local disk
//! don't. Here a request gets `request_timeout` per attempt and `retry_timeout` for all attempts; the HTTP clients below only repeat what fails
//! at once.
//!
//! A conditional write is the delicate one. When the answer to it is lost (a time-out, or a 5xx after the store had written), the next attempt
//! finds our own object and reports "exists"; S3 also answers 409, reported the same way, when nothing was written at all. So "exists" is
//! never believed: the object is read back and compared ([`Remote::create`]).

use crate::breaker::{Access, Breaker};
use crate::config::StoreConfig;
use crate::error::{Failure, Redactor, StoreError, sort};
use crate::metrics;
use crate::throttle::Throttle;
use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use parking_lot::Mutex;
use rand::Rng;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Attempts of one request.
const ATTEMPTS_MAX: u32 = 3;
/// Between the first and the second attempt; doubles.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Manifests and marks: larger ones are not ours.
const SMALL_OBJECT_BYTES_MAX: u64 = 64 << 20;

/// The store, seen by the rest of this crate.
#[derive(Debug)]
pub(crate) struct Remote {
    pub store: Arc<dyn ObjectStore>,
    request_timeout: Duration,
    retry_timeout: Duration,
    redactor: Redactor,
    breaker: Mutex<Breaker>,
    pub throttle: Throttle,
    /// Permits for bodies under way to the store (M-1: each holds at most one part in memory).
    pub uploads: Arc<Semaphore>,
    /// Permits for ranges under way from the store.
    pub fetches: Arc<Semaphore>,
}

/// What a conditional write found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// Our bytes lie there, by this call or by an attempt whose answer was lost.
    Ours,
    /// Somebody else's.
    Other(Bytes),
}

impl Remote {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, config: &StoreConfig) -> Remote {
        metrics::store_available(true);
        Remote {
            store,
            request_timeout: config.request_timeout,
            retry_timeout: config.retry_timeout,
            redactor: Redactor::new(&config.options),
            breaker: Mutex::new(Breaker::new(config.failures_max, config.backoff, config.retry_timeout)),
            throttle: Throttle::new(config.upload_bytes_per_second, Instant::now()),
            uploads: Arc::new(Semaphore::new(config.upload_concurrency)),
            fetches: Arc::new(Semaphore::new(config.restore_concurrency)),
        }
    }

    /// Whether a checkpoint should go to the store now; see [`Breaker::permits`].
    pub(crate) fn permits(&self) -> bool {
        self.breaker.lock().permits(Instant::now())
    }

    pub(crate) fn is_available(&self) -> bool {
        self.breaker.lock().is_closed()
    }

    /// A whole operation ran out of its time.
    pub(crate) fn gave_up(&self, access: Access) {
        self.tell_breaker(|breaker| breaker.failed(access, true, Instant::now()));
    }

    fn tell_breaker(&self, tell: impl FnOnce(&mut Breaker)) {
        let mut breaker = self.breaker.lock();
        let before = breaker.is_closed();
        tell(&mut breaker);
        let after = breaker.is_closed();
        drop(breaker);
        metrics::store_available(after);
        match (before, after) {
            (true, false) => tracing::warn!("the checkpoint store is away: checkpoints go to the local folder until it answers"),
            (false, true) => tracing::info!("the checkpoint store is back"),
            _ => {}
        }
    }

    /// One attempt, bounded.
    pub(crate) async fn bounded<T>(&self, what: &str, request: impl Future<Output = object_store::Result<T>>) -> Result<T, StoreError> {
        match timeout(self.request_timeout, request).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(sort(&error, what, &self.redactor)),
            Err(_) => Err(StoreError::new(Failure::TimedOut, format!("{what}: no answer in {:?}", self.request_timeout))),
        }
    }

    /// Attempts until one succeeds, one fails for good, or the time is used up.
    pub(crate) async fn retried<T, F>(&self, access: Access, attempt: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.retried_beside(&Mutex::new(Duration::ZERO), access, attempt).await
    }

    /// The same for attempts that wait for their bandwidth: what they add to `waited` is none of the store's time.
    pub(crate) async fn retried_beside<T, F>(
        &self,
        waited: &Mutex<Duration>,
        access: Access,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let begin = Instant::now();
        let mut only_time_outs = true;
        for number in 1.. {
            let error = match attempt().await {
                Ok(value) => {
                    self.tell_breaker(|breaker| breaker.succeeded(access));
                    return Ok(value);
                }
                Err(error) => error,
            };
            only_time_outs &= error.failure == Failure::TimedOut;
            let pause = PAUSE_MIN * 2_u32.pow(number - 1);
            let pause = pause.mul_f64(rand::rng().random_range(0.5..1.5));
            let again = matches!(error.failure, Failure::Away | Failure::TimedOut)
                && number < ATTEMPTS_MAX
                && begin.elapsed().saturating_sub(*waited.lock()) + pause < self.retry_timeout;
            if !again {
                match error.failure {
                    // The store answered: it is there.
                    Failure::Missing | Failure::Exists => self.tell_breaker(|breaker| breaker.succeeded(Access::Read)),
                    Failure::Away | Failure::TimedOut | Failure::Refused | Failure::Unsupported => {
                        self.tell_breaker(|breaker| breaker.failed(access, only_time_outs, Instant::now()));
                    }
                    Failure::Damaged | Failure::Disk => {}
                }
                return Err(error);
            }
            metrics::request_retried();
            tracing::debug!(error = %error, attempt = number, "asking the checkpoint store again");
            tokio::time::sleep(pause).await;
        }
        unreachable!("the loop above has no other end")
    }

    /// All objects under a folder. Each page has its own time limit: a long list is not a hanging store.
    pub(crate) async fn list(&self, folder: &Path) -> Result<Vec<ObjectMeta>, StoreError> {
        let what = format!("cannot list {folder}");
        self.retried(Access::Read, || async {
            let mut stream = self.store.list(Some(folder));
            let mut found = Vec::new();
            while let Some(entry) = self.bounded(&what, async { stream.next().await.transpose() }).await? {
                found.push(entry);
            }
            Ok(found)
        })
        .await
    }

    /// Names of the folders right below this one.
    pub(crate) async fn folders(&self, folder: &Path) -> Result<Vec<String>, StoreError> {
        let what = format!("cannot list {folder}");
        let found = self.retried(Access::Read, || self.bounded(&what, self.store.list_with_delimiter(Some(folder)))).await?.common_prefixes;
        Ok(found.iter().filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    /// A small object as a whole.
    pub(crate) async fn get(&self, path: &Path) -> Result<Bytes, StoreError> {
        let what = format!("cannot read {path}");
        self.retried(Access::Read, || async {
            let request = async {
                let found = self.store.get(path).await?;
                let size = found.meta.size;
                if size > SMALL_OBJECT_BYTES_MAX {
                    return Ok(Err(size));
                }
                found.bytes().await.map(Ok)
            };
            match self.bounded(&what, request).await? {
                Ok(bytes) => Ok(bytes),
                Err(size) => Err(StoreError::damaged(format!("{path} has {size} bytes"))),
            }
        })
        .await
    }

    /// A range of an object that must be of this size.
    pub(crate) async fn get_range(&self, path: &Path, range: Range<u64>, size: u64) -> Result<Bytes, StoreError> {
        let what = format!("cannot read {path}");
        self.retried(Access::Read, || async {
            let options = GetOptions::default().with_range(Some(range.clone()));
            let request = async {
                let found = self.store.get_opts(path, options).await?;
                let found_size = found.meta.size;
                if found_size != size {
                    return Ok((found_size, Bytes::new()));
                }
                Ok((found_size, found.bytes().await?))
            };
            let (found_size, bytes) = self.bounded(&what, request).await?;
            if found_size != size {
                return Err(StoreError::damaged(format!("it has {found_size} bytes instead of {size}")));
            }
            if bytes.len() as u64 != range.end - range.start {
                let wanted = range.end - range.start;
                return Err(StoreError::new(Failure::Away, format!("{what}: {} bytes came instead of {wanted}", bytes.len())));
            }
            Ok(bytes)
        })
        .await
    }

    pub(crate) async fn head(&self, path: &Path) -> Result<ObjectMeta, StoreError> {
        let what = format!("cannot find {path}");
        self.retried(Access::Read, || self.bounded(&what, self.store.head(path))).await
    }

    /// Writes or overwrites.
    pub(crate) async fn put(&self, path: &Path, bytes: Bytes) -> Result<(), StoreError> {
        let what = format!("cannot write {path}");
        self.retried(Access::Write, || self.bounded(&what, self.store.put(path, PutPayload::from_bytes(bytes.clone())))).await?;
        Ok(())
    }

    /// Writes if nothing lies there.
    pub(crate) async fn create(&self, path: &Path, bytes: Bytes) -> Result<Created, StoreError> {
        let what = format!("cannot write {path}");
        self.retried(Access::Write, || async {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let put = self.store.put_opts(path, PutPayload::from_bytes(bytes.clone()), options);
            match self.bounded(&what, put).await {
                Ok(_) => return Ok(Created::Ours),
                Err(error) if error.failure == Failure::Exists => {}
                // A store without conditional writes: names carry the writer's incarnation, so only our own object can be there.
                Err(error) if error.failure == Failure::Unsupported => match self.bounded(&what, self.store.head(path)).await {
                    Err(error) if error.failure == Failure::Missing => {
                        self.bounded(&what, self.store.put(path, PutPayload::from_bytes(bytes.clone()))).await?;
                        return Ok(Created::Ours);
                    }
                    Err(error) => return Err(error),
                    Ok(_) => {}
                },
                Err(error) => return Err(error),
            }
            let found = self.bounded(&what, async { self.store.get(path).await?.bytes().await }).await;
            match found {
                Ok(found) if found == bytes => Ok(Created::Ours),
                Ok(found) => Ok(Created::Other(found)),
                // "Conflict": another write was under way and nothing landed.
                Err(error) if error.failure == Failure::Missing => Err(StoreError::new(Failure::Away, format!("{what}: a conflict"))),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Deletes; fine when it is gone.
    pub(crate) async fn delete(&self, path: &Path) -> Result<(), StoreError> {
        let what = format!("cannot delete {path}");
        match self.retried(Access::Write, || self.bounded(&what, self.store.delete(path))).await {
            Err(error) if error.failure == Failure::Missing => Ok(()),
            other => other,
        }
    }

    /// Copies within the store; a large file takes its time.
    pub(crate) async fn copy(&self, from: &Path, to: &Path, time_max: Duration) -> Result<(), StoreError> {
        let what = format!("cannot copy {from} to {to}");
        self.retried(Access::Write, || async {
            match timeout(time_max, self.store.copy(from, to)).await {
                Ok(result) => result.map_err(|error| sort(&error, &what, &self.redactor)),
                Err(_) => Err(StoreError::new(Failure::TimedOut, format!("{what}: no answer in {time_max:?}"))),
            }
        })
        .await
    }
}

//! A real store behind a layer that delays, fails, hangs or lies, as a test wants it.

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result, UploadPart,
};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Put,
    /// A conditional one.
    Create,
    Multipart,
    /// Of such an upload; it only fails or does not.
    Part,
    Get,
    List,
    Delete,
}

impl Op {
    pub fn is_write(self) -> bool {
        !matches!(self, Op::Get | Op::List)
    }
}

#[derive(Clone, Debug)]
pub enum Fault {
    None,
    /// Happens later.
    Delay(Duration),
    /// Happens once this is true.
    Until(Arc<AtomicBool>),
    /// Does not happen.
    Fail,
    /// Is not allowed.
    Refuse,
    /// Happens, and the answer is lost.
    FailAfter,
    /// Never answers.
    Hang,
    /// The process dies here.
    Die,
}

type Plan = dyn FnMut(Op, &str) -> Fault + Send;

pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    plan: Arc<Mutex<Box<Plan>>>,
    under_way: AtomicUsize,
    /// Writes under way at once, at most.
    pub writes_at_once: AtomicUsize,
    pub requests: AtomicUsize,
}

impl Faulty {
    pub fn new(inner: Arc<dyn ObjectStore>, plan: impl FnMut(Op, &str) -> Fault + Send + 'static) -> Arc<Faulty> {
        Arc::new(Faulty {
            inner,
            plan: Arc::new(Mutex::new(Box::new(plan))),
            under_way: AtomicUsize::new(0),
            writes_at_once: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
        })
    }

    pub fn set(&self, plan: impl FnMut(Op, &str) -> Fault + Send + 'static) {
        *self.plan.lock().unwrap() = Box::new(plan);
    }

    async fn run<T>(&self, op: Op, path: &str, request: impl Future<Output = Result<T>>) -> Result<T> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let _under_way = UnderWay::new(self, op);
        let fault = (self.plan.lock().unwrap())(op, path);
        match fault {
            Fault::None => request.await,
            Fault::Delay(delay) => {
                tokio::time::sleep(delay).await;
                request.await
            }
            Fault::Until(flag) => {
                while !flag.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                request.await
            }
            Fault::Fail => Err(broken()),
            Fault::Refuse => Err(refused(path)),
            Fault::FailAfter => {
                request.await?;
                Err(broken())
            }
            Fault::Hang => std::future::pending().await,
            Fault::Die => std::process::abort(),
        }
    }
}

struct UnderWay<'a>(&'a Faulty, Op);

impl<'a> UnderWay<'a> {
    fn new(store: &'a Faulty, op: Op) -> UnderWay<'a> {
        if op.is_write() {
            let now = store.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            store.writes_at_once.fetch_max(now, Ordering::SeqCst);
        }
        UnderWay(store, op)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.1.is_write() {
            self.0.under_way.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn refused(path: &str) -> object_store::Error {
    object_store::Error::PermissionDenied { path: path.to_owned(), source: "injected".into() }
}

fn broken() -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: "injected".into() }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    plan: Arc<Mutex<Box<Plan>>>,
    path: String,
}

impl fmt::Debug for FaultyUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyUpload")
    }
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let part = self.inner.put_part(data);
        match (self.plan.lock().unwrap())(Op::Part, &self.path) {
            Fault::Fail => Box::pin(async { Err(broken()) }),
            _ => part,
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let op = if options.mode == PutMode::Create { Op::Create } else { Op::Put };
        self.run(op, location.as_ref(), self.inner.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.run(Op::Multipart, location.as_ref(), self.inner.put_multipart_opts(location, options)).await?;
        Ok(Box::new(FaultyUpload { inner, plan: self.plan.clone(), path: location.to_string() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.run(Op::Get, location.as_ref(), self.inner.get_opts(location, options)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let fault = (self.plan.lock().unwrap())(Op::Delete, "");
        self.requests.fetch_add(1, Ordering::Relaxed);
        match fault {
            Fault::None => self.inner.delete_stream(locations),
            Fault::Refuse => futures::stream::once(async { Err(refused("x")) }).boxed(),
            _ => futures::stream::once(async { Err(broken()) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let fault = (self.plan.lock().unwrap())(Op::List, prefix.map_or("", |path| path.as_ref()));
        match fault {
            Fault::None => self.inner.list(prefix),
            Fault::Hang => futures::stream::pending().boxed(),
            Fault::Delay(delay) => {
                let inner = self.inner.list(prefix);
                futures::stream::once(tokio::time::sleep(delay)).flat_map_unordered(1, |()| futures::stream::empty()).chain(inner).boxed()
            }
            _ => futures::stream::once(async { Err(broken()) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.run(Op::List, prefix.map_or("", |path| path.as_ref()), self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.run(Op::Put, to.as_ref(), self.inner.copy_opts(from, to, options)).await
    }
}

//! A prefix of its own in a real store, for one test; and the store itself, to damage what lies there.

use futures::TryStreamExt;
use hdfs_native_object_store::HdfsObjectStoreBuilder;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use streamshield_checkpoint::{ObjectCheckpoints, StoreConfig};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub const JOB: &str = "hot-items";

pub struct Place {
    pub url: String,
    pub options: BTreeMap<String, String>,
    pub store: Arc<dyn ObjectStore>,
    /// Of this test, in `store`.
    pub prefix: String,
    /// For whatever the test needs on disk.
    pub disk: TempDir,
    runtime: Runtime,
}

fn unique(test: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("{test}-{nanos:x}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The address of a service from the environment. None (and a note for the end of the run) where the user chose to do without it.
///
/// # Panics
/// When there is none and nobody said that this is intended: a test that silently did nothing would prove nothing.
fn service(test: &str, service: &str) -> Option<String> {
    let variable = format!("STREAMSHIELD_{service}");
    if let Ok(address) = std::env::var(&variable) {
        return Some(address);
    }
    let skip = std::env::var(format!("STREAMSHIELD_SKIP_{service}")).is_ok_and(|value| value == "1");
    assert!(
        skip,
        "{test} needs a real {service}: run it by `make test` or below scripts/with-services.sh, set {variable}, or leave it out with STREAMSHIELD_SKIP_{service}=1"
    );
    println!("left out, needs {service}: {test}");
    if let Some(list) = std::env::var_os("STREAMSHIELD_SKIPPED_LIST")
        && let Ok(mut list) = std::fs::OpenOptions::new().append(true).create(true).open(list)
    {
        let _ = writeln!(list, "{test} ({service})");
    }
    None
}

impl Place {
    fn new(url: String, options: &[(&str, &str)], store: Arc<dyn ObjectStore>, prefix: String, disk: TempDir, runtime: Runtime) -> Place {
        let options = options.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Place { url, options, store, prefix, disk, runtime }
    }

    pub fn folder() -> Place {
        let disk = tempfile::tempdir().unwrap();
        let root = disk.path().join("store");
        std::fs::create_dir(&root).unwrap();
        let store = Arc::new(LocalFileSystem::new_with_prefix(&root).unwrap());
        Place::new(format!("file://{}", root.display()), &[], store, String::new(), disk, Runtime::new().unwrap())
    }

    /// The S3 server of this run, or another address that leads to it.
    pub fn s3(test: &str) -> Option<Place> {
        service(test, "S3").map(|endpoint| Place::s3_at(test, &endpoint, &endpoint))
    }

    /// `seen`: the address that the code under test uses; `endpoint`: the one that the test itself uses.
    pub fn s3_at(test: &str, endpoint: &str, seen: &str) -> Place {
        let prefix = unique(test);
        let store = AmazonS3Builder::new()
            .with_bucket_name("streamshield")
            .with_endpoint(endpoint)
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_access_key_id("test")
            .with_secret_access_key("test")
            .build()
            .unwrap();
        let options = [
            ("endpoint", seen),
            ("allow_http", "true"),
            ("path_style", "true"),
            ("region", "us-east-1"),
            ("access_key_id", "test-access-key"),
            ("secret_access_key", "test-secret-key"),
        ];
        let disk = tempfile::tempdir().unwrap();
        Place::new(format!("s3://streamshield/{prefix}"), &options, Arc::new(store), prefix, disk, Runtime::new().unwrap())
    }

    pub fn s3_endpoint(test: &str) -> Option<String> {
        service(test, "S3")
    }

    pub fn hdfs(test: &str) -> Option<Place> {
        let address = service(test, "HDFS")?;
        let prefix = unique(test);
        let runtime = Runtime::new().unwrap();
        let builder = HdfsObjectStoreBuilder::new().with_url(&address).with_io_runtime(runtime.handle().clone());
        let disk = tempfile::tempdir().unwrap();
        Some(Place::new(format!("{address}/{prefix}"), &[], Arc::new(builder.build().unwrap()), prefix, disk, runtime))
    }

    /// Short time-outs, no grace: what a test waits for should come soon.
    pub fn config(&self) -> StoreConfig {
        let mut config = StoreConfig::new(&self.url);
        config.options = self.options.clone();
        config.request_timeout = Duration::from_secs(10);
        config.retry_timeout = Duration::from_secs(30);
        config.gc_grace = Duration::ZERO;
        config
    }

    pub fn open(&self) -> ObjectCheckpoints {
        ObjectCheckpoints::open(self.config(), JOB).unwrap()
    }

    /// Paths below the prefix.
    fn path(&self, relative: &str) -> Path {
        let prefix = Path::from(self.prefix.as_str());
        Path::parse(format!("{prefix}/{relative}")).unwrap()
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Names of all objects below a folder, relative to it.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let path = self.path(folder);
        let objects: Vec<_> = self.block_on(self.store.list(Some(&path)).try_collect()).unwrap();
        let mut names: Vec<String> = objects
            .iter()
            .map(|object| object.location.as_ref().trim_start_matches(path.as_ref()).trim_start_matches('/').to_owned())
            .collect();
        names.sort();
        names
    }

    pub fn read(&self, relative: &str) -> Vec<u8> {
        let path = self.path(relative);
        self.block_on(async { self.store.get(&path).await.unwrap().bytes().await.unwrap() }).to_vec()
    }

    pub fn write(&self, relative: &str, bytes: Vec<u8>) {
        let path = self.path(relative);
        self.block_on(self.store.put(&path, PutPayload::from(bytes))).unwrap();
    }

    pub fn delete(&self, relative: &str) {
        let path = self.path(relative);
        self.block_on(self.store.delete(&path)).unwrap();
    }
}

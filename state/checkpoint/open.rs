//! From a URL and options to a store: the one place that knows which kinds there are.
//!
//! Whatever is wrong with them is said here, at construction: an unknown scheme, a misspelt option, a credential in the URL, a folder that cannot
//! be made. Whether the store is there and lets us in, only a request can tell; that is `probe`.

use crate::config::StoreConfig;
use crate::error::{Redactor, StoreProblem, without_credentials};
use hdfs_native_object_store::HdfsObjectStoreBuilder;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use url::Url;

/// A store that has been opened, not yet asked anything.
pub(crate) struct Opened {
    pub store: Arc<dyn ObjectStore>,
    pub prefix: Path,
    /// The folder of a `file://` store.
    pub folder: Option<PathBuf>,
}

const SCHEMES: &str = "use s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, abfss://container@account.dfs.core.windows.net/prefix, \
                       hdfs://namenode:port/prefix or file:///folder";

pub(crate) fn open(config: &StoreConfig, runtime: &Handle) -> Result<Opened, StoreProblem> {
    let shown = without_credentials(&config.url);
    let wrong = |detail: String| StoreProblem::new(format!("the checkpoint store {shown:?} is not a usable URL"), detail, SCHEMES);
    let url = Url::parse(&config.url).map_err(|error| wrong(error.to_string()))?;
    if url.password().is_some() {
        return Err(StoreProblem::new(
            format!("the checkpoint store {shown:?} carries a password"),
            "a URL is shown in logs and in status",
            "give credentials as options or in the environment",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("it has a query or a fragment".into()));
    }
    let is_bucket = !matches!(url.scheme(), "file");
    if is_bucket && url.host_str().unwrap_or_default().is_empty() {
        return Err(wrong("the part after :// is missing".into()));
    }
    let prefix = Path::from_url_path(url.path()).map_err(|error| wrong(error.to_string()))?;
    let remote = |store: Arc<dyn ObjectStore>| Opened { store, prefix: prefix.clone(), folder: None };
    match url.scheme() {
        "s3" | "s3a" => open_s3(config, &url).map(remote),
        "gs" => open_gs(config, &url).map(remote),
        "az" | "azure" | "abfs" | "abfss" => open_azure(config, &url).map(remote),
        "hdfs" => open_hdfs(config, &url, runtime).map(remote),
        "file" => open_folder(config, &url),
        other => Err(wrong(format!("{other}:// is not supported"))),
    }
}

/// Options as the builder's keys.
fn keys<K: FromStr>(config: &StoreConfig, store: &str) -> Result<Vec<(K, String)>, StoreProblem> {
    let mut keys = Vec::new();
    for (name, value) in &config.options {
        let lower = name.to_ascii_lowercase();
        let Ok(key) = K::from_str(&lower) else {
            return Err(StoreProblem::new(
                format!("the checkpoint store has no option {name:?}"),
                format!("for {store} they are those of the crate object_store, such as region, endpoint, access_key_id, allow_http"),
                "correct the name, or leave it out",
            ));
        };
        keys.push((key, value.clone()));
    }
    Ok(keys)
}

fn cannot_build(config: &StoreConfig, error: &object_store::Error) -> StoreProblem {
    StoreProblem::new(
        format!("the checkpoint store {:?} cannot be used", without_credentials(&config.url)),
        Redactor::new(&config.options).clean(&error.to_string()),
        "correct the URL or the options",
    )
}

/// Quick repeats of what fails at once; all else is `Remote`'s to decide.
fn quick_retries(config: &StoreConfig) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(1), base: 2.0 },
        max_retries: 2,
        retry_timeout: config.request_timeout,
    }
}

/// Limits of the HTTP client, unless the user set others. A little more than ours, which then ends the request first and knows what it was.
fn http_limits(config: &StoreConfig) -> [(ClientConfigKey, String); 2] {
    let timeout = config.request_timeout + Duration::from_secs(1);
    let connect = config.request_timeout.min(Duration::from_secs(5));
    [
        (ClientConfigKey::Timeout, format!("{}ms", timeout.as_millis())),
        (ClientConfigKey::ConnectTimeout, format!("{}ms", connect.as_millis())),
    ]
}

fn open_s3(config: &StoreConfig, url: &Url) -> Result<Arc<dyn ObjectStore>, StoreProblem> {
    let mut own = config.clone();
    if let Some(value) = own.options.remove("path_style") {
        let path_style: bool = value.parse().map_err(|_| {
            StoreProblem::new(
                "the option path_style of the checkpoint store is neither true nor false",
                format!("it is {value:?}"),
                "use true or false",
            )
        })?;
        own.options.insert("virtual_hosted_style_request".into(), (!path_style).to_string());
    }
    let mut builder = AmazonS3Builder::from_env();
    for (key, value) in http_limits(config) {
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
    }
    for (key, value) in keys::<AmazonS3ConfigKey>(&own, "s3://")? {
        builder = builder.with_config(key, value);
    }
    let built = builder.with_bucket_name(url.host_str().unwrap_or_default()).with_retry(quick_retries(config)).build();
    Ok(Arc::new(built.map_err(|error| cannot_build(config, &error))?))
}

fn open_gs(config: &StoreConfig, url: &Url) -> Result<Arc<dyn ObjectStore>, StoreProblem> {
    let mut builder = GoogleCloudStorageBuilder::from_env();
    for (key, value) in http_limits(config) {
        builder = builder.with_config(GoogleConfigKey::Client(key), value);
    }
    for (key, value) in keys::<GoogleConfigKey>(config, "gs://")? {
        builder = builder.with_config(key, value);
    }
    let built = builder.with_bucket_name(url.host_str().unwrap_or_default()).with_retry(quick_retries(config)).build();
    Ok(Arc::new(built.map_err(|error| cannot_build(config, &error))?))
}

fn open_azure(config: &StoreConfig, url: &Url) -> Result<Arc<dyn ObjectStore>, StoreProblem> {
    let mut builder = MicrosoftAzureBuilder::from_env();
    for (key, value) in http_limits(config) {
        builder = builder.with_config(AzureConfigKey::Client(key), value);
    }
    for (key, value) in keys::<AzureConfigKey>(config, "az:// and abfss://")? {
        builder = builder.with_config(key, value);
    }
    let built = builder.with_url(url.to_string()).with_retry(quick_retries(config)).build();
    Ok(Arc::new(built.map_err(|error| cannot_build(config, &error))?))
}

fn open_hdfs(config: &StoreConfig, url: &Url, runtime: &Handle) -> Result<Arc<dyn ObjectStore>, StoreProblem> {
    for name in config.options.keys() {
        if !name.contains('.') {
            return Err(StoreProblem::new(
                format!("the checkpoint store has no option {name:?}"),
                "for hdfs:// they are Hadoop's names, such as dfs.ha.namenodes.NAMESERVICE",
                "correct the name, or leave it out; the user is the environment's HADOOP_USER_NAME",
            ));
        }
    }
    let authority = &url[url::Position::BeforeUsername..url::Position::AfterPort];
    let mut options = config.options.clone();
    // A data node that says nothing is left for another one within an attempt.
    let socket_timeout = (config.request_timeout.as_millis() / 2).max(1).to_string();
    options.entry("dfs.client.socket-timeout".into()).or_insert(socket_timeout);
    let built =
        HdfsObjectStoreBuilder::new().with_url(format!("hdfs://{authority}")).with_config(options).with_io_runtime(runtime.clone()).build();
    Ok(Arc::new(built.map_err(|error| cannot_build(config, &error))?))
}

fn open_folder(config: &StoreConfig, url: &Url) -> Result<Opened, StoreProblem> {
    let cannot = |detail: String| {
        StoreProblem::new(
            format!("the checkpoint store {:?} cannot be used", config.url),
            detail,
            "name a folder that this process may create and write: file:///folder",
        )
    };
    if let Some(name) = config.options.keys().next() {
        return Err(StoreProblem::new(format!("the checkpoint store has no option {name:?}"), "file:// has no options", "leave it out"));
    }
    let folder = url.to_file_path().map_err(|()| cannot("it is not an absolute path on this machine".into()))?;
    if folder.parent().is_none() {
        return Err(cannot("it is the root of the file system".into()));
    }
    std::fs::create_dir_all(&folder).map_err(|error| cannot(error.to_string()))?;
    // Without fsync a checkpoint that was reported could be gone after a power failure, and the log behind it trimmed.
    let store = LocalFileSystem::new_with_prefix(&folder).map_err(|error| cannot(error.to_string()))?.with_fsync(true);
    Ok(Opened { store: Arc::new(store), prefix: Path::default(), folder: Some(folder) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(url: &str, options: &[(&str, &str)]) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut config = StoreConfig::new(url);
        config.options = options.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        match open(&config, runtime.handle()) {
            Ok(_) => panic!("{url} was taken"),
            Err(problem) => problem.to_string(),
        }
    }

    #[test]
    fn what_is_wrong_with_a_url_or_an_option_is_said_at_once() {
        assert!(problem("checkpoints", &[]).contains("s3://bucket/prefix"));
        assert!(problem("ftp://host/x", &[]).contains("ftp:// is not supported"));
        assert!(problem("s3:///prefix", &[]).contains("missing"));
        assert!(problem("s3://bucket/x?y=z", &[]).contains("query"));
        assert!(problem("file://host/folder", &[]).contains("absolute"));
        assert!(problem("file:///", &[]).contains("root"));
        assert!(problem("file:///proc/nothing/here", &[]).contains("cannot be used"));
        assert!(problem("s3://bucket/x", &[("regoin", "eu")]).contains("\"regoin\""));
        assert!(problem("s3://bucket/x", &[("path_style", "yes")]).contains("path_style"));
        assert!(problem("hdfs://host/x", &[("region", "eu")]).contains("dfs.ha.namenodes"));
        assert!(problem("file:///tmp/x", &[("region", "eu")]).contains("no options"));
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        let text = problem("s3://key:hunter2@bucket/x", &[]);
        assert!(text.contains("password") && !text.contains("hunter2"), "{text}");
    }
}

//! Where checkpoints go: the job's own settings, before any store is opened.
//!
//! A store is named by a URL, as Flink and Spark name it. What can be known without asking the store is checked here, so that `check` shows a mistake at its
//! place and not the first checkpoint, a minute after the start.

use super::secret::Secret;
use crate::problem::{Place, did_you_mean};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub const DEFAULT_RETAINED: u32 = 3;
/// Uploads at a time: enough to hide the round trips of an object store, few enough to leave the network to the job.
pub const DEFAULT_UPLOAD_CONCURRENCY: u32 = 4;
/// Below this a checkpoint would begin before the last one has ended.
pub const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// The folder beside the workers' own where checkpoints wait while the store is away.
pub const FALLBACK_FOLDER: &str = "checkpoints";

/// `checkpoint:` of a job file that names a store.
#[derive(Clone)]
pub struct CheckpointSettings {
    pub store: StoreUrl,
    /// Where the store stands in the file.
    pub place: Place,
    /// Of each region; jittered, so that they do not all upload at once.
    pub interval: Duration,
    /// The newest ones of a region that are kept.
    pub retain: u32,
    /// Older ones are kept as long as this, too.
    pub retain_for: Option<Duration>,
    /// As the store's client names them.
    pub options: BTreeMap<String, Secret>,
    pub fallback_dir: Option<PathBuf>,
    pub upload_concurrency: usize,
    /// Bytes per second of one worker; None: as fast as it goes.
    pub upload_bandwidth_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    S3,
    Gcs,
    Azure,
    Hdfs,
    File,
}

/// A store's URL that is right as far as its form goes: `s3://bucket/prefix`, without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrl {
    pub kind: StoreKind,
    text: String,
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is wrong with a URL, and what to write.
#[derive(Debug, PartialEq, Eq)]
pub struct WrongUrl {
    pub message: String,
    pub hint: String,
    /// It holds a password, so it must not be shown.
    pub has_secret: bool,
}

const SCHEMES: [(&str, StoreKind); 5] =
    [("s3", StoreKind::S3), ("gs", StoreKind::Gcs), ("az", StoreKind::Azure), ("hdfs", StoreKind::Hdfs), ("file", StoreKind::File)];

/// Other systems' names.
const OTHER_NAMES: [(&str, &str); 10] = [
    ("s3a", "s3"),
    ("s3n", "s3"),
    ("s3p", "s3"),
    ("gcs", "gs"),
    ("abfs", "az"),
    ("abfss", "az"),
    ("wasb", "az"),
    ("wasbs", "az"),
    ("azure", "az"),
    ("webhdfs", "hdfs"),
];

impl StoreUrl {
    pub fn parse(text: &str) -> Result<StoreUrl, WrongUrl> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(wrong(format!("`{text}` is not the URL of a store"), no_scheme_hint(text)));
        };
        let Some((_, kind)) = SCHEMES.into_iter().find(|(name, _)| *name == scheme) else {
            return Err(wrong(format!("`{scheme}://` is not a store that checkpoints can go to"), scheme_hint(scheme, rest)));
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        if authority.contains('@') {
            let error =
                wrong("a store's URL must not hold a user or a password".into(), "give them under `checkpoint.options`, as `${env:NAME}`");
            return Err(WrongUrl { has_secret: true, ..error });
        }
        if let Some(mark) = rest.chars().find(|c| matches!(c, '?' | '#' | '%' | '\\') || c.is_whitespace() || c.is_control()) {
            return Err(wrong(format!("`{mark}` can't be in the URL of a store"), "settings of the store go under `checkpoint.options`"));
        }
        if path.trim_end_matches('/').split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
            return Err(wrong(format!("`{path}` is not a plain path"), "write it without empty parts, `.` and `..`"));
        }
        match kind {
            StoreKind::S3 | StoreKind::Gcs | StoreKind::Azure => check_bucket(scheme, authority)?,
            StoreKind::Hdfs => check_name_node(authority)?,
            StoreKind::File => check_folder(authority, path)?,
        }
        Ok(StoreUrl { kind, text: text.trim_end_matches('/').to_string() })
    }
}

fn wrong(message: String, hint: impl Into<String>) -> WrongUrl {
    WrongUrl { message, hint: hint.into(), has_secret: false }
}

fn no_scheme_hint(text: &str) -> String {
    if text.starts_with('/') {
        format!("a folder is `file://{text}`; it must be the same one on all machines")
    } else {
        "write `s3://bucket/prefix`, `gs://…`, `az://…`, `hdfs://host:port/path` or `file:///path`".into()
    }
}

fn scheme_hint(scheme: &str, rest: &str) -> String {
    if let Some((_, ours)) = OTHER_NAMES.iter().find(|(other, _)| *other == scheme) {
        return format!("write `{ours}://{rest}`");
    }
    if matches!(scheme, "http" | "https") {
        return "a server that speaks S3 is `s3://bucket/prefix` with `options: {endpoint: …}`".into();
    }
    match did_you_mean(scheme, SCHEMES.iter().map(|(name, _)| *name)) {
        Some(name) => format!("did you mean `{name}://`?"),
        None => "there are `s3://`, `gs://`, `az://`, `hdfs://` and `file://`".into(),
    }
}

/// Buckets and containers: the names that all three services take.
fn check_bucket(scheme: &str, name: &str) -> Result<(), WrongUrl> {
    if name.is_empty() {
        return Err(wrong("the URL names no bucket".into(), format!("write `{scheme}://bucket/prefix`")));
    }
    if name.contains(':') {
        return Err(wrong(
            format!("`{name}` is the address of a server, not a bucket"),
            format!("write `{scheme}://bucket/prefix` and give the server as `options: {{endpoint: …}}`"),
        ));
    }
    let legal = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_'));
    if !legal || !(3..=63).contains(&name.len()) || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(wrong(format!("`{name}` can't be the name of a bucket"), "3 to 63 lower-case letters, digits, `-`, `.` and `_`"));
    }
    Ok(())
}

fn check_name_node(authority: &str) -> Result<(), WrongUrl> {
    let hint = "write `hdfs://host:port/path`, or `hdfs://nameservice/path` with its addresses under `options`";
    let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
    if host.is_empty() {
        return Err(wrong("the URL names no name node".into(), hint));
    }
    match port.map(str::parse::<u16>) {
        None | Some(Ok(1..)) => Ok(()),
        Some(_) => Err(wrong(format!("`{authority}` has no port that is a number"), hint)),
    }
}

fn check_folder(authority: &str, path: &str) -> Result<(), WrongUrl> {
    if !authority.is_empty() {
        return Err(wrong(
            format!("`{authority}` would be the name of a machine"),
            format!("a folder has three slashes and is absolute: `file:///path/{authority}{path}`"),
        ));
    }
    if path.trim_end_matches('/').is_empty() {
        return Err(wrong("the URL names no folder".into(), "write `file:///path`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let wrong = StoreUrl::parse(text).expect_err(text);
        format!("{} / {}", wrong.message, wrong.hint)
    }

    #[test]
    fn the_five_stores_are_taken() {
        let taken = |text: &str| StoreUrl::parse(text).unwrap_or_else(|wrong| panic!("{text}: {}", wrong.message));
        assert_eq!(taken("s3://my-bucket/a/b/").to_string(), "s3://my-bucket/a/b");
        assert_eq!(taken("s3://my.bucket").kind, StoreKind::S3);
        assert_eq!(taken("gs://bucket/x").kind, StoreKind::Gcs);
        assert_eq!(taken("az://container/x").kind, StoreKind::Azure);
        assert_eq!(taken("hdfs://namenode:9000/x").kind, StoreKind::Hdfs);
        assert_eq!(taken("hdfs://cluster/x").kind, StoreKind::Hdfs);
        assert_eq!(taken("file:///srv/x").kind, StoreKind::File);
    }

    #[test]
    fn a_wrong_url_says_what_to_write_instead() {
        for (text, hint) in [
            ("/srv/checkpoints", "`file:///srv/checkpoints`"),
            ("bucket", "s3://bucket/prefix"),
            ("s3a://bucket/x", "write `s3://bucket/x`"),
            ("abfss://container/x", "write `az://container/x`"),
            ("http://minio:9000/bucket", "endpoint"),
            ("s4://bucket", "did you mean `s3://`?"),
            ("ftp://bucket", "there are `s3://`"),
            ("s3:///x", "names no bucket"),
            ("s3://minio:9000/bucket", "address of a server"),
            ("s3://Bucket/x", "can't be the name of a bucket"),
            ("s3://bucket/x?region=y", "checkpoint.options"),
            ("s3://bucket/a/../b", "plain path"),
            ("s3://bucket/a//b", "plain path"),
            ("hdfs:///x", "names no name node"),
            ("hdfs://host:port/x", "no port"),
            ("file://srv/x", "`file:///path/srv/x`"),
            ("file:///", "names no folder"),
        ] {
            let message = refused(text);
            assert!(message.contains(hint), "{text}: {message}");
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_without_showing_it() {
        let wrong = StoreUrl::parse("s3://user:hunter2@bucket/x").expect_err("refused");
        assert!(wrong.has_secret && !wrong.message.contains("hunter2") && !wrong.hint.contains("hunter2"));
    }
}

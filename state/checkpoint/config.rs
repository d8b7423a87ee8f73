//! What a user may set about the store of region checkpoints, with the defaults and what they are good for.
//!
//! Two limits hang together, and [`StoreConfig::check`] refuses a contradiction: garbage collection cannot see a restore or an upload
//! that is under way elsewhere, so its grace has to be longer than the longest of both. An upload that waits for its bandwidth has more time than
//! `save_timeout`, but never more than the grace ([`StoreConfig::upload_time_max`]).

use crate::error::StoreProblem;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where and how region checkpoints are kept.
#[derive(Clone)]
pub struct StoreConfig {
    /// `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, `abfss://container@account.dfs.core.windows.net/prefix`,
    /// `hdfs://namenode:port/prefix` or `file:///folder`.
    pub url: String,
    /// Options of the store by the names of the crate `object_store` (`region`, `endpoint`, `access_key_id`, `secret_access_key`,
    /// `allow_http`, …; `path_style: true` is the opposite of `virtual_hosted_style_request`), or Hadoop's names for `hdfs://`
    /// (`dfs.ha.namenodes.…`). They go before what the environment says (`AWS_…`, `GOOGLE_…`, `AZURE_…`, `HADOOP_CONF_DIR`).
    pub options: BTreeMap<String, String>,
    /// Bounds one attempt of one request, with its body. 15 s: a part of 8 MiB at 5 Mbit/s.
    pub request_timeout: Duration,
    /// Bounds a request with all its attempts. 40 s; the libraries' own default of 180 s would stall a checkpoint for minutes before it goes
    /// to the local folder.
    pub retry_timeout: Duration,
    /// Bounds a whole upload, beside the time that its bytes take at `upload_bytes_per_second`. 5 min. Files that were uploaded by then are not
    /// uploaded again by the next checkpoint; one of more than 8 MiB, which goes in parts, begins anew unless all of it was.
    pub save_timeout: Duration,
    /// Bounds a whole restore. 20 min.
    pub restore_timeout: Duration,
    /// Requests with a body under way at once, over all regions of the process: 4. Memory for uploads is this times 8 MiB.
    pub upload_concurrency: usize,
    /// Ranges of files fetched at once by restores: 8. Memory for restores is this times 8 MiB.
    pub restore_concurrency: usize,
    /// Bandwidth that uploads of the process may take together. None: no limit. New files that take longer than `gc_grace` need several attempts.
    pub upload_bytes_per_second: Option<u64>,
    /// So many checkpoints of a region are kept: 3.
    pub retain_count: usize,
    /// Younger ones are kept, too. None: only the count decides.
    pub retain_for: Option<Duration>,
    /// From the mark to the deletion: 1 h. Longer than any restore or upload, see above.
    pub gc_grace: Duration,
    /// Where checkpoints go while the store is away. Should lie on the disk of the state, so that files are linked and not copied.
    pub local_fallback: Option<PathBuf>,
    /// So many local checkpoints per region: 2. The oldest is dropped.
    pub local_count_max: usize,
    /// Their bytes per region: 16 GiB. The oldest is dropped; a single one that is larger is refused.
    pub local_bytes_max: u64,
    /// So many failed requests one after the other open the circuit breaker: 3. A request that used up all its time opens it at once.
    pub failures_max: u32,
    /// How long the breaker stays open at first; doubles up to 16 times that. 5 s.
    pub backoff: Duration,
}

impl StoreConfig {
    /// The defaults for a store at this URL.
    pub fn new(url: impl Into<String>) -> StoreConfig {
        StoreConfig {
            url: url.into(),
            options: BTreeMap::new(),
            request_timeout: Duration::from_secs(15),
            retry_timeout: Duration::from_secs(40),
            save_timeout: Duration::from_secs(5 * 60),
            restore_timeout: Duration::from_secs(20 * 60),
            upload_concurrency: 4,
            restore_concurrency: 8,
            upload_bytes_per_second: None,
            retain_count: 3,
            retain_for: None,
            gc_grace: Duration::from_secs(60 * 60),
            local_fallback: None,
            local_count_max: 2,
            local_bytes_max: 16 << 30,
            failures_max: 3,
            backoff: Duration::from_secs(5),
        }
    }

    /// Bounds an upload of so many bytes. The engine saves one checkpoint after the other, so nobody else's bytes are waited for.
    pub(crate) fn upload_time_max(&self, bytes: u64) -> Duration {
        let seconds = self.upload_bytes_per_second.map_or(0.0, |rate| bytes as f64 / rate as f64);
        let time_max = self.save_timeout.saturating_add(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        // A collector elsewhere takes files without a manifest, and files of a manifest that was replaced meanwhile, for garbage after the grace.
        if self.gc_grace.is_zero() { time_max } else { time_max.min(self.gc_grace) }
    }

    /// Refuses what cannot work.
    pub fn check(&self) -> Result<(), StoreProblem> {
        let problem = |detail: String, hint: &str| Err(StoreProblem::new("the settings of the checkpoint store contradict", detail, hint));
        for (name, value) in [("retain_count", self.retain_count), ("upload_concurrency", self.upload_concurrency)] {
            if value == 0 {
                return problem(format!("{name} is 0"), "use 1 or more");
            }
        }
        if self.restore_concurrency == 0 || self.local_count_max == 0 || self.failures_max == 0 {
            return problem("restore_concurrency, local_count_max or failures_max is 0".into(), "use 1 or more");
        }
        if self.upload_bytes_per_second == Some(0) {
            return problem("upload_bytes_per_second is 0".into(), "leave it out for no limit");
        }
        if self.request_timeout.is_zero() || self.request_timeout > self.retry_timeout {
            return problem(
                format!("request_timeout is {:?} and retry_timeout {:?}", self.request_timeout, self.retry_timeout),
                "retry_timeout holds all attempts of a request: make it at least as long as request_timeout",
            );
        }
        let longest = self.save_timeout.max(self.restore_timeout);
        if !self.gc_grace.is_zero() && self.gc_grace <= longest {
            return problem(
                format!("gc_grace is {:?}, but an upload or a restore may take {longest:?}", self.gc_grace),
                "nothing may be deleted that a restore under way still needs: make gc_grace longer than save_timeout and restore_timeout",
            );
        }
        Ok(())
    }
}

/// Options whose values nobody may read in a log.
pub(crate) fn is_secret(option: &str) -> bool {
    let option = option.to_ascii_lowercase();
    const PUBLIC: [&str; 2] = ["token_file", "kms_key_id"];
    const SECRET: [&str; 9] =
        ["secret", "access_key", "account_key", "master_key", "password", "token", "sas", "credential", "customer_key"];
    !PUBLIC.iter().any(|word| option.contains(word)) && SECRET.iter().any(|word| option.contains(word))
        || option.ends_with("service_account_key")
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: BTreeMap<&str, &str> =
            self.options.iter().map(|(name, value)| (name.as_str(), if is_secret(name) { "<redacted>" } else { value.as_str() })).collect();
        f.debug_struct("StoreConfig")
            .field("url", &crate::error::without_credentials(&self.url))
            .field("options", &shown)
            .field("request_timeout", &self.request_timeout)
            .field("retry_timeout", &self.retry_timeout)
            .field("save_timeout", &self.save_timeout)
            .field("restore_timeout", &self.restore_timeout)
            .field("upload_concurrency", &self.upload_concurrency)
            .field("restore_concurrency", &self.restore_concurrency)
            .field("upload_bytes_per_second", &self.upload_bytes_per_second)
            .field("retain_count", &self.retain_count)
            .field("retain_for", &self.retain_for)
            .field("gc_grace", &self.gc_grace)
            .field("local_fallback", &self.local_fallback)
            .field("local_count_max", &self.local_count_max)
            .field("local_bytes_max", &self.local_bytes_max)
            .field("failures_max", &self.failures_max)
            .field("backoff", &self.backoff)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_in_the_debug_text() {
        let mut config = StoreConfig::new("s3://user:hunter2@bucket/prefix");
        for name in [
            "secret_access_key",
            "AWS_SECRET_ACCESS_KEY",
            "aws_session_token",
            "access_key_id",
            "azure_storage_sas_key",
            "service_account_key",
        ] {
            config.options.insert(name.into(), "hunter2".into());
        }
        config.options.insert("region".into(), "eu-central-1".into());
        let text = format!("{config:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("eu-central-1"), "{text}");
    }

    #[test]
    fn an_upload_has_the_time_that_its_bandwidth_takes_and_no_more_than_the_grace() {
        let mut config = StoreConfig::new("file:///tmp/x");
        assert_eq!(config.upload_time_max(u64::MAX), config.save_timeout);
        config.upload_bytes_per_second = Some(1 << 20);
        assert_eq!(config.upload_time_max(600 << 20), config.save_timeout + Duration::from_secs(600));
        assert_eq!(config.upload_time_max(u64::MAX), config.gc_grace);
    }

    #[test]
    fn a_grace_shorter_than_a_restore_is_refused() {
        let mut config = StoreConfig::new("file:///tmp/x");
        config.check().unwrap();
        config.gc_grace = Duration::from_secs(60);
        let problem = config.check().unwrap_err().to_string();
        assert!(problem.contains("gc_grace") && problem.contains("restore_timeout"), "{problem}");
    }
}

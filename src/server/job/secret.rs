//! Values that must never be shown.
//!
//! [`Secret`] has neither `Display` nor `Serialize`, and its `Debug` shows nothing. But a value has to leave it for the Kafka
//! client and for connector options, and a library may put it into an error message. So every interpolated value is also known
//! to a [`Redactor`], through which all reports, log lines and HTTP answers go.

use parking_lot::RwLock;
use std::fmt;
use std::sync::Arc;

const SHOWN_INSTEAD: &str = "•••";
/// Shorter values occur in ordinary text by chance.
const SHORTEST_REDACTED_BYTES: usize = 4;

/// A value that may be a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Secret {
        Secret(value.into())
    }

    /// For the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHOWN_INSTEAD)
    }
}

/// Replaces known secrets in text.
#[derive(Clone, Default)]
pub struct Redactor {
    /// Longest first, so that a secret which contains another one goes as a whole.
    values: Arc<RwLock<Vec<String>>>,
}

impl Redactor {
    pub fn add(&self, value: &str) {
        let mut values = self.values.write();
        for part in std::iter::once(value).chain(value.lines()).map(str::trim) {
            if part.len() >= SHORTEST_REDACTED_BYTES && !values.iter().any(|known| known == part) {
                values.push(part.to_string());
            }
        }
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    }

    pub fn redact(&self, text: &str) -> String {
        let mut text = text.to_string();
        for value in self.values.read().iter() {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), SHOWN_INSTEAD);
            }
            // As it stands inside of a JSON string.
            let escaped = serde_json::Value::from(value.as_str()).to_string();
            let escaped = escaped.trim_matches('"');
            if escaped != value && text.contains(escaped) {
                text = text.replace(escaped, SHOWN_INSTEAD);
            }
        }
        text
    }

    pub fn is_empty(&self) -> bool {
        self.values.read().is_empty()
    }
}

/// Whether the value of an option of this name may be shown although it came from outside of the job file. Everything that
/// is not known to be harmless is a secret.
pub fn is_harmless(option: &str) -> bool {
    let option = option.strip_prefix("properties.").unwrap_or(option);
    const HARMLESS: &[&str] = &[
        "bootstrap.servers",
        "client.id",
        "client.rack",
        "group.id",
        "security.protocol",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.username",
        "topic",
        "path",
        "format",
        "name",
        "state_dir",
        "data_dir",
        "listen",
        "sql_file",
        "slots",
        "parallelism",
        "commit_interval",
        "flush_interval",
        "memory_budget",
        "replication_factor",
        "on_bad_record",
        "late_rows",
        "rows-per-second",
        "number-of-rows",
        "ssl.ca.location",
        "ssl.certificate.location",
        "ssl.key.location",
        "ssl.keystore.location",
        "max_latency",
        "max_recovery",
        "completeness",
        "scan.startup.mode",
        "scan.bounded.mode",
        "interval",
        "tier",
        "replicas",
        "store",
        "retain",
        "retain_for",
        "fallback_dir",
        "upload_concurrency",
        "upload_bandwidth",
        "endpoint",
        "region",
        "aws_endpoint",
        "aws_region",
        "aws_default_region",
    ];
    HARMLESS.contains(&option)
}

/// Whether an option of this name holds a secret by its nature.
pub fn is_secret_by_name(option: &str) -> bool {
    let option = option.to_ascii_lowercase();
    // Certificates go to everybody who connects.
    let is_public = is_harmless(&option) || ["ssl.ca.pem", "ssl.certificate.pem"].iter().any(|end| option.ends_with(end));
    const PARTS: &[&str] = &[
        "password",
        "secret",
        "ssl.key.pem",
        "oauthbearer.config",
        "jaas",
        "token",
        "credential",
        // Of object stores.
        "account_key",
        "master_key",
        "storage_key",
        "sas_key",
        "private_key",
        "service_account_key",
        "encryption_key",
    ];
    // Where the secret lies is none.
    let is_a_place = ["endpoint", "location"].iter().any(|part| option.contains(part))
        || ["_uri", "_file", ".file", "_path", ".path"].iter().any(|end| option.ends_with(end));
    let azure_key = matches!(option.as_str(), "access_key" | "azure_storage_access_key");
    let of_client = streamshield_kafka::is_secret(&option) && !is_public;
    azure_key || ((of_client || PARTS.iter().any(|part| option.contains(part))) && !is_a_place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_nothing_in_debug_output() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), SHOWN_INSTEAD);
    }

    #[test]
    fn secrets_vanish_from_text_also_line_by_line_and_as_json() {
        let redactor = Redactor::default();
        redactor.add("pass\"word");
        redactor.add("first line\nsecond line");
        assert_eq!(redactor.redact("a pass\"word b"), "a ••• b");
        assert_eq!(redactor.redact(r#"{"x":"pass\"word"}"#), r#"{"x":"•••"}"#);
        assert_eq!(redactor.redact("got second line"), "got •••");
    }

    #[test]
    fn only_listed_options_are_harmless() {
        assert!(is_harmless("properties.bootstrap.servers") && !is_harmless("sasl.password") && !is_harmless("whatever"));
        assert!(is_secret_by_name("sasl.password") && !is_secret_by_name("ssl.key.location"));
        for secret in [
            "aws_secret_access_key",
            "secret_access_key",
            "azure_storage_account_key",
            "access_key",
            "sas_token",
            "properties.sasl.password",
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "sasl.oauthbearer.assertion.private.key.pem",
        ] {
            assert!(is_secret_by_name(secret), "{secret}");
        }
        for shown in [
            "aws_access_key_id",
            "endpoint",
            "google_service_account_path",
            "container_credentials_relative_uri",
            "dfs.replication",
            "properties.sasl.username",
            "ssl.ca.pem",
            "sasl.oauthbearer.assertion.private.key.file",
        ] {
            assert!(!is_secret_by_name(shown), "{shown}");
        }
    }
}

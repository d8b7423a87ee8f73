//! What can go wrong with a store, sorted by what the caller does about it; and texts that name no secret.
//!
//! The libraries below put request lines and server answers into their messages. Whatever of that reaches a log or a user has gone through
//! [`Redactor`], which knows the values of all secret options and of the secret environment variables.

use crate::config::is_secret;
use std::collections::BTreeMap;
use std::fmt;
use streamshield_core::ports::checkpoint::{CheckpointError, CheckpointErrorKind};

/// A problem that the user has to solve: what happened, the detail, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreProblem {
    pub what: String,
    pub detail: String,
    pub hint: String,
}

impl StoreProblem {
    pub(crate) fn new(what: impl Into<String>, detail: impl Into<String>, hint: impl Into<String>) -> StoreProblem {
        StoreProblem { what: what.into(), detail: detail.into(), hint: hint.into() }
    }
}

impl fmt::Display for StoreProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.what, self.detail, self.hint)
    }
}

impl std::error::Error for StoreProblem {}

impl From<StoreProblem> for CheckpointError {
    fn from(problem: StoreProblem) -> CheckpointError {
        CheckpointError { kind: CheckpointErrorKind::Fatal, message: problem.to_string() }
    }
}

/// How a request ended that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is no such object (or no such bucket).
    Missing,
    /// A conditional write found an object.
    Exists,
    /// The store can't do this at all.
    Unsupported,
    /// The credentials don't suffice. Trying again is of no use.
    Refused,
    /// It may work later.
    Away,
    /// All its time was used up without an answer.
    TimedOut,
    /// What lies there is not what was written: refused by name.
    Damaged,
    /// A file on this machine's disk can't be read or written.
    Disk,
}

/// A request that did not succeed, or a check that did not hold.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct StoreError {
    pub failure: Failure,
    pub message: String,
}

impl StoreError {
    pub(crate) fn new(failure: Failure, message: impl Into<String>) -> StoreError {
        StoreError { failure, message: message.into() }
    }

    pub(crate) fn damaged(message: impl Into<String>) -> StoreError {
        StoreError::new(Failure::Damaged, message)
    }

    pub(crate) fn disk(what: &str, path: &std::path::Path, error: &std::io::Error) -> StoreError {
        StoreError::new(Failure::Disk, format!("cannot {what} {}: {error}", path.display()))
    }

    /// Whether the store, and not what lies in it, is the problem.
    pub(crate) fn is_store(&self) -> bool {
        matches!(self.failure, Failure::Refused | Failure::Away | Failure::TimedOut | Failure::Unsupported)
    }
}

impl From<StoreError> for CheckpointError {
    fn from(error: StoreError) -> CheckpointError {
        let kind = match error.failure {
            Failure::Refused | Failure::Unsupported | Failure::Missing => CheckpointErrorKind::Fatal,
            Failure::Away | Failure::TimedOut => CheckpointErrorKind::Away,
            Failure::Exists | Failure::Damaged | Failure::Disk => CheckpointErrorKind::Retry,
        };
        CheckpointError { kind, message: error.message }
    }
}

const REFUSALS: [&str; 7] = [
    "AccessControlException",
    "Permission denied",
    "SASL error",
    "GSSAPI error",
    "Read-only file system",
    "status code: 401",
    "status code: 403",
];

/// Sorts a library's error. `what` says what was tried, in the user's terms.
pub(crate) fn sort(error: &object_store::Error, what: &str, redactor: &Redactor) -> StoreError {
    use object_store::Error;
    let text = redactor.clean(&error.to_string());
    let failure = match error {
        Error::NotFound { .. } => Failure::Missing,
        Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. } => Failure::Exists,
        Error::NotSupported { .. } | Error::NotImplemented { .. } | Error::InvalidPath { .. } | Error::UnknownConfigurationKey { .. } => {
            Failure::Unsupported
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Failure::Refused,
        // HDFS and the local disk say it in words only, and the S3 client does when it lists.
        _ if REFUSALS.iter().any(|words| text.contains(words)) => Failure::Refused,
        _ if text.contains("status code: 404") => Failure::Missing,
        _ => Failure::Away,
    };
    StoreError::new(failure, format!("{what}: {text}"))
}

/// Takes secrets out of texts.
#[derive(Clone, Default)]
pub(crate) struct Redactor {
    secrets: Vec<String>,
}

impl Redactor {
    /// Shorter values are words, not secrets, and taking them out would make messages unreadable.
    const LENGTH_MIN: usize = 4;

    pub(crate) fn new(options: &BTreeMap<String, String>) -> Redactor {
        let environment = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let environment = environment.filter(|(name, _)| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix)));
        let options = options.iter().map(|(name, value)| (name.clone(), value.clone()));
        let secrets = options
            .chain(environment)
            .filter(|(name, value)| is_secret(name) && value.len() >= Redactor::LENGTH_MIN)
            .map(|(_, value)| value)
            .collect();
        Redactor { secrets }
    }

    pub(crate) fn clean(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        for secret in &self.secrets {
            clean = clean.replace(secret.as_str(), "<redacted>");
        }
        clean
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redactor({} secrets)", self.secrets.len())
    }
}

/// A URL as it may be shown: without user and password.
pub(crate) fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority_end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    match authority.rsplit_once('@') {
        // abfss://container@account…: the part before is a name, unless there is a colon in it.
        Some((user, host)) if user.contains(':') => format!("{scheme}://<redacted>@{host}{path}"),
        _ => text.to_owned(),
    }
}

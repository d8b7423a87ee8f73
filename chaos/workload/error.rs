//! Why the load, the observer or the oracle could not do their work. That the job is wrong is no error: that is a finding.

use std::time::Duration;

/// What the caller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The settings ask for what can't be: mend them.
    Settings,
    /// No broker answers, or not in time: the run proves nothing and may be tried again.
    Broker,
    /// Something of our own is broken: the run proves nothing.
    Harness,
}

#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error("{0}")]
    Settings(String),
    #[error("{doing}: {source}")]
    Kafka { doing: String, source: rdkafka::error::KafkaError },
    #[error("{doing}: {detail}")]
    Broker { doing: String, detail: String },
    #[error("{doing}: not done in {patience:?}")]
    Timeout { doing: String, patience: Duration },
    #[error("{0}")]
    Harness(String),
}

impl WorkloadError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            WorkloadError::Settings(_) => ErrorKind::Settings,
            WorkloadError::Kafka { .. } | WorkloadError::Broker { .. } | WorkloadError::Timeout { .. } => ErrorKind::Broker,
            WorkloadError::Harness(_) => ErrorKind::Harness,
        }
    }

    /// What was to be read next has been trimmed meanwhile.
    pub(crate) fn is_trimmed(&self) -> bool {
        let code = match self {
            WorkloadError::Kafka { source, .. } => source.rdkafka_error_code(),
            _ => None,
        };
        code == Some(rdkafka::error::RDKafkaErrorCode::AutoOffsetReset)
    }

    pub(crate) fn kafka(doing: impl Into<String>) -> impl FnOnce(rdkafka::error::KafkaError) -> WorkloadError {
        let doing = doing.into();
        move |source| WorkloadError::Kafka { doing, source }
    }
}

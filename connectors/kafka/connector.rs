//! The factory of tables with `'connector' = 'kafka'`.

use crate::log::KafkaLog;
use crate::metadata;
use crate::options::{self, TableOptions};
use crate::sink::KafkaSink;
use crate::source::KafkaSource;
use arrow_schema::DataType;
use std::sync::Arc;
use streamshield_connectors::options::refuse;
use streamshield_core::ports::log::{LogError, LogErrorKind};
use streamshield_core::ports::sink::{Sink, SinkConnector, SinkError};
use streamshield_core::ports::source::{Source, SourceConnector, SourceError, SourceErrorKind};
use streamshield_core::table::{OptionError, SinkRequest, SourceRequest, TableDefinition};

/// Sources and sinks in Kafka.
///
/// A table without `properties.bootstrap.servers` is in the job's cluster. A source may be in another one, with its own
/// properties only; a sink may not, because its rows are committed in the transaction of the epoch.
pub struct KafkaConnector {
    log: Arc<KafkaLog>,
}

impl KafkaConnector {
    pub fn new(log: Arc<KafkaLog>) -> Self {
        KafkaConnector { log }
    }

    /// The log that a source reads.
    fn source_log(&self, options: &TableOptions) -> Result<Arc<KafkaLog>, LogError> {
        if options.is_elsewhere(self.log.servers()) {
            return KafkaLog::elsewhere(options.properties.clone());
        }
        let own = options.own_properties(self.log.servers());
        if own.is_empty() { Ok(Arc::clone(&self.log)) } else { self.log.with_properties(&own) }
    }
}

impl SourceConnector for KafkaConnector {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn check(&self, table: &TableDefinition) -> Vec<OptionError> {
        let mut errors = options::check(table);
        errors.extend(options::check_start(table));
        errors
    }

    fn metadata_type(&self, key: &str) -> Option<DataType> {
        metadata::readable_type(key)
    }

    fn open(&self, request: SourceRequest) -> Result<Arc<dyn Source>, SourceError> {
        let stop = |message: String| SourceError { kind: SourceErrorKind::Stop, message };
        let options = TableOptions::read(&request.table).map_err(|error| stop(error.message))?;
        let log = self.source_log(&options).map_err(|error| source_error(&request.table.name, error))?;
        Ok(Arc::new(KafkaSource::new(log, options, request).map_err(|error| stop(error.message))?))
    }

    fn group(&self, table: &TableDefinition) -> Option<(String, String)> {
        // Groups of another cluster are not written: the job's log would commit them in its own.
        let options = TableOptions::read(table).ok().filter(|options| !options.is_elsewhere(self.log.servers()))?;
        Some((options.topic, options.group.unwrap_or_default()))
    }
}

impl SinkConnector for KafkaConnector {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn check(&self, table: &TableDefinition) -> Vec<OptionError> {
        let mut errors = options::check(table);
        let Ok(options) = TableOptions::read(table) else { return errors };
        for (name, value) in options.own_properties(self.log.servers()) {
            if self.log.has_property(&name, &value) {
                continue;
            }
            let (message, hint) = match name.as_str() {
                "bootstrap.servers" => (
                    "a sink in another cluster can't take part in the job's transactions",
                    "leave it out: rows go to the job's cluster; mirror the topic from there",
                ),
                _ => ("a sink is written with the job's client", "set the property for the job, or leave it out"),
            };
            errors.push(refuse(format!("properties.{name}"), message, Some(hint.into())));
        }
        errors
    }

    fn metadata_type(&self, key: &str) -> Option<DataType> {
        metadata::writable_type(key)
    }

    fn open(&self, request: SinkRequest) -> Result<Arc<dyn Sink>, SinkError> {
        let options = TableOptions::read(&request.table).map_err(|error| SinkError { retry: false, message: error.message })?;
        Ok(Arc::new(KafkaSink::new(Arc::clone(&self.log), options, request)?))
    }
}

/// What a region does about a log's error.
pub(crate) fn source_error(table: &str, error: LogError) -> SourceError {
    let kind = match error.kind {
        // A broker that has just started may not know its topics yet.
        LogErrorKind::Retry | LogErrorKind::Missing => SourceErrorKind::Retry,
        LogErrorKind::Invalid => SourceErrorKind::Failed,
        _ => SourceErrorKind::Stop,
    };
    SourceError { kind, message: format!("table '{table}': {}", error.message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_damaged_on_its_way_is_read_anew_and_a_position_that_is_gone_stops_the_region() {
        let kind = |kind| source_error("t", LogError::new(kind, "")).kind;
        assert_eq!(kind(LogErrorKind::Invalid), SourceErrorKind::Failed);
        assert_eq!(kind(LogErrorKind::OutOfRange), SourceErrorKind::Stop);
    }
}

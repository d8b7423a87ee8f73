//! Topic configurations: what a topic was given, over Kafka's defaults, parsed once.
//!
//! Values that the log obeys are validated; names that it knows but has no use for (one machine, no segments) are kept
//! and described back, so that tools and other brokers' scripts work. Unknown names are refused, as Kafka does.

use std::collections::BTreeMap;

use super::error::LogError;

/// Name and default of every topic configuration, as Kafka 4 describes them.
pub const TOPIC_CONFIG_DEFAULTS: &[(&str, &str)] = &[
    ("cleanup.policy", "delete"),
    ("compression.gzip.level", "-1"),
    ("compression.lz4.level", "9"),
    ("compression.type", "producer"),
    ("compression.zstd.level", "3"),
    ("delete.retention.ms", "86400000"),
    ("file.delete.delay.ms", "60000"),
    ("flush.messages", "9223372036854775807"),
    ("flush.ms", "9223372036854775807"),
    ("follower.replication.throttled.replicas", ""),
    ("index.interval.bytes", "4096"),
    ("leader.replication.throttled.replicas", ""),
    ("local.retention.bytes", "-2"),
    ("local.retention.ms", "-2"),
    ("max.compaction.lag.ms", "9223372036854775807"),
    ("max.message.bytes", "1048588"),
    ("message.timestamp.after.max.ms", "3600000"),
    ("message.timestamp.before.max.ms", "9223372036854775807"),
    ("message.timestamp.type", "CreateTime"),
    ("min.cleanable.dirty.ratio", "0.5"),
    ("min.compaction.lag.ms", "0"),
    ("min.insync.replicas", "1"),
    ("preallocate", "false"),
    ("remote.storage.enable", "false"),
    ("retention.bytes", "-1"),
    ("retention.ms", "604800000"),
    ("segment.bytes", "1073741824"),
    ("segment.index.bytes", "10485760"),
    ("segment.jitter.ms", "0"),
    ("segment.ms", "604800000"),
    ("unclean.leader.election.enable", "false"),
];

/// What the log obeys of a topic's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicConfig {
    /// What was set on the topic itself, by name.
    pub overrides: BTreeMap<String, String>,
    pub is_compacted: bool,
    pub is_deleted: bool,
    pub has_log_append_time: bool,
    pub message_bytes_max: usize,
    /// How far a record's own timestamp may lie before and after the broker's time.
    pub timestamp_before_ms_max: i64,
    pub timestamp_after_ms_max: i64,
    /// Negative: no limit.
    pub retention_ms: i64,
    /// Negative: no limit.
    pub retention_bytes: i64,
    pub delete_retention_ms: i64,
    pub min_compaction_lag_ms: i64,
    pub max_compaction_lag_ms: i64,
    pub min_cleanable_dirty_ratio: f64,
}

impl TopicConfig {
    pub fn parse(overrides: BTreeMap<String, String>) -> Result<TopicConfig, LogError> {
        for name in overrides.keys() {
            default_of(name).ok_or(LogError::InvalidConfig)?;
        }
        let value = |name: &str| overrides.get(name).map(String::as_str).or_else(|| default_of(name)).unwrap_or_default();
        let number = |name: &str| value(name).parse::<i64>().map_err(|_| LogError::InvalidConfig);
        let (mut is_compacted, mut is_deleted) = (false, false);
        for policy in value("cleanup.policy").split(',').map(str::trim) {
            match policy {
                "compact" => is_compacted = true,
                "delete" => is_deleted = true,
                "" => {}
                _ => return Err(LogError::InvalidConfig),
            }
        }
        let has_log_append_time = match value("message.timestamp.type") {
            "CreateTime" => false,
            "LogAppendTime" => true,
            _ => return Err(LogError::InvalidConfig),
        };
        let ratio: f64 = value("min.cleanable.dirty.ratio").parse().map_err(|_| LogError::InvalidConfig)?;
        if !(0.0..=1.0).contains(&ratio) {
            return Err(LogError::InvalidConfig);
        }
        let message_bytes_max = usize::try_from(number("max.message.bytes")?).map_err(|_| LogError::InvalidConfig)?;
        Ok(TopicConfig {
            is_compacted,
            is_deleted,
            has_log_append_time,
            message_bytes_max,
            timestamp_before_ms_max: number("message.timestamp.before.max.ms")?,
            timestamp_after_ms_max: number("message.timestamp.after.max.ms")?,
            retention_ms: number("retention.ms")?,
            retention_bytes: number("retention.bytes")?,
            delete_retention_ms: number("delete.retention.ms")?,
            min_compaction_lag_ms: number("min.compaction.lag.ms")?,
            max_compaction_lag_ms: number("max.compaction.lag.ms")?,
            min_cleanable_dirty_ratio: ratio,
            overrides,
        })
    }

    /// Every configuration with its value and whether it was set on the topic.
    pub fn describe(&self) -> impl Iterator<Item = (&'static str, &str, bool)> {
        TOPIC_CONFIG_DEFAULTS.iter().map(|(name, default)| match self.overrides.get(*name) {
            Some(value) => (*name, value.as_str(), true),
            None => (*name, *default, false),
        })
    }
}

fn default_of(name: &str) -> Option<&'static str> {
    TOPIC_CONFIG_DEFAULTS.binary_search_by(|(known, _)| (*known).cmp(name)).ok().map(|at| TOPIC_CONFIG_DEFAULTS[at].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sorted_so_that_the_search_finds_them() {
        assert!(TOPIC_CONFIG_DEFAULTS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn an_unknown_name_or_value_is_refused() {
        let parse = |name: &str, value: &str| TopicConfig::parse(BTreeMap::from([(name.to_owned(), value.to_owned())]));
        assert!(parse("cleanup.policy", "compact,delete").is_ok_and(|config| config.is_compacted && config.is_deleted));
        assert_eq!(parse("cleanup.policy", "shred"), Err(LogError::InvalidConfig));
        assert_eq!(parse("retention.ms", "soon"), Err(LogError::InvalidConfig));
        assert_eq!(parse("retention.msec", "1"), Err(LogError::InvalidConfig));
    }
}

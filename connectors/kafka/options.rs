//! The options of a table with `'connector' = 'kafka'`, with Flink's names.
//!
//! One reading serves the check, the source and the sink. What Flink knows and streamshield does not do is refused with
//! the way out, never accepted without effect. The full table is in `README.md`.

use crate::properties::{accepts, refusal};
use std::collections::BTreeMap;
use streamshield_connectors::formats::{self, FormatScope, columns_of_scope};
use streamshield_connectors::options::{OptionReader, refuse};
use streamshield_core::ids::Offset;
use streamshield_core::table::{ColumnKind, OptionError, TableDefinition};

const PROPERTY_PREFIX: &str = "properties.";
const SERVERS: &str = "bootstrap.servers";
/// Read where it serves group offsets, never given to the client.
const RESET: &str = "auto.offset.reset";
const GROUP: &str = "group.id";

/// Flink options that have no counterpart here, with what to do.
const REFUSED: &[(&str, &str)] = &[
    ("topic-pattern", "name one topic in 'topic'; several are read by one table each and UNION ALL"),
    ("sink.transactional-id-prefix", "leave it out: transactional ids are named after the job"),
    ("sink.parallelism", "leave it out: a sink has the parallelism of the stage before it"),
    ("scan.parallelism", "leave it out: every partition of the topic is a split of its own"),
    ("sink.semantic", "leave it out: the sink is exactly-once"),
];

/// Where the first start of a job begins to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Startup {
    Earliest,
    Latest,
    /// The group's offsets; where it has none, as the second says.
    Group(GroupReset),
    TimestampMs(i64),
    Specific(BTreeMap<i32, Offset>),
}

/// What a partition without group offset does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupReset {
    Earliest,
    Latest,
    Stop,
}

/// Where a bounded scan ends, as found at the first start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Bounded {
    Unbounded,
    Latest,
    Group,
    TimestampMs(i64),
    Specific(BTreeMap<i32, Offset>),
}

/// Which partition a row without explicit partition goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SinkPartitioner {
    /// By the key's hash, or sticky-random without a key.
    Default,
    /// Each region writes to one partition.
    Fixed,
    RoundRobin,
}

/// The options of one table.
#[derive(Clone, Debug)]
pub(crate) struct TableOptions {
    pub topic: String,
    pub group: Option<String>,
    /// `properties.*` for the client, without what is read here.
    pub properties: BTreeMap<String, String>,
    pub startup: Startup,
    pub bounded: Bounded,
    pub partitioner: SinkPartitioner,
    pub has_key: bool,
}

impl TableOptions {
    /// Reads a table that `check` has passed.
    pub fn read(table: &TableDefinition) -> Result<Self, OptionError> {
        let table = effective(table);
        let (options, errors) = read(&table);
        match errors.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(options),
        }
    }

    /// Whether the table names other brokers than these.
    pub fn is_elsewhere(&self, servers: &str) -> bool {
        self.properties.get(SERVERS).is_some_and(|own| !same_servers(own, servers))
    }

    /// Properties over those of the job; empty when the job's log will do.
    pub fn own_properties(&self, servers: &str) -> BTreeMap<String, String> {
        let is_repeated = |key: &str, value: &str| key == SERVERS && same_servers(value, servers);
        self.properties.iter().filter(|(key, value)| !is_repeated(key, value)).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// The table as the formats shall see it: with `key.format` and without `key.fields` the primary key is the key.
pub(crate) fn effective(table: &TableDefinition) -> TableDefinition {
    let mut table = table.clone();
    if table.option("key.format").is_some() && table.option("key.fields").is_none() && !table.primary_key.is_empty() {
        let fields = table.primary_key.join(";");
        table.options.insert("key.fields".into(), fields);
    }
    table
}

/// Everything wrong with a table that can be known without connecting.
pub(crate) fn check(table: &TableDefinition) -> Vec<OptionError> {
    let table = effective(table);
    let (options, mut errors) = read(&table);
    errors.extend(formats::check(&table, &columns_of_scope(&table, FormatScope::Value), FormatScope::Value));
    if options.has_key {
        errors.extend(formats::check(&table, &columns_of_scope(&table, FormatScope::Key), FormatScope::Key));
    }
    errors
}

const NO_GROUP: &str = "without 'properties.group.id' there are no group offsets to start from";
const NO_GROUP_HINT: &str = "add 'scan.startup.mode' = 'earliest-offset' (or 'latest-offset'), or name a group in 'properties.group.id'";

/// A table that is read must say where to start; one that is only written need not.
pub(crate) fn check_start(table: &TableDefinition) -> Option<OptionError> {
    let has = |key| table.option(key).is_some_and(|text| !text.trim().is_empty());
    (!has("scan.startup.mode") && !has("properties.group.id")).then(|| refuse("", NO_GROUP, Some(NO_GROUP_HINT.into())))
}

fn read(table: &TableDefinition) -> (TableOptions, Vec<OptionError>) {
    let mut reader = OptionReader::new(table);
    let topic = reader.required("topic", "bids").unwrap_or_default().trim().to_string();
    check_topic(&mut reader, &topic);
    let (group, reset, properties) = read_properties(&mut reader);
    let startup = read_startup(&mut reader, group.is_some(), reset);
    let bounded = read_bounded(&mut reader, group.is_some());
    let has_key = read_key(&mut reader);
    let partitioner = match reader.choice("sink.partitioner", &["default", "fixed", "round-robin"]) {
        Some("fixed") => SinkPartitioner::Fixed,
        Some("round-robin") => SinkPartitioner::RoundRobin,
        _ => SinkPartitioner::Default,
    };
    if let Some(guarantee) = reader.text("sink.delivery-guarantee").filter(|text| !text.eq_ignore_ascii_case("exactly-once")) {
        let hint = Some("write 'exactly-once' or leave it out: output, state and positions are committed together".to_string());
        reader.error("sink.delivery-guarantee", format!("the delivery guarantee '{guarantee}' is not offered"), hint);
    }
    if reader.duration("scan.topic-partition-discovery.interval").is_some_and(|interval| !interval.is_zero()) {
        let hint = Some("write '0 s' or leave it out: the partitions are fixed at the job's first start".to_string());
        reader.error("scan.topic-partition-discovery.interval", "partitions that are added later are not found by themselves".into(), hint);
    }
    // The engine's scan reads these.
    for key in ["scan.watermark.idle-timeout", "value.fields-include"] {
        reader.know(key);
    }
    for (key, hint) in REFUSED {
        if table.option(key).is_some() {
            reader.know(key);
            reader.error(key, format!("the connector 'kafka' does not take '{key}'"), Some(hint.to_string()));
        }
    }
    let errors = reader.finish(|key| key.starts_with(PROPERTY_PREFIX) || formats::is_format_option(table, key));
    (TableOptions { topic, group, properties, startup, bounded, partitioner, has_key }, errors)
}

fn check_topic(reader: &mut OptionReader<'_>, topic: &str) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.contains(';') {
        reader.error("topic", "a table reads one topic".into(), Some("define a table for each and combine them with UNION ALL".into()));
    } else if !topic.chars().all(allowed) || topic.len() > 249 || topic == "." || topic == ".." {
        reader.error("topic", format!("'{topic}' is no name of a topic"), Some("letters, digits, '.', '_' and '-', at most 249".into()));
    }
}

/// Group, what to do without its offsets, and the rest for the client.
fn read_properties(reader: &mut OptionReader<'_>) -> (Option<String>, Option<&'static str>, BTreeMap<String, String>) {
    let mut properties = BTreeMap::new();
    for (key, value) in &reader.table().options {
        let Some(name) = key.strip_prefix(PROPERTY_PREFIX) else { continue };
        if name == GROUP || name == RESET {
            continue;
        }
        let single = BTreeMap::from([(name.to_string(), value.clone())]);
        match refusal(name).or_else(|| accepts(&single).err().map(|error| error.message)) {
            Some(reason) => reader.error(key, reason, None),
            None => properties.extend(single),
        }
    }
    let group = reader.text("properties.group.id").filter(|text| !text.trim().is_empty()).map(str::to_string);
    let reset = reader.choice("properties.auto.offset.reset", &["earliest", "latest", "none"]);
    (group, reset, properties)
}

fn read_startup(reader: &mut OptionReader<'_>, has_group: bool, reset: Option<&'static str>) -> Startup {
    let modes = ["earliest-offset", "latest-offset", "group-offsets", "timestamp", "specific-offsets"];
    let written = reader.text("scan.startup.mode").is_some();
    let mode = reader.choice("scan.startup.mode", &modes);
    let timestamp_ms = reader.number("scan.startup.timestamp-millis", "a number of milliseconds since 1970");
    let offsets = read_offsets(reader, "scan.startup.specific-offsets");
    let uses_group = mode == Some("group-offsets") || !written;
    if reset.is_some() && !uses_group {
        let hint = Some("leave it out: it only serves 'scan.startup.mode' = 'group-offsets'".to_string());
        reader.error("properties.auto.offset.reset", "the start is set by 'scan.startup.mode'".into(), hint);
    }
    match mode {
        Some("earliest-offset") => Startup::Earliest,
        Some("latest-offset") => Startup::Latest,
        Some("timestamp") => Startup::TimestampMs(needed(reader, "scan.startup.timestamp-millis", timestamp_ms, "'1700000000000'")),
        Some("specific-offsets") => {
            Startup::Specific(needed(reader, "scan.startup.specific-offsets", offsets, "'partition:0,offset:42;partition:1,offset:300'"))
        }
        _ => {
            // Without the option a table may be a sink: see `check_start`.
            if written && !has_group {
                reader.error("scan.startup.mode", NO_GROUP.into(), Some(NO_GROUP_HINT.into()));
            }
            Startup::Group(match reset {
                Some("earliest") => GroupReset::Earliest,
                Some("latest") => GroupReset::Latest,
                _ => GroupReset::Stop,
            })
        }
    }
}

fn read_bounded(reader: &mut OptionReader<'_>, has_group: bool) -> Bounded {
    let modes = ["unbounded", "latest-offset", "group-offsets", "timestamp", "specific-offsets"];
    let timestamp_ms = reader.number("scan.bounded.timestamp-millis", "a number of milliseconds since 1970");
    let offsets = read_offsets(reader, "scan.bounded.specific-offsets");
    match reader.choice("scan.bounded.mode", &modes) {
        Some("latest-offset") => Bounded::Latest,
        Some("timestamp") => Bounded::TimestampMs(needed(reader, "scan.bounded.timestamp-millis", timestamp_ms, "'1700000000000'")),
        Some("specific-offsets") => {
            Bounded::Specific(needed(reader, "scan.bounded.specific-offsets", offsets, "'partition:0,offset:42;partition:1,offset:300'"))
        }
        Some("group-offsets") => {
            if !has_group {
                reader.error("scan.bounded.mode", "without 'properties.group.id' there are no group offsets to end at".into(), None);
            }
            Bounded::Group
        }
        _ => Bounded::Unbounded,
    }
}

fn needed<T: Default>(reader: &mut OptionReader<'_>, key: &str, value: Option<T>, example: &str) -> T {
    if value.is_none() && reader.table().option(key).is_none() {
        reader.error("", format!("the mode needs the option '{key}'"), Some(format!("add '{key}' = {example}")));
    }
    value.unwrap_or_default()
}

/// `partition:0,offset:42;partition:1,offset:300`
fn read_offsets(reader: &mut OptionReader<'_>, key: &str) -> Option<BTreeMap<i32, Offset>> {
    let text = reader.text(key)?;
    let parsed = parse_offsets(text);
    if parsed.is_none() {
        reader.error(
            key,
            format!("'{key}' = '{text}' is no list of offsets"),
            Some("write 'partition:0,offset:42;partition:1,offset:300'".into()),
        );
    }
    parsed
}

fn parse_offsets(text: &str) -> Option<BTreeMap<i32, Offset>> {
    let mut offsets = BTreeMap::new();
    for part in text.split(';').filter(|part| !part.trim().is_empty()) {
        let (partition, offset) = part.split_once(',')?;
        let partition: i32 = partition.trim().strip_prefix("partition:")?.trim().parse().ok()?;
        let offset: Offset = offset.trim().strip_prefix("offset:")?.trim().parse().ok()?;
        if partition < 0 || offset < 0 || offsets.insert(partition, offset).is_some() {
            return None;
        }
    }
    (!offsets.is_empty()).then_some(offsets)
}

/// Whether messages have keys, after checking the options about them.
fn read_key(reader: &mut OptionReader<'_>) -> bool {
    let table = reader.table();
    let has_format = table.option("key.format").is_some();
    let fields = reader.text("key.fields");
    let prefix = reader.text("key.fields-prefix").unwrap_or("");
    let include = reader.choice("value.fields-include", &["ALL", "EXCEPT_KEY"]);
    for name in fields.unwrap_or("").split(';').map(str::trim).filter(|name| !name.is_empty()) {
        match table.columns.iter().find(|column| column.field.name() == name).map(|column| &column.kind) {
            None => reader.error("key.fields", format!("'{name}' is no column of the table '{}'", table.name), None),
            Some(ColumnKind::Metadata { .. }) => {
                reader.error("key.fields", format!("'{name}' is no physical column: a key can't carry metadata"), None)
            }
            Some(ColumnKind::Computed) => {
                reader.error("key.fields", format!("'{name}' is no physical column: a key can't carry computed columns"), None)
            }
            Some(ColumnKind::Physical) if !name.starts_with(prefix) => {
                reader.error("key.fields-prefix", format!("the key column '{name}' does not begin with '{prefix}'"), None)
            }
            Some(ColumnKind::Physical) => {}
        }
    }
    if !prefix.is_empty() && include != Some("EXCEPT_KEY") {
        let hint = Some("add 'value.fields-include' = 'EXCEPT_KEY'".to_string());
        reader.error("key.fields-prefix", "a prefix is only of use where the value leaves the key columns out".into(), hint);
    }
    let empty_fields = fields.is_none_or(|fields| fields.trim().is_empty());
    if has_format && empty_fields {
        reader.error("key.format", "there are no key columns".into(), Some("add 'key.fields' = 'column;column' or a PRIMARY KEY".into()));
    }
    if !has_format && !empty_fields {
        reader.error(
            "key.fields",
            "key columns need a format".into(),
            Some("add 'key.format' = 'json' (or 'raw' for a single column)".into()),
        );
    }
    has_format && !empty_fields
}

/// Whether two lists name the same brokers, in any order.
pub(crate) fn same_servers(one: &str, other: &str) -> bool {
    let sorted = |list: &str| {
        let mut servers: Vec<_> =
            list.split(',').map(|server| server.trim().to_ascii_lowercase()).filter(|server| !server.is_empty()).collect();
        servers.sort();
        servers
    };
    sorted(one) == sorted(other)
}

#[cfg(test)]
#[path = "options_test.rs"]
mod tests;

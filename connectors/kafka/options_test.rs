use super::*;
use arrow_schema::{DataType, Field};
use std::sync::Arc;
use streamshield_core::table::Column;

fn table(options: &[(&str, &str)]) -> TableDefinition {
    let column = |name: &str, data_type| Column { field: Arc::new(Field::new(name, data_type, true)), kind: ColumnKind::Physical };
    let given = options.iter().map(|(key, value)| (key.to_string(), value.to_string()));
    let base = [("connector", "kafka"), ("topic", "t"), ("format", "json")].map(|(key, value)| (key.to_string(), value.to_string()));
    TableDefinition {
        name: "bids".into(),
        columns: vec![column("id", DataType::Int64), column("name", DataType::Utf8)],
        options: base.into_iter().chain(given).collect(),
        primary_key: vec!["id".into()],
    }
}

fn keys(options: &[(&str, &str)]) -> Vec<String> {
    check(&table(options)).into_iter().map(|error| error.key).collect()
}

const START: (&str, &str) = ("scan.startup.mode", "earliest-offset");

#[test]
fn the_usual_table_is_accepted() {
    assert_eq!(check(&table(&[START])), []);
    let full = [
        ("properties.bootstrap.servers", "a:1,b:2"),
        ("properties.group.id", "g"),
        ("properties.security.protocol", "SASL_SSL"),
        ("key.format", "json"),
        ("key.fields", "id"),
        ("value.fields-include", "EXCEPT_KEY"),
        ("scan.startup.mode", "specific-offsets"),
        ("scan.startup.specific-offsets", "partition:0,offset:42;partition:1,offset:300"),
        ("scan.bounded.mode", "timestamp"),
        ("scan.bounded.timestamp-millis", "1700000000000"),
        ("scan.watermark.idle-timeout", "5 s"),
        ("sink.partitioner", "round-robin"),
        ("sink.delivery-guarantee", "exactly-once"),
        ("json.timestamp-format.standard", "ISO-8601"),
    ];
    assert_eq!(check(&table(&full)), []);
    let options = TableOptions::read(&table(&full)).expect("valid");
    assert_eq!(options.startup, Startup::Specific([(0, 42), (1, 300)].into()));
    assert_eq!(options.bounded, Bounded::TimestampMs(1_700_000_000_000));
    assert!(options.is_elsewhere("c:3") && !options.is_elsewhere("b:2, a:1"));
    assert_eq!(options.own_properties("b:2,a:1"), BTreeMap::from([("security.protocol".to_string(), "SASL_SSL".to_string())]));
    assert!(options.has_key && options.partitioner == SinkPartitioner::RoundRobin);
}

#[test]
fn a_mistyped_key_is_answered_with_the_right_one() {
    let errors = check(&table(&[START, ("scan.bounded.mod", "latest-offset")]));
    assert_eq!((errors[0].key.as_str(), errors[0].hint.as_deref()), ("scan.bounded.mod", Some("did you mean 'scan.bounded.mode'?")));
}

#[test]
fn what_is_not_done_is_refused_and_not_ignored() {
    for (key, value) in [
        ("scan.topic-partition-discovery.interval", "10 s"),
        ("sink.delivery-guarantee", "at-least-once"),
        ("sink.transactional-id-prefix", "x"),
        ("topic-pattern", "t.*"),
        ("properties.isolation.level", "read_uncommitted"),
        ("properties.sasl.jaas.config", "x"),
        ("properties.no.such", "x"),
    ] {
        assert_eq!(keys(&[START, (key, value)]), [key]);
    }
    assert_eq!(keys(&[START, ("scan.topic-partition-discovery.interval", "0 s")]), [""; 0]);
    assert_eq!(keys(&[START, ("topic", "a;b")]), ["topic"]);
}

#[test]
fn a_secret_in_a_property_is_not_repeated() {
    let errors = check(&table(&[START, ("properties.ssl.no.such.password", "hunter2")]));
    assert!(errors[0].message.contains("ssl.no.such.password") && !errors[0].message.contains("hunter2"), "{errors:?}");
}

#[test]
fn group_offsets_are_the_default_and_need_a_group() {
    assert_eq!(keys(&[]), [""; 0], "a table that is only written");
    assert!(check_start(&table(&[])).is_some_and(|error| error.key.is_empty() && error.hint.is_some()));
    assert_eq!(check_start(&table(&[START])).or(check_start(&table(&[("properties.group.id", "g")]))), None);
    assert_eq!(keys(&[("scan.startup.mode", "group-offsets")]), ["scan.startup.mode"]);
    assert_eq!(keys(&[("properties.group.id", "g")]), [""; 0]);
    assert_eq!(keys(&[START, ("properties.auto.offset.reset", "earliest")]), ["properties.auto.offset.reset"]);
    let options = TableOptions::read(&table(&[("properties.group.id", "g"), ("properties.auto.offset.reset", "earliest")])).expect("valid");
    assert_eq!(options.startup, Startup::Group(GroupReset::Earliest));
    assert_eq!(options.properties, BTreeMap::new());
    assert_eq!(keys(&[START, ("scan.bounded.mode", "group-offsets")]), ["scan.bounded.mode"]);
}

#[test]
fn a_mode_needs_its_value() {
    assert_eq!(keys(&[("scan.startup.mode", "timestamp")]), [""]);
    assert_eq!(keys(&[("scan.startup.mode", "timestamp"), ("scan.startup.timestamp-millis", "soon")]), ["scan.startup.timestamp-millis"]);
    for wrong in ["", "0:42", "partition:0", "partition:0,offset:-1", "partition:0,offset:1;partition:0,offset:2"] {
        assert_eq!(parse_offsets(wrong), None, "{wrong}");
    }
}

#[test]
fn a_key_carries_physical_columns_only() {
    let kind = ColumnKind::Metadata { key: "partition".into(), is_virtual: true };
    for (kind, what) in [(kind, "metadata"), (ColumnKind::Computed, "computed columns")] {
        let mut table = table(&[START, ("key.format", "json"), ("key.fields", "id;p")]);
        table.columns.push(Column { field: Arc::new(Field::new("p", DataType::Int32, true)), kind });
        let found: Vec<_> = check(&table).into_iter().map(|error| (error.key, error.message)).collect();
        assert_eq!(found, [("key.fields".to_string(), format!("'p' is no physical column: a key can't carry {what}"))]);
    }
}

#[test]
fn the_key_is_checked_and_falls_back_to_the_primary_key() {
    assert!(TableOptions::read(&table(&[START, ("key.format", "json")])).expect("primary key").has_key);
    assert_eq!(keys(&[START, ("key.fields", "id")]), ["key.fields"]);
    assert_eq!(keys(&[START, ("key.format", "json"), ("key.fields", "nope")]), ["key.fields"]);
    assert_eq!(
        keys(&[START, ("key.format", "json"), ("key.fields", "id"), ("key.fields-prefix", "k_"), ("value.fields-include", "EXCEPT_KEY")]),
        ["key.fields-prefix"]
    );
}

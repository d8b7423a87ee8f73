//! Tables through the connector, as the engine uses it.

use crate::log_or_return;
use crate::support::*;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMillisecondType};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use streamshield_core::ids::{Epoch, RegionId, StageId};
use streamshield_core::ports::log::*;
use streamshield_core::ports::sink::{SinkConnector, SinkContent};
use streamshield_core::ports::source::*;
use streamshield_core::table::*;
use streamshield_kafka::{KafkaConnector, KafkaLog};

/// A table `(id BIGINT, name STRING, …metadata)` over a topic.
fn table(topic: &str, metadata: &[(&str, &str, DataType)], options: &[(&str, &str)]) -> TableDefinition {
    let physical = [("id", DataType::Int64), ("name", DataType::Utf8)];
    let physical =
        physical.map(|(name, data_type)| Column { field: Arc::new(Field::new(name, data_type, true)), kind: ColumnKind::Physical });
    let metadata = metadata.iter().map(|(name, key, data_type)| Column {
        field: Arc::new(Field::new(*name, data_type.clone(), true)),
        kind: ColumnKind::Metadata { key: key.to_string(), is_virtual: false },
    });
    let base = [("connector", "kafka"), ("topic", topic), ("format", "json"), ("scan.startup.mode", "earliest-offset")];
    TableDefinition {
        name: "people".into(),
        columns: physical.into_iter().chain(metadata).collect(),
        options: base.iter().chain(options).map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        primary_key: vec![],
    }
}

fn schema(columns: &[Column]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|column| Arc::clone(&column.field)).collect::<Vec<_>>()))
}

fn open(log: &Arc<KafkaLog>, table: &TableDefinition, keep_origins: bool) -> Arc<dyn Source> {
    let connector = KafkaConnector::new(Arc::clone(log));
    assert_eq!(SourceConnector::check(&connector, table), []);
    let columns = table.columns.clone();
    SourceConnector::open(&connector, SourceRequest { table: table.clone(), schema: schema(&columns), columns, keep_origins })
        .expect("open")
}

/// All batches of a split until it has finished, or until it has given `records`.
fn read(source: &dyn Source, split: &Split, records: Option<usize>) -> Vec<SourceBatch> {
    let wakeup = Arc::new(Wakeup::default());
    let mut reader = source.reader(Arc::clone(&wakeup)).expect("reader");
    reader.add_split(split, split.start).expect("split");
    let (mut batches, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    loop {
        let batch = reader.take(split.id, &ALL).expect("take");
        let (state, idle) = (batch.state, batch.records == 0);
        batches.push(batch);
        let taken: usize = batches.iter().map(|batch| batch.records).sum();
        if state == SplitState::Finished || records.is_some_and(|records| taken >= records) {
            return batches;
        }
        assert!(Instant::now() < deadline, "{taken} records");
        if idle {
            wakeup.wait(Duration::from_millis(50));
        }
    }
}

fn names(batches: &[SourceBatch]) -> Vec<String> {
    batches
        .iter()
        .flat_map(|batch| batch.rows.column(1).as_string::<i32>().iter().map(|name| name.unwrap_or("null").to_string()).collect::<Vec<_>>())
        .collect()
}

fn person(id: i64, name: &str) -> String {
    format!("{{\"id\":{id},\"name\":\"{name}\"}}")
}

#[test]
fn a_bounded_scan_ends_behind_markers_and_aborted_messages() {
    let log = log_or_return!();
    let topic = topic(&log, "bounded", 2);
    let mut writer = log.writer(&unique("bounded")).expect("writer");
    commit(&mut *writer, &values(&topic, (0..5).map(|id| person(id, "a"))));
    writer.begin().expect("begin");
    writer.send_set(&values(&topic, (0..5).map(|id| person(id, "never")))).expect("send");
    // An abort drops what was not sent yet: all of it must have arrived before.
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    while log.bounds(&partition, Isolation::ReadUncommitted).expect("bounds").high < 11 {
        std::thread::yield_now();
    }
    writer.abort();
    settled(&log, &TopicPartition::new(Arc::clone(&topic), 0));
    let source = open(&log, &table(&topic, &[], &[("scan.bounded.mode", "latest-offset")]), false);
    let splits = source.discover().expect("discover");
    assert_eq!(splits[1], Split { id: 1, start: 0, end: Some(0) }, "an empty partition has ended at once");
    let end = splits[0].end.expect("bounded");
    assert!(end > 6, "the end lies behind the marker and the aborted messages: {end}");
    // What comes later lies behind the end and is not read, not even when the reader meets it first.
    let mut writer = log.writer(&unique("bounded")).expect("writer");
    for late in [false, true] {
        if late {
            commit(&mut *writer, &values(&topic, (0..5).map(|id| person(id, "late"))));
            settled(&log, &TopicPartition::new(Arc::clone(&topic), 0));
        }
        let batches = read(&*source, &splits[0], None);
        assert_eq!(names(&batches), ["a"; 5], "late: {late}");
        assert_eq!(read(&*source, &splits[1], None).len(), 1);
    }
    // A restart at the position after the last row has ended too.
    assert_eq!(names(&read(&*source, &Split { start: 5, ..splits[0].clone() }, None)), [""; 0]);
}

#[test]
fn a_split_stands_at_its_end_when_nothing_committed_waits_in_it() {
    let log = log_or_return!();
    let topic = topic(&log, "waiting", 2);
    let mut writer = log.writer(&unique("waiting")).expect("writer");
    commit(&mut *writer, &values(&topic, (0..3).map(|id| person(id, "a"))));
    settled(&log, &TopicPartition::new(Arc::clone(&topic), 0));
    // The table names no group.
    let source = open(&log, &table(&topic, &[], &[]), false);
    let mut reader = source.reader(Arc::new(Wakeup::default())).expect("reader");
    let splits = source.discover().expect("discover");
    splits.iter().for_each(|split| reader.add_split(split, 0).expect("assigned"));
    let answers = |reader: &dyn SourceReader| [(0, 0), (0, 2), (0, 3), (1, 0)].map(|(split, at)| reader.stands_at_end(split, at));
    assert_eq!(answers(&*reader), [false, false, false, true], "what lies behind the third record is not known yet");

    // More transactions end without a row in it: their markers are nothing that waits.
    for _ in 0..3 {
        writer.begin().expect("begin");
        writer.send_set(&values(&topic, [person(9, "aborted")])).expect("send");
        writer.abort();
        writer = log.writer(&unique("waiting")).expect("writer");
    }
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    settled(&log, &partition);
    let end = log.bounds(&partition, Isolation::ReadCommitted).expect("bounds").high;
    assert!(end > 4, "{end}: three records and more than one marker");
    let deadline = Instant::now() + PATIENCE;
    while reader.met_end(0) != Some(end) {
        assert!(Instant::now() < deadline, "the reader met {:?} and not {end}", reader.met_end(0));
        reader.take(0, &ALL).expect("take");
    }
    assert_eq!(answers(&*reader), [false, false, true, true]);
    assert!(reader.stands_at_end(0, 4), "a position between the markers");
    commit(&mut *writer, &values(&topic, [person(3, "new")]));
    settled(&log, &partition);
    assert!(!reader.stands_at_end(0, 3));
}

#[test]
fn only_a_split_that_nothing_was_ever_done_with_begins_with_what_is_oldest_by_then() {
    let log = log_or_return!();
    let topic = topic(&log, "oldest", 1);
    let mut writer = log.writer(&unique("oldest")).expect("writer");
    commit(&mut *writer, &values(&topic, (0..5).map(|id| person(id, &id.to_string()))));
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    settled(&log, &partition);
    let first = |options: &[(&str, &str)], is_new: bool| {
        let source = open(&log, &table(&topic, &[], options), false);
        let wakeup = Arc::new(Wakeup::default());
        let mut reader = source.reader(Arc::clone(&wakeup)).expect("reader");
        reader.add_split(&Split { id: 0, start: 0, end: None }, 0).expect("split");
        if is_new {
            reader.may_begin_later(0);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let batch = reader.take(0, &ALL)?;
            if batch.records > 0 {
                return Ok::<_, SourceError>(names(&[batch])[0].clone());
            }
            assert!(batch.to == 0 && Instant::now() < deadline, "nothing taken, at {}", batch.to);
            wakeup.wait(Duration::from_millis(50));
        }
    };
    assert_eq!(first(&[], true).expect("all is there"), "0");
    log.trim(&[(partition, 3)]).expect("trim");
    assert_eq!(first(&[], true).expect("the rest is there"), "3");
    assert_eq!(first(&[], false).expect_err("it had begun").kind, SourceErrorKind::Stop);
    let named = [("scan.startup.mode", "specific-offsets"), ("scan.startup.specific-offsets", "partition:0,offset:0")];
    assert_eq!(first(&named, true).expect_err("it is to begin there").kind, SourceErrorKind::Stop);
}

#[test]
fn bad_records_and_tombstones_are_told_apart_with_their_originals() {
    let log = log_or_return!();
    let topic = topic(&log, "bad", 1);
    let mut set = MessageSet::new(Arc::clone(&topic));
    let (good, also_good) = (person(1, "good"), person(2, "also good"));
    let payloads: [Option<&[u8]>; 5] = [Some(good.as_bytes()), Some(b"{\"id\":"), None, Some(b"\"}"), Some(also_good.as_bytes())];
    for (index, payload) in payloads.iter().enumerate() {
        push(&mut set, Some(0), Some(&[b'0' + index as u8]), *payload, Some(1_700_000_000_000 + index as i64));
    }
    let mut writer = log.writer(&unique("bad")).expect("writer");
    commit(&mut *writer, &set);
    let source = open(&log, &table(&topic, &[], &[]), true);
    let batches = read(&*source, &source.discover().expect("discover")[0], Some(5));
    let bad: Vec<_> = batches.iter().flat_map(|batch| &batch.bad).collect();
    assert_eq!(bad.iter().map(|record| record.origin.offset).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(bad[1].reason, "null value (tombstone)");
    assert_ne!(bad[0].reason, bad[1].reason);
    let expected = Origin {
        container: topic.to_string(),
        split: 0,
        offset: 1,
        timestamp_ms: Some(1_700_000_000_001),
        key: Some(b"1".to_vec()),
        payload: Some(b"{\"id\":".to_vec()),
        headers: vec![],
    };
    assert_eq!(bad[0].origin, expected);
    assert_eq!(names(&batches), ["good", "also good"]);
    let origins: Vec<_> = batches
        .iter()
        .flat_map(|batch| (0..batch.rows.num_rows()).map(|row| batch.origins.as_ref().expect("kept").origin(row)).collect::<Vec<_>>())
        .collect();
    assert_eq!(origins.iter().map(|origin| origin.offset).collect::<Vec<_>>(), [0, 4], "rows know their messages across bad ones");
    assert_eq!(origins[1].payload.as_deref(), Some(also_good.as_bytes()));
}

#[test]
fn metadata_and_key_columns_come_with_the_rows() {
    let log = log_or_return!();
    let topic = topic(&log, "metadata", 3);
    let mut writer = log.writer(&unique("metadata")).expect("writer");
    writer.begin().expect("begin");
    let message = |key: &str, value: &str| OutMessage {
        topic: Arc::clone(&topic),
        partition: Some(2),
        key: Some(key.into()),
        payload: Some(value.into()),
        headers: vec![("h".into(), b"1".to_vec()), ("h".into(), b"2".to_vec()), ("i".into(), b"3".to_vec())],
        timestamp_ms: Some(1_700_000_000_123),
    };
    writer.send(&message("{\"id\":7}", "{\"name\":\"a\"}")).expect("send");
    writer.send(&message("{\"id\":", "{\"name\":\"bad key\"}")).expect("send");
    writer.send(&message("{\"id\":8}", "{\"name\":")).expect("send");
    writer.send(&message("{\"id\":9}", "{\"name\":\"b\"}")).expect("send");
    assert_eq!(writer.commit(), CommitOutcome::Committed);
    let connector = KafkaConnector::new(Arc::clone(&log));
    let kinds = ["topic", "partition", "offset", "timestamp", "timestamp-type", "headers"];
    let columns: Vec<_> = kinds.iter().map(|key| (*key, *key, SourceConnector::metadata_type(&connector, key).expect("known"))).collect();
    assert_eq!(SourceConnector::metadata_type(&connector, "leader-epoch"), None);
    let options = [("key.format", "json"), ("key.fields", "id"), ("value.fields-include", "EXCEPT_KEY")];
    let source = open(&log, &table(&topic, &columns, &options), false);
    let splits = source.discover().expect("discover");
    assert_eq!(splits.len(), 3);
    let batches = read(&*source, &splits[2], Some(4));
    assert_eq!(names(&batches), ["a", "b"]);
    let bad: Vec<_> = batches.iter().flat_map(|batch| batch.bad.iter().map(|record| record.origin.offset)).collect();
    assert_eq!(bad, [1, 2], "a bad key and a bad value");
    let rows = arrow_select::concat::concat_batches(&batches[0].rows.schema(), batches.iter().map(|batch| &batch.rows)).expect("concat");
    assert_eq!(rows.column(0).as_primitive::<Int64Type>().values(), &[7, 9], "from the key");
    assert_eq!(rows.column(2).as_string::<i32>().value(0), &*topic);
    assert_eq!(rows.column(3).as_primitive::<Int32Type>().values(), &[2, 2]);
    assert_eq!(rows.column(4).as_primitive::<Int64Type>().values(), &[0, 3]);
    assert_eq!(rows.column(5).as_primitive::<TimestampMillisecondType>().values(), &[1_700_000_000_123; 2]);
    assert_eq!(rows.column(6).as_string::<i32>().value(1), "CreateTime");
    let headers = rows.column(7).as_map();
    assert_eq!(headers.value_offsets(), &[0, 2, 4]);
    assert_eq!(headers.keys().as_string::<i32>().iter().flatten().take(2).collect::<Vec<_>>(), ["h", "i"]);
    assert_eq!(headers.values().as_binary::<i32>().value(0), b"2", "the last one of a name counts");
    assert_eq!(batches.iter().filter_map(|batch| batch.newest_timestamp_ms).max(), Some(1_700_000_000_123));
}

#[test]
fn a_scan_starts_where_it_is_told() {
    let log = log_or_return!();
    let (topic, group) = (topic(&log, "start", 1), unique("start"));
    let mut set = MessageSet::new(Arc::clone(&topic));
    for id in 0..10 {
        push(&mut set, Some(0), None, Some(person(id, &id.to_string()).as_bytes()), Some(1_700_000_000_000 + id * 1000));
    }
    let mut writer = log.writer(&unique("start")).expect("writer");
    commit(&mut *writer, &set);
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    settled(&log, &partition);
    let discover = |options: &[(&str, &str)]| open(&log, &table(&topic, &[], options), false).discover();
    let start = |options: &[(&str, &str)]| discover(options).expect("discover")[0].start;
    assert_eq!(start(&[]), 0);
    assert_eq!(start(&[("scan.startup.mode", "latest-offset")]), 11);
    assert_eq!(start(&[("scan.startup.mode", "timestamp"), ("scan.startup.timestamp-millis", "1700000004500")]), 5);
    assert_eq!(start(&[("scan.startup.mode", "specific-offsets"), ("scan.startup.specific-offsets", "partition:0,offset:3")]), 3);
    let by_group = [("scan.startup.mode", "group-offsets"), ("properties.group.id", group.as_str())];
    let error = discover(&by_group).expect_err("no offset yet");
    assert!(error.kind == SourceErrorKind::Stop && error.message.contains("properties.auto.offset.reset"), "{error}");
    assert_eq!(start(&[by_group[0], by_group[1], ("properties.auto.offset.reset", "latest")]), 11);
    log.commit_group_offsets(&group, &[(partition.clone(), 6)]);
    crate::reading::wait_until(|| log.group_offset(&group, &partition).expect("offset") == Some(6));
    assert_eq!(start(&by_group), 6);
    let ends = [("scan.bounded.mode", "timestamp"), ("scan.bounded.timestamp-millis", "1700000004500")];
    assert_eq!(discover(&ends).expect("discover")[0].end, Some(5));
    let group = KafkaConnector::new(Arc::clone(&log)).group(&table(&topic, &[], &by_group));
    assert_eq!(group.map(|(topic, _)| topic), Some(topic.to_string()));
    let missing = open(&log, &table(&unique("missing"), &[], &[]), false).discover().expect_err("missing");
    assert!(missing.kind == SourceErrorKind::Stop && missing.message.contains("does not exist"), "{missing}");
}

#[test]
fn a_source_in_another_cluster_takes_its_own_client_and_a_sink_is_refused() {
    let Some(servers) = servers() else { return };
    // The job's cluster is nowhere; only the table's answers.
    let elsewhere = KafkaLog::elsewhere([("bootstrap.servers".to_string(), "127.0.0.1:1".to_string())].into()).expect("unconnected");
    let log = connect(&servers, &[]);
    let topic = topic(&log, "elsewhere", 1);
    commit(&mut *log.writer(&unique("elsewhere")).expect("writer"), &values(&topic, [person(1, "x")]));
    let options = [("properties.bootstrap.servers", servers.as_str()), ("properties.group.id", "g")];
    let table = table(&topic, &[], &options);
    let source = open(&elsewhere, &table, false);
    assert_eq!(names(&read(&*source, &source.discover().expect("discover")[0], Some(1))), ["x"]);
    let connector = KafkaConnector::new(elsewhere);
    let errors = SinkConnector::check(&connector, &table);
    assert_eq!(errors.iter().map(|error| error.key.as_str()).collect::<Vec<_>>(), ["properties.bootstrap.servers"]);
    assert_eq!(connector.group(&table), None);
    assert_eq!(SinkConnector::check(&KafkaConnector::new(log), &table), []);
}

fn region(partition: u32) -> RegionId {
    RegionId { stage: StageId(0), partition }
}

fn sealed(log: &Arc<KafkaLog>, table: &TableDefinition, rows: Vec<ArrayRef>, refused: &[usize]) -> MessageSet {
    let connector = KafkaConnector::new(Arc::clone(log));
    assert_eq!(SinkConnector::check(&connector, table), []);
    let columns = table.columns.clone();
    let schema = schema(&columns);
    let sink = SinkConnector::open(&connector, SinkRequest { table: table.clone(), schema: Arc::clone(&schema), columns }).expect("open");
    assert_eq!(sink.topic().map(|topic| (topic.name, topic.partitions)), Some((table.option("topic").unwrap_or_default().to_string(), -1)));
    let mut writer = sink.writer(region(1)).expect("writer");
    assert!(writer.seal(Epoch(1)).is_none(), "an epoch without rows has no content");
    let found = writer.write(&RecordBatch::try_new(schema, rows).expect("batch")).expect("write");
    assert_eq!(found.iter().map(|refused| refused.row).collect::<Vec<_>>(), refused, "{found:?}");
    assert!(writer.bytes() > 0);
    let Some(SinkContent::Messages(set)) = writer.seal(Epoch(2)) else { panic!("messages") };
    assert_eq!(writer.bytes(), 0);
    set
}

#[test]
fn rows_are_written_with_key_timestamp_and_partition_and_read_back() {
    let log = log_or_return!();
    let topic = topic(&log, "sink", 3);
    let zoned = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let options =
        [("key.format", "json"), ("key.fields", "id"), ("value.fields-include", "EXCEPT_KEY"), ("sink.partitioner", "round-robin")];
    let table = table(&topic, &[("at", "timestamp", zoned)], &options);
    let times =
        TimestampMillisecondArray::from(vec![Some(1_700_000_000_001), None, Some(-5), Some(1_700_000_000_004)]).with_timezone("UTC");
    let rows: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1, 2, 3, 4])),
        Arc::new(StringArray::from(vec!["a", "b", "before 1970", "d"])),
        Arc::new(times),
    ];
    let set = sealed(&log, &table, rows, &[2]);
    assert_eq!(set.entries.iter().map(|entry| entry.partition).collect::<Vec<_>>(), [Some(1), Some(2), Some(0)]);
    let mut writer = log.writer(&unique("sink")).expect("writer");
    commit(&mut *writer, &set);
    let source = open(&log, &table, true);
    let mut got = Vec::new();
    for split in source.discover().expect("discover") {
        for batch in read(&*source, &split, Some(1)).iter().filter(|batch| batch.records > 0) {
            let origin = batch.origins.as_ref().expect("kept").origin(0);
            let text = |bytes: Option<Vec<u8>>| String::from_utf8(bytes.expect("bytes")).expect("text");
            let at = batch.rows.column(2).as_primitive::<TimestampMillisecondType>().value(0);
            got.push((
                batch.rows.column(0).as_primitive::<Int64Type>().value(0),
                text(origin.key),
                text(origin.payload),
                at > 1_700_000_000_004,
                split.id,
            ));
        }
    }
    got.sort();
    let row = |id: i64, name: &str, by_client: bool, split| {
        (id, format!("{{\"id\":{id}}}"), format!("{{\"name\":\"{name}\"}}"), by_client, split)
    };
    assert_eq!(got, [row(1, "a", false, 1), row(2, "b", true, 2), row(4, "d", false, 0)]);
}

#[test]
fn a_row_that_no_message_can_hold_is_refused_before_the_seal() {
    let Some(servers) = servers() else { return };
    let log = connect(&servers, &[("batch.size", "1000")]);
    let topic = topic_with(&log, "toolarge", 2, &[("max.message.bytes", "1000")]);
    let rows = || -> Vec<ArrayRef> {
        vec![
            Arc::new(Int64Array::from(vec![1, 2, 3])),
            Arc::new(StringArray::from(vec!["a".to_string(), "x".repeat(2000), "c".repeat(800)])),
        ]
    };
    let set = sealed(&log, &table(&topic, &[], &[("sink.partitioner", "fixed")]), rows(), &[1]);
    assert_eq!(set.entries.iter().map(|entry| entry.partition).collect::<Vec<_>>(), [Some(1), Some(1)]);
    // What was not refused is accepted by the broker, without compression too.
    let plain = connect(&servers, &[("compression.type", "none")]);
    commit(&mut *plain.writer(&unique("toolarge")).expect("writer"), &set);
    assert_eq!(SinkConnector::metadata_type(&KafkaConnector::new(log), "headers"), None);
}

#[test]
fn a_sink_in_a_topic_that_takes_no_batch_of_the_client_says_what_to_set() {
    let Some(servers) = servers() else { return };
    let topic = topic_with(&connect(&servers, &[]), "smallbatch", 1, &[("max.message.bytes", "20000")]);
    let table = table(&topic, &[], &[]);
    let writer = |properties: &[(&str, &str)]| {
        let columns = table.columns.clone();
        let request = SinkRequest { table: table.clone(), schema: schema(&columns), columns };
        SinkConnector::open(&KafkaConnector::new(connect(&servers, properties)), request).expect("open").writer(region(0)).map(drop)
    };
    let error = writer(&[]).expect_err("batches of a million bytes");
    let named = [&*topic, "20000", "max.message.bytes", "batch.size"].map(|part| error.message.contains(part));
    assert!(!error.retry && named == [true; 4], "{error}");
    writer(&[("batch.size", "20000")]).expect("as it was told");
}

#[test]
fn a_row_whose_timestamp_the_topic_does_not_take_is_refused_before_the_seal() {
    let log = log_or_return!();
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    let rows = || -> Vec<ArrayRef> {
        let times = [now_ms, now_ms + 7_200_000, now_ms - 172_800_000].map(Some).to_vec();
        vec![
            Arc::new(Int64Array::from(vec![1, 2, 3])),
            Arc::new(StringArray::from(vec!["now", "ahead", "old"])),
            Arc::new(TimestampMillisecondArray::from(times).with_timezone("UTC")),
        ]
    };
    let zoned = || DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let limits = [("message.timestamp.before.max.ms", "86400000"), ("message.timestamp.after.max.ms", "3600000")];
    let strict = topic_with(&log, "strict", 1, &limits);
    let set = sealed(&log, &table(&strict, &[("at", "timestamp", zoned())], &[]), rows(), &[1, 2]);
    commit(&mut *log.writer(&unique("strict")).expect("writer"), &set);
    // Where the broker sets the time, it takes any.
    let stamped = topic_with(&log, "stamped", 1, &[limits[0], limits[1], ("message.timestamp.type", "LogAppendTime")]);
    let set = sealed(&log, &table(&stamped, &[("at", "timestamp", zoned())], &[]), rows(), &[]);
    commit(&mut *log.writer(&unique("stamped")).expect("writer"), &set);
}

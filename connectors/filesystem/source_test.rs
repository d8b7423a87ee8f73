use super::*;
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_schema::{Field, Schema};
use proptest::prelude::*;
use std::path::Path;
use streamshield_core::ports::log::{TakeLimit, Wakeup};
use streamshield_core::ports::source::{SourceBatch, SplitState};
use streamshield_core::table::{Column, ColumnKind};

const ALL: TakeLimit = TakeLimit { messages: usize::MAX, bytes: usize::MAX, end: None };

fn source(path: &Path, with_name: bool) -> Arc<dyn Source> {
    let mut columns = vec![Column { field: Arc::new(Field::new("a", DataType::Int64, false)), kind: ColumnKind::Physical }];
    if with_name {
        let kind = ColumnKind::Metadata { key: "file.name".into(), is_virtual: true };
        columns.insert(0, Column { field: Arc::new(Field::new("f", DataType::Utf8, false)), kind });
    }
    source_of(path, "json", columns)
}

fn source_of(path: &Path, format: &str, columns: Vec<Column>) -> Arc<dyn Source> {
    let options = [("connector", "filesystem"), ("path", path.to_str().unwrap()), ("format", format)];
    let table = TableDefinition {
        name: "t".into(),
        columns: columns.clone(),
        options: options.map(|(k, v)| (k.to_string(), v.to_string())).into(),
        primary_key: vec![],
    };
    assert_eq!(SourceConnector::check(&FilesystemConnector, &table), []);
    let schema = Arc::new(Schema::new(columns.iter().map(|column| column.field.clone()).collect::<Vec<_>>()));
    SourceConnector::open(&FilesystemConnector, SourceRequest { table, columns, schema, keep_origins: true }).unwrap()
}

fn take(source: &dyn Source, split: usize, from: i64, limit: &TakeLimit) -> SourceBatch {
    let splits = source.discover().unwrap();
    let mut reader = source.reader(Arc::new(Wakeup::default())).unwrap();
    reader.add_split(&splits[split], from).unwrap();
    reader.take(split as u32, limit).unwrap()
}

fn longs(rows: &RecordBatch) -> Vec<i64> {
    rows.column(rows.num_columns() - 1).as_primitive::<Int64Type>().values().to_vec()
}

#[test]
fn every_visible_file_is_a_split_of_lines() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("b.jsonl"), "{\"a\":3}\n\n{\"a\":\"x\"}\n{\"a\":4}").unwrap();
    std::fs::write(folder.path().join("a.jsonl"), "{\"a\":1}\r\n{\"a\":2}\n").unwrap();
    std::fs::write(folder.path().join(".hidden"), "{\"a\":9}\n").unwrap();
    std::fs::write(folder.path().join("_SUCCESS"), "").unwrap();
    let source = source(folder.path(), true);
    assert_eq!(source.discover().unwrap().iter().map(|split| split.end).collect::<Vec<_>>(), [Some(17), Some(26)]);
    let first = take(&*source, 0, 0, &ALL);
    assert_eq!((longs(&first.rows), first.to, first.state), (vec![1, 2], 17, SplitState::Finished));
    assert_eq!(first.rows.column(0).as_string::<i32>().value(0), "a.jsonl");
    let second = take(&*source, 1, 0, &ALL);
    assert_eq!((longs(&second.rows), second.records, second.bytes), (vec![3, 4], 3, 26));
    assert_eq!((second.bad[0].origin.offset, second.bad[0].origin.payload.as_deref()), (9, Some(&b"{\"a\":\"x\"}"[..])));
    let origin = second.origins.unwrap().origin(1);
    assert_eq!((origin.offset, origin.payload.as_deref()), (19, Some(&b"{\"a\":4}"[..])));
}

#[test]
fn a_line_loses_its_break_and_only_an_empty_one_is_no_record() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("f"), " a\r\n\r\n\n  \nb\r\r\n\t\nc\r").unwrap();
    let column = Column { field: Arc::new(Field::new("s", DataType::Utf8, false)), kind: ColumnKind::Physical };
    for format in ["raw", "csv"] {
        let batch = take(&*source_of(folder.path(), format, vec![column.clone()]), 0, 0, &ALL);
        let found: Vec<_> = batch.rows.column(0).as_string::<i32>().iter().flatten().collect();
        // CSV takes another one off.
        let kept = if format == "raw" { "b\r" } else { "b" };
        assert_eq!((found, batch.records), (vec![" a", "  ", kept, "\t", "c"], 5), "{format}");
    }
    std::fs::write(folder.path().join("f"), " \r\n{\"a\":1}\r\n\t\n").unwrap();
    let batch = take(&*source(folder.path(), false), 0, 0, &ALL);
    assert_eq!((longs(&batch.rows), batch.records, batch.state), (vec![1], 1, SplitState::Finished));
}

#[test]
fn a_line_longer_than_any_limit_is_taken_alone() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("{{\"b\":\"{}\",\"a\":1}}\n{{\"a\":2}}\n", "x".repeat(3 << 20));
    std::fs::write(folder.path().join("f"), &long).unwrap();
    let source = source(folder.path(), false);
    let batch = take(&*source, 0, 0, &TakeLimit { messages: 10, bytes: 10, end: None });
    assert_eq!((longs(&batch.rows), batch.to, batch.state), (vec![1], long.len() as i64 - 8, SplitState::More));
}

#[test]
fn a_folder_that_changed_stops_instead_of_giving_other_rows() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("b"), "{\"a\":1}\n").unwrap();
    let source = source(folder.path(), false);
    let splits = source.discover().unwrap();
    std::fs::write(folder.path().join("a"), "{\"a\":11}\n").unwrap();
    let mut reader = source.reader(Arc::new(Wakeup::default())).unwrap();
    assert_eq!(reader.add_split(&splits[0], 0).unwrap_err().kind, SourceErrorKind::Stop);
    let gone = source_of_missing();
    assert_eq!(gone.discover().unwrap_err().kind, SourceErrorKind::Stop);
}

#[test]
fn a_folder_that_is_missing_or_empty_though_it_was_read_is_waited_for() {
    let mount = tempfile::tempdir().unwrap();
    let (path, away) = (mount.path().join("in"), mount.path().join("away"));
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("f"), "{\"a\":1}\n").unwrap();
    let source = source(&path, false);
    let split = source.discover().unwrap().remove(0);
    let mut reader = source.reader(Arc::new(Wakeup::default())).unwrap();
    std::fs::rename(&path, &away).unwrap();
    for is_mount_point in [false, true] {
        if is_mount_point {
            std::fs::create_dir(&path).unwrap();
        }
        assert_eq!(source.reader(Arc::new(Wakeup::default())).err().map(|error| error.kind), Some(SourceErrorKind::Retry));
        assert_eq!(reader.add_split(&split, 0).unwrap_err().kind, SourceErrorKind::Retry);
    }
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&away, &path).unwrap();
    reader.add_split(&split, 0).unwrap();
    assert_eq!(longs(&reader.take(0, &ALL).unwrap().rows), [1]);
    // One of several files that is gone is no mount that is away.
    std::fs::rename(path.join("f"), path.join("g")).unwrap();
    assert_eq!(reader.add_split(&split, 0).unwrap_err().kind, SourceErrorKind::Stop);
}

fn source_of_missing() -> Arc<dyn Source> {
    source(Path::new("/nowhere/at/all"), false)
}

proptest! {
    #[test]
    fn the_same_positions_give_the_same_rows_however_they_are_cut(values in proptest::collection::vec(proptest::option::of(any::<i64>()), 1..40), messages in 1..9usize, bytes in 1..200usize) {
        let folder = tempfile::tempdir().unwrap();
        let text: String = values.iter().map(|value| value.map_or("bad\n".to_string(), |value| format!("{{\"a\":{value}}}\n"))).collect();
        std::fs::write(folder.path().join("f"), &text).unwrap();
        let source = source(folder.path(), false);
        let split = source.discover().unwrap().remove(0);
        let mut reader = source.reader(Arc::new(Wakeup::default())).unwrap();
        reader.add_split(&split, 0).unwrap();
        let (mut found, mut at, mut bad) = (vec![], 0, 0);
        loop {
            let batch = reader.take(0, &TakeLimit { messages, bytes, end: None }).unwrap();
            prop_assert!(batch.to > at && batch.records <= messages);
            // The same step again, by its exact end.
            let again = take(&*source, 0, at, &TakeLimit { end: Some(batch.to), ..ALL });
            prop_assert_eq!((&again.rows, again.to, &again.bad), (&batch.rows, batch.to, &batch.bad));
            at = batch.to;
            bad += batch.bad.len();
            found.extend(longs(&batch.rows));
            if batch.state == SplitState::Finished {
                break;
            }
        }
        prop_assert_eq!(at as usize, text.len());
        prop_assert_eq!(bad, values.iter().filter(|value| value.is_none()).count());
        prop_assert_eq!(found, values.into_iter().flatten().collect::<Vec<_>>());
    }
}

use super::*;
use arrow_array::cast::AsArray;
use arrow_array::{Int64Array, RecordBatch, StringArray};
use arrow_schema::{Field, Schema};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use streamshield_core::ids::{Epoch, Incarnation, RegionId, StageId};
use streamshield_core::ports::log::{TakeLimit, Wakeup};
use streamshield_core::ports::sink::{SinkContent, SinkWriter};
use streamshield_core::table::{Column, ColumnKind};

const REGION: RegionId = RegionId { stage: StageId(1), partition: 0 };
const OWNER: Incarnation = Incarnation(1);
const SUCCESSOR: Incarnation = Incarnation(2);

fn sink(path: &Path, format: &str) -> Arc<dyn Sink> {
    sink_of(path, format, &[Field::new("a", DataType::Int64, false), Field::new("s", DataType::Utf8, true)])
}

fn table(path: &Path, format: &str, fields: &[Field]) -> TableDefinition {
    let options = [("connector", "filesystem"), ("path", path.to_str().unwrap()), ("format", format)];
    TableDefinition {
        name: "t".into(),
        columns: fields.iter().map(|field| Column { field: Arc::new(field.clone()), kind: ColumnKind::Physical }).collect(),
        options: options.map(|(k, v)| (k.to_string(), v.to_string())).into(),
        primary_key: vec![],
    }
}

fn sink_of(path: &Path, format: &str, fields: &[Field]) -> Arc<dyn Sink> {
    let table = table(path, format, fields);
    assert_eq!(SinkConnector::check(&FilesystemConnector, &table), []);
    let (columns, schema) = (table.columns.clone(), Arc::new(Schema::new(fields.to_vec())));
    SinkConnector::open(&FilesystemConnector, SinkRequest { table, columns, schema }).unwrap()
}

fn rows(values: &[(Option<i64>, &str)]) -> RecordBatch {
    let schema = Schema::new(vec![Field::new("a", DataType::Int64, true), Field::new("s", DataType::Utf8, true)]);
    let numbers: Int64Array = values.iter().map(|(number, _)| *number).collect();
    let texts: StringArray = values.iter().map(|(_, text)| Some(*text)).collect();
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(numbers), Arc::new(texts)]).unwrap()
}

/// Seals what was written as this epoch.
fn seal(writer: &mut dyn SinkWriter, epoch: u64) -> Box<dyn streamshield_core::ports::sink::ExternalContent> {
    match writer.seal(Epoch(epoch)) {
        Some(SinkContent::External(content)) => content,
        _ => panic!("the epoch has rows"),
    }
}

/// Name and text of every visible file.
fn visible(folder: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeMap::new() };
    let files = entries
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read_to_string(entry.path()).unwrap()));
    files.filter(|(name, _)| !name.starts_with('.')).collect()
}

/// How many hidden files there are.
fn hidden(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.')).count()
}

#[test]
fn an_epoch_is_seen_once_it_is_published_and_every_call_may_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/by/the/sink");
    let sink = sink(&path, "json");
    sink.begin().unwrap();
    sink.begin().unwrap();
    sink.recover(REGION, None).unwrap();
    let mut writer = sink.writer(REGION).unwrap();
    assert!(writer.seal(Epoch(1)).is_none());
    writer.write(&rows(&[(Some(1), "x\ny"), (Some(2), "z")])).unwrap();
    let mut content = seal(&mut *writer, 2);
    content.prepare(OWNER).unwrap();
    content.prepare(OWNER).unwrap();
    assert_eq!(visible(&path), BTreeMap::new());
    content.publish().unwrap();
    content.publish().unwrap();
    let expected = ("part-s1-0-00000000000000000002.jsonl".to_string(), "{\"a\":1,\"s\":\"x\\ny\"}\n{\"a\":2,\"s\":\"z\"}\n".to_string());
    assert_eq!(visible(&path), BTreeMap::from([expected]));
}

#[test]
fn rows_that_are_no_line_are_refused_and_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = sink(folder.path(), "csv").writer(REGION).unwrap();
    let refused = writer.write(&rows(&[(Some(1), "x"), (Some(2), "a\nb"), (None, "y"), (Some(4), "z")])).unwrap();
    assert_eq!(refused.iter().map(|row| row.row).collect::<Vec<_>>(), [1, 2]);
    let mut content = seal(&mut *writer, 1);
    content.prepare(OWNER).unwrap();
    content.publish().unwrap();
    assert_eq!(visible(folder.path()).into_values().collect::<Vec<_>>(), ["1,x\n4,z\n"]);
}

#[test]
fn what_was_written_is_read_back_and_an_empty_record_is_refused() {
    for format in ["raw", "csv"] {
        let folder = tempfile::tempdir().unwrap();
        let fields = [Field::new("s", DataType::Utf8, true)];
        let schema = Arc::new(Schema::new(fields.to_vec()));
        let mut writer = sink_of(folder.path(), format, &fields).writer(REGION).unwrap();
        let texts: StringArray = [None, Some(""), Some(" "), Some("\t\t"), Some("x")].into_iter().collect();
        let refused = writer.write(&RecordBatch::try_new(schema.clone(), vec![Arc::new(texts)]).unwrap()).unwrap();
        assert_eq!(refused.iter().map(|row| row.row).collect::<Vec<_>>(), [0, 1], "{format}");
        let mut content = seal(&mut *writer, 1);
        content.prepare(OWNER).unwrap();
        content.publish().unwrap();
        let table = table(folder.path(), format, &fields);
        let request = SourceRequest { columns: table.columns.clone(), table, schema, keep_origins: false };
        let source = SourceConnector::open(&FilesystemConnector, request).unwrap();
        let split = source.discover().unwrap().remove(0);
        let mut reader = source.reader(Arc::new(Wakeup::default())).unwrap();
        reader.add_split(&split, 0).unwrap();
        let batch = reader.take(split.id, &TakeLimit { messages: 10, bytes: usize::MAX, end: None }).unwrap();
        let found: Vec<_> = batch.rows.column(0).as_string::<i32>().iter().collect();
        assert_eq!(found, [Some(" "), Some("\t\t"), Some("x")], "{format}");
    }
}

#[test]
fn recovery_publishes_the_file_of_the_last_record_s_owner_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink(folder.path(), "json");
    let prepare = |epoch: u64, owner: Incarnation, text: &str| {
        let mut writer = sink.writer(REGION).unwrap();
        writer.write(&rows(&[(Some(1), text)])).unwrap();
        seal(&mut *writer, epoch).prepare(owner).unwrap();
    };
    let both = || {
        prepare(5, OWNER, "fenced");
        prepare(5, SUCCESSOR, "committed");
    };
    // Not committed, both go.
    both();
    sink.recover(REGION, Some((Epoch(4), OWNER))).unwrap();
    assert_eq!((visible(folder.path()).len(), hidden(folder.path())), (0, 0));
    both();
    sink.recover(REGION, None).unwrap();
    assert_eq!((visible(folder.path()).len(), hidden(folder.path())), (0, 0));
    both();
    sink.recover(REGION, Some((Epoch(5), SUCCESSOR))).unwrap();
    let texts = || visible(folder.path()).into_values().collect::<Vec<_>>();
    assert_eq!((texts(), hidden(folder.path())), (vec!["{\"a\":1,\"s\":\"committed\"}\n".to_string()], 0));
    // Too late to be committed: the successor's epoch 6 had no rows, and the fenced owner's are in its epoch 7.
    prepare(6, OWNER, "fenced");
    prepare(7, SUCCESSOR, "committed");
    sink.recover(REGION, Some((Epoch(7), SUCCESSOR))).unwrap();
    assert_eq!((texts(), hidden(folder.path())), (vec!["{\"a\":1,\"s\":\"committed\"}\n".to_string(); 2], 0));
}

#[test]
fn a_folder_that_is_away_is_waited_for_and_what_was_committed_there_is_published() {
    let mount = tempfile::tempdir().unwrap();
    let (path, away) = (mount.path().join("out"), mount.path().join("away"));
    let sink = sink(&path, "json");
    sink.begin().unwrap();
    let mut writer = sink.writer(REGION).unwrap();
    let mut epoch = |number: u64| {
        writer.write(&rows(&[(Some(1), "committed")])).unwrap();
        seal(&mut *writer, number)
    };
    let mut committed = epoch(2);
    committed.prepare(OWNER).unwrap();
    std::fs::rename(&path, &away).unwrap();
    // Nobody goes on without it, and nothing is written elsewhere.
    let errors = [
        committed.publish().unwrap_err(),
        epoch(3).prepare(OWNER).unwrap_err(),
        sink.recover(REGION, Some((Epoch(2), OWNER))).unwrap_err(),
    ];
    assert!(errors.iter().all(|error| error.retry && error.message.contains("is a mount away?")), "{errors:?}");
    assert!(!path.exists());
    std::fs::rename(&away, &path).unwrap();
    sink.recover(REGION, Some((Epoch(2), OWNER))).unwrap();
    assert_eq!((visible(&path).len(), hidden(&path)), (1, 0));
}

#[test]
fn a_file_of_another_job_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let epoch_of = |text: &str| {
        let mut writer = sink(folder.path(), "json").writer(REGION).unwrap();
        writer.write(&rows(&[(Some(1), text)])).unwrap();
        seal(&mut *writer, 2)
    };
    let mut first = epoch_of("first job");
    first.prepare(OWNER).unwrap();
    first.publish().unwrap();
    let refused = epoch_of("second job").prepare(OWNER).unwrap_err();
    assert!(!refused.retry && refused.message.contains("part-s1-0-00000000000000000002.jsonl"), "{refused}");
    assert_eq!(visible(folder.path()).into_values().collect::<Vec<_>>(), ["{\"a\":1,\"s\":\"first job\"}\n"]);
    assert_eq!(hidden(folder.path()), 0);
}

/// Where the process ends while it handles an epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Crash {
    BeforePrepare,
    BeforeCommit,
    BeforePublish,
    AfterPublish,
}

proptest! {
    /// Epochs with crashes at every point: what is seen in the end is each committed epoch once.
    #[test]
    fn committed_epochs_are_seen_once_whatever_crashes(crashes in proptest::collection::vec(proptest::option::of(prop_oneof![Just(Crash::BeforePrepare), Just(Crash::BeforeCommit), Just(Crash::BeforePublish), Just(Crash::AfterPublish)]), 1..12), other_region: bool) {
        let folder = tempfile::tempdir().unwrap();
        let sink = sink(folder.path(), "json");
        let neighbour = RegionId { partition: 10, ..REGION };
        if other_region {
            let mut writer = sink.writer(neighbour).unwrap();
            writer.write(&rows(&[(Some(0), "neighbour")])).unwrap();
            seal(&mut *writer, 3).prepare(OWNER).unwrap();
        }
        let (mut committed, mut owner, mut last, mut expected) = (0u64, 1, None, Vec::new());
        let mut writer = sink.writer(REGION).unwrap();
        for (attempt, crash) in crashes.into_iter().enumerate() {
            let text = format!("attempt {attempt}");
            writer.write(&rows(&[(Some(attempt as i64), &text)])).unwrap();
            let mut content = seal(&mut *writer, committed + 1);
            if crash != Some(Crash::BeforePrepare) {
                content.prepare(Incarnation(owner)).unwrap();
                if crash != Some(Crash::BeforeCommit) {
                    committed += 1;
                    last = Some((Epoch(committed), Incarnation(owner)));
                    expected.push(format!("{{\"a\":{attempt},\"s\":\"{text}\"}}\n"));
                    if crash != Some(Crash::BeforePublish) {
                        content.publish().unwrap();
                    }
                }
            }
            if crash.is_some() {
                sink.recover(REGION, last).unwrap();
                sink.recover(REGION, last).unwrap();
                writer = sink.writer(REGION).unwrap();
                owner += 1;
            }
        }
        let seen = visible(folder.path());
        prop_assert_eq!(seen.into_values().collect::<Vec<_>>(), expected);
        prop_assert_eq!(hidden(folder.path()), usize::from(other_region));
    }
}

use super::*;
use crate::generator::tests::read;
use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, RecordBatch};
use arrow_schema::{Field, Schema, TimeUnit};
use proptest::prelude::*;
use std::collections::BTreeMap;
use streamshield_core::table::{Column, ColumnKind};

fn request(fields: &[Field], options: &[(&str, &str)]) -> SourceRequest {
    let columns: Vec<Column> = fields.iter().map(|field| Column { field: Arc::new(field.clone()), kind: ColumnKind::Physical }).collect();
    let mut all: BTreeMap<String, String> = options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    all.insert("connector".into(), "datagen".into());
    let schema = Arc::new(Schema::new(fields.to_vec()));
    SourceRequest {
        table: TableDefinition { name: "t".into(), columns: columns.clone(), options: all, primary_key: vec![] },
        columns,
        schema,
        keep_origins: false,
    }
}

fn rows(fields: &[Field], options: &[(&str, &str)], from: i64, to: i64) -> RecordBatch {
    let source = DatagenConnector.open(request(fields, options)).unwrap();
    read(&*source, &source.discover().unwrap()[0], from, to, usize::MAX).remove(0)
}

fn all_types() -> Vec<Field> {
    vec![
        Field::new("bool", DataType::Boolean, true),
        Field::new("i8", DataType::Int8, true),
        Field::new("i16", DataType::Int16, true),
        Field::new("i32", DataType::Int32, true),
        Field::new("i64", DataType::Int64, true),
        Field::new("f32", DataType::Float32, true),
        Field::new("f64", DataType::Float64, true),
        Field::new("dec", DataType::Decimal128(12, 2), true),
        Field::new("s", DataType::Utf8, true),
        Field::new("b", DataType::Binary, true),
        Field::new("day", DataType::Date32, true),
        Field::new("clock", DataType::Time32(TimeUnit::Millisecond), true),
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        Field::new("ltz", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), true),
    ]
}

#[test]
fn every_scalar_type_can_be_made() {
    let batch = rows(&all_types(), &[], 0, 1000);
    assert_eq!(batch.num_rows(), 1000);
    assert!(batch.columns().iter().all(|column| column.null_count() == 0));
    assert_eq!(batch.column_by_name("s").unwrap().as_string::<i32>().value(7).len(), 100);
    let times = batch.column_by_name("ltz").unwrap().as_primitive::<TimestampMillisecondType>();
    // 10,000 rows per second, in event time too.
    assert_eq!(times.value(999) - times.value(0), 99);
}

#[test]
fn ranges_nulls_and_skew_are_kept() {
    let fields =
        [Field::new("k", DataType::Int64, false), Field::new("n", DataType::Int32, true), Field::new("f", DataType::Float64, true)];
    let options = [
        ("fields.k.min", "10"),
        ("fields.k.max", "19"),
        ("fields.k.zipf", "2"),
        ("fields.n.null-rate", "0.25"),
        ("fields.f.min", "-1"),
        ("fields.f.max", "1"),
    ];
    let batch = rows(&fields, &options, 0, 20_000);
    let keys = batch.column(0).as_primitive::<Int64Type>();
    assert!(keys.values().iter().all(|key| (10..=19).contains(key)));
    let hot = keys.values().iter().filter(|key| **key == 10).count() as f64 / 20_000.0;
    assert!((0.61..0.68).contains(&hot), "{hot}");
    assert!((4_600..5_400).contains(&batch.column(1).null_count()));
    assert!(batch.column(2).as_primitive::<Float64Type>().values().iter().all(|value| (-1.0..1.0).contains(value)));
}

#[test]
fn sequences_end_the_table_and_are_shared_by_the_splits() {
    let fields = [Field::new("i", DataType::Int64, true), Field::new("s", DataType::Utf8, true)];
    let options = [
        ("fields.i.kind", "sequence"),
        ("fields.i.start", "5"),
        ("fields.i.end", "11"),
        ("fields.s.kind", "sequence"),
        ("fields.s.start", "0"),
        ("fields.s.end", "99"),
        ("splits", "2"),
    ];
    let source = DatagenConnector.open(request(&fields, &options)).unwrap();
    let mut values = Vec::new();
    for split in source.discover().unwrap() {
        for batch in read(&*source, &split, 0, split.end.unwrap(), 3) {
            values.extend(
                batch
                    .column(0)
                    .as_primitive::<Int64Type>()
                    .values()
                    .iter()
                    .copied()
                    .zip(batch.column(1).as_string::<i32>().iter().map(|s| s.unwrap().to_string())),
            );
        }
    }
    values.sort();
    assert_eq!(values, (5..=11).map(|i| (i, (i - 5).to_string())).collect::<Vec<_>>());
}

#[test]
fn a_sequence_of_decimals_counts_in_whole_numbers_as_far_as_the_type_goes() {
    let field = Field::new("d", DataType::Decimal128(6, 2), true);
    let options = [("fields.d.kind", "sequence"), ("fields.d.start", "-1"), ("fields.d.end", "9999")];
    let batch = rows(std::slice::from_ref(&field), &options, 0, 3);
    assert_eq!(batch.column(0).as_primitive::<Decimal128Type>().values().to_vec(), [-100, 0, 100]);
    let errors_of = |start: &str, end: &str| {
        let options = [("fields.d.kind", "sequence"), ("fields.d.start", start), ("fields.d.end", end)];
        DatagenConnector.check(&request(std::slice::from_ref(&field), &options).table).len()
    };
    assert_eq!([errors_of("-9999", "9999"), errors_of("0", "10000"), errors_of("-10000", "0")], [0, 1, 1]);
}

#[test]
fn event_time_goes_on_by_its_interval_and_comes_out_of_order_by_its_skew() {
    let fields = [
        Field::new("a", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new("b", DataType::Timestamp(TimeUnit::Millisecond, None), true),
    ];
    let options = [
        ("fields.a.kind", "event-time"),
        ("fields.a.interval", "10 ms"),
        ("fields.a.start", "1000"),
        ("fields.b.kind", "event-time"),
        ("fields.b.interval", "10 ms"),
        ("fields.b.start", "1000"),
        ("fields.b.skew", "1 s"),
    ];
    let batch = rows(&fields, &options, 0, 1000);
    let (straight, skewed) =
        (batch.column(0).as_primitive::<TimestampMillisecondType>(), batch.column(1).as_primitive::<TimestampMillisecondType>());
    assert!(straight.values().iter().enumerate().all(|(row, time)| *time == 1000 + 10 * row as i64));
    assert!(straight.values().iter().zip(skewed.values()).all(|(a, b)| (0..=1000).contains(&(a - b))));
    assert!(!skewed.values().is_sorted());
}

#[test]
fn what_can_not_be_made_is_refused_at_its_key() {
    let check = |field: Field, options: &[(&str, &str)]| DatagenConnector.check(&request(&[field], options).table);
    let long = || Field::new("x", DataType::Int64, true);
    for (field, options, key) in [
        (long(), vec![("fields.x.min", "5"), ("fields.x.max", "1")], "fields.x.max"),
        (long(), vec![("fields.x.kind", "sequence")], "fields.x.kind"),
        (long(), vec![("fields.x.kind", "event-time")], "fields.x.kind"),
        (long(), vec![("fields.x.null-rate", "2")], "fields.x.null-rate"),
        (Field::new("x", DataType::Int64, false), vec![("fields.x.null-rate", "0.5")], "fields.x.null-rate"),
        (long(), vec![("fields.x.zipf", "1")], "fields.x.zipf"),
        (Field::new("x", DataType::Int8, true), vec![("fields.x.max", "200")], "fields.x.max"),
        (Field::new("x", DataType::new_list(DataType::Int8, true), true), vec![], "fields.x.kind"),
        (long(), vec![("fields.x.length", "5")], "fields.x.length"),
    ] {
        let errors = check(field, &options);
        assert_eq!(errors.iter().map(|error| error.key.as_str()).collect::<Vec<_>>(), [key]);
    }
    let errors = check(Field::new("price", DataType::Int64, true), &[("fields.prise.min", "5")]);
    assert_eq!(
        (errors[0].message.as_str(), errors[0].hint.as_deref()),
        ("the table has no column 'prise' to generate", Some("did you mean 'price'?"))
    );
}

proptest! {
    #[test]
    fn the_same_positions_give_the_same_rows_however_they_are_cut(seed in 0..5u64, from in 0..1_000i64, count in 1..100i64, cut in 1..40usize) {
        let seed = seed.to_string();
        let options = [("seed", seed.as_str()), ("fields.i64.null-rate", "0.5")];
        let whole = rows(&all_types(), &options, from, from + count);
        let source = DatagenConnector.open(request(&all_types(), &options)).unwrap();
        let mut at = 0;
        for piece in read(&*source, &source.discover().unwrap()[0], from, from + count, cut) {
            prop_assert_eq!(&piece, &whole.slice(at, piece.num_rows()));
            at += piece.num_rows();
        }
    }
}

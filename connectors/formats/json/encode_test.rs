//! What rows become as JSON, and that they come back.

use super::super::{FormatScope, decoder, encoder};
use super::decode_test::{schema, table};
use arrow_array::*;
use arrow_schema::{DataType, Field, SchemaRef, TimeUnit};
use proptest::prelude::*;
use std::sync::Arc;

fn encode(schema: &SchemaRef, options: &[(&str, &str)], rows: &RecordBatch) -> (Vec<String>, Vec<usize>) {
    let mut encoder = encoder(&table(schema, options), FormatScope::Value, schema).unwrap();
    let (mut out, mut ends) = (b"before".to_vec(), vec![]);
    let refused = encoder.encode(rows, &mut out, &mut ends).unwrap();
    let mut start = 6;
    let mut texts = Vec::new();
    for end in ends {
        texts.push(String::from_utf8(out[start..end].to_vec()).unwrap());
        start = end;
    }
    assert_eq!(start, out.len());
    (texts, refused.into_iter().map(|row| row.row).collect())
}

#[test]
fn values_are_written_as_flink_writes_them() {
    let schema = schema(vec![
        Field::new("i", DataType::Int64, true),
        Field::new("s\"", DataType::Utf8, true),
        Field::new("t", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new("z", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("d", DataType::Decimal128(10, 3), true),
        Field::new("f", DataType::Float64, true),
        Field::new("b", DataType::Binary, true),
        Field::new("day", DataType::Date32, true),
        Field::new("c", DataType::Time32(TimeUnit::Millisecond), true),
    ]);
    let rows = RecordBatch::try_new(
        schema.clone(),
        vec![
            Arc::new(Int64Array::from(vec![Some(-7), None])),
            Arc::new(StringArray::from(vec![Some("a\"\\\n\u{1}é"), None])),
            Arc::new(TimestampMillisecondArray::from(vec![Some(1_704_164_645_670), None])),
            Arc::new(TimestampMicrosecondArray::from(vec![Some(1_704_164_645_000_001), None]).with_timezone("UTC")),
            Arc::new(Decimal128Array::from(vec![Some(-5), None]).with_precision_and_scale(10, 3).unwrap()),
            Arc::new(Float64Array::from(vec![Some(f64::NAN), None])),
            Arc::new(BinaryArray::from(vec![Some(&[0u8, 1, 2, 255][..]), None])),
            Arc::new(Date32Array::from(vec![Some(-1), None])),
            Arc::new(Time32MillisecondArray::from(vec![Some(3_600_500), None])),
        ],
    )
    .unwrap();
    let (texts, _) = encode(&schema, &[], &rows);
    assert_eq!(
        texts[0],
        r#"{"i":-7,"s\"":"a\"\\\n\u0001é","t":"2024-01-02 03:04:05.67","z":"2024-01-02 03:04:05.000001Z","d":-0.005,"f":"NaN","b":"AAEC/w==","day":"1969-12-31","c":"01:00:00.5"}"#
    );
    assert_eq!(texts[1], r#"{"i":null,"s\"":null,"t":null,"z":null,"d":null,"f":null,"b":null,"day":null,"c":null}"#);
    let (texts, _) = encode(&schema, &[("json.encode.ignore-null-fields", "true"), ("json.timestamp-format.standard", "iso-8601")], &rows);
    assert!(texts[0].contains(r#""t":"2024-01-02T03:04:05.67""#));
    assert_eq!(texts[1], "{}");
}

#[test]
fn a_null_in_a_column_that_forbids_it_is_refused() {
    let nullable = schema(vec![Field::new("a", DataType::Int64, true)]);
    let strict = schema(vec![Field::new("a", DataType::Int64, false)]);
    let rows = RecordBatch::try_new(nullable, vec![Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]))]).unwrap();
    let (texts, refused) = encode(&strict, &[], &rows);
    assert_eq!((texts, refused), (vec!["{\"a\":1}".into(), String::new(), "{\"a\":3}".into()], vec![1]));
}

#[test]
fn a_slice_of_a_batch_is_written_from_its_own_rows() {
    let list = DataType::new_list(DataType::Utf8, true);
    let row = DataType::Struct(vec![Field::new("x", DataType::Utf8, true)].into());
    let schema = schema(vec![Field::new("l", list, true), Field::new("r", row, true)]);
    let mut reader = decoder(&table(&schema, &[]), FormatScope::Value, &schema).unwrap();
    let records = [r#"{"l":["a"],"r":{"x":"1"}}"#, r#"{"l":null,"r":null}"#, r#"{"l":[null,"c"],"r":{"x":"3"}}"#];
    let rows = reader.decode(&records.map(|record| Some(record.as_bytes()))).rows;
    assert_eq!(encode(&schema, &[], &rows).0, records);
    assert_eq!(encode(&schema, &[], &rows.slice(1, 2)).0, records[1..]);
}

fn any_rows() -> impl Strategy<Value = (SchemaRef, RecordBatch)> {
    let schema = schema(vec![
        Field::new("i8", DataType::Int8, true),
        Field::new("i16", DataType::Int16, true),
        Field::new("i32", DataType::Int32, true),
        Field::new("i64", DataType::Int64, true),
        Field::new("f32", DataType::Float32, true),
        Field::new("f64", DataType::Float64, true),
        Field::new("s", DataType::Utf8, true),
        Field::new("b", DataType::Binary, true),
        Field::new("bool", DataType::Boolean, true),
        Field::new("dec", DataType::Decimal128(38, 7), true),
        Field::new("ts", DataType::Timestamp(TimeUnit::Nanosecond, None), true),
        Field::new("ltz", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), true),
    ]);
    let row = (
        any::<Option<(i8, i16, i32, i64)>>(),
        any::<Option<(f32, f64)>>(),
        any::<Option<String>>(),
        any::<Option<Vec<u8>>>(),
        any::<Option<bool>>(),
        proptest::option::of((-(10i128.pow(37))..10i128.pow(37), any::<i64>(), -62_135_596_800_000i64..253_402_300_799_999)),
    );
    proptest::collection::vec(row, 0..12).prop_map(move |rows| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(rows.iter().map(|row| row.0.map(|n| n.0)).collect::<Int8Array>()),
            Arc::new(rows.iter().map(|row| row.0.map(|n| n.1)).collect::<Int16Array>()),
            Arc::new(rows.iter().map(|row| row.0.map(|n| n.2)).collect::<Int32Array>()),
            Arc::new(rows.iter().map(|row| row.0.map(|n| n.3)).collect::<Int64Array>()),
            Arc::new(rows.iter().map(|row| row.1.map(|n| n.0)).collect::<Float32Array>()),
            Arc::new(rows.iter().map(|row| row.1.map(|n| n.1)).collect::<Float64Array>()),
            Arc::new(rows.iter().map(|row| row.2.as_deref()).collect::<StringArray>()),
            Arc::new(rows.iter().map(|row| row.3.as_deref()).collect::<BinaryArray>()),
            Arc::new(rows.iter().map(|row| row.4).collect::<BooleanArray>()),
            Arc::new(rows.iter().map(|row| row.5.map(|n| n.0)).collect::<Decimal128Array>().with_precision_and_scale(38, 7).unwrap()),
            Arc::new(rows.iter().map(|row| row.5.map(|n| n.1)).collect::<TimestampNanosecondArray>()),
            Arc::new(rows.iter().map(|row| row.5.map(|n| n.2)).collect::<TimestampMillisecondArray>().with_timezone("UTC")),
        ];
        (schema.clone(), RecordBatch::try_new(schema.clone(), columns).unwrap())
    })
}

proptest! {
    #[test]
    fn every_row_comes_back_and_is_valid_json((schema, rows) in any_rows(), iso: bool, skip_nulls: bool) {
        let options = [("json.timestamp-format.standard", if iso { "ISO-8601" } else { "SQL" }), ("json.encode.ignore-null-fields", if skip_nulls { "true" } else { "false" })];
        let (texts, refused) = encode(&schema, &options, &rows);
        prop_assert!(refused.is_empty());
        for text in &texts {
            prop_assert!(serde_json::from_str::<serde_json::Value>(text).is_ok(), "{}", text);
        }
        let mut reader = decoder(&table(&schema, &options), FormatScope::Value, &schema).unwrap();
        let payloads: Vec<_> = texts.iter().map(|text| Some(text.as_bytes())).collect();
        let decoded = reader.decode(&payloads);
        prop_assert_eq!(decoded.bad, vec![]);
        prop_assert_eq!(decoded.rows, rows);
    }
}

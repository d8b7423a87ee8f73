//! What JSON records become, and that they never touch each other.

use super::super::{FormatScope, RecordDecoder, decoder};
use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use streamshield_core::table::{Column, ColumnKind, TableDefinition};

pub(super) fn table(schema: &SchemaRef, options: &[(&str, &str)]) -> TableDefinition {
    let columns = schema.fields().iter().map(|field| Column { field: field.clone(), kind: ColumnKind::Physical }).collect();
    let mut all: BTreeMap<String, String> = options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    all.entry("format".into()).or_insert_with(|| "json".into());
    TableDefinition { name: "t".into(), columns, options: all, primary_key: vec![] }
}

pub(super) fn schema(fields: Vec<Field>) -> SchemaRef {
    Arc::new(Schema::new(fields))
}

fn decode_with(schema: &SchemaRef, options: &[(&str, &str)], records: &[&[u8]]) -> (RecordBatch, Vec<(usize, String)>) {
    let mut decoder = decoder(&table(schema, options), FormatScope::Value, schema).unwrap();
    let payloads: Vec<_> = records.iter().map(|record| Some(*record)).collect();
    let decoded = decoder.decode(&payloads);
    (decoded.rows, decoded.bad)
}

/// One column named `v` from one record `{"v": <value>}`: the row as text, `null`, or the reason.
fn one(data_type: DataType, value: &str) -> Result<RecordBatch, String> {
    let schema = schema(vec![Field::new("v", data_type, true)]);
    let record = format!("{{\"v\":{value}}}");
    let (rows, bad) = decode_with(&schema, &[], &[record.as_bytes()]);
    match bad.into_iter().next() {
        Some((_, reason)) => Err(reason),
        None => Ok(rows),
    }
}

fn long(value: &str) -> Result<i64, String> {
    one(DataType::Int64, value).map(|rows| rows.column(0).as_primitive::<Int64Type>().value(0))
}
fn text(value: &str) -> Result<String, String> {
    one(DataType::Utf8, value).map(|rows| rows.column(0).as_string::<i32>().value(0).to_string())
}

#[test]
fn whole_numbers_are_read_as_flink_reads_them() {
    assert_eq!(long("12"), Ok(12));
    assert_eq!(long("-9223372036854775808"), Ok(i64::MIN));
    assert_eq!(long("9223372036854775807"), Ok(i64::MAX));
    assert_eq!(long("\" 42 \""), Ok(42));
    assert_eq!(long("1.9"), Ok(1));
    assert_eq!(long("-1.9"), Ok(-1));
    assert_eq!(long("1.5e3"), Ok(1500));
    assert_eq!(long("9223372036854775808").unwrap_err(), "column 'v': 9223372036854775808 is out of the range of BIGINT");
    assert_eq!(long("\"1.9\"").unwrap_err(), "column 'v': \"1.9\" is no BIGINT");
    assert_eq!(long("true").unwrap_err(), "column 'v': true is no BIGINT");
    assert_eq!(long("[1, 2]").unwrap_err(), "column 'v': [1, 2] is no BIGINT");
    assert!(long("01").unwrap_err().contains("not valid JSON at byte 5"));
    assert!(one(DataType::Int8, "128").is_err());
    assert!(one(DataType::Int16, "1.5").is_err());
    assert_eq!(one(DataType::Int8, "-128").unwrap().column(0).as_primitive::<Int8Type>().value(0), -128);
    assert_eq!(one(DataType::Int32, "2.5").unwrap().column(0).as_primitive::<Int32Type>().value(0), 2);
    assert!(one(DataType::Int32, "3000000000").is_err());
}

#[test]
fn text_keeps_the_json_of_what_is_no_string() {
    assert_eq!(text(r#""a\"b\u00e9\ud83d\ude00""#).unwrap(), "a\"bé😀");
    assert_eq!(text("12.50").unwrap(), "12.50");
    assert_eq!(text("true").unwrap(), "true");
    assert_eq!(text(r#"{ "a" : [1, " x "], "b": null }"#).unwrap(), r#"{"a":[1," x "],"b":null}"#);
    assert!(text(r#"{"a":}"#).unwrap_err().starts_with("not valid JSON"));
}

#[test]
fn decimals_bytes_floats_and_booleans_are_read_exactly() {
    let decimal =
        |value: &str| one(DataType::Decimal128(10, 2), value).map(|rows| rows.column(0).as_primitive::<Decimal128Type>().value(0));
    assert_eq!(decimal("1.005"), Ok(101));
    assert_eq!(decimal("\"-12.3\""), Ok(-1230));
    assert!(decimal("123456789").unwrap_err().contains("out of the range of DECIMAL(10, 2)"));
    let bytes = |value: &str| one(DataType::Binary, value).map(|rows| rows.column(0).as_binary::<i32>().value(0).to_vec());
    assert_eq!(bytes("\"AAEC/w==\""), Ok(vec![0, 1, 2, 255]));
    assert_eq!(bytes("\"AAEC/w\""), Ok(vec![0, 1, 2, 255]));
    assert!(bytes("\"@\"").is_err());
    let double = |value: &str| one(DataType::Float64, value).map(|rows| rows.column(0).as_primitive::<Float64Type>().value(0));
    assert_eq!(double("0.1"), Ok(0.1));
    assert_eq!(double("\"-Infinity\""), Ok(f64::NEG_INFINITY));
    assert!(double("1e999").is_err());
    assert!(one(DataType::Float32, "1e300").is_err());
    let boolean = |value: &str| one(DataType::Boolean, value).map(|rows| rows.column(0).as_boolean().value(0));
    assert_eq!((boolean("true"), boolean("\"False\"")), (Ok(true), Ok(false)));
    assert!(boolean("1").is_err());
}

#[test]
fn times_are_read_in_both_standards_and_zones_must_match_the_type() {
    let at = |zone: Option<&str>, value: &str| {
        one(DataType::Timestamp(TimeUnit::Millisecond, zone.map(Into::into)), value)
            .map(|rows| rows.column(0).as_primitive::<TimestampMillisecondType>().value(0))
    };
    assert_eq!(at(None, "\"2024-01-02 03:04:05.678\""), Ok(1_704_164_645_678));
    assert_eq!(at(None, "\"2024-01-02T03:04:05.678\""), Ok(1_704_164_645_678));
    assert_eq!(at(Some("UTC"), "\"2024-01-02 03:04:05.678Z\""), Ok(1_704_164_645_678));
    assert!(at(None, "\"2024-01-02 03:04:05Z\"").is_err());
    assert!(at(Some("UTC"), "\"2024-01-02 03:04:05\"").is_err());
    assert!(at(None, "1704164645678").is_err());
    assert_eq!(one(DataType::Date32, "\"1970-01-02\"").unwrap().column(0).as_primitive::<Date32Type>().value(0), 1);
    assert_eq!(
        one(DataType::Time32(TimeUnit::Millisecond), "\"01:00:00.5\"").unwrap().column(0).as_primitive::<Time32MillisecondType>().value(0),
        3_600_500
    );
}

#[test]
fn nested_values_are_read() {
    let row = DataType::Struct(vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Utf8, true)].into());
    let map = DataType::Map(
        Arc::new(Field::new(
            "entries",
            DataType::Struct(
                vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::new_list(DataType::Int32, true), true)].into(),
            ),
            false,
        )),
        false,
    );
    let schema = schema(vec![Field::new("rows", DataType::new_list(row, true), true), Field::new("m", map, true)]);
    let records: [&[u8]; 4] = [
        br#"{"rows":[{"a":1,"b":"x"},null,{"b":"y","zzz":{}}],"m":{"k":[1,2],"l":null}}"#,
        br#"{"rows":[{"a":"x"}]}"#,
        br#"{"rows":[],"m":{}}"#,
        br#"{"rows":{},"m":[]}"#,
    ];
    let (rows, bad) = decode_with(&schema, &[], &records);
    assert_eq!(bad, [(1, "column 'rows.item.a': \"x\" is no BIGINT".to_string()), (3, "column 'rows': {} is no ARRAY<ROW>".to_string())]);
    let list = rows.column(0).as_list::<i32>();
    assert_eq!(list.value_offsets(), [0, 3, 3]);
    let items = list.values().as_struct();
    assert!(items.is_null(1));
    assert_eq!(items.column(0).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(1), None, None]);
    assert_eq!(rows.column(1).as_map().value_offsets(), [0, 2, 2]);
}

#[test]
fn a_missing_field_is_null_unless_the_table_forbids_it() {
    let schema = schema(vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Int64, false)]);
    let records: [&[u8]; 4] = [br#"{"b":1}"#, br#"{"a":1}"#, br#"{"a":1,"b":null}"#, br#"{}"#];
    let (rows, bad) = decode_with(&schema, &[], &records);
    assert_eq!(rows.num_rows(), 1);
    assert!(rows.column(0).is_null(0));
    assert_eq!(bad.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(bad[0].1, "column 'b': the field is missing and the column is NOT NULL");
    let (rows, bad) = decode_with(&schema, &[("json.fail-on-missing-field", "true")], &records);
    assert_eq!((rows.num_rows(), bad.len()), (0, 4));
    assert_eq!(bad[0].1, "column 'a': the field is missing");
}

#[test]
fn ignored_parse_errors_become_null_in_their_field_only() {
    let schema = schema(vec![Field::new("a", DataType::Int64, true), Field::new("l", DataType::new_list(DataType::Int64, true), true)]);
    let records: [&[u8]; 3] = [br#"{"a":{"x":[1]},"l":[1,"two",3]}"#, br#"{"a":1,"l":{}}"#, br#"{"a":1,"#];
    let (rows, bad) = decode_with(&schema, &[("json.ignore-parse-errors", "true")], &records);
    assert_eq!(rows.column(0).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [None, Some(1)]);
    let list = rows.column(1).as_list::<i32>();
    assert_eq!(list.value(0).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(1), None, Some(3)]);
    assert!(list.is_null(1));
    assert_eq!(bad.len(), 1);
}

#[test]
fn the_last_of_duplicate_keys_counts() {
    let schema = schema(vec![
        Field::new("a", DataType::Utf8, true),
        Field::new("s", DataType::Struct(vec![Field::new("x", DataType::Int64, true)].into()), true),
    ]);
    let records: [&[u8]; 2] = [br#"{"a":"first","s":{"x":1,"x":2},"a":"second","s":{"x":3}}"#, br#"{"a":"third","\u0061":"fourth"}"#];
    let (rows, bad) = decode_with(&schema, &[], &records);
    assert!(bad.is_empty());
    assert_eq!(rows.column(0).as_string::<i32>().iter().collect::<Vec<_>>(), [Some("second"), Some("fourth")]);
    assert_eq!(rows.column(1).as_struct().column(0).as_primitive::<Int64Type>().value(0), 3);
}

#[test]
fn the_last_of_duplicate_keys_counts_in_a_map_of_whatever_type() {
    let map = |value: DataType| {
        let entries = vec![Field::new("key", DataType::Utf8, false), Field::new("value", value, true)];
        DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries.into()), false)), false)
    };
    let row = vec![Field::new("x", DataType::Boolean, true), Field::new("l", DataType::new_list(DataType::Utf8, true), true)];
    for (value, [a, b, c]) in [
        (DataType::Int64, ["1", "null", "3"]),
        (DataType::Boolean, ["true", "false", "null"]),
        (DataType::Utf8, [r#""long""#, "null", r#""""#]),
        (DataType::new_list(DataType::Utf8, true), [r#"["x",null,"yy"]"#, "[]", "null"]),
        (DataType::Struct(row.into()), [r#"{"x":true,"l":["x","y"]}"#, "null", r#"{"l":["z"]}"#]),
        (map(DataType::Int32), [r#"{"x":1,"x":2,"y":3}"#, "{}", r#"{"z":null}"#]),
    ] {
        let schema = schema(vec![Field::new("m", map(value), true)]);
        let around = format!(r#"{{"m":{{"z":{b},"y":{c}}}}}"#);
        let read = |record: String| decode_with(&schema, &[], &[around.as_bytes(), record.as_bytes(), around.as_bytes()]);
        let found = read(format!(r#"{{"m":{{"k":{a},"l":{b},"k":{c},"\u006c":{a}}}}}"#));
        assert_eq!(found, read(format!(r#"{{"m":{{"k":{c},"l":{a}}}}}"#)));
        assert_eq!((found.0.num_rows(), found.1.len()), (3, 0));
        let many = |from: usize| {
            let entries: Vec<String> = (from..40).map(|entry| format!(r#""k{}":{}"#, entry % 39, [a, b, c][entry % 3])).collect();
            read(format!(r#"{{"m":{{{}}}}}"#, entries.join(",")))
        };
        assert_eq!(many(0), many(1), "the key of the first entry is that of the last");
        assert_eq!(many(0).0.column(0).as_map().value_length(1), 39);
    }
}

#[test]
fn bytes_of_one_record_never_complete_another() {
    let schema = schema(vec![Field::new("a", DataType::Int64, true), Field::new("s", DataType::Utf8, true)]);
    let records: [&[u8]; 12] = [
        br#"{"a":1,"s":""#,
        br#""}"#,
        br#"{"a":1}{"a":2}"#,
        br#"{"a":3,"s":"good"}"#,
        b"",
        b"  ",
        b"7",
        b"[{\"a\":1}]",
        b"null",
        br#"{"a":1},"#,
        b"{\"a\":1,\"s\":\"\xff\"}",
        b" {\"a\" : 4 , \"s\":\n\"too\"} ",
    ];
    let (rows, bad) = decode_with(&schema, &[], &records);
    assert_eq!(rows.column(0).as_primitive::<Int64Type>().values(), &[3, 4]);
    assert_eq!(rows.column(1).as_string::<i32>().iter().collect::<Vec<_>>(), [Some("good"), Some("too")]);
    assert_eq!(bad.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]);
}

#[test]
fn what_is_valid_does_not_depend_on_the_columns_read() {
    let wide = schema(vec![Field::new("a", DataType::Int64, true), Field::new("s", DataType::Utf8, true)]);
    let narrow = schema(vec![Field::new("a", DataType::Int64, true)]);
    for record in
        [&b"{\"a\":1,\"s\":\"\xff\"}"[..], br#"{"a":1,"s":"\x"}"#, br#"{"a":1,"s":01}"#, br#"{"a":1,"s":tru}"#, br#"{"a":1,"s":{"k" 1}}"#]
    {
        for schema in [&wide, &narrow] {
            assert_eq!(decode_with(schema, &[], &[record]).1.len(), 1, "{}", String::from_utf8_lossy(record));
        }
    }
}

#[test]
fn a_query_that_reads_no_column_still_counts_the_good_records() {
    let (rows, bad) = decode_with(&schema(vec![]), &[], &[br#"{"a":1}"#, b"{", br#"{}"#]);
    assert_eq!((rows.num_rows(), bad.len()), (2, 1));
}

#[test]
fn an_absent_key_is_a_row_of_nulls_and_an_absent_value_is_bad() {
    let schema = schema(vec![Field::new("k_id", DataType::Int64, true)]);
    let mut table = table(&schema, &[("key.format", "json"), ("key.fields", "k_id"), ("key.fields-prefix", "k_")]);
    let mut keys = decoder(&table, FormatScope::Key, &schema).unwrap();
    let decoded = keys.decode(&[None, Some(br#"{"id":7}"#)]);
    assert_eq!(decoded.rows.column(0).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [None, Some(7)]);
    table.options.remove("key.format");
    assert!(decoder(&table, FormatScope::Key, &schema).is_err());
    let mut values = decoder(&table, FormatScope::Value, &schema).unwrap();
    assert_eq!(values.decode(&[None]).bad, [(0, "the record has no value".to_string())]);
}

/// Time per byte of a batch, the best of several tries.
fn best_nanos(decoder: &mut dyn RecordDecoder, records: &[Vec<u8>]) -> u128 {
    let payloads: Vec<_> = records.iter().map(|record| Some(record.as_slice())).collect();
    let timed = |decoder: &mut dyn RecordDecoder| {
        let start = std::time::Instant::now();
        std::hint::black_box(decoder.decode(&payloads));
        start.elapsed().as_nanos()
    };
    (0..7).map(|_| timed(decoder)).min().unwrap()
}

#[test]
fn adversarial_records_cost_a_bounded_factor() {
    let fields = vec![
        Field::new("a", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
        Field::new("l", DataType::new_list(DataType::Int64, true), true),
    ];
    let schema = schema(fields);
    let good = br#"{"a":12345678,"s":"some text of a usual length, as it comes","l":[1,2,3,4,5,6,7,8]}"#.to_vec();
    let length = good.len();
    let cut = |text: String| text.into_bytes()[..length].to_vec();
    let adversaries: Vec<(&str, Vec<u8>)> = vec![
        ("cut off at the end", good[..length - 1].to_vec()),
        ("a misfit in the last field", br#"{"a":12345678,"s":"some text of a usual length, as it comes","l":[1,2,3,4,5,6,"x"]}"#.to_vec()),
        (
            "one key again and again",
            cut(r#"{"l":[],"l":[],"l":[],"l":[],"l":[],"l":[],"l":[],"l":[],"l":[],"l":[],"l":[],"l":[]      "#.repeat(2)),
        ),
        ("brackets", cut("[".repeat(length))),
        ("quotes", cut("\"".repeat(length))),
        ("escapes", cut(format!("{{\"s\":\"{}", "\\u0041".repeat(length)))),
        ("digits", cut(format!("{{\"a\":{}", "9".repeat(length)))),
        (
            "unknown keys",
            cut(r#"{"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"j":1,"k":1,"m":1,"n":1,"o":1,"p":1"#.to_string() + &" ".repeat(length)),
        ),
    ];
    let mut decoder = decoder(&table(&schema, &[]), FormatScope::Value, &schema).unwrap();
    let records = 2_000;
    let base = best_nanos(&mut *decoder, &vec![good.clone(); records]);
    for (name, adversary) in adversaries {
        for every in [1, 2, 7] {
            let mixed: Vec<Vec<u8>> = (0..records).map(|i| if i % every == 0 { adversary.clone() } else { good.clone() }).collect();
            let nanos = best_nanos(&mut *decoder, &mixed);
            assert!(nanos < 40 * base, "{name}, every {every}: {nanos} ns against {base} ns");
        }
    }
    // And the work grows with the bytes, not with their square: 64 times the bytes, at most some hundred times the time.
    for unit in ["[", "{\"a\":", "\"\\u0041\",", "{\"l\":[],", "9", "{\"s\":{\"a\":"] {
        let sized = |bytes: usize| vec![format!("{{\"s\":[{}", unit.repeat(bytes / unit.len())).into_bytes()];
        let (small, large) = (best_nanos(&mut *decoder, &sized(20_000)), best_nanos(&mut *decoder, &sized(1_280_000)));
        assert!(large < 400 * small.max(5_000), "{unit}: {small} ns and {large} ns");
    }
}

/// A random JSON value as text, and what arrow-json needs to agree on it.
fn any_record() -> impl Strategy<Value = String> {
    let number = prop_oneof!["-?[1-9][0-9]{0,17}", Just("0".to_string())];
    let quoted = r#""([a-z0-9 ,:{}é😀]|\\n|\\"|\\\\|\\u00e9){0,12}""#;
    let member = prop_oneof![
        (Just("i"), prop_oneof![number.clone(), Just("null".to_string())]),
        (Just("s"), prop_oneof![quoted.prop_map(String::from), Just("null".to_string())]),
        (Just("b"), prop_oneof![Just("true".to_string()), Just("false".to_string()), Just("null".to_string())]),
        (Just("f"), "-?[0-9]\\.[0-9]{1,8}(e-?[0-9])?"),
        (Just("skipped"), prop_oneof![number, quoted.prop_map(String::from), Just("[1,{\"i\":[]}]".to_string())]),
        (
            Just("t"),
            (2000..2030, 1..13, 1..29, 0..24, 0..60, 0..60, 0..1000)
                .prop_map(|(y, mo, d, h, mi, s, ms)| format!("\"{y}-{mo:02}-{d:02} {h:02}:{mi:02}:{s:02}.{ms:03}\""))
        ),
        (Just("l"), proptest::collection::vec("-?[1-9][0-9]{0,5}", 0..4).prop_map(|items| format!("[{}]", items.join(" , ")))),
        (Just("o"), "[1-9][0-9]{0,5}".prop_map(|x| format!("{{\"x\":{x},\"y\":\"z\"}}"))),
    ];
    let space = prop_oneof![Just(""), Just(" "), Just("\n")];
    (proptest::collection::vec((member, space), 0..10)).prop_map(|members| {
        // arrow-json keeps the first of duplicate keys; their order is tested elsewhere.
        let mut seen = std::collections::BTreeSet::new();
        let members: Vec<_> = members
            .into_iter()
            .filter(|((key, _), _)| seen.insert(*key))
            .map(|((key, value), space)| format!("\"{key}\"{space}:{space}{value}"))
            .collect();
        format!("{{{}}}", members.join(","))
    })
}

fn compared_schema() -> SchemaRef {
    schema(vec![
        Field::new("s", DataType::Utf8, true),
        Field::new("i", DataType::Int64, true),
        Field::new("b", DataType::Boolean, true),
        Field::new("f", DataType::Float64, true),
        Field::new("t", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new("l", DataType::new_list(DataType::Int32, true), true),
        Field::new("o", DataType::Struct(vec![Field::new("x", DataType::Int64, true), Field::new("y", DataType::Utf8, true)].into()), true),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn good_records_are_read_as_arrow_json_reads_them(records in proptest::collection::vec(any_record(), 1..8)) {
        let schema = compared_schema();
        let bytes: Vec<&[u8]> = records.iter().map(|record| record.as_bytes()).collect();
        let (rows, bad) = decode_with(&schema, &[], &bytes);
        prop_assert_eq!(&bad, &vec![]);
        let mut reference = arrow_json::ReaderBuilder::new(schema).with_batch_size(records.len()).build_decoder().unwrap();
        for record in &bytes {
            prop_assert_eq!(reference.decode(record).unwrap(), record.len());
        }
        prop_assert_eq!(rows, reference.flush().unwrap().unwrap());
    }

    /// Damaged records between good ones: the good ones come out as if they were alone.
    #[test]
    fn a_damaged_record_leaves_no_trace(records in proptest::collection::vec((any_record(), proptest::option::of((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()))), 1..8)) {
        let schema = compared_schema();
        let damaged: Vec<Vec<u8>> = records.iter().map(|(record, damage)| {
            let mut bytes = record.clone().into_bytes();
            if let Some((index, byte, cut)) = damage {
                let at = index.index(bytes.len());
                if *cut { bytes.truncate(at) } else { bytes[at] = *byte }
            }
            bytes
        }).collect();
        let together: Vec<&[u8]> = damaged.iter().map(Vec::as_slice).collect();
        let (rows, bad) = decode_with(&schema, &[], &together);
        let mut good = 0;
        for (index, record) in together.iter().enumerate() {
            let (alone, alone_bad) = decode_with(&schema, &[], &[record]);
            if alone_bad.is_empty() {
                prop_assert_eq!(rows.slice(good, 1), alone);
                good += 1;
            } else {
                prop_assert_eq!(bad.iter().find(|(at, _)| *at == index).map(|(_, reason)| reason), Some(&alone_bad[0].1));
            }
        }
        prop_assert_eq!(rows.num_rows(), good);
    }

    /// The keys of the records before must not change what a record means.
    #[test]
    fn a_decoder_reads_the_same_whatever_it_read_before(before in proptest::collection::vec(any_record(), 0..6), record in any_record()) {
        let schema = compared_schema();
        let mut used = decoder(&table(&schema, &[]), FormatScope::Value, &schema).unwrap();
        for earlier in &before {
            used.decode(&[Some(earlier.as_bytes())]);
        }
        prop_assert_eq!(used.decode(&[Some(record.as_bytes())]).rows, decode_with(&schema, &[], &[record.as_bytes()]).0);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(record in proptest::collection::vec(any::<u8>(), 0..60), text in r#"([{}\[\]",:a-z0-9\\]|"[siblfto]":|null|true){0,20}"#) {
        let schema = compared_schema();
        decode_with(&schema, &[("json.ignore-parse-errors", "true")], &[&record, text.as_bytes()]);
    }
}

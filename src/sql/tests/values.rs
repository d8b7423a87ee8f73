//! Planned expressions, evaluated over one row: functions, types and the binding of columns.

use super::{explained, planned};
use arrow_array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt64Array};
use arrow_cast::display::array_value_to_string;
use arrow_schema::Schema;
use std::sync::Arc;
use streamshield_engine::plan::{Expressions, Operator, Projection, StageInput, now_field, seed_field};

const TABLE: &str = "CREATE TABLE t (s STRING, n BIGINT, i INT, ts TIMESTAMP(3), l TIMESTAMP_LTZ(3), missing STRING)
  WITH ('connector' = 'kafka', 'topic' = 't');\n";

/// 2024-03-09 15:04:05.067
const TS: i64 = 1_709_996_645_067;
/// 2024-03-10 00:00:00
const NOW: i64 = 1_710_028_800_000;

fn column(name: &str) -> ArrayRef {
    match name {
        "s" => Arc::new(StringArray::from(vec!["a,b,,Straße"])),
        "n" => Arc::new(Int64Array::from(vec![-7])),
        "i" => Arc::new(Int32Array::from(vec![i32::MAX])),
        "ts" => Arc::new(TimestampMillisecondArray::from(vec![TS])),
        "l" => Arc::new(TimestampMillisecondArray::from(vec![TS]).with_timezone("UTC")),
        _ => Arc::new(StringArray::from(vec![None::<&str>])),
    }
}

fn evaluate(projection: &Projection, batch: &RecordBatch) -> RecordBatch {
    let Expressions { list, needs_now, needs_seed } = &projection.expressions;
    let (mut fields, mut columns) = (batch.schema().fields().to_vec(), batch.columns().to_vec());
    if *needs_now {
        fields.push(now_field());
        columns.push(Arc::new(TimestampMillisecondArray::from(vec![NOW]).with_timezone("UTC")));
    }
    if *needs_seed {
        fields.push(seed_field());
        columns.push(Arc::new(UInt64Array::from(vec![42])));
    }
    let input = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("columns of the schema");
    let values = list.iter().map(|expression| expression.evaluate(&input).and_then(|value| value.into_array(1)).expect("a value"));
    RecordBatch::try_new(Arc::clone(&projection.schema), values.collect()).expect("the projection's own schema")
}

/// The value of an expression over the row, as text, and its type.
fn value(expression: &str, data_type: &str) -> String {
    let sql = format!(
        "{TABLE}CREATE TABLE r (x {data_type}) WITH ('connector' = 'kafka', 'topic' = 'r');\nINSERT INTO r SELECT {expression} FROM t;"
    );
    let planned = planned(&sql);
    let stage = &planned.plan.stages[0];
    let StageInput::Source(source) = &stage.input else { panic!("a scan") };
    let columns = source.columns.iter().map(|wanted| column(wanted.field.name())).collect();
    let batch = RecordBatch::try_new(Arc::clone(&source.input_schema), columns).expect("the scan's columns");
    let mut batch = evaluate(&source.project, &batch);
    for operator in &stage.operators {
        let Operator::Project(projection) = operator else { panic!("a projection") };
        batch = evaluate(projection, &batch);
    }
    let array = batch.column(0);
    if array.is_null(0) { "NULL".into() } else { array_value_to_string(array, 0).expect("a text") }
}

fn check(data_type: &str, cases: &[(&str, &str)]) {
    let wrong: Vec<String> = cases
        .iter()
        .map(|(expression, expected)| (expression, expected, value(expression, data_type)))
        .filter(|(_, expected, found)| found != *expected)
        .map(|(expression, expected, found)| format!("{expression} is {found}, not {expected}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn texts() {
    check(
        "STRING",
        &[
            ("SPLIT_INDEX(s, ',', 1)", "b"),
            ("SPLIT_INDEX(s, ',', 2)", ""),
            ("SPLIT_INDEX(s, ',', 9)", "NULL"),
            ("SPLIT_INDEX(s, ',b', 1)", ",,Straße"),
            ("SPLIT_INDEX(s, 44, 0)", "a"),
            ("REGEXP_EXTRACT(s, '([a-z]),(.)', 2)", "b"),
            ("REGEXP_EXTRACT(s, 'x')", "NULL"),
            ("REGEXP_REPLACE(s, '[ab]', '-')", "-,-,,Str-ße"),
            ("REGEXP_REPLACE(s, '(a)', '$1$US')", "$1$US,b,,Str$1$USße"),
            ("REGEXP_REPLACE(s, missing, '-')", "NULL"),
            ("CONCAT('x', s)", "xa,b,,Straße"),
            ("CONCAT('x', missing)", "NULL"),
            ("CONCAT_WS('-', 'a', missing, 'b')", "a-b"),
            ("s || '!'", "a,b,,Straße!"),
            ("UPPER(SUBSTRING(s FROM 6 FOR 3))", "STR"),
            ("SUBSTRING('abc', 0, 2)", "ab"),
            ("SUBSTRING(s FROM -3 FOR 2)", "aß"),
            ("SUBSTR('abc', -2)", "bc"),
            ("SUBSTR('abc', -4, 2)", ""),
            ("SUBSTRING('abc', 4)", ""),
            ("SUBSTRING('abc', 1, -1)", "NULL"),
            ("SUBSTRING(missing, 1, 2)", "NULL"),
            ("LEFT(s, 3)", "a,b"),
            ("LEFT(s, -1)", ""),
            ("RIGHT(s, 2)", "ße"),
            ("RIGHT(s, 99)", "a,b,,Straße"),
            ("RIGHT(s, -1)", ""),
            ("RIGHT(missing, 1)", "NULL"),
            ("LPAD('7', 3, '0')", "007"),
            ("REPLACE(s, ',', '')", "abStraße"),
            ("TRIM('  x ')", "x"),
            ("IF(n < 0, 'minus', 'plus')", "minus"),
            ("IFNULL(missing, 'none')", "none"),
            ("COALESCE(missing, s, 'none')", "a,b,,Straße"),
            ("NULLIF('a', 'a')", "NULL"),
            ("CASE WHEN n > 0 THEN 'a' ELSE 'b' END", "b"),
            ("MD5('abc')", "900150983cd24fb0d6963f7d28e17f72"),
            ("SHA256('abc')", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            ("JSON_VALUE('{\"a\": {\"b\": [1, \"x\"]}}', '$.a.b[1]')", "x"),
            ("JSON_VALUE('{\"a\": {}}', '$.a')", "NULL"),
            ("JSON_VALUE('no json', '$.a')", "NULL"),
            ("REPEAT('ab', 2)", "abab"),
            ("CAST(n AS STRING)", "-7"),
            ("CAST(n < 0 AS STRING)", "TRUE"),
            ("CAST(missing IS NOT NULL AS STRING)", "FALSE"),
            ("CAST(CAST(n AS DOUBLE) AS STRING)", "-7.0"),
            ("CAST(CAST(10000000 AS FLOAT) AS STRING)", "1.0E7"),
            ("CAST(n AS VARCHAR)", "-7"),
            ("CAST(n AS VARCHAR(2147483647))", "-7"),
        ],
    );
}

#[test]
fn encodings() {
    check(
        "STRING",
        &[
            ("TO_BASE64('a')", "YQ=="),
            ("FROM_BASE64('YQ==')", "a"),
            ("FROM_BASE64('YQ')", "a"),
            ("FROM_BASE64(TO_BASE64(s))", "a,b,,Straße"),
            ("FROM_BASE64(missing)", "NULL"),
            ("SHA1('abc')", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("SHA1('')", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            ("SHA1('abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq')", "84983e441c3bd26ebaae4aa1f95129e5e54670f1"),
            ("SHA1(REPEAT('x', 64))", "bb2fa3ee7afb9f54c6dfb5d021f14b1ffe40c163"),
            ("SHA1(missing)", "NULL"),
            ("SHA2('abc', 256)", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            ("SHA2('abc', CHAR_LENGTH(s) + 213)", "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"),
            ("SHA2('abc', CHAR_LENGTH(s))", "NULL"),
            ("SHA2(missing, 256)", "NULL"),
            ("HEX(20)", "14"),
            ("HEX(n)", "FFFFFFFFFFFFFFF9"),
            ("HEX('hello,world')", "68656C6C6F2C776F726C64"),
            ("HEX(missing)", "NULL"),
            ("BIN(12)", "1100"),
            ("BIN(i)", "1111111111111111111111111111111"),
        ],
    );
    check("BYTES", &[("UNHEX('466c696E6B')", "466c696e6b"), ("UNHEX('F61')", "0061"), ("UNHEX('z0')", "NULL"), ("UNHEX(missing)", "NULL")]);
}

#[test]
fn parts_of_texts() {
    let url = "http://me@flink.apache.org:80/path/p.php?k1=v1&k2=v2#Ref1";
    let part = |arguments: &str| value(&format!("PARSE_URL({arguments})"), "STRING");
    for (wanted, expected) in [
        ("'PROTOCOL'", "http"),
        ("'AUTHORITY'", "me@flink.apache.org:80"),
        ("'USERINFO'", "me"),
        ("'HOST'", "flink.apache.org"),
        ("'FILE'", "/path/p.php?k1=v1&k2=v2"),
        ("'PATH'", "/path/p.php"),
        ("'QUERY'", "k1=v1&k2=v2"),
        ("'QUERY', 'k2'", "v2"),
        ("'QUERY', 'k'", "NULL"),
        ("'REF'", "Ref1"),
        ("'HOST', 'k1'", "NULL"),
        ("'host'", "NULL"),
        ("missing", "NULL"),
    ] {
        assert_eq!(part(&format!("'{url}', {wanted}")), expected, "{wanted}");
    }
    for text in ["'no url'", "'gopher://host/'", "'http://host:port/'", "missing"] {
        assert_eq!(part(&format!("{text}, 'HOST'")), "NULL", "{text}");
    }
    assert_eq!(part("'http://[::1]:8080', 'HOST'"), "[::1]");
    assert_eq!(part("'http://host?a=b', 'PATH'"), "");
    check(
        "INT",
        &[
            ("LOCATE('b', s, 2)", "3"),
            ("LOCATE('a', s, 2)", "9"),
            ("LOCATE('e', s, 1)", "11"),
            ("LOCATE('b', s, 4)", "0"),
            ("LOCATE('b', s, -4)", "3"),
            ("LOCATE('b', s, 99)", "0"),
            ("LOCATE('', s, 5)", "1"),
            ("LOCATE('b', missing, 1)", "NULL"),
        ],
    );
    check(
        "BOOLEAN",
        &[
            ("IS_ALPHA('Straße')", "true"),
            ("IS_ALPHA(s)", "false"),
            ("IS_ALPHA('')", "false"),
            ("IS_ALPHA(missing)", "false"),
            ("IS_ALPHA(n)", "false"),
            ("IS_DIGIT('0123')", "true"),
            ("IS_DIGIT('1.5')", "false"),
            ("IS_DIGIT(n)", "true"),
            ("IS_DIGIT(missing)", "false"),
        ],
    );
    check(
        "MAP<STRING, STRING>",
        &[
            ("STR_TO_MAP('k1=v1,k2=v2')", "{k1: v1, k2: v2}"),
            ("STR_TO_MAP('k1:v1;k2: v2;', ';', ':')", "{k1: v1, k2:  v2}"),
            ("STR_TO_MAP('b=1|a=2=3|b=4', '[|]', '=')", "{a: 2=3, b: 4}"),
            ("STR_TO_MAP('k')", "{k: }"),
            ("STR_TO_MAP('')", "{}"),
            ("STR_TO_MAP(missing)", "NULL"),
        ],
    );
}

#[test]
fn the_greatest_and_the_least_are_null_if_a_value_is() {
    check(
        "BIGINT",
        &[
            ("GREATEST(n, 3)", "3"),
            ("LEAST(n, i, 3)", "-7"),
            ("GREATEST(n, CAST(missing AS BIGINT))", "NULL"),
            ("LEAST(3, n, CAST(missing AS BIGINT))", "NULL"),
            ("GREATEST(n, LEAST(n, 1))", "-7"),
        ],
    );
    check("STRING", &[("GREATEST('a', 'c', 'b')", "c"), ("LEAST('b', s)", "a,b,,Straße"), ("GREATEST(s, missing)", "NULL")]);
}

#[test]
fn numbers_have_flinks_types() {
    check("INT", &[("1 + 1", "2"), ("MOD(7, 4)", "3"), ("CHAR_LENGTH(s)", "11"), ("i + 1", "-2147483648"), ("LOCATE('b', s)", "3")]);
    check("BIGINT", &[("n * 2", "-14"), ("MOD(n, 4)", "-3"), ("3000000000 + 1", "3000000001"), ("ABS(n)", "7"), ("i + n", "2147483640")]);
    check("DECIMAL(10, 3)", &[("0.908 * n", "-6.356"), ("n", "-7.000")]);
    check("DECIMAL(13, 12)", &[("2.0 / 3", "0.666666666667")]);
    check("DECIMAL(10, 6)", &[("n * 1.0 / 3", "-2.333333"), ("1.0 / n", "-0.142857"), ("1.0 / CAST(missing AS INT)", "NULL")]);
    check("BOOLEAN", &[("LOG(1000) > 6.9", "true"), ("LOG(10, 1000) < 3.1", "true")]);
    check("DOUBLE", &[("POWER(2, 3)", "8.0"), ("SQRT(CAST(16 AS DOUBLE))", "4.0"), ("1.5", "1.5")]);
    check(
        "BOOLEAN",
        &[
            ("REGEXP(s, 'Str')", "true"),
            ("n BETWEEN -8 AND 0", "true"),
            ("s LIKE '%b%'", "true"),
            // Without ESCAPE a backslash is a character like any other.
            (r"'a\b' LIKE 'a\b'", "true"),
            (r"'a\b' LIKE '%\%'", "true"),
            (r"'a%' LIKE 'a\%'", "false"),
            (r"'a%' LIKE 'a\%' ESCAPE '\'", "true"),
            (r"s LIKE CONCAT(s, '\')", "false"),
            (r"CONCAT(s, '\') LIKE CONCAT(s, '\')", "true"),
            ("missing IS NULL", "true"),
            ("i IN (1, 2)", "false"),
        ],
    );
}

#[test]
fn decimals_give_up_digits_behind_the_point_and_are_null_beyond_38() {
    check(
        "STRING",
        &[
            ("CAST(n * CAST('1.50' AS DECIMAL(18, 2)) AS STRING)", "-10.50"),
            ("CAST(n * CAST('1.50' AS DECIMAL(38, 2)) AS STRING)", "-10.50"),
            ("CAST(CAST(n AS DECIMAL(38, 20)) * CAST('0.25' AS DECIMAL(38, 20)) AS STRING)", "-1.750000"),
            ("CAST(CAST('0.001' AS DECIMAL(38, 20)) * CAST('0.0005' AS DECIMAL(38, 20)) AS STRING)", "0.000001"),
            ("CAST(CAST('100000000000000000' AS DECIMAL(38, 20)) * CAST('100000000000000000' AS DECIMAL(38, 20)) AS STRING)", "NULL"),
            ("CAST(CAST(n AS DECIMAL(38, 2)) + CAST('0.005' AS DECIMAL(38, 3)) AS STRING)", "-6.995"),
            ("CAST(CAST(n AS DECIMAL(38, 0)) - CAST('0.0000005' AS DECIMAL(38, 38)) AS STRING)", "-7.000001"),
            ("CAST(CAST(missing AS DECIMAL(38, 2)) - CAST('0.005' AS DECIMAL(38, 3)) AS STRING)", "NULL"),
            ("CAST(MOD(n, CAST('2.5' AS DECIMAL(38, 1))) AS STRING)", "-2.0"),
        ],
    );
}

#[test]
fn a_double_is_rounded_by_its_digits() {
    check(
        "DOUBLE",
        &[
            ("ROUND(CAST('1.005' AS DOUBLE), 2)", "1.01"),
            ("ROUND(CAST(n AS DOUBLE) / 8, 2)", "-0.88"),
            ("ROUND(CAST(n AS DOUBLE) / 2)", "-4.0"),
            ("ROUND(CAST(missing AS DOUBLE), 2)", "NULL"),
            ("TRUNCATE(CAST('4.35' AS DOUBLE), 2)", "4.35"),
            ("TRUNCATE(CAST(n AS DOUBLE) / 8, 2)", "-0.87"),
        ],
    );
    check("FLOAT", &[("ROUND(CAST(n AS FLOAT) / CAST(8 AS FLOAT), 2)", "-0.88")]);
    check(
        "DECIMAL(10, 2)",
        &[
            ("CAST('1.005' AS DOUBLE)", "1.01"),
            ("CAST(n AS DOUBLE) / 8", "-0.88"),
            ("CAST(CAST('1.005' AS DOUBLE) AS DECIMAL(10, 2))", "1.01"),
            ("CAST(CAST(i AS DOUBLE) AS DECIMAL(5, 2))", "NULL"),
            ("TRY_CAST(CAST(i AS DOUBLE) AS DECIMAL(5, 2))", "NULL"),
        ],
    );
}

#[test]
fn a_text_that_is_cast_to_a_whole_number_may_have_a_fraction() {
    check(
        "INT",
        &[
            ("CAST('1.5' AS INT)", "1"),
            ("CAST(' -1.9 ' AS INT)", "-1"),
            ("TRY_CAST('+2.' AS INT)", "2"),
            ("TRY_CAST('-.5' AS INT)", "0"),
            ("TRY_CAST('1.5e3' AS INT)", "NULL"),
            ("TRY_CAST('1.5.' AS INT)", "NULL"),
            ("TRY_CAST('9999999999.0' AS INT)", "NULL"),
            ("TRY_CAST(s AS INT)", "NULL"),
            ("CAST(missing AS INT)", "NULL"),
        ],
    );
    check("BIGINT", &[("CAST(CAST(CAST(n AS DOUBLE) / 2 AS STRING) AS BIGINT)", "-3")]);
}

#[test]
fn a_decimal_that_is_cast_is_compared_by_what_the_cast_gives() {
    check(
        "BOOLEAN",
        &[
            // -3.5 towards zero.
            ("CAST(n * 0.5 AS INT) = -3", "true"),
            ("CAST(n * 0.5 AS INT) < -3", "false"),
            ("-3 <> CAST(n * 0.5 AS BIGINT)", "false"),
            ("CAST(n * 0.5 AS BIGINT) IN (-3, 8)", "true"),
            ("CAST(n * 0.5 AS BIGINT) IN (-3, 1, 2, 4, 8)", "true"),
            ("TRY_CAST(n * 0.5 AS INT) BETWEEN -3 AND 0", "true"),
            // -1.75 rounded.
            ("CAST(n * 0.25 AS DECIMAL(10, 1)) = -1.8", "true"),
            ("CAST(n * 0.25 AS DECIMAL(10, 1)) > -1.8", "false"),
            // More digits than the type has.
            ("TRY_CAST(n * 1000.0 AS DECIMAL(3, 1)) < 0.0", "NULL"),
            ("TRY_CAST(i AS DECIMAL(5, 0)) <> 1", "NULL"),
            ("TRY_CAST(i * 2.0 AS INT) > 0", "NULL"),
        ],
    );
    check("BIGINT", &[("CAST(n * 0.5 AS BIGINT)", "-3"), ("CAST(n * 1.5 AS BIGINT) + 1", "-9")]);
    check("DECIMAL(10, 1)", &[("CAST(n * 0.25 AS DECIMAL(10, 1))", "-1.8"), ("CAST(n AS DECIMAL(10, 1))", "-7.0")]);
}

#[test]
fn what_is_too_long_for_a_decimal_is_null() {
    // By a CAST, and by INSERT INTO.
    check(
        "DECIMAL(5, 2)",
        &[
            ("CAST(i AS DECIMAL(5, 2))", "NULL"),
            ("CAST(123456 AS DECIMAL(5, 2))", "NULL"),
            ("CAST(n * 1000.0 AS DECIMAL(5, 2))", "NULL"),
            ("i", "NULL"),
            ("n * 1000.0", "NULL"),
            // Rounded, -100.0 has a digit too many.
            ("CAST(n * 14.28 AS DECIMAL(3, 1))", "NULL"),
            ("CAST(n * 14.27 AS DECIMAL(3, 1))", "-99.90"),
            ("n", "-7.00"),
        ],
    );
    check("BOOLEAN", &[("CAST(i AS DECIMAL(5, 0)) < 0", "NULL"), ("CAST(i AS DECIMAL(5, 0)) IS NULL", "true")]);
}

/// `ts` ends in 05.067.
#[test]
fn a_time_is_compared_with_all_digits_of_a_constant() {
    let time = |digits: &str| format!("TIMESTAMP '2024-03-09 15:04:05.{digits}'");
    let (before, whole, behind) = (time("066999"), time("067"), time("067001"));
    for (expression, expected) in [
        (format!("ts = {behind}"), "false"),
        (format!("ts <> {behind}"), "true"),
        (format!("ts < {behind}"), "true"),
        (format!("ts >= {behind}"), "false"),
        (format!("{behind} > ts"), "true"),
        (format!("ts > {before}"), "true"),
        (format!("ts <= {before}"), "false"),
        (format!("ts = {whole}"), "true"),
        (format!("ts BETWEEN {behind} AND {}", time("068")), "false"),
        (format!("ts NOT BETWEEN {behind} AND {}", time("068")), "true"),
        (format!("ts BETWEEN {before} AND {behind}"), "true"),
        (format!("ts IN ({behind}, {before})"), "false"),
        (format!("ts NOT IN ({behind}, {before})"), "true"),
        (format!("ts IN ({whole}, {behind})"), "true"),
        (format!("ts IN ({behind}, {before}, {}, {}, {})", time("067002"), time("067003"), time("1")), "false"),
        (format!("CAST(ts AS TIMESTAMP(6)) = {behind}"), "false"),
        (format!("TRY_CAST(ts AS TIMESTAMP(6)) = {behind}"), "false"),
        ("ts < CAST('2024-03-09 15:04:05.067000001' AS TIMESTAMP(9))".into(), "true"),
        (format!("CAST(missing AS TIMESTAMP(3)) = {behind}"), "NULL"),
        (format!("NULLIF(ts, {behind}) IS NULL"), "false"),
    ] {
        assert_eq!(value(&expression, "BOOLEAN"), expected, "{expression}");
    }
    let plan = |select: String| {
        explained(&format!("{TABLE}CREATE TABLE r (x BOOLEAN) WITH ('connector' = 'kafka', 'topic' = 'r');\nINSERT INTO r {select};"))
    };
    // A constant that has no more digits than the column is the column's own.
    let text = plan(format!("SELECT ts < {} FROM t", time("067000")));
    assert!(!text.to_lowercase().contains("cast("), "{text}");
    // The filter meets the cast once it has been pushed down.
    let text = plan(format!("SELECT n > 0 FROM (SELECT n, CAST(ts AS TIMESTAMP(6)) AS u FROM t) AS a WHERE u = {behind}"));
    assert!(text.contains("__cast(ts"), "{text}");
}

/// What is computed with a CASE goes by the common type of its results, whichever comes first.
#[test]
fn a_case_has_the_common_type_of_its_results() {
    check("DECIMAL(14, 13)", &[("IF(n > 0, 0, CAST(2 AS DECIMAL(10, 2))) / 3", "0.6666666666667")]);
    check(
        "DOUBLE",
        &[
            ("CASE WHEN n > 0 THEN 0.0 ELSE CAST(n AS DOUBLE) END / 2", "-3.5"),
            ("IF(n > 0, 0.0, POWER(CAST(10 AS DOUBLE), 20))", "1e20"),
            ("IF(n > 0, CASE WHEN i > 0 THEN 1 ELSE 0.5 END, CAST(n AS DOUBLE)) / 2", "-3.5"),
            ("COALESCE(POWER(CAST(10 AS DOUBLE), 20), 0.0)", "1e20"),
            ("NULLIF(POWER(CAST(10 AS DOUBLE), 20), 0.0)", "1e20"),
            ("CASE POWER(CAST(10 AS DOUBLE), 20) WHEN 0.5 THEN 0.0 ELSE CAST(n AS DOUBLE) END", "-7.0"),
            ("CASE WHEN POWER(CAST(10 AS DOUBLE), 20) > 0.5 THEN CAST(n AS DOUBLE) ELSE 0.0 END", "-7.0"),
            ("CASE WHEN POWER(CAST(10 AS DOUBLE), 20) BETWEEN 0.5 AND 1.5 THEN 0.0 ELSE CAST(n AS DOUBLE) END", "-7.0"),
            ("CASE WHEN POWER(CAST(10 AS DOUBLE), 20) IN (0.5, 1.5) THEN 0.0 ELSE CAST(n AS DOUBLE) END", "-7.0"),
        ],
    );
    check(
        "STRING",
        &[
            ("CAST(IF(n > 0, 0, CAST(10000000 AS DOUBLE)) AS STRING)", "1.0E7"),
            ("CAST(IF(n > 0, 0.0, CAST(10000000 AS DOUBLE)) AS STRING)", "1.0E7"),
        ],
    );
}

#[test]
fn times() {
    check(
        "STRING",
        &[
            ("DATE_FORMAT(ts, 'yyyy-MM-dd HH:mm')", "2024-03-09 15:04"),
            ("DATE_FORMAT(l, 'yyyyMMdd')", "20240309"),
            ("DATE_FORMAT(TO_TIMESTAMP('9999-12-31 23:59:59'), 'yyyy-MM-dd HH:mm')", "9999-12-31 23:59"),
            ("DATE_FORMAT('1500-01-02 03:04:05.123456', 'yyyy-MM-dd SSSSSS')", "1500-01-02 123456"),
            ("CAST(TO_TIMESTAMP('1500-01-02 03:04:05') AS STRING)", "1500-01-02 03:04:05.000"),
            ("CAST(ts AS STRING)", "2024-03-09 15:04:05.067"),
            ("FROM_UNIXTIME(0)", "1970-01-01 00:00:00"),
            ("CAST(TO_TIMESTAMP('2024-01-02 03:04:05') AS STRING)", "2024-01-02 03:04:05.000"),
            ("CAST(TO_TIMESTAMP('02.01.2024', 'dd.MM.yyyy') AS STRING)", "2024-01-02 00:00:00.000"),
            ("CAST(TO_TIMESTAMP('no time') AS STRING)", "NULL"),
            ("CAST(TO_TIMESTAMP_LTZ(1709996645, 0) AS STRING)", "2024-03-09 15:04:05.000"),
            ("CAST(FLOOR(ts TO HOUR) AS STRING)", "2024-03-09 15:00:00.000"),
            ("CAST(CEIL(ts TO DAY) AS STRING)", "2024-03-10 00:00:00.000"),
            ("CAST(FLOOR(ts TO MONTH) AS STRING)", "2024-03-01 00:00:00.000"),
            ("CAST(TIMESTAMPADD(MONTH, 1, ts) AS STRING)", "2024-04-09 15:04:05.067"),
            ("CAST(TIMESTAMPADD(SECOND, 1, TIMESTAMP '2024-01-02 03:04:05.123456') AS STRING)", "2024-01-02 03:04:06.123456"),
            ("CAST(TIMESTAMPADD(MONTH, 1, TIMESTAMP '1969-11-30 23:59:59.123456') AS STRING)", "1969-12-30 23:59:59.123456"),
            ("CAST(CAST(TIMESTAMP '1969-12-31 23:59:59.123456' AS TIMESTAMP(3)) AS STRING)", "1969-12-31 23:59:59.123"),
            ("CAST(TO_TIMESTAMP(TIMESTAMP '1969-12-31 23:59:59.123456') AS STRING)", "1969-12-31 23:59:59.123"),
            ("CAST(ts + INTERVAL '1' DAY AS STRING)", "2024-03-10 15:04:05.067"),
            ("CAST(TIMESTAMP '2024-01-02 03:04:05' AS STRING)", "2024-01-02 03:04:05.000000"),
            ("CAST(TO_DATE('2024-01-02') AS STRING)", "2024-01-02"),
            ("CONVERT_TZ('1970-01-01 00:00:00', 'UTC', 'America/Los_Angeles')", "1969-12-31 16:00:00"),
            ("CONVERT_TZ('1970-01-01 00:00:00', 'GMT-08:00', 'Asia/Tokyo')", "1970-01-01 17:00:00"),
            // Hours that the clock skips and repeats.
            ("CONVERT_TZ('2024-03-10 02:30:00', 'America/Los_Angeles', 'UTC')", "2024-03-10 10:30:00"),
            ("CONVERT_TZ('2024-11-03 01:30:00', 'America/Los_Angeles', 'UTC')", "2024-11-03 09:30:00"),
            ("CONVERT_TZ(s, 'UTC', 'Asia/Tokyo')", "NULL"),
            ("CONVERT_TZ(missing, 'UTC', 'Asia/Tokyo')", "NULL"),
            // The parts of a time are BIGINT.
            ("CAST(DAYOFYEAR(ts) * 86400000 AS STRING)", "5961600000"),
            ("CAST(EXTRACT(EPOCH FROM ts) AS STRING)", "1709996645"),
        ],
    );
    check(
        "BIGINT",
        &[
            ("UNIX_TIMESTAMP('1970-01-01 00:01:00')", "60"),
            ("TIMESTAMPDIFF(MINUTE, TIMESTAMP '2024-03-09 15:00:00', ts)", "4"),
            ("EXTRACT(HOUR FROM ts)", "15"),
            ("HOUR(ts)", "15"),
            ("YEAR(l)", "2024"),
            ("DAYOFWEEK(ts)", "7"),
            ("EXTRACT(DOW FROM ts)", "7"),
            ("EXTRACT(SECOND FROM ts)", "5"),
            ("EXTRACT(MILLISECOND FROM ts)", "67"),
            ("EXTRACT(MICROSECOND FROM TIMESTAMP '2024-01-02 03:04:05.123456')", "123456"),
            ("EXTRACT(EPOCH FROM TIMESTAMP '1969-12-31 23:59:58.500')", "-1"),
        ],
    );
    // Cast to the column's digits.
    check("TIMESTAMP(3)", &[("TIMESTAMP '1969-12-31 23:59:59.123456'", "1969-12-31T23:59:59.123")]);
}

#[test]
fn times_in_other_values_lose_digits_downwards() {
    let (time, rounded) = ("TIMESTAMP '1969-12-31 23:59:59.123456'", "1969-12-31T23:59:59.123");
    let list = format!("ARRAY[{time}, CAST(missing AS TIMESTAMP)]");
    let cast = format!("CAST({list} AS ARRAY<TIMESTAMP(3)>)");
    assert_eq!(value(&list, "ARRAY<TIMESTAMP(3)>"), format!("[{rounded}, ]"));
    assert_eq!(value(&cast, "ARRAY<TIMESTAMP(3)>"), format!("[{rounded}, ]"));
    let row = format!("NAMED_STRUCT('n', n, 'at', {time})");
    assert_eq!(value(&row, "ROW<n BIGINT, `at` TIMESTAMP(3)>"), format!("{{n: -7, at: {rounded}}}"));
    assert_eq!(value(&format!("ARRAY[{row}]"), "ARRAY<ROW<n BIGINT, `at` TIMESTAMP(3)>>"), format!("[{{n: -7, at: {rounded}}}]"));
    let map = format!("MAP(ARRAY['a'], ARRAY[{time}])");
    assert_eq!(value(&map, "MAP<STRING, TIMESTAMP(3)>"), format!("{{a: {rounded}}}"));
}

#[test]
fn arrays() {
    check(
        "ARRAY<INT>",
        &[
            ("ARRAY_REMOVE(ARRAY[1, 2, 1], 1)", "[2]"),
            ("ARRAY_REMOVE(ARRAY[1, CAST(missing AS INT), 2], 2)", "[1, ]"),
            ("ARRAY_REMOVE(ARRAY[1, CAST(missing AS INT), 2], CAST(missing AS INT))", "[1, 2]"),
            ("ARRAY_REMOVE(ARRAY[i, CAST(missing AS INT), 2], NULL)", "[2147483647, 2]"),
        ],
    );
    check(
        "INT",
        &[
            ("ARRAY_POSITION(ARRAY[3, 4, 4], 4)", "2"),
            ("ARRAY_POSITION(ARRAY[3, 4], i)", "0"),
            ("ARRAY_POSITION(ARRAY[3, 4], CAST(missing AS INT))", "NULL"),
            ("CARDINALITY(ARRAY[3, 4])", "2"),
        ],
    );
}

#[test]
fn the_clock_is_the_epochs() {
    check(
        "TIMESTAMP_LTZ(3)",
        &[("CURRENT_TIMESTAMP", "2024-03-10T00:00:00Z"), ("NOW()", "2024-03-10T00:00:00Z"), ("PROCTIME()", "2024-03-10T00:00:00Z")],
    );
    check("DATE", &[("CURRENT_DATE", "2024-03-10")]);
    check("BIGINT", &[("UNIX_TIMESTAMP()", "1710028800"), ("TIMESTAMPDIFF(HOUR, ts, LOCALTIMESTAMP)", "8")]);
    check("BOOLEAN", &[("RAND() < 1", "true"), ("RAND() = RAND()", "false"), ("CHAR_LENGTH(UUID()) = 36", "true")]);
    // The same seed gives the same value.
    assert_eq!(value("UUID()", "STRING"), value("UUID()", "STRING"));
}

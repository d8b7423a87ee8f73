//! CSV: one line of separated values per record, a value per column in table order.
//!
//! A value may stand in quotes, with the quote doubled inside. An empty value without quotes is NULL, or the empty text in
//! a STRING column; with `csv.null-literal` that text without quotes is NULL in every column. A record with another
//! number of values than the table has columns is bad, and so is one with a line break outside of quotes: one
//! record is one line.

use super::columns::{ColumnBuilder, Values, columns_of, finish_batch};
use super::numbers::{NumberFault, Rounding, parse_decimal, parse_float, parse_integer};
use super::time::{TimestampStandard, parse_date, parse_time_ms, parse_timestamp};
use super::view::{ColumnView, write_scalar};
use super::{Decoded, FormatScope, RecordDecoder, RowEncoder, sql_type};
use crate::options::OptionReader;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use streamshield_core::ports::sink::{RefusedRow, SinkError};

/// Options of the format, with Flink's names and defaults.
#[derive(Clone, Debug)]
pub struct CsvOptions {
    delimiter: u8,
    quote: Option<u8>,
    escape: Option<u8>,
    null_literal: Option<String>,
    ignore_parse_errors: bool,
}

impl CsvOptions {
    pub(super) const KEYS: [&'static str; 8] = [
        "field-delimiter",
        "quote-character",
        "disable-quote-character",
        "escape-character",
        "null-literal",
        "ignore-parse-errors",
        "allow-comments",
        "array-element-delimiter",
    ];

    pub(super) fn read(options: &mut OptionReader<'_>, prefix: &str) -> Self {
        let [delimiter, quote, no_quote, escape, null_literal, ignore, comments, array] = Self::KEYS.map(|key| format!("{prefix}{key}"));
        if options.boolean(&comments) == Some(true) {
            options.error(
                &comments,
                format!("'{comments}' = 'true' is not supported"),
                Some("a comment is a bad record; the job's bad-record policy says what becomes of it".into()),
            );
        }
        if options.text(&array).is_some() {
            options.error(&array, format!("'{array}' is not supported: CSV columns can't be arrays"), None);
        }
        let quote = Some(character(options, &quote).unwrap_or(b'"')).filter(|_| options.boolean(&no_quote) != Some(true));
        let read = CsvOptions {
            delimiter: character(options, &delimiter).unwrap_or(b','),
            quote,
            // A quote that escapes itself is one that is doubled, and it is anyway.
            escape: character(options, &escape).filter(|escape| Some(*escape) != quote),
            null_literal: options.text(&null_literal).map(str::to_string),
            ignore_parse_errors: options.boolean(&ignore).unwrap_or(false),
        };
        if read.quote == Some(read.delimiter) || read.escape == Some(read.delimiter) {
            options.error(&delimiter, "the delimiter can't be the quote or the escape character too".into(), None);
        }
        read
    }
}

/// One ASCII character; `\t` and `\\` may be written as escapes.
fn character(options: &mut OptionReader<'_>, key: &str) -> Option<u8> {
    let text = options.text(key)?;
    let character = match text {
        "\\t" => Some(b'\t'),
        "\\\\" => Some(b'\\'),
        _ => text.bytes().next().filter(|byte| text.len() == 1 && byte.is_ascii() && !matches!(byte, b'\n' | b'\r')),
    };
    if character.is_none() {
        options.error(key, format!("'{key}' = '{text}' is not one ASCII character"), None);
    }
    character
}

/// Decodes lines into rows.
pub struct CsvDecoder {
    schema: SchemaRef,
    scope: FormatScope,
    options: CsvOptions,
    columns: Vec<ColumnBuilder>,
    /// Per value of a line the column that it fills.
    targets: Vec<Option<usize>>,
    scratch: Vec<u8>,
}

impl CsvDecoder {
    /// A line has `fields` values; `places` are the columns' places among them.
    pub fn new(schema: &SchemaRef, fields: usize, places: &[usize], scope: FormatScope, options: &CsvOptions) -> Self {
        let mut targets = vec![None; fields];
        for (column, place) in places.iter().enumerate() {
            targets[*place] = Some(column);
        }
        CsvDecoder { schema: schema.clone(), scope, options: options.clone(), columns: columns_of(schema), targets, scratch: Vec::new() }
    }

    fn decode_record(&mut self, payload: Option<&[u8]>) -> Result<(), String> {
        let line = match (payload, self.scope) {
            (Some(record), _) => record.strip_suffix(b"\n").unwrap_or(record),
            (None, FormatScope::Key) => return self.columns.iter_mut().try_for_each(|column| append_null(column, "the record has no key")),
            (None, FormatScope::Value) => return Err("the record has no value".into()),
        };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        std::str::from_utf8(line).map_err(|_| "the record is not UTF-8")?;
        let mut rest = Some(line);
        for (index, target) in self.targets.iter().enumerate() {
            let Some(text) = rest else {
                if !self.options.ignore_parse_errors {
                    return Err(format!("the record has {index} values and the table has {} columns", self.targets.len()));
                }
                if let Some(column) = target {
                    append_null(&mut self.columns[*column], "the value is missing")?;
                }
                continue;
            };
            let (value, quoted, after) = next_value(text, &self.options, &mut self.scratch)?;
            rest = after;
            let Some(column) = target else { continue };
            append_value(&mut self.columns[*column], value, quoted, &self.options)?;
        }
        if rest.is_some() && !self.options.ignore_parse_errors {
            return Err(format!("the record has more values than the table's {} columns", self.targets.len()));
        }
        Ok(())
    }
}

impl RecordDecoder for CsvDecoder {
    fn decode(&mut self, payloads: &[Option<&[u8]>]) -> Decoded {
        let mut bad = Vec::new();
        let mut rows = 0;
        for (index, payload) in payloads.iter().enumerate() {
            match self.decode_record(*payload) {
                Ok(()) => rows += 1,
                Err(reason) => {
                    self.columns.iter_mut().for_each(|column| column.truncate(rows));
                    bad.push((index, reason));
                }
            }
        }
        Decoded { rows: finish_batch(&self.schema, &mut self.columns, rows), bad }
    }
}

/// A value, whether it stood in quotes, and the line behind its delimiter, if there is one.
type NextValue<'l, 's> = (&'s [u8], bool, Option<&'l [u8]>);

fn next_value<'l: 's, 's>(line: &'l [u8], options: &CsvOptions, scratch: &'s mut Vec<u8>) -> Result<NextValue<'l, 's>, String> {
    let quote = options.quote.filter(|quote| line.first() == Some(quote));
    let begin = usize::from(quote.is_some());
    let mut at = begin;
    let mut plain_from = begin;
    scratch.clear();
    loop {
        let Some(byte) = line.get(at).copied() else {
            if quote.is_some() {
                return Err("the record ends inside of quotes".into());
            }
            return Ok((finish_value(line, plain_from, at, scratch), false, None));
        };
        if options.escape == Some(byte) {
            if at + 1 == line.len() {
                return Err("the record ends behind an escape character".into());
            }
            scratch.extend_from_slice(&line[plain_from..at]);
            plain_from = at + 1;
            at += 2;
        } else if quote == Some(byte) {
            if line.get(at + 1) == Some(&byte) {
                scratch.extend_from_slice(&line[plain_from..=at]);
                plain_from = at + 2;
                at += 2;
                continue;
            }
            let after = match line.get(at + 1) {
                None => None,
                Some(next) if *next == options.delimiter => Some(&line[at + 2..]),
                Some(_) => return Err("something follows a closing quote".into()),
            };
            return Ok((finish_value(line, plain_from, at, scratch), true, after));
        } else if quote.is_none() && byte == options.delimiter {
            return Ok((finish_value(line, plain_from, at, scratch), false, Some(&line[at + 1..])));
        } else if quote.is_none() && byte == b'\n' {
            return Err("the record has more than one line".into());
        } else {
            at += 1;
        }
    }
}

/// The value up to `at`: a piece of the line, or what was gathered around escapes.
fn finish_value<'s>(line: &'s [u8], plain_from: usize, at: usize, scratch: &'s mut Vec<u8>) -> &'s [u8] {
    if scratch.is_empty() {
        return &line[plain_from..at];
    }
    scratch.extend_from_slice(&line[plain_from..at]);
    scratch
}

fn append_null(column: &mut ColumnBuilder, reason: &str) -> Result<(), String> {
    if !column.field.is_nullable() {
        return Err(format!("column '{}': {reason}, and it is NOT NULL", column.field.name()));
    }
    column.append_null();
    Ok(())
}

fn append_value(column: &mut ColumnBuilder, value: &[u8], quoted: bool, options: &CsvOptions) -> Result<(), String> {
    let is_text = matches!(column.values, Values::Utf8(_));
    let is_null = match &options.null_literal {
        Some(literal) => !quoted && value == literal.as_bytes(),
        None => !quoted && value.is_empty() && !is_text,
    };
    if is_null {
        return append_null(column, "the value is NULL");
    }
    let before = column.len();
    match parse_into(&mut column.values, value) {
        Some(()) => {
            column.appended();
            Ok(())
        }
        None if options.ignore_parse_errors => {
            column.truncate(before);
            append_null(column, "the value does not fit")
        }
        None => {
            let shown: String = String::from_utf8_lossy(value).chars().take(40).collect();
            Err(format!("column '{}': \"{shown}\" is no {}", column.field.name(), sql_type(column.field.data_type())))
        }
    }
}

/// Appends the value that a text stands for; None when it stands for none.
fn parse_into(values: &mut Values, text: &[u8]) -> Option<()> {
    let trimmed = text.trim_ascii();
    let integer = || parse_integer(trimmed).ok();
    match values {
        Values::Utf8(bytes) => {
            bytes.data.extend_from_slice(text);
            return bytes.end_value().then_some(());
        }
        Values::Binary(bytes) => {
            BASE64.decode_vec(trimmed, &mut bytes.data).ok()?;
            return bytes.end_value().then_some(());
        }
        Values::Boolean(values) => values.append(match trimmed {
            word if word.eq_ignore_ascii_case(b"true") => true,
            word if word.eq_ignore_ascii_case(b"false") => false,
            _ => return None,
        }),
        Values::Int8(values) => values.push(integer()?.try_into().ok()?),
        Values::Int16(values) => values.push(integer()?.try_into().ok()?),
        Values::Int32(values) => values.push(integer()?.try_into().ok()?),
        Values::Int64(values) => values.push(integer()?),
        Values::Float32(values) => values.push(narrow(parse_float(trimmed)).ok()?),
        Values::Float64(values) => values.push(parse_float(trimmed).ok()?),
        Values::Decimal { values, precision, scale } => values.push(parse_decimal(trimmed, *precision, *scale, Rounding::HalfUp).ok()?),
        Values::Date(values) => values.push(parse_date(trimmed)?),
        Values::Time(values) => values.push(parse_time_ms(trimmed)?),
        Values::Timestamp { values, unit, zoned } => values.push(parse_timestamp(trimmed, *zoned)?.to_unit(*unit)?),
        Values::List { .. } | Values::Struct { .. } | Values::Map { .. } => return None,
    }
    Some(())
}

fn narrow(value: Result<f64, NumberFault>) -> Result<f32, NumberFault> {
    let value = value?;
    let narrowed = value as f32;
    if value.is_finite() && narrowed.is_infinite() { Err(NumberFault::OutOfRange) } else { Ok(narrowed) }
}

/// Encodes rows as lines, without the line break.
pub struct CsvEncoder {
    schema: SchemaRef,
    options: CsvOptions,
    scratch: Vec<u8>,
}

impl CsvEncoder {
    pub fn new(schema: &SchemaRef, options: CsvOptions) -> Self {
        CsvEncoder { schema: schema.clone(), options, scratch: Vec::new() }
    }

    /// Writes a row; the reason when it can't be written.
    fn write_row(&mut self, columns: &[ColumnView<'_>], row: usize, out: &mut Vec<u8>) -> Result<(), String> {
        for (index, (column, field)) in columns.iter().zip(self.schema.fields()).enumerate() {
            if index > 0 {
                out.push(self.options.delimiter);
            }
            if column.is_null(row) {
                if !field.is_nullable() {
                    return Err(format!("column '{}' is NOT NULL and the value is NULL", field.name()));
                }
                out.extend_from_slice(self.options.null_literal.as_deref().unwrap_or_default().as_bytes());
                continue;
            }
            self.scratch.clear();
            write_scalar(&mut self.scratch, &column.values, row, TimestampStandard::Sql);
            write_quoted(out, &self.scratch, &self.options).map_err(|reason| format!("column '{}': {reason}", field.name()))?;
        }
        Ok(())
    }
}

impl RowEncoder for CsvEncoder {
    fn encode(&mut self, rows: &RecordBatch, out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<Vec<RefusedRow>, SinkError> {
        let columns = rows.columns().iter().map(|array| ColumnView::new(array.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let mut refused = Vec::new();
        for row in 0..rows.num_rows() {
            let start = out.len();
            if let Err(reason) = self.write_row(&columns, row, out) {
                out.truncate(start);
                refused.push(RefusedRow { row, reason });
            }
            ends.push(out.len());
        }
        Ok(refused)
    }
}

/// Writes a value, in quotes where reading it back needs them.
fn write_quoted(out: &mut Vec<u8>, text: &[u8], options: &CsvOptions) -> Result<(), &'static str> {
    let special = |byte: &u8| {
        *byte == options.delimiter || Some(*byte) == options.quote || Some(*byte) == options.escape || matches!(byte, b'\n' | b'\r')
    };
    let mistaken_for_null = options.null_literal.as_deref().is_some_and(|literal| literal.as_bytes() == text);
    if !mistaken_for_null && !text.iter().any(special) {
        out.extend_from_slice(text);
        return Ok(());
    }
    match (options.quote, options.escape) {
        (Some(quote), escape) => {
            out.push(quote);
            for byte in text {
                if *byte == quote || Some(*byte) == escape {
                    out.push(escape.unwrap_or(quote));
                }
                out.push(*byte);
            }
            out.push(quote);
        }
        (None, Some(escape)) if !mistaken_for_null && !text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) => {
            for byte in text {
                if special(byte) {
                    out.push(escape);
                }
                out.push(*byte);
            }
        }
        (None, _) => return Err("the value can't be written without quotes"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{decoder, encoder};
    use super::*;
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Int64Type, TimestampMillisecondType};
    use arrow_array::{Float64Array, Int64Array, StringArray, TimestampMillisecondArray};
    use arrow_schema::{DataType, Field, Schema, TimeUnit};
    use proptest::prelude::*;
    use std::sync::Arc;
    use streamshield_core::table::{Column, ColumnKind, TableDefinition};

    fn table(fields: Vec<Field>, options: &[(&str, &str)]) -> (TableDefinition, SchemaRef) {
        let columns = fields.iter().map(|field| Column { field: Arc::new(field.clone()), kind: ColumnKind::Physical }).collect();
        let mut all: std::collections::BTreeMap<_, _> = options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        all.insert("format".into(), "csv".into());
        (TableDefinition { name: "t".into(), columns, options: all, primary_key: vec![] }, Arc::new(Schema::new(fields)))
    }

    fn abc() -> Vec<Field> {
        vec![
            Field::new("a", DataType::Int64, true),
            Field::new("b", DataType::Utf8, true),
            Field::new("c", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        ]
    }

    fn decode(options: &[(&str, &str)], lines: &[&str]) -> Decoded {
        let (table, schema) = table(abc(), options);
        let payloads: Vec<_> = lines.iter().map(|line| Some(line.as_bytes())).collect();
        decoder(&table, FormatScope::Value, &schema).unwrap().decode(&payloads)
    }

    #[test]
    fn lines_are_read_in_column_order() {
        let lines = ["1,x,2024-01-02 03:04:05.678", " 2 ,\"a \"\"b\"\", c\",2024-01-02 03:04:05\r\n", ",,1970-01-01 00:00:00"];
        let decoded = decode(&[], &lines);
        assert_eq!(decoded.bad, []);
        assert_eq!(decoded.rows.column(0).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(1), Some(2), None]);
        assert_eq!(decoded.rows.column(1).as_string::<i32>().iter().collect::<Vec<_>>(), [Some("x"), Some("a \"b\", c"), Some("")]);
        assert_eq!(decoded.rows.column(2).as_primitive::<TimestampMillisecondType>().value(0), 1_704_164_645_678);
    }

    #[test]
    fn a_line_that_is_no_row_is_bad_and_leaves_no_trace() {
        let time = "2024-01-02 03:04:05";
        let lines = [
            format!("x,y,{time}"),
            format!("1,y,{time}"),
            format!("1,y,{time},z"),
            "1,y".into(),
            "1,y,".into(),
            format!("1,\"y,{time}"),
            format!("1,\"y\"z,{time}"),
            format!("1,y\n2,z,{time}"),
        ];
        let decoded = decode(&[], &lines.each_ref().map(String::as_str));
        assert_eq!(decoded.rows.num_rows(), 1);
        let reasons: Vec<&str> = decoded.bad.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "column 'a': \"x\" is no BIGINT",
                "the record has more values than the table's 3 columns",
                "the record has 2 values and the table has 3 columns",
                "column 'c': the value is NULL, and it is NOT NULL",
                "the record ends inside of quotes",
                "something follows a closing quote",
                "the record has more than one line",
            ]
        );
    }

    #[test]
    fn a_quote_that_is_the_escape_character_too_is_one_that_is_doubled() {
        let decoded =
            decode(&[("csv.escape-character", "\"")], &["1,\"a\"\"b\",\"1970-01-01 00:00:00\"", "\"2\",\"c\",1970-01-01 00:00:00"]);
        assert_eq!(decoded.bad, []);
        assert_eq!(decoded.rows.column(1).as_string::<i32>().iter().collect::<Vec<_>>(), [Some("a\"b"), Some("c")]);
    }

    #[test]
    fn only_the_columns_read_are_parsed() {
        let (table, _) = table(abc(), &[("csv.field-delimiter", ";")]);
        let narrow: SchemaRef = Arc::new(Schema::new(vec![Field::new("b", DataType::Utf8, true)]));
        let decoded = decoder(&table, FormatScope::Value, &narrow).unwrap().decode(&[Some(b"no number;x;no time")]);
        assert_eq!(decoded.rows.column(0).as_string::<i32>().value(0), "x");
    }

    #[test]
    fn ignored_parse_errors_become_null() {
        let decoded = decode(
            &[("csv.ignore-parse-errors", "true"), ("csv.null-literal", "n/a")],
            &["x,n/a,1970-01-01 00:00:00", "1,\"n/a\",1970-01-01 00:00:00,more", "1"],
        );
        assert_eq!(decoded.rows.column(0).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [None, Some(1)]);
        assert_eq!(decoded.rows.column(1).as_string::<i32>().iter().collect::<Vec<_>>(), [None, Some("n/a")]);
        assert_eq!(decoded.bad.len(), 1);
    }

    #[test]
    fn options_that_are_not_supported_are_refused() {
        for (key, value) in [
            ("csv.array-element-delimiter", ";"),
            ("csv.allow-comments", "true"),
            ("csv.field-delimiter", "::"),
            ("csv.quote-character", ","),
            ("csv.nul-literal", "x"),
        ] {
            let (table, _) = table(abc(), &[(key, value)]);
            assert_eq!(super::super::check(&table, &table.columns, FormatScope::Value).len(), 1, "{key}");
        }
        let (table, _) = table(vec![Field::new("l", DataType::new_list(DataType::Int64, true), true)], &[]);
        assert_eq!(
            super::super::check(&table, &table.columns, FormatScope::Value)[0].message,
            "the format 'csv' can't carry column 'l' of type ARRAY<BIGINT>"
        );
    }

    proptest! {
        #[test]
        fn every_row_comes_back(rows in proptest::collection::vec((any::<Option<i64>>(), proptest::option::of(r#"[a-z,;"'\\n/ NULé\n\r]{0,10}"#), any::<Option<f64>>(), -62_135_596_800_000i64..253_402_300_799_999), 0..10), escape: bool) {
            let fields = vec![Field::new("i", DataType::Int64, true), Field::new("s", DataType::Utf8, true), Field::new("f", DataType::Float64, true), Field::new("t", DataType::Timestamp(TimeUnit::Millisecond, None), false)];
            let options = [("csv.null-literal", "NULL"), ("csv.escape-character", "\\")];
            let (table, schema) = table(fields, &options[..1 + usize::from(escape)]);
            let batch = RecordBatch::try_new(schema.clone(), vec![
                Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>()),
                Arc::new(rows.iter().map(|row| row.1.as_deref()).collect::<StringArray>()),
                Arc::new(rows.iter().map(|row| row.2).collect::<Float64Array>()),
                Arc::new(TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.3))),
            ]).unwrap();
            let (mut out, mut ends) = (vec![], vec![]);
            let refused = encoder(&table, FormatScope::Value, &schema).unwrap().encode(&batch, &mut out, &mut ends).unwrap();
            prop_assert_eq!(refused, vec![]);
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let payloads: Vec<_> = starts.zip(&ends).map(|(start, end)| Some(&out[start..*end])).collect();
            let decoded = decoder(&table, FormatScope::Value, &schema).unwrap().decode(&payloads);
            prop_assert_eq!(decoded.bad, vec![]);
            prop_assert_eq!(decoded.rows, batch);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(line in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b','), Just(b'"'), Just(b'\\')], 0..30)) {
            let (table, schema) = table(abc(), &[("csv.escape-character", "\\")]);
            decoder(&table, FormatScope::Value, &schema).unwrap().decode(&[Some(&line)]);
        }
    }
}

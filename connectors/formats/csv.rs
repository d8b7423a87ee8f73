//! CSV: one line of separated values per record, a value per column in table order.
//!
//! A value may stand in quotes, with the quote doubled inside. An empty value without quotes is NULL, or the empty text in
//! a STRING column; with `csv.null-literal` that text without quotes is NULL in every column. A record with another
//! number of values than the table has columns is bad, and so is one with a line break outside of quotes: one
//! record is one line.

use super::columns::{ColumnBuilder, Values, columns_of, finish_batch};
use super::json::write_base64;
use super::numbers::{NumberFault, Rounding, parse_decimal, parse_float, parse_integer, write_decimal, write_float};
use super::time::{TimestampStandard, parse_date, parse_time_ms, parse_timestamp, write_date, write_time_ms, write_timestamp};
use super::view::{ColumnView, View};
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
            options.error(&comments, format!("'{comments}' = 'true' is not supported"), Some("a comment is a bad record; the job's bad-record policy says what becomes of it".into()));
        }
        if options.text(&array).is_some() {
            options.error(&array, format!("'{array}' is not supported: CSV columns can't be arrays"), None);
        }
        let quote_read = character(options, &quote).unwrap_or(b'"');
        let read = CsvOptions {
            delimiter: character(options, &delimiter).unwrap_or(b','),
            quote: Some(quote_read).filter(|_| options.boolean(&no_quote) != Some(true)),
            escape: character(options, &escape),
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
            write_text(&mut self.scratch, &column.values, row);
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

fn write_text(out: &mut Vec<u8>, values: &View<'_>, row: usize) {
    let slice = |ends: &[i32]| ends[row] as usize..ends[row + 1] as usize;
    let integer = |value: i64, out: &mut Vec<u8>| out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    match values {
        View::Boolean(values) => out.extend_from_slice(if values.value(row) { b"true" } else { b"false" }),
        View::Int8(values) => integer(values[row].into(), out),
        View::Int16(values) => integer(values[row].into(), out),
        View::Int32(values) => integer(values[row].into(), out),
        View::Int64(values) => integer(values[row], out),
        View::Float32(values) => write_float_text(out, values[row], values[row].into()),
        View::Float64(values) => write_float_text(out, values[row], values[row]),
        View::Decimal(values, scale) => write_decimal(out, values[row], *scale),
        View::Utf8 { ends, data } => out.extend_from_slice(&data[slice(ends)]),
        View::Binary { ends, data } => write_base64(out, &data[slice(ends)]),
        View::Date(values) => write_date(out, values[row]),
        View::Time(values) => write_time_ms(out, values[row]),
        View::Timestamp { values, unit, zoned } => write_timestamp(out, values[row], *unit, *zoned, TimestampStandard::Sql),
        View::List { .. } | View::Struct { .. } | View::Map { .. } => unreachable!("`check` refuses nested types in CSV"),
    }
}

fn write_float_text<F: ryu::Float>(out: &mut Vec<u8>, value: F, judged: f64) {
    if judged.is_finite() {
        write_float(out, value);
    } else {
        out.extend_from_slice(if judged.is_nan() { b"NaN".as_slice() } else if judged > 0.0 { b"Infinity" } else { b"-Infinity" });
    }
}

/// Writes a value, in quotes where reading it back needs them.
fn write_quoted(out: &mut Vec<u8>, text: &[u8], options: &CsvOptions) -> Result<(), &'static str> {
    let special = |byte: &u8| *byte == options.delimiter || Some(*byte) == options.quote || Some(*byte) == options.escape || matches!(byte, b'\n' | b'\r');
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

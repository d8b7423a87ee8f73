//! Rows to JSON objects, one per row, without white space and without an allocation per row.
//!
//! A batch's columns are looked at once: type, values, nulls. Then the rows are written one after the other, each value
//! behind its key, which was escaped when the encoder was made. Numbers are written by itoa and ryu; text is copied up to
//! the next character that JSON wants escaped.

use super::super::RowEncoder;
use super::super::numbers::{write_decimal, write_float};
use super::super::time::{TimestampStandard, write_date, write_time_ms, write_timestamp};
use super::super::view::{ColumnView, View};
use super::JsonOptions;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use streamshield_core::ports::sink::{RefusedRow, SinkError};

/// Encodes rows as JSON objects.
pub struct JsonEncoder {
    schema: SchemaRef,
    /// `"name":` per column.
    keys: Vec<Vec<u8>>,
    options: JsonOptions,
}

impl JsonEncoder {
    /// `names` are the fields' names in the record.
    pub fn new(schema: &SchemaRef, names: &[String], options: &JsonOptions) -> Self {
        JsonEncoder { schema: schema.clone(), keys: names.iter().map(|name| key_of(name)).collect(), options: options.clone() }
    }
}

impl RowEncoder for JsonEncoder {
    fn encode(&mut self, rows: &RecordBatch, out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<Vec<RefusedRow>, SinkError> {
        let style = Style { timestamps: self.options.timestamps, ignore_null_fields: self.options.ignore_null_fields };
        let mut columns = Vec::with_capacity(self.keys.len());
        for ((field, key), array) in self.schema.fields().iter().zip(&self.keys).zip(rows.columns()) {
            columns.push(Member { key, nullable: field.is_nullable(), column: ColumnView::new(array.as_ref())? });
        }
        let mut refused = Vec::new();
        ends.reserve(rows.num_rows());
        for row in 0..rows.num_rows() {
            match columns.iter().position(|member| !member.nullable && member.column.is_null(row)) {
                Some(column) => {
                    refused.push(RefusedRow {
                        row,
                        reason: format!("column '{}' is NOT NULL and the value is NULL", self.schema.field(column).name()),
                    });
                }
                None => write_object(out, &columns, row, &style),
            }
            ends.push(out.len());
        }
        Ok(refused)
    }
}

struct Style {
    timestamps: TimestampStandard,
    ignore_null_fields: bool,
}

/// A column and the key before its values.
struct Member<'a> {
    key: &'a [u8],
    nullable: bool,
    column: ColumnView<'a>,
}

fn key_of(name: &str) -> Vec<u8> {
    let mut key = Vec::new();
    write_string(&mut key, name.as_bytes());
    key.push(b':');
    key
}

#[inline]
fn write_object(out: &mut Vec<u8>, members: &[Member<'_>], row: usize, style: &Style) {
    out.push(b'{');
    let mut separate = false;
    for member in members {
        let null = member.column.is_null(row);
        if null && style.ignore_null_fields {
            continue;
        }
        if separate {
            out.push(b',');
        }
        separate = true;
        out.extend_from_slice(member.key);
        if null {
            out.extend_from_slice(b"null");
        } else {
            write_value(out, &member.column, row, style);
        }
    }
    out.push(b'}');
}

fn write_nullable(out: &mut Vec<u8>, column: &ColumnView<'_>, row: usize, style: &Style) {
    if column.is_null(row) {
        out.extend_from_slice(b"null");
    } else {
        write_value(out, column, row, style);
    }
}

#[inline]
fn write_value(out: &mut Vec<u8>, column: &ColumnView<'_>, row: usize, style: &Style) {
    match &column.values {
        View::Int64(values) => write_integer(out, values[row]),
        View::Utf8 { ends, data } => write_string(out, &data[ends[row] as usize..ends[row + 1] as usize]),
        View::Timestamp { values, unit, zoned } => {
            out.push(b'"');
            write_timestamp(out, values[row], *unit, *zoned, style.timestamps);
            out.push(b'"');
        }
        View::Float64(values) => write_json_float(out, values[row], values[row]),
        View::Float32(values) => write_json_float(out, values[row], f64::from(values[row])),
        View::Decimal(values, scale) => write_decimal(out, values[row], *scale),
        View::Int32(values) => write_integer(out, values[row]),
        View::Int16(values) => write_integer(out, values[row]),
        View::Int8(values) => write_integer(out, values[row]),
        View::Boolean(values) => out.extend_from_slice(if values.value(row) { b"true" } else { b"false" }),
        View::Date(values) => quoted(out, |out| write_date(out, values[row].into())),
        View::Time(values) => quoted(out, |out| write_time_ms(out, values[row])),
        View::Binary { ends, data } => quoted(out, |out| write_base64(out, &data[ends[row] as usize..ends[row + 1] as usize])),
        View::List { ends, items } => {
            out.push(b'[');
            for item in ends[row]..ends[row + 1] {
                if item > ends[row] {
                    out.push(b',');
                }
                write_nullable(out, items, item as usize, style);
            }
            out.push(b']');
        }
        View::Struct { fields, children } => {
            out.push(b'{');
            let written = fields.iter().zip(children).filter(|(_, child)| !(style.ignore_null_fields && child.is_null(row)));
            for (index, (field, child)) in written.enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_string(out, field.name().as_bytes());
                out.push(b':');
                write_nullable(out, child, row, style);
            }
            out.push(b'}');
        }
        View::Map { ends, keys, values } => {
            out.push(b'{');
            for entry in ends[row]..ends[row + 1] {
                if entry > ends[row] {
                    out.push(b',');
                }
                write_value(out, keys, entry as usize, style);
                out.push(b':');
                write_nullable(out, values, entry as usize, style);
            }
            out.push(b'}');
        }
    }
}

#[inline(always)]
fn write_integer(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// JSON has no word for what is not finite; Jackson writes it as text, and so it is read back.
fn write_json_float<F: ryu::Float>(out: &mut Vec<u8>, value: F, judged: f64) {
    if judged.is_finite() {
        write_float(out, value);
    } else if judged.is_nan() {
        out.extend_from_slice(b"\"NaN\"");
    } else {
        out.extend_from_slice(if judged > 0.0 { b"\"Infinity\"".as_slice() } else { b"\"-Infinity\"" });
    }
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    write(out);
    out.push(b'"');
}

pub(in crate::formats) fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = BASE64.encode_slice(bytes, &mut out[start..]).expect("four characters for every three bytes");
    out.truncate(start + written);
}

/// Whether a byte of UTF-8 text must be escaped in a JSON string.
const ESCAPED: [bool; 256] = {
    let mut escaped = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        escaped[byte] = true;
        byte += 1;
    }
    escaped[b'"' as usize] = true;
    escaped[b'\\' as usize] = true;
    escaped
};

#[inline]
fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    if text.iter().any(|byte| ESCAPED[usize::from(*byte)]) {
        write_escaped(out, text);
    } else {
        out.extend_from_slice(text);
    }
    out.push(b'"');
}

#[cold]
fn write_escaped(out: &mut Vec<u8>, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut plain = 0;
    for (at, byte) in text.iter().enumerate().filter(|(_, byte)| ESCAPED[usize::from(**byte)]) {
        out.extend_from_slice(&text[plain..at]);
        plain = at + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            control => out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[usize::from(control >> 4)], HEX[usize::from(control & 15)]]),
        }
    }
    out.extend_from_slice(&text[plain..]);
}

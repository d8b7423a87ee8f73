//! JSON objects to rows: one pass, values appended to the columns as they are read.
//!
//! - **Keys are expected, not looked up** (`keys.rs`).
//! - **A bad record is taken back**: every column is cut to the rows before it (`columns.rs`). Each payload is read once,
//!   by a cursor that ends where the payload ends, so no record can complete or disturb another.
//! - **The last of duplicate keys counts**, as in Jackson: the column is cut and appended again. In a MAP the earlier entries are taken out.
//! - What is valid JSON does not depend on the columns read (`cursor.rs`); whether a value fits its column does.

use super::super::columns::{Bytes, ColumnBuilder, Values, columns_of, finish_batch};
use super::super::numbers::{NumberFault, Rounding, parse_decimal, parse_float, parse_integer};
use super::super::time::{parse_date, parse_time_ms, parse_timestamp};
use super::super::{Decoded, FormatScope, RecordDecoder, sql_type};
use super::JsonOptions;
use super::cursor::{Cursor, Invalid, NESTING_MAX, Text, compact, unescape};
use super::keys::{Inner, ObjectKeys};
use arrow_schema::{DataType, FieldRef, SchemaRef};
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::collections::HashSet;

/// Characters of a value that an error shows.
const EXCERPT_CHARS_MAX: usize = 40;
/// Of more entries of a MAP, the keys are looked up in a set instead of compared with each other.
const COMPARED_KEYS_MAX: usize = 16;

/// Padding is Jackson's to write and optional to read.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&base64::alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// Decodes JSON objects into rows.
pub struct JsonDecoder {
    schema: SchemaRef,
    scope: FormatScope,
    options: JsonOptions,
    columns: Vec<ColumnBuilder>,
    keys: ObjectKeys,
    scratch: Vec<u8>,
}

impl JsonDecoder {
    /// `names` are the fields' names in the record.
    pub fn new(schema: &SchemaRef, names: &[String], scope: FormatScope, options: &JsonOptions) -> Self {
        JsonDecoder {
            schema: schema.clone(),
            scope,
            options: options.clone(),
            columns: columns_of(schema),
            keys: ObjectKeys::new(names.iter().map(String::as_str), schema.fields()),
            scratch: Vec::new(),
        }
    }

    fn decode_record(&mut self, record: &[u8], row: usize) -> Result<(), Fault> {
        let mut reader = Reader { cursor: Cursor::new(record), options: &self.options, scratch: &mut self.scratch };
        reader.cursor.skip_space();
        if reader.cursor.peek() != b'{' {
            let what = if reader.cursor.at == record.len() { "the record is empty" } else { "the record is no JSON object" };
            return Err(reader.cursor.invalid(what).into());
        }
        reader.object(&mut self.columns, &mut self.keys, row, 1)?;
        reader.cursor.skip_space();
        if reader.cursor.at < record.len() {
            return Err(reader.cursor.invalid("something follows the object").into());
        }
        Ok(())
    }

    fn absent_key(&mut self) -> Result<(), Fault> {
        self.columns.iter_mut().try_for_each(|column| append_null(column, "the record has no key"))
    }
}

impl RecordDecoder for JsonDecoder {
    fn decode(&mut self, payloads: &[Option<&[u8]>]) -> Decoded {
        let mut bad = Vec::new();
        let mut rows = 0;
        for (index, payload) in payloads.iter().enumerate() {
            let decoded = match (payload, self.scope) {
                (Some(record), _) => self.decode_record(record, rows),
                (None, FormatScope::Key) => self.absent_key(),
                (None, FormatScope::Value) => Err(Fault::Misfit(Misfit::new("the record has no value"))),
            };
            match decoded {
                Ok(()) => rows += 1,
                Err(fault) => {
                    self.columns.iter_mut().for_each(|column| column.truncate(rows));
                    bad.push((index, fault.to_string()));
                }
            }
        }
        Decoded { rows: finish_batch(&self.schema, &mut self.columns, rows), bad }
    }
}

/// Why a record gives no row. Small, since every value returns one or none.
enum Fault {
    /// The bytes are no JSON: the whole record is bad.
    Invalid(Invalid),
    /// A value does not fit its column.
    Misfit(Box<Misfit>),
}

struct Misfit {
    /// Field names from the outermost on.
    path: Vec<String>,
    reason: String,
}

impl Misfit {
    fn new(reason: impl Into<String>) -> Box<Self> {
        Box::new(Misfit { path: Vec::new(), reason: reason.into() })
    }
}

impl From<Invalid> for Fault {
    fn from(invalid: Invalid) -> Self {
        Fault::Invalid(invalid)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Invalid(Invalid { at, what }) => write!(f, "not valid JSON at byte {at}: {what}"),
            Fault::Misfit(misfit) if misfit.path.is_empty() => f.write_str(&misfit.reason),
            Fault::Misfit(misfit) => write!(f, "column '{}': {}", misfit.path.join("."), misfit.reason),
        }
    }
}

/// Reads one record.
struct Reader<'r> {
    cursor: Cursor<'r>,
    options: &'r JsonOptions,
    /// For strings with escapes.
    scratch: &'r mut Vec<u8>,
}

impl<'r> Reader<'r> {
    /// The object at the cursor as value number `row` of these columns. `depth` counts this object.
    fn object(&mut self, columns: &mut [ColumnBuilder], keys: &mut ObjectKeys, row: usize, depth: usize) -> Result<(), Fault> {
        let mut next_key = 0;
        let mut filled = 0;
        self.cursor.at += 1;
        self.cursor.skip_space();
        let mut goes_on = self.cursor.peek() != b'}';
        if !goes_on {
            self.cursor.at += 1;
        }
        while goes_on {
            match self.key(keys, &mut next_key)? {
                Some(index) => {
                    let column = &mut columns[index];
                    if column.len() == row {
                        filled += 1;
                    } else {
                        column.truncate(row);
                    }
                    self.field(column, &mut keys.inner[index], depth)?;
                }
                None => self.cursor.skip_value(depth)?,
            }
            self.cursor.skip_space();
            goes_on = self.cursor.goes_on(b'}')?;
        }
        if filled < columns.len() {
            self.fill_missing(columns, row)?;
        }
        Ok(())
    }

    fn fill_missing(&self, columns: &mut [ColumnBuilder], row: usize) -> Result<(), Fault> {
        for column in columns.iter_mut().filter(|column| column.len() == row) {
            if self.options.fail_on_missing_field {
                return Err(within(column, Fault::Misfit(Misfit::new("the field is missing"))));
            }
            append_null(column, "the field is missing and the column is NOT NULL")?;
        }
        Ok(())
    }

    /// A key with its colon: the column that it fills. Stands at the value afterwards.
    #[inline(always)]
    fn key(&mut self, keys: &mut ObjectKeys, next_key: &mut usize) -> Result<Option<usize>, Fault> {
        if let Some(expected) = keys.next_at(*next_key, self.cursor.bytes, self.cursor.at) {
            *next_key += 1;
            self.cursor.at += expected.length;
            self.cursor.skip_space();
            return Ok(expected.column);
        }
        self.other_key(keys, next_key)
    }

    /// A key that is not the next one: one further on, where fields were left out, or one to look up.
    #[inline(never)]
    fn other_key(&mut self, keys: &mut ObjectKeys, next_key: &mut usize) -> Result<Option<usize>, Fault> {
        if let Some((index, expected)) = keys.ahead_at(*next_key + 1, self.cursor.bytes, self.cursor.at) {
            *next_key = index + 1;
            self.cursor.at += expected.length;
            self.cursor.skip_space();
            return Ok(expected.column);
        }
        self.unexpected_key(keys, next_key)
    }

    #[cold]
    fn unexpected_key(&mut self, keys: &mut ObjectKeys, next_key: &mut usize) -> Result<Option<usize>, Fault> {
        let start = self.cursor.at;
        let text = self.cursor.string()?;
        let name = self.unescaped(start, text)?;
        let column = keys.column(name);
        self.cursor.skip_space();
        self.cursor.expect(b':', "expected ':'")?;
        if !text.escaped {
            keys.learn(*next_key, &self.cursor.bytes[start..self.cursor.at], column);
        }
        *next_key += 1;
        self.cursor.skip_space();
        Ok(column)
    }

    /// A string's text; `start` is where the string begins, for errors.
    fn unescaped<'s>(&'s mut self, start: usize, text: Text<'r>) -> Result<&'s [u8], Invalid> {
        if !text.escaped {
            return Ok(text.raw);
        }
        self.scratch.clear();
        unescape(text.raw, Some(self.scratch)).map_err(|what| Invalid { at: start, what })?;
        Ok(self.scratch)
    }

    /// The value at the cursor, appended to the column; null instead of a misfit where the options say so.
    #[inline(always)]
    fn field(&mut self, column: &mut ColumnBuilder, inner: &mut Inner, depth: usize) -> Result<(), Fault> {
        let start = self.cursor.at;
        match self.value(column, inner, depth) {
            Ok(()) => Ok(()),
            Err(fault) => self.misfitting_field(column, fault, start, depth),
        }
    }

    #[cold]
    fn misfitting_field(&mut self, column: &mut ColumnBuilder, fault: Fault, start: usize, depth: usize) -> Result<(), Fault> {
        if !self.options.ignore_parse_errors || !column.field.is_nullable() || matches!(fault, Fault::Invalid(_)) {
            return Err(within(column, fault));
        }
        let rows = column.len();
        column.truncate(rows);
        column.append_null();
        self.cursor.at = start;
        Ok(self.cursor.skip_value(depth)?)
    }

    #[inline]
    fn value(&mut self, column: &mut ColumnBuilder, inner: &mut Inner, depth: usize) -> Result<(), Fault> {
        if self.cursor.peek() == b'n' {
            self.cursor.literal(b"null")?;
            return if column.field.is_nullable() {
                column.append_null();
                Ok(())
            } else {
                Err(Fault::Misfit(Misfit::new("NULL in a column that is NOT NULL")))
            };
        }
        match &mut column.values {
            Values::Int64(values) => values.push(self.integer(&column.field, Rounding::Down)?),
            Values::Utf8(bytes) => self.text(bytes, &column.field, depth)?,
            Values::Timestamp { values, unit, zoned } => {
                let (unit, zoned) = (*unit, *zoned);
                values.push(self.parsed(&column.field, |text| parse_timestamp(text, zoned)?.to_unit(unit))?);
            }
            Values::Float64(values) => values.push(self.float(&column.field)?),
            Values::Int32(values) => values.push(self.narrow(&column.field, Rounding::Down)?),
            Values::Int16(values) => values.push(self.narrow(&column.field, Rounding::HalfUp)?),
            Values::Int8(values) => values.push(self.narrow(&column.field, Rounding::HalfUp)?),
            Values::Float32(values) => values.push(self.float(&column.field)? as f32),
            Values::Decimal { values, precision, scale } => {
                let (precision, scale) = (*precision, *scale);
                values.push(self.numeric(&column.field, |text, _| parse_decimal(text, precision, scale, Rounding::HalfUp))?);
            }
            Values::Boolean(values) => values.append(self.boolean(&column.field)?),
            Values::Date(values) => values.push(self.parsed(&column.field, parse_date)?),
            Values::Time(values) => values.push(self.parsed(&column.field, parse_time_ms)?),
            Values::Binary(bytes) => self.base64(bytes, &column.field)?,
            Values::List { ends, items } => {
                self.list(items, inner, &column.field, depth + 1)?;
                ends.push(end_of(items)?);
            }
            Values::Struct { length, children } => {
                self.open(b'{', &column.field, depth + 1)?;
                let Inner::Object(keys) = inner else { unreachable!("made for a struct") };
                self.object(children, keys, *length, depth + 1)?;
                *length += 1;
            }
            Values::Map { ends, keys, values } => {
                self.map(keys, values, inner, &column.field, depth + 1)?;
                ends.push(end_of(keys)?);
            }
        }
        column.appended();
        Ok(())
    }

    /// The fault for the value that begins at `start`.
    #[cold]
    fn misfit(&self, start: usize, field: &FieldRef, why: &str) -> Fault {
        let mut end = Cursor { bytes: self.cursor.bytes, at: start };
        if let Err(invalid) = end.skip_value(0) {
            return Fault::Invalid(invalid);
        }
        let value = &self.cursor.bytes[start..end.at];
        let head = String::from_utf8_lossy(&value[..value.len().min(4 * EXCERPT_CHARS_MAX)]);
        let mut shown: String = head.chars().take(EXCERPT_CHARS_MAX).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        Fault::Misfit(Misfit::new(format!("{shown} {why} {}", sql_type(field.data_type()))))
    }

    #[cold]
    fn number_misfit(&self, start: usize, field: &FieldRef, fault: NumberFault) -> Fault {
        match fault {
            NumberFault::NotANumber => self.misfit(start, field, "is no"),
            NumberFault::OutOfRange => self.misfit(start, field, "is out of the range of"),
        }
    }

    #[inline(always)]
    fn integer(&mut self, field: &FieldRef, fractions: Rounding) -> Result<i64, Fault> {
        match self.cursor.short_integer() {
            Some(value) => Ok(value),
            None => self.unusual_integer(field, fractions),
        }
    }

    /// More than 18 digits, a fraction or an exponent, or a string. Flink cuts the fractions of INT and BIGINT off and
    /// refuses them for TINYINT and SMALLINT; in a string it refuses them always.
    fn unusual_integer(&mut self, field: &FieldRef, fractions: Rounding) -> Result<i64, Fault> {
        self.numeric(field, |text, in_string| match parse_integer(text) {
            Err(NumberFault::NotANumber) if !in_string && fractions == Rounding::Down => {
                let whole = parse_decimal(text, 38, 0, Rounding::Down)?;
                i64::try_from(whole).map_err(|_| NumberFault::OutOfRange)
            }
            parsed => parsed,
        })
    }

    fn narrow<T: TryFrom<i64>>(&mut self, field: &FieldRef, fractions: Rounding) -> Result<T, Fault> {
        let start = self.cursor.at;
        T::try_from(self.integer(field, fractions)?).map_err(|_| self.number_misfit(start, field, NumberFault::OutOfRange))
    }

    fn float(&mut self, field: &FieldRef) -> Result<f64, Fault> {
        let narrow = *field.data_type() == DataType::Float32;
        self.numeric(field, |text, _| {
            let value = parse_float(text)?;
            if narrow && value.is_finite() && (value as f32).is_infinite() { Err(NumberFault::OutOfRange) } else { Ok(value) }
        })
    }

    /// A number, or a string with a number in it. `parse` learns which.
    fn numeric<T>(&mut self, field: &FieldRef, parse: impl FnOnce(&[u8], bool) -> Result<T, NumberFault>) -> Result<T, Fault> {
        let start = self.cursor.at;
        let parsed = match self.cursor.peek() {
            b'-' | b'0'..=b'9' => parse(self.cursor.number()?.0, false),
            b'"' => {
                let text = self.cursor.string()?;
                parse(self.unescaped(start, text)?.trim_ascii(), true)
            }
            _ => Err(NumberFault::NotANumber),
        };
        parsed.map_err(|fault| self.number_misfit(start, field, fault))
    }

    /// A string that `parse` understands.
    #[inline(always)]
    fn parsed<T>(&mut self, field: &FieldRef, parse: impl FnOnce(&[u8]) -> Option<T>) -> Result<T, Fault> {
        let start = self.cursor.at;
        if self.cursor.peek() != b'"' {
            return Err(self.misfit(start, field, "is no"));
        }
        let text = self.cursor.string()?;
        match parse(self.unescaped(start, text)?) {
            Some(value) => Ok(value),
            None => Err(self.misfit(start, field, "is no")),
        }
    }

    fn boolean(&mut self, field: &FieldRef) -> Result<bool, Fault> {
        match self.cursor.peek() {
            b't' => self.cursor.literal(b"true").map(|()| true).map_err(Fault::from),
            b'f' => self.cursor.literal(b"false").map(|()| false).map_err(Fault::from),
            _ => self.parsed(field, |text| match text.trim_ascii() {
                text if text.eq_ignore_ascii_case(b"true") => Some(true),
                text if text.eq_ignore_ascii_case(b"false") => Some(false),
                _ => None,
            }),
        }
    }

    /// A string's text; the JSON text of anything else.
    #[inline(always)]
    fn text(&mut self, bytes: &mut Bytes, field: &FieldRef, depth: usize) -> Result<(), Fault> {
        let start = self.cursor.at;
        if self.cursor.peek() == b'"' {
            let text = self.cursor.string()?;
            if text.escaped {
                unescape(text.raw, Some(&mut bytes.data)).map_err(|what| Invalid { at: start, what })?;
            } else {
                bytes.data.extend_from_slice(text.raw);
            }
        } else {
            self.cursor.skip_value(depth)?;
            compact(&self.cursor.bytes[start..self.cursor.at], &mut bytes.data);
        }
        if bytes.end_value() { Ok(()) } else { Err(self.misfit(start, field, "is too much for one batch of")) }
    }

    fn base64(&mut self, bytes: &mut Bytes, field: &FieldRef) -> Result<(), Fault> {
        let start = self.cursor.at;
        if self.cursor.peek() != b'"' {
            return Err(self.misfit(start, field, "is no base64 text for"));
        }
        let text = self.cursor.string()?;
        let decoded = BASE64.decode_vec(self.unescaped(start, text)?, &mut bytes.data);
        if decoded.is_ok() && bytes.end_value() { Ok(()) } else { Err(self.misfit(start, field, "is no base64 text for")) }
    }

    /// Checks that an object or array begins here and may, at this depth.
    fn open(&mut self, bracket: u8, field: &FieldRef, depth: usize) -> Result<(), Fault> {
        if self.cursor.peek() != bracket {
            return Err(self.misfit(self.cursor.at, field, "is no"));
        }
        if depth > NESTING_MAX { Err(self.cursor.invalid("nested too deeply").into()) } else { Ok(()) }
    }

    fn list(&mut self, items: &mut ColumnBuilder, inner: &mut Inner, field: &FieldRef, depth: usize) -> Result<(), Fault> {
        self.open(b'[', field, depth)?;
        let Inner::Items(inner) = inner else { unreachable!("made for a list") };
        self.cursor.at += 1;
        self.cursor.skip_space();
        if self.cursor.peek() == b']' {
            self.cursor.at += 1;
            return Ok(());
        }
        loop {
            self.field(items, inner, depth)?;
            self.cursor.skip_space();
            if !self.cursor.goes_on(b']')? {
                return Ok(());
            }
        }
    }

    /// An object as a map.
    fn map(
        &mut self,
        keys: &mut ColumnBuilder,
        values: &mut ColumnBuilder,
        inner: &mut Inner,
        field: &FieldRef,
        depth: usize,
    ) -> Result<(), Fault> {
        self.open(b'{', field, depth)?;
        let Inner::Items(inner) = inner else { unreachable!("made for a map") };
        let first = keys.len();
        self.cursor.at += 1;
        self.cursor.skip_space();
        if self.cursor.peek() == b'}' {
            self.cursor.at += 1;
            return Ok(());
        }
        loop {
            if self.cursor.peek() != b'"' {
                return Err(self.cursor.invalid("expected a string").into());
            }
            self.field(keys, &mut Inner::Plain, depth)?;
            self.cursor.skip_space();
            self.cursor.expect(b':', "expected ':'")?;
            self.cursor.skip_space();
            self.field(values, inner, depth)?;
            self.cursor.skip_space();
            if !self.cursor.goes_on(b'}')? {
                if keys.len() > first + 1 {
                    keep_last_of_equal_keys(keys, values, first);
                }
                return Ok(());
            }
        }
    }
}

/// Takes out the entries from number `first` on whose key comes again.
fn keep_last_of_equal_keys(keys: &mut ColumnBuilder, values: &mut ColumnBuilder, first: usize) {
    let entries = keys.len() - first;
    let Values::Utf8(texts) = &keys.values else { unreachable!("the keys of a map are text") };
    let key = |entry: usize| texts.value(first + entry);
    let is_last = |entry: usize| (entry + 1..entries).all(|later| key(later) != key(entry));
    let kept: Vec<bool> = if entries <= COMPARED_KEYS_MAX {
        if (0..entries).all(is_last) {
            return;
        }
        (0..entries).map(is_last).collect()
    } else {
        let mut later = HashSet::with_capacity(entries);
        let mut kept: Vec<bool> = (0..entries).rev().map(|entry| later.insert(key(entry))).collect();
        if later.len() == entries {
            return;
        }
        kept.reverse();
        kept
    };
    keys.retain(first, &kept);
    values.retain(first, &kept);
}

fn end_of(items: &ColumnBuilder) -> Result<i32, Fault> {
    i32::try_from(items.len()).map_err(|_| Fault::Misfit(Misfit::new("too many items for one batch")))
}

fn append_null(column: &mut ColumnBuilder, reason: &str) -> Result<(), Fault> {
    if !column.field.is_nullable() {
        return Err(within(column, Fault::Misfit(Misfit::new(reason))));
    }
    column.append_null();
    Ok(())
}

/// Adds the column's name in front of a misfit's path.
fn within(column: &ColumnBuilder, mut fault: Fault) -> Fault {
    if let Fault::Misfit(misfit) = &mut fault {
        misfit.path.insert(0, column.field.name().clone());
    }
    fault
}

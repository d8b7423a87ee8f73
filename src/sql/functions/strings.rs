//! Flink's functions over texts where DataFusion has none or another meaning.

use super::scalar::{Returns, of_any, overloaded};
use crate::error::{Checked, Fault};
use arrow_array::builder::{MapBuilder, MapFieldNames, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, BooleanArray, Int32Array, StringArray};
use arrow_cast::cast;
use arrow_schema::{DataType, Field};
use datafusion_common::{DataFusionError, Result};
use datafusion_expr::ScalarUDF;
use regex::{NoExpand, Regex};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    use DataType::{Boolean, Int32, Int64, Utf8};
    let functions = [
        of_any("split_index", 3..=3, Returns::Always(Utf8), split_index),
        overloaded("regexp_extract", vec![vec![Utf8, Utf8], vec![Utf8, Utf8, Int64]], Utf8, regexp_extract),
        overloaded("regexp_replace", vec![vec![Utf8, Utf8, Utf8]], Utf8, regexp_replace),
        // `rewrite` calls it for both spellings of SUBSTRING.
        overloaded("substr", vec![vec![Utf8, Int64], vec![Utf8, Int64, Int64]], Utf8, substr),
        overloaded("left", vec![vec![Utf8, Int64]], Utf8, |columns| Ok(cut(columns, first))),
        overloaded("right", vec![vec![Utf8, Int64]], Utf8, |columns| Ok(cut(columns, last))),
        of_any("concat", 1..=64, Returns::Always(Utf8), concat),
        overloaded("json_value", vec![vec![Utf8, Utf8]], Utf8, json_value),
        // `rewrite` turns the two-argument form into DataFusion's STRPOS.
        overloaded("locate", vec![vec![Utf8, Utf8, Int64]], Int32, locate),
        of_any("is_alpha", 1..=1, Returns::Always(Boolean), is_alpha),
        of_any("is_digit", 1..=1, Returns::Always(Boolean), is_digit),
        overloaded("parse_url", vec![vec![Utf8, Utf8], vec![Utf8, Utf8, Utf8]], Utf8, parse_url),
        // Before a cast to a whole number.
        overloaded("__whole_text", vec![vec![Utf8]], Utf8, whole_text),
        overloaded("str_to_map", vec![vec![Utf8], vec![Utf8, Utf8], vec![Utf8, Utf8, Utf8]], text_map(), str_to_map),
    ];
    functions.into_iter().map(Arc::new).collect()
}

/// `SPLIT_INDEX(text, separator, index from 0)`; the separator may be a character's code.
fn split_index(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let (texts, indices) = (cast(&columns[0], &DataType::Utf8)?, cast(&columns[2], &DataType::Int64)?);
    let separators = if columns[1].data_type().is_integer() {
        let codes = cast(&columns[1], &DataType::Int64)?;
        let chars = codes
            .as_primitive::<Int64Type>()
            .iter()
            .map(|code| code.and_then(|code| char::from_u32(u32::try_from(code).ok()?)).map(String::from));
        Arc::new(chars.collect::<StringArray>()) as ArrayRef
    } else {
        cast(&columns[1], &DataType::Utf8)?
    };
    let (texts, separators) = (texts.as_string::<i32>(), separators.as_string::<i32>());
    let indices = indices.as_primitive::<Int64Type>();
    let mut out = StringBuilder::with_capacity(texts.len(), texts.value_data().len() / 2);
    for row in 0..texts.len() {
        if texts.is_null(row) || separators.is_null(row) || indices.is_null(row) || indices.value(row) < 0 {
            out.append_null();
            continue;
        }
        out.append_option(part(texts.value(row), separators.value(row), indices.value(row) as usize));
    }
    Ok(Arc::new(out.finish()))
}

/// Flink drops no empty parts.
fn part<'a>(text: &'a str, separator: &str, index: usize) -> Option<&'a str> {
    match separator.as_bytes() {
        [] => None,
        // One byte is the usual case, and skipping over bytes is fast.
        [byte] => {
            let byte = *byte;
            text.as_bytes().split(|other| *other == byte).nth(index).and_then(|part| std::str::from_utf8(part).ok())
        }
        _ => text.split(separator).nth(index),
    }
}

/// `REGEXP_EXTRACT(text, expression [, group])`: NULL where nothing is found. An expression that can't be compiled refuses the row: Java might
/// know it.
fn regexp_extract(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let texts = columns[0].as_string::<i32>();
    let groups = columns.get(2).map(|column| column.as_primitive::<Int64Type>());
    let mut expressions = Regexes::new(columns, 1, "");
    let mut out = StringBuilder::with_capacity(texts.len(), texts.len() * 8);
    for row in 0..texts.len() {
        let group = groups.map_or(Some(0), |groups| groups.is_valid(row).then(|| groups.value(row)));
        let (false, Some(group)) = (texts.is_null(row), group) else {
            out.append_null();
            continue;
        };
        let found = expressions.at(row)?.and_then(|expression| expression.captures(texts.value(row)));
        out.append_option(found.and_then(|found| found.get(usize::try_from(group).ok()?).map(|text| text.as_str())));
    }
    Ok(Arc::new(out.finish()))
}

/// `REGEXP_REPLACE(text, expression, with)` replaces every match. In Flink `$1` and `\` stand for themselves in what replaces it.
fn regexp_replace(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let (texts, replacements) = (columns[0].as_string::<i32>(), columns[2].as_string::<i32>());
    let mut expressions = Regexes::new(columns, 1, "");
    let mut out = StringBuilder::with_capacity(texts.len(), texts.value_data().len());
    for row in 0..texts.len() {
        if texts.is_null(row) || replacements.is_null(row) {
            out.append_null();
            continue;
        }
        match expressions.at(row)? {
            Some(expression) => out.append_value(expression.replace_all(texts.value(row), NoExpand(replacements.value(row)))),
            None => out.append_null(),
        }
    }
    Ok(Arc::new(out.finish()))
}

/// An expression that is written out is checked before any row comes. Java knows more of them.
pub(super) fn check_expression(text: &str) -> Checked<()> {
    let hint = "lookaround and backreferences are not supported";
    Regex::new(text).map(drop).map_err(|_| Fault::new(format!("the regular expression '{text}' is not supported")).hint(hint))
}

/// `SUBSTRING(text, start [, length])`
fn substr(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let (texts, starts) = (columns[0].as_string::<i32>(), columns[1].as_primitive::<Int64Type>());
    let lengths = columns.get(2).map(|column| column.as_primitive::<Int64Type>());
    let mut out = StringBuilder::with_capacity(texts.len(), texts.len() * 8);
    for row in 0..texts.len() {
        let length = lengths.map_or(Some(i64::MAX), |lengths| lengths.is_valid(row).then(|| lengths.value(row)));
        match length {
            Some(length) if texts.is_valid(row) && starts.is_valid(row) => {
                out.append_option(substring(texts.value(row), starts.value(row), length));
            }
            _ => out.append_null(),
        }
    }
    Ok(Arc::new(out.finish()))
}

/// As Flink's `BinaryStringDataUtil.substringSQL`: 0 is the first character as 1 is, a negative start counts from the end, and a negative
/// length gives NULL.
fn substring(text: &str, start: i64, length: i64) -> Option<&str> {
    let length = usize::try_from(length).ok()?;
    let from_start = usize::try_from(start.unsigned_abs()).unwrap_or(usize::MAX);
    let rest = match start {
        // Nothing starts before the first character.
        ..0 if from_start > text.chars().count() => "",
        ..0 => last(text, from_start),
        _ => &text[end_of(text, from_start.saturating_sub(1))..],
    };
    Some(first(rest, length))
}

/// `LEFT(text, count)` and `RIGHT(text, count)`: nothing for a negative count.
fn cut(columns: &[ArrayRef], part: fn(&str, usize) -> &str) -> ArrayRef {
    let rows = columns[0].as_string::<i32>().iter().zip(columns[1].as_primitive::<Int64Type>().iter());
    let parts = rows.map(|(text, count)| Some(part(text?, usize::try_from(count?).unwrap_or(0))));
    Arc::new(parts.collect::<StringArray>())
}

fn first(text: &str, count: usize) -> &str {
    &text[..end_of(text, count)]
}

fn last(text: &str, count: usize) -> &str {
    &text[end_of(text, text.chars().count().saturating_sub(count))..]
}

/// The byte behind so many characters.
fn end_of(text: &str, count: usize) -> usize {
    // No text has more characters than bytes.
    if count >= text.len() { text.len() } else { text.char_indices().nth(count).map_or(text.len(), |(end, _)| end) }
}

/// `CONCAT(a, b, …)` is NULL if one is.
fn concat(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let texts = columns.iter().map(|column| Ok(cast(column, &DataType::Utf8)?)).collect::<Result<Vec<ArrayRef>>>()?;
    let texts: Vec<&StringArray> = texts.iter().map(|column| column.as_string::<i32>()).collect();
    let rows = texts.first().map_or(0, |column| column.len());
    let mut out = StringBuilder::with_capacity(rows, rows * 16);
    let mut text = String::new();
    for row in 0..rows {
        if texts.iter().any(|column| column.is_null(row)) {
            out.append_null();
            continue;
        }
        text.clear();
        texts.iter().for_each(|column| text.push_str(column.value(row)));
        out.append_value(&text);
    }
    Ok(Arc::new(out.finish()))
}

/// `JSON_VALUE(text, '$.a.b[0]')`: a scalar as text; NULL for objects, arrays and what is not there.
fn json_value(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let (texts, paths) = (columns[0].as_string::<i32>(), columns[1].as_string::<i32>());
    let mut steps: Option<(String, Vec<Step>)> = None;
    let mut out = StringBuilder::new();
    for row in 0..texts.len() {
        if texts.is_null(row) || paths.is_null(row) {
            out.append_null();
            continue;
        }
        if steps.as_ref().is_none_or(|(last, _)| last != paths.value(row)) {
            let path = paths.value(row);
            let parsed = parse_path(path).ok_or_else(|| DataFusionError::Execution(format!("{}: {PATH_HINT}", no_path(path))))?;
            steps = Some((path.to_owned(), parsed));
        }
        let document: Option<serde_json::Value> = serde_json::from_str(texts.value(row)).ok();
        let walked = steps.as_ref().and_then(|(_, steps)| steps.iter().try_fold(document.as_ref()?, |value, step| step.of(value)));
        match walked {
            Some(serde_json::Value::String(text)) => out.append_value(text),
            Some(value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => out.append_value(value.to_string()),
            _ => out.append_null(),
        }
    }
    Ok(Arc::new(out.finish()))
}

const PATH_HINT: &str = "write $.name, $['name'], $[0] one behind the other";

fn no_path(path: &str) -> String {
    format!("the JSON path '{path}' is not supported")
}

/// A path that is written out is checked before any row comes.
pub(super) fn check_path(path: &str) -> Checked<()> {
    parse_path(path).map(drop).ok_or_else(|| Fault::new(no_path(path)).hint(PATH_HINT))
}

enum Step {
    Name(String),
    Index(usize),
}

impl Step {
    fn of<'a>(&self, value: &'a serde_json::Value) -> Option<&'a serde_json::Value> {
        match self {
            Step::Name(name) => value.get(name),
            Step::Index(index) => value.get(index),
        }
    }
}

fn parse_path(path: &str) -> Option<Vec<Step>> {
    let path = path.trim();
    let mut rest = path.strip_prefix("lax ").unwrap_or(path).trim().strip_prefix('$')?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let (name, behind) = after.split_at(end);
            if name.is_empty() || name.contains('*') {
                return None;
            }
            steps.push(Step::Name(name.to_owned()));
            rest = behind;
        } else {
            let (inner, behind) = rest.strip_prefix('[')?.split_once(']')?;
            let name = inner.strip_prefix('\'').and_then(|name| name.strip_suffix('\''));
            steps.push(match name {
                Some(name) => Step::Name(name.to_owned()),
                None => Step::Index(inner.parse().ok()?),
            });
            rest = behind;
        }
    }
    Some(steps)
}

/// `LOCATE(part, whole, from)` counts characters from 1, and is 0 where nothing is found.
fn locate(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let (parts, wholes) = (columns[0].as_string::<i32>(), columns[1].as_string::<i32>());
    let rows = parts.iter().zip(wholes.iter()).zip(columns[2].as_primitive::<Int64Type>().iter());
    let places = rows.map(|((part, whole), from)| Some(place_in(whole?, part?, from?)));
    Ok(Arc::new(places.collect::<Int32Array>()))
}

/// No place is before the first one, and there Flink finds an empty part.
fn place_in(whole: &str, part: &str, from: i64) -> i32 {
    if part.is_empty() {
        return 1;
    }
    let skipped = usize::try_from(from.saturating_sub(1)).unwrap_or(0);
    let start = whole.char_indices().nth(skipped).map_or(whole.len(), |(start, _)| start);
    whole[start..].find(part).map_or(0, |found| whole[..start + found].chars().count() as i32 + 1)
}

/// Flink drops the fraction of a text that is cast to a whole number, Arrow's parser knows none.
fn whole_text(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let texts = columns[0].as_string::<i32>();
    if !texts.value_data().contains(&b'.') {
        return Ok(Arc::clone(&columns[0]));
    }
    Ok(Arc::new(texts.iter().map(|text| text.map(without_fraction)).collect::<StringArray>()))
}

/// As Flink's `BinaryStringDataUtil.toLong`: digits, or none, on both sides of the point. What is no number stays as it is.
fn without_fraction(text: &str) -> &str {
    let Some((whole, fraction)) = text.trim_matches(' ').split_once('.') else { return text };
    let digits = whole.strip_prefix(['+', '-']).unwrap_or(whole);
    match digits.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        true if digits.is_empty() => "0",
        true => whole,
        false => text,
    }
}

static LETTERS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\A\p{L}+\z").expect("a fixed expression"));
static DIGITS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\A\p{Nd}+\z").expect("a fixed expression"));

/// Never NULL: what is no text, is NULL or is empty is not of these characters.
fn consists_of(column: &ArrayRef, characters: &Regex) -> ArrayRef {
    let answers: BooleanArray = match column.as_string_opt::<i32>() {
        Some(texts) => texts.iter().map(|text| Some(text.is_some_and(|text| characters.is_match(text)))).collect(),
        None => std::iter::repeat_n(Some(false), column.len()).collect(),
    };
    Arc::new(answers)
}

/// `IS_ALPHA(value)`: a text of letters.
fn is_alpha(columns: &[ArrayRef]) -> Result<ArrayRef> {
    Ok(consists_of(&columns[0], &LETTERS))
}

/// `IS_DIGIT(value)`: a text of decimal digits, or a whole number.
fn is_digit(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let column = &columns[0];
    if column.data_type().is_integer() {
        return Ok(Arc::new((0..column.len()).map(|row| Some(column.is_valid(row))).collect::<BooleanArray>()));
    }
    Ok(consists_of(column, &DIGITS))
}

/// `PARSE_URL(text, part [, key of the query])`: NULL for what is no URL or has no such part.
fn parse_url(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let (urls, parts) = (columns[0].as_string::<i32>(), columns[1].as_string::<i32>());
    let keys = columns.get(2).map(|column| column.as_string::<i32>());
    let mut out = StringBuilder::with_capacity(urls.len(), urls.len() * 16);
    for row in 0..urls.len() {
        if urls.is_null(row) || parts.is_null(row) || keys.is_some_and(|keys| keys.is_null(row)) {
            out.append_null();
            continue;
        }
        let key = keys.map(|keys| keys.value(row));
        out.append_option(Url::parse(urls.value(row)).and_then(|url| url.part(parts.value(row), key)));
    }
    Ok(Arc::new(out.finish()))
}

/// The protocols that have a host and a path, of those that `java.net.URL` knows.
const PROTOCOLS: [&str; 4] = ["http", "https", "ftp", "file"];

/// `protocol://user_info@host:port/path?query#reference`, cut as `java.net.URL` does. Dots in the path stay.
struct Url<'a> {
    protocol: &'static str,
    authority: Option<&'a str>,
    user_info: Option<&'a str>,
    host: &'a str,
    /// Path and query.
    file: &'a str,
    reference: Option<&'a str>,
}

impl<'a> Url<'a> {
    fn parse(text: &'a str) -> Option<Url<'a>> {
        let text = text.trim();
        let (text, reference) = text.split_once('#').map_or((text, None), |(text, reference)| (text, Some(reference)));
        let (protocol, rest) = text.split_once(':')?;
        let protocol = PROTOCOLS.into_iter().find(|known| known.eq_ignore_ascii_case(protocol))?;
        let Some(rest) = rest.strip_prefix("//") else {
            return Some(Url { protocol, authority: None, user_info: None, host: "", file: rest, reference });
        };
        let (authority, file) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user_info, host) = match authority.split_once('@') {
            // Whose host it is can't be said.
            Some((_, host)) if host.contains('@') => (None, ""),
            Some((user_info, host)) => (Some(user_info), host),
            None => (None, authority),
        };
        let end = if host.starts_with('[') { host.find(']')? + 1 } else { host.find(':').unwrap_or(host.len()) };
        let (host, port) = host.split_at(end);
        if !matches!(port, "" | ":") {
            port.strip_prefix(':')?.parse::<u32>().ok()?;
        }
        Some(Url { protocol, authority: Some(authority), user_info, host, file, reference })
    }

    fn part(&self, part: &str, key: Option<&str>) -> Option<&'a str> {
        let (path, query) = self.file.split_once('?').map_or((self.file, None), |(path, query)| (path, Some(query)));
        match (part, key) {
            ("QUERY", Some(key)) => query?.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')),
            (_, Some(_)) => None,
            ("PROTOCOL", None) => Some(self.protocol),
            ("AUTHORITY", None) => self.authority,
            ("USERINFO", None) => self.user_info,
            ("HOST", None) => Some(self.host),
            ("FILE", None) => Some(self.file),
            ("PATH", None) => Some(path),
            ("QUERY", None) => query,
            ("REF", None) => self.reference,
            _ => None,
        }
    }
}

fn text_map() -> DataType {
    let (key, value) = (Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true));
    Field::new_map("", "entries", key, value, false, true).data_type().clone()
}

/// `STR_TO_MAP(text [, between pairs, between key and value])`, in the order of the keys. What has no value is NULL; of a key that comes twice
/// the last value counts.
fn str_to_map(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let texts = columns[0].as_string::<i32>();
    let (mut between_pairs, mut between_halves) = (Regexes::new(columns, 1, ","), Regexes::new(columns, 2, "="));
    let names = MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() };
    let mut out = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    for row in 0..texts.len() {
        let (Some(pairs), Some(halves), true) = (between_pairs.at(row)?, between_halves.at(row)?, texts.is_valid(row)) else {
            out.append(false)?;
            continue;
        };
        let mut parts: Vec<&str> = pairs.split(texts.value(row)).collect();
        // As Java's `split`, which drops empty parts at the end.
        while parts.last().is_some_and(|part| part.is_empty()) {
            parts.pop();
        }
        let entries = parts.into_iter().map(|part| {
            let mut halves = halves.splitn(part, 2);
            (halves.next().unwrap_or(part), halves.next())
        });
        for (key, value) in entries.collect::<BTreeMap<_, _>>() {
            out.keys().append_value(key);
            out.values().append_option(value);
        }
        out.append(true)?;
    }
    Ok(Arc::new(out.finish()))
}

/// Regular expressions row by row, compiled again only where they change. In Flink, too, a separator is one.
struct Regexes<'a> {
    texts: Option<&'a StringArray>,
    default: &'static str,
    last: Option<(String, Regex)>,
}

impl<'a> Regexes<'a> {
    fn new(columns: &'a [ArrayRef], index: usize, default: &'static str) -> Self {
        Regexes { texts: columns.get(index).map(|column| column.as_string::<i32>()), default, last: None }
    }

    fn at(&mut self, row: usize) -> Result<Option<&Regex>> {
        let text = match self.texts {
            None => self.default,
            Some(texts) if texts.is_null(row) => return Ok(None),
            Some(texts) => texts.value(row),
        };
        if self.last.as_ref().is_none_or(|(last, _)| last != text) {
            let regex = Regex::new(text).map_err(|error| DataFusionError::Execution(error.to_string()))?;
            self.last = Some((text.to_owned(), regex));
        }
        Ok(self.last.as_ref().map(|(_, regex)| regex))
    }
}

/// A separator that is written out is checked before any row comes.
pub(super) fn check_separator(text: &str) -> Checked<()> {
    let hint =
        "a separator is a regular expression: a backslash goes before . | $ * + ? ( ) [ ] { } ^ and \\ where they stand for themselves";
    Regex::new(text).map(drop).map_err(|_| Fault::new(format!("the separator '{text}' is no regular expression")).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A literal is refused before; one from a column refuses its row.
    #[test]
    fn an_expression_that_only_java_knows_is_no_null() {
        let column = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
        let lookahead = [column("ab"), column("a(?=b)"), column("-")];
        assert!(regexp_extract(&lookahead[..2]).is_err());
        assert!(regexp_replace(&lookahead).is_err());
    }
}

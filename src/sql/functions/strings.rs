//! Flink's functions over texts where DataFusion has none or another meaning.

use super::scalar::{Returns, of_any, overloaded};
use crate::error::{Checked, Fault};
use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, StringArray};
use arrow_cast::cast;
use arrow_schema::DataType;
use datafusion_common::{DataFusionError, Result};
use datafusion_expr::ScalarUDF;
use regex::Regex;
use std::sync::Arc;

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    use DataType::{Int64, Utf8};
    let functions = [
        of_any("split_index", 3..=3, Returns::Always(Utf8), split_index),
        overloaded("regexp_extract", vec![vec![Utf8, Utf8], vec![Utf8, Utf8, Int64]], Utf8, regexp_extract),
        of_any("concat", 1..=64, Returns::Always(Utf8), concat),
        overloaded("json_value", vec![vec![Utf8, Utf8]], Utf8, json_value),
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

/// `REGEXP_EXTRACT(text, expression [, group])`: NULL where nothing is found, and where the expression is wrong.
fn regexp_extract(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let texts = columns[0].as_string::<i32>();
    let expressions = columns[1].as_string::<i32>();
    let groups = columns.get(2).map(|column| column.as_primitive::<Int64Type>());
    let mut compiled: Option<(String, Option<Regex>)> = None;
    let mut out = StringBuilder::with_capacity(texts.len(), texts.len() * 8);
    for row in 0..texts.len() {
        let group = groups.map_or(Some(0), |groups| groups.is_valid(row).then(|| groups.value(row)));
        let (false, false, Some(group)) = (texts.is_null(row), expressions.is_null(row), group) else {
            out.append_null();
            continue;
        };
        let expression = expressions.value(row);
        if compiled.as_ref().is_none_or(|(last, _)| last != expression) {
            compiled = Some((expression.to_owned(), Regex::new(expression).ok()));
        }
        let regex = compiled.as_ref().and_then(|(_, regex)| regex.as_ref());
        let found = regex.and_then(|regex| regex.captures(texts.value(row)));
        out.append_option(found.and_then(|found| found.get(usize::try_from(group).ok()?).map(|text| text.as_str())));
    }
    Ok(Arc::new(out.finish()))
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

//! Rows of both engines in one notation, so that they can be compared.
//!
//! Both give rows as JSON objects. Numbers lose trailing zeros of their fraction, floating-point ones all beyond nine
//! digits (their sums depend on the order of the rows); timestamps are shown in one form with milliseconds; null is `NULL`.

use anyhow::{Context, Result};
use serde_json::Value;

/// A column of a result.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    /// Flink's type name.
    pub sql_type: String,
}

/// `k STRING, n BIGINT, price DECIMAL(10, 2)` as columns.
pub fn columns(text: &str) -> Vec<Column> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for letter in text.chars() {
        match letter {
            '(' | '<' => depth += 1,
            ')' | '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().expect("never empty").push(letter);
    }
    let column = |part: &String| {
        part.trim().split_once(' ').map(|(name, kind)| Column { name: name.trim_matches('`').into(), sql_type: kind.trim().into() })
    };
    parts.iter().filter_map(column).collect()
}

/// The texts of one JSON row.
pub fn texts(row: &Value, columns: &[Column]) -> Result<Vec<String>> {
    columns.iter().map(|column| text(&row[&column.name], &column.sql_type)).collect()
}

fn text(value: &Value, sql_type: &str) -> Result<String> {
    if value.is_null() {
        return Ok("NULL".into());
    }
    let plain = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    Ok(match sql_type.split('(').next().unwrap_or_default() {
        "DOUBLE" | "FLOAT" => {
            let number: f64 = plain.parse().with_context(|| format!("{plain} is no number"))?;
            let digits = format!("{number:.8e}");
            digits.parse::<f64>().map(|rounded| rounded.to_string())?
        }
        "DECIMAL" if plain.contains('.') => plain.trim_end_matches('0').trim_end_matches('.').to_string(),
        "TIMESTAMP" | "TIMESTAMP_LTZ" => timestamp(&plain),
        "STRING" if plain.is_empty() => "(empty)".into(),
        _ => plain,
    })
}

/// `2024-01-01 00:00:00.5`, `2024-01-01T00:00:00Z` … as `2024-01-01T00:00:00.500`.
fn timestamp(text: &str) -> String {
    let text = text.trim_end_matches('Z').replace(' ', "T");
    let (seconds, fraction) = text.split_once('.').unwrap_or((&text, ""));
    format!("{seconds}.{fraction:0<3}")
}

#[test]
fn rows_of_both_engines_look_the_same() -> Result<()> {
    let columns = columns("a DOUBLE, b DECIMAL(10, 2), c TIMESTAMP(3), d STRING, e BIGINT");
    assert_eq!(columns.len(), 5);
    let ours: Value = serde_json::from_str(r#"{"a": 0.30000000000000004, "b": 1.50, "c": "2024-01-01 00:00:00", "d": "", "e": null}"#)?;
    let theirs: Value = serde_json::from_str(r#"{"a": 0.3, "b": "1.5", "c": "2024-01-01T00:00:00.000", "d": ""}"#)?;
    assert_eq!(texts(&ours, &columns)?, texts(&theirs, &columns)?);
    assert_ne!(texts(&serde_json::json!({"a": 0.3001}), &columns)?, texts(&theirs, &columns)?);
    Ok(())
}

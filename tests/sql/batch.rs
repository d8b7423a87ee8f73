//! DataFusion as an engine of the SQL tests: the oracle. A plain batch over the same rows, with windows written as plain SQL.
//!
//! | streaming | batch |
//! |---|---|
//! | `TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), size))` | each row with the one window that `date_bin` says |
//! | `TABLE(HOP(TABLE t, DESCRIPTOR(ts), slide, size))` | each row joined with 0, 1 … size/slide − 1 slides, one window each |
//! | `t CROSS JOIN UNNEST(list) AS u(item)` | `(SELECT *, unnest(list) AS item FROM t)` |
//! | `TABLE(CUMULATE(TABLE t, DESCRIPTOR(ts), step, size))` | each row joined with 1, 2 … size/step steps, those windows that hold it |
//! | `TUMBLE(t, DESCRIPTOR(ts), size)`, `GROUP BY TUMBLE(ts, size)` | as the longer form |
//! | a function of Flink's | what [`FUNCTIONS`] says |

use super::Engine;
use super::fixtures::Fixture;
use super::rows::{Column, columns, texts};
use anyhow::{Context, Result, bail, ensure};
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::json::{ReaderBuilder, writer::LineDelimitedWriter};
use datafusion::prelude::{SessionConfig, SessionContext};
use regex::{Captures, Regex};
use serde_json::Value;
use std::sync::Arc;

pub struct Batch {
    context: SessionContext,
    runtime: tokio::runtime::Runtime,
}

impl Batch {
    pub fn new(fixtures: &[Fixture]) -> Result<Batch> {
        let mut config = SessionConfig::new().with_target_partitions(1);
        config.options_mut().sql_parser.enable_ident_normalization = false;
        config.options_mut().sql_parser.map_string_types_to_utf8view = false;
        let context = SessionContext::new_with_config(config);
        for fixture in fixtures {
            context.register_batch(fixture.name, table(fixture)?)?;
        }
        Ok(Batch { context, runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()? })
    }
}

impl Engine for Batch {
    fn name(&self) -> &'static str {
        "datafusion"
    }

    fn query(&mut self, sql: &str, sink_columns: &str) -> Result<Vec<Vec<String>>> {
        let columns = columns(sink_columns);
        ensure!(!columns.is_empty(), "a CREATE TABLE sink (…) comes before the first query");
        let plain = without_windows(&without_flinks_words(sql)?)?;
        let batches = self.runtime.block_on(async { self.context.sql(&plain).await?.collect().await }).with_context(|| plain.clone())?;
        let mut rows = Vec::new();
        for batch in batches {
            rows.extend(json_rows(&cast(&batch, &columns)?)?.iter().map(|row| texts(row, &columns)).collect::<Result<Vec<_>>>()?);
        }
        Ok(rows)
    }
}

/// The result in the sink's types and names, as `INSERT INTO` does it.
fn cast(batch: &RecordBatch, columns: &[Column]) -> Result<RecordBatch> {
    ensure!(batch.num_columns() == columns.len(), "{} columns for a sink of {}", batch.num_columns(), columns.len());
    let schema = schema(columns)?;
    let arrays = batch.columns().iter().zip(schema.fields()).map(|(array, field)| arrow::compute::cast(array, field.data_type()));
    Ok(RecordBatch::try_new(schema.clone(), arrays.collect::<Result<_, _>>()?)?)
}

fn json_rows(batch: &RecordBatch) -> Result<Vec<Value>> {
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    let text = String::from_utf8(writer.into_inner())?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn table(fixture: &Fixture) -> Result<RecordBatch> {
    let schema = schema(&fixture.columns)?;
    let mut decoder = ReaderBuilder::new(schema.clone()).with_batch_size(fixture.rows.len().max(1)).build_decoder()?;
    for row in &fixture.rows {
        decoder.decode(row.to_string().as_bytes())?;
    }
    Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(schema)))
}

fn schema(columns: &[Column]) -> Result<Arc<Schema>> {
    let fields: Result<Vec<Field>> =
        columns.iter().map(|column| Ok(Field::new(&column.name, arrow_type(&column.sql_type)?, true))).collect();
    Ok(Arc::new(Schema::new(fields?)))
}

fn arrow_type(sql_type: &str) -> Result<DataType> {
    if let Some(item) = sql_type.strip_prefix("ARRAY<").and_then(|rest| rest.strip_suffix('>')) {
        return Ok(DataType::List(Arc::new(Field::new("item", arrow_type(item)?, true))));
    }
    if let Some(numbers) = sql_type.strip_prefix("DECIMAL(").and_then(|rest| rest.strip_suffix(')')) {
        let (precision, scale) = numbers.split_once(',').unwrap_or((numbers, "0"));
        return Ok(DataType::Decimal128(precision.trim().parse()?, scale.trim().parse()?));
    }
    Ok(match sql_type {
        "BOOLEAN" => DataType::Boolean,
        "INT" => DataType::Int32,
        "BIGINT" => DataType::Int64,
        "DOUBLE" => DataType::Float64,
        "STRING" => DataType::Utf8,
        "DATE" => DataType::Date32,
        "TIMESTAMP(3)" => DataType::Timestamp(TimeUnit::Millisecond, None),
        other => bail!("the tests know no type {other}"),
    })
}

/// Flink's functions in DataFusion's words, as far as the files call them.
const FUNCTIONS: &[(&str, &str)] = &[
    (r"MOD\((\w+),\s*(\d+)\)", "($1 % $2)"),
    (r"DATE_FORMAT\((\w+), 'yyyy-MM-dd HH:mm'\)", "to_char($1, '%Y-%m-%d %H:%M')"),
    (r"SPLIT_INDEX\(([^()]+), '(.)', 1\)", "split_part($1, '$2', 2)"),
    (r"REGEXP_EXTRACT\((\w+), ('[^']*'), 1\)", "array_element(regexp_match($1, $2), 1)"),
    (r"TO_TIMESTAMP_LTZ\(([^(),]+), 3\)", "to_timestamp_millis($1)"),
    (r"GREATEST\((\w+), ([^()]+)\)", "CASE WHEN $1 >= $2 THEN $1 WHEN $1 < $2 THEN $2 END"),
    (r"LEAST\((\w+), ([^()]+)\)", "CASE WHEN $1 <= $2 THEN $1 WHEN $1 > $2 THEN $2 END"),
    (r"FROM_BASE64\(TO_BASE64\((\w+)\)\)", "$1"),
    (r"TO_BASE64\((\w+)\)", "encode($1, 'base64pad')"),
    (r"SHA2\((\w+), (\d+)\)", "encode(sha$2($1), 'hex')"),
    (r"HEX\(price\)", "upper(to_hex(price))"),
    (r"HEX\(channel\)", "upper(encode(channel, 'hex'))"),
    (r"LOCATE\(('[^']+'), (\w+), (\d+)\)", "CASE WHEN strpos(substr($2, $3), $1) = 0 THEN 0 ELSE strpos(substr($2, $3), $1) + $3 - 1 END"),
];

/// What DataFusion says in other words: functions, a list unnested beside its row, and a column that is named twice.
fn without_flinks_words(sql: &str) -> Result<String> {
    let mut plain = sql.to_string();
    for (flinks, datafusions) in FUNCTIONS {
        plain = Regex::new(flinks)?.replace_all(&plain, *datafusions).into_owned();
    }
    let twice = Regex::new(r"SELECT (\w+), (\w+) FROM")?;
    let plain = twice.replace_all(&plain, |found: &Captures<'_>| match found[1] == found[2] {
        true => format!("SELECT {0}, {0} AS again FROM", &found[1]),
        false => found[0].to_string(),
    });
    let unnest = Regex::new(r"FROM\s+(\w+|TABLE\(.*\)\))\s+CROSS JOIN UNNEST\((\w+)\) AS \w+\((\w+)\)")?;
    Ok(unnest.replace_all(&plain, "FROM (SELECT *, unnest($2) AS $3 FROM $1) AS unnested").into_owned())
}

/// Rewrites windowing table functions into plain subqueries.
fn without_windows(sql: &str) -> Result<String> {
    let interval = r"INTERVAL\s+'([0-9.]+)'\s+(SECOND|MINUTE|HOUR|DAY)S?";
    let arguments = format!(r"(?:TABLE\s+)?(\w+)\s*,\s*DESCRIPTOR\((\w+)\)\s*,\s*{interval}\s*(?:,\s*{interval}\s*)?");
    let mut plain = without_group_windows(sql)?;
    for (open, close) in [(r"TABLE\(\s*", r"\s*\)"), ("", "")] {
        let call = Regex::new(&format!(r"{open}(TUMBLE|HOP|CUMULATE)\(\s*{arguments}\){close}"))?;
        let mut failure = None;
        let replaced = call.replace_all(&plain, |found: &Captures<'_>| {
            plain_window(found).unwrap_or_else(|error| {
                failure = Some(error);
                String::new()
            })
        });
        let replaced = replaced.into_owned();
        if let Some(error) = failure {
            return Err(error);
        }
        plain = replaced;
    }
    Ok(plain)
}

/// The older spelling, `GROUP BY TUMBLE(…)`, as the table function.
fn without_group_windows(sql: &str) -> Result<String> {
    let bound = Regex::new(r"TUMBLE_(START|END)\([^()]*\)")?;
    let bounds = bound.replace_all(sql, |found: &Captures<'_>| format!("window_{}", found[1].to_lowercase()));
    let group = Regex::new(r"FROM\s+(\w+)\s+GROUP BY TUMBLE\((\w+),\s*(INTERVAL\s+'[0-9.]+'\s+\w+)\)")?;
    let table_function = "FROM TABLE(TUMBLE(TABLE $1, DESCRIPTOR($2), $3)) GROUP BY window_start, window_end";
    Ok(group.replace_all(&bounds, table_function).into_owned())
}

fn plain_window(found: &Captures<'_>) -> Result<String> {
    let milliseconds = |number: usize| -> Result<Option<i64>> {
        let (Some(number), Some(unit)) = (found.get(number), found.get(number + 1)) else { return Ok(None) };
        let unit = match unit.as_str() {
            "SECOND" => 1_000.0,
            "MINUTE" => 60_000.0,
            "HOUR" => 3_600_000.0,
            _ => 86_400_000.0,
        };
        Ok(Some((number.as_str().parse::<f64>()? * unit) as i64))
    };
    let (table, time) = (&found[2], &found[3]);
    let first = milliseconds(4)?.context("a window has a size")?;
    let second = milliseconds(6)?;
    let bin = |size: i64| format!("date_bin(INTERVAL '{size} milliseconds', {time}, TIMESTAMP '1970-01-01 00:00:00')");
    let window = |start: String, end: String, from: String, condition: String| {
        format!(
            "(SELECT *, window_end - INTERVAL '1 millisecond' AS window_time FROM (SELECT {table}.*, {start} AS window_start, {end} AS window_end \
             FROM {from}) AS windowed WHERE {condition})"
        )
    };
    let multiples = |range: std::ops::RangeInclusive<i64>, of: i64| {
        range.map(|number| format!("(INTERVAL '{} milliseconds')", number * of)).collect::<Vec<_>>().join(", ")
    };
    Ok(match (&found[1], second) {
        ("TUMBLE", None) => {
            window(bin(first), format!("{} + INTERVAL '{first} milliseconds'", bin(first)), table.to_string(), "true".into())
        }
        ("HOP", Some(size)) => {
            let start = format!("{} - n.i", bin(first));
            let from = format!("{table} CROSS JOIN (VALUES {}) AS n(i)", multiples(0..=(size + first - 1) / first - 1, first));
            window(start.clone(), format!("{start} + INTERVAL '{size} milliseconds'"), from, format!("{time} < window_end"))
        }
        ("CUMULATE", Some(size)) => {
            let from = format!("{table} CROSS JOIN (VALUES {}) AS n(i)", multiples(1..=size / first, first));
            let end = format!("{} + n.i", bin(size));
            window(bin(size), end, from, format!("{time} < window_end"))
        }
        (function, _) => bail!("{function} with these arguments"),
    })
}

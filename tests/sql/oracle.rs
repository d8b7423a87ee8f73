//! The oracle: every query of the `.slt` files, over random rows, answered by both engines and compared.

use super::batch::Batch;
use super::streaming::Streaming;
use super::{Engine, files, fixtures};
use anyhow::{Context, Result, ensure};
use sqllogictest::{DefaultColumnType, Record};
use streamshield_tests::support::broker::Broker;
use streamshield_tests::support::seed;

const ROWS: usize = 3_000;

/// A query with its sink.
struct Query {
    place: String,
    sql: String,
    sink_columns: String,
}

fn queries() -> Result<Vec<Query>> {
    let mut queries = Vec::new();
    for file in files()? {
        let mut sink_columns = String::new();
        let records: Vec<Record<DefaultColumnType>> = sqllogictest::parse_file(&file).map_err(|error| anyhow::anyhow!("{error}"))?;
        for record in records {
            match record {
                Record::Statement { sql, .. } => {
                    if let Some(columns) = sql.trim().strip_prefix("CREATE TABLE sink (").and_then(|rest| rest.strip_suffix(')')) {
                        sink_columns = columns.to_string();
                    }
                }
                Record::Query { sql, conditions, loc, .. } => {
                    ensure!(conditions.is_empty(), "{loc}: a query is one that both engines answer");
                    queries.push(Query { place: loc.to_string(), sql, sink_columns: sink_columns.clone() });
                }
                _ => {}
            }
        }
    }
    Ok(queries)
}

#[test]
fn random_rows_give_the_same_as_a_batch() -> Result<()> {
    let queries = queries()?;
    ensure!(queries.len() >= 20, "only {} queries found", queries.len());
    let seed = seed::seed();
    let fixtures = fixtures::random(seed, ROWS);
    let broker = Broker::embedded()?;
    Streaming::load(&broker, "random", &fixtures)?;
    let (mut streaming, mut batch) = (Streaming::new(&broker, "random", &fixtures)?, Batch::new(&fixtures)?);
    let mut failures = Vec::new();
    for query in &queries {
        let mut theirs = batch.query(&query.sql, &query.sink_columns).with_context(|| query.place.clone())?;
        match streaming.query(&query.sql, &query.sink_columns) {
            Err(error) => failures.push(format!("{}: {error:#}", query.place)),
            Ok(mut ours) => {
                theirs.sort();
                ours.sort();
                failures.extend(difference(&ours, &theirs).map(|what| format!("{}: {what}", query.place)));
            }
        }
    }
    ensure!(failures.is_empty(), "{} of {} queries differ (seed {seed}):\n{}", failures.len(), queries.len(), failures.join("\n"));
    Ok(())
}

/// The first rows that only one of them has.
fn difference(ours: &[Vec<String>], theirs: &[Vec<String>]) -> Option<String> {
    let same = ours.len() == theirs.len()
        && ours.iter().zip(theirs).all(|(our, their)| our.len() == their.len() && our.iter().zip(their).all(|(a, b)| is_close(a, b)));
    if same {
        return None;
    }
    let only = |one: &[Vec<String>], other: &[Vec<String>]| {
        one.iter().filter(|row| !other.contains(row)).take(3).map(|row| row.join(" ")).collect::<Vec<_>>()
    };
    Some(format!(
        "{} rows instead of {}; only ours {:?}, only the batch's {:?}",
        ours.len(),
        theirs.len(),
        only(ours, theirs),
        only(theirs, ours)
    ))
}

/// Equal, or numbers with a fraction that differ by rounding only.
fn is_close(a: &str, b: &str) -> bool {
    let fraction = |text: &str| text.contains(['.', 'e']).then(|| text.parse::<f64>().ok()).flatten();
    a == b || matches!((fraction(a), fraction(b)), (Some(a), Some(b)) if (a - b).abs() <= 1e-7 * a.abs().max(b.abs()))
}

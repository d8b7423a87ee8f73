//! The tables that the queries read, as JSON rows: a few by hand for the `.slt` files, thousands by chance for the oracle.

use super::rows::{Column, columns};
use anyhow::{Context, Result};
use rand::Rng;
use serde_json::{Value, json};
use streamshield_tests::support::bids::START_MS;
use streamshield_tests::support::figures::root;
use streamshield_tests::support::seed::generator;
use streamshield_workload::time::time_text;

/// A table and its rows.
#[derive(Clone)]
pub struct Fixture {
    pub name: &'static str,
    pub columns: Vec<Column>,
    /// Column and delay.
    pub watermark: &'static str,
    pub rows: Vec<Value>,
}

const BID: &str = "auction BIGINT, bidder BIGINT, price BIGINT, cost DECIMAL(10, 2), rating DOUBLE, channel STRING, ok BOOLEAN, \
                   tags ARRAY<STRING>, day DATE, ts TIMESTAMP(3)";
const PERSON: &str = "id BIGINT, name STRING, city STRING, ts TIMESTAMP(3)";
/// No row of a fixture is later than this.
const WATERMARK: &str = "WATERMARK FOR ts AS ts - INTERVAL '5' SECOND";

fn fixture(name: &'static str, columns_text: &str, rows: Vec<Value>) -> Fixture {
    Fixture { name, columns: columns(columns_text), watermark: WATERMARK, rows }
}

impl Fixture {
    /// The columns as `CREATE TABLE` wants them.
    pub fn ddl(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| format!("`{}` {}", column.name, column.sql_type)).collect();
        format!("{}, {}", columns.join(", "), self.watermark)
    }
}

/// The rows of `tests/sql/data/NAME.jsonl`.
pub fn from_files() -> Result<Vec<Fixture>> {
    let read = |name: &str| -> Result<Vec<Value>> {
        let path = root().join("tests").join("sql").join("data").join(format!("{name}.jsonl"));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        text.lines().filter(|line| !line.trim().is_empty()).map(|line| Ok(serde_json::from_str(line)?)).collect()
    };
    Ok(vec![fixture("bid", BID, read("bid")?), fixture("person", PERSON, read("person")?)])
}

/// Random rows, in event time that is less out of order than the watermark allows, with nulls.
pub fn random(seed: u64, rows: usize) -> Vec<Fixture> {
    let mut random = generator(seed);
    let time = |index: usize, random: &mut rand_chacha::ChaCha8Rng| time_text(START_MS + index as i64 * 37 + random.random_range(0..4_000));
    let channels = ["apple", "google", "Baidu", "", "ünïcode ☂"];
    let mut bids = Vec::with_capacity(rows);
    for index in 0..rows {
        let nullable =
            |random: &mut rand_chacha::ChaCha8Rng, value: Value| if random.random_range(0..10) == 0 { Value::Null } else { value };
        let price = json!(random.random_range(-1_000_i64..100_000));
        let cost = json!(format!("{}.{:02}", random.random_range(-500..5_000), random.random_range(0..100)));
        let rating = json!(random.random_range(-1.0..5.0_f64));
        let channel = json!(channels[random.random_range(0..channels.len())]);
        let ok = json!(random.random_bool(0.5));
        let tags: Vec<&str> = (0..random.random_range(0..4)).map(|_| ["a", "b", "c"][random.random_range(0..3)]).collect();
        let day = json!(format!("2024-01-{:02}", random.random_range(1..29)));
        let ts = time(index, &mut random);
        bids.push(json!({
            "auction": random.random_range(1..40), "bidder": random.random_range(1..15), "price": nullable(&mut random, price),
            "cost": nullable(&mut random, cost), "rating": nullable(&mut random, rating), "channel": nullable(&mut random, channel),
            "ok": nullable(&mut random, ok), "tags": tags, "day": nullable(&mut random, day), "ts": ts,
        }));
    }
    let people = (0..rows / 4)
        .map(|index| {
            let city = ["Berlin", "Oslo", "Lima"][random.random_range(0..3)];
            json!({"id": index, "name": format!("p{index}"), "city": city, "ts": time(index * 4, &mut random)})
        })
        .collect();
    vec![fixture("bid", BID, bids), fixture("person", PERSON, people)]
}

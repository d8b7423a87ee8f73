//! From kills to figures: `target/bench/failover.json`, one entry per series. A series that is measured again replaces its entry, so that
//! tiers can be measured one by one.

use super::Series;
use super::kills::Kill;
use anyhow::Result;
use comfy_table::{Cell, CellAlignment, Table};
use serde_json::{Value, json};
use streamshield_tests::load::verify::Verdict;
use streamshield_tests::support::figures::{self, quantile, quantiles};

const FILE: &str = "failover.json";

pub fn title(series: &Series) -> String {
    match (series.tier, series.session_timeout_ms) {
        (Some(tier), _) if series.state_bytes > 0 => format!("tier {tier}, {} MB of state", series.state_bytes / 1_000_000),
        (Some(tier), _) => format!("tier {tier}"),
        (None, timeout) => format!("Kafka Streams, session.timeout.ms {}", timeout.unwrap_or_default()),
    }
}

/// One kill for the terminal.
pub fn line(kill: &Kill) -> String {
    let phases = kill.phases.map_or("phases not reported".into(), |phases| {
        phases
            .named()
            .iter()
            .map(|(name, ms)| format!("{name} {}", ms.map_or("?".into(), |ms| ms.to_string())))
            .collect::<Vec<_>>()
            .join(", ")
    });
    format!(
        "kill {:>3} of {}: gap {:.0} ms ({}), fresh {:.0} ms, others {}; {phases}",
        kill.number + 1,
        kill.victim,
        kill.gap_ms(),
        kill.gaps_ms.iter().map(|(region, gap)| format!("{region} {gap:.0}")).collect::<Vec<_>>().join(", "),
        kill.fresh_ms,
        kill.others_ms.map_or("–".into(), |ms| format!("{ms:.0} ms")),
    )
}

pub fn summary(series: &Series, kills: &[Kill], verdict: &Verdict) -> Value {
    let of = |figure: &dyn Fn(&Kill) -> f64| -> Vec<f64> { kills.iter().map(figure).collect() };
    let gaps = of(&Kill::gap_ms);
    let mut phases = serde_json::Map::new();
    for index in 0..5 {
        let named: Vec<_> = kills.iter().filter_map(|kill| Some(kill.phases?.named()[index])).collect();
        let samples: Vec<f64> = named.iter().filter_map(|(_, ms)| ms.map(|ms| ms as f64)).collect();
        if let Some((name, _)) = named.first() {
            phases.insert((*name).into(), quantiles(&samples));
        }
    }
    json!({
        "engine": series.engine, "tier": series.tier, "state_bytes": series.state_bytes, "session_timeout_ms": series.session_timeout_ms,
        "n": gaps.len(), "p50_ms": quantile(&gaps, 0.5), "p95_ms": quantile(&gaps, 0.95), "p99_ms": quantile(&gaps, 0.99),
        "max_ms": quantile(&gaps, 1.0), "fresh": quantiles(&of(&|kill| kill.fresh_ms)), "others": quantiles(&kills.iter().filter_map(|kill| kill.others_ms).collect::<Vec<_>>()),
        "phases": phases, "lost": verdict.lost, "doubled": verdict.doubled + verdict.foreign, "wrong": verdict.wrong,
        "records": verdict.records, "rows": verdict.rows, "gaps_ms": gaps,
    })
}

fn entries() -> Vec<Value> {
    let path = figures::root().join("target").join("bench").join(FILE);
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    value["series"].as_array().cloned().unwrap_or_default()
}

/// Puts a series into the file.
pub fn add(value: &Value) -> Result<()> {
    let key = |entry: &Value| ["engine", "tier", "state_bytes", "session_timeout_ms"].map(|field| entry[field].clone());
    let mut entries = entries();
    entries.retain(|entry| key(entry) != key(value));
    entries.push(value.clone());
    entries.sort_by_key(|entry| (entry["engine"] == "streams", entry["tier"].as_u64(), entry["state_bytes"].as_u64()));
    let definition = "gap: right before SIGKILL to the first record, read committed, of an affected output partition that was made by its new owner; worst \
                      partition of each kill. fresh: until all partitions have output of windows that ended after the kill. CLOCK_MONOTONIC of one host, \
                      open-loop load, windows of 100 ms, commits every 100 ms";
    figures::write(FILE, &json!({ "definition": definition, "series": entries }))?;
    Ok(())
}

/// The table of all series in the file.
pub fn print() -> Result<()> {
    let mut table = Table::new();
    let phases = ["detect", "fence", "catch_up", "confirm", "first_commit"];
    let header = ["series", "n", "gap p50", "p99", "max", "fresh p50", "p99"].into_iter().chain(phases).chain(["lost", "doubled"]);
    table.set_header(header);
    for entry in entries() {
        let number = |value: &Value| value.as_f64().map_or("–".into(), |number| format!("{number:.0}"));
        let mut series = match entry["tier"].as_u64() {
            Some(tier) => format!("tier {tier}"),
            None => format!("Kafka Streams, {} ms", number(&entry["session_timeout_ms"])),
        };
        if let Some(bytes) = entry["state_bytes"].as_u64().filter(|bytes| *bytes > 0) {
            series += &format!(", {} MB", bytes / 1_000_000);
        }
        let mut cells = vec![series];
        cells.extend(["n", "p50_ms", "p99_ms", "max_ms"].map(|field| number(&entry[field])));
        cells.extend(["p50_ms", "p99_ms"].map(|field| number(&entry["fresh"][field])));
        cells.extend(
            phases.map(|phase| format!("{}/{}", number(&entry["phases"][phase]["p50_ms"]), number(&entry["phases"][phase]["p99_ms"]))),
        );
        cells.extend(["lost", "doubled"].map(|field| number(&entry[field])));
        let aligned = cells
            .into_iter()
            .enumerate()
            .map(|(column, text)| Cell::new(text).set_alignment(if column == 0 { CellAlignment::Left } else { CellAlignment::Right }));
        table.add_row(aligned);
    }
    println!("{table}\nmilliseconds; phases as p50/p99 of the region with the longest gap");
    Ok(())
}

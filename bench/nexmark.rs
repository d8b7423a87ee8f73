//! Nexmark q0, q1, q2 and q12 (as event time) over JSON bids in Kafka, into Kafka, exactly once; ours and Apache Flink's.
//!
//! Both read the same topic with one process, run the same SQL and must write equally many rows. Events per CPU-second count all
//! of the process, its start included. What an empty run takes is measured too and given beside it, since a JVM's start weighs on short runs.

use crate::engines::{Engine, prepare_flink};
use crate::{input, profile};
use anyhow::{Context, Result, ensure};
use comfy_table::{Cell, CellAlignment, Table};
use serde_json::{Value, json};
use std::path::Path;
use streamshield_tests::support::client::{count, create_topic, delete_topic};
use streamshield_tests::support::figures;

#[derive(clap::Args)]
pub struct Options {
    #[arg(long, default_value_t = 5_000_000)]
    events: u64,
    /// Only these.
    #[arg(long, value_delimiter = ',', default_value = "q0,q1,q2,q12")]
    queries: Vec<String>,
    /// Without Apache Flink, or with it alone.
    #[arg(long, value_delimiter = ',', default_value = "streamshield,flink")]
    engines: Vec<String>,
    /// Also say what our processor time is spent on, in runs of their own with `perf`.
    #[arg(long)]
    profile: bool,
}

pub struct Query {
    pub name: &'static str,
    sink_columns: &'static str,
    select: &'static str,
}

const QUERIES: [Query; 4] = [
    Query {
        name: "q0",
        sink_columns: "auction BIGINT, bidder BIGINT, price BIGINT, `dateTime` TIMESTAMP(3), extra STRING",
        select: "SELECT auction, bidder, price, `dateTime`, extra FROM bid",
    },
    Query {
        name: "q1",
        sink_columns: "auction BIGINT, bidder BIGINT, price DECIMAL(23, 3), `dateTime` TIMESTAMP(3), extra STRING",
        select: "SELECT auction, bidder, 0.908 * price AS price, `dateTime`, extra FROM bid",
    },
    Query {
        name: "q2",
        sink_columns: "auction BIGINT, price BIGINT",
        select: "SELECT auction, price FROM bid WHERE MOD(auction, 123) = 0",
    },
    Query {
        name: "q12",
        sink_columns: "bidder BIGINT, bid_count BIGINT, starttime TIMESTAMP(3), endtime TIMESTAMP(3)",
        select: "SELECT bidder, COUNT(*) AS bid_count, window_start AS starttime, window_end AS endtime \
                 FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '10' SECOND)) GROUP BY bidder, window_start, window_end",
    },
];

const BID_COLUMNS: &str = "auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, `dateTime` TIMESTAMP(3), extra STRING, \
                           WATERMARK FOR `dateTime` AS `dateTime` - INTERVAL '4' SECOND";

/// One measured run.
struct Figure {
    query: &'static str,
    engine: Engine,
    cpu_seconds: f64,
    wall_seconds: f64,
    peak_rss_bytes: u64,
    rows: u64,
}

pub fn run(servers: &str, options: &Options) -> Result<()> {
    let engines: Vec<Engine> = [Engine::Flink, Engine::Streamshield]
        .into_iter()
        .filter(|engine| options.engines.iter().any(|name| name == engine.name()))
        .collect();
    ensure!(!engines.is_empty(), "--engines: streamshield, flink");
    if engines.contains(&Engine::Flink) {
        prepare_flink()?;
    }
    let folder = tempfile::tempdir()?;
    let unique = std::process::id();
    let (bids, nothing) = (format!("bids-{unique}"), format!("no-bids-{unique}"));
    input::fill_bids(servers, &bids, options.events)?;
    input::fill_bids(servers, &nothing, 0)?;
    let mut figures = Vec::new();
    let mut starts = Vec::new();
    for &engine in &engines {
        let start = measure(servers, engine, &QUERIES[0], &nothing, folder.path())?;
        println!("{}: an empty run takes {:.2} CPU-seconds", engine.name(), start.cpu_seconds);
        starts.push((engine, start.cpu_seconds));
    }
    let queries: Vec<&Query> = QUERIES.iter().filter(|query| options.queries.iter().any(|name| name == query.name)).collect();
    for query in &queries {
        for &engine in &engines {
            let figure = measure(servers, engine, query, &bids, folder.path())?;
            println!(
                "{} {}: {} rows, {:.2} CPU-seconds, {:.1} s",
                query.name,
                engine.name(),
                figure.rows,
                figure.cpu_seconds,
                figure.wall_seconds
            );
            figures.push(figure);
        }
        let rows: Vec<u64> = figures.iter().filter(|figure| figure.query == query.name).map(|figure| figure.rows).collect();
        ensure!(rows.windows(2).all(|pair| pair[0] == pair[1]) && rows[0] > 0, "{}: the engines disagree, rows {rows:?}", query.name);
    }
    report(options.events, &figures, &starts)?;
    if options.profile {
        profile::run(servers, &queries, &bids, folder.path())?;
    }
    delete_topic(servers, &bids)
}

fn measure(servers: &str, engine: Engine, query: &Query, topic: &str, folder: &Path) -> Result<Figure> {
    with_sink(servers, query, engine, topic, |name, sql| {
        let ended = engine.run(servers, name, sql, folder).with_context(|| name.to_string())?;
        Ok(Figure {
            query: query.name,
            engine,
            cpu_seconds: ended.cpu_seconds,
            wall_seconds: ended.wall_seconds,
            peak_rss_bytes: ended.peak_rss_bytes,
            rows: count(servers, &sink_of(name))?,
        })
    })
}

fn sink_of(name: &str) -> String {
    format!("{name}-out")
}

/// Runs something with the name and the SQL of a job that has an empty topic for its output. The topic goes at once, since the disk may
/// be small: eight outputs of all events are several gigabytes.
pub fn with_sink<T>(servers: &str, query: &Query, engine: Engine, topic: &str, run: impl FnOnce(&str, &str) -> Result<T>) -> Result<T> {
    let name = format!("{}-{}-{topic}", query.name, engine.name());
    let sink = sink_of(&name);
    create_topic(servers, &sink, input::PARTITIONS)?;
    let outcome = run(&name, &sql(servers, engine, query, topic, &sink));
    delete_topic(servers, &sink)?;
    outcome
}

fn sql(servers: &str, engine: Engine, query: &Query, topic: &str, sink: &str) -> String {
    let table = |name: &str, columns: &str, options: Vec<(String, String)>| {
        let options: Vec<String> = options.iter().map(|(key, value)| format!("'{key}' = '{value}'")).collect();
        format!("CREATE TABLE {name} ({columns}) WITH ({});\n", options.join(", "))
    };
    let kafka = |topic: &str, sink_prefix: Option<&str>| {
        let mut options = vec![("connector".into(), "kafka".into()), ("topic".into(), topic.to_string()), ("format".into(), "json".into())];
        options.extend(engine.table_options(servers, sink_prefix));
        options
    };
    let mut source = kafka(topic, None);
    source.push(("scan.startup.mode".into(), "earliest-offset".into()));
    source.push(("scan.bounded.mode".into(), "latest-offset".into()));
    table("bid", BID_COLUMNS, source)
        + &table("sink", query.sink_columns, kafka(sink, Some(sink)))
        + "INSERT INTO sink "
        + query.select
        + ";\n"
}

fn report(events: u64, figures: &[Figure], starts: &[(Engine, f64)]) -> Result<()> {
    let start_of = |engine: Engine| starts.iter().find(|(of, _)| *of == engine).map_or(0.0, |(_, seconds)| *seconds);
    let mut table = Table::new();
    table.set_header(["query", "engine", "events/CPU-s", "× Flink", "× Flink without start", "CPU s", "wall s", "peak RSS MiB", "rows"]);
    let mut values: Vec<Value> = Vec::new();
    for figure in figures {
        let flink = figures.iter().find(|other| other.query == figure.query && other.engine == Engine::Flink);
        let ratio = flink.map(|flink| flink.cpu_seconds / figure.cpu_seconds);
        let working = |figure: &Figure| (figure.cpu_seconds - start_of(figure.engine)).max(0.01);
        let ratio_without_start = flink.map(|flink| working(flink) / working(figure));
        let per_cpu_second = events as f64 / figure.cpu_seconds;
        let factor = |ratio: Option<f64>| ratio.map_or("–".to_string(), |ratio| format!("{ratio:.2}"));
        let cells = [
            figure.query.to_string(),
            figure.engine.name().to_string(),
            format!("{per_cpu_second:.0}"),
            factor(ratio),
            factor(ratio_without_start),
            format!("{:.2}", figure.cpu_seconds),
            format!("{:.1}", figure.wall_seconds),
            format!("{}", figure.peak_rss_bytes >> 20),
            figure.rows.to_string(),
        ];
        let numbers = cells.into_iter().enumerate().map(|(column, text)| {
            let alignment = if column < 2 { CellAlignment::Left } else { CellAlignment::Right };
            Cell::new(text).set_alignment(alignment)
        });
        table.add_row(numbers);
        values.push(json!({
            "query": figure.query, "engine": figure.engine.name(), "events": events, "cpu_seconds": figure.cpu_seconds,
            "events_per_cpu_second": per_cpu_second, "wall_seconds": figure.wall_seconds, "peak_rss_bytes": figure.peak_rss_bytes,
            "ratio_to_flink": ratio, "rows": figure.rows, "start_cpu_seconds": start_of(figure.engine),
            "events_per_cpu_second_without_start": events as f64 / working(figure), "ratio_to_flink_without_start": ratio_without_start,
        }));
    }
    println!("{table}");
    figures::write("nexmark.json", &Value::Array(values))?;
    Ok(())
}

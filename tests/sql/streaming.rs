//! streamshield as an engine of the SQL tests: input topics on the embedded broker, one bounded job of the real binary per query.

use super::Engine;
use super::fixtures::Fixture;
use super::rows::{columns, texts};
use anyhow::{Result, ensure};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use streamshield_tests::support::broker::Broker;
use streamshield_tests::support::client::{Input, create_topic, read_json};
use streamshield_tests::support::job::{BOUNDED, Job, kafka_table};
use streamshield_tests::support::streamshield::Runner;

/// Rows are spread over so many partitions by their number, so that queries meet several regions.
const PARTITIONS: i32 = 3;
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Streaming {
    servers: String,
    prefix: String,
    tables: String,
    folder: tempfile::TempDir,
}

static QUERIES: AtomicU32 = AtomicU32::new(0);

impl Streaming {
    /// Fills the input topics, once per broker and prefix.
    pub fn load(broker: &Broker, prefix: &str, fixtures: &[Fixture]) -> Result<()> {
        let servers = broker.bootstrap_servers();
        let input = Input::new(&servers)?;
        for fixture in fixtures {
            let topic = format!("{prefix}-{}", fixture.name);
            create_topic(&servers, &topic, PARTITIONS)?;
            for (number, row) in fixture.rows.iter().enumerate() {
                input.send(&topic, Some(number as i32 % PARTITIONS), None, Some(row.to_string().as_bytes()))?;
            }
        }
        input.flush()
    }

    pub fn new(broker: &Broker, prefix: &str, fixtures: &[Fixture]) -> Result<Streaming> {
        let table = |fixture: &Fixture| kafka_table(fixture.name, &fixture.ddl(), &format!("{prefix}-{}", fixture.name), &[BOUNDED]);
        Ok(Streaming {
            servers: broker.bootstrap_servers(),
            prefix: prefix.to_string(),
            tables: fixtures.iter().map(table).collect(),
            folder: tempfile::tempdir()?,
        })
    }
}

impl Engine for Streaming {
    fn name(&self) -> &'static str {
        "streamshield"
    }

    fn query(&mut self, sql: &str, sink_columns: &str) -> Result<Vec<Vec<String>>> {
        ensure!(!sink_columns.is_empty(), "a CREATE TABLE sink (…) comes before the first query");
        let name = format!("{}-q{}", self.prefix, QUERIES.fetch_add(1, Ordering::Relaxed));
        let sink = format!("{name}-sink");
        create_topic(&self.servers, &sink, 2)?;
        let text = format!("{}{}INSERT INTO sink {sql};", self.tables, kafka_table("sink", sink_columns, &sink, &[]));
        // Two partitions in exchanges, two threads: rows of one key meet, others don't.
        let job = Job::new(&name, &self.servers, text).set("parallelism", 2).set("slots", 2);
        Runner::new(self.folder.path()).finish(&job, QUERY_TIMEOUT)?;
        let columns = columns(sink_columns);
        read_json(&self.servers, &sink)?.iter().map(|row| texts(row, &columns)).collect()
    }
}

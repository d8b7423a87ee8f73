//! The load, its topics, and the job over it.
//!
//! | output | the job's part of it | what it proves |
//! |---|---|---|
//! | `passed`, by key | every row that can be decoded, as it is | per key 1..n without gap, repeat or disorder; latency |
//! | `windows`, partition `p` by region `p` alone | exchange, then `COUNT(*)`, `SUM(v)` per key and window | state: each group once, with the right figures; gaps by region |
//! | `transfers`, partition `p` by source region `p` alone | two rows of one step: `−v` from one account, `+v` to another | nobody ever sees a total other than 0; balances |
//! | `markers`, in turn to all partitions | a row for each partition, in one transaction | a transaction is visible in all partitions or in none |
//! | `NAME-dead-letter`, `NAME-late` | | what came in = what went out + dead letters + late rows |
//!
//! Each `INSERT` reads the input by a stage of its own, so a record that is no row gives a dead letter per such stage.
//!
//! **A record that claims to be ten years ahead** would close all windows for good: nothing in the job file keeps it from that, the table has to say it. Here
//! its event time is NULL unless its watermark is at most a minute ahead of its own message's timestamp, and a row without event time is a bad record for
//! whoever looks at event time. The message's timestamp is in the log, so this holds in a replay as well; the worker's clock would not do.
//!
//! No idle timeout is set: a partition without records holds the windows open, so that no record of the schedule can become late after an outage, and the
//! right output does not depend on when records were read.

use crate::checks::ControlFold;
use crate::client::{INPUT_MESSAGE_BYTES, NewTopicSpec, create_topics};
use crate::error::WorkloadError;
use crate::feeder::{self, Numbered, Running, Sent};
use crate::findings::Findings;
use crate::observer::{Observation, Observer};
use crate::oracle;
use crate::payload::END_KEY;
use crate::schedule::Settings;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Topics of a load and of its job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topics {
    pub input: String,
    pub passed: String,
    pub windows: String,
    pub transfers: String,
    pub markers: String,
    /// The job creates these two.
    pub dead_letters: String,
    pub late: String,
}

impl Topics {
    pub fn new(name: &str) -> Topics {
        Topics {
            input: format!("{name}.input"),
            passed: format!("{name}.passed"),
            windows: format!("{name}.windows"),
            transfers: format!("{name}.transfers"),
            markers: format!("{name}.markers"),
            dead_letters: format!("{name}-dead-letter"),
            late: format!("{name}-late"),
        }
    }

    /// Those that the job writes rows to.
    pub fn outputs(&self) -> [&str; 4] {
        [&self.passed, &self.windows, &self.transfers, &self.markers]
    }
}

/// A load: name of the job and prefix of its topics, seed, size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    pub name: String,
    pub seed: u64,
    pub settings: Settings,
}

impl Workload {
    pub fn new(name: impl Into<String>, seed: u64, settings: Settings) -> Result<Workload, WorkloadError> {
        match settings.problem() {
            Some(problem) => Err(WorkloadError::Settings(problem)),
            None => Ok(Workload { name: name.into(), seed, settings }),
        }
    }

    pub fn topics(&self) -> Topics {
        Topics::new(&self.name)
    }

    /// Creates the input and the outputs; they must not exist.
    pub fn create_topics(&self, servers: &str) -> Result<(), WorkloadError> {
        let Settings { partitions, replication_factor, .. } = self.settings;
        let topics = self.topics();
        let spec = |name: &str, extra: Option<(&'static str, String)>| NewTopicSpec {
            name: name.to_string(),
            partitions,
            replication_factor,
            configs: [("retention.ms", "-1".to_string())].into_iter().chain(extra).collect(),
        };
        let mut specs = vec![spec(&topics.input, Some(("max.message.bytes", INPUT_MESSAGE_BYTES.to_string())))];
        specs.extend(topics.outputs().map(|name| spec(name, None)));
        create_topics(servers, &specs)
    }

    /// The job's statements.
    pub fn sql(&self) -> String {
        let topics = self.topics();
        let window = seconds(self.settings.window_ms);
        format!(
            "CREATE TABLE input (
  k STRING, n BIGINT, seq BIGINT, v BIGINT, due_ms BIGINT, event_ms BIGINT, wm_ms BIGINT,
  legs ARRAY<ROW<account STRING, amount BIGINT>>, marker ARRAY<INT>,
  written TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
  ts AS CASE WHEN k = '{END_KEY}' OR TO_TIMESTAMP_LTZ(wm_ms, 3) <= written + INTERVAL '1' MINUTE THEN TO_TIMESTAMP_LTZ(event_ms, 3) END,
  WATERMARK FOR ts AS TO_TIMESTAMP_LTZ(wm_ms, 3)
) WITH (
  'connector' = 'kafka', 'topic' = '{input}', 'scan.startup.mode' = 'earliest-offset',
  'key.format' = 'raw', 'key.fields' = 'k', 'value.format' = 'json', 'value.fields-include' = 'EXCEPT_KEY'
);
CREATE TABLE passed (k STRING, n BIGINT, seq BIGINT, v BIGINT, due_ms BIGINT) WITH (
  'connector' = 'kafka', 'topic' = '{passed}', 'key.format' = 'json', 'key.fields' = 'k', 'value.format' = 'json'
);
CREATE TABLE windows (k STRING, window_end TIMESTAMP_LTZ(3), n BIGINT, s BIGINT, due_ms BIGINT) WITH (
  'connector' = 'kafka', 'topic' = '{windows}', 'format' = 'json', 'sink.partitioner' = 'fixed'
);
CREATE TABLE transfers (n BIGINT, account STRING, amount BIGINT) WITH (
  'connector' = 'kafka', 'topic' = '{transfers}', 'format' = 'json', 'sink.partitioner' = 'fixed'
);
CREATE TABLE markers (n BIGINT, part INT) WITH (
  'connector' = 'kafka', 'topic' = '{markers}', 'format' = 'json', 'sink.partitioner' = 'round-robin'
);
INSERT INTO passed SELECT k, n, seq, v, due_ms FROM input WHERE n IS NOT NULL;
INSERT INTO windows SELECT k, window_end, COUNT(*), SUM(v), MAX(due_ms)
FROM TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '{window}' SECOND)) GROUP BY k, window_start, window_end;
INSERT INTO transfers SELECT n, account, amount FROM input CROSS JOIN UNNEST(legs) AS leg(account, amount);
INSERT INTO markers SELECT n, part FROM input CROSS JOIN UNNEST(marker) AS m(part);
",
            input = topics.input,
            passed = topics.passed,
            windows = topics.windows,
            transfers = topics.transfers,
            markers = topics.markers,
        )
    }

    /// The job file. `settings` are further top-level keys with their values as YAML on one line (`("tier", "1")`, `("checkpoint", "{store: …}")`); they
    /// win over the load's own. Keys that begin with `kafka.` are properties of the client (`("kafka.security.protocol", "SSL")`).
    pub fn job_yaml(&self, servers: &str, settings: &[(&str, String)]) -> String {
        let own = [
            ("parallelism", self.settings.partitions.to_string()),
            ("slots", "1".to_string()),
            ("commit_interval", "100 ms".to_string()),
            ("on_bad_record", "dead_letter".to_string()),
            ("late_rows", "side_topic".to_string()),
            ("replication_factor", self.settings.replication_factor.to_string()),
        ];
        let mut yaml = format!("name: {}\nkafka:\n  bootstrap.servers: {servers}\n", self.name);
        for (key, value) in settings {
            if let Some(property) = key.strip_prefix("kafka.") {
                writeln!(yaml, "  {property}: {value}").expect("a String takes everything");
            }
        }
        let is_own = |key: &str| settings.iter().all(|(other, _)| *other != key);
        let all = own.iter().filter(|(key, _)| is_own(key)).chain(settings.iter().filter(|(key, _)| !key.starts_with("kafka.")));
        for (key, value) in all {
            writeln!(yaml, "{key}: {value}").expect("a String takes everything");
        }
        yaml.push_str("sql: |\n");
        for line in self.sql().lines() {
            writeln!(yaml, "  {line}").expect("a String takes everything");
        }
        yaml
    }

    /// Sends the first record of each bulk key; before [`start`](Self::start), when `bulk_bytes` is set.
    pub fn fill(&self, servers: &str) -> Result<(), WorkloadError> {
        feeder::fill(self, servers)
    }

    /// Starts the open loop.
    pub fn start(&self, servers: &str) -> Result<Running, WorkloadError> {
        Running::start(Numbered::new(self), (self.seed, self.settings.clone()), servers)
    }

    /// Starts to read the output as it is committed.
    pub fn observe(&self, servers: &str) -> Result<Observer, WorkloadError> {
        Observer::start(self, servers)
    }

    /// Reads all output and says what is wrong with it, and with the job's own topics. The load must have been stopped and drained
    /// ([`Observer::wait_drained`]); with an observation, what was seen live is compared with what is there. `control`: as for [`check_job`](crate::checks::check_job).
    pub fn verify(&self, servers: &str, sent: &Sent, seen: Option<&Observation>, control: ControlFold) -> Result<Findings, WorkloadError> {
        oracle::verify(self, servers, sent, seen, control)
    }
}

/// `0.1` of 100 ms.
fn seconds(ms: i64) -> String {
    format!("{}.{:03}", ms / 1_000, ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_caller_win_and_properties_go_to_the_client() {
        let workload = Workload::new("w", 1, Settings::default()).expect("good settings");
        let yaml = workload.job_yaml("h:1", &[("tier", "1".into()), ("slots", "3".into()), ("kafka.client.id", "x".into())]);
        assert!(yaml.starts_with("name: w\nkafka:\n  bootstrap.servers: h:1\n  client.id: x\n"));
        assert!(yaml.contains("\ntier: 1\n") && yaml.contains("\nslots: 3\n") && !yaml.contains("slots: 1"));
        assert!(yaml.contains("INTERVAL '0.100' SECOND"));
    }

    #[test]
    fn settings_that_can_not_be_are_refused() {
        let refused = Workload::new("w", 1, Settings { keys: 2, ..Settings::default() });
        assert_eq!(refused.expect_err("two keys, six partitions").kind(), crate::error::ErrorKind::Settings);
    }
}

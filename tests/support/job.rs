//! A job file in the making.

use std::fmt::Write;

/// Keys and values of a job file, and its SQL.
#[derive(Clone, Debug)]
pub struct Job {
    pub name: String,
    pub bootstrap_servers: String,
    /// Further top-level keys, values as YAML.
    pub settings: Vec<(String, String)>,
    pub sql: String,
}

impl Job {
    pub fn new(name: impl Into<String>, bootstrap_servers: impl Into<String>, sql: impl Into<String>) -> Job {
        Job { name: name.into(), bootstrap_servers: bootstrap_servers.into(), settings: Vec::new(), sql: sql.into() }
    }

    pub fn set(mut self, key: &str, value: impl ToString) -> Job {
        self.settings.retain(|(known, _)| known != key);
        self.settings.push((key.to_string(), value.to_string()));
        self
    }

    /// The file's text.
    pub fn yaml(&self) -> String {
        let mut yaml = format!("name: {}\nkafka:\n  bootstrap.servers: {}\n", self.name, self.bootstrap_servers);
        for (key, value) in &self.settings {
            let _ = writeln!(yaml, "{key}: {value}");
        }
        yaml.push_str("sql: |\n");
        for line in self.sql.trim().lines() {
            let _ = writeln!(yaml, "  {line}");
        }
        yaml
    }
}

/// `CREATE TABLE` over a Kafka topic with JSON values, read from its beginning; `options` are further `'key' = 'value'` pairs.
pub fn kafka_table(name: &str, columns: &str, topic: &str, options: &[(&str, &str)]) -> String {
    let mut text = format!(
        "CREATE TABLE {name} ({columns}) WITH ('connector' = 'kafka', 'topic' = '{topic}', 'scan.startup.mode' = 'earliest-offset', 'format' = 'json'"
    );
    for (key, value) in options {
        let _ = write!(text, ", '{key}' = '{value}'");
    }
    text.push_str(");\n");
    text
}

/// For [`kafka_table`]: the scan ends at what is there at the job's first start.
pub const BOUNDED: (&str, &str) = ("scan.bounded.mode", "latest-offset");

//! Plans of whole texts: what is planned how, and what is refused where.
//!
//! The connectors are made up: they accept a few options and give no rows, which is all that planning asks of them.

mod fits;
mod graphs;
mod nexmark;
mod refusals;
mod values;

use crate::{PlanOptions, Planned, SqlError, explain, plan};
use arrow_schema::{DataType, TimeUnit};
use std::sync::Arc;
use streamshield_core::ports::Connectors;
use streamshield_core::ports::sink::{Sink, SinkConnector, SinkError};
use streamshield_core::ports::source::{Source, SourceConnector, SourceError, SourceErrorKind};
use streamshield_core::table::{OptionError, SinkRequest, SourceRequest, TableDefinition};

const PARALLELISM: u32 = 4;

struct TestConnector;

/// Knows `topic` and needs it.
fn check_options(table: &TableDefinition) -> Vec<OptionError> {
    let known = ["connector", "topic", "format", "scan.watermark.idle-timeout"];
    let unknown = table.options.keys().filter(|key| !known.contains(&key.as_str()) && !key.starts_with("properties."));
    let mut errors: Vec<OptionError> =
        unknown.map(|key| OptionError { key: key.clone(), message: format!("there is no option '{key}'"), hint: None }).collect();
    if table.option("topic").is_none() {
        errors.push(OptionError { key: String::new(), message: "the option 'topic' is missing".into(), hint: None });
    }
    errors
}

impl SourceConnector for TestConnector {
    fn name(&self) -> &'static str {
        "kafka"
    }
    fn check(&self, table: &TableDefinition) -> Vec<OptionError> {
        check_options(table)
    }
    fn metadata_type(&self, key: &str) -> Option<DataType> {
        match key {
            "timestamp" => Some(DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))),
            "partition" => Some(DataType::Int32),
            "offset" => Some(DataType::Int64),
            _ => None,
        }
    }
    fn open(&self, _: SourceRequest) -> Result<Arc<dyn Source>, SourceError> {
        Err(SourceError { kind: SourceErrorKind::Stop, message: "planning opens nothing".into() })
    }
}

impl SinkConnector for TestConnector {
    fn name(&self) -> &'static str {
        "kafka"
    }
    fn check(&self, table: &TableDefinition) -> Vec<OptionError> {
        check_options(table)
    }
    fn metadata_type(&self, key: &str) -> Option<DataType> {
        (key == "timestamp").then(|| DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())))
    }
    fn open(&self, _: SinkRequest) -> Result<Arc<dyn Sink>, SinkError> {
        Err(SinkError { retry: false, message: "planning opens nothing".into() })
    }
}

fn connectors() -> Connectors {
    let mut connectors = Connectors::default();
    connectors.add_source(Arc::new(TestConnector));
    connectors.add_sink(Arc::new(TestConnector));
    connectors
}

fn try_plan(sql: &str) -> Result<Planned, Vec<SqlError>> {
    let connectors = connectors();
    plan(sql, &PlanOptions { job_name: "test", connectors: &connectors, late_rows_to_topic: false, bad_record_policy: "fail" })
}

fn planned(sql: &str) -> Planned {
    let planned = try_plan(sql).unwrap_or_else(|errors| panic!("{}", render(sql, &errors)));
    fits::check(&planned.plan);
    planned
}

fn explained(sql: &str) -> String {
    explain::text(&planned(sql), PARALLELISM)
}

/// Errors with the text that they point at.
fn render(sql: &str, errors: &[SqlError]) -> String {
    let mut lines = String::new();
    for error in errors {
        lines.push_str(&error.message);
        if let Some(span) = &error.span {
            let line = sql[..span.start].matches('\n').count() + 1;
            let shown: String = sql[span.clone()].lines().next().unwrap_or_default().chars().take(60).collect();
            lines.push_str(&format!("\n  at line {line}: {shown}"));
        }
        if let Some(hint) = &error.hint {
            lines.push_str(&format!("\n  hint: {hint}"));
        }
        lines.push('\n');
    }
    lines
}

fn refused(sql: &str) -> String {
    match try_plan(sql) {
        Ok(planned) => panic!("planned although it should not be:\n{}", explain::text(&planned, PARALLELISM)),
        Err(errors) => render(sql, &errors),
    }
}

//! A planned job for people and programs: stages, exchanges, state.

use crate::Planned;
use crate::types::words;
use crate::windows::describe;
use datafusion_physical_expr::utils::collect_columns;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use streamshield_core::ids::StageId;
use streamshield_core::table::{ColumnKind, TableDefinition};
use streamshield_engine::plan::{Aggregate, Emit, ExchangePlan, Operator, StageInput, StageOutput, StagePlan, WatermarkPlan};

/// The stages as text; an exchange that does not say otherwise has `parallelism` partitions.
pub fn text(planned: &Planned, parallelism: u32) -> String {
    let mut out = String::new();
    for stage in &planned.plan.stages {
        let _ = writeln!(out, "stage {}", stage.name);
        for line in stage_lines(planned, stage, parallelism) {
            let _ = writeln!(out, "  {line}");
        }
    }
    for warning in &planned.plan.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

/// What a stage does, from its input to its output.
fn stage_lines(planned: &Planned, stage: &StagePlan, parallelism: u32) -> Vec<String> {
    let mut lines = vec![input_text(planned, stage, parallelism)];
    if let StageInput::Source(source) = &stage.input
        && let Some(watermark) = &source.watermark
    {
        lines.push(watermark_text(source, watermark));
    }
    lines.extend(stage.operators.iter().map(operator_text));
    lines.push(output_text(planned, stage));
    lines
}

fn input_text(planned: &Planned, stage: &StagePlan, parallelism: u32) -> String {
    match &stage.input {
        StageInput::Source(source) => {
            let columns: Vec<&str> = source.columns.iter().map(|column| column.field.name().as_str()).collect();
            format!("read {} ({}, a region per split): {}", source.table.name, source.table.connector(), columns.join(", "))
        }
        StageInput::Exchange(exchange) => {
            let exchange = &planned.plan.exchanges[exchange.0 as usize];
            let regions = match exchange.partitions.unwrap_or(parallelism) {
                1 => "1 region".to_owned(),
                count => format!("{count} regions"),
            };
            let upstream: Vec<&str> = exchange.upstream.iter().map(|id| planned.plan.stages[id.0 as usize].name.as_str()).collect();
            format!("from exchange {} ({regions}) of {}", exchange.name, upstream.join(", "))
        }
    }
}

fn watermark_text(source: &streamshield_engine::plan::SourceScan, watermark: &WatermarkPlan) -> String {
    match watermark {
        WatermarkPlan::EventTime { time_column, expression, idle_timeout_ms } => {
            let idle = idle_timeout_ms.map_or(String::new(), |ms| format!(", idle after {ms} ms"));
            format!(
                "watermark for {}: {}{idle}",
                source.project.schema.field(*time_column).name(),
                plain_intervals(&list(&expression.list))
            )
        }
        WatermarkPlan::ProcessingTime { granularity_ms } => format!("watermark: the clock, every {granularity_ms} ms"),
    }
}

/// Physical expressions print an interval as the structure that it is.
fn plain_intervals(text: &str) -> String {
    let Some((before, rest)) = text.split_once("IntervalMonthDayNano { ") else { return text.to_owned() };
    let Some((inside, after)) = rest.split_once(" }") else { return text.to_owned() };
    let number = |name: &str| -> i64 {
        let found = inside.split(", ").find_map(|part| part.strip_prefix(name)?.strip_prefix(": "));
        found.and_then(|digits| digits.parse().ok()).unwrap_or_default()
    };
    let (months, ms) = (number("months"), number("days") * 86_400_000 + number("nanoseconds") / 1_000_000);
    let months = if months == 0 { String::new() } else { format!("{months} months ") };
    format!("{before}{months}{}{}", crate::windows::duration(ms), plain_intervals(after))
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn operator_text(operator: &Operator) -> String {
    match operator {
        Operator::Filter(predicate) => format!("filter {}", list(&predicate.list)),
        Operator::Project(projection) => {
            let named = projection.expressions.list.iter().zip(projection.schema.fields());
            let items: Vec<String> = named.map(|(expression, field)| format!("{expression} as {}", field.name())).collect();
            format!("project {}", items.join(", "))
        }
        Operator::Unnest(unnest) => {
            format!("unnest column {}{}", unnest.list_column, if unnest.ordinality { " with ordinality" } else { "" })
        }
        Operator::Expand(expand) => format!("expand each row to {} rows", expand.projections.len()),
        Operator::AssignWindows(windows) => format!("windows {}", describe(windows.kind)),
        Operator::PartialAggregate(aggregate) => format!("partial aggregate {}", aggregate_text(aggregate)),
        Operator::WindowAggregate(aggregate) => format!("merge [state] {}", aggregate_text(aggregate)),
    }
}

fn aggregate_text(aggregate: &Aggregate) -> String {
    let keys: Vec<&str> = aggregate.key_fields.iter().map(|field| field.name().as_str()).collect();
    let calls = aggregate.calls.iter().map(|call| match call.merges_state_at {
        Some(_) => format!("{} from states", call.display),
        None => call.display.clone(),
    });
    let calls: Vec<String> = calls.collect();
    let calls = if calls.is_empty() { "the groups alone".to_owned() } else { calls.join(", ") };
    let states = if aggregate.emit == Emit::State { ", as states" } else { "" };
    format!("by window and ({}): {calls}{states}", keys.join(", "))
}

fn output_text(planned: &Planned, stage: &StagePlan) -> String {
    match &stage.output {
        StageOutput::Exchange(exchange) => {
            let exchange = &planned.plan.exchanges[exchange.0 as usize];
            let keys = key_names(exchange);
            let to = if keys.is_empty() { "one partition".to_owned() } else { format!("by ({})", keys.join(", ")) };
            format!("to exchange {} {to}", exchange.name)
        }
        StageOutput::Sink(sink) => {
            let columns: Vec<&str> = sink.columns.iter().map(|column| column.field.name().as_str()).collect();
            format!("write {} ({}): {}", sink.table.name, sink.table.connector(), columns.join(", "))
        }
    }
}

fn key_names(exchange: &ExchangePlan) -> Vec<&str> {
    exchange.keys.iter().map(|key| exchange.schema.field(*key).name().as_str()).collect()
}

/// The same as JSON, with what a program needs to feed the job: the tables without their secrets.
pub fn json(planned: &Planned, parallelism: u32) -> serde_json::Value {
    let plan = &planned.plan;
    let stages: Vec<serde_json::Value> = plan
        .stages
        .iter()
        .map(|stage| {
            serde_json::json!({
                "name": stage.name,
                "input": input_text(planned, stage, parallelism),
                "operators": stage.operators.iter().map(operator_text).collect::<Vec<_>>(),
                "output": output_text(planned, stage),
                "stateful": stage.operators.iter().any(|operator| matches!(operator, Operator::WindowAggregate(_))),
                // A partial aggregate here, whose merge is behind the exchange.
                "split": stage.operators.iter().any(|operator| matches!(operator, Operator::PartialAggregate(_))),
                "source": source_json(stage),
                "sink": sink_json(stage),
                "row_for_row": is_row_for_row(stage),
            })
        })
        .collect();
    let name = |id: StageId| plan.stages[id.0 as usize].name.as_str();
    let exchanges: Vec<serde_json::Value> = plan
        .exchanges
        .iter()
        .map(|exchange| {
            serde_json::json!({
                "name": exchange.name,
                "from": exchange.upstream.iter().copied().map(name).collect::<Vec<_>>(),
                "to": name(exchange.downstream),
                "keys": key_names(exchange),
                "partitions": exchange.partitions.unwrap_or(parallelism),
            })
        })
        .collect();
    serde_json::json!({
        "fingerprint": plan.fingerprint.to_string(),
        "stages": stages,
        "exchanges": exchanges,
        "warnings": plan.warnings,
    })
}

/// Each row that can be read gives one row of a sink.
fn is_row_for_row(stage: &StagePlan) -> bool {
    let keeps_rows = stage.operators.iter().all(|operator| matches!(operator, Operator::Project(_)));
    matches!((&stage.input, &stage.output), (StageInput::Source(_), StageOutput::Sink(_))) && keeps_rows
}

/// Options that say how messages look; others may hold secrets.
const SHOWN_OPTIONS: [&str; 8] =
    ["topic", "format", "value.format", "key.format", "key.fields", "key.fields-prefix", "value.fields-include", "scan.startup.mode"];

fn table_json(table: &TableDefinition) -> serde_json::Value {
    let columns: Vec<serde_json::Value> = table
        .columns
        .iter()
        .filter(|column| column.kind == ColumnKind::Physical)
        .map(|column| {
            let field = &column.field;
            serde_json::json!({ "name": field.name(), "type": words(field.data_type()), "nullable": field.is_nullable() })
        })
        .collect();
    let shown = table.options.iter().filter(|(key, _)| SHOWN_OPTIONS.contains(&key.as_str()));
    let options: BTreeMap<&String, &String> = shown.collect();
    serde_json::json!({ "table": table.name, "connector": table.connector(), "columns": columns, "options": options })
}

fn source_json(stage: &StagePlan) -> Option<serde_json::Value> {
    let StageInput::Source(source) = &stage.input else { return None };
    let mut json = table_json(&source.table);
    // The columns of the record that event time and watermark are made of.
    let mut event_time = BTreeSet::new();
    let mut idle_timeout = None;
    if let Some(WatermarkPlan::EventTime { time_column, expression, idle_timeout_ms }) = &source.watermark {
        idle_timeout = *idle_timeout_ms;
        let watermark = expression.list.iter().flat_map(collect_columns).map(|column| column.index());
        let made_of = watermark.chain([*time_column]).filter_map(|index| source.project.expressions.list.get(index));
        event_time.extend(made_of.flat_map(collect_columns).map(|column| column.name().to_owned()));
    }
    json["event_time"] = serde_json::json!(event_time);
    json["idle_timeout_ms"] = serde_json::json!(idle_timeout);
    Some(json)
}

fn sink_json(stage: &StagePlan) -> Option<serde_json::Value> {
    let StageOutput::Sink(sink) = &stage.output else { return None };
    Some(table_json(&sink.table))
}

/// The same for Graphviz.
pub fn graphviz(planned: &Planned, parallelism: u32) -> String {
    let mut out = String::from("digraph job {\n  rankdir=LR;\n  node [shape=box];\n");
    for stage in &planned.plan.stages {
        let label = format!("{}\n{}", stage.name, stage_lines(planned, stage, parallelism).join("\n"));
        let _ = writeln!(out, "  s{} [label={label:?}];", stage.id.0);
    }
    for exchange in &planned.plan.exchanges {
        for upstream in &exchange.upstream {
            let _ = writeln!(out, "  s{} -> s{} [label={:?}];", upstream.0, exchange.downstream.0, exchange.name);
        }
    }
    out.push_str("}\n");
    out
}

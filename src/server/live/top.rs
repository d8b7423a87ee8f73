//! The top rows of a job's newest window, as its sink topic has them.
//!
//! The window is the row's first timestamp column that the query calls a window's, or else its first timestamp; the measure is its last
//! number. A window is shown as soon as its first row is there and until a row of a later one comes.

use super::{table, thousands};
use arrow_schema::DataType;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::{Log, LogReader, ReaderOptions, StartAt, TakeLimit, TopicPartition, Wakeup};
use streamshield_engine::plan::{JobPlan, SinkTable, StageOutput};

const ROWS_SHOWN: usize = 10;
/// A view must not keep the engine from its work.
const READ_TIME_MAX: Duration = Duration::from_millis(100);
const BUFFER_BYTES: usize = 4 << 20;
const LIMIT: TakeLimit = TakeLimit { messages: 4096, bytes: 1 << 20, end: None };

/// Follows one sink topic.
pub struct TopRows {
    topic: String,
    columns: Vec<String>,
    window_column: Option<String>,
    measure_column: String,
    log: Arc<dyn Log>,
    following: Option<Following>,
    newest: Newest,
}

/// Positions in the topic, once it exists.
struct Following {
    reader: Box<dyn LogReader>,
    partitions: Vec<TopicPartition>,
}

/// The rows of the newest window.
#[derive(Default)]
struct Newest {
    window: Option<Value>,
    /// Largest first.
    rows: Vec<(f64, Map<String, Value>)>,
    count: u64,
}

impl TopRows {
    /// None if the job has no sink whose rows can be shown.
    pub fn of(plan: &JobPlan, log: Arc<dyn Log>) -> Option<TopRows> {
        let sink = plan.stages.iter().find_map(|stage| match &stage.output {
            StageOutput::Sink(sink) if sink.table.connector() == "kafka" && format(sink) == Some("json") => Some(sink),
            _ => None,
        })?;
        let fields = sink.schema.fields();
        let timestamps = || fields.iter().filter(|field| matches!(field.data_type(), DataType::Timestamp(..)));
        let window = timestamps().find(|field| field.name().contains("window")).or_else(|| timestamps().next());
        let measure = fields.iter().rfind(|field| field.data_type().is_numeric())?;
        Some(TopRows {
            topic: sink.table.option("topic")?.to_string(),
            columns: fields.iter().map(|field| field.name().clone()).collect(),
            window_column: window.map(|field| field.name().clone()),
            measure_column: measure.name().clone(),
            log,
            following: None,
            newest: Newest::default(),
        })
    }

    /// Takes what has been committed since the last call.
    pub fn read(&mut self) {
        if self.following.is_none() {
            self.following = self.follow();
        }
        let Some(following) = &mut self.following else { return };
        let (newest, window_column, measure_column) = (&mut self.newest, self.window_column.as_deref(), &self.measure_column);
        let started = Instant::now();
        let mut failed = false;
        for partition in &following.partitions {
            while started.elapsed() < READ_TIME_MAX {
                let taken = following.reader.take(partition, &LIMIT, &mut |messages| {
                    for message in messages {
                        if let Some(Value::Object(row)) = message.payload.and_then(|payload| serde_json::from_slice(payload).ok()) {
                            newest.add(row, window_column, measure_column);
                        }
                    }
                });
                match taken {
                    Ok(taken) if taken.messages > 0 => {}
                    Ok(_) => break,
                    Err(error) => {
                        tracing::debug!(%error, %partition, "the live view can't read the result");
                        failed = true;
                        break;
                    }
                }
            }
        }
        if failed {
            self.following = None;
        }
    }

    /// From the end of the topic; None while it does not exist.
    fn follow(&self) -> Option<Following> {
        let described = self.log.describe_topic(&self.topic).ok()??;
        let mut reader =
            self.log.reader(ReaderOptions { buffer_bytes: BUFFER_BYTES, ..Default::default() }, Arc::new(Wakeup::default())).ok()?;
        let mut partitions = Vec::new();
        for number in 0..described.partitions {
            let partition = TopicPartition::new(self.topic.as_str(), number);
            let from: Offset = self.log.resolve(&partition, StartAt::End).ok()?;
            reader.assign(&partition, from).ok()?;
            partitions.push(partition);
        }
        Some(Following { reader, partitions })
    }

    pub fn draw(&self) -> String {
        let Some(window) = &self.newest.window else { return format!("{}: no result yet\n", self.topic) };
        let columns: Vec<&str> =
            self.columns.iter().map(String::as_str).filter(|column| Some(*column) != self.window_column.as_deref()).collect();
        let mut rows = table(&columns);
        for (_, row) in &self.newest.rows {
            rows.add_row(columns.iter().map(|column| shown(row.get(*column))));
        }
        format!(
            "{}: top {} of {}, {} {}\n{rows}\n",
            self.topic,
            self.newest.rows.len(),
            thousands(self.newest.count),
            self.window_column.as_deref().unwrap_or_default(),
            shown(Some(window))
        )
    }
}

fn format(sink: &SinkTable) -> Option<&str> {
    sink.table.option("format").or_else(|| sink.table.option("value.format"))
}

fn shown(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => String::new(),
    }
}

impl Newest {
    fn add(&mut self, row: Map<String, Value>, window_column: Option<&str>, measure_column: &str) {
        let window = window_column.and_then(|column| row.get(column)).cloned().unwrap_or(Value::Null);
        match self.window.as_ref().map(|newest| later(&window, newest)) {
            Some(std::cmp::Ordering::Less) => return,
            Some(std::cmp::Ordering::Equal) => {}
            Some(std::cmp::Ordering::Greater) | None => *self = Newest { window: Some(window), ..Newest::default() },
        }
        self.count += 1;
        let measure = row.get(measure_column).and_then(Value::as_f64).unwrap_or(f64::NEG_INFINITY);
        if self.rows.len() == ROWS_SHOWN && self.rows.last().is_some_and(|(least, _)| measure <= *least) {
            return;
        }
        let at = self.rows.partition_point(|(other, _)| *other >= measure);
        self.rows.insert(at, (measure, row));
        self.rows.truncate(ROWS_SHOWN);
    }
}

/// Timestamps are text that sorts by time, or numbers.
fn later(a: &Value, b: &Value) -> std::cmp::Ordering {
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (a, b) => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(std::cmp::Ordering::Equal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(window: &str, auction: u64, bids: u64) -> Map<String, Value> {
        match serde_json::json!({"window_end": window, "auction": auction, "bids": bids}) {
            Value::Object(row) => row,
            _ => unreachable!("an object"),
        }
    }

    #[test]
    fn the_largest_rows_of_the_newest_window_are_kept() {
        let mut newest = Newest::default();
        let mut add = |row| newest.add(row, Some("window_end"), "bids");
        add(row("2024-01-01 00:00:02", 1, 99));
        for auction in 0..31 {
            add(row("2024-01-01 00:00:04", auction, auction * 7 % 31));
        }
        add(row("2024-01-01 00:00:02", 2, 1000));
        let bids: Vec<f64> = newest.rows.iter().map(|(bids, _)| *bids).collect();
        assert_eq!(bids, [30.0, 29.0, 28.0, 27.0, 26.0, 25.0, 24.0, 23.0, 22.0, 21.0]);
        assert_eq!(newest.count, 31);
    }
}

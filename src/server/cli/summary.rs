//! What a run has done, at its end.

use super::SummaryFormat;
use crate::figures::Figures;
use serde::Serialize;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub rows_in: u64,
    pub rows_out: u64,
    pub rows_per_second: f64,
    pub p99_latency_ms: Option<f64>,
    #[serde(skip)]
    elapsed: Duration,
    #[serde(skip)]
    refused: [(&'static str, u64); 3],
}

impl Summary {
    pub fn new(status: &Figures, elapsed: Duration) -> Summary {
        let seconds = elapsed.as_secs_f64().max(1e-3);
        Summary {
            rows_in: status.records_in,
            rows_out: status.rows_out,
            rows_per_second: (status.records_in as f64 / seconds * 10.0).round() / 10.0,
            p99_latency_ms: status.latency_p99_ms.map(|milliseconds| (milliseconds * 10.0).round() / 10.0),
            elapsed,
            refused: [("late", status.late_rows), ("bad", status.bad_records), ("dead letters", status.dead_letters)],
        }
    }

    /// The last line of standard output.
    pub fn print(&self, format: SummaryFormat) {
        let line = match format {
            SummaryFormat::Text => self.text(),
            SummaryFormat::Json => serde_json::to_string(self).expect("plain data always serializes"),
            SummaryFormat::None => return,
        };
        super::say(line);
    }

    pub fn text(&self) -> String {
        let mut text = format!(
            "{} rows in, {} rows out in {:.1} s ({:.0} rows/s)",
            self.rows_in,
            self.rows_out,
            self.elapsed.as_secs_f64(),
            self.rows_per_second
        );
        for (what, count) in self.refused.iter().filter(|(_, count)| *count > 0) {
            text += &format!(", {count} {what}");
        }
        if let Some(latency) = self.p99_latency_ms {
            text += &format!(", p99 latency {latency:.0} ms");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_line_has_exactly_the_promised_keys() {
        let status = Figures { records_in: 1000, rows_out: 7, latency_p99_ms: Some(12.34), late_rows: 2, ..Default::default() };
        let summary = Summary::new(&status, Duration::from_secs(2));
        assert_eq!(
            serde_json::to_string(&summary).expect("json"),
            r#"{"rows_in":1000,"rows_out":7,"rows_per_second":500.0,"p99_latency_ms":12.3}"#
        );
        assert_eq!(summary.text(), "1000 rows in, 7 rows out in 2.0 s (500 rows/s), 2 late, p99 latency 12 ms");
    }
}

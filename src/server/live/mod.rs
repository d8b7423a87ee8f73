//! The live view of a running job: rates, watermark, latency, and the top rows of the newest window of its result.
//!
//! In a terminal a table is redrawn in place a few times a second; elsewhere there is one line per second. The result rows come
//! from the sink topic, read committed: what is shown is what any consumer sees.

mod top;

use crate::figures::Figures;
use chrono::{DateTime, Utc};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use crossterm::terminal::{Clear, ClearType};
use crossterm::{cursor, queue, terminal};
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::ports::log::Log;
use streamshield_engine::plan::JobPlan;
use top::TopRows;

const REDRAW_INTERVAL: Duration = Duration::from_millis(250);
const LINE_INTERVAL: Duration = Duration::from_secs(1);
/// Rates are taken over this time, so that the figures can be read.
const RATE_WINDOW: Duration = Duration::from_secs(2);

/// Shows a job while it runs.
pub struct LiveView {
    job: String,
    started: Instant,
    shown: Option<Instant>,
    in_place: bool,
    drawn_lines: u16,
    rates: Rates,
    top: Option<TopRows>,
}

impl LiveView {
    pub fn new(job: &str, plan: &JobPlan, log: Arc<dyn Log>) -> LiveView {
        let in_place = io::stdout().is_terminal();
        LiveView {
            job: job.to_string(),
            started: Instant::now(),
            shown: None,
            in_place,
            drawn_lines: 0,
            rates: Rates::default(),
            top: if in_place { TopRows::of(plan, log) } else { None },
        }
    }

    /// Shows the figures if it is time.
    pub fn show(&mut self, status: &Figures) {
        let interval = if self.in_place { REDRAW_INTERVAL } else { LINE_INTERVAL };
        if self.shown.is_some_and(|shown| shown.elapsed() < interval) {
            return;
        }
        self.shown = Some(Instant::now());
        self.rates.add(Instant::now(), status.records_in, status.rows_out);
        // A terminal that is gone is no reason to stop the job.
        let _ = if self.in_place { self.redraw(status) } else { writeln!(io::stdout(), "{}", self.line(status)) };
    }

    /// Shows the last figures; what follows goes below.
    pub fn finish(&mut self, status: &Figures) {
        if self.in_place {
            self.shown = None;
            self.show(status);
        }
    }

    fn line(&self, status: &Figures) -> String {
        let (rows_in, rows_out) = self.rates.per_second();
        format!(
            "{:>4.0}s {}: in {} rows/s, out {} rows/s, watermark {}, latency p50 {} p99 {}, regions {}, late {}, bad {}",
            self.started.elapsed().as_secs_f64(),
            status.state,
            thousands(rows_in),
            thousands(rows_out),
            watermark(status),
            milliseconds(status.latency_p50_ms),
            milliseconds(status.latency_p99_ms),
            regions(status),
            thousands(status.late_rows),
            thousands(status.bad_records),
        )
    }

    fn redraw(&mut self, status: &Figures) -> io::Result<()> {
        if let Some(top) = &mut self.top {
            top.read();
        }
        let (columns, lines) = terminal::size().unwrap_or((100, 40));
        let text = self.draw(status);
        // What does not fit can't be redrawn in place.
        let shown: Vec<String> =
            text.lines().take(usize::from(lines.saturating_sub(1))).map(|line| line.chars().take(usize::from(columns)).collect()).collect();
        let mut output = io::stdout().lock();
        if self.drawn_lines > 0 {
            queue!(output, cursor::MoveToPreviousLine(self.drawn_lines))?;
        }
        for line in &shown {
            queue!(output, Clear(ClearType::CurrentLine))?;
            writeln!(output, "{line}")?;
        }
        queue!(output, Clear(ClearType::FromCursorDown))?;
        self.drawn_lines = shown.len() as u16;
        output.flush()
    }

    fn draw(&self, status: &Figures) -> String {
        let (rows_in, rows_out) = self.rates.per_second();
        let mut figures = table(&["", "rows/s", "rows", "", ""]);
        figures.add_row(["in".into(), thousands(rows_in), thousands(status.records_in), "watermark".into(), watermark(status)]);
        figures.add_row([
            "out".into(),
            thousands(rows_out),
            thousands(status.rows_out),
            "latency p50 · p99".into(),
            format!("{} · {}", milliseconds(status.latency_p50_ms), milliseconds(status.latency_p99_ms)),
        ]);
        figures.add_row(["late".into(), String::new(), thousands(status.late_rows), "regions".into(), regions(status)]);
        figures.add_row([
            "bad".into(),
            String::new(),
            thousands(status.bad_records),
            "epochs · state".into(),
            format!("{} · {}", thousands(status.epochs), bytes(status.state_bytes)),
        ]);
        for column in 1..=2 {
            if let Some(column) = figures.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let mut text = format!("{} · {} · {:.0} s\n{figures}\n", self.job, status.state, self.started.elapsed().as_secs_f64());
        if let Some(top) = &self.top {
            text += &top.draw();
        }
        text
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header(header);
    table
}

/// The last counts, for rates.
#[derive(Default)]
struct Rates {
    counts: std::collections::VecDeque<(Instant, u64, u64)>,
}

impl Rates {
    fn add(&mut self, now: Instant, rows_in: u64, rows_out: u64) {
        self.counts.push_back((now, rows_in, rows_out));
        // One older than the window stays, to measure from.
        while self.counts.get(1).is_some_and(|(at, ..)| now.duration_since(*at) >= RATE_WINDOW) {
            self.counts.pop_front();
        }
    }

    fn per_second(&self) -> (u64, u64) {
        let (Some(first), Some(last)) = (self.counts.front(), self.counts.back()) else { return (0, 0) };
        let seconds = last.0.duration_since(first.0).as_secs_f64();
        if seconds <= 0.0 {
            return (0, 0);
        }
        let rate = |from: u64, to: u64| (to.saturating_sub(from) as f64 / seconds) as u64;
        (rate(first.1, last.1), rate(first.2, last.2))
    }
}

fn watermark(status: &Figures) -> String {
    match status.watermark_ms.and_then(DateTime::<Utc>::from_timestamp_millis) {
        Some(time) => time.format("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        None => "–".into(),
    }
}

fn regions(status: &Figures) -> String {
    let mut text = status.regions.to_string();
    for (count, what) in [(status.regions_finished, "finished"), (status.regions_stopped, "stopped")] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), |milliseconds| format!("{milliseconds:.0} ms"))
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// `1234567` as `1,234,567`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 12, 999, 1000, 1234567].map(thousands), ["0", "12", "999", "1,000", "1,234,567"]);
        assert_eq!([5, 2048, 3 << 20].map(bytes), ["5 B", "2 KiB", "3.0 MiB"]);
    }

    #[test]
    fn rates_are_taken_over_the_last_seconds() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        for second in 0..10u64 {
            rates.add(start + Duration::from_secs(second), second * second * 100, second);
        }
        assert_eq!(rates.per_second(), ((8100 - 4900) / 2, 1));
    }
}

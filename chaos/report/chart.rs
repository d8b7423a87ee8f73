//! The timeline as one SVG: faults as bands, throughput, latency and lag below each other on one axis, deaths and owner changes as marks.
//!
//! ```text
//! process  ▓▓     ▓▓                    one lane per family, one band per injection
//! network      ▓▓▓▓▓▓
//! throughput   ───────╲╱──────          each band goes on, pale, through all panels
//! latency      ───╱╲──────────
//! lag          ────╱╲─────────
//! owners       |  |    ||               a mark for each region that changed hands, below it the deaths
//! ```
//! Bands, marks and seconds have titles; the bands can be reached by the keyboard, and with the arrow keys a cursor goes from second to second.

use super::{count, escaped, outcome, time};
use crate::journal::{InjectionOutcome, Journal, RunStage, Sample};
use std::fmt::Write;

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 16.0;
const LANE: f64 = 20.0;
const PANEL: f64 = 110.0;
const GAP: f64 = 26.0;
const FAMILIES: [&str; 7] = ["process", "network", "broker", "storage", "time", "data", "load"];

struct Axis {
    duration_ms: f64,
}

impl Axis {
    fn x(&self, at_ms: u64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (at_ms as f64 / self.duration_ms).min(1.0)
    }
}

/// One line of a panel.
struct Series<'a> {
    name: &'a str,
    class: &'a str,
    value: fn(&Sample) -> Option<u64>,
}

pub(super) fn timeline(journal: &Journal) -> String {
    let axis = Axis { duration_ms: journal.duration_ms.max(1) as f64 };
    let lanes: Vec<&str> = FAMILIES.into_iter().filter(|family| journal.injections.iter().any(|one| one.family == *family)).collect();
    let panels_top = 24.0 + LANE * lanes.len() as f64 + 12.0;
    let marks_top = panels_top + 3.0 * (PANEL + GAP);
    let height = marks_top + 58.0;
    let mut svg = String::new();
    // Writing to a String can't fail.
    let _ = write!(
        svg,
        "<svg id=\"timeline\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" tabindex=\"0\" aria-label=\"Timeline of the run. Arrow keys move from second to second.\" data-left=\"{LEFT}\" data-right=\"{RIGHT}\" data-ms=\"{}\">",
        journal.duration_ms.max(1)
    );
    stages(&mut svg, journal, &axis, height);
    bands(&mut svg, journal, &axis, &lanes, marks_top);
    let samples = &journal.timeline;
    panel(
        &mut svg,
        samples,
        &axis,
        panels_top,
        "records/s",
        &[
            Series { name: "sent", class: "sent", value: |sample| Some(sample.sent) },
            Series { name: "rows out", class: "rows", value: |sample| Some(sample.rows) },
        ],
    );
    panel(
        &mut svg,
        samples,
        &axis,
        panels_top + PANEL + GAP,
        "latency ms",
        &[
            Series { name: "p50", class: "p50", value: |sample| sample.latency_p50_ms },
            Series { name: "p99", class: "p99", value: |sample| sample.latency_p99_ms },
        ],
    );
    panel(
        &mut svg,
        samples,
        &axis,
        panels_top + 2.0 * (PANEL + GAP),
        "lag",
        &[Series { name: "records", class: "lag", value: |sample| sample.lag_records }],
    );
    marks(&mut svg, journal, &axis, marks_top);
    ticks(&mut svg, &axis, height);
    let _ = write!(svg, "<line id=\"cursor\" y1=\"20\" y2=\"{}\" x1=\"-9\" x2=\"-9\"/></svg>", height - 20.0);
    svg
}

/// Where the run was, as boundaries.
fn stages(svg: &mut String, journal: &Journal, axis: &Axis, height: f64) {
    for span in journal.stages.iter().filter(|span| matches!(span.stage, RunStage::Method | RunStage::Healing | RunStage::Draining)) {
        let x = axis.x(span.from_ms);
        let _ = write!(
            svg,
            "<line class=\"stage\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"14\" y2=\"{:.0}\"/><text class=\"stage\" x=\"{:.1}\" y=\"11\">{}</text>",
            height - 20.0,
            x + 3.0,
            span.stage.name()
        );
    }
}

fn bands(svg: &mut String, journal: &Journal, axis: &Axis, lanes: &[&str], bottom: f64) {
    for (index, family) in lanes.iter().enumerate() {
        let y = 24.0 + LANE * index as f64;
        let _ = write!(svg, "<text class=\"label\" x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{family}</text>", LEFT - 8.0, y + 13.0);
    }
    for injection in journal.injections.iter().filter(|one| one.outcome == InjectionOutcome::Injected) {
        let Some(lane) = lanes.iter().position(|family| *family == injection.family) else { continue };
        let (x, end) = (axis.x(injection.from_ms), axis.x(injection.to_ms.unwrap_or(injection.from_ms)));
        let width = (end - x).max(2.0);
        let y = 24.0 + LANE * lane as f64;
        let title = format!(
            "{} {} at {}, {}: {}",
            injection.fault,
            injection.hit.join(", "),
            time(injection.from_ms),
            injection.to_ms.map_or("at once".into(), |to_ms| format!("for {}", time(to_ms - injection.from_ms))),
            outcome(injection)
        );
        let title = escaped(&title);
        let _ = write!(
            svg,
            "<rect class=\"pale {f}\" x=\"{x:.1}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{:.0}\"/><rect class=\"band {f}\" tabindex=\"0\" x=\"{x:.1}\" y=\"{:.0}\" width=\"{width:.1}\" height=\"{:.0}\" aria-label=\"{title}\"><title>{title}</title></rect>",
            bottom - y,
            y + 2.0,
            LANE - 5.0,
            f = injection.family
        );
    }
}

fn panel(svg: &mut String, samples: &[Sample], axis: &Axis, top: f64, label: &str, series: &[Series<'_>]) {
    let most = samples.iter().flat_map(|sample| series.iter().filter_map(|one| (one.value)(sample))).max().unwrap_or(0).max(1);
    let scale = nice(most);
    let y = |value: u64| top + PANEL * (1.0 - value as f64 / scale as f64);
    let _ = write!(
        svg,
        "<text class=\"label\" x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{label}</text>",
        LEFT - 8.0,
        top + PANEL / 2.0 + 4.0
    );
    for value in [0, scale / 2, scale] {
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{h:.1}\" y2=\"{h:.1}\"/><text class=\"tick\" x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 4.0,
            y(value) + if value == 0 { 0.0 } else { 9.0 },
            if value == scale / 2 { String::new() } else { count(value) },
            h = y(value)
        );
    }
    for (index, one) in series.iter().enumerate() {
        let _ = write!(svg, "<path class=\"line {}\" d=\"{}\"/>", one.class, path(samples, axis, one.value, &y));
        let x = LEFT + 8.0 + 90.0 * index as f64;
        let _ = write!(
            svg,
            "<line class=\"line {}\" x1=\"{x:.0}\" x2=\"{:.0}\" y1=\"{l:.0}\" y2=\"{l:.0}\"/><text class=\"key\" x=\"{:.0}\" y=\"{:.0}\">{}</text>",
            one.class,
            x + 16.0,
            x + 20.0,
            top - 3.0,
            one.name,
            l = top - 7.0
        );
    }
}

/// A line with gaps where nothing was measured.
fn path(samples: &[Sample], axis: &Axis, value: fn(&Sample) -> Option<u64>, y: &dyn Fn(u64) -> f64) -> String {
    let mut path = String::new();
    let mut drawing = false;
    for sample in samples {
        match value(sample) {
            Some(value) => {
                let _ = write!(path, "{}{:.1} {:.1}", if drawing { 'L' } else { 'M' }, axis.x(sample.at_ms), y(value));
                drawing = true;
            }
            None => drawing = false,
        }
    }
    path
}

fn marks(svg: &mut String, journal: &Journal, axis: &Axis, top: f64) {
    let mut row = |name: &str, class: &str, y: f64, marks: &mut dyn Iterator<Item = (u64, String)>| {
        let _ = write!(svg, "<text class=\"label\" x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{name}</text>", LEFT - 8.0, y + 10.0);
        for (at_ms, title) in marks {
            let title = escaped(&title);
            let _ = write!(
                svg,
                "<rect class=\"mark {class}\" x=\"{:.1}\" y=\"{y:.0}\" width=\"2\" height=\"12\"><title>{title}</title></rect>",
                axis.x(at_ms) - 1.0
            );
        }
    };
    row(
        "owners",
        "owner",
        top,
        &mut journal.owner_changes.iter().map(|change| {
            let gap = change.total_ms.map_or(String::new(), |ms| format!(", {ms} ms to the first commit"));
            (change.at_ms, format!("{} {} → {} ({}{gap}) at {}", change.region, change.from, change.to, change.cause, time(change.at_ms)))
        }),
    );
    row(
        "processes",
        "death",
        top + 17.0,
        &mut journal
            .processes
            .iter()
            .map(|event| (event.at_ms, format!("{} {} at {}", event.process, event.what.text(), time(event.at_ms)))),
    );
}

fn ticks(svg: &mut String, axis: &Axis, height: f64) {
    let step_s = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 18_000]
        .into_iter()
        .find(|step| axis.duration_ms / 1_000.0 / f64::from(*step) <= 14.0);
    let step_ms = u64::from(step_s.unwrap_or(36_000_u32)) * 1_000;
    let mut at_ms = 0;
    while (at_ms as f64) <= axis.duration_ms {
        let (minutes, seconds) = (at_ms / 60_000, at_ms / 1_000 % 60);
        let _ = write!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{minutes}:{seconds:02}</text>",
            axis.x(at_ms),
            height - 6.0
        );
        at_ms += step_ms;
    }
}

/// The next number of the form 1, 2 or 5 times a power of ten.
fn nice(most: u64) -> u64 {
    let mut power = 1_u64;
    loop {
        for step in [1, 2, 5] {
            if power.saturating_mul(step) >= most {
                return power.saturating_mul(step).max(2);
            }
        }
        power = power.saturating_mul(10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_at_round_numbers() {
        for (most, scale) in [(1, 2), (2, 2), (3, 5), (999, 1_000), (1_001, 2_000), (4_100, 5_000)] {
            assert_eq!(nice(most), scale, "{most}");
        }
    }
}

//! One page that needs nothing else: no network, no fonts, no library. Readable in light and dark.

use super::{chart, count, escaped, looked, mib, notes, outcome, time};
use crate::journal::{InjectionOutcome, Journal};
use crate::verdict::rounded;
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Injections that are listed; a campaign of hours has thousands, and the timeline shows them all.
const INJECTIONS_MAX: usize = 500;

pub fn html(journal: &Journal) -> String {
    let title = escaped(&journal.title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
    );
    head(&mut page, journal);
    page.push_str("<h2>Timeline</h2>\n<p id=\"readout\" class=\"soft\" role=\"status\">Point at a second, or focus the timeline and use the arrow keys.</p>\n<div class=\"wide\">");
    page.push_str(&chart::timeline(journal));
    page.push_str("</div>\n");
    promise(&mut page, journal);
    faults(&mut page, journal);
    injections(&mut page, journal);
    noted(&mut page, journal);
    let _ = write!(
        page,
        "</main>\n<script type=\"application/json\" id=\"seconds\">{}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        seconds(journal)
    );
    page
}

// Writing to a String can't fail, so results of `write!` are dropped from here on.

fn head(page: &mut String, journal: &Journal) {
    let verdict = &journal.verdict;
    let class = serde_json::to_value(verdict.outcome).ok().and_then(|name| name.as_str().map(str::to_string)).unwrap_or_default();
    let _ = write!(
        page,
        "<h1>{}</h1>\n<p><span class=\"verdict {class}\">{}</span> <span class=\"soft\">plan {}, seed {}, streamshield {}, {} CPUs, began {}, exit code {}</span></p>\n",
        escaped(&journal.title),
        verdict.outcome.words(),
        escaped(&journal.plan_name),
        journal.seed,
        escaped(&journal.version.streamshield),
        journal.version.cpus,
        escaped(&journal.started_at),
        verdict.exit_code
    );
    list(page, "", &verdict.reasons);
    list(page, "Not possible here, so not proven:", &verdict.not_possible_here);
    let _ = write!(page, "<p class=\"soft\">The same again: <code>{}</code></p>\n<div class=\"figures\">", escaped(&journal.replay));
    let types = journal.faults.iter().filter(|fault| fault.fired > 0).count();
    let mut figures = vec![
        ("took", time(journal.duration_ms)),
        ("records verified", count(journal.records.verified)),
        ("types of faults fired", types.to_string()),
        ("workers killed", count(journal.kills.workers)),
        ("brokers killed", count(journal.kills.brokers)),
    ];
    if let Some(after_ms) = journal.catch_up_ms {
        figures.push(("to catch up", time(after_ms)));
    }
    if journal.cost.cpu_seconds > 0.0 && journal.records.sent > 0 {
        figures.push(("CPU s per million", rounded((journal.cost.cpu_seconds * 1e7 / journal.records.sent as f64).round() / 10.0)));
        figures.push(("memory of a worker", mib(journal.cost.peak_rss_bytes)));
    }
    for (name, value) in figures {
        let _ = write!(page, "<div><b>{value}</b>{name}</div>");
    }
    page.push_str("</div>\n");
}

fn list(page: &mut String, before: &str, items: &[String]) {
    if items.is_empty() {
        return;
    }
    if !before.is_empty() {
        let _ = write!(page, "<p>{before}</p>");
    }
    let _ = writeln!(page, "<ul>{}</ul>", items.iter().map(|item| format!("<li>{}</li>", escaped(item))).collect::<String>());
}

/// Cells are HTML already; those from the second on of `numbers` are aligned as numbers.
fn table(page: &mut String, title: &str, heads: &[&str], numbers: std::ops::Range<usize>, rows: &[Vec<String>]) {
    if rows.is_empty() {
        return;
    }
    let class = |index: usize| if numbers.contains(&index) { " class=\"n\"" } else { "" };
    let _ = write!(page, "<h2>{title}</h2>\n<div class=\"wide\"><table><thead><tr>");
    for (index, head) in heads.iter().enumerate() {
        let _ = write!(page, "<th{}>{head}</th>", class(index));
    }
    page.push_str("</tr></thead><tbody>\n");
    for row in rows {
        let cells: String = row.iter().enumerate().map(|(index, cell)| format!("<td{}>{cell}</td>", class(index))).collect();
        let _ = writeln!(page, "<tr>{cells}</tr>");
    }
    page.push_str("</tbody></table></div>\n");
}

fn status(class: &str, text: &str) -> String {
    format!("<span class=\"{class}\">{text}</span>")
}

fn promise(page: &mut String, journal: &Journal) {
    let invariants: Vec<Vec<String>> = journal
        .invariants
        .iter()
        .map(|one| {
            let class = match one.status() {
                "held" => "good",
                "violated" => "bad",
                _ => "warn",
            };
            let detail = if one.anomalies > 0 { format!("{} anomalies", count(one.anomalies)) } else { looked(&one.looked) };
            vec![one.invariant.name().into(), status(class, one.status()), escaped(&detail)]
        })
        .collect();
    table(page, "Invariants", &["", "", ""], 0..0, &invariants);
    let anomalies: Vec<Vec<String>> = journal
        .invariants
        .iter()
        .flat_map(|one| &one.examples)
        .map(|finding| {
            vec![status("bad", &escaped(&finding.kind)), format!("<code>{}</code>", escaped(&finding.place)), escaped(&finding.detail)]
        })
        .collect();
    table(page, "Anomalies", &["kind", "where", "what"], 0..0, &anomalies);
    let thresholds: Vec<Vec<String>> = journal
        .thresholds
        .iter()
        .map(|one| {
            let class = if one.holds { "good" } else { "bad" };
            vec![escaped(&one.text()), status(class, one.status()), one.measured.map_or("–".into(), rounded), count(one.samples)]
        })
        .collect();
    table(page, "Thresholds", &["", "", "measured", "samples"], 2..4, &thresholds);
    let phases: Vec<Vec<String>> = journal
        .latency
        .iter()
        .filter(|(_, latency)| latency.rows > 0)
        .map(|(phase, latency)| {
            let ratio = journal.throughput.get(phase).and_then(|one| one.ratio()).map_or(String::new(), rounded);
            let mut row = vec![phase.name().to_string()];
            row.extend([latency.rows, latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.max_ms].map(count));
            row.push(ratio);
            row
        })
        .collect();
    table(
        page,
        "Latency from the scheduled send time to the committed row",
        &["phase", "rows", "p50 ms", "p90 ms", "p99 ms", "max ms", "taken of sent"],
        1..7,
        &phases,
    );
}

fn faults(page: &mut String, journal: &Journal) {
    let rows: Vec<Vec<String>> = journal
        .faults
        .iter()
        .map(|fault| {
            let status = match &fault.not_possible_here {
                _ if !fault.failed.is_empty() => status("bad", &escaped(&fault.failed.join("; "))),
                None if !fault.is_proven() => status("warn", "not proven"),
                Some(why) if !fault.is_proven() => status("warn", &format!("not proven, not possible here: {}", escaped(why))),
                Some(why) if fault.injected == 0 => status("warn", &format!("not possible here: {}", escaped(why))),
                Some(why) => status("warn", &format!("{} times not possible here: {}", fault.impossible, escaped(why))),
                None => status("good", "fired"),
            };
            let mut row = vec![fault.fault.clone()];
            let numbers = [u64::from(fault.injected), u64::from(fault.fired), fault.count, fault.records_during, fault.taken_during];
            row.extend(numbers.map(count));
            row.push(status);
            row
        })
        .collect();
    table(page, "Faults", &["", "injected", "fired", "evidence", "sent meanwhile", "taken meanwhile", ""], 1..6, &rows);
}

fn injections(page: &mut String, journal: &Journal) {
    let rows: Vec<Vec<String>> = journal
        .injections
        .iter()
        .take(INJECTIONS_MAX)
        .map(|one| {
            let lasted = match (&one.outcome, one.to_ms) {
                (InjectionOutcome::Injected, Some(to_ms)) if to_ms > one.from_ms => time(to_ms - one.from_ms),
                _ => String::new(),
            };
            let parameters: Vec<String> = one.parameters.iter().map(|(name, value)| format!("{name} {value}")).collect();
            vec![
                time(one.from_ms),
                lasted,
                escaped(&one.fault),
                escaped(&parameters.join(", ")),
                escaped(&one.hit.join(", ")),
                escaped(&outcome(one)),
            ]
        })
        .collect();
    table(page, "Injections", &["at", "lasted", "fault", "with", "hit", "what was seen"], 0..2, &rows);
}

fn noted(page: &mut String, journal: &Journal) {
    if !journal.notes.is_empty() {
        page.push_str("<h2>Notes</h2>\n");
        list(page, "", &notes(journal));
    }
}

/// For the cursor: arrays, since an hour has thousands of them.
fn seconds(journal: &Journal) -> String {
    let rows: Vec<_> = journal
        .timeline
        .iter()
        .map(|one| {
            (
                one.at_ms,
                one.sent,
                one.rows,
                one.latency_p50_ms,
                one.latency_p99_ms,
                one.lag_records,
                one.workers_alive,
                one.rss_bytes >> 20,
                one.cpu_percent.round(),
            )
        })
        .collect();
    serde_json::to_string(&rows).expect("numbers always serialize")
}

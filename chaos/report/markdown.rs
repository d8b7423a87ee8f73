//! The scorecard: what a reviewer reads in a pull request.

use super::{count, looked, mib, notes, time};
use crate::journal::Journal;
use crate::plan::Phase;
use crate::verdict::{Outcome, rounded};
use std::fmt::Write;

/// Injections are listed one by one up to this many; the table of faults has the sums.
const EXAMPLES_MAX: usize = 20;

pub fn markdown(journal: &Journal) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = head(&mut text, journal)
        .and_then(|()| promise(&mut text, journal))
        .and_then(|()| evidence(&mut text, journal))
        .and_then(|()| figures(&mut text, journal))
        .and_then(|()| noted(&mut text, journal));
    text
}

fn head(text: &mut String, journal: &Journal) -> std::fmt::Result {
    let verdict = &journal.verdict;
    writeln!(text, "# {}: {}\n", cell(&journal.title), verdict.outcome.words())?;
    writeln!(
        text,
        "Plan `{}`, seed {}, streamshield {}, {} CPUs, {}, began {}, took {}. Exit code {}.\n",
        journal.plan_name,
        journal.seed,
        journal.version.streamshield,
        journal.version.cpus,
        mib(journal.version.memory_bytes),
        journal.started_at,
        time(journal.duration_ms),
        verdict.exit_code
    )?;
    if !verdict.reasons.is_empty() {
        for reason in &verdict.reasons {
            writeln!(text, "- {}", cell(reason))?;
        }
        writeln!(text)?;
    }
    if !verdict.not_possible_here.is_empty() {
        writeln!(text, "Not possible here, so not proven:\n")?;
        for fault in &verdict.not_possible_here {
            writeln!(text, "- {}", cell(fault))?;
        }
        writeln!(text)?;
    }
    if verdict.outcome == Outcome::Violated || verdict.outcome == Outcome::SloMissed {
        writeln!(text, "The same again: `{}`\n", journal.replay)?;
    }
    Ok(())
}

fn promise(text: &mut String, journal: &Journal) -> std::fmt::Result {
    if !journal.invariants.is_empty() {
        writeln!(text, "| invariant | | |\n|---|---|---|")?;
        for result in &journal.invariants {
            let detail = if result.anomalies > 0 { format!("{} anomalies", count(result.anomalies)) } else { looked(&result.looked) };
            writeln!(text, "| {} | {} | {} |", result.invariant.name(), bold_if(result.anomalies > 0, result.status()), cell(&detail))?;
        }
        writeln!(text)?;
    }
    let examples: Vec<_> = journal.invariants.iter().flat_map(|result| &result.examples).take(EXAMPLES_MAX).collect();
    if !examples.is_empty() {
        writeln!(text, "| anomaly | where | what |\n|---|---|---|")?;
        for finding in examples {
            writeln!(text, "| {} | {} | {} |", cell(&finding.kind), cell(&finding.place), cell(&finding.detail))?;
        }
        writeln!(text)?;
    }
    if !journal.thresholds.is_empty() {
        writeln!(text, "| threshold | measured | samples | |\n|---|---|---|---|")?;
        for threshold in &journal.thresholds {
            let measured = threshold.measured.map_or("–".into(), rounded);
            let status = bold_if(!threshold.holds, threshold.status());
            writeln!(text, "| {} | {measured} | {} | {status} |", threshold.text(), count(threshold.samples))?;
        }
        writeln!(text)?;
    }
    Ok(())
}

fn evidence(text: &mut String, journal: &Journal) -> std::fmt::Result {
    if journal.faults.is_empty() {
        return writeln!(text, "No fault was planned.\n");
    }
    let types = journal.faults.iter().filter(|fault| fault.fired > 0).count();
    writeln!(
        text,
        "{types} types of faults fired. Killed: {} workers, {} brokers. \
         Verified: {} records; {} were sent and {} taken while something was broken.\n",
        journal.kills.workers,
        journal.kills.brokers,
        count(journal.records.verified),
        count(journal.records.during_fault),
        count(journal.throughput.get(&Phase::Fault).map_or(0, |throughput| throughput.taken))
    )?;
    writeln!(text, "| fault | injected | fired | evidence | sent meanwhile | taken meanwhile | |\n|---|---|---|---|---|---|---|")?;
    for fault in &journal.faults {
        let status = match fault.never_possible_here() {
            _ if !fault.is_proven() => "**not proven**",
            Some(_) => "not possible here",
            None if fault.impossible > 0 => "not always possible here",
            None => "",
        };
        let numbers = [u64::from(fault.injected), u64::from(fault.fired), fault.count, fault.records_during, fault.taken_during].map(count);
        writeln!(text, "| {} | {} | {status} |", fault.fault, numbers.join(" | "))?;
    }
    writeln!(text)
}

fn figures(text: &mut String, journal: &Journal) -> std::fmt::Result {
    if !journal.latency.is_empty() {
        writeln!(text, "| phase | rows | p50 ms | p90 ms | p99 ms | max ms | taken of sent |\n|---|---|---|---|---|---|---|")?;
        for (phase, latency) in &journal.latency {
            let ratio = journal.throughput.get(phase).and_then(|throughput| throughput.ratio()).map_or(String::new(), rounded);
            let Some(figures) = (latency.rows > 0).then_some([latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.max_ms].map(count))
            else {
                continue;
            };
            writeln!(text, "| {} | {} | {} | {ratio} |", phase.name(), count(latency.rows), figures.join(" | "))?;
        }
        writeln!(text)?;
    }
    let cost = &journal.cost;
    if cost.cpu_seconds > 0.0 && journal.records.sent > 0 {
        let per_million = cost.cpu_seconds * 1e6 / journal.records.sent as f64;
        writeln!(
            text,
            "Workers took {} CPU seconds ({} per million records) and at most {} each.",
            rounded(cost.cpu_seconds),
            rounded(per_million),
            mib(cost.peak_rss_bytes)
        )?;
    }
    if let Some(after_ms) = journal.catch_up_ms {
        writeln!(text, "Caught up {} after everything was undone.", time(after_ms))?;
    }
    writeln!(
        text,
        "The supervisor's timer was late for {} % of the time, at most by {} ms.",
        rounded(journal.host.share() * 100.0),
        journal.host.latest_ms
    )
}

fn noted(text: &mut String, journal: &Journal) -> std::fmt::Result {
    if journal.notes.is_empty() {
        return Ok(());
    }
    writeln!(text, "\nNotes:\n")?;
    notes(journal).iter().try_for_each(|note| writeln!(text, "- {}", cell(note)))
}

fn bold_if(bold: bool, text: &str) -> String {
    if bold { format!("**{text}**") } else { text.into() }
}

/// Text that can't end a cell or a line.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

//! A journal for people and for machines: Markdown for a pull request, JUnit for a CI server, HTML with a timeline for those who look closer.
//!
//! All of it is made from the journal alone, so a report can be made again, elsewhere, and later.

mod chart;
mod html;
mod junit;
mod markdown;

pub use html::html;
pub use junit::junit;
pub use markdown::markdown;

use crate::journal::{Injection, InjectionOutcome, Journal, Looked};
use crate::verdict::rounded;
use std::path::Path;

/// Notes that are shown; a run of hours may have thousands.
const NOTES_MAX: usize = 100;

/// Writes all three beside the journal.
pub fn write_all(journal: &Journal, folder: &Path) -> std::io::Result<()> {
    std::fs::write(folder.join("report.md"), markdown(journal))?;
    std::fs::write(folder.join("report.html"), html(journal))?;
    std::fs::write(folder.join("junit.xml"), junit(journal))
}

/// Text for HTML and XML. What XML can't hold at all becomes `?`.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' | '\r' => escaped.push(character),
            character if character < ' ' || matches!(character, '\u{fffe}' | '\u{ffff}') => escaped.push('?'),
            character => escaped.push(character),
        }
    }
    escaped
}

/// `3 min 5 s`
fn time(ms: u64) -> String {
    let seconds = ms / 1_000;
    match (seconds / 60, seconds % 60) {
        (0, _) => format!("{} s", rounded(ms as f64 / 1_000.0)),
        (minutes, 0) => format!("{minutes} min"),
        (minutes, seconds) => format!("{minutes} min {seconds} s"),
    }
}

/// `1,234,567`
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", count(bytes >> 20))
}

/// What was looked at, for tables.
fn looked(looked: &Looked) -> String {
    match looked {
        Looked::At(things) => format!("{} looked at", count(*things)),
        Looked::NotApplicable(why) | Looked::Not(why) => why.clone(),
    }
}

/// The last ones, as the end is what they are read for; before them how many there are besides.
fn notes(journal: &Journal) -> Vec<String> {
    let more = journal.notes.len().saturating_sub(NOTES_MAX);
    let earlier = (more > 0).then(|| format!("{} earlier ones are in the journal", count(more as u64)));
    earlier.into_iter().chain(journal.notes[more..].iter().map(|note| format!("{}: {}", time(note.at_ms), note.text))).collect()
}

fn outcome(injection: &Injection) -> String {
    match &injection.outcome {
        InjectionOutcome::Begun => "under way when the run ended".into(),
        InjectionOutcome::Injected => injection.evidence.clone(),
        InjectionOutcome::NotPossible(why) => format!("not possible here: {why}"),
        InjectionOutcome::NoTarget(why) => format!("no target: {why}"),
        InjectionOutcome::Failed(why) => format!("failed: {why}"),
    }
}

#[cfg(test)]
mod report_test;

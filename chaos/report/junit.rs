//! JUnit XML: one test case for each invariant, threshold, probe and fault, so that a CI server shows which one it was.
//!
//! A fault that this host can't inject is skipped, with the reason: it did not pass. One that it can't always inject, neither.

use super::{escaped, looked};
use crate::journal::{Journal, Looked};
use crate::plan::Mode;
use crate::verdict::{Outcome, rounded};
use std::fmt::Write;

enum Result {
    Passed,
    Failed(String),
    /// Not the job's fault.
    Error(String),
    Skipped(String),
}

struct Case {
    class: &'static str,
    name: String,
    result: Result,
}

pub fn junit(journal: &Journal) -> String {
    let cases = cases(journal);
    let number = |wanted: fn(&Result) -> bool| cases.iter().filter(|case| wanted(&case.result)).count();
    let failures = number(|result| matches!(result, Result::Failed(_)));
    let errors = number(|result| matches!(result, Result::Error(_)));
    let skipped = number(|result| matches!(result, Result::Skipped(_)));
    let seconds = rounded(journal.duration_ms as f64 / 1_000.0);
    let title = escaped(&journal.title);
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let totals = format!("tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\" time=\"{seconds}\"", cases.len());
    // Writing to a String can't fail.
    let _ = writeln!(text, "<testsuites name=\"streamshield chaos\" {totals}>");
    let _ = writeln!(text, "  <testsuite name=\"{title}\" {totals} timestamp=\"{}\">", escaped(&journal.started_at));
    let properties = [
        ("seed", journal.seed.to_string()),
        ("plan", journal.plan_name.clone()),
        ("version", journal.version.streamshield.clone()),
        ("replay", journal.replay.clone()),
    ];
    let _ = writeln!(text, "    <properties>");
    for (name, value) in properties {
        let _ = writeln!(text, "      <property name=\"{name}\" value=\"{}\"/>", escaped(&value));
    }
    let _ = writeln!(text, "    </properties>");
    for case in &cases {
        let _ = writeln!(text, "    {}", case_text(case));
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

fn case_text(case: &Case) -> String {
    let open = format!("<testcase classname=\"{}\" name=\"{}\"", case.class, escaped(&case.name));
    match &case.result {
        Result::Passed => format!("{open}/>"),
        Result::Failed(why) => format!("{open}><failure message=\"{}\"/></testcase>", escaped(why)),
        Result::Error(why) => format!("{open}><error message=\"{}\"/></testcase>", escaped(why)),
        Result::Skipped(why) => format!("{open}><skipped message=\"{}\"/></testcase>", escaped(why)),
    }
}

fn cases(journal: &Journal) -> Vec<Case> {
    let outcome = journal.verdict.outcome;
    let reasons = journal.verdict.reasons.join("; ");
    let verdict = match outcome {
        Outcome::Pass => Result::Passed,
        Outcome::SloMissed | Outcome::Violated => Result::Failed(reasons),
        Outcome::Inconclusive | Outcome::HarnessError => Result::Error(format!("{}: {reasons}", outcome.words())),
    };
    let mut cases = vec![Case { class: "chaos", name: "verdict".into(), result: verdict }];
    cases.extend(journal.invariants.iter().map(|one| {
        let result = match (&one.looked, one.examples.first()) {
            (_, Some(first)) => {
                Result::Failed(format!("{} anomalies, first: {} at {}: {}", one.anomalies, first.kind, first.place, first.detail))
            }
            (Looked::At(_), None) => Result::Passed,
            (Looked::NotApplicable(_), None) => Result::Skipped(looked(&one.looked)),
            (Looked::Not(_), None) => Result::Error(looked(&one.looked)),
        };
        Case { class: "chaos.invariant", name: one.invariant.name().into(), result }
    }));
    cases.extend(journal.thresholds.iter().map(|one| {
        let result = match one.measured {
            Some(_) if one.holds => Result::Passed,
            Some(measured) => Result::Failed(format!("measured {}", rounded(measured))),
            None => Result::Error("not measured".into()),
        };
        Case { class: "chaos.threshold", name: one.text(), result }
    }));
    for (mode, when) in [(Mode::Before, "before"), (Mode::After, "after")] {
        cases.extend(journal.steady_state.iter().filter(|reading| reading.mode == mode).map(|reading| {
            let value = reading.value.map_or("nobody answered".into(), rounded);
            let result = match (reading.met, mode) {
                (true, _) => Result::Passed,
                (false, Mode::Before) => Result::Error(value),
                (false, _) => Result::Failed(value),
            };
            Case { class: "chaos.steady_state", name: format!("{} {when}", reading.name), result }
        }));
    }
    cases.extend(journal.faults.iter().map(|fault| {
        let result = match (fault.lacks(), &fault.not_possible_here) {
            _ if !fault.failed.is_empty() => Result::Error(fault.failed.join("; ")),
            (Some(lacks), Some(why)) => Result::Error(format!("{lacks}; not possible here: {why}")),
            (Some(lacks), None) => Result::Error(lacks),
            (None, Some(why)) if fault.injected == 0 => Result::Skipped(format!("not possible here: {why}")),
            (None, Some(why)) => {
                Result::Skipped(format!("fired {} times, {} times not possible here: {why}", fault.fired, fault.impossible))
            }
            (None, None) => Result::Passed,
        };
        Case { class: "chaos.fault", name: fault.fault.clone(), result }
    }));
    cases
}

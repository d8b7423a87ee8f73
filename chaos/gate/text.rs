//! The comparison as a table, for a pull request.

use super::Promotion;
use crate::verdict::rounded;
use std::fmt::Write;

pub fn markdown(promotion: &Promotion) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = writeln!(text, "# {}\n", if promotion.promoted { "Promoted" } else { "Not promoted" });
    let _ = writeln!(
        text,
        "Plan `{}`, seed {}. Baseline: {}. Candidate: {}. A figure may be worse by {:.0} %.\n",
        promotion.plan,
        promotion.seed,
        promotion.baseline.outcome.words(),
        promotion.candidate.outcome.words(),
        promotion.tolerance * 100.0
    );
    for reason in &promotion.reasons {
        let _ = writeln!(text, "- {}", reason.replace('\n', " "));
    }
    if !promotion.reasons.is_empty() {
        text.push('\n');
    }
    text.push_str("| | baseline | candidate | change | |\n|---|---|---|---|---|\n");
    for change in promotion.changes.iter().filter(|change| change.baseline.is_some() || change.candidate.is_some()) {
        let few_digits = |value: f64| if value < 10.0 { value } else { (value * 10.0).round() / 10.0 };
        let figure = |value: Option<f64>| value.map_or("–".into(), |value| rounded(few_digits(value)));
        let by = change.change.map_or(String::new(), |by| format!("{:+.0} %", by * 100.0));
        let worse = if change.worse { "**worse**" } else { "" };
        let _ = writeln!(
            text,
            "| {}, {} | {} | {} | {by} | {worse} |",
            change.measure,
            change.unit,
            figure(change.baseline),
            figure(change.candidate)
        );
    }
    let prices = &promotion.prices;
    let _ = writeln!(
        text,
        "\nCost: what the workers used of processors, at {} an hour, and of memory, at {} a GiB and hour.",
        prices.cpu_hour, prices.gib_hour
    );
    if !promotion.not_possible_here.is_empty() {
        text.push_str("\nNot possible here, so not proven:\n\n");
        for fault in &promotion.not_possible_here {
            let _ = writeln!(text, "- {fault}");
        }
    }
    text
}

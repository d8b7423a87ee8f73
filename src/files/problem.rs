//! Problems with a file: what is wrong, where in it, and what to do.
//!
//! Whatever can be checked is checked before anything is reported, so a problem is a value that is collected, not an
//! error that is thrown. Reports show the line as the user wrote it (`${env:X}`, never its value); literal secrets in the
//! file are blanked out.

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity, SourceCode};
use parking_lot::Mutex;
use std::fmt;
use std::io::IsTerminal;
use std::ops::Range;
use std::sync::Arc;

/// Columns of a report that does not go to a terminal.
const PLAIN_WIDTH: usize = 120;

/// A file that problems point into.
pub struct SourceFile {
    /// As the user named it.
    pub name: String,
    pub text: String,
    blanked: Mutex<Vec<Range<usize>>>,
}

impl SourceFile {
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Arc<SourceFile> {
        Arc::new(SourceFile { name: name.into(), text: text.into(), blanked: Mutex::new(Vec::new()) })
    }

    /// Never shows this part of the file. A character that it cuts goes as a whole.
    pub fn blank(&self, span: Range<usize>) {
        let start = floor_boundary(&self.text, span.start);
        let end = (span.end..self.text.len()).find(|at| self.text.is_char_boundary(*at)).unwrap_or(self.text.len());
        self.blanked.lock().push(start..end);
    }

    /// The text with secrets replaced, byte positions kept.
    fn shown(&self) -> String {
        let mut bytes = self.text.clone().into_bytes();
        for span in self.blanked.lock().iter() {
            let end = span.end.min(bytes.len());
            for byte in bytes.get_mut(span.start.min(end)..end).into_iter().flatten().filter(|byte| **byte != b'\n') {
                *byte = b'*';
            }
        }
        String::from_utf8(bytes).unwrap_or_default()
    }
}

/// Part of a file.
#[derive(Clone)]
pub struct Place {
    pub file: Arc<SourceFile>,
    pub span: Range<usize>,
}

/// One thing that is wrong, or worth a word.
#[derive(Clone)]
pub struct Problem {
    pub severity: Severity,
    pub message: String,
    pub hint: Option<String>,
    pub place: Option<Place>,
}

impl Problem {
    pub fn error(message: impl Into<String>) -> Problem {
        Problem { severity: Severity::Error, message: message.into(), hint: None, place: None }
    }

    pub fn warning(message: impl Into<String>) -> Problem {
        Problem { severity: Severity::Warning, ..Problem::error(message) }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }

    pub fn maybe_hint(mut self, hint: Option<String>) -> Problem {
        self.hint = hint.or(self.hint);
        self
    }

    pub fn at(mut self, file: &Arc<SourceFile>, span: Range<usize>) -> Problem {
        self.place = Some(Place { file: file.clone(), span });
        self
    }

    pub fn at_place(mut self, place: Option<Place>) -> Problem {
        self.place = place;
        self
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// Everything found in one go.
#[derive(Clone, Default)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    pub fn add(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    pub fn has_errors(&self) -> bool {
        self.0.iter().any(Problem::is_error)
    }

    /// Reports to standard error, in file order, errors last so that they stay on the screen.
    pub fn print(&self, redact: &dyn Fn(&str) -> String) {
        let mut sorted: Vec<&Problem> = self.0.iter().collect();
        sorted.sort_by_key(|problem| (problem.is_error(), problem.place.as_ref().map_or(0, |place| place.span.start)));
        for (index, problem) in sorted.into_iter().enumerate() {
            if index > 0 {
                eprintln!();
            }
            eprint!("{}", render(problem, redact, std::io::stderr().is_terminal()));
        }
    }
}

/// The report of one problem.
pub fn render(problem: &Problem, redact: &dyn Fn(&str) -> String, terminal: bool) -> String {
    let colored = terminal && std::env::var_os("NO_COLOR").is_none();
    let theme = if colored { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let width = crossterm::terminal::size().ok().filter(|_| terminal).map_or(PLAIN_WIDTH, |(columns, _)| usize::from(columns));
    let report = Report {
        severity: problem.severity,
        message: redact(&problem.message),
        hint: problem.hint.as_deref().map(redact),
        source: problem.place.as_ref().map(|place| NamedSource::new(&place.file.name, place.file.shown())),
        span: problem.place.as_ref().map(visible),
    };
    let mut text = String::new();
    let handler = GraphicalReportHandler::new_themed(theme).with_width(width).with_links(colored);
    match handler.render_report(&mut text, &report) {
        Ok(()) => text,
        Err(_) => format!("error: {}\n", report.message),
    }
}

/// A span of at least one byte on its first line: a label over many lines hides what it marks.
fn visible(place: &Place) -> Range<usize> {
    let text = &place.file.text;
    let start = floor_boundary(text, place.span.start);
    let line_end = text[start..].find('\n').map_or(text.len(), |length| start + length);
    let end = place.span.end.clamp(start, line_end.max(start));
    start..floor_boundary(text, end.max((start + 1).min(text.len())))
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[derive(Debug)]
struct Report {
    severity: Severity,
    message: String,
    hint: Option<String>,
    source: Option<NamedSource<String>>,
    span: Option<Range<usize>>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.hint.as_ref().map(|hint| Box::new(hint) as Box<dyn fmt::Display>)
    }
    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|source| source as &dyn SourceCode)
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.span.clone()?;
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(Some("here".into()), span))))
    }
}

/// The candidate that was probably meant, by edit distance.
pub fn did_you_mean<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = 1 + written.len() / 4;
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(written, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, where an upper-case letter or a `-` for `_` costs nothing.
fn edit_distance(a: &str, b: &str) -> usize {
    let normal = |text: &str| text.to_lowercase().replace('-', "_").chars().collect::<Vec<_>>();
    let (a, b) = (normal(a), normal(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_suggested_and_a_far_one_is_not() {
        let keys = ["commit_interval", "state_dir", "sql", "sql_file"];
        assert_eq!(did_you_mean("comit_interval", keys), Some("commit_interval"));
        assert_eq!(did_you_mean("stateDir", keys), Some("state_dir"));
        assert_eq!(did_you_mean("sql-file", keys), Some("sql_file"));
        assert_eq!(did_you_mean("watermark", keys), None);
    }

    #[test]
    fn a_blanked_secret_is_not_in_the_report_of_its_neighbour() {
        let file = SourceFile::new("job.yaml", "password: hunter2\nnam: x\n");
        file.blank(10..17);
        let problem = Problem::error("unknown key `nam`").at(&file, 18..21);
        let report = render(&problem, &|text| text.to_string(), false);
        assert!(report.contains("job.yaml:2:1") && report.contains("password: *******"), "{report}");
    }

    #[test]
    fn a_blanked_part_that_cuts_a_character_takes_all_of_it() {
        let file = SourceFile::new("job.yaml", "password: é2é\nnam: x\n");
        file.blank(11..14);
        let report = render(&Problem::error("unknown key `nam`").at(&file, 16..19), &|text| text.to_string(), false);
        assert!(report.contains("password: *****") && report.contains("nam: x"), "{report}");
    }
}

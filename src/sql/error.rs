//! Errors with a place: one sentence, a hint where there is a way around, and the bytes of the SQL text they are about.
//!
//! Inside of the crate an error is a [`Fault`] with sqlparser's line and column; DataFusion's errors are turned into one, and
//! a fault can travel through DataFusion's planner as an external error and comes out whole. [`Text`] knows the lines and
//! gives bytes in the end.

use datafusion_common::{DataFusionError, SchemaError};
use datafusion_expr::Expr;
use sqlparser::parser::ParserError;
use sqlparser::tokenizer::{Location, Span};
use std::ops::Range;

/// What is wrong with a SQL text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    pub message: String,
    pub hint: Option<String>,
    /// Bytes of the SQL text.
    pub span: Option<Range<usize>>,
}

/// An error before its place is turned into bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Fault {
    pub message: String,
    pub hint: Option<String>,
    pub span: Option<Span>,
}

pub(crate) type Checked<T> = Result<T, Fault>;

impl Fault {
    pub fn new(message: impl Into<String>) -> Self {
        Fault { message: message.into(), hint: None, span: None }
    }

    /// For what Flink has and this release does not.
    pub fn unsupported(what: impl std::fmt::Display, hint: impl Into<String>) -> Self {
        Fault::new(format!("{what} is not supported yet")).hint(hint)
    }

    pub fn at(mut self, span: Span) -> Self {
        if span != Span::empty() {
            self.span = Some(span);
        }
        self
    }

    /// Keeps a place that is known already.
    pub fn or_at(self, span: Span) -> Self {
        if self.span.is_some() { self } else { self.at(span) }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        self.hint = (!hint.is_empty()).then_some(hint);
        self
    }
}

impl From<Fault> for DataFusionError {
    fn from(fault: Fault) -> Self {
        DataFusionError::External(Box::new(fault))
    }
}

impl From<DataFusionError> for Fault {
    fn from(error: DataFusionError) -> Self {
        let span = error.diagnostic().and_then(|diagnostic| diagnostic.span).map(|span| Span {
            start: Location { line: span.start.line, column: span.start.column },
            end: Location { line: span.end.line, column: span.end.column },
        });
        if let DataFusionError::External(inner) = error.find_root()
            && let Some(fault) = inner.downcast_ref::<Fault>()
        {
            return span.map_or(fault.clone(), |span| fault.clone().or_at(span));
        }
        let fault = describe(&error);
        span.map_or(fault.clone(), |span| fault.at(span))
    }
}

/// DataFusion's error in our words.
fn describe(error: &DataFusionError) -> Fault {
    match error.find_root() {
        DataFusionError::SchemaError(inner, _) => match inner.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let names: Vec<&str> =
                    valid_fields.iter().map(|column| column.name.as_str()).filter(|name| !name.starts_with("__")).collect();
                let fault = Fault::new(format!("there is no column `{}`", field.flat_name()));
                match nearest(&field.name, names.iter().copied()) {
                    Some(near) => fault.hint(format!("did you mean `{near}`? Names are case-sensitive")),
                    None if names.is_empty() => fault,
                    None => fault.hint(format!("there are: {}", names.join(", "))),
                }
            }
            SchemaError::AmbiguousReference { field } => {
                Fault::new(format!("column `{}` is ambiguous", field.name)).hint("write it with its table's name or alias in front")
            }
            other => Fault::new(other.to_string()),
        },
        DataFusionError::Plan(message) if message.starts_with("Invalid function") => {
            let name = message.split('\'').nth(1).unwrap_or_default();
            let fault = Fault::new(format!("there is no function `{name}`"));
            // The nearest of all names is often far away.
            match message.lines().nth(1).and_then(|hint| nearest(name, hint.split('\'').skip(1).take(1))) {
                Some(near) => fault.hint(format!("did you mean `{near}`?")),
                None => fault,
            }
        }
        root => {
            let text = root.strip_backtrace();
            let text = ["Error during planning: ", "This feature is not implemented: ", "Internal error: "]
                .iter()
                .fold(text.as_str(), |text, prefix| text.strip_prefix(prefix).unwrap_or(text));
            let mut lines = text.lines();
            Fault::new(decapitalize(lines.next().unwrap_or_default())).hint(lines.next().unwrap_or_default().trim())
        }
    }
}

fn decapitalize(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(first), Some(second)) if second.is_lowercase() => first.to_lowercase().chain(text.chars().skip(1)).collect(),
        _ => text.to_owned(),
    }
}

impl From<ParserError> for Fault {
    fn from(error: ParserError) -> Self {
        let message = match error {
            ParserError::ParserError(message) | ParserError::TokenizerError(message) => message,
            ParserError::RecursionLimitExceeded => "the statement is nested too deeply".into(),
        };
        // sqlparser writes the place into the text.
        let Some((text, place)) = message.rsplit_once(" at Line: ") else { return Fault::new(decapitalize(&message)) };
        let mut numbers = place.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u64>().ok());
        match (numbers.next(), numbers.next()) {
            (Some(line), Some(column)) => {
                Fault::new(decapitalize(text)).at(Span { start: Location { line, column }, end: Location { line, column: column + 1 } })
            }
            _ => Fault::new(decapitalize(text)),
        }
    }
}

/// Where expressions of a logical plan stand, as far as their columns say: nothing else in them has a place.
pub(crate) fn place_of<'a>(expressions: impl IntoIterator<Item = &'a Expr>) -> Option<Span> {
    let span = expressions.into_iter().flat_map(Expr::column_refs).find_map(|column| column.spans.first())?;
    let place = |at: datafusion_common::Location| Location { line: at.line, column: at.column };
    Some(Span { start: place(span.start), end: place(span.end) })
}

/// The candidate that a misspelt name most likely means.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    candidates
        .map(|candidate| (datafusion_common::utils::datafusion_strsim::levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + name.len().min(candidate.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The SQL text, for turning lines and columns into bytes.
pub(crate) struct Text<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> Text<'a> {
    pub fn new(text: &'a str) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Text { text, line_starts }
    }

    /// Byte of a location; columns count characters from 1.
    fn byte(&self, location: Location) -> usize {
        let Some(&start) = (location.line as usize).checked_sub(1).and_then(|line| self.line_starts.get(line)) else {
            return self.text.len();
        };
        let rest = &self.text[start..];
        rest.char_indices().nth((location.column as usize).saturating_sub(1)).map_or(self.text.len(), |(at, _)| start + at)
    }

    pub fn locate(&self, fault: Fault) -> SqlError {
        let span = fault.span.map(|span| {
            let start = self.byte(span.start);
            start..self.byte(span.end).max(start)
        });
        SqlError { message: fault.message, hint: fault.hint, span }
    }
}

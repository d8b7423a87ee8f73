//! Typed reading of a table's `WITH (…)` options, with errors that point at the key and say what to write instead.
//!
//! A connector reads every option it knows through an [`OptionReader`]; a key that nobody has read by
//! [`OptionReader::finish`] is unknown, and the nearest known key becomes the hint. So the list of known options can't
//! drift from the code that reads them.
//!
//! ```
//! # use streamshield_connectors::options::*;
//! # use streamshield_core::table::TableDefinition;
//! # let table = TableDefinition { name: "t".into(), columns: vec![], primary_key: vec![],
//! #     options: [("connector", "x"), ("intervall", "5 s")].map(|(k, v)| (k.to_string(), v.to_string())).into() };
//! let mut options = OptionReader::new(&table);
//! let interval = options.duration("interval");
//! let errors = options.finish(|_| false);
//! assert_eq!(interval, None);
//! assert_eq!(errors[0].hint.as_deref(), Some("did you mean 'interval'?"));
//! ```

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;
use streamshield_core::table::{OptionError, TableDefinition};

/// An [`OptionError`] in one line.
pub fn refuse(key: impl Into<String>, message: impl Into<String>, hint: Option<String>) -> OptionError {
    OptionError { key: key.into(), message: message.into(), hint }
}

/// Reads the options of one table and collects what is wrong with them.
pub struct OptionReader<'a> {
    table: &'a TableDefinition,
    known: BTreeSet<String>,
    errors: Vec<OptionError>,
}

impl<'a> OptionReader<'a> {
    pub fn new(table: &'a TableDefinition) -> Self {
        OptionReader { table, known: BTreeSet::from(["connector".to_string()]), errors: Vec::new() }
    }

    pub fn table(&self) -> &'a TableDefinition {
        self.table
    }

    /// The option's text; marks the key as known.
    pub fn text(&mut self, key: &str) -> Option<&'a str> {
        self.know(key);
        self.table.option(key)
    }

    /// A required text: missing or empty is an error.
    pub fn required(&mut self, key: &str, example: &str) -> Option<&'a str> {
        let found = self.text(key).filter(|text| !text.trim().is_empty());
        if found.is_none() {
            let message = format!("the connector '{}' needs the option '{key}'", self.table.connector());
            self.errors.push(refuse("", message, Some(format!("add '{key}' = '{example}'"))));
        }
        found
    }

    /// A number; `what` completes "… is not".
    pub fn number<T: FromStr>(&mut self, key: &str, what: &str) -> Option<T> {
        let text = self.text(key)?;
        let parsed = text.trim().parse().ok();
        if parsed.is_none() {
            self.error(key, format!("'{key}' = '{text}' is not {what}"), None);
        }
        parsed
    }

    pub fn boolean(&mut self, key: &str) -> Option<bool> {
        let text = self.text(key)?;
        match text.trim().to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                self.error(key, format!("'{key}' = '{text}' is neither 'true' nor 'false'"), None);
                None
            }
        }
    }

    /// One of several words, in any case; returns the word as listed.
    pub fn choice(&mut self, key: &str, choices: &[&'static str]) -> Option<&'static str> {
        let text = self.text(key)?;
        let found = choices.iter().find(|choice| choice.eq_ignore_ascii_case(text.trim())).copied();
        if found.is_none() {
            let hint = nearest(text, choices.iter().copied()).map(|near| format!("did you mean '{near}'?"));
            self.error(key, format!("'{key}' = '{text}' is not one of {}", list(choices)), hint);
        }
        found
    }

    /// A duration as Flink writes them: `5 s`, `100ms`, `1 min`, `2 h`, `3 d`; a bare number is milliseconds.
    pub fn duration(&mut self, key: &str) -> Option<Duration> {
        let text = self.text(key)?;
        match parse_duration(text) {
            Ok(duration) => Some(duration),
            Err(message) => {
                self.error(
                    key,
                    format!("'{key}' = '{text}': {message}"),
                    Some("write a number and a unit: '100 ms', '5 s', '1 min', '2 h', '1 d'".into()),
                );
                None
            }
        }
    }

    /// A size as Flink writes them: `64 kb`, `1 mb`, `512`; units are powers of 1024.
    pub fn bytes(&mut self, key: &str) -> Option<u64> {
        let text = self.text(key)?;
        let parsed = parse_bytes(text);
        if parsed.is_none() {
            self.error(
                key,
                format!("'{key}' = '{text}' is not a size"),
                Some("write a number and a unit: '512 b', '64 kb', '16 mb', '1 gb'".into()),
            );
        }
        parsed
    }

    /// Marks a key as known without reading it.
    pub fn know(&mut self, key: &str) {
        if !self.known.contains(key) {
            self.known.insert(key.to_string());
        }
    }

    /// Adds a finding about one key.
    pub fn error(&mut self, key: &str, message: String, hint: Option<String>) {
        self.errors.push(refuse(key, message, hint));
    }

    pub fn add(&mut self, errors: impl IntoIterator<Item = OptionError>) {
        self.errors.extend(errors);
    }

    /// All findings, with the keys that nobody has read. `belongs_elsewhere` says which keys somebody else reads
    /// (`properties.*`, the format's: [`crate::formats::is_format_option`]).
    pub fn finish(mut self, belongs_elsewhere: impl Fn(&str) -> bool) -> Vec<OptionError> {
        for key in self.table.options.keys() {
            if self.known.contains(key) || belongs_elsewhere(key) {
                continue;
            }
            let message = format!("the connector '{}' has no option '{key}'", self.table.connector());
            let hint = nearest(key, self.known.iter().map(String::as_str)).map(|near| format!("did you mean '{near}'?"));
            self.errors.push(refuse(key, message, hint));
        }
        self.errors
    }
}

/// The candidate with the smallest edit distance, if it is near enough to be a slip of the finger.
pub fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let bound = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= bound)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance over characters, one row of the table at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Reads `5 s`, `100ms`, `1 min`…; a bare number is milliseconds, as in Flink.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_number(text).ok_or("not a duration")?;
    let nanos_per_unit: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "ms" | "milli" | "millis" | "millisecond" | "milliseconds" => 1_000_000,
        "ns" | "nano" | "nanos" | "nanosecond" | "nanoseconds" => 1,
        "µs" | "us" | "micro" | "micros" | "microsecond" | "microseconds" => 1_000,
        "s" | "sec" | "secs" | "second" | "seconds" => 1_000_000_000,
        "m" | "min" | "minute" | "minutes" => 60_000_000_000,
        "h" | "hour" | "hours" => 3_600_000_000_000,
        "d" | "day" | "days" => 86_400_000_000_000,
        unknown => return Err(format!("unknown unit '{unknown}'")),
    };
    number.checked_mul(nanos_per_unit).map(Duration::from_nanos).ok_or_else(|| "too long (the limit is 584 years)".into())
}

fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" | "bytes" => 0,
        "k" | "kb" | "kibibytes" => 10,
        "m" | "mb" | "mebibytes" => 20,
        "g" | "gb" | "gibibytes" => 30,
        "t" | "tb" | "tebibytes" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..digits].parse().ok()?, text[digits..].trim()))
}

/// `'a', 'b' and 'c'`, for messages.
pub fn list(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => quoted.join(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(options: &[(&str, &str)]) -> TableDefinition {
        let options = options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        TableDefinition { name: "t".into(), columns: vec![], options, primary_key: vec![] }
    }

    #[test]
    fn durations_are_written_as_in_flink() {
        for (text, millis) in [
            ("5 s", 5_000),
            ("100ms", 100),
            ("1 min", 60_000),
            ("2h", 7_200_000),
            ("1 d", 86_400_000),
            ("250", 250),
            (" 3 Seconds ", 3_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "s", "5 parsecs", "-5 s", "1.5 s", "99999999999 d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_unknown_key_is_told_with_its_nearest_neighbour() {
        let table = table(&[("connector", "c"), ("rows-per-secnd", "5"), ("zzz", "1"), ("json.x", "1")]);
        let mut options = OptionReader::new(&table);
        assert_eq!(options.number::<u64>("rows-per-second", "a number"), None);
        let errors = options.finish(|key| key.starts_with("json."));
        assert_eq!(errors.len(), 2);
        assert_eq!((errors[0].key.as_str(), errors[0].hint.as_deref()), ("rows-per-secnd", Some("did you mean 'rows-per-second'?")));
        assert_eq!((errors[1].key.as_str(), errors[1].hint.as_deref()), ("zzz", None));
    }

    #[test]
    fn a_wrong_value_names_its_key() {
        let table = table(&[("n", "many"), ("b", "perhaps"), ("c", "squential"), ("d", "5 lightyears"), ("s", "3 mb")]);
        let mut options = OptionReader::new(&table);
        assert_eq!(options.number::<u64>("n", "a number of rows"), None);
        assert_eq!(options.boolean("b"), None);
        assert_eq!(options.choice("c", &["random", "sequential"]), None);
        assert_eq!(options.duration("d"), None);
        assert_eq!(options.bytes("s"), Some(3 << 20));
        assert_eq!(options.required("path", "/data"), None);
        let errors = options.finish(|_| false);
        assert_eq!(errors.iter().map(|error| error.key.as_str()).collect::<Vec<_>>(), ["n", "b", "c", "d", ""]);
        assert_eq!(errors[2].hint.as_deref(), Some("did you mean 'sequential'?"));
    }
}

//! `${env:NAME}` and `${file:/path}` in the values of a job file.
//!
//! References are resolved after the YAML (and in SQL: the string literals) has been recognised, so a value can't add keys or SQL of
//! its own, and a reference inside a comment is no reference. In SQL they stand inside of quotes: `'${env:PASSWORD}'`. `$${` stands for `${`.

use super::secret::{Redactor, is_harmless, is_secret_by_name};
use super::yaml::Scalar;
use crate::problem::{Problem, Problems, SourceFile, did_you_mean};
use std::sync::Arc;

/// A key, a certificate chain; not a data file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where references lead to.
pub struct Interpolation<'a> {
    pub file: &'a Arc<SourceFile>,
    pub redactor: &'a Redactor,
}

/// Text after interpolation.
pub struct Resolved {
    pub text: String,
    /// File position of each byte of `text`, and of its end.
    pub places: Vec<usize>,
    pub interpolated: bool,
}

impl Interpolation<'_> {
    /// Resolves the references of a YAML value. `option` is its key.
    pub fn value(&self, scalar: &Scalar, option: &str, problems: &mut Problems) -> Resolved {
        let mut output = Output::new(scalar);
        let mut at = 0;
        while at < scalar.text.len() {
            at = self.step(scalar, at, &mut output, option, false, problems);
        }
        output.finish(scalar)
    }

    /// Resolves the references in the string literals of a SQL text, and hides the values of secret options that are written out.
    pub fn sql(&self, scalar: &Scalar, problems: &mut Problems) -> Resolved {
        let text = &scalar.text;
        let mut output = Output::new(scalar);
        // The literal before the one at hand: the option's key in `'key' = 'value'`.
        let (mut previous, mut previous_end) = (String::new(), 0);
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            if rest.starts_with("--") {
                let end = rest.find('\n').unwrap_or(rest.len());
                at = output.copy(scalar, at, at + end);
            } else if rest.starts_with("/*") {
                let end = rest.find("*/").map_or(rest.len(), |end| end + 2);
                at = output.copy(scalar, at, at + end);
            } else if rest.starts_with('\'') {
                let option = if text[previous_end..at].trim() == "=" { previous } else { String::new() };
                let is_secret = is_secret_by_name(&option) || is_secret_by_name(bare_option(&text[previous_end..at]));
                let start = at + 1;
                at = output.copy(scalar, at, start);
                let (resolved_from, interpolated) = (output.text.len(), std::mem::take(&mut output.interpolated));
                while at < text.len() && (!text[at..].starts_with('\'') || text[at..].starts_with("''")) {
                    let quote = text[at..].starts_with("''");
                    at = if quote { output.copy(scalar, at, at + 2) } else { self.step(scalar, at, &mut output, &option, true, problems) };
                }
                if is_secret && !output.interpolated {
                    self.file.blank(scalar.places[start]..scalar.places[at]);
                    self.redactor.add(&output.text[resolved_from..].replace("''", "'"));
                }
                output.interpolated |= interpolated;
                previous = text[start..at].to_string();
                at = output.copy(scalar, at, (at + 1).min(text.len()));
                previous_end = at;
            } else if rest.starts_with(['`', '"']) {
                let end = rest[1..].find(&rest[..1]).map_or(rest.len(), |end| end + 2);
                at = output.copy(scalar, at, at + end);
            } else if rest.starts_with("${env:") || rest.starts_with("${file:") {
                let length = rest.find('}').map_or(rest.len(), |end| end + 1);
                problems.add(
                    Problem::error(format!("`{}` stands outside of quotes", &rest[..length]))
                        .hint(
                            "references are resolved inside of string literals only, as in 'properties.sasl.password' = '${env:PASSWORD}'",
                        )
                        .at(self.file, scalar.places[at]..scalar.places[at + length]),
                );
                at = output.copy(scalar, at, at + length);
            } else {
                at = output.copy_char(scalar, at);
            }
        }
        output.finish(scalar)
    }

    /// Copies one character or resolves one reference; gives the position behind it.
    fn step(&self, scalar: &Scalar, at: usize, output: &mut Output, option: &str, in_sql: bool, problems: &mut Problems) -> usize {
        let rest = &scalar.text[at..];
        if rest.starts_with("$${") {
            return output.copy(scalar, at + 1, at + 3);
        }
        if !rest.starts_with("${") || (in_sql && !rest.starts_with("${env:") && !rest.starts_with("${file:")) {
            return output.copy_char(scalar, at);
        }
        let Some(length) = rest.find('}').map(|end| end + 1) else {
            let place = scalar.places[at]..scalar.places[scalar.text.len()];
            problems.add(Problem::error("`${` without `}`").hint("write `$${` where `${` is meant").at(self.file, place));
            return output.copy(scalar, at, scalar.text.len());
        };
        let reference = &rest[2..length - 1];
        match resolve(reference) {
            Ok(value) => {
                // Who keeps a value in a file means it.
                if reference.starts_with("file:") || !is_harmless(option) {
                    self.redactor.add(&value);
                }
                let value = if in_sql { value.replace('\'', "''") } else { value };
                output.insert(&value, scalar.places[at]);
            }
            Err((message, hint)) => {
                problems.add(Problem::error(message).hint(hint).at(self.file, scalar.places[at]..scalar.places[at + length]));
            }
        }
        output.interpolated = true;
        at + length
    }
}

/// The option whose value comes behind this text, where its name has no quotes: `properties.sasl.password = `. Any other name is a column's, with or
/// without its table: `u.password = `.
fn bare_option(before: &str) -> &str {
    let name = before.trim_end().strip_suffix('=').unwrap_or_default().trim_end();
    let name = name.rsplit(|c: char| !(c.is_alphanumeric() || matches!(c, '.' | '-' | '_'))).next().unwrap_or_default();
    if name.to_ascii_lowercase().starts_with("properties.") { name } else { "" }
}

/// What a reference stands for; or what is wrong, and a hint.
fn resolve(reference: &str) -> Result<String, (String, String)> {
    match reference.split_once(':') {
        Some(("env", name)) => std::env::var(name).map_err(|error| match error {
            std::env::VarError::NotPresent => {
                (format!("environment variable `{name}` is not set"), format!("set it before the start: export {name}=…"))
            }
            std::env::VarError::NotUnicode(_) => (
                format!("environment variable `{name}` is not valid UTF-8"),
                "give binary values through a file option of the client".into(),
            ),
        }),
        Some(("file", path)) => read_file(path).map_err(|reason| {
            (format!("can't read `{path}`: {reason}"), "the file must be readable for the user that runs the job".into())
        }),
        _ => {
            let hint = match reference.split_once(':') {
                Some((kind, name)) => did_you_mean(kind, ["env", "file"]).map(|kind| format!("did you mean `${{{kind}:{name}}}`?")),
                None => Some(format!("did you mean `${{env:{reference}}}`?")),
            };
            Err((
                format!("`${{{reference}}}` is not a reference"),
                hint.unwrap_or_else(|| "there are `${env:NAME}` and `${file:/path}`; write `$${` where `${` is meant".into()),
            ))
        }
    }
}

fn read_file(path: &str) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > FILE_BYTES_MAX {
        return Err(format!("it has {length} bytes, at most {FILE_BYTES_MAX} are read"));
    }
    let mut text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    // Editors and `echo` end a file with a line break that is not part of the password.
    while text.ends_with(['\n', '\r']) {
        text.pop();
    }
    Ok(text)
}

struct Output {
    text: String,
    places: Vec<usize>,
    interpolated: bool,
}

impl Output {
    fn new(scalar: &Scalar) -> Output {
        Output { text: String::with_capacity(scalar.text.len()), places: Vec::with_capacity(scalar.places.len()), interpolated: false }
    }

    fn copy(&mut self, scalar: &Scalar, from: usize, to: usize) -> usize {
        self.text.push_str(&scalar.text[from..to]);
        self.places.extend_from_slice(&scalar.places[from..to]);
        to
    }

    fn copy_char(&mut self, scalar: &Scalar, at: usize) -> usize {
        let length = scalar.text[at..].chars().next().map_or(1, char::len_utf8);
        self.copy(scalar, at, at + length)
    }

    fn insert(&mut self, value: &str, place: usize) {
        self.text.push_str(value);
        self.places.extend(std::iter::repeat_n(place, value.len()));
    }

    fn finish(mut self, scalar: &Scalar) -> Resolved {
        self.places.push(scalar.places.last().copied().unwrap_or_default());
        Resolved { text: self.text, places: self.places, interpolated: self.interpolated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every process has it.
    fn path() -> String {
        std::env::var("PATH").expect("PATH")
    }

    fn run(text: &str, sql: bool) -> (Resolved, Vec<Problem>, Redactor) {
        let (file, redactor, mut problems) = (SourceFile::new("job.yaml", text), Redactor::default(), Problems::default());
        let scalar = Scalar { text: text.into(), places: (0..=text.len()).collect() };
        let interpolation = Interpolation { file: &file, redactor: &redactor };
        let resolved =
            if sql { interpolation.sql(&scalar, &mut problems) } else { interpolation.value(&scalar, "sasl.password", &mut problems) };
        assert_eq!(resolved.places.len(), resolved.text.len() + 1);
        (resolved, problems.0, redactor)
    }

    #[test]
    fn values_are_replaced_and_become_secrets() {
        let (resolved, problems, redactor) = run("a ${env:PATH} b", false);
        assert_eq!(resolved.text, format!("a {} b", path()));
        assert!(problems.is_empty() && redactor.redact(&resolved.text) == "a ••• b");
        assert_eq!(resolved.places[resolved.text.len() - 1], 14, "the place of `b` is where it was written");
    }

    #[test]
    fn two_dollars_are_one() {
        assert_eq!(run("$${env:PATH} $5", false).0.text, "${env:PATH} $5");
    }

    #[test]
    fn what_cannot_be_resolved_is_named() {
        let messages = |text| run(text, false).1.into_iter().map(|problem| problem.message).collect::<Vec<_>>();
        assert_eq!(messages("${env:STREAMSHIELD_NOT_SET} ${file:/does/not/exist}").len(), 2);
        assert!(messages("${PATH}")[0].contains("not a reference"));
        assert!(messages("${env:PATH")[0].contains("without"));
    }

    #[test]
    fn sql_references_count_in_literals_only() {
        let (resolved, problems, _) = run("-- ${env:NO}\n/* ${env:NO} */ SELECT '${env:PATH}', 'it''s ${x}'", true);
        assert_eq!(resolved.text, format!("-- ${{env:NO}}\n/* ${{env:NO}} */ SELECT '{}', 'it''s ${{x}}'", path()));
        assert!(problems.is_empty());
        assert_eq!(run("SELECT ${env:PATH}", true).1.len(), 1);
    }

    #[test]
    fn secrets_that_are_written_into_sql_are_hidden() {
        for (sql, secret) in [
            ("WITH ('properties.sasl.password' = 'canary-1')", "canary-1"),
            ("WITH ('a' = 'b', 'properties.ssl.key.password'='it''s-a-canary')", "it's-a-canary"),
            ("WITH (topic = 'b', properties.sasl.password = 'canary-2')", "canary-2"),
        ] {
            let (resolved, problems, redactor) = run(sql, true);
            assert!(resolved.text == sql && problems.is_empty());
            assert_eq!(redactor.redact(secret), "•••", "{sql}");
        }
        for sql in ["WITH ('topic' = 'orders', 'a' = 'password'), password = 'long enough'", "WHERE u.password = 'long enough'"] {
            assert!(run(sql, true).2.is_empty(), "{sql}");
        }
        let (_, _, redactor) = run("WITH ('properties.sasl.password' = '${env:PATH}')", true);
        assert_eq!(redactor.redact(&path()), "•••");
    }

    #[test]
    fn a_value_cannot_leave_its_sql_literal() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "a', 'topic' = 'b\n").expect("written");
        let (resolved, _, _) = run(&format!("'${{file:{}}}'", secret.display()), true);
        assert_eq!(resolved.text, "'a'', ''topic'' = ''b'");
    }
}

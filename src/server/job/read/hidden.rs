//! Secrets that a job file holds as plain text, hidden before anything is said about the file.
//!
//! A report shows the lines around a mistake, whatever the mistake is. So every value of a key that is secret by its name is hidden, also
//! where the key has no business, and in a file that is no YAML.

use crate::job::secret::{Redactor, is_secret_by_name};
use crate::job::yaml::{Node, Value};
use crate::problem::SourceFile;

/// Hides what stands below keys of secrets.
pub(super) fn hide(root: &Node, file: &SourceFile, redactor: &Redactor) {
    hide_node(root, false, file, redactor);
}

fn hide_node(node: &Node, is_secret: bool, file: &SourceFile, redactor: &Redactor) {
    match &node.value {
        Value::Mapping(entries) => {
            entries.iter().for_each(|entry| hide_node(&entry.node, is_secret || is_secret_by_name(&entry.key), file, redactor));
        }
        Value::Sequence(items) => items.iter().for_each(|item| hide_node(item, is_secret, file, redactor)),
        // What a reference leads to is hidden where it is resolved.
        Value::Scalar(scalar) if is_secret && !scalar.text.replace("$${", "").contains("${") => {
            file.blank(node.span.clone());
            // The value of an alias stands elsewhere, that of a block below its mark.
            if let (Some(first), Some(last)) = (scalar.places.first(), scalar.places.last()) {
                file.blank(*first..*last);
            }
            redactor.add(&scalar.text);
            // As it is used.
            redactor.add(&scalar.text.replace("$${", "${"));
        }
        Value::Scalar(_) | Value::Null => {}
    }
}

/// The same by lines, and rather too much than too little: the rest of the line behind a secret's key, and the lines below it that are
/// indented deeper.
pub(super) fn hide_lines(file: &SourceFile, redactor: &Redactor) {
    let (mut line_start, mut below): (usize, Option<usize>) = (0, None);
    for line in file.text.split_inclusive('\n') {
        let (indentation, is_empty) = (line.len() - line.trim_start().len(), line.trim().is_empty());
        if below.is_some_and(|key| indentation > key || is_empty) {
            file.blank(line_start..line_start + line.len());
            redactor.add(line);
        } else {
            below = None;
            for (at, _) in line.match_indices([':', '=']) {
                let value = line[at + 1..].trim().trim_matches(['"', '\'']);
                if !is_secret_by_name(key_before(&line[..at])) || value.starts_with("${") {
                    continue;
                }
                file.blank(line_start + at + 1..line_start + line.len());
                redactor.add(value);
                below = Some(indentation);
            }
        }
        line_start += line.len();
    }
}

/// The key at the end of a text, without its quotes.
fn key_before(text: &str) -> &str {
    let text = text.trim_end().trim_end_matches(['"', '\'']);
    text.rsplit(|c: char| !(c.is_alphanumeric() || matches!(c, '.' | '-' | '_'))).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::yaml;
    use crate::problem::{Problem, render};

    /// What a report of every line shows.
    fn shown(text: &str) -> String {
        let (file, redactor) = (SourceFile::new("job.yaml", text), Redactor::default());
        match yaml::parse(&file) {
            Ok(root) => hide(&root, &file, &redactor),
            Err(_) => hide_lines(&file, &redactor),
        }
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).filter(|at| *at < text.len());
        lines.map(|at| render(&Problem::error("wrong").at(&file, at..at + 1), &|text| text.to_string(), false)).collect()
    }

    #[test]
    fn a_secret_is_hidden_wherever_its_key_stands() {
        for text in [
            "sasl.password: canary\nname: a\n",
            "kafka: {embedded: true, sasl.password: canary}\nname: a\n",
            "slo:\n  ssl.key.password: 'canary'\n",
            "kafka:\n  ssl.key.pem: |\n    canary\n    more canary\n",
            "kafka:\n  sasl.password: [canary, {a: canary}]\n",
        ] {
            let shown = shown(text);
            assert!(!shown.contains("canary") && shown.contains("***"), "{shown}");
        }
    }

    #[test]
    fn a_secret_with_two_dollars_is_hidden_as_it_is_used() {
        let (file, redactor) = (SourceFile::new("job.yaml", "sasl.password: can$${ary\n"), Redactor::default());
        hide(&yaml::parse(&file).ok().expect("a tree"), &file, &redactor);
        assert_eq!(redactor.redact("can${ary, can$${ary"), "•••, •••");
    }

    #[test]
    fn a_secret_is_hidden_in_a_file_that_is_no_yaml() {
        for text in [
            "kafka: [1, 2\nsasl.password: canary\n",
            "kafka: {a: [, 'sasl.password' : \"canary\"\n",
            "kafka: [\n  ssl.key.pem: |\n    canary\n\n    more canary\nname: a\n",
            "kafka: [\nsql: |\n  CREATE TABLE t (a INT) WITH ('properties.sasl.password' = 'canary');\n",
        ] {
            let shown = shown(text);
            assert!(!shown.contains("canary") && shown.contains("***"), "{shown}");
        }
    }

    #[test]
    fn references_and_what_is_no_secret_stay_to_be_read() {
        for text in ["sasl.password: ${env:NAME}\nname: orders\n", "kafka: [\n  sasl.password: ${env:NAME}\nname: orders\n"] {
            let shown = shown(text);
            assert!(shown.contains("${env:NAME}") && shown.contains("name: orders"), "{shown}");
        }
    }
}

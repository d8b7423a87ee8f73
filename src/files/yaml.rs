//! A YAML file as a tree of nodes that know their place.
//!
//! A file is read in two steps, this tree and then its meaning, so that several mistakes are reported at once, each at
//! its place. Scalars stay text as the user wrote them: `1.10` or `no` are no numbers or booleans to a Kafka client.

use crate::problem::{Problem, SourceFile};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub struct Node {
    pub value: Value,
    /// In the file, in bytes.
    pub span: Range<usize>,
}

pub enum Value {
    Null,
    Scalar(Scalar),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// Text with the place of each of its bytes.
pub struct Scalar {
    pub text: String,
    /// File position of each byte of `text`, and of its end.
    pub places: Vec<usize>,
}

pub struct Entry {
    pub key: String,
    pub key_span: Range<usize>,
    pub node: Node,
}

/// Parses a file; the problem says where the YAML itself is wrong.
pub fn parse(file: &Arc<SourceFile>) -> Result<Node, Problem> {
    let root: Spanned<Raw> = serde_saphyr::from_str(&file.text).map_err(|error| {
        let at = error.location().map_or(0..0, |location| byte_range(&location).unwrap_or_else(|| by_line(&file.text, &location)));
        let message = yaml_message(&error.without_snippet().to_string());
        Problem::error(message).at(file, at)
    })?;
    Ok(Builder { text: &file.text }.node(root, None))
}

/// The parser's words without its place and without advice for programmers.
fn yaml_message(text: &str) -> String {
    let text = text.split(" at line ").next().unwrap_or_default().trim_end();
    match text.strip_prefix("duplicate mapping key: ").and_then(|rest| rest.split(',').next()) {
        Some(key) => format!("key `{key}` is there twice"),
        None => format!("not valid YAML: {text}"),
    }
}

/// What the deserializer gives: scalars that look like another type are taken from the file instead.
enum Raw {
    Null,
    Text(String),
    FromFile,
    Sequence(Vec<Spanned<Raw>>),
    Mapping(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }
    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::FromFile)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::FromFile)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::FromFile)
    }
    fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::FromFile)
    }
    fn visit_u128<E>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::FromFile)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::FromFile)
    }
    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_string()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut sequence = Vec::new();
        while let Some(item) = items.next_element()? {
            sequence.push(item);
        }
        Ok(Raw::Sequence(sequence))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut mapping = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            mapping.push(entry);
        }
        Ok(Raw::Mapping(mapping))
    }
}

struct Builder<'a> {
    text: &'a str,
}

impl Builder<'_> {
    fn node(&self, raw: Spanned<Raw>, after_key: Option<usize>) -> Node {
        let span = byte_range(&raw.referenced).unwrap_or(0..0);
        let defined = byte_range(&raw.defined).unwrap_or(span.clone());
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Text(text) => {
                let is_alias = raw.referenced != raw.defined;
                let places = self.places(&text, &defined, after_key.filter(|_| !is_alias));
                Value::Scalar(Scalar { text, places })
            }
            Raw::FromFile => {
                let text = self.text.get(defined.clone()).unwrap_or_default().trim_end().to_string();
                let places = (defined.start..=defined.start + text.len()).collect();
                Value::Scalar(Scalar { text, places })
            }
            Raw::Sequence(items) => Value::Sequence(items.into_iter().map(|item| self.node(item, None)).collect()),
            Raw::Mapping(entries) => Value::Mapping(entries.into_iter().map(|(key, value)| self.entry(key, value)).collect()),
        };
        Node { value, span }
    }

    fn entry(&self, key: Spanned<String>, value: Spanned<Raw>) -> Entry {
        let key_span = byte_range(&key.referenced).unwrap_or(0..0);
        Entry { node: self.node(value, Some(key_span.end)), key: key.value, key_span }
    }

    /// Where each byte of a scalar stands in the file.
    fn places(&self, text: &str, span: &Range<usize>, after_key: Option<usize>) -> Vec<usize> {
        after_key.and_then(|from| self.literal_block_places(text, from)).unwrap_or_else(|| self.aligned_places(text, span.clone()))
    }

    /// `key: |`: each line of the value is a line of the file without its indentation.
    fn literal_block_places(&self, text: &str, after_key: usize) -> Option<Vec<usize>> {
        let rest = self.text.get(after_key..)?;
        let header_length = rest.find('\n')?;
        // Quotes before the colon are the key's; a value in quotes is no block, whatever it begins with.
        let after_quotes = rest[..header_length].trim_start_matches(['"', '\'', ' ', '\t']);
        let header = after_quotes.strip_prefix(':')?.trim_start_matches([' ', '\t']);
        if !header.starts_with('|') {
            return None;
        }
        let indicated: Option<usize> = header[1..].chars().take(2).find_map(|c| c.to_digit(10)).map(|digit| digit as usize);
        let first_line = after_key + header_length + 1;
        let content = self.text[first_line..].lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let first_written = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let own_indent = first_written.len() - first_written.trim_start_matches(' ').len();
        let indent = content.len() - content.trim_start_matches(' ').len() - if indicated.is_some() { own_indent } else { 0 };
        let mut places = Vec::with_capacity(text.len() + 1);
        let mut line_start = first_line;
        for line in text.split_inclusive('\n') {
            let file_line = self.text.get(line_start..)?.split_inclusive('\n').next().unwrap_or_default();
            let skipped = indent.min(file_line.trim_end_matches(['\n', '\r']).len());
            places.extend((0..line.len()).map(|column| line_start + skipped + column));
            line_start += file_line.len();
        }
        places.push(places.last().map_or(first_line, |last| last + 1));
        Some(places)
    }

    /// Other styles: byte by byte, past quotes, folded line breaks and indentation. Escapes are met as far as they go.
    fn aligned_places(&self, text: &str, span: Range<usize>) -> Vec<usize> {
        let source = self.text.as_bytes();
        let mut at = span.start;
        if matches!(source.get(at), Some(b'"' | b'\'')) {
            at += 1;
        }
        let mut places = Vec::with_capacity(text.len() + 1);
        for byte in text.bytes() {
            while !byte.is_ascii_whitespace() && at < span.end && source[at].is_ascii_whitespace() {
                at += 1;
            }
            places.push(at.min(span.end));
            at += 1;
        }
        places.push(at.min(span.end));
        places
    }
}

fn byte_range(location: &Location) -> Option<Range<usize>> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let length = usize::try_from(location.span().byte_len()?).ok()?;
    Some(start..start + length)
}

/// Some errors of the parser know only line and column.
fn by_line(text: &str, location: &Location) -> Range<usize> {
    let line = usize::try_from(location.line()).unwrap_or(1).max(1);
    let line_start: usize = text.split_inclusive('\n').take(line - 1).map(str::len).sum();
    let column = usize::try_from(location.column()).unwrap_or(1).max(1);
    let at = text[line_start..].char_indices().nth(column - 1).map_or(text.len(), |(at, _)| line_start + at);
    at..at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(text: &str) -> Vec<Entry> {
        let file = SourceFile::new("job.yaml", text);
        match parse(&file).unwrap_or_else(|problem| panic!("{}", problem.message)).value {
            Value::Mapping(entries) => entries,
            _ => panic!("a mapping"),
        }
    }

    /// Every word of the value must be found at its place in the file.
    fn assert_words_are_at_their_place(yaml: &str, key: &str) {
        let entries = root(yaml);
        let entry = entries.iter().find(|entry| entry.key == key).expect("the key");
        let Value::Scalar(scalar) = &entry.node.value else { panic!("a scalar") };
        let mut words = 0;
        for word in scalar.text.split_whitespace() {
            let at = word.as_ptr() as usize - scalar.text.as_ptr() as usize;
            let place = scalar.places[at];
            assert_eq!(&yaml[place..place + word.len()], word, "in {yaml:?}");
            words += 1;
        }
        assert!(words > 0 && scalar.places.len() == scalar.text.len() + 1);
    }

    #[test]
    fn words_of_a_block_scalar_are_found_in_the_file() {
        assert_words_are_at_their_place("name: a\nsql: |\n  SELECT é, 1\n\n    FROM t;\n  -- end\nslots: 2\n", "sql");
        assert_words_are_at_their_place("sql: |-  # why\n\n   a\n   b", "sql");
        assert_words_are_at_their_place("sql: |2\n    a\n  b\n", "sql");
        assert_words_are_at_their_place("sql: |\r\n  a b\r\n  c\r\n", "sql");
        assert_words_are_at_their_place("\"sql\": |\n  a b\n", "sql");
    }

    #[test]
    fn a_value_in_quotes_that_begins_like_a_block_is_none() {
        assert_words_are_at_their_place("delimiter: \"|\"\nname: a\n", "delimiter");
        assert_words_are_at_their_place("delimiter: '|1'\nname: a\n", "delimiter");
    }

    #[test]
    fn words_of_other_styles_are_found_in_the_file() {
        assert_words_are_at_their_place("sql: >\n  a b\n  c\n\n  d\n", "sql");
        assert_words_are_at_their_place("sql: 'a b'\n", "sql");
        assert_words_are_at_their_place("sql: \"a\n  b\"\n", "sql");
        assert_words_are_at_their_place("sql: a b\n  c\n", "sql");
    }

    #[test]
    fn scalars_keep_their_spelling() {
        let entries = root("a: 1.10\nb: no\nc: 0x10\nd: true # yes\ne: ~\nf: 1_000\n");
        let spelled: Vec<_> = entries
            .iter()
            .map(|entry| match &entry.node.value {
                Value::Scalar(scalar) => scalar.text.as_str(),
                _ => "null",
            })
            .collect();
        assert_eq!(spelled, ["1.10", "no", "0x10", "true", "null", "1_000"]);
    }

    #[test]
    fn keys_know_their_place() {
        let yaml = "name: a\nkafka:\n  bootstrap.servers: x\n";
        let entries = root(yaml);
        let Value::Mapping(inner) = &entries[1].node.value else { panic!("a mapping") };
        assert_eq!(&yaml[inner[0].key_span.clone()], "bootstrap.servers");
        assert_eq!(&yaml[inner[0].node.span.clone()], "x");
    }

    #[test]
    fn broken_yaml_is_reported_at_its_place() {
        let file = SourceFile::new("job.yaml", "name: a\nkafka: [1, 2\nslots: 2\n");
        let problem = parse(&file).err().expect("a problem");
        assert!(problem.message.starts_with("not valid YAML"), "{}", problem.message);
        assert!(problem.place.expect("a place").span.start > 8);
    }
}

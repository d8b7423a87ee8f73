//! The keys of an object, expected in the order of the record before.
//!
//! Records of a topic name the same fields in the same order. So an object remembers the keys that it saw, with quotes and
//! colon, and compares 16 bytes at a time; only a key that comes unexpected is parsed and looked up, and remembered in
//! its turn. That holds for fields that nobody reads, too. What a record means does not depend on what is remembered.

use arrow_schema::{DataType, FieldRef};
use std::collections::HashMap;

/// Keys that an object remembers at most.
const EXPECTED_KEYS_MAX: usize = 256;
/// Bytes of a remembered key with its quotes and colon.
const EXPECTED_KEY_BYTES_MAX: usize = 32;
/// How far ahead an expected key is looked for: records may leave fields out.
const EXPECTED_KEYS_AHEAD: usize = 4;

/// The keys of one object and the columns that they fill.
pub(super) struct ObjectKeys {
    columns: HashMap<Box<[u8]>, usize>,
    /// Per column what its own objects need.
    pub inner: Vec<Inner>,
    expected: Vec<ExpectedKey>,
}

/// What a value needs besides its column: keys, where it is an object or has objects in it.
pub(super) enum Inner {
    Plain,
    Object(ObjectKeys),
    Items(Box<Inner>),
}

/// A key of the record before.
pub(super) struct ExpectedKey {
    /// `"name":`, padded with zeros.
    pattern: [u8; EXPECTED_KEY_BYTES_MAX],
    /// With its quotes and colon.
    pub length: usize,
    /// The column that it fills; None for a field that nobody reads.
    pub column: Option<usize>,
    /// The first 16 bytes as a word, and which of its bits count: all the pattern, where it is not longer.
    head: u128,
    head_mask: u128,
}

impl ObjectKeys {
    pub(super) fn new<'n>(names: impl Iterator<Item = &'n str>, fields: &[FieldRef]) -> Self {
        ObjectKeys {
            columns: names.enumerate().map(|(column, name)| (name.as_bytes().into(), column)).collect(),
            inner: fields.iter().map(|field| Inner::new(field.data_type())).collect(),
            expected: Vec::new(),
        }
    }

    /// Looks a field's name up.
    pub(super) fn column(&self, name: &[u8]) -> Option<usize> {
        self.columns.get(name).copied()
    }

    /// The key expected as number `next`, if it stands at this place of the record.
    #[inline(always)]
    pub(super) fn next_at(&self, next: usize, record: &[u8], at: usize) -> Option<&ExpectedKey> {
        self.expected.get(next).filter(|expected| expected.stands_at(record, at))
    }

    /// The key expected as number `from` or soon after, if it stands here: records leave fields out.
    pub(super) fn ahead_at(&self, from: usize, record: &[u8], at: usize) -> Option<(usize, &ExpectedKey)> {
        let mut ahead = self.expected.iter().enumerate().skip(from).take(EXPECTED_KEYS_AHEAD);
        ahead.find(|(_, expected)| expected.stands_at(record, at))
    }

    /// Remembers this key, given with its quotes and colon, as number `at`, if it is short and its colon follows at once.
    pub(super) fn learn(&mut self, at: usize, key: &[u8], column: Option<usize>) {
        if key.len() > EXPECTED_KEY_BYTES_MAX || at > self.expected.len() || at >= EXPECTED_KEYS_MAX || !key.ends_with(b":") {
            return;
        }
        let mut pattern = [0; EXPECTED_KEY_BYTES_MAX];
        pattern[..key.len()].copy_from_slice(key);
        let head_mask = u128::MAX >> (16usize.saturating_sub(key.len()) * 8);
        let head = word_at(&pattern, 0).unwrap_or_default() & head_mask;
        let learnt = ExpectedKey { pattern, length: key.len(), column, head, head_mask };
        match self.expected.get_mut(at) {
            Some(expected) => *expected = learnt,
            None => self.expected.push(learnt),
        }
    }
}

/// 16 bytes as one word.
#[inline(always)]
fn word_at(bytes: &[u8], at: usize) -> Option<u128> {
    bytes.get(at..)?.first_chunk().map(|chunk| u128::from_le_bytes(*chunk))
}

impl ExpectedKey {
    #[inline(always)]
    fn stands_at(&self, bytes: &[u8], at: usize) -> bool {
        match word_at(bytes, at) {
            Some(found) if found & self.head_mask != self.head => false,
            Some(_) if self.length <= 16 => true,
            _ => bytes.get(at..at + self.length) == Some(&self.pattern[..self.length]),
        }
    }
}

impl Inner {
    fn new(data_type: &DataType) -> Self {
        match data_type {
            DataType::List(item) => Inner::Items(Box::new(Inner::new(item.data_type()))),
            DataType::Struct(fields) => Inner::Object(ObjectKeys::new(fields.iter().map(|field| field.name().as_str()), fields)),
            DataType::Map(entries, _) => match entries.data_type() {
                DataType::Struct(fields) if fields.len() == 2 => Inner::Items(Box::new(Inner::new(fields[1].data_type()))),
                _ => Inner::Plain,
            },
            _ => Inner::Plain,
        }
    }
}

//! Keys of groups: encoded so that their byte order is the order of the store on disk and of every drain.
//!
//! A single integer, date or time is kept as one word (8 bytes a group); all else as arrow's row format. Both sort as the
//! values do, with null first. On disk a word takes 9 bytes: 0 for null or 1, then the word, big endian.
//!
//! Floats are compared by their bits: who groups by them makes −0.0 and NaN uniform before.

use super::index::{hash_bytes, hash_word};
use super::segments::{Arena, Bitmap, Segments, Span};
use crate::error::{arrow, damaged, internal};
use arrow_array::{Array, ArrayRef, make_array};
use arrow_buffer::{ArrowNativeType, Buffer, NullBuffer};
use arrow_data::ArrayData;
use arrow_row::{RowConverter, Rows, SortField};
use arrow_schema::{DataType, FieldRef};
use std::sync::Arc;
use streamshield_core::ports::state::StateError;

/// Bytes of a word key on disk.
const WORD_KEY_BYTES: usize = 9;

/// The shape of the keys of one table.
#[derive(Clone)]
pub(crate) struct KeyCodec {
    fields: Vec<FieldRef>,
    kind: KeyKind,
}

#[derive(Clone)]
enum KeyKind {
    Empty,
    Word(Word),
    /// All keys have this many bytes.
    Fixed(Arc<RowConverter>, usize),
    Variable(Arc<RowConverter>),
}

/// How a word is stored in arrow.
#[derive(Clone, Copy)]
enum Word {
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
}

/// The keys of one batch.
pub(crate) enum EncodedKeys {
    Empty(usize),
    Words(Vec<u64>, Option<NullBuffer>),
    Rows(Rows),
}

impl EncodedKeys {
    pub fn len(&self) -> usize {
        match self {
            EncodedKeys::Empty(rows) => *rows,
            EncodedKeys::Words(words, _) => words.len(),
            EncodedKeys::Rows(rows) => rows.num_rows(),
        }
    }

    /// Sorts rows by their keys; null comes first.
    pub fn sort_rows(&self, rows: &mut [usize]) {
        match self {
            EncodedKeys::Empty(_) => {}
            EncodedKeys::Words(words, None) => rows.sort_unstable_by_key(|&row| words[row]),
            EncodedKeys::Words(words, Some(nulls)) => {
                rows.sort_unstable_by_key(|&row| nulls.is_valid(row).then(|| words[row]));
            }
            EncodedKeys::Rows(encoded) => {
                rows.sort_unstable_by(|&left, &right| encoded.row(left).data().cmp(encoded.row(right).data()));
            }
        }
    }

    /// Appends the key of a row as it is on disk.
    pub fn write(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            EncodedKeys::Empty(_) => {}
            EncodedKeys::Words(words, nulls) => {
                let is_null = nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
                write_word((!is_null).then(|| words[row]), out);
            }
            EncodedKeys::Rows(rows) => out.extend_from_slice(rows.row(row).data()),
        }
    }
}

fn write_word(word: Option<u64>, out: &mut Vec<u8>) {
    out.push(u8::from(word.is_some()));
    out.extend_from_slice(&word.unwrap_or(0).to_be_bytes());
}

const SIGN: u64 = 1 << 63;

fn word_kind(data_type: &DataType) -> Option<Word> {
    use DataType::*;
    Some(match data_type {
        Int8 => Word::I8,
        Int16 => Word::I16,
        Int32 | Date32 | Time32(_) => Word::I32,
        Int64 | Date64 | Time64(_) | Timestamp(_, _) | Duration(_) => Word::I64,
        UInt8 => Word::U8,
        UInt16 => Word::U16,
        UInt32 => Word::U32,
        UInt64 => Word::U64,
        _ => return None,
    })
}

/// Bytes of a row-encoded value, if all have the same.
fn fixed_row_bytes(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Boolean => Some(2),
        DataType::FixedSizeBinary(bytes) => usize::try_from(*bytes).ok().map(|bytes| bytes + 1),
        other => other.primitive_width().map(|bytes| bytes + 1),
    }
}

impl KeyCodec {
    pub fn new(fields: &[FieldRef]) -> Result<Self, StateError> {
        let types: Vec<&DataType> = fields.iter().map(|field| field.data_type()).collect();
        let kind = match types.as_slice() {
            [] => KeyKind::Empty,
            [only] if word_kind(only).is_some() => {
                KeyKind::Word(word_kind(only).ok_or_else(|| internal("unreachable: checked by the guard"))?)
            }
            several => {
                if let Some(unsupported) =
                    several.iter().find(|data_type| matches!(data_type, DataType::Dictionary(_, _) | DataType::RunEndEncoded(_, _)))
                {
                    return Err(internal(format!("a key column of type {unsupported} is not supported")));
                }
                let sort = several.iter().map(|data_type| SortField::new((*data_type).clone())).collect();
                let converter = Arc::new(RowConverter::new(sort).map_err(arrow)?);
                match several.iter().map(|data_type| fixed_row_bytes(data_type)).sum::<Option<usize>>() {
                    Some(bytes) => KeyKind::Fixed(converter, bytes),
                    None => KeyKind::Variable(converter),
                }
            }
        };
        Ok(KeyCodec { fields: fields.to_vec(), kind })
    }

    /// Bytes of a key on disk, if all have the same.
    pub fn fixed_bytes(&self) -> Option<usize> {
        match &self.kind {
            KeyKind::Empty => Some(0),
            KeyKind::Word(_) => Some(WORD_KEY_BYTES),
            KeyKind::Fixed(_, bytes) => Some(*bytes),
            KeyKind::Variable(_) => None,
        }
    }

    /// Whether these bytes can be a key on disk.
    pub fn is_key(&self, key: &[u8]) -> bool {
        match &self.kind {
            KeyKind::Word(_) => read_word(key).is_ok(),
            _ => self.fixed_bytes().is_none_or(|bytes| bytes == key.len()),
        }
    }

    pub fn encode(&self, arrays: &[ArrayRef], rows: usize) -> Result<EncodedKeys, StateError> {
        match &self.kind {
            KeyKind::Empty => Ok(EncodedKeys::Empty(rows)),
            KeyKind::Word(word) => {
                let data = arrays[0].to_data();
                let nulls = data.nulls().filter(|nulls| nulls.null_count() > 0).cloned();
                Ok(EncodedKeys::Words(encode_words(*word, &data), nulls))
            }
            KeyKind::Fixed(converter, _) | KeyKind::Variable(converter) => {
                converter.convert_columns(arrays).map(EncodedKeys::Rows).map_err(arrow)
            }
        }
    }

    pub fn store(&self) -> KeyStore {
        match &self.kind {
            KeyKind::Empty => KeyStore::Fixed(FixedRows::new(0)),
            KeyKind::Word(_) => KeyStore::Words { words: Segments::new(), null_group: None },
            KeyKind::Fixed(_, bytes) => KeyStore::Fixed(FixedRows::new(*bytes)),
            KeyKind::Variable(_) => KeyStore::Variable { spans: Segments::new(), arena: Arena::default() },
        }
    }

    /// The keys of these groups as arrays.
    pub fn gather(&self, store: &KeyStore, groups: &[u32]) -> Result<Vec<ArrayRef>, StateError> {
        match (&self.kind, store) {
            (KeyKind::Empty, _) => Ok(vec![]),
            (KeyKind::Word(word), KeyStore::Words { words, null_group }) => {
                let values: Vec<u64> = groups.iter().map(|&group| words.get(group as usize)).collect();
                let nulls = null_group
                    .filter(|null_group| groups.contains(null_group))
                    .map(|null_group| groups.iter().map(|&group| group != null_group).collect::<NullBuffer>());
                let data = ArrayData::builder(self.fields[0].data_type().clone())
                    .len(groups.len())
                    .add_buffer(decode_words(*word, &values))
                    .nulls(nulls)
                    .build()
                    .map_err(arrow)?;
                Ok(vec![make_array(data)])
            }
            (KeyKind::Fixed(converter, _) | KeyKind::Variable(converter), store) => {
                let parser = converter.parser();
                let rows = groups.iter().map(|&group| parser.parse(store.row_bytes(group)));
                converter.convert_rows(rows).map_err(arrow)
            }
            (KeyKind::Word(_), _) => Err(internal("a word key is stored as a row")),
        }
    }
}

fn encode_words(word: Word, data: &ArrayData) -> Vec<u64> {
    fn map<T: ArrowNativeType>(data: &ArrayData, to_word: impl Fn(T) -> u64) -> Vec<u64> {
        data.buffer::<T>(0)[..data.len()].iter().map(|&value| to_word(value)).collect()
    }
    match word {
        Word::I8 => map(data, |value: i8| value as u64 ^ SIGN),
        Word::I16 => map(data, |value: i16| value as u64 ^ SIGN),
        Word::I32 => map(data, |value: i32| value as u64 ^ SIGN),
        Word::I64 => map(data, |value: i64| value as u64 ^ SIGN),
        Word::U8 => map(data, |value: u8| u64::from(value)),
        Word::U16 => map(data, |value: u16| u64::from(value)),
        Word::U32 => map(data, |value: u32| u64::from(value)),
        Word::U64 => map(data, |value: u64| value),
    }
}

fn decode_words(word: Word, words: &[u64]) -> Buffer {
    fn map<T: ArrowNativeType>(words: &[u64], to_value: impl Fn(u64) -> T) -> Buffer {
        Buffer::from_vec(words.iter().map(|&word| to_value(word)).collect::<Vec<T>>())
    }
    match word {
        Word::I8 => map(words, |word| (word ^ SIGN) as i8),
        Word::I16 => map(words, |word| (word ^ SIGN) as i16),
        Word::I32 => map(words, |word| (word ^ SIGN) as i32),
        Word::I64 => map(words, |word| (word ^ SIGN) as i64),
        Word::U8 => map(words, |word| word as u8),
        Word::U16 => map(words, |word| word as u16),
        Word::U32 => map(words, |word| word as u32),
        Word::U64 => map(words, |word| word),
    }
}

/// Rows of one length, in segments.
pub(crate) struct FixedRows {
    row_bytes: usize,
    len: usize,
    segments: Vec<Vec<u8>>,
}

const ROWS_PER_SEGMENT: usize = 1 << 15;

impl FixedRows {
    fn new(row_bytes: usize) -> Self {
        FixedRows { row_bytes, len: 0, segments: Vec::new() }
    }

    #[inline]
    fn get(&self, index: usize) -> &[u8] {
        if self.row_bytes == 0 {
            return &[];
        }
        &self.segments[index / ROWS_PER_SEGMENT][index % ROWS_PER_SEGMENT * self.row_bytes..][..self.row_bytes]
    }

    fn push(&mut self, row: &[u8]) {
        debug_assert_eq!(row.len(), self.row_bytes);
        let index = self.len;
        self.len += 1;
        if self.row_bytes == 0 {
            return;
        }
        if index.is_multiple_of(ROWS_PER_SEGMENT) {
            self.segments.push(Vec::new());
        }
        let segment = self.segments.last_mut().expect("one was pushed when the last became full");
        if segment.capacity() == segment.len() {
            let rows = (segment.len() / self.row_bytes * 2).clamp(8, ROWS_PER_SEGMENT);
            segment.reserve_exact(rows * self.row_bytes - segment.len());
        }
        segment.extend_from_slice(row);
    }

    fn retain(&mut self, keep: &Bitmap) {
        let mut kept = FixedRows::new(self.row_bytes);
        for index in keep.ones() {
            kept.push(self.get(index));
            // What lies before a full segment's end is copied: give it back at once.
            if index % ROWS_PER_SEGMENT == ROWS_PER_SEGMENT - 1 && self.row_bytes > 0 {
                self.segments[index / ROWS_PER_SEGMENT] = Vec::new();
            }
        }
        *self = kept;
    }

    fn bytes(&self) -> usize {
        self.segments.iter().map(Vec::capacity).sum::<usize>() + self.segments.capacity() * size_of::<Vec<u8>>()
    }
}

/// The keys of the groups of one window.
pub(crate) enum KeyStore {
    /// The null key has a group, but its word means nothing and is in no index.
    Words {
        words: Segments<u64>,
        null_group: Option<u32>,
    },
    Fixed(FixedRows),
    Variable {
        spans: Segments<Span>,
        arena: Arena,
    },
}

impl KeyStore {
    pub fn len(&self) -> usize {
        match self {
            KeyStore::Words { words, .. } => words.len(),
            KeyStore::Fixed(rows) => rows.len,
            KeyStore::Variable { spans, .. } => spans.len(),
        }
    }

    #[inline]
    pub fn row_bytes(&self, group: u32) -> &[u8] {
        match self {
            KeyStore::Words { .. } => &[],
            KeyStore::Fixed(rows) => rows.get(group as usize),
            KeyStore::Variable { spans, arena } => arena.get(spans.get(group as usize)),
        }
    }

    pub fn push_row(&mut self, row: &[u8]) {
        match self {
            KeyStore::Words { .. } => debug_assert!(false, "a word key is pushed as a row"),
            KeyStore::Fixed(rows) => rows.push(row),
            KeyStore::Variable { spans, arena } => spans.push(arena.push(row)),
        }
    }

    #[inline]
    pub fn hash(&self, group: u32) -> u64 {
        match self {
            KeyStore::Words { words, .. } => hash_word(words.get(group as usize)),
            rows => hash_bytes(rows.row_bytes(group)),
        }
    }

    pub fn is_null_word(&self, group: u32) -> bool {
        matches!(self, KeyStore::Words { null_group: Some(null_group), .. } if *null_group == group)
    }

    /// Appends the key of a group as it is on disk.
    pub fn write(&self, group: u32, out: &mut Vec<u8>) {
        match self {
            KeyStore::Words { words, null_group } => {
                write_word((*null_group != Some(group)).then(|| words.get(group as usize)), out);
            }
            rows => out.extend_from_slice(rows.row_bytes(group)),
        }
    }

    /// Writes the keys of these groups as they are on disk, each `stride` bytes behind the one before. Returns how many bytes each takes.
    pub fn write_fixed(&self, groups: &[u32], stride: usize, out: &mut [u8]) -> usize {
        let slots = groups.iter().zip(out.chunks_mut(stride));
        match self {
            KeyStore::Words { words, null_group } => {
                for (&group, out) in slots {
                    let is_valid = *null_group != Some(group);
                    out[0] = u8::from(is_valid);
                    let word = if is_valid { words.get(group as usize) } else { 0 };
                    out[1..WORD_KEY_BYTES].copy_from_slice(&word.to_be_bytes());
                }
                WORD_KEY_BYTES
            }
            KeyStore::Fixed(rows) => {
                slots.for_each(|(&group, out)| out[..rows.row_bytes].copy_from_slice(rows.get(group as usize)));
                rows.row_bytes
            }
            KeyStore::Variable { .. } => 0,
        }
    }

    /// Appends a key as it is on disk.
    pub fn push_written(&mut self, key: &[u8]) -> Result<(), StateError> {
        match self {
            KeyStore::Words { words, null_group } => {
                let (is_valid, word) = read_word(key)?;
                if !is_valid {
                    *null_group = Some(words.len() as u32);
                }
                words.push(word);
            }
            KeyStore::Fixed(rows) if key.len() != rows.row_bytes => {
                return Err(damaged(format!("a key of {} bytes where all have {}", key.len(), rows.row_bytes)));
            }
            rows => rows.push_row(key),
        }
        Ok(())
    }

    /// Groups by the order of their keys.
    pub fn sorted(&self, groups: impl Iterator<Item = u32>) -> Vec<u32> {
        match self {
            KeyStore::Words { words, null_group } => {
                let mut has_null = false;
                let mut keyed: Vec<(u64, u32)> = groups
                    .filter(|group| {
                        has_null |= Some(*group) == *null_group;
                        Some(*group) != *null_group
                    })
                    .map(|group| (words.get(group as usize), group))
                    .collect();
                keyed.sort_unstable();
                let null_group = null_group.filter(|_| has_null);
                null_group.into_iter().chain(keyed.into_iter().map(|(_, group)| group)).collect()
            }
            rows => {
                let mut keyed: Vec<(u64, u32)> = groups.map(|group| (prefix(rows.row_bytes(group)), group)).collect();
                keyed
                    .sort_unstable_by(|left, right| left.0.cmp(&right.0).then_with(|| rows.row_bytes(left.1).cmp(rows.row_bytes(right.1))));
                keyed.into_iter().map(|(_, group)| group).collect()
            }
        }
    }

    pub fn retain(&mut self, keep: &Bitmap) {
        match self {
            KeyStore::Words { words, null_group } => {
                *null_group = null_group
                    .filter(|group| keep.get(*group as usize))
                    .map(|group| keep.ones().take_while(|&index| index < group as usize).count() as u32);
                words.retain(keep);
            }
            KeyStore::Fixed(rows) => rows.retain(keep),
            KeyStore::Variable { spans, arena } => {
                spans.retain(keep);
                arena.rewrite(spans);
            }
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            KeyStore::Words { words, .. } => words.bytes(),
            KeyStore::Fixed(rows) => rows.bytes(),
            KeyStore::Variable { spans, arena } => spans.bytes() + arena.bytes(),
        }
    }
}

fn read_word(key: &[u8]) -> Result<(bool, u64), StateError> {
    match key {
        [valid @ (0 | 1), word @ ..] if word.len() == 8 => {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            Ok((*valid == 1, u64::from_be_bytes(bytes)))
        }
        _ => Err(damaged(format!("{key:?} is no word key"))),
    }
}

/// The first bytes of a key as a number of the same order.
fn prefix(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = key.len().min(8);
    bytes[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(bytes)
}

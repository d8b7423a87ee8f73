//! The groups of one window that are in memory: keys, their index, state columns and marks.
//!
//! A group is a number: its position in the key store and in every column. Groups are only ever appended or, all at
//! once, compacted ([`WindowSlab::retain`]).

use super::column::{Column, new_column};
use super::index::{Index, hash_bytes, hash_word};
use super::keys::{EncodedKeys, KeyStore};
use super::marks::Marks;
use super::segments::{Bitmap, Segments};
use super::spec::{AggregateSpec, TableSpec};
use crate::changes::Entries;
use crate::error::{damaged, internal};
use arrow_array::{Array, ArrayRef, UInt32Array};
use arrow_select::concat::concat;
use arrow_select::take::take;
use std::collections::BTreeMap;
use streamshield_core::ports::state::{StateError, StateMerger, Window};

/// How many groups of a window are on disk and not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    Count(u64),
    /// The store was opened: nobody has counted.
    Unknown,
}

impl Absent {
    pub fn any(self) -> bool {
        self != Absent::Count(0)
    }

    pub fn add(&mut self, groups: usize) {
        if let Absent::Count(count) = self {
            *count += groups as u64;
        }
    }

    pub fn remove(&mut self, groups: usize) {
        if let Absent::Count(count) = self {
            *count = count.saturating_sub(groups as u64);
        }
    }
}

/// A drain in progress: groups in key order, those before `next` are gone.
pub(crate) struct DrainOrder {
    pub groups: Vec<u32>,
    pub next: usize,
}

pub(crate) struct WindowSlab {
    pub keys: KeyStore,
    index: Index,
    columns: Vec<Box<dyn Column>>,
    pub marks: Marks,
    pub absent: Absent,
    /// A sealed flush holds groups of it, or the store does.
    pub is_stored: bool,
    pub drain: Option<DrainOrder>,
    /// The table's count of merges when it was last used.
    pub last_used: u64,
}

impl DrainOrder {
    /// The groups that are gone.
    pub fn drained(&self) -> &[u32] {
        &self.groups[..self.next]
    }
}

impl WindowSlab {
    /// `with_deltas`: its changes are to be counted for deltas.
    pub fn new(spec: &TableSpec, with_deltas: bool) -> Result<Self, StateError> {
        let column = |(data_type, kernel): &(_, _)| new_column(data_type, *kernel);
        Ok(WindowSlab {
            keys: spec.keys.store(),
            index: Index::new(),
            columns: spec.columns.iter().map(column).collect::<Result<_, _>>()?,
            marks: Marks::new(with_deltas),
            absent: Absent::Count(0),
            is_stored: false,
            drain: None,
            last_used: 0,
        })
    }

    /// Groups in memory, those that a drain has taken included.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Groups in memory that are not drained.
    pub fn live(&self) -> usize {
        self.len() - self.drain.as_ref().map_or(0, |drain| drain.next)
    }

    /// The group of a row's key, if it is in memory.
    #[inline]
    pub fn find(&self, keys: &EncodedKeys, row: usize) -> Option<u32> {
        match (keys, &self.keys) {
            (EncodedKeys::Words(encoded, nulls), KeyStore::Words { words, null_group }) => {
                if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                    return *null_group;
                }
                let word = encoded[row];
                self.index.find(hash_word(word), |group| words.get(group as usize) == word)
            }
            (EncodedKeys::Rows(rows), store) => self.find_bytes(rows.row(row).data(), store),
            (_, store) => self.find_bytes(&[], store),
        }
    }

    #[inline]
    fn find_bytes(&self, key: &[u8], store: &KeyStore) -> Option<u32> {
        self.index.find(hash_bytes(key), |group| store.row_bytes(group) == key)
    }

    /// The group of every row, added where there is none.
    pub fn find_or_add(&mut self, encoded: &EncodedKeys) -> Vec<u32> {
        let first_new = self.len();
        let groups = match (encoded, &mut self.keys) {
            (EncodedKeys::Words(encoded, nulls), KeyStore::Words { words, null_group }) => {
                let index = &mut self.index;
                let mut of_word = |word: u64, words: &mut Segments<u64>| {
                    let hash = hash_word(word);
                    if let Some(group) = index.find(hash, |group| words.get(group as usize) == word) {
                        return group;
                    }
                    let group = words.len() as u32;
                    words.push(word);
                    index.insert(hash, group, |other| hash_word(words.get(other as usize)));
                    group
                };
                match nulls {
                    None => encoded.iter().map(|&word| of_word(word, words)).collect(),
                    Some(nulls) => (0..encoded.len())
                        .map(|row| {
                            if nulls.is_valid(row) {
                                return of_word(encoded[row], words);
                            }
                            *null_group.get_or_insert_with(|| {
                                words.push(0);
                                words.len() as u32 - 1
                            })
                        })
                        .collect(),
                }
            }
            (EncodedKeys::Rows(rows), store) => rows.iter().map(|row| find_or_add_row(&mut self.index, store, row.data())).collect(),
            (other, _) if other.len() == 0 => vec![],
            (other, store) => vec![find_or_add_row(&mut self.index, store, &[]); other.len()],
        };
        self.grow(self.len() - first_new);
        groups
    }

    fn grow(&mut self, added: usize) {
        if added > 0 {
            self.columns.iter_mut().for_each(|column| column.grow(added));
            self.marks.grow(added);
        }
    }

    /// Merges one batch of states into `groups`.
    pub fn merge(&mut self, aggregates: &[AggregateSpec], groups: &[u32], states: &[ArrayRef], first_new: usize) -> Result<(), StateError> {
        for aggregate in aggregates {
            let range = aggregate.columns.clone();
            match &aggregate.merger {
                None => {
                    for (column, incoming) in self.columns[range.clone()].iter_mut().zip(&states[range]) {
                        column.merge(groups, incoming, first_new)?;
                    }
                }
                Some(merger) => {
                    merge_by_accumulator(&mut self.columns[range.clone()], merger.as_ref(), groups, &states[range], first_new)?;
                }
            }
        }
        Ok(())
    }

    pub fn gather(&self, groups: &[u32]) -> Result<Vec<ArrayRef>, StateError> {
        self.columns.iter().map(|column| column.gather(groups)).collect()
    }

    /// Appends a group to the columns and to no index, from what is on disk.
    pub fn push_written(&mut self, key: &[u8], mut states: &[u8]) -> Result<(), StateError> {
        self.keys.push_written(key)?;
        for column in &mut self.columns {
            column.push_written(&mut states)?;
        }
        if !states.is_empty() {
            return Err(damaged(format!("a state is {} bytes too long", states.len())));
        }
        self.marks.grow(1);
        Ok(())
    }

    /// Brings a group back that is not in memory.
    pub fn add_written(&mut self, key: &[u8], states: &[u8]) -> Result<(), StateError> {
        let group = self.len() as u32;
        self.push_written(key, states)?;
        self.index_group(group);
        Ok(())
    }

    fn index_group(&mut self, group: u32) {
        let keys = &self.keys;
        if !keys.is_null_word(group) {
            self.index.insert(keys.hash(group), group, |other| keys.hash(other));
        }
    }

    /// Forgets from memory all groups whose bit is clear.
    pub fn retain(&mut self, keep: &Bitmap) {
        self.index = Index::new();
        self.keys.retain(keep);
        self.columns.iter_mut().for_each(|column| column.retain(keep));
        self.marks.retain(keep);
        for group in 0..self.len() as u32 {
            self.index_group(group);
        }
    }

    pub fn bytes(&self) -> usize {
        let columns: usize = self.columns.iter().map(|column| column.bytes() + COLUMN_BYTES).sum();
        let drain = self.drain.as_ref().map_or(0, |drain| drain.groups.capacity() * 4);
        self.keys.bytes() + self.index.bytes() + columns + self.marks.bytes() + drain + SLAB_BYTES
    }
}

impl Entries for WindowSlab {
    fn write_key(&self, group: u32, out: &mut Vec<u8>) {
        self.keys.write(group, out);
    }

    fn write_states(&self, group: u32, out: &mut Vec<u8>) {
        self.columns.iter().for_each(|column| column.write(group, out));
    }

    fn write_fixed(&self, groups: &[u32], stride: usize, out: &mut [u8]) {
        let mut begin = self.keys.write_fixed(groups, stride, out);
        for column in &self.columns {
            column.write_fixed(groups, stride, &mut out[begin..]);
            begin += column.written_bytes().unwrap_or(0);
        }
    }
}

/// A column's own fields, about, and the pointer to it.
const COLUMN_BYTES: usize = 176;
/// The slab itself and its entry in the map of windows, whose nodes are about half full.
const SLAB_BYTES: usize = size_of::<WindowSlab>() + 2 * (size_of::<Window>() + size_of::<usize>());

fn find_or_add_row(index: &mut Index, store: &mut KeyStore, key: &[u8]) -> u32 {
    let hash = hash_bytes(key);
    if let Some(group) = index.find(hash, |group| store.row_bytes(group) == key) {
        return group;
    }
    let group = store.len() as u32;
    store.push_row(key);
    index.insert(hash, group, |other| hash_bytes(store.row_bytes(other)));
    group
}

/// Takes the touched groups' states out, lets the accumulator merge, and puts the result back.
///
/// A group that is new has no state to merge with: its first row becomes the stored one.
fn merge_by_accumulator(
    columns: &mut [Box<dyn Column>],
    merger: &dyn StateMerger,
    groups: &[u32],
    incoming: &[ArrayRef],
    first_new: usize,
) -> Result<(), StateError> {
    let touched = Touched::of(groups, first_new);
    let mut stored = Vec::with_capacity(columns.len());
    let first_rows = UInt32Array::from(touched.first_rows.clone());
    for (column, incoming) in columns.iter().zip(incoming) {
        let existing = column.gather(&touched.existing)?;
        let first = take(incoming, &first_rows, None).map_err(crate::error::arrow)?;
        stored.push(concat(&[existing.as_ref(), first.as_ref()]).map_err(crate::error::arrow)?);
    }
    let merged = if touched.rows.is_empty() {
        stored
    } else {
        let rows = UInt32Array::from(touched.rows);
        let incoming = incoming.iter().map(|array| take(array, &rows, None).map_err(crate::error::arrow)).collect::<Result<Vec<_>, _>>()?;
        merger.merge(&stored, &incoming, &touched.positions)?
    };
    let targets: Vec<u32> = touched.existing.iter().chain(&touched.new).copied().collect();
    if merged.len() != columns.len() || merged.iter().any(|array| array.len() != targets.len()) {
        return Err(internal("a state merger returned another number of columns or groups than it was given"));
    }
    for ((column, array), expected) in columns.iter_mut().zip(&merged).zip(incoming) {
        if array.data_type() != expected.data_type() {
            return Err(internal(format!("a state merger returned {} for {}", array.data_type(), expected.data_type())));
        }
        column.merge(&targets, array, first_new)?;
    }
    Ok(())
}

/// The distinct groups of a batch: first those that exist, then the new ones.
struct Touched {
    existing: Vec<u32>,
    new: Vec<u32>,
    /// For each new group its first row.
    first_rows: Vec<u32>,
    /// The rows to merge, and for each the position of its group.
    rows: Vec<u32>,
    positions: Vec<usize>,
}

impl Touched {
    fn of(groups: &[u32], first_new: usize) -> Touched {
        let mut existing: Vec<u32> = groups.iter().copied().filter(|&group| (group as usize) < first_new).collect();
        existing.sort_unstable();
        existing.dedup();
        let mut first_row_of_new = BTreeMap::new();
        let (mut rows, mut row_groups) = (vec![], vec![]);
        for (row, &group) in groups.iter().enumerate() {
            let is_first = group as usize >= first_new && !first_row_of_new.contains_key(&group);
            if is_first {
                first_row_of_new.insert(group, row as u32);
            } else {
                rows.push(row as u32);
                row_groups.push(group);
            }
        }
        let (new, first_rows): (Vec<u32>, Vec<u32>) = first_row_of_new.into_iter().unzip();
        // New groups have the numbers from `first_new` on, and every one of them has a row.
        let position = |group: u32| match existing.binary_search(&group) {
            Ok(position) => position,
            Err(_) => existing.len() + (group as usize - first_new),
        };
        let positions = row_groups.into_iter().map(position).collect();
        Touched { existing, new, first_rows, rows, positions }
    }
}

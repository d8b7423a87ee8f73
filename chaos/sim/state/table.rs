//! The groups of one window aggregation, as a sorted map.
//!
//! Keys and states are rows of `arrow-row`: their bytes sort as the values do, so the map is in key order and a minimum is a comparison
//! of bytes. Slow, and easy to see through, which is what a simulation wants of a table.

use super::batch::{Batch, GroupKey, Groups, States};
use super::columns::{Column, KeyColumns};
use arrow_array::{Array, ArrayRef};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use streamshield_core::ports::state::{
    Drained, Merge, StateBytes, StateError, StateErrorKind, StateMerger, Window, WindowTable, WindowTableSpec,
};
use streamshield_core::watermark::Watermark;

/// What a group takes in memory beside its bytes.
const GROUP_OVERHEAD_BYTES: usize = 64;

struct Group {
    states: States,
    /// Changed since the last sealed flush.
    is_dirty: bool,
    /// The flush that holds it as it is; 0 where it came from the store.
    sealed: u64,
    /// Counts as not in memory.
    is_evicted: bool,
}

impl Group {
    fn bytes(&self, key: &[u8]) -> usize {
        key.len() + self.states.iter().map(Vec::len).sum::<usize>() + GROUP_OVERHEAD_BYTES
    }
}

struct Aggregate {
    columns: Range<usize>,
    merge: Merge,
}

/// See the module text.
pub(crate) struct Table {
    operator: u16,
    keys: KeyColumns,
    columns: Vec<Column>,
    aggregates: Vec<Aggregate>,
    windows: BTreeMap<Window, BTreeMap<Vec<u8>, Group>>,
    /// Removals since the last sealed flush, and those of flushes that are not applied yet.
    removed: Batch,
    removed_sealed: VecDeque<(u64, Batch)>,
    /// What changed since the last delta; none before the first one.
    since_delta: Option<SinceDelta>,
}

#[derive(Default)]
struct SinceDelta {
    removed: Batch,
    touched: BTreeSet<(Window, Vec<u8>)>,
}

fn internal(message: impl Into<String>) -> StateError {
    StateError { kind: StateErrorKind::Internal, message: message.into() }
}

impl Table {
    pub fn new(spec: &WindowTableSpec) -> Result<Table, StateError> {
        let (mut columns, mut aggregates) = (Vec::new(), Vec::new());
        for aggregate in &spec.aggregates {
            let first = columns.len();
            for field in &aggregate.fields {
                columns.push(Column::new(field.data_type())?);
            }
            aggregates.push(Aggregate { columns: first..columns.len(), merge: aggregate.merge.clone() });
        }
        Ok(Table {
            operator: spec.operator,
            keys: KeyColumns::new(&spec.keys)?,
            columns,
            aggregates,
            windows: BTreeMap::new(),
            removed: Batch::default(),
            removed_sealed: VecDeque::new(),
            since_delta: None,
        })
    }

    pub fn operator(&self) -> u16 {
        self.operator
    }

    /// Takes its groups from a store, in place of all it has.
    pub fn load(&mut self, groups: &Groups) {
        self.windows.clear();
        for (group, states) in groups.iter().filter(|(group, _)| group.operator == self.operator) {
            let loaded = Group { states: states.clone(), is_dirty: false, sealed: 0, is_evicted: false };
            self.windows.entry(group.window).or_default().insert(group.key.clone(), loaded);
        }
    }

    pub fn seal(&mut self, flush: u64, batch: &mut Batch) {
        let removed = std::mem::take(&mut self.removed);
        batch.remove_all(&removed);
        self.removed_sealed.push_back((flush, removed));
        for (window, groups) in &mut self.windows {
            for (key, group) in groups.iter_mut().filter(|(_, group)| group.is_dirty) {
                group.is_dirty = false;
                group.sealed = flush;
                batch.entries.insert(GroupKey { operator: self.operator, window: *window, key: key.clone() }, group.states.clone());
            }
        }
    }

    /// A flush is in the store now.
    pub fn applied(&mut self, flush: u64) {
        self.removed_sealed.retain(|(sealed, _)| *sealed > flush);
    }

    /// The first delta has all that no applied flush has; each later one what changed since the one before.
    pub fn seal_delta(&mut self, applied: u64, batch: &mut Batch) {
        let key_of = |window: Window, key: &[u8]| GroupKey { operator: self.operator, window, key: key.to_vec() };
        match self.since_delta.replace(SinceDelta::default()) {
            None => {
                self.removed_sealed.iter().for_each(|(_, removed)| batch.remove_all(removed));
                batch.remove_all(&self.removed);
                for (window, groups) in &self.windows {
                    let is_newer = |group: &Group| group.is_dirty || group.sealed > applied;
                    let newer = groups.iter().filter(|(_, group)| is_newer(group));
                    batch.entries.extend(newer.map(|(key, group)| (key_of(*window, key), group.states.clone())));
                }
            }
            Some(since) => {
                batch.remove_all(&since.removed);
                for (window, key) in since.touched {
                    if let Some(group) = self.windows.get(&window).and_then(|groups| groups.get(&key)) {
                        batch.entries.insert(key_of(window, &key), group.states.clone());
                    }
                }
            }
        }
    }

    /// Whether anything is newer than the store once this flush is applied.
    pub fn is_clean(&self, applied: u64) -> bool {
        let is_stored = |group: &Group| !group.is_dirty && group.sealed <= applied;
        self.removed.removals.is_empty() && self.windows.values().flat_map(BTreeMap::values).all(is_stored)
    }

    /// What another task changed is no change of this one.
    pub fn forget_changes(&mut self) {
        if let Some(since) = &mut self.since_delta {
            *since = SinceDelta::default();
        }
    }

    pub fn bytes(&self) -> StateBytes {
        let mut sum = StateBytes::default();
        for (key, group) in self.windows.values().flatten().filter(|(_, group)| !group.is_evicted) {
            sum.total += group.bytes(key);
            if group.is_dirty {
                sum.dirty += group.bytes(key);
            }
        }
        sum
    }

    /// Evicts stored groups until `wanted` bytes are free; returns how many were.
    pub fn evict(&mut self, wanted: usize, applied: u64) -> usize {
        let mut freed = 0;
        let since = &self.since_delta;
        for (window, groups) in &mut self.windows {
            for (key, group) in groups.iter_mut() {
                if freed >= wanted {
                    return freed;
                }
                // A group stays until a delta has it.
                let is_awaited = since.as_ref().is_some_and(|since| since.touched.contains(&(*window, key.clone())));
                if !group.is_evicted && !group.is_dirty && group.sealed <= applied && !is_awaited {
                    group.is_evicted = true;
                    freed += group.bytes(key);
                }
            }
        }
        freed
    }

    fn check(&self, keys: &[ArrayRef], states: &[ArrayRef]) -> Result<usize, StateError> {
        let rows = keys.iter().chain(states).next().map_or(0, |array| array.len());
        let fits = keys.len() == self.keys.len()
            && states.len() == self.columns.len()
            && keys.iter().chain(states).all(|array| array.len() == rows)
            && states.iter().zip(&self.columns).all(|(array, column)| array.data_type() == column.data_type());
        if fits { Ok(rows) } else { Err(internal(format!("columns that do not fit operator {}", self.operator))) }
    }

    /// The new states of the touched groups, column by column.
    fn merged(&self, stored: &[Option<&States>], states: &[ArrayRef], groups: &[usize]) -> Result<Vec<States>, StateError> {
        let mut merged: Vec<States> = vec![Vec::with_capacity(self.columns.len()); stored.len()];
        for aggregate in &self.aggregates {
            let range = aggregate.columns.clone();
            if let Merge::Other(merger) = &aggregate.merge {
                let rows = self.merge_by(merger, range, stored, states, groups)?;
                rows.into_iter().enumerate().for_each(|(group, mut rows)| merged[group].append(&mut rows));
                continue;
            }
            for index in range {
                let column = &self.columns[index];
                let before = stored.iter().map(|states| states.map(|states| states[index].as_slice())).collect::<Vec<_>>();
                let after = match aggregate.merge {
                    Merge::Sum => column.sum(&before, &states[index], groups)?,
                    Merge::Min => column.extreme(&before, &states[index], groups, |new, old| new < old)?,
                    _ => column.extreme(&before, &states[index], groups, |new, old| new > old)?,
                };
                after.into_iter().enumerate().for_each(|(group, row)| merged[group].push(row));
            }
        }
        Ok(merged)
    }

    /// By the aggregate's own accumulator. A group that is new has nothing to merge with: its first row becomes the stored one.
    fn merge_by(
        &self,
        merger: &Arc<dyn StateMerger>,
        range: Range<usize>,
        stored: &[Option<&States>],
        states: &[ArrayRef],
        groups: &[usize],
    ) -> Result<Vec<States>, StateError> {
        let columns = &self.columns[range.clone()];
        let incoming: Vec<Vec<Vec<u8>>> = range.clone().map(|index| self.columns[index].rows(&states[index])).collect::<Result<_, _>>()?;
        let mut before: Vec<Option<States>> = stored.iter().map(|states| states.map(|states| states[range.clone()].to_vec())).collect();
        let (mut rows, mut positions) = (Vec::new(), Vec::new());
        for (row, group) in groups.iter().enumerate() {
            match &before[*group] {
                None => before[*group] = Some(incoming.iter().map(|column| column[row].clone()).collect()),
                Some(_) => {
                    rows.push(row);
                    positions.push(*group);
                }
            }
        }
        let before: Vec<States> = before.into_iter().flatten().collect();
        if rows.is_empty() {
            return Ok(before);
        }
        let array = |column: &Column, rows: Vec<&[u8]>| column.array(&rows);
        let mut old = Vec::new();
        let mut new = Vec::new();
        for (at, column) in columns.iter().enumerate() {
            old.push(array(column, before.iter().map(|states| states[at].as_slice()).collect())?);
            new.push(array(column, rows.iter().map(|row| incoming[at][*row].as_slice()).collect())?);
        }
        let merged = merger.merge(&old, &new, &positions)?;
        if merged.len() != columns.len() || merged.iter().any(|array| array.len() != before.len()) {
            return Err(internal("a state merger returned another number of columns or groups than it was given"));
        }
        let by_column: Vec<Vec<Vec<u8>>> =
            columns.iter().zip(&merged).map(|(column, array)| column.rows(array)).collect::<Result<_, _>>()?;
        Ok((0..before.len()).map(|group| by_column.iter().map(|rows| rows[group].clone()).collect()).collect())
    }
}

impl WindowTable for Table {
    fn merge(&mut self, window: Window, keys: &[ArrayRef], states: &[ArrayRef]) -> Result<(), StateError> {
        let rows = self.check(keys, states)?;
        if rows == 0 {
            return Ok(());
        }
        let keys = self.keys.rows(keys, rows)?;
        let (mut touched, mut numbers, mut groups) = (Vec::new(), BTreeMap::new(), Vec::with_capacity(rows));
        for key in &keys {
            let number = *numbers.entry(key.as_slice()).or_insert_with(|| {
                touched.push(key.clone());
                touched.len() - 1
            });
            groups.push(number);
        }
        let existing = self.windows.get(&window);
        let stored: Vec<_> = touched.iter().map(|key| Some(&existing?.get(key)?.states)).collect();
        let merged = self.merged(&stored, states, &groups)?;
        let existing = self.windows.entry(window).or_default();
        for (key, states) in touched.into_iter().zip(merged) {
            if let Some(since) = &mut self.since_delta {
                since.touched.insert((window, key.clone()));
            }
            let sealed = existing.get(&key).map_or(0, |group| group.sealed);
            existing.insert(key, Group { states, is_dirty: true, sealed, is_evicted: false });
        }
        Ok(())
    }

    fn first_closed(&self, watermark: Watermark) -> Option<Window> {
        self.windows.first_key_value().map(|(window, _)| *window).filter(|window| watermark.closes(window.end_ms))
    }

    fn drain(&mut self, window: Window, max_rows: usize) -> Result<Drained, StateError> {
        let Some(groups) = self.windows.get_mut(&window) else {
            return self.drained(&[], true);
        };
        let mut portion = Vec::new();
        while portion.len() < max_rows.max(1)
            && let Some((key, group)) = groups.pop_first()
        {
            if let Some(since) = &mut self.since_delta {
                since.touched.remove(&(window, key.clone()));
            }
            portion.push((key, group.states));
        }
        let finished = groups.is_empty();
        if finished {
            self.windows.remove(&window);
        }
        let through = portion.last().filter(|_| !finished).map(|(key, _)| key.clone());
        self.removed.remove(self.operator, window, through.clone());
        if let Some(since) = &mut self.since_delta {
            since.removed.remove(self.operator, window, through);
        }
        self.drained(&portion, finished)
    }

    fn groups(&self) -> usize {
        self.windows.values().flat_map(BTreeMap::values).filter(|group| !group.is_evicted).count()
    }
}

impl Table {
    fn drained(&self, portion: &[(Vec<u8>, States)], finished: bool) -> Result<Drained, StateError> {
        let keys: Vec<&[u8]> = portion.iter().map(|(key, _)| key.as_slice()).collect();
        let state = |at: usize| portion.iter().map(|(_, states)| states[at].as_slice()).collect::<Vec<_>>();
        let states = self.columns.iter().enumerate().map(|(at, column)| column.array(&state(at))).collect::<Result<_, _>>()?;
        Ok(Drained { keys: self.keys.arrays(&keys)?, states, finished })
    }
}

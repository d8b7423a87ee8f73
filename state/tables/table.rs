//! One window aggregation of one region: its windows, and what has been removed but not yet on disk.

use super::keys::EncodedKeys;
use super::slab::{Absent, WindowSlab};
use super::spec::TableSpec;
use crate::flush::{PREFIX_BYTES, Removal, SealedFlush, window_prefix};
use crate::rocks::Store;
use arrow_array::ArrayRef;
use std::collections::BTreeMap;
use std::sync::Arc;
use streamshield_core::ports::state::{Drained, StateBytes, StateError, Window, WindowTable};
use streamshield_core::watermark::Watermark;

/// A removal that the store does not show yet.
pub(super) struct PendingRemoval {
    /// The flush that holds it; None until one is sealed.
    pub flush: Option<u64>,
    pub removal: Removal,
}

pub(crate) struct Table {
    pub(super) spec: TableSpec,
    pub(super) store: Arc<Store>,
    /// Boxed: a node of the map has room for eleven.
    pub(super) windows: BTreeMap<Window, Box<WindowSlab>>,
    pub(super) removals: BTreeMap<Window, Vec<PendingRemoval>>,
    pub(super) bytes: usize,
    /// Merges so far: the age of a window's last use.
    pub(super) clock: u64,
    pub(super) clock_at_eviction: u64,
}

impl Table {
    /// `stored_windows`: those of which the store holds groups.
    pub fn open(spec: TableSpec, store: Arc<Store>, stored_windows: Vec<Window>) -> Result<Self, StateError> {
        let (windows, removals) = (BTreeMap::new(), BTreeMap::new());
        let mut table = Table { spec, store, windows, removals, bytes: 0, clock: 0, clock_at_eviction: 0 };
        for window in stored_windows {
            let mut slab = WindowSlab::new(&table.spec)?;
            slab.absent = Absent::Unknown;
            slab.is_stored = true;
            table.bytes += slab.bytes();
            table.windows.insert(window, Box::new(slab));
        }
        Ok(table)
    }

    pub fn operator(&self) -> u16 {
        self.spec.operator
    }

    pub fn bytes(&self) -> StateBytes {
        let (mut dirty, mut groups) = (0u64, 0u64);
        for slab in self.windows.values() {
            dirty += slab.marks.dirty_count() as u64;
            groups += slab.len() as u64;
        }
        let dirty_bytes = if groups == 0 { 0 } else { u128::from(dirty) * self.bytes as u128 / u128::from(groups) };
        StateBytes { total: self.bytes, dirty: dirty_bytes as usize }
    }

    /// Adds what changed since the last seal to a flush.
    pub fn seal(&mut self, flush: &mut SealedFlush) {
        for removals in self.removals.values_mut() {
            for pending in removals.iter_mut().filter(|pending| pending.flush.is_none()) {
                pending.flush = Some(flush.sequence);
                flush.remove(pending.removal.clone());
            }
        }
        for (window, slab) in &mut self.windows {
            let dirty = slab.marks.dirty_count();
            if dirty == 0 {
                continue;
            }
            let widths = self.spec.keys.fixed_bytes().zip(slab.written_bytes());
            if let Some((key, states)) = widths {
                flush.reserve(dirty * (key + states));
            }
            let prefix = window_prefix(self.spec.operator, *window);
            // The store takes sorted keys several times faster.
            let groups = slab.keys.sorted(slab.marks.dirty().ones().map(|group| group as u32));
            flush.put_window(
                prefix,
                widths,
                groups.into_iter(),
                |group, out| slab.keys.write(group, out),
                |group, out| slab.write_states(group, out),
            );
            let before = slab.bytes();
            slab.marks.seal(flush.sequence);
            slab.is_stored = true;
            self.bytes = self.bytes + slab.bytes() - before;
        }
    }

    /// A flush is in the store now.
    pub fn applied(&mut self, flush: u64) {
        self.removals.retain(|_, removals| {
            removals.retain(|pending| pending.flush.is_none_or(|sealed| sealed > flush));
            !removals.is_empty()
        });
        for slab in self.windows.values_mut() {
            let before = slab.marks.bytes();
            slab.marks.applied(flush);
            self.bytes = self.bytes + slab.marks.bytes() - before;
        }
    }

    /// The last key of a window that the store still shows although it was removed; None: nothing is removed.
    /// `Some(None)`: the whole window was.
    pub(super) fn removed_through(&self, window: Window) -> Option<Option<&[u8]>> {
        let removals = self.removals.get(&window)?;
        if removals.iter().any(|pending| pending.removal.through.is_none()) {
            return Some(None);
        }
        removals.iter().filter_map(|pending| pending.removal.through.as_deref()).max().map(Some)
    }

    /// Brings groups into memory that a batch will merge into.
    fn read_back(&mut self, window: Window, keys: &EncodedKeys) -> Result<(), StateError> {
        let Some(slab) = self.windows.get(&window).filter(|slab| slab.absent.any()) else {
            return Ok(());
        };
        let removed = match self.removed_through(window) {
            Some(None) => return Ok(()),
            Some(Some(last)) => Some(last.to_vec()),
            None => None,
        };
        let prefix = window_prefix(self.spec.operator, window);
        let missing = missing_keys(slab, keys, &prefix);
        let wanted: Vec<&[u8]> = missing.iter().filter(|key| removed.as_deref().is_none_or(|last| &key[PREFIX_BYTES..] > last)).collect();
        let store = Arc::clone(&self.store);
        let Some(slab) = self.windows.get_mut(&window) else { return Ok(()) };
        let mut found = 0;
        store.get_sorted(&wanted, |key, states| {
            found += 1;
            slab.add_written(&key[PREFIX_BYTES..], states)
        })?;
        slab.absent.remove(found);
        Ok(())
    }

    /// Takes what a drain has removed out of the slab: a merge must not find it.
    pub(super) fn settle_drain(&mut self, window: Window) {
        let Some(slab) = self.windows.get_mut(&window) else { return };
        let Some(drain) = slab.drain.take() else { return };
        let mut keep = super::segments::Bitmap::new(slab.len(), false);
        drain.groups[drain.next..].iter().for_each(|&group| {
            keep.set(group as usize);
        });
        slab.retain(&keep);
    }

    fn merge_rows(&mut self, window: Window, keys: &EncodedKeys, states: &[ArrayRef]) -> Result<(), StateError> {
        self.settle_drain(window);
        self.read_back(window, keys)?;
        let Some(slab) = self.windows.get_mut(&window) else { return Ok(()) };
        let first_new = slab.len();
        let groups = slab.find_or_add(keys);
        slab.merge(&self.spec.aggregates, &groups, states, first_new)?;
        slab.marks.mark_merged(&groups);
        slab.last_used = self.clock;
        Ok(())
    }
}

impl WindowTable for Table {
    fn merge(&mut self, window: Window, keys: &[ArrayRef], states: &[ArrayRef]) -> Result<(), StateError> {
        let rows = self.spec.check(keys, states)?;
        if rows == 0 {
            return Ok(());
        }
        let keys = self.spec.keys.encode(keys, rows)?;
        let before = match self.windows.get(&window) {
            Some(slab) => slab.bytes(),
            None => {
                self.windows.insert(window, Box::new(WindowSlab::new(&self.spec)?));
                0
            }
        };
        self.clock += 1;
        let merged = self.merge_rows(window, &keys, states);
        let after = self.windows.get(&window).map_or(0, |slab| slab.bytes());
        self.bytes = self.bytes + after - before;
        merged
    }

    fn first_closed(&self, watermark: Watermark) -> Option<Window> {
        self.windows.first_key_value().map(|(window, _)| *window).filter(|window| watermark.closes(window.end_ms))
    }

    fn drain(&mut self, window: Window, max_rows: usize) -> Result<Drained, StateError> {
        self.drain_portion(window, max_rows)
    }

    fn groups(&self) -> usize {
        self.windows.values().map(|slab| slab.live()).sum()
    }
}

/// Keys on disk, one after the other in one buffer.
#[derive(Default)]
struct KeyList {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl KeyList {
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }
}

/// The distinct keys of a batch that are not in memory, sorted.
fn missing_keys(slab: &WindowSlab, keys: &EncodedKeys, prefix: &[u8]) -> KeyList {
    let mut missing: Vec<usize> = (0..keys.len()).filter(|&row| slab.find(keys, row).is_none()).collect();
    keys.sort_rows(&mut missing);
    let mut list = KeyList::default();
    for row in missing {
        let start = list.bytes.len();
        list.bytes.extend_from_slice(prefix);
        keys.write(row, &mut list.bytes);
        let previous = list.ends.iter().rev().nth(1).copied().unwrap_or(0);
        let is_repeated = list.ends.last().is_some_and(|&end| list.bytes[previous..end] == list.bytes[start..]);
        if is_repeated {
            list.bytes.truncate(start);
        } else {
            list.ends.push(list.bytes.len());
        }
    }
    list
}

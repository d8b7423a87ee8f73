//! One window aggregation of one region: its windows, and what has been removed but not yet on disk.

use super::keys::EncodedKeys;
use super::marks::Marks;
use super::segments::Bitmap;
use super::slab::{Absent, WindowSlab};
use super::spec::TableSpec;
use crate::changes::{ChangeSink, PREFIX_BYTES, Removal, section_bytes, window_prefix};
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
    /// What was removed since the last delta; None: nobody wants deltas.
    pub(super) unsent_removals: Option<BTreeMap<Window, Removal>>,
    /// Groups may be in memory.
    pub(super) is_occupied: bool,
    pub(super) bytes: usize,
    /// Merges so far: the age of a window's last use.
    pub(super) clock: u64,
    pub(super) clock_at_eviction: u64,
}

impl Table {
    /// `stored_windows`: those of which the store holds groups.
    pub fn open(spec: TableSpec, store: Arc<Store>, stored_windows: Vec<Window>) -> Result<Self, StateError> {
        let mut table = Table {
            spec,
            store,
            windows: BTreeMap::new(),
            removals: BTreeMap::new(),
            unsent_removals: None,
            is_occupied: false,
            bytes: 0,
            clock: 0,
            clock_at_eviction: 0,
        };
        for window in stored_windows {
            table.know_stored_window(window)?;
        }
        Ok(table)
    }

    /// The store holds groups of a window, nobody knows how many.
    pub(super) fn know_stored_window(&mut self, window: Window) -> Result<(), StateError> {
        let mut slab = WindowSlab::new(&self.spec, self.unsent_removals.is_some())?;
        slab.absent = Absent::Unknown;
        slab.is_stored = true;
        self.bytes += slab.bytes();
        if let Some(previous) = self.windows.insert(window, Box::new(slab)) {
            self.bytes -= previous.bytes();
        }
        Ok(())
    }

    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    pub fn operator(&self) -> u16 {
        self.spec.operator
    }

    pub fn total_bytes(&self) -> usize {
        self.bytes
    }

    /// Walks over all windows.
    pub fn bytes(&self) -> StateBytes {
        let (mut dirty, mut groups) = (0u64, 0u64);
        for slab in self.windows.values() {
            dirty += slab.marks.unflushed_count() as u64;
            groups += slab.len() as u64;
        }
        let dirty_bytes = if groups == 0 { 0 } else { u128::from(dirty) * self.bytes as u128 / u128::from(groups) };
        StateBytes { total: self.bytes, dirty: dirty_bytes as usize }
    }

    /// Bytes that sealing this many groups of every window will take, where that can be known.
    pub(super) fn encoded_bytes(&self, changed: impl Fn(&Marks) -> usize) -> usize {
        let Some(widths) = self.spec.widths else { return 0 };
        let counts = self.windows.values().map(|slab| changed(&slab.marks)).filter(|&count| count > 0);
        counts.map(|count| section_bytes(count, widths)).sum()
    }

    /// How much the groups of the next flush will take, where that can be known.
    pub fn flush_bytes(&self) -> usize {
        self.encoded_bytes(Marks::unflushed_count)
    }

    /// About how much they will take, else from what they take in memory.
    pub fn flush_bytes_about(&self) -> usize {
        if self.spec.widths.is_some() { self.flush_bytes() } else { self.bytes().dirty }
    }

    /// Adds the removals since the last seal to a flush.
    pub fn seal_removals(&mut self, sequence: u64, flush: &mut impl ChangeSink) -> Result<(), StateError> {
        for removals in self.removals.values_mut() {
            for pending in removals.iter_mut().filter(|pending| pending.flush.is_none()) {
                pending.flush = Some(sequence);
                flush.remove(&pending.removal)?;
            }
        }
        Ok(())
    }

    /// Adds the groups that changed since the last seal to a flush.
    pub fn seal_groups(&mut self, sequence: u64, flush: &mut impl ChangeSink) -> Result<(), StateError> {
        for (window, slab) in &mut self.windows {
            if slab.marks.unflushed_count() == 0 {
                continue;
            }
            put_groups(&self.spec, *window, slab, slab.marks.unflushed(), flush)?;
            let before = slab.bytes();
            slab.marks.seal(sequence);
            slab.is_stored = true;
            self.bytes = self.bytes + slab.bytes() - before;
        }
        Ok(())
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
        let mut keep = Bitmap::new(slab.len(), false);
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
                self.windows.insert(window, Box::new(WindowSlab::new(&self.spec, self.unsent_removals.is_some())?));
                0
            }
        };
        self.clock += 1;
        self.is_occupied = true;
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

/// Encodes some groups of a window.
pub(super) fn put_groups(
    spec: &TableSpec,
    window: Window,
    slab: &WindowSlab,
    groups: &Bitmap,
    out: &mut impl ChangeSink,
) -> Result<(), StateError> {
    let prefix = window_prefix(spec.operator, window);
    // The store takes sorted keys several times faster.
    let groups = slab.keys.sorted(groups.ones().map(|group| group as u32));
    out.put_window(prefix, spec.widths, &groups, slab)
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

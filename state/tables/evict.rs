//! Dropping groups from memory that the store holds unchanged, and the last delta, too.
//!
//! Whole windows first, the one longest unused before all: that is cheap and frees everything. Then single groups of
//! the remaining windows, those not merged into since the last eviction before the others (a second chance, as in the clock
//! algorithm). Compacting a slab costs all its groups, so a window that could give back only a few keeps them.

use super::segments::Bitmap;
use super::slab::WindowSlab;
use super::table::Table;
use streamshield_core::ports::state::{StateError, Window};

/// A slab is compacted only for at least this share of its groups.
const WORTHWHILE_SHARE: usize = 16;

impl Table {
    /// Windows with groups in memory: how many merges ago each was last used.
    pub fn window_ages(&self) -> Vec<(u64, Window)> {
        let occupied = self.windows.iter().filter(|(_, slab)| slab.len() > 0);
        occupied.map(|(window, slab)| (self.clock - slab.last_used, *window)).collect()
    }

    /// Drops a window whose groups are all clean, if all of it is to go or nobody used it since the last eviction.
    /// Returns the bytes gained.
    pub fn evict_window(&mut self, window: Window, wanted: usize) -> Result<usize, StateError> {
        let is_due = |slab: &WindowSlab| slab.marks.all_clean() && (slab.last_used <= self.clock_at_eviction || slab.bytes() <= wanted);
        if !self.windows.get(&window).is_some_and(|slab| is_due(slab)) {
            return Ok(0);
        }
        let mut empty = WindowSlab::new(&self.spec, self.unsent_removals.is_some())?;
        let Some(slab) = self.windows.get_mut(&window) else { return Ok(0) };
        empty.absent = slab.absent;
        empty.absent.add(slab.live());
        empty.is_stored = slab.is_stored;
        empty.last_used = slab.last_used;
        let (before, after) = (slab.bytes(), empty.bytes());
        **slab = empty;
        self.bytes = self.bytes + after - before;
        Ok(before.saturating_sub(after))
    }

    /// Drops clean groups of a window to gain about `wanted` bytes. Returns the bytes gained.
    pub fn evict_groups(&mut self, window: Window, wanted: usize, unused_only: bool) -> usize {
        let before = self.windows.get(&window).map_or(0, |slab| slab.bytes());
        self.settle_drain(window);
        let Some(slab) = self.windows.get_mut(&window) else { return 0 };
        let clean = slab.marks.clean(unused_only);
        let evictable = clean.count();
        if evictable > 0 && evictable >= slab.len() / WORTHWHILE_SHARE {
            let per_group = (before / slab.len()).max(1);
            let dropped = evictable.min(wanted.div_ceil(per_group));
            let mut keep = Bitmap::new(slab.len(), true);
            clean.ones().take(dropped).for_each(|group| {
                keep.clear(group);
            });
            slab.retain(&keep);
            slab.absent.add(dropped);
        }
        let after = slab.bytes();
        self.bytes = self.bytes + after - before;
        before.saturating_sub(after)
    }

    /// Gives every group its second chance anew.
    pub fn forget_used(&mut self) {
        self.clock_at_eviction = self.clock;
        self.windows.values_mut().for_each(|slab| slab.marks.forget_used());
    }
}

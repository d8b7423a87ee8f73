//! Deltas of a table: what changed since the last one, and taking in those of another task.
//!
//! The active task counts changes for deltas beside those for flushes ([`Marks`](super::marks::Marks)). The first delta holds all that no applied flush
//! holds: so whatever the engine has sealed for the same epoch, its delta is complete.
//!
//! A standby writes deltas past the tables. All that a table keeps of them is which windows the store has groups of, so that taking over needs
//! no look at the store, whatever its size.

use super::marks::Marks;
use super::table::{Table, put_groups};
use crate::changes::{ChangeSink, Changes, Encoder, Prefix, Removal, window_prefix};
use std::collections::BTreeMap;
use streamshield_core::ports::state::{StateError, Window};

/// A removal that the standby must be told of, whatever it holds.
pub(super) fn unsent_removal(prefix: Prefix) -> Removal {
    Removal { is_stored: true, ..Removal::new(prefix) }
}

impl Table {
    /// Counts for deltas from now on. What no applied flush holds is still to be sent.
    fn begin_deltas(&mut self) {
        let mut unsent: BTreeMap<Window, Removal> = BTreeMap::new();
        for (window, removals) in &self.removals {
            let mut removal = unsent_removal(window_prefix(self.spec.operator, *window));
            for pending in removals {
                removal.widen(pending.removal.through.as_deref(), pending.removal.through.is_none());
            }
            unsent.insert(*window, removal);
        }
        self.unsent_removals = Some(unsent);
        for slab in self.windows.values_mut() {
            let before = slab.marks.bytes();
            let drained = slab.drain.as_ref().map_or(&[][..], |drain| drain.drained());
            slab.marks.begin_deltas(drained);
            self.bytes = self.bytes + slab.marks.bytes() - before;
        }
    }

    /// Adds the removals since the last delta to one. The first call begins the count.
    pub fn seal_delta_removals(&mut self, delta: &mut Encoder) -> Result<(), StateError> {
        if self.unsent_removals.is_none() {
            self.begin_deltas();
        }
        let mut removals = self.unsent_removals.replace(BTreeMap::new()).into_iter().flatten();
        removals.try_for_each(|(_, removal)| delta.remove(&removal))
    }

    /// How much the groups of the next delta will take.
    pub fn delta_bytes(&self) -> usize {
        self.encoded_bytes(Marks::unsent_count)
    }

    /// Adds the groups that changed since the last delta to one.
    pub fn seal_delta_groups(&mut self, delta: &mut Encoder) -> Result<(), StateError> {
        for (window, slab) in &mut self.windows {
            if slab.marks.unsent_count() == 0 {
                continue;
            }
            if let Some(unsent) = slab.marks.unsent() {
                put_groups(&self.spec, *window, slab, unsent, delta)?;
            }
            slab.marks.sent();
        }
        Ok(())
    }

    /// Memory holds nothing that the store, or a delta, does not.
    pub fn is_clean(&self) -> bool {
        let is_sent = self.unsent_removals.as_ref().is_none_or(BTreeMap::is_empty);
        let is_flushed = !self.is_occupied || self.windows.values().all(|slab| slab.marks.all_clean());
        is_sent && self.removals.is_empty() && is_flushed
    }

    pub fn has_window(&self, window: Window) -> bool {
        self.windows.contains_key(&window)
    }

    /// The store holds another task's changes now.
    pub fn changed_in_store(&mut self, changes: &Changes<'_>) -> Result<(), StateError> {
        if self.is_occupied {
            // Those that were evicted as a whole, too: how many of their groups the store holds is no longer what was counted.
            let windows: Vec<Window> = self.windows.keys().copied().collect();
            windows.into_iter().try_for_each(|window| self.know_stored_window(window))?;
            self.is_occupied = false;
        }
        let operator = self.spec.operator;
        for (_, window) in changes.removed_windows().filter(|(of, _)| *of == operator) {
            if let Some(slab) = self.windows.remove(&window) {
                self.bytes -= slab.bytes();
            }
        }
        for (_, window) in changes.written_windows().filter(|(of, _)| *of == operator) {
            if !self.has_window(window) {
                self.know_stored_window(window)?;
            }
        }
        Ok(())
    }
}

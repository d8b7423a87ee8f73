//! Draining a closed window: the next portion of its groups in key order, wherever they are.
//!
//! ```text
//!  memory: groups sorted once per drain  ─┐
//!                                         ├─▶ smaller key first, memory wins ─▶ portion, and whether more follows
//!  store: iterator behind the last key   ─┘
//! ```
//!
//! A portion is removed from memory by moving on in the sorted order, and from the store by the flush of its epoch. Until that
//! is applied, the removal itself hides what the store still shows.

use super::slab::{DrainOrder, WindowSlab};
use super::spec::TableSpec;
use super::table::{PendingRemoval, Table};
use crate::changes::{Entries, Prefix, Removal, window_prefix};
use crate::error::internal;
use crate::rocks::StoreRange;
use std::sync::Arc;
use streamshield_core::ports::state::{Drained, StateError, Window};

impl Table {
    pub(super) fn drain_portion(&mut self, window: Window, max_rows: usize) -> Result<Drained, StateError> {
        let max_rows = max_rows.max(1);
        if !self.windows.contains_key(&window) {
            let nothing = WindowSlab::new(&self.spec, false)?;
            return Ok(Drained { keys: self.spec.keys.gather(&nothing.keys, &[])?, states: nothing.gather(&[])?, finished: true });
        }
        let store = Arc::clone(&self.store);
        let prefix = window_prefix(self.spec.operator, window);
        let disk = match self.removed_through(window) {
            Some(None) => None,
            _ if !self.windows[&window].absent.any() => None,
            Some(Some(last)) => Some(store.range(&prefix, Some(last))?),
            None => Some(store.range(&prefix, None)?),
        };
        let Some(slab) = self.windows.get_mut(&window) else {
            return Err(internal("a window vanished during its drain"));
        };
        let before = slab.bytes();
        if slab.drain.is_none() {
            slab.drain = Some(DrainOrder { groups: slab.keys.sorted(0..slab.len() as u32), next: 0 });
        }
        let portion = match disk {
            None => drain_memory(&self.spec, slab, max_rows)?,
            Some(disk) => drain_both(&self.spec, slab, disk, &prefix, max_rows)?,
        };
        self.bytes = self.bytes + slab.bytes() - before;
        let Portion { drained, last_key } = portion;
        self.remember_removal(window, prefix, last_key, drained.finished);
        Ok(drained)
    }

    /// Notes for the next flush and the next delta what a portion has taken.
    fn remember_removal(&mut self, window: Window, prefix: Prefix, last_key: Option<Vec<u8>>, is_whole: bool) {
        let is_stored = self.windows.get(&window).is_some_and(|slab| slab.is_stored);
        if is_whole && let Some(slab) = self.windows.remove(&window) {
            self.bytes -= slab.bytes();
        }
        let removals = self.removals.entry(window).or_default();
        if removals.last().is_none_or(|pending| pending.flush.is_some()) {
            removals.push(PendingRemoval { flush: None, removal: Removal::new(prefix) });
        }
        if let Some(PendingRemoval { removal, .. }) = removals.last_mut() {
            removal.is_stored |= is_stored;
            removal.widen(last_key.as_deref(), is_whole);
        }
        if let Some(unsent) = &mut self.unsent_removals {
            unsent.entry(window).or_insert_with(|| super::delta::unsent_removal(prefix)).widen(last_key.as_deref(), is_whole);
        }
    }
}

struct Portion {
    drained: Drained,
    last_key: Option<Vec<u8>>,
}

/// All groups are in memory.
fn drain_memory(spec: &TableSpec, slab: &mut WindowSlab, max_rows: usize) -> Result<Portion, StateError> {
    let Some(mut order) = slab.drain.take() else {
        return Err(internal("a drain without an order"));
    };
    let end = order.groups.len().min(order.next + max_rows);
    let groups = &order.groups[order.next..end];
    let drained =
        Drained { keys: spec.keys.gather(&slab.keys, groups)?, states: slab.gather(groups)?, finished: end == order.groups.len() };
    slab.marks.forget_changed(groups);
    let last_key = groups.last().map(|&group| {
        let mut key = vec![];
        slab.keys.write(group, &mut key);
        key
    });
    order.next = end;
    slab.drain = Some(order);
    Ok(Portion { drained, last_key })
}

/// Some groups are on disk only: both sides are merged into a slab of their own, which becomes the portion.
fn drain_both(
    spec: &TableSpec,
    slab: &mut WindowSlab,
    mut disk: StoreRange<'_>,
    prefix: &Prefix,
    max_rows: usize,
) -> Result<Portion, StateError> {
    let Some(mut order) = slab.drain.take() else {
        return Err(internal("a drain without an order"));
    };
    let mut portion = WindowSlab::new(spec, false)?;
    let (mut memory_key, mut states, mut last_key) = (vec![], vec![], vec![]);
    let first = order.next;
    let mut from_disk = 0;
    let finished = loop {
        let memory = order.groups.get(order.next).copied();
        memory_key.clear();
        if let Some(group) = memory {
            slab.keys.write(group, &mut memory_key);
        }
        let stored = disk.peek()?.map(|(key, states)| (&key[prefix.len()..], states));
        let takes_memory = match (memory, &stored) {
            (None, None) => break true,
            (Some(_), Some((key, _))) => memory_key.as_slice() <= *key,
            (memory, _) => memory.is_some(),
        };
        if portion.len() == max_rows {
            break false;
        }
        let is_in_both = takes_memory && stored.as_ref().is_some_and(|(key, _)| *key == memory_key.as_slice());
        match (takes_memory, memory, stored) {
            (true, Some(group), _) => {
                states.clear();
                slab.write_states(group, &mut states);
                portion.push_written(&memory_key, &states)?;
                order.next += 1;
            }
            (_, _, Some((key, stored_states))) => {
                portion.push_written(key, stored_states)?;
                from_disk += 1;
            }
            _ => break true,
        }
        if !takes_memory || is_in_both {
            disk.advance();
        }
    };
    slab.marks.forget_changed(&order.groups[first..order.next]);
    slab.absent.remove(from_disk);
    slab.drain = Some(order);
    let groups: Vec<u32> = (0..portion.len() as u32).collect();
    if let Some(&last) = groups.last() {
        portion.keys.write(last, &mut last_key);
    }
    let drained = Drained { keys: spec.keys.gather(&portion.keys, &groups)?, states: portion.gather(&groups)?, finished };
    Ok(Portion { drained, last_key: (!groups.is_empty()).then_some(last_key) })
}

//! What is known of each group besides its state: changed, held by a sealed flush, used.

use super::segments::Bitmap;
use std::collections::VecDeque;

#[derive(Default)]
pub(crate) struct Marks {
    len: usize,
    /// Changed since the last sealed flush.
    dirty: Bitmap,
    dirty_count: usize,
    /// Merged into since the last eviction.
    used: Bitmap,
    /// Groups held by flushes that are sealed and not applied, oldest first.
    in_flight: VecDeque<(u64, Bitmap)>,
}

impl Marks {
    pub fn grow(&mut self, count: usize) {
        self.len += count;
        self.dirty.extend(count, false);
        self.used.extend(count, false);
    }

    pub fn dirty_count(&self) -> usize {
        self.dirty_count
    }

    pub fn mark_merged(&mut self, groups: &[u32]) {
        for &group in groups {
            self.dirty_count += usize::from(self.dirty.set(group as usize));
            self.used.set(group as usize);
        }
    }

    /// A drained group is written by no flush.
    pub fn forget_dirty(&mut self, groups: &[u32]) {
        for &group in groups {
            self.dirty_count -= usize::from(self.dirty.clear(group as usize));
        }
    }

    pub fn dirty(&self) -> &Bitmap {
        &self.dirty
    }

    pub fn seal(&mut self, flush: u64) {
        if self.dirty_count > 0 {
            let sealed = std::mem::replace(&mut self.dirty, Bitmap::new(self.len, false));
            self.dirty_count = 0;
            self.in_flight.push_back((flush, sealed));
        }
    }

    pub fn applied(&mut self, flush: u64) {
        self.in_flight.retain(|(sealed, _)| *sealed > flush);
    }

    /// Nothing was changed since an applied flush.
    pub fn all_clean(&self) -> bool {
        self.dirty_count == 0 && self.in_flight.is_empty()
    }

    /// Groups unchanged since an applied flush; with `unused_only`, those not merged into since the last eviction.
    pub fn clean(&self, unused_only: bool) -> Bitmap {
        let mut clean = Bitmap::new(self.len, true);
        clean.remove(&self.dirty);
        self.in_flight.iter().for_each(|(_, sealed)| clean.remove(sealed));
        if unused_only {
            clean.remove(&self.used);
        }
        clean
    }

    pub fn forget_used(&mut self) {
        self.used.clear_all();
    }

    pub fn retain(&mut self, keep: &Bitmap) {
        self.dirty.retain(keep);
        self.dirty_count = self.dirty.count();
        self.used.retain(keep);
        self.in_flight.iter_mut().for_each(|(_, sealed)| sealed.retain(keep));
        self.len = keep.count();
    }

    pub fn bytes(&self) -> usize {
        let in_flight: usize = self.in_flight.iter().map(|(_, sealed)| sealed.bytes()).sum();
        self.dirty.bytes() + self.used.bytes() + in_flight + self.in_flight.capacity() * size_of::<(u64, Bitmap)>()
    }
}

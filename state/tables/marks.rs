//! What is known of each group besides its state: changed, held by a sealed flush, used.
//!
//! Flushes and deltas are sealed at different times and keep a set of changed groups each; the one of deltas is kept from the first delta on. A group
//! in either set stays in memory, so that its value is there when the set is sealed.

use super::segments::Bitmap;
use std::collections::VecDeque;

/// Groups that changed since the last seal.
#[derive(Default)]
struct Changed {
    bits: Bitmap,
    count: usize,
}

impl Changed {
    fn of(bits: Bitmap) -> Self {
        let count = bits.count();
        Changed { bits, count }
    }

    fn mark(&mut self, groups: &[u32]) {
        for &group in groups {
            self.count += usize::from(self.bits.set(group as usize));
        }
    }

    fn forget(&mut self, groups: &[u32]) {
        for &group in groups {
            self.count -= usize::from(self.bits.clear(group as usize));
        }
    }

    fn retain(&mut self, keep: &Bitmap) {
        self.bits.retain(keep);
        self.count = self.bits.count();
    }
}

#[derive(Default)]
pub(crate) struct Marks {
    len: usize,
    /// Since the last sealed flush.
    unflushed: Changed,
    /// Since the last delta; None: nobody wants deltas.
    unsent: Option<Changed>,
    /// Merged into since the last eviction.
    used: Bitmap,
    /// Groups held by flushes that are sealed and not applied, oldest first.
    in_flight: VecDeque<(u64, Bitmap)>,
}

impl Marks {
    /// `with_deltas`: counts for deltas from the beginning.
    pub fn new(with_deltas: bool) -> Self {
        Marks { unsent: with_deltas.then(Changed::default), ..Marks::default() }
    }

    pub fn grow(&mut self, count: usize) {
        self.len += count;
        self.unflushed.bits.extend(count, false);
        if let Some(unsent) = &mut self.unsent {
            unsent.bits.extend(count, false);
        }
        self.used.extend(count, false);
    }

    pub fn mark_merged(&mut self, groups: &[u32]) {
        for &group in groups {
            self.unflushed.count += usize::from(self.unflushed.bits.set(group as usize));
            self.used.set(group as usize);
        }
        if let Some(unsent) = &mut self.unsent {
            unsent.mark(groups);
        }
    }

    /// A drained group is written by no flush and no delta.
    pub fn forget_changed(&mut self, groups: &[u32]) {
        self.unflushed.forget(groups);
        if let Some(unsent) = &mut self.unsent {
            unsent.forget(groups);
        }
    }

    pub fn unflushed_count(&self) -> usize {
        self.unflushed.count
    }

    pub fn unflushed(&self) -> &Bitmap {
        &self.unflushed.bits
    }

    pub fn unsent_count(&self) -> usize {
        self.unsent.as_ref().map_or(0, |unsent| unsent.count)
    }

    pub fn unsent(&self) -> Option<&Bitmap> {
        self.unsent.as_ref().map(|unsent| &unsent.bits)
    }

    /// Starts to count for deltas: all that no applied flush holds counts as changed, but `drained`.
    pub fn begin_deltas(&mut self, drained: &[u32]) {
        let mut bits = self.unflushed.bits.clone();
        self.in_flight.iter().for_each(|(_, sealed)| bits.insert(sealed));
        let mut unsent = Changed::of(bits);
        unsent.forget(drained);
        self.unsent = Some(unsent);
    }

    pub fn seal(&mut self, flush: u64) {
        if self.unflushed.count > 0 {
            let sealed = std::mem::replace(&mut self.unflushed.bits, Bitmap::new(self.len, false));
            self.unflushed.count = 0;
            self.in_flight.push_back((flush, sealed));
        }
    }

    /// A delta has all that changed.
    pub fn sent(&mut self) {
        if let Some(unsent) = &mut self.unsent {
            unsent.bits.clear_all();
            unsent.count = 0;
        }
    }

    pub fn applied(&mut self, flush: u64) {
        self.in_flight.retain(|(sealed, _)| *sealed > flush);
    }

    /// Nothing was changed since an applied flush, nor since the last delta.
    pub fn all_clean(&self) -> bool {
        self.unflushed.count == 0 && self.unsent_count() == 0 && self.in_flight.is_empty()
    }

    /// Groups unchanged since an applied flush and since the last delta; with `unused_only`, those not merged into since the last eviction.
    pub fn clean(&self, unused_only: bool) -> Bitmap {
        let mut clean = Bitmap::new(self.len, true);
        clean.remove(&self.unflushed.bits);
        if let Some(unsent) = &self.unsent {
            clean.remove(&unsent.bits);
        }
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
        self.unflushed.retain(keep);
        if let Some(unsent) = &mut self.unsent {
            unsent.retain(keep);
        }
        self.used.retain(keep);
        self.in_flight.iter_mut().for_each(|(_, sealed)| sealed.retain(keep));
        self.len = keep.count();
    }

    pub fn bytes(&self) -> usize {
        let in_flight: usize = self.in_flight.iter().map(|(_, sealed)| sealed.bytes()).sum();
        let unsent = self.unsent.as_ref().map_or(0, |unsent| unsent.bits.bytes());
        self.unflushed.bits.bytes() + unsent + self.used.bytes() + in_flight + self.in_flight.capacity() * size_of::<(u64, Bitmap)>()
    }
}

//! Reads changes in place: nothing is copied but the headers of removals and sections.
//!
//! What comes from the changelog is checked as a whole before any of it is written: the checksum says that the bytes are those that were sealed,
//! the layout that they are for these tables, and [`Changes::check`] that every length adds up and all is in order. A state's own bytes are
//! not looked into: as with a store found on disk, that happens when a group is read back.

use super::{
    DELTA_HEADER_BYTES, DELTA_MAGIC, KEYS_THROUGH, PREFIX_BYTES, Prefix, SECTION, VARIABLE, WHOLE_WINDOW, checksum, hash_of_entry,
    hash_of_removal, parse_prefix, removed_range, window_seed,
};
use crate::error::damaged;
use crate::tables::TableSpec;
use streamshield_core::ids::Digest;
use streamshield_core::ports::state::{StateError, Window};

pub(crate) struct Changes<'a> {
    removals: Vec<(Prefix, Option<&'a [u8]>)>,
    sections: Vec<Section<'a>>,
}

/// The entries of one window.
struct Section<'a> {
    prefix: Prefix,
    /// Bytes of each key and of each value, when all have the same.
    widths: Option<(usize, usize)>,
    entries: usize,
    bytes: &'a [u8],
}

fn cut_short() -> StateError {
    damaged("a delta ends in the middle")
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], StateError> {
    let (front, rest) = bytes.split_at_checked(count).ok_or_else(cut_short)?;
    *bytes = rest;
    Ok(front)
}

fn take_array<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], StateError> {
    let (front, rest) = bytes.split_first_chunk::<N>().ok_or_else(cut_short)?;
    *bytes = rest;
    Ok(*front)
}

impl<'a> Changes<'a> {
    /// Of a flush that this process has sealed.
    pub fn of_flush(bytes: &'a [u8]) -> Result<Self, StateError> {
        Self::read(bytes)
    }

    /// Of a delta from anywhere, for tables of this layout. [`Self::check`] is still to be called.
    pub fn of_delta(bytes: &'a [u8], layout: u64) -> Result<Self, StateError> {
        let (header, body) = bytes.split_at_checked(DELTA_HEADER_BYTES).ok_or_else(cut_short)?;
        let mut header = header;
        if take_array::<8>(&mut header)? != DELTA_MAGIC {
            return Err(damaged("these bytes are no delta, or one of another version"));
        }
        let of_layout = u64::from_le_bytes(take_array(&mut header)?);
        if of_layout != layout {
            return Err(damaged(format!("a delta is for tables {of_layout:016x}, these are {layout:016x}")));
        }
        if u64::from_le_bytes(take_array(&mut header)?) != checksum(layout, body) {
            return Err(damaged("the checksum of a delta does not match its bytes"));
        }
        Self::read(body)
    }

    fn read(mut rest: &'a [u8]) -> Result<Self, StateError> {
        let mut changes = Changes { removals: vec![], sections: vec![] };
        while !rest.is_empty() {
            let [kind] = take_array::<1>(&mut rest)?;
            let prefix: Prefix = take_array::<PREFIX_BYTES>(&mut rest)?;
            match kind {
                WHOLE_WINDOW if changes.sections.is_empty() => changes.removals.push((prefix, None)),
                KEYS_THROUGH if changes.sections.is_empty() => {
                    let len = u32::from_le_bytes(take_array(&mut rest)?) as usize;
                    changes.removals.push((prefix, Some(take(&mut rest, len)?)));
                }
                SECTION => changes.sections.push(Section::read(prefix, &mut rest)?),
                other => return Err(damaged(format!("a delta has a part of kind {other} where none belongs"))),
            }
        }
        Ok(changes)
    }

    /// Everything that can be wrong with bytes from elsewhere; the digest, computed as the encoder did. `table` gives the table of an operator.
    pub fn check<'t>(&self, table: impl Fn(u16) -> Option<&'t TableSpec>) -> Result<Digest, StateError> {
        let table_of = |prefix: &Prefix| {
            let operator = parse_prefix(prefix).map(|(operator, _)| operator);
            operator.and_then(&table).ok_or_else(|| damaged(format!("a delta has a part for operator {operator:?}, which has no table")))
        };
        let mut digest = Digest::default();
        for (prefix, through) in &self.removals {
            let table = table_of(prefix)?;
            if through.is_some_and(|last| !table.keys.is_key(last)) {
                return Err(damaged("a delta removes up to what is no key"));
            }
            digest.fold(hash_of_removal(prefix, *through));
        }
        if !self.sections.is_sorted_by(|left, right| left.prefix < right.prefix) {
            return Err(damaged("the windows of a delta are not in order"));
        }
        for section in &self.sections {
            section.check(table_of(&section.prefix)?, &mut digest)?;
        }
        Ok(digest)
    }

    /// Bytes of the entries with their full keys.
    pub fn written_bytes(&self) -> usize {
        self.sections.iter().map(|section| section.bytes.len() + section.entries * PREFIX_BYTES).sum()
    }

    /// Leaves out the removals of windows that the store holds nothing of.
    pub fn retain_removals(&mut self, is_stored: impl Fn(u16, Window) -> bool) {
        self.removals.retain(|(prefix, _)| parse_prefix(prefix).is_some_and(|(operator, window)| is_stored(operator, window)));
    }

    /// The windows that were removed as a whole, before the entries are put.
    pub fn removed_windows(&self) -> impl Iterator<Item = (u16, Window)> {
        self.removals.iter().filter(|(_, through)| through.is_none()).filter_map(|(prefix, _)| parse_prefix(prefix))
    }

    /// The windows that have entries.
    pub fn written_windows(&self) -> impl Iterator<Item = (u16, Window)> {
        self.sections.iter().filter_map(|section| parse_prefix(&section.prefix))
    }

    /// The ranges to delete before the entries are put: from, to, the end excluded.
    pub fn removed_ranges(&self) -> impl Iterator<Item = (Prefix, Vec<u8>)> {
        self.removals.iter().map(|(prefix, through)| removed_range(prefix, *through))
    }

    /// Hands out every entry with its full key, in key order.
    pub fn try_for_each_entry<E>(&self, mut put: impl FnMut(&[u8], &[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut full_key = Vec::with_capacity(256);
        for section in &self.sections {
            let mut rest = section.bytes;
            for _ in 0..section.entries {
                let Some((key, states)) = section.split_entry(&mut rest) else { break };
                full_key.clear();
                full_key.extend_from_slice(&section.prefix);
                full_key.extend_from_slice(key);
                put(&full_key, states)?;
            }
        }
        Ok(())
    }
}

impl<'a> Section<'a> {
    /// What follows the prefix.
    fn read(prefix: Prefix, rest: &mut &'a [u8]) -> Result<Self, StateError> {
        let key_width = u32::from_le_bytes(take_array(rest)?);
        let states_width = u32::from_le_bytes(take_array(rest)?);
        let entries = u32::from_le_bytes(take_array(rest)?) as usize;
        let len = u64::from_le_bytes(take_array(rest)?);
        let bytes = take(rest, usize::try_from(len).map_err(|_| cut_short())?)?;
        let widths = match (key_width, states_width) {
            (VARIABLE, VARIABLE) => None,
            (key, states) => Some((key as usize, states as usize)),
        };
        Ok(Section { prefix, widths, entries, bytes })
    }

    #[inline]
    fn split_entry(&self, rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let (key_len, states_len) = match self.widths {
            Some(widths) => widths,
            None => {
                let (key_len, after) = rest.split_first_chunk::<4>()?;
                let (states_len, after) = after.split_first_chunk::<4>()?;
                *rest = after;
                (u32::from_le_bytes(*key_len) as usize, u32::from_le_bytes(*states_len) as usize)
            }
        };
        let (key, after) = rest.split_at_checked(key_len)?;
        let (states, after) = after.split_at_checked(states_len)?;
        *rest = after;
        Some((key, states))
    }

    /// The entries are as many as said, in order, and fit the table.
    fn check(&self, table: &TableSpec, digest: &mut Digest) -> Result<(), StateError> {
        if self.widths != table.widths {
            return Err(damaged(format!("entries of {:?} bytes in a delta where the table has {:?}", self.widths, table.widths)));
        }
        let seed = window_seed(&self.prefix);
        let mut rest = self.bytes;
        let mut previous = None;
        for _ in 0..self.entries {
            let (key, states) = self.split_entry(&mut rest).ok_or_else(|| damaged("a window of a delta has too few entries"))?;
            if !table.keys.is_key(key) {
                return Err(damaged("an entry of a delta has no valid key"));
            }
            if previous.is_some_and(|previous| previous >= key) {
                return Err(damaged("the entries of a delta are not in order"));
            }
            previous = Some(key);
            // Key and states lie side by side.
            let end = self.bytes.len() - rest.len();
            digest.fold(hash_of_entry(&self.bytes[end - key.len() - states.len()..end], seed));
        }
        if self.entries == 0 || !rest.is_empty() {
            return Err(damaged("a window of a delta has more bytes than entries, or none"));
        }
        Ok(())
    }
}

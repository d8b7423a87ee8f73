//! A sealed flush: what changed, encoded once, digested, and held until its epoch is committed.
//!
//! ```text
//!  key on disk    operator u16 │ window end i64 │ window start i64 │ key      big endian, sign flipped: bytes sort as windows do
//!  entry held     key │ states                  when both have a fixed width
//!                 key length u32 │ states length u32 │ key │ states
//! ```
//!
//! The window is held once per section, not per entry: a group with an integer key and a count takes 18 bytes here. Removals come before
//! entries when it is written, since what a window's drain removed may have been merged again.

use streamshield_core::ids::Digest;
use streamshield_core::ports::state::Window;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub(crate) const PREFIX_BYTES: usize = 18;

pub(crate) type Prefix = [u8; PREFIX_BYTES];

const SIGN: u64 = 1 << 63;

/// What all keys of a window begin with.
pub(crate) fn window_prefix(operator: u16, window: Window) -> Prefix {
    let mut prefix = [0; PREFIX_BYTES];
    prefix[..2].copy_from_slice(&operator.to_be_bytes());
    prefix[2..10].copy_from_slice(&(window.end_ms as u64 ^ SIGN).to_be_bytes());
    prefix[10..].copy_from_slice(&(window.start_ms as u64 ^ SIGN).to_be_bytes());
    prefix
}

/// The operator and window of a key on disk.
pub(crate) fn parse_prefix(key: &[u8]) -> Option<(u16, Window)> {
    let (operator, rest) = key.split_first_chunk::<2>()?;
    let (end, rest) = rest.split_first_chunk::<8>()?;
    let (start, _) = rest.split_first_chunk::<8>()?;
    let time = |bytes: &[u8; 8]| (u64::from_be_bytes(*bytes) ^ SIGN) as i64;
    Some((u16::from_be_bytes(*operator), Window { end_ms: time(end), start_ms: time(start) }))
}

/// The first key after all that begin with `prefix`.
pub(crate) fn after_prefix(prefix: &Prefix) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Only the reserved operator begins with nothing but 255.
    vec![u8::MAX; PREFIX_BYTES + 1]
}

/// A part of a window, or all of it, that a drain has taken.
#[derive(Clone, Debug)]
pub(crate) struct Removal {
    pub prefix: Prefix,
    /// The last key of the part; None: the whole window.
    pub through: Option<Vec<u8>>,
    /// The store may hold some of it.
    pub is_stored: bool,
}

/// The entries of one window.
pub(crate) struct Section {
    prefix: Prefix,
    entries: usize,
    /// Bytes of each key and of each value, when all have the same.
    widths: Option<(usize, usize)>,
    end: usize,
}

/// A flush between sealing and applying.
pub(crate) struct SealedFlush {
    pub sequence: u64,
    removals: Vec<Removal>,
    sections: Vec<Section>,
    bytes: Vec<u8>,
    digest: Digest,
}

impl SealedFlush {
    pub fn new(sequence: u64) -> Self {
        SealedFlush { sequence, removals: vec![], sections: vec![], bytes: vec![], digest: Digest::default() }
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn bytes(&self) -> usize {
        let removals: usize = self.removals.iter().map(|removal| removal.through.as_ref().map_or(0, Vec::len)).sum();
        self.bytes.capacity() + removals + self.removals.capacity() * size_of::<Removal>()
    }

    /// Room for this many bytes of entries, so that the buffer grows once.
    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve_exact(bytes);
    }

    pub fn remove(&mut self, removal: Removal) {
        let mut named = removal.prefix.to_vec();
        named.extend(removal.through.as_deref().unwrap_or(b"\xffwhole window"));
        self.digest.fold(xxh3_64_with_seed(&named, REMOVAL_SEED));
        self.removals.push(removal);
    }

    /// Adds the entries of one window. The groups are in key order, and windows come once each.
    pub fn put_window(
        &mut self,
        prefix: Prefix,
        widths: Option<(usize, usize)>,
        groups: impl Iterator<Item = u32>,
        mut write_key: impl FnMut(u32, &mut Vec<u8>),
        mut write_states: impl FnMut(u32, &mut Vec<u8>),
    ) {
        let seed = xxh3_64(&prefix);
        let mut entries = 0;
        for group in groups {
            let lengths = self.bytes.len();
            if widths.is_none() {
                self.bytes.extend_from_slice(&[0; 8]);
            }
            let key = self.bytes.len();
            write_key(group, &mut self.bytes);
            let states = self.bytes.len();
            write_states(group, &mut self.bytes);
            if widths.is_none() {
                let (key_len, states_len) = ((states - key) as u32, (self.bytes.len() - states) as u32);
                self.bytes[lengths..lengths + 4].copy_from_slice(&key_len.to_le_bytes());
                self.bytes[lengths + 4..key].copy_from_slice(&states_len.to_le_bytes());
            }
            // Keys are prefix-free, so key and states need no separator.
            self.digest.fold(xxh3_64_with_seed(&self.bytes[key..], seed));
            entries += 1;
        }
        self.sections.push(Section { prefix, entries, widths, end: self.bytes.len() });
    }

    /// Bytes of the entries with their full keys.
    pub fn written_bytes(&self) -> usize {
        let entries: usize = self.sections.iter().map(|section| section.entries).sum();
        self.bytes.len() + entries * PREFIX_BYTES
    }

    /// The ranges to delete before the entries are put: from, to, the end excluded.
    pub fn removed_ranges(&self) -> impl Iterator<Item = (Prefix, Vec<u8>)> {
        self.removals.iter().filter(|removal| removal.is_stored).map(|removal| {
            let end = match &removal.through {
                None => after_prefix(&removal.prefix),
                Some(last) => [&removal.prefix[..], last, &[0]].concat(),
            };
            (removal.prefix, end)
        })
    }

    /// Hands out every entry with its full key, in key order.
    pub fn try_for_each_entry<E>(&self, mut put: impl FnMut(&[u8], &[u8]) -> Result<(), E>) -> Result<(), E> {
        let starts = std::iter::once(0).chain(self.sections.iter().map(|section| section.end));
        let mut sections: Vec<(usize, &Section)> = starts.zip(&self.sections).collect();
        sections.sort_by_key(|(_, section)| section.prefix);
        let mut key = Vec::with_capacity(256);
        for (start, section) in sections {
            // A table without key and state has one entry of no bytes.
            if section.widths == Some((0, 0)) {
                put(&section.prefix, &[])?;
                continue;
            }
            let mut rest = &self.bytes[start..section.end];
            while let Some((group_key, states, after)) = split_entry(rest, section.widths) {
                key.clear();
                key.extend_from_slice(&section.prefix);
                key.extend_from_slice(group_key);
                put(&key, states)?;
                rest = after;
            }
        }
        Ok(())
    }
}

/// Tells the digest of a removal from that of an entry with the same bytes.
const REMOVAL_SEED: u64 = 0x7265_6d6f_7665_6421;

fn split_entry(bytes: &[u8], widths: Option<(usize, usize)>) -> Option<(&[u8], &[u8], &[u8])> {
    if bytes.is_empty() {
        return None;
    }
    let (key_len, states_len, bytes) = match widths {
        Some((key_len, states_len)) => (key_len, states_len, bytes),
        None => {
            let (key_len, rest) = bytes.split_first_chunk::<4>()?;
            let (states_len, rest) = rest.split_first_chunk::<4>()?;
            (u32::from_le_bytes(*key_len) as usize, u32::from_le_bytes(*states_len) as usize, rest)
        }
    };
    let (key, rest) = bytes.split_at_checked(key_len)?;
    let (states, rest) = rest.split_at_checked(states_len)?;
    Some((key, states, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_on_disk_sort_as_their_windows_do() {
        let times = [i64::MIN, -1, 0, 1, 1_700_000_000_000, i64::MAX];
        let mut windows: Vec<Window> =
            times.iter().flat_map(|&end_ms| times.iter().map(move |&start_ms| Window { end_ms, start_ms })).collect();
        windows.sort();
        let prefixes: Vec<Prefix> = windows.iter().map(|&window| window_prefix(7, window)).collect();
        assert!(prefixes.is_sorted());
        for (window, prefix) in windows.iter().zip(&prefixes) {
            assert_eq!(parse_prefix(prefix), Some((7, *window)));
            assert!(after_prefix(prefix).as_slice() > [&prefix[..], &[255; 40]].concat().as_slice());
        }
        let last = window_prefix(7, Window { end_ms: i64::MAX, start_ms: i64::MAX });
        assert_eq!(after_prefix(&last), vec![0, 8]);
    }
}

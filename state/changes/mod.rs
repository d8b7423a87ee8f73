//! What changed in a region, encoded once: the content of a flush, which waits for its epoch, and of a delta, which travels through
//! the changelog to a standby. (A large flush waits as a file: see `rocks/table_file.rs`.)
//!
//! Both are in the form of the store, so that writing them decodes nothing:
//!
//! ```text
//!  delta     "SSdelta" 1 │ layout u64 │ checksum u64 of what follows │ removal… │ section…
//!  flush                                                               removal… │ section…
//!  removal   1 │ prefix                              a whole window
//!            2 │ prefix │ key length u32 │ key       all keys up to this one
//!  section   3 │ prefix │ key width u32 │ states width u32 │ entries u32 │ bytes u64 │ entry…
//!  entry     key │ states                            when both have a fixed width
//!            key length u32 │ states length u32 │ key │ states           else: the widths are 2³²−1
//!  prefix    operator u16 │ window end i64 │ window start i64            big endian, sign flipped: bytes sort as windows do
//! ```
//!
//! All else is little endian. The key in the store is the prefix and the key; the window is held once per section: a group with an
//! integer key and a count takes 18 bytes here. Removals come before entries, since what a window's drain removed may have been merged again.
//! Sections are in the order of their prefixes, entries in the order of their keys, so that a large flush can be written as a table file.
//!
//! Invariant: E-4, the digest depends on removals and entries, not on their order or on where they are.

mod decode;
mod encode;

pub(crate) use decode::Changes;
pub(crate) use encode::{Encoder, section_bytes};

use streamshield_core::ports::state::{StateError, Window};

pub(crate) const PREFIX_BYTES: usize = 18;

pub(crate) type Prefix = [u8; PREFIX_BYTES];

const SIGN: u64 = 1 << 63;

/// The last byte is the version of all this.
const DELTA_MAGIC: [u8; 8] = *b"SSdelta\x01";
const DELTA_HEADER_BYTES: usize = 24;

const WHOLE_WINDOW: u8 = 1;
const KEYS_THROUGH: u8 = 2;
const SECTION: u8 = 3;
const SECTION_HEADER_BYTES: usize = 1 + PREFIX_BYTES + 20;
/// Stands for a width where keys or states differ in theirs.
const VARIABLE: u32 = u32::MAX;

/// Tells the digest of a removal from that of an entry with the same bytes.
const REMOVAL_SEED: u64 = 0x7265_6d6f_7665_6421;

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
    /// Whoever applies it may hold some of it.
    pub is_stored: bool,
}

impl Removal {
    /// Nothing yet.
    pub fn new(prefix: Prefix) -> Self {
        Removal { prefix, through: Some(vec![]), is_stored: false }
    }

    /// Takes in one more portion of a drain; `last_key` is None when it was empty.
    pub fn widen(&mut self, last_key: Option<&[u8]>, is_whole: bool) {
        if is_whole {
            self.through = None;
        } else if let (Some(through), Some(last)) = (&mut self.through, last_key)
            && last > through.as_slice()
        {
            *through = last.to_vec();
        }
    }

    pub fn hash(&self) -> u64 {
        hash_of_removal(&self.prefix, self.through.as_deref())
    }
}

/// Where changes are written to: removals first, then windows in the order of their prefixes, each once.
pub(crate) trait ChangeSink {
    /// One that meets nothing counts for the digest only.
    fn remove(&mut self, removal: &Removal) -> Result<(), StateError>;
    /// The entries of one window. The groups are in key order; `widths` as in the table's specification.
    fn put_window(
        &mut self,
        prefix: Prefix,
        widths: Option<(usize, usize)>,
        groups: &[u32],
        entries: &impl Entries,
    ) -> Result<(), StateError>;
}

/// The groups of one window as they are on disk.
pub(crate) trait Entries {
    fn write_key(&self, group: u32, out: &mut Vec<u8>);
    fn write_states(&self, group: u32, out: &mut Vec<u8>);
    /// Keys and states of many groups, a column at a time: each group takes `stride` bytes of `out`. Only where that is what all take.
    fn write_fixed(&self, groups: &[u32], stride: usize, out: &mut [u8]);
}

/// Groups that are written at once: what they take stays in the processor's cache until it is digested.
pub(crate) const CHUNK_GROUPS: usize = 1024;

/// What a removal takes: from, to, the end excluded.
pub(crate) fn removed_range(prefix: &Prefix, through: Option<&[u8]>) -> (Prefix, Vec<u8>) {
    let end = match through {
        None => after_prefix(prefix),
        Some(last) => [&prefix[..], last, &[0]].concat(),
    };
    (*prefix, end)
}

fn hash_of_removal(prefix: &Prefix, through: Option<&[u8]>) -> u64 {
    let named = [&prefix[..], through.unwrap_or(b"\xffwhole window")].concat();
    xxhash_rust::xxh3::xxh3_64_with_seed(&named, REMOVAL_SEED)
}

/// Keys are prefix-free, so key and states need no separator.
#[inline]
pub(crate) fn hash_of_entry(key_and_states: &[u8], window_seed: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key_and_states, window_seed)
}

pub(crate) fn window_seed(prefix: &Prefix) -> u64 {
    xxhash_rust::xxh3::xxh3_64(prefix)
}

/// Of a delta: its bytes behind the header, bound to the layout of its tables.
fn checksum(layout: u64, body: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(body, layout)
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

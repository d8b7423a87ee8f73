//! Writes changes into one buffer, and digests them on the way. Never fails: the errors are those of other sinks.

use super::{
    CHUNK_GROUPS, ChangeSink, DELTA_HEADER_BYTES, DELTA_MAGIC, Entries, KEYS_THROUGH, Prefix, Removal, SECTION, SECTION_HEADER_BYTES,
    VARIABLE, WHOLE_WINDOW, checksum, hash_of_entry, window_seed,
};
use streamshield_core::ids::Digest;
use streamshield_core::ports::state::{Delta, StateError};

pub(crate) struct Encoder {
    bytes: Vec<u8>,
    digest: Digest,
}

impl Encoder {
    pub fn of_flush() -> Self {
        Encoder { bytes: vec![], digest: Digest::default() }
    }

    pub fn of_delta() -> Self {
        Encoder { bytes: vec![0; DELTA_HEADER_BYTES], digest: Digest::default() }
    }

    /// Room for this many bytes more, so that the buffer grows once.
    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve_exact(bytes);
    }

    fn put_fixed(&mut self, stride: usize, groups: &[u32], entries: &impl Entries, seed: u64) {
        for chunk in groups.chunks(CHUNK_GROUPS) {
            let begin = self.bytes.len();
            self.bytes.resize(begin + chunk.len() * stride, 0);
            entries.write_fixed(chunk, stride, &mut self.bytes[begin..]);
            self.bytes[begin..].chunks_exact(stride).for_each(|entry| self.digest.fold(hash_of_entry(entry, seed)));
        }
    }

    fn put_variable(&mut self, group: u32, entries: &impl Entries, seed: u64) {
        let lengths = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 8]);
        let key = self.bytes.len();
        entries.write_key(group, &mut self.bytes);
        let states = self.bytes.len();
        entries.write_states(group, &mut self.bytes);
        let (key_len, states_len) = ((states - key) as u32, (self.bytes.len() - states) as u32);
        self.bytes[lengths..lengths + 4].copy_from_slice(&key_len.to_le_bytes());
        self.bytes[lengths + 4..key].copy_from_slice(&states_len.to_le_bytes());
        self.digest.fold(hash_of_entry(&self.bytes[key..], seed));
    }

    pub fn finish_flush(self) -> (Vec<u8>, Digest) {
        (self.bytes, self.digest)
    }

    /// `layout` names the tables that the delta is for.
    pub fn finish_delta(mut self, layout: u64) -> Delta {
        let (header, body) = self.bytes.split_at_mut(DELTA_HEADER_BYTES);
        header[..8].copy_from_slice(&DELTA_MAGIC);
        header[8..16].copy_from_slice(&layout.to_le_bytes());
        header[16..].copy_from_slice(&checksum(layout, body).to_le_bytes());
        Delta { digest: self.digest, bytes: self.bytes }
    }
}

impl ChangeSink for Encoder {
    fn remove(&mut self, removal: &Removal) -> Result<(), StateError> {
        self.digest.fold(removal.hash());
        if !removal.is_stored {
            return Ok(());
        }
        self.bytes.push(if removal.through.is_some() { KEYS_THROUGH } else { WHOLE_WINDOW });
        self.bytes.extend_from_slice(&removal.prefix);
        if let Some(last) = &removal.through {
            self.bytes.extend_from_slice(&(last.len() as u32).to_le_bytes());
            self.bytes.extend_from_slice(last);
        }
        Ok(())
    }

    fn put_window(
        &mut self,
        prefix: Prefix,
        widths: Option<(usize, usize)>,
        groups: &[u32],
        entries: &impl Entries,
    ) -> Result<(), StateError> {
        let (key_width, states_width) = widths.map_or((VARIABLE, VARIABLE), |(key, states)| (key as u32, states as u32));
        self.bytes.push(SECTION);
        self.bytes.extend_from_slice(&prefix);
        self.bytes.extend_from_slice(&key_width.to_le_bytes());
        self.bytes.extend_from_slice(&states_width.to_le_bytes());
        self.bytes.extend_from_slice(&(groups.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        let begin = self.bytes.len();
        let seed = window_seed(&prefix);
        match widths {
            Some((key, states)) if key + states > 0 => self.put_fixed(key + states, groups, entries, seed),
            Some(_) => groups.iter().for_each(|_| self.digest.fold(hash_of_entry(&[], seed))),
            None => groups.iter().for_each(|&group| self.put_variable(group, entries, seed)),
        }
        let len = (self.bytes.len() - begin) as u64;
        self.bytes[begin - 8..begin].copy_from_slice(&len.to_le_bytes());
        Ok(())
    }
}

/// Bytes that a window with this many entries of fixed width takes.
pub(crate) fn section_bytes(entries: usize, widths: (usize, usize)) -> usize {
    SECTION_HEADER_BYTES + entries * (widths.0 + widths.1)
}

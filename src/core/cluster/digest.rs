//! The fingerprint of all that decides, kept up to date piece by piece.
//!
//! Every heartbeat carries it, so it must not cost a walk over 70,000 regions. It is the wrapping sum of one hash per piece (a member, a region, the
//! clock…): a piece that changes takes its old hash out and puts its new one in.
//!
//! A piece is hashed as the JSON text in which a snapshot holds it, not by `derive(Hash)`: the text is the same on every platform and with every
//! compiler, and a field that a newer release adds and leaves empty does not change it. Two releases in one cluster agree as long as they decide alike.

use crate::ids::{Digest, Incarnation, RegionId};
use serde::Serialize;
use std::collections::BTreeMap;

/// What has a hash of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Piece {
    Clock,
    Membership,
    Genesis,
    Settings,
    Awaited(Incarnation),
    Member(Incarnation),
    Gone(Incarnation),
    Region(RegionId),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PieceDigests {
    pieces: BTreeMap<Piece, u64>,
    sum: Digest,
}

impl PieceDigests {
    pub fn set(&mut self, piece: Piece, value: &impl Serialize) {
        let hash = hash(piece, value);
        let before = self.pieces.insert(piece, hash).unwrap_or(0);
        self.sum.fold(hash.wrapping_sub(before));
    }

    pub fn remove(&mut self, piece: Piece) {
        let before = self.pieces.remove(&piece).unwrap_or(0);
        self.sum.fold(0u64.wrapping_sub(before));
    }

    pub fn sum(&self) -> Digest {
        self.sum
    }
}

fn hash(piece: Piece, value: &impl Serialize) -> u64 {
    let mut hasher = TextHasher::default();
    // The kind of piece is part of its hash; a region is named there, members and the gone name themselves by their keys.
    match piece {
        Piece::Clock => hasher.word(1),
        Piece::Membership => hasher.word(2),
        Piece::Genesis => hasher.word(3),
        Piece::Settings => hasher.word(4),
        Piece::Awaited(incarnation) => hasher.words([5, incarnation.0]),
        Piece::Member(incarnation) => hasher.words([6, incarnation.0]),
        Piece::Gone(incarnation) => hasher.words([7, incarnation.0]),
        Piece::Region(region) => hasher.words([8, u64::from(region.stage.0) << 32 | u64::from(region.partition)]),
    }
    serde_json::to_writer(&mut hasher, value).expect("plain data always serializes, and the hasher takes all");
    hasher.finish()
}

/// A multiply-and-fold hash over 8-byte words (the mixing step of wyhash): fast, fixed for ever, and not meant to withstand an attacker, who could write
/// to the control log anyway.
#[derive(Default)]
struct TextHasher {
    state: u64,
    pending: u64,
    pending_bytes: u32,
    length: u64,
}

impl TextHasher {
    fn word(&mut self, word: u64) {
        self.state = fold(self.state ^ 0x9e37_79b9_7f4a_7c15, word ^ 0xd1b5_4a32_d192_ed03);
    }

    fn words(&mut self, words: [u64; 2]) {
        words.into_iter().for_each(|word| self.word(word));
    }

    fn finish(mut self) -> u64 {
        self.word(self.pending);
        self.word(self.length);
        fold(self.state ^ 0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db)
    }
}

fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    (product as u64) ^ ((product >> 64) as u64) ^ left.rotate_left(23)
}

impl std::io::Write for TextHasher {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for byte in bytes {
            self.pending |= u64::from(*byte) << (8 * self.pending_bytes);
            self.pending_bytes += 1;
            if self.pending_bytes == 8 {
                let word = self.pending;
                self.word(word);
                (self.pending, self.pending_bytes) = (0, 0);
            }
        }
        self.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_order_of_changes_does_not_matter_and_what_was_removed_leaves_no_trace() {
        let mut first = PieceDigests::default();
        first.set(Piece::Clock, &7);
        first.set(Piece::Member(Incarnation(1)), &"a");
        let mut second = PieceDigests::default();
        second.set(Piece::Member(Incarnation(2)), &"gone soon");
        second.set(Piece::Member(Incarnation(1)), &"b");
        second.set(Piece::Clock, &7);
        assert_ne!(first.sum(), second.sum());
        second.set(Piece::Member(Incarnation(1)), &"a");
        second.remove(Piece::Member(Incarnation(2)));
        assert_eq!(first, second);
    }

    #[test]
    fn texts_that_differ_in_one_bit_or_in_length_have_other_hashes() {
        let mut hashes = BTreeSet::new();
        for length in 0..40 {
            hashes.insert(hash(Piece::Clock, &"a".repeat(length)));
            for position in 0..length {
                let text: String = (0..length).map(|at| if at == position { 'c' } else { 'a' }).collect();
                hashes.insert(hash(Piece::Clock, &text));
            }
        }
        assert_eq!(hashes.len(), 40 + (0..40).sum::<usize>());
    }

    /// The digest is compared between binaries: these figures may change only together with the feature level.
    #[test]
    fn the_hash_is_fixed() {
        assert_eq!(hash(Piece::Member(Incarnation(5)), &"text"), 0xfa98d099f2cbd223);
        assert_eq!(hash(Piece::Clock, &"a longer text"), 0xb9408492972c7f89);
    }
}

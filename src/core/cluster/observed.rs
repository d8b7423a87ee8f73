//! What this reader has seen and what decides nothing: reports, how others' digests compare with its own, snapshots that it has verified.
//!
//! Two workers may differ in all of it (one of them joined later), so none of it is in the digest. Bounds (M-1): [`REPORT_BYTES_MAX`] per live member,
//! [`digests_max`] digests, one unfinished snapshot of [`PARTS_MAX`] parts.

use super::Cluster;
use super::effect::Effect;
use super::snapshot;
use crate::ids::{Digest, Incarnation, Offset};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A longer report is not kept.
pub(super) const REPORT_BYTES_MAX: usize = 256 << 10;
/// A snapshot in more parts is not read.
pub(super) const PARTS_MAX: u32 = 1_024;

/// How many offsets back a heartbeat's digest can be compared: about a second of heartbeats of all members, and not less than about a thousand.
fn digests_max(members: usize) -> usize {
    1_024 + 16 * members
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Observed {
    /// Own digests after the latest records.
    digests: VecDeque<(Offset, Digest)>,
    reports: BTreeMap<Incarnation, String>,
    /// Live members by the latest offset at which their digest was ours.
    agreed: BTreeMap<Incarnation, Offset>,
    /// Live members whose latest comparable digest is not ours.
    differing: BTreeSet<Incarnation>,
    collecting: Option<Collecting>,
    verified: Option<Verified>,
    /// Of all records since the last verified snapshot.
    bytes_since_snapshot: u64,
}

/// A snapshot of which not all parts were read yet.
#[derive(Clone, Debug, PartialEq)]
struct Collecting {
    by: Incarnation,
    at: Offset,
    parts: BTreeMap<u32, String>,
    wanted: u32,
}

#[derive(Clone, Debug, PartialEq)]
struct Verified {
    at: Offset,
    bytes: u64,
}

impl Observed {
    pub fn reports(&self) -> impl Iterator<Item = (Incarnation, &str)> {
        self.reports.iter().map(|(incarnation, report)| (*incarnation, report.as_str()))
    }

    pub fn forget(&mut self, incarnation: Incarnation) {
        self.reports.remove(&incarnation);
        self.agreed.remove(&incarnation);
        self.differing.remove(&incarnation);
    }

    pub fn report(&mut self, incarnation: Incarnation, report: String) {
        if report.len() <= REPORT_BYTES_MAX {
            self.reports.insert(incarnation, report);
        }
    }

    /// Keeps the own digest after a record.
    pub fn keep_digest(&mut self, at: Offset, digest: Digest, members: usize) {
        self.digests.push_back((at, digest));
        while self.digests.len() > digests_max(members) {
            self.digests.pop_front();
        }
    }

    pub fn count_bytes(&mut self, bytes: usize) {
        self.bytes_since_snapshot = self.bytes_since_snapshot.saturating_add(bytes as u64);
    }

    fn digest_at(&self, at: Offset) -> Option<Digest> {
        let found = self.digests.binary_search_by_key(&at, |(offset, _)| *offset).ok()?;
        Some(self.digests[found].1)
    }

    /// Compares a member's digest with the own one at that offset.
    pub fn compare(&mut self, incarnation: Incarnation, at: Offset, digest: Digest, effects: &mut Vec<Effect>) {
        let Some(own) = self.digest_at(at) else { return };
        if own == digest {
            self.differing.remove(&incarnation);
            self.agreed.insert(incarnation, at);
        } else {
            self.agreed.remove(&incarnation);
            if self.differing.insert(incarnation) {
                effects.push(Effect::Contradicted { by: incarnation, at });
            }
        }
    }

    /// Takes one part of a snapshot; when it is the last one, compares the whole with what the log says.
    pub fn snapshot_part(&mut self, by: Incarnation, at: Offset, (part, parts): (u32, u32), text: String, effects: &mut Vec<Effect>) {
        if parts == 0 || parts > PARTS_MAX || part >= parts || self.verified.as_ref().is_some_and(|verified| verified.at >= at) {
            return;
        }
        let is_same = |collecting: &Collecting| (collecting.by, collecting.at, collecting.wanted) == (by, at, parts);
        if !self.collecting.as_ref().is_some_and(is_same) {
            self.collecting = Some(Collecting { by, at, parts: BTreeMap::new(), wanted: parts });
        }
        let Some(collecting) = &mut self.collecting else { return };
        collecting.parts.insert(part, text);
        if collecting.parts.len() < parts as usize {
            return;
        }
        let text: String = self.collecting.take().into_iter().flat_map(|collecting| collecting.parts.into_values()).collect();
        // Too long ago to be compared: it is not counted on.
        let Some(own) = self.digest_at(at) else { return };
        match snapshot::decode(&text) {
            Ok(cluster) if cluster.digest() == own && cluster.applied() == Some(at) => {
                let bytes = text.len() as u64;
                self.verified = Some(Verified { at, bytes });
                self.bytes_since_snapshot = 0;
                effects.push(Effect::SnapshotVerified { at, bytes });
            }
            Ok(_) => effects.push(Effect::SnapshotRefused { at, reason: "it is another state".into() }),
            Err(error) => effects.push(Effect::SnapshotRefused { at, reason: error.to_string() }),
        }
    }
}

impl Cluster {
    /// Whether this live member contradicts the majority: its digest differs at the same offset (C-1). A worker that finds itself here exits: what it makes of the
    /// log is not what the others make of it. With a tie nobody contradicts; [`Effect::Contradicted`] tells.
    pub fn contradicts(&self, incarnation: Incarnation) -> bool {
        let (members, differing) = (self.state.members.len(), &self.observed.differing);
        if !self.state.members.contains_key(&incarnation) {
            return false;
        }
        // Most others differ from this reader: the reader is the one that is wrong, and so are those who agree with it.
        let is_reader_wrong = differing.len() * 2 > members;
        match differing.contains(&incarnation) {
            true => differing.len() * 2 < members,
            false => is_reader_wrong,
        }
    }

    /// Whether this worker should write a snapshot now: the log has grown by far more than a snapshot takes. One that writes one waits until it has read all
    /// its parts back before it asks again.
    pub fn wants_snapshot(&self, incarnation: Incarnation) -> bool {
        let last_bytes = self.observed.verified.as_ref().map_or(0, |verified| verified.bytes);
        let threshold_bytes = snapshot::LOG_BYTES_MIN.max(last_bytes.saturating_mul(snapshot::LOG_PER_SNAPSHOT));
        self.is_first(incarnation) && self.observed.bytes_since_snapshot >= threshold_bytes
    }

    /// The first offset to keep: what lies before it is in a snapshot whose text this reader has compared with the log, and the majority of the
    /// live members has said by a later heartbeat that it sees the same.
    pub fn may_trim_to(&self) -> Option<Offset> {
        let at = self.observed.verified.as_ref()?.at;
        let agreeing = self.observed.agreed.values().filter(|agreed| **agreed >= at).count();
        (agreeing * 2 > self.state.members.len()).then_some(at + 1)
    }

    /// As if this state had been read record by record up to here.
    pub(super) fn observe_own_digest(&mut self) {
        if let Some(applied) = self.state.applied {
            self.observed.keep_digest(applied, self.index.digests.sum(), self.state.members.len());
        }
    }
}

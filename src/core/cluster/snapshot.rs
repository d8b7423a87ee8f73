//! How the log stays short, and how a joiner starts in the middle.
//!
//! ```text
//!   low end                 at                                      end
//!   ───┬─────────────────────┬──────┬────────┬────────┬───────────────▶
//!      │ covered by the text │ …    │ part 0 │ part 1 │ heartbeats that agree with the digest at or after `at`
//!      └── trimmed then ─────┘
//! ```
//!
//! The first live member writes the state after the record at `at` as a text, in parts. Every worker reads it back and compares its digest with the one that it
//! had at `at` itself: a snapshot that is wrong is found by all before anything is trimmed. The log is trimmed up to `at` once most members agree. A joiner takes
//! the newest complete snapshot and folds what comes after; should that be wrong, its own heartbeats contradict the majority and it exits (C-1).

use super::Cluster;
use super::observed::PARTS_MAX;
use super::query::Entry;
use super::record::ControlRecord;
use super::state::State;
use crate::ids::{Digest, Incarnation, Offset};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bytes of text per part: quotes in it double, and the record still stays below Kafka's 1 MiB.
const PART_BYTES: usize = 384 << 10;
/// A log shorter than this is read in no time.
pub(super) const LOG_BYTES_MIN: u64 = 1 << 20;
/// The log may grow to so many times the size of a snapshot: what snapshots cost is a fraction of what is written anyway.
pub(super) const LOG_PER_SNAPSHOT: u64 = 8;

#[derive(Deserialize)]
struct Text {
    digest: Digest,
    state: State,
}

#[derive(Serialize)]
struct TextOf<'a> {
    digest: Digest,
    state: &'a State,
}

/// Why a text is not the state that it claims to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("not a snapshot: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("its digest is {found}, it says {stated}")]
    Digest { found: Digest, stated: Digest },
    #[error("it is inconsistent: {0}")]
    Inconsistent(String),
}

/// Why the log does not say what the state is. The worker can't join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error("the control log starts at offset {low} and holds no complete snapshot that reaches there{}", refused_text(.refused))]
    NoSnapshot { low: Offset, refused: Vec<String> },
}

fn refused_text(refused: &[String]) -> String {
    if refused.is_empty() { String::new() } else { format!(" (refused: {})", refused.join("; ")) }
}

pub(super) fn decode(text: &str) -> Result<Cluster, DecodeError> {
    let Text { digest, state } = serde_json::from_str(text)?;
    let mut cluster = Cluster::from_state(state);
    if cluster.digest() != digest {
        return Err(DecodeError::Digest { found: cluster.digest(), stated: digest });
    }
    let problems = super::invariants::problems(&cluster);
    if let Some(problem) = problems.first() {
        return Err(DecodeError::Inconsistent(problem.to_string()));
    }
    cluster.observe_own_digest();
    Ok(cluster)
}

impl Cluster {
    /// The state after the last applied record, to be written by this worker.
    pub fn snapshot(&self, incarnation: Incarnation) -> Vec<ControlRecord> {
        let Some(at) = self.state.applied else { return Vec::new() };
        let text = serde_json::to_string(&TextOf { digest: self.digest(), state: &self.state }).expect("plain data always serializes");
        let parts = cut(&text);
        let count = parts.len() as u32;
        let record =
            |(part, text): (usize, &str)| ControlRecord::Snapshot { incarnation, at, part: part as u32, parts: count, text: text.into() };
        parts.into_iter().enumerate().map(record).collect()
    }

    /// The state that a log says, from its low end on. A log that was trimmed is understood from the newest complete snapshot in it.
    pub fn replay<'a>(low: Offset, entries: impl Iterator<Item = Entry<'a>> + Clone) -> Result<Cluster, ReplayError> {
        let mut cluster = if low > 0 { newest_snapshot(low, entries.clone())? } else { Cluster::default() };
        for entry in entries {
            cluster.apply(entry);
        }
        Ok(cluster)
    }
}

fn newest_snapshot<'a>(low: Offset, entries: impl Iterator<Item = Entry<'a>>) -> Result<Cluster, ReplayError> {
    let mut snapshots: BTreeMap<(Offset, Incarnation, u32), BTreeMap<u32, String>> = BTreeMap::new();
    for entry in entries {
        if let Ok(ControlRecord::Snapshot { incarnation, at, part, parts, text }) = serde_json::from_slice(entry.payload)
            && (low - 1..entry.offset).contains(&at)
            && part < parts
            && parts <= PARTS_MAX
        {
            snapshots.entry((at, incarnation, parts)).or_default().insert(part, text);
        }
    }
    let mut refused = Vec::new();
    for ((at, _, wanted), parts) in snapshots.into_iter().rev() {
        if parts.len() < wanted as usize {
            continue;
        }
        let text: String = parts.into_values().collect();
        match decode(&text) {
            Ok(cluster) if cluster.applied() == Some(at) => return Ok(cluster),
            Ok(_) => refused.push(format!("the one of offset {at} is of another offset")),
            Err(error) => refused.push(format!("the one of offset {at}: {error}")),
        }
    }
    Err(ReplayError::NoSnapshot { low, refused })
}

/// Cuts at character boundaries.
fn cut(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while rest.len() > PART_BYTES {
        let end = (0..=PART_BYTES).rev().find(|at| rest.is_char_boundary(*at)).unwrap_or(rest.len());
        let (part, tail) = rest.split_at(end);
        parts.push(part);
        rest = tail;
    }
    parts.push(rest);
    parts
}

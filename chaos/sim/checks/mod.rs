//! Invariants that the log alone must show, checked as it grows.
//!
//! A check sees every plain message and every transaction, as it ends, in the order of the log, and nothing of the engine: a bug of the
//! engine can't hide itself by reporting that all is well. What a check finds is kept with the time and the id of the invariant;
//! the driver stops the run and prints the seed.
//!
//! | check | invariants |
//! |---|---|
//! | [`EpochCheck`] | E-1 no gap, no repeat; E-2 steps continue; E-5 the watermark never goes back; an epoch's `now` neither |
//! | [`TogetherCheck`] | E-3 rows, epoch record and delta in one transaction |
//! | [`OwnerCheck`] | O-1 epochs only of owners, in the order in which they owned; by a fold of the control log that the driver gives |

mod epochs;
mod owners;
mod together;

#[cfg(test)]
mod checks_test;
#[cfg(test)]
mod test_kit;

pub use epochs::EpochCheck;
pub use owners::{ControlFold, OwnerCheck};
pub use together::TogetherCheck;

use crate::world::{Entry, Transaction};
use std::fmt;
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ports::log::TopicPartition;

/// What is kept; the first one matters.
const VIOLATIONS_KEPT: usize = 100;
/// What the names of changelog topics end with.
const CHANGELOG_SUFFIX: &str = "-changelog";

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub at_ms: i64,
    /// Begins with the id of the invariant.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} ms: {}", self.at_ms, self.what)
    }
}

/// One invariant, or a few that are seen by the same look.
pub trait Check: Send {
    /// Looks at what the log has taken next. An error begins with the id of the invariant.
    fn take(&mut self, entry: &Entry) -> Result<(), String>;
}

/// The checks of a run.
#[derive(Default)]
pub struct Checks {
    checks: Vec<Box<dyn Check>>,
    violations: Vec<Violation>,
}

impl Checks {
    /// The checks that need to know nothing but which topics a job's regions write to.
    pub fn of_job(job: &str) -> Checks {
        let mut checks = Checks::default();
        checks.add(EpochCheck::default());
        checks.add(TogetherCheck::of_job(job));
        checks
    }

    pub fn add(&mut self, check: impl Check + 'static) {
        self.checks.push(Box::new(check));
    }

    pub fn take(&mut self, entry: &Entry, now_ms: i64) {
        let found: Vec<_> = self.checks.iter_mut().filter_map(|check| check.take(entry).err()).collect();
        found.into_iter().for_each(|what| self.add_violation(now_ms, what));
    }

    pub fn add_violation(&mut self, at_ms: i64, what: String) {
        if self.violations.len() < VIOLATIONS_KEPT {
            self.violations.push(Violation { at_ms, what });
        }
    }

    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }
}

pub(crate) fn is_changelog(topic: &str) -> bool {
    topic.ends_with(CHANGELOG_SUFFIX)
}

/// What a transaction holds of one changelog partition, in its order.
pub(crate) struct Recorded {
    pub partition: TopicPartition,
    pub record: EpochRecord,
    /// Messages right before it that are no epoch records, and their bytes.
    pub chunks: u32,
    pub chunk_bytes: u64,
}

/// The epoch records of a transaction, each with the chunks before it; and how many chunks no record follows.
pub(crate) fn recorded(transaction: &Transaction) -> (Vec<Recorded>, usize) {
    let mut found: Vec<Recorded> = Vec::new();
    let mut waiting: std::collections::BTreeMap<&TopicPartition, (u32, u64)> = Default::default();
    for message in transaction.messages.iter().filter(|message| is_changelog(&message.partition.topic)) {
        let payload = message.payload.as_deref().unwrap_or_default();
        match EpochRecord::decode(payload) {
            Ok(record) => {
                let (chunks, chunk_bytes) = waiting.remove(&message.partition).unwrap_or_default();
                found.push(Recorded { partition: message.partition.clone(), record, chunks, chunk_bytes });
            }
            Err(_) => {
                let (chunks, chunk_bytes) = waiting.entry(&message.partition).or_default();
                *chunks += 1;
                *chunk_bytes += payload.len() as u64;
            }
        }
    }
    let orphans = waiting.values().map(|(chunks, _)| *chunks as usize).sum();
    (found, orphans)
}

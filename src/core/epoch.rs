//! The epoch record: what one region did in one epoch, written in the same transaction as its output.
//!
//! Replaying the steps of the records on the state of any earlier epoch gives the same state bit for bit (E-4), since
//! the order of the inputs, the batch cuts and the clock (`now`) are all here. It is written as one JSON object, so that
//! any Kafka tool shows what a job did; there are about ten of them per region and second.
//!
//! ```
//! use streamshield_core::{epoch::*, ids::*, watermark::*};
//! let record = EpochRecord {
//!     version: EpochRecord::VERSION, region: RegionId { stage: StageId(1), partition: 0 }, epoch: Epoch(2),
//!     incarnation: Incarnation(7), transactional_id: "job-7-0".into(), plan: PlanFingerprint(42), now_ms: 1_000,
//!     steps: vec![Step::Read { input: 0, from: 0, to: 10 }], positions: vec![10],
//!     upstreams: vec![UpstreamWatermark::START], watermark: Watermark::MIN, digest: None, delta: None, finished: false,
//! };
//! assert_eq!(EpochRecord::decode(&record.encode()).unwrap(), record);
//! ```

use crate::ids::{Digest, Epoch, Incarnation, Offset, PlanFingerprint, RegionId};
use crate::watermark::{UpstreamWatermark, Watermark};
use serde::{Deserialize, Serialize};

/// One thing that a region did, in the order in which it did them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Took the records `[from, to)` of an input partition as one batch. Of a source there may be none: it passed what no reader of committed records sees.
    Read { input: u16, from: Offset, to: Offset },
    /// Judged the inputs' idleness by the epoch's `now` (and moved processing time on).
    Tick,
    /// Went on emitting closed windows: one bounded portion.
    Emit,
}

/// The delta that precedes an epoch record in the changelog (Tier 2), cut into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaHead {
    /// Messages right before the record in its partition, in order.
    pub chunks: u32,
    pub bytes: u64,
    /// Of the delta's content.
    pub digest: Digest,
}

/// Proof of one committed epoch of one region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRecord {
    pub version: u16,
    pub region: RegionId,
    pub epoch: Epoch,
    /// The process that wrote it.
    pub incarnation: Incarnation,
    /// The producer that wrote it: whom a successor has to fence.
    pub transactional_id: String,
    pub plan: PlanFingerprint,
    /// The epoch's clock in milliseconds since 1970: what `CURRENT_TIMESTAMP` and `PROCTIME()` read.
    pub now_ms: i64,
    pub steps: Vec<Step>,
    /// Per input, the position after this epoch.
    pub positions: Vec<Offset>,
    /// Per upstream (source split, or upstream region of an exchange), what it said last.
    pub upstreams: Vec<UpstreamWatermark>,
    /// The region's own watermark after this epoch.
    pub watermark: Watermark,
    /// Digest of the groups written since the last digest; in flush epochs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// What the epoch changed is in the log, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<DeltaHead>,
    /// All inputs were bounded and have ended, and everything has been emitted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub finished: bool,
}

/// Why bytes are not an epoch record of ours.
#[derive(Debug, thiserror::Error)]
pub enum EpochRecordError {
    #[error("not an epoch record: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("epoch record version {found}, this binary reads up to {}", EpochRecord::VERSION)]
    Version { found: u16 },
}

impl EpochRecord {
    pub const VERSION: u16 = 1;

    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data always serializes")
    }

    pub fn decode(bytes: &[u8]) -> Result<EpochRecord, EpochRecordError> {
        let record: EpochRecord = serde_json::from_slice(bytes)?;
        if record.version > Self::VERSION {
            return Err(EpochRecordError::Version { found: record.version });
        }
        Ok(record)
    }

    /// E-1 and E-2: whether `next` may follow `self`; the message names the invariant that it would break.
    pub fn check_successor(&self, next: &EpochRecord) -> Result<(), String> {
        if next.region != self.region || next.epoch != self.epoch.next() {
            return Err(format!("E-1: {} epoch {} follows {} epoch {}", next.region, next.epoch, self.region, self.epoch));
        }
        let mut positions = self.positions.clone();
        for step in &next.steps {
            let Step::Read { input, from, to } = step else { continue };
            let Some(position) = positions.get_mut(usize::from(*input)) else {
                return Err(format!("E-2: {} epoch {} reads input {input}, which it does not have", self.region, next.epoch));
            };
            if from != position || to < from {
                return Err(format!(
                    "E-2: {} epoch {} reads input {input} [{from}, {to}) after position {position}",
                    self.region, next.epoch
                ));
            }
            *position = *to;
        }
        if positions != next.positions {
            return Err(format!(
                "E-2: {} epoch {} states positions {:?}, its steps end at {positions:?}",
                self.region, next.epoch, next.positions
            ));
        }
        if next.watermark < self.watermark {
            return Err(format!(
                "E-5: {} epoch {} takes the watermark back from {} to {}",
                self.region, next.epoch, self.watermark, next.watermark
            ));
        }
        Ok(())
    }

    /// For those who check a whole log: what must hold of a region's first record.
    pub fn check_first(&self) -> Result<(), String> {
        if self.epoch != Epoch::GENESIS {
            return Err(format!("E-1: {} begins with epoch {}", self.region, self.epoch));
        }
        if !self.steps.is_empty() {
            return Err(format!("E-2: {} takes steps in its first epoch, which only states where it starts", self.region));
        }
        Ok(())
    }

    /// For those who check a whole log: [`check_successor`](Self::check_successor), and that the clock goes on and nothing follows the end.
    pub fn check_next(&self, next: &EpochRecord) -> Result<(), String> {
        self.check_successor(next)?;
        if next.now_ms < self.now_ms {
            return Err(format!("E-4: {} epoch {} takes the clock back from {} to {}", next.region, next.epoch, self.now_ms, next.now_ms));
        }
        if self.finished && !next.steps.is_empty() {
            return Err(format!("E-2: {} epoch {} takes steps after the region had finished", next.region, next.epoch));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::StageId;

    fn record(epoch: u64, steps: Vec<Step>, position: Offset) -> EpochRecord {
        EpochRecord {
            version: 1,
            region: RegionId { stage: StageId(1), partition: 0 },
            epoch: Epoch(epoch),
            incarnation: Incarnation(1),
            transactional_id: "t".into(),
            plan: PlanFingerprint(1),
            now_ms: 0,
            steps,
            positions: vec![position],
            upstreams: vec![],
            watermark: Watermark::MIN,
            digest: None,
            delta: None,
            finished: false,
        }
    }

    #[test]
    fn a_gap_in_epochs_or_positions_is_named_by_its_invariant() {
        let first = record(1, vec![], 5);
        let read = |from, to| vec![Step::Read { input: 0, from, to }];
        assert!(first.check_successor(&record(2, read(5, 9), 9)).is_ok());
        assert!(first.check_successor(&record(3, read(5, 9), 9)).unwrap_err().starts_with("E-1"));
        assert!(first.check_successor(&record(2, read(6, 9), 9)).unwrap_err().starts_with("E-2"));
        assert!(first.check_successor(&record(2, read(5, 9), 10)).unwrap_err().starts_with("E-2"));
    }

    #[test]
    fn a_record_of_a_later_version_is_refused() {
        let mut later = record(1, vec![], 0);
        later.version = 99;
        assert!(matches!(EpochRecord::decode(&later.encode()), Err(EpochRecordError::Version { found: 99 })));
    }
}

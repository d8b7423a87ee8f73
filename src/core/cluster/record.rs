//! The records of the control log.
//!
//! One JSON object each, so that any Kafka tool shows what happened to a job. Only `apply` says what a record means and whether it is valid.

use crate::ids::{Digest, Epoch, Incarnation, Offset, PlanFingerprint, RegionId};
use crate::ports::checkpoint::Durability;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// One engine thread of one worker: the holder of one transactional producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotId {
    pub incarnation: Incarnation,
    pub slot: u32,
}

impl SlotId {
    pub fn transactional_id(&self, job: &str) -> String {
        format!("{job}-{}-{}", self.incarnation.0, self.slot)
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.incarnation.0, self.slot)
    }
}

/// How a lost region comes back (architecture §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Replicas run every committed epoch's steps, muted.
    ActiveActive,
    /// Standbys apply the deltas in the changelog.
    ActiveStandby,
    /// Region checkpoints and the steps since.
    Checkpoints,
}

/// What all workers of a job have to agree on. Taken from the `joined` record of a worker that finds nobody else alive; a worker that joins others with
/// different settings is bound by theirs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub tier: Tier,
    /// Replicas or standbys per region: 0 in Tier 3.
    pub followers: u32,
    pub heartbeat_interval_ms: u64,
    /// A worker that was not heard for this much of log clock is expired.
    pub expiry_ms: u64,
    /// An owner that was asked to release a region and does not within this much of log clock is expired.
    pub release_timeout_ms: u64,
    /// While nobody else was alive, regions are given away when so many workers have joined. 1: to the first one at once; 0: nobody knows how many.
    #[serde(default)]
    pub workers_expected: u32,
    /// Or after this much of log clock, whoever is there then. 0: at once.
    #[serde(default)]
    pub start_wait_ms: u64,
    /// After a loss or a failure, loads are evened out after this much of log clock: taking over comes first, and who was lost may be back by then.
    #[serde(default)]
    pub balance_delay_ms: u64,
    /// A move whose target is not ready within this much of log clock is called off; so is a follower that was to take another's place. 0: never.
    #[serde(default)]
    pub warm_up_timeout_ms: u64,
}

/// What is fixed for the life of a job; the first such record in the log wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// What the job computes. None: the record is older than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanFingerprint>,
    /// Per source stage (its number), the splits with their bounds as they were found.
    pub splits: BTreeMap<u32, Vec<GenesisSplit>>,
    /// Per exchange (its number), the partitions.
    pub exchange_partitions: BTreeMap<u32, u32>,
    /// Per stage (its number), its regions.
    pub stages: BTreeMap<u32, StageShape>,
}

/// One split of a source at the job's first start; region `p` of the stage reads the split at index `p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenesisSplit {
    pub id: u32,
    pub start: Offset,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Offset>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageShape {
    pub regions: u32,
    /// Has groups that a checkpoint, replica or standby has to hold.
    pub stateful: bool,
    pub is_source: bool,
}

/// A worker has started and may write with the producers of its slots from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    pub incarnation: Incarnation,
    /// Tells two workers apart that chose the same incarnation: the first one has it.
    pub nonce: u64,
    /// Stable across restarts (a pod's name). A new incarnation of a worker replaces the earlier one at once.
    pub worker: String,
    pub slots: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// The highest feature level that this binary knows.
    pub level: u32,
    pub plan: PlanFingerprint,
    pub settings: Settings,
    /// Where its HTTP endpoints listen, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Where the worker's last process was at work when it ended without a word: each of its threads names one region at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub died_in: Vec<DiedIn>,
}

/// A process died while it worked on this region, and how far that had got: two deaths at the same place are two tries of the same work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiedIn {
    pub region: RegionId,
    /// The first one that was not committed; of a region that was being taken over, the one that was applied.
    pub epoch: Epoch,
    /// Of a source, up to where its input was read and committed. It tells more than the epoch: while time passes, epochs are committed that hold no row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Offset>,
}

impl DiedIn {
    /// Nothing was got done between the two.
    pub fn is_same_place(&self, other: &DiedIn) -> bool {
        let is_same = match (self.position, other.position) {
            (Some(position), Some(other)) => position == other,
            _ => self.epoch == other.epoch,
        };
        self.region == other.region && is_same
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlRecord {
    Genesis(Genesis),
    Joined(Joined),
    /// Alive, and what it makes of the log up to `at`.
    Heartbeat {
        incarnation: Incarnation,
        at: Offset,
        digest: Digest,
    },
    /// Gone on purpose. `clean`: it knows the outcome of all that it sealed and has dropped its regions, as if it had released them; else its slots
    /// must be fenced.
    Left {
        incarnation: Incarnation,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        clean: bool,
    },
    /// By an operator, or by the worker itself before it leaves: its regions move away, it stays and follows. `undo` takes it back.
    Drain {
        worker: String,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        undo: bool,
        /// Some: this start of the worker is meant, and no later one of its name. None: whichever there is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        incarnation: Option<Incarnation>,
    },
    /// A follower, or the target of a move, has caught up with the changelog.
    Ready {
        incarnation: Incarnation,
        region: RegionId,
        epoch: Epoch,
    },
    /// Not ready any more: its state differs from the owner's at this epoch (E-4), or can't be used for another reason (epoch 0). It is rebuilt.
    NotReady {
        incarnation: Incarnation,
        region: RegionId,
        epoch: Epoch,
    },
    /// The owner has stopped at this epoch, knows the outcome of all it sealed, and has dropped the region.
    Released {
        incarnation: Incarnation,
        region: RegionId,
        assignment: Offset,
        epoch: Epoch,
    },
    /// As `released`, because the region failed there. `retry` is false where another try would fail in the same way (a bad record, and the job says: stop).
    Failed {
        incarnation: Incarnation,
        region: RegionId,
        assignment: Offset,
        epoch: Epoch,
        reason: String,
        retry: bool,
    },
    /// The region's inputs have ended and everything is committed.
    Finished {
        incarnation: Incarnation,
        region: RegionId,
        assignment: Offset,
        epoch: Epoch,
    },
    /// These regions of the sender have a committed epoch: their changelogs are not empty; with `reads`, nor are their exchange partitions. Whoever finds
    /// one empty later knows that the topic was deleted and made anew.
    Begun {
        incarnation: Incarnation,
        regions: Vec<RegionId>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        reads: bool,
    },
    /// The slot's producer is fenced: nothing of it commits any more.
    Fenced {
        incarnation: Incarnation,
        slot: SlotId,
    },
    /// Written and read back after each InitProducerId: does the writer still own what it wants to write for?
    Confirm {
        incarnation: Incarnation,
        slot: u32,
    },
    CheckpointDone {
        incarnation: Incarnation,
        region: RegionId,
        epoch: Epoch,
        durability: Durability,
    },
    /// Figures for people, a JSON text. Decides nothing, is in no digest.
    Report {
        incarnation: Incarnation,
        report: String,
    },
    /// Valid once every live member has announced the level.
    RaiseLevel {
        level: u32,
    },
    /// The state after the record at `at`, in parts of a text. Decides nothing by itself.
    Snapshot {
        incarnation: Incarnation,
        at: Offset,
        part: u32,
        parts: u32,
        text: String,
    },
}

impl ControlRecord {
    /// Who has written it; None where it does not matter.
    pub fn sender(&self) -> Option<Incarnation> {
        match self {
            ControlRecord::Joined(Joined { incarnation, .. })
            | ControlRecord::Heartbeat { incarnation, .. }
            | ControlRecord::Left { incarnation, .. }
            | ControlRecord::NotReady { incarnation, .. }
            | ControlRecord::Ready { incarnation, .. }
            | ControlRecord::Released { incarnation, .. }
            | ControlRecord::Failed { incarnation, .. }
            | ControlRecord::Finished { incarnation, .. }
            | ControlRecord::Begun { incarnation, .. }
            | ControlRecord::Fenced { incarnation, .. }
            | ControlRecord::Confirm { incarnation, .. }
            | ControlRecord::CheckpointDone { incarnation, .. }
            | ControlRecord::Report { incarnation, .. }
            | ControlRecord::Snapshot { incarnation, .. } => Some(*incarnation),
            ControlRecord::Genesis(_) | ControlRecord::Drain { .. } | ControlRecord::RaiseLevel { .. } => None,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data always serializes")
    }
}

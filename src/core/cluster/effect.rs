//! What a record has changed, for logs and metrics. Nobody acts on it: workers read the state.

use super::record::SlotId;
use crate::ids::{Incarnation, Offset, RegionId};
use std::fmt;

/// Why a member was expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiryCause {
    /// No record of it for so long, by the log clock.
    Silent { silent_ms: u64 },
    /// It was asked to release this region and did not.
    KeptRegion(RegionId),
}

/// What a record has changed. For logs and metrics only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    GenesisFixed {
        regions: usize,
    },
    Joined {
        incarnation: Incarnation,
        worker: String,
    },
    JoinRefused {
        incarnation: Incarnation,
        reason: String,
    },
    Left {
        incarnation: Incarnation,
    },
    Expired {
        incarnation: Incarnation,
        cause: ExpiryCause,
    },
    Replaced {
        incarnation: Incarnation,
        by: Incarnation,
    },
    DrainStarted {
        incarnation: Incarnation,
    },
    DrainUndone {
        incarnation: Incarnation,
    },
    /// Regions got their first owner.
    Placed {
        regions: usize,
    },
    /// Without the previous owner's consent, or after a failure.
    TakenOver {
        region: RegionId,
        from: SlotId,
        to: SlotId,
    },
    MoveStarted {
        region: RegionId,
        from: SlotId,
        to: SlotId,
    },
    MoveCalledOff {
        region: RegionId,
        to: SlotId,
    },
    Moved {
        region: RegionId,
        from: SlotId,
        to: SlotId,
    },
    Fenced {
        slot: SlotId,
        by: Incarnation,
    },
    Failed {
        region: RegionId,
        failures: u32,
        reason: String,
    },
    Quarantined {
        region: RegionId,
        reason: String,
    },
    QuarantineLifted {
        region: RegionId,
    },
    Finished {
        region: RegionId,
    },
    LevelRaised {
        level: u32,
    },
    /// The log was silent for longer than the time-out: nobody is expired until all were heard.
    ExpirySuspended {
        gap_ms: u64,
    },
    ExpiryResumed,
    /// A heartbeat's digest is not ours at that offset (C-1).
    Contradicted {
        by: Incarnation,
        at: Offset,
    },
    SnapshotVerified {
        at: Offset,
        bytes: u64,
    },
    /// Its text is not the state that the log says.
    SnapshotRefused {
        at: Offset,
        reason: String,
    },
    /// Not a record of ours.
    Malformed {
        offset: Offset,
    },
    /// A record that is not valid any more, or from somebody who may not say so.
    Ignored {
        offset: Offset,
    },
}

impl fmt::Display for ExpiryCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExpiryCause::Silent { silent_ms } => write!(f, "silent for {silent_ms} ms"),
            ExpiryCause::KeptRegion(region) => write!(f, "it was asked to release region {region} and keeps it"),
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effect::GenesisFixed { regions } => write!(f, "genesis: {regions} regions"),
            Effect::Joined { incarnation, worker } => write!(f, "worker {worker} joined as {}", incarnation.0),
            Effect::JoinRefused { incarnation, reason } => write!(f, "{} may not join: {reason}", incarnation.0),
            Effect::Left { incarnation } => write!(f, "{} left", incarnation.0),
            Effect::Expired { incarnation, cause } => write!(f, "{} expired: {cause}", incarnation.0),
            Effect::Replaced { incarnation, by } => write!(f, "{} replaced by {}", incarnation.0, by.0),
            Effect::DrainStarted { incarnation } => write!(f, "{} drains", incarnation.0),
            Effect::DrainUndone { incarnation } => write!(f, "{} no longer drains", incarnation.0),
            Effect::Placed { regions } => write!(f, "{regions} regions have their first owner"),
            Effect::TakenOver { region, from, to } => write!(f, "region {region}: {to} takes over from {from}"),
            Effect::MoveStarted { region, from, to } => write!(f, "region {region}: is to move from {from} to {to}"),
            Effect::MoveCalledOff { region, to } => write!(f, "region {region}: does not move to {to}"),
            Effect::Moved { region, from, to } => write!(f, "region {region}: moved from {from} to {to}"),
            Effect::Fenced { slot, by } => write!(f, "{slot} fenced by {}", by.0),
            Effect::Failed { region, failures, reason } => write!(f, "region {region}: failed {failures} times: {reason}"),
            Effect::Quarantined { region, reason } => write!(f, "region {region}: quarantined: {reason}"),
            Effect::QuarantineLifted { region } => write!(f, "region {region}: quarantine lifted"),
            Effect::Finished { region } => write!(f, "region {region}: finished"),
            Effect::LevelRaised { level } => write!(f, "feature level {level}"),
            Effect::ExpirySuspended { gap_ms } => write!(f, "the log was silent for {gap_ms} ms: nobody is expired until all were heard"),
            Effect::ExpiryResumed => write!(f, "expiry goes on"),
            Effect::Contradicted { by, at } => write!(f, "{} has another digest at offset {at}", by.0),
            Effect::SnapshotVerified { at, .. } => write!(f, "the snapshot of offset {at} is right"),
            Effect::SnapshotRefused { at, reason } => write!(f, "the snapshot of offset {at} is refused: {reason}"),
            Effect::Malformed { offset } => write!(f, "the record at offset {offset} is none of ours"),
            Effect::Ignored { offset } => write!(f, "the record at offset {offset} is not valid"),
        }
    }
}

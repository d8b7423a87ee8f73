//! `broker.delete_records`: records go before a follower has read them.
//!
//! What may go: architecture §3 has the job's own topics trimmed only behind the oldest checkpoint in the store, and a follower beyond it rebuilds (K-2). An
//! administrator who deletes more takes away what a restore needs, and the job has to stop; that is no fault to survive. So this one deletes what the *newest*
//! checkpoint in the store makes dispensable, once it is one of an epoch behind the follower's sleep: the follower finds its place gone and has to rebuild from
//! that checkpoint, while older checkpoints can't be replayed from any more.
//!
//! ```text
//!                  the follower falls asleep
//! changelog   … E-4   E-3  │ E-2   E-1  │ E   E+1 …       E: epoch of the newest remote checkpoint; its record stays
//! exchange    ─────────────┼────────────│ position after E …
//!               deleted ◄──┼─ unread ◄──┘
//! ```
//! Only regions with state are chosen: the others' followers replay nothing, since their last record says all.

use super::process::pause;
use super::target::Setup;
use super::{Evidence, nothing};
use crate::api::{Fault, FaultError, Fired};
use crate::stage::{Stage, StoreKind, admin};
use anyhow::Context;
use std::time::{Duration, Instant};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::Epoch;
use streamshield_core::ports::checkpoint::Durability;
use streamshield_core::status::RegionView;

const LOOK_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) struct DeleteRecords(pub Setup);

/// What was deleted.
struct Deleted {
    trims: Vec<admin::Trim>,
    /// Records of the changelog that the follower had not read.
    unread: u64,
    epoch: Epoch,
}

/// The epoch of a region's newest checkpoint, if that is in the store.
fn stored_epoch(region: &RegionView) -> Option<Epoch> {
    region.checkpoint.filter(|checkpoint| checkpoint.durability == Durability::Remote).map(|checkpoint| checkpoint.epoch)
}

/// A region with state, whose follower has something to replay.
fn is_meant(region: &RegionView) -> bool {
    region.stateful && stored_epoch(region).is_some() && !region.followers.is_empty() && region.owner.is_some()
}

/// Topic and partition.
fn changelog_of(stage: &Stage, region: &RegionView) -> Result<(String, i32), FaultError> {
    let number: Option<i32> = region.region.split_once('/').and_then(|(_, number)| number.parse().ok());
    Ok((format!("{}-{}-changelog", stage.job_name()?, region.stage), number.context("a region names its partition")?))
}

impl DeleteRecords {
    fn region(&mut self, stage: &Stage) -> Result<RegionView, FaultError> {
        if stage.store().kind() == StoreKind::None {
            return Err(FaultError::NotPossibleHere(
                "without a store nothing of the job's topics is dispensable: it takes a topology with a store".into(),
            ));
        }
        let deadline = Instant::now() + self.0.given.duration("within");
        loop {
            let status = stage.cluster_status()?;
            match self.0.region(&status, is_meant) {
                Err(FaultError::NoTarget(_)) if Instant::now() < deadline => std::thread::sleep(LOOK_INTERVAL),
                found => return found,
            }
        }
    }

    /// What is dispensable of the region's changelog, which comes first, and of its input.
    fn trims(&self, stage: &Stage, region: &RegionView, epoch: Epoch) -> Result<Vec<admin::Trim>, FaultError> {
        let (job, servers) = (stage.job_name()?, stage.bootstrap_servers());
        let topics = admin::topics(&servers)?;
        let (changelog, partition) = changelog_of(stage, region)?;
        let mut found: Option<(i64, EpochRecord)> = None;
        admin::read_partition(&servers, &changelog, partition, &mut |offset, payload| {
            if let Ok(record) = EpochRecord::decode(payload)
                && record.epoch == epoch
            {
                found = Some((offset, record));
            }
        })?;
        let (offset, record) =
            found.ok_or_else(|| FaultError::NoTarget(format!("{changelog}-{partition} has no epoch {epoch} any more")))?;
        // A delta's messages lie before its record, and stay with it.
        let chunks = record.delta.map_or(0, |delta| i64::from(delta.chunks));
        let mut trims = vec![admin::Trim { topic: changelog, partition, before: offset - chunks }];
        // A region with state reads an exchange. Where there are several, only the changelog is trimmed.
        let exchanges: Vec<_> =
            topics.iter().filter(|(name, _)| name.starts_with(&format!("{job}-")) && name.ends_with("-repartition")).collect();
        if let ([(exchange, partitions)], [position]) = (exchanges.as_slice(), record.positions.as_slice())
            && partition < *partitions
        {
            trims.push(admin::Trim { topic: exchange.clone(), partition, before: *position });
        }
        Ok(trims)
    }
}

impl Fault<Stage> for DeleteRecords {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let region = self.region(stage)?;
        let follower = region.followers.first().map(|follower| follower.worker.clone()).unwrap_or_default();
        let process = stage.workers()?.process(&follower)?;
        let deleted = pause(&process).and_then(|_| self.delete(stage, &region));
        // Whatever has happened, the follower wakes up.
        process.signal(libc::SIGCONT);
        let Deleted { trims, unread, epoch } = deleted?;
        let mut evidence = Evidence::default();
        let places: Vec<String> = trims.iter().map(|trim| format!("{}-{} before {}", trim.topic, trim.partition, trim.before)).collect();
        let places = places.join(", ");
        let told = format!("deleted up to the checkpoint of epoch {epoch}, {unread} records of it since {follower} slept: {places}");
        evidence.add(region.region, told, unread);
        Ok(evidence.fired())
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        nothing()
    }
}

impl DeleteRecords {
    /// Called when the follower has just fallen asleep: waits for a checkpoint of an epoch that it has not read, and deletes up to that.
    fn delete(&self, stage: &Stage, region: &RegionView) -> Result<Deleted, FaultError> {
        let servers = stage.bootstrap_servers();
        let (changelog, partition) = changelog_of(stage, region)?;
        let end = admin::bounds(&servers, &changelog, partition)?.end;
        std::thread::sleep(self.0.given.duration("pause"));
        let deadline = Instant::now() + self.0.given.duration("within");
        let mut looked_at = stored_epoch(region);
        loop {
            // While nobody answers there may be one all the same.
            let status = stage.cluster_status().ok();
            let view = status.as_ref().and_then(|status| status.regions.iter().find(|view| view.region == region.region));
            if let Some(epoch) = view.and_then(stored_epoch).filter(|epoch| Some(*epoch) != looked_at) {
                looked_at = Some(epoch);
                match self.trims(stage, region, epoch) {
                    // It was asked for before.
                    Ok(trims) if trims[0].before <= end => {}
                    Ok(trims) => {
                        let low = admin::bounds(&servers, &changelog, partition)?.start;
                        let unread = u64::try_from(trims[0].before - end.max(low)).unwrap_or(0);
                        admin::delete_records(&servers, &trims)?;
                        return Ok(Deleted { trims, unread, epoch });
                    }
                    // There is a newer one by now.
                    Err(FaultError::NoTarget(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            if Instant::now() >= deadline {
                return Err(FaultError::NoTarget(format!("no later checkpoint of {} came while its follower slept", region.region)));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use streamshield_core::status::{CheckpointView, FollowerRole, FollowerView, RegionState};

    #[test]
    fn only_a_region_whose_follower_has_something_to_replay_is_meant() {
        let follower = FollowerView {
            worker: "w2".into(),
            role: FollowerRole::Replica,
            epoch: Some(7),
            epochs_behind: Some(0),
            ready: true,
            diverged: None,
        };
        let region = RegionView {
            region: "s2/0".into(),
            stage: "windows-3".into(),
            stateful: true,
            owner: Some("w1".into()),
            state: RegionState::Active,
            epoch: Some(7),
            lag_records: None,
            lag_ms: None,
            watermark_ms: None,
            state_bytes: 0,
            followers: vec![follower],
            checkpoint: Some(CheckpointView { epoch: Epoch(5), durability: Durability::Remote, age_ms: None }),
            stopped: None,
            failures: 0,
        };
        assert!(is_meant(&region));
        assert!(!is_meant(&RegionView { stateful: false, ..region.clone() }), "its last record says all");
        assert!(!is_meant(&RegionView { followers: Vec::new(), ..region.clone() }));
        let local = CheckpointView { epoch: Epoch(5), durability: Durability::Local, age_ms: None };
        assert!(!is_meant(&RegionView { checkpoint: Some(local), ..region }), "nothing in the store makes anything dispensable");
    }
}

//! `broker.delete_records`: records go before a follower has read them.
//!
//! What may go: architecture §3 has the job's own topics trimmed only behind the oldest checkpoint in the store, and a follower beyond it rebuilds (K-2). An
//! administrator who deletes more takes away what a restore needs, and the job has to stop; that is no fault to survive. So this one deletes what the *newest*
//! checkpoint in the store makes dispensable: a follower that was asleep meanwhile finds its place gone and has to rebuild from that checkpoint, while
//! older checkpoints can't be replayed from any more.
//!
//! ```text
//! changelog   … E-2   E-1  │ E   E+1 …       E: epoch of the newest remote checkpoint; its record stays
//! exchange    ─────────────│ position after E …
//!               deleted ◄──┘
//! ```

use super::process::pause;
use super::target::Setup;
use super::{Evidence, nothing};
use crate::api::{Fault, FaultError, Fired};
use crate::stage::{Stage, admin};
use anyhow::Context;
use std::time::{Duration, Instant};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::Epoch;
use streamshield_core::ports::checkpoint::Durability;
use streamshield_core::status::RegionView;

const LOOK_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) struct DeleteRecords(pub Setup);

impl DeleteRecords {
    /// A region with a follower and a checkpoint in the store.
    fn region(&mut self, stage: &Stage) -> Result<RegionView, FaultError> {
        if stage.store().objects().is_err() {
            return Err(FaultError::NotPossibleHere(
                "without a store nothing of the job's topics is dispensable: it takes a topology with a store".into(),
            ));
        }
        let deadline = Instant::now() + self.0.given.duration("within");
        loop {
            let status = stage.cluster_status()?;
            let fits = |region: &RegionView| {
                let remote = region.checkpoint.is_some_and(|checkpoint| checkpoint.durability == Durability::Remote);
                remote && !region.followers.is_empty() && region.owner.is_some()
            };
            match self.0.region(&status, fits) {
                Err(FaultError::NoTarget(_)) if Instant::now() < deadline => std::thread::sleep(LOOK_INTERVAL),
                found => return found,
            }
        }
    }

    /// What is dispensable of the region's changelog and of its input, if that is an exchange.
    fn trims(&self, stage: &Stage, region: &RegionView, epoch: Epoch) -> Result<Vec<admin::Trim>, FaultError> {
        let (job, servers) = (stage.job_name()?, stage.bootstrap_servers());
        let topics = admin::topics(&servers)?;
        let partition: i32 =
            region.region.split_once('/').and_then(|(_, number)| number.parse().ok()).context("a region names its partition")?;
        let changelog = format!("{job}-{}-changelog", region.stage);
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
        // The only stage that reads an exchange is fed by the only exchange in a job of two stages; elsewhere only the changelog is trimmed.
        let exchanges: Vec<_> =
            topics.iter().filter(|(name, _)| name.starts_with(&format!("{job}-")) && name.ends_with("-repartition")).collect();
        if let ([(exchange, partitions)], [position], true) =
            (exchanges.as_slice(), record.positions.as_slice(), region.region.starts_with("s1/"))
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
        pause(&process)?;
        // Whatever happens from here on, the follower wakes up.
        let deleted = self.delete(stage, &region.region);
        process.signal(libc::SIGCONT);
        let (trims, deleted, epoch) = deleted?;
        let mut evidence = Evidence::default();
        let places: Vec<String> = trims.iter().map(|trim| format!("{}-{} before {}", trim.topic, trim.partition, trim.before)).collect();
        let told = format!("{deleted} records deleted up to the checkpoint of epoch {epoch} while {follower} slept: {}", places.join(", "));
        evidence.add(region.region, told, deleted);
        Ok(evidence.fired())
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        nothing()
    }
}

impl DeleteRecords {
    /// Waits as long as the follower sleeps, then deletes up to the newest checkpoint of that moment.
    fn delete(&self, stage: &Stage, region: &str) -> Result<(Vec<admin::Trim>, u64, Epoch), FaultError> {
        std::thread::sleep(self.0.given.duration("pause"));
        let status = stage.cluster_status()?;
        let view = status.regions.iter().find(|view| view.region == region).context("a region stays")?;
        let checkpoint = view.checkpoint.filter(|checkpoint| checkpoint.durability == Durability::Remote);
        let epoch = checkpoint.ok_or_else(|| FaultError::NoTarget(format!("{region} has no checkpoint in the store")))?.epoch;
        let trims = self.trims(stage, view, epoch)?;
        let deleted = admin::delete_records(&stage.bootstrap_servers(), &trims)?;
        Ok((trims, deleted, epoch))
    }
}

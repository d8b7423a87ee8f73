//! The control log: folded as every worker folds it, to see who owned what, and whether all workers came to the same view.
//!
//! A long run trims its control log. Then the fold begins at the first complete snapshot that is still there: what was before is not judged.

use super::control_topic;
use crate::client::{Isolation, visit};
use crate::error::WorkloadError;
use crate::findings::{Anomaly, AnomalyKind, Findings, Invariant};
use rdkafka::Message;
use rdkafka::message::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use streamshield_core::cluster::{Cluster, ControlRecord, Effect, Entry, OwnerHistory, SlotId};
use streamshield_core::ids::{Epoch, Offset, RegionId};
use streamshield_core::ports::checkpoint::Durability;

/// A record of the control log, as it lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRecord {
    pub offset: Offset,
    pub append_time_ms: Option<i64>,
    pub payload: Vec<u8>,
}

impl LoggedRecord {
    fn entry(&self) -> Entry<'_> {
        Entry { offset: self.offset, append_time_ms: self.append_time_ms, payload: &self.payload }
    }
}

/// What the control log says.
#[derive(Clone, Debug, Default)]
pub struct ControlFound {
    pub findings: Findings,
    pub history: OwnerHistory,
    pub source_stages: BTreeSet<u32>,
    pub stages: usize,
    pub exchanges: usize,
    /// Regions that a restore has to give their state back.
    pub stateful: BTreeSet<RegionId>,
    /// The newest checkpoint of each region.
    pub checkpoints: BTreeMap<RegionId, (Epoch, Durability)>,
    /// Changes of owner.
    pub changes: u64,
}

/// Reads and folds it.
pub fn read(servers: &str, job: &str) -> Result<ControlFound, WorkloadError> {
    let topic = control_topic(job);
    let mut records = Vec::new();
    visit(servers, &topic, Isolation::Committed, &mut |message| {
        let append_time_ms = match message.timestamp() {
            Timestamp::LogAppendTime(time_ms) => Some(time_ms),
            _ => None,
        };
        records.push(LoggedRecord { offset: message.offset(), append_time_ms, payload: message.payload().unwrap_or_default().to_vec() });
    })?;
    Ok(fold(job, &topic, &records))
}

/// The fold, and what it finds.
pub fn fold(job: &str, topic: &str, records: &[LoggedRecord]) -> ControlFound {
    let low = records.first().map_or(0, |record| record.offset);
    let (mut cluster, rest) = match start(low, records) {
        Some(start) => start,
        None => {
            let mut found = ControlFound { history: OwnerHistory::from_middle(), ..ControlFound::default() };
            let detail = format!("the log begins at offset {low} and holds no complete snapshot");
            found.findings.add(Anomaly::new(AnomalyKind::MissingLog, Invariant::K2, detail).in_topic(topic));
            return found;
        }
    };
    let mut found = ControlFound::default();
    if low > 0 {
        found.history = OwnerHistory::from_middle();
    }
    let mut owners: BTreeMap<RegionId, Option<SlotId>> = BTreeMap::new();
    note_owners(job, &cluster, &mut owners, &mut found);
    for record in rest {
        let version = cluster.version();
        for effect in cluster.apply(record.entry()) {
            let (key, detail) = match effect {
                Effect::Contradicted { by, at } => (by.0.to_string(), format!("it has another digest at offset {at} than the log gives")),
                Effect::SnapshotRefused { at, reason } => (at.to_string(), format!("the snapshot of offset {at} is refused: {reason}")),
                _ => continue,
            };
            let anomaly = Anomaly::new(AnomalyKind::Divergence, Invariant::C1, detail).of(key);
            found.findings.add(anomaly.at(topic, 0, record.offset));
        }
        if matches!(serde_json::from_slice(&record.payload), Ok(ControlRecord::Heartbeat { .. })) {
            found.findings.looked_at(Invariant::C1, 1);
        }
        if cluster.version() != version {
            note_owners(job, &cluster, &mut owners, &mut found);
        }
    }
    if let Some(genesis) = cluster.genesis() {
        found.source_stages = genesis.stages.iter().filter(|(_, shape)| shape.is_source).map(|(stage, _)| *stage).collect();
        (found.stages, found.exchanges) = (genesis.stages.len(), genesis.exchange_partitions.len());
    }
    found.stateful = cluster.regions().filter(|(_, region)| region.stateful).map(|(id, _)| id).collect();
    found.checkpoints = cluster.regions().filter_map(|(id, region)| Some((id, region.checkpoint?))).collect();
    found
}

/// The state to begin with, and the records after it.
fn start(low: Offset, records: &[LoggedRecord]) -> Option<(Cluster, &[LoggedRecord])> {
    if low == 0 {
        return Some((Cluster::default(), records));
    }
    let ends_snapshot = |record: &LoggedRecord| matches!(serde_json::from_slice(&record.payload), Ok(ControlRecord::Snapshot { part, parts, .. }) if part + 1 == parts);
    let complete = (1..=records.len()).filter(|length| ends_snapshot(&records[length - 1]));
    complete.into_iter().find_map(|length| {
        let (before, rest) = records.split_at(length);
        let cluster = Cluster::replay(low, before.iter().map(LoggedRecord::entry)).ok()?;
        Some((cluster, rest))
    })
}

fn note_owners(job: &str, cluster: &Cluster, owners: &mut BTreeMap<RegionId, Option<SlotId>>, found: &mut ControlFound) {
    for (id, region) in cluster.regions() {
        let owner = region.owner.map(|owner| owner.slot);
        if owners.insert(id, owner) != Some(owner) {
            found.changes += 1;
            found.history.own(id, owner.map(|slot| slot.transactional_id(job)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use streamshield_core::cluster::{FEATURE_LEVEL, Genesis, Joined, StageShape, Tier};
    use streamshield_core::ids::{Digest, Incarnation, PlanFingerprint, StageId};
    use streamshield_core::tiers;

    const REGION: RegionId = RegionId { stage: StageId(0), partition: 0 };

    fn joined(incarnation: u64, worker: &str) -> ControlRecord {
        let settings = tiers::settings(Tier::Checkpoints, 0);
        ControlRecord::Joined(Joined {
            incarnation: Incarnation(incarnation),
            nonce: incarnation,
            worker: worker.into(),
            slots: 1,
            rack: None,
            level: FEATURE_LEVEL,
            plan: PlanFingerprint(1),
            settings,
            http: None,
        })
    }

    fn log(records: &[ControlRecord], first: Offset) -> Vec<LoggedRecord> {
        let place = |(index, record): (usize, &ControlRecord)| LoggedRecord {
            offset: first + index as Offset,
            append_time_ms: Some(1_000 + index as i64),
            payload: record.encode(),
        };
        records.iter().enumerate().map(place).collect()
    }

    /// Worker a owns the region, leaves, and worker b owns it.
    fn handed_over() -> Vec<ControlRecord> {
        let genesis = Genesis {
            splits: Default::default(),
            exchange_partitions: [(0, 4)].into(),
            stages: [(0, StageShape { regions: 1, stateful: true, is_source: true })].into(),
        };
        let left = ControlRecord::Left { incarnation: Incarnation(1), clean: false };
        vec![joined(1, "a"), joined(2, "b"), ControlRecord::Genesis(genesis), left]
    }

    #[test]
    fn owners_and_shape_are_those_of_the_log() {
        let mut found = fold("job", "job-control", &log(&handed_over(), 0));
        assert!(found.findings.is_clean());
        assert_eq!((found.source_stages, found.stages, found.exchanges), (BTreeSet::from([0]), 1, 1));
        assert!(found.history.commits(REGION, "job-1-0").is_ok());
        assert!(found.history.commits(REGION, "job-2-0").is_ok());
        assert!(found.history.commits(REGION, "job-1-0").is_err());
    }

    #[test]
    fn a_worker_with_another_digest_is_found() {
        let mut cluster = Cluster::default();
        let mut records = handed_over();
        log(&records, 0).iter().for_each(|record| drop(cluster.apply(record.entry())));
        let beat = |digest| ControlRecord::Heartbeat { incarnation: Incarnation(2), at: 3, digest };
        records.push(beat(cluster.digest()));
        assert_eq!(fold("job", "c", &log(&records, 0)).findings.total(), 0);
        records.push(beat(Digest(cluster.digest().0 + 1)));
        let found = fold("job", "c", &log(&records, 0)).findings;
        assert_eq!((found.count(AnomalyKind::Divergence), found.checked[&Invariant::C1]), (1, 2));
    }

    #[test]
    fn a_trimmed_log_is_understood_from_its_snapshot_and_one_without_is_a_loss() {
        let mut cluster = Cluster::default();
        let records = log(&handed_over(), 0);
        records.iter().for_each(|record| drop(cluster.apply(record.entry())));
        let mut trimmed = cluster.snapshot(Incarnation(2));
        trimmed.push(ControlRecord::Drain { worker: "b".into(), undo: false });
        let mut found = fold("job", "c", &log(&trimmed, 4));
        assert!(found.findings.is_clean(), "{:?}", found.findings.anomalies);
        assert_eq!(found.stages, 1);
        assert!(found.history.commits(REGION, "job-1-0").is_ok(), "before the first known owner nothing is judged");
        let found = fold("job", "c", &log(&trimmed[1..], 5));
        assert_eq!(found.findings.count(AnomalyKind::MissingLog), 1);
    }
}

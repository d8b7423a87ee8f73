//! The control log: folded as every worker folds it, to see who owned what, and whether all workers came to the same view.
//!
//! A long run trims its control log. So a run that watches its job follows the log from its start ([`ControlFollower`]). Where nobody did, the fold begins at
//! the first complete snapshot that is still there: what was before is not judged.

use super::control_topic;
use crate::client::{Isolation, Met, Reader, visit};
use crate::error::WorkloadError;
use crate::findings::{Anomaly, AnomalyKind, Findings, Invariant};
use rdkafka::Message;
use rdkafka::message::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use streamshield_core::cluster::{Cluster, ControlRecord, Effect, Entry, OwnerHistory, SlotId};
use streamshield_core::ids::{Epoch, Offset, RegionId};
use streamshield_core::ports::checkpoint::Durability;

const POLL: Duration = Duration::from_millis(200);
const FETCH_WAIT: Duration = Duration::from_millis(500);

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

/// Takes the records of a control log one after the other, from its beginning or from what is left of it.
pub struct ControlFold {
    job: String,
    topic: String,
    /// None: no complete snapshot has come yet of a log without beginning.
    cluster: Option<Cluster>,
    /// What has come without one.
    waiting: Vec<LoggedRecord>,
    owners: BTreeMap<RegionId, Option<SlotId>>,
    /// The offset after the last record.
    next: Offset,
    found: ControlFound,
}

impl ControlFold {
    pub fn new(job: &str) -> ControlFold {
        ControlFold {
            job: job.into(),
            topic: control_topic(job),
            cluster: None,
            waiting: Vec::new(),
            owners: BTreeMap::new(),
            next: 0,
            found: ControlFound::default(),
        }
    }

    /// Takes what the topic holds now and was not taken yet.
    pub fn read_on(&mut self, servers: &str) -> Result<(), WorkloadError> {
        let topic = self.topic.clone();
        visit(servers, &topic, Isolation::Committed, &mut |message| self.take_message(message)).map(drop)
    }

    fn take_message(&mut self, message: &impl Message) {
        let append_time_ms = match message.timestamp() {
            Timestamp::LogAppendTime(time_ms) => Some(time_ms),
            _ => None,
        };
        self.take(LoggedRecord { offset: message.offset(), append_time_ms, payload: message.payload().unwrap_or_default().to_vec() });
    }

    /// The next record; one that was taken already is passed over.
    pub fn take(&mut self, record: LoggedRecord) {
        if record.offset < self.next {
            return;
        }
        if self.cluster.is_some() && record.offset > self.next {
            // It was trimmed before it was read: what lies between is not known.
            (self.cluster, self.owners) = (None, BTreeMap::new());
        }
        self.next = record.offset + 1;
        if self.cluster.is_none() && self.waiting.is_empty() && record.offset == 0 {
            self.begin(Cluster::default());
        }
        match &self.cluster {
            Some(_) => self.apply(&record),
            None => self.wait_for_snapshot(record),
        }
    }

    fn begin(&mut self, cluster: Cluster) {
        self.note_owners(&cluster);
        self.cluster = Some(cluster);
    }

    fn wait_for_snapshot(&mut self, record: LoggedRecord) {
        let ends_snapshot =
            matches!(serde_json::from_slice(&record.payload), Ok(ControlRecord::Snapshot { part, parts, .. }) if part + 1 == parts);
        self.waiting.push(record);
        if ends_snapshot && let Ok(cluster) = Cluster::replay(self.waiting[0].offset, self.waiting.iter().map(LoggedRecord::entry)) {
            let slots = cluster.members().flat_map(|member| (0..member.slots).map(|slot| SlotId { incarnation: member.incarnation, slot }));
            self.found.history = OwnerHistory::from_middle(slots.map(|slot| slot.transactional_id(&self.job)).collect());
            self.begin(cluster);
            self.waiting = Vec::new();
        }
    }

    fn apply(&mut self, record: &LoggedRecord) {
        let Some(mut cluster) = self.cluster.take() else { return };
        let version = cluster.version();
        for effect in cluster.apply(record.entry()) {
            let (key, detail) = match effect {
                Effect::Contradicted { by, at } => (by.0.to_string(), format!("it has another digest at offset {at} than the log gives")),
                Effect::SnapshotRefused { at, reason } => (at.to_string(), format!("the snapshot of offset {at} is refused: {reason}")),
                _ => continue,
            };
            let anomaly = Anomaly::new(AnomalyKind::Divergence, Invariant::C1, detail).of(key);
            self.found.findings.add(anomaly.at(&self.topic, 0, record.offset));
        }
        if matches!(serde_json::from_slice(&record.payload), Ok(ControlRecord::Heartbeat { .. })) {
            self.found.findings.looked_at(Invariant::C1, 1);
        }
        if cluster.version() != version {
            self.note_owners(&cluster);
        }
        self.cluster = Some(cluster);
    }

    fn note_owners(&mut self, cluster: &Cluster) {
        for (id, region) in cluster.regions() {
            let owner = region.owner.map(|owner| owner.slot);
            if self.owners.insert(id, owner) != Some(owner) {
                self.found.changes += 1;
                self.found.history.own(id, owner.map(|slot| slot.transactional_id(&self.job)));
            }
        }
    }

    pub fn finish(mut self) -> ControlFound {
        let mut found = std::mem::take(&mut self.found);
        let Some(cluster) = self.cluster else {
            found.history = OwnerHistory::from_middle(BTreeSet::new());
            let first = self.waiting.first().map_or(0, |record| record.offset);
            let detail = format!("the log begins at offset {first} and holds no complete snapshot");
            found.findings.add(Anomaly::new(AnomalyKind::MissingLog, Invariant::K2, detail).in_topic(&self.topic));
            return found;
        };
        if let Some(genesis) = cluster.genesis() {
            found.source_stages = genesis.stages.iter().filter(|(_, shape)| shape.is_source).map(|(stage, _)| *stage).collect();
            (found.stages, found.exchanges) = (genesis.stages.len(), genesis.exchange_partitions.len());
        }
        found.stateful = cluster.regions().filter(|(_, region)| region.stateful).map(|(id, _)| id).collect();
        found.checkpoints = cluster.regions().filter_map(|(id, region)| Some((id, region.checkpoint?))).collect();
        found
    }
}

/// Reads a control log while it is written, on a thread of its own: what is trimmed meanwhile is known nevertheless. Dropping it ends that.
pub struct ControlFollower {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<ControlFold, WorkloadError>>>,
}

impl ControlFollower {
    /// The topic must exist.
    pub fn start(servers: &str, job: &str) -> Result<ControlFollower, WorkloadError> {
        let mut fold = ControlFold::new(job);
        let mut reader = Reader::open_patient(servers, &[&fold.topic], Isolation::Committed, FETCH_WAIT)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let follow = move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Met::Message(message) = reader.next(POLL)? {
                    fold.take_message(&message);
                }
            }
            Ok(fold)
        };
        let thread = std::thread::Builder::new()
            .name("control-follower".into())
            .spawn(follow)
            .map_err(|error| WorkloadError::Harness(format!("no thread to follow the control log: {error}")))?;
        Ok(ControlFollower { stop, thread: Some(thread) })
    }

    /// What it has taken so far; the rest is to be read by [`ControlFold::read_on`].
    pub fn stop(mut self) -> Result<ControlFold, WorkloadError> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("only stop takes it");
        thread.join().map_err(|_| WorkloadError::Harness("the follower of the control log panicked".into()))?
    }
}

impl Drop for ControlFollower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
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
            died_in: Vec::new(),
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

    fn fold(records: &[LoggedRecord]) -> ControlFound {
        let mut fold = ControlFold::new("job");
        records.iter().for_each(|record| fold.take(record.clone()));
        fold.finish()
    }

    /// Worker a owns the region, leaves, and worker b owns it.
    fn handed_over() -> Vec<ControlRecord> {
        let genesis = Genesis {
            plan: Some(PlanFingerprint(1)),
            splits: Default::default(),
            exchange_partitions: [(0, 4)].into(),
            stages: [(0, StageShape { regions: 1, stateful: true, is_source: true })].into(),
        };
        let left = ControlRecord::Left { incarnation: Incarnation(1), clean: false };
        vec![joined(1, "a"), joined(2, "b"), ControlRecord::Genesis(genesis), left]
    }

    #[test]
    fn owners_and_shape_are_those_of_the_log() {
        let mut found = fold(&log(&handed_over(), 0));
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
        assert_eq!(fold(&log(&records, 0)).findings.total(), 0);
        records.push(beat(Digest(cluster.digest().0 + 1)));
        let found = fold(&log(&records, 0)).findings;
        assert_eq!((found.count(AnomalyKind::Divergence), found.checked[&Invariant::C1]), (1, 2));
    }

    #[test]
    fn a_log_that_was_trimmed_while_it_was_followed_is_taken_up_again_at_its_snapshot() {
        let mut cluster = Cluster::default();
        let records = log(&handed_over(), 0);
        records.iter().for_each(|record| drop(cluster.apply(record.entry())));
        let mut fold = ControlFold::new("job");
        records[..3].iter().for_each(|record| fold.take(record.clone()));
        log(&cluster.snapshot(Incarnation(2)), 4).into_iter().for_each(|record| fold.take(record));
        let mut found = fold.finish();
        assert!(found.findings.is_clean(), "{:?}", found.findings.anomalies);
        assert_eq!(found.history.commits(REGION, "job-1-0"), Ok(false), "what was before the hole is not judged");
    }

    #[test]
    fn a_trimmed_log_is_understood_from_its_snapshot_and_one_without_is_a_loss() {
        let mut cluster = Cluster::default();
        let records = log(&handed_over(), 0);
        records.iter().for_each(|record| drop(cluster.apply(record.entry())));
        let mut trimmed = cluster.snapshot(Incarnation(2));
        trimmed.push(ControlRecord::Drain { worker: "b".into(), undo: false, incarnation: None });
        let mut found = fold(&log(&trimmed, 4));
        assert!(found.findings.is_clean(), "{:?}", found.findings.anomalies);
        assert_eq!(found.stages, 1);
        assert!(found.history.commits(REGION, "job-1-0").is_ok(), "before the first known owner nothing is judged");
        let found = fold(&log(&trimmed[1..], 5));
        assert_eq!(found.findings.count(AnomalyKind::MissingLog), 1);
    }
}

//! Rules that are broken on purpose: a simulation that does not notice would prove nothing.
//!
//! Each [`Rule`] is one that the engine keeps (architecture, "Taking over" and the invariants). A rule is broken between the engine and its
//! ports, so that what is tested is what is shipped and no switch for it exists in the product:
//!
//! ```text
//! engine ─ log, checkpoints ─► [`BrokenLog`], [`BrokenCheckpoints`] ─► the simulated ports
//! ```
//! For instance the confirmation after InitProducerId: the engine appends a record and waits until it has read it back; the broken log
//! answers with an offset that was read long ago, and the engine begins at once.

use crate::control::SharedControl;
use crate::job::JOB;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use streamshield_core::cluster::{ControlRecord, SlotId};
use streamshield_core::ids::{Offset, PlanFingerprint, RegionId};
use streamshield_core::ports::checkpoint::{
    CheckpointError, CheckpointInfo, CheckpointRequest, CheckpointStore, Durability, Restored, Saved,
};
use streamshield_core::ports::log::*;
use streamshield_sim::state::DiskFaults;
use streamshield_sim::{ClientId, FaultPlan, Sim};

/// A rule of the engine, broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Rule {
    /// Nobody is fenced: the one who should says so at once.
    FenceFirst,
    /// Of several earlier owners only the last one is fenced.
    FenceAll,
    /// The end of a changelog is where the reader has nothing more, and not the high watermark.
    HighWatermark,
    /// No confirmation after InitProducerId.
    Confirm,
    /// A region that was given up is taken up again before that was read back.
    ReadBack,
    /// A commit in doubt is taken for committed.
    Doubt,
    /// The log is trimmed behind the newest checkpoint, and not behind the oldest that is kept.
    TrimOldest,
    /// Local checkpoints count as remote ones when the log is trimmed.
    TrimRemote,
    /// The epoch record is written beside the transaction.
    Together,
}

impl Rule {
    /// Rules that a client keeps, and not the engine, are broken in the world.
    pub fn change(self, faults: &mut FaultPlan) {
        faults.forgives_doubt |= self == Rule::Doubt;
    }

    /// What a rule is about has to come to pass often enough: regions are given up where their state can't be written.
    pub fn change_disk(self, faults: &mut DiskFaults) {
        if self == Rule::ReadBack {
            faults.write_fails = 1_000;
        }
    }
}

/// A log that breaks a rule.
pub struct BrokenLog {
    pub rule: Rule,
    pub log: Arc<dyn Log>,
    pub sim: Sim,
    pub client: ClientId,
    /// What the control log says, past all delays.
    pub control: SharedControl,
}

fn is_changelog(topic: &str) -> bool {
    topic.ends_with("-changelog")
}

impl Log for BrokenLog {
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        self.log.create_topics(topics)
    }

    fn describe_topic(&self, topic: &str) -> Result<Option<TopicDescription>, LogError> {
        self.log.describe_topic(topic)
    }

    fn bounds(&self, partition: &TopicPartition, isolation: Isolation) -> Result<Bounds, LogError> {
        let bounds = self.log.bounds(partition, isolation)?;
        if self.rule == Rule::HighWatermark && is_changelog(&partition.topic) {
            let heard = self.sim.heard(self.client, partition).unwrap_or(bounds.high);
            return Ok(Bounds { high: bounds.high.min(heard), ..bounds });
        }
        Ok(bounds)
    }

    fn resolve(&self, partition: &TopicPartition, start: StartAt) -> Result<Offset, LogError> {
        self.log.resolve(partition, start)
    }

    fn group_offset(&self, group: &str, partition: &TopicPartition) -> Result<Option<Offset>, LogError> {
        self.log.group_offset(group, partition)
    }

    fn commit_group_offsets(&self, group: &str, positions: &[(TopicPartition, Offset)]) {
        self.log.commit_group_offsets(group, positions);
    }

    fn reader(&self, options: ReaderOptions, wakeup: Arc<Wakeup>) -> Result<Box<dyn LogReader>, LogError> {
        self.log.reader(options, wakeup)
    }

    fn writer(&self, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, LogError> {
        let writer = self.log.writer(transactional_id)?;
        Ok(match self.rule {
            Rule::Together => Box::new(TornWriter { writer, log: self.log.clone(), apart: Mutex::default() }),
            _ => writer,
        })
    }

    fn fencer(&self, transactional_id: &str) -> Result<Box<dyn Fencer>, LogError> {
        match self.rule {
            Rule::FenceFirst => Ok(Box::new(Harmless)),
            Rule::FenceAll => {
                let (transactional_id, control) = (transactional_id.to_owned(), self.control.clone());
                Ok(Box::new(LastOnly { fencer: self.log.fencer(&transactional_id)?, transactional_id, control }))
            }
            _ => self.log.fencer(transactional_id),
        }
    }

    fn append(&self, message: &OutMessage) -> Result<Offset, LogError> {
        let record: Option<ControlRecord> = message.payload.as_deref().and_then(|payload| serde_json::from_slice(payload).ok());
        match (self.rule, &record) {
            (Rule::Confirm, Some(ControlRecord::Confirm { .. })) => Ok(0),
            (Rule::ReadBack, Some(ControlRecord::Released { .. } | ControlRecord::Failed { .. })) => self.log.append(message).map(|_| 0),
            _ => self.log.append(message),
        }
    }

    fn trim(&self, before: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        self.log.trim(before)
    }
}

/// Fences nobody.
struct Harmless;

impl Fencer for Harmless {
    fn fence(self: Box<Self>) -> Result<(), LogError> {
        Ok(())
    }
}

/// Fences the slot only if it was the last that held its regions.
struct LastOnly {
    fencer: Box<dyn Fencer>,
    transactional_id: String,
    control: SharedControl,
}

impl LastOnly {
    fn is_last(&self) -> bool {
        let control = self.control.lock();
        let is_me = |slot: &SlotId| slot.transactional_id(JOB) == self.transactional_id;
        let mut held = control.cluster.regions().map(|(_, region)| &region.must_fence).filter(|fenced| fenced.iter().any(is_me)).peekable();
        held.peek().is_none() || held.any(|slots| slots.last().is_some_and(is_me))
    }
}

impl Fencer for LastOnly {
    fn fence(self: Box<Self>) -> Result<(), LogError> {
        if self.is_last() { self.fencer.fence() } else { Ok(()) }
    }
}

/// Writes what goes to a changelog after the transaction.
struct TornWriter {
    writer: Box<dyn TransactionalWriter>,
    log: Arc<dyn Log>,
    apart: Mutex<Vec<OutMessage>>,
}

impl TransactionalWriter for TornWriter {
    fn begin(&mut self) -> Result<(), LogError> {
        self.apart.lock().clear();
        self.writer.begin()
    }

    fn send(&mut self, message: &OutMessage) -> Result<(), LogError> {
        if is_changelog(&message.topic) {
            self.apart.lock().push(message.clone());
            return Ok(());
        }
        self.writer.send(message)
    }

    fn send_set(&mut self, messages: &MessageSet) -> Result<(), LogError> {
        self.writer.send_set(messages)
    }

    fn commit(&mut self) -> CommitOutcome {
        let outcome = self.writer.commit();
        for message in self.apart.lock().drain(..) {
            if let Err(error) = self.log.append(&message) {
                return CommitOutcome::InDoubt(error.message);
            }
        }
        outcome
    }

    fn abort(&mut self) {
        self.writer.abort();
    }
}

/// A checkpoint store that breaks a rule.
pub struct BrokenCheckpoints {
    pub rule: Rule,
    pub store: Arc<dyn CheckpointStore>,
}

impl CheckpointStore for BrokenCheckpoints {
    fn save(&self, request: &CheckpointRequest) -> Result<Saved, CheckpointError> {
        let mut saved = self.store.save(request)?;
        if self.rule == Rule::TrimRemote {
            saved.durability = Durability::Remote;
        }
        Ok(saved)
    }

    fn restore(&self, region: RegionId, plan: PlanFingerprint, directory: &Path) -> Result<Option<Restored>, CheckpointError> {
        self.store.restore(region, plan, directory)
    }

    fn list(&self, region: RegionId) -> Result<Vec<CheckpointInfo>, CheckpointError> {
        let mut known = self.store.list(region)?;
        match self.rule {
            Rule::TrimOldest => {
                let newest = known.iter().rposition(|info| info.durability == Durability::Remote).unwrap_or(0);
                known.drain(..newest);
            }
            Rule::TrimRemote => known.iter_mut().for_each(|info| info.durability = Durability::Remote),
            _ => {}
        }
        Ok(known)
    }

    fn maintain(&self, region: RegionId, still_owner: &mut dyn FnMut() -> bool) -> Result<(), CheckpointError> {
        self.store.maintain(region, still_owner)
    }
}

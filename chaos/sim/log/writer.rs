//! The transactional producer of a slot, with everything that may become of its commits.
//!
//! It keeps the promises of `KafkaWriter`, no more and no less: a writer that was in doubt, aborted or fenced is spent; "aborted" and
//! "refused" are said only when no EndTxn for a commit was sent; messages go to the log when the client pleases, at the commit at the latest.
//!
//! ```text
//! begin ─▶ send… (queued, or in the log at once) ─▶ commit:  deliver ─▶ EndTxn ─▶ outcome
//!                                                             │ fails     │ lost, late, repeated, markers late
//!                                                             ▼           ▼
//!                                                  Aborted · Refused    InDoubt · Committed
//! ```

use super::encode::{Record, Sender, batch_of, cut};
use super::{MESSAGE_BYTES_MAX, TopicPartition, choose_partition, refused};
use crate::world::{ClientId, CommitFate, FaultPlan, Sim, TRANSACTION_TIMEOUT_MS, World, retry};
use bytes::Bytes;
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use streamshield_core::ports::log::{CommitOutcome, LogError, LogErrorKind, MessageSet, OutMessage, TransactionalWriter};

/// See the module text.
pub struct SimWriter {
    sim: Sim,
    client: ClientId,
    producer: Producer,
    /// Why this writer may not be used any more.
    spent: Option<String>,
}

/// What is the client's own, apart from the world.
struct Producer {
    client: ClientId,
    transactional_id: String,
    granted: (i64, i16),
    sequences: BTreeMap<TopicPartition, i32>,
    queued: BTreeMap<TopicPartition, Vec<Record>>,
    /// Messages of the open transaction.
    sent: usize,
    /// When the open transaction began at the coordinator.
    opened_ms: Option<i64>,
    /// The first message that can't be delivered.
    failure: Option<LogError>,
}

impl SimWriter {
    pub(super) fn new(sim: &Sim, client: ClientId, transactional_id: &str, granted: (i64, i16)) -> SimWriter {
        let producer = Producer {
            client,
            transactional_id: transactional_id.to_owned(),
            granted,
            sequences: BTreeMap::new(),
            queued: BTreeMap::new(),
            sent: 0,
            opened_ms: None,
            failure: None,
        };
        SimWriter { sim: sim.clone(), client, producer, spent: None }
    }

    fn spend(&mut self, why: String) -> LogError {
        let message = format!("the writer '{}' must be replaced: {why}", self.producer.transactional_id);
        self.spent = Some(why);
        LogError::new(LogErrorKind::Fenced, message)
    }

    /// Queues records that have their partition, and perhaps sends them at once.
    fn queue(&mut self, what: &str, records: Vec<(TopicPartition, Record)>) -> Result<(), LogError> {
        if let Some(why) = self.spent.clone() {
            return Err(self.spend(why));
        }
        let sim = self.sim.clone();
        let mut world = sim.world();
        if !world.is_alive(self.client) {
            return Err(retry("this process is dead"));
        }
        world.spend_time();
        let FaultPlan { queue_full, sent_early, .. } = world.faults;
        let is_full = !records.is_empty() && world.strikes("queue full", queue_full);
        let room = if is_full { world.rng.random_range(0..records.len()) } else { records.len() };
        let total = records.len();
        for (partition, record) in records.into_iter().take(room) {
            self.producer.queued.entry(partition).or_default().push(record);
            self.producer.sent += 1;
        }
        world.note(self.client, format_args!("{what}: {room} of {total} queued"));
        if is_full {
            return Err(retry("the client's queue is full"));
        }
        if !world.is_away(self.client) && world.strikes("sent early", sent_early) {
            self.producer.deliver(&mut world);
        }
        Ok(())
    }

    /// Aborted for sure, because no EndTxn for a commit was sent.
    fn abandon(&mut self, world: &mut World, why: String) -> CommitOutcome {
        self.spent = Some(why.clone());
        self.producer.abort(world);
        CommitOutcome::Aborted(why)
    }

    fn commit_in(&mut self, world: &mut World) -> CommitOutcome {
        if self.producer.sent == 0 {
            return CommitOutcome::Committed;
        }
        let fate = CommitFate::draw(&world.faults.clone(), &mut world.rng);
        if let Some(name) = fate.name() {
            world.fire(name);
        }
        if world.is_away(self.client) || fate == CommitFate::DeliveryFails {
            return self.abandon(world, "messages were not delivered in time".into());
        }
        self.producer.deliver(world);
        if let Some(failure) = self.producer.failure.take() {
            self.spent = Some(failure.message.clone());
            return match failure.kind {
                LogErrorKind::Fenced => CommitOutcome::Fenced(failure.message),
                // Nothing is damaged on the way here: what is invalid stays so.
                LogErrorKind::Invalid => {
                    self.producer.abort(world);
                    CommitOutcome::Refused(failure.message)
                }
                _ => self.abandon(world, failure.message),
            };
        }
        if fate == CommitFate::Aborted {
            return self.abandon(world, "the commit was aborted".into());
        }
        self.end(world, fate)
    }

    /// Sends EndTxn.
    fn end(&mut self, world: &mut World, fate: CommitFate) -> CommitOutcome {
        let Producer { transactional_id, granted, opened_ms, .. } = &mut self.producer;
        let doubt = |what: &str| CommitOutcome::InDoubt(format!("commit of '{transactional_id}': {what}"));
        let until_ms = opened_ms.take().map_or(i64::MAX, |opened_ms| opened_ms + TRANSACTION_TIMEOUT_MS);
        match fate {
            CommitFate::RequestLost => return doubt("no answer to EndTxn"),
            CommitFate::Late => {
                world.end_late(transactional_id, *granted);
                return doubt("no answer to EndTxn");
            }
            CommitFate::MarkersLate if world.core.is_current_producer(transactional_id, *granted) => {
                world.commit_later(transactional_id, *granted, until_ms);
                return CommitOutcome::Committed;
            }
            _ => {}
        }
        let ended = world.core.end_transaction(world.now_ms, transactional_id, *granted, true);
        world.settle();
        if let Err(refusal) = ended {
            let error = refused(&format!("commit of '{transactional_id}'"), refusal);
            return match error.kind {
                LogErrorKind::Fenced => CommitOutcome::Fenced(error.message),
                _ => CommitOutcome::InDoubt(error.message),
            };
        }
        match fate {
            CommitFate::AnswerLost => doubt("the answer to EndTxn was lost"),
            CommitFate::Repeated => {
                world.end_late(transactional_id, *granted);
                doubt("EndTxn was sent twice")
            }
            _ => CommitOutcome::Committed,
        }
    }
}

impl TransactionalWriter for SimWriter {
    fn begin(&mut self) -> Result<(), LogError> {
        if let Some(why) = self.spent.clone() {
            return Err(self.spend(why));
        }
        let mut world = self.sim.world();
        if !world.is_alive(self.client) {
            return Err(retry("this process is dead"));
        }
        world.note(self.client, format_args!("begin '{}'", self.producer.transactional_id));
        self.producer.sent = 0;
        self.producer.opened_ms = None;
        self.producer.queued.clear();
        Ok(())
    }

    fn send(&mut self, message: &OutMessage) -> Result<(), LogError> {
        let what = format!("send to '{}'", message.topic);
        let record = Record::of(message, self.sim.now_ms());
        check_size(&what, &record)?;
        let placed = {
            let mut world = self.sim.world();
            choose_partition(&mut world, &message.topic, message.partition, message.key.as_deref())
        };
        match placed {
            Ok(partition) => self.queue(&what, vec![(TopicPartition::new(Arc::clone(&message.topic), partition), record)]),
            Err(refusal) => self.undeliverable(refused(&what, refusal)),
        }
    }

    fn send_set(&mut self, messages: &MessageSet) -> Result<(), LogError> {
        let what = format!("send to '{}'", messages.topic);
        let now_ms = self.sim.now_ms();
        let buffer = Bytes::copy_from_slice(&messages.buffer);
        let mut records = Vec::with_capacity(messages.entries.len());
        for entry in &messages.entries {
            let part = |range: &Option<std::ops::Range<usize>>| range.clone().map(|range| buffer.slice(range));
            let (key, value) = (part(&entry.key), part(&entry.value));
            let record = Record { key, value, headers: vec![], timestamp_ms: entry.timestamp_ms.unwrap_or(now_ms) };
            check_size(&what, &record)?;
            let placed = choose_partition(&mut self.sim.world(), &messages.topic, entry.partition, record.key.as_deref());
            match placed {
                Ok(partition) => records.push((TopicPartition::new(Arc::clone(&messages.topic), partition), record)),
                Err(refusal) => return self.undeliverable(refused(&what, refusal)),
            }
        }
        self.queue(&what, records)
    }

    fn commit(&mut self) -> CommitOutcome {
        if let Some(why) = self.spent.clone() {
            return CommitOutcome::InDoubt(why);
        }
        let sim = self.sim.clone();
        let mut world = sim.world();
        let dead = || CommitOutcome::InDoubt("this process is dead".into());
        if !world.is_alive(self.client) || world.dies_now(self.client) {
            return dead();
        }
        world.spend_time();
        let outcome = self.commit_in(&mut world);
        world.note(self.client, format_args!("commit '{}' -> {outcome:?}", self.producer.transactional_id));
        if world.dies_now(self.client) {
            return dead();
        }
        match outcome {
            CommitOutcome::InDoubt(_) if world.faults.forgives_doubt => CommitOutcome::Committed,
            outcome => {
                if !matches!(outcome, CommitOutcome::Committed) {
                    self.spent.get_or_insert_with(|| format!("{outcome:?}"));
                }
                outcome
            }
        }
    }

    fn abort(&mut self) {
        self.spent.get_or_insert_with(|| "its transaction was aborted".into());
        let sim = self.sim.clone();
        let mut world = sim.world();
        if world.is_alive(self.client) {
            world.note(self.client, format_args!("abort '{}'", self.producer.transactional_id));
            self.producer.abort(&mut world);
        }
    }
}

impl SimWriter {
    /// A message to a place that does not exist fails with its delivery, which the commit learns.
    fn undeliverable(&mut self, failure: LogError) -> Result<(), LogError> {
        self.producer.sent += 1;
        self.producer.failure.get_or_insert(failure);
        Ok(())
    }
}

fn check_size(what: &str, record: &Record) -> Result<(), LogError> {
    let size = record.bytes();
    if size <= MESSAGE_BYTES_MAX {
        return Ok(());
    }
    Err(LogError::new(LogErrorKind::Invalid, format!("{what}: a message of {size} bytes is larger than {MESSAGE_BYTES_MAX}")))
}

impl Producer {
    /// Sends what is queued. What can't be delivered is remembered for the commit.
    fn deliver(&mut self, world: &mut World) {
        let queued = std::mem::take(&mut self.queued);
        if queued.is_empty() || self.failure.is_some() {
            return;
        }
        // The coordinator lets nobody begin before the last transaction's markers are written.
        world.finish_commit(&self.transactional_id);
        let places: Vec<_> = queued.keys().map(|partition| (partition.topic.to_string(), partition.partition)).collect();
        let mut delivered = world.core.add_partitions_to_transaction(world.now_ms, &self.transactional_id, self.granted, &places);
        if delivered.is_ok() {
            self.opened_ms.get_or_insert(world.now_ms);
        }
        for (partition, records) in &queued {
            for records in cut(records) {
                if delivered.is_ok() {
                    delivered = self.produce(world, partition, records);
                }
            }
        }
        world.settle();
        if let Err(refusal) = delivered {
            self.failure = Some(refused(&format!("deliver the messages of '{}'", self.transactional_id), refusal));
        }
    }

    fn produce(
        &mut self,
        world: &mut World,
        partition: &TopicPartition,
        records: &[Record],
    ) -> Result<(), streamshield_embedded::log_core::LogError> {
        let sequence = self.sequences.entry(partition.clone()).or_default();
        let sender = Sender { producer: self.granted, sequence: *sequence, is_transactional: true };
        let batch = batch_of(sender, records);
        world.core.produce(world.now_ms, Some(&self.transactional_id), &partition.topic, partition.partition, &batch)?;
        *sequence += records.len() as i32;
        Ok(())
    }

    /// Aborts what is open as well as it can.
    fn abort(&mut self, world: &mut World) {
        self.queued.clear();
        if self.opened_ms.take().is_some() && !world.is_away(self.client) && !world.strikes("abort lost", world.faults.commit_request_lost)
        {
            // Refused when somebody has fenced it: then it is aborted already.
            let _ = world.core.end_transaction(world.now_ms, &self.transactional_id, self.granted, false);
            world.settle();
        }
    }
}

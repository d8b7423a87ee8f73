//! The commit actor of a slot: one Kafka transaction per batch of sealed epochs, until its outcome is known.
//!
//! Sealing runs ahead by [`SEALED_AHEAD_MAX`] batches, so the engine does not wait for the broker. A sealed epoch never
//! changes and never gets lost (E-3):
//!
//! ```text
//!               ┌──────────────────── no producer ◄───────────────────────────────┐
//!               ▼                                                                 │
//! init a producer (fences the old) → append `confirm`, read it back → batch in doubt? → read the changelogs' ends ─ in the log ─┐
//!                                                                        │ no            │ not in the log                       │
//!                                                                        ▼               ▼                                      │
//!                                             prepare sinks → begin → send → commit ─ in doubt, aborted, refused, fenced, away ─┘
//!                                                                        │ committed
//!                                                                        ▼
//!                                                       publish sinks → tell the engine ◄── committed
//! ```
//! A transaction that is *refused* for what it holds goes the way of a doubtful one: once the log shows that it was aborted, the batch is
//! cut, and each epoch gets a transaction of its own. One whose own is refused is given up ([`RefusedEpoch`]): the slot fails its region for
//! good, the others go on. What was sealed behind it would not continue the log (E-1) and is dropped unwritten.
//!
//! - After *every* InitProducerId comes a confirmation: without it a paused owner that wakes up could un-fence itself (O-1).
//! - The outcome of a doubtful commit is read from the log, never from memory: librdkafka has no KIP-890 part 2, so a retried
//!   EndTxn may end a later transaction of the same producer epoch. A new InitProducerId fences such a stray.
//! - A FENCED error proves nothing: the control log says whether somebody took over.
//!
//! On failure: `Retry` pauses the job (state kept, memory bounded by the queue); a control log that has gone on without this worker ends it.

use crate::changelog::Tail;
use crate::clock::Clock;
use crate::content::{SealedEpoch, send_all};
use crate::flight::Notes;
use crate::membership::Membership;
use crate::progress::{Progress, Waiting};
use crate::runtime::{EngineError, Helper, JobOutcome, Shared, gone};
use crate::turn::{Actor, Turn};
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use fail::fail_point;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use streamshield_core::cluster::{ControlRecord, SlotId};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, Offset, RegionId};
use streamshield_core::mutants;
use streamshield_core::ports::log::{CommitOutcome, Isolation, Log, LogError, LogErrorKind, TransactionalWriter, Wakeup};
use streamshield_core::ports::sink::SinkContent;
use streamshield_core::ports::state::Flush;

/// Batches of sealed epochs that may wait for the broker (M-1).
pub const SEALED_AHEAD_MAX: usize = 2;
/// News of batches that a slot has not heard yet: of all that may be under way, and of the end (M-1).
pub const NEWS_MAX: usize = SEALED_AHEAD_MAX + 2;
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(20);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Longest sleep without work; a new batch or a record that was read back wakes it.
const IDLE: Duration = Duration::from_millis(100);
/// How old the noted end of a changelog may be: what a doubtful outcome is read from, and what a checkpoint lets the log be trimmed to.
const NOTED_TIME_MAX: Duration = Duration::from_secs(5);

/// What the engine hears of a batch.
pub enum CommitNews {
    /// Each of its epochs has an outcome.
    Settled {
        committed: Vec<CommittedEpoch>,
        refused: Vec<RefusedEpoch>,
    },
    Ended(JobOutcome),
}

/// An epoch that is in the log.
pub struct CommittedEpoch {
    pub record: EpochRecord,
    /// May be written to the local store now.
    pub flush: Option<Flush>,
    /// The changelog holds the record and all that came after it from here on.
    pub changelog_from: Offset,
}

/// An epoch that will never be in the log, and so none that its region has sealed behind it.
pub struct RefusedEpoch {
    pub region: RegionId,
    /// Under which the region was with the slot: brought up anew it has another one.
    pub assignment: Offset,
    pub epoch: Epoch,
    pub reason: String,
}

/// Everything a commit actor needs.
pub struct Committer {
    pub log: Arc<dyn Log>,
    pub membership: Arc<Membership>,
    pub slot: SlotId,
    pub transactional_id: String,
    /// Where it may write to.
    pub topics: Arc<[Arc<str>]>,
    pub progress: Arc<Progress>,
    pub clock: Arc<dyn Clock>,
    pub shared: Arc<Shared>,
    pub sealed: Receiver<Vec<SealedEpoch>>,
    pub news: Sender<CommitNews>,
    pub wakeup: Arc<Wakeup>,
    /// Of the slot that hears the news.
    pub slot_wakeup: Arc<Wakeup>,
    pub notes: Notes,
    stage: Stage,
    batch: Option<Batch>,
    /// Where each region's changelog stood before the batches that are not known yet: what a doubtful outcome is read from.
    changelog_ends: BTreeMap<RegionId, Noted>,
    /// Why nothing more is written of a region under this assignment; one entry per region at most (M-1).
    given_up: BTreeMap<RegionId, (Offset, String)>,
    pause: Duration,
    resume_at: Duration,
}

/// Where a changelog ended at some time.
struct Noted {
    end: Offset,
    at: Duration,
}

enum Stage {
    NoProducer,
    Confirming { writer: Box<dyn TransactionalWriter>, offset: Offset },
    Resolving { writer: Box<dyn TransactionalWriter>, tail: Tail },
    Ready { writer: Box<dyn TransactionalWriter> },
    Publishing { writer: Box<dyn TransactionalWriter> },
    Ended,
}

/// The batch under way.
struct Batch {
    /// Of the transaction under way: all that have no outcome yet, or one of a batch that was cut.
    epochs: Vec<SealedEpoch>,
    /// Each of them comes in a transaction of its own, after that.
    apart: VecDeque<SealedEpoch>,
    committed: Vec<CommittedEpoch>,
    refused: Vec<RefusedEpoch>,
    since: Duration,
    /// A transaction with `epochs` may have been committed.
    in_doubt: bool,
    /// Why the last transaction with `epochs` was refused.
    refusal: Option<String>,
}

/// Where a committer lives: what is the same for slot and committer.
pub struct CommitterParts {
    pub log: Arc<dyn Log>,
    pub topics: Arc<[Arc<str>]>,
    pub membership: Arc<Membership>,
    pub slot: SlotId,
    pub progress: Arc<Progress>,
    pub clock: Arc<dyn Clock>,
    pub shared: Arc<Shared>,
    pub sealed: Receiver<Vec<SealedEpoch>>,
    pub news: Sender<CommitNews>,
    pub wakeup: Arc<Wakeup>,
    pub slot_wakeup: Arc<Wakeup>,
    pub notes: Notes,
}

impl Committer {
    pub fn new(parts: CommitterParts) -> Committer {
        let transactional_id = parts.slot.transactional_id(&parts.membership.job);
        let CommitterParts { log, topics, membership, slot, progress, clock, shared, sealed, news, wakeup, slot_wakeup, notes } = parts;
        // There from the start on: that none was aborted can be told from nobody having counted.
        metrics::counter!("streamshield_transactions_aborted_total").increment(0);
        Committer {
            log,
            membership,
            slot,
            transactional_id,
            topics,
            progress,
            clock,
            shared,
            sealed,
            news,
            wakeup,
            slot_wakeup,
            notes,
            stage: Stage::NoProducer,
            batch: None,
            changelog_ends: BTreeMap::new(),
            given_up: BTreeMap::new(),
            pause: RETRY_PAUSE_MIN,
            resume_at: Duration::ZERO,
        }
    }

    /// One move of the state machine. True: another at once.
    fn step(&mut self) -> Result<bool, Trouble> {
        match std::mem::replace(&mut self.stage, Stage::NoProducer) {
            Stage::NoProducer => self.init(),
            Stage::Confirming { writer, offset } => self.confirm(writer, offset),
            Stage::Resolving { writer, tail } => self.resolve(writer, tail),
            Stage::Ready { writer } => self.attempt(writer),
            Stage::Publishing { writer } => self.publish(writer),
            Stage::Ended => {
                self.stage = Stage::Ended;
                Ok(false)
            }
        }
    }

    fn init(&mut self) -> Result<bool, Trouble> {
        let mut writer = self.log.writer(&self.transactional_id)?;
        writer.prepare(&self.topics);
        let confirm = ControlRecord::Confirm { incarnation: self.slot.incarnation, slot: self.slot.slot };
        let offset = self.membership.append(&confirm)?;
        self.stage = Stage::Confirming { writer, offset };
        Ok(true)
    }

    fn confirm(&mut self, writer: Box<dyn TransactionalWriter>, offset: Offset) -> Result<bool, Trouble> {
        if !self.membership.has_read(offset) && !mutants::is_on("skip-confirm") {
            self.stage = Stage::Confirming { writer, offset };
            return Ok(false);
        }
        if let Some(outcome) = gone(&self.membership.standing()) {
            return Err(Trouble::Ended(outcome));
        }
        let now = self.clock.steady();
        self.stage = match &self.batch {
            Some(batch) if batch.in_doubt && !mutants::is_on("double-emit") => {
                let from = |epoch: &SealedEpoch| {
                    let from = self.changelog_ends.get(&epoch.record.region).map_or(0, |noted| noted.end);
                    (epoch.changelog.clone(), from)
                };
                Stage::Resolving { writer, tail: Tail::new(batch.epochs.iter().map(from), self.wakeup.clone(), now) }
            }
            _ => Stage::Ready { writer },
        };
        if self.batch.is_none() {
            // Nothing is to be committed that would show it.
            self.progress.resume(Waiting::Commit(self.slot.slot));
        }
        Ok(true)
    }

    /// What became of the batch: the log knows.
    fn resolve(&mut self, writer: Box<dyn TransactionalWriter>, mut tail: Tail) -> Result<bool, Trouble> {
        let Some(found) = tail.turn(self.log.as_ref(), self.clock.steady())? else {
            self.stage = Stage::Resolving { writer, tail };
            return Ok(false);
        };
        let batch = self.batch.as_mut().expect("only a batch is resolved");
        let mut committed = 0;
        for (epoch, (last, end)) in batch.epochs.iter().zip(&found) {
            if is_in_log(epoch, last.as_ref(), self.slot)? {
                // Its end is as it was noted: what lies behind the record does not hold it.
                committed += 1;
            } else {
                self.changelog_ends.insert(epoch.record.region, Noted { end: *end, at: self.clock.steady() });
            }
        }
        let all = batch.epochs.len();
        assert!(committed == 0 || committed == all, "E-3: a transaction is torn: {committed} of {all} epochs are in the log");
        batch.in_doubt = false;
        self.stage = if committed > 0 {
            batch.refusal = None;
            Stage::Publishing { writer }
        } else {
            metrics::counter!("streamshield_transactions_aborted_total").increment(1);
            Stage::Ready { writer }
        };
        Ok(true)
    }

    /// One transaction with the next batch, or with the next part of one that was cut.
    fn attempt(&mut self, mut writer: Box<dyn TransactionalWriter>) -> Result<bool, Trouble> {
        if self.batch.is_none() {
            match self.sealed.try_recv() {
                Ok(epochs) => self.batch = Some(self.begin_batch(epochs)),
                Err(TryRecvError::Empty) => {
                    self.stage = Stage::Ready { writer };
                    return Ok(false);
                }
                Err(TryRecvError::Disconnected) => {
                    self.stage = Stage::Ended;
                    return Ok(false);
                }
            }
        }
        let began = self.clock.steady();
        self.cut();
        self.note_ends()?;
        let noted = self.clock.steady();
        self.prepare()?;
        let batch = self.batch.as_mut().expect("taken above");
        if batch.epochs.is_empty() {
            self.stage = Stage::Ready { writer };
            self.go_on();
            return Ok(true);
        }
        fail_point!("engine::before_begin");
        writer.begin()?;
        let sending = send_all(writer.as_mut(), &batch.epochs, &mut self.notes);
        self.notes.nothing();
        if let Err(error) = sending {
            writer.abort();
            metrics::counter!("streamshield_transactions_aborted_total").increment(1);
            if error.kind == LogErrorKind::Invalid {
                self.refused(error.message);
                return Ok(true);
            }
            return Err(error.into());
        }
        fail_point!("engine::after_produce");
        fail_point!("engine::before_commit");
        batch.in_doubt = true;
        let sent = self.clock.steady();
        let mut outcome = writer.commit();
        let committed = self.clock.steady();
        let ms = |from: Duration, to: Duration| to.saturating_sub(from).as_millis() as u64;
        tracing::debug!(slot = %self.slot, epochs = batch.epochs.len(), waited_ms = ms(batch.since, began), noted_ms = ms(began, noted), sent_ms = ms(noted, sent), committed_ms = ms(sent, committed), "transaction");
        if mutants::is_on("ignore-fenced") && matches!(outcome, CommitOutcome::Fenced(_)) {
            outcome = CommitOutcome::Committed;
        }
        match outcome {
            CommitOutcome::Committed => {
                batch.in_doubt = false;
                self.stage = Stage::Publishing { writer };
                Ok(true)
            }
            CommitOutcome::InDoubt(why) => {
                metrics::counter!("streamshield_commits_in_doubt_total").increment(1);
                Err(Trouble::Away(format!("a commit is in doubt: {why}")))
            }
            CommitOutcome::Aborted(why) => Err(Trouble::Away(format!("a transaction was aborted: {why}"))),
            CommitOutcome::Refused(why) => {
                self.refused(why);
                Ok(true)
            }
            CommitOutcome::Fenced(why) => Err(Trouble::Away(format!("the producer was fenced: {why}"))),
        }
    }

    /// A new batch, without what continues epochs that were given up: it was sealed before the slot heard of that.
    fn begin_batch(&self, sealed: Vec<SealedEpoch>) -> Batch {
        let (mut epochs, mut refused) = (Vec::with_capacity(sealed.len()), Vec::new());
        for epoch in sealed {
            match self.given_up.get(&epoch.record.region) {
                Some((assignment, reason)) if *assignment == epoch.assignment => refused.push(refusal_of(&epoch, reason.clone())),
                _ => epochs.push(epoch),
            }
        }
        let since = self.clock.steady();
        Batch { epochs, apart: VecDeque::new(), committed: Vec::new(), refused, since, in_doubt: false, refusal: None }
    }

    /// The transaction was refused for what it holds. No EndTxn for a commit was sent; the next producer's start ends what its abort did not.
    fn refused(&mut self, why: String) {
        let batch = self.batch.as_mut().expect("a batch is under way");
        if batch.epochs.len() > 1 {
            let epochs = batch.epochs.len();
            tracing::warn!(slot = %self.slot, epochs, reason = why, "the log refuses a transaction; each of its epochs is tried alone");
        }
        batch.refusal = Some(why);
        self.stage = Stage::NoProducer;
        // That is an answer.
        self.progress.resume(Waiting::Commit(self.slot.slot));
    }

    /// After a refusal, whose transaction is known to be aborted by now.
    fn cut(&mut self) {
        let batch = self.batch.as_mut().expect("a batch is under way");
        let Some(why) = batch.refusal.take() else { return };
        if batch.epochs.len() > 1 {
            batch.apart.extend(batch.epochs.drain(1..));
            return;
        }
        let hint = "mend what its topic takes (max.message.bytes, message.timestamp.*.max.ms, cleanup.policy) or this machine's clock";
        self.give_up(0, format!("an epoch can't be written: {why}; {hint}"));
    }

    /// Sinks outside of the log get ready. A region whose sink never will be is given up; nothing of its epoch was sent.
    fn prepare(&mut self) -> Result<(), Trouble> {
        let batch = self.batch.as_mut().expect("a batch is under way");
        let mut refused = Vec::new();
        for (at, epoch) in batch.epochs.iter_mut().enumerate() {
            let Some(SinkContent::External(content)) = &mut epoch.sink else { continue };
            match content.prepare(epoch.record.incarnation) {
                Ok(()) => {}
                Err(error) if error.retry => return Err(Trouble::Away(error.message)),
                Err(error) => refused.push((at, error.message)),
            }
        }
        for (at, message) in refused.into_iter().rev() {
            self.give_up(at, format!("a sink refuses to prepare an epoch: {message}"));
        }
        Ok(())
    }

    /// An epoch will never be in the log, so nothing that its region has sealed behind it may be (E-1).
    fn give_up(&mut self, at: usize, reason: String) {
        let batch = self.batch.as_mut().expect("a batch is under way");
        let epoch = batch.epochs.remove(at);
        self.given_up.insert(epoch.record.region, (epoch.assignment, reason.clone()));
        batch.refused.push(refusal_of(&epoch, reason));
    }

    /// The next part of a batch that was cut; after the last one the engine hears of all.
    fn go_on(&mut self) {
        let Some(mut batch) = self.batch.take() else { return };
        batch.epochs.extend(batch.apart.pop_front());
        if !batch.epochs.is_empty() {
            self.batch = Some(batch);
            return;
        }
        let spent = self.clock.steady().saturating_sub(batch.since);
        metrics::histogram!("streamshield_commit_duration_seconds").record(spent.as_secs_f64());
        self.progress.resume(Waiting::Commit(self.slot.slot));
        let Batch { committed, refused, .. } = batch;
        self.tell(CommitNews::Settled { committed, refused });
    }

    /// Where the changelogs end before a flush is written, and now and then: the records of the batch lie at or behind that. Of a region that has
    /// just come it is known: what its nursery has read up to.
    fn note_ends(&mut self) -> Result<(), LogError> {
        let (batch, now) = (self.batch.as_ref().expect("a batch is under way"), self.clock.steady());
        let is_fresh = |noted: &Noted| now.saturating_sub(noted.at) < NOTED_TIME_MAX;
        let mut asked = Vec::new();
        for epoch in &batch.epochs {
            let region = epoch.record.region;
            let noted = self.changelog_ends.entry(region).or_insert(Noted { end: epoch.changelog_from, at: now });
            if noted.end < epoch.changelog_from {
                *noted = Noted { end: epoch.changelog_from, at: now };
            }
            if epoch.flush.is_some() || !is_fresh(&self.changelog_ends[&region]) {
                asked.push((region, epoch.changelog.clone()));
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        let partitions: Vec<_> = asked.iter().map(|(_, partition)| partition.clone()).collect();
        let ends = self.log.ends(&partitions, Isolation::ReadUncommitted)?;
        self.changelog_ends.extend(asked.into_iter().zip(ends).map(|((region, _), end)| (region, Noted { end, at: now })));
        Ok(())
    }

    /// After the commit: sinks outside of the log make their rows visible, and the engine hears of it.
    fn publish(&mut self, writer: Box<dyn TransactionalWriter>) -> Result<bool, Trouble> {
        let batch = self.batch.as_mut().expect("a committed batch is published");
        for epoch in &mut batch.epochs {
            let Some(SinkContent::External(content)) = &mut epoch.sink else { continue };
            match content.waits_for_a_reader() {
                true => self.shared.helper_waits(Helper::Committer, self.slot.slot),
                false => self.shared.helper_lives(Helper::Committer, self.slot.slot, self.clock.steady()),
            }
            if let Err(error) = content.publish() {
                if !error.retry || self.shared.stopping.load(Ordering::SeqCst) {
                    let hint = "restart the job: it publishes what is committed".to_string();
                    return Err(Trouble::failed(format!("a sink refuses to publish a committed epoch: {error}"), Some(hint)));
                }
                self.stage = Stage::Publishing { writer };
                self.rest();
                return Ok(false);
            }
        }
        self.progress.resume(Waiting::Commit(self.slot.slot));
        let epochs = std::mem::take(&mut batch.epochs);
        fail_point!("engine::after_commit");
        let committed: Vec<_> = epochs.into_iter().map(|epoch| self.count(epoch)).collect();
        self.batch.as_mut().expect("there until here").committed.extend(committed);
        self.pause = RETRY_PAUSE_MIN;
        self.stage = Stage::Ready { writer };
        self.go_on();
        Ok(true)
    }

    fn count(&self, epoch: SealedEpoch) -> CommittedEpoch {
        let region = epoch.record.region;
        self.progress.committed(region, epoch.record.epoch.0, epoch.record.watermark, &epoch.counts);
        let changelog_from = self.changelog_ends.get(&region).map_or(0, |noted| noted.end);
        CommittedEpoch { record: epoch.record, flush: epoch.flush, changelog_from }
    }

    fn tell(&mut self, news: CommitNews) {
        if self.news.send(news).is_err() {
            self.stage = Stage::Ended;
        }
        self.slot_wakeup.raise();
    }

    fn rest(&mut self) {
        self.resume_at = self.clock.steady() + self.pause;
        self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
    }

    /// The log is away, or the outcome is open: drop the producer (which also ends its connection before the next one fences it) and try again.
    fn away(&mut self, why: &str, since: Duration) {
        self.progress.pause(Waiting::Commit(self.slot.slot), why, self.clock.steady().saturating_sub(since));
        tracing::debug!(why, "the log does not answer yet");
        self.rest();
    }
}

impl Actor for Committer {
    fn turn(&mut self) -> Turn {
        if self.shared.over.load(Ordering::SeqCst) {
            return Turn::Ended(JobOutcome::Stopped);
        }
        let now = self.clock.steady();
        self.shared.helper_lives(Helper::Committer, self.slot.slot, now);
        if now < self.resume_at {
            return Turn::Idle(self.resume_at - now);
        }
        match self.step() {
            Ok(true) => Turn::Again,
            Ok(false) if matches!(self.stage, Stage::Ended) => Turn::Ended(JobOutcome::Stopped),
            Ok(false) => Turn::Idle(if matches!(self.stage, Stage::Resolving { .. }) { RETRY_PAUSE_MIN / 4 } else { IDLE }),
            Err(Trouble::Away(why)) => {
                self.away(&why, now);
                Turn::Again
            }
            Err(Trouble::Ended(outcome)) => {
                self.stage = Stage::Ended;
                self.tell(CommitNews::Ended(outcome.clone()));
                Turn::Ended(outcome)
            }
        }
    }
}

fn refusal_of(epoch: &SealedEpoch, reason: String) -> RefusedEpoch {
    RefusedEpoch { region: epoch.record.region, assignment: epoch.assignment, epoch: epoch.epoch(), reason }
}

/// Whether this epoch is in the log, whose last record is `last`.
fn is_in_log(epoch: &SealedEpoch, last: Option<&EpochRecord>, slot: SlotId) -> Result<bool, Trouble> {
    let Some(last) = last else { return Ok(false) };
    let region = epoch.record.region;
    if last.epoch >= epoch.epoch() && last.incarnation != slot.incarnation {
        let by = last.incarnation.0;
        return Err(Trouble::Ended(JobOutcome::Expired(format!("{region} has an epoch of a newer owner (incarnation {by})"))));
    }
    assert!(last.epoch <= epoch.epoch(), "E-1: {region} has a later epoch in the log than was sealed");
    Ok(last.epoch == epoch.epoch())
}

enum Trouble {
    /// Try again, with a new producer.
    Away(String),
    Ended(JobOutcome),
}

impl Trouble {
    fn failed(message: String, hint: Option<String>) -> Trouble {
        Trouble::Ended(JobOutcome::Failed(EngineError { message, hint }))
    }
}

impl From<LogError> for Trouble {
    fn from(error: LogError) -> Self {
        match error.kind {
            // Missing: the job's topics were there when it started; a busy client may not know of one at the moment.
            LogErrorKind::Retry | LogErrorKind::Fenced | LogErrorKind::Missing => Trouble::Away(error.message),
            _ => Trouble::failed(format!("an epoch can't be written, or its outcome not read: {error}"), None),
        }
    }
}

//! Follows a region's changelog: brings state to the last committed epoch, and keeps it there.
//!
//! ```text
//! base (empty · local store · checkpoint) ─► epoch e₀+1 … from the changelog ─► state of the last committed epoch
//!                                              │ the record ships a delta: write it to the store, past the tables
//!                                              └ else: run its steps on the same input bytes, muted
//! ```
//! The one mechanism behind restart, recovery, replica (Tier 1) and standby (Tier 2): they differ in where they begin and in when they
//! stop. What a record ships decides how it is applied, so a job may change its tier between two epochs.
//!
//! Every digest on the way is compared (E-4); every record must continue the one before (E-1, E-2); a local base must be proven by the record of its
//! epoch in this changelog. Regions without state run no steps: where they stand is in the last record.
//!
//! On failure: see [`FollowError`]. A follower never guesses: what the log no longer holds has to come from a checkpoint.

use crate::changelog::{Item, item};
use crate::exchange::frame::Frame;
use crate::flight::Notes;
use crate::operators::{ChainOutput, EpochContext};
use crate::region::{Failure, Input, Region, RegionError, epoch_context};
use std::collections::VecDeque;
use std::time::Duration;
use streamshield_core::epoch::{DeltaHead, EpochRecord, Step};
use streamshield_core::ids::{Digest, Epoch, Offset};
use streamshield_core::mutants;
use streamshield_core::ports::log::{LogError, LogErrorKind, LogReader, TakeLimit};
use streamshield_core::ports::state::{StateError, StateErrorKind};
use streamshield_core::watermark::{UpstreamWatermark, Watermark, combine};

/// Records read ahead of the state, and their bytes (M-1).
const PENDING_RECORDS_MAX: usize = 1_024;
const PENDING_BYTES_MAX: usize = 16 << 20;
const TAKE: TakeLimit = TakeLimit { messages: 1_024, bytes: 8 << 20, end: None };
/// An input that gives nothing for this long during a replay: something is wrong with it.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Epochs applied in one turn.
const EPOCHS_PER_TURN: usize = 64;

/// Why a follower can't go on.
#[derive(Clone, Debug)]
pub enum FollowError {
    /// It failed, and may not the next time; an owned region that fails again and again is given back.
    Retry(String),
    /// It can't go on before something outside (the log, a store, a sink) is back: to wait for it is no failure.
    Waits(String),
    /// E-4: the state differs from the owner's.
    Diverged { epoch: Epoch, message: String },
    /// This state is of no use (too old for the log, a failing disk): rebuild it.
    Unusable(String),
    /// This region can't go on here, and without `retry` nowhere before people have helped (a foreign changelog). The other regions go on.
    Stopped(Failure),
    /// Nothing helps this worker but people: another plan's epochs, what lies here is of other topics.
    Refused { message: String, hint: String },
}

/// What the local store keeps beside the groups: the record of its epoch, and from where the changelog holds it and what came after.
pub fn encode_stored(changelog_from: Offset, record: &[u8]) -> Vec<u8> {
    [&changelog_from.to_be_bytes()[..], record].concat()
}

pub fn decode_stored(stored: &[u8]) -> Option<(Offset, EpochRecord)> {
    let (offset, record) = stored.split_first_chunk::<8>()?;
    Some((Offset::from_be_bytes(*offset), EpochRecord::decode(record).ok()?))
}

/// One region on its way to the end of its changelog.
pub struct Follower {
    pub region: Region,
    /// Of the changelog: the next message to take.
    position: Offset,
    /// The last take left nothing behind.
    at_end: bool,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    /// Chunks of the delta whose record has not come yet.
    delta: Vec<u8>,
    delta_chunks: u32,
    /// What the local store says of itself, until the changelog has confirmed it.
    unproven: Option<EpochRecord>,
    /// The record that the region stands at. None: there is none, or none has come since the region was with a slot here.
    pub last: Option<EpochRecord>,
    /// The last record lies at or behind this position of the changelog.
    last_offset: Offset,
    replay: Option<Replay>,
    reads_exchange: bool,
    heard: Duration,
    pub epochs_applied: u64,
}

struct Pending {
    offset: Offset,
    record: EpochRecord,
    delta: Option<Vec<u8>>,
}

/// An epoch whose steps are being run.
struct Replay {
    offset: Offset,
    record: EpochRecord,
    context: EpochContext,
    step: usize,
    frames: Vec<Frame>,
    muted: ChainOutput,
}

impl Follower {
    /// `region` is fresh, with its state opened; `base` is the record that the state belongs to; the changelog is read from `from` on.
    pub fn new(mut region: Region, base: Option<EpochRecord>, from: Offset, now: Duration) -> Follower {
        if let Some(base) = &base {
            adopt(&mut region, base);
        }
        Follower { unproven: base.clone(), last: base, ..Follower::at(region, from, now) }
    }

    /// A region without state whose changelog is empty; `restored`: it begins behind this epoch, which a changelog that is gone has proven.
    pub fn first(mut region: Region, restored: Option<EpochRecord>, now: Duration) -> Follower {
        if let Some(record) = &restored {
            adopt(&mut region, record);
        }
        Follower { last: restored, ..Follower::at(region, 0, now) }
    }

    /// A region that comes warm from a slot of this worker: its state is that of its last epoch, which it knows.
    pub fn resume(mut region: Region, changelog_end: Offset, now: Duration) -> Follower {
        (region.leaving, region.released_at) = (false, None);
        // Whoever had it meanwhile may have announced something else.
        region.announced = UpstreamWatermark::START;
        let (last, last_offset) = (region.last_committed.take(), region.changelog_from);
        Follower { last, last_offset, ..Follower::at(region, changelog_end, now) }
    }

    fn at(region: Region, position: Offset, now: Duration) -> Follower {
        Follower {
            region,
            position,
            at_end: false,
            pending: VecDeque::new(),
            pending_bytes: 0,
            delta: Vec::new(),
            delta_chunks: 0,
            unproven: None,
            last: None,
            last_offset: position,
            replay: None,
            reads_exchange: false,
            heard: now,
            epochs_applied: 0,
        }
    }

    /// Takes what is there of the changelog and applies some of it. True: something moved.
    pub fn turn(
        &mut self,
        changelog: &mut dyn LogReader,
        exchange: &mut dyn LogReader,
        notes: &mut Notes,
        now: Duration,
    ) -> Result<bool, FollowError> {
        let mut moved = self.take(changelog)?;
        for _ in 0..EPOCHS_PER_TURN {
            if !self.apply_next(exchange, notes, now)? {
                break;
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Everything before this position of the changelog has been applied.
    pub fn has_applied(&self, end: Offset) -> bool {
        self.position >= end && self.is_quiet()
    }

    /// Of the changelog: everything before this position was read, applied or not.
    pub fn read_up_to(&self) -> Offset {
        self.position
    }

    /// Stands at the committed end, as far as the last look went.
    pub fn is_caught_up(&self) -> bool {
        self.at_end && self.is_quiet()
    }

    /// Epochs that are known to be committed and not applied yet.
    pub fn epochs_behind(&self) -> u64 {
        let newest = self.pending.back().map(|pending| pending.record.epoch).or(self.replay.as_ref().map(|replay| replay.record.epoch));
        newest.map_or(0, |newest| newest.0.saturating_sub(self.region.epoch.0))
    }

    fn is_quiet(&self) -> bool {
        self.pending.is_empty() && self.replay.is_none()
    }

    /// Ends the following: the region is ready to take steps.
    pub fn finish(mut self, exchange: &mut dyn LogReader) -> Result<Region, FollowError> {
        if let Some(base) = &self.unproven {
            let (region, epoch, partition) = (base.region, base.epoch, &self.region.changelog);
            return Err(FollowError::Refused {
                message: format!("{region}: the local store is of epoch {epoch}, which {partition} does not hold"),
                hint: "was the changelog topic recreated, or is this another job's state_dir? Then delete it".into(),
            });
        }
        self.close(exchange);
        if self.region.has_tables {
            self.region.pending_emit = self.region.chain.has_closed(self.region.combined, self.region.state.as_mut());
        }
        Ok(self.region)
    }

    /// Stops reading inputs; the changelog is the caller's.
    pub fn close(&mut self, exchange: &mut dyn LogReader) {
        if let (true, Input::Exchange(input)) = (self.reads_exchange, &self.region.input)
            && let Err(error) = exchange.unassign(&input.partition)
        {
            tracing::debug!(partition = %input.partition, %error, "could not stop reading");
        }
        self.reads_exchange = false;
    }

    fn take(&mut self, changelog: &mut dyn LogReader) -> Result<bool, FollowError> {
        if self.pending.len() >= PENDING_RECORDS_MAX || self.pending_bytes >= PENDING_BYTES_MAX {
            self.at_end = false;
            return Ok(false);
        }
        let partition = self.region.changelog.clone();
        let mut foreign = None;
        let taken = changelog.take(&partition, &TAKE, &mut |messages| {
            for message in messages {
                match item(&partition, message) {
                    Ok(Item::DeltaChunk(bytes)) => {
                        self.delta.extend_from_slice(bytes);
                        self.delta_chunks += 1;
                    }
                    Ok(Item::Record(record)) => {
                        if let Err(error) = self.push(message.offset, *record) {
                            foreign = Some(error);
                        }
                    }
                    Err(error) => foreign = Some(not_ours(error)),
                }
            }
        });
        let taken = taken.map_err(FollowError::from)?;
        self.position = taken.next.max(taken.at_end.unwrap_or(taken.next)).max(self.position);
        self.at_end = taken.at_end.is_some();
        foreign.map_or(Ok(taken.messages > 0), Err)
    }

    fn push(&mut self, offset: Offset, record: EpochRecord) -> Result<(), FollowError> {
        let delta = match record.delta {
            None => None,
            Some(DeltaHead { chunks, bytes, .. }) if chunks == self.delta_chunks && bytes == self.delta.len() as u64 => {
                Some(std::mem::take(&mut self.delta))
            }
            // The reading began in the middle of a delta: it must be of an epoch that the base holds.
            Some(_) if self.region.epoch >= record.epoch => None,
            Some(head) => {
                return Err(FollowError::Unusable(format!(
                    "E-3: epoch {} of {} says {} delta messages with {} bytes, the log holds {} with {}",
                    record.epoch,
                    record.region,
                    head.chunks,
                    head.bytes,
                    self.delta_chunks,
                    self.delta.len()
                )));
            }
        };
        self.delta.clear();
        self.delta_chunks = 0;
        self.pending_bytes += delta.as_ref().map_or(0, Vec::len);
        if !self.region.has_tables && self.unproven.is_none() {
            // Only where it ends matters.
            self.pending.clear();
            self.pending_bytes = 0;
        }
        self.pending.push_back(Pending { offset, record, delta });
        Ok(())
    }

    /// Applies the next epoch, or a part of it. False: waits for the log.
    fn apply_next(&mut self, exchange: &mut dyn LogReader, notes: &mut Notes, now: Duration) -> Result<bool, FollowError> {
        if let Some(replay) = self.replay.take() {
            return self.run(replay, exchange, notes, now);
        }
        let Some(next) = self.pending.pop_front() else { return Ok(false) };
        self.pending_bytes -= next.delta.as_ref().map_or(0, Vec::len);
        if !self.is_next(&next.record)? {
            return Ok(true);
        }
        self.check_plan(&next.record)?;
        if !self.region.has_tables || next.record.epoch == Epoch::GENESIS {
            adopt(&mut self.region, &next.record);
            self.applied(next.record, next.offset);
            return Ok(true);
        }
        notes.at(self.region.place());
        match next.delta {
            Some(delta) => self.apply_delta(next.offset, next.record, &delta).map(|()| true),
            None => {
                let context = epoch_context(self.region.id, next.record.epoch, next.record.now_ms);
                let muted = ChainOutput::default();
                let replay = Replay { offset: next.offset, record: next.record, context, step: 0, frames: Vec::new(), muted };
                self.heard = now;
                self.run(replay, exchange, notes, now)
            }
        }
    }

    /// Whether this record is the next to apply; one that the state already holds is not, and proves the base.
    fn is_next(&mut self, record: &EpochRecord) -> Result<bool, FollowError> {
        if let Some(base) = &self.unproven
            && record.epoch >= base.epoch
        {
            if record != base {
                let (region, epoch, partition) = (base.region, base.epoch, &self.region.changelog);
                return Err(FollowError::Refused {
                    message: format!("{region}: the local store is of an epoch {epoch} that {partition} does not hold"),
                    hint: "was the changelog topic recreated, or is this another job's state_dir? Then delete it".into(),
                });
            }
            self.unproven = None;
        }
        if record.epoch <= self.region.epoch && self.region.epoch.0 > 0 {
            return Ok(false);
        }
        let check = match &self.last {
            Some(last) => last.check_successor(record),
            None if self.region.epoch.0 > 0 && record.epoch == self.region.epoch.next() => Ok(()),
            None if record.epoch == Epoch::GENESIS || !self.region.has_tables => Ok(()),
            None => Err(format!("E-1: {} goes on with epoch {} after epoch {}", record.region, record.epoch, self.region.epoch)),
        };
        // A region without state is followed from somewhere in its changelog, and only the last record of a batch is looked at.
        match check {
            Err(message) if self.region.has_tables => Err(FollowError::Unusable(message)),
            _ => Ok(true),
        }
    }

    fn check_plan(&self, record: &EpochRecord) -> Result<(), FollowError> {
        check_plan(&self.region, record)
    }

    fn applied(&mut self, record: EpochRecord, offset: Offset) {
        self.region.epoch = record.epoch;
        self.last_offset = offset;
        self.epochs_applied += 1;
        self.last = Some(record);
    }

    fn apply_delta(&mut self, offset: Offset, record: EpochRecord, delta: &[u8]) -> Result<(), FollowError> {
        if !self.region.state.is_clean() {
            // Epochs before this one were replayed into the tables.
            let Some(last) = &self.last else {
                return Err(FollowError::Retry(format!("{}: what was replayed can't be flushed without its record", record.region)));
            };
            let flush = self.region.state.seal_flush()?;
            self.region.state.apply_flush(flush, &encode_stored(self.last_offset, &last.encode()))?;
        }
        let digest = self.region.state.apply_delta(delta, &encode_stored(offset, &record.encode()))?;
        compare(record.epoch, "delta", digest, record.delta.map(|head| head.digest).unwrap_or_default())?;
        adopt(&mut self.region, &record);
        self.applied(record, offset);
        Ok(())
    }

    /// Runs the steps of one epoch, muted, as far as the input is there.
    fn run(&mut self, mut replay: Replay, exchange: &mut dyn LogReader, notes: &mut Notes, now: Duration) -> Result<bool, FollowError> {
        notes.at(self.region.place());
        let mut moved = false;
        while let Some(step) = replay.record.steps.get(replay.step) {
            match step {
                Step::Read { to, .. } => {
                    if !self.read(*to, &mut replay.frames, exchange, notes, now)? {
                        if now.saturating_sub(self.heard) > SILENCE_MAX {
                            return Err(FollowError::Unusable(format!("the input gives nothing up to offset {to}")));
                        }
                        self.replay = Some(replay);
                        return Ok(moved);
                    }
                    let frames = whole(std::mem::take(&mut replay.frames));
                    self.region.apply_frames(frames, &mut replay.context, &mut replay.muted)?;
                }
                Step::Emit => self.region.emit(&mut replay.context, &mut replay.muted)?,
                Step::Tick => {}
            }
            replay.muted.batches.clear();
            replay.step += 1;
            moved = true;
        }
        self.end_replay(replay)?;
        Ok(true)
    }

    /// Takes the messages before `to`. True: all are there.
    fn read(
        &mut self,
        to: Offset,
        frames: &mut Vec<Frame>,
        exchange: &mut dyn LogReader,
        notes: &mut Notes,
        now: Duration,
    ) -> Result<bool, FollowError> {
        let Input::Exchange(input) = &self.region.input else {
            return Err(FollowError::Unusable(format!("{}: a stage with state reads a source directly", self.region.id)));
        };
        if !self.reads_exchange {
            exchange.assign(&input.partition, self.region.position)?;
            self.reads_exchange = true;
        }
        let limit = TakeLimit { messages: usize::MAX, bytes: usize::MAX, end: Some(to) };
        while self.region.position < to {
            match self.region.take_frames(exchange, &limit, notes) {
                Ok(Some(taken)) => {
                    self.region.position = taken.next;
                    frames.extend(taken.frames);
                    self.heard = now;
                }
                Ok(None) | Err(RegionError::Retry(_)) => return Ok(false),
                Err(RegionError::Stop(message) | RegionError::Failed(message)) => return Err(FollowError::Unusable(message)),
            }
        }
        Ok(true)
    }

    fn end_replay(&mut self, mut replay: Replay) -> Result<(), FollowError> {
        let region = &mut self.region;
        region.chain.seal(&mut replay.context, region.state.as_mut(), &mut replay.muted).map_err(RegionError::from)?;
        let record = replay.record;
        region.now_ms = record.now_ms;
        region.finished = record.finished;
        if region.upstreams != record.upstreams || region.output_watermark != record.watermark {
            let message = format!("the watermark is {}, the record's {}", region.output_watermark, record.watermark);
            return Err(FollowError::Diverged { epoch: record.epoch, message });
        }
        if let Some(expected) = record.digest {
            let flush = region.state.seal_flush()?;
            let digest = flush.digest;
            fail::fail_point!("engine::diverge", |_| {
                let message = "fail point engine::diverge".to_string();
                Err(FollowError::Diverged { epoch: record.epoch, message })
            });
            compare(record.epoch, "state", digest, expected)?;
            region.state.apply_flush(flush, &encode_stored(replay.offset, &record.encode()))?;
            if region.state.bytes().total > region.settings.state_bytes_max {
                region.state.evict(region.settings.state_bytes_max / 2)?;
            }
        }
        self.applied(record, replay.offset);
        Ok(())
    }
}

/// E-4: what was computed here is what the owner has.
fn compare(epoch: Epoch, what: &str, digest: Digest, expected: Digest) -> Result<(), FollowError> {
    if mutants::is_on("digest-not-compared") {
        return Ok(());
    }
    metrics::counter!("streamshield_follower_digests_compared_total").increment(1);
    if digest == expected {
        return Ok(());
    }
    Err(FollowError::Diverged { epoch, message: format!("the {what}'s digest is {digest}, the record's {expected}") })
}

/// As they were read; or without their rows, at the fail point that spoils a replica's state.
fn whole(mut frames: Vec<Frame>) -> Vec<Frame> {
    let is_spoilt = || {
        fail::fail_point!("engine::lose_rows", |_| true);
        false
    };
    if frames.iter().any(|frame| frame.rows.is_some()) && is_spoilt() {
        tracing::warn!("fail point engine::lose_rows: a replica leaves out the rows of a step");
        frames.iter_mut().for_each(|frame| frame.rows = None);
    }
    frames
}

pub fn check_plan(region: &Region, record: &EpochRecord) -> Result<(), FollowError> {
    if record.plan == region.settings.plan {
        return Ok(());
    }
    Err(FollowError::Refused {
        message: format!(
            "the job's plan has changed: its epochs were written by plan {}, this is plan {}",
            record.plan, region.settings.plan
        ),
        hint: "give the changed job another name, or go back to the SQL that wrote this state".into(),
    })
}

/// Takes positions and watermarks from a record.
fn adopt(region: &mut Region, record: &EpochRecord) {
    region.epoch = record.epoch;
    region.now_ms = record.now_ms;
    region.position = record.positions.first().copied().unwrap_or(region.position);
    region.upstreams.clone_from(&record.upstreams);
    region.combined = combine(record.upstreams.iter().copied());
    region.output_watermark = record.watermark;
    region.finished = record.finished;
    if let Input::Source(source) = &mut region.input {
        source.finished = record.upstreams.first().is_some_and(|upstream| upstream.watermark == Watermark::MAX);
    }
}

fn not_ours(error: LogError) -> FollowError {
    let reason = format!("{}: the changelog topic was changed by somebody else; the job does not guess", error.message);
    FollowError::Stopped(Failure::new(&reason, false))
}

impl From<LogError> for FollowError {
    fn from(error: LogError) -> Self {
        match error.kind {
            // The job's topics were there when it started: a client that does not know of one has old or half-fetched metadata, as on a busy broker.
            LogErrorKind::Retry | LogErrorKind::Fenced | LogErrorKind::Missing => FollowError::Waits(error.message),
            LogErrorKind::OutOfRange => FollowError::Unusable(error.message),
            // Damaged here, or on the way: elsewhere it may be read.
            LogErrorKind::Invalid => FollowError::Stopped(Failure::new(&error.message, true)),
            // Of the client, and so of this worker.
            LogErrorKind::Fatal => FollowError::Refused {
                message: error.message,
                hint: "mend what the message names (access, credentials, the broker's address) and start the worker again".into(),
            },
        }
    }
}

impl From<StateError> for FollowError {
    fn from(error: StateError) -> Self {
        match error.kind {
            // Among others: a checkpoint of the region's earlier life in this process still holds the store.
            StateErrorKind::Internal => FollowError::Retry(error.message),
            StateErrorKind::Damaged | StateErrorKind::Io => FollowError::Unusable(error.message),
        }
    }
}

impl From<RegionError> for FollowError {
    fn from(error: RegionError) -> Self {
        match error {
            RegionError::Retry(message) => FollowError::Waits(message),
            RegionError::Stop(message) | RegionError::Failed(message) => FollowError::Unusable(message),
        }
    }
}

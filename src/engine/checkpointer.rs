//! Region checkpoints, beside the engine and never in its way.
//!
//! ```text
//! slot: a flush was applied, the interval is over ─► job {copier, record} ─► checkpointer: copy (hard links) → upload → manifest (K-1)
//!                                                                              → `checkpoint_done` in the control log, read back
//!                                                                              → still the owner? if it is remote, trim what no retained
//!                                                                                checkpoint needs (K-2); upkeep
//! ```
//! Each region alone, at an epoch of its own: there is no barrier. The interval is jittered per region, so that a job's regions don't
//! upload all at once.
//!
//! On failure: the region works on; the next interval tries again. A store that is away is the checkpoint store's matter (local fallback).

use crate::clock::Clock;
use crate::follower::decode_stored;
use crate::membership::Membership;
use crate::progress::Progress;
use crate::region::{Input, Region};
use crate::runtime::{JobOutcome, Shared};
use crate::turn::{Actor, Turn};
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use streamshield_core::cluster::{ControlRecord, SlotId};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, Offset, RegionId};
use streamshield_core::mutants;
use streamshield_core::ports::checkpoint::{CheckpointRequest, CheckpointStore, Durability};
use streamshield_core::ports::log::{Isolation, Log, TopicPartition, Wakeup};
use streamshield_core::ports::state::StoreCopier;

const IDLE: Duration = Duration::from_millis(200);
/// Checkpoints that wait for their turn (M-1); the regions behind them are asked again later.
pub const CHECKPOINT_JOBS_MAX: usize = 256;
const QUEUE_FULL_PAUSE: Duration = Duration::from_secs(1);
/// How long a record may take to be read back before the upkeep is left for the next time.
const READ_BACK_TIME_MAX: Duration = Duration::from_secs(10);

/// The slot may ask for the region's next checkpoint.
pub struct CheckpointNews {
    pub region: RegionId,
    /// It is in the store, and all that follows from that is done; else the same state is to be offered again, even if nothing comes to it.
    pub is_done: bool,
}

/// One checkpoint to be made.
pub struct CheckpointJob {
    region: RegionId,
    slot: SlotId,
    assignment: Offset,
    /// None once it was taken: the store of a region may be opened anew only when nobody else holds it.
    content: Option<Content>,
    changelog: TopicPartition,
    input: Option<TopicPartition>,
    news: Sender<CheckpointNews>,
    news_wakeup: Arc<Wakeup>,
}

enum Content {
    Store(Box<dyn StoreCopier>),
    Record { record: Box<EpochRecord>, changelog_from: Offset },
}

/// A slot's side: which region is due.
pub struct Checkpoints {
    interval: Option<Duration>,
    slot: SlotId,
    jobs: Sender<CheckpointJob>,
    news: Sender<CheckpointNews>,
    news_wakeup: Arc<Wakeup>,
    wakeup: Arc<Wakeup>,
    due: BTreeMap<RegionId, Due>,
    made: u64,
}

/// A region's next checkpoint.
struct Due {
    /// Steady time; none while one is under way.
    at: Option<Duration>,
    /// Of the last one that was asked for: a region that stands still needs no second one.
    epoch: Option<Epoch>,
}

impl Checkpoints {
    /// `interval` None: no checkpoints.
    pub fn new(
        interval: Option<Duration>,
        slot: SlotId,
        jobs: Sender<CheckpointJob>,
        news: Sender<CheckpointNews>,
        news_wakeup: Arc<Wakeup>,
        wakeup: Arc<Wakeup>,
    ) -> Checkpoints {
        Checkpoints { interval, slot, jobs, news, news_wakeup, wakeup, due: BTreeMap::new(), made: 0 }
    }

    /// Asks for a checkpoint of the region if one is due and there is something new to keep.
    pub fn offer(&mut self, region: &Region, now: Duration) {
        let Some(interval) = self.interval else { return };
        let first = now + interval.mul_f64(jitter(region.id, self.made) * 0.5);
        let due = self.due.entry(region.id).or_insert(Due { at: Some(first), epoch: None });
        let newest = if region.has_tables { region.flushed_epoch } else { region.last_committed.as_ref().map(|record| record.epoch) };
        if due.at.is_none_or(|at| now < at) || newest.is_none() || newest == due.epoch {
            return;
        }
        let content = match region.has_tables {
            true => region.state.copier().map(Content::Store),
            false => region
                .last_committed
                .clone()
                .map(|record| Content::Record { record: Box::new(record), changelog_from: region.changelog_from }),
        };
        let Some(content) = content else { return };
        *due = Due { at: None, epoch: newest };
        let input = match &region.input {
            Input::Exchange(exchange) => Some(exchange.partition.clone()),
            Input::Source(_) => None,
        };
        let job = CheckpointJob {
            region: region.id,
            slot: self.slot,
            assignment: region.assignment,
            content: Some(content),
            changelog: region.changelog.clone(),
            input,
            news: self.news.clone(),
            news_wakeup: self.news_wakeup.clone(),
        };
        if self.jobs.try_send(job).is_err() {
            *self.due.entry(region.id).or_insert(Due { at: None, epoch: None }) = Due { at: Some(now + QUEUE_FULL_PAUSE), epoch: None };
        }
        self.wakeup.raise();
    }

    /// The region's checkpoint is over, well or not.
    pub fn done(&mut self, CheckpointNews { region, is_done }: CheckpointNews, now: Duration) {
        let Some(interval) = self.interval else { return };
        self.made += 1;
        let next = now + interval.mul_f64(jitter(region, self.made));
        let due = self.due.entry(region).or_insert(Due { at: None, epoch: None });
        *due = Due { at: Some(next), epoch: due.epoch.filter(|_| is_done) };
    }
}

/// From 0.75 to 1.25, spread over regions and times.
fn jitter(region: RegionId, made: u64) -> f64 {
    let mut name = [0u8; 16];
    name[..4].copy_from_slice(&region.stage.0.to_le_bytes());
    name[4..8].copy_from_slice(&region.partition.to_le_bytes());
    name[8..].copy_from_slice(&made.to_le_bytes());
    0.75 + (xxhash_rust::xxh3::xxh3_64(&name) % 1_000) as f64 / 2_000.0
}

/// The worker's side: one checkpoint after the other.
pub struct Checkpointer {
    pub log: Arc<dyn Log>,
    pub membership: Arc<Membership>,
    pub store: Arc<dyn CheckpointStore>,
    pub scratch: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub jobs: Receiver<CheckpointJob>,
    pub progress: Arc<Progress>,
    pub shared: Arc<Shared>,
    pub upkeep: Option<Upkeep>,
    pub copies: u64,
}

/// A saved checkpoint whose control record is to be read back before anything is deleted.
pub struct Upkeep {
    job: CheckpointJob,
    is_remote: bool,
    offset: Offset,
    since: Duration,
}

impl Actor for Checkpointer {
    fn turn(&mut self) -> Turn {
        if self.shared.stopping.load(Ordering::SeqCst) {
            return Turn::Ended(JobOutcome::Stopped);
        }
        if let Some(upkeep) = self.upkeep.take() {
            return self.keep_up(upkeep);
        }
        match self.jobs.try_recv() {
            Ok(job) => {
                self.save(job);
                Turn::Again
            }
            Err(TryRecvError::Empty) => Turn::Idle(IDLE),
            Err(TryRecvError::Disconnected) => Turn::Ended(JobOutcome::Stopped),
        }
    }
}

impl Checkpointer {
    fn save(&mut self, mut job: CheckpointJob) {
        self.copies += 1;
        let directory = self.scratch.join(format!("checkpoint-{}-{}-{}", job.region.stage, job.region.partition, self.copies));
        let saved = self.request(&mut job, &directory).and_then(|request| match request {
            Some(request) => self.store.save(&request).map(|saved| Some((request, saved))).map_err(|error| error.message),
            None => Ok(None),
        });
        if let Err(error) = std::fs::remove_dir_all(&directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "could not delete a copy that a checkpoint was made from");
        }
        match saved {
            Err(reason) => {
                metrics::counter!("streamshield_checkpoints_failed_total").increment(1);
                tracing::warn!(region = %job.region, reason, "a checkpoint failed; the region goes on, the next one comes in due time");
                self.end(job, false);
            }
            Ok(None) => self.end(job, true),
            Ok(Some((request, saved))) => {
                tracing::debug!(region = %job.region, epoch = request.epoch.0, bytes = saved.bytes, uploaded = saved.bytes_uploaded, seconds = saved.seconds, durability = ?saved.durability, "checkpoint");
                self.progress.checkpointed(job.region, request.epoch.0, saved.durability, self.clock.wall_ms());
                let record = ControlRecord::CheckpointDone {
                    incarnation: self.membership.incarnation,
                    region: job.region,
                    epoch: request.epoch,
                    durability: saved.durability,
                };
                let is_remote = saved.durability == Durability::Remote;
                match self.membership.append(&record) {
                    Ok(offset) => self.upkeep = Some(Upkeep { job, is_remote, offset, since: self.clock.steady() }),
                    Err(_) => self.end(job, false),
                }
            }
        }
    }

    /// What to save; None when nothing was ever written to the store. From the copy on nothing here holds the region's store, however long the upload takes.
    fn request(&self, job: &mut CheckpointJob, directory: &std::path::Path) -> Result<Option<CheckpointRequest>, String> {
        let Some(content) = job.content.take() else { return Ok(None) };
        let (record, changelog_from, directory) = match content {
            Content::Record { record, changelog_from } => (*record, changelog_from, None),
            Content::Store(copier) => {
                let stored = copier.copy_to(directory).map_err(|error| error.message)?;
                let Some(stored) = stored else { return Ok(None) };
                let (from, record) = decode_stored(&stored).ok_or("the copy's epoch record can't be read")?;
                (record, from, Some(directory.to_path_buf()))
            }
        };
        Ok(Some(CheckpointRequest {
            region: job.region,
            epoch: record.epoch,
            incarnation: self.membership.incarnation,
            plan: record.plan,
            positions: record.positions.clone(),
            watermark: record.watermark,
            changelog_from,
            digest: record.digest,
            record: record.encode(),
            directory,
        }))
    }

    fn keep_up(&mut self, upkeep: Upkeep) -> Turn {
        if !self.membership.has_read(upkeep.offset) {
            if self.clock.steady().saturating_sub(upkeep.since) > READ_BACK_TIME_MAX {
                self.end(upkeep.job, false);
                return Turn::Again;
            }
            self.upkeep = Some(upkeep);
            return Turn::Idle(IDLE);
        }
        let Upkeep { job, is_remote, .. } = upkeep;
        let mut is_done = is_remote;
        if self.owns(&job) {
            // A local one moves nothing, and with the store away the list would only hold up the checkpoints of other regions.
            if is_remote && let Err(reason) = self.trim(&job) {
                is_done = false;
                tracing::warn!(region = %job.region, reason, "could not trim what checkpoints cover, the next one tries again");
            }
            let mut still_owner = || self.owns(&job);
            if let Err(error) = self.store.maintain(job.region, &mut still_owner) {
                is_done = false;
                tracing::warn!(region = %job.region, %error, "upkeep of checkpoints failed, the next one tries again");
            }
        }
        self.end(job, is_done);
        Turn::Again
    }

    fn owns(&self, job: &CheckpointJob) -> bool {
        self.membership.view(|cluster| {
            cluster
                .region(job.region)
                .and_then(|region| region.owner.as_ref())
                .is_some_and(|owner| owner.slot == job.slot && owner.assignment == job.assignment)
        })
    }

    /// K-2: only behind the oldest checkpoint that is remote.
    fn trim(&self, job: &CheckpointJob) -> Result<(), String> {
        if mutants::is_on("purge-early") {
            let end = self.log.bounds(&job.changelog, Isolation::ReadCommitted).map_err(|error| error.message)?.high;
            return self.log.trim(&[(job.changelog.clone(), end)]).map_err(|error| error.message);
        }
        let known = self.store.list(job.region).map_err(|error| error.message)?;
        // Not the oldest one's: of two of one epoch, the first may begin later.
        let remote = || known.iter().filter(|info| info.durability == Durability::Remote);
        let Some(changelog_from) = remote().map(|info| info.changelog_from).min() else { return Ok(()) };
        let mut before = vec![(job.changelog.clone(), changelog_from)];
        if let (Some(input), Some(position)) = (&job.input, remote().filter_map(|info| info.positions.first().copied()).min()) {
            before.push((input.clone(), position));
        }
        self.log.trim(&before).map_err(|error| error.message)
    }

    fn end(&self, job: CheckpointJob, is_done: bool) {
        let _ = job.news.send(CheckpointNews { region: job.region, is_done });
        job.news_wakeup.raise();
    }
}

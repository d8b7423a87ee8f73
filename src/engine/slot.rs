//! A slot: one engine thread with many regions, and its commit thread.
//!
//! ```text
//! loop: news of commits → one step per region → seal what is due → sleep when nothing moved
//! ```
//! All waiting has a bound with a name: sealed batches ([`crate::commit::SEALED_AHEAD_MAX`]), open epochs
//! ([`crate::region::OPEN_EPOCH_BYTES_MAX`]), state (the budget), fetch buffers (the reader's options).
//!
//! On failure: a region that errs or panics stops alone; the slot and its other regions go on.

use crate::commit::{CommitNews, CommittedEpoch, SEALED_AHEAD_MAX};
use crate::content::SealedEpoch;
use crate::progress::Progress;
use crate::recovery::encode_stored;
use crate::region::{Input, Region, RegionError};
use crate::runtime::{EngineError, JobOutcome};
use crossbeam_channel::{Receiver, Sender};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use streamshield_core::ids::{Offset, StageId};
use streamshield_core::ports::log::{Log, LogReader, TopicPartition, Wakeup};
use streamshield_core::ports::source::SourceReader;

/// Longest sleep of an idle slot; ticks (idleness, processing time) are judged at least as often.
const IDLE_WAIT_MAX: Duration = Duration::from_millis(50);
/// After a "try again" of an input.
const RETRY_WAIT: Duration = Duration::from_millis(100);
/// Group offsets are for lag tools: no need for more.
const GROUP_OFFSETS_EVERY: Duration = Duration::from_secs(1);
/// How long a drain may wait for the log before the slot leaves with epochs unacknowledged (the next start resolves them).
const DRAIN_DEADLINE: Duration = Duration::from_millis(1_500);

/// What the slots of a job share.
#[derive(Default)]
pub struct Shared {
    /// Drain: seal, commit, leave.
    pub stopping: Arc<AtomicBool>,
    /// Source regions that may still bring rows.
    pub sources_running: AtomicUsize,
    pub regions_stopped: AtomicUsize,
}

pub struct Slot {
    pub regions: Vec<Region>,
    pub sources: BTreeMap<StageId, Box<dyn SourceReader>>,
    pub exchange: Box<dyn LogReader>,
    pub wakeup: Arc<Wakeup>,
    pub log: Arc<dyn Log>,
    pub sealed: Sender<Vec<SealedEpoch>>,
    pub news: Receiver<CommitNews>,
    pub progress: Arc<Progress>,
    pub shared: Arc<Shared>,
    pub in_flight: usize,
    /// Exchanges are trimmed behind the local store (`JobConfig::log_dies_with_process`).
    pub trims: bool,
    pub group_offsets: BTreeMap<String, BTreeMap<TopicPartition, Offset>>,
    pub group_offsets_sent: Instant,
}

impl Slot {
    /// Runs until all regions are finished, a drain, or the end of ownership.
    pub fn run(mut self) -> JobOutcome {
        loop {
            if let Some(outcome) = self.hear_news() {
                return outcome;
            }
            if self.shared.stopping.load(Ordering::SeqCst) {
                return self.drain(JobOutcome::Stopped);
            }
            if let Some(error) = self.hopeless() {
                return self.drain(JobOutcome::Failed(error));
            }
            if self.in_flight == 0 && self.regions.iter().all(|region| region.finished && region.stopped.is_none()) {
                self.send_group_offsets(true);
                return JobOutcome::Finished;
            }
            let mut moved = self.step_all();
            moved |= self.seal_due();
            self.send_group_offsets(false);
            if !moved {
                self.sleep();
            }
        }
    }

    /// Regions were stopped by bad input and nothing else is to come.
    fn hopeless(&self) -> Option<EngineError> {
        if self.shared.regions_stopped.load(Ordering::SeqCst) == 0 || self.shared.sources_running.load(Ordering::SeqCst) > 0 {
            return None;
        }
        let reasons: Vec<String> = self.progress.stopped().into_iter().map(|(region, reason)| format!("{region}: {reason}")).collect();
        let hint = "mend the input, or set `on_bad_record: dead_letter`; the job goes on from the kept offsets".to_string();
        Some(EngineError { message: format!("regions were stopped: {}", reasons.join("; ")), hint: Some(hint) })
    }

    fn hear_news(&mut self) -> Option<JobOutcome> {
        while let Ok(news) = self.news.try_recv() {
            if let Some(outcome) = self.take_news(news) {
                return Some(outcome);
            }
        }
        None
    }

    fn take_news(&mut self, news: CommitNews) -> Option<JobOutcome> {
        match news {
            CommitNews::Committed(epochs) => {
                self.in_flight -= 1;
                for epoch in epochs {
                    self.committed(epoch);
                }
                None
            }
            CommitNews::TakenOver(why) => Some(JobOutcome::TakenOver(why)),
            CommitNews::Failed(error) => Some(JobOutcome::Failed(error)),
        }
    }

    fn committed(&mut self, epoch: CommittedEpoch) {
        let region = &mut self.regions[epoch.index];
        if let Input::Source(source) = &region.input
            && let Some((partition, group)) = &source.group
        {
            self.group_offsets.entry(group.clone()).or_default().insert(partition.clone(), epoch.position);
        }
        let Some((flush, record)) = epoch.flush else { return };
        let applied = region.state.apply_flush(flush, &encode_stored(region.changelog_from, &record)).and_then(|()| {
            let bytes = region.state.bytes();
            if bytes.total > region.settings.state_bytes_max { region.state.evict(region.settings.state_bytes_max / 2) } else { Ok(()) }
        });
        region.flush_in_flight = false;
        if applied.is_ok()
            && self.trims
            && let Input::Exchange(exchange) = &region.input
            && let Err(error) = self.log.trim(&[(exchange.partition.clone(), epoch.position)])
        {
            tracing::warn!(partition = %exchange.partition, %error, "could not trim");
        }
        if let Err(error) = applied {
            self.stop_region(epoch.index, format!("the local store: {error}"));
        }
    }

    fn step_all(&mut self) -> bool {
        let mut moved = false;
        for index in 0..self.regions.len() {
            let region = &mut self.regions[index];
            if !region.may_step() {
                continue;
            }
            let (sources, exchange) = (&mut self.sources, &mut self.exchange);
            let was_finished = is_source_finished(region);
            let log = self.log.as_ref();
            // A panic in one region's code must not take its neighbours down; its open epoch is never sealed.
            let result = catch_unwind(AssertUnwindSafe(|| step(region, sources, exchange.as_mut(), log)));
            match result {
                Ok(Ok(took)) => moved |= took,
                Ok(Err(RegionError::Retry(reason))) => tracing::debug!(region = %region.id, reason, "the input does not answer yet"),
                Ok(Err(RegionError::Stop(reason))) => self.stop_region(index, reason),
                Err(panic) => {
                    let reason =
                        panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
                    self.stop_region(index, format!("panic: {}", reason.unwrap_or_default()));
                }
            }
            if !was_finished && is_source_finished(&self.regions[index]) {
                self.shared.sources_running.fetch_sub(1, Ordering::SeqCst);
            }
        }
        moved
    }

    fn stop_region(&mut self, index: usize, reason: String) {
        let region = &mut self.regions[index];
        tracing::error!(region = %region.id, position = region.position, reason, "the region is stopped; its committed offsets are kept");
        region.open = None;
        region.stopped = Some(reason.clone());
        self.progress.region(region.id, |entry| entry.stopped = Some(reason));
        self.shared.regions_stopped.fetch_add(1, Ordering::SeqCst);
        if matches!(&region.input, Input::Source(source) if !source.finished) {
            self.shared.sources_running.fetch_sub(1, Ordering::SeqCst);
        }
        metrics::counter!("streamshield_regions_stopped_total").increment(1);
    }

    /// Seals everything that is open when something is due, so that a slot needs few transactions.
    fn seal_due(&mut self) -> bool {
        if self.in_flight >= SEALED_AHEAD_MAX {
            return false;
        }
        let now = Instant::now();
        if !self.regions.iter().any(|region| region.is_due(now)) {
            return false;
        }
        self.seal_open(false)
    }

    fn seal_open(&mut self, leaving: bool) -> bool {
        let mut batch = Vec::new();
        for index in 0..self.regions.len() {
            let region = &mut self.regions[index];
            if region.stopped.is_some() {
                continue;
            }
            let bytes = region.has_tables.then(|| region.state.bytes());
            match catch_unwind(AssertUnwindSafe(|| region.seal(leaving))) {
                Ok(Ok(Some(sealed))) => batch.push(sealed),
                Ok(Ok(None)) => {}
                Ok(Err(RegionError::Retry(reason) | RegionError::Stop(reason))) => self.stop_region(index, reason),
                Err(_) => self.stop_region(index, "panic at the seal".into()),
            }
            if let Some(bytes) = bytes {
                let groups = self.regions[index].state_groups();
                self.progress.region(self.regions[index].id, |entry| {
                    entry.state_bytes = bytes.total as u64;
                    entry.state_groups = groups;
                });
            }
        }
        if batch.is_empty() {
            return false;
        }
        self.send(batch);
        true
    }

    pub fn send(&mut self, batch: Vec<SealedEpoch>) {
        self.in_flight += 1;
        // The commit thread only ends after it sent news that end this slot, too.
        let _ = self.sealed.send(batch);
    }

    /// Seals what is open, waits for the log, and leaves.
    fn drain(mut self, outcome: JobOutcome) -> JobOutcome {
        let deadline = Instant::now() + DRAIN_DEADLINE;
        let mut sealed = false;
        loop {
            if !sealed && self.in_flight < SEALED_AHEAD_MAX {
                self.seal_open(true);
                sealed = true;
            }
            if sealed && self.in_flight == 0 {
                self.send_group_offsets(true);
                return outcome;
            }
            match self.news.recv_deadline(deadline) {
                Ok(news) => {
                    if let Some(ended) = self.take_news(news) {
                        return ended;
                    }
                }
                Err(_) => {
                    tracing::warn!("leaving before the log acknowledged the last epochs; the next start finds out what became of them");
                    return outcome;
                }
            }
        }
    }

    fn sleep(&self) {
        let now = Instant::now();
        let mut wait = IDLE_WAIT_MAX;
        if self.in_flight < SEALED_AHEAD_MAX {
            for due in self.regions.iter().filter_map(Region::due_at) {
                wait = wait.min(due.saturating_duration_since(now));
            }
        }
        for ready in self.sources.values().filter_map(|source| source.ready_in()) {
            wait = wait.min(ready.max(Duration::from_millis(1)));
        }
        self.wakeup.wait(wait.min(RETRY_WAIT));
    }

    fn send_group_offsets(&mut self, last: bool) {
        if !last && self.group_offsets_sent.elapsed() < GROUP_OFFSETS_EVERY {
            return;
        }
        self.group_offsets_sent = Instant::now();
        for (group, positions) in std::mem::take(&mut self.group_offsets) {
            let positions: Vec<_> = positions.into_iter().collect();
            self.log.commit_group_offsets(&group, &positions);
        }
    }
}

fn is_source_finished(region: &Region) -> bool {
    matches!(&region.input, Input::Source(source) if source.finished)
}

fn step(
    region: &mut Region,
    sources: &mut BTreeMap<StageId, Box<dyn SourceReader>>,
    exchange: &mut dyn LogReader,
    log: &dyn Log,
) -> Result<bool, RegionError> {
    if region.pending_emit {
        region.step_emit()?;
        region.watch_memory();
        return Ok(true);
    }
    let moved = match &region.input {
        Input::Source(_) => {
            let reader = sources.get_mut(&region.id.stage).expect("a slot has a reader for each source stage of its regions");
            let took = region.step_source(reader.as_mut())?;
            took || region.tick(log)
        }
        Input::Exchange(_) => region.step_exchange(exchange)?,
    };
    region.watch_memory();
    Ok(moved)
}

impl Region {
    /// Asks for a flush when the state outgrows its budget: only what is flushed can be evicted.
    fn watch_memory(&mut self) {
        if !self.has_tables {
            return;
        }
        let bytes = self.state.bytes();
        if bytes.total > self.settings.state_bytes_max && bytes.dirty > self.settings.state_bytes_max / 4 {
            self.flush_wanted = true;
        } else if bytes.total > self.settings.state_bytes_max
            && !self.flush_in_flight
            && let Err(error) = self.state.evict(self.settings.state_bytes_max / 2)
        {
            tracing::warn!(region = %self.id, %error, "could not evict");
        }
    }

    fn state_groups(&mut self) -> u64 {
        self.tables.iter().map(|operator| self.state.table(*operator).groups() as u64).sum()
    }
}

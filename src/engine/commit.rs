//! The commit thread of a slot: one Kafka transaction per batch of sealed epochs, until its outcome is known.
//!
//! Sealing runs ahead by [`SEALED_AHEAD_MAX`] batches, so the engine does not wait for the broker. A sealed epoch never
//! changes and never gets lost (E-3):
//!
//! ```text
//! prepare sinks → begin → send → commit ─ committed ──────────────────────→ publish sinks → tell the engine
//!       ↑                          │
//!       │                          └ in doubt, aborted, fenced, log away
//!       │                                 ↓
//!       │        drop the producer → init a new one (fences the old) → confirm ownership → read the changelog's end
//!       └── not in the log ───────────────────────────────────────────────────┤
//!                                                                     in the log: committed
//! ```
//! The outcome of a doubtful commit is read from the log, never from memory: librdkafka has no KIP-890 part 2, so a retried
//! EndTxn may end a later transaction of the same producer epoch. A new InitProducerId fences such a stray.
//!
//! On failure: `Retry` pauses the job (state kept, memory bounded by the queue); a later owner in the control log ends it.

use crate::changelog;
use crate::content::{SealedEpoch, send_all};
use crate::ownership::{Ownership, Standing};
use crate::progress::Progress;
use crate::runtime::EngineError;
use crossbeam_channel::{Receiver, Sender};
use fail::fail_point;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use streamshield_core::ids::{Offset, RegionId};
use streamshield_core::ports::log::{CommitOutcome, Log, LogError, LogErrorKind, TransactionalWriter, Wakeup};
use streamshield_core::ports::sink::SinkContent;
use streamshield_core::ports::state::Flush;

/// Batches of sealed epochs that may wait for the broker (M-1).
pub const SEALED_AHEAD_MAX: usize = 2;
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(20);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What the engine hears of a batch.
pub enum CommitNews {
    Committed(Vec<CommittedEpoch>),
    TakenOver(String),
    Failed(EngineError),
}

/// An epoch that is in the log.
pub struct CommittedEpoch {
    pub index: usize,
    pub position: Offset,
    /// With the encoded epoch record, to be written to the local store.
    pub flush: Option<(Flush, Vec<u8>)>,
}

/// Everything a commit thread needs.
pub struct Committer {
    pub log: Arc<dyn Log>,
    pub ownership: Arc<Ownership>,
    pub transactional_id: String,
    pub progress: Arc<Progress>,
    /// Where each region's changelog ended when it was last read.
    pub changelog_ends: BTreeMap<RegionId, Offset>,
    pub stopping: Arc<AtomicBool>,
    pub wakeup: Arc<Wakeup>,
}

enum Ended {
    TakenOver(String),
    Failed(EngineError),
    /// The process leaves while the log is away: what is sealed stays uncommitted, the next start replays it.
    GivenUp,
}

impl Committer {
    /// Runs until the channel closes. `writer` is fresh and confirmed.
    pub fn run(mut self, mut writer: Option<Box<dyn TransactionalWriter>>, sealed: Receiver<Vec<SealedEpoch>>, news: Sender<CommitNews>) {
        while let Ok(mut batch) = sealed.recv() {
            let result = self.commit(&mut writer, &mut batch);
            let message = match result {
                Ok(()) => CommitNews::Committed(self.count(batch)),
                Err(Ended::TakenOver(why)) => CommitNews::TakenOver(why),
                Err(Ended::Failed(error)) => CommitNews::Failed(error),
                Err(Ended::GivenUp) => return,
            };
            let ended = !matches!(message, CommitNews::Committed(_));
            let gone = news.send(message).is_err();
            self.wakeup.raise();
            if ended || gone {
                return;
            }
        }
    }

    fn count(&self, batch: Vec<SealedEpoch>) -> Vec<CommittedEpoch> {
        fail_point!("engine::after_commit");
        batch
            .into_iter()
            .map(|epoch| {
                self.progress.committed(epoch.record.region, epoch.record.epoch.0, epoch.record.watermark, &epoch.counts);
                let record = epoch.flush.is_some().then(|| epoch.record.encode());
                CommittedEpoch {
                    index: epoch.index,
                    position: epoch.record.positions.first().copied().unwrap_or(0),
                    flush: epoch.flush.zip(record),
                }
            })
            .collect()
    }

    /// Commits one batch, whatever it takes.
    fn commit(&mut self, writer: &mut Option<Box<dyn TransactionalWriter>>, batch: &mut [SealedEpoch]) -> Result<(), Ended> {
        let started = Instant::now();
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let trouble = match writer {
                Some(open) => match self.attempt(open.as_mut(), batch)? {
                    None => break,
                    Some(trouble) => trouble,
                },
                None => "the producer was not yet ready".to_string(),
            };
            // Dropping it here also ends its connection, before the new one fences it.
            *writer = None;
            self.note_trouble(&trouble);
            match self.renew_and_resolve(batch) {
                Ok((renewed, committed)) => {
                    *writer = Some(renewed);
                    if committed {
                        break;
                    }
                }
                Err(Resolve::Ended(ended)) => return Err(ended),
                Err(Resolve::Again(why)) => {
                    if self.stopping.load(Ordering::SeqCst) {
                        return Err(Ended::GivenUp);
                    }
                    tracing::debug!(%why, "the log does not answer yet");
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(RETRY_PAUSE_MAX);
                }
            }
        }
        if let Some(away) = self.progress.resume() {
            tracing::info!(seconds = away.as_secs_f64(), "the log answers again, the job goes on; nothing was lost");
        }
        metrics::histogram!("streamshield_commit_duration_seconds").record(started.elapsed().as_secs_f64());
        self.publish(batch)
    }

    /// One transaction. None: committed; Some(why): the outcome is to be read from the log.
    fn attempt(&self, writer: &mut dyn TransactionalWriter, batch: &mut [SealedEpoch]) -> Result<Option<String>, Ended> {
        for epoch in batch.iter_mut() {
            if let Some(SinkContent::External(content)) = &mut epoch.sink
                && let Err(error) = content.prepare()
            {
                if !error.retry {
                    return Err(Ended::Failed(EngineError { message: format!("a sink refuses to prepare an epoch: {error}"), hint: None }));
                }
                return Ok(Some(error.message));
            }
        }
        fail_point!("engine::before_begin");
        if let Err(error) = writer.begin() {
            return self.sort(error);
        }
        if let Err(error) = send_all(writer, batch) {
            writer.abort();
            return self.sort(error);
        }
        fail_point!("engine::after_produce");
        fail_point!("engine::before_commit");
        match writer.commit() {
            CommitOutcome::Committed => Ok(None),
            CommitOutcome::InDoubt(why) => {
                metrics::counter!("streamshield_commits_in_doubt_total").increment(1);
                Ok(Some(format!("a commit is in doubt: {why}")))
            }
            CommitOutcome::Aborted(why) => Ok(Some(format!("a transaction was aborted: {why}"))),
            CommitOutcome::Fenced(why) => Ok(Some(format!("the producer was fenced: {why}"))),
        }
    }

    fn sort(&self, error: LogError) -> Result<Option<String>, Ended> {
        match error.kind {
            LogErrorKind::Retry | LogErrorKind::Fenced => Ok(Some(error.message)),
            _ => Err(Ended::Failed(EngineError { message: format!("an epoch can't be written: {error}"), hint: None })),
        }
    }

    fn note_trouble(&self, trouble: &str) {
        if self.progress.pause() {
            tracing::warn!(reason = trouble, "the log does not take a commit; the job pauses with all its state and tries again");
        }
    }

    /// A new producer (which fences the old), ownership confirmed, and whether the batch is in the log.
    fn renew_and_resolve(&mut self, batch: &[SealedEpoch]) -> Result<(Box<dyn TransactionalWriter>, bool), Resolve> {
        let writer = self.log.writer(&self.transactional_id)?;
        match self.ownership.confirm()? {
            Standing::Owner => {}
            Standing::TakenOver(by) => {
                return Err(Resolve::Ended(Ended::TakenOver(format!("a later process (incarnation {}) owns the job", by.0))));
            }
        }
        let mut found = 0;
        // Remembered only when all were read: a second try must see the same records again.
        let mut ends = Vec::with_capacity(batch.len());
        for epoch in batch {
            let region = epoch.record.region;
            let from = self.changelog_ends.get(&region).copied().unwrap_or(0);
            let (last, end) = changelog::read_last(self.log.as_ref(), &epoch.changelog, from)?;
            if let Some(last) = last {
                if last.incarnation != self.ownership.incarnation {
                    return Err(Resolve::Ended(Ended::TakenOver(format!("{region} has an epoch of incarnation {}", last.incarnation.0))));
                }
                if last.epoch >= epoch.epoch() {
                    assert_eq!(last.epoch, epoch.epoch(), "E-1: {region} has a later epoch in the log than was sealed");
                    found += 1;
                }
            }
            ends.push((region, end));
        }
        self.changelog_ends.extend(ends);
        assert!(found == 0 || found == batch.len(), "E-3: a transaction is torn: {found} of {} epochs are in the log", batch.len());
        Ok((writer, found > 0))
    }

    /// After the commit: sinks outside of the log make their rows visible.
    fn publish(&self, batch: &mut [SealedEpoch]) -> Result<(), Ended> {
        for epoch in batch.iter_mut() {
            let Some(SinkContent::External(content)) = &mut epoch.sink else { continue };
            let mut pause = RETRY_PAUSE_MIN;
            while let Err(error) = content.publish() {
                if !error.retry || self.stopping.load(Ordering::SeqCst) {
                    let message = format!("a sink refuses to publish a committed epoch: {error}");
                    return Err(Ended::Failed(EngineError {
                        message,
                        hint: Some("restart the job: it publishes what is committed".into()),
                    }));
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
            }
        }
        Ok(())
    }
}

enum Resolve {
    Again(String),
    Ended(Ended),
}

impl From<LogError> for Resolve {
    fn from(error: LogError) -> Self {
        match error.kind {
            LogErrorKind::Retry | LogErrorKind::Fenced => Resolve::Again(error.message),
            _ => Resolve::Ended(Ended::Failed(EngineError {
                message: format!("the outcome of a commit can't be read: {error}"),
                hint: None,
            })),
        }
    }
}

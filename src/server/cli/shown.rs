//! What the HTTP endpoints see of a running worker: its own figures, and the whole job as the control log tells it.
//!
//! The whole job is read from the log by a reader of the endpoint's own, made when somebody first asks: the engine is not asked for more than its status, and a
//! worker that nobody asks reads nothing twice.

use crate::http::StatusProvider;
use crate::wiring::control::{ControlError, ControlLog};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::ports::log::Log;
use streamshield_core::status::ClusterStatus;
use streamshield_engine::runtime::{JobHandle, JobStatus};

/// An answer this young is good enough: reports come once a second.
const FRESH: Duration = Duration::from_millis(250);
/// How long a question waits for another one, which may hang on a cluster that is away: those who ask must not pile up.
const LOCK_TIME_MAX: Duration = Duration::from_millis(500);

/// Absent until there is something to show; another engine in the next life.
#[derive(Clone)]
pub struct Shown {
    job: String,
    engine: Arc<RwLock<Option<Arc<JobHandle>>>>,
    /// What the engines of lives that are over have counted.
    past: Arc<Mutex<JobStatus>>,
    log: Arc<RwLock<Option<Arc<dyn Log>>>>,
    control: Arc<Mutex<Option<Reading>>>,
}

struct Reading {
    control: ControlLog,
    refreshed: Instant,
}

impl Shown {
    pub fn new(job: &str) -> Shown {
        Shown { job: job.to_string(), engine: Arc::default(), past: Arc::default(), log: Arc::default(), control: Arc::default() }
    }

    /// None: its life is over. What it has counted still counts, since totals never go back.
    pub fn set_engine(&self, engine: Option<Arc<JobHandle>>) {
        let mut shown = self.engine.write();
        if let Some(ended) = std::mem::replace(&mut *shown, engine) {
            add_counts(&mut self.past.lock(), &ended.status());
        }
    }

    /// None: the log is about to be closed. Who still reads it is not waited for.
    pub fn set_log(&self, log: Option<Arc<dyn Log>>) {
        *self.log.write() = log;
        if let Some(mut reading) = self.control.try_lock() {
            *reading = None;
        }
    }

    fn read(&self) -> Result<ClusterStatus, String> {
        let mut reading = self.control.try_lock_for(LOCK_TIME_MAX).ok_or("the control log is being read; ask again")?;
        // Asked for with the lock: it may have been closed meanwhile.
        let log = self.log.read().clone().ok_or("this worker is not connected")?;
        let read = match reading.as_mut() {
            Some(known) if known.refreshed.elapsed() < FRESH => Ok(()),
            Some(known) => known.control.refresh().map(|()| known.refreshed = Instant::now()),
            None => ControlLog::open(log, &self.job).map(|control| *reading = Some(Reading { control, refreshed: Instant::now() })),
        };
        if let Err(error) = read {
            // After a trim or an outage the next question starts over.
            if !matches!(error, ControlError::NeverRan { .. }) {
                tracing::debug!(%error, "the control log can't be shown");
            }
            *reading = None;
            return Err(error.to_string());
        }
        reading.as_ref().map(|reading| ClusterStatus::assemble(&self.job, &reading.control.cluster)).ok_or("nothing was read".into())
    }
}

impl StatusProvider for Shown {
    fn status(&self) -> JobStatus {
        let engine = self.engine.read();
        let mut status = engine.as_ref().map_or_else(|| JobStatus { state: "starting".into(), ..Default::default() }, |job| job.status());
        add_counts(&mut status, &self.past.lock());
        status
    }

    fn cluster(&self) -> Result<ClusterStatus, String> {
        self.read()
    }
}

fn add_counts(status: &mut JobStatus, past: &JobStatus) {
    status.records_in += past.records_in;
    status.rows_out += past.rows_out;
    status.late_rows += past.late_rows;
    status.bad_records += past.bad_records;
    status.dead_letters += past.dead_letters;
    status.epochs += past.epochs;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_that_are_over_still_count() {
        let shown = Shown::new("orders");
        for life in 1..=2 {
            add_counts(&mut shown.past.lock(), &JobStatus { records_in: 10, epochs: life, ..Default::default() });
        }
        let status = shown.status();
        assert_eq!((status.state.as_str(), status.records_in, status.epochs), ("starting", 20, 3));
    }

    #[test]
    fn nobody_waits_for_one_who_hangs_on_the_log() {
        let shown = Shown::new("orders");
        let _hangs = shown.control.lock();
        shown.set_log(None);
        assert_eq!(shown.read().err().as_deref(), Some("the control log is being read; ask again"));
    }
}

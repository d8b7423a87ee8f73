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

/// Absent until there is something to show; another engine in the next life.
#[derive(Clone)]
pub struct Shown {
    job: String,
    engine: Arc<RwLock<Option<Arc<JobHandle>>>>,
    log: Arc<RwLock<Option<Arc<dyn Log>>>>,
    control: Arc<Mutex<Option<Reading>>>,
}

struct Reading {
    control: ControlLog,
    refreshed: Instant,
}

impl Shown {
    pub fn new(job: &str) -> Shown {
        Shown { job: job.to_string(), engine: Arc::default(), log: Arc::default(), control: Arc::default() }
    }

    pub fn set_engine(&self, engine: Option<Arc<JobHandle>>) {
        *self.engine.write() = engine;
    }

    /// None: the log is about to be closed.
    pub fn set_log(&self, log: Option<Arc<dyn Log>>) {
        *self.log.write() = log;
        *self.control.lock() = None;
    }

    fn read(&self) -> Result<ClusterStatus, String> {
        let log = self.log.read().clone().ok_or("this worker is not connected yet")?;
        let mut reading = self.control.lock();
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
        self.engine.read().as_ref().map_or_else(|| JobStatus { state: "starting".into(), ..Default::default() }, |job| job.status())
    }

    fn cluster(&self) -> Result<ClusterStatus, String> {
        self.read()
    }
}

//! What happened on a stage and when, for the timeline of a report.

use super::process::lock;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Instant;

/// Of the log of events; a crash loop of hours must not fill the memory. The oldest go first.
pub const EVENTS_MAX: usize = 100_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum StageEventKind {
    WorkerStarted {
        worker: String,
        pid: u32,
    },
    /// `status` as the system says it: `signal: 9 (SIGKILL)`, `exit status: 0`.
    WorkerDied {
        worker: String,
        pid: u32,
        status: String,
        /// The last error that it named, if any.
        error: Option<String>,
    },
    BrokerStarted {
        broker: u32,
        pid: u32,
    },
    BrokerDied {
        broker: u32,
        pid: u32,
        status: String,
    },
    StoreStarted,
    StoreDied,
    /// Something that a fault or the stage did besides.
    Note {
        text: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageEvent {
    /// Since the stage's start, by a clock that only goes forward.
    pub at_ms: u64,
    #[serde(flatten)]
    pub kind: StageEventKind,
}

/// The log, with the clock of the stage.
#[derive(Debug)]
pub struct Events {
    start: Instant,
    log: Mutex<VecDeque<StageEvent>>,
}

impl Events {
    pub(crate) fn new() -> Events {
        Events { start: Instant::now(), log: Mutex::new(VecDeque::new()) }
    }

    pub fn start(&self) -> Instant {
        self.start
    }

    pub fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    pub fn push(&self, kind: StageEventKind) {
        let mut log = lock(&self.log);
        if log.len() == EVENTS_MAX {
            log.pop_front();
        }
        log.push_back(StageEvent { at_ms: self.now_ms(), kind });
    }

    pub fn all(&self) -> Vec<StageEvent> {
        lock(&self.log).iter().cloned().collect()
    }
}

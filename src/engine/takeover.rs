//! How long it took until a region worked again, phase by phase.
//!
//! ```text
//! the owner's last sign ─detect─► expired ─fence─► its producers fenced ─catch up─► end of the changelog ─confirm─► in a slot ─► first commit
//! ```
//! Measured by the new owner's steady clock from the moment at which it read of the change; `detect` is the silence that the control log
//! counted. Exported as `streamshield_takeover_seconds{phase=…}` and in the worker's report.

use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use streamshield_core::ids::{Offset, RegionId};
use streamshield_core::status::{PhasesMs, TakeoverReport};

/// Finished take-overs that are remembered (M-1).
const HISTORY_MAX: usize = 32;

#[derive(Clone, Debug)]
struct UnderWay {
    assignment: Offset,
    cause: &'static str,
    silent_ms: u64,
    began: Duration,
    fenced: Option<Duration>,
    caught_up: Option<Duration>,
    working: Option<Duration>,
}

/// All of one worker.
#[derive(Default)]
pub struct Takeovers {
    under_way: Mutex<BTreeMap<RegionId, UnderWay>>,
    finished: Mutex<VecDeque<TakeoverReport>>,
}

impl Takeovers {
    /// This worker has read that the region is its own now.
    pub fn began(&self, region: RegionId, assignment: Offset, cause: &'static str, silent_ms: u64, now: Duration) {
        let began = UnderWay { assignment, cause, silent_ms, began: now, fenced: None, caught_up: None, working: None };
        let mut under_way = self.under_way.lock();
        if under_way.get(&region).is_none_or(|known| known.assignment != assignment) {
            under_way.insert(region, began);
        }
    }

    pub fn fenced(&self, region: RegionId, now: Duration) {
        self.note(region, |takeover| takeover.fenced.get_or_insert(now));
    }

    pub fn caught_up(&self, region: RegionId, now: Duration) {
        self.note(region, |takeover| takeover.caught_up.get_or_insert(now));
    }

    pub fn working(&self, region: RegionId, now: Duration) {
        self.note(region, |takeover| takeover.working.get_or_insert(now));
    }

    fn note<'a>(&self, region: RegionId, note: impl FnOnce(&mut UnderWay) -> &mut Duration + 'a) {
        if let Some(takeover) = self.under_way.lock().get_mut(&region) {
            note(takeover);
        }
    }

    /// The region has committed an epoch; the first one ends its take-over.
    pub fn committed(&self, region: RegionId, now: Duration) {
        let Some(takeover) = self.under_way.lock().remove(&region) else { return };
        let fenced = takeover.fenced.unwrap_or(takeover.began);
        let caught_up = takeover.caught_up.unwrap_or(fenced);
        let working = takeover.working.unwrap_or(caught_up);
        let ms = |from: Duration, to: Duration| to.saturating_sub(from).as_millis() as u64;
        let phases_ms = PhasesMs {
            detect: Some(takeover.silent_ms),
            fence: Some(ms(takeover.began, fenced)),
            catch_up: Some(ms(fenced, caught_up)),
            confirm: Some(ms(caught_up, working)),
            first_commit: Some(ms(working, now)),
        };
        for (phase, ms) in phases_ms.named() {
            metrics::histogram!("streamshield_takeover_seconds", "phase" => phase).record(ms.unwrap_or(0) as f64 / 1e3);
        }
        tracing::info!(region = %region, cause = takeover.cause, phases_ms = ?phases_ms.named().map(|(_, ms)| ms.unwrap_or(0)), "taken over");
        let mut finished = self.finished.lock();
        finished.push_back(TakeoverReport { region: region.to_string(), assignment: takeover.assignment, phases_ms });
        if finished.len() > HISTORY_MAX {
            finished.pop_front();
        }
    }

    /// Some began not longer ago than this and have not committed yet.
    pub fn are_under_way(&self, now: Duration, longest: Duration) -> bool {
        self.under_way.lock().values().any(|takeover| now.saturating_sub(takeover.began) < longest)
    }

    /// The region is somebody else's again.
    pub fn cancelled(&self, region: RegionId) {
        self.under_way.lock().remove(&region);
    }

    pub fn finished(&self) -> Vec<TakeoverReport> {
        self.finished.lock().iter().cloned().collect()
    }
}

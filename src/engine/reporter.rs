//! Figures for people, in the control log once a second: whoever reads it can show the whole job.
//!
//! An actor of its own, because it asks the broker for lags and waits for an acknowledgement, and a fence must not wait for that.

use crate::clock::Clock;
use crate::membership::Membership;
use crate::progress::Progress;
use crate::runtime::{JobOutcome, Shared};
use crate::takeover::Takeovers;
use crate::turn::{Actor, Turn};
use crate::usage::ProcessUsage;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use streamshield_core::cluster::ControlRecord;
use streamshield_core::ports::log::Log;

const REPORT_EVERY: Duration = Duration::from_secs(1);
/// The end of the worker is noticed within this.
const IDLE_MAX: Duration = Duration::from_millis(250);

pub struct Reporter {
    pub log: Arc<dyn Log>,
    pub membership: Arc<Membership>,
    pub clock: Arc<dyn Clock>,
    pub shared: Arc<Shared>,
    pub progress: Arc<Progress>,
    pub takeovers: Arc<Takeovers>,
    /// None in a simulation, where the process is everybody's.
    pub usage: Option<ProcessUsage>,
    /// Steady time of the next report.
    pub next: Duration,
}

impl Actor for Reporter {
    fn turn(&mut self) -> Turn {
        if self.shared.over.load(Ordering::SeqCst) {
            return Turn::Ended(JobOutcome::Stopped);
        }
        let now = self.clock.steady();
        if now < self.next {
            return Turn::Idle((self.next - now).min(IDLE_MAX));
        }
        self.next = now + REPORT_EVERY;
        self.progress.measure_lags(self.log.as_ref(), self.clock.wall_ms());
        let mut report = self.progress.report(self.takeovers.finished(), self.clock.wall_ms());
        if let Some(usage) = &mut self.usage {
            report.cpu_percent = usage.cpu_percent(now);
            report.resident_bytes = usage.resident_bytes();
        }
        let incarnation = self.membership.incarnation;
        if let Err(error) = self.membership.append(&ControlRecord::Report { incarnation, report: report.encode() }) {
            tracing::debug!(%error, "a report was not written");
        }
        Turn::Again
    }
}

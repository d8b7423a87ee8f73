//! The few figures of a run that are shown while it goes on and summed up at its end, of one worker or of several.
//!
//! Counts add up. Quantiles don't: of several workers the largest one is shown, which no row has exceeded more often than the quantile says. The watermark is
//! the least.

use crate::metrics::follows;
use serde::{Deserialize, Serialize};
use streamshield_engine::runtime::{JobStatus, RegionStatus};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// As [`JobStatus::state`].
    pub state: String,
    pub records_in: u64,
    pub rows_out: u64,
    pub late_rows: u64,
    pub bad_records: u64,
    pub dead_letters: u64,
    pub epochs: u64,
    pub latency_p50_ms: Option<f64>,
    pub latency_p99_ms: Option<f64>,
    /// Of regions that are not finished.
    pub watermark_ms: Option<i64>,
    pub regions: usize,
    pub regions_finished: usize,
    pub regions_stopped: usize,
    pub state_bytes: u64,
}

/// States by how much they deserve to be seen when workers are in different ones.
const STATES: [&str; 6] = ["paused", "starting", "recovering", "draining", "running", "ended"];

impl From<&JobStatus> for Figures {
    fn from(status: &JobStatus) -> Figures {
        // A region counts where it is owned, not where it is followed.
        let regions: Vec<&RegionStatus> = status.regions.iter().filter(|region| !follows(region)).collect();
        Figures {
            state: status.state.clone(),
            records_in: status.records_in,
            rows_out: status.rows_out,
            late_rows: status.late_rows,
            bad_records: status.bad_records,
            dead_letters: status.dead_letters,
            epochs: status.epochs,
            latency_p50_ms: status.latency_p50_ms,
            latency_p99_ms: status.latency_p99_ms,
            watermark_ms: regions.iter().filter(|region| !region.finished).filter_map(|region| region.watermark_ms).min(),
            regions: regions.len(),
            regions_finished: regions.iter().filter(|region| region.finished).count(),
            regions_stopped: regions.iter().filter(|region| region.stopped.is_some()).count(),
            state_bytes: regions.iter().map(|region| region.state_bytes).sum(),
        }
    }
}

impl Figures {
    /// Adds what another worker is doing at the same time.
    pub fn add(&mut self, other: &Figures) {
        let rank = |state: &str| STATES.iter().position(|known| *known == state).unwrap_or(STATES.len());
        if rank(&other.state) < rank(&self.state) {
            self.state = other.state.clone();
        }
        self.add_counts(other);
        self.watermark_ms = [self.watermark_ms, other.watermark_ms].into_iter().flatten().min();
        self.regions += other.regions;
        self.regions_finished += other.regions_finished;
        self.regions_stopped += other.regions_stopped;
        self.state_bytes += other.state_bytes;
    }

    /// Adds what was done by a life that is over: its counts stay, its regions are somebody else's now.
    pub fn add_counts(&mut self, past: &Figures) {
        self.records_in += past.records_in;
        self.rows_out += past.rows_out;
        self.late_rows += past.late_rows;
        self.bad_records += past.bad_records;
        self.dead_letters += past.dead_letters;
        self.epochs += past.epochs;
        self.latency_p50_ms = largest(self.latency_p50_ms, past.latency_p50_ms);
        self.latency_p99_ms = largest(self.latency_p99_ms, past.latency_p99_ms);
    }
}

fn largest(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    [a, b].into_iter().flatten().max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_the_worst_of_the_rest_is_kept() {
        let mut sum = Figures {
            state: "running".into(),
            records_in: 5,
            latency_p99_ms: Some(10.0),
            watermark_ms: Some(7),
            regions: 2,
            ..Default::default()
        };
        let other = Figures {
            state: "paused".into(),
            records_in: 6,
            latency_p99_ms: Some(30.0),
            watermark_ms: Some(3),
            regions: 1,
            ..Default::default()
        };
        sum.add(&other);
        assert_eq!((sum.state.as_str(), sum.records_in, sum.regions), ("paused", 11, 3));
        assert_eq!((sum.latency_p99_ms, sum.watermark_ms), (Some(30.0), Some(3)));
    }

    #[test]
    fn what_is_only_followed_does_not_count() {
        let region = |role: &str| RegionStatus { role: role.into(), state_bytes: 10, watermark_ms: Some(5), ..Default::default() };
        let regions = vec![region("active"), region("recovering"), region("replica"), region("standby")];
        let figures = Figures::from(&JobStatus { regions, ..Default::default() });
        assert_eq!((figures.regions, figures.state_bytes), (2, 20));
    }

    #[test]
    fn a_life_that_is_over_counts_but_owns_nothing() {
        let mut sum = Figures { state: "running".into(), records_in: 5, regions: 2, ..Default::default() };
        sum.add_counts(&Figures { state: "ended".into(), records_in: 1, regions: 9, watermark_ms: Some(1), ..Default::default() });
        assert_eq!((sum.state.as_str(), sum.records_in, sum.regions, sum.watermark_ms), ("running", 6, 2, None));
    }
}

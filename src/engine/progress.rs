//! Live figures of a job, shared by its threads: counted when an epoch is committed, never before.

use crate::runtime::{JobStatus, RegionStatus};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use streamshield_core::ids::RegionId;
use streamshield_core::watermark::Watermark;

/// Commits whose latency is remembered for the quantiles.
const LATENCY_SAMPLES_MAX: usize = 4_096;
/// How far back they reach.
const LATENCY_WINDOW: Duration = Duration::from_secs(60);

/// What one epoch of one region did, to be counted once it is committed.
#[derive(Clone, Debug, Default)]
pub struct EpochCounts {
    pub records_in: u64,
    pub rows_out: u64,
    pub late_rows: u64,
    pub bad_records: u64,
    pub dead_letters: u64,
    /// Of the newest source record that the epoch's output stems from, in ms since 1970.
    pub newest_timestamp_ms: Option<i64>,
    pub is_source: bool,
    pub is_sink: bool,
}

/// Shared by all threads of a job.
#[derive(Default)]
pub struct Progress {
    status: Mutex<JobStatus>,
    latencies: Mutex<VecDeque<(i64, f64)>>,
    paused_since_ms: AtomicI64,
}

/// Milliseconds since 1970 by the local clock.
pub fn wall_clock_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64)
}

impl Progress {
    pub fn add_region(&self, region: RegionId, stage: &str) {
        let mut status = self.status.lock();
        status.regions.push(RegionStatus { region: region.to_string(), stage: stage.to_string(), ..Default::default() });
        status.regions.sort_by(|a, b| a.region.cmp(&b.region));
    }

    pub fn set_state(&self, state: &str) {
        self.status.lock().state = state.to_string();
    }

    /// Changes one region's entry.
    pub fn region(&self, region: RegionId, change: impl FnOnce(&mut RegionStatus)) {
        let name = region.to_string();
        let mut status = self.status.lock();
        if let Some(entry) = status.regions.iter_mut().find(|entry| entry.region == name) {
            change(entry);
        }
    }

    /// Counts a committed epoch.
    pub fn committed(&self, region: RegionId, epoch: u64, watermark: Watermark, counts: &EpochCounts) {
        {
            let mut status = self.status.lock();
            status.epochs += 1;
            status.late_rows += counts.late_rows;
            status.bad_records += counts.bad_records;
            status.dead_letters += counts.dead_letters;
            if counts.is_source {
                status.records_in += counts.records_in;
            }
            if counts.is_sink {
                status.rows_out += counts.rows_out;
            }
        }
        self.region(region, |entry| {
            entry.epoch = epoch;
            entry.watermark_ms = (watermark != Watermark::MIN && watermark != Watermark::MAX).then_some(watermark.0);
            entry.records_in += counts.records_in;
            entry.rows_out += counts.rows_out;
        });
        if let (true, true, Some(newest)) = (counts.is_sink, counts.rows_out > 0, counts.newest_timestamp_ms) {
            let now = wall_clock_ms();
            let latency_ms = (now - newest).max(0) as f64;
            metrics::histogram!("streamshield_end_to_end_latency_seconds").record(latency_ms / 1e3);
            let mut latencies = self.latencies.lock();
            latencies.push_back((now, latency_ms));
            while latencies.len() > LATENCY_SAMPLES_MAX
                || latencies.front().is_some_and(|(at, _)| *at < now - LATENCY_WINDOW.as_millis() as i64)
            {
                latencies.pop_front();
            }
        }
    }

    /// The log is away; true at the first call of an outage.
    pub fn pause(&self) -> bool {
        self.paused_since_ms.compare_exchange(0, wall_clock_ms(), Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// The log answers again; how long it was away, when it was.
    pub fn resume(&self) -> Option<Duration> {
        let since = self.paused_since_ms.swap(0, Ordering::SeqCst);
        (since != 0).then(|| Duration::from_millis((wall_clock_ms() - since).max(0) as u64))
    }

    pub fn status(&self) -> JobStatus {
        let mut status = self.status.lock().clone();
        let since = self.paused_since_ms.load(Ordering::SeqCst);
        if since != 0 {
            status.paused_since_ms = Some(since);
            status.state = "paused".into();
        }
        let mut sorted: Vec<f64> = self.latencies.lock().iter().map(|(_, latency)| *latency).collect();
        sorted.sort_by(f64::total_cmp);
        let quantile = |q: f64| (!sorted.is_empty()).then(|| sorted[((sorted.len() - 1) as f64 * q).round() as usize]);
        status.latency_p50_ms = quantile(0.5);
        status.latency_p99_ms = quantile(0.99);
        status
    }

    /// Regions that were stopped, with the reasons.
    pub fn stopped(&self) -> BTreeMap<String, String> {
        self.status.lock().regions.iter().filter_map(|entry| entry.stopped.clone().map(|reason| (entry.region.clone(), reason))).collect()
    }
}

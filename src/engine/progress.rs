//! Live figures of a job, shared by its threads: counted when an epoch is committed, never before.

use crate::clock::Clock;
use crate::runtime::{CheckpointStatus, JobStatus, RegionStatus};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::cluster::Tier;
use streamshield_core::ids::{Offset, RegionId};
use streamshield_core::ports::checkpoint::Durability;
use streamshield_core::ports::log::{Isolation, Log, TopicPartition};
use streamshield_core::status::{FollowerReport, RegionReport, TakeoverReport, WorkerReport};
use streamshield_core::watermark::Watermark;

/// Commits whose latency is remembered for the quantiles.
const LATENCY_SAMPLES_MAX: usize = 4_096;
/// Regions whose lag is asked for at a time.
const LAGS_PER_ROUND: usize = 64;
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

/// Who finds that the log does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waiting {
    /// The committer of this slot.
    Commit(u32),
    /// Also of a job that has nothing to commit.
    Heartbeat,
}

/// The log is away for as long as anybody waits for it.
#[derive(Default)]
struct Pause {
    since_ms: i64,
    waiting: BTreeSet<Waiting>,
}

/// Shared by all threads of a job.
pub struct Progress {
    /// Names of the stages.
    stages: Vec<String>,
    tier: Tier,
    clock: Arc<dyn Clock>,
    status: Mutex<JobStatus>,
    latencies: Mutex<VecDeque<(i64, f64)>>,
    pause: Mutex<Pause>,
    inputs: Mutex<BTreeMap<RegionId, InputPosition>>,
}

/// Where an active region stands in its input.
struct InputPosition {
    partition: TopicPartition,
    position: Offset,
    /// A position of the region, and the end of the input that it met there: only commit markers lie between.
    met_end: Option<(Offset, Offset)>,
}

impl InputPosition {
    /// Behind the markers, once the region has met nothing else behind its committed position.
    fn stands_at(&self) -> Offset {
        self.met_end.filter(|(position, _)| *position == self.position).map_or(self.position, |(_, end)| end)
    }
}

impl Progress {
    pub fn new(stages: Vec<String>, tier: Tier, clock: Arc<dyn Clock>) -> Progress {
        Progress {
            stages,
            tier,
            clock,
            status: Mutex::default(),
            latencies: Mutex::default(),
            pause: Mutex::default(),
            inputs: Mutex::default(),
        }
    }

    /// The nursery brings a region up: to follow, or to hand it to its slot.
    pub fn follows(&self, region: RegionId, as_follower: bool) {
        let role = match (as_follower, self.tier) {
            (false, _) => "recovering",
            (true, Tier::ActiveActive) => "replica",
            (true, Tier::ActiveStandby) => "standby",
            (true, Tier::Checkpoints) => "follower",
        };
        self.entry(region, |entry| entry.role = role.into());
    }

    pub fn followed(&self, region: RegionId, epoch: u64, epochs_behind: u64) {
        self.region(region, |entry| (entry.epoch, entry.epochs_behind) = (epoch, epochs_behind));
    }

    /// The region is in its slot.
    pub fn takes_over(&self, region: RegionId, epoch: u64, watermark: Watermark, finished: bool) {
        self.entry(region, |entry| {
            entry.role = "active".into();
            entry.epoch = epoch;
            entry.epochs_behind = 0;
            entry.watermark_ms = (watermark != Watermark::MIN && watermark != Watermark::MAX).then_some(watermark.0);
            entry.finished = finished;
            entry.stopped = None;
            entry.diverged_at = None;
        });
    }

    /// The region is somebody else's. What was said of its stop stays to be read, until [`Progress::forget_stops`].
    pub fn lets_go(&self, region: RegionId) {
        let name = region.to_string();
        self.inputs.lock().remove(&region);
        self.status.lock().regions.retain(|entry| entry.region != name || entry.stopped.is_some());
    }

    /// The region is quarantined. `shown`: also where nothing is left of it. Who only follows it has not stopped: a probe that starts that worker again would lift
    /// the quarantine.
    pub fn stops(&self, region: RegionId, reason: &str, shown: bool) {
        let stop = |entry: &mut RegionStatus| {
            if shown || entry.role == "active" {
                entry.stopped = Some(reason.to_string());
            }
        };
        if shown { self.entry(region, stop) } else { self.region(region, stop) }
    }

    /// Ends what is said of stops that are over: such a region runs somewhere. Its entry stays if that is `here`, where it is owned or followed.
    pub fn forget_stops(&self, quarantined: &[(RegionId, String)], here: impl FnOnce() -> BTreeSet<RegionId>) {
        let quarantined: BTreeSet<String> = quarantined.iter().map(|(region, _)| region.to_string()).collect();
        let is_over = |entry: &RegionStatus| entry.stopped.is_some() && !quarantined.contains(&entry.region);
        if !self.status.lock().regions.iter().any(is_over) {
            return;
        }
        let here: BTreeSet<String> = here().into_iter().map(|region| region.to_string()).collect();
        self.status.lock().regions.retain_mut(|entry| {
            if !is_over(entry) {
                return true;
            }
            entry.stopped = None;
            here.contains(&entry.region)
        });
    }

    pub fn diverged(&self, region: RegionId, epoch: u64) {
        self.region(region, |entry| entry.diverged_at = Some(epoch));
    }

    /// A follower has caught up: one that had diverged was rebuilt before.
    pub fn ready(&self, region: RegionId) {
        self.region(region, |entry| entry.diverged_at = None);
    }

    pub fn checkpointed(&self, region: RegionId, epoch: u64, durability: Durability, at_ms: i64) {
        self.region(region, |entry| entry.checkpoint = Some(CheckpointStatus { epoch, durability, at_ms }));
    }

    /// An active region's committed position, and the partition that it reads once that is known.
    pub fn reads(&self, region: RegionId, partition: Option<TopicPartition>, position: Offset) {
        let mut inputs = self.inputs.lock();
        match partition {
            Some(partition) => drop(inputs.insert(region, InputPosition { partition, position, met_end: None })),
            None => {
                if let Some(input) = inputs.get_mut(&region) {
                    input.position = position;
                }
            }
        }
    }

    /// From this position on nothing lay before the end.
    pub fn meets_end(&self, region: RegionId, position: Offset, end: Offset) {
        if let Some(input) = self.inputs.lock().get_mut(&region)
            // To pass what lies before the end is no news, and not committed yet.
            && input.met_end.is_none_or(|(_, known)| known != end)
        {
            input.met_end = Some((position, end));
        }
    }

    /// Asks the log how much lies before the active regions; for some of them, where there are many.
    pub fn measure_lags(&self, log: &dyn Log, now_ms: i64) {
        let inputs: Vec<_> = {
            let inputs = self.inputs.lock();
            let skipped = (now_ms as usize / 1_000 * LAGS_PER_ROUND).checked_rem(inputs.len()).unwrap_or(0);
            let all = inputs.iter().map(|(region, input)| (*region, input.partition.clone(), input.stands_at()));
            all.cycle().skip(skipped).take(inputs.len().min(LAGS_PER_ROUND)).collect()
        };
        let partitions: Vec<_> = inputs.iter().map(|(_, partition, _)| partition.clone()).collect();
        let ends = match log.ends(&partitions, Isolation::ReadCommitted) {
            Ok(ends) => ends.into_iter().map(Some).collect(),
            // One that can't be asked for (a table of another cluster) does not hide the others.
            Err(_) => {
                partitions.iter().map(|partition| Some(log.bounds(partition, Isolation::ReadCommitted).ok()?.high)).collect::<Vec<_>>()
            }
        };
        for ((region, _, position), end) in inputs.into_iter().zip(ends) {
            let Some(end) = end else { continue };
            let lag = end.saturating_sub(position).max(0) as u64;
            self.region(region, |entry| {
                entry.lag_records = Some(lag);
                entry.lag_ms = entry.newest_timestamp_ms.map(|newest| if lag == 0 { 0 } else { (now_ms - newest).max(0) as u64 });
            });
        }
    }

    /// This worker's figures for the control log.
    pub fn report(&self, takeovers: Vec<TakeoverReport>, now_ms: i64) -> WorkerReport {
        let status = self.status();
        let (active, followers): (Vec<_>, Vec<_>) =
            status.regions.into_iter().partition(|entry| entry.role == "active" || entry.role == "recovering");
        let region = |entry: RegionStatus| RegionReport {
            region: entry.region,
            stage: entry.stage,
            epoch: entry.epoch,
            lag_records: entry.lag_records,
            lag_ms: entry.lag_ms,
            watermark_ms: entry.watermark_ms,
            state_bytes: entry.state_bytes,
            checkpoint_age_ms: entry.checkpoint.map(|checkpoint| (now_ms - checkpoint.at_ms).max(0) as u64),
            stopped: entry.stopped,
        };
        let follower = |entry: RegionStatus| FollowerReport { region: entry.region, epoch: entry.epoch, diverged: entry.diverged_at };
        WorkerReport {
            state: status.state,
            records_in: status.records_in,
            rows_out: status.rows_out,
            late_rows: status.late_rows,
            bad_records: status.bad_records,
            dead_letters: status.dead_letters,
            latency_p50_ms: status.latency_p50_ms.map(|ms| ms as u64),
            latency_p99_ms: status.latency_p99_ms.map(|ms| ms as u64),
            regions: active.into_iter().map(region).collect(),
            followers: followers.into_iter().map(follower).collect(),
            takeovers,
            ..Default::default()
        }
    }

    fn entry(&self, region: RegionId, change: impl FnOnce(&mut RegionStatus)) {
        let name = region.to_string();
        let mut status = self.status.lock();
        if !status.regions.iter().any(|entry| entry.region == name) {
            let stage = self.stages.get(region.stage.0 as usize).cloned().unwrap_or_default();
            status.regions.push(RegionStatus { region: name.clone(), stage, ..Default::default() });
            status.regions.sort_by(|a, b| a.region.cmp(&b.region));
        }
        if let Some(entry) = status.regions.iter_mut().find(|entry| entry.region == name) {
            change(entry);
        }
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
            entry.newest_timestamp_ms = entry.newest_timestamp_ms.max(counts.newest_timestamp_ms);
        });
        if let (true, true, Some(newest)) = (counts.is_sink, counts.rows_out > 0, counts.newest_timestamp_ms) {
            let now = self.clock.wall_ms();
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

    /// The log has not answered for so long. Said once in an outage.
    pub fn pause(&self, who: Waiting, reason: &str, waited: Duration) {
        let mut pause = self.pause.lock();
        let is_first = pause.waiting.is_empty();
        pause.waiting.insert(who);
        if is_first {
            pause.since_ms = self.clock.wall_ms() - waited.as_millis() as i64;
            let since = utc(pause.since_ms);
            tracing::warn!(reason, since, "the log takes nothing; the job pauses with all its state and tries again");
        }
    }

    /// It has answered; the pause is over when nobody else waits.
    pub fn resume(&self, who: Waiting) {
        let mut pause = self.pause.lock();
        if pause.waiting.remove(&who) && pause.waiting.is_empty() {
            let seconds = (self.clock.wall_ms() - pause.since_ms).max(0) as f64 / 1e3;
            tracing::info!(seconds, "the log answers again, the job goes on; nothing was lost");
        }
    }

    pub fn status(&self) -> JobStatus {
        let mut status = self.status.lock().clone();
        let pause = self.pause.lock();
        if !pause.waiting.is_empty() {
            status.paused_since_ms = Some(pause.since_ms);
            status.state = "paused".into();
        }
        drop(pause);
        // Where no rows come any more, nothing else takes the old ones away.
        let oldest_ms = self.clock.wall_ms() - LATENCY_WINDOW.as_millis() as i64;
        let latencies = self.latencies.lock();
        let mut sorted: Vec<f64> = latencies.iter().filter(|(at, _)| *at >= oldest_ms).map(|(_, latency)| *latency).collect();
        drop(latencies);
        sorted.sort_by(f64::total_cmp);
        let quantile = |q: f64| (!sorted.is_empty()).then(|| sorted[((sorted.len() - 1) as f64 * q).round() as usize]);
        status.latency_p50_ms = quantile(0.5);
        status.latency_p99_ms = quantile(0.99);
        status
    }
}

/// `2026-02-28 14:05:09.250 UTC`
fn utc(ms: i64) -> String {
    arrow_array::temporal_conversions::timestamp_ms_to_datetime(ms).map_or_else(|| format!("{ms} ms"), |time| format!("{time} UTC"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use std::sync::atomic::{AtomicI64, Ordering};
    use streamshield_core::ids::StageId;

    #[test]
    fn a_pause_lasts_until_nobody_waits_for_the_log() {
        let progress = Progress::new(vec!["orders".into()], Tier::ActiveStandby, Arc::new(SystemClock::default()));
        progress.set_state("running");
        let state = || (progress.status().state, progress.status().paused_since_ms.is_some());
        let (running, paused) = (("running".to_string(), false), ("paused".to_string(), true));
        progress.resume(Waiting::Heartbeat);
        assert_eq!(state(), running);
        progress.pause(Waiting::Heartbeat, "no acknowledgement", Duration::from_secs(10));
        let since_ms = progress.status().paused_since_ms.expect("paused");
        assert!(SystemClock::default().wall_ms() - since_ms >= 10_000, "since the call that was not answered");
        progress.pause(Waiting::Commit(1), "not delivered", Duration::ZERO);
        assert_eq!(progress.status().paused_since_ms, Some(since_ms), "it is the same outage");
        progress.resume(Waiting::Heartbeat);
        assert_eq!(state(), paused, "a commit still waits");
        progress.resume(Waiting::Commit(0));
        assert_eq!(state(), paused, "another slot's commit is not this one's");
        progress.resume(Waiting::Commit(1));
        assert_eq!(state(), running);
    }

    struct ManualClock(AtomicI64);

    impl Clock for ManualClock {
        fn wall_ms(&self) -> i64 {
            self.0.load(Ordering::SeqCst)
        }
        fn steady(&self) -> Duration {
            Duration::ZERO
        }
        fn pause(&self, _: Duration) {}
    }

    #[test]
    fn latencies_are_of_the_last_minute_even_if_no_rows_come_any_more() {
        let clock = Arc::new(ManualClock(AtomicI64::new(1_000_000)));
        let progress = Progress::new(vec!["orders".into()], Tier::ActiveStandby, clock.clone());
        let counts = EpochCounts { rows_out: 1, newest_timestamp_ms: Some(999_750), is_sink: true, ..Default::default() };
        progress.committed(RegionId { stage: StageId(0), partition: 0 }, 1, Watermark::MIN, &counts);
        let after = |ms: i64| {
            clock.0.store(1_000_000 + ms, Ordering::SeqCst);
            let status = progress.status();
            (status.latency_p50_ms, status.latency_p99_ms)
        };
        assert_eq!(after(60_000), (Some(250.0), Some(250.0)));
        assert_eq!(after(60_001), (None, None));
    }

    #[test]
    fn a_time_is_told_as_people_read_it() {
        assert_eq!(utc(1_772_287_509_250), "2026-02-28 14:05:09.250 UTC");
    }

    #[test]
    fn a_follower_that_was_rebuilt_has_no_longer_diverged() {
        let progress = Progress::new(vec!["orders".into()], Tier::ActiveStandby, Arc::new(SystemClock::default()));
        let id = RegionId { stage: StageId(0), partition: 0 };
        progress.follows(id, true);
        progress.diverged(id, 7);
        progress.followed(id, 8, 0);
        let reported = || progress.report(Vec::new(), 0).followers[0].diverged;
        assert_eq!(reported(), Some(7), "it is not ready yet");
        progress.ready(id);
        assert_eq!(reported(), None);
    }

    #[test]
    fn a_stop_is_told_as_long_as_it_lasts() {
        let progress = Progress::new(vec!["orders".into()], Tier::ActiveStandby, Arc::new(SystemClock::default()));
        let [gone, followed, resting] = [0, 1, 2].map(|partition| RegionId { stage: StageId(0), partition });
        for id in [gone, followed, resting] {
            progress.follows(id, true);
            progress.region(id, |entry| entry.stopped = Some("bad input".into()));
        }
        progress.lets_go(gone);
        assert_eq!(progress.status().regions.len(), 3);
        progress.forget_stops(&[(resting, "bad input".into())], || BTreeSet::from([followed]));
        let told: Vec<_> = progress.status().regions.into_iter().map(|entry| (entry.region, entry.stopped.is_some())).collect();
        assert_eq!(told, [(followed.to_string(), false), (resting.to_string(), true)]);
    }
}

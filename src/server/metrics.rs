//! All metrics: names, units and meaning in one list, the recorder, and what is exported from the job's status and the process.
//!
//! The engine counts through the `metrics` facade; figures that it only keeps in its [`JobStatus`] are exported from there at
//! each scrape. Names follow the Prometheus rules: base units, the unit in the name, counters end in `_total`.

mod regions;

pub use regions::follows;

use crate::job::Slo;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use std::time::{SystemTime, UNIX_EPOCH};
use streamshield_engine::runtime::JobStatus;

/// Upper bounds in seconds, for commits and latencies: 1 ms to 1 min.
const SECONDS_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Every metric that this binary may export. A metric that is not in the list has no help text, so it belongs here.
const METRICS: &[(&str, Kind, Unit, &str)] = &[
    ("streamshield_source_records_total", Kind::Counter, Unit::Count, "Source records taken and committed, bad ones included"),
    (
        "streamshield_source_partitions_unread",
        Kind::Gauge,
        Unit::Count,
        "Partitions of a source topic that came after the job's first start and are not read",
    ),
    ("streamshield_sink_rows_total", Kind::Counter, Unit::Count, "Rows committed to sinks"),
    (
        "streamshield_late_rows_total",
        Kind::Counter,
        Unit::Count,
        "Rows whose window was closed, once per window: with HOP and CUMULATE a row is in several",
    ),
    ("streamshield_bad_records_total", Kind::Counter, Unit::Count, "Records that were no rows of their table"),
    ("streamshield_dead_letters_total", Kind::Counter, Unit::Count, "Bad records written to the dead-letter topic"),
    ("streamshield_epochs_total", Kind::Counter, Unit::Count, "Epochs committed, over all regions"),
    ("streamshield_commit_duration_seconds", Kind::Histogram, Unit::Seconds, "From the begin of a slot's transaction to its commit"),
    (
        "streamshield_end_to_end_latency_seconds",
        Kind::Histogram,
        Unit::Seconds,
        "From the newest source timestamp of an epoch to the end of its commit",
    ),
    ("streamshield_commits_in_doubt_total", Kind::Counter, Unit::Count, "Commits whose outcome had to be read from the log"),
    (
        "streamshield_transactions_aborted_total",
        Kind::Counter,
        Unit::Count,
        "Transactions of this worker with epochs that did not become visible; the epochs were sent again in others",
    ),
    ("streamshield_regions_stopped_total", Kind::Counter, Unit::Count, "Regions stopped by an error"),
    ("streamshield_state_flush_seconds", Kind::Histogram, Unit::Seconds, "Time to write a flush of state to disk"),
    ("streamshield_state_flushed_bytes_total", Kind::Counter, Unit::Bytes, "State written to disk"),
    ("streamshield_state_delta_apply_seconds", Kind::Histogram, Unit::Seconds, "Time to write a delta of another task to disk"),
    ("streamshield_state_delta_applied_bytes_total", Kind::Counter, Unit::Bytes, "Deltas of other tasks written to disk"),
    ("streamshield_state_stores_rebuilt_total", Kind::Counter, Unit::Count, "Local stores that could not be used and were rebuilt"),
    ("streamshield_control_records_malformed_total", Kind::Counter, Unit::Count, "Records of the control topic that made no sense"),
    ("streamshield_workers_expired_total", Kind::Counter, Unit::Count, "Workers that were not heard in time, as this one saw it"),
    (
        "streamshield_takeover_seconds",
        Kind::Histogram,
        Unit::Seconds,
        "Time of a phase of a take-over by this worker: detect, fence, catch_up, confirm, first_commit, total",
    ),
    ("streamshield_regions_owned", Kind::Gauge, Unit::Count, "Regions that this worker owns"),
    ("streamshield_regions_followed", Kind::Gauge, Unit::Count, "Regions that this worker follows"),
    (
        "streamshield_regions_quarantined",
        Kind::Gauge,
        Unit::Count,
        "Regions of the job that failed too often and rest until a worker joins",
    ),
    ("streamshield_region_lag_records", Kind::Gauge, Unit::Count, "What a region's input holds beyond its position"),
    ("streamshield_region_lag_seconds", Kind::Gauge, Unit::Seconds, "Age of the oldest record that a region has not taken"),
    ("streamshield_follower_epoch", Kind::Gauge, Unit::Count, "Last epoch that a follower on this worker has"),
    ("streamshield_follower_epochs_behind", Kind::Gauge, Unit::Count, "Epochs that a follower on this worker lacks"),
    ("streamshield_follower_diverged", Kind::Gauge, Unit::Count, "1 from a difference in digest until the follower was rebuilt"),
    ("streamshield_follower_state_bytes", Kind::Gauge, Unit::Bytes, "State of a follower in memory"),
    (
        "streamshield_followers_diverged_total",
        Kind::Counter,
        Unit::Count,
        "Followers whose digest differed from the owner's: rebuilt, never promoted, and an alarm",
    ),
    (
        "streamshield_follower_digests_compared_total",
        Kind::Counter,
        Unit::Count,
        "Digests of a follower's state or of a delta that were compared with the owner's",
    ),
    ("streamshield_checkpoints_failed_total", Kind::Counter, Unit::Count, "Region checkpoints that could be saved nowhere"),
    ("streamshield_checkpoint_epoch", Kind::Gauge, Unit::Count, "Epoch of the newest checkpoint of a region that this worker owns"),
    ("streamshield_checkpoint_age_seconds", Kind::Gauge, Unit::Seconds, "Age of the newest checkpoint of a region that this worker owns"),
    (
        "streamshield_checkpoint_durability",
        Kind::Gauge,
        Unit::Count,
        "Of the newest checkpoint of a region: 2 in the store, 1 in the local folder only, 0 there is none",
    ),
    (
        "streamshield_latency_p50_seconds",
        Kind::Gauge,
        Unit::Seconds,
        "From the newest source timestamp of an epoch to the end of its commit, median of the last minute",
    ),
    (
        "streamshield_latency_p99_seconds",
        Kind::Gauge,
        Unit::Seconds,
        "From the newest source timestamp of an epoch to the end of its commit, 99th percentile of the last minute",
    ),
    ("streamshield_watermark_timestamp_seconds", Kind::Gauge, Unit::Seconds, "Event-time watermark of a region, in seconds since 1970"),
    ("streamshield_region_epoch", Kind::Gauge, Unit::Count, "Last committed epoch of a region"),
    ("streamshield_region_stopped", Kind::Gauge, Unit::Count, "1 when the region was stopped by an error"),
    ("streamshield_state_bytes", Kind::Gauge, Unit::Bytes, "State of a region in memory"),
    ("streamshield_state_groups", Kind::Gauge, Unit::Count, "Groups of a region in memory"),
    ("streamshield_paused", Kind::Gauge, Unit::Count, "1 while the log is away"),
    ("streamshield_running", Kind::Gauge, Unit::Count, "1 while the job is running"),
    ("streamshield_slo_max_latency_seconds", Kind::Gauge, Unit::Seconds, "The promise of the job file, to compare with"),
    ("streamshield_slo_completeness_ratio", Kind::Gauge, Unit::Count, "The promise of the job file, to compare with"),
    ("streamshield_build_info", Kind::Gauge, Unit::Count, "1, with the version as label"),
    ("process_resident_memory_bytes", Kind::Gauge, Unit::Bytes, "Resident memory of the process"),
    ("process_cpu_seconds_total", Kind::Counter, Unit::Seconds, "Processor time of the process, user and system"),
    ("process_open_fds", Kind::Gauge, Unit::Count, "Open file descriptors of the process"),
    ("process_start_time_seconds", Kind::Gauge, Unit::Seconds, "Start of the process, in seconds since 1970"),
];

/// Installs the recorder of this process and describes all metrics.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle =
        PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS_BUCKETS)?.install_recorder()?;
    for (name, kind, unit, help) in METRICS {
        match kind {
            Kind::Counter => describe_counter!(*name, *unit, *help),
            Kind::Gauge => describe_gauge!(*name, *unit, *help),
            Kind::Histogram => describe_histogram!(*name, *unit, *help),
        }
    }
    streamshield_checkpoint::describe_metrics();
    gauge!("streamshield_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    gauge!("process_start_time_seconds").set(now.as_secs_f64());
    Ok(handle)
}

/// Exports what the job promises.
pub fn export_slo(slo: &Slo) {
    if let Some(latency) = slo.max_latency {
        gauge!("streamshield_slo_max_latency_seconds").set(latency.as_secs_f64());
    }
    if let Some(completeness) = slo.completeness {
        gauge!("streamshield_slo_completeness_ratio").set(completeness);
    }
}

/// Exports a job's status.
pub fn export_status(status: &JobStatus) {
    counter!("streamshield_source_records_total").absolute(status.records_in);
    counter!("streamshield_sink_rows_total").absolute(status.rows_out);
    counter!("streamshield_late_rows_total").absolute(status.late_rows);
    counter!("streamshield_bad_records_total").absolute(status.bad_records);
    counter!("streamshield_dead_letters_total").absolute(status.dead_letters);
    counter!("streamshield_epochs_total").absolute(status.epochs);
    for (name, milliseconds) in
        [("streamshield_latency_p50_seconds", status.latency_p50_ms), ("streamshield_latency_p99_seconds", status.latency_p99_ms)]
    {
        // A gauge that was set once stays in the recorder.
        gauge!(name).set(milliseconds.map_or(f64::NAN, |milliseconds| milliseconds / 1000.0));
    }
    gauge!("streamshield_paused").set(if status.paused_since_ms.is_some() { 1.0 } else { 0.0 });
    gauge!("streamshield_running").set(if status.state == "running" { 1.0 } else { 0.0 });
    regions::export(&status.regions);
}

/// Exports what the operating system knows about this process (Linux; elsewhere nothing).
pub fn export_process() {
    if let Some(bytes) = process::resident_bytes() {
        gauge!("process_resident_memory_bytes").set(bytes as f64);
    }
    if let Some(seconds) = process::cpu_seconds() {
        // The facade's counters are whole numbers, and fractions of a second matter here: `rendered` corrects the type.
        gauge!("process_cpu_seconds_total").set(seconds);
    }
    if let Some(descriptors) = process::open_descriptors() {
        gauge!("process_open_fds").set(descriptors as f64);
    }
}

/// All metrics as text.
pub fn rendered(recorder: &PrometheusHandle) -> String {
    recorder.render().replacen("# TYPE process_cpu_seconds_total gauge\n", "# TYPE process_cpu_seconds_total counter\n", 1)
}

/// Reads of `/proc/self`.
mod process {
    /// Of every Linux this runs on (`getconf CLK_TCK`).
    const TICKS_PER_SECOND: f64 = 100.0;

    pub fn resident_bytes() -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes * 1024)
    }

    pub fn cpu_seconds() -> Option<f64> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the command in parentheses and may hold anything; fields are counted behind it.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
        Some(ticks / TICKS_PER_SECOND)
    }

    pub fn open_descriptors() -> Option<usize> {
        Some(std::fs::read_dir("/proc/self/fd").ok()?.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_is_described_once() {
        let names: std::collections::BTreeSet<&str> = METRICS.iter().map(|(name, ..)| *name).collect();
        assert_eq!(names.len(), METRICS.len());
    }

    #[test]
    fn names_follow_the_prometheus_rules() {
        for (name, kind, unit, help) in METRICS {
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(*unit != Unit::Seconds || name.contains("_seconds"), "{name}");
            assert!(*unit != Unit::Bytes || name.contains("_bytes"), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') && !help.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn a_latency_of_nothing_is_not_the_last_one() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let exported = |latency_p99_ms| {
            metrics::with_local_recorder(&recorder, || export_status(&JobStatus { latency_p99_ms, ..Default::default() }));
            let text = rendered(&recorder.handle());
            text.lines().find_map(|line| line.strip_prefix("streamshield_latency_p99_seconds ").map(str::to_string))
        };
        assert_eq!(exported(Some(250.0)).as_deref(), Some("0.25"));
        assert_eq!(exported(None).as_deref(), Some("NaN"));
    }

    #[test]
    fn processor_time_is_exported_as_the_counter_that_it_is() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, export_process);
        let exported = rendered(&recorder.handle());
        assert!(exported.contains("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total "), "{exported}");
        assert!(exported.contains("# TYPE process_open_fds gauge\n"), "{exported}");
    }

    #[test]
    fn the_process_knows_its_own_figures() {
        assert!(process::resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
        assert!(process::cpu_seconds().is_some() && process::open_descriptors().is_some_and(|count| count > 0));
    }
}

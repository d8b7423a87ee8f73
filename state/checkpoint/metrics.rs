//! Metrics of region checkpoints, by the rules of Prometheus: base units, `_total` for counters.
//!
//! Each save that succeeded is counted here, by where it came to lie. One that failed is counted by whoever asked for it: making the copy that is saved fails as well.

use crate::names::region_folder;
use ::metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use std::time::Duration;
use streamshield_core::ids::RegionId;
use streamshield_core::ports::checkpoint::{Durability, Restored, Saved};

/// Tells the recorder of the process what they mean. To be called once it is installed.
pub fn describe_metrics() {
    describe_histogram!(
        "streamshield_checkpoint_duration_seconds",
        Unit::Seconds,
        "Time to save a region checkpoint, by where it came to lie"
    );
    describe_counter!("streamshield_checkpoints_total", Unit::Count, "Region checkpoints saved, by where they came to lie");
    describe_counter!("streamshield_checkpoint_bytes_total", Unit::Bytes, "Bytes of region checkpoints that were uploaded");
    describe_counter!(
        "streamshield_checkpoint_reused_bytes_total",
        Unit::Bytes,
        "Bytes of region checkpoints that lay in the store already and were not uploaded again"
    );
    describe_counter!(
        "streamshield_checkpoint_uploads_failed_total",
        Unit::Count,
        "Uploads of region checkpoints that failed; the checkpoint went to the local folder, if there is one"
    );
    describe_counter!(
        "streamshield_checkpoint_request_retries_total",
        Unit::Count,
        "Requests to the checkpoint store that were tried again"
    );
    describe_gauge!("streamshield_checkpoint_store_available", Unit::Count, "0 while the checkpoint store is away (circuit breaker open)");
    describe_gauge!(
        "streamshield_checkpoint_last_remote_timestamp_seconds",
        Unit::Seconds,
        "When the newest remote checkpoint of a region was made, in seconds since 1970"
    );
    describe_gauge!(
        "streamshield_checkpoint_last_timestamp_seconds",
        Unit::Seconds,
        "When the newest checkpoint of a region was made, wherever it lies, in seconds since 1970"
    );
    describe_gauge!("streamshield_checkpoint_local", Unit::Count, "Checkpoints of a region that wait in the local folder for the store");
    describe_histogram!("streamshield_checkpoint_restore_duration_seconds", Unit::Seconds, "Time to fetch a region checkpoint");
    describe_counter!("streamshield_checkpoint_restore_bytes_total", Unit::Bytes, "Bytes fetched by restores");
    describe_counter!(
        "streamshield_checkpoint_refused_total",
        Unit::Count,
        "Checkpoints that a restore refused because they are damaged or incomplete"
    );
    describe_counter!("streamshield_checkpoint_deleted_objects_total", Unit::Count, "Objects deleted by garbage collection");
}

fn durability_label(durability: Durability) -> &'static str {
    match durability {
        Durability::Local => "local",
        Durability::Remote => "remote",
    }
}

pub(crate) fn saved(region: RegionId, saved: &Saved, created_ms: i64) {
    let label = durability_label(saved.durability);
    histogram!("streamshield_checkpoint_duration_seconds", "durability" => label).record(saved.seconds);
    counter!("streamshield_checkpoints_total", "durability" => label).increment(1);
    gauge!("streamshield_checkpoint_last_timestamp_seconds", "region" => region_folder(region)).set(created_ms as f64 / 1e3);
    if saved.durability == Durability::Remote {
        counter!("streamshield_checkpoint_bytes_total").increment(saved.bytes_uploaded);
        counter!("streamshield_checkpoint_reused_bytes_total").increment(saved.bytes.saturating_sub(saved.bytes_uploaded));
        last_remote(region, created_ms);
    }
}

pub(crate) fn last_remote(region: RegionId, created_ms: i64) {
    gauge!("streamshield_checkpoint_last_remote_timestamp_seconds", "region" => region_folder(region)).set(created_ms as f64 / 1e3);
}

pub(crate) fn local_waiting(region: RegionId, count: usize) {
    gauge!("streamshield_checkpoint_local", "region" => region_folder(region)).set(count as f64);
}

pub(crate) fn upload_failed() {
    counter!("streamshield_checkpoint_uploads_failed_total").increment(1);
}

pub(crate) fn request_retried() {
    counter!("streamshield_checkpoint_request_retries_total").increment(1);
}

pub(crate) fn store_available(available: bool) {
    gauge!("streamshield_checkpoint_store_available").set(if available { 1.0 } else { 0.0 });
}

pub(crate) fn restored(restored: &Restored) {
    histogram!("streamshield_checkpoint_restore_duration_seconds").record(Duration::from_secs_f64(restored.seconds));
    counter!("streamshield_checkpoint_restore_bytes_total").increment(restored.bytes_fetched);
}

pub(crate) fn refused() {
    counter!("streamshield_checkpoint_refused_total").increment(1);
}

pub(crate) fn deleted(objects: u64) {
    counter!("streamshield_checkpoint_deleted_objects_total").increment(objects);
}

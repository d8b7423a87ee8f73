//! Gauges per region, of those that are on this worker now.
//!
//! Regions move. A gauge that was set once stays in the recorder, so a region that has left would be shown here with its last figures for ever, beside the ones of
//! its new worker. What has left is therefore blanked at the next scrape: amounts to 0, so that sums over workers are right, positions and ages to NaN.

use metrics::gauge;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};
use streamshield_core::ports::checkpoint::Durability;
use streamshield_engine::runtime::RegionStatus;

/// A region in one of its two roles here.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    region: String,
    stage: String,
    follows: bool,
}

impl Series {
    fn of(region: &RegionStatus) -> Series {
        Series { region: region.region.clone(), stage: region.stage.clone(), follows: follows(region) }
    }

    fn labels(&self) -> [(&'static str, String); 2] {
        [("region", self.region.clone()), ("stage", self.stage.clone())]
    }
}

/// Bounded by the regions of the job.
static EXPORTED: Mutex<BTreeSet<Series>> = Mutex::new(BTreeSet::new());

/// Whether a region is only followed on this worker.
pub fn follows(region: &RegionStatus) -> bool {
    matches!(region.role.as_str(), "replica" | "standby")
}

pub fn export(regions: &[RegionStatus]) {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64);
    let present: BTreeSet<Series> = regions.iter().map(Series::of).collect();
    let before = std::mem::replace(&mut *EXPORTED.lock(), present.clone());
    before.difference(&present).for_each(blank);
    let followed = present.iter().filter(|series| series.follows).count();
    gauge!("streamshield_regions_followed").set(followed as f64);
    gauge!("streamshield_regions_owned").set((present.len() - followed) as f64);
    for region in regions {
        if follows(region) { export_follower(region) } else { export_owned(region, now_ms) }
    }
}

fn export_owned(region: &RegionStatus, now_ms: i64) {
    let labels = Series::of(region).labels();
    if let Some(watermark) = region.watermark_ms {
        gauge!("streamshield_watermark_timestamp_seconds", &labels).set(watermark as f64 / 1e3);
    }
    gauge!("streamshield_region_epoch", &labels).set(region.epoch as f64);
    gauge!("streamshield_region_stopped", &labels).set(if region.stopped.is_some() { 1.0 } else { 0.0 });
    gauge!("streamshield_state_bytes", &labels).set(region.state_bytes as f64);
    gauge!("streamshield_state_groups", &labels).set(region.state_groups as f64);
    if let Some(lag) = region.lag_records {
        gauge!("streamshield_region_lag_records", &labels).set(lag as f64);
    }
    if let Some(lag) = region.lag_ms {
        gauge!("streamshield_region_lag_seconds", &labels).set(lag as f64 / 1e3);
    }
    if let Some(checkpoint) = &region.checkpoint {
        gauge!("streamshield_checkpoint_epoch", &labels).set(checkpoint.epoch as f64);
        gauge!("streamshield_checkpoint_age_seconds", &labels).set((now_ms - checkpoint.at_ms).max(0) as f64 / 1e3);
    }
    let durability = match region.checkpoint.as_ref().map(|checkpoint| checkpoint.durability) {
        Some(Durability::Remote) => 2.0,
        Some(Durability::Local) => 1.0,
        None => 0.0,
    };
    gauge!("streamshield_checkpoint_durability", &labels).set(durability);
}

fn export_follower(region: &RegionStatus) {
    let labels = Series::of(region).labels();
    gauge!("streamshield_follower_epoch", &labels).set(region.epoch as f64);
    gauge!("streamshield_follower_epochs_behind", &labels).set(region.epochs_behind as f64);
    gauge!("streamshield_follower_diverged", &labels).set(if region.diverged_at.is_some() { 1.0 } else { 0.0 });
    gauge!("streamshield_follower_state_bytes", &labels).set(region.state_bytes as f64);
}

fn blank(series: &Series) {
    let labels = series.labels();
    let (amounts, positions): (&[&'static str], &[&'static str]) = match series.follows {
        true => (
            &["streamshield_follower_epochs_behind", "streamshield_follower_diverged", "streamshield_follower_state_bytes"],
            &["streamshield_follower_epoch"],
        ),
        false => (
            &[
                "streamshield_region_stopped",
                "streamshield_state_bytes",
                "streamshield_state_groups",
                "streamshield_region_lag_records",
                "streamshield_region_lag_seconds",
                "streamshield_checkpoint_durability",
            ],
            &[
                "streamshield_watermark_timestamp_seconds",
                "streamshield_region_epoch",
                "streamshield_checkpoint_epoch",
                "streamshield_checkpoint_age_seconds",
            ],
        ),
    };
    amounts.iter().for_each(|name| gauge!(*name, &labels).set(0.0));
    positions.iter().for_each(|name| gauge!(*name, &labels).set(f64::NAN));
}

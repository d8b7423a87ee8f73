//! What a worker tells about itself, once a second, in the control log.
//!
//! The control log is everybody's clock and memory, so a report must stay small whatever the number of regions: beyond [`REPORT_BYTES_MAX`] details go
//! first, sums stay, and the report says that it was cut. Short names on the wire, for the same reason. A report of a newer release may have more
//! fields, an older one fewer: unknown ones are skipped, missing ones are at their default.

use super::PhasesMs;
use crate::ids::Offset;
use serde::{Deserialize, Serialize};

/// Of the encoded report. A worker with a thousand regions fits.
pub const REPORT_BYTES_MAX: usize = 192 << 10;

/// Take-overs that a worker remembers.
const TAKEOVERS_MAX: usize = 32;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerReport {
    /// As [`super::WorkerStatus::state`].
    pub state: String,
    #[serde(rename = "in")]
    pub records_in: u64,
    #[serde(rename = "out")]
    pub rows_out: u64,
    #[serde(rename = "late")]
    pub late_rows: u64,
    #[serde(rename = "bad")]
    pub bad_records: u64,
    #[serde(rename = "dead")]
    pub dead_letters: u64,
    #[serde(rename = "p50", skip_serializing_if = "Option::is_none")]
    pub latency_p50_ms: Option<u64>,
    #[serde(rename = "p99", skip_serializing_if = "Option::is_none")]
    pub latency_p99_ms: Option<u64>,
    #[serde(rename = "cpu", skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    #[serde(rename = "rss", skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Those it owns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<RegionReport>,
    /// Those it follows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub followers: Vec<FollowerReport>,
    /// Its own, the newest last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub takeovers: Vec<TakeoverReport>,
    /// There was more to tell than fits.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegionReport {
    /// `s1/0`
    #[serde(rename = "r")]
    pub region: String,
    #[serde(rename = "s", skip_serializing_if = "String::is_empty")]
    pub stage: String,
    #[serde(rename = "e")]
    pub epoch: u64,
    #[serde(rename = "l", skip_serializing_if = "Option::is_none")]
    pub lag_records: Option<u64>,
    #[serde(rename = "lm", skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    #[serde(rename = "w", skip_serializing_if = "Option::is_none")]
    pub watermark_ms: Option<i64>,
    #[serde(rename = "b")]
    pub state_bytes: u64,
    #[serde(rename = "ca", skip_serializing_if = "Option::is_none")]
    pub checkpoint_age_ms: Option<u64>,
    #[serde(rename = "x", skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FollowerReport {
    #[serde(rename = "r")]
    pub region: String,
    #[serde(rename = "e")]
    pub epoch: u64,
    /// The epoch at which its digest differed from the owner's.
    #[serde(rename = "d", skip_serializing_if = "Option::is_none")]
    pub diverged: Option<u64>,
}

/// The phases of a take-over as the new owner measured them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TakeoverReport {
    #[serde(rename = "r")]
    pub region: String,
    /// Offset of the record that made it the owner.
    #[serde(rename = "a")]
    pub assignment: Offset,
    #[serde(rename = "p")]
    pub phases_ms: PhasesMs,
}

impl WorkerReport {
    /// Remembers a take-over, or what more is known of it.
    pub fn note_takeover(&mut self, takeover: TakeoverReport) {
        self.takeovers.retain(|known| (&known.region, known.assignment) != (&takeover.region, takeover.assignment));
        self.takeovers.push(takeover);
        let surplus = self.takeovers.len().saturating_sub(TAKEOVERS_MAX);
        self.takeovers.drain(..surplus);
    }

    /// The text for the control log, at most [`REPORT_BYTES_MAX`] long.
    pub fn encode(&self) -> String {
        let text = self.text();
        if text.len() <= REPORT_BYTES_MAX {
            return text;
        }
        // Ratios by bytes would need a second pass anyway; halving ends after a few rounds and keeps the first regions, the same ones every second.
        let mut cut = WorkerReport { cut: true, ..self.clone() };
        loop {
            cut.followers.truncate(cut.followers.len() / 2);
            cut.regions.truncate(cut.regions.len() / 2);
            for region in &mut cut.regions {
                if let Some(reason) = &mut region.stopped {
                    *reason = reason.chars().take(200).collect();
                }
            }
            let text = cut.text();
            if text.len() <= REPORT_BYTES_MAX || (cut.regions.is_empty() && cut.followers.is_empty()) {
                return text;
            }
        }
    }

    /// None: not a report.
    pub fn decode(text: &str) -> Option<WorkerReport> {
        serde_json::from_str(text).ok()
    }

    fn text(&self) -> String {
        serde_json::to_string(self).expect("plain data always serializes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(number: usize) -> RegionReport {
        RegionReport { region: format!("s0/{number}"), stage: "orders".into(), epoch: 1 << 40, lag_records: Some(7), ..Default::default() }
    }

    #[test]
    fn a_report_survives_the_log() {
        let report = WorkerReport { state: "running".into(), records_in: 5, regions: vec![region(1)], ..Default::default() };
        assert_eq!(WorkerReport::decode(&report.encode()), Some(report));
    }

    #[test]
    fn a_report_of_another_release_is_understood_as_far_as_it_goes() {
        let report = WorkerReport::decode(r#"{"state":"running","news":[1,2],"regions":[{"r":"s0/1","zz":3}]}"#).expect("a report");
        assert_eq!((report.state.as_str(), report.regions[0].region.as_str(), report.records_in), ("running", "s0/1", 0));
        assert_eq!(WorkerReport::decode("hello"), None);
    }

    #[test]
    fn a_report_is_bounded_whatever_there_is_to_tell() {
        let small = WorkerReport { regions: (0..1_000).map(region).collect(), ..Default::default() };
        assert!(small.encode().len() <= REPORT_BYTES_MAX && !WorkerReport::decode(&small.encode()).expect("a report").cut);
        let mut large = WorkerReport { records_in: 9, regions: (0..50_000).map(region).collect(), ..Default::default() };
        large.regions[0].stopped = Some("x".repeat(1 << 20));
        let text = large.encode();
        let cut = WorkerReport::decode(&text).expect("a report");
        assert!(text.len() <= REPORT_BYTES_MAX && cut.cut && cut.records_in == 9 && !cut.regions.is_empty(), "{} bytes", text.len());
    }

    #[test]
    fn a_take_over_is_told_once_with_its_newest_phases_and_old_ones_are_forgotten() {
        let mut report = WorkerReport::default();
        let takeover =
            |assignment, fence| TakeoverReport { region: "s0/1".into(), assignment, phases_ms: PhasesMs { fence, ..Default::default() } };
        report.note_takeover(takeover(1, None));
        report.note_takeover(takeover(1, Some(30)));
        assert_eq!(report.takeovers, [takeover(1, Some(30))]);
        (2..100).for_each(|assignment| report.note_takeover(takeover(assignment, None)));
        assert_eq!((report.takeovers.len(), report.takeovers[0].assignment), (TAKEOVERS_MAX, 68));
    }
}

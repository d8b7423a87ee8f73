//! What record `n` is, and when it is due: all that the right output depends on, as a pure function of a few numbers.
//!
//! ```text
//!   due(n)      start + n / rate, piece by piece where the rate was changed
//!   key(n)      drawn from the seed; the hot key with the share that holds from a record on
//!   partition   of the key: a key's records lie in one partition, in order
//!   event time  due − up to `disorder_ms`, so records are out of order
//!   watermark   due − disorder − 1 ms, in a column of its own: no record of the schedule is ever late
//!   legs        −v from one account, +v to another
//!   marker      every so many records: one row for each partition
//! ```
//! Faulty data is no part of the numbered records: each injected one has a number of its own, and [`Injected`] says what it was. So a fault changes nothing
//! about what the numbered records must give.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How far the event time of a late record lies in the past.
pub const LATE_MS: i64 = 3_600_000;
/// How far a poisonous record claims to be ahead: ten years.
pub const FAR_FUTURE_MS: i64 = 315_360_000_000;
/// 2100-01-01T00:00:00Z: the window of the bulk keys, which no watermark of the schedule reaches.
pub const BULK_TIME_MS: i64 = 4_102_444_800_000;
/// One bulk record goes with one of so many records.
pub const BULK_SHARE: u64 = 20;
/// Bytes of a bulk key.
pub const BULK_KEY_BYTES: usize = 384;
/// The key that turns hot.
pub const HOT_KEY: u64 = 0;
/// The other partitions' watermarks must move as well, else nothing would come out.
pub const HOT_SHARE_MAX: f64 = 0.95;
/// Records per second, whatever the factor.
const RATE_MAX: f64 = 10_000_000.0;
const PARTS: u32 = 1_000_000;

/// The size and shape of a load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Of the input and of each output topic, and the job's parallelism.
    pub partitions: i32,
    /// Records per second.
    pub rate: u64,
    pub keys: u64,
    /// Between which money moves.
    pub accounts: u64,
    /// Windows close this often, so a gap in their output is a gap of the job.
    pub window_ms: i64,
    /// By how much records are out of order, at most.
    pub disorder_ms: i64,
    /// One record of so many is a marker.
    pub marker_every: u64,
    /// About so many bytes of keys in a window that stays open until the end: state that the output's regions have to carry.
    pub bulk_bytes: u64,
    /// Of the topics that the load creates.
    pub replication_factor: i32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            partitions: 6,
            rate: 5_000,
            keys: 1_000,
            accounts: 1_000,
            window_ms: 100,
            disorder_ms: 50,
            marker_every: 50,
            bulk_bytes: 0,
            replication_factor: 1,
        }
    }
}

impl Settings {
    /// What can't be, in words.
    pub fn problem(&self) -> Option<String> {
        let wrong = [
            (self.partitions < 1, "a load needs at least one partition"),
            (self.rate < 1, "a load needs at least one record per second"),
            (self.keys < self.partitions as u64, "fewer keys than partitions: a partition without records would hold all windows open"),
            (self.accounts < 2, "transfers need at least two accounts"),
            (self.window_ms < 1, "a window has at least 1 ms"),
            (self.disorder_ms < 0, "records can't be out of order by less than nothing"),
            (self.marker_every < 1, "marker_every is at least 1"),
            (self.replication_factor < 1, "replication_factor is at least 1"),
        ];
        wrong.into_iter().find_map(|(is_wrong, problem)| is_wrong.then(|| problem.to_string()))
    }

    pub fn bulk_keys(&self) -> u64 {
        self.bulk_bytes / BULK_KEY_BYTES as u64
    }
}

/// Data that no sane producer sends. What must become of each is in [`oracle`](crate::oracle).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataFault {
    /// No JSON, half of a record, two in one.
    Undecodable,
    /// No JSON, and larger than a dead letter may be.
    Oversized,
    /// A good record whose message has no key.
    NullKey,
    /// A tombstone.
    NullValue,
    /// Claims a watermark ten years ahead.
    FarFuture,
    /// A good record whose window was over an hour ago.
    Late,
}

impl DataFault {
    pub const ALL: [DataFault; 6] =
        [DataFault::Undecodable, DataFault::Oversized, DataFault::NullKey, DataFault::NullValue, DataFault::FarFuture, DataFault::Late];

    /// As in plans: `far_future`.
    pub fn name(self) -> &'static str {
        match self {
            DataFault::Undecodable => "undecodable",
            DataFault::Oversized => "oversized",
            DataFault::NullKey => "null_key",
            DataFault::NullValue => "null_value",
            DataFault::FarFuture => "far_future",
            DataFault::Late => "late",
        }
    }

    pub fn parse(name: &str) -> Option<DataFault> {
        DataFault::ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// It is a row of the input's table: what does not look at event time passes it on.
    pub fn is_row(self) -> bool {
        matches!(self, DataFault::NullKey | DataFault::FarFuture | DataFault::Late)
    }
}

impl fmt::Display for DataFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The rate from a record on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateChange {
    pub from: u64,
    /// When record `from` is due.
    pub at_ms: i64,
    pub records_per_second: u64,
}

/// The hot key's share from a record on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotChange {
    pub from: u64,
    pub parts_per_million: u32,
}

/// Some faulty records that were sent at one moment, numbered from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {
    pub fault: DataFault,
    pub first: u64,
    pub count: u64,
    pub due_ms: i64,
}

/// One numbered record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub n: u64,
    pub key: u64,
    pub value: i64,
    pub due_ms: i64,
    pub event_ms: i64,
}

/// See the module text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    pub seed: u64,
    pub settings: Settings,
    /// Ascending; the first one holds from record 0 on.
    pub rates: Vec<RateChange>,
    pub hot: Vec<HotChange>,
    pub injected: Vec<Injected>,
}

impl Schedule {
    pub fn new(seed: u64, settings: Settings, start_ms: i64) -> Schedule {
        let rates = vec![RateChange { from: 0, at_ms: start_ms, records_per_second: settings.rate }];
        Schedule { seed, settings, rates, hot: Vec::new(), injected: Vec::new() }
    }

    pub fn start_ms(&self) -> i64 {
        self.rates.first().map_or(0, |rate| rate.at_ms)
    }

    fn rate_of(&self, n: u64) -> RateChange {
        let index = self.rates.partition_point(|rate| rate.from <= n).saturating_sub(1);
        self.rates[index]
    }

    pub fn due_ms(&self, n: u64) -> i64 {
        let rate = self.rate_of(n);
        rate.at_ms + (u128::from(n - rate.from) * 1_000 / u128::from(rate.records_per_second)) as i64
    }

    /// How many records are due at a moment.
    pub fn due_count(&self, now_ms: i64) -> u64 {
        let index = self.rates.partition_point(|rate| rate.at_ms <= now_ms).saturating_sub(1);
        let rate = self.rates[index];
        let since_ms = (now_ms - rate.at_ms).max(0) as u128;
        rate.from + (since_ms * u128::from(rate.records_per_second) / 1_000) as u64
    }

    /// From record `next` on, `factor` times the settings' rate. The schedule has no jump: `next` stays due when it was.
    pub fn set_rate(&mut self, next: u64, factor: f64) {
        let records_per_second = ((self.settings.rate as f64 * factor).round()).clamp(1.0, RATE_MAX) as u64;
        let change = RateChange { from: next, at_ms: self.due_ms(next), records_per_second };
        self.rates.retain(|rate| rate.from < next);
        self.rates.push(change);
    }

    /// After a pause: record `next` is due now, at the rate that it had.
    pub fn resume(&mut self, next: u64, now_ms: i64) {
        let RateChange { records_per_second, .. } = self.rate_of(next);
        let change = RateChange { from: next, at_ms: now_ms.max(self.due_ms(next)), records_per_second };
        self.rates.retain(|rate| rate.from < next);
        self.rates.push(change);
    }

    /// From record `next` on, this share of the records has one key.
    pub fn set_hot_key(&mut self, next: u64, share: f64) {
        let parts_per_million = (share.clamp(0.0, HOT_SHARE_MAX) * f64::from(PARTS)) as u32;
        self.hot.push(HotChange { from: next, parts_per_million });
    }

    pub fn key_of(&self, n: u64) -> u64 {
        let draw = mix(self.seed, n);
        let hot = self.hot.iter().rev().find(|hot| hot.from <= n).map_or(0, |hot| hot.parts_per_million);
        if ((draw >> 44) as u32) % PARTS < hot { HOT_KEY } else { (draw >> 12) % self.settings.keys }
    }

    pub fn partition_of_key(&self, key: u64) -> i32 {
        (key % self.settings.partitions as u64) as i32
    }

    pub fn value_of(&self, n: u64) -> i64 {
        1 + (mix(self.seed, n) % 1_000) as i64
    }

    pub fn record(&self, n: u64) -> Record {
        let due_ms = self.due_ms(n);
        let jitter_ms = (mix(self.seed ^ 0x6a17, n) % (self.settings.disorder_ms as u64 + 1)) as i64;
        Record { n, key: self.key_of(n), value: self.value_of(n), due_ms, event_ms: due_ms - jitter_ms }
    }

    /// From which account and to which one.
    pub fn accounts_of(&self, n: u64) -> (u64, u64) {
        let draw = mix(self.seed ^ 0xacc7, n);
        let from = (draw >> 32) % self.settings.accounts;
        (from, (from + 1 + (draw & 0xffff_ffff) % (self.settings.accounts - 1)) % self.settings.accounts)
    }

    pub fn is_marker(&self, n: u64) -> bool {
        n.is_multiple_of(self.settings.marker_every)
    }

    /// The bulk key that goes with record `n`; its value is the record's.
    pub fn bulk_key_of(&self, n: u64) -> Option<u64> {
        let keys = self.settings.bulk_keys();
        (keys > 0 && n.is_multiple_of(BULK_SHARE)).then(|| mix(self.seed ^ 0xb01c, n) % keys)
    }

    /// Of the first record of each bulk key, sent before the open loop begins.
    pub fn first_bulk_value(&self, key: u64) -> i64 {
        (mix(!self.seed, key) % 1_000) as i64
    }

    /// The watermark that a record carries when it is due then.
    pub fn watermark_ms(&self, due_ms: i64) -> i64 {
        due_ms - self.settings.disorder_ms - 1
    }

    /// Exclusive end of the window that a moment lies in.
    pub fn window_end_ms(&self, event_ms: i64) -> i64 {
        (event_ms.div_euclid(self.settings.window_ms) + 1) * self.settings.window_ms
    }

    /// What was injected under a number.
    pub fn injected_at(&self, number: u64) -> Option<&Injected> {
        let index = self.injected.partition_point(|injected| injected.first <= number).checked_sub(1)?;
        self.injected.get(index).filter(|injected| number < injected.first + injected.count)
    }

    pub fn injected_count(&self, fault: DataFault) -> u64 {
        self.injected.iter().filter(|injected| injected.fault == fault).map(|injected| injected.count).sum()
    }

    /// Of all kinds.
    pub fn injected_total(&self) -> u64 {
        self.injected.last().map_or(0, |injected| injected.first + injected.count)
    }
}

/// A well-mixed number for a number: random data that can be had at any index (splitmix64, Steele et al. 2014).
pub fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule() -> Schedule {
        Schedule::new(7, Settings { rate: 1_000, keys: 100, ..Settings::default() }, 1_000_000)
    }

    #[test]
    fn a_change_of_rate_moves_no_record_before_it_and_leaves_no_jump() {
        let mut schedule = schedule();
        let before: Vec<i64> = (0..=500).map(|n| schedule.due_ms(n)).collect();
        schedule.set_rate(500, 5.0);
        schedule.set_rate(1_000, 0.5);
        assert_eq!(before, (0..=500).map(|n| schedule.due_ms(n)).collect::<Vec<_>>());
        assert_eq!((schedule.due_ms(1_000), schedule.due_ms(1_001)), (1_000_600, 1_000_602));
        assert!((0..2_000).all(|n| schedule.due_ms(n) <= schedule.due_ms(n + 1)));
        for now_ms in 1_000_000..1_001_500 {
            let count = schedule.due_count(now_ms);
            assert!(count == 0 || schedule.due_ms(count - 1) <= now_ms);
            assert!(schedule.due_ms(count + 1) >= now_ms);
        }
    }

    #[test]
    fn a_rate_that_is_set_twice_before_a_record_counts_once() {
        let mut schedule = schedule();
        schedule.set_rate(500, 5.0);
        schedule.set_rate(500, 2.0);
        assert_eq!(schedule.rates.len(), 2);
        assert_eq!(schedule.due_ms(502) - schedule.due_ms(500), 1);
        schedule.set_rate(0, 3.0);
        assert_eq!(schedule.rates, [RateChange { from: 0, at_ms: 1_000_000, records_per_second: 3_000 }]);
    }

    #[test]
    fn after_a_pause_records_are_due_from_then_on_at_their_rate() {
        let mut schedule = schedule();
        let before: Vec<i64> = (0..500).map(|n| schedule.due_ms(n)).collect();
        schedule.resume(500, 1_010_000);
        assert_eq!(before, (0..500).map(|n| schedule.due_ms(n)).collect::<Vec<_>>());
        assert_eq!((schedule.due_ms(500), schedule.due_ms(501)), (1_010_000, 1_010_001));
        assert_eq!(schedule.due_count(1_010_002), 502);
    }

    #[test]
    fn a_key_turns_hot_from_a_record_on() {
        let mut schedule = schedule();
        let share = |schedule: &Schedule, range: std::ops::Range<u64>| {
            let length = (range.end - range.start) as f64;
            range.filter(|n| schedule.key_of(*n) == HOT_KEY).count() as f64 / length
        };
        schedule.set_hot_key(10_000, 0.6);
        schedule.set_hot_key(20_000, 0.0);
        assert!(share(&schedule, 0..10_000) < 0.05);
        assert!((0.55..0.65).contains(&share(&schedule, 10_000..20_000)));
        assert!(share(&schedule, 20_000..30_000) < 0.05);
    }

    #[test]
    fn no_record_of_the_schedule_is_late_by_its_own_partition() {
        let schedule = schedule();
        for partition in 0..schedule.settings.partitions {
            let mut watermark = i64::MIN;
            for n in 0..5_000 {
                let record = schedule.record(n);
                if schedule.partition_of_key(record.key) == partition {
                    assert!(record.event_ms > watermark);
                    watermark = watermark.max(schedule.watermark_ms(record.due_ms));
                }
            }
        }
    }

    #[test]
    fn injected_records_are_found_by_their_numbers() {
        let mut schedule = schedule();
        schedule.injected.push(Injected { fault: DataFault::Late, first: 0, count: 3, due_ms: 1 });
        schedule.injected.push(Injected { fault: DataFault::NullKey, first: 3, count: 1, due_ms: 2 });
        let faults: Vec<_> = (0..5).map(|number| schedule.injected_at(number).map(|injected| injected.fault)).collect();
        assert_eq!(faults, [Some(DataFault::Late), Some(DataFault::Late), Some(DataFault::Late), Some(DataFault::NullKey), None]);
        assert_eq!((schedule.injected_total(), schedule.injected_count(DataFault::Late)), (4, 3));
        assert!(DataFault::ALL.into_iter().all(|fault| DataFault::parse(fault.name()) == Some(fault)));
    }
}

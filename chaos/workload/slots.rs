//! Figures by time: what a run did in each tenth of a second.
//!
//! A run lasts hours and any interval of it may be asked for (healthy, under this fault, after it), so latencies are kept per slot, in logarithmic buckets
//! with 16 steps per power of two: a figure is wrong by at most 6 %, and a slot is some hundred bytes. Only buckets with entries are kept.

use serde::{Deserialize, Serialize};

/// Length of a slot.
pub const SLOT_MS: i64 = 100;
/// A run of two days; later values go into the last slot (M-1).
const SLOTS_MAX: usize = 2 * 24 * 3_600 * 10;
/// Below, each value has a bucket of its own.
const LINEAR: u64 = 16;

/// Counts by bucket of one slot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Slot {
    /// Bucket and count, ascending.
    counts: Vec<(u16, u32)>,
}

/// See the module text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slots {
    /// When slot 0 begins.
    start_ms: i64,
    slots: Vec<Slot>,
}

fn bucket_of(value: u64) -> u16 {
    if value < LINEAR {
        return value as u16;
    }
    let power = 63 - value.leading_zeros();
    let step = (value >> (power - 4)) & 15;
    ((u64::from(power) - 3) * LINEAR + step) as u16
}

/// The largest value of a bucket: percentiles err to the safe side.
fn highest_of(bucket: u16) -> u64 {
    let bucket = u64::from(bucket);
    if bucket < LINEAR {
        return bucket;
    }
    let (power, step) = (bucket / LINEAR + 3, bucket % LINEAR);
    ((LINEAR + step + 1) << (power - 4)) - 1
}

impl Slots {
    pub fn new(start_ms: i64) -> Slots {
        Slots { start_ms, slots: Vec::new() }
    }

    pub fn record(&mut self, at_ms: i64, value: u64) {
        let index = (((at_ms - self.start_ms).max(0) / SLOT_MS) as usize).min(SLOTS_MAX - 1);
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, Slot::default);
        }
        let (bucket, counts) = (bucket_of(value), &mut self.slots[index].counts);
        match counts.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(found) => counts[found].1 = counts[found].1.saturating_add(1),
            Err(place) => counts.insert(place, (bucket, 1)),
        }
    }

    /// Slots that begin in `[from_ms, to_ms)`.
    fn between(&self, from_ms: i64, to_ms: i64) -> &[Slot] {
        let index = |at_ms: i64| ((at_ms - self.start_ms + SLOT_MS - 1).max(0) / SLOT_MS).min(self.slots.len() as i64) as usize;
        let (from, to) = (index(from_ms), index(to_ms));
        &self.slots[from..to.max(from)]
    }

    /// Values in `[from_ms, to_ms)`.
    pub fn count(&self, from_ms: i64, to_ms: i64) -> u64 {
        self.between(from_ms, to_ms).iter().flat_map(|slot| &slot.counts).map(|(_, count)| u64::from(*count)).sum()
    }

    /// The value that this share (0.99) of the values in `[from_ms, to_ms)` does not exceed. None: there are no values.
    pub fn percentile(&self, share: f64, from_ms: i64, to_ms: i64) -> Option<u64> {
        self.percentile_over(share, &[(from_ms, to_ms)])
    }

    /// The same over several intervals together.
    pub fn percentile_over(&self, share: f64, parts: &[(i64, i64)]) -> Option<u64> {
        let mut totals: Vec<u64> = Vec::new();
        let slots = parts.iter().flat_map(|(from_ms, to_ms)| self.between(*from_ms, *to_ms));
        for (bucket, count) in slots.flat_map(|slot| &slot.counts) {
            let bucket = usize::from(*bucket);
            if bucket >= totals.len() {
                totals.resize(bucket + 1, 0);
            }
            totals[bucket] += u64::from(*count);
        }
        let wanted = ((totals.iter().sum::<u64>() as f64 * share.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut passed = 0;
        let found = totals.iter().position(|count| {
            passed += count;
            passed >= wanted
        });
        found.map(|bucket| highest_of(bucket as u16))
    }

    /// Values per second in `[from_ms, to_ms)`.
    pub fn per_second(&self, from_ms: i64, to_ms: i64) -> f64 {
        if to_ms <= from_ms { 0.0 } else { self.count(from_ms, to_ms) as f64 * 1_000.0 / (to_ms - from_ms) as f64 }
    }

    pub fn start_ms(&self) -> i64 {
        self.start_ms
    }

    /// Where the last slot ends.
    pub fn end_ms(&self) -> i64 {
        self.start_ms + self.slots.len() as i64 * SLOT_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_is_within_six_percent() {
        let mut last = None;
        for value in (0..5_000).chain([1 << 20, (1 << 40) + 12_345, u64::MAX >> 1]) {
            let (bucket, highest) = (bucket_of(value), highest_of(bucket_of(value)));
            assert!(highest >= value && highest as f64 <= value as f64 * 1.0625 + 1.0, "{value} in {bucket} up to {highest}");
            assert!(last.is_none_or(|last| last <= bucket));
            last = Some(bucket);
        }
    }

    #[test]
    fn percentiles_are_of_the_interval_that_is_asked_for() {
        let mut slots = Slots::new(1_000);
        for value in 1..=100 {
            slots.record(1_000 + value as i64, value);
            slots.record(5_000, 10_000);
        }
        assert_eq!(slots.percentile(0.5, 1_000, 2_000).map(|found| (50..=53).contains(&found)), Some(true));
        assert_eq!(slots.percentile(1.0, 1_000, 2_000).map(|found| (100..=106).contains(&found)), Some(true));
        assert_eq!(slots.percentile(0.01, 5_000, 5_001).map(|found| (10_000..10_625).contains(&found)), Some(true));
        assert_eq!((slots.percentile(0.5, 2_000, 5_000), slots.percentile(0.5, 9_000, 8_000)), (None, None));
        assert_eq!((slots.count(0, i64::MAX / 2), slots.per_second(5_000, 6_000)), (200, 100.0));
    }
}

//! Two ways to see that nothing is missing, doubled or out of order, in little memory.
//!
//! [`KeyLane`]: values 1, 2, 3… of one key. [`RecordLane`]: numbered records that go through one place, which the schedule lists in order. Both walk along
//! what must come: what is skipped is remembered as missing, and what comes later although it was skipped is out of order, not doubled.

use crate::schedule::Schedule;
use std::collections::BTreeSet;

/// Missing values that a lane remembers, to tell what is late from what is doubled (M-1). Beyond, they are only counted.
const MISSING_MAX: usize = 10_000;

/// What a value is to a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Expected,
    /// It was skipped before: out of order.
    Belated,
    Duplicate,
    /// No value of this lane.
    Foreign,
}

/// Values that were skipped.
#[derive(Clone, Debug, Default)]
pub struct Missing {
    kept: BTreeSet<u64>,
    /// Not kept any more.
    beyond: u64,
}

impl Missing {
    fn add(&mut self, value: u64) {
        if self.kept.len() < MISSING_MAX {
            self.kept.insert(value);
        } else {
            self.beyond += 1;
        }
    }

    pub fn count(&self) -> u64 {
        self.kept.len() as u64 + self.beyond
    }

    pub fn values(&self) -> impl Iterator<Item = u64> + '_ {
        self.kept.iter().copied()
    }

    /// `7, 8, 9, … (120 in all)`
    pub fn describe(&self) -> String {
        let first: Vec<String> = self.kept.iter().take(5).map(u64::to_string).collect();
        let more = if self.count() > 5 { format!(", … ({} in all)", self.count()) } else { String::new() };
        format!("{}{more}", first.join(", "))
    }
}

/// Values 1, 2, 3…
#[derive(Clone, Debug, Default)]
pub struct KeyLane {
    /// The highest one that has come.
    highest: u64,
    missing: Option<Box<Missing>>,
}

impl KeyLane {
    pub fn take(&mut self, value: u64) -> Step {
        if value == self.highest + 1 {
            self.highest = value;
            return Step::Expected;
        }
        if value == 0 {
            return Step::Foreign;
        }
        if value <= self.highest {
            let was_missing = self.missing.as_mut().is_some_and(|missing| missing.kept.remove(&value));
            return if was_missing { Step::Belated } else { Step::Duplicate };
        }
        let missing = self.missing.get_or_insert_default();
        (self.highest + 1..value).for_each(|skipped| missing.add(skipped));
        self.highest = value;
        Step::Expected
    }

    /// What has not come of `1..=last`.
    pub fn finish(mut self, last: u64) -> Missing {
        let mut missing = self.missing.take().map_or_else(Missing::default, |missing| *missing);
        (self.highest + 1..=last).for_each(|value| missing.add(value));
        missing
    }
}

/// Which numbered records go through a lane.
pub trait Course {
    fn holds(&self, schedule: &Schedule, n: u64) -> bool;
    /// Every how many records there may be one.
    fn stride(&self, _schedule: &Schedule) -> u64 {
        1
    }
}

/// All records of one input partition.
#[derive(Clone, Copy, Debug)]
pub struct OfPartition(pub i32);

impl Course for OfPartition {
    fn holds(&self, schedule: &Schedule, n: u64) -> bool {
        schedule.partition_of_key(schedule.key_of(n)) == self.0
    }
}

/// The markers of one input partition.
#[derive(Clone, Copy, Debug)]
pub struct MarkersOf(pub i32);

impl Course for MarkersOf {
    fn holds(&self, schedule: &Schedule, n: u64) -> bool {
        schedule.is_marker(n) && OfPartition(self.0).holds(schedule, n)
    }

    fn stride(&self, schedule: &Schedule) -> u64 {
        schedule.settings.marker_every
    }
}

/// Numbered records in the order of the schedule.
#[derive(Clone, Debug)]
pub struct RecordLane<C> {
    course: C,
    /// Where to look for the next one: a multiple of the stride.
    next: u64,
    missing: Missing,
}

impl<C: Course> RecordLane<C> {
    pub fn new(course: C) -> RecordLane<C> {
        RecordLane { course, next: 0, missing: Missing::default() }
    }

    /// `records`: how many were sent.
    pub fn take(&mut self, schedule: &Schedule, records: u64, n: u64) -> Step {
        if n >= records || !self.course.holds(schedule, n) {
            return Step::Foreign;
        }
        if n < self.next {
            return if self.missing.kept.remove(&n) { Step::Belated } else { Step::Duplicate };
        }
        self.skip_to(schedule, n);
        self.next = n + self.course.stride(schedule);
        Step::Expected
    }

    fn skip_to(&mut self, schedule: &Schedule, end: u64) {
        while self.next < end {
            if self.course.holds(schedule, self.next) {
                self.missing.add(self.next);
            }
            self.next += self.course.stride(schedule);
        }
    }

    /// What has not come.
    pub fn finish(mut self, schedule: &Schedule, records: u64) -> Missing {
        self.skip_to(schedule, records);
        self.missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Settings;

    #[test]
    fn a_key_lane_tells_lost_late_and_doubled_apart() {
        let mut lane = KeyLane::default();
        let steps: Vec<Step> = [1, 2, 5, 4, 4, 2, 0, 6].into_iter().map(|value| lane.take(value)).collect();
        use Step::*;
        assert_eq!(steps, [Expected, Expected, Expected, Belated, Duplicate, Duplicate, Foreign, Expected]);
        assert_eq!(lane.finish(8).values().collect::<Vec<_>>(), [3, 7, 8]);
    }

    #[test]
    fn a_record_lane_knows_the_records_of_its_partition() {
        let schedule = Schedule::new(3, Settings::default(), 0);
        let of_lane: Vec<u64> = (0..1_000).filter(|n| OfPartition(2).holds(&schedule, *n)).collect();
        let stranger = (0..1_000).find(|n| !OfPartition(2).holds(&schedule, *n)).expect("another partition's record");
        let mut lane = RecordLane::new(OfPartition(2));
        assert_eq!(lane.take(&schedule, 1_000, of_lane[0]), Step::Expected);
        assert_eq!(lane.take(&schedule, 1_000, of_lane[3]), Step::Expected);
        assert_eq!(lane.take(&schedule, 1_000, of_lane[2]), Step::Belated);
        assert_eq!(lane.take(&schedule, 1_000, of_lane[0]), Step::Duplicate);
        assert_eq!(lane.take(&schedule, 1_000, stranger), Step::Foreign);
        assert_eq!(lane.take(&schedule, 1_000, 1_000), Step::Foreign);
        let missing = lane.finish(&schedule, of_lane[6]);
        assert_eq!(missing.values().collect::<Vec<_>>(), [of_lane[1], of_lane[4], of_lane[5]]);
    }

    #[test]
    fn what_is_missing_is_counted_beyond_what_is_remembered() {
        let mut lane = KeyLane::default();
        lane.take(100_001);
        let missing = lane.finish(100_001);
        assert_eq!(missing.count(), 100_000);
        assert_eq!(missing.describe(), "1, 2, 3, 4, 5, … (100000 in all)");
    }
}

//! Reads the output while it is committed: what a consumer gets, and when.
//!
//! One thread follows all four outputs as a reader of committed messages and keeps, in bounded space,
//! - **latency** from when a record was due to when its row could be read, and rows, by tenths of a second ([`slots`](crate::slots));
//! - **silences** of each output partition: the gaps of a take-over. Partition `p` of `windows` is written by region `p` of the window stage alone, partition `p` of
//!   `transfers` by region `p` of its source stage;
//! - **balances**: whenever it has read a partition of `transfers` up to its last stable offset, no transaction of it is half visible, so its amounts add up to 0;
//! - **digests** of what it has seen, by blocks of offsets: the oracle reads the same offsets at the end. A row that was seen and is gone was never committed
//!   (`aborted-read`), one that is there and was not seen is `unseen`, another value at the same offset is `inconsistent-offsets`.

use crate::client::{Isolation, Met, Reader};
use crate::error::WorkloadError;
use crate::feeder::Sent;
use crate::findings::{Anomaly, AnomalyKind, Invariant};
use crate::job::Workload;
use crate::oracle::Expected;
use crate::oracle::rows::{PassedRow, TransferRow, WindowRow};
use crate::payload::Key;
use crate::slots::Slots;
use crate::time::wall_ms;
use parking_lot::Mutex;
use rdkafka::Message;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const POLL: Duration = Duration::from_millis(20);
/// Rows are seen at once in any case; it looks at balances where nothing new comes.
const FETCH_WAIT: Duration = Duration::from_millis(250);
/// Rows that come within this time of each other are one activity: shorter silences are none.
const ACTIVITY_JOIN_MS: i64 = 20;
/// Activities kept per partition (M-1): a day of commits, ten a second.
const ACTIVITIES_MAX: usize = 1_000_000;
/// Live anomalies kept (M-1).
const ANOMALIES_MAX: usize = 100;
/// Offsets per digest.
pub const BLOCK_OFFSETS: i64 = 1_024;

/// One of the outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flow {
    Passed,
    Windows,
    Transfers,
    Markers,
}

impl Flow {
    pub const ALL: [Flow; 4] = [Flow::Passed, Flow::Windows, Flow::Transfers, Flow::Markers];
}

/// A silence of one output partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    pub flow: Flow,
    pub partition: i32,
    /// The last row before.
    pub from_ms: i64,
    /// The first row after; the end of the interval that was asked for, if there was none.
    pub to_ms: i64,
    pub is_over: bool,
}

impl Gap {
    pub fn length_ms(&self) -> i64 {
        self.to_ms - self.from_ms
    }

    /// What lies before an interval is not the doing of what has begun it, and what lies after belongs to whatever has ended it.
    fn length_within_ms(&self, begin_ms: i64, end_ms: i64) -> i64 {
        self.to_ms.min(end_ms) - self.from_ms.max(begin_ms)
    }
}

/// Of some offsets: rows, and a sum of hashes of offset and bytes that does not depend on the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    pub rows: u32,
    pub sum: u64,
}

impl Block {
    pub fn add(&mut self, offset: i64, key: Option<&[u8]>, value: Option<&[u8]>) {
        let seed = key.map_or(1, |key| xxh3_64_with_seed(key, offset as u64));
        self.rows += 1;
        self.sum = self.sum.wrapping_add(xxh3_64_with_seed(value.unwrap_or_default(), seed));
    }
}

/// What was seen of one output partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SeenPartition {
    /// First and last row of each activity, in milliseconds since 1970.
    activities: Vec<(i64, i64)>,
    /// By `offset / BLOCK_OFFSETS`.
    pub blocks: Vec<Block>,
    /// The next offset after the last row.
    pub next: i64,
    /// Of amounts, in `transfers`.
    balance: i64,
}

impl SeenPartition {
    fn see(&mut self, at_ms: i64, offset: i64, key: Option<&[u8]>, payload: Option<&[u8]>) {
        let block = (offset / BLOCK_OFFSETS) as usize;
        if block >= self.blocks.len() {
            self.blocks.resize_with(block + 1, Block::default);
        }
        self.blocks[block].add(offset, key, payload);
        self.next = self.next.max(offset + 1);
        let is_full = self.activities.len() >= ACTIVITIES_MAX;
        match self.activities.last_mut() {
            Some((_, last)) if is_full || at_ms - *last <= ACTIVITY_JOIN_MS => *last = at_ms,
            _ => self.activities.push((at_ms, at_ms)),
        }
    }
}

/// All that was seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    latency: BTreeMap<Flow, Slots>,
    #[serde(with = "pairs")]
    partitions: BTreeMap<(Flow, i32), SeenPartition>,
    rows: BTreeMap<Flow, u64>,
    /// By partition of the input, when the newest of its records was due whose row was seen in `passed`.
    #[serde(default)]
    newest_due_ms: Vec<Option<i64>>,
    /// Snapshots of `transfers` partitions whose balance was looked at.
    pub snapshots: u64,
    pub anomalies: Vec<Anomaly>,
}

impl Observation {
    fn new(start_ms: i64) -> Observation {
        Observation {
            latency: Flow::ALL.into_iter().map(|flow| (flow, Slots::new(start_ms))).collect(),
            partitions: BTreeMap::new(),
            rows: BTreeMap::new(),
            newest_due_ms: Vec::new(),
            snapshots: 0,
            anomalies: Vec::new(),
        }
    }

    /// Rows as a test has them, at offsets 0, 1, 2… of their partitions.
    #[cfg(test)]
    pub(crate) fn of_rows<'r>(flow: Flow, rows: impl Iterator<Item = (i32, Option<&'r [u8]>, &'r [u8])>) -> Observation {
        let mut observation = Observation::new(0);
        for (partition, key, payload) in rows {
            let seen = observation.partitions.entry((flow, partition)).or_default();
            seen.see(0, seen.next, key, Some(payload));
        }
        observation
    }

    /// Milliseconds from when a record was due to when its row could be read, that this share (0.99) of the rows read in `[from_ms, to_ms)` does not exceed.
    /// `Passed`: each record; `Windows`: the newest record of each group, until the window was closed and committed. None: no row was read.
    /// The other flows have none.
    pub fn latency_ms(&self, flow: Flow, share: f64, from_ms: i64, to_ms: i64) -> Option<u64> {
        if !matches!(flow, Flow::Passed | Flow::Windows) {
            return None;
        }
        self.latency.get(&flow)?.percentile(share, from_ms, to_ms)
    }

    /// The same over several intervals together: a phase of a run is seldom in one piece.
    pub fn latency_over(&self, flow: Flow, share: f64, parts: &[(i64, i64)]) -> Option<u64> {
        self.latency.get(&flow)?.percentile_over(share, parts)
    }

    /// Rows read so far. `Passed` has one per record.
    pub fn rows(&self, flow: Flow) -> u64 {
        self.rows.get(&flow).copied().unwrap_or(0)
    }

    /// When the record was due that each partition of the input has got to at least, by the rows in `passed`. None: of one nothing has come yet.
    pub fn passed_until_ms(&self) -> Option<i64> {
        self.newest_due_ms.iter().copied().min().flatten()
    }

    pub fn rows_between(&self, flow: Flow, from_ms: i64, to_ms: i64) -> u64 {
        self.latency.get(&flow).map_or(0, |slots| slots.count(from_ms, to_ms))
    }

    pub fn rows_per_second(&self, flow: Flow, from_ms: i64, to_ms: i64) -> f64 {
        self.latency.get(&flow).map_or(0.0, |slots| slots.per_second(from_ms, to_ms))
    }

    /// The silence of a partition that is the longest as far as it lies in `[from_ms, to_ms)`; its ends may lie outside. None: it has not been silent
    /// there for more than some milliseconds.
    pub fn longest_gap(&self, flow: Flow, partition: i32, from_ms: i64, to_ms: i64) -> Option<Gap> {
        let activities = self.partitions.get(&(flow, partition)).map_or(&[][..], |seen| &seen.activities);
        let first = activities.partition_point(|(_, last)| *last < from_ms);
        let before = first.checked_sub(1).map_or(from_ms, |index| activities[index].1);
        let mut longest: Option<Gap> = None;
        let mut silent_since = before;
        for (begin, end) in activities[first..].iter().map(|activity| (activity.0, activity.1)).chain([(i64::MAX, i64::MAX)]) {
            let is_over = begin != i64::MAX;
            let gap = Gap { flow, partition, from_ms: silent_since, to_ms: if is_over { begin } else { to_ms }, is_over };
            let touches = silent_since < to_ms && begin > from_ms;
            let length_ms = |gap: Gap| gap.length_within_ms(from_ms, to_ms);
            if touches && length_ms(gap) > longest.map_or(ACTIVITY_JOIN_MS, length_ms) {
                longest = Some(gap);
            }
            if begin >= to_ms {
                break;
            }
            silent_since = end;
        }
        longest
    }

    /// The same for all partitions of a flow, the longest first, as far as they lie in the interval.
    pub fn gaps(&self, flow: Flow, from_ms: i64, to_ms: i64) -> Vec<Gap> {
        let partitions = self.partitions.keys().filter(|(of, _)| *of == flow).map(|(_, partition)| *partition);
        let mut gaps: Vec<Gap> = partitions.filter_map(|partition| self.longest_gap(flow, partition, from_ms, to_ms)).collect();
        gaps.sort_by_key(|gap| std::cmp::Reverse(gap.length_within_ms(from_ms, to_ms)));
        gaps
    }

    /// What was seen of a partition.
    pub fn partition(&self, flow: Flow, partition: i32) -> Option<&SeenPartition> {
        self.partitions.get(&(flow, partition))
    }

    pub(crate) fn partitions_of(&self, flow: Flow) -> impl Iterator<Item = (i32, &SeenPartition)> {
        self.partitions.iter().filter(move |((of, _), _)| *of == flow).map(|((_, partition), seen)| (*partition, seen))
    }

    fn see(&mut self, flow: Flow, message: &impl Message, now_ms: i64) {
        *self.rows.entry(flow).or_default() += 1;
        let seen = self.partitions.entry((flow, message.partition())).or_default();
        seen.see(now_ms, message.offset(), message.key(), message.payload());
        let payload = message.payload().unwrap_or_default();
        // What can't be read is the oracle's to judge.
        let due_ms = match flow {
            Flow::Passed => serde_json::from_slice::<PassedRow<'_>>(payload).ok().map(|row| {
                note_newest(&mut self.newest_due_ms, &row);
                row.due_ms
            }),
            Flow::Windows => serde_json::from_slice::<WindowRow<'_>>(payload).ok().map(|row| row.due_ms),
            Flow::Transfers => {
                seen.balance += serde_json::from_slice::<TransferRow<'_>>(payload).map_or(0, |row| row.amount);
                None
            }
            Flow::Markers => None,
        };
        if let Some(slots) = self.latency.get_mut(&flow) {
            // Rows without a due time count as rows.
            slots.record(now_ms, due_ms.map_or(0, |due_ms| (now_ms - due_ms).max(0) as u64));
        }
    }

    /// The reader stands at the last stable offset of this partition.
    fn snapshot(&mut self, topic: &str, partition: i32) {
        let Some(seen) = self.partitions.get(&(Flow::Transfers, partition)) else { return };
        self.snapshots += 1;
        if seen.balance != 0 && self.anomalies.len() < ANOMALIES_MAX {
            let detail = format!("a reader of committed messages sees a total of {} instead of 0", seen.balance);
            self.anomalies.push(Anomaly::new(AnomalyKind::TornTransaction, Invariant::E3, detail).at(topic, partition, seen.next));
        }
    }
}

/// A key's records lie in one partition of the input ([`Schedule::partition_of_key`](crate::schedule::Schedule::partition_of_key)), whichever partition of the
/// output their rows are in. Injected records lie anywhere.
fn note_newest(newest_due_ms: &mut [Option<i64>], row: &PassedRow<'_>) {
    let Some(Key::Numbered(key)) = row.k.as_deref().and_then(Key::parse) else { return };
    let partition = key.checked_rem(newest_due_ms.len() as u64);
    if let Some(newest) = partition.and_then(|partition| newest_due_ms.get_mut(partition as usize)) {
        *newest = (*newest).max(Some(row.due_ms));
    }
}

/// Reads on a thread of its own. Dropping it ends that.
pub struct Observer {
    shared: Arc<Mutex<Observation>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), WorkloadError>>>,
}

/// How the wait for the end of the output has ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drained {
    /// As many rows have come as must come. The oracle says whether they are the right ones.
    pub is_complete: bool,
    pub rows: u64,
    pub rows_expected: u64,
    pub seconds: f64,
}

impl Observer {
    pub(crate) fn start(workload: &Workload, servers: &str) -> Result<Observer, WorkloadError> {
        let topics = workload.topics();
        let names = topics.outputs().map(str::to_string);
        let mut reader = Reader::open_patient(servers, &names.each_ref().map(String::as_str), Isolation::Committed, FETCH_WAIT)?;
        let newest_due_ms = vec![None; workload.settings.partitions as usize];
        let shared = Arc::new(Mutex::new(Observation { newest_due_ms, ..Observation::new(wall_ms()) }));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, stopped) = (shared.clone(), stop.clone());
        let follow = move || {
            while !stopped.load(Ordering::Relaxed) {
                match reader.next(POLL)? {
                    Met::Message(message) => {
                        let flow = flow_of(&names, message.topic());
                        seen.lock().see(flow, &message, wall_ms());
                    }
                    Met::End { topic, partition } if flow_of(&names, &topic) == Flow::Transfers => seen.lock().snapshot(&topic, partition),
                    Met::End { .. } | Met::Nothing => {}
                }
            }
            Ok(())
        };
        let thread = std::thread::Builder::new()
            .name("observer".into())
            .spawn(follow)
            .map_err(|error| WorkloadError::Harness(format!("no thread for the observer: {error}")))?;
        Ok(Observer { shared, stop, thread: Some(thread) })
    }

    /// Figures while it reads.
    pub fn look<R>(&self, question: impl FnOnce(&Observation) -> R) -> R {
        question(&self.shared.lock())
    }

    /// Still reading: the thread has not failed.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits until all rows of a load that was stopped have come; gives up when nothing new has come for `quiet_max`.
    pub fn wait_drained(&self, sent: &Sent, quiet_max: Duration) -> Drained {
        let started = Instant::now();
        let expected = Expected::rows(sent);
        let rows_expected = expected.values().sum();
        let (mut rows_before, mut last_news) = (0, Instant::now());
        loop {
            let (rows, is_complete) = self.look(|seen| {
                let is_complete = expected.iter().all(|(flow, rows)| seen.rows(*flow) >= *rows);
                (Flow::ALL.into_iter().map(|flow| seen.rows(flow)).sum(), is_complete)
            });
            if rows > rows_before {
                (rows_before, last_news) = (rows, Instant::now());
            }
            if is_complete || last_news.elapsed() > quiet_max || !self.is_alive() {
                return Drained { is_complete, rows, rows_expected, seconds: started.elapsed().as_secs_f64() };
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends the reading.
    pub fn stop(mut self) -> Result<Observation, WorkloadError> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("only stop takes it");
        thread.join().map_err(|_| WorkloadError::Harness("the observer panicked".into()))??;
        Ok(self.shared.lock().clone())
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn flow_of(names: &[String; 4], topic: &str) -> Flow {
    let index = names.iter().position(|name| name == topic).unwrap_or_default();
    Flow::ALL[index]
}

/// Maps with keys that JSON can't have as such.
mod pairs {
    use super::{BTreeMap, Flow, SeenPartition};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(map: &BTreeMap<(Flow, i32), SeenPartition>, serializer: S) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<(Flow, i32), SeenPartition>, D::Error> {
        Ok(Vec::<((Flow, i32), SeenPartition)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(activities: &[(i64, i64)]) -> Observation {
        let mut observation = Observation::new(0);
        let seen = SeenPartition { activities: activities.to_vec(), ..SeenPartition::default() };
        observation.partitions.insert((Flow::Windows, 3), seen);
        observation
    }

    #[test]
    fn the_gap_of_a_kill_begins_with_the_last_row_before_it() {
        let observation = observed(&[(0, 1_000), (2_500, 4_000), (4_100, 9_000)]);
        let gap = observation.longest_gap(Flow::Windows, 3, 1_200, 4_000).expect("a silence");
        assert_eq!((gap.from_ms, gap.to_ms, gap.is_over), (1_000, 2_500, true));
        let gap = observation.longest_gap(Flow::Windows, 3, 4_000, 9_000).expect("a silence");
        assert_eq!((gap.from_ms, gap.to_ms), (4_000, 4_100));
        assert_eq!(observation.longest_gap(Flow::Windows, 3, 5_000, 6_000), None);
    }

    #[test]
    fn the_silence_of_the_next_kill_is_not_taken_for_this_one() {
        let observation = observed(&[(0, 1_000), (2_200, 12_940), (14_500, 20_000)]);
        let gap = observation.longest_gap(Flow::Windows, 3, 1_010, 13_000).expect("a silence");
        assert_eq!((gap.from_ms, gap.to_ms), (1_000, 2_200));
    }

    #[test]
    fn the_longest_gap_of_all_partitions_is_the_one_that_is_longest_in_the_interval() {
        let mut observation = observed(&[(0, 1_000), (2_200, 13_500)]);
        let seen = SeenPartition { activities: vec![(0, 12_500), (30_000, 31_000)], ..SeenPartition::default() };
        observation.partitions.insert((Flow::Windows, 4), seen);
        let gaps = observation.gaps(Flow::Windows, 1_010, 13_000);
        let gaps: Vec<_> = gaps.iter().map(|gap| (gap.partition, gap.from_ms, gap.to_ms)).collect();
        assert_eq!(gaps, [(3, 1_000, 2_200), (4, 12_500, 30_000)]);
    }

    #[test]
    fn what_was_silent_before_the_kill_does_not_hide_the_silence_after_it() {
        let mut observation = observed(&[(0, 97_500), (100_200, 101_000), (101_500, 170_000)]);
        let seen = SeenPartition { activities: vec![(0, 99_900), (102_000, 170_000)], ..SeenPartition::default() };
        observation.partitions.insert((Flow::Windows, 4), seen);
        let gaps = observation.gaps(Flow::Windows, 100_000, 160_000);
        let gaps: Vec<_> = gaps.iter().map(|gap| (gap.partition, gap.from_ms, gap.to_ms)).collect();
        assert_eq!(gaps, [(4, 99_900, 102_000), (3, 101_000, 101_500)]);
    }

    #[test]
    fn half_a_transfer_that_a_reader_sees_is_a_torn_transaction() {
        let mut observation = Observation::new(0);
        observation.partitions.insert((Flow::Transfers, 0), SeenPartition { balance: -5, ..SeenPartition::default() });
        observation.snapshot("w.transfers", 0);
        assert_eq!(observation.anomalies.iter().map(|anomaly| anomaly.kind).collect::<Vec<_>>(), [AnomalyKind::TornTransaction]);
    }

    #[test]
    fn a_silence_that_lasts_ends_with_the_interval() {
        let observation = observed(&[(0, 1_000)]);
        let gap = observation.longest_gap(Flow::Windows, 3, 500, 7_000).expect("a silence");
        assert_eq!((gap.from_ms, gap.to_ms, gap.is_over), (1_000, 7_000, false));
        let gap = observation.longest_gap(Flow::Windows, 4, 500, 7_000).expect("never a row");
        assert_eq!((gap.length_ms(), gap.is_over), (6_500, false));
        assert_eq!(observation.gaps(Flow::Windows, 500, 7_000).len(), 1);
    }

    #[test]
    fn a_partition_of_the_input_that_stands_still_holds_back_what_has_come_whatever_the_others_give() {
        let mut newest_due_ms: Vec<Option<i64>> = vec![None; 2];
        let mut passed_until_ms = |key: &str, n: i64, due_ms: i64| {
            note_newest(&mut newest_due_ms, &PassedRow { k: Some(key.into()), n, seq: 1, v: 1, due_ms });
            Observation { newest_due_ms: newest_due_ms.clone(), ..Observation::new(0) }.passed_until_ms()
        };
        assert_eq!(passed_until_ms("k2", 0, 1_000), None, "nothing of the other one");
        assert_eq!(passed_until_ms("k3", 1, 1_001), Some(1_000));
        assert_eq!(passed_until_ms("k4", 2, 9_000), Some(1_001));
        assert_eq!(passed_until_ms("l7", -8, 9_000), Some(1_001), "an injected record is of no partition");
        assert_eq!(passed_until_ms("k1", 3, 9_500), Some(9_000));
    }

    #[test]
    fn an_observation_survives_its_journal() {
        let mut observation = observed(&[(0, 1_000)]);
        observation.latency.entry(Flow::Passed).and_modify(|slots| slots.record(100, 7));
        let text = serde_json::to_string(&observation).expect("plain data");
        assert_eq!(serde_json::from_str::<Observation>(&text).expect("the same"), observation);
    }
}

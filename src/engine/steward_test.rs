//! How many fences fall at the same time, and when each of them is told.

use crate::clock::SystemClock;
use crate::membership::Membership;
use crate::runtime::Shared;
use crate::steward::{FENCERS_MAX, Steward};
use crate::turn::{Actor, Turn};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use streamshield_core::cluster::{Cluster, ControlRecord, Entry, FEATURE_LEVEL, Genesis, Joined, SlotId, StageShape, Tier};
use streamshield_core::ids::{Incarnation, Offset, PlanFingerprint};
use streamshield_core::ports::log::*;
use streamshield_core::tiers;

const ME: Incarnation = Incarnation(1);
const DEAD: Incarnation = Incarnation(2);
const SLOTS: u32 = 40;

/// Of fences: how many there are, and how many were told.
#[derive(Clone, Default)]
struct TestLog {
    falling: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    told: Arc<AtomicUsize>,
    /// This slot's fence does not fall before so many others were told.
    slow: Option<(SlotId, usize)>,
}

impl Log for TestLog {
    fn create_topics(&self, _: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        Ok(Vec::new())
    }
    fn describe_topic(&self, _: &str) -> Result<Option<TopicDescription>, LogError> {
        Ok(None)
    }
    fn bounds(&self, _: &TopicPartition, _: Isolation) -> Result<Bounds, LogError> {
        Ok(Bounds { low: 0, high: 0 })
    }
    fn resolve(&self, _: &TopicPartition, _: StartAt) -> Result<Offset, LogError> {
        Ok(0)
    }
    fn group_offset(&self, _: &str, _: &TopicPartition) -> Result<Option<Offset>, LogError> {
        Ok(None)
    }
    fn commit_group_offsets(&self, _: &str, _: &[(TopicPartition, Offset)]) {}
    fn reader(&self, _: ReaderOptions, _: Arc<Wakeup>) -> Result<Box<dyn LogReader>, LogError> {
        Ok(Box::new(NothingToRead))
    }
    fn writer(&self, _: &str) -> Result<Box<dyn TransactionalWriter>, LogError> {
        Err(LogError::new(LogErrorKind::Fatal, "nobody writes here"))
    }
    fn fencer(&self, transactional_id: &str) -> Result<Box<dyn Fencer>, LogError> {
        let awaits = self.slow.filter(|(slot, _)| slot.transactional_id("job") == transactional_id).map(|(_, others)| others);
        Ok(Box::new(TestFencer { log: self.clone(), awaits }))
    }
    fn append(&self, _: &OutMessage) -> Result<Offset, LogError> {
        Ok(1_000 + self.told.fetch_add(1, Ordering::SeqCst) as Offset)
    }
    fn trim(&self, _: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        Ok(())
    }
}

struct NothingToRead;

impl LogReader for NothingToRead {
    fn assign(&mut self, _: &TopicPartition, _: Offset) -> Result<(), LogError> {
        Ok(())
    }
    fn unassign(&mut self, _: &TopicPartition) -> Result<(), LogError> {
        Ok(())
    }
    fn take(&mut self, _: &TopicPartition, _: &TakeLimit, _: &mut dyn FnMut(&[MessageView<'_>])) -> Result<Taken, LogError> {
        Ok(Taken { next: 0, messages: 0, bytes: 0, at_end: None })
    }
}

struct TestFencer {
    log: TestLog,
    awaits: Option<usize>,
}

impl Fencer for TestFencer {
    fn fence(self: Box<Self>) -> Result<(), LogError> {
        let falling = self.log.falling.fetch_add(1, Ordering::SeqCst) + 1;
        self.log.most.fetch_max(falling, Ordering::SeqCst);
        let began = Instant::now();
        while self.awaits.is_some_and(|others| self.log.told.load(Ordering::SeqCst) < others) {
            assert!(began.elapsed() < Duration::from_secs(30), "the others are not told before the slowest one");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(2));
        self.log.falling.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

/// This worker, when another one with many slots is gone.
fn cluster() -> Cluster {
    let joined = |incarnation: Incarnation, slots| {
        ControlRecord::Joined(Joined {
            incarnation,
            nonce: incarnation.0,
            worker: format!("worker-{}", incarnation.0),
            slots,
            rack: None,
            level: FEATURE_LEVEL,
            plan: PlanFingerprint(1),
            settings: tiers::settings(Tier::ActiveStandby, 1),
            http: None,
            died_in: Vec::new(),
        })
    };
    let genesis = ControlRecord::Genesis(Genesis {
        plan: Some(PlanFingerprint(1)),
        splits: BTreeMap::new(),
        exchange_partitions: BTreeMap::new(),
        stages: [(0, StageShape { regions: 4 * SLOTS, stateful: false, is_source: false })].into(),
    });
    let left = ControlRecord::Left { incarnation: DEAD, clean: false };
    let mut cluster = Cluster::default();
    for (offset, record) in [joined(ME, 1), joined(DEAD, SLOTS), genesis, left].iter().enumerate() {
        cluster.apply(Entry { offset: offset as Offset, append_time_ms: Some(1_000), payload: &record.encode() });
    }
    cluster
}

/// Fences all, and returns how many there were and how many at the same time.
fn fence_all(parallel: bool) -> (usize, usize) {
    let cluster = cluster();
    let dead = cluster.to_fence(ME);
    // In a row, only the last one can wait for all others.
    let slow = if parallel { dead.first() } else { dead.last() };
    let log = TestLog { slow: slow.map(|slot| (*slot, dead.len() - 1)), ..TestLog::default() };
    let reader = log.reader(ReaderOptions::default(), Arc::default()).expect("a reader");
    let membership = Membership::new(Arc::new(log.clone()), "job", ME, reader, cluster, 4);
    let mut steward = Steward {
        log: Arc::new(log.clone()),
        membership: Arc::new(membership),
        clock: Arc::new(SystemClock::default()),
        shared: Arc::new(Shared::new(1)),
        parallel,
        duties: Default::default(),
    };
    assert!(matches!(steward.turn(), Turn::Again));
    assert_eq!(log.told.load(Ordering::SeqCst), dead.len(), "each is told");
    (dead.len(), log.most.load(Ordering::SeqCst))
}

#[test]
fn so_many_fences_fall_at_the_same_time_and_each_is_told_without_waiting_for_the_slowest() {
    let (fenced, at_once) = fence_all(true);
    assert!(fenced > 2 * FENCERS_MAX, "{fenced}");
    assert!(at_once > 1 && at_once <= FENCERS_MAX, "{at_once}");
}

#[test]
fn in_a_simulation_they_fall_one_after_the_other() {
    assert_eq!(fence_all(false).1, 1);
}

//! What becomes of a batch with an epoch that can't be written.

use crate::clock::SystemClock;
use crate::commit::{CommitNews, Committer, CommitterParts, NEWS_MAX, SEALED_AHEAD_MAX};
use crate::content::SealedEpoch;
use crate::flight::Notes;
use crate::membership::Membership;
use crate::progress::{EpochCounts, Progress};
use crate::runtime::Shared;
use crate::turn::{Actor, Turn};
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use streamshield_core::cluster::{Cluster, ControlRecord, Entry, FEATURE_LEVEL, Joined, SlotId, Tier};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, Incarnation, Offset, PlanFingerprint, RegionId, StageId};
use streamshield_core::ports::log::*;
use streamshield_core::ports::sink::{ExternalContent, SinkContent, SinkError};
use streamshield_core::tiers;
use streamshield_core::watermark::Watermark;

const ME: Incarnation = Incarnation(1);
/// Takes everything.
const GOOD: &str = "good";
/// Its broker refuses all messages.
const FULL: &str = "full";
/// The client refuses its messages.
const LARGE: &str = "large";
const CHANGELOG: &str = "changelog";

/// What is committed, and by how many transactions.
#[derive(Default)]
struct World {
    committed: BTreeMap<TopicPartition, Vec<Vec<u8>>>,
    transactions: usize,
}

#[derive(Clone, Default)]
struct TestLog(Arc<Mutex<World>>);

impl Log for TestLog {
    fn create_topics(&self, _: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        Ok(Vec::new())
    }
    fn describe_topic(&self, _: &str) -> Result<Option<TopicDescription>, LogError> {
        Ok(None)
    }
    fn bounds(&self, partition: &TopicPartition, _: Isolation) -> Result<Bounds, LogError> {
        Ok(Bounds { low: 0, high: self.0.lock().committed.get(partition).map_or(0, Vec::len) as Offset })
    }
    fn resolve(&self, _: &TopicPartition, _: StartAt) -> Result<Offset, LogError> {
        Ok(0)
    }
    fn group_offset(&self, _: &str, _: &TopicPartition) -> Result<Option<Offset>, LogError> {
        Ok(None)
    }
    fn commit_group_offsets(&self, _: &str, _: &[(TopicPartition, Offset)]) {}
    fn reader(&self, _: ReaderOptions, _: Arc<Wakeup>) -> Result<Box<dyn LogReader>, LogError> {
        Ok(Box::new(TestReader { log: self.clone(), positions: BTreeMap::new() }))
    }
    fn writer(&self, _: &str) -> Result<Box<dyn TransactionalWriter>, LogError> {
        Ok(Box::new(TestWriter { log: self.clone(), sent: Vec::new(), is_spent: false }))
    }
    fn fencer(&self, _: &str) -> Result<Box<dyn Fencer>, LogError> {
        Err(LogError::new(LogErrorKind::Fatal, "nobody is fenced here"))
    }
    /// The control log's: whatever it is, it was read long ago.
    fn append(&self, _: &OutMessage) -> Result<Offset, LogError> {
        Ok(0)
    }
    fn trim(&self, _: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        Ok(())
    }
}

struct TestReader {
    log: TestLog,
    positions: BTreeMap<TopicPartition, Offset>,
}

impl LogReader for TestReader {
    fn assign(&mut self, partition: &TopicPartition, from: Offset) -> Result<(), LogError> {
        self.positions.insert(partition.clone(), from);
        Ok(())
    }
    fn unassign(&mut self, partition: &TopicPartition) -> Result<(), LogError> {
        self.positions.remove(partition);
        Ok(())
    }
    fn take(&mut self, partition: &TopicPartition, _: &TakeLimit, visit: &mut dyn FnMut(&[MessageView<'_>])) -> Result<Taken, LogError> {
        let world = self.log.0.lock();
        let from = self.positions.get(partition).copied().unwrap_or(0);
        let nothing = Vec::new();
        let all = world.committed.get(partition).unwrap_or(&nothing);
        let mut views = Vec::new();
        for (offset, payload) in all.iter().enumerate().skip(from as usize) {
            let (offset, payload) = (offset as Offset, Some(payload.as_slice()));
            let timestamp_type = TimestampType::NotAvailable;
            views.push(MessageView { offset, timestamp_ms: -1, timestamp_type, key: None, payload, headers: &[] });
        }
        if !views.is_empty() {
            visit(&views);
        }
        let end = all.len() as Offset;
        Ok(Taken { next: end, messages: views.len(), bytes: 0, at_end: Some(end) })
    }
}

struct TestWriter {
    log: TestLog,
    sent: Vec<(TopicPartition, Vec<u8>)>,
    is_spent: bool,
}

impl TransactionalWriter for TestWriter {
    fn begin(&mut self) -> Result<(), LogError> {
        assert!(!self.is_spent, "a writer that was refused is replaced");
        self.sent.clear();
        Ok(())
    }
    fn send(&mut self, message: &OutMessage) -> Result<(), LogError> {
        if &*message.topic == LARGE {
            return Err(LogError::new(LogErrorKind::Invalid, "send to 'large': too large"));
        }
        let partition = TopicPartition::new(message.topic.clone(), message.partition.unwrap_or(0));
        self.sent.push((partition, message.payload.clone().unwrap_or_default()));
        Ok(())
    }
    fn send_set(&mut self, _: &MessageSet) -> Result<(), LogError> {
        Ok(())
    }
    fn commit(&mut self) -> CommitOutcome {
        if self.sent.iter().any(|(partition, _)| &*partition.topic == FULL) {
            self.is_spent = true;
            return CommitOutcome::Refused("a message to full-0 was not delivered".into());
        }
        let mut world = self.log.0.lock();
        world.transactions += 1;
        for (partition, payload) in self.sent.drain(..) {
            world.committed.entry(partition).or_default().push(payload);
        }
        CommitOutcome::Committed
    }
    fn abort(&mut self) {
        self.is_spent = true;
    }
}

/// A sink whose folder can't be written.
struct Shut;

impl ExternalContent for Shut {
    fn prepare(&mut self, _: Incarnation) -> Result<(), SinkError> {
        Err(SinkError { retry: false, message: "read only".into() })
    }
    fn publish(&mut self) -> Result<(), SinkError> {
        panic!("nothing of it is committed");
    }
}

/// A committer of three regions, with its slot's ends of the channels.
struct Slot {
    committer: Committer,
    log: TestLog,
    sealed: Sender<Vec<SealedEpoch>>,
    news: Receiver<CommitNews>,
    reasons: Vec<String>,
}

/// Region and epoch.
type Which = (u32, u64);

impl Slot {
    fn new() -> Slot {
        let log = TestLog::default();
        let (clock, slot) = (Arc::new(SystemClock::default()), SlotId { incarnation: ME, slot: 0 });
        let joined = ControlRecord::Joined(Joined {
            incarnation: ME,
            nonce: 1,
            worker: "a".into(),
            slots: 1,
            rack: None,
            level: FEATURE_LEVEL,
            plan: PlanFingerprint(1),
            settings: tiers::settings(Tier::Checkpoints, 0),
            http: None,
            died_in: Vec::new(),
        });
        let mut cluster = Cluster::default();
        cluster.apply(Entry { offset: 0, append_time_ms: Some(1_000), payload: &joined.encode() });
        let reader = log.reader(ReaderOptions::default(), Arc::default()).expect("a reader");
        let membership = Membership::new(Arc::new(log.clone()), "job", ME, reader, cluster, 1);
        let (sealed_sender, sealed) = bounded(SEALED_AHEAD_MAX + 1);
        let (news_sender, news) = bounded(NEWS_MAX);
        let committer = Committer::new(CommitterParts {
            log: Arc::new(log.clone()),
            topics: Vec::<Arc<str>>::new().into(),
            membership: Arc::new(membership),
            slot,
            progress: Arc::new(Progress::new(vec!["stage".into()], Tier::Checkpoints, clock.clone())),
            clock,
            shared: Arc::new(Shared::new(1)),
            sealed,
            news: news_sender,
            wakeup: Arc::default(),
            slot_wakeup: Arc::default(),
            notes: Notes::default(),
        });
        Slot { committer, log, sealed: sealed_sender, news, reasons: Vec::new() }
    }

    fn seal(&self, batch: Vec<SealedEpoch>) {
        self.sealed.send(batch).expect("the committer is there");
    }

    /// Lets the committer do all that it has to do; per batch what was committed and what was refused.
    fn hear(&mut self) -> Vec<(Vec<Which>, Vec<Which>)> {
        loop {
            match self.committer.turn() {
                Turn::Again => {}
                Turn::Idle(_) => break,
                Turn::Ended(outcome) => panic!("{outcome:?}"),
            }
        }
        let mut heard = Vec::new();
        while let Ok(news) = self.news.try_recv() {
            let CommitNews::Settled { committed, refused } = news else { panic!("it ends") };
            let refusals = refused.iter().map(|epoch| (epoch.region.partition, epoch.epoch.0)).collect();
            heard.push((committed.iter().map(|epoch| (epoch.record.region.partition, epoch.record.epoch.0)).collect(), refusals));
            self.reasons.extend(refused.into_iter().map(|epoch| epoch.reason));
        }
        heard
    }

    /// The epochs of a region that are in the log.
    fn epochs(&self, region: u32) -> Vec<u64> {
        let world = self.log.0.lock();
        let records = world.committed.get(&TopicPartition::new(CHANGELOG, region as i32)).into_iter().flatten();
        records.map(|record| EpochRecord::decode(record).expect("a record").epoch.0).collect()
    }

    fn count(&self, topic: &str) -> usize {
        self.log.0.lock().committed.get(&TopicPartition::new(topic, 0)).map_or(0, Vec::len)
    }

    fn transactions(&self) -> usize {
        self.log.0.lock().transactions
    }
}

/// An epoch with one message to a topic. The region is with the slot since the control record at `assignment`.
fn sealed(region: u32, epoch: u64, assignment: Offset, topic: &str) -> SealedEpoch {
    let region = RegionId { stage: StageId(0), partition: region };
    let record = EpochRecord {
        version: EpochRecord::VERSION,
        region,
        epoch: Epoch(epoch),
        incarnation: ME,
        transactional_id: "job-1-0".into(),
        plan: PlanFingerprint(1),
        now_ms: 0,
        steps: Vec::new(),
        positions: vec![0],
        upstreams: Vec::new(),
        watermark: Watermark::MIN,
        digest: None,
        delta: None,
        finished: false,
    };
    let message = OutMessage {
        topic: topic.into(),
        partition: Some(0),
        key: None,
        payload: Some(b"row".to_vec()),
        headers: Vec::new(),
        timestamp_ms: None,
    };
    SealedEpoch {
        record,
        assignment,
        changelog: TopicPartition::new(CHANGELOG, region.partition as i32),
        changelog_from: 0,
        delta: None,
        exchange: None,
        sink: None,
        messages: vec![message],
        flush: None,
        counts: EpochCounts::default(),
    }
}

/// The same epoch of three regions.
fn batch(epoch: u64, topic_of_the_second: &str) -> Vec<SealedEpoch> {
    vec![sealed(0, epoch, 5, GOOD), sealed(1, epoch, 6, topic_of_the_second), sealed(2, epoch, 7, GOOD)]
}

fn only_one_is_given_up(topic: &str) {
    let mut slot = Slot::new();
    slot.seal(batch(1, GOOD));
    assert_eq!(slot.hear(), [(vec![(0, 1), (1, 1), (2, 1)], vec![])]);
    // The second of them was sealed before the slot heard of the first.
    slot.seal(batch(2, topic));
    slot.seal(batch(3, GOOD));
    assert_eq!(slot.hear(), [(vec![(0, 2), (2, 2)], vec![(1, 2)]), (vec![(0, 3), (2, 3)], vec![(1, 3)])]);
    assert_eq!([0, 1, 2].map(|region| slot.epochs(region)), [vec![1, 2, 3], vec![1], vec![1, 2, 3]], "E-1");
    assert_eq!((slot.count(GOOD), slot.count(topic)), (7, 0), "what it holds besides the record is not there either");
    assert_eq!(slot.transactions(), 4, "one each, and two for the batch that was cut");
    assert!(slot.reasons.iter().all(|reason| reason.contains(topic)), "{:?}", slot.reasons);
    // Brought up anew from what is committed.
    slot.seal(vec![sealed(0, 4, 5, GOOD), sealed(1, 2, 9, GOOD)]);
    slot.seal(vec![sealed(1, 3, 9, GOOD)]);
    assert_eq!(slot.hear(), [(vec![(0, 4), (1, 2)], vec![]), (vec![(1, 3)], vec![])]);
    assert_eq!(slot.epochs(1), [1, 2, 3]);
}

#[test]
fn of_a_transaction_that_the_broker_refuses_only_the_guilty_region_is_given_up() {
    only_one_is_given_up(FULL);
}

#[test]
fn of_a_transaction_that_the_client_refuses_only_the_guilty_region_is_given_up() {
    only_one_is_given_up(LARGE);
}

#[test]
fn a_batch_in_which_all_is_refused_is_settled_as_well() {
    let mut slot = Slot::new();
    slot.seal(vec![sealed(0, 1, 5, FULL), sealed(1, 1, 6, LARGE)]);
    slot.seal(vec![sealed(0, 2, 5, GOOD), sealed(1, 2, 6, GOOD)]);
    slot.seal(vec![sealed(2, 1, 7, GOOD)]);
    assert_eq!(slot.hear(), [(vec![], vec![(0, 1), (1, 1)]), (vec![], vec![(0, 2), (1, 2)]), (vec![(2, 1)], vec![])]);
    assert_eq!(slot.transactions(), 1);
}

#[test]
fn a_sink_that_never_takes_an_epoch_costs_the_others_nothing() {
    let mut slot = Slot::new();
    let mut epochs = batch(1, GOOD);
    epochs[1].sink = Some(SinkContent::External(Box::new(Shut)));
    slot.seal(epochs);
    assert_eq!(slot.hear(), [(vec![(0, 1), (2, 1)], vec![(1, 1)])]);
    assert_eq!((slot.transactions(), slot.epochs(1)), (1, vec![]));
    assert!(slot.reasons[0].contains("read only"), "{:?}", slot.reasons);
}

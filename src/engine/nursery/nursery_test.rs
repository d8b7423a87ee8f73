//! A changelog that can't be read, a log or an input that is away, a writer of whom the control log has never heard, and when a follower is said to be ready.

use super::finishing::unknown_writer;
use super::*;
use crate::checkpointer::Checkpoints;
use crate::clock::{Clock, SystemClock};
use crate::config::{BadRecordPolicy, JobConfig, LateRowPolicy, spawn_thread};
use crate::membership::{control_partition, message};
use crate::plan::{ExchangePlan, JobPlan, StageInput, StageOutput, StagePlan};
use crate::slot::{Slot, Work};
use crate::step::met_end;
use arrow_schema::Schema;
use crossbeam_channel::bounded;
use parking_lot::Mutex;
use std::path::Path;
use streamshield_core::cluster::{FEATURE_LEVEL, Joined};
use streamshield_core::epoch::DeltaHead;
use streamshield_core::ids::{Digest, ExchangeId, PlanFingerprint, StageId};
use streamshield_core::ports::checkpoint::CheckpointErrorKind;
use streamshield_core::ports::log::*;
use streamshield_core::ports::state::{
    Delta, Flush, OpenedState, RegionState, StateBytes, StateError, StoreCopier, WindowTable, WindowTableSpec,
};
use streamshield_core::tiers;
use streamshield_core::watermark::{UpstreamWatermark, Watermark};

const ME: Incarnation = Incarnation(1);
const PLAN: PlanFingerprint = PlanFingerprint(42);
const STRANGER: SlotId = SlotId { incarnation: Incarnation(7), slot: 3 };

/// Behind the last message of a changelog lies the end of its transaction.
#[derive(Default)]
struct World {
    messages: BTreeMap<TopicPartition, Vec<Vec<u8>>>,
    /// Until somebody is fenced, the end of a changelog is not stable.
    is_held_open: bool,
    /// The brokers of changelogs and exchanges are away, the control log's is not.
    is_away: bool,
    calls: Vec<String>,
}

impl World {
    fn end(&self, partition: &TopicPartition, isolation: Isolation) -> Offset {
        let count = self.messages.get(partition).map_or(0, Vec::len) as Offset;
        let is_hidden = self.is_held_open && isolation == Isolation::ReadCommitted;
        if count == 0 || is_hidden || *partition == control_partition("job") { count } else { count + 1 }
    }
}

#[derive(Clone, Default)]
struct TestLog(Arc<Mutex<World>>);

impl TestLog {
    /// A job whose workers have joined.
    fn of_members(members: &[Incarnation], regions: u32) -> TestLog {
        let log = TestLog::default();
        members.iter().for_each(|member| log.tell(&joined(*member)));
        log.tell(&ControlRecord::Genesis(genesis(&job(regions))));
        log
    }

    fn tell(&self, record: &ControlRecord) {
        self.append(&message(&control_partition("job"), record)).expect("appended");
    }

    fn commit(&self, partition: u32, payload: Vec<u8>) {
        self.0.lock().messages.entry(changelog(partition)).or_default().push(payload);
    }

    /// How many control records say this.
    fn told(&self, word: &str) -> usize {
        let world = self.0.lock();
        let records = world.messages[&control_partition("job")].iter();
        records.filter(|record| String::from_utf8_lossy(record).contains(&format!("\"{word}\""))).count()
    }

    fn calls(&self) -> Vec<String> {
        self.0.lock().calls.clone()
    }
}

impl Log for TestLog {
    fn create_topics(&self, _: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        Ok(Vec::new())
    }
    fn describe_topic(&self, _: &str) -> Result<Option<TopicDescription>, LogError> {
        Ok(None)
    }
    fn bounds(&self, partition: &TopicPartition, isolation: Isolation) -> Result<Bounds, LogError> {
        let world = self.0.lock();
        if world.is_away {
            return Err(LogError::new(LogErrorKind::Retry, "no answer"));
        }
        Ok(Bounds { low: 0, high: world.end(partition, isolation) })
    }
    fn ends(&self, partitions: &[TopicPartition], isolation: Isolation) -> Result<Vec<Offset>, LogError> {
        let mut world = self.0.lock();
        world.calls.push("ends".into());
        Ok(partitions.iter().map(|partition| world.end(partition, isolation)).collect())
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
        Err(LogError::new(LogErrorKind::Fatal, "nobody writes here"))
    }
    fn fencer(&self, transactional_id: &str) -> Result<Box<dyn Fencer>, LogError> {
        Ok(Box::new(TestFencer { log: self.clone(), call: format!("fence {transactional_id}") }))
    }
    fn append(&self, message: &OutMessage) -> Result<Offset, LogError> {
        let mut world = self.0.lock();
        let all = world.messages.entry(TopicPartition::new(message.topic.clone(), 0)).or_default();
        all.push(message.payload.clone().unwrap_or_default());
        Ok(all.len() as Offset - 1)
    }
    fn trim(&self, _: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        Ok(())
    }
}

struct TestFencer {
    log: TestLog,
    call: String,
}

impl Fencer for TestFencer {
    fn fence(self: Box<Self>) -> Result<(), LogError> {
        let mut world = self.log.0.lock();
        world.is_held_open = false;
        world.calls.push(self.call.clone());
        Ok(())
    }
}

struct TestReader {
    log: TestLog,
    positions: BTreeMap<TopicPartition, Offset>,
}

impl LogReader for TestReader {
    fn assign(&mut self, partition: &TopicPartition, from: Offset) -> Result<(), LogError> {
        if self.log.0.lock().is_away && *partition != control_partition("job") {
            return Err(LogError::new(LogErrorKind::Retry, "no answer"));
        }
        self.positions.insert(partition.clone(), from);
        Ok(())
    }
    fn unassign(&mut self, partition: &TopicPartition) -> Result<(), LogError> {
        self.positions.remove(partition);
        Ok(())
    }
    fn take(&mut self, partition: &TopicPartition, _: &TakeLimit, visit: &mut dyn FnMut(&[MessageView<'_>])) -> Result<Taken, LogError> {
        let world = self.log.0.lock();
        let position = self.positions.get_mut(partition).expect("assigned");
        let mut views = Vec::new();
        for (offset, payload) in world.messages.get(partition).into_iter().flatten().enumerate().skip(*position as usize) {
            let (offset, payload) = (offset as Offset, Some(payload.as_slice()));
            let timestamp_type = TimestampType::LogAppendTime;
            views.push(MessageView { offset, timestamp_ms: 1_000, timestamp_type, key: None, payload, headers: &[] });
        }
        if !views.is_empty() {
            visit(&views);
        }
        *position += views.len() as Offset;
        let end = world.end(partition, Isolation::ReadCommitted);
        Ok(Taken { next: *position, messages: views.len(), bytes: 0, at_end: Some(end) })
    }
}

struct NoStores;

impl StateBackend for NoStores {
    fn open(&self, region: RegionId, _: &[WindowTableSpec]) -> Result<OpenedState, StateError> {
        panic!("{region} has no state");
    }
    fn delete(&self, region: RegionId) -> Result<(), StateError> {
        panic!("{region} has no state");
    }
    fn adopt(&self, region: RegionId, _: &Path) -> Result<(), StateError> {
        panic!("{region} has no state");
    }
    fn scratch(&self) -> PathBuf {
        PathBuf::new()
    }
}

/// Tables that have drained windows since the last flush, and merged nothing. Notes what it is asked for.
struct Drained(Arc<Mutex<Vec<&'static str>>>);

impl RegionState for Drained {
    fn table(&mut self, operator: u16) -> &mut dyn WindowTable {
        panic!("operator {operator} takes no step");
    }
    fn bytes(&self) -> StateBytes {
        StateBytes::default()
    }
    fn seal_flush(&mut self) -> Result<Flush, StateError> {
        Ok(Flush { digest: Digest::default(), bytes: 0, content: Box::new(()) })
    }
    fn apply_flush(&mut self, _: Flush, _: &[u8]) -> Result<(), StateError> {
        self.0.lock().push("flush");
        Ok(())
    }
    fn seal_delta(&mut self) -> Result<Delta, StateError> {
        panic!("a follower seals no delta");
    }
    fn is_clean(&self) -> bool {
        self.0.lock().contains(&"flush")
    }
    fn apply_delta(&mut self, _: &[u8], _: &[u8]) -> Result<Digest, StateError> {
        self.0.lock().push("delta");
        Ok(Digest::default())
    }
    fn copier(&self) -> Option<Box<dyn StoreCopier>> {
        None
    }
    fn evict(&mut self, _: usize) -> Result<(), StateError> {
        Ok(())
    }
}

fn region(partition: u32) -> RegionId {
    RegionId { stage: StageId(0), partition }
}

fn changelog(partition: u32) -> TopicPartition {
    TopicPartition::new("job-stage-changelog", partition as i32)
}

fn joined(incarnation: Incarnation) -> ControlRecord {
    ControlRecord::Joined(Joined {
        incarnation,
        nonce: incarnation.0,
        worker: format!("worker-{}", incarnation.0),
        slots: 1,
        rack: None,
        level: FEATURE_LEVEL,
        plan: PLAN,
        settings: tiers::settings(Tier::ActiveStandby, 1),
        http: None,
        died_in: Vec::new(),
    })
}

/// The first epoch of a region.
fn record(partition: u32, writer: SlotId) -> EpochRecord {
    EpochRecord {
        version: EpochRecord::VERSION,
        region: region(partition),
        epoch: Epoch::GENESIS,
        incarnation: writer.incarnation,
        transactional_id: writer.transactional_id("job"),
        plan: PLAN,
        now_ms: 0,
        steps: Vec::new(),
        positions: vec![0],
        upstreams: vec![UpstreamWatermark::START],
        watermark: Watermark::MIN,
        digest: None,
        delta: None,
        finished: false,
    }
}

/// One stage without state, from one exchange to another.
fn job(regions: u32) -> Job {
    let exchange = |id: u32, partitions| ExchangePlan {
        id: ExchangeId(id),
        name: format!("exchange-{id}"),
        schema: Arc::new(Schema::empty()),
        keys: Vec::new(),
        upstream: Vec::new(),
        downstream: StageId(0),
        partitions: Some(partitions),
    };
    let stage = StagePlan {
        id: StageId(0),
        name: "stage".into(),
        input: StageInput::Exchange(ExchangeId(0)),
        operators: Vec::new(),
        output: StageOutput::Exchange(ExchangeId(1)),
    };
    let exchanges = vec![exchange(0, regions), exchange(1, 1)];
    let config = JobConfig {
        name: "job".into(),
        slots: 1,
        worker: "worker".into(),
        rack: None,
        http: None,
        cluster: tiers::settings(Tier::ActiveStandby, 1),
        checkpoint_interval: None,
        parallelism: regions,
        commit_interval: Duration::from_millis(100),
        flush_interval: Duration::from_secs(5),
        memory_budget_bytes: 64 << 20,
        on_bad_record: BadRecordPolicy::Skip,
        late_rows: LateRowPolicy::Drop,
        replication_factor: None,
        log_dies_with_process: false,
    };
    Job {
        plan: JobPlan { stages: vec![stage], exchanges, fingerprint: PLAN, warnings: Vec::new() },
        config,
        sources: BTreeMap::new(),
        sinks: BTreeMap::new(),
        groups: BTreeMap::new(),
    }
}

fn genesis(job: &Job) -> Genesis {
    let Ok(genesis) = job.discover() else { panic!("there are no sources to look for") };
    genesis
}

/// The nursery of a worker, with its slot's end of the channel.
struct Bed {
    nursery: Nursery,
    arrivals: Receiver<Arrival>,
}

impl Bed {
    fn new(log: &TestLog, incarnation: Incarnation, regions: u32) -> Bed {
        let (job, clock, slot) = (job(regions), Arc::new(SystemClock::default()), SlotId { incarnation, slot: 0 });
        let reader = || log.reader(ReaderOptions::default(), Arc::default()).expect("a reader");
        let mut control = reader();
        control.assign(&control_partition("job"), 0).expect("assigned");
        let membership = Membership::new(Arc::new(log.clone()), "job", incarnation, control, Cluster::default(), 0);
        membership.read().expect("read");
        let (arrivals_sender, arrivals) = bounded(regions as usize);
        let settings = RegionSettings {
            clock: clock.clone(),
            plan: PLAN,
            incarnation,
            transactional_id: slot.transactional_id("job"),
            on_bad_record: BadRecordPolicy::Skip,
            commit_interval: job.config.commit_interval,
            flush_interval: job.config.flush_interval,
            state_bytes_max: 1 << 20,
            open_bytes_max: 1 << 20,
            letter_bytes_max: 1 << 20,
            ships_deltas: true,
        };
        let nursery = Nursery {
            slot,
            genesis: Arc::new(genesis(&job)),
            job: Arc::new(job),
            membership: Arc::new(membership),
            settings,
            log: Arc::new(log.clone()),
            state: Arc::new(NoStores),
            checkpoints: None,
            spawn: spawn_thread(),
            changelog: reader(),
            exchange: reader(),
            arrivals: arrivals_sender,
            departures: bounded(1).1,
            slot_wakeup: Arc::default(),
            wakeup: Arc::default(),
            progress: Arc::new(Progress::new(vec!["stage".into()], Tier::ActiveStandby, clock)),
            takeovers: Arc::default(),
            shared: Arc::new(Shared::new(1)),
            tier: Tier::ActiveStandby,
            notes: Notes::default(),
            charges: Charges::default(),
        };
        Bed { nursery, arrivals }
    }

    /// Its slot, which takes in what has arrived.
    fn slot(&self) -> Slot {
        let (nursery, wakeup) = (&self.nursery, Arc::<Wakeup>::default());
        Slot {
            id: nursery.slot,
            job: nursery.job.clone(),
            membership: nursery.membership.clone(),
            clock: Arc::new(SystemClock::default()),
            log: nursery.log.clone(),
            exchange: nursery.log.reader(ReaderOptions::default(), wakeup.clone()).expect("a reader"),
            wakeup: wakeup.clone(),
            committer_wakeup: wakeup.clone(),
            nursery_wakeup: wakeup.clone(),
            sealed: bounded(1).0,
            news: bounded(1).1,
            arrivals: self.arrivals.clone(),
            departures: bounded(1).0,
            checkpoints: Checkpoints::new(None, nursery.slot, bounded(1).0, bounded(1).0, wakeup.clone(), wakeup),
            checkpoint_news: bounded(1).1,
            progress: nursery.progress.clone(),
            takeovers: nursery.takeovers.clone(),
            shared: nursery.shared.clone(),
            notes: Notes::default(),
            work: Work::default(),
        }
    }

    /// Turns of a worker that reads the control log, or of one that does not come to it.
    fn turns(&mut self, reads: bool) {
        for _ in 0..20 {
            if reads {
                self.nursery.membership.read().expect("read");
            }
            if let Turn::Ended(outcome) = self.nursery.turn() {
                panic!("{outcome:?}");
            }
        }
    }

    fn arrived(&self) -> Vec<RegionId> {
        self.arrivals.try_iter().map(|arrival| arrival.region.id).collect()
    }

    fn quarantined(&self) -> Vec<(RegionId, String)> {
        self.nursery.membership.view(Cluster::quarantined)
    }
}

#[test]
fn a_damaged_changelog_stops_its_region_and_no_other() {
    let log = TestLog::of_members(&[ME], 2);
    log.commit(0, b"not ours".to_vec());
    log.commit(1, record(1, SlotId { incarnation: ME, slot: 0 }).encode());
    let mut bed = Bed::new(&log, ME, 2);
    bed.turns(true);
    assert_eq!(bed.arrived(), [region(1)]);
    let quarantined = bed.quarantined();
    assert_eq!(quarantined.len(), 1);
    assert!(quarantined[0].0 == region(0) && quarantined[0].1.contains("job-stage-changelog-0 offset 0"), "{quarantined:?}");
    assert_eq!(log.told("failed"), 1);
}

#[test]
fn a_follower_of_a_damaged_changelog_is_left_alone_until_the_region_is_to_be_owned_there() {
    let log = TestLog::of_members(&[ME, Incarnation(2)], 1);
    log.commit(0, b"not ours".to_vec());
    let look = Bed::new(&log, ME, 1);
    let owner = look.nursery.membership.view(|cluster| cluster.region(region(0)).and_then(|region| region.owner)).expect("an owner");
    let owner = owner.slot.incarnation;
    let mut bed = Bed::new(&log, Incarnation(3 - owner.0), 1);
    bed.turns(true);
    bed.turns(true);
    assert_eq!((log.told("not_ready"), log.told("failed")), (1, 0), "it is said once, and its owner works");
    log.tell(&ControlRecord::Left { incarnation: owner, clean: true });
    bed.turns(true);
    assert_eq!((log.told("failed"), bed.quarantined().len(), bed.arrived().len()), (1, 1, 0));
}

#[test]
fn an_empty_changelog_ends_the_worker_if_the_region_has_begun_and_is_its_beginning_if_not() {
    let log = TestLog::of_members(&[ME, Incarnation(2)], 1);
    let look = Bed::new(&log, ME, 1);
    let owner = look.nursery.membership.view(|cluster| cluster.region(region(0)).and_then(|region| region.owner)).expect("an owner");
    let owner = owner.slot.incarnation;
    let mut bed = Bed::new(&log, owner, 1);
    bed.turns(true);
    assert_eq!(bed.arrived(), [region(0)]);
    log.tell(&ControlRecord::Begun { incarnation: owner, regions: vec![region(0)], reads: false });
    for worker in [owner, Incarnation(3 - owner.0)] {
        let mut bed = Bed::new(&log, worker, 1);
        let outcome = (0..20).find_map(|_| match bed.nursery.turn() {
            Turn::Ended(outcome) => Some(outcome),
            _ => None,
        });
        match outcome {
            Some(JobOutcome::Failed(error)) => {
                assert!(error.message.contains("job-stage-changelog-0 is empty"), "{error}");
                let hint = error.hint.expect("what to do");
                assert!(!hint.contains("--as"), "where a region without windows stood was in the changelog only: {hint}");
            }
            other => panic!("{worker:?} of owner {owner:?} goes on: {other:?}"),
        }
        assert!(bed.arrived().is_empty());
    }
    log.commit(0, record(0, SlotId { incarnation: owner, slot: 0 }).encode());
    let mut bed = Bed::new(&log, owner, 1);
    bed.turns(true);
    assert_eq!(bed.arrived(), [region(0)]);
}

#[test]
fn a_region_that_can_not_begin_without_its_checkpoint_waits_for_the_store_and_is_not_given_back() {
    let log = TestLog::of_members(&[ME], 1);
    let mut bed = Bed::new(&log, ME, 1);
    // What the store says, and then a follower of a changelog that begins with a later epoch.
    let mut begin = |mut task: Task, restored: Result<Option<Restored>, CheckpointError>| {
        let (sender, answer) = bounded(1);
        sender.send(Fetched { restored, folder: ScratchFolder("nothing-was-fetched".into()) }).expect("there is room");
        assert!(bed.nursery.fetched(region(0), &mut task, answer).is_ok());
        let failed = bed.nursery.failed(region(0), task, FollowError::Unusable("E-1: it goes on with epoch 9 after epoch 0".into()));
        assert!(matches!(failed, Ok(Tended::Quiet)));
        bed.nursery.charges.tasks.remove(&region(0)).expect("it is tried again")
    };
    let mut task = Task { tries: TRIES_MAX, ..Task::new(Role::Owner { assignment: 1, fences_open: false, release: false }) };
    for _ in 0..3 {
        task = begin(task, Err(CheckpointError { kind: CheckpointErrorKind::Away, message: "no answer".into() }));
        assert!(!task.without_checkpoint && task.given_back.is_none(), "the store is asked again");
    }
    let task = begin(task, Ok(None));
    assert!(task.given_back.is_some(), "the store has answered, and has nothing");
    assert_eq!(log.told("failed"), 1);
}

#[test]
fn a_log_that_is_away_is_waited_for_and_the_region_is_not_given_back() {
    let log = TestLog::of_members(&[ME], 1);
    log.0.lock().is_away = true;
    let mut bed = Bed::new(&log, ME, 1);
    for try_number in 0..3 * TRIES_MAX {
        bed.turns(true);
        let task = bed.nursery.charges.tasks.get_mut(&region(0)).expect("it is tried again");
        assert!(task.waits > try_number && task.tries == 0);
        task.resume_at = Duration::ZERO;
    }
    assert_eq!((log.told("failed"), bed.arrived().len()), (0, 0));
    log.0.lock().is_away = false;
    bed.turns(true);
    assert_eq!(bed.arrived(), [region(0)]);
}

#[test]
fn what_only_this_worker_may_not_reach_is_left_to_others_after_a_long_time() {
    let log = TestLog::of_members(&[ME], 1);
    log.0.lock().is_away = true;
    let mut bed = Bed::new(&log, ME, 1);
    bed.turns(true);
    let task = bed.nursery.charges.tasks.get_mut(&region(0)).expect("it is tried again");
    (task.waits, task.resume_at) = (WAITS_MAX, Duration::ZERO);
    bed.turns(true);
    assert!(log.told("failed") > 0);
    // The failures of a long outage are counted only where they come less than ten minutes after each other.
    assert!((1..=WAITS_MAX).map(pause_after).sum::<Duration>() > Duration::from_secs(600));
}

#[test]
fn a_region_whose_input_is_away_waits_in_its_slot_and_has_not_failed() {
    let log = TestLog::of_members(&[ME], 1);
    log.commit(0, record(0, SlotId { incarnation: ME, slot: 0 }).encode());
    let mut bed = Bed::new(&log, ME, 1);
    bed.turns(true);
    log.0.lock().is_away = true;
    let (mut slot, clock) = (bed.slot(), SystemClock::default());
    let mut turn = || {
        assert!(!matches!(slot.turn(), Turn::Ended(_)));
        assert_eq!((slot.work.regions.len(), log.told("failed")), (1, 0));
        met_end(&slot.work.regions[&region(0)], &slot.work.sources)
    };
    for _ in 0..3 {
        assert_eq!(turn(), None);
    }
    log.0.lock().is_away = false;
    let began = clock.steady();
    while turn().is_none() {
        assert!(clock.steady() - began < Duration::from_secs(30), "its input is back");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_ready_follower_that_has_to_be_rebuilt_is_not_ready_in_the_control_log() {
    let log = TestLog::of_members(&[ME, Incarnation(2)], 1);
    let owner = owner_of(&Bed::new(&log, ME, 1)).expect("an owner");
    let mut bed = Bed::new(&log, Incarnation(3 - owner.0), 1);
    let is_ready = |bed: &Bed| {
        let followers = bed.nursery.membership.view(|cluster| cluster.region(region(0)).map(|region| region.followers.clone()));
        followers.is_some_and(|followers| followers.iter().any(|follower| follower.ready))
    };
    bed.turns(true);
    assert!(is_ready(&bed));
    let task = bed.nursery.charges.tasks.remove(&region(0)).expect("it follows");
    let failed = bed.nursery.failed(region(0), task, FollowError::Unusable("its changelog is trimmed".into()));
    assert!(matches!(failed, Ok(Tended::Quiet)));
    bed.nursery.membership.read().expect("read");
    assert!(log.told("not_ready") == 1 && !is_ready(&bed));
}

#[test]
fn a_region_is_not_idle_while_something_is_left_of_its_closed_windows() {
    let nursery = Bed::new(&TestLog::of_members(&[ME], 1), ME, 1).nursery;
    for pending_emit in [false, true] {
        let Ok((mut made, _)) = nursery.job.region(region(0), &nursery.genesis, nursery.settings.clone()) else {
            panic!("it is in the plan")
        };
        made.upstreams = vec![UpstreamWatermark { watermark: Watermark(100), idle: true }];
        (made.combined, made.output_watermark, made.pending_emit) = (Watermark(100), Watermark(50), pending_emit);
        let says = made.genesis().exchange.expect("it writes to an exchange").watermark;
        assert_eq!(says, UpstreamWatermark { watermark: Watermark(50), idle: !pending_emit });
    }
}

fn owner_of(bed: &Bed) -> Option<Incarnation> {
    bed.nursery.membership.view(|cluster| cluster.region(region(0)).and_then(|region| region.owner)).map(|owner| owner.slot.incarnation)
}

/// An owner that is at the end of its region's changelog but for a transaction that was open, and the worker that it has released the region to. The record
/// is not read back.
fn released_before_it_is_up() -> (TestLog, Bed, Incarnation) {
    let log = TestLog::of_members(&[ME, Incarnation(2)], 1);
    let owner = owner_of(&Bed::new(&log, ME, 1)).expect("an owner");
    let other = Incarnation(3 - owner.0);
    log.commit(0, record(0, SlotId { incarnation: owner, slot: 0 }).encode());
    log.0.lock().is_held_open = true;
    let mut bed = Bed::new(&log, owner, 1);
    bed.turns(true);
    assert!(bed.arrived().is_empty(), "it waits for the end of its changelog");
    log.tell(&ControlRecord::Ready { incarnation: other, region: region(0), epoch: Epoch(1) });
    log.tell(&ControlRecord::Drain { worker: format!("worker-{}", owner.0), undo: false, incarnation: None });
    bed.nursery.membership.read().expect("read");
    log.0.lock().is_held_open = false;
    bed.turns(false);
    assert_eq!(log.told("released"), 1, "once, until it is read back");
    assert!(bed.arrived().is_empty(), "though nothing else would be in its way");
    (log, bed, other)
}

#[test]
fn an_owned_region_that_is_asked_for_before_it_is_up_is_released_and_never_comes_to_the_slot_under_that_assignment() {
    let (log, mut bed, other) = released_before_it_is_up();
    bed.turns(true);
    assert_eq!(owner_of(&bed), Some(other));
    assert_eq!((log.told("released"), log.told("failed"), bed.arrived().len()), (1, 0, 0));
    let followed = &bed.nursery.charges.tasks[&region(0)];
    assert!(matches!((followed.role, &followed.phase), (Role::Follower { .. }, Phase::Following(_))), "from where it stands");
    // Given to it anew, it comes up.
    log.tell(&ControlRecord::Left { incarnation: other, clean: true });
    bed.turns(true);
    assert_eq!(bed.arrived(), [region(0)]);
}

#[test]
fn a_released_region_that_comes_back_between_two_looks_is_read_to_its_new_end() {
    for clean in [true, false] {
        let (log, mut bed, other) = released_before_it_is_up();
        let next = EpochRecord { epoch: Epoch(Epoch::GENESIS.0 + 1), ..record(0, SlotId { incarnation: other, slot: 0 }) };
        log.commit(0, next.encode());
        log.tell(&ControlRecord::Left { incarnation: other, clean });
        bed.nursery.membership.read().expect("read");
        assert_ne!(owner_of(&bed), Some(other));
        bed.turns(false);
        if !clean {
            assert!(bed.arrived().is_empty(), "the other one may still write");
            let fenced =
                ControlRecord::Fenced { incarnation: owner_of(&bed).expect("an owner"), slot: SlotId { incarnation: other, slot: 0 } };
            log.tell(&fenced);
            bed.turns(true);
        }
        let end = log.0.lock().end(&changelog(0), Isolation::ReadCommitted);
        let begins: Vec<Offset> = bed.arrivals.try_iter().map(|arrival| arrival.region.changelog_from).collect();
        assert_eq!(begins, [end], "clean: {clean}");
    }
}

#[test]
fn no_region_is_said_to_be_ready_while_the_store_of_another_one_is_to_be_opened() {
    let log = TestLog::of_members(&[ME, Incarnation(2)], 2);
    let mut bed = Bed::new(&log, ME, 2);
    let followed = bed.nursery.membership.view(|cluster| cluster.followed(bed.nursery.slot))[0];
    let other = region(1 - followed.partition);
    assert!(bed.nursery.obey_view().is_none(), "it is a member");
    let mut tend = |id: RegionId| assert!(bed.nursery.tend(id).is_ok());
    // Opened, and then at the end of its changelog each time.
    (0..3).for_each(|_| tend(followed));
    assert_eq!(log.told("ready"), 0, "its owner would release it, and it would stand still until the other one is opened");
    tend(other);
    tend(followed);
    assert_eq!(log.told("ready"), 1);
}

#[test]
fn who_wrote_the_last_epoch_and_never_joined_is_fenced_before_the_end_is_asked_for() {
    let log = TestLog::of_members(&[ME], 2);
    for partition in [0, 1] {
        log.commit(partition, record(partition, STRANGER).encode());
    }
    log.0.lock().is_held_open = true;
    let mut bed = Bed::new(&log, ME, 2);
    bed.turns(false);
    assert!(bed.arrived().is_empty() && !log.calls().contains(&"fence job-7-3".to_string()), "it was not looked up yet");
    bed.turns(true);
    assert_eq!(bed.arrived(), [region(0), region(1)]);
    let calls = log.calls();
    assert_eq!(calls.iter().filter(|call| call.starts_with("fence")).collect::<Vec<_>>(), ["fence job-7-3"]);
    assert_eq!(calls.last().map(String::as_str), Some("ends"));
}

#[test]
fn nobody_is_fenced_who_has_joined_before_this_worker_has_read_of_it() {
    let log = TestLog::of_members(&[ME], 1);
    log.commit(0, record(0, STRANGER).encode());
    let mut bed = Bed::new(&log, ME, 1);
    log.tell(&joined(STRANGER.incarnation));
    bed.turns(false);
    bed.turns(true);
    assert_eq!(bed.arrived(), [region(0)]);
    assert!(log.calls().iter().all(|call| call == "ends"), "{:?}", log.calls());
}

#[test]
fn only_who_never_joined_this_job_is_unknown() {
    let other = Incarnation(2);
    let log = TestLog::of_members(&[ME, other], 1);
    let writer = |record: &EpochRecord| Bed::new(&log, ME, 1).nursery.membership.view(|cluster| unknown_writer(cluster, "job", record));
    let of_other = record(0, SlotId { incarnation: other, slot: 0 });
    assert_eq!(writer(&of_other), None, "it may have released the region, and works");
    log.tell(&ControlRecord::Left { incarnation: other, clean: false });
    assert_eq!(writer(&of_other), None, "must_fence says what is to be done");
    assert_eq!(writer(&record(0, STRANGER)), Some(STRANGER));
    let of_another_job = EpochRecord { transactional_id: STRANGER.transactional_id("orders"), ..record(0, STRANGER) };
    assert_eq!(writer(&of_another_job), None);
    assert!(is_of_job(&record(0, STRANGER), "job") && !is_of_job(&of_another_job, "job"));
    let of_longer_name = EpochRecord { transactional_id: STRANGER.transactional_id("job-7"), ..record(0, STRANGER) };
    assert!(!is_of_job(&of_longer_name, "job") && is_of_job(&of_longer_name, "job-7"));
}

#[test]
fn what_a_follower_has_only_drained_is_flushed_before_a_delta_if_its_record_is_known() {
    for is_resumed in [false, true] {
        let log = TestLog::of_members(&[ME], 1);
        let first = record(0, SlotId { incarnation: ME, slot: 0 });
        let delta = DeltaHead { chunks: 0, bytes: 0, digest: Digest::default() };
        let second = EpochRecord { epoch: first.epoch.next(), delta: Some(delta), ..first.clone() };
        log.commit(0, first.encode());
        log.commit(0, second.encode());
        let mut nursery = Bed::new(&log, ME, 1).nursery;
        let Ok((mut followed, _)) = nursery.job.region(region(0), &nursery.genesis, nursery.settings.clone()) else {
            panic!("it is in the plan")
        };
        let calls = Arc::new(Mutex::new(Vec::new()));
        followed.has_tables = true;
        followed.state = Box::new(Drained(calls.clone()));
        let mut follower = if is_resumed {
            // It has committed nothing in its slot.
            followed.epoch = first.epoch;
            Follower::resume(followed, 1, Duration::ZERO)
        } else {
            Follower::new(followed, Some(first), 0, Duration::ZERO)
        };
        nursery.changelog.assign(&changelog(0), follower.read_up_to()).expect("assigned");
        let followed = follower.turn(nursery.changelog.as_mut(), nursery.exchange.as_mut(), &mut Notes::default(), Duration::ZERO);
        let calls = calls.lock().clone();
        match is_resumed {
            false => assert!(followed.is_ok() && calls == ["flush", "delta"], "{followed:?} {calls:?}"),
            true => assert!(matches!(followed, Err(FollowError::Retry(_))) && calls.is_empty(), "{followed:?} {calls:?}"),
        }
    }
}

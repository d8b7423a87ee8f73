//! A small engine over the simulated log, with every fault: what goes in comes out exactly once, or the checks say why not.
//!
//! Its workers keep the rules that the real one keeps (fence, read the changelog to its end, confirm, begin; a sealed epoch never changes;
//! the outcome of a commit in doubt is read from the log). Owners change at crashes and, while the earlier one stands still, at
//! pauses: it wakes up as one that does not know.

use super::*;
use crate::checks::{Checks, ControlFold, OwnerCheck};
use crate::schedule::{Actor, Mischief, Next, Schedule, Step};
use crate::world::{FaultPlan, Message};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use streamshield_core::epoch::{EpochRecord, Step as Read};
use streamshield_core::ids::{Epoch, Incarnation, PlanFingerprint, RegionId, StageId};
use streamshield_core::watermark::Watermark;

const INPUT: &str = "input";
const OUTPUT: &str = "output";
const CHANGELOG: &str = "job-pass-changelog";
const CONTROL: &str = "job-control";
const ROWS: i64 = 200;
const REGION: RegionId = RegionId { stage: StageId(0), partition: 0 };
const LIMIT: TakeLimit = TakeLimit { messages: 7, bytes: 1 << 20, end: None };
const SEED_VARIABLE: &str = "STREAMSHIELD_SEED";
/// More runs than usual.
const RUNS_VARIABLE: &str = "STREAMSHIELD_SIM_RUNS";

fn in_partition(topic: &str) -> TopicPartition {
    TopicPartition::new(topic, 0)
}

fn out(topic: &str, partition: i32, payload: Vec<u8>) -> OutMessage {
    let payload = Some(payload);
    OutMessage { topic: topic.into(), partition: Some(partition), key: None, payload, headers: vec![], timestamp_ms: None }
}

/// Who owned the region, the last one being the owner: what the control log would say.
type Owners = Rc<RefCell<Vec<String>>>;

struct Toy;

impl ControlFold for Toy {
    fn apply(&mut self, message: &Message) -> Vec<(RegionId, Option<String>)> {
        vec![(REGION, message.payload.as_ref().map(|payload| String::from_utf8_lossy(payload).into_owned()))]
    }
}

/// An epoch that waits for its commit.
struct Sealed {
    record: EpochRecord,
    rows: Vec<i64>,
}

enum Phase {
    Fence(Vec<String>),
    Renew,
    FindEnd,
    /// Reads the changelog up to this end.
    ReadEnd(Offset),
    Run,
}

struct Worker {
    log: SimLog,
    id: String,
    owners: Owners,
    phase: Phase,
    writer: Option<Box<dyn TransactionalWriter>>,
    changelog: Box<dyn LogReader>,
    input: Option<Box<dyn LogReader>>,
    last: Option<EpochRecord>,
    sealed: Option<Sealed>,
}

impl Worker {
    fn start(sim: &Sim, owners: &Owners) -> (ClientId, Worker) {
        let earlier = owners.borrow().clone();
        let id = format!("job-{}-0", earlier.len() + 1);
        tell(sim, &id);
        owners.borrow_mut().push(id.clone());
        let log = SimLog::new(sim, sim.client(&id));
        let mut changelog = log.reader(ReaderOptions::default(), Arc::default()).expect("made without a call");
        changelog.assign(&in_partition(CHANGELOG), 0).expect("alive");
        let phase = Phase::Fence(earlier);
        let worker = Worker { id, owners: Rc::clone(owners), phase, writer: None, changelog, input: None, last: None, sealed: None, log };
        (worker.log.client(), worker)
    }

    fn is_owner(&self) -> bool {
        self.owners.borrow().last() == Some(&self.id)
    }

    /// One move; an error means to try again a little later.
    fn proceed(&mut self) -> Result<Next, LogError> {
        match &mut self.phase {
            Phase::Fence(ids) => {
                match ids.last() {
                    Some(id) => {
                        self.log.fence(id)?;
                        ids.pop();
                    }
                    None => self.phase = Phase::Renew,
                }
                Ok(Next::Again)
            }
            Phase::Renew => {
                self.writer = None;
                self.writer = Some(self.log.writer(&self.id)?);
                if !self.is_owner() {
                    return Ok(Next::Ended);
                }
                self.phase = Phase::FindEnd;
                Ok(Next::Again)
            }
            Phase::FindEnd => {
                let end = self.log.bounds(&in_partition(CHANGELOG), Isolation::ReadUncommitted)?.high;
                if self.log.bounds(&in_partition(CHANGELOG), Isolation::ReadCommitted)?.high < end {
                    return Ok(Next::Idle(5));
                }
                self.phase = Phase::ReadEnd(end);
                Ok(Next::Again)
            }
            Phase::ReadEnd(end) => {
                let end = *end;
                let mut last = None;
                let taken = self.changelog.take(&in_partition(CHANGELOG), &LIMIT, &mut |views| {
                    last = views.last().map(|view| EpochRecord::decode(view.payload.unwrap_or_default()).expect("a record"));
                })?;
                self.last = last.or(self.last.take());
                if taken.next.max(taken.at_end.unwrap_or(0)) < end {
                    return Ok(if taken.messages > 0 { Next::Again } else { Next::Idle(5) });
                }
                self.begin()?;
                Ok(Next::Again)
            }
            Phase::Run => self.run(),
        }
    }

    /// The end is known: what was sealed is committed already, or goes into a new transaction.
    fn begin(&mut self) -> Result<(), LogError> {
        let committed = self.last.as_ref().map_or(Epoch(0), |record| record.epoch);
        self.sealed = self.sealed.take().filter(|sealed| sealed.record.epoch > committed);
        if self.input.is_none() {
            let from = self.last.as_ref().map_or(0, |record| record.positions[0]);
            let mut input = self.log.reader(ReaderOptions::default(), Arc::default())?;
            input.assign(&in_partition(INPUT), from)?;
            self.input = Some(input);
        }
        self.phase = Phase::Run;
        Ok(())
    }

    fn run(&mut self) -> Result<Next, LogError> {
        if self.sealed.is_none() && !self.seal()? {
            let is_done = self.last.as_ref().is_some_and(|record| record.positions == [ROWS]);
            return Ok(if is_done { Next::Ended } else { Next::Idle(20) });
        }
        let Some(sealed) = &self.sealed else { return Ok(Next::Again) };
        let writer = self.writer.as_mut().expect("a running worker has one");
        let mut send = || -> Result<(), LogError> {
            writer.begin()?;
            for row in &sealed.rows {
                writer.send(&out(OUTPUT, (*row % 2) as i32, row.to_string().into_bytes()))?;
            }
            writer.send(&out(CHANGELOG, 0, sealed.record.encode()))
        };
        let sent = send();
        let outcome = match sent {
            Ok(()) => writer.commit(),
            Err(error) => {
                writer.abort();
                CommitOutcome::Aborted(error.message)
            }
        };
        if outcome == CommitOutcome::Committed {
            self.last = self.sealed.take().map(|sealed| sealed.record);
        } else {
            self.phase = Phase::Renew;
        }
        Ok(Next::Again)
    }

    /// Reads the next rows into an epoch; false when there are none now.
    fn seal(&mut self) -> Result<bool, LogError> {
        let Some(last) = &self.last else {
            self.sealed = Some(Sealed { record: self.record(Epoch::GENESIS, vec![], 0), rows: vec![] });
            return Ok(true);
        };
        let (epoch, from) = (last.epoch.next(), last.positions[0]);
        let mut rows = Vec::new();
        let input = self.input.as_mut().expect("a running worker has one");
        let taken = input.take(&in_partition(INPUT), &LIMIT, &mut |views| {
            let row = |view: &MessageView<'_>| String::from_utf8_lossy(view.payload.unwrap_or_default()).parse::<i64>().expect("a number");
            rows.extend(views.iter().map(row));
        })?;
        if taken.messages == 0 {
            return Ok(false);
        }
        let record = self.record(epoch, vec![Read::Read { input: 0, from, to: taken.next }], taken.next);
        self.sealed = Some(Sealed { record, rows });
        Ok(true)
    }

    fn record(&self, epoch: Epoch, steps: Vec<Read>, position: Offset) -> EpochRecord {
        EpochRecord {
            version: EpochRecord::VERSION,
            region: REGION,
            epoch,
            incarnation: Incarnation(1),
            transactional_id: self.id.clone(),
            plan: PlanFingerprint(1),
            now_ms: 0,
            steps,
            positions: vec![position],
            upstreams: vec![],
            watermark: Watermark(position),
            digest: None,
            delta: None,
            finished: false,
        }
    }
}

impl Actor for Worker {
    fn turn(&mut self) -> Next {
        self.proceed().unwrap_or(Next::Idle(10))
    }
    fn is_woken(&mut self) -> bool {
        false
    }
}

/// Says in the control log who owns the region from now on.
fn tell(sim: &Sim, owner: &str) {
    loop {
        // A word of an operator: who says it may die of it, too.
        let log = SimLog::new(sim, sim.client("operator"));
        if log.append(&out(CONTROL, 0, owner.as_bytes().to_vec())).is_ok() {
            return;
        }
        sim.advance(1);
    }
}

#[derive(Debug, PartialEq)]
struct Run {
    trace_hash: u64,
    violations: Vec<String>,
    /// What came out, per partition.
    rows: Vec<Vec<i64>>,
    workers: usize,
    fired: BTreeMap<&'static str, u64>,
}

impl Run {
    fn is_exactly_once(&self) -> bool {
        let wanted: Vec<Vec<i64>> = vec![(0..ROWS).step_by(2).collect(), (1..ROWS).step_by(2).collect()];
        self.violations.is_empty() && self.rows == wanted
    }
}

fn run(seed: u64, faults: FaultPlan) -> Run {
    let sim = Sim::new(seed, FaultPlan::default());
    let mut checks = Checks::of_job("job");
    checks.add(OwnerCheck::new(CONTROL, Toy));
    sim.set_checks(checks);
    let admin = SimLog::new(&sim, sim.client("admin"));
    let spec = |name: &str, partitions| TopicSpec { name: name.into(), partitions, replication_factor: None, configs: Default::default() };
    admin.create_topics(&[spec(INPUT, 1), spec(OUTPUT, 2), spec(CHANGELOG, 1), spec(CONTROL, 1)]).expect("created");
    for row in 0..ROWS {
        admin.append(&out(INPUT, 0, row.to_string().into_bytes())).expect("appended");
    }
    sim.set_faults(faults);
    let mischief =
        Mischief { crash_interval_ms: 1_500, pause_interval_ms: 700, pause_ms_max: 1_500, outage_interval_ms: 3_000, outage_ms_max: 400 };
    let mut schedule = Schedule::new(&sim, mischief);
    let owners = Owners::default();
    let add = |schedule: &mut Schedule| {
        let (client, worker) = Worker::start(&sim, &owners);
        schedule.add(client, Box::new(worker));
    };
    add(&mut schedule);
    let begun_ms = sim.now_ms();
    while begun_ms + 20_000 > sim.now_ms() {
        match schedule.step() {
            Step::Crashed(_) if schedule.clients().is_empty() => add(&mut schedule),
            Step::Paused(..) if sim.draw(0..2) == 0 => add(&mut schedule),
            Step::Over => break,
            _ => {}
        }
    }
    // Calm, so that it comes to an end.
    sim.set_faults(FaultPlan::default());
    schedule.set_mischief(Mischief::default());
    add(&mut schedule);
    while schedule.step() != Step::Over {
        assert!(sim.now_ms() < begun_ms + 600_000, "{SEED_VARIABLE}={seed}: no end");
    }
    sim.advance(TRANSACTION_TIMEOUT_MS * 2);
    let rows = (0..2).map(|partition| rows_of(&sim, partition)).collect();
    let violations = sim.violations().iter().map(ToString::to_string).collect();
    let workers = owners.borrow().len();
    Run { trace_hash: sim.trace_hash(), violations, rows, workers, fired: sim.fired() }
}

fn rows_of(sim: &Sim, partition: i32) -> Vec<i64> {
    let log = SimLog::new(sim, sim.client("reader"));
    let place = TopicPartition::new(OUTPUT, partition);
    let mut reader = log.reader(ReaderOptions::default(), Arc::default()).expect("reader");
    reader.assign(&place, 0).expect("assign");
    let mut rows = Vec::new();
    loop {
        let taken = reader.take(&place, &LIMIT, &mut |views| {
            rows.extend(views.iter().map(|view| String::from_utf8_lossy(view.payload.expect("a row")).parse::<i64>().expect("a number")));
        });
        if taken.expect("take").at_end.is_some() {
            return rows;
        }
    }
}

/// The seed of the variable, or this many, or as many as the other variable says.
fn seeds(count: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number(SEED_VARIABLE) {
        Some(seed) => vec![seed],
        None => (0..number(RUNS_VARIABLE).unwrap_or(count)).collect(),
    }
}

fn swarm(seed: u64) -> FaultPlan {
    FaultPlan::swarm(&mut ChaCha8Rng::seed_from_u64(seed))
}

#[test]
fn rows_come_out_exactly_once_whatever_happens() {
    let seeds = seeds(300);
    let (mut fired, mut workers) = (BTreeMap::<&str, u64>::new(), 0);
    for seed in &seeds {
        let run = run(*seed, swarm(*seed));
        assert!(run.is_exactly_once(), "{SEED_VARIABLE}={seed}: {:?}\n{:?}", run.violations, run.rows);
        run.fired.iter().for_each(|(name, count)| *fired.entry(name).or_default() += count);
        workers += run.workers;
    }
    println!("{} runs, {workers} workers, faults {fired:?}", seeds.len());
    if seeds.len() >= 300 {
        let names = ["refused", "answer lost", "append twice", "queue full", "sent early", "delivery fails", "commit aborted"];
        let more = ["commit answer lost", "commit request lost", "commit late", "commit repeated", "markers late", "records late"];
        for name in names.iter().chain(&more).chain(&["short take", "crash in call", "broker away", "call waits"]) {
            assert!(fired.contains_key(name), "the fault '{name}' never took place");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let mut hashes = Vec::new();
    for seed in 0..5 {
        let first = run(seed, FaultPlan::harsh());
        assert_eq!(first, run(seed, FaultPlan::harsh()), "seed {seed}");
        hashes.push(first.trace_hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 5);
}

#[test]
fn a_client_that_forgives_doubt_is_found_out() {
    let plan = |forgives_doubt| FaultPlan {
        commit_late: 2_000,
        commit_repeated: 2_000,
        commit_request_lost: 500,
        sent_early: 5_000,
        late_ms_max: 200,
        call_ms_max: 20,
        call_waits: 3_000,
        forgives_doubt,
        ..FaultPlan::default()
    };
    let found: Vec<_> = (0..40).map(|seed| run(seed, plan(true))).filter(|run| !run.is_exactly_once()).collect();
    let torn = found.iter().flat_map(|run| &run.violations).filter(|what| what.contains("E-3")).count();
    println!("{} of 40 runs went wrong, {torn} transactions were torn", found.len());
    assert!(found.len() > 5 && torn > 0, "the checks must see what KIP-890 does");
    assert!((0..40).all(|seed| run(seed, plan(false)).is_exactly_once()), "with our check nothing happens");
}

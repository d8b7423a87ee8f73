//! One run: faults, then calm, then the reckoning.
//!
//! ```text
//! chaos   faults in every port, crashes, pauses, cuts, drains, lost disks     safety: the checks look at every commit
//!   │ heal: all faults end, all workers start, the last rows of the input
//! calm    nothing goes wrong any more                                          liveness: all rows are out within [`CALM_MS_MAX`]
//!   │
//! rest    a little longer: followers catch up, late ends arrive                the output is the batch result, views agree (C-1), K-2
//! ```
//! The first violation ends the run. Everything is drawn from the seed, so the run is repeated by it.

mod deeds;
mod ending;

use crate::broken::Rule;
use crate::control::{Control, ControlCheck, OwnerFold, SharedControl};
use crate::feeder::Feeder;
use crate::job::{INPUT, JOB};
use crate::machine::{Machine, Ports, config};
use crate::oracle::{OracleCheck, SharedOracle};
use crate::process::{Backlog, Context, Event, Joined, Once, Running, SharedInbox, Start, crash_points};
use crate::retention::Retention;
use crate::scenario::Scenario;
use crate::table::OutputRow;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use streamshield_core::cluster::ControlRecord;
use streamshield_core::ids::{Epoch, RegionId, StageId};
use streamshield_core::ports::log::{Log, OutMessage};
use streamshield_engine::exchange::frame::FRAME_HEAD_BYTES;
use streamshield_engine::runtime::{JobOutcome, Starting, Worker};
use streamshield_engine::topics;
use streamshield_sim::checkpoints::StoreFaults;
use streamshield_sim::checks::{Checks, EpochCheck, OwnerCheck, TogetherCheck, Violation};
use streamshield_sim::schedule::{Mischief, Schedule, Step};
use streamshield_sim::state::DiskFaults;
use streamshield_sim::world::{Message, START_MS};
use streamshield_sim::{ClientId, FaultPlan, Sim, SimDisk, SimLog, SimStore};

/// From the end of all faults until everything must be out.
pub const CALM_MS_MAX: i64 = 60_000;
/// Followers must be warm again this long after that.
const REST_MS_MAX: i64 = 30_000;
/// How often the driver looks whether it is done, and at what was trimmed.
const LOOK_MS: i64 = 100;
/// A run that does so many things is going round in circles.
const STEPS_MAX: u64 = 1_000_000;
/// Lines of the trace that are kept for a report.
const TAIL_LINES: usize = 80;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    pub violations: Vec<Violation>,
    pub trace_hash: u64,
    /// Since the start of the virtual time.
    pub simulated_ms: i64,
    /// From the end of all faults until everything was out.
    pub calm_ms: i64,
    pub steps: u64,
    pub calls: u64,
    pub rows: usize,
    pub late_rows: usize,
    pub windows: usize,
    pub takeovers: u64,
    pub heartbeats_compared: u64,
    pub images_compared: u64,
    pub fired: BTreeMap<&'static str, u64>,
    pub tail: Vec<String>,
}

/// What the driver has planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Append,
    Faults,
    Look,
    Start(usize),
    Leave,
    Drain,
    Cut,
    Lose,
    StoreAway,
    Twin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Chaos,
    Calm,
    Rest,
    Over,
}

/// One life of one worker.
struct Life {
    worker: usize,
    context: Context,
    backlog: Backlog,
    joined: Option<Joined>,
}

struct Run<'a> {
    scenario: &'a Scenario,
    broken: Option<Rule>,
    sim: Sim,
    rng: ChaCha8Rng,
    schedule: Schedule,
    store: SimStore,
    machines: Vec<Machine>,
    lives: BTreeMap<ClientId, Life>,
    inbox: SharedInbox,
    crash_rate: Rc<Cell<u32>>,
    control: SharedControl,
    oracle: SharedOracle,
    feeder: Feeder,
    retention: Retention,
    agenda: BTreeMap<(i64, u64), Deed>,
    numbers: u64,
    fault_plan: usize,
    /// Workers that the operator has ever drained.
    drained: BTreeSet<usize>,
    phase: Phase,
    phase_since_ms: i64,
    calm_ms: i64,
    chased_version: u64,
    steps: u64,
}

/// Runs a scenario; with a rule broken, if it names one. `echo` prints the trace.
pub fn run(scenario: &Scenario, broken: Option<Rule>, echo: bool) -> Outcome {
    crash_points::arm();
    let sim = Sim::new(scenario.seed, FaultPlan::default());
    if echo {
        sim.echo_trace();
    }
    let mut run = Run::new(scenario, broken, sim);
    run.go();
    run.outcome()
}

/// The checks that look at every commit.
fn checks(control: &SharedControl, oracle: &SharedOracle) -> Checks {
    let mut checks = Checks::default();
    checks.add(EpochCheck::default());
    let is_output = |topic: &str| topic != INPUT && topic != topics::control(JOB) && !topic.ends_with("-changelog");
    checks.add(TogetherCheck::new(is_output).with_claims(claims));
    checks.add(OwnerCheck::new(topics::control(JOB), OwnerFold(control.clone())));
    checks.add(ControlCheck(control.clone()));
    checks.add(OracleCheck(oracle.clone()));
    checks
}

/// The epochs that a message of an exchange or a sink belongs to.
fn claims(message: &Message) -> Vec<(RegionId, Epoch)> {
    let (topic, payload) = (&*message.partition.topic, message.payload.as_deref().unwrap_or_default());
    if topic == topics::late(JOB) || topic == topics::dead_letter(JOB) {
        return Vec::new();
    }
    if !topic.ends_with("-repartition") {
        return OutputRow::decode(payload).map(|row| (row.region, row.epoch)).into_iter().collect();
    }
    let mut claims = Vec::new();
    let mut rest = payload;
    while let Some((head, behind)) = rest.split_first_chunk::<FRAME_HEAD_BYTES>() {
        let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let epoch = Epoch(u64::from(u32_at(16)) | (u64::from(u32_at(20)) << 32));
        claims.push((RegionId { stage: StageId(u32_at(4)), partition: u32_at(8) }, epoch));
        rest = behind.get((u32_at(32) + u32_at(36)) as usize..).unwrap_or_default();
    }
    claims
}

impl<'a> Run<'a> {
    fn new(scenario: &'a Scenario, broken: Option<Rule>, sim: Sim) -> Run<'a> {
        let (control, oracle) = (Control::of(JOB), SharedOracle::default());
        sim.set_checks(checks(&control, &oracle));
        let feeder = Feeder::new(&sim, scenario).expect("nothing goes wrong in a world without faults");
        let mut faults = scenario.disk.clone();
        if let Some(rule) = broken {
            rule.change_disk(&mut faults);
        }
        let machine = |number: usize| {
            let name = format!("w{number}");
            let wall_error_ms = scenario.wall_error_ms[number];
            Machine { disk: SimDisk::new(&sim, &name, faults.clone()), name, client: None, wall_error_ms, replaced: 0 }
        };
        Run {
            scenario,
            broken,
            rng: sim.generator(),
            schedule: Schedule::new(&sim, scenario.mischief.clone()),
            store: SimStore::new(&sim, scenario.store.clone()),
            machines: (0..scenario.workers).map(machine).collect(),
            lives: BTreeMap::new(),
            inbox: SharedInbox::default(),
            crash_rate: Rc::new(Cell::new(scenario.crash_point_rate)),
            control,
            oracle,
            feeder,
            retention: Retention::default(),
            agenda: BTreeMap::new(),
            numbers: 0,
            fault_plan: 0,
            drained: BTreeSet::new(),
            phase: Phase::Chaos,
            phase_since_ms: START_MS,
            calm_ms: 0,
            chased_version: 0,
            steps: 0,
            sim,
        }
    }

    fn go(&mut self) {
        for worker in 0..self.machines.len() {
            let after_ms = self.rng.random_range(0..300);
            self.plan(after_ms, Deed::Start(worker));
        }
        self.plan(0, Deed::Faults);
        self.plan(LOOK_MS, Deed::Look);
        for deed in [Deed::Append, Deed::Leave, Deed::Drain, Deed::Cut, Deed::Lose, Deed::StoreAway, Deed::Twin] {
            self.plan_next(deed);
        }
        while self.phase != Phase::Over && !self.sim.has_violation() {
            let due = self.agenda.first_entry().filter(|entry| entry.key().0 <= self.sim.now_ms());
            if let Some(due) = due {
                let deed = due.remove();
                self.perform(deed);
                continue;
            }
            self.schedule.set_horizon(self.agenda.first_key_value().map_or(i64::MAX, |((at_ms, _), _)| *at_ms));
            let step = self.schedule.step();
            self.steps += 1;
            match step {
                Step::Crashed(client) => {
                    self.sim.fire("worker crashed");
                    self.died(client);
                }
                Step::Paused(..) => self.sim.fire("worker paused"),
                _ => {}
            }
            self.receive();
            self.retention.note(&self.sim, &self.store);
            self.chase();
            if self.steps > STEPS_MAX {
                self.sim.violation(format!("liveness: after {STEPS_MAX} steps the run is not over"));
            }
        }
    }

    fn plan(&mut self, after_ms: i64, deed: Deed) {
        self.numbers += 1;
        self.agenda.insert((self.sim.now_ms() + after_ms.max(0), self.numbers), deed);
    }

    /// A deed that is done again and again.
    fn plan_next(&mut self, deed: Deed) {
        let deeds = &self.scenario.deeds;
        let mean_ms = match deed {
            Deed::Append => self.scenario.append_interval_ms,
            Deed::Leave => deeds.leave,
            Deed::Drain => deeds.drain,
            Deed::Cut => deeds.cut,
            Deed::Lose => deeds.lose,
            Deed::StoreAway => deeds.store_away,
            Deed::Twin => deeds.twin,
            Deed::Faults | Deed::Look | Deed::Start(_) => 0,
        };
        if mean_ms > 0 && self.phase == Phase::Chaos {
            let after_ms = self.rng.random_range(1..=2 * mean_ms) as i64;
            self.plan(after_ms, deed);
        }
    }

    fn perform(&mut self, deed: Deed) {
        match deed {
            Deed::Append => self.feeder.append(self.scenario),
            Deed::Faults => self.change_faults(),
            Deed::Look => self.look(),
            Deed::Start(worker) => self.start(worker),
            Deed::Leave => self.leave(),
            Deed::Drain => self.drain(),
            Deed::Cut => {
                let for_ms = self.rng.random_range(10..3 * self.scenario.settings.expiry_ms) as i64;
                if let Some(client) = self.any_client() {
                    self.sim.cut(client, for_ms);
                }
            }
            Deed::Lose => self.lose(),
            Deed::StoreAway => {
                let for_ms = self.rng.random_range(100..5_000);
                self.sim.fire("store away");
                self.store.away(for_ms);
            }
            Deed::Twin => self.twin(),
        }
        self.plan_next(deed);
    }

    fn start(&mut self, worker: usize) {
        if self.machines[worker].client.is_some() {
            return;
        }
        let machine = &mut self.machines[worker];
        let client = self.sim.client(&machine.name);
        machine.client = Some(client);
        let context = Context { sim: self.sim.clone(), client, inbox: self.inbox.clone(), crash_rate: self.crash_rate.clone() };
        let backlog = Backlog::default();
        let ports = Ports { sim: &self.sim, store: &self.store, control: &self.control, broken: self.broken };
        let environment = ports.environment(machine, client, &backlog);
        let starting = Starting::new(crate::job::plan().clone(), config(self.scenario, &machine.name), environment);
        match starting {
            Ok(starting) if self.sim.is_alive(client) => {
                self.schedule.add(client, Box::new(Start { context: context.clone(), starting }));
                self.lives.insert(client, Life { worker, context, backlog, joined: None });
            }
            Err(error) if self.sim.is_alive(client) => {
                self.sim.violation(format!("a worker can't start: {error}"));
            }
            _ => {
                self.machines[worker].client = None;
                self.start_later(worker);
            }
        }
    }

    fn start_later(&mut self, worker: usize) {
        let after_ms = if self.phase == Phase::Chaos { self.rng.random_range(10..3_000) } else { 100 };
        self.plan(after_ms, Deed::Start(worker));
    }

    /// A process is gone, whatever the reason.
    fn died(&mut self, client: ClientId) {
        self.schedule.crash(client);
        let Some(life) = self.lives.remove(&client) else { return };
        if self.machines[life.worker].client == Some(client) {
            self.machines[life.worker].client = None;
            self.start_later(life.worker);
        }
    }

    /// What the turns since the last look have brought about.
    fn receive(&mut self) {
        loop {
            let next = self.inbox.borrow_mut().events.pop_front();
            let Some((client, event)) = next else { break };
            if self.sim.is_alive(client) {
                self.handle(client, event);
            } else {
                self.died(client);
            }
        }
        for (client, life) in &self.lives {
            for run in life.backlog.take() {
                self.schedule.add(*client, Box::new(Once { context: life.context.clone(), run: Some(run) }));
            }
        }
    }

    fn handle(&mut self, client: ClientId, event: Event) {
        match event {
            Event::Joined(worker) => self.joined(client, *worker),
            Event::NotStarted(error) => {
                // A worker that was expired or replaced while it was joining says so; everything else is for people.
                if !error.message.starts_with("this worker was gone before it began")
                    && !error.message.contains("has the newer incarnation")
                {
                    self.sim.violation(format!("a worker can't start: {error}"));
                }
                self.died(client);
            }
            Event::Panicked(text) => {
                self.sim.violation(text);
                self.died(client);
            }
            Event::Ended { is_slot, outcome } => {
                let ended = self.lives.get_mut(&client).and_then(|life| life.joined.as_mut()?.ended(is_slot, outcome));
                if let Some(outcome) = ended {
                    self.ended(client, &outcome);
                }
            }
        }
    }

    fn joined(&mut self, client: ClientId, worker: Worker) {
        let Some(life) = self.lives.get_mut(&client) else { return };
        let (joined, parts) = Joined::new(worker);
        life.joined = Some(joined);
        for (is_slot, part) in parts {
            self.schedule.add(client, Box::new(Running { context: life.context.clone(), part, is_slot }));
        }
    }

    fn ended(&mut self, client: ClientId, outcome: &JobOutcome) {
        self.sim.note("run", &format!("{client:?} ends: {outcome:?}"));
        match outcome {
            JobOutcome::Finished => self.sim.violation("a worker says that the job has finished; its input never ends".into()),
            JobOutcome::Failed(error) => self.sim.violation(format!("a worker has failed: {error}")),
            JobOutcome::Expired(_) => self.sim.fire("worker expired"),
            JobOutcome::Stopped | JobOutcome::TakenOver(_) => {}
        }
        self.died(client);
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_since_ms = self.sim.now_ms();
        self.sim.note("run", &format!("{phase:?}"));
    }

    fn outcome(self) -> Outcome {
        let (calls, tail) = self.sim.trace_tail(TAIL_LINES);
        let (oracle, control) = (self.oracle.lock(), self.control.lock());
        Outcome {
            seed: self.scenario.seed,
            violations: self.sim.violations(),
            trace_hash: self.sim.trace_hash(),
            simulated_ms: self.sim.now_ms() - START_MS,
            calm_ms: self.calm_ms,
            steps: self.steps,
            calls,
            rows: oracle.rows(),
            late_rows: oracle.late_rows(),
            windows: oracle.windows(),
            takeovers: control.takeovers,
            heartbeats_compared: control.heartbeats_compared,
            images_compared: self.sim.images_compared(),
            fired: self.sim.fired(),
            tail,
        }
    }
}

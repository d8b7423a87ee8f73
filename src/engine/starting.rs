//! A worker's way into the cluster.
//!
//! ```text
//! control topic ─ read to its end ─► genesis (the first one wins) ─► topics ─► joined ─ read back, still live ─► a worker
//! ```
//! On failure: the control topic is waited for as long as it takes, as a member would, and read anew where it was trimmed meanwhile; a question or a write that
//! fails is tried again until [`START_DEADLINE`]; a plan or settings that don't fit the genesis end the start with what to do.

use crate::assemble::{Job, ensure_topics, has_state, letter_bytes_max};
use crate::config::{Environment, JobConfig};
use crate::membership::{ControlReading, Membership, START_DEADLINE, retrying};
use crate::plan::{JobPlan, StageInput, StagePlan};
use crate::runtime::EngineError;
use crate::topics;
use crate::worker::Worker;
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::cluster::{ControlRecord, DiedIn, FEATURE_LEVEL, Genesis, Joined, Settings, Standing};
use streamshield_core::ids::{Incarnation, Offset, RegionId, StageId};
use streamshield_core::ports::log::{Isolation, LogError, LogErrorKind, TopicPartition, TopicSpec, Wakeup};

/// How often a start begins again because the control log was trimmed before it had read it.
const TRIMS_MAX: u32 = 5;
/// How long a start asks for the ends of partitions one by one.
const ENDS_ASKED_MAX: Duration = Duration::from_secs(5);

/// Who has joined has made all topics before: one of the job's own that is not there any more was deleted, and with it what the job has done. Asked before
/// anything is made, so that the next start sees the same.
fn check_none_was_lost(environment: &Environment, specs: &[TopicSpec]) -> Result<(), EngineError> {
    for spec in specs.iter().filter(|spec| spec.configs.contains_key("retention.ms")) {
        let mut is_missing = false;
        let found = retrying(environment.clock.as_ref(), "look for a topic", || {
            let found = environment.log.describe_topic(&spec.name)?;
            is_missing = found.is_none();
            // A broker that has just started may not know of it yet.
            found.ok_or_else(|| LogError::new(LogErrorKind::Missing, format!("there is no topic {}", spec.name)))
        });
        found.map_err(|error| match is_missing {
            true => EngineError {
                message: format!("there is no topic {}, and the job has worked: it was deleted, or the SQL names its tables differently", spec.name),
                hint: Some(
                    "topics are named after tables: go back to the names that the job began with. What a deleted topic held can't be had again: begin \
                     anew under another job name, or without all of the job's topics, its checkpoints, and on every machine its state_dir and \
                     what `checkpoint.fallback_dir` holds of it"
                        .into(),
                ),
            },
            false => error,
        })?;
    }
    Ok(())
}

/// Who makes a deleted topic again gets an empty one: the job would begin anew there, and give its rows twice or without what it had counted. Asked
/// before this worker joins: as soon as somebody works, an exchange is empty no more.
fn check_none_was_made_anew(job: &Job, environment: &Environment, membership: &Membership) -> Result<(), EngineError> {
    let mut written: Vec<(TopicPartition, RegionId, bool)> = Vec::new();
    // First what was written, then where it ends: an epoch that is told of lies in the log by then.
    membership.view(|cluster| {
        for (id, region) in cluster.regions() {
            let Some(stage) = job.plan.stages.get(id.stage.0 as usize) else { continue };
            let partition = |topic: String| TopicPartition::new(topic, id.partition as i32);
            if region.begun {
                written.push((partition(topics::changelog(&job.config.name, stage)), id, is_restorable(job, stage)));
            }
            if let (true, StageInput::Exchange(exchange)) = (region.reads, &stage.input) {
                written.push((partition(topics::exchange(&job.config.name, &job.plan.exchanges[exchange.0 as usize])), id, false));
            }
        }
    });
    let partitions: Vec<TopicPartition> = written.iter().map(|(partition, ..)| partition.clone()).collect();
    let ends = ends_that_answer(environment, &partitions);
    match written.iter().zip(ends).find(|(_, end)| *end == Some(0)) {
        Some(((partition, id, is_restorable), _)) => Err(made_anew(partition, *id, *is_restorable)),
        None => Ok(()),
    }
}

/// One partition that is away for a while keeps nobody from joining: a changelog is looked at again when its region is opened, an exchange by the next who joins.
fn ends_that_answer(environment: &Environment, partitions: &[TopicPartition]) -> Vec<Option<Offset>> {
    let error = match environment.log.ends(partitions, Isolation::ReadUncommitted) {
        Ok(ends) => return ends.into_iter().map(Some).collect(),
        Err(error) => error,
    };
    tracing::info!(%error, "not all of the job's topics say where they end: they are asked one by one");
    let deadline = environment.clock.steady() + ENDS_ASKED_MAX;
    let end_of = |partition: &TopicPartition| {
        if environment.clock.steady() >= deadline {
            return None;
        }
        let end = environment.log.ends(std::slice::from_ref(partition), Isolation::ReadUncommitted);
        end.inspect_err(|error| tracing::info!(%partition, %error, "it is not known whether it was made anew")).ok()?.first().copied()
    };
    partitions.iter().map(end_of).collect()
}

/// Whether a restore under another name does without the stage's changelog: where its regions stand is in their checkpoints, too. In a job with
/// exchanges that is so for windows only.
pub(crate) fn is_restorable(job: &Job, stage: &StagePlan) -> bool {
    has_state(stage) || job.plan.exchanges.is_empty()
}

/// A partition that holds nothing though the region has written or read there.
pub(crate) fn made_anew(partition: &TopicPartition, region: RegionId, is_restorable: bool) -> EngineError {
    let restore = if is_restorable { " (`checkpoints restore --as` takes the state over)" } else { "" };
    EngineError {
        message: format!("{partition} is empty, but region {region} has committed epochs: the topic was deleted and made anew"),
        hint: Some(format!(
            "what a deleted topic held can't be had again: begin anew under another job name{restore}, or without all of the job's topics, \
             its checkpoints in the store, and its state_dir and what `checkpoint.fallback_dir` holds of it on every machine"
        )),
    }
}

/// The job reads the partitions that its topics had at its first start: nothing else would tell that records in later ones are not read. Topics in other
/// clusters than the job's own are not looked at, and a topic that can't be described is no reason not to start.
fn warn_of_added_partitions(job: &Job, environment: &Environment, genesis: &Genesis) {
    for (stage, (topic, _)) in &job.groups {
        let found = match environment.log.describe_topic(topic) {
            Ok(found) => found.map_or(0, |found| found.partitions),
            Err(error) => {
                tracing::info!(topic, reason = error.message, "it is not known whether the topic has got more partitions");
                continue;
            }
        };
        let unread = unread_partitions(genesis, *stage, found);
        metrics::gauge!("streamshield_source_partitions_unread", "topic" => topic.clone()).set(unread as f64);
        if unread > 0 {
            tracing::warn!(
                topic,
                partitions = found,
                unread,
                "the topic has more partitions than when the job began: they are not read; another job name begins with all"
            );
        }
    }
}

/// Of `found` partitions, those that the source had not at the job's first start.
fn unread_partitions(genesis: &Genesis, stage: StageId, found: i32) -> usize {
    let known = genesis.splits.get(&stage.0).map_or(0, Vec::len);
    usize::try_from(found).unwrap_or(0).saturating_sub(known)
}

/// A worker on its way into the cluster. A simulation gives it turns; [`crate::runtime::start`] waits between them.
pub struct Starting {
    job: Arc<Job>,
    environment: Environment,
    pub(crate) wakeup: Arc<Wakeup>,
    /// Steady time: what does not answer by then is not waited for.
    deadline: Duration,
    /// What a letter is bound by; known once the topics are there.
    letter_bytes_max: usize,
    /// How often the control log was trimmed ahead of it.
    trims: u32,
    phase: StartPhase,
}

enum StartPhase {
    Reading(Box<ControlReading>),
    Genesis { membership: Arc<Membership>, told: Option<Offset> },
    Joining { membership: Arc<Membership>, genesis: Arc<Genesis>, offset: Offset },
    Over,
}

impl Starting {
    /// Opens the job's tables, makes the control topic if there is none, and begins to read it.
    pub fn new(plan: JobPlan, config: JobConfig, environment: Environment) -> Result<Starting, EngineError> {
        topics::check_client(&plan, environment.log.as_ref())?;
        let job = Arc::new(Job::open(plan, config, &environment.connectors)?);
        ensure_topics(&environment, &[topics::control_spec(&job.config)])?;
        let wakeup = Arc::new(Wakeup::default());
        // Who does not know the topic has not heard of it yet, however long that takes while brokers come and go.
        let open = || ControlReading::open(environment.log.as_ref(), &job.config.name, wakeup.clone()).map_err(known_to_exist);
        let reading = retrying(environment.clock.as_ref(), "read the control topic", open)?;
        let deadline = environment.clock.steady() + START_DEADLINE;
        let letter_bytes_max = environment.log.message_bytes_max();
        Ok(Starting { job, environment, wakeup, deadline, letter_bytes_max, trims: 0, phase: StartPhase::Reading(Box::new(reading)) })
    }

    /// Whether the others may know of it by now, as of one who joins.
    pub(crate) fn has_announced_itself(&self) -> bool {
        matches!(self.phase, StartPhase::Joining { .. })
    }

    /// Some: the worker is a member, its actors want turns.
    pub fn turn(&mut self) -> Result<Option<Worker>, EngineError> {
        match std::mem::replace(&mut self.phase, StartPhase::Over) {
            StartPhase::Reading(reading) => self.read(reading).map(|()| None),
            StartPhase::Genesis { membership, told } => self.genesis(membership, told).map(|()| None),
            StartPhase::Joining { membership, genesis, offset } => self.join(membership, genesis, offset),
            StartPhase::Over => Err(EngineError { message: "the start is over".into(), hint: None }),
        }
    }

    fn read(&mut self, mut reading: Box<ControlReading>) -> Result<(), EngineError> {
        match reading.turn() {
            Ok(true) => {}
            Ok(false) => {
                self.phase = StartPhase::Reading(reading);
                return Ok(());
            }
            Err(error) if error.kind == LogErrorKind::Retry => {
                self.phase = StartPhase::Reading(reading);
                return Ok(());
            }
            Err(error) => return self.read_anew(error),
        }
        let cluster = reading.fold()?;
        let clock_ms = self.environment.clock.wall_ms().max(0) as u64;
        let incarnation = Incarnation(cluster.highest_incarnation().map_or(clock_ms, |highest| clock_ms.max(highest.0 + 1)));
        let (log, position) = (self.environment.log.clone(), reading.position);
        let membership = Arc::new(Membership::new(log, &self.job.config.name, incarnation, reading.reader, cluster, position));
        self.phase = StartPhase::Genesis { membership, told: None };
        Ok(())
    }

    /// The control log can't be read any further. Where a member has trimmed it behind a snapshot, this worker begins with that one: it has not joined yet.
    fn read_anew(&mut self, error: LogError) -> Result<(), EngineError> {
        if error.kind != LogErrorKind::OutOfRange || self.trims >= TRIMS_MAX {
            return Err(error.into());
        }
        self.trims += 1;
        self.begin_again()
    }

    fn begin_again(&mut self) -> Result<(), EngineError> {
        let (log, name) = (self.environment.log.as_ref(), &self.job.config.name);
        let open = || ControlReading::open(log, name, self.wakeup.clone()).map_err(known_to_exist);
        self.phase = StartPhase::Reading(Box::new(retrying(self.environment.clock.as_ref(), "read the control topic", open)?));
        Ok(())
    }

    fn genesis(&mut self, membership: Arc<Membership>, mut told: Option<Offset>) -> Result<(), EngineError> {
        if let Err(error) = read_on(&membership) {
            return self.read_anew(error);
        }
        let Some(genesis) = membership.view(|cluster| cluster.genesis().cloned()) else {
            if told.is_none() {
                let genesis = match self.job.discover() {
                    Err(unready) if unready.retry && self.environment.clock.steady() < self.deadline => {
                        tracing::debug!(error = %unready.error, "trying again");
                        self.phase = StartPhase::Genesis { membership, told };
                        return Ok(());
                    }
                    discovered => ControlRecord::Genesis(discovered?),
                };
                told = Some(retrying(self.environment.clock.as_ref(), "write to the control topic", || membership.append(&genesis))?);
            }
            self.phase = StartPhase::Genesis { membership, told };
            return Ok(());
        };
        check_genesis(&self.job, &genesis)?;
        let specs = self.job.topics(&genesis);
        if membership.view(|cluster| cluster.highest_incarnation().is_some()) {
            check_none_was_lost(&self.environment, &specs)?;
            check_none_was_made_anew(&self.job, &self.environment, &membership)?;
            warn_of_added_partitions(&self.job, &self.environment, &genesis);
        }
        ensure_topics(&self.environment, &specs)?;
        self.letter_bytes_max = letter_bytes_max(&self.environment, &self.job.config)?;
        let config = &self.job.config;
        let died_in = self.environment.flight.as_ref().map_or_else(Vec::new, |flight| {
            flight.forget();
            flight.died_in().to_vec()
        });
        for DiedIn { region, epoch, .. } in &died_in {
            tracing::warn!(%region, epoch = epoch.0, "this worker's last process died while it worked on the region");
        }
        let joined = ControlRecord::Joined(Joined {
            incarnation: membership.incarnation,
            nonce: self.environment.nonce,
            worker: config.worker.clone(),
            slots: config.slots as u32,
            rack: config.rack.clone(),
            level: FEATURE_LEVEL,
            plan: self.job.plan.fingerprint,
            settings: config.cluster.clone(),
            http: config.http.clone(),
            died_in,
        });
        let offset = retrying(self.environment.clock.as_ref(), "write to the control topic", || membership.append(&joined))?;
        self.phase = StartPhase::Joining { membership, genesis: Arc::new(genesis), offset };
        Ok(())
    }

    fn join(&mut self, membership: Arc<Membership>, genesis: Arc<Genesis>, offset: Offset) -> Result<Option<Worker>, EngineError> {
        read_on(&membership)?;
        if !membership.has_read(offset) {
            self.phase = StartPhase::Joining { membership, genesis, offset };
            return Ok(None);
        }
        // An incarnation is a start's millisecond: two workers may take the same one, and only the nonce tells whose it is (O-1).
        let me = membership.incarnation;
        let (standing, is_anothers) = membership.view(|cluster| {
            let standing = cluster.standing_of(me, self.environment.nonce);
            // The other one may be gone again by now.
            let is_anothers = standing != cluster.standing(me) || cluster.highest_incarnation() == Some(me);
            (standing, is_anothers)
        });
        match standing {
            Standing::Live => {}
            // Another worker took the incarnation at the same moment: begin again behind it.
            Standing::Refused(_) if is_anothers => return self.begin_again().map(|()| None),
            Standing::Refused(reason) => return Err(EngineError { message: reason, hint: None }),
            other => return Err(EngineError { message: format!("this worker was gone before it began: {other:?}"), hint: None }),
        }
        let settings = membership.view(|cluster| cluster.settings().cloned()).unwrap_or_else(|| self.job.config.cluster.clone());
        let mine = &self.job.config.cluster;
        // How many are expected matters only to those who start together.
        let (workers_expected, start_wait_ms) = (mine.workers_expected, mine.start_wait_ms);
        if (Settings { workers_expected, start_wait_ms, ..settings.clone() }) != *mine {
            tracing::warn!(in_force = ?settings, "the running workers have other settings; theirs hold until all were restarted");
        }
        Worker::new(&self.job, &self.environment, membership, genesis, settings, self.letter_bytes_max, self.wakeup.clone()).map(Some)
    }
}

fn known_to_exist(error: LogError) -> LogError {
    let kind = if error.kind == LogErrorKind::Missing { LogErrorKind::Retry } else { error.kind };
    LogError { kind, ..error }
}

fn read_on(membership: &Membership) -> Result<(), LogError> {
    match membership.read() {
        Err(error) if error.kind != LogErrorKind::Retry => Err(error),
        _ => Ok(()),
    }
}

/// Asked before anything is written: a region that has no epoch yet would take any plan. Partitions that were fixed at the job's first start can't be
/// changed by its settings.
fn check_genesis(job: &Job, genesis: &Genesis) -> Result<(), EngineError> {
    if genesis.plan.is_some_and(|plan| plan != job.plan.fingerprint) {
        return Err(changed_plan());
    }
    for exchange in &job.plan.exchanges {
        let wanted = exchange.partitions.unwrap_or(job.config.parallelism);
        match genesis.exchange_partitions.get(&exchange.id.0) {
            Some(partitions) if *partitions == wanted => {}
            Some(partitions) => {
                return Err(EngineError {
                    message: format!("the job began with parallelism {partitions}, now it is {wanted}"),
                    hint: Some(format!("set `parallelism: {partitions}`, or give the job another name")),
                });
            }
            None => return Err(changed_plan()),
        }
    }
    if job.sources.keys().any(|stage| !genesis.splits.contains_key(&stage.0)) || job.plan.stages.len() != genesis.stages.len() {
        return Err(changed_plan());
    }
    Ok(())
}

fn changed_plan() -> EngineError {
    EngineError {
        message: "the job's plan has changed: it computes something else than at its first start".into(),
        hint: Some("give the changed job another name, or go back to the SQL that it began with".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use streamshield_core::cluster::GenesisSplit;

    #[test]
    fn partitions_that_came_after_the_first_start_are_not_read() {
        let splits: Vec<GenesisSplit> = (0..3).map(|id| GenesisSplit { id, start: 0, end: None }).collect();
        let genesis =
            Genesis { plan: None, splits: [(1, splits)].into(), exchange_partitions: Default::default(), stages: Default::default() };
        let unread = |found| unread_partitions(&genesis, StageId(1), found);
        assert_eq!((unread(5), unread(3), unread(0)), (2, 0, 0));
    }
}

//! Makes a job of another name from one and its checkpoints.
//!
//! A region's checkpoint says where it stands in its input, and the input of a stage behind an exchange is a topic of the job's own, which
//! the new job does not have. So what lies between the regions goes along:
//!
//! ```text
//! checkpoints, changelogs, heads of frames ─► where each region is put back to (core::cut)
//!     └─► topics, genesis ─► one transaction: frames that lie between the regions, and each region's epoch record ─► manifests, files
//! ```
//! - **Frames** of an upstream up to the epoch that it is put back to, from where the region behind it stands: a message is cut frame by
//!   frame. What the upstream made later it makes once more.
//! - **Records** are the first ones of the new changelogs, with positions in the new topics. They prove where the regions stand, as in any
//!   job; a region with groups that finds its record and not its checkpoint does not begin.
//! - **Genesis** is the old job's: its splits, with where they begin and end, and its partitions.
//!
//! Without exchanges nothing lies between the regions: the transaction holds the records alone. A region that has not committed anything yet has none, and begins
//! in the new job as it would have in the old one.
//!
//! On failure: before the transaction is committed the new job has topics without anything in them, and another try goes on from there.
//! After that, and before the last manifest is written, the regions whose manifest is missing do not begin. Another try writes the missing ones
//! if it makes the same choice, and is refused if the old job has gone on. That may be running: only what it has committed is read, up to an
//! end that no open transaction hides.

use super::PlannedJob;
use super::checkpoints::CheckpointAdmin;
use super::committed::{Heads, POLL, Reading, not_ours, patiently, without_steps};
use super::control::{ControlError, ControlLog};
use crate::job::identity::Identity;
use crate::problem::Problem;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::cluster::{ControlRecord, Genesis};
use streamshield_core::cut::{self, Candidates, Misfit};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, Offset, RegionId, StageId};
use streamshield_core::ports::checkpoint::{CheckpointError, Durability};
use streamshield_core::ports::log::{
    Bounds, CommitOutcome, Isolation, Log, LogError, LogErrorKind, OutMessage, TopicPartition, TransactionalWriter,
};
use streamshield_engine::changelog::RECORD_KEY;
use streamshield_engine::exchange::frame;
use streamshield_engine::plan::{ExchangePlan, StageInput, StagePlan};
use streamshield_engine::runtime::Job as EngineJob;
use streamshield_engine::topics;
use streamshield_kafka::KafkaLog;

/// A cluster that does not take what was sent within this is away.
const SENT_TIME_MAX: Duration = Duration::from_secs(30);

/// Where a region of the new job begins.
pub struct Start {
    pub region: RegionId,
    pub epoch: Epoch,
    /// When its checkpoint was made; None: its record is from the changelog.
    pub made_ms: Option<i64>,
    /// Of its checkpoint.
    pub bytes: u64,
}

/// A place where a region can be put back to.
struct Point {
    /// In its input.
    position: Offset,
    /// None: it is in the checkpoint.
    record: Option<EpochRecord>,
    made_ms: Option<i64>,
    bytes: u64,
}

/// `to`: back to the newest checkpoints of at most this epoch.
pub fn restore(
    planned: &PlannedJob,
    admin: &dyn CheckpointAdmin,
    log: &Arc<KafkaLog>,
    to: Option<Epoch>,
    new_job: &str,
) -> Result<Vec<Start>, Problem> {
    // Before the changelogs are read: an epoch that is told of lies there by then.
    let control = ControlLog::open(log.clone(), &planned.job.name).map_err(in_control)?;
    let genesis = genesis_of(planned, &control)?;
    let mut old = OldJob { planned, genesis: &genesis, reading: Reading::new(log.clone()).map_err(in_log)? };
    // In this order: what a region has taken was committed before its upstream's changelog is read, and that before it is asked where exchanges end.
    let mut points = old.points(admin)?;
    if !old.has_exchanges() {
        // Nobody has read anything of it.
        let has_begun = |region: RegionId| control.cluster.region(region).is_some_and(|region| region.begun);
        points.retain(|region, (of_region, newest)| !of_region.is_empty() || newest.is_some() || has_begun(*region));
    }
    if points.is_empty() {
        return Err(never_ran(planned));
    }
    let heads = old.heads()?;
    let mut candidates = BTreeMap::new();
    for (region, (of_region, newest)) in &mut points {
        if let Some(heads) = heads.get(region) {
            of_region.retain(|_, point| heads.holds(point.position));
        }
        let (stateful, upstreams) = (old.is_stateful(region.stage), old.upstreams(region.stage));
        candidates.insert(*region, Candidates { stateful, epochs: of_region.keys().copied().collect(), newest: *newest, upstreams });
    }
    let taken = |region: RegionId, epoch: Epoch, upstream: RegionId| heads[&region].taken(upstream, points[&region].0[&epoch].position);
    let chosen = cut::choose(&candidates, to, &taken).map_err(misfit)?;

    let mut checkpoints = chosen.clone();
    checkpoints.retain(|region, _| candidates[region].stateful);
    let mut records = BTreeMap::new();
    for (region, epoch) in &chosen {
        let record = match &points[region].0[epoch].record {
            Some(record) => record.clone(),
            None => decode(*region, &admin.record(*region, *epoch).map_err(in_store)?)?,
        };
        records.insert(*region, record);
    }
    admin.check_clone(new_job, &checkpoints).map_err(in_store)?;
    let target = Target::prepare(&old, log, new_job)?;
    target.check_inputs(&records)?;
    target.copy(&mut old, &chosen, &mut records)?;
    records.retain(|region, _| checkpoints.contains_key(region));
    admin.clone_to(new_job, &records).map_err(|error| half_made(new_job, &error))?;
    let start = |(region, epoch): (&RegionId, &Epoch)| {
        let point = &points[region].0[epoch];
        Start { region: *region, epoch: *epoch, made_ms: point.made_ms, bytes: point.bytes }
    };
    Ok(chosen.iter().map(start).collect())
}

fn never_ran(planned: &PlannedJob) -> Problem {
    Problem::error(format!("job `{}` has not begun yet", planned.job.name)).hint("there is nothing to restore")
}

fn genesis_of(planned: &PlannedJob, control: &ControlLog) -> Result<Genesis, Problem> {
    let genesis = control.cluster.genesis().cloned().ok_or_else(|| never_ran(planned))?;
    let plan = &planned.planned.plan;
    if genesis.plan.is_some_and(|known| known != plan.fingerprint) || genesis.stages.len() != plan.stages.len() {
        return Err(Problem::error(format!("job `{}` computes something else than at its first start", planned.job.name))
            .hint("restore with the SQL that wrote the checkpoints"));
    }
    Ok(genesis)
}

/// The job that is restored.
struct OldJob<'a> {
    planned: &'a PlannedJob,
    genesis: &'a Genesis,
    reading: Reading,
}

type Points = BTreeMap<RegionId, (BTreeMap<Epoch, Point>, Option<Epoch>)>;

impl OldJob<'_> {
    fn stages(&self) -> &[StagePlan] {
        &self.planned.planned.plan.stages
    }

    fn regions(&self, stage: StageId) -> impl Iterator<Item = RegionId> + use<> {
        let regions = self.genesis.stages.get(&stage.0).map_or(0, |shape| shape.regions);
        (0..regions).map(move |partition| RegionId { stage, partition })
    }

    fn is_stateful(&self, stage: StageId) -> bool {
        self.genesis.stages.get(&stage.0).is_some_and(|shape| shape.stateful)
    }

    fn exchange(&self, stage: StageId) -> Option<&ExchangePlan> {
        match &self.stages()[stage.0 as usize].input {
            StageInput::Exchange(exchange) => Some(&self.planned.planned.plan.exchanges[exchange.0 as usize]),
            StageInput::Source(_) => None,
        }
    }

    fn has_exchanges(&self) -> bool {
        !self.planned.planned.plan.exchanges.is_empty()
    }

    fn upstreams(&self, stage: StageId) -> Vec<RegionId> {
        let stages = self.exchange(stage).map(|exchange| exchange.upstream.as_slice()).unwrap_or_default();
        stages.iter().flat_map(|stage| self.regions(*stage)).collect()
    }

    /// The partition that a region reads in a job of this name; None: of no topic of the job's own.
    fn input(&self, job: &str, region: RegionId) -> Option<TopicPartition> {
        Some(TopicPartition::new(topics::exchange(job, self.exchange(region.stage)?), region.partition as i32))
    }

    fn changelog(&self, job: &str, region: RegionId) -> TopicPartition {
        TopicPartition::new(topics::changelog(job, &self.stages()[region.stage.0 as usize]), region.partition as i32)
    }

    /// Where each region can be put back to, and its newest epoch.
    fn points(&mut self, admin: &dyn CheckpointAdmin) -> Result<Points, Problem> {
        let (name, plan) = (self.planned.job.name.clone(), self.planned.planned.plan.fingerprint);
        let all: Vec<RegionId> = self.stages().iter().flat_map(|stage| self.regions(stage.id)).collect();
        let mut points = Points::new();
        // Without exchanges any checkpoint says all that there is to know of where its region stood, also where the changelog is trimmed or gone.
        for region in all.iter().filter(|region| self.is_stateful(region.stage) || !self.has_exchanges()) {
            let (mut of_region, known) = (BTreeMap::new(), admin.list(*region).map_err(in_store)?);
            for info in known.iter().filter(|info| info.durability == Durability::Remote && info.plan == plan) {
                let Some(position) = info.positions.first() else { continue };
                let point = Point { position: *position, record: None, made_ms: Some(info.created_ms), bytes: info.bytes };
                of_region.insert(info.epoch, point);
            }
            points.insert(*region, (of_region, None));
        }
        for region in all.iter().rev() {
            let (stateful, changelog) = (self.is_stateful(region.stage), self.changelog(&name, *region));
            let found = self.reading.records(&changelog, stateful).map_err(in_log)?;
            let (of_region, newest) = points.entry(*region).or_default();
            *newest = found.last().map(|record| record.epoch);
            for record in found.into_iter().filter(|record| !stateful && record.region == *region && record.plan == plan) {
                let Some(position) = record.positions.first().copied() else { continue };
                of_region.insert(record.epoch, Point { position, record: Some(record), made_ms: None, bytes: 0 });
            }
        }
        Ok(points)
    }

    /// Of each region behind an exchange what lies in its input.
    fn heads(&mut self) -> Result<BTreeMap<RegionId, Heads>, Problem> {
        let name = self.planned.job.name.clone();
        let all: Vec<RegionId> = self.stages().iter().flat_map(|stage| self.regions(stage.id)).collect();
        let mut heads = BTreeMap::new();
        for region in all {
            let Some(input) = self.input(&name, region) else { continue };
            heads.insert(region, self.reading.heads(&input).map_err(in_log)?);
        }
        Ok(heads)
    }
}

/// The job that is made.
struct Target<'a> {
    name: &'a str,
    log: Arc<dyn Log>,
    genesis: Genesis,
    /// Topics of the sources.
    sources: BTreeMap<StageId, String>,
}

impl<'a> Target<'a> {
    /// Makes its topics, as its first worker would, and its genesis.
    fn prepare(old: &OldJob<'_>, log: &Arc<KafkaLog>, name: &'a str) -> Result<Target<'a>, Problem> {
        let mut config = old.planned.job.config(&Identity::alone(), None);
        config.name = name.into();
        let job = EngineJob::open(old.planned.planned.plan.clone(), config, &super::connectors(log.clone()))
            .map_err(|error| Problem::error(error.message).maybe_hint(error.hint))?;
        let sources = job.groups.iter().map(|(stage, (topic, _))| (*stage, topic.clone())).collect();
        let target = Target { name, log: log.clone(), genesis: old.genesis.clone(), sources };
        // Before anything is made in it.
        target.check_unused()?;
        let specs = job.topics(old.genesis);
        patiently(|| target.log.create_topics(&specs)).map_err(in_log)?;
        for spec in specs.iter().filter(|spec| spec.configs.contains_key("retention.ms")) {
            let missing = || LogError::new(LogErrorKind::Missing, format!("there is no topic {}", spec.name));
            let found = patiently(|| target.log.describe_topic(&spec.name)?.ok_or_else(missing)).map_err(in_log)?.partitions;
            if spec.partitions >= 0 && found != spec.partitions {
                return Err(Problem::error(format!("topic `{}` has {found} partitions, the job needs {}", spec.name, spec.partitions))
                    .hint("it is of another job: choose another name"));
            }
        }
        if !target.check_unused()? {
            let message = OutMessage {
                topic: topics::control(name).into(),
                partition: Some(0),
                key: None,
                payload: Some(ControlRecord::Genesis(target.genesis.clone()).encode()),
                headers: Vec::new(),
                timestamp_ms: None,
            };
            // Twice in the log it is as good as once: the first one wins.
            patiently(|| target.log.append(&message)).map_err(in_log)?;
        }
        Ok(target)
    }

    /// Nobody has run it. True: an earlier try has left its genesis.
    fn check_unused(&self) -> Result<bool, Problem> {
        // A topic that was just made is not known everywhere at once.
        let opened = patiently(|| match ControlLog::open(self.log.clone(), self.name) {
            Err(ControlError::Log(error)) => Err(error),
            opened => Ok(opened),
        });
        let control = match opened.map_err(in_log)? {
            Ok(control) => control,
            Err(ControlError::NeverRan { .. }) => return Ok(false),
            Err(error) => return Err(in_control(error)),
        };
        let genesis = control.cluster.genesis();
        if control.cluster.highest_incarnation().is_some() || genesis.is_some_and(|genesis| *genesis != self.genesis) {
            return Err(Problem::error(format!("there is a job `{}` already", self.name)).hint("choose another name"));
        }
        Ok(genesis.is_some())
    }

    /// What the sources' topics no longer hold can't be read.
    fn check_inputs(&self, records: &BTreeMap<RegionId, EpochRecord>) -> Result<(), Problem> {
        for (region, record) in records.iter().filter(|(_, record)| !record.finished) {
            let split = self.genesis.splits.get(&region.stage.0).and_then(|splits| splits.get(region.partition as usize));
            let topic = self.sources.get(&region.stage);
            let (Some(split), Some(topic), Some(position)) = (split, topic, record.positions.first()) else { continue };
            let partition = TopicPartition::new(topic.as_str(), split.id as i32);
            // Whether it can be read at all is found out by the job.
            let Ok(bounds) = self.log.bounds(&partition, Isolation::ReadCommitted) else { continue };
            if *position < bounds.low {
                let low = bounds.low;
                let what = format!("region {region} goes on at offset {position} of {partition}, which begins at offset {low} by now");
                return Err(Problem::error(what).hint("records between are gone: restore to a later epoch, or to `latest`"));
            }
        }
        Ok(())
    }

    /// Copies what lies between the regions, and says where they stand; then `records` say it.
    fn copy(
        &self,
        old: &mut OldJob<'_>,
        chosen: &BTreeMap<RegionId, Epoch>,
        records: &mut BTreeMap<RegionId, EpochRecord>,
    ) -> Result<(), Problem> {
        let id = format!("{}-restore", self.name);
        // Ends what an earlier try has left open.
        let mut writer = patiently(|| self.log.writer(&id)).map_err(in_log)?;
        let (mut inputs, mut ends) = (Vec::new(), Vec::new());
        for (region, record) in records.iter_mut() {
            let Some(to) = old.input(self.name, *region) else { continue };
            let from = old.input(&old.planned.job.name, *region).expect("its stage reads an exchange under any name");
            // Asked before the transaction is begun: to wait for an end may take longer than that may be open.
            let end = old.reading.stable(&from).map_err(in_log)?.high;
            let start = old.reading.stable(&to).map_err(in_log)?.low;
            inputs.push((from, record.positions.first().copied().unwrap_or_default()..end, to));
            record.positions = vec![start];
        }
        // By an earlier try, which did not get to the last manifest.
        if self.is_copied(old, records)? {
            return Ok(());
        }
        for region in records.keys() {
            let changelog = old.changelog(self.name, *region);
            let end = self.expect_empty(&mut old.reading, &changelog)?.high;
            ends.push((changelog, end));
        }
        inputs.iter().try_for_each(|(_, _, to)| self.expect_empty(&mut old.reading, to).map(drop))?;
        writer.begin().map_err(in_log)?;
        let sent = inputs.iter().try_for_each(|(from, positions, to)| {
            let reading = &mut old.reading;
            send_frames(writer.as_mut(), reading, from, positions.clone(), to, chosen)
        });
        let sent = sent.and_then(|()| {
            records.iter().try_for_each(|(region, record)| {
                let changelog = old.changelog(self.name, *region);
                writer.send(&to_partition(&changelog, Some(RECORD_KEY), record.encode(), None))
            })
        });
        let sent = sent.and_then(|()| self.wait_until_sent(&ends));
        // Who has begun meanwhile has not seen any of this; who begins from now on finds it, and waits until the transaction is over.
        let sent = sent.map_err(in_log).and_then(|()| self.check_unused());
        if let Err(problem) = sent {
            writer.abort();
            return Err(problem);
        }
        match writer.commit() {
            CommitOutcome::Committed => Ok(()),
            CommitOutcome::InDoubt(why) | CommitOutcome::Fenced(why) => {
                drop(writer);
                // Ends it, whatever became of it; then the log tells.
                drop(patiently(|| self.log.writer(&id)).map_err(in_log)?);
                if self.is_copied(old, records)? { Ok(()) } else { Err(not_copied(&why)) }
            }
            CommitOutcome::Aborted(why) | CommitOutcome::Refused(why) => Err(not_copied(&why)),
        }
    }

    /// Whether these records, and nothing else, are committed in the changelogs.
    fn is_copied(&self, old: &mut OldJob<'_>, records: &BTreeMap<RegionId, EpochRecord>) -> Result<bool, Problem> {
        for (region, record) in records {
            let changelog = old.changelog(self.name, *region);
            if old.reading.records(&changelog, false).map_err(in_log)? != std::slice::from_ref(record) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `send` only queues: waits until the record of each changelog has come to its broker, behind this end.
    fn wait_until_sent(&self, ends: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        let deadline = Instant::now() + SENT_TIME_MAX;
        for (changelog, end) in ends {
            while patiently(|| self.log.bounds(changelog, Isolation::ReadUncommitted))?.high <= *end {
                if Instant::now() > deadline {
                    let message = format!("{changelog} has not taken its record within {SENT_TIME_MAX:?}");
                    return Err(LogError::new(LogErrorKind::Retry, message));
                }
                std::thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// Where a partition of its own begins and ends; nothing may be committed in it.
    fn expect_empty(&self, reading: &mut Reading, partition: &TopicPartition) -> Result<Bounds, Problem> {
        let bounds = reading.stable(partition).map_err(in_log)?;
        if reading.is_empty(partition, bounds).map_err(in_log)? {
            return Ok(bounds);
        }
        let what = format!("{partition} is not empty: a job `{}` has run, or was restored before", self.name);
        Err(Problem::error(what).hint("choose another name"))
    }
}

/// Copies the frames between these positions of a partition that the upstreams have made at their chosen epochs.
fn send_frames(
    writer: &mut dyn TransactionalWriter,
    reading: &mut Reading,
    from: &TopicPartition,
    positions: Range<Offset>,
    to: &TopicPartition,
    chosen: &BTreeMap<RegionId, Epoch>,
) -> Result<(), LogError> {
    let mut failed = None;
    reading.read(from, positions.start, positions.end, &mut |message| {
        if failed.is_some() {
            return;
        }
        let is_made = |span: &frame::FrameSpan| chosen.get(&span.upstream).is_some_and(|epoch| span.epoch <= *epoch);
        let kept = match frame::cut(message.payload.unwrap_or_default(), is_made) {
            Ok(kept) => kept,
            Err(error) => {
                failed = Some(not_ours(from, message.offset, &error));
                return;
            }
        };
        let timestamp_ms = (message.timestamp_ms >= 0).then_some(message.timestamp_ms);
        if let Some(kept) = kept
            && let Err(error) = writer.send(&to_partition(to, None, kept, timestamp_ms))
        {
            failed = Some(error);
        }
    })?;
    failed.map_or(Ok(()), Err)
}

fn to_partition(partition: &TopicPartition, key: Option<&[u8]>, payload: Vec<u8>, timestamp_ms: Option<i64>) -> OutMessage {
    OutMessage {
        topic: partition.topic.clone(),
        partition: Some(partition.partition),
        key: key.map(<[u8]>::to_vec),
        payload: Some(payload),
        headers: Vec::new(),
        timestamp_ms,
    }
}

fn decode(region: RegionId, record: &[u8]) -> Result<EpochRecord, Problem> {
    let record = EpochRecord::decode(record).map_err(|error| Problem::error(format!("the checkpoint of region {region}: {error}")))?;
    Ok(without_steps(record))
}

fn misfit(misfit: Misfit) -> Problem {
    let hint = match &misfit {
        Misfit::Nothing(_) => "`streamshield checkpoints list` shows what there is; pin what you may want back",
        Misfit::Ahead { .. } => {
            "let the job make further checkpoints, or restore to an older epoch; with a larger `checkpoint.retain` there is more to choose from"
        }
    };
    Problem::error(misfit.to_string()).hint(hint)
}

fn not_copied(why: &str) -> Problem {
    Problem::error(format!("what lies between the regions could not be copied: {why}"))
        .hint("try again; all of it is one transaction: a larger `kafka: {transaction.timeout.ms: …}` gives it more time")
}

/// The transaction is committed, and a checkpoint could not be copied.
fn half_made(new_job: &str, error: &CheckpointError) -> Problem {
    let what = format!("the frames and records of `{new_job}` are committed, but not all of its checkpoints: {}", error.message);
    Problem::error(what).hint(
        "do not start it. If the old job has not worked since, the same command goes on from here; if it has, restore under another name, or \
         delete the new job's topics and its folder in the store first",
    )
}

fn in_log(error: LogError) -> Problem {
    let hint = match error.kind {
        LogErrorKind::OutOfRange => "the job has trimmed it meanwhile: try again, or pin the checkpoints first",
        LogErrorKind::Retry | LogErrorKind::Missing => "is the cluster reachable, and are the job's topics there?",
        _ => "is this the right cluster, and may this user read and write there?",
    };
    Problem::error(error.message).hint(hint)
}

fn in_store(error: CheckpointError) -> Problem {
    Problem::error(error.message).hint("check `checkpoint.store`, or try again later")
}

fn in_control(error: ControlError) -> Problem {
    Problem::error(error.to_string()).hint("is this the right cluster, and the right `name`?")
}

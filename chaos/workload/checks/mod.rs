//! The invariants that a job's own topics must show, whatever the job computes.
//!
//! | look at | invariants |
//! |---|---|
//! | changelogs ([`epochs`]) | E-1 epochs 1, 2, 3…; E-2 steps join; E-3 deltas whole; E-5 watermarks never go back |
//! | exchanges ([`exchange`]) | E-3 no rows of an epoch that has no record; E-1 epochs in order |
//! | control log ([`control`]) | O-1 epochs by owners only, in the order in which they owned; C-1 all workers agree |
//! | ends of all partitions ([`ends`]) | no open transaction is left; K-2 nothing is trimmed that a restore may need; no topic that is nobody's |
//!
//! The detectors are pure: they take what was read, and tests plant what they must find.

pub mod control;
pub mod ends;
pub mod epochs;
pub mod exchange;

pub use control::{ControlFold, ControlFollower};

use crate::client::{Isolation, ends as ends_of, visit};
use crate::error::WorkloadError;
use crate::findings::{Findings, Invariant};
use rdkafka::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use streamshield_core::ids::{Epoch, Offset, RegionId};

/// Names of a job's own topics.
pub fn control_topic(job: &str) -> String {
    format!("{job}-control")
}

pub fn is_changelog_of(job: &str, topic: &str) -> bool {
    is_own(job, topic, "-changelog")
}

pub fn is_exchange_of(job: &str, topic: &str) -> bool {
    is_own(job, topic, "-repartition")
}

fn is_own(job: &str, topic: &str, suffix: &str) -> bool {
    topic.strip_prefix(job).is_some_and(|rest| rest.starts_with('-') && rest.ends_with(suffix) && rest.len() > suffix.len() + 1)
}

/// What the job's topics have told beside findings.
#[derive(Clone, Debug, Default)]
pub struct JobChecked {
    pub findings: Findings,
    /// Stages that read a source, by the genesis.
    pub source_stages: BTreeSet<u32>,
    /// Committed epochs, of all regions.
    pub epochs: u64,
    /// Per region, the newest epoch and the positions of its inputs.
    pub last: BTreeMap<RegionId, (Epoch, Vec<Offset>)>,
    /// Incarnations whose epochs are in the log: how many processes have worked.
    pub incarnations: BTreeSet<u64>,
}

/// Reads all topics of a job and checks them. `others`: further topics whose transactions must have ended, and which are known; `patience`: for those that are
/// still open; `control`: what was read of the control log while the job ran.
pub fn check_job(
    servers: &str,
    job: &str,
    others: &[&str],
    patience: Duration,
    mut control: ControlFold,
) -> Result<JobChecked, WorkloadError> {
    let mut checked = JobChecked::default();
    let of_job = |topic: &str| topic.strip_prefix(job).is_some_and(|rest| rest.starts_with('-'));
    // First, so that the logs are read when nothing is open any more.
    let hanging = ends::wait_for_ends(servers, &|topic| of_job(topic) || others.contains(&topic), patience)?;
    checked.findings.merge(hanging);
    let partitions = ends_of(servers, &of_job)?;
    let names: BTreeSet<String> = partitions.iter().map(|end| end.topic.clone()).collect();
    // A job may be alive while it is judged, so what must already be there for something else is read after it: rows, then their records, then the
    // owners of those who have written them.
    let mut exchanges = exchange::ExchangeCheck::default();
    for topic in names.iter().filter(|topic| is_exchange_of(job, topic)) {
        exchanges.begin(topic);
        visit(servers, topic, Isolation::Committed, &mut |message| {
            exchanges.take(message.partition(), message.offset(), message.payload().unwrap_or_default());
        })?;
    }
    let mut epochs = epochs::EpochsCheck::default();
    for topic in names.iter().filter(|topic| is_changelog_of(job, topic)) {
        let trimmed = partitions.iter().filter(|end| end.topic == **topic && end.low > 0).map(|end| end.partition).collect();
        epochs.begin(topic, trimmed);
        visit(servers, topic, Isolation::Committed, &mut |message| {
            epochs.take(message.partition(), message.offset(), message.key(), message.payload().unwrap_or_default());
        })?;
    }
    control.read_on(servers)?;
    let control = control.finish();
    let epochs = epochs.finish(control.history.clone());
    checked.findings.merge(exchanges.finish(&epochs.last));
    checked.findings.merge(ends::check_trims(job, &partitions, &epochs.first, &control.stateful, &control.checkpoints));
    checked.findings.merge(ends::check_names(job, &names, others, (control.stages, control.exchanges)));
    checked.findings.merge(control.findings);
    checked.findings.merge(epochs.findings);
    checked.findings.epochs_unseen = epochs.unseen;
    checked.source_stages = control.source_stages;
    checked.epochs = checked.findings.checked.get(&Invariant::E1).copied().unwrap_or(0);
    checked.last = epochs.last.into_iter().map(|(region, record)| (region, (record.epoch, record.positions))).collect();
    checked.incarnations = epochs.incarnations;
    Ok(checked)
}

//! Reads what came out and says what is wrong with it.
//!
//! Nothing of the input is read: what must come out follows from [`Sent`]. Each output has a detector that takes its rows one by one in bounded memory, so that some
//! million records are judged in seconds:
//!
//! | detector | looks at | finds |
//! |---|---|---|
//! | [`passed`] | per key a lane 1, 2, 3… | lost-write, duplicate, nonmonotonic, foreign-value |
//! | [`transfers`] | per partition a lane of records; pairs; balances | torn-transaction, wrong-total, lost-write, duplicate, nonmonotonic |
//! | [`markers`] | per partition and region a lane of markers | torn-transaction, lost-write, duplicate, nonmonotonic |
//! | [`windows`] | per window a sum of hashes; on a difference group by group | lost-write, duplicate, wrong-total, foreign-value |
//! | [`letters`] | each faulty record | lost-write, duplicate, foreign-value, non-conserved |
//! | [`seen`] | what an observer saw | aborted-read, unseen, inconsistent-offsets |
//! | [`checks`](crate::checks) | the job's own topics | broken-epochs, foreign-writer, divergence, hanging-transaction, … |

pub mod lanes;
pub mod letters;
pub mod markers;
pub mod passed;
pub mod rows;
pub mod seen;
pub mod transfers;
pub mod windows;

#[cfg(test)]
mod oracle_test;
#[cfg(test)]
mod test_kit;

use crate::checks::{self, ControlFold, JobChecked};
use crate::client::{Isolation, visit};
use crate::error::WorkloadError;
use crate::feeder::Sent;
use crate::findings::{Anomaly, AnomalyKind, Conservation, Findings, Invariant};
use crate::job::{Topics, Workload};
use crate::observer::{Flow, Observation};
use crate::schedule::DataFault;
use letters::{LateCheck, LetterHead, LettersCheck};
use markers::MarkersCheck;
use passed::PassedCheck;
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Headers};
use seen::SeenCheck;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use transfers::TransfersCheck;
use windows::{WindowsCheck, WindowsDetail};

/// How long a transaction may still be open when the output has drained: the broker's time-out for those of dead workers is part of it.
const HANGING_PATIENCE: Duration = Duration::from_secs(75);

/// A message of an output.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<&'a [u8]>,
    pub payload: &'a [u8],
}

impl<'a> Row<'a> {
    fn of(message: &'a BorrowedMessage<'_>) -> Row<'a> {
        Row { partition: message.partition(), offset: message.offset(), key: message.key(), payload: message.payload().unwrap_or_default() }
    }
}

/// A row that nothing that was sent explains.
pub(crate) fn foreign(topic: &str, row: &Row<'_>) -> Anomaly {
    let shown = &row.payload[..row.payload.len().min(200)];
    let detail = format!("no record explains {}", String::from_utf8_lossy(shown));
    Anomaly::new(AnomalyKind::ForeignValue, Invariant::E3, detail).at(topic, row.partition, row.offset)
}

/// Where a row of what the anomaly is about is, if there is one.
fn placed(anomaly: Anomaly, topic: &str, place: Option<(i32, i64)>) -> Anomaly {
    match place {
        Some((partition, offset)) => anomaly.at(topic, partition, offset),
        None => anomaly.in_topic(topic),
    }
}

/// How much must come out.
pub struct Expected;

impl Expected {
    /// Rows per output. Of windows those that must come whatever is late.
    pub fn rows(sent: &Sent) -> BTreeMap<Flow, u64> {
        let settings = &sent.schedule.settings;
        let injected: u64 =
            DataFault::ALL.into_iter().filter(|fault| fault.is_row()).map(|fault| sent.schedule.injected_count(fault)).sum();
        let mut groups = settings.bulk_keys();
        windows::groups(sent, &mut |_, _, _| groups += 1);
        BTreeMap::from([
            (Flow::Passed, sent.records + injected),
            (Flow::Windows, groups),
            (Flow::Transfers, 2 * sent.records),
            (Flow::Markers, sent.records.div_ceil(settings.marker_every) * settings.partitions as u64),
        ])
    }

    /// Records that the stage of the windows has taken.
    fn input(sent: &Sent) -> u64 {
        let keys = sent.schedule.settings.bulk_keys();
        let bulk = if keys == 0 { 0 } else { keys + sent.records.div_ceil(crate::schedule::BULK_SHARE) };
        sent.total() + bulk
    }
}

/// See [`Workload::verify`].
pub(crate) fn verify(
    workload: &Workload,
    servers: &str,
    sent: &Sent,
    seen: Option<&Observation>,
    control: ControlFold,
) -> Result<Findings, WorkloadError> {
    let started = Instant::now();
    let topics = workload.topics();
    let mut findings = Findings::default();
    if !sent.is_complete() {
        return Err(WorkloadError::Broker {
            doing: "verify".into(),
            detail: format!("{} records were never taken by the broker: nothing follows from what came out", sent.undelivered),
        });
    }
    let (rows, job) = std::thread::scope(|scope| {
        let passed = scope.spawn(|| verify_passed(servers, &topics, sent, seen));
        let moved = scope.spawn(|| verify_moved(servers, &topics, sent, seen));
        let job = check_job_topics(workload, servers, &topics, control);
        let passed = passed.join().map_err(|_| WorkloadError::Harness("the oracle panicked".into()));
        let moved = moved.join().map_err(|_| WorkloadError::Harness("the oracle panicked".into()));
        (passed.and_then(|passed| Ok([passed?, moved??])), job)
    });
    let job = job?;
    findings.merge(verify_windows(servers, &topics, sent, seen, job.source_stages)?);
    rows?.into_iter().for_each(|of_rows| findings.merge(of_rows));
    findings.merge(job.findings);
    if let Some(seen) = seen {
        seen.anomalies.iter().for_each(|anomaly| findings.add(anomaly.clone()));
        findings.looked_at(Invariant::E3, seen.snapshots);
    }
    findings.records_verified = sent.total();
    findings.wall_seconds = started.elapsed().as_secs_f64();
    Ok(findings)
}

fn check_job_topics(workload: &Workload, servers: &str, topics: &Topics, control: ControlFold) -> Result<JobChecked, WorkloadError> {
    checks::check_job(servers, &workload.name, &topics.outputs(), HANGING_PATIENCE, control)
}

/// Reads one output, for its detector and for what was seen of it.
fn read(
    servers: &str,
    flow: Flow,
    topic: &str,
    seen: Option<&Observation>,
    take: &mut dyn FnMut(&Row<'_>),
) -> Result<Findings, WorkloadError> {
    let mut seen = seen.map(|seen| SeenCheck::new(flow, topic, seen));
    visit(servers, topic, Isolation::Committed, &mut |message| {
        let row = Row::of(message);
        take(&row);
        if let Some(seen) = &mut seen {
            seen.take(&row);
        }
    })?;
    Ok(seen.map_or_else(Findings::default, SeenCheck::finish))
}

fn verify_passed(servers: &str, topics: &Topics, sent: &Sent, seen: Option<&Observation>) -> Result<Findings, WorkloadError> {
    let mut check = PassedCheck::new(sent, &topics.passed);
    let mut findings = read(servers, Flow::Passed, &topics.passed, seen, &mut |row| check.take(row))?;
    findings.merge(check.finish());
    Ok(findings)
}

fn verify_moved(servers: &str, topics: &Topics, sent: &Sent, seen: Option<&Observation>) -> Result<Findings, WorkloadError> {
    let mut check = TransfersCheck::new(sent, &topics.transfers);
    let mut findings = read(servers, Flow::Transfers, &topics.transfers, seen, &mut |row| check.take(row))?;
    findings.merge(check.finish());
    let mut check = MarkersCheck::new(sent, &topics.markers);
    findings.merge(read(servers, Flow::Markers, &topics.markers, seen, &mut |row| check.take(row))?);
    findings.merge(check.finish());
    Ok(findings)
}

fn verify_windows(
    servers: &str,
    topics: &Topics,
    sent: &Sent,
    seen: Option<&Observation>,
    stages: BTreeSet<u32>,
) -> Result<Findings, WorkloadError> {
    let mut check = WindowsCheck::new(sent, &topics.windows);
    let mut findings = read(servers, Flow::Windows, &topics.windows, seen, &mut |row| check.take(row))?;
    let mut letters = LettersCheck::new(sent, &topics.dead_letters, stages);
    visit(servers, &topics.dead_letters, Isolation::Committed, &mut |message| letters.take(&Row::of(message), &head_of(message)))?;
    let mut late = LateCheck::new(sent, &topics.late);
    visit(servers, &topics.late, Isolation::Committed, &mut |message| late.take(&Row::of(message)))?;
    let found = check.finish();
    if !found.differ.is_empty() {
        let mut detail = WindowsDetail::new(sent, &topics.windows, found.differ.clone());
        visit(servers, &topics.windows, Isolation::Committed, &mut |message| detail.take(&Row::of(message)))?;
        findings.merge(detail.finish());
    }
    let ((letters, dead_letters), (late, late_rows)) = (letters.finish(), late.finish(&found.late_counted));
    findings.merge(conserve(sent, found.counted, late_rows, dead_letters));
    findings.merge(found.findings);
    findings.merge(letters);
    findings.merge(late);
    Ok(findings)
}

/// The law of conservation for the stage that looks at event time.
fn conserve(sent: &Sent, counted: u64, late: u64, dead_letters: u64) -> Findings {
    let conservation = Conservation { input: Expected::input(sent), counted, late, dead_letters };
    let mut findings = Findings::default();
    findings.conservation = Some(conservation);
    findings.looked_at(Invariant::E5, conservation.input);
    if !conservation.holds() {
        let Conservation { input, counted, late, dead_letters } = conservation;
        let detail = format!("{input} records came in; {counted} were counted, {late} are late, {dead_letters} are dead letters");
        findings.add(Anomaly::new(AnomalyKind::NonConserved, Invariant::E5, detail));
    }
    findings
}

fn head_of(message: &BorrowedMessage<'_>) -> LetterHead {
    message.headers().map_or_else(LetterHead::default, |headers| {
        LetterHead::read(headers.iter().map(|header| (header.key, header.value.unwrap_or_default())))
    })
}

//! What is taken from the whole of a run: figures, the oracle's findings, logs, checkpoints, leftovers.

use super::shared::Shared;
use super::subject::Subject;
use super::{Run, Stop};
use crate::journal::{
    Cost, Entry, Failover, Finding, InjectionOutcome, Journal, Latency, Looked, OwnerChange, ProcessChange, ProcessEvent, Records, Sample,
    Span, active, has_acted, is_excused, spans,
};
use crate::plan::{Invariant, Phase, Store};
use crate::verdict::nearest_rank;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use streamshield_core::ports::checkpoint::CheckpointInfo;
use streamshield_core::status::RegionState;
use streamshield_faults::{Stage, StageEventKind};
use streamshield_workload::checks::ends::{RestoreReads, check_kept};
use streamshield_workload::checks::{ControlFold, is_changelog_of, is_exchange_of};
use streamshield_workload::client::{self, PartitionEnd};
use streamshield_workload::{AnomalyKind, Findings, Flow, Invariant as Id, Observation, Observer, Sent};

/// A gap that is longer is no take-over any more.
pub(super) const FAILOVER_MS_MAX: u64 = 60_000;
/// A worker that was asked to end has left within two seconds; on a busy host later.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const LOG_LINES_MAX: usize = 20;
const LINE_CHARS_MAX: usize = 300;

/// By phase, of the slower of the outputs whose rows tell when they were due; for a user's job as its workers reported it.
pub(super) fn latencies(run: &Run<'_>, shared: &Shared<'_>) {
    for phase in Phase::EACH {
        let spans = shared.journal(|journal| spans(journal, phase));
        if spans.is_empty() {
            continue;
        }
        let latency = match shared.observer {
            Some(observer) => seen_latency(shared, observer, &spans),
            None => shared.journal(|journal| reported_latency(journal, &spans)),
        };
        run.add(Entry::Latency { phase, latency });
    }
}

fn seen_latency(shared: &Shared<'_>, observer: &Observer, spans: &[Span]) -> Latency {
    let parts: Vec<(i64, i64)> = spans.iter().map(|span| (shared.wall_ms(span.from_ms), shared.wall_ms(span.to_ms))).collect();
    observer.look(|seen| {
        let slower =
            |share| [Flow::Passed, Flow::Windows].into_iter().filter_map(|flow| seen.latency_over(flow, share, &parts)).max().unwrap_or(0);
        let rows = parts.iter().map(|(from_ms, to_ms)| seen.rows_between(Flow::Passed, *from_ms, *to_ms)).sum();
        Latency { rows, p50_ms: slower(0.5), p90_ms: slower(0.9), p99_ms: slower(0.99), max_ms: slower(1.0) }
    })
}

/// Medians of a second, and 99th percentiles of a second, are all that there is.
fn reported_latency(journal: &Journal, spans: &[Span]) -> Latency {
    let of = |figure: fn(&Sample) -> Option<u64>| {
        let samples = journal.timeline.iter().filter(|sample| spans.iter().any(|span| span.holds(sample.at_ms)));
        let mut values: Vec<u64> = samples.filter_map(figure).collect();
        values.sort_unstable();
        values
    };
    let (medians, tails) = (of(|sample| sample.latency_p50_ms), of(|sample| sample.latency_p99_ms));
    let at = |values: &[u64], quantile| nearest_rank(values, quantile).unwrap_or(0);
    Latency {
        rows: medians.len() as u64,
        p50_ms: at(&medians, 0.5),
        p90_ms: at(&tails, 0.5),
        p99_ms: at(&tails, 0.99),
        max_ms: at(&tails, 1.0),
    }
}

/// The gap in the output after each kill of one worker while nothing else was broken, nor the job still at work on something before.
pub(super) fn failovers(run: &Run<'_>, shared: &Shared<'_>) {
    let now_ms = run.now_ms();
    let kills = shared.journal(|journal| lonely_kills(journal, now_ms));
    for (at_ms, until_ms, worker) in kills {
        let Some(observer) = shared.observer else {
            for (gap_ms, is_over) in shared.journal(|journal| reported_gaps(journal, at_ms, until_ms, &worker)) {
                run.add(Entry::Failover { failover: Failover { at_ms, worker: worker.clone(), gap_ms, is_over } });
            }
            continue;
        };
        let (from_ms, to_ms) = (shared.wall_ms(at_ms), shared.wall_ms(until_ms));
        let gap = observer.look(|seen| seen.gaps(Flow::Windows, from_ms, to_ms).into_iter().next());
        if let Some(gap) = gap {
            // What comes after the next fault is not this kill's: of a silence that lasts longer this much is certain.
            let (began, ended) = (gap.from_ms.max(from_ms), gap.to_ms.min(to_ms));
            let (gap_ms, is_over) = ((ended - began).max(0) as u64, gap.is_over && gap.to_ms <= to_ms);
            run.add(Entry::Failover { failover: Failover { at_ms, worker, gap_ms, is_over } });
        }
    }
}

/// How long regions of a killed worker stood still, as their new owners measured it: the longest that was over and, if longer, the longest that was
/// cut off. Of one whose commit nobody has seen it is certain until the region changed hands again, or to the end.
fn reported_gaps(journal: &Journal, at_ms: u64, until_ms: u64, worker: &str) -> Vec<(u64, bool)> {
    let changes: Vec<&OwnerChange> = journal.owner_changes.iter().filter(|change| (at_ms..until_ms).contains(&change.at_ms)).collect();
    let (mut over, mut cut): (Option<u64>, Option<u64>) = (None, None);
    for change in changes.iter().filter(|change| change.from == worker) {
        let others = || changes.iter().filter(move |other| other.region == change.region && !std::ptr::eq(**other, *change));
        match change.total_ms {
            Some(total_ms) if total_ms <= until_ms - at_ms => over = over.max(Some(total_ms)),
            Some(_) => cut = cut.max(Some(until_ms - at_ms)),
            // What is moved works until then; and where there is nothing to commit nothing stands still.
            None if change.cause == "moved" || change.is_idle => {}
            None => {
                let began_ms = if others().any(|other| other.at_ms < change.at_ms) { change.at_ms } else { at_ms };
                let ended_ms = others().map(|other| other.at_ms).filter(|other_ms| *other_ms >= change.at_ms).min().unwrap_or(until_ms);
                cut = cut.max(Some(ended_ms - began_ms));
            }
        }
    }
    let cut = cut.filter(|cut_ms| over.is_none_or(|over_ms| *cut_ms > over_ms));
    over.map(|gap_ms| (gap_ms, true)).into_iter().chain(cut.map(|gap_ms| (gap_ms, false))).collect()
}

/// Kill, end of what may count as its gap, worker. Without a rebuild nothing disturbs the output until now.
fn lonely_kills(journal: &Journal, now_ms: u64) -> Vec<(u64, u64, String)> {
    let is_kill = |fault: &str| crate::plan::is_kill(fault);
    let injected = || journal.injections.iter().filter(|one| one.outcome == InjectionOutcome::Injected);
    let mut kills = Vec::new();
    for kill in injected().filter(|one| is_kill(&one.fault) && one.count > 0 && one.hit.len() == 1) {
        let others = active(journal, kill.from_ms, crate::journal::settle_ms(journal)).filter(|other| other.id != kill.id).count();
        let later = journal.injections.iter().filter(|other| has_acted(other) && other.from_ms > kill.from_ms);
        let next = later.map(|other| other.from_ms).min().unwrap_or(u64::MAX);
        let method_end =
            journal.stages.iter().find(|span| span.stage == crate::journal::RunStage::Rebuilding).map_or(now_ms, |span| span.from_ms);
        let until_ms = next.min(kill.from_ms + FAILOVER_MS_MAX).min(method_end);
        if others == 0 && until_ms > kill.from_ms {
            kills.push((kill.from_ms, until_ms, kill.hit[0].clone()));
        }
    }
    kills
}

pub(super) fn costs(run: &Run<'_>, stage: &Stage) {
    let views = stage.workers().map_or_else(|_| Vec::new(), |workers| workers.views());
    let cost = Cost {
        cpu_seconds: views.iter().map(|view| view.cpu_seconds).sum(),
        peak_rss_bytes: views.iter().map(|view| view.peak_rss_bytes).max().unwrap_or(0),
    };
    run.add(Entry::Cost { cost });
}

/// Ends the workers, all faults being over: one that has died since the watching ended, or does not end as it should, is found.
pub(super) fn end_workers(run: &Run<'_>, stage: &Stage, events_seen: usize) {
    let found = |place: String, detail: String| {
        let finding = Finding { invariant: Invariant::CleanLogs, kind: "unexplained-death".into(), place, detail };
        run.add(Entry::Finding { finding });
    };
    for event in stage.events().into_iter().skip(events_seen) {
        if let StageEventKind::WorkerDied { worker, status, error, .. } = event.kind {
            found(worker, format!("{status} {}", error.unwrap_or_default()).trim().to_string());
        }
    }
    for (worker, ended) in stage.stop_workers(STOP_PATIENCE) {
        if !ended.status.success() {
            found(worker, format!("{} after it was asked to end", ended.status));
        }
    }
}

/// Why the job does not go on, if it does not: what is missing then is not lost.
pub(super) fn standstill(shared: &Shared<'_>) -> Option<String> {
    let status = match shared.stage.cluster_status() {
        Ok(status) => status,
        Err(error) => return Some(error.to_string()),
    };
    let stands = status.regions.iter().find_map(|region| {
        let (name, lag) = (&region.region, region.lag_records.unwrap_or(0));
        match &region.stopped {
            Some(reason) => Some(format!("{name} has stopped: {reason}")),
            None if region.state != RegionState::Active => Some(format!("{name} is {:?}", region.state)),
            None => (lag > 0).then(|| format!("{name} has {lag} records before it")),
        }
    });
    stands.or_else(|| Some(format!("nobody tells how many records {} has before it", shared.unmeasured(&status)?)))
}

/// Every checkpoint of the store is read, while the job still runs: as a user does it. What a restore from them would read of the logs must be there.
pub(super) fn checkpoints(run: &Run<'_>, stage: &Stage) {
    let looked = |looked| run.add(Entry::Looked { invariant: Invariant::CheckpointsRestore, looked });
    if run.request.plan.topology.store == Store::None {
        return looked(Looked::NotApplicable("there is no store".into()));
    }
    let damaged =
        super::shared::lock(run.recorder).journal().injections.iter().any(|one| one.fault == "store.corrupt" && !one.hit.is_empty());
    if damaged {
        return looked(Looked::NotApplicable("objects of the store were damaged on purpose".into()));
    }
    let program = run.program();
    let call = |arguments: &[&str]| -> Result<std::process::Output, String> {
        let program = program.as_ref().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command
            .arg("checkpoints")
            .args(arguments)
            .arg(stage.job_file("w1"))
            .current_dir(stage.folder())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command.output().map_err(|error| error.to_string())
    };
    // Before the list, see `check_kept`.
    let logs = logs_of_restores(run, stage);
    let listed = call(&["list", "--json"])
        .and_then(|output| serde_json::from_slice::<Vec<CheckpointInfo>>(&output.stdout).map_err(|error| error.to_string()));
    match (&listed, logs) {
        (Ok(kept), Ok((ends, reads))) => {
            let found = check_kept(&ends, kept, &reads);
            if found.checked.is_empty() {
                run.note("whether the logs hold what restores from the checkpoints need was not looked at: none of their topics was found");
            }
            for anomaly in found.anomalies {
                run.add(Entry::Finding { finding: finding(&anomaly, invariant_of(anomaly.kind)) });
            }
        }
        (Ok(_), Err(why)) => run.note(format!("whether the logs hold what restores from the checkpoints need was not looked at: {why}")),
        (Err(_), _) => {}
    }
    match (listed, call(&["verify"])) {
        (Ok(list), Ok(verified)) => {
            let words = String::from_utf8_lossy(&verified.stdout).into_owned() + &String::from_utf8_lossy(&verified.stderr);
            let shown: Vec<&str> = words.lines().filter(|line| !line.trim().is_empty()).take(LOG_LINES_MAX).collect();
            let is_damaged = words.lines().any(|line| line.starts_with("damaged "));
            // A store that does not answer has told nothing about what lies in it.
            if !verified.status.success() && !is_damaged {
                return looked(Looked::Not(format!("streamshield checkpoints verify: {}", shown.join(" / "))));
            }
            looked(Looked::At(list.len() as u64));
            if is_damaged {
                let detail = format!("K-1: {}", shown.join(" / "));
                let finding =
                    Finding { invariant: Invariant::CheckpointsRestore, kind: "damaged-checkpoint".into(), place: "store".into(), detail };
                run.add(Entry::Finding { finding });
            }
        }
        (Err(error), _) | (_, Err(error)) => looked(Looked::Not(format!("streamshield checkpoints: {error}"))),
    }
}

/// Where the job's logs begin now, and what a restore of each region reads of them.
fn logs_of_restores(run: &Run<'_>, stage: &Stage) -> Result<(Vec<PartitionEnd>, Vec<RestoreReads>), String> {
    // It deletes up to the newest checkpoint, where the job itself does so up to the oldest.
    if super::shared::lock(run.recorder).journal().injections.iter().any(|one| one.fault == "broker.delete_records") {
        return Err("records were deleted on purpose".into());
    }
    let job = stage.job_name().map_err(|error| error.to_string())?;
    let status = stage.cluster_status().map_err(|error| error.to_string())?;
    let of_job = |topic: &str| is_changelog_of(job, topic) || is_exchange_of(job, topic);
    let ends = client::ends(&stage.bootstrap_servers(), &of_job).map_err(|error| error.to_string())?;
    // The load's own job has one exchange, before its only stage with state. Of a user's it is not known which stage reads which.
    let is_own = run.request.job.is_none();
    let exchange = ends.iter().map(|end| &end.topic).find(|topic| is_own && is_exchange_of(job, topic));
    let reads = status.regions.iter().filter_map(|region| {
        Some(RestoreReads {
            region: region.region.clone(),
            partition: region.region.split_once('/')?.1.parse().ok()?,
            changelog: format!("{job}-{}-changelog", region.stage),
            exchange: exchange.filter(|_| region.stateful).cloned(),
        })
    });
    let reads = reads.collect();
    Ok((ends, reads))
}

/// What was run, and how it ended.
pub(super) struct Ran<'a> {
    pub subject: &'a Subject,
    pub sent: &'a Sent,
    pub seen: Option<&'a Observation>,
    /// Of the control log, what was read while it was written.
    pub control: ControlFold,
    /// Why the job stands still, if it does: what is missing may still come.
    pub stuck: Option<String>,
}

/// The oracle, logs and leftovers. The workers have ended; brokers and store still run.
pub(super) fn verify(run: &Run<'_>, stage: &Stage, ran: Ran<'_>) -> Result<(), Stop> {
    let Ran { subject, sent, seen, control, stuck } = ran;
    let due = sent.schedule.due_count(sent.ended_ms);
    logs(run, stage);
    leftovers(run, stage);
    let findings = subject.verify(&stage.bootstrap_servers(), sent, seen, control)?;
    let records = Records {
        due,
        sent: sent.records,
        verified: findings.records_verified,
        during_fault: 0,
        faulty: sent.schedule.injected_total(),
        stretches: sent.stretches.clone(),
    };
    run.add(Entry::Records { records });
    run.watcher.say(run.began.elapsed(), &findings.summary());
    if findings.epochs_unseen > 0 {
        let unseen = findings.epochs_unseen;
        run.note(format!("{unseen} epochs were trimmed before they could be looked at: epochs, single_writer and atomic leave them out"));
    }
    let stuck = stuck.map(|why| format!("the job stands still, so what is missing may still come: {why}"));
    for invariant in [
        Invariant::NoLoss,
        Invariant::NoDuplicate,
        Invariant::KeyOrder,
        Invariant::Atomic,
        Invariant::Epochs,
        Invariant::SingleWriter,
        Invariant::Conservation,
        Invariant::NoOrphans,
    ] {
        let looked = match (&stuck, subject.not_applicable(invariant)) {
            (_, Some(why)) => Looked::NotApplicable(why.into()),
            (Some(why), None) if needs_all(invariant) => Looked::Not(why.clone()),
            _ => looked(&findings, invariant),
        };
        run.add(Entry::Looked { invariant, looked });
    }
    let (mut written, mut healing): (BTreeMap<AnomalyKind, u64>, BTreeMap<AnomalyKind, u64>) = Default::default();
    for anomaly in &findings.anomalies {
        if stuck.is_some() && may_heal(anomaly) {
            *healing.entry(anomaly.kind).or_default() += 1;
            continue;
        }
        *written.entry(anomaly.kind).or_default() += 1;
        run.add(Entry::Finding { finding: finding(anomaly, invariant_of(anomaly.kind)) });
    }
    for (kind, count) in healing {
        run.note(format!("{count} {kind} are not counted: what is missing may still come"));
    }
    for (kind, count) in &findings.count_by_kind {
        let more = count - written.get(kind).copied().unwrap_or(*count).min(*count);
        if more > 0 {
            run.note(format!("{more} more {kind} were found; the first are listed"));
        }
    }
    Ok(())
}

/// Whether it is none any more if what is missing from the output comes yet. Half a transfer is one for ever: both rows are in one partition, where
/// a reader gets a transaction whole. A marker need not be: one of its partitions may be held back by a transaction that somebody has left open.
fn may_heal(anomaly: &streamshield_workload::Anomaly) -> bool {
    let of = |output: &str| anomaly.topic.as_ref().is_some_and(|topic| topic.ends_with(output));
    // A group is emitted once: what its row lacks does not come any more.
    let of_emitted_group = || of(".windows") && anomaly.key.is_some() && anomaly.offset.is_some();
    match anomaly.kind {
        AnomalyKind::LostWrite | AnomalyKind::WrongTotal => !of_emitted_group(),
        AnomalyKind::Unseen | AnomalyKind::NonConserved => true,
        AnomalyKind::TornTransaction => of(".markers"),
        _ => false,
    }
}

/// Something missing breaks it; so it can't be judged while more may come.
fn needs_all(invariant: Invariant) -> bool {
    matches!(invariant, Invariant::NoLoss | Invariant::Conservation | Invariant::Atomic)
}

fn looked(findings: &Findings, invariant: Invariant) -> Looked {
    let of = |ids: &[Id]| ids.iter().filter_map(|id| findings.checked.get(id)).sum::<u64>();
    let times = match invariant {
        Invariant::NoLoss | Invariant::NoDuplicate | Invariant::KeyOrder => findings.records_verified,
        Invariant::Atomic => of(&[Id::E3]),
        // E-2 counts rows of the output, too.
        Invariant::Epochs => of(&[Id::E1]),
        Invariant::SingleWriter => of(&[Id::O1]),
        Invariant::Conservation => of(&[Id::E5]),
        _ => findings.rows_read.values().sum(),
    };
    // A check that has seen nothing has proved nothing.
    if times == 0 { Looked::Not("there was nothing to look at".into()) } else { Looked::At(times) }
}

/// As plans name it.
fn invariant_of(kind: AnomalyKind) -> Invariant {
    match kind {
        AnomalyKind::LostWrite | AnomalyKind::Unseen => Invariant::NoLoss,
        AnomalyKind::Duplicate => Invariant::NoDuplicate,
        AnomalyKind::Nonmonotonic => Invariant::KeyOrder,
        AnomalyKind::AbortedRead | AnomalyKind::InconsistentOffsets | AnomalyKind::TornTransaction => Invariant::Atomic,
        AnomalyKind::WrongTotal | AnomalyKind::NonConserved | AnomalyKind::ForeignValue => Invariant::Conservation,
        AnomalyKind::BrokenEpochs => Invariant::Epochs,
        AnomalyKind::ForeignWriter => Invariant::SingleWriter,
        AnomalyKind::Divergence => Invariant::StateEqual,
        AnomalyKind::HangingTransaction | AnomalyKind::OrphanTopic => Invariant::NoOrphans,
        AnomalyKind::MissingLog => Invariant::CheckpointsRestore,
    }
}

fn finding(anomaly: &streamshield_workload::Anomaly, invariant: Invariant) -> Finding {
    let mut place = anomaly.topic.clone().unwrap_or_default();
    if let Some(partition) = anomaly.partition {
        place.push_str(&format!(" partition {partition}"));
    }
    if let Some(offset) = anomaly.offset {
        place.push_str(&format!(" offset {offset}"));
    }
    if let Some(key) = &anomaly.key {
        place.push_str(&format!(" key {key}"));
    }
    Finding {
        invariant,
        kind: anomaly.kind.name().into(),
        place: place.trim().into(),
        detail: format!("{}: {}", anomaly.invariant, anomaly.detail),
    }
}

/// Panics that no fault has ordered, and deaths that none explains.
fn logs(run: &Run<'_>, stage: &Stage) {
    let invariant = Invariant::CleanLogs;
    let mut lines = 0;
    for worker in run.request.plan.topology.worker_names() {
        let log = stage.log(&worker);
        lines += log.lines().count() as u64;
        for panic in panics(&log).into_iter().take(LOG_LINES_MAX) {
            run.add(Entry::Finding { finding: Finding { invariant, kind: "panic".into(), place: worker.clone(), detail: panic } });
        }
    }
    let died = unexplained(super::shared::lock(run.recorder).journal());
    for (place, detail) in died {
        run.add(Entry::Finding { finding: Finding { invariant, kind: "unexplained-death".into(), place, detail } });
    }
    run.add(Entry::Looked { invariant, looked: Looked::At(lines) });
}

/// Deaths that nothing explains. While a fault is under way it is not known whom it hits, and one that came to nothing may not say whom it has ended
/// on its way; so all ends of workers are looked at again: now more is known.
fn unexplained(journal: &Journal) -> Vec<(String, String)> {
    let is_worker = |process: &str| process != "store" && !process.starts_with("broker ");
    let is_found = |event: &ProcessEvent, status: &str| match is_worker(&event.process) {
        true => !is_excused(journal, event.at_ms, &event.process, status),
        false => matches!(event.what, ProcessChange::Died(_)),
    };
    let unexplained = journal.processes.iter().filter_map(|event| match &event.what {
        ProcessChange::Killed(status) | ProcessChange::Ended(status) | ProcessChange::Died(status) if is_found(event, status) => {
            Some((event, status))
        }
        _ => None,
    });
    unexplained.map(|(event, status)| (event.process.clone(), format!("at {} ms: {status}", event.at_ms))).collect()
}

/// A panic and the line after it, which says why. Those of fail points are ordered.
fn panics(log: &str) -> Vec<String> {
    let lines: Vec<&str> = log.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("panicked at")) {
        let text = format!("{line} {}", lines.get(index + 1).unwrap_or(&""));
        if !["failpoint ", "fail point "].iter().any(|ordered| text.contains(ordered)) {
            found.push(text.chars().take(LINE_CHARS_MAX).collect());
        }
    }
    found
}

/// Scratch folders of restores and copies that nobody removed.
fn leftovers(run: &Run<'_>, stage: &Stage) {
    for worker in run.request.plan.topology.worker_names() {
        for path in scratch(&stage.state_dir(&worker)) {
            let finding = Finding {
                invariant: Invariant::NoOrphans,
                kind: "leftover".into(),
                place: worker.clone(),
                detail: path.display().to_string(),
            };
            run.add(Entry::Finding { finding });
        }
    }
}

fn scratch(folder: &Path) -> Vec<PathBuf> {
    let folder = folder.join("scratch");
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_found_with_their_reason_and_ordered_ones_are_not() {
        let log = "INFO a\nthread 'slot-0' panicked at src/x.rs:3:\nindex out of bounds\nINFO b\n\
                   thread 'slot-1' panicked at fail-0.5/lib.rs:1:\nfailpoint engine::step panic\n\
                   thread 'slot-1' panicked at src/engine/crash_points.rs:43:9:\nfail point engine::step_of:s0/2\n";
        assert_eq!(panics(log), ["thread 'slot-0' panicked at src/x.rs:3: index out of bounds"]);
    }

    #[test]
    fn half_a_transfer_is_found_in_a_job_that_stands_still_too() {
        let anomaly = |kind, topic: &str| streamshield_workload::Anomaly::new(kind, Id::E3, "").in_topic(topic);
        for (kind, topic, heals) in [
            (AnomalyKind::TornTransaction, "w.transfers", false),
            (AnomalyKind::TornTransaction, "w-s1-repartition", false),
            (AnomalyKind::TornTransaction, "w.markers", true),
            (AnomalyKind::WrongTotal, "w.transfers", true),
            (AnomalyKind::LostWrite, "w.passed", true),
            (AnomalyKind::Duplicate, "w.passed", false),
        ] {
            assert_eq!(may_heal(&anomaly(kind, topic)), heals, "{kind} in {topic}");
        }
    }

    #[test]
    fn a_group_that_was_emitted_wrong_stays_wrong_in_a_job_that_stands_still() {
        let group = |kind| streamshield_workload::Anomaly::new(kind, Id::E4, "").of("k7");
        for kind in [AnomalyKind::WrongTotal, AnomalyKind::LostWrite] {
            assert!(!may_heal(&group(kind).at("w.windows", 1, 40)), "{kind}: its row is there");
            assert!(may_heal(&group(kind).in_topic("w.windows")), "{kind}: it may still come");
            assert!(may_heal(&group(kind).at("w.transfers", 1, 40)), "{kind}: a balance changes with each row");
        }
        let of_input = streamshield_workload::Anomaly::new(AnomalyKind::LostWrite, Id::E2, "").at("user.windows", 1, 40);
        assert!(may_heal(&of_input), "a topic of a user's job that is called so");
    }

    #[test]
    fn rows_of_the_output_are_no_epochs() {
        let mut findings = Findings::default();
        findings.looked_at(Id::E2, 1_000);
        assert_eq!(looked(&findings, Invariant::Epochs), Looked::Not("there was nothing to look at".into()));
        findings.looked_at(Id::E1, 7);
        assert_eq!(looked(&findings, Invariant::Epochs), Looked::At(7));
    }

    #[test]
    fn only_kills_that_nothing_else_disturbs_tell_how_long_a_take_over_takes() {
        let journal = crate::test_kit::journal();
        let kills = lonely_kills(&journal, journal.duration_ms);
        assert_eq!(kills, [(20_000, 40_000, "w1".to_string()), (40_000, 60_000, "w1".to_string())]);
        let mut disturbed = journal.clone();
        disturbed.injections.push(crate::journal::Injection { id: 99, ..crate::test_kit::injection(9, "net.latency", 10_000, 39_000) });
        assert_eq!(lonely_kills(&disturbed, disturbed.duration_ms), []);
    }

    fn change(at_ms: u64, region: &str, from: &str, total_ms: Option<u64>) -> OwnerChange {
        let (region, from, to) = (region.into(), from.into(), "w2".into());
        OwnerChange { at_ms, region, from, to, cause: "expired".into(), total_ms, is_idle: false }
    }

    #[test]
    fn a_take_over_whose_commit_nobody_has_seen_is_one_that_was_cut_off() {
        let of = |changes: &[OwnerChange]| {
            let journal = Journal { owner_changes: changes.to_vec(), ..crate::test_kit::journal() };
            reported_gaps(&journal, 20_000, 40_000, "w1")
        };
        let over = change(20_400, "s0/0", "w1", Some(812));
        assert_eq!(of(std::slice::from_ref(&over)), [(812, true)]);
        let never = change(21_000, "s0/1", "w1", None);
        assert_eq!(of(&[over.clone(), never.clone()]), [(812, true), (20_000, false)]);
        assert_eq!(of(&[change(20_400, "s0/0", "w1", Some(25_000))]), [(20_000, false)], "the next fault has a part in it");
        // Its second owner came in time, and is nobody's that was killed.
        assert_eq!(of(&[never.clone(), change(24_000, "s0/1", "w2", Some(900))]), [(4_000, false)]);
        assert_eq!(of(&[over.clone(), change(39_600, "s0/0", "w1", None)]), [(812, true)], "for 400 ms at least, which says nothing");
        let idle = OwnerChange { is_idle: true, ..never.clone() };
        let moved = OwnerChange { cause: "moved".into(), ..never.clone() };
        assert_eq!(of(&[idle, moved, change(21_000, "s0/1", "w3", None), change(50_000, "s0/1", "w1", None)]), []);
    }

    #[test]
    fn a_death_that_seemed_explained_while_it_was_not_known_whom_the_fault_hits_is_found() {
        let mut journal = crate::test_kit::journal();
        assert_eq!(unexplained(&journal), []);
        let ended = |at_ms, process: &str, what: fn(String) -> ProcessChange| ProcessEvent {
            at_ms,
            process: process.into(),
            what: what("exit status: 70".into()),
        };
        // The first kill has hit another worker.
        journal.processes.push(ended(20_060, "w2", ProcessChange::Ended));
        journal.processes.push(ended(20_070, "w3", ProcessChange::Died));
        journal.processes.push(ended(20_080, "broker 1", ProcessChange::Ended));
        let found: Vec<(String, String)> = unexplained(&journal);
        let names: Vec<&str> = found.iter().map(|(process, _)| process.as_str()).collect();
        assert_eq!((names, found[0].1.as_str()), (vec!["w2", "w3"], "at 20060 ms: exit status: 70"));
    }

    #[test]
    fn a_fault_that_is_not_possible_here_explains_whom_it_has_ended_before_that_was_known() {
        let mut journal = crate::test_kit::journal();
        let outcome = InjectionOutcome::NotPossible("no privileges".into());
        let given_up = crate::test_kit::injection(9, "storage.disk_full", 85_000, 85_600);
        journal.injections.push(crate::journal::Injection { outcome, hit: Vec::new(), ..given_up });
        let died =
            |at_ms, process: &str| ProcessEvent { at_ms, process: process.into(), what: ProcessChange::Died("exit status: 0".into()) };
        journal.processes = vec![died(85_500, "w2"), died(88_000, "w2"), died(85_500, "broker 1")];
        let found = |at_ms: u64, process: &str| (process.to_string(), format!("at {at_ms} ms: exit status: 0"));
        assert_eq!(unexplained(&journal), [found(88_000, "w2"), found(85_500, "broker 1")]);
    }
}

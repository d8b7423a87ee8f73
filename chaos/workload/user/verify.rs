//! What can be said of a job of which one knows only its tables and its log.

use super::rows::table_of;
use super::{Stage, Table, UserJob};
use crate::checks::{self, ControlFold, JobChecked};
use crate::client::{Isolation, PartitionEnd, ends, visit};
use crate::error::WorkloadError;
use crate::feeder::Sent;
use crate::findings::{Anomaly, AnomalyKind, Findings, Invariant};
use crate::oracle::letters::LetterHead;
use crate::payload::Key;
use crate::schedule::DataFault;
use rdkafka::Message;
use rdkafka::message::Headers;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use streamshield_core::ids::{RegionId, StageId};

const HANGING_PATIENCE: Duration = Duration::from_secs(75);
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Records of a source partition that no committed epoch has taken.
fn left(job: &UserJob, checked: &JobChecked, ends: &[PartitionEnd]) -> Vec<(StageId, PartitionEnd, i64)> {
    let mut left = Vec::new();
    for (index, stage) in job.stages.iter().enumerate() {
        let Some(topic) = stage.source.as_ref().and_then(Table::topic) else { continue };
        let stage = StageId(index as u32);
        for end in ends.iter().filter(|end| end.topic == topic) {
            let region = RegionId { stage, partition: end.partition as u32 };
            let position = checked.last.get(&region).and_then(|(_, positions)| positions.first().copied()).unwrap_or(0);
            if position < end.stable {
                left.push((stage, end.clone(), end.stable - position));
            }
        }
    }
    left
}

fn source_ends(job: &UserJob, servers: &str) -> Result<Vec<PartitionEnd>, WorkloadError> {
    let sources = job.sources();
    ends(servers, &|topic| sources.contains(topic))
}

pub(super) fn wait_drained(job: &UserJob, servers: &str, quiet_max: Duration) -> Result<bool, WorkloadError> {
    let (mut least, mut last_news) = (i64::MAX, Instant::now());
    loop {
        let checked = match checks::check_job(servers, &job.name, &[], Duration::ZERO, ControlFold::new(&job.name)) {
            Ok(checked) => checked,
            // The job runs, and trims its logs.
            Err(error) if error.is_trimmed() && last_news.elapsed() <= quiet_max => {
                std::thread::sleep(LOOK_AGAIN);
                continue;
            }
            Err(error) => return Err(error),
        };
        let left: i64 = left(job, &checked, &source_ends(job, servers)?).into_iter().map(|(_, _, records)| records).sum();
        if left == 0 {
            return Ok(true);
        }
        if left < least {
            (least, last_news) = (left, Instant::now());
        }
        if last_news.elapsed() > quiet_max {
            return Ok(false);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

pub(super) fn verify(job: &UserJob, servers: &str, sent: &Sent, control: ControlFold) -> Result<Findings, WorkloadError> {
    let started = Instant::now();
    if !sent.is_complete() {
        let detail = format!("{} records were never taken by the broker: nothing follows from what came out", sent.undelivered);
        return Err(WorkloadError::Broker { doing: "verify".into(), detail });
    }
    let sinks = job.sinks();
    let known: Vec<&str> = job.sources().union(&sinks).copied().collect();
    let mut checked = checks::check_job(servers, &job.name, &known, HANGING_PATIENCE, control)?;
    let mut findings = std::mem::take(&mut checked.findings);
    for (stage, end, records) in left(job, &checked, &source_ends(job, servers)?) {
        let detail = format!("stage {stage} has not taken the last {records} records");
        findings.add_many(
            Anomaly::new(AnomalyKind::LostWrite, Invariant::E2, detail).at(&end.topic, end.partition, end.stable),
            records as u64,
        );
    }
    let letters = read_letters(job, servers, sent, &mut findings)?;
    let mut rows: BTreeMap<&str, u64> = BTreeMap::new();
    for sink in sinks {
        let count = visit(servers, sink, Isolation::Committed, &mut |_| {})?;
        findings.rows_read.insert(sink.to_string(), count);
        rows.insert(sink, count);
    }
    findings.merge(conserve(job, sent, &rows, &letters));
    let late = format!("{}-late", job.name);
    if crate::client::topics(servers)?.contains(&late) {
        let count = visit(servers, &late, Isolation::Committed, &mut |_| {})?;
        findings.merge(judge_late(job, sent, &late, count));
    }
    findings.records_verified = sent.total();
    findings.wall_seconds = started.elapsed().as_secs_f64();
    Ok(findings)
}

/// Rows are sent in the order of their event time, so none is late; but for inputs that the job itself has told to be idle when an outage lasts.
fn judge_late(job: &UserJob, sent: &Sent, topic: &str, count: u64) -> Findings {
    let mut findings = Findings::default();
    findings.rows_read.insert(topic.to_string(), count);
    if !job.has_idle_timeout() {
        findings.looked_at(Invariant::E5, sent.records);
        let detail = format!("{count} rows are late, though rows were sent in the order of their event time");
        findings.add_many(Anomaly::new(AnomalyKind::NonConserved, Invariant::E5, detail).in_topic(topic), count);
    }
    findings
}

/// Dead letters by injected record and stage; what no faulty record explains is an anomaly.
fn read_letters(job: &UserJob, servers: &str, sent: &Sent, findings: &mut Findings) -> Result<BTreeMap<(u64, u32), u64>, WorkloadError> {
    let mut letters = BTreeMap::new();
    if !job.has_dead_letters() {
        return Ok(letters);
    }
    let topic = format!("{}-dead-letter", job.name);
    let count = visit(servers, &topic, Isolation::Committed, &mut |message| {
        let head = message.headers().map_or_else(LetterHead::default, |headers| {
            LetterHead::read(headers.iter().map(|header| (header.key, header.value.unwrap_or_default())))
        });
        let key = message.key().and_then(|key| std::str::from_utf8(key).ok()).and_then(Key::parse);
        match (key, head.stage) {
            (Some(Key::Injected(fault, number)), Some(stage)) if sent.schedule.injected_at(number).is_some_and(|i| i.fault == fault) => {
                *letters.entry((number, stage)).or_default() += 1;
            }
            _ => {
                let detail = format!("a dead letter that no faulty record explains: {}", head.error);
                let anomaly = Anomaly::new(AnomalyKind::NonConserved, Invariant::E3, detail);
                findings.add(anomaly.at(&topic, message.partition(), message.offset()));
            }
        }
    })?;
    findings.rows_read.insert(topic, count);
    Ok(letters)
}

/// The stages that write to an output, and the topics that they read, if it gets a row for each row of those.
fn row_for_row<'a>(job: &'a UserJob, sink: &str) -> Option<(Vec<&'a Stage>, Vec<&'a str>)> {
    let writers: Vec<&Stage> = job.stages.iter().filter(|stage| stage.sink.as_ref().and_then(Table::topic) == Some(sink)).collect();
    let sources = writers.iter().filter_map(|stage| stage.source.as_ref().map(|table| table.topic()));
    let sources = sources.collect::<Option<Vec<&str>>>()?;
    writers.iter().all(|stage| stage.row_for_row).then_some((writers, sources))
}

pub(super) fn has_row_for_row(job: &UserJob) -> bool {
    job.sinks().into_iter().any(|sink| row_for_row(job, sink).is_some())
}

/// Rows in = rows out where stages give a row for each row; a dead letter per faulty record and stage that reads its topic.
fn conserve(job: &UserJob, sent: &Sent, rows: &BTreeMap<&str, u64>, letters: &BTreeMap<(u64, u32), u64>) -> Findings {
    let mut findings = Findings::default();
    let topics: Vec<&str> = job.sources().into_iter().collect();
    let sent_to = |topic: &str| {
        let place = topics.iter().position(|known| *known == topic).unwrap_or_default() as u64;
        let tables = topics.len() as u64;
        (sent.records + tables - 1 - place) / tables
    };
    for (sink, count) in rows {
        let Some((writers, sources)) = row_for_row(job, sink) else { continue };
        let wanted: u64 = sources.into_iter().map(sent_to).sum();
        findings.looked_at(Invariant::E3, *count);
        let names: Vec<&str> = writers.iter().map(|stage| stage.name.as_str()).collect();
        let detail = format!("{count} rows of {wanted} that stages {} must have written", names.join(", "));
        let anomaly = |kind| Anomaly::new(kind, Invariant::E3, detail.clone()).in_topic(sink);
        findings.add_many(anomaly(AnomalyKind::LostWrite), wanted.saturating_sub(*count));
        findings.add_many(anomaly(AnomalyKind::Duplicate), count.saturating_sub(wanted));
    }
    let reads = |topic: &str| -> BTreeSet<u32> {
        let stages = job.stages.iter().enumerate();
        stages.filter(|(_, stage)| stage.source.as_ref().and_then(Table::topic) == Some(topic)).map(|(index, _)| index as u32).collect()
    };
    let no_rows: Vec<DataFault> = DataFault::ALL.into_iter().filter(|fault| !fault.is_row()).collect();
    for injected in sent.schedule.injected.iter().filter(|injected| no_rows.contains(&injected.fault)) {
        for number in injected.first..injected.first + injected.count {
            for stage in reads(topics[table_of(number, topics.len())]) {
                findings.looked_at(Invariant::E3, 1);
                let found = letters.get(&(number, stage)).copied().unwrap_or(0);
                let detail = format!("stage {stage} has written {found} dead letters for a record ({})", injected.fault);
                let kind = if found == 0 { AnomalyKind::LostWrite } else { AnomalyKind::Duplicate };
                findings.add_many(Anomaly::new(kind, Invariant::E3, detail).of(number), found.abs_diff(1));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Injected, Schedule, Settings};
    use std::path::Path;

    const EXPLAINED: &str = r#"{"fingerprint":"1","warnings":[],"stages":[
        {"name":"a-1","input":"","operators":[],"output":"","row_for_row":true,
         "source":{"table":"a","connector":"kafka","columns":[{"name":"x","type":"BIGINT","nullable":true}],"options":{"topic":"in-a","format":"json"},"event_time":[]},
         "sink":{"table":"o","connector":"kafka","columns":[],"options":{"topic":"out","format":"json"}}},
        {"name":"b-2","input":"","operators":[],"output":"","row_for_row":false,
         "source":{"table":"b","connector":"kafka","columns":[{"name":"y","type":"STRING","nullable":true}],"options":{"topic":"in-b","format":"json"},"event_time":[]},
         "sink":{"table":"p","connector":"print","columns":[],"options":{}}}]}"#;

    fn job() -> UserJob {
        let file = "name: mine\nkafka: {embedded: true, client.id: c}\non_bad_record: dead_letter\nsql_file: a.sql\n";
        UserJob::read(file, Path::new("/jobs"), EXPLAINED, 1, Settings::default()).expect("a job of ours")
    }

    fn sent(records: u64) -> Sent {
        let mut schedule = Schedule::new(1, Settings::default(), 0);
        schedule.injected.push(Injected { fault: DataFault::Undecodable, first: 0, count: 3, due_ms: 0 });
        Sent { schedule, records, ended_ms: 0, behind_ms_max: 0, undelivered: 0, stretches: Vec::new() }
    }

    #[test]
    fn the_file_is_pointed_at_other_brokers_and_keeps_the_rest() {
        let yaml = job().job_yaml("h:1", &[("tier", "1".into()), ("checkpoint", "{store: file:///x}".into())]).expect("YAML");
        let file: serde_json::Value = serde_json::from_str(&yaml).expect("JSON");
        assert_eq!(file["kafka"], serde_json::json!({"client.id": "c", "bootstrap.servers": "h:1"}));
        assert_eq!((&file["tier"], &file["checkpoint"]["store"]), (&1.into(), &"file:///x".into()));
        assert_eq!(file["sql_file"], "/jobs/a.sql");
    }

    #[test]
    fn rows_that_are_missing_or_too_many_are_found_where_a_row_gives_a_row() {
        let letters = |doubled: u64| BTreeMap::from([((0, 0), 1), ((1, 1), 1), ((2, 0), 1 + doubled)]);
        let counts = |rows, letters| {
            let found = conserve(&job(), &sent(101), &BTreeMap::from([("out", rows)]), &letters);
            (found.count(AnomalyKind::LostWrite), found.count(AnomalyKind::Duplicate))
        };
        // Records 0, 2, 4… go to the first topic.
        assert_eq!(counts(51, letters(0)), (0, 0));
        assert_eq!(counts(50, letters(0)), (1, 0));
        assert_eq!(counts(53, letters(1)), (0, 3));
        assert_eq!(counts(51, BTreeMap::from([((0, 0), 1)])), (2, 0));
    }

    #[test]
    fn late_rows_are_wrong_unless_a_source_may_be_idle() {
        let with_timeout = EXPLAINED.replacen(r#""event_time":[]"#, r#""event_time":[],"idle_timeout_ms":5000"#, 1);
        let found = |explained: &str, count| {
            let job = UserJob::read("name: mine", Path::new("/jobs"), explained, 1, Settings::default()).expect("a job of ours");
            let found = judge_late(&job, &sent(9), "mine-late", count);
            (found.count(AnomalyKind::NonConserved), found.checked.contains_key(&Invariant::E5), found.rows_read["mine-late"])
        };
        assert_eq!((found(EXPLAINED, 0), found(EXPLAINED, 4)), ((0, true, 0), (4, true, 4)));
        assert_eq!(found(&with_timeout, 4), (0, false, 4));
    }

    #[test]
    fn a_job_without_a_table_to_load_is_refused() {
        let explained = r#"{"stages":[]}"#;
        let refused = UserJob::read("name: mine", Path::new("/"), explained, 1, Settings::default());
        assert!(refused.is_err_and(|error| error.to_string().contains("nothing to load")));
    }
}

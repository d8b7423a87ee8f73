//! Ends of partitions, and names of topics: open transactions, trims that went too far, topics that are nobody's.

use super::{is_changelog_of, is_exchange_of};
use crate::client::{PartitionEnd, ends};
use crate::error::WorkloadError;
use crate::findings::{Anomaly, AnomalyKind, Findings, Invariant};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, RegionId};
use streamshield_core::ports::checkpoint::{CheckpointInfo, Durability};

const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Finds open transactions that nobody ends. A job that is alive always has one somewhere: what counts is a stable offset that does not move for `patience`.
pub fn wait_for_ends(servers: &str, wanted: &dyn Fn(&str) -> bool, patience: Duration) -> Result<Findings, WorkloadError> {
    let deadline = Instant::now() + patience;
    let mut stuck = open_at(&ends(servers, wanted)?);
    while !stuck.is_empty() && Instant::now() < deadline {
        std::thread::sleep(LOOK_AGAIN);
        let now = open_at(&ends(servers, wanted)?);
        stuck.retain(|place, end| now.get(place).is_some_and(|now| now.stable == end.stable));
    }
    Ok(hanging(stuck.into_values()))
}

/// Partitions with an open transaction.
fn open_at(ends: &[PartitionEnd]) -> BTreeMap<(String, i32), PartitionEnd> {
    ends.iter().filter(|end| end.stable < end.high).map(|end| ((end.topic.clone(), end.partition), end.clone())).collect()
}

fn hanging(stuck: impl Iterator<Item = PartitionEnd>) -> Findings {
    let mut findings = Findings::default();
    for end in stuck {
        let detail = format!("stable up to {}, the end is {}", end.stable, end.high);
        findings.add(Anomaly::new(AnomalyKind::HangingTransaction, Invariant::O1, detail).at(&end.topic, end.partition, end.stable));
    }
    findings
}

/// K-2: a changelog is trimmed behind a checkpoint, never the checkpoint's own record, which proves it, and by which a region without state goes on. So one that
/// was trimmed holds a record, and that of a region with state begins no later than with the newest checkpoint. `ends` were read before the changelogs,
/// these before the checkpoints; `first`: the first record that is there, with its topic.
pub fn check_trims(
    job: &str,
    ends: &[PartitionEnd],
    first: &BTreeMap<RegionId, (String, EpochRecord)>,
    stateful: &BTreeSet<RegionId>,
    checkpoints: &BTreeMap<RegionId, (Epoch, Durability)>,
) -> Findings {
    let mut findings = Findings::default();
    for end in ends.iter().filter(|end| is_changelog_of(job, &end.topic) && end.low > 0) {
        findings.looked_at(Invariant::K2, 1);
        let is_here = |(region, (topic, _)): &(&RegionId, &(String, EpochRecord))| {
            *topic == end.topic && i64::from(region.partition) == i64::from(end.partition)
        };
        let Some((region, (topic, record))) = first.iter().find(is_here) else {
            let detail = format!("trimmed up to offset {}, and no epoch record is left", end.low);
            findings.add(Anomaly::new(AnomalyKind::MissingLog, Invariant::K2, detail).at(&end.topic, end.partition, end.low));
            continue;
        };
        let checkpoint = checkpoints.get(region).map(|(epoch, _)| *epoch);
        if stateful.contains(region) && checkpoint.is_none_or(|epoch| epoch < record.epoch) {
            let has = checkpoint.map_or("there is no checkpoint".to_string(), |epoch| format!("the newest checkpoint is of epoch {epoch}"));
            let detail = format!("the changelog begins with epoch {}, {has}", record.epoch);
            let anomaly = Anomaly::new(AnomalyKind::MissingLog, Invariant::K2, detail).of(region).in_topic(topic);
            findings.add(anomaly);
        }
    }
    findings
}

/// Topics of the job's own that a restore of a region reads, in the region's partition.
#[derive(Clone, Debug)]
pub struct RestoreReads {
    /// As `s1/0`.
    pub region: String,
    pub partition: i32,
    pub changelog: String,
    /// None: it reads none, or which one is not known.
    pub exchange: Option<String>,
}

/// K-2: a restore begins from a remote checkpoint that is kept, so from there on changelog and exchange are whole; without one, from their beginning.
/// `ends` were read before `kept` was listed: what is trimmed meanwhile is not held against it, and what has come or was let go meanwhile asks for less.
pub fn check_kept(ends: &[PartitionEnd], kept: &[CheckpointInfo], reads: &[RestoreReads]) -> Findings {
    let mut findings = Findings::default();
    for RestoreReads { region, partition, changelog, exchange } in reads {
        let needed = needed(kept, region);
        let places = [(Some(changelog), 0), (exchange.as_ref(), 1)];
        for (topic, number) in places.into_iter().filter_map(|(topic, number)| Some((topic?, number))) {
            let Some(end) = ends.iter().find(|end| end.topic == *topic && end.partition == *partition) else { continue };
            let from = needed.map_or(Some(0), |info| if number == 0 { Some(info.changelog_from) } else { info.positions.first().copied() });
            let Some(from) = from else { continue };
            findings.looked_at(Invariant::K2, 1);
            if end.low > from {
                let why = needed.map_or("which has no checkpoint in the store".to_string(), |info| {
                    format!("from its checkpoint of epoch {}", info.epoch)
                });
                let detail = format!("begins at offset {}, and a restore of {region}, {why}, reads from offset {from}", end.low);
                findings.add(Anomaly::new(AnomalyKind::MissingLog, Invariant::K2, detail).at(topic, *partition, end.low).of(region));
            }
        }
    }
    findings
}

/// The oldest remote checkpoint of a region that must be of use: of those that the writer of the newest has made in a row. One by somebody else before it
/// may have come late, behind a trim, and was useless from its start. By which clock it was made does not tell: clocks are a fault here.
fn needed<'a>(kept: &'a [CheckpointInfo], region: &str) -> Option<&'a CheckpointInfo> {
    let is_remote = |info: &&CheckpointInfo| info.durability == Durability::Remote && info.region.to_string() == region;
    let mut remote: Vec<&CheckpointInfo> = kept.iter().filter(is_remote).collect();
    remote.sort_by_key(|info| (info.epoch, info.incarnation));
    let writer = remote.last()?.incarnation;
    remote.into_iter().rev().take_while(|info| info.incarnation == writer).last()
}

/// Topics that begin with the job's name and are neither its own nor among `known`. `stages`, `exchanges`: how many the genesis says there are.
pub fn check_names(job: &str, names: &BTreeSet<String>, known: &[&str], (stages, exchanges): (usize, usize)) -> Findings {
    let mut findings = Findings::default();
    let mut orphan = |topic: &str, detail: String| {
        findings.add(Anomaly::new(AnomalyKind::OrphanTopic, Invariant::K2, detail).in_topic(topic));
    };
    let side = ["control", "dead-letter", "late"].map(|suffix| format!("{job}-{suffix}"));
    let (mut changelogs, mut repartitions) = (0, 0);
    for topic in names {
        if is_changelog_of(job, topic) {
            changelogs += 1;
        } else if is_exchange_of(job, topic) {
            repartitions += 1;
        } else if !side.contains(topic) && !known.contains(&topic.as_str()) {
            orphan(topic, "it has the job's name and is none of its topics".into());
        }
    }
    for (what, found, most) in [("changelogs", changelogs, stages), ("exchanges", repartitions, exchanges)] {
        // Without a genesis nothing is known.
        if stages > 0 && found > most {
            orphan(job, format!("there are {found} {what}, the job has {most}"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(topic: &str, low: i64, stable: i64, high: i64) -> PartitionEnd {
        PartitionEnd { topic: topic.into(), partition: 0, low, stable, high }
    }

    #[test]
    fn an_open_transaction_is_found() {
        let found = |ends: &[PartitionEnd]| hanging(open_at(ends).into_values());
        assert!(found(&[end("t", 0, 5, 5)]).is_clean());
        assert_eq!(found(&[end("t", 0, 5, 5), end("u", 0, 5, 6)]).count(AnomalyKind::HangingTransaction), 1);
    }

    #[test]
    fn topics_of_nobody_are_found() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
        let own = names(&["j-control", "j-in-1-changelog", "j-w-2-changelog", "j-w-1-repartition", "j-late"]);
        assert!(check_names("j", &own, &[], (2, 1)).is_clean());
        assert_eq!(check_names("j", &own, &[], (1, 1)).count(AnomalyKind::OrphanTopic), 1);
        let with_other = names(&["j-control", "j-tmp"]);
        let orphans = |known| check_names("j", &with_other, known, (2, 1)).count(AnomalyKind::OrphanTopic);
        assert_eq!((orphans(&[]), orphans(&["j-tmp"])), (1, 0));
    }

    #[test]
    fn a_trim_beyond_the_newest_checkpoint_is_found() {
        use streamshield_core::ids::{Incarnation, PlanFingerprint, StageId};
        use streamshield_core::watermark::Watermark;
        let region = RegionId { stage: StageId(1), partition: 0 };
        let record = EpochRecord {
            version: 1,
            region,
            epoch: Epoch(7),
            incarnation: Incarnation(1),
            transactional_id: "a".into(),
            plan: PlanFingerprint(1),
            now_ms: 0,
            steps: vec![],
            positions: vec![],
            upstreams: vec![],
            watermark: Watermark::MIN,
            digest: None,
            delta: None,
            finished: false,
        };
        let topic = "j-c-changelog";
        let first = BTreeMap::from([(region, (topic.to_string(), record))]);
        let missing = |low, stateful: bool, checkpoint: Option<u64>| {
            let checkpoints = checkpoint.map(|epoch| (region, (Epoch(epoch), Durability::Remote))).into_iter().collect();
            let stateful = stateful.then_some(region).into_iter().collect();
            check_trims("j", &[end(topic, low, 9, 9)], &first, &stateful, &checkpoints).count(AnomalyKind::MissingLog)
        };
        assert_eq!([missing(0, true, None), missing(3, true, Some(7)), missing(3, true, Some(9))], [0, 0, 0]);
        // A checkpoint is proven by its own record.
        assert_eq!([missing(3, true, Some(6)), missing(3, true, Some(5)), missing(3, true, None)], [1, 1, 1]);
        assert_eq!(missing(3, false, None), 0, "a region without state goes on by its last record");
    }

    #[test]
    fn a_changelog_that_is_trimmed_to_its_end_is_found_without_a_record() {
        let missing = |low, high| {
            let ends = [end("j-c-changelog", low, high, high), end("j-c-repartition", 9, 9, 9)];
            check_trims("j", &ends, &BTreeMap::new(), &BTreeSet::new(), &BTreeMap::new()).count(AnomalyKind::MissingLog)
        };
        assert_eq!([missing(0, 0), missing(0, 3), missing(3, 3), missing(3, 4)], [0, 0, 1, 1]);
    }

    fn checkpoint(epoch: u64, incarnation: u64, from: i64) -> CheckpointInfo {
        use streamshield_core::ids::{Incarnation, PlanFingerprint, StageId};
        CheckpointInfo {
            region: RegionId { stage: StageId(1), partition: 0 },
            epoch: Epoch(epoch),
            incarnation: Incarnation(incarnation),
            plan: PlanFingerprint(1),
            positions: vec![10 * from],
            watermark: streamshield_core::watermark::Watermark::MIN,
            changelog_from: from,
            durability: Durability::Remote,
            pinned: false,
            created_ms: 0,
            manifest: format!("{epoch}-{incarnation}.json"),
            files: 1,
            bytes: 1,
        }
    }

    #[test]
    fn a_trim_beyond_what_a_kept_checkpoint_needs_is_found() {
        let missing = |changelog: i64, exchange: i64, kept: &[CheckpointInfo]| {
            let ends = [end("c", changelog, 99, 99), end("x", exchange, 99, 99)];
            let reads = [RestoreReads { region: "s1/0".into(), partition: 0, changelog: "c".into(), exchange: Some("x".into()) }];
            check_kept(&ends, kept, &reads).count(AnomalyKind::MissingLog)
        };
        let kept = [checkpoint(7, 1, 3), checkpoint(9, 1, 5)];
        assert_eq!([missing(0, 0, &kept), missing(3, 30, &kept)], [0, 0]);
        assert_eq!([missing(4, 30, &kept), missing(3, 31, &kept), missing(9, 90, &kept)], [1, 1, 2]);
        assert_eq!([missing(0, 0, &[]), missing(1, 0, &[]), missing(1, 1, &[])], [0, 1, 2]);
        let local = CheckpointInfo { durability: Durability::Local, ..checkpoint(7, 1, 3) };
        assert_eq!([missing(5, 50, &[local.clone(), checkpoint(9, 1, 5)]), missing(3, 0, &[local])], [0, 1]);
        // What somebody else has made may have come behind the trim.
        assert_eq!(missing(5, 50, &[checkpoint(6, 1, 2), checkpoint(7, 2, 3), checkpoint(9, 1, 5)]), 0);
    }
}

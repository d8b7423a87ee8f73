//! Ends of partitions, and names of topics: open transactions, trims that went too far, topics that are nobody's.

use super::{is_changelog_of, is_exchange_of};
use crate::client::{PartitionEnd, ends};
use crate::error::WorkloadError;
use crate::findings::{Anomaly, AnomalyKind, Findings, Invariant};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, RegionId};
use streamshield_core::ports::checkpoint::Durability;

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

/// K-2: where the changelog of a region with state was trimmed, the newest checkpoint reaches up to where the rest begins. `first`: the first record that
/// is there, with its topic.
pub fn check_trims(
    ends: &[PartitionEnd],
    first: &BTreeMap<RegionId, (String, EpochRecord)>,
    stateful: &BTreeSet<RegionId>,
    checkpoints: &BTreeMap<RegionId, (Epoch, Durability)>,
) -> Findings {
    let mut findings = Findings::default();
    for (region, (topic, record)) in first.iter().filter(|(region, _)| stateful.contains(region)) {
        let is_trimmed = ends.iter().any(|end| end.topic == *topic && end.partition == region.partition as i32 && end.low > 0);
        if !is_trimmed {
            continue;
        }
        findings.looked_at(Invariant::K2, 1);
        let checkpoint = checkpoints.get(region).map(|(epoch, _)| *epoch);
        if checkpoint.is_none_or(|epoch| epoch.next() < record.epoch) {
            let has = checkpoint.map_or("there is no checkpoint".to_string(), |epoch| format!("the newest checkpoint is of epoch {epoch}"));
            let detail = format!("the changelog begins with epoch {}, {has}", record.epoch);
            let anomaly = Anomaly::new(AnomalyKind::MissingLog, Invariant::K2, detail).of(region).in_topic(topic);
            findings.add(anomaly);
        }
    }
    findings
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
        let first = BTreeMap::from([(region, ("c".to_string(), record))]);
        let missing = |low, checkpoint: Option<u64>| {
            let checkpoints = checkpoint.map(|epoch| (region, (Epoch(epoch), Durability::Remote))).into_iter().collect();
            check_trims(&[end("c", low, 9, 9)], &first, &BTreeSet::from([region]), &checkpoints).count(AnomalyKind::MissingLog)
        };
        assert_eq!([missing(0, None), missing(3, Some(6)), missing(3, Some(9)), missing(3, Some(5)), missing(3, None)], [0, 0, 0, 1, 1]);
    }
}

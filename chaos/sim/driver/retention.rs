//! K-2: whatever a restore may need is still in the log.
//!
//! A restore may begin from any remote checkpoint that retention has not marked: from there on the changelog and the exchange must be whole. Where
//! there is no such checkpoint, they must be whole from their beginning. A checkpoint may be useless when it comes, because its writer was slow and the log
//! was trimmed behind a newer one: that one is not counted, neither for nor against.

use crate::job::{JOB, plan};
use std::collections::{BTreeMap, BTreeSet};
use streamshield_core::ids::{Offset, RegionId};
use streamshield_core::ports::log::TopicPartition;
use streamshield_engine::plan::StageInput;
use streamshield_engine::topics;
use streamshield_sim::{Sim, SimStore};

/// What has come so far, by the names of the manifests.
#[derive(Default)]
pub struct Retention {
    seen: BTreeSet<String>,
    useful: BTreeSet<String>,
    changes: u64,
}

impl Retention {
    /// After each turn: a checkpoint that has just come is judged before anything more is trimmed.
    pub fn note(&mut self, sim: &Sim, store: &SimStore) {
        if self.changes != store.changes() {
            self.check(sim, store);
        }
    }

    /// Looks at all regions.
    pub fn check(&mut self, sim: &Sim, store: &SimStore) {
        self.changes = store.changes();
        let starts = starts(sim);
        let mut needed: BTreeMap<RegionId, Vec<Offset>> = BTreeMap::new();
        let retained = store.retained();
        // One that was let go and comes again, since its writer was paused meanwhile, is a new one.
        let is_there = |manifest: &String| retained.iter().any(|info| info.manifest == *manifest);
        self.seen.retain(is_there);
        self.useful.retain(is_there);
        for info in retained {
            let Some(places) = starts.get(&info.region) else { continue };
            let from: Vec<Offset> = [info.changelog_from].into_iter().chain(info.positions.first().copied()).take(places.len()).collect();
            let is_whole = places.iter().zip(&from).all(|((_, start), from)| start <= from);
            if self.seen.insert(info.manifest.clone()) && is_whole {
                self.useful.insert(info.manifest.clone());
            }
            if self.useful.contains(&info.manifest) {
                let oldest = needed.entry(info.region).or_insert_with(|| from.clone());
                oldest.iter_mut().zip(&from).for_each(|(oldest, from)| *oldest = (*oldest).min(*from));
            }
        }
        for (region, places) in starts {
            for (number, (place, start)) in places.into_iter().enumerate() {
                let needed = needed.get(&region).map_or(0, |needed| needed[number]);
                if start > needed {
                    sim.violation(format!("K-2: {place} begins at {start}, a restore of {region} reads from {needed}"));
                }
            }
        }
    }
}

/// Per region the partitions that a restore reads, its changelog first, and where they begin.
fn starts(sim: &Sim) -> BTreeMap<RegionId, Vec<(TopicPartition, Offset)>> {
    let mut starts: BTreeMap<RegionId, Vec<(TopicPartition, Offset)>> = BTreeMap::new();
    sim.with_core(|core| {
        for stage in &plan().stages {
            let changelog = topics::changelog(JOB, stage);
            let input = match &stage.input {
                StageInput::Exchange(exchange) => Some(topics::exchange(JOB, &plan().exchanges[exchange.0 as usize])),
                StageInput::Source(_) => None,
            };
            for topic in [changelog].into_iter().chain(input) {
                let count = core.topic(&topic).map_or(0, |topic| topic.partition_count());
                for partition in 0..count {
                    let start = core.partition(&topic, partition).map_or(0, |partition| partition.start_offset());
                    let region = RegionId { stage: stage.id, partition: partition as u32 };
                    starts.entry(region).or_default().push((TopicPartition::new(topic.as_str(), partition), start));
                }
            }
        }
    });
    starts
}

//! What must hold after every record, as predicates: shared by the tests, the exhaustive check, the simulation and whoever reads a snapshot.
//!
//! That `must_fence` covers every earlier owner can't be seen in one state; [`Witness`] watches from record to record.

use super::Cluster;
use super::record::SlotId;
use super::state::Region;
use crate::ids::RegionId;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// As in ARCHITECTURE.md.
    pub invariant: &'static str,
    pub region: Option<RegionId>,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.region {
            Some(region) => write!(f, "{}: region {region}: {}", self.invariant, self.what),
            None => write!(f, "{}: {}", self.invariant, self.what),
        }
    }
}

/// All that is wrong with a state; empty when all is well. Walks over everything: for tests, and for snapshots.
pub fn problems(cluster: &Cluster) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (id, region) in cluster.regions() {
        let broken = region_rules(cluster, region).into_iter().filter(|(holds, _, _)| !holds);
        problems.extend(broken.map(|(_, invariant, what)| Problem { invariant, region: Some(id), what: what.into() }));
    }
    if cluster.is_forgetful() {
        problems.push(Problem { invariant: "C-1", region: None, what: "a move is wanted that nothing will start".into() });
    }
    let rebuilt = Cluster::from_state(cluster.state.clone());
    if rebuilt.index != cluster.index {
        let what =
            if rebuilt.digest() != cluster.digest() { "the digest is not that of the state" } else { "the index is not that of the state" };
        problems.push(Problem { invariant: "C-1", region: None, what: what.into() });
    }
    problems
}

/// Rules for one region: whether it holds, its id, and what is wrong otherwise.
fn region_rules(cluster: &Cluster, region: &Region) -> Vec<(bool, &'static str, &'static str)> {
    let is_slot = |slot: &SlotId| cluster.member(slot.incarnation).is_some_and(|member| slot.slot < member.slots);
    let owner = region.owner;
    let target = region.moving.map(|moving| moving.to);
    let followers: Vec<SlotId> = region.followers.iter().map(|follower| follower.slot).collect();
    let follower_members: BTreeSet<_> = followers.iter().map(|slot| slot.incarnation).collect();
    let is_anybody_alive = cluster.members().next().is_some();
    let is_starting = cluster.starts_at_ms().is_some();
    vec![
        (owner.is_none_or(|owner| is_slot(&owner.slot)), "O-1", "its owner is not a live slot"),
        (owner.is_none_or(|owner| Some(owner.assignment) <= cluster.applied()), "O-1", "it is owned from a record on that was not read"),
        (owner.is_none() || region.quarantined.is_none(), "O-1", "it is quarantined and has an owner"),
        (
            owner.is_some() || region.quarantined.is_some() || !is_anybody_alive || is_starting,
            "O-1",
            "it has no owner though somebody is alive",
        ),
        (owner.is_none() || region.lost.is_none(), "O-1", "it has an owner and is lost"),
        (region.must_fence.iter().all(|slot| cluster.member(slot.incarnation).is_none()), "O-1", "a live slot is to be fenced"),
        (target.is_none_or(|slot| is_slot(&slot)), "O-1", "it moves to a slot that is not live"),
        (target.is_none() || owner.is_some(), "O-1", "it moves but nobody owns it"),
        (
            target.is_none_or(|target| owner.is_none_or(|owner| owner.slot.incarnation != target.incarnation)),
            "O-1",
            "it moves to its owner",
        ),
        (
            owner.is_none_or(|owner| owner.release_since_ms.is_some() == region.moving.is_some_and(|moving| moving.ready)),
            "O-1",
            "its owner is asked to release it though no target is ready, or is not asked though one is",
        ),
        (followers.iter().all(is_slot), "O-1", "a follower is not a live slot"),
        (follower_members.len() == followers.len(), "O-1", "two of its followers are one member"),
        (owner.is_none_or(|owner| !follower_members.contains(&owner.slot.incarnation)), "O-1", "its owner follows it"),
        (
            region.followers.iter().all(|follower| follower.replaces.is_none_or(|replaced| followers.contains(&replaced))),
            "O-1",
            "a follower takes the place of one that is none",
        ),
    ]
}

/// Watches a log being folded: `must_fence` names every slot that ever held the region and was neither fenced nor released it (O-1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Witness {
    /// Per region, slots that may still commit.
    holders: BTreeMap<RegionId, BTreeSet<SlotId>>,
}

impl Witness {
    /// A record that may end a slot's hold of a region, seen before it is applied.
    pub fn before(&mut self, cluster: &Cluster, record: &super::ControlRecord) {
        use super::ControlRecord::{Failed, Fenced, Left, Released};
        match record {
            Released { incarnation, region, assignment, .. } | Failed { incarnation, region, assignment, .. } => {
                let owner = cluster.region(*region).and_then(|region| region.owner);
                let is_valid = |owner: &super::Owner| owner.slot.incarnation == *incarnation && owner.assignment == *assignment;
                if let (Some(owner), Some(holders)) = (owner.filter(is_valid), self.holders.get_mut(region)) {
                    holders.remove(&owner.slot);
                }
            }
            // A clean leave is the release of all that it owns.
            Left { incarnation, clean: true } if cluster.member(*incarnation).is_some() => {
                self.holders.values_mut().for_each(|holders| holders.retain(|slot| slot.incarnation != *incarnation));
            }
            Fenced { incarnation, slot } if cluster.member(*incarnation).is_some() && cluster.member(slot.incarnation).is_none() => {
                self.holders.values_mut().for_each(|holders| {
                    holders.remove(slot);
                });
            }
            _ => {}
        }
    }

    /// Compares the state after a record with what was seen.
    pub fn after(&mut self, cluster: &Cluster) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (id, region) in cluster.regions() {
            let holders = self.holders.entry(id).or_default();
            holders.extend(region.owner.iter().map(|owner| owner.slot));
            for slot in holders.iter() {
                let is_owner = region.owner.is_some_and(|owner| owner.slot == *slot);
                if !is_owner && !region.must_fence.contains(slot) {
                    problems.push(Problem { invariant: "O-1", region: Some(id), what: format!("slot {slot} held it and is forgotten") });
                }
            }
        }
        problems
    }
}

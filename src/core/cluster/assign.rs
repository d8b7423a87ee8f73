//! Owners for regions that have none.
//!
//! [`Placement`] answers for one orphan after the other and takes into account what it has answered before, without changing anything: the same code
//! places regions when a worker is gone and foretells where they would go if it were ([`Cluster::may_have_to_fence`]).
//!
//! The order of preference: a follower that is ready (it goes on at once), a follower, the least loaded member; among equals one that is not
//! draining, in another rack than where the region was lost (the rack may be what failed), less loaded, older. Where nobody else is left, a draining
//! member, and for a region that failed, the slot where it failed.

use super::Cluster;
use super::effect::Effect;
use super::index::{Index, next_load_key};
use super::record::SlotId;
use super::state::{Loss, Owner, Region, State, TAKEOVERS_MAX, Takeover, Why};
use crate::ids::{Incarnation, Offset, RegionId};
use std::collections::{BTreeMap, BTreeSet, btree_set};

/// Where orphans go.
pub(super) struct Placement<'a> {
    state: &'a State,
    index: &'a Index,
    /// As if this member were gone.
    without: Option<Incarnation>,
    /// Members whose load this placement has not changed yet, the least loaded first.
    untouched: btree_set::Iter<'a, (u64, Incarnation)>,
    /// The others that may be given regions, with the load that they would have.
    touched: BTreeSet<(u64, Incarnation)>,
    loads: BTreeMap<Incarnation, u64>,
    slot_loads: BTreeMap<SlotId, u64>,
}

impl<'a> Placement<'a> {
    pub fn new(state: &'a State, index: &'a Index) -> Self {
        let untouched = index.by_next_load.iter();
        Placement { state, index, without: None, untouched, touched: BTreeSet::new(), loads: BTreeMap::new(), slot_loads: BTreeMap::new() }
    }

    /// As it would be if that member were gone: moves to it are called off, what is on its way from it is at nobody.
    pub fn without(state: &'a State, index: &'a Index, gone: Incarnation) -> Self {
        let mut placement = Placement { without: Some(gone), ..Placement::new(state, index) };
        for id in index.regions_of(gone) {
            let Some((owner, moving, weight)) =
                state.regions.get(&id).and_then(|region| Some((region.owner?, region.moving?, region.weight())))
            else {
                continue;
            };
            if moving.to.incarnation == gone {
                placement.change_load(owner.slot, |load| load + weight);
            } else if owner.slot.incarnation == gone {
                placement.change_load(moving.to, |load| load - weight);
            }
        }
        placement
    }

    /// The slot that gets the region. None: nobody is alive.
    pub fn owner_for(&mut self, region: &Region, lost: Option<Loss>) -> Option<SlotId> {
        let failed_at = lost.filter(|lost| lost.why == Why::Failed).map(|lost| lost.from);
        let avoid = failed_at.map(|slot| slot.incarnation);
        let slot = self
            .warmest(region, lost, avoid)
            .or_else(|| self.least_loaded(avoid).map(|member| self.slot_of(member)))
            .or_else(|| failed_at.filter(|slot| self.is_live(slot.incarnation)))
            .or_else(|| self.least_loaded_draining().map(|member| self.slot_of(member)))?;
        self.change_load(slot, |load| load + region.weight());
        Some(slot)
    }

    /// A follower; the target of a move counts as one.
    fn warmest(&self, region: &Region, lost: Option<Loss>, avoid: Option<Incarnation>) -> Option<SlotId> {
        let target = region.moving.map(|moving| (moving.to, moving.ready));
        let followers = region.followers.iter().map(|follower| (follower.slot, follower.ready)).chain(target);
        let lost_rack = lost.and_then(|lost| self.rack(lost.from.incarnation));
        followers
            .filter(|(slot, _)| self.is_live(slot.incarnation) && Some(slot.incarnation) != avoid)
            .min_by_key(|(slot, ready)| {
                let member = &self.index.members[&slot.incarnation];
                let is_same_rack = member.rack.is_some() && member.rack.as_deref() == lost_rack;
                (!ready, member.draining, is_same_rack, self.load_key(slot.incarnation), slot.incarnation)
            })
            .map(|(slot, _)| slot)
    }

    fn least_loaded(&mut self, avoid: Option<Incarnation>) -> Option<Incarnation> {
        let is_out = |placement: &Self, member: &Incarnation| Some(*member) == placement.without || placement.loads.contains_key(member);
        // Whoever was touched once stays so.
        while self.untouched.clone().next().is_some_and(|(_, member)| is_out(self, member)) {
            self.untouched.next();
        }
        let is_wanted = |member: &Incarnation| Some(*member) != avoid && !is_out(self, member);
        let untouched = self.untouched.clone().find(|(_, member)| is_wanted(member));
        let touched = self.touched.iter().find(|(_, member)| Some(*member) != avoid);
        untouched.into_iter().chain(touched).min().map(|(_, member)| *member)
    }

    fn least_loaded_draining(&self) -> Option<Incarnation> {
        let draining = self.index.draining.iter().copied().filter(|member| self.is_live(*member));
        draining.min_by_key(|member| (self.load_key(*member), *member))
    }

    /// The least loaded slot of a member.
    fn slot_of(&self, member: Incarnation) -> SlotId {
        let slots = self.index.slots_of(member);
        let load = |slot: SlotId, load: u64| self.slot_loads.get(&slot).copied().unwrap_or(load);
        let least = slots.min_by_key(|(slot, index)| (load(*slot, index.load), index.follower_load, *slot)).map(|(slot, _)| slot);
        least.unwrap_or(SlotId { incarnation: member, slot: 0 })
    }

    fn change_load(&mut self, slot: SlotId, change: impl Fn(u64) -> u64) {
        let member = slot.incarnation;
        let index = &self.index.members[&member];
        let before = self.loads.get(&member).copied().unwrap_or(index.load);
        self.touched.remove(&(next_load_key(before, index.slots), member));
        self.loads.insert(member, change(before));
        if !index.draining {
            self.touched.insert((next_load_key(change(before), index.slots), member));
        }
        let slot_load = self.index.slots.get(&slot).map_or(0, |index| index.load);
        let slot_load = self.slot_loads.entry(slot).or_insert(slot_load);
        *slot_load = change(*slot_load);
    }

    fn load_key(&self, member: Incarnation) -> u64 {
        let index = &self.index.members[&member];
        next_load_key(self.loads.get(&member).copied().unwrap_or(index.load), index.slots)
    }

    fn is_live(&self, member: Incarnation) -> bool {
        Some(member) != self.without && self.index.members.contains_key(&member)
    }

    fn rack(&self, member: Incarnation) -> Option<&'a str> {
        let live = self.state.members.get(&member).map(|member| member.rack.as_deref());
        live.or_else(|| self.state.gone.get(&member).map(|gone| gone.rack.as_deref())).flatten()
    }
}

impl Cluster {
    /// Gives every region that has no owner to one, if anybody is alive.
    pub(super) fn place_orphans(&mut self, at: Offset, effects: &mut Vec<Effect>) {
        let mut placement = Placement::new(&self.state, &self.index);
        let mut plan: Vec<(RegionId, Option<Loss>, SlotId)> = Vec::new();
        for id in &self.index.orphans {
            let region = &self.state.regions[id];
            let Some(to) = placement.owner_for(region, region.lost) else { return };
            plan.push((*id, region.lost, to));
        }
        let mut first_owners = 0;
        for (id, lost, to) in plan {
            self.give_region(id, to, at);
            match lost {
                Some(Loss { from, why }) => {
                    self.keep_takeover(Takeover { region: id, from, to, why, offset: at, log_clock_ms: self.state.clock.now_ms });
                    effects.push(Effect::TakenOver { region: id, from, to });
                }
                None => first_owners += 1,
            }
        }
        if first_owners > 0 {
            effects.push(Effect::Placed { regions: first_owners });
        }
    }

    /// Makes the slot the owner from this record on.
    pub(super) fn give_region(&mut self, id: RegionId, to: SlotId, at: Offset) {
        self.change_region(id, |region| {
            region.owner = Some(Owner { slot: to, assignment: at, release_since_ms: None });
            region.moving = None;
            region.lost = None;
            region.cold_at.clear();
            let follower = region.followers.iter().map(|follower| follower.slot).find(|slot| slot.incarnation == to.incarnation);
            if let Some(slot) = follower {
                region.remove_follower(slot);
            }
        });
    }

    pub(super) fn keep_takeover(&mut self, takeover: Takeover) {
        self.state.takeovers.push_back(takeover);
        while self.state.takeovers.len() > TAKEOVERS_MAX {
            self.state.takeovers.pop_front();
        }
    }
}

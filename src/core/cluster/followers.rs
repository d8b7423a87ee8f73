//! Who follows a region.
//!
//! As many followers as the settings ask for, or as there are other members: never on the owner's member, each on a member of its own, in other racks
//! where there are some, on those who have least to do. After somebody joined, followers are spread anew, too: the newcomer first catches up beside the
//! one whose place it takes, so that no region is left without a warm follower meanwhile.
//!
//! In the same way a follower leaves a rack that it shares with another worker of its region, as after a loss or a move, for one where the region is not.
//! That ends: with every such step a region is in one rack more, and no step for loads brings two of its workers into one rack.

use super::Cluster;
use super::index::ARRIVING_MAX;
use super::record::SlotId;
use super::state::{Follower, Region};
use crate::ids::{Incarnation, RegionId};
use std::collections::BTreeSet;

impl Cluster {
    pub(super) fn followers_wanted(&self) -> usize {
        let wanted = self.state.settings.as_ref().map_or(0, |settings| settings.followers as usize);
        wanted.min(self.state.members.len().saturating_sub(1))
    }

    /// Adds followers where there are too few and drops them where there are too many.
    pub(super) fn place_followers(&mut self) {
        let wanted = self.followers_wanted();
        let first = RegionId { stage: crate::ids::StageId(0), partition: 0 };
        let too_few: Vec<RegionId> = self.index.by_followers.range(..(wanted, first)).map(|(_, id)| *id).collect();
        for id in too_few {
            while let Some(slot) = self.follower_for(id, wanted) {
                self.change_region(id, |region| region.followers.push(Follower::new(slot, false)));
            }
        }
        let too_many: Vec<RegionId> = self.index.by_followers.range((wanted + 1, first)..).map(|(_, id)| *id).collect();
        for id in too_many {
            while let Some(slot) = self.surplus_follower(id, wanted) {
                self.change_region(id, |region| region.remove_follower(slot));
            }
        }
    }

    fn follower_for(&self, id: RegionId, wanted: usize) -> Option<SlotId> {
        let region = self.state.regions.get(&id).filter(|region| region.follower_count() < wanted)?;
        let taken = busy_with(region);
        let racks = self.racks_of(region);
        let candidates = self.index.by_total_load.iter().filter_map(|(rack, members)| {
            let is_same_rack = rack.as_deref().is_some_and(|rack| racks.contains(rack));
            let (draining, load, member) = members.iter().find(|(_, _, member)| !taken.contains(member))?;
            Some((*draining, is_same_rack, *load, *member))
        });
        let (_, _, _, member) = candidates.min()?;
        Some(self.quietest_slot(member))
    }

    /// The follower that is missed least: not ready, draining, in a rack with others, on a busy member.
    fn surplus_follower(&self, id: RegionId, wanted: usize) -> Option<SlotId> {
        let region = self.state.regions.get(&id).filter(|region| region.follower_count() > wanted)?;
        let owner_rack = region.owner.and_then(|owner| self.rack_of(owner.slot.incarnation));
        let settled = region.followers.iter().filter(|follower| follower.replaces.is_none());
        let least_missed = settled.max_by_key(|follower| {
            let member = follower.slot.incarnation;
            let index = &self.index.members[&member];
            let is_same_rack = index.rack.is_some() && index.rack.as_deref() == owner_rack;
            (!follower.ready, index.draining, is_same_rack, index.total_key(), member)
        });
        least_missed.map(|follower| follower.slot)
    }

    /// Starts to build followers on members that have little to do, to take the place of others on members that have much.
    pub(super) fn plan_follower_moves(&mut self) {
        while let Some((id, follower)) = self.next_follower_move() {
            self.change_region(id, |region| region.followers.push(follower));
        }
    }

    pub(super) fn next_follower_move(&self) -> Option<(RegionId, Follower)> {
        if self.state.members.len() <= self.followers_wanted() + 1 {
            return None;
        }
        self.next_out_of_rack().or_else(|| self.next_lighter())
    }

    /// A follower that shares its rack with another worker of its region, for the one with least to do of those racks where the region is not.
    fn next_out_of_rack(&self) -> Option<(RegionId, Follower)> {
        if self.index.crowded.is_empty() {
            return None;
        }
        let racks = self.index.by_total_load.iter();
        let takers: Vec<_> = racks.filter_map(|(rack, members)| Some((rack.as_ref()?, self.taker_of(members)?))).collect();
        let (id, to) = self.index.crowded.iter().find_map(|(racks, regions)| {
            let (_, to) = takers.iter().filter(|(rack, _)| !racks.contains(*rack)).map(|(_, taker)| *taker).min()?;
            Some((*regions.first()?, to))
        })?;
        let region = self.state.regions.get(&id)?;
        let members = busy_with(region);
        let shares = |rack: &str| members.iter().filter(|member| self.rack_of(**member) == Some(rack)).count() > 1;
        let sharing = region.followers.iter().filter(|follower| self.rack_of(follower.slot.incarnation).is_some_and(shares));
        let least_missed =
            sharing.max_by_key(|follower| (!follower.ready, self.index.members[&follower.slot.incarnation].total_key(), follower.slot));
        Some((id, self.in_place_of(least_missed?.slot, to)))
    }

    /// From the member that has most to do to the one that has least, if that makes the fuller of the two emptier than it was.
    fn next_lighter(&self) -> Option<(RegionId, Follower)> {
        let all = || self.index.by_total_load.values().flatten().filter(|(draining, _, _)| !draining);
        let (_, to) = self.index.by_total_load.values().filter_map(|members| self.taker_of(members)).min()?;
        let (_, _, from) = all().max_by_key(|(_, load, member)| (*load, std::cmp::Reverse(*member)))?;
        let (target, source) = (&self.index.members[&to], &self.index.members[from]);
        let fits = |weight: u64| {
            let after = (target.load + target.follower_load + weight) * u64::from(source.slots);
            weight > 0 && after < (source.load + source.follower_load) * u64::from(target.slots)
        };
        for (slot, index) in self.index.slots_of(*from) {
            for id in &index.followed {
                let Some(region) = self.state.regions.get(id) else { continue };
                if region.is_settled()
                    && !region.is_deadly()
                    && fits(region.weight())
                    && !busy_with(region).contains(&to)
                    && self.keeps_racks_apart(region, to, *from)
                {
                    return Some((*id, self.in_place_of(slot, to)));
                }
            }
        }
        None
    }

    /// Of the members of one rack, as they are listed by load, the first that may begin with one follower more.
    fn taker_of(&self, members: &BTreeSet<(bool, u64, Incarnation)>) -> Option<(u64, Incarnation)> {
        let can_take = |member: &Incarnation| self.index.members[member].arriving < ARRIVING_MAX;
        members.iter().find(|(draining, _, member)| !draining && can_take(member)).map(|(_, load, member)| (*load, *member))
    }

    fn in_place_of(&self, replaced: SlotId, to: Incarnation) -> Follower {
        Follower { slot: self.quietest_slot(to), ready: false, replaces: Some(replaced), since_ms: self.state.clock.now_ms }
    }

    /// A follower doesn't move into a rack that the region is in already, unless it is there now.
    fn keeps_racks_apart(&self, region: &Region, to: Incarnation, from: Incarnation) -> bool {
        let (to_rack, from_rack) = (self.rack_of(to), self.rack_of(from));
        to_rack.is_none() || to_rack == from_rack || !to_rack.is_some_and(|rack| self.racks_of(region).contains(rack))
    }

    fn racks_of(&self, region: &Region) -> BTreeSet<&str> {
        busy_with(region).into_iter().filter_map(|member| self.rack_of(member)).collect()
    }

    pub(super) fn rack_of(&self, member: Incarnation) -> Option<&str> {
        self.index.members.get(&member)?.rack.as_deref()
    }

    /// Where a member has room for one more region to follow.
    pub(super) fn quietest_slot(&self, member: Incarnation) -> SlotId {
        let slots = self.index.slots_of(member);
        let quietest = slots.min_by_key(|(slot, index)| (index.load + index.follower_load, *slot)).map(|(slot, _)| slot);
        quietest.unwrap_or(SlotId { incarnation: member, slot: 0 })
    }
}

/// Members that have to do with a region.
fn busy_with(region: &Region) -> BTreeSet<Incarnation> {
    let owner = region.owner.iter().map(|owner| owner.slot);
    let target = region.moving.iter().map(|moving| moving.to);
    let followers = region.followers.iter().map(|follower| follower.slot);
    owner.chain(target).chain(followers).map(|slot| slot.incarnation).collect()
}

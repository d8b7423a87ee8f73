//! Planned moves: after somebody came or went, or while a worker drains.
//!
//! Only the surplus moves. A member gives when its load is above its fair share (by its slots), one takes when it is below, and a move has to
//! make the fuller of the two emptier than it was: so the sum of squares falls with every move, and it ends with members that differ by less than one region. Loads are counted as they
//! will be when all moves under way are done; at most [`ARRIVING_MAX`](super::index::ARRIVING_MAX) of them go to one member at a time, the next
//! starts with the record that ends one. After a loss or a failure they wait (`balance_delay_ms`): the slots have regions to take over then, and a worker that is
//! started again takes back what it had.
//!
//! A region that has failed is not moved to even loads: it stays where it works. A drain takes it along, since the worker is to be stopped.
//!
//! A region keeps its owner and its followers in different racks where that can be: of the regions that a member may give, one is chosen, and for a region that
//! a drain takes away, a member. Where it can't, loads come first, and a follower leaves the rack afterwards.
//!
//! A target that follows the region already is warm, so its owner is asked to release at once; any other first catches up and says `ready`.
//!
//! A drain passes over those where the region did not become warm in time, while there is another one, until somebody joins: a worker on which nothing comes
//! up has least to do, and would be chosen again and again. To even out loads it is tried again, since it may only be slow.

use super::Cluster;
use super::effect::Effect;
use super::index::{ARRIVING_MAX, MemberIndex};
use super::record::SlotId;
use super::state::{Move, Region};
use crate::ids::{Incarnation, Offset, RegionId};

impl Cluster {
    /// Starts moves until loads are even or as many are under way as may be.
    pub(super) fn plan_moves(&mut self, at: Offset, effects: &mut Vec<Effect>) {
        while let Some((id, to)) = self.next_move() {
            self.start_move(id, to, at, effects);
        }
    }

    pub(super) fn next_move(&self) -> Option<(RegionId, SlotId)> {
        self.next_drained().or_else(|| self.next_surplus())
    }

    /// Calls off whose target has not become warm in time, and followers that were to take another's place: they hold places that others could use.
    pub(super) fn call_off_slow_moves(&mut self, effects: &mut Vec<Effect>) -> bool {
        let Some(timeout_ms) = self.state.settings.as_ref().map(|settings| settings.warm_up_timeout_ms).filter(|ms| *ms > 0) else {
            return false;
        };
        let now_ms = self.state.clock.now_ms;
        let is_slow = |since_ms: u64| now_ms.saturating_sub(since_ms) > timeout_ms;
        let slow: Vec<RegionId> = self.index.warming.iter().take_while(|(since_ms, _)| is_slow(*since_ms)).map(|(_, id)| *id).collect();
        for id in &slow {
            self.change_region(*id, |region| {
                if let Some(moving) = region.moving.filter(|moving| !moving.ready && is_slow(moving.since_ms)) {
                    effects.push(Effect::MoveCalledOff { region: *id, to: moving.to });
                    region.stay();
                    region.cold_at.insert(moving.to.incarnation);
                }
                region.followers.retain(|follower| follower.replaces.is_none() || !is_slow(follower.since_ms));
            });
        }
        !slow.is_empty()
    }

    fn start_move(&mut self, id: RegionId, to: SlotId, at: Offset, effects: &mut Vec<Effect>) {
        let now_ms = self.state.clock.now_ms;
        self.change_region(id, |region| {
            let ready = region.followers.iter().any(|follower| follower.slot == to && follower.ready);
            region.moving = Some(Move { to, since: at, since_ms: now_ms, ready });
            if let Some(owner) = &mut region.owner {
                owner.release_since_ms = ready.then_some(now_ms);
                effects.push(Effect::MoveStarted { region: id, from: owner.slot, to });
            }
        });
    }

    /// A region of a draining member, and where it goes.
    fn next_drained(&self) -> Option<(RegionId, SlotId)> {
        self.index.receivers.first()?;
        let slots = self.index.draining.iter().flat_map(|member| self.index.slots_of(*member));
        slots.flat_map(|(_, slot)| &slot.movable).find_map(|id| Some((*id, self.drained_to(*id)?)))
    }

    /// To a follower that is ready, else to the least loaded, where no follower shares the rack. None: whoever could take it is busy.
    fn drained_to(&self, id: RegionId) -> Option<SlotId> {
        let region = self.state.regions.get(&id)?;
        let can_take = |member: &MemberIndex| !member.draining && member.arriving < ARRIVING_MAX;
        let warm = region.followers.iter().filter(|follower| follower.ready && can_take(&self.index.members[&follower.slot.incarnation]));
        let warm = warm
            .min_by_key(|follower| (self.index.members[&follower.slot.incarnation].load_key(), follower.slot))
            .map(|follower| follower.slot);
        warm.or_else(|| {
            let receivers = self.index.receivers.iter().map(|(_, member)| *member);
            let mut receivers = receivers.filter(|member| !self.was_cold(region, *member));
            let to = receivers.clone().find(|member| !self.crowds(id, *member)).or_else(|| receivers.next())?;
            Some(self.slot_for(to, id))
        })
    }

    /// A region of a member that has more than its share, for the one that has least.
    fn next_surplus(&self) -> Option<(RegionId, SlotId)> {
        let (_, to) = *self.index.receivers.first()?;
        let taker = &self.index.members[&to];
        if !is_below_share(taker, self.index.load, self.index.capacity) {
            return None;
        }
        // A giver that fell below its own share would be given to in turn: regions would move between those who have nothing to do with it.
        let found = self.surplus_for(to, taker, true).or_else(|| self.surplus_for(to, taker, false))?;
        Some((found, self.slot_for(to, found)))
    }

    /// The region did not become warm there, and there is one where that is not known.
    fn was_cold(&self, region: &Region, at: Incarnation) -> bool {
        let owner = region.owner.map(|owner| owner.slot.incarnation);
        let is_another = |member: Incarnation| Some(member) != owner && !region.cold_at.contains(&member);
        region.cold_at.contains(&at) && self.index.by_load.iter().any(|(_, member)| is_another(*member))
    }

    /// Of the fullest member that has something for the taker, and keeps its share if that is asked for.
    fn surplus_for(&self, to: Incarnation, taker: &MemberIndex, keeps_share: bool) -> Option<RegionId> {
        let (load, capacity) = (self.index.load, self.index.capacity);
        let givers = self.index.by_load.iter().rev().map(|(_, from)| (*from, &self.index.members[from]));
        givers.take_while(|(_, giver)| is_above_share(giver, load, capacity)).find_map(|(from, giver)| {
            self.region_for(from, to, |weight| {
                let evens = (taker.load + weight) * u64::from(giver.slots) < giver.load * u64::from(taker.slots);
                let left = u128::from(giver.load.saturating_sub(weight)) * u128::from(capacity);
                weight > 0 && evens && (!keeps_share || left >= u128::from(load) * u128::from(giver.slots))
            })
        })
    }

    /// The one that the taker follows already, else one that has no follower in the taker's rack, else any: from the giver's fullest slot.
    fn region_for(&self, from: Incarnation, to: Incarnation, fits: impl Fn(u64) -> bool) -> Option<RegionId> {
        let fits = |id: &RegionId| self.state.regions.get(id).is_some_and(|region| region.is_movable() && fits(region.weight()));
        let is_given = |id: &RegionId| {
            let owner = self.state.regions.get(id).and_then(|region| region.owner);
            owner.is_some_and(|owner| owner.slot.incarnation == from)
        };
        let is_warm = |id: &RegionId, slot: SlotId| {
            self.state.regions.get(id).is_some_and(|region| region.followers.iter().any(|follower| follower.slot == slot && follower.ready))
        };
        let followed = self.index.slots_of(to).flat_map(|(slot, index)| index.followed.iter().map(move |id| (*id, slot)));
        let warm = followed.filter(|(id, slot)| is_given(id) && is_warm(id, *slot) && fits(id)).map(|(id, _)| id).next();
        warm.or_else(|| {
            let mut slots: Vec<_> = self.index.slots_of(from).collect();
            slots.sort_by_key(|(slot, index)| (std::cmp::Reverse(index.load), *slot));
            let movable = || slots.iter().flat_map(|(_, index)| &index.movable).copied();
            movable().find(|id| fits(id) && !self.crowds(*id, to)).or_else(|| movable().find(|id| fits(id)))
        })
    }

    /// Whether the region would have its owner and a follower in one rack there.
    fn crowds(&self, id: RegionId, to: Incarnation) -> bool {
        let Some(rack) = self.rack_of(to) else { return false };
        let followers = self.state.regions.get(&id).map(|region| region.followers.as_slice()).unwrap_or_default();
        followers.iter().map(|follower| follower.slot.incarnation).any(|member| member != to && self.rack_of(member) == Some(rack))
    }

    /// Where on a member: the slot that follows the region already, else the one with least to do.
    fn slot_for(&self, member: Incarnation, id: RegionId) -> SlotId {
        let followers = self.state.regions.get(&id).map(|region| region.followers.as_slice()).unwrap_or_default();
        let following = followers.iter().map(|follower| follower.slot).find(|slot| slot.incarnation == member);
        following.unwrap_or_else(|| {
            let slots = self.index.slots_of(member);
            let least = slots.min_by_key(|(slot, index)| (index.load, index.follower_load, *slot)).map(|(slot, _)| slot);
            least.unwrap_or(SlotId { incarnation: member, slot: 0 })
        })
    }
}

fn is_above_share(member: &MemberIndex, load: u64, capacity: u64) -> bool {
    u128::from(member.load) * u128::from(capacity) > u128::from(load) * u128::from(member.slots)
}

fn is_below_share(member: &MemberIndex, load: u64, capacity: u64) -> bool {
    u128::from(member.load) * u128::from(capacity) < u128::from(load) * u128::from(member.slots)
}

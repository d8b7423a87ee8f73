//! What is derived from the state so that no rule has to walk over all regions or members: regions by slot, members by load and by the time they were
//! heard, regions without owner or with too few followers.
//!
//! Never changed alone: [`Cluster::change_region`](super::Cluster) takes a region out, changes it and puts it back. An index that is built from scratch equals
//! one that was kept up (`invariants` checks it).
//!
//! **Load** of a member is the weight of the regions that it owns once all moves under way are done, per slot, as an integer ([`load_key`]): followers
//! cost less and are spread by a figure of their own.

use super::digest::PieceDigests;
use super::record::SlotId;
use super::state::{Member, Region, WEIGHT_MAX};
use crate::ids::{Incarnation, RegionId};
use std::collections::{BTreeMap, BTreeSet};

/// Moves that may be under way to one member, so that a joiner warms up a few regions at a time instead of all of them slowly.
pub(super) const ARRIVING_MAX: u32 = 4;

/// What one slot of a live member has to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SlotIndex {
    pub owned: BTreeSet<RegionId>,
    /// Owned ones that a drain may take away; a rebalance takes only those of them that have not failed.
    pub movable: BTreeSet<RegionId>,
    /// As a follower or as the target of a move.
    pub followed: BTreeSet<RegionId>,
    pub load: u64,
    pub follower_load: u64,
}

/// What one live member has to do, all slots together.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MemberIndex {
    pub slots: u32,
    pub draining: bool,
    pub rack: Option<String>,
    pub load: u64,
    pub follower_load: u64,
    /// Moves under way to it, and followers that it builds to take another's place.
    pub arriving: u32,
}

impl MemberIndex {
    pub fn load_key(&self) -> u64 {
        load_key(self.load, self.slots)
    }

    /// Its load if it were given one more stateful region: what counts for whom to give one, where workers differ in slots.
    pub fn next_key(&self) -> u64 {
        next_load_key(self.load, self.slots)
    }

    pub fn total_key(&self) -> u64 {
        load_key(self.load + self.follower_load, self.slots)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Index {
    pub digests: PieceDigests,
    pub slots: BTreeMap<SlotId, SlotIndex>,
    pub members: BTreeMap<Incarnation, MemberIndex>,
    pub workers: BTreeMap<String, Incarnation>,
    /// Members by the time they were heard: the first one expires first.
    pub heard: BTreeSet<(u64, Incarnation)>,
    /// Regions that their owner was asked to release, by the time it was asked.
    pub releasing: BTreeSet<(u64, RegionId)>,
    /// Regions for which somebody is to become warm, by the time that began.
    pub warming: BTreeSet<(u64, RegionId)>,
    /// Members that are not draining, by load.
    pub by_load: BTreeSet<(u64, Incarnation)>,
    /// The same, by the load that they would have with one region more: who is first is given the next one.
    pub by_next_load: BTreeSet<(u64, Incarnation)>,
    /// Of these the ones to which another move may be started.
    pub receivers: BTreeSet<(u64, Incarnation)>,
    pub draining: BTreeSet<Incarnation>,
    /// Per rack, members by draining and total load: where followers go.
    pub by_total_load: BTreeMap<Option<String>, BTreeSet<(bool, u64, Incarnation)>>,
    pub load: u64,
    /// Slots of members that are not draining.
    pub capacity: u64,
    pub orphans: BTreeSet<RegionId>,
    pub quarantined: BTreeSet<RegionId>,
    /// Those of which a join forgets what they did, or where they did not become warm.
    pub failed: BTreeSet<RegionId>,
    pub unfinished: usize,
    /// Source regions of which something can still come.
    pub open_sources: usize,
    /// Regions that might want a follower, by how many they have.
    pub by_followers: BTreeSet<(usize, RegionId)>,
    /// By the racks that they are in, regions of which two workers share a rack: a follower of each goes to another rack if there is one.
    pub crowded: BTreeMap<BTreeSet<String>, BTreeSet<RegionId>>,
    /// Regions per slot that is still to be fenced.
    pub unfenced: BTreeMap<SlotId, BTreeSet<RegionId>>,
}

/// Load per slot as an integer: 720,720 divides by every number of slots up to 16, so rounding decides nothing there.
pub(super) fn load_key(load: u64, slots: u32) -> u64 {
    load.saturating_mul(720_720) / u64::from(slots.max(1))
}

pub(super) fn next_load_key(load: u64, slots: u32) -> u64 {
    load_key(load.saturating_add(WEIGHT_MAX), slots)
}

impl Index {
    pub fn add_member(&mut self, member: &Member) {
        let incarnation = member.incarnation;
        for slot in 0..member.slots {
            self.slots.insert(SlotId { incarnation, slot }, SlotIndex::default());
        }
        let index = MemberIndex {
            slots: member.slots,
            draining: member.draining,
            rack: member.rack.clone(),
            load: 0,
            follower_load: 0,
            arriving: 0,
        };
        self.enter(incarnation, &index);
        self.members.insert(incarnation, index);
        self.workers.insert(member.worker.clone(), incarnation);
        self.heard.insert((member.heard_ms, incarnation));
    }

    /// The member holds nothing any more.
    pub fn remove_member(&mut self, member: &Member) {
        let incarnation = member.incarnation;
        if let Some(index) = self.members.remove(&incarnation) {
            self.leave(incarnation, &index);
        }
        for slot in 0..member.slots {
            self.slots.remove(&SlotId { incarnation, slot });
        }
        self.workers.remove(&member.worker);
        self.heard.remove(&(member.heard_ms, incarnation));
    }

    pub fn member_changed(&mut self, (heard_ms, draining): (u64, bool), member: &Member) {
        if heard_ms != member.heard_ms {
            self.heard.remove(&(heard_ms, member.incarnation));
            self.heard.insert((member.heard_ms, member.incarnation));
        }
        if draining != member.draining {
            self.reposition(member.incarnation, |index| index.draining = member.draining);
        }
    }

    /// Changes a member's figures and puts it in its new place in every order.
    fn reposition(&mut self, incarnation: Incarnation, change: impl FnOnce(&mut MemberIndex)) {
        let Some(mut index) = self.members.remove(&incarnation) else { return };
        self.leave(incarnation, &index);
        change(&mut index);
        self.enter(incarnation, &index);
        self.members.insert(incarnation, index);
    }

    fn enter(&mut self, incarnation: Incarnation, index: &MemberIndex) {
        let place = (index.next_key(), incarnation);
        if index.draining {
            self.draining.insert(incarnation);
        } else {
            self.by_load.insert((index.load_key(), incarnation));
            self.by_next_load.insert(place);
            self.capacity += u64::from(index.slots);
            if index.arriving < ARRIVING_MAX {
                self.receivers.insert(place);
            }
        }
        self.by_total_load.entry(index.rack.clone()).or_default().insert((index.draining, index.total_key(), incarnation));
    }

    fn leave(&mut self, incarnation: Incarnation, index: &MemberIndex) {
        let place = (index.next_key(), incarnation);
        if index.draining {
            self.draining.remove(&incarnation);
        } else {
            self.by_load.remove(&(index.load_key(), incarnation));
            self.by_next_load.remove(&place);
            self.capacity -= u64::from(index.slots);
            self.receivers.remove(&place);
        }
        if let Some(rack) = self.by_total_load.get_mut(&index.rack) {
            rack.remove(&(index.draining, index.total_key(), incarnation));
            if rack.is_empty() {
                self.by_total_load.remove(&index.rack);
            }
        }
    }

    pub fn add_region(&mut self, id: RegionId, region: &Region) {
        self.load += region.weight();
        if let Some(slot) = region.destination() {
            self.slots.entry(slot).or_default().load += region.weight();
            self.reposition(slot.incarnation, |member| {
                member.load += region.weight();
                member.arriving += u32::from(region.moving.is_some());
            });
        }
        for follower in &region.followers {
            let slot = self.slots.entry(follower.slot).or_default();
            slot.followed.insert(id);
            slot.follower_load += region.weight();
            self.reposition(follower.slot.incarnation, |member| {
                member.follower_load += region.weight();
                member.arriving += u32::from(follower.replaces.is_some());
            });
        }
        if let Some(moving) = region.moving {
            self.slots.entry(moving.to).or_default().followed.insert(id);
        }
        if let Some(owner) = region.owner {
            let slot = self.slots.entry(owner.slot).or_default();
            slot.owned.insert(id);
            if region.may_leave() {
                slot.movable.insert(id);
            }
            if let Some(since_ms) = owner.release_since_ms {
                self.releasing.insert((since_ms, id));
            }
            if !region.finished && !region.is_deadly() {
                self.by_followers.insert((region.follower_count(), id));
            }
        }
        self.warming.extend(region.warming_since_ms().map(|since_ms| (since_ms, id)));
        if let Some(racks) = self.crowded_racks(region) {
            self.crowded.entry(racks).or_default().insert(id);
        }
        for slot in &region.must_fence {
            self.unfenced.entry(*slot).or_default().insert(id);
        }
        self.count_region(id, region);
    }

    fn count_region(&mut self, id: RegionId, region: &Region) {
        if region.owner.is_none() && region.quarantined.is_none() {
            self.orphans.insert(id);
        }
        if region.quarantined.is_some() {
            self.quarantined.insert(id);
        }
        if region.failures > 0 || region.is_deadly() || region.quarantined.is_some() || !region.cold_at.is_empty() {
            self.failed.insert(id);
        }
        self.unfinished += usize::from(!region.finished);
        self.open_sources += usize::from(is_open_source(region));
    }

    /// Takes out exactly what [`Index::add_region`] put in.
    pub fn remove_region(&mut self, id: RegionId, region: &Region) {
        self.load -= region.weight();
        if let Some(slot) = region.destination() {
            self.change_slot(slot, |slot| slot.load -= region.weight());
            self.reposition(slot.incarnation, |member| {
                member.load -= region.weight();
                member.arriving -= u32::from(region.moving.is_some());
            });
        }
        for follower in &region.followers {
            self.change_slot(follower.slot, |slot| {
                slot.followed.remove(&id);
                slot.follower_load -= region.weight();
            });
            self.reposition(follower.slot.incarnation, |member| {
                member.follower_load -= region.weight();
                member.arriving -= u32::from(follower.replaces.is_some());
            });
        }
        if let Some(moving) = region.moving {
            self.change_slot(moving.to, |slot| {
                slot.followed.remove(&id);
            });
        }
        if let Some(owner) = region.owner {
            self.change_slot(owner.slot, |slot| {
                slot.owned.remove(&id);
                slot.movable.remove(&id);
            });
            if let Some(since_ms) = owner.release_since_ms {
                self.releasing.remove(&(since_ms, id));
            }
            self.by_followers.remove(&(region.follower_count(), id));
        }
        if let Some(since_ms) = region.warming_since_ms() {
            self.warming.remove(&(since_ms, id));
        }
        if let Some(racks) = self.crowded_racks(region)
            && let Some(regions) = self.crowded.get_mut(&racks)
        {
            regions.remove(&id);
            if regions.is_empty() {
                self.crowded.remove(&racks);
            }
        }
        for slot in &region.must_fence {
            if let Some(regions) = self.unfenced.get_mut(slot) {
                regions.remove(&id);
                if regions.is_empty() {
                    self.unfenced.remove(slot);
                }
            }
        }
        self.orphans.remove(&id);
        self.quarantined.remove(&id);
        self.failed.remove(&id);
        self.unfinished -= usize::from(!region.finished);
        self.open_sources -= usize::from(is_open_source(region));
    }

    /// The racks that a region is in, if two of its workers share one and nothing of it is under way. Members keep their rack, so what is put in is what
    /// is taken out.
    fn crowded_racks(&self, region: &Region) -> Option<BTreeSet<String>> {
        let stays = region.finished || region.is_deadly() || !region.is_settled();
        let owner = region.owner.filter(|_| !region.followers.is_empty() && !stays)?;
        let slots = std::iter::once(owner.slot).chain(region.followers.iter().map(|follower| follower.slot));
        let (mut racks, mut is_crowded) = (BTreeSet::new(), false);
        for rack in slots.filter_map(|slot| self.members.get(&slot.incarnation)?.rack.as_deref()) {
            is_crowded |= !racks.insert(rack);
        }
        is_crowded.then(|| racks.into_iter().map(str::to_string).collect())
    }

    fn change_slot(&mut self, slot: SlotId, change: impl FnOnce(&mut SlotIndex)) {
        if let Some(index) = self.slots.get_mut(&slot) {
            change(index);
        }
    }

    /// All regions that a member owns, follows or is about to get.
    pub fn regions_of(&self, incarnation: Incarnation) -> BTreeSet<RegionId> {
        self.slots_of(incarnation).flat_map(|(_, slot)| slot.owned.iter().chain(&slot.followed).copied()).collect()
    }

    pub fn slots_of(&self, incarnation: Incarnation) -> impl Iterator<Item = (SlotId, &SlotIndex)> {
        let first = SlotId { incarnation, slot: 0 };
        let last = SlotId { incarnation, slot: u32::MAX };
        self.slots.range(first..=last).map(|(slot, index)| (*slot, index))
    }

    pub fn has_unfenced(&self, incarnation: Incarnation) -> bool {
        let first = SlotId { incarnation, slot: 0 };
        let last = SlotId { incarnation, slot: u32::MAX };
        self.unfenced.range(first..=last).next().is_some()
    }
}

fn is_open_source(region: &Region) -> bool {
    region.is_source && !region.finished && region.quarantined.is_none()
}

//! Who fences whom.
//!
//! A slot that is gone may still have a transaction open, or sleep and wake up in the middle of one: until its producer is fenced, nobody may take
//! the changelog's end for the end (O-1). Any live member may fence and its word counts, but if all did, they would be in each other's way at the broker;
//! so one of them is designated, and when that one goes, another one is, by the same function of the state.
//!
//! The designated fencer is the member that took over most of the slot's regions: it is the one that waits. It also keeps a fencer connected in
//! advance ([`Cluster::may_have_to_fence`]): to make one takes half a second, to fire it 35 ms.

use super::Cluster;
use super::assign::Placement;
use super::record::SlotId;
use super::state::{Loss, Why};
use crate::ids::{Incarnation, RegionId};
use std::collections::BTreeMap;

impl Cluster {
    /// Gone slots that this worker has to fence now, to say so with `fenced` then.
    pub fn to_fence(&self, incarnation: Incarnation) -> Vec<SlotId> {
        self.index.unfenced.keys().copied().filter(|slot| self.fencer(*slot) == Some(incarnation)).collect()
    }

    /// All slots that are gone and not fenced, with their designated fencers.
    pub fn unfenced(&self) -> impl Iterator<Item = (SlotId, Option<Incarnation>)> {
        self.index.unfenced.keys().map(|slot| (*slot, self.fencer(*slot)))
    }

    fn fencer(&self, slot: SlotId) -> Option<Incarnation> {
        let regions = self.index.unfenced.get(&slot).into_iter().flatten();
        let owners = regions.filter_map(|id| self.state.regions.get(id)?.owner.map(|owner| owner.slot.incarnation));
        designate(slot, owners, self.state.members.keys().copied())
    }

    /// Live slots of others that this worker would have to fence if their worker were expired by the next record: it keeps fencers connected for them.
    pub fn may_have_to_fence(&self, incarnation: Incarnation) -> Vec<SlotId> {
        let others = self.state.members.keys().filter(|other| **other != incarnation);
        others.flat_map(|other| self.fencers_if_gone(*other)).filter(|(_, fencer)| *fencer == incarnation).map(|(slot, _)| slot).collect()
    }

    fn fencers_if_gone(&self, gone: Incarnation) -> Vec<(SlotId, Incarnation)> {
        let owned = self.index.slots_of(gone).flat_map(|(slot, index)| index.owned.iter().map(move |id| (*id, slot)));
        // Orphans are placed in the order of their ids, whichever slot they came from.
        let owned: BTreeMap<RegionId, SlotId> = owned.collect();
        let mut placement = Placement::without(&self.state, &self.index, gone);
        let mut heirs: BTreeMap<SlotId, Vec<Incarnation>> = BTreeMap::new();
        for (id, from) in owned {
            let Some(region) = self.state.regions.get(&id) else { continue };
            let heirs = heirs.entry(from).or_default();
            // One that is deadly is quarantined: it has no heir.
            if !region.is_deadly() {
                let heir = placement.owner_for(region, Some(Loss { from, why: Why::Expired }));
                heirs.extend(heir.map(|slot| slot.incarnation));
            }
        }
        let survivors = || self.state.members.keys().copied().filter(|member| *member != gone);
        heirs.into_iter().filter_map(|(slot, heirs)| Some((slot, designate(slot, heirs.into_iter(), survivors())?))).collect()
    }
}

/// Who took over most of the slot's regions; where nobody did (they are quarantined), the next live member after the slot's in ring order.
fn designate(
    slot: SlotId,
    heirs: impl Iterator<Item = Incarnation>,
    live: impl Iterator<Item = Incarnation> + Clone,
) -> Option<Incarnation> {
    let mut counts: BTreeMap<Incarnation, usize> = BTreeMap::new();
    for heir in heirs {
        *counts.entry(heir).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(heir, count)| (*count, std::cmp::Reverse(*heir))).map(|(heir, _)| heir);
    most.or_else(|| live.clone().find(|member| *member > slot.incarnation)).or_else(|| live.clone().next())
}

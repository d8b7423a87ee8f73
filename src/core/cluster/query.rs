//! What a worker asks the state.
//!
//! A worker acts on the state, never on effects: it compares what it does with what it should do whenever [`Cluster::version`] has moved. So it does not
//! matter whether it read the records one by one or joined from a snapshot.

use super::Cluster;
use super::record::{Genesis, Settings, SlotId};
use super::state::{Member, Region, Standing, Takeover};
use crate::ids::{Digest, Incarnation, Offset, RegionId};

/// One record as it lies in the log.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub offset: Offset,
    /// Milliseconds since 1970 by the broker's clock. None: the record has no LogAppendTime.
    pub append_time_ms: Option<i64>,
    pub payload: &'a [u8],
}

/// What a slot has to do with a region that it owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    pub region: RegionId,
    pub assignment: Offset,
    /// An earlier owner may still commit: read, but don't look for the end and don't begin.
    pub fences_open: bool,
    /// Stop at the next epoch, then write `released`.
    pub release: bool,
}

impl Cluster {
    /// Offset of the last applied record.
    pub fn applied(&self) -> Option<Offset> {
        self.state.applied
    }

    /// Of all that decides: equal at equal offsets, on every worker (C-1).
    pub fn digest(&self) -> Digest {
        self.index.digests.sum()
    }

    /// Moves whenever anything changed that a worker acts on: assignment, fences, standing, drain, finished, quarantine. Not with heartbeats,
    /// reports, confirms and checkpoints.
    pub fn version(&self) -> u64 {
        self.state.version
    }

    pub fn log_clock_ms(&self) -> u64 {
        self.state.clock.now_ms
    }

    /// Since 1970, by the clocks of the brokers; goes on when one of them is set back. None: no record had a LogAppendTime.
    pub fn broker_clock_ms(&self) -> Option<i64> {
        self.state.clock.broker_ms()
    }

    /// Everything is where it should be: every region is with an owner that nobody has to be fenced for, nothing moves, and no move is wanted or put off.
    pub fn is_at_rest(&self) -> bool {
        let is_put_off = self.state.starts_at_ms.is_some() || self.state.balances_at_ms.is_some();
        let is_on_its_way = self.index.members.values().any(|member| member.arriving > 0);
        let is_nobodys = !self.index.orphans.is_empty() || !self.index.unfenced.is_empty();
        !is_put_off && !is_on_its_way && !is_nobodys && self.next_move().is_none() && self.next_follower_move().is_none()
    }

    /// A move is wanted, and neither one under way nor time will start it. Must not be.
    pub(super) fn is_forgetful(&self) -> bool {
        let will_be_looked_at = self.state.starts_at_ms.is_some() || self.state.balances_at_ms.is_some();
        let is_wanted = self.next_move().is_some() || self.next_follower_move().is_some();
        !will_be_looked_at && is_wanted && self.index.members.values().all(|member| member.arriving == 0)
    }

    /// Until then, by the log clock, regions are not given away: the workers that are expected have not all joined.
    pub fn starts_at_ms(&self) -> Option<u64> {
        self.state.starts_at_ms
    }

    /// When loads are evened out, by the log clock. None: nothing was put off.
    pub fn balances_at_ms(&self) -> Option<u64> {
        self.state.balances_at_ms
    }

    pub fn genesis(&self) -> Option<&Genesis> {
        self.state.genesis.as_ref()
    }

    /// Those in force: of the worker that last found nobody else alive.
    pub fn settings(&self) -> Option<&Settings> {
        self.state.settings.as_ref()
    }

    pub fn level(&self) -> u32 {
        self.state.membership.level
    }

    /// The level that the worker with the smallest incarnation may propose with `raise_level`: all live members know it. None: nothing to do.
    pub fn may_raise_level(&self, incarnation: Incarnation) -> Option<u32> {
        let known_by_all = self.state.members.values().map(|member| member.level).min()?;
        (self.is_first(incarnation) && known_by_all > self.level()).then_some(known_by_all)
    }

    /// Live members, by incarnation.
    pub fn members(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.state.members.values()
    }

    pub fn member(&self, incarnation: Incarnation) -> Option<&Member> {
        self.state.members.get(&incarnation)
    }

    /// What the worker is or was called; None: it is not remembered.
    pub fn worker_name(&self, incarnation: Incarnation) -> Option<&str> {
        let live = self.state.members.get(&incarnation).map(|member| &member.worker);
        live.or_else(|| self.state.gone.get(&incarnation).map(|gone| &gone.worker)).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Whether this live member has the smallest incarnation: it does what one of them has to do.
    pub fn is_first(&self, incarnation: Incarnation) -> bool {
        self.state.members.first_key_value().is_some_and(|(first, _)| *first == incarnation)
    }

    pub fn standing(&self, incarnation: Incarnation) -> Standing {
        if self.state.members.contains_key(&incarnation) {
            return Standing::Live;
        }
        match self.state.gone.get(&incarnation) {
            Some(gone) => gone.standing.clone(),
            None if Some(incarnation) <= self.state.membership.forgotten => Standing::Refused(FORGOTTEN.into()),
            None => Standing::Unknown,
        }
    }

    /// As [`standing`](Self::standing), for a worker that has just written `joined` with this nonce: refused where the incarnation is somebody else's.
    pub fn standing_of(&self, incarnation: Incarnation, nonce: u64) -> Standing {
        let holder = self.state.members.get(&incarnation).map(|member| member.nonce);
        match holder.or_else(|| self.state.gone.get(&incarnation).map(|gone| gone.nonce)) {
            Some(holder) if holder != nonce => Standing::Refused(TAKEN.into()),
            _ => self.standing(incarnation),
        }
    }

    /// Ever seen in a `joined`: a joiner takes a larger one.
    pub fn highest_incarnation(&self) -> Option<Incarnation> {
        self.state.membership.highest
    }

    pub fn regions(&self) -> impl ExactSizeIterator<Item = (RegionId, &Region)> {
        self.state.regions.iter().map(|(id, region)| (*id, region))
    }

    pub fn region(&self, id: RegionId) -> Option<&Region> {
        self.state.regions.get(&id)
    }

    /// What this slot owns: it steps, seals and commits for them once `fences_open` is false.
    pub fn owned(&self, slot: SlotId) -> Vec<Owned> {
        let regions = self.index.slots.get(&slot).into_iter().flat_map(|index| &index.owned);
        regions
            .filter_map(|id| {
                let region = self.state.regions.get(id)?;
                let owner = region.owner?;
                Some(Owned {
                    region: *id,
                    assignment: owner.assignment,
                    fences_open: !region.must_fence.is_empty(),
                    release: owner.release_since_ms.is_some(),
                })
            })
            .collect()
    }

    /// Whether this member owns something that others can take over from it: worth waiting for before it leaves. What is finished stays with it.
    pub fn has_to_hand_over(&self, incarnation: Incarnation) -> bool {
        let is_unfinished = |id: &RegionId| self.state.regions.get(id).is_some_and(|region| !region.finished);
        let takers = self.state.members.values().any(|member| member.incarnation != incarnation && !member.draining);
        takers && self.index.slots_of(incarnation).any(|(_, slot)| slot.owned.iter().any(is_unfinished))
    }

    /// What this slot keeps warm: as a follower, or as the target of a move.
    pub fn followed(&self, slot: SlotId) -> Vec<RegionId> {
        self.index.slots.get(&slot).map(|index| index.followed.iter().copied().collect()).unwrap_or_default()
    }

    /// There are regions, and all of them are finished.
    pub fn all_finished(&self) -> bool {
        !self.state.regions.is_empty() && self.index.unfinished == 0
    }

    /// Quarantined regions with the reasons.
    pub fn quarantined(&self) -> Vec<(RegionId, String)> {
        let reason = |id: &RegionId| self.state.regions.get(id).and_then(|region| region.quarantined.clone());
        self.index.quarantined.iter().filter_map(|id| Some((*id, reason(id)?))).collect()
    }

    /// Nothing more can come: a region is quarantined, and the sources and all regions up to its stage are finished or quarantined. Stages are numbered
    /// upstream first: those before it do not depend on it, those behind it may wait for it for ever.
    pub fn is_hopeless(&self) -> bool {
        let Some(first) = self.index.quarantined.first().filter(|_| self.index.open_sources == 0) else { return false };
        let last_of_stage = RegionId { stage: first.stage, partition: u32::MAX };
        self.state.regions.range(..=last_of_stage).all(|(_, region)| region.finished || region.quarantined.is_some())
    }

    /// The latest report of each live member.
    pub fn reports(&self) -> impl Iterator<Item = (Incarnation, &str)> {
        self.observed.reports()
    }

    /// Records that were none of ours.
    pub fn malformed(&self) -> u64 {
        self.state.malformed
    }

    /// Records that were not valid any more, or from somebody who may not say so.
    pub fn ignored(&self) -> u64 {
        self.state.ignored
    }

    /// The last changes of owners, the oldest first.
    pub fn takeovers(&self) -> impl ExactSizeIterator<Item = &Takeover> {
        self.state.takeovers.iter()
    }
}

pub(super) const FORGOTTEN: &str = "the incarnation is older than what the log remembers";
pub(super) const TAKEN: &str = "another worker has this incarnation";

//! All that decides, and the few ways in which it changes.
//!
//! Members and regions are changed only through [`Cluster::change_member`] and [`Cluster::change_region`], which keep the index and the digest in step: a rule in
//! `apply` can't forget one of them.

use super::Cluster;
use super::apply::{FAILURES_APART_MS_MAX, FAILURES_MAX};
use super::clock::LogClock;
use super::digest::Piece;
use super::record::{DiedIn, Genesis, Settings, SlotId};
use crate::ids::{Epoch, Incarnation, Offset, PlanFingerprint, RegionId};
use crate::ports::checkpoint::Durability;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Gone members that are remembered though nothing of them is left to fence.
pub(super) const GONE_MAX: usize = 1_000;
/// Take-overs that are remembered for people.
pub(super) const TAKEOVERS_MAX: usize = 32;

/// What a stateful region counts for when load is spread.
pub(super) const WEIGHT_MAX: u64 = 2;

/// Everything that decides. Its JSON text is the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    pub applied: Option<Offset>,
    pub clock: LogClock,
    pub membership: Membership,
    pub genesis: Option<Genesis>,
    pub settings: Option<Settings>,
    /// Some: the first of several workers has joined, and regions are given away at this log clock or when all are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_at_ms: Option<u64>,
    /// Some: loads are evened out at this log clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balances_at_ms: Option<u64>,
    pub members: BTreeMap<Incarnation, Member>,
    pub gone: BTreeMap<Incarnation, Gone>,
    #[serde(with = "pairs")]
    pub regions: BTreeMap<RegionId, Region>,
    /// Counts changes of what workers act on; in no digest.
    pub version: u64,
    /// For people; in no digest.
    pub malformed: u64,
    pub ignored: u64,
    pub takeovers: VecDeque<Takeover>,
}

/// What is said of all members together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Membership {
    pub level: u32,
    /// Ever seen, refused ones too.
    pub highest: Option<Incarnation>,
    /// The highest one of which nothing is remembered: nobody may join with it or a smaller one, since it may have been used.
    pub forgotten: Option<Incarnation>,
}

impl Default for Membership {
    fn default() -> Self {
        Membership { level: 1, highest: None, forgotten: None }
    }
}

/// A live worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub incarnation: Incarnation,
    pub nonce: u64,
    /// Stable across restarts.
    pub worker: String,
    pub slots: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// The highest feature level that its binary knows.
    pub level: u32,
    pub plan: PlanFingerprint,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Offset of its `joined` record.
    pub joined: Offset,
    /// When its latest record was applied, by the log clock.
    pub heard_ms: u64,
    /// Its regions move away; it may follow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}

/// What is left of a worker that is no member any more, or was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Gone {
    pub nonce: u64,
    /// Its name, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub worker: String,
    /// Of the record with which it went.
    pub at: Offset,
    pub standing: Standing,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
}

/// What the log says of an incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Its `joined` was never read.
    Unknown,
    Live,
    /// By a newer incarnation of the same worker.
    Replaced(Incarnation),
    /// It was not heard in time, or did not release a region in time.
    Expired,
    Left,
    /// Its `joined` was not accepted, with the reason for people.
    Refused(String),
}

/// One region as the log sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Region {
    pub stateful: bool,
    pub is_source: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Whom and why it lost while it has no owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Loss>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Move>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub followers: Vec<Follower>,
    /// Every slot that held the region and was neither fenced nor validly released it. The owner waits until this is empty (O-1).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub must_fence: BTreeSet<SlotId>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub finished: bool,
    /// Its changelog is not empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub begun: bool,
    /// It has read of its exchange partition, so that is not empty either.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reads: bool,
    /// It failed too often or for good, with the reason; has no owner until the next join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<String>,
    /// Since the last join, or since there was none for ten minutes: what counts for the quarantine.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// Log clock of the latest of them.
    #[serde(default, skip_serializing_if = "is_zero_ms")]
    pub failed_ms: u64,
    /// Ever, for people.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures_ever: u32,
    /// Of processes that worked on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deaths: Option<Deaths>,
    /// Where it was to move and did not become warm in time. Until it does, has another owner, or somebody joins, a drain takes it elsewhere.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub cold_at: BTreeSet<Incarnation>,
    /// The newest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<(Epoch, Durability)>,
}

/// Deaths at one and the same place: of a region that gets on between two of them, whoever kills its processes, only the last one is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deaths {
    pub last: DiedIn,
    pub count: u32,
    /// Log clock of the `joined` that told of the latest one.
    pub at_ms: u64,
    /// It was deadly, and nobody who could be was named beside it. Work that is not noted may still have been at fault.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alone: bool,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

pub(super) fn is_zero_ms(ms: &u64) -> bool {
    *ms == 0
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub slot: SlotId,
    /// Offset of the record that made it the owner: `released`, `failed` and `finished` have to name it.
    pub assignment: Offset,
    /// Some: it is asked to release the region, since this log clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_since_ms: Option<u64>,
}

/// A planned change of owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub to: SlotId,
    pub since: Offset,
    /// Log clock of that record.
    #[serde(default)]
    pub since_ms: u64,
    /// The target is warm, and the owner is asked to release.
    pub ready: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follower {
    pub slot: SlotId,
    /// It has caught up with the changelog.
    pub ready: bool,
    /// Some: when it is ready, it takes the place of this other follower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<SlotId>,
    /// Of one that is to take another's place: since when, by the log clock.
    #[serde(default, skip_serializing_if = "is_zero_ms")]
    pub since_ms: u64,
}

/// How a region came to be without an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    pub from: SlotId,
    pub why: Why,
}

/// Why a region changed its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    Expired,
    Left,
    Replaced,
    /// Handed over on purpose.
    Moved,
    Failed,
}

/// One change of owner, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeover {
    pub region: RegionId,
    pub from: SlotId,
    pub to: SlotId,
    pub why: Why,
    /// Of the record that made `to` the owner.
    pub offset: Offset,
    pub log_clock_ms: u64,
}

impl Follower {
    pub(super) fn new(slot: SlotId, ready: bool) -> Follower {
        Follower { slot, ready, replaces: None, since_ms: 0 }
    }
}

impl Region {
    pub(super) fn new(stateful: bool, is_source: bool) -> Self {
        Region {
            stateful,
            is_source,
            owner: None,
            lost: None,
            moving: None,
            followers: Vec::new(),
            must_fence: BTreeSet::new(),
            finished: false,
            begun: false,
            reads: false,
            quarantined: None,
            failures: 0,
            failed_ms: 0,
            failures_ever: 0,
            deaths: None,
            cold_at: BTreeSet::new(),
            checkpoint: None,
        }
    }

    /// What it counts for when load is spread. A finished region costs nothing.
    pub(super) fn weight(&self) -> u64 {
        match (self.finished, self.stateful) {
            (true, _) => 0,
            (false, true) => WEIGHT_MAX,
            (false, false) => 1,
        }
    }

    /// The slot that owns it once the move under way is done.
    pub(super) fn destination(&self) -> Option<SlotId> {
        let owner = self.owner?;
        Some(self.moving.map_or(owner.slot, |moving| moving.to))
    }

    /// Whether it can be moved away from its owner, as a drain does with all that can.
    pub(super) fn may_leave(&self) -> bool {
        self.owner.is_some() && self.moving.is_none() && !self.finished && self.must_fence.is_empty()
    }

    /// Whether a rebalance may take it from its owner. One that has failed stays where it works, until the next join.
    pub(super) fn is_movable(&self) -> bool {
        self.may_leave() && self.failures == 0 && !self.is_deadly()
    }

    /// A process has died of it. Returns how often that was at this place, one soon after the other.
    pub(super) fn died(&mut self, death: DiedIn, now_ms: u64) -> u32 {
        let is_soon = |deaths: &Deaths| now_ms.saturating_sub(deaths.at_ms) <= FAILURES_APART_MS_MAX;
        let before = self.deaths.filter(|deaths| deaths.last.is_same_place(&death) && is_soon(deaths));
        let count = before.map_or(0, |deaths| deaths.count).saturating_add(1);
        self.deaths = Some(Deaths { last: death, count, at_ms: now_ms, alone: before.is_some_and(|deaths| deaths.alone) });
        if count > 1 {
            // The first one may have had any reason.
            self.failures_ever = self.failures_ever.saturating_add(1);
        }
        count
    }

    /// Its processes have died so often at one place that nobody is to try it, or to follow it, who does not do so already.
    pub(super) fn is_deadly(&self) -> bool {
        self.deaths.is_some_and(|deaths| deaths.count >= FAILURES_MAX)
    }

    /// It is deadly, but was never named without another that could be: it may have been at work beside the one that kills.
    pub(super) fn is_doubtful(&self) -> bool {
        self.is_deadly() && self.deaths.is_some_and(|deaths| !deaths.alone)
    }

    /// Its deaths are forgotten: it has an owner that got on with it, or would have died of it by now.
    pub(super) fn outlived_deaths(&self, now_ms: u64) -> bool {
        let is_long_ago = self.deaths.is_some_and(|deaths| now_ms.saturating_sub(deaths.at_ms) > FAILURES_APART_MS_MAX);
        self.is_deadly() && is_long_ago && self.quarantined.is_none()
    }

    /// Why it is quarantined now that it has lost its owner: it is deadly, and nobody who was alive gave it up.
    pub(super) fn killed_by_it(&self) -> Option<String> {
        let Deaths { last: DiedIn { epoch, .. }, count, .. } = self.deaths.filter(|_| self.is_deadly())?;
        let is_owner_gone = self.lost.is_some_and(|lost| matches!(lost.why, Why::Expired | Why::Replaced));
        is_owner_gone.then(|| format!("its process died in epoch {epoch}, {count} times"))
    }

    /// Nobody is on the way to own it or to take a follower's place.
    pub(super) fn is_settled(&self) -> bool {
        self.moving.is_none() && self.followers.iter().all(|follower| follower.replaces.is_none())
    }

    /// Since when somebody is to become warm who holds a place: the target of a move, or a follower that is to replace another.
    pub(super) fn warming_since_ms(&self) -> Option<u64> {
        let moving = self.moving.filter(|moving| !moving.ready).map(|moving| moving.since_ms);
        let replacing = self.followers.iter().filter(|follower| follower.replaces.is_some()).map(|follower| follower.since_ms);
        moving.into_iter().chain(replacing).min()
    }

    /// Calls a planned move off: the owner keeps the region.
    pub(super) fn stay(&mut self) {
        self.moving = None;
        if let Some(owner) = &mut self.owner {
            owner.release_since_ms = None;
        }
    }

    /// Takes the owner away. A target that was about to become the owner counts as a follower.
    pub(super) fn lose_owner(&mut self, why: Why) {
        let Some(owner) = self.owner.take() else { return };
        self.lost = Some(Loss { from: owner.slot, why });
        if let Some(target) = self.moving.take() {
            match self.followers.iter_mut().find(|follower| follower.slot == target.to) {
                Some(follower) => follower.ready |= target.ready,
                None => self.followers.push(Follower::new(target.to, target.ready)),
            }
        }
    }

    /// Without those that are built to take another's place.
    pub(super) fn follower_count(&self) -> usize {
        self.followers.iter().filter(|follower| follower.replaces.is_none()).count()
    }

    pub(super) fn remove_follower(&mut self, slot: SlotId) {
        self.followers.retain(|follower| follower.slot != slot);
        for follower in &mut self.followers {
            follower.replaces = follower.replaces.filter(|replaced| *replaced != slot);
        }
    }
}

impl Cluster {
    /// Changes one region; the index, the digest and the version follow.
    pub(super) fn change_region(&mut self, id: RegionId, change: impl FnOnce(&mut Region)) {
        let Some(region) = self.state.regions.get_mut(&id) else { return };
        self.index.remove_region(id, region);
        change(region);
        self.index.add_region(id, region);
        self.index.digests.set(Piece::Region(id), region);
        self.state.version += 1;
    }

    /// Changes nothing that anybody waits for or that is indexed.
    pub(super) fn note_on_region(&mut self, id: RegionId, note: impl FnOnce(&mut Region)) {
        let Some(region) = self.state.regions.get_mut(&id) else { return };
        note(region);
        self.index.digests.set(Piece::Region(id), region);
    }

    pub(super) fn add_region(&mut self, id: RegionId, region: Region) {
        self.index.add_region(id, &region);
        self.index.digests.set(Piece::Region(id), &region);
        self.state.regions.insert(id, region);
    }

    /// Changes one member; index and digest follow.
    pub(super) fn change_member(&mut self, incarnation: Incarnation, change: impl FnOnce(&mut Member)) {
        let Some(member) = self.state.members.get_mut(&incarnation) else { return };
        let before = (member.heard_ms, member.draining);
        change(member);
        self.index.member_changed(before, member);
        self.index.digests.set(Piece::Member(incarnation), member);
    }

    pub(super) fn add_member(&mut self, member: Member) {
        self.index.add_member(&member);
        self.index.digests.set(Piece::Member(member.incarnation), &member);
        self.state.members.insert(member.incarnation, member);
        self.state.version += 1;
    }

    /// Takes a member out of all it has to do with and remembers what became of it. What it owned and did not release must be fenced.
    pub(super) fn remove_member(&mut self, incarnation: Incarnation, standing: Standing, why: Why) {
        for id in self.index.regions_of(incarnation) {
            self.change_region(id, |region| {
                if region.moving.is_some_and(|moving| moving.to.incarnation == incarnation) {
                    region.stay();
                }
                if let Some(owner) = region.owner.filter(|owner| owner.slot.incarnation == incarnation) {
                    region.lose_owner(why);
                    region.must_fence.insert(owner.slot);
                }
                let slots: Vec<SlotId> = region.followers.iter().map(|follower| follower.slot).collect();
                slots.into_iter().filter(|slot| slot.incarnation == incarnation).for_each(|slot| region.remove_follower(slot));
            });
        }
        let Some(member) = self.state.members.remove(&incarnation) else { return };
        self.index.remove_member(&member);
        self.index.digests.remove(Piece::Member(incarnation));
        self.observed.forget(incarnation);
        if let Some(suspension) = &mut self.state.clock.suspension
            && suspension.awaited.remove(&incarnation).is_some()
        {
            self.index.digests.remove(Piece::Awaited(incarnation));
        }
        let at = self.state.applied.unwrap_or_default();
        self.remember(incarnation, Gone { nonce: member.nonce, worker: member.worker, at, standing, rack: member.rack });
    }

    /// Keeps what became of an incarnation, and forgets the oldest of which nothing is left to fence.
    pub(super) fn remember(&mut self, incarnation: Incarnation, gone: Gone) {
        self.index.digests.set(Piece::Gone(incarnation), &gone);
        self.state.gone.insert(incarnation, gone);
        self.state.version += 1;
        let mut surplus = self.state.gone.len().saturating_sub(GONE_MAX);
        let index = &self.index;
        let mut forgotten = Vec::new();
        for old in self.state.gone.keys().copied() {
            if surplus == 0 {
                break;
            }
            if !index.has_unfenced(old) {
                forgotten.push(old);
                surplus -= 1;
            }
        }
        for old in forgotten {
            self.state.gone.remove(&old);
            self.index.digests.remove(Piece::Gone(old));
            self.state.membership.forgotten = self.state.membership.forgotten.max(Some(old));
        }
    }

    /// The digest of what is not a member or a region: cheap, so it is taken after every record.
    pub(super) fn digest_clock(&mut self) {
        let clock = &self.state.clock;
        // Who is awaited, and until when, are pieces of their own.
        let suspended = clock.suspension.as_ref().map(|_| true);
        let due = (self.state.starts_at_ms, self.state.balances_at_ms);
        let pieces = (clock.now_ms, clock.last_append_ms, suspended, due);
        match clock.behind_ms {
            0 => self.index.digests.set(Piece::Clock, &pieces),
            behind_ms => self.index.digests.set(Piece::Clock, &(pieces, behind_ms)),
        }
    }

    /// Index and digest of a state that came from a snapshot.
    pub(super) fn from_state(state: State) -> Cluster {
        let mut cluster = Cluster { state, ..Cluster::default() };
        let (state, index) = (&cluster.state, &mut cluster.index);
        for member in state.members.values() {
            index.add_member(member);
            index.digests.set(Piece::Member(member.incarnation), member);
        }
        for (id, region) in &state.regions {
            index.add_region(*id, region);
            index.digests.set(Piece::Region(*id), region);
        }
        for (incarnation, gone) in &state.gone {
            index.digests.set(Piece::Gone(*incarnation), gone);
        }
        for (incarnation, until_ms) in state.clock.suspension.iter().flat_map(|suspension| &suspension.awaited) {
            index.digests.set(Piece::Awaited(*incarnation), until_ms);
        }
        if let Some(genesis) = &state.genesis {
            index.digests.set(Piece::Genesis, genesis);
        }
        if let Some(settings) = &state.settings {
            index.digests.set(Piece::Settings, settings);
        }
        if state.applied.is_some() {
            index.digests.set(Piece::Membership, &state.membership);
            cluster.digest_clock();
        }
        cluster
    }
}

/// JSON has text keys only: a map by region is a list of pairs.
mod pairs {
    use super::{BTreeMap, Region, RegionId};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(regions: &BTreeMap<RegionId, Region>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(regions.iter())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<RegionId, Region>, D::Error> {
        Ok(Vec::<(RegionId, Region)>::deserialize(deserializer)?.into_iter().collect())
    }
}

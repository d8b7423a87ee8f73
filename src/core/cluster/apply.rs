//! What a record means.
//!
//! The order within one record is fixed: time passes → its sender counts as heard → who was silent for too long is expired → the record itself → who keeps a
//! region that it was asked for is expired → what is unsettled (orphans, followers, moves) is settled. So nobody counts as silent at its own record or as
//! keeping a region at the record that releases it, and a region that has lost its owner has a new one at the very record that says so.

use super::Cluster;
use super::digest::Piece;
use super::effect::Effect;
use super::query::Entry;
use super::record::{ControlRecord, Genesis, SlotId};
use super::state::{Follower, Region, Standing, Takeover, Why};
use crate::ids::{Epoch, Incarnation, Offset, RegionId, StageId};
use crate::ports::checkpoint::Durability;

/// A region that failed so often since the last join, each time within ten minutes of log clock after the time before, is quarantined; so is one that gets
/// no further because so many processes die of it.
pub const FAILURES_MAX: u32 = 5;
/// A failure that comes later than this, by the log clock, after the one before counts as the first again: what fails once in a month is not broken.
pub(super) const FAILURES_APART_MS_MAX: u64 = 10 * 60 * 1_000;
/// Of a job; a genesis with more is none of ours.
const REGIONS_MAX: u64 = 1 << 20;
const REASON_BYTES_MAX: usize = 1_024;

/// One record on its way through the fold.
pub(super) struct Turn {
    pub at: Offset,
    pub effects: Vec<Effect>,
    /// Somebody came or went, or a move ended: loads may be uneven.
    pub rebalance: bool,
}

/// Whether a record changed anything or could not be valid.
#[derive(PartialEq)]
pub(super) enum Verdict {
    Valid,
    Ignored,
    Malformed,
}

impl Verdict {
    fn valid_if(is_valid: bool) -> Verdict {
        if is_valid { Verdict::Valid } else { Verdict::Ignored }
    }
}

impl Cluster {
    /// Folds one record. Records that were applied already are passed over.
    pub fn apply(&mut self, entry: Entry<'_>) -> Vec<Effect> {
        if self.state.applied.is_some_and(|applied| entry.offset <= applied) {
            return Vec::new();
        }
        if self.state.applied.is_none() {
            self.index.digests.set(Piece::Membership, &self.state.membership);
        }
        self.state.applied = Some(entry.offset);
        self.observed.count_bytes(entry.payload.len());
        let mut turn = Turn { at: entry.offset, effects: Vec::new(), rebalance: false };
        let version = self.state.version;
        let record = serde_json::from_slice::<ControlRecord>(entry.payload).ok();
        self.pass_time(&entry, &mut turn);
        let sender = record.as_ref().and_then(ControlRecord::sender).filter(|sender| self.state.members.contains_key(sender));
        if let Some(sender) = sender {
            self.hear(sender);
        }
        self.expire_silent(&mut turn);
        match record.map_or(Verdict::Malformed, |record| self.take(record, &mut turn)) {
            Verdict::Valid => {}
            Verdict::Ignored => {
                self.state.ignored += 1;
                turn.effects.push(Effect::Ignored { offset: turn.at });
            }
            Verdict::Malformed => {
                self.state.malformed += 1;
                turn.effects.push(Effect::Malformed { offset: turn.at });
            }
        }
        self.expire_keepers(&mut turn);
        self.look_at_the_time(&mut turn);
        if self.state.version != version {
            self.settle(&mut turn);
            self.index.digests.set(Piece::Membership, &self.state.membership);
        }
        self.digest_clock();
        self.observe_own_digest();
        turn.effects
    }

    /// Loads may be uneven, but something else comes first.
    pub(super) fn balance_later(&mut self) {
        let delay_ms = self.state.settings.as_ref().map_or(0, |settings| settings.balance_delay_ms);
        self.state.balances_at_ms = Some(self.state.clock.now_ms.saturating_add(delay_ms));
    }

    fn take(&mut self, record: ControlRecord, turn: &mut Turn) -> Verdict {
        // Whoever is not a member has no say, except in order to become one.
        let is_from_stranger = record.sender().is_some_and(|sender| !self.state.members.contains_key(&sender));
        if is_from_stranger && !matches!(record, ControlRecord::Joined(_)) {
            return Verdict::Ignored;
        }
        match record {
            ControlRecord::Genesis(genesis) => self.fix_genesis(genesis, turn),
            ControlRecord::Joined(joined) => self.join(joined, turn),
            ControlRecord::Heartbeat { incarnation, at, digest } => {
                self.observed.compare(incarnation, at, digest, &mut turn.effects);
                Verdict::Valid
            }
            ControlRecord::Left { incarnation, clean } => {
                turn.effects.push(Effect::Left { incarnation });
                if clean {
                    self.release_all(incarnation);
                }
                self.remove_member(incarnation, Standing::Left, Why::Left);
                self.balance_later();
                Verdict::Valid
            }
            ControlRecord::Drain { worker, undo, incarnation } => self.drain(&worker, incarnation, !undo, turn),
            ControlRecord::Ready { incarnation, region, .. } => self.ready(incarnation, region, turn),
            ControlRecord::NotReady { incarnation, region, .. } => self.not_ready(incarnation, region),
            ControlRecord::Released { incarnation, region, assignment, .. } => self.release(incarnation, region, assignment, turn),
            ControlRecord::Failed { incarnation, region, assignment, reason, retry, .. } => {
                self.fail(incarnation, region, assignment, (reason, retry), turn)
            }
            ControlRecord::Finished { incarnation, region, assignment, .. } => self.finish(incarnation, region, assignment, turn),
            ControlRecord::Begun { incarnation, regions, reads } => self.begin(incarnation, &regions, reads),
            ControlRecord::Fenced { incarnation, slot } => self.fenced(incarnation, slot, turn),
            ControlRecord::Confirm { .. } => Verdict::Valid,
            ControlRecord::CheckpointDone { region, epoch, durability, .. } => self.checkpoint_done(region, (epoch, durability)),
            ControlRecord::Report { incarnation, report } => {
                self.observed.report(incarnation, report);
                Verdict::Valid
            }
            ControlRecord::RaiseLevel { level } => self.raise_level(level, turn),
            ControlRecord::Snapshot { incarnation, at, part, parts, text } => {
                self.observed.snapshot_part(incarnation, at, (part, parts), text, &mut turn.effects);
                Verdict::Valid
            }
        }
    }

    fn fix_genesis(&mut self, genesis: Genesis, turn: &mut Turn) -> Verdict {
        if self.state.genesis.is_some() {
            return Verdict::Ignored;
        }
        if genesis.stages.values().map(|stage| u64::from(stage.regions)).sum::<u64>() > REGIONS_MAX {
            return Verdict::Malformed;
        }
        for (stage, shape) in &genesis.stages {
            for partition in 0..shape.regions {
                self.add_region(RegionId { stage: StageId(*stage), partition }, Region::new(shape.stateful, shape.is_source));
            }
        }
        turn.effects.push(Effect::GenesisFixed { regions: self.state.regions.len() });
        self.index.digests.set(Piece::Genesis, &genesis);
        self.state.genesis = Some(genesis);
        self.state.version += 1;
        turn.rebalance = true;
        Verdict::Valid
    }

    fn drain(&mut self, worker: &str, meant: Option<Incarnation>, draining: bool, turn: &mut Turn) -> Verdict {
        let Some(incarnation) = self.index.workers.get(worker).copied() else { return Verdict::Ignored };
        let is_anothers = meant.is_some_and(|meant| meant != incarnation);
        if is_anothers || self.state.members.get(&incarnation).is_none_or(|member| member.draining == draining) {
            return Verdict::Ignored;
        }
        self.change_member(incarnation, |member| member.draining = draining);
        self.state.version += 1;
        turn.effects.push(if draining { Effect::DrainStarted { incarnation } } else { Effect::DrainUndone { incarnation } });
        // What was on its way to a worker that drains stays where it is; so does what was on its way from one that no longer does.
        for id in self.index.regions_of(incarnation) {
            let Some(region) = self.state.regions.get(&id) else { continue };
            let Some(moving) = region.moving else { continue };
            let is_to = moving.to.incarnation == incarnation;
            let is_called_off = if draining { is_to } else { !is_to && !moving.ready };
            if is_called_off {
                self.change_region(id, Region::stay);
                turn.effects.push(Effect::MoveCalledOff { region: id, to: moving.to });
            }
        }
        turn.rebalance = true;
        Verdict::Valid
    }

    /// A follower or a target has caught up. A target that is warm: now the owner is asked to release.
    fn ready(&mut self, incarnation: Incarnation, id: RegionId, turn: &mut Turn) -> Verdict {
        let Some(region) = self.state.regions.get(&id) else { return Verdict::Ignored };
        let is_new_follower = region.followers.iter().any(|follower| follower.slot.incarnation == incarnation && !follower.ready);
        let is_new_target = region.moving.is_some_and(|moving| moving.to.incarnation == incarnation && !moving.ready);
        if !is_new_follower && !is_new_target {
            return Verdict::Ignored;
        }
        let now_ms = self.state.clock.now_ms;
        let mut replaced = None;
        self.change_region(id, |region| {
            region.cold_at.remove(&incarnation);
            if let Some(follower) = region.followers.iter_mut().find(|follower| follower.slot.incarnation == incarnation) {
                follower.ready = true;
                replaced = follower.replaces.take();
            }
            if let Some(slot) = replaced {
                region.remove_follower(slot);
            }
            if let (true, Some(moving), Some(owner)) = (is_new_target, &mut region.moving, &mut region.owner) {
                moving.ready = true;
                owner.release_since_ms = Some(now_ms);
            }
        });
        turn.rebalance |= replaced.is_some();
        Verdict::Valid
    }

    /// A follower or a target is of no use for the moment. An owner that was asked to release for it goes on.
    fn not_ready(&mut self, incarnation: Incarnation, id: RegionId) -> Verdict {
        let Some(region) = self.state.regions.get(&id) else { return Verdict::Ignored };
        let was_follower = region.followers.iter().any(|follower| follower.slot.incarnation == incarnation && follower.ready);
        let was_target = region.moving.is_some_and(|moving| moving.to.incarnation == incarnation && moving.ready);
        if !was_follower && !was_target {
            return Verdict::Ignored;
        }
        self.change_region(id, |region| {
            for follower in region.followers.iter_mut().filter(|follower| follower.slot.incarnation == incarnation) {
                follower.ready = false;
            }
            if let (true, Some(moving), Some(owner)) = (was_target, &mut region.moving, &mut region.owner) {
                moving.ready = false;
                owner.release_since_ms = None;
            }
        });
        Verdict::Valid
    }

    /// The owner's own word for all that it owns: nothing of it is under way, so nothing has to be fenced.
    fn release_all(&mut self, incarnation: Incarnation) {
        for id in self.index.regions_of(incarnation) {
            if self.state.regions.get(&id).and_then(|region| region.owner).is_some_and(|owner| owner.slot.incarnation == incarnation) {
                self.change_region(id, |region| region.lose_owner(Why::Left));
            }
        }
    }

    fn is_owner(&self, incarnation: Incarnation, id: RegionId, assignment: Offset) -> bool {
        let owner = self.state.regions.get(&id).and_then(|region| region.owner);
        owner.is_some_and(|owner| owner.slot.incarnation == incarnation && owner.assignment == assignment)
    }

    fn release(&mut self, incarnation: Incarnation, id: RegionId, assignment: Offset, turn: &mut Turn) -> Verdict {
        if !self.is_owner(incarnation, id, assignment) {
            return Verdict::Ignored;
        }
        let Some(region) = self.state.regions.get(&id) else { return Verdict::Ignored };
        let (Some(owner), moving) = (region.owner, region.moving) else { return Verdict::Ignored };
        let followers_wanted = self.followers_wanted();
        turn.rebalance = true;
        let Some(moving) = moving else {
            // Nobody asked, or the target is gone meanwhile; but it has dropped the region.
            self.change_region(id, |region| region.lose_owner(Why::Moved));
            return Verdict::Valid;
        };
        self.give_region(id, moving.to, turn.at);
        self.change_region(id, |region| {
            // The warmest there is.
            if region.follower_count() < followers_wanted {
                region.followers.push(Follower::new(owner.slot, false));
            }
        });
        let log_clock_ms = self.state.clock.now_ms;
        self.keep_takeover(Takeover { region: id, from: owner.slot, to: moving.to, why: Why::Moved, offset: turn.at, log_clock_ms });
        turn.effects.push(Effect::Moved { region: id, from: owner.slot, to: moving.to });
        Verdict::Valid
    }

    fn fail(
        &mut self,
        incarnation: Incarnation,
        id: RegionId,
        assignment: Offset,
        (reason, retry): (String, bool),
        turn: &mut Turn,
    ) -> Verdict {
        if !self.is_owner(incarnation, id, assignment) {
            return Verdict::Ignored;
        }
        let reason = shortened(&reason).to_string();
        let now_ms = self.state.clock.now_ms;
        let mut failures = 0;
        self.balance_later();
        self.change_region(id, |region| {
            if now_ms.saturating_sub(region.failed_ms) > FAILURES_APART_MS_MAX {
                region.failures = 0;
            }
            region.failures += 1;
            region.failed_ms = now_ms;
            region.failures_ever = region.failures_ever.saturating_add(1);
            region.lose_owner(Why::Failed);
            failures = region.failures;
            if !retry || failures >= FAILURES_MAX {
                region.quarantined = Some(reason.clone());
            }
        });
        turn.effects.push(Effect::Failed { region: id, failures, reason: reason.clone() });
        if !retry || failures >= FAILURES_MAX {
            turn.effects.push(Effect::Quarantined { region: id, reason });
        }
        Verdict::Valid
    }

    fn finish(&mut self, incarnation: Incarnation, id: RegionId, assignment: Offset, turn: &mut Turn) -> Verdict {
        if !self.is_owner(incarnation, id, assignment) || self.state.regions.get(&id).is_some_and(|region| region.finished) {
            return Verdict::Ignored;
        }
        self.balance_later();
        self.change_region(id, |region| {
            region.finished = true;
            // Whoever loses it now did not die of it.
            region.deaths = None;
            region.stay();
        });
        turn.effects.push(Effect::Finished { region: id });
        Verdict::Valid
    }

    /// Only an owner has seen it. It stays true whatever becomes of the owner, so no assignment has to be named.
    fn begin(&mut self, incarnation: Incarnation, ids: &[RegionId], reads: bool) -> Verdict {
        let mut is_news = false;
        for id in ids {
            let Some(region) = self.state.regions.get(id) else { continue };
            let is_owners_word = region.owner.is_some_and(|owner| owner.slot.incarnation == incarnation);
            let is_known = region.begun && (region.reads || !reads);
            if is_owners_word && !is_known {
                is_news = true;
                self.note_on_region(*id, |region| {
                    region.begun = true;
                    region.reads |= reads;
                });
            }
        }
        Verdict::valid_if(is_news)
    }

    /// Any member's word counts: whoever fenced the slot, it is fenced. A slot that went with this very record was fenced too early: while it was live, it
    /// could take its producer back.
    fn fenced(&mut self, incarnation: Incarnation, slot: SlotId, turn: &mut Turn) -> Verdict {
        if self.state.gone.get(&slot.incarnation).is_none_or(|gone| gone.at == turn.at) {
            return Verdict::Ignored;
        }
        let Some(regions) = self.index.unfenced.get(&slot).cloned() else { return Verdict::Ignored };
        for id in regions {
            self.change_region(id, |region| {
                region.must_fence.remove(&slot);
            });
        }
        turn.effects.push(Effect::Fenced { slot, by: incarnation });
        // Its regions may be moved from now on.
        if self.state.balances_at_ms.is_none() {
            self.balance_later();
        }
        Verdict::Valid
    }

    /// Uploads end in any order; the newest epoch counts, and of one epoch the safer place.
    fn checkpoint_done(&mut self, id: RegionId, done: (Epoch, Durability)) -> Verdict {
        let is_newer = self.state.regions.get(&id).is_some_and(|region| region.checkpoint.is_none_or(|known| done > known));
        if is_newer {
            self.note_on_region(id, |region| region.checkpoint = Some(done));
        }
        Verdict::valid_if(is_newer)
    }

    fn raise_level(&mut self, level: u32, turn: &mut Turn) -> Verdict {
        let is_known_by_all = !self.state.members.is_empty() && self.state.members.values().all(|member| member.level >= level);
        let is_valid = level > self.level() && is_known_by_all;
        if is_valid {
            self.state.membership.level = level;
            self.state.version += 1;
            turn.effects.push(Effect::LevelRaised { level });
        }
        Verdict::valid_if(is_valid)
    }

    /// Everything that has to follow from a change: owners for orphans, enough followers, even loads.
    fn settle(&mut self, turn: &mut Turn) {
        if self.state.starts_at_ms.is_some() {
            return;
        }
        self.quarantine_deadly(turn);
        self.place_orphans(turn.at, &mut turn.effects);
        // To build a follower costs its worker as much as to work, and the region of one that is back soon has its state there: after a loss, that waits as well.
        if self.state.balances_at_ms.is_none() {
            self.place_followers();
        }
        if turn.rebalance && self.state.balances_at_ms.is_none() {
            self.plan_moves(turn.at, &mut turn.effects);
            self.plan_follower_moves();
        } else if self.state.balances_at_ms.is_none() && (self.next_move().is_some() || self.next_follower_move().is_some()) {
            // Nothing that is wanted is forgotten, whatever made it so.
            self.balance_later();
        }
    }
}

/// As much of a reason as is kept: it may quote a record of any size, and has to go into one of its own.
pub fn shortened(text: &str) -> &str {
    let end = (0..=text.len().min(REASON_BYTES_MAX)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_at_a_character() {
        assert_eq!(shortened("short"), "short");
        let long = format!("x{}", "é".repeat(REASON_BYTES_MAX));
        assert_eq!(shortened(&long).len(), REASON_BYTES_MAX - 1);
        assert!(long.starts_with(shortened(&long)));
    }
}

//! What time does: it passes with every record, members that were silent or keep a region for too long are expired, and what was put off becomes due.
//!
//! All by the log clock (`clock`), so that every worker expires the same members at the same record (C-1).

use super::Cluster;
use super::apply::Turn;
use super::clock::{SUSPENSION_MS_MAX, Suspension};
use super::digest::Piece;
use super::effect::{Effect, ExpiryCause};
use super::query::Entry;
use super::state::{Standing, Why};
use crate::ids::{Incarnation, RegionId};

impl Cluster {
    /// Advances the log clock; a gap above the time-out suspends expiry. Who is awaited since an earlier gap is so for no longer.
    pub(super) fn pass_time(&mut self, entry: &Entry<'_>, turn: &mut Turn) {
        let (step_ms_max, expiry_ms) = self.state.settings.as_ref().map_or((0, u64::MAX), |of| (of.heartbeat_interval_ms, of.expiry_ms));
        let gap_ms = self.state.clock.advance(entry.append_time_ms, step_ms_max);
        if gap_ms <= expiry_ms || self.state.members.is_empty() {
            return;
        }
        let until_ms = self.state.clock.now_ms.saturating_add(SUSPENSION_MS_MAX);
        let suspension = self.state.clock.suspension.get_or_insert_with(Suspension::default);
        for incarnation in self.state.members.keys() {
            let until_ms = *suspension.awaited.entry(*incarnation).or_insert(until_ms);
            self.index.digests.set(Piece::Awaited(*incarnation), &until_ms);
        }
        turn.effects.push(Effect::ExpirySuspended { gap_ms });
    }

    fn end_suspension(&mut self) {
        for (incarnation, _) in self.state.clock.suspension.take().into_iter().flat_map(|suspension| suspension.awaited) {
            self.index.digests.remove(Piece::Awaited(incarnation));
        }
    }

    pub(super) fn hear(&mut self, sender: Incarnation) {
        let now_ms = self.state.clock.now_ms;
        self.change_member(sender, |member| member.heard_ms = now_ms);
        if let Some(suspension) = &mut self.state.clock.suspension
            && suspension.awaited.remove(&sender).is_some()
        {
            self.index.digests.remove(Piece::Awaited(sender));
        }
    }

    /// Expires who was silent for too long.
    pub(super) fn expire_silent(&mut self, turn: &mut Turn) {
        let now_ms = self.state.clock.now_ms;
        if let Some(suspension) = &self.state.clock.suspension {
            if suspension.awaited.values().any(|until_ms| now_ms < *until_ms) {
                return;
            }
            self.end_suspension();
            turn.effects.push(Effect::ExpiryResumed);
        }
        let Some(expiry_ms) = self.state.settings.as_ref().map(|settings| settings.expiry_ms) else { return };
        while let Some((heard_ms, incarnation)) = self.index.heard.first().copied() {
            let silent_ms = now_ms.saturating_sub(heard_ms);
            if silent_ms <= expiry_ms {
                break;
            }
            self.expire(incarnation, ExpiryCause::Silent { silent_ms }, turn);
        }
    }

    /// Expires who was asked for a region and keeps it. Judged after the record, which may be the one that releases it.
    pub(super) fn expire_keepers(&mut self, turn: &mut Turn) {
        let (now_ms, is_suspended) = (self.state.clock.now_ms, self.state.clock.suspension.is_some());
        let Some(timeout_ms) = self.state.settings.as_ref().map(|settings| settings.release_timeout_ms) else { return };
        while let Some((since_ms, id)) = self.index.releasing.first().copied().filter(|_| !is_suspended) {
            let owner = self.state.regions.get(&id).and_then(|region| region.owner);
            let Some(owner) = owner.filter(|_| now_ms.saturating_sub(since_ms) > timeout_ms) else { break };
            self.expire(owner.slot.incarnation, ExpiryCause::KeptRegion(id), turn);
        }
    }

    /// What was put off and is due by the log clock.
    pub(super) fn look_at_the_time(&mut self, turn: &mut Turn) {
        let now_ms = self.state.clock.now_ms;
        if self.call_off_slow_moves(&mut turn.effects) {
            self.balance_later();
        }
        let outlived = |id: &RegionId| self.state.regions.get(id).is_some_and(|region| region.outlived_deaths(now_ms));
        for id in self.index.failed.iter().copied().filter(outlived).collect::<Vec<_>>() {
            self.change_region(id, |region| region.deaths = None);
        }
        let expected = self.state.settings.as_ref().map_or(0, |settings| settings.workers_expected as usize);
        let are_all_there = expected > 0 && self.state.members.len() >= expected;
        if self.state.starts_at_ms.is_some_and(|at_ms| now_ms >= at_ms || are_all_there) {
            self.state.starts_at_ms = None;
            self.state.version += 1;
            turn.rebalance = true;
        }
        if self.state.balances_at_ms.is_some_and(|at_ms| now_ms >= at_ms) {
            self.state.balances_at_ms = None;
            self.state.version += 1;
            turn.rebalance = true;
        }
    }

    fn expire(&mut self, incarnation: Incarnation, cause: ExpiryCause, turn: &mut Turn) {
        turn.effects.push(Effect::Expired { incarnation, cause });
        self.remove_member(incarnation, Standing::Expired, Why::Expired);
        self.balance_later();
    }
}

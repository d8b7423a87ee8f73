//! Who may join, and what a join says of regions that failed: those that the worker's last process died of are counted, the others are tried again.
//!
//! A region that processes die of again and again is quarantined once it has lost its owner, until a join lifts that.

use super::Cluster;
use super::apply::{FAILURES_MAX, Turn, Verdict};
use super::digest::Piece;
use super::effect::Effect;
use super::query::{FORGOTTEN, TAKEN};
use super::record::{DiedIn, Joined, Settings};
use super::state::{Gone, Member, Region, Standing, Why};
use crate::ids::{Incarnation, RegionId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Per worker; more threads than any machine has.
const SLOTS_MAX: u32 = 1_024;
const FOLLOWERS_MAX: u32 = 16;
/// A slot, its nursery and its committer name a region each.
const DIED_IN_MAX: usize = 3 * SLOTS_MAX as usize;
/// Names and addresses in a `joined`.
const NAME_BYTES_MAX: usize = 256;
/// JSON tools keep integers exact up to here; incarnations are milliseconds since 1970.
const INCARNATION_MAX: Incarnation = Incarnation(1 << 53);

impl Cluster {
    pub(super) fn join(&mut self, joined: Joined, turn: &mut Turn) -> Verdict {
        let incarnation = joined.incarnation;
        if incarnation > INCARNATION_MAX
            || [Some(&joined.worker), joined.rack.as_ref(), joined.http.as_ref()]
                .into_iter()
                .flatten()
                .any(|name| name.len() > NAME_BYTES_MAX)
            || joined.died_in.len() > DIED_IN_MAX
        {
            return Verdict::Malformed;
        }
        let holder = self.state.members.get(&incarnation).map(|member| member.nonce);
        if let Some(holder) = holder.or_else(|| self.state.gone.get(&incarnation).map(|gone| gone.nonce)) {
            // The same record once more, or somebody who chose the same incarnation later: the first one has it.
            if holder != joined.nonce {
                turn.effects.push(Effect::JoinRefused { incarnation, reason: TAKEN.into() });
            }
            return Verdict::Ignored;
        }
        self.state.membership.highest = self.state.membership.highest.max(Some(incarnation));
        if let Some(reason) = self.refusal(&joined) {
            turn.effects.push(Effect::JoinRefused { incarnation, reason: reason.clone() });
            self.remember(
                incarnation,
                Gone { nonce: joined.nonce, worker: joined.worker, at: turn.at, standing: Standing::Refused(reason), rack: None },
            );
            return Verdict::Valid;
        }
        if let Some(earlier) = self.index.workers.get(&joined.worker).copied() {
            turn.effects.push(Effect::Replaced { incarnation: earlier, by: incarnation });
            self.remove_member(earlier, Standing::Replaced(incarnation), Why::Replaced);
            self.balance_later();
        }
        if self.state.members.is_empty() {
            let Settings { workers_expected, start_wait_ms, .. } = joined.settings;
            self.state.starts_at_ms =
                (workers_expected != 1 && start_wait_ms > 0).then(|| self.state.clock.now_ms.saturating_add(start_wait_ms));
            self.index.digests.set(Piece::Settings, &joined.settings);
            self.state.settings = Some(joined.settings);
        }
        turn.effects.push(Effect::Joined { incarnation, worker: joined.worker.clone() });
        self.add_member(Member {
            incarnation,
            nonce: joined.nonce,
            worker: joined.worker,
            slots: joined.slots,
            rack: joined.rack,
            level: joined.level,
            plan: joined.plan,
            http: joined.http,
            joined: turn.at,
            heard_ms: self.state.clock.now_ms,
            draining: false,
        });
        let killers = self.count_deaths(&joined.died_in, turn);
        self.lift_quarantine(&killers, turn);
        turn.rebalance = true;
        Verdict::Valid
    }

    /// Why a worker may not join, for people.
    fn refusal(&self, joined: &Joined) -> Option<String> {
        if Some(joined.incarnation) <= self.state.membership.forgotten {
            return Some(FORGOTTEN.into());
        }
        if joined.level < self.level() {
            return Some(format!("this job has been raised to feature level {}, this binary knows {}", self.level(), joined.level));
        }
        if let Some(newer) = self.index.workers.get(&joined.worker).filter(|live| **live > joined.incarnation) {
            return Some(format!("worker {:?} has the newer incarnation {}", joined.worker, newer.0));
        }
        if joined.slots == 0 || joined.slots > SLOTS_MAX {
            return Some(format!("{} slots: a worker has 1 to {SLOTS_MAX}", joined.slots));
        }
        let Settings { followers, heartbeat_interval_ms, expiry_ms, release_timeout_ms, .. } = &joined.settings;
        if *followers > FOLLOWERS_MAX {
            return Some(format!("{followers} followers per region: at most {FOLLOWERS_MAX}"));
        }
        if *heartbeat_interval_ms == 0 || expiry_ms <= heartbeat_interval_ms || *release_timeout_ms == 0 {
            return Some("heartbeat interval, expiry and release time-out: above 0, and the expiry above the interval".into());
        }
        None
    }

    /// What the worker's last process was at when it died. Returns the regions that are named.
    ///
    /// Of several that are named together only the one with the most deaths is held to be deadly: the others may have been at work beside it, and have got no
    /// further because of it. Should that be wrong, the next deaths name the others without it, and the one that is deadly in the end, with nobody beside it who could
    /// be, clears those that were held to be deadly before. It stays so, whatever is found after it: each region clears others once at most.
    fn count_deaths(&mut self, died_in: &[DiedIn], turn: &mut Turn) -> BTreeSet<RegionId> {
        let now_ms = self.state.clock.now_ms;
        let named: BTreeMap<RegionId, DiedIn> = died_in.iter().map(|death| (death.region, *death)).collect();
        let mut counts = BTreeMap::new();
        for (id, death) in named {
            if self.state.regions.get(&id).is_none_or(|region| region.finished) {
                continue;
            }
            let mut count = 0;
            self.change_region(id, |region| count = region.died(death, now_ms));
            counts.insert(id, count);
            let reason = format!("its process died in epoch {}", death.epoch);
            turn.effects.push(Effect::Failed { region: id, failures: count, reason });
        }
        let worst = counts.iter().max_by_key(|(id, count)| (**count, Reverse(**id))).map(|(id, _)| *id);
        let only = worst.filter(|worst| counts.iter().all(|(id, count)| id == worst || *count < FAILURES_MAX - 1));
        for id in counts.keys().filter(|id| Some(**id) != worst && !self.index.quarantined.contains(*id)).copied().collect::<Vec<_>>() {
            self.change_region(id, |region| {
                if let Some(deaths) = &mut region.deaths {
                    deaths.count = deaths.count.min(FAILURES_MAX - 1);
                }
            });
        }
        if let Some(id) = only.filter(|id| self.state.regions.get(id).is_some_and(Region::is_doubtful)) {
            self.change_region(id, |region| {
                if let Some(deaths) = &mut region.deaths {
                    deaths.alone = true;
                }
            });
            let is_doubtful = |id: &RegionId| self.state.regions.get(id).is_some_and(Region::is_doubtful);
            for id in self.index.failed.iter().copied().filter(is_doubtful).collect::<Vec<_>>() {
                self.forgive(id, turn);
            }
        }
        counts.into_keys().collect()
    }

    /// A new worker, perhaps a repaired one: what failed is tried again. But not what this one has died of; and a worker that comes back from a death is no sign
    /// that a deadly region would do better now: with two of them, each death by one would let the other one go.
    fn lift_quarantine(&mut self, killers: &BTreeSet<RegionId>, turn: &mut Turn) {
        for id in self.index.failed.clone() {
            let is_deadly = self.state.regions.get(&id).is_some_and(Region::is_deadly);
            if killers.contains(&id) || (is_deadly && !killers.is_empty()) {
                continue;
            }
            self.forgive(id, turn);
        }
    }

    fn forgive(&mut self, id: RegionId, turn: &mut Turn) {
        if self.index.quarantined.contains(&id) {
            turn.effects.push(Effect::QuarantineLifted { region: id });
        }
        self.change_region(id, |region| {
            (region.failures, region.failed_ms) = (0, 0);
            region.deaths = region.deaths.filter(|deaths| deaths.count < FAILURES_MAX);
            region.quarantined = None;
            region.cold_at.clear();
        });
    }

    /// A deadly region is not taken from an owner that lives: that one may do better. It is given to nobody else.
    pub(super) fn quarantine_deadly(&mut self, turn: &mut Turn) {
        let reason = |id: &RegionId| Some((*id, self.state.regions.get(id)?.killed_by_it()?));
        for (id, reason) in self.index.orphans.iter().filter_map(reason).collect::<Vec<_>>() {
            self.change_region(id, |region| region.quarantined = Some(reason.clone()));
            turn.effects.push(Effect::Quarantined { region: id, reason });
        }
    }
}

//! What a slot tells of its regions now and then, for many at once: first epochs to the control log, group offsets to lag tools.

use super::Slot;
use crate::region::Region;
use std::time::Duration;
use streamshield_core::cluster::ControlRecord;
use streamshield_core::ids::RegionId;

/// Group offsets are for lag tools: no need for more.
const GROUP_OFFSETS_EVERY: Duration = Duration::from_secs(1);
/// The control log hears of first epochs now and then: of many regions at once.
const BEGUN_TOLD_EVERY: Duration = Duration::from_millis(500);
/// Regions named in one such record, which has to fit into a message.
const BEGUN_REGIONS_MAX: usize = 8_192;

impl Slot {
    /// Tells the control log, once in the life of a region, that its changelog is not empty any more, and once that its exchange partition is not: who
    /// finds one empty later must not begin anew. Should this slot die before, the region's next owner says it.
    pub(super) fn tell_begun(&mut self, last: bool) {
        let now = self.clock.steady();
        let is_early = now < self.work.append_after || now.saturating_sub(self.work.begun_told) < BEGUN_TOLD_EVERY;
        if is_early && !last {
            return;
        }
        self.work.begun_told = now;
        for reads in [false, true] {
            let work = &self.work;
            let untold = if reads { &work.unread } else { &work.unbegun };
            let is_seen = |region: &Region| region.has_begun() && (region.position > 0 || !reads);
            let due = untold.iter().filter(|id| work.regions.get(*id).is_some_and(is_seen));
            let regions: Vec<RegionId> = due.take(BEGUN_REGIONS_MAX).copied().collect();
            if regions.is_empty() {
                continue;
            }
            let record = ControlRecord::Begun { incarnation: self.id.incarnation, regions: regions.clone(), reads };
            if let Err(error) = self.membership.append(&record) {
                tracing::debug!(%error, "could not tell of first epochs yet");
                self.append_later();
                return;
            }
            let told = if reads { &mut self.work.unread } else { &mut self.work.unbegun };
            for id in &regions {
                told.remove(id);
            }
        }
    }

    pub(super) fn send_group_offsets(&mut self, last: bool) {
        let now = self.clock.steady();
        if !last && now.saturating_sub(self.work.group_offsets_sent) < GROUP_OFFSETS_EVERY {
            return;
        }
        self.work.group_offsets_sent = now;
        for (group, positions) in std::mem::take(&mut self.work.group_offsets) {
            let positions: Vec<_> = positions.into_iter().collect();
            self.log.commit_group_offsets(&group, &positions);
        }
    }
}

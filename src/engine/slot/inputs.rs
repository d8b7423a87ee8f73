//! The inputs of a slot's regions: source readers and the exchange reader, from the first connection to the last region that reads there.
//!
//! On failure: an input that can't be opened is a failure of the region that came with it, not of the slot. While what it reads is away, the region stands still
//! and tries again: that is no failure.

use super::Slot;
use crate::nursery::{RETRY_PAUSE_MAX, WAITS_MAX, pause_after};
use crate::region::{Failure, Input, Region, RegionError};
use crate::topics;
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::ids::{Epoch, RegionId};
use streamshield_core::ports::source::Split;

const IDLE_INPUTS_SERVED_EVERY: Duration = Duration::from_secs(1);

/// Of a region that takes no step yet, since its input was away at each try.
pub(super) struct Unopened {
    tries: u32,
    resume_at: Duration,
}

impl Slot {
    /// Makes the connections of all inputs: the first region of a stage that comes, and those that are here then, would stand still for it.
    pub(super) fn prepare(&mut self) {
        let (job, config) = (&self.job, &self.job.config);
        let topics: Vec<Arc<str>> = job.plan.exchanges.iter().map(|plan| topics::exchange(&config.name, plan).into()).collect();
        if !topics.is_empty() {
            self.exchange.prepare(&topics);
        }
        for (stage, source) in &job.sources {
            if let Some(reader) = source.connected_reader(self.wakeup.clone()) {
                self.work.sources.insert(*stage, reader);
            }
        }
    }

    pub(super) fn serve_idle_inputs(&mut self) {
        let now = self.clock.steady();
        if now.saturating_sub(self.work.inputs_served) >= IDLE_INPUTS_SERVED_EVERY {
            self.work.inputs_served = now;
            self.exchange.serve_idle();
            self.work.sources.values_mut().for_each(|source| source.serve_idle());
        }
    }

    /// Opens the input of a region that has come, or notes why it takes no step.
    pub(super) fn admit(&mut self, region: &mut Region) {
        let id = region.id;
        let tries = self.work.unopened.remove(&id).map_or(1, |unopened| unopened.tries + 1);
        match self.open_input(region) {
            Ok(()) => {}
            Err(RegionError::Retry(reason)) if tries <= WAITS_MAX => {
                let pause = pause_after(tries);
                if pause < RETRY_PAUSE_MAX {
                    tracing::debug!(region = %id, reason, "the region waits for its input");
                } else {
                    tracing::warn!(region = %id, reason, "the region waits for its input");
                }
                self.work.unopened.insert(id, Unopened { tries, resume_at: self.clock.steady() + pause });
            }
            Err(RegionError::Retry(reason) | RegionError::Stop(reason) | RegionError::Failed(reason)) => {
                tracing::warn!(region = %id, reason, "the input can't be read");
                region.failed = Some(Failure::new(&reason, true));
            }
        }
    }

    /// True: one more is open, or has failed.
    pub(super) fn admit_waiting(&mut self) -> bool {
        let now = self.clock.steady();
        let due: Vec<RegionId> = self.work.unopened.iter().filter(|(_, unopened)| unopened.resume_at <= now).map(|(id, _)| *id).collect();
        let mut moved = false;
        for id in due {
            // One that is to leave does not need it.
            if self.work.regions.get(&id).is_some_and(|region| region.leaving) {
                continue;
            }
            let Some(mut region) = self.work.regions.remove(&id) else { continue };
            self.admit(&mut region);
            moved |= !self.work.unopened.contains_key(&id);
            self.work.regions.insert(id, region);
        }
        moved
    }

    fn open_input(&mut self, region: &Region) -> Result<(), RegionError> {
        match &region.input {
            Input::Source(source) if source.finished => Ok(()),
            Input::Source(source) => {
                let stage = region.id.stage;
                if !self.work.sources.contains_key(&stage) {
                    let reader = self.job.sources[&stage].reader(self.wakeup.clone())?;
                    self.work.sources.insert(stage, reader);
                }
                let reader = self.work.sources.get_mut(&stage).expect("inserted above");
                let split = Split { id: source.split.id, start: source.split.start, end: source.split.end };
                reader.add_split(&split, region.position)?;
                if region.epoch <= Epoch::GENESIS && region.position == split.start {
                    reader.may_begin_later(split.id);
                }
                Ok(())
            }
            Input::Exchange(input) => self.exchange.assign(&input.partition, region.position).map_err(RegionError::from),
        }
    }

    pub(super) fn close_input(&mut self, region: &Region) {
        match &region.input {
            Input::Source(source) => {
                if let Some(reader) = self.work.sources.get_mut(&region.id.stage) {
                    reader.remove_split(source.split.id);
                }
            }
            Input::Exchange(input) => {
                if let Err(error) = self.exchange.unassign(&input.partition) {
                    tracing::debug!(partition = %input.partition, %error, "could not stop reading");
                }
            }
        }
    }
}

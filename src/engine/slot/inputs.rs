//! The inputs of a slot's regions: source readers and the exchange reader, from the first connection to the last region that reads there.
//!
//! On failure: an input that can't be opened is a failure of the region that came with it, not of the slot.

use super::Slot;
use crate::region::{Input, Region};
use crate::topics;
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::ports::source::{SourceError, Split};

const IDLE_INPUTS_SERVED_EVERY: Duration = Duration::from_secs(1);

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

    pub(super) fn open_input(&mut self, region: &Region) -> Result<(), String> {
        match &region.input {
            Input::Source(source) if source.finished => Ok(()),
            Input::Source(source) => {
                let stage = region.id.stage;
                let text = |error: SourceError| format!("a source can't be read: {error}");
                if !self.work.sources.contains_key(&stage) {
                    let reader = self.job.sources[&stage].reader(self.wakeup.clone()).map_err(text)?;
                    self.work.sources.insert(stage, reader);
                }
                let reader = self.work.sources.get_mut(&stage).expect("inserted above");
                let split = Split { id: source.split.id, start: source.split.start, end: source.split.end };
                reader.add_split(&split, region.position).map_err(text)
            }
            Input::Exchange(input) => self.exchange.assign(&input.partition, region.position).map_err(|error| error.message),
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

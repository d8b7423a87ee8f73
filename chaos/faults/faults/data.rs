//! Faults of the input: made by whoever makes the input, which the stage was told of ([`crate::stage::DataFeed`]).

use super::nothing;
use super::target::Setup;
use crate::api::{Fault, FaultError, Fired};
use crate::stage::Stage;

/// All entries of the family.
pub(crate) struct Data {
    setup: Setup,
    has_begun: bool,
}

impl Data {
    pub(crate) fn new(setup: Setup) -> Data {
        Data { setup, has_begun: false }
    }
}

impl Fault<Stage> for Data {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let fired = stage.data_feed()?.begin(self.setup.spec.name, self.setup.given.all())?;
        self.has_begun = true;
        Ok(fired)
    }

    fn undo(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        if !self.has_begun {
            return nothing();
        }
        let fired = stage.data_feed()?.end(self.setup.spec.name)?;
        self.has_begun = false;
        Ok(fired)
    }
}

//! O-1: a region's epochs are committed by its owners, in the order in which they owned it.
//!
//! The rule is [`OwnerHistory`]'s. The control log's meaning is not repeated here: the driver gives a fold ([`ControlFold`]).

use super::{Check, recorded};
use crate::world::{Entry, Message};
use streamshield_core::cluster::OwnerHistory;
use streamshield_core::ids::RegionId;

/// What the control log says about ownership.
pub trait ControlFold: Send {
    /// Folds one message of the control log; returns the regions whose owner has changed by it, with the transactional id of the new
    /// owner's producer, or none.
    fn apply(&mut self, message: &Message) -> Vec<(RegionId, Option<String>)>;
}

/// See the module text.
pub struct OwnerCheck<F> {
    control_topic: String,
    fold: F,
    history: OwnerHistory,
}

impl<F: ControlFold> OwnerCheck<F> {
    pub fn new(control_topic: impl Into<String>, fold: F) -> OwnerCheck<F> {
        OwnerCheck { control_topic: control_topic.into(), fold, history: OwnerHistory::default() }
    }
}

impl<F: ControlFold> Check for OwnerCheck<F> {
    fn take(&mut self, entry: &Entry) -> Result<(), String> {
        match entry {
            Entry::Plain(message) if *message.partition.topic == *self.control_topic => {
                for (region, owner) in self.fold.apply(message) {
                    self.history.own(region, owner);
                }
                Ok(())
            }
            Entry::Ended(transaction) if transaction.is_committed => {
                let mut found = recorded(transaction).0.into_iter();
                found.try_for_each(|found| self.history.commits(found.record.region, &transaction.transactional_id).map(drop))
            }
            _ => Ok(()),
        }
    }
}

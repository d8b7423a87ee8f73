//! O-1: a region's epochs are committed by its owners, in the order in which they owned it.
//!
//! An owner may commit until its successor has fenced it, so at a commit it need not be the owner of that very offset. But once a later
//! owner has committed (it has read the end by then), an earlier one must not, unless it became the owner again. So each
//! committed epoch has to find its writer in the list of owners, at or after the place of the last one.
//!
//! The control log's meaning is not repeated here: the driver gives a fold ([`ControlFold`]).

use super::{Check, recorded};
use crate::world::{Entry, Message};
use std::collections::BTreeMap;
use streamshield_core::ids::RegionId;

/// What the control log says about ownership.
pub trait ControlFold: Send {
    /// Folds one message of the control log; returns the regions whose owner has changed by it, with the transactional id of the new
    /// owner's producer, or none.
    fn apply(&mut self, message: &Message) -> Vec<(RegionId, Option<String>)>;
}

/// The owners of one region, one after the other.
#[derive(Default)]
struct Owners {
    owners: Vec<String>,
    /// The place of the one that committed last.
    at: usize,
}

/// See the module text.
pub struct OwnerCheck<F> {
    control_topic: String,
    fold: F,
    regions: BTreeMap<RegionId, Owners>,
}

impl<F: ControlFold> OwnerCheck<F> {
    pub fn new(control_topic: impl Into<String>, fold: F) -> OwnerCheck<F> {
        OwnerCheck { control_topic: control_topic.into(), fold, regions: BTreeMap::new() }
    }

    fn own(&mut self, region: RegionId, owner: Option<String>) {
        let owners = &mut self.regions.entry(region).or_default().owners;
        // A region without owner is nobody's: nothing new may commit, and what was begun ends before the next owner has read the end.
        if let Some(owner) = owner.filter(|owner| owners.last() != Some(owner)) {
            owners.push(owner);
        }
    }

    fn commits(&mut self, region: RegionId, writer: &str) -> Result<(), String> {
        let found = self.regions.entry(region).or_default();
        match found.owners.iter().skip(found.at).position(|owner| owner == writer) {
            Some(ahead) => {
                found.at += ahead;
                Ok(())
            }
            None => match found.owners.get(found.at) {
                Some(later) => Err(format!("O-1: {writer} commits an epoch of {region} after {later} has, and does not own it again")),
                None => Err(format!("O-1: {writer} commits an epoch of {region} and never owned it")),
            },
        }
    }
}

impl<F: ControlFold> Check for OwnerCheck<F> {
    fn take(&mut self, entry: &Entry) -> Result<(), String> {
        match entry {
            Entry::Plain(message) if *message.partition.topic == *self.control_topic => {
                for (region, owner) in self.fold.apply(message) {
                    self.own(region, owner);
                }
                Ok(())
            }
            Entry::Ended(transaction) if transaction.is_committed => {
                recorded(transaction).0.iter().try_for_each(|found| self.commits(found.record.region, &transaction.transactional_id))
            }
            _ => Ok(()),
        }
    }
}

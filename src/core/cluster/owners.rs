//! O-1 as a log shows it: a region's epochs are committed by its owners, in the order in which they owned it.
//!
//! An owner may commit until its successor has fenced it, so at a commit it need not be the owner of that very offset. But once a later
//! owner has committed (it has read the end by then), an earlier one must not, unless it became the owner again. So each
//! committed epoch has to find its writer in the list of owners, at or after the place of the last one.

use crate::ids::RegionId;
use std::collections::{BTreeMap, BTreeSet};

/// The owners of one region, one after the other, by their transactional ids.
#[derive(Clone, Debug, Default)]
struct Owners {
    owners: Vec<String>,
    /// The place of the one that committed last.
    at: usize,
    has_committed: bool,
}

/// Who owned which region, and who has committed for it.
#[derive(Clone, Debug, Default)]
pub struct OwnerHistory {
    regions: BTreeMap<RegionId, Owners>,
    /// The list begins somewhere in the middle, when these lived: they, and any that the list does not name, may have owned before its first owner.
    earlier: Option<BTreeSet<String>>,
}

impl OwnerHistory {
    /// Of a control log whose beginning was trimmed; `alive`: who could own when what is left of it begins. Commits of a region are judged from the
    /// first one of a later writer on.
    pub fn from_middle(alive: BTreeSet<String>) -> OwnerHistory {
        OwnerHistory { regions: BTreeMap::new(), earlier: Some(alive) }
    }

    /// The region has another owner, or none.
    pub fn own(&mut self, region: RegionId, owner: Option<String>) {
        let owners = &mut self.regions.entry(region).or_default().owners;
        // A region without owner is nobody's: nothing new may commit, and what was begun ends before the next owner has read the end.
        if let Some(owner) = owner.filter(|owner| owners.last() != Some(owner)) {
            owners.push(owner);
        }
    }

    /// Takes the next committed epoch of a region. False: nothing is known about it.
    pub fn commits(&mut self, region: RegionId, writer: &str) -> Result<bool, String> {
        let found = self.regions.entry(region).or_default();
        let is_before = |alive: &BTreeSet<String>| alive.contains(writer) || !found.owners.iter().any(|owner| owner == writer);
        if !found.has_committed && self.earlier.as_ref().is_some_and(is_before) {
            return Ok(false);
        }
        if let Some(ahead) = found.owners.iter().skip(found.at).position(|owner| owner == writer) {
            found.at += ahead;
            found.has_committed = true;
            return Ok(true);
        }
        match found.owners.get(found.at).filter(|_| found.has_committed) {
            Some(later) => Err(format!("O-1: {writer} commits an epoch of {region} after {later} has, and does not own it again")),
            None => Err(format!("O-1: {writer} commits an epoch of {region} and never owned it")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::StageId;

    const REGION: RegionId = RegionId { stage: StageId(1), partition: 0 };

    fn history(mut history: OwnerHistory, owners: &[&str]) -> OwnerHistory {
        owners.iter().for_each(|owner| history.own(REGION, Some(owner.to_string())));
        history
    }

    #[test]
    fn an_earlier_owner_must_not_commit_after_a_later_one_unless_it_owns_again() {
        let mut owned = history(OwnerHistory::default(), &["a", "b", "a"]);
        assert!(["a", "a", "b", "a"].into_iter().all(|writer| owned.commits(REGION, writer) == Ok(true)));
        assert!(owned.commits(REGION, "b").is_err_and(|error| error.starts_with("O-1") && error.contains("after a has")));
        assert!(owned.commits(REGION, "c").is_err());
    }

    #[test]
    fn before_the_first_known_owner_anybody_may_have_committed() {
        let middle = || OwnerHistory::from_middle(BTreeSet::from(["b".to_string()]));
        // z is not known at all; b lived before, so none of its epochs says that the list has begun.
        let mut owned = history(middle(), &["b", "c"]);
        assert!(["b", "z", "b"].into_iter().all(|writer| owned.commits(REGION, writer) == Ok(false)));
        assert_eq!(owned.commits(REGION, "c"), Ok(true));
        assert!(["b", "z"].into_iter().all(|writer| owned.commits(REGION, writer).is_err()));
        // It owned, another one did, then what is left of the log begins, and it owns again.
        let mut returned = history(middle(), &["c", "b"]);
        assert!(["b", "a", "c", "b"].into_iter().all(|writer| returned.commits(REGION, writer).is_ok()));
        let mut strict = history(OwnerHistory::default(), &["b"]);
        assert!(strict.commits(REGION, "a").is_err_and(|error| error.contains("never owned it")));
    }
}

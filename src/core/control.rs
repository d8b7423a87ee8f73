//! The control log's meaning: who owns a job, since when, and whom an owner has to fence.
//!
//! Every reader folds the same records through [`ControlState::apply`] and so comes to the same answer at the same
//! offset (C-1). There is no clock and no I/O here. In this state of the project one process owns all regions: the one
//! that joined last. A process that finds a later `joined` record stands down (O-1).
//!
//! ```
//! use streamshield_core::{control::*, ids::Incarnation};
//! let mut state = ControlState::default();
//! state.apply(&ControlRecord::Joined { incarnation: Incarnation(5), transactional_ids: vec!["job-5-0".into()] }.encode());
//! state.apply(&ControlRecord::Joined { incarnation: Incarnation(9), transactional_ids: vec!["job-9-0".into()] }.encode());
//! assert_eq!(state.owner(), Some(Incarnation(9)));
//! assert_eq!(state.must_fence(Incarnation(9)), vec!["job-5-0".to_string()]);
//! ```

use crate::ids::{Incarnation, Offset};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is fixed for the life of a job; the first such record in the log wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// Per source stage (its number), the splits with their bounds as they were found.
    pub splits: BTreeMap<u32, Vec<GenesisSplit>>,
    /// Per exchange (its number), the partitions.
    pub exchange_partitions: BTreeMap<u32, u32>,
}

/// One split of a source at the job's first start; region `p` of the stage reads the split at index `p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenesisSplit {
    pub id: u32,
    pub start: Offset,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Offset>,
}

/// One record of the control log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlRecord {
    Genesis(Genesis),
    /// A process has started and may write with these producers.
    Joined {
        incarnation: Incarnation,
        transactional_ids: Vec<String>,
    },
    /// All producers of that process were fenced.
    Fenced {
        incarnation: Incarnation,
    },
    /// Written and read back after each InitProducerId: does the writer still own the job at this offset?
    Confirm {
        incarnation: Incarnation,
    },
}

impl ControlRecord {
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data always serializes")
    }
}

/// The fold of a control log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlState {
    genesis: Option<Genesis>,
    joined: BTreeMap<Incarnation, Vec<String>>,
    owner: Option<Incarnation>,
    /// Records that are none of ours: no-ops, counted.
    malformed: u64,
}

impl ControlState {
    /// Folds one record. Foreign or malformed bytes are a no-op for every reader alike.
    pub fn apply(&mut self, bytes: &[u8]) {
        let Ok(record) = serde_json::from_slice::<ControlRecord>(bytes) else {
            self.malformed += 1;
            return;
        };
        match record {
            ControlRecord::Genesis(genesis) => {
                self.genesis.get_or_insert(genesis);
            }
            ControlRecord::Joined { incarnation, transactional_ids } => {
                // An incarnation never comes back: a later `joined` with a smaller number is a replay.
                if self.owner.is_none_or(|owner| incarnation > owner) {
                    self.owner = Some(incarnation);
                    self.joined.insert(incarnation, transactional_ids);
                }
            }
            ControlRecord::Fenced { incarnation } => {
                if self.owner != Some(incarnation) {
                    self.joined.remove(&incarnation);
                }
            }
            ControlRecord::Confirm { .. } => {}
        }
    }

    pub fn genesis(&self) -> Option<&Genesis> {
        self.genesis.as_ref()
    }

    /// The process that joined last.
    pub fn owner(&self) -> Option<Incarnation> {
        self.owner
    }

    /// Producers of all processes before `incarnation` that nobody has fenced yet.
    pub fn must_fence(&self, incarnation: Incarnation) -> Vec<String> {
        self.joined.range(..incarnation).flat_map(|(_, ids)| ids.iter().cloned()).collect()
    }

    /// Processes before `incarnation` whose producers are still to be fenced.
    pub fn unfenced(&self, incarnation: Incarnation) -> Vec<Incarnation> {
        self.joined.range(..incarnation).map(|(incarnation, _)| *incarnation).collect()
    }

    pub fn malformed(&self) -> u64 {
        self.malformed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(incarnation: u64) -> Vec<u8> {
        ControlRecord::Joined { incarnation: Incarnation(incarnation), transactional_ids: vec![format!("t{incarnation}")] }.encode()
    }

    #[test]
    fn the_first_genesis_wins() {
        let genesis = |partitions| Genesis { splits: BTreeMap::new(), exchange_partitions: BTreeMap::from([(0, partitions)]) };
        let mut state = ControlState::default();
        state.apply(&ControlRecord::Genesis(genesis(4)).encode());
        state.apply(&ControlRecord::Genesis(genesis(8)).encode());
        assert_eq!(state.genesis(), Some(&genesis(4)));
    }

    #[test]
    fn an_owner_that_died_before_fencing_hides_nobody() {
        let mut state = ControlState::default();
        for incarnation in [1, 2, 3] {
            state.apply(&joined(incarnation));
        }
        assert_eq!(state.must_fence(Incarnation(3)), ["t1", "t2"]);
        state.apply(&ControlRecord::Fenced { incarnation: Incarnation(1) }.encode());
        assert_eq!(state.must_fence(Incarnation(3)), ["t2"]);
        state.apply(&joined(4));
        assert_eq!(state.must_fence(Incarnation(4)), ["t2", "t3"]);
    }

    #[test]
    fn a_late_or_foreign_record_changes_nothing() {
        let mut state = ControlState::default();
        state.apply(&joined(5));
        let before = state.clone();
        state.apply(&joined(3));
        assert_eq!(state, before);
        state.apply(b"hello");
        assert_eq!(state.owner(), Some(Incarnation(5)));
        assert_eq!(state.malformed(), 1);
    }
}

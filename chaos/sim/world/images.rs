//! What stores hold of a region at an epoch: the owner, its followers and its checkpoints must hold the same (E-4).
//!
//! The engine compares digests of what *changed*; here whole states are compared, whenever one is written: by a flush of the owner, by a
//! replica's replay, by a standby's delta, by the adoption of a checkpoint. A state that was lost and rebuilt is compared as well.

use std::collections::BTreeMap;
use streamshield_core::ids::{Epoch, RegionId};

/// Epochs that are remembered per region; a holder that is further behind is compared with nothing.
const EPOCHS_KEPT: usize = 512;

/// See the module text.
#[derive(Default)]
pub struct Images {
    known: BTreeMap<RegionId, BTreeMap<Epoch, (u64, String)>>,
    compared: u64,
}

impl Images {
    /// Remembers the state, or compares it; the text says what differs.
    pub fn compare(&mut self, holder: &str, region: RegionId, epoch: Epoch, digest: u64) -> Option<String> {
        let epochs = self.known.entry(region).or_default();
        if let Some((known, first)) = epochs.get(&epoch) {
            self.compared += 1;
            let what = || format!("E-4: {region} at epoch {epoch} is {digest:016x} at {holder}, and {known:016x} at {first}");
            return (*known != digest).then(what);
        }
        epochs.insert(epoch, (digest, holder.to_owned()));
        if epochs.len() > EPOCHS_KEPT {
            epochs.pop_first();
        }
        None
    }

    pub fn compared(&self) -> u64 {
        self.compared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use streamshield_core::ids::StageId;

    #[test]
    fn one_epoch_has_one_state_wherever_it_lies() {
        let region = RegionId { stage: StageId(1), partition: 0 };
        let mut images = Images::default();
        assert_eq!(images.compare("a", region, Epoch(3), 1), None);
        assert_eq!(images.compare("b", region, Epoch(3), 1), None);
        assert_eq!(images.compare("b", region, Epoch(4), 2), None);
        let found = images.compare("c", region, Epoch(3), 2).expect("another state");
        assert!(found.starts_with("E-4: s1/0 at epoch 3"), "{found}");
        assert_eq!(images.compared(), 2);
    }
}

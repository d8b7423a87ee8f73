//! E-1, E-2, E-5: what the committed epoch records of each region say, one after the other.

use super::{Check, recorded};
use crate::world::Entry;
use std::collections::BTreeMap;
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::RegionId;

/// See the module text.
#[derive(Default)]
pub struct EpochCheck {
    last: BTreeMap<RegionId, EpochRecord>,
}

impl Check for EpochCheck {
    fn take(&mut self, entry: &Entry) -> Result<(), String> {
        let Entry::Ended(transaction) = entry else { return Ok(()) };
        if !transaction.is_committed {
            return Ok(());
        }
        for found in recorded(transaction).0 {
            let record = found.record;
            let region = record.region;
            if i64::from(region.partition) != i64::from(found.partition.partition) {
                return Err(format!("E-1: {region} has written an epoch into {}", found.partition));
            }
            if record.transactional_id != transaction.transactional_id {
                return Err(format!(
                    "O-1: {region} epoch {} names the writer {}, it was written by {}: a successor would fence another one",
                    record.epoch, record.transactional_id, transaction.transactional_id
                ));
            }
            let followed = match self.last.get(&region) {
                Some(last) => last.check_next(&record),
                None => record.check_first(),
            };
            // Also after a violation: what comes next is judged by what is really there.
            self.last.insert(region, record);
            followed?;
        }
        Ok(())
    }
}

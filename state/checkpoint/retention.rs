//! Which checkpoints of a region are kept: the newest few, the young ones, the pinned ones. Pure.

use crate::listing::Listing;
use crate::names::ManifestName;
use crate::store::Manifests;
use std::collections::BTreeSet;
use std::time::Duration;

/// What the user wants to be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    pub count: usize,
    pub younger_than: Option<Duration>,
}

impl Retention {
    /// Names of the checkpoints that stay. What cannot be restored does not count, so damage never pushes a good one out.
    pub(crate) fn keeps(self, listing: &Listing, manifests: &Manifests, now_ms: i64) -> BTreeSet<ManifestName> {
        let usable = manifests.iter().filter(|(_, manifest)| manifest.is_ok()).map(|(name, _)| *name);
        let mut kept: BTreeSet<ManifestName> = usable.clone().rev().take(self.count.max(1)).collect();
        if let Some(age_max) = self.younger_than {
            let age_max_ms = i64::try_from(age_max.as_millis()).unwrap_or(i64::MAX);
            let is_young = |name: &ManifestName| {
                listing.manifests.get(name).is_some_and(|stored| now_ms.saturating_sub(stored.modified_ms) < age_max_ms)
            };
            kept.extend(usable.filter(is_young));
        }
        kept.extend(listing.pins.iter().filter(|name| manifests.contains_key(name)));
        kept
    }
}

//! Garbage collection that cannot race a restore: mark, wait, look again, ask, delete.
//!
//! ```text
//!   mark    an object that names what nobody should need any more
//!     │     … grace: longer than any restore or upload takes, by the store's clock …
//!   sweep   manifests and pins read again: what is needed after all stays
//!     │     still the owner? as far as this worker has read the control log
//!   delete  manifests first, then the files that no remaining manifest names, then the mark
//! ```
//!
//! A restore announces itself nowhere: it has read a manifest before the mark was made or it takes a newer one, and the grace outlasts it. A
//! torn deletion leaves files without a manifest, never a manifest without files (K-1).
//!
//! The question only stops needless work: an owner that lags learns late that it is none any more, and that is as if it had paused.
//! A paused owner that wakes up between the question and the deletion can only delete what carries an incarnation up to its own, was marked a grace
//! ago, and is named by none of the manifests it read. Its successor cannot have begun to use such a file since: it uses again only what the
//! newest manifest names, and that was among those read. What a torn upload of its own has left it uses again only while that is younger than the
//! grace, so that its manifest is there before anybody's mark is swept; later it uploads the file again, and one that is young again is not swept.
//!
//! The decisions are pure functions of what was listed; `maintain` does what they say.

use crate::error::StoreError;
use crate::listing::Listing;
use crate::manifest::{Manifest, Unusable};
use crate::names::{Folder, ManifestName, writer_of};
use crate::retention::Retention;
use crate::store::Manifests;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;
use streamshield_core::ids::Incarnation;
use streamshield_core::mutants;

/// Stores give times of modification in whole seconds.
const CLOCK_GRAIN: Duration = Duration::from_secs(1);
/// Marked at once at most; the rest follows in the next round.
const MARKED_MAX: usize = 5_000;

/// What was marked: names of manifests, and of objects that no manifest names, as `folder/name`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub version: u32,
    pub incarnation: Incarnation,
    pub created_ms: i64,
    pub manifests: BTreeSet<String>,
    pub objects: BTreeSet<String>,
}

impl Mark {
    pub(crate) fn is_empty(&self) -> bool {
        self.manifests.is_empty() && self.objects.is_empty()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("texts and numbers always become JSON")
    }

    /// None: not one of ours, or of another version: nothing is deleted for it.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Mark> {
        serde_json::from_slice(bytes).ok().filter(|mark: &Mark| mark.version == 1)
    }
}

/// All that a decision depends on.
pub(crate) struct View<'a> {
    pub listing: &'a Listing,
    pub manifests: &'a Manifests,
    /// As whom we delete.
    pub own: Incarnation,
    pub retention: Retention,
    pub grace: Duration,
    /// The store's time, or earlier.
    pub now_ms: i64,
    /// Objects of the files folder that an unfinished upload of this process will name.
    pub protected: &'a BTreeSet<String>,
}

/// What to delete now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sweep {
    pub manifests: BTreeSet<ManifestName>,
    pub objects: BTreeSet<String>,
}

impl View<'_> {
    pub(crate) fn is_older_than_grace(&self, modified_ms: i64) -> bool {
        if self.grace.is_zero() {
            return true;
        }
        let grace_ms = i64::try_from((self.grace + CLOCK_GRAIN).as_millis()).unwrap_or(i64::MAX);
        self.now_ms.saturating_sub(modified_ms) > grace_ms
    }

    /// A manifest of a newer release is there: nobody here can tell what it needs.
    fn has_unknown(&self) -> bool {
        self.manifests.values().any(|manifest| matches!(manifest, Err(Unusable::Unknown { .. })))
    }

    fn named_by<'m>(manifests: impl Iterator<Item = &'m Manifest>) -> BTreeSet<&'m str> {
        manifests.flat_map(|manifest| manifest.files.iter().map(|file| file.object.as_str())).collect()
    }

    fn usable(&self) -> impl Iterator<Item = (&ManifestName, &Manifest)> {
        self.manifests.iter().filter_map(|(name, manifest)| Some((name, manifest.as_ref().ok()?.as_ref())))
    }

    /// What to mark, apart from what is marked already. Orphans only once they are older than the grace: they may belong to an upload.
    pub(crate) fn mark(&self, marked: &BTreeSet<String>) -> Mark {
        let mut mark = Mark { version: 1, incarnation: self.own, created_ms: 0, manifests: BTreeSet::new(), objects: BTreeSet::new() };
        if self.has_unknown() {
            return mark;
        }
        let kept = self.retention.keeps(self.listing, self.manifests, self.now_ms);
        for (name, manifest) in self.manifests {
            let is_old = || self.listing.manifests.get(name).is_some_and(|stored| self.is_older_than_grace(stored.modified_ms));
            let is_due = !kept.contains(name) && name.incarnation <= self.own && (manifest.is_ok() || is_old());
            let text = name.to_string();
            if is_due && !marked.contains(&text) {
                mark.manifests.insert(text);
            }
        }
        let named = View::named_by(self.usable().map(|(_, manifest)| manifest));
        let orphans = self.listing.files.iter().filter(|(name, _)| {
            !named.contains(name.as_str()) && !self.protected.contains(*name) && writer_of(name).is_some_and(|writer| writer <= self.own)
        });
        let orphans = orphans.map(|(name, stored)| (object_key(Folder::Files, name), stored.modified_ms));
        let strays = self.listing.strays.iter().filter(|stray| stray.writer <= self.own);
        let strays = strays.map(|stray| (object_key(stray.folder, &stray.name), stray.stored.modified_ms));
        for (key, modified_ms) in orphans.chain(strays) {
            if mark.objects.len() >= MARKED_MAX {
                break;
            }
            if self.is_older_than_grace(modified_ms) && !marked.contains(&key) {
                mark.objects.insert(key);
            }
        }
        mark
    }

    /// What of a mark, whose grace is over, is really deleted.
    pub(crate) fn sweep(&self, mark: &Mark) -> Sweep {
        let mut sweep = Sweep::default();
        if self.has_unknown() || mark.incarnation > self.own {
            return sweep;
        }
        let kept = self.retention.keeps(self.listing, self.manifests, self.now_ms);
        let marked = mark.manifests.iter().filter_map(|name| ManifestName::parse(name));
        sweep.manifests =
            marked.filter(|name| self.manifests.contains_key(name) && !kept.contains(name) && name.incarnation <= self.own).collect();
        let remaining = View::named_by(self.usable().filter(|(name, _)| !sweep.manifests.contains(name)).map(|(_, manifest)| manifest));
        let freed = View::named_by(self.usable().filter(|(name, _)| sweep.manifests.contains(name)).map(|(_, manifest)| manifest));
        // Uploaded again since: somebody is about to name it.
        let is_new = |name: &str| self.listing.files.get(name).is_some_and(|stored| !self.is_older_than_grace(stored.modified_ms));
        let marked_files = mark.objects.iter().filter_map(|key| key.strip_prefix("files/"));
        for name in freed.into_iter().chain(marked_files).filter(|name| !is_new(name)) {
            let is_ours = writer_of(name).is_some_and(|writer| writer <= self.own);
            let is_there = self.listing.files.contains_key(name) || name.starts_with('.');
            let is_needed = remaining.contains(name) && !mutants::is_on("gc-without-epoch-check");
            if is_ours && is_there && !is_needed && !self.protected.contains(name) {
                sweep.objects.insert(object_key(Folder::Files, name));
            }
        }
        for stray in &self.listing.strays {
            let key = object_key(stray.folder, &stray.name);
            if stray.folder != Folder::Files && stray.writer <= self.own && mark.objects.contains(&key) {
                sweep.objects.insert(key);
            }
        }
        sweep
    }
}

fn object_key(folder: Folder, name: &str) -> String {
    format!("{}/{name}", folder.name())
}

/// The folder and name of an object that a mark names.
pub(crate) fn split_key(key: &str) -> Result<(Folder, &str), StoreError> {
    let folders = [Folder::Files, Folder::Manifests, Folder::Pins, Folder::Marks];
    let found = key.split_once('/').and_then(|(folder, name)| Some((folders.into_iter().find(|known| known.name() == folder)?, name)));
    found.ok_or_else(|| StoreError::damaged(format!("a mark names {key:?}")))
}

#[cfg(test)]
#[path = "gc_test.rs"]
mod tests;

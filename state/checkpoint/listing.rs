//! What lies in a region's folder of the store, sorted by kind.

use crate::error::StoreError;
use crate::names::{Folder, Layout, ManifestName, writer_of, writer_of_manifest};
use crate::remote::Remote;
use object_store::ObjectMeta;
use object_store::path::Path;
use std::collections::{BTreeMap, BTreeSet};
use streamshield_core::ids::{Incarnation, RegionId};

/// An object as a list shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub size: u64,
    /// By the store's clock.
    pub modified_ms: i64,
}

/// What a torn write left behind under a name that nobody will use (HDFS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stray {
    pub folder: Folder,
    pub name: String,
    pub writer: Incarnation,
    pub stored: Stored,
}

/// One look at a region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    pub files: BTreeMap<String, Stored>,
    pub manifests: BTreeMap<ManifestName, Stored>,
    pub pins: BTreeSet<ManifestName>,
    pub marks: BTreeMap<String, Stored>,
    pub strays: Vec<Stray>,
}

impl Listing {
    /// Everything of a region.
    pub(crate) async fn of_region(remote: &Remote, layout: &Layout, region: RegionId) -> Result<Listing, StoreError> {
        let root = layout.region(region);
        let mut listing = Listing::default();
        for object in remote.list(&root).await? {
            listing.add(&root, &object);
        }
        Ok(listing)
    }

    /// Manifests and pins only: a restore or a list need not page through thousands of files.
    pub(crate) async fn of_checkpoints(remote: &Remote, layout: &Layout, region: RegionId) -> Result<Listing, StoreError> {
        let root = layout.region(region);
        let (manifests, pins) = (layout.folder(region, Folder::Manifests), layout.folder(region, Folder::Pins));
        let (manifests, pins) = futures::try_join!(remote.list(&manifests), remote.list(&pins))?;
        let mut listing = Listing::default();
        for object in manifests.iter().chain(&pins) {
            listing.add(&root, object);
        }
        Ok(listing)
    }

    fn add(&mut self, root: &Path, object: &ObjectMeta) {
        let Some(parts) = object.location.prefix_match(root) else { return };
        let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
        let [folder, name] = parts.as_slice() else { return };
        let stored = Stored { size: object.size, modified_ms: object.last_modified.timestamp_millis() };
        let folders = [Folder::Files, Folder::Manifests, Folder::Pins, Folder::Marks];
        let Some(folder) = folders.into_iter().find(|known| known.name() == folder) else { return };
        if name.starts_with('.') {
            let writer = match folder {
                Folder::Files | Folder::Marks => writer_of(name),
                Folder::Manifests | Folder::Pins => writer_of_manifest(name),
            };
            self.strays.extend(writer.map(|writer| Stray { folder, name: name.clone(), writer, stored }));
            return;
        }
        match folder {
            Folder::Files => drop(self.files.insert(name.clone(), stored)),
            Folder::Marks => drop(self.marks.insert(name.clone(), stored)),
            Folder::Manifests => drop(ManifestName::parse(name).map(|name| self.manifests.insert(name, stored))),
            Folder::Pins => drop(ManifestName::parse(name).map(|name| self.pins.insert(name))),
        }
    }

    /// When the newest object was written: the store's time as far as no grace depends on it.
    pub(crate) fn newest_ms(&self) -> i64 {
        let strays = self.strays.iter().map(|stray| stray.stored);
        let all = self.files.values().chain(self.manifests.values()).chain(self.marks.values()).copied().chain(strays);
        all.map(|stored| stored.modified_ms).max().unwrap_or(i64::MIN)
    }
}

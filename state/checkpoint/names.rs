//! Where things lie in a store, and what their names say.
//!
//! ```text
//! <prefix>/<job>/clock                                            overwritten to learn the store's time
//! <prefix>/<job>/1-3/files/1764091234567-9f86…e0a1-000012.sst    writer's incarnation, content hash, name
//! <prefix>/<job>/1-3/manifests/00000000000000004711-1764091234567.json
//! <prefix>/<job>/1-3/pins/00000000000000004711-1764091234567.json
//! <prefix>/<job>/1-3/gc/1764091234567-1764095555555-81f2.json    who marked, when by the writer's clock, chance
//! ```
//!
//! Each name carries the incarnation of its writer. So nobody overwrites what another one wrote, and garbage collection can leave alone
//! what was written by a successor: a larger incarnation than the own one.

use object_store::path::Path;
use std::fmt;
use streamshield_core::ids::{Epoch, Incarnation, RegionId, StageId};

/// Paths of one job in a store.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    prefix: Path,
    job_root: Path,
    job: String,
}

impl Layout {
    /// `job` is one path segment; see [`is_plain`].
    pub(crate) fn new(prefix: &Path, job: &str) -> Layout {
        Layout { prefix: prefix.clone(), job_root: prefix.clone().join(job), job: job.to_owned() }
    }

    /// Another job in the same store.
    pub(crate) fn of_job(&self, job: &str) -> Layout {
        Layout::new(&self.prefix, job)
    }

    pub(crate) fn job(&self) -> &str {
        &self.job
    }

    pub(crate) fn job_root(&self) -> &Path {
        &self.job_root
    }

    pub(crate) fn clock(&self) -> Path {
        self.job_root.clone().join("clock")
    }

    pub(crate) fn region(&self, region: RegionId) -> Path {
        self.job_root.clone().join(region_folder(region))
    }

    pub(crate) fn folder(&self, region: RegionId, folder: Folder) -> Path {
        self.region(region).join(folder.name())
    }

    pub(crate) fn object(&self, region: RegionId, folder: Folder, name: &str) -> Path {
        self.folder(region, folder).join(name)
    }

    pub(crate) fn manifest(&self, region: RegionId, name: ManifestName) -> Path {
        self.object(region, Folder::Manifests, &name.to_string())
    }
}

/// The folders of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Folder {
    Files,
    Manifests,
    Pins,
    Marks,
}

impl Folder {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Folder::Files => "files",
            Folder::Manifests => "manifests",
            Folder::Pins => "pins",
            Folder::Marks => "gc",
        }
    }
}

pub(crate) fn region_folder(region: RegionId) -> String {
    format!("{}-{}", region.stage.0, region.partition)
}

pub(crate) fn parse_region_folder(name: &str) -> Option<RegionId> {
    let (stage, partition) = name.split_once('-')?;
    let region = RegionId { stage: StageId(stage.parse().ok()?), partition: partition.parse().ok()? };
    (region_folder(region) == name).then_some(region)
}

/// Name of a manifest. The order is that of age: by epoch, then by writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ManifestName {
    pub epoch: Epoch,
    pub incarnation: Incarnation,
}

impl fmt::Display for ManifestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}-{}.json", self.epoch.0, self.incarnation.0)
    }
}

impl ManifestName {
    pub(crate) fn parse(name: &str) -> Option<ManifestName> {
        let (epoch, incarnation) = name.strip_suffix(".json")?.split_once('-')?;
        let parsed = ManifestName { epoch: Epoch(epoch.parse().ok()?), incarnation: Incarnation(incarnation.parse().ok()?) };
        (parsed.to_string() == name).then_some(parsed)
    }
}

pub(crate) fn file_object(incarnation: Incarnation, hash: u128, name: &str) -> String {
    format!("{}-{hash:032x}-{name}", incarnation.0)
}

pub(crate) fn mark_object(incarnation: Incarnation, now_ms: i64, chance: u16) -> String {
    format!("{}-{now_ms}-{chance:04x}.json", incarnation.0)
}

/// Who wrote an object, by its name in `files/` or `gc/`. Also for the `.name.tmp.1` that a write to HDFS leaves behind when it is torn.
/// None: not one of ours, so not to be touched.
pub(crate) fn writer_of(object: &str) -> Option<Incarnation> {
    let name = match object.strip_prefix('.') {
        Some(rest) => rest.rsplit_once(".tmp.").map(|(name, _)| name)?,
        None => object,
    };
    name.split_once('-')?.0.parse().ok().map(Incarnation)
}

/// Who wrote an object of the manifests folder: a manifest, or what a torn write of one left on HDFS.
pub(crate) fn writer_of_manifest(object: &str) -> Option<Incarnation> {
    let name = match object.strip_prefix('.') {
        Some(rest) => rest.rsplit_once(".tmp.").map(|(name, _)| name)?,
        None => object,
    };
    ManifestName::parse(name).map(|name| name.incarnation)
}

/// Whether a name is one path segment that every store and file system takes as it is. A manifest is data from outside: without this check it
/// could make a restore write anywhere.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 180
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_who_wrote_and_sort_by_age() {
        let name = |epoch, incarnation| ManifestName { epoch: Epoch(epoch), incarnation: Incarnation(incarnation) };
        assert_eq!(name(4711, 9).to_string(), "00000000000000004711-9.json");
        assert_eq!(ManifestName::parse("00000000000000004711-9.json"), Some(name(4711, 9)));
        assert_eq!(ManifestName::parse("4711-9.json"), None);
        assert_eq!(ManifestName::parse(".00000000000000004711-9.json.tmp.1"), None);
        assert_eq!(writer_of_manifest(".00000000000000004711-9.json.tmp.1"), Some(Incarnation(9)));
        assert!(name(9, 5) < name(10, 1) && name(10, 1) < name(10, 2));
        assert_eq!(writer_of(&file_object(Incarnation(77), 5, "000012.sst")), Some(Incarnation(77)));
        assert_eq!(writer_of(".77-00-000012.sst.tmp.3"), Some(Incarnation(77)));
        assert_eq!(writer_of("README"), None);
    }

    #[test]
    fn a_region_folder_is_read_back_and_nothing_else_is_taken_for_one() {
        let region = RegionId { stage: StageId(1), partition: 30 };
        assert_eq!(region_folder(region), "1-30");
        assert_eq!(parse_region_folder("1-30"), Some(region));
        for other in ["1-030", "1", "clock", "-1", "1-3x", "+1-3"] {
            assert_eq!(parse_region_folder(other), None, "{other}");
        }
    }

    #[test]
    fn a_name_that_leaves_its_folder_is_not_plain() {
        for bad in ["", ".", "..", "../x", "a/b", "a\\b", "a\0b", ".hidden", "ä", "a#1"] {
            assert!(!is_plain(bad), "{bad}");
        }
        for good in ["000012.sst", "MANIFEST-000005", "CURRENT", "OPTIONS-000007"] {
            assert!(is_plain(good), "{good}");
        }
    }
}

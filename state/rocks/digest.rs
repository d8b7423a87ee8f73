//! Digests of whole stores, of a worker that is stopped.
//!
//! The digests in epoch records are of what changed since the one before. Whether two stores of a region hold the same is told by all their groups:
//! each is hashed as a flush does it, and the hashes are summed up, so neither the order of the groups counts nor which file they lie in. What else
//! the store keeps does not count: two that stand at the same epoch may have learnt of it from different places of the changelog.
//!
//! Invariants: E-4 (at the same epoch the digests are equal, whoever wrote the store). No file is changed.

use super::directory::{self, Found};
use super::store::{RECORD_KEY, check_iterator, classify, open_read_only};
use crate::changes::{PREFIX_BYTES, Prefix, hash_of_entry, window_seed};
use crate::error::{damaged, io};
use crate::tables::RESERVED_OPERATOR;
use rocksdb::{Options, ReadOptions};
use std::path::Path;
use streamshield_core::ids::{Digest, RegionId, StageId};
use streamshield_core::ports::state::StateError;

/// One store is read at a time.
const OPEN_FILES_MAX: i32 = 128;

/// What lies in the store of one region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreDigest {
    pub region: RegionId,
    /// Of the last applied flush or delta, as it was given. None: nothing was ever applied.
    pub record: Option<Vec<u8>>,
    /// In the order of their operators; a table without groups is none of them.
    pub tables: Vec<TableDigest>,
}

/// All groups of one operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableDigest {
    pub operator: u16,
    pub groups: u64,
    pub digest: Digest,
}

impl StoreDigest {
    pub fn groups(&self) -> u64 {
        self.tables.iter().map(|table| table.groups).sum()
    }

    /// Of all groups of all tables.
    pub fn digest(&self) -> Digest {
        let mut digest = Digest::default();
        self.tables.iter().for_each(|table| digest.fold(table.digest.0));
        digest
    }
}

/// Reads the stores of all regions in a worker's folder. Nobody may write to it meanwhile.
pub fn digests(state_dir: &Path) -> Result<Vec<StoreDigest>, StateError> {
    directory::refuse_link(state_dir)?;
    let unreadable = |error: std::io::Error| io(format!("cannot list {}: {error}", state_dir.display()));
    let mut regions: Vec<RegionId> = vec![];
    for entry in std::fs::read_dir(state_dir).map_err(unreadable)? {
        regions.extend(entry.map_err(unreadable)?.file_name().to_str().and_then(region_of));
    }
    regions.sort();
    let mut stores = vec![];
    for region in regions {
        let path = directory::region_path(state_dir, region);
        match directory::inspect(&path)? {
            Found::Nothing => {}
            Found::Store => stores.push(read(region, &path)?),
            Found::Remains => return Err(damaged(format!("{} has data but no CURRENT file", path.display()))),
        }
    }
    Ok(stores)
}

/// The region of a folder's name, `<stage>-<partition>`.
fn region_of(name: &str) -> Option<RegionId> {
    let (stage, partition) = name.split_once('-')?;
    let region = RegionId { stage: StageId(stage.parse().ok()?), partition: partition.parse().ok()? };
    // `+3-05` can be read, too, and is nobody's folder.
    (directory::region_path(Path::new(""), region) == Path::new(name)).then_some(region)
}

fn read(region: RegionId, path: &Path) -> Result<StoreDigest, StateError> {
    let mut options = Options::default();
    options.set_max_open_files(OPEN_FILES_MAX);
    let store = open_read_only(options, path)?;
    let record = store.get(RECORD_KEY).map_err(|error| classify("cannot read the state store", error))?;
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_verify_checksums(true);
    options.set_readahead_size(1024 * 1024);
    // The record and the format lie behind all groups.
    options.set_iterate_upper_bound(RESERVED_OPERATOR.to_be_bytes());
    let mut all = store.raw_iterator_opt(options);
    all.seek_to_first();
    let mut tables: Vec<TableDigest> = vec![];
    let mut window: Option<(Prefix, u64)> = None;
    let mut group = vec![];
    while let Some((key, states)) = all.item() {
        let Some((prefix, key)) = key.split_first_chunk::<PREFIX_BYTES>() else {
            return Err(damaged("a key in the state store names no window"));
        };
        let seed = match window {
            Some((known, seed)) if known == *prefix => seed,
            _ => window_seed(prefix),
        };
        window = Some((*prefix, seed));
        group.clear();
        group.extend_from_slice(key);
        group.extend_from_slice(states);
        let operator = u16::from_be_bytes([prefix[0], prefix[1]]);
        if tables.last().is_none_or(|table| table.operator != operator) {
            tables.push(TableDigest { operator, groups: 0, digest: Digest::default() });
        }
        if let Some(table) = tables.last_mut() {
            table.groups += 1;
            table.digest.fold(hash_of_entry(&group, seed));
        }
        all.next();
    }
    check_iterator(&all)?;
    drop(all);
    Ok(StoreDigest { region, record, tables })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_that_are_named_as_regions_are_looked_at() {
        assert_eq!(region_of("3-5"), Some(RegionId { stage: StageId(3), partition: 5 }));
        for name in ["scratch", "streamshield.json", "3", "3-", "-5", "+3-5", "3-05", "3-5-7", "3-5.incoming"] {
            assert_eq!(region_of(name), None, "{name}");
        }
    }
}

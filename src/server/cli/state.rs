//! `streamshield state digest`: what lies in the local stores of a worker that is stopped.
//!
//! Two stores of a region that stand at the same epoch hold the same groups (E-4), whether they are its owner's, a follower's, or were restored from
//! a checkpoint and the log: so their digests are equal. Nothing in the folder is changed.

use super::status::{Stop, finish};
use super::{ExitStatus, say, tables};
use crate::job::secret::Redactor;
use crate::problem::Problem;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use std::fs::File;
use std::path::Path;
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::Epoch;
use streamshield_state::{StoreDigest, TableDigest, digests};

/// The store of one region.
#[derive(Debug, PartialEq, Serialize)]
struct StoreView {
    region: String,
    /// Of the last flush or delta in it. None: nothing was ever written.
    epoch: Option<Epoch>,
    groups: u64,
    digest: String,
    tables: Vec<TableView>,
}

#[derive(Debug, PartialEq, Serialize)]
struct TableView {
    operator: u16,
    groups: u64,
    digest: String,
}

pub fn digest(folder: &Path, json: bool, redactor: &Redactor) -> ExitStatus {
    finish(print(folder, json), redactor)
}

fn print(folder: &Path, json: bool) -> Result<(), Stop> {
    let found = read(folder)?;
    let text = match json {
        true => serde_json::to_string_pretty(&found).expect("plain data always serializes"),
        false if found.is_empty() => format!("no region has a store in `{}`", folder.display()),
        false => draw(&found),
    };
    say(text.trim_end());
    Ok(())
}

fn read(folder: &Path) -> Result<Vec<StoreView>, Stop> {
    let failed = |problem: Problem| Stop::with(ExitStatus::Failed, problem);
    let unusable = |reason: String| Problem::error(format!("can't read the state folder `{}`: {reason}", folder.display()));
    let lock = File::open(folder).map_err(|error| {
        let hint = "it is the job's `state_dir`; of a job with several workers, the folder in it that has the worker's name";
        failed(unusable(error.to_string()).hint(hint))
    })?;
    // The lock of its worker, which writes as long as it has it; to be shared with others that only look.
    match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            return Err(failed(unusable("a process uses it".into()).hint("stop the worker first")));
        }
        Err(error) => return Err(failed(unusable(error.to_string()))),
    }
    let stores = digests(folder).map_err(|error| failed(unusable(error.message)))?;
    stores.iter().map(|store| view(store).map_err(|reason| failed(unusable(reason)))).collect()
}

fn view(store: &StoreDigest) -> Result<StoreView, String> {
    let region = store.region.to_string();
    let epoch = match &store.record {
        None => None,
        Some(stored) => Some(epoch_of(stored).ok_or_else(|| format!("the store of {region} does not say its epoch"))?),
    };
    let table = |table: &TableDigest| TableView { operator: table.operator, groups: table.groups, digest: table.digest.to_string() };
    let tables = store.tables.iter().map(table).collect();
    Ok(StoreView { region, epoch, groups: store.groups(), digest: store.digest().to_string(), tables })
}

/// The engine writes where the changelog goes on, 8 bytes, and the epoch's record.
fn epoch_of(stored: &[u8]) -> Option<Epoch> {
    let (_, record) = stored.split_first_chunk::<8>()?;
    Some(EpochRecord::decode(record).ok()?.epoch)
}

fn draw(stores: &[StoreView]) -> String {
    let mut table = tables::table(&["region", "epoch", "groups", "digest"], &[1, 2]);
    for store in stores {
        let epoch = store.epoch.map_or_else(|| "–".to_string(), |epoch| epoch.to_string());
        table.add_row([store.region.clone(), epoch, store.groups.to_string(), store.digest.clone()]);
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use streamshield_core::ids::{Digest, Incarnation, PlanFingerprint, RegionId, StageId};
    use streamshield_core::watermark::Watermark;

    const REGION: RegionId = RegionId { stage: StageId(1), partition: 4 };

    fn record(epoch: u64) -> Vec<u8> {
        let record = EpochRecord {
            version: EpochRecord::VERSION,
            region: REGION,
            epoch: Epoch(epoch),
            incarnation: Incarnation(1),
            transactional_id: "t".into(),
            plan: PlanFingerprint(1),
            now_ms: 0,
            steps: vec![],
            positions: vec![0],
            upstreams: vec![],
            watermark: Watermark::MIN,
            digest: None,
            delta: None,
            finished: false,
        };
        [&77i64.to_be_bytes()[..], &record.encode()].concat()
    }

    #[test]
    fn a_store_is_shown_with_its_epoch_and_the_digest_of_all_its_tables() {
        let table = |operator, groups, digest| TableDigest { operator, groups, digest: Digest(digest) };
        let store = StoreDigest { region: REGION, record: Some(record(12)), tables: vec![table(1, 2, 0xa0), table(3, 5, 0x0b)] };
        let shown = view(&store).expect("it says its epoch");
        assert_eq!((shown.region.as_str(), shown.epoch, shown.groups), ("s1/4", Some(Epoch(12)), 7));
        assert_eq!((shown.digest.as_str(), shown.tables[1].digest.as_str()), ("00000000000000ab", "000000000000000b"));
        let json = serde_json::to_value([&shown]).expect("plain data");
        assert_eq!((&json[0]["region"], &json[0]["epoch"]), (&"s1/4".into(), &12.into()));
        assert!(draw(&[shown]).contains("00000000000000ab"));

        let empty = StoreDigest { record: None, tables: vec![], ..store.clone() };
        assert_eq!(view(&empty).expect("a store").epoch, None);
        assert!(view(&StoreDigest { record: Some(vec![1]), ..store }).is_err());
    }

    #[test]
    fn a_folder_that_a_worker_uses_is_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(read(folder.path()).ok().is_some_and(|found| found.is_empty()));
        let claimed = crate::wiring::state_folder::StateFolder::claim(Some(folder.path().into()), "orders").ok().expect("free");
        assert!(read(folder.path()).is_err());
        drop(claimed);
        assert!(read(folder.path()).is_ok());
        assert!(read(&folder.path().join("nowhere")).is_err());
    }
}

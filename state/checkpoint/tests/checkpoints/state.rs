//! Folders of files as a region's store makes them, and requests to keep them.

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Digest, Epoch, Incarnation, PlanFingerprint, RegionId, StageId};
use streamshield_core::ports::checkpoint::CheckpointRequest;
use streamshield_core::watermark::Watermark;

pub const REGION: RegionId = RegionId { stage: StageId(1), partition: 3 };
pub const PLAN: PlanFingerprint = PlanFingerprint(0x9f86_d081_884c_7d65);
/// Where its objects lie below the test's prefix.
pub const FOLDER: &str = "hot-items/1-3";

/// Bytes that are the same for the same seed.
pub fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Writes a folder of files.
pub fn folder(root: &Path, name: &str, files: &[(&str, Vec<u8>)]) -> PathBuf {
    let folder = root.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for (name, content) in files {
        std::fs::write(folder.join(name), content).unwrap();
    }
    folder
}

/// What lies in a folder.
pub fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect()
}

pub fn request(epoch: u64, incarnation: u64, directory: Option<PathBuf>) -> CheckpointRequest {
    CheckpointRequest {
        region: REGION,
        epoch: Epoch(epoch),
        incarnation: Incarnation(incarnation),
        plan: PLAN,
        positions: vec![epoch as i64 * 100, 7],
        watermark: Watermark(epoch as i64 * 1_000),
        changelog_from: epoch as i64 + 1,
        digest: Some(Digest(epoch)),
        record: format!("{{\"epoch\":{epoch}}}").into_bytes(),
        directory,
    }
}

/// Where a region stands in the topics of a job that is made from this one: at their beginning.
pub fn record(region: RegionId, epoch: u64) -> EpochRecord {
    EpochRecord {
        version: EpochRecord::VERSION,
        region,
        epoch: Epoch(epoch),
        incarnation: Incarnation(5),
        transactional_id: "hot-items-5-0".into(),
        plan: PLAN,
        now_ms: 0,
        steps: Vec::new(),
        positions: vec![0],
        upstreams: Vec::new(),
        watermark: Watermark(epoch as i64 * 1_000),
        digest: None,
        delta: None,
        finished: false,
    }
}

/// A small checkpoint whose content depends on the epoch, with one table file that all share.
pub fn small(root: &Path, epoch: u64, incarnation: u64) -> CheckpointRequest {
    let files = [
        ("000001.sst", content(1, 100_000)),
        (&*format!("{:06}.sst", 10 + epoch), content(1_000 + epoch, 30_000)),
        ("CURRENT", b"MANIFEST-000005\n".to_vec()),
        ("MANIFEST-000005", content(epoch, 300)),
    ];
    request(epoch, incarnation, Some(folder(root, &format!("{epoch}-{incarnation}"), &files)))
}

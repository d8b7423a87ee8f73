//! The manifest of a region checkpoint: where it stood, and which files hold its state.
//!
//! It is written last and never changed (K-1). This one was written by a test:
//!
//! ```json
//! {
//!   "version": 1,
//!   "checksum": "4d9ac4ebd0a2f5d5d1c46b4e92be2d1c",
//!   "checkpoint": {
//!     "job": "hot-items",
//!     "region": { "stage": 1, "partition": 3 },
//!     "epoch": 4711,
//!     "incarnation": 1764091234567,
//!     "plan": "9f86d081884c7d65",
//!     "positions": [ 120034, 119881 ],
//!     "watermark": 1764091233999,
//!     "changelog_from": 4712,
//!     "digest": "00c0ffee00c0ffee",
//!     "created_ms": 1764091240000,
//!     "record": "eyJlcG9jaCI6NDcxMX0=",
//!     "files": [
//!       {
//!         "name": "000012.sst",
//!         "size": 1048576,
//!         "checksum": "06b05ab6733a618578af5f94892f3950",
//!         "object": "1764091234567-06b05ab6733a618578af5f94892f3950-000012.sst"
//!       }
//!     ]
//!   }
//! }
//! ```
//!
//! `checksum` is the XXH3-128 of the text of `checkpoint`, byte for byte, seeded with the version: a damaged manifest is told from a whole one,
//! whatever the version. These three fields stay as they are in all versions. `record` is the epoch
//! record in Base64. `object` names the file in `files/`; its writer may be an earlier incarnation, whose upload is used again.
//!
//! A manifest of a newer version than this binary knows is *unknown*, not damaged: it is not restored, and as long as there is one nothing is
//! collected, because nobody here can tell which files it needs.

use crate::error::StoreError;
use crate::names::{ManifestName, is_plain, writer_of};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, Incarnation, Offset, PlanFingerprint, RegionId};
use streamshield_core::ports::checkpoint::{CheckpointInfo, CheckpointRequest, Durability};
use streamshield_core::watermark::Watermark;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// The version that is written.
pub(crate) const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub job: String,
    pub region: RegionId,
    pub epoch: Epoch,
    pub incarnation: Incarnation,
    #[serde(with = "hex_64")]
    plan: u64,
    pub positions: Vec<Offset>,
    pub watermark: Watermark,
    pub changelog_from: Offset,
    #[serde(with = "optional_hex_64", default, skip_serializing_if = "Option::is_none")]
    digest: Option<u64>,
    pub created_ms: i64,
    record: String,
    pub files: Vec<ManifestFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct ManifestFile {
    pub name: String,
    pub size: u64,
    #[serde(with = "hex_128")]
    pub checksum: u128,
    pub object: String,
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    version: u32,
    #[serde(with = "hex_128")]
    checksum: u128,
    #[serde(borrow)]
    checkpoint: &'a RawValue,
}

/// Why a manifest cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unusable {
    Damaged(String),
    Unknown { version: u32 },
}

impl Manifest {
    pub(crate) fn new(job: &str, request: &CheckpointRequest, created_ms: i64, files: Vec<ManifestFile>) -> Manifest {
        Manifest {
            job: job.to_owned(),
            region: request.region,
            epoch: request.epoch,
            incarnation: request.incarnation,
            plan: request.plan.0,
            positions: request.positions.clone(),
            watermark: request.watermark,
            changelog_from: request.changelog_from,
            digest: request.digest.map(|digest| digest.0),
            created_ms,
            record: BASE64.encode(&request.record),
            files,
        }
    }

    pub(crate) fn name(&self) -> ManifestName {
        ManifestName { epoch: self.epoch, incarnation: self.incarnation }
    }

    pub(crate) fn plan(&self) -> PlanFingerprint {
        PlanFingerprint(self.plan)
    }

    /// The same checkpoint, for another job, whose changelog holds from its beginning on what comes after it. `record`: where the region
    /// stands in that job's own topics.
    pub(crate) fn of_job(&self, job: &str, record: &EpochRecord) -> Manifest {
        Manifest {
            job: job.to_owned(),
            positions: record.positions.clone(),
            changelog_from: 0,
            record: BASE64.encode(record.encode()),
            ..self.clone()
        }
    }

    pub(crate) fn record(&self) -> Vec<u8> {
        BASE64.decode(&self.record).expect("decode() has checked it")
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    pub(crate) fn info(&self, durability: Durability, pinned: bool) -> CheckpointInfo {
        CheckpointInfo {
            region: self.region,
            epoch: self.epoch,
            incarnation: self.incarnation,
            plan: self.plan(),
            positions: self.positions.clone(),
            watermark: self.watermark,
            changelog_from: self.changelog_from,
            durability,
            pinned,
            created_ms: self.created_ms,
            manifest: self.name().to_string(),
            files: self.files.len(),
            bytes: self.bytes(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let text = serde_json::to_string_pretty(self).expect("numbers, texts and lists always become JSON");
        let checkpoint = RawValue::from_string(text).expect("serde_json writes valid JSON");
        let checksum = xxh3_128_with_seed(checkpoint.get().as_bytes(), u64::from(VERSION));
        let envelope = Envelope { version: VERSION, checksum, checkpoint: &checkpoint };
        serde_json::to_vec(&envelope).expect("numbers and JSON always become JSON")
    }

    /// Reads a manifest that lies under this name in this region of this job.
    pub(crate) fn decode(bytes: &[u8], job: &str, region: RegionId, name: ManifestName) -> Result<Manifest, Unusable> {
        let damaged = |why: String| Unusable::Damaged(format!("{name}: {why}"));
        let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if xxh3_128_with_seed(envelope.checkpoint.get().as_bytes(), u64::from(envelope.version)) != envelope.checksum {
            return Err(damaged("its checksum is wrong".into()));
        }
        if envelope.version != VERSION {
            return Err(Unusable::Unknown { version: envelope.version });
        }
        let manifest: Manifest = serde_json::from_str(envelope.checkpoint.get()).map_err(|error| damaged(error.to_string()))?;
        if manifest.job != job || manifest.region != region || manifest.name() != name {
            return Err(damaged(format!("it is about epoch {} of region {} of job {:?}", manifest.epoch, manifest.region, manifest.job)));
        }
        if BASE64.decode(&manifest.record).is_err() {
            return Err(damaged("its epoch record is not Base64".into()));
        }
        for file in &manifest.files {
            if !is_plain(&file.name) || !is_plain(&file.object) || writer_of(&file.object).is_none() {
                return Err(damaged(format!("it names a file {:?}", file.name)));
            }
        }
        Ok(manifest)
    }
}

impl From<Unusable> for StoreError {
    fn from(unusable: Unusable) -> StoreError {
        match unusable {
            Unusable::Damaged(why) => StoreError::damaged(why),
            Unusable::Unknown { version } => StoreError::damaged(format!("a manifest of version {version}; this release knows {VERSION}")),
        }
    }
}

/// 64-bit fingerprints as text: as numbers, tools that read JSON numbers as floating point would change them.
mod hex_64 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:016x}"))
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

mod optional_hex_64 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    pub(super) fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::hex_64::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| u64::from_str_radix(&text, 16).map_err(D::Error::custom)).transpose()
    }
}

mod hex_128 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    pub(super) fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:032x}"))
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[path = "manifest_test.rs"]
mod tests;

use super::*;
use streamshield_core::ids::{Digest, StageId};
use xxhash_rust::xxh3::xxh3_128;

fn manifest() -> Manifest {
    let region = RegionId { stage: StageId(1), partition: 3 };
    let request = CheckpointRequest {
        region,
        epoch: Epoch(4711),
        incarnation: Incarnation(1764091234567),
        plan: PlanFingerprint(0x9f86d081884c7d65),
        positions: vec![120034, 119881],
        watermark: Watermark(1764091233999),
        changelog_from: 4712,
        digest: Some(Digest(0x00c0ffee00c0ffee)),
        record: br#"{"epoch":4711}"#.to_vec(),
        directory: None,
    };
    let checksum = xxh3_128(b"");
    let object = crate::names::file_object(request.incarnation, checksum, "000012.sst");
    Manifest::new("hot-items", &request, 1764091240000, vec![ManifestFile { name: "000012.sst".into(), size: 0, checksum, object }])
}

fn decode(bytes: &[u8]) -> Result<Manifest, Unusable> {
    let manifest = manifest();
    Manifest::decode(bytes, "hot-items", manifest.region, manifest.name())
}

#[test]
fn what_is_written_is_read_back() {
    let manifest = manifest();
    assert_eq!(decode(&manifest.encode()), Ok(manifest.clone()));
    assert_eq!(manifest.record(), br#"{"epoch":4711}"#);
    let mut without = manifest;
    without.digest = None;
    without.watermark = Watermark::MIN;
    assert_eq!(decode(&without.encode()), Ok(without));
}

#[test]
fn for_another_job_it_says_where_the_region_stands_in_that_jobs_topics() {
    let manifest = manifest();
    let record = EpochRecord {
        version: EpochRecord::VERSION,
        region: manifest.region,
        epoch: manifest.epoch,
        incarnation: manifest.incarnation,
        transactional_id: "hot-items-1764091234567-0".into(),
        plan: manifest.plan(),
        now_ms: 0,
        steps: Vec::new(),
        positions: vec![0],
        upstreams: Vec::new(),
        watermark: manifest.watermark,
        digest: None,
        delta: None,
        finished: false,
    };
    let elsewhere = manifest.of_job("hot-items-2", &record);
    assert_eq!((elsewhere.job.as_str(), elsewhere.changelog_from), ("hot-items-2", 0));
    assert_eq!((elsewhere.positions.as_slice(), elsewhere.record()), (&[0][..], record.encode()));
    assert_eq!((elsewhere.name(), &elsewhere.files), (manifest.name(), &manifest.files));
}

#[test]
fn every_flipped_bit_and_every_truncation_is_noticed() {
    let whole = manifest().encode();
    for length in 0..whole.len() {
        assert!(decode(&whole[..length]).is_err(), "cut at {length}");
    }
    for position in 0..whole.len() * 8 {
        let mut changed = whole.clone();
        changed[position / 8] ^= 1 << (position % 8);
        match decode(&changed) {
            Err(Unusable::Damaged(_)) => {}
            // In the letter case of the checksum's digits it changes no meaning.
            other => assert_eq!(other, Ok(manifest()), "bit {position}"),
        }
    }
}

#[test]
fn a_manifest_of_something_else_is_refused() {
    let manifest = manifest();
    let bytes = manifest.encode();
    let other = RegionId { stage: StageId(1), partition: 4 };
    assert!(matches!(Manifest::decode(&bytes, "hot-items", other, manifest.name()), Err(Unusable::Damaged(_))));
    assert!(matches!(Manifest::decode(&bytes, "cold-items", manifest.region, manifest.name()), Err(Unusable::Damaged(_))));
    let later = ManifestName { epoch: Epoch(4712), ..manifest.name() };
    assert!(matches!(Manifest::decode(&bytes, "hot-items", manifest.region, later), Err(Unusable::Damaged(_))));
}

#[test]
fn a_file_name_that_leads_elsewhere_is_refused() {
    for name in ["../../etc/passwd", "/etc/passwd", "..", "a/b"] {
        let mut manifest = manifest();
        manifest.files[0].name = name.into();
        assert!(matches!(decode(&manifest.encode()), Err(Unusable::Damaged(_))), "{name}");
    }
}

#[test]
fn a_newer_version_is_unknown_and_not_damaged() {
    let checkpoint = RawValue::from_string(r#"{"something":"else"}"#.into()).unwrap();
    let checksum = xxh3_128_with_seed(checkpoint.get().as_bytes(), 2);
    let bytes = serde_json::to_vec(&Envelope { version: 2, checksum, checkpoint: &checkpoint }).unwrap();
    assert_eq!(decode(&bytes), Err(Unusable::Unknown { version: 2 }));

    let text = String::from_utf8(manifest().encode()).unwrap().replacen("\"version\":1", "\"version\":2", 1);
    assert!(matches!(decode(text.as_bytes()), Err(Unusable::Damaged(_))), "a flipped bit in the version is damage");
}

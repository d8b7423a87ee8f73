use super::*;
use crate::wiring::checkpoints::Verified;
use insta::assert_snapshot;
use parking_lot::Mutex;
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Incarnation, PlanFingerprint};
use streamshield_core::watermark::Watermark;

const MADE_MS: i64 = 1_700_000_000_000;

fn region(partition: u32) -> RegionId {
    RegionId { stage: StageId(1), partition }
}

fn checkpoint(partition: u32, epoch: u64) -> CheckpointInfo {
    CheckpointInfo {
        region: region(partition),
        epoch: Epoch(epoch),
        incarnation: Incarnation(7),
        plan: PlanFingerprint(1),
        positions: vec![epoch as i64],
        watermark: Watermark::MIN,
        changelog_from: 0,
        durability: Durability::Remote,
        pinned: false,
        created_ms: MADE_MS,
        manifest: format!("manifests/{epoch}"),
        files: 3,
        bytes: 5 << 20,
    }
}

/// A store in memory: region 0 has epochs 10, 20, 30, region 1 has 15, 25.
#[derive(Default)]
struct Store {
    pins: Mutex<Vec<(RegionId, Epoch, bool)>>,
    damaged: Option<Epoch>,
}

impl CheckpointAdmin for Store {
    fn regions(&self) -> Result<Vec<RegionId>, CheckpointError> {
        Ok(vec![region(0), region(1)])
    }
    fn list(&self, region: RegionId) -> Result<Vec<CheckpointInfo>, CheckpointError> {
        let epochs: &[u64] = match region.partition {
            0 => &[10, 20, 30],
            1 => &[15, 25],
            _ => &[],
        };
        Ok(epochs.iter().map(|epoch| checkpoint(region.partition, *epoch)).collect())
    }
    fn verify(&self, region: RegionId) -> Result<Vec<Verified>, CheckpointError> {
        let verified = |checkpoint: CheckpointInfo| Verified {
            manifest: checkpoint.manifest,
            epoch: Some(checkpoint.epoch),
            files: checkpoint.files,
            bytes: checkpoint.bytes,
            problems: if self.damaged == Some(checkpoint.epoch) { vec!["000012.sst: its checksum differs".into()] } else { Vec::new() },
        };
        Ok(self.list(region)?.into_iter().map(verified).collect())
    }
    fn pin(&self, region: RegionId, epoch: Epoch) -> Result<(), CheckpointError> {
        self.pins.lock().push((region, epoch, true));
        Ok(())
    }
    fn unpin(&self, region: RegionId, epoch: Epoch) -> Result<(), CheckpointError> {
        self.pins.lock().push((region, epoch, false));
        Ok(())
    }
    fn collect_garbage(&self, _: RegionId, _: Option<Duration>) -> Result<u64, CheckpointError> {
        Ok(2)
    }
    fn record(&self, _: RegionId, _: Epoch) -> Result<Vec<u8>, CheckpointError> {
        Ok(Vec::new())
    }
    fn clone_to(&self, _: &str, records: &BTreeMap<RegionId, EpochRecord>) -> Result<Vec<CheckpointInfo>, CheckpointError> {
        Ok(records.iter().map(|(region, record)| checkpoint(region.partition, record.epoch.0)).collect())
    }
    fn check_clone(&self, _: &str, _: &BTreeMap<RegionId, Epoch>) -> Result<(), CheckpointError> {
        Ok(())
    }
}

fn found() -> BTreeMap<RegionId, Vec<CheckpointInfo>> {
    all(&Store::default(), None).ok().expect("listed")
}

#[test]
fn checkpoints_are_listed_with_age_size_and_place() {
    let local = CheckpointInfo { durability: Durability::Local, pinned: true, ..checkpoint(1, 25) };
    assert_snapshot!(draw(&[checkpoint(0, 30), local], MADE_MS + 90_000));
}

#[test]
fn a_region_is_written_as_it_is_shown() {
    assert_eq!(parse_region("s1/2"), Ok(region(2)));
    for text in ["1/2", "s1", "s1/x", "s1/2/3", ""] {
        assert!(parse_region(text).is_err(), "{text}");
    }
}

#[test]
fn without_an_epoch_the_newest_of_each_region_is_meant() {
    let epochs = |selection| select(&found(), selection).map(|chosen| chosen.iter().map(|info| info.epoch.0).collect::<Vec<_>>());
    assert_eq!(epochs(Selection::default()).ok(), Some(vec![30, 25]));
    assert_eq!(epochs(Selection { epoch: Some(Epoch(15)), region: None }).ok(), Some(vec![15]));
    assert!(epochs(Selection { epoch: Some(Epoch(16)), region: None }).is_err());
}

#[test]
fn a_pin_is_set_on_what_was_selected() {
    let store = Store::default();
    assert!(pin_selected(&store, Selection { region: Some(region(0)), epoch: Some(Epoch(20)) }, true).is_ok());
    assert!(pin_selected(&store, Selection { region: Some(region(0)), epoch: Some(Epoch(21)) }, true).is_err());
    assert_eq!(*store.pins.lock(), [(region(0), Epoch(20), true)]);
}

#[test]
fn a_damaged_checkpoint_makes_verify_fail() {
    let verify = |damaged, epoch| {
        let store = Store { damaged, ..Default::default() };
        verify_selected(&store, Selection { region: None, epoch }, &Redactor::default()).is_ok()
    };
    assert!(verify(None, None) && verify(None, Some(Epoch(15))) && !verify(None, Some(Epoch(16))));
    assert!(!verify(Some(Epoch(15)), None) && verify(Some(Epoch(15)), Some(Epoch(25))));
}

#[test]
fn a_restore_takes_of_each_region_the_newest_one_that_is_old_enough() {
    let epochs = |to| restore_points(&found(), to).map(|points| points.iter().map(|point| point.epoch.0).collect::<Vec<_>>());
    assert_eq!(epochs(RestoreTo::Latest), Ok(vec![30, 25]));
    assert_eq!(epochs(RestoreTo::Epoch(Epoch(20))), Ok(vec![20, 15]));
    assert_eq!(epochs(RestoreTo::Epoch(Epoch(12))), Err(region(1)), "a job is restored as a whole or not at all");
    assert_eq!("latest".parse(), Ok(RestoreTo::Latest));
    assert_eq!("17".parse(), Ok(RestoreTo::Epoch(Epoch(17))));
    assert!("newest".parse::<RestoreTo>().is_err());
}

use super::*;
use crate::listing::{Stored, Stray};
use crate::manifest::ManifestFile;
use crate::names::file_object;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use streamshield_core::ids::{Epoch, PlanFingerprint, RegionId, StageId};
use streamshield_core::ports::checkpoint::CheckpointRequest;
use streamshield_core::watermark::Watermark;

const GRACE: Duration = Duration::from_secs(100);
const NOW_MS: i64 = 1_000_000_000;
const OLD_MS: i64 = NOW_MS - 200_000;

/// A region's folder as a test wants it.
#[derive(Default)]
struct World {
    listing: Listing,
    manifests: Manifests,
    protected: BTreeSet<String>,
}

fn name(epoch: u64, incarnation: u64) -> ManifestName {
    ManifestName { epoch: Epoch(epoch), incarnation: Incarnation(incarnation) }
}

impl World {
    fn file(&mut self, writer: u64, content: u128, modified_ms: i64) -> ManifestFile {
        let object = file_object(Incarnation(writer), content, "1.sst");
        self.listing.files.insert(object.clone(), Stored { size: 1, modified_ms });
        ManifestFile { name: format!("{content}.sst"), size: 1, checksum: content, object }
    }

    fn checkpoint(&mut self, epoch: u64, writer: u64, files: Vec<ManifestFile>, modified_ms: i64) {
        let request = CheckpointRequest {
            region: RegionId { stage: StageId(1), partition: 3 },
            epoch: Epoch(epoch),
            incarnation: Incarnation(writer),
            plan: PlanFingerprint(1),
            positions: vec![],
            watermark: Watermark::MIN,
            changelog_from: 0,
            digest: None,
            record: vec![],
            directory: None,
        };
        let manifest = Manifest::new("job", &request, 0, files);
        self.listing.manifests.insert(manifest.name(), Stored { size: 1, modified_ms });
        self.manifests.insert(manifest.name(), Ok(Arc::new(manifest)));
    }

    fn view(&self, own: u64) -> View<'_> {
        View {
            listing: &self.listing,
            manifests: &self.manifests,
            own: Incarnation(own),
            retention: Retention { count: 2, younger_than: None },
            grace: GRACE,
            now_ms: NOW_MS,
            protected: &self.protected,
        }
    }
}

#[test]
fn what_retention_no_longer_keeps_is_marked_with_the_files_that_only_it_names() {
    let mut world = World::default();
    let (shared, only_first) = (world.file(5, 1, OLD_MS), world.file(5, 2, OLD_MS));
    world.checkpoint(1, 5, vec![shared.clone(), only_first.clone()], OLD_MS);
    world.checkpoint(2, 5, vec![shared.clone()], OLD_MS);
    world.checkpoint(3, 5, vec![shared], OLD_MS);
    let mark = world.view(5).mark(&BTreeSet::new());
    assert_eq!(mark.manifests, BTreeSet::from([name(1, 5).to_string()]));
    assert!(mark.objects.is_empty(), "its files are named until it is gone: {mark:?}");
    let sweep = world.view(5).sweep(&mark);
    assert_eq!(sweep.manifests, BTreeSet::from([name(1, 5)]));
    assert_eq!(sweep.objects, BTreeSet::from([format!("files/{}", only_first.object)]));
}

#[test]
fn a_pin_that_came_after_the_mark_keeps_it() {
    let mut world = World::default();
    for epoch in 1..=3 {
        let file = world.file(5, u128::from(epoch), OLD_MS);
        world.checkpoint(epoch, 5, vec![file], OLD_MS);
    }
    let mark = world.view(5).mark(&BTreeSet::new());
    assert!(!mark.manifests.is_empty());
    world.listing.pins.insert(name(1, 5));
    assert_eq!(world.view(5).sweep(&mark), Sweep::default());
}

#[test]
fn an_orphan_is_marked_by_age_only_and_stays_when_it_is_named_meanwhile() {
    let mut world = World::default();
    let (old, young) = (world.file(5, 1, OLD_MS), world.file(5, 2, NOW_MS - 1_000));
    let of_an_upload = world.file(5, 3, OLD_MS);
    world.protected.insert(of_an_upload.object.clone());
    let mark = world.view(5).mark(&BTreeSet::new());
    assert_eq!(mark.objects, BTreeSet::from([format!("files/{}", old.object)]), "not the young one {young:?}, not the protected one");
    world.checkpoint(9, 5, vec![old], NOW_MS);
    assert_eq!(world.view(5).sweep(&mark), Sweep::default());
}

#[test]
fn an_orphan_that_was_uploaded_again_since_the_mark_stays() {
    let mut world = World::default();
    let orphan = world.file(5, 1, OLD_MS);
    let mark = world.view(5).mark(&BTreeSet::new());
    assert_eq!(mark.objects, BTreeSet::from([format!("files/{}", orphan.object)]));
    world.file(5, 1, NOW_MS - 1_000);
    assert_eq!(world.view(5).sweep(&mark), Sweep::default());
}

#[test]
fn a_file_that_a_marked_checkpoint_names_and_that_was_uploaded_again_stays() {
    let mut world = World::default();
    let again = world.file(5, 1, OLD_MS);
    world.checkpoint(1, 5, vec![again], OLD_MS);
    for epoch in 2..=3 {
        let file = world.file(6, u128::from(epoch), OLD_MS);
        world.checkpoint(epoch, 6, vec![file], OLD_MS);
    }
    let mark = world.view(6).mark(&BTreeSet::new());
    assert_eq!(mark.manifests, BTreeSet::from([name(1, 5).to_string()]));
    world.file(5, 1, NOW_MS - 1_000);
    assert_eq!(world.view(6).sweep(&mark), Sweep { manifests: BTreeSet::from([name(1, 5)]), ..Sweep::default() });
}

#[test]
fn nothing_of_a_larger_incarnation_is_touched() {
    let mut world = World::default();
    for epoch in 1..=4 {
        let file = world.file(8, u128::from(epoch), OLD_MS);
        world.checkpoint(epoch, 8, vec![file], OLD_MS);
    }
    let orphan = world.file(8, 99, OLD_MS);
    world.listing.strays.push(Stray {
        folder: Folder::Files,
        name: format!(".{}.tmp.1", orphan.object),
        writer: Incarnation(8),
        stored: Stored { size: 1, modified_ms: OLD_MS },
    });
    assert!(world.view(7).mark(&BTreeSet::new()).is_empty());
    let by_the_successor = world.view(8).mark(&BTreeSet::new());
    assert_eq!((by_the_successor.manifests.len(), by_the_successor.objects.len()), (2, 2));
    assert_eq!(world.view(7).sweep(&by_the_successor), Sweep::default());
    let forged = Mark { incarnation: Incarnation(7), ..by_the_successor };
    assert_eq!(world.view(7).sweep(&forged), Sweep::default());
}

#[test]
fn a_manifest_of_a_newer_release_stops_the_collection() {
    let mut world = World::default();
    for epoch in 1..=4 {
        world.checkpoint(epoch, 5, vec![], OLD_MS);
    }
    let mark = world.view(5).mark(&BTreeSet::new());
    world.manifests.insert(name(9, 5), Err(Unusable::Unknown { version: 2 }));
    assert!(world.view(5).mark(&BTreeSet::new()).is_empty());
    assert_eq!(world.view(5).sweep(&mark), Sweep::default());
}

#[test]
fn a_damaged_manifest_does_not_push_a_good_one_out() {
    let mut world = World::default();
    for epoch in 1..=2 {
        let file = world.file(5, u128::from(epoch), OLD_MS);
        world.checkpoint(epoch, 5, vec![file], OLD_MS);
    }
    for epoch in 3..=5 {
        world.listing.manifests.insert(name(epoch, 5), Stored { size: 1, modified_ms: OLD_MS });
        world.manifests.insert(name(epoch, 5), Err(Unusable::Damaged("x".into())));
    }
    let mark = world.view(5).mark(&BTreeSet::new());
    assert_eq!(mark.manifests, (3..=5).map(|epoch| name(epoch, 5).to_string()).collect());
}

/// Whatever is marked, and whatever happens between the mark and the sweep: what remains can be restored.
#[test]
fn in_random_worlds_no_remaining_manifest_loses_a_file() {
    let seed = std::env::var("STREAMSHIELD_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("STREAMSHIELD_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut swept_manifests, mut swept_objects) = (0, 0);
    for _ in 0..6_000 {
        let mut world = World::default();
        let mut epoch = 0;
        grow(&mut world, &mut random, &mut epoch);
        let own = random.random_range(1..5);
        let mark = world.view(own).mark(&BTreeSet::new());
        grow(&mut world, &mut random, &mut epoch);
        let sweep = world.view(own).sweep(&mark);
        swept_manifests += sweep.manifests.len();
        swept_objects += sweep.objects.len();

        assert!(sweep.manifests.iter().all(|name| name.incarnation.0 <= own && !world.listing.pins.contains(name)));
        assert!(sweep.objects.iter().all(|key| writer_of(split_key(key).unwrap().1).unwrap().0 <= own));
        let usable: Vec<_> = world.manifests.iter().filter(|(_, manifest)| manifest.is_ok()).collect();
        let newest: Vec<_> = usable.iter().rev().take(2).map(|(name, _)| **name).collect();
        assert!(newest.iter().all(|name| !sweep.manifests.contains(name)), "the newest ones stay");
        for (name, manifest) in usable.iter().filter(|(name, _)| !sweep.manifests.contains(name)) {
            for file in &manifest.as_ref().unwrap().files {
                assert!(!sweep.objects.contains(&format!("files/{}", file.object)), "{name} loses {}", file.object);
            }
        }
    }
    assert!(
        swept_manifests > 1_000 && swept_objects > 1_000,
        "it swept {swept_manifests} and {swept_objects}: too little to mean anything"
    );
}

/// Adds checkpoints that use files of the newest one again, orphans and pins.
fn grow(world: &mut World, random: &mut StdRng, epoch: &mut u64) {
    for _ in 0..random.random_range(1..6) {
        *epoch += 1;
        let writer = random.random_range(1..5);
        let newest = world.manifests.values().rev().find_map(|manifest| manifest.as_ref().ok().cloned());
        let mut files: Vec<ManifestFile> = newest.map(|manifest| manifest.files.clone()).unwrap_or_default();
        files.retain(|_| random.random_bool(0.7));
        for _ in 0..random.random_range(0..3) {
            let modified_ms = random.random_range(OLD_MS..NOW_MS);
            files.push(world.file(writer, random.random(), modified_ms));
        }
        if random.random_bool(0.8) {
            world.checkpoint(*epoch, writer, files, random.random_range(OLD_MS..NOW_MS));
        }
        if random.random_bool(0.1) {
            let pinned = world.manifests.keys().nth(random.random_range(0..world.manifests.len().max(1))).copied();
            world.listing.pins.extend(pinned);
        }
    }
}

//! How fast checkpoints go to a store and back. A measurement, run by hand:
//! `scripts/with-services.sh cargo test --release -p streamshield-checkpoint -p unify -- --ignored --nocapture --test-threads 1 speed`

use crate::place::Place;
use crate::state::{PLAN, REGION, content, folder, request};
use std::time::Instant;
use streamshield_core::ports::checkpoint::CheckpointStore;

const FILES: usize = 8;
const FILE_BYTES: usize = 32 << 20;

fn measure(name: &str, place: &Place) {
    let names: Vec<String> = (0..FILES).map(|index| format!("{index:06}.sst")).collect();
    let files: Vec<(&str, Vec<u8>)> = names.iter().zip(0..).map(|(name, seed)| (name.as_str(), content(seed, FILE_BYTES))).collect();
    let directory = folder(place.disk.path(), "large", &files);
    let store = place.open();
    let saved = store.save(&request(1, 5, Some(directory.clone()))).unwrap();
    let again = store.save(&request(2, 5, Some(directory))).unwrap();
    let begin = Instant::now();
    let restored = place.open().restore(REGION, PLAN, &place.disk.path().join("restored")).unwrap().unwrap();
    assert_eq!((restored.bytes_fetched, again.bytes_uploaded), (saved.bytes, 0));
    let speed = |seconds: f64| saved.bytes as f64 / 1e6 / seconds;
    println!(
        "{name}: {} MB saved at {:.0} MB/s, again unchanged in {:.3} s, restored at {:.0} MB/s",
        saved.bytes / 1_000_000,
        speed(saved.seconds),
        again.seconds,
        speed(begin.elapsed().as_secs_f64())
    );
}

#[test]
#[ignore = "a measurement"]
fn speed_of_every_store() {
    measure("folder", &Place::folder());
    if let Some(place) = Place::s3("speed") {
        measure("S3", &place);
    }
    if let Some(place) = Place::hdfs("speed") {
        measure("HDFS", &place);
    }
}

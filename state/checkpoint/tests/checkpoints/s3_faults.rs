//! An S3 server behind a misbehaving proxy: what the HTTP client below makes of a fault is part of the behaviour.

use crate::place::{JOB, Place};
use crate::proxy::{Answer, Proxy};
use crate::state::{FOLDER, PLAN, REGION, content, files_of, folder, request, small};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use streamshield_checkpoint::{ObjectCheckpoints, StoreConfig};
use streamshield_core::ids::Epoch;
use streamshield_core::ports::checkpoint::{CheckpointErrorKind, CheckpointStore, Durability};

/// The S3 server of this run, seen through a proxy.
fn through_a_proxy(test: &str) -> Option<(Place, Proxy)> {
    let endpoint = Place::s3_endpoint(test)?;
    let proxy = Proxy::start(&endpoint, |_, _| Answer::Forward);
    Some((Place::s3_at(test, &endpoint, &proxy.endpoint), proxy))
}

fn config(place: &Place) -> StoreConfig {
    let mut config = place.config();
    config.request_timeout = Duration::from_secs(3);
    config.retry_timeout = Duration::from_secs(12);
    config.backoff = Duration::from_millis(200);
    config.local_fallback = Some(place.disk.path().join("local"));
    config
}

fn open(place: &Place) -> ObjectCheckpoints {
    ObjectCheckpoints::open(config(place), JOB).unwrap()
}

#[test]
fn a_manifest_that_was_written_although_the_answer_was_503_or_lost_is_our_own() {
    let test = "a_manifest_that_was_written_although_the_answer_was_503_or_lost_is_our_own";
    let Some((place, proxy)) = through_a_proxy(test) else { return };
    let store = open(&place);
    for (epoch, answer) in [(1, Answer::ForwardThenStatus(503)), (2, Answer::ForwardThenCut), (3, Answer::Status(409, String::new()))] {
        let mut injected = 0;
        proxy.set(move |method, path| {
            if method == "PUT" && path.contains("/manifests/") && injected < 1 {
                injected += 1;
                return answer.clone();
            }
            Answer::Forward
        });
        let saved = store.save(&small(place.disk.path(), epoch, 5)).unwrap();
        assert_eq!(saved.durability, Durability::Remote, "epoch {epoch}");
    }
    assert_eq!(store.list(REGION).unwrap().len(), 3);
    assert!(store.verify(REGION).unwrap().iter().all(|checkpoint| checkpoint.is_whole()));
}

#[test]
fn a_503_and_then_a_cut_connection_for_every_single_request_are_ridden_out() {
    let Some((place, proxy)) = through_a_proxy("a_503_and_then_a_cut_connection") else { return };
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    proxy.set(move |method, path| {
        let times = seen.entry(format!("{method} {path}")).or_default();
        *times += 1;
        match times {
            1 => Answer::Status(503, "<Error><Code>SlowDown</Code></Error>".into()),
            2 => Answer::Cut,
            _ => Answer::Forward,
        }
    });
    let store = open(&place);
    let files = [("000001.sst", content(1, 100_000)), ("000002.sst", content(2, (9 << 20) + 1)), ("CURRENT", b"x".to_vec())];
    let directory = folder(place.disk.path(), "a", &files);
    assert_eq!(store.save(&request(1, 5, Some(directory.clone()))).unwrap().durability, Durability::Remote);
    let target = place.disk.path().join("restored");
    store.restore(REGION, PLAN, &target).unwrap().unwrap();
    assert_eq!(files_of(&target), files_of(&directory));
}

#[test]
fn a_server_that_hangs_after_its_headers_does_not_hold_up_a_save_or_a_restore() {
    let Some((place, proxy)) = through_a_proxy("a_server_that_hangs_after_its_headers") else { return };
    let mut config = config(&place);
    config.request_timeout = Duration::from_millis(700);
    config.retry_timeout = Duration::from_secs(2);
    let store = ObjectCheckpoints::open(config, JOB).unwrap();
    store.save(&small(place.disk.path(), 1, 5)).unwrap();
    proxy.set(|_, _| Answer::HangAfterHeaders);
    let begin = Instant::now();
    assert_eq!(store.save(&small(place.disk.path(), 2, 5)).unwrap().durability, Durability::Local);
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
    assert!(!store.is_available());

    // Only bodies of files hang, for a while: the restore goes on when they come.
    let mut hung = 0;
    proxy.set(move |method, path| {
        if method == "GET" && path.contains("/files/") && hung < 2 {
            hung += 1;
            return Answer::HangAfterHeaders;
        }
        Answer::Forward
    });
    let mut config = place.config();
    config.request_timeout = Duration::from_secs(1);
    config.retry_timeout = Duration::from_secs(10);
    let restored = ObjectCheckpoints::open(config, JOB).unwrap().restore(REGION, PLAN, &place.disk.path().join("restored"));
    assert_eq!(restored.unwrap().unwrap().info.epoch, Epoch(1));
}

#[test]
fn a_body_that_is_cut_short_is_fetched_again_and_never_taken_for_the_file() {
    let test = "a_body_that_is_cut_short_is_fetched_again";
    for answer in [Answer::HalfBody, Answer::HalfBodyThatAgrees] {
        let Some((place, proxy)) = through_a_proxy(test) else { return };
        let store = open(&place);
        let request = small(place.disk.path(), 1, 5);
        store.save(&request).unwrap();
        let (mut cut, faulty) = (0, answer.clone());
        proxy.set(move |method, path| {
            if method == "GET" && path.contains("/files/") && cut < 2 {
                cut += 1;
                return faulty.clone();
            }
            Answer::Forward
        });
        let target = place.disk.path().join("restored");
        let restored = store.restore(REGION, PLAN, &target).unwrap().unwrap();
        assert_eq!(files_of(&target), files_of(&request.directory.unwrap()), "{answer:?}");
        assert!(restored.refused.is_empty(), "{:?}", restored.refused);

        // For ever: it is the network's fault, not damage, so nothing older is taken instead.
        proxy.set(move |method, path| if method == "GET" && path.contains("/files/") { answer.clone() } else { Answer::Forward });
        let error = store.restore(REGION, PLAN, &place.disk.path().join("never")).unwrap_err();
        assert_eq!(error.kind, CheckpointErrorKind::Away, "{error}");
    }
}

#[test]
fn a_storm_of_503_opens_the_breaker_and_when_it_is_over_the_local_checkpoint_is_uploaded() {
    let Some((place, proxy)) = through_a_proxy("a_storm_of_503_opens_the_breaker") else { return };
    let store = open(&place);
    proxy.set(|_, _| Answer::Status(503, String::new()));
    for epoch in 1..=4 {
        assert_eq!(store.save(&small(place.disk.path(), epoch, 5)).unwrap().durability, Durability::Local);
    }
    assert!(!store.is_available());
    proxy.set(|_, _| Answer::Forward);
    let begin = Instant::now();
    while !store.is_available() {
        assert!(begin.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(50));
        store.maintain(REGION, &mut || true).unwrap();
    }
    assert_eq!(place.names(&format!("{FOLDER}/manifests")), vec![format!("{:020}-5.json", 4)]);
    assert!(store.verify(REGION).unwrap()[0].is_whole());
}

//! Digests of whole stores: what they depend on, and that taking them changes nothing.

use crate::fixtures::{OPERATOR, REGION, config, count, count_by_integer, drain_counts, listing, open, seal_and_apply, standby_of, window};
use std::path::Path;
use streamshield_core::ids::{RegionId, StageId};
use streamshield_core::ports::state::{StateBackend, StateErrorKind};
use streamshield_state::{RocksBackend, StoreDigest, digests};

/// Of the one store that there is.
fn digest_of(directory: &Path) -> StoreDigest {
    let mut stores = digests(directory).expect("readable");
    assert_eq!((stores.len(), stores[0].region), (1, REGION));
    stores.remove(0)
}

#[test]
fn a_digest_tells_what_groups_there_are_and_not_how_they_came_to_be() {
    let (at_once, in_parts) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let spec = count_by_integer();
    let mut state = open(at_once.path(), &spec).state;
    count(state.as_mut(), window(0), 100..200);
    count(state.as_mut(), window(1), (0..50_000).chain(0..10));
    seal_and_apply(state.as_mut(), b"9");
    drop(state);

    let mut state = open(in_parts.path(), &spec).state;
    count(state.as_mut(), window(2), 0..10);
    count(state.as_mut(), window(1), (0..50_000).rev());
    count(state.as_mut(), window(0), 0..150);
    seal_and_apply(state.as_mut(), b"7");
    drop(state);
    let mut state = open(in_parts.path(), &spec).state;
    drain_counts(state.table(OPERATOR), window(0), 100);
    drain_counts(state.table(OPERATOR), window(2), 100);
    seal_and_apply(state.as_mut(), b"8");
    state.evict(0).expect("evicts");
    count(state.as_mut(), window(0), 150..200);
    count(state.as_mut(), window(1), 0..10);
    seal_and_apply(state.as_mut(), b"9");
    drop(state);

    let (one, other) = (digest_of(at_once.path()), digest_of(in_parts.path()));
    assert_eq!(one, other);
    assert_eq!((one.record.as_deref(), one.groups()), (Some(&b"9"[..]), 50_100));
    assert_eq!((one.tables.len(), one.tables[0].operator, one.tables[0].digest), (1, OPERATOR, one.digest()));

    let mut state = open(in_parts.path(), &spec).state;
    count(state.as_mut(), window(0), [199]);
    seal_and_apply(state.as_mut(), b"10");
    drop(state);
    let counted_twice = digest_of(in_parts.path());
    assert_eq!(counted_twice.groups(), 50_100);
    assert_ne!(counted_twice.digest(), one.digest());
}

#[test]
fn the_same_key_in_another_window_is_another_group() {
    let stores = [0, 1].map(|number| {
        let directory = tempfile::tempdir().expect("temp");
        let mut state = open(directory.path(), &count_by_integer()).state;
        count(state.as_mut(), window(number), 0..10);
        seal_and_apply(state.as_mut(), b"1");
        drop(state);
        digest_of(directory.path())
    });
    assert_eq!(stores[0].groups(), stores[1].groups());
    assert_ne!(stores[0].digest(), stores[1].digest());
}

#[test]
fn copies_and_standbys_have_the_digest_of_their_owner() {
    let (owner, copy) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let spec = count_by_integer();
    let mut state = open(owner.path(), &spec).state;
    count(state.as_mut(), window(0), 0..1_000);
    seal_and_apply(state.as_mut(), b"1");
    let (mut standby, record) = standby_of(state.as_ref(), copy.path(), &spec);
    assert_eq!(record.as_deref(), Some(&b"1"[..]));
    state.seal_delta().expect("seals");
    count(state.as_mut(), window(0), 500..1_500);
    drain_counts(state.table(OPERATOR), window(0), 10);
    let delta = state.seal_delta().expect("seals");
    standby.apply_delta(&delta.bytes, b"2").expect("applies");
    seal_and_apply(state.as_mut(), b"2");
    drop((state, standby));
    let owner = digest_of(owner.path());
    assert_eq!((owner.groups(), &owner), (1_490, &digest_of(copy.path())));
}

#[test]
fn taking_digests_changes_no_file() {
    let directory = tempfile::tempdir().expect("temp");
    let mut state = open(directory.path(), &count_by_integer()).state;
    count(state.as_mut(), window(0), 0..1_000);
    seal_and_apply(state.as_mut(), b"1");
    drop(state);
    let before = listing(directory.path());
    let first = digest_of(directory.path());
    assert_eq!((digest_of(directory.path()), listing(directory.path())), (first, before));
}

#[test]
fn what_is_no_store_is_left_out_and_what_is_left_of_one_is_an_error() {
    let directory = tempfile::tempdir().expect("temp");
    let backend = RocksBackend::new(config(directory.path())).expect("opens");
    assert_eq!(digests(directory.path()).expect("readable"), []);
    let other = RegionId { stage: StageId(3), partition: 6 };
    let mut state = backend.open(other, &[count_by_integer()]).expect("opens").state;
    count(state.as_mut(), window(0), 0..10);
    seal_and_apply(state.as_mut(), b"1");
    drop(state);
    drop(backend.open(REGION, &[count_by_integer()]).expect("opens"));
    std::fs::write(directory.path().join("streamshield.json"), "{}").expect("written");
    let found = digests(directory.path()).expect("readable");
    let facts: Vec<_> = found.iter().map(|store| (store.region, store.record.as_deref(), store.groups())).collect();
    assert_eq!(facts, [(REGION, None, 0), (other, Some(&b"1"[..]), 10)]);

    std::fs::remove_file(directory.path().join("3-6").join("CURRENT")).expect("removed");
    assert_eq!(digests(directory.path()).expect_err("has no beginning").kind, StateErrorKind::Damaged);
    assert_eq!(digests(&directory.path().join("nowhere")).expect_err("is not there").kind, StateErrorKind::Io);
}

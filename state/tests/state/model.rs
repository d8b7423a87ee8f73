//! Random histories of one region against a sorted map.
//!
//! Three implementations run side by side. The active flushes, evicts, closes and crashes. A replica only ever works in memory and is rebuilt by
//! replaying the history after a crash. A standby gets the active's deltas, is made anew from a copy of its store, takes over, and changes places with the
//! active.
//! All must drain what the model drains and give equal digests (E-4).

use crate::fixtures::{OPERATOR, REGION, config, crash_image, quick_directory, window};
use crate::kinds::{KEY_KINDS, Key, KeyKind, States, key, key_arrays, rows, spec, state_arrays};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use streamshield_core::ids::Digest;
use streamshield_core::ports::state::{Delta, Flush, OpenedState, RegionState, StateBackend, Window};
use streamshield_core::watermark::Watermark;
use streamshield_state::{Config, RocksBackend};
use tempfile::TempDir;

#[derive(Clone, Debug)]
enum Action {
    /// Into this window, these rows: number of the key, and the value.
    Merge(i64, Vec<(u8, i64)>),
    Drain(i64, usize),
    /// A flush.
    Seal,
    /// Applies the oldest sealed flush.
    Apply,
    /// A delta, which the standby applies.
    Send,
    /// Down to this share of the bytes, in eighths.
    Evict(usize),
    /// A clean end and a new start: sealed flushes are lost.
    Close,
    /// Only the files are left.
    Crash,
    /// Opens a copy of the standby's store, or else of the active's, as a third region.
    Copy(bool),
    /// A new standby: a copy of the active's store, and the deltas since.
    Reseed,
    /// The active is lost, and the standby goes on.
    TakeOver,
    /// The standby goes on, and the active becomes the standby with what it has in memory.
    HandOver,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let rows = prop::collection::vec((0u8..40, -100i64..100), 1..30);
    let action = prop_oneof![
        8 => (0i64..4, rows).prop_map(|(window, rows)| Action::Merge(window, rows)),
        3 => (0i64..4, 1usize..25).prop_map(|(window, max_rows)| Action::Drain(window, max_rows)),
        4 => Just(Action::Seal),
        4 => Just(Action::Apply),
        5 => Just(Action::Send),
        4 => (0usize..8).prop_map(Action::Evict),
        1 => Just(Action::Close),
        1 => Just(Action::Crash),
        1 => any::<bool>().prop_map(Action::Copy),
        1 => Just(Action::Reseed),
        1 => Just(Action::TakeOver),
        2 => Just(Action::HandOver),
    ];
    prop::collection::vec(action, 1..60)
}

type Windows = BTreeMap<Window, BTreeMap<Key, States>>;

/// The values of a row, every column null now and then.
fn states(value: i64) -> States {
    let unless = |divisor: i64| value % divisor != 0;
    States {
        count: value,
        total: unless(3).then_some(i128::from(value) << 70),
        least: unless(4).then(|| "é".repeat(value.unsigned_abs() as usize % 7) + &value.to_string()),
        greatest: unless(5).then_some(value * 7),
        float_least: unless(2).then_some(value as f64 / 3.0),
        any: unless(7).then_some(value > 50),
        distinct: BTreeSet::from([value % 4]),
    }
}

fn expected_drain(windows: &mut Windows, window: Window, max_rows: usize) -> (Vec<(Key, States)>, bool) {
    let Some(groups) = windows.get_mut(&window) else { return (vec![], true) };
    let taken: Vec<Key> = groups.keys().take(max_rows).cloned().collect();
    let portion = taken.into_iter().map(|key| (key.clone(), groups.remove(&key).expect("the key was just read"))).collect();
    let finished = groups.is_empty();
    if finished {
        windows.remove(&window);
    }
    (portion, finished)
}

/// One implementation at work.
struct Subject {
    kind: KeyKind,
    state: Box<dyn RegionState>,
}

impl Subject {
    fn merge(&mut self, window: Window, batch: &[(u8, i64)]) {
        let keys: Vec<Key> = batch.iter().map(|&(number, _)| key(self.kind, number)).collect();
        let values: Vec<States> = batch.iter().map(|&(_, value)| states(value)).collect();
        let merged = self.state.table(OPERATOR).merge(window, &key_arrays(self.kind, &keys), &state_arrays(&values));
        merged.expect("the batch merges");
    }

    fn drain(&mut self, window: Window, max_rows: usize) -> (Vec<(Key, States)>, bool) {
        let drained = self.state.table(OPERATOR).drain(window, max_rows).expect("the window drains");
        (rows(self.kind, &drained), drained.finished)
    }

    fn seal(&mut self) -> Flush {
        self.state.seal_flush().expect("the flush seals")
    }

    fn seal_delta(&mut self) -> Delta {
        self.state.seal_delta().expect("the delta seals")
    }

    fn first_window(&mut self) -> Option<Window> {
        self.state.table(OPERATOR).first_closed(Watermark::MAX)
    }

    /// Everything in it, which is then gone.
    fn contents(&mut self) -> Windows {
        let mut windows = Windows::new();
        while let Some(window) = self.first_window() {
            let (portion, finished) = self.drain(window, 7);
            let groups: &mut BTreeMap<Key, States> = windows.entry(window).or_default();
            assert!(portion.iter().all(|(key, _)| groups.last_key_value().is_none_or(|(last, _)| last < key)), "in key order");
            groups.extend(portion);
            assert_eq!(finished, self.first_window() != Some(window));
        }
        windows
    }
}

/// What can be done again by a replay.
#[derive(Clone, Debug)]
enum Event {
    Merge(i64, Vec<(u8, i64)>),
    Drain(i64, usize),
    Seal,
    Send,
    /// The state was opened or taken over: flushes and deltas hold what changed from here on.
    Begin,
}

/// A flush or a delta was sealed.
struct Point {
    /// Of the history with it.
    len: usize,
    digest: Digest,
    model: Windows,
}

/// Where a region's store lies, for as many openings as it has.
struct Place {
    directory: TempDir,
    kind: KeyKind,
    /// Larger flushes and deltas are ingested as files.
    batch_bytes_max: usize,
}

impl Place {
    fn new(kind: KeyKind, batch_bytes_max: usize) -> Self {
        Place { directory: quick_directory(), kind, batch_bytes_max }
    }

    fn backend(&self) -> Arc<RocksBackend> {
        let config = Config { batch_bytes_max: self.batch_bytes_max, ..config(self.directory.path()) };
        RocksBackend::new(config).expect("the directory is writable")
    }

    fn open(&self) -> (Subject, Option<usize>) {
        let OpenedState { state, record, rebuilt } = self.backend().open(REGION, &[spec(self.kind)]).expect("the store opens");
        assert_eq!(rebuilt, None);
        (Subject { kind: self.kind, state }, point_of(record))
    }

    fn open_empty(&self) -> Subject {
        self.backend().delete(REGION).expect("the store is deleted");
        self.open().0
    }

    /// Opens a copy of another store.
    fn open_copy(&self, of: &Subject) -> (Subject, Option<usize>) {
        let backend = self.backend();
        let copy = backend.scratch().join("copy");
        let copied = of.state.copier().expect("has a store").copy_to(&copy).expect("is copied");
        backend.adopt(REGION, &copy).expect("is adopted");
        let (subject, point) = self.open();
        assert_eq!(point, point_of(copied), "the record of the copy");
        (subject, point)
    }
}

fn point_of(record: Option<Vec<u8>>) -> Option<usize> {
    record.map(|record| u64::from_le_bytes(record.try_into().expect("a record of 8 bytes")) as usize)
}

fn record_of(point: usize) -> [u8; 8] {
    (point as u64).to_le_bytes()
}

/// Everything that a history needs.
struct World {
    active: Option<Subject>,
    replica: Option<Subject>,
    standby: Option<Subject>,
    /// The last delta that the standby has, or the flush that it began with.
    standby_point: Option<usize>,
    /// The standby was the active, and no delta has come since.
    is_standby_warm: bool,
    model: Windows,
    history: Vec<Event>,
    points: Vec<Point>,
    unapplied: VecDeque<(Flush, usize)>,
    deltas: Vec<(Delta, usize)>,
    // Last, so that the stores are closed before their files go.
    active_place: Place,
    replica_place: Place,
    standby_place: Place,
    third_place: Place,
}

impl World {
    fn new(kind: KeyKind, batch_bytes_max: usize) -> Self {
        let place = || Place::new(kind, batch_bytes_max);
        let mut world = World {
            active: None,
            replica: None,
            standby: None,
            standby_point: None,
            is_standby_warm: false,
            model: Windows::new(),
            history: vec![],
            points: vec![],
            unapplied: VecDeque::new(),
            deltas: vec![],
            active_place: place(),
            // Its flushes and deltas are in memory: the digest must not show it.
            replica_place: Place::new(kind, usize::MAX),
            standby_place: place(),
            third_place: place(),
        };
        world.active = Some(world.active_place.open().0);
        world.begin_at(None);
        world.reseed();
        world
    }

    fn both(&mut self) -> (&mut Subject, &mut Subject) {
        (self.active.as_mut().expect("runs"), self.replica.as_mut().expect("runs"))
    }

    fn merge(&mut self, number: i64, batch: &[(u8, i64)]) {
        let (active, replica) = self.both();
        active.merge(window(number), batch);
        replica.merge(window(number), batch);
        let kind = active.kind;
        let groups = self.model.entry(window(number)).or_default();
        for &(number, value) in batch {
            match groups.get_mut(&key(kind, number)) {
                Some(stored) => stored.merge(&states(value)),
                None => drop(groups.insert(key(kind, number), states(value))),
            }
        }
        self.history.push(Event::Merge(number, batch.to_vec()));
    }

    fn drain_and_compare(&mut self, number: i64, max_rows: usize) {
        let window = window(number);
        let expected = expected_drain(&mut self.model, window, max_rows);
        let (active, replica) = self.both();
        assert_eq!(active.drain(window, max_rows), expected, "drain of {window:?}");
        assert_eq!(replica.drain(window, max_rows), expected, "drain of {window:?} in memory");
        self.history.push(Event::Drain(number, max_rows));
    }

    fn push_point(&mut self, event: Event, digest: Digest) -> usize {
        self.history.push(event);
        self.points.push(Point { len: self.history.len(), digest, model: self.model.clone() });
        self.points.len() - 1
    }

    fn seal(&mut self) {
        let (active, replica) = self.both();
        let (flush, of_replica) = (active.seal(), replica.seal());
        assert_eq!(flush.digest, of_replica.digest, "digests of the same history");
        let point = self.push_point(Event::Seal, flush.digest);
        self.unapplied.push_back((flush, point));
    }

    fn apply(&mut self) {
        if let Some((flush, point)) = self.unapplied.pop_front() {
            let active = self.active.as_mut().expect("runs");
            active.state.apply_flush(flush, &record_of(point)).expect("the flush applies");
        }
    }

    fn send(&mut self) {
        let (active, replica) = self.both();
        let (delta, of_replica) = (active.seal_delta(), replica.seal_delta());
        assert_eq!(delta.digest, of_replica.digest, "digests of the same history");
        assert!(delta.bytes == of_replica.bytes, "deltas of the same history");
        let point = self.push_point(Event::Send, delta.digest);
        self.deltas.push((delta, point));
        self.catch_up();
    }

    /// The standby applies the deltas that it does not have.
    fn catch_up(&mut self) {
        let standby = self.standby.as_mut().expect("runs");
        let begins_with = self.standby_point;
        for (delta, point) in self.deltas.iter().filter(|(_, point)| begins_with.is_none_or(|has| has < *point)) {
            let digest = standby.state.apply_delta(&delta.bytes, &record_of(*point)).expect("the delta applies");
            assert_eq!(digest, delta.digest, "the digest on the other side");
            (self.standby_point, self.is_standby_warm) = (Some(*point), false);
        }
    }

    fn evict(&mut self, eighths: usize) {
        let state = &mut self.active.as_mut().expect("runs").state;
        let target = state.bytes().total / 8 * eighths;
        state.evict(target).expect("evicts");
    }

    fn reseed(&mut self) {
        self.standby = None;
        let (standby, point) = self.standby_place.open_copy(self.active.as_ref().expect("runs"));
        (self.standby, self.standby_point, self.is_standby_warm) = (Some(standby), point, false);
        self.catch_up();
    }

    /// A third region that begins with a copy has what its record says, and the first goes on.
    fn copy(&mut self, of_standby: bool) {
        let source = if of_standby { &self.standby } else { &self.active };
        let (mut third, point) = self.third_place.open_copy(source.as_ref().expect("runs"));
        if of_standby {
            assert_eq!(point, self.standby_point, "a standby's store has all that it applied");
        }
        assert_eq!(third.contents(), self.model_at(point), "what a copy at {point:?} holds");
    }

    fn model_at(&self, point: Option<usize>) -> Windows {
        point.map_or(Windows::new(), |point| self.points[point].model.clone())
    }

    fn restart(&mut self, is_crash: bool) {
        if is_crash {
            let image = quick_directory();
            crash_image(self.active_place.directory.path(), image.path());
            self.active = None;
            self.active_place.directory = image;
        } else {
            self.active = None;
        }
        let (active, point) = self.active_place.open();
        self.active = Some(active);
        self.begin_at(point);
        self.reseed();
    }

    fn take_over(&mut self) {
        self.active = self.standby.take();
        std::mem::swap(&mut self.active_place, &mut self.standby_place);
        self.begin_at(self.standby_point);
        self.reseed();
    }

    fn hand_over(&mut self) {
        // All is sent and flushed, and the standby has it.
        self.send();
        self.seal();
        while !self.unapplied.is_empty() {
            self.apply();
        }
        std::mem::swap(&mut self.active, &mut self.standby);
        std::mem::swap(&mut self.active_place, &mut self.standby_place);
        (self.standby_point, self.is_standby_warm) = (self.points.len().checked_sub(1), true);
        self.begin_at(self.standby_point);
    }

    /// The active has begun with the state of a point. Builds the replica by replay.
    fn begin_at(&mut self, point: Option<usize>) {
        self.unapplied.clear();
        self.points.truncate(point.map_or(0, |point| point + 1));
        self.deltas.retain(|(_, of)| *of < self.points.len());
        self.history.truncate(self.points.last().map_or(0, |point| point.len));
        self.model = self.model_at(point);
        self.history.push(Event::Begin);
        let begun = self.active.as_mut().expect("runs").seal_delta();
        assert_eq!(begun.digest, Digest::default(), "nothing has changed yet");
        self.replica = None;
        let mut replica = self.replica_place.open_empty();
        let mut digests = vec![];
        for event in &self.history {
            match event {
                Event::Merge(number, batch) => replica.merge(window(*number), batch),
                Event::Drain(number, max_rows) => drop(replica.drain(window(*number), *max_rows)),
                Event::Seal => digests.push(replica.seal().digest),
                Event::Send => digests.push(replica.seal_delta().digest),
                Event::Begin => drop((replica.seal(), replica.seal_delta())),
            }
        }
        assert_eq!(digests, self.points.iter().map(|point| point.digest).collect::<Vec<_>>(), "digests of a replay");
        self.replica = Some(replica);
    }

    fn run(&mut self, action: &Action) {
        match action {
            Action::Merge(number, batch) => self.merge(*number, batch),
            Action::Drain(number, max_rows) => self.drain_and_compare(*number, *max_rows),
            Action::Seal => self.seal(),
            Action::Apply => self.apply(),
            Action::Send => self.send(),
            Action::Evict(eighths) => self.evict(*eighths),
            Action::Close => self.restart(false),
            Action::Crash => self.restart(true),
            Action::Copy(of_standby) => self.copy(*of_standby),
            Action::Reseed => self.reseed(),
            Action::TakeOver => self.take_over(),
            Action::HandOver => self.hand_over(),
        }
        let expected = self.model.keys().next().copied();
        let in_model: usize = self.model.values().map(BTreeMap::len).sum();
        let (active, replica) = self.both();
        assert_eq!(active.first_window(), expected, "the earliest window");
        assert!(active.state.table(OPERATOR).groups() <= in_model);
        assert_eq!(replica.state.table(OPERATOR).groups(), in_model);
        let sent = self.model_at(self.standby_point);
        let standby = self.standby.as_mut().expect("runs");
        assert_eq!(standby.first_window(), sent.keys().next().copied(), "the earliest window of the standby");
        assert!(self.is_standby_warm || standby.state.table(OPERATOR).groups() == 0, "groups of the standby in memory");
    }

    /// In the end everything comes out, on the other side.
    fn drain_all(&mut self) {
        for action in [Action::Send, Action::Copy(true), Action::Copy(false), Action::TakeOver] {
            self.run(&action);
        }
        while let Some(window) = self.model.keys().next().copied() {
            self.run(&Action::Drain(window.start_ms / 1000, 7));
        }
        self.run(&Action::Seal);
        while !self.unapplied.is_empty() {
            self.apply();
        }
        self.run(&Action::Close);
        assert_eq!(self.active.as_mut().expect("runs").first_window(), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_region_gives_what_a_sorted_map_gives_here_and_on_a_standby(
        kind in prop::sample::select(&KEY_KINDS[..]),
        batch_bytes_max in prop::sample::select(vec![0, 1000, usize::MAX]),
        actions in actions(),
    ) {
        let mut world = World::new(kind, batch_bytes_max);
        for action in &actions {
            world.run(action);
        }
        world.drain_all();
    }
}

#[test]
fn a_group_that_returns_after_its_window_was_partly_drained_is_new() {
    for (kind, batch_bytes_max) in KEY_KINDS.into_iter().flat_map(|kind| [(kind, 0), (kind, usize::MAX)]) {
        let mut world = World::new(kind, batch_bytes_max);
        let all: Vec<(u8, i64)> = (0..40).map(|number| (number, i64::from(number))).collect();
        for action in [
            Action::Merge(0, all.clone()),
            Action::Seal,
            Action::Apply,
            Action::Send,
            Action::Evict(0),
            Action::Drain(0, 5),
            Action::Merge(0, all[..8].to_vec()),
            Action::Seal,
            Action::Drain(0, 3),
            Action::Send,
            Action::Copy(true),
            Action::Merge(0, all),
            Action::Apply,
            Action::Close,
            Action::Drain(0, 10),
            Action::Send,
            Action::Seal,
            Action::Apply,
            Action::Crash,
            Action::Close,
        ] {
            world.run(&action);
        }
        world.drain_all();
    }
}

#[test]
fn a_standby_that_was_the_active_finds_what_came_to_a_window_that_it_had_evicted() {
    for (kind, batch_bytes_max) in KEY_KINDS.into_iter().flat_map(|kind| [(kind, 0), (kind, usize::MAX)]) {
        let mut world = World::new(kind, batch_bytes_max);
        let all: Vec<(u8, i64)> = (0..40).map(|number| (number, i64::from(number))).collect();
        for action in [
            Action::Merge(0, all[..20].to_vec()),
            Action::Seal,
            Action::Apply,
            Action::Send,
            Action::Evict(0),
            Action::HandOver,
            Action::Merge(0, all[20..].to_vec()),
            Action::Send,
            Action::TakeOver,
            // As many as it had itself, and then the others.
            Action::Merge(0, all[..20].to_vec()),
            Action::Merge(0, all[10..30].to_vec()),
            Action::Seal,
            Action::Drain(0, 7),
        ] {
            world.run(&action);
        }
        world.drain_all();
    }
}

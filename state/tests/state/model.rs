//! Random histories of one region against a sorted map.
//!
//! Two implementations run side by side. One flushes, evicts, closes and crashes; the other only ever works in memory and is rebuilt by
//! replaying the history after a crash, as a replica would be. Both must drain what the model drains and give equal digests (E-4).

use crate::fixtures::{OPERATOR, REGION, config, crash_image, window};
use crate::kinds::{KEY_KINDS, Key, KeyKind, States, key, key_arrays, rows, spec, state_arrays};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use streamshield_core::ids::Digest;
use streamshield_core::ports::state::{Flush, OpenedState, RegionState, StateBackend, Window};
use streamshield_core::watermark::Watermark;
use streamshield_state::{Config, RocksBackend};
use tempfile::TempDir;

#[derive(Clone, Debug)]
enum Action {
    /// Into this window, these rows: number of the key, and the value.
    Merge(i64, Vec<(u8, i64)>),
    Drain(i64, usize),
    Seal,
    /// Applies the oldest sealed flush.
    Apply,
    /// Down to this share of the bytes, in eighths.
    Evict(usize),
    /// A clean end and a new start: sealed flushes are lost.
    Close,
    /// Only the files are left.
    Crash,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let rows = prop::collection::vec((0u8..40, -100i64..100), 1..30);
    let action = prop_oneof![
        8 => (0i64..4, rows).prop_map(|(window, rows)| Action::Merge(window, rows)),
        3 => (0i64..4, 1usize..25).prop_map(|(window, max_rows)| Action::Drain(window, max_rows)),
        4 => Just(Action::Seal),
        4 => Just(Action::Apply),
        4 => (0usize..8).prop_map(Action::Evict),
        1 => Just(Action::Close),
        1 => Just(Action::Crash),
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
}

/// Everything that a history needs.
struct World {
    kind: KeyKind,
    /// Larger flushes are ingested as files.
    batch_bytes_max: usize,
    subject: Option<Subject>,
    replica: Option<Subject>,
    model: Windows,
    /// Merges, drains and seals since the beginning.
    history: Vec<Action>,
    /// For each seal: the length of the history with it, its digest, and the model then.
    seals: Vec<(usize, Digest, Windows)>,
    unapplied: VecDeque<(Flush, usize)>,
    // Last, so that the stores are closed before their files go.
    directory: TempDir,
    memory_directory: TempDir,
}

fn open(kind: KeyKind, directory: &TempDir, batch_bytes_max: usize) -> OpenedState {
    let config = Config { batch_bytes_max, ..config(directory.path()) };
    let backend = RocksBackend::new(config).expect("the directory is writable");
    backend.open(REGION, &[spec(kind)]).expect("the store opens")
}

fn in_memory(kind: KeyKind, directory: &TempDir) -> Subject {
    RocksBackend::new(config(directory.path())).and_then(|backend| backend.delete(REGION)).expect("the store is deleted");
    Subject { kind, state: open(kind, directory, usize::MAX).state }
}

impl World {
    fn new(kind: KeyKind, batch_bytes_max: usize) -> Self {
        let (directory, memory_directory) = (TempDir::new().expect("temp"), TempDir::new().expect("temp"));
        let subject = Some(Subject { kind, state: open(kind, &directory, batch_bytes_max).state });
        let replica = Some(in_memory(kind, &memory_directory));
        World {
            kind,
            batch_bytes_max,
            directory,
            memory_directory,
            subject,
            replica,
            model: Windows::new(),
            history: vec![],
            seals: vec![],
            unapplied: VecDeque::new(),
        }
    }

    fn both(&mut self) -> (&mut Subject, &mut Subject) {
        (self.subject.as_mut().expect("runs"), self.replica.as_mut().expect("runs"))
    }

    fn merge(&mut self, number: i64, batch: &[(u8, i64)]) {
        let kind = self.kind;
        let (subject, replica) = self.both();
        subject.merge(window(number), batch);
        replica.merge(window(number), batch);
        let groups = self.model.entry(window(number)).or_default();
        for &(number, value) in batch {
            match groups.get_mut(&key(kind, number)) {
                Some(stored) => stored.merge(&states(value)),
                None => drop(groups.insert(key(kind, number), states(value))),
            }
        }
    }

    fn drain_and_compare(&mut self, window: Window, max_rows: usize) {
        let expected = expected_drain(&mut self.model, window, max_rows);
        let (subject, replica) = self.both();
        assert_eq!(subject.drain(window, max_rows), expected, "drain of {window:?}");
        assert_eq!(replica.drain(window, max_rows), expected, "drain of {window:?} in memory");
    }

    fn seal(&mut self) {
        let (subject, replica) = self.both();
        let (flush, of_replica) = (subject.seal(), replica.seal());
        assert_eq!(flush.digest, of_replica.digest, "digests of the same history");
        let digest = flush.digest;
        self.unapplied.push_back((flush, self.seals.len()));
        self.seals.push((self.history.len(), digest, self.model.clone()));
    }

    fn apply(&mut self) {
        if let Some((flush, seal)) = self.unapplied.pop_front() {
            let subject = self.subject.as_mut().expect("runs");
            subject.state.apply_flush(flush, &(seal as u64).to_le_bytes()).expect("the flush applies");
        }
    }

    fn evict(&mut self, eighths: usize) {
        let state = &mut self.subject.as_mut().expect("runs").state;
        let target = state.bytes().total / 8 * eighths;
        state.evict(target).expect("evicts");
    }

    fn restart(&mut self, is_crash: bool) {
        if is_crash {
            let image = TempDir::new().expect("temp");
            crash_image(self.directory.path(), image.path());
            self.subject = None;
            self.directory = image;
        } else {
            self.subject = None;
        }
        self.unapplied.clear();
        let opened = open(self.kind, &self.directory, self.batch_bytes_max);
        assert_eq!(opened.rebuilt, None);
        let seal = opened.record.map(|record| u64::from_le_bytes(record.try_into().expect("a record of 8 bytes")) as usize);
        self.subject = Some(Subject { kind: self.kind, state: opened.state });
        self.return_to(seal);
    }

    /// Goes back to a seal, and builds the replica by replay.
    fn return_to(&mut self, seal: Option<usize>) {
        self.seals.truncate(seal.map_or(0, |seal| seal + 1));
        let (len, model) = self.seals.last().map_or((0, Windows::new()), |(len, _, model)| (*len, model.clone()));
        self.history.truncate(len);
        self.model = model;
        self.replica = None;
        let mut replica = in_memory(self.kind, &self.memory_directory);
        let mut digests = vec![];
        for action in &self.history {
            match action {
                Action::Merge(number, batch) => replica.merge(window(*number), batch),
                Action::Drain(number, max_rows) => drop(replica.drain(window(*number), *max_rows)),
                Action::Seal => digests.push(replica.seal().digest),
                _ => {}
            }
        }
        assert_eq!(digests, self.seals.iter().map(|(_, digest, _)| *digest).collect::<Vec<_>>(), "digests of a replay");
        self.replica = Some(replica);
    }

    fn run(&mut self, action: &Action) {
        if matches!(action, Action::Merge(..) | Action::Drain(..) | Action::Seal) {
            self.history.push(action.clone());
        }
        match action {
            Action::Merge(number, batch) => self.merge(*number, batch),
            Action::Drain(number, max_rows) => self.drain_and_compare(window(*number), *max_rows),
            Action::Seal => self.seal(),
            Action::Apply => self.apply(),
            Action::Evict(eighths) => self.evict(*eighths),
            Action::Close => self.restart(false),
            Action::Crash => self.restart(true),
        }
        let expected = self.model.keys().next().copied();
        let in_model: usize = self.model.values().map(BTreeMap::len).sum();
        let (subject, replica) = self.both();
        let closed = subject.state.table(OPERATOR).first_closed(Watermark::MAX);
        assert_eq!(closed, expected, "the earliest window");
        assert!(subject.state.table(OPERATOR).groups() <= in_model);
        assert_eq!(replica.state.table(OPERATOR).groups(), in_model);
    }

    /// In the end everything comes out.
    fn drain_all(&mut self) {
        while let Some(window) = self.model.keys().next().copied() {
            self.run(&Action::Drain(window.start_ms / 1000, 7));
        }
        self.run(&Action::Seal);
        while !self.unapplied.is_empty() {
            self.apply();
        }
        self.run(&Action::Close);
        let subject = self.subject.as_mut().expect("runs");
        assert_eq!(subject.state.table(OPERATOR).first_closed(Watermark::MAX), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_region_gives_what_a_sorted_map_gives(
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
            Action::Evict(0),
            Action::Drain(0, 5),
            Action::Merge(0, all[..8].to_vec()),
            Action::Seal,
            Action::Drain(0, 3),
            Action::Merge(0, all),
            Action::Apply,
            Action::Close,
            Action::Drain(0, 10),
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

//! The simulated state against a sorted map, and what a crash leaves of it.

use super::*;
use crate::world::{FaultPlan, Sim};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, ArrayRef, Float64Array, Int64Array, StringArray};
use arrow_schema::{DataType, Field, FieldRef};
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use streamshield_core::ids::StageId;

const REGION: RegionId = RegionId { stage: StageId(1), partition: 0 };
const OPERATOR: u16 = 3;

fn field(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("f", data_type, true))
}

/// Keeps the longer text; of two of one length the one that was there.
struct Longest;

impl StateMerger for Longest {
    fn merge(&self, stored: &[ArrayRef], incoming: &[ArrayRef], groups: &[usize]) -> Result<Vec<ArrayRef>, StateError> {
        let mut longest: Vec<String> = stored[0].as_string::<i32>().iter().map(|text| text.unwrap_or_default().to_owned()).collect();
        for (text, group) in incoming[0].as_string::<i32>().iter().zip(groups) {
            let text = text.unwrap_or_default();
            if text.len() > longest[*group].len() {
                longest[*group] = text.to_owned();
            }
        }
        Ok(vec![Arc::new(StringArray::from(longest))])
    }
}

/// A sum, a minimum of floats, a maximum of texts, and a merger, by an integer and a text.
fn spec() -> WindowTableSpec {
    let aggregate = |data_type: DataType, merge| AggregateState { fields: vec![field(data_type)], merge };
    WindowTableSpec {
        operator: OPERATOR,
        keys: vec![field(DataType::Int64), field(DataType::Utf8)],
        aggregates: vec![
            aggregate(DataType::Int64, Merge::Sum),
            aggregate(DataType::Float64, Merge::Min),
            aggregate(DataType::Utf8, Merge::Max),
            aggregate(DataType::Utf8, Merge::Other(Arc::new(Longest))),
        ],
    }
}

fn window(number: i64) -> Window {
    Window { end_ms: (number + 1) * 1000, start_ms: number * 1000 }
}

type Key = (i64, String);
type States = (i64, Option<f64>, String, String);

/// One row per number and value.
fn merge(state: &mut dyn RegionState, at: i64, rows: &[(i64, i64)]) {
    let keys: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(number, _)| number / 2))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(number, _)| format!("k{}", number % 2)))),
    ];
    let states: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, value)| *value))),
        Arc::new(Float64Array::from_iter(rows.iter().map(|(_, value)| least(*value)))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, value)| value.to_string()))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, value)| long(*value)))),
    ];
    state.table(OPERATOR).merge(window(at), &keys, &states).expect("merges");
}

fn least(value: i64) -> Option<f64> {
    (value % 3 != 0).then_some(value as f64 / 4.0)
}

fn long(value: i64) -> String {
    "x".repeat(value.unsigned_abs() as usize % 5)
}

fn drain(state: &mut dyn RegionState, at: i64, max_rows: usize) -> (Vec<(Key, States)>, bool) {
    let drained = state.table(OPERATOR).drain(window(at), max_rows).expect("drains");
    let text = |array: &ArrayRef, row: usize| array.as_string::<i32>().value(row).to_owned();
    let least = drained.states[1].as_primitive::<Float64Type>();
    let row = |row: usize| {
        let key = (drained.keys[0].as_primitive::<Int64Type>().value(row), text(&drained.keys[1], row));
        let sum = drained.states[0].as_primitive::<Int64Type>().value(row);
        (key, (sum, least.is_valid(row).then(|| least.value(row)), text(&drained.states[2], row), text(&drained.states[3], row)))
    };
    ((0..drained.keys[0].len()).map(row).collect(), drained.finished)
}

struct Machine {
    sim: Sim,
    disk: SimDisk,
    client: ClientId,
    backend: SimState,
}

impl Machine {
    fn new(sim: &Sim, name: &str) -> Machine {
        let (disk, client) = (SimDisk::new(sim, name, DiskFaults::default()), sim.client(name));
        Machine { sim: sim.clone(), backend: SimState::new(&disk, client), disk, client }
    }

    fn open(&self) -> OpenedState {
        self.backend.open(REGION, &[spec()]).expect("opens")
    }

    /// The worker dies and comes back.
    fn crash(&mut self) {
        self.sim.crash(self.client);
        self.restart();
    }

    fn restart(&mut self) {
        self.client = self.sim.client("again");
        self.backend = SimState::new(&self.disk, self.client);
    }
}

fn machine(seed: u64) -> Machine {
    Machine::new(&Sim::new(seed, FaultPlan::default()), "m")
}

fn flush(state: &mut dyn RegionState, record: &[u8]) -> Digest {
    let sealed = state.seal_flush().expect("seals");
    let digest = sealed.digest;
    state.apply_flush(sealed, record).expect("applies");
    digest
}

#[test]
fn groups_are_merged_and_drained_as_a_sorted_map_says() {
    for seed in 0..30 {
        let machine = machine(seed);
        let mut rng = machine.sim.generator();
        let mut state = machine.open().state;
        let mut model: BTreeMap<i64, BTreeMap<Key, States>> = BTreeMap::new();
        for _ in 0..60 {
            let at = rng.random_range(0..3);
            if rng.random_range(0..4) > 0 {
                let rows: Vec<_> = (0..rng.random_range(1..12)).map(|_| (rng.random_range(0..14), rng.random_range(-20..100))).collect();
                merge(&mut *state, at, &rows);
                for (number, value) in rows {
                    let key = (number / 2, format!("k{}", number % 2));
                    let new = (value, least(value), value.to_string(), long(value));
                    let groups = model.entry(at).or_default();
                    let merged = match groups.get(&key) {
                        None => new,
                        Some(old) => (
                            old.0 + new.0,
                            old.1.into_iter().chain(new.1).reduce(f64::min),
                            old.2.clone().max(new.2),
                            if new.3.len() > old.3.len() { new.3 } else { old.3.clone() },
                        ),
                    };
                    groups.insert(key, merged);
                }
            } else {
                let max_rows = rng.random_range(1..8);
                let groups = model.entry(at).or_default();
                let wanted: Vec<_> = (0..max_rows).map_while(|_| groups.pop_first()).collect();
                let finished = groups.is_empty();
                assert_eq!(drain(&mut *state, at, max_rows), (wanted, finished), "seed {seed}");
                model.retain(|_, groups| !groups.is_empty());
            }
            let first = state.table(OPERATOR).first_closed(Watermark::MAX);
            assert_eq!(first, model.keys().next().map(|at| window(*at)), "seed {seed}");
            assert_eq!(state.table(OPERATOR).groups(), model.values().map(BTreeMap::len).sum::<usize>());
        }
    }
}

#[test]
fn a_crash_leaves_a_prefix_of_the_flushes() {
    let mut kept = Vec::new();
    for seed in 0..40 {
        let mut machine = machine(seed);
        let mut state = machine.open().state;
        for number in 0..6 {
            merge(&mut *state, 0, &[(0, 1)]);
            flush(&mut *state, &[number]);
        }
        merge(&mut *state, 0, &[(0, 100)]);
        machine.crash();
        drop(state);
        let opened = machine.open();
        let mut state = opened.state;
        let flushes = opened.record.map_or(0, |record| i64::from(record[0]) + 1);
        let sum: Vec<_> = drain(&mut *state, 0, 10).0.into_iter().map(|(_, states)| states.0).collect();
        assert_eq!(sum, if flushes == 0 { vec![] } else { vec![flushes] }, "seed {seed}: what it says is what it holds");
        kept.push(flushes);
    }
    assert!(kept.contains(&6) && kept.iter().any(|flushes| *flushes < 6), "{kept:?}");
}

#[test]
fn a_clean_end_keeps_everything_and_a_sealed_flush_is_lost_until_it_is_applied() {
    let mut machine = machine(1);
    let mut state = machine.open().state;
    merge(&mut *state, 0, &[(0, 1), (1, 2)]);
    flush(&mut *state, b"one");
    merge(&mut *state, 0, &[(0, 1)]);
    let _unapplied = state.seal_flush().expect("seals");
    drop(state);
    machine.restart();
    let opened = machine.open();
    assert_eq!((opened.record.as_deref(), opened.rebuilt), (Some(&b"one"[..]), None));
    let mut state = opened.state;
    let sums: Vec<_> = drain(&mut *state, 0, 10).0.into_iter().map(|(_, states)| states.0).collect();
    assert_eq!(sums, [1, 2]);
}

#[test]
fn the_digest_tells_what_changed_and_not_in_which_order() {
    let sim = Sim::new(1, FaultPlan::default());
    let (left, right) = (Machine::new(&sim, "left"), Machine::new(&sim, "right"));
    let (mut a, mut b) = (left.open().state, right.open().state);
    merge(&mut *a, 0, &[(0, 1), (1, 2)]);
    merge(&mut *a, 1, &[(2, 3)]);
    merge(&mut *b, 1, &[(2, 3)]);
    merge(&mut *b, 0, &[(1, 2)]);
    merge(&mut *b, 0, &[(0, 1)]);
    assert_eq!(flush(&mut *a, b"1"), flush(&mut *b, b"1"));
    drain(&mut *a, 0, 1);
    drain(&mut *a, 0, 1);
    drain(&mut *b, 0, 10);
    assert_eq!(flush(&mut *a, b"2"), flush(&mut *b, b"2"), "in portions or at once");
    merge(&mut *a, 1, &[(2, 1)]);
    merge(&mut *b, 1, &[(2, 2)]);
    assert_ne!(flush(&mut *a, b"3"), flush(&mut *b, b"3"));
}

#[test]
fn a_follower_that_applies_the_deltas_has_the_same_state() {
    let sim = Sim::new(1, FaultPlan::default());
    let (left, right) = (Machine::new(&sim, "left"), Machine::new(&sim, "right"));
    let (mut owner, mut follower) = (left.open().state, right.open().state);
    let mut rng = sim.generator();
    for epoch in 0..20u8 {
        for _ in 0..3 {
            merge(&mut *owner, rng.random_range(0..2), &[(rng.random_range(0..10), 1), (rng.random_range(0..10), 7)]);
        }
        if epoch % 3 == 2 {
            drain(&mut *owner, 0, 3);
        }
        if epoch % 4 == 0 {
            flush(&mut *owner, &[epoch]);
        }
        let delta = owner.seal_delta().expect("seals");
        assert_eq!(follower.apply_delta(&delta.bytes, &[epoch]).expect("applies"), delta.digest);
    }
    for at in 0..2 {
        assert_eq!(drain(&mut *owner, at, 100), drain(&mut *follower, at, 100));
    }
    let error = follower.apply_delta(b"no delta", b"x").expect_err("refused");
    assert_eq!(error.kind, StateErrorKind::Damaged);
}

#[test]
fn the_first_delta_has_what_no_applied_flush_has() {
    let sim = Sim::new(1, FaultPlan::default());
    let (left, right) = (Machine::new(&sim, "left"), Machine::new(&sim, "right"));
    let (mut owner, mut follower) = (left.open().state, right.open().state);
    for state in [&mut owner, &mut follower] {
        merge(&mut **state, 0, &[(0, 1), (1, 1), (2, 1)]);
        flush(&mut **state, b"1");
    }
    drain(&mut *owner, 0, 1);
    let sealed = owner.seal_flush().expect("seals");
    merge(&mut *owner, 0, &[(2, 5)]);
    let delta = owner.seal_delta().expect("seals");
    let batch = Batch::decode(&delta.bytes).expect("decodes");
    assert_eq!((batch.removals.len(), batch.entries.len()), (1, 1), "what was flushed is not in it");
    follower.apply_delta(&delta.bytes, b"2").expect("applies");
    owner.apply_flush(sealed, b"2").expect("applies");
    assert_eq!(drain(&mut *owner, 0, 10), drain(&mut *follower, 0, 10));
}

#[test]
fn a_group_stays_in_memory_until_a_delta_has_it() {
    let machine = machine(1);
    let mut state = machine.open().state;
    state.seal_delta().expect("seals");
    merge(&mut *state, 0, &[(0, 1)]);
    flush(&mut *state, b"1");
    state.evict(0).expect("evicts");
    assert_eq!(state.table(OPERATOR).groups(), 1);
    assert_eq!(Batch::decode(&state.seal_delta().expect("seals").bytes).expect("decodes").entries.len(), 1);
    state.evict(0).expect("evicts");
    assert_eq!(state.table(OPERATOR).groups(), 0);
}

#[test]
fn a_delta_is_not_applied_past_changes_that_were_not_flushed() {
    let machine = machine(1);
    let mut state = machine.open().state;
    let delta = state.seal_delta().expect("seals");
    merge(&mut *state, 0, &[(0, 1)]);
    assert_eq!(state.apply_delta(&delta.bytes, b"x").expect_err("refused").kind, StateErrorKind::Internal);
    assert!(!state.is_clean());
    flush(&mut *state, b"1");
    assert!(state.is_clean());
    state.apply_delta(&delta.bytes, b"2").expect("applies");
    assert_eq!(drain(&mut *state, 0, 10).0.len(), 1, "read back");
    // A removal is a change, too.
    assert_eq!((state.bytes().dirty, state.is_clean()), (0, false));
    assert_eq!(state.apply_delta(&delta.bytes, b"x").expect_err("refused").kind, StateErrorKind::Internal);
    flush(&mut *state, b"3");
    state.apply_delta(&delta.bytes, b"4").expect("applies");
}

#[test]
fn a_copy_is_adopted_elsewhere_with_its_record() {
    let sim = Sim::new(1, FaultPlan::default());
    let machine = Machine::new(&sim, "left");
    let mut state = machine.open().state;
    merge(&mut *state, 0, &[(0, 5)]);
    flush(&mut *state, b"copied");
    let copier = state.copier().expect("has a store");
    let folder = machine.backend.scratch().join("copy");
    assert_eq!(copier.copy_to(&folder).expect("copies").as_deref(), Some(&b"copied"[..]));
    assert_eq!(copier.copy_to(&folder).expect_err("exists").kind, StateErrorKind::Io);
    merge(&mut *state, 0, &[(0, 5)]);
    flush(&mut *state, b"later");
    assert_eq!(machine.backend.adopt(REGION, &folder).expect_err("open").kind, StateErrorKind::Internal);
    drop(state);
    assert_eq!(machine.backend.adopt(REGION, &folder).expect_err("held by the copier").kind, StateErrorKind::Internal);
    drop(copier);
    machine.backend.adopt(REGION, &folder).expect("adopts");
    let opened = machine.open();
    assert_eq!(opened.record.as_deref(), Some(&b"copied"[..]));
    let mut state = opened.state;
    assert_eq!(drain(&mut *state, 0, 10).0[0].1.0, 5);
    assert!(machine.backend.adopt(REGION, &folder).is_err(), "it was moved");
}

#[test]
fn clean_groups_are_evicted_and_come_back_when_they_are_needed() {
    let machine = machine(1);
    let mut state = machine.open().state;
    let rows: Vec<_> = (0..20).map(|number| (number, 1)).collect();
    merge(&mut *state, 0, &rows);
    state.evict(0).expect("evicts");
    assert_eq!(state.table(OPERATOR).groups(), 20, "dirty groups stay");
    flush(&mut *state, b"1");
    assert_eq!(state.bytes().dirty, 0);
    state.evict(state.bytes().total / 2).expect("evicts");
    let left = state.table(OPERATOR).groups();
    assert!((5..15).contains(&left), "{left}");
    merge(&mut *state, 0, &rows);
    assert_eq!(state.table(OPERATOR).groups(), 20);
    assert!(drain(&mut *state, 0, 100).0.iter().all(|(_, states)| states.0 == 2));
}

#[test]
fn a_store_of_other_tables_is_rebuilt_and_an_open_one_is_not_opened_twice() {
    let machine = machine(1);
    let mut state = machine.open().state;
    merge(&mut *state, 0, &[(0, 1)]);
    flush(&mut *state, b"1");
    assert_eq!(machine.backend.open(REGION, &[spec()]).err().expect("open already").kind, StateErrorKind::Internal);
    assert_eq!(state.table(9).merge(window(0), &[], &[]).expect_err("no such table").kind, StateErrorKind::Internal);
    drop(state);
    let other = WindowTableSpec { keys: vec![field(DataType::Utf8)], ..spec() };
    let opened = machine.backend.open(REGION, &[other]).expect("opens");
    assert!(opened.record.is_none() && opened.rebuilt.is_some());
}

#[test]
fn a_full_disk_and_a_damaged_store_are_counted() {
    let machine = machine(6);
    let mut state = machine.open().state;
    machine.disk.set_faults(DiskFaults { write_fails: 10_000, damaged: 10_000, ..Default::default() });
    let sealed = state.seal_flush().expect("seals");
    assert_eq!(state.apply_flush(sealed, b"1").expect_err("the disk is full").kind, StateErrorKind::Io);
    drop(state);
    assert_eq!(machine.open().rebuilt.as_deref(), Some("the store is damaged"));
    let fired = machine.sim.fired();
    assert_eq!((fired["disk full"], fired["store damaged"]), (1, 1));
}

//! Figures, printed. Run with `cargo test --release -p streamshield-state -p unify -- --ignored --nocapture benchmark --test-threads 1`.

use crate::fixtures::{OPERATOR, REGION, aggregate, count_by_integer, field, integers, seal_and_apply, window};
use arrow_array::{ArrayRef, StringArray};
use arrow_schema::DataType;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::ports::state::{Merge, OpenedState, RegionState, StateBackend, WindowTableSpec};
use streamshield_state::{Config, RocksBackend};

const BATCH: usize = 8192;

/// With the sizes that are in force when nothing is configured.
fn open(directory: &Path, spec: &WindowTableSpec) -> OpenedState {
    let backend = RocksBackend::new(Config::new(directory)).expect("the directory is writable");
    backend.open(REGION, std::slice::from_ref(spec)).expect("the store opens")
}

fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64() / 1e6
}

fn shuffled(count: i64, seed: u64) -> Vec<i64> {
    let mut keys: Vec<i64> = (0..count).map(|key| key * 7919).collect();
    keys.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    keys
}

fn batches(keys: &[i64]) -> Vec<(ArrayRef, ArrayRef)> {
    keys.chunks(BATCH).map(|keys| (integers(keys.iter().copied()), integers(vec![1; keys.len()]))).collect()
}

fn merge_all(state: &mut dyn RegionState, batches: &[(ArrayRef, ArrayRef)]) -> Duration {
    let begin = Instant::now();
    for (keys, counts) in batches {
        state.table(OPERATOR).merge(window(0), std::slice::from_ref(keys), std::slice::from_ref(counts)).expect("merges");
    }
    begin.elapsed()
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number") * 4096
}

#[test]
#[ignore = "a benchmark"]
fn benchmark_integer_keys() {
    for groups in [1_000i64, 100_000, 1_000_000] {
        let directory = tempfile::tempdir().expect("temp");
        let mut state = open(directory.path(), &count_by_integer()).state;
        let keys = shuffled(groups, 1);
        let new = merge_all(state.as_mut(), &batches(&keys));
        // In another order than they were added, so that no access is sequential.
        let batches = batches(&shuffled(groups, 2));
        let rounds = (4_000_000 / keys.len()).max(1);
        let existing: Duration = (0..rounds).map(|_| merge_all(state.as_mut(), &batches)).sum();
        let bytes = state.bytes();
        let begin = Instant::now();
        let flush = state.seal_flush().expect("seals");
        let sealed = begin.elapsed();
        let flush_bytes = flush.bytes;
        let begin = Instant::now();
        state.apply_flush(flush, b"record").expect("applies");
        let applied = begin.elapsed();
        state.evict(0).expect("evicts");
        let begin = Instant::now();
        merge_all(state.as_mut(), &batches);
        let read_back = begin.elapsed();
        seal_and_apply(state.as_mut(), b"record");
        let begin = Instant::now();
        let rows = state.table(OPERATOR).drain(window(0), usize::MAX).expect("drains").keys[0].len();
        let drained = begin.elapsed();
        assert_eq!(rows, keys.len());
        println!(
            "{groups:>8} groups: merge new {:.1} M/s, existing {:.1} M/s, seal {:.1} M/s ({:.1} B/group), apply {:.2} M/s, \
             read back {:.2} M/s, drain {:.1} M/s, {:.1} B/group in memory",
            rate(keys.len(), new),
            rate(keys.len() * rounds, existing),
            rate(keys.len(), sealed),
            flush_bytes as f64 / groups as f64,
            rate(keys.len(), applied),
            rate(keys.len(), read_back),
            rate(keys.len(), drained),
            bytes.total as f64 / groups as f64,
        );
    }
}

#[test]
#[ignore = "a benchmark"]
fn benchmark_text_keys_with_four_states() {
    let directory = tempfile::tempdir().expect("temp");
    let spec = WindowTableSpec {
        operator: OPERATOR,
        keys: vec![field("key", DataType::Utf8, true)],
        aggregates: vec![
            aggregate(Merge::Sum, &[DataType::Int64, DataType::Int64]),
            aggregate(Merge::Max, &[DataType::Int64]),
            aggregate(Merge::Min, &[DataType::Utf8]),
        ],
    };
    let mut state = open(directory.path(), &spec).state;
    let keys = shuffled(100_000, 1);
    let batches: Vec<(ArrayRef, Vec<ArrayRef>)> = keys
        .chunks(BATCH)
        .map(|keys| {
            let texts: ArrayRef = Arc::new(StringArray::from_iter_values(keys.iter().map(|key| format!("channel-{key}"))));
            let numbers = integers(keys.iter().copied());
            (Arc::clone(&texts), vec![Arc::clone(&numbers), Arc::clone(&numbers), numbers, texts])
        })
        .collect();
    let mut took = vec![];
    for _ in 0..10 {
        let begin = Instant::now();
        for (keys, states) in &batches {
            state.table(OPERATOR).merge(window(0), std::slice::from_ref(keys), states).expect("merges");
        }
        took.push(begin.elapsed());
    }
    let bytes = state.bytes().total;
    let begin = Instant::now();
    let flush = state.seal_flush().expect("seals");
    println!(
        "text key, 4 states, 100 k groups: merge new {:.1} M/s, existing {:.1} M/s, seal {:.1} M/s ({} B/group), {} B/group in memory",
        rate(keys.len(), took[0]),
        rate(keys.len() * 9, took[1..].iter().sum()),
        rate(keys.len(), begin.elapsed()),
        flush.bytes / keys.len(),
        bytes / keys.len(),
    );
}

/// Ten million random keys, flushed every million, never more than `budget` in the tables.
fn load_and_drain(budget: usize) {
    let directory = tempfile::tempdir().expect("temp");
    let mut state = open(directory.path(), &count_by_integer()).state;
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let before = resident_bytes();
    let (mut peak, mut groups) = (0, 0usize);
    let begin = Instant::now();
    for batch in 0..10_000_000 / BATCH + 1 {
        let keys = integers((0..BATCH).map(|_| random.random_range(0..1i64 << 40)));
        groups += BATCH;
        let ones = integers(vec![1; BATCH]);
        state.table(OPERATOR).merge(window(0), &[keys], &[ones]).expect("merges");
        if batch % 128 == 127 {
            seal_and_apply(state.as_mut(), b"record");
            state.evict(budget).expect("evicts");
            peak = peak.max(resident_bytes());
        }
    }
    println!(
        "{groups} distinct keys, budget {} MiB: {:.2} M/s with flushes, tables {} MiB with {} groups, resident peak {} MiB",
        budget >> 20,
        rate(groups, begin.elapsed()),
        state.bytes().total >> 20,
        state.table(OPERATOR).groups(),
        (peak - before) >> 20,
    );
    let begin = Instant::now();
    let mut drained = 0;
    loop {
        let portion = state.table(OPERATOR).drain(window(0), 100_000).expect("drains");
        drained += portion.keys[0].len();
        peak = peak.max(resident_bytes());
        if portion.finished {
            break;
        }
    }
    println!("drain of {drained} in portions: {:.2} M/s, resident peak {} MiB", rate(drained, begin.elapsed()), (peak - before) >> 20);
    assert!(peak - before < 1 << 30, "resident set beyond 1 GiB");
}

#[test]
#[ignore = "a benchmark of 10 M groups"]
fn benchmark_ten_million_groups_in_memory() {
    load_and_drain(512 << 20);
}

#[test]
#[ignore = "a benchmark of 10 M groups"]
fn benchmark_ten_million_groups_mostly_evicted() {
    load_and_drain(64 << 20);
}

#[test]
#[ignore = "a benchmark"]
fn benchmark_deltas() {
    for groups in [10_000i64, 100_000, 1_000_000] {
        let (directory, standby_directory) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
        let mut state = open(directory.path(), &count_by_integer()).state;
        let mut standby = open(standby_directory.path(), &count_by_integer()).state;
        merge_all(state.as_mut(), &batches(&shuffled(groups, 1)));
        let batches = batches(&shuffled(groups, 2));
        let rounds = (4_000_000 / groups as usize).max(4);
        let (mut flushes_only, mut with_deltas) = (Duration::MAX, Duration::MAX);
        // A state of its own without deltas, in turns, since the machine is never quiet.
        let plain_directory = tempfile::tempdir().expect("temp");
        let mut plain = open(plain_directory.path(), &count_by_integer()).state;
        merge_all(plain.as_mut(), &batches);
        let (mut sealed, mut applied, mut bytes) = (Duration::ZERO, Duration::ZERO, 0);
        for round in 0..rounds {
            flushes_only = flushes_only.min(merge_all(plain.as_mut(), &batches));
            with_deltas = with_deltas.min(merge_all(state.as_mut(), &batches));
            let begin = Instant::now();
            let delta = state.seal_delta().expect("seals");
            sealed += begin.elapsed();
            bytes = delta.bytes.len();
            // A standby that applied the same groups before has to compact them: a few times tell.
            if round < 4 {
                let begin = Instant::now();
                standby.apply_delta(&delta.bytes, b"record").expect("applies");
                applied += begin.elapsed();
            }
        }
        let nanoseconds = |took: Duration, rounds: usize| took.as_nanos() as f64 / (groups as usize * rounds) as f64;
        println!(
            "{groups:>8} groups: merge {:.1} ns/group, with deltas {:.1}; seal_delta {:.1} ns/group ({:.1} B/group), apply_delta {:.0} ns/group",
            nanoseconds(flushes_only, 1),
            nanoseconds(with_deltas, 1),
            nanoseconds(sealed, rounds),
            bytes as f64 / groups as f64,
            nanoseconds(applied, 4),
        );
    }
}

/// As Tier 2 works: a large state of which each delta changes a little; and the take-over.
#[test]
#[ignore = "a benchmark"]
fn benchmark_taking_over_from_deltas_of_a_large_state() {
    const STEP: i64 = 10_000;
    for groups in [100_000i64, 1_000_000, 4_000_000] {
        let (directory, standby_directory) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
        let mut state = open(directory.path(), &count_by_integer()).state;
        let mut standby = open(standby_directory.path(), &count_by_integer()).state;
        let keys = shuffled(groups, 3);
        let (mut sealed, mut applied) = (Duration::ZERO, Duration::ZERO);
        for step in keys.chunks(STEP as usize) {
            merge_all(state.as_mut(), &batches(step));
            let begin = Instant::now();
            let delta = state.seal_delta().expect("seals");
            sealed += begin.elapsed();
            let begin = Instant::now();
            standby.apply_delta(&delta.bytes, b"record").expect("applies");
            applied += begin.elapsed();
        }
        let begin = Instant::now();
        merge_all(standby.as_mut(), &batches(&keys[..STEP as usize]));
        let first = begin.elapsed();
        let begin = Instant::now();
        seal_and_apply(standby.as_mut(), b"own");
        let per_group = |took: Duration| took.as_nanos() as f64 / groups as f64;
        println!(
            "{groups:>8} groups in deltas of {STEP}: seal {:.1} ns/group, apply {:.0} ns/group; after the take-over the first {STEP} rows merge in \
             {:.1} ms, the first flush takes {:.1} ms",
            per_group(sealed),
            per_group(applied),
            first.as_secs_f64() * 1e3,
            begin.elapsed().as_secs_f64() * 1e3,
        );
    }
}

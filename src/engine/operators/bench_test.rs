//! Figures of the operators: `cargo test --release -p streamshield-engine -p unify -- --ignored --nocapture bench`.
#![allow(clippy::unwrap_used)]

use crate::exchange::{FrameEncoder, Partitioner, decode};
use crate::operators::chain_test::{Query, count_all, of};
use crate::operators::test_kit::{MemoryState, Random};
use crate::operators::{Chain, ChainOutput, EpochContext, InputWatermarks};
use crate::plan::*;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow_schema::{DataType, Field, Schema};
use datafusion_expr::Operator as Op;
use datafusion_functions_aggregate as functions;
use datafusion_physical_expr::expressions::{binary, col, lit};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use streamshield_core::ids::{Epoch, ExchangeId, RegionId, StageId};
use streamshield_core::watermark::UpstreamWatermark;

const ROWS: usize = 8_192;

/// Runs for about a second, in epochs of ten batches; million rows per second.
fn measure(name: &str, rows: usize, mut batch: impl FnMut(usize)) {
    let mut best: f64 = 0.0;
    for _ in 0..5 {
        let start = Instant::now();
        let mut batches = 0;
        while start.elapsed().as_millis() < 200 {
            (0..10).for_each(&mut batch);
            batches += 10;
        }
        best = best.max((batches * rows) as f64 / start.elapsed().as_secs_f64() / 1e6);
    }
    println!("{name:60} {best:8.1} M rows/s {:8.2} ns/row", 1e3 / best);
}

fn source_rows(keys: usize) -> RecordBatch {
    let query = Query { kind: WindowKind::Tumble { size_ms: 10_000, offset_ms: 0 }, delay_ms: 0, keys: vec!["key"], late_row: false };
    let mut random = Random(1);
    let mut schema = query.aggregate(vec![]).input_schema.fields()[..5].to_vec();
    schema.push(Arc::new(Field::new(WATERMARK_COLUMN, DataType::Int64, false)));
    let random_keys: Vec<i64> = (0..ROWS).map(|_| random.below(keys) as i64).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMillisecondArray::from_iter_values(0..ROWS as i64)),
        Arc::new(Int64Array::from(random_keys.clone())),
        Arc::new(Int64Array::from_iter_values(0..ROWS as i64)),
        Arc::new(StringArray::from_iter_values(random_keys.iter().map(|key| format!("word {key}")))),
        Arc::new(arrow_array::Float64Array::from_iter_values((0..ROWS).map(|n| n as f64))),
        Arc::new(Int64Array::from_value(i64::MIN, ROWS)),
    ];
    RecordBatch::try_new(Arc::new(Schema::new(schema)), columns).unwrap()
}

fn measure_chain(name: &str, operators: &[Operator], rows: &RecordBatch) {
    let mut chain = Chain::new(operators, rows.schema()).unwrap();
    let mut state = MemoryState::default();
    let mut epoch = EpochContext { now_ms: 0, seed: 0, seed_next: 0 };
    measure(name, rows.num_rows(), |n| {
        let mut out = ChainOutput::default();
        chain.process(rows.clone(), InputWatermarks::START, &mut epoch, &mut state, &mut out).unwrap();
        if n == 9 {
            chain.seal(&mut epoch, &mut state, &mut out).unwrap();
        }
        black_box(out);
    });
}

#[test]
#[ignore = "measures, does not check"]
fn bench_operators() {
    for keys in [100, 10_000, 1 << 40] {
        let rows = source_rows(keys);
        for (name, kind) in [
            ("TUMBLE", WindowKind::Tumble { size_ms: 10_000, offset_ms: 0 }),
            ("TUMBLE, 8 windows a batch", WindowKind::Tumble { size_ms: 1_024, offset_ms: 0 }),
            ("HOP 10", WindowKind::Hop { slide_ms: 10_000, size_ms: 100_000, offset_ms: 0 }),
        ] {
            let query = |key| Query { kind, delay_ms: 0, keys: vec![key], late_row: false };
            let input = query("key").aggregate(vec![]).input_schema.clone();
            let count = query("key").aggregate(vec![(count_all(&input), None)]);
            measure_chain(&format!("{keys} keys, {name}, count(*) by BIGINT"), &query("key").job(&count).source, &rows);
            let avg = query("key").aggregate(vec![
                (of(functions::average::avg_udaf(), "real", &input), None),
                (of(functions::min_max::max_udaf(), "value", &input), None),
            ]);
            measure_chain(&format!("{keys} keys, {name}, avg, max by BIGINT"), &query("key").job(&avg).source, &rows);
            let words = query("word").aggregate(vec![(count_all(&input), None)]);
            measure_chain(&format!("{keys} keys, {name}, count(*) by STRING"), &query("word").job(&words).source, &rows);
        }
    }
}

#[test]
#[ignore = "measures, does not check"]
fn bench_filter_and_project() {
    let rows = source_rows(100);
    let schema = rows.schema();
    for (name, limit) in [("all", -1i64), ("half", ROWS as i64 / 2), ("none", ROWS as i64)] {
        let filter = Operator::Filter(Expressions::new(vec![binary(col("value", &schema).unwrap(), Op::Gt, lit(limit), &schema).unwrap()]));
        let columns = ["ts", "key", "word"].map(|name| col(name, &schema).unwrap()).to_vec();
        let fields: Vec<Field> = ["ts", "key", "word"].iter().map(|name| schema.field_with_name(name).unwrap().clone()).collect();
        let project = Operator::Project(Projection { expressions: Expressions::new(columns), schema: Arc::new(Schema::new(fields)) });
        measure_chain(&format!("filter that keeps {name}, project 3 of 6"), &[filter, project], &rows);
    }
}

#[test]
#[ignore = "measures, does not check"]
fn bench_exchange() {
    let rows = source_rows(1 << 40);
    let plan = |keys| ExchangePlan {
        id: ExchangeId(0),
        name: "x".into(),
        schema: rows.schema(),
        keys,
        upstream: vec![],
        downstream: StageId(1),
        partitions: None,
    };
    for (name, keys) in [("BIGINT", vec![1]), ("STRING", vec![3])] {
        let mut partitioner = Partitioner::new(&plan(keys), 8);
        measure(&format!("split to 8 partitions by {name}, 6 columns"), ROWS, |_| {
            black_box(partitioner.split(&rows).unwrap());
        });
    }
    let mut encoder = FrameEncoder::new(rows.schema());
    let upstream = RegionId { stage: StageId(0), partition: 0 };
    let mut bytes = Vec::new();
    measure("encode, 6 columns", ROWS, |_| {
        bytes.clear();
        encoder.encode(upstream, Epoch(1), UpstreamWatermark::START, Some(&rows), &mut bytes).unwrap();
    });
    println!("{} bytes for {} in memory", bytes.len(), rows.get_array_memory_size());
    measure("decode, 6 columns", ROWS, |_| {
        black_box(decode(&bytes, &rows.schema()).unwrap());
    });
}

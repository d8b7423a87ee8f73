//! Nanoseconds per row, next to arrow-json's, printed and not judged:
//!
//! ```text
//! cargo test --release -p streamshield-connectors -p unify nanoseconds -- --ignored --nocapture
//! ```

use super::super::{FormatScope, decoder, encoder};
use super::decode_test::{schema, table};
use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, SchemaRef, TimeUnit};
use std::hint::black_box;
use std::time::Instant;

const ROWS: usize = 8192;
const BATCHES: usize = 200;

/// Bids of about 200 bytes, as Nexmark has them.
fn bids() -> Vec<Vec<u8>> {
    let bid = |i: usize| {
        let (auction, bidder, price) = (1000 + i * 7919 % 100_000, 1000 + i * 104_729 % 50_000, 100 + i * 15_485_863 % 10_000_000);
        let (second, milli) = (i / 1000 % 60, i % 1000);
        format!(
            "{{\"auction\":{auction},\"bidder\":{bidder},\"price\":{price},\"channel\":\"channel-{}\",\"url\":\"https://www.nexmark.com/abcde/fghij/klmno/item.htm?query=1\",\"dateTime\":\"2026-01-01 00:00:{second:02}.{milli:03}\",\"extra\":\"{}\"}}",
            i % 10_000,
            "x".repeat(20 + i % 17)
        )
        .into_bytes()
    };
    (0..ROWS).map(bid).collect()
}

fn columns(names: &[&str]) -> SchemaRef {
    let data_type = |name: &str| match name {
        "auction" | "bidder" | "price" => DataType::Int64,
        "dateTime" => DataType::Timestamp(TimeUnit::Millisecond, None),
        _ => DataType::Utf8,
    };
    schema(names.iter().map(|name| Field::new(*name, data_type(name), true)).collect())
}

/// The best and the median of many batches, per row.
fn measure(mut batch: impl FnMut()) -> (f64, f64) {
    let mut nanos: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let start = Instant::now();
            batch();
            start.elapsed().as_nanos() as f64 / ROWS as f64
        })
        .collect();
    nanos.sort_by(f64::total_cmp);
    (nanos[0], nanos[BATCHES / 2])
}

fn reference_decode(schema: &SchemaRef, records: &[Vec<u8>]) -> RecordBatch {
    let mut decoder = arrow_json::ReaderBuilder::new(schema.clone()).with_batch_size(ROWS).build_decoder().unwrap();
    for record in records {
        assert_eq!(decoder.decode(record).unwrap(), record.len());
    }
    decoder.flush().unwrap().unwrap()
}

#[test]
#[ignore = "prints times, judges nothing"]
fn nanoseconds_per_row() {
    let records = bids();
    let payloads: Vec<_> = records.iter().map(|record| Some(record.as_slice())).collect();
    let bytes = records.iter().map(Vec::len).sum::<usize>() / ROWS;
    println!("\nbids of {bytes} bytes on average, {ROWS} per batch; ns per row: best, median of {BATCHES} batches");
    let all = ["auction", "bidder", "price", "channel", "url", "dateTime", "extra"];
    for names in [&all[..], &["auction", "price", "dateTime"], &["auction"]] {
        let schema = columns(names);
        let mut ours = decoder(&table(&schema, &[]), FormatScope::Value, &schema).unwrap();
        assert_eq!(ours.decode(&payloads).rows, reference_decode(&schema, &records));
        let (best, median) = measure(|| {
            black_box(ours.decode(black_box(&payloads)));
        });
        let (reference_best, reference_median) = measure(|| {
            black_box(reference_decode(&schema, black_box(&records)));
        });
        println!("decode {} of 7 columns: {best:6.1} {median:6.1}   arrow-json {reference_best:6.1} {reference_median:6.1}", names.len());
    }
    let schema = columns(&["auction", "bidder", "price", "channel", "dateTime"]);
    let rows = decoder(&table(&schema, &[]), FormatScope::Value, &schema).unwrap().decode(&payloads).rows;
    let mut writer = encoder(&table(&schema, &[]), FormatScope::Value, &schema).unwrap();
    let (mut out, mut ends) = (Vec::new(), Vec::new());
    let (best, median) = measure(|| {
        out.clear();
        ends.clear();
        writer.encode(black_box(&rows), &mut out, &mut ends).unwrap();
    });
    println!("encode 5 columns, {} bytes: {best:6.1} {median:6.1}\n", out.len() / ROWS);
}

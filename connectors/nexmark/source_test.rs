use super::model::{EVENTS_PER_GROUP, Event, Model};
use super::*;
use crate::generator::tests::read;
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMillisecondType};
use arrow_schema::{Field, Schema, TimeUnit};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use streamshield_core::table::{Column, ColumnKind};

fn fields(event: Event) -> Vec<Field> {
    let data_type = |name: &str| match name {
        "BIGINT" => DataType::Int64,
        "STRING" => DataType::Utf8,
        _ => DataType::Timestamp(TimeUnit::Millisecond, None),
    };
    columns::ColumnName::all_of(event).iter().map(|(name, column)| Field::new(*name, data_type(column.sql_type()), true)).collect()
}

fn request(event: Event, fields: Vec<Field>, options: &[(&str, &str)]) -> SourceRequest {
    let columns: Vec<Column> = fields.into_iter().map(|field| Column { field: Arc::new(field), kind: ColumnKind::Physical }).collect();
    let mut all: BTreeMap<String, String> = options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    all.insert("connector".into(), "nexmark".into());
    all.insert("nexmark.table".into(), event.name().into());
    let schema = Arc::new(Schema::new(columns.iter().map(|column| column.field.clone()).collect::<Vec<_>>()));
    let table = TableDefinition { name: "t".into(), columns: columns.clone(), options: all, primary_key: vec![] };
    SourceRequest { table, columns, schema, keep_origins: false }
}

fn rows(event: Event, options: &[(&str, &str)], split: usize, from: i64, to: i64) -> RecordBatch {
    let source = NexmarkConnector.open(request(event, fields(event), options)).unwrap();
    let splits = source.discover().unwrap();
    read(&*source, &splits[split], from, to, usize::MAX).remove(0)
}

fn numbers(batch: &RecordBatch, name: &str) -> Vec<i64> {
    batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().values().to_vec()
}
fn event_times(batch: &RecordBatch) -> Vec<i64> {
    batch.column_by_name("dateTime").unwrap().as_primitive::<TimestampMillisecondType>().values().to_vec()
}

#[test]
fn bids_refer_to_auctions_and_persons_that_exist_by_then() {
    let bids = rows(Event::Bid, &[], 0, 0, 46_000);
    let auctions = rows(Event::Auction, &[], 0, 0, 3_000);
    let persons = rows(Event::Person, &[], 0, 0, 1_000);
    let began: BTreeMap<i64, i64> = numbers(&auctions, "id").into_iter().zip(event_times(&auctions)).collect();
    let joined: BTreeMap<i64, i64> = numbers(&persons, "id").into_iter().zip(event_times(&persons)).collect();
    assert_eq!((began.len(), joined.len()), (3_000, 1_000));
    for ((auction, bidder), time) in numbers(&bids, "auction").into_iter().zip(numbers(&bids, "bidder")).zip(event_times(&bids)) {
        assert!(began[&auction] <= time && joined[&bidder] <= time);
    }
    for (seller, time) in numbers(&auctions, "seller").into_iter().zip(event_times(&auctions)) {
        assert!(joined[&seller] <= time);
    }
    let expires = auctions.column_by_name("expires").unwrap().as_primitive::<TimestampMillisecondType>();
    assert!(event_times(&auctions).into_iter().zip(expires.values()).all(|(begin, end)| begin < *end));
}

#[test]
fn event_time_has_the_rate_of_all_events_together() {
    // 10,000 events per second by default, 46 of 50 are bids.
    let times = event_times(&rows(Event::Bid, &[], 0, 0, 9_200));
    assert_eq!(times[0], crate::generator::DEFAULT_START_MS);
    assert_eq!(times[9_199] - times[0], 999);
    assert!(times.is_sorted());
    let skewed = event_times(&rows(Event::Bid, &[("event-time.skew", "2 s")], 0, 0, 9_200));
    assert!(!skewed.is_sorted());
    assert!(times.iter().zip(&skewed).all(|(straight, skewed)| (0..=2_000).contains(&(straight - skewed))));
    let paced = event_times(&rows(Event::Bid, &[("rows-per-second", "100")], 0, 0, 101));
    assert!((990..=1_010).contains(&(paced[100] - paced[0])), "{}", paced[100] - paced[0]);
}

#[test]
fn splits_share_the_events_out() {
    let alone = rows(Event::Auction, &[], 0, 0, 300);
    let mut together = BTreeSet::new();
    for split in 0..4 {
        let part = rows(Event::Auction, &[("splits", "4")], split, 0, 75);
        together.extend(numbers(&part, "id").into_iter().zip(event_times(&part)));
    }
    assert_eq!(together, numbers(&alone, "id").into_iter().zip(event_times(&alone)).collect());
}

#[test]
fn keys_can_be_skewed() {
    let share = |exponent: &str| {
        let auctions = numbers(&rows(Event::Bid, &[("keys.zipf", exponent), ("number-of-keys", "100")], 0, 0, 50_000), "auction");
        let mut counts = BTreeMap::new();
        auctions.iter().for_each(|auction| *counts.entry(*auction).or_insert(0) += 1);
        (counts.len(), *counts.values().max().unwrap() as f64 / auctions.len() as f64)
    };
    let (uniform, skewed) = (share("0"), share("2"));
    assert!(uniform.0 == 100 && (0.008..0.013).contains(&uniform.1), "{uniform:?}");
    assert!((0.58..0.64).contains(&skewed.1), "{skewed:?}");
}

#[test]
fn wrong_names_types_and_options_are_refused() {
    let check = |fields: Vec<Field>, options: &[(&str, &str)]| NexmarkConnector.check(&request(Event::Bid, fields, options).table);
    assert!(check(fields(Event::Bid), &[("seed", "7"), ("event-time.start", "now"), ("event-time.interval", "1 ms")]).is_empty());
    let wrong = check(vec![Field::new("prize", DataType::Int64, true), Field::new("url", DataType::Int64, true)], &[]);
    assert_eq!(wrong[0].hint.as_deref(), Some("did you mean 'price'?"));
    assert_eq!(wrong[1].message, "column 'url' is STRING in Nexmark, not BIGINT");
    for (key, value) in [
        ("splits", "0"),
        ("event-time.interval", "0 s"),
        ("keys.zipf", "-1"),
        ("rows-per-second", "-5"),
        ("event-time.start", "tomorrow"),
        ("row-per-second", "5"),
    ] {
        let errors = check(fields(Event::Bid), &[(key, value)]);
        assert_eq!(errors.len(), 1, "{key}");
        assert_eq!(errors[0].key, key);
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![Just(Event::Bid), Just(Event::Auction), Just(Event::Person)]
}

proptest! {
    #[test]
    fn the_same_positions_give_the_same_rows_however_they_are_cut(event in any_event(), seed in 0..5u64, splits in 1..4u32, from in 0..10_000i64, count in 1..200i64, cut in 1..60usize) {
        let (seed, splits_text) = (seed.to_string(), splits.to_string());
        let options = [("seed", seed.as_str()), ("splits", splits_text.as_str()), ("event-time.skew", "1 s")];
        let whole = rows(event, &options, splits as usize - 1, from, from + count);
        let source = NexmarkConnector.open(request(event, fields(event), &options)).unwrap();
        let split = source.discover().unwrap().pop().unwrap();
        let mut at = 0;
        for piece in read(&*source, &split, from, from + count, cut) {
            prop_assert_eq!(&piece, &whole.slice(at, piece.num_rows()));
            at += piece.num_rows();
        }
        prop_assert_eq!(at, whole.num_rows());
    }

    #[test]
    fn a_column_has_the_same_values_alone_and_among_others(event in any_event(), column in any::<prop::sample::Index>(), from in 0..1_000i64) {
        let all = rows(event, &[], 0, from, from + 100);
        let field = fields(event)[column.index(fields(event).len())].clone();
        let source = NexmarkConnector.open(request(event, vec![field.clone()], &[])).unwrap();
        let alone = read(&*source, &source.discover().unwrap()[0], from, from + 100, usize::MAX).remove(0);
        prop_assert_eq!(alone.column(0), all.column_by_name(field.name()).unwrap());
    }

    #[test]
    fn rows_and_event_numbers_are_each_others_inverse(event in any_event(), splits in 1..6u32, split in 0..6u32, row in 0..1_000_000i64) {
        let split = split % splits;
        let options = NexmarkOptions::read(&request(event, fields(event), &[("splits", &splits.to_string())]).table).unwrap();
        let model = Model::new(&options);
        let number = model.event_of_row(split, row);
        prop_assert_eq!(model.row_at_event(split, number), row);
        prop_assert_eq!(model.row_at_event(split, number + 1), row + 1);
        let next = model.event_of_row(split, row + 1);
        prop_assert!(next > number);
        for between in [number + 1, (number + next + 1) / 2, next] {
            prop_assert_eq!(model.row_at_event(split, between), row + 1);
        }
        prop_assert_eq!(number.div_euclid(EVENTS_PER_GROUP).rem_euclid(i64::from(splits)), i64::from(split));
    }
}

#[test]
#[ignore = "prints times, judges nothing"]
fn nanoseconds_per_generated_row() {
    println!();
    for names in [&["auction", "bidder", "price", "channel", "url", "dateTime", "extra"][..], &["auction", "price", "dateTime"]] {
        let wanted: Vec<Field> = fields(Event::Bid).into_iter().filter(|field| names.contains(&field.name().as_str())).collect();
        let source = NexmarkConnector.open(request(Event::Bid, wanted, &[])).unwrap();
        let split = source.discover().unwrap().remove(0);
        let mut nanos: Vec<f64> = (0..50)
            .map(|_| {
                let start = std::time::Instant::now();
                std::hint::black_box(read(&*source, &split, 0, 8192, usize::MAX));
                start.elapsed().as_nanos() as f64 / 8192.0
            })
            .collect();
        nanos.sort_by(f64::total_cmp);
        println!("generate {} of 7 columns of a bid: {:6.1} {:6.1} ns per row (best, median)", names.len(), nanos[0], nanos[25]);
    }
}

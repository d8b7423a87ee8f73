#![allow(clippy::unwrap_used)]
use super::*;
use arrow_array::builder::{Int32Builder, ListBuilder};
use arrow_array::*;
use arrow_schema::{Field, Fields, Schema};
use proptest::prelude::*;
use std::sync::Arc;
use streamshield_core::ids::{ExchangeId, StageId};

fn partitioner(schema: &arrow_schema::SchemaRef, keys: Vec<usize>, partitions: u32) -> Partitioner {
    let plan = ExchangePlan {
        id: ExchangeId(0),
        name: "x".into(),
        schema: schema.clone(),
        keys,
        upstream: vec![StageId(0)],
        downstream: StageId(1),
        partitions: None,
    };
    Partitioner::new(&plan, partitions)
}

fn hashes(column: ArrayRef) -> Vec<u64> {
    let mut hashes = vec![0; column.len()];
    hash_column(&column, &mut hashes).unwrap();
    hashes
}

/// These numbers are on disk. They may never change.
#[test]
fn hashes_are_those_of_the_format_on_disk() {
    let mut list = ListBuilder::new(Int32Builder::new());
    list.append_value([Some(1), None, Some(3)]);
    list.append_value([]);
    let fields = Fields::from(vec![Field::new("a", DataType::Int32, true), Field::new("b", DataType::Utf8, true)]);
    let strings: ArrayRef = Arc::new(StringArray::from(vec![Some("x")]));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("int", Arc::new(Int64Array::from(vec![Some(0), Some(1), Some(-1), Some(i64::MAX), None]))),
        ("string", Arc::new(StringArray::from(vec![Some(""), Some("a"), Some("streamshield"), None]))),
        ("double", Arc::new(Float64Array::from(vec![0.0, 1.5, f64::NAN]))),
        ("decimal", Arc::new(Decimal128Array::from(vec![0, 12_345, -12_345]).with_precision_and_scale(38, 2).unwrap())),
        ("boolean", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
        ("timestamp", Arc::new(TimestampMillisecondArray::from(vec![1_700_000_000_000]))),
        ("list", Arc::new(list.finish())),
        ("struct", Arc::new(StructArray::new(fields, vec![Arc::new(Int32Array::from(vec![7])), strings], None))),
    ];
    let golden: Vec<(&str, Vec<u64>)> = GOLDEN.iter().map(|(name, hashes)| (*name, hashes.to_vec())).collect();
    let found: Vec<(&str, Vec<u64>)> = columns.into_iter().map(|(name, column)| (name, hashes(column))).collect();
    assert_eq!(found, golden);
    assert_eq!([0, 1 << 63, u64::MAX].map(|hash| partition_of(hash, 6)), [0, 3, 5]);
}

const GOLDEN: &[(&str, &[u64])] = &[
    ("int", &[16294208416658607535, 10451216379200822465, 16490336266968443936, 3055647633038352039, 756517608410894910]),
    ("string", &[6462926535050963950, 15829060357068751680, 2158921100629887772, 756517608410894910]),
    ("double", &[16294208416658607535, 15481881892811333770, 14351126860892846918]),
    ("decimal", &[12035550249420947055, 291995243589385535, 16085112031494094036]),
    ("boolean", &[10451216379200822465, 16294208416658607535, 756517608410894910]),
    ("timestamp", &[940689255921423875]),
    ("list", &[4765320422462692611, 12035550249420947055]),
    ("struct", &[7318841352581740851]),
];

#[test]
fn equal_values_of_different_bits_or_widths_go_to_one_partition() {
    assert_eq!(hashes(Arc::new(Float64Array::from(vec![-0.0]))), hashes(Arc::new(Float64Array::from(vec![0.0]))));
    assert_eq!(hashes(Arc::new(Float64Array::from(vec![f64::NAN]))), hashes(Arc::new(Float64Array::from(vec![-f64::NAN]))));
    assert_eq!(hashes(Arc::new(Int32Array::from(vec![-5]))), hashes(Arc::new(Int64Array::from(vec![-5]))));
    let with_null = hashes(Arc::new(Int64Array::from(vec![Some(5), None])));
    assert_eq!(with_null[0], hashes(Arc::new(Int64Array::from(vec![5])))[0], "a null elsewhere in the column changes nothing");
}

#[test]
fn rows_without_keys_go_to_partition_0_as_they_are() {
    let schema = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true)]));
    let rows = RecordBatch::try_new(schema.clone(), vec![Arc::new(Int64Array::from(vec![1, 2, 3]))]).unwrap();
    assert_eq!(partitioner(&schema, vec![], 8).split(&rows).unwrap(), vec![(0, rows.clone())]);
    assert_eq!(partitioner(&schema, vec![0], 1).split(&rows).unwrap(), vec![(0, rows.clone())]);
    assert!(partitioner(&schema, vec![0], 4).split(&rows.slice(0, 0)).unwrap().is_empty());
}

#[test]
fn partitions_get_about_the_same() {
    let schema = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true)]));
    let rows = RecordBatch::try_new(schema.clone(), vec![Arc::new(Int64Array::from_iter_values(0..60_000))]).unwrap();
    for (partition, rows) in partitioner(&schema, vec![0], 6).split(&rows).unwrap() {
        assert!((9_500..10_500).contains(&rows.num_rows()), "partition {partition} gets {}", rows.num_rows());
    }
}

proptest! {
    #[test]
    fn each_row_goes_where_its_key_hashes_to_and_keeps_its_place(keys in prop::collection::vec(prop::option::of(-9i64..9), 1..300), partitions in 1u32..9) {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true), Field::new("k", DataType::Int64, true)]));
        let key: ArrayRef = Arc::new(keys.iter().copied().collect::<Int64Array>());
        let rows = RecordBatch::try_new(schema.clone(), vec![Arc::new(Int64Array::from_iter_values(0..keys.len() as i64)), key.clone()]).unwrap();
        let hashes = hashes(key);
        let mut seen = 0;
        for (partition, part) in partitioner(&schema, vec![1], partitions).split(&rows).unwrap() {
            let numbers = part.column(0).as_primitive::<Int64Type>().values();
            prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
            for (number, key) in numbers.iter().zip(part.column(1).as_primitive::<Int64Type>()) {
                prop_assert_eq!(key, keys[*number as usize]);
                prop_assert_eq!(partition_of(hashes[*number as usize], partitions), partition);
            }
            seen += part.num_rows();
        }
        prop_assert_eq!(seen, keys.len());
    }
}

#![allow(clippy::unwrap_used)]
use super::*;
use arrow_array::builder::{Int64Builder, ListBuilder, MapBuilder, StringBuilder};
use arrow_array::*;
use arrow_schema::{Field, Fields, Schema, TimeUnit};
use proptest::prelude::*;
use std::sync::Arc;

const UPSTREAM: RegionId = RegionId { stage: StageId(3), partition: 9 };

/// One column of about each type that can be in an exchange.
fn rows(count: usize) -> RecordBatch {
    let mut list = ListBuilder::new(StringBuilder::new());
    let mut map = MapBuilder::new(None, StringBuilder::new(), Int64Builder::new());
    for n in 0..count {
        (0..n % 3).for_each(|element| list.values().append_value(format!("element {element}")));
        list.append(n % 5 != 0);
        map.keys().append_value("k");
        map.values().append_value(n as i64);
        map.append(true).unwrap();
    }
    let numbers = || (0..count as i64).map(|n| (n % 4 != 0).then_some(n));
    let ints: ArrayRef = Arc::new(numbers().collect::<Int64Array>());
    let fields = Fields::from(vec![Field::new("x", DataType::Int64, true)]);
    let nulls = (0..count).map(|n| n % 7 != 0).collect::<Vec<_>>();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("int", ints.clone()),
        ("text", Arc::new(numbers().map(|n| n.map(|n| format!("text {n}"))).collect::<StringArray>())),
        ("flag", Arc::new(numbers().map(|n| n.map(|n| n % 2 == 0)).collect::<BooleanArray>())),
        ("time", Arc::new(numbers().collect::<TimestampMillisecondArray>().with_timezone("UTC"))),
        ("decimal", Arc::new(numbers().map(|n| n.map(i128::from)).collect::<Decimal128Array>())),
        ("list", Arc::new(list.finish())),
        ("map", Arc::new(map.finish())),
        ("struct", Arc::new(StructArray::new(fields, vec![ints], Some(nulls.into())))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
}

fn encode(frames: &[Frame], schema: &SchemaRef) -> Vec<u8> {
    let mut encoder = FrameEncoder::new(schema.clone());
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| encoder.encode(frame.upstream, frame.epoch, frame.watermark, frame.rows.as_ref(), &mut bytes).unwrap());
    bytes
}

fn frame(epoch: u64, rows: Option<RecordBatch>) -> Frame {
    let watermark = UpstreamWatermark { watermark: Watermark(-5), idle: epoch.is_multiple_of(2) };
    Frame { upstream: UPSTREAM, epoch: Epoch(epoch), watermark, rows }
}

#[test]
fn a_message_is_cut_between_frames_without_a_look_at_their_rows() {
    let schema = rows(0).schema();
    let other = RegionId { partition: 10, ..UPSTREAM };
    let mut frames = [frame(4, Some(rows(40))), frame(7, None), frame(5, Some(rows(3))), frame(6, None)];
    frames[1].upstream = other;
    let message = encode(&frames, &schema);
    let found: Vec<_> = spans(&message).unwrap().iter().map(|span| (span.upstream, span.epoch.0)).collect();
    assert_eq!(found, [(UPSTREAM, 4), (other, 7), (UPSTREAM, 5), (UPSTREAM, 6)]);
    let kept = cut(&message, |span| span.upstream == other || span.epoch <= Epoch(5)).unwrap().unwrap();
    assert_eq!(decode(&kept, &schema).unwrap(), frames[..3]);
    assert_eq!(cut(&message, |span| span.epoch > Epoch(7)).unwrap(), None);
    assert_eq!(cut(&message, |_| true).unwrap(), Some(message.clone()));
    assert_eq!(cut(&[], |_| true).unwrap(), None);
    assert!(spans(&message[..message.len() - 1]).is_err() && spans(b"not a frame, and no head of one either, at 40").is_err());
}

#[test]
fn frames_come_back_as_they_were() {
    let schema = rows(0).schema();
    let sliced = rows(1_000).slice(13, 700);
    let frames = [frame(1, Some(rows(1))), frame(2, None), frame(3, Some(rows(500))), frame(4, Some(sliced))];
    assert_eq!(decode(&encode(&frames, &schema), &schema).unwrap(), frames);
    assert_eq!(decode(&[], &schema).unwrap(), []);
    let empty = encode(&[frame(1, Some(rows(0)))], &schema);
    assert_eq!(decode(&empty, &schema).unwrap()[0].rows, None, "no rows are a marker");
}

#[test]
fn a_marker_is_as_small_as_its_head_and_rows_shrink_where_it_pays() {
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]));
    let rows =
        |count| RecordBatch::try_new(schema.clone(), vec![Arc::new(Int64Array::from_iter_values((0..count).map(|n| n % 10)))]).unwrap();
    assert_eq!(encode(&[frame(1, None)], &schema).len(), FRAME_HEAD_BYTES);
    assert!(encode(&[frame(1, Some(rows(4_096)))], &schema).len() < 4_096 * 8 / 4);
}

#[test]
fn a_frame_of_known_bytes_is_read() {
    let mut bytes = b"SX\x01\x01".to_vec();
    bytes.extend([3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend((-5i64).to_le_bytes());
    bytes.extend([0; 8]);
    assert_eq!(decode(&bytes, &rows(0).schema()).unwrap(), [frame(2, None)]);
    bytes[2] = 2;
    assert!(matches!(decode(&bytes, &rows(0).schema()), Err(FrameError::Version { found: 2 })));
}

#[test]
fn columns_that_are_not_the_exchanges_are_refused_and_leave_no_bytes() {
    let mut encoder = FrameEncoder::new(Arc::new(Schema::new(vec![Field::new("a", DataType::Utf8, true)])));
    let mut out = vec![1];
    assert!(encoder.encode(UPSTREAM, Epoch(1), UpstreamWatermark::START, Some(&rows(3)), &mut out).is_err());
    assert_eq!(out, [1]);
}

#[test]
fn a_batch_of_another_schema_is_an_error() {
    let bytes = encode(&[frame(1, Some(rows(10)))], &rows(0).schema());
    for data_type in [DataType::Int64, DataType::Utf8, DataType::Null, DataType::Timestamp(TimeUnit::Second, None)] {
        assert!(decode(&bytes, &Arc::new(Schema::new(vec![Field::new("a", data_type, true)]))).is_err());
    }
}

#[test]
fn a_buffer_that_claims_to_decompress_to_gigabytes_is_refused() {
    let text = |length: i64| [&length.to_le_bytes()[..], &[0; 16]].concat();
    assert_eq!(decompressed_bytes(&text(100)), Ok(100));
    assert_eq!(decompressed_bytes(&text(-1)), Ok(16));
    assert!(decompressed_bytes(&text(1 << 40)).is_err());
    assert!(decompressed_bytes(&text(-2)).is_err());
    assert!(decompressed_bytes(&[1, 2]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn damaged_frames_are_errors_or_rows_and_never_a_panic(count in 1usize..60, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in prop::option::weighted(0.2, any::<prop::sample::Index>())) {
        let whole = rows(count);
        let mut bytes = encode(&[frame(1, Some(whole.clone())), frame(2, None)], &whole.schema());
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        for frame in decode(&bytes, &whole.schema()).into_iter().flatten() {
            prop_assert!(frame.rows.is_none_or(|rows| rows.num_rows() <= i32::MAX as usize));
        }
    }

    #[test]
    fn any_bytes_behind_a_good_head_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400), head in 0u32..200, rows_said in 0u32..9) {
        let mut all = b"SX\x01\x02".to_vec();
        all.extend([0; 8]);
        all.extend(rows_said.to_le_bytes());
        all.extend([0; 16]);
        let head = head.min(bytes.len() as u32);
        all.extend(head.to_le_bytes());
        all.extend((bytes.len() as u32 - head).to_le_bytes());
        all.extend(&bytes);
        prop_assert!(decode(&all, &rows(0).schema()).is_err());
    }
}

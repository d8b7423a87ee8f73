//! Windowed aggregation over both stages: values, lateness, portions, two levels.
#![allow(clippy::unwrap_used, clippy::type_complexity)]

use crate::operators::assign_windows::windows_of;
use crate::operators::partial_aggregate::PROBE_ROWS;
use crate::operators::test_kit::{Job, MODES, MemoryState, Mode, Random, run, same_in_all_modes};
use crate::operators::{Chain, ChainOutput, EpochContext, InputWatermarks, NO_SOURCE_ROW};
use crate::plan::*;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::*;
use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use datafusion_common::ScalarValue;
use datafusion_expr::{AggregateUDF, Operator as Op};
use datafusion_functions_aggregate as functions;
use datafusion_physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion_physical_expr::expressions::{binary, cast, col, lit};
use datafusion_physical_expr::{PhysicalExpr, PhysicalSortExpr};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use streamshield_core::table::TableDefinition;
use streamshield_core::watermark::Watermark;

const MS: DataType = DataType::Timestamp(TimeUnit::Millisecond, None);
const EPOCH: EpochContext = EpochContext { now_ms: 0, seed: 0, seed_next: 0 };

/// `SELECT key, window, calls FROM TABLE(kind(…)) GROUP BY key, window` over `ts, key, value, word` with a watermark of `ts − delay`.
pub struct Query {
    pub kind: WindowKind,
    pub delay_ms: i64,
    pub keys: Vec<&'static str>,
    pub late_row: bool,
}

fn field(name: &str, data_type: DataType) -> FieldRef {
    Arc::new(Field::new(name, data_type, true))
}

fn schema(fields: Vec<FieldRef>) -> SchemaRef {
    Arc::new(Schema::new(Fields::from(fields)))
}

pub fn input_schema() -> SchemaRef {
    schema(vec![
        field("ts", MS),
        field("key", DataType::Int64),
        field("value", DataType::Int64),
        field("word", DataType::Utf8),
        field("real", DataType::Float64),
    ])
}

/// What the scan gives.
fn scanned_schema() -> SchemaRef {
    let mut fields = input_schema().fields().to_vec();
    fields.push(field(WATERMARK_COLUMN, DataType::Int64));
    schema(fields)
}

/// Rows of a scan that has no watermark yet.
fn scanned(rows: &RecordBatch) -> RecordBatch {
    let watermark: ArrayRef = Arc::new(Int64Array::from_value(i64::MIN, rows.num_rows()));
    RecordBatch::try_new(scanned_schema(), [rows.columns(), &[watermark]].concat()).unwrap()
}

impl Query {
    fn scan(&self) -> SourceScan {
        let input = input_schema();
        let list = input.fields().iter().map(|field| col(field.name(), &input).unwrap()).collect();
        let delay = ScalarValue::DurationMillisecond(Some(self.delay_ms));
        let watermark = binary(col("ts", &input).unwrap(), Op::Minus, lit(delay), &input).unwrap();
        let table = TableDefinition { name: "t".into(), columns: vec![], options: BTreeMap::new(), primary_key: vec![] };
        SourceScan {
            table,
            columns: vec![],
            input_schema: input.clone(),
            project: Projection { expressions: Expressions::new(list), schema: input },
            watermark: Some(WatermarkPlan::EventTime {
                time_column: 0,
                expression: Expressions::new(vec![watermark]),
                idle_timeout_ms: None,
            }),
        }
    }

    fn windowed_schema(&self) -> SchemaRef {
        let mut fields = input_schema().fields().to_vec();
        fields.extend([field("window_start", MS), field("window_end", MS), field(LATE_COLUMN, DataType::Boolean)]);
        schema(fields)
    }

    fn assign(&self) -> Operator {
        let appended = vec![
            (field("window_start", MS), WindowColumn::Start),
            (field("window_end", MS), WindowColumn::End),
            (field(LATE_COLUMN, DataType::Boolean), WindowColumn::Late),
        ];
        Operator::AssignWindows(AssignWindows {
            kind: self.kind,
            time_column: 0,
            watermark_column: Some(5),
            appended,
            schema: self.windowed_schema(),
        })
    }

    /// (function, filter) in order.
    pub fn aggregate(&self, calls: Vec<(Arc<AggregateFunctionExpr>, Option<Arc<dyn PhysicalExpr>>)>) -> Arc<Aggregate> {
        let input = self.windowed_schema();
        let keys = self.keys.iter().map(|key| col(key, &input).unwrap()).collect();
        let key_fields = self.keys.iter().map(|key| Arc::new(input.field_with_name(key).unwrap().clone())).collect();
        let calls =
            calls.into_iter().map(|(function, filter)| call(function, filter.map(|filter| Expressions::new(vec![filter])), None)).collect();
        aggregate(1, input, Expressions::new(keys), key_fields, (5, 6, Some(7)), self.late_row, calls, Emit::Final)
    }

    pub fn job(&self, aggregate: &Arc<Aggregate>) -> Job {
        let source = vec![self.assign(), Operator::PartialAggregate(aggregate.clone())];
        Job { scan: Some(self.scan()), source, behind_exchange: Some(vec![Operator::WindowAggregate(aggregate.clone())]) }
    }
}

fn call(function: Arc<AggregateFunctionExpr>, filter: Option<Expressions>, merges_state_at: Option<usize>) -> AggregateCall {
    let state_fields = function.state_fields().unwrap();
    AggregateCall { display: function.name().into(), state_fields, function, filter, merges_state_at }
}

#[allow(clippy::too_many_arguments)]
fn aggregate(
    operator: u16,
    input_schema: SchemaRef,
    keys: Expressions,
    key_fields: Vec<FieldRef>,
    (window_start_column, window_end_column, late_column): (usize, usize, Option<usize>),
    late_row: bool,
    calls: Vec<AggregateCall>,
    emit: Emit,
) -> Arc<Aggregate> {
    let mut head = key_fields.clone();
    head.extend([field("window_start", MS), field("window_end", MS)]);
    let states: Vec<FieldRef> = calls.iter().flat_map(|call| call.state_fields.clone()).collect();
    let mut partial = head.clone();
    partial.extend(late_column.map(|_| field(LATE_COLUMN, DataType::Boolean)));
    partial.extend(late_row.then(|| field(LATE_ROW_COLUMN, DataType::Utf8)));
    partial.push(field(ROWS_COLUMN, DataType::Int64));
    partial.extend(states.clone());
    let mut output = head;
    match emit {
        Emit::Final => output.extend(calls.iter().map(|call| call.function.field())),
        Emit::State => output.extend(std::iter::once(field(ROWS_COLUMN, DataType::Int64)).chain(states)),
    }
    let (partial_schema, output_schema) = (schema(partial), schema(output));
    Arc::new(Aggregate {
        operator,
        input_schema,
        keys,
        key_fields,
        window_start_column,
        window_end_column,
        late_column,
        late_row,
        calls,
        emit,
        partial_schema,
        output_schema,
    })
}

pub fn function(udaf: Arc<AggregateUDF>, arguments: Vec<Arc<dyn PhysicalExpr>>, input: &SchemaRef) -> Arc<AggregateFunctionExpr> {
    let name = udaf.name().to_string();
    Arc::new(AggregateExprBuilder::new(udaf, arguments).schema(input.clone()).alias(name).build().unwrap())
}

pub fn count_all(input: &SchemaRef) -> Arc<AggregateFunctionExpr> {
    function(functions::count::count_udaf(), vec![lit(1i64)], input)
}

pub fn of(udaf: Arc<AggregateUDF>, column: &str, input: &SchemaRef) -> Arc<AggregateFunctionExpr> {
    function(udaf, vec![col(column, input).unwrap()], input)
}

#[derive(Clone, Debug)]
pub struct Row {
    ts: i64,
    key: Option<i64>,
    value: Option<i64>,
}

pub fn batch(rows: &[Row]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.ts))),
        Arc::new(rows.iter().map(|row| row.key).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.value).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.value.map(|value| format!("w{}", value.rem_euclid(7)))).collect::<StringArray>()),
        Arc::new(rows.iter().map(|row| row.value.map(|value| value as f64 / 3.0)).collect::<Float64Array>()),
    ];
    RecordBatch::try_new(input_schema(), columns).unwrap()
}

fn rows(count: usize, span_ms: i64) -> impl Strategy<Value = Vec<Row>> {
    let row = (0..span_ms, prop::option::weighted(0.9, 0i64..4), prop::option::weighted(0.9, -50i64..50));
    prop::collection::vec(row.prop_map(|(ts, key, value)| Row { ts, key, value }), 1..count)
}

/// Count, sum and maximum by definition, and the number of late (row, window) pairs.
fn by_definition(query: &Query, rows: &[Row]) -> (Vec<String>, u64) {
    let mut running = Watermark::MIN;
    let mut late = 0;
    let mut groups: BTreeMap<_, (i64, Option<i64>, Option<i64>)> = BTreeMap::new();
    for row in rows {
        for window in windows_of(query.kind, row.ts) {
            if running.closes(window.end_ms) {
                late += 1;
                continue;
            }
            let group = groups.entry((window, row.key)).or_default();
            group.0 += 1;
            group.1 = row.value.map_or(group.1, |value| Some(group.1.unwrap_or(0) + value));
            group.2 = group.2.max(row.value);
        }
        running.advance(Watermark(row.ts - query.delay_ms));
    }
    let text = |value: &Option<i64>| value.map_or("NULL".to_string(), |value| value.to_string());
    let time = |ms: i64| arrow_cast::display::array_value_to_string(&TimestampMillisecondArray::from(vec![ms]), 0).unwrap();
    let line =
        |((window, key), (count, sum, maximum)): (
            &(streamshield_core::ports::state::Window, Option<i64>),
            &(i64, Option<i64>, Option<i64>),
        )| { format!("{} {} {} {count} {} {}", text(key), time(window.start_ms), time(window.end_ms), text(sum), text(maximum)) };
    let mut lines: Vec<String> = groups.iter().map(line).collect();
    lines.sort();
    (lines, late)
}

fn kinds() -> impl Strategy<Value = WindowKind> {
    prop_oneof![
        (1i64..400).prop_map(|size_ms| WindowKind::Tumble { size_ms, offset_ms: 3 }),
        (20i64..100, 10i64..300).prop_map(|(slide_ms, size_ms)| WindowKind::Hop { slide_ms, size_ms, offset_ms: -7 }),
        (20i64..100, 1i64..5).prop_map(|(step_ms, steps)| WindowKind::Cumulate { step_ms, max_size_ms: step_ms * steps, offset_ms: 0 }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn results_and_lateness_do_not_depend_on_how_rows_are_cut(kind in kinds(), delay_ms in 0i64..200, rows in rows(120, 1_000)) {
        let query = Query { kind, delay_ms, keys: vec!["key"], late_row: false };
        let input = query.windowed_schema();
        let calls = vec![(count_all(&input), None), (of(functions::sum::sum_udaf(), "value", &input), None), (of(functions::min_max::max_udaf(), "value", &input), None)];
        let outcome = same_in_all_modes(&query.job(&query.aggregate(calls)), &batch(&rows));
        let (mut lines, late) = (outcome.texts(), outcome.late_rows);
        lines.sort();
        prop_assert_eq!((lines, late), by_definition(&query, &rows));
    }
}

/// Thousands of rows, out of order, with some that are late.
fn many_rows(count: usize, keys: usize) -> Vec<Row> {
    let mut random = Random(11);
    let row = |n: usize| Row {
        ts: (n * 5) as i64 - random.below(400) as i64,
        key: (random.below(20) > 0).then(|| random.below(keys) as i64),
        value: (random.below(10) > 0).then(|| random.below(2_000) as i64 - 1_000),
    };
    (0..count).map(row).collect()
}

#[test]
fn all_kinds_of_functions_agree_in_all_modes() {
    let query =
        Query { kind: WindowKind::Tumble { size_ms: 700, offset_ms: 0 }, delay_ms: 150, keys: vec!["key", "word"], late_row: false };
    let input = query.windowed_schema();
    let positive = binary(col("value", &input).unwrap(), Op::Gt, lit(0i64), &input).unwrap();
    let by_time = PhysicalSortExpr::new_default(col("value", &input).unwrap());
    let first = AggregateExprBuilder::new(functions::first_last::first_value_udaf(), vec![col("value", &input).unwrap()]);
    let first = Arc::new(first.order_by(vec![by_time]).schema(input.clone()).alias("first").build().unwrap());
    let covariance_arguments = vec![col("real", &input).unwrap(), cast(col("value", &input).unwrap(), &input, DataType::Float64).unwrap()];
    let distinct = AggregateExprBuilder::new(functions::count::count_udaf(), vec![col("word", &input).unwrap()])
        .schema(input.clone())
        .distinct()
        .alias("d")
        .build()
        .unwrap();
    let calls = vec![
        (count_all(&input), None),
        (count_all(&input), Some(positive.clone())),
        (of(functions::sum::sum_udaf(), "value", &input), Some(positive)),
        (of(functions::average::avg_udaf(), "real", &input), None),
        (of(functions::min_max::min_udaf(), "word", &input), None),
        (of(functions::min_max::max_udaf(), "real", &input), None),
        (of(functions::stddev::stddev_udaf(), "real", &input), None),
        (of(functions::variance::var_pop_udaf(), "real", &input), None),
        (of(functions::count::count_udaf(), "value", &input), None),
        (first, None),
        (function(functions::covariance::covar_samp_udaf(), covariance_arguments, &input), None),
        (Arc::new(distinct), None),
    ];
    let outcome = same_in_all_modes(&query.job(&query.aggregate(calls)), &batch(&many_rows(2_000, 5)));
    assert!(outcome.rows.len() > 100 && outcome.late_rows > 0, "{} rows, {} late", outcome.rows.len(), outcome.late_rows);
}

#[test]
fn an_aggregate_without_keys_gives_one_row_per_window() {
    let query =
        Query { kind: WindowKind::Hop { slide_ms: 500, size_ms: 1_000, offset_ms: 0 }, delay_ms: 1_000, keys: vec![], late_row: false };
    let input = query.windowed_schema();
    let outcome = same_in_all_modes(&query.job(&query.aggregate(vec![(count_all(&input), None)])), &batch(&many_rows(1_000, 5)));
    assert_eq!(outcome.late_rows, 0);
    let counted: i64 = outcome.texts().iter().map(|text| text.rsplit(' ').next().unwrap().parse::<i64>().unwrap()).sum();
    assert_eq!(counted, 2_000, "each row is in two windows");
}

#[test]
fn a_group_by_without_functions_gives_the_keys() {
    let query =
        Query { kind: WindowKind::Tumble { size_ms: 10_000, offset_ms: -1_000 }, delay_ms: 1_000, keys: vec!["key"], late_row: false };
    let aggregate = query.aggregate(vec![]);
    let mut state =
        MemoryState::new(&Chain::new(&[Operator::WindowAggregate(aggregate.clone())], aggregate.partial_schema.clone()).unwrap().tables());
    assert!(state.tables.remove(&1).is_some());
    let outcome = same_in_all_modes(&query.job(&aggregate), &batch(&many_rows(1_000, 3)));
    assert_eq!(outcome.rows.len(), 4, "three keys and null: {:?}", outcome.texts());
}

#[test]
fn late_rows_come_out_as_json_one_by_one() {
    let query = Query { kind: WindowKind::Tumble { size_ms: 100, offset_ms: 0 }, delay_ms: 0, keys: vec!["key"], late_row: true };
    let input = query.windowed_schema();
    let row = |ts, key, value| Row { ts, key: Some(key), value: Some(value) };
    let rows = [row(10, 1, 5), row(150, 1, 6), row(20, 2, 7), row(20, 2, 7), row(160, 1, 8), row(30, 1, 9)];
    let outcome = same_in_all_modes(&query.job(&query.aggregate(vec![(count_all(&input), None)])), &batch(&rows));
    assert_eq!(outcome.late_rows, 3);
    let expected = |ts: &str, key: i64, value: i64, word: &str, real: &str| {
        format!(
            "{{\"ts\":\"1970-01-01T00:00:00.{ts}\",\"key\":{key},\"value\":{value},\"word\":\"{word}\",\"real\":{real},\"window_start\":\"1970-01-01T00:00:00\",\"window_end\":\"1970-01-01T00:00:00.100\"}}"
        )
    };
    let twice = expected("020", 2, 7, "w0", "2.3333333333333335");
    assert_eq!(outcome.late_json, [twice.clone(), twice, expected("030", 1, 9, "w2", "3.0")]);
    assert_eq!(outcome.rows.len(), 2);
}

#[test]
fn a_late_row_that_was_copied_counts_and_is_told_once() {
    let query = Query { kind: WindowKind::Tumble { size_ms: 100, offset_ms: 0 }, delay_ms: 0, keys: vec!["key"], late_row: true };
    let input = query.windowed_schema();
    let mut fields = input.fields().to_vec();
    fields.extend([field("__tag", DataType::Int32), field(ROWS_COLUMN, DataType::Int64)]);
    let expanded = schema(fields);
    let copy = |tag: i32, rows: i64| {
        let kept = input.fields().iter().map(|field| col(field.name(), &input).unwrap());
        Expressions::new(kept.chain([lit(tag), lit(rows)]).collect())
    };
    let expand = Operator::Expand(ExpandPlan { projections: vec![copy(0, 1), copy(1, 0), copy(2, 0)], schema: expanded.clone() });
    let keys = Expressions::new(vec![col("key", &expanded).unwrap(), col("__tag", &expanded).unwrap()]);
    let key_fields = vec![field("key", DataType::Int64), field("__tag", DataType::Int32)];
    let calls = vec![call(of(functions::sum::sum_udaf(), "value", &expanded), None, None)];
    let copies = aggregate(1, expanded, keys, key_fields, (5, 6, Some(7)), true, calls, Emit::Final);
    let job = Job { source: vec![query.assign(), expand, Operator::PartialAggregate(copies.clone())], ..query.job(&copies) };
    let row = |ts, key, value| Row { ts, key: Some(key), value: Some(value) };
    let rows = [row(10, 1, 5), row(150, 1, 6), row(20, 2, 7), row(160, 1, 8), row(30, 1, 9)];
    let outcome = same_in_all_modes(&job, &batch(&rows));
    assert_eq!((outcome.late_rows, outcome.late_json.len()), (2, 2), "{:?}", outcome.late_json);
    assert_eq!(outcome.rows.len(), 6, "two windows of three copies: {:?}", outcome.texts());
}

/// One partial row with a flag, of window [0, 100).
fn process_partial(flagged: bool, input: InputWatermarks, late_row: bool) -> (ChainOutput, usize) {
    let query = Query { kind: WindowKind::Tumble { size_ms: 100, offset_ms: 0 }, delay_ms: 0, keys: vec!["key"], late_row };
    let aggregate = query.aggregate(vec![(count_all(&query.windowed_schema()), None)]);
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1])),
        Arc::new(TimestampMillisecondArray::from(vec![0])),
        Arc::new(TimestampMillisecondArray::from(vec![100])),
        Arc::new(BooleanArray::from(vec![flagged])),
    ];
    if late_row {
        columns.push(Arc::new(StringArray::from(vec![flagged.then_some("{\"a\":1}")])));
    }
    columns.extend([Arc::new(Int64Array::from(vec![3])) as ArrayRef, Arc::new(Int64Array::from(vec![3]))]);
    let partial = RecordBatch::try_new(aggregate.partial_schema.clone(), columns).unwrap();
    let mut chain = Chain::new(&[Operator::WindowAggregate(aggregate)], partial.schema()).unwrap();
    let (mut state, mut out, mut epoch) = (MemoryState::new(&chain.tables()), ChainOutput::default(), EPOCH);
    chain.process(partial, input, &mut epoch, &mut state, &mut out).unwrap();
    let groups = state.tables[&1].windows.len();
    (out, groups)
}

#[test]
fn a_flagged_partial_waits_for_the_other_inputs_and_an_unflagged_one_for_all() {
    let input = |others, combined| InputWatermarks { others: Watermark(others), combined: Watermark(combined) };
    let is_late = |flagged, input| process_partial(flagged, input, false).0.late.rows == 3;
    assert!(!is_late(true, input(98, 98)), "another input may still be in the window");
    assert!(is_late(true, input(99, 50)), "all inputs have passed the window");
    assert!(is_late(true, input(i64::MAX, i64::MIN)), "there is no other input");
    assert!(!is_late(false, input(i64::MAX, 98)));
    assert!(is_late(false, input(i64::MIN, 99)), "the window has been emitted");
    assert_eq!(process_partial(false, input(0, 99), false).1, 0);
    assert_eq!(process_partial(false, input(0, 98), false).1, 1);
}

#[test]
fn a_late_partial_is_told_by_its_rows_or_by_its_key() {
    let late = |flagged| {
        let out = process_partial(flagged, InputWatermarks { others: Watermark::MAX, combined: Watermark::MAX }, true).0;
        (out.late.rows, out.late.json.into_iter().map(|json| String::from_utf8(json).unwrap()).collect::<Vec<_>>())
    };
    assert_eq!(late(true), (3, vec!["{\"a\":1}".to_string(); 3]));
    let folded = "{\"key\":1,\"window_start\":\"1970-01-01T00:00:00\",\"window_end\":\"1970-01-01T00:00:00.100\",\"__rows\":3}";
    assert_eq!(late(false), (3, vec![folded.to_string()]));
}

#[test]
fn windows_are_emitted_in_bounded_portions_the_earliest_first() {
    let query = Query { kind: WindowKind::Tumble { size_ms: 1_000, offset_ms: 0 }, delay_ms: 10_000, keys: vec!["key"], late_row: false };
    let aggregate = query.aggregate(vec![(count_all(&query.windowed_schema()), None)]);
    let mut source = Chain::new(&query.job(&aggregate).source, scanned_schema()).unwrap();
    let rows = batch(&(0..30).map(|n| Row { ts: n * 100, key: Some(n % 10), value: None }).collect::<Vec<_>>());
    let rows = scanned(&rows);
    let (mut out, mut epoch) = (ChainOutput::default(), EPOCH);
    source.process(rows, InputWatermarks::START, &mut epoch, &mut MemoryState::default(), &mut out).unwrap();
    assert!(source.open_bytes() > 0);
    source.seal(&mut epoch, &mut MemoryState::default(), &mut out).unwrap();
    let mut windows = Chain::new(&[Operator::WindowAggregate(aggregate.clone())], aggregate.partial_schema.clone()).unwrap();
    let mut state = MemoryState::new(&windows.tables());
    for (partials, _) in std::mem::take(&mut out.batches) {
        windows.process(partials, InputWatermarks::START, &mut epoch, &mut state, &mut out).unwrap();
    }
    let mut portion = |to: i64| {
        let mut out = ChainOutput::default();
        let more = windows.advance(Watermark(to), 7, &mut epoch, &mut state, &mut out).unwrap();
        (out.batches.iter().map(|(rows, _)| rows.num_rows()).collect::<Vec<_>>(), more)
    };
    assert_eq!(portion(998), (vec![], false));
    assert_eq!(portion(1_999), (vec![7], true));
    assert_eq!(portion(1_999), (vec![3, 4], true));
    assert_eq!(portion(1_999), (vec![6], false));
    assert_eq!(portion(i64::MAX), (vec![7], true));
}

/// Keys that hardly repeat.
#[test]
fn folding_that_does_not_pay_is_left_out_and_changes_nothing() {
    let query = Query { kind: WindowKind::Tumble { size_ms: 100_000, offset_ms: 0 }, delay_ms: 100, keys: vec!["key"], late_row: true };
    let input = query.windowed_schema();
    let positive = binary(col("value", &input).unwrap(), Op::Gt, lit(0i64), &input).unwrap();
    let calls = vec![
        (count_all(&input), None),
        (of(functions::sum::sum_udaf(), "value", &input), Some(positive)),
        (of(functions::average::avg_udaf(), "real", &input), None),
    ];
    let job = query.job(&query.aggregate(calls));
    let count = 3 * PROBE_ROWS;
    let rows = batch(&many_rows(count, 1 << 40));
    let (once, cut, sealed) = (run(&job, &rows, Mode::AllAtOnce), run(&job, &rows, Mode::RandomCuts(8)), run(&job, &rows, MODES[4]));
    for other in [&cut, &sealed] {
        assert_eq!(once.rows, other.rows);
        assert_eq!((once.late_rows, &once.late_json), (other.late_rows, &other.late_json));
    }
    assert!(once.late_rows > 0);
    let mut chain = Chain::new(&job.source, scanned_schema()).unwrap();
    let rows = scanned(&rows);
    let mut out = ChainOutput::default();
    for offset in [0, PROBE_ROWS, 2 * PROBE_ROWS] {
        chain
            .process(rows.slice(offset, PROBE_ROWS), InputWatermarks::START, &mut EPOCH.clone(), &mut MemoryState::default(), &mut out)
            .unwrap();
    }
    assert_eq!(out.batches.iter().map(|(rows, _)| rows.num_rows()).sum::<usize>(), 2 * PROBE_ROWS, "what follows the probe passes through");
}

#[test]
fn a_second_level_merges_states_and_counts_source_rows() {
    let query =
        Query { kind: WindowKind::Tumble { size_ms: 400, offset_ms: 0 }, delay_ms: 500, keys: vec!["key", "word"], late_row: false };
    let input = query.windowed_schema();
    let functions = || vec![count_all(&input), of(functions::average::avg_udaf(), "real", &input)];
    let with_states = |operator, emit| {
        let calls = functions().into_iter().map(|function| call(function, None, None)).collect();
        let keys: Vec<_> = ["key", "word"].iter().map(|key| col(key, &input).unwrap()).collect();
        let key_fields = ["key", "word"].iter().map(|key| Arc::new(input.field_with_name(key).unwrap().clone())).collect();
        aggregate(operator, input.clone(), Expressions::new(keys), key_fields, (5, 6, Some(7)), false, calls, emit)
    };
    let first = with_states(1, Emit::State);
    // Second level: by key alone. Its input is key, word, window_start, window_end, __rows, count, count of avg, sum of avg.
    let second_input = first.output_schema.clone();
    let calls = functions().into_iter().zip([5, 6]).map(|(function, at)| call(function, None, Some(at))).collect();
    let key = Arc::new(second_input.field(0).clone());
    let keys = Expressions::new(vec![col("key", &second_input).unwrap()]);
    let second = aggregate(2, second_input, keys, vec![key], (2, 3, None), false, calls, Emit::Final);
    let job = Job {
        behind_exchange: Some(vec![Operator::WindowAggregate(first.clone()), Operator::PartialAggregate(second)]),
        ..query.job(&first)
    };
    let rows = batch(&many_rows(1_500, 4));
    // The kit seals the second stage after each advance: these are partials of the second level.
    let partials = run(&job, &rows, Mode::RandomCuts(3));
    let source_rows: u64 = partials.texts().iter().map(|text| text.split(' ').nth(3).unwrap().parse::<u64>().unwrap()).sum();
    let counted: u64 = partials.texts().iter().map(|text| text.split(' ').nth(4).unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!((source_rows + partials.late_rows, counted), (1_500, source_rows), "__rows counts source rows on the second level too");
    let direct = Query { keys: vec!["key"], ..query };
    let direct =
        run(&direct.job(&direct.aggregate(functions().into_iter().map(|function| (function, None)).collect())), &rows, Mode::AllAtOnce);
    let group = |text: &String| text.split(' ').take(3).collect::<Vec<_>>().join(" ");
    let groups = |outcome: &crate::operators::test_kit::Outcome| outcome.texts().iter().map(group).collect::<BTreeSet<_>>();
    assert_eq!(groups(&partials), groups(&direct));
}

#[test]
fn a_result_that_does_not_fit_its_type_is_rejected_and_the_other_groups_come_out() {
    let decimal = DataType::Decimal128(38, 0);
    let input =
        schema(vec![field("key", DataType::Int64), field("amount", decimal.clone()), field("window_start", MS), field("window_end", MS)]);
    let key_fields = vec![field("key", DataType::Int64)];
    let keys = Expressions::new(vec![col("key", &input).unwrap()]);
    let calls = vec![call(of(functions::average::avg_udaf(), "amount", &input), None, None)];
    let aggregate = aggregate(1, input.clone(), keys, key_fields, (2, 3, None), false, calls, Emit::Final);
    let amounts = Decimal128Array::from(vec![7, 10i128.pow(38) - 1, 9]).with_data_type(decimal);
    let time = |ms| Arc::new(TimestampMillisecondArray::from_value(ms, 3)) as ArrayRef;
    let rows = RecordBatch::try_new(input, vec![Arc::new(Int64Array::from(vec![1, 2, 3])), Arc::new(amounts), time(0), time(100)]).unwrap();
    let operators = [Operator::PartialAggregate(aggregate.clone()), Operator::WindowAggregate(aggregate)];
    let mut chain = Chain::new(&operators, rows.schema()).unwrap();
    let (mut state, mut out, mut epoch) = (MemoryState::new(&chain.tables()), ChainOutput::default(), EPOCH);
    chain.process(rows, InputWatermarks::START, &mut epoch, &mut state, &mut out).unwrap();
    chain.seal(&mut epoch, &mut state, &mut out).unwrap();
    assert!(!chain.advance(Watermark::MAX, 10, &mut epoch, &mut state, &mut out).unwrap());
    assert_eq!(out.batches[0].0.column(0).as_primitive::<Int64Type>().values().as_ref(), &[1, 3]);
    assert_eq!(out.rejected.len(), 1);
    assert_eq!(out.rejected[0].row, NO_SOURCE_ROW);
    assert!(out.rejected[0].reason.contains("key = 2"), "{}", out.rejected[0].reason);
}

#[test]
fn partials_of_a_window_aggregate_are_as_the_plan_says() {
    let query = Query { kind: WindowKind::Tumble { size_ms: 100, offset_ms: 0 }, delay_ms: 0, keys: vec!["key"], late_row: true };
    let aggregate = query.aggregate(vec![(of(functions::average::avg_udaf(), "real", &query.windowed_schema()), None)]);
    let job = Job { behind_exchange: None, ..query.job(&aggregate) };
    let mut chain = Chain::new(&job.source, scanned_schema()).unwrap();
    assert_eq!(chain.schema(), aggregate.partial_schema);
    let outcome = run(&job, &batch(&many_rows(100, 2)), Mode::RandomCuts(5));
    assert!(outcome.rows.iter().all(|row| row.len() == aggregate.partial_schema.fields().len()));
    let mut out = ChainOutput::default();
    chain.seal(&mut EPOCH.clone(), &mut MemoryState::default(), &mut out).unwrap();
    assert!(out.batches.is_empty(), "an epoch without rows gives nothing");
}

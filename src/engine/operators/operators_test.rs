//! Operators without memory, and the scan.
#![allow(clippy::unwrap_used)]

use crate::operators::assign_windows::windows_of;
use crate::operators::scan::Scan;
use crate::operators::test_kit::{Job, MemoryState, Outcome, same_in_all_modes};
use crate::operators::{Chain, ChainOutput, EpochContext, InputWatermarks, Trail};
use crate::plan::*;
use arrow_array::builder::{Int64Builder, ListBuilder, StringBuilder, StructBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMillisecondType, UInt64Type};
use arrow_array::*;
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use datafusion_expr::Operator as Op;
use datafusion_physical_expr::PhysicalExpr;
use datafusion_physical_expr::expressions::{binary, cast, col, lit};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use streamshield_core::ports::state::Window;
use streamshield_core::table::TableDefinition;
use streamshield_core::watermark::Watermark;

const MS: DataType = DataType::Timestamp(TimeUnit::Millisecond, None);

fn schema_of(fields: &[(&str, DataType)]) -> SchemaRef {
    Arc::new(Schema::new(fields.iter().map(|(name, data_type)| Field::new(*name, data_type.clone(), true)).collect::<Vec<_>>()))
}

fn numbers(values: &[Option<i64>]) -> RecordBatch {
    let schema = schema_of(&[("a", DataType::Int64), ("b", DataType::Int64)]);
    let row: Int64Array = (0..values.len() as i64).map(Some).collect();
    RecordBatch::try_new(schema, vec![Arc::new(values.iter().copied().collect::<Int64Array>()), Arc::new(row)]).unwrap()
}

fn compare(rows: &RecordBatch, column: &str, op: Op, value: i64) -> Arc<dyn PhysicalExpr> {
    let schema = rows.schema();
    binary(col(column, &schema).unwrap(), op, lit(value), &schema).unwrap()
}

fn run_operator(operator: Operator, rows: &RecordBatch) -> Outcome {
    same_in_all_modes(&Job { scan: None, source: vec![operator], behind_exchange: None }, rows)
}

fn once(operators: &[Operator], rows: &RecordBatch) -> ChainOutput {
    let mut chain = Chain::new(operators, rows.schema()).unwrap();
    let mut out = ChainOutput::default();
    let mut epoch = EpochContext { now_ms: 5, seed: 1, seed_next: 0 };
    chain.process(rows.clone(), InputWatermarks::START, &mut epoch, &mut MemoryState::default(), &mut out).unwrap();
    out
}

#[test]
fn a_filter_keeps_true_and_drops_false_and_null() {
    let rows = numbers(&[Some(5), None, Some(1), Some(7)]);
    let outcome = run_operator(Operator::Filter(Expressions::new(vec![compare(&rows, "a", Op::Gt, 3)])), &rows);
    assert_eq!(outcome.texts(), ["5 0", "7 3"]);
}

#[test]
fn a_filter_that_takes_all_rows_copies_none() {
    let rows = numbers(&[Some(5), Some(6)]);
    let out = once(&[Operator::Filter(Expressions::new(vec![compare(&rows, "a", Op::Gt, 3)]))], &rows);
    assert_eq!(out.batches[0].0.column(0).to_data().buffers()[0].as_ptr(), rows.column(0).to_data().buffers()[0].as_ptr());
}

#[test]
fn a_row_that_an_expression_refuses_is_rejected_alone() {
    let values: Vec<Option<i64>> = (0..1_000).map(|n| Some(if n % 97 == 5 { 0 } else { n + 1 })).collect();
    let rows = numbers(&values);
    let schema = rows.schema();
    let quotient = binary(lit(1_000_000i64), Op::Divide, col("a", &schema).unwrap(), &schema).unwrap();
    let projection = Projection { expressions: Expressions::new(vec![quotient, col("b", &schema).unwrap()]), schema: schema.clone() };
    let outcome = run_operator(Operator::Project(projection.clone()), &rows);
    let bad: BTreeSet<usize> = (0..1_000).filter(|n| n % 97 == 5).collect();
    assert_eq!(outcome.rejected, bad);
    assert_eq!(outcome.rows.len(), 1_000 - bad.len());

    let out = once(&[Operator::Filter(Expressions::new(vec![compare(&rows, "b", Op::GtEq, 100)])), Operator::Project(projection)], &rows);
    let expected: Vec<usize> = bad.iter().copied().filter(|row| *row >= 100).collect();
    assert_eq!(out.rejected.iter().map(|rejected| rejected.row).collect::<Vec<_>>(), expected, "rows are counted in the chain's input");
    assert!(out.rejected[0].reason.to_lowercase().contains("divide by zero"), "{}", out.rejected[0].reason);
    let kept = out.batches[0].0.column(1).as_primitive::<Int64Type>().values();
    assert!(kept.iter().all(|row| *row >= 100 && row % 97 != 5));
}

#[test]
fn a_batch_of_bad_rows_only_gives_nothing_but_rejections() {
    let rows = numbers(&vec![Some(0); 300]);
    let schema = rows.schema();
    let quotient = binary(lit(1i64), Op::Divide, col("a", &schema).unwrap(), &schema).unwrap();
    let out = once(
        &[Operator::Project(Projection { expressions: Expressions::new(vec![quotient]), schema: schema_of(&[("q", DataType::Int64)]) })],
        &rows,
    );
    assert_eq!(out.rejected.len(), 300);
    assert!(out.batches.is_empty());
}

#[test]
fn a_predicate_that_guards_against_an_error_guards_every_row() {
    let rows = numbers(&[Some(0), Some(2), Some(0), Some(9)]);
    let schema = rows.schema();
    let quotient = binary(lit(10i64), Op::Divide, col("a", &schema).unwrap(), &schema).unwrap();
    let guarded =
        binary(compare(&rows, "a", Op::NotEq, 0), Op::And, binary(quotient, Op::Gt, lit(1i64), &schema).unwrap(), &schema).unwrap();
    let outcome = run_operator(Operator::Filter(Expressions::new(vec![guarded])), &rows);
    assert_eq!((outcome.texts(), outcome.rejected), (vec!["2 1".to_string()], BTreeSet::new()));
}

#[test]
fn a_null_for_a_not_null_column_is_a_rejected_row() {
    let rows = numbers(&[Some(1), None, Some(3)]);
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, false)]));
    let projection = Projection { expressions: Expressions::new(vec![col("a", &rows.schema()).unwrap()]), schema };
    let outcome = run_operator(Operator::Project(projection), &rows);
    assert_eq!(outcome.texts(), ["1", "3"]);
    assert_eq!(outcome.rejected, BTreeSet::from([1]));
}

#[test]
fn a_plan_whose_types_do_not_fit_stops_instead_of_rejecting_all_rows() {
    let rows = numbers(&[Some(1)]);
    let projection =
        Projection { expressions: Expressions::new(vec![col("a", &rows.schema()).unwrap()]), schema: schema_of(&[("a", DataType::Utf8)]) };
    let mut chain = Chain::new(&[Operator::Project(projection)], rows.schema()).unwrap();
    let mut epoch = EpochContext { now_ms: 5, seed: 1, seed_next: 0 };
    let error =
        chain.process(rows, InputWatermarks::START, &mut epoch, &mut MemoryState::default(), &mut ChainOutput::default()).unwrap_err();
    assert!(error.to_string().contains("should be Utf8"), "{error}");
}

#[test]
fn hidden_columns_are_there_for_expressions_and_not_in_the_output() {
    let rows = numbers(&[Some(1), Some(2), Some(3)]);
    let mut fields = rows.schema().fields().to_vec();
    fields.extend([now_field(), seed_field()]);
    let seen = Schema::new(fields);
    let list = vec![col(NOW_COLUMN, &seen).unwrap(), col(SEED_COLUMN, &seen).unwrap()];
    let schema = schema_of(&[("now", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))), ("seed", DataType::UInt64)]);
    let project = Operator::Project(Projection { expressions: Expressions { list, needs_now: true, needs_seed: true }, schema });
    let out = once(std::slice::from_ref(&project), &rows);
    let batch = &out.batches[0].0;
    assert_eq!(batch.column(0).as_primitive::<TimestampMillisecondType>().values().as_ref(), &[5, 5, 5]);
    let seeds = batch.column(1).as_primitive::<UInt64Type>();
    assert_eq!(seeds.values().iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(once(&[project], &rows).batches[0].0, *batch, "the same epoch gives the same seeds");
}

#[test]
fn two_batches_of_an_epoch_get_different_seeds() {
    let rows = numbers(&[Some(1)]);
    let mut fields = rows.schema().fields().to_vec();
    fields.push(seed_field());
    let list = vec![col(SEED_COLUMN, &Schema::new(fields)).unwrap()];
    let project = Operator::Project(Projection {
        expressions: Expressions { list, needs_now: false, needs_seed: true },
        schema: schema_of(&[("seed", DataType::UInt64)]),
    });
    let mut chain = Chain::new(&[project], rows.schema()).unwrap();
    let (mut out, mut epoch) = (ChainOutput::default(), EpochContext { now_ms: 5, seed: 1, seed_next: 0 });
    for _ in 0..2 {
        chain.process(rows.clone(), InputWatermarks::START, &mut epoch, &mut MemoryState::default(), &mut out).unwrap();
    }
    assert_eq!(epoch.seed_next, 2);
    assert_ne!(out.batches[0].0, out.batches[1].0);
}

#[test]
fn unnest_gives_a_row_per_element_with_its_number() {
    let mut list = ListBuilder::new(StructBuilder::from_fields(
        vec![Field::new("x", DataType::Int64, true), Field::new("y", DataType::Utf8, true)],
        0,
    ));
    for row in [Some(vec![Some((1, "one")), None]), Some(vec![]), None, Some(vec![Some((2, "two"))])] {
        let is_list = row.is_some();
        for element in row.into_iter().flatten() {
            list.values().field_builder::<Int64Builder>(0).unwrap().append_option(element.map(|element| element.0));
            list.values().field_builder::<StringBuilder>(1).unwrap().append_option(element.map(|element| element.1));
            list.values().append(element.is_some());
        }
        list.append(is_list);
    }
    let list: ArrayRef = Arc::new(list.finish());
    let schema = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true), Field::new("l", list.data_type().clone(), true)]));
    let rows = RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![10, 20, 30, 40])), list]).unwrap();
    let output = schema_of(&[("k", DataType::Int64), ("x", DataType::Int64), ("y", DataType::Utf8), ("n", DataType::Int64)]);
    let plan = UnnestPlan { list_column: 1, struct_fields: true, ordinality: true, schema: output };
    let outcome = run_operator(Operator::Unnest(plan), &rows);
    assert_eq!(outcome.texts(), ["10 1 one 1", "10 NULL NULL 2", "40 2 two 1"]);
}

#[test]
fn expand_gives_the_projections_of_a_row_side_by_side() {
    let rows = numbers(&[Some(1), Some(0), Some(3)]);
    let schema = rows.schema();
    let a = col("a", &schema).unwrap();
    let quotient = binary(lit(6i64), Op::Divide, a.clone(), &schema).unwrap();
    let plan = ExpandPlan {
        projections: vec![Expressions::new(vec![a, lit(0i64)]), Expressions::new(vec![quotient, lit(1i64)])],
        schema: schema_of(&[("v", DataType::Int64), ("p", DataType::Int64)]),
    };
    let out = once(&[Operator::Expand(plan.clone())], &rows);
    assert_eq!(out.batches[0].0.column(0).as_primitive::<Int64Type>().values().as_ref(), &[1, 6, 3, 2]);
    assert_eq!(run_operator(Operator::Expand(plan), &rows).rejected, BTreeSet::from([1]), "a row is taken by all projections or by none");
}

#[test]
fn a_row_given_out_leads_back_to_its_source_row_whatever_was_made_of_it() {
    let rows = numbers(&[Some(9), Some(1), Some(0), Some(8), None, Some(7)]);
    let schema = rows.schema();
    let (a, b) = (col("a", &schema).unwrap(), col("b", &schema).unwrap());
    // Refuses row 2, takes rows 0, 3 and 5 of the others, and copies each.
    let quotient = binary(lit(10i64), Op::Divide, a.clone(), &schema).unwrap();
    let project = Projection { expressions: Expressions::new(vec![a, b, quotient]), schema: wider(&schema) };
    let projected = project.schema.clone();
    let (a, b) = (col("a", &projected).unwrap(), col("b", &projected).unwrap());
    let large = binary(a.clone(), Op::Gt, lit(5i64), &projected).unwrap();
    let copies = ExpandPlan { projections: vec![Expressions::new(vec![a.clone(), b.clone()]), Expressions::new(vec![a, b])], schema };
    let operators = [Operator::Project(project), Operator::Filter(Expressions::new(vec![large])), Operator::Expand(copies)];
    let out = once(&operators, &rows);
    assert_eq!(out.rejected.iter().map(|rejected| rejected.row).collect::<Vec<_>>(), [2]);
    let (batch, trail) = &out.batches[0];
    let numbered: Vec<usize> = batch.column(1).as_primitive::<Int64Type>().values().iter().map(|row| *row as usize).collect();
    assert_eq!(numbered, [0, 0, 3, 3, 5, 5]);
    assert_eq!((0..batch.num_rows()).map(|row| trail.source_row(row)).collect::<Vec<_>>(), numbered);
    assert!(matches!(once(&[], &rows).batches[0].1, Trail::Source));
}

/// With a third number.
fn wider(schema: &SchemaRef) -> SchemaRef {
    let mut fields = schema.fields().to_vec();
    fields.push(Arc::new(Field::new("c", DataType::Int64, true)));
    Arc::new(Schema::new(fields))
}

#[test]
fn a_chain_without_columns_still_counts_rows() {
    let rows = numbers(&[Some(1), Some(2)]);
    let nothing = Operator::Project(Projection { expressions: Expressions::new(vec![]), schema: Arc::new(Schema::empty()) });
    assert_eq!(once(&[nothing], &rows).batches[0].0.num_rows(), 2);
}

fn scan_plan(watermark: Option<WatermarkPlan>) -> SourceScan {
    let input_schema = schema_of(&[("ts", MS), ("a", DataType::Utf8)]);
    let list = vec![col("ts", &input_schema).unwrap(), cast(col("a", &input_schema).unwrap(), &input_schema, DataType::Int64).unwrap()];
    let table = TableDefinition { name: "t".into(), columns: vec![], options: BTreeMap::new(), primary_key: vec![] };
    let project = Projection { expressions: Expressions::new(list), schema: schema_of(&[("ts", MS), ("a", DataType::Int64)]) };
    SourceScan { table, columns: vec![], input_schema, project, watermark }
}

#[test]
fn a_scan_gives_the_watermark_before_each_row_and_refuses_what_is_no_row() {
    let schema = schema_of(&[("ts", MS), ("a", DataType::Int64)]);
    let expression = Expressions::new(vec![col("ts", &schema).unwrap()]);
    let mut scan = Scan::new(&scan_plan(Some(WatermarkPlan::EventTime { time_column: 0, expression, idle_timeout_ms: None }))).unwrap();
    let times = TimestampMillisecondArray::from(vec![Some(10), Some(90), None, Some(30), Some(50), Some(20)]);
    let words = StringArray::from(vec!["1", "x", "3", "4", "5", "6"]);
    let batch = RecordBatch::try_new(schema_of(&[("ts", MS), ("a", DataType::Utf8)]), vec![Arc::new(times), Arc::new(words)]).unwrap();
    let mut epoch = EpochContext { now_ms: 5, seed: 1, seed_next: 0 };
    let scanned = scan.process(&batch, Watermark::MIN, &mut epoch).unwrap();
    assert_eq!(scanned.rows.column(2).as_primitive::<Int64Type>().values().as_ref(), &[i64::MIN, 10, 30, 50]);
    assert_eq!(scanned.rows.schema(), scan.schema());
    assert_eq!(scanned.kept, Some(vec![0, 3, 4, 5]));
    assert_eq!(scanned.rejected.iter().map(|rejected| rejected.row).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(scanned.watermark, Watermark(50), "a rejected row moves no watermark");
    assert_eq!(scan.process(&batch.slice(0, 0), Watermark(70), &mut epoch).unwrap().watermark, Watermark(70));
    let times = TimestampMillisecondArray::from(vec![i64::MAX]);
    let last = RecordBatch::try_new(batch.schema(), vec![Arc::new(times), Arc::new(StringArray::from(vec!["1"]))]).unwrap();
    assert!(scan.process(&last, Watermark(70), &mut epoch).unwrap().watermark < Watermark::MAX, "only the end of an input says that");
}

#[test]
fn processing_time_closes_no_window_that_the_epoch_may_still_fill() {
    let mut scan = Scan::new(&scan_plan(Some(WatermarkPlan::ProcessingTime { granularity_ms: 10 }))).unwrap();
    let batch = RecordBatch::new_empty(schema_of(&[("ts", MS), ("a", DataType::Utf8)]));
    let scanned = scan.process(&batch, Watermark::MIN, &mut EpochContext { now_ms: 9, seed: 1, seed_next: 0 }).unwrap();
    assert_eq!(scanned.watermark, Watermark(8));
    assert!(!scanned.watermark.closes(10), "now = 9 is in [0, 10)");
    assert_eq!(scan.schema().fields().len(), 2);
}

fn kinds() -> impl Strategy<Value = WindowKind> {
    let sizes = (1i64..50, 1i64..8, -100i64..100);
    (sizes, 0..3, 1i64..60).prop_map(|((step, times, offset_ms), kind, size)| match kind {
        0 => WindowKind::Tumble { size_ms: size, offset_ms },
        1 => WindowKind::Hop { slide_ms: step, size_ms: size, offset_ms },
        _ => WindowKind::Cumulate { step_ms: step, max_size_ms: step * times, offset_ms },
    })
}

/// By definition: all windows around, one by one.
fn windows_by_definition(kind: WindowKind, time: i64) -> BTreeSet<(i64, i64)> {
    let mut windows = BTreeSet::new();
    let mut add = |start: i64, size: i64| {
        if start <= time && time < start + size {
            windows.insert((start, start + size));
        }
    };
    for n in -1_000..1_000 {
        match kind {
            WindowKind::Tumble { size_ms, offset_ms } => add(offset_ms + n * size_ms, size_ms),
            WindowKind::Hop { slide_ms, size_ms, offset_ms } => add(offset_ms + n * slide_ms, size_ms),
            WindowKind::Cumulate { step_ms, max_size_ms, offset_ms } => {
                (1..=max_size_ms / step_ms).for_each(|k| add(offset_ms + n * max_size_ms, k * step_ms))
            }
        }
    }
    windows
}

fn assign(kind: WindowKind, rows: &RecordBatch, watermark_column: Option<usize>) -> Operator {
    let field = |name: &str, data_type: DataType| Arc::new(Field::new(name, data_type, false));
    let time_type = rows.column(0).data_type().clone();
    let zone = if let DataType::Timestamp(_, zone) = time_type { zone } else { None };
    let time = DataType::Timestamp(TimeUnit::Millisecond, zone);
    let appended = vec![
        (field("window_start", time.clone()), WindowColumn::Start),
        (field("window_end", time.clone()), WindowColumn::End),
        (field("window_time", time), WindowColumn::Time),
        (field(LATE_COLUMN, DataType::Boolean), WindowColumn::Late),
    ];
    let own = rows
        .schema()
        .fields()
        .iter()
        .enumerate()
        .filter(|(n, _)| Some(*n) != watermark_column)
        .map(|(_, field)| field.clone())
        .collect::<Vec<_>>();
    let schema = Arc::new(Schema::new(own.into_iter().chain(appended.iter().map(|(field, _)| field.clone())).collect::<Fields>()));
    Operator::AssignWindows(AssignWindows { kind, time_column: 0, watermark_column, appended, schema })
}

proptest! {
    #[test]
    fn every_row_is_in_exactly_its_windows(kind in kinds(), times in prop::collection::vec(-200i64..200, 1..600), watermark in -200i64..300) {
        let rows = RecordBatch::try_new(
            schema_of(&[("ts", DataType::Timestamp(TimeUnit::Microsecond, None)), ("n", DataType::Int64), ("__watermark", DataType::Int64)]),
            vec![
                Arc::new(TimestampMicrosecondArray::from_iter_values(times.iter().map(|time| time * 1_000 + 999))),
                Arc::new(Int64Array::from_iter_values(0..times.len() as i64)),
                Arc::new(Int64Array::from_value(watermark, times.len())),
            ],
        ).unwrap();
        let out = once(&[assign(kind, &rows, Some(2))], &rows);
        let mut found: Vec<BTreeSet<(i64, i64)>> = vec![BTreeSet::new(); times.len()];
        for (batch, _) in &out.batches {
            let column = |n: usize| batch.column(n).as_primitive::<TimestampMillisecondType>().values();
            for row in 0..batch.num_rows() {
                let number = batch.column(1).as_primitive::<Int64Type>().value(row) as usize;
                prop_assert!(found[number].insert((column(2)[row], column(3)[row])), "a row is in a window once");
                prop_assert_eq!(column(4)[row], column(3)[row] - 1);
                prop_assert_eq!(batch.column(5).as_boolean().value(row), watermark >= column(3)[row] - 1);
                prop_assert_eq!(batch.column(0).as_primitive::<arrow_array::types::TimestampMicrosecondType>().value(row), times[number] * 1_000 + 999);
            }
        }
        for (time, found) in times.iter().zip(found) {
            prop_assert_eq!(found, windows_by_definition(kind, *time), "{:?} at {}", kind, time);
        }
    }

    #[test]
    fn windows_of_extreme_times_do_not_overflow(kind in kinds(), near in 0i64..1_000) {
        for time in [i64::MIN + near, i64::MAX - near] {
            for Window { start_ms, end_ms } in windows_of(kind, time) {
                prop_assert!(start_ms <= end_ms);
            }
        }
    }
}

#[test]
fn windows_over_a_null_time_reject_the_row() {
    let times = TimestampMillisecondArray::from(vec![Some(5), None, Some(15)]);
    let rows = RecordBatch::try_new(schema_of(&[("ts", MS)]), vec![Arc::new(times)]).unwrap();
    let outcome = run_operator(assign(WindowKind::Tumble { size_ms: 10, offset_ms: 0 }, &rows, None), &rows);
    assert_eq!((outcome.rows.len(), outcome.rejected), (2, BTreeSet::from([1])));
}

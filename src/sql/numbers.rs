//! Flink's number types where DataFusion's differ.
//!
//! - A whole number that fits is an INT, not a BIGINT.
//! - `AVG` of whole numbers is a whole number: the exact sum divided by the count, towards zero.
//! - `SUM` keeps its argument's type and wraps like Java's. Decimal sums and averages have DataFusion's precision.
//! - String views and unsigned numbers are cast away where a function gives them.
//! - `FIRST_VALUE` and `LAST_VALUE` go by the time attribute and skip nulls.
//!
//! Done to every query right after it is planned, so that views, `INSERT INTO` and the fingerprint see Flink's types.

use crate::error::{Checked, Fault};
use crate::functions::{Functions, check_literals};
use crate::time::{self, TimeRole};
use arrow_schema::DataType;
use datafusion_common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion_common::{Column, DFSchema, Result, ScalarValue};
use datafusion_expr::expr::{AggregateFunction, NullTreatment, Sort};
use datafusion_expr::expr_rewriter::NamePreserver;
use datafusion_expr::logical_plan::Aggregate;
use datafusion_expr::{Expr, ExprSchemable, LogicalPlan, Projection, cast};
use std::sync::Arc;

pub(crate) fn flink_results(plan: LogicalPlan, functions: &Functions) -> Checked<LogicalPlan> {
    let changed = plan.transform_up(|node| {
        let node = plain_results(narrow_literals(node)?, functions)?;
        match node {
            LogicalPlan::Aggregate(aggregate) => {
                crate::aggregate::check_calls(&aggregate)?;
                Ok(Transformed::yes(flink_aggregate(aggregate, functions)?))
            }
            other => Ok(Transformed::yes(other)),
        }
    })?;
    Ok(changed.data)
}

fn narrow_literals(node: LogicalPlan) -> Result<LogicalPlan> {
    let names = NamePreserver::new(&node);
    let narrowed = node.map_expressions(|expression| {
        let name = names.save(&expression);
        // From the root down, to leave `COUNT(1)`, which is what `COUNT(*)` becomes.
        let changed = expression.transform_down(|part| {
            Ok(match part {
                Expr::Literal(ScalarValue::Int64(Some(value)), metadata) => match i32::try_from(value) {
                    Ok(value) => Transformed::yes(Expr::Literal(ScalarValue::Int32(Some(value)), metadata)),
                    Err(_) => Transformed::no(Expr::Literal(ScalarValue::Int64(Some(value)), metadata)),
                },
                Expr::AggregateFunction(ref call)
                    if call.func.name() == "count" && matches!(call.params.args.as_slice(), [Expr::Literal(..)]) =>
                {
                    Transformed::new(part, false, TreeNodeRecursion::Jump)
                }
                other => Transformed::no(other),
            })
        })?;
        Ok(changed.update_data(|expression| name.restore(expression)))
    })?;
    narrowed.data.recompute_schema()
}

/// Types that SQL does not have never leave a function: string views, unsigned numbers. Times become text as Flink writes them. A call that
/// could only fail is refused.
fn plain_results(node: LogicalPlan, functions: &Functions) -> Result<LogicalPlan> {
    let mut schema = DFSchema::empty();
    for input in node.inputs() {
        schema.merge(input.schema());
    }
    let names = NamePreserver::new(&node);
    let plain = node.map_expressions(|expression| {
        let name = names.save(&expression);
        let changed = expression.transform_up(|part| plain_result(part, &schema, functions))?;
        Ok(changed.update_data(|expression| name.restore(expression)))
    })?;
    plain.data.recompute_schema()
}

fn plain_result(part: Expr, schema: &DFSchema, functions: &Functions) -> Result<Transformed<Expr>> {
    let wanted = match &part {
        Expr::ScalarFunction(call) => {
            check_literals(call)?;
            match part.get_type(schema)? {
                DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
                DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
                DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => DataType::Int64,
                _ => return Ok(Transformed::no(part)),
            }
        }
        Expr::Cast(inner)
            if *inner.field.data_type() == DataType::Utf8 && matches!(inner.expr.get_type(schema)?, DataType::Timestamp(..)) =>
        {
            let Some(text) = functions.scalars.get("__timestamp_text") else { return Ok(Transformed::no(part)) };
            return Ok(Transformed::yes(text.call(vec![inner.expr.as_ref().clone()])));
        }
        _ => return Ok(Transformed::no(part)),
    };
    Ok(Transformed::yes(cast(part, wanted)))
}

/// A call that is computed from others: (the others, the result over them).
struct Split {
    parts: Vec<Expr>,
    result: Expr,
}

fn flink_aggregate(mut aggregate: Aggregate, functions: &Functions) -> Result<LogicalPlan> {
    let mut results: Vec<Expr> =
        (0..aggregate.group_expr.len()).map(|index| Expr::Column(Column::from(aggregate.schema.qualified_field(index)))).collect();
    let mut calls: Vec<Expr> = Vec::new();
    let mut is_split = false;
    for (index, expression) in std::mem::take(&mut aggregate.aggr_expr).into_iter().enumerate() {
        let name = aggregate.schema.field(aggregate.group_expr.len() + index).name().clone();
        let expression = order_by_time(expression, &aggregate.input)?;
        match split(&expression, &name, &aggregate.input, functions)? {
            Some(parts) => {
                is_split = true;
                calls.extend(parts.parts);
                results.push(parts.result.alias(name));
            }
            None => {
                let expression = if expression.schema_name().to_string() == name { expression } else { expression.alias(&name) };
                calls.push(expression);
                results.push(Expr::Column(Column::new_unqualified(name)));
            }
        }
    }
    let plan = LogicalPlan::Aggregate(Aggregate::try_new(aggregate.input, aggregate.group_expr, calls)?);
    if !is_split {
        return Ok(plan);
    }
    Ok(LogicalPlan::Projection(Projection::try_new(results, Arc::new(plan))?))
}

fn as_call(expression: &Expr) -> Option<&AggregateFunction> {
    match expression {
        Expr::AggregateFunction(call) => Some(call),
        Expr::Alias(alias) => as_call(&alias.expr),
        _ => None,
    }
}

fn split(expression: &Expr, name: &str, input: &LogicalPlan, functions: &Functions) -> Result<Option<Split>> {
    let Some(call) = as_call(expression) else { return Ok(None) };
    let [argument] = call.params.args.as_slice() else { return Ok(None) };
    let data_type = argument.get_type(input.schema())?;
    let with = |function: &str, argument: Expr, name: &str| {
        let mut call = call.clone();
        if let Some(function) = functions.aggregates.get(function) {
            call.func = Arc::clone(function);
        }
        call.params.args = vec![argument];
        Expr::AggregateFunction(call).alias(name)
    };
    let wide = || cast(argument.clone(), DataType::Int64);
    match (call.func.name(), &data_type) {
        ("avg", DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64) => {
            let (sum, count) = (format!("__sum of {name}"), format!("__count of {name}"));
            let quotient = Expr::Column(Column::new_unqualified(&sum)) / Expr::Column(Column::new_unqualified(&count));
            let parts = vec![with("sum", wide(), &sum), with("count", argument.clone(), &count)];
            Ok(Some(Split { parts, result: cast(quotient, data_type) }))
        }
        ("sum", DataType::Int8 | DataType::Int16 | DataType::Int32) => {
            let sum = format!("__sum of {name}");
            let wrap = match data_type {
                DataType::Int8 => "__wrap_tinyint",
                DataType::Int16 => "__wrap_smallint",
                _ => "__wrap_int",
            };
            let Some(wrap) = functions.scalars.get(wrap) else { return Ok(None) };
            let result = wrap.call(vec![Expr::Column(Column::new_unqualified(&sum))]);
            Ok(Some(Split { parts: vec![with("sum", wide(), &sum)], result }))
        }
        _ => Ok(None),
    }
}

/// `FIRST_VALUE(x)` is the first by time, not by arrival, so that a replay in other batches gives the same.
fn order_by_time(expression: Expr, input: &LogicalPlan) -> Result<Expr> {
    let is_ordered = |call: &AggregateFunction| matches!(call.func.name(), "first_value" | "last_value");
    if !as_call(&expression).is_some_and(is_ordered) {
        return Ok(expression);
    }
    let ordered = expression.transform_up(|part| {
        let Expr::AggregateFunction(mut call) = part else { return Ok(Transformed::no(part)) };
        call.params.null_treatment.get_or_insert(NullTreatment::IgnoreNulls);
        if call.params.order_by.is_empty() {
            let is_time = |role| matches!(role, TimeRole::EventTime | TimeRole::ProcessingTime);
            let is_window_time = |role| matches!(role, TimeRole::Window(_, streamshield_engine::plan::WindowColumn::Time, _));
            let Some(index) = time::find(input, is_time).or_else(|| time::find(input, is_window_time)) else {
                return Err(Fault::new(format!(
                    "{} needs the time attribute, which the query below it does not give",
                    call.func.name().to_uppercase()
                ))
                .hint("select the time attribute in the inner query, or write FIRST_VALUE(x ORDER BY …)")
                .into());
            };
            let column = Expr::Column(Column::from(input.schema().qualified_field(index)));
            call.params.order_by = vec![Sort::new(column, true, false)];
        }
        Ok(Transformed::yes(Expr::AggregateFunction(call)))
    })?;
    Ok(ordered.data)
}

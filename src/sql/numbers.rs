//! Flink's number types where DataFusion's differ.
//!
//! - A whole number that fits is an INT, not a BIGINT.
//! - `AVG` of whole numbers is a whole number: the exact sum divided by the count, towards zero.
//! - What is calculated from decimals has Flink's digits, is rounded half up, and is NULL where they do not suffice. A BIGINT beside a
//!   decimal has 19 digits.
//! - `SUM` keeps its argument's type and wraps like Java's; that of FLOATs is added up as DOUBLE, as their `AVG` is. That of decimals has 38
//!   digits. Where these do not suffice Flink's is NULL; this one has a digit more, and wraps beyond 1.7·10³⁸ of its last digit.
//! - A DOUBLE is rounded, and cast to a decimal, by its decimal digits. A text that is cast to a whole number may have a fraction.
//! - String views and unsigned numbers are cast away where a function gives them.
//! - A CASE and a column of a UNION have the common type of all their values; that of a decimal and a DOUBLE is DOUBLE, also where they are compared.
//! - What is cast to STRING is written as Java writes it; a time that is cast to fewer digits is rounded down. Between times and
//!   numbers there is no cast.
//! - What a cast makes of a decimal is what it is compared by: such a cast is a function where digits may be lost. What is too long for a
//!   decimal is NULL.
//! - `FIRST_VALUE` and `LAST_VALUE` go by the time attribute and skip nulls.
//!
//! Done to every query right after it is planned, so that views, `INSERT INTO` and the fingerprint see Flink's types.

use crate::error::{Checked, Fault, place_of};
use crate::functions::{Functions, casts, check_literals, decimals};
use crate::time::{self, TimeRole};
use crate::types::words;
use arrow_schema::{DataType, TimeUnit};
use datafusion_common::tree_node::{Transformed, TreeNode, TreeNodeRecursion, TreeNodeRewriter};
use datafusion_common::{Column, DFSchema, Result, ScalarValue};
use datafusion_expr::expr::{AggregateFunction, NullTreatment, ScalarFunction, Sort};
use datafusion_expr::expr_rewriter::NamePreserver;
use datafusion_expr::logical_plan::Aggregate;
use datafusion_expr::{BinaryExpr, Case, Cast, Expr, ExprSchemable, LogicalPlan, Operator, Projection, TryCast, Union, cast, try_cast};
use datafusion_optimizer::analyzer::type_coercion::TypeCoercionRewriter;
use std::sync::Arc;

pub(crate) fn flink_results(plan: LogicalPlan, functions: &Functions) -> Checked<LogicalPlan> {
    let changed = plan.transform_up(|node| {
        let node = plain_results(narrow_literals(node)?, functions)?;
        match node {
            LogicalPlan::Aggregate(aggregate) => {
                crate::aggregate::check_calls(&aggregate)?;
                Ok(Transformed::yes(flink_aggregate(aggregate, functions)?))
            }
            LogicalPlan::Union(union) => Ok(Transformed::yes(flink_union(union, functions)?)),
            other => Ok(Transformed::yes(other)),
        }
    })?;
    Ok(changed.data)
}

/// The schema stays what it was: of its inputs' new types DataFusion may know no product until [`plain_results`] has been here.
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
    Ok(narrowed.data)
}

/// Types that SQL does not have never leave a function: string views, unsigned numbers. Casts and arithmetic become Flink's. A call that could
/// only fail is refused.
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
        Expr::Case(case) => return Ok(Transformed::yes(flink_case(case.clone(), schema, functions)?)),
        Expr::ScalarFunction(call) if matches!(call.func.name(), "coalesce" | "greatest" | "least") => {
            let mut call = call.clone();
            doubles_if_mixed(call.args.iter_mut().collect(), schema)?;
            return Ok(Transformed::yes(Expr::ScalarFunction(call)));
        }
        Expr::ScalarFunction(call) => {
            check_literals(call)?;
            if let Some(rounded) = rounded_by_digits(call, schema, functions)? {
                return Ok(Transformed::yes(rounded));
            }
            match part.get_type(schema)? {
                _ if call.func.name() == "cardinality" => DataType::Int32,
                DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
                DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
                DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => DataType::Int64,
                _ => return Ok(Transformed::no(part)),
            }
        }
        Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field }) => {
            let from = expr.get_type(schema)?;
            check_cast(expr, &from, field.data_type())?;
            let is_try = matches!(part, Expr::TryCast(_));
            return Ok(match flink_cast(expr, &from, field.data_type(), is_try, functions) {
                Some(changed) => Transformed::yes(changed),
                None => Transformed::no(part),
            });
        }
        Expr::BinaryExpr(binary) => {
            if let Some(calculated) = flink_decimals(binary, schema, functions)? {
                return Ok(Transformed::yes(calculated));
            }
            let mut binary = binary.clone();
            doubles_if_mixed(vec![binary.left.as_mut(), binary.right.as_mut()], schema)?;
            return Ok(Transformed::yes(Expr::BinaryExpr(binary)));
        }
        Expr::Between(between) => {
            let mut between = between.clone();
            doubles_if_mixed(vec![between.expr.as_mut(), between.low.as_mut(), between.high.as_mut()], schema)?;
            return Ok(Transformed::yes(Expr::Between(between)));
        }
        Expr::InList(list) => {
            let mut list = list.clone();
            doubles_if_mixed(list.list.iter_mut().chain([list.expr.as_mut()]).collect(), schema)?;
            return Ok(Transformed::yes(Expr::InList(list)));
        }
        // DataFusion takes the pattern for a regular expression that may match anywhere.
        Expr::SimilarTo(_) => {
            let fault = Fault::unsupported("SIMILAR TO", "write REGEXP(x, '^(…)$')");
            return Err(place_of([&part]).map_or(fault.clone(), |place| fault.at(place)).into());
        }
        _ => return Ok(Transformed::no(part)),
    };
    Ok(Transformed::yes(cast(part, wanted)))
}

/// What is calculated from decimals in Flink's way. None: Arrow's is the same.
fn flink_decimals(binary: &BinaryExpr, schema: &DFSchema, functions: &Functions) -> Result<Option<Expr>> {
    let (left, right) = (binary.left.get_type(schema)?, binary.right.get_type(schema)?);
    if !decimals::is_exact(&left, &right) {
        return Ok(None);
    }
    if let Some(function) = decimals::function_for(binary.op, &left, &right).and_then(|name| functions.scalars.get(name)) {
        return Ok(Some(function.call(vec![binary.left.as_ref().clone(), binary.right.as_ref().clone()])));
    }
    let is_calculated = matches!(binary.op, Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Modulo);
    if !is_calculated || (left != DataType::Int64 && right != DataType::Int64) {
        return Ok(None);
    }
    let mut binary = binary.clone();
    for (side, data_type) in [(&mut binary.left, left), (&mut binary.right, right)] {
        if data_type == DataType::Int64 {
            **side = cast((**side).clone(), DataType::Decimal128(decimals::BIGINT_DIGITS, 0));
        }
    }
    Ok(Some(Expr::BinaryExpr(binary)))
}

/// `ROUND` and `TRUNCATE` of a DOUBLE or FLOAT; DataFusion's go by the binary number.
fn rounded_by_digits(call: &ScalarFunction, schema: &DFSchema, functions: &Functions) -> Result<Option<Expr>> {
    let name = match call.func.name() {
        "round" => "__round",
        "trunc" => "__truncate",
        _ => return Ok(None),
    };
    let (Some(function), [number, places @ ..]) = (functions.scalars.get(name), call.args.as_slice()) else { return Ok(None) };
    let rounded = |number: Expr| function.call(std::iter::once(number).chain(places.iter().cloned()).collect());
    Ok(match number.get_type(schema)? {
        DataType::Float64 => Some(rounded(number.clone())),
        DataType::Float32 => Some(cast(rounded(cast(number.clone(), DataType::Float64)), DataType::Float32)),
        _ => None,
    })
}

fn is_decimal(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Decimal128(..))
}

/// The common type of a decimal and a DOUBLE is a decimal in DataFusion, which has no place for large numbers.
fn is_mixed<'a>(mut types: impl Iterator<Item = &'a DataType> + Clone) -> bool {
    types.clone().any(DataType::is_floating) && types.any(is_decimal)
}

/// Values that get one type: decimals are cast if there is a DOUBLE.
fn doubles_if_mixed(values: Vec<&mut Expr>, schema: &DFSchema) -> Result<()> {
    let types = values.iter().map(|value| value.get_type(schema)).collect::<Result<Vec<_>>>()?;
    if is_mixed(types.iter()) {
        for (value, _) in values.into_iter().zip(&types).filter(|(_, data_type)| is_decimal(data_type)) {
            *value = cast(value.clone(), DataType::Float64);
        }
    }
    Ok(())
}

/// Casts the results to their common type now: until then the CASE has the first one's, and all that is computed from it would go by that.
fn flink_case(mut case: Case, schema: &DFSchema, functions: &Functions) -> Result<Expr> {
    if let Some(operand) = case.expr.as_deref_mut() {
        let compared = case.when_then_expr.iter_mut().map(|(when, _)| when.as_mut());
        doubles_if_mixed(compared.chain([operand]).collect(), schema)?;
    }
    let results = case.when_then_expr.iter_mut().map(|(_, then)| then.as_mut()).chain(case.else_expr.as_deref_mut());
    doubles_if_mixed(results.collect(), schema)?;
    let coerced = TypeCoercionRewriter::new(schema).f_up(Expr::Case(case))?.data;
    // The new casts are to be Flink's too.
    let changed = coerced.map_children(|part| match part {
        Expr::Cast(_) => plain_result(part, schema, functions),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(changed.data)
}

/// The inputs' types may have changed since the union was planned, and it has the first input's.
fn flink_union(union: Union, functions: &Functions) -> Result<LogicalPlan> {
    let columns = 0..union.schema.fields().len();
    let mixed: Vec<bool> =
        columns.map(|index| is_mixed(union.inputs.iter().map(|input| input.schema().field(index).data_type()))).collect();
    let inputs = union.inputs.into_iter().map(|input| if mixed.contains(&true) { as_doubles(input, &mixed) } else { Ok(input) });
    let union = Union::try_new_with_loose_types(inputs.collect::<Result<Vec<_>>>()?)?;
    let coerced = TypeCoercionRewriter::coerce_union(union)?;
    // The new casts are to be Flink's too.
    Ok(coerced.map_children(|input| Ok(Transformed::yes(plain_results(input, functions)?)))?.data)
}

/// Casts the decimals among the columns that are marked.
fn as_doubles(input: Arc<LogicalPlan>, marked: &[bool]) -> Result<Arc<LogicalPlan>> {
    let columns = input.schema().columns().into_iter().zip(input.schema().fields()).zip(marked);
    let columns = columns.map(|((column, field), marked)| match *marked && is_decimal(field.data_type()) {
        true => cast(Expr::Column(column), DataType::Float64).alias(field.name()),
        false => Expr::Column(column),
    });
    let columns: Vec<Expr> = columns.collect();
    Ok(Arc::new(LogicalPlan::Projection(Projection::try_new(columns, input)?)))
}

/// Between a time and a number there is no cast in Flink: it would have to guess the unit.
fn check_cast(value: &Expr, from: &DataType, to: &DataType) -> Checked<()> {
    let hint = match (from, to) {
        (DataType::Timestamp(..), number) if number.is_numeric() => "UNIX_TIMESTAMP(…) gives the seconds since 1970",
        (number, DataType::Timestamp(..)) if number.is_numeric() => {
            "TO_TIMESTAMP_LTZ(…, 3) takes milliseconds since 1970, TO_TIMESTAMP_LTZ(…, 0) seconds"
        }
        _ => return Ok(()),
    };
    let fault = Fault::new(format!("there is no CAST from {} to {}", words(from), words(to))).hint(hint);
    Err(place_of([value]).map_or(fault.clone(), |place| fault.at(place)))
}

/// A cast that means something else in Flink, or that DataFusion would not keep.
fn flink_cast(value: &Expr, from: &DataType, to: &DataType, is_try: bool, functions: &Functions) -> Option<Expr> {
    if is_decimal(to) {
        return as_decimal(value, from, to, is_try, functions);
    }
    if decimals::loses_digits(from, to) {
        return casts::cast_by_function(value.clone(), to, is_try).ok();
    }
    if *from == DataType::Utf8 && to.is_signed_integer() {
        let function = functions.scalars.get("__whole_text")?;
        // A view's plan comes by once more in each query that reads it.
        let is_whole = matches!(value, Expr::ScalarFunction(call) if call.func.name() == function.name());
        let text = (!is_whole).then(|| function.call(vec![value.clone()]))?;
        return Some(if is_try { try_cast(text, to.clone()) } else { cast(text, to.clone()) });
    }
    if *to == DataType::Utf8 {
        let text = match from {
            DataType::Timestamp(..) => "__timestamp_text",
            DataType::Boolean => "__boolean_text",
            DataType::Float32 | DataType::Float64 => "__float_text",
            _ => return None,
        };
        return Some(functions.scalars.get(text)?.call(vec![value.clone()]));
    }
    rounded_down(value, from, to, functions).map(|value| cast(value, to.clone()))
}

/// A DOUBLE or FLOAT, or a number that may be too long, as a decimal: NULL where its digits do not suffice.
pub(crate) fn as_decimal(value: &Expr, from: &DataType, to: &DataType, is_try: bool, functions: &Functions) -> Option<Expr> {
    let DataType::Decimal128(precision, scale) = to else { return None };
    if decimals::loses_digits(from, to) {
        return casts::cast_by_function(value.clone(), to, is_try).ok();
    }
    let (DataType::Float32 | DataType::Float64) = from else { return None };
    let function = functions.scalars.get(if is_try { "__try_decimal_of" } else { "__decimal_of" })?;
    let wanted = Expr::Literal(ScalarValue::Decimal128(Some(0), *precision, *scale), None);
    Some(function.call(vec![value.clone(), wanted]))
}

/// A time before it is cast to fewer digits, also one in an ARRAY, ROW or MAP: the cast itself goes towards zero, which is up before 1970.
pub(crate) fn rounded_down(value: &Expr, from: &DataType, to: &DataType, functions: &Functions) -> Option<Expr> {
    if !loses_digits(from, to) {
        return None;
    }
    let function = functions.scalars.get("__whole_as")?;
    let wanted = Expr::Literal(ScalarValue::try_from(to).ok()?, None);
    // A view's plan comes by once more in each query that reads it.
    let is_rounded =
        matches!(value, Expr::ScalarFunction(call) if call.func.name() == function.name() && call.args.get(1) == Some(&wanted));
    (!is_rounded).then(|| function.call(vec![value.clone(), wanted]))
}

fn loses_digits(from: &DataType, to: &DataType) -> bool {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond};
    match (from, to) {
        (DataType::Timestamp(Microsecond | Nanosecond, _), DataType::Timestamp(Millisecond, _)) => true,
        (DataType::Timestamp(Nanosecond, _), DataType::Timestamp(Microsecond, _)) => true,
        (DataType::List(from), DataType::List(to)) | (DataType::Map(from, _), DataType::Map(to, _)) => {
            loses_digits(from.data_type(), to.data_type())
        }
        (DataType::Struct(from), DataType::Struct(to)) => from
            .iter()
            .filter_map(|field| to.find(field.name()).map(|(_, to)| (field, to)))
            .any(|(from, to)| loses_digits(from.data_type(), to.data_type())),
        _ => false,
    }
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
        ("avg", DataType::Decimal128(_, scale)) => {
            let Some(divide) = functions.scalars.get("__decimal_divide") else { return Ok(None) };
            let (sum, count) = (format!("__sum of {name}"), format!("__count of {name}"));
            // Flink's sum has all digits, of which the average's follow.
            let dividend = cast(Expr::Column(Column::new_unqualified(&sum)), DataType::Decimal128(decimals::PRECISION_MAX, *scale));
            let result = divide.call(vec![dividend, Expr::Column(Column::new_unqualified(&count))]);
            let parts = vec![with("sum", argument.clone(), &sum), with("count", argument.clone(), &count)];
            Ok(Some(Split { parts, result }))
        }
        // A part of another call comes by once more with its view.
        ("sum", DataType::Decimal128(precision, scale)) if *precision < decimals::SUM_DIGITS_MAX && !name.starts_with("__sum of ") => {
            let sum = format!("__sum of {name}");
            let result = cast(Expr::Column(Column::new_unqualified(&sum)), DataType::Decimal128(decimals::PRECISION_MAX, *scale));
            Ok(Some(Split { parts: vec![with("sum", argument.clone(), &sum)], result }))
        }
        ("sum" | "avg", DataType::Float32) => {
            let exact = format!("__double of {name}");
            let parts = vec![with(call.func.name(), cast(argument.clone(), DataType::Float64), &exact)];
            Ok(Some(Split { parts, result: cast(Expr::Column(Column::new_unqualified(&exact)), data_type) }))
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

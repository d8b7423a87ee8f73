//! `COUNT(DISTINCT a)` by two levels of aggregation: group by the argument first, then count the groups.
//!
//! The state of a distinct count grows with its input, and would be written whole whenever it changes. As a group per value it is
//! state of fixed size that RocksDB can hold.
//!
//! ```text
//! COUNT(DISTINCT a), COUNT(DISTINCT b), SUM(c)   by k, window
//!   expand   each row to (…, tag 0), (…, tag 1, a), (…, tag 2, b); the first one has `__rows` 1, the others 0
//!   level 1  by k, window, tag, a, b:  SUM(c) FILTER (tag = 0), given as state
//!   level 2  by k, window:             COUNT(a) FILTER (tag = 1), COUNT(b) FILTER (tag = 2), SUM(c) merged from its states
//! ```
//! One distinct argument and nothing else needs no tag.

use super::{Call, Named, Request, two_phases};
use crate::error::{Checked, Fault};
use crate::graph::{Branch, Graph};
use crate::lower::lower;
use arrow_schema::{DataType, Field, FieldRef};
use datafusion_common::{Column, DFSchema, ScalarValue, TableReference};
use datafusion_expr::expr::AggregateFunction;
use datafusion_expr::{Expr, lit, when};
use std::collections::HashMap;
use std::sync::Arc;
use streamshield_engine::plan::{Emit, ExpandPlan, Operator, ROWS_COLUMN};

const TAG: &str = "__tag";

fn as_call(expression: &Expr) -> Option<&AggregateFunction> {
    match expression {
        Expr::AggregateFunction(call) => Some(call),
        Expr::Alias(alias) => as_call(&alias.expr),
        _ => None,
    }
}

/// Does the duplicate matter? It does not to MIN, MAX and the logical ones.
pub(super) fn is_distinct(expression: &Expr) -> bool {
    let blind = ["min", "max", "bool_and", "bool_or", "bit_and", "bit_or"];
    as_call(expression).is_some_and(|call| call.params.distinct && !blind.contains(&call.func.name()))
}

/// One distinct argument: null where the call's filter leaves the row out, so that it is counted nowhere.
fn argument(call: &AggregateFunction) -> Checked<Expr> {
    let [argument] = call.params.args.as_slice() else {
        return Err(Fault::unsupported("DISTINCT over several arguments", "count distinct ROWs or a CONCAT of them"));
    };
    match &call.params.filter {
        Some(filter) => Ok(when(filter.as_ref().clone(), argument.clone()).end()?),
        None => Ok(argument.clone()),
    }
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

fn argument_name(index: usize) -> String {
    format!("__distinct{}", index + 1)
}

pub(super) fn plan(graph: &mut Graph, mut branches: Vec<Branch>, request: Request) -> Checked<Branch> {
    let mut arguments: Vec<Expr> = Vec::new();
    let mut plain: Vec<Expr> = Vec::new();
    // Per call of the request: the distinct argument that it counts, or the plain call that it is.
    let mut places: Vec<Result<usize, usize>> = Vec::new();
    for call in &request.calls {
        let Call::Rows(expression) = call else { continue };
        match as_call(expression).filter(|_| is_distinct(expression)) {
            Some(call) => {
                let argument = argument(call)?;
                let known = arguments.iter().position(|other| *other == argument);
                places.push(Ok(known.unwrap_or(arguments.len())));
                if known.is_none() {
                    arguments.push(argument);
                }
            }
            None => {
                places.push(Err(plain.len()));
                plain.push(expression.clone());
            }
        }
    }
    let tagged = !plain.is_empty() || arguments.len() > 1;
    if tagged {
        let warning = "with several aggregates beside DISTINCT, a row may be late for one of them and in time for another; it counts as late if the first one drops it";
        graph.warnings.push(warning.into());
    }
    let mut keys = request.keys.clone();
    if tagged {
        for branch in &mut branches {
            expand(branch, &arguments, !plain.is_empty())?;
        }
        keys.push(Named { expression: column(TAG), name: TAG.into() });
        keys.extend((0..arguments.len()).map(|index| Named { expression: column(&argument_name(index)), name: argument_name(index) }));
    } else {
        keys.extend(arguments.iter().map(|argument| Named { expression: argument.clone(), name: argument_name(0) }));
    }
    let calls = plain.iter().map(|call| Call::Rows(only_tag_zero(call))).collect();
    let first = Request { keys, calls, emit: Emit::State, ..request.clone() };
    let (branch, level) = two_phases(graph, branches, &first)?;

    // The level's output: keys, bounds, `__rows`, states.
    let mut next = level.key_fields.len() + 3;
    let mut states = Vec::new();
    for call in &level.calls {
        states.push(Call::States { call: Box::new(call.clone()), first_column: next });
        next += call.state_fields.len();
    }
    let mut calls = Vec::new();
    for (call, place) in request.calls.iter().zip(&places) {
        let Call::Rows(expression) = call else { continue };
        calls.push(match place {
            Err(plain) => states[*plain].clone(),
            Ok(argument) => Call::Rows(over_groups(expression, *argument, tagged)?),
        });
    }
    let bound = |index: usize| column(level.output_schema.field(level.key_fields.len() + index).name());
    let keys = request.keys.iter().map(|key| Named { expression: column(&key.name), name: key.name.clone() }).collect();
    let second = Request { keys, start: bound(0), end: bound(1), calls, emit: request.emit, late_rows: false };
    Ok(two_phases(graph, vec![branch], &second)?.0)
}

/// The plain call sees each row once.
fn only_tag_zero(expression: &Expr) -> Expr {
    let Some(call) = as_call(expression) else { return expression.clone() };
    let mut call = call.clone();
    let tag = column(TAG).eq(lit(0i32));
    call.params.filter = Some(Box::new(match call.params.filter.take() {
        Some(filter) => tag.and(*filter),
        None => tag,
    }));
    named_like(expression, Expr::AggregateFunction(call))
}

/// The call over the groups of its argument.
fn over_groups(expression: &Expr, argument: usize, tagged: bool) -> Checked<Expr> {
    let call = as_call(expression).ok_or_else(|| Fault::new("not an aggregate"))?;
    let mut over = call.clone();
    over.params.distinct = false;
    over.params.args = vec![column(&argument_name(argument))];
    over.params.filter = tagged.then(|| Box::new(column(TAG).eq(lit(argument as i32 + 1))));
    Ok(named_like(expression, Expr::AggregateFunction(over)))
}

fn named_like(expression: &Expr, changed: Expr) -> Expr {
    let name = match expression {
        Expr::Alias(alias) => alias.name.clone(),
        other => other.schema_name().to_string(),
    };
    changed.alias(name)
}

/// Adds the tag, the arguments and the number of source rows, a row per tag. Of the copies of a row only the first counts: it is late at most once.
fn expand(branch: &mut Branch, arguments: &[Expr], with_plain: bool) -> Checked<()> {
    let kept: Vec<Expr> = branch.schema.columns().into_iter().map(Expr::Column).collect();
    let first_tag = if with_plain { 0 } else { 1 };
    let mut types = Vec::new();
    for argument in arguments {
        types.push(crate::lower::type_of(argument, &branch.schema)?);
    }
    let mut projections = Vec::new();
    for tag in first_tag..=arguments.len() {
        let values = arguments.iter().zip(&types).enumerate().map(|(index, (argument, data_type))| {
            if index + 1 == tag { Ok(argument.clone()) } else { ScalarValue::try_from(data_type).map(|null| Expr::Literal(null, None)) }
        });
        let values = values.collect::<datafusion_common::Result<Vec<_>>>()?;
        let rows = lit(i64::from(tag == first_tag));
        let expressions: Vec<Expr> = kept.iter().cloned().chain([lit(tag as i32)]).chain(values).chain([rows]).collect();
        projections.push(lower(&expressions, &branch.schema)?);
    }
    let mut fields: Vec<(Option<TableReference>, FieldRef)> =
        branch.schema.iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field))).collect();
    fields.push((None, Arc::new(Field::new(TAG, DataType::Int32, false))));
    for (index, data_type) in types.into_iter().enumerate() {
        fields.push((None, Arc::new(Field::new(argument_name(index), data_type, true))));
    }
    fields.push((None, Arc::new(Field::new(ROWS_COLUMN, DataType::Int64, false))));
    branch.schema = Arc::new(DFSchema::new_with_metadata(fields, HashMap::new())?);
    branch.operators.push(Operator::Expand(ExpandPlan { projections, schema: branch.arrow() }));
    Ok(())
}

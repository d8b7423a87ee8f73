//! Logical expressions to physical ones, bound by index to an operator's input.

use crate::error::Checked;
use crate::functions::clock::{self, Readings};
use arrow_schema::FieldRef;
use datafusion_common::tree_node::{Transformed, TreeNode};
use datafusion_common::{Column, DFSchema, Result, TableReference};
use datafusion_expr::execution_props::ExecutionProps;
use datafusion_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion_expr::{Expr, ExprSchemable};
use datafusion_physical_expr::aggregate::{LoweredAggregate, LoweredAggregateBuilder};
use datafusion_physical_expr::{PhysicalExpr, create_physical_expr};
use std::collections::HashMap;
use std::sync::Arc;
use streamshield_engine::plan::{Expressions, NOW_COLUMN, SEED_COLUMN, now_field, seed_field};

/// The schema with more columns behind its last one.
pub(crate) fn extend(schema: &DFSchema, fields: impl IntoIterator<Item = FieldRef>) -> Checked<DFSchema> {
    let all = schema.iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field)));
    let all: Vec<(Option<TableReference>, FieldRef)> = all.chain(fields.into_iter().map(|field| (None, field))).collect();
    Ok(DFSchema::new_with_metadata(all, HashMap::new())?)
}

/// Replaces the functions that read the epoch by hidden columns.
fn replace_readings(expressions: &[Expr]) -> Checked<(Vec<Expr>, Readings)> {
    let (now, seed) = (Expr::Column(Column::new_unqualified(NOW_COLUMN)), Expr::Column(Column::new_unqualified(SEED_COLUMN)));
    let (mut readings, mut site) = (Readings::default(), 0);
    let replaced = expressions
        .iter()
        .map(|expression| {
            let changed = expression.clone().transform_up(|part| {
                Ok(match clock::replace(&part, &now, &seed, &mut site, &mut readings) {
                    Some(reading) => Transformed::yes(reading),
                    None => Transformed::no(part),
                })
            });
            changed.map(|changed| changed.data)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok((replaced, readings))
}

/// Lowers expressions that are evaluated together.
pub(crate) fn lower(expressions: &[Expr], schema: &DFSchema) -> Checked<Expressions> {
    let (replaced, readings) = replace_readings(expressions)?;
    let hidden = readings.now.then(now_field).into_iter().chain(readings.seed.then(seed_field));
    let schema = extend(schema, hidden)?;
    let list = replaced.iter().map(|expression| physical(expression, &schema)).collect::<Checked<Vec<_>>>()?;
    Ok(Expressions { list, needs_now: readings.now, needs_seed: readings.seed })
}

fn physical(expression: &Expr, schema: &DFSchema) -> Checked<Arc<dyn PhysicalExpr>> {
    let expression = expression.clone().unalias_nested().data;
    Ok(create_physical_expr(&expression, schema, &properties(), &PhysicalPlanningContext::default())?)
}

fn properties() -> ExecutionProps {
    ExecutionProps::new()
}

/// Does evaluating it need the epoch?
pub(crate) fn reads_epoch(expression: &Expr) -> Checked<bool> {
    let (_, readings) = replace_readings(std::slice::from_ref(expression))?;
    Ok(readings != Readings::default())
}

pub(crate) fn lower_aggregate(expression: &Expr, schema: &DFSchema) -> Checked<LoweredAggregate> {
    let properties = properties();
    let context = PhysicalPlanningContext::default();
    Ok(LoweredAggregateBuilder::new(expression, schema, schema.as_arrow(), &properties, &context).build()?)
}

/// The type that an expression has over a schema.
pub(crate) fn type_of(expression: &Expr, schema: &DFSchema) -> Checked<arrow_schema::DataType> {
    Ok(expression.get_type(schema)?)
}

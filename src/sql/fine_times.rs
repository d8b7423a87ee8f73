//! Times that are compared with constants of more digits than they have.
//!
//! Where a TIMESTAMP(3) is compared with a TIMESTAMP(6), it is cast to that type. DataFusion's simplifier drops the cast if the other side is
//! a constant, and cuts the constant to three digits: `ts = TIMESTAMP '… 05.067001'` would be true at 05.067. Where an expression has such a
//! constant, its casts of times to more digits are functions, which the simplifier leaves alone. All other expressions are
//! left as they are. A TIMESTAMP(9) ends in 2262: in a comparison with such a constant a later time is refused.

use crate::functions::casts::cast_by_function;
use arrow_schema::{DataType, TimeUnit};
use datafusion_common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion_common::{DFSchema, Result, ScalarValue};
use datafusion_expr::expr_rewriter::NamePreserver;
use datafusion_expr::simplify::SimplifyContext;
use datafusion_expr::utils::merge_schema;
use datafusion_expr::{Cast, Expr, ExprSchemable, LogicalPlan, TryCast};
use datafusion_optimizer::simplify_expressions::ExprSimplifier;
use datafusion_optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};
use std::sync::Arc;

/// Goes before each run of the simplifier: a filter may meet the cast only once it has been pushed down.
#[derive(Debug)]
pub(crate) struct FineTimes;

impl OptimizerRule for FineTimes {
    fn name(&self) -> &str {
        "fine_times"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        // What has no input has no column that could be cast.
        if plan.inputs().is_empty() {
            return Ok(Transformed::no(plan));
        }
        let schema = Arc::new(merge_schema(&plan.inputs()));
        let context = SimplifyContext::builder()
            .with_schema(Arc::clone(&schema))
            .with_config_options(config.options())
            .with_query_execution_start_time(config.query_execution_start_time());
        let simplifier = ExprSimplifier::new(context.build());
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expression| {
            let Some(unit) = coarsest_cast(&expression, &schema)? else { return Ok(Transformed::no(expression)) };
            if !has_finer_constant(&expression, unit, &simplifier, &schema)? {
                return Ok(Transformed::no(expression));
            }
            let name = names.save(&expression);
            let changed = expression.transform_up(|part| by_function(part, &schema))?;
            Ok(changed.update_data(|expression| name.restore(expression)))
        })
    }
}

fn nanoseconds(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    }
}

/// For a cast of a time to more digits: the nanoseconds of the time's unit.
fn cast_from(part: &Expr, schema: &DFSchema) -> Option<i64> {
    let (Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field })) = part else { return None };
    let DataType::Timestamp(to, _) = field.data_type() else { return None };
    let Ok(DataType::Timestamp(from, _)) = expr.get_type(schema) else { return None };
    let from = nanoseconds(from);
    (from > nanoseconds(*to)).then_some(from)
}

fn coarsest_cast(expression: &Expr, schema: &DFSchema) -> Result<Option<i64>> {
    let mut coarsest: Option<i64> = None;
    expression.apply(|part| {
        coarsest = coarsest.max(cast_from(part, schema));
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(coarsest)
}

/// Has the expression a constant time that is between two times of the unit?
fn has_finer_constant(expression: &Expr, unit: i64, simplifier: &ExprSimplifier, schema: &DFSchema) -> Result<bool> {
    expression.exists(|part| {
        if part.any_column_refs() || !matches!(part.get_type(schema), Ok(DataType::Timestamp(..))) {
            return Ok(false);
        }
        // One that can't be calculated is told by the simplifier itself.
        Ok(matches!(simplifier.simplify(part.clone()), Ok(Expr::Literal(value, _)) if is_finer(&value, unit)))
    })
}

fn is_finer(value: &ScalarValue, unit: i64) -> bool {
    match value {
        ScalarValue::TimestampMicrosecond(Some(value), _) => value % (unit / nanoseconds(TimeUnit::Microsecond)) != 0,
        ScalarValue::TimestampNanosecond(Some(value), _) => value % unit != 0,
        _ => false,
    }
}

fn by_function(part: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    if cast_from(&part, schema).is_none() {
        return Ok(Transformed::no(part));
    }
    Ok(match part {
        Expr::Cast(Cast { expr, field }) => Transformed::yes(cast_by_function(*expr, field.data_type(), false)?),
        Expr::TryCast(TryCast { expr, field }) => Transformed::yes(cast_by_function(*expr, field.data_type(), true)?),
        other => Transformed::no(other),
    })
}

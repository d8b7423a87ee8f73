//! From DataFusion's first plan to the one that is cut into stages: types first, then an explicit list of rules.
//!
//! The list is explicit so that a new release of DataFusion adds no rule by itself. Left out on purpose: rules that rest on enforced keys
//! or on finite tables (limits, joins by key), and the ones that split distinct aggregates, which [`crate::aggregate`] does for two levels.

use crate::error::Checked;
use crate::fine_times::FineTimes;
use crate::windows::{WINDOW_TIME, WindowNode};
use datafusion_common::Column;
use datafusion_common::config::ConfigOptions;
use datafusion_common::tree_node::{Transformed, TreeNode};
use datafusion_expr::{Expr, Extension, Filter, LogicalPlan, Projection};
use datafusion_optimizer::analyzer::type_coercion::TypeCoercion;
use datafusion_optimizer::common_subexpr_eliminate::CommonSubexprEliminate;
use datafusion_optimizer::eliminate_duplicated_expr::EliminateDuplicatedExpr;
use datafusion_optimizer::optimize_projections::OptimizeProjections;
use datafusion_optimizer::optimize_unions::OptimizeUnions;
use datafusion_optimizer::push_down_filter::PushDownFilter;
use datafusion_optimizer::replace_distinct_aggregate::ReplaceDistinctWithAggregate;
use datafusion_optimizer::simplify_expressions::SimplifyExpressions;
use datafusion_optimizer::{Analyzer, Optimizer, OptimizerContext};
use std::sync::Arc;

/// Gives every expression its types.
pub(crate) fn analyze(plan: LogicalPlan, options: &ConfigOptions) -> Checked<LogicalPlan> {
    let analyzer = Analyzer::with_rules(vec![Arc::new(TypeCoercion::new())]);
    Ok(analyzer.execute_and_check(plan, options, |_, _| {})?)
}

pub(crate) fn optimize(plan: LogicalPlan, options: &ConfigOptions) -> Checked<LogicalPlan> {
    let optimizer = Optimizer::with_rules(vec![
        Arc::new(OptimizeUnions::new()),
        Arc::new(FineTimes),
        Arc::new(SimplifyExpressions::new()),
        Arc::new(ReplaceDistinctWithAggregate::new()),
        Arc::new(EliminateDuplicatedExpr::new()),
        Arc::new(PushDownFilter::new()),
        Arc::new(CommonSubexprEliminate::new()),
        Arc::new(OptimizeProjections::new()),
    ]);
    let context = OptimizerContext::new_with_config_options(Arc::new(options.clone())).without_query_execution_start_time();
    without_unread_window_time(optimizer.optimize(plan, &context, |_, _| {})?)
}

/// Leaves `window_time` out where nobody reads it.
fn without_unread_window_time(plan: LogicalPlan) -> Checked<LogicalPlan> {
    let changed = plan.transform_down(|node| {
        let LogicalPlan::Projection(projection) = &node else { return Ok(Transformed::no(node)) };
        let mut columns: Vec<&Column> = projection.expr.iter().flat_map(Expr::column_refs).collect();
        let (below, filter) = match projection.input.as_ref() {
            LogicalPlan::Filter(filter) => (filter.input.as_ref(), Some(filter)),
            other => (other, None),
        };
        columns.extend(filter.iter().flat_map(|filter| filter.predicate.column_refs()));
        let LogicalPlan::Extension(extension) = below else { return Ok(Transformed::no(node)) };
        let Some(window) = extension.node.as_any().downcast_ref::<WindowNode>() else { return Ok(Transformed::no(node)) };
        if !window.with_time() || columns.iter().any(|column| column.name == WINDOW_TIME) {
            return Ok(Transformed::no(node));
        }
        let mut below = LogicalPlan::Extension(Extension { node: Arc::new(window.without_time()?) });
        if let Some(filter) = filter {
            below = LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), Arc::new(below))?);
        }
        Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(projection.expr.clone(), Arc::new(below))?)))
    })?;
    Ok(changed.data)
}

//! From DataFusion's first plan to the one that is cut into stages: types first, then an explicit list of rules.
//!
//! The list is explicit so that a new release of DataFusion adds no rule by itself. Left out on purpose: rules that rest on enforced keys
//! or on finite tables (limits, joins by key), and the ones that split distinct aggregates, which [`crate::aggregate`] does for two levels.

use crate::error::Checked;
use datafusion_common::config::ConfigOptions;
use datafusion_expr::LogicalPlan;
use datafusion_optimizer::analyzer::type_coercion::TypeCoercion;
use datafusion_optimizer::common_subexpr_eliminate::CommonSubexprEliminate;
use datafusion_optimizer::eliminate_duplicated_expr::EliminateDuplicatedExpr;
use datafusion_optimizer::optimize_projections::OptimizeProjections;
use datafusion_optimizer::optimize_unions::OptimizeUnions;
use datafusion_optimizer::push_down_filter::PushDownFilter;
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
        Arc::new(SimplifyExpressions::new()),
        Arc::new(EliminateDuplicatedExpr::new()),
        Arc::new(PushDownFilter::new()),
        Arc::new(CommonSubexprEliminate::new()),
        Arc::new(OptimizeProjections::new()),
    ]);
    let context = OptimizerContext::new_with_config_options(Arc::new(options.clone())).without_query_execution_start_time();
    Ok(optimizer.optimize(plan, &context, |_, _| {})?)
}

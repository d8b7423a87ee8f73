//! Time attributes: which column of a plan is the event time, the processing time or the bound of a window.
//!
//! Flink ties this to the column's type; here it is found by following a column down to where it came from. Renaming,
//! filters, views and unions keep it; computing with it loses it, as in Flink.

use crate::catalog::Table;
use crate::functions::clock;
use crate::unnest::UnnestNode;
use crate::windows::WindowNode;
use datafusion_expr::logical_plan::Aggregate;
use datafusion_expr::{Expr, LogicalPlan};
use streamshield_engine::plan::{WindowColumn, WindowKind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeRole {
    /// The column of the table's `WATERMARK`.
    EventTime,
    /// A `PROCTIME()` column.
    ProcessingTime,
    /// A bound of a window, and how many other windows its rows have been put into since.
    Window(WindowKind, WindowColumn, usize),
}

/// What the column at `index` of the plan's schema means in time, if anything.
pub(crate) fn role(plan: &LogicalPlan, index: usize) -> Option<TimeRole> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let table = Table::of(scan.source.as_ref())?;
            let column = scan.projection.as_ref().map_or(Some(index), |projection| projection.get(index).copied())?;
            table.role(column)
        }
        LogicalPlan::Projection(projection) => expression_role(projection.expr.get(index)?, &projection.input),
        LogicalPlan::Filter(filter) => role(&filter.input, index),
        LogicalPlan::SubqueryAlias(alias) => role(&alias.input, index),
        LogicalPlan::Union(union) => {
            let mut roles = union.inputs.iter().map(|input| role(input, index));
            let first = roles.next()??;
            roles.all(|other| other == Some(first)).then_some(first)
        }
        // A bound of another window is a plain key: its rows come when the aggregation's own window closes.
        LogicalPlan::Aggregate(aggregate) => match expression_role(aggregate.group_expr.get(index)?, &aggregate.input)? {
            window @ TimeRole::Window(_, _, depth) if own_window(aggregate) == Some(depth) => Some(window),
            _ => None,
        },
        LogicalPlan::Extension(extension) => {
            if let Some(node) = extension.node.as_any().downcast_ref::<UnnestNode>() {
                return role(node.input(), node.source_of(index)?);
            }
            let node = extension.node.as_any().downcast_ref::<WindowNode>()?;
            match node.appended_at(index) {
                Some(column) => Some(TimeRole::Window(node.kind(), column, 0)),
                None => Some(match role(node.input(), index)? {
                    TimeRole::Window(kind, column, depth) => TimeRole::Window(kind, column, depth + 1),
                    other => other,
                }),
            }
        }
        _ => None,
    }
}

pub(crate) fn expression_role(expression: &Expr, input: &LogicalPlan) -> Option<TimeRole> {
    match expression {
        Expr::Alias(alias) => expression_role(&alias.expr, input),
        Expr::Column(column) => role(input, input.schema().index_of_column(column).ok()?),
        Expr::ScalarFunction(function) if function.func.name() == clock::PROCTIME => Some(TimeRole::ProcessingTime),
        _ => None,
    }
}

/// The window that an aggregation closes with, by its depth: the nearest one of those whose bounds it groups by.
pub(crate) fn own_window(aggregate: &Aggregate) -> Option<usize> {
    let depth = |expression: &Expr| match expression_role(expression, &aggregate.input)? {
        TimeRole::Window(_, WindowColumn::Start | WindowColumn::End, depth) => Some(depth),
        _ => None,
    };
    aggregate.group_expr.iter().filter_map(depth).min()
}

/// Index of the first column with the role, for functions that need the order of time.
pub(crate) fn find(plan: &LogicalPlan, wanted: impl Fn(TimeRole) -> bool) -> Option<usize> {
    (0..plan.schema().fields().len()).find(|index| role(plan, *index).is_some_and(&wanted))
}

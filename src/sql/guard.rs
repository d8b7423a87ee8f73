//! Refuses, by place, what a query says and no stage can do yet.
//!
//! The planner below would refuse some of it without a place, and would plan some of it in silence. Nothing that is written may be
//! ignored, so the syntax tree is searched before it is planned.

use crate::error::{Checked, Fault};
use sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, JoinOperator, Query, Select, SelectItem, SetExpr,
    SetOperator, Spanned, TableAlias, TableFactor, Visit, Visitor,
};
use sqlparser::tokenizer::Span;
use std::collections::HashSet;
use std::ops::ControlFlow;

/// All that is refused in a query.
pub(crate) fn check(query: &Query) -> Vec<Fault> {
    let mut guard = Guard::default();
    let ControlFlow::Continue(()) = Visit::visit(query, &mut guard);
    guard.faults
}

/// Columns that a user does not see have such names, and are found by them.
pub(crate) fn check_name(name: &Ident) -> Checked<()> {
    if name.value.starts_with("__") {
        return Err(Fault::new(format!("`{}`: names that start with two underscores are streamshield's own", name.value)).at(name.span));
    }
    Ok(())
}

#[derive(Default)]
struct Guard {
    faults: Vec<Fault>,
    /// Queries in parentheses that are a window function's data.
    data: HashSet<*const Expr>,
}

impl Guard {
    fn refuse(&mut self, what: &str, hint: &str, span: Span) {
        self.faults.push(Fault::unsupported(what, hint).at(span));
    }

    fn names<'a>(&mut self, names: impl IntoIterator<Item = &'a Ident>) {
        self.faults.extend(names.into_iter().filter_map(|name| check_name(name).err()));
    }

    fn columns_of(&mut self, alias: &TableAlias) {
        self.names(alias.columns.iter().map(|column| &column.name));
    }

    fn set_operations(&mut self, body: &SetExpr) {
        let SetExpr::SetOperation { op, left, right, .. } = body else { return };
        let span = right.span();
        match op {
            SetOperator::Union => {}
            SetOperator::Intersect => self.refuse("INTERSECT", "", span),
            SetOperator::Except | SetOperator::Minus => self.refuse("EXCEPT", "", span),
        }
        self.set_operations(left);
        self.set_operations(right);
    }

    fn from(&mut self, select: &Select) {
        for table in select.from.iter().skip(1) {
            if !matches!(table.relation, TableFactor::UNNEST { .. }) {
                self.refuse("a join", "only CROSS JOIN UNNEST(array) is", table.relation.span());
            }
        }
        for join in select.from.iter().flat_map(|table| &table.joins) {
            let span = join.relation.span();
            let is_unnest = matches!(join.relation, TableFactor::UNNEST { .. });
            match &join.join_operator {
                JoinOperator::CrossJoin(_) if is_unnest => {}
                JoinOperator::Left(_) | JoinOperator::LeftOuter(_) if is_unnest => {
                    self.refuse("LEFT JOIN UNNEST", "write CROSS JOIN UNNEST, which gives no row for an empty array", span);
                }
                _ => self.refuse("a join", "only CROSS JOIN UNNEST(array) is", span),
            }
        }
    }
}

impl Visitor for Guard {
    type Break = std::convert::Infallible;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Self::Break> {
        if let Some(order) = &query.order_by {
            self.refuse("ORDER BY", "a stream has no end to sort at", order.span());
        }
        if query.limit_clause.is_some() || query.fetch.is_some() {
            let span = query.limit_clause.as_ref().map_or(query.span(), Spanned::span);
            self.refuse("LIMIT", "bound the source instead, such as with 'scan.bounded.mode'", span);
        }
        if query.with.as_ref().is_some_and(|with| with.recursive) {
            self.refuse("WITH RECURSIVE", "", query.span());
        }
        for table in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.columns_of(&table.alias);
        }
        self.set_operations(&query.body);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Self::Break> {
        self.from(select);
        self.names(select.projection.iter().flat_map(|item| match item {
            SelectItem::ExprWithAlias { alias, .. } => std::slice::from_ref(alias),
            SelectItem::ExprWithAliases { aliases, .. } => aliases.as_slice(),
            _ => &[],
        }));
        let span = select.select_token.0.span;
        if let GroupByExpr::Expressions(expressions, modifiers) = &select.group_by {
            let sets = expressions.iter().find(|expression| matches!(expression, Expr::GroupingSets(_) | Expr::Cube(_) | Expr::Rollup(_)));
            if let Some(sets) = sets {
                self.refuse("GROUPING SETS, CUBE or ROLLUP", "write one INSERT INTO per grouping", sets.span());
            } else if !modifiers.is_empty() {
                self.refuse("GROUP BY with a modifier", "", span);
            }
        } else {
            self.refuse("GROUP BY ALL", "name the columns", span);
        }
        if matches!(select.distinct, Some(sqlparser::ast::Distinct::On(_))) {
            self.refuse("SELECT DISTINCT ON", "", span);
        }
        let rare = select.qualify.is_some()
            || !select.named_window.is_empty()
            || !select.lateral_views.is_empty()
            || !select.sort_by.is_empty()
            || !select.cluster_by.is_empty()
            || !select.distribute_by.is_empty()
            || !select.connect_by.is_empty()
            || select.top.is_some()
            || select.into.is_some()
            || select.prewhere.is_some();
        if rare {
            self.refuse("a clause of this SELECT (WINDOW, QUALIFY, LATERAL VIEW, SORT BY, TOP, INTO…)", "", span);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Self::Break> {
        if let TableFactor::Table { alias: Some(alias), .. }
        | TableFactor::Derived { alias: Some(alias), .. }
        | TableFactor::TableFunction { alias: Some(alias), .. }
        | TableFactor::Function { alias: Some(alias), .. }
        | TableFactor::UNNEST { alias: Some(alias), .. }
        | TableFactor::NestedJoin { alias: Some(alias), .. } = factor
        {
            self.columns_of(alias);
        }
        let arguments = match factor {
            TableFactor::TableFunction { expr: Expr::Function(function), .. } => match &function.args {
                FunctionArguments::List(list) => list.args.as_slice(),
                _ => &[],
            },
            TableFactor::Table { args: Some(arguments), .. } => &arguments.args,
            TableFactor::Function { args, .. } => args,
            _ => &[],
        };
        for argument in arguments {
            let mut expression = match argument {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expression))
                | FunctionArg::Named { arg: FunctionArgExpr::Expr(expression), .. } => expression,
                _ => continue,
            };
            while let Expr::Nested(inner) = expression {
                expression = inner;
            }
            self.data.insert(std::ptr::from_ref(expression));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<Self::Break> {
        match expression {
            Expr::Function(function) if function.over.is_some() => {
                self.refuse("an OVER window", "use a window table function with GROUP BY", expression.span());
            }
            Expr::Subquery(_) | Expr::InSubquery { .. } | Expr::Exists { .. } if !self.data.contains(&std::ptr::from_ref(expression)) => {
                self.refuse("a subquery in an expression", "", expression.span());
            }
            Expr::Identifier(name) => self.names([name]),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

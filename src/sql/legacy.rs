//! The older spelling `GROUP BY TUMBLE(ts, INTERVAL '1' MINUTE)`, turned into the window table function.
//!
//! ```text
//! SELECT k, TUMBLE_START(ts, i) FROM t GROUP BY k, TUMBLE(ts, i)
//!   → SELECT k, window_start FROM TUMBLE(TABLE t, DESCRIPTOR(ts), i) AS t GROUP BY k, window_start, window_end
//! ```

use crate::error::Fault;
use crate::rewrite::{call, plain_arguments};
use crate::windows::{WINDOW_END, WINDOW_START, WINDOW_TIME};
use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, GroupByExpr, Ident, ObjectName, Query, Select, Spanned, TableAlias, TableFactor,
    VisitMut, VisitorMut,
};
use std::ops::ControlFlow;

pub(crate) fn rewrite(query: &mut Query) -> Vec<Fault> {
    let mut windows = GroupWindows { faults: Vec::new() };
    let ControlFlow::Continue(()) = VisitMut::visit(query, &mut windows);
    windows.faults
}

struct GroupWindows {
    faults: Vec<Fault>,
}

impl VisitorMut for GroupWindows {
    type Break = std::convert::Infallible;

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Self::Break> {
        if let Err(fault) = rewrite_select(select) {
            self.faults.push(fault);
        }
        ControlFlow::Continue(())
    }
}

fn lower_name(function: &Function) -> String {
    function.name.to_string().to_lowercase()
}

fn is_group_window(expression: &Expr) -> bool {
    matches!(expression, Expr::Function(function) if matches!(lower_name(function).as_str(), "tumble" | "hop" | "session" | "cumulate"))
}

fn column(name: &str) -> Expr {
    Expr::Identifier(Ident::new(name))
}

fn rewrite_select(select: &mut Select) -> Result<(), Fault> {
    let GroupByExpr::Expressions(groups, _) = &mut select.group_by else { return Ok(()) };
    let Some(at) = groups.iter().position(is_group_window) else { return Ok(()) };
    let Expr::Function(window) = groups[at].clone() else { return Ok(()) };
    let span = groups[at].span();
    if lower_name(&window) == "session" {
        return Err(Fault::unsupported("a SESSION window", "TUMBLE, HOP and CUMULATE are").at(span));
    }
    groups.splice(at..=at, [column(WINDOW_START), column(WINDOW_END)]);
    if let Some(other) = groups.iter().find(|group| is_group_window(group)) {
        return Err(Fault::new("a query groups by one window").at(other.span()));
    }
    let arguments: Vec<Expr> = plain_arguments(&window).unwrap_or_default().into_iter().cloned().collect();
    let Some((time, lengths)) = arguments.split_first() else {
        return Err(Fault::new(format!("{} needs a time attribute and an interval", window.name)).at(span));
    };
    let [table] = select.from.as_mut_slice() else { return Err(Fault::unsupported("a join", "").at(span)) };
    if !table.joins.is_empty() {
        return Err(
            Fault::unsupported("GROUP BY TUMBLE(…) over a join", "put the window into FROM: TUMBLE(TABLE t, DESCRIPTOR(ts), …)").at(span)
        );
    }
    let (data, alias) =
        data_of(&table.relation).ok_or_else(|| Fault::unsupported("GROUP BY TUMBLE(…) over this kind of table", "").at(span))?;
    let time = without_table(time);
    let arguments = [data, call("DESCRIPTOR", vec![time])].into_iter().chain(lengths.iter().cloned());
    table.relation = TableFactor::Function {
        lateral: false,
        name: ObjectName::from(vec![Ident::with_span(span, lower_name(&window).to_uppercase())]),
        args: arguments.map(|argument| FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))).collect(),
        with_ordinality: false,
        alias,
    };
    let mut bounds = Bounds { window: texts(&window), uses_time: false, fault: None };
    for item in &mut select.projection {
        let ControlFlow::Continue(()) = VisitMut::visit(item, &mut bounds);
    }
    if let Some(having) = &mut select.having {
        let ControlFlow::Continue(()) = VisitMut::visit(having, &mut bounds);
    }
    if let (true, GroupByExpr::Expressions(groups, _)) = (bounds.uses_time, &mut select.group_by) {
        groups.push(column(WINDOW_TIME));
    }
    bounds.fault.map_or(Ok(()), Err)
}

/// A column's name alone: `t.ts` → `ts`.
fn without_table(column: &Expr) -> Expr {
    match column {
        Expr::CompoundIdentifier(names) => names.last().map(|name| Expr::Identifier(name.clone())).unwrap_or_else(|| column.clone()),
        other => other.clone(),
    }
}

/// A window's name and arguments, to compare them.
fn texts(window: &Function) -> Vec<String> {
    let argument = |argument: &Expr| match without_table(argument) {
        Expr::Identifier(name) => name.value,
        other => other.to_string(),
    };
    let arguments = plain_arguments(window).unwrap_or_default();
    std::iter::once(lower_name(window)).chain(arguments.into_iter().map(argument)).collect()
}

/// The table as a window function's argument, and the name under which its columns are known.
fn data_of(relation: &TableFactor) -> Option<(Expr, Option<TableAlias>)> {
    match relation {
        TableFactor::Table { name, alias, args: None, version: None, .. } => {
            let names: Vec<Ident> = name.0.iter().filter_map(|part| part.as_ident().cloned()).collect();
            let own = names.last().map(|name| TableAlias { explicit: true, name: name.clone(), columns: Vec::new(), at: None });
            Some((Expr::CompoundIdentifier(names), alias.clone().or(own)))
        }
        TableFactor::Derived { subquery, alias, lateral: false, .. } => Some((Expr::Subquery(subquery.clone()), alias.clone())),
        _ => None,
    }
}

/// Replaces `TUMBLE_START(…)` and its like, which name the window once more.
struct Bounds {
    /// What the query groups by, as [`texts`].
    window: Vec<String>,
    uses_time: bool,
    fault: Option<Fault>,
}

impl VisitorMut for Bounds {
    type Break = std::convert::Infallible;

    fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<Self::Break> {
        let Expr::Function(function) = expression else { return ControlFlow::Continue(()) };
        let mut named = texts(function);
        let Some((window, bound)) = named[0].split_once('_') else { return ControlFlow::Continue(()) };
        if !matches!(window, "tumble" | "hop" | "cumulate") {
            return ControlFlow::Continue(());
        }
        let replacement = match bound {
            "start" => WINDOW_START,
            "end" => WINDOW_END,
            "rowtime" | "proctime" => WINDOW_TIME,
            _ => return ControlFlow::Continue(()),
        };
        named[0] = window.to_owned();
        if named != self.window {
            let fault = Fault::new(format!("`{expression}` is not of the window that the query groups by"));
            self.fault.get_or_insert(fault.hint("its arguments are those of the window in GROUP BY").at(expression.span()));
            return ControlFlow::Continue(());
        }
        self.uses_time |= replacement == WINDOW_TIME;
        *expression = column(replacement);
        ControlFlow::Continue(())
    }
}

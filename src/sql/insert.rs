//! `INSERT INTO`: fits a query's columns to a table's, by position, with the casts that Flink makes by itself.

use crate::catalog::{Catalog, Table};
use crate::error::{Checked, Fault, nearest};
use crate::functions::Functions;
use crate::lower::type_of;
use crate::numbers::{as_decimal, rounded_down};
use crate::statements::InsertInto;
use crate::types::{casts_implicitly, words};
use datafusion_common::ScalarValue;
use datafusion_expr::{Expr, LogicalPlan, Projection, cast};
use sqlparser::ast::{SelectItem, SetExpr, Spanned};
use std::sync::Arc;
use streamshield_core::ports::Connectors;
use streamshield_core::table::{Column, ColumnKind, TableDefinition};

/// The columns that a sink gets: all but computed and virtual ones.
pub(crate) fn written_columns(table: &TableDefinition) -> impl Iterator<Item = &Column> {
    table.columns.iter().filter(|column| !matches!(column.kind, ColumnKind::Computed | ColumnKind::Metadata { is_virtual: true, .. }))
}

/// The table that is written, checked as a sink.
pub(crate) fn sink_table(catalog: &Catalog, insert: &InsertInto, connectors: &Connectors) -> Result<Arc<Table>, Vec<Fault>> {
    let name = &insert.table;
    let Some(table) = catalog.tables.get(&name.value) else { return Err(vec![catalog.unknown_table(&name.value).at(name.span)]) };
    let connector = table.definition.connector();
    if connector.is_empty() {
        return Err(Vec::new());
    }
    let Some(sink) = connectors.sinks.get(connector) else {
        return Err(match connectors.sources.contains_key(connector) {
            true => vec![Fault::new(format!("table `{}` cannot be written: '{connector}' is a source only", name.value)).at(name.span)],
            // The definition has said so already.
            false => Vec::new(),
        });
    };
    let mut faults: Vec<Fault> = sink.check(&table.definition).into_iter().map(|error| table.option_fault(error)).collect();
    for column in written_columns(&table.definition) {
        let ColumnKind::Metadata { key, .. } = &column.kind else { continue };
        match sink.metadata_type(key) {
            None => faults.push(
                table
                    .fault(format!("'{connector}' cannot write the metadata '{key}' of column `{}`", column.field.name()))
                    .hint("add VIRTUAL behind METADATA if it is only read"),
            ),
            Some(wanted) if !casts_implicitly(column.field.data_type(), &wanted) && *column.field.data_type() != wanted => {
                faults.push(table.fault(format!("metadata '{key}' is {}, not {}", words(&wanted), words(column.field.data_type()))))
            }
            Some(_) => {}
        }
    }
    if faults.is_empty() { Ok(Arc::clone(table)) } else { Err(faults) }
}

/// Puts the projection to the table's columns on top of the query.
pub(crate) fn fit(plan: LogicalPlan, insert: &InsertInto, table: &Table, functions: &Functions) -> Checked<LogicalPlan> {
    let written: Vec<&Column> = written_columns(&table.definition).collect();
    let targets = target_columns(insert, &written)?;
    let given = plan.schema().fields().len();
    if given != targets.len() {
        let names: Vec<&str> = targets.iter().map(|column| column.field.name().as_str()).collect();
        return Err(Fault::new(format!("the query gives {given} columns, `{}` takes {}", insert.table.value, targets.len()))
            .hint(format!("the target's columns are: {}", names.join(", ")))
            .at(insert.table.span));
    }
    let mut expressions = Vec::new();
    for column in &written {
        let (name, wanted) = (column.field.name(), column.field.data_type());
        let Some(position) = targets.iter().position(|target| target.field.name() == name) else {
            if !column.field.is_nullable() {
                return Err(
                    Fault::new(format!("column `{name}` of `{}` is NOT NULL and gets no value", insert.table.value)).at(insert.table.span)
                );
            }
            expressions.push(cast(Expr::Literal(ScalarValue::Null, None), wanted.clone()).alias(name));
            continue;
        };
        let source = Expr::Column(plan.schema().columns()[position].clone());
        let found = type_of(&source, plan.schema())?;
        if !casts_implicitly(&found, wanted) {
            let fault =
                Fault::new(format!("column `{name}` of `{}` is {}, the query gives {}", insert.table.value, words(wanted), words(&found)));
            let place = select_item_span(&insert.query, position).unwrap_or(insert.table.span);
            return Err(fault.hint(format!("write CAST(… AS {})", words(wanted))).at(place));
        }
        let value = as_decimal(&source, &found, wanted, false, functions).unwrap_or_else(|| {
            let rounded = rounded_down(&source, &found, wanted, functions).unwrap_or(source);
            if found == *wanted { rounded } else { cast(rounded, wanted.clone()) }
        });
        expressions.push(value.alias(name));
    }
    Ok(LogicalPlan::Projection(Projection::try_new(expressions, Arc::new(plan))?))
}

fn target_columns<'a>(insert: &InsertInto, written: &[&'a Column]) -> Checked<Vec<&'a Column>> {
    if insert.columns.is_empty() {
        return Ok(written.to_vec());
    }
    let mut targets: Vec<&Column> = Vec::new();
    for name in &insert.columns {
        let Some(column) = written.iter().find(|column| *column.field.name() == name.value) else {
            let fault = Fault::new(format!("`{}` has no column `{}` to write", insert.table.value, name.value)).at(name.span);
            return Err(match nearest(&name.value, written.iter().map(|column| column.field.name().as_str())) {
                Some(near) => fault.hint(format!("did you mean `{near}`? Names are case-sensitive")),
                None => fault,
            });
        };
        if targets.iter().any(|target| target.field.name() == column.field.name()) {
            return Err(Fault::new(format!("column `{}` is given twice", name.value)).at(name.span));
        }
        targets.push(column);
    }
    Ok(targets)
}

/// Gives a second column of one name a name of its own: `INSERT INTO` goes by position and takes `SELECT a, a`, a plan wants each
/// name once.
pub(crate) fn name_apart(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) => {
            let mut seen = std::collections::BTreeSet::new();
            for (position, item) in select.projection.iter_mut().enumerate() {
                let apart = || sqlparser::ast::Ident::with_quote('`', format!("column{}", position + 1));
                match item {
                    SelectItem::UnnamedExpr(expression) if !seen.insert(expression.to_string()) => {
                        *item = SelectItem::ExprWithAlias { expr: expression.clone(), alias: apart() };
                    }
                    SelectItem::ExprWithAlias { alias, .. } if !seen.insert(alias.value.clone()) => *alias = apart(),
                    _ => {}
                }
            }
        }
        SetExpr::SetOperation { left, right, .. } => {
            name_apart(left);
            name_apart(right);
        }
        SetExpr::Query(query) => name_apart(&mut query.body),
        _ => {}
    }
}

/// Where the expression for a position stands, when the query lists them one by one.
fn select_item_span(query: &sqlparser::ast::Query, position: usize) -> Option<sqlparser::tokenizer::Span> {
    let select = query.body.as_select()?;
    let plain = select.projection.iter().all(|item| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. }));
    plain.then(|| select.projection.get(position).map(Spanned::span)).flatten()
}

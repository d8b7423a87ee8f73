//! `CROSS JOIN UNNEST(array) AS t(x)`: a row per element, as a logical node above a projection that holds the array.
//!
//! The array is its own column `__list` below the node, so that the column it came from is carried along only where the
//! query reads it.

use crate::error::{Checked, Fault};
use crate::guard;
use crate::types::words;
use arrow_schema::{DataType, Field, FieldRef};
use datafusion_common::{Column, DFSchema, DFSchemaRef, DataFusionError, Result, TableReference};
use datafusion_expr::planner::RelationPlannerContext;
use datafusion_expr::{Expr, Extension, LogicalPlan, Projection, UserDefinedLogicalNodeCore};
use sqlparser::ast::{self, Spanned, TableFactor, TableWithJoins, VisitMut, VisitorMut};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

const LIST: &str = "__list";

/// Rows of the input, once per element of `__list`, its last column, which the output does not have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct UnnestNode {
    input: LogicalPlan,
    list: Expr,
    qualifier: Option<TableReference>,
    /// The element's columns, then perhaps the ordinal.
    elements: Vec<FieldRef>,
    pub struct_fields: bool,
    pub ordinality: bool,
    schema: DFSchemaRef,
}

impl UnnestNode {
    fn try_new(
        input: LogicalPlan,
        qualifier: Option<TableReference>,
        elements: Vec<FieldRef>,
        struct_fields: bool,
        ordinality: bool,
    ) -> Result<Self> {
        let mut fields: Vec<(Option<TableReference>, FieldRef)> = Vec::new();
        for (of, field) in input.schema().iter().filter(|(_, field)| field.name() != LIST) {
            fields.push((of.cloned(), Arc::clone(field)));
        }
        fields.extend(elements.iter().map(|field| (qualifier.clone(), Arc::clone(field))));
        let schema = Arc::new(DFSchema::new_with_metadata(fields, HashMap::new())?);
        let list = Expr::Column(Column::new_unqualified(LIST));
        Ok(UnnestNode { input, list, qualifier, elements, struct_fields, ordinality, schema })
    }

    pub fn input(&self) -> &LogicalPlan {
        &self.input
    }
    pub fn list_column(&self) -> Column {
        Column::new_unqualified(LIST)
    }
    pub fn elements(&self) -> &[FieldRef] {
        &self.elements
    }
    pub fn qualifier(&self) -> Option<&TableReference> {
        self.qualifier.as_ref()
    }
    fn list_index(&self) -> Option<usize> {
        self.input.schema().index_of_column_by_name(None, LIST)
    }
    /// The input's column behind an output column.
    pub fn source_of(&self, index: usize) -> Option<usize> {
        let list = self.list_index()?;
        let source = if index < list { index } else { index + 1 };
        (source < self.input.schema().fields().len()).then_some(source)
    }
}

impl PartialOrd for UnnestNode {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.input.partial_cmp(&other.input)
    }
}

impl UserDefinedLogicalNodeCore for UnnestNode {
    fn name(&self) -> &str {
        "UnnestRows"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }
    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }
    fn expressions(&self) -> Vec<Expr> {
        vec![self.list.clone()]
    }
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.elements.iter().map(|field| field.name().clone()).collect()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let names: Vec<&str> = self.elements.iter().map(|field| field.name().as_str()).collect();
        write!(f, "UnnestRows: {}", names.join(", "))
    }
    fn with_exprs_and_inputs(&self, _: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let input = inputs.pop().ok_or_else(|| DataFusionError::from(Fault::new("UNNEST has one input")))?;
        UnnestNode::try_new(input, self.qualifier.clone(), self.elements.clone(), self.struct_fields, self.ordinality)
    }
    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let mut needed: Vec<usize> = output_columns.iter().filter_map(|index| self.source_of(*index)).chain([self.list_index()?]).collect();
        needed.sort_unstable();
        needed.dedup();
        Some(vec![needed])
    }
}

/// Folds `left CROSS JOIN UNNEST(…)` into one table factor, which [`plan`] gets to plan with both sides at hand.
pub(crate) fn fold(query: &mut ast::Query) {
    struct Fold;
    impl VisitorMut for Fold {
        type Break = std::convert::Infallible;
        fn pre_visit_select(&mut self, select: &mut ast::Select) -> ControlFlow<Self::Break> {
            fold_select(select);
            ControlFlow::Continue(())
        }
    }
    let ControlFlow::Continue(()) = VisitMut::visit(query, &mut Fold);
}

fn fold_select(select: &mut ast::Select) {
    let mut tables = std::mem::take(&mut select.from).into_iter();
    let Some(first) = tables.next() else { return };
    let mut joins = first.joins;
    let mut others = Vec::new();
    for table in tables {
        if matches!(table.relation, TableFactor::UNNEST { .. }) {
            joins.push(ast::Join {
                relation: table.relation,
                global: false,
                join_operator: ast::JoinOperator::CrossJoin(ast::JoinConstraint::None),
            });
            joins.extend(table.joins);
        } else {
            others.push(table);
        }
    }
    let mut folded = TableWithJoins { relation: first.relation, joins: Vec::new() };
    for join in joins {
        folded.joins.push(join);
        if matches!(
            folded.joins.last(),
            Some(ast::Join { relation: TableFactor::UNNEST { .. }, join_operator: ast::JoinOperator::CrossJoin(_), .. })
        ) {
            folded =
                TableWithJoins { relation: TableFactor::NestedJoin { table_with_joins: Box::new(folded), alias: None }, joins: Vec::new() };
        }
    }
    select.from = std::iter::once(folded).chain(others).collect();
}

/// Is it what [`fold`] makes?
pub(crate) fn is_folded(relation: &TableFactor) -> bool {
    let TableFactor::NestedJoin { table_with_joins, alias: None } = relation else { return false };
    matches!(
        table_with_joins.joins.last(),
        Some(ast::Join { relation: TableFactor::UNNEST { .. }, join_operator: ast::JoinOperator::CrossJoin(_), .. })
    )
}

/// Plans a folded factor.
pub(crate) fn plan(relation: TableFactor, context: &mut dyn RelationPlannerContext) -> Checked<LogicalPlan> {
    let TableFactor::NestedJoin { mut table_with_joins, .. } = relation else { return Err(Fault::new("not an UNNEST")) };
    let Some(ast::Join { relation: TableFactor::UNNEST { alias, mut array_exprs, with_ordinality, .. }, .. }) =
        table_with_joins.joins.pop()
    else {
        return Err(Fault::new("not an UNNEST"));
    };
    let left = if table_with_joins.joins.is_empty() {
        table_with_joins.relation
    } else {
        TableFactor::NestedJoin { table_with_joins, alias: None }
    };
    let input = context.plan(left)?;
    let (Some(array), true) = (array_exprs.pop(), array_exprs.is_empty()) else {
        return Err(Fault::new("UNNEST takes one array"));
    };
    let span = array.span();
    let expression = context.sql_to_expr(array, input.schema())?;
    let item = match crate::lower::type_of(&expression, input.schema())? {
        DataType::List(item) => item,
        other => return Err(Fault::new(format!("UNNEST takes an array, not {}", words(&other))).at(span)),
    };
    let (mut elements, struct_fields): (Vec<FieldRef>, bool) = match item.data_type() {
        DataType::Struct(fields) => (fields.iter().map(|field| Arc::new(field.as_ref().clone().with_nullable(true))).collect(), true),
        other => (vec![Arc::new(Field::new("EXPR$0", other.clone(), item.is_nullable()))], false),
    };
    if with_ordinality {
        elements.push(Arc::new(Field::new("ORDINALITY", DataType::Int64, false)));
    }
    let qualifier = alias.as_ref().map(|alias| TableReference::bare(alias.name.value.clone()));
    let names: Vec<&ast::Ident> = alias.iter().flat_map(|alias| alias.columns.iter().map(|column| &column.name)).collect();
    if !names.is_empty() {
        if names.len() != elements.len() {
            return Err(Fault::new(format!("UNNEST gives {} columns, its alias names {}", elements.len(), names.len())).at(names[0].span));
        }
        elements = elements.iter().zip(names).map(|(field, name)| Arc::new(field.as_ref().clone().with_name(&name.value))).collect();
    }
    // A field of a ROW may have any name; as a column it may not.
    for element in &elements {
        guard::check_name(&ast::Ident::with_span(span, element.name()))?;
    }
    let columns: Vec<Expr> = input.schema().columns().into_iter().map(Expr::Column).chain([expression.alias(LIST)]).collect();
    let input = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input))?);
    let node = UnnestNode::try_new(input, qualifier, elements, struct_fields, with_ordinality)?;
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
}

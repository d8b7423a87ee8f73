//! Windowed aggregation: partial before the exchange, merge behind it.
//!
//! `DISTINCT` arguments take two levels, see [`distinct`].

mod distinct;

use crate::error::{Checked, Fault, place_of};
use crate::graph::{Branch, Graph};
use crate::lower::{lower, lower_aggregate, reads_epoch};
use crate::time::{self, TimeRole};
use crate::windows::{WINDOW_END, WINDOW_START};
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion_common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion_common::{Column, DFSchema, TableReference};
use datafusion_expr::logical_plan::Aggregate as LogicalAggregate;
use datafusion_expr::{Expr, lit};
use sqlparser::tokenizer::Span;
use std::collections::HashMap;
use std::sync::Arc;
use streamshield_engine::plan::{Aggregate, AggregateCall, Emit, LATE_COLUMN, LATE_ROW_COLUMN, Operator, ROWS_COLUMN, WindowColumn};

/// The parts of `GROUP BY`.
struct Grouping {
    keys: Vec<usize>,
    start: usize,
    end: usize,
    /// `window_time` in `GROUP BY`: computed from the window's end afterwards.
    times: Vec<usize>,
}

fn grouping(aggregate: &LogicalAggregate) -> Checked<Grouping> {
    let (mut keys, mut start, mut end, mut times) = (Vec::new(), None, None, Vec::new());
    let own = time::own_window(aggregate);
    for (index, expression) in aggregate.group_expr.iter().enumerate() {
        match time::expression_role(expression, &aggregate.input) {
            Some(TimeRole::Window(_, WindowColumn::Start, depth)) if own == Some(depth) && start.is_none() => start = Some(index),
            Some(TimeRole::Window(_, WindowColumn::End, depth)) if own == Some(depth) && end.is_none() => end = Some(index),
            Some(TimeRole::Window(_, WindowColumn::Time, depth)) if own == Some(depth) => times.push(index),
            _ => keys.push(index),
        }
    }
    match (start, end) {
        (Some(start), Some(end)) => Ok(Grouping { keys, start, end, times }),
        (None, None) => {
            let what = if aggregate.aggr_expr.is_empty() {
                "SELECT DISTINCT or GROUP BY without a window"
            } else {
                "an aggregation without a window"
            };
            Err(Fault::unsupported(
                what,
                "read FROM TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' MINUTE) and GROUP BY window_start, window_end",
            ))
        }
        _ => Err(Fault::new("a window is grouped by both its bounds").hint("GROUP BY window_start, window_end")),
    }
}

/// Plans an aggregation; gives the branch behind the exchange.
pub(crate) fn plan(graph: &mut Graph, aggregate: &LogicalAggregate) -> Checked<Branch> {
    let grouping = grouping(aggregate).map_err(|fault| match place(aggregate) {
        Some(span) => fault.or_at(span),
        None => fault,
    })?;
    let outer = std::mem::replace(&mut graph.aggregating, true);
    let branches = graph.branches(&aggregate.input, None);
    graph.aggregating = outer;
    let mut branches = branches?;
    all_with_late(&mut branches)?;
    let request = Request {
        keys: named_keys(aggregate, &grouping),
        start: aggregate.group_expr[grouping.start].clone().unalias_nested().data,
        end: aggregate.group_expr[grouping.end].clone().unalias_nested().data,
        calls: aggregate.aggr_expr.iter().map(|call| Call::Rows(call.clone())).collect(),
        emit: Emit::Final,
        late_rows: graph.late_rows,
    };
    // Each branch computes the same values, under the same names.
    let mut hoisted = None;
    for branch in &mut branches {
        hoisted = Some(hoist_readings(branch, request.clone())?);
    }
    let request = hoisted.unwrap_or(request);
    let mut branch =
        if request.has_distinct() { distinct::plan(graph, branches, request)? } else { two_phases(graph, branches, &request)?.0 };
    branch.schema = Arc::new(output_names(&branch.arrow(), aggregate, &grouping)?);
    restore_window_time(&mut branch, aggregate, &grouping)?;
    Ok(branch)
}

/// In one exchange all branches have `__late` or none: rows of an aggregation, which are never late, may meet rows of a scan.
fn all_with_late(branches: &mut [Branch]) -> Checked<()> {
    if branches.iter().all(|branch| branch.hidden(LATE_COLUMN).is_none()) {
        return Ok(());
    }
    for branch in branches.iter_mut().filter(|branch| branch.hidden(LATE_COLUMN).is_none()) {
        let visible = branch.visible_columns();
        let outputs = visible.iter().map(|column| (column.relation.clone(), column.name.clone()));
        let outputs: Vec<_> = outputs.chain([(None, LATE_COLUMN.to_owned())]).collect();
        let expressions: Vec<Expr> = visible.into_iter().map(Expr::Column).chain([lit(false)]).collect();
        branch.project(&expressions, &outputs)?;
    }
    Ok(())
}

/// The keys under names of their own: two tables may have given the same one, or another window.
fn named_keys(aggregate: &LogicalAggregate, grouping: &Grouping) -> Vec<Named> {
    let mut keys: Vec<Named> = Vec::new();
    for index in &grouping.keys {
        let mut key = Named::new(&aggregate.group_expr[*index], aggregate.schema.field(*index).name());
        if keys.iter().any(|other| other.name == key.name) || [WINDOW_START, WINDOW_END].contains(&key.name.as_str()) {
            key.name = format!("{}__{index}", key.name);
        }
        keys.push(key);
    }
    keys
}

/// An expression and the name of its column.
#[derive(Clone)]
pub(crate) struct Named {
    pub expression: Expr,
    pub name: String,
}

impl Named {
    pub fn new(expression: &Expr, name: &str) -> Self {
        Named { expression: expression.clone().unalias_nested().data, name: name.to_owned() }
    }
}

/// A call over rows, or over states that a level below has made.
#[derive(Clone)]
pub(crate) enum Call {
    Rows(Expr),
    States { call: Box<AggregateCall>, first_column: usize },
}

/// One level of aggregation.
#[derive(Clone)]
pub(crate) struct Request {
    pub keys: Vec<Named>,
    pub start: Expr,
    pub end: Expr,
    pub calls: Vec<Call>,
    pub emit: Emit,
    pub late_rows: bool,
}

impl Request {
    fn has_distinct(&self) -> bool {
        self.calls.iter().any(|call| matches!(call, Call::Rows(expression) if distinct::is_distinct(expression)))
    }
}

/// Partial aggregation, exchange, merge. Gives the branch behind and the operator, for the next level.
pub(crate) fn two_phases(graph: &mut Graph, branches: Vec<Branch>, request: &Request) -> Checked<(Branch, Arc<Aggregate>)> {
    let operator = graph.operators;
    graph.operators += 1;
    let mut partials = Vec::new();
    let mut merge: Option<Arc<Aggregate>> = None;
    for mut branch in branches {
        let plan = Arc::new(build(&branch, request, operator)?);
        branch.operators.push(Operator::PartialAggregate(Arc::clone(&plan)));
        branch.schema = unqualified(&plan.partial_schema)?;
        let first = merge.get_or_insert_with(|| Arc::clone(&plan));
        if types(&first.partial_schema).ne(types(&plan.partial_schema)) {
            return Err(Fault::new("the branches of a UNION ALL do not fit into one exchange"));
        }
        partials.push(branch);
    }
    let merge = merge.ok_or_else(|| Fault::new("an aggregation without an input"))?;
    let mut branch = graph.exchange(partials, (0..request.keys.len()).collect(), "window")?;
    branch.operators.push(Operator::WindowAggregate(Arc::clone(&merge)));
    branch.schema = unqualified(&merge.output_schema)?;
    Ok((branch, merge))
}

fn types(schema: &Schema) -> impl Iterator<Item = &DataType> {
    schema.fields().iter().map(|field| field.data_type())
}

/// An aggregate's own expressions can't ask for the epoch: they are computed before it.
fn hoist_readings(branch: &mut Branch, mut request: Request) -> Checked<Request> {
    let mut values: Vec<Expr> = Vec::new();
    let mut hoist = |expression: Expr| -> Checked<Expr> {
        if !reads_epoch(&expression)? {
            return Ok(expression);
        }
        values.push(expression);
        Ok(Expr::Column(Column::new_unqualified(format!("__value{}", values.len()))))
    };
    for key in &mut request.keys {
        key.expression = hoist(key.expression.clone())?;
    }
    for call in &mut request.calls {
        let Call::Rows(expression) = call else { continue };
        let changed = expression.clone().transform_down(|part| {
            let Expr::AggregateFunction(mut function) = part else { return Ok(Transformed::no(part)) };
            function.params.args = function.params.args.into_iter().map(&mut hoist).collect::<Checked<_>>()?;
            function.params.filter = function.params.filter.map(|filter| hoist(*filter).map(Box::new)).transpose()?;
            Ok(Transformed::new(Expr::AggregateFunction(function), true, TreeNodeRecursion::Jump))
        })?;
        // It keeps its name, which those behind it know.
        let is_named = changed.data == *expression || matches!(expression, Expr::Alias(_));
        let name = expression.schema_name().to_string();
        *expression = if is_named { changed.data } else { changed.data.alias(name) };
    }
    if !values.is_empty() {
        let visible: Vec<Column> = branch.visible_columns();
        let outputs = visible.iter().map(|column| (column.relation.clone(), column.name.clone()));
        let outputs: Vec<_> = outputs.chain((1..=values.len()).map(|number| (None, format!("__value{number}")))).collect();
        let expressions: Vec<Expr> = visible.into_iter().map(Expr::Column).chain(values).collect();
        branch.project(&expressions, &outputs)?;
    }
    Ok(request)
}

/// Where the aggregation stands, as far as its columns say.
fn place(aggregate: &LogicalAggregate) -> Option<Span> {
    place_of(aggregate.group_expr.iter().chain(&aggregate.aggr_expr))
}

/// Aggregates whose state has a fixed size.
const FIXED: &[&str] = &[
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "var",
    "var_pop",
    "stddev",
    "stddev_pop",
    "bool_and",
    "bool_or",
    "bit_and",
    "bit_or",
    "bit_xor",
    "first_value",
    "last_value",
    "corr",
    "covar_samp",
    "covar_pop",
    "regr_slope",
    "regr_intercept",
    "regr_count",
    "regr_r2",
    "regr_avgx",
    "regr_avgy",
    "regr_sxx",
    "regr_syy",
    "regr_sxy",
];

/// Refuses the others; called as soon as a query is planned.
pub(crate) fn check_calls(aggregate: &LogicalAggregate) -> Checked<()> {
    for expression in &aggregate.aggr_expr {
        let Expr::AggregateFunction(call) = expression.clone().unalias_nested().data else { continue };
        let name = call.func.name();
        if !FIXED.contains(&name) {
            let hint = "its state grows with the input; COUNT, SUM, AVG, MIN, MAX, VAR_*, STDDEV_*, FIRST_VALUE, LAST_VALUE and COUNT(DISTINCT) do not";
            let fault = Fault::unsupported(format!("the aggregate {}", name.to_uppercase()), hint);
            return Err(match place(aggregate) {
                Some(span) => fault.at(span),
                None => fault,
            });
        }
    }
    Ok(())
}

fn unqualified(schema: &SchemaRef) -> Checked<Arc<DFSchema>> {
    let fields = schema.fields().iter().map(|field| (None, Arc::clone(field))).collect();
    Ok(Arc::new(DFSchema::new_with_metadata(fields, HashMap::new())?))
}

/// The operator's output with the names that the logical plan has for it.
fn output_names(schema: &SchemaRef, aggregate: &LogicalAggregate, grouping: &Grouping) -> Checked<DFSchema> {
    let groups = aggregate.group_expr.len();
    let order = grouping.keys.iter().copied().chain([grouping.start, grouping.end]).chain(groups..groups + aggregate.aggr_expr.len());
    let mut fields: Vec<(Option<TableReference>, FieldRef)> = Vec::new();
    for (index, field) in order.zip(schema.fields()) {
        let (qualifier, name) = aggregate.schema.qualified_field(index);
        fields.push((qualifier.cloned(), Arc::new(field.as_ref().clone().with_name(name.name()))));
    }
    Ok(DFSchema::new_with_metadata(fields, HashMap::new())?)
}

/// Adds `window_time`, the window's last millisecond, where the query groups by it.
fn restore_window_time(branch: &mut Branch, aggregate: &LogicalAggregate, grouping: &Grouping) -> Checked<()> {
    if grouping.times.is_empty() {
        return Ok(());
    }
    let columns: Vec<Column> = branch.schema.columns();
    let mut outputs: Vec<_> = columns.iter().map(|column| (column.relation.clone(), column.name.clone())).collect();
    let mut expressions: Vec<Expr> = columns.into_iter().map(Expr::Column).collect();
    let end = aggregate.schema.qualified_field(grouping.end);
    for index in &grouping.times {
        let (qualifier, field) = aggregate.schema.qualified_field(*index);
        let end = Expr::Column(Column::from(end));
        let time = datafusion_expr::cast(datafusion_expr::cast(end, DataType::Int64) - lit(1i64), field.data_type().clone());
        expressions.push(time);
        outputs.push((qualifier.cloned(), field.name().clone()));
    }
    branch.project(&expressions, &outputs)
}

fn build(branch: &Branch, request: &Request, operator: u16) -> Checked<Aggregate> {
    let input_schema = branch.arrow();
    let column_of = |bound: &Expr| match bound {
        Expr::Column(column) => branch.index_of(column),
        other => Err(Fault::new(format!("`{other}` is not a window's bound"))),
    };
    let (window_start_column, window_end_column) = (column_of(&request.start)?, column_of(&request.end)?);
    let key_expressions: Vec<Expr> = request.keys.iter().map(|key| key.expression.clone()).collect();
    let keys = lower(&key_expressions, &branch.schema)?;
    let mut key_fields = Vec::new();
    for (expression, key) in keys.list.iter().zip(&request.keys) {
        key_fields.push(Arc::new(Field::new(&key.name, expression.data_type(&input_schema)?, expression.nullable(&input_schema)?)));
    }
    let mut calls = Vec::new();
    for call in &request.calls {
        calls.push(match call {
            Call::Rows(expression) => over_rows(expression, branch)?,
            Call::States { call, first_column } => {
                AggregateCall { filter: None, merges_state_at: Some(*first_column), ..call.as_ref().clone() }
            }
        });
    }
    let late_column = branch.hidden(LATE_COLUMN);
    let mut plan = Aggregate {
        operator,
        input_schema,
        keys,
        key_fields,
        window_start_column,
        window_end_column,
        late_column,
        late_row: request.late_rows && late_column.is_some(),
        calls,
        emit: request.emit,
        partial_schema: Arc::new(Schema::empty()),
        output_schema: Arc::new(Schema::empty()),
    };
    set_schemas(&mut plan);
    Ok(plan)
}

/// Derives the partial and output schemas, as `plan::Aggregate` describes them.
fn set_schemas(plan: &mut Aggregate) {
    let zone = |index: usize| match plan.input_schema.field(index).data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    let bound = |name: &str, index: usize| Arc::new(Field::new(name, DataType::Timestamp(TimeUnit::Millisecond, zone(index)), false));
    let mut head: Vec<FieldRef> = plan.key_fields.clone();
    head.push(bound(WINDOW_START, plan.window_start_column));
    head.push(bound(WINDOW_END, plan.window_end_column));
    let rows: FieldRef = Arc::new(Field::new(ROWS_COLUMN, DataType::Int64, false));
    let states: Vec<FieldRef> = plan.calls.iter().flat_map(|call| call.state_fields.iter().cloned()).collect();
    let mut partial = head.clone();
    if plan.late_column.is_some() {
        partial.push(Arc::new(Field::new(LATE_COLUMN, DataType::Boolean, false)));
    }
    if plan.late_row {
        partial.push(Arc::new(Field::new(LATE_ROW_COLUMN, DataType::Utf8, true)));
    }
    partial.push(Arc::clone(&rows));
    partial.extend(states.iter().cloned());
    let mut output = head;
    match plan.emit {
        Emit::Final => output.extend(plan.calls.iter().map(|call| call.function.field())),
        Emit::State => {
            output.push(rows);
            output.extend(states);
        }
    }
    plan.partial_schema = Arc::new(Schema::new(partial));
    plan.output_schema = Arc::new(Schema::new(output));
}

fn over_rows(expression: &Expr, branch: &Branch) -> Checked<AggregateCall> {
    let lowered = lower_aggregate(expression, &branch.schema)?;
    let filter = lowered.filter.map(|filter| streamshield_engine::plan::Expressions::new(vec![filter]));
    let state_fields = lowered.aggregate.state_fields()?;
    let display = expression.clone().unalias_nested().data.to_string().replace("count(Int64(1))", "count(*)");
    Ok(AggregateCall { function: lowered.aggregate, filter, merges_state_at: None, state_fields, display })
}

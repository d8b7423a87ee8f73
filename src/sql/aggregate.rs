//! Windowed aggregation: partial before the exchange, merge behind it.

use crate::error::{Checked, Fault};
use crate::graph::{Branch, Graph};
use crate::lower::{lower, lower_aggregate};
use crate::time::{self, TimeRole};
use crate::windows::{WINDOW_END, WINDOW_START};
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion_common::{Column, DFSchema, TableReference};
use datafusion_expr::logical_plan::Aggregate as LogicalAggregate;
use datafusion_expr::{Expr, lit};
use std::collections::HashMap;
use std::sync::Arc;
use streamshield_engine::plan::{
    Aggregate, AggregateCall, Emit, LATE_COLUMN, LATE_ROW_COLUMN, Operator, ROWS_COLUMN, WindowColumn,
};

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
    for (index, expression) in aggregate.group_expr.iter().enumerate() {
        match time::expression_role(expression, &aggregate.input) {
            Some(TimeRole::Window(_, WindowColumn::Start)) => start = Some(index),
            Some(TimeRole::Window(_, WindowColumn::End)) => end = Some(index),
            Some(TimeRole::Window(_, WindowColumn::Time)) => times.push(index),
            _ => keys.push(index),
        }
    }
    match (start, end) {
        (Some(start), Some(end)) => Ok(Grouping { keys, start, end, times }),
        (None, None) => {
            let what = if aggregate.aggr_expr.is_empty() { "SELECT DISTINCT or GROUP BY without a window" } else { "an aggregation without a window" };
            Err(Fault::unsupported(what, "read FROM TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' MINUTE) and GROUP BY window_start, window_end"))
        }
        _ => Err(Fault::new("a window is grouped by both its bounds").hint("GROUP BY window_start, window_end")),
    }
}

/// Plans an aggregation; gives the branch behind the exchange.
pub(crate) fn plan(graph: &mut Graph, aggregate: &LogicalAggregate) -> Checked<Branch> {
    let grouping = grouping(aggregate)?;
    let branches = graph.branches(&aggregate.input, None)?;
    let mut partials = Vec::new();
    let mut merge = None;
    let operator = graph.operators;
    graph.operators += 1;
    for mut branch in branches {
        let plan = Arc::new(build(&branch, aggregate, &grouping, operator, graph.late_rows)?);
        branch.operators.push(Operator::PartialAggregate(Arc::clone(&plan)));
        branch.schema = unqualified(&plan.partial_schema)?;
        merge.get_or_insert(plan);
        partials.push(branch);
    }
    let merge = merge.ok_or_else(|| Fault::new("an aggregation without an input"))?;
    let mut branch = graph.exchange(partials, (0..grouping.keys.len()).collect(), "window")?;
    branch.operators.push(Operator::WindowAggregate(Arc::clone(&merge)));
    branch.schema = Arc::new(output_names(&merge.output_schema, aggregate, &grouping)?);
    restore_window_time(&mut branch, aggregate, &grouping)?;
    Ok(branch)
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

fn build(branch: &Branch, aggregate: &LogicalAggregate, grouping: &Grouping, operator: u16, late_rows: bool) -> Checked<Aggregate> {
    let input_schema = branch.arrow();
    let column_of = |index: usize| match &aggregate.group_expr[index].clone().unalias_nested().data {
        Expr::Column(column) => branch.index_of(column),
        other => Err(Fault::new(format!("`{other}` is not a window's bound"))),
    };
    let (window_start_column, window_end_column) = (column_of(grouping.start)?, column_of(grouping.end)?);
    let key_expressions: Vec<Expr> = grouping.keys.iter().map(|index| aggregate.group_expr[*index].clone()).collect();
    let keys = lower(&key_expressions, &branch.schema)?;
    let mut key_fields = Vec::new();
    for (expression, index) in keys.list.iter().zip(&grouping.keys) {
        let field = Field::new(aggregate.schema.field(*index).name(), expression.data_type(&input_schema)?, expression.nullable(&input_schema)?);
        key_fields.push(Arc::new(field));
    }
    let mut calls = Vec::new();
    for expression in &aggregate.aggr_expr {
        calls.push(call(expression, branch)?);
    }
    let late_column = branch.hidden(LATE_COLUMN);
    let late_row = late_rows && late_column.is_some();
    let mut plan = Aggregate {
        operator,
        input_schema: Arc::clone(&input_schema),
        keys,
        key_fields,
        window_start_column,
        window_end_column,
        late_column,
        late_row,
        calls,
        emit: Emit::Final,
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

fn call(expression: &Expr, branch: &Branch) -> Checked<AggregateCall> {
    let lowered = lower_aggregate(expression, &branch.schema)?;
    let filter = lowered.filter.map(|filter| streamshield_engine::plan::Expressions::new(vec![filter]));
    let state_fields = lowered.aggregate.state_fields()?;
    Ok(AggregateCall { function: lowered.aggregate, filter, merges_state_at: None, state_fields, display: expression.to_string() })
}

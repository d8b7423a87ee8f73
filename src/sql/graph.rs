//! Cuts an optimized plan into stages.
//!
//! ```text
//! INSERT INTO t SELECT … FROM TUMBLE(bid) GROUP BY …
//!   stage bid-1     scan → [filter, project] → AssignWindows → PartialAggregate ─┐
//!                                                                       exchange on the keys
//!   stage window-2  WindowAggregate → [filter, project] → Project to t's columns → sink
//! ```
//! [`Branch`] is an unfinished stage: an input and operators so far. A plan gives several of them after a `UNION ALL`; they
//! stay apart until an exchange or the sink brings them together. A branch's schema names the columns as the logical plan does, so that
//! expressions find theirs by name; hidden columns (`__watermark`, `__late`) are there too and pass through projections.

use crate::aggregate;
use crate::catalog::Table;
use crate::error::{Checked, Fault};
use crate::lower::{extend, lower};
use crate::time::{self, TimeRole};
use crate::unnest::UnnestNode;
use crate::windows::{self, WindowNode, window_fields};
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion_common::{Column as Reference, DFSchema, DFSchemaRef, TableReference};
use datafusion_expr::logical_plan::TableScan;
use datafusion_expr::{Expr, LogicalPlan, Projection as LogicalProjection, Union};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use streamshield_core::ids::{ExchangeId, StageId};
use streamshield_core::table::{Column, ColumnKind};
use streamshield_engine::plan::{
    AssignWindows, ExchangePlan, Expressions, LATE_COLUMN, Operator, Projection, SinkTable, SourceScan, StageInput, StageOutput, StagePlan,
    UnnestPlan, WATERMARK_COLUMN, WatermarkPlan, WindowColumn,
};

/// What the windows above a scan ask of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    EventTime,
    ProcessingTime { granularity_ms: u64 },
}

/// An unfinished stage.
#[derive(Clone, Debug)]
pub(crate) struct Branch {
    pub name: String,
    pub input: StageInput,
    pub operators: Vec<Operator>,
    /// Columns of the last operator's output.
    pub schema: DFSchemaRef,
}

impl Branch {
    pub fn arrow(&self) -> SchemaRef {
        Arc::clone(self.schema.inner())
    }

    pub fn hidden(&self, name: &str) -> Option<usize> {
        self.schema.index_of_column_by_name(None, name)
    }

    /// The columns but those that lateness needs, which pass through by themselves.
    pub fn visible_columns(&self) -> Vec<Reference> {
        self.schema.columns().into_iter().filter(|column| column.name != WATERMARK_COLUMN && column.name != LATE_COLUMN).collect()
    }

    pub fn index_of(&self, column: &Reference) -> Checked<usize> {
        Ok(self.schema.index_of_column(column)?)
    }

    /// Appends a projection; `outputs` name its columns. Hidden columns that are still needed pass through.
    pub fn project(&mut self, expressions: &[Expr], outputs: &[(Option<TableReference>, String)]) -> Checked<()> {
        let mut lowered = lower(expressions, &self.schema)?;
        let mut fields = Vec::new();
        for (expression, (qualifier, name)) in lowered.list.iter().zip(outputs) {
            let input = evaluation_schema(&self.arrow(), &lowered);
            let field = Field::new(name, expression.data_type(&input)?, expression.nullable(&input)?);
            fields.push((qualifier.clone(), Arc::new(field)));
        }
        for name in [WATERMARK_COLUMN, LATE_COLUMN] {
            let Some(index) = self.hidden(name) else { continue };
            lowered.list.push(Arc::new(datafusion_physical_expr::expressions::Column::new(name, index)));
            fields.push((None, Arc::clone(&self.schema.fields()[index])));
        }
        if fields.is_empty() {
            // Only the number of rows is wanted; the columns at hand carry it.
            return Ok(());
        }
        let schema = Arc::new(DFSchema::new_with_metadata(fields, HashMap::new())?);
        if let Some(merged) = self.merged_with_last(&lowered) {
            self.operators.pop();
            self.operators.push(Operator::Project(Projection { expressions: merged, schema: Arc::clone(schema.inner()) }));
        } else if !self.is_identity(&lowered, &schema) {
            self.operators.push(Operator::Project(Projection { expressions: lowered, schema: Arc::clone(schema.inner()) }));
        }
        self.schema = schema;
        Ok(())
    }

    /// A projection that only picks columns of the projection before it needs no operator of its own.
    fn merged_with_last(&self, picks: &Expressions) -> Option<Expressions> {
        let Some(Operator::Project(last)) = self.operators.last() else { return None };
        if picks.needs_now || picks.needs_seed {
            return None;
        }
        let indices = picks.list.iter().map(column_index).collect::<Option<Vec<usize>>>()?;
        let twice = |index: &usize| indices.iter().filter(|other| *other == index).count() > 1;
        if indices.iter().any(|index| twice(index) && column_index(&last.expressions.list[*index]).is_none()) {
            return None;
        }
        let list = indices.iter().map(|index| Arc::clone(&last.expressions.list[*index])).collect();
        // What was asked of the epoch stays asked for: the columns stand where the expressions expect them.
        Some(Expressions { list, ..last.expressions.clone() })
    }

    fn is_identity(&self, expressions: &Expressions, schema: &DFSchema) -> bool {
        let keeps_place = |(index, expression)| column_index(expression) == Some(index);
        self.schema.inner() == schema.inner() && expressions.list.iter().enumerate().all(keeps_place)
    }

    pub fn filter(&mut self, predicate: &Expr) -> Checked<()> {
        self.operators.push(Operator::Filter(lower(std::slice::from_ref(predicate), &self.schema)?));
        Ok(())
    }

    /// Makes the columns nullable that are marked, by position.
    fn widen(&mut self, nullable: &[bool]) -> Checked<()> {
        let fields = self.schema.iter().zip(nullable.iter().chain(std::iter::repeat(&false)));
        let fields = fields.map(|((qualifier, field), widened)| {
            let nullable = field.is_nullable() || *widened;
            (qualifier.cloned(), Arc::new(field.as_ref().clone().with_nullable(nullable)))
        });
        let schema = Arc::new(DFSchema::new_with_metadata(fields.collect(), HashMap::new())?);
        if schema.inner() == self.schema.inner() {
            return Ok(());
        }
        let columns: Vec<Expr> = self.schema.columns().into_iter().map(Expr::Column).collect();
        match self.operators.last_mut() {
            Some(Operator::Project(last)) => last.schema = Arc::clone(schema.inner()),
            _ => self
                .operators
                .push(Operator::Project(Projection { expressions: lower(&columns, &self.schema)?, schema: Arc::clone(schema.inner()) })),
        }
        self.schema = schema;
        Ok(())
    }

    /// Gives the columns the names that they have in `to`, whose columns stand for those of `from`, one by one.
    fn rename(&mut self, from: &DFSchema, to: &DFSchema) -> Checked<()> {
        let mut names: Vec<(Option<TableReference>, FieldRef)> =
            self.schema.iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field))).collect();
        for (old, new) in from.iter().zip(to.iter()) {
            if let Some(index) = self.schema.maybe_index_of_column(&Reference::from(old)) {
                names[index].0 = new.0.cloned();
            }
        }
        self.schema = Arc::new(DFSchema::new_with_metadata(names, HashMap::new())?);
        Ok(())
    }
}

/// The input column that an expression is, if it is nothing more.
fn column_index(expression: &Arc<dyn datafusion_physical_expr::PhysicalExpr>) -> Option<usize> {
    let expression: &dyn std::any::Any = expression.as_ref();
    expression.downcast_ref::<datafusion_physical_expr::expressions::Column>().map(|column| column.index())
}

/// The schema that expressions see: the input, then what they ask of the epoch.
pub(crate) fn evaluation_schema(input: &SchemaRef, expressions: &Expressions) -> Schema {
    let mut fields: Vec<FieldRef> = input.fields().iter().cloned().collect();
    fields.extend(expressions.needs_now.then(streamshield_engine::plan::now_field));
    fields.extend(expressions.needs_seed.then(streamshield_engine::plan::seed_field));
    Schema::new(fields)
}

/// Collects the stages of a job.
pub(crate) struct Graph<'a> {
    pub settings: &'a BTreeMap<String, String>,
    pub late_rows: bool,
    pub stages: Vec<StagePlan>,
    pub exchanges: Vec<ExchangePlan>,
    pub warnings: Vec<String>,
    pub operators: u16,
    /// Whether an aggregation is above: only there lateness counts.
    pub aggregating: bool,
}

impl Graph<'_> {
    /// Adds the stages of one `INSERT INTO`; the plan's columns are the sink's.
    pub fn insert(&mut self, plan: &LogicalPlan, table: &Table) -> Checked<()> {
        let columns: Vec<Column> = crate::insert::written_columns(&table.definition).cloned().collect();
        for mut branch in self.branches(plan, None)? {
            let expressions: Vec<Expr> = plan.schema().columns().into_iter().map(Expr::Column).collect();
            let outputs: Vec<_> = columns.iter().map(|column| (None, column.field.name().clone())).collect();
            branch.project(&expressions, &outputs)?;
            let fields: Vec<FieldRef> = branch.schema.fields().iter().cloned().collect();
            let sink = SinkTable { table: table.definition.clone(), columns: columns.clone(), schema: Arc::new(Schema::new(fields)) };
            self.push_stage(branch, StageOutput::Sink(Box::new(sink)));
        }
        Ok(())
    }

    pub fn push_stage(&mut self, branch: Branch, output: StageOutput) -> StageId {
        let id = StageId(self.stages.len() as u32);
        if let StageInput::Exchange(exchange) = branch.input {
            self.exchanges[exchange.0 as usize].downstream = id;
        }
        if let StageOutput::Exchange(exchange) = output {
            self.exchanges[exchange.0 as usize].upstream.push(id);
        }
        let name = format!("{}-{}", branch.name, id.0 + 1);
        self.stages.push(StagePlan { id, name, input: branch.input, operators: branch.operators, output });
        id
    }

    /// Sends branches of one schema through a new exchange; gives the branch behind it.
    pub fn exchange(&mut self, branches: Vec<Branch>, keys: Vec<usize>, name: &str) -> Checked<Branch> {
        let id = ExchangeId(self.exchanges.len() as u32);
        let first = branches.first().ok_or_else(|| Fault::new("nothing to exchange"))?;
        let schema = Arc::clone(&first.schema);
        let partitions = keys.is_empty().then_some(1);
        self.exchanges.push(ExchangePlan {
            id,
            name: format!("{name}-{}", id.0 + 1),
            schema: Arc::clone(schema.inner()),
            keys,
            upstream: Vec::new(),
            // Known once the stage behind the exchange is complete.
            downstream: StageId(u32::MAX),
            partitions,
        });
        for branch in branches {
            self.push_stage(branch, StageOutput::Exchange(id));
        }
        Ok(Branch { name: name.to_owned(), input: StageInput::Exchange(id), operators: Vec::new(), schema })
    }

    pub fn branches(&mut self, plan: &LogicalPlan, clock: Option<Clock>) -> Checked<Vec<Branch>> {
        match plan {
            LogicalPlan::Projection(projection) => self.projection(projection, clock),
            LogicalPlan::Filter(filter) => {
                let mut branches = self.branches(&filter.input, clock)?;
                for branch in &mut branches {
                    branch.filter(&filter.predicate)?;
                }
                Ok(branches)
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let mut branches = self.branches(&alias.input, clock)?;
                for branch in &mut branches {
                    branch.rename(alias.input.schema(), &alias.schema)?;
                }
                Ok(branches)
            }
            LogicalPlan::TableScan(scan) => Ok(vec![self.scan(scan, clock)?]),
            LogicalPlan::Union(union) => self.union(union, clock),
            LogicalPlan::Aggregate(aggregate) => Ok(vec![aggregate::plan(self, aggregate)?]),
            LogicalPlan::Extension(extension) => {
                let node = extension.node.as_any();
                match (node.downcast_ref::<WindowNode>(), node.downcast_ref::<UnnestNode>()) {
                    (Some(node), _) => self.windows(node),
                    (_, Some(node)) => self.unnest(node, clock),
                    _ => Err(Fault::new(format!("{} has no place in a job", extension.node.name()))),
                }
            }
            other => Err(refuse(other)),
        }
    }

    fn projection(&mut self, projection: &LogicalProjection, clock: Option<Clock>) -> Checked<Vec<Branch>> {
        let mut branches = self.branches(&projection.input, clock)?;
        let outputs: Vec<_> = projection.schema.iter().map(|(qualifier, field)| (qualifier.cloned(), field.name().clone())).collect();
        for branch in &mut branches {
            branch.project(&projection.expr, &outputs)?;
        }
        Ok(branches)
    }

    fn union(&mut self, union: &Union, clock: Option<Clock>) -> Checked<Vec<Branch>> {
        let mut all = Vec::new();
        for input in &union.inputs {
            for mut branch in self.branches(input, clock)? {
                let columns = input.schema().columns();
                let casts = columns.into_iter().zip(union.schema.fields());
                let expressions: Vec<Expr> =
                    casts.map(|(column, field)| cast_to(Expr::Column(column), input.schema(), field.data_type())).collect();
                let outputs: Vec<_> = union.schema.iter().map(|(qualifier, field)| (qualifier.cloned(), field.name().clone())).collect();
                branch.project(&expressions, &outputs)?;
                all.push(branch);
            }
        }
        // A branch that can't give a null may meet one that can in the same exchange, which has one schema.
        let is_nullable = |index: usize| all.iter().any(|branch: &Branch| branch.schema.field(index).is_nullable());
        let nullable: Vec<bool> = (0..union.schema.fields().len()).map(is_nullable).collect();
        for branch in &mut all {
            branch.widen(&nullable)?;
        }
        Ok(all)
    }

    fn scan(&mut self, scan: &TableScan, clock: Option<Clock>) -> Checked<Branch> {
        let table =
            Table::of(scan.source.as_ref()).ok_or_else(|| Fault::new(format!("`{}` is not a table of this job", scan.table_name)))?;
        let all = 0..table.definition.columns.len();
        let mut read: Vec<usize> = scan.projection.clone().unwrap_or_else(|| all.collect());
        if read.is_empty() {
            // A batch without columns has no rows to count: take the column that is cheapest to decode.
            read.push(cheapest_column(table)?);
        }
        let watermark = table.watermark.as_ref().filter(|_| clock == Some(Clock::EventTime));
        if let Some(watermark) = watermark {
            let wanted = column_indices(table, &watermark.expression)?;
            for column in std::iter::once(watermark.column).chain(wanted) {
                if !read.contains(&column) {
                    read.push(column);
                }
            }
        }
        let (columns, input_schema) = stored_columns(table, &read)?;
        let project = scan_projection(table, &scan.table_name, &read, &input_schema)?;
        let mut schema = scan_schema(&scan.table_name, &project.schema)?;
        let watermark = match (clock, watermark) {
            (Some(Clock::ProcessingTime { granularity_ms }), _) => Some(WatermarkPlan::ProcessingTime { granularity_ms }),
            (Some(Clock::EventTime), Some(watermark)) => Some(WatermarkPlan::EventTime {
                time_column: read.iter().position(|column| *column == watermark.column).unwrap_or_default(),
                expression: lower(std::slice::from_ref(&watermark.expression), &schema)?,
                idle_timeout_ms: self.idle_timeout_ms(table)?,
            }),
            _ => None,
        };
        if watermark.is_some() {
            schema = extend(&schema, [Arc::new(Field::new(WATERMARK_COLUMN, DataType::Int64, false))])?;
        }
        let source = SourceScan { table: table.definition.clone(), columns, input_schema, project, watermark };
        Ok(Branch {
            name: stage_name(&table.definition.name),
            input: StageInput::Source(Box::new(source)),
            operators: Vec::new(),
            schema: Arc::new(schema),
        })
    }

    fn idle_timeout_ms(&self, table: &Table) -> Checked<Option<u64>> {
        let key = "scan.watermark.idle-timeout";
        let of_table = table.definition.option(key).map(|text| (text, table.place.options.get(key).copied()));
        let of_job = self.settings.get("table.exec.source.idle-timeout").map(|text| (text.as_str(), None));
        let Some((text, span)) = of_table.or(of_job) else { return Ok(None) };
        match crate::settings::duration_ms(text) {
            Some(0) => Ok(None),
            Some(ms) => Ok(Some(ms)),
            None => {
                let fault = Fault::new(format!("'{text}' is not a duration")).hint("write a number and a unit, such as '10 s' or '500 ms'");
                Err(span.map_or(fault.clone(), |span| fault.at(span)))
            }
        }
    }

    fn windows(&mut self, node: &WindowNode) -> Checked<Vec<Branch>> {
        let column = node.time_column().ok_or_else(|| Fault::new("a window's time is not a column"))?;
        let index = node.input().schema().index_of_column(column)?;
        let clock = match time::role(node.input(), index) {
            Some(TimeRole::EventTime) => Some(Clock::EventTime),
            Some(TimeRole::ProcessingTime) => Some(Clock::ProcessingTime { granularity_ms: windows::granularity_ms(node.kind()) }),
            Some(TimeRole::Window(..)) => None,
            None => return Err(Fault::new(format!("`{}` is not a time attribute", column.name))),
        };
        let mut branches = self.branches(node.input(), clock.filter(|_| self.aggregating))?;
        // Rows that went through a window before are never late; beside rows that can be, they carry the column all the same.
        let has_late = branches.iter().any(|branch| branch.hidden(WATERMARK_COLUMN).is_some());
        for branch in &mut branches {
            assign_windows(branch, column, node, has_late)?;
        }
        Ok(branches)
    }

    fn unnest(&mut self, node: &UnnestNode, clock: Option<Clock>) -> Checked<Vec<Branch>> {
        let mut branches = self.branches(node.input(), clock)?;
        for branch in &mut branches {
            let list_column = branch.index_of(&node.list_column())?;
            let kept = branch.schema.iter().enumerate().filter(|(index, _)| *index != list_column);
            let mut fields: Vec<(Option<TableReference>, FieldRef)> =
                kept.map(|(_, (qualifier, field))| (qualifier.cloned(), Arc::clone(field))).collect();
            fields.extend(node.elements().iter().map(|field| (node.qualifier().cloned(), Arc::clone(field))));
            branch.schema = Arc::new(DFSchema::new_with_metadata(fields, HashMap::new())?);
            branch.operators.push(Operator::Unnest(UnnestPlan {
                list_column,
                struct_fields: node.struct_fields,
                ordinality: node.ordinality,
                schema: branch.arrow(),
            }));
        }
        Ok(branches)
    }
}

fn assign_windows(branch: &mut Branch, time: &Reference, node: &WindowNode, has_late: bool) -> Checked<()> {
    let time_column = branch.index_of(time)?;
    let watermark_column = branch.hidden(WATERMARK_COLUMN);
    let mut appended: Vec<(FieldRef, WindowColumn)> = window_fields(branch.schema.field(time_column).data_type(), node.with_time());
    if has_late {
        appended.push((Arc::new(Field::new(LATE_COLUMN, DataType::Boolean, false)), WindowColumn::Late));
    }
    let kept = branch.schema.iter().enumerate().filter(|(index, _)| Some(*index) != watermark_column);
    let mut fields: Vec<(Option<TableReference>, FieldRef)> =
        kept.map(|(_, (qualifier, field))| (qualifier.cloned(), Arc::clone(field))).collect();
    fields.extend(appended.iter().map(|(field, _)| (None, Arc::clone(field))));
    branch.schema = Arc::new(DFSchema::new_with_metadata(fields, HashMap::new())?);
    branch.operators.push(Operator::AssignWindows(AssignWindows {
        kind: node.kind(),
        time_column,
        watermark_column,
        appended,
        schema: branch.arrow(),
    }));
    Ok(())
}

pub(crate) fn cast_to(expression: Expr, schema: &DFSchema, wanted: &DataType) -> Expr {
    match crate::lower::type_of(&expression, schema) {
        Ok(found) if found == *wanted => expression,
        _ => datafusion_expr::cast(expression, wanted.clone()),
    }
}

fn column_indices(table: &Table, expression: &Expr) -> Checked<Vec<usize>> {
    let names: BTreeSet<&str> = expression.column_refs().into_iter().map(|column| column.name.as_str()).collect();
    let columns = table.definition.columns.iter().enumerate();
    Ok(columns.filter(|(_, column)| names.contains(column.field.name().as_str())).map(|(index, _)| index).collect())
}

/// The columns that the connector has to give for `read`, in declared order.
fn stored_columns(table: &Table, read: &[usize]) -> Checked<(Vec<Column>, SchemaRef)> {
    let mut wanted = BTreeSet::new();
    for index in read {
        match &table.computed[*index] {
            Some(expression) => wanted.extend(column_indices(table, expression)?),
            None => {
                wanted.insert(*index);
            }
        }
    }
    if wanted.is_empty() {
        // Computed columns alone, such as PROCTIME(), read nothing, but a row has to be there.
        wanted.insert(cheapest_column(table)?);
    }
    let columns: Vec<Column> = wanted.into_iter().map(|index| table.definition.columns[index].clone()).collect();
    let fields: Vec<FieldRef> = columns.iter().map(|column| Arc::clone(&column.field)).collect();
    Ok((columns, Arc::new(Schema::new(fields))))
}

fn cheapest_column(table: &Table) -> Checked<usize> {
    let stored = table.definition.columns.iter().enumerate().filter(|(_, column)| column.kind != ColumnKind::Computed);
    let width = |column: &Column| column.field.data_type().primitive_width().unwrap_or(usize::MAX);
    let cheapest = stored.min_by_key(|(_, column)| (column.kind == ColumnKind::Physical, width(column)));
    cheapest.map(|(index, _)| index).ok_or_else(|| table.fault(format!("table `{}` has no column to read", table.definition.name)))
}

fn scan_schema(name: &TableReference, schema: &Schema) -> Checked<DFSchema> {
    let fields = schema.fields().iter().map(|field| (Some(name.clone()), Arc::clone(field))).collect();
    Ok(DFSchema::new_with_metadata(fields, HashMap::new())?)
}

fn scan_projection(table: &Table, name: &TableReference, read: &[usize], input: &SchemaRef) -> Checked<Projection> {
    let schema = scan_schema(name, input)?;
    let expressions: Vec<Expr> = read
        .iter()
        .map(|index| match &table.computed[*index] {
            Some(expression) => expression.clone(),
            None => Expr::Column(Reference::new(Some(name.clone()), table.definition.columns[*index].field.name())),
        })
        .collect();
    let fields: Vec<FieldRef> = read.iter().map(|index| Arc::clone(&table.definition.columns[*index].field)).collect();
    Ok(Projection { expressions: lower(&expressions, &schema)?, schema: Arc::new(Schema::new(fields)) })
}

/// Topic names take lower-case letters, digits and dashes.
fn stage_name(table: &str) -> String {
    let name: String = table.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let name = name.trim_matches('-').chars().take(40).collect::<String>();
    if name.is_empty() { "table".into() } else { name }
}

/// What no stage can do yet.
fn refuse(plan: &LogicalPlan) -> Fault {
    match plan {
        LogicalPlan::Join(_) => Fault::unsupported("a join", "only CROSS JOIN UNNEST(array) is"),
        LogicalPlan::Window(_) => Fault::unsupported("an OVER window", "use a window table function with GROUP BY"),
        LogicalPlan::Sort(_) => Fault::unsupported("ORDER BY", "a stream has no end to sort at"),
        LogicalPlan::Limit(_) => Fault::unsupported("LIMIT", "bound the source instead, such as with 'scan.bounded.mode'"),
        LogicalPlan::Distinct(_) => Fault::unsupported("SELECT DISTINCT without a window", "group by the columns and a window"),
        LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) => Fault::unsupported("a query without a table", "read from a table"),
        LogicalPlan::Subquery(_) => Fault::unsupported("a subquery in an expression", ""),
        LogicalPlan::RecursiveQuery(_) => Fault::unsupported("WITH RECURSIVE", ""),
        other => Fault::unsupported(format!("`{}`", other.display()), ""),
    }
}

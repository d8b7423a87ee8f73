//! The tables, views and functions of one job, as DataFusion's planner asks for them.
//!
//! A table's schema holds all of its columns in declared order, computed ones included: the scan evaluates them. A view is its logical
//! plan, put in wherever it is read.

use crate::ddl::{ColumnText, ColumnTextKind, CreateTable};
use crate::error::{Checked, Fault, nearest};
use crate::functions::Functions;
use crate::time::TimeRole;
use crate::types::{FlinkTypes, words};
use crate::{analyze, guard, numbers, rewrite, time, unnest};
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion_common::config::ConfigOptions;
use datafusion_common::{DataFusionError, TableReference};
use datafusion_expr::planner::{ContextProvider, ExprPlanner, RelationPlanner, TypePlanner};
use datafusion_expr::{AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, LogicalPlanBuilder, Projection, ScalarUDF, TableSource, WindowUDF};
use datafusion_sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use sqlparser::ast;
use sqlparser::tokenizer::Span;
use std::any::Any;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use streamshield_core::ports::Connectors;
use streamshield_core::table::{Column, ColumnKind, OptionError, TableDefinition};

/// One `CREATE TABLE`, understood.
#[derive(Debug)]
pub(crate) struct Table {
    pub definition: TableDefinition,
    schema: SchemaRef,
    /// Per column its expression over the other columns, if computed.
    pub computed: Vec<Option<Expr>>,
    pub watermark: Option<Watermark>,
    /// Where its definition stands.
    pub place: TablePlace,
}

/// `WATERMARK FOR column AS expression`.
#[derive(Debug)]
pub(crate) struct Watermark {
    pub column: usize,
    pub expression: Expr,
}

#[derive(Debug, Default)]
pub(crate) struct TablePlace {
    pub name: Option<Span>,
    pub options: BTreeMap<String, Span>,
}

const BROKEN: &str = "there are errors in the definition";

/// Does the error only follow from one that is told elsewhere?
pub(crate) fn is_consequence(fault: &Fault) -> bool {
    fault.message.starts_with(BROKEN)
}

impl Table {
    pub fn of(source: &dyn TableSource) -> Option<&Table> {
        (source as &dyn Any).downcast_ref()
    }

    pub fn role(&self, column: usize) -> Option<TimeRole> {
        if self.watermark.as_ref().is_some_and(|watermark| watermark.column == column) {
            return Some(TimeRole::EventTime);
        }
        let expression = self.computed.get(column)?.as_ref()?;
        time::expression_role(expression, &LogicalPlanBuilder::empty(false).build().ok()?)
    }
}

impl TableSource for Table {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

struct View {
    plan: LogicalPlan,
}

impl TableSource for View {
    fn schema(&self) -> SchemaRef {
        Arc::clone(self.plan.schema().inner())
    }
    fn get_logical_plan(&self) -> Option<Cow<'_, LogicalPlan>> {
        Some(Cow::Borrowed(&self.plan))
    }
}

pub(crate) struct Catalog {
    pub tables: BTreeMap<String, Arc<Table>>,
    views: BTreeMap<String, Arc<View>>,
    /// Names whose definition is wrong: that they are missing elsewhere is no news.
    broken: BTreeSet<String>,
    pub functions: Functions,
    pub options: ConfigOptions,
    expression_planners: Vec<Arc<dyn ExprPlanner>>,
    relation_planners: Vec<Arc<dyn RelationPlanner>>,
}

impl Catalog {
    pub fn new() -> Self {
        let mut options = ConfigOptions::default();
        options.sql_parser.enable_ident_normalization = false;
        options.sql_parser.map_string_types_to_utf8view = false;
        options.sql_parser.collect_spans = true;
        Catalog {
            tables: BTreeMap::new(),
            views: BTreeMap::new(),
            broken: BTreeSet::new(),
            functions: Functions::new(),
            options,
            expression_planners: vec![
                Arc::new(crate::functions::decimals::LongProducts),
                Arc::new(datafusion_functions::core::planner::CoreFunctionPlanner::default()),
                Arc::new(datafusion_functions_nested::planner::NestedFunctionPlanner),
                Arc::new(datafusion_functions_nested::planner::FieldAccessPlanner),
                Arc::new(datafusion_functions::datetime::planner::DatetimeFunctionPlanner),
                Arc::new(datafusion_functions::unicode::planner::UnicodeFunctionPlanner),
                Arc::new(datafusion_functions_aggregate::planner::AggregateFunctionPlanner),
            ],
            relation_planners: vec![Arc::new(crate::windows::Relations)],
        }
    }

    pub fn parser_options() -> ParserOptions {
        ParserOptions::new()
            .with_enable_ident_normalization(false)
            .with_map_string_types_to_utf8view(false)
            .with_parse_float_as_decimal(true)
            .with_support_varchar_with_length(true)
            .with_collect_spans(true)
    }

    /// The plan of a query with Flink's types, before any optimization.
    pub fn query(&self, mut query: ast::Query) -> Checked<LogicalPlan> {
        unnest::fold(&mut query);
        rewrite::rewrite(&mut query);
        let planner = SqlToRel::new_with_options(self, Self::parser_options());
        let plan = planner.sql_statement_to_plan(ast::Statement::Query(Box::new(query)))?;
        numbers::flink_results(plan, &self.functions)
    }

    fn is_defined(&self, name: &str) -> bool {
        self.tables.contains_key(name) || self.views.contains_key(name)
    }

    pub fn check_new(&self, name: &ast::Ident) -> Checked<()> {
        guard::check_name(name)?;
        if self.is_defined(&name.value) {
            return Err(Fault::new(format!("`{}` is defined twice", name.value)).at(name.span));
        }
        Ok(())
    }

    pub fn add_view(&mut self, name: &str, plan: LogicalPlan) {
        self.views.insert(name.to_owned(), Arc::new(View { plan }));
    }

    pub fn add_broken(&mut self, name: &str) {
        self.broken.insert(name.to_owned());
    }

    /// The error for a name that is neither table nor view.
    pub fn unknown_table(&self, name: &str) -> Fault {
        if self.broken.contains(name) {
            return Fault::new(format!("{BROKEN} of `{name}`"));
        }
        let names = self.tables.keys().chain(self.views.keys()).map(String::as_str);
        let fault = Fault::new(format!("there is no table or view `{name}`"));
        match nearest(name, names) {
            Some(near) => fault.hint(format!("did you mean `{near}`? Names are case-sensitive")),
            None => fault.hint("define it with CREATE TABLE before it is used"),
        }
    }

    /// Defines a table; what is wrong with it is added to `faults`, and as much as can be is defined all the same.
    pub fn add_table(&mut self, text: &CreateTable, connectors: &Connectors, faults: &mut Vec<Fault>) {
        if let Err(fault) = self.check_new(&text.name) {
            faults.push(fault);
            return;
        }
        let place = TablePlace {
            name: Some(text.name.span),
            options: text.options.iter().map(|option| (option.key.clone(), option.span)).collect(),
        };
        let definition = TableDefinition {
            name: text.name.value.clone(),
            columns: text.columns.iter().filter_map(stored_column).collect(),
            options: text.options.iter().map(|option| (option.key.clone(), option.value.clone())).collect(),
            primary_key: text.primary_key.iter().map(|name| name.value.clone()).collect(),
        };
        let table = match self.build_table(text, definition, place, faults) {
            Ok(table) => table,
            Err(fault) => {
                faults.push(fault.or_at(text.span));
                self.add_broken(&text.name.value);
                return;
            }
        };
        check_connector(&table, text, connectors, faults);
        self.tables.insert(table.definition.name.clone(), Arc::new(table));
    }

    fn build_table(
        &self,
        text: &CreateTable,
        mut definition: TableDefinition,
        place: TablePlace,
        faults: &mut Vec<Fault>,
    ) -> Checked<Table> {
        // Computed columns see the stored ones only, as in Flink.
        let stored = Arc::new(bare_table(&definition));
        let (mut columns, mut computed) = (Vec::new(), Vec::new());
        for column in &text.columns {
            let ColumnTextKind::Computed(expression) = &column.kind else {
                columns.extend(stored_column(column));
                computed.push(None);
                continue;
            };
            match self.expression(expression, &definition.name, stored.clone()) {
                Ok((expression, field)) => {
                    let field = Arc::new(Field::new(&column.name.value, field.data_type().clone(), field.is_nullable()));
                    columns.push(Column { field, kind: ColumnKind::Computed });
                    computed.push(Some(expression));
                }
                Err(fault) => faults.push(fault.or_at(column.name.span)),
            }
        }
        definition.columns = columns;
        check_primary_key(text, &definition, faults);
        let mut table = bare_table(&definition);
        table.computed = computed;
        table.place = place;
        if let Some(watermark) = &text.watermark {
            match self.watermark(watermark, &definition) {
                Ok(watermark) => table.watermark = Some(watermark),
                Err(fault) => faults.push(fault.or_at(watermark.span)),
            }
        }
        Ok(table)
    }

    fn watermark(&self, text: &crate::ddl::WatermarkText, definition: &TableDefinition) -> Checked<Watermark> {
        let names = || definition.columns.iter().map(|column| column.field.name().as_str());
        let Some(column) = names().position(|name| name == text.column.value) else {
            let fault = Fault::new(format!("there is no column `{}` for the watermark", text.column.value)).at(text.column.span);
            return Err(match nearest(&text.column.value, names()) {
                Some(near) => fault.hint(format!("did you mean `{near}`? Names are case-sensitive")),
                None => fault,
            });
        };
        let data_type = definition.columns[column].field.data_type();
        if !matches!(data_type, DataType::Timestamp(..)) {
            return Err(Fault::new(format!("the watermark's column `{}` is {}, not a timestamp", text.column.value, words(data_type)))
                .hint("add a computed column, such as `ts AS TO_TIMESTAMP_LTZ(millis, 3)`, and declare the watermark for it")
                .at(text.column.span));
        }
        let (expression, field) = self.expression(&text.expression, &definition.name, Arc::new(bare_table(definition)))?;
        if !matches!(field.data_type(), DataType::Timestamp(..)) {
            return Err(Fault::new(format!("the watermark is {}, not a timestamp", words(field.data_type()))));
        }
        if expression.is_volatile() {
            return Err(
                Fault::new("a watermark may not depend on the clock").hint("use the event time column, such as `ts - INTERVAL '5' SECOND`")
            );
        }
        Ok(Watermark { column, expression })
    }

    /// Plans one expression over a table.
    fn expression(&self, expression: &ast::Expr, table: &str, source: Arc<dyn TableSource>) -> Checked<(Expr, FieldRef)> {
        let input = LogicalPlanBuilder::scan(TableReference::bare(table), source, None)?.build()?;
        let planner = SqlToRel::new_with_options(self, Self::parser_options());
        let mut expression = expression.clone();
        rewrite::rewrite_expression(&mut expression);
        let planned = planner.sql_to_expr(expression, input.schema(), &mut PlannerContext::new())?;
        let plan = LogicalPlan::Projection(Projection::try_new(vec![planned.alias("value")], Arc::new(input))?);
        let plan = numbers::flink_results(plan, &self.functions)?;
        match analyze::analyze(plan, &self.options)? {
            LogicalPlan::Projection(projection) if projection.expr.len() == 1 => {
                let field = Arc::clone(projection.schema.field(0));
                let expression = projection.expr.into_iter().next().map(Expr::unalias_nested);
                expression.map(|expression| (expression.data, field)).ok_or_else(|| Fault::new("no expression"))
            }
            _ => Err(Fault::new("only an expression over this table's columns can stand here")),
        }
    }
}

fn bare_table(definition: &TableDefinition) -> Table {
    let fields: Vec<_> = definition.columns.iter().map(|column| Arc::clone(&column.field)).collect();
    Table {
        definition: definition.clone(),
        schema: Arc::new(Schema::new(fields)),
        computed: vec![None; definition.columns.len()],
        watermark: None,
        place: TablePlace::default(),
    }
}

fn stored_column(column: &ColumnText) -> Option<Column> {
    let (data_type, nullable, kind) = match &column.kind {
        ColumnTextKind::Physical { data_type, nullable } => (data_type, *nullable, ColumnKind::Physical),
        ColumnTextKind::Metadata { data_type, nullable, key, is_virtual } => {
            (data_type, *nullable, ColumnKind::Metadata { key: key.clone(), is_virtual: *is_virtual })
        }
        ColumnTextKind::Computed(_) => return None,
    };
    Some(Column { field: Arc::new(Field::new(&column.name.value, data_type.clone(), nullable)), kind })
}

fn check_primary_key(text: &CreateTable, definition: &TableDefinition, faults: &mut Vec<Fault>) {
    for name in &text.primary_key {
        match definition.columns.iter().find(|column| *column.field.name() == name.value) {
            Some(column) if column.kind == ColumnKind::Physical => {}
            Some(column) => {
                let kind = if column.kind == ColumnKind::Computed { "computed" } else { "metadata" };
                faults.push(Fault::new(format!("the {kind} column `{}` cannot be part of the primary key", name.value)).at(name.span))
            }
            None => faults.push(Fault::new(format!("there is no column `{}` for the primary key", name.value)).at(name.span)),
        }
    }
}

/// The name must be known here; whether the options suit a source or a sink is asked once the table is used as one.
fn check_connector(table: &Table, text: &CreateTable, connectors: &Connectors, faults: &mut Vec<Fault>) {
    let names = || connectors.sources.keys().chain(connectors.sinks.keys()).copied();
    let Some(option) = text.options.iter().find(|option| option.key == "connector") else {
        let mut known: Vec<_> = names().collect();
        known.sort_unstable();
        known.dedup();
        faults.push(
            Fault::new(format!("table `{}` has no option 'connector'", table.definition.name))
                .hint(format!("WITH ('connector' = '…'), one of: {}", known.join(", ")))
                .at(text.name.span),
        );
        return;
    };
    if names().any(|name| name == option.value) {
        return;
    }
    let fault = match option.value.as_str() {
        "upsert-kafka" | "kafka-cdc" | "mysql-cdc" | "postgres-cdc" | "jdbc" => {
            Fault::unsupported(format!("the connector '{}'", option.value), "streams are append-only: use 'kafka'")
        }
        _ => match nearest(&option.value, names()) {
            Some(near) => Fault::new(format!("there is no connector '{}'", option.value)).hint(format!("did you mean '{near}'?")),
            None => Fault::new(format!("there is no connector '{}'", option.value)),
        },
    };
    faults.push(fault.at(option.span));
}

impl Table {
    /// Places what a connector says about the options.
    pub fn option_fault(&self, error: OptionError) -> Fault {
        let fault = Fault::new(error.message).hint(error.hint.unwrap_or_default());
        match self.place.options.get(&error.key).copied().or(self.place.name) {
            Some(span) => fault.at(span),
            None => fault,
        }
    }

    pub fn fault(&self, message: String) -> Fault {
        let fault = Fault::new(message);
        match self.place.name {
            Some(span) => fault.at(span),
            None => fault,
        }
    }
}

impl ContextProvider for Catalog {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>, DataFusionError> {
        if name.schema().is_some() {
            return Err(Fault::unsupported("a catalog or database in a name", "write the table's name alone").into());
        }
        if let Some(table) = self.tables.get(name.table()) {
            return Ok(Arc::clone(table) as Arc<dyn TableSource>);
        }
        match self.views.get(name.table()) {
            Some(view) => Ok(Arc::clone(view) as Arc<dyn TableSource>),
            None => Err(self.unknown_table(name.table()).into()),
        }
    }
    fn get_table_function_source(&self, name: &str, _: Vec<Expr>) -> Result<Arc<dyn TableSource>, DataFusionError> {
        Err(Fault::new(format!("there is no table function `{name}`")).hint("there are: TUMBLE, HOP, CUMULATE, UNNEST").into())
    }
    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.expression_planners
    }
    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        &self.relation_planners
    }
    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::new(FlinkTypes))
    }
    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.functions.scalars.get(&name.to_lowercase()).cloned()
    }
    fn get_higher_order_meta(&self, _: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }
    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.functions.aggregates.get(&name.to_lowercase()).cloned()
    }
    fn get_window_meta(&self, _: &str) -> Option<Arc<WindowUDF>> {
        None
    }
    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }
    fn options(&self) -> &ConfigOptions {
        &self.options
    }
    fn udf_names(&self) -> Vec<String> {
        self.functions.scalars.keys().filter(|name| !name.starts_with("__")).cloned().collect()
    }
    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn udaf_names(&self) -> Vec<String> {
        self.functions.aggregates.keys().cloned().collect()
    }
    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}

//! Flink SQL text → job graph.
//!
//! ```text
//! text → dialect (pieces) → statements, ddl → catalog ─┐
//!                              query → SqlToRel + windows → insert → fingerprint
//!                                                   → analyze, optimize → graph → JobPlan
//! ```
//! Everything that is wrong is an [`SqlError`] with its place in the text; as many as can be found at once are given.
//! What Flink has and this release lacks is refused with a way around where there is one, never ignored.

mod aggregate;
mod analyze;
mod catalog;
mod ddl;
mod dialect;
mod error;
pub mod explain;
mod fine_times;
mod fingerprint;
mod functions;
mod graph;
mod guard;
mod insert;
mod legacy;
mod lower;
mod numbers;
mod rewrite;
mod settings;
mod statements;
mod time;
mod types;
mod unnest;
mod windows;

#[cfg(test)]
mod tests;

pub use error::SqlError;

use catalog::{Catalog, Table};
use datafusion_expr::LogicalPlan;
use error::{Fault, Text};
use graph::Graph;
use statements::{InsertInto, Statement};
use std::collections::BTreeMap;
use std::sync::Arc;
use streamshield_core::ports::Connectors;
use streamshield_core::table::{ColumnKind, TableDefinition};
use streamshield_engine::plan::JobPlan;

/// What a plan depends on besides the SQL text.
pub struct PlanOptions<'a> {
    pub job_name: &'a str,
    pub connectors: &'a Connectors,
    pub late_rows_to_topic: bool,
    /// Part of the fingerprint.
    pub bad_record_policy: &'a str,
}

/// A planned text.
#[derive(Clone, Debug)]
pub struct Planned {
    pub plan: JobPlan,
    /// `SET 'key' = 'value'`.
    pub settings: BTreeMap<String, String>,
    pub tables: Vec<TableDefinition>,
}

/// Plans a job's text.
pub fn plan(sql: &str, options: &PlanOptions) -> Result<Planned, Vec<SqlError>> {
    let text = Text::new(sql);
    let locate = |faults: Vec<Fault>| {
        let mut errors: Vec<SqlError> = faults.into_iter().map(|fault| text.locate(fault)).collect();
        errors.sort_by_key(|error| error.span.as_ref().map_or(0, |span| span.start));
        errors.dedup();
        errors
    };
    let pieces = dialect::split(sql).map_err(locate)?;
    let mut job = Job { options, catalog: Catalog::new(), settings: BTreeMap::new(), inserts: Vec::new(), faults: Vec::new() };
    for piece in &pieces {
        match statements::parse(piece) {
            Ok(statement) => job.add(statement),
            Err(fault) => job.faults.push(fault.or_at(piece.span)),
        }
    }
    if job.inserts.is_empty() && job.faults.is_empty() {
        job.faults.push(Fault::new("the job has no INSERT INTO").hint("write INSERT INTO a table SELECT …"));
    }
    job.plan().map_err(locate)
}

/// What has been read so far.
struct Job<'a> {
    options: &'a PlanOptions<'a>,
    catalog: Catalog,
    settings: BTreeMap<String, String>,
    inserts: Vec<(InsertInto, Arc<Table>, LogicalPlan)>,
    faults: Vec<Fault>,
}

impl Job<'_> {
    fn add(&mut self, statement: Statement) {
        match statement {
            Statement::CreateTable(table) => self.catalog.add_table(&table, self.options.connectors, &mut self.faults),
            Statement::CreateView(view) => {
                if let Err(fault) = self.add_view(&view) {
                    self.faults.push(fault.or_at(view.span));
                }
            }
            Statement::Insert(insert) => self.add_insert(insert),
            Statement::Set { key, value } => {
                self.settings.insert(key, value);
            }
        }
    }

    fn add_view(&mut self, view: &statements::CreateView) -> Result<(), Fault> {
        self.catalog.check_new(&view.name)?;
        view.columns.iter().try_for_each(guard::check_name)?;
        let Some(plan) = self.query(view.query.clone(), view.span) else {
            self.catalog.add_broken(&view.name.value);
            return Ok(());
        };
        let plan = if view.columns.is_empty() { plan } else { rename_columns(plan, view)? };
        self.catalog.add_view(&view.name.value, plan);
        Ok(())
    }

    /// Plans a query; what is wrong with it is noted.
    fn query(&mut self, mut query: sqlparser::ast::Query, span: sqlparser::tokenizer::Span) -> Option<LogicalPlan> {
        let mut faults = guard::check(&query);
        faults.extend(legacy::rewrite(&mut query));
        if !faults.is_empty() {
            self.faults.extend(faults);
            return None;
        }
        match self.catalog.query(query) {
            Ok(plan) => Some(plan),
            Err(fault) => {
                self.faults.push(fault.or_at(span));
                None
            }
        }
    }

    fn add_insert(&mut self, insert: InsertInto) {
        let table = insert::sink_table(&self.catalog, &insert, self.options.connectors);
        let mut query = insert.query.clone();
        insert::name_apart(&mut query.body);
        let query = self.query(query, insert.span);
        match (query, table) {
            (Some(query), Ok(table)) => match insert::fit(query, &insert, &table, &self.catalog.functions) {
                Ok(plan) => self.inserts.push((insert, table, plan)),
                Err(fault) => self.faults.push(fault.or_at(insert.span)),
            },
            (_, table) => self.faults.extend(table.err().unwrap_or_default()),
        }
    }

    fn plan(mut self) -> Result<Planned, Vec<Fault>> {
        let mut faults = std::mem::take(&mut self.faults);
        self.check_sources(&mut faults);
        let fingerprint = fingerprint::of(self.inserts.iter().map(|(_, table, plan)| (table.as_ref(), plan)), self.options);
        let mut graph = Graph {
            settings: &self.settings,
            late_rows: self.options.late_rows_to_topic,
            stages: Vec::new(),
            exchanges: Vec::new(),
            warnings: Vec::new(),
            operators: 0,
            aggregating: false,
        };
        for (insert, table, plan) in &self.inserts {
            let optimized =
                analyze::analyze(plan.clone(), &self.catalog.options).and_then(|plan| analyze::optimize(plan, &self.catalog.options));
            if let Err(fault) = optimized.and_then(|plan| graph.insert(&plan, table)) {
                faults.push(fault.or_at(insert.span));
            }
        }
        if !faults.is_empty() {
            // What only follows from another error says nothing new.
            let told = faults.iter().filter(|fault| !catalog::is_consequence(fault)).cloned().collect::<Vec<_>>();
            return Err(if told.is_empty() { faults } else { told });
        }
        let plan = JobPlan { stages: graph.stages, exchanges: graph.exchanges, fingerprint, warnings: graph.warnings };
        let tables = self.catalog.tables.values().map(|table| table.definition.clone()).collect();
        Ok(Planned { plan, settings: self.settings, tables })
    }

    /// Asks the connectors about every table that is read.
    fn check_sources(&self, faults: &mut Vec<Fault>) {
        let mut read: BTreeMap<&str, &Arc<Table>> = BTreeMap::new();
        for (_, _, plan) in &self.inserts {
            for name in fingerprint::tables_read(plan) {
                if let Some((name, table)) = self.catalog.tables.get_key_value(&name) {
                    read.insert(name, table);
                }
            }
        }
        for table in read.into_values() {
            let connector = table.definition.connector();
            match self.options.connectors.sources.get(connector) {
                Some(source) => {
                    faults.extend(source.check(&table.definition).into_iter().map(|error| table.option_fault(error)));
                    faults.extend(unknown_metadata(table, source.as_ref()));
                }
                None if self.options.connectors.sinks.contains_key(connector) => {
                    faults.push(table.fault(format!("table `{}` cannot be read: '{connector}' is a sink only", table.definition.name)));
                }
                None => {}
            }
        }
    }
}

fn unknown_metadata(table: &Table, source: &dyn streamshield_core::ports::source::SourceConnector) -> Vec<Fault> {
    let mut faults = Vec::new();
    for column in &table.definition.columns {
        let ColumnKind::Metadata { key, .. } = &column.kind else { continue };
        let (name, declared) = (column.field.name(), column.field.data_type());
        match source.metadata_type(key) {
            None => faults.push(table.fault(format!("'{}' has no metadata '{key}' for column `{name}`", source.name()))),
            Some(found) if found != *declared && !types::casts_implicitly(&found, declared) => {
                let hint = format!("declare `{name}` as {}", types::words(&found));
                faults
                    .push(table.fault(format!("metadata '{key}' is {}, not {}", types::words(&found), types::words(declared))).hint(hint));
            }
            Some(_) => {}
        }
    }
    faults
}

fn rename_columns(plan: LogicalPlan, view: &statements::CreateView) -> Result<LogicalPlan, Fault> {
    let given = plan.schema().fields().len();
    if given != view.columns.len() {
        return Err(Fault::new(format!("the view names {} columns, its query gives {given}", view.columns.len())).at(view.name.span));
    }
    let columns = plan.schema().columns().into_iter().zip(&view.columns);
    let expressions = columns.map(|(column, name)| datafusion_expr::Expr::Column(column).alias(&name.value)).collect();
    Ok(LogicalPlan::Projection(datafusion_expr::Projection::try_new(expressions, Arc::new(plan))?))
}

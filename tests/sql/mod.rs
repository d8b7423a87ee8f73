//! SQL: each query of the `.slt` files runs as a bounded job of the real binary, and as a plain DataFusion batch over the same input.
//!
//! ```text
//! tests/sql/*.slt ──┬── streamshield: input topics → `streamshield run` → committed output ─┐
//!                   └── DataFusion:   the same rows as tables, windows as plain SQL ────────┴─ the rows in the file
//! ```
//! A file is written for both, and no query is left out: [`batch`] says in DataFusion's words what only Flink has. Before a query a
//! `CREATE TABLE sink (…)` names its result's columns. [`oracle`] runs the same queries again over some thousand random rows and compares the
//! engines with each other.
//!
//! `STREAMSHIELD_UPDATE_SLT=1` writes DataFusion's answers into the files: read the difference before you commit it.

mod batch;
mod fixtures;
mod oracle;
mod rows;
mod streaming;

use anyhow::{Result, ensure};
use batch::Batch;
use sqllogictest::{DB, DBOutput, DefaultColumnType};
use std::path::PathBuf;
use streaming::Streaming;
use streamshield_tests::support::broker::Broker;
use streamshield_tests::support::figures::root;

/// Something that answers the queries of a file.
trait Engine {
    fn name(&self) -> &'static str;
    /// Runs a query whose result has these columns (`name TYPE, …`); each row as texts.
    fn query(&mut self, sql: &str, sink_columns: &str) -> Result<Vec<Vec<String>>>;
}

/// An engine as sqllogictest sees it.
struct Adapter<E: Engine> {
    engine: E,
    sink_columns: String,
}

/// sqllogictest wants an error type of the standard library's kind.
#[derive(Debug)]
struct Failure(anyhow::Error);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}
impl std::error::Error for Failure {}

impl<E: Engine + Send> DB for Adapter<E> {
    type Error = Failure;
    type ColumnType = DefaultColumnType;

    fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Failure> {
        let statement = sql.trim();
        if let Some(columns) = statement.strip_prefix("CREATE TABLE sink (").and_then(|rest| rest.strip_suffix(')')) {
            self.sink_columns = columns.to_string();
            return Ok(DBOutput::StatementComplete(0));
        }
        let rows = self.engine.query(statement, &self.sink_columns).map_err(Failure)?;
        let types = vec![DefaultColumnType::Any; rows.first().map_or(0, Vec::len)];
        Ok(DBOutput::Rows { types, rows })
    }

    fn engine_name(&self) -> &str {
        self.engine.name()
    }
}

fn files() -> Result<Vec<PathBuf>> {
    let folder = root().join("tests").join("sql");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "slt"))
        .collect();
    files.sort();
    ensure!(!files.is_empty(), "no .slt file found");
    Ok(files)
}

/// Runs all files on one engine and tells all failures at once.
fn run_files<E: Engine + Send + 'static>(mut engine: impl FnMut() -> Result<E>) -> Result<()> {
    let mut failures = Vec::new();
    for file in files()? {
        // One connection per file; a failure ends the file, not the run.
        let mut adapter = Some(Adapter { engine: engine()?, sink_columns: String::new() });
        let mut runner = sqllogictest::Runner::new(move || {
            let adapter = adapter.take();
            async move { adapter.ok_or_else(|| Failure(anyhow::anyhow!("a file uses one connection"))) }
        });
        if let Err(failure) = runner.run_file(&file) {
            failures.push(failure.to_string());
        }
    }
    ensure!(failures.is_empty(), "{} of the files fail:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

#[test]
fn the_files_are_right_by_datafusion() -> Result<()> {
    if std::env::var_os("STREAMSHIELD_UPDATE_SLT").is_some() {
        return update();
    }
    run_files(|| Batch::new(&fixtures::from_files()?))
}

#[test]
fn the_files_are_right_by_streamshield() -> Result<()> {
    let broker = Broker::embedded()?;
    let fixtures = fixtures::from_files()?;
    Streaming::load(&broker, "files", &fixtures)?;
    run_files(|| Streaming::new(&broker, "files", &fixtures))
}

/// Replaces expected rows by DataFusion's.
fn update() -> Result<()> {
    for file in files()? {
        let fixtures = fixtures::from_files()?;
        let mut adapter = Some(Adapter { engine: Batch::new(&fixtures)?, sink_columns: String::new() });
        let mut runner = sqllogictest::Runner::new(move || {
            let adapter = adapter.take();
            async move { adapter.ok_or_else(|| Failure(anyhow::anyhow!("a file uses one connection"))) }
        });
        let update = runner.update_test_file(
            &file,
            " ",
            sqllogictest::default_validator,
            sqllogictest::default_normalizer,
            sqllogictest::default_column_validator,
        );
        // The batch engine blocks on a runtime of its own, so that this future never waits and must not run in another runtime.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(update).as_mut().poll(&mut context) {
            std::task::Poll::Ready(result) => result.map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?,
            std::task::Poll::Pending => anyhow::bail!("{}: the update waits for something", file.display()),
        }
    }
    Ok(())
}

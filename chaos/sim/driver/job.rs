//! The job that is simulated: one pipeline without state, one with windows behind an exchange.
//!
//! ```text
//! input ─┬─ scan ─ project ──────────────────────────────────────► passed   every row, once
//!        └─ scan ─ windows ─ partial sums ─ exchange ─ merge ────► counts   per key and second: rows, sums, and which rows
//!                                                   └────────────► late     rows whose window was closed, as JSON
//! ```
//! The SQL is planned once per process: a plan is a value, and planning takes longer than simulating a second.

use crate::table::SimTables;
use std::sync::OnceLock;
use streamshield_core::ports::Connectors;
use streamshield_engine::plan::JobPlan;
use streamshield_sql::PlanOptions;

pub const JOB: &str = "sim";
pub const INPUT: &str = "input";
pub const PASSED: &str = "passed";
pub const COUNTS: &str = "counts";
/// Windows of `counts`.
pub const WINDOW_MS: i64 = 1_000;
/// How far rows may be out of order without being late.
pub const DELAY_MS: i64 = 500;

const SQL: &str = "
CREATE TABLE input (
  k BIGINT, v BIGINT, ts TIMESTAMP(3), id BIGINT METADATA VIRTUAL,
  WATERMARK FOR ts AS ts - INTERVAL '0.5' SECOND
) WITH ('connector' = 'sim', 'topic' = 'input', 'scan.watermark.idle-timeout' = '3 s');
CREATE TABLE passed (id BIGINT, k BIGINT, v BIGINT) WITH ('connector' = 'sim', 'topic' = 'passed');
CREATE TABLE counts (k BIGINT, since TIMESTAMP(3), n BIGINT, total BIGINT, ids BIGINT, most BIGINT) WITH ('connector' = 'sim', 'topic' = 'counts');
INSERT INTO passed SELECT id, k, v + 1 FROM input;
INSERT INTO counts SELECT k, window_start, COUNT(*), SUM(v), SUM(id), MAX(v)
  FROM TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY k, window_start, window_end;
";

/// The job's plan.
pub fn plan() -> &'static JobPlan {
    static PLAN: OnceLock<JobPlan> = OnceLock::new();
    PLAN.get_or_init(|| {
        let mut connectors = Connectors::default();
        SimTables::unconnected().add_to(&mut connectors);
        let options = PlanOptions { job_name: JOB, connectors: &connectors, late_rows_to_topic: true, bad_record_policy: "dead_letter" };
        streamshield_sql::plan(SQL, &options).unwrap_or_else(|errors| panic!("the job's own SQL is planned: {errors:?}")).plan
    })
}

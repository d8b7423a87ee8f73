//! Start, end, drain; the broker that goes away.

use super::{COUNTS, Stage, TIMEOUT, row};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use streamshield_tests::support::broker::Broker;
use streamshield_tests::support::http;
use streamshield_tests::support::job::BOUNDED;

/// SIGTERM: seal, commit, leave.
const DRAIN_MAX: Duration = Duration::from_secs(2);

fn bounded_count(mut stage: Stage) -> Result<()> {
    stage.send(0, &[row("a", 1, 0), row("b", 2, 500), row("a", 3, 9_999), row("a", 4, 10_000)])?;
    stage.send(1, &[row("a", 10, 1_000), row("c", 20, 25_000)])?;
    let job = stage.job(&[BOUNDED], COUNTS);
    let (run, _) = stage.runner.finish(&job, TIMEOUT)?;
    assert_eq!(stage.output()?, ["a 00:00:00 3 14", "a 00:00:10 1 4", "b 00:00:00 1 2", "c 00:00:20 1 20"]);
    let summary = run.summary()?;
    assert_eq!(summary["rows_in"], 6, "{summary}");
    assert_eq!(summary["rows_out"], 4, "{summary}");
    assert!(summary["rows_per_second"].is_number() && summary.get("p99_latency_ms").is_some(), "{summary}");
    Ok(())
}

#[test]
fn a_bounded_job_ends_with_all_windows_closed_and_code_0() -> Result<()> {
    bounded_count(Stage::new("bounded")?)
}

#[test]
fn a_bounded_job_ends_with_all_windows_closed_and_code_0_on_kafka() -> Result<()> {
    let Some(kafka) = Broker::kafka("end_to_end::lifecycle::a_bounded_job_ends_with_all_windows_closed_and_code_0_on_kafka") else {
        return Ok(());
    };
    bounded_count(Stage::on(kafka, "bounded", tempfile::tempdir()?)?)
}

#[test]
fn a_bounded_job_that_has_ended_adds_nothing_when_it_is_started_again() -> Result<()> {
    let mut stage = Stage::new("ended-twice")?;
    stage.send(0, &[row("a", 1, 0)])?;
    let job = stage.job(&[BOUNDED], COUNTS);
    stage.runner.finish(&job, TIMEOUT)?;
    stage.runner.finish(&job, TIMEOUT)?;
    assert_eq!(stage.output()?, ["a 00:00:00 1 1"]);
    Ok(())
}

#[test]
fn sigterm_drains_in_under_two_seconds_with_everything_committed() -> Result<()> {
    let mut stage = Stage::new("drain")?;
    let query = "INSERT INTO output SELECT k, ts, v, v + 0 FROM input;";
    let job = stage.job(&[], query);
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    let rows: Vec<_> = (0..20_000).map(|number| row("a", number, number)).collect();
    stage.send(0, &rows)?;
    stage.send(1, &rows)?;
    run.wait_status_at_least("records_in", 1, TIMEOUT)?;
    let (ended, took) = run.process.terminate(TIMEOUT)?;
    ensure!(ended.status.success(), "{}\n{}", ended.status, run.process.last_words());
    ensure!(took < DRAIN_MAX, "the drain took {took:?}");
    let summary = run.summary()?;
    assert_eq!(summary["rows_out"].as_u64(), Some(stage.output()?.len() as u64), "what the summary counts is what is committed");
    Ok(())
}

#[test]
fn a_broker_that_goes_away_pauses_the_job_and_nothing_is_lost() -> Result<()> {
    let (folder, log) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut stage = Stage::on(Broker::embedded_in(log.path())?, "away", folder)?;
    let job = stage.job(&[], COUNTS);
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    stage.send(0, &[row("a", 1, 0)])?;
    stage.send(1, &[row("a", 2, 0)])?;
    run.wait_status_at_least("records_in", 2, TIMEOUT)?;
    stage.broker.stop()?;
    // Longer than any pause between two tries, shorter than a transaction's time-out.
    ensure!(run.process.wait(Duration::from_secs(4)).is_none(), "the job ended:\n{}", run.process.last_words());
    let (health, _) = http::get(run.http, "/health")?;
    assert_eq!(health, 200, "a job that waits for its broker is alive");
    stage.broker.start_again()?;
    stage.send(0, &[row("a", 4, 5_000), row("a", 8, 30_000)])?;
    stage.send(1, &[row("b", 16, 30_000)])?;
    let rows = stage.wait_for_output(1).with_context(|| run.process.last_words())?;
    assert_eq!(rows, ["a 00:00:00 3 7"]);
    let (ended, _) = run.process.terminate(TIMEOUT)?;
    ensure!(ended.status.success(), "{}", run.process.last_words());
    assert_eq!(stage.output()?, ["a 00:00:00 3 7"]);
    Ok(())
}

#[test]
fn an_idle_partition_holds_nothing_back_after_its_time_out() -> Result<()> {
    let mut stage = Stage::new("idle")?;
    let job = stage.job(&[("scan.watermark.idle-timeout", "500 ms")], COUNTS);
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    stage.send(0, &[row("a", 1, 0), row("a", 2, 30_000)])?;
    assert_eq!(stage.wait_for_output(1).with_context(|| run.process.last_words())?, ["a 00:00:00 1 1"]);
    run.process.terminate(TIMEOUT)?;
    Ok(())
}

#[test]
fn metrics_and_status_add_up() -> Result<()> {
    let mut stage = Stage::new("metrics")?;
    let job = stage.job(&[], "INSERT INTO output SELECT k, ts, v, v + 0 FROM input WHERE v > 1;").set("on_bad_record", "skip");
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    stage.send(0, &[row("a", 1, 0), row("a", 2, 0), serde_json::json!({"k": "a", "v": "no number", "ts": "2024-01-01 00:00:00"})])?;
    run.wait_status_at_least("records_in", 3, TIMEOUT)?;
    let status = run.status()?;
    assert_eq!((status["rows_out"].as_u64(), status["bad_records"].as_u64()), (Some(1), Some(1)), "{status}");
    let (code, metrics) = http::get(run.http, "/metrics")?;
    assert_eq!(code, 200);
    for line in metrics.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        ensure!(name.starts_with("streamshield_") || name.starts_with("process_"), "{name} is not named by the rules");
    }
    ensure!(metrics.lines().any(|line| line.starts_with("streamshield_") && line.contains("_total")), "no counter:\n{metrics}");
    run.process.terminate(TIMEOUT)?;
    Ok(())
}

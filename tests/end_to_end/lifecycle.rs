//! Start, end, drain; the broker that goes away, or takes only a part.

use super::{COUNTS, Stage, TIMEOUT, row};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use streamshield_tests::support::broker::Broker;
use streamshield_tests::support::client::{create_topic, create_topic_with, delete_topic, wait_for_json};
use streamshield_tests::support::http;
use streamshield_tests::support::job::{BOUNDED, kafka_table};

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
fn a_job_with_nothing_to_commit_notices_as_well_that_its_broker_is_away() -> Result<()> {
    let (folder, log) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut stage = Stage::on(Broker::embedded_in(log.path())?, "idle-away", folder)?;
    let job = stage.job(&[], COUNTS);
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    stage.broker.stop()?;
    run.wait_until("paused", TIMEOUT, |run| Ok(run.status().is_ok_and(|status| status["state"] == "paused")))?;
    let metrics = http::get(run.http, "/metrics")?.1;
    ensure!(metrics.lines().any(|line| line == "streamshield_paused 1"), "{metrics}");
    let words = run.process.stdout() + &run.process.stderr();
    ensure!(words.contains("the job pauses with all its state") && words.contains("since"), "nothing was said about it:\n{words}");
    stage.broker.start_again()?;
    run.wait_until("running again", TIMEOUT, |run| Ok(run.status().is_ok_and(|status| status["state"] == "running")))?;
    stage.send(0, &[row("a", 1, 0), row("a", 2, 30_000)])?;
    stage.send(1, &[row("a", 4, 30_000)])?;
    assert_eq!(stage.wait_for_output(1).with_context(|| run.process.last_words())?, ["a 00:00:00 1 1"]);
    let (ended, _) = run.process.terminate(TIMEOUT)?;
    ensure!(ended.status.success(), "{}", run.process.last_words());
    Ok(())
}

#[test]
fn regions_whose_rows_the_broker_refuses_rest_and_all_others_go_on() -> Result<()> {
    let mut stage = Stage::new("refused")?;
    // It takes no record without a key, and the sink writes none.
    let compacted = format!("{}-compacted", stage.name);
    create_topic_with(&stage.servers(), &compacted, 1, &[("cleanup.policy", "compact")])?;
    let rows = "SELECT k, ts, v, v + 0 FROM input;";
    let mut job = stage.job(&[], &format!("INSERT INTO output {rows} INSERT INTO compacted {rows}")).set("slots", 1);
    job.sql.insert_str(0, &kafka_table("compacted", "k STRING, ws TIMESTAMP(3), n BIGINT, s BIGINT", &compacted, &[]));
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    stage.send(0, &[row("a", 1, 0)])?;
    stage.send(1, &[row("b", 2, 0)])?;
    run.wait_until("stopped in two regions", TIMEOUT, |run| {
        let status = run.status()?;
        let reasons = status["regions"].as_array().into_iter().flatten().filter_map(|region| region["stopped"].as_str());
        Ok(reasons.filter(|reason| reason.contains(&compacted)).count() == 2)
    })?;
    let (health, told) = http::get(run.http, "/health")?;
    ensure!(health == 503 && told.contains(&compacted), "{health}: {told}");
    stage.send(0, &[row("a", 4, 1_000)])?;
    let expected = ["a 00:00:00 1 1", "a 00:00:01 4 4", "b 00:00:00 2 2"];
    assert_eq!(stage.wait_for_output(3).with_context(|| run.process.last_words())?, expected);
    let (ended, _) = run.process.terminate(TIMEOUT)?;
    ensure!(ended.status.success(), "{}", run.process.last_words());
    // Mended: it goes on from what is committed.
    delete_topic(&stage.servers(), &compacted)?;
    create_topic(&stage.servers(), &compacted, 1)?;
    let run = stage.runner.start(&job)?;
    let rows = wait_for_json(&stage.servers(), &compacted, 3, TIMEOUT).with_context(|| run.process.last_words())?;
    assert_eq!(super::sorted(rows)?, expected);
    let (ended, _) = run.process.terminate(TIMEOUT)?;
    ensure!(ended.status.success(), "{}", run.process.last_words());
    assert_eq!(stage.output()?, expected);
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

//! check, explain, topics, version; the demo; what never reaches a log.

use super::{COUNTS, Stage, TIMEOUT};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::Output;
use streamshield_tests::support::client::topics;
use streamshield_tests::support::figures::root;
use streamshield_tests::support::streamshield::call;

/// Writes a job file into the test's folder and calls a command on it.
fn command(stage: &Stage, yaml: &str, arguments: &[&str]) -> Result<(Output, String)> {
    let file = stage.runner.folder.join("job.yaml");
    std::fs::write(&file, yaml)?;
    let mut all = arguments.to_vec();
    all.push("job.yaml");
    let output = call(&stage.runner.folder, &all)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ok((output, text))
}

#[test]
fn check_passes_what_runs() -> Result<()> {
    let stage = Stage::new("check-good")?;
    let (output, text) = command(&stage, &stage.job(&[], COUNTS).yaml(), &["check"])?;
    ensure!(output.status.success(), "{text}");
    Ok(())
}

#[test]
fn check_points_at_the_place_of_a_mistake() -> Result<()> {
    let stage = Stage::new("check-bad")?;
    let good = stage.job(&[], COUNTS).yaml();
    let cases = [
        (good.replace("COUNT(*)", "COUNT(nothing)"), "nothing"),
        (good.replace("parallelism:", "paralelism:"), "parallelism"),
        (good.replace("'connector' = 'kafka'", "'connector' = 'kafak'"), "kafka"),
        (good.replace("SUM(v)", "MEDIAN(v)"), "MEDIAN"),
        (good.replace("FROM TABLE(", "FROM TABEL("), "job.yaml"),
        (good.replacen("'scan.startup.mode' = 'earliest-offset'", "'scan.startup.mode' = 'first'", 1), "earliest-offset"),
    ];
    for (yaml, word) in cases {
        ensure!(yaml != good, "the case for {word} changes nothing");
        let (output, text) = command(&stage, &yaml, &["check"])?;
        ensure!(output.status.code() == Some(2), "{word}: {}\n{text}", output.status);
        ensure!(text.to_lowercase().contains(&word.to_lowercase()), "{word} is not in:\n{text}");
        let line = yaml.lines().zip(good.lines()).position(|(bad, good)| bad != good).map_or(0, |line| line + 1);
        ensure!(text.contains(&format!("job.yaml:{line}:")), "line {line} is not in:\n{text}");
    }
    Ok(())
}

#[test]
fn explain_shows_stages_as_text_json_and_dot() -> Result<()> {
    let stage = Stage::new("explain")?;
    let yaml = stage.job(&[], COUNTS).yaml();
    let (output, text) = command(&stage, &yaml, &["explain"])?;
    ensure!(output.status.success() && text.contains("stage"), "{text}");
    let (output, _) = command(&stage, &yaml, &["explain", "--format", "json"])?;
    let plan: Value = serde_json::from_slice(&output.stdout).context("explain --format json")?;
    assert_eq!(plan["stages"].as_array().map(Vec::len), Some(2), "{plan:#}");
    let (output, _) = command(&stage, &yaml, &["explain", "--format", "dot"])?;
    ensure!(String::from_utf8_lossy(&output.stdout).starts_with("digraph"), "Graphviz");
    Ok(())
}

#[test]
fn topics_create_makes_what_the_job_needs() -> Result<()> {
    let stage = Stage::new("topics")?;
    let before = topics(&stage.servers())?.len();
    let (output, text) = command(&stage, &stage.job(&[], COUNTS).set("on_bad_record", "dead_letter").yaml(), &["topics", "create"])?;
    ensure!(output.status.success(), "{text}");
    let after = topics(&stage.servers())?;
    ensure!(after.len() >= before + 5, "control, two changelogs, an exchange, dead letters: {after:?}");
    let mut run_stage = stage;
    let job = run_stage.job(&[], COUNTS).set("on_bad_record", "dead_letter");
    let mut run = run_stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    assert_eq!(topics(&run_stage.servers())?.len(), after.len(), "the run needs no further topic");
    run.process.terminate(TIMEOUT)?;
    Ok(())
}

#[test]
fn the_published_schema_is_that_of_the_binary() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let printed = call(folder.path(), &["schema"])?;
    ensure!(printed.status.success());
    let published = std::fs::read_to_string(root().join("docs").join("job-file.schema.json")).context("docs/job-file.schema.json")?;
    ensure!(
        String::from_utf8_lossy(&printed.stdout) == published,
        "docs/job-file.schema.json is old: `streamshield schema` prints the new one"
    );
    Ok(())
}

#[test]
fn version_is_the_packages() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = call(folder.path(), &["version"])?;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), concat!("streamshield ", env!("CARGO_PKG_VERSION")));
    Ok(())
}

#[test]
fn a_secret_reaches_no_log() -> Result<()> {
    let mut stage = Stage::new("secret")?;
    let secret = "hunter2-very-secret";
    stage.runner.environment = vec![("TEST_PASSWORD".into(), secret.into()), ("RUST_LOG".into(), "debug".into())];
    let mut job = stage.job(&[], COUNTS);
    // Refused by the broker, which knows no SASL: the client talks about it as much as it can.
    job.bootstrap_servers = format!(
        "{}\n  security.protocol: sasl_plaintext\n  sasl.mechanism: PLAIN\n  sasl.username: user\n  sasl.password: ${{env:TEST_PASSWORD}}",
        job.bootstrap_servers
    );
    let run = stage.runner.start(&job)?;
    run.process.wait(std::time::Duration::from_secs(3));
    run.process.kill()?;
    let said = run.process.stdout() + &run.process.stderr();
    ensure!(!said.contains(secret), "the password is in the log:\n{said}");
    ensure!(!said.is_empty(), "nothing was logged: the test would prove nothing");
    Ok(())
}

#[test]
fn the_demo_ends_by_itself_with_a_summary() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let example = root().join("examples").join("hot-items.yaml");
    let example = example.to_str().context("a path as text")?;
    let output = call(folder.path(), &["run", example, "--duration", "6s", "--summary", "json"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_str(text.lines().last().context("it prints something")?)?;
    ensure!(summary["rows_in"].as_u64() > Some(1_000) && summary["rows_out"].as_u64() > Some(0), "{summary}");
    Ok(())
}

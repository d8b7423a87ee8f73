//! `streamshield chaos` and `streamshield gate`, as a user calls them, and a clock that jumps: on the embedded broker, so that it needs no Java.

use anyhow::{Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use streamshield_faults::{JobFile, Parameters, Role, Stage, Target, Topology, build};
use streamshield_tests::load::Load;
use streamshield_tests::support::seed;
use streamshield_tests::support::streamshield::{binary, call};

/// A minute in all: one kill, two cut links, one of them right before a commit, and a load that proves its output.
const PLAN: &str = "version: 1
title: one kill and two cut links, in a minute
seed: 11
topology: {brokers: 0, workers: 2, tier: 1, parallelism: 2, store: local, checkpoint_interval: 3 s}
workload: {rate: 300, keys: 50, state: 64 KiB}
steady_state:
  - {name: both workers run, probe: workers_alive, at_least: 2}
method:
  - {pause: 3 s}
  - {fault: process.kill, target: {role: active}}
  - {pause: 5 s}
  - {fault: net.partition, target: {role: worker, name: w2}, for: 2 s}
  - {pause: 5 s}
  - {fault: net.partition, when: {fail_point: \"engine::before_commit\"}, for: 2 s}
thresholds:
  catch_up_s: [value < 100]
proof_of_fault: {min_kills: 1, min_records: 1000}
# The tests share the machine with others.
host: {late: 1 s, share: 50 %}
";

fn journal(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("journal.json")).expect("a journal");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn a_short_plan_breaks_a_cluster_and_proves_that_it_does_not_show() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("short.yaml"), PLAN).expect("written");
    let output = call(folder.path(), &["chaos", "run", "short.yaml", "--out", "run"]).expect("it starts");
    let words = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{words}");
    let run = folder.path().join("run");
    let journal = journal(&run);
    assert_eq!(journal["verdict"]["outcome"], "pass", "{words}");
    assert_eq!(journal["seed"], 11);
    assert!(journal["kills"]["workers"].as_u64() >= Some(1) && journal["records"]["verified"].as_u64() >= Some(1_000), "{words}");
    let injections = journal["injections"].as_array().expect("a list");
    let waited = injections.iter().find(|one| one["parameters"]["when"] == "engine::before_commit").expect("it was tried");
    assert!(waited["evidence"].as_str().is_some_and(|text| text.contains(" was at engine::before_commit: ")), "{waited:#}");
    let held = |name: &str| {
        let results = journal["invariants"].as_array().expect("a list");
        results.iter().any(|result| result["invariant"] == name && result["anomalies"] == 0 && result["looked"]["at"].as_u64() > Some(0))
    };
    for invariant in ["no_loss", "no_duplicate", "atomic", "epochs", "single_writer", "checkpoints_restore", "state_equal", "clean_logs"] {
        assert!(held(invariant), "{invariant}: {:#}", journal["invariants"]);
    }
    for report in ["report.html", "report.md", "junit.xml", "journal.jsonl"] {
        assert!(run.join(report).exists(), "{report}");
    }
    let again = call(folder.path(), &["chaos", "report", "run/journal.jsonl", "--format", "markdown"]).expect("it starts");
    let written = std::fs::read_to_string(run.join("report.md")).expect("a report");
    assert_eq!(String::from_utf8_lossy(&again.stdout), written, "the lines give the same report as the journal");
}

#[test]
fn a_bad_plan_is_refused_with_its_line_and_a_hint() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("bad.yaml"), PLAN.replace("process.kill,", "process.kil,")).expect("written");
    let output = call(folder.path(), &["chaos", "check", "bad.yaml"]).expect("it starts");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{words}");
    assert!(words.contains("bad.yaml:10:13") && words.contains("did you mean `process.kill`?"), "{words}");
    let run = call(folder.path(), &["chaos", "run", "bad.yaml", "--out", "run"]).expect("it starts");
    assert_eq!(run.status.code(), Some(4), "nothing was run, so nothing is said");
    assert!(!folder.path().join("run").exists());
}

#[test]
fn a_mistake_in_the_command_line_is_not_taken_for_a_violation() {
    let folder = tempfile::tempdir().expect("a folder");
    let ended = |arguments: &[&str], crash_at: Option<&str>| {
        let mut command = Command::new(binary().expect("the program"));
        command.args(arguments).current_dir(folder.path()).envs(crash_at.map(|point| ("STREAMSHIELD_CRASH_AT", point)));
        let output = command.output().expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let wrong: [(&[&str], &str); 6] = [
        (&["chaos", "run", "smoke", "--sed", "1"], "--sed"),
        (&["--metrics-addr", "127.0.0.1:0", "chaos", "--log-format", "json", "run"], "PLAN"),
        (&["gate", "--binary", "new", "--tolerance", "much"], "much"),
        (&["gate"], "--baseline-binary"),
        (&["gate", "--job", "new.yaml"], "--baseline"),
        (&["gate", "--binary", "new", "--baseline", "old.yaml"], "--job"),
    ];
    for (arguments, word) in wrong {
        let (code, words) = ended(arguments, None);
        assert_eq!(code, Some(4), "{arguments:?}: {words}");
        assert!(words.contains(word), "{arguments:?}: {words}");
    }
    assert_eq!(ended(&["chaos", "run", "smoke"], Some("nowhere:1")).0, Some(4));
    assert_eq!(ended(&["gate", "--help"], None).0, Some(0));
    // Elsewhere the code is that of every command.
    assert_eq!(ended(&["chaos", "check"], None).0, Some(2));
    assert_eq!(ended(&["run", "gate", "--sed"], None).0, Some(2));
    assert_eq!(ended(&["version"], Some("nowhere:1")).0, Some(2));
}

/// A worker's answers must show each jump and its end, whichever way it goes.
#[test]
fn a_clock_that_jumps_two_hours_back_or_forward_is_seen_to_jump_and_to_come_right() -> Result<()> {
    if !cfg!(target_os = "linux") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let stage = Stage::start(&Topology { brokers: 0, workers: 2, ..Topology::default() }, folder.path())?;
    let seed = seed::seed();
    let mut load = Load::new("chaos-clock", seed);
    load.partitions = 3;
    load.create_topics(&stage.bootstrap_servers())?;
    stage.start_workers(&JobFile::new(load.job(&stage.bootstrap_servers()).set("tier", "1").yaml()))?;
    stage.wait_settled(Duration::from_secs(120))?;
    let mut random = seed::generator(seed);
    let target = Target { role: Role::Worker, name: Some("w1".into()) };
    for (direction, begin) in [("back", "is -7"), ("forward", "is 7")] {
        let text = |value: &str| streamshield_faults::Value::Text(value.into());
        let parameters = Parameters::from([("by".into(), text("2 h")), ("direction".into(), text(direction))]);
        let mut fault = build("time.jump", &parameters, Some(&target), &mut random)?;
        let fired = fault.inject(&stage)?;
        ensure!(fired.count == 1 && fired.evidence.contains(begin), "{direction}: {fired:?}");
        let undone = fault.undo(&stage)?;
        ensure!(undone.count == 1 && undone.evidence.contains("right again"), "{direction}: {undone:?}");
    }
    stage.wait_settled(Duration::from_secs(120))?;
    Ok(())
}

#[test]
fn the_ready_plans_and_the_faults_are_listed() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = call(folder.path(), &["chaos", "list", "--json"]).expect("it starts");
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(listed["faults"].as_array().expect("a list").len() >= 24);
    for plan in listed["plans"].as_array().expect("a list") {
        let checked = call(folder.path(), &["chaos", "check", plan.as_str().expect("a name")]).expect("it starts");
        assert!(checked.status.success(), "{plan}: {}", String::from_utf8_lossy(&checked.stderr));
    }
}

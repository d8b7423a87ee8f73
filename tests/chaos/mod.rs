//! `streamshield chaos` and `streamshield gate`, as a user calls them: a short plan on the embedded broker, so that it needs no Java.

use serde_json::Value;
use std::path::Path;
use streamshield_tests::support::streamshield::call;

/// A minute in all: one kill, one cut link, and a load that proves its output.
const PLAN: &str = "version: 1
title: one kill and one cut link, in a minute
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

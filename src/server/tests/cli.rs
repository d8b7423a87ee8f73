//! The program as a user meets it: started as a process, judged by what it prints and how it ends.

mod support;

use insta::assert_snapshot;
use support::{Folder, JOB};

#[test]
fn an_unknown_key_is_shown_at_its_place_with_the_nearest_one() {
    let folder = Folder::with_job(&JOB.replace("commit_interval:", "comit_interval:"));
    assert_snapshot!(folder.fails(2, &["check", "job.yaml"]));
}

#[test]
fn several_mistakes_are_reported_at_once() {
    let job = "name: Orders!\nslots: many\nkafka: {embedded: yes, data_dir: x}\ncommit_interval: 100\nslo:\n  max_latncy: 1 s\n  completeness: 120 %\nsql: |\n  SELECT 1\non_bad_record: deadletter\nlate_rows: side_topic\nmemory_budget: 1 KiB\n";
    assert_snapshot!(Folder::with_job(job).fails(2, &["check", "job.yaml"]));
}

#[test]
fn broken_yaml_is_shown_at_its_place() {
    assert_snapshot!(Folder::with_job("name: a\nkafka: {embedded: true\nsql: SELECT 1\n").fails(2, &["check", "job.yaml"]));
}

#[test]
fn a_duplicate_key_is_refused() {
    assert_snapshot!(Folder::with_job(&format!("{JOB}name: again\n")).fails(2, &["check", "job.yaml"]));
}

#[test]
fn a_missing_file_is_said_to_be_missing() {
    assert_snapshot!(Folder::new().fails(2, &["check", "nothing.yaml"]));
}

#[test]
fn an_unset_variable_and_an_unreadable_file_are_named() {
    let job = JOB.replace("embedded: true", "bootstrap.servers: localhost:9092\n  sasl.username: ${env:STREAMSHIELD_TEST_NOT_SET}\n  sasl.password: ${file:/does/not/exist} # ${env:NOT_READ}");
    assert_snapshot!(Folder::with_job(&job).fails(2, &["check", "--offline", "job.yaml"]));
}

#[test]
fn a_plain_password_is_warned_about_and_blanked_out() {
    let job = JOB
        .replace("embedded: true", "bootstrap.servers: localhost:9092\n  sasl.password: hunter2-in-plain-text\n  sasl.mechanisms: PLAIN");
    let output = Folder::with_job(&job.replace("slots:", "slotz:")).fails(2, &["check", "--offline", "job.yaml"]);
    assert!(!output.contains("hunter2"), "{output}");
    assert_snapshot!(output);
}

#[test]
fn a_literal_secret_is_shown_nowhere() {
    let wrong_print = "'connector' = 'prind', 'properties.sasl.password' = 'hunter2-canary'";
    let broken = "bootstrap.servers: [a\n  sasl.password: hunter2-canary";
    for job in [
        JOB.replace("embedded: true", "embedded: true\n  sasl.password: hunter2-canary"),
        JOB.replace("embedded: true", "{embedded: true, sasl.password: hunter2-canary}").replace("kafka:\n", "kafka:"),
        JOB.replace("embedded: true", "bootstrap.servers: a:1\n  ssl.key.password: [hunter2-canary]"),
        JOB.replace("embedded: true", "bootstrap.servers: a:1\n  sasl.oauthbearer.assertion.private.key.passphrase: hunter2-canary")
            .replace("slots:", "slotz:"),
        JOB.replace("embedded: true", broken),
        format!("sasl.password: hunter2-canary\n{JOB}"),
        JOB.replace("'connector' = 'print'", wrong_print),
    ] {
        let output = Folder::with_job(&job).fails(2, &["check", "--offline", "job.yaml"]);
        assert!(!output.contains("hunter2"), "{output}");
    }
}

#[test]
fn a_mistake_in_sql_is_shown_in_the_yaml_file() {
    let folder = Folder::with_job(&JOB.replace("SELECT `text` FROM lines", "SELECT `texd` FROM lines"));
    assert_snapshot!(folder.fails(2, &["check", "job.yaml"]));
}

#[test]
fn a_mistake_in_a_sql_file_is_shown_in_that_file() {
    let (head, sql) = JOB.split_once("sql: |\n").expect("the SQL");
    let folder = Folder::with_job(&format!("{head}sql_file: job.sql\n"));
    folder.write("job.sql", &sql.replace("'connector' = 'print'", "'connector' = 'prind'"));
    assert_snapshot!(folder.fails(2, &["check", "job.yaml"]));
}

#[test]
fn settings_in_sql_are_obeyed_pointed_out_or_refused() {
    let set = "sql: |\n  SET 'pipeline.name' = 'renamed';\n  SET 'execution.checkpointing.interval' = '10 s';\n";
    let folder = Folder::with_job(&JOB.replace("sql: |\n", set));
    let output = folder.succeeds(&["check", "job.yaml"]);
    assert!(output.contains("job `renamed`") && output.contains("has no effect"), "{output}");
    folder.write(
        "job.yaml",
        &JOB.replace("sql: |\n", "sql: |\n  SET 'paralelism.default' = '2';\n  SET 'execution.runtime-mode' = 'batch';\n"),
    );
    assert_snapshot!(folder.fails(2, &["check", "job.yaml"]));
}

#[test]
fn an_interval_that_cannot_keep_the_promised_latency_is_refused_wherever_it_comes_from() {
    let refused = |job: &str| Folder::with_job(job).fails(2, &["check", "--offline", "job.yaml"]);
    let promised = format!("slo: {{max_latency: 60 ms}}\n{JOB}");
    let by_default = refused(&promised.replace("commit_interval: 50 ms\n", ""));
    assert!(by_default.contains("commit_interval of 100ms can't keep slo.max_latency of 60ms"), "{by_default}");
    assert!(by_default.contains("job.yaml:1:"), "at the promise: {by_default}");
    let in_file = refused(&promised.replace("50 ms", "70 ms"));
    assert!(in_file.contains("commit_interval of 70ms") && in_file.contains("job.yaml:6:"), "{in_file}");
    let set = promised.replace("sql: |\n", "sql: |\n  SET 'streamshield.commit-interval' = '80 ms';\n");
    let in_sql = refused(&set);
    assert!(in_sql.contains("commit_interval of 80ms") && in_sql.contains("job.yaml:8:"), "{in_sql}");
    // The SQL has the last word.
    let kept = set.replace("50 ms", "70 ms").replace("80 ms", "40 ms");
    Folder::with_job(&kept).succeeds(&["check", "--offline", "job.yaml"]);
}

#[test]
fn an_interval_of_nothing_is_refused_in_the_sql_as_in_the_file() {
    for (key, value) in [("commit", "0 s"), ("flush", "0 ms")] {
        let set = JOB.replace("sql: |\n", &format!("sql: |\n  SET 'streamshield.{key}-interval' = '{value}';\n"));
        let refused = Folder::with_job(&set).fails(2, &["check", "--offline", "job.yaml"]);
        assert!(refused.contains(&format!("streamshield.{key}-interval")) && refused.contains("must be longer than nothing"), "{refused}");
    }
}

#[test]
fn a_good_job_checks_without_a_cluster() {
    let output = Folder::with_job(&JOB.replace("embedded: true", "bootstrap.servers: 127.0.0.1:1")).succeeds(&["check", "job.yaml"]);
    assert!(output.contains("ok: job `lines`") && output.contains("topics were not checked"), "{output}");
}

#[test]
fn a_wrong_client_property_is_refused() {
    let job = JOB.replace("embedded: true", "bootstrap.servers: 127.0.0.1:1\n  sasl.pasword: x");
    let output = Folder::with_job(&job).fails(2, &["check", "--offline", "job.yaml"]);
    assert!(output.contains("sasl.pasword"), "{output}");
}

#[test]
fn explain_knows_three_formats() {
    let folder = Folder::with_job(JOB);
    assert!(folder.succeeds(&["explain", "job.yaml"]).contains("lines"));
    let json: serde_json::Value = serde_json::from_str(&folder.succeeds(&["explain", "job.yaml", "--format", "json"])).expect("json");
    assert!(json.is_object());
    assert!(json["tier"] == 3 && json["slo"]["max_latency_ms"].is_null(), "{json:#}");
    assert!(folder.succeeds(&["explain", "job.yaml", "--format", "dot"]).starts_with("digraph"));
}

#[test]
fn explain_says_what_the_job_promises() {
    let folder = Folder::with_job(&format!("slo: {{completeness: 99.9 %, max_latency: 2 s, max_recovery: 5 s}}\n{JOB}"));
    let output = folder.run_with(&["explain", "job.yaml", "--format", "json"], &[]);
    let json: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", output.all));
    assert_eq!(json["tier"], 2);
    assert_eq!(json["slo"], serde_json::json!({ "completeness": 0.999, "max_latency_ms": 2_000, "max_recovery_ms": 5_000 }));
}

#[test]
fn all_examples_check() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut checked = 0;
    for entry in std::fs::read_dir(&examples).expect("examples") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let output = Folder::new()
                .run_with(&["check", "--offline", &path.display().to_string()], &[("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")]);
            assert!(output.status == Some(0) && !output.all.contains('⚠'), "{}: {}", path.display(), output.all);
            checked += 1;
        }
    }
    assert!(checked >= 4, "{checked} examples");
}

#[test]
fn a_reader_that_goes_away_changes_no_exit_code() {
    let folder = Folder::with_job(JOB);
    for arguments in [["explain", "job.yaml"].as_slice(), &["check", "--offline", "job.yaml"], &["chaos", "check", "smoke"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = folder.command(arguments).stdout(writer).output().expect("the program starts");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_published_schema_is_up_to_date() {
    let published = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/job-file.schema.json"))
        .unwrap_or_default();
    let printed = Folder::new().succeeds(&["schema"]);
    assert!(published == printed, "docs/job-file.schema.json is old: run `streamshield schema > docs/job-file.schema.json`");
}

#[test]
fn the_command_line_is_explained() {
    let help = Folder::new().succeeds(&["--help"]);
    for word in ["run", "worker", "check", "explain", "status", "workers", "topics", "schema", "version", "--log-format", "--metrics-addr"]
    {
        assert!(help.contains(word), "{word} is missing in\n{help}");
    }
    assert!(Folder::new().fails(2, &["rum"]).contains("run"));
    assert!(Folder::new().succeeds(&["version"]).starts_with("streamshield "));
}

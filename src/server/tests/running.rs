//! A job from its start to its end, on the embedded broker: summary, signals, HTTP, secrets.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use support::{Folder, JOB, Running, get};

/// A job that does not end by itself.
const ENDLESS: &str = "\
name: endless
kafka: {embedded: true}
slots: 1
sql: |
  CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', 'rows-per-second' = '1000');
  CREATE TABLE nowhere (n BIGINT) WITH ('connector' = 'blackhole');
  INSERT INTO nowhere SELECT n FROM numbers;
";

#[test]
fn a_bounded_job_prints_its_rows_and_its_summary_last() {
    let output = Folder::with_job(JOB).run_with(&["run", "job.yaml", "--summary", "json"], &[]);
    assert_eq!(output.status, Some(0), "{}", output.all);
    assert!(output.stdout.contains("one") && output.stdout.contains("two"), "{}", output.all);
    let last = output.stdout.lines().last().expect("a line");
    let summary: serde_json::Value = serde_json::from_str(last).expect("the summary");
    assert_eq!((&summary["rows_in"], &summary["rows_out"]), (&2.into(), &2.into()));
    assert!(summary.get("p99_latency_ms").is_some() && summary["rows_per_second"].is_number());
}

#[test]
fn a_duration_ends_an_endless_job() {
    let output = Folder::with_job(ENDLESS).run_with(&["run", "job.yaml", "--duration", "2 s", "--summary", "json", "--live"], &[]);
    assert_eq!(output.status, Some(0), "{}", output.all);
    let summary: serde_json::Value = serde_json::from_str(output.stdout.lines().last().expect("a line")).expect("the summary");
    assert!(summary["rows_in"].as_u64().is_some_and(|rows| rows > 0) && summary["rows_in"] == summary["rows_out"], "{summary}");
    assert!(output.stdout.lines().any(|line| line.contains("rows/s")), "a line per second\n{}", output.all);
}

#[test]
fn http_shows_the_job_and_sigterm_drains_it_in_time() {
    let folder = Folder::with_job(ENDLESS);
    let mut job = Running::start(&folder, &["--metrics-addr", "127.0.0.1:0", "run", "job.yaml"]);
    let address = job.http_address();
    let ready = job.wait_until(|| get(&address, "/ready").0 == 200);
    assert!(ready, "never ready");
    assert!(job.wait_until(|| metric(&get(&address, "/metrics").1, "streamshield_source_records_total").is_some_and(|count| count > 0.0)));
    let metrics = get(&address, "/metrics").1;
    for name in [
        "streamshield_commit_duration_seconds_bucket",
        "streamshield_region_epoch{",
        "process_resident_memory_bytes",
        "# TYPE process_cpu_seconds_total counter",
        "streamshield_paused 0",
    ] {
        assert!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
    assert_eq!(get(&address, "/health"), (200, "ok\n".to_string()));
    let status: serde_json::Value = serde_json::from_str(&get(&address, "/api/v1/status").1).expect("json");
    assert_eq!(status["state"], "running");
    assert_eq!(get(&address, "/nothing").0, 404);

    let asked = Instant::now();
    job.signal("TERM");
    let (code, output) = job.end();
    assert_eq!(code, Some(0), "{output}");
    assert!(asked.elapsed() < Duration::from_secs(2), "drained in {:?}", asked.elapsed());
    assert!(output.contains("rows in"), "the summary\n{output}");
}

#[test]
fn a_second_process_on_the_same_state_leaves_the_first_one_alone() {
    let folder = Folder::with_job(&ENDLESS.replace("slots: 1", "slots: 1\nstate_dir: here"));
    let mut job = Running::start(&folder, &["run", "job.yaml"]);
    job.wait_for_line(|line| line.contains("created topics") && line.contains("changelog"));
    let second = folder.run_with(&["run", "job.yaml"], &[]);
    assert!(second.status == Some(1) && second.all.contains("another process uses the state folder"), "{}", second.all);
    job.signal("TERM");
    assert_eq!(job.end().0, Some(0));
}

#[test]
fn a_client_that_dawdles_or_floods_is_cut_off() {
    let folder = Folder::with_job(ENDLESS);
    let mut job = Running::start(&folder, &["--metrics-addr", "127.0.0.1:0", "run", "job.yaml"]);
    let address = job.http_address();
    let mut flood = TcpStream::connect(&address).expect("connected");
    flood.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    let _ = flood.write_all(format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)).as_bytes());
    let mut answer = String::new();
    let _ = flood.read_to_string(&mut answer);
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (mut dawdler, started) = (TcpStream::connect(&address).expect("connected"), Instant::now());
    dawdler.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    dawdler.write_all(b"GET /metrics HT").expect("written");
    assert!(
        dawdler.read_to_string(&mut answer).is_ok() && started.elapsed() < Duration::from_secs(15),
        "cut off after {:?}",
        started.elapsed()
    );
    assert_eq!(get(&address, "/health").0, 200);
    job.signal("TERM");
    assert_eq!(job.end().0, Some(0));
}

#[test]
fn a_secret_is_in_no_line_and_no_answer() {
    const CANARY: &str = "canary-7f3a9c-secret";
    let folder = Folder::with_job(&ENDLESS.replace("'connector' = 'blackhole'", "'connector' = 'blackhole', 'x' = '${env:CANARY}'"));
    folder.write("canary", CANARY);
    let kafka = "kafka:\n  bootstrap.servers: 127.0.0.1:1\n  security.protocol: sasl_plaintext\n  sasl.mechanisms: PLAIN\n  sasl.username: u\n  sasl.password: ${file:canary}\n";
    folder.write("kafka.yaml", &ENDLESS.replace("kafka: {embedded: true}\n", kafka));
    folder.write("bad.yaml", &ENDLESS.replace("name: endless", "name: ${file:canary}!"));
    folder.write("plain.yaml", &ENDLESS.replace("kafka: {embedded: true}\n", &kafka.replace("${file:canary}", CANARY)));
    let runs: [&[&str]; 6] = [
        &["check", "job.yaml"],
        &["check", "kafka.yaml"],
        &["check", "bad.yaml"],
        &["check", "plain.yaml"],
        &["explain", "kafka.yaml", "--format", "json"],
        &["topics", "create", "kafka.yaml"],
    ];
    for arguments in runs {
        let output = folder.run_with(arguments, &[("CANARY", CANARY), ("RUST_LOG", "trace")]);
        assert!(!output.all.contains("canary-7f3a9c"), "{arguments:?} shows the secret:\n{}", output.all);
    }
    let mut job = Running::spawn(folder.command(&["run", "kafka.yaml", "--log-format", "json"]).env("RUST_LOG", "debug"));
    assert!(job.wait_for_line(|line| line.contains("does not answer")).iter().all(|line| !line.contains("canary-7f3a9c")));
    job.signal("TERM");
    assert!(!job.end().1.contains("canary-7f3a9c"));
}

fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

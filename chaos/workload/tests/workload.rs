//! The load, its observer and its oracle around the real program, with a broker inside of the test.
//!
//! The program is the one that the last `make build` made, or `$STREAMSHIELD_BIN`.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use streamshield_embedded::{Config, EmbeddedBroker};
use streamshield_tests::support::process::Process;
use streamshield_tests::support::seed::seed;
use streamshield_tests::support::streamshield::binary;
use streamshield_workload::checks::ControlFold;
use streamshield_workload::schedule::mix;
use streamshield_workload::{DataFault, Flow, Invariant, Observer, Settings, UserJob, Workload};

const PATIENCE: Duration = Duration::from_secs(60);

/// A job in a process of its own; killed when dropped.
struct Job(Process);

impl Job {
    fn start(folder: &Path, number: u32) -> Result<Job> {
        let mut command = Command::new(binary()?);
        command.arg("run").arg(folder.join("job.yaml")).current_dir(folder).env("NO_COLOR", "1");
        Process::start(command, folder, &number.to_string()).map(Job)
    }

    fn kill(&self) -> Result<()> {
        ensure!(self.0.is_alive(), "the job ended by itself:\n{}", self.words());
        self.0.kill().map(drop)
    }

    fn words(&self) -> String {
        self.0.stderr()
    }
}

/// Waits until so many records have come out.
fn wait_for_rows(observer: &Observer, rows: u64, job: &Job) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while observer.look(|seen| seen.rows(Flow::Passed)) < rows {
        let seen = observer.look(|seen| seen.rows(Flow::Passed));
        ensure!(Instant::now() < deadline, "{seen} of {rows} rows have come; the job said:\n{}", job.words());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Balances are looked at where a reader has met the end of a partition: after each kill, and when all is out.
fn wait_for_balances(observer: &Observer, more_than: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while observer.look(|seen| seen.snapshots) <= more_than {
        ensure!(Instant::now() < deadline, "balances were looked at {} times", observer.look(|seen| seen.snapshots));
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn a_job_that_is_killed_twice_under_faulty_data_shows_no_anomaly() -> Result<()> {
    let (seed, folder) = (seed(), tempfile::tempdir()?);
    let broker = EmbeddedBroker::start(Config::default())?;
    let servers = broker.address().to_string();
    let settings = Settings { rate: 2_000, keys: 200, bulk_bytes: 1 << 20, ..Settings::default() };
    let workload = Workload::new(format!("load-{seed}"), seed, settings)?;
    workload.create_topics(&servers)?;
    let state = folder.path().join("state");
    std::fs::write(folder.path().join("job.yaml"), workload.job_yaml(&servers, &[("state_dir", state.display().to_string())]))?;
    workload.fill(&servers)?;
    let observer = workload.observe(&servers)?;
    let running = workload.start(&servers)?;
    let mut job = Job::start(folder.path(), 0)?;
    wait_for_rows(&observer, 2_000, &job)?;
    for fault in DataFault::ALL {
        running.inject(fault, 1 + mix(seed, fault as u64) % 5);
    }
    running.set_hot_key(0.5);
    for kill in 1..=2 {
        let rows = observer.look(|seen| seen.rows(Flow::Passed)) + 2_000 + mix(seed, kill) % 1_000;
        wait_for_rows(&observer, rows, &job)?;
        job.kill()?;
        job = Job::start(folder.path(), kill as u32)?;
        running.set_rate(3.0);
        running.inject(DataFault::Late, 3);
        running.inject(DataFault::Undecodable, 2);
    }
    let rows = observer.look(|seen| seen.rows(Flow::Passed)) + 10_000;
    wait_for_rows(&observer, rows, &job)?;
    let sent = running.stop()?;
    let drained = observer.wait_drained(&sent, PATIENCE);
    ensure!(drained.is_complete, "{drained:?}; the job said:\n{}", job.words());
    wait_for_balances(&observer, 10)?;
    let seen = observer.stop()?;
    let findings = workload.verify(&servers, &sent, Some(&seen), ControlFold::new(&workload.name))?;
    println!("{}; {:?}; looked at {:?}; read {:?}", findings.summary(), findings.conservation, findings.checked, findings.rows_read);
    ensure!(findings.is_clean(), "{:#?}\nthe job said:\n{}", findings.anomalies, job.words());
    ensure!(findings.records_verified == sent.records + sent.schedule.injected_total(), "all records are verified");
    for invariant in [Invariant::E1, Invariant::E2, Invariant::E3, Invariant::E4, Invariant::E5, Invariant::O1, Invariant::C1] {
        ensure!(findings.checked.get(&invariant).is_some_and(|times| *times > 0), "{invariant} was never looked at");
    }
    let (from_ms, to_ms) = (sent.schedule.start_ms(), sent.ended_ms);
    let p50 = seen.latency_ms(Flow::Passed, 0.5, from_ms, to_ms).context("rows have latencies")?;
    let longest = seen.gaps(Flow::Windows, from_ms, to_ms).first().map(|gap| gap.length_ms()).context("a kill leaves a gap")?;
    println!("p50 {p50} ms, longest gap of the windows {longest} ms, drained in {:.1} s", drained.seconds);
    job.kill()
}

const USERS_JOB: &str = "
name: shop
kafka: {embedded: true}
on_bad_record: dead_letter
late_rows: side_topic
parallelism: 3
sql: |
  CREATE TABLE orders (
    customer STRING, amount DECIMAL(10, 2), tags ARRAY<STRING>, millis BIGINT, paid BOOLEAN,
    ts AS TO_TIMESTAMP_LTZ(millis, 3), WATERMARK FOR ts AS ts - INTERVAL '1' SECOND
  ) WITH ('connector' = 'kafka', 'topic' = 'orders', 'scan.startup.mode' = 'earliest-offset', 'format' = 'json');
  CREATE TABLE clicks (page STRING, at_time TIMESTAMP(3)) WITH (
    'connector' = 'kafka', 'topic' = 'clicks', 'scan.startup.mode' = 'earliest-offset', 'key.format' = 'raw', 'key.fields' = 'page', 'value.format' = 'json'
  );
  CREATE TABLE totals (customer STRING, window_end TIMESTAMP_LTZ(3), total DECIMAL(38, 2)) WITH ('connector' = 'kafka', 'topic' = 'totals', 'format' = 'json');
  CREATE TABLE pages (page STRING, at_time TIMESTAMP(3)) WITH ('connector' = 'kafka', 'topic' = 'pages', 'format' = 'json');
  INSERT INTO totals SELECT customer, window_end, SUM(amount)
  FROM TABLE(TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY customer, window_start, window_end;
  INSERT INTO pages SELECT UPPER(page), at_time FROM clicks;
";

#[test]
fn a_users_job_that_is_killed_keeps_what_can_be_said_of_any_job() -> Result<()> {
    let (seed, folder) = (seed(), tempfile::tempdir()?);
    let file = folder.path().join("shop.yaml");
    std::fs::write(&file, USERS_JOB)?;
    let explained = Command::new(binary()?).args(["explain", "--format", "json"]).arg(&file).output()?;
    ensure!(explained.status.success(), "{}", String::from_utf8_lossy(&explained.stderr));
    let settings = Settings { rate: 2_000, partitions: 3, ..Settings::default() };
    let shop = UserJob::read(USERS_JOB, folder.path(), std::str::from_utf8(&explained.stdout)?, seed, settings)?;
    let broker = EmbeddedBroker::start(Config::default())?;
    let servers = broker.address().to_string();
    shop.create_topics(&servers)?;
    let state = folder.path().join("state").display().to_string();
    std::fs::write(folder.path().join("job.yaml"), shop.job_yaml(&servers, &[("state_dir", state)])?)?;
    let running = shop.start(&servers)?;
    let mut job = Job::start(folder.path(), 0)?;
    let wait_for_records = |records: u64| {
        let deadline = Instant::now() + PATIENCE;
        while running.records_sent() < records {
            ensure!(running.is_alive() && Instant::now() < deadline, "{} of {records} records were sent", running.records_sent());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    };
    wait_for_records(3_000)?;
    running.inject(DataFault::Undecodable, 4);
    running.inject(DataFault::Late, 4);
    wait_for_records(6_000)?;
    job.kill()?;
    job = Job::start(folder.path(), 1)?;
    running.inject(DataFault::NullValue, 3);
    wait_for_records(10_000)?;
    let sent = running.stop()?;
    ensure!(sent.schedule.injected_total() == 7, "late records are not sent to a user's job");
    ensure!(shop.wait_drained(&servers, PATIENCE)?, "input is left; the job said:\n{}", job.words());
    let findings = shop.verify(&servers, &sent, ControlFold::new(&shop.name))?;
    println!("{}; looked at {:?}; read {:?}", findings.summary(), findings.checked, findings.rows_read);
    ensure!(findings.is_clean(), "{:#?}\nthe job said:\n{}", findings.anomalies, job.words());
    ensure!(findings.rows_read.get("pages") == Some(&sent.records.div_ceil(2)), "each click is a page: {:?}", findings.rows_read);
    ensure!(findings.rows_read.get("shop-dead-letter") == Some(&7) && findings.rows_read["totals"] > 0, "{:?}", findings.rows_read);
    job.kill()
}

//! Several worker processes under a supervisor: their output, their signals, their ends, and the questions that may be asked of them. The supervisor hosts
//! the broker.

mod support;

use std::time::{Duration, Instant};
use support::{Folder, Running, get};

/// A job that does not end by itself.
const ENDLESS: &str = "\
name: endless
kafka: {embedded: true}
sql: |
  CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', 'rows-per-second' = '1000');
  CREATE TABLE nowhere (n BIGINT) WITH ('connector' = 'blackhole');
  INSERT INTO nowhere SELECT n FROM numbers;
";

/// Process ids of the workers, by the supervisor's.
fn workers_of(supervisor: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}

fn kill(pid: u32) {
    assert!(std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().is_ok_and(|status| status.success()));
}

#[test]
fn a_supervised_worker_serves_its_metrics_and_drains_with_the_supervisor() {
    let folder = Folder::with_job(ENDLESS);
    let mut job = Running::start(&folder, &["--metrics-addr", "127.0.0.1:0", "run", "job.yaml", "--workers", "1", "--summary", "json"]);
    let lines = job.wait_for_line(|line| line.starts_with("[0] ") && line.contains("serving /metrics"));
    let line = lines.last().expect("the line");
    let at = line.find("127.0.0.1:").expect("an address");
    let address: String = line[at..].chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
    assert!(job.wait_until(|| get(&address, "/ready").0 == 200), "never ready");
    assert!(job.wait_until(|| get(&address, "/api/v1/status").1.contains("\"state\":\"running\"")));
    let asked = Instant::now();
    job.signal("TERM");
    let (code, output) = job.end();
    assert_eq!(code, Some(0), "{output}");
    assert!(asked.elapsed() < Duration::from_secs(4), "drained in {:?}", asked.elapsed());
    let last = output.lines().find(|line| line.starts_with("{\"rows_in\"")).expect("the summary");
    let summary: serde_json::Value = serde_json::from_str(last).expect("json");
    assert!(summary["rows_in"].as_u64().is_some_and(|rows| rows > 0) && summary["rows_in"] == summary["rows_out"], "{summary}");
}

#[test]
fn a_killed_worker_is_started_again_under_its_name() {
    let folder = Folder::with_job(ENDLESS);
    let mut job = Running::start(&folder, &["--log-format", "json", "run", "job.yaml", "--workers", "1"]);
    job.wait_for_line(|line| line.contains("\"message\":\"starting\"") && line.contains("\"worker\":\"0\""));
    let first = workers_of(job.id());
    assert_eq!(first.len(), 1);
    kill(first[0]);
    job.wait_for_line(|line| line.contains("the worker has died and is started again") && line.contains("signal 9"));
    job.wait_for_line(|line| line.contains("\"message\":\"starting\"") && line.contains("\"worker\":\"0\""));
    let supervisor = job.id();
    assert!(job.wait_until(|| workers_of(supervisor).first().is_some_and(|pid| *pid != first[0])));
    job.signal("TERM");
    assert_eq!(job.end().0, Some(0));
}

#[test]
fn workers_die_with_their_supervisor() {
    let folder = Folder::with_job(ENDLESS);
    let mut job = Running::start(&folder, &["run", "job.yaml", "--workers", "1"]);
    job.wait_for_line(|line| line.starts_with("[0] ") && line.contains("starting"));
    let workers = workers_of(job.id());
    assert!(workers.len() == 1 && is_alive(workers[0]));
    kill(job.id());
    assert!(job.wait_until(|| !is_alive(workers[0])), "the worker outlives its supervisor");
}

#[test]
fn a_worker_that_fails_again_and_again_ends_the_job_with_its_reason() {
    let folder = Folder::with_job(&ENDLESS.replace("kafka:", "state_dir: taken\nkafka:"));
    folder.write("taken", "a file where the state should lie");
    let started = Instant::now();
    let output = folder.run_with(&["run", "job.yaml", "--workers", "1"], &[]);
    assert_eq!(output.status, Some(1), "{}", output.all);
    assert!(output.all.contains("[0] ") && output.all.contains("can't use the state folder"), "{}", output.all);
    assert!(output.all.contains("worker `0` ended 5 times in a row with exit code 1"), "{}", output.all);
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_state_folder_of_another_job_is_refused_at_the_start() {
    let folder = Folder::with_job(&ENDLESS.replace("kafka:", "state_dir: mine\nkafka:"));
    std::fs::create_dir(folder.path().join("mine")).expect("a folder");
    folder.write("mine/streamshield.json", "{\"job\": \"payments\"}\n");
    let output = folder.fails(2, &["run", "job.yaml"]);
    assert!(output.contains("belongs to job `payments`, this one is `endless`"), "{output}");
}

#[test]
fn the_rows_of_a_print_table_come_through_as_they_are() {
    let folder = Folder::with_job(&support::JOB.replace("slots: 1\n", ""));
    let output = folder.run_with(&["run", "job.yaml", "--workers", "1", "--summary", "json"], &[]);
    assert_eq!(output.status, Some(0), "{}", output.all);
    assert!(
        output.stdout.lines().any(|line| line.contains("one")) && output.stdout.lines().any(|line| line.contains("two")),
        "{}",
        output.all
    );
    let summary: serde_json::Value = serde_json::from_str(output.stdout.lines().last().expect("a line")).expect("the summary");
    assert_eq!((&summary["rows_in"], &summary["rows_out"]), (&2.into(), &2.into()));
}

/// A job whose one worker has ended, and nobody has read yet what it printed: more than one pipe takes, and less than two.
fn ended_unread() -> (Folder, Running) {
    let folder = Folder::with_job(&support::JOB.replace("slots: 1\n", ""));
    let lines: Vec<String> = (0..1_000).map(|row| format!("{{\"text\": \"{row:090}\"}}\n")).collect();
    folder.write("lines.jsonl", &lines.concat());
    let mut job = Running::start(&folder, &["run", "job.yaml", "--workers", "1", "--summary", "json"]);
    job.wait_for_line(|line| line.contains("the worker has ended"));
    (folder, job)
}

#[test]
fn a_slow_reader_gets_every_printed_row_and_the_summary_after_them() {
    let (_folder, job) = ended_unread();
    // Longer than a job waits for him that was asked to stop.
    std::thread::sleep(Duration::from_secs(11));
    let (code, output) = job.end();
    assert_eq!(code, Some(0), "{output}");
    let rows = output.lines().take_while(|line| line.starts_with("+I[")).count();
    let next = output.lines().nth(rows).expect("the summary");
    assert!(rows == 1_000 && next.starts_with("{\"rows_in\""), "{rows} rows, then {next}");
}

#[test]
fn rows_that_nobody_reads_are_given_up_once_the_job_is_asked_to_stop_and_that_is_no_good_end() {
    let (_folder, mut job) = ended_unread();
    let supervisor = job.id();
    job.signal("TERM");
    assert!(job.wait_until(|| !is_alive(supervisor)), "it waits for its reader");
    let (code, output) = job.end();
    assert!(code == Some(1) && output.contains("were read within 10s") && !output.contains("\"rows_in\""), "{output}");
}

/// Counts generated bids in three regions, followed in Tier 1, with checkpoints in a folder.
const COUNTS: &str = "\
name: counts
tier: 1
kafka: {embedded: true, listen: BROKER}
slots: 1
parallelism: 3
checkpoint: {store: 'file://FOLDER/store', interval: 1 s}
sql: |
  CREATE TABLE bid (auction BIGINT, bidder BIGINT, price BIGINT, `dateTime` TIMESTAMP(3), WATERMARK FOR `dateTime` AS `dateTime`) WITH (
    'connector' = 'nexmark', 'nexmark.table' = 'bid', 'rows-per-second' = '500', 'splits' = '2', 'event-time.start' = 'now'
  );
  CREATE TABLE counts (window_end TIMESTAMP(3), auction BIGINT, bids BIGINT) WITH ('connector' = 'kafka', 'topic' = 'counts', 'format' = 'json');
  INSERT INTO counts
  SELECT window_end, auction, COUNT(*) FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '1' SECOND))
  GROUP BY auction, window_start, window_end;
";

fn counting() -> (Folder, Running, String) {
    begun(COUNTS, 5)
}

/// A job of three workers that has begun, and the address of its broker.
fn begun(text: &str, regions: usize) -> (Folder, Running, String) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").to_string();
    let folder = Folder::new();
    folder.write("job.yaml", &text.replace("BROKER", &free).replace("FOLDER", &folder.path().display().to_string()));
    let mut job = Running::start(&folder, &["run", "job.yaml", "--workers", "3", "--summary", "json"]);
    assert!(job.wait_until(|| {
        let status = status(&folder);
        workers(&status).len() == 3 && has_settled(&status, regions)
    }));
    (folder, job, free)
}

fn status(folder: &Folder) -> serde_json::Value {
    let output = folder.run_with(&["status", "job.yaml", "--json"], &[]);
    serde_json::from_str(&output.stdout).unwrap_or_default()
}

/// Names and incarnations.
fn workers(status: &serde_json::Value) -> Vec<(String, u64)> {
    let workers = status["workers"].as_array().cloned().unwrap_or_default();
    workers
        .iter()
        .map(|worker| (worker["worker"].as_str().unwrap_or_default().into(), worker["incarnation"].as_u64().unwrap_or_default()))
        .collect()
}

/// Every one of so many regions is active, has committed and has a follower that may take over.
fn has_settled(status: &serde_json::Value, expected: usize) -> bool {
    let regions = status["regions"].as_array().cloned().unwrap_or_default();
    let is_settled = |region: &serde_json::Value| {
        region["state"] == "active" && region["epoch"].as_u64() > Some(1) && region["followers"][0]["ready"] == true
    };
    regions.len() == expected && regions.iter().all(is_settled)
}

/// Two regions, of which one takes down every process that has a row of it.
const POISONED: &str = "\
name: poisoned
kafka: {embedded: true, listen: BROKER}
slots: 1
commit_interval: 50 ms
sql: |
  CREATE TABLE bid (auction BIGINT, bidder BIGINT, price BIGINT, `dateTime` TIMESTAMP(3), WATERMARK FOR `dateTime` AS `dateTime`) WITH (
    'connector' = 'nexmark', 'nexmark.table' = 'bid', 'rows-per-second' = '500', 'splits' = '2', 'event-time.start' = 'now'
  );
  CREATE TABLE nowhere (auction BIGINT) WITH ('connector' = 'blackhole');
  INSERT INTO nowhere SELECT auction FROM bid;
";

#[test]
fn a_region_that_kills_every_process_is_quarantined_and_the_rest_goes_on() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").to_string();
    let folder = Folder::new();
    folder.write("job.yaml", &POISONED.replace("BROKER", &free));
    let mut command = folder.command(&["run", "job.yaml", "--workers", "2"]);
    let mut job = Running::spawn(command.env("STREAMSHIELD_FAIL_AT", "engine::rows_of:s0/0"));
    let region = |name: &str| {
        let regions = status(&folder)["regions"].as_array().cloned().unwrap_or_default();
        regions.into_iter().find(|region| region["region"] == name).unwrap_or_default()
    };
    let reason = || region("s0/0")["state"]["quarantined"]["reason"].as_str().unwrap_or_default().to_string();
    assert!((0..3).any(|_| job.wait_until(|| !reason().is_empty())), "not quarantined: {}", status(&folder));
    assert!(reason().contains("its process died in epoch"), "{}", reason());
    let epoch = || region("s0/1")["epoch"].as_u64();
    assert!(job.wait_until(|| region("s0/1")["state"] == "active" && epoch().is_some()), "{}", status(&folder));
    let before = epoch();
    assert!(job.wait_until(|| epoch() > before), "the other region does not go on: {}", status(&folder));
    job.signal("TERM");
    let (code, output) = job.end();
    let deaths = output.matches("the worker has died and is started again").count();
    assert!(code == Some(0) && (5..10).contains(&deaths), "{code:?} after {deaths} deaths:\n{output}");
}

/// The process of a worker.
fn process_of(job: &Running, worker: &str) -> u32 {
    let is_it = |pid: &u32| {
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split('\0').collect::<Vec<_>>().windows(2).any(|pair| pair == ["--worker", worker])
    };
    workers_of(job.id()).into_iter().find(is_it).expect("the worker's process")
}

#[test]
fn status_shows_all_workers_and_a_killed_one_comes_back_under_its_name() {
    let (folder, mut job, _) = counting();
    let before = workers(&status(&folder));
    assert_eq!(before.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["0", "1", "2"]);
    let table = folder.succeeds(&["status", "job.yaml"]);
    assert!(table.contains("counts · tier 1 (active-active) · 3 workers · 5 regions") && table.contains("replica"), "{table}");
    kill(process_of(&job, "1"));
    job.wait_for_line(|line| line.contains("the worker has died and is started again"));
    assert!(job.wait_until(|| {
        let status = status(&folder);
        let after = workers(&status);
        after.len() == 3 && after[1].1 > before[1].1 && (after[0].1, after[2].1) == (before[0].1, before[2].1) && has_settled(&status, 5)
    }));
    job.signal("TERM");
    let (code, output) = job.end();
    assert_eq!(code, Some(0), "{output}");
}

#[test]
fn a_drained_worker_owns_nothing_until_that_is_taken_back() {
    let (folder, mut job, _) = counting();
    let owned = |worker: usize| status(&folder)["workers"][worker]["regions_owned"].as_u64();
    assert!(folder.succeeds(&["workers", "drain", "job.yaml", "2", "--wait"]).contains("owns nothing any more"));
    assert_eq!(owned(2), Some(0));
    assert!(folder.succeeds(&["workers", "list", "job.yaml"]).contains("draining"));
    folder.succeeds(&["workers", "drain", "job.yaml", "2", "--undo"]);
    assert!(job.wait_until(|| owned(2) > Some(0)), "it gets its share again");
    assert!(folder.fails(2, &["workers", "drain", "job.yaml", "22"]).contains("has no live worker `22`"));
    job.signal("TERM");
    assert_eq!(job.end().0, Some(0));
}

#[test]
fn a_paused_worker_stands_down_and_joins_again_in_the_same_process() {
    let (folder, mut job, _) = counting();
    let (before, paused) = (workers(&status(&folder)), process_of(&job, "0"));
    let send = |name: &str| {
        let sent = std::process::Command::new("kill").args([&format!("-{name}"), &paused.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()));
    };
    send("STOP");
    assert!(job.wait_until(|| workers(&status(&folder)).len() == 2), "it is expired");
    send("CONT");
    let lines = job.wait_for_line(|line| line.contains("it joins again as a new incarnation"));
    assert!(lines.last().is_some_and(|line| line.starts_with("[0] ")));
    assert!(job.wait_until(|| {
        let status = status(&folder);
        let after = workers(&status);
        after.len() == 3 && after[0].1 > before[0].1 && has_settled(&status, 5)
    }));
    assert_eq!(process_of(&job, "0"), paused);
    job.signal("TERM");
    let (code, output) = job.end();
    assert!(code == Some(0) && !output.contains("the state can't be used"), "{output}");
}

#[test]
fn a_worker_whose_name_is_taken_leaves_with_3() {
    let (folder, mut job, broker) = counting();
    let text = std::fs::read_to_string(folder.path().join("job.yaml")).expect("the job");
    let elsewhere = text.replace(&format!("{{embedded: true, listen: {broker}}}"), &format!("{{bootstrap.servers: '{broker}'}}"));
    folder.write("elsewhere.yaml", &elsewhere.replace("tier: 1", "tier: 1\nstate_dir: elsewhere"));
    let _taker = Running::start(&folder, &["worker", "elsewhere.yaml", "--worker", "1"]);
    job.wait_for_line(|line| line.starts_with("[1] ") && line.contains("another process is worker `1` of job `counts` now"));
    let (code, output) = job.end();
    assert_eq!(code, Some(3), "{output}");
    assert!(output.contains("worker `1` has lost its name to another process"), "{output}");
}

#[test]
fn a_job_without_exchanges_is_restored_by_the_records_of_its_regions_and_only_once() {
    let (bids, _) = COUNTS.split_once("  CREATE TABLE counts").expect("the table of bids comes first");
    let dear = "  CREATE TABLE dear (auction BIGINT, price BIGINT) WITH ('connector' = 'kafka', 'topic' = 'dear', 'format' = 'json');
  INSERT INTO dear SELECT auction, price FROM bid WHERE price > 100;
";
    let (folder, mut job, _) = begun(&format!("{bids}{dear}"), 2);
    let restore = ["checkpoints", "restore", "job.yaml", "--to", "latest", "--as", "counts-2"];
    let restored = folder.succeeds(&restore);
    let begins = |region: &str| restored.lines().any(|line| line.starts_with(&format!("{region} from epoch ")));
    assert!(begins("s0/0") && begins("s0/1"), "{restored}");
    assert!(!folder.path().join("store/counts-2").exists(), "the records are in the changelogs");
    // As soon as the job has gone on.
    assert!(job.wait_until(|| folder.run_with(&restore, &[]).all.contains("was restored before")));
    job.signal("TERM");
    assert_eq!(job.end().0, Some(0));
    let refusal = folder.fails(1, &["checkpoints", "restore", "job.yaml", "--to", "latest", "--as", "counts-3"]);
    assert!(refusal.contains("the cluster does not answer"), "{refusal}");
}

#[test]
fn checkpoints_are_listed_verified_pinned_and_made_the_start_of_another_job() {
    let (folder, mut job, _) = counting();
    let listed = |folder: &Folder| -> Vec<serde_json::Value> {
        let output = folder.run_with(&["checkpoints", "list", "job.yaml", "--json"], &[]);
        serde_json::from_str(&output.stdout).unwrap_or_default()
    };
    let regions = |list: &[serde_json::Value]| {
        list.iter().map(|checkpoint| checkpoint["region"].to_string()).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert!(job.wait_until(|| regions(&listed(&folder)) == 5), "a checkpoint of each region");
    // The job goes on meanwhile: only what it has committed is taken.
    let restored = folder.succeeds(&["checkpoints", "restore", "job.yaml", "--to", "latest", "--as", "counts-2"]);
    let begins = |region: &str| restored.lines().any(|line| line.starts_with(&format!("{region} from epoch ")));
    assert!(["s0/0", "s0/1", "s1/0", "s1/1", "s1/2"].iter().all(|region| begins(region)), "{restored}");
    assert!(folder.path().join("store/counts-2/1-0/manifests").exists() && !folder.path().join("store/counts-2/0-0").exists());
    assert!(folder.fails(1, &["checkpoints", "restore", "job.yaml", "--to", "latest", "--as", "counts-2"]).contains("already"));
    job.signal("TERM");
    assert_eq!(job.end().0, Some(0));

    assert!(folder.succeeds(&["checkpoints", "list", "job.yaml"]).contains("s1/0"));
    assert!(folder.succeeds(&["checkpoints", "verify", "job.yaml"]).contains("checkpoints are whole"));
    assert!(folder.succeeds(&["checkpoints", "pin", "job.yaml", "--region", "s1/0"]).contains("pinned   s1/0"));
    assert_eq!(listed(&folder).iter().filter(|checkpoint| checkpoint["pinned"] == true).count(), 1);
    assert!(folder.succeeds(&["checkpoints", "unpin", "job.yaml"]).contains("unpinned s1/0"));
    folder.succeeds(&["checkpoints", "gc", "job.yaml"]);
    assert!(folder.fails(1, &["checkpoints", "restore", "job.yaml", "--to", "0", "--as", "older"]).contains("has no checkpoint that old"));
    assert!(folder.fails(2, &["checkpoints", "restore", "job.yaml", "--to", "latest", "--as", "counts"]).contains("onto itself"));
    let refusal = folder.fails(1, &["checkpoints", "restore", "job.yaml", "--to", "latest", "--as", "counts-3"]);
    assert!(refusal.contains("the cluster does not answer"), "{refusal}");

    let damaged = std::fs::read_dir(folder.path().join("store/counts/1-0/files")).expect("files").flatten();
    damaged.for_each(|file| std::fs::write(file.path(), "not what it was").expect("written"));
    let verdict = folder.fails(1, &["checkpoints", "verify", "job.yaml", "--region", "s1/0"]);
    assert!(verdict.contains("damaged") && verdict.contains("can't be restored"), "{verdict}");
}

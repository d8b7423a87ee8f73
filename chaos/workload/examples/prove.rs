//! Runs the load against a job that somebody else runs, and judges it.
//!
//! ```text
//! prove SERVERS RECORDS RATE JOB_FILE     writes JOB_FILE, creates topics, sends; then waits for the output and verifies
//! ```
//! Start `streamshield run JOB_FILE` when it says so, and do to it what you like.

use std::time::{Duration, Instant};
use streamshield_workload::checks::ControlFold;
use streamshield_workload::{Flow, Settings, Workload};

fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [servers, records, rate, file] = arguments.as_slice() else { anyhow::bail!("prove SERVERS RECORDS RATE JOB_FILE") };
    let (records, rate): (u64, u64) = (records.parse()?, rate.parse()?);
    let seed = streamshield_workload::time::wall_ms() as u64;
    let workload = Workload::new(format!("prove-{seed}"), seed, Settings { rate, ..Settings::default() })?;
    workload.create_topics(servers)?;
    std::fs::write(file, workload.job_yaml(servers, &[]))?;
    println!("run the job: streamshield run {file}");
    let observer = workload.observe(servers)?;
    let running = workload.start(servers)?;
    while running.records_sent() < records && running.is_alive() {
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("behind the schedule now and at most: {:?} ms", running.behind_ms());
    let sent = running.stop()?;
    let drained = observer.wait_drained(&sent, Duration::from_secs(60));
    println!("{drained:?}");
    let seen = observer.stop()?;
    let latency = |share| seen.latency_ms(Flow::Passed, share, sent.schedule.start_ms(), sent.ended_ms);
    println!("latency p50 {:?} ms, p99 {:?} ms; {} MiB before the oracle", latency(0.5), latency(0.99), peak_rss_mib());
    let started = Instant::now();
    let findings = workload.verify(servers, &sent, Some(&seen), ControlFold::new(&workload.name))?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} in {seconds:.1} s ({:.0} records/s), peak {} MiB",
        findings.summary(),
        findings.records_verified as f64 / seconds,
        peak_rss_mib()
    );
    println!("{}", serde_json::to_string_pretty(&findings)?);
    anyhow::ensure!(findings.is_clean(), "anomalies were found");
    Ok(())
}

//! `make demo-failover`: three workers on an embedded broker, one of them killed every ten seconds, and a running proof that nothing is lost or doubled.
//!
//! ```text
//! streamshield run examples/failover.yaml --workers 3 ── broker, supervisor ─┬─ worker 0
//!        ▲ status --json: phases                                             ├─ worker 1 ◄── kill -9, started again by the supervisor
//!        │                                                                   └─ worker 2
//!   this program ◄── counts, read committed: each window of 100 ms must add up to 2,000
//! ```
//! The gap that is shown is the viewer's: from the kill to the first window that ended after it and is complete. The phases are the new owners' own words.

use anyhow::{Context, Result, ensure};
use rdkafka::message::Message;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use streamshield_core::status::{ClusterStatus, Takeover};
use streamshield_tests::support::client::{Output, topics};
use streamshield_tests::support::figures::{self, quantile};
use streamshield_tests::support::http::free_address;
use streamshield_tests::support::process::Process;
use streamshield_tests::support::streamshield::{binary, call};
use streamshield_workload::time::{parse_time, wall_ms};

const EXAMPLE: &str = "examples/failover.yaml";
const LISTEN: &str = "127.0.0.1:19192";
const TOPIC: &str = "counts";
/// As the example says: 20,000 ticks a second, windows of 100 ms.
const TICKS_PER_WINDOW: u64 = 2_000;
const WINDOW_MS: i64 = 100;
const WORKERS: usize = 3;
const KILL_INTERVAL: Duration = Duration::from_secs(10);
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The splits begin at moments of their own: the first windows are not whole.
const FIRST_WINDOWS_MS: i64 = 2_000;
/// A window that is not complete this long after its end is waited for no more.
const COMPLETE_MS_MAX: i64 = 30_000;
/// At the end: regions emit their windows in order, so what lies this far behind the newest complete window has come.
const SLACK_MS: i64 = 1_000;
/// A gap that is longer is told as this long.
const GAP_MAX: Duration = Duration::from_secs(20);
/// Phases are reported once a second.
const REPORT_PATIENCE: Duration = Duration::from_secs(3);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

#[derive(clap::Args)]
pub struct Options {
    /// Ends by itself after so many seconds.
    #[arg(long, env = "DEMO_SECONDS")]
    seconds: Option<u64>,
}

extern "C" fn interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

pub fn run(options: &Options) -> Result<()> {
    let handler = interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler only stores to an atomic, which is allowed in a signal handler.
    unsafe { libc::signal(libc::SIGINT, handler) };
    let folder = tempfile::Builder::new().prefix("demo-").tempdir()?;
    let address = free_address()?;
    let file = job_file(folder.path(), address)?;
    let mut command = Command::new(binary()?);
    command.arg("run").arg(&file).args(["--workers", &WORKERS.to_string(), "--summary", "json", "--live=never"]).current_dir(folder.path());
    let supervisor = Process::start(command, folder.path(), "run")?;
    println!("three workers on an embedded broker at {address}; one of them is killed every {} s", KILL_INTERVAL.as_secs());
    let mut demo = Demo {
        file,
        folder: folder.path().to_path_buf(),
        supervisor,
        proof: Proof::default(),
        kill: None,
        victims: 0,
        gaps_ms: Vec::new(),
        seen_offset: -1,
        told_second: 0,
    };
    let outcome = demo.watch(&address.to_string(), options.seconds.map(Duration::from_secs));
    let silent_ms = wall_ms() - demo.proof.newest_complete_ms;
    demo.proof.judge(demo.proof.newest_complete_ms - SLACK_MS);
    let (ended, _) = demo.supervisor.terminate(Duration::from_secs(30))?;
    outcome.with_context(|| demo.supervisor.last_words())?;
    ensure!(ended.status.success(), "the supervisor: {}\n{}", ended.status, demo.supervisor.last_words());
    let summary = json!({
        "kills": demo.gaps_ms.len(), "gap_p50_ms": quantile(&demo.gaps_ms, 0.5), "gap_max_ms": quantile(&demo.gaps_ms, 1.0),
        "windows": demo.proof.complete, "ticks": demo.proof.complete * TICKS_PER_WINDOW, "lost": demo.proof.lost, "doubled": demo.proof.doubled,
    });
    figures::write("demo-failover.json", &summary)?;
    println!("{summary}");
    ensure!(demo.proof.lost + demo.proof.doubled == 0, "rows were lost or doubled");
    ensure!(demo.proof.complete > 0, "no window was complete");
    ensure!(silent_ms < GAP_MAX.as_millis() as i64, "the newest complete window ended {silent_ms} ms before the end");
    Ok(())
}

/// The example with a port of its own: the usual one may be taken.
fn job_file(folder: &Path, address: SocketAddr) -> Result<std::path::PathBuf> {
    let text = std::fs::read_to_string(figures::root().join(EXAMPLE)).context(EXAMPLE)?;
    ensure!(text.contains(LISTEN), "{EXAMPLE} listens elsewhere than at {LISTEN}");
    let file = folder.join("failover.yaml");
    std::fs::write(&file, text.replace(LISTEN, &address.to_string()))?;
    Ok(file)
}

struct Demo {
    file: std::path::PathBuf,
    folder: std::path::PathBuf,
    supervisor: Process,
    proof: Proof,
    kill: Option<Kill>,
    victims: usize,
    gaps_ms: Vec<f64>,
    /// Of the last take-over that was shown.
    seen_offset: i64,
    told_second: u64,
}

/// One that is being watched.
struct Kill {
    victim: usize,
    at: Instant,
    wall_ms: i64,
    gap_ms: Option<f64>,
}

impl Demo {
    fn watch(&mut self, servers: &str, duration: Option<Duration>) -> Result<()> {
        let mut output = self.wait_for_output(servers)?;
        let started = Instant::now();
        let mut next_kill = started + KILL_INTERVAL;
        let mut failed = None;
        // The last kill is watched to its end.
        let is_over = |demo: &Demo| {
            INTERRUPTED.load(Ordering::SeqCst) || (demo.kill.is_none() && duration.is_some_and(|duration| started.elapsed() >= duration))
        };
        output.visit_until(Duration::from_secs(60), &mut |message, _| {
            if let Some(message) = message {
                self.proof.take(message.payload().unwrap_or_default());
            }
            let turn = self.turn(started, &mut next_kill, duration);
            failed = turn.err();
            failed.is_some() || is_over(self)
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn wait_for_output(&mut self, servers: &str) -> Result<Output> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let is_there = topics(servers).is_ok_and(|topics| topics.iter().any(|topic| topic == TOPIC));
            if let (true, Ok(output)) = (is_there, Output::follow(servers, TOPIC)) {
                return Ok(output);
            }
            ensure!(self.supervisor.wait(Duration::from_millis(100)).is_none(), "the job has ended");
            ensure!(Instant::now() < deadline, "no output in {START_TIMEOUT:?}");
        }
    }

    fn turn(&mut self, started: Instant, next_kill: &mut Instant, duration: Option<Duration>) -> Result<()> {
        self.proof.judge(wall_ms() - COMPLETE_MS_MAX);
        let second = started.elapsed().as_secs();
        if second != self.told_second {
            self.told_second = second;
            self.tell(second);
        }
        match &mut self.kill {
            Some(kill) if kill.gap_ms.is_none() => {
                let over = self.proof.newest_complete_ms > kill.wall_ms || kill.at.elapsed() > GAP_MAX;
                kill.gap_ms = over.then(|| kill.at.elapsed().as_secs_f64() * 1e3);
            }
            Some(kill) if kill.at.elapsed() > REPORT_PATIENCE => self.show_take_over()?,
            Some(_) => {}
            None if Instant::now() >= *next_kill && duration.is_none_or(|duration| started.elapsed() < duration) => {
                *next_kill += KILL_INTERVAL;
                self.kill_one()?;
            }
            None => {}
        }
        Ok(())
    }

    /// In a terminal one line that is written again and again, else one every five seconds.
    fn tell(&self, second: u64) {
        let is_terminal = std::io::stdout().is_terminal();
        let proof = &self.proof;
        let line = format!(
            "{second:>4} s   {} windows, {} ticks   lost {}   doubled {}   waiting for {} windows",
            proof.complete,
            proof.complete * TICKS_PER_WINDOW,
            proof.lost,
            proof.doubled,
            proof.open.len()
        );
        if is_terminal {
            print!("\r\x1b[K{line}");
            let _ = std::io::Write::flush(&mut std::io::stdout());
        } else if second.is_multiple_of(5) {
            println!("{line}");
        }
    }

    fn kill_one(&mut self) -> Result<()> {
        let victim = self.victims % WORKERS;
        let Some(pid) = worker_pid(self.supervisor.pid, victim) else { return Ok(()) };
        self.victims += 1;
        let (at, wall_ms) = (Instant::now(), wall_ms());
        // SAFETY: kill takes plain numbers. The process is a worker of the supervisor that this program started; found a moment ago, its parent has not reaped it
        // for the next 20 ms at least.
        ensure!(unsafe { libc::kill(pid, libc::SIGKILL) } == 0, "worker {victim} could not be killed");
        self.kill = Some(Kill { victim, at, wall_ms, gap_ms: None });
        Ok(())
    }

    fn show_take_over(&mut self) -> Result<()> {
        let Some(Kill { victim, gap_ms: Some(gap_ms), .. }) = self.kill.take() else { return Ok(()) };
        self.gaps_ms.push(gap_ms);
        let clear = if std::io::stdout().is_terminal() { "\r\x1b[K" } else { "" };
        println!("{clear}✗ worker {victim} killed: complete results again after {gap_ms:.0} ms");
        let status = call(&self.folder, &["status", &self.file.display().to_string(), "--json"])?;
        let status: ClusterStatus = serde_json::from_slice(&status.stdout).context("status --json")?;
        let mut new: Vec<&Takeover> = status.takeovers.iter().filter(|takeover| takeover.offset > self.seen_offset).collect();
        new.sort_by_key(|takeover| takeover.offset);
        self.seen_offset = new.last().map_or(self.seen_offset, |takeover| takeover.offset);
        for takeover in new {
            let phases: Vec<String> = takeover
                .phases_ms
                .named()
                .iter()
                .map(|(name, ms)| format!("{name} {}", ms.map_or("?".into(), |ms| format!("{ms} ms"))))
                .collect();
            println!("    {} → worker {} ({:?}): {}", takeover.region, takeover.to, takeover.cause, phases.join(", "));
        }
        Ok(())
    }
}

/// The process of a worker: a child of the supervisor that was told this name.
fn worker_pid(supervisor: u32, worker: usize) -> Option<i32> {
    std::fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        let is_named = words.any(|word| word == b"--worker") && words.next() == Some(worker.to_string().as_bytes());
        parent == Some(supervisor) && is_named
    })
}

/// What the counts say.
#[derive(Default)]
struct Proof {
    /// Windows that are not complete, by their end, and the sensors that were counted in them.
    open: BTreeMap<i64, Window>,
    /// Ends of complete windows; a row for one of them is a doubled one. Old ones are forgotten.
    closed: BTreeSet<i64>,
    first_ms: Option<i64>,
    /// End of the last window that has been judged.
    judged_ms: i64,
    newest_complete_ms: i64,
    complete: u64,
    lost: u64,
    doubled: u64,
}

#[derive(Default)]
struct Window {
    ticks: u64,
    sensors: BTreeSet<i64>,
}

impl Proof {
    fn take(&mut self, payload: &[u8]) {
        let Ok(row) = serde_json::from_slice::<Value>(payload) else { return };
        let (Some(end_ms), Some(sensor), Some(ticks)) =
            (row["window_end"].as_str().and_then(parse_time), row["sensor"].as_i64(), row["ticks"].as_u64())
        else {
            return;
        };
        let first_ms = *self.first_ms.get_or_insert(end_ms);
        if end_ms < first_ms + FIRST_WINDOWS_MS {
            return;
        }
        if self.closed.contains(&end_ms) {
            self.doubled += ticks;
            return;
        }
        let window = self.open.entry(end_ms).or_default();
        window.ticks += ticks;
        let is_new = window.sensors.insert(sensor);
        if !is_new || window.ticks > TICKS_PER_WINDOW {
            self.doubled += if is_new { window.ticks - TICKS_PER_WINDOW } else { ticks };
        }
        if window.ticks == TICKS_PER_WINDOW {
            self.open.remove(&end_ms);
            self.closed.insert(end_ms);
            self.complete += 1;
            self.newest_complete_ms = self.newest_complete_ms.max(end_ms);
            while self.closed.len() > 10_000 {
                self.closed.pop_first();
            }
        }
    }

    /// Every window up to this end must be complete by now: what is missing in it was lost, also where no row of it came at all.
    fn judge(&mut self, until_ms: i64) {
        let Some(first_ms) = self.first_ms else { return };
        let mut end_ms = (first_ms + FIRST_WINDOWS_MS).max(self.judged_ms + WINDOW_MS);
        while end_ms <= until_ms {
            if !self.closed.contains(&end_ms) {
                let ticks = self.open.remove(&end_ms).map_or(0, |window| window.ticks);
                self.lost += TICKS_PER_WINDOW.saturating_sub(ticks);
            }
            self.judged_ms = end_ms;
            end_ms += WINDOW_MS;
        }
        // Rows of windows that were judged before.
        while let Some(entry) = self.open.first_entry().filter(|entry| *entry.key() <= self.judged_ms) {
            self.lost += TICKS_PER_WINDOW.saturating_sub(entry.remove().ticks);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use streamshield_workload::time::time_text;

    const START_MS: i64 = 1_704_067_200_000;

    /// The counts of these windows, by their number; half of a window's ticks are in each of two rows.
    fn proof(rows: impl IntoIterator<Item = (i64, i64)>) -> Proof {
        let mut proof = Proof::default();
        for (window, sensor) in rows {
            let end = time_text(START_MS + window * WINDOW_MS);
            let row = json!({ "window_end": end, "sensor": sensor, "ticks": TICKS_PER_WINDOW / 2 });
            proof.take(row.to_string().as_bytes());
        }
        proof
    }

    fn whole(windows: std::ops::Range<i64>) -> impl Iterator<Item = (i64, i64)> {
        windows.flat_map(|window| [(window, 1), (window, 2)])
    }

    #[test]
    fn nothing_is_lost_where_all_windows_came() {
        let mut proof = proof(whole(0..100));
        proof.judge(proof.newest_complete_ms);
        assert_eq!((proof.complete, proof.lost, proof.doubled), (80, 0, 0));
        proof.judge(proof.newest_complete_ms + WINDOW_MS);
        assert_eq!(proof.lost, TICKS_PER_WINDOW, "the next one must come as well");
    }

    #[test]
    fn a_window_without_any_row_is_lost_and_so_is_what_a_window_lacks() {
        let mut proof = proof(whole(0..50).chain(whole(51..60)).chain([(60, 1)]).chain(whole(61..100)));
        proof.judge(START_MS + 49 * WINDOW_MS);
        assert_eq!(proof.lost, 0);
        for _ in 0..2 {
            proof.judge(proof.newest_complete_ms - SLACK_MS);
            assert_eq!((proof.lost, proof.doubled), (TICKS_PER_WINDOW + TICKS_PER_WINDOW / 2, 0), "once each");
        }
    }
}

//! What the engine relies on of a Kafka broker, as checks by real clients.
//!
//! The same checks run against the embedded broker and against Apache Kafka: the broker and the checks have one author, so
//! only a check that Kafka passes as well says anything. A check works through librdkafka, or through raw frames where
//! librdkafka would never send what has to be tried (a repeated batch, a member that falls silent).
//!
//! Each check uses topics, groups and ids of its own, so they run side by side; checks that measure time run alone at the end.

mod admin;
mod fencing;
mod groups;
mod idempotence;
pub mod kit;
mod logs;
pub mod raw;
mod read;
mod speed;
mod transactions;
mod write;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use kit::Env;

/// Checks that run at the same time.
const LANES: usize = 4;

/// One check: what it found (a figure, or nothing), or why it fails.
#[derive(Clone, Copy)]
pub struct Check {
    pub name: &'static str,
    /// It fails when it takes longer.
    pub limit: Duration,
    /// Runs while nothing else does.
    pub is_alone: bool,
    pub run: fn(&Env) -> anyhow::Result<String>,
}

impl Check {
    const fn new(name: &'static str, limit_s: u64, run: fn(&Env) -> anyhow::Result<String>) -> Check {
        Check { name, limit: Duration::from_secs(limit_s), is_alone: false, run }
    }
    const fn alone(name: &'static str, limit_s: u64, run: fn(&Env) -> anyhow::Result<String>) -> Check {
        Check { is_alone: true, ..Check::new(name, limit_s, run) }
    }
}

/// How one check ended.
pub struct Outcome {
    pub name: &'static str,
    pub seconds: f64,
    pub result: Result<String, String>,
}

/// How a run ended.
pub struct Summary {
    pub outcomes: Vec<Outcome>,
}

impl Summary {
    pub fn passed(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.result.is_ok()).count()
    }
    pub fn failed(&self) -> Vec<&Outcome> {
        self.outcomes.iter().filter(|outcome| outcome.result.is_err()).collect()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for outcome in &self.outcomes {
            let (verdict, text) = match &outcome.result {
                Ok(found) => ("ok  ", found),
                Err(why) => ("FAIL", why),
            };
            writeln!(out, "{verdict} {:<40} {:>6.1} s  {text}", outcome.name, outcome.seconds)?;
        }
        write!(out, "{} of {} checks passed", self.passed(), self.outcomes.len())
    }
}

/// All checks, by area.
pub fn checks() -> Vec<Check> {
    [
        admin::CHECKS,
        write::CHECKS,
        idempotence::CHECKS,
        read::CHECKS,
        transactions::CHECKS,
        fencing::CHECKS,
        groups::CHECKS,
        logs::CHECKS,
        speed::CHECKS,
    ]
    .concat()
}

/// Runs the checks whose name contains `filter` against a broker, and prints each as it ends.
pub fn run(bootstrap: &str, filter: Option<&str>) -> Summary {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let run_id = format!("{:x}", since_epoch.as_millis() & 0xffff_ffff);
    let env = Arc::new(Env::new(bootstrap, &run_id));
    let wanted = checks().into_iter().filter(|check| filter.is_none_or(|part| check.name.contains(part)));
    let (alone, together): (Vec<_>, Vec<_>) = wanted.partition(|check| check.is_alone);
    let queue = Arc::new(Mutex::new(VecDeque::from(together)));
    let lanes: Vec<_> = (0..LANES)
        .map(|_| {
            let (queue, env) = (queue.clone(), env.clone());
            std::thread::spawn(move || {
                let next = || queue.lock().expect("no lane panics while it holds the queue").pop_front();
                std::iter::from_fn(next).map(|check| run_one(&env, check)).collect::<Vec<_>>()
            })
        })
        .collect();
    let mut outcomes: Vec<_> = lanes.into_iter().flat_map(|lane| lane.join().expect("a lane catches the panics of its checks")).collect();
    outcomes.extend(alone.into_iter().map(|check| run_one(&env, check)));
    let summary = Summary { outcomes };
    println!("{} of {} checks passed against {bootstrap}", summary.passed(), summary.outcomes.len());
    summary
}

/// A check that does not end is left behind: its clients can't be stopped from outside.
fn run_one(env: &Arc<Env>, check: Check) -> Outcome {
    let started = Instant::now();
    let (sender, receiver) = mpsc::channel();
    let env = env.clone();
    std::thread::spawn(move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (check.run)(&env)));
        let _ = sender.send(result.unwrap_or_else(|_| Err(anyhow::anyhow!("panicked"))));
    });
    let ended = receiver.recv_timeout(check.limit).unwrap_or_else(|_| Err(anyhow::anyhow!("no end after {:?}", check.limit)));
    let outcome = Outcome {
        name: check.name,
        seconds: started.elapsed().as_secs_f64(),
        result: ended.map_err(|why| format!("{why:#}").replace('\n', " ")),
    };
    match &outcome.result {
        Ok(found) => println!("ok   {} ({:.1} s) {found}", outcome.name, outcome.seconds),
        Err(why) => println!("FAIL {} ({:.1} s) {why}", outcome.name, outcome.seconds),
    }
    outcome
}

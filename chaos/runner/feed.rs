//! The load of a run, and the faults of its data: the stage asks for them, the workload makes them.

use super::shared::lock;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use streamshield_faults::{DataFeed, FaultError, Fired, Parameters, Value};
use streamshield_files::units;
use streamshield_workload::{DataFault, Running, Sent, WorkloadError};

/// Faulty records are sent in small lots.
const LOT_INTERVAL: Duration = Duration::from_millis(100);

pub(super) struct Load {
    running: Arc<Mutex<Option<Running>>>,
    rate: u64,
    /// Of the faulty records of faults that are over, those that are rows all the same.
    faulty_rows: AtomicU64,
    factor: Mutex<f64>,
    spoiling: Mutex<BTreeMap<String, Spoiling>>,
}

/// One fault of the data that is under way.
struct Spoiling {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    pub fn new(running: Running, rate: u64) -> Load {
        let running = Arc::new(Mutex::new(Some(running)));
        Load { running, rate, faulty_rows: AtomicU64::new(0), factor: Mutex::new(1.0), spoiling: Mutex::default() }
    }

    /// Zero once it was stopped.
    pub fn records_sent(&self) -> u64 {
        lock(&self.running).as_ref().map_or(0, Running::records_sent)
    }

    pub fn faulty_rows(&self) -> u64 {
        self.faulty_rows.load(Ordering::Relaxed)
    }

    pub fn is_alive(&self) -> bool {
        lock(&self.running).as_ref().is_some_and(Running::is_alive)
    }

    pub fn set_rate(&self, factor: f64) {
        *lock(&self.factor) = factor;
        if let Some(running) = lock(&self.running).as_ref() {
            running.set_rate(factor);
        }
    }

    pub fn stop(&self) -> Result<Sent, WorkloadError> {
        for (_, mut spoiling) in std::mem::take(&mut *lock(&self.spoiling)) {
            spoiling.end();
        }
        let running = lock(&self.running).take();
        running.ok_or_else(|| WorkloadError::Harness("the load was stopped before".into()))?.stop()
    }

    fn hot_key(&self, share: f64) {
        if let Some(running) = lock(&self.running).as_ref() {
            running.set_hot_key(share);
        }
    }
}

impl Spoiling {
    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only sleeps and asks; a panic would have been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn share(parameters: &Parameters) -> f64 {
    match parameters.get("share") {
        Some(Value::Number(share)) => *share,
        Some(Value::Text(text)) => units::share(text).unwrap_or(0.0),
        None => 0.0,
    }
}

impl DataFeed for Load {
    fn begin(&self, fault: &str, parameters: &Parameters) -> Result<Fired, FaultError> {
        let share = share(parameters);
        let mut spoiling = lock(&self.spoiling);
        if spoiling.contains_key(fault) {
            return Err(FaultError::NoTarget(format!("{fault} is under way already")));
        }
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let kind = fault.strip_prefix("data.").unwrap_or(fault);
        let thread = if kind == "hot_key" {
            self.hot_key(share);
            None
        } else {
            let makes = |fault: &DataFault| lock(&self.running).as_ref().is_some_and(|running| running.makes(*fault));
            let data_fault = DataFault::parse(kind).filter(makes);
            let data_fault =
                data_fault.ok_or_else(|| FaultError::NotPossibleHere(format!("this job's load has no records of the kind {kind}")))?;
            let per_second = self.rate as f64 * *lock(&self.factor) * share;
            let (running, stopped, counted) = (self.running.clone(), stop.clone(), count.clone());
            let spoil = move || spoil(&running, data_fault, per_second, &stopped, &counted);
            Some(
                std::thread::Builder::new()
                    .name(format!("spoil-{kind}"))
                    .spawn(spoil)
                    .map_err(|error| FaultError::Harness(error.into()))?,
            )
        };
        spoiling.insert(fault.into(), Spoiling { stop, count, thread });
        let evidence = format!("{} of the records from record {} on", percent(share), self.records_sent());
        // A hot key is there with the next record; the others count what they send.
        Ok(Fired { hit: vec!["input".into()], evidence, count: u64::from(kind == "hot_key") })
    }

    fn end(&self, fault: &str) -> Result<Fired, FaultError> {
        let Some(mut spoiling) = lock(&self.spoiling).remove(fault) else { return Ok(Fired::default()) };
        spoiling.end();
        if fault == "data.hot_key" {
            self.hot_key(0.0);
            return Ok(Fired { hit: Vec::new(), evidence: format!("up to record {}", self.records_sent()), count: 0 });
        }
        let count = spoiling.count.load(Ordering::Relaxed);
        if fault.strip_prefix("data.").and_then(DataFault::parse).is_some_and(DataFault::is_row) {
            self.faulty_rows.fetch_add(count, Ordering::Relaxed);
        }
        Ok(Fired { hit: Vec::new(), evidence: format!("{count} faulty records were sent"), count })
    }
}

fn percent(share: f64) -> String {
    format!("{} %", (share * 1e4).round() / 1e2)
}

/// Sends faulty records at a rate, at least one.
fn spoil(running: &Mutex<Option<Running>>, fault: DataFault, per_second: f64, stop: &AtomicBool, count: &AtomicU64) {
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let due = (per_second * began.elapsed().as_secs_f64()) as u64 + 1;
        let lot = due.saturating_sub(count.load(Ordering::Relaxed));
        if lot > 0 {
            match lock(running).as_ref() {
                Some(running) => running.inject(fault, lot),
                None => return,
            }
            count.fetch_add(lot, Ordering::Relaxed);
        }
        std::thread::sleep(LOT_INTERVAL);
    }
}

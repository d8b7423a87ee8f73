//! Sends the load, on a thread of its own, and faulty data among it.
//!
//! The loop looks at the schedule every millisecond and sends what is due, whatever became of what it sent before. The producer is idempotent and never
//! gives up: while the broker is away records wait in its queue, and they are still due when they were due. So what the broker has taken at the end is
//! exactly the schedule; anything else is no finding about the job, and [`Sent::is_complete`] says so.
//!
//! Changes (rate, hot key, faults) are requests to that thread: they hold from the next record on, and the schedule remembers from which one.
//!
//! What a record looks like is the [`Generator`]'s: the load's own one, or one that makes rows for a user's tables ([`user`](crate::user)).

use crate::client::Sender;
use crate::error::WorkloadError;
use crate::job::Workload;
use crate::payload::Message;
use crate::schedule::{BULK_SHARE, DataFault, Injected, Schedule, Settings};
use crate::time::wall_ms;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the schedule is looked at: less than a window by far.
const TURN: Duration = Duration::from_millis(1);
/// A request for few records costs three brokers on one machine more than the job does, and each of the job's stages that read the input fetches as often. It
/// also keeps a partition below the five requests under way that an idempotent producer may have: at five, librdkafka's thread spins until one is answered.
const LINGER: Duration = Duration::from_millis(100);
/// Faulty records of one run; the oracle remembers each (M-1).
const INJECTED_MAX: u64 = 1_000_000;
/// How long the broker may be away at the end.
const FLUSH_PATIENCE: Duration = Duration::from_secs(120);

/// What was sent: all that the right output depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sent {
    pub schedule: Schedule,
    /// Numbered records: 0 up to this one, without it.
    pub records: u64,
    /// When the closing records were due.
    pub ended_ms: i64,
    /// The longest that a record was handed to the client later than it was due: above some milliseconds the host was too slow for the load.
    pub behind_ms_max: i64,
    /// Messages that the broker has not taken. Above 0 nothing can be said about the job.
    pub undelivered: u64,
    /// In order, from the first record on.
    #[serde(default)]
    pub stretches: Vec<Stretch>,
}

/// A time of one rate, and what was sent in it. The schedule does not tell: when the rate changes, what is not sent yet is due at the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// 0: a pause.
    pub records_per_second: u64,
    pub lasted_ms: u64,
    /// Numbered records.
    pub sent: u64,
}

impl Stretch {
    /// What the rate asks for in this time, without what a sender that may be so late still has before it at the end.
    pub fn due(&self, late_ms: u64) -> u64 {
        self.records_per_second * self.lasted_ms.saturating_sub(late_ms) / 1_000
    }
}

impl Sent {
    /// Whether the broker has taken all of it.
    pub fn is_complete(&self) -> bool {
        self.undelivered == 0
    }

    /// Numbered and injected records.
    pub fn total(&self) -> u64 {
        self.records + self.schedule.injected_total()
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    behind_ms: AtomicI64,
    behind_ms_max: AtomicI64,
    requests: Mutex<Vec<Request>>,
}

enum Request {
    Rate(f64),
    HotKey(f64),
    Inject(DataFault, u64),
}

/// Makes the messages of a load.
pub(crate) trait Generator: Send {
    /// The messages of numbered record `n`; called for 0, 1, 2…
    fn record(&mut self, schedule: &Schedule, n: u64, send: &mut SendTo<'_>) -> Result<(), WorkloadError>;
    /// Whether this load has faulty records of a kind.
    fn makes(&self, fault: DataFault) -> bool;
    /// A faulty record of a kind that it makes.
    fn fault(
        &mut self,
        schedule: &Schedule,
        fault: DataFault,
        number: u64,
        due_ms: i64,
        send: &mut SendTo<'_>,
    ) -> Result<(), WorkloadError>;
    /// What comes last.
    fn end(&mut self, schedule: &Schedule, ended_ms: i64, send: &mut SendTo<'_>) -> Result<(), WorkloadError>;
}

/// Hands a message for a topic to the client.
pub(crate) type SendTo<'a> = dyn FnMut(&str, &Message) -> Result<(), WorkloadError> + 'a;

/// A load that is being sent. Dropping it ends the sending, without the closing records.
pub struct Running {
    shared: Arc<Shared>,
    faults: Vec<DataFault>,
    start_ms: i64,
    thread: Option<JoinHandle<Result<Sent, WorkloadError>>>,
}

impl Running {
    /// The first record is due at the next full second.
    pub(crate) fn start(
        generator: impl Generator + 'static,
        (seed, settings): (u64, Settings),
        servers: &str,
    ) -> Result<Running, WorkloadError> {
        let start_ms = (wall_ms() / 1_000 + 1) * 1_000;
        let shared = Arc::new(Shared::default());
        let faults = DataFault::ALL.into_iter().filter(|fault| generator.makes(*fault)).collect();
        let mut feed = Feed {
            sender: Sender::new(servers, LINGER)?,
            generator,
            schedule: Schedule::new(seed, settings, start_ms),
            next: 0,
            is_paused: false,
            stretches: Vec::new(),
            stretch_from: (start_ms, 0),
        };
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("feeder".into())
            .spawn(move || feed.run(&theirs))
            .map_err(|error| WorkloadError::Harness(format!("no thread for the feeder: {error}")))?;
        Ok(Running { shared, faults, start_ms, thread: Some(thread) })
    }

    /// When record 0 is due.
    pub fn start_ms(&self) -> i64 {
        self.start_ms
    }

    /// Numbered records so far.
    pub fn records_sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// How much later than due the last records were handed to the client, and the most so far: whether the host keeps up with the load.
    pub fn behind_ms(&self) -> (i64, i64) {
        (self.shared.behind_ms.load(Ordering::Relaxed), self.shared.behind_ms_max.load(Ordering::Relaxed))
    }

    /// Still sending: the thread has not failed.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// From the next record on, so many times the settings' rate: 5.0 is the peak, 1.0 the usual, 0.0 a pause.
    pub fn set_rate(&self, factor: f64) {
        self.shared.requests.lock().push(Request::Rate(factor));
    }

    /// From the next record on, this share of all records (up to 0.95) has one and the same key; 0 ends it.
    pub fn set_hot_key(&self, share: f64) {
        self.shared.requests.lock().push(Request::HotKey(share));
    }

    /// Whether this load has faulty records of a kind.
    pub fn makes(&self, fault: DataFault) -> bool {
        self.faults.contains(&fault)
    }

    /// So many faulty records at once, spread over the partitions. More than a million in a run are not taken, nor those that it does not make.
    pub fn inject(&self, fault: DataFault, count: u64) {
        self.shared.requests.lock().push(Request::Inject(fault, count));
    }

    /// Ends the load with records that close all windows, and waits until the broker has everything.
    pub fn stop(mut self) -> Result<Sent, WorkloadError> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("only stop and drop take it");
        thread.join().map_err(|_| WorkloadError::Harness("the feeder panicked".into()))?
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends the first record of each bulk key, as fast as it goes.
pub(crate) fn fill(workload: &Workload, servers: &str) -> Result<(), WorkloadError> {
    let sender = Sender::new(servers, LINGER)?;
    let topic = workload.topics().input;
    // A watermark of the past closes nothing.
    let due_ms = wall_ms() - 3_600_000;
    let schedule = Schedule::new(workload.seed, workload.settings.clone(), due_ms);
    let mut message = Message::default();
    for key in 0..workload.settings.bulk_keys() {
        message.write_bulk(&schedule, key, schedule.first_bulk_value(key), due_ms);
        sender.send(&topic, &message)?;
    }
    match sender.flush(FLUSH_PATIENCE)? {
        0 => Ok(()),
        undelivered => {
            Err(WorkloadError::Broker { doing: "fill the state".into(), detail: format!("{undelivered} records were not taken") })
        }
    }
}

/// The load's own records.
pub(crate) struct Numbered {
    topic: String,
    /// Per key, how many records there were.
    sequences: Vec<u64>,
    message: Message,
}

impl Numbered {
    pub fn new(workload: &Workload) -> Numbered {
        Numbered { topic: workload.topics().input, sequences: vec![0; workload.settings.keys as usize], message: Message::default() }
    }
}

impl Generator for Numbered {
    fn record(&mut self, schedule: &Schedule, n: u64, send: &mut SendTo<'_>) -> Result<(), WorkloadError> {
        let record = schedule.record(n);
        let seq = &mut self.sequences[record.key as usize];
        *seq += 1;
        self.message.write_record(schedule, &record, *seq);
        send(&self.topic, &self.message)?;
        if n.is_multiple_of(BULK_SHARE)
            && let Some(key) = schedule.bulk_key_of(n)
        {
            self.message.write_bulk(schedule, key, record.value, record.due_ms);
            send(&self.topic, &self.message)?;
        }
        Ok(())
    }

    fn makes(&self, _fault: DataFault) -> bool {
        true
    }

    fn fault(
        &mut self,
        schedule: &Schedule,
        fault: DataFault,
        number: u64,
        due_ms: i64,
        send: &mut SendTo<'_>,
    ) -> Result<(), WorkloadError> {
        self.message.write_fault(schedule, fault, number, due_ms);
        send(&self.topic, &self.message)
    }

    fn end(&mut self, schedule: &Schedule, ended_ms: i64, send: &mut SendTo<'_>) -> Result<(), WorkloadError> {
        for partition in 0..schedule.settings.partitions {
            self.message.write_end(schedule, partition, ended_ms);
            send(&self.topic, &self.message)?;
        }
        Ok(())
    }
}

/// The thread's side.
struct Feed<G> {
    sender: Sender,
    generator: G,
    schedule: Schedule,
    next: u64,
    is_paused: bool,
    /// Those that are over: two for each step of a plan that changes the rate.
    stretches: Vec<Stretch>,
    /// Of the one under way, when it began and with which record.
    stretch_from: (i64, u64),
}

impl<G: Generator> Feed<G> {
    fn run(&mut self, shared: &Shared) -> Result<Sent, WorkloadError> {
        let mut behind_ms_max = 0;
        loop {
            let now_ms = wall_ms();
            let due = if self.is_paused { self.next } else { self.schedule.due_count(now_ms) };
            let behind_ms = if self.next < due { now_ms - self.schedule.due_ms(self.next) } else { 0 };
            behind_ms_max = behind_ms_max.max(behind_ms);
            shared.behind_ms.store(behind_ms, Ordering::Relaxed);
            shared.behind_ms_max.store(behind_ms_max, Ordering::Relaxed);
            while self.next < due {
                let sender = &self.sender;
                self.generator.record(&self.schedule, self.next, &mut |topic, message| sender.send(topic, message))?;
                self.next += 1;
            }
            shared.sent.store(self.next, Ordering::Relaxed);
            // Only now: a thread that woke up late has sent what its rate asked for until then, before it gets another one or ends.
            let requests = std::mem::take(&mut *shared.requests.lock());
            for request in requests {
                self.obey(request, wall_ms())?;
            }
            if shared.stop.load(Ordering::Relaxed) {
                return self.end(behind_ms_max);
            }
            std::thread::sleep(TURN);
        }
    }

    fn obey(&mut self, request: Request, now_ms: i64) -> Result<(), WorkloadError> {
        match request {
            Request::Rate(factor) => {
                self.end_stretch(now_ms);
                if std::mem::replace(&mut self.is_paused, factor == 0.0) {
                    self.schedule.resume(self.next, now_ms);
                }
                if !self.is_paused {
                    self.schedule.set_rate(self.next, factor);
                }
            }
            Request::HotKey(share) => self.schedule.set_hot_key(self.next, share),
            Request::Inject(fault, count) => self.inject(fault, count, now_ms)?,
        }
        Ok(())
    }

    /// Before the rate becomes another one.
    fn end_stretch(&mut self, now_ms: i64) {
        let (from_ms, first) = self.stretch_from;
        let now_ms = now_ms.max(from_ms);
        let records_per_second = if self.is_paused { 0 } else { self.schedule.rates.last().map_or(0, |rate| rate.records_per_second) };
        self.stretches.push(Stretch { records_per_second, lasted_ms: (now_ms - from_ms) as u64, sent: self.next - first });
        self.stretch_from = (now_ms, self.next);
    }

    fn inject(&mut self, fault: DataFault, count: u64, now_ms: i64) -> Result<(), WorkloadError> {
        let first = self.schedule.injected_total();
        let count = if self.generator.makes(fault) { count.min(INJECTED_MAX - first) } else { 0 };
        // The records before it are due no later, so that it is in order with the watermarks that they carry.
        let due_ms = if self.next == 0 { now_ms } else { self.schedule.due_ms(self.next - 1) };
        for number in first..first + count {
            let sender = &self.sender;
            self.generator.fault(&self.schedule, fault, number, due_ms, &mut |topic, message| sender.send(topic, message))?;
        }
        if count > 0 {
            self.schedule.injected.push(Injected { fault, first, count, due_ms });
        }
        Ok(())
    }

    fn end(&mut self, behind_ms_max: i64) -> Result<Sent, WorkloadError> {
        let ended_ms = wall_ms();
        self.end_stretch(ended_ms);
        if self.is_paused {
            self.schedule.resume(self.next, ended_ms);
        }
        // What comes last must not overtake what waits in another partition's queue.
        self.sender.flush(FLUSH_PATIENCE)?;
        let sender = &self.sender;
        self.generator.end(&self.schedule, ended_ms, &mut |topic, message| sender.send(topic, message))?;
        let undelivered = self.sender.flush(FLUSH_PATIENCE)?;
        let stretches = std::mem::take(&mut self.stretches);
        Ok(Sent { schedule: self.schedule.clone(), records: self.next, ended_ms, behind_ms_max, undelivered, stretches })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A load that takes a millisecond for each record, at least.
    struct Slow;

    impl Generator for Slow {
        fn record(&mut self, _: &Schedule, _: u64, _: &mut SendTo<'_>) -> Result<(), WorkloadError> {
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        }

        fn makes(&self, _: DataFault) -> bool {
            false
        }

        fn fault(&mut self, _: &Schedule, _: DataFault, _: u64, _: i64, _: &mut SendTo<'_>) -> Result<(), WorkloadError> {
            Ok(())
        }

        fn end(&mut self, _: &Schedule, _: i64, _: &mut SendTo<'_>) -> Result<(), WorkloadError> {
            Ok(())
        }
    }

    #[test]
    fn a_rate_that_is_not_reached_shows_though_the_next_one_leaves_nothing_behind() {
        let (shared, start_ms) = (Shared::default(), wall_ms());
        let mut feed = Feed {
            // It hands nothing to the client, so nobody has to be there.
            sender: Sender::new("127.0.0.1:1", LINGER).expect("a client"),
            generator: Slow,
            schedule: Schedule::new(1, Settings { rate: 5_000, ..Settings::default() }, start_ms),
            next: 0,
            is_paused: false,
            stretches: Vec::new(),
            stretch_from: (start_ms, 0),
        };
        let sent = std::thread::scope(|scope| {
            let sending = scope.spawn(|| feed.run(&shared));
            std::thread::sleep(Duration::from_millis(100));
            shared.requests.lock().push(Request::Rate(0.02));
            while !shared.requests.lock().is_empty() {
                std::thread::sleep(TURN);
            }
            shared.stop.store(true, Ordering::Relaxed);
            sending.join().expect("no panic").expect("nothing was handed to the client")
        });
        let [peak, rest] = sent.stretches.as_slice() else { panic!("{:?}", sent.stretches) };
        assert_eq!((peak.records_per_second, rest.records_per_second), (5_000, 100));
        assert_eq!(peak.sent + rest.sent, sent.records);
        assert!(peak.sent < peak.due(0) / 2, "{peak:?}");
    }

    #[test]
    fn of_a_stretch_less_is_due_where_the_sender_may_be_late() {
        let stretch = Stretch { records_per_second: 5_000, lasted_ms: 10_000, sent: 0 };
        assert_eq!((stretch.due(0), stretch.due(200), stretch.due(20_000)), (50_000, 49_000, 0));
    }
}

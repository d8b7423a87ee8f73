//! The control log's path: one record appended here, seen there, within milliseconds.

use crate::log_or_return;
use crate::support::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use streamshield_core::ports::log::*;

const READERS: usize = 3;

fn record(topic: &Arc<str>, payload: Vec<u8>) -> OutMessage {
    OutMessage { topic: Arc::clone(topic), partition: Some(0), key: None, payload: Some(payload), headers: vec![], timestamp_ms: None }
}

/// Workers that follow a control log and tell when they saw which offset.
struct Followers {
    seen: Receiver<(i64, Instant)>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Followers {
    fn start(log: &Arc<streamshield_kafka::KafkaLog>, topic: &Arc<str>) -> Followers {
        let (sender, seen) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..READERS).map(|_| {
            let (log, topic, sender, stop) = (Arc::clone(log), Arc::clone(topic), sender.clone(), Arc::clone(&stop));
            std::thread::spawn(move || follow(&log, &topic, &stop, |offset| sender.send((offset, Instant::now())).expect("listens")))
        });
        Followers { threads: threads.collect(), seen, stop }
    }

    /// When the last of them had seen this offset.
    fn await_all(&self, offset: i64) -> Instant {
        let seen = (0..READERS).map(|_| self.seen.recv_timeout(PATIENCE).expect("seen"));
        let last = seen.inspect(|(seen, _)| assert_eq!(*seen, offset)).map(|(_, at)| at).max();
        last.expect("there are readers")
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn follow(log: &streamshield_kafka::KafkaLog, topic: &Arc<str>, stop: &AtomicBool, mut saw: impl FnMut(i64)) {
    let wakeup = Arc::new(Wakeup::default());
    let mut reader = log.reader(ReaderOptions { buffer_bytes: 1 << 20, ..ReaderOptions::default() }, Arc::clone(&wakeup)).expect("reader");
    let partition = TopicPartition::new(Arc::clone(topic), 0);
    reader.assign(&partition, 0).expect("assign");
    while !stop.load(Ordering::Relaxed) {
        reader.take(&partition, &ALL, &mut |views| views.iter().for_each(|view| saw(view.offset))).expect("take");
        wakeup.wait(Duration::from_millis(500));
    }
}

struct Figures {
    acknowledged: Vec<Duration>,
    seen: Vec<Duration>,
}

/// Appends records at an interval that lets the readers fall idle in between.
fn measure(rounds: usize, interval: Duration) -> Option<Figures> {
    let servers = servers()?;
    let log = connect(&servers, &[]);
    let topic = topic_with(&log, "control", 1, &[("message.timestamp.type", "LogAppendTime")]);
    let followers = Followers::start(&log, &topic);
    let mut figures = Figures { acknowledged: Vec::new(), seen: Vec::new() };
    for round in 0..rounds + 5 {
        let started = Instant::now();
        let offset = log.append(&record(&topic, format!("record {round}").into_bytes())).expect("append");
        let acknowledged = started.elapsed();
        let seen = followers.await_all(offset).duration_since(started);
        // The first ones make the connections.
        if round >= 5 {
            figures.acknowledged.push(acknowledged);
            figures.seen.push(seen);
        }
        std::thread::sleep(interval);
    }
    figures.acknowledged.sort();
    figures.seen.sort();
    Some(figures)
}

fn ms(times: &[Duration], percent: usize) -> f64 {
    times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3
}

fn print(what: &str, times: &[Duration]) {
    println!("{what}: p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms, max {:.1} ms", ms(times, 50), ms(times, 95), ms(times, 99), ms(times, 100));
}

#[test]
fn idle_readers_see_an_appended_record_at_once() {
    let Some(figures) = measure(40, Duration::from_millis(30)) else { return };
    print("appended", &figures.acknowledged);
    print("seen by the last of three readers", &figures.seen);
    assert!(ms(&figures.seen, 50) < 50.0, "a reader waits for something: a fetch that nothing cuts short would take 100 ms");
}

#[test]
fn a_small_record_does_not_wait_behind_large_ones() {
    let log = log_or_return!();
    let topic = topic(&log, "lanes", 1);
    let other = topic_with(&log, "lanes-large", 1, &[]);
    log.append(&record(&topic, b"warm".to_vec())).expect("append");
    // One large record after the other, as the parts of a snapshot are.
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (log, other, stop) = (Arc::clone(&log), Arc::clone(&other), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    log.append(&record(&other, vec![b'x'; 600_000])).expect("append");
                }
            })
        })
        .collect();
    let mut times = Vec::new();
    for _ in 0..100 {
        let started = Instant::now();
        log.append(&record(&topic, b"heartbeat".to_vec())).expect("append");
        times.push(started.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    times.sort();
    print("appended beside large records", &times);
    assert!(ms(&times, 50) < 50.0, "small records wait");
}

/// Figures of the control log: run alone.
#[test]
#[ignore = "a benchmark"]
fn figures_of_the_control_log() {
    let Some(figures) = measure(1_000, Duration::from_millis(20)) else { return };
    print("appended", &figures.acknowledged);
    print("seen by the last of three readers", &figures.seen);
}

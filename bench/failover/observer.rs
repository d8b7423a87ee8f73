//! A read-committed consumer of the output that notes when what arrived.

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rdkafka::message::{BorrowedMessage, Message};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_tests::load::verify::Row;
use streamshield_tests::load::{Load, WINDOW_MS};
use streamshield_tests::support::background::Background;
use streamshield_tests::support::client::Output;
use streamshield_workload::time::wall_ms;

/// Longer than any gap; what is older is forgotten.
const REMEMBERED: Duration = Duration::from_secs(120);
/// Of a partition: ten windows a second of a few dozen keys.
const ARRIVALS_MAX: usize = 200_000;

/// Whose rows they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// JSON; the message's time stamp is when it was made.
    Ours,
    /// A windowed key; the value names the instance that made it.
    Streams,
}

/// One row as it could be read.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub at: Instant,
    /// When the producer made it, milliseconds since 1970.
    pub made_ms: i64,
    pub window_end_ms: i64,
    /// Who made it, where rows say so.
    pub instance: Option<Arc<str>>,
}

type Partitions = Arc<Mutex<Vec<VecDeque<Arrival>>>>;

/// Follows until it is dropped.
pub struct Observer {
    partitions: Partitions,
    thread: Background<()>,
}

impl Observer {
    pub fn start(servers: &str, load: &Load, rows: Rows) -> Result<Observer> {
        let partitions: Partitions = Arc::new(Mutex::new(vec![VecDeque::new(); load.partitions as usize]));
        let mut output = Output::follow(servers, &load.output())?;
        let seen = partitions.clone();
        let thread = Background::start("observer", move |stop| {
            output.visit_until(Duration::MAX, &mut |message, _| {
                if let Some(message) = message
                    && let Some(arrival) = arrival(message, rows)
                {
                    note(&mut seen.lock()[message.partition() as usize], arrival);
                }
                stop.is_wanted()
            })
        })?;
        Ok(Observer { partitions, thread })
    }

    /// The first arrival in a partition that the condition likes.
    pub fn first(&self, partition: u32, condition: impl Fn(&Arrival) -> bool) -> Option<Arrival> {
        self.partitions.lock()[partition as usize].iter().find(|arrival| condition(arrival)).cloned()
    }

    pub fn newest(&self, partition: u32) -> Option<Arrival> {
        self.partitions.lock()[partition as usize].back().cloned()
    }

    /// The longest time without an arrival, of those that began or ended between the two moments.
    pub fn longest_silence_ms(&self, partition: u32, from: Instant, until: Instant) -> f64 {
        let partitions = self.partitions.lock();
        let moments: Vec<Instant> = partitions[partition as usize].iter().map(|arrival| arrival.at).collect();
        let pairs = moments.windows(2).filter(|pair| pair[1] >= from && pair[0] <= until);
        pairs.map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3).fold(0.0, f64::max)
    }

    /// How many arrived between the two moments.
    pub fn rows(&self, partition: u32, from: Instant, until: Instant) -> usize {
        self.partitions.lock()[partition as usize].iter().filter(|arrival| (from..until).contains(&arrival.at)).count()
    }

    pub fn partitions(&self) -> u32 {
        self.partitions.lock().len() as u32
    }

    /// Waits until each partition has output of windows that ended no longer ago than this.
    pub fn wait_up_to_date(&self, age_max: Duration, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            anyhow::ensure!(self.thread.is_running(), "the observer has ended");
            let oldest_ms = wall_ms() - age_max.as_millis() as i64;
            let behind: Vec<u32> = (0..self.partitions())
                .filter(|partition| self.newest(*partition).is_none_or(|newest| newest.window_end_ms < oldest_ms))
                .collect();
            if behind.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "output partitions {behind:?} are not up to date after {timeout:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if let Err(error) = self.thread.finish() {
            println!("the observer failed: {error:#}");
        }
    }
}

fn note(partition: &mut VecDeque<Arrival>, arrival: Arrival) {
    let forgotten = arrival.at.checked_sub(REMEMBERED);
    while partition.len() >= ARRIVALS_MAX || partition.front().is_some_and(|old| forgotten.is_some_and(|forgotten| old.at < forgotten)) {
        partition.pop_front();
    }
    partition.push_back(arrival);
}

fn arrival(message: &BorrowedMessage<'_>, rows: Rows) -> Option<Arrival> {
    let (at, made_ms) = (Instant::now(), message.timestamp().to_millis()?);
    match rows {
        Rows::Ours => {
            let row = Row::parse(message.payload()?).ok()?;
            Some(Arrival { at, made_ms, window_end_ms: row.window_end_ms()?, instance: None })
        }
        Rows::Streams => {
            let result = StreamsResult::parse(message.key()?, message.payload()?).ok()?;
            let window_end_ms = result.window_start_ms + WINDOW_MS;
            Some(Arrival { at, made_ms, window_end_ms, instance: Some(result.instance.into()) })
        }
    }
}

/// A row of the peer: `count,sum,instance` under a windowed key (the key's bytes, then the window's start).
pub struct StreamsResult<'a> {
    pub key: &'a str,
    pub window_start_ms: i64,
    pub count: u64,
    pub sum: i64,
    pub instance: &'a str,
}

impl StreamsResult<'_> {
    pub fn parse<'a>(key: &'a [u8], value: &'a [u8]) -> Result<StreamsResult<'a>> {
        let (key, start) = key.split_last_chunk::<8>().context("a windowed key ends with its window's start")?;
        let mut parts = std::str::from_utf8(value)?.split(',');
        let mut part = || parts.next().context("count,sum,instance");
        Ok(StreamsResult {
            key: std::str::from_utf8(key)?,
            window_start_ms: i64::from_be_bytes(*start),
            count: part()?.parse()?,
            sum: part()?.parse()?,
            instance: part()?,
        })
    }
}

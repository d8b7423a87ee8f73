//! The sending side of a load, on a thread of its own.

use super::{Event, Key, Load, WINDOW_MS};
use crate::support::background::{Background, Stop};
use crate::support::client::Input;
use anyhow::Result;
use std::time::Duration;
use streamshield_workload::schedule::BULK_TIME_MS;
use streamshield_workload::time::wall_ms;

/// How late the schedule is looked at: less than a window by far.
const TURN: Duration = Duration::from_millis(1);
/// The default of producers since Kafka 4.0 (KIP-1030).
const LINGER: Duration = Duration::from_millis(5);
/// From the bulk keys' window to that of the closing records, which no watermark reaches.
const OWN_WINDOW_AHEAD_MS: i64 = 86_400_000;
/// A watermark so far in the past closes nothing.
const PAST_MS: i64 = 3_600_000;

/// What was sent, all that the right output depends on.
#[derive(Clone, Copy, Debug)]
pub struct Fed {
    pub start_ms: i64,
    /// Records of the open loop.
    pub sent: u64,
    /// The longest that a record was handed over later than it was due.
    pub late_ms_max: i64,
}

/// Sends until it is told to finish.
pub struct Feeder {
    thread: Background<Fed>,
}

/// One record per partition, of a window that never closes.
pub fn open(servers: &str, load: &Load) -> Result<()> {
    let input = Input::new(servers)?;
    send_to_all(&input, load, wall_ms() - PAST_MS)
}

/// The records of the window that never closes, with this watermark.
fn send_to_all(input: &Input, load: &Load, watermark_ms: i64) -> Result<()> {
    let mut buffer = Vec::new();
    for partition in 0..load.partitions {
        let event = Event { key: Key::End, value: 0, partition };
        load.write_at(&event, BULK_TIME_MS + OWN_WINDOW_AHEAD_MS, watermark_ms, &mut buffer);
        input.send(&load.input(), Some(partition), None, Some(&buffer))?;
    }
    input.flush()
}

/// Sends the first record of each bulk key, as fast as it goes.
pub fn fill(servers: &str, load: &Load) -> Result<()> {
    let input = Input::new(servers)?;
    let mut buffer = Vec::new();
    let now_ms = wall_ms();
    for n in 0..load.bulk_keys {
        let event = load.bulk_event(n);
        load.write(&event, now_ms - PAST_MS, &mut buffer);
        input.send(&load.input(), Some(event.partition), None, Some(&buffer))?;
    }
    input.flush()
}

impl Feeder {
    /// The first record is due at the next full second.
    pub fn start(servers: &str, load: &Load) -> Result<Feeder> {
        let start_ms = (wall_ms() / 1_000 + 1) * 1_000;
        let mut sender = Sender { input: Input::with_linger(servers, LINGER)?, load: load.clone(), start_ms, buffer: Vec::new() };
        let thread = Background::start("feeder", move |stop| sender.run(&stop))?;
        Ok(Feeder { thread })
    }

    /// Ends the load with records that close all windows.
    pub fn finish(mut self) -> Result<Fed> {
        self.thread.finish()
    }
}

struct Sender {
    input: Input,
    load: Load,
    start_ms: i64,
    buffer: Vec<u8>,
}

impl Sender {
    fn run(&mut self, stop: &Stop) -> Result<Fed> {
        let topic = self.load.input();
        let (mut next, mut late_ms_max) = (0_u64, 0);
        while !stop.is_wanted() {
            let now_ms = wall_ms();
            let due = ((now_ms - self.start_ms).max(0) as u64) * self.load.events_per_second / 1_000;
            if next < due {
                late_ms_max = late_ms_max.max(now_ms - self.load.due_ms(self.start_ms, next));
            }
            while next < due {
                let event = self.load.event(next);
                self.load.write(&event, self.load.due_ms(self.start_ms, next), &mut self.buffer);
                self.input.send(&topic, Some(event.partition), None, Some(&self.buffer))?;
                next += 1;
            }
            std::thread::sleep(TURN);
        }
        self.input.flush()?;
        // A watermark that closes everything, the bulk keys' window too.
        send_to_all(&self.input, &self.load, BULK_TIME_MS + WINDOW_MS)?;
        Ok(Fed { start_ms: self.start_ms, sent: next, late_ms_max })
    }
}

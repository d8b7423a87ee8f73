//! Who committed when: a read-committed reader of a job's changelogs.
//!
//! Every epoch of a region is one record that names the incarnation that wrote it, visible in the same moment as the epoch's rows. So the pause of a region while it
//! changes hands is the time between the last record of one incarnation and the first of the next; without a change it is the commit interval.

use anyhow::Result;
use parking_lot::Mutex;
use rdkafka::message::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::epoch::EpochRecord;
use streamshield_core::ids::{Epoch, Incarnation, RegionId};
use streamshield_tests::support::background::Background;
use streamshield_tests::support::client::{Output, topics};

/// A region's change of hands.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub region: RegionId,
    pub pause_ms: f64,
}

/// What is known of a region.
struct Last {
    incarnation: Incarnation,
    epoch: Epoch,
    at: Instant,
}

#[derive(Default)]
struct Seen {
    last: BTreeMap<RegionId, Last>,
    changes: Vec<Change>,
    /// Pauses between two epochs of one owner, in ms.
    regular_ms: Vec<f64>,
}

/// Follows until it is dropped.
pub struct Commits {
    seen: Arc<Mutex<Seen>>,
    threads: Vec<Background<()>>,
}

/// Pauses between two epochs of one owner that are remembered: enough for a quantile.
const REGULAR_MAX: usize = 100_000;

impl Commits {
    pub fn follow(servers: &str, job: &str) -> Result<Commits> {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let mut threads = Vec::new();
        for topic in topics(servers)?.into_iter().filter(|topic| topic.starts_with(job) && topic.ends_with("-changelog")) {
            let mut output = Output::follow(servers, &topic)?;
            let seen = seen.clone();
            threads.push(Background::start("commits", move |stop| {
                output.visit_until(Duration::MAX, &mut |message, _| {
                    if let Some(message) = message.filter(|message| message.key() == Some(b"epoch"))
                        && let Ok(record) = EpochRecord::decode(message.payload().unwrap_or_default())
                    {
                        seen.lock().take(&record);
                    }
                    stop.is_wanted()
                })
            })?);
        }
        anyhow::ensure!(!threads.is_empty(), "job {job} has no changelogs");
        Ok(Commits { seen, threads })
    }

    /// The changes since the last call.
    pub fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut self.seen.lock().changes)
    }

    /// Pauses between two epochs of one owner, since the last call.
    pub fn take_regular_ms(&self) -> Vec<f64> {
        std::mem::take(&mut self.seen.lock().regular_ms)
    }
}

impl Seen {
    fn take(&mut self, record: &EpochRecord) {
        let now = Instant::now();
        let last = Last { incarnation: record.incarnation, epoch: record.epoch, at: now };
        let Some(before) = self.last.insert(record.region, last) else { return };
        if before.epoch.next() != record.epoch {
            return;
        }
        let pause_ms = now.saturating_duration_since(before.at).as_secs_f64() * 1e3;
        if before.incarnation != record.incarnation {
            self.changes.push(Change { region: record.region, pause_ms });
        } else if self.regular_ms.len() < REGULAR_MAX {
            self.regular_ms.push(pause_ms);
        }
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.threads.iter().for_each(Background::stop);
        for thread in &mut self.threads {
            if let Err(error) = thread.finish() {
                println!("a reader of a changelog failed: {error:#}");
            }
        }
    }
}

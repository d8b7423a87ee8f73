//! Writes the input, over virtual time: rows, some of them late, some of them none, some in transactions that are aborted.
//!
//! The feeder is a client like any other, with the same faults: a refused append leaves no row, a repeated one leaves two. What the input is,
//! the oracle reads in the log.

use crate::job::{DELAY_MS, INPUT};
use crate::oracle::END_MS;
use crate::scenario::Scenario;
use crate::table::Row;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;
use streamshield_core::ports::log::{Log, LogError, OutMessage, TopicSpec};
use streamshield_sim::{ClientId, Sim, SimLog};

const TRANSACTIONAL_ID: &str = "feeder";
/// Rows of one append.
const ROWS_MAX: usize = 6;
/// How late a row is that is late.
const LATE_MS: std::ops::Range<i64> = 2_000..8_000;

pub struct Feeder {
    sim: Sim,
    rng: ChaCha8Rng,
    client: ClientId,
    topic: Arc<str>,
}

impl Feeder {
    /// Makes the input's topic, in a world that has no faults yet.
    pub fn new(sim: &Sim, scenario: &Scenario) -> Result<Feeder, LogError> {
        let client = sim.client("feeder");
        let configs = Default::default();
        let spec = TopicSpec { name: INPUT.into(), partitions: scenario.splits, replication_factor: None, configs };
        SimLog::new(sim, client).create_topics(&[spec])?;
        Ok(Feeder { sim: sim.clone(), rng: sim.generator(), client, topic: INPUT.into() })
    }

    fn log(&mut self) -> SimLog {
        if !self.sim.is_alive(self.client) {
            self.client = self.sim.client("feeder");
        }
        SimLog::new(&self.sim, self.client)
    }

    fn message(&self, partition: i32, payload: Vec<u8>) -> OutMessage {
        OutMessage {
            topic: self.topic.clone(),
            partition: Some(partition),
            key: None,
            payload: Some(payload),
            headers: Vec::new(),
            timestamp_ms: None,
        }
    }

    fn payload(&mut self, scenario: &Scenario) -> Vec<u8> {
        if self.rng.random_range(0..100) < scenario.bad_percent {
            return b"no row".to_vec();
        }
        let is_late = self.rng.random_range(0..100) < scenario.late_percent;
        let age_ms = if is_late { self.rng.random_range(LATE_MS) } else { self.rng.random_range(0..DELAY_MS) };
        let row = Row {
            key: self.rng.random_range(0..scenario.keys) as i64,
            value: self.rng.random_range(-1_000..1_000),
            at_ms: self.sim.now_ms() - age_ms,
        };
        row.encode()
    }

    /// A few rows into one partition, or into several in one transaction.
    pub fn append(&mut self, scenario: &Scenario) {
        let log = self.log();
        let rows = self.rng.random_range(1..=ROWS_MAX);
        let is_transactional = self.rng.random_range(0..100) < scenario.transactional_percent;
        let mut partition = self.rng.random_range(0..scenario.splits);
        let mut messages = Vec::new();
        for _ in 0..rows {
            if is_transactional {
                partition = self.rng.random_range(0..scenario.splits);
            }
            let payload = self.payload(scenario);
            messages.push(self.message(partition, payload));
        }
        if is_transactional {
            let is_committed = self.rng.random_bool(0.5);
            // Whatever goes wrong, the log knows what is committed.
            let _ = self.append_together(&log, &messages, is_committed);
            return;
        }
        for message in &messages {
            let _ = log.append(message);
        }
    }

    fn append_together(&self, log: &SimLog, messages: &[OutMessage], is_committed: bool) -> Result<(), LogError> {
        let mut writer = log.writer(TRANSACTIONAL_ID)?;
        writer.begin()?;
        for message in messages {
            writer.send(message)?;
        }
        match is_committed {
            true => drop(writer.commit()),
            false => writer.abort(),
        }
        Ok(())
    }

    /// Ends what is open, and closes all windows: in a world that has no faults any more.
    pub fn end(&mut self, scenario: &Scenario) -> Result<(), LogError> {
        let log = self.log();
        log.fence(TRANSACTIONAL_ID)?;
        for partition in 0..scenario.splits {
            log.append(&self.message(partition, Row { key: 0, value: 0, at_ms: END_MS }.encode()))?;
        }
        Ok(())
    }
}

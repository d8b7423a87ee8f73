//! Input topics.

use anyhow::Result;
use std::time::Instant;
use streamshield_tests::support::bids::Bids;
use streamshield_tests::support::client::{Input, create_topic_with};

pub const PARTITIONS: i32 = 8;
pub const SEED: u64 = 20_240_101;

/// Creates a topic and fills it; `write` makes the JSON of one record. Record `n` goes to partition `n` mod 8.
pub fn fill(servers: &str, topic: &str, records: u64, mut write: impl FnMut(u64, &mut Vec<u8>)) -> Result<()> {
    create_topic_with(servers, topic, PARTITIONS, &[("retention.ms", "-1")])?;
    let started = Instant::now();
    let input = Input::new(servers)?;
    let mut buffer = Vec::new();
    for record in 0..records {
        write(record, &mut buffer);
        input.send(topic, Some((record % PARTITIONS as u64) as i32), None, Some(&buffer))?;
    }
    input.flush()?;
    println!("{topic}: {records} records in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Bids of about 200 bytes.
pub fn fill_bids(servers: &str, topic: &str, records: u64) -> Result<()> {
    let mut bids = Bids::new(SEED);
    fill(servers, topic, records, |record, buffer| bids.write(record, buffer))
}

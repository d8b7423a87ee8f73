//! How fast a broker is through librdkafka. These fail only when something hangs; the figures are for reading.

use std::time::Instant;

use anyhow::{Result, bail};
use rdkafka::Offset;
use rdkafka::producer::Producer as _;

use super::Check;
use super::kit::*;

/// Records of 100 bytes per throughput check.
const RECORDS: usize = 300_000;
const PARTITIONS: i32 = 4;

pub const CHECKS: &[Check] = &[
    Check::alone("speed.latency", 60, latency),
    Check::alone("speed.transactions", 60, transactions),
    Check::alone("speed.plain", 200, |env| throughput(env, &[])),
    Check::alone("speed.idempotent", 200, |env| throughput(env, &[("enable.idempotence", "true")])),
    Check::alone("speed.lz4", 200, |env| throughput(env, &[("compression.codec", "lz4")])),
];

fn latency(env: &Env) -> Result<String> {
    let topic = env.topic("latency", 1)?;
    let producer = env.producer(&[("linger.ms", "0")])?;
    let consumer = env.consumer(&[("enable.partition.eof", "false"), ("fetch.wait.max.ms", "500")])?;
    assign(&consumer, &topic, &[(0, Offset::Beginning)])?;
    send_all(&producer, &topic, 0, vec!["warm".to_owned()])?;
    take(&consumer, 1)?;
    let mut times_ms = Vec::new();
    for _ in 0..100 {
        let started = Instant::now();
        send(&producer, &topic, 0, None, b"x")?;
        loop {
            producer.poll(millis(0));
            match consumer.poll(millis(1)) {
                Some(Ok(_)) => break,
                Some(Err(error)) => bail!("{error}"),
                None if started.elapsed() > STEP => bail!("a record was not seen"),
                None => {}
            }
        }
        times_ms.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    times_ms.sort_by(f64::total_cmp);
    Ok(format!("produce to consume p50 {:.2} ms, p95 {:.2} ms", times_ms[50], times_ms[95]))
}

fn transactions(env: &Env) -> Result<String> {
    let topic = env.topic("rate", PARTITIONS)?;
    let producer = env.transactional(&env.name("tid"), &[("linger.ms", "0")])?;
    ok("init", producer.init_transactions(STEP))?;
    let (started, mut count) = (Instant::now(), 0);
    while started.elapsed() < seconds(3) {
        begin(&producer)?;
        for partition in 0..PARTITIONS {
            send(&producer, &topic, partition, None, b"x")?;
        }
        flush(&producer)?;
        commit(&producer)?;
        count += 1;
    }
    let per_second = f64::from(count) / started.elapsed().as_secs_f64();
    expect("visible", env.decided(&topic, 0)?.len(), count as usize)?;
    Ok(format!("{per_second:.0} transactions/s of {PARTITIONS} records in {PARTITIONS} partitions"))
}

fn throughput(env: &Env, settings: &[(&str, &str)]) -> Result<String> {
    let topic = env.topic("speed", PARTITIONS)?;
    let own = [("queue.buffering.max.messages", "500000"), ("message.timeout.ms", "120000"), ("linger.ms", "20")];
    let deliveries = Deliveries { counts_only: true, ..Deliveries::default() };
    let producer = env.producer_with(&[&own, settings].concat(), deliveries)?;
    // the client asks for its producer id, and may wait half a second before it asks again
    send_all(&producer, &env.topic("warm", 1)?, 0, vec!["warm".to_owned()])?;
    let value = [b'x'; 100];
    let started = Instant::now();
    for number in 0..RECORDS {
        send(&producer, &topic, (number % PARTITIONS as usize) as i32, None, &value)?;
        if number % 10_000 == 0 {
            producer.poll(millis(0));
        }
    }
    flush(&producer)?;
    let produced = RECORDS as f64 / started.elapsed().as_secs_f64();
    let consumer = env.consumer(&[("enable.partition.eof", "false")])?;
    let partitions: Vec<_> = (0..PARTITIONS).map(|partition| (partition, Offset::Beginning)).collect();
    let (started, mut heard, mut count) = (Instant::now(), Instant::now(), 0);
    assign(&consumer, &topic, &partitions)?;
    while count < RECORDS {
        match consumer.poll(millis(200)) {
            Some(Ok(message)) => {
                expect("length", message.payload_len(), 100)?;
                count += 1;
                if count % 1024 == 0 {
                    heard = Instant::now();
                }
            }
            Some(Err(error)) => bail!("{error}"),
            None if heard.elapsed() > STEP => bail!("{count} of {RECORDS} records came"),
            None => {}
        }
    }
    let consumed = RECORDS as f64 / started.elapsed().as_secs_f64();
    Ok(format!("produce {:.0} k/s, consume {:.0} k/s", produced / 1e3, consumed / 1e3))
}

//! What becomes of records: trimming, retention, compaction, the log's own time.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, bail};
use rdkafka::Offset;
use rdkafka::message::Message as _;
use rdkafka::message::Timestamp;
use rdkafka::producer::{BaseRecord, Producer as _};

use super::Check;
use super::kit::*;

pub const CHECKS: &[Check] = &[
    Check::new("logs.delete_records", 60, delete_records),
    Check::new("logs.delete_records_to_the_end", 60, delete_all_records),
    Check::new("logs.delete_records_of_compacted_is_refused", 60, delete_of_compacted),
    Check::new("logs.log_append_time", 40, |env| log_append_time(env, "none")),
    Check::new("logs.log_append_time_lz4", 40, |env| log_append_time(env, "lz4")),
    Check::new("logs.compaction", 90, |env| compaction(env, "none")),
    Check::new("logs.compaction_lz4", 90, |env| compaction(env, "lz4")),
];

/// The new log start, or the error.
fn trim(env: &Env, topic: &str, offset: Offset) -> Result<Offset> {
    let mut wanted = rdkafka::TopicPartitionList::new();
    wanted.add_partition_offset(topic, 0, offset)?;
    let answer = wait(env.admin()?.delete_records(&wanted, &admin_options()))?;
    answer.elements()[0].error()?;
    Ok(answer.elements()[0].offset())
}

fn delete_records(env: &Env) -> Result<String> {
    let topic = env.topic("trim", 1)?;
    let producer = env.producer(&[])?;
    for ten in 0..10 {
        send_all(&producer, &topic, 0, numbered("v", ten * 10..ten * 10 + 10))?;
    }
    expect("new start", trim(env, &topic, Offset::Offset(35))?, Offset::Offset(35))?; // inside of a batch
    expect("watermarks", producer.client().fetch_watermarks(&topic, 0, STEP)?, (35, 100))?;
    expect("what is left", env.values(&topic, 0, UNCOMMITTED)?, numbered("v", 35..100))?;
    expect("a start behind it changes nothing", trim(env, &topic, Offset::Offset(10))?, Offset::Offset(35))?;
    expect("beyond the end", trim(env, &topic, Offset::Offset(101)).is_err(), true)?;
    fine()
}

fn delete_all_records(env: &Env) -> Result<String> {
    let topic = env.topic("trimall", 1)?;
    let producer = env.producer(&[])?;
    send_all(&producer, &topic, 0, numbered("v", 0..10))?;
    expect("new start", trim(env, &topic, Offset::End)?, Offset::Offset(10))?;
    expect("watermarks", producer.client().fetch_watermarks(&topic, 0, STEP)?, (10, 10))?;
    expect("offsets go on", send_all(&producer, &topic, 0, numbered("w", 0..1))?, vec![(0, 10)])?;
    fine()
}

fn delete_of_compacted(env: &Env) -> Result<String> {
    let topic = env.topic_with("trimcompact", 1, &[("cleanup.policy", "compact")])?;
    let producer = env.producer(&[])?;
    send(&producer, &topic, 0, Some("k"), b"v")?;
    flush(&producer)?;
    expect("trimmed", trim(env, &topic, Offset::End).is_ok(), false)?;
    fine()
}

fn log_append_time(env: &Env, codec: &str) -> Result<String> {
    let topic = env.topic_with("logtime", 1, &[("message.timestamp.type", "LogAppendTime")])?;
    let producer = env.producer(&[("compression.codec", codec)])?;
    let mut last_ms = 0;
    for _ in 0..3 {
        for _ in 0..10 {
            let record = BaseRecord::<str, str>::to(&topic).partition(0).payload("a value a value a value a value").timestamp(1_000);
            producer.send(record).map_err(|(error, _)| error)?;
        }
        flush(&producer)?;
    }
    let consumer = env.consumer(&[("check.crcs", "true"), ("enable.partition.eof", "false")])?;
    assign(&consumer, &topic, &[(0, Offset::Beginning)])?;
    let (mut count, started) = (0, Instant::now());
    while count < 30 && started.elapsed() < STEP {
        let Some(message) = consumer.poll(millis(100)) else { continue };
        let message = message?;
        let Timestamp::LogAppendTime(at_ms) = message.timestamp() else { bail!("not the log's time: {:?}", message.timestamp()) };
        if at_ms < last_ms || at_ms < 1_600_000_000_000 {
            bail!("the log's time goes from {last_ms} to {at_ms}");
        }
        last_ms = at_ms;
        count += 1;
    }
    expect("records", count, 30)?;
    fine()
}

fn compaction(env: &Env, codec: &str) -> Result<String> {
    let config =
        [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.01"), ("segment.ms", "500"), ("max.compaction.lag.ms", "1000")];
    let topic = env.topic_with("compact", 1, &config)?;
    let producer = env.producer(&[("compression.codec", codec)])?;
    for round in 0..20 {
        for key in 0..10 {
            let value = format!("{round} and some text and some text and some text");
            send(&producer, &topic, 0, Some(&format!("k{key}")), value.as_bytes())?;
        }
        flush(&producer)?;
    }
    let started = Instant::now();
    let mut left = 0;
    while started.elapsed() < seconds(60) {
        // Kafka closes a segment only when a record comes after `segment.ms`
        send(&producer, &topic, 0, Some("roll"), b"x")?;
        flush(&producer)?;
        let records = env.read(&topic, 0, UNCOMMITTED)?;
        let latest: BTreeMap<_, _> = records.iter().map(|record| (record.key.clone().unwrap_or_default(), &record.value)).collect();
        expect("keys", latest.len(), 11)?;
        expect("the latest value of a key", latest["k3"].starts_with("19 "), true)?;
        left = records.iter().filter(|record| record.key.as_deref() != Some("roll")).count();
        if left <= 20 {
            return Ok(format!("{left} of 200 records left after {:.1} s", started.elapsed().as_secs_f64()));
        }
        std::thread::sleep(millis(300)); // the broker cleans at its own pace and tells nobody
    }
    bail!("still {left} of 200 records after 60 s")
}

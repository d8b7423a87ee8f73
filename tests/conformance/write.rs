//! Producing: offsets, codecs, limits.

use anyhow::{Result, bail};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{BaseRecord, Producer as _};

use super::Check;
use super::kit::*;

pub const CHECKS: &[Check] = &[
    Check::new("write.offsets", 40, contiguous_offsets),
    Check::new("write.gzip", 40, |env| codec(env, "gzip")),
    Check::new("write.snappy", 40, |env| codec(env, "snappy")),
    Check::new("write.lz4", 40, |env| codec(env, "lz4")),
    Check::new("write.zstd", 40, |env| codec(env, "zstd")),
    Check::new("write.records_of_900_kb", 60, large_records),
    Check::new("write.too_large_is_refused", 60, too_large),
    Check::new("write.null_key_on_compacted_is_refused", 60, |env| null_key(env, "none")),
    Check::new("write.null_key_in_lz4_is_refused", 60, |env| null_key(env, "lz4")),
    Check::new("write.far_future_is_refused", 60, far_future),
    Check::new("write.fire_and_forget", 40, fire_and_forget),
];

fn contiguous_offsets(env: &Env) -> Result<String> {
    let topic = env.topic("offsets", 3)?;
    let producer = env.producer(&[])?;
    for number in 0..300 {
        send(&producer, &topic, number % 3, Some(&format!("k{number}")), format!("v{number}").as_bytes())?;
    }
    let mut delivered = flush(&producer)?;
    delivered.sort_unstable();
    let wanted = (0..3).flat_map(|partition| (0..100).map(move |offset| (partition, offset))).collect();
    expect("partition and offset of each record", delivered, wanted)?;
    fine()
}

fn codec(env: &Env, codec: &str) -> Result<String> {
    let topic = env.topic("codec", 1)?;
    let Ok(producer) = env.producer(&[("compression.codec", codec)]) else {
        return Ok("the client was built without it: not run".to_owned());
    };
    let values: Vec<_> = (0..500).map(|number| format!("{{\"some\":\"json value\",\"n\":{number}}}")).collect();
    send_all(&producer, &topic, 0, values.clone())?;
    expect("values", env.values(&topic, 0, UNCOMMITTED)?, values)?;
    fine()
}

fn large_records(env: &Env) -> Result<String> {
    let topic = env.topic("large", 1)?;
    let producer = env.producer(&[("message.max.bytes", "2000000")])?;
    let value = vec![b'x'; 900_000];
    for _ in 0..8 {
        send(&producer, &topic, 0, None, &value)?;
    }
    flush(&producer)?;
    let sizes: Vec<_> = env.values(&topic, 0, UNCOMMITTED)?.iter().map(String::len).collect();
    expect("sizes", sizes, vec![900_000; 8])?;
    fine()
}

/// Sends one record that must come back with this error.
fn expect_refused(env: &Env, producer: &Producer, topic: &str, value: &[u8], wanted: Code) -> Result<String> {
    send(producer, topic, 0, None, value)?;
    settle(producer)?;
    expect("delivery", producer.context().first_failure(), Some(wanted))?;
    expect("records in the topic", env.values(topic, 0, UNCOMMITTED)?.len(), 0)?;
    fine()
}

fn too_large(env: &Env) -> Result<String> {
    let topic = env.topic("toolarge", 1)?;
    let producer = env.producer(&[("message.max.bytes", "5000000")])?;
    expect_refused(env, &producer, &topic, &vec![b'x'; 3_000_000], Code::MessageSizeTooLarge)
}

fn null_key(env: &Env, codec: &str) -> Result<String> {
    let topic = env.topic_with("nullkey", 1, &[("cleanup.policy", "compact")])?;
    let producer = env.producer(&[("compression.codec", codec)])?;
    expect_refused(env, &producer, &topic, &[b'x'; 500], Code::InvalidRecord)
}

/// Kafka takes timestamps of up to an hour ahead, unless the topic says otherwise.
fn far_future(env: &Env) -> Result<String> {
    let topic = env.topic("future", 1)?;
    let producer = env.producer(&[])?;
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis() as i64;
    for (ahead_ms, wanted) in [(1_800_000, None), (7_200_000, Some(Code::InvalidTimestamp))] {
        let record = BaseRecord::<str, str>::to(&topic).partition(0).payload("x").timestamp(now_ms + ahead_ms);
        producer.send(record).map_err(|(error, _)| error)?;
        settle(&producer)?;
        expect("delivery", producer.context().first_failure(), wanted)?;
    }
    fine()
}

fn fire_and_forget(env: &Env) -> Result<String> {
    let topic = env.topic("acks0", 1)?;
    let producer = env.producer(&[("acks", "0")])?;
    send_all(&producer, &topic, 0, numbered("v", 0..100))?;
    let consumer = env.consumer(&[])?;
    assign(&consumer, &topic, &[(0, rdkafka::Offset::Beginning)])?;
    let values: Vec<_> = take(&consumer, 100)?.into_iter().map(|record| record.value).collect();
    if values != numbered("v", 0..100) {
        bail!("other values: {:?}", &values[..3]);
    }
    fine()
}

//! Consuming: positions, content, times, errors, waiting.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};

use super::Check;
use super::kit::*;

pub const CHECKS: &[Check] = &[
    Check::new("read.partitions_in_order", 40, partitions_in_order),
    Check::new("read.from_offset_tail_and_end", 40, from_offsets),
    Check::new("read.seek", 40, seek),
    Check::new("read.headers_nulls_and_timestamps", 40, content),
    Check::new("read.watermarks", 40, watermarks),
    Check::new("read.offsets_for_times", 40, |env| offsets_for_times(env, "none")),
    Check::new("read.offsets_for_times_lz4", 40, |env| offsets_for_times(env, "lz4")),
    Check::new("read.out_of_range_is_an_error", 40, out_of_range),
    Check::new("read.unknown_topic_is_an_error", 40, unknown_topic),
    Check::new("read.small_fetches_move_on", 40, small_fetches),
    Check::alone("read.idle_fetches_wait", 40, idle_fetches),
    Check::alone("read.fetch_min_bytes_holds_back", 40, min_bytes),
];

fn partitions_in_order(env: &Env) -> Result<String> {
    let topic = env.topic("order", 3)?;
    let producer = env.producer(&[])?;
    for number in 0..300 {
        send(&producer, &topic, number % 3, Some(&format!("k{number}")), format!("v{number}").as_bytes())?;
        if number % 50 == 0 {
            flush(&producer)?;
        }
    }
    flush(&producer)?;
    let consumer = env.consumer(&[])?;
    assign(&consumer, &topic, &[(0, Offset::Beginning), (1, Offset::Beginning), (2, Offset::Beginning)])?;
    let records = drain(&consumer, 3)?;
    for partition in 0..3 {
        let of_partition = records.iter().filter(|record| record.partition == partition);
        let got: Vec<_> = of_partition.map(|record| (record.offset, record.key.clone(), record.value.clone())).collect();
        let wanted = |at: i32| (i64::from(at), Some(format!("k{}", at * 3 + partition)), format!("v{}", at * 3 + partition));
        expect("a partition's records", got, (0..100).map(wanted).collect())?;
    }
    fine()
}

fn from_offsets(env: &Env) -> Result<String> {
    let topic = env.topic("from", 1)?;
    send_all(&env.producer(&[])?, &topic, 0, numbered("v", 0..100))?; // one batch, so 57 is inside of it
    let records = env.read_from(&topic, 0, Offset::Offset(57), &[])?;
    expect("first", records.first().map(|record| record.offset), Some(57))?;
    expect("count", records.len(), 43)?;
    expect("tail", env.read_from(&topic, 0, Offset::OffsetTail(5), &[])?.len(), 5)?;
    expect("end", env.read_from(&topic, 0, Offset::End, &[])?.len(), 0)?;
    fine()
}

fn seek(env: &Env) -> Result<String> {
    let topic = env.topic("seek", 1)?;
    send_all(&env.producer(&[])?, &topic, 0, numbered("v", 0..50))?;
    let consumer = env.consumer(&[])?;
    assign(&consumer, &topic, &[(0, Offset::Beginning)])?;
    expect("first pass", drain(&consumer, 1)?.len(), 50)?;
    consumer.seek(&topic, 0, Offset::Offset(10), STEP)?;
    expect("after the seek", drain(&consumer, 1)?.len(), 40)?;
    fine()
}

fn content(env: &Env) -> Result<String> {
    let topic = env.topic("content", 1)?;
    let producer = env.producer(&[])?;
    let headers = OwnedHeaders::new()
        .insert(Header { key: "a", value: Some("1") })
        .insert(Header { key: "a", value: Some("2") })
        .insert(Header { key: "n", value: None::<&str> });
    let record = || BaseRecord::<str, str>::to(&topic).partition(0);
    let sent = [
        record().key("k").payload("v").headers(headers).timestamp(1_600_000_000_123),
        record().key("tombstone").timestamp(1_600_000_000_456),
        record().key("").payload("").timestamp(1_600_000_000_100),
    ];
    for record in sent {
        producer.send(record).map_err(|(error, _)| error)?;
    }
    flush(&producer)?;
    let consumer = env.consumer(&[])?;
    assign(&consumer, &topic, &[(0, Offset::Beginning)])?;
    let mut seen = Vec::new();
    let started = Instant::now();
    while seen.len() < 3 && started.elapsed() < STEP {
        if let Some(Ok(message)) = consumer.poll(millis(100)) {
            seen.push(message.detach());
        }
    }
    let [first, tombstone, empty] = &seen[..] else { bail!("{} of 3 records", seen.len()) };
    let headers = first.headers().ok_or_else(|| anyhow!("the headers are lost"))?;
    let header = |at: usize| (headers.get(at).key.to_owned(), headers.get(at).value.map(<[u8]>::to_vec));
    expect("headers", headers.count(), 3)?;
    expect("a repeated header key", (header(0), header(1)), (("a".into(), Some(b"1".to_vec())), ("a".into(), Some(b"2".to_vec()))))?;
    expect("a null header", header(2).1, None)?;
    expect("timestamp", first.timestamp().to_millis(), Some(1_600_000_000_123))?;
    expect("tombstone", (tombstone.payload(), tombstone.timestamp().to_millis()), (None, Some(1_600_000_000_456)))?;
    expect("empty is not null", (empty.key(), empty.payload()), (Some(&b""[..]), Some(&b""[..])))?;
    expect("an earlier timestamp", empty.timestamp().to_millis(), Some(1_600_000_000_100))?;
    fine()
}

fn watermarks(env: &Env) -> Result<String> {
    let topic = env.topic("watermarks", 1)?;
    let producer = env.producer(&[])?;
    expect("empty", producer.client().fetch_watermarks(&topic, 0, STEP)?, (0, 0))?;
    send_all(&producer, &topic, 0, numbered("v", 0..42))?;
    expect("after 42 records", producer.client().fetch_watermarks(&topic, 0, STEP)?, (0, 42))?;
    fine()
}

fn offsets_for_times(env: &Env, codec: &str) -> Result<String> {
    const FIRST_MS: i64 = 1_700_000_000_000;
    // old event times must not make the records old
    let topic = env.topic_with("times", 1, &[("retention.ms", "-1")])?;
    let producer = env.producer(&[("compression.codec", codec)])?;
    for batch in 0..5 {
        for number in batch * 20..batch * 20 + 20 {
            let record = BaseRecord::<str, str>::to(&topic).partition(0).payload("a value that repeats itself itself itself");
            producer.send(record.timestamp(FIRST_MS + number * 1000)).map_err(|(error, _)| error)?;
        }
        flush(&producer)?;
    }
    let consumer = env.consumer(&[])?;
    let mut found = Vec::new();
    for after_ms in [-100_000_000, 10_500, 33_000, 99_000, 99_001] {
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition_offset(&topic, 0, Offset::Offset(FIRST_MS + after_ms))?;
        let answer = consumer.offsets_for_times(wanted, STEP)?;
        answer.elements()[0].error()?;
        found.push(answer.elements()[0].offset());
    }
    expect("offsets", found, vec![Offset::Offset(0), Offset::Offset(11), Offset::Offset(33), Offset::Offset(99), Offset::End])?;
    fine()
}

/// Polls until an error other than "end of partition" comes.
fn first_error(consumer: &Consumer) -> Result<KafkaError> {
    let started = Instant::now();
    while started.elapsed() < STEP {
        match consumer.poll(millis(100)) {
            Some(Err(error)) => return Ok(error),
            Some(Ok(_)) => bail!("a record in place of an error"),
            None => {}
        }
    }
    bail!("no error")
}

fn out_of_range(env: &Env) -> Result<String> {
    let topic = env.topic("range", 1)?;
    send_all(&env.producer(&[])?, &topic, 0, numbered("v", 0..10))?;
    let consumer = env.consumer(&[])?;
    assign(&consumer, &topic, &[(0, Offset::Offset(5000))])?;
    match first_error(&consumer)? {
        KafkaError::MessageConsumption(Code::OffsetOutOfRange | Code::AutoOffsetReset) => fine(),
        other => bail!("{other}"),
    }
}

fn unknown_topic(env: &Env) -> Result<String> {
    let consumer = env.consumer(&[("allow.auto.create.topics", "false"), ("topic.metadata.propagation.max.ms", "1000")])?;
    assign(&consumer, &env.name("nosuch"), &[(0, Offset::Beginning)])?;
    match first_error(&consumer)? {
        KafkaError::MessageConsumption(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => fine(),
        other => bail!("{other}"),
    }
}

fn small_fetches(env: &Env) -> Result<String> {
    let topic = env.topic("small", 2)?;
    let producer = env.producer(&[("batch.num.messages", "3")])?;
    let value = "x".repeat(2000);
    for number in 0..100 {
        send(&producer, &topic, number % 2, None, value.as_bytes())?;
    }
    flush(&producer)?;
    let small = [("max.partition.fetch.bytes", "1000"), ("fetch.max.bytes", "1000"), ("message.max.bytes", "1000")];
    let consumer = env.consumer(&small)?;
    assign(&consumer, &topic, &[(0, Offset::Beginning), (1, Offset::Beginning)])?;
    expect("records larger than the fetch limit", drain(&consumer, 2)?.len(), 100)?;
    fine()
}

fn idle_fetches(env: &Env) -> Result<String> {
    let topic = env.topic("idle", 1)?;
    let consumer = env.consumer(&[("fetch.wait.max.ms", "500"), ("statistics.interval.ms", "250")])?;
    assign(&consumer, &topic, &[(0, Offset::Beginning)])?;
    let fetches = || consumer.context().fetches.load(Ordering::Relaxed);
    let poll_for = |time| {
        let started = Instant::now();
        while started.elapsed() < time {
            consumer.poll(millis(50));
        }
        fetches()
    };
    let before = poll_for(seconds(1));
    let count = poll_for(seconds(4)) - before;
    if !(2..=24).contains(&count) {
        bail!("{count} fetches in 4 idle seconds with a wait of 500 ms");
    }
    Ok(format!("{count} fetches in 4 idle seconds"))
}

fn min_bytes(env: &Env) -> Result<String> {
    let topic = env.topic("minbytes", 1)?;
    let producer = env.producer(&[("linger.ms", "0")])?;
    let settings = [("enable.partition.eof", "false"), ("fetch.wait.max.ms", "1500"), ("fetch.min.bytes", "100000")];
    let consumer = env.consumer(&settings)?;
    assign(&consumer, &topic, &[(0, Offset::Beginning)])?;
    consumer.poll(millis(2300)); // one whole wait and half of the next one, whenever the first fetch began within 0.8 s
    let started = Instant::now();
    send_all(&producer, &topic, 0, vec!["a".to_owned()])?;
    take(&consumer, 1)?;
    let waited = started.elapsed();
    if waited <= millis(300) {
        bail!("one small record came after {} ms, though fetches wait for more bytes", waited.as_millis());
    }
    Ok(format!("one small record came after {} ms", waited.as_millis()))
}

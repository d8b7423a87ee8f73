//! Idempotent producers: order and no repeats, with librdkafka and with raw frames.

use anyhow::{Result, bail};

use super::Check;
use super::kit::*;
use super::raw::{self, RawClient};

const CORRUPT_MESSAGE: i16 = 2;
const OUT_OF_ORDER_SEQUENCE: i16 = 45;
const DUPLICATE_SEQUENCE: i16 = 46;
const INVALID_PRODUCER_EPOCH: i16 = 47;
const INVALID_RECORD: i16 = 87;

pub const CHECKS: &[Check] = &[
    Check::new("idempotence.20000_in_order", 60, in_order),
    Check::new("idempotence.four_producers", 60, four_producers),
    Check::new("idempotence.repeated_batch_is_answered_alike", 40, repeated_batch),
    Check::new("idempotence.five_batches_are_remembered", 40, remembered),
    Check::new("idempotence.gap_is_refused", 40, gap),
    Check::new("idempotence.old_epoch_is_refused", 40, old_epoch),
    Check::new("idempotence.sequence_wraps", 40, wraps),
    Check::new("idempotence.damaged_batch_is_refused", 40, damaged),
    Check::new("idempotence.impossible_batches_are_refused", 40, impossible),
];

fn in_order(env: &Env) -> Result<String> {
    let topic = env.topic("idem", 1)?;
    let producer = env.producer(&[("enable.idempotence", "true"), ("batch.num.messages", "200"), ("linger.ms", "1")])?;
    let values = numbered("m", 0..20_000);
    send_all(&producer, &topic, 0, values.clone())?;
    if env.values(&topic, 0, UNCOMMITTED)? != values {
        bail!("other records, or another order");
    }
    fine()
}

fn four_producers(env: &Env) -> Result<String> {
    let topic = env.topic("idem4", 2)?;
    let producer = || env.producer(&[("enable.idempotence", "true"), ("linger.ms", "0")]);
    let producers: Vec<_> = (0..4).map(|_| producer()).collect::<Result<_>>()?;
    for number in 0..500 {
        for (who, producer) in producers.iter().enumerate() {
            send(producer, &topic, number % 2, None, format!("{who}:{number}").as_bytes())?;
        }
    }
    for producer in &producers {
        flush(producer)?;
    }
    for partition in 0..2 {
        let values = env.values(&topic, partition, UNCOMMITTED)?;
        expect("records", values.len(), 1000)?;
        for who in 0..4 {
            let prefix = format!("{who}:");
            let got: Vec<_> = values.iter().filter_map(|value| value.strip_prefix(&prefix)?.parse::<i32>().ok()).collect();
            expect("one producer's records", got, (0..500).filter(|number| number % 2 == partition).collect())?;
        }
    }
    fine()
}

fn repeated_batch(env: &Env) -> Result<String> {
    let topic = env.topic("repeat", 1)?;
    let mut raw = RawClient::connect(env)?;
    let producer = raw.init_producer_id(None)?;
    let batch = raw::batch(producer, 0, false, &numbered("a", 0..3))?;
    expect("first", raw.produce(None, &topic, &batch)?, (0, 0))?;
    expect("again", raw.produce(None, &topic, &batch)?, (0, 0))?;
    let next = raw::batch(producer, 3, false, &numbered("b", 0..2))?;
    expect("next", raw.produce(None, &topic, &next)?, (0, 3))?;
    expect("the first once more", raw.produce(None, &topic, &batch)?, (0, 0))?;
    expect("records", env.values(&topic, 0, UNCOMMITTED)?, vec!["a0".into(), "a1".into(), "a2".into(), "b0".into(), "b1".into()])?;
    fine()
}

fn remembered(env: &Env) -> Result<String> {
    let topic = env.topic("five", 1)?;
    let mut raw = RawClient::connect(env)?;
    let producer = raw.init_producer_id(None)?;
    let batches: Vec<_> = (0..7).map(|number| raw::batch(producer, number, false, &[format!("{number}")])).collect::<Result<_>>()?;
    for (batch, offset) in batches.iter().zip(0..) {
        expect("appended", raw.produce(None, &topic, batch)?, (0, offset))?;
    }
    for (batch, offset) in batches.iter().zip(0..).skip(2) {
        expect("one of the last five", raw.produce(None, &topic, batch)?, (0, offset))?;
    }
    let (code, _) = raw.produce(None, &topic, &batches[0])?;
    if ![OUT_OF_ORDER_SEQUENCE, DUPLICATE_SEQUENCE].contains(&code) {
        bail!("a batch older than the last five: error {code}");
    }
    expect("records", env.values(&topic, 0, UNCOMMITTED)?.len(), 7)?;
    fine()
}

fn gap(env: &Env) -> Result<String> {
    let topic = env.topic("gap", 1)?;
    let mut raw = RawClient::connect(env)?;
    let producer = raw.init_producer_id(None)?;
    expect("first", raw.produce(None, &topic, &raw::batch(producer, 0, false, &numbered("a", 0..3))?)?.0, 0)?;
    let skipping = raw::batch(producer, 4, false, &numbered("b", 0..1))?;
    expect("a batch that skips one", raw.produce(None, &topic, &skipping)?.0, OUT_OF_ORDER_SEQUENCE)?;
    let overlapping = raw::batch(producer, 2, false, &numbered("c", 0..2))?;
    expect("a batch that overlaps", raw.produce(None, &topic, &overlapping)?.0, OUT_OF_ORDER_SEQUENCE)?;
    expect("the right one", raw.produce(None, &topic, &raw::batch(producer, 3, false, &numbered("d", 0..1))?)?, (0, 3))?;
    fine()
}

fn old_epoch(env: &Env) -> Result<String> {
    let topic = env.topic("epoch", 1)?;
    let mut raw = RawClient::connect(env)?;
    let (id, epoch) = raw.init_producer_id(None)?;
    let newer = (id, epoch + 1);
    expect("epoch 0", raw.produce(None, &topic, &raw::batch((id, epoch), 0, false, &numbered("a", 0..1))?)?.0, 0)?;
    let not_first = raw::batch(newer, 1, false, &numbered("b", 0..1))?;
    expect("a new epoch must begin at 0", raw.produce(None, &topic, &not_first)?.0, OUT_OF_ORDER_SEQUENCE)?;
    expect("epoch 1", raw.produce(None, &topic, &raw::batch(newer, 0, false, &numbered("c", 0..1))?)?.0, 0)?;
    let late = raw::batch((id, epoch), 1, false, &numbered("d", 0..1))?;
    expect("epoch 0 again", raw.produce(None, &topic, &late)?.0, INVALID_PRODUCER_EPOCH)?;
    fine()
}

fn wraps(env: &Env) -> Result<String> {
    let topic = env.topic("wrap", 1)?;
    let mut raw = RawClient::connect(env)?;
    let producer = raw.init_producer_id(None)?;
    // a producer that the partition does not know may begin anywhere
    let last = raw::batch(producer, i32::MAX - 1, false, &numbered("a", 0..2))?;
    expect("up to the highest sequence", raw.produce(None, &topic, &last)?, (0, 0))?;
    let first = raw::batch(producer, 0, false, &numbered("b", 0..2))?;
    expect("from 0 on", raw.produce(None, &topic, &first)?, (0, 2))?;
    expect("repeated over the wrap", raw.produce(None, &topic, &last)?, (0, 0))?;
    fine()
}

fn damaged(env: &Env) -> Result<String> {
    let topic = env.topic("damaged", 1)?;
    let mut raw = RawClient::connect(env)?;
    let batch = raw::batch((-1, -1), -1, false, &numbered("a", 0..3))?;
    let mut damaged = batch.to_vec();
    *damaged.last_mut().expect("a batch has bytes") ^= 1;
    expect("a flipped bit", raw.produce(None, &topic, &damaged.into())?.0, CORRUPT_MESSAGE)?;
    expect("the batch as it was", raw.produce(None, &topic, &batch)?, (0, 0))?;
    fine()
}

fn impossible(env: &Env) -> Result<String> {
    let topic = env.topic("impossible", 1)?;
    let mut raw = RawClient::connect(env)?;
    let batch = raw::batch((-1, -1), -1, false, &numbered("a", 0..3))?;
    let two = [batch.clone(), batch.clone()].concat().into();
    expect("two batches", raw.produce(None, &topic, &two)?.0, INVALID_RECORD)?;
    let control = raw::with_bytes(&batch, 21, &0x20i16.to_be_bytes());
    expect("a control batch", raw.produce(None, &topic, &control)?.0, INVALID_RECORD)?;
    let miscounted = raw::with_bytes(&batch, 57, &2i32.to_be_bytes());
    expect("a wrong count", raw.produce(None, &topic, &miscounted)?.0, INVALID_RECORD)?;
    expect("records", env.values(&topic, 0, UNCOMMITTED)?.len(), 0)?;
    fine()
}

//! Transactions: all or nothing, and nothing before its time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use rdkafka::Offset;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::producer::Producer as _;

use super::Check;
use super::kit::*;

pub const CHECKS: &[Check] = &[
    Check::new("transactions.commit_shows_all", 60, commit_shows),
    Check::new("transactions.abort_hides_all", 60, abort_hides),
    Check::new("transactions.open_hides_what_follows", 60, open_hides),
    Check::new("transactions.waiting_reader_sees_commits_only", 60, waiting_reader),
    Check::new("transactions.last_stable_offset", 60, last_stable_offset),
    Check::new("transactions.two_topics", 60, two_topics),
    Check::new("transactions.interleaved", 120, interleaved),
    Check::new("transactions.many_aborted_before_one", 60, many_aborted),
    Check::new("transactions.offsets_commit", 60, offsets_commit),
    Check::new("transactions.offsets_are_hidden_while_open", 60, offsets_hidden),
    Check::new("transactions.read_process_write", 150, read_process_write),
];

fn commit_shows(env: &Env) -> Result<String> {
    let topic = env.topic("commit", 2)?;
    let producer = env.transactional_ready()?;
    begin(&producer)?;
    send_all(&producer, &topic, 0, numbered("a", 0..50))?;
    send_all(&producer, &topic, 1, numbered("b", 0..50))?;
    commit(&producer)?;
    expect("partition 0", env.decided(&topic, 0)?, numbered("a", 0..50))?;
    expect("partition 1", env.decided(&topic, 1)?, numbered("b", 0..50))?;
    begin(&producer)?;
    commit(&producer)?; // an empty one
    let end = producer.client().fetch_watermarks(&topic, 0, STEP)?.1;
    expect("the marker has an offset", end, 51)?;
    fine()
}

fn abort_hides(env: &Env) -> Result<String> {
    let topic = env.topic("abort", 1)?;
    let producer = env.transactional_ready()?;
    begin(&producer)?;
    send_all(&producer, &topic, 0, numbered("bad", 0..50))?;
    abort(&producer)?;
    expect("after the abort", env.decided(&topic, 0)?, vec![])?;
    begin(&producer)?;
    send_all(&producer, &topic, 0, numbered("good", 0..50))?;
    commit(&producer)?;
    expect("after a commit", env.decided(&topic, 0)?, numbered("good", 0..50))?;
    expect("uncommitted", env.values(&topic, 0, UNCOMMITTED)?.len(), 100)?;
    fine()
}

fn open_hides(env: &Env) -> Result<String> {
    let topic = env.topic("open", 1)?;
    let (plain, producer) = (env.producer(&[])?, env.transactional_ready()?);
    send_all(&plain, &topic, 0, numbered("before", 0..5))?;
    begin(&producer)?;
    send_all(&producer, &topic, 0, numbered("inside", 0..20))?;
    send_all(&plain, &topic, 0, numbered("after", 0..5))?;
    expect("while open", env.values(&topic, 0, COMMITTED)?, numbered("before", 0..5))?;
    expect("uncommitted", env.values(&topic, 0, UNCOMMITTED)?.len(), 30)?;
    commit(&producer)?;
    let wanted = [numbered("before", 0..5), numbered("inside", 0..20), numbered("after", 0..5)].concat();
    expect("after the commit", env.decided(&topic, 0)?, wanted)?;
    fine()
}

/// A plain record behind each end tells the reader that everything before it has been decided.
fn waiting_reader(env: &Env) -> Result<String> {
    let topic = env.topic("waiting", 1)?;
    let (plain, producer) = (env.producer(&[])?, env.transactional_ready()?);
    let consumer = env.consumer(&[("isolation.level", COMMITTED), ("enable.partition.eof", "false"), ("fetch.wait.max.ms", "500")])?;
    assign(&consumer, &topic, &[(0, Offset::Beginning)])?;
    for round in 0..4 {
        begin(&producer)?;
        send_all(&producer, &topic, 0, numbered(&format!("r{round}."), 0..10))?;
        if let Some(Ok(_)) = consumer.poll(millis(300)) {
            bail!("a record of an open transaction");
        }
        let mut wanted = Vec::new();
        if round % 2 == 0 {
            commit(&producer)?;
            wanted = numbered(&format!("r{round}."), 0..10);
        } else {
            abort(&producer)?;
        }
        send_all(&plain, &topic, 0, vec![format!("end{round}")])?;
        wanted.push(format!("end{round}"));
        let seen: Vec<_> = take(&consumer, wanted.len())?.into_iter().map(|record| record.value).collect();
        expect("after the end", seen, wanted)?;
    }
    fine()
}

fn last_stable_offset(env: &Env) -> Result<String> {
    let topic = env.topic("stable", 1)?;
    send_all(&env.producer(&[])?, &topic, 0, numbered("before", 0..7))?;
    let producer = env.transactional_ready()?;
    let committed = env.consumer(&[("isolation.level", COMMITTED)])?;
    let uncommitted = env.consumer(&[("isolation.level", UNCOMMITTED)])?;
    let ends =
        || Ok::<_, anyhow::Error>((committed.fetch_watermarks(&topic, 0, STEP)?.1, uncommitted.fetch_watermarks(&topic, 0, STEP)?.1));
    begin(&producer)?;
    send_all(&producer, &topic, 0, numbered("inside", 0..20))?;
    expect("ends while open", ends()?, (7, 27))?;
    abort(&producer)?;
    wait_until("the end is stable", || Ok(ends()? == (28, 28)))?;
    fine()
}

fn two_topics(env: &Env) -> Result<String> {
    let topics = [env.topic("left", 3)?, env.topic("right", 3)?];
    let producer = env.transactional_ready()?;
    for round in 0..10 {
        begin(&producer)?;
        for topic in &topics {
            for partition in 0..3 {
                send(&producer, topic, partition, None, format!("{round}").as_bytes())?;
            }
        }
        flush(&producer)?;
        if round % 2 == 0 { commit(&producer)? } else { abort(&producer)? }
    }
    let wanted: Vec<_> = (0..10).step_by(2).map(|round| round.to_string()).collect();
    for topic in &topics {
        for partition in 0..3 {
            expect("committed rounds", env.decided(topic, partition)?, wanted.clone())?;
        }
    }
    fine()
}

/// Three transactional producers and a plain one in two partitions; what is visible is known to the offset.
fn interleaved(env: &Env) -> Result<String> {
    let topic = env.topic("mix", 2)?;
    let producers: Vec<_> = (0..3).map(|_| env.transactional_ready()).collect::<Result<_>>()?;
    let plain = env.producer(&[])?;
    let mut visible: [Vec<(i64, String)>; 2] = Default::default();
    let mut total = 0;
    for round in 0..20usize {
        let mut sent: Vec<Vec<(usize, i64, String)>> = vec![Vec::new(); producers.len()];
        for producer in &producers {
            begin(producer)?;
        }
        for step in 0..4 {
            for (who, producer) in producers.iter().enumerate() {
                let (partition, value) = ((step + who) % 2, format!("r{round}p{who}s{step}"));
                let offset = send_all(producer, &topic, partition as i32, vec![value.clone()])?[0].1;
                sent[who].push((partition, offset, value));
            }
            let value = format!("plain{round}.{step}");
            visible[0].push((send_all(&plain, &topic, 0, vec![value.clone()])?[0].1, value));
            total += producers.len() + 1;
        }
        for (who, producer) in producers.iter().enumerate() {
            if (round + who) % 3 == 0 {
                abort(producer)?;
                continue;
            }
            commit(producer)?;
            for (partition, offset, value) in sent[who].drain(..) {
                visible[partition].push((offset, value));
            }
        }
    }
    for (partition, mut wanted) in (0..).zip(visible) {
        wanted.sort();
        env.wait_decided(&topic, partition)?;
        for start in [0, 1, 13, 57, 101] {
            let small = [
                ("isolation.level", COMMITTED),
                ("max.partition.fetch.bytes", "1000"),
                ("fetch.max.bytes", "1000"),
                ("message.max.bytes", "1000"),
            ];
            let settings = if start == 1 { &small[..] } else { &small[..1] };
            let read = env.read_from(&topic, partition, Offset::Offset(start), settings)?;
            let got: Vec<_> = read.into_iter().map(|record| (record.offset, record.value)).collect();
            let rest: Vec<_> = wanted.iter().filter(|(offset, _)| *offset >= start).cloned().collect();
            expect(&format!("from offset {start}"), got, rest)?;
        }
    }
    Ok(format!("{total} records"))
}

fn many_aborted(env: &Env) -> Result<String> {
    let topic = env.topic("aborted", 1)?;
    let producer = env.transactional_ready()?;
    for _ in 0..50 {
        begin(&producer)?;
        send_all(&producer, &topic, 0, numbered("bad", 0..100))?;
        abort(&producer)?;
    }
    begin(&producer)?;
    send_all(&producer, &topic, 0, vec!["good".to_owned()])?;
    commit(&producer)?;
    expect("what is left", env.decided(&topic, 0)?, vec!["good".to_owned()])?;
    fine()
}

fn offsets_commit(env: &Env) -> Result<String> {
    let (input, output, group) = (env.topic("in", 2)?, env.topic("out", 1)?, env.name("group"));
    let producer = env.transactional_ready()?;
    let consumer = env.consumer(&[("group.id", &group)])?;
    let metadata = consumer.group_metadata().ok_or_else(|| anyhow!("no group metadata"))?;
    begin(&producer)?;
    send_all(&producer, &output, 0, numbered("a", 0..3))?;
    ok("send offsets", producer.send_offsets_to_transaction(&offsets(&input, &[(0, 11), (1, 22)])?, &metadata, STEP))?;
    commit(&producer)?;
    let committed = || Ok::<_, anyhow::Error>((env.committed(&group, &input, 0)?, env.committed(&group, &input, 1)?));
    expect("committed", committed()?, (Some(11), Some(22)))?;
    begin(&producer)?;
    ok("send offsets", producer.send_offsets_to_transaction(&offsets(&input, &[(0, 12)])?, &metadata, STEP))?;
    commit(&producer)?; // offsets without records
    expect("committed later", committed()?, (Some(12), Some(22)))?;
    fine()
}

fn offsets_hidden(env: &Env) -> Result<String> {
    let (input, group) = (env.topic("in", 1)?, env.name("group"));
    let producer = env.transactional_ready()?;
    let consumer = env.consumer(&[("group.id", &group)])?;
    let metadata = consumer.group_metadata().ok_or_else(|| anyhow!("no group metadata"))?;
    begin(&producer)?;
    ok("send offsets", producer.send_offsets_to_transaction(&offsets(&input, &[(0, 11)])?, &metadata, STEP))?;
    // under read committed the client asks for stable offsets only, and the broker refuses while they may change
    let stable = env.consumer(&[("group.id", &group), ("isolation.level", COMMITTED)])?;
    let mut wanted = rdkafka::TopicPartitionList::new();
    wanted.add_partition(&input, 0);
    let pending = stable.committed_offsets(wanted, seconds(2));
    if let Ok(list) = &pending
        && list.elements()[0].error().is_ok()
    {
        bail!("a position was given while the transaction was open: {:?}", list.elements()[0].offset());
    }
    abort(&producer)?;
    expect("committed after the abort", env.committed(&group, &input, 0)?, None)?;
    fine()
}

/// Consume, transform, produce with offsets in the transaction; two instances die with it open.
fn read_process_write(env: &Env) -> Result<String> {
    let (input, output) = (env.topic("in", 2)?, env.topic("out", 1)?);
    let (group, id) = (env.name("group"), env.name("tid"));
    let source = env.producer(&[])?;
    for number in 0..400 {
        send(&source, &input, number % 2, None, number.to_string().as_bytes())?;
    }
    flush(&source)?;
    let mut committed = 0;
    for instance in 0..3 {
        let consumer = super::groups::member(env, &group, &[("isolation.level", COMMITTED)])?;
        consumer.subscribe(&[&input])?;
        let producer = env.transactional(&id, &[])?;
        ok("init", producer.init_transactions(STEP))?;
        let dies_in = if instance < 2 { Some(3) } else { None };
        committed += process(&consumer, &producer, &input, &output, dies_in)?;
    }
    let mut values: Vec<u32> = env.decided(&output, 0)?.iter().map(|value| value.parse()).collect::<Result<_, _>>()?;
    values.sort_unstable();
    expect("each input exactly once", values, (0..400).collect())?;
    Ok(format!("{committed} transactions"))
}

/// Returns the number of committed transactions; leaves the `dies_in`-th one open.
fn process(consumer: &Consumer, producer: &Producer, input: &str, output: &str, dies_in: Option<usize>) -> Result<usize> {
    let (started, mut count, mut ended) = (Instant::now(), 0, BTreeSet::new());
    while ended.len() < 2 {
        if started.elapsed() > seconds(60) {
            bail!("no end of the input after 60 s");
        }
        let mut positions = BTreeMap::new();
        let mut values = Vec::new();
        while values.len() < 40 {
            match consumer.poll(millis(200)) {
                Some(Ok(message)) => {
                    ended.remove(&message.partition());
                    let record = Record::of(&message);
                    positions.insert(record.partition, record.offset + 1);
                    values.push(record.value);
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    ended.insert(partition);
                }
                Some(Err(error)) => bail!("{error}"),
                None => break,
            }
        }
        if values.is_empty() {
            continue;
        }
        begin(producer)?;
        send_all(producer, output, 0, values)?;
        let positions: Vec<_> = positions.into_iter().collect();
        let metadata = consumer.group_metadata().ok_or_else(|| anyhow!("no group metadata"))?;
        ok("send offsets", producer.send_offsets_to_transaction(&offsets(input, &positions)?, &metadata, STEP))?;
        if dies_in == Some(count + 1) {
            return Ok(count);
        }
        commit(producer)?;
        count += 1;
    }
    Ok(count)
}

use crate::log_or_return;
use crate::support::*;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use streamshield_core::ports::log::*;

#[test]
fn a_new_writer_fences_the_old_one_and_aborts_its_transaction() {
    let log = log_or_return!();
    let (topic, id) = (topic(&log, "fence", 1), unique("fence"));
    let mut old = log.writer(&id).expect("writer");
    commit(&mut *old, &values(&topic, numbered("old", 0..2)));
    old.begin().expect("begin");
    old.send_set(&values(&topic, numbered("lost", 0..2))).expect("send");
    let started = Instant::now();
    let mut new = log.writer(&id).expect("writer");
    println!("fencing a writer with an open transaction took {} ms", started.elapsed().as_millis());
    commit(&mut *new, &values(&topic, numbered("new", 0..2)));
    let outcome = old.commit();
    assert!(matches!(outcome, CommitOutcome::Fenced(_)), "{outcome:?}");
    assert_eq!(old.begin().expect_err("spent").kind, LogErrorKind::Fenced);
    let (seen, _) = Reading::new(&log, &topic, 0, 0).take_to_settled_end(&log);
    assert_eq!(texts(&seen), ["old0", "old1", "new0", "new1"]);
}

#[test]
fn fencing_without_a_new_writer_ends_the_transaction_too() {
    let log = log_or_return!();
    let (topic, id) = (topic(&log, "fence-only", 1), unique("fence-only"));
    let mut writer = log.writer(&id).expect("writer");
    writer.begin().expect("begin");
    writer.send_set(&values(&topic, numbered("lost", 0..2))).expect("send");
    log.fence(&id).expect("fence");
    let outcome = writer.commit();
    assert!(matches!(outcome, CommitOutcome::Fenced(_) | CommitOutcome::Aborted(_)), "{outcome:?}");
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    let stable = log.bounds(&partition, Isolation::ReadCommitted).expect("bounds");
    assert_eq!(stable, log.bounds(&partition, Isolation::ReadUncommitted).expect("bounds"), "nothing is open");
    assert_eq!(Reading::new(&log, &topic, 0, 0).take_to_settled_end(&log).0, []);
}

#[test]
fn a_clean_commit_has_one_clean_answer_every_time() {
    let log = log_or_return!();
    let topic = topic(&log, "clean", 4);
    let mut writer = log.writer(&unique("clean")).expect("writer");
    // Any doubt would show as another outcome, and a stray line as an error of `begin`.
    for round in 0..200 {
        let mut set = MessageSet::new(Arc::clone(&topic));
        for number in 0..8 {
            push(&mut set, Some(number % 4), None, Some(format!("{round}/{number}").as_bytes()), None);
        }
        commit(&mut *writer, &set);
    }
    writer.begin().expect("begin");
    assert_eq!(writer.commit(), CommitOutcome::Committed, "without a message there is nothing to doubt");
    writer.begin().expect("begin after an empty transaction");
    assert_eq!(writer.commit(), CommitOutcome::Committed);
}

#[test]
fn small_commits_take_milliseconds() {
    let log = log_or_return!();
    let topic = topic(&log, "speed", 1);
    let mut writer = log.writer(&unique("speed")).expect("writer");
    commit(&mut *writer, &values(&topic, numbered("warm", 0..1)));
    let mut times: Vec<Duration> = (0..300)
        .map(|round| {
            let set = values(&topic, numbered(&format!("{round}/"), 0..8));
            writer.begin().expect("begin");
            writer.send_set(&set).expect("send");
            let started = Instant::now();
            assert_eq!(writer.commit(), CommitOutcome::Committed);
            started.elapsed()
        })
        .collect();
    times.sort();
    println!("commit of 8 small messages: p50 {:.1} ms, p95 {:.1} ms, max {:.1} ms", ms(times[150]), ms(times[285]), ms(times[299]));
    assert!(times[150] < Duration::from_millis(80), "commits wait for something: rdkafka's flush would take 100 ms");
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[test]
fn a_message_that_can_not_be_written_is_refused_for_good() {
    let log = log_or_return!();
    let topic = topic_with(&log, "large", 1, &[("max.message.bytes", "2000")]);
    let mut writer = log.writer(&unique("large")).expect("writer");
    writer.begin().expect("begin");
    // Random enough not to be compressed below the limit.
    let large: String =
        (0..40_000u64).map(|n| char::from(b'!' + (n.wrapping_mul(n).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 57) as u8 % 90)).collect();
    writer.send_set(&values(&topic, [large])).expect("queued");
    let outcome = writer.commit();
    assert!(matches!(&outcome, CommitOutcome::Refused(why) if why.contains("large")), "{outcome:?}");
    assert_eq!(writer.begin().expect_err("spent").kind, LogErrorKind::Fenced);
    drop(writer);
    let mut writer = log.writer(&unique("large")).expect("writer");
    writer.begin().expect("begin");
    let error = writer.send_set(&values(&topic, ["x".repeat(2_000_000)])).expect_err("larger than the client's limit");
    assert_eq!(error.kind, LogErrorKind::Invalid, "{error}");
}

#[test]
fn a_timestamp_that_the_topic_does_not_take_is_refused_for_good() {
    let log = log_or_return!();
    let topic = topic_with(&log, "ahead", 1, &[("message.timestamp.after.max.ms", "3600000")]);
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    // Two of them, and others in one batch with them: a broker that names the invalid records has another code for the rest.
    let mut set = values(&topic, numbered("good", 0..2));
    for ahead in ["ahead0", "ahead1"] {
        push(&mut set, Some(0), None, Some(ahead.as_bytes()), Some(now_ms + 2 * 3_600_000));
    }
    let id = unique("ahead");
    let mut writer = log.writer(&id).expect("writer");
    writer.begin().expect("begin");
    writer.send_set(&set).expect("queued");
    let outcome = writer.commit();
    assert!(matches!(&outcome, CommitOutcome::Refused(why) if why.contains("ahead")), "{outcome:?}");
    drop(writer);
    commit(&mut *log.writer(&id).expect("writer"), &values(&topic, numbered("after", 0..1)));
    assert_eq!(texts(&Reading::new(&log, &topic, 0, 0).take_to_settled_end(&log).0), ["after0"]);
}

#[test]
fn keys_land_where_java_clients_put_them() {
    let log = log_or_return!();
    let topic = topic(&log, "keys", 100);
    // Java: toPositive(Utils.murmur2(key)) % 100, with the vectors of Kafka's own UtilsTest.
    let java: [(&str, i32); 7] = [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
        ("", 275_646_681),
    ];
    let mut set = MessageSet::new(Arc::clone(&topic));
    for (key, _) in java {
        push(&mut set, None, Some(key.as_bytes()), Some(key.as_bytes()), None);
    }
    let mut writer = log.writer(&unique("keys")).expect("writer");
    commit(&mut *writer, &set);
    for (key, hash) in java {
        let partition = (hash & 0x7fff_ffff) % 100;
        let mut reading = Reading::new(&log, &topic, partition, 0);
        assert!(texts(&reading.take_to_settled_end(&log).0).contains(&key), "'{key}' is not in partition {partition}");
    }
}

#[test]
fn a_large_transaction_passes_a_small_queue() {
    let Some(servers) = servers() else { return };
    let log = connect(&servers, &[("queue.buffering.max.messages", "1000")]);
    let topic = topic(&log, "queue", 1);
    let mut writer = log.writer(&unique("queue")).expect("writer");
    commit(&mut *writer, &values(&topic, numbered("v", 0..20_000)));
    let (seen, end) = Reading::new(&log, &topic, 0, 0).take_to_settled_end(&log);
    assert_eq!(end, 20_001);
    assert!(seen.iter().enumerate().all(|(index, seen)| seen.value.as_deref() == Some(&format!("v{index}"))), "order or content");
}

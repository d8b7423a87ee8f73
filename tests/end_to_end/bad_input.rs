//! Records that are no rows, and rows that come too late.

use super::{COUNTS, Stage, TIMEOUT, row};
use anyhow::{Result, ensure};
use rdkafka::Message;
use rdkafka::message::Headers;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use streamshield_tests::support::client::{Input, Output, create_topic, read_json};
use streamshield_tests::support::job::{BOUNDED, Job, kafka_table};

/// What a producer with a bug, or with bad intentions, may send: no JSON, half of a record, two in one, a number as text, one out of range,
/// an unreadable time.
const BAD: [&str; 7] = [
    "no json",
    r#"{"k":"half","v":1,"ts":"#,
    r#""2024-01-01 00:00:00"}"#,
    r#"{"k":"a","v":1,"ts":"2024-01-01 00:00:00"}{"k":"a","v":1,"ts":"2024-01-01 00:00:00"}"#,
    r#"{"k":"a","v":"one","ts":"2024-01-01 00:00:00"}"#,
    r#"{"k":"a","v":99999999999999999999,"ts":"2024-01-01 00:00:00"}"#,
    r#"{"k":"a","v":1,"ts":"yesterday"}"#,
];

/// Good, bad, good, bad … in one partition.
fn send_mixed(stage: &Stage) -> Result<()> {
    let input = Input::new(&stage.servers())?;
    for (number, bad) in BAD.iter().enumerate() {
        input.send(&stage.input, Some(0), None, Some(row("a", 1, number as i64).to_string().as_bytes()))?;
        input.send(&stage.input, Some(0), Some(b"key"), Some(bad.as_bytes()))?;
    }
    input.flush()
}

const GOOD_ROWS: [&str; 1] = ["a 00:00:00 7 7"];

#[test]
fn fail_stops_the_job_and_names_the_record() -> Result<()> {
    let mut stage = Stage::new("bad-fail")?;
    send_mixed(&stage)?;
    let job = stage.job(&[BOUNDED], COUNTS).set("on_bad_record", "fail");
    let run = stage.runner.start(&job)?;
    let ended = run.process.expect_end(TIMEOUT)?;
    let words = run.process.last_words();
    ensure!(ended.status.code() == Some(1), "{}\n{words}", ended.status);
    ensure!(words.contains(&stage.input), "the record's topic is not named:\n{words}");
    assert!(stage.output()?.is_empty());
    Ok(())
}

#[test]
fn skip_counts_and_drops_bad_records_and_no_byte_of_them_joins_another() -> Result<()> {
    let mut stage = Stage::new("bad-skip")?;
    send_mixed(&stage)?;
    let job = stage.job(&[BOUNDED], COUNTS).set("on_bad_record", "skip");
    let (run, _) = stage.runner.finish(&job, TIMEOUT)?;
    assert_eq!(stage.output()?, GOOD_ROWS);
    assert_eq!(run.summary()?["rows_in"], 14);
    Ok(())
}

/// Payload, key and headers.
type Letter = (String, Option<Vec<u8>>, BTreeMap<String, String>);

/// What is in the dead-letter topic.
fn letters(stage: &Stage) -> Result<Vec<Letter>> {
    let mut letters = Vec::new();
    Output::follow(&stage.servers(), &format!("{}-dead-letter", stage.name))?.visit_to_end(&mut |message| {
        let headers: BTreeMap<String, String> = message.headers().map_or_else(BTreeMap::new, |headers| {
            headers
                .iter()
                .map(|header| (header.key.to_string(), String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned()))
                .collect()
        });
        letters.push((
            String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned(),
            message.key().map(<[u8]>::to_vec),
            headers,
        ));
    })?;
    Ok(letters)
}

#[test]
fn dead_letters_have_the_original_bytes_and_say_where_they_came_from() -> Result<()> {
    let mut stage = Stage::new("bad-letters")?;
    send_mixed(&stage)?;
    let job = stage.job(&[BOUNDED], COUNTS).set("on_bad_record", "dead_letter");
    stage.runner.finish(&job, TIMEOUT)?;
    assert_eq!(stage.output()?, GOOD_ROWS);
    let letters = letters(&stage)?;
    let payloads: Vec<&str> = letters.iter().map(|(payload, _, _)| payload.as_str()).collect();
    assert_eq!(payloads, BAD);
    for (number, (_, key, headers)) in letters.iter().enumerate() {
        assert_eq!(key.as_deref(), Some(&b"key"[..]));
        let has = |value: &str| headers.values().any(|found| found == value);
        ensure!(
            has(&stage.input) && has(&stage.name) && has(&(number * 2 + 1).to_string()),
            "topic, job and offset are in the headers: {headers:?}"
        );
        ensure!(headers.keys().any(|key| key.contains("error")), "the reason is in the headers: {headers:?}");
    }
    Ok(())
}

/// A row that the query leaves out, a good one, and one that only the sink refuses: its message would be from before 1970.
fn send_to_be_refused_by_the_sink(stage: &Stage) -> Result<String> {
    let refused = row("refused", -1, 1).to_string();
    let good = json!({"k": "good", "v": null, "ts": "2024-01-01 00:00:00"}).to_string();
    let input = Input::new(&stage.servers())?;
    for record in ["no json", row("left out", 1, 0).to_string().as_str(), good.as_str(), refused.as_str()] {
        input.send(&stage.input, Some(0), Some(b"key"), Some(record.as_bytes()))?;
    }
    input.flush()?;
    Ok(refused)
}

/// A job of one stage that writes `v` as the message's time.
fn timed(stage: &Stage) -> Job {
    let columns = "k STRING, at TIMESTAMP_LTZ(3) METADATA FROM 'timestamp'";
    let query = kafka_table("timed", columns, &stage.output, &[])
        + "INSERT INTO timed SELECT k, TO_TIMESTAMP_LTZ(v, 3) FROM input WHERE k <> 'left out';";
    stage.job(&[BOUNDED], &query)
}

#[test]
fn a_row_that_the_sink_refuses_is_told_by_the_record_it_was_made_from() -> Result<()> {
    let mut stage = Stage::new("bad-sink")?;
    let refused = send_to_be_refused_by_the_sink(&stage)?;
    let job = timed(&stage).set("on_bad_record", "dead_letter");
    stage.runner.finish(&job, TIMEOUT)?;
    assert_eq!(read_json(&stage.servers(), &stage.output)?, [json!({"k": "good"})]);
    let letters = letters(&stage)?;
    let payloads: Vec<&str> = letters.iter().map(|(payload, _, _)| payload.as_str()).collect();
    assert_eq!(payloads, ["no json", refused.as_str()]);
    let (_, key, headers) = &letters[1];
    assert_eq!(key.as_deref(), Some(&b"key"[..]));
    let place = ["streamshield.topic", "streamshield.partition", "streamshield.offset"].map(|name| headers.get(name).map(String::as_str));
    assert_eq!(place, [Some(stage.input.as_str()), Some("0"), Some("3")], "{headers:?}");
    ensure!(headers["streamshield.error"].contains("1970"), "{headers:?}");
    Ok(())
}

#[test]
fn fail_names_the_place_of_a_row_that_the_sink_refuses() -> Result<()> {
    fails_at_the_third_record("fail-sink", row("refused", -1, 1), timed)
}

#[test]
fn fail_names_the_place_of_a_row_that_the_scan_refuses() -> Result<()> {
    fails_at_the_third_record("fail-scan", json!({"k": "no time", "v": 1, "ts": null}), |stage| stage.job(&[BOUNDED], COUNTS))
}

fn fails_at_the_third_record(name: &str, record: Value, job: impl Fn(&Stage) -> Job) -> Result<()> {
    let mut stage = Stage::new(name)?;
    stage.send(0, &[json!({"k": "good", "v": null, "ts": "2024-01-01 00:00:00"}), row("left out", 1, 0), record])?;
    let job = job(&stage).set("on_bad_record", "fail");
    let run = stage.runner.start(&job)?;
    let ended = run.process.expect_end(TIMEOUT)?;
    let words = run.process.last_words();
    ensure!(ended.status.code() == Some(1), "{}\n{words}", ended.status);
    let place = format!("{} partition 0 offset 2", stage.input);
    ensure!(words.contains(&place), "the record's place is not named:\n{words}");
    Ok(())
}

/// Two partitions; the second one is far ahead, so that its row at 1 s is late by its own watermark, and by the other one's as well.
///
/// Both begin before either goes on: one that has had no row for two seconds is idle, and no window waits for it.
fn send_late(stage: &Stage) -> Result<()> {
    stage.send(0, &[row("a", 1, 0)])?;
    stage.send(1, &[row("a", 4, 0)])?;
    stage.send(0, &[row("a", 2, 30_000)])?;
    stage.send(1, &[row("a", 8, 30_000), row("late", 16, 1_000)])
}

#[test]
fn late_rows_are_dropped_and_counted() -> Result<()> {
    let mut stage = Stage::new("late-drop")?;
    let job = stage.job(&[], COUNTS);
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    send_late(&stage)?;
    stage.wait_for_output(1)?;
    run.wait_status_at_least("late_rows", 1, TIMEOUT)?;
    run.process.terminate(TIMEOUT)?;
    assert_eq!(stage.output()?, ["a 00:00:00 2 5"]);
    Ok(())
}

#[test]
fn late_rows_go_to_their_topic_where_the_job_says_so() -> Result<()> {
    let mut stage = Stage::new("late-topic")?;
    let late_topic = format!("{}-late", stage.name);
    create_topic(&stage.servers(), &late_topic, 1)?;
    let job = stage.job(&[], COUNTS).set("late_rows", "side_topic");
    let mut run = stage.runner.start(&job)?;
    run.wait_ready(TIMEOUT)?;
    send_late(&stage)?;
    let late = streamshield_tests::support::client::wait_for_json(&stage.servers(), &late_topic, 1, TIMEOUT)?;
    ensure!(late[0].to_string().contains("late"), "the late row: {late:?}");
    run.process.terminate(TIMEOUT)?;
    assert_eq!(stage.output()?, ["a 00:00:00 2 5"]);
    Ok(())
}

#[test]
fn a_row_with_null_event_time_is_a_bad_record() -> Result<()> {
    let mut stage = Stage::new("null-time")?;
    stage.send(0, &[row("a", 1, 0), json!({"k": "a", "v": 2, "ts": null}), json!({"k": "a", "v": 4})])?;
    let job = stage.job(&[BOUNDED], COUNTS).set("on_bad_record", "skip");
    stage.runner.finish(&job, TIMEOUT)?;
    assert_eq!(stage.output()?, ["a 00:00:00 1 1"]);
    Ok(())
}

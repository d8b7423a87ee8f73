use crate::support::*;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::ports::log::*;

/// Stops and starts a broker of its own, named by `STREAMSHIELD_KAFKA_RESTART` (bootstrap address, stop command, start command, separated by `;`).
#[test]
fn a_broker_that_goes_and_comes_back_shows_as_retry_and_nothing_is_lost() {
    let Ok(setting) = std::env::var("STREAMSHIELD_KAFKA_RESTART") else {
        if servers().is_some() {
            println!("LEFT OUT: STREAMSHIELD_KAFKA_RESTART is not set (address;stop command;start command)");
        }
        return;
    };
    let [servers, stop, start] = setting.split(';').collect::<Vec<_>>()[..] else { panic!("three parts") };
    let shell = |command: &str| assert!(Command::new("bash").args(["-c", command]).status().expect("bash").success(), "{command}");
    let log = connect(servers, &[]);
    let topic = topic(&log, "restart", 1);
    let id = unique("restart");
    let mut writer = log.writer(&id).expect("writer");
    commit(&mut *writer, &values(&topic, numbered("before", 0..3)));
    let mut reading = Reading::new(&log, &topic, 0, 0);
    assert_eq!(reading.take_to_end().0.len(), 3);
    shell(stop);
    let error = reading.error();
    assert_eq!(error.kind, LogErrorKind::Retry, "{error}");
    assert!(error.message.contains(servers), "{error}");
    assert_eq!(log.describe_topic(&topic).expect_err("away").kind, LogErrorKind::Retry);
    let mut doomed = Some(writer);
    if let Some(writer) = doomed.as_mut() {
        writer.begin().expect("begin needs no broker");
        writer.send_set(&values(&topic, numbered("lost", 0..3))).expect("queued");
    }
    let started = Instant::now();
    drop(doomed);
    println!("dropping a writer with a transaction and no broker took {} ms", started.elapsed().as_millis());
    assert!(started.elapsed() < Duration::from_secs(5));
    shell(start);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut writer = loop {
        match log.writer(&id) {
            Ok(writer) => break writer,
            Err(error) => assert!(error.kind == LogErrorKind::Retry && Instant::now() < deadline, "{error}"),
        }
    };
    commit(&mut *writer, &values(&topic, numbered("after", 0..3)));
    let mut seen = Vec::new();
    while seen.len() < 3 {
        match reading.take(&ALL) {
            Ok((more, _)) => seen.extend(more),
            Err(error) => assert_eq!(error.kind, LogErrorKind::Retry, "{error}"),
        }
        assert!(Instant::now() < deadline, "{seen:?}");
        reading.wait();
    }
    assert_eq!(texts(&seen), ["after0", "after1", "after2"]);
    assert_eq!(Arc::strong_count(&log), 1);
}

use crate::log_or_return;
use crate::support::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::ports::log::*;

/// CPU time of the calling thread so far.
fn thread_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with schedstat");
    Duration::from_nanos(stat.split_whitespace().next().and_then(|text| text.parse().ok()).expect("nanoseconds"))
}

#[test]
fn consuming_costs_little_of_the_calling_thread() {
    let log = log_or_return!();
    const RECORDS: usize = 1_000_000;
    let topic = topic(&log, "measure", 1);
    let mut writer = log.writer(&unique("measure")).expect("writer");
    let record = format!("{{\"auction\":12345,\"text\":\"{}\"}}", "x".repeat(172));
    let started = Instant::now();
    for _ in 0..RECORDS / 50_000 {
        commit(&mut *writer, &values(&topic, std::iter::repeat_n(record.clone(), 50_000)));
    }
    println!("produced {RECORDS} records of {} B: {:.2} M/s", record.len(), RECORDS as f64 / started.elapsed().as_secs_f64() / 1e6);

    let wakeup = Arc::new(Wakeup::default());
    let mut reader = log.reader(ReaderOptions { buffer_bytes: 64 << 20, ..ReaderOptions::default() }, Arc::clone(&wakeup)).expect("reader");
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    reader.assign(&partition, 0).expect("assign");
    let limit = TakeLimit { messages: 4096, bytes: 1 << 20, end: None };
    let (mut messages, mut bytes, mut takes) = (0, 0, 0);
    let (started, cpu) = (Instant::now(), thread_cpu());
    while messages < RECORDS {
        let taken = reader
            .take(&partition, &limit, &mut |views| bytes += views.iter().map(|view| view.payload.map_or(0, <[u8]>::len)).sum::<usize>())
            .expect("take");
        messages += taken.messages;
        takes += 1;
        if taken.messages == 0 {
            wakeup.wait(Duration::from_secs(1));
        }
    }
    let cpu_us = (thread_cpu() - cpu).as_secs_f64() * 1e6 / RECORDS as f64;
    println!(
        "consumed {RECORDS} records in {takes} takes: {cpu_us:.3} µs CPU per record, {:.2} M/s",
        RECORDS as f64 / started.elapsed().as_secs_f64() / 1e6
    );
    assert_eq!((messages, bytes), (RECORDS, RECORDS * record.len()));
    assert!(cpu_us < 1.0, "a batch call costs a few tenths at most, even on a busy machine");
}

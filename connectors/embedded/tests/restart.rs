//! A broker with a folder goes on where it was, also after `kill -9`.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::producer::Producer as _;
use streamshield_embedded::{Config, EmbeddedBroker, Handle};
use tempfile::TempDir;

use crate::conformance::kit::*;
use crate::conformance::raw::RawClient;

/// Set in the child that serves until it is killed.
const CHILD_FOLDER: &str = "EMBEDDED_CHILD_FOLDER";
const CHILD_READY: &str = "child broker at ";
const KILLS: usize = 5;

fn start(folder: &Path) -> (Handle, Env) {
    // small enough that journals are rolled during the tests
    let config = Config { data_dir: Some(folder.to_owned()), journal_roll_bytes_min: 1 << 20, ..Config::default() };
    let broker = EmbeddedBroker::start(config).expect("it starts");
    let env = Env::new(&broker.bootstrap_servers(), "restart");
    (broker, env)
}

#[test]
fn a_restarted_broker_has_topics_records_offsets_and_transactions() -> anyhow::Result<()> {
    let folder = TempDir::new()?;
    let (broker, env) = start(folder.path());
    env.create("kept", 2, &[("retention.ms", "-1"), ("message.timestamp.type", "LogAppendTime")])?;
    let topic_id = RawClient::connect(&env)?.topic_id("kept")?;
    send_all(&env.producer(&[])?, "kept", 0, numbered("plain", 0..1000))?;
    send_all(&env.producer(&[])?, "created-by-use", 0, numbered("auto", 0..10))?;
    let producer = env.transactional("tid", &[])?;
    ok("init", producer.init_transactions(STEP))?;
    begin(&producer)?;
    send_all(&producer, "kept", 1, numbered("good", 0..100))?;
    let consumer = env.consumer(&[("group.id", "group")])?;
    let metadata = consumer.group_metadata().expect("a consumer with a group has it");
    ok("offsets", producer.send_offsets_to_transaction(&offsets("kept", &[(0, 500)])?, &metadata, STEP))?;
    commit(&producer)?;
    begin(&producer)?;
    send_all(&producer, "kept", 1, numbered("bad", 0..100))?;
    abort(&producer)?;
    begin(&producer)?;
    send_all(&producer, "kept", 1, numbered("open", 0..100))?;
    broker.shutdown()?;

    let (broker, env) = start(folder.path());
    expect("topic id", RawClient::connect(&env)?.topic_id("kept")?, topic_id)?;
    expect("plain records", env.values("kept", 0, COMMITTED)? == numbered("plain", 0..1000), true)?;
    expect("auto-created topic", env.values("created-by-use", 0, COMMITTED)?, numbered("auto", 0..10))?;
    expect("the open transaction is still open", env.values("kept", 1, COMMITTED)?, numbered("good", 0..100))?;
    expect("offset", env.committed("group", "kept", 0)?, Some(500))?;
    expect("offsets go on", send_all(&env.producer(&[])?, "kept", 0, vec!["next".into()])?, vec![(0, 1000)])?;
    let successor = env.transactional("tid", &[])?;
    ok("init the successor", successor.init_transactions(STEP))?;
    begin(&successor)?;
    send_all(&successor, "kept", 1, numbered("after", 0..10))?;
    commit(&successor)?;
    expect("committed", env.decided("kept", 1)?, [numbered("good", 0..100), numbered("after", 0..10)].concat())?;
    broker.shutdown()?;
    Ok(())
}

/// Not a test by itself: the process that the next test kills.
#[test]
fn child_broker() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else { return };
    let (broker, _) = start(Path::new(&folder));
    println!("{CHILD_READY}{}", broker.bootstrap_servers());
    loop {
        std::thread::park();
    }
}

fn spawn_child(folder: &Path) -> anyhow::Result<(Child, Env)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "restart::child_broker", "--nocapture"])
        .env(CHILD_FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().expect("its output is piped");
    for line in BufReader::new(output).lines() {
        if let Some(address) = line?.split(CHILD_READY).nth(1) {
            return Ok((child, Env::new(address.trim(), "kill")));
        }
    }
    child.kill()?;
    anyhow::bail!("the child ended")
}

#[test]
fn what_a_killed_broker_acknowledged_is_there_once_and_in_order() -> anyhow::Result<()> {
    let folder = TempDir::new()?;
    let mut acknowledged: Vec<String> = Vec::new();
    for life in 0..KILLS {
        let (mut child, env) = spawn_child(folder.path())?;
        if life == 0 {
            env.create("t", 1, &[])?;
        }
        let producer = env.transactional("tid", &[("batch.num.messages", "50"), ("linger.ms", "0")])?;
        ok("init", producer.init_transactions(STEP))?;
        let started = Instant::now();
        let lives_for = Duration::from_millis(150 + 97 * life as u64);
        for number in 0.. {
            let values = numbered(&format!("{life}.{number}."), 0..200);
            begin(&producer)?;
            send_all(&producer, "t", 0, values.clone())?;
            commit(&producer)?;
            acknowledged.extend(values);
            if started.elapsed() > lives_for {
                break;
            }
        }
        // the next transaction is open, with records on their way
        begin(&producer)?;
        for value in numbered("doomed", 0..1000) {
            send(&producer, "t", 0, None, value.as_bytes())?;
        }
        producer.poll(Duration::from_millis(1));
        child.kill()?;
        child.wait()?;
    }
    let (broker, env) = start(folder.path());
    let successor = env.transactional("tid", &[])?;
    ok("init the successor", successor.init_transactions(STEP))?;
    let read = env.decided("t", 0)?;
    assert!(acknowledged.len() > 200 * KILLS, "{} records in {KILLS} lives", acknowledged.len());
    assert!(read == acknowledged, "{} records read, {} acknowledged", read.len(), acknowledged.len());
    broker.shutdown()?;
    Ok(())
}

//! Jobs on a cluster: its topics before the start, and two processes of one job. The cluster is an embedded broker of the test's.

mod support;

use streamshield_core::ports::log::{Log, TopicSpec};
use streamshield_embedded::{Config, EmbeddedBroker, Handle};
use streamshield_kafka::KafkaLog;
use support::{Folder, Running};

/// Counts the rows of a topic.
const COUNTS: &str = "\
name: counts
kafka: {bootstrap.servers: BROKER}
slots: 1
parallelism: 2
state_dir: state-a
sql: |
  CREATE TABLE numbers (n BIGINT, at TIMESTAMP(3), WATERMARK FOR at AS at) WITH (
    'connector' = 'kafka', 'topic' = 'numbers', 'format' = 'json', 'scan.startup.mode' = 'earliest-offset'
  );
  CREATE TABLE counts (n BIGINT, rows_seen BIGINT) WITH ('connector' = 'kafka', 'topic' = 'counts', 'format' = 'json');
  INSERT INTO counts
  SELECT n, COUNT(*) FROM TABLE(TUMBLE(TABLE numbers, DESCRIPTOR(at), INTERVAL '1' SECOND)) GROUP BY n, window_start, window_end;
";

/// Fills the topic that the other job reads.
const NUMBERS: &str = "\
name: numbers-writer
kafka: {bootstrap.servers: BROKER}
slots: 1
state_dir: state-n
sql: |
  CREATE TABLE made (n BIGINT, at TIMESTAMP(3)) WITH ('connector' = 'datagen', 'number-of-rows' = '100', 'rows-per-second' = '0');
  CREATE TABLE numbers (n BIGINT, at TIMESTAMP(3)) WITH ('connector' = 'kafka', 'topic' = 'numbers', 'format' = 'json');
  INSERT INTO numbers SELECT n, at FROM made;
";

fn cluster() -> (Handle, Folder) {
    let broker = EmbeddedBroker::start(Config::default()).expect("a broker");
    let folder = Folder::with_job(&COUNTS.replace("BROKER", &broker.bootstrap_servers()));
    folder.write("numbers.yaml", &NUMBERS.replace("BROKER", &broker.bootstrap_servers()));
    (broker, folder)
}

#[test]
fn topics_are_checked_created_and_checked_again() {
    let (_broker, folder) = cluster();
    let missing = folder.fails(2, &["check", "job.yaml"]);
    assert!(missing.contains("topic `numbers` of table `numbers` does not exist") && missing.contains("job.yaml:8:"), "{missing}");
    assert!(folder.fails(2, &["topics", "create", "job.yaml"]).contains("does not exist"));
    folder.succeeds(&["run", "numbers.yaml"]);

    let dry = folder.succeeds(&["topics", "create", "job.yaml", "--dry-run"]);
    assert!(dry.contains("would create counts-control (1 partition)") && dry.contains("(2 partitions)"), "{dry}");
    assert!(folder.succeeds(&["check", "job.yaml"]).contains("topics: 0 of 5 exist"));
    let created = folder.succeeds(&["topics", "create", "job.yaml"]);
    assert_eq!(created.matches("created").count(), 5, "{created}");
    let again = folder.succeeds(&["topics", "create", "job.yaml"]);
    assert_eq!(again.matches("exists").count(), 5, "{again}");
    assert!(folder.succeeds(&["check", "job.yaml"]).contains("topics: 5 of 5 exist"));

    let job = std::fs::read_to_string(folder.path().join("job.yaml")).expect("the job");
    folder.write("wider.yaml", &job.replace("parallelism: 2", "parallelism: 3"));
    let wrong = folder.fails(2, &["check", "wider.yaml"]);
    assert!(wrong.contains("has 2 partitions, the job needs 3"), "{wrong}");
}

#[test]
fn what_topics_refuse_or_lose_is_told_before_the_start() {
    let (broker, folder) = cluster();
    let log = KafkaLog::connect([("bootstrap.servers".to_string(), broker.bootstrap_servers())].into()).expect("connected");
    let topic = |name: &str, configs: &[(&str, &str)]| TopicSpec {
        name: name.to_string(),
        partitions: 1,
        replication_factor: None,
        configs: configs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
    };
    let numbers = topic("numbers", &[("cleanup.policy", "compact,delete"), ("retention.ms", "60000")]);
    log.create_topics(&[numbers, topic("counts", &[("max.message.bytes", "20000")])]).expect("created");

    let refused = folder.fails(2, &["check", "job.yaml"]);
    for words in [
        "topic `counts` takes batches of at most 20000 bytes",
        "set `kafka: {batch.size: 20000}`",
        "topic `numbers` of table `numbers` is compacted",
        "topic `numbers` of table `numbers` keeps records for 60s only",
    ] {
        assert!(refused.contains(words), "{words} is missing in\n{refused}");
    }
    let job = std::fs::read_to_string(folder.path().join("job.yaml")).expect("the job");
    folder.write("smaller.yaml", &job.replace("kafka: {", "kafka: {batch.size: 20000, "));
    let told = folder.succeeds(&["check", "smaller.yaml"]);
    assert!(told.contains("is compacted") && told.contains("topics: 1 of 5 exist"), "{told}");
    for (properties, what) in [
        ("batch.size: 4000000, message.max.bytes: 8000000", "each topic of the job's own takes batches of at most 1048576 bytes"),
        ("batch.size: 20000, message.max.bytes: 300000", "takes messages of at most 300000 bytes"),
    ] {
        folder.write("unfit.yaml", &job.replace("kafka: {", &format!("kafka: {{{properties}, ")));
        for refused in [folder.fails(2, &["check", "unfit.yaml"]), folder.fails(1, &["run", "unfit.yaml"])] {
            assert!(refused.contains(what), "{what} is missing in\n{refused}");
        }
    }
}

#[test]
fn a_second_process_takes_the_job_over_and_the_first_one_says_so() {
    let (_broker, folder) = cluster();
    folder.succeeds(&["run", "numbers.yaml"]);
    let job = std::fs::read_to_string(folder.path().join("job.yaml")).expect("the job");
    folder.write("elsewhere.yaml", &job.replace("state-a", "state-b"));
    let mut first = Running::start(&folder, &["run", "job.yaml", "--metrics-addr", "127.0.0.1:0"]);
    let address = first.http_address();
    assert!(first.wait_until(|| support::get(&address, "/ready").0 == 200));
    let mut second = Running::start(&folder, &["run", "elsewhere.yaml"]);
    second.wait_for_line(|line| line.contains("fenced the producer of a slot that is gone"));
    let (code, output) = first.end();
    assert_eq!(code, Some(3), "{output}");
    assert!(output.contains("another process runs the job now"), "{output}");
    second.signal("TERM");
    assert_eq!(second.end().0, Some(0));
}

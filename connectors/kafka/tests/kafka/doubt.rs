//! A commit whose answer is lost must be in doubt, although librdkafka retries it and reports success (KIP-890).

use crate::support::*;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::ports::log::*;
use streamshield_proxy::{Action, ApiKey, KafkaProxy, Options, Rule};

fn commit_with_cut(cut: Action) {
    let Some(servers) = servers() else { return };
    let broker = servers.to_socket_addrs().expect("an address").next().expect("an address");
    let proxy = KafkaProxy::start(Options::new("doubt", broker)).expect("start");
    proxy.advertise(broker, proxy.address());
    let end_txns = proxy.add(Rule::new(ApiKey::EndTxn, Action::Observe));
    let direct = connect(&servers, &[]);
    let log = connect(&proxy.address().to_string(), &[]);
    let (topic, id) = (topic(&direct, "doubt", 1), unique("doubt"));
    let mut writer = log.writer(&id).expect("writer");
    commit(&mut *writer, &values(&topic, ["clean".to_string()]));
    assert_eq!(end_txns.counters().fired, 1, "the client goes through the proxy");

    writer.begin().expect("begin");
    writer.send_set(&values(&topic, ["doubtful".to_string()])).expect("send");
    let cut = proxy.add(Rule::new(ApiKey::EndTxn, cut).times(1));
    let outcome = writer.commit();
    assert!(end_txns.counters().fired >= 2 && cut.counters().fired == 1, "the cut took place");
    let CommitOutcome::InDoubt(why) = outcome else { panic!("{outcome:?}") };
    println!("in doubt: {why}");
    assert_eq!(writer.begin().expect_err("a writer in doubt is not used again").kind, LogErrorKind::Fenced);
    drop(writer);

    // The next writer settles it: afterwards the outcome is to be read from the log.
    let mut writer = log.writer(&id).expect("writer");
    let partition = TopicPartition::new(Arc::clone(&topic), 0);
    settled(&direct, &partition);
    let (seen, _) = Reading::new(&direct, &topic, 0, 0).take_to_settled_end(&direct);
    assert!(texts(&seen) == ["clean"] || texts(&seen) == ["clean", "doubtful"], "{seen:?}");
    commit(&mut *writer, &values(&topic, ["after".to_string()]));
}

/// The connection stands, nobody answers: the next writer asks sooner than librdkafka would again (`socket.timeout.ms`, 10 s).
#[test]
fn a_commit_without_any_answer_is_soon_in_doubt_and_the_next_writer_settles_it() {
    let began = Instant::now();
    commit_with_cut(Action::DropResponse);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[test]
fn a_commit_whose_answer_is_lost_is_in_doubt() {
    commit_with_cut(Action::CutResponse);
}

#[test]
fn a_commit_whose_request_is_lost_is_in_doubt() {
    commit_with_cut(Action::CutRequest);
}

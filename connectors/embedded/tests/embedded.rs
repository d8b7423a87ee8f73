//! The embedded broker as its users meet it: through librdkafka and raw frames.

#[path = "../../../tests/conformance/mod.rs"]
mod conformance;
mod limits;
mod restart;

use streamshield_embedded::{Config, EmbeddedBroker};

/// Part of a check's name, to run fewer.
const FILTER_VARIABLE: &str = "CONFORMANCE";
/// A broker to check in place of the embedded one.
const BOOTSTRAP_VARIABLE: &str = "CONFORMANCE_BOOTSTRAP";

#[test]
fn the_broker_passes_every_conformance_check() {
    let filter = std::env::var(FILTER_VARIABLE).ok();
    let broker = EmbeddedBroker::start(Config::default()).expect("it starts");
    let bootstrap = std::env::var(BOOTSTRAP_VARIABLE).unwrap_or_else(|_| broker.bootstrap_servers());
    let summary = conformance::run(&bootstrap, filter.as_deref());
    assert!(!summary.outcomes.is_empty(), "no check is named like {filter:?}");
    assert!(summary.failed().is_empty(), "{summary}");
    broker.shutdown().expect("it ends well");
}

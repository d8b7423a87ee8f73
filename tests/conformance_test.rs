//! What the engine relies on of a broker, checked against Apache Kafka: see [`crate::conformance`]. The embedded broker's own tests run the
//! same checks against it.

use crate::conformance;
use anyhow::{Result, ensure};
use streamshield_tests::support::broker::Broker;

fn passes(broker: &Broker) -> Result<()> {
    let filter = std::env::var("STREAMSHIELD_CHECK").ok();
    let summary = conformance::run(&broker.bootstrap_servers(), filter.as_deref());
    ensure!(summary.failed().is_empty(), "{summary}");
    ensure!(summary.passed() > 0, "no check has run");
    Ok(())
}

#[test]
fn apache_kafka_passes_the_same_checks() -> Result<()> {
    let Some(kafka) = Broker::kafka("conformance_test::apache_kafka_passes_the_same_checks") else { return Ok(()) };
    passes(&kafka)
}

//! The short kill test of every run; `make kill-test` is the long one.

use anyhow::Result;
use streamshield_tests::kill::{self, Options};
use streamshield_tests::support::broker::Broker;
use streamshield_tests::support::seed;

#[test]
fn output_is_right_to_the_row_after_kills_on_kafka() -> Result<()> {
    let Some(broker) = Broker::kafka("kill_test::output_is_right_to_the_row_after_kills_on_kafka") else { return Ok(()) };
    // Every second kill is at a point, and each point has its turn.
    survives(&broker, 2 * kill::points().len() as u32)
}

#[test]
fn output_is_right_to_the_row_after_kills_on_the_embedded_broker() -> Result<()> {
    survives(&Broker::embedded()?, 6)
}

fn survives(broker: &Broker, kills: u32) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options =
        Options { bootstrap_servers: broker.bootstrap_servers(), kills, records: 200_000, records_per_second: 20_000, seed: seed::seed() };
    let report = kill::run(&options, folder.path())?;
    println!("{}", report.json(options.seed));
    assert!(report.is_clean(), "{}", kill::verify::describe(&report));
    assert_eq!(report.kills, kills);
    Ok(())
}
